# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""CamVid with the 11 classes of the SegNet split: `{train,val}/{images,annotations}` and `classes.json`."""

from __future__ import annotations

from pathlib import Path

from .folder import load_folder
from .segmentation_data import SegmentationData

THIN_CLASSES = ("pole", "sign_symbol")


def load_camvid(data_root: str | Path) -> SegmentationData:
    """Load CamVid (Brostow et al., "Semantic object classes in video", 2009).

    Args:
        data_root: Folder with `train`, `val` and `classes.json`; annotations are 8-bit label ids, 255 = void.

    Raises:
        ValueError: Something is missing; the message names the path.
    """
    return load_folder(data_root, mask_format="ids", name="camvid", thin_classes=THIN_CLASSES)

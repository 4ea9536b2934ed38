# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""CamVid with the 11 classes of the SegNet split, as SegNet has it or in the layout of this package.

SegNet's folders are `train`, `trainannot`, `val`, `valannot`, `test` and `testannot`, and 11 means void. Ours are
`{train,val}/{images,annotations}` beside `classes.json`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .file_tree import FileTree, Place, probe_values, published_splits, split_dataset
from .folder import load_folder
from .labels import AnnotationFormat
from .segmentation_data import SegmentationData

if TYPE_CHECKING:
    from .source import Source

THIN_CLASSES = ("pole", "sign_symbol")
CLASS_NAMES: tuple[str, ...] = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian", "bicyclist"),
)
PALETTE: tuple[tuple[int, int, int], ...] = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128)),
    *((64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
SEQUENCES = ("0001TP_", "0006R0_", "0016E5_", "Seq05VD_")  # that names of pictures begin with
VOID = 11
SPLITS = {"train": "train", "validation": "val"}


def load_camvid(data_root: str | Path) -> SegmentationData:
    """Load CamVid (Brostow et al., "Semantic object classes in video", 2009).

    Args:
        data_root: Folder with `train`, `trainannot`, `val` and `valannot` of the SegNet tutorial, or a zip file of
            it, or folder with `train`, `val` and `classes.json`, where annotations are 8-bit label ids, 255 = void.

    Raises:
        ValueError: Something is missing; the message names the path.
    """
    if os.path.isdir(data_root) and not os.path.isdir(Path(data_root) / "trainannot"):
        return load_folder(data_root, mask_format="ids", name="camvid", thin_classes=THIN_CLASSES)
    images = {role: Place(split, ".png") for role, split in SPLITS.items()}
    annotations = {role: Place(f"{split}annot", ".png") for role, split in SPLITS.items()}
    _, pairs = published_splits(FileTree(data_root), images, [annotations])
    ids = {label: label for label in range(len(CLASS_NAMES))} | {VOID: 255}
    annotation_format = AnnotationFormat(len(CLASS_NAMES), id_map=tuple(ids.items()))
    probe_values(pairs, annotation_format)
    return SegmentationData(
        train=split_dataset(pairs["train"]),
        validation=split_dataset(pairs["validation"]),
        class_names=CLASS_NAMES,
        palette=PALETTE,
        name="camvid",
        thin_classes=THIN_CLASSES,
        annotation_format=annotation_format,
    )


def is_class_file(source: Source, name: str) -> bool:
    """Whether a file holds the class names of the second layout."""
    content = source.peek_json(name) if source.has(name) else None
    return isinstance(content, dict) and content.get("names") == list(CLASS_NAMES)

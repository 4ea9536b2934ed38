# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The six pictures of a split by which a model is looked at: the same in each evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from torch import nn

from ..data import SegmentationData, undecoded
from ..visualization import overlay
from .inference import segment
from .protocols import Protocol
from .submission import plain_stem

if TYPE_CHECKING:
    from ..image_processing_segformer import SegformerImageProcessor

PICTURES = 6
_TRACKED_SIDE = 384  # pixels; trackers keep each picture of each evaluation


class ShownPicture(NamedTuple):
    """One picture."""

    name: str  # safe as a file name, and different for each
    image: np.ndarray  # uint8 (H, W, 3)
    truth: np.ndarray  # integer (H, W)
    prediction: np.ndarray  # integer (H, W)


def shown_pictures(
    model: nn.Module,
    image_processor: SegformerImageProcessor,
    data: SegmentationData,
    protocol: Protocol,
    split: str = "validation",
) -> Iterator[ShownPicture]:
    """Evenly spaced pictures of a split, as a model sees them.

    Args:
        model: Segmentation model with the classes of `data`.
        image_processor: Processor of the model.
        data: Data set; the split's length is known.
        protocol: How pictures become network inputs.
        split: "train" or "validation".
    """
    rows, names = undecoded(getattr(data, split)), set[str]()
    indices = sorted({round(i * (len(rows) - 1) / max(PICTURES - 1, 1)) for i in range(PICTURES)})
    for index in indices:
        image, truth = data.read_sample(rows[index], split, index)
        prediction = segment(model, image_processor, image, protocol)
        name = plain_stem(rows[index].get("file_name") or f"{index}")
        while name in names:
            name = f"{name}_{index}"
        names.add(name)
        yield ShownPicture(name, image, truth, prediction)


def tracked_pictures(pictures: Iterable[ShownPicture], palette: Any) -> dict[str, np.ndarray]:
    """The same for trackers: truth and prediction over the picture, side by side and small, by name.

    Args:
        pictures: What `shown_pictures` returned.
        palette: (K, 3) RGB in 0..255.
    """
    found = {}
    for name, image, truth, prediction in pictures:
        tiles = [Image.fromarray(overlay(image, labels, palette)) for labels in (truth, prediction)]
        for tile in tiles:
            tile.thumbnail((_TRACKED_SIDE, _TRACKED_SIDE))
        found[f"truth_and_prediction/{name}"] = np.concatenate([np.asarray(tile) for tile in tiles], axis=1)
    return found

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The embedded data set "scenes": small street and country views drawn from a seed, with exact labels.

Colours are drawn per object from lists that overlap between classes (a lake may be as grey as a road, a tree as red as
a brick wall), and the whole picture is tinted, lit from one side, shadowed and noisy: what tells the classes apart is
texture, shape and place. Objects hide one another, and poles, lamps and wires are a few pixels thick.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .scene_painter import CLASS_NAMES, ScenePainter
from .segmentation_data import SegmentationData, build_dataset

if TYPE_CHECKING:
    import datasets

THIN_CLASSES = ("pole", "wire")
PALETTE = (
    (112, 178, 229),
    (148, 128, 176),
    (186, 104, 72),
    (44, 120, 60),
    (150, 200, 90),
    (120, 112, 112),
    (32, 84, 168),
    (226, 48, 64),
    (250, 200, 40),
    (240, 140, 200),
    (40, 24, 24),
)
VALIDATION_KEYS = 1 << 40  # the keys of training scenes stay below


def draw_scene(seed: int, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene; the same arguments give the same pixels on any machine.

    Args:
        seed: Integer in 0..2**128-1.
        size: Height and width in pixels, at least 64.

    Returns:
        image: uint8 (size, size, 3), RGB.
        label: uint8 (size, size), ids of `CLASS_NAMES`; every pixel is labelled.

    Raises:
        ValueError: `size` is too small or `seed` negative.
    """
    if size < 64:
        raise ValueError(f"size must be at least 64, got {size}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return ScenePainter(seed, size).paint()


def load_scenes(num_train: int = 600, num_validation: int = 100, size: int = 128, seed: int = 0) -> SegmentationData:
    """Draw the data set "scenes"; it stays in memory and writes no files.

    Args:
        num_train: Training scenes, at least 1.
        num_validation: Validation scenes, at least 1.
        size: Height and width in pixels, at least 64.
        seed: Integer in 0..2**63-1; another one gives other scenes. Scene i is the same whatever the number of scenes.

    Raises:
        ValueError: An argument is out of its range.
    """
    for name, count in (("num_train", num_train), ("num_validation", num_validation)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    first = seed << 64
    return SegmentationData(
        train=_drawn("train", first, num_train, size),
        validation=_drawn("validation", first + VALIDATION_KEYS, num_validation, size),
        class_names=CLASS_NAMES,
        palette=PALETTE,
        name="scenes",
        thin_classes=THIN_CLASSES,
    )


def _drawn(split: str, first: int, count: int, size: int) -> datasets.Dataset:
    scenes = (draw_scene(first + index, size) for index in range(count))
    images, labels = zip(*((_png(image), _png(label)) for image, label in scenes), strict=True)
    return build_dataset(images, labels, [f"{split}_{index:05d}.png" for index in range(count)])


def _png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}

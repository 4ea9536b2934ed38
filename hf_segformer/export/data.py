# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""An exported file on pictures and data sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import SegmentationData, undecoded
from ..evaluation.loop import check_classes
from ..evaluation.metrics import ConfusionMatrix
from ..image_processing_segformer import SegformerImageProcessor
from ..processing.resize import resize_nearest
from ..scores.label_map import upsample_argmax
from .checks import Comparison
from .settings import Settings

_PICTURES = 8


def pictures_of(data: SegmentationData | None, split: str) -> list[np.ndarray]:
    """Some pictures of a split, spread over it, or drawn ones: (H, W, 3) uint8."""
    if data is None:
        from ..data.scenes import draw_scene

        return [draw_scene(seed, 256)[0] for seed in range(_PICTURES)]
    rows = undecoded(getattr(data, split))
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(_PICTURES, len(rows))).astype(int))
    return [data.read_sample(rows[int(index)], split, int(index))[0] for index in chosen]


def prepared(picture: np.ndarray, image_processor: SegformerImageProcessor, settings: Settings) -> np.ndarray:
    """Input (C, H, W) of a picture for an exported file."""
    options: dict[str, Any] = {"do_pad": False}
    if settings.size is not None:
        size = dict(zip(("height", "width"), settings.size, strict=True))
        options |= {"do_resize": True, "size": size, "size_divisor": None}
    if settings.normalize == "inside":
        options |= {"do_rescale": False, "do_normalize": False}
    values = image_processor(picture, return_tensors="np", **options)["pixel_values"][0]
    return values.astype(np.uint8 if settings.normalize == "inside" else np.float32)


def mean_iou(
    comparison: Comparison, data: SegmentationData, split: str, image_processor: SegformerImageProcessor
) -> dict[str, float]:
    """mIoU of the model ("before") and the file ("after"), each picture at the size of its annotation.

    Label maps that the file makes have the input's size; they are resized by the nearest pixel, before and after.

    Args:
        comparison: Model and file.
        data: Data set with the model's classes.
        split: "train" or "validation".
        image_processor: Processor of the model.

    Raises:
        ValueError: Model and data set differ in their classes, or a sample is unreadable.
    """
    check_classes(comparison.model, data)
    rows = undecoded(getattr(data, split))
    matrices = {name: ConfusionMatrix(data.num_classes, data.ignore_index) for name in ("before", "after")}
    for index in range(len(rows)):
        picture, annotation = data.read_sample(rows[index], split, index)
        inputs = prepared(picture, image_processor, comparison.settings)[None]
        outputs = torch.from_numpy(comparison.run(inputs)[0])
        for name, values in (("before", comparison.logits(inputs)), ("after", outputs)):
            labels = _labels(values, inputs.shape[2:], annotation.shape, comparison.settings)
            matrices[name].update(labels, torch.as_tensor(annotation))
    return {name: float(matrix.compute()["mean_iou"]) for name, matrix in matrices.items()}


def _labels(values: Tensor, size: tuple[int, ...], wanted: tuple[int, ...], settings: Settings) -> Tensor:
    if settings.output == "logits":
        return upsample_argmax(values, wanted)[0]
    labels = upsample_argmax(values, size) if values.ndim == 4 else values.long()
    return resize_nearest(labels[0], (wanted[0], wanted[1]))

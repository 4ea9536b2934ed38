# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Boundary IoU: intersection over union of the pixels that lie near the outlines of each class.

Source: arXiv 2103.16562 and its reference code. Of a class's mask, only the pixels count that lie within a distance of
a pixel outside it; the edge of the picture is an outline, too. The distance is 2 % of the picture's diagonal, measured
along the longer axis (a square window), at least one pixel.

A pixel is near the outline of its class where its window holds another class or the outside. So one minimum and one
maximum over the windows of a label map find what is near the outlines of all classes at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

_OUTSIDE = -1  # of the picture, and where labels are ignored


class BoundaryIoU:
    """Counts of pixels near outlines, summed over pictures before anything is divided, as for mIoU.

    Ignored pixels count in neither map, and are to both what lies beyond the edge of the picture.

    Args:
        num_labels: Number of classes K.
        ignore_index: Label of pixels without a class.
        dilation_ratio: Distance from an outline up to which pixels count, as a share of the picture's diagonal.

    Raises:
        ValueError: `dilation_ratio` is not in (0, 1).
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, dilation_ratio: float = 0.02):
        if not 0 < dilation_ratio < 1:
            raise ValueError(f"dilation_ratio must be in (0, 1), got {dilation_ratio}")
        self.num_labels, self.ignore_index, self.dilation_ratio = num_labels, ignore_index, dilation_ratio
        self.counts = torch.zeros(3, num_labels, dtype=torch.int64)  # near outlines of both, of the truth's, of either

    def update(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Count the pixels of one picture.

        Args:
            prediction: (H, W) class ids.
            label: (H, W) class ids or `ignore_index`.

        Raises:
            ValueError: The shapes differ.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction and label must have one shape, got {prediction.shape} and {label.shape}")
        ignored = label == self.ignore_index
        dtype = np.int16 if self.num_labels < 1 << 15 else np.float32  # which OpenCV's filters take
        truth, predicted = (np.where(ignored, _OUTSIDE, ids).astype(dtype) for ids in (label, prediction))
        distance = max(round(self.dilation_ratio * math.hypot(*label.shape)), 1)
        near_truth, near_predicted = (_near_outlines(ids, distance) & ~ignored for ids in (truth, predicted))
        both = near_truth & near_predicted & (truth == predicted)
        for row, ids in zip(self.counts, (label[both], label[near_truth], prediction[near_predicted]), strict=True):
            row += torch.from_numpy(np.bincount(ids.astype(np.int64), minlength=self.num_labels))

    def reduce(self, accelerator: Accelerator) -> None:
        """Sum over all processes; every process must make this call."""
        self.counts = accelerator.reduce(self.counts.to(accelerator.device), "sum").cpu()

    def compute(self) -> dict[str, Any]:
        """`mean_boundary_iou`, and `per_category_boundary_iou` with nan for classes in neither map."""
        both, truth, predicted = self.counts.double()
        values = both / (truth + predicted - both)
        return {"mean_boundary_iou": values.nanmean().item(), "per_category_boundary_iou": values.tolist()}


def _near_outlines(ids: np.ndarray, distance: int) -> np.ndarray:
    """Whether another class, or the outside, lies within the distance of each pixel."""
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    edge: dict[str, Any] = {"borderType": cv2.BORDER_CONSTANT, "borderValue": _OUTSIDE}
    return (cv2.erode(ids, window, **edge) != ids) | (cv2.dilate(ids, window, **edge) != ids)

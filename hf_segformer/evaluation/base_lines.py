# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What is scored without looking at a picture: the least that a trained model has to beat."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data import MissingSplit, SegmentationData, undecoded
from ..data.segmentation_data import check_sample
from ..data.workers import cores_of_this_process
from .metrics import ConfusionMatrix

if TYPE_CHECKING:
    from accelerate import Accelerator

PICTURES = 200  # of the training set, evenly spaced, that the base lines are made from
SIDE = 128  # height and width of the mean label map


class BaseLines:
    """Two predictions that are the same for every picture, and their scores.

    One is the commonest class of the training annotations. The other is their mean label map: each annotation resized
    to 128x128 (nearest), the commonest class at each place, resized to each picture (nearest); the lowest id where
    several are, the commonest class of all where no annotation has any.

    Args:
        commonest: The commonest class.
        mean_map: (128, 128) class ids.
        pictures: Number of annotations that were read.
        of: Number of training pictures.
        data: The data set.
    """

    def __init__(self, commonest: int, mean_map: np.ndarray, pictures: int, of: int, data: SegmentationData):
        self.commonest, self.mean_map, self.pictures, self.of = commonest, mean_map, pictures, of
        self.class_names = data.class_names
        with warnings.catch_warnings():  # that ignore_index is a class has been said
            warnings.simplefilter("ignore")
            self.matrices = [ConfusionMatrix(data.num_classes, data.ignore_index) for _ in range(2)]

    @classmethod
    def of_training_set(cls, data: SegmentationData, accelerator: Accelerator) -> BaseLines | None:
        """Read at most 200 training annotations, each in one of the processes; every process must make this call.

        Args:
            data: Data set. Training samples that cannot be read are left out.
            accelerator: Gives the processes.

        Returns:
            None where training pictures are missing or streamed, or no pixel of those read has a class.
        """
        from datasets import IterableDataset

        if isinstance(data.train, (IterableDataset, MissingSplit)):
            return None
        rows = undecoded(data.train)
        indices = sorted({round(i) for i in np.linspace(0, len(rows) - 1, PICTURES)}) if len(rows) else []
        votes = torch.zeros(data.num_classes, SIDE, SIDE, dtype=torch.int32)
        pixels = torch.zeros(data.num_classes + 1, dtype=torch.int64)  # of each class; the last are pictures

        def label_of(index: int) -> np.ndarray | None:
            try:
                return check_sample(rows[index], data.annotation_format, "train", index)
            except ValueError:
                return None

        mine = indices[accelerator.process_index :: accelerator.num_processes]
        with ThreadPoolExecutor(cores_of_this_process(accelerator.num_processes)) as pool:
            for label in pool.map(label_of, mine):
                if label is not None:
                    _count(label, data.ignore_index, votes.numpy(), pixels.numpy())
        votes, pixels = (accelerator.reduce(part.to(accelerator.device), "sum").cpu() for part in (votes, pixels))
        if not pixels[:-1].any():
            return None
        commonest = int(pixels[:-1].argmax())
        mean_map = np.where(votes.amax(0) > 0, votes.numpy().argmax(0), commonest)
        return cls(commonest, mean_map, int(pixels[-1]), len(rows), data)

    def update(self, label: np.ndarray) -> None:
        """Score both on one picture's labels (H, W)."""
        predictions = np.full(label.shape, self.commonest), resized(self.mean_map, label.shape)
        for matrix, prediction in zip(self.matrices, predictions, strict=True):
            matrix.update(prediction, label)

    def reduce(self, accelerator: Accelerator) -> None:
        """Sum over all processes; every process must make this call."""
        self.matrices = [matrix.reduce(accelerator) for matrix in self.matrices]

    def compute(self) -> dict[str, Any]:
        """`base_lines`, the scores of `commonest_class` and `mean_label_map`, and `base_lines_made_from`."""
        names = ("mean_iou", "mean_accuracy", "overall_accuracy")
        commonest, mean_map = ({name: matrix.compute()[name] for name in names} for matrix in self.matrices)
        commonest = {"class": self.class_names[self.commonest]} | commonest
        return {
            "base_lines": {"commonest_class": commonest, "mean_label_map": mean_map},
            "base_lines_made_from": {"training_annotations": self.pictures, "of": self.of},
        }


def _count(label: np.ndarray, ignore_index: int, votes: np.ndarray, pixels: np.ndarray) -> None:
    valid = label[label != ignore_index].astype(np.int64)
    pixels[:-1] += np.bincount(valid, minlength=len(votes))
    pixels[-1] += 1
    small = resized(label, votes.shape[1:]).astype(np.int64)
    rows, columns = np.nonzero(small != ignore_index)
    votes[small[rows, columns], rows, columns] += 1


def resized(label_map: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A label map at another size: at each pixel's centre, the class that is there (nearest).

    Args:
        label_map: (h, w).
        size: (H, W).
    """
    rows, columns = (
        (2 * np.arange(to) + 1) * side // (2 * to) for side, to in zip(label_map.shape, size, strict=True)
    )
    return label_map[rows[:, None], columns]

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of each picture, and the pictures with the worst."""

from __future__ import annotations

import csv
import io
import math
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..files import atomic_file

if TYPE_CHECKING:
    from accelerate import Accelerator


class EvaluatedPicture(NamedTuple):
    """A picture of a split, and what a model says about it."""

    row: int  # in the split
    file_name: str
    prediction: np.ndarray  # (H, W) class ids
    label: np.ndarray  # (H, W) class ids, or the label of pixels without a class


class PictureScore(NamedTuple):
    """Scores of a picture; nan where no pixel has a class."""

    row: int
    file_name: str
    mean_iou: float  # over the classes of the annotation
    pixel_accuracy: float
    labelled_pixels: int


class PictureScores:
    """Scores of pictures as they come, and the label maps of the worst.

    Args:
        num_labels: Number of classes K.
        ignore_index: Label of pixels without a class.
        keep: How many of the worst are kept.

    Attributes:
        scores: One for each picture, in the order of the split after `gather`.
        worst: The `keep` pictures of lowest mIoU, the worst first, with their predictions (H, W).
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, keep: int = 6):
        self.num_labels, self.ignore_index, self.keep = num_labels, ignore_index, keep
        self.scores: list[PictureScore] = []
        self.worst: list[tuple[PictureScore, np.ndarray]] = []

    def update(self, picture: EvaluatedPicture) -> None:
        """Score one picture."""
        score = picture_score(picture, self.num_labels, self.ignore_index)
        self.scores.append(score)
        if not math.isnan(score.mean_iou):
            self.worst = sorted([*self.worst, (score, picture.prediction)], key=_badness)[: self.keep]

    def gather(self, accelerator: Accelerator) -> None:
        """Give all processes the scores of all, and the worst of all; every process must make this call."""
        from accelerate.utils import gather_object

        if accelerator.num_processes == 1:
            return
        self.scores = sorted(gather_object(self.scores))
        found = [score for score in self.scores if not math.isnan(score.mean_iou)]
        chosen = sorted(found, key=lambda score: _badness((score,)))[: self.keep]
        mine = [(score, label_map) for score, label_map in self.worst if score in chosen]
        self.worst = sorted(gather_object(mine), key=_badness)

    @property
    def mean_iou(self) -> float:
        """Mean of the pictures' mIoU."""
        values = [score.mean_iou for score in self.scores if not math.isnan(score.mean_iou)]
        return math.fsum(values) / len(values) if values else math.nan

    def write(self, path: str | os.PathLike) -> None:
        """Write the scores as a CSV table; cells are empty where there is none."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(PictureScore._fields[1:])
        for score in self.scores:
            writer.writerow(["" if value != value else value for value in score[1:]])
        with atomic_file(path) as file:
            file.write(text.getvalue().encode())


def _badness(entry: tuple) -> tuple[float, int]:
    return entry[0].mean_iou, entry[0].row


def picture_score(picture: EvaluatedPicture, num_labels: int, ignore_index: int) -> PictureScore:
    """Scores of one picture.

    Args:
        picture: The picture.
        num_labels: Number of classes K.
        ignore_index: Label of pixels without a class.
    """
    valid = picture.label != ignore_index
    truth, prediction = picture.label[valid], picture.prediction[valid]
    hits, actual, predicted = (
        np.bincount(ids.astype(np.int64), minlength=num_labels)
        for ids in (truth[truth == prediction], truth, prediction)
    )
    present = actual > 0
    if not present.any():
        return PictureScore(picture.row, picture.file_name, math.nan, math.nan, 0)
    ious = hits[present] / (actual + predicted - hits)[present]
    accuracy = float(hits.sum() / actual.sum())
    return PictureScore(picture.row, picture.file_name, float(ious.mean()), accuracy, int(actual.sum()))

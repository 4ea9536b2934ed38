# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation finds out beside the confusion matrix: scores of pictures, outlines, base lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import SegmentationData, undecoded
from ..texts import NAME_LIMIT, one_line, public_path
from ..visualization import panel
from .base_lines import BaseLines
from .boundary_iou import BoundaryIoU
from .picture_scores import EvaluatedPicture, PictureScores

if TYPE_CHECKING:
    from accelerate import Accelerator


class Findings:
    """Collects from the pictures of an evaluation; every process makes one.

    Args:
        data: Data set.
        accelerator: Gives the processes.
        split: The split that is evaluated.
        boundary_iou: Whether the boundary IoU is wanted.
    """

    def __init__(
        self, data: SegmentationData, accelerator: Accelerator, split: str = "validation", boundary_iou: bool = False
    ):
        classes = (data.num_classes, data.ignore_index)
        self.data, self.split = data, split
        self.pictures = PictureScores(*classes)
        self.boundary = BoundaryIoU(*classes) if boundary_iou else None
        self.base_lines = BaseLines.of_training_set(data, accelerator)

    def update(self, picture: EvaluatedPicture) -> None:
        """Take note of one picture."""
        self.pictures.update(picture)
        if self.boundary is not None:
            self.boundary.update(picture.prediction, picture.label)
        if self.base_lines is not None:
            self.base_lines.update(picture.label)

    def gather(self, accelerator: Accelerator) -> None:
        """Put together what the processes found; every process must make this call."""
        self.pictures.gather(accelerator)
        for part in (self.boundary, self.base_lines):
            if part is not None:
                part.reduce(accelerator)

    def metrics(self) -> dict[str, Any]:
        """What goes into metrics.json."""
        found: dict[str, Any] = {"mean_picture_iou": self.pictures.mean_iou}
        if self.boundary is not None:
            found |= self.boundary.compute()
        if self.base_lines is not None:
            found |= self.base_lines.compute()
        return found | {"worst": [self._of_worst(place) for place in range(len(self.pictures.worst))]}

    def report(self) -> str:
        """The same as lines of text, with the names of the worst pictures."""
        found = self.metrics()
        lines = [f"mean of the pictures' mIoU {_percent(found['mean_picture_iou'])}"]
        if self.boundary is not None:
            lines[0] += f"  boundary mIoU {_percent(found['mean_boundary_iou'])}"
        if self.base_lines is not None:
            lines += _base_lines(**found)
        worst = [f"{_shown(score.file_name)} {_percent(score.mean_iou)}" for score, _ in self.pictures.worst]
        return "\n".join(
            [*lines, f"worst pictures by mIoU: {', '.join(worst)}" if worst else "no picture is labelled"]
        )

    def _of_worst(self, place: int) -> dict[str, Any]:
        score, _ = self.pictures.worst[place]
        scores = {"mean_iou": score.mean_iou, "pixel_accuracy": score.pixel_accuracy}
        return {"file_name": public_path(score.file_name)} | scores | {"panel": f"worst/{place + 1}.png"}

    def write(self, folder: Path) -> None:
        """Write `pictures.csv`, and panels of the worst pictures: `worst/1.png` and so on.

        Args:
            folder: Where an earlier evaluation may have left the same files, which are replaced.
        """
        self.pictures.write(folder / "pictures.csv")
        self.remove_panels(folder, len(self.pictures.worst))
        data = self.data
        rows = undecoded(getattr(data, self.split)) if self.pictures.worst else []
        for place, (score, prediction) in enumerate(self.pictures.worst):
            image, label = data.read_sample(rows[score.row], self.split, score.row)
            title = f"{public_path(score.file_name)}: mIoU {_percent(score.mean_iou)}"
            path = folder / self._of_worst(place)["panel"]
            panel(image, label, prediction, data.class_names, data.palette, path, title=title)

    def remove_panels(self, folder: Path, first: int = 0) -> None:
        """Remove the panels that an earlier evaluation left, from a place on, counted from 0."""
        for place in range(first, self.pictures.keep):
            (folder / "worst" / f"{place + 1}.png").unlink(missing_ok=True)


def _base_lines(base_lines: dict[str, Any], base_lines_made_from: dict[str, int], **_: Any) -> list[str]:
    commonest, mean_map = base_lines["commonest_class"], base_lines["mean_label_map"]
    made_from = "from {training_annotations} of {of} training annotations".format(**base_lines_made_from)
    lines = [
        f"  {kind}: mIoU {_percent(scores['mean_iou'])}  aAcc {_percent(scores['overall_accuracy'])}"
        for kind, scores in ((f"always {_shown(commonest['class'])}", commonest), ("mean label map", mean_map))
    ]
    return [f"base lines without looking ({made_from}):", *lines]


def _shown(name: str) -> str:
    return one_line(public_path(name), NAME_LIMIT)


def _percent(fraction: float) -> str:
    return "-" if fraction != fraction else f"{100 * fraction:.2f}"

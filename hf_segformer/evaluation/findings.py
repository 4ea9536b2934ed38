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
        worst = [
            {"file_name": public_path(score.file_name), "mean_iou": score.mean_iou, "panel": _panel(place)}
            for place, (score, _) in enumerate(self.pictures.worst)
        ]
        found: dict[str, Any] = {"mean_picture_iou": self.pictures.mean_iou, "worst": worst}
        if self.boundary is not None:
            found |= self.boundary.compute()
        if self.base_lines is not None:
            found["base_lines"] = self.base_lines.compute()
        return found

    def report(self) -> str:
        """The same as lines of text, with the names of the worst pictures."""
        found = self.metrics()
        lines = [f"mean of the pictures' mIoU {_percent(found['mean_picture_iou'])}"]
        if self.boundary is not None:
            lines[0] += f"  boundary mIoU {_percent(found['mean_boundary_iou'])}"
        if self.base_lines is not None:
            lines += self._base_lines(found["base_lines"])
        worst = [f"{_shown(score.file_name)} {_percent(score.mean_iou)}" for score, _ in self.pictures.worst]
        return "\n".join(
            [*lines, f"worst pictures by mIoU: {', '.join(worst)}" if worst else "no picture is labelled"]
        )

    def _base_lines(self, found: dict[str, Any]) -> list[str]:
        kinds = {f"always {_shown(found['commonest_class']['class'])}": found["commonest_class"]}
        kinds["mean label map"] = found["mean_label_map"]
        scores = [
            f"{kind}: mIoU {_percent(of['mean_iou'])}  aAcc {_percent(of['overall_accuracy'])}"
            for kind, of in kinds.items()
        ]
        made_from = f"from {found['pictures']} of {found['training_pictures']} training annotations"
        return [f"base lines without looking ({made_from}):", *(f"  {line}" for line in scores)]

    def write(self, folder: Path) -> None:
        """Write `pictures.csv`, and panels of the worst pictures: `worst/1.png` and so on.

        Args:
            folder: Where an earlier evaluation may have left the same files, which are replaced.
        """
        self.pictures.write(folder / "pictures.csv")
        data, worst = self.data, self.pictures.worst
        rows = undecoded(getattr(data, self.split)) if worst else []
        for place in range(self.pictures.keep):
            path = folder / _panel(place)
            if place >= len(worst):
                path.unlink(missing_ok=True)
                continue
            score, prediction = worst[place]
            image, label = data.read_sample(rows[score.row], self.split, score.row)
            title = f"{public_path(score.file_name)}: mIoU {_percent(score.mean_iou)}"
            panel(image, label, prediction, data.class_names, data.palette, path, title=title)


def _panel(place: int) -> str:
    """Name of a worst picture's panel in the folder of an evaluation; place 0 is the worst."""
    return f"worst/{place + 1}.png"


def _shown(name: str) -> str:
    return one_line(public_path(name), NAME_LIMIT)


def _percent(fraction: float) -> str:
    return "-" if fraction != fraction else f"{100 * fraction:.2f}"

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What was seen of an exported file when it was run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .checks import Agreement, Comparison, SizeCheck

if TYPE_CHECKING:
    from .int8 import Int8Report


class ExportDisagrees(FloatingPointError):
    """An exported file computes something else than the model."""


@dataclass
class ExportReport:
    """Report on an exported file.

    Args:
        path: The file.
        settings: What was exported.
        versions: Packages that wrote and ran it.
        bytes: Size of the file, or of the files together.
        sizes: Comparison with the model at ten sizes (at a fixed size, with one picture and two).
        worst_difference: Largest of these, relative to the largest logit; None where only labels come out.
        tolerance: What it had to stay below.
        pictures: Source of the pictures.
        agreement: Of the labels of pictures.
        latency_ms: Median of one picture.
        eager_ms: That of the model in PyTorch, taken in turns with it.
        latency_size: Height and width of that picture.
        mean_iou: Of the model ("before") and the file ("after") on a data set, where one was given.
        int8: What int8 did, where it was asked for; the comparison at ten sizes is that of the float file then.
    """

    path: str
    settings: dict[str, Any]
    versions: dict[str, str]
    bytes: int
    sizes: list[SizeCheck]
    worst_difference: float | None
    tolerance: float
    pictures: str
    agreement: Agreement
    latency_ms: float
    eager_ms: float
    latency_size: tuple[int, int]
    mean_iou: dict[str, float] | None = None
    int8: Int8Report | None = None

    def __str__(self) -> str:
        settings = self.settings
        kind = f"{settings['format']}, {settings['output']}" + ", weights in float16" * settings["half"]
        kind += ", int8" * bool(self.int8)
        lines = [f"{self.path}: {kind}, {self.bytes / 1e6:.1f} MB"]
        if self.worst_difference is not None:
            worst = f"{self.worst_difference:.1e} (at most {self.tolerance:.0e})" + ", before int8" * bool(self.int8)
            lines.append(f"  worst difference at {len(self.sizes)} sizes  {worst}")
        height, width = self.latency_size
        lines.append(
            f"  latency at {height}x{width}  {self.latency_ms:.0f} ms, PyTorch {self.eager_ms:.0f} ms "
            f"({self.eager_ms / self.latency_ms:.2f} times as fast)"
        )
        own = self.agreement
        lines.append(
            f"  labels of {own.pictures} pictures ({self.pictures})  {100 * own.equal:.4f} % equal, "
            f"{own.near_ties} pixels differ in near-ties, {own.others} otherwise"
        )
        if self.mean_iou is not None:
            lines.append(
                f"  mIoU  before {100 * self.mean_iou['before']:.2f}, after {100 * self.mean_iou['after']:.2f}"
            )
        return "\n".join([*lines, str(self.int8)] if self.int8 else lines)


def require_agreement(comparison: Comparison, sizes: list[SizeCheck], agreement: Agreement) -> None:
    """Refuse a file that computes something else.

    Raises:
        ExportDisagrees: A difference is above the tolerance, or labels differ that are no near-ties.
    """
    for check in sizes:
        difference = check.difference
        if difference is not None and not difference <= comparison.tolerance:
            raise ExportDisagrees(
                f"the exported file disagrees with the model, so it was not kept: at batch, height, width "
                f"{check.shape} the difference is {difference:.1e}, at most {comparison.tolerance:.0e} is rounding"
            )
    others = agreement.others + sum(check.agreement.others for check in sizes)
    if others:
        raise ExportDisagrees(
            f"the exported file disagrees with the model, so it was not kept: {others} pixels have other labels, "
            "which are no near-ties"
        )

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Class scores of a large picture, a band of rows at a time, out of the small logits of windows and sizes.

The (H, W, K) scores of a picture are never held. Logits stay at the network's own resolution; what a protocol does to
them is a chain of sources, each of which computes any rows of its result from a few rows of the one before it:

    logits of a window -> `ResizedScores` to the window's size -> `WindowedScores`, averaged where windows overlap
    -> `ResizedScores` to the picture's size -> `label_rows`, one chain for each augmented input

Windows are computed when the first of their rows is asked for, and forgotten after the last: so callers ask for bands
from top to bottom. Shapes: scores are (rows, columns, classes), the layout in which the CPU interpolates fastest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Generic, TypeVar
from typing import Protocol as Interface

import torch
import torch.nn.functional as F
from torch import Tensor

from ..scores.bilinear import BilinearAxis, bilinear_axis, on_cpu

Size = tuple[int, int]  # height, width
Span = tuple[int, int]  # first, stop

OVERLAPS = ("mean", "gaussian")
_GAUSSIAN_SIGMA = 1 / 8  # of the window's side
# Elements of a band's scores: several such buffers exist at a time. Smaller ones are no faster on one core, and with
# threads on busy cores many times slower; on a device many launches are dear.
_CPU_BAND_ELEMENTS = 1 << 22
_DEVICE_BAND_ELEMENTS = 1 << 26


class ScoreRows(Interface):
    """Scores of `size` (height, width), any rows of which can be computed."""

    size: Size

    def rows(self, start: int, stop: int) -> Tensor:
        """Float scores (stop - start, width, K); the next call, whose `start` is not smaller, may overwrite them."""


Source = TypeVar("Source", bound=ScoreRows)


class Logits:
    """Scores that are there: (h, w, K) logits of any floating-point type."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self._first = logits, 0
        self.size: Size = (logits.shape[0], logits.shape[1])

    def rows(self, start: int, stop: int) -> Tensor:
        return self.logits[start - self._first : stop - self._first].float()

    def forget(self, stop: int) -> None:
        """Free the rows before `stop`, which will not be asked for again."""
        self.logits, self._first = self.logits[stop - self._first :].clone(), stop


class ResizedScores(Generic[Source]):
    """Scores resized bilinearly, as by `F.interpolate(..., align_corners=False)`."""

    def __init__(self, source: Source, size: Size) -> None:
        self.source = source
        self.size: Size = (size[0], size[1])

    def rows(self, start: int, stop: int) -> Tensor:
        if self.size == self.source.size:
            return self.source.rows(start, stop)
        (height, _), (pixels, width) = self.source.size, self.size
        taps = _axis(height, pixels).taps[start:stop]
        first, last = taps[0][0], taps[-1][1]
        points = _widened(self.source.rows(first, last + 1), width)
        return points if height == pixels else _interpolated_rows(points, taps, first)

    def first_row(self, start: int) -> int:
        """First row of the source that rows from `start` on are made of."""
        return _axis(self.source.size[0], self.size[0]).taps[max(start, 0)][0]


@functools.lru_cache(maxsize=64)
def _axis(points: int, pixels: int) -> BilinearAxis:
    return bilinear_axis(points, pixels, torch.empty(0))


def _interpolated_rows(points: Tensor, taps: list[tuple[int, int, float]], first: int) -> Tensor:
    """Rows between the given (lower, upper, weight of the upper) rows of points, the first of which is `first`."""
    lower, upper, weights = (torch.tensor(column, device=points.device) for column in zip(*taps, strict=True))
    weights = weights[:, None, None]
    if not on_cpu(points):
        return torch.lerp(points.index_select(0, lower - first), points.index_select(0, upper - first), weights)
    # Rows between the same two points share them: no copies, and few calls.
    result = points.new_empty(len(taps), *points.shape[1:])
    for (below, above), run in groupby(range(len(taps)), lambda row: taps[row][:2]):
        rows = list(run)
        part = slice(rows[0], rows[-1] + 1)
        torch.lerp(points[below - first], points[above - first], weights[part], out=result[part])
    return result


def _widened(points: Tensor, width: int) -> Tensor:
    if points.shape[1] == width:
        return points
    channels_last = points[None].permute(0, 3, 1, 2)  # in this order, or its strides are not taken for channels_last
    wide = F.interpolate(channels_last, size=(len(points), width), mode="bilinear", align_corners=False)
    return wide.permute(0, 2, 3, 1)[0]


class WindowedScores:
    """Scores of a grid of windows of equal size, averaged where they overlap.

    Args:
        size: Height and width of the whole, in pixels.
        row_spans: First and stop of each row of windows.
        column_spans: First and stop of each column of windows.
        compute: Gives the (h, w, K) logits of all windows of a row, by its index. Called once for each row.
        overlap: "mean", or "gaussian": windows count more near their centres, which hides their borders.
    """

    def __init__(
        self,
        size: Size,
        row_spans: Sequence[Span],
        column_spans: Sequence[Span],
        compute: Callable[[int], list[Tensor]],
        overlap: str = "mean",
    ) -> None:
        self.size: Size = (size[0], size[1])
        self.row_spans, self.column_spans, self._compute = row_spans, column_spans, compute
        self._row_weights = _weights(row_spans, size[0], overlap)
        self._column_weights = _weights(column_spans, size[1], overlap)
        self._windows: dict[int, list[ResizedScores[Logits]]] = {}
        self._buffer: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        touched = [i for i, (top, bottom) in enumerate(self.row_spans) if top < stop and bottom > start]
        for index in [index for index in self._windows if index not in touched]:
            del self._windows[index]
        if len(self.row_spans) == len(self.column_spans) == 1:
            return self._row(0, start)[0].rows(start, stop)
        total: Tensor | None = None
        for index in touched:
            top, bottom = self.row_spans[index]
            first, last = max(start, top), min(stop, bottom)
            row_weight = self._row_weights[index][first - top : last - top]
            for window, (left, right), column_weight in zip(
                self._row(index, start), self.column_spans, self._column_weights, strict=True
            ):
                scores = window.rows(first - top, last - top)
                if total is None:
                    total = self._zeros(scores, stop - start)
                weight = (row_weight[:, None] * column_weight)[..., None].to(scores.device)
                total[first - start : last - start, left:right].addcmul_(scores, weight)
        assert total is not None  # every row lies in a window
        return total

    def _zeros(self, like: Tensor, rows: int) -> Tensor:
        """A buffer for a band, the same for every band: fresh memory costs more than all that is done with it."""
        if self._buffer is None or len(self._buffer) < rows:
            self._buffer = like.new_empty(rows, self.size[1], like.shape[2])
        return self._buffer[:rows].zero_()

    def _row(self, index: int, start: int) -> list[ResizedScores[Logits]]:
        if index not in self._windows:
            for held, windows in self._windows.items():
                for window in windows:
                    window.source.forget(window.first_row(start - self.row_spans[held][0]))
            height = self.row_spans[index][1] - self.row_spans[index][0]
            widths = [right - left for left, right in self.column_spans]
            logits = self._compute(index)
            self._windows[index] = [
                ResizedScores(Logits(window), (height, width)) for window, width in zip(logits, widths, strict=True)
            ]
        return self._windows[index]


def _weights(spans: Sequence[Span], pixels: int, overlap: str) -> list[Tensor]:
    """Share of each window in each of its pixels along one axis; at every pixel the shares add up to one."""
    total, weights = torch.zeros(pixels, dtype=torch.float64), []
    for first, stop in spans:
        weight = torch.ones(stop - first, dtype=torch.float64)
        if overlap == "gaussian":
            distance = torch.arange(stop - first, dtype=torch.float64) - (stop - first - 1) / 2
            weight = torch.exp(-0.5 * (distance / (_GAUSSIAN_SIGMA * (stop - first))) ** 2)
        weights.append(weight)
        total[first:stop] += weight
    return [(weight / total[first:stop]).float() for weight, (first, stop) in zip(weights, spans, strict=True)]


def label_bands(
    sources: Sequence[ScoreRows], size: Size, classes: int, device: torch.device, with_confidence: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Label map of one chain of scores, or of the mean softmax probability of several.

    Args:
        sources: Scores of any size; resized to `size`.
        size: Height and width of the label map.
        classes: Number of scores K; one stands for the two classes of a sigmoid.
        device: Where the scores are.
        with_confidence: Also return the probability of each pixel's label.

    Returns:
        (H, W) labels on the device, uint8 for up to 256 classes and int32 above, and (H, W) float32 in [0, 1] or None.
    """
    chains = [ResizedScores(source, size) for source in sources]
    labels = torch.empty(size, dtype=torch.uint8 if classes <= 256 else torch.int32, device=device)
    confidence = torch.empty(size, device=device) if with_confidence else None
    height = _band_height(sources, size, classes, device)
    for start in range(0, size[0], height):
        band = slice(start, min(start + height, size[0]))
        if len(chains) == 1 and not with_confidence:
            scores = chains[0].rows(band.start, band.stop)
            labels[band] = scores[..., 0] > 0 if classes == 1 else scores.argmax(2)
            continue
        probability = _mean_probability(chains, band)
        best, winner = probability.max(2)
        labels[band] = winner
        if confidence is not None:
            confidence[band] = best
    return labels, confidence


def _band_height(sources: Sequence[ScoreRows], size: Size, classes: int, device: torch.device) -> int:
    elements = _CPU_BAND_ELEMENTS if device.type == "cpu" else _DEVICE_BAND_ELEMENTS
    # Rows of a larger source that go into one row of the result are there at the same time.
    row = max([size[1], *(source.size[0] * source.size[1] / size[0] for source in sources)]) * classes
    return min(max(int(elements / row), 4), size[0])


def _mean_probability(chains: Sequence[ResizedScores], band: slice) -> Tensor:
    total: Tensor | None = None
    for chain in chains:
        scores = chain.rows(band.start, band.stop)
        if scores.shape[2] == 1:
            scores = torch.cat([torch.zeros_like(scores), scores], dim=2)  # whose softmax is the sigmoid
        probability = scores.softmax(2)
        total = probability if total is None else total.add_(probability)
    assert total is not None  # there is a chain at least
    return total.div_(len(chains))

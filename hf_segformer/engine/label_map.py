# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label maps without the (K, H, W) score tensor: the rows of pixels in bands that fit a cache, or a GPU kernel.

On a CPU, a cell whose four points agree gets their label without a score being computed (bilinear interpolation is a
convex combination); in other cells only classes that somewhere reach the best class's smallest corner compete; where
that would not pay, the rows are scored in bands. Images of up to 32 MiB of scores are interpolated as a whole.

Shapes: B images, K classes, (h, w) points of the logits, (H, W) pixels; points and cells as in `scores.bilinear`.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from ..scores.bilinear import (
    BilinearAxis,
    Slab,
    bands,
    bilinear_axis,
    compute_dtype,
    finite_scores,
    image_slabs,
    on_cpu,
    widen,
)
from .allocator import keep_freed_memory
from .eligibility import no_bands_of_pixels
from .kernel_choice import choose
from .losses_in_bands import losses_in_bands, softmax_layout
from .pruned_labels import label_where_it_pays
from .seam import implements

# An image with no more scores than this is labelled by the plain expression. Up to about 32 MiB the memory is at hand
# (see `allocator`), and one pass over each score costs less than many small calls.
# `python -m hf_segformer.benchmark.constants` times others.
_FEW_SCORES = (1 << 23) - (1 << 15)
# Scores of a slab that differ by no more than this many nats have exponentials that float32 can add up.
_LARGEST_RANGE = 150.0


@implements("label_map", unless=no_bands_of_pixels)
def label_map_in_bands(logits: Tensor, size: tuple[int, int], return_confidence: bool) -> tuple[Tensor, Tensor | None]:
    """Labels and, if wanted, confidences, a band of pixels at a time or by a kernel of a GPU."""
    keep_freed_memory()
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        return choose("upsample_argmax", _label, logits, size, return_confidence)


def _label(logits: Tensor, size: tuple[int, int], return_confidence: bool) -> tuple[Tensor, Tensor | None]:
    """Labels and, if wanted, confidences, by PyTorch's operations."""
    labels = torch.empty(len(logits), *size, dtype=torch.long, device=logits.device)
    if on_cpu(logits) and logits.shape[1] * labels[:1].numel() <= _FEW_SCORES:
        confidence = torch.empty(labels.shape) if return_confidence else None
        for image in range(len(logits)):
            part = slice(image, image + 1)
            _label_plainly(logits[part], labels[part], None if confidence is None else confidence[part])
        return labels, confidence
    rows = bilinear_axis(logits.shape[2], size[0], logits)
    _label_in_slabs(logits, rows, labels)
    return labels, _confidence(logits, rows, labels) if return_confidence else None


def _label_in_slabs(logits: Tensor, rows: BilinearAxis, labels: Tensor) -> None:
    """Fill the labels (B, H, W): where it pays by looking for candidates, elsewhere by scoring every class."""
    # With fewer classes, scoring them all is as cheap as looking for candidates.
    if not on_cpu(logits) or logits.shape[1] < 4:
        _label_bands(logits, rows, labels)
        return
    for image, slab in label_where_it_pays(logits, rows, labels):
        part = slice(image, image + 1)
        _label_bands(logits[part], rows, labels[part], slab.cells)


def _label_plainly(logits: Tensor, labels: Tensor, confidence: Tensor | None) -> None:
    """Fill the labels and confidences (1, H, W) of an image whose scores are so few that holding them does no harm."""
    # With many classes interpolation and argmax are several times faster where these are innermost.
    has_few_classes = logits.shape[1] < 16
    layout = torch.contiguous_format if has_few_classes else torch.channels_last
    scores = finite_scores(logits).contiguous(memory_format=layout)
    scores = F.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=False)
    if scores.shape[1] == 1:
        labels.copy_(scores[:, 0] > 0)
        if confidence is not None:
            confidence.copy_(scores[:, 0].abs_().sigmoid_())
        return
    if has_few_classes:
        best, _ = torch.max(scores, 1, out=(scores.new_empty(labels.shape), labels))
    else:
        torch.argmax(scores, 1, out=labels)
        best = scores.gather(1, labels[:, None])[:, 0]
    if confidence is not None:
        confidence.copy_(scores.sub_(best[:, None]).exp_().sum(1).reciprocal_())


def _label_bands(logits: Tensor, rows: BilinearAxis, labels: Tensor, cells: slice = slice(None)) -> None:
    """Fill the labels (B, H, W) of the given rows of cells by interpolating every score."""
    ranks = torch.arange(logits.shape[1], 0, -1, dtype=compute_dtype(logits), device=logits.device)[:, None, None]
    for images, slab in image_slabs(logits, rows, labels.shape[2], cells):
        wide = widen(finite_scores(logits[images, :, slab.points]), labels.shape[2])
        for band, scores in bands(wide, rows, slab):
            if len(ranks) == 1:
                labels[images, band] = scores[:, 0] > 0
            elif on_cpu(scores):
                # Index of the first largest. The CPU's argmax over a strided dimension is several times slower than
                # these four passes, each of which vectorises.
                winners = scores.eq_(scores.amax(1, keepdim=True)).mul_(ranks)
                labels[images, band] = len(ranks) - winners.amax(1)
            else:
                labels[images, band] = scores.argmax(1)


def _confidence(logits: Tensor, rows: BilinearAxis, labels: Tensor) -> Tensor:
    """Probability (B, H, W) of the given labels."""
    confidence = torch.empty(labels.shape, device=labels.device)
    for images, slab in image_slabs(logits, rows, labels.shape[2]):
        points, wanted, part = finite_scores(logits[images, :, slab.points]), labels[images, slab.pixels], slab.pixels
        powers = _as_powers_of_two(points)
        if powers is not None:
            _shares(powers, rows, slab, wanted, confidence[images, part])
            continue
        wide = widen(points, labels.shape[2], softmax_layout(logits))
        confidence[images, part] = losses_in_bands(wide, rows, slab, wanted).neg_().exp_()
    return confidence


def _as_powers_of_two(points: Tensor) -> Tensor | None:
    """The points' binary logarithms, shifted to lie around zero; None where their powers could leave the range.

    Interpolation and softmax do not mind the shift, and a CPU's `exp2` takes a third of the time of its `exp`.
    """
    if not on_cpu(points) or points.shape[1] == 1:
        return None
    smallest, largest = (float(bound) for bound in points.aminmax())
    if largest - smallest > _LARGEST_RANGE:
        return None
    return (points - (largest + smallest) / 2).mul_(1 / log(2))


def _shares(powers: Tensor, rows: BilinearAxis, slab: Slab, labels: Tensor, out: Tensor) -> None:
    """Fill `out` (B, R, W) with the share of the labels (B, R, W) in the sum of all classes' powers of two."""
    wide = widen(powers, labels.shape[2], torch.channels_last)
    for band, scores in bands(wide, rows, slab):
        part = slice(band.start - slab.pixels.start, band.stop - slab.pixels.start)
        scores = scores.exp2_().permute(0, 2, 3, 1)  # (B, R, W, K), contiguous
        chosen = scores.gather(3, labels[:, part, :, None])
        torch.div(chosen[..., 0], scores.sum(3), out=out[:, part])

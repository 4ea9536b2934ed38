# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of one picture at a time, so that memory holds the scores of a single one, however large the batch.

Shapes: K classes, (H, W) pixels. A single logit is taken as the scores of two classes, background and object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..scores.bilinear import compute_dtype

_CLASSES_TOGETHER = 16  # whose binary losses are computed at a time, again in the backward pass


class Picture(NamedTuple):
    """What the losses of a picture are computed from."""

    scores: Tensor  # (K, H, W) upsampled logits, (1, H, W) of a single logit
    log_probabilities: Tensor  # (K, H, W)
    labels: Tensor  # (H, W) classes, 0 where ignored; for two classes floats in [0, 1] too
    valid: Tensor  # (H, W) bool
    pixel_weights: Tensor  # (H, W) weight of each pixel's class, 0 where ignored
    class_weights: Tensor | None  # (K,)


PictureLoss = Callable[[Picture], Tensor]


def sum_over_pictures(logits: Tensor, loss_of: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Sum of a loss over the pictures of a batch; it cannot be differentiated twice.

    The gradient with respect to the logits is formed together with the loss, picture by picture, and kept at the
    logits' size, in float32 at least.

    Args:
        logits: (B, K, h, w).
        loss_of: Scalar loss of the logits (K, h, w) of a picture, float32 or wider, and its number.
    """
    with torch.autocast(logits.device.type, enabled=False):
        if torch.is_grad_enabled() and logits.requires_grad:
            return _SumOverPictures.apply(logits, loss_of)
        pieces = enumerate(logits.to(compute_dtype(logits)))
        return sum(
            (loss_of(piece, index) for index, piece in pieces), logits.new_zeros((), dtype=compute_dtype(logits))
        )


class _SumOverPictures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss_of: Callable[[Tensor, int], Tensor]) -> Tensor:
        gradient = torch.empty_like(logits, dtype=compute_dtype(logits))
        total = gradient.new_zeros(())
        for index, piece in enumerate(logits.detach()):
            with torch.enable_grad():
                piece = piece.to(gradient.dtype).requires_grad_()
                loss = loss_of(piece, index)
            (gradient[index],) = torch.autograd.grad(loss, piece)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        # Gradients are recorded only when the backward pass itself shall be differentiated.
        if torch.is_grad_enabled():
            raise RuntimeError("SegmentationLoss has no second derivative")
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_output).to(ctx.dtype), None


def upsampled(logits: Tensor, labels: Tensor, valid: Tensor, weights: Tensor, class_weights: Tensor | None) -> Picture:
    """A picture with the scores of all its pixels.

    Args:
        logits: (K, h, w) of a picture, or (1, h, w).
        labels: (H, W).
        valid: (H, W), whether a pixel has a class.
        weights: (H, W) weight of each pixel, 0 where it has none.
        class_weights: (K,) or None.
    """
    scores = F.interpolate(logits[None], size=labels.shape, mode="bilinear", align_corners=False)[0]
    both = torch.cat([torch.zeros_like(scores), scores]) if len(scores) == 1 else scores
    class_weights = None if class_weights is None else class_weights.to(scores)
    return Picture(scores, both.log_softmax(dim=0), labels * valid, valid, weights.to(scores), class_weights)


def focal(picture: Picture, gamma: float) -> Tensor:
    """Sum over pixels of -w (1 - p)^gamma log p."""
    log_p = _of_target(picture)
    # 1 - p, which has no gradient where p is 1 and gamma below 1.
    rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    return -(picture.pixel_weights * rest**gamma * log_p).sum()


def smp_focal(picture: Picture, gamma: float) -> Tensor:
    """Sum over pixels of w times the binary focal losses of all classes, each by the sigmoid of its own logit."""
    if len(picture.scores) == 1:
        return focal(picture, gamma)
    target = picture.labels[None]
    # The logit of the wrong answer: sigmoid and softplus of it are 1 - p and -log p of the right one.
    wrong = picture.scores.scatter(0, target, -picture.scores.gather(0, target))
    parts = wrong.split(_CLASSES_TOGETHER)
    arguments: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    losses = [checkpoint(_binary_focal, part, picture.pixel_weights, gamma, **arguments) for part in parts]
    return torch.stack(losses).sum()


def _binary_focal(wrong: Tensor, weights: Tensor, gamma: float) -> Tensor:
    rest = wrong.sigmoid().clamp(min=torch.finfo(wrong.dtype).tiny)
    return -(rest**gamma * F.logsigmoid(-wrong) * weights).sum()


def ohem(picture: Picture, threshold: float, min_kept: int) -> Tensor:
    """Sum over hard pixels of -w log p: p below the threshold, or among the lowest `min_kept`."""
    log_p, valid = _of_target(picture), picture.valid
    probability = log_p.detach().exp().masked_fill(~valid, float("inf"))
    last = (valid.sum() - 1).clamp(min=0, max=min_kept)
    lowest = probability.flatten().sort().values.gather(0, last[None])
    hard = (probability < lowest.clamp(min=threshold)) & valid
    return -(picture.pixel_weights * hard * log_p).sum()


def dice(picture: Picture) -> Tensor:
    """1 - 2 sum(q t) / (sum(q^2) + sum(t^2)), mean over the classes present."""
    probability, target = _probability(picture), _target(picture)
    size, squares = _sums(target, picture, 2), probability.square().sum((1, 2))
    return _mean(1 - _ratio(2 * _hits(probability, target, picture), squares + size), size > 0, picture)


def tversky(picture: Picture, alpha: float, beta: float) -> Tensor:
    """1 - hits / (hits + alpha false positives + beta false negatives), mean over the classes present."""
    probability, target = _probability(picture), _target(picture)
    hits, size = _hits(probability, target, picture), _sums(target, picture)
    false_positives, false_negatives = probability.sum((1, 2)) - hits, size - hits
    return _mean(1 - _ratio(hits, hits + alpha * false_positives + beta * false_negatives), size > 0, picture)


def smp_dice(picture: Picture) -> Tensor:
    """1 - 2 sum(q t) / (sum(q) + sum(t)), 0 for absent classes, mean over all; of one logit for the object alone."""
    probability, target = _probability(picture), _target(picture)
    size = _sums(target, picture)
    losses = 1 - _ratio(2 * _hits(probability, target, picture), probability.sum((1, 2)) + size)
    losses, counted = losses * (size > 0), torch.ones_like(size, dtype=torch.bool)
    if len(picture.scores) == 1:
        counted[0] = False
    return _mean(losses, counted, picture)


def lovasz(picture: Picture) -> Tensor:
    """Lovasz extension of the Jaccard loss at the errors |t - q|, mean over the classes present."""
    labels, log_p = picture.labels[picture.valid], picture.log_probabilities
    sizes = torch.bincount(labels, minlength=len(log_p))
    present = sizes.nonzero()[:, 0]
    if not len(present):
        return log_p[:0].sum()  # zero, with a gradient
    of_each = [_lovasz(log_p[k][picture.valid].exp(), labels == k, sizes[k]) for k in present.tolist()]
    return _mean(log_p.new_zeros(len(log_p)).index_put((present,), torch.stack(of_each)), sizes > 0, picture)


def _lovasz(probability: Tensor, inside: Tensor, size: Tensor) -> Tensor:
    """Loss of one class: its probability and whether it is the truth, for all pixels, and how often it is."""
    errors, order = (inside.to(probability.dtype) - probability).abs().sort(descending=True)
    inside = inside[order]
    # What one more wrong pixel adds to the Jaccard loss, without differences of nearly equal numbers.
    union = (size + (~inside).cumsum(0)).to(errors.dtype)
    rest = (size - inside.cumsum(0)).to(errors.dtype)
    return torch.dot(errors, torch.where(inside, 1 / union, rest / (union * (union - 1).clamp(min=1))))


def _of_target(picture: Picture) -> Tensor:
    """Logarithm of the probability of each pixel's class, of class 0 where it is ignored; (H, W)."""
    if picture.labels.is_floating_point():
        low, high = picture.log_probabilities
        return torch.lerp(low, high, picture.labels.to(low))
    return picture.log_probabilities.gather(0, picture.labels[None])[0]


def _probability(picture: Picture) -> Tensor:
    """q of each class, 0 where a pixel is ignored; (K, H, W)."""
    return picture.log_probabilities.exp() * picture.valid


def _target(picture: Picture) -> Tensor | None:
    """t of two classes where labels lie in between, (2, H, W); None where each pixel has one class."""
    if not picture.labels.is_floating_point():
        return None
    return torch.stack([1 - picture.labels, picture.labels]).to(picture.scores) * picture.valid


def _sums(target: Tensor | None, picture: Picture, power: int = 1) -> Tensor:
    """Sum of t to the power, for each class; (K,)."""
    if target is not None:
        return target.pow(power).sum((1, 2))
    ones = picture.valid.to(picture.scores.dtype)
    return _by_class(ones, picture)


def _hits(probability: Tensor, target: Tensor | None, picture: Picture) -> Tensor:
    """Sum of q t, for each class; (K,)."""
    if target is not None:
        return (probability * target).sum((1, 2))
    return _by_class(probability.gather(0, picture.labels[None])[0], picture)


def _by_class(values: Tensor, picture: Picture) -> Tensor:
    sums = values.new_zeros(len(picture.log_probabilities))
    return sums.index_add(0, picture.labels.flatten(), values.flatten())


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / denominator.clamp(min=torch.finfo(denominator.dtype).tiny)


def _mean(losses: Tensor, counted: Tensor, picture: Picture) -> Tensor:
    """Mean over the classes that count, by their weights."""
    weights = counted.to(losses.dtype)
    if picture.class_weights is not None:
        weights = weights * picture.class_weights
    return (losses * weights).sum() / torch.where(weights.sum() > 0, weights.sum(), 1)

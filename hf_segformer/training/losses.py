# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Training losses as sums and the numbers to divide them by, both additive over micro-batches and processes.

Every loss here is a sum over pixels or images divided by a number that depends on the labels alone. So a step can add
up the numbers of all its pieces before its first forward pass, and each piece contributes exactly its share, however
the step is cut. Libraries with such losses (segmentation-models-pytorch, MONAI) return means over the batch at hand,
which do not add up, and bring torchvision or more with them; in terms of PyTorch each loss is a few lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..scores.cross_entropy import upsample_cross_entropy_sum
from ..scores.targets import check_label_dtype, check_labels, weight_of
from .class_weights import check_class_weights

LOSSES = ("cross_entropy", "ohem", "focal", "dice")


def count_pixels(labels: torch.Tensor, ignore_index: int = 255, average: str = "valid") -> torch.Tensor:
    """Number of pixels a loss is averaged over, known before the forward pass.

    Args:
        labels: (B, H, W) int64.
        ignore_index: Label of pixels without a class.
        average: "valid" counts pixels with a class (`transformers`), "all" counts every pixel (NVlabs,
            mmsegmentation).

    Returns:
        Scalar int64.

    Raises:
        ValueError: `average` is neither.
    """
    if average not in ("valid", "all"):
        raise ValueError(f"average must be 'valid' or 'all', got {average!r}")
    if average == "all":
        return torch.tensor(labels.numel(), device=labels.device)
    return (labels != ignore_index).sum()


def cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of bilinearly upsampled logits, summed over valid pixels.

    Args:
        logits: (B, K, h, w) at the network's resolution.
        labels: (B, H, W) int64.
        ignore_index: Label of pixels without a class.
        class_weights: Optional factor (K,) on the loss of each class's pixels.

    Returns:
        Scalar, float32 or wider.
    """
    return upsample_cross_entropy_sum(logits, labels, ignore_index, class_weights)[0]


def parse_losses(text: str) -> dict[str, float]:
    """Read losses and their weights from text.

    Args:
        text: Names of `LOSSES` joined by commas, each with an optional weight: "cross_entropy=1,dice=0.5".

    Raises:
        ValueError: A name is unknown or repeated, or a weight is no positive number.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in LOSSES or name in weights:
            raise ValueError(f"loss must join different ones of {', '.join(LOSSES)} by commas, got {text!r}")
        try:
            weights[name] = float(value or 1)
        except ValueError:
            weights[name] = float("nan")
        if not 0 < weights[name] < float("inf"):
            raise ValueError(f"loss must have weights > 0, got {part.strip()!r}")
    return weights


class SegmentationLoss:
    """Weighted sum of losses over bilinearly upsampled logits.

    Of every pixel with a class, p is the softmax probability of its class (with one logit, the sigmoid's of its label)
    and w its class's weight:

    | loss | sum over | of | divided by |
    |--|--|--|--|
    | cross_entropy | valid pixels | -w log p | pixels (see `average`) |
    | ohem | hard pixels: p < `ohem_threshold`, or among the `ohem_min_kept` of lowest p | -w log p | pixels |
    | focal | valid pixels | -w (1 - p)^gamma log p | pixels |
    | dice | images | 1 - 2 sum(q t) / (sum(q^2) + sum(t^2)), mean over the classes present | images with a class |

    q is the probability of a class and t its indicator, over the valid pixels of one image. Hard pixels are chosen,
    and overlaps measured, image by image, so that an image's loss does not depend on the others of its batch. That
    differs from implementations that pool a whole batch: their losses cannot be added up from micro-batches.

    With one logit a label may be a float in [0, 1]: log p is then the mean over its two classes, w likewise, and t is
    the label itself.

    Args:
        weights: Weight of each loss, see `parse_losses`, or the text that it reads.
        ignore_index: Label of pixels without a class.
        average: "all" divides by all pixels; "valid" by those with a class, or with `class_weights` by the sum of
            their weights, as `torch.nn.CrossEntropyLoss` does.
        class_weights: Weight of each of the K classes (one logit: of labels 0 and 1), at least 0.
        ohem_threshold: Probability below which a pixel is hard, in (0, 1].
        ohem_min_kept: Pixels to keep of each image, at least 1.
        focal_gamma: Exponent of the focal loss, at least 0; 0 is cross-entropy.

    Raises:
        ValueError: An argument is out of range.

    Source: OHEM arXiv 1604.03540 (as in mmsegmentation's `OHEMPixelSampler`, by image); focal loss arXiv 1708.02002,
    over the softmax; Dice loss arXiv 1606.04797.
    """

    def __init__(
        self,
        weights: dict[str, float] | str = "cross_entropy",
        ignore_index: int = 255,
        average: str = "valid",
        class_weights: Sequence[float] | None = None,
        ohem_threshold: float = 0.7,
        ohem_min_kept: int = 100_000,
        focal_gamma: float = 2.0,
    ):
        self.weights = parse_losses(weights) if isinstance(weights, str) else weights
        if unknown := set(self.weights) - set(LOSSES):
            raise ValueError(f"weights must have keys among {', '.join(LOSSES)}, got {sorted(unknown)}")
        if average not in ("valid", "all"):
            raise ValueError(f"average must be 'valid' or 'all', got {average!r}")
        if not 0 < ohem_threshold <= 1:
            raise ValueError(f"ohem_threshold must be in (0, 1], got {ohem_threshold}")
        if ohem_min_kept < 1:
            raise ValueError(f"ohem_min_kept must be at least 1, got {ohem_min_kept}")
        if focal_gamma < 0:
            raise ValueError(f"focal_gamma must be at least 0, got {focal_gamma}")
        checked = None if class_weights is None else check_class_weights(class_weights)
        self.class_weights = None if checked is None else torch.tensor(checked, dtype=torch.float32)
        self.ignore_index, self.average, self.focal_gamma = ignore_index, average, focal_gamma
        self.ohem_threshold, self.ohem_min_kept = ohem_threshold, ohem_min_kept

    def counts(self, labels: torch.Tensor) -> torch.Tensor:
        """What each loss's sum is divided by, to be added up over all pieces of a step.

        Args:
            labels: (B, H, W) int64.

        Returns:
            (number of losses,) floating point, on the device of `labels`.
        """
        if self.average == "valid" and self.class_weights is not None:
            pixels = self._pixel_weights(labels).sum()
        else:
            pixels = count_pixels(labels, self.ignore_index, self.average)
        images = (labels != self.ignore_index).flatten(1).any(1).sum()
        dtype = torch.float32 if labels.device.type == "mps" else torch.float64
        return torch.stack([(images if name == "dice" else pixels).to(dtype) for name in self.weights])

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """This piece's share of the step's loss.

        Args:
            logits: (B, K, h, w) at the network's resolution.
            labels: (B, H, W) int64 in [0, K), with one logit floats in [0, 1] too, or `ignore_index`.
            counts: Sum of `counts` over all pieces of the step; None for that of these labels.

        Returns:
            Scalar, float32 or wider; the shares of all pieces add up to the loss.

        Raises:
            ValueError: A label is no class (looked at on a CPU), or `class_weights` has another number of classes than
                `logits`.
        """
        if self.class_weights is not None and len(self.class_weights) != max(logits.shape[1], 2):
            raise ValueError(
                f"class_weights must have one weight for each of {max(logits.shape[1], 2)} classes, got "
                f"{len(self.class_weights)}"
            )
        check_label_dtype(labels, logits.shape[1])
        if labels.device.type == "cpu":
            check_labels(labels, logits.shape[1], self.ignore_index)
        counts = self.counts(labels) if counts is None else counts
        divisors = torch.where(counts > 0, counts, 1)
        scores = None
        if set(self.weights) != {"cross_entropy"}:
            scores = _log_probabilities(logits, labels)
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        for (name, weight), divisor in zip(self.weights.items(), divisors, strict=True):
            total = total + getattr(self, f"_{name}")(logits, labels, scores) * (weight / divisor).to(total.dtype)
        return total

    def _pixel_weights(self, labels: torch.Tensor) -> torch.Tensor:
        """Weight of each pixel's class, 0 where it is ignored; (B, H, W)."""
        valid = labels != self.ignore_index
        if self.class_weights is None:
            return valid.float()
        return weight_of(labels * valid, self.class_weights.to(labels.device)) * valid

    def _of_target(self, log_probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logarithm of the probability of each pixel's class, of class 0 where it is ignored; (B, H, W)."""
        target = labels * (labels != self.ignore_index)
        if target.is_floating_point():
            low, high = log_probabilities.unbind(1)
            return torch.lerp(low, high, target.to(log_probabilities))
        return log_probabilities.gather(1, target[:, None])[:, 0]

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        return cross_entropy_sum(logits, labels, self.ignore_index, weights)

    def _focal(self, _: torch.Tensor, labels: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
        log_p = self._of_target(log_probabilities, labels)
        # 1 - p, which has no gradient where p is 1 and gamma below 1.
        rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        return -(self._pixel_weights(labels) * rest**self.focal_gamma * log_p).sum()

    def _ohem(self, _: torch.Tensor, labels: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
        log_p = self._of_target(log_probabilities, labels)
        valid = (labels != self.ignore_index).flatten(1)
        probability = log_p.detach().exp().flatten(1).masked_fill(~valid, float("inf"))
        last = (valid.sum(1) - 1).clamp(min=0, max=self.ohem_min_kept)[:, None]
        lowest = probability.sort(dim=1).values.gather(1, last)
        hard = (probability < lowest.clamp(min=self.ohem_threshold)) & valid
        return -(self._pixel_weights(labels) * hard.view_as(labels) * log_p).sum()

    def _dice(self, _: torch.Tensor, labels: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
        valid = labels != self.ignore_index
        classes = log_probabilities.shape[1]
        probability = log_probabilities.exp() * valid[:, None]
        if labels.is_floating_point():
            target = torch.stack([1 - labels, labels], 1).to(probability) * valid[:, None]
        else:
            target = (F.one_hot(labels * valid, classes) * valid[..., None]).movedim(3, 1).to(probability.dtype)
        overlap = (probability * target).sum((2, 3))
        size = (target**2).sum((2, 3))
        loss = 1 - 2 * overlap / ((probability**2).sum((2, 3)) + size).clamp(min=torch.finfo(size.dtype).tiny)
        present = (size > 0).to(loss.dtype)
        return ((loss * present).sum(1) / present.sum(1).clamp(min=1)).sum()


def _log_probabilities(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B, K, H, W) at the labels' size; one logit is taken as two classes, background and object."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = F.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=False)
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    return scores.log_softmax(dim=1)

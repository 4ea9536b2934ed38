# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Training losses as sums and the numbers to divide them by, both additive over micro-batches and processes.

Every loss here is a sum over pixels or images divided by a number that depends on the labels alone. So a step can add
up the numbers of all its pieces before its first forward pass, and each piece contributes exactly its share, however
the step is cut. Libraries with such losses (segmentation-models-pytorch, MONAI) return means over the batch at hand,
which do not add up, and bring torchvision or more with them; in terms of PyTorch each loss is a few lines, in
`picture_losses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..scores.bilinear import compute_dtype
from ..scores.cross_entropy import upsample_cross_entropy_sum
from ..scores.targets import check_label_dtype, check_labels, weight_of
from . import picture_losses
from .class_weights import check_class_weights

LOSSES = ("cross_entropy", "ohem", "focal", "dice", "tversky", "lovasz", "smp_dice", "smp_focal")
_OF_PICTURES = ("dice", "tversky", "lovasz", "smp_dice")  # the others are means over pixels


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
    | smp_focal | valid pixels | w sum over the classes of -(1 - s)^gamma log s | pixels |
    | dice | images | 1 - 2 sum(q t) / (sum(q^2) + sum(t^2)), mean over the classes present | images |
    | tversky | images | 1 - TP / (TP + alpha FP + beta FN), mean over the classes present | images |
    | lovasz | images | Lovasz extension of 1 - IoU at the errors of q, mean over the classes present | images |
    | smp_dice | images | 1 - 2 sum(q t) / (sum(q) + sum(t)), 0 for absent classes, mean over all | images |

    q is the probability of a class and t its indicator, over the valid pixels of one image; TP is sum(q t), FP is
    sum(q (1 - t)), FN is sum((1 - q) t). Means over classes are weighted by w; images without a pixel of weight
    above 0 do not count. Hard pixels are chosen, and overlaps measured, image by image, so that an image's loss does
    not depend on the others of its batch. That differs from implementations that pool a whole batch: their losses
    cannot be added up from micro-batches.

    The last two give the numbers of segmentation-models-pytorch: `smp_focal` those of `FocalLoss` (of several classes
    it is binary, with s the sigmoid of the class's own logit, or 1 minus it where it is not the truth), `smp_dice`
    those of `DiceLoss` for batches of one image, and their mean for more, where `DiceLoss` itself would pool them.

    With one logit there are two classes, whose overlaps both count; in the losses of segmentation-models-pytorch the
    object alone does. A label may then be a float in [0, 1], but for lovasz: log p is the mean over the two classes, w
    likewise, and t is the label itself.

    Args:
        weights: Weight of each loss, see `parse_losses`, or the text that it reads.
        ignore_index: Label of pixels without a class.
        average: "all" divides by all pixels; "valid" by those with a class, or with `class_weights` by the sum of
            their weights, as `torch.nn.CrossEntropyLoss` does.
        class_weights: Weight of each of the K classes (one logit: of labels 0 and 1), at least 0.
        ohem_threshold: Probability below which a pixel is hard, in (0, 1].
        ohem_min_kept: Pixels to keep of each image, at least 1.
        focal_gamma: Exponent of the focal losses, at least 0; 0 is cross-entropy.
        tversky_alpha: Weight of false positives, above 0.
        tversky_beta: Weight of false negatives, above 0; the larger one costs more.

    Raises:
        ValueError: An argument is out of range.

    Source: OHEM arXiv 1604.03540 (as in mmsegmentation's `OHEMPixelSampler`, by image); focal loss arXiv 1708.02002,
    over the softmax; Dice loss arXiv 1606.04797; Tversky loss arXiv 1706.05721 and its weights; Lovasz-Softmax loss
    arXiv 1705.08790, for one logit too.
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
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
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
        if not 0 <= focal_gamma < float("inf"):
            raise ValueError(
                f"focal_gamma must be at least 0{'' if focal_gamma < 0 else ' and finite'}, got {focal_gamma}"
            )
        for name, value in (("tversky_alpha", tversky_alpha), ("tversky_beta", tversky_beta)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be > 0 and finite, got {value}")
        checked = None if class_weights is None else check_class_weights(class_weights)
        self.class_weights = None if checked is None else torch.tensor(checked, dtype=torch.float32)
        self.ignore_index, self.average = ignore_index, average
        self.options = {
            "ohem": (ohem_threshold, ohem_min_kept),
            "focal": (focal_gamma,),
            "smp_focal": (focal_gamma,),
            "tversky": (tversky_alpha, tversky_beta),
        }

    def counts(self, labels: torch.Tensor) -> torch.Tensor:
        """What each loss's sum is divided by, to be added up over all pieces of a step.

        Args:
            labels: (B, H, W) int64.

        Returns:
            (number of losses,) floating point, on the device of `labels`.
        """
        weights = self._pixel_weights(labels)
        if self.average == "valid" and self.class_weights is not None:
            pixels = weights.sum()
        else:
            pixels = count_pixels(labels, self.ignore_index, self.average)
        images = (weights > 0).flatten(1).any(1).sum()
        dtype = torch.float32 if labels.device.type == "mps" else torch.float64
        return torch.stack([(images if name in _OF_PICTURES else pixels).to(dtype) for name in self.weights])

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """This piece's share of the step's loss.

        Args:
            logits: (B, K, h, w) at the network's resolution.
            labels: (B, H, W) int64 in [0, K), with one logit floats in [0, 1] too, or `ignore_index`.
            counts: Sum of `counts` over all pieces of the step; None for that of these labels.

        Returns:
            Scalar, float32 or wider; the shares of all pieces add up to the loss.

        Raises:
            ValueError: A label is no class (looked at on a CPU) or, with lovasz, no integer, or `class_weights` has
                another number of classes than `logits`.
        """
        if self.class_weights is not None and len(self.class_weights) != max(logits.shape[1], 2):
            raise ValueError(
                f"class_weights must have one weight for each of {max(logits.shape[1], 2)} classes, got "
                f"{len(self.class_weights)}"
            )
        check_label_dtype(labels, logits.shape[1])
        if "lovasz" in self.weights and labels.is_floating_point():
            raise ValueError(f"labels must be of an integer dtype for the loss lovasz, got {labels.dtype}")
        if labels.device.type == "cpu":
            check_labels(labels, logits.shape[1], self.ignore_index)
        counts = self.counts(labels) if counts is None else counts
        shares = {
            name: weight / divisor
            for (name, weight), divisor in zip(self.weights.items(), torch.where(counts > 0, counts, 1), strict=True)
        }
        total = logits.new_zeros((), dtype=compute_dtype(logits))
        if "cross_entropy" in shares:
            weights = None if self.class_weights is None else self.class_weights.to(logits.device)
            share = shares.pop("cross_entropy").to(total)
            total = total + share * cross_entropy_sum(logits, labels, self.ignore_index, weights)
        return total + self._of_pictures(logits, labels, shares) if shares else total

    def _of_pictures(
        self, logits: torch.Tensor, labels: torch.Tensor, shares: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Sum of the losses of all images, each times its share."""
        valid, pixel_weights = labels != self.ignore_index, self._pixel_weights(labels)

        def loss_of(piece: torch.Tensor, index: int) -> torch.Tensor:
            picture = picture_losses.upsampled(
                piece, labels[index], valid[index], pixel_weights[index], self.class_weights
            )
            losses = (
                getattr(picture_losses, name)(picture, *self.options.get(name, ())) * share.to(piece)
                for name, share in shares.items()
            )
            return torch.stack(list(losses)).sum()

        return picture_losses.sum_over_pictures(logits, loss_of)

    def _pixel_weights(self, labels: torch.Tensor) -> torch.Tensor:
        """Weight of each pixel's class, 0 where it is ignored; (B, H, W)."""
        valid = labels != self.ignore_index
        if self.class_weights is None:
            return valid.float()
        return weight_of(labels * valid, self.class_weights.to(labels.device)) * valid

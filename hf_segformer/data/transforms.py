# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Training augmentation as published: pure functions over arrays, and the class that draws their parameters.

Images are uint8 (H, W, 3) RGB and labels integer (H, W) until `normalize`. What OpenCV computed in the published
recipes is computed by OpenCV here: bilinear resizing without antialias, and its 8-bit HSV with hue in 0..179.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import Any

import numpy as np

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def _opencv() -> Any:
    """Import OpenCV; worker processes share the cores, so in them it keeps to one thread."""
    import cv2

    if multiprocessing.parent_process() is not None and cv2.getNumThreads() > 1:
        cv2.setNumThreads(0)
    return cv2


def rescaled_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) that fits into `scale` with the ratio of the sides kept.

    Args:
        height: Pixels.
        width: Pixels.
        scale: Long and short side of the target, in either order.

    Source: `imrescale` of mmcv.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resize to (height, width): the image bilinearly without antialias, the label to its nearest pixel."""
    cv2 = _opencv()
    target = (max(size[1], 1), max(size[0], 1))
    image = cv2.resize(image, target, interpolation=cv2.INTER_LINEAR)
    return image, cv2.resize(label, target, interpolation=cv2.INTER_NEAREST)


def crop(array: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """Return the window of `size` (height, width) at (top, left); smaller where the array ends."""
    return array[top : top + size[0], left : left + size[1]]


def draw_crop(
    label: np.ndarray,
    size: tuple[int, int],
    generator: np.random.Generator,
    cat_max_ratio: float = 1.0,
    ignore_index: int = 255,
) -> tuple[int, int]:
    """Draw the corner of a crop that no single class fills.

    Args:
        label: Integer (H, W).
        size: Height and width of the crop; where the label is smaller, all of it is taken.
        generator: Source of the draws.
        cat_max_ratio: Draws are made until at least two classes are in the crop and the largest covers less than this
            share of its labelled pixels; the eleventh stands whatever it holds. 1 or more: the first draw stands.
        ignore_index: Label that counts as no class.

    Returns:
        (top, left).

    Source: `RandomCrop` of mmsegmentation.
    """
    margin_y, margin_x = max(label.shape[0] - size[0], 0), max(label.shape[1] - size[1], 0)
    for draw in range(11):
        top, left = int(generator.integers(0, margin_y + 1)), int(generator.integers(0, margin_x + 1))
        if cat_max_ratio >= 1.0 or draw == 10:
            break
        counts = _class_counts(crop(label, top, left, size), ignore_index)
        if counts.size > 1 and counts.max() / counts.sum() < cat_max_ratio:
            break
    return top, left


def _class_counts(label: np.ndarray, ignore_index: int) -> np.ndarray:
    """Pixels of each class that occurs."""
    if label.dtype != np.uint8:
        return np.unique(label[label != ignore_index], return_counts=True)[1]
    counts = np.bincount(label.ravel(), minlength=256)  # unlike np.unique, sorts nothing
    if 0 <= ignore_index < 256:
        counts[ignore_index] = 0
    return counts[counts > 0]


def flip(array: np.ndarray) -> np.ndarray:
    """Mirror left and right."""
    if array.dtype == np.uint8:
        cv2 = _opencv()
        return cv2.flip(array, 1)
    return array[:, ::-1]


def _levels(factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """Return the 256 results of `level * factor + offset`, clipped to 0..255 and cut to integers."""
    levels = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(levels, 0, 255).astype(np.uint8)


def adjust_brightness(image: np.ndarray, offset: float) -> np.ndarray:
    """Add `offset` to every channel (clipped, fraction cut)."""
    cv2 = _opencv()
    return cv2.LUT(image, _levels(offset=offset))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply every channel by `factor` (clipped, fraction cut)."""
    cv2 = _opencv()
    return cv2.LUT(image, _levels(factor))


def _map_hsv(image: np.ndarray, channel: int, levels: np.ndarray) -> np.ndarray:
    cv2 = _opencv()
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    changed = cv2.LUT(cv2.extractChannel(hsv, channel), levels.astype(np.uint8))
    return cv2.cvtColor(cv2.insertChannel(changed, hsv, channel), cv2.COLOR_HSV2RGB)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply OpenCV's 8-bit saturation by `factor` (clipped, fraction cut)."""
    return _map_hsv(image, 1, _levels(factor))


def adjust_hue(image: np.ndarray, offset: int) -> np.ndarray:
    """Turn OpenCV's 8-bit hue by `offset` half degrees, modulo 180."""
    return _map_hsv(image, 0, (np.arange(256) + offset) % 180)


def photometric_distortion(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each with probability 1/2.

    Brightness moves by U(-32, 32), contrast and saturation are scaled by U(0.5, 1.5), hue turns by -18..17 half
    degrees; contrast comes second or last, with equal probability.

    Args:
        image: uint8 (H, W, 3) RGB.
        generator: Source of the draws.

    Source: `PhotoMetricDistortion` of mmsegmentation.
    """
    if generator.integers(2):
        image = adjust_brightness(image, generator.uniform(-32, 32))
    contrast_early = generator.integers(2)
    if contrast_early and generator.integers(2):
        image = adjust_contrast(image, generator.uniform(0.5, 1.5))
    if generator.integers(2):
        image = adjust_saturation(image, generator.uniform(0.5, 1.5))
    if generator.integers(2):
        image = adjust_hue(image, int(generator.integers(-18, 18)))
    if not contrast_early and generator.integers(2):
        image = adjust_contrast(image, generator.uniform(0.5, 1.5))
    return image


def normalize(
    image: np.ndarray, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> np.ndarray:
    """Subtract `mean` and divide by `std` (levels of 0..255) per channel.

    Returns:
        float32 (3, H, W).
    """
    cv2 = _opencv()
    table = ((np.arange(256)[None] - np.array(mean)[:, None]) / np.array(std)[:, None]).astype(np.float32)
    result = np.empty((image.shape[2], *image.shape[:2]), np.float32)
    for channel, plane in enumerate(result):
        cv2.LUT(cv2.extractChannel(image, channel), table[channel], plane)
    return result


def pad(image: np.ndarray, label: np.ndarray, size: tuple[int, int], ignore_index: int = 255) -> tuple:
    """Fill up to `size` below and to the right: the normalised image (3, H, W) with 0, the label ignored."""
    below, beside = max(size[0] - label.shape[0], 0), max(size[1] - label.shape[1], 0)
    if not below and not beside:
        return image, label
    image = np.pad(image, ((0, 0), (0, below), (0, beside)))
    return image, np.pad(label, ((0, below), (0, beside)), constant_values=ignore_index)


@dataclass(frozen=True)
class TrainingTransform:
    """The published training pipeline; every step can be switched off.

    Attributes:
        scale: Base size for the scale jitter, long and short side; None takes each image's own size.
        ratio_range: The base size is multiplied by a number drawn uniformly from here; None leaves the image at its
            size when `scale` is None too, otherwise resizes it to the base size.
        crop_size: (height, width) of the result, cut out at random and padded; None keeps the whole image.
        cat_max_ratio: See `draw_crop`; 1 switches it off.
        flip_probability: Of mirroring left and right, in 0..1.
        photometric: Whether colours are distorted.
        mean: Subtracted per channel, in levels of 0..255.
        std: Divides per channel.
        ignore_index: Label of padding, and no class for `cat_max_ratio`.

    Source: the ADE20K and Cityscapes pipelines of the SegFormer paper's release (section 4.1 of arXiv 2105.15203).
    """

    scale: tuple[int, int] | None = None
    ratio_range: tuple[float, float] | None = (0.5, 2.0)
    crop_size: tuple[int, int] | None = (512, 512)
    cat_max_ratio: float = 0.75
    flip_probability: float = 0.5
    photometric: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    ignore_index: int = 255

    def __call__(
        self, image: np.ndarray, label: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment one sample.

        Args:
            image: uint8 (H, W, 3) RGB.
            label: Integer (H, W).
            generator: Source of all draws.

        Returns:
            Image as float32 (3, h, w) and label as int64 (h, w), both C-contiguous; (h, w) is `crop_size` if that is
            set.
        """
        image, label = self._jitter_scale(image, label, generator)
        if self.crop_size is not None:
            top, left = draw_crop(label, self.crop_size, generator, self.cat_max_ratio, self.ignore_index)
            image, label = crop(image, top, left, self.crop_size), crop(label, top, left, self.crop_size)
        if self.flip_probability and generator.random() < self.flip_probability:
            image, label = flip(image), flip(label)
        if self.photometric:
            image = photometric_distortion(np.ascontiguousarray(image), generator)
        image, label = normalize(image, self.mean, self.std), label.astype(np.int64)
        if self.crop_size is not None:
            image, label = pad(image, label, self.crop_size, self.ignore_index)
        return image, np.ascontiguousarray(label)

    def _jitter_scale(
        self, image: np.ndarray, label: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.scale is None and self.ratio_range is None:
            return image, label
        ratio = 1.0 if self.ratio_range is None else generator.uniform(*self.ratio_range)
        height, width = label.shape
        base = (max(height, width), min(height, width)) if self.scale is None else self.scale
        size = rescaled_size(height, width, (int(base[0] * ratio), int(base[1] * ratio)))
        return (image, label) if size == (height, width) else resize(image, label, size)

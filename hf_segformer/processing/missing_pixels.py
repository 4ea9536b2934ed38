# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Floating-point pictures with missing pixels (NaN or infinite): finding them, and resizing without them."""

import torch
from PIL.Image import Resampling
from torch import Tensor

from .resize import opencv_resize, pillow_resize, resize_nearest

_WITHOUT_NEGATIVE_WEIGHTS = (Resampling.BOX, Resampling.BILINEAR, Resampling.HAMMING)


def missing_values(image: Tensor) -> Tensor | None:
    """Which values of a picture are NaN or infinite, as bool of its shape; None if none is."""
    # A sum takes a fraction of the time, and is finite only if every value is.
    if not image.is_floating_point() or image.sum().isfinite():
        return None
    missing = ~image.isfinite()
    return missing if missing.any() else None


def fill_missing(image: Tensor, missing: Tensor) -> Tensor:
    """The picture with one of its own values wherever one is missing, so that its range is that of the others."""
    known = image[~missing]
    return image.masked_fill(missing, known[0].item() if known.numel() else 0)


def resize_tensor(image: Tensor, size: tuple[int, int], resample: Resampling, antialias: bool) -> Tensor:
    """Resize as Pillow does, or without antialias as OpenCV does.

    Args:
        image: (..., C, H, W) of any type.
        size: (height, width) of the result in pixels.
        resample: Pillow's filter. Without antialias only `BILINEAR` and `NEAREST`.
        antialias: Pillow's resize if `True`, OpenCV's if `False`.

    Returns:
        (..., C, height, width) on the same device.
    """
    if resample == Resampling.NEAREST:
        return resize_nearest(image, size, antialias)
    return pillow_resize(image, size, resample) if antialias else opencv_resize(image, size)


def resize_known(
    image: Tensor, missing: Tensor, size: tuple[int, int], resample: Resampling, antialias: bool
) -> tuple[Tensor, Tensor]:
    """Resize a picture so that missing values have no weight.

    Where a missing value would have one, the result is the mean of the others, weighted as `resample` does (`BICUBIC`
    and `LANCZOS`, whose weights may cancel, as `BILINEAR` does). Everywhere else it is what `resize_tensor` gives.

    Args:
        image: (..., C, H, W), finite: see `fill_missing`.
        missing: Bool of the same shape.
        size: (height, width) of the result in pixels.
        resample: See `resize_tensor`.
        antialias: See `resize_tensor`.

    Returns:
        The picture (..., C, height, width), and where nothing but missing values would contribute.
    """
    result = resize_tensor(image, size, resample, antialias)
    if resample == Resampling.NEAREST:
        return result, resize_nearest(missing, size, antialias)
    positive = resample if resample in _WITHOUT_NEGATIVE_WEIGHTS else Resampling.BILINEAR
    known = resize_tensor((~missing).float(), size, positive, antialias)
    values = (image if image.is_floating_point() else image.float()).masked_fill(missing, 0)
    mean = resize_tensor(values, size, positive, antialias) / known
    if result.dtype == torch.uint8:
        mean = mean.add(0.5).floor().clamp(0, 255).nan_to_num(0).to(torch.uint8)
    touched = resize_tensor(missing.float(), size, resample, antialias) != 0
    if positive != resample:
        touched |= resize_tensor(missing.float(), size, positive, antialias) != 0
    lost = known <= 0
    return torch.where(touched, mean, result).masked_fill(lost, 0), lost

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Resizing of pixels and labels, number for number as Pillow and OpenCV do it, on any device.

Pillow widens its filter with the downscaling factor (antialias); the published SegFormer recipes used OpenCV, which
does not. Both compute 8-bit pixels in fixed point, so integer arithmetic reproduces them exactly on any device.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL.Image import Image, Resampling, fromarray, merge
from torch import Tensor
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.image_utils import SizeDict, get_image_size_for_max_height_width

PILLOW_BITS = 22  # fraction bits of Pillow's 8-bit filter weights
OPENCV_BITS = 11  # fraction bits of OpenCV's 8-bit bilinear weights

Pixels = TypeVar("Pixels", np.ndarray, Tensor)


def resized_size(size: tuple[int, int], wanted: SizeDict, keep_ratio: bool = False) -> tuple[int, int]:
    """Size of an image after resizing.

    Args:
        size: (height, width) of the image in pixels.
        wanted: Height and width; shortest edge; shortest and longest edge; or the largest height and width.
        keep_ratio: Compute it from shortest and longest edge by mmcv's rule (`rescale_size`), which rounds, instead of
            that of `transformers`, which truncates.

    Returns:
        (height, width), at least one pixel each.
    """
    result: Sequence[int]
    if keep_ratio:
        assert wanted.longest_edge is not None and wanted.shortest_edge is not None
        scale = min(wanted.longest_edge / max(size), wanted.shortest_edge / min(size))
        result = [int(side * scale + 0.5) for side in size]
    elif wanted.shortest_edge and wanted.longest_edge:
        result = get_size_with_aspect_ratio(size, wanted.shortest_edge, wanted.longest_edge)
    elif wanted.shortest_edge:
        shape = np.broadcast_to(np.uint8(0), (1, *size))
        result = get_resize_output_image_size(shape, wanted.shortest_edge, False, input_data_format="channels_first")
    elif wanted.max_height:
        assert wanted.max_width is not None
        result = get_image_size_for_max_height_width(size, wanted.max_height, wanted.max_width)
    else:
        assert wanted.height is not None and wanted.width is not None
        result = wanted.height, wanted.width
    return max(result[0], 1), max(result[1], 1)


def rounded_up(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Both sides rounded up to a multiple of `divisor`."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def resize_pixels(
    image: Image | np.ndarray,
    size: tuple[int, int],
    resample: Resampling = Resampling.BILINEAR,
    antialias: bool = True,
) -> np.ndarray:
    """Resize 8-bit pixels in main memory.

    Args:
        image: PIL image with 8-bit bands, or (H, W, C) uint8 array of any strides. Bands of an array are independent
            of one
            another: four of them are no RGBA.
        size: (height, width) of the result in pixels.
        resample: Pillow's filter. Without antialias only `BILINEAR` and `NEAREST`.
        antialias: `True` is Pillow's resize; `False` OpenCV's `INTER_LINEAR` or `INTER_NEAREST`, computed with OpenCV
            where it is installed and with the same result where it is not.

    Returns:
        (height, width, C) uint8, possibly read-only.
    """
    if resample == Resampling.NEAREST or not antialias:
        array = pixel_array(image)
        if resample == Resampling.NEAREST:
            return resize_nearest(array.transpose(2, 0, 1), size, antialias).transpose(1, 2, 0)
        return _opencv(array, size)
    if not isinstance(image, Image) and image.shape[-1] == 3:
        image = _rgb_image(image)
    if isinstance(image, Image):
        return pixel_array(image.resize(size[::-1], resample))
    planes = [fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[-1])]
    return np.stack([np.asarray(plane.resize(size[::-1], resample)) for plane in planes], axis=-1)


def pixel_array(image: Image | np.ndarray) -> np.ndarray:
    """(H, W, C) array of a PIL image with 8-bit bands, or of an (H, W) or (H, W, C) array."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _rgb_image(array: np.ndarray) -> Image:
    if array[..., 0].flags.c_contiguous:  # planes, as in a (3, H, W) tensor: Pillow interleaves them faster than numpy
        return merge("RGB", [fromarray(array[..., c]) for c in range(3)])
    return fromarray(np.ascontiguousarray(array))


def _opencv(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    try:
        import cv2
    except ImportError:
        return opencv_resize(torch.tensor(array).permute(2, 0, 1), size).permute(1, 2, 0).numpy()
    resized = cv2.resize(np.ascontiguousarray(array), size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized if resized.ndim == 3 else resized[..., None]


def resize_nearest(labels: Pixels, size: tuple[int, int], antialias: bool = True) -> Pixels:
    """Resize by the nearest pixel, for values of any type.

    Args:
        labels: (..., H, W) array or tensor.
        size: (height, width) of the result in pixels.
        antialias: Which pixel is the nearest: Pillow's choice if `True`, OpenCV's (`INTER_NEAREST`) if `False`.

    Returns:
        (..., height, width) of the same type on the same device.
    """
    for dim, points in ((-2, size[0]), (-1, size[1])):
        if labels.shape[dim] == points:
            continue
        indices = nearest_indices(labels.shape[dim], points, antialias)
        if isinstance(labels, np.ndarray):
            labels = labels.take(indices, dim)
        else:
            labels = labels.index_select(dim, torch.tensor(indices, device=labels.device))
    return labels


@functools.lru_cache(maxsize=256)
def nearest_indices(points_in: int, points_out: int, antialias: bool = True) -> np.ndarray:
    """Which source pixel each target pixel of one axis takes.

    Args:
        points_in: Pixels of the source.
        points_out: Pixels of the target.
        antialias: Pillow's choice (pixel centres) if `True`, OpenCV's (left corners) if `False`.

    Returns:
        (points_out,) int64 in [0, points_in).
    """
    if antialias:
        # Pillow adds the step up pixel by pixel; a product would round differently at exact halves.
        steps = np.full(points_out, points_in / points_out)
        steps[0] *= 0.5
        positions = np.cumsum(steps)
    else:
        positions = np.floor(np.arange(points_out) * (1 / (points_out / points_in)))
    return np.minimum(positions.astype(np.int64), points_in - 1)


def pillow_resize(image: Tensor, size: tuple[int, int], resample: Resampling = Resampling.BILINEAR) -> Tensor:
    """Pillow's `Image.resize` of every band, on the tensor's device.

    Args:
        image: (..., H, W). uint8 is computed in Pillow's fixed point and equals it bit for bit; any other type as
            Pillow's mode "F" (float64 sums, float32 results).
        size: (height, width) of the result in pixels.
        resample: Any of Pillow's filters but the MKS ones.

    Returns:
        (..., height, width), uint8 or float32.

    Raises:
        ValueError: If the filter is not known.
    """
    resample = Resampling(resample)
    if resample == Resampling.NEAREST:
        return resize_nearest(image, size)
    if resample not in _FILTERS:
        raise ValueError(
            f"resample must be one of {[f.name for f in _FILTERS]} for floats and on a device, got {resample.name}"
        )
    passes = [(-1, size[1]), (-2, size[0])]
    if _vertical_first((image.shape[-2], image.shape[-1]), size):
        passes.reverse()
    for dim, points in passes:
        if image.shape[dim] != points:
            image = _resample_axis(image, dim, points, resample)
    return image


def _vertical_first(source: tuple[int, int], target: tuple[int, int]) -> bool:
    """Which pass the installed Pillow runs first, which decides where the intermediate 8-bit rounding falls."""
    rows, columns = source[0] - target[0], source[1] - target[1]
    version = tuple(int(part) for part in PIL.__version__.split(".")[:2])
    if version >= (13, 0):
        return rows > 0 and rows > 2 * columns
    return version >= (12, 2) and rows > 0 and source[0] > 100 * source[1]


def _resample_axis(image: Tensor, dim: int, points: int, resample: Resampling) -> Tensor:
    indices, weights = _taps(image.shape[dim], points, resample)
    fixed_point = image.dtype == torch.uint8
    if fixed_point:
        weights = np.trunc(weights * (1 << PILLOW_BITS) + np.copysign(0.5, weights)).astype(np.int32)
    pixels, shares = torch.tensor(indices, device=image.device), torch.tensor(weights, device=image.device)
    total: Tensor | None = None
    for index, weight in zip(pixels, shares, strict=True):
        term = image.index_select(dim, index).to(shares.dtype) * (weight if dim == -1 else weight[:, None])
        total = term if total is None else total.add_(term)
    assert total is not None  # a filter has taps
    if not fixed_point:
        return total.float()
    return total.add_(1 << (PILLOW_BITS - 1)).bitwise_right_shift_(PILLOW_BITS).clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _taps(points_in: int, points_out: int, resample: Resampling) -> tuple[np.ndarray, np.ndarray]:
    """Source pixels (T, points_out) of every target pixel and their weights, zero beyond the filter's reach."""
    support, weight = _FILTERS[resample]
    scale = points_in / points_out
    stretch = max(scale, 1.0)
    reach = support * stretch
    center = (np.arange(points_out) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    stop = np.minimum((center + reach + 0.5).astype(np.int64), points_in)
    indices = first + np.arange((stop - first).max())[:, None]
    weights = weight((indices - center + 0.5) * (1.0 / stretch))
    weights[indices >= stop] = 0
    total = np.cumsum(weights, axis=0)[-1]  # one after the other, as Pillow adds
    return np.minimum(indices, points_in - 1), weights / np.where(total == 0, 1, total)


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _sinc(x: np.ndarray) -> np.ndarray:
    angle = np.where(x == 0, 1, x * np.pi)
    return np.where(x == 0, 1, np.sin(angle) / angle)


def _hamming(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    low, high = float(np.float32(0.54)), float(np.float32(0.46))  # single-precision constants in Pillow
    return np.where(x < 1, _sinc(x) * (low + high * np.cos(x * np.pi)), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0)


_FILTERS: dict[Resampling, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    Resampling.BOX: (0.5, _box),
    Resampling.BILINEAR: (1.0, _triangle),
    Resampling.HAMMING: (1.0, _hamming),
    Resampling.BICUBIC: (2.0, _cubic),
    Resampling.LANCZOS: (3.0, _lanczos),
}


def opencv_resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """OpenCV's `resize` with `INTER_LINEAR` (bilinear, no antialias), on the tensor's device.

    Args:
        image: (..., C, H, W). uint8 is computed in OpenCV's fixed point and equals it bit for bit; any other type is
            interpolated in float32.
        size: (height, width) of the result in pixels.

    Returns:
        (..., C, height, width), uint8 or float32.
    """
    height, width = image.shape[-2:]
    if (height, width) == tuple(size):
        return image
    if image.dtype != torch.uint8:
        flat = image.float().reshape(1, -1, height, width)
        return F.interpolate(flat, size, mode="bilinear", align_corners=False).view(*image.shape[:-2], *size)
    if (height, width) == (2 * size[0], 2 * size[1]):
        return _opencv_halve(image)
    left, right, *weights = _opencv_taps(width, size[1], True, image.device)
    pixels = image.index_select(-1, left).int() * weights[0] + image.index_select(-1, right).int() * weights[1]
    pixels >>= 4
    top, bottom, *weights = _opencv_taps(height, size[0], False, image.device)
    upper = (pixels.index_select(-2, top) * weights[0][:, None]) >> 16
    lower = (pixels.index_select(-2, bottom) * weights[1][:, None]) >> 16
    return ((upper + lower + 2) >> 2).to(torch.uint8)


def _opencv_halve(image: Tensor) -> Tensor:
    """OpenCV averages 2 x 2 pixels at exactly half size; halves go up, or to even where it has no vector code."""
    rows = image[..., 0::2, :].int() + image[..., 1::2, :]
    total = rows[..., 0::2] + rows[..., 1::2]
    if image.shape[-3] in (1, 3, 4):
        return ((total + 2) >> 2).to(torch.uint8)
    return (total * 0.25).round_().to(torch.uint8)


def _opencv_taps(points_in: int, points_out: int, horizontal: bool, device: torch.device) -> list[Tensor]:
    """Both neighbours of every target pixel and their int32 weights."""
    scale = 1.0 / (points_out / points_in)
    position = ((np.arange(points_out) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position)
    fraction = position - first
    first = first.astype(np.int64)
    if horizontal:  # beyond the border OpenCV repeats the pixel by weight here, vertically by index: other rounding
        fraction[(first < 0) | (first >= points_in - 1)] = 0
    one = np.float32(1 << OPENCV_BITS)
    weights = [np.rint((np.float32(1) - fraction) * one), np.rint(fraction * one)]
    neighbours = [first.clip(0, points_in - 1), (first + 1).clip(0, points_in - 1)]
    return [torch.tensor(i, device=device) for i in neighbours] + [
        torch.tensor(w.astype(np.int32), device=device) for w in weights
    ]

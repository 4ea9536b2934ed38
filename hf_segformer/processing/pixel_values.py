# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Model inputs from pictures and label maps: resized, rescaled, normalised, padded.

In main memory Pillow or OpenCV resize, and a table of 256 values per channel does the rest exactly as `transformers`
computes it, in one pass that writes each image to its place in the batch. On a device the same numbers come from
integer arithmetic.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_utils import ChannelDimension
from transformers.utils import TensorType, logging

from .image_inputs import Array, Picture, move
from .missing_pixels import fill_missing, missing_values, resize_known, resize_tensor
from .resize import Pixels, pixel_array, resize_nearest, resize_pixels

logger = logging.get_logger(__name__)

IGNORE_INDEX = 255
Size = tuple[int, int]  # height, width


def compute_pixel_values(
    pictures: list[Picture], steps: list[list[Size]], padded: Size | None, options: SimpleNamespace
) -> Array | Sequence[Array]:
    """Values of every picture.

    Args:
        pictures: What `prepare_picture` returned.
        steps: The sizes (height, width) that each picture is resized to, one after the other.
        padded: (height, width) to pad all of them to with zeros, at the bottom and the right.
        options: Options of the call.

    Returns:
        (B, C, H, W) batch if `return_tensors` asks for one, otherwise a list of (C, H, W): float32 where values are
        rescaled or normalised. Tensors on the pictures' device, arrays in main memory.

    Raises:
        ValueError: If whole numbers outside [0, 255] are to be resized, or the numbers of channels differ.
    """
    devices = [p.device for p in pictures if isinstance(p, torch.Tensor) and p.device.type != "cpu"]
    values: Any
    if devices:
        tensors: list[Any] = [move(p, devices[0]) for p in pictures]
        values = _device_values(tensors, steps, padded, options)
    else:
        values = _host_values(pictures, steps, padded, options)
    if ChannelDimension(options.data_format or ChannelDimension.FIRST) == ChannelDimension.LAST:
        values = [v.transpose(1, 2, 0) if isinstance(v, np.ndarray) else v.permute(1, 2, 0) for v in values]
    return assembled(values, options.return_tensors)


def assembled(values: Array | Sequence[Array], return_tensors: Any) -> Array | Sequence[Array]:
    """One batch of all values if a type of tensors is asked for, in main memory if that is numpy's."""
    if return_tensors is None:
        return values
    if isinstance(values, list):
        stack: Any = torch.stack if isinstance(values[0], torch.Tensor) else np.stack
        values = stack(values)
    if isinstance(values, torch.Tensor) and TensorType(return_tensors) == TensorType.NUMPY:
        return values.cpu().numpy()
    return values


def _host_values(
    pictures: list[Picture], steps: list[list[Size]], padded: Size | None, options: SimpleNamespace
) -> np.ndarray | list[np.ndarray]:
    values: list[np.ndarray] = []
    batch: np.ndarray | None = None
    in_place = options.return_tensors is not None and (options.do_rescale or options.do_normalize)
    for index, picture in enumerate(pictures):
        pixels, is_unit, missing = _resized_on_host(picture, steps[index], options)
        table = _value_table_of(options, is_unit)
        if isinstance(pixels, torch.Tensor):
            pixels, table = _scaled(pixels, options).permute(1, 2, 0).numpy(), None
        height, width, channels = pixels.shape
        shape = (channels, *(padded or (height, width)))
        if in_place and batch is None:  # every image is written to its place, so that nothing is stacked afterwards
            batch = np.zeros((len(pictures), *shape), np.float32)
        if batch is not None and batch.shape[1:] != shape:
            raise ValueError(f"images must have one number of channels, got {batch.shape[1]} and {channels}")
        dtype = pixels.dtype if table is None else table.dtype
        values.append(np.zeros(shape, dtype) if batch is None else batch[index])
        _write(pixels, table, values[-1][:, :height, :width])
        if missing is not None:
            values[-1][:, :height, :width][missing.numpy()] = 0
    return values if batch is None else batch


def _write(pixels: np.ndarray, table: np.ndarray | None, out: np.ndarray) -> None:
    if table is None:
        out[...] = pixels.transpose(2, 0, 1)
        return
    for channel in range(len(out)):
        np.take(table[channel % len(table)], pixels[..., channel], out=out[channel], mode="clip")


def _resized_on_host(
    picture: Picture, steps: list[Size], options: SimpleNamespace
) -> tuple[Array, bool, torch.Tensor | None]:
    """(H, W, C) uint8 array, or (C, H, W) tensor of another type; whether 8 bits stand for [0, 1]; what is missing."""
    is_unit, missing = False, None
    if isinstance(picture, torch.Tensor):
        picture, is_unit, missing = _prepared(picture, steps, options)
        if picture.dtype != torch.uint8 or missing is not None:
            picture, missing = _resized_tensor(picture, missing, steps, options)
            steps = []
        if picture.dtype != torch.uint8:
            return picture, is_unit, missing
        picture = picture.numpy()
    if isinstance(picture, np.ndarray):
        picture = picture.transpose(1, 2, 0)
    for size in steps:
        if size != (picture.size[::-1] if isinstance(picture, Image.Image) else picture.shape[:2]):
            picture = resize_pixels(picture, size, options.resample, options.antialias)
    return pixel_array(picture), is_unit, missing


def _prepared(
    picture: torch.Tensor, steps: list[Size], options: SimpleNamespace
) -> tuple[torch.Tensor, bool, torch.Tensor | None]:
    """Before a resize: in 8 bits where `transformers` makes it so, whether they stand for [0, 1]; what is missing."""
    missing = missing_values(picture) if options.allow_missing else None
    if missing is not None:
        picture = fill_missing(picture, missing)
    return *(_eight_bit(picture, options) if steps else (picture, False)), missing


def _device_values(
    pictures: list[torch.Tensor], steps: list[list[Size]], padded: Size | None, options: SimpleNamespace
) -> torch.Tensor | list[torch.Tensor]:
    """Pictures of one shape are computed together."""
    groups: dict[tuple, list[tuple[int, torch.Tensor, torch.Tensor | None]]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        picture, is_unit, missing = _prepared(picture, steps[index], options)
        groups[picture.shape, picture.dtype, is_unit, missing is None].append((index, picture, missing))
    values: dict[int, torch.Tensor] = {}
    for (_, _, is_unit, is_whole), members in groups.items():
        indices, images, masks = zip(*members, strict=True)
        missing = None if is_whole else torch.stack(masks)
        batch, missing = _resized_tensor(torch.stack(images), missing, steps[indices[0]], options)
        table = _value_table_of(options, is_unit)
        batch = (
            _looked_up(batch, table) if batch.dtype == torch.uint8 and table is not None else _scaled(batch, options)
        )
        if missing is not None:
            batch = batch.masked_fill(missing, 0)
        if padded is not None:
            batch = F.pad(batch, (0, padded[1] - batch.shape[-1], 0, padded[0] - batch.shape[-2]))
        values |= dict(zip(indices, batch, strict=True))
    return batch if len(groups) == 1 else [values[index] for index in range(len(pictures))]


def _resized_tensor(
    image: torch.Tensor, missing: torch.Tensor | None, steps: list[Size], options: SimpleNamespace
) -> tuple[torch.Tensor, torch.Tensor | None]:
    for size in steps:
        if missing is None:
            image = resize_tensor(image, size, options.resample, options.antialias)
        else:
            image, missing = resize_known(image, missing, size, options.resample, options.antialias)
    return image, missing


def _eight_bit(image: torch.Tensor, options: SimpleNamespace) -> tuple[torch.Tensor, bool]:
    """Before a resize: uint8 wherever `transformers` makes it so; whether 8 bits then stand for [0, 1]."""
    if image.dtype == torch.uint8:
        return image, False
    low, high = (bound.item() for bound in image.aminmax())
    in_range = low >= 0 and high <= 255
    if not image.is_floating_point() and not in_range:
        raise ValueError(
            f"images of whole numbers must lie in [0, 255] to be resized, got [{low}, {high}]: scale or pass floats"
        )
    if in_range and (not image.is_floating_point() or _is_whole(image)):
        return image.to(torch.uint8), False
    if low < 0 or high > 1 or not options.antialias:
        return image, False
    if options.do_rescale:
        logger.warning_once("images with values in [0, 1] are rescaled once more; set do_rescale=False to avoid it")
    return (image * 255).float().to(torch.uint8), True


def _is_whole(image: torch.Tensor) -> bool:
    # The first row alone settles it for nearly every image that is not, at a fraction of the cost.
    return all(torch.allclose(part, part.trunc()) for part in (image[..., 0, :], image))


def _scaled(image: torch.Tensor, options: Any) -> torch.Tensor:
    """(..., C, H, W) rescaled and normalised, in the order and precision of `transformers`."""
    if options.do_rescale:
        image = (image.double() * options.rescale_factor).float()
    if options.do_normalize:
        image = image if image.is_floating_point() else image.float()
        mean, std = (
            torch.tensor(value, dtype=image.dtype, device=image.device).reshape(-1, 1, 1)
            for value in (options.image_mean, options.image_std)
        )
        image = (image - mean) / std
    return image.float() if options.do_rescale or options.do_normalize else image


def _value_table_of(options: SimpleNamespace, is_unit: bool) -> np.ndarray | None:
    rescale_factor = options.rescale_factor if options.do_rescale else None
    mean, std = (options.image_mean, options.image_std) if options.do_normalize else (None, None)
    return _value_table(rescale_factor, mean, std, is_unit)


@functools.lru_cache(maxsize=32)
def _value_table(rescale_factor: float | None, mean: Any, std: Any, is_unit: bool) -> np.ndarray | None:
    """(C, 256) or (1, 256) float32 values of all 8-bit pixels; None where they stay as they are."""
    do_rescale, do_normalize = rescale_factor is not None, mean is not None
    if not (do_rescale or do_normalize or is_unit):
        return None
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 256)
    if is_unit:
        values = (values.double() * (1 / 255)).float()
    options = SimpleNamespace(
        do_rescale=do_rescale, rescale_factor=rescale_factor, do_normalize=do_normalize, image_mean=mean, image_std=std
    )
    return _scaled(values, options)[:, 0].numpy()


def _looked_up(pixels: torch.Tensor, table: np.ndarray) -> torch.Tensor:
    values = torch.tensor(table, device=pixels.device)
    rows = torch.arange(pixels.shape[-3], device=pixels.device, dtype=torch.int32) % len(values)
    indices = pixels.int() + 256 * rows[:, None, None]
    return values.flatten().index_select(0, indices.flatten()).view(pixels.shape)


def compute_labels(labels: Pixels, steps: list[Size], padded: Size | None, options: SimpleNamespace) -> Pixels:
    """A label map as the model takes it, as new data.

    Args:
        labels: (H, W) ids of any integer type.
        steps: The sizes (height, width) that it is resized to, one after the other, by the nearest pixel.
        padded: (height, width) to pad it to with 255.
        options: Options of the call.

    Returns:
        (H, W) int64 of the same kind on the same device.
    """
    for size in steps:
        labels = resize_nearest(labels, size, options.antialias)
    labels = labels.astype(np.int64) if isinstance(labels, np.ndarray) else labels.clone()
    if options.do_reduce_labels:
        ignored = (labels == 0) | (labels == IGNORE_INDEX)
        labels -= 1
        labels[ignored] = IGNORE_INDEX
    if padded is None:
        return labels
    canvas = np.full(padded, IGNORE_INDEX) if isinstance(labels, np.ndarray) else labels.new_full(padded, IGNORE_INDEX)
    canvas[: labels.shape[0], : labels.shape[1]] = labels
    return canvas

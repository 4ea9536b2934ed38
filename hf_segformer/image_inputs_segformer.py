# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What callers hand to the image processor, brought into the few forms that it computes with.

A picture is an 8-bit PIL image, a (C, H, W) uint8 array, or a (C, H, W) tensor: of any other type, or on a device. A
label map is an (H, W) array, or a tensor on a device. Nothing here writes to what the caller gave.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format, load_image

from .resize_segformer import pixel_array

EXIF_ORIENTATION = 0x0112
Array = np.ndarray | torch.Tensor
Picture = Image.Image | Array


def flat_images(images: Any, ndim: int, name: str) -> list[Any]:
    """Single images out of whatever nesting, with files opened.

    Args:
        images: PIL images, paths, URLs, arrays or tensors: one, or batches or lists of them.
        ndim: Dimensions of one array: 3 for images (2 is grey), 2 for label maps.
        name: The argument's name, for errors.

    Returns:
        PIL images, arrays and tensors of 2 or `ndim` dimensions.

    Raises:
        ValueError: If something else is among them, or nothing.
    """
    if isinstance(images, str | os.PathLike):
        images = Image.open(images) if os.path.isfile(images) else load_image(str(images))
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, np.ndarray | torch.Tensor):
        if images.ndim in (2, ndim):
            return [images]
        if images.ndim == 3 and images.shape[-1] == 1 != images.shape[0]:
            return [images[..., 0]]
    is_sequence = isinstance(images, list | tuple) or getattr(images, "ndim", 0) > ndim
    if not is_sequence or len(images) == 0:
        raise ValueError(
            f"{name} must be PIL images, paths, arrays or tensors, single or in lists, got {images!r:.99}"
        )
    return [single for entry in images for single in flat_images(entry, ndim, name)]


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if image.getexif().get(EXIF_ORIENTATION, 1) != 1 else image


def picture_size(picture: Picture) -> tuple[int, int]:
    """(height, width) of a picture or a label map."""
    return picture.size[::-1] if isinstance(picture, Image.Image) else tuple(picture.shape[-2:])


def prepare_picture(image: Picture, options: Any) -> Picture:
    """One image as a picture: upright, with its final channels, on its device.

    Args:
        image: PIL image, array or tensor.
        options: Options of the call: `image_mean`, `do_normalize`, `do_convert_rgb`, `input_data_format` and `device`.

    Returns:
        The picture.

    Raises:
        ValueError: If its channels cannot be told from its shape or are not as many as `image_mean` has values.
    """
    channels = len(options.image_mean) if isinstance(options.image_mean, Sequence) else None
    layout = options.input_data_format
    if isinstance(image, Image.Image):
        image, layout = _converted(_upright(image), channels, options.do_convert_rgb), ChannelDimension.LAST
    if not isinstance(image, Image.Image):
        image = _channels_first(_plain_array(image), channels, layout)
        image = _matched(image, channels, options.do_convert_rgb)
    found = len(image.getbands()) if isinstance(image, Image.Image) else image.shape[0]
    if options.do_normalize and channels not in (None, found):
        raise ValueError(
            f"images must have {channels} channels, as many as image_mean, got {found} "
            f"(size {picture_size(image)}); do_convert_rgb=True makes RGB of 1 or of 4 channels with transparency"
        )
    return image if options.device is None else move(image, torch.device(options.device))


def _converted(image: Image.Image, channels: int | None, do_convert_rgb: bool | None) -> Image.Image | np.ndarray:
    if do_convert_rgb is False:
        return np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # "I" before Pillow 11
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F") or (not do_convert_rgb and channels not in (None, 1, 3)):
        return np.asarray(image)
    grey = not do_convert_rgb and (channels == 1 or (channels is None and image.mode in ("1", "L", "LA")))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _plain_array(image: Array) -> Array:
    """uint8 in main memory as a numpy array; any other as a tensor of int64, float32 or float64."""
    if isinstance(image, np.ndarray):
        if image.dtype in (np.uint8, np.bool_):
            return image.astype(np.uint8, copy=False)
        single = image.dtype.kind == "f" and image.dtype.itemsize <= 4
        image = image.astype(np.float32 if single else np.float64 if image.dtype.kind == "f" else np.int64)
        return torch.from_numpy(image)
    image = image.detach()
    if image.dtype in (torch.uint8, torch.bool):
        image = image.to(torch.uint8)
        return image.numpy() if image.device.type == "cpu" else image
    if image.is_floating_point():
        return image if image.dtype == torch.float64 else image.float()
    return image.long()


def _channels_first(image: Array, channels: int | None, layout: str | ChannelDimension | None) -> Array:
    if image.ndim == 2:
        return image[None]
    if layout is None:
        matches = [image.shape[axis] == channels for axis in (0, -1)]
        if matches[0] != matches[1]:
            layout = ChannelDimension.FIRST if matches[0] else ChannelDimension.LAST
        elif matches[0] or {image.shape[0], image.shape[-1]} & {1, 3, 4}:
            layout = infer_channel_dimension_format(image, num_channels=channels if matches[0] else (1, 3, 4))
        else:
            raise ValueError(
                f"images must have {channels or '1, 3 or 4'} channels first or last, got shape {tuple(image.shape)}"
            )
    if ChannelDimension(layout) == ChannelDimension.FIRST:
        return image
    return image.transpose(2, 0, 1) if isinstance(image, np.ndarray) else image.permute(2, 0, 1)


def _matched(image: Array, channels: int | None, do_convert_rgb: bool | None) -> Array:
    """Grey to RGB where RGB is wanted; four channels onto white only where that is said."""
    count, size = image.shape[0], tuple(image.shape[1:])
    if count == 1 and (do_convert_rgb or (do_convert_rgb is None and channels == 3)):
        return np.broadcast_to(image, (3, *size)) if isinstance(image, np.ndarray) else image.expand(3, *size)
    if count != 4 or not do_convert_rgb:
        return image
    wide = torch.from_numpy(image.astype(np.int64)) if isinstance(image, np.ndarray) else image
    wide = wide if wide.is_floating_point() else wide.long()
    color, alpha = wide[:3], wide[3:]
    if wide.is_floating_point():
        return color * alpha + (1 - alpha)
    blended = (color * alpha + 255 * (255 - alpha) + 127) // 255
    return _plain_array(blended.to(torch.uint8))


def move(picture: Picture, device: torch.device) -> Picture:
    """The picture on a device, as a tensor, or in main memory."""
    if isinstance(picture, torch.Tensor):
        return _plain_array(picture.to(device))
    if device.type == "cpu":
        return picture
    array = picture if isinstance(picture, np.ndarray) else pixel_array(picture).transpose(2, 0, 1)
    return torch.tensor(array, device=device)


def prepare_label_map(labels: Picture, device: str | torch.device | None) -> Array:
    """One segmentation map as an (H, W) array of ids, upright, on its device.

    Args:
        labels: PIL image of one band, whose palette indices and 16-bit values are ids, or (H, W) array or tensor.
        device: Where to move it; `None` leaves it.

    Returns:
        (H, W) array of any integer type or bool, or int64 tensor on a device.

    Raises:
        ValueError: If it has several bands or values that are no whole numbers.
    """
    if isinstance(labels, Image.Image):
        if len(labels.getbands()) != 1:
            raise ValueError(
                f"segmentation_maps must hold one label id per pixel, got a PIL image of mode {labels.mode}"
            )
        labels = np.asarray(_upright(labels))
    if isinstance(labels, np.ndarray):
        ids = labels.astype(np.int64) if labels.dtype.kind == "f" else labels
    else:
        labels = labels.detach()
        ids = labels.long()
    if ids.dtype != labels.dtype and not (ids == labels).all():
        raise ValueError("segmentation_maps must hold whole numbers, got fractions")
    if isinstance(ids, np.ndarray):
        on_host = device is None or torch.device(device).type == "cpu"
        return ids if on_host else torch.tensor(ids.astype(np.int64), device=device)
    ids = ids if device is None else ids.to(device)
    return ids.numpy() if ids.device.type == "cpu" else ids

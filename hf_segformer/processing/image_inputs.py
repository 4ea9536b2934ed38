# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What callers hand to the image processor, brought into the few forms that it computes with.

A picture is an 8-bit PIL image, a (C, H, W) uint8 array, or a (C, H, W) tensor: of any other type, or on a device. A
label map is an (H, W) array, or a tensor on a device. Nothing here writes to what the caller gave.
"""

import numbers
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format, load_image

from .missing_pixels import missing_values
from .resize import pixel_array

EXIF_ORIENTATION = 0x0112
_DEEPEST = 8  # lists in lists: more are a list that holds itself
_FORMS = {  # of arrays, by their dimensions
    2: "(height, width)",
    3: "(height, width), (height, width, channels) or (channels, height, width)",
}
Array = np.ndarray | torch.Tensor
Picture = Image.Image | Array


def flat_images(images: Any, ndim: int, name: str, depth: int = 0) -> list[Any]:
    """Single images out of whatever nesting, with files opened.

    Args:
        images: PIL images, paths, URLs, arrays or tensors: one, or batches or lists of them.
        ndim: Dimensions of one array: 3 for images (2 is grey), 2 for label maps.
        name: The argument's name, for errors.
        depth: How many lists they are in already.

    Returns:
        PIL images, arrays and tensors of 2 or `ndim` dimensions.

    Raises:
        ValueError: If something else is among them, or nothing.
    """
    if isinstance(images, str | os.PathLike):
        images = _opened(images, name)
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, np.ndarray | torch.Tensor):
        if images.ndim in (2, ndim):
            return [images]
        if images.ndim == 3 and images.shape[-1] == 1 != images.shape[0]:
            return [images[..., 0]]
    is_sequence = isinstance(images, list | tuple) or getattr(images, "ndim", 0) > ndim
    if not is_sequence or len(images) == 0 or depth == _DEEPEST:
        raise ValueError(
            f"{name} must be PIL images, paths, or arrays or tensors {_FORMS[ndim]}; single or in lists, and at least "
            f"one: got {described(images)}"
        )
    return [single for entry in images for single in flat_images(entry, ndim, name, depth + 1)]


def _opened(source: str | os.PathLike, name: str) -> Image.Image:
    if os.path.isfile(source):
        return Image.open(source)
    try:
        return load_image(str(source))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def described(value: Any) -> str:
    """A wrong argument in short, for errors: arrays by their shape, other values as they are."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"
    return f"{value!r:.99}"


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless the argument of that name is True, False or what Python counts as them.

    Args:
        name: The argument's name.
        value: What was given: an array or tensor has no truth value.
    """
    if value is not None and not isinstance(value, numbers.Real | np.bool_):
        raise ValueError(f"{name} must be True or False, got {described(value)}")


def check_values(image: Picture, name: str) -> None:
    """Check that a picture or a label map has pixels, and that they are real numbers.

    Args:
        image: PIL image, array or tensor.
        name: What it is, for errors: "images: image 3".

    Raises:
        ValueError: If a side is 0, or its type holds no real numbers.
    """
    shape = (*image.size[::-1], len(image.getbands())) if isinstance(image, Image.Image) else tuple(image.shape)
    if 0 in shape:
        raise ValueError(f"{name} is empty, its shape is {shape}")
    if isinstance(image, np.ndarray):
        is_real = image.dtype.kind in "buif"
    elif isinstance(image, torch.Tensor):
        is_real = not (image.is_complex() or image.is_quantized or image.is_meta) and image.layout == torch.strided
    else:
        return
    if not is_real:
        raise ValueError(f"{name} must hold real numbers, got {described(image)}")


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if image.getexif().get(EXIF_ORIENTATION, 1) != 1 else image


def picture_size(picture: Picture) -> tuple[int, int]:
    """(height, width) of a picture or a label map."""
    return picture.size[::-1] if isinstance(picture, Image.Image) else tuple(picture.shape[-2:])


def shown_size(image: Picture, options: Any) -> tuple[int, int]:
    """(height, width) of the upright picture.

    Args:
        image: PIL image, array or tensor.
        options: Options of the call, or the processor with them: `image_mean` and `input_data_format`.

    Raises:
        ValueError: If it is empty, or its channels cannot be told from its shape.
    """
    check_values(image, "images: image 0")
    if isinstance(image, Image.Image):
        turned = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        return image.size if turned else image.size[::-1]
    channels = len(options.image_mean) if isinstance(options.image_mean, Sequence) else None
    return picture_size(_channels_first(image, channels, options.input_data_format))


def prepare_picture(image: Picture, options: Any, index: int = 0) -> Picture:
    """One image as a picture: upright, with its final channels, on its device.

    Args:
        image: PIL image, array or tensor.
        options: Options of the call: `image_mean`, `do_normalize`, `do_convert_rgb`, `input_data_format`,
            `allow_missing` and `device`.
        index: Its place among the images, for errors.

    Returns:
        The picture.

    Raises:
        ValueError: If it is empty, its channels cannot be told from its shape or are not as many as `image_mean` has
            values, or it has missing pixels that `allow_missing` does not allow.
    """
    check_values(image, f"images: image {index}")
    if isinstance(image, np.ma.MaskedArray):
        image = np.ma.filled(image.astype(float), np.nan) if np.ma.is_masked(image) else image.data
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
    if isinstance(image, torch.Tensor) and not options.allow_missing:
        _check_finite(image, index)
    return image if options.device is None else move(image, torch.device(options.device))


def _check_finite(image: torch.Tensor, index: int) -> None:
    missing = missing_values(image)
    if missing is not None:
        raise ValueError(
            f"images must be finite: image {index} has NaN or infinity in {int(missing.any(0).sum())} of "
            f"{missing[0].numel()} pixels. allow_missing=True leaves them out"
        )


def _converted(image: Image.Image, channels: int | None, do_convert_rgb: bool | None) -> Image.Image | np.ndarray:
    if do_convert_rgb is False:
        return np.asarray(image)
    if image.mode in ("La", "RGBa"):  # colours multiplied by their transparency, which all below take for plain ones
        image = image.convert(image.mode.upper())
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
            pixels: Any = image  # whose shape alone matters
            layout = infer_channel_dimension_format(pixels, num_channels=channels if matches[0] else (1, 3, 4))
        else:
            wanted = f"{channels} channels, as many as image_mean has values" if channels else "1, 3 or 4 channels"
            raise ValueError(
                f"images must have {wanted}, first or last, got shape {tuple(image.shape)}; input_data_format says "
                "where any other number of them is"
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


def prepare_label_map(labels: Picture, device: str | torch.device | None, index: int = 0) -> Array:
    """One segmentation map as an (H, W) array of ids, upright, on its device.

    Args:
        labels: PIL image of one band, whose palette indices and 16-bit values are ids, or (H, W) array or tensor.
        device: Where to move it; `None` leaves it.
        index: Its place among the maps, for errors.

    Returns:
        (H, W) array of any integer type or bool, or int64 tensor on a device.

    Raises:
        ValueError: If it is empty, or has several bands or values that are no whole numbers.
    """
    check_values(labels, f"segmentation_maps: map {index}")
    if isinstance(labels, Image.Image):
        if len(labels.getbands()) != 1:
            raise ValueError(
                f"segmentation_maps must hold one label id per pixel, got a PIL image of mode {labels.mode}"
            )
        labels = np.asarray(_upright(labels))
    ids = _whole_array(labels, index) if isinstance(labels, np.ndarray) else _whole_tensor(labels.detach(), index)
    if isinstance(ids, np.ndarray):
        on_host = device is None or torch.device(device).type == "cpu"
        return ids if on_host else torch.tensor(ids.astype(np.int64), device=device)
    ids = ids if device is None else ids.to(device)
    return ids.numpy() if ids.device.type == "cpu" else ids


def _whole_array(labels: np.ndarray, index: int) -> np.ndarray:
    if np.ma.is_masked(labels):
        raise ValueError(f"segmentation_maps: map {index} is masked; .filled(255) gives its masked pixels an id")
    if labels.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            ids = labels.astype(np.int64)
        _check_whole(labels, ids, index)
        return ids
    return labels


def _whole_tensor(labels: torch.Tensor, index: int) -> torch.Tensor:
    if labels.dtype in (torch.uint32, torch.uint64):  # which PyTorch can store but hardly compute with
        raise ValueError(f"segmentation_maps: map {index} has the type {labels.dtype}; .long() makes it int64")
    ids = labels.long()
    if labels.is_floating_point():
        _check_whole(labels, ids, index)
    return ids


def _check_whole(labels: Array, ids: Array, index: int) -> None:
    wrong: Any = ids != labels
    if wrong.any():
        raise ValueError(
            f"segmentation_maps must hold whole numbers (no fractions): map {index} holds {labels[wrong][0].item()}"
        )

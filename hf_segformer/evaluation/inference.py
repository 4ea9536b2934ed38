# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""From a picture to its label map: whole image, sliding windows, several sizes and mirrored, in bounded memory."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..pretrained.input_checks import points_of, smallest_side
from ..processing.image_inputs import check_flag, flat_images, shown_size
from ..processing.resize import resize_nearest
from ..runtimes.exported import ExportedModel, load_segmenter
from ..scores.label_map import upsample_argmax
from .protocols import Protocol, Size
from .score_bands import OVERLAPS, Logits, ResizedScores, WindowedScores, label_bands

if TYPE_CHECKING:
    from ..image_processing_segformer import SegformerImageProcessor

_Model: TypeAlias = Any  # a SegformerForSemanticSegmentation, or what stands in for one
_Source: TypeAlias = nn.Module | str | os.PathLike
_Result = TypeVar("_Result")

_HELD_LOGITS = 32  # network outputs of whole images that are held at a time: pictures times sizes, mirrored and not


class NetworkInputs(NamedTuple):
    """One picture as a protocol shows it to the network."""

    pixel_values: list[Tensor]  # (C, h, w) for each ratio of the protocol
    valid_sizes: list[Size]  # (h, w) of each, without its padding
    picture_size: Size  # (H, W) of the upright picture, and of its label map


class Segmentation(NamedTuple):
    """Result for one picture, on the model's device."""

    labels: Tensor  # (H, W), uint8 for up to 256 classes, int32 above
    confidence: Tensor | None  # (H, W) float32 in [0, 1], the probability of the label


@overload
def segment(
    model: _Source,
    image_processor: SegformerImageProcessor | None,
    image: Image.Image | np.ndarray | torch.Tensor,
    protocol: Protocol | None = None,
    *,
    return_confidence: Literal[False] = False,
    window_batch_size: int | None = None,
    overlap: str = "mean",
) -> np.ndarray: ...


@overload
def segment(
    model: _Source,
    image_processor: SegformerImageProcessor | None,
    image: Image.Image | np.ndarray | torch.Tensor,
    protocol: Protocol | None = None,
    *,
    return_confidence: bool,
    window_batch_size: int | None = None,
    overlap: str = "mean",
) -> np.ndarray | tuple[np.ndarray, np.ndarray]: ...


def segment(
    model: _Source,
    image_processor: SegformerImageProcessor | None,
    image: Image.Image | np.ndarray | torch.Tensor,
    protocol: Protocol | None = None,
    *,
    return_confidence: bool = False,
    window_batch_size: int | None = None,
    overlap: str = "mean",
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Segment one picture at its own size.

    Beside the network inputs, memory holds the low-resolution logits of two rows of windows (for each size and flip of
    test-time augmentation) and a few rows of scores, however large the picture.

    Network inputs and windows that are smaller than the network can take (29 pixels for the published configurations)
    are padded at the bottom and the right with 0, the mean colour, and their logits cut accordingly.

    Args:
        model: A `SegformerForSemanticSegmentation` on any device, an `ExportedModel`, or where one of them lies: a
            folder, Hub id or exported file (.onnx, .xml, .pt2). For many pictures load it once by `load_segmenter`.
        image_processor: Processor of the model; None takes its own where it lies in a folder, repository or file.
        image: One picture, as the image processor takes them: PIL image, path, array or tensor.
        protocol: How to resize, cut and augment (`Protocol.named`); None does what the image processor does. Files
            that give label maps take whole pictures at one size.
        return_confidence: Also return the probability of each pixel's label.
        window_batch_size: Windows per forward pass; None takes 1 on a CPU and 8 elsewhere.
        overlap: How overlapping windows are merged: "mean" of their logits, as published, or "gaussian": weighted by
            the distance to their centres.

    Returns:
        Class indices (H, W), uint8 for up to 256 classes, otherwise int32; with `return_confidence` a tuple of these
        and float32 (H, W) in [0, 1].

    Raises:
        ValueError: If an option is out of range, the image none that the image processor takes, or the model cannot be
            loaded.
    """
    protocol = Protocol.named("processor") if protocol is None else protocol
    network, image_processor = _loaded(model, image_processor)
    _check_model(network)
    inputs = prepare_inputs(image_processor, image, protocol)
    with inference_of(network):
        (result,) = segment_inputs(network, [inputs], protocol, return_confidence, window_batch_size, overlap)
    labels = result.labels.cpu().numpy()
    return labels if result.confidence is None else (labels, result.confidence.cpu().numpy())


def predict_label_map(
    model: _Source,
    image_processor: SegformerImageProcessor | None,
    image: Image.Image | np.ndarray | torch.Tensor,
) -> np.ndarray:
    """Segment one picture at its own size, as the model's image processor does; `segment` without options.

    Args:
        model: As in `segment`.
        image_processor: As in `segment`.
        image: One picture, as the image processor takes them: PIL image, path, array or tensor.

    Returns:
        Class indices (H, W): uint8 for up to 256 classes, otherwise int32.
    """
    return segment(model, image_processor, image)


def prepare_inputs(
    image_processor: SegformerImageProcessor,
    image: Image.Image | np.ndarray | torch.Tensor,
    protocol: Protocol,
) -> NetworkInputs:
    """Network inputs of one picture, one for each size of the protocol. Needs no model, so workers can do it.

    Args:
        image_processor: Processor of the model.
        image: One picture, as the image processor takes them: PIL image, path, array or tensor.
        protocol: How to resize.

    Raises:
        ValueError: If the protocol varies the processor's size and the processor does not resize, or an argument is
            of another kind.
    """
    if not isinstance(protocol, Protocol):
        raise ValueError(f"protocol must be a Protocol, such as Protocol.named('aligned-512'), got {protocol!r:.99}")
    if not hasattr(image_processor, "keep_ratio"):
        name = type(image_processor).__name__
        raise ValueError(f"image_processor must be a SegformerImageProcessor of this package, got {name}")
    images = flat_images(image, 3, "image")
    if len(images) != 1:
        raise ValueError(f"image must be one picture, got {len(images)}")
    if isinstance(images[0], np.ndarray) and image_processor.input_data_format is None:
        images = [_planes_where_ambiguous(images[0])]
    size = shown_size(images[0], image_processor)  # upright: the label map shows the picture as people see it
    if protocol.resize == "processor" and protocol.tta == "nvlabs" and not image_processor.do_resize:
        raise ValueError("tta 'nvlabs' multiplies the processor's size, but this processor has do_resize=False")
    pixel_values, valid_sizes = [], []
    for ratio in protocol.ratios:
        options = protocol.processor_options(ratio, size, image_processor.size)
        features = image_processor(images, return_tensors="pt", data_format="channels_first", **options)
        pixel_values.append(features["pixel_values"][0])
        valid_sizes.append(features.image_sizes[0])
    return NetworkInputs(pixel_values, valid_sizes, size)


def _planes_where_ambiguous(image: np.ndarray) -> np.ndarray:
    """Arrays are (H, W, C), but of two axes that may hold the channels the processor takes the first."""
    return image.transpose(2, 0, 1) if image.ndim == 3 and image.shape[0] == image.shape[2] else image


def _loaded(model: _Source, image_processor: SegformerImageProcessor | None) -> tuple[Any, Any]:
    own = getattr(model, "image_processor", None)
    if isinstance(model, str | os.PathLike):
        model, own = load_segmenter(model)
    return model, own if image_processor is None else image_processor


def _check_model(model: nn.Module) -> None:
    config = getattr(model, "config", None)
    if isinstance(model, ExportedModel):
        return
    if not isinstance(model, nn.Module) or not hasattr(config, "sr_ratios") or not hasattr(model, "decode_head"):
        raise ValueError(f"model must be a SegformerForSemanticSegmentation, got {type(model).__name__}")


@contextmanager
def inference_of(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model's training mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def segment_inputs(
    model: nn.Module,
    batch: Sequence[NetworkInputs],
    protocol: Protocol,
    return_confidence: bool = False,
    window_batch_size: int | None = None,
    overlap: str = "mean",
) -> list[Segmentation]:
    """Segment prepared pictures; to be called inside `inference_of(model)`.

    Whole images of equal input size share a forward pass; windows do so within one row of windows.

    Args:
        model: A `SegformerForSemanticSegmentation` on any device, or an `ExportedModel`.
        batch: What `prepare_inputs` returned, with the same protocol.
        protocol: How scores become a label map.
        return_confidence: Also return the probability of each pixel's label.
        window_batch_size: Windows per forward pass; None takes 1 on a CPU and 8 elsewhere.
        overlap: "mean" or "gaussian", see `segment`.

    Raises:
        ValueError: If an option is out of range, or the protocol none for a file that gives label maps.
    """
    check_flag("return_confidence", return_confidence)
    together = _windows_together(model, window_batch_size)
    if not isinstance(overlap, str) or overlap not in OVERLAPS:
        raise ValueError(f"overlap must be one of {', '.join(OVERLAPS)}, got {overlap!r}")
    if isinstance(model, ExportedModel) and model.gives_labels:
        return _given_label_maps(model, batch, protocol, return_confidence)
    if protocol.crop_size is None:
        step = max(_HELD_LOGITS // (len(protocol.ratios) * len(protocol.flips)), 1)
        parts = [batch[start : start + step] for start in range(0, len(batch), step)]
        return [result for part in parts for result in _segment_whole(model, part, protocol, return_confidence)]
    return [_segment_windows(model, inputs, protocol, return_confidence, together, overlap) for inputs in batch]


def _windows_together(model: _Model, window_batch_size: int | None) -> int:
    if window_batch_size is None:
        window_batch_size = 1 if model.device.type == "cpu" else 8
    if not isinstance(window_batch_size, int) or window_batch_size < 1:
        raise ValueError(f"window_batch_size must be at least 1, got {window_batch_size!r:.99}")
    return window_batch_size


def _segment_whole(
    model: _Model, batch: Sequence[NetworkInputs], protocol: Protocol, return_confidence: bool
) -> list[Segmentation]:
    views: list[list[tuple[Tensor, Size]]] = [[] for _ in batch]  # logits (h, w, K), and the size they stand for
    for index in range(len(protocol.ratios)):
        for flip in protocol.flips:
            batched = _whole_logits(model, [inputs.pixel_values[index] for inputs in batch], flip)
            for inputs, own, values in zip(batch, views, batched, strict=True):
                points = _first_points(model, values, inputs.valid_sizes[index])
                own.append((points, inputs.picture_size if protocol.one_step else inputs.valid_sizes[index]))
    results = []
    for inputs, own in zip(batch, views, strict=True):
        logits, view_size = own[0]
        if len(own) == 1 and view_size == inputs.picture_size:
            results.append(_segment_single(logits, view_size, return_confidence))
            continue
        sources = [ResizedScores(Logits(logits), size) for logits, size in own]
        merged = label_bands(sources, inputs.picture_size, logits.shape[2], logits.device, return_confidence)
        results.append(Segmentation(*merged))
    return results


def _segment_single(logits: Tensor, size: Size, return_confidence: bool) -> Segmentation:
    """Label map of logits (h, w, K) that take a single step to the picture's size."""
    result = upsample_argmax(logits.permute(2, 0, 1)[None], size, return_confidence)
    labels, confidence = result if return_confidence else (result, None)
    labels = labels[0].to(torch.uint8 if logits.shape[2] <= 256 else torch.int32)
    return Segmentation(labels, None if confidence is None else confidence[0])


def _whole_logits(model: _Model, pixel_values: list[Tensor], flip: bool) -> list[Tensor]:
    """Logits (h, w, K) of whole images."""
    return _by_size(pixel_values, lambda images: _forward(model, images, flip))


def _by_size(pixel_values: list[Tensor], run: Callable[[Tensor], Iterable[_Result]]) -> list[_Result]:
    """Results of whole images, those of one size together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, values in enumerate(pixel_values):
        groups.setdefault(tuple(values.shape), []).append(index)
    results: dict[int, _Result] = {}
    for indices in groups.values():
        images = torch.stack([pixel_values[index] for index in indices])
        results |= dict(zip(indices, run(images), strict=True))
    return [results[index] for index in range(len(pixel_values))]


def _given_label_maps(
    model: ExportedModel, batch: Sequence[NetworkInputs], protocol: Protocol, return_confidence: bool
) -> list[Segmentation]:
    """What a file with label maps gives for the network inputs, at the pictures' sizes by the nearest pixel."""
    if protocol.crop_size is not None or protocol.tta != "none":
        raise ValueError(
            f"protocol must take whole pictures at a single size with {model.path}, which gives label maps, got "
            f"{protocol.describe()}; a file exported with output logits takes any"
        )
    if return_confidence and not model.gives_confidence:
        raise ValueError(f"{model.path} gives no confidence: export with output labels+confidence or logits")
    maps = _by_size([inputs.pixel_values[0] for inputs in batch], functools.partial(_label_maps, model))
    dtype = torch.uint8 if model.config.num_labels <= 256 else torch.int32
    results = []
    for inputs, (labels, confidence) in zip(batch, maps, strict=True):
        height, width = inputs.valid_sizes[0]
        labels = resize_nearest(labels[:height, :width], inputs.picture_size).to(dtype)
        if return_confidence:
            confidence = resize_nearest(confidence[:height, :width], inputs.picture_size)
        results.append(Segmentation(labels, confidence if return_confidence else None))
    return results


def _label_maps(model: ExportedModel, images: Tensor) -> list[tuple[Tensor, Any]]:
    """Labels and confidences (H, W) of network inputs (B, C, H, W)."""
    labels, confidence = model(_padded(images, smallest_side(model.config)))
    return list(zip(labels, [None] * len(labels) if confidence is None else confidence, strict=True))


def _forward(model: _Model, images: Tensor, flip: bool) -> Tensor:
    """Logits (B, h, w, K) of network inputs (B, C, H, W), shown to the network mirrored with `flip`."""
    size = images.shape[-2:]
    images = images.to(model.device, model.dtype)
    logits = model(_padded(images.flip(3) if flip else images, smallest_side(model.config))).logits
    logits = _first_points(model, logits.permute(0, 2, 3, 1), size)
    return (logits.flip(2) if flip else logits).contiguous()


def _padded(images: Tensor, smallest: int) -> Tensor:
    """Inputs with zeros, as the processor pads, where they are smaller than the network takes."""
    missing = [max(smallest - side, 0) for side in images.shape[-2:]]
    return F.pad(images, (0, missing[1], 0, missing[0])) if any(missing) else images


def _first_points(model: _Model, logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (..., h, w, K) of the part that shows the picture: what the network gives for the picture alone."""
    height, width = (points_of(model.config, side) for side in size)
    return logits[..., :height, :width, :]


def _segment_windows(
    model: _Model,
    inputs: NetworkInputs,
    protocol: Protocol,
    return_confidence: bool,
    window_batch_size: int,
    overlap: str,
) -> Segmentation:
    sources = [
        _windowed_scores(model, pixel_values, protocol, flip, window_batch_size, overlap)
        for pixel_values in inputs.pixel_values
        for flip in protocol.flips
    ]
    classes = model.config.num_labels
    return Segmentation(*label_bands(sources, inputs.picture_size, classes, model.device, return_confidence))


def _windowed_scores(
    model: _Model, pixel_values: Tensor, protocol: Protocol, flip: bool, batch_size: int, overlap: str
) -> WindowedScores:
    height, width = pixel_values.shape[-2:]
    rows, columns = protocol.windows(height, width)
    if flip:  # the windows lie on the mirrored image; here they are seen from the other side
        columns = [(width - stop, width - first) for first, stop in columns]

    def logits_of_row(index: int) -> list[Tensor]:
        top, bottom = rows[index]
        windows = [pixel_values[:, top:bottom, left:right] for left, right in columns]
        batches = [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
        return [logits for batch in batches for logits in _forward(model, torch.stack(batch), flip)]

    return WindowedScores((height, width), rows, columns, logits_of_row, overlap)

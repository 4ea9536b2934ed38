# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""SegFormer's image processor: pictures to `pixel_values`, annotations to `labels`, logits to label maps.

With a configuration of the built-in processor the results equal its PIL backend's. The options of the published
evaluation protocols (`keep_ratio`, `size_divisor`, `antialias=False`) come on top.
"""

import numbers
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import validate_typed_dict
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from .processing.image_inputs import (
    Array,
    check_flag,
    described,
    flat_images,
    picture_size,
    prepare_label_map,
    prepare_picture,
)
from .processing.options import PIXELS, canonical, check_options, listed_values, named_errors
from .processing.pixel_values import Size, assembled, compute_labels, compute_pixel_values
from .processing.resize import resized_size, rounded_up
from .scores.label_map import upsample_argmax

try:
    from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
except ImportError:
    SemanticSegmentationPostProcessorOutput = BatchFeature  # type: ignore[misc, assignment]


class SegformerImageProcessorKwargs(ImagesKwargs, total=False):
    """What `SegformerImageProcessor` takes beyond the options of every image processor; see there."""

    do_reduce_labels: bool
    keep_ratio: bool
    size_divisor: int | None
    antialias: bool
    allow_missing: bool


class SegformerImageFeatures(BatchFeature):
    """Model inputs (`pixel_values`, `labels`), with the sizes that post-processing needs beside them.

    The sizes are attributes and no keys, so that `model(**features)` gets model inputs only. They survive `.to(...)`
    and the way through a `DataLoader` worker.

    Attributes:
        image_sizes: (height, width) of every image in `pixel_values`, without its padding.
        padded_size: (height, width) of all of them with padding; None without padding.
        original_sizes: (height, width) of every image as it came in, upright: the `target_sizes` of post-processing.
    """

    image_sizes: list[Size] | None = None
    padded_size: Size | None = None
    original_sizes: list[Size] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class SegformerImageProcessor(PilBackend):
    """Resizes, rescales and normalises images for SegFormer, and turns its logits into label maps.

    Images are PIL images, paths, URLs, numpy arrays or tensors; single, in lists or as a batch. PIL images are turned
    upright by their EXIF tag and converted to as many channels as `image_mean` has values: grey and palette to RGB,
    transparency onto white, 16 bits to their upper 8. Arrays with one channel are repeated to three. Everything else
    about channels is up to `do_convert_rgb`: `True` also composites arrays of four channels onto white, `False` leaves
    the bands alone. Tensors are processed where they are, with the result that Pillow or OpenCV would give.

    Args:
        do_resize: Whether to resize.
        size: `{"height", "width"}`, an int for a square, `{"shortest_edge"}`, `{"shortest_edge", "longest_edge"}` or
            `{"max_height", "max_width"}`, in pixels.
        resample: Pillow's filter for images, as a member of its enumeration, its number or its name ("bilinear");
            labels are always resized by the nearest pixel.
        keep_ratio: Compute the size from shortest and longest edge as mmcv's `imrescale` does, rounding both sides,
            instead of `transformers`' rule, which truncates: (512, 2048) of the ADE20K protocol.
        size_divisor: Afterwards round both sides up to a multiple of it by a second resize, as NVlabs' `AlignedResize`
            and mmseg's `ResizeToMultiple` do. Padding to the largest image of a batch is rounded up likewise.
        antialias: `False` resizes as OpenCV does (`INTER_LINEAR`, labels `INTER_NEAREST`), like the published recipes.
        allow_missing: Whether floating-point images may have missing values, NaN or infinite. Such a value has no
            weight in resizing, channel by channel; where no other one is near, the result is what padding is: 0 after
            normalisation. By default they are an error.
        do_rescale: Whether to multiply by `rescale_factor`.
        rescale_factor: Default 1/255.
        do_normalize: Whether to subtract `image_mean` and divide by `image_std`.
        image_mean: One value per channel, or one for all.
        image_std: One value per channel, or one for all.
        do_pad: Whether to pad at the bottom and the right, after normalisation: images with 0, labels with 255.
        pad_size: `{"height", "width"}` to pad to; without it, to the batch's largest height and width.
        do_reduce_labels: Whether to turn label 0 into 255 and k into k - 1 (ADE20K). `reduce_labels` is the old name.

    Raises:
        ValueError: If an option contradicts another or lies outside its range.
    """

    valid_kwargs = SegformerImageProcessorKwargs
    resample = Image.Resampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 512, "width": 512}
    default_to_square = True
    crop_size = None
    do_resize = True
    do_center_crop = None
    do_rescale = True
    do_normalize = True
    do_reduce_labels = False
    rescale_factor = 1 / 255
    keep_ratio = False
    size_divisor: int | None = None
    antialias = True
    allow_missing = False
    do_pad: bool | None
    input_data_format: str | ChannelDimension | None

    def __init__(self, **kwargs: Unpack[SegformerImageProcessorKwargs]):
        options = canonical(kwargs)
        with named_errors():  # as in a call; a file may hold anything else besides
            known = self.valid_kwargs.__annotations__.keys() & options.keys()
            validate_typed_dict(self.valid_kwargs, {name: options[name] for name in known})  # type: ignore[type-var]
        super().__init__(**options)
        check_options(SimpleNamespace(**{name: getattr(self, name) for name in self._valid_kwargs_names}))

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a processor from a preprocessor configuration; `kwargs` override its values."""
        return super().from_dict(canonical(image_processor_dict), **canonical(kwargs))

    def to_dict(self) -> dict[str, Any]:
        """Configuration as saved, without this package's own options where they have their default."""
        config = super().to_dict()
        for name in ("keep_ratio", "antialias", "allow_missing"):
            if config.get(name) == getattr(type(self), name):
                del config[name]
        return config

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[SegformerImageProcessorKwargs],
    ) -> BatchFeature:
        """Turn images, and segmentation maps if given, into model inputs.

        Args:
            images: One image or several: PIL images, paths, arrays or tensors, (H, W), (H, W, C) or (C, H, W), uint8
                in [0, 255] or floating point. As in the built-in processor, floats in [0, 1] are resized with 8-bit
                precision and need `do_rescale=False`.
            segmentation_maps: As many maps of label ids, each of its image's size: PIL images of one band (palette
                indices and 16-bit ids stay as they are), paths, or (H, W) arrays or tensors. The caller's data are not
                written to.
            **kwargs: Any option of the processor, for this call; `return_tensors` ("pt", "np" or None for lists);
                `device` to process on; `input_data_format` for arrays whose channel axis is ambiguous; `data_format`
                of the result.

        Returns:
            `SegformerImageFeatures` with `pixel_values` (B, C, H, W) float32 and `labels` (B, H, W) int64, and with
            the attributes `image_sizes` and `original_sizes`.

        Raises:
            ValueError: If an option or an input breaks one of these rules.
        """
        with named_errors():
            return super().preprocess(images, segmentation_maps, **canonical(kwargs))

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:  # type: ignore[override]
        super()._validate_preprocess_kwargs(**kwargs)
        check_options(SimpleNamespace(**kwargs))

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: ImageInput, segmentation_maps: ImageInput | None = None, **kwargs: Any
    ) -> SegformerImageFeatures:
        options = SimpleNamespace(**kwargs)
        single = flat_images(images, 3, "images")
        pictures = [prepare_picture(image, options, index) for index, image in enumerate(single)]
        original_sizes = [picture_size(picture) for picture in pictures]
        steps = [_resize_steps(size, options) for size in original_sizes]
        image_sizes = [step[-1] if step else size for step, size in zip(steps, original_sizes, strict=True)]
        padded = _padded_size(image_sizes, options)
        if padded is None and options.return_tensors is not None and len(set(image_sizes)) > 1:
            raise ValueError(
                f"images must have one size to become a tensor, got {sorted(set(image_sizes))} after resizing: "
                "set do_pad=True, or return_tensors=None for a list"
            )
        maps: Any = None if segmentation_maps is None else _label_maps(segmentation_maps, original_sizes, options)
        data = {"pixel_values": compute_pixel_values(pictures, steps, padded, options)}
        if maps is not None:
            labels = [compute_labels(*pair, padded, options) for pair in zip(maps, steps, strict=True)]
            data["labels"] = assembled(labels, options.return_tensors)
        features = SegformerImageFeatures(data=data, tensor_type=options.return_tensors)
        features.image_sizes, features.padded_size, features.original_sizes = image_sizes, padded, original_sizes
        return features

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
        return_confidence: bool = False,
        inputs: BatchFeature | None = None,
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """Turn the model's logits into label maps, on the logits' device.

        Unless `return_segmentation_scores` is set, the scores of all classes at full size are never held.

        Args:
            outputs: Model output with `logits` (B, K, h, w). One class means binary segmentation: label 1 where the
                score's sigmoid exceeds 0.5.
            target_sizes: (height, width) in pixels for every image, as a list or a (B, 2) tensor on any device.
                Without it the maps keep the size of the logits.
            return_segmentation_scores: Whether to return the (K, height, width) resized scores as well.
            return_confidence: Whether to return the probability of each pixel's label as well.
            inputs: What the processor returned for these images: where it padded them, the padding's logits are cut
                off before resizing. Without it, a processor that pads by configuration takes `target_sizes` for the
                sizes of the original images.

        Returns:
            For every image its (height, width) int64 label map; with either flag an output with the fields
            `segmentation`, `segmentation_scores` (K, height, width) and `confidence` (height, width) float32 in [0,
            1], as asked.

        Raises:
            ValueError: If there are not as many target sizes, or inputs, as logits, or one of them has another form.
        """
        logits = _logits(outputs)
        check_flag("return_segmentation_scores", return_segmentation_scores)
        check_flag("return_confidence", return_confidence)
        if len(logits) == 0:
            return []
        sizes = _target_sizes(target_sizes, len(logits))
        logits_sizes = self._logits_sizes(logits, sizes, inputs)
        groups: Iterable[tuple[torch.Tensor, Size | None, Size]]
        if len({*sizes}) == 1 and len({*logits_sizes}) == 1:
            groups = [(logits, sizes[0], logits_sizes[0])]
        else:
            groups = zip(logits.split(1), sizes, logits_sizes, strict=True)
        results: list[Any] = []
        for group, size, (height, width) in groups:
            group = group[..., :height, :width]
            results += _label_outputs(group, size or (height, width), return_segmentation_scores, return_confidence)
        return results

    def _logits_sizes(
        self, logits: torch.Tensor, target_sizes: list[Size | None], inputs: BatchFeature | None
    ) -> list[Size]:
        """Size of each image's logits without padding: what the network gives for the unpadded image."""
        whole = (logits.shape[-2], logits.shape[-1])
        if inputs is not None and not hasattr(inputs, "image_sizes"):
            raise ValueError(
                f"inputs must be what this processor returned for the images, got {type(inputs).__name__}"
            )
        image_sizes, padded = getattr(inputs, "image_sizes", None), getattr(inputs, "padded_size", None)
        if image_sizes is None and self.do_pad and None not in target_sizes:
            image_sizes = [(_resize_steps(size, self) or [size])[-1] for size in target_sizes if size]
            padded = _padded_size(image_sizes, self)
        if padded is None or image_sizes is None:
            return [whole] * len(logits)
        if len(image_sizes) != len(logits):
            raise ValueError(
                f"inputs must be those of the logits: got {len(image_sizes)} inputs, {len(logits)} logits"
            )
        stride = [-(-pixels // points) for pixels, points in zip(padded, whole, strict=True)]
        return [(-(-height // stride[0]), -(-width // stride[1])) for height, width in image_sizes]


def _resize_steps(size: Size, options: Any) -> list[Size]:
    """Sizes that an image of this size goes through."""
    if not options.do_resize:
        return []
    step = resized_size(size, options.size, options.keep_ratio)
    return [step] if options.size_divisor is None else [step, rounded_up(step, options.size_divisor)]


def _padded_size(sizes: list[Size], options: Any) -> Size | None:
    if not options.do_pad:
        return None
    largest = max(height for height, _ in sizes), max(width for _, width in sizes)
    if options.pad_size is None:
        return rounded_up(largest, options.size_divisor or 1)
    padded = options.pad_size.height, options.pad_size.width
    if largest[0] > padded[0] or largest[1] > padded[1]:
        raise ValueError(f"pad_size must be at least the images' size after resizing, {largest}, got {padded}")
    return padded


def _label_maps(segmentation_maps: Any, sizes: list[Size], options: SimpleNamespace) -> list[Array]:
    maps = flat_images(segmentation_maps, 2, "segmentation_maps")
    if len(maps) != len(sizes):
        given = f": {described(segmentation_maps)}" if isinstance(segmentation_maps, np.ndarray | torch.Tensor) else ""
        raise ValueError(
            f"segmentation_maps must be as many as the images, {len(sizes)}, got {len(maps)} maps of one id per "
            f"pixel{given}"
        )
    maps = [prepare_label_map(labels, options.device, index) for index, labels in enumerate(maps)]
    for index, (labels, size) in enumerate(zip(maps, sizes, strict=True)):
        if tuple(labels.shape) != size:
            raise ValueError(
                f"segmentation_maps must have the (height, width) of their upright images: image {index} has {size}, "
                f"its map {tuple(labels.shape)} (input_data_format says which axis of an array holds its channels)"
            )
    return maps


def _logits(outputs: Any) -> torch.Tensor:
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 4 or not logits.is_floating_point():
        got = described(outputs if logits is None else logits)
        raise ValueError(f"outputs must be the model's, with floating-point logits (B, K, h, w), got {got}")
    if 0 in logits.shape[1:]:
        raise ValueError(f"outputs must have logits of at least one class and point, got {described(logits)}")
    return logits.detach()


def _target_sizes(target_sizes: Sequence[Size] | torch.Tensor | None, count: int) -> list[Size | None]:
    if target_sizes is None:
        return [None] * count
    sizes = listed_values(target_sizes)
    if not isinstance(sizes, Sequence) or not all(_is_size(size) for size in sizes):
        raise ValueError(
            "target_sizes must be [(height, width), ...], positive whole numbers of pixels for each image, got "
            f"{described(target_sizes)}"
        )
    if len(sizes) != count:
        raise ValueError(f"target_sizes must be as many as the logits, {count}, got {len(sizes)}")
    return [(int(height), int(width)) for height, width in sizes]


def _is_size(size: Any) -> bool:
    size = listed_values(size)
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        return False
    return all(map(_is_side, map(listed_values, size)))


def _is_side(side: Any) -> bool:
    is_number: bool = isinstance(side, numbers.Real)
    return is_number and 1 <= side < PIXELS and side % 1 == 0


def _label_outputs(
    logits: torch.Tensor, size: Size, with_scores: bool, with_confidence: bool
) -> list[torch.Tensor] | list[BatchFeature]:
    fields: dict[str, torch.Tensor] = {}
    if with_scores:
        scores = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        fields["segmentation"] = (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(dim=1)
        fields["segmentation_scores"] = scores
        if with_confidence:
            probabilities = _probabilities(scores.float())
            fields["confidence"] = probabilities.gather(1, fields["segmentation"][:, None])[:, 0]
    elif with_confidence:
        fields["segmentation"], fields["confidence"] = upsample_argmax(logits, size, return_confidence=True)
    else:
        return list(upsample_argmax(logits, size))
    outputs: list[Any] = [
        SemanticSegmentationPostProcessorOutput(data={name: values[index] for name, values in fields.items()})
        for index in range(len(logits))
    ]
    return outputs


def _probabilities(scores: torch.Tensor) -> torch.Tensor:
    if scores.shape[1] > 1:
        return scores.softmax(dim=1)
    return torch.cat([(-scores).sigmoid(), scores.sigmoid()], dim=1)

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation protocols: how a picture becomes network inputs, and their scores one label map, in published order.

A published mIoU belongs to a protocol: to the size of the network input and the way it is resized, to whole images or
sliding windows, to the sizes that test-time augmentation adds. `segment` and `evaluate` take one of `PROTOCOLS` by
`Protocol.named("aligned-512", tta="nvlabs")`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Resampling

from ..data.transforms import rescaled_size
from ..processing.image_inputs import check_flag

Size = tuple[int, int]  # height, width

TTA_METHODS = ("none", "mmseg", "nvlabs")
MMSEG_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
NVLABS_RATIOS = MMSEG_RATIOS  # of data sets other than the next two
NVLABS_ADE20K_RATIOS = (0.75, 0.875, 1.0, 1.125, 1.25)
NVLABS_CITYSCAPES_RATIOS = (*MMSEG_RATIOS, 2.0)


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate, complete but for the model and its normalisation.

    Logits of a network input are resized bilinearly to the input's size (of a window: to the window's; where windows
    overlap, they are averaged), then to the picture's size. Test-time augmentation averages the softmax probabilities
    of several sizes, each also mirrored, at the picture's size.

    Attributes:
        name: Key in `PROTOCOLS`.
        resize: "processor": as the model's image processor says; "stretch": to `scale`, antialiased; "keep-ratio":
            into `scale` with the ratio of the sides kept, without antialias, as OpenCV does; "none": left as it is.
        scale: Long and short side for "keep-ratio", height and width for "stretch"; pixels.
        size_divisor: Both sides are then resized up to multiples of it; None leaves them. Not with "processor".
        crop_size: Height and width of sliding windows; None takes the whole image. Smaller images are one window.
        stride: Vertical and horizontal distance of the windows; the last one is moved back to the border.
        one_step: Whether logits are resized to the picture's size directly, as `transformers` does.
        tta: "none", or whose list of sizes: "mmseg" takes ratios of the picture's own size, "nvlabs" of `scale`.
        nvlabs_ratios: The list of "nvlabs", which depends on the data set.

    Raises:
        ValueError: If a field is out of range or contradicts another.

    Source: `tools/test.py` and local_configs/ of NVlabs/SegFormer; configs/segformer/ and `EncoderDecoder`,
    `SegTTAModel` of mmsegmentation 1.2.2.
    """

    name: str = "processor"
    resize: str = "processor"
    scale: Size | None = None
    size_divisor: int | None = None
    crop_size: Size | None = None
    stride: Size | None = None
    one_step: bool = False
    tta: str = "none"
    nvlabs_ratios: tuple[float, ...] = NVLABS_RATIOS

    def __post_init__(self) -> None:
        if not isinstance(self.resize, str) or self.resize not in ("processor", "stretch", "keep-ratio", "none"):
            raise ValueError(f"resize must be processor, stretch, keep-ratio or none, got {self.resize!r}")
        if not isinstance(self.tta, str) or self.tta not in TTA_METHODS:
            raise ValueError(f"tta must be one of {', '.join(TTA_METHODS)}, got {self.tta!r}")
        check_flag("one_step", self.one_step)
        if (self.scale is not None) != (self.resize in ("stretch", "keep-ratio")):
            raise ValueError(f"scale belongs to resize stretch and keep-ratio, got {self.scale} with {self.resize!r}")
        for name in ("scale", "crop_size", "stride"):
            value = getattr(self, name)
            if value is not None and not _is_size(value):
                raise ValueError(f"{name} must be two positive numbers of pixels, got {value!r:.99}")
        divisor = self.size_divisor
        if divisor is not None and (self.resize == "processor" or not _is_whole(divisor)):
            raise ValueError(
                f"size_divisor must be at least 1 and whole, and with resize 'processor' the processor's own "
                f"counts: got {divisor!r:.99} with {self.resize!r}"
            )
        if (self.crop_size is None) != (self.stride is None):
            raise ValueError(f"crop_size and stride belong together, got {self.crop_size} and {self.stride}")
        if self.crop_size is not None and (self.one_step or self.resize == "processor"):
            raise ValueError("crop_size needs a protocol that resizes logits to the window's size first: not one_step")
        ratios = self.nvlabs_ratios if isinstance(self.nvlabs_ratios, tuple | list) else ()
        if not ratios or not all(isinstance(ratio, int | float) and 0 < ratio < math.inf for ratio in ratios):
            raise ValueError(f"nvlabs_ratios must be positive numbers, got {self.nvlabs_ratios!r:.99}")
        crop_size, stride = self.crop_size or (), self.stride or ()
        if any(s > c for s, c in zip(stride, crop_size, strict=True)):
            raise ValueError(f"stride must not exceed crop_size {crop_size}, or pixels are missed: {stride}")

    @classmethod
    def named(cls, name: str, tta: str = "none", **fields: Any) -> Protocol:
        """Return one of `PROTOCOLS`.

        Args:
            name: Key of `PROTOCOLS`.
            tta: Test-time augmentation, one of `TTA_METHODS`.
            **fields: Other fields to replace; `None` leaves a field as it is. A number for `crop_size` or `stride`
                stands for both sides; `crop_size` without `stride` sets it to three quarters of that.

        Raises:
            ValueError: If there is no such protocol, or a field is wrong.
        """
        if not isinstance(name, str) or name not in PROTOCOLS:
            close = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}{hint}")
        fields = {key: value for key, value in fields.items() if value is not None}
        for key in ("crop_size", "stride"):
            if isinstance(fields.get(key), int):
                fields[key] = (fields[key], fields[key])
        if _is_size(fields.get("crop_size")) and "stride" not in fields:
            fields["stride"] = tuple(max(side * 3 // 4, 1) for side in fields["crop_size"])
        return dataclasses.replace(PROTOCOLS[name], tta=tta, **fields)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Sizes of the network inputs relative to `scale`, or with tta "mmseg" to the picture."""
        return {"none": (1.0,), "mmseg": MMSEG_RATIOS, "nvlabs": self.nvlabs_ratios}[self.tta]

    @property
    def flips(self) -> tuple[bool, ...]:
        """Whether each size is shown as it is, mirrored, or both."""
        return (False,) if self.tta == "none" else (False, True)

    def processor_options(self, ratio: float, picture_size: Size, processor_size: dict[str, int]) -> dict[str, Any]:
        """What to call the image processor with for the network input of one ratio.

        Args:
            ratio: One of `ratios`.
            picture_size: (height, width) of the upright picture.
            processor_size: The processor's own `size`.

        Returns:
            Keyword arguments of `SegformerImageProcessor.__call__`.
        """
        if self.resize == "processor" and self.tta == "none":
            return {}
        options: dict[str, Any] = {"do_resize": True, "keep_ratio": False}
        if self.tta == "mmseg":
            # mmseg's Resize first rounds the scale, then fits the picture into it, which may round once more.
            height, width = picture_size
            options["size"] = _sides(
                rescaled_size(height, width, (int(width * ratio + 0.5), int(height * ratio + 0.5)))
            )
        elif self.resize == "processor":
            options = {"size": {name: max(int(side * ratio), 1) for name, side in dict(processor_size).items()}}
        elif self.resize == "keep-ratio":
            assert self.scale is not None
            long, short = (max(int(side * ratio), 1) for side in (max(self.scale), min(self.scale)))
            options |= {"size": {"shortest_edge": short, "longest_edge": long}, "keep_ratio": True}
        else:
            base = self.scale if self.resize == "stretch" and self.scale else picture_size
            options["size"] = _sides([int(side * ratio) for side in base])
        if self.resize == "processor":
            return options
        fixed = {"antialias": self.resize == "stretch", "resample": Resampling.BILINEAR, "do_pad": False}
        return options | fixed | {"size_divisor": self.size_divisor or 1}

    def windows(self, height: int, width: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Rows and columns of the windows over a network input; every pair of the two is a window.

        Args:
            height: Pixels of the network input.
            width: Pixels of the network input.

        Returns:
            (first, stop) of each row and of each column of windows, in pixels, in ascending order.

        Source: `slide_inference` of mmsegmentation's `EncoderDecoder`.
        """
        if self.crop_size is None or self.stride is None:
            return [(0, height)], [(0, width)]
        sides = zip((height, width), self.crop_size, self.stride, strict=True)
        rows, columns = (_window_spans(pixels, crop, stride) for pixels, crop, stride in sides)
        return rows, columns

    def describe(self) -> str:
        """The protocol in one line, for reports."""
        long_short = None if self.scale is None else f"{self.scale[0]}x{self.scale[1]}"
        parts = [
            {
                "processor": "resized by the image processor",
                "stretch": f"stretched to {long_short}, antialiased",
                "keep-ratio": f"ratio kept, within {long_short}, no antialias",
                "none": "own size",
            }[self.resize]
        ]
        if self.size_divisor:
            parts.append(f"sides up to multiples of {self.size_divisor}")
        if self.crop_size and self.stride:
            crop, stride = ("x".join(map(str, sides)) for sides in (self.crop_size, self.stride))
            parts.append(f"windows {crop}, stride {stride}")
        else:
            parts.append("whole image")
        if self.tta == "none":
            parts.append("single scale")
        else:
            base = "the picture's size" if self.tta == "mmseg" else "the scale"
            parts.append(f"ratios {', '.join(f'{ratio:g}' for ratio in self.ratios)} of {base}, mirrored too")
        return "; ".join(parts)


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_whole, value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def _sides(size: Sequence[int]) -> dict[str, int]:
    return {"height": max(size[0], 1), "width": max(size[1], 1)}


def _window_spans(pixels: int, crop: int, stride: int) -> list[tuple[int, int]]:
    count = max(pixels - crop + stride - 1, 0) // stride + 1
    stops = [min(index * stride + crop, pixels) for index in range(count)]
    return [(max(stop - crop, 0), stop) for stop in stops]


def _ade20k(name: str, short: int, divisor: int | None) -> Protocol:
    return Protocol(name, "keep-ratio", (2048, short), divisor, nvlabs_ratios=NVLABS_ADE20K_RATIOS)


def _slide(name: str, resize: str, scale: Size | None) -> Protocol:
    crop, stride = (1024, 1024), (768, 768)
    return Protocol(name, resize, scale, None, crop, stride, nvlabs_ratios=NVLABS_CITYSCAPES_RATIOS)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("processor", one_step=True),
        Protocol("stock-512", "stretch", (512, 512), one_step=True),  # `transformers`
        _ade20k("keep-ratio-512", 512, None),  # mmseg's ADE20K; keep-ratio-640 for B5
        _ade20k("keep-ratio-640", 640, None),
        _ade20k("aligned-512", 512, 32),  # NVlabs' ADE20K, and mmseg's with AlignedResize; aligned-640 for B5
        _ade20k("aligned-640", 640, 32),
        _slide("slide-1024", "keep-ratio", (2048, 1024)),  # Cityscapes, both
        _slide("slide", "none", None),  # windows over the picture as it is
    )
}


@dataclass(kw_only=True)
class ProtocolArguments:
    """Command line that chooses a protocol; scripts inherit it, and every flag is a field."""

    protocol: str = field(
        default="processor",
        metadata={"help": f"{', '.join(PROTOCOLS)}; processor does what the model's image processor does."},
    )
    tta: str = field(
        default="none",
        metadata={"help": "Test-time augmentation: none, or several sizes, each also mirrored, of mmseg or nvlabs."},
    )
    scale: list[int] | None = field(
        default=None, metadata={"help": "Long and short side to resize to, instead of the protocol's."}
    )
    size_divisor: int | None = field(default=None, metadata={"help": "Resize sides up to multiples of it."})
    crop_size: list[int] | None = field(
        default=None, metadata={"help": "Side, or height and width, of sliding windows; instead of the protocol's."}
    )
    stride: list[int] | None = field(
        default=None, metadata={"help": "Distance of the windows; three quarters of crop_size if left out."}
    )
    overlap: str = field(
        default="mean", metadata={"help": "How overlapping windows are merged: mean, as published, or gaussian."}
    )
    window_batch_size: int | None = field(
        default=None, metadata={"help": "Windows per forward pass; 1 on a CPU and 8 elsewhere if left out."}
    )

    def load_protocol(self) -> Protocol:
        """Return the protocol the flags describe; raises what `Protocol.named` raises."""
        fields: dict[str, Any] = {"size_divisor": self.size_divisor}
        for name in ("scale", "crop_size", "stride"):
            value = getattr(self, name)
            if value is not None and len(value) not in ((2,) if name == "scale" else (1, 2)):
                raise ValueError(
                    f"{name} must be {'two numbers' if name == 'scale' else 'one or two numbers'}: {value}"
                )
            fields[name] = None if value is None else (value[0], value[-1])
        return Protocol.named(self.protocol, self.tta, **fields)

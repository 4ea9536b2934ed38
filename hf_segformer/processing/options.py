# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The image processor's options: their names and types as files and callers give them, and the rules they follow."""

import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from PIL import Image
from transformers.image_utils import ChannelDimension, SizeDict
from transformers.utils import TensorType

from .image_inputs import check_flag, described

PIXELS = 2**31  # sides are below it: what Pillow, OpenCV and PyTorch index by
_TENSOR_TYPES = tuple(kind.value for kind in TensorType)
_LAYOUTS = tuple(layout.value for layout in (ChannelDimension.FIRST, ChannelDimension.LAST))


@contextmanager
def named_errors() -> Iterator[None]:
    """Errors of typed options, which are no `ValueError`, as one."""
    try:
        yield
    except StrictDataclassFieldValidationError as error:  # which is no ValueError
        raise ValueError(str(error)) from error


def canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under their current names, and mean and standard deviation as floats, also where given as integers."""
    kwargs = dict(options)
    old = kwargs.pop("reduce_labels", None)
    for name, value in {"reduce_labels": old, "do_reduce_labels": kwargs.get("do_reduce_labels")}.items():
        check_flag(name, value)
    if old is not None and kwargs.setdefault("do_reduce_labels", old) != old:
        new = kwargs["do_reduce_labels"]
        raise ValueError(f"reduce_labels is the old name of do_reduce_labels and must not differ: got {old} and {new}")
    if kwargs.get("align") is False:  # files of the first converter switch `size_divisor` off by this key
        kwargs.pop("size_divisor", None)
    for name in ("size", "crop_size", "pad_size"):
        _check_size_form(name, kwargs.get(name))
    if kwargs.get("resample") is not None:
        kwargs["resample"] = _resampling(kwargs["resample"])
    if isinstance(kwargs.get("rescale_factor"), numbers.Real):
        kwargs["rescale_factor"] = float(kwargs["rescale_factor"])
    for name in ("image_mean", "image_std"):
        if kwargs.get(name) is not None:
            kwargs[name] = _channel_values(name, kwargs[name])
    return kwargs


def _check_size_form(name: str, size: Any) -> None:
    """The form alone: which keys and values a size may have depends on other options."""
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    if size is None or is_pair or isinstance(size, Mapping | SizeDict):
        return
    if isinstance(size, bool) or not isinstance(size, int):
        raise ValueError(f"{name} must be a whole number, (height, width) or a dictionary, got {described(size)}")


def _resampling(resample: Any) -> Image.Resampling:
    """Pillow's filter of that number or name; torchvision's members have names as their values."""
    value = getattr(resample, "value", resample)
    for member in Image.Resampling:
        if isinstance(value, str) and value.upper().removesuffix("-EXACT").removesuffix("_EXACT") == member.name:
            return member
        if isinstance(value, numbers.Integral) and value == member:
            return member
    names = ", ".join(f"{member.name.lower()!r} ({member.value})" for member in Image.Resampling)
    raise ValueError(f"resample must be one of {names}, got {resample!r}")


def _channel_values(name: str, value: Any) -> float | tuple[float, ...]:
    values = listed_values(value)
    try:
        if isinstance(values, str | bytes | Mapping | set | torch.Tensor):
            raise TypeError
        result = tuple(float(v) for v in values) if isinstance(values, Iterable) else float(values)
    except (TypeError, ValueError, OverflowError):
        result = ()
    if result == () or not np.isfinite(result).all():
        raise ValueError(f"{name} must be a finite number, or one for each channel, got {described(value)}")
    return result


def check_options(options: SimpleNamespace) -> None:
    """Check the values of all options of a call, and which of them go together.

    Raises:
        ValueError: A rule is broken; names the option, the rule and the value.
    """
    size = dict(options.size or {})
    for name, value in [("size", size), ("pad_size", dict(options.pad_size or {}))]:
        if any(isinstance(v, bool) or not isinstance(v, int) or not 1 <= v < PIXELS for v in value.values()):
            raise ValueError(f"{name} must hold positive whole numbers of pixels below 2**31, got {value}")
    kinds = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"})
    if options.do_resize and size.keys() not in kinds:
        raise ValueError(f"size must have the keys of one of {[sorted(kind) for kind in kinds]}, got {size}")
    if options.keep_ratio and size.keys() != {"shortest_edge", "longest_edge"}:
        raise ValueError(f"size must have shortest_edge and longest_edge with keep_ratio=True, got {size}")
    if options.pad_size is not None and dict(options.pad_size).keys() != {"height", "width"}:
        raise ValueError(f"pad_size must have the keys height and width, got {dict(options.pad_size)}")
    divisor = 1 if options.size_divisor is None else options.size_divisor
    if type(divisor) is not int or not 1 <= divisor < PIXELS:
        raise ValueError(f"size_divisor must be a whole number below 2**31 and at least 1, got {divisor}")
    if not options.antialias and options.resample not in (Image.Resampling.BILINEAR, Image.Resampling.NEAREST):
        raise ValueError(
            f"resample must be BILINEAR (2) or NEAREST (0) with antialias=False, got {options.resample!r}"
        )
    counts = [len(v) for v in (options.image_mean, options.image_std) if isinstance(v, Sequence)]
    if options.do_normalize and len(set(counts)) > 1:
        raise ValueError(f"image_std must have as many values as image_mean, {counts[0]}, got {counts[1]}")
    if options.do_normalize and not np.all(options.image_std):
        raise ValueError(f"image_std must not be 0, got {options.image_std}")
    if options.do_rescale and options.rescale_factor is not None and not np.isfinite(options.rescale_factor):
        raise ValueError(f"rescale_factor must be finite, got {options.rescale_factor}")
    _check_range(options)
    _check_call_options(options)


def _check_range(options: SimpleNamespace) -> None:
    """Whether the brightest pixel, 255, becomes a float32."""
    factor = 1.0 if not options.do_rescale or options.rescale_factor is None else float(options.rescale_factor)
    names = {"rescale_factor": options.rescale_factor}
    with np.errstate(over="ignore"):
        largest = np.float64(255) * abs(factor)
        if options.do_normalize and options.image_mean is not None and options.image_std is not None:
            largest = np.max((largest + np.abs(options.image_mean)) / np.abs(options.image_std))
            names |= {"image_mean": options.image_mean, "image_std": options.image_std}
    if not largest <= np.finfo(np.float32).max:
        received = ", ".join(f"{name}={value}" for name, value in names.items())
        raise ValueError(
            f"{', '.join(names)} must give a pixel of 255 a value in the range of float32, got {received}"
        )


def _check_call_options(options: SimpleNamespace) -> None:
    choices = {"data_format": _LAYOUTS, "input_data_format": _LAYOUTS, "return_tensors": _TENSOR_TYPES}
    for name, allowed in choices.items():
        value = getattr(options, name)
        if value is not None and value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r:.99}")
    if options.device is not None:
        try:
            has_values = not torch.empty(0, device=options.device).is_meta
        except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"device must be one that PyTorch has here, got {options.device!r:.99}: {error}"
            ) from error
        if not has_values:
            raise ValueError(f"device must be one that holds values, got {options.device!r}")


def listed_values(value: Any) -> Any:
    """Lists or numbers of tensors that have values, and of arrays; anything else as it is."""
    has_values = isinstance(value, np.ndarray) or (isinstance(value, torch.Tensor) and not value.is_meta)
    return value.tolist() if has_values else value

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What goes into the metrics, class ids of any integer type, and the scores per class that come out of `MeanIoU`."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib.mixins import NDArrayOperatorsMixin
from torch import Tensor

_MOST_LABELS = 1 << 16  # of which the matrix has 32 GiB


def check_class_names(class_names: Sequence[str], num_labels: int) -> None:
    """Raise ValueError unless there is a name for each class."""
    if not isinstance(class_names, Sequence) or isinstance(class_names, str):
        raise ValueError(f"class_names must be a list of names, received {class_names!r:.99}")
    if len(class_names) != num_labels:
        raise ValueError(f"class_names must name all {num_labels} classes, received {len(class_names)} names")


def zero_counts(num_labels: int, ignore_index: int | None, device: str | torch.device) -> Tensor:
    """int64 zeros (K, K) on the device.

    Raises:
        ValueError: K is not a positive integer, `ignore_index` neither one nor None, or the device is not there.
    """
    if not isinstance(num_labels, numbers.Integral) or isinstance(num_labels, bool) or num_labels < 1:
        raise ValueError(f"num_labels must be a positive integer, received {num_labels!r:.99}")
    if num_labels > _MOST_LABELS:
        raise ValueError(f"num_labels must be at most {_MOST_LABELS}, received {num_labels!r:.99}")
    if ignore_index is not None and not isinstance(ignore_index, numbers.Integral):
        raise ValueError(f"ignore_index must be an integer or None, received {ignore_index!r:.99}")
    if ignore_index is not None and not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit 64 bits, received {ignore_index!r:.99}")
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"device must be one that PyTorch has here, received {device!r:.99}: {error}") from error
    if device.type == "meta":
        raise ValueError("device must be one that holds values, received meta")
    return torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)


def check_batch(name: str, maps: Any) -> None:
    """Raise ValueError unless the argument of that name is a batch: something with a length, and no text."""
    if not hasattr(maps, "__len__") or isinstance(maps, str | dict) or getattr(maps, "shape", None) == ():
        raise ValueError(f"{name} must be a batch of label maps, received {type(maps).__name__}")


def integer_tensor(name: str, ids: Any) -> Tensor:
    """A tensor of the same ids, without a copy where torch can read the array's memory as it is.

    Args:
        name: The argument's name, for errors.
        ids: Tensor, array or nested lists of class ids.

    Raises:
        ValueError: The type is not integer, or lists do not form an array.
    """
    if isinstance(ids, Tensor):
        if ids.is_meta or ids.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor of class ids, received {ids.layout} on {ids.device}")
        integer = not (ids.is_floating_point() or ids.is_complex())
    else:
        ids = _as_array(name, ids)
        integer = ids.dtype.kind in "iub"
    if not integer:
        raise ValueError(f"{name} must be class ids of an integer dtype, received {ids.dtype}")
    if isinstance(ids, Tensor):
        return ids
    if np.ma.is_masked(ids):
        raise ValueError(f"{name} must not be masked: .filled(ignore_index) gives their masked pixels an id")
    # Of two integer types of one width torch may know one alone, so the type is looked up by its width.
    # torch reads neither foreign byte orders nor negative strides, and complains about arrays it could not write to.
    return torch.from_numpy(
        np.require(np.asarray(ids), dtype=ids.dtype.newbyteorder("=").str, requirements=["C", "W"])
    )


def _as_array(name: str, ids: Any) -> np.ndarray:
    try:
        return np.asanyarray(ids)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} must be one array of class ids, or maps of one size: {error}") from error


class ClassScores(NDArrayOperatorsMixin, list):
    """float64 scores of each class: a list of floats for `json.dumps`, an array for arithmetic and indexing."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(list(self), dtype=np.float64 if dtype is None else dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        arrays = (np.asarray(value) if isinstance(value, ClassScores) else value for value in inputs)
        return getattr(ufunc, method)(*arrays, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"ClassScores has no attribute {name!r}")
        return getattr(np.asarray(self), name)  # mean(), tolist(), shape and so on

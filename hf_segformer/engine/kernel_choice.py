# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""When a GPU kernel takes the place of PyTorch's operations: where both were seen to agree, and it was faster.

The idea is that of `torch.backends.cudnn.benchmark`: at the first use with inputs of a kind, both ways are taken and
compared, and what is found holds from then on. `HF_SEGFORMER_NO_KERNELS=1` in the environment turns all kernels off.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..tracing import must_trace
from .seam import note

# Largest difference from PyTorch's result, as a share of its largest value. PyTorch rounds between operations, and
# may convolve float32 in TF32, which has the digits of float16.
_TOLERANCES = {torch.float32: 2e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# Share of integers (labels) that may differ: pixels whose two best scores agree up to rounding.
_OTHER_LABELS = 1e-3
_REPETITIONS = 5

# Whether the kernel is used, for each kind of input seen, and in words why, for whoever reports it.
_decisions: dict[tuple, bool] = {}
_reasons: dict[tuple, str] = {}


def choose(name: str, plain: Callable, *arguments: Any, by_time: bool = True) -> Any:
    """What `plain(*arguments)` gives, or the kernel of that name if it gives the same faster.

    A kernel that raises or disagrees is warned about once and not used again for such inputs.

    The caller sees to it that no gradient has to flow through, and that nobody watches the modules gone around.

    Args:
        name: Function of `triton_scores` or `triton_maps`, which takes the same arguments.
        plain: The same with PyTorch's operations.
        arguments: Tensors and what else there is; the first is a tensor.
        by_time: Whether the faster one is used; otherwise the kernel whenever it agrees. For whatever is trained with:
            timings differ from run to run, and a run that was resumed must give the same bits. For that reason too,
            the kernel's own result is returned at the first use already.
    """
    # First what is false on a CPU, where nothing else shall be asked.
    if not _is_on_gpu(arguments[0]):
        return plain(*arguments)
    if refusal := no_kernels(arguments):
        note(f"no kernel {name}: {refusal}")
        return plain(*arguments)
    kind = (name, torch.is_inference_mode_enabled(), *map(_kind, arguments))
    if kind in _decisions:
        result = (_kernels()[name] if _decisions[kind] else plain)(*arguments)
    elif _is_capturing():
        note(f"no kernel {name}: a CUDA graph is being captured")
        return plain(*arguments)
    else:
        result = _decide(kind, plain, arguments, by_time)
    note(f"{'' if _decisions[kind] else 'no '}kernel {name}: {_reasons[kind]}")
    return result


def forget() -> None:
    """Try every kernel anew at its next use."""
    _decisions.clear()
    _reasons.clear()


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _is_capturing() -> bool:
    """Whether a CUDA graph is being captured: nothing can be waited for, nor compiled."""
    return torch.cuda.is_current_stream_capturing()


def no_kernels(arguments: Iterable) -> str:
    """What stands in the way of all kernels, "" where nothing does.

    Args:
        arguments: What a kernel would get; the first is a tensor.
    """
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    first = tensors[0]
    # First, so that nothing else is traced by a compiler.
    if any(map(must_trace, tensors)):
        return "values cannot be looked at: compiled, exported, in torch.func or of a tensor class"
    if not _is_on_gpu(first):
        return f"the device is {first.device.type}, not cuda"
    if any(tensor.device != first.device or not tensor.numel() for tensor in tensors):
        return "there are no values, or they lie on several devices"
    if os.environ.get("HF_SEGFORMER_NO_KERNELS") == "1":
        return "HF_SEGFORMER_NO_KERNELS is 1"
    if first.dtype not in _TOLERANCES:
        return f"there are none for {first.dtype}"
    if torch.is_autocast_enabled(first.device.type):
        return "autocast is on"
    # Whoever sets one of these wants numbers that depend neither on timings nor on what is installed.
    if torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic:
        return "deterministic algorithms are asked for"
    if not _is_supported(first.device):
        return "the device is not the current one, or not NVIDIA's of compute capability 8.0 or more"
    return "" if _kernels() else "Triton is not installed"


def _is_supported(device: torch.device) -> bool:
    # The kernels are written for, and compiled in the tests for, NVIDIA's GPUs with bfloat16. Triton launches on the
    # current device; to change it at every call would cost more than asking.
    return (
        torch.version.hip is None
        and device.index == torch.cuda.current_device()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@functools.cache
def _kernels() -> dict[str, Callable]:
    """Kernels by name; none without Triton. Imported late: on a CPU, Triton's import would be time for nothing."""
    from .triton_maps import depthwise_gelu, upsample_add_relu
    from .triton_scores import triton, upsample_argmax, upsample_cross_entropy

    if triton is None:
        return {}
    return {
        "depthwise_gelu": depthwise_gelu,
        "upsample_add_relu": upsample_add_relu,
        "upsample_argmax": upsample_argmax,
        "upsample_cross_entropy": upsample_cross_entropy,
    }


def _kind(argument: Any) -> Any:
    """What of an argument matters for speed; sizes rounded, so that not every size of image is timed anew."""
    if isinstance(argument, Tensor):
        return argument.device, argument.dtype, _kind(tuple(argument.shape)), argument.is_contiguous()
    if isinstance(argument, tuple):
        return tuple((number - 1).bit_length() for number in argument)
    return argument


def _decide(kind: tuple, plain: Callable, arguments: tuple, by_time: bool) -> Any:
    """Result of the better way, which is remembered."""
    expected, failure = plain(*arguments), None
    _decisions[kind], _reasons[kind] = False, "its trial was interrupted"
    try:
        kernel = _kernels()[kind[0]]
        actual = kernel(*arguments)
        if not _agrees(expected, actual):
            failure = f"its result differs{_by_how_much(expected, actual)}"
        elif by_time:
            fused, separate = _time(lambda: kernel(*arguments)), _time(lambda: plain(*arguments))
            _decisions[kind] = fused < separate
            comparison = "faster" if fused < separate else "slower"
            _reasons[kind] = f"{comparison} ({fused:.4g} ms against {separate:.4g} ms)"
        else:
            _decisions[kind], _reasons[kind] = True, "agrees"
    except Exception as error:  # whatever a compiler or driver of another version may raise
        failure = f"{type(error).__name__}: {error}"
    if failure is not None:
        _reasons[kind] = failure
        shapes = [tuple(argument.shape) for argument in arguments if isinstance(argument, Tensor)]
        warnings.warn(
            f"the GPU kernel {kind[0]} is not used for {arguments[0].dtype} tensors of shapes {shapes}: {failure}",
            stacklevel=3,
        )
    return actual if _decisions[kind] else expected


def _agrees(expected: Any, actual: Any) -> bool:
    if expected is None or actual is None:
        return expected is actual
    if isinstance(expected, tuple):
        return len(expected) == len(actual) and all(map(_agrees, expected, actual))
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return False
    if not expected.is_floating_point():
        return float((expected != actual).float().mean()) <= _OTHER_LABELS
    largest = torch.nan_to_num(expected.float(), nan=0, posinf=0, neginf=0).abs().max()
    difference = (expected.float() - actual.float()).abs()
    is_same = (expected == actual) | (expected.isnan() & actual.isnan())
    return bool((is_same | (difference <= _TOLERANCES[expected.dtype] * largest)).all())


def _by_how_much(expected: Any, actual: Any) -> str:
    """Of the first two tensors that do not agree, where they can be compared."""
    if isinstance(expected, tuple) and isinstance(actual, tuple) and len(expected) == len(actual):
        return next(_by_how_much(*pair) for pair in zip(expected, actual, strict=True) if not _agrees(*pair))
    if not (isinstance(expected, Tensor) and isinstance(actual, Tensor) and expected.shape == actual.shape):
        return ""
    if not expected.is_floating_point():
        return f" at {float((expected != actual).float().mean()):.3g} of the pixels"
    return (
        f" by up to {float((expected - actual).abs().max()):.3g}, its values reach {float(expected.abs().max()):.3g}"
    )


def _time(function: Callable[[], object]) -> float:
    """Milliseconds that the GPU takes."""
    function()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_REPETITIONS):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / _REPETITIONS

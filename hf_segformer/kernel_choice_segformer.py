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

import torch
from torch import Tensor

from .bilinear_segformer import must_trace

# Largest difference from PyTorch's result, as a share of its largest value. PyTorch rounds between operations, and
# may convolve float32 in TF32, which has the digits of float16.
_TOLERANCES = {torch.float32: 2e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# Share of integers (labels) that may differ: pixels whose two best scores agree up to rounding.
_OTHER_LABELS = 1e-3
_REPETITIONS = 5

# Whether the kernel is used, for each kind of input seen, and in words why, for whoever reports it.
_decisions: dict[tuple, bool] = {}
_reasons: dict[tuple, str] = {}


def choose(name: str, plain: Callable, *arguments, by_time: bool = True):
    """What `plain(*arguments)` gives, or the kernel of that name if it gives the same faster.

    A kernel that raises or disagrees is warned about once and not used again for such inputs.

    The caller sees to it that no gradient has to flow through, and that nobody watches the modules gone around.

    Args:
        name: Function of `kernels_segformer` or `map_kernels_segformer`, which takes the same arguments.
        plain: The same with PyTorch's operations.
        arguments: Tensors and what else there is; the first is a tensor.
        by_time: Whether the faster one is used; otherwise the kernel whenever it agrees. For whatever is trained with:
            timings differ from run to run, and a run that was resumed must give the same bits. For that reason too,
            the kernel's own result is returned at the first use already.
    """
    # First what is false on a CPU, where nothing else shall be asked.
    if not _is_on_gpu(arguments[0]) or not _may_use_kernels(arguments):
        return plain(*arguments)
    kind = (name, torch.is_inference_mode_enabled(), *map(_kind, arguments))
    if kind not in _decisions:
        if _is_capturing():
            return plain(*arguments)
        return _decide(kind, plain, arguments, by_time)
    return (_kernels()[name] if _decisions[kind] else plain)(*arguments)


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _is_capturing() -> bool:
    """Whether a CUDA graph is being captured: nothing can be waited for, nor compiled."""
    return torch.cuda.is_current_stream_capturing()


def _may_use_kernels(arguments: Iterable) -> bool:
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    device = tensors[0].device
    return (
        # First, so that nothing else is traced by a compiler.
        not any(must_trace(tensor) or tensor.device != device or not tensor.numel() for tensor in tensors)
        and os.environ.get("HF_SEGFORMER_NO_KERNELS") != "1"
        and tensors[0].dtype in _TOLERANCES
        and not torch.is_autocast_enabled(device.type)
        # Whoever sets one of these wants numbers that depend neither on timings nor on what is installed.
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.backends.cudnn.deterministic
        and _is_supported(device)
        and bool(_kernels())
    )


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
    from .kernels_segformer import triton, upsample_argmax, upsample_cross_entropy
    from .map_kernels_segformer import depthwise_gelu, upsample_add_relu

    kernels = (depthwise_gelu, upsample_add_relu, upsample_argmax, upsample_cross_entropy)
    return {} if triton is None else {kernel.__name__: kernel for kernel in kernels}


def _kind(argument):
    """What of an argument matters for speed; sizes rounded, so that not every size of image is timed anew."""
    if isinstance(argument, Tensor):
        return argument.device, argument.dtype, _kind(tuple(argument.shape)), argument.is_contiguous()
    if isinstance(argument, tuple):
        return tuple((number - 1).bit_length() for number in argument)
    return argument


def _decide(kind: tuple, plain: Callable, arguments: tuple, by_time: bool):
    """Result of the better way, which is remembered."""
    expected, failure = plain(*arguments), None
    _decisions[kind] = False
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


def _agrees(expected, actual) -> bool:
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


def _by_how_much(expected, actual) -> str:
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

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""GPU kernels: their numbers in Triton's interpreter, that they compile, when they are chosen, and the real thing."""

import importlib.util
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from hf_segformer import SegformerForSemanticSegmentation, engine
from hf_segformer.engine import kernel_choice, triton_maps, triton_scores
from hf_segformer.modeling_segformer import SegformerDecodeHead, SegformerMixFFN
from hf_segformer.scores.cross_entropy import upsample_cross_entropy, upsample_cross_entropy_sum
from hf_segformer.scores.label_map import upsample_argmax
from pretended_gpu import OnGpu
from textbook_head import HEADS, make
from versions import interpreter_fails

KERNELS = ("depthwise_gelu", "upsample_add_relu", "upsample_argmax", "upsample_cross_entropy")
needs_triton = pytest.mark.skipif(triton_scores.triton is None, reason="Triton is not installed")
BLOCK_ROWS = pytest.mark.parametrize(
    "enough, dtype",
    [(1, torch.float32), (1, torch.float16), (1, torch.bfloat16), (1 << 30, torch.float32)],
    ids=["float32", "float16", "bfloat16", "float32, one row at a time"],
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


@pytest.fixture(autouse=True)
def no_decisions(monkeypatch):
    monkeypatch.setattr(kernel_choice, "_decisions", {})


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.fixture(scope="module")
def interpreted():
    """The kernels' functions from copies of their modules that compute on the CPU.

    The decorators look at the variable when a module is imported; other tests' modules must not see it.
    """
    if reason := interpreter_fails():
        pytest.skip(reason)
    # Small blocks, so that small tensors have several.
    blocks = {"_CHANNELS": 16, "_COLUMNS": 4, "_PIXELS": 16, "_POINTS": 4}
    functions = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for module in (triton_scores, triton_maps):
            spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
            copy = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, module.__name__, copy)  # where the second one finds the first
            spec.loader.exec_module(copy)
            copy.__dict__.update((name, value) for name, value in blocks.items() if hasattr(copy, name))
            functions |= {name: getattr(copy, name) for name in KERNELS if hasattr(copy, name)}
    return SimpleNamespace(**functions, maps=copy)


def assert_close(actual, expected, dtype):
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert actual.dtype == dtype and actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


def upsampled(maps, size):
    return F.interpolate(maps.double(), size=size, mode="bilinear", align_corners=False)


@BLOCK_ROWS
def test_depthwise_gelu(enough, dtype, interpreted, monkeypatch):
    monkeypatch.setattr(interpreted.maps, "_ENOUGH_PROGRAMS", enough)
    torch.manual_seed(0)
    tokens, weight, bias = (torch.randn(size).to(dtype) for size in ((2, 18, 5, 7), (18, 1, 3, 3), (18,)))
    tokens = tokens.permute(0, 2, 3, 1)  # not contiguous
    expected = F.conv2d(tokens.double().permute(0, 3, 1, 2), weight.double(), bias.double(), padding=1, groups=18)
    expected = F.gelu(expected).permute(0, 2, 3, 1)
    assert_close(interpreted.depthwise_gelu(tokens, weight, bias), expected, dtype)


@BLOCK_ROWS
@pytest.mark.parametrize("count", [2, 3, 4])
def test_upsample_add_relu(enough, count, dtype, interpreted, monkeypatch):
    monkeypatch.setattr(interpreted.maps, "_ENOUGH_PROGRAMS", enough)
    torch.manual_seed(0)
    stages = [torch.randn(2, *size, 20).to(dtype) for size in ((5, 6), (3, 3), (2, 2), (1, 2))[:count]]
    expected = sum(upsampled(stage.permute(0, 3, 1, 2), (5, 6)) for stage in stages).relu()
    result = interpreted.upsample_add_relu(*stages)
    assert_close(result, expected, dtype)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_a_nan_passes_through_relu(interpreted):
    stages = [torch.zeros(1, 2, 2, 3), torch.zeros(1, 1, 1, 3)]
    stages[0][0, 1, 0, 2] = float("nan")
    assert torch.equal(interpreted.upsample_add_relu(*stages).isnan(), stages[0].permute(0, 3, 1, 2).isnan())


@PRECISIONS
@pytest.mark.parametrize(
    "classes, points, size",
    [(1, (4, 3), (13, 18)), (2, (3, 5), (7, 19)), (5, (6, 7), (4, 17)), (19, (3, 2), (5, 9)), (150, (2, 3), (2, 7))],
)
def test_upsample_argmax(classes, points, size, dtype, interpreted):
    torch.manual_seed(0)
    logits = torch.randn(2, classes, *points).to(dtype, memory_format=torch.channels_last)
    labels, confidence = interpreted.upsample_argmax(logits, size, True)
    scores = upsampled(logits, size)
    if classes == 1:
        assert torch.equal(labels, (scores[:, 0] > 0).long())
        expected = scores[:, 0].abs().sigmoid()
    else:
        # Half-precision logits have exact ties.
        first, second = scores.topk(2, dim=1).values.unbind(1)
        clear = first - second > 1e-6
        assert clear.float().mean() > 0.9 and torch.equal(labels[clear], scores.argmax(1)[clear])
        expected = scores.softmax(1).amax(1)
    assert_close(confidence, expected, torch.float32)
    alone, nothing = interpreted.upsample_argmax(logits.contiguous(), size, False)
    assert torch.equal(alone, labels) and nothing is None


def test_ties_go_to_the_first_class(interpreted):
    # Small integers and a power of two: every score is exact, so ties are exact too.
    logits = torch.randint(0, 2, (2, 6, 3, 5), generator=torch.Generator().manual_seed(0)).float()
    top = upsampled(logits, (6, 20)).topk(2, dim=1).values
    assert (top[:, 0] == top[:, 1]).float().mean() > 0.1
    labels, _ = interpreted.upsample_argmax(logits, (6, 20), False)
    assert torch.equal(labels, upsampled(logits, (6, 20)).argmax(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(value, interpreted):
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 3, 4)
    logits[0, 2, 1], logits[0, 3, 0, 0] = value, float("nan")
    labels, confidence = interpreted.upsample_argmax(logits, (6, 9), True)
    expected, expected_confidence = upsample_argmax(logits, (6, 9), return_confidence=True)
    assert torch.equal(labels, expected)
    assert torch.allclose(confidence, expected_confidence, atol=1e-5)


def loss_inputs(classes, points, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, *points, generator=generator)
    labels = torch.randint(0, classes, (2, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits, labels, torch.rand(classes, generator=generator) + 0.5


def exact_loss(logits, labels, ignore_index, weights):
    logits = logits.double().requires_grad_()
    scores = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    weights = None if weights is None else weights.double()
    loss = F.cross_entropy(scores, labels, weights, ignore_index=ignore_index, reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.long
# Odd ratios, several blocks of points and classes, fewer pixels than points, one point.
@pytest.mark.parametrize(
    "classes, points, size, weighted",
    [
        (2, (2, 5), (5, 17), True),
        (2, (3, 2), (6, 4), False),
        (3, (1, 1), (2, 3), True),
        (5, (5, 6), (3, 4), False),
        (5, (4, 5), (7, 9), True),
        (19, (3, 2), (4, 5), True),
        (150, (1, 5), (2, 7), True),
    ],
)
def test_upsample_cross_entropy(classes, points, size, weighted, interpreted):
    logits, labels, weights = loss_inputs(classes, points, size)
    weights = weights if weighted else None
    expected, expected_gradient = exact_loss(logits, labels, 255, weights)
    loss, gradient = interpreted.upsample_cross_entropy(
        logits.contiguous(memory_format=torch.channels_last), labels, 255, weights, True
    )
    assert_close(loss, expected, torch.float32)
    assert_close(gradient, expected_gradient, torch.float32)
    assert torch.equal(interpreted.upsample_cross_entropy(logits, labels, 255, weights, False)[0], loss)


def test_an_ignored_class_has_no_loss(interpreted):
    logits, labels, _ = loss_inputs(3, (2, 3), (4, 5))
    labels[labels == 255] = 1
    loss, gradient = interpreted.upsample_cross_entropy(logits.half(), labels, 1, None, True)
    expected, expected_gradient = exact_loss(logits.half(), labels, 1, None)
    assert_close(loss, expected, torch.float32)
    assert_close(gradient, expected_gradient, torch.float32)


def test_a_label_out_of_range_shows(interpreted):
    logits, labels, weights = loss_inputs(3, (2, 2), (3, 3))
    labels[0, 1, 1] = 3
    for factors in (None, weights):
        assert interpreted.upsample_cross_entropy(logits, labels, 255, factors, False)[0].isnan()


def test_large_scores_do_not_overflow(interpreted):
    logits, labels, _ = loss_inputs(4, (2, 2), (3, 4))
    logits *= 1000
    loss, gradient = interpreted.upsample_cross_entropy(logits, labels, 255, None, True)
    expected, expected_gradient = exact_loss(logits, labels, 255, None)
    assert_close(loss, expected, torch.float32)
    assert (gradient.double() - expected_gradient).abs().max() < 1e-3


# ------------------------------------------------------------------------------------------------------------ compiled

POINTERS = {"int64": {"labels"}, "float": {"scores", "confidence", "weights", "losses", "normalizers", "gradient"}}
VARIANTS = [
    ("_depthwise_gelu_kernel", {"ROWS": 4, "BLOCK_W": 16, "BLOCK_C": 64}),
    ("_upsample_add_relu_kernel", {"COARSER": 3, "ROWS": 4, "BLOCK_W": 16, "BLOCK_C": 64}),
    ("_upsample_argmax_kernel", {"ONE_CLASS": True, "HAS_CONFIDENCE": True, "BLOCK": 128}),
    ("_upsample_argmax_kernel", {"ONE_CLASS": False, "HAS_CONFIDENCE": True, "BLOCK": 128}),
    ("_upsample_cross_entropy_kernel", {"HAS_WEIGHTS": True, "BLOCK": 128}),
    ("_cross_entropy_gradient_kernel", {"HAS_WEIGHTS": True, "BLOCK_K": 4, "BLOCK_X": 32}),
    ("_cross_entropy_gradient_kernel", {"HAS_WEIGHTS": True, "BLOCK_K": 16, "BLOCK_X": 32}),
]


def resource_usage(kernel, constants, capability, precision, tmp_path):
    """Registers, stack, shared and local memory of a kernel compiled for sizes that are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in POINTERS["int64"]:
            signature[name] = "*i64"
        elif name in POINTERS["float"] or name in ("source", "weight", "bias", "result", "first") or "stage_" in name:
            signature[name] = "*fp32" if name in POINTERS["float"] else f"*{precision}"
        elif name in constants:
            signature[name] = "constexpr"
        else:
            is_float = "_scale" in name or name.endswith("_pixels")
            signature[name] = "fp32" if is_float else "i32"
        if signature[name][0] == "*" or name in ("channels", "width"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    is_map = "channels" in kernel.arg_names
    options = {"num_warps": triton_maps.map_warps(4 if precision == "fp32" else 2) if is_map else 4}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]
    (tmp_path / "kernel.cubin").write_bytes(binary)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "--dump-resource-usage", tmp_path / "kernel.cubin"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", output)}


@needs_triton
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name, constants", VARIANTS, ids=lambda value: str(value).strip("_"))
def test_kernels_compile_without_spills(name, constants, capability, precision, tmp_path):
    kernel = getattr(triton_maps, name, None) or getattr(triton_scores, name)
    if precision == "bf16" and not {"source", "first"} & set(kernel.arg_names):
        pytest.skip("the kernel's inputs are float32 always")
    usage = resource_usage(kernel, constants, capability, precision, tmp_path)
    print(name, constants, capability, precision, usage)
    # Where spilled registers would be: none in Triton 3.7, two of one variant in 3.6 and 3.8.
    assert usage["STACK"] <= 8 and usage["LOCAL"] == 0
    assert usage["REG"] <= 128  # at least four programs of four warps on a multiprocessor
    assert usage["SHARED"] <= 16 << 10


# ----------------------------------------------------------------------------------------------------------- in models


@pytest.mark.long
@pytest.mark.engine
@HEADS
@torch.no_grad()
def test_models_compute_the_same_with_kernels(conv_width, tiny_config, randomize, interpreted, monkeypatch):
    """Each caller passes a kernel what it passes the plain function."""
    model, used = make(tiny_config, randomize, conv_width).eval(), []

    def choose_kernel(name, plain, *arguments, by_time=True):
        used.append(name)
        arguments = [value.as_subclass(torch.Tensor) if isinstance(value, OnGpu) else value for value in arguments]
        return getattr(interpreted, name)(*arguments)

    def run(kind):
        logits = model(pixel_values.as_subclass(kind)).logits.as_subclass(torch.Tensor)
        loss = upsample_cross_entropy(logits, labels)
        return loss, logits, *upsample_argmax(logits, (9, 10), return_confidence=True)

    pixel_values = torch.randn(1, 3, 33, 38, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 5, (1, 9, 7))
    with engine.off():
        plain = run(torch.Tensor)
    for module in ("mix_ffn", "decode_head", "label_map", "cross_entropy"):
        monkeypatch.setattr(f"hf_segformer.engine.{module}.choose", choose_kernel)
    # What a kernel returns passes for a GPU's tensor no more, so each layer's tokens are made to again.
    for layer in model.modules():
        if isinstance(layer, (SegformerMixFFN, SegformerDecodeHead)):
            layer.register_forward_pre_hook(on_gpu)
    with engine.record() as choices:
        actual = run(OnGpu)
    for value, expected in zip(actual, plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    layers = sum(model.config.depths)
    assert used == ["depthwise_gelu"] * layers + ["upsample_add_relu", "upsample_cross_entropy", "upsample_argmax"]
    assert [choice.ran for choice in choices].count("feed_forward_by_kernel") == layers


def on_gpu(module, arguments):
    values, *others = arguments
    if isinstance(values, torch.Tensor):
        return values.as_subclass(OnGpu), *others
    return [value.as_subclass(OnGpu) for value in values], *others


# ------------------------------------------------------------------------------------------------------------ on a GPU


@pytest.fixture
def with_and_without(monkeypatch):
    """Result of a function with kernels, which must have been used without a warning, and without them."""

    def compare(function, *names):
        monkeypatch.setattr(kernel_choice, "_time", lambda run: -next(counter))
        counter = iter(range(1000, 0, -1))  # the kernel is timed first
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            first = function()
            again = function()
        decisions = kernel_choice._decisions
        assert {kind[0] for kind in decisions} == set(names) and all(decisions.values())
        monkeypatch.setenv("HF_SEGFORMER_NO_KERNELS", "1")
        plain = function()
        monkeypatch.delenv("HF_SEGFORMER_NO_KERNELS")
        return first, again, plain

    return compare


@pytest.mark.gpu
@needs_gpu
@needs_triton
@PRECISIONS
@HEADS
def test_inference_on_a_gpu(conv_width, dtype, tiny_config, randomize, with_and_without):
    model: SegformerForSemanticSegmentation = make(tiny_config, randomize, conv_width).eval().cuda().to(dtype)
    pixel_values = torch.randn(2, 3, 97, 131, device="cuda", dtype=dtype)

    def run():
        with torch.inference_mode():
            return model(pixel_values).logits

    first, again, plain = with_and_without(run, "depthwise_gelu", "upsample_add_relu")
    tolerance = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    assert torch.equal(first, again)
    assert (again - plain).abs().max() <= tolerance * plain.abs().max()


@pytest.mark.gpu
@needs_gpu
@needs_triton
@PRECISIONS
@pytest.mark.parametrize("classes", [1, 2, 19, 150])
def test_label_maps_on_a_gpu(classes, dtype, with_and_without):
    logits = torch.randn(2, classes, 33, 47, device="cuda").to(dtype, memory_format=torch.channels_last)

    def run():
        return upsample_argmax(logits, (129, 190), return_confidence=True)

    (labels, confidence), again, (plain_labels, plain_confidence) = with_and_without(run, "upsample_argmax")
    assert torch.equal(labels, again[0]) and torch.equal(confidence, again[1])
    assert (labels != plain_labels).float().mean() <= 1e-3
    assert torch.allclose(confidence, plain_confidence, atol=1e-5)


@pytest.mark.gpu
@needs_gpu
@needs_triton
@PRECISIONS
@pytest.mark.parametrize("classes", [2, 19, 150])
@pytest.mark.parametrize("size", [(129, 190), (20, 31)], ids=str)
def test_loss_on_a_gpu(size, classes, dtype, with_and_without):
    logits, labels, weights = (tensor.cuda() for tensor in loss_inputs(classes, (33, 47), size))
    logits = logits.to(dtype).requires_grad_()

    def run():
        loss, _ = upsample_cross_entropy_sum(logits, labels, class_weights=weights)
        return loss.detach(), *torch.autograd.grad(loss, logits)

    first, again, plain = with_and_without(run, "upsample_cross_entropy")
    assert all(map(torch.equal, first, again))
    assert torch.allclose(again[0], plain[0], rtol=1e-5)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert (again[1] - plain[1]).abs().max() <= tolerance * plain[1].abs().max()


@pytest.mark.gpu
@needs_gpu
@needs_triton
@HEADS
def test_training_step_on_a_gpu(conv_width, tiny_config, randomize, with_and_without):
    model = make(tiny_config, randomize, conv_width).train().cuda()
    pixel_values = torch.randn(2, 3, 64, 96, device="cuda")
    labels = torch.randint(0, 5, (2, 64, 96), device="cuda")

    def run():
        loss = model(pixel_values, labels=labels).loss
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(model.parameters()))])

    _, again, plain = with_and_without(run, "upsample_cross_entropy")
    assert (again - plain).abs().max() <= 5e-3 * plain.abs().max()

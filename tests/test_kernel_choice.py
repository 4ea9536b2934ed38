# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""When GPU kernels are chosen, with CPU tensors that pass for a GPU's."""

import warnings

import pytest
import torch
from transformers.activations import ACT2FN

from hf_segformer import SegformerForSemanticSegmentation, engine
from hf_segformer.engine import kernel_choice
from hf_segformer.engine.kernel_choice import choose
from hf_segformer.modeling_segformer import SegformerDWConv, SegformerMixFFN
from hf_segformer.scores.cross_entropy import upsample_cross_entropy_sum
from hf_segformer.scores.label_map import upsample_argmax
from pretended_gpu import OnGpu


@pytest.fixture(autouse=True)
def no_decisions(monkeypatch):
    monkeypatch.setattr(kernel_choice, "_decisions", {})
    monkeypatch.setattr(kernel_choice, "_reasons", {})


@pytest.fixture
def gpu(monkeypatch):
    """CPU tensors pass for a GPU's; `kernel`, `seconds` and `capturing` may be set."""

    class Fake:
        kernel = staticmethod(lambda x: x + 1)
        seconds = {"kernel": 1.0, "plain": 2.0}
        capturing = False
        calls = []

        def __init__(self):
            self.calls = []

        def run(self, x, **options):
            return choose("fake", self.plain, x, **options)

        def plain(self, x):
            self.calls.append("plain")
            return x + 1

        def call_kernel(self, x):
            self.calls.append("kernel")
            return self.kernel(x)

        def time(self, function):
            self.calls.clear()
            function()
            return self.seconds[self.calls.pop()]

    fake = Fake()
    monkeypatch.setattr(kernel_choice, "_is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(kernel_choice, "_is_supported", lambda device: True)
    monkeypatch.setattr(kernel_choice, "_is_capturing", lambda: fake.capturing)
    monkeypatch.setattr(kernel_choice, "_kernels", lambda: {"fake": fake.call_kernel})
    monkeypatch.setattr(kernel_choice, "_time", fake.time)
    return fake


def used(fake, x, **options):
    """What is called once the decision has been made."""
    fake.run(x, **options)
    fake.calls.clear()
    assert torch.equal(fake.run(x, **options), x + 1) or fake.kernel is not type(fake).kernel
    return fake.calls


def test_the_faster_is_used(gpu):
    x = torch.randn(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert used(gpu, x) == ["kernel"]
        gpu.seconds = {"kernel": 3.0, "plain": 2.0}
        assert used(gpu, x) == ["kernel"]  # decided already
        assert used(gpu, torch.randn(4)) == ["kernel"]  # of the same rounded size
        assert used(gpu, torch.randn(5)) == ["plain"]
        assert used(gpu, torch.randn(3).half()) == ["plain"]
        assert used(gpu, torch.randn(6), by_time=False) == ["plain"]  # decided already


def test_the_loss_is_not_chosen_by_time(gpu):
    gpu.seconds = {}
    gpu.kernel = lambda x: x + 1.0001  # within rounding, but other bits
    x = torch.ones(3)
    assert torch.equal(gpu.run(x, by_time=False), x + 1.0001)  # at the first use as later
    assert torch.equal(gpu.run(x, by_time=False), x + 1.0001)
    assert gpu.calls == ["plain", "kernel", "kernel"]


def broken(x):
    raise RuntimeError("out of shared memory")


@pytest.mark.parametrize("by_time", [True, False])
@pytest.mark.parametrize(
    "kernel, reason",
    [
        (lambda x: x + 1.1, "differs by up to 0.1, its values reach 2"),
        (lambda x: (x + 1)[1:], "differs"),
        (lambda x: (x + 1).double(), "differs"),
        (lambda x: x * float("nan"), "differs by up to nan"),
        (lambda x: None, "differs"),
        (broken, "RuntimeError: out of shared memory"),
    ],
)
def test_a_kernel_that_fails_is_warned_about_once(kernel, reason, by_time, gpu):
    gpu.kernel, x = kernel, torch.ones(3)
    with pytest.warns(UserWarning, match=rf"kernel fake is not used for torch.float32 .*\(3,\).*{reason}") as caught:
        assert torch.equal(gpu.run(x, by_time=by_time), x + 1)
    assert len(caught) == 1
    assert list(kernel_choice._reasons) == list(kernel_choice._decisions)
    assert reason in next(iter(kernel_choice._reasons.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gpu.calls.clear()
        assert torch.equal(gpu.run(x, by_time=by_time), x + 1)
    assert gpu.calls == ["plain"]


def test_agreement():
    agrees, nan, inf = kernel_choice._agrees, float("nan"), float("inf")
    assert agrees(torch.tensor([1.0, nan, inf]), torch.tensor([1.001, nan, inf]))
    assert not agrees(torch.tensor([1.0, nan]), torch.tensor([1.0, 2.0]))
    assert not agrees(torch.tensor([1.0, 2.0]), torch.tensor([1.0, nan]))
    assert not agrees(torch.tensor([1.0, inf]), torch.tensor([1.0, -inf]))
    assert agrees((torch.ones(2), None), (torch.ones(2), None)) and not agrees((torch.ones(2), None), (torch.ones(2),))
    labels = torch.zeros(5000, dtype=torch.long)
    other = labels.clone()
    other[:4] = 1
    assert agrees(labels, other)
    other[:10] = 1
    assert not agrees(labels, other)


def test_how_much_results_differ():
    tell, ones = kernel_choice._by_how_much, torch.ones(4)
    assert tell((ones, ones), (ones, 3 * ones)) == " by up to 2, its values reach 1"
    assert tell((ones.long(), None), (torch.tensor([1, 1, 0, 1]), None)) == " at 0.25 of the pixels"
    assert tell((ones, None), (ones, ones)) == tell((ones,), (ones, ones)) == tell(ones, ones[1:]) == ""


def test_when_no_kernel_may_be_used(gpu, monkeypatch):
    x = torch.randn(3)
    fails = {
        "variable": lambda patch: patch.setenv("HF_SEGFORMER_NO_KERNELS", "1"),
        "deterministic": lambda patch: patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True),
        "cudnn": lambda patch: patch.setattr(torch.backends.cudnn, "deterministic", True),
        "autocast": lambda patch: patch.setattr(torch, "is_autocast_enabled", lambda device: True),
        "tracing": lambda patch: patch.setattr(kernel_choice, "must_trace", lambda tensor: True),
        "unsupported": lambda patch: patch.setattr(kernel_choice, "_is_supported", lambda device: False),
        "no Triton": lambda patch: patch.setattr(kernel_choice, "_kernels", dict),
    }
    for name, fail in fails.items():
        with monkeypatch.context() as patch:
            fail(patch)
            assert used(gpu, x) == ["plain"], name
    assert used(gpu, x.double()) == ["plain"] and used(gpu, x[:0]) == ["plain"]
    assert not kernel_choice._decisions
    assert used(gpu, x) == ["kernel"]


@pytest.mark.engine
def test_explanations_name_kernels_and_reasons(gpu, monkeypatch):
    @engine.accelerated
    def explained(x):
        return gpu.run(x)

    def notes(x):
        with engine.record() as choices:
            explained(x)
        return choices[0].notes

    x = torch.randn(3)
    assert notes(x) == ["kernel fake: faster (1 ms against 2 ms)"] == notes(x)  # when it is decided and later
    assert notes(x.double()) == ["no kernel fake: there are none for torch.float64"]
    assert notes(x[:0]) == ["no kernel fake: there are no values, or they lie on several devices"]
    gpu.seconds = {"kernel": 3.0, "plain": 2.0}
    assert notes(torch.randn(9)) == ["no kernel fake: slower (3 ms against 2 ms)"]
    gpu.kernel = broken
    with pytest.warns(UserWarning, match="out of shared memory"):
        assert notes(torch.randn(40)) == ["no kernel fake: RuntimeError: out of shared memory"]
    gpu.capturing = True
    assert notes(torch.randn(400)) == ["no kernel fake: a CUDA graph is being captured"]
    monkeypatch.setenv("HF_SEGFORMER_NO_KERNELS", "1")
    assert notes(x) == ["no kernel fake: HF_SEGFORMER_NO_KERNELS is 1"]
    monkeypatch.delenv("HF_SEGFORMER_NO_KERNELS")
    kernel_choice.forget()
    gpu.kernel, gpu.capturing = type(gpu).kernel, False
    assert notes(x) == ["no kernel fake: slower (3 ms against 2 ms)"]
    monkeypatch.setattr(kernel_choice, "_is_on_gpu", lambda tensor: False)
    assert notes(x) == []  # nothing to say on a CPU


def test_a_compiler_traces_the_plain_way(gpu):
    x = torch.randn(3)
    compiled = torch.compile(gpu.run, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), x + 1) and "kernel" not in gpu.calls and not kernel_choice._decisions


def test_nothing_is_decided_while_a_graph_is_captured(gpu):
    x, gpu.capturing = torch.randn(3), True
    assert used(gpu, x) == ["plain"] and not kernel_choice._decisions
    gpu.capturing = False
    gpu.run(x)
    gpu.capturing = True
    assert used(gpu, x) == ["kernel"]


@pytest.mark.engine
def test_a_cpu_asks_nothing(monkeypatch):
    for name in ("no_kernels", "_kernels", "_decide"):
        monkeypatch.setattr(kernel_choice, name, None)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 8, 9))
    with engine.record() as choices:
        upsample_argmax(logits, (8, 9), return_confidence=True)
        upsample_cross_entropy_sum(logits.requires_grad_(), labels)[0].backward()
    assert [choice.ran for choice in choices] == ["label_map_in_bands", "cross_entropy_in_bands"]


# ------------------------------------------------------------------------------------------------------------- callers


def recording(calls):
    """A stand-in for `choose` that takes the plain way."""

    def record(name, plain, *arguments, by_time=True):
        calls.append((name, by_time))
        return plain(*arguments)

    return record


@pytest.fixture
def asked(monkeypatch):
    """Names of the kernels that were asked for; PyTorch's operations are taken."""
    calls = []
    for module in ("mix_ffn", "decode_head"):
        monkeypatch.setattr(f"hf_segformer.engine.{module}.choose", recording(calls))
    return calls


class OtherDWConv(SegformerDWConv):
    def forward(self, tokens, size):
        return super().forward(tokens, size)


@pytest.mark.engine
@torch.no_grad()
def test_which_feed_forward_layers_may_use_the_kernel(tiny_config, asked):
    tokens = torch.randn(1, 16, 8).as_subclass(OnGpu)

    def allowed(change=lambda layer: None, tokens=tokens):
        layer = SegformerMixFFN(tiny_config(), 0).eval()
        change(layer)
        asked.clear()
        with engine.record() as choices:
            layer(tokens, (4, 4))
        return choices[0].ran == "feed_forward_by_kernel" and asked == [("depthwise_gelu", True)]

    assert allowed() and not allowed(tokens=tokens.as_subclass(torch.Tensor))
    assert not allowed(lambda layer: layer.dwconv.register_forward_hook(lambda *_: None))
    assert not allowed(lambda layer: layer.dwconv.dwconv.register_forward_pre_hook(lambda *_: None))
    assert not allowed(lambda layer: layer.intermediate_act_fn.register_forward_hook(lambda *_: None))
    assert not allowed(lambda layer: setattr(layer, "intermediate_act_fn", ACT2FN["gelu_new"]))
    assert not allowed(lambda layer: setattr(layer, "dwconv", OtherDWConv(32)))
    assert not allowed(lambda layer: setattr(layer.dwconv.dwconv, "padding_mode", "reflect"))
    assert not allowed(lambda layer: setattr(layer.dwconv.dwconv, "dilation", (2, 2)))
    assert not allowed(lambda layer: setattr(layer.dwconv.dwconv, "bias", None))
    with torch.autocast("cpu", torch.bfloat16):  # the convolution gets another precision than its weight's
        assert not allowed()
    with torch.enable_grad():
        assert not allowed()


@pytest.mark.engine
@torch.no_grad()
def test_which_decode_heads_may_use_the_kernel(tiny_config, randomize, asked):
    def allowed(stages=4, change=lambda head: None, kind=OnGpu):
        sizes = {"hidden_sizes": [8, 16, 24, 32, 40], "num_attention_heads": [1, 2, 3, 4, 5], "depths": [1] * 5}
        sizes |= {"sr_ratios": [8, 4, 2, 1, 1], "patch_sizes": [7, 3, 3, 3, 3], "strides": [4, 2, 2, 2, 2]}
        sizes["mlp_ratios"] = [4] * 5
        fields = {name: values[:stages] for name, values in sizes.items()}
        config = tiny_config(**fields, num_encoder_blocks=stages)
        head = randomize(SegformerForSemanticSegmentation(config)).eval().decode_head
        change(head)
        maps = [torch.randn(1, 8 * (stage + 1), 8 >> stage or 1, 8).as_subclass(kind) for stage in range(stages)]
        asked.clear()
        head(maps)
        return asked == [("upsample_add_relu", True)]

    assert allowed() and allowed(2) and allowed(3)
    assert not allowed(1) and not allowed(5)
    assert not allowed(kind=torch.Tensor)
    assert not allowed(change=lambda head: head.activation.register_forward_hook(lambda *_: None))
    assert not allowed(change=lambda head: head.batch_norm.register_forward_hook(lambda *_: None))
    assert not allowed(change=lambda head: head.linear_fuse.register_forward_hook(lambda *_: None))
    with torch.enable_grad():
        assert not allowed()


@pytest.mark.engine
def test_the_loss_asks_for_no_timing_and_only_with_several_classes(monkeypatch):
    calls = []
    monkeypatch.setattr("hf_segformer.engine.cross_entropy.choose", recording(calls))
    for classes in (1, 2):
        logits, labels = torch.randn(2, classes, 3, 4), torch.randint(0, classes, (2, 5, 6))
        upsample_cross_entropy_sum(logits, labels)
        upsample_cross_entropy_sum(logits.requires_grad_(), labels)
    assert calls == [("upsample_cross_entropy", False)] * 2

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""When GPU kernels are chosen, with CPU tensors that pass for a GPU's."""

import warnings

import pytest
import torch
from transformers.activations import ACT2FN

from hf_segformer import kernel_choice_segformer
from hf_segformer.encoder_segformer import SegformerMixFFN
from hf_segformer.functional_segformer import upsample_argmax, upsample_cross_entropy_sum
from hf_segformer.kernel_choice_segformer import choose
from textbook_head import make


@pytest.fixture(autouse=True)
def no_decisions(monkeypatch):
    monkeypatch.setattr(kernel_choice_segformer, "_decisions", {})
    monkeypatch.setattr(kernel_choice_segformer, "_reasons", {})


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
    monkeypatch.setattr(kernel_choice_segformer, "_is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(kernel_choice_segformer, "_is_supported", lambda device: True)
    monkeypatch.setattr(kernel_choice_segformer, "_is_capturing", lambda: fake.capturing)
    monkeypatch.setattr(kernel_choice_segformer, "_kernels", lambda: {"fake": fake.call_kernel})
    monkeypatch.setattr(kernel_choice_segformer, "_time", fake.time)
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
    assert list(kernel_choice_segformer._reasons) == list(kernel_choice_segformer._decisions)
    assert reason in kernel_choice_segformer._reasons.popitem()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gpu.calls.clear()
        assert torch.equal(gpu.run(x, by_time=by_time), x + 1)
    assert gpu.calls == ["plain"]


def test_agreement():
    agrees, nan, inf = kernel_choice_segformer._agrees, float("nan"), float("inf")
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
    tell, ones = kernel_choice_segformer._by_how_much, torch.ones(4)
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
        "tracing": lambda patch: patch.setattr(kernel_choice_segformer, "must_trace", lambda tensor: True),
        "unsupported": lambda patch: patch.setattr(kernel_choice_segformer, "_is_supported", lambda device: False),
        "no Triton": lambda patch: patch.setattr(kernel_choice_segformer, "_kernels", dict),
    }
    for name, fail in fails.items():
        with monkeypatch.context() as patch:
            fail(patch)
            assert used(gpu, x) == ["plain"], name
    assert used(gpu, x.double()) == ["plain"] and used(gpu, x[:0]) == ["plain"]
    assert not kernel_choice_segformer._decisions
    assert used(gpu, x) == ["kernel"]


def test_nothing_is_decided_while_a_graph_is_captured(gpu):
    x, gpu.capturing = torch.randn(3), True
    assert used(gpu, x) == ["plain"] and not kernel_choice_segformer._decisions
    gpu.capturing = False
    gpu.run(x)
    gpu.capturing = True
    assert used(gpu, x) == ["kernel"]


def test_a_cpu_asks_nothing(monkeypatch):
    for name in ("_may_use_kernels", "_kernels", "_decide"):
        monkeypatch.setattr(kernel_choice_segformer, name, None)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 8, 9))
    upsample_argmax(logits, (8, 9), return_confidence=True)
    upsample_cross_entropy_sum(logits.requires_grad_(), labels)[0].backward()


# ------------------------------------------------------------------------------------------------------------- callers


class OnGpu(torch.Tensor):
    """Passes for a tensor on a GPU, for guards that look at nothing else first."""

    is_cuda = True


@torch.no_grad()
def test_which_feed_forward_layers_may_use_the_kernel(tiny_config):
    tokens = torch.randn(1, 4, 4, 32).as_subclass(OnGpu)

    def allowed(change=lambda layer: None, tokens=tokens):
        layer = SegformerMixFFN(tiny_config(), 0).eval()
        change(layer)
        return layer._may_use_kernel(tokens)

    assert allowed() and not allowed(tokens=tokens.as_subclass(torch.Tensor))
    assert not allowed(lambda layer: layer.dwconv.register_forward_hook(print))
    assert not allowed(lambda layer: layer.dwconv.dwconv.register_forward_pre_hook(print))
    assert not allowed(lambda layer: layer.intermediate_act_fn.register_forward_hook(print))
    assert not allowed(lambda layer: setattr(layer, "intermediate_act_fn", ACT2FN["gelu_new"]))
    assert not allowed(lambda layer: setattr(layer.dwconv.dwconv, "padding_mode", "reflect"))
    assert not allowed(lambda layer: setattr(layer.dwconv.dwconv, "dilation", (2, 2)))
    assert not allowed(lambda layer: setattr(layer.dwconv.dwconv, "bias", None))
    assert not allowed(lambda layer: layer.half())
    with torch.enable_grad():
        assert not allowed()


@torch.no_grad()
def test_which_decode_heads_may_use_the_kernel(tiny_config, randomize):
    head = make(tiny_config, randomize).eval().decode_head
    summands = [torch.randn(1, 4, 4, 20).as_subclass(OnGpu) for _ in range(5)]
    assert head._may_use_kernel(summands[:4]) and head._may_use_kernel(summands[:2])
    assert not head._may_use_kernel(summands) and not head._may_use_kernel(summands[:1])
    assert not head._may_use_kernel([summand.as_subclass(torch.Tensor) for summand in summands[:4]])
    with torch.enable_grad():
        assert not head._may_use_kernel(summands[:4])
    head.activation.register_forward_hook(print)
    assert not head._may_use_kernel(summands[:4])


def recording(calls):
    """A stand-in for `choose` that takes the plain way."""

    def record(name, plain, *arguments, by_time=True):
        calls.append((name, by_time))
        return plain(*arguments)

    return record


def test_the_loss_asks_for_no_timing_and_only_with_several_classes(monkeypatch):
    calls = []
    monkeypatch.setattr("hf_segformer.functional_segformer.choose", recording(calls))
    for classes in (1, 2):
        logits, labels = torch.randn(2, classes, 3, 4), torch.randint(0, classes, (2, 5, 6))
        upsample_cross_entropy_sum(logits, labels)
        upsample_cross_entropy_sum(logits.requires_grad_(), labels)
    assert calls == [("upsample_cross_entropy", False)] * 2

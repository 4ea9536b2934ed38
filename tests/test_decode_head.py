# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The decode heads: equal to the textbook form without its concatenation, and only where weights tell the truth."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine_paths import runs
from hf_segformer import SegformerForSemanticSegmentation, engine
from hf_segformer.engine.eligibility import no_plain
from largest_tensor import LargestTensor
from oracles import run_oracle
from textbook_head import DECODE, HEADS, make, textbook


@HEADS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "batch, size", [(2, (33, 27)), (1, (9, 7))], ids=["many tokens", "fewer tokens than channels"]
)
def test_equals_the_textbook_form(batch, size, conv_width, training, tiny_config, randomize):
    head = make(tiny_config, randomize, conv_width).double().train(training).decode_head
    halves = [[-(-side // (1 << stage)) for side in size] for stage in range(4)]
    sizes = [(batch, channels, *half) for channels, half in zip((8, 16, 24, 32), halves, strict=True)]
    maps = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    expected = textbook(head, maps, conv_width is not None)
    with runs({DECODE: "head_training_in_bands" if training else "composed_head"}):
        logits = head(maps)
    with engine.off():
        as_written = head(maps)
    weights, parameters = torch.randn_like(expected), [*maps, *head.parameters()]
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for result in (logits, as_written):
        assert torch.allclose(result, expected, rtol=1e-10, atol=1e-10)
        for ours, gradient in zip(torch.autograd.grad((result * weights).sum(), parameters), theirs, strict=True):
            assert torch.allclose(ours, gradient, rtol=1e-8, atol=1e-9)


@HEADS
@pytest.mark.parametrize("batch, size", [(2, (33, 27)), (1, (9, 7))], ids=str)
def test_inference_equals_the_textbook_form(batch, size, conv_width, tiny_config, randomize):
    head = make(tiny_config, randomize, conv_width).double().eval().decode_head
    halves = [[-(-side // (1 << stage)) for side in size] for stage in range(4)]
    maps = [torch.randn(batch, width, *half).double() for width, half in zip((8, 16, 24, 32), halves, strict=True)]
    with torch.no_grad():
        with runs({DECODE: "head_in_bands"}):
            logits = head(maps)
        assert torch.allclose(logits, textbook(head, maps, conv_width is not None), rtol=1e-10, atol=1e-10)


@pytest.mark.engine
@HEADS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_never_builds_the_concatenation(conv_width, training, tiny_config, randomize):
    head = make(tiny_config, randomize, conv_width, num_labels=3).train(training).decode_head
    maps = [torch.randn(2, channels, 64 >> stage, 64 >> stage) for stage, channels in enumerate((8, 16, 24, 32))]
    concatenation = 2 * 4 * 20 * 64 * 64
    with LargestTensor() as plain:
        head(maps).sum().backward()
    assert plain.numel <= concatenation // 4
    with LargestTensor() as control, engine.off():
        head(maps)
    assert control.numel >= concatenation


def logits_of(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        pixel_values = torch.randn(2, 3, 49, 65, generator=generator)
        return model.eval()(pixel_values.to(model.dtype)).logits.float()


MODULES = ["linear_c.0", "linear_c.2", "linear_c.0.proj", "linear_c.3.proj", "linear_fuse", "batch_norm", "classifier"]


@HEADS
@pytest.mark.parametrize("name", MODULES)
def test_forward_hooks_take_effect(name, conv_width, tiny_config, randomize):
    model = make(tiny_config, randomize, conv_width)
    with runs({DECODE: "head_in_bands"}):
        before = logits_of(model)
    handle = model.decode_head.get_submodule(name).register_forward_hook(lambda module, args, output: 2 * output + 1)
    hooked = logits_of(model)
    assert not torch.allclose(hooked, before, atol=1e-3)
    # The same change made to the weights, where that is possible, is an independent answer.
    handle.remove()
    assert torch.equal(logits_of(model), before)
    module = model.decode_head.get_submodule(name)
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
        with torch.no_grad():
            module.weight.mul_(2)
            module.bias.mul_(2).add_(1)
        assert torch.allclose(logits_of(model), hooked, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["linear_c.1.proj", "linear_fuse"])
def test_pre_hooks_and_replaced_forwards_take_effect(name, tiny_config, randomize):
    model = make(tiny_config, randomize)
    with runs({DECODE: "head_in_bands"}):
        before = logits_of(model)
    module = model.decode_head.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda module, args: (3 * args[0],))
    hooked = logits_of(model)
    handle.remove()
    original = module.forward
    module.forward = lambda x: original(3 * x)
    assert torch.allclose(logits_of(model), hooked, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(hooked, before, atol=1e-3)
    del module.forward
    assert torch.equal(logits_of(model), before)


@HEADS
@pytest.mark.parametrize(
    "targets",
    [["query"], ["key", "value"], ["dense"], ["dense1", "dense2"], ["proj"], ["linear_fuse"], ["classifier"]],
    ids=lambda targets: "+".join(targets),
)
def test_lora_takes_effect_on_every_layer(targets, conv_width, tiny_config, randomize):
    peft = pytest.importorskip("peft")
    model = make(tiny_config, randomize, conv_width)
    before = logits_of(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    with_adapter = logits_of(adapted)
    assert not torch.allclose(with_adapter, before, atol=1e-3)
    merged = adapted.merge_and_unload()
    assert torch.allclose(logits_of(merged), with_adapter, rtol=1e-3, atol=1e-3)


def test_quantised_layers_are_called(tiny_config, randomize):
    class Rounded(nn.Linear):
        """A weight-only quantised layer: `weight` is not what it computes with."""

        def forward(self, x):
            step = self.weight.abs().max() / 3
            return F.linear(x, (self.weight / step).round() * step, self.bias)

    model = make(tiny_config, randomize)
    before = logits_of(model)
    for project in model.decode_head.linear_c:
        layer = Rounded(project.proj.in_features, project.proj.out_features)
        layer.load_state_dict(project.proj.state_dict())
        project.proj = layer
    quantised = logits_of(model)
    assert not torch.allclose(quantised, before, atol=1e-3)
    with torch.no_grad():
        for project in model.decode_head.linear_c:
            step = project.proj.weight.abs().max() / 3
            project.proj.weight.copy_((project.proj.weight / step).round() * step)
            project.proj.__class__ = nn.Linear
    assert torch.allclose(logits_of(model), quantised, rtol=1e-4, atol=1e-4)


def test_dynamic_quantisation_runs(tiny_config, randomize):
    model = make(tiny_config, randomize)
    before = logits_of(model)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    pixel_values = torch.randn(2, 3, 49, 65, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = quantised(pixel_values).logits
    assert 0 < (logits - before).abs().max() < 0.3 * before.abs().max()


def test_parametrised_weights_take_effect(tiny_config, randomize):
    class Tripled(nn.Module):
        def forward(self, weight):
            return 3 * weight

    model = make(tiny_config, randomize)
    expected = make(tiny_config, randomize)
    with runs({DECODE: "head_in_bands"}):
        logits_of(model)
    with torch.no_grad():
        for name in ("linear_c.1.proj", "linear_fuse"):
            expected.decode_head.get_submodule(name).weight.mul_(3)
            nn.utils.parametrize.register_parametrization(model.decode_head.get_submodule(name), "weight", Tripled())
    assert torch.allclose(logits_of(model), logits_of(expected), rtol=1e-4, atol=1e-4)


@HEADS
def test_weights_changed_in_place_take_effect_at_once(conv_width, tiny_config, randomize):
    model = make(tiny_config, randomize, conv_width)
    before = logits_of(model)
    other = randomize(make(tiny_config, randomize, conv_width), seed=1)
    model.load_state_dict(other.state_dict())
    assert torch.equal(logits_of(model), logits_of(other))
    assert not torch.allclose(logits_of(model), before, atol=1e-3)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(torch.randn(2, 3, 32, 32), labels=torch.randint(0, 5, (2, 32, 32))).loss.backward()
    optimizer.step()
    fresh = make(tiny_config, randomize, conv_width)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(model), logits_of(fresh))
    assert not torch.allclose(logits_of(model), logits_of(other), atol=1e-4)

    half = logits_of(model.to(torch.bfloat16))
    assert not torch.equal(half, logits_of(fresh))
    assert torch.equal(half, logits_of(fresh.to(torch.bfloat16)))


def test_functional_call_takes_effect(tiny_config, randomize):
    model = make(tiny_config, randomize).eval()
    other = randomize(make(tiny_config, randomize), seed=4).eval()
    pixel_values = torch.randn(1, 3, 32, 48)
    replaced = torch.func.functional_call(model, dict(other.state_dict()), (pixel_values,))
    assert torch.allclose(replaced.logits, other(pixel_values).logits, rtol=1e-5, atol=1e-5)


def test_sharded_weights_are_not_plain():
    layer = nn.Linear(4, 6)
    assert no_plain(layer, nn.Linear, "it") == ""
    layer.weight.data = layer.weight.data.flatten()[:0]  # as ZeRO-3 leaves it between forward passes
    assert no_plain(layer, nn.Linear, "it") == "the weight of it is sharded or packed"
    assert "it is a SyncBatchNorm" in no_plain(nn.SyncBatchNorm(4), nn.BatchNorm2d, "it")


def test_dropout_mode(tiny_config):
    for mode, kind in (("element", nn.Dropout), ("channel", nn.Dropout2d)):
        head = SegformerForSemanticSegmentation(tiny_config(classifier_dropout_mode=mode)).decode_head
        assert type(head.dropout) is kind


LOAD_EVERYWHERE = """
import sys
import transformers
from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation, SegformerModel
assert "hf_segformer" not in sys.modules
for options in ({}, {"ignore_mismatched_sizes": True}):
    for loader in (AutoModelForSemanticSegmentation, SegformerForSemanticSegmentation):
        try:
            loader.from_pretrained(sys.argv[1], **options)
        except Exception as error:
            print("refused", transformers.__version__.split(".")[0], type(error).__name__)
        else:
            print("loaded")
"""


@pytest.mark.parametrize("version", ["4", "5"])
def test_builtin_classes_refuse_the_convolutional_head(version, tiny_config, randomize, tmp_path):
    import subprocess
    import sys

    make(tiny_config, randomize, 20).save_pretrained(tmp_path)
    if version == "4":
        printed = run_oracle("stock4", LOAD_EVERYWHERE, tmp_path)
    else:
        command = [sys.executable, "-W", "ignore", "-c", LOAD_EVERYWHERE, str(tmp_path)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for line in printed.splitlines() if line.startswith(("refused", "loaded"))]
    assert len(lines) == 4
    assert all(line.startswith(f"refused {version}") for line in lines), printed


def test_convolutional_head_round_trips(tiny_config, randomize, tmp_path):
    from transformers import AutoModelForSemanticSegmentation

    model = make(tiny_config, randomize, 20)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(logits_of(loaded), logits_of(model))

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Models that somebody changed, or calls in an unusual way: the engine gives what the textbook gives, or stays out."""

import functools
import threading

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_segformer import SegformerForSemanticSegmentation, engine, modeling_segformer


@pytest.fixture
def model(tiny_config, randomize):
    config = tiny_config(classifier_dropout_prob=0.0, drop_path_rate=0.0)  # nothing at random
    model = randomize(SegformerForSemanticSegmentation(config)).eval()
    model.set_attn_implementation("eager")  # PyTorch's own has no forward-mode derivative
    return model


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 70, 54, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def without_bfloat16(monkeypatch):
    """As on a processor with AVX2 alone: what PyTorch says of this one."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


def assert_is_textbook(call, rtol=1e-3, atol=1e-4):
    """What `call()` returns is the same with the engine on and off."""
    actual = call()
    with engine.off():
        expected = call()
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def logits_and_gradients(model, pixel_values):
    with torch.no_grad():
        inference = model(pixel_values).logits
    pixel_values = pixel_values.clone().requires_grad_()
    logits = model(pixel_values).logits
    wanted = [pixel_values, *(weight for weight in model.decode_head.parameters() if weight.requires_grad)]
    return inference, logits, *torch.autograd.grad(logits.square().mean(), wanted)


# ------------------------------------------------------------------------------------------------------ changed layers


def fused_with_bias(head):
    head.linear_fuse = nn.Conv2d(head.linear_fuse.in_channels, head.linear_fuse.out_channels, 1)
    nn.init.normal_(head.linear_fuse.bias)


def norm_folded(head):
    head.linear_fuse = nn.utils.fuse_conv_bn_eval(head.linear_fuse, head.batch_norm)
    head.batch_norm = nn.Identity()


def projected_without_bias(head):
    head.linear_c[1].proj = nn.Linear(
        head.linear_c[1].proj.in_features, head.linear_c[1].proj.out_features, bias=False
    )


def pruned(head):
    """A stage's projection is narrower than the others'."""
    width = head.linear_fuse.out_channels
    head.linear_c[1].proj = nn.Linear(head.linear_c[1].proj.in_features, width - 5)
    head.linear_fuse = nn.Conv2d(head.linear_fuse.in_channels - 5, width, 1, bias=False)


def pruned_of_another_class(head):
    pruned(head)
    layer = head.linear_c[1].proj
    head.linear_c[1] = nn.Sequential(nn.Conv2d(layer.in_features, layer.out_features, 1), nn.ReLU())


def norm_without_parameters(head):
    head.batch_norm = nn.BatchNorm2d(head.linear_fuse.out_channels, affine=False)


@pytest.mark.parametrize(
    "change",
    [fused_with_bias, norm_folded, projected_without_bias, pruned, pruned_of_another_class, norm_without_parameters],
)
def test_a_changed_head_is_computed_as_it_is(change, model, pixel_values):
    change(model.decode_head)
    assert_is_textbook(lambda: logits_and_gradients(model, pixel_values))


def norm_without_statistics(norm):
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def norm_without_count(norm):
    norm.num_batches_tracked = None


def norm_without_momentum(norm):
    norm.momentum = None


@pytest.mark.parametrize("change", [norm_without_statistics, norm_without_count, norm_without_momentum])
@pytest.mark.parametrize("training", [False, True])
def test_a_changed_norm_is_computed_as_it_is(change, training, model, pixel_values):
    change(model.decode_head.batch_norm)
    assert_is_textbook(lambda: logits_and_gradients(model.train(training), pixel_values))


@pytest.mark.engine
def test_a_missing_weight_is_named(model, pixel_values):
    norm_without_parameters(model.decode_head)
    with torch.no_grad():
        [head] = [c for c in engine.explain(model, pixel_values) if c.function == "SegformerDecodeHead.decode"]
    assert head.ran == "composed_head" and head.refused["head_in_bands"] == "batch_norm has no weight"


class ByItsMean(nn.Module):
    """An activation that looks at the whole map."""

    def forward(self, hidden):
        return hidden / hidden.abs().mean(dim=1, keepdim=True)


@pytest.mark.parametrize("activation", [ByItsMean, lambda: nn.Softmax(-1), nn.GLU, nn.Tanh])
def test_an_activation_may_look_at_more_than_an_element(activation, model, pixel_values):
    for ffn in (module for module in model.modules() if isinstance(module, modeling_segformer.SegformerMixFFN)):
        ffn.intermediate_act_fn = activation()
        if activation is nn.GLU:
            ffn.dense2 = nn.Linear(ffn.dense2.in_features // 2, ffn.dense2.out_features)
    assert_is_textbook(lambda: logits_and_gradients(model, pixel_values))


def doubled(forward):
    @functools.wraps(forward)
    def double(*arguments, **keywords):
        return 2 * forward(*arguments, **keywords)

    return double


@pytest.mark.parametrize(
    "cls",
    [
        modeling_segformer.SegformerDWConv,
        modeling_segformer.SegformerMLP,
        modeling_segformer.SegformerMixFFN,
        *(nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout),
    ],
)
def test_a_forward_wrapped_in_its_class_is_called(cls, model, pixel_values, monkeypatch):
    monkeypatch.setattr(cls, "forward", doubled(cls.forward))
    assert_is_textbook(lambda: logits_and_gradients(model, pixel_values))


@pytest.mark.engine
def test_a_replaced_method_is_named(model, pixel_values, monkeypatch):
    mix_ffn = modeling_segformer.SegformerMixFFN
    monkeypatch.setattr(mix_ffn, "forward", doubled(mix_ffn.forward))
    monkeypatch.setattr(nn.ReLU, "forward", doubled(nn.ReLU.forward))
    with torch.no_grad():
        choices = {choice.function: choice.refused for choice in engine.explain(model, pixel_values)}
    assert choices["SegformerMixFFN.forward"]["feed_forward_in_bands"] == (
        "the forward of the class SegformerMixFFN was replaced"
    )
    assert choices["SegformerDecodeHead.decode"]["head_in_bands"] == (
        "the forward of the activation's class ReLU was replaced"
    )


def test_hooks_of_all_modules_are_called(model, pixel_values):
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, _, output: 2 * output if isinstance(module, (nn.Linear, nn.Conv2d)) else None
    )
    try:
        assert_is_textbook(lambda: logits_and_gradients(model, pixel_values), atol=1e-3)
    finally:
        hook.remove()


def test_another_attention_may_be_named_sdpa(model, pixel_values, monkeypatch):
    def nothing(module, query, *_, **__):
        return torch.zeros_like(query.transpose(1, 2)), None

    model.set_attn_implementation("sdpa")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", nothing)
    model.bfloat16()
    with torch.no_grad():
        assert_is_textbook(lambda: (model(pixel_values.bfloat16()).logits,), rtol=0.1, atol=0.1)


def test_arguments_may_come_by_name_in_any_order(model):
    attention = model.segformer.encoder.block[0][0].attention.self
    tokens = torch.randn(2, 80, attention.query.in_features)
    with torch.no_grad():
        assert_is_textbook(lambda: attention(output_attentions=True, size=(8, 10), tokens=tokens))


# ------------------------------------------------------------------------- other derivatives, other ways to be watched

PARTS = [
    "decode_head.",
    "decode_head.classifier.bias",
    "decode_head.linear_c.2",
    "block.1.0.mlp.dense2",
    "block.1.0.attention.self.query",
]


@pytest.fixture(params=PARTS)
def weights(request, model):
    return {name: weight.detach() for name, weight in model.named_parameters() if request.param in name}


@pytest.mark.parametrize("gradients", [False, True])
def test_weights_alone_are_mapped(gradients, weights, model, pixel_values):
    stacked = {name: torch.stack([weight, weight + 0.1]) for name, weight in weights.items()}

    def logits(weights):
        return torch.func.functional_call(model, weights, pixel_values).logits

    with torch.set_grad_enabled(gradients):
        assert_is_textbook(lambda: (torch.func.vmap(logits)(stacked),))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_weights_alone_have_tangents(gradients, training, weights, model, pixel_values):
    model.train(training)

    def logits_and_tangents():
        with forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(weight, weight.sin()) for name, weight in weights.items()}
            return forward_ad.unpack_dual(torch.func.functional_call(model, duals, pixel_values).logits)

    with torch.set_grad_enabled(gradients):
        assert logits_and_tangents().tangent is not None
        assert_is_textbook(logits_and_tangents)


def test_operations_are_counted_as_in_the_textbook(model, pixel_values):
    counts = []
    for context in (torch.no_grad(), engine.off()):
        with context, FlopCounterMode(display=False) as counter:
            model(pixel_values)
        counts.append(counter.get_total_flops())
    assert 0.5 * counts[1] < counts[0] <= counts[1]


# ------------------------------------------------------------------------------- bfloat16 without instructions for it


@pytest.mark.parametrize("conv_width", [None, 20], ids=["mlp", "conv"])
def test_statistics_of_training_mode_are_kept(conv_width, tiny_config, pixel_values, without_bfloat16):
    model = SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=conv_width)).bfloat16().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    with torch.no_grad():
        model(pixel_values.bfloat16())
    assert before and not any(torch.equal(model.get_buffer(name), buffer) for name, buffer in before.items())


class InBfloat16(nn.Linear):
    """A layer that wants to have bfloat16."""

    def forward(self, tokens):
        assert self.weight.dtype == torch.bfloat16
        return super().forward(tokens.bfloat16())


def test_a_layer_may_want_bfloat16(model, pixel_values, without_bfloat16):
    model.segformer.encoder.block[1][0].attention.self.query.__class__ = InBfloat16
    model.bfloat16()
    with torch.no_grad():
        assert model(pixel_values.bfloat16()).logits.dtype == torch.bfloat16


class Sharded(modeling_segformer.SegformerLayer):
    """Has its modules made otherwise, as the classes that `fully_shard` gives to modules do."""

    def __new__(cls, *arguments, **keywords):
        raise TypeError("not to be made")


Sharded.__module__ = "torch.distributed.fsdp"


def test_a_layer_may_be_sharded(model, pixel_values, without_bfloat16):
    model.segformer.encoder.block[1][0].__class__ = Sharded
    model.bfloat16()
    with torch.no_grad():
        assert_is_textbook(lambda: (model(pixel_values.bfloat16()).logits,), rtol=0.1, atol=0.1)


# ------------------------------------------------------------------------------------------------------------- explain


def test_records_of_threads_may_overlap(model, pixel_values):
    inside, counts = threading.Barrier(2, timeout=20), {}

    def explain(last):
        with engine.record(model) as choices:
            inside.wait()
            with torch.no_grad():
                model(pixel_values)
            inside.wait()
            if last:
                first.join(20)
        counts[last] = len(choices)

    first, second = (threading.Thread(target=explain, args=(last,)) for last in (False, True))
    for thread in (first, second):
        thread.start()
    for thread in (first, second):
        thread.join(20)
    assert counts[False] == counts[True] > 0
    assert not engine.seam._records


def test_an_outer_record_has_what_an_inner_one_has(model, pixel_values):
    with torch.no_grad(), engine.record() as outer:
        inner = engine.explain(model, pixel_values)
    assert outer == inner and outer[-1].module


def test_models_whose_python_does_not_run_are_not_explained(model, pixel_values):
    with torch.no_grad():
        traced = torch.jit.trace(model.segformer, pixel_values, strict=False)
    with pytest.raises(ValueError, match="not a traced or exported one"):
        engine.explain(traced, pixel_values)
    model.decode_head = torch.compile(model.decode_head, backend="eager")
    with pytest.raises(ValueError, match=r"model\.decode_head must not be compiled"):
        engine.explain(model, pixel_values)

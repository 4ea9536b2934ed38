# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Inference on a CPU computes wide layers piece by piece: same results, and every module that is watched is called."""

import pytest
import torch
from torch import nn

from engine_paths import runs
from hf_segformer import SegformerForSemanticSegmentation, engine
from hf_segformer.engine import fused_map, mix_ffn
from textbook_head import DECODE, HEADS

PIECES = {"SegformerMixFFN.forward": "feed_forward_in_bands", DECODE: "head_in_bands"}
LAYER = "segformer.encoder.block.1.1.mlp."
WATCHED = [LAYER + name for name in ("dense1", "dwconv", "dwconv.dwconv", "intermediate_act_fn", "dense2")]
WATCHED += [f"decode_head.{name}" for name in ("linear_fuse", "batch_norm", "activation", "dropout", "classifier")]


@pytest.fixture
def pieces(monkeypatch):
    """Function that sets how much is computed at a time."""

    def limit(size):
        monkeypatch.setattr(mix_ffn, "_BAND_BYTES", size)
        monkeypatch.setattr(fused_map, "_BAND_BYTES", size)

    return limit


@pytest.fixture
def model(tiny_config, randomize, request):
    return randomize(SegformerForSemanticSegmentation(tiny_config())).eval()


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.engine
@HEADS
@pytest.mark.parametrize("size", [(50, 77), (129, 64), (33, 33)], ids=str)
@pytest.mark.parametrize("limit", [1, 2000, 20_000, 1 << 40])
def test_pieces_of_any_size_give_the_same_logits(size, limit, conv_width, tiny_config, randomize, pieces):
    model = randomize(SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=conv_width))).eval()
    pixel_values = torch.randn(2, 3, *size)
    with engine.off():
        whole = model(pixel_values).logits.detach()
    pieces(limit)
    for context in (torch.no_grad, torch.inference_mode):
        with context(), runs(PIECES):
            assert relative(model(pixel_values).logits, whole) <= 1e-5


@pytest.mark.engine
@HEADS
def test_half_precision_loses_nothing_to_the_number_of_pieces(conv_width, tiny_config, randomize, pieces):
    model = randomize(SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=conv_width))).eval()
    pixel_values = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        exact = model.double()(pixel_values.double()).logits
        model.bfloat16()
        errors = []
        for limit in (1 << 40, 500):
            pieces(limit)
            with runs(PIECES):
                logits = model(pixel_values.bfloat16()).logits
            errors.append((logits.double() - exact).pow(2).mean().sqrt())
    assert errors[1] <= 1.1 * errors[0]


@pytest.mark.parametrize("name", WATCHED)
def test_hooks_are_called_with_the_whole_map(name, model, pieces):
    pieces(1)
    pixel_values, shapes = torch.randn(1, 3, 64, 64), []
    with torch.inference_mode():
        with runs(PIECES):
            before = model(pixel_values).logits

        def double(module, inputs, output):
            shapes.append(inputs[0].shape)
            return 2 * output

        handle = model.get_submodule(name).register_forward_hook(double)
        changed = model(pixel_values).logits
        handle.remove()
        after = model(pixel_values).logits
    assert len(shapes) == 1
    assert relative(changed, before) > 1e-3 and torch.equal(before, after)


@pytest.mark.parametrize("name", [LAYER + "dense1", LAYER + "dwconv.dwconv", "decode_head.classifier"])
def test_replaced_modules_are_called(name, model, pieces):
    pieces(1)
    pixel_values = torch.randn(1, 3, 64, 64)
    original = model.get_submodule(name)
    if isinstance(original, nn.Linear):
        other = nn.Sequential(original, nn.Tanh())
    else:
        channels, groups = original.in_channels, original.groups
        other = nn.Conv2d(channels, original.out_channels, 5, padding=2, groups=groups)
    model.set_submodule(name, other)
    with engine.off():
        whole = model(pixel_values).logits.detach()
    called = []
    other.register_forward_hook(lambda *_: called.append(1))
    with torch.inference_mode():
        assert relative(model(pixel_values).logits, whole) <= 1e-5
    assert called


def test_weights_changed_in_place_take_effect_at_once(model, pieces):
    pieces(1)
    pixel_values = torch.randn(1, 3, 64, 64)
    for name in (LAYER + "dense1", LAYER + "dense2", "decode_head.linear_c.2.proj", "decode_head.classifier"):
        with torch.no_grad(), runs(PIECES):
            before = model(pixel_values).logits
            model.get_submodule(name).weight.mul_(1.5)
            after = model(pixel_values).logits
        assert relative(after, before) > 1e-3
        with engine.off(), torch.no_grad():
            assert relative(after, model(pixel_values).logits) <= 1e-5


def test_dropout_that_is_on_in_inference_stays_on(tiny_config, randomize, pieces):
    pieces(1)
    model = randomize(SegformerForSemanticSegmentation(tiny_config(hidden_dropout_prob=0.5))).train()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(model(pixel_values).logits, model(pixel_values).logits)
    model.eval()
    model.decode_head.dropout.train()  # as for estimating uncertainty
    with torch.no_grad():
        assert not torch.equal(model(pixel_values).logits, model(pixel_values).logits)

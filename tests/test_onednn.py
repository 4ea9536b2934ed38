# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""oneDNN's kernels against float64, and that they step aside where they must."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation as Builtin

from hf_segformer import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    encoder_segformer,
    onednn_segformer,
)
from hf_segformer.data import draw_scene
from hf_segformer.encoder_segformer import SegformerDWConv
from lively_models import lively_model

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def close(actual, expected, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    return (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


@PRECISIONS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(7, 5), (1, 3, 4, 17), (2, 33, 33, 64)], ids=str)
def test_linear(shape, bias, dtype):
    torch.manual_seed(0)
    layer, values = nn.Linear(shape[-1], 37, bias=bias).to(dtype), torch.randn(shape).to(dtype)
    expected = copy.deepcopy(layer).double()(values.double())
    with torch.inference_mode():
        assert close(onednn_segformer.linear(layer, values), expected.detach(), dtype)
        strided = values.transpose(0, 1).contiguous().transpose(0, 1)
        assert torch.equal(onednn_segformer.linear(layer, strided), onednn_segformer.linear(layer, values))
        with torch.backends.mkldnn.flags(enabled=False):
            assert close(onednn_segformer.linear(layer, values), expected.detach(), dtype)


def test_linear_of_nothing_and_of_other_precisions():
    layer = nn.Linear(4, 3)
    with torch.inference_mode():
        assert onednn_segformer.linear(layer, torch.empty(0, 4)).shape == (0, 3)
        assert onednn_segformer.linear(layer.double(), torch.ones(2, 4).double()).dtype == torch.float64
    assert onednn_segformer.linear(layer.float(), torch.ones(2, 4)).requires_grad


def test_linear_with_strided_weights():
    layer = nn.Linear(8, 6)
    layer.weight = nn.Parameter(torch.randn(8, 6).t())
    values = torch.randn(5, 8)
    with torch.inference_mode():
        assert torch.allclose(onednn_segformer.linear(layer, values), layer(values), atol=1e-5)


@PRECISIONS
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("size", [(1, 1), (13, 9)], ids=str)
def test_depthwise_convolution_with_activation(size, activation, dtype):
    torch.manual_seed(0)
    convolution, activation = SegformerDWConv(24).dwconv.to(dtype), ACT2FN[activation]
    feature_map = 3 * torch.randn(2, *size, 24).to(dtype).permute(0, 3, 1, 2)
    expected = activation(copy.deepcopy(convolution).double()(feature_map.double())).detach()
    with torch.inference_mode():
        actual = onednn_segformer.depthwise_gelu(convolution, activation, feature_map)
    assert close(actual, expected, dtype) and actual.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("limit", [1, 3000, 1 << 40])
def test_explicit_attention(limit, monkeypatch):
    monkeypatch.setattr(onednn_segformer, "_WEIGHTS_BYTES", limit)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, count, 3, 16).bfloat16().transpose(1, 2) for count in (50, 11, 11))
    key = key + 20  # a mean that would drown the differences in bfloat16
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), scale=0.3)
    actual = onednn_segformer.explicit_attention(query, key, value, 0.3)
    assert actual.shape == (2, 50, 3, 16)
    assert close(actual.transpose(1, 2), expected, torch.bfloat16)


@pytest.mark.parametrize("sharp", [1.0, 3.0], ids=["flat attention", "sharp attention"])
@pytest.mark.parametrize("variant", ["b0", "b2"])
def test_bfloat16_is_no_less_exact_than_the_builtin_class(variant, sharp, randomize, tmp_path):
    model = lively_model(SegformerConfig.for_variant(variant, num_labels=19), randomize)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query.weight" in name or "key.weight" in name:
                parameter *= sharp
    model.save_pretrained(tmp_path)
    model = SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval()
    builtin = Builtin.from_pretrained(tmp_path).eval().bfloat16()
    image, _ = draw_scene(5)
    pixel_values = SegformerImageProcessor(size={"height": 192, "width": 224})(image, return_tensors="pt").pixel_values
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(pixel_values.double()).logits
        errors = [
            (network(pixel_values.bfloat16()).logits.double() - exact).pow(2).mean().sqrt().item()
            for network in (model.bfloat16(), builtin)
        ]
    assert errors[0] <= 1.05 * errors[1]


def test_explicit_attention_only_where_the_default_was_left(tiny_config, randomize, monkeypatch):
    """A chosen implementation, wanted attention weights and float32 go the usual way."""
    calls, original = [], onednn_segformer.explicit_attention
    monkeypatch.setattr(encoder_segformer, "explicit_attention", lambda *args: calls.append(1) or original(*args))
    monkeypatch.setattr(onednn_segformer, "_has_amx", lambda: False)
    model = randomize(SegformerForSemanticSegmentation(tiny_config())).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        model(pixel_values)
        assert not calls
        model.bfloat16()
        model(pixel_values.bfloat16(), output_attentions=True)
        model.set_attn_implementation("eager")
        model(pixel_values.bfloat16())
        assert not calls
        model.set_attn_implementation("sdpa")
        default = model(pixel_values.bfloat16()).logits
        assert len(calls) == sum(model.config.depths) or not onednn_segformer._knows(default, default, None)


def test_attention_dropout_that_is_on_in_inference_stays_on(tiny_config, randomize, monkeypatch):
    monkeypatch.setattr(onednn_segformer, "_has_amx", lambda: False)
    model = randomize(SegformerForSemanticSegmentation(tiny_config(attention_probs_dropout_prob=0.5))).bfloat16()
    attention = model.segformer.encoder.block[2][0].attention
    tokens = torch.randn(1, 4, 4, 24).bfloat16()
    with torch.inference_mode():
        attention.eval()
        assert torch.equal(attention(tokens)[0], attention(tokens)[0])
        attention.train()
        assert not torch.equal(attention(tokens)[0], attention(tokens)[0])

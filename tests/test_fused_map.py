# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Training on a CPU computes the decode head in bands: results and gradients of the textbook form, nothing whole."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine_paths import runs
from hf_segformer import SegformerForSemanticSegmentation, engine
from hf_segformer.engine import decode_head, fused_map
from largest_tensor import LargestTensor
from textbook_head import DECODE, HEADS, make, textbook

SIZES = [(2, 8, 33, 27), (2, 16, 17, 14), (2, 24, 9, 7), (2, 32, 5, 4)]
IN_BANDS = "head_training_in_bands"


def feature_maps(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, dtype=dtype, generator=generator).requires_grad_() for size in SIZES]


@HEADS
@pytest.mark.parametrize("limit", [1, 30_000, 1 << 40])
def test_bands_of_any_size_equal_the_textbook_form(limit, conv_width, tiny_config, randomize, monkeypatch):
    monkeypatch.setattr(fused_map, "_BAND_BYTES", limit)
    head, maps = make(tiny_config, randomize, conv_width).double().train().decode_head, feature_maps()
    expected = textbook(head, maps, conv_width is not None)
    with runs({DECODE: IN_BANDS}):
        logits = head(maps)
    assert torch.allclose(logits, expected, rtol=1e-10, atol=1e-10)
    weights, parameters = torch.randn_like(expected), [*maps, *head.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((logits * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.engine
def test_running_statistics_are_those_of_batch_norm(tiny_config, randomize, monkeypatch):
    monkeypatch.setattr(fused_map, "_BAND_BYTES", 30_000)
    head = make(tiny_config, randomize).double().train().decode_head
    with torch.no_grad():
        head.linear_c[3].proj.bias += 1e4  # a mean far from zero, where E[x^2] - E[x]^2 would lose digits
    whole, maps = copy.deepcopy(head), feature_maps()
    for _ in range(2):
        with runs({DECODE: IN_BANDS}):
            head(maps)
        with engine.off():
            whole(maps)
    for name, buffer in head.batch_norm.named_buffers():
        assert torch.allclose(buffer, whole.batch_norm.get_buffer(name), rtol=1e-10), name
    assert head.batch_norm.num_batches_tracked == 2


@pytest.mark.engine
@pytest.mark.parametrize("mode", ["element", "channel"])
def test_dropout_drops_before_the_classifier(mode, tiny_config, randomize, monkeypatch):
    monkeypatch.setattr(fused_map, "_BAND_BYTES", 30_000)
    head = make(tiny_config, randomize, classifier_dropout_mode=mode).double().train().decode_head
    head.dropout.p, maps = 0.4, feature_maps()
    torch.manual_seed(0)
    with runs({DECODE: IN_BANDS}):
        logits = head(maps)
    torch.manual_seed(0)
    keep, scale = decode_head._dropout_mask(head.dropout, (2, 33, 27, 20))
    factor = keep.double().expand(2, 33 * 27, 20).reshape(2, 33, 27, 20).permute(0, 3, 1, 2) * scale

    class Masked(nn.Module):
        def forward(self, values):
            return values * factor

    whole = copy.deepcopy(head)
    whole.dropout = Masked()
    with engine.off():
        expected = whole(maps)
    assert torch.allclose(logits, expected, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(
        torch.autograd.grad(logits.square().sum(), [*maps, *head.parameters()]),
        torch.autograd.grad(expected.square().sum(), [*maps, *whole.parameters()]),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(p):
    shape = (2, 64, 64, 31)
    torch.manual_seed(0)
    keep, scale = decode_head._dropout_mask(nn.Dropout(p), shape)
    assert keep.shape == (2, 64 * 64, 31) and keep.dtype == torch.bool
    assert scale == pytest.approx(1 / (1 - p), rel=1e-4)
    flat = keep.flatten().float()
    # Four elements come from one number: each of the four must be drawn fairly, and independently of its neighbour.
    for lane in range(4):
        assert flat[lane::4].mean() * scale == pytest.approx(1, abs=5 * ((p / (1 - p)) / (flat.numel() / 4)) ** 0.5)
    pairs = (flat[:-1] * flat[1:]).mean()
    assert pairs == pytest.approx((1 - p) ** 2, abs=0.01)
    torch.manual_seed(0)
    again, _ = decode_head._dropout_mask(nn.Dropout(p), shape)
    assert torch.equal(keep, again)


def test_dropout_at_its_ends():
    shape = (1, 4, 4, 3)
    assert decode_head._dropout_mask(nn.Dropout(0.0), shape) == (None, 1.0)
    assert decode_head._dropout_mask(nn.Dropout(0.3).eval(), shape) == (None, 1.0)
    for dropout in (nn.Dropout(1.0), nn.Dropout2d(1.0)):
        keep, _ = decode_head._dropout_mask(dropout, shape)
        assert not keep.any()


def test_dropout_of_any_size(monkeypatch):
    monkeypatch.setattr(decode_head, "_RANDOM_NUMBERS", 3)
    torch.manual_seed(0)
    keep, _ = decode_head._dropout_mask(nn.Dropout(0.5), (1, 5, 7, 3))
    assert keep.shape == (1, 35, 3) and 0.3 < keep.float().mean() < 0.7
    rows = keep.flatten()[:96].view(8, 12)
    assert len({tuple(row.tolist()) for row in rows}) == 8  # the numbers are drawn anew, not used again


def test_function_transforms(tiny_config, randomize):
    """`torch.func` sees the plain form."""
    model = make(tiny_config, randomize).double().train()
    parameters = dict(model.named_parameters())
    pixel_values = torch.randn(2, 3, 32, 64, dtype=torch.float64)

    def squares(parameters):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return torch.func.functional_call(model, {**parameters, **buffers}, (pixel_values,)).logits.square().sum()

    transformed = torch.func.grad(squares)(parameters)
    names = ["decode_head.classifier.weight", "decode_head.batch_norm.weight", "decode_head.linear_c.1.proj.weight"]
    expected = torch.autograd.grad(squares(parameters), [parameters[name] for name in names])
    for name, gradient in zip(names, expected, strict=True):
        assert torch.allclose(transformed[name], gradient, rtol=1e-8, atol=1e-9)


def test_a_single_point_is_refused_as_by_batch_norm(tiny_config, randomize):
    head = make(tiny_config, randomize).train().decode_head
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        head([torch.randn(1, channels, 1, 1) for channels in (8, 16, 24, 32)])


@pytest.mark.engine
def test_no_map_of_the_whole_width_exists(tiny_config, randomize, monkeypatch):
    monkeypatch.setattr(fused_map, "_BAND_BYTES", 20_000)
    head = make(tiny_config, randomize, num_labels=3).train().decode_head
    maps = [torch.randn(2, channels, 64 >> stage, 64 >> stage) for stage, channels in enumerate((8, 16, 24, 32))]
    fused = 2 * 20 * 64 * 64
    with LargestTensor() as bands:
        head(maps).sum().backward()
    assert bands.numel < fused // 2
    with LargestTensor() as whole, engine.off():
        head(maps).sum().backward()
    assert whole.numel >= fused


@pytest.mark.parametrize("name", ["batch_norm", "activation", "dropout", "classifier", "linear_fuse"])
def test_hooks_are_called_in_training(name, tiny_config, randomize):
    head = make(tiny_config, randomize).double().train().decode_head
    with runs({DECODE: IN_BANDS}):
        before, calls = head(feature_maps()), []
    head.get_submodule(name).register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    assert torch.allclose(head(feature_maps()), before, rtol=1e-10)
    assert len(calls) == 1


def test_frozen_statistics_stay_frozen(tiny_config, randomize):
    head = make(tiny_config, randomize).double().train().decode_head
    head.batch_norm.eval()
    before = copy.deepcopy(head.batch_norm.state_dict())
    head(feature_maps()).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in head.batch_norm.state_dict().items())
    assert head.batch_norm.weight.grad.abs().sum() > 0


def test_half_precision_and_autocast_hold_the_whole_map(tiny_config, randomize):
    model = make(tiny_config, randomize).train()
    pixel_values, labels = torch.randn(2, 3, 64, 64), torch.randint(5, (2, 64, 64))
    with runs({DECODE: IN_BANDS}):
        full = model(pixel_values, labels=labels).loss
    with torch.autocast("cpu", torch.bfloat16), runs({DECODE: "composed_head"}):
        mixed = model(pixel_values, labels=labels).loss
    with runs({DECODE: "composed_head"}):
        half = copy.deepcopy(model).bfloat16()(pixel_values.bfloat16(), labels=labels).loss
    for loss in (mixed, half):
        assert loss.item() == pytest.approx(full.item(), rel=0.05)
        loss.backward()


@pytest.mark.engine
def test_there_is_no_second_derivative(tiny_config, randomize):
    head, maps = make(tiny_config, randomize).double().train().decode_head, feature_maps()
    (gradient,) = torch.autograd.grad(head(maps).square().sum(), maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    with engine.off():
        (gradient,) = torch.autograd.grad(head(maps).square().sum(), maps[0], create_graph=True)
    gradient.sum().backward()


@pytest.mark.engine
def test_training_reduces_the_loss_as_the_textbook_does(tiny_config, randomize):
    """Ten steps both ways: the same losses."""
    losses = []
    for way in (lambda: runs({DECODE: IN_BANDS}), engine.off):
        model = make(tiny_config, randomize).double().train()
        assert isinstance(model, SegformerForSemanticSegmentation)
        generator = torch.Generator().manual_seed(0)
        pixel_values = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=generator)
        labels = F.interpolate(pixel_values[:, :1], scale_factor=1.0)[:, 0].gt(0).long()
        optimizer, lost = torch.optim.AdamW(model.parameters(), lr=1e-3), []
        for _ in range(10):
            with way():
                loss = model(pixel_values, labels=labels).loss
                optimizer.zero_grad()
                loss.backward()
            lost.append(loss.item())
            optimizer.step()
        losses.append(lost)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < losses[0][0]

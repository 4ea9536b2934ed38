# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Training on a CPU computes the Mix-FFN some images at a time: results and gradients of the textbook."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from engine_paths import runs
from hf_segformer import SegformerForSemanticSegmentation, engine
from hf_segformer.engine import mix_ffn
from hf_segformer.engine.eligibility import mix_ffn_parameters
from hf_segformer.engine.mix_ffn import MixFeedForward
from largest_tensor import LargestTensor

MAP = (7, 5)  # H, W of the layer under test
SHAPE = (3, 35, 16)  # B, N, C
FORWARD, IN_CHUNKS = "SegformerMixFFN.forward", "feed_forward_in_chunks"


@pytest.fixture
def layer(tiny_config, randomize):
    model = SegformerForSemanticSegmentation(tiny_config(mlp_ratios=[3, 3, 3, 3]))
    randomize(model)
    return model.segformer.encoder.block[1][1].mlp.train()


@pytest.fixture
def tokens():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.fixture
def network(tiny_config, randomize):
    model = SegformerForSemanticSegmentation(tiny_config(classifier_dropout_prob=0.0, drop_path_rate=0.0)).train()
    randomize(model)
    return model


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, 70, 45, generator=generator), torch.randint(5, (2, 70, 45), generator=generator)


def textbook(layer, tokens):
    """The layer in float64, written down anew."""
    layer = copy.deepcopy(layer).double()
    hidden = tokens.double().unflatten(1, MAP) @ layer.dense1.weight.T + layer.dense1.bias
    padded = F.pad(hidden, (0, 0, 1, 1, 1, 1))
    height, width = hidden.shape[1:3]
    mixed = layer.dwconv.dwconv.bias + sum(
        padded[:, y : y + height, x : x + width] * layer.dwconv.dwconv.weight[:, 0, y, x]
        for y in range(3)
        for x in range(3)
    )
    activated = mixed * 0.5 * (1 + torch.erf(mixed / 2**0.5))
    return (activated @ layer.dense2.weight.T + layer.dense2.bias).flatten(1, 2), [tokens, *layer.parameters()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("images", [1, 2, 3])
def test_value_and_gradients(images, training, layer, tokens, monkeypatch):
    monkeypatch.setattr(mix_ffn, "_CHUNK_BYTES", images * 7 * 5 * 48 * 4)
    layer.train(training)
    with runs({FORWARD: IN_CHUNKS}):
        result = layer(tokens, MAP)
    expected, theirs = textbook(layer, tokens)
    assert torch.allclose(result.double(), expected, atol=1e-5)
    weights = torch.randn(SHAPE)
    gradients = torch.autograd.grad((result * weights).sum(), [tokens, *layer.parameters()])
    for ours, truth in zip(gradients, torch.autograd.grad((expected * weights).sum(), theirs), strict=True):
        assert torch.allclose(ours.double(), truth.double(), rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


def test_gradcheck(layer):
    layer.double()
    inputs = [torch.randn(2, 3, 4, 16, dtype=torch.float64), *(p.detach() for p in mix_ffn_parameters(layer))]
    inputs = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(MixFeedForward.apply, inputs)
    few = [value[..., :2].detach().requires_grad_() for value in inputs[:1]]
    narrow = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(3, 2), 3, (3, 1, 3, 3), 3, (2, 3), 2]]
    assert torch.autograd.gradgradcheck(MixFeedForward.apply, few + narrow)


@pytest.mark.engine
@pytest.mark.parametrize("frozen", ["tokens", "dense1", "dwconv", "dense2", "tokens dense1", "tokens dense1 dwconv"])
def test_only_wanted_gradients_are_computed(frozen, layer, tokens):
    for name in frozen.split():
        tokens.requires_grad_(False) if name == "tokens" else getattr(layer, name).requires_grad_(False)
    wanted = [p for p in (tokens, *layer.parameters()) if p.requires_grad]
    with runs({FORWARD: IN_CHUNKS}):
        result = layer(tokens, MAP)
    gradients = torch.autograd.grad(result.square().sum(), wanted)
    with engine.off():
        expected = torch.autograd.grad(layer(tokens, MAP).square().sum(), wanted)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.engine
def test_images_together_stay_small(layer, tokens, monkeypatch):
    monkeypatch.setattr(mix_ffn, "_CHUNK_BYTES", 1)
    hidden = tokens[0].numel() * 3 * SHAPE[0]  # the hidden map of all images
    with LargestTensor() as largest:
        layer(tokens, MAP).sum().backward()
    assert largest.numel < hidden
    with LargestTensor() as control, engine.off():
        layer(tokens, MAP).sum().backward()
    assert control.numel >= hidden


def test_what_the_modules_must_do_themselves(layer, tokens):
    with runs({FORWARD: IN_CHUNKS}):
        before = layer(tokens, MAP)
    seen = []
    with runs({FORWARD: "textbook"}):
        handle = layer.dense2.register_forward_hook(lambda *_: seen.append(1))
        assert torch.allclose(layer(tokens, MAP), before, atol=1e-5) and seen
        handle.remove()
        layer.dropout.p = 0.5
        assert not torch.allclose(layer(tokens, MAP), before, atol=1e-3)
        layer.dropout.p = 0.0
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(tokens, MAP).dtype == torch.bfloat16
        assert copy.deepcopy(layer).double()(tokens.double(), MAP).dtype == torch.float64
        torch.func.grad(lambda values: layer(values, MAP).sum())(tokens)
        assert layer(tokens[:0], MAP).shape == (0, *SHAPE[1:])
    with runs({FORWARD: IN_CHUNKS}):
        layer(tokens, MAP)


class Doubled(nn.Module):
    def forward(self, tokens, size=None):
        return 2 * tokens


@pytest.mark.parametrize("name", ["dense1", "dwconv", "intermediate_act_fn", "dense2"])
def test_any_module_may_be_replaced(name, layer, tokens):
    """What stands in a module's place need not have its attributes."""
    setattr(layer, name, nn.Linear(*((16, 48) if name == "dense1" else (48, 16))) if "dense" in name else Doubled())
    with runs({FORWARD: IN_CHUNKS if "dense" in name else "textbook"}):
        results = [layer(tokens, MAP)]
    layer.eval()
    with torch.no_grad(), runs({FORWARD: "feed_forward_in_bands" if "dense" in name else "textbook"}):
        results.append(layer(tokens, MAP))
    hidden = layer.intermediate_act_fn(layer.dwconv(layer.dense1(tokens), MAP))
    for result in results:
        assert torch.allclose(result, layer.dense2(hidden), atol=1e-5)


def test_a_changed_weight_changes_the_next_step(layer, tokens):
    with runs({FORWARD: IN_CHUNKS}):
        before = layer(tokens, MAP)
        with torch.no_grad():
            layer.dwconv.dwconv.weight.mul_(2)
        assert not torch.allclose(layer(tokens, MAP), before, atol=1e-3)


def gradients(model, pixels, labels):
    model.zero_grad()
    model(pixels, labels=labels).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def close(gradient, expected):
    # Keys' biases have no gradient: their rounding errors are not to be compared.
    return torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-7)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_training_gives_the_same_gradients(reentrant, network, data):
    with runs({FORWARD: IN_CHUNKS}):
        expected = gradients(network, *data)
    network.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, gradient in gradients(network, *data).items():
        # Reentrant checkpointing runs forward without gradients, so by other means.
        assert close(gradient, expected[name]) if reentrant else torch.equal(gradient, expected[name]), name


def test_a_checkpointed_network_gives_the_same_gradients(network, data):
    pixels, expected = data[0], gradients(network, *data)

    def loss(pixels):
        return network(pixels, labels=data[1]).loss

    network.zero_grad()
    checkpoint(loss, pixels, use_reentrant=False).backward()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name


@pytest.mark.engine
def test_whole_networks_train_as_the_textbook_does(network, data):
    with runs({FORWARD: IN_CHUNKS}):
        ours = gradients(network, *data)
    with engine.off():
        expected = gradients(network, *data)
    for name, theirs in expected.items():
        assert close(ours[name], theirs), name

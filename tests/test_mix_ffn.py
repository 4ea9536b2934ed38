# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Training on a CPU computes the Mix-FFN some images at a time: results and gradients of the plain modules."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hf_segformer import SegformerForSemanticSegmentation, mix_ffn_segformer
from hf_segformer.encoder_segformer import SegformerMixFFN
from hf_segformer.mix_ffn_segformer import MixFeedForward
from largest_tensor import LargestTensor

SIZE = (3, 7, 5, 16)  # B, H, W, C of the layer under test


@pytest.fixture
def layer(tiny_config, randomize):
    model = SegformerForSemanticSegmentation(tiny_config(mlp_ratios=[3, 3, 3, 3]))
    randomize(model)
    return model.segformer.encoder.block[1][1].mlp.train()


@pytest.fixture
def tokens():
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.fixture
def network(tiny_config, randomize):
    model = SegformerForSemanticSegmentation(tiny_config(classifier_dropout_prob=0.0, drop_path_rate=0.0)).train()
    randomize(model)
    return model


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, 70, 45, generator=generator), torch.randint(5, (2, 70, 45), generator=generator)


@pytest.fixture
def calls(monkeypatch):
    """List that grows by one with each use of the fast path."""
    made, apply = [], MixFeedForward.apply
    monkeypatch.setattr(MixFeedForward, "apply", lambda *inputs: (made.append(1), apply(*inputs))[1])
    return made


def textbook(layer, tokens):
    """The layer in float64, written down anew."""
    layer = copy.deepcopy(layer).double()
    hidden = tokens.double() @ layer.dense1.weight.T + layer.dense1.bias
    padded = F.pad(hidden, (0, 0, 1, 1, 1, 1))
    height, width = hidden.shape[1:3]
    mixed = layer.dwconv.dwconv.bias + sum(
        padded[:, y : y + height, x : x + width] * layer.dwconv.dwconv.weight[:, 0, y, x]
        for y in range(3)
        for x in range(3)
    )
    activated = mixed * 0.5 * (1 + torch.erf(mixed / 2**0.5))
    return activated @ layer.dense2.weight.T + layer.dense2.bias, [tokens, *layer.parameters()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("images", [1, 2, 3])
def test_value_and_gradients(images, training, layer, tokens, calls, monkeypatch):
    monkeypatch.setattr(mix_ffn_segformer, "_CHUNK_BYTES", images * 7 * 5 * 48 * 4)
    layer.train(training)
    result = layer(tokens)
    assert calls
    expected, theirs = textbook(layer, tokens)
    assert torch.allclose(result.double(), expected, atol=1e-5)
    weights = torch.randn(SIZE)
    gradients = torch.autograd.grad((result * weights).sum(), [tokens, *layer.parameters()])
    for ours, truth in zip(gradients, torch.autograd.grad((expected * weights).sum(), theirs), strict=True):
        assert torch.allclose(ours.double(), truth.double(), rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


def test_gradcheck(layer):
    layer.double()
    inputs = [torch.randn(2, 3, 4, 16, dtype=torch.float64), *(p.detach() for p in layer._parameters_in_order())]
    inputs = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(MixFeedForward.apply, inputs)
    few = [value[..., :2].detach().requires_grad_() for value in inputs[:1]]
    narrow = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(3, 2), 3, (3, 1, 3, 3), 3, (2, 3), 2]]
    assert torch.autograd.gradgradcheck(MixFeedForward.apply, few + narrow)


@pytest.mark.parametrize("frozen", ["tokens", "dense1", "dwconv", "dense2", "tokens dense1", "tokens dense1 dwconv"])
def test_only_wanted_gradients_are_computed(frozen, layer, tokens, calls):
    for name in frozen.split():
        tokens.requires_grad_(False) if name == "tokens" else getattr(layer, name).requires_grad_(False)
    wanted = [p for p in (tokens, *layer.parameters()) if p.requires_grad]
    result = layer(tokens)
    gradients = torch.autograd.grad(result.square().sum(), wanted)
    layer.intermediate_act_fn = nn.GELU()  # no longer known: the modules are called
    expected = torch.autograd.grad(layer(tokens).square().sum(), wanted)
    assert len(calls) == 1
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_images_together_stay_small(layer, tokens, monkeypatch):
    monkeypatch.setattr(mix_ffn_segformer, "_CHUNK_BYTES", 1)
    with LargestTensor() as largest:
        layer(tokens).sum().backward()
    assert largest.numel < tokens[0].numel() * 3 * SIZE[0]  # the hidden map of all images


def test_what_the_modules_must_do_themselves(layer, tokens, calls):
    before = layer(tokens)
    assert len(calls) == 1
    seen = []
    handle = layer.dense2.register_forward_hook(lambda *_: seen.append(1))
    assert torch.allclose(layer(tokens), before, atol=1e-5) and seen
    handle.remove()
    layer.dropout.p = 0.5
    assert not torch.allclose(layer(tokens), before, atol=1e-3)
    layer.dropout.p = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(tokens).dtype == torch.bfloat16
    assert copy.deepcopy(layer).double()(tokens.double()).dtype == torch.float64
    torch.func.grad(lambda values: layer(values).sum())(tokens)
    assert layer(tokens[:0]).shape == (0, *SIZE[1:])
    assert len(calls) == 1
    layer(tokens)
    assert len(calls) == 2


class Doubled(nn.Module):
    def forward(self, hidden_states):
        return 2 * hidden_states


@pytest.mark.parametrize("name", ["dense1", "dwconv", "intermediate_act_fn", "dense2"])
def test_any_module_may_be_replaced(name, layer, tokens):
    """What stands in a module's place need not have its attributes."""
    setattr(layer, name, nn.Linear(*((16, 48) if name == "dense1" else (48, 16))) if "dense" in name else Doubled())
    results = [layer(tokens)]
    with torch.no_grad():
        results.append(layer(tokens))
    hidden = layer.intermediate_act_fn(layer.dwconv(layer.dense1(tokens)))
    for result in results:
        assert torch.allclose(result, layer.dense2(hidden), atol=1e-5)


def test_a_changed_weight_changes_the_next_step(layer, tokens):
    before = layer(tokens)
    with torch.no_grad():
        layer.dwconv.dwconv.weight.mul_(2)
    assert not torch.allclose(layer(tokens), before, atol=1e-3)


def gradients(model, pixels, labels):
    model.zero_grad()
    model(pixels, labels=labels).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def close(gradient, expected):
    # Keys' biases have no gradient: their rounding errors are not to be compared.
    return torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-7)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_training_gives_the_same_gradients(reentrant, network, data):
    expected = gradients(network, *data)
    network.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, gradient in gradients(network, *data).items():
        # Reentrant checkpointing runs forward without gradients, in bands of rows.
        assert close(gradient, expected[name]) if reentrant else torch.equal(gradient, expected[name]), name


def test_a_checkpointed_network_gives_the_same_gradients(network, data):
    pixels, expected = data[0], gradients(network, *data)

    def loss(pixels):
        return network(pixels, labels=data[1]).loss

    network.zero_grad()
    checkpoint(loss, pixels, use_reentrant=False).backward()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name


def test_whole_networks_train_as_with_plain_modules(network, data, monkeypatch):
    ours = gradients(network, *data)
    monkeypatch.setattr(SegformerMixFFN, "_may_train_in_chunks", lambda *_: False)
    for name, theirs in gradients(network, *data).items():
        assert close(ours[name], theirs), name

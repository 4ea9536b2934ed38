# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Parameter groups, schedules, initial weights, encoders, batches and saved state."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_segformer import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)
from hf_segformer.checkpoints.network import export_state_dict
from hf_segformer.training import (
    BatchPlan,
    count_pixels,
    cross_entropy_sum,
    freeze_batch_norm,
    initialize_as_published,
    load_encoder,
    parameter_groups,
    plan_batches,
    poly_factor,
    set_learning_rate,
    step_seed,
    synchronizes_batch_norm,
)


@pytest.mark.parametrize("decay_stage_norms", [False, True])
def test_parameter_groups(decay_stage_norms, tiny_config):
    model = SegformerForSemanticSegmentation(tiny_config())
    groups = {g["name"]: g for g in parameter_groups(model, 6e-5, decay_stage_norms=decay_stage_norms)}
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups.values() for p in g["params"]}
    assert len(settings) == sum(len(g["params"]) for g in groups.values()) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        stage_norm = name.startswith("segformer.encoder.layer_norm.")
        if name.startswith("decode_head."):
            expected = (6e-4, 0.01)  # the BatchNorm of the head is decayed
        elif "layer_norm" in name and not (stage_norm and decay_stage_norms):
            expected = (6e-5, 0.0)
        else:
            expected = (6e-5, 0.01)  # biases and depthwise convolutions too
        assert settings[id(parameter)] == pytest.approx(expected), name


def test_frozen_parameters_are_left_out(tiny_config):
    model = SegformerForSemanticSegmentation(tiny_config())
    model.segformer.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(model, 1e-3)] == ["head"]


def test_schedule_from_the_start():
    # Published formula: the warm-up multiplies the value that already decays.
    for step in (0, 1, 749, 1499, 1500, 80_000, 159_999):
        decayed = 1 - step / 160_000
        warm = decayed * (1 - (1 - step / 1500) * (1 - 1e-6)) if step < 1500 else decayed
        assert math.isclose(poly_factor(step, 160_000), warm)


def test_schedule_after_the_warm_up():
    factors = [poly_factor(step, 160_000, decay_from_start=False) for step in (0, 1, 1498, 1499, 1500, 1501, 159_999)]
    rise, fall = (1 - 1e-6) / 1499, 1 / 158_499  # the peak with step 1499, zero with step 159999
    expected = [1e-6, 1e-6 + rise, 1 - rise, 1.0, 1.0, 1 - fall, 0.0]
    assert factors == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("decay_from_start", [False, True])
@pytest.mark.parametrize(("max_steps", "warmup_steps"), [(1, 0), (2, 1), (3, 1), (5, 4), (40, 0), (40, 13)])
def test_schedules_of_short_runs(decay_from_start, max_steps, warmup_steps):
    factors = [poly_factor(step, max_steps, warmup_steps, 0.25, 2.0, decay_from_start) for step in range(max_steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[warmup_steps:] == sorted(factors[warmup_steps:], reverse=True)
    assert max(factors) > 0


def test_set_learning_rate_keeps_the_ratio_between_groups(tiny_config):
    groups = parameter_groups(SegformerForSemanticSegmentation(tiny_config()), 1e-3)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    set_learning_rate(optimizer, 0.25)
    set_learning_rate(optimizer, 0.5)
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == pytest.approx(
        {"encoder": 5e-4, "encoder_norm": 5e-4, "head": 5e-3}
    )


def test_losses_of_pieces_add_up():
    logits = torch.randn(4, 6, 9, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 6, (4, 33, 30))
    labels[0] = 255
    labels[2, :20] = 255
    expected = F.cross_entropy(
        F.interpolate(logits, size=(33, 30), mode="bilinear", align_corners=False), labels, ignore_index=255
    )
    count = count_pixels(labels)
    pieces = sum(cross_entropy_sum(logits[i : i + 1], labels[i : i + 1]) for i in range(4)) / count
    assert torch.allclose(pieces, expected)
    (ours,), (theirs,) = torch.autograd.grad(pieces, logits), torch.autograd.grad(expected, logits)
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert count_pixels(labels, average="all") == labels.numel()
    with pytest.raises(ValueError, match="average must be 'valid' or 'all', got 'some'"):
        count_pixels(labels, average="some")


def test_initial_weights_of_nvlabs(tiny_config):
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(tiny_config(hidden_sizes=[32, 64, 96, 128], decoder_hidden_size=128))
    initialize_as_published(model)
    for name, module in model.segformer.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15), name
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15), name
    for projection in model.decode_head.linear_c:
        bound = projection.proj.in_features**-0.5  # PyTorch's default
        for tensor in (projection.proj.weight, projection.proj.bias):
            assert 0.9 * bound < tensor.abs().max() <= bound
    fuse = model.decode_head.linear_fuse.weight
    assert fuse.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.1)


@pytest.mark.parametrize("conv_width", [None, 128], ids=["mlp", "conv"])
def test_initial_weights_of_mmsegmentation(conv_width, tiny_config):
    """With either decode head; test_recipes_mmseg.py compares with mmsegmentation itself."""
    torch.manual_seed(0)
    fields = {"hidden_sizes": [32, 64, 96, 128], "decoder_hidden_size": None if conv_width else 128}
    model = SegformerForSemanticSegmentation(tiny_config(**fields, conv_decoder_hidden_size=conv_width))
    initialize_as_published(model, "mmseg")
    layer, head = model.segformer.encoder.block[2][0], model.decode_head
    attention = layer.attention.self
    for projection in (attention.query, attention.key, attention.value):
        bound = (6 / (4 * 96)) ** 0.5
        assert 0.95 * bound < projection.weight.abs().max() <= bound
    assert layer.attention.output.dense.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.mlp.dense1.weight.std().item() == pytest.approx((2 / 384) ** 0.5, rel=0.05)
    assert layer.mlp.dense2.weight.std().item() == pytest.approx((2 / 96) ** 0.5, rel=0.05)
    for projection in head.linear_c:
        assert projection.proj.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.1)
        assert projection.proj.bias is None or not projection.proj.bias.any()
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert not head.classifier.bias.any()
    with pytest.raises(ValueError, match="flavor must be nvlabs or mmseg, got 'hf'"):
        initialize_as_published(model, "hf")


# Pretrained encoders


def write_encoder(folder, layout, fields):
    """A checkpoint of an encoder as ImageNet training leaves it, and the features it computes."""
    torch.manual_seed(3)
    config = SegformerConfig(**fields)
    if layout == "mmseg":
        model = SegformerModel(config)
        encoder = model
        file = folder / "mit.pth"
        torch.save(export_state_dict(model.state_dict(), "mmseg", config=config.to_dict())[0], file)
    else:
        model = SegformerForImageClassification(config)
        encoder = model.segformer
        file = folder / ("mit.pth" if layout == "nvlabs" else "mit")
        if layout == "nvlabs":
            torch.save(export_state_dict(model.state_dict(), "nvlabs", config=config.to_dict())[0], file)
        else:
            model.save_pretrained(file)
    return file, encoder.state_dict()


ENCODER = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 2, 1, 1]}  # the published heads


@pytest.mark.parametrize("layout", ["nvlabs", "mmseg", "folder"])
def test_encoder_from_imagenet(layout, tmp_path):
    file, weights = write_encoder(tmp_path, layout, ENCODER)
    model = SegformerForSemanticSegmentation(SegformerConfig(**ENCODER, decoder_hidden_size=12, num_labels=3))
    head = {name: tensor.clone() for name, tensor in model.decode_head.state_dict().items()}
    report = load_encoder(model, file)
    assert report.source == {"folder": "hf4"}.get(layout, layout)
    loaded = model.segformer.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    assert all(torch.equal(head[name], tensor) for name, tensor in model.decode_head.state_dict().items())


def test_encoder_of_another_size(tmp_path):
    file, _ = write_encoder(tmp_path, "nvlabs", ENCODER)
    model = SegformerForSemanticSegmentation(SegformerConfig(**ENCODER | {"depths": [1, 1, 1, 1]}))
    with pytest.raises(ValueError, match=r"mit\.pth does not fit the model: depths \[1, 2, 1, 1\] instead of"):
        load_encoder(model, file)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth"):
        load_encoder(model, tmp_path / "other.pth")


# Batches and BatchNorm


@pytest.mark.parametrize(
    ("processes", "asked", "expected"),
    [
        (8, {}, (2, 1)),
        (4, {}, (2, 2)),
        (1, {}, (2, 8)),
        (16, {}, (1, 1)),
        (1, {"batch_size": 8}, (8, 2)),
        (2, {"gradient_accumulation_steps": 1}, (8, 1)),
        (3, {"global_batch_size": 18}, (2, 3)),
        (3, {"global_batch_size": 9}, (1, 3)),
        (2, {"batch_size": 3, "gradient_accumulation_steps": 5}, (3, 5)),
        (2, {"global_batch_size": 12, "batch_size": 3, "gradient_accumulation_steps": 2}, (3, 2)),
    ],
)
def test_global_batch_of_a_recipe_is_kept(processes, asked, expected):
    plan = plan_batches(processes, 2, published=(8, 2), **asked)
    assert (plan.batch_size, plan.gradient_accumulation_steps) == expected
    total = plan.batch_size * plan.gradient_accumulation_steps * processes
    assert plan.global_batch_size == total == asked.get("global_batch_size", 30 if len(asked) == 2 else 16)
    assert (f"the global batch is {total} images, the recipe's 16" in plan.note) == (total != 16)
    assert f"BatchNorm sees {plan.batch_size} images at a time, in the published run 16" in plan.note


def test_synchronised_batch_norm_sees_all_processes():
    assert plan_batches(8, 2, published=(8, 2), sync_batch_norm=True).note == ""
    assert "BatchNorm sees 8 images" in plan_batches(4, 2, published=(8, 2), sync_batch_norm=True).note
    assert synchronizes_batch_norm(True, 2, "cuda")
    for wanted, processes, device in ((False, 2, "cuda"), (True, 1, "cuda"), (True, 2, "cpu")):
        assert not synchronizes_batch_norm(wanted, processes, device)


def test_frozen_batch_norm_sees_no_batch():
    assert plan_batches(1, 2, published=(8, 2), frozen_batch_norm=True).note == ""


@pytest.mark.parametrize("conv_width", [None, 20], ids=["mlp", "conv"])
def test_synchronised_batch_norm_changes_neither_weights_nor_predictions(conv_width, tiny_config, randomize):
    model = randomize(SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=conv_width))).eval()
    pixels, names = torch.randn(1, 3, 32, 64), list(model.state_dict())
    expected = model(pixels).logits
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model.decode_head.batch_norm, nn.SyncBatchNorm)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(pixels).logits, expected, rtol=1e-4, atol=1e-5)
    freeze_batch_norm(model.train())
    assert not model.decode_head.batch_norm.training


def test_without_a_recipe_the_batch_grows_with_the_processes():
    assert plan_batches(3, 8) == BatchPlan(8, 1, 3)
    assert plan_batches(3, 8, batch_size=5, gradient_accumulation_steps=2).global_batch_size == 30
    assert plan_batches(2, 8, global_batch_size=20) == BatchPlan(5, 2, 2)


@pytest.mark.parametrize(
    ("processes", "asked", "message"),
    [
        (3, {}, "global_batch_size must be a multiple of 3 processes, got 16; take 15 or 18"),
        (32, {}, "multiple of 32 processes, got 16; take 32"),
        (2, {"batch_size": 3}, "multiple of 2 processes x batch_size 3, got 16; take 12 or 18"),
        (
            1,
            {"global_batch_size": 12, "batch_size": 3, "gradient_accumulation_steps": 2},
            "batch_size x gradient_accumulation_steps x processes = 3 x 2 x 1, got 12",
        ),
    ],
)
def test_global_batches_that_do_not_divide(processes, asked, message):
    with pytest.raises(ValueError, match=message):
        plan_batches(processes, 2, published=(8, 2), **asked)


@pytest.mark.parametrize("conv_width", [None, 20], ids=["mlp", "conv"])
def test_frozen_batch_norm(conv_width, tiny_config, randomize):
    fields = {"conv_decoder_hidden_size": conv_width, "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
    model = randomize(SegformerForSemanticSegmentation(tiny_config(**fields)))
    pixels = torch.randn(2, 3, 32, 64)
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    expected = model.eval()(pixels).logits
    model.train()
    freeze_batch_norm(model)
    assert model.training and model.segformer.training
    logits = model(pixels).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    logits.square().mean().backward()
    assert model.decode_head.batch_norm.weight.grad.abs().sum() > 0
    assert len(buffers) == (15 if conv_width else 3)
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())
    model.train()
    model(pixels)
    assert not torch.equal(model.decode_head.batch_norm.running_mean, buffers["decode_head.batch_norm.running_mean"])


def test_step_seeds_differ():
    seeds = {step_seed(s, t, m, r) for s in range(3) for t in range(20) for m in range(3) for r in range(3)}
    assert len(seeds) == 3 * 20 * 3 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)

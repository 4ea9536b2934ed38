# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Parameter groups, schedules, losses, initial weights and saved state."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_segformer import SegformerForSemanticSegmentation
from hf_segformer.training import (
    Progress,
    count_pixels,
    cross_entropy_sum,
    initialize_as_published,
    latest_state,
    load_state,
    parameter_groups,
    poly_factor,
    save_state,
    set_learning_rate,
    step_seed,
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
    assert math.isclose(poly_factor(0, 160_000, decay_from_start=False), 1e-6)
    assert math.isclose(poly_factor(1500, 160_000, decay_from_start=False), 1.0)
    assert math.isclose(poly_factor(80_750, 160_000, decay_from_start=False), 0.5)


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


def test_initial_weights(tiny_config):
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
    fuse = model.decode_head.linear_fuse.weight
    assert fuse.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.1)


def test_step_seeds_differ():
    seeds = {step_seed(s, t, m, r) for s in range(3) for t in range(20) for m in range(3) for r in range(3)}
    assert len(seeds) == 3 * 20 * 3 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.fixture
def run(tiny_config):
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(tiny_config())
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3))
    model(torch.randn(2, 3, 32, 32), labels=torch.randint(0, 5, (2, 32, 32))).loss.backward()
    optimizer.step()
    return model, optimizer


def test_state_round_trips(run, tiny_config, tmp_path):
    model, optimizer = run
    progress = Progress(7, [{"step": 7, "loss": 0.5}], {"seed": 3, "size": (1, 2)})
    path = save_state(tmp_path, model, optimizer, progress)
    assert latest_state(tmp_path) == path
    fresh = SegformerForSemanticSegmentation(tiny_config())
    other = torch.optim.AdamW(parameter_groups(fresh, 1e-3))
    loaded = load_state(path, fresh, other, {"seed": 3, "size": (1, 2)})
    assert (loaded.step, loaded.history) == (7, progress.history)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name
    ours, theirs = optimizer.state_dict(), other.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in ours["state"].items():
        for name, value in state.items():
            assert torch.equal(value, theirs["state"][index][name])
    with pytest.raises(ValueError, match=r"cannot resume .*seed=4 \(was 3\)"):
        load_state(path, fresh, other, {"seed": 4, "size": (1, 2)})


def test_only_complete_states_count(run, tmp_path):
    model, optimizer = run
    assert latest_state(tmp_path) is None
    for step in (9, 10, 11, 100):
        save_state(tmp_path, model, optimizer, Progress(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000011", "step-00000100"]
    (tmp_path / ".step-00000200.tmp").mkdir()  # what a killed process leaves
    assert latest_state(tmp_path).name == "step-00000100"
    save_state(tmp_path, model, optimizer, Progress(200))
    assert json.loads((latest_state(tmp_path) / "progress.json").read_text())["step"] == 200


def test_failed_write_leaves_the_last_state(run, tmp_path, monkeypatch):
    model, optimizer = run
    save_state(tmp_path, model, optimizer, Progress(1))

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, model, optimizer, Progress(2))
    assert latest_state(tmp_path).name == "step-00000001"

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Saved states: whole or not at all, verified when they are read, and never anything that is not finite."""

import json
import os
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_segformer import SegformerForSemanticSegmentation
from hf_segformer.training import (
    Progress,
    averaged_model,
    find_state,
    latest_state,
    load_best,
    load_state,
    non_finite,
    parameter_groups,
    save_state,
)

FILES = ["model.safetensors", "optimizer.pt", "progress.json"]


def make_run(tiny_config, seed=0):
    torch.manual_seed(seed)
    model = SegformerForSemanticSegmentation(tiny_config())
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3))
    model(torch.randn(2, 3, 32, 32), labels=torch.randint(0, 5, (2, 32, 32))).loss.backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def run(tiny_config):
    return make_run(tiny_config)


@pytest.fixture
def states(run, tmp_path):
    """Folder with states of steps 4 and 8."""
    for step in (4, 8):
        save_state(tmp_path / "states", *run, Progress(step, [{"step": step, "loss": 0.5}], {"seed": 3}))
    return tmp_path / "states"


def make_old(state):
    """What version 0.1 wrote."""
    (state / "checksums.json").unlink()
    path = state / "progress.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({name: fields[name] for name in ("step", "history", "settings")}))


def test_state_round_trips(run, tiny_config, tmp_path):
    model, optimizer = run
    progress = Progress(7, [{"step": 7, "loss": 0.5}], {"seed": 3, "size": (1, 2)}, [{"draw": 1}], [{"step": 2}])
    path = save_state(tmp_path, model, optimizer, progress)
    assert latest_state(tmp_path) == path
    fresh, other = make_run(tiny_config, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_state(path, fresh, other, {"seed": 3, "size": (1, 2)})
    assert vars(loaded) == vars(progress) | {"settings": {"seed": 3, "size": [1, 2]}}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name
    ours, theirs = optimizer.state_dict(), other.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in ours["state"].items():
        for name, value in state.items():
            assert torch.equal(value, theirs["state"][index][name])


def test_other_settings(run, states, tiny_config):
    model, optimizer = make_run(tiny_config, seed=1)
    with pytest.raises(ValueError, match=r"cannot resume .*seed=4 \(was 3\); --allow_changes"):
        load_state(latest_state(states), model, optimizer, {"seed": 4})
    # What version 0.1 did not know cannot have differed.
    assert load_state(latest_state(states), model, optimizer, {"seed": 3, "new": 1}).changes == []
    slower = torch.optim.AdamW(parameter_groups(model, 1e-4, weight_decay=0.5))
    progress = load_state(latest_state(states), model, slower, {"seed": 4}, allow_changes=True)
    assert progress.changes == [{"step": 8, "setting": "seed", "before": 3, "after": 4}]
    assert progress.settings == {"seed": 4}
    assert {group["name"]: (group["initial_lr"], group["weight_decay"]) for group in slower.param_groups} == {
        "encoder": (1e-4, 0.5),
        "encoder_norm": (1e-4, 0.0),
        "head": (1e-3, 0.5),
    }


def test_only_complete_states_count(run, tmp_path):
    assert latest_state(tmp_path) is None
    for step in (9, 10, 11, 100):
        save_state(tmp_path, *run, Progress(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000011", "step-00000100"]
    for name in (".step-00000200.tmp", ".new-step-00000200-" + 32 * "a"):  # what killed processes leave
        (tmp_path / name).mkdir()
    assert latest_state(tmp_path).name == "step-00000100"
    save_state(tmp_path, *run, Progress(200))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00000200"]
    save_state(tmp_path, *run, Progress(200, [{"step": 200}]))  # again, after an interruption
    assert json.loads((latest_state(tmp_path) / "progress.json").read_text())["history"] == [{"step": 200}]


def test_failed_write_leaves_the_last_state(run, tmp_path, monkeypatch):
    save_state(tmp_path, *run, Progress(1))

    def full_disk(*args, **kwargs):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"step-00000002: cannot write the state: .* the states before it are kept"):
        save_state(tmp_path, *run, Progress(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


# ---- best and averaged weights

BEST = {"step": 6, "mean_iou": 0.25, "weights": "ema"}


@pytest.fixture
def states_with_more(run, tmp_path):
    """The same with best and averaged weights."""
    average = averaged_model(run[0], 0.9)
    for step in (4, 8):
        average.update_parameters(run[0])
        best = {name: tensor * 0 + step for name, tensor in run[0].state_dict().items()}
        progress = Progress(step, [{"step": step, "mean_iou": 0.25}], {"seed": 3, "ema": 0.9}, best=BEST)
        save_state(tmp_path / "more", *run, progress, average=average, best=best)
    return tmp_path / "more"


def test_best_and_averaged_weights_round_trip(run, states_with_more, tiny_config):
    fresh, other = make_run(tiny_config, seed=1)
    average = averaged_model(fresh, 0.9)
    path = latest_state(states_with_more)
    progress = load_state(path, fresh, other, {"seed": 3, "ema": 0.9}, average=average)
    assert progress.best == BEST and progress.is_evaluated
    assert average.n_averaged == 2
    for name, tensor in average.module.state_dict().items():
        assert torch.equal(tensor, run[0].state_dict()[name]), name
    assert {name: tensor.flatten()[0].item() for name, tensor in load_best(path).items()} == dict.fromkeys(
        run[0].state_dict(), 8
    )
    # A run without an average leaves it aside.
    assert load_state(path, fresh, other, {"seed": 3}).best == BEST


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "empty", "missing", "another file", "a folder"])
@pytest.mark.parametrize("name", ["best.safetensors", "ema.safetensors"])
def test_damage_of_best_and_averaged_weights_is_seen(states_with_more, name, damage):
    path = states_with_more / "step-00000008" / name
    DAMAGES[damage](path)
    found = find_state(states_with_more)
    assert found.path == states_with_more / "step-00000004"
    assert str(path) in found.passed_over[0]


def test_best_weights_that_no_checksum_speaks_of_are_damage(states_with_more):
    """Neither is a file believed that was not there, nor can one be taken away with its checksum."""
    path = states_with_more / "step-00000008"
    checksums = json.loads((path / "checksums.json").read_text())
    del checksums["best.safetensors"]
    (path / "checksums.json").write_text(json.dumps(checksums))
    assert "best.safetensors is damaged" in find_state(states_with_more).passed_over[0]
    (path / "best.safetensors").unlink()
    assert "best.safetensors is missing" in find_state(states_with_more).passed_over[0]


def test_states_of_the_second_format_load(run, states, tiny_config):
    """They know neither; the best weights are then the best from here on."""
    path = states / "step-00000008"
    fields = json.loads((path / "progress.json").read_text())
    del fields["best"]
    (path / "progress.json").write_text(json.dumps(fields | {"format": 2}))
    rewrite_checksum(path, "progress.json")
    fresh, optimizer = make_run(tiny_config, seed=1)
    average = averaged_model(fresh, 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        progress = load_state(path, fresh, optimizer, {"seed": 3, "ema": 0.9}, None, True, average)
    assert progress.changes == [{"step": 8, "setting": "ema", "before": None, "after": 0.9}]
    assert progress.step == 8 and progress.best is None and load_best(path) is None
    for name, tensor in average.module.state_dict().items():  # it begins here
        assert torch.equal(tensor, run[0].state_dict()[name]), name


@pytest.mark.parametrize(
    "best", [{"step": "6"}, {"mean_iou": None}, [], {"weights": 3}, {"weights": "best"}, {"mood": 1}], ids=str
)
def test_a_best_that_cannot_be(states_with_more, best):
    path = states_with_more / "step-00000008" / "progress.json"
    fields = json.loads(path.read_text())
    fields["best"] = BEST | best if isinstance(best, dict) else best
    path.write_text(json.dumps(fields))
    rewrite_checksum(path.parent, path.name)
    (reason,) = find_state(states_with_more).passed_over
    assert "best must " in reason and str(path) in reason


@pytest.mark.parametrize("name", ["lora", "lora_targets", "freeze"])
def test_what_is_trained_cannot_change_on_the_way(run, states, name):
    save_state(states, *run, Progress(9, [], {name: "a", "seed": 3}))
    with pytest.raises(ValueError, match=f"{name}='b' \\(was 'a'\\), seed=4 .*; {name} is for a whole run"):
        load_state(latest_state(states), *run, {name: "b", "seed": 4}, allow_changes=True)


@pytest.mark.parametrize(
    "setting",
    [{"ema": 0.9}, {"max_grad_norm": 1.0}, {"patience": 2}, {"min_delta": 0.1}, {"freeze": "encoder"}],
    ids=str,
)
def test_what_a_state_of_the_second_format_was_trained_without(run, states, setting):
    """Its version did not know the flag, so it is another setting if it is given now."""
    (name,) = setting
    with pytest.raises(ValueError, match=rf"{name}=.* \(was (None|0.0)\)"):
        load_state(latest_state(states), *run, {"seed": 3} | setting)
    left_out = {"seed": 3, name: 0.0 if name == "min_delta" else None}
    assert load_state(latest_state(states), *run, left_out).step == 8


# ---- damage


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def zeros(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(len(content[middle : middle + 4096]))
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def swap_with_older(path):
    path.write_bytes((path.parent.parent / "step-00000004" / path.name).read_bytes() + b" ")


def turn_into_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "flipped bit": flip,
    "flipped bit at the start": lambda path: flip(path, 0),
    "flipped bit at the end": lambda path: flip(path, 1),
    "zeros": zeros,
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "another file": swap_with_older,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a folder": turn_into_folder,
}


# White space behind the JSON of the checksums themselves is no damage.
CASES = [(name, damage) for name in [*FILES, "checksums.json"] for damage in DAMAGES]
CASES.remove(("checksums.json", "another file"))


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_damaged_state_is_passed_over_by_name(states, name, damage):
    DAMAGES[damage](states / "step-00000008" / name)
    found = find_state(states)
    assert found.path == states / "step-00000004"
    (reason,) = found.passed_over
    expected = name if name != "checksums.json" else "step-00000008"
    assert expected in reason and "step-00000008" in reason
    assert "weights_only" not in reason


def test_the_reasons_of_all_states_are_given(states):
    flip(states / "step-00000008" / "optimizer.pt")
    truncate(states / "step-00000004" / "progress.json")
    found = find_state(states)
    assert found.path is None
    assert [reason.partition(" is ")[0] for reason in found.passed_over] == [
        str(states / "step-00000008" / "optimizer.pt"),
        str(states / "step-00000004" / "progress.json"),
    ]


def test_other_names_are_left_alone(run, states):
    (states / "step-00000004.bak").mkdir()
    (states / "step-old").mkdir()
    (states / "step-9").mkdir()
    (states / "step-00000010").mkdir()  # empty
    (states / "step-00000011").touch()
    (states / "step-00000012").symlink_to(states / "nowhere")
    (states / "notes.txt").write_text("mine")
    found = find_state(states)
    assert found.path == states / "step-00000008"
    assert found.passed_over == (f"{states / 'step-00000010' / 'model.safetensors'} is missing",)
    for step in (9, 10):
        save_state(states, *run, Progress(step))
    names = {path.name for path in states.iterdir()}
    assert names >= {"step-00000004.bak", "step-old", "step-9", "step-00000011", "step-00000012", "notes.txt"}
    assert find_state(states).path == states / "step-00000010"


def test_a_state_that_comes_later_in_the_run_is_kept_until_it_is_reached(run, states):
    """After going back to an older state, newer ones neither count as kept nor push the new ones out."""
    flip(states / "step-00000008" / "optimizer.pt")
    for step in (5, 6, 7):
        save_state(states, *run, Progress(step))
    names = ["step-00000006", "step-00000007", "step-00000008"]
    assert sorted(path.name for path in states.iterdir()) == names
    save_state(states, *run, Progress(8))
    assert find_state(states) == find_state(states).__class__(states / "step-00000008", ())


def test_a_disk_that_cannot_be_read_is_no_damage(states, monkeypatch):
    def fail(file, digest):
        raise OSError(5, "Input/output error", file.name)

    monkeypatch.setattr("hashlib.file_digest", fail)
    with pytest.raises(OSError, match=r"Input/output error.*step-00000008"):
        find_state(states)


# Nothing in the old format shows a flipped bit in the weights.
OLD_CASES = [(name, damage) for name in FILES for damage in ("truncated", "empty", "missing", "flipped bit")]
OLD_CASES.remove(("model.safetensors", "flipped bit"))


@pytest.mark.parametrize(("name", "damage"), OLD_CASES)
def test_damaged_states_of_the_first_version(states, name, damage):
    for step in (4, 8):
        make_old(states / f"step-{step:08d}")
    flip_at = 0.3 if name == "optimizer.pt" else 0.05
    path = states / "step-00000008" / name
    flip(path, flip_at) if damage == "flipped bit" else DAMAGES[damage](path)
    found = find_state(states)
    assert found.path == states / "step-00000004"
    assert str(path) in found.passed_over[0] and "weights_only" not in found.passed_over[0]


def test_states_of_the_first_version_load_with_a_warning(run, states, tiny_config):
    make_old(states / "step-00000008")
    fresh, optimizer = make_run(tiny_config, seed=1)
    with pytest.warns(UserWarning, match=r"step-00000008 was written by version 0\.1, without checksums"):
        progress = load_state(latest_state(states), fresh, optimizer, {"seed": 3, "on_bad_sample": "stop"})
    assert progress.step == 8 and progress.bad_samples == []
    assert all(torch.equal(tensor, run[0].state_dict()[name]) for name, tensor in fresh.state_dict().items())


def test_a_state_of_the_first_version_that_is_not_finite_is_passed_over(states):
    path = states / "step-00000008" / "model.safetensors"
    make_old(path.parent)
    weights = load_file(path)
    weights["decode_head.classifier.bias"][1] = float("inf")
    save_file(weights, path)
    found = find_state(states)
    assert found.path.name == "step-00000004"
    assert found.passed_over == (f"decode_head.classifier.bias in {path} is not finite",)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def rewrite_checksum(state, name):
    import hashlib

    checksums = json.loads((state / "checksums.json").read_text())
    checksums[name] = hashlib.sha256((state / name).read_bytes()).hexdigest()
    (state / "checksums.json").write_text(json.dumps(checksums))


def test_a_poisoned_pickle_is_not_run(states, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = states / "step-00000008" / "optimizer.pt"
    torch.save({"optimizer": {"state": Evil()}, "scaler": None}, path)
    rewrite_checksum(path.parent, path.name)
    found = find_state(states)
    assert found.path.name == "step-00000004" and not (tmp_path / "owned").exists()
    assert "optimizer.pt" in found.passed_over[0] and "weights_only" not in found.passed_over[0]
    path.write_bytes(pickle.dumps(Evil()))
    rewrite_checksum(path.parent, path.name)
    assert "optimizer.pt" in find_state(states).passed_over[0] and not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": 7}, "step must be that of the folder's name, got 7"),
        ({"step": "8"}, "step must be of type int, got '8'"),
        ({"history": {}}, "history must be of type list"),
        ({"format": 4}, "format must be at most 3, got 4: a newer version wrote it"),
        ({"mood": 1}, "unknown fields: mood"),
    ],
)
def test_progress_that_cannot_be(states, fields, message):
    path = states / "step-00000008" / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    rewrite_checksum(path.parent, path.name)
    (reason,) = find_state(states).passed_over
    assert message in reason and str(path) in reason


def test_the_state_of_another_model(states, tiny_config):
    model, optimizer = make_run(lambda: tiny_config(num_labels=7))
    with pytest.raises(ValueError, match=r"step-00000008 is the state of another model: .*classifier"):
        load_state(states / "step-00000008", model, optimizer, {"seed": 3})


# ---- what is not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["weight", "statistic", "moment"])
def test_nothing_that_is_not_finite_is_saved(run, states, place, value):
    model, optimizer = run
    norm = model.decode_head.batch_norm
    tensor = {
        "weight": norm.weight.data,
        "statistic": norm.running_var,
        "moment": optimizer.state[norm.weight]["exp_avg_sq"],
    }[place]
    tensor[3] = value
    before = sorted(states.iterdir())
    with pytest.raises(FloatingPointError, match=r"state of step 9 not saved: .*decode_head\.batch_norm.* not finite"):
        save_state(states, model, optimizer, Progress(9))
    assert sorted(states.iterdir()) == before


def test_large_numbers_are_finite():
    tensors = {"large": torch.full((3,), 3e38), "half": torch.full((900,), 6e4, dtype=torch.float16)}
    tensors |= {"integers": torch.tensor([2**62]), "empty": torch.zeros(0), "truth": torch.ones(2, dtype=torch.bool)}
    assert non_finite(tensors) == [] and non_finite({}) == []
    assert non_finite(tensors | {"x": torch.tensor([1.0, float("nan")])}) == ["x"]


def test_saved_pickles_have_checksums_of_their_own(states):
    """What the check of the first version's states relies on."""
    with zipfile.ZipFile(states / "step-00000008" / "optimizer.pt") as archive:
        assert archive.testzip() is None
        assert all(entry.CRC for entry in archive.infolist() if entry.file_size > 100)


def test_what_was_passed_over_does_not_count_as_kept(run, states):
    flip(states / "step-00000008" / "optimizer.pt")
    found = find_state(states)
    found.set_aside()
    (aside,) = [path.name for path in states.iterdir() if path.name.startswith("damaged-step-00000008-")]
    for step in (9, 10):
        save_state(states, *run, Progress(step))
        assert (states / aside / "optimizer.pt").exists()
    assert find_state(states) == find_state(states).__class__(states / "step-00000010", ())
    assert (states / "step-00000009").exists() and not (states / "step-00000004").exists()


@pytest.mark.parametrize(
    "state",
    [
        {"optimizer": {"state": [], "param_groups": []}, "scaler": None},
        {"optimizer": {"state": {0: 3}, "param_groups": []}, "scaler": None},
        {"optimizer": {}, "scaler": None},
        {"optimizer": {"state": {}, "param_groups": []}, "scaler": 5},
        {"optimizer": {"state": {}, "param_groups": [1]}, "scaler": None},
        [1, 2],
    ],
)
def test_what_no_optimizer_wrote_is_passed_over(states, state):
    make_old(states / "step-00000008")
    torch.save(state, states / "step-00000008" / "optimizer.pt")
    found = find_state(states)
    assert found.path.name == "step-00000004" and "holds no state of an optimizer" in found.passed_over[0]


@pytest.mark.parametrize("history", [[5], [{"loss": 1.0}], [{"step": "1"}], [None]])
def test_a_history_of_something_else_is_passed_over(states, history):
    make_old(states / "step-00000008")
    path = states / "step-00000008" / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"history": history}))
    found = find_state(states)
    assert found.path.name == "step-00000004" and "history must hold objects with a step" in found.passed_over[0]

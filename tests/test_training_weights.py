# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Which weights a run ends with: the best, the last or the averaged ones, also after a kill or an early stop."""

import itertools
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from example_scripts import forget_accelerate, kept_process
from hf_segformer import SegformerForSemanticSegmentation
from hf_segformer.commands.train import main
from hf_segformer.training import EarlyStopping, Progress, averaged_model, find_state, save_state
from hf_segformer.training.best import BestWeights, Exported
from hf_segformer.training.run import Run
from scene_folder import write_scene_folder


class Killed(BaseException):
    """What ends a run in the middle of a line."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scene_folder(tmp_path_factory.mktemp("pictures"), 6, 2)


@pytest.fixture
def run(folder, start, monkeypatch):
    """Function that runs the command in this process, with methods of `Run` replaced."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    words = f"--dataset folder --data_root {folder} --model {start} --crop_size 64 --image_size 64 --batch_size 2"
    words += " --num_workers 0 --num_threads 1 --check none --learning_rate 3e-3 --warmup_steps 0"

    def call(*arguments, **replaced):
        forget_accelerate()
        with monkeypatch.context() as patch:  # for this run only
            for name, make in replaced.items():
                patch.setattr(Run, name, make(getattr(Run, name)))
            main([*words.split(), *map(str, arguments)])

    with kept_process():
        yield call


def killing(step, evaluated=True):
    """Replaces `Run.save` by one that ends the run in place of saving a step once it is evaluated, or after it."""

    def make(save):
        def spoiled(run):
            if run.progress.step == step and evaluated and run.progress.is_evaluated:
                raise Killed
            save(run)
            if run.progress.step == step and not evaluated:
                raise Killed

        return spoiled

    return make


def recording(kept):
    """Replaces `Run.evaluate` by one that appends step, kind of weights, weights and mIoU of each evaluation."""

    def make(evaluate):
        def recorded(run, model=None, **how):
            matrix = evaluate(run, model, **how)
            kind = "raw" if model in (None, run.model) else "ema"
            weights = {name: tensor.clone() for name, tensor in (model or run.model).state_dict().items()}
            kept.append((run.progress.step, kind, weights, matrix.compute()["mean_iou"]))
            return matrix

        return recorded

    return make


def weights_of(output_dir):
    return load_file(output_dir / "model.safetensors")


def are_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def read(path):
    return json.loads(path.read_text())


def state_of(output_dir):
    return find_state(output_dir / "states").path


EVERY_STEP = ["--max_steps", 6, "--eval_every", 1, "--save_every", 2, "--log_every", 1]


# ---- the best weights


@pytest.mark.parametrize(
    ("seed", "killed_at", "evaluated", "saved"),
    [(1, 4, True, 2), *(pytest.param(seed, 6, seed == 3, 6, marks=pytest.mark.long) for seed in (2, 3))],
)
def test_the_best_weights_survive_a_kill(seed, killed_at, evaluated, saved, run, tmp_path):
    """Evaluations of the killed run that no state knows are done again, with the same result.

    The last step is saved before its evaluation and once more after it.
    """
    flags, kept = [*EVERY_STEP, "--ema", 0.5, "--seed", seed], []
    run(*flags, "--output_dir", tmp_path / "whole", evaluate=recording(kept))
    with pytest.raises(Killed):
        run(*flags, "--output_dir", tmp_path / "killed", save=killing(killed_at, evaluated))
    assert state_of(tmp_path / "killed").name == f"step-{saved:08d}"
    run(*flags, "--output_dir", tmp_path / "killed", "--resume")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    step, kind, weights, score = max(kept, key=lambda found: found[3])  # of equal ones the first
    for output_dir in (whole, killed):
        assert are_equal(weights_of(output_dir), weights)
        metrics, progress = read(output_dir / "metrics.json"), read(state_of(output_dir) / "progress.json")
        assert progress["best"] == {"step": step, "mean_iou": score, "weights": kind}
        assert (metrics["mean_iou"], metrics["step"], metrics["weights"]) == (score, step, kind)
        assert are_equal(load_file(state_of(output_dir) / "best.safetensors"), weights)
    for name in ("model", "ema", "best"):
        files = [load_file(state_of(output_dir) / f"{name}.safetensors") for output_dir in (whole, killed)]
        assert are_equal(*files), name
    histories = [read(state_of(output_dir) / "progress.json")["history"] for output_dir in (whole, killed)]
    assert histories[0] == histories[1]
    scores = {(step, kind): score for step, kind, _, score in kept[:12]}
    logged = [entry for entry in histories[0] if "mean_iou" in entry]
    assert [entry["mean_iou"] for entry in logged] == [scores[step, "raw"] for step in range(1, 7)]
    assert [entry["mean_iou_ema"] for entry in logged] == [scores[step, "ema"] for step in range(1, 7)]


def test_a_finished_run_exports_other_weights(run, tmp_path, capsys):
    flags, kept = [*EVERY_STEP, "--ema", 0.5, "--seed", 1, "--output_dir", tmp_path], []
    run(*flags, "--export", "last", evaluate=recording(kept))
    assert [found[0] for found in kept] == [step for step in range(1, 7) for _ in "ab"]  # none twice
    best = max(kept, key=lambda found: found[3])
    for export, (step, kind, weights, score) in {"last": kept[10], "ema": kept[11], "best": best}.items():
        if export != "last":
            run(*flags, "--export", export, "--resume")
        assert are_equal(weights_of(tmp_path), weights), export
        said = {"export": export, "step": step, "weights": kind}
        assert read(tmp_path / "recipe.json")["exported"] == said
        metrics = read(tmp_path / "metrics.json")
        assert {name: metrics[name] for name in said} == said and metrics["mean_iou"] == score
        words = "the best by validation mIoU, after 2 of 6 steps" if export == "best" else "the last, after 6 steps"
        words += ", averaged" if kind == "ema" else ""
        assert f"exported weights: {words}\n" in capsys.readouterr().out
        assert words in (tmp_path / "README.md").read_text()


def test_published_recipes_end_with_their_last_weights():
    from hf_segformer.training import TrainArguments

    assert TrainArguments().export == "best" and TrainArguments(recipe="cityscapes-b2").export == "last"
    for flags in ({"ema": 0.9}, {"patience": 3}):  # unless asked for what chooses
        assert TrainArguments(recipe="cityscapes-b2", **flags).export == "best"
    assert TrainArguments(export="last", ema=0.9).export == "last"


def test_of_equal_weights_the_first_are_the_best_and_nan_never_is():
    best, progress, models = BestWeights(), Progress(), {kind: torch.nn.Linear(1, 1) for kind in ("raw", "ema")}
    scores = [(math.nan, math.nan), (0.0, math.nan), (0.2, 0.2), (0.1, 0.2), (0.2, 0.3), (math.nan, 0.3), (0.3, 0.1)]
    found = []
    for step, (raw, ema) in enumerate(scores):
        progress.step = step
        best.offer(progress, {"raw": raw, "ema": ema}, models)
        found.append(progress.best and (progress.best["step"], progress.best["weights"]))
    assert found == [None, (1, "raw"), (2, "raw"), (2, "raw"), (4, "ema"), (4, "ema"), (4, "ema")]
    assert torch.equal(best.weights["weight"], models["ema"].weight)
    models["ema"].weight.data.zero_()  # it is a copy
    assert best.weights["weight"].item() != 0
    assert Exported.chosen("best", Progress(7)) == Exported("last", 7, "raw")


def test_what_decides_which_weights_are_best_is_a_setting(folder, run, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    flags = ["--max_steps", 2, "--output_dir", tmp_path / "out", "--data_root", tmp_path / "data"]
    run(*flags)
    with pytest.raises(ValueError, match=r"eval_every=2 \(was 1\)"):
        run(*flags, "--resume", "--eval_every", 2)
    run(*flags, "--resume", "--eval_every", 2, "--export", "last")  # to which evaluations do not matter
    for kind in ("images", "annotations"):
        (tmp_path / "data" / "val" / kind / "1.png").unlink()
    with pytest.raises(ValueError, match=r"validation_samples='1 with names of SHA-256 \w+' \(was '2 with"):
        run(*flags, "--resume")


# ---- early stop


def stops_by_hand(scores, patience, min_delta):
    """Number of evaluations after which a run stops, from the last one that was an improvement on."""
    last, best = 0, -math.inf
    for number, score in enumerate(scores, 1):
        if score > best + min_delta:
            last, best = number, score
        if number - last == patience:
            return number
    return None


@pytest.mark.parametrize("min_delta", [0.0, 0.05])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_when_a_run_stops(patience, min_delta):
    rule = EarlyStopping(patience, min_delta)
    for scores in itertools.product([0.1, 0.12, 0.2, math.nan], repeat=5):
        history = [{"step": 0, "loss": 1.0}]
        due = []
        for step, score in enumerate(scores, 1):
            # The better of both counts, whichever it is.
            other = {"mean_iou": 0.01, "mean_iou_ema": score} if step % 2 else {"mean_iou": score}
            history += [{"step": step, **other}, {"step": step, "loss": 0.5}]
            due.append(rule.is_due(history))
        expected = stops_by_hand(
            [0.01 if math.isnan(s) and n % 2 == 0 else s for n, s in enumerate(scores)], patience, min_delta
        )
        assert (due.index(True) + 1 if True in due else None) == expected, scores
    assert not EarlyStopping().is_due([{"step": n, "mean_iou": 0.1} for n in range(99)])


def test_a_run_that_stops_early(run, tmp_path, capsys):
    """By the plan of the whole run; what it was before it was killed, it is again, and it stays stopped."""
    steps = ["--max_steps", 8, "--eval_every", 1, "--save_every", 3, "--log_every", 1]
    flags = [*steps, "--patience", 3, "--min_delta", 0.9]
    run(*flags, "--output_dir", tmp_path / "early")
    assert "stopped after 4 of 8 steps: patience=3" in capsys.readouterr().out
    early = read(state_of(tmp_path / "early") / "progress.json")["history"]
    rates = [entry["learning_rate"] for entry in early if "loss" in entry]
    assert rates == pytest.approx([3e-3 * (1 - step / 8) for step in range(4)], rel=1e-9)  # of all eight steps
    with pytest.raises(Killed):
        run(*flags, "--output_dir", tmp_path / "killed", save=killing(4))
    for more in ({}, {"take_step": lambda take_step: None}):  # the second time there is no step left to take
        run(*flags, "--output_dir", tmp_path / "killed", "--resume", **more)
        assert are_equal(weights_of(tmp_path / "early"), weights_of(tmp_path / "killed"))
        assert read(state_of(tmp_path / "killed") / "progress.json")["step"] == 4
    assert read(tmp_path / "killed" / "metrics.json")["steps_taken"] == 4
    with pytest.raises(ValueError, match=r"patience=2 \(was 3\)"):
        run(*flags, "--output_dir", tmp_path / "early", "--resume", "--patience", 2)


def test_a_run_that_stops_early_logs_all_its_losses(run, tmp_path):
    """And its log says after which step it ended, not only after which one the exported weights were reached."""
    run("--max_steps", 8, "--eval_every", 2, "--patience", 1, "--min_delta", 0.9, "--output_dir", tmp_path)
    history = read(state_of(tmp_path) / "progress.json")["history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [2, 4]  # of log_every, 20, none would be there
    texts = [line[20:] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert [text.split(",")[0] for text in texts if "loss" in text] == ["step 2/8", "step 4/8"]
    exported = read(tmp_path / "metrics.json")["step"]
    assert texts[-1].startswith("finished after step 4: mIoU ")
    assert texts[-1].endswith(f"exported weights, the best by validation mIoU, after {exported} of 4 steps")


# ---- averaged weights


def test_the_average_is_that_of_the_formula(tiny_config, randomize):
    """In float64, by hand: BatchNorm's statistics too, the first weights copied, the decay rising to its own."""
    model = SegformerForSemanticSegmentation(tiny_config())
    average, expected = averaged_model(model, 0.5), None
    for updates in range(12):
        randomize(model, updates)
        average.update_parameters(model)
        now = {name: tensor.double() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = {n: decay * expected[n] + (1 - decay) * now[n] for n in now} if expected else now
    found = average.module.state_dict()
    assert decay == 0.5 and "decode_head.batch_norm.running_var" in expected
    for name, tensor in expected.items():
        assert torch.allclose(found[name].double(), tensor, rtol=1e-5, atol=1e-6), name
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_the_average_of_a_run_is_of_its_steps(run, tmp_path):
    kept = []
    run(*EVERY_STEP, "--ema", 0.7, "--output_dir", tmp_path, evaluate=recording(kept))
    raw = [weights for _, kind, weights, _ in kept if kind == "raw"]
    name = "decode_head.batch_norm.running_mean"
    expected = raw[0][name]
    for updates in range(1, 6):
        decay = (1 + updates) / (10 + updates)
        expected = decay * expected + (1 - decay) * raw[updates][name]
    found = load_file(state_of(tmp_path) / "ema.safetensors")
    assert torch.allclose(found[f"module.{name}"], expected, rtol=1e-5, atol=1e-7)
    assert found["n_averaged"] == 6


def test_an_average_that_begins_later_begins_with_the_weights(run, tmp_path):
    """Where a run that is finished is asked for it, there is nothing to average any more."""
    flags = ["--max_steps", 2, "--output_dir", tmp_path]
    run(*flags)
    last = load_file(state_of(tmp_path) / "model.safetensors")
    run(*flags, "--resume", "--ema", 0.9, "--export", "ema", "--allow_changes")
    assert are_equal(weights_of(tmp_path), last)


def test_an_average_that_is_not_finite_is_not_saved(tiny_config, tmp_path):
    model = SegformerForSemanticSegmentation(tiny_config())
    average = averaged_model(model, 0.9)
    average.module.decode_head.classifier.bias.data[1] = math.nan
    with pytest.raises(FloatingPointError, match=r"module\.decode_head\.classifier\.bias in ema\.safetensors is not"):
        save_state(tmp_path, model, torch.optim.AdamW(model.parameters()), Progress(1), average=average)
    assert not list(tmp_path.iterdir())

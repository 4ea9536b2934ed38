# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What of a network a run trains, and how far: frozen stages, adapters, clipped gradients, epochs."""

import dataclasses
import json
import math
import sys

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from example_scripts import forget_accelerate, kept_process, launch
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation
from hf_segformer.commands.train import main
from hf_segformer.training import TrainArguments, add_adapter, find_state, freeze_parts, keep_frozen, parameter_groups
from hf_segformer.training.run import Run
from oracles import run_oracle
from scene_folder import EXAMPLES, write_scene_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scene_folder(tmp_path_factory.mktemp("pictures"), 6, 2)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A network much smaller than B0, with random statistics and biases, from which the runs of this file start."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("start")
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=11))
    for _ in range(3):
        model.train()(torch.randn(2, 3, 64, 64))  # BatchNorm counts
    model.save_pretrained(path)
    return path


@pytest.fixture
def words(folder, start):
    words = f"--dataset folder --data_root {folder} --model {start} --crop_size 64 --image_size 64 --batch_size 2"
    words += " --num_workers 0 --num_threads 1 --check none --learning_rate 3e-3 --warmup_steps 0"
    return words.split()


@pytest.fixture
def run(words, monkeypatch):
    """Function that runs the command in this process, with methods of `Run` replaced."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")

    def call(*arguments, **replaced):
        forget_accelerate()
        with monkeypatch.context() as patch:  # for this run only
            for name, make in replaced.items():
                patch.setattr(Run, name, make(getattr(Run, name)))
            main([*words, *map(str, arguments)])

    with kept_process():
        yield call


def are_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def state_of(output_dir):
    return find_state(output_dir / "states").path


# ---- frozen parts


@pytest.mark.parametrize(("freeze", "stages"), [("encoder", 4), ("stages:1", 1), ("stages:3", 3)])
def test_frozen_stages_stay_as_they_are(freeze, stages, run, start, tmp_path):
    modes = []

    def watched(take_step):
        def step(run, batches):
            blocks = run.model.segformer.encoder.block
            modes.append([run.model.decode_head.training, *(block[0].drop_path.training for block in blocks)])
            return take_step(run, batches)

        return step

    flags = ["--max_steps", 2, "--eval_every", 1, "--export", "last", "--freeze", freeze]
    run(*flags, "--output_dir", tmp_path, take_step=watched)
    assert modes == 2 * [[True] + [stage >= stages for stage in range(4)]]  # after an evaluation too
    before, after = (load_file(path / "model.safetensors") for path in (start, tmp_path))
    frozen = tuple(
        f"segformer.encoder.{part}.{n}." for n in range(stages) for part in ("patch_embeddings", "block", "layer_norm")
    )
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(frozen)} == same
    state = torch.load(state_of(tmp_path) / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    names = [name for name, _ in SegformerForSemanticSegmentation(SegformerConfig(**TINY)).named_parameters()]
    assert len(state) == len([name for name in names if not name.startswith(frozen)])
    with pytest.raises(ValueError, match=r"freeze=None \(was .*\); freeze is for a whole run"):
        run("--max_steps", 2, "--resume", "--allow_changes", "--output_dir", tmp_path)


def test_a_frozen_encoder_computes_in_training_what_it_does_afterwards(tiny_config):
    """Without it, drop path and dropout would train the head on features that it never sees again."""
    model = SegformerForSemanticSegmentation(tiny_config(drop_path_rate=0.5, hidden_dropout_prob=0.3))
    parts, pixels = freeze_parts(model, "encoder"), torch.randn(2, 3, 64, 64)
    expected = model.eval().segformer(pixels).last_hidden_state
    model.train()
    keep_frozen(parts)
    features = model.segformer(pixels).last_hidden_state
    assert torch.equal(features, expected) and not features.requires_grad  # nothing of it is kept for a backward pass
    assert model.decode_head.training and model.decode_head.batch_norm.training
    model(pixels).logits.sum().backward()
    assert all((p.grad is None) == name.startswith("segformer.") for name, p in model.named_parameters())


def test_a_stage_that_is_not_frozen_keeps_its_drop_path(tiny_config):
    model = SegformerForSemanticSegmentation(tiny_config(drop_path_rate=0.5)).train()
    keep_frozen(freeze_parts(model, "stages:2"))
    training = [block[0].drop_path.training for block in model.segformer.encoder.block]
    assert training == [False, False, True, True]
    with pytest.raises(ValueError, match=r"stages:N with N <= 4 for this model, got 'stages:5'"):
        freeze_parts(model, "stages:5")


# ---- adapters


def lora_by_hand(adapter):
    """Products that a folder's matrices add to each weight, by the weight's name."""
    weights = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    return {
        name.removeprefix("base_model.model.").replace("lora_A.", ""): config["lora_alpha"]
        / config["r"]
        * weights[name.replace("lora_A", "lora_B")]
        @ weights[name]
        for name in weights
        if "lora_A" in name
    }


def test_adapter_and_merged_folder(run, start, tmp_path):
    """The merged weights are base + alpha / rank * B A, by hand; PEFT alone gives the same network."""
    from peft import PeftModel

    run("--max_steps", 4, "--lora", 2, "--lora_alpha", 3, "--max_grad_norm", 1, "--output_dir", tmp_path)
    base, merged = load_file(start / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    added = lora_by_hand(tmp_path / "adapter")
    assert base.keys() == merged.keys() and len(added) == 6 * 5  # of five layers
    for name in base:
        if name in added:
            assert torch.allclose(merged[name], base[name] + added[name], atol=1e-6), name
            assert not torch.equal(merged[name], base[name]), name
        else:
            assert torch.equal(merged[name], base[name]) == name.startswith("segformer."), name
    pixels = torch.randn(1, 3, 64, 96)
    models = [SegformerForSemanticSegmentation.from_pretrained(path).eval() for path in (tmp_path, start)]
    adapted = PeftModel.from_pretrained(models[1], tmp_path / "adapter").eval()
    with torch.no_grad():
        logits, expected = models[0](pixels).logits, adapted(pixel_values=pixels).logits
        with adapted.disable_adapter():
            other = adapted(pixel_values=pixels).logits
    assert torch.allclose(logits, expected, atol=1e-5) and not torch.allclose(logits, other, atol=1e-2)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        start
    )
    recipe, metrics = (json.loads((tmp_path / name).read_text()) for name in ("recipe.json", "metrics.json"))
    assert (recipe["lora"], recipe["lora_alpha"], recipe["max_grad_norm"]) == (2, 3, 1) and "freeze" not in recipe
    history = json.loads((state_of(tmp_path) / "progress.json").read_text())["history"]
    (trained,) = [entry["mean_iou"] for entry in history if entry["step"] == metrics["step"] and "mean_iou" in entry]
    assert abs(metrics["mean_iou"] - trained) < 1e-3
    with pytest.raises(ValueError, match=r"lora=3 \(was 2\).* lora is for a whole run"):
        run(
            "--max_steps",
            4,
            "--lora",
            3,
            "--lora_alpha",
            3,
            "--max_grad_norm",
            1,
            "--resume",
            "--allow_changes",
            "--output_dir",
            tmp_path,
        )


STOCK = """
import sys, torch
from peft import PeftModel
from transformers import SegformerForSemanticSegmentation
assert "hf_segformer" not in sys.modules
base, out, file = sys.argv[1:]
adapted = PeftModel.from_pretrained(SegformerForSemanticSegmentation.from_pretrained(base), f"{out}/adapter")
pixels = torch.load(file)
with torch.no_grad():
    models = [adapted, SegformerForSemanticSegmentation.from_pretrained(out)]
    torch.save([model.eval()(pixel_values=pixels).logits for model in models], file)
"""


def test_adapter_and_merged_folder_without_this_package(run, start, tmp_path):
    """In transformers 4, whose names of the layers are ours, and PEFT."""
    run("--max_steps", 2, "--lora", 2, "--output_dir", tmp_path / "out")
    pixels = torch.randn(1, 3, 64, 96)
    torch.save(pixels, tmp_path / "logits.pt")
    run_oracle("stock4", STOCK, str(start), str(tmp_path / "out"), str(tmp_path / "logits.pt"))
    with torch.no_grad():
        expected = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()(pixels).logits
    for logits in torch.load(tmp_path / "logits.pt"):
        assert torch.allclose(logits, expected, atol=1e-5)


def test_an_adapter_resumes_to_the_same_weights(run, tmp_path):
    class Killed(BaseException):
        pass

    def killed(save):
        def spoiled(run):
            save(run)
            if run.progress.step == 2:
                raise Killed

        return spoiled

    flags = ["--max_steps", 4, "--save_every", 1, "--lora", 2, "--ema", 0.5]
    run(*flags, "--output_dir", tmp_path / "whole")
    with pytest.raises(Killed):
        run(*flags, "--output_dir", tmp_path / "killed", save=killed)
    run(*flags, "--output_dir", tmp_path / "killed", "--resume")
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert are_equal(*(load_file(tmp_path / run / name) for run in ("whole", "killed"))), name


def test_which_layers_an_adapter_changes(tiny_config):
    model = SegformerForSemanticSegmentation(tiny_config())
    add_adapter(model, 2, 2.0, "query, sr ,output.dense")
    names = {
        name.partition(".lora_A")[0].partition("block.")[2][4:]
        for name, _ in model.named_parameters()
        if "lora_A" in name
    }
    assert names == {"attention.self.query", "attention.self.sr", "attention.output.dense"}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("decode_head.modules_to_save.") for name in trained)
    rates = {group["name"]: group["lr"] for group in parameter_groups(model, 1.0)}
    assert rates == {"adapter": 10.0, "head": 10.0}
    groups = parameter_groups(model, 1.0)
    assert sum(len(group["params"]) for group in groups) == len(trained)


@pytest.mark.parametrize(
    "targets", ["qeury", "query,classifier", "attention", "", "query,,value", "layer_norm_1", "dwconv", "query|key"]
)
def test_layers_that_no_adapter_can_change(targets, tiny_config):
    with pytest.raises(ValueError, match=r"lora_targets must be names of the encoder's layers \(dense, dense1"):
        add_adapter(SegformerForSemanticSegmentation(tiny_config()), 2, 2.0, targets)


@pytest.mark.parametrize("conv_width", [None, 20], ids=["mlp", "conv"])
def test_the_engine_is_right_about_adapters(conv_width, tiny_config, randomize):
    """In training and inference, whatever it does faster: against the textbook."""
    from hf_segformer import engine

    still = {"classifier_dropout_prob": 0.0, "drop_path_rate": 0.0}  # the engine draws in another order
    model = SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=conv_width, **still))
    add_adapter(model, 2, 2.0)
    randomize(model)
    pixels, results = torch.randn(2, 3, 64, 96), []
    statistics = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name or "num_b" in name
    }
    for textbook in (False, True):
        model.load_state_dict(statistics, strict=False)
        model.zero_grad()
        torch.manual_seed(0)
        with engine.off() if textbook else torch.enable_grad():
            model.train()(pixels).logits.square().mean().backward()
            with torch.no_grad():
                logits = model.eval()(pixels).logits
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        results.append([logits, *gradients])
    assert len(results[0]) > 60 and all(gradient.abs().max() > 0 for gradient in results[0])
    for ours, textbook in zip(*results, strict=True):
        assert torch.allclose(ours, textbook, rtol=1e-3, atol=1e-4 * textbook.abs().max().item() + 1e-7)


def test_without_peft_a_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ValueError, match=r"lora=2 needs peft, which is not installed: pip install .*hf_segformer\[train\]"
    ):
        TrainArguments(lora=2, model="x")


# ---- gradients


def gradients(kept):
    """Replaces `Run.build_optimizer` by one whose optimizer appends the gradients of its first step."""

    def make(build):
        def watched(run):
            optimizer = build(run)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            optimizer.register_step_pre_hook(
                lambda *_: kept or kept.extend(p.grad.double().clone() for p in parameters)
            )
            return optimizer

        return watched

    return make


def norm(tensors):
    return math.sqrt(sum(tensor.square().sum().item() for tensor in tensors))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_are_cut_to_a_length(accumulation, run, tmp_path):
    """That of the whole step and all parameters; shorter ones stay."""
    found = {}
    for name, flags in {"whole": [], "cut": ["--max_grad_norm", 0.01], "short": ["--max_grad_norm", 1e6]}.items():
        steps = ["--max_steps", 1, "--gradient_accumulation_steps", accumulation, "--output_dir", tmp_path / name]
        run(*steps, *flags, build_optimizer=gradients(found.setdefault(name, [])))
    assert norm(found["whole"]) > 0.1
    assert math.isclose(norm(found["cut"]), 0.01, rel_tol=1e-3)
    factor = 0.01 / norm(found["whole"])
    for whole, cut, short in zip(*found.values(), strict=True):
        assert torch.equal(whole, short)
        assert torch.allclose(cut, factor * whole, rtol=1e-3, atol=1e-9)


def test_gradients_that_are_not_finite_stop_a_run_as_ever(run, tmp_path):
    def poisoned(take_step):
        def spoiled(run, batches):
            weight = run.model.decode_head.batch_norm.weight
            hook = weight.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
            loss = take_step(run, batches)
            hook.remove()
            return loss

        return spoiled

    with pytest.raises(FloatingPointError, match="training diverged"):
        run("--max_steps", 2, "--max_grad_norm", 1, "--ema", 0.9, "--output_dir", tmp_path, take_step=poisoned)
    assert not (tmp_path / "model.safetensors").exists()


# ---- epochs


def planned(folder, **flags):
    args = TrainArguments(dataset="folder", data_root=str(folder), **flags)
    args.plan_batches(flags.pop("processes", 1), False)
    args.plan_steps(args.load_data())
    return args


@pytest.mark.parametrize(
    ("epochs", "batch_size", "accumulation", "steps"),
    [(1, 2, 1, 3), (2.5, 2, 1, 8), (0.1, 4, 1, 1), (7, 4, 1, 11), (7, 2, 2, 11), (0.3, 1, 1, 2), (100, 3, 1, 200)],
)
def test_epochs_are_turned_into_steps(folder, epochs, batch_size, accumulation, steps):
    """Of six pictures; a part of a step is a step."""
    args = planned(folder, epochs=epochs, batch_size=batch_size, gradient_accumulation_steps=accumulation)
    plain = TrainArguments(dataset="folder", data_root=str(folder), max_steps=steps)
    assert args.max_steps == steps
    for name in ("warmup_steps", "eval_every", "save_every"):
        assert getattr(args, name) == getattr(plain, name), name
    assert args.effective_recipe().max_steps == steps


def test_a_run_of_epochs_is_one_of_steps(run, tmp_path):
    """It resumes as such, and other epochs are another setting."""
    run("--epochs", 0.5, "--output_dir", tmp_path / "epochs")
    run("--max_steps", 2, "--output_dir", tmp_path / "steps")
    assert are_equal(*(load_file(tmp_path / name / "model.safetensors") for name in ("epochs", "steps")))
    with pytest.raises(ValueError, match=r"max_steps=3 \(was 2\).*epochs=1.0 \(was 0.5\)"):
        run("--epochs", 1, "--output_dir", tmp_path / "epochs", "--resume")


def test_epochs_of_a_stream_are_refused(folder):
    args = TrainArguments(dataset="folder", data_root=str(folder), epochs=2)
    args.plan_batches(1, False)
    data = args.load_data()
    streamed = dataclasses.replace(data, train=data.train.to_iterable_dataset())
    with pytest.raises(
        ValueError, match=r"epochs=2 needs a data set of known length, but .* is streamed: give max_steps"
    ):
        args.plan_steps(streamed)


def test_intervals_are_checked_when_the_steps_are_known(folder):
    with pytest.raises(ValueError, match=r"warmup_steps must be in \[0, max_steps=3\), got 3"):
        planned(folder, epochs=1, batch_size=2, warmup_steps=3)
    with pytest.raises(ValueError, match=r"patience=2 with eval_every=1 .* max_steps=3"):
        planned(folder, epochs=1, batch_size=2, eval_every=1, patience=2)


# ---- flags that cannot be


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"epochs": 2, "max_steps": 5}, r"max_steps=5 must be left out with epochs=2"),
        ({"epochs": 0}, r"epochs must be > 0, got 0"),
        ({"epochs": math.inf}, r"epochs must be finite, got inf"),
        ({"epochs": math.nan}, r"epochs must be .*, got nan"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm must be > 0, got -1"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm must be > 0, got 0"),
        ({"ema": 1.0}, r"ema must be in \(0, 1\), got 1"),
        ({"ema": 0.0}, r"ema must be in \(0, 1\), got 0"),
        ({"ema": math.nan}, r"ema must be in \(0, 1\), got nan"),
        ({"export": "ema"}, r"export='ema' goes with ema"),
        ({"export": "first"}, r"export must be one of best, last, ema, got 'first'"),
        ({"patience": 0}, r"patience must be >= 1 evaluations, got 0"),
        ({"patience": 1, "min_delta": -0.1}, r"min_delta must be in \[0, 1\), .*got -0.1"),
        ({"patience": 1, "min_delta": 1.0}, r"min_delta must be in \[0, 1\), .*got 1"),
        ({"patience": 1, "min_delta": math.nan}, r"min_delta must be in \[0, 1\), .*got nan"),
        ({"min_delta": 0.1}, r"min_delta goes with patience.*got min_delta=0.1"),
        ({"patience": 1, "max_steps": 10, "eval_every": 10}, r"patience=1 with eval_every=10 .*max_steps=10"),
        ({"patience": 4, "max_steps": 10, "eval_every": 2}, r"patience=4 with eval_every=2 .*max_steps=10"),
        ({"freeze": "encoder", "lora": 4, "model": "x"}, r"freeze='encoder' goes without lora=4"),
        ({"freeze": "decoder"}, r"freeze must be encoder, or stages:N with N >= 1 .*got 'decoder'"),
        ({"freeze": "stages:0"}, r"freeze must be .*got 'stages:0'"),
        ({"freeze": "stages:-1"}, r"freeze must be .*got 'stages:-1'"),
        ({"freeze": "stages:1.5"}, r"freeze must be .*got 'stages:1.5'"),
        ({"lora": 0, "model": "x"}, r"lora must be a rank >= 1, got 0"),
        ({"lora": 4}, r"lora=4 adapts trained weights: name them with model or encoder"),
        ({"lora_alpha": 4.0}, r"lora_alpha goes with lora, .*got lora_alpha=4.0"),
        ({"lora_targets": "query"}, r"lora_targets goes with lora, .*got lora_targets='query'"),
        ({"lora": 4, "lora_alpha": 0.0, "model": "x"}, r"lora_alpha must be > 0 and finite, got 0"),
        ({"lora": 4, "lora_alpha": math.inf, "model": "x"}, r"lora_alpha must be > 0 and finite, got inf"),
    ],
    ids=str,
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(ValueError, match=message):
        TrainArguments(**flags)


@pytest.mark.parametrize(("patience", "max_steps"), [(1, 8), (1, 4), (3, 12), (5, 100), (10, 1000), (100, 160_000)])
def test_patience_alone_is_enough(patience, max_steps):
    """A run is then evaluated so often that it can end."""
    args = TrainArguments(patience=patience, max_steps=max_steps)
    assert (patience + 1) * args.eval_every < max_steps


# ---- several processes

KILLED_RANKS = """
import os, sys
sys.path.insert(0, {examples!r})
import train
from hf_segformer.training.run import Run
log_evaluation = Run.log_evaluation
def killed(run, bar):
    log_evaluation(run, bar)
    if run.progress.step == 4:
        run.accelerator.wait_for_everyone()
        os._exit(9)
if "--resume" not in sys.argv and {kills!r} in " ".join(sys.argv):
    Run.log_evaluation = killed
train.main()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "parts",
    [
        ["--lora", 2, "--ema", 0.5, "--max_grad_norm", 0.1, "--patience", 3, "--min_delta", 0.9],
        ["--freeze", "stages:2", "--ema", 0.5, "--export", "ema"],
    ],
    ids=["lora", "freeze"],
)
def test_two_processes_resume_to_the_same_weights(parts, words, tmp_path):
    """Both stop at the same step, and the file of the main process holds what both have."""
    script = tmp_path / "run.py"
    script.write_text(KILLED_RANKS.format(examples=str(EXAMPLES), kills=str(tmp_path / "killed")))
    flags = [*words, "--max_steps", 6, "--eval_every", 1, "--save_every", 3, "--log_every", 1, *parts]
    launch(script, *flags, "--output_dir", tmp_path / "whole", processes=2)
    assert launch(script, *flags, "--output_dir", tmp_path / "killed", processes=2, check=False).returncode
    assert state_of(tmp_path / "killed").name == "step-00000003"
    launch(script, *flags, "--output_dir", tmp_path / "killed", "--resume", processes=2)
    states = [state_of(tmp_path / name) for name in ("whole", "killed")]
    assert [path.name for path in states] == [f"step-0000000{4 if '--patience' in parts else 6}"] * 2
    for name in ("model", "ema", "best"):
        assert are_equal(*(load_file(path / f"{name}.safetensors") for path in states)), name
    assert are_equal(*(load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")))
    progress = [json.loads((path / "progress.json").read_text()) for path in states]
    assert progress[0]["best"] == progress[1]["best"] and progress[0]["history"] == progress[1]["history"]

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Training runs that meet faults: another precision, divergence, damaged states, second processes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file

from example_scripts import checked, environment, forget_accelerate, kept_process, launch, run_script
from hf_segformer import SegformerForSemanticSegmentation
from hf_segformer.training import DivergenceGuard, RunLock, find_state, non_finite
from hf_segformer.training.run import Run
from scene_folder import EXAMPLES, example_module, write_scene_folder

SMALL = ["--crop_size", "64", "--batch_size", "2", "--num_workers", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scene_folder(tmp_path_factory.mktemp("pictures"), 10, 2)


@pytest.fixture
def run(folder, start, monkeypatch):
    """Function that runs an example script in this process, with methods of `Run` replaced."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")

    def call(*arguments, script="train", threads=1, **replaced):
        forget_accelerate()
        module = example_module(script)
        small = [*SMALL, *smaller(start, threads)] if script == "train" else [*SMALL[2:], "--num_threads", 1]
        words = [str(part) for part in ("--dataset", "folder", "--data_root", folder, *small, *arguments)]
        with monkeypatch.context() as patch:  # for this run only
            for name, make in replaced.items():
                patch.setattr(Run, name, make(getattr(Run, name)))
            module.main(words)

    with kept_process():
        yield call


def smaller(start, threads=1):
    """More flags for small runs; without them a run is that of a B0 which sees the validation pictures at 512."""
    threads = [] if threads is None else ["--num_threads", threads]
    return ["--model", start, "--image_size", 64, *threads]


def weights_of(output_dir):
    return load_file(output_dir / "model.safetensors")


def are_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- what Accelerate was told


def test_the_precision_of_accelerate_config_is_taken(folder, start, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("distributed_type: 'NO'\nmixed_precision: bf16\nuse_cpu: true\n")
    data = ["--dataset", "folder", "--data_root", folder, "--max_steps", 2, *SMALL, *smaller(start)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, EXAMPLES / "train.py"]
    command = list(map(str, [*command, *data, "--output_dir", tmp_path / "configured"]))
    configured = checked(subprocess.run(command, capture_output=True, text=True, env=environment()))
    told = {"ACCELERATE_MIXED_PRECISION": "bf16"}  # which is how the launcher tells it
    flags = ["--mixed_precision", "no", "--output_dir", tmp_path / "flag"]
    flag = run_script("train.py", *data, *flags, variables=told)
    for name, done, precision in (("configured", configured, "bf16"), ("flag", flag, "no")):
        assert f"mixed_precision {precision}" in done.stdout
        assert json.loads((tmp_path / name / "recipe.json").read_text())["launch"]["mixed_precision"] == precision
    assert not are_equal(weights_of(tmp_path / "configured"), weights_of(tmp_path / "flag"))


def test_the_accumulation_that_accelerate_was_told(run, tmp_path, monkeypatch, capsys):
    run("--max_steps", 2, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path / "flag")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    run("--max_steps", 2, "--output_dir", tmp_path / "environment")
    assert "gradient_accumulation_steps 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "environment" / "recipe.json").read_text())["gradient_accumulation_steps"] == 2
    # Accelerate divides losses by its own number, which is not done twice.
    assert are_equal(weights_of(tmp_path / "flag"), weights_of(tmp_path / "environment"))
    run("--max_steps", 2, "--gradient_accumulation_steps", 1, "--output_dir", tmp_path / "outranked")
    assert json.loads((tmp_path / "outranked" / "recipe.json").read_text())["gradient_accumulation_steps"] == 1
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    with pytest.raises(ValueError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS must be a number > 0"):
        run("--max_steps", 2, "--output_dir", tmp_path / "other")


@pytest.mark.long
def test_compiler_and_threads_that_accelerate_was_told(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run("--max_steps", 1, "--output_dir", tmp_path / "out", threads=None)
    ran = json.loads((tmp_path / "out" / "recipe.json").read_text())["launch"]
    assert (ran["dynamo_backend"], ran["num_threads"], ran["num_processes"]) == ("eager", 2, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run("--max_steps", 1, "--num_threads", 1, "--output_dir", tmp_path / "flag")
    assert json.loads((tmp_path / "flag" / "recipe.json").read_text())["launch"]["num_threads"] == 1


def test_evaluation_takes_the_precision_too(run, tmp_path, monkeypatch):
    run("--max_steps", 1, "--output_dir", tmp_path / "out")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for name, flags, precision in (("a", [], "bf16"), ("b", ["--mixed_precision", "no"], "no")):
        model = ["--model", tmp_path / "out", "--output_dir", tmp_path / name]
        run(*model, *flags, script="evaluate")
        assert json.loads((tmp_path / name / "metrics.json").read_text())["mixed_precision"] == precision


@pytest.mark.parametrize("precision", ["fp17", "fp8"])
def test_a_precision_that_is_not_there_is_one_error(precision, run, tmp_path):
    with pytest.raises(ValueError, match=precision):
        run("--mixed_precision", precision, "--output_dir", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE"])
def test_processes_that_do_not_know_of_each_other_are_refused(variable, tmp_path):
    variables = {"ACCELERATE_USE_CPU": "false", variable: "2"}
    for script in ("train.py", "evaluate.py"):
        model = ["--model", "unused"] if script == "evaluate.py" else []
        done = run_script(script, *model, "--output_dir", tmp_path / "out", check=False, variables=variables)
        assert done.returncode == 2
        assert f"error: {variable} says 2 processes, but accelerate runs 1 here" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        pytest.param(
            None,
            "WORLD_SIZE says 2 processes, but accelerate runs 1 here, so that each would take itself for the only one",
            marks=pytest.mark.long,
        ),
        ("FSDP", "WORLD_SIZE says 2 processes, but accelerate runs 1 here, .*; FSDP, which was asked for, needs GPUs"),
        pytest.param(
            "DEEPSPEED",
            "accelerate cannot do what its configuration asks for: DeepSpeed is not installed",
            marks=pytest.mark.long,
        ),
    ],
)
def test_two_processes_where_there_are_no_gpus(plugin, message, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(EXAMPLES / "train.py"), "--max_steps", "1", "--output_dir", str(tmp_path / "out")]
    variables = environment() | ({f"ACCELERATE_USE_{plugin}": "true"} if plugin else {})
    variables.pop("ACCELERATE_USE_CPU", None)
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=200)
    assert done.returncode and re.search(f"^error: {message}", done.stderr, re.MULTILINE), done.stderr
    assert not list(tmp_path.iterdir())


# ---- divergence


def poison(step, what="gradient", value=float("nan")):
    """Replaces `Run.take_step` by one that spoils something in a step, counted from 1."""

    def make(take_step):
        def spoiled(run, batches):
            bare, progress, hooks = run.model, run.progress, []
            norm = bare.decode_head.batch_norm
            if progress.step + 1 == step and what == "gradient":
                hooks.append(norm.weight.register_hook(lambda gradient: torch.full_like(gradient, value)))
            if progress.step + 1 == step and what == "input":
                hooks.append(bare.register_forward_pre_hook(lambda module, args: (torch.full_like(args[0], value),)))
            loss = take_step(run, batches)
            if progress.step == step and what == "statistic":
                norm.running_var[2] = value
            for hook in hooks:
                hook.remove()
            return loss

        return spoiled

    return make


def check_states(output_dir, steps):
    """Exactly these states are left, and they are good."""
    states = sorted((output_dir / "states").iterdir()) if (output_dir / "states").exists() else []
    assert [path.name for path in states] == [f"step-{step:08d}" for step in steps]
    for path in states:
        assert non_finite(load_file(path / "model.safetensors")) == []
    assert find_state(output_dir / "states").passed_over == ()


def test_one_bad_gradient_leaves_the_good_states(run, tmp_path):
    """With the default intervals: of 60 steps, a state every 6 and a logged loss every 20."""
    whole, spoiled, steps = tmp_path / "whole", tmp_path / "spoiled", ["--max_steps", 60, "--eval_every", 60]
    run(*steps, "--output_dir", whole)
    with pytest.raises(FloatingPointError) as raised:
        run(*steps, "--output_dir", spoiled, take_step=poison(15))
    message = str(raised.value)
    assert "are not finite. All was finite after step 12" in message
    # The loss of the next step is what the spoilt weights show in.
    assert "the loss of step 16" in message and "Pictures of steps 15 to 16, process 0: " in message
    sampler, samples = draws(spoiled), re.findall(r"[\w/.-]*\d\.png", message)
    assert [Path(name).name for name in samples] == [f"{index}.png" for index in sampler]
    assert f"The last good state is {spoiled}/states/step-00000012. --resume" in message
    check_states(spoiled, [6, 12])
    assert not (spoiled / "model.safetensors").exists()
    run(*steps, "--output_dir", spoiled, "--resume")
    assert are_equal(weights_of(whole), weights_of(spoiled))


def draws(output_dir):
    """Pictures of steps 15 and 16 of a run of batches of 2 over 10 pictures."""
    import numpy as np

    order = [np.random.default_rng([0, epoch, 0]).permutation(10) for epoch in range(4)]
    return [int(order[draw // 10][draw % 10]) for draw in range(2 * 14, 2 * 16)]


@pytest.mark.parametrize(
    ("step", "what", "value", "saved", "named"),
    [
        (6, "gradient", float("nan"), [], "No state had been saved"),
        (8, "gradient", float("nan"), [], "No state had been saved"),
        (8, "gradient", float("inf"), [4], "decode_head.batch_norm.weight"),
        (8, "statistic", float("inf"), [4], "decode_head.batch_norm.running_var"),
        (5, "input", float("nan"), [4], "the loss of step 5"),
        (1, "statistic", float("nan"), [], "No state had been saved"),
    ],
)
def test_nothing_spoilt_is_saved_evaluated_or_exported(run, tmp_path, step, what, value, saved, named):
    """The last step counts too."""
    seen = []
    every = ["--save_every", 4 if saved else 8, "--eval_every", 3, "--log_every", 100]
    with pytest.raises(FloatingPointError, match=named):
        run(
            *["--max_steps", 8, "--output_dir", tmp_path, *every],
            take_step=poison(step, what, value),
            evaluate=lambda evaluate: (
                lambda run, *what, **how: (seen.append(run.model), evaluate(run, *what, **how))[1]
            ),
        )
    check_states(tmp_path, saved)
    assert len(seen) == (step - 1) // 3, "a spoilt model was evaluated"
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(["states"] if saved else []), "train.log"]
    if not saved:  # nothing is there that another run could damage
        run("--max_steps", 1, "--output_dir", tmp_path)


def test_a_run_may_go_on_with_other_settings_after_it_diverged(run, tmp_path):
    arguments = ["--max_steps", 6, "--output_dir", tmp_path, "--save_every", 2]
    with pytest.raises(FloatingPointError, match="--allow_changes"):
        run(*arguments, take_step=poison(3))
    slower = [*arguments, "--resume", "--learning_rate", "1e-5"]
    with pytest.raises(ValueError, match=r"learning_rate=1e-05 \(was 6e-05\)"):
        run(*slower)
    run(*slower, "--allow_changes")
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["changes"] == [{"step": 2, "setting": "learning_rate", "before": 6e-05, "after": 1e-5}]
    assert recipe["learning_rate"] == 1e-5
    history = json.loads((find_state(tmp_path / "states").path / "progress.json").read_text())["history"]
    assert [entry["learning_rate"] for entry in history if "loss" in entry][-1] < 1e-5
    with pytest.raises(ValueError, match="allow_changes goes with resume"):
        run("--allow_changes", "--output_dir", tmp_path / "other")


POISONED_RANK = """
import sys, torch
sys.path[:0] = [{examples!r}, {tests!r}]
import train
from hf_segformer.training.run import Run
from test_runs import poison
take_step = Run.take_step
def on_second(run, batches):
    step = poison(3, "input")(take_step) if run.accelerator.process_index == 1 else take_step
    return step(run, batches)
Run.take_step = on_second
try:
    train.main()
except FloatingPointError as error:
    sys.exit(f"error: {{error}}")
"""


def test_of_two_processes_the_one_with_the_bad_picture_is_named(folder, start, tmp_path):
    """Its statistics and loss are its own; all stop together."""
    script = tmp_path / "poisoned.py"
    script.write_text(POISONED_RANK.format(examples=str(EXAMPLES), tests=str(Path(__file__).parent)))
    data = ["--dataset", "folder", "--data_root", folder, "--max_steps", 6, "--save_every", 2, *SMALL]
    data += smaller(start)
    done = launch(script, *data, "--output_dir", tmp_path / "out", processes=2, check=False)
    assert done.returncode
    lines = {line for line in done.stderr.splitlines() if line.startswith("error:")}
    assert len(lines) == 1, done.stderr[-3000:]
    (line,) = lines
    assert "the loss of step 3" in line and "Pictures of steps 3 to 3" not in line
    assert "process 0: " in line and "process 1: " in line and "step-00000002" in line
    check_states(tmp_path / "out", [2])


def test_steps_that_the_loss_scaler_skips_do_not_count(tiny_config):
    forget_accelerate()
    model, accelerator = SegformerForSemanticSegmentation(tiny_config()), Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    bare = torch.optim.AdamW(model.parameters())
    optimizer = AcceleratedOptimizer(bare, scaler=scaler)
    guard = DivergenceGuard(accelerator, model, bare, lambda step: [])
    scaler.scale(torch.zeros(()))  # which sets it up
    for factor in (1.0, float("inf"), float("nan"), 1.0):
        loss = factor * model(torch.randn(1, 3, 32, 32), labels=torch.ones(1, 32, 32).long()).loss
        (2.0**10 * loss).backward()
        scaler._scale.fill_(2.0**10)
        optimizer.step()
        assert optimizer.step_was_skipped == (factor != 1)
        guard.record(loss.detach(), optimizer.step_was_skipped)
        optimizer.zero_grad()
        guard.look()
    for _ in range(100):
        guard.record(torch.tensor(float("nan")), was_skipped=True)
    with pytest.raises(FloatingPointError, match=r"skipped the last 100 steps \(up to step 104\).*bf16"):
        guard.look()


# ---- damaged states, second runs


def test_a_run_resumes_from_the_newest_state_that_is_whole(run, tmp_path, capsys):
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    arguments = ["--max_steps", 6, "--save_every", 2, "--eval_every", 6]
    run(*arguments, "--output_dir", whole)
    with pytest.raises(FloatingPointError):
        run(*arguments, "--output_dir", damaged, take_step=poison(6))
    path = damaged / "states" / "step-00000004" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)
    run(*arguments, "--output_dir", damaged, "--resume")
    printed = capsys.readouterr().out
    assert f"saved state passed over: {path} is damaged" in printed and "resuming at step 2" in printed
    assert are_equal(weights_of(whole), weights_of(damaged))
    for state in (damaged / "states").iterdir():
        (state / "optimizer.pt").write_bytes(b"")
    before = weights_of(damaged)
    with pytest.raises(ValueError, match=r"no saved state in .* can be resumed: .*step-00000006.*; .*step-00000004"):
        run(*arguments, "--output_dir", damaged, "--resume")
    assert are_equal(before, weights_of(damaged))


@pytest.mark.long
def test_two_runs_started_together_take_two_folders(folder, start, tmp_path):
    data = ["--dataset", "folder", "--data_root", folder, "--max_steps", 1, *SMALL, *smaller(start)]
    command = [sys.executable, EXAMPLES / "train.py", *map(str, data)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes) for _ in range(2)]
    for process in both:
        _, error = process.communicate()
        assert process.returncode == 0, error[-3000:]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["folder-b0", "folder-b0.2"]
    for name in ("folder-b0", "folder-b0.2"):
        assert (tmp_path / "runs" / name / "model.safetensors").exists()
        assert not (tmp_path / "runs" / name / ".lock").exists()


def test_a_second_resume_is_refused_while_the_first_runs(folder, start, tmp_path, run):
    run("--max_steps", 2, "--output_dir", tmp_path / "out")
    lock = RunLock(tmp_path / "out")
    command = [sys.executable, EXAMPLES / "train.py", "--dataset", "folder", "--data_root", folder, "--max_steps", "2"]
    command += [*SMALL, *smaller(start), "--output_dir", tmp_path / "out", "--resume"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment())
    lock.release()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: output_dir {tmp_path / 'out'} is in use by process {os.getpid()} of" in done.stderr


def test_other_data_is_another_setting(folder, tmp_path, run):
    """Names in another order would give the classes each other's scores."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(folder, data)
    run("--data_root", data, "--max_steps", 4, "--save_every", 2, "--output_dir", out)
    shutil.rmtree(out / "states" / "step-00000004")
    resume = ["--data_root", data, "--max_steps", 4, "--save_every", 2, "--output_dir", out, "--resume"]
    shutil.move(data, tmp_path / "moved")
    run(*resume[2:], "--data_root", tmp_path / "moved")  # elsewhere, but the same
    shutil.rmtree(out / "states" / "step-00000004")
    data = tmp_path / "moved"
    resume[1] = data
    names = json.loads((data / "classes.json").read_text())["names"]
    (data / "classes.json").write_text(json.dumps({"names": names[::-1]}))
    with pytest.raises(ValueError, match=r"other settings: class_names=\['wire', .*--allow_changes"):
        run(*resume)
    (data / "classes.json").write_text(json.dumps({"names": names}))
    for kind in ("images", "annotations"):
        (data / "train" / kind / "3.png").unlink()
    with pytest.raises(ValueError, match=r"training_samples='9 with names of SHA-256 \w+' \(was '10 with"):
        run(*resume)


def test_other_class_weights_in_the_same_file_are_another_setting(tmp_path, run):
    weights = tmp_path / "weights.json"
    weights.write_text(json.dumps([1] * 11))
    arguments = ["--max_steps", 2, "--save_every", 1, "--output_dir", tmp_path / "out", "--class_weights", weights]
    run(*arguments)
    weights.write_text(json.dumps([9, *[1] * 10]))
    with pytest.raises(ValueError, match=r"class_weight_values=\[9\.0"):
        run(*arguments, "--resume")


@pytest.mark.parametrize("precision", ["bfloat16", "fp32", "fp16"])
def test_a_precision_that_would_not_be_run_is_refused(precision, run, tmp_path, monkeypatch):
    """Accelerate lets these through from the environment and computes in float32."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    with pytest.raises(ValueError, match=f"mixed_precision .*{precision}"):
        run("--max_steps", 1, "--output_dir", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_scores_that_are_not_finite_are_no_result(run, tmp_path):
    """The weights of the only step are finite, but too large to compute with."""
    with pytest.raises(FloatingPointError, match="scores are not finite"):
        run("--max_steps", 1, "--learning_rate", "1e30", "--warmup_steps", 0, "--output_dir", tmp_path)
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_bad_picture_in_mid_run_is_one_line(split, workers, folder, tmp_path, run):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / split / "images" / "1.png").write_bytes(b"no picture")
    arguments = ["--data_root", data, "--check", "none", "--num_workers", workers, "--max_steps", 5]
    with pytest.raises(ValueError, match=r"1\.png: cannot read the picture") as raised:
        run(*arguments, "--output_dir", tmp_path / "out")
    assert "Traceback" not in str(raised.value) and "\n" not in str(raised.value)


def test_skipped_samples_are_listed_without_paths_of_the_machine(folder, tmp_path, run):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "train" / "images" / "1.png").write_bytes(b"no picture")
    arguments = ["--data_root", data, "--max_steps", 5, "--save_every", 5, "--on_bad_sample", "skip"]
    run(*arguments, "--output_dir", tmp_path / "out")
    text = (tmp_path / "out" / "recipe.json").read_text()
    (sample,) = json.loads(text)["bad_samples"]
    assert "train/images/1.png" in sample["reason"] and sample["attempt"] == 0
    assert str(tmp_path) not in text
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["bad_samples"] == 1


def test_a_full_disk_is_one_line(folder, tmp_path):
    """Real: a file may not grow beyond a few blocks."""
    resource = pytest.importorskip("resource")
    command = [sys.executable, EXAMPLES / "train.py", "--dataset", "folder", "--data_root", folder, "--max_steps", 1]
    command += [*SMALL, "--num_threads", 1, "--output_dir", tmp_path / "out"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))

    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment(), preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert re.search(r"^error: .*step-00000001: cannot write the state: .*", done.stderr, re.MULTILINE)
    assert not list((tmp_path / "out" / "states").iterdir())


def test_a_state_beyond_the_end_is_refused(tmp_path, run):
    run("--max_steps", 3, "--output_dir", tmp_path)
    with pytest.raises(ValueError, match="max_steps must be at least the 3 steps"):
        run("--max_steps", 2, "--output_dir", tmp_path, "--resume", "--allow_changes")


def test_what_a_killed_export_left_is_removed(tmp_path, run):
    (tmp_path / "out" / ".export-abc").mkdir(parents=True)
    run("--max_steps", 1, "--output_dir", tmp_path / "out2")
    shutil.move(tmp_path / "out" / ".export-abc", tmp_path / "out2" / ".export-abc")
    run("--max_steps", 1, "--output_dir", tmp_path / "out2", "--resume")
    assert not list((tmp_path / "out2").glob(".*"))

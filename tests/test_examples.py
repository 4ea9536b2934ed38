# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The example scripts: each is launched as a user does it at least once, and runs in this process otherwise."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation, pipeline

from example_scripts import environment, launch, run_script
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.data import draw_scene
from scene_folder import EXAMPLES

SMALL = ["--crop_size", "64", "--batch_size", "2", "--log_every", "1", "--num_workers", "1", "--num_threads", "1"]


@pytest.fixture
def folder(pictures_folder):
    return pictures_folder


def test_training_leaves_a_usable_folder(trained):
    output_dir, printed = trained
    expected = ["model.safetensors", "config.json", "preprocessor_config.json", "README.md", "metrics.json"]
    for name in [*expected, "per_class_iou.txt", "learning_curve.png", "report.html"]:
        assert (output_dir / name).stat().st_size > 0, name
    assert not list(output_dir.glob(".*")), "temporary files are left"
    pictures = sorted((output_dir / "overlays").glob("*.png"))
    assert len(pictures) == 5
    pictures += [
        output_dir / entry["panel"] for entry in json.loads((output_dir / "metrics.json").read_text())["worst"]
    ]
    assert len(pictures) == 5 + 5 and len((output_dir / "pictures.csv").read_text().splitlines()) == 1 + 5
    for path in [*pictures, output_dir / "learning_curve.png"]:
        assert len(np.unique(np.asarray(Image.open(path).convert("L")))) > 10, path
    metrics = json.loads((output_dir / "metrics.json").read_text())
    assert 0 < metrics["mean_iou"] < 1
    assert metrics["step"] == 4 and 0 < metrics["mean_iou"] < metrics["mean_dice"] < 1
    assert (
        metrics["base_lines_made_from"] == {"training_annotations": 10, "of": 10} and "mean label map: mIoU" in printed
    )
    assert str(output_dir) in printed and "pipeline(" in printed
    assert list(output_dir.rglob("events.out.tfevents*"))
    for said in (printed, (output_dir / "train.log").read_text()):  # by one of the two processes
        assert said.count("step 3/4, ") == said.count("step 2: mIoU ") == 1
    model, info = AutoModelForSemanticSegmentation.from_pretrained(output_dir, output_loading_info=True)
    assert type(model).__module__.startswith("hf_segformer")
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert len(model.config.palette) == model.config.num_labels
    image, _ = draw_scene(5)
    assert pipeline("image-segmentation", model=str(output_dir))(Image.fromarray(image))


def test_evaluation_does_not_depend_on_the_number_of_processes(trained, folder, tmp_path):
    output_dir, _ = trained
    results = []
    for processes in (1, 2):
        target = tmp_path / str(processes)
        arguments = ["--model", output_dir, "--dataset", "folder", "--data_root", folder, "--batch_size", 2]
        arguments += ["--output_dir", target]
        several = processes > 1
        result = launch("evaluate.py", *arguments, processes=2) if several else run_script("evaluate.py", *arguments)
        assert "mIoU" in result.stdout and "sky" in result.stdout
        results.append(json.loads((target / "metrics.json").read_text()))
    assert results[0] == results[1]
    assert results[0]["images"] == 5
    # The figure the training run ended with.
    assert results[0]["mean_iou"] == json.loads((output_dir / "metrics.json").read_text())["mean_iou"]


def test_evaluation_equals_a_plain_loop(trained, folder):
    output_dir, _ = trained
    model = AutoModelForSemanticSegmentation.from_pretrained(output_dir).eval()
    processor = SegformerImageProcessor.from_pretrained(output_dir)
    intersection, union = np.zeros(model.config.num_labels), np.zeros(model.config.num_labels)
    for path in sorted((folder / "val" / "images").iterdir()):
        label = np.asarray(Image.open(folder / "val" / "annotations" / path.name))
        with torch.inference_mode():
            logits = model(**processor(Image.open(path), return_tensors="pt")).logits
        scores = torch.nn.functional.interpolate(logits, size=label.shape, mode="bilinear")
        prediction = scores[0].argmax(0).numpy()
        for category in range(len(union)):
            intersection[category] += ((prediction == category) & (label == category)).sum()
            union[category] += ((prediction == category) | (label == category)).sum()
    metrics = json.loads((output_dir / "metrics.json").read_text())
    expected = np.mean(intersection[union > 0] / union[union > 0])
    assert abs(metrics["mean_iou"] - expected) < 1e-3


def test_killed_run_resumes_to_the_same_weights(folder, tmp_path):
    # Workers, accumulation, stochastic depth and dropout are all on.
    arguments = ["--dataset", "folder", "--data_root", str(folder), "--max_steps", "8", "--save_every", "2", *SMALL]
    arguments += ["--gradient_accumulation_steps", "2", "--eval_every", "3", "--num_workers", "2"]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "train.py"), *arguments, "--output_dir", str(killed)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not (killed / "states" / "step-00000002").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").exists(), "the run was over before it was killed"
    assert "resuming at step" in run_script("train.py", *arguments, "--output_dir", killed, "--resume").stdout
    run_script("train.py", *arguments, "--output_dir", tmp_path / "whole")
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", killed))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    histories = [
        json.loads((path / "states" / "step-00000008" / "progress.json").read_text())["history"]
        for path in (tmp_path / "whole", killed)
    ]
    assert histories[0] == histories[1]
    # A finished run is not overwritten, and cannot go on with other settings.
    for extra, message in (([], "must be new or empty"), (["--resume", "--seed", "7"], "seed=7 (was 0)")):
        result = run_script("train.py", *arguments, "--output_dir", killed, *extra, check=False)
        assert result.returncode == 2
        assert message in result.stderr


def test_fine_tuning_with_other_classes(trained, folder, tmp_path):
    output_dir, _ = trained
    data = tmp_path / "binary"
    for kind in ("images", "annotations"):
        (data / kind).mkdir(parents=True)
    (data / "classes.txt").write_text("background\ncar\n")
    for path in sorted((folder / "train" / "images").iterdir()):
        shutil.copy(path, data / "images" / path.name)
        label = np.asarray(Image.open(folder / "train" / "annotations" / path.name))
        Image.fromarray(((label == 7) * 255).astype(np.uint8)).save(data / "annotations" / path.name)
    arguments = ["--dataset", "folder", "--data_root", data, "--model", output_dir, "--max_steps", 2, *SMALL]
    run_script("train.py", *arguments, "--output_dir", tmp_path / "tuned")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "tuned")
    assert model.config.id2label == {0: "background", 1: "car"}
    before = load_file(output_dir / "model.safetensors")["segformer.encoder.block.3.0.mlp.dense1.weight"]
    after = model.segformer.encoder.block[3][0].mlp.dense1.weight
    assert 0 < (before - after).abs().max() < 0.01


def test_outputs_show_names_as_texts_and_no_path_of_the_machine(trained, tmp_path):
    """Every path is absolute: data set, starting weights, class names, class weights and output."""
    from datasets import Dataset, Features
    from datasets import Image as Picture

    names = ["<script>\n# sky", "道路 " * 50, "a|b ```", *(f"class {i}" for i in range(8))]
    data, tuned = tmp_path / "data", tmp_path / "tuned"
    data.mkdir()
    (tmp_path / "names.json").write_text(json.dumps(names))
    (tmp_path / "weights.json").write_text(json.dumps([1] * len(names)))
    rows = {"image": [], "annotation": []}
    for index in range(4):
        for column, array in zip(rows, draw_scene(index), strict=True):
            file = io.BytesIO()
            Image.fromarray(array[:72, :96].astype(np.uint8)).save(file, format="png")
            rows[column].append({"bytes": file.getvalue(), "path": None})
    Dataset.from_dict(rows, Features(image=Picture(), annotation=Picture())).to_parquet(data / "train.parquet")
    chosen = ["--dataset", data, "--class_names", tmp_path / "names.json"]
    arguments = [
        *chosen,
        "--model",
        trained[0],
        "--class_weights",
        tmp_path / "weights.json",
        "--max_steps",
        1,
        *SMALL,
    ]
    run_script("train.py", *arguments, "--output_dir", tuned)
    run_script("evaluate.py", *chosen, "--model", tuned, "--output_dir", tmp_path / "evaluated", "--plots", "True")
    texts = {p: p.read_text() for folder in (tuned, tmp_path / "evaluated") for p in folder.glob("*.*[dnt]")}
    assert {"README.md", "recipe.json", "config.json", "metrics.json", "per_class_iou.txt"} <= {p.name for p in texts}
    for path, text in texts.items():
        assert str(tmp_path) not in text and str(trained[0]) not in text and "\n# sky" not in text, path
    metrics = json.loads(texts[tmp_path / "evaluated" / "metrics.json"])
    assert (metrics["model"], metrics["dataset"], metrics["class_names"]) == ("tuned", "data", names)
    assert json.loads(texts[tuned / "config.json"])["id2label"]["0"] == names[0]
    assert 'model="tuned"' in texts[tuned / "README.md"] and "# SegFormer on data\n" in texts[tuned / "README.md"]
    assert "| `weights.json` |" in texts[tuned / "README.md"]
    assert len(texts[tuned / "per_class_iou.txt"].splitlines()) == 1 + 1 + len(names) + 1 + 2


def test_training_on_camvid(shared_data, tmp_path):
    arguments = ["--dataset", "camvid", "--data_root", shared_data / "camvid", "--max_steps", 1, *SMALL]
    run_script("train.py", *arguments, "--image_size", 90, "--output_dir", tmp_path / "out")
    table = (tmp_path / "out" / "per_class_iou.txt").read_text()
    assert "bicyclist" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "camvid"], "needs data_root"),
        (["--dataset", "camvit"], "did you mean 'camvid'"),
        (["--dataset", "folder", "--data_root", "/nonexistent"], "/nonexistent"),
        (["--max_steps", "0"], "max_steps must be > 0, got 0"),
        (["--resume", "--output_dir", "/nonexistent"], "no saved state to resume"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_script("train.py", *arguments, check=False)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert message in line
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_bad_labels_stop_training_before_it_starts(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    label = np.asarray(Image.open(data / "train" / "annotations" / "3.png")).copy()
    label[5, 7] = 99
    Image.fromarray(label).save(data / "train" / "annotations" / "3.png")
    arguments = ["--dataset", "folder", "--data_root", data, "--output_dir", tmp_path / "out"]
    result = run_script("train.py", *arguments, check=False)
    assert result.returncode
    assert "3.png" in result.stderr and "99" in result.stderr
    assert not (tmp_path / "out").exists()


def test_predictions_resume_and_name_unreadable_files(trained, folder, tmp_path):
    output_dir, _ = trained
    pictures = tmp_path / "pictures"
    shutil.copytree(folder / "val" / "images", pictures / "street")
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    arguments = ["--model", str(output_dir), str(pictures), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    command = [sys.executable, str(EXAMPLES / "predict.py"), *arguments]
    first = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert first.returncode == 1
    assert "unreadable:" in first.stderr and "broken.jpg" in first.stderr
    assert "5 images segmented, 0 already done, 1 unreadable" in first.stdout
    labels = sorted((tmp_path / "out" / "labels" / "street").glob("*.png"))
    assert len(labels) == 5
    picture = Image.open(labels[0])
    assert picture.mode == "P" and picture.size == (96, 72)
    processor = SegformerImageProcessor.from_pretrained(output_dir)
    model = AutoModelForSemanticSegmentation.from_pretrained(output_dir).eval()
    with torch.inference_mode():
        logits = model(**processor(Image.open(pictures / "street" / labels[0].name), return_tensors="pt")).logits
    expected = torch.nn.functional.interpolate(logits, size=(72, 96), mode="bilinear")[0].argmax(0)
    assert (np.asarray(picture) == expected.numpy()).mean() > 0.9999
    kept = labels[1].stat().st_mtime_ns
    (tmp_path / "out" / "overlays" / "street" / labels[0].name).unlink()
    (pictures / "broken.jpg").unlink()
    second = run_script("predict.py", *arguments)
    assert second.returncode == 0
    assert "1 images segmented, 4 already done, 0 unreadable" in second.stdout
    assert labels[1].stat().st_mtime_ns == kept


def test_predictions_never_overwrite_each_other(folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "val" / "images" / "0.png", tmp_path / name / "0.png")
    pictures = [tmp_path / "a", tmp_path / "b"]
    result = run_script("predict.py", "--model", "unused", *pictures, "--output_dir", tmp_path / "out", check=False)
    assert result.returncode == 2
    assert "would both be written to 0.png" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_builtin_class_trains_by_the_same_script(folder, tmp_path):
    """Equal weights and pictures, and no dropout, which draws differently: the first losses agree to rounding."""
    start = SegformerConfig.for_variant("b0", num_labels=2, classifier_dropout_prob=0.0, drop_path_rate=0.0)
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(start).save_pretrained(tmp_path / "start")
    losses = []
    for script in ("train.py", "compare_with_builtin.py"):
        output_dir = tmp_path / script
        arguments = ["--dataset", "folder", "--data_root", folder, "--model", tmp_path / "start", "--max_steps", 2]
        start = launch if script == "compare_with_builtin.py" else run_script
        printed = start(script, *arguments, *SMALL, "--image_size", 64, "--output_dir", output_dir).stdout
        assert ("transformers.models.segformer" in printed) == (script != "train.py")
        (state,) = sorted((output_dir / "states").glob("step-*2"))
        history = json.loads((state / "progress.json").read_text())["history"]
        losses.append([entry["loss"] for entry in history if "loss" in entry])
    ours, builtin = losses
    assert len(ours) == 2 and ours == pytest.approx(builtin, rel=1e-3)

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed where the checkout is not seen: its commands do everything, from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from hf_segformer.checkpoints.conversion import convert_checkpoint
from scene_folder import write_scene_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder of the scripts of a fresh environment with the wheel, which sees this one's other packages."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "hf_segformer", folder / "source" / "hf_segformer", ignore=without_caches)
    pip, quiet = [sys.executable, "-m", "pip"], ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    built = [*pip, "wheel", *quiet, "--no-build-isolation", "--wheel-dir", folder, folder / "source"]
    subprocess.run([str(word) for word in built], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    names = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    scripts, site = (Path(sysconfig.get_path(kind, "venv", names)) for kind in ("scripts", "purelib"))
    (site / "parent.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    python = next(scripts.glob("python*"))
    subprocess.run([*pip, "--python", python, "install", *quiet, wheel], check=True)
    return scripts


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def run(installed, empty):
    """Function that runs a program of the environment in the empty folder; its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}

    def call(program, *arguments, code=0):
        command = [str(installed / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout if code == 0 else done.stderr

    return call


@pytest.fixture(scope="module")
def trained(run, empty):
    quick = ["--crop_size", 32, "--batch_size", 8, "--num_workers", 0, "--num_threads", 1, "--check", "none"]
    printed = run("segformer", "train", "--max_steps", 8, "--eval_every", 8, *quick)
    assert "python -m hf_segformer predict --model runs/scenes-b0" in printed
    return empty / "runs" / "scenes-b0"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_scene_folder(tmp_path_factory.mktemp("pictures"), 2, 2)


def test_what_is_installed(run, installed, empty):
    where = run("python", "-c", "import hf_segformer.benchmark; print(hf_segformer.__file__)")
    assert where.startswith(str(installed.parent)) and not list(empty.iterdir())
    seconds = []
    for words in (["segformer"], ["python", "-m", "hf_segformer"]):
        started = os.times().children_user
        assert "segformer train --dataset folder" in run(*words)
        seconds.append(os.times().children_user - started)
    assert max(seconds) < 1
    assert run("segformer", "--version").startswith("hf_segformer 0.")
    assert run("segformer", "trian", code=2).startswith("error: unknown command trian; did you mean train?")


def test_training(trained):
    names = {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "metrics.json"}
    assert names <= {path.name for path in trained.iterdir()}
    assert json.loads((trained / "metrics.json").read_text())["step"] == 8


def test_evaluation(trained, pictures, run, empty):
    words = [
        "--model",
        trained,
        "--dataset",
        "folder",
        "--data_root",
        pictures,
        "--num_workers",
        0,
        "--num_threads",
        1,
    ]
    assert "mIoU" in run("segformer", "evaluate", *words, "--output_dir", "evaluated")
    assert json.loads((empty / "evaluated" / "metrics.json").read_text())["images"] == 2


def test_prediction(trained, pictures, run, empty):
    words = [pictures / "val" / "images", "--model", trained, "--output_dir", "predicted", "--num_workers", 0]
    assert "2 images segmented" in run("segformer", "predict", *words, "--device", "cpu")
    assert Image.open(empty / "predicted" / "labels" / "0.png").size == (96, 72)


def test_conversion_there_and_back(trained, run, empty):
    assert "-> NVlabs/SegFormer" in run("segformer", "convert", trained, "nvlabs", "--to", "nvlabs")
    convert_checkpoint(empty / "nvlabs" / "model.pth", empty / "back")
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, empty / "back"))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)


def test_data(pictures, run, empty):
    printed = run("segformer", "data", pictures, "--output_dir", "shown")
    assert "11 classes" in printed and len(list((empty / "shown").iterdir())) == 4

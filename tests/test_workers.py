# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Worker processes that inherit nothing, as Windows and macOS start them (spawn) and Python 3.14 does (forkserver)."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from example_scripts import kept_process
from hf_segformer import SegformerImageProcessor
from hf_segformer.data import TrainingSamples, draw_scene, load_dataset
from hf_segformer.data.scenes import load_scenes
from hf_segformer.evaluation.inference import segment
from hf_segformer.evaluation.loop import EvaluationBatches
from hf_segformer.evaluation.protocols import Protocol
from hf_segformer.evaluation.robustness import chosen_corruptions
from hf_segformer.recipes import default_recipe
from lively_models import lively_model
from published_data import write_ade20k, zip_folder
from scene_folder import example_module

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of each kind: drawn, files, members of a zip file, colours with a table, a table with pictures."""
    root = tmp_path_factory.mktemp("data")
    (root / "zip").mkdir()
    zip_folder(write_ade20k(root / "ade"), root / "zip" / "ADEChallengeData2016.zip")
    for kind in ("images", "annotations"):
        (root / "folder" / kind).mkdir(parents=True)
    for index in range(4):
        image, label = draw_scene(index, 64)
        Image.fromarray(image).save(root / "folder" / "images" / f"{index}.jpg")
        colors = np.array([(0, 0, 0), (200, 0, 0)], np.uint8)[(label > 3).astype(int)]
        Image.fromarray(colors).save(root / "folder" / "annotations" / f"{index}.png")
    classes = '{"names": ["a", "b"], "palette": [[0, 0, 0], [200, 0, 0]]}'
    (root / "folder" / "classes.json").write_text(classes, encoding="utf-8")
    scenes = load_scenes(num_train=2, num_validation=2, size=64)
    (root / "parquet").mkdir()
    scenes.train.to_parquet(root / "parquet" / "train.parquet")
    names = list(scenes.class_names)
    return {
        "scenes": scenes,
        "ade20k": load_dataset("ade20k", root / "ade"),
        "zip": load_dataset("ade20k", root / "zip"),
        "folder": load_dataset("folder", root / "folder"),
        "parquet": load_dataset("parquet", root / "parquet", class_names=names, cache_dir=root / "cache"),
    }


def training_samples(data):
    recipe = default_recipe("scenes")
    return TrainingSamples(data, recipe.transform([127.0] * 3, [60.0] * 3, data.ignore_index))


def evaluation_batches(data, change_image=None, protocol="processor"):
    image_processor = SegformerImageProcessor(size={"height": 48, "width": 48})
    return EvaluationBatches(data, image_processor, Protocol.named(protocol), "validation", 2, change_image)


def flat(value):
    """Arrays and names inside what a worker sends."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [part for inner in value for part in flat(inner)]
    if hasattr(value, "__dict__") and not isinstance(value, torch.Tensor):
        return flat(list(vars(value).values()))
    return [value]


def assert_same(one, other):
    one, other = flat(one), flat(other)
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        if isinstance(left, (np.ndarray, torch.Tensor)):
            np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
        else:
            assert left == right


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.long)])
def test_samples_of_every_kind_from_workers_that_inherit_nothing(data, method):
    (noise,) = chosen_corruptions("gaussian_noise", "2")
    (frost,) = chosen_corruptions("frost", "1")
    kinds = [evaluation_batches(kind) for kind in data.values()]
    kinds += [evaluation_batches(data["scenes"], change) for change in (noise, frost)]
    kinds += [evaluation_batches(data["scenes"], protocol="slide"), *map(training_samples, data.values())]
    together = ConcatDataset(kinds)
    order = range(0, len(together))
    loader = DataLoader(together, batch_size=None, sampler=order, num_workers=2, multiprocessing_context=method)
    received = list(loader)
    assert len(received) == len(together)
    for index, sample in zip(order, received, strict=True):
        assert_same(sample, together[index])


def test_what_workers_get_is_picklable_after_use_too(data):
    # A cache that has filled, or a file that was opened, must not go along.
    for kind in data.values():
        for samples in (training_samples(kind), evaluation_batches(kind)):
            expected = samples[0]
            again = pickle.loads(pickle.dumps(samples))
            assert_same(again[0], expected)


# Every process that is started this way sets the way of starting others before anything else runs.
SITE = """
import multiprocessing, os
multiprocessing.set_start_method({method!r}, force=True)
open(os.path.join(os.path.dirname(__file__), f"started-{{os.getpid()}}"), "w").close()
"""


@pytest.fixture
def run_script(tmp_path):
    """Function that runs a script in a process whose workers inherit nothing."""

    def run(method, script, *arguments):
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(SITE.format(method=method), encoding="utf-8")
        path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(REPOSITORY / "examples" / script), *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert len(list((tmp_path / "site").glob("started-*"))) > 2  # a forked worker starts no Python
        return done

    return run


@pytest.mark.long
def test_prediction_with_spawned_workers(tmp_path, run_script, tiny_config, randomize):
    model, image_processor = (
        lively_model(tiny_config(), randomize),
        SegformerImageProcessor(size={"shortest_edge": 64}),
    )
    model.save_pretrained(tmp_path / "model")
    image_processor.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for index in range(2):
        Image.fromarray(draw_scene(index, 64)[0]).save(tmp_path / "photos" / f"{index}.png")
    arguments = ("photos", "--model", "model", "--device", "cpu", "--output_dir", "out", "--num_workers", 2)
    done = run_script("spawn", "predict.py", *arguments)
    assert done.returncode == 0 and "2 images segmented" in done.stdout, done.stderr
    for index in range(2):
        expected = segment(model, image_processor, Image.open(tmp_path / "photos" / f"{index}.png"))
        found = np.asarray(Image.open(tmp_path / "out" / "labels" / f"{index}.png"))
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(found)) > 1


@pytest.fixture
def spawning():
    """Makes spawn the way this process starts others."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_training_and_its_evaluation_with_spawned_workers(tmp_path, spawning, data):
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        getattr(data["scenes"], split).to_parquet(tmp_path / "data" / f"{split}.parquet")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(data["scenes"].class_names), encoding="utf-8")
    arguments = ["--dataset", "parquet", "--data_root", tmp_path / "data", "--class_names", names]
    arguments += ["--max_steps", 2, "--batch_size", 2, "--crop_size", 64, "--output_dir", tmp_path / "out"]
    arguments += ["--num_workers", 1, "--image_size", 64, "--num_threads", 1]
    with kept_process():
        example_module("train").main([str(part) for part in arguments])
    assert (tmp_path / "out" / "metrics.json").is_file()

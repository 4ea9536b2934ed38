# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The measurement of fine-tuning on few pictures: its halves, its run, and the commands that the site gives for it."""

import json
import re
import shlex
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.commands.parser import Parser
from hf_segformer.training import TrainArguments
from scene_folder import example_module

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results.md"


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """As many pictures as CamVid has, in two splits whose names lie between one another."""
    root = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(0)
    for number in range(468):
        split = "val" if number % 5 == 3 else "train"
        for kind, array, suffix in (
            ("images", rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), "jpg"),
            ("annotations", rng.integers(0, 3, (12, 16), dtype=np.uint8), "png"),
        ):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / split / kind / f"{number:04d}.{suffix}")
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b", "c"]}))
    return root


def test_halves_have_no_picture_in_common(camvid, tmp_path):
    script = example_module("few_pictures")
    numbers = {}
    for half in script.HALVES:
        folder = script.write_half(camvid, half, tmp_path / half)
        for split in ("train", "val"):
            images, labels = (sorted((folder / kind / split).iterdir()) for kind in ("images", "annotations"))
            assert [path.stem for path in images] == [path.stem for path in labels]
            numbers[half, split] = [int(path.stem) for path in images]
    assert {key: len(found) for key, found in numbers.items()} == {
        (half, split): count for half in script.HALVES for split, count in (("train", 200), ("val", 30))
    }
    assert sorted(number for found in numbers.values() for number in found) == list(range(460))
    assert numbers["report", "train"][:21] == [*range(23, 43), 69] and numbers["tuning", "val"][:4] == [20, 21, 22, 66]


@pytest.mark.long
def test_a_finished_run_is_not_repeated(camvid, tmp_path, capsys):
    script, model = example_module("few_pictures"), tmp_path / "model"
    small = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]}
    SegformerForSemanticSegmentation(SegformerConfig(**small, num_labels=5)).save_pretrained(model)
    SegformerImageProcessor().save_pretrained(model)
    command = ["--data_root", camvid, "--model", model, "--half", "report", "--output_dir", tmp_path / "few"]
    command += ["--seeds", 4, 5, "--max_steps", 1, "--crop_size", 32, "--batch_size", 2, "--num_workers", 0]
    for seeds in (2, 0):
        script.main([str(word) for word in command])
        files = sorted((tmp_path / "few").glob("*/metrics.json"))
        scores = [100 * json.loads(path.read_text())["mean_iou"] for path in files]
        out = capsys.readouterr().out
        assert out.count("after 1 steps") == seeds
        assert f"mIoU {statistics.mean(scores):.2f} +- {np.std(scores, ddof=1):.2f}" in out.splitlines()[-1]
        assert [path.parent.name.rpartition("-")[2] for path in files] == ["seed_4", "seed_5"]


def test_commands_of_the_site_parse():
    commands = re.findall(r"^python examples/few_pictures.py (.*)", RESULTS.read_text(), re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        args, flags = example_module("few_pictures").parse(shlex.split(command))
        assert args.half in ("tuning", "report")
        Parser(TrainArguments).parse(["--data", "export.zip", *flags])

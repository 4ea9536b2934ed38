# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Random arguments and files: refused with a message that names them, or taken; and that `fuzz.py` would notice."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fuzz
import fuzz_areas
from hf_segformer import SegformerConfig, SegformerImageProcessor, upsample_argmax
from hf_segformer.evaluation.inference import segment
from hf_segformer.evaluation.metrics import ConfusionMatrix
from hf_segformer.evaluation.protocols import Protocol

HERE = Path(fuzz.__file__).parent


@pytest.mark.long
def test_every_area():
    """In a process of its own, whose memory has a limit."""
    command = [sys.executable, str(HERE / "fuzz.py"), "--seconds", "18", "--seed", "7"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    for area in fuzz.AREAS:
        assert f"{area}: " in result.stdout
    assert " 0 findings" in result.stdout and not result.stdout.startswith("0 inputs")


def outcome(entry, odd, **plain):
    """What the judge says about a call of a function that stands for one of the package's."""
    result = fuzz.judge(fuzz_areas.Case(entry, plain, odd))
    return result if isinstance(result, str) else (result[0], set(result[1]))


def checked(images, size=16, mode="a"):
    """Refuses properly, in a file that counts as the package's."""
    if size != 16:
        raise ValueError(f"size must be 16, got {size}")
    if mode == "bare":
        raise ValueError("something is wrong with the images' sizes")
    if mode == "index":
        return [][3]
    if mode == "write":
        images[:] = 0
    if mode == "warn":
        return np.zeros(1) / 0
    if mode == "hang":
        time.sleep(60)
    return images


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ({"mode": "b"}, "taken"),
        ({"size": 3}, "refused"),
        ({"size": 3, "mode": "index"}, "refused"),
        ({"mode": "index"}, ("IndexError in test_fuzz.py:checked: list index out of range", {"mode"})),
        ({"mode": "write"}, ("result: an argument was written to", {"mode"})),
        ({"mode": "warn"}, ("RuntimeWarning in test_fuzz.py:checked: invalid value encountered in divide", {"mode"})),
        ({"mode": "hang"}, ("Hang in test_fuzz.py:checked: more than *.* s", {"mode"})),
        (
            {"images": np.ones(3), "mode": "bare"},
            ("unnamed ValueError in test_fuzz.py:checked: something is wrong with the images' sizes", {"mode"}),
        ),
    ],
    ids=str,
)
def test_the_judge(odd, expected, monkeypatch):
    monkeypatch.setattr(fuzz, "OURS", __file__)
    monkeypatch.setattr(fuzz, "LIMIT", 0.5)
    fuzz.signal.signal(fuzz.signal.SIGALRM, fuzz._interrupt)
    assert outcome(checked, odd, images=np.ones(4)) == expected


@pytest.mark.parametrize("fault", ["index", "bare", "write"])
def test_planted_faults_are_found(fault, monkeypatch):
    preprocess = SegformerImageProcessor.preprocess

    def planted(self, images, segmentation_maps=None, **options):
        if fault == "bare":
            try:
                return preprocess(self, images, segmentation_maps, **options)
            except ValueError as error:
                raise ValueError("wrong") from error
        result = preprocess(self, images, segmentation_maps, **options)
        if fault == "write" and isinstance(images, np.ndarray) and images.flags.writeable and images.size:
            images.flat[0] = images.flat[0] == 0
        return [][0] if fault == "index" else result

    lines = []
    monkeypatch.setattr(SegformerImageProcessor, "preprocess", planted)
    monkeypatch.setattr(fuzz, "OURS", str(HERE.parent))
    counts = fuzz.fuzz(["processor"], 3, seed=0, report=lines.append)
    kinds = " ".join(kind for _, kind in counts)
    kind = {"index": "IndexError in test_fuzz.py:planted", "bare": "unnamed ValueError in test_fuzz.py:planted: wrong"}
    assert kind.get(fault, "result: an argument was written to") in kinds
    assert any(line.startswith("processor --seed 0 --case ") for line in lines)


def test_cases_are_the_same_again(tmp_path):
    for area in fuzz.AREAS:
        first, second = (fuzz.make(area, 3, 5, tmp_path) for _ in range(2))
        assert (
            fuzz.shown(first.plain | first.odd).split(" at 0x")[0]
            == fuzz.shown(second.plain | second.odd).split(" at 0x")[0]
        )


# --- what was found by it ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_encoder_blocks": 0}, "num_encoder_blocks must be >= 1, got 0"),
        ({"num_labels": 10**30}, "num_labels must be at most"),
        ({"num_labels": np.array([1, 2]), "id2label": {0: "a"}}, "num_labels must be an integer >= 0"),
        ({"torch_dtype": "f"}, "dtype must be a type of PyTorch.*got 'f'"),
        ({"dtype": np.array("a")}, "dtype must be a type of PyTorch"),
        ({"dtype": "nn"}, "dtype must be a type of PyTorch"),
        ({"torch_dtype": np.array([1, 2])}, "dtype must be a type of PyTorch"),
        ({"palette": fuzz_areas.LOOP}, "palette must be a list of"),
        ({"num_encoder_blocks": 2**31}, "num_encoder_blocks(=2147483648 entries| must be at most)"),
        ({"block_norm_eps": float("nan")}, "block_norm_eps must be > 0, got nan"),
        ({"initializer_range": float("inf")}, "initializer_range must be finite"),
        ({"out_indices": 2}, "out_indices must be a list of indices"),
        ({"out_indices": [[0]]}, "out_indices must be a list of indices"),
        ({"out_features": [3]}, "out_features must be a list of names"),
        ({"label2id": np.float32(2)}, "label2id must map names to ids"),
        ({"label2id": ["a"]}, "label2id must map names to ids"),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["init", "keywords", "assignment"])
def test_fields_of_a_configuration(fields, message, way, tmp_path):
    with pytest.raises(ValueError, match=message):
        fuzz_areas.configured(way, tmp_path, fields)


@pytest.mark.parametrize("value", [b"abc", 2.5, [4]])
def test_fields_under_another_name(value):
    with pytest.raises(ValueError, match="num_encoder_blocks"):
        SegformerConfig.from_dict({"model_type": "segformer"}, num_hidden_layers=value)


IMAGE = np.zeros((12, 17, 3), np.uint8)
FLAGS = [np.array([1, 2]), torch.ones(2), "yes"]


@pytest.mark.parametrize("flag", FLAGS, ids=str)
def test_flags(flag):
    outputs = type("Outputs", (), {"logits": torch.zeros(1, 3, 4, 4)})
    for name in ("return_segmentation_scores", "return_confidence"):
        with pytest.raises(ValueError, match=f"{name} must be True or False"):
            SegformerImageProcessor().post_process_semantic_segmentation(outputs, **{name: flag})
    with pytest.raises(ValueError, match="return_confidence must be True or False"):
        segment(fuzz_areas.model(3), SegformerImageProcessor(size=32), IMAGE, return_confidence=flag)
    with pytest.raises(ValueError, match="overlap must be one of"):
        segment(fuzz_areas.model(3), SegformerImageProcessor(size=32), IMAGE, overlap=flag)
    with pytest.raises(ValueError, match="one_step must be True or False"):
        Protocol("own", one_step=flag)
    with pytest.raises(ValueError, match="reduce_labels must be True or False"):
        SegformerImageProcessor()(IMAGE, do_reduce_labels=True, reduce_labels=flag)


@pytest.mark.parametrize("side", [2**31, 2**63, 10**30])
def test_sides_beyond_any_picture(side):
    for options in ({"size": side}, {"pad_size": (side, 3), "do_pad": True}, {"size_divisor": side}):
        with pytest.raises(ValueError, match=rf"{next(iter(options))} must .*below 2\*\*31"):
            SegformerImageProcessor()(IMAGE, **options)
    outputs = type("Outputs", (), {"logits": torch.zeros(1, 3, 4, 4)})
    with pytest.raises(ValueError, match="target_sizes must be"):
        SegformerImageProcessor().post_process_semantic_segmentation(outputs, [(side, 3)])
    with pytest.raises(ValueError, match="size must be two positive numbers"):
        upsample_argmax(torch.zeros(1, 3, 4, 4), (3, side))


def test_arguments_of_the_processor():
    with pytest.raises(ValueError, match="device must be one that PyTorch has here"):
        SegformerImageProcessor()(IMAGE, device=10**30)
    with pytest.raises(ValueError, match="image_std must be a finite number"):
        SegformerImageProcessor()(IMAGE, image_std=torch.empty(2, device="meta"))
    grey = Image.fromarray(IMAGE[..., 0] + 90)
    straight, multiplied = Image.merge("LA", (grey, grey)), Image.merge("LA", (grey, grey)).convert("La")
    processor = SegformerImageProcessor(size=16)
    same = processor([straight, multiplied], return_tensors="pt")["pixel_values"]
    assert (same[0] - same[1]).abs().max() < 0.1


def test_arguments_of_the_metrics():
    for device in ("meta", 10**30):
        with pytest.raises(ValueError, match="device must be one"):
            ConfusionMatrix(3, device=device)
    for count in (2**31, 2**63):
        with pytest.raises(ValueError, match="num_labels must be at most"):
            ConfusionMatrix(count)
    with pytest.raises(ValueError, match="ignore_index must fit 64 bits"):
        ConfusionMatrix(3, 10**30)
    for names in (3, np.array(3), {"a", "b", "c"}):
        with pytest.raises(ValueError, match="class_names must be a list of names"):
            ConfusionMatrix(3).table(names)
    with pytest.raises(ValueError, match="predictions must lie in"):
        ConfusionMatrix(3).update(2**63, 0)
    pytest.importorskip("evaluate")
    from hf_segformer.evaluation.metrics import MeanIoU

    for wrong in ([], torch.empty(2, device="meta"), "0"):
        with pytest.raises(ValueError, match="nan_to_num must be a number or None"):
            MeanIoU(3, nan_to_num=wrong)
    for wrong in (True, torch.zeros(2)):
        with pytest.raises(ValueError, match="num_labels must be a positive integer"):
            MeanIoU(wrong)


@pytest.mark.parametrize("name", ["resize", "tta"])
def test_choices_of_a_protocol(name):
    for wrong in (np.array([1, 2]), torch.zeros(2), ["none"]):
        with pytest.raises(ValueError, match=f"{name} must be"):
            Protocol("own", **{name: wrong})

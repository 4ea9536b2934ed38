# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""predict.py with the options of the protocols; test_examples.py runs it as a user does."""

import numpy as np
import pytest
from PIL import Image

from hf_segformer import SegformerImageProcessor
from hf_segformer.data import cityscapes, draw_scene
from hf_segformer.evaluation.inference import segment
from hf_segformer.evaluation.protocols import Protocol
from lively_models import lively_model
from scene_folder import example_module

SIZES = [(90, 110), (90, 110), (77, 121)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "berlin").mkdir(parents=True)
    for index, (height, width) in enumerate(SIZES):
        image = Image.fromarray(draw_scene(index)[0][:height, :width])
        image.save(tmp_path / "photos" / "berlin" / f"berlin_00000{index}_leftImg8bit.png")
    return tmp_path


@pytest.fixture
def model(tiny_config, randomize, folder):
    model = lively_model(tiny_config(num_labels=19), randomize)
    model.save_pretrained(folder / "model")
    SegformerImageProcessor().save_pretrained(folder / "model")
    return model


def run(folder, *arguments):
    command = [folder / "photos", "--model", folder / "model", "--output_dir", folder / "out", "--device", "cpu"]
    return example_module("predict").main([str(part) for part in (*command, *arguments)])


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (2, 2)])
def test_labels_confidence_and_submission(batch_size, num_workers, model, folder, capsys):
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    options = ["--protocol", "slide", "--crop_size", 64, "--overlap", "gaussian", "--confidence"]
    options += ["--submission", "cityscapes", "--batch_size", batch_size, "--num_workers", num_workers]
    assert run(folder, *options) == 1
    printed = capsys.readouterr()
    assert "unreadable:" in printed.err and "broken.jpg" in printed.err
    assert "3 images segmented, 0 already done, 1 unreadable" in printed.out
    protocol = Protocol.named("slide", crop_size=64)
    for index in range(len(SIZES)):
        name = f"berlin_00000{index}_leftImg8bit.png"
        image = Image.open(folder / "photos" / "berlin" / name)
        labels, confidence = segment(
            model, SegformerImageProcessor(), image, protocol, return_confidence=True, overlap="gaussian"
        )
        assert len(np.unique(labels)) > 2
        kinds = ("labels", "overlays", "confidence")
        written = {kind: np.asarray(Image.open(folder / "out" / kind / "berlin" / name)) for kind in kinds}
        assert np.array_equal(written["labels"], labels)
        assert written["overlays"].shape == (*labels.shape, 3)
        np.testing.assert_allclose(written["confidence"] / 255, confidence, atol=1 / 255)
        submitted = np.asarray(Image.open(folder / "out" / "submission" / name))
        assert np.array_equal(submitted, np.array(cityscapes.LABEL_IDS)[labels])
    # Only what is missing is computed again.
    (folder / "photos" / "broken.jpg").unlink()
    (folder / "out" / "submission" / "berlin_000001_leftImg8bit.png").unlink()
    assert run(folder, *options) == 0
    assert "1 images segmented, 2 already done, 0 unreadable" in capsys.readouterr().out
    assert not list((folder / "out").rglob(".*"))


def test_wrong_options_come_before_any_work(model, folder):
    for options, message in [
        (["--submission", "ade20k"], "needs a model of 150 classes, this one has 19"),
        (["--protocol", "slid"], "did you mean 'slide'"),
        (["--protocol", "slide", "--crop_size", "1", "2", "3"], "crop_size must be one or two numbers"),
        (["--protocol", "aligned-512", "--scale", "512"], "scale must be two numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(folder, *options)
    assert not (folder / "out").exists()

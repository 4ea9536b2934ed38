# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""`segment`: inputs, options, bands and memory. That its label maps are the published ones: test_protocols.py."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from hf_segformer import SegformerImageProcessor
from hf_segformer.evaluation import score_bands
from hf_segformer.evaluation.inference import predict_label_map, segment
from hf_segformer.evaluation.protocols import Protocol
from hf_segformer.evaluation.score_bands import Logits, ResizedScores, WindowedScores, label_bands
from lively_models import lively_model
from pictures import SegformerImageProcessorPil, random_image

CLASSES = 7
PROTOCOLS = {
    "processor": Protocol.named("processor"),
    "keep-ratio": Protocol.named("keep-ratio-512", scale=(150, 70)),
    "slide": Protocol.named("slide", crop_size=(48, 64), stride=(31, 40)),
    "slide, ms+flip": Protocol.named("slide-1024", "nvlabs", scale=(150, 70), crop_size=48),
}


@pytest.fixture
def make_model(tiny_config, randomize):
    def make(**fields):
        return lively_model(tiny_config(**{"num_labels": CLASSES, **fields}), randomize)

    return make


def smooth_image(height, width, seed=0):
    small = Image.fromarray(random_image(9, 13, 3, seed=seed))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("elements", [1, 1 << 30])
def test_bands_do_not_show(name, elements, make_model, monkeypatch):
    model, image, results = make_model(), smooth_image(101, 143), []
    for size in (elements, 1 << 15):
        monkeypatch.setattr(score_bands, "_CPU_BAND_ELEMENTS", size)
        results.append(segment(model, SegformerImageProcessor(), image, PROTOCOLS[name], return_confidence=True))
    assert np.array_equal(results[0][0], results[1][0]) and len(np.unique(results[0][0])) > 2
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


def test_the_batch_of_windows_does_not_show(make_model):
    model, image = make_model().double(), smooth_image(101, 143)
    labels = [
        segment(model, SegformerImageProcessor(), image, PROTOCOLS["slide"], window_batch_size=size)
        for size in (1, 2, 100)
    ]
    assert np.array_equal(labels[0], labels[1]) and np.array_equal(labels[0], labels[2])
    assert len(np.unique(labels[0])) > 2


@pytest.mark.parametrize("overlap", ["mean", "gaussian"])
def test_merged_windows_equal_a_loop_over_them(overlap):
    generator = torch.Generator().manual_seed(3)
    rows, columns = Protocol.named("slide", crop_size=(20, 32), stride=(13, 24)).windows(45, 70)
    logits = torch.randn(len(rows), len(columns), 5, 8, CLASSES, generator=generator, dtype=torch.float64)
    total, weights = np.zeros((CLASSES, 45, 70)), np.zeros((45, 70))
    for (top, bottom), row in zip(rows, logits, strict=True):
        for (left, right), window in zip(columns, row, strict=True):
            scores = F.interpolate(window.permute(2, 0, 1)[None], (20, 32), mode="bilinear")[0].numpy()
            y, x = np.mgrid[:20, :32]
            distance = ((y - 9.5) / (20 / 8)) ** 2 + ((x - 15.5) / (32 / 8)) ** 2
            weight = np.exp(-distance / 2) if overlap == "gaussian" else np.ones((20, 32))
            total[:, top:bottom, left:right] += weight * scores
            weights[top:bottom, left:right] += weight
    calls = []

    def compute(index):
        calls.append(index)
        return list(logits[index])

    merged = WindowedScores((45, 70), rows, columns, compute, overlap)
    bands = [merged.rows(start, min(start + 6, 45)).clone() for start in range(0, 45, 6)]
    np.testing.assert_allclose(torch.cat(bands).permute(2, 0, 1), total / weights, atol=2e-6)
    assert calls == list(range(len(rows))), "each row of windows is computed once"


def test_windows_are_forgotten_after_their_last_row():
    rows, columns = Protocol.named("slide", crop_size=32, stride=24).windows(200, 32)
    merged = WindowedScores((200, 32), rows, columns, lambda _: [torch.zeros(8, 8, 2)])
    for start in range(0, 200, 4):
        merged.rows(start, start + 4)
        assert len(merged._windows) <= 2


@pytest.mark.parametrize("size", [(64, 96), (17, 23), (16, 24), (7, 5)])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_resized_scores_equal_interpolate(size, on_cpu, monkeypatch):
    monkeypatch.setattr(score_bands, "on_cpu", lambda _: on_cpu)
    logits = torch.randn(16, 24, CLASSES, generator=torch.Generator().manual_seed(4))
    expected = F.interpolate(logits.permute(2, 0, 1)[None], size, mode="bilinear")[0]
    resized = ResizedScores(Logits(logits), size)
    rows = torch.cat([resized.rows(start, min(start + 3, size[0])) for start in range(0, size[0], 3)])
    torch.testing.assert_close(rows.permute(2, 0, 1), expected, atol=1e-5, rtol=1e-5)


def test_labels_of_many_classes_need_more_than_a_byte():
    scores = torch.zeros(2, 3, 300)
    scores[..., 299] = 1
    labels, confidence = label_bands([Logits(scores)], (4, 6), 300, torch.device("cpu"), True)
    assert labels.dtype == torch.int32 and (labels == 299).all()
    expected = float(np.e / (299 + np.e))
    np.testing.assert_allclose(confidence, np.full((4, 6), expected), rtol=1e-5)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_one_class_is_a_sigmoid(name, make_model):
    model, image = make_model(num_labels=1), smooth_image(83, 97)
    for _ in range(2):  # the second time with half of the pixels in each class
        labels, confidence = segment(model, SegformerImageProcessor(), image, PROTOCOLS[name], return_confidence=True)
        probability = np.where(labels == 1, confidence, 1 - confidence).clip(1e-6, 1 - 1e-6)
        shift = float(np.median(np.log(probability / (1 - probability))))
        model.decode_head.classifier.bias.data -= shift
    model.decode_head.classifier.bias.data += shift
    assert set(np.unique(labels)) == {0, 1}
    assert 0.5 <= confidence.min() < confidence.max() <= 1
    # The same network as one of two classes, the first of which always scores zero.
    twin = make_model(num_labels=2)
    state = model.state_dict()
    for key in ("decode_head.classifier.weight", "decode_head.classifier.bias"):
        state[key] = torch.cat([torch.zeros_like(state[key]), state[key]])
    twin.load_state_dict(state)
    other, certainty = segment(twin, SegformerImageProcessor(), image, PROTOCOLS[name], return_confidence=True)
    assert (labels == other).mean() > 0.999
    np.testing.assert_allclose(confidence, certainty, atol=1e-4)


# Kinds of input.


def test_kinds_of_input_agree(make_model):
    model, processor, image = make_model(), SegformerImageProcessor(), smooth_image(61, 90)
    for protocol in PROTOCOLS.values():
        expected = segment(model, processor, image, protocol)
        assert expected.shape == (61, 90) and expected.dtype == np.uint8 and len(np.unique(expected)) > 2
        for same in (Image.fromarray(image), torch.tensor(image).permute(2, 0, 1)):
            assert np.array_equal(segment(model, processor, same, protocol), expected)


def test_a_turned_photograph_is_shown_upright(make_model, tmp_path):
    image = smooth_image(61, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.png", exif=exif)
    for protocol in (None, PROTOCOLS["slide"], PROTOCOLS["slide, ms+flip"]):
        expected = segment(make_model(), SegformerImageProcessor(), image, protocol)
        turned = segment(make_model(), SegformerImageProcessor(), Image.open(tmp_path / "turned.png"), protocol)
        assert np.array_equal(turned, expected)


def test_padding_of_the_processor_is_cut_off(make_model):
    model, image = make_model(), smooth_image(70, 101)
    processor = SegformerImageProcessor(do_resize=False, do_pad=True, pad_size={"height": 128, "width": 160})
    inputs = processor(image, return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs["pixel_values"]).logits[..., :18, :26]
    expected = F.interpolate(logits, (70, 101), mode="bilinear")[0].argmax(0).numpy()
    assert len(np.unique(expected)) > 1
    assert (segment(model, processor, image) == expected).mean() > 0.999
    (same,) = processor.post_process_semantic_segmentation(model(inputs["pixel_values"]), [(70, 101)])
    assert (segment(model, processor, image) == same.numpy()).mean() > 0.999


def test_predict_label_map_equals_transformers(make_model):
    model, image = make_model(), smooth_image(77, 130)
    with torch.no_grad():
        logits = model(SegformerImageProcessorPil()(image, return_tensors="pt").pixel_values).logits
    expected = F.interpolate(logits, (77, 130), mode="bilinear")[0].argmax(0).numpy()
    assert (predict_label_map(model, SegformerImageProcessor(), image) == expected).mean() > 0.9999


def test_the_model_is_left_as_it_was(make_model):
    model = make_model().train()
    segment(model, SegformerImageProcessor(), smooth_image(61, 90))
    assert model.training and all(module.training for module in model.modules())
    with pytest.raises(ValueError, match="overlap must be one of mean, gaussian, got 'median'"):
        segment(model, SegformerImageProcessor(), smooth_image(61, 90), PROTOCOLS["slide"], overlap="median")
    assert model.training
    with pytest.raises(ValueError, match="window_batch_size must be at least 1, got 0"):
        segment(model, SegformerImageProcessor(), smooth_image(61, 90), PROTOCOLS["slide"], window_batch_size=0)


def test_augmentation_of_a_processor_that_does_not_resize(make_model):
    with pytest.raises(ValueError, match="do_resize=False"):
        segment(
            make_model(),
            SegformerImageProcessor(do_resize=False),
            smooth_image(61, 90),
            Protocol.named("processor", "nvlabs"),
        )


# Memory.

LARGE = """
import resource, sys
import numpy as np
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.evaluation.inference import segment
from hf_segformer.evaluation.protocols import Protocol
config = SegformerConfig(
    hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1], depths=[1, 1, 1, 1], decoder_hidden_size=16,
    num_labels=150,
)
image = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), dtype=np.uint8)
labels = segment(SegformerForSemanticSegmentation(config), SegformerImageProcessor(), image, Protocol.named("slide"))
assert labels.shape == (4000, 6000) and labels.dtype == np.uint8
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak memory is Linux's")
def test_a_large_photograph_with_many_classes_takes_little_memory():
    """Its scores would be 14.4 GB."""
    result = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-1]) < 2e9 / 1024

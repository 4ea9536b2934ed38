# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Padding, label maps from logits, and the way through a model and a pipeline."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import pipeline

from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from largest_tensor import LargestTensor
from pictures import SegformerImageProcessorPil, padded_batch, random_image


@pytest.fixture(scope="module")
def photo(shared_data):
    return Image.open(shared_data / "photos" / "000000039769.png").convert("RGB")


# --- padding ---


@pytest.mark.parametrize(
    ("options", "padded"),
    [
        ({}, (53, 61)),
        ({"size_divisor": 32}, (64, 64)),
        ({"pad_size": {"height": 90, "width": 70}}, (90, 70)),
        ({"do_normalize": False}, (53, 61)),
        ({"do_rescale": False, "do_normalize": False}, (53, 61)),
        ({"do_reduce_labels": True}, (53, 61)),
    ],
    ids=str,
)
def test_padding(options, padded):
    images, maps, processor, result = padded_batch(**options)
    assert result["pixel_values"].shape == (2, 3, *padded) and result["labels"].shape == (2, *padded)
    assert result.image_sizes == result.original_sizes == [(40, 61), (53, 37)] and result.padded_size == padded
    for index, (height, width) in enumerate(result.image_sizes):
        alone = processor(images[index], maps[index], do_pad=False, return_tensors="pt")
        inside = torch.zeros(padded, dtype=torch.bool)
        inside[:height, :width] = True
        values, labels = result["pixel_values"][index], result["labels"][index]
        assert torch.equal(values[:, :height, :width], alone["pixel_values"][0])
        assert torch.equal(labels[:height, :width], alone["labels"][0])
        assert (values[:, ~inside] == 0).all() and (labels[~inside] == 255).all()


def test_sizes_are_no_model_inputs_and_survive():
    features = padded_batch()[-1]
    assert list(features) == ["pixel_values", "labels"]
    for copy in (features.to(torch.float64), pickle.loads(pickle.dumps(features))):
        assert copy.image_sizes == [(40, 61), (53, 37)] and copy.padded_size == (53, 61)
        assert copy.original_sizes == copy.image_sizes


def test_images_of_different_sizes_need_padding_or_a_list():
    images = [random_image(40, 61, 3), random_image(53, 37, 3)]
    processor = SegformerImageProcessor(do_resize=False)
    assert [v.shape for v in processor(images)["pixel_values"]] == [(3, 40, 61), (3, 53, 37)]
    with pytest.raises(ValueError, match=r"one size.*\(40, 61\).*do_pad=True"):
        processor(images, return_tensors="pt")


# --- post-processing ---


def random_outputs(batch=2, classes=7, height=13, width=17):
    generator = torch.Generator().manual_seed(0)
    # float64, so that rounding decides no pixel
    return SimpleNamespace(logits=torch.randn(batch, classes, height, width, generator=generator, dtype=torch.float64))


def upsampled(logits, size):
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def test_label_maps_at_target_sizes():
    outputs, processor = random_outputs(3), SegformerImageProcessor()
    sizes = [(50, 71), (9, 30), (50, 71)]
    for target_sizes in (sizes, torch.tensor(sizes), np.array(sizes)):
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=target_sizes)
        for index, size in enumerate(sizes):
            expected = upsampled(outputs.logits[index : index + 1], size)[0].argmax(0)
            assert maps[index].dtype == torch.int64 and torch.equal(maps[index], expected)
    same = processor.post_process_semantic_segmentation(outputs, target_sizes=[(50, 71)] * 3)
    assert torch.equal(torch.stack(same), upsampled(outputs.logits, (50, 71)).argmax(1))
    plain = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(plain), outputs.logits.argmax(1))


@pytest.mark.engine
@pytest.mark.parametrize("return_confidence", [False, True])
def test_no_scores_are_held_unless_asked(return_confidence):
    outputs, target_sizes = random_outputs(2, 60, 100, 125), [(400, 500)] * 2
    with LargestTensor() as largest:
        SegformerImageProcessor().post_process_semantic_segmentation(
            outputs, target_sizes=target_sizes, return_confidence=return_confidence
        )
    assert 400 * 500 <= largest.numel < 60 * 400 * 500 / 2


@pytest.mark.parametrize("target_sizes", [None, [(50, 71), (9, 30)]])
def test_scores_equal_the_built_in_processors(target_sizes):
    outputs = random_outputs()
    arguments = {"target_sizes": target_sizes, "return_segmentation_scores": True}
    ours = SegformerImageProcessor().post_process_semantic_segmentation(outputs, **arguments)
    stock = SegformerImageProcessorPil().post_process_semantic_segmentation(outputs, **arguments)
    for a, b in zip(ours, stock, strict=True):
        assert type(a) is type(b) and list(a) == list(b)
        assert torch.equal(a.segmentation, b.segmentation)
        torch.testing.assert_close(a.segmentation_scores, b.segmentation_scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("with_scores", [False, True])
@pytest.mark.parametrize("classes", [1, 7])
def test_confidence_is_the_probability_of_the_label(classes, with_scores):
    outputs = random_outputs(classes=classes)
    items = SegformerImageProcessor().post_process_semantic_segmentation(
        outputs, target_sizes=[(50, 71)] * 2, return_confidence=True, return_segmentation_scores=with_scores
    )
    scores = upsampled(outputs.logits, (50, 71))
    if classes == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)  # sigmoid(x) = softmax([0, x])[1]
    probability, labels = scores.softmax(1).max(1)
    for index, item in enumerate(items):
        assert ("segmentation_scores" in item) == with_scores
        assert torch.equal(item.segmentation, labels[index])
        assert item.confidence.dtype == torch.float32 and item.confidence.shape == (50, 71)
        torch.testing.assert_close(item.confidence.double(), probability[index], rtol=0, atol=1e-6)


def test_binary_models_give_both_labels():
    outputs = random_outputs(classes=1)
    maps = SegformerImageProcessor().post_process_semantic_segmentation(outputs, target_sizes=[(50, 71)] * 2)
    expected = (upsampled(outputs.logits, (50, 71))[:, 0].sigmoid() > 0.5).long()
    assert torch.equal(torch.stack(maps), expected) and set(expected.unique().tolist()) == {0, 1}
    (item,) = SegformerImageProcessor().post_process_semantic_segmentation(
        SimpleNamespace(logits=outputs.logits[:1]), target_sizes=[(50, 71)], return_segmentation_scores=True
    )
    assert torch.equal(item.segmentation, expected[0])


@pytest.mark.parametrize(
    "options",
    [
        {"do_resize": False},
        {"do_resize": False, "size_divisor": 32},
        {"do_resize": False, "pad_size": {"height": 90, "width": 70}},
        {"do_resize": False, "pad_size": {"height": 91, "width": 73}},
        {"size": {"shortest_edge": 50, "longest_edge": 90}, "keep_ratio": True, "size_divisor": 32},
    ],
    ids=str,
)
@pytest.mark.parametrize("by_configuration", [True, False])
def test_padding_is_cut_off_before_resizing(options, by_configuration):
    *_, processor, features = padded_batch(**options)
    height, width = (-(-side // 4) for side in features.padded_size)
    logits = torch.full((2, 7, height, width), 1e3, dtype=torch.float64)
    logits[:, 5] = 1e6  # the padding shouts class 5
    parts = []
    for index, size in enumerate(features.image_sizes):
        part = random_outputs(1, 7, *(-(-side // 4) for side in size)).logits
        logits[index, :, : part.shape[2], : part.shape[3]] = part[0]
        parts.append(part)
    sizes = features.original_sizes
    if not by_configuration:
        processor = SegformerImageProcessor()
    inputs = None if by_configuration else features
    outputs = SimpleNamespace(logits=logits)
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes, inputs=inputs)
    for part, size, labels in zip(parts, sizes, maps, strict=True):
        assert torch.equal(labels, upsampled(part, size)[0].argmax(0))
    maps = processor.post_process_semantic_segmentation(outputs, inputs=features)
    assert [m.shape for m in maps] == [part.shape[2:] for part in parts]


def test_wrong_number_of_sizes():
    outputs, processor = random_outputs(2), SegformerImageProcessor()
    with pytest.raises(ValueError, match=r"target_sizes.*2.*3"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(5, 5)] * 3)
    inputs = processor([random_image(9, 9, 3)] * 3, do_pad=True, return_tensors="pt")
    with pytest.raises(ValueError, match=r"inputs.*3 inputs, 2 logits"):
        processor.post_process_semantic_segmentation(outputs, inputs=inputs)


def test_only_semantic_post_processing():
    for task in ("instance", "panoptic"):
        assert not hasattr(SegformerImageProcessor, f"post_process_{task}_segmentation")


# --- with a model ---


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], depths=[1] * 4, decoder_hidden_size=16
    )
    config.id2label = {index: f"class {index}" for index in range(6)}
    model = SegformerForSemanticSegmentation(config).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=5)  # so that more than one class wins
    return model


@pytest.mark.parametrize(
    "options",
    [{"size": 64}, {"size": {"shortest_edge": 64}, "do_pad": True, "pad_size": {"height": 96, "width": 128}}],
)
def test_pipeline(model, tmp_path, photo, options):
    processor = SegformerImageProcessor(**options)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    segment = pipeline("image-segmentation", model=str(tmp_path))
    assert type(segment.image_processor) is SegformerImageProcessor
    results = segment(photo)
    features = processor(photo, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**features)
    (expected,) = processor.post_process_semantic_segmentation(outputs, features.original_sizes, inputs=features)
    labels = {result["label"]: np.asarray(result["mask"]) > 0 for result in results}
    assert set(labels) == {f"class {index}" for index in expected.unique().tolist()} and len(labels) > 1
    for name, mask in labels.items():
        assert np.array_equal(mask, expected == int(name.split()[1]))


def test_features_go_into_the_model_as_they_are(model):
    features = padded_batch(size_divisor=32)[-1]
    features["labels"][features["labels"] < 255] %= 6
    with torch.inference_mode():
        outputs = model(**features)
    assert outputs.loss.isfinite() and outputs.logits.shape == (2, 6, 16, 16)

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Images smaller than the network takes: padded and cut by `segment`, named by the models."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_segformer import SegformerBackbone, SegformerForImageClassification, SegformerImageProcessor, SegformerModel
from hf_segformer.evaluation.inference import segment
from hf_segformer.evaluation.protocols import PROTOCOLS, Protocol
from hf_segformer.pretrained.input_checks import smallest_side
from lively_models import lively_model
from pictures import random_image

FIELDS = [
    {},
    {"sr_ratios": [4, 2, 2, 1]},
    {"sr_ratios": [1, 1, 1, 1]},
    {"sr_ratios": [8, 4, 2, 3]},
    {"patch_sizes": [8, 4, 2, 3], "strides": [4, 2, 2, 2]},
    {"strides": [2, 2, 1, 3], "patch_sizes": [3, 3, 5, 7]},
    {"patch_sizes": [2, 2, 2, 2], "strides": [2, 2, 2, 2], "sr_ratios": [1, 1, 1, 1]},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_the_smallest_side_is_the_smallest_that_runs(fields, tiny_config):
    model = SegformerModel(tiny_config(**fields)).eval()
    smallest = smallest_side(model.config)
    assert model(torch.zeros(1, 3, smallest, smallest)).last_hidden_state.numel() > 0
    if smallest == 1:
        return
    for size in ((smallest - 1, smallest + 20), (smallest + 20, smallest - 1)):
        with pytest.raises(RuntimeError):
            model.encoder(torch.zeros(1, 3, *size))  # the model checks, the encoder does not


def test_published_configurations_take_29_pixels(tiny_config):
    assert smallest_side(tiny_config()) == 29


@pytest.mark.parametrize("size", [(28, 40), (40, 28), (1, 1), (0, 40), (3, 7)])
@pytest.mark.parametrize("model_class", [SegformerModel, SegformerForImageClassification, SegformerBackbone])
def test_models_name_the_smallest_side(size, model_class, tiny_config):
    model = model_class(tiny_config()).eval()
    message = rf"pixel_values must be at least 29 pixels high and wide, got \({size[0]}, {size[1]}\)"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(2, 3, *size))


# --- segment ---


def label_map_by_hand(model, values, size):
    """Padded by hand, one row and column of logits for each four pixels, resized."""
    height, width = values.shape[-2:]
    values = F.pad(values, (0, max(29 - width, 0), 0, max(29 - height, 0)))
    with torch.no_grad():
        logits = model(values).logits[..., : -(-height // 4), : -(-width // 4)]
    logits = F.interpolate(logits, (height, width), mode="bilinear")
    return F.interpolate(logits, size, mode="bilinear").argmax(1)[0].numpy()


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (5, 6), (9, 30), (28, 28), (60, 2)])
def test_own_size_is_padded_and_cut(size, tiny_config, randomize):
    model, image = lively_model(tiny_config(num_labels=7), randomize).double(), random_image(*size, 3)
    processor = SegformerImageProcessor(do_resize=False)
    values = processor(torch.tensor(image).permute(2, 0, 1), return_tensors="pt")["pixel_values"].double()
    expected = label_map_by_hand(model, values, size)
    for protocol in (Protocol.named("processor"), Protocol.named("slide"), Protocol("own", "none")):
        assert np.array_equal(segment(model, processor, image, protocol), expected)
    pad_size = {"height": max(size[0], 29), "width": max(size[1], 29)}
    padded = SegformerImageProcessor(do_resize=False, do_pad=True, pad_size=pad_size)
    assert np.array_equal(segment(model, padded, image), expected), "zeros, as the processor pads"


@pytest.mark.parametrize("tta", ["none", "mmseg", "nvlabs"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_takes_every_size(name, tta, tiny_config, randomize):
    model, processor = lively_model(tiny_config(num_labels=7), randomize), SegformerImageProcessor(size=40)
    fields = {"scale": (48, 24)} if PROTOCOLS[name].scale else {}
    fields |= {"crop_size": 32} if PROTOCOLS[name].crop_size else {}
    protocol = Protocol.named(name, tta, **fields)
    for size in ((1, 1), (2, 50), (31, 7)):
        labels, confidence = segment(model, processor, random_image(*size, 3), protocol, return_confidence=True)
        assert labels.shape == confidence.shape == size and (confidence > 0).all() and (confidence <= 1).all()


@pytest.mark.parametrize("crop_size", [8, 16, (28, 40)])
def test_small_windows_are_padded_one_by_one(crop_size, tiny_config, randomize):
    model, image = lively_model(tiny_config(num_labels=7), randomize).double(), random_image(50, 61, 3)
    protocol, processor = Protocol.named("slide", crop_size=crop_size), SegformerImageProcessor(do_resize=False)
    values = processor(image, return_tensors="pt")["pixel_values"].double()
    total, counts = torch.zeros(7, 50, 61), torch.zeros(50, 61)
    rows, columns = protocol.windows(50, 61)
    for top, bottom in rows:
        for left, right in columns:
            window = values[..., top:bottom, left:right]
            height, width = window.shape[-2:]
            window = F.pad(window, (0, max(29 - width, 0), 0, max(29 - height, 0)))
            with torch.no_grad():
                logits = model(window).logits[..., : -(-height // 4), : -(-width // 4)]
            total[:, top:bottom, left:right] += F.interpolate(logits, (height, width), mode="bilinear")[0].float()
            counts[top:bottom, left:right] += 1
    expected = (total / counts).argmax(0).numpy()
    assert len(np.unique(expected)) > 2
    assert (segment(model, processor, image, protocol) == expected).mean() > 0.999


def test_mirrored_small_images_are_padded_behind_the_mirror(tiny_config, randomize):
    model, image = lively_model(tiny_config(num_labels=7), randomize).double(), random_image(12, 20, 3)
    processor = SegformerImageProcessor(do_resize=False)
    values = processor(image, return_tensors="pt")["pixel_values"].double()
    probability = 0
    for flip in (False, True):
        padded = F.pad(values.flip(3) if flip else values, (0, 9, 0, 17))
        with torch.no_grad():
            logits = model(padded).logits[..., :3, :5]
        scores = F.interpolate(logits.flip(3) if flip else logits, (12, 20), mode="bilinear")
        probability = probability + scores.softmax(1)
    protocol = Protocol("own", "none", tta="nvlabs", nvlabs_ratios=(1.0,))
    labels = segment(model, processor, image, protocol)
    assert (labels == probability.argmax(1)[0].numpy()).mean() > 0.99


def test_arrays_of_three_rows_are_height_first(tiny_config, randomize):
    model, processor = lively_model(tiny_config(num_labels=7), randomize), SegformerImageProcessor(size=64)
    for size in ((3, 50), (3, 3), (1, 3)):
        image = random_image(*size, 3)
        labels = segment(model, processor, image)
        planes = torch.tensor(image).permute(2, 0, 1)
        expected = segment(model, SegformerImageProcessor(size=64, input_data_format="channels_first"), planes)
        assert labels.shape == size and np.array_equal(labels, expected)


# --- another first convolution ---


@pytest.mark.parametrize("kind", ["convolution", "sequence"])
def test_a_first_convolution_for_other_channels_runs(kind, tiny_config, randomize):
    model = lively_model(tiny_config(num_labels=7), randomize)
    embedding = model.segformer.encoder.patch_embeddings[0]
    if kind == "convolution":
        embedding.proj = torch.nn.Conv2d(4, 8, 7, 4, 3)
    else:
        embedding.proj = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 3, 1), embedding.proj)
    with torch.no_grad():
        assert model(torch.randn(1, 4, 32, 40)).logits.shape == (1, 7, 8, 10)
    message = r"num_channels=4.*got \(1, 3, 32, 40\).*from_pretrained\(\.\.\., num_channels=\.\.\.\)"
    with pytest.raises(ValueError, match=message):
        model(torch.randn(1, 3, 32, 40))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_refused_with_the_way_to_load_them(channels, tiny_config):
    with pytest.raises(ValueError, match=r"num_channels=3.*from_pretrained\(\.\.\., num_channels=\.\.\.\)"):
        SegformerModel(tiny_config())(torch.randn(1, channels, 32, 40))

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The image processor against the built-in PIL processor: numbers, configurations, errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_segformer import SegformerImageProcessor
from hf_segformer.processing import pixel_values as computing
from oracles import run_oracle
from pictures import SegformerImageProcessorPil, random_image, random_map


@pytest.fixture(scope="module")
def photo(shared_data):
    return Image.open(shared_data / "photos" / "000000039769.png").convert("RGB")


# --- the same numbers as the built-in processor ---

IMAGE_KINDS = {
    "pil": Image.fromarray,
    "hwc": lambda array: array,
    "chw": lambda array: np.ascontiguousarray(array.transpose(2, 0, 1)),
    "int64": lambda array: array.astype(np.int64),
    "whole floats": lambda array: array.astype(np.float32),
    "float32 in [0, 1]": lambda array: (array / 255).astype(np.float32),
    "float64 in [0, 1]": lambda array: array / 255,
    "tensor": lambda array: torch.tensor(array).permute(2, 0, 1),
    "float tensor": lambda array: torch.tensor(array).permute(2, 0, 1) / 255,
}
OPTIONS = [
    {},
    {"size": 96},
    {"size": {"shortest_edge": 64}},
    {"size": {"shortest_edge": 64, "longest_edge": 80}},
    {"size": {"shortest_edge": 200, "longest_edge": 2048}},
    {"size": {"max_height": 70, "max_width": 190}},
    {"resample": 3, "size": {"height": 41, "width": 203}},
    {"resample": 0},
    {"do_resize": False},
    {"do_rescale": False, "size": 90},
    {"do_normalize": False, "size": 90},
    {"do_rescale": False, "do_normalize": False, "size": 90},
    {"do_reduce_labels": True, "size": {"height": 60, "width": 77}},
    {"image_mean": 0.4, "image_std": 0.3, "rescale_factor": 1 / 127.5, "size": 90},
    {"image_mean": [0.1, 0.5, 0.9], "image_std": [1, 2, 3], "size": 90},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_equals_the_built_in_processor(kind, options):
    images = [IMAGE_KINDS[kind](random_image(101, 149, 3, seed=seed)) for seed in range(2)]
    maps = [random_map(101, 149, 256, seed=seed) for seed in range(2)]
    ours = SegformerImageProcessor(**options)(images, [m.copy() for m in maps], return_tensors="pt")
    stock = SegformerImageProcessorPil(**options)(images, [m.copy() for m in maps], return_tensors="pt")
    assert list(ours) == list(stock) == ["pixel_values", "labels"]
    for name in stock:
        assert ours[name].dtype == stock[name].dtype
        assert torch.equal(ours[name], stock[name]), name


def test_equals_the_built_in_processor_on_a_photo(photo):
    maps = random_map(480, 640)
    ours = SegformerImageProcessor()(photo, maps, return_tensors="pt")
    stock = SegformerImageProcessorPil()(photo, maps.copy(), return_tensors="pt")
    assert torch.equal(ours["pixel_values"], stock["pixel_values"]) and torch.equal(ours["labels"], stock["labels"])


@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_kinds_of_results(return_tensors):
    arguments = [random_image(30, 41, 3)] * 2, [random_map(30, 41)] * 2
    ours = SegformerImageProcessor(size=20)(*arguments, return_tensors=return_tensors)
    stock = SegformerImageProcessorPil(size=20)(*arguments, return_tensors=return_tensors)
    for name in stock:
        assert type(ours[name]) is type(stock[name]) and type(ours[name][0]) is type(stock[name][0])
        assert all(np.array_equal(a, b) for a, b in zip(ours[name], stock[name], strict=True))


def test_channels_last_results():
    image = random_image(30, 41, 3)
    first = SegformerImageProcessor(size=20)(image, return_tensors="pt")["pixel_values"]
    last = SegformerImageProcessor(size=20)(image, return_tensors="pt", data_format="channels_last")["pixel_values"]
    assert torch.equal(last, first.permute(0, 2, 3, 1))


# --- the caller's data ---

MAP_KINDS = {
    "uint8": lambda array: array,
    "int64": lambda array: array.astype(np.int64),
    "read-only": lambda array: np.frombuffer(array.tobytes(), np.uint8).reshape(array.shape),
    "strided": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "tensor": torch.tensor,
    "int64 tensor": lambda array: torch.tensor(array).long(),
    "pil": Image.fromarray,
}


@pytest.mark.parametrize("do_resize", [True, False])
@pytest.mark.parametrize("kind", MAP_KINDS)
def test_never_writes_to_the_callers_data(kind, do_resize):
    ids = random_map(31, 44, 256)
    labels, image = MAP_KINDS[kind](ids.copy()), random_image(31, 44, 3)
    copies = np.array(labels), image.copy()
    processor = SegformerImageProcessor(do_reduce_labels=True, do_resize=do_resize, size={"height": 31, "width": 44})
    result = processor(image, labels, return_tensors=None)["labels"][0]
    assert np.array_equal(np.asarray(labels), copies[0]) and np.array_equal(image, copies[1])
    expected = np.where((ids == 0) | (ids == 255), 255, ids.astype(int) - 1)
    assert result.dtype == np.int64 and np.array_equal(result, expected)
    result[...] = 7  # and the result is the caller's own
    assert np.array_equal(np.asarray(labels), copies[0])


def test_results_share_no_memory_with_float_inputs():
    image = torch.rand(3, 20, 30)
    copy = image.clone()
    values = SegformerImageProcessor(do_resize=False, do_rescale=False)(image, return_tensors="pt")["pixel_values"]
    values.zero_()
    assert torch.equal(image, copy)


# --- configurations ---


def save_config(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


def test_hub_configuration(shared_data, photo):
    folder = shared_data / "hub_configs" / "Xenova_segformer-b0-finetuned-ade-512-512"
    processor = SegformerImageProcessor.from_pretrained(folder)
    assert processor.do_reduce_labels is True and dict(processor.size) == {"height": 512, "width": 512}
    assert type(AutoImageProcessor.from_pretrained(folder)) is SegformerImageProcessor
    maps = random_map(480, 640)
    stock = SegformerImageProcessorPil.from_pretrained(folder)(photo, maps.copy(), return_tensors="pt")
    ours = processor(photo, maps, return_tensors="pt")
    assert torch.equal(ours["pixel_values"], stock["pixel_values"]) and torch.equal(ours["labels"], stock["labels"])


@pytest.mark.parametrize("type_key", ["feature_extractor_type", "image_processor_type"])
def test_configuration_of_the_old_feature_extractor(tmp_path, type_key):
    mean = [0.5, 0.4, 0.3]
    config = {type_key: "SegformerFeatureExtractor", "reduce_labels": True, "size": 128, "image_mean": mean}
    folder = save_config(tmp_path, do_normalize=True, resample=2, **config)
    for load in (SegformerImageProcessor, AutoImageProcessor):
        processor = load.from_pretrained(folder)
        assert type(processor) is SegformerImageProcessor
        assert processor.to_dict()["image_processor_type"] == "SegformerImageProcessor"
    assert processor.do_reduce_labels is True and dict(processor.size) == {"height": 128, "width": 128}
    assert list(processor.image_mean) == mean
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "SegformerImageProcessor" and saved["do_reduce_labels"] is True
    assert "reduce_labels" not in saved and "feature_extractor_type" not in saved


def test_configuration_of_the_first_converter(tmp_path):
    old = {"image_scale": [512, 512], "keep_ratio": False, "align": False, "size_divisor": 32, "crop_size": [512, 512]}
    folder = save_config(tmp_path, feature_extractor_type="SegformerFeatureExtractor", size=70, **old)
    image = random_image(50, 60, 3)
    result = SegformerImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(result, SegformerImageProcessorPil(size=70)(image, return_tensors="pt")["pixel_values"])


def test_old_spelling_of_reduce_labels(tmp_path):
    image, labels = random_image(8, 9, 3), random_map(8, 9)
    plain = SegformerImageProcessor(do_resize=False)
    expected = plain(image, labels, do_reduce_labels=True)["labels"][0]
    assert not np.array_equal(expected, plain(image, labels)["labels"][0])
    folder = save_config(tmp_path, do_resize=False, image_processor_type="SegformerImageProcessor")
    for processor, options in [
        (plain, {"reduce_labels": True}),
        (SegformerImageProcessor(do_resize=False, reduce_labels=True), {}),
        (SegformerImageProcessor.from_pretrained(folder, reduce_labels=True), {}),
        (AutoImageProcessor.from_pretrained(folder, reduce_labels=True), {}),
    ]:
        assert np.array_equal(processor(image, labels, **options)["labels"][0], expected)
    with pytest.raises(ValueError, match=r"reduce_labels.*True and False"):
        SegformerImageProcessor(reduce_labels=True, do_reduce_labels=False)


ALL_OPTIONS = {
    "size": {"shortest_edge": 61, "longest_edge": 180},
    "keep_ratio": True,
    "size_divisor": 32,
    "antialias": False,
    "do_pad": True,
    "pad_size": {"height": 192, "width": 224},
    "do_reduce_labels": True,
    "image_mean": [0.1, 0.2, 0.3],
}


def test_save_and_load_keep_every_option(tmp_path):
    processor = SegformerImageProcessor(**ALL_OPTIONS)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {name: saved[name] for name in ALL_OPTIONS} == ALL_OPTIONS
    again = SegformerImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    arguments = random_image(70, 99, 3), random_map(70, 99)
    first, second = processor(*arguments, return_tensors="pt"), again(*arguments, return_tensors="pt")
    assert torch.equal(first["pixel_values"], second["pixel_values"]) and torch.equal(
        first["labels"], second["labels"]
    )


def test_saved_configuration_has_nothing_that_stock_does_not_know(tmp_path):
    options = {"do_reduce_labels": True, "size": {"height": 40, "width": 56}}
    SegformerImageProcessor(**options).save_pretrained(tmp_path / "ours")
    SegformerImageProcessorPil(**options).save_pretrained(tmp_path / "stock")
    ours, stock = (
        json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("ours", "stock")
    )
    assert ours == stock and ours["image_processor_type"] == "SegformerImageProcessor"


STOCK_4 = """
import sys, numpy as np
from transformers import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained(sys.argv[1], use_fast=False)
data = np.load(sys.argv[2])
result = processor(data["image"], data["labels"], return_tensors="np")
np.savez(sys.argv[3], type=type(processor).__name__, **result)
"""


def test_saved_configuration_gives_the_same_in_transformers_4(tmp_path):
    image, labels = random_image(70, 99, 3), random_map(70, 99)
    np.savez(tmp_path / "in.npz", image=image, labels=labels)
    processor = SegformerImageProcessor(do_reduce_labels=True, size={"height": 40, "width": 56})
    processor.save_pretrained(tmp_path)
    run_oracle("stock4", STOCK_4, tmp_path, tmp_path / "in.npz", tmp_path / "out.npz")
    stock, ours = np.load(tmp_path / "out.npz"), processor(image, labels, return_tensors="np")
    assert stock["type"] == "SegformerImageProcessor"
    assert np.array_equal(ours["labels"], stock["labels"])
    np.testing.assert_allclose(ours["pixel_values"], stock["pixel_values"], rtol=0, atol=1e-6)


# --- wrong input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"foo": 3}}, "size must have one of"),
        ({"size": {"height": 4}}, "size must have one of"),
        ({"size": {"longest_edge": 4}}, "size must have the keys.*longest_edge"),
        ({"size": {"height": 0, "width": 4}}, "size must hold positive.*'height': 0"),
        ({"size": {"height": 4.5, "width": 4}}, r"size|4\.5"),
        ({"size": "large"}, "size"),
        ({"size": 64, "keep_ratio": True}, "size must have shortest_edge and longest_edge with keep_ratio"),
        ({"size_divisor": 0}, "size_divisor.*at least 1, got 0"),
        ({"size_divisor": -32}, "size_divisor.*at least 1, got -32"),
        ({"resample": 3, "antialias": False}, "resample.*antialias=False.*3"),
        ({"rescale_factor": 1e300}, "rescale_factor, image_mean, image_std must .* float32.*1e\\+300"),
        ({"image_mean": [0, 1e300, 0]}, "image_mean.*1e\\+300"),
        ({"image_std": [1e-45] * 3}, "image_std must .* float32.*1e-45"),
        ({"rescale_factor": 1e38, "do_normalize": False}, "^rescale_factor must .* float32.*1e\\+38"),
        ({"image_mean": [0.5] * 4}, "image_std must have as many values as image_mean, 4, got 3"),
        ({"image_mean": [0.5] * 4, "image_std": [0.5] * 4}, "images must have 4 channels.*got 3"),
        ({"pad_size": {"shortest_edge": 4}, "do_pad": True}, "pad_size must have the keys height and width"),
        ({"pad_size": {"height": 4, "width": 900}, "do_pad": True}, r"pad_size.*\(512, 512\), got \(4, 900\)"),
        ({"antialias": "no"}, "antialias"),
    ],
    ids=str,
)
def test_wrong_options(options, message):
    image = random_image(30, 41, 3)
    with pytest.raises(ValueError, match=message):
        SegformerImageProcessor()(image, **options)
    with pytest.raises(ValueError, match=message):
        processor = SegformerImageProcessor(**options)
        processor(image, **({} if "antialias" not in message or "resample" in message else options))


@pytest.mark.parametrize(
    ("images", "maps", "message"),
    [
        (
            [random_image(30, 41, 3)] * 2,
            [random_map(30, 41)],
            "segmentation_maps must be as many as the images, 2, got 1",
        ),
        (random_image(30, 41, 3), random_map(30, 40), r"image 0 has \(30, 41\), its map \(30, 40\)"),
        (random_image(30, 41, 3), random_map(41, 30), r"image 0 has \(30, 41\), its map \(41, 30\)"),
        (random_image(30, 41, 3), Image.fromarray(random_image(30, 41, 3)), "segmentation_maps.*mode RGB"),
        (random_image(30, 41, 3), random_map(30, 41) / 3, "segmentation_maps.*fractions"),
        (random_image(30, 41, 2), None, r"images must have 3 channels.*\(30, 41, 2\)"),
        (random_image(7, 30, 41), None, r"images must have 3 channels.*\(7, 30, 41\)"),
        (random_image(30, 41, 3).astype(int) - 9, None, r"\[0, 255\].*\[-9, "),
        ([], None, r"images must be.*\[\]"),
        (None, None, "images must be.*None"),
        ([3.5], None, r"images must be.*3\.5"),
        ("no/such/file.png", None, "no/such/file.png"),
        ([Image.new("L", (9, 8)), Image.new("RGB", (9, 8))], None, "one number of channels, got 1 and 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_images_and_maps(images, maps, message):
    processor = SegformerImageProcessor(size=20)
    options = {"image_mean": 0.5, "image_std": 0.5} if "one number of channels" in message else {}
    with pytest.raises(ValueError, match=message):
        processor(images, maps, return_tensors="pt", **options)


def test_floats_that_are_rescaled_twice_are_warned_about(caplog):
    computing.logger.warning_once.cache_clear()
    with caplog.at_level("WARNING"):
        SegformerImageProcessor(size=20)(random_image(30, 41, 3) / 255)
    assert "do_rescale=False" in caplog.text

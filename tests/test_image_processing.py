# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The image processor against the built-in PIL processor, Pillow, OpenCV and mmseg's transforms."""

import json
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer import pixel_values_segformer as computing
from hf_segformer.resize_segformer import nearest_indices, opencv_resize, pillow_resize, resize_nearest, resize_pixels
from oracles import run_oracle

# transformers 5.17 uses torchvision's name of the nearest filter even where torchvision is missing.
_torchvision = SimpleNamespace(InterpolationMode=SimpleNamespace(NEAREST_EXACT=Image.Resampling.NEAREST))
vars(sys.modules[SegformerImageProcessorPil.__module__]).setdefault("tvF", _torchvision)

FILTERS = [filter_ for filter_ in Image.Resampling if not filter_.name.startswith("MKS")]
# (height, width) of source and target: up, down, both, one axis only, odd, one pixel, half, much taller than wide.
SIZES = [
    ((37, 53), (91, 67)),
    ((120, 161), (33, 47)),
    ((43, 137), (165, 35)),
    ((201, 45), (46, 89)),
    ((64, 48), (64, 31)),
    ((64, 48), (29, 48)),
    ((1, 9), (5, 1)),
    ((150, 90), (75, 45)),
    ((301, 2), (100, 3)),
    ((273, 100), (200, 74)),
]


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_map(height, width, classes=151, dtype=np.uint8, seed=1):
    return np.random.default_rng(seed).integers(0, classes, (height, width)).astype(dtype)


@pytest.fixture(scope="module")
def photo(shared_data):
    return Image.open(shared_data / "photos" / "000000039769.png").convert("RGB")


def pixel_values(image, **options):
    return SegformerImageProcessor(**options)(image, return_tensors="pt")["pixel_values"]


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


# --- resizing, bit for bit ---


@pytest.mark.parametrize("resample", FILTERS, ids=lambda f: f.name)
@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_pillow_resize_equals_pillow(source, target, resample):
    image = random_image(*source)
    image[::3] = np.where(image[::3] > 127, 255, 0)  # overshoot and clipping
    expected = np.asarray(Image.fromarray(image).resize(target[::-1], resample))
    assert np.array_equal(pillow_resize(torch.tensor(image), target, resample), expected)
    floats = np.random.default_rng(2).normal(size=source).astype(np.float32)
    expected = np.asarray(Image.fromarray(floats).resize(target[::-1], resample))
    np.testing.assert_allclose(pillow_resize(torch.tensor(floats), target, resample), expected, rtol=0, atol=1e-6)


def test_pillow_resize_of_a_batch_and_of_many_random_sizes():
    generator = np.random.default_rng(3)
    for seed in range(150):
        height, width, *target = (int(side) for side in generator.integers(1, 220, 4))
        images = random_image(2, 3, height, width, seed=seed)
        result = pillow_resize(torch.tensor(images), tuple(target))
        for image, values in zip(images, result.numpy(), strict=True):
            expected = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).resize(target[::-1], 2))
            assert np.array_equal(values.transpose(1, 2, 0), expected), (height, width, target)


def test_pillow_resize_names_an_unknown_filter():
    unknown = [f for f in Image.Resampling if f not in FILTERS]
    if not unknown:
        pytest.skip("this Pillow has no other filters")
    with pytest.raises(ValueError, match=f"resample.*{unknown[0].name}"):
        pillow_resize(torch.zeros(3, 4, 5, dtype=torch.uint8), (2, 2), unknown[0])


def test_nearest_equals_pillow_and_opencv():
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(4)
    for _ in range(300):
        points, width, target, target_width = (int(side) for side in generator.integers(1, 400, 4))
        ids = np.arange(points * width, dtype=np.int32).reshape(points, width)
        expected = np.asarray(Image.fromarray(ids).resize((target_width, target), Image.Resampling.NEAREST))
        assert np.array_equal(resize_nearest(ids, (target, target_width)), expected)
        expected = cv2.resize(ids, (target_width, target), interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(resize_nearest(torch.tensor(ids), (target, target_width), antialias=False), expected)
    assert not np.array_equal(nearest_indices(10, 4, True), nearest_indices(10, 4, False))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_resize_without_antialias_equals_opencv(source, target, channels, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    image = random_image(*source, channels)
    expected = cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR).reshape(*target, channels)
    assert np.array_equal(resize_pixels(image, target, antialias=False), expected)
    planes = torch.tensor(image).permute(2, 0, 1)
    assert np.array_equal(opencv_resize(planes, target).permute(1, 2, 0), expected)
    monkeypatch.setitem(sys.modules, "cv2", None)  # import cv2 now raises ImportError
    assert np.array_equal(resize_pixels(image, target, antialias=False), expected)
    monkeypatch.undo()
    floats = image.astype(np.float32) / 255
    expected = cv2.resize(floats, target[::-1], interpolation=cv2.INTER_LINEAR).reshape(*target, channels)
    np.testing.assert_allclose(opencv_resize(planes / 255, target).permute(1, 2, 0), expected, rtol=0, atol=2e-5)


def test_opencv_resize_of_many_random_sizes():
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(5)
    for seed in range(200):
        height, width, *target = (int(side) for side in generator.integers(1, 220, 4))
        image = random_image(height, width, 3, seed=seed)
        expected = cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR)
        result = opencv_resize(torch.tensor(image).permute(2, 0, 1), tuple(target)).permute(1, 2, 0)
        assert np.array_equal(result, expected), (height, width, target)


def test_antialias_is_an_option_of_images_and_labels(photo):
    cv2 = pytest.importorskip("cv2")
    processor = SegformerImageProcessor(antialias=False, size={"height": 173, "width": 211})
    labels = random_map(480, 640)
    result = processor(photo, labels, return_tensors="np")
    pixels = cv2.resize(np.asarray(photo), (211, 173), interpolation=cv2.INTER_LINEAR)
    expected = SegformerImageProcessorPil(do_resize=False)(pixels, return_tensors="np")["pixel_values"]
    assert np.array_equal(result["pixel_values"], expected)
    expected = cv2.resize(labels, (211, 173), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(result["labels"][0], expected)
    assert not np.array_equal(
        result["labels"], processor(photo, labels, antialias=True, return_tensors="np")["labels"]
    )


# --- the published protocols ---

MMSEG = """
import sys, numpy as np
from mmcv.transforms import Resize
from mmseg.datasets.transforms import ResizeToMultiple
data = np.load(sys.argv[1])
found = {}
for scale in data["scales"].tolist():
    results = dict(img=data["image"], img_shape=data["image"].shape[:2])
    results |= dict(gt_seg_map=data["labels"], seg_fields=["gt_seg_map"])
    results = Resize(scale=tuple(scale), keep_ratio=True)(results)
    found[f"{scale[0]} first"] = results["img"].shape[:2]
    results = ResizeToMultiple(size_divisor=32)(results)
    found |= {f"{scale[0]} image": results["img"], f"{scale[0]} labels": results["gt_seg_map"]}
np.savez(sys.argv[2], **found)
"""


def test_keep_ratio_and_align_equal_mmseg(photo, tmp_path):
    image, labels = np.asarray(photo)[:451, :637], random_map(451, 637)
    scales = [(2048, 512), (2560, 640), (700, 512)]
    np.savez(tmp_path / "in.npz", image=image, labels=labels, scales=scales)
    run_oracle("mmseg", MMSEG, tmp_path / "in.npz", tmp_path / "out.npz")
    mmseg = np.load(tmp_path / "out.npz")
    for long, short in scales:
        options = {"size": {"shortest_edge": short, "longest_edge": long}, "keep_ratio": True, "antialias": False}
        processor = SegformerImageProcessor(**options, size_divisor=32, do_rescale=False, do_normalize=False)
        result = processor(image, labels, return_tensors="np")
        assert np.array_equal(result["pixel_values"][0].transpose(1, 2, 0), mmseg[f"{long} image"])
        assert np.array_equal(result["labels"][0], mmseg[f"{long} labels"])
        unaligned = SegformerImageProcessor(**options)(image)
        assert unaligned.image_sizes == [tuple(mmseg[f"{long} first"])]
        assert result.image_sizes == [mmseg[f"{long} image"].shape[:2]] != unaligned.image_sizes


@pytest.mark.parametrize(
    ("size", "rounded", "truncated"),
    [((480, 641), (512, 684), (512, 683)), ((641, 480), (684, 512), (683, 512)), ((100, 1000), (205, 2048), None)],
)
def test_keep_ratio_rounds_where_transformers_truncates(size, rounded, truncated):
    wanted = {"shortest_edge": 512, "longest_edge": 2048}
    image = np.zeros((*size, 3), np.uint8)
    assert SegformerImageProcessor(size=wanted, keep_ratio=True)(image).image_sizes == [rounded]
    stock = SegformerImageProcessorPil(size=wanted)(image)["pixel_values"][0].shape[1:]
    assert SegformerImageProcessor(size=wanted)(image).image_sizes == [stock]
    assert truncated in (None, stock)


def test_size_divisor_resizes_a_second_time():
    image = Image.fromarray(random_image(101, 149, 3))
    result = pixel_values(image, size={"height": 70, "width": 96}, size_divisor=32)
    twice = image.resize((96, 70), Image.Resampling.BILINEAR).resize((96, 96), Image.Resampling.BILINEAR)
    assert torch.equal(result, pixel_values(twice, do_resize=False))


# --- padding ---


def padded_batch(**options):
    images = [random_image(40, 61, 3), random_image(53, 37, 3, seed=1)]
    maps = [random_map(40, 61), random_map(53, 37)]
    processor = SegformerImageProcessor(**{"do_resize": False, "do_pad": True, **options})
    return images, maps, processor, processor(images, maps, return_tensors="pt")


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


# --- kinds of pictures ---


def on_white(rgba):
    rgba = np.asarray(rgba).astype(int)
    return (rgba[..., :3] * rgba[..., 3:] + 255 * (255 - rgba[..., 3:]) + 127) // 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_pil_modes_become_rgb(mode):
    picture = Image.fromarray(random_image(30, 41, 3)).convert(mode)
    assert torch.equal(pixel_values(picture, size=20), pixel_values(picture.convert("RGB"), size=20))


def test_transparency_is_put_onto_white():
    rgba = Image.fromarray(random_image(30, 41, 4))
    values = SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)(rgba)["pixel_values"][0]
    np.testing.assert_allclose(values.transpose(1, 2, 0), on_white(rgba), atol=1)
    grey = Image.merge("LA", [rgba.getchannel(0), rgba.getchannel(3)])
    values = SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)(grey)["pixel_values"][0]
    np.testing.assert_allclose(values.transpose(1, 2, 0), on_white(grey.convert("RGBA")), atol=1)
    palette = Image.fromarray(random_image(30, 41)).convert("P")
    palette.info["transparency"] = 0
    values = SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)(palette)["pixel_values"][0]
    assert (values[:, np.asarray(palette) == 0] == 255).all()


def test_arrays_with_transparency_are_put_onto_white_only_on_request():
    rgba = random_image(30, 41, 4)
    plain = SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    for image in (rgba, torch.tensor(rgba).permute(2, 0, 1)):
        values = plain(image, do_convert_rgb=True)["pixel_values"][0]
        assert np.array_equal(values.transpose(1, 2, 0), on_white(rgba))
        with pytest.raises(ValueError, match=r"3 channels.*got 4.*do_convert_rgb"):
            SegformerImageProcessor()(image)
    values = plain(rgba / 255, do_convert_rgb=True)["pixel_values"][0]
    np.testing.assert_allclose(values.transpose(1, 2, 0), on_white(rgba) / 255, atol=1 / 255)


def test_grey_arrays_are_repeated():
    grey = random_image(30, 41)
    expected = pixel_values(Image.fromarray(grey).convert("RGB"), size=20)
    for image in (grey, grey[None], grey[..., None], torch.tensor(grey), torch.tensor(grey)[None], [grey]):
        assert torch.equal(pixel_values(image, size=20), expected)
    alone = pixel_values(Image.fromarray(grey).convert("RGB"), size=20, image_mean=[0.3], image_std=[0.2])
    assert alone.shape == (1, 1, 20, 20)
    assert torch.equal(alone, pixel_values(grey, size=20, image_mean=[0.3], image_std=[0.2]))


def test_16_bit_images_lose_their_lower_byte_and_16_bit_ids_stay(tmp_path):
    values = np.random.default_rng(6).integers(0, 65536, (30, 41)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = pixel_values(Image.fromarray((values // 256).astype(np.uint8)).convert("RGB"), size=20)
    for image in (Image.open(tmp_path / "deep.png"), str(tmp_path / "deep.png"), tmp_path / "deep.png"):
        assert torch.equal(pixel_values(image, size=20), expected)
    processor = SegformerImageProcessor(size={"height": 17, "width": 60})
    rows, columns = nearest_indices(30, 17), nearest_indices(41, 60)
    for labels in (tmp_path / "deep.png", values, values.astype(">u2"), torch.tensor(values.astype(np.int32))):
        result = processor(random_image(30, 41, 3), labels)["labels"][0]
        assert np.array_equal(result, values[rows[:, None], columns])
    with pytest.raises(ValueError, match=r"whole numbers.*\[0, 255\]"):
        processor(values)


def test_palette_maps_keep_their_indices_and_binary_maps_theirs():
    ids = random_map(30, 41, 200)
    palette = Image.fromarray(ids)
    palette.putpalette(random_image(768, seed=9).tolist())
    processor, image = SegformerImageProcessor(do_resize=False), random_image(30, 41, 3)
    assert palette.mode == "P" and np.array_equal(processor(image, palette)["labels"][0], ids)
    binary = Image.fromarray(ids > 100)
    assert binary.mode == "1" and np.array_equal(processor(image, binary)["labels"][0], ids > 100)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_images_and_maps(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(random_image(30, 41, 3)).save(tmp_path / "image.png", exif=exif)
    Image.fromarray(random_map(30, 41)).save(tmp_path / "map.png", exif=exif)
    image, labels = (ImageOps.exif_transpose(Image.open(tmp_path / f"{n}.png")) for n in ("image", "map"))
    processor = SegformerImageProcessor(size={"height": 24, "width": 20})
    upright = processor(image, labels, return_tensors="pt")
    for arguments in [
        (tmp_path / "image.png", tmp_path / "map.png"),
        (Image.open(tmp_path / "image.png"), Image.open(tmp_path / "map.png")),
        (Image.open(tmp_path / "image.png").convert("RGB"), np.asarray(labels)),
    ]:
        result = processor(*arguments, return_tensors="pt")
        assert torch.equal(result["pixel_values"], upright["pixel_values"])
        assert torch.equal(result["labels"], upright["labels"])
        assert result.original_sizes == [image.size[::-1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_four_bands(dtype):
    # Reflectances far outside [0, 1]; and no band is another's transparency.
    bands = random_image(4, 30, 41).astype(dtype) * (1 if dtype == np.uint8 else 40.5)
    mean, std = [10.0, 200.0, 3000.0, 40.0], [1.0, 20.0, 300.0, 4.0]
    processor = SegformerImageProcessor(image_mean=mean, image_std=std, do_rescale=False, size=20)
    planes = [np.asarray(Image.fromarray(band).resize((20, 20), Image.Resampling.BILINEAR)) for band in bands]
    expected = [(plane.astype(np.float32) - m) / s for plane, m, s in zip(planes, mean, std, strict=True)]
    for image in (bands, bands.transpose(1, 2, 0), torch.tensor(bands)):
        result = processor(image, return_tensors="pt")["pixel_values"][0]
        np.testing.assert_allclose(result, np.stack(expected), rtol=1e-5, atol=1e-5)
    unsharp = processor(torch.tensor(bands), antialias=False, return_tensors="pt")["pixel_values"]
    assert unsharp.shape == (1, 4, 20, 20) and not torch.equal(unsharp[0], result)


def test_nested_lists_and_batches():
    images, maps = random_image(4, 30, 41, 3), np.stack([random_map(30, 41, seed=seed) for seed in range(4)])
    processor = SegformerImageProcessor(size=20)
    expected = processor(list(images), list(maps), return_tensors="pt")
    for batch, batch_maps in [
        (images, maps),
        ([images[:2], images[2:]], [maps[:2], maps[2:]]),
        ([[images[0], images[1]], [images[2], images[3]]], maps[:, None]),
        (tuple(Image.fromarray(image) for image in images), [torch.tensor(m) for m in maps]),
        (torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(maps)),
    ]:
        result = processor(batch, batch_maps, return_tensors="pt")
        assert torch.equal(result["pixel_values"], expected["pixel_values"])
        assert torch.equal(result["labels"], expected["labels"])
    single = processor(images[0], maps[0][..., None], return_tensors="pt")
    assert torch.equal(single["labels"], expected["labels"][:1])


def test_input_data_format_settles_an_ambiguous_shape():
    image = random_image(3, 41, 3)
    last = SegformerImageProcessor(size=20)(image, input_data_format="channels_last", return_tensors="pt")
    assert torch.equal(last["pixel_values"], pixel_values(Image.fromarray(image), size=20))
    narrow = random_image(4, 41, 3)  # four rows of three channels, not four channels
    assert torch.equal(pixel_values(narrow, size=20), pixel_values(Image.fromarray(narrow), size=20))


# --- devices ---

DEVICE_OPTIONS = [
    {"size": {"height": 41, "width": 203}},
    {"size": {"height": 41, "width": 203}, "resample": 3},
    {"size": {"height": 41, "width": 203}, "resample": 0},
    {"size": {"height": 41, "width": 203}, "antialias": False},
    {"size": {"shortest_edge": 50, "longest_edge": 300}, "keep_ratio": True, "size_divisor": 32},
    {"do_resize": False},
    {"size": 60, "do_rescale": False, "do_normalize": False},
    {"size": 60, "image_mean": 0.5, "image_std": 0.25},
    {"size": {"shortest_edge": 50}, "do_pad": True, "size_divisor": 16},
]


def device_images():
    images = [random_image(3, 101, 149, seed=seed) for seed in range(2)]
    return [torch.tensor(image) for image in images] + [torch.tensor(images[0]) / 255, torch.tensor(images[1]) * 1.5]


@pytest.mark.parametrize("options", DEVICE_OPTIONS, ids=str)
def test_the_way_of_devices_equals_the_way_of_main_memory(options, monkeypatch):
    images = device_images() + [image[:, :80] for image in device_images() if options.get("do_pad")]
    options = {"do_rescale": False, **options}
    expected = SegformerImageProcessor(**options)(images, return_tensors="pt")["pixel_values"]

    def on_device(pictures, *arguments):
        pictures = [torch.from_numpy(np.array(p)) if isinstance(p, np.ndarray) else p for p in pictures]
        result = computing._device_values(pictures, *arguments)
        return [values.numpy() for values in result]

    monkeypatch.setattr(computing, "_host_values", on_device)
    result = SegformerImageProcessor(**options)(images, return_tensors="pt")["pixel_values"]
    if options.get("antialias") is False:  # floats, which PyTorch interpolates: as exactly as float32 allows
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-4)
    else:
        assert torch.equal(result, expected)
    eight_bit = SegformerImageProcessor(**options)(images[:2], return_tensors="pt")
    for index, (height, width) in enumerate(eight_bit.image_sizes):
        values = eight_bit["pixel_values"][index, :, :height, :width]
        assert torch.equal(values, expected[index, :, :height, :width])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", DEVICE_OPTIONS, ids=str)
def test_cuda_equals_the_cpu(options):
    images = device_images()
    maps = [torch.tensor(random_map(101, 149, 256, seed=seed)) for seed in range(4)]
    options = {"do_reduce_labels": True, **options}
    processor = SegformerImageProcessor(**options)
    expected = processor(images, maps, return_tensors="pt")
    there = processor([i.cuda() for i in images], [m.cuda() for m in maps], return_tensors="pt")
    sent = processor([Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images[:2]], maps[:2], device="cuda")
    assert there["pixel_values"].is_cuda and there["labels"].is_cuda and sent["pixel_values"][0].is_cuda
    torch.testing.assert_close(there["pixel_values"].cpu(), expected["pixel_values"], rtol=0, atol=1e-3)
    assert torch.equal(there["labels"].cpu(), expected["labels"])
    for index in range(2):  # 8-bit pictures: no rounding at all
        assert torch.equal(there["pixel_values"][index].cpu(), expected["pixel_values"][index])
        assert torch.equal(sent["labels"][index].cpu(), expected["labels"][index])
    back = processor([i.cuda() for i in images], device="cpu", return_tensors="np")
    assert np.array_equal(back["pixel_values"], expected["pixel_values"])


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


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            self.values = max(self.values, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return result


@pytest.mark.parametrize("return_confidence", [False, True])
def test_no_scores_are_held_unless_asked(return_confidence):
    outputs, target_sizes = random_outputs(2, 60, 100, 125), [(400, 500)] * 2
    with LargestTensor() as largest:
        SegformerImageProcessor().post_process_semantic_segmentation(
            outputs, target_sizes=target_sizes, return_confidence=return_confidence
        )
    assert 400 * 500 <= largest.values < 60 * 400 * 500 / 2


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

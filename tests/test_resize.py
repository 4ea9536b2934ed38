# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Resizing against Pillow, OpenCV and mmseg's transforms, in main memory and on devices."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segformer import SegformerImageProcessor
from hf_segformer.processing import pixel_values as computing
from hf_segformer.processing.resize import nearest_indices, opencv_resize, pillow_resize, resize_nearest, resize_pixels
from oracles import run_oracle
from pictures import SegformerImageProcessorPil, pixel_values, random_image, random_map

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


@pytest.fixture(scope="module")
def photo(shared_data):
    return Image.open(shared_data / "photos" / "000000039769.png").convert("RGB")


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

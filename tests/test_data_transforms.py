# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Augmentation against expressions written out pixel by pixel, and the pipeline as a whole."""

import pickle

import numpy as np
import pytest
from PIL import Image

from hf_segformer.data import TrainingTransform
from hf_segformer.data import transforms as T
from oracles import run_oracle


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def sample(rng, height, width, block=4):
    """Noise, and a label map of square blocks of five classes."""
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    label = rng.integers(0, 5, (height // block + 1, width // block + 1)).repeat(block, 0).repeat(block, 1)
    return image, label[:height, :width].astype(np.uint8)


# Resizing


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((300, 400), (2048, 512), (512, 683)),  # 400 * 512/300 = 682.67
        ((400, 300), (2048, 512), (683, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),  # the long side limits
        ((512, 683), (512, 2048), (512, 683)),
        ((33, 77), (77, 33), (33, 77)),
    ],
)
def test_rescaled_size(size, scale, expected):
    assert T.rescaled_size(*size, scale) == expected


def bilinear(image, height, width):
    """Half-pixel-centred bilinear interpolation with edges repeated, no antialias, in float64."""

    def taps(length, target):
        position = (np.arange(target) + 0.5) * length / target - 0.5
        low = np.floor(position).astype(int)
        return low.clip(0, length - 1), (low + 1).clip(0, length - 1), position - low

    y0, y1, fy = taps(image.shape[0], height)
    x0, x1, fx = taps(image.shape[1], width)
    rows = image[y0] * (1 - fy)[:, None, None] + image[y1] * fy[:, None, None]
    return rows[:, x0] * (1 - fx)[:, None] + rows[:, x1] * fx[:, None]


@pytest.mark.parametrize("size", [(23, 41), (60, 90), (15, 90), (31, 53)])
def test_resize(rng, size):
    image, label = sample(rng, 31, 53)
    new_image, new_label = T.resize(image, label, size)
    assert new_image.shape == (*size, 3) and new_image.dtype == np.uint8 and new_label.dtype == label.dtype
    assert np.abs(new_image - bilinear(image.astype(float), *size)).max() <= 1  # OpenCV works in 11-bit fixed point
    rows = (np.arange(size[0]) * 31 / size[0]).astype(int)
    columns = (np.arange(size[1]) * 53 / size[1]).astype(int)
    np.testing.assert_array_equal(new_label, label[rows][:, columns])


def test_resize_of_large_ids_keeps_them(rng):
    image, label = sample(rng, 12, 14)
    ids = label.astype(np.int32) + 70000
    small = T.resize(image, label, (24, 7))[1].astype(np.int32)
    np.testing.assert_array_equal(T.resize(image, ids, (24, 7))[1], small + 70000)


# Crop and flip


def acceptable(window, limit, ignored):
    counts = [int((window == value).sum()) for value in set(window.ravel().tolist()) - {ignored}]
    return len(counts) > 1 and max(counts) / sum(counts) < limit


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("limit", [0.5, 0.75, 1.0])
def test_draw_crop_takes_the_first_acceptable_of_ten_or_the_eleventh(rng, limit, dtype):
    label = rng.choice([0, 0, 0, 1, 2, 255], (40, 120)).astype(dtype)
    label[:, 20:] = 3
    redrawn = exhausted = 0
    for seed in range(200):
        top, left = T.draw_crop(label, (9, 17), np.random.default_rng(seed), limit, 255)
        replay = np.random.default_rng(seed)
        draws = [(int(replay.integers(0, 32)), int(replay.integers(0, 104))) for _ in range(11)]
        good = [
            i
            for i, (y, x) in enumerate(draws[:10])
            if limit >= 1 or acceptable(label[y : y + 9, x : x + 17], limit, 255)
        ]
        chosen = good[0] if good else 10
        assert (top, left) == draws[chosen]
        redrawn += 0 < chosen < 10
        exhausted += not good
    assert limit >= 1 or (redrawn > 10 and exhausted > 10)


@pytest.mark.parametrize("label", [np.full((8, 8), 255, np.uint8), np.full((8, 8), 2, np.uint8)])
def test_draw_crop_of_nothing_to_choose_from(rng, label):
    top, left = T.draw_crop(label, (4, 30), rng, 0.75)
    assert 0 <= top <= 4 and left == 0


def test_crop_and_flip(rng):
    image, label = sample(rng, 10, 12)
    np.testing.assert_array_equal(T.crop(image, 3, 5, (4, 20)), image[3:7, 5:12])
    np.testing.assert_array_equal(T.flip(label)[2], label[2][::-1])


# Colours


def convert(image, factor=1.0, offset=0.0):
    return np.clip(image.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def in_hsv(image, channel, change):
    import cv2

    hsv = cv2.cvtColor(image[..., ::-1].copy(), cv2.COLOR_BGR2HSV)
    hsv[..., channel] = change(hsv[..., channel])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[..., ::-1]


@pytest.mark.parametrize("offset", [-32.0, -0.5, 0.4, 31.7])
def test_brightness(rng, offset):
    image, _ = sample(rng, 16, 17)
    np.testing.assert_array_equal(T.adjust_brightness(image, offset), convert(image, offset=offset))


@pytest.mark.parametrize("factor", [0.5, 0.99, 1.37])
def test_contrast_and_saturation(rng, factor):
    image, _ = sample(rng, 16, 17)
    np.testing.assert_array_equal(T.adjust_contrast(image, factor), convert(image, factor))
    expected = in_hsv(image, 1, lambda s: convert(s, factor))
    np.testing.assert_array_equal(T.adjust_saturation(image, factor), expected)


@pytest.mark.parametrize("offset", [-18, -1, 17])
def test_hue(rng, offset):
    image, _ = sample(rng, 16, 17)
    expected = in_hsv(image, 0, lambda h: (h.astype(int) + offset) % 180)
    np.testing.assert_array_equal(T.adjust_hue(image, offset), expected)


def replayed_distortion(image, generator):
    """The published order of operations, spelled out."""

    def contrast(image):
        return convert(image, generator.uniform(0.5, 1.5)) if generator.integers(2) else image

    if generator.integers(2):
        image = convert(image, offset=generator.uniform(-32, 32))
    mode = generator.integers(2)
    if mode == 1:
        image = contrast(image)
    if generator.integers(2):
        factor = generator.uniform(0.5, 1.5)
        image = in_hsv(image, 1, lambda s: convert(s, factor))
    if generator.integers(2):
        offset = generator.integers(-18, 18)
        image = in_hsv(image, 0, lambda h: (h.astype(int) + offset) % 180)
    return contrast(image) if mode == 0 else image


def test_photometric_distortion(rng):
    image, _ = sample(rng, 12, 13)
    original = image.copy()
    changed = 0
    for seed in range(100):
        result = T.photometric_distortion(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(result, replayed_distortion(image, np.random.default_rng(seed)))
        changed += not np.array_equal(result, image)
    assert changed > 80
    np.testing.assert_array_equal(image, original)


# Normalisation and padding


def test_normalize(rng):
    image, _ = sample(rng, 8, 9)
    mean, std = np.array(T.IMAGENET_MEAN), np.array(T.IMAGENET_STD)
    result = T.normalize(image)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result, ((image - mean) / std).transpose(2, 0, 1), rtol=1e-6)


def test_pad(rng):
    image, label = sample(rng, 5, 9)
    image, padded = T.pad(T.normalize(image), label.astype(np.int64), (8, 7), 77)
    assert image.shape == (3, 8, 9) and (image[:, 5:] == 0).all() and (image[:, :5] != 0).any()
    assert padded.shape == (8, 9) and (padded[5:] == 77).all()
    np.testing.assert_array_equal(padded[:5], label)


# The pipeline

OFF = {"ratio_range": None, "crop_size": None, "flip_probability": 0.0, "photometric": False}


@pytest.mark.parametrize("size", [(31, 47), (5, 100), (70, 33)])
@pytest.mark.parametrize("scale", [None, (120, 60)])
def test_result_has_the_crop_size(rng, size, scale):
    transform = TrainingTransform(scale=scale, crop_size=(48, 40))
    for _ in range(20):
        image, label = transform(*sample(rng, *size), rng)
        assert image.shape == (3, 48, 40) and image.dtype == np.float32 and image.flags.c_contiguous
        assert label.shape == (48, 40) and label.dtype == np.int64 and label.flags.c_contiguous
        assert set(np.unique(label)) <= {0, 1, 2, 3, 4, 255}
        padded = label == 255
        assert (image[:, padded] == 0).all()


def test_everything_off_only_normalizes(rng):
    image, label = sample(rng, 21, 34)
    result, same = TrainingTransform(**OFF)(image, label, rng)
    np.testing.assert_array_equal(result, T.normalize(image))
    np.testing.assert_array_equal(same, label)


@pytest.mark.parametrize("step", ["ratio_range", "crop_size", "flip_probability", "photometric"])
def test_each_step_acts_alone(rng, step):
    on = {"ratio_range": (0.5, 0.6), "crop_size": (8, 8), "flip_probability": 1.0, "photometric": True}[step]
    image, label = sample(rng, 21, 34)
    result, new_label = TrainingTransform(**OFF | {step: on})(image, label, np.random.default_rng(0))
    if step == "flip_probability":
        np.testing.assert_array_equal(result, T.normalize(image[:, ::-1]))
        np.testing.assert_array_equal(new_label, label[:, ::-1])
    elif step == "photometric":
        np.testing.assert_array_equal(new_label, label)
        assert not np.array_equal(result, T.normalize(image))
    elif step == "crop_size":
        assert new_label.shape == (8, 8)
    else:
        assert new_label.shape[0] in (10, 11, 12, 13) and new_label.shape[1] in range(17, 21)


def test_base_scale_without_jitter(rng):
    image, label = sample(rng, 21, 34)
    result, _ = TrainingTransform(**OFF | {"scale": (68, 42)})(image, label, rng)
    assert result.shape == (3, 42, 68)


def test_ratio_is_uniform_over_its_range(rng):
    image, label = sample(rng, 100, 200)
    transform = TrainingTransform(**OFF | {"ratio_range": (0.5, 2.0)})
    widths = np.array([transform(image, label, rng)[1].shape[1] for _ in range(200)])
    assert widths.min() < 115 and widths.max() > 385 and 235 < widths.mean() < 265


def test_image_and_label_stay_aligned(rng):
    """A picture that shows its own label must still do so after all geometric steps."""
    _, label = sample(rng, 64, 96, block=24)
    shown = np.repeat((label * 50)[..., None], 3, axis=2)
    transform = TrainingTransform(crop_size=(40, 40), photometric=False, mean=(0, 0, 0), std=(50, 50, 50))
    for _ in range(20):
        image, result = transform(shown, label, rng)
        valid = result != 255
        assert (np.round(image[0][valid]) == result[valid]).mean() > 0.9  # blends at class borders differ


def test_same_draws_same_result_and_inputs_untouched(rng):
    image, label = sample(rng, 50, 60)
    before = image.copy(), label.copy()
    transform = pickle.loads(pickle.dumps(TrainingTransform(crop_size=(32, 32))))
    first, second = (transform(image, label, np.random.default_rng(5)) for _ in range(2))
    other = transform(image, label, np.random.default_rng(6))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_read_only_pictures_work(rng):
    image = np.asarray(Image.fromarray(sample(rng, 30, 30)[0]))
    assert not image.flags.writeable
    label = np.asarray(Image.fromarray(sample(rng, 30, 30)[1]))
    assert TrainingTransform(crop_size=(16, 16))(image, label, rng)[0].shape == (3, 16, 16)


# mmsegmentation

MMSEG = """
import sys
import numpy as np
import torch
from mmcv.transforms import Compose
from mmseg.models import SegDataPreProcessor
from mmseg.utils import register_all_modules
register_all_modules()

def replay(generator):
    np.random.randint = lambda low, high=None: generator.integers(low, high)
    np.random.uniform = lambda low, high: generator.uniform(low, high)
    np.random.random_sample = lambda: generator.random()
    np.random.choice = lambda options, p: options[0] if generator.random() < p[0] else options[1]

given, result = np.load(sys.argv[1]), {}
for draw in range(int(sys.argv[3])):
    image, label = given[f"image{draw}"], given[f"label{draw}"]
    long, short, height, width = (int(side) for side in given[f"sides{draw}"])
    pipeline = Compose([
        dict(type="RandomResize", scale=(long, short), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type="RandomCrop", crop_size=(height, width), cat_max_ratio=0.75),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
        dict(type="PackSegInputs"),
    ])
    replay(np.random.default_rng([7, draw]))
    sample = pipeline(dict(
        img=image[..., ::-1].copy(), img_shape=image.shape[:2], gt_seg_map=label, seg_fields=["gt_seg_map"],
        img_path="", seg_map_path="", ori_shape=image.shape[:2], reduce_zero_label=False,
    ))
    # Mean 0 and deviation 1 leave whole numbers, which are compared exactly.
    finish = SegDataPreProcessor(
        mean=[0.0] * 3, std=[1.0] * 3, bgr_to_rgb=True, size=(height, width), pad_val=0, seg_pad_val=255
    )
    data = finish({"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}, training=True)
    result[f"image{draw}"] = data["inputs"][0].numpy()
    result[f"label{draw}"] = data["data_samples"][0].gt_sem_seg.data[0].numpy()
np.savez(sys.argv[2], **result)
"""
DRAWS = 200


def augmentation_case(draw):
    """Picture, label and (long side, short side, crop height, crop width); every kind of trouble occurs often."""
    rng = np.random.default_rng([3, draw])
    sides = [(256, 64, 64, 64), (128, 64, 96, 160), (90, 90, 33, 47), (400, 300, 40, 41)][draw % 4]
    if draw % 50 == 0:
        sides = (2048, 512, 512, 512)  # as published
    height, width = (int(side) for side in rng.integers(15, 160, 2))
    image, label = sample(rng, height, width, block=int(rng.integers(1, 40)))
    label[label == 4] = 255
    if draw % 5 == 1:
        label[:, : width * 4 // 5] = 2  # most crops hold too much of it
    if draw % 10 == 2:
        label[:] = 255
    return image, label, sides


def test_two_hundred_draws_equal_mmsegmentations(tmp_path):
    """Given the same random numbers, pixel for pixel; NVlabs' pipeline has the same rules."""
    cases = [augmentation_case(draw) for draw in range(DRAWS)]
    arrays = {}
    for draw, (image, label, sides) in enumerate(cases):
        arrays |= {f"image{draw}": image, f"label{draw}": label, f"sides{draw}": np.array(sides)}
    np.savez(tmp_path / "given.npz", **arrays)
    run_oracle("mmseg", MMSEG, tmp_path / "given.npz", tmp_path / "result.npz", str(DRAWS))
    theirs = np.load(tmp_path / "result.npz")
    seen = {"padded": 0, "nothing labelled": 0, "one class": 0, "whole": 0}
    for draw, (image, label, sides) in enumerate(cases):
        transform = TrainingTransform(scale=sides[:2], crop_size=sides[2:], mean=(0, 0, 0), std=(1, 1, 1))
        ours = transform(image, label, np.random.default_rng([7, draw]))
        np.testing.assert_array_equal(ours[1], theirs[f"label{draw}"], err_msg=f"label of draw {draw}")
        np.testing.assert_array_equal(ours[0], theirs[f"image{draw}"], err_msg=f"picture of draw {draw}")
        classes = set(np.unique(ours[1]).tolist()) - {255}
        padded = bool((ours[0][:, -1] == 0).all() or (ours[0][:, :, -1] == 0).all())
        for kind, happened in zip(seen, (padded, not classes, len(classes) == 1, not padded), strict=True):
            seen[kind] += happened
    assert min(seen.values()) >= 10, seen

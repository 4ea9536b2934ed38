# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Floating-point pictures with NaN or infinity: refused by default, kept local by `allow_missing=True`."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.evaluation.inference import segment
from hf_segformer.evaluation.protocols import Protocol
from hf_segformer.processing.missing_pixels import resize_known

RAW = {"do_rescale": False, "do_normalize": False}
HOLES = (slice(10, 22), slice(30, 37))


def bands(high=3000.0, channels=3, dtype=np.float32):
    return np.random.default_rng(0).uniform(0, high, (40, 50, channels)).astype(dtype)


def with_holes(image, value=np.nan):
    image = image.copy()
    image[HOLES] = value
    image[0, 0, 0] = value  # and one channel of one pixel
    return image


def values(image, **options):
    options = {"size": {"height": 23, "width": 31}, "do_rescale": False, "return_tensors": "np", **options}
    image_values = torch.as_tensor(image)
    if (image_values[image_values.isfinite()].abs() > 255).any():
        options |= {"image_mean": [1000.0] * 3, "image_std": [500.0] * 3}
    return SegformerImageProcessor()(image, **options)["pixel_values"][0]


def pillow(plane, size, resample):
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size[::-1], resample))


# --- by default an error ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("high", [1.0, 255.0, 3000.0])
@pytest.mark.parametrize("options", [{}, {"do_resize": False}, {"antialias": False}, {"resample": 0}], ids=str)
def test_refused_with_picture_and_count(value, high, options):
    image = with_holes(bands(high), value)
    with pytest.raises(ValueError, match=r"image 1 has NaN or infinity in 85 of 2000 pixels.*allow_missing"):
        SegformerImageProcessor()([bands(high), image], **options)


@pytest.mark.parametrize("kind", ["chw", "float64", "float16", "bfloat16", "grey", "pil", "masked", "batch"])
def test_refused_in_every_kind_of_picture(kind):
    image = with_holes(bands(1.0))
    picture = {
        "chw": lambda: torch.tensor(image).permute(2, 0, 1),
        "float64": lambda: image.astype(np.float64),
        "float16": lambda: image.astype(np.float16),
        "bfloat16": lambda: torch.tensor(image).permute(2, 0, 1).bfloat16(),
        "grey": lambda: image[..., 1],
        "pil": lambda: Image.fromarray(image[..., 1]),
        "masked": lambda: np.ma.masked_invalid(image),
        "batch": lambda: np.stack([image, image]),
    }[kind]()
    with pytest.raises(ValueError, match=r"image 0 has NaN or infinity in 8[45] of 2000 pixels"):
        SegformerImageProcessor()(picture)


def test_sums_that_overflow_are_no_missing_pixels():
    image = np.full((40, 50, 3), 1e38, np.float32)  # their sum is infinite
    result = values(image, do_normalize=False)
    np.testing.assert_allclose(result, 1e38, rtol=1e-6)


# --- allowed: local ---


@pytest.mark.parametrize("high", [1.0, 3000.0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"antialias": False}, {"resample": 3}, {"resample": 0}], ids=str)
def test_pixels_that_see_no_missing_one_are_the_same_to_the_bit(high, value, options):
    clean, image = bands(high), with_holes(bands(high), value)
    expected, result = values(clean, **options), values(image, allow_missing=True, **options)
    # Rows 10 to 21 of 40 and columns 30 to 36 of 50 are missing: in 23 rows and 31 columns, with the filter's reach.
    far = np.ones((23, 31), bool)
    far[3:16, 15:26] = far[:3, :3] = False
    assert np.isfinite(result).all() and np.array_equal(result[:, far], expected[:, far])
    assert not np.array_equal(result, expected)
    assert np.array_equal(values(clean, allow_missing=True, **options), expected), "nothing missing, nothing changed"


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.HAMMING])
@pytest.mark.parametrize("size", [(23, 31), (95, 111), (40, 120)])
def test_finite_pixels_alone_are_weighed(resample, size):
    image = with_holes(bands())
    options = {"size": {"height": size[0], "width": size[1]}, "resample": resample, **RAW}
    result = SegformerImageProcessor(allow_missing=True)(image, **options)["pixel_values"][0]
    for channel, plane in enumerate(np.moveaxis(image, 2, 0)):
        weight = pillow(np.isfinite(plane), size, resample)
        mean = pillow(np.nan_to_num(plane), size, resample) / np.where(weight > 0, weight, 1)
        np.testing.assert_allclose(result[channel], np.where(weight > 0, mean, 0), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_filters_with_negative_weights_stay_in_range(resample):
    missing = np.random.default_rng(1).random((40, 50, 3)) < 0.6
    result = values(
        np.where(missing, np.nan, bands() + 500), allow_missing=True, resample=resample, do_normalize=False
    )
    # Around what is missing, a mean; elsewhere the filter's own overshoot, of which little is left here.
    assert ((result == 0) | (result > 300)).all() and result.max() < 4500


def test_where_all_is_missing_the_value_is_that_of_padding():
    image = bands()
    image[10:40, 10:50] = np.nan
    result = values(image, allow_missing=True)
    assert (result[:, 12:, 12:] == 0).all() and (result[:, :4] != 0).any()
    assert (values(np.full((40, 50, 3), np.nan, np.float32), allow_missing=True) == 0).all()
    unresized = values(image, allow_missing=True, do_resize=False)
    assert (unresized[:, 10:, 10:] == 0).all()
    assert np.array_equal(unresized[:, :10], values(bands(), do_resize=False)[:, :10])


def test_unit_and_whole_floats_keep_their_8_bits():
    for high, steps in ((1.0, 255), (255.0, 1)):
        clean = bands(high) if steps == 255 else bands(high).round()
        result = values(with_holes(clean), allow_missing=True, do_normalize=False) * steps
        np.testing.assert_allclose(result, result.round(), atol=1e-3)


@pytest.mark.parametrize("kind", ["chw", "tensor", "float64", "masked", "batch", "list"])
def test_kinds_of_pictures_agree(kind):
    image = with_holes(bands())
    expected = values(image, allow_missing=True)
    picture = {
        "chw": lambda: image.transpose(2, 0, 1),
        "tensor": lambda: torch.tensor(image).permute(2, 0, 1),
        "float64": lambda: image.astype(np.float64),
        "masked": lambda: np.ma.masked_array(np.nan_to_num(image, nan=7), np.isnan(image)),
        "batch": lambda: np.stack([image, image]),
        "list": lambda: [image, bands()],
    }[kind]()
    options = {"size": {"height": 23, "width": 31}, "image_mean": [1000.0] * 3, "image_std": [500.0] * 3}
    processor = SegformerImageProcessor(allow_missing=True, do_rescale=False, **options)
    np.testing.assert_allclose(processor(picture)["pixel_values"][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    image = torch.tensor(with_holes(bands(1.0))).permute(2, 0, 1)
    result = values(image.to(dtype), allow_missing=True)
    np.testing.assert_allclose(result, values(image.to(dtype).float(), allow_missing=True))


def test_two_steps_of_resizing_and_padding():
    options = {
        "size": {"shortest_edge": 33, "longest_edge": 90},
        "keep_ratio": True,
        "size_divisor": 32,
        "do_pad": True,
    }
    processor = SegformerImageProcessor(allow_missing=True, do_rescale=False, **options)
    result = processor([with_holes(bands()), bands()[:, :30]], return_tensors="np")["pixel_values"]
    plain = processor([bands(), bands()[:, :30]], return_tensors="np")["pixel_values"]
    assert np.array_equal(result[1], plain[1]) and np.array_equal(result[0, :, 48:], plain[0, :, 48:])
    assert np.isfinite(result).all() and not np.array_equal(result, plain)


def test_the_option_is_saved_only_where_it_is_set(tmp_path):
    SegformerImageProcessor(allow_missing=True).save_pretrained(tmp_path)
    assert SegformerImageProcessor.from_pretrained(tmp_path).allow_missing is True
    assert "allow_missing" not in SegformerImageProcessor().to_dict()
    with pytest.raises(ValueError, match="allow_missing"):
        SegformerImageProcessor()(bands(), allow_missing="yes")


def test_the_caller_keeps_the_holes():
    image = with_holes(bands())
    copy = image.copy()
    values(image, allow_missing=True)
    assert np.array_equal(image, copy, equal_nan=True)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_device_path_equals_the_host_path(device, monkeypatch):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from hf_segformer.processing import pixel_values as computing

    pictures = [torch.tensor(with_holes(bands(high))).permute(2, 0, 1) for high in (1.0, 3000.0)]
    pictures.append(torch.tensor(bands(1.0)).permute(2, 0, 1))
    options = {"size": {"height": 23, "width": 31}, "do_rescale": False, "allow_missing": True, "return_tensors": "pt"}
    expected = SegformerImageProcessor()(pictures, **options)["pixel_values"]
    if device == "cpu":  # the computation of a device, here
        monkeypatch.setattr(computing, "_host_values", computing._device_values)
    result = SegformerImageProcessor()([p.to(device) for p in pictures], **options)["pixel_values"]
    result = torch.stack(list(result)) if isinstance(result, list) else result
    assert result.device.type == device
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_segment_and_its_protocols(tiny_config, randomize):
    model = randomize(SegformerForSemanticSegmentation(tiny_config()).eval())
    options = {"size": 64, "do_rescale": False}
    image = np.kron(bands(1.0), np.ones((3, 3, 1), np.float32))
    holed = with_holes(image)
    for protocol in (None, Protocol.named("slide", crop_size=64), Protocol.named("aligned-512", scale=(96, 64))):
        with pytest.raises(ValueError, match="image 0 has NaN or infinity in 85 of 18000"):
            segment(model, SegformerImageProcessor(**options), holed, protocol)
        labels = segment(model, SegformerImageProcessor(**options, allow_missing=True), holed, protocol)
        plain = segment(model, SegformerImageProcessor(**options), image, protocol)
        assert labels.shape == (120, 150) and (labels == plain).mean() > 0.8


def test_resizing_to_the_same_size_changes_nothing():
    image = torch.tensor(bands()).permute(2, 0, 1)
    missing = image > 2000
    result, lost = resize_known(image, missing, (40, 50), Image.Resampling.BICUBIC, True)
    assert torch.equal(lost, missing) and torch.equal(result[~missing], image[~missing])

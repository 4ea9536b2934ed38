# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Every kind of picture and label map that the image processor takes."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hf_segformer import SegformerImageProcessor
from hf_segformer.processing.resize import nearest_indices
from pictures import pixel_values, random_image, random_map


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

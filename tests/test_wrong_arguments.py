# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Arguments of the wrong form: a ValueError that names the argument; and odd forms that are taken."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segformer import (
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    upsample_argmax,
    upsample_cross_entropy,
)
from hf_segformer.evaluation.inference import segment
from hf_segformer.evaluation.protocols import Protocol
from pictures import SegformerImageProcessorPil, pixel_values, random_image, random_map

IMAGE, LABELS = random_image(30, 41, 3), random_map(30, 41)
LOOP = []
LOOP.append(LOOP)


def refuses(message):
    return pytest.raises(ValueError, match=message)


# --- empty pictures ---

EMPTY = [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0, 3), np.float32), np.zeros((0, 0), np.uint8)]
EMPTY += [
    torch.zeros(3, 0, 5),
    torch.zeros(3, 5, 0, dtype=torch.uint8),
    torch.zeros(0, 5, 5),
    Image.new("RGB", (0, 5)),
]
EMPTY += [Image.new("L", (5, 0)), Image.new("P", (0, 0)), np.zeros((5, 6, 0), np.uint8)]
ON_OFF = [{}, {"do_resize": False}, {"do_pad": True}, {"do_rescale": False, "do_normalize": False}, {"resample": 0}]
ON_OFF += [{"antialias": False}, {"size": {"shortest_edge": 20}}, {"do_convert_rgb": True}, {"allow_missing": True}]


@pytest.mark.parametrize("options", ON_OFF, ids=str)
@pytest.mark.parametrize("index", range(len(EMPTY)))
def test_empty_pictures(index, options):
    with refuses(r"images: image 0 is empty, its shape is \(.*0"):
        SegformerImageProcessor()(EMPTY[index], return_tensors="pt", **options)
    with refuses("images: image 1 is empty"):
        SegformerImageProcessor(size=20).preprocess([IMAGE, EMPTY[index]], **options)


@pytest.mark.parametrize("index", [0, 3, 6, 7])
def test_empty_pictures_are_not_segmented(index, tiny_config):
    model = SegformerForSemanticSegmentation(tiny_config())
    for protocol in ("processor", "aligned-512", "slide"):
        with refuses("image 0 is empty"):
            segment(model, SegformerImageProcessor(), EMPTY[index], Protocol.named(protocol))


@pytest.mark.parametrize("images", [[], (), [[]], [IMAGE, []], np.zeros((0, 30, 41, 3)), torch.zeros(0, 3, 30, 41)])
def test_empty_lists_and_batches(images):
    with refuses("images must be .* at least one: got"):
        SegformerImageProcessor()(images)


@pytest.mark.parametrize("labels", [np.zeros((0, 41), int), torch.zeros(30, 0).long(), Image.new("L", (0, 5))])
def test_empty_label_maps(labels):
    with refuses(r"segmentation_maps: map 1 is empty"):
        SegformerImageProcessor()([IMAGE] * 2, [LABELS, labels])


# --- pictures and label maps ---


@pytest.mark.parametrize(
    "array",
    [
        IMAGE.astype(np.complex64),
        IMAGE.astype(object),
        IMAGE.astype("U3"),
        IMAGE.astype("M8[s]"),
        torch.zeros(3, 30, 41, dtype=torch.complex64),
        torch.zeros(3, 30, 41).to_sparse(),
    ],
    ids=lambda array: str(array.dtype),
)
def test_pictures_of_no_real_numbers(array):
    with refuses(r"images: image 1 must hold real numbers, got .*shape .*(complex64|object|U3|M8|datetime|float32)"):
        SegformerImageProcessor()([IMAGE, array])


def test_labels_of_no_whole_numbers():
    processor = SegformerImageProcessor()
    for kind in (np.complex64, object, "U3"):
        with refuses(r"segmentation_maps: map 0 must hold real numbers, got ndarray of shape \(30, 41\)"):
            processor(IMAGE, LABELS.astype(kind))
    for dtype in (torch.uint32, torch.uint64):
        with refuses(rf"segmentation_maps: map 0 has the type {dtype}; \.long\(\)"):
            processor(IMAGE, torch.tensor(LABELS.astype(np.int64)).to(dtype))
    with refuses("segmentation_maps must hold whole numbers.*map 0 holds nan"):
        processor(IMAGE, np.where(LABELS == 3, np.nan, LABELS))
    with refuses("segmentation_maps must hold whole numbers.*map 0 holds 0.5"):
        processor(IMAGE, torch.full((30, 41), 0.5))
    with refuses("segmentation_maps: map 0 is masked"):
        processor(IMAGE, np.ma.masked_array(LABELS, LABELS == 3))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16, torch.bool, torch.float16])
def test_label_tensors_of_other_types_are_taken(dtype):
    labels = torch.tensor((LABELS > 70).astype(np.int64)).to(dtype)
    result = SegformerImageProcessor(do_resize=False)(IMAGE, labels, return_tensors="pt")["labels"][0]
    assert result.dtype == torch.int64 and np.array_equal(result, LABELS > 70)


@pytest.mark.parametrize("labels", [LABELS[0], np.zeros((30, 41, 3), int), np.zeros((2, 30, 41), int), 3, "abc", LOOP])
def test_label_maps_of_other_axes(labels):
    with refuses(r"segmentation_maps.*(\(41,\)|\(30, 41, 3\)|\(2, 30, 41\)|3|abc|\.\.\.)"):
        SegformerImageProcessor()(IMAGE, labels)


@pytest.mark.parametrize("images", [IMAGE[0, 0], np.float32(3), LOOP, {"path": "a"}, b"abc", torch.tensor(3), "abc"])
def test_pictures_of_other_forms(images):
    with refuses("^images"):
        SegformerImageProcessor()(images)


# --- options ---

RESAMPLE = {0: ["nearest", "NEAREST", "nearest-exact"], 1: ["lanczos"], 2: ["bilinear", "Bilinear"], 3: ["bicubic"]}
RESAMPLE |= {4: ["box"], 5: ["hamming", SimpleNamespace(value="hamming"), np.int64(5), Image.Resampling.HAMMING]}


@pytest.mark.parametrize("number", RESAMPLE)
def test_filters_by_name(number, tmp_path):
    image = Image.fromarray(IMAGE)
    size = {"height": 20, "width": 20}
    stock = SegformerImageProcessorPil(resample=number, size=size)(image, return_tensors="pt")["pixel_values"]
    for name in RESAMPLE[number]:
        assert torch.equal(pixel_values(image, size=size, resample=name), stock)
        by_call = SegformerImageProcessor(size=size)(image, resample=name, return_tensors="pt")["pixel_values"]
        assert torch.equal(by_call, stock)
    SegformerImageProcessor(resample=RESAMPLE[number][0]).save_pretrained(tmp_path)
    assert f'"resample": {number}' in (tmp_path / "preprocessor_config.json").read_text()
    assert SegformerImageProcessor.from_dict({"resample": RESAMPLE[number][0]}).resample == number


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample": "cubic spline"}, "resample must be one of 'nearest' .*'bilinear' .*got 'cubic spline'"),
        ({"resample": 99}, "resample must be one of .*got 99"),
        ({"resample": [2]}, "resample must be one of"),
        ({"image_mean": "abc"}, "image_mean must be a finite number, or one for each channel, got 'abc'"),
        ({"image_mean": [[0.5] * 3]}, "image_mean must be a finite number"),
        ({"image_mean": [0.5, "x", 0.5]}, "image_mean must be a finite number"),
        ({"image_mean": []}, "image_mean must be a finite number"),
        ({"image_std": [float("nan")] * 3}, "image_std must be a finite number"),
        ({"image_std": {"r": 1}}, "image_std must be a finite number"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std must not be 0"),
        ({"rescale_factor": float("inf")}, "rescale_factor must be finite, got inf"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"do_resize": "false"}, "do_resize"),
        ({"allow_missing": 2}, "allow_missing"),
        ({"size": [20]}, r"size must be a whole number, \(height, width\) or a dictionary"),
        ({"pad_size": [[]]}, "pad_size must be a whole number"),
        ({"crop_size": 3.5}, "crop_size must be a whole number"),
        ({"input_data_format": "hwc"}, "input_data_format must be one of channels_first, channels_last, got 'hwc'"),
        ({"data_format": "none"}, "data_format must be one of"),
        ({"return_tensors": "tensor"}, "return_tensors must be one of .*pt"),
        ({"device": "gpu"}, "device must be one that PyTorch has here, got 'gpu'"),
        ({"device": "meta"}, "device must be one that holds values"),
    ],
    ids=str,
)
def test_options(options, message):
    with refuses(message):
        SegformerImageProcessor()(IMAGE, **options)
    with refuses(message):
        SegformerImageProcessor(**options)


@pytest.mark.parametrize(("bands", "means"), [(6, 3), (5, 2), (2, 7)])
def test_means_of_another_length_than_the_bands(bands, means):
    options = {"image_mean": [0.5] * means, "image_std": [0.5] * means}
    with refuses(rf"images must have {means} channels.*image_mean.*\(30, 41, {bands}\)"):
        SegformerImageProcessor(**options)(random_image(30, 41, bands))


# --- post-processing ---


def post_process(target_sizes, count=2, **options):
    outputs = SimpleNamespace(logits=torch.randn(count, 3, 8, 8))
    return SegformerImageProcessor().post_process_semantic_segmentation(outputs, target_sizes, **options)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        (480, 640),
        (480, 640, 3),
        [480, 640],
        np.array([480, 640]),
        torch.tensor([480, 640]),
        torch.zeros(2, 2, device="meta"),
        [(480, 640, 3)] * 2,
        [(480,)] * 2,
        [(0, 640)] * 2,
        [(480, -1)] * 2,
        [(4.5, 6)] * 2,
        [(float("nan"), 6)] * 2,
        [(float("inf"), 6)] * 2,
        ["ab", "cd"],
        [None, None],
        {0: (4, 6), 1: (4, 6)},
        480,
        "ab",
    ],
    ids=str,
)
def test_target_sizes_of_another_form(sizes, count):
    with refuses(r"target_sizes must be \[\(height, width\), \.\.\.\]"):
        post_process(sizes, count)


@pytest.mark.parametrize("sizes", [[(4.0, 6)] * 2, [[np.int64(4), 6]] * 2, [torch.tensor([4, 6])] * 2])
def test_target_sizes_of_whole_numbers(sizes):
    assert [m.shape for m in post_process(sizes)] == [(4, 6)] * 2


@pytest.mark.parametrize(
    "outputs",
    [
        torch.randn(2, 3, 8, 8),
        {"logits": torch.randn(2, 3, 8, 8)},
        (torch.randn(2, 3, 8, 8),),
        SimpleNamespace(logits=np.zeros((2, 3, 8, 8))),
        SimpleNamespace(logits=torch.randn(3, 8, 8)),
        SimpleNamespace(logits=torch.zeros(2, 3, 8, 8).long()),
        SimpleNamespace(logits=torch.zeros(2, 0, 8, 8)),
        SimpleNamespace(logits=torch.zeros(2, 3, 0, 8)),
        None,
    ],
    ids=lambda outputs: type(outputs).__name__,
)
def test_outputs_of_another_form(outputs):
    with refuses("^outputs must"):
        SegformerImageProcessor().post_process_semantic_segmentation(outputs, [(4, 6)] * 2)


def test_inputs_of_another_form():
    with refuses("inputs must be what this processor returned for the images, got dict"):
        post_process(None, inputs={"pixel_values": torch.zeros(2, 3, 32, 32)})
    assert post_process(None, count=0) == []


@pytest.mark.parametrize("size", [8, (8,), (8.5, 8), "ab", None, (0, 8)])
def test_size_of_a_label_map(size):
    with refuses("size must be two positive numbers"):
        upsample_argmax(torch.randn(1, 3, 4, 4), size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((1, 3, 4, 4)), torch.zeros(1, 8, 8).long()), "logits must be a floating-point tensor"),
        ((torch.randn(1, 3, 4, 4), LABELS[None]), "labels must be a tensor"),
        ((torch.randn(1, 3, 4, 4), torch.zeros(1, 0, 8).long()), "labels must have at least one pixel"),
        ((torch.randn(1, 3, 0, 4), torch.zeros(1, 8, 8).long()), "logits must have at least one class and one point"),
        ((torch.randn(1, 3, 4, 4), torch.zeros(1, 8, 8).long(), "255"), "ignore_index must be a whole number"),
    ],
)
def test_arguments_of_the_loss(arguments, message):
    with refuses(message):
        upsample_cross_entropy(*arguments)


# --- segment and protocols ---


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", "no/such/folder", "no/such/folder: it is no folder here, and no Hub id of a model"),
        ("model", ["runs/mine"], "model must be a SegformerForSemanticSegmentation, got list"),
        ("model", torch.nn.Linear(2, 2), "model must be a SegformerForSemanticSegmentation, got Linear"),
        ("image_processor", None, "image_processor must be a SegformerImageProcessor of this package, got NoneType"),
        (
            "image_processor",
            SegformerImageProcessorPil(),
            "image_processor must be a SegformerImageProcessor of this package, got .*Pil$",
        ),
        ("image", None, "image must be PIL images"),
        ("image", [IMAGE, IMAGE], "image must be one picture, got 2"),
        ("image", np.stack([IMAGE] * 3), "image must be one picture, got 3"),
        ("protocol", "aligned-512", "protocol must be a Protocol.*got 'aligned-512'"),
        ("protocol", {}, "protocol must be a Protocol"),
        ("window_batch_size", "4", "window_batch_size must be at least 1, got '4'"),
        ("window_batch_size", 2.5, "window_batch_size must be at least 1, got 2.5"),
        ("overlap", None, "overlap must be one of mean, gaussian, got None"),
    ],
)
def test_arguments_of_segment(name, value, message, tiny_config):
    arguments = {"model": SegformerForSemanticSegmentation(tiny_config()), "image": IMAGE}
    arguments |= {"image_processor": SegformerImageProcessor(size=32), name: value}
    with refuses(message):
        segment(**arguments)


def test_segment_takes_what_the_processor_takes(tiny_config, tmp_path):
    model, processor = SegformerForSemanticSegmentation(tiny_config()).eval(), SegformerImageProcessor(size=32)
    expected = segment(model, processor, IMAGE)
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    for image in (tmp_path / "image.png", [IMAGE], IMAGE[None], IMAGE.transpose(2, 0, 1)):
        assert np.array_equal(segment(model, processor, image), expected)
    assert segment(model, processor, IMAGE[..., 0]).shape == (30, 41)
    last = SegformerImageProcessor(size=32, data_format="channels_last")
    assert np.array_equal(segment(model, last, IMAGE), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "stretch", "scale": 512}, "scale must be two positive numbers of pixels, got 512"),
        ({"resize": "stretch", "scale": (512,)}, r"scale must be two positive numbers of pixels, got \(512,\)"),
        ({"resize": "stretch", "scale": (512.5, 3)}, "scale must be two positive numbers"),
        ({"resize": "none", "crop_size": "big", "stride": (3, 3)}, "crop_size must be two positive numbers"),
        ({"resize": "none", "crop_size": (8, 8), "stride": (3, "3")}, "stride must be two positive numbers"),
        ({"resize": "none", "size_divisor": "32"}, "size_divisor must be at least 1 and whole"),
        ({"resize": "none", "size_divisor": 2.5}, "size_divisor must be at least 1 and whole"),
        ({"nvlabs_ratios": 0.5}, "nvlabs_ratios must be positive numbers, got 0.5"),
        ({"nvlabs_ratios": ()}, "nvlabs_ratios must be positive numbers"),
        ({"nvlabs_ratios": (0.5, "1")}, "nvlabs_ratios must be positive numbers"),
    ],
    ids=str,
)
def test_fields_of_a_protocol(fields, message):
    with refuses(message):
        Protocol("own", **fields)


@pytest.mark.parametrize("name", [None, ["slide"], 3])
def test_names_of_protocols(name):
    with refuses("protocol must be one of"):
        Protocol.named(name)
    with refuses("crop_size must be two positive numbers"):
        Protocol.named("slide", crop_size="64")


# --- the model ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((1, 3, 32, 32), np.float32), "pixel_values must be a floating-point tensor, got float32"),
        ([torch.zeros(3, 32, 32)], "pixel_values must be a floating-point tensor, got list"),
        (
            torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
            "pixel_values must be a floating-point tensor, got torch.uint8",
        ),
        (torch.zeros(3, 32, 32), r"pixel_values must have the shape \(batch, num_channels=3, height, width\)"),
    ],
)
def test_pixel_values_of_another_form(values, message, tiny_config):
    with refuses(message):
        SegformerForSemanticSegmentation(tiny_config())(values)


@pytest.mark.parametrize("conv_width", [None, 20])
def test_feature_maps_of_another_form(conv_width, tiny_config):
    head = SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=conv_width)).eval().decode_head
    maps = [torch.randn(1, width, 8 >> stage, 8 >> stage) for stage, width in enumerate([8, 16, 24, 32])]
    message = r"feature_maps must be 4, one \(B, C, H, W\) for each stage with C = \[8, 16, 24, 32\].*got "
    for wrong, got in (
        (maps[1:], r"3 of shapes \[\(1, 16, 4, 4\)"),
        (maps[:3], "3 of shapes"),
        (maps[::-1], r"4 of shapes \[\(1, 32, 1, 1\)"),
        ([*maps, maps[0]], "5 of shapes"),
        ([m[0] for m in maps], r"4 of shapes \[\(8, 8, 8\)"),
        ([*maps[:3], None], "4 of shapes"),
        (None, "0 of shapes"),
    ):
        with refuses(message + got), torch.no_grad():
            head(wrong)
    assert head(tuple(maps)).shape == (1, 5, 8, 8)

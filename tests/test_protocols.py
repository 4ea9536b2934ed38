# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label maps and mIoU of the evaluation protocols: mmsegmentation's own test code, and NVlabs' order derived again."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

from hf_segformer import SegformerImageProcessor
from hf_segformer.checkpoints.conversion import convert_checkpoint
from hf_segformer.data import SegmentationData, draw_scene
from hf_segformer.data.segmentation_data import build_dataset
from hf_segformer.evaluation.inference import prepare_inputs, segment
from hf_segformer.evaluation.loop import evaluate
from hf_segformer.evaluation.protocols import PROTOCOLS, Protocol
from lively_models import lively_model
from nvlabs_network import RANDOMIZE
from oracles import run_oracle
from pictures import SegformerImageProcessorPil

CLASSES = 6
WIDTHS, HEADS = [8, 16, 40, 64], [1, 2, 5, 8]
# Heights and widths: odd ones, a narrow one, and one about as small as the windows.
SIZES = [(117, 203), (203, 117), (61, 251), (75, 66)]


def picture(height, width, seed):
    """A drawn scene of the given size, and its labels in fewer classes with some ignored."""
    scenes = [draw_scene(seed + index) for index in range(4)]
    image, label = (
        np.concatenate([np.concatenate(pair, axis=1) for pair in (parts[:2], parts[2:])])
        for parts in zip(*scenes, strict=True)
    )
    label = np.where(label >= CLASSES, 255, label).astype(np.uint8)
    return image[5 : 5 + height, 2 : 2 + width], label[5 : 5 + height, 2 : 2 + width]


# mmsegmentation. Each case: its test pipeline, its test_cfg, and what stands for it here.

KEEP_RATIO = {"type": "Resize", "scale": (256, 64), "keep_ratio": True}
ALIGN = {"type": "ResizeToMultiple", "size_divisor": 32}
SLIDE = {"mode": "slide", "crop_size": (64, 64), "stride": (48, 48)}
NO_RESIZE = {"type": "Resize", "scale_factor": 1.0, "keep_ratio": True}
CASES = {
    "whole": ([KEEP_RATIO], {"mode": "whole"}, False, ("keep-ratio-512", "none", {"scale": (256, 64)})),
    "aligned": ([KEEP_RATIO, ALIGN], {"mode": "whole"}, False, ("aligned-512", "none", {"scale": (256, 64)})),
    "slide": (
        [KEEP_RATIO | {"scale": (256, 128)}],
        SLIDE,
        False,
        ("slide-1024", "none", {"scale": (256, 128), "crop_size": 64}),
    ),
    "slide, own size": (
        [NO_RESIZE],
        SLIDE | {"crop_size": (64, 96), "stride": (33, 64)},
        False,
        ("slide", "none", {"crop_size": (64, 96), "stride": (33, 64)}),
    ),
    "whole, ms+flip": ([], {"mode": "whole"}, True, ("keep-ratio-512", "mmseg", {})),
    "aligned, ms+flip": ([ALIGN], {"mode": "whole"}, True, ("aligned-512", "mmseg", {})),
    "slide, ms+flip": ([], SLIDE, True, ("slide-1024", "mmseg", {"crop_size": 64})),
}

MMSEG = (
    RANDOMIZE
    + """
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import save_checkpoint
from mmseg.registry import METRICS, MODELS
from mmseg.utils import register_all_modules
register_all_modules()
folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
model = MODELS.build(dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
    ),
    backbone=dict(
        type="MixVisionTransformer", embed_dims=options["widths"][0], num_layers=[1, 2, 1, 1],
        num_heads=options["heads"], patch_sizes=[7, 3, 3, 3], sr_ratios=[8, 4, 2, 1],
    ),
    decode_head=dict(
        type="SegformerHead", in_channels=options["widths"], in_index=[0, 1, 2, 3], channels=24,
        num_classes=options["classes"], norm_cfg=dict(type="BN"), align_corners=False,
    ),
    test_cfg=dict(mode="whole"),
))
model = randomize(model).eval()
# Scores of equal mean and spread, so that every class wins somewhere.
image = torch.tensor(np.asarray(Image.open(folder / "images" / "0.png"))).permute(2, 0, 1)[None].float()
with torch.no_grad():
    scores = model((image - 110) / 58, mode="tensor")
    factor = 3 / scores.std((0, 2, 3))
    classifier = model.decode_head.conv_seg
    classifier.weight *= factor[:, None, None, None]
    classifier.bias.copy_((classifier.bias - scores.mean((0, 2, 3))) * factor)
save_checkpoint({"meta": {}, "state_dict": model.state_dict()}, str(folder / "mmseg.pth"))
augmented = MODELS.build(dict(type="SegTTAModel", module=model))
count = len(list((folder / "images").iterdir()))
ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
results, scores = {}, {}
for name, (resizes, test_cfg, tta, _) in options["cases"].items():
    model.test_cfg = ConfigDict(test_cfg)
    for resize in resizes:
        if "scale" in resize:
            resize["scale"] = tuple(resize["scale"])
    tail = [dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
    if tta:
        flips = [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)]
        sizes = [dict(type="Resize", scale_factor=r, keep_ratio=True) for r in ratios]
        lists = [sizes, *[[resize] for resize in resizes], flips, *[[step] for step in tail]]
        steps = [dict(type="TestTimeAug", transforms=lists)]
    else:
        steps = resizes + tail
    pipeline = Compose([dict(type="LoadImageFromFile"), *steps])
    metric = METRICS.build(dict(type="IoUMetric", iou_metrics=["mIoU"]))
    metric.dataset_meta = {"classes": [str(c) for c in range(options["classes"])]}
    for index in range(count):
        item = pipeline(dict(
            img_path=str(folder / "images" / f"{index}.png"), seg_map_path=str(folder / "labels" / f"{index}.png"),
            seg_fields=[], reduce_zero_label=False,
        ))
        with torch.no_grad():
            (sample,) = (augmented if tta else model).test_step(pseudo_collate([item]))
        results[f"{name} {index}"] = sample.pred_sem_seg.data.squeeze().numpy().astype(np.uint8)
        metric.process({}, [sample.to_dict()])
    scores[name] = float(metric.evaluate(count)["mIoU"])
np.savez(folder / "mmseg.npz", **results)
(folder / "scores.json").write_text(json.dumps(scores))
"""
)


@pytest.fixture(scope="module")
def mmseg(tmp_path_factory):
    """What mmsegmentation made of the pictures, its model here, and the pictures as a data set."""
    folder = tmp_path_factory.mktemp("mmseg")
    paths = {}
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
        paths[kind] = [str(folder / kind / f"{index}.png") for index in range(len(SIZES))]
    for index, size in enumerate(SIZES):
        for kind, array in zip(("images", "labels"), picture(*size, seed=index), strict=True):
            Image.fromarray(array).save(paths[kind][index])
    run_oracle(
        "mmseg", MMSEG, folder, json.dumps({"cases": CASES, "classes": CLASSES, "widths": WIDTHS, "heads": HEADS})
    )
    convert_checkpoint(folder / "mmseg.pth", folder / "ours", num_attention_heads=HEADS)
    dataset = build_dataset(paths["images"], paths["labels"], [f"{index}.png" for index in range(len(SIZES))])
    names = tuple(str(index) for index in range(CLASSES))
    palette = tuple((40 * index, 255 - 40 * index, 7) for index in range(CLASSES))
    return SimpleNamespace(
        model=AutoModelForSemanticSegmentation.from_pretrained(folder / "ours"),
        processor=SegformerImageProcessor.from_pretrained(folder / "ours"),
        labels=dict(np.load(folder / "mmseg.npz")),
        scores=json.loads((folder / "scores.json").read_text()),
        data=SegmentationData(dataset, dataset, names, palette, name="pictures"),
    )


def as_protocol(case):
    name, tta, fields = CASES[case][3]
    return Protocol.named(name, tta, **fields)


@pytest.mark.parametrize("case", CASES)
def test_label_maps_of_mmsegmentation(case, mmseg):
    equal, pixels, occurring = 0, 0, np.zeros(CLASSES)
    for index, size in enumerate(SIZES):
        image, _ = picture(*size, seed=index)
        expected = mmseg.labels[f"{case} {index}"]
        ours = segment(mmseg.model, mmseg.processor, image, as_protocol(case), window_batch_size=1 + index)
        assert ours.shape == expected.shape == size
        equal, pixels = equal + (ours == expected).sum(), pixels + expected.size
        occurring += np.bincount(expected.ravel(), minlength=CLASSES)
    assert (occurring / pixels > 0.02).sum() >= 3, "the labels are too uniform to show a difference"
    assert equal / pixels > 0.9999


@pytest.mark.parametrize("case", ["aligned", "slide", "aligned, ms+flip"])
def test_mean_iou_of_mmsegmentation(case, mmseg):
    from accelerate import Accelerator

    matrix = evaluate(
        mmseg.model, mmseg.processor, mmseg.data, Accelerator(cpu=True), batch_size=3, protocol=as_protocol(case)
    )
    assert round(100 * matrix.compute()["mean_iou"], 2) == pytest.approx(mmseg.scores[case], abs=0.011)


# NVlabs' order, derived again: every intermediate at full size, in plain numpy and torch.


def resized_by_opencv(image, scale, divisor):
    height, width = image.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    image = cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)))
    if divisor is not None:
        image = cv2.resize(image, tuple(-(-side // divisor) * divisor for side in image.shape[1::-1]))
    return image


def upsampled(scores, size):
    return F.interpolate(scores, tuple(size), mode="bilinear", align_corners=False)


def scores_of(model, pixels, crop, stride):
    """Logits at the size of the network input, windows averaged."""
    height, width = pixels.shape[2:]
    if crop is None:
        return upsampled(model(pixels).logits, (height, width))
    total, count = torch.zeros(1, model.config.num_labels, height, width), torch.zeros(height, width)
    for y in range(max(-(-(height - crop) // stride), 0) + 1):
        for x in range(max(-(-(width - crop) // stride), 0) + 1):
            bottom, right = min(y * stride + crop, height), min(x * stride + crop, width)
            window = (slice(max(bottom - crop, 0), bottom), slice(max(right - crop, 0), right))
            logits = model(pixels[:, :, *window]).logits
            total[:, :, *window] += upsampled(logits, [part.stop - part.start for part in window])
            count[window] += 1
    return total / count


@torch.no_grad()
def nvlabs_probabilities(model, image, scale, ratios, flips, divisor=None, crop=None, stride=None):
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    probabilities = []
    for ratio in ratios:
        resized = resized_by_opencv(image, tuple(int(side * ratio) for side in scale), divisor)
        pixels = torch.tensor((resized - mean) / std).float().permute(2, 0, 1)[None]
        for flip in flips:
            scores = scores_of(model, pixels.flip(3) if flip else pixels, crop, stride)
            probability = upsampled(scores, image.shape[:2]).softmax(1)
            probabilities.append(probability.flip(3) if flip else probability)
    return torch.stack(probabilities).mean(0)[0]


BOTH = (False, True)
NVLABS_CASES = {
    "aligned": (("aligned-512", "none"), ((1.0,), (False,)), {"divisor": 32}),
    "aligned, ms+flip": (("aligned-640", "nvlabs"), ((0.75, 0.875, 1, 1.125, 1.25), BOTH), {"divisor": 32}),
    "slide": (("slide-1024", "none"), ((1.0,), (False,)), {"crop": 72, "stride": 54}),
    "slide, ms+flip": (
        ("slide-1024", "nvlabs"),
        ((0.5, 0.75, 1, 1.25, 1.5, 1.75, 2), BOTH),
        {"crop": 72, "stride": 54},
    ),
}


@pytest.fixture
def model(tiny_config, randomize):
    return lively_model(tiny_config(num_labels=CLASSES), randomize)


@pytest.mark.parametrize("case", NVLABS_CASES)
def test_label_maps_of_nvlabs(case, model):
    (name, tta), (ratios, flips), options = NVLABS_CASES[case]
    scale = (190, 90) if "aligned" in case else (300, 120)
    fields = {"crop_size": options["crop"]} if "crop" in options else {}
    protocol = Protocol.named(name, tta, scale=scale, **fields)
    for index, size in enumerate([(83, 131), (131, 83)]):
        image, _ = picture(*size, seed=20 + index)
        expected = nvlabs_probabilities(model, image, scale, ratios, flips, **options)
        labels, confidence = segment(model, SegformerImageProcessor(), image, protocol, return_confidence=True)
        assert len(np.unique(labels)) >= 3
        assert (labels == expected.argmax(0).numpy()).mean() > 0.9999
        np.testing.assert_allclose(confidence, expected.amax(0).numpy(), atol=1e-5)
        assert np.array_equal(labels, segment(model, SegformerImageProcessor(), image, protocol))


# transformers: one resize to 512 x 512 with antialias, one of the logits.


@pytest.mark.parametrize("name", ["stock-512", "processor"])
def test_label_maps_of_transformers(name, model):
    image, _ = picture(97, 141, seed=5)
    size = {"height": 512, "width": 512} if name == "stock-512" else {"height": 160, "width": 96}
    ours = SegformerImageProcessor() if name == "stock-512" else SegformerImageProcessor(size=size)
    with torch.no_grad():
        logits = model(SegformerImageProcessorPil(size=size)(image, return_tensors="pt").pixel_values).logits
    expected = upsampled(logits, image.shape[:2])[0].argmax(0).numpy()
    assert len(np.unique(expected)) >= 3
    result = segment(model, ours, image, Protocol.named(name))
    assert (result == expected).mean() > 0.9999
    if name == "processor":
        assert np.array_equal(segment(model, ours, image), result)


def test_two_steps_are_not_one(model):
    """Published protocols resize logits to the network input first: with one step instead, labels differ."""
    image, _ = picture(83, 131, seed=20)
    two = Protocol.named("keep-ratio-512", scale=(190, 90))
    one = Protocol.named("keep-ratio-512", scale=(190, 90), one_step=True)
    labels = [segment(model, SegformerImageProcessor(), image, protocol) for protocol in (one, two)]
    assert (labels[0] != labels[1]).mean() > 0.001


def test_augmentation_with_the_size_of_the_processor(model):
    image, _ = picture(83, 131, seed=20)
    processor = SegformerImageProcessor(
        size={"shortest_edge": 90, "longest_edge": 190}, keep_ratio=True, antialias=False
    )
    protocol = Protocol.named("processor", "nvlabs", nvlabs_ratios=(0.75, 1.25), one_step=False)
    expected = nvlabs_probabilities(model, image, (190, 90), (0.75, 1.25), BOTH)
    assert (segment(model, processor, image, protocol) == expected.argmax(0).numpy()).mean() > 0.9999


# The table.


def test_published_sizes():
    scales = {name: protocol.scale for name, protocol in PROTOCOLS.items() if protocol.scale}
    assert scales == {
        "stock-512": (512, 512),
        "keep-ratio-512": (2048, 512),
        "keep-ratio-640": (2048, 640),
        "aligned-512": (2048, 512),
        "aligned-640": (2048, 640),
        "slide-1024": (2048, 1024),
    }
    assert Protocol.named("aligned-512", "nvlabs").ratios == (0.75, 0.875, 1.0, 1.125, 1.25)
    assert Protocol.named("slide-1024", "nvlabs").ratios == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    for name in PROTOCOLS:
        assert Protocol.named(name, "mmseg").ratios == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
        assert PROTOCOLS[name].ratios == (1.0,) and PROTOCOLS[name].flips == (False,)
    # 1024 x 2048 takes three windows, the last one moved back.
    assert PROTOCOLS["slide-1024"].windows(1024, 2048) == ([(0, 1024)], [(0, 1024), (768, 1792), (1024, 2048)])
    assert PROTOCOLS["slide"].windows(700, 1025) == ([(0, 700)], [(0, 1024), (1, 1025)])


def test_network_inputs_of_an_ade20k_picture():
    processor, image = SegformerImageProcessor(), np.zeros((683, 512, 3), np.uint8)
    for name, size in [("keep-ratio-512", (683, 512)), ("aligned-512", (704, 512)), ("aligned-640", (864, 640))]:
        (values,) = prepare_inputs(processor, image, Protocol.named(name)).pixel_values
        assert tuple(values.shape[1:]) == size
    sizes = [tuple(v.shape[1:]) for v in prepare_inputs(processor, image, Protocol.named("aligned-512", "nvlabs"))[0]]
    assert sizes == [(512, 384), (608, 448), (704, 512), (768, 576), (864, 640)]
    sizes = [
        tuple(v.shape[1:]) for v in prepare_inputs(processor, image, Protocol.named("keep-ratio-512", "mmseg"))[0]
    ]
    assert sizes == [(342, 256), (512, 384), (683, 512), (854, 640), (1025, 768), (1195, 896)]


@pytest.mark.parametrize(
    ("name", "tta", "fields", "message"),
    [
        ("alligned-512", "none", {}, "did you mean 'aligned-512'"),
        ("aligned-512", "mirror", {}, "tta must be one of none, mmseg, nvlabs, got 'mirror'"),
        ("slide", "none", {"crop_size": 64, "stride": 65}, "stride must not exceed crop_size"),
        ("slide", "none", {"scale": (512, 512)}, "scale belongs to"),
        ("stock-512", "none", {"crop_size": 64}, "crop_size needs a protocol"),
        ("processor", "none", {"size_divisor": 32}, "size_divisor must"),
        ("aligned-512", "none", {"size_divisor": 0}, "size_divisor must be at least 1"),
        ("aligned-512", "none", {"stride": 64}, "belong together"),
        ("aligned-512", "none", {"scale": (0, 64)}, "scale must be two positive"),
    ],
)
def test_wrong_fields_are_named(name, tta, fields, message):
    with pytest.raises(ValueError, match=message):
        Protocol.named(name, tta, **fields)

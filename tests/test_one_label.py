# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Models with one logit tell foreground from background wherever a model with two classes does."""

import copy
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation, HfArgumentParser, pipeline
from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation as Stock

from hf_segformer import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    upsample_cross_entropy,
)
from hf_segformer.data import draw_scene, load_dataset
from hf_segformer.evaluation.inference import segment
from hf_segformer.evaluation.loop import check_classes, evaluate
from hf_segformer.evaluation.metrics import MeanIoU, build_compute_metrics
from hf_segformer.scores.cross_entropy import upsample_cross_entropy_sum
from hf_segformer.training import SegmentationLoss, TrainArguments
from hf_segformer.training.losses import LOSSES
from hf_segformer.training.model import build_model
from hf_segformer.visualization import panel
from lively_models import lively_model
from scene_folder import example_module
from versions import needs_auto_processor

CRACK = {"num_labels": 1, "id2label": {0: "crack"}}


@pytest.fixture
def model(tiny_config, randomize):
    return lively_model(tiny_config(**CRACK), randomize).eval()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def binary_data(tmp_path):
    """A folder of pictures with 0/255 masks, as `load_dataset` reads it."""
    root = tmp_path / "data"
    for kind in ("images", "annotations"):
        (root / kind).mkdir(parents=True)
    (root / "classes.txt").write_text("road\ncrack\n")
    for index in range(5):
        image, label = draw_scene(index)
        Image.fromarray(image[:80, :96]).save(root / "images" / f"{index}.png")
        Image.fromarray((label[:80, :96] % 2 * 255).astype(np.uint8)).save(root / "annotations" / f"{index}.png")
    return load_dataset("folder", root)


def test_both_ids_have_names(model, folder):
    for config in (model.config, SegformerForSemanticSegmentation.from_pretrained(folder).config):
        assert config.class_names == ("background", "crack")
        assert [config.id2label[label] for label in (0, 1)] == ["background", "crack"]
        assert [config.id2label[label] for label in np.array([0, 1])] == ["background", "crack"]
        assert [config.id2label.get(label) for label in (0, 1, 2)] == ["background", "crack", None]
        with pytest.raises(KeyError):
            config.id2label[2]
        # One output, as transformers has it.
        assert (config.id2label, config.num_labels, config.label2id) == ({0: "crack"}, 1, {"crack": 0})
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "crack"}
    assert Stock.from_pretrained(folder).config.id2label == {0: "crack"}


def test_names_follow_later_changes(model):
    config = model.config
    config.id2label = {"0": "rust"}
    assert config.id2label[1] == "rust" and config.id2label == {0: "rust"}
    config.id2label[1] = "stain"
    assert config.id2label[1] == "stain" and config.num_labels == 1
    assert copy.deepcopy(config).id2label[1] == "stain"
    config.num_labels = 3
    assert [config.id2label[label] for label in range(3)] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_one_label_of_a_classifier_is_its_own(tiny_config, folder):
    for classifier in (
        SegformerForImageClassification(tiny_config(**CRACK)),
        AutoModelForImageClassification.from_pretrained(folder),
    ):
        assert classifier.config.id2label[0] == "crack" and 1 not in classifier.config.id2label


@needs_auto_processor
def test_pipeline(model, folder):
    image = Image.fromarray(draw_scene(3)[0])
    expected = segment(model, SegformerImageProcessor.from_pretrained(folder), image)
    assert set(np.unique(expected)) == {0, 1}
    regions = {
        region["label"]: np.asarray(region["mask"]) for region in pipeline("image-segmentation", model=folder)(image)
    }
    assert regions.keys() == {"background", "crack"}
    assert np.array_equal(regions["crack"] > 0, expected == 1)


def test_evaluation_and_training_data(model, folder, binary_data):
    processor = SegformerImageProcessor.from_pretrained(folder)
    matrix = evaluate(model, processor, binary_data, Accelerator(cpu=True), num_workers=0)
    counted = np.zeros((2, 2), int)
    for row in binary_data.validation:
        image, label = binary_data.read_sample(row)
        np.add.at(counted, (label, segment(model, processor, image)), 1)
    assert np.array_equal(matrix.matrix.numpy(), counted) and counted.all()
    assert "crack" in matrix.table(binary_data.class_names)


def test_data_of_a_single_class_are_refused(model, tiny_config):
    data = load_dataset("scenes", num_train=2, num_validation=1, size=64)
    for other in (model, SegformerForSemanticSegmentation(tiny_config(num_labels=2))):
        single = type(data)(data.train, data.validation, ("crack",), ((1, 2, 3),))
        with pytest.raises(ValueError, match="at least two classes, the background included, got only crack"):
            check_classes(other, single)
    with pytest.raises(ValueError, match="num_labels=1 but data set"):
        check_classes(model, data)


def test_metrics_know_both_ids():
    predictions, references = np.array([[[0, 1, 1], [1, 0, 0]]]), np.array([[[0, 1, 0], [1, 255, 0]]])
    compute = build_compute_metrics(num_labels=1, class_names=["crack"])
    evaluation = type("Evaluation", (), {"predictions": [predictions], "label_ids": [references]})
    scores = compute(evaluation)
    assert scores["iou_crack"] == pytest.approx(2 / 3) and scores["iou_background"] == pytest.approx(2 / 3)
    metric = MeanIoU(num_labels=1)
    metric.add_batch(predictions=predictions, references=references)
    assert metric.compute(num_labels=1)["per_category_iou"] == pytest.approx([2 / 3, 2 / 3])


@pytest.mark.parametrize("palette", [None, [(200, 10, 10)], [(0, 0, 0), (200, 10, 10)]], ids=["none", "one", "two"])
def test_predict_and_legend(palette, tiny_config, randomize, tmp_path):
    model = lively_model(tiny_config(**CRACK, palette=palette), randomize)
    model.save_pretrained(tmp_path / "model")
    processor = SegformerImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path / "model")
    image = Image.fromarray(draw_scene(3)[0])
    image.save(tmp_path / "photo.png")
    main = example_module("predict").main
    options = ["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert main([str(tmp_path / "photo.png"), *options]) == 0
    labels = np.asarray(Image.open(tmp_path / "out" / "labels" / "photo.png"))
    assert np.array_equal(labels, segment(model, processor, image))
    if palette is not None:
        shown = np.asarray(Image.open(tmp_path / "out" / "labels" / "photo.png").convert("RGB"))
        assert (shown[labels == 1] == (200, 10, 10)).all() and not shown[labels == 0].any()
    colors = model.config.class_palette or [(0, 0, 0), (200, 10, 10)]
    assert panel(image, None, labels, model.config.class_names, colors).width > image.width


def test_training_keeps_the_one_logit(folder, binary_data):
    options = ["--dataset", "folder", "--data_root", str(folder.parent / "data"), "--model", str(folder)]
    (args,) = HfArgumentParser(TrainArguments).parse_args_into_dataclasses(options)
    model, _ = build_model(args, args.effective_recipe(1), binary_data, None)
    before = SegformerForSemanticSegmentation.from_pretrained(folder).decode_head.classifier.weight
    assert torch.equal(model.decode_head.classifier.weight, before)
    assert model.config.class_names == ("background", "crack")
    check_classes(model, binary_data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bool, torch.uint8])
def test_masks_of_any_dtype(dtype, model):
    pixel_values, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 48, 80) > 0.5
    with torch.inference_mode():
        outputs = model(pixel_values, labels=mask.to(dtype))
    scores = F.interpolate(outputs.logits, size=mask.shape[1:], mode="bilinear")[:, 0]
    torch.testing.assert_close(outputs.loss, F.binary_cross_entropy_with_logits(scores, mask.float()))


@pytest.mark.parametrize("weighted", [False, True])
def test_soft_masks(weighted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(2, 17, 23, generator=generator, dtype=torch.float64)
    labels[0, :4], labels[1, 2] = 255, -1
    valid = (labels != 255) & (labels >= 0)
    weights = torch.tensor([0.3, 2.0], dtype=torch.float64) if weighted else None
    scores = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")[:, 0]
    losses = F.binary_cross_entropy_with_logits(scores[valid], labels[valid], reduction="none")
    if weighted:
        losses = losses * (0.3 * (1 - labels[valid]) + 2.0 * labels[valid])
    (expected,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    total, count = upsample_cross_entropy_sum(logits, labels, 255, weights)
    torch.testing.assert_close(total, losses.sum())
    assert count == valid.sum()
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], expected)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "lovasz"])
def test_training_losses_of_soft_masks(name):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    hard = torch.randint(0, 2, (2, 8, 8), generator=generator)
    hard[0, :2] = 255
    soft = torch.rand(2, 8, 8, generator=generator, dtype=torch.float64)
    soft[0, :2] = 255
    loss = SegmentationLoss(name, ohem_min_kept=5, class_weights=None if name == "dice" else [0.5, 3.0])
    torch.testing.assert_close(loss(logits, hard.double()), loss(logits, hard))
    if name == "dice":
        p, t, valid = logits[:, 0].sigmoid(), soft, soft != 255
        classes = []
        for image in range(2):
            q, s = p[image][valid[image]], t[image][valid[image]]
            pairs = ((q, s), (1 - q, 1 - s))
            classes.append(sum(1 - 2 * (a * b).sum() / (a.square().sum() + b.square().sum()) for a, b in pairs) / 2)
        torch.testing.assert_close(loss(logits, soft), sum(classes) / 2)
    elif name == "smp_dice":  # of the object alone, whatever its weight
        valid = soft != 255
        parts = zip(logits[:, 0].sigmoid() * valid, soft * valid, strict=True)
        each = [1 - 2 * (q * t).sum() / (q + t).sum() for q, t in parts]
        torch.testing.assert_close(loss(logits, soft), sum(each) / 2)
    else:
        assert torch.isfinite(loss(logits, soft)) and loss(logits, soft) > 0


@pytest.mark.parametrize("value", [1.5, float("nan"), float("inf")])
def test_soft_masks_out_of_range(value, model):
    labels = torch.full((1, 32, 32), 0.5)
    labels[0, 3, 4] = value
    logits = torch.zeros(1, 1, 8, 8)
    for function in (upsample_cross_entropy, SegmentationLoss("dice"), SegmentationLoss("focal")):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 1\] .* got {value}"):
            function(logits, labels)


def test_soft_masks_are_no_labels_for_classes(tiny_config):
    message = r"labels must be of an integer dtype for logits of 5 classes.* num_labels=1.*, got torch.float32"
    labels = torch.zeros(1, 32, 32)
    with pytest.raises(ValueError, match=message):
        SegformerForSemanticSegmentation(tiny_config())(torch.randn(1, 3, 32, 32), labels=labels)
    for name in ("cross_entropy", "ohem", "focal", "dice"):
        with pytest.raises(ValueError, match=message):
            SegmentationLoss(name)(torch.zeros(1, 5, 8, 8), labels)


def test_default_names_and_auto_class(tmp_path, tiny_config):
    SegformerForSemanticSegmentation(tiny_config(num_labels=1)).save_pretrained(tmp_path)
    config = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).config
    assert config.class_names == ("background", "LABEL_0") and config.id2label[1] == "LABEL_0"
    assert SegformerConfig(num_labels=1).class_names == ("background", "LABEL_0")
    assert SegformerConfig(num_labels=2).class_names == ("LABEL_0", "LABEL_1")

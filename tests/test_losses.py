# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Training losses against loops over pixels, mmsegmentation's own, and themselves in pieces."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_segformer.data import load_dataset
from hf_segformer.training import (
    SegmentationLoss,
    class_weights_from_counts,
    count_class_pixels,
    parse_losses,
    read_class_weights,
)
from hf_segformer.training.losses import LOSSES
from oracles import run_oracle

K = 5
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.5]
ALL = "cross_entropy=1,ohem=0.7,focal=2,dice=0.3,tversky=0.4,lovasz=0.6,smp_dice=0.8,smp_focal=0.2"
OPTIONS = {"ohem_threshold": 0.3, "ohem_min_kept": 40, "focal_gamma": 1.5, "tversky_alpha": 0.2, "tversky_beta": 1.1}
OF_PICTURES = ("dice", "tversky", "lovasz", "smp_dice")


def sample(classes=K, images=3, height=19, width=23, ignored=True):
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(images, classes, 7, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, max(classes, 2), (images, height, width), generator=generator)
    labels[1] = labels[1].clamp(max=1)  # an image without most of the classes
    if ignored:
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
        labels[2] = 255  # an image without a single class
    return logits.requires_grad_(), labels


def pixel_by_pixel(logits, labels, name, class_weights=None, average="valid"):
    """One loss by the formulas of its docstring, with loops and NumPy."""
    scores = F.interpolate(logits.detach(), labels.shape[1:], mode="bilinear", align_corners=False).numpy()
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    exponential = np.exp(scores - scores.max(1, keepdims=True))
    probability = exponential / exponential.sum(1, keepdims=True)
    weights = np.ones(scores.shape[1]) if class_weights is None else np.array(class_weights)
    total, pixels, images = 0.0, 0.0, 0
    for image, label in enumerate(labels.numpy()):
        valid = [(y, x) for y in range(label.shape[0]) for x in range(label.shape[1]) if label[y, x] != 255]
        p = {(y, x): probability[image, label[y, x], y, x] for y, x in valid}
        pixels += sum(weights[label[place]] for place in valid) if average == "valid" else label.size
        images += bool(valid)
        if name in OF_PICTURES and valid:
            present = sorted({label[place] for place in valid})
            counted = [1] if logits.shape[1] == 1 else range(len(weights))  # of segmentation-models-pytorch
            parts = []
            for k in present if name != "smp_dice" else counted:
                q = np.array([probability[image, k, y, x] for y, x in valid])
                t = np.array([label[place] == k for place in valid], float)
                parts.append((k in present) * overlap_loss(name, q, t))
            total += np.average(parts, weights=weights[present if name != "smp_dice" else list(counted)])
        limit = OPTIONS["ohem_threshold"]
        if valid:
            limit = max(limit, sorted(p.values())[min(OPTIONS["ohem_min_kept"], len(valid) - 1)])
        for place in valid if name not in OF_PICTURES else ():
            if name == "smp_focal" and logits.shape[1] > 1:
                sigmoid = 1 / (1 + np.exp(-scores[image, :, place[0], place[1]]))
                right = np.where(np.arange(len(weights)) == label[place], sigmoid, 1 - sigmoid)
                total -= weights[label[place]] * ((1 - right) ** OPTIONS["focal_gamma"] * np.log(right)).sum()
                continue
            if name == "ohem" and p[place] >= limit:
                continue
            focal = (1 - p[place]) ** OPTIONS["focal_gamma"] if "focal" in name else 1
            total -= weights[label[place]] * focal * np.log(p[place])
    return total / (images if name in OF_PICTURES else pixels)


def overlap_loss(name, q, t):
    """Loss of one class from its probabilities and indicators."""
    hits, alpha, beta = (q * t).sum(), OPTIONS["tversky_alpha"], OPTIONS["tversky_beta"]
    if name == "dice":
        return 1 - 2 * hits / ((q**2).sum() + (t**2).sum())
    if name == "smp_dice":
        return 1 - 2 * hits / (q.sum() + t.sum())
    if name == "tversky":
        return 1 - hits / (hits + alpha * (q * (1 - t)).sum() + beta * ((1 - q) * t).sum())
    # Lovasz extension: the integral over thresholds of the Jaccard loss when all errors above the threshold are made.
    errors = np.abs(t - q)
    levels = np.concatenate([[0.0], np.sort(errors)])
    total = 0.0
    for low, high in itertools.pairwise(levels):
        wrong = errors > low
        inside = t == 1
        total += (high - low) * (1 - (inside & ~wrong).sum() / (inside | wrong).sum())
    return total


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_pixel_by_pixel(name, class_weights, average):
    logits, labels = sample()
    loss = SegmentationLoss({name: 1.0}, average=average, class_weights=class_weights, **OPTIONS)(logits, labels)
    assert loss.item() == pytest.approx(pixel_by_pixel(logits, labels, name, class_weights, average), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_one_logit_is_background_and_object(name):
    logits, labels = sample(classes=1)
    loss = SegmentationLoss({name: 1.0}, **OPTIONS)(logits, labels)
    assert loss.item() == pytest.approx(pixel_by_pixel(logits, labels, name), rel=1e-9)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("average", ["valid", "all"])
def test_pieces_add_up_to_the_whole(average, class_weights):
    """However a step is cut into micro-batches and processes, loss and gradient are the same."""
    logits, labels = sample(images=4)
    loss = SegmentationLoss(ALL, average=average, class_weights=class_weights, **OPTIONS)
    whole = loss(logits, labels)
    (expected,) = torch.autograd.grad(whole, logits)
    counts = sum(loss.counts(labels[i : i + 1]) for i in range(4))
    torch.testing.assert_close(counts, loss.counts(labels), rtol=1e-12, atol=0)
    pieces = sum(loss(logits[i : i + 1], labels[i : i + 1], counts) for i in range(4))
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(pieces, logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)
    assert expected.abs().max() > 0


def test_weights_of_losses_and_names():
    logits, labels = sample()
    parts = {name: SegmentationLoss({name: 1.0}, **OPTIONS)(logits, labels) for name in parse_losses(ALL)}
    expected = sum(weight * parts[name] for name, weight in parse_losses(ALL).items())
    torch.testing.assert_close(SegmentationLoss(ALL, **OPTIONS)(logits, labels), expected)
    assert parse_losses("dice, cross_entropy=2.5") == {"dice": 1.0, "cross_entropy": 2.5}


def test_limits():
    logits, labels = sample()
    plain = SegmentationLoss("cross_entropy")(logits, labels)
    torch.testing.assert_close(SegmentationLoss("focal", focal_gamma=0)(logits, labels), plain)
    kept = SegmentationLoss("ohem", ohem_threshold=1.0)(logits, labels)
    torch.testing.assert_close(kept, plain)
    # Fewer pixels than are to be kept: all but the easiest, which the strict comparison leaves out.
    easy = SegmentationLoss("ohem", ohem_threshold=1e-9, ohem_min_kept=10**6)(logits, labels)
    assert 0.9 * plain < easy < plain


@pytest.mark.parametrize("classes", [K, 1])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_by_differences(name, classes):
    logits, labels = sample(classes, height=5, width=6)
    logits = logits.detach()[..., :2, :2].contiguous().requires_grad_()
    weights = WEIGHTS if classes == K else [0.5, 2.0]
    loss = SegmentationLoss(name, class_weights=weights, **OPTIONS | {"ohem_min_kept": 12})
    assert torch.autograd.gradcheck(lambda logits: loss(logits, labels), logits)


def test_perfect_prediction_has_no_loss_and_a_finite_gradient():
    labels = torch.randint(0, K, (2, 8, 8))
    logits = (200 * F.one_hot(labels, K).movedim(3, 1).float() - 100).requires_grad_()
    loss = SegmentationLoss(ALL, focal_gamma=0.5)(logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("text", ["cross_entropy", ALL])
def test_nothing_but_ignored_pixels(text):
    logits, labels = sample()
    loss = SegmentationLoss(text, class_weights=WEIGHTS)(logits, torch.full_like(labels, 255))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize("classes", [K, 1])
def test_half_precision_logits_are_computed_in_single(classes):
    logits, labels = sample(classes)
    half = logits.detach().bfloat16().requires_grad_()
    single = half.detach().float().requires_grad_()
    loss = SegmentationLoss(ALL, **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(single, labels), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(value, half)
    (expected,) = torch.autograd.grad(loss(single, labels), single)
    torch.testing.assert_close(gradient, expected.bfloat16())


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_are_refused(name):
    logits, labels = sample()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(SegmentationLoss(name)(logits, labels), logits, create_graph=True)


def test_lovasz_takes_no_soft_labels():
    logits, labels = sample(classes=1)
    with pytest.raises(ValueError, match="integer dtype for the loss lovasz, got torch"):
        SegmentationLoss("dice,lovasz")(logits, labels.float())


def test_memory_does_not_grow_with_the_batch():
    """What a loss of one picture holds is not held for all of them."""
    logits = torch.randn(3, K, 8, 8, requires_grad=True)
    labels = torch.randint(0, K, (3, 64, 64))
    loss = SegmentationLoss("dice,tversky,lovasz,smp_dice,smp_focal,focal,ohem")(logits, labels)
    saved = [node for node in _nodes(loss.grad_fn) if hasattr(node, "saved_tensors")]
    kept = sum(tensor.numel() for node in saved for tensor in node.saved_tensors)
    assert kept == logits.numel(), "beside the gradient at the logits' own size, something of the pixels is kept"


def _nodes(node):
    return [node, *(inner for parent, _ in node.next_functions if parent for inner in _nodes(parent))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "cross_entropy,cross_entropy"}, "loss must join different ones"),
        (
            {"weights": "hinge=1"},
            "loss must join different ones of cross_entropy, ohem, focal, dice, tversky, lovasz, ",
        ),
        ({"weights": "lovasz, smp_jaccard"}, "smp_dice, smp_focal by commas, got 'lovasz, smp_jaccard'"),
        ({"weights": "dice=-1"}, "loss must have weights > 0, got 'dice=-1'"),
        ({"weights": "dice=much"}, "loss must have weights > 0, got 'dice=much'"),
        ({"weights": {"hinge": 1.0}}, r"weights must have keys among cross_entropy, .*, got \['hinge'\]"),
        ({"average": "some"}, "average must be 'valid' or 'all', got 'some'"),
        ({"ohem_threshold": 0.0}, r"ohem_threshold must be in \(0, 1\], got 0.0"),
        ({"ohem_min_kept": 0}, "ohem_min_kept must be at least 1, got 0"),
        ({"focal_gamma": -1.0}, "focal_gamma must be at least 0, got -1.0"),
        ({"focal_gamma": float("nan")}, "focal_gamma must be at least 0 and finite, got nan"),
        ({"focal_gamma": float("inf")}, "focal_gamma must be at least 0 and finite, got inf"),
        ({"tversky_alpha": 0.0}, "tversky_alpha must be > 0 and finite, got 0.0"),
        ({"tversky_beta": -0.5}, "tversky_beta must be > 0 and finite, got -0.5"),
        ({"tversky_beta": float("nan")}, "tversky_beta must be > 0 and finite, got nan"),
        ({"tversky_alpha": float("inf")}, "tversky_alpha must be > 0 and finite, got inf"),
        ({"class_weights": [1.0, -1.0]}, "class_weights must be numbers >= 0"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationLoss(**options)


def test_wrong_number_of_class_weights():
    logits, labels = sample()
    with pytest.raises(ValueError, match="one weight for each of 5 classes, got 2"):
        SegmentationLoss(class_weights=[1.0, 2.0])(logits, labels)


# mmsegmentation

MMSEG = """
import sys
import torch
from torch import nn
from torch.nn import functional as F
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.losses.dice_loss import dice_loss
from mmseg.models.losses.focal_loss import py_sigmoid_focal_loss
from mmseg.structures.sampler import OHEMPixelSampler
given = torch.load(sys.argv[1])
labels, result = given["labels"], {}
scores = F.interpolate(given["logits"], labels.shape[1:], mode="bilinear", align_corners=False)
for average in ("all", "valid"):
    loss = CrossEntropyLoss(avg_non_ignore=average == "valid")
    result["cross_entropy", average] = loss(scores, labels, ignore_index=255)
full = labels.where(labels != 255, 0)  # with class weights mmsegmentation cannot take ignored pixels
result["weighted"] = CrossEntropyLoss(class_weight=given["class_weights"], avg_non_ignore=True)(
    scores, full, ignore_index=255
)
# Hard pixels: pooled over a batch there, so one image at a time.
context = nn.Module()
context.ignore_index = 255
total = 0
for image in range(len(labels)):
    part = slice(image, image + 1)
    chosen = OHEMPixelSampler(context, thresh=given["threshold"], min_kept=given["min_kept"]).sample(
        scores[part], labels[part][:, None]
    )
    total += F.cross_entropy(scores[part], labels[part], ignore_index=255, reduction="none").mul(chosen).sum()
result["ohem"] = total / labels.numel()
# Dice: each class of each image, averaged over those present. mmsegmentation counts ignored pixels as no class.
probability, target = scores.softmax(1), F.one_hot(full, scores.shape[1]).movedim(3, 1)
per_class = torch.stack([
    dice_loss(probability[:, k : k + 1], target[:, k : k + 1], None, eps=0.0, reduction="none", ignore_index=None)
    for k in range(scores.shape[1])
], dim=1)
present = target.flatten(2).any(2)
result["dice"] = torch.stack([row[seen].mean() for row, seen in zip(per_class, present)]).mean()
# One logit, where a sigmoid and a softmax of two are the same; alpha=0.5 halves both classes.
one = scores[:, :1].flatten()
binary = (full > 1).long().flatten()
result["focal"] = 2 * py_sigmoid_focal_loss(one[:, None], binary[:, None], gamma=2.0, alpha=0.5)
torch.save(result, sys.argv[2])
"""


def test_losses_equal_mmsegmentations(tmp_path):
    logits, labels = sample()
    logits, min_kept = logits.detach(), 40
    given = {"logits": logits, "labels": labels, "class_weights": WEIGHTS, "threshold": 0.3, "min_kept": min_kept}
    torch.save(given, tmp_path / "given.pth")
    run_oracle("mmseg", MMSEG, tmp_path / "given.pth", tmp_path / "result.pth")
    theirs = torch.load(tmp_path / "result.pth")
    full = labels.where(labels != 255, 0)
    binary = (full > 1).long()
    ours = {
        ("cross_entropy", "all"): SegmentationLoss(average="all")(logits, labels),
        ("cross_entropy", "valid"): SegmentationLoss(average="valid")(logits, labels),
        "weighted": SegmentationLoss(class_weights=WEIGHTS)(logits, full),
        "ohem": SegmentationLoss("ohem", average="all", **OPTIONS)(logits, labels),
        "dice": SegmentationLoss("dice")(logits, full),
        "focal": SegmentationLoss("focal", focal_gamma=2.0)(logits[:, :1], binary),
    }
    assert ours.keys() == theirs.keys()
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(theirs[name].item(), rel=1e-6), name


SMP = """
import sys
import torch
from torch.nn import functional as F
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss, TverskyLoss
given = torch.load(sys.argv[1])
labels = given["labels"]
scores = F.interpolate(given["logits"], labels.shape[1:], mode="bilinear", align_corners=False)
one, binary = scores[:, :1].contiguous(), torch.where(labels == 255, 255, (labels > 1).long())
pictures = [slice(i, i + 1) for i in range(len(labels)) if (labels[i] != 255).any()]
each = lambda loss, scores, labels: torch.stack([loss(scores[i], labels[i]) for i in pictures]).mean()
tversky = {"ignore_index": 255, "alpha": given["alpha"], "beta": given["beta"]}
present = [labels[i][labels[i] != 255].unique().numel() for i in pictures]
torch.save({
    "smp_focal": FocalLoss("multiclass", gamma=1.5, ignore_index=255)(scores, labels),
    "smp_focal of one logit": FocalLoss("binary", gamma=1.5, ignore_index=255)(one, binary[:, None].double()),
    "focal of a soft mask": FocalLoss("binary", gamma=1.5)(one, given["soft"][:, None]),
    "smp_dice": each(DiceLoss("multiclass", ignore_index=255), scores, labels),
    "smp_dice of one picture": DiceLoss("multiclass", ignore_index=255)(scores[:1], labels[:1]),
    "smp_dice of one logit": each(DiceLoss("binary", ignore_index=255), one, binary),
    "smp_dice of a batch": DiceLoss("multiclass", ignore_index=255)(scores, labels),
    # Its mean is over all classes, absent ones among them.
    "tversky": torch.stack([
        TverskyLoss("multiclass", **tversky)(scores[i], labels[i]) * scores.shape[1] / n
        for i, n in zip(pictures, present)
    ]).mean(),
    "lovasz": each(LovaszLoss("multiclass", ignore_index=255), scores.float(), labels),
    "lovasz of one logit": each(
        LovaszLoss("multiclass", ignore_index=255), torch.cat([torch.zeros_like(one), one], 1).float(), binary
    ),
}, sys.argv[2])
"""


def test_losses_equal_those_of_segmentation_models_pytorch(tmp_path):
    logits, labels = sample()
    logits = logits.detach()
    soft = torch.rand(labels.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    given = {"logits": logits, "labels": labels, "soft": soft}
    torch.save(given | {"alpha": OPTIONS["tversky_alpha"], "beta": OPTIONS["tversky_beta"]}, tmp_path / "given.pth")
    run_oracle("smp", SMP, tmp_path / "given.pth", tmp_path / "result.pth")
    theirs = {name: loss.item() for name, loss in torch.load(tmp_path / "result.pth").items()}
    one, binary = logits[:, :1], torch.where(labels == 255, 255, (labels > 1).long())

    def ours(name, logits=logits, labels=labels):
        return SegmentationLoss(name, **OPTIONS)(logits, labels).item()

    results = {name: ours(name) for name in ("smp_focal", "smp_dice", "tversky", "lovasz")}
    results |= {f"{name} of one logit": ours(name, one, binary) for name in ("smp_focal", "smp_dice", "lovasz")}
    results |= {"focal of a soft mask": ours("focal", one, soft)}
    results |= {"smp_dice of one picture": ours("smp_dice", logits[:1], labels[:1])}
    # What is different by definition: the pictures of a batch are not pooled, and other losses have other names.
    assert theirs.pop("smp_dice of a batch") != pytest.approx(results["smp_dice"], rel=0.01)
    assert results == pytest.approx(theirs, rel=1e-5)  # their lovasz is in single precision
    assert ours("focal") != pytest.approx(theirs["smp_focal"], rel=0.1)
    assert ours("dice") != pytest.approx(theirs["smp_dice"], rel=0.01)


# Class weights


@pytest.fixture(scope="module")
def scenes():
    return load_dataset("scenes", num_train=6, num_validation=1, size=64)


def test_pixels_of_classes(scenes):
    pixels, in_images = count_class_pixels(scenes)
    labels = [np.asarray(row["annotation"]) for row in scenes.train]
    for k in range(scenes.num_classes):
        assert pixels[k] == sum(int((label == k).sum()) for label in labels)
        assert in_images[k] == sum(int((label != 255).sum()) for label in labels if (label == k).any())
    assert sum(pixels) == 6 * 64 * 64


def test_class_weight_rules():
    counts, in_images = [10, 40, 0, 50], [100, 50, 0, 100]
    # Frequencies .1, .8, .5, whose median is .5.
    assert class_weights_from_counts(counts, in_images) == pytest.approx([5.0, 0.625, 1.0, 1.0])
    inverse = class_weights_from_counts(counts, rule="inverse_frequency")
    assert inverse == pytest.approx([100 / 30, 100 / 120, 1.0, 100 / 150])
    assert sum(n * w for n, w in zip(counts, inverse, strict=True)) == pytest.approx(100)
    with pytest.raises(ValueError, match="rule must be one of median_frequency, inverse_frequency, got 'x'"):
        class_weights_from_counts(counts, in_images, "x")
    with pytest.raises(ValueError, match="all are 0"):
        class_weights_from_counts([0, 0])


def test_class_weights_from_the_command_line(scenes, tmp_path):
    auto = read_class_weights("auto", scenes)
    assert auto == read_class_weights("median_frequency", scenes)
    assert auto == class_weights_from_counts(*count_class_pixels(scenes))
    file = tmp_path / "weights.json"
    by_name = {name: index + 0.5 for index, name in enumerate(scenes.class_names)}
    file.write_text(json.dumps(dict(reversed(by_name.items()))))
    assert read_class_weights(str(file), scenes) == list(by_name.values())
    file.write_text(json.dumps(list(by_name.values())))
    assert read_class_weights(str(file), scenes) == list(by_name.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "is no JSON file"),
        ("[1, 2]", "must be a list of 11 numbers"),
        ('{"sky": 1}', "must name the data set's classes, differing"),
        (json.dumps([1] * 10 + [-1]), "must be numbers >= 0"),
        (json.dumps([1] * 10 + ["1"]), "must be numbers >= 0 and at most 1e\\+12, got '1' for class 10"),
        (json.dumps([1] * 10 + [True]), "got True for class 10"),
        (json.dumps([1] * 10 + [None]), "got None for class 10"),
        (json.dumps([[1]] * 11), r"got \[1\] for class 0"),
        ("[NaN" + ", 1" * 10 + "]", "got nan for class 0"),
        ("[Infinity" + ", 1" * 10 + "]", "got inf for class 0"),
        ("[1e13" + ", 1" * 10 + "]", "at most 1e\\+12, got 10000000000000.0 for class 0"),
        ("[1e999" + ", 1" * 10 + "]", "must be within floating point, got '1e999'"),
        ("[" + "9" * 400 + ", 1" * 10 + "]", "at most 300 digits"),
        ("[0" + ", 0" * 10 + "]", "must not all be 0"),
        ("[1e-300" + ", 0" * 10 + "]", "must not all be 0"),
        ("[" * 100_000, "nested too deeply"),
        ('{"sky": 1, "sky": 2}', "the key 'sky' must stand once"),
        ('{"' + "x" * 5000 + '": 1}', "must name the data set's classes, differing"),
        ('"auto"', "must hold an object or a list of JSON, got 'auto'"),
    ],
)
def test_bad_class_weight_files(content, message, scenes, tmp_path):
    (tmp_path / "weights.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_class_weights(str(tmp_path / "weights.json"), scenes)
    assert "weights.json" in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize("weights", [[0, 0.0], [1, float("nan")], [1, float("inf")], [True, 1], [1, -1], [1e38, 1]])
def test_losses_refuse_weights_that_train_nothing(weights):
    with pytest.raises(ValueError, match="class_weights must"):
        SegmentationLoss(class_weights=weights)


def test_weights_may_be_arrays():
    for weights in (torch.tensor([0.0, 2.0]), np.array([0, 2]), (0, 2), [np.float32(0), np.int64(2)]):
        assert SegmentationLoss(class_weights=weights).class_weights.tolist() == [0, 2]


def test_unknown_class_weight_rule(scenes):
    with pytest.raises(ValueError, match=r"class_weights must be auto, median_frequency, .* got 'rare'"):
        read_class_weights("rare", scenes)

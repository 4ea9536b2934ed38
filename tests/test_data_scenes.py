# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The drawn data set: the same pixels everywhere, all classes present, and not to be solved by colour alone."""

import hashlib

import numpy as np
import pytest
import torch

from hf_segformer.data import check_dataset, draw_scene, load_dataset
from hf_segformer.data.raster import Canvas, Draws, value_noise

# SHA-256 of image and label bytes of scene 7. Changes only with the drawing itself; then update it and look at the
# pictures.
GOLDEN = "259315cd8312df33a3aba9f4836125fcd02f6d2c07194d538243a45a341492e4"
CLASSES = ("sky", "hill", "building", "tree", "grass", "road", "water", "car", "person", "pole", "wire")


@pytest.fixture(scope="module")
def scenes():
    return load_dataset("scenes", num_train=80, num_validation=30)


def test_golden_scene():
    image, label = draw_scene(7)
    assert hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest() == GOLDEN


@pytest.mark.parametrize("size", [64, 101, 128, 192])
def test_any_size(size):
    image, label = draw_scene(3, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert label.shape == (size, size) and label.dtype == np.uint8 and label.max() < len(CLASSES)


def test_data_set_holds_the_drawn_pixels(scenes):
    assert scenes.class_names == CLASSES and len(scenes.palette) == len(set(scenes.palette)) == len(CLASSES)
    assert scenes.thin_classes == ("pole", "wire") and scenes.name == "scenes" and scenes.ignore_index == 255
    assert (len(scenes.train), len(scenes.validation)) == (80, 30)
    assert scenes.train[4]["file_name"] == "train_00004.png"
    image, label = scenes.read_sample(scenes.train[4])
    expected = draw_scene(4)
    np.testing.assert_array_equal(image, expected[0])
    np.testing.assert_array_equal(label, expected[1])


def test_scene_does_not_depend_on_the_number_of_scenes(scenes):
    few = load_dataset("scenes", num_train=2, num_validation=2)
    for split in ("train", "validation"):
        mine, theirs = getattr(few, split)[1], getattr(scenes, split)[1]
        np.testing.assert_array_equal(few.read_sample(mine)[0], scenes.read_sample(theirs)[0])


def test_all_scenes_differ_and_seeds_give_others(scenes):
    other = load_dataset("scenes", num_train=5, num_validation=5, seed=1)
    rows = [*scenes.train, *scenes.validation, *other.train, *other.validation]
    assert len({np.asarray(row["image"]).tobytes() for row in rows}) == len(rows) == 120


def test_writes_no_files(scenes):
    assert scenes.train.cache_files == [] and scenes.validation.cache_files == []


def test_every_class_has_its_share(scenes):
    report = check_dataset(scenes)
    for split in ("train", "validation"):
        share = np.array(report.pixel_counts[split]) / sum(report.pixel_counts[split])
        assert share.min() > 0.005 and share.max() < 0.35
        assert report.ignored_pixels[split] == 0


def runs(mask):
    """Lengths of the horizontal runs of True, pooled over rows."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(int)
    return np.argwhere(np.diff(padded) == -1)[:, 1] - np.argwhere(np.diff(padded) == 1)[:, 1]


def test_thin_objects_are_thin_but_visible_at_quarter_resolution(scenes):
    """Median thickness: poles across, wires downwards."""
    poles, wires = [], []
    for row in scenes.train:
        label = np.asarray(row["annotation"])
        poles.append(runs(label == CLASSES.index("pole")))
        wires.append(runs(CLASSES.index("wire") == label.T))
    assert 3 <= np.median(np.concatenate(poles)) <= 5
    assert 2 <= np.median(np.concatenate(wires)) <= 4


# Colour alone


def pixels(scenes, split, per_scene):
    """Random pixels of every scene: colours in 0..1 (N, 3) and labels (N,)."""
    rng = np.random.default_rng(0)
    colors, labels = [], []
    for row in getattr(scenes, split):
        image, label = scenes.read_sample(row)
        chosen = rng.integers(0, label.size, per_scene)
        colors.append(image.reshape(-1, 3)[chosen] / 255)
        labels.append(label.ravel()[chosen])
    return torch.tensor(np.concatenate(colors), dtype=torch.float32), torch.tensor(np.concatenate(labels)).long()


def mean_iou(predicted, truth):
    matrix = torch.bincount(truth * len(CLASSES) + predicted, minlength=len(CLASSES) ** 2).view(len(CLASSES), -1)
    hits = matrix.diag()
    return (hits / (matrix.sum(0) + matrix.sum(1) - hits)).mean().item()


def logistic_regression(colors, labels, steps=300):
    """Multinomial, on colour and its products up to degree two."""
    features = torch.cat([colors, (colors[:, :, None] * colors[:, None]).flatten(1)], dim=1)
    model = torch.nn.Linear(features.shape[1], len(CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    weight = (
        1 / torch.bincount(labels, minlength=len(CLASSES)).float().sqrt()
    )  # so that rare classes are predicted at all
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(features), labels, weight).backward()
        optimizer.step()
    return lambda c: model(torch.cat([c, (c[:, :, None] * c[:, None]).flatten(1)], dim=1)).argmax(1)


def nearest_neighbours(colors, labels, k):
    def predict(queries):
        nearest = torch.cdist(queries, colors).topk(k, largest=False).indices
        votes = torch.nn.functional.one_hot(labels[nearest], len(CLASSES)).sum(1)
        return votes.argmax(1)

    return predict


@pytest.mark.parametrize("classifier", ["logistic regression", "1 neighbour", "25 neighbours"])
def test_colour_alone_does_not_solve_it(scenes, classifier):
    torch.manual_seed(0)
    colors, labels = pixels(scenes, "train", 150)
    if classifier == "logistic regression":
        predict = logistic_regression(colors, labels)
    else:
        predict = nearest_neighbours(colors, labels, int(classifier.split()[0]))
    queries, truth = pixels(scenes, "validation", 100)
    score = mean_iou(predict(queries), truth)
    assert 0.05 < score < 0.40, score  # above 0.05: the classifier itself works


# What it is painted with


def test_draws_are_within_their_bounds_and_reproducible():
    values = [Draws(5).integer(-3, 4) for _ in range(2)]
    assert values[0] == values[1]
    draws = Draws(5)
    many = [draws.integer(-3, 4) for _ in range(500)]
    assert set(many) == set(range(-3, 5))
    assert 0.2 < np.mean([draws.chance(30) for _ in range(1000)]) < 0.4
    noise = draws.bytes(37, 23)
    assert noise.shape == (37, 23) and noise.min() >= 0 and noise.max() <= 255 and 110 < noise.mean() < 145


def test_value_noise_passes_through_its_lattice_and_is_smooth():
    noise = value_noise(Draws(9), 21, 40, 5, 8)
    lattice = Draws(9).bytes(21 // 5 + 2, 40 // 8 + 2)
    np.testing.assert_array_equal(noise[::5, ::8] + 128, lattice[:5, :5])
    assert (
        np.abs(np.diff(noise, axis=0)).max() <= 255 // 5 + 1 and np.abs(np.diff(noise, axis=1)).max() <= 255 // 8 + 1
    )


def filled(canvas, shape):
    canvas.label[:] = 0
    canvas.paint(shape, (1, 2, 3), 1)
    return canvas.label == 1


def test_shapes_against_their_definitions():
    canvas = Canvas(20, 30)
    y, x = np.mgrid[:20, :30]
    np.testing.assert_array_equal(filled(canvas, canvas.box(-3, 5, 7, 99)), (x < 7) & (y >= 5))
    inside = ((x - 12) / 6.5) ** 2 + ((y - 8) / 3.5) ** 2 <= 1 + 1e-9
    np.testing.assert_array_equal(filled(canvas, canvas.ellipse(12, 8, 6, 3)), inside)
    triangle = (y <= 15) & (y - 3 >= (10 - x) * 12 / 8 - 1e-9) & (y - 3 >= (x - 10) * 12 / 15 - 1e-9)
    np.testing.assert_array_equal(filled(canvas, canvas.polygon((2, 15), (10, 3), (25, 15))), triangle)
    profile = np.arange(30) // 3
    np.testing.assert_array_equal(filled(canvas, canvas.below(profile)), y >= profile)
    panes = np.isin(x, (3, 4, 8, 9, 13, 14)) & np.isin(y, (1, 2, 3, 5, 6, 7))
    np.testing.assert_array_equal(filled(canvas, canvas.grid(3, 1, 3, 2, (2, 3), (5, 4))), panes)
    ribbon = (y >= (x + 4) // 3) & (y < (x + 4) // 3 + 2) & (x < 20)
    np.testing.assert_array_equal(filled(canvas, canvas.ribbon(-4, np.arange(24) // 3, 2)), ribbon)


@pytest.mark.parametrize(
    "shape",
    [
        ("box", 40, 1, 50, 5),
        ("grid", 31, 1, 2, 2, (2, 2), (3, 3)),
        ("ellipse", -20, -20, 4, 4),
        ("ribbon", 35, np.zeros(4, int), 2),
    ],
)
def test_shapes_outside_the_picture_paint_nothing(shape):
    canvas = Canvas(20, 30)
    name, *arguments = shape
    assert not filled(canvas, getattr(canvas, name)(*arguments)).any()


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "num_train must be at least 1, got 0"),
        ({"num_validation": 0}, "num_validation must be at least 1, got 0"),
        ({"size": 63}, "size must be at least 64, got 63"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("scenes", **options)

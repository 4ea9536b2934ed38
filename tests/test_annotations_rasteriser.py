# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Shapes become pixels by the rule that is stated, and run lengths are those of COCO."""

import json

import numpy as np
import pytest
from tool_exports import GOLDEN

from hf_segformer.data.annotated import IGNORED, Bitmap, Runs, Shape, make_box, make_polygon
from hf_segformer.data.rasteriser import draw_shapes, polygon_pixels
from hf_segformer.data.rle import decode_coco, encode_coco, make_runs, pixels_of, runs_of

REFERENCE = json.loads((GOLDEN / "polygons.json").read_text())


def drawn(ring, width=60, height=50, holes=()):
    """A polygon in the whole picture."""
    pixels, left, top = polygon_pixels(np.asarray(ring, float), [np.asarray(h, float) for h in holes], width, height)
    whole = np.zeros((height, width), bool)
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return whole


def even_odd(ring, width=60, height=50):
    """Each pixel's centre against each edge, as the rule says."""
    ys, xs = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 <= ys) != (y1 <= ys)) & (xs >= x0 + (ys - y0) * (x1 - x0) / (y1 - y0))
    return inside


def test_a_pixel_belongs_to_the_polygon_that_holds_its_centre():
    generator = np.random.default_rng(0)
    for _ in range(100):  # many cross themselves, most leave the picture
        ring = generator.uniform(-20, 80, (generator.integers(3, 12), 2))
        np.testing.assert_array_equal(drawn(ring), even_odd(ring))


def test_polygons_that_share_edges_leave_no_gap_and_share_no_pixel():
    generator = np.random.default_rng(1)
    corners = np.mgrid[0:61:10, 0:51:10].transpose(1, 2, 0).astype(float)
    corners[1:-1, 1:-1] += generator.integers(-8, 9, corners[1:-1, 1:-1].shape) / 2  # many lie on centres
    count = np.zeros((50, 60), int)
    for row, column in np.ndindex(corners.shape[0] - 1, corners.shape[1] - 1):
        quad = [corners[row, column], corners[row, column + 1], corners[row + 1, column + 1], corners[row + 1, column]]
        count += drawn(quad)
    assert (count == 1).all()


def test_whole_numbers_give_whole_pixels():
    assert np.argwhere(drawn([(3, 2), (7, 2), (7, 5), (3, 5)])).tolist() == [
        [y, x] for y in (2, 3, 4) for x in (3, 4, 5, 6)
    ]


def test_a_hole_is_taken_out_even_where_it_leaves_the_ring():
    outer, hole = [(10, 10), (40, 10), (40, 40), (10, 40)], [(30, 20), (50, 20), (50, 30), (30, 30)]
    expected = drawn(outer) & ~drawn(hole)
    np.testing.assert_array_equal(drawn(outer, holes=[hole]), expected)
    assert not expected[25, 45]  # even-odd over both rings would add it


def test_a_polygon_far_outside_costs_nothing_and_draws_nothing():
    assert not drawn([(1e8, 1e8), (9e8, 1e8), (5e8, 9e8)]).any()
    assert drawn([(-1e9, -1e9), (1e9, -1e9), (1e9, 1e9), (-1e9, 1e9)]).all()


def test_agreement_with_pycocotools():
    height, width = REFERENCE["height"], REFERENCE["width"]
    both = either = 0
    for polygon in REFERENCE["polygons"]:
        theirs = pixels_of(make_runs(polygon["counts"], height, width, "polygon"))
        ring = np.array(polygon["points"]).reshape(-1, 2)
        mine = drawn(ring, width, height)
        both, either = both + (mine & theirs).sum(), either + (mine | theirs).sum()
        ys, xs = np.nonzero(mine != theirs)
        assert all(_distance(ring, x + 0.5, y + 0.5) < 0.75 for y, x in zip(ys, xs, strict=True))
    assert both / either > 0.99


def _distance(ring, x, y):
    start, end = ring, np.roll(ring, -1, axis=0)
    along = end - start
    share = (((x, y) - start) * along).sum(1) / np.maximum((along**2).sum(1), 1e-9)
    return np.hypot(*(start + along * share.clip(0, 1)[:, None] - (x, y)).T).min()


def test_strings_of_runs_are_those_of_pycocotools():
    height, width = REFERENCE["height"], REFERENCE["width"]
    for polygon in REFERENCE["polygons"]:
        runs = make_runs(polygon["counts"], height, width, "polygon")
        pixels = pixels_of(runs)
        assert pixels.sum() == polygon["area"]
        assert encode_coco(runs_of(pixels)) == polygon["counts"]


@pytest.mark.parametrize("column_major", [True, False])
@pytest.mark.parametrize("pixels", [np.zeros((3, 4)), np.ones((3, 4)), np.eye(5, 7), np.arange(12).reshape(3, 4) % 3])
def test_runs_and_back(pixels, column_major):
    pixels = pixels > 0
    counts = runs_of(pixels, column_major)
    runs = make_runs(decode_coco(encode_coco(counts)), *pixels.shape, "x", column_major=column_major)
    np.testing.assert_array_equal(pixels_of(runs), pixels)


def test_column_major_runs_by_hand():
    expected = [[0, 1, 0], [1, 0, 0]]
    assert pixels_of(make_runs([1, 2, 3], 2, 3, "x")).astype(int).tolist() == expected
    assert pixels_of(make_runs([1, 1, 1, 1, 2], 2, 3, "x", column_major=False)).astype(int).tolist() == expected


@pytest.mark.parametrize(
    "counts, rule",
    [
        ([5, 3], r"must add up to height \* width = 3 \* 4 = 12, got 8"),
        ([], r"must add up .* got 0"),
        ([13, -1], r"must lie in 0\.\.12 .* got -1"),
        ([2**62, 2**62], r"must lie in 0\.\.12"),
        ([1.5, 10.5], "must be a list of integers or a string"),
        (["a"], "must be a list of integers or a string"),
        ({"a": 1}, "must be a list of integers or a string"),
        ("zz\x7f", "characters from '0' to 'o' only"),
        ("ü", "characters from '0' to 'o' only"),
        ("o", "cut off or damaged"),
        ("o" * 40 + "0", "cut off or damaged"),
    ],
)
def test_wrong_runs_are_named(counts, rule):
    with pytest.raises(ValueError, match=f"^shape 3: .*{rule}"):
        make_runs(counts, 3, 4, "shape 3")


@pytest.mark.parametrize(
    "points, rule",
    [
        ([[1, 2], [3, 4]], "at least 3 points, got 2"),
        ([[1, 2]], "at least 3 points, got 1"),
        ([], "must be a list of points"),
        (None, "must be a list of points"),
        ([1, 2, 3], "must be a list of points"),
        ([[1, 2], [3, 4], [5]], "must be a list of points"),
        ([[1, 2], [3, 4], ["a", 5]], "must be a list of points"),
        ([[1, 2], [3, 4], [float("nan"), 5]], "must be finite"),
        ([[1, 2], [3, 4], [1e300, 5]], "must be finite"),
    ],
)
def test_wrong_polygons_are_named(points, rule):
    with pytest.raises(ValueError, match=f"^shape 0: .*{rule}"):
        make_polygon(points, "shape 0")


def box(label, left, top, right, bottom, order=0.0):
    """A shape of one box."""
    return Shape(label, (make_box((left, top), (right, bottom), "box"),), order)


def test_overlaps():
    large, small = box(0, 0, 0, 8, 8), box(1, 2, 2, 4, 4)
    assert draw_shapes([small, large], (8, 8), 2)[3, 3] == 1  # the later
    assert draw_shapes([small, large], (8, 8), 2, small_on_top=True)[3, 3] == 2
    assert draw_shapes([box(1, 2, 2, 4, 4, order=5), large], (8, 8), 2)[3, 3] == 2
    assert draw_shapes([large, box(IGNORED, 2, 2, 4, 4)], (8, 8), 2)[3, 3] == 255
    assert draw_shapes([large, box(IGNORED, 2, 2, 4, 4)], (8, 8), 300).max() == 65535


def test_small_is_what_has_few_pixels_in_the_picture():
    cut, small = box(0, -1000, 0, 2, 2), box(1, 0, 0, 3, 3)  # 4 and 9 pixels
    assert draw_shapes([cut, small], (8, 8), 2, small_on_top=True)[0, 0] == 1


def test_bitmaps_and_runs_that_leave_the_picture_are_cut():
    pixels = np.ones((4, 4), bool)
    for x, y, expected in ((-2, -2, 4), (6, 6, 4), (2, 7, 4), (9, 0, 0), (-9, 0, 0), (3, 3, 16)):
        bitmap, runs = Bitmap(pixels, x, y), Runs(runs_of(pixels), 4, 4, x, y)
        for part in (bitmap, runs):
            assert draw_shapes([Shape(0, (part,))], (8, 8), 1).sum() == expected


def test_parts_are_united_not_taken_from_each_other():
    parts = tuple(make_box((a, a), (a + 4, a + 4), "box") for a in (0, 2))
    assert draw_shapes([Shape(0, parts)], (8, 8), 1).sum() == 16 + 16 - 4


def test_shares_of_the_size():
    polygon = make_polygon([(0, 0), (0.5, 0), (0.5, 1), (0, 1)], "x")
    values = draw_shapes([Shape(0, (polygon,))], (10, 4), 1, relative=True)
    assert values.tolist() == [[1] * 5 + [0] * 5] * 4

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Stored values that are no label ids: the reduced zero label and id maps, in any picture format; their errors."""

import numpy as np
import pytest
from PIL import Image

from hf_segformer.data import AnnotationFormat, load_dataset, read_sample

SHAPE = (7, 11)
PALETTE = ((1, 0, 0), (0, 2, 0), (0, 0, 3), (4, 4, 0))


def read(tmp_path, values, annotation_format, suffix=".png"):
    path = tmp_path / f"truth{suffix}"
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path)
    photo = np.zeros((*SHAPE, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    return read_sample({"image": str(tmp_path / "photo.png"), "annotation": str(path)}, annotation_format)[1]


def as_palette(values):
    picture = Image.fromarray(values.astype(np.uint8)).convert("P")
    picture.putpalette([index * 7 % 256 for index in range(768)])
    return picture


STORED = {
    "8 bit": lambda values: values.astype(np.uint8),
    "16 bit": lambda values: values.astype(np.uint16),
    "palette": as_palette,
    "grey in RGB": lambda values: np.repeat(values.astype(np.uint8)[..., None], 3, axis=2),
}


@pytest.mark.parametrize("ignore_index", [255, 254, -100])
@pytest.mark.parametrize("kind", STORED)
def test_reduced_zero_label(tmp_path, kind, ignore_index):
    rng = np.random.default_rng(0)
    values = rng.choice([0, 1, 2, 3, 4] + [ignore_index] * (ignore_index > 0), SHAPE)
    expected = [[ignore_index if v in (0, ignore_index) else v - 1 for v in row] for row in values.tolist()]
    label = read(tmp_path, STORED[kind](values), AnnotationFormat(4, "ids", ignore_index, reduce_zero_label=True))
    np.testing.assert_array_equal(label, expected)
    assert label.dtype == (np.uint8 if ignore_index > 0 else np.int32)


@pytest.mark.parametrize("kind", STORED)
def test_id_map(tmp_path, kind):
    table = {3: 1, 200: 0, 7: 2, 9: 255, 255: 255, 1: 2}
    values = np.random.default_rng(1).choice(list(table), SHAPE)
    label = read(tmp_path, STORED[kind](values), AnnotationFormat(3, id_map=tuple(table.items())))
    np.testing.assert_array_equal(label, [[table[v] for v in row] for row in values.tolist()])


def test_id_map_of_large_and_negative_values(tmp_path):
    table = {-1: 255, 1000: 0, 65535: 1, 70000: 2}
    values = np.random.default_rng(1).choice(list(table), SHAPE).astype(np.int32)
    annotation_format = AnnotationFormat(3, id_map=tuple(table.items()))
    label = read(tmp_path, values, annotation_format, ".tif")
    np.testing.assert_array_equal(label, [[table[v] for v in row] for row in values.tolist()])
    values[2, 3] = -2
    with pytest.raises(ValueError, match=r"truth\.tif: 1 pixels have values other than -1, 1000, 65535, 70000: -2; "):
        read(tmp_path, values, annotation_format, ".tif")


def test_ids_above_255_are_reduced(tmp_path):
    values = np.random.default_rng(1).integers(0, 301, SHAPE).astype(np.uint16)
    label = read(tmp_path, values, AnnotationFormat(300, ignore_index=-1, reduce_zero_label=True))
    np.testing.assert_array_equal(label, values.astype(int) - 1)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0, 4, 5, 6], {"reduce_zero_label": True}, r"2 pixels have values other than 0\.\.4, 255: 5, 6; the class"),
        ([0, 1, 5000], {"reduce_zero_label": True}, r"1 pixels have .*: 5000; such numbers are instance ids"),
        ([1, 2, 8], {"id_map": ((1, 0), (2, 1), (3, 2), (7, 3))}, r"values other than 1\.\.3, 7: 8; "),
        ([0, 1, 2, 3, 4], {}, r"labels outside 0\.\.3 .*: 4; ids seem to start at 1 .*: set reduce_zero_label"),
    ],
)
def test_values_that_are_not_allowed(tmp_path, values, options, message):
    array = np.zeros(SHAPE, np.uint16) + np.uint16(values[0])
    array[0, : len(values)] = values
    with pytest.raises(ValueError, match=r"truth\.png: .*" + message):
        read(tmp_path, array, AnnotationFormat(4, **options))


@pytest.mark.parametrize("options", [{}, {"reduce_zero_label": True}, {"id_map": ((1, 1), (2, 0))}])
@pytest.mark.parametrize("kind", STORED)
def test_label_maps_can_be_written_to(tmp_path, kind, options):
    """PyTorch warns about arrays that cannot."""
    values = np.random.default_rng(0).choice([1, 2], SHAPE)
    label = read(tmp_path, STORED[kind](values), AnnotationFormat(3, **options))
    assert label.flags.writeable and label.flags.c_contiguous


def explain(values):
    return "in colour" if values is None else f"found {values.tolist()}" if values.max() < 9 else ""


@pytest.mark.parametrize("options", [{}, {"reduce_zero_label": True}, {"id_map": ((0, 0),)}])
def test_data_sets_explain_their_own_mistakes(tmp_path, options):
    annotation_format = AnnotationFormat(4, explain=explain, **options)
    array = np.zeros(SHAPE, np.uint8)
    array[1, 1], array[2, 2] = 7, 8
    with pytest.raises(ValueError, match=r": 7, 8; found \[7, 8\]$"):
        read(tmp_path, array, annotation_format)
    array[3, 3] = 99
    with pytest.raises(ValueError, match=r": 7, 8, 99; the class names file may lack classes"):
        read(tmp_path, array, annotation_format)
    with pytest.raises(ValueError, match=r"truth\.png: .* colour picture; in colour$"):
        read(tmp_path, np.random.default_rng(0).integers(0, 9, (*SHAPE, 3), dtype=np.uint8), annotation_format)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_format": "rgb", "palette": PALETTE, "reduce_zero_label": True}, r"reduce_zero_label .* got 'rgb'"),
        ({"mask_format": "rgb", "palette": PALETTE, "id_map": ((1, 1),)}, r"id_map goes with mask_format 'ids'"),
        ({"reduce_zero_label": True, "id_map": ((1, 1),)}, r"id_map goes .* without reduce_zero_label"),
    ],
)
def test_impossible_combinations(options, message):
    with pytest.raises(ValueError, match=message):
        AnnotationFormat(4, **options)


def test_reduced_zero_label_in_a_users_own_folder(tmp_path):
    for name, values in (("a", [0, 1, 2]), ("b", [3, 2, 0])):
        for folder in ("images", "annotations"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.array([values], np.uint8)).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    data = load_dataset("folder", tmp_path, reduce_zero_label=True)
    rows = [*data.train, *data.validation]
    labels = {row["file_name"]: data.read_sample(row)[1].tolist() for row in rows}
    assert labels == {"a.png": [[255, 0, 1]], "b.png": [[2, 1, 255]]}

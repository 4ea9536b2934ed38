# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The exports in `annotations/`, and label maps compared with those that the tools draw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from hf_segformer.data import SegmentationData, read_sample

EXPORTS = Path(__file__).parent / "annotations"


def copied(name: str, folder: Path) -> Path:
    """Return a copy of an export, to be changed."""
    return Path(shutil.copytree(EXPORTS / name / "export", folder / name))


def label_maps(data: SegmentationData) -> dict[str, np.ndarray]:
    """Return label ids by picture stem."""
    maps = {}
    for split, rows in (("train", data.train), ("validation", data.validation)):
        for row, example in enumerate(rows):
            picture, label = read_sample(example, data.annotation_format, split, row)
            assert picture.shape[:2] == label.shape
            maps[Path(example["file_name"]).stem] = label
    return maps


def expected_maps(name: str, data: SegmentationData, outside: str = "background") -> dict[str, np.ndarray]:
    """Return the tool's own label maps with the label ids of `data`; -1 for a class that `data` lacks.

    Args:
        name: Folder in `annotations/`.
        data: What was read.
        outside: Class of pixels outside every shape, or `"ignored"`.
    """
    values = json.loads((EXPORTS / name / "expected" / "values.json").read_text(encoding="utf-8"))["values"]
    ids = {label: index for index, label in enumerate(data.class_names)} | {"ignored": data.ignore_index}
    table = np.full(256, -1)
    for value, label in values.items():
        table[int(value)] = ids.get(outside if label is None else label, -1)
    return {path.stem: table[np.asarray(Image.open(path))] for path in (EXPORTS / name / "expected").glob("*.png")}


def interior(label: np.ndarray, reach: int) -> np.ndarray:
    """Return where all pixels up to `reach` away in both directions have the same value, within the picture."""
    padded = np.pad(label, reach, constant_values=-2)
    height, width = label.shape
    windows = [padded[y : y + height, x : x + width] for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    return np.all([window == label for window in windows], axis=0)


def assert_agrees(data: SegmentationData, name: str, reach: int, outside: str = "background") -> None:
    """Compare with the tool's own label maps: the same pictures, and the same classes except at edges.

    Args:
        data: What was read.
        name: Folder in `annotations/`.
        reach: How far from an edge, in pixels, tools may differ: 0 for every pixel equal.
        outside: Class of pixels outside every shape.
    """
    found, expected = label_maps(data), expected_maps(name, data, outside)
    assert sorted(found) == sorted(expected)
    for stem, label in found.items():
        inside = interior(expected[stem], reach)
        wrong = (label != expected[stem]) & inside
        assert not wrong.any(), f"{stem}: {np.argwhere(wrong)[:5].tolist()} of {wrong.sum()}"
        assert inside.mean() > 0.5  # there is something to compare

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Small exports of annotation tools for tests, written by hand in the structure that the tools document."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from hf_segformer.data import undecoded

GOLDEN = Path(__file__).parent / "annotations"
SIZE = (40, 30)


def picture(path: Path, size: tuple[int, int] = SIZE, seed: int = 0, orientation: int | None = None) -> Path:
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def mask(path: Path, values: np.ndarray) -> Path:
    """Write a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def shape(label: str, points, kind: str = "polygon", **more) -> dict:
    """A shape as labelme writes it."""
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def square(label: str, left: float, top: float, side: float = 10) -> dict:
    """A square polygon."""
    corners = [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]
    return shape(label, corners)


def labelme(path: Path, shapes: list, size: tuple[int, int] = SIZE, image_path: str | None = None, **more) -> Path:
    """Write a labelme file, and its picture unless it is there or `image_path` names it."""
    if image_path is None and not path.with_suffix(".jpg").exists():
        picture(path.with_suffix(".jpg"), size)
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image_path or f"{path.stem}.jpg"}
    content |= {"imageData": None, "imageHeight": size[1], "imageWidth": size[0]} | more
    path.write_text(json.dumps(content))
    return path


def png_text(pixels: np.ndarray) -> str:
    """A bool array as labelme embeds it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def coco(path: Path, images: dict, annotations: list, categories: dict | list, pictures: Path | None = None) -> Path:
    """Write COCO instances; `images` maps file names to sizes, `annotations` are (file, category id, segmentation)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = {name: number for number, name in enumerate(images, 1)}
    for name, size in images.items():
        picture((pictures or path.parent) / name, size)
    if isinstance(categories, dict):
        categories = [{"id": key, "name": name, "supercategory": ""} for key, name in categories.items()]
    content = {
        "images": [{"id": ids[n], "file_name": n, "width": w, "height": h} for n, (w, h) in images.items()],
        "annotations": [
            {"id": 10 + k, "image_id": ids[name], "category_id": c, "segmentation": s, "area": 1, "iscrowd": 0}
            for k, (name, c, s) in enumerate(annotations)
        ],
        "categories": categories,
    }
    path.write_text(json.dumps(content))
    return path


def flat_square(left: float, top: float, side: float = 10) -> list[float]:
    """The corners of a square as COCO writes them."""
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def age(folder: Path) -> None:
    """Make all files an hour old, so that what was read of them may be kept."""
    for path in folder.rglob("*"):
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)


def labels_of(data) -> dict[str, np.ndarray]:
    """Label maps of both splits, by the stem of the picture."""
    found = {}
    for split in ("train", "validation"):
        rows = undecoded(getattr(data, split))
        for index in range(len(rows)):
            _, label = data.read_sample(rows[index], split, index)
            found[Path(rows[index]["file_name"]).stem] = label
    return found


def golden_labels(name: str, class_names) -> dict[str, np.ndarray]:
    """Label maps that the tool drew, with the positions of the class names as values, 255 for ignored ones."""
    folder = GOLDEN / name / "expected"
    values = json.loads((folder / "values.json").read_text(encoding="utf-8"))["values"]
    ids = {
        int(value): 255 if meaning == "ignored" else list(class_names).index(meaning or "background")
        for value, meaning in values.items()
    }
    found = {}
    for path in folder.glob("*.png"):
        stored = np.array(Image.open(path))
        found[path.stem] = np.vectorize(ids.__getitem__, otypes=[np.int64])(stored)
    return found


def far_differences(mine: np.ndarray, theirs: np.ndarray) -> int:
    """Pixels where neither value occurs in the other map within one pixel: these are no matter of edges."""
    assert mine.shape == theirs.shape
    return int((_far(mine, theirs) & _far(theirs, mine)).sum())


def _far(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    padded = np.pad(others.astype(int), 1, mode="edge")
    height, width = values.shape
    return ~np.any([padded[y : y + height, x : x + width] == values for y in range(3) for x in range(3)], axis=0)


def edited(path, change):
    """A JSON file with its content changed in place by a function."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Make `coco/`, `coco_roboflow/` and `coco_datumaro/` with pycocotools and datumaro.

    pip install pycocotools==2.0.11 datumaro==1.13.12 && python make_coco.py

pycocotools has no writer of whole files: the JSON is written here as cocodataset.org and Roboflow write it, run
lengths and label maps come from pycocotools (`annToMask`, drawn from the largest area to the smallest; tools mark
every brush mask as a crowd, so that this says nothing about what lies on top).
`coco_datumaro/` is datumaro's own export, read back by pycocotools.
"""

from __future__ import annotations

import itertools
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datumaro.components.annotation import Mask, Polygon
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scenes import EMPTY, NAMES, SCENES, Area, Scene, save_expected

HERE = Path(__file__).parent
VERSIONS = f"pycocotools {version('pycocotools')}"
GAPS = dict(zip(NAMES, (3, 7, 18, 44, 90), strict=True))  # category ids have gaps
VALUES = {0: None} | dict(enumerate(NAMES, 1))


def flat(ring) -> list[float]:
    return [float(value) for point in ring for value in point]


def mask_of(area: Area, scene: Scene) -> np.ndarray:
    """Return an area as pycocotools draws it, with its hole cut out."""
    rings = [ring for ring in (area.ring, area.hole) if ring]
    drawn = [
        coco_mask.decode(coco_mask.frPyObjects([flat(ring)], scene.height, scene.width))[..., 0] for ring in rings
    ]
    return drawn[0] & ~drawn[1] & 1 if area.hole else drawn[0]


def compressed(mask: np.ndarray) -> dict:
    run_lengths = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(map(int, run_lengths["size"])), "counts": run_lengths["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    """Run lengths as plain numbers, down the columns, beginning with zeros."""
    pixels = np.asarray(mask).astype(np.uint8).T.ravel()
    ends = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff(np.concatenate([[0], ends, [pixels.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts if not pixels[0] else [0, *counts]}


def record(scene: Scene, image_id: int, area: Area, number: int, segmentation, crowd: int = 0, ids=GAPS) -> dict:
    """One annotation as cocodataset.org writes it."""
    mask = mask_of(area, scene)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": ids[area.name],
        "segmentation": segmentation,
        "area": float(mask.sum()),
        "bbox": [float(value) for value in box],
        "iscrowd": crowd,
    }


def annotations_of(scene: Scene, image_id: int, first: int) -> list[dict]:
    """Every kind of segmentation in turn; records stand in no useful order, as the small must lie on the large."""
    made = []
    for area in scene.areas:
        if area.hole:
            segmentation = compressed(mask_of(area, scene))
        elif len(made) == 3:
            segmentation = uncompressed(mask_of(area, scene))
        else:
            segmentation = [flat(area.ring)]
        made.append(record(scene, image_id, area, first + len(made), segmentation))
    if scene.stem == "yard":
        crowd = Area("lamp", ((0, 0), (40, 0), (40, 30), (0, 30)))
        made.append(record(scene, image_id, crowd, first + len(made), uncompressed(mask_of(crowd, scene)), crowd=1))
        parts = [flat(((70, 2), (80, 2), (75, 9))), flat(((84.5, 3.5), (93.5, 3.5), (93.5, 9), (84.5, 9)))]
        made.append(record(scene, image_id, Area("grass", ((70, 2), (93.5, 9), (75, 9))), first + len(made), parts))
        run_lengths = coco_mask.merge(coco_mask.frPyObjects(parts, scene.height, scene.width))
        made[-1]["area"] = float(coco_mask.area(run_lengths))
        made[-1]["bbox"] = coco_mask.toBbox(run_lengths).tolist()
    return made[::-1]


def draw(coco: COCO, names_by_id: dict[int, str]) -> dict[str, np.ndarray]:
    """Return label maps from `annToMask`."""
    maps = {}
    for image_id, image in coco.imgs.items():
        label = np.zeros((image["height"], image["width"]), np.uint8)
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        masks = [(entry, coco.annToMask(entry).astype(bool)) for entry in found]
        for entry, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):
            label[mask] = 1 + NAMES.index(names_by_id[entry["category_id"]])
        maps[Path(image["file_name"]).stem] = label
    return maps


def read_back(*paths: Path) -> dict[str, np.ndarray]:
    maps = {}
    for path in paths:
        coco = COCO(str(path))
        maps |= draw(coco, {number: entry["name"] for number, entry in coco.cats.items()})
    return maps


def write(path: Path, scenes, categories: list[dict], made, **more) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, scene in enumerate(scenes, 1):
        image = {"id": 100 + number, "file_name": scene.file_name, "width": scene.width, "height": scene.height}
        images.append(image | {"license": 1})
        annotations += made(scene, 100 + number, 1000 + len(annotations))
    content = {"info": {"year": 2026}, "licenses": [], "images": images, "annotations": annotations}
    path.write_text(json.dumps(content | {"categories": categories} | more, ensure_ascii=False), encoding="utf-8")


def make_plain(folder: Path) -> None:
    """The layout of cocodataset.org."""
    categories = [{"id": number, "name": name, "supercategory": "garden"} for name, number in GAPS.items()]
    paths = []
    for split in ("train", "val"):
        scenes = [scene for scene in (*SCENES, EMPTY) if scene.split == split]
        for scene in scenes:
            scene.save(folder / "export" / f"{split}2017")
        paths.append(folder / "export" / "annotations" / f"instances_{split}2017.json")
        write(paths[-1], scenes, categories, annotations_of)
    save_expected(folder / "expected", read_back(*paths), VALUES, f"layout by hand; {VERSIONS}")


def make_roboflow(folder: Path) -> None:
    """Roboflow: one folder for each split; category 0 stands above the others and has no annotation."""
    ids = {name: number for number, name in enumerate(sorted(NAMES), 1)}
    categories = [{"id": 0, "name": "garden-objects", "supercategory": "none"}]
    categories += [{"id": number, "name": name, "supercategory": "garden-objects"} for name, number in ids.items()]

    def made(scene: Scene, image_id: int, first: int) -> list[dict]:
        return [
            record(scene, image_id, area, first + position, [flat(area.ring)], ids=ids)
            for position, area in enumerate(scene.areas)
        ]

    paths = []
    for split, name in (("train", "train"), ("val", "valid")):
        scenes = [scene for scene in SCENES if scene.split == split]
        for scene in scenes:
            place = folder / "export" / name
            place.mkdir(parents=True, exist_ok=True)
            scene.picture().save(place / scene.file_name)  # Roboflow turns pictures upright
        paths.append(folder / "export" / name / "_annotations.coco.json")
        write(paths[-1], scenes, categories, made)
    save_expected(folder / "expected", read_back(*paths), VALUES, f"layout by hand; {VERSIONS}")


def make_datumaro(folder: Path) -> None:
    """datumaro writes the layout that CVAT exports ("COCO 1.0")."""
    items, numbers = [], itertools.count(1)
    for scene in SCENES:
        upright = np.asarray(scene.picture())[..., ::-1]
        annotations = [
            Mask(mask_of(area, scene), label=NAMES.index(area.name), id=number, group=number)
            if area.hole
            else Polygon(flat(area.ring), label=NAMES.index(area.name), id=number, group=number)
            for area, number in zip(scene.areas, numbers, strict=False)
        ]
        media = Image.from_numpy(data=upright, ext=".jpg")
        items.append(DatasetItem(id=scene.stem, subset=scene.split, media=media, annotations=annotations))
    Dataset.from_iterable(items, categories=list(NAMES)).export(
        str(folder / "export"), "coco_instances", save_media=True
    )
    for path in (folder / "export").rglob("*.jpg"):
        PillowImage.open(path).save(path, quality=50)
    maps = read_back(*sorted((folder / "export" / "annotations").glob("*.json")))
    save_expected(folder / "expected", maps, VALUES, f"datumaro {version('datumaro')}; {VERSIONS}")


for name, make in (("coco", make_plain), ("coco_roboflow", make_roboflow), ("coco_datumaro", make_datumaro)):
    shutil.rmtree(HERE / name, ignore_errors=True)
    make(HERE / name)

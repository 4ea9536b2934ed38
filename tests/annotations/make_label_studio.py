# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Make `label_studio/` with label-studio-converter.

    pip install label-studio-converter==0.0.59 pycocotools==2.0.11 && python make_label_studio.py

The packing of brush strokes and its reading are the converter's own; polygons are turned from percent to pixels as it
does and drawn by pycocotools. The frame of the JSON is written by hand, as the program exports it.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
from label_studio_converter import brush
from pycocotools import mask as coco_mask
from scenes import EMPTY, NAMES, SCENES, Area, Scene, save_expected

HERE = Path(__file__).parent
VERSIONS = f"label-studio-converter {version('label-studio-converter')}, pycocotools {version('pycocotools')}"


def drawn(ring, scene: Scene) -> np.ndarray:
    flat = [float(value) for point in ring for value in point]
    return coco_mask.decode(coco_mask.frPyObjects([flat], scene.height, scene.width))[..., 0]


def result(area: Area, scene: Scene, number: int) -> dict:
    """One region; areas with a hole are brush strokes."""
    common = {
        "original_width": scene.width,
        "original_height": scene.height,
        "image_rotation": 0,
        "id": f"r{number}",
        "from_name": "brush" if area.hole else "label",
        "to_name": "image",
        "origin": "manual",
    }
    if area.hole:
        mask = (drawn(area.ring, scene) & ~drawn(area.hole, scene) & 1) * 255
        value = {"format": "rle", "rle": brush.mask2rle(mask.astype(np.uint8)), "brushlabels": [area.name]}
        return common | {"value": value, "type": "brushlabels"}
    points = [[x * 100 / scene.width, y * 100 / scene.height] for x, y in area.ring]
    value = {"points": points, "closed": True, "polygonlabels": [area.name]}
    return common | {"value": value, "type": "polygonlabels"}


def label_map(results: list[dict], scene: Scene) -> np.ndarray:
    """Draw results in their order."""
    label = np.zeros((scene.height, scene.width), np.uint8)
    for entry in results:
        if entry["type"] == "brushlabels":
            flat = entry | entry["value"]
            (mask,) = brush.decode_from_annotation("image", [flat]).values()
        else:
            points = np.array(entry["value"]["points"]) * (scene.width / 100, scene.height / 100)
            mask = drawn(points.tolist(), scene)
        label[mask > 0] = 1 + NAMES.index(entry["value"][entry["type"]][0])
    return label


def main() -> None:
    folder = HERE / "label_studio"
    shutil.rmtree(folder, ignore_errors=True)
    tasks, maps = [], {}
    for number, scene in enumerate((*SCENES, EMPTY), 1):
        uploaded = f"{number:08x}-{scene.file_name.replace(' ', '_')}"
        scene.save(folder / "export" / "images")
        (folder / "export" / "images" / scene.file_name).rename(folder / "export" / "images" / uploaded)
        results = [result(area, scene, position) for position, area in enumerate(scene.areas)]
        annotation = {
            "id": number,
            "completed_by": 1,
            "result": results,
            "was_cancelled": False,
            "ground_truth": False,
        }
        tasks.append(
            {
                "id": 10 + number,
                "annotations": [annotation],
                "file_upload": uploaded,
                "drafts": [],
                "predictions": [],
                "data": {"image": f"/data/upload/1/{uploaded}"},
                "meta": {},
                "project": 1,
            }
        )
        maps[Path(uploaded).stem] = label_map(results, scene)
    (folder / "export" / "project-1-at-2026-11-28-08-00-0badcafe.json").write_text(
        json.dumps(tasks, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
    save_expected(folder / "expected", maps, {0: None} | dict(enumerate(NAMES, 1)), f"layout by hand; {VERSIONS}")


main()

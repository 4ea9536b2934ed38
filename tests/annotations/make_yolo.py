# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Make `yolo*/` with ultralytics' own code.

    pip install ultralytics==8.4.190 && python make_yolo.py

Text files come from `convert_coco` (which joins outline and hole into one ring), label maps from
`PolygonSemanticDataset` and `SemanticDataset`. `data.yaml` and folders are written as ultralytics, Roboflow and CVAT
document them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import PIL
import ultralytics
from PIL import Image
from scenes import EMPTY, NAMES, SCENES, Scene, save_expected
from ultralytics.data.converter import convert_coco
from ultralytics.data.dataset import PolygonSemanticDataset, SemanticDataset
from ultralytics.data.utils import add_polygon_background, check_det_dataset

HERE = Path(__file__).parent
VERSIONS = f"ultralytics {ultralytics.__version__}"
SPLITS = {"train": "train", "val": "valid"}


def clipped(ring, scene: Scene) -> list[float]:
    """Points of a ring moved into the picture, as every exporter does, for ultralytics skips the picture otherwise."""
    scene_size = scene.width, scene.height
    return [min(max(value, 0.0), size) for point in ring for value, size in zip(point, scene_size, strict=True)]


def label_texts() -> dict[str, str]:
    """Return the text file of each picture, written by ultralytics."""
    images, annotations = [], []
    for number, scene in enumerate(SCENES, 1):
        images.append({"id": number, "file_name": scene.file_name, "width": scene.width, "height": scene.height})
        for area in scene.areas:
            rings = [clipped(ring, scene) for ring in (area.ring, area.hole) if ring]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": NAMES.index(area.name) + 1}
            annotations.append(entry | {"segmentation": rings, "bbox": [0, 0, 1, 1], "iscrowd": 0})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "instances_all.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        convert_coco(folder, f"{folder}/out", use_segments=True, cls91to80=False)
        return {path.stem: path.read_text() for path in Path(folder).rglob("*.txt")}


def draw(yaml: Path, kind: type = PolygonSemanticDataset) -> dict[str, np.ndarray]:
    """Return the label maps that ultralytics trains on; `path` is made absolute, it depends on the settings there."""
    maps, lines = {}, yaml.read_text(encoding="utf-8").splitlines()
    for split in ("train", "val"):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "data.yaml"
            kept = [line for line in lines if not line.startswith("path:")]
            copy.write_text("\n".join([*kept, f"path: {yaml.parent}"]), encoding="utf-8")
            data = add_polygon_background(check_det_dataset(str(copy)))
        dataset = kind(img_path=data[split], data=data, task="semantic", augment=False, imgsz=96)
        for number, file in enumerate(dataset.im_files):
            size = dataset.labels[number]["shape"]
            maps[Path(file).stem] = dataset.load_mask(number, image_shape=size)
    for cache in yaml.parent.rglob("*.cache"):
        cache.unlink()
    return maps


def make(name: str, picture: str, text: str, yaml: str, lists: bool = False) -> None:
    """Write one layout.

    Args:
        name: Folder.
        picture: Folder of the pictures of a split.
        text: Folder of the text files of a split.
        yaml: Contents of `data.yaml`.
        lists: Whether `train.txt` and `val.txt` name the pictures.
    """
    export, texts = HERE / name / "export", label_texts()
    for scene in (*SCENES, EMPTY):
        split = {"split": scene.split, "roboflow": SPLITS[scene.split]}
        saved = scene.save(export / picture.format(**split))
        folder = export / text.format(**split)
        folder.mkdir(parents=True, exist_ok=True)
        if scene.stem in texts:
            (folder / f"{scene.stem}.txt").write_text(texts[scene.stem])
        if lists:
            with open(export / f"{scene.split}.txt", "a") as file:
                file.write(f"./{saved.relative_to(export).as_posix()}\n")
    (export / "data.yaml").write_text(yaml, encoding="utf-8")
    values = dict(enumerate(NAMES)) | {len(NAMES): None}
    save_expected(HERE / name / "expected", draw(export / "data.yaml"), values, VERSIONS)


def make_masks(name: str) -> None:
    """The form of ultralytics' semantic task: one PNG for each picture, here with a map of ids."""
    export, stored = HERE / name / "export", {1: "grass", 2: "gravel path", 4: "Büsche", 7: "pond", 9: "lamp"}
    ids = {name: value for value, name in stored.items()}
    for scene in SCENES:
        scene.save(export / "images" / scene.split)
        label = Image.new("L", (scene.width, scene.height), 0)
        draw_on = PIL.ImageDraw.Draw(label)
        for area in scene.areas:
            draw_on.polygon(area.ring, fill=ids[area.name])
        folder = export / "masks" / scene.split
        folder.mkdir(parents=True, exist_ok=True)
        label.save(folder / f"{scene.stem}.png")
    names = "".join(f"  {position}: {name}\n" for position, name in enumerate(NAMES))
    mapping = "".join(f"  {value}: {NAMES.index(name)}\n" for value, name in stored.items())
    (export / "data.yaml").write_text(
        f"path: .\ntrain: images/train\nval: images/val\nmasks_dir: masks\nnames:\n{names}"
        f"label_mapping:\n  -1: ignore_label\n  0: ignore_label\n{mapping}",
        encoding="utf-8",
    )
    values = dict(enumerate(NAMES)) | {255: "ignored"}
    save_expected(HERE / name / "expected", draw(export / "data.yaml", SemanticDataset), values, VERSIONS)


def main() -> None:
    for name in ("yolo", "yolo_roboflow", "yolo_cvat", "yolo_masks"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    names = "names:\n" + "".join(f"  {position}: {name}\n" for position, name in enumerate(NAMES))
    make(
        "yolo",
        "images/{split}",
        "labels/{split}",
        f"path: ../datasets/garden # dataset root dir\ntrain: images/train\nval: images/val\ntest: # none\n\n{names}",
    )
    make(
        "yolo_roboflow",
        "{roboflow}/images",
        "{roboflow}/labels",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
        f"nc: {len(NAMES)}\nnames: {json.dumps(list(NAMES), ensure_ascii=False)}\n\n"
        "roboflow:\n  workspace: garden\n  project: garden\n  version: 1\n",
    )
    make(
        "yolo_cvat",
        "images/{split}",
        "labels/{split}",
        f"{names}path: .\ntrain: train.txt\nval: val.txt\n",
        lists=True,
    )
    make_masks("yolo_masks")


main()

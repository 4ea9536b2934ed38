# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Make `labelme/` and `labelme2voc*/` with labelme's own code.

    pip install labelme==6.3.1 && QT_QPA_PLATFORM=offscreen python make_labelme.py

The files are written by `LabelFile.save`, the label maps by `shapes_to_label`, the palette PNGs by imgviz (the library
labelme writes them with). The script `labelme2voc.py` lies in labelme's repository and not in its package: its two
folder layouts (before and since version 5.3) are written here as it writes them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import imgviz
import labelme
import numpy as np
import PIL
from labelme._label_file import LabelFile
from labelme.utils import img_arr_to_b64, shapes_to_label
from scenes import EMPTY, NAMES, SCENES, save_expected

HERE = Path(__file__).parent
VERSIONS = f"labelme {labelme.__version__}, imgviz {imgviz.__version__}, Pillow {PIL.__version__}"
LABELS = ("__ignore__", "_background_", *NAMES)
IDS = {name: position - 1 for position, name in enumerate(LABELS)}


def shape(label: str, points, shape_type: str = "polygon", mask: str | None = None) -> dict:
    """One shape as the window of labelme stores it."""
    return {
        "label": label,
        "points": [list(map(float, point)) for point in points],
        "group_id": None,
        "description": "",
        "shape_type": shape_type,
        "flags": {},
        "mask": mask,
    }


def shapes_of(scene) -> list[dict]:
    """The polygons of a scene; one picture has every other kind of shape too."""
    shapes = [shape(area.name, area.ring) for area in scene.areas]
    if scene.stem == "yard":
        leaf = np.hypot(*np.mgrid[-6:7, -9:10]) < 7.5
        shapes += [
            shape("__ignore__", [(80.0, 2.0), (94.5, 2.0), (94.5, 9.5), (80.0, 9.5)]),
            shape("_background_", [(64.5, 36.5), (76, 34.5), (74.5, 44.25), (66.25, 45)]),
            shape("gravel path", [(30.25, 3.5), (22.0, 10.75)], "rectangle"),
            shape("Büsche", [(60.0, 8.0), (65.5, 10.5)], "circle"),
            shape("pond", [(2.0, 5.0), (9.5, 8.0), (16.0, 3.0)], "linestrip"),
            shape("pond", [(72.5, 4.0), (76.0, 14.0)], "line"),
            shape("gravel path", [(90.0, 58.0)], "point"),
            shape("Büsche", [(36.0, 44.0), (54.0, 56.0)], "mask", img_arr_to_b64(leaf.astype(np.uint8))),
            shape("grass", [(10.5, 12.0), (15.5, 10.5), (16.5, 14.0), (11.5, 15.5)], "oriented_rectangle"),
        ]
    return shapes


def save(scene, folder: Path, embedded: bool) -> np.ndarray:
    """Write a picture and its file; return labelme's own label map."""
    picture = scene.save(folder)
    path = str(folder / f"{scene.stem}.json")
    LabelFile().save(
        path,
        shapes=shapes_of(scene),
        image_path=picture.name,
        image_height=scene.height,
        image_width=scene.width,
        image_data=LabelFile.load_image_file(str(picture)) if embedded else None,
        flags={},
    )
    return shapes_to_label((scene.height, scene.width), LabelFile(path).shapes, IDS)[0]


def main() -> None:
    for name in ("labelme", "labelme2voc", "labelme2voc_before_5.3"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    export = HERE / "labelme" / "export"
    maps = {scene.stem: save(scene, export, scene.stem == "turned") for scene in (*SCENES, EMPTY)}
    (export / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    stored = {stem: np.where(label < 0, 255, label) for stem, label in maps.items()}
    values = {255: "ignored"} | {number: name for name, number in IDS.items() if number >= 0}
    save_expected(HERE / "labelme" / "expected", stored, values, VERSIONS)
    voc, old = HERE / "labelme2voc", HERE / "labelme2voc_before_5.3"
    pictures = {scene.stem: np.asarray(scene.picture()) for scene in SCENES}  # labelme turns them upright on reading
    written_by = f"layout of labelme2voc.py by hand; {VERSIONS}"
    save_voc(voc / "export", "SegmentationClass", None, pictures, maps)
    save_expected(voc / "expected", {stem: stored[stem] for stem in pictures}, values, written_by)
    window = np.s_[30:58, 36:70]  # of the two larger pictures, as .npy files are large
    pictures = {stem: picture[window] for stem, picture in pictures.items() if stem != "turned"}
    save_voc(
        old / "export", "SegmentationClassPNG", "SegmentationClass", pictures, {k: maps[k][window] for k in pictures}
    )
    save_expected(old / "expected", {stem: stored[stem][window] for stem in pictures}, values, written_by)


def save_voc(export: Path, png_folder: str, npy_folder: str | None, pictures: dict, maps: dict) -> None:
    """Do what labelme2voc.py does; without a `npy_folder` as with its flag `--nonpy`."""
    for name in ("JPEGImages", png_folder, "SegmentationClassVisualization", *filter(None, [npy_folder])):
        (export / name).mkdir(parents=True)
    (export / "class_names.txt").write_text("\n".join(LABELS[1:]), encoding="utf-8")
    for stem, picture in pictures.items():
        imgviz.io.imsave(str(export / "JPEGImages" / f"{stem}.jpg"), picture)
        imgviz.io.lblsave(str(export / png_folder / f"{stem}.png"), maps[stem].astype(np.uint8))
        if npy_folder:
            np.save(export / npy_folder / f"{stem}.npy", maps[stem])
        drawn = imgviz.label2rgb(maps[stem].astype(np.uint8), imgviz.rgb2gray(picture), label_names=None)
        imgviz.io.imsave(str(export / "SegmentationClassVisualization" / f"{stem}.jpg"), drawn)


main()

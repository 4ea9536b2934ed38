# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Make `voc/`, `cvat_masks/`, `cvat_images*/`, `coco_panoptic/`, `roboflow_masks/` and `kaggle/` with datumaro.

    pip install datumaro==1.13.12 imgviz==2.1.0 && python make_datumaro.py

CVAT writes its "Segmentation mask 1.1" with a copy of datumaro, so that export is the tool's own. CVAT's XML is
written twice: by datumaro, and by hand as CVAT's server writes it (subsets, run lengths within a box, colours). Label
maps are read back and drawn by datumaro. Roboflow and Kaggle have no code to install: their files are written by hand.
"""

from __future__ import annotations

import csv
import shutil
from importlib.metadata import version
from pathlib import Path

import imgviz
import numpy as np
from datumaro.components.annotation import AnnotationType, CompiledMask, LabelCategories, Mask, MaskCategories, Polygon
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image
from datumaro.plugins.data_formats.cvat.base import CvatBase
from datumaro.util.mask_tools import rles_to_mask
from PIL import Image as PillowImage
from scenes import COLORS, EMPTY, NAMES, SCENES, Area, Scene, save_expected

HERE = Path(__file__).parent
DATUMARO = f"datumaro {version('datumaro')}"
VALUES = {0: None} | dict(enumerate(NAMES, 1))


def flat(ring) -> list[float]:
    return [float(value) for point in ring for value in point]


def mask_of(area: Area, scene: Scene) -> np.ndarray:
    drawn = [rles_to_mask([flat(ring)], scene.width, scene.height) for ring in (area.ring, area.hole) if ring]
    return (drawn[0].astype(bool) & ~drawn[1].astype(bool) if area.hole else drawn[0]).astype(np.uint8)


def label_map(scene: Scene) -> np.ndarray:
    """0 outside, else 1 + class."""
    label = np.zeros((scene.height, scene.width), np.uint8)
    for area in scene.areas:
        label[mask_of(area, scene) > 0] = 1 + NAMES.index(area.name)
    return label


def items(masks: bool, ext: str = ".jpg") -> list[DatasetItem]:
    """The scenes for datumaro; areas with a hole are masks in any case."""
    found = []
    for scene in SCENES:
        annotations = [
            Mask(mask_of(area, scene), label=NAMES.index(area.name), id=number, z_order=number)
            if area.hole or masks
            else Polygon(flat(area.ring), label=NAMES.index(area.name), id=number, z_order=number)
            for number, area in enumerate(scene.areas, 1)
        ]
        media = Image.from_numpy(data=np.asarray(scene.picture())[..., ::-1], ext=ext)
        found.append(DatasetItem(id=scene.stem, subset=scene.split, media=media, annotations=annotations))
    return found


def shrink(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        PillowImage.open(path).save(path, quality=50)


def compiled(item: DatasetItem) -> np.ndarray:
    """Class map of an item, as CVAT compiles one."""
    masks = [annotation for annotation in item.annotations if annotation.type == AnnotationType.mask]
    if not masks:
        return np.zeros(item.media.size, np.uint8)
    return CompiledMask.from_instance_masks(masks, instance_labels=[1 + mask.label for mask in masks]).class_mask


def drawn(dataset: Dataset) -> dict[str, np.ndarray]:
    """Label maps of a data set: 0 outside, else 1 + class."""
    names = [item.name for item in dataset.categories()[AnnotationType.label].items]
    table = np.array([0, *(1 + NAMES.index(name) if name in NAMES else 0 for name in names)])
    dataset.transform("polygons_to_masks").transform("boxes_to_masks")
    return {item.id: table[compiled(item)] for item in dataset}


def make_cvat_masks(folder: Path) -> None:
    """The background comes first and the other labels in alphabetical order, as CVAT sorts them."""
    export, names = folder / "export", ("background", *sorted(NAMES))
    categories = {
        AnnotationType.label: LabelCategories.from_iterable(names),
        AnnotationType.mask: MaskCategories({k: COLORS.get(name, (0, 0, 0)) for k, name in enumerate(names)}),
    }
    sorted_items = [
        item.wrap(annotations=[mask.wrap(label=names.index(NAMES[mask.label])) for mask in item.annotations])
        for item in items(masks=True)
    ]
    Dataset.from_iterable(sorted_items, categories=categories).export(
        str(export), "voc_segmentation", save_media=True, apply_colormap=True
    )
    shrink(export)
    maps = drawn(Dataset.import_from(str(export), "voc_segmentation"))
    save_expected(folder / "expected", maps, VALUES | {0: "background"}, DATUMARO)


VOC = dict(zip(NAMES, ("sheep", "boat", "pottedplant", "diningtable", "car"), strict=True))


def make_voc(folder: Path) -> None:
    """The layout of the challenge: palette PNGs, 255 around every object, no list of class names."""
    from datumaro.plugins.data_formats.voc.format import VocLabel

    export, maps = folder / "export", {}
    for place in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (export / place).mkdir(parents=True)
    numbers = np.array([0, *(VocLabel[VOC[name]].value for name in NAMES)])
    for scene in SCENES:
        label = label_map(scene)
        border = np.zeros(label.shape, bool)
        for axis in (0, 1):
            border |= label != np.roll(label, 1, axis)
        label = np.where(border, 255, numbers[label]).astype(np.uint8)
        scene.picture().save(export / "JPEGImages" / f"{scene.stem}.jpg", quality=50)
        imgviz.io.lblsave(str(export / "SegmentationClass" / f"{scene.stem}.png"), label)
        for name in (scene.split, "trainval"):
            with open(export / "ImageSets" / "Segmentation" / f"{name}.txt", "a") as file:
                file.write(f"{scene.stem}\n")
        maps[scene.stem] = label
    values = {
        number: "ignored" if name == "ignored" else name for number, name in ((v.value, v.name) for v in VocLabel)
    }
    save_expected(folder / "expected", maps, values, f"layout by hand, palette PNGs by imgviz {imgviz.__version__}")


def cvat_polygon(area: Area, order: int) -> str:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in area.ring)
    head = f'<polygon label="{area.name}" source="manual" occluded="0"'
    return f'{head} points="{points}" z_order="{order}">\n    </polygon>'


def cvat_mask(area: Area, scene: Scene, order: int) -> str:
    """Runs along the rows of the box of a mask, as CVAT's server writes them."""
    mask = mask_of(area, scene)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pixels = inside.ravel()
    ends = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff(np.concatenate([[0], ends, [pixels.size]])).tolist()
    counts = counts if not pixels[0] else [0, *counts]
    return (
        f'<mask label="{area.name}" source="semi-auto" occluded="0" rle="{str(counts)[1:-1]}" left="{columns[0]}" '
        f'top="{rows[0]}" width="{inside.shape[1]}" height="{inside.shape[0]}" z_order="{order}">\n    </mask>'
    )


def cvat_image(scene: Scene, number: int) -> str:
    """One picture; its shapes stand in another order than they lie."""
    shapes = [
        cvat_mask(area, scene, order) if area.hole or order == 3 else cvat_polygon(area, order)
        for order, area in enumerate(scene.areas)
    ][::-1]
    if scene.stem == "yard":
        box = 'xtl="70.25" ytl="2.50" xbr="93.75" ybr="11.00" z_order="0"'
        shapes.append(f'<box label="lamp" source="manual" occluded="0" {box}>\n    </box>')
        shapes.append('<polyline label="pond" source="manual" occluded="0" points="3,3;20,9" z_order="0"></polyline>')
        shapes.append('<tag label="grass" source="manual"></tag>')
    subset = {"train": "Train", "val": "Validation"}[scene.split]
    return (
        f'  <image id="{number}" name="{scene.file_name}" subset="{subset}" task_id="{number}" width="{scene.width}" '
        f'height="{scene.height}">\n    ' + "\n    ".join(shapes) + "\n  </image>\n"
    )


def make_cvat_images(folder: Path) -> None:
    """CVAT's server: one file for a project, with subsets."""
    export = folder / "export"
    for scene in (*SCENES, EMPTY):
        scene.save(export / "images" / {"train": "Train", "val": "Validation"}[scene.split])
    labels = "".join(
        f"<label>\n<name>{name}</name>\n<color>#{bytes(color).hex()}</color>\n<type>any</type>\n<attributes>\n"
        "</attributes>\n</label>\n"
        for name, color in COLORS.items()
    )
    text = (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <project>\n'
        f"<id>1</id>\n<name>garden</name>\n<labels>\n{labels}</labels>\n<subsets>Train\nValidation</subsets>\n"
        "    </project>\n    <dumped>2026-11-28 08:00:00.000000+00:00</dumped>\n  </meta>\n"
    )
    text += "".join(cvat_image(scene, number) for number, scene in enumerate((*SCENES, EMPTY))) + "</annotations>\n"
    path = export / "annotations.xml"
    path.write_text(text, encoding="utf-8")
    maps = {}
    for subset in ("Train", "Validation"):
        read = CvatBase(str(path), subset=subset)
        kept = [item.wrap(subset=subset) for item in read]
        maps |= drawn(Dataset.from_iterable(kept, categories=read.categories()))
    save_expected(folder / "expected", maps, VALUES, f"layout by hand; {DATUMARO}")


def make_cvat_datumaro(folder: Path) -> None:
    export = folder / "export"
    Dataset.from_iterable(items(masks=False), categories=list(NAMES)).export(str(export), "cvat", save_media=True)
    shrink(export)
    maps = drawn(Dataset.import_from(str(export), "cvat"))
    save_expected(folder / "expected", maps, VALUES, DATUMARO)


def make_panoptic(folder: Path) -> None:
    export = folder / "export"
    Dataset.from_iterable(items(masks=True), categories=list(NAMES)).export(
        str(export), "coco_panoptic", save_media=True
    )
    shrink(export)
    maps = drawn(Dataset.import_from(str(export), "coco_panoptic"))
    save_expected(folder / "expected", maps, VALUES, DATUMARO)


def make_roboflow(folder: Path) -> None:
    export, maps = folder / "export", {}
    for scene in SCENES:
        place = export / {"train": "train", "val": "valid"}[scene.split]
        place.mkdir(parents=True, exist_ok=True)
        stem = f"{scene.file_name.replace('.', '_').replace(' ', '-')}.rf.{len(scene.stem):032x}"
        maps[stem] = label_map(scene)
        scene.picture().save(place / f"{stem}.jpg", quality=50)
        PillowImage.fromarray(maps[stem]).save(place / f"{stem}_mask.png")
        rows = "".join(f"{number}, {name}\n" for number, name in enumerate(("background", *NAMES)))
        (place / "_classes.csv").write_text(f"Pixel Value, Class\n{rows}", encoding="utf-8")
    (export / "README.roboflow.txt").write_text("garden - v1\nThe dataset includes 3 images.\n")
    save_expected(folder / "expected", maps, VALUES | {0: "background"}, "by hand, as Roboflow documents it")


def make_kaggle(folder: Path) -> None:
    export, maps = folder / "export", {}
    export.mkdir(parents=True)
    with open(export / "train.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["ImageId", "ClassId", "EncodedPixels"])
        for scene in (*SCENES, EMPTY):
            scene.save(export / "train_images")
            maps[scene.stem] = label_map(scene)
            for number, name in enumerate(NAMES, 1):
                pixels = np.concatenate([[0], (maps[scene.stem] == number).T.ravel(), [0]])
                ends = np.flatnonzero(np.diff(pixels)) + 1
                runs = " ".join(f"{start} {end - start}" for start, end in zip(ends[::2], ends[1::2], strict=True))
                if runs:
                    table.writerow([scene.file_name, name, runs])
            if not scene.areas:
                table.writerow([scene.file_name, "", ""])
    save_expected(folder / "expected", maps, VALUES, f"by hand, as competitions document it; polygons by {DATUMARO}")


for name, make in (
    ("voc", make_voc),
    ("cvat_masks", make_cvat_masks),
    ("cvat_images", make_cvat_images),
    ("cvat_images_datumaro", make_cvat_datumaro),
    ("coco_panoptic", make_panoptic),
    ("roboflow_masks", make_roboflow),
    ("kaggle", make_kaggle),
):
    shutil.rmtree(HERE / name, ignore_errors=True)
    make(HERE / name)

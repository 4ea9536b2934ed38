# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""ADE20K as in the scene parsing benchmark (SceneParse150): `ADEChallengeData2016/{images,annotations}/SPLIT`.

Annotations hold 0 for "other objects" and 1..150 for the classes. The full ADE20K data set with its thousands of
classes is another one.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from .file_tree import FileTree, Place, probe_values, published_splits, split_dataset
from .labels import AnnotationFormat
from .segmentation_data import SegmentationData

FOLDER = "ADEChallengeData2016"
SPLITS = {"train": "training", "validation": "validation"}

# Ordered by annotation value less one.
CLASS_NAMES: tuple[str, ...] = (
    "wall",
    "building",
    "sky",
    "floor",
    "tree",
    "ceiling",
    "road",
    "bed",
    "windowpane",
    "grass",
    "cabinet",
    "sidewalk",
    "person",
    "earth",
    "door",
    "table",
    "mountain",
    "plant",
    "curtain",
    "chair",
    "car",
    "water",
    "painting",
    "sofa",
    "shelf",
    "house",
    "sea",
    "mirror",
    "rug",
    "field",
    "armchair",
    "seat",
    "fence",
    "desk",
    "rock",
    "wardrobe",
    "lamp",
    "bathtub",
    "railing",
    "cushion",
    "base",
    "box",
    "column",
    "signboard",
    "chest of drawers",
    "counter",
    "sand",
    "sink",
    "skyscraper",
    "fireplace",
    "refrigerator",
    "grandstand",
    "path",
    "stairs",
    "runway",
    "case",
    "pool table",
    "pillow",
    "screen door",
    "stairway",
    "river",
    "bridge",
    "bookcase",
    "blind",
    "coffee table",
    "toilet",
    "flower",
    "book",
    "hill",
    "bench",
    "countertop",
    "stove",
    "palm",
    "kitchen island",
    "computer",
    "swivel chair",
    "boat",
    "bar",
    "arcade machine",
    "hovel",
    "bus",
    "towel",
    "light",
    "truck",
    "tower",
    "chandelier",
    "awning",
    "streetlight",
    "booth",
    "television receiver",
    "airplane",
    "dirt track",
    "apparel",
    "pole",
    "land",
    "bannister",
    "escalator",
    "ottoman",
    "bottle",
    "buffet",
    "poster",
    "stage",
    "van",
    "ship",
    "fountain",
    "conveyer belt",
    "canopy",
    "washer",
    "plaything",
    "swimming pool",
    "stool",
    "barrel",
    "basket",
    "waterfall",
    "tent",
    "bag",
    "minibike",
    "cradle",
    "oven",
    "ball",
    "food",
    "step",
    "tank",
    "trade name",
    "microwave",
    "pot",
    "animal",
    "bicycle",
    "lake",
    "dishwasher",
    "screen",
    "blanket",
    "sculpture",
    "hood",
    "sconce",
    "vase",
    "traffic light",
    "tray",
    "ashcan",
    "fan",
    "pier",
    "crt screen",
    "plate",
    "monitor",
    "bulletin board",
    "shower",
    "radiator",
    "glass",
    "clock",
    "flag",
)

# As published with the benchmark: one colour is given to two classes.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (120, 120, 120),  # wall
    (180, 120, 120),  # building
    (6, 230, 230),  # sky
    (80, 50, 50),  # floor
    (4, 200, 3),  # tree
    (120, 120, 80),  # ceiling
    (140, 140, 140),  # road
    (204, 5, 255),  # bed
    (230, 230, 230),  # windowpane
    (4, 250, 7),  # grass
    (224, 5, 255),  # cabinet
    (235, 255, 7),  # sidewalk
    (150, 5, 61),  # person
    (120, 120, 70),  # earth
    (8, 255, 51),  # door
    (255, 6, 82),  # table
    (143, 255, 140),  # mountain
    (204, 255, 4),  # plant
    (255, 51, 7),  # curtain
    (204, 70, 3),  # chair
    (0, 102, 200),  # car
    (61, 230, 250),  # water
    (255, 6, 51),  # painting
    (11, 102, 255),  # sofa
    (255, 7, 71),  # shelf
    (255, 9, 224),  # house
    (9, 7, 230),  # sea
    (220, 220, 220),  # mirror
    (255, 9, 92),  # rug
    (112, 9, 255),  # field
    (8, 255, 214),  # armchair
    (7, 255, 224),  # seat
    (255, 184, 6),  # fence
    (10, 255, 71),  # desk
    (255, 41, 10),  # rock
    (7, 255, 255),  # wardrobe
    (224, 255, 8),  # lamp
    (102, 8, 255),  # bathtub
    (255, 61, 6),  # railing
    (255, 194, 7),  # cushion
    (255, 122, 8),  # base
    (0, 255, 20),  # box
    (255, 8, 41),  # column
    (255, 5, 153),  # signboard
    (6, 51, 255),  # chest of drawers
    (235, 12, 255),  # counter
    (160, 150, 20),  # sand
    (0, 163, 255),  # sink
    (140, 140, 140),  # skyscraper
    (250, 10, 15),  # fireplace
    (20, 255, 0),  # refrigerator
    (31, 255, 0),  # grandstand
    (255, 31, 0),  # path
    (255, 224, 0),  # stairs
    (153, 255, 0),  # runway
    (0, 0, 255),  # case
    (255, 71, 0),  # pool table
    (0, 235, 255),  # pillow
    (0, 173, 255),  # screen door
    (31, 0, 255),  # stairway
    (11, 200, 200),  # river
    (255, 82, 0),  # bridge
    (0, 255, 245),  # bookcase
    (0, 61, 255),  # blind
    (0, 255, 112),  # coffee table
    (0, 255, 133),  # toilet
    (255, 0, 0),  # flower
    (255, 163, 0),  # book
    (255, 102, 0),  # hill
    (194, 255, 0),  # bench
    (0, 143, 255),  # countertop
    (51, 255, 0),  # stove
    (0, 82, 255),  # palm
    (0, 255, 41),  # kitchen island
    (0, 255, 173),  # computer
    (10, 0, 255),  # swivel chair
    (173, 255, 0),  # boat
    (0, 255, 153),  # bar
    (255, 92, 0),  # arcade machine
    (255, 0, 255),  # hovel
    (255, 0, 245),  # bus
    (255, 0, 102),  # towel
    (255, 173, 0),  # light
    (255, 0, 20),  # truck
    (255, 184, 184),  # tower
    (0, 31, 255),  # chandelier
    (0, 255, 61),  # awning
    (0, 71, 255),  # streetlight
    (255, 0, 204),  # booth
    (0, 255, 194),  # television receiver
    (0, 255, 82),  # airplane
    (0, 10, 255),  # dirt track
    (0, 112, 255),  # apparel
    (51, 0, 255),  # pole
    (0, 194, 255),  # land
    (0, 122, 255),  # bannister
    (0, 255, 163),  # escalator
    (255, 153, 0),  # ottoman
    (0, 255, 10),  # bottle
    (255, 112, 0),  # buffet
    (143, 255, 0),  # poster
    (82, 0, 255),  # stage
    (163, 255, 0),  # van
    (255, 235, 0),  # ship
    (8, 184, 170),  # fountain
    (133, 0, 255),  # conveyer belt
    (0, 255, 92),  # canopy
    (184, 0, 255),  # washer
    (255, 0, 31),  # plaything
    (0, 184, 255),  # swimming pool
    (0, 214, 255),  # stool
    (255, 0, 112),  # barrel
    (92, 255, 0),  # basket
    (0, 224, 255),  # waterfall
    (112, 224, 255),  # tent
    (70, 184, 160),  # bag
    (163, 0, 255),  # minibike
    (153, 0, 255),  # cradle
    (71, 255, 0),  # oven
    (255, 0, 163),  # ball
    (255, 204, 0),  # food
    (255, 0, 143),  # step
    (0, 255, 235),  # tank
    (133, 255, 0),  # trade name
    (255, 0, 235),  # microwave
    (245, 0, 255),  # pot
    (255, 0, 122),  # animal
    (255, 245, 0),  # bicycle
    (10, 190, 212),  # lake
    (214, 255, 0),  # dishwasher
    (0, 204, 255),  # screen
    (20, 0, 255),  # blanket
    (255, 255, 0),  # sculpture
    (0, 153, 255),  # hood
    (0, 41, 255),  # sconce
    (0, 255, 204),  # vase
    (41, 0, 255),  # traffic light
    (41, 255, 0),  # tray
    (173, 0, 255),  # ashcan
    (0, 245, 255),  # fan
    (71, 0, 255),  # pier
    (122, 0, 255),  # crt screen
    (0, 255, 184),  # plate
    (0, 92, 255),  # monitor
    (184, 255, 0),  # bulletin board
    (0, 133, 255),  # shower
    (255, 214, 0),  # radiator
    (25, 194, 194),  # glass
    (102, 255, 0),  # clock
    (92, 0, 255),  # flag
)

# What the benchmark server calls each class.
SUBMISSION_IDS = tuple(range(1, len(CLASS_NAMES) + 1))


def load_ade20k(data_root: str | Path, reduce_zero_label: bool = True) -> SegmentationData:
    """Load SceneParse150 (Zhou et al., "Scene Parsing through ADE20K Dataset", 2017).

    Args:
        data_root: `ADEChallengeData2016`, the folder around it, or `ADEChallengeData2016.zip` (which need not be
            unpacked) or the folder it lies in.
        reduce_zero_label: Annotations are as published: 0 becomes 255 (ignored) and k becomes k-1. False for
            annotations that somebody has converted to 0..149 and 255 already.

    Raises:
        ValueError: A folder or file is missing, or annotations are those of another data set. The message names the
            path.
    """
    tree = FileTree(data_root, (f"{FOLDER}.zip",))
    base = f"{FOLDER}/" if tree.exists(FOLDER) else ""
    _refuse_full_data_set(tree, base)
    images = {role: Place(f"{base}images/{split}", ".jpg") for role, split in SPLITS.items()}
    annotations = {role: Place(f"{base}annotations/{split}", ".png") for role, split in SPLITS.items()}
    _, pairs = published_splits(tree, images, [annotations])
    annotation_format = AnnotationFormat(
        len(CLASS_NAMES),
        reduce_zero_label=reduce_zero_label,
        explain=_explain if reduce_zero_label else _explain_reduced,
    )
    _warn_when_reduced_wrongly(probe_values(pairs, annotation_format), reduce_zero_label, data_root)
    return SegmentationData(
        train=split_dataset(pairs["train"]),
        validation=split_dataset(pairs["validation"]),
        class_names=CLASS_NAMES,
        palette=PALETTE,
        name="ade20k",
        annotation_format=annotation_format,
        submission_ids=SUBMISSION_IDS,
    )


def _refuse_full_data_set(tree: FileTree, base: str) -> None:
    if tree.exists(f"{base}annotations"):
        return
    marks = [name for name in tree.subfolders("") if name.startswith("ADE20K_20")]
    marks += [f"{base}images/ADE"] if tree.exists(f"{base}images/ADE") else []
    marks += [f"{base}images/training/{scene}" for scene in tree.subfolders(f"{base}images/training")]
    if marks:
        raise ValueError(
            f"{tree.place(marks[0])}: this is the full ADE20K data set, not SceneParse150, on which results are "
            f"published; download {FOLDER}.zip"
        )


def _explain(values: np.ndarray | None) -> str:
    if values is None:
        return (
            f"colour annotations, with the class in red and green, are those of the full ADE20K data set; "
            f"SceneParse150 is in {FOLDER}.zip"
        )
    return (
        f"SceneParse150 has 0 (other objects) and 1..150; larger numbers occur in the full ADE20K data set (download "
        f"{FOLDER}.zip) and in annotations saved as JPEG or resized smoothly"
    )


def _explain_reduced(values: np.ndarray | None) -> str:
    if values is not None and values.tolist() == [len(CLASS_NAMES)]:
        return "these annotations are as published, where 0 means 'other objects': set reduce_zero_label=True"
    return _explain(values)


def _warn_when_reduced_wrongly(values: set[int], reduce_zero_label: bool, data_root: str | Path) -> None:
    """SceneParse150 as published holds no 255, and once converted nearly every picture does."""
    if reduce_zero_label and 255 in values:
        warnings.warn(
            f"{data_root}: annotations hold 255, which they do not as published; if 0 is 'wall' in them, they are "
            f"converted already: set reduce_zero_label=False, or every class is taken for the one before it",
            stacklevel=4,
        )
    if not reduce_zero_label and 255 not in values:
        warnings.warn(
            f"{data_root}: no annotation looked at holds 255, as is so in SceneParse150 as published; if 0 is 'other "
            f"objects' in them, set reduce_zero_label=True, or every class is taken for the one after it",
            stacklevel=4,
        )

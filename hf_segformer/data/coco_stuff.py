# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""COCO-Stuff 164k: the pictures of COCO 2017 with 80 things and 91 kinds of stuff.

The published pixel maps (`stuffthingmaps_trainval2017.zip`) hold ids 0..181 with eleven gaps, and 255 where nothing is
labelled. mmsegmentation's converter numbers them 0..170 into files `*_labelTrainIds.png`; both can be read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .file_tree import FileTree, Place, probe_values, published_splits, split_dataset
from .labels import AnnotationFormat
from .segmentation_data import SegmentationData

ARCHIVES = ("train2017.zip", "val2017.zip", "stuffthingmaps_trainval2017.zip")
SPLITS = {"train": "train2017", "validation": "val2017"}
IMAGE_FOLDERS = ("images/{}", "{}")
ANNOTATION_FOLDERS = ("annotations/{}", "stuffthingmaps/{}", "stuffthingmaps_trainval2017/{}", "{}")
TRAIN_IDS = "_labelTrainIds.png"

GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # COCO categories that no picture has
ID_MAP = {stored: k for k, stored in enumerate(i for i in range(182) if i not in GAPS)} | {255: 255}

# fmt: off
# In the order of the ids of the pixel maps: things, then stuff.
CLASS_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush", "banner", "blanket",
    "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet", "ceiling-other",
    "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff",
    "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog", "food-other",
    "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves", "light", "mat", "metal",
    "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper", "pavement", "pillow", "plant-other",
    "plastic", "platform", "playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug", "salad",
    "sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw",
    "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable", "wall-brick", "wall-concrete",
    "wall-other", "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other", "waterdrops", "window-blind",
    "window-other", "wood",
)

# mmsegmentation's, where some colours stand for several classes.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (0, 192, 64), (0, 192, 64), (0, 64, 96), (128, 192, 192), (0, 64, 64), (0, 192, 224), (0, 192, 192),
    (128, 192, 64), (0, 192, 96), (128, 192, 64), (128, 32, 192), (0, 0, 224), (0, 0, 64), (0, 160, 192), (128, 0, 96),
    (128, 0, 192), (0, 32, 192), (128, 128, 224), (0, 0, 192), (128, 160, 192), (128, 128, 0), (128, 0, 32),
    (128, 32, 0), (128, 0, 128), (64, 128, 32), (0, 160, 0), (0, 0, 0), (192, 128, 160), (0, 32, 0), (0, 128, 128),
    (64, 128, 160), (128, 160, 0), (0, 128, 0), (192, 128, 32), (128, 96, 128), (0, 0, 128), (64, 0, 32),
    (0, 224, 128), (128, 0, 0), (192, 0, 160), (0, 96, 128), (128, 128, 128), (64, 0, 160), (128, 224, 128),
    (128, 128, 64), (192, 0, 32), (128, 96, 0), (128, 0, 192), (0, 128, 32), (64, 224, 0), (0, 0, 64), (128, 128, 160),
    (64, 96, 0), (0, 128, 192), (0, 128, 160), (192, 224, 0), (0, 128, 64), (128, 128, 32), (192, 32, 128),
    (0, 64, 192), (0, 0, 32), (64, 160, 128), (128, 64, 64), (128, 0, 160), (64, 32, 128), (128, 192, 192),
    (0, 0, 160), (192, 160, 128), (128, 192, 0), (128, 0, 96), (192, 32, 0), (128, 64, 128), (64, 128, 96),
    (64, 160, 0), (0, 64, 0), (192, 128, 224), (64, 32, 0), (0, 192, 128), (64, 128, 224), (192, 160, 0), (0, 192, 0),
    (192, 128, 96), (192, 96, 128), (0, 64, 128), (64, 0, 96), (64, 224, 128), (128, 64, 0), (192, 0, 224),
    (64, 96, 128), (128, 192, 128), (64, 0, 224), (192, 224, 128), (128, 192, 64), (192, 0, 96), (192, 96, 0),
    (128, 64, 192), (0, 128, 96), (0, 224, 0), (64, 64, 64), (128, 128, 224), (0, 96, 0), (64, 192, 192),
    (0, 128, 224), (128, 224, 0), (64, 192, 64), (128, 128, 96), (128, 32, 128), (64, 0, 192), (0, 64, 96),
    (0, 160, 128), (192, 0, 64), (128, 64, 224), (0, 32, 128), (192, 128, 192), (0, 64, 224), (128, 160, 128),
    (192, 128, 0), (128, 64, 32), (128, 32, 64), (192, 0, 128), (64, 192, 32), (0, 160, 64), (64, 0, 0),
    (192, 192, 160), (0, 32, 64), (64, 128, 128), (64, 192, 160), (128, 160, 64), (64, 128, 0), (192, 192, 32),
    (128, 96, 192), (64, 0, 128), (64, 64, 32), (0, 224, 192), (192, 0, 0), (192, 64, 160), (0, 96, 192),
    (192, 128, 128), (64, 64, 160), (128, 224, 192), (192, 128, 64), (192, 64, 32), (128, 96, 64), (192, 0, 192),
    (0, 192, 32), (64, 224, 64), (64, 0, 64), (128, 192, 160), (64, 96, 64), (64, 128, 192), (0, 192, 160),
    (192, 224, 64), (64, 128, 64), (128, 192, 32), (192, 32, 192), (64, 64, 192), (0, 64, 32), (64, 160, 192),
    (192, 64, 64), (128, 64, 160), (64, 32, 192), (192, 192, 192), (0, 64, 160), (192, 160, 192), (192, 192, 0),
    (128, 64, 96), (192, 32, 64), (192, 64, 128), (64, 192, 96), (64, 160, 64), (64, 64, 0),
)
# fmt: on


def load_coco_stuff(data_root: str | Path) -> SegmentationData:
    """Load COCO-Stuff 164k (Caesar et al., "COCO-Stuff: Thing and Stuff Classes in Context", 2018).

    Args:
        data_root: Folder with the pictures in `images/{train2017,val2017}` or `{train2017,val2017}` and their
            annotations in `annotations/`, `stuffthingmaps/` or the same folders: `*_labelTrainIds.png` if all pictures
            have them, else the published pixel maps. The zip files they are published as need not be unpacked.

    Raises:
        ValueError: A folder or file is missing, or annotations hold something else. The message names the path.
    """
    tree = FileTree(data_root)
    if not _is_unpacked(tree):  # the zip files list a quarter of a million files: left closed where possible
        tree = FileTree(data_root, ARCHIVES)
    images = _places(_first_present(tree, IMAGE_FOLDERS, ".jpg"), ".jpg")
    candidates = [_places(pattern, TRAIN_IDS) for pattern in ANNOTATION_FOLDERS]
    candidates += [_places(pattern, ".png", without=TRAIN_IDS) for pattern in ANNOTATION_FOLDERS]
    kind, pairs = published_splits(tree, images, candidates, hint=f"*{TRAIN_IDS} or the published *.png are needed")
    converted = kind < len(ANNOTATION_FOLDERS)
    annotation_format = AnnotationFormat(
        len(CLASS_NAMES),
        id_map=() if converted else tuple(ID_MAP.items()),
        explain=_explain_train_ids if converted else _explain_pixel_maps,
    )
    probe_values(pairs, annotation_format)
    return SegmentationData(
        train=split_dataset(pairs["train"]),
        validation=split_dataset(pairs["validation"]),
        class_names=CLASS_NAMES,
        palette=PALETTE,
        name="coco-stuff",
        annotation_format=annotation_format,
    )


def _is_unpacked(tree: FileTree) -> bool:
    return all(
        any(tree.files(pattern.format(split), suffix) for pattern in patterns)
        for patterns, suffix in ((IMAGE_FOLDERS, ".jpg"), (ANNOTATION_FOLDERS, ".png"))
        for split in SPLITS.values()
    )


def _places(pattern: str, suffix: str, without: str = "") -> dict[str, Place]:
    return {role: Place(pattern.format(split), suffix, without) for role, split in SPLITS.items()}


def _first_present(tree: FileTree, patterns: tuple[str, ...], suffix: str) -> str:
    def present(pattern: str) -> bool:
        return any(tree.files(pattern.format(split), suffix) for split in SPLITS.values())

    return next((pattern for pattern in patterns if present(pattern)), patterns[0])


def _explain_pixel_maps(values: np.ndarray | None) -> str:
    if values is None:
        return "colour annotations are those of COCO's panoptic task; use stuffthingmaps_trainval2017.zip"
    return "the published pixel maps hold ids 0..181 without those of eleven unused categories, and 255"


def _explain_train_ids(values: np.ndarray | None) -> str:
    if values is not None and values.max() < 182:
        return f"these are ids of the published pixel maps (0..181), whose names do not end in {TRAIN_IDS}"
    return _explain_pixel_maps(values)

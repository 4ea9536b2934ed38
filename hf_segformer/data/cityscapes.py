# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Cityscapes, fine annotations: `leftImg8bit/SPLIT/CITY` and `gtFine/SPLIT/CITY`.

The published annotations hold 34 label ids, of which 19 are evaluated. Training uses "train ids" 0..18 and 255, made
from them on the fly, or read where the files `*_gtFine_labelTrainIds.png` have been made beforehand.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from .file_tree import FileTree, Place, probe_values, published_splits, split_dataset
from .labels import AnnotationFormat
from .segmentation_data import SegmentationData

ARCHIVES = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")
SPLITS = {"train": "train", "validation": "val"}
THIN_CLASSES = ("pole", "traffic light", "traffic sign")

# Label ids of the evaluated classes in the order of their train ids; the evaluation server expects label ids.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# -1 is "license plate", which 8-bit files can only hold as 255.
ID_MAP = dict.fromkeys((-1, *range(34), 255), 255) | {label_id: k for k, label_id in enumerate(LABEL_IDS)}

# In the order of their train ids.
CLASS_NAMES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)

PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),  # road
    (244, 35, 232),  # sidewalk
    (70, 70, 70),  # building
    (102, 102, 156),  # wall
    (190, 153, 153),  # fence
    (153, 153, 153),  # pole
    (250, 170, 30),  # traffic light
    (220, 220, 0),  # traffic sign
    (107, 142, 35),  # vegetation
    (152, 251, 152),  # terrain
    (70, 130, 180),  # sky
    (220, 20, 60),  # person
    (255, 0, 0),  # rider
    (0, 0, 142),  # car
    (0, 0, 70),  # truck
    (0, 60, 100),  # bus
    (0, 80, 100),  # train
    (0, 0, 230),  # motorcycle
    (119, 11, 32),  # bicycle
)


def load_cityscapes(data_root: str | Path) -> SegmentationData:
    """Load Cityscapes (Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", 2016).

    Args:
        data_root: Folder with `leftImg8bit` and `gtFine`, or with `leftImg8bit_trainvaltest.zip` and
            `gtFine_trainvaltest.zip`, which need not be unpacked. Of the annotations, `*_gtFine_labelTrainIds.png`
            are taken if all images have them, else `*_gtFine_labelIds.png`.

    Raises:
        ValueError: A folder or file is missing, or annotations hold something else. The message names the path.
    """
    tree = FileTree(data_root, ARCHIVES)
    images, train_ids, label_ids = (
        {role: Place(f"{folder}/{split}", f"_{ending}.png") for role, split in SPLITS.items()}
        for folder, ending in (
            ("leftImg8bit", "leftImg8bit"),
            ("gtFine", "gtFine_labelTrainIds"),
            ("gtFine", "gtFine_labelIds"),
        )
    )
    hint = "*_gtFine_labelIds.png or *_gtFine_labelTrainIds.png are needed; instanceIds and color are no label maps"
    kind, pairs = published_splits(tree, images, [train_ids, label_ids], nested=True, hint=hint)
    annotation_format = (
        AnnotationFormat(len(CLASS_NAMES), explain=_explain_train_ids),
        AnnotationFormat(len(CLASS_NAMES), id_map=tuple(ID_MAP.items()), explain=_explain_label_ids),
    )[kind]
    values = probe_values(pairs, annotation_format)
    if annotation_format.id_map and 255 in values and max(values - {255}, default=0) < len(CLASS_NAMES):
        warnings.warn(
            f"{data_root}: the files *_gtFine_labelIds.png hold 0..18 and 255 only, which looks like train ids under "
            f"the wrong name; if they are, rename them to *_gtFine_labelTrainIds.png",
            stacklevel=3,
        )
    return SegmentationData(
        train=split_dataset(pairs["train"]),
        validation=split_dataset(pairs["validation"]),
        class_names=CLASS_NAMES,
        palette=PALETTE,
        name="cityscapes",
        thin_classes=THIN_CLASSES,
        annotation_format=annotation_format,
        submission_ids=LABEL_IDS,
    )


def _explain_train_ids(values: np.ndarray | None) -> str:
    if values is not None and values.max() < 34:
        return "train ids are 0..18 and 255; these are label ids (0..33): such files are named *_gtFine_labelIds.png"
    return _explain_label_ids(values)


def _explain_label_ids(values: np.ndarray | None) -> str:
    if values is None:
        return "this is what *_gtFine_color.png hold; use *_gtFine_labelIds.png"
    if values.max() >= 1000:
        return (
            "instance ids (label id * 1000 + number) are what *_gtFine_instanceIds.png hold; use *_gtFine_labelIds.png"
        )
    return ""

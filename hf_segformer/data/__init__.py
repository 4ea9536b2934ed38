# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets as `datasets.Dataset`s with columns `image`, `annotation` and `file_name`, augmentation and sampling."""

from .ade20k import load_ade20k
from .arguments import DataArguments
from .camvid import load_camvid
from .cityscapes import load_cityscapes
from .classes import ClassTable, default_palette, read_class_table
from .coco_stuff import load_coco_stuff
from .files import StorageError
from .folder import load_folder
from .formats import FORMATS, load_annotated
from .hub import load_hub
from .labels import AnnotationFormat
from .loading import LOADERS, load_any, load_dataset
from .own_layout import write_dataset
from .scenes import draw_scene, load_scenes
from .segmentation_data import MissingSplit, SegmentationData, read_sample, undecoded
from .splits import SplitOptions
from .streaming import stream_split
from .training_samples import DrawSampler, TrainingSamples, collate_samples
from .transforms import TrainingTransform
from .validation import DatasetReport, check_dataset

__all__ = [
    "FORMATS",
    "LOADERS",
    "AnnotationFormat",
    "ClassTable",
    "DataArguments",
    "DatasetReport",
    "DrawSampler",
    "MissingSplit",
    "SegmentationData",
    "SplitOptions",
    "StorageError",
    "TrainingSamples",
    "TrainingTransform",
    "check_dataset",
    "collate_samples",
    "default_palette",
    "draw_scene",
    "load_ade20k",
    "load_annotated",
    "load_any",
    "load_camvid",
    "load_cityscapes",
    "load_coco_stuff",
    "load_dataset",
    "load_folder",
    "load_hub",
    "load_scenes",
    "read_class_table",
    "read_sample",
    "stream_split",
    "undecoded",
    "write_dataset",
]

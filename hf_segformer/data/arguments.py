# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The flags that choose a data set, the same in every script."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .formats import FORMATS
from .loading import load_any, load_dataset
from .tolerance import listed_faults
from .validation import check_dataset

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .segmentation_data import SegmentationData

CHECKS = ("all", "sample", "none")
# Flags that are arguments of the loaders; those left out are not passed on.
OPTIONS = (
    *("mask_format", "image_column", "annotation_column", "class_names", "reduce_zero_label", "allow_outside_files"),
    *("pictures", "unlabeled", "mask_orientation", "train_split", "validation_split", "validation_fraction"),
    *("label_map", "split_seed", "group_by", "folds", "fold", "ignore_index", "revision", "config_name"),
)
SAMPLE = 1000  # samples of each split that "sample" reads


@dataclass(kw_only=True)
class DataArguments:
    """Command line that names a data set; scripts inherit it, and every flag is a field."""

    dataset: str = field(
        default="scenes",
        metadata={"help": "scenes, camvid, ade20k, cityscapes, coco-stuff, folder, parquet, or a Hub id owner/name."},
    )
    data_root: str | None = field(default=None, metadata={"help": "Folder with the data set's files."})
    data: str | None = field(
        default=None,
        metadata={
            "help": "Instead of dataset and data_root: folder, zip or file as an annotation tool has written it, "
            "or a Hub id; what it is is found out and printed."
        },
    )
    format: str | None = field(
        default=None, metadata={"help": f"data: its format ({', '.join(FORMATS)}); found out if left out."}
    )
    pictures: str | None = field(
        default=None, metadata={"help": "data: folder with the pictures, where they lie apart from the annotations."}
    )
    unlabeled: str | None = field(
        default=None,
        metadata={
            "help": "data: what pixels outside every shape are: background (a class of its own), ignore, or a class "
            "name; what the format says if left out, else background."
        },
    )
    mask_orientation: str | None = field(
        default=None,
        metadata={
            "help": "data: upright, or stored where annotations lie as the pixels of pictures with an EXIF rotation "
            "are stored."
        },
    )
    train_split: str | None = field(default=None, metadata={"help": "data, Hub: name of the split to train on."})
    validation_split: str | None = field(default=None, metadata={"help": "data, Hub: name of the split to hold out."})
    validation_fraction: float | None = field(
        default=None, metadata={"help": "Share that is held out where there is no validation split."}
    )
    split_seed: int | None = field(
        default=None, metadata={"help": "data, Hub: seed of the choice of held-out pictures, and of folds."}
    )
    group_by: str | None = field(
        default=None,
        metadata={
            "help": "data, Hub: regular expression on file names; pictures with the same match (or first group) stay "
            "together."
        },
    )
    folds: int | None = field(default=None, metadata={"help": "data, Hub: number of parts for cross-validation."})
    fold: int | None = field(default=None, metadata={"help": "data, Hub: the part, 0..folds-1, that is held out."})
    label_map: str | None = field(
        default=None,
        metadata={"help": "JSON file {id: new id or null}, or cityscapes (its label ids); class_names names new ids."},
    )
    ignore_index: int | None = field(default=None, metadata={"help": "data, Hub: label of pixels without a class."})
    revision: str | None = field(default=None, metadata={"help": "Hub: branch, tag or commit."})
    config_name: str | None = field(default=None, metadata={"help": "Hub: configuration of the data set."})
    thin_classes: str | None = field(
        default=None, metadata={"help": "Names of classes to report apart, with commas between them."}
    )
    mask_format: str | None = field(default=None, metadata={"help": "data, folder, Hub: ids, binary, rgb or auto."})
    image_column: str | None = field(default=None, metadata={"help": "Hub, parquet: column of pictures."})
    annotation_column: str | None = field(default=None, metadata={"help": "Hub, parquet: column of annotations."})
    class_names: str | None = field(
        default=None,
        metadata={
            "help": "data, Hub, parquet: names with commas between them, a file with them, or ade20k, cityscapes or "
            "coco-stuff for theirs."
        },
    )
    reduce_zero_label: bool | None = field(
        default=None,
        metadata={
            "help": "ade20k, folder, Hub: whether 0 in annotations means 'no class' and k class k-1; true for ade20k, "
            "else false."
        },
    )

    allow_outside_files: bool = field(
        default=False,
        metadata={
            "help": "Hub, parquet: also read pictures that rows name by a path outside the data set's own folder."
        },
    )
    check: str = field(
        default="all",
        metadata={"help": "Which samples are read before the start: all, sample (1000 of each split) or none."},
    )
    check_seconds: float = field(
        default=300.0, metadata={"help": "Time for that check, the rest stays unchecked; 0 sets no limit."}
    )

    @property
    def data_name(self) -> str:
        """A short name of the data set, for folders."""
        if self.data is None:
            return Path(self.dataset).name
        place = Path(os.path.abspath(self.data))
        return place.name if place.is_dir() else place.stem

    def require_known_check(self) -> None:
        """Raise `ValueError` when the flags of the check are out of range."""
        if self.check not in CHECKS:
            raise ValueError(f"check must be one of {', '.join(CHECKS)}, got {self.check!r}")
        if not self.check_seconds >= 0:
            raise ValueError(f"check_seconds must be >= 0, got {self.check_seconds}")

    def check_data(
        self,
        data: SegmentationData,
        splits: Sequence[str] | None = None,
        accelerator: Accelerator | None = None,
        on_bad_sample: str = "stop",
    ) -> None:
        """Check the data set as the flags say; every process must make this call. See `check_dataset`."""
        if self.check == "none":
            for split in splits or ():
                len(getattr(data, split))  # raises for a missing one
            return
        check_dataset(
            data,
            SAMPLE if self.check == "sample" else None,
            splits=splits,
            seconds=self.check_seconds,
            on_bad_sample=on_bad_sample,
            accelerator=accelerator,
        )

    def load_data(self) -> SegmentationData:
        """Load the data set the flags name, and print what was found out about its files.

        Raises:
            ValueError: What `load_dataset` and `load_any` raise.
        """
        self.require_known_check()
        options = {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}
        if not self.allow_outside_files:
            del options["allow_outside_files"]
        if self.thin_classes is not None:
            options["thin_classes"] = tuple(name.strip() for name in self.thin_classes.split(","))
        if self.data is None:
            return load_dataset(self.dataset, self.data_root, **options)
        if self.data_root is not None:
            raise ValueError(f"data_root must be left out with data, got {self.data_root!r}")
        data = load_any(self.data, self.format, **options)
        if os.environ.get("RANK", "0") == "0":
            print(data.description)
            if data.left_out:
                head = f"{data.name}: {len(data.left_out)} annotations are wrong, their pictures are left out"
                warnings.warn(listed_faults(head, data.left_out), stacklevel=2)
        return data

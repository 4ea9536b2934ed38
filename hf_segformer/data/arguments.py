# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The flags that choose a data set, the same in every script."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .samples import SegmentationData


@dataclass(kw_only=True)
class DataArguments:
    """Command line that names a data set; scripts inherit it, and every flag is a field."""

    dataset: str = field(
        default="scenes",
        metadata={"help": "scenes, camvid, ade20k, cityscapes, coco-stuff, folder, parquet, or a Hub id owner/name."},
    )
    data_root: str | None = field(default=None, metadata={"help": "Folder with the data set's files."})
    mask_format: str | None = field(default=None, metadata={"help": "folder, Hub: ids, binary, rgb or auto."})
    image_column: str | None = field(default=None, metadata={"help": "Hub, parquet: column of pictures."})
    annotation_column: str | None = field(default=None, metadata={"help": "Hub, parquet: column of annotations."})
    class_names: str | None = field(
        default=None,
        metadata={"help": "Hub, parquet: file with the class names, or ade20k, cityscapes or coco-stuff for theirs."},
    )
    reduce_zero_label: bool | None = field(
        default=None,
        metadata={
            "help": "ade20k, folder, Hub: whether 0 in annotations means 'no class' and k class k-1; true for ade20k, "
            "else false."
        },
    )

    def load_data(self) -> SegmentationData:
        """Load the data set the flags name; raises what `load_dataset` raises."""
        from . import load_dataset

        names = ("mask_format", "image_column", "annotation_column", "class_names", "reduce_zero_label")
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return load_dataset(self.dataset, self.data_root, **options)

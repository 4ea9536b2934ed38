# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The flags that choose a data set, the same in every script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .samples import SegmentationData

CHECKS = ("all", "sample", "none")
SAMPLE = 1000  # samples of each split that "sample" reads


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
        from . import check_dataset

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
        """Load the data set the flags name; raises what `load_dataset` raises."""
        from . import load_dataset

        self.require_known_check()
        names = ("mask_format", "image_column", "annotation_column", "class_names", "reduce_zero_label")
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.allow_outside_files:
            options["allow_outside_files"] = True
        return load_dataset(self.dataset, self.data_root, **options)

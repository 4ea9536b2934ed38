# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Write a model as one file for ONNX Runtime, OpenVINO or torch.export, and check it against the model.

The file is run before it takes its name: one that computes something else than the model is not kept. The report that
is printed lies beside it as OUT.report.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..data import DataArguments, SegmentationData
from ..export.exporting import export_model
from ..export.layout import export_to_folder, is_folder
from ..export.settings import FORMATS, OUTPUTS, format_of
from .parser import Parser


@dataclass(kw_only=True)
class ExportArguments(DataArguments):
    """Command line of `export`; every flag is a field."""

    format: str | None = field(
        default=None, metadata={"help": f"{', '.join(FORMATS)}; what the suffix of OUT says if left out."}
    )
    data_format: str | None = field(
        default=None, metadata={"help": "data: its format, as for train --format; found out if left out."}
    )
    dataset: str = field(
        default="",
        metadata={"help": "Data set to measure mIoU and labels on: scenes, camvid, ade20k, ..., or a Hub id."},
    )
    split: str = field(default="validation", metadata={"help": "validation or train."})
    output: str = field(default="logits", metadata={"help": f"What comes out: {', '.join(OUTPUTS)}."})
    normalize: str = field(
        default="outside",
        metadata={"help": "inside: the file takes uint8 pixels; outside: what the processor returns."},
    )
    size: list[int] | None = field(
        default=None, metadata={"help": "HEIGHT WIDTH, if the file is for that size only; faster in some runtimes."}
    )
    opset: int | None = field(default=None, metadata={"help": "Version of the operators in an ONNX file."})
    half: bool = field(default=False, metadata={"help": "Store weights in float16: half the size."})
    int8: str | None = field(
        default=None,
        metadata={"help": "Compute in int8; folder of pictures or data set (as for data) to take the ranges from."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a file that is there."})

    def load_chosen_data(self) -> SegmentationData | None:
        """The data set that is named, None if none is."""
        if not self.dataset and self.data is None:
            return None
        values = {entry.name: getattr(self, entry.name) for entry in fields(DataArguments)}
        arguments = DataArguments(**values | {"format": self.data_format, "dataset": self.dataset or "scenes"})
        data = arguments.load_data()
        arguments.check_data(data, [self.split])
        return data


def main(arguments: Sequence[str], prog: str | None = None) -> None:
    """Export, and print the report.

    Args:
        arguments: Words of the command line.
        prog: How the command is called, for its help.
    """
    parser = Parser(ExportArguments, prog=prog, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", metavar="DIR", help="Folder or Hub id of the model.")
    parser.add_argument(
        "path",
        metavar="OUT",
        help="File to write: .onnx, .xml (OpenVINO) or .pt2 (torch-export); or a folder, DIR itself too, which gets "
        "onnx/model.onnx as Transformers.js, optimum and `segformer push` expect it.",
    )
    args, positional = parser.parse(arguments)
    if args.split not in ("validation", "train"):
        raise ValueError(f"split must be validation or train, got {args.split!r}")
    if args.size is not None and len(args.size) != 2:
        raise ValueError(f"size must be a height and a width, got {args.size}")
    options: dict[str, Any] = {name: getattr(args, name) for name in ("output", "normalize", "opset", "half")}
    options |= {"size": args.size and tuple(args.size), "overwrite": args.overwrite, "int8": args.int8}
    options |= {"data": args.load_chosen_data(), "split": args.split}
    if is_folder(positional.path):
        print(export_to_folder(positional.source, positional.path, args.format or "onnx", **options))
    else:
        print(export_model(positional.source, positional.path, args.format or format_of(positional.path), **options))

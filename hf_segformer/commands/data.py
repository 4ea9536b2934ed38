# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Show what a data set holds, without training on it.

Prints what was found out about its files, the pictures of each split, their sizes, each class's share of the pixels
and that of the ignored ones, and writes six pictures with their annotations over them. With `--output` the data set
is also written as pictures, PNGs of label ids and `classes.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data import DataArguments, SegmentationData, undecoded, write_dataset
from ..data.arguments import SAMPLE
from ..data.overview import SplitOverview, describe, look_at, spread
from ..data.own_layout import require_new_folder, split_folders
from ..evaluation.submission import plain_stem
from ..visualization import panel
from .parser import Parser

PICTURES = 6


@dataclass(kw_only=True)
class OverviewArguments(DataArguments):
    """Command line of `data`; every flag is a field."""

    dataset: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "scenes, camvid, ade20k, cityscapes, coco-stuff, folder, parquet, or a Hub id owner/name; IN is "
            "then the folder with its files. Without IN and data: scenes."
        },
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "New folder for the data set as pictures, PNGs of label ids and classes.json; none if left out."
        },
    )
    output_dir: str = field(default="data_overview", metadata={"help": "Where the six pictures go."})

    def take(self, given: str | None) -> None:
        """Make the word without a flag what `data` is, or with a named data set what `data_root` is.

        Raises:
            ValueError: The flag names another place, or flags do not go together.
        """
        flag = "data" if self.dataset is None and self.data_root is None else "data_root"
        if given is not None and getattr(self, flag) not in (None, given):
            raise ValueError(f"{flag} must be left out with IN {given!r}, got {getattr(self, flag)!r}")
        if given is not None:
            setattr(self, flag, given)
        if self.data is not None and self.dataset is not None:
            raise ValueError(f"dataset must be left out with data, got {self.dataset!r}")
        self.dataset = self.dataset or ("scenes" if self.data_root is None else "folder")


def main(arguments: Sequence[str], prog: str | None = None) -> None:
    """Parse the command line, and show the data set.

    Args:
        arguments: Words of the command line.
        prog: How the command is called, for its help.
    """
    parser = Parser(OverviewArguments, prog=prog, description=__doc__.split("\n")[0])
    parser.add_argument("given", nargs="?", metavar="IN", help="The same as --data: a folder, zip, file or Hub id.")
    args, positional = parser.parse(arguments)
    args.take(positional.given)
    if args.output is not None:
        require_new_folder(args.output)
    data = args.load_data()
    args.check_data(data)
    found = look_at(data, SAMPLE if args.check == "sample" else None)
    print(describe(data, found))
    names = draw_overlays(data, found, Path(args.output_dir))
    print(f"\n{len(names)} pictures with their annotations in {args.output_dir}/: {', '.join(names)}")
    if args.output is not None:
        write_dataset(data, args.output)
        print(describe_written(data, args.output))


def describe_written(data: SegmentationData, output: str) -> str:
    """Say what was written, and how it is read."""
    splits = split_folders(data)
    counts = ", ".join(f"{len(rows)} pictures in images/{name}" for name, rows in splits.items())
    return f"{output}: {counts}, their label ids in annotations/, {data.num_classes} names in classes.json"


def draw_overlays(data: SegmentationData, found: Mapping[str, SplitOverview], folder: Path) -> list[str]:
    """Write evenly spaced pictures beside their annotations, with a legend.

    Args:
        data: The data set.
        found: What `look_at` saw in it.
        folder: Where they go.

    Returns:
        Their names.
    """
    rows = [(split, row) for split, seen in found.items() for row in seen.rows]
    names = []
    for split, row in (rows[position] for position in spread(len(rows), PICTURES)):
        example = undecoded(getattr(data, split))[row]
        image, label = data.read_sample(example, split, row)
        stem = plain_stem(example.get("file_name") or "picture")
        name = f"{split}_{stem}.png"
        if name in names:
            name = f"{split}_{stem}_{row}.png"
        panel(image, label, None, data.class_names, data.palette, folder / name, title=example.get("file_name"))
        names.append(name)
    return names

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What `segformer train --data FOLDER --model MODEL` reaches with 200 pictures of CamVid: mean and spread over seeds.

    segformer train --output_dir runs/scenes-b0
    python examples/few_pictures.py --data_root CamVid --model runs/scenes-b0 --half tuning --crop_size 128
    python examples/few_pictures.py --data_root CamVid --model runs/scenes-b0 --half report --crop_size 128

The first 460 of the 468 labelled pictures, in order of their names and so of time, make 20 blocks of 23. Even blocks
are the half that settings are chosen on, odd ones the half that they are reported on; of each block the first 20
pictures are trained on and the last three held out. Flags that are not named here go to `segformer train`. A run whose
metrics are there already is not repeated.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

from hf_segformer.cli import COMMANDS

HALVES = ("tuning", "report")


def write_half(data_root: Path, half: str, folder: Path) -> Path:
    """Copy the pictures of a half into the layout of a user's own data."""
    pictures = sorted(data_root.glob("*/images/*.jpg"), key=lambda path: path.name)[:460]
    for number, picture in enumerate(pictures):
        if number // 23 % 2 == HALVES.index(half):
            split = "train" if number % 23 < 20 else "val"
            annotation = picture.parent.parent / "annotations" / f"{picture.stem}.png"
            for kind, file in (("images", picture), ("annotations", annotation)):
                target = folder / kind / split / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    shutil.copyfile(data_root / "classes.json", folder / "classes.json")
    return folder


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Flags of this script, and those of `segformer train`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True, help="CamVid: train, val and classes.json")
    parser.add_argument("--half", choices=HALVES, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/few_pictures"), help="each seed gets a folder")
    return parser.parse_known_args(arguments)


def main(arguments: list[str]) -> None:
    """Train with each seed, and print what came out."""
    args, flags = parse(arguments)
    data = args.output_dir / f"data-{args.half}"
    if not data.exists():
        write_half(args.data_root, args.half, data)
    words, scores = [args.half, *(word.strip("-").replace("/", "_") for word in flags)], []
    for seed in args.seeds:
        folder = args.output_dir / "-".join([*words, f"seed_{seed}"])
        if not (folder / "metrics.json").exists():
            COMMANDS["train"].main(["--data", str(data), "--seed", str(seed), "--output_dir", str(folder), *flags])
        scores.append(100 * json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["mean_iou"])
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    shown = ", ".join(f"{score:.2f}" for score in scores)
    print(f"{args.half} {' '.join(flags)}: mIoU {statistics.mean(scores):.2f} +- {spread:.2f} ({shown})")


if __name__ == "__main__":
    main(sys.argv[1:])

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Convert a SegFormer checkpoint of any origin into a folder that loads everywhere, or back.

SOURCE is a .pth or .safetensors file, a folder or a Hub id, in the layout of NVlabs, mmsegmentation, transformers or
segmentation-models-pytorch; which one, and the variant, is recognised. Prints what was done to the tensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..checkpoints.conversion import convert_checkpoint
from .parser import Parser


def main(arguments: Sequence[str], prog: str | None = None) -> None:
    """Convert, and print the report.

    Args:
        arguments: Words of the command line.
        prog: How the command is called, for its help.
    """
    parser = Parser([], prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="File, folder or Hub id of the checkpoint.")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="Folder to make; must not exist, or be empty.")
    parser.add_argument(
        "--dataset", help="ade20k or cityscapes: class names, palette and protocol; else the file's own."
    )
    parser.add_argument("--to", help="Write the weights as nvlabs, mmseg, smp or hf5 instead.")
    parser.add_argument(
        "--ema", action="store_true", help="Of two sets of weights in the file, take the averaged one."
    )
    parser.add_argument(
        "--drop", nargs="+", default=[], metavar="PREFIX", help="Beginnings of names to leave out: auxiliary_head."
    )
    parser.add_argument("--revision", help="Branch, tag or commit on the Hub.")
    parser.add_argument(
        "--num_attention_heads", type=int, nargs="+", help="Heads of each stage, for networks of no published size."
    )
    options = vars(*parser.parse(arguments))
    print(convert_checkpoint(**options))
    print(f"written  {options['output_dir']}")

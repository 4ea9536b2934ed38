# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Train a model; the loop is `hf_segformer.training.run.Run`."""

from __future__ import annotations

from collections.abc import Sequence

from ..recipes import recipe_table
from ..training import TrainArguments
from ..training.run import Run
from .parser import Parser


def main(arguments: Sequence[str], prog: str | None = None, kind: type[Run] = Run) -> None:
    """Parse the command line and run.

    Args:
        arguments: Words of the command line.
        prog: How the command is called, for its help.
        kind: Class of the run.
    """
    (args,) = Parser(TrainArguments, prog=prog).parse(arguments)
    if args.recipe == "list":
        print(recipe_table())
    else:
        kind.start(args, [*(prog or "train").split(" "), *arguments])

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Measure this package against the SegFormer of the installed `transformers`, and others where they are installed.

    python examples/benchmark.py --variants b0 b2 --size 512 --pairs 9 --output_dir runs/benchmark
    python examples/benchmark.py --dtype bfloat16 --compile
    python examples/benchmark.py --train --memory --scaling --variations --post_processing --evaluation
    python examples/benchmark.py --device cuda --dtype bfloat16 --compile --scaling --scaling_batch_sizes 1 4 16 64
    python examples/benchmark.py --model DIR_OR_HUB_ID --image photo.jpg --post_processing
    python examples/benchmark.py --against HEAD~1 --variants b0 b1 b2 b5 --pairs 21

Same weights through a folder, all implementations in turn in one process (mmsegmentation in its own), medians and
ranges. Only the ratios mean anything on another machine. Prints Markdown; `--output_dir` also gets benchmark.md,
benchmark.json with every single measurement, and plots. With `--against` this package is measured against another
state of itself instead, in turn in two processes.
"""

import sys

from hf_segformer.cli import COMMANDS

main = COMMANDS["benchmark"].main

if __name__ == "__main__":
    sys.exit(COMMANDS["benchmark"].run())

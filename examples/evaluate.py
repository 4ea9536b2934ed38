# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluate a SegFormer on a data set's validation split, on one process or many.

    accelerate launch examples/evaluate.py --model runs/scenes-b0 --dataset scenes
    accelerate launch examples/evaluate.py --model DIR_OR_HUB_ID --dataset camvid --data_root CamVid
    accelerate launch examples/evaluate.py --model B0 --dataset ade20k --data_root ADE --protocol aligned-512 \
        --tta nvlabs
    accelerate launch examples/evaluate.py --model B5 --dataset cityscapes --data_root CITYSCAPES \
        --protocol slide-1024 --corruption all --output_dir robustness

Prints mIoU, mAcc, aAcc and the per-class table and writes metrics.json. Every image is counted once, at the size of
its annotation, so any number of processes gives the same figures.
"""

import sys

from hf_segformer.cli import COMMANDS

main = COMMANDS["evaluate"].main

if __name__ == "__main__":
    sys.exit(COMMANDS["evaluate"].run())

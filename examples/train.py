# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Train SegFormer for semantic segmentation, on one process or many.

    accelerate launch examples/train.py
    accelerate launch examples/train.py --recipe cityscapes-b2 --data_root cityscapes --encoder mit_b2.pth
    accelerate launch examples/train.py --dataset camvid --data_root CamVid --max_steps 2000
    accelerate launch examples/train.py --dataset folder --data_root my_pictures --model nvidia/mit-b0

Without arguments it draws a data set of street scenes, trains B0 on it from scratch and evaluates. `--recipe list`
shows the published recipes; a recipe sets the default of every flag, and its global batch is kept on any number of
processes. The output folder gets weights, configuration, processor, model card, metrics, the recipe as it was
followed, learning curve and overlay pictures, and loads with `AutoModelForSemanticSegmentation.from_pretrained`.

The loop is `hf_segformer.training.run.Run`. A run that was killed goes on with `--resume` and ends with the weights it
would have had.
"""

import sys

from hf_segformer.cli import COMMANDS

main = COMMANDS["train"].main

if __name__ == "__main__":
    sys.exit(COMMANDS["train"].run())

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Segment images and folders of images.

    python examples/predict.py IMAGE_OR_FOLDER... --model runs/scenes-b0 --output_dir predictions
    python examples/predict.py PHOTOS --model DIR_OR_HUB_ID --output_dir predictions --protocol slide \
        --overlap gaussian
    python examples/predict.py leftImg8bit/test --model B5 --output_dir predictions --protocol slide-1024 \
        --submission cityscapes

Writes, for each image, labels/NAME.png (class indices with a palette) and overlays/NAME.png. Images whose outputs
exist are skipped, so an interrupted run can be repeated; unreadable files are named and passed over, and the exit code
is then 1.
"""

import sys

from hf_segformer.cli import COMMANDS

main = COMMANDS["predict"].main

if __name__ == "__main__":
    sys.exit(COMMANDS["predict"].run())

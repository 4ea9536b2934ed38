# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Convert a SegFormer checkpoint of any origin into a folder that loads everywhere, or back.

    python conversion/convert.py SOURCE OUTPUT_DIR [--dataset ade20k|cityscapes] [--to nvlabs|mmseg|smp|hf5]

SOURCE is a .pth or .safetensors file, a folder or a Hub id, in the layout of NVlabs, mmsegmentation, transformers or
segmentation-models-pytorch; which one, and the variant, is recognised. Prints what was done to the tensors.
"""

import sys

from hf_segformer.cli import COMMANDS

main = COMMANDS["convert"].main

if __name__ == "__main__":
    sys.exit(COMMANDS["convert"].run())

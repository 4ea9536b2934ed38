# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Train the SegFormer of `transformers` exactly as train.py trains this package's, to compare what comes out.

    accelerate launch examples/train.py --output_dir runs/ours
    accelerate launch examples/compare_with_builtin.py --output_dir runs/builtin

Same flags, same initial weights, same pictures in the same order, same random numbers: the two runs differ by how
floating point sums are ordered, which training then amplifies.
"""

import sys
import tempfile

from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation

from hf_segformer.commands.train import main
from hf_segformer.training.run import Run


class BuiltinRun(Run):
    """A run with the model of `transformers`, and the weights that train.py would start from."""

    def build_model(self):
        model, image_processor = super().build_model()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            builtin = SegformerForSemanticSegmentation.from_pretrained(folder)
        print(f"training {type(builtin).__module__}.{type(builtin).__name__}")
        return builtin, image_processor


if __name__ == "__main__":
    main(sys.argv[1:], kind=BuiltinRun)

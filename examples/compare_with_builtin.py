# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Train the SegFormer of `transformers` exactly as train.py trains this package's, to compare what comes out.

    accelerate launch examples/train.py --output_dir runs/ours
    accelerate launch examples/compare_with_builtin.py --output_dir runs/builtin

Same flags, same initial weights, same pictures in the same order, same random numbers: the two runs differ by how
floating point sums are ordered, which training then amplifies.
"""

import tempfile

from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation

import train


def build_builtin_model(*arguments):
    """Model of `transformers` with the weights that train.py would start from."""
    model, image_processor = build_model(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        builtin = SegformerForSemanticSegmentation.from_pretrained(folder)
    print(f"training {type(builtin).__module__}.{type(builtin).__name__}")
    return builtin, image_processor


build_model, train.build_model = train.build_model, build_builtin_model

if __name__ == "__main__":
    train.main()

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Random networks whose label maps are not all one class."""

import torch

from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.data import draw_scene


@torch.no_grad()
def lively_model(config, randomize, seed=0):
    """Random weights whose classes have scores of equal mean and spread, so that each wins somewhere."""
    model = randomize(SegformerForSemanticSegmentation(config).eval(), seed)
    image, _ = draw_scene(2)
    scores = model(SegformerImageProcessor()(image, return_tensors="pt").pixel_values).logits
    classifier, factor = model.decode_head.classifier, 3 / scores.std((0, 2, 3))
    classifier.weight *= factor[:, None, None, None]
    classifier.bias.copy_((classifier.bias - scores.mean((0, 2, 3))) * factor)
    return model

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Random pictures and label maps for tests, and the built-in image processor that they compare with."""

import sys
from types import SimpleNamespace

import numpy as np
from PIL import Image
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from hf_segformer import SegformerImageProcessor

__all__ = ["SegformerImageProcessorPil", "padded_batch", "pixel_values", "random_image", "random_map"]

# transformers 5.17 uses torchvision's name of the nearest filter even where torchvision is missing.
_torchvision = SimpleNamespace(InterpolationMode=SimpleNamespace(NEAREST_EXACT=Image.Resampling.NEAREST))
vars(sys.modules[SegformerImageProcessorPil.__module__]).setdefault("tvF", _torchvision)


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_map(height, width, classes=151, dtype=np.uint8, seed=1):
    return np.random.default_rng(seed).integers(0, classes, (height, width)).astype(dtype)


def pixel_values(image, **options):
    return SegformerImageProcessor(**options)(image, return_tensors="pt")["pixel_values"]


def padded_batch(**options):
    images = [random_image(40, 61, 3), random_image(53, 37, 3, seed=1)]
    maps = [random_map(40, 61), random_map(53, 37)]
    processor = SegformerImageProcessor(**{"do_resize": False, "do_pad": True, **options})
    return images, maps, processor, processor(images, maps, return_tensors="pt")

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""From an image to its label map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

if TYPE_CHECKING:
    from .image_processing_segformer import SegformerImageProcessor


def predict_label_map(
    model: nn.Module,
    image_processor: SegformerImageProcessor,
    image: Image.Image | np.ndarray | torch.Tensor,
) -> np.ndarray:
    """Segment one image at its own size.

    Args:
        model: A `SegformerForSemanticSegmentation` on any device.
        image_processor: Processor of the model.
        image: PIL image, (H, W, 3) uint8 array or (3, H, W) uint8 tensor.

    Returns:
        Class indices (H, W): uint8 for up to 256 classes, otherwise int32.
    """
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)  # the label map shows the picture as people see it
    size = image.size[::-1] if isinstance(image, Image.Image) else _array_size(image)
    inputs = image_processor(image, return_tensors="pt").to(model.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        outputs = model(inputs["pixel_values"].to(model.dtype))
    model.train(was_training)
    label_map = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
    return label_map.cpu().numpy().astype(np.uint8 if max(model.config.num_labels, 2) <= 256 else np.int32)


def _array_size(image: np.ndarray | torch.Tensor) -> tuple[int, int]:
    return tuple(image.shape[:2]) if isinstance(image, np.ndarray) else tuple(image.shape[-2:])

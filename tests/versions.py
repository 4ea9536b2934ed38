# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What some supported versions of other packages cannot do."""

import numpy as np
import pytest
from transformers import AutoImageProcessor

from hf_segformer.engine.triton_scores import triton

needs_auto_processor = pytest.mark.skipif(
    getattr(AutoImageProcessor, "is_dummy", False),
    reason="this version of transformers hides AutoImageProcessor where torchvision is missing",
)


def interpreter_fails() -> str | None:
    """Why Triton's interpreter cannot run here, or None."""
    if triton is None:
        return "Triton is not installed"
    version = tuple(int(number) for number in triton.__version__.split(".")[:2])
    if version < (3, 7) and tuple(int(number) for number in np.__version__.split(".")[:2]) >= (2, 4):
        return "the interpreter of Triton 3.6 does not work with NumPy 2.4"
    return None

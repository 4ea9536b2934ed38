# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The short path of `hf_segformer.checkpoints.adapters`."""

from .checkpoints.adapters import (
    convert_adapter,
    load_adapter,
)

__all__ = ["convert_adapter", "load_adapter"]

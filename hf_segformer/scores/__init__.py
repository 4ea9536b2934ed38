# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pixels of a full-size image as bilinear upsampling of low-resolution logits has them: label map and loss."""

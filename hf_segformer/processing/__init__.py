# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What the image processor is made of: reading pictures, resizing, pixel values."""

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Publishing on the Hugging Face Hub: model card, code, upload."""

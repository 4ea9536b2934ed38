# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of others: their layouts, files, conversion and adapters."""

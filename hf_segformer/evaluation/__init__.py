# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Protocols, inference, metrics, robustness and submissions."""

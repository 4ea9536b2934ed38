# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Measure speed and memory; the measurements are those of `hf_segformer.benchmark.comparison`."""

from ..benchmark.comparison import main

__all__ = ["main"]

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that are run from the command line; `gpu` comes first on a machine with a GPU."""

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What surrounds the network: loading, checks of its input, adapters."""

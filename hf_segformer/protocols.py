# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The short path of `hf_segformer.evaluation.protocols`."""

from .evaluation.protocols import (
    PROTOCOLS,
    Protocol,
    ProtocolArguments,
)

__all__ = ["PROTOCOLS", "Protocol", "ProtocolArguments"]

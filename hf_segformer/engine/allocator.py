# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""How a CPU's memory is asked for and given back."""

import functools

import torch

# Largest block below the 32 MiB beyond which glibc always asks the system.
_LARGEST_BLOCK = (32 << 20) - (1 << 16)


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MiB for the next allocation, from the first call on, in this process.

    glibc gives freed memory back to the system beyond a limit that it learns from the largest block freed so far, up
    to 32 MiB. Small networks never free one that large, and would pay for their memory anew, page by page, in each
    forward. Here one such block is allocated and freed, which is all that glibc needs; other allocators do not mind.
    The process then may hold up to that much more memory. Called by the engine before it first computes on a CPU, so
    not with the engine off.
    """
    torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)

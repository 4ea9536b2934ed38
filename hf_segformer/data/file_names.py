# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What names of files and folders say about splits."""

from __future__ import annotations

import re

from .splits import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES

SPLIT_NAMES = (*TRAIN_NAMES, *VALIDATION_NAMES, *TEST_NAMES)


def split_of(name: str) -> str:
    """Return the split that a folder of a file is named after, the outermost one; "" without any.

    Args:
        name: Name relative to the data set, with `/` between folders.
    """
    return next((part for part in name.split("/")[:-1] if part.lower() in SPLIT_NAMES), "")


def split_in(stem: str) -> str:
    """Return the split that is a word of a file's name, as in `instances_train2017`; "" without any."""
    words = re.findall("[a-z]+", stem.lower())
    return next((word for word in words if word in SPLIT_NAMES), "")

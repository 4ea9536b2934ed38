# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The column type of pictures inside zip files."""

from __future__ import annotations

from typing import Any

import datasets
from PIL import Image

from .archives import is_member_path, read_member


class ZippedImage(datasets.Image):
    """`datasets.Image` that keeps the list of members of a zip file between pictures.

    It decodes to the same pictures, equals `datasets.Image`, and is saved as one: a stored data set needs nothing of
    this package to be read again.
    """

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> Image.Image:
        """Decode a `{"bytes", "path"}` dictionary."""
        if isinstance(value, dict) and value["bytes"] is None and is_member_path(value["path"]):
            value = value | {"bytes": read_member(value["path"])}
        return super().decode_example(value, token_per_repo_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, datasets.Image) and (self.mode, self.decode) == (other.mode, other.decode)

    __hash__ = datasets.Image.__hash__

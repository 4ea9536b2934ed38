# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures within a page, as data of bounded size."""

from __future__ import annotations

import base64
import io
import os

from PIL import Image

from .markup import plain

_SIDE, _BYTES = 1400, 250_000
_QUALITIES = (85, 70, 50, 30)


def embedded(picture: Image.Image | str | os.PathLike, caption: str = "") -> str:
    """An `img` element that holds a picture: a JPEG of at most 250 KB, its longer side at most 1400 pixels.

    Args:
        picture: The picture, or its file.
        caption: What it shows, a plain text.
    """
    if not isinstance(picture, Image.Image):
        with Image.open(picture) as opened:
            picture = opened.convert("RGB")
    small = picture.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    data = _jpeg(small)
    while len(data) > _BYTES:  # noise, or a picture of grass
        small = small.resize((max(small.width // 2, 1), max(small.height // 2, 1)))
        data = _jpeg(small)
    source, size = base64.b64encode(data).decode(), f'width="{small.width}" height="{small.height}"'
    return f'<img src="data:image/jpeg;base64,{source}" {size} alt="{plain(caption)}">'


def _jpeg(picture: Image.Image) -> bytes:
    """With the best quality that keeps to the limit, or the lowest."""
    data = b""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        data = buffer.getvalue()
        if len(data) <= _BYTES:
            break
    return data


def figure(picture: Image.Image | str | os.PathLike, caption: str) -> str:
    """A picture with a line of text, which is a plain one, below."""
    return f"<figure>{embedded(picture, caption)}<figcaption>{plain(caption)}</figcaption></figure>"

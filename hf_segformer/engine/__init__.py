# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What the textbook computes, computed another way: by exact algebra, in pieces that fit a cache, by kernels.

`off()` switches it off, `explain()` says what ran and why. `seam` tells how it works, `eligibility` when.

To add a fast path, write a function of the textbook function's arguments in a module here, register it there with
`@implements`, and say in `eligibility` what stands in its way.
"""

import contextlib
from collections.abc import Iterator

from .seam import TEXTBOOK, Choice, Choices, accelerated, explain, implements, is_enabled, off, record, remembering

__all__ = [
    "TEXTBOOK",
    "Choice",
    "Choices",
    "accelerated",
    "explain",
    "implements",
    "is_enabled",
    "off",
    "record",
    "remembering",
]


@contextlib.contextmanager
def _if_there() -> Iterator[None]:
    """Any of these modules may be missing: then the textbook is computed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(__name__.rpartition(".")[0]):
            raise


# Each registers what it can compute; of the same function, in this order.
with _if_there():
    from .float32 import no_float32_inside  # noqa: F401
with _if_there():
    from .attention import attend_by_products  # noqa: F401
with _if_there():
    from .mix_ffn import feed_forward_in_bands  # noqa: F401
with _if_there():
    from .decode_head import composed_head  # noqa: F401
with _if_there():
    from .label_map import label_map_in_bands  # noqa: F401
with _if_there():
    from .cross_entropy import cross_entropy_in_bands  # noqa: F401

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Which way textbook functions were computed."""

import contextlib

from hf_segformer import engine


@contextlib.contextmanager
def runs(expected: dict[str, str]):
    """What the block must do: compute each of these textbook functions at least once, and only in the given way.

    Where the engine is off, all that runs is the textbook, and nothing can be said of it.

    Args:
        expected: Names in the textbook, such as "SegformerMixFFN.forward", and in the engine, or "textbook".
    """
    with engine.record() as choices:
        yield
    for function, implementation in expected.items() if engine.is_enabled() else ():
        ran = [choice for choice in choices if choice.function == function]
        assert {choice.ran for choice in ran} == {implementation}, "\n".join(map(str, ran)) or "it did not run"

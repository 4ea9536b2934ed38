# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading the words of a command."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from transformers import HfArgumentParser


class Parser(HfArgumentParser):
    """Parser whose complaints are `ValueError`s, which name the closest flag."""

    def __init__(self, dataclass_types: Any, **options: Any) -> None:
        super().__init__(dataclass_types, **options)
        for flag, action in self._option_string_actions.items():
            if flag.startswith("--no_"):  # made for what is true by default, with the help of its opposite
                action.help = f"Turn --{flag.removeprefix('--no_')} off."

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise ValueError(f"{message} ({self.prog} --help shows all flags)")

    def parse(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """Dataclasses, and a namespace for arguments that are in none.

        Args:
            arguments: Words of the command line.

        Raises:
            ValueError: A flag is unknown, or has no value or a wrong one; a word is in excess or missing.
        """
        self._check_flags(arguments)
        *parsed, left_over = self.parse_args_into_dataclasses(list(arguments), return_remaining_strings=True)
        if left_over:
            self.error(f"too many arguments: {' '.join(left_over)}")
        return tuple(parsed)

    def _check_flags(self, arguments: Sequence[str]) -> None:
        """Before anything else: a misspelt flag that is required would be called missing."""
        known = list(self._option_string_actions)
        for word in arguments:
            name = word.partition("=")[0]
            if word == "--":  # only names of files follow
                return
            if not name.startswith("--") or " " in name or any(flag.startswith(name) for flag in known):
                continue
            close = difflib.get_close_matches(name, known, n=1)
            self.error(f"unknown flag {name}" + (f"; did you mean {close[0]}?" if close else ""))

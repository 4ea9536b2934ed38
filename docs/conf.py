# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The site: `python -m sphinx -W --keep-going -b html docs site`. A broken link ends the build; nothing is fetched."""

import re

import hf_segformer

project = "hf_segformer"
author = copyright = "The hf_segformer authors"
version = release = hf_segformer.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_*"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"hf_segformer {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
default_role = "code"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
maximum_signature_line_length = 100


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def markdown_as_rest(app, what, name, obj, options, lines: list[str]) -> None:
    """Tables and links of a docstring, which are Markdown's, as Sphinx reads them."""
    converted: list[str] = []
    for line in lines:
        if re.fullmatch(r"\s*\|[-|: ]+\|", line):  # below the heads
            continue
        if not line.lstrip().startswith("|"):
            line = re.sub(r"\[([^\]]+)\]\((https?:[^)]+)\)", r"`\1 <\2>`__", line)
            converted.append(re.sub(r"(`[^`]+`)(?=[a-z])", r"\1\\ ", line))  # the s of a plural
            continue
        indent = line[: len(line) - len(line.lstrip())]
        if not converted or not converted[-1].lstrip().startswith(("* - ", "- ")):
            converted += [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
        first, *others = _cells(line)
        converted += [f"{indent}   * - {first}", *(f"{indent}     - {cell}" for cell in others)]
    lines[:] = converted


def returns_as_fields(app, what, name, obj, options, lines: list[str]) -> None:
    """What a docstring says under "Returns:", in which napoleon takes text before a colon for a type."""
    converted: list[str] = []
    text: list[str] | None = None
    for line in [*lines, "end"]:
        if text is not None and line[:1].strip():
            several = any(part.startswith("     ") for part in text)  # things, each with its own indented lines
            marked = ["    - " + part[4:] if part[4:5].strip() else "  " + part for part in text]
            converted += [*(marked if several else text), ""]
            text = None
        if line in ("Returns:", "Yields:"):
            converted += [f":{line[:-1].lower()}:"]
            text = []
        elif text is None:
            converted.append(line)
        elif line.strip():
            text.append(line)
    lines[:] = converted[:-1]


def setup(app) -> None:
    """Before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", markdown_as_rest, priority=400)
    app.connect("autodoc-process-docstring", returns_as_fields, priority=400)

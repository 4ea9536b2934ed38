# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The README says what the code says: its table of published results, and the flags in its commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hf_segformer.recipes import RECIPE_NAMES, get_recipe

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def published_rows():
    """The rows of mmsegmentation's SegFormer page, as the README shows them."""
    for aligned in (False, True):
        for name in RECIPE_NAMES:
            recipe, model = get_recipe(name), name.replace("ade20k", "ADE20K").replace("cityscapes", "Cityscapes")
            result = recipe.published
            if aligned and not recipe.aligned_protocol:
                continue
            protocol = recipe.aligned_protocol if aligned else recipe.protocol
            scores = (result.mean_iou, result.mean_iou_tta)
            cost = (f"{result.memory_gb:g}", f"{result.images_per_second:.2f} ({result.device})")
            if aligned:
                scores, cost = (result.aligned_mean_iou, result.aligned_mean_iou_tta), ("", "")
            data = f"--dataset {recipe.dataset} --data_root {recipe.dataset.upper()}"
            command = f"evaluate.py --model {name} {data} --protocol {protocol} [--tta mmseg]"
            cells = [model + (", aligned" if aligned else ""), *(f"{score:.2f}" for score in scores), *cost]
            yield cells, command


def test_results_table_has_every_published_figure_and_its_command():
    lines = [line for line in README.splitlines() if line.startswith("| ") and "--protocol" in line]
    expected = list(published_rows())
    assert len(lines) == len(expected) == 20
    for line, (cells, command) in zip(lines, expected, strict=True):
        shown = [cell.strip() for cell in line.strip("|").split("|")]
        assert shown[: len(cells)] == cells
        assert shown[-1] == f"`{command}`"
        assert len(shown) == len(cells) + 4 + 1


SCRIPTS = sorted(path for folder in ("examples", "conversion") for path in (ROOT / folder).glob("*.py"))


@pytest.fixture(scope="module")
def known_flags():
    """Flags of every script the README runs."""
    flags = {}
    for path in SCRIPTS:
        if f"{path.name}" not in README:
            continue
        shown = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
        flags[path.name] = set(re.findall(r"--[\w-]+", shown.stdout))
    return flags


def test_commands_use_flags_that_exist(known_flags):
    commands = re.findall(r"(?:examples|conversion)/\w+\.py[^`\n]*", README)
    assert len(commands) > 15
    for command in commands:
        words = shlex.split(command.replace("[", " ").replace("]", " "), comments=True)
        script = Path(words[0]).name
        for word in words[1:]:
            if word.startswith("--"):
                assert word in known_flags[script], command


def test_links_lead_somewhere():
    titles = re.findall(r"^#+ (.*)", README, re.MULTILINE)
    headings = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(#([^)]*)\)", README):
        assert target in headings

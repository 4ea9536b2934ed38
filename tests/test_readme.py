# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""README and site say what the code says: published results, commands, Python, links."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from annotation_exports import EXPORTS
from PIL import Image

from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.cli import COMMANDS
from hf_segformer.commands.parser import Parser
from hf_segformer.data import draw_scene
from hf_segformer.recipes import RECIPE_NAMES, get_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
HUB_NAME = "nvidia/segformer-b0-finetuned-ade-512-512"


def published_rows():
    """The rows of mmsegmentation's SegFormer page, as the site shows them."""
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
            command = f"segformer evaluate --model {name} {data} --protocol {protocol} [--tta mmseg]"
            yield [model + (", aligned" if aligned else ""), *(f"{score:.2f}" for score in scores), *cost], command


def test_results_table_has_every_published_figure_and_its_command():
    lines = [line for line in PAGES["results.md"].splitlines() if line.startswith("| ") and "--protocol" in line]
    expected = list(published_rows())
    assert len(lines) == len(expected) == 20
    for line, (cells, command) in zip(lines, expected, strict=True):
        assert [cell.strip() for cell in line.strip("|").split("|")] == [*cells, f"`{command}`"]


def test_readme_is_the_way_in():
    assert len(PAGES["README.md"].splitlines()) <= 150
    for page in PAGES.keys() - {"README.md", "api.md", "changes.md", "contributing.md"}:
        assert f"](docs/{page})" in PAGES["README.md"]
    for name in COMMANDS:
        assert f"`{name}`" in PAGES["README.md"]
        assert f"`{name}`" in PAGES["index.md"]


CALL = re.compile(
    r"(?:^|&& )(?:\w+=\S+ )?(?:segformer|(?:accelerate launch|python) (?:.* )?-m hf_segformer)"
    r" (?P<command>[a-z]+)\b(?P<rest>.*)"
    r"|(?:accelerate launch|python) .*?(?:examples|conversion)/(?P<script>\w+)\.py(?P<flags>.*)"
)
SCRIPTS = {"push_to_hub": "push", "compare_with_builtin": "train"}


def called(text: str) -> tuple[str, list[str]] | None:
    """Command and words of a command line; None for one of another program."""
    found = CALL.search(text)
    if found is None or found["script"] == "few_pictures":  # has flags of its own: tests/test_few_pictures.py
        return None
    name = found["command"] or SCRIPTS.get(found["script"], found["script"])
    words = shlex.split((found["rest"] or found["flags"] or "").replace("[--", "--").replace("]", ""), comments=True)
    return name, words


def command_lines() -> list[tuple[str, str]]:
    """Whole command lines: those of code blocks and of the results."""
    found = []
    for page, text in PAGES.items():
        lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        lines += re.findall(r"`(segformer evaluate [^`]*--protocol[^`]*)`", text)
        found += [(page, line) for line in lines if called(line)]
    return found


class Parsed(Exception):
    """Instead of running a command."""


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_command_lines_parse(page, line, monkeypatch):
    def parse(parser, arguments, original=Parser.parse):
        raise Parsed(original(parser, arguments))

    monkeypatch.setattr(Parser, "parse", parse)
    name, words = called(line)
    with pytest.raises(Parsed):
        COMMANDS[name].main(words, f"segformer {name}")


@pytest.fixture
def flags_of(monkeypatch):
    """Function that returns the flags of a command."""

    def parse(parser, arguments):
        raise Parsed(set(parser._option_string_actions))

    monkeypatch.setattr(Parser, "parse", parse)

    def flags(name):
        with pytest.raises(Parsed) as found:
            COMMANDS[name].main([])
        return found.value.args[0] | {"--debug"}

    return flags


def without_blocks(page: str) -> str:
    """Prose and tables of a page."""
    return re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)


def code_in_sentences(page: str) -> list[str]:
    """Code between single backticks, which may go on on the next line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks(page))]


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page, flags_of):
    """Of commands inside sentences too, which need not be whole; of a flag by itself, that some command has it."""
    known = {name: flags_of(name) for name in COMMANDS}
    for code in code_in_sentences(page):
        name, words = called(code) or (None, [])
        assert name is None or name in known, code
        for word in words:
            assert not word.startswith("--") or word in known[name], code
    alone = {flag for code in code_in_sentences(page) if code[:2] == "--" for flag in re.findall(r"--\w+", code)}
    assert alone <= set().union(*known.values())


def python_blocks(text: str) -> list[str]:
    """Code of a page, in order."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


WITH_PYTHON = [
    pytest.param(page, marks=[pytest.mark.long] if "torch.onnx.export" in text else [])
    for page, text in PAGES.items()
    if python_blocks(text)
]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs(page, tiny_config, tmp_path, monkeypatch):
    """From the first block of a page to the last, with small files under the names it gives."""
    from transformers import TrainingArguments

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    model = SegformerForSemanticSegmentation(tiny_config())
    for saved in (model, SegformerImageProcessor(size={"height": 64, "width": 64})):
        saved.save_pretrained("runs/mine")
    Image.fromarray(draw_scene(0)[0]).save("photo.jpg")
    shutil.make_archive("export", "zip", EXPORTS / "coco" / "export")
    arguments = TrainingArguments(output_dir="trained", report_to=[], use_cpu=True)
    names = {"model": model, "args": arguments, "train": [{}], "validation": [{}]}
    for block in python_blocks(PAGES[page]):
        exec(compile(block.replace(HUB_NAME, "runs/mine"), page, "exec"), names)
    if "label_map" in names:
        assert tuple(names["label_map"].shape) == (128, 128)


def anchors(text: str) -> set[str]:
    """Of the headings of a page."""
    titles = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)\s]*)\)", without_blocks(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = folder / path if path else folder / page
        assert linked.is_file(), target
        source = ROOT / "CONTRIBUTING.md" if linked.name == "contributing.md" else linked
        assert not anchor or anchor in anchors(source.read_text()), target

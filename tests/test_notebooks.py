# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The notebooks: stored without outputs, short, their commands and links right, and executed on small drawn data."""

import base64
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from example_scripts import environment
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.checkpoints.conversion import convert_checkpoint
from hf_segformer.cli import COMMANDS
from hf_segformer.commands.parser import Parser
from hf_segformer.data import draw_scene
from hf_segformer.hub.push import push_folder
from hub_fixtures import hub, use_hub  # noqa: F401
from published_data import write_ade20k, zip_folder
from scene_folder import write_scene_folder

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
NOTEBOOKS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.ipynb"))}
SMALL = {"hidden_sizes": [8, 16, 40, 64], "num_attention_heads": [1, 2, 5, 8], "depths": [1, 1, 1, 1]}


def sources(name: str, kind: str) -> list[str]:
    """Texts of the cells of a kind, in order."""
    return ["".join(cell["source"]) for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == kind]


def code_lines(name: str) -> list[str]:
    """All lines of code that are not empty."""
    return [line for source in sources(name, "code") for line in source.splitlines() if line.strip()]


def test_there_are_both():
    assert list(NOTEBOOKS) == ["own_pictures", "published_row"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_without_outputs(name):
    for cell in NOTEBOOKS[name]["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell
        assert set(cell["metadata"]) <= {"tags"}, cell


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_code_is_short(name):
    lines = code_lines(name)
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 119
    assert not any(";" in line for line in lines), "one statement a line"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_commands_parse(name, monkeypatch):
    """Those of the cells, and those that the text tells people to type."""

    class Parsed(Exception):
        pass

    def parse(parser, arguments, original=Parser.parse):
        raise Parsed(original(parser, arguments))

    monkeypatch.setattr(Parser, "parse", parse)
    shown = [line for text in sources(name, "markdown") for line in text.splitlines() if not line.startswith("|")]
    whole = "\n".join([*code_lines(name), *shown]).replace("\\\n", "")
    typed = re.findall(r"(?:^!?(?:accelerate launch -m hf_)?|`!)segformer ([^`\n]*)", whole, re.MULTILINE)
    assert len(typed) >= 3
    for command in typed:
        command, *words = shlex.split(command.removesuffix(" {flags}"))
        with pytest.raises(Parsed):
            COMMANDS[command].main(words, f"segformer {command}")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_lead_somewhere(name):
    for text in sources(name, "markdown"):
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
            page = (FOLDER / target).read_text(encoding="utf-8")
            titles = [re.sub(r"[^\w -]", "", title).lower() for title in re.findall(r"^#+ (.*)", page, re.MULTILINE)]
            assert not anchor or anchor.replace("-", " ") in titles, (target, anchor)


# ---- executed


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Function that executes a notebook in a folder, with other values of its parameters, and returns it."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    command = tmp_path / "bin" / "segformer"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m hf_segformer "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{environment()['PATH']}")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def run(name, **parameters):
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        known = re.findall(r"\w+", " ".join(line.split("=")[0] for line in cell.source.splitlines()))
        assert set(parameters) <= set(known)
        cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
        try:
            nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
        finally:
            for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
                print(output.get("text", ""))  # a command that fails does not end the notebook
        return notebook

    return run


def outputs(notebook, position: int, kind: str) -> list:
    """What a cell of code showed as a kind, `text` for what was printed."""
    cell = [cell for cell in notebook.cells if cell.cell_type == "code"][position]
    printed = ["".join(output.text for output in cell.outputs if output.output_type == "stream")]
    return printed if kind == "text" else [out.data[kind] for out in cell.outputs if kind in out.get("data", ())]


@pytest.mark.long
def test_own_pictures_until_they_are_published(execute, tmp_path, hub):  # noqa: F811
    shutil.make_archive(str(tmp_path / "export"), "zip", write_scene_folder(tmp_path / "drawn"))
    for saved in (
        SegformerForSemanticSegmentation(SegformerConfig(**SMALL, num_labels=3)),
        SegformerImageProcessor(size={"height": 64, "width": 64}),
    ):
        saved.save_pretrained(tmp_path / "start")
    Image.fromarray(draw_scene(7)[0][:90, :120]).save(tmp_path / "photo.jpg")
    flags = "--max_steps 2 --crop_size 64 --batch_size 2 --num_workers 0"
    done = execute("own_pictures", model="start", output="runs/drawn ones", flags=flags)
    assert len(outputs(done, 1, "image/png")) == 6
    assert "mIoU" in outputs(done, 2, "text")[0]
    (picture,) = outputs(done, 3, "image/png")
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (120, 90)
    assert "SegformerConfig" in outputs(done, 4, "text/plain")[0]
    folder = tmp_path / "runs" / "drawn ones"
    config = SegformerForSemanticSegmentation.from_pretrained(folder).config
    assert config.num_labels == 11 and config.depths == [1, 1, 1, 1]
    push_folder(folder, "user/drawn", license="apache-2.0")
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.files("user/drawn"))


@pytest.mark.long
def test_published_row_is_what_numpy_counts(execute, tmp_path):
    config = SegformerConfig(**SMALL, num_labels=150, decoder_hidden_size=None, conv_decoder_hidden_size=20)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "drawn")
    SegformerImageProcessor().save_pretrained(tmp_path / "drawn")
    convert_checkpoint(tmp_path / "drawn", tmp_path / "theirs", to="mmseg")
    (checkpoint,) = (tmp_path / "theirs").glob("*.pth")
    (tmp_path / "ADE20K").mkdir()
    data = write_ade20k(tmp_path)
    zip_folder(data, tmp_path / "ADE20K" / "ADEChallengeData2016.zip")
    done = execute("published_row", checkpoint=str(checkpoint), flags="--save_predictions labels --num_workers 0")
    counts = np.zeros((150, 150), np.int64)
    for path in sorted((data / "annotations" / "validation").glob("*.png")):
        truth = np.asarray(Image.open(path)).astype(int) - 1
        predicted = np.asarray(Image.open(tmp_path / "labels" / path.name))
        np.add.at(counts, (truth[truth >= 0], predicted[truth >= 0]), 1)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    expected = 100 * (counts.diagonal()[union > 0] / union[union > 0]).mean()
    assert expected > 0
    assert outputs(done, -1, "text") == [f"ade20k-b0, tta none: mIoU {expected:.2f} here, 37.41 published\n"]

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts of others on pages: read back by an independent Markdown renderer, PyYAML and Python's own parser."""

import ast
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hf_segformer.checkpoints.adapters import convert_adapter
from hf_segformer.checkpoints.files import read_checkpoint
from hf_segformer.checkpoints.layouts import ConversionReport
from hf_segformer.evaluation.loop import check_classes
from hf_segformer.evaluation.metrics import ConfusionMatrix
from hf_segformer.evaluation.robustness import robustness_table
from hf_segformer.hub.model_card import replace_example
from hf_segformer.hub.push import check_folder, model_card, push_folder
from hf_segformer.json_files import read_json, read_text
from hf_segformer.texts import (
    code_span,
    columns,
    fenced,
    listed,
    markdown_text,
    one_line,
    public_path,
    short_repr,
    table_row,
    without_paths,
)

pytest_plugins = ["hub_fixtures"]

METRICS = {"mean_iou": 0.4321, "mean_accuracy": 0.5, "overall_accuracy": 0.75}
NASTY = [
    "<script>alert(1)</script>",
    "![x](http://evil/x.png)",
    "[a](javascript:alert(1))",
    "[a]: http://evil/",
    "<http://evil.example/>",
    "http://evil.example/x|y",
    "www.evil.example",
    "mail@evil.example",
    "road\n# Heading\n\n- item",
    "a|b",
    "a\\|b",
    "a\\|b http://evil.example",
    "`code` ``` ~~~",
    "```\n<img src=x>\n```",
    "_a_ __b__ *c* **d** ~~e~~ a_b snake_case_",
    "&lt;script&gt; &amp; &#60;img&#62;",
    "$\\frac{1}{2}$ \\(x\\) :smile:",
    "---",
    "x\n---\nlicense: evil\n",
    "a: b",
    "- a",
    "{{ config }} {% raw %}",
    "'quotes\" \"and' \\",
    "!!python/object/apply:os.system ['id']",
    "*anchor &anchor %TAG",
    "null",
    "1e5",
    "\u202egnitirw \u2066bidi\u2069 \u200b \x00 \x1b[31m \r \t \u2028 \u2029 \x85 \ufeff",
    "lone \udcff surrogate",
    "道路 дорога طريق réseau 🛣️ \u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "<!-- use -->",
    "<!-- /use -->",
    "x" * 5000,
    "道" * 5000,
    "<b>" * 2000,
]
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def page(card):
    """What a renderer makes of a card without its header: (kind, detail) of every active part, and texts of cells."""
    body = card.split("\n---\n", 1)[1]
    tokens = MARKDOWN.parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    return {
        "links": [token.attrs["href"] for token in inline if token.type == "link_open"],
        "images": [token.attrs["src"] for token in inline if token.type == "image"],
        "html": [token.content.strip() for token in [*tokens, *inline] if token.type.startswith("html")],
        "marked": [token.type for token in inline if token.type in ("em_open", "strong_open", "s_open")],
        "headings": [text_of(tokens[i + 1]) for i, token in enumerate(tokens) if token.type == "heading_open"],
        "cells": [text_of(tokens[i + 1]) for i, token in enumerate(tokens) if token.type == "td_open"],
        "blocks": [(token.info, token.content) for token in tokens if token.type == "fence"],
        "other": {token.type for token in tokens} & {"bullet_list_open", "hr", "code_block", "blockquote_open"},
    }


def text_of(token):
    return "".join(child.content for child in token.children)


def nasty_card(text, **options):
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 2, 2]))
    table = matrix.table([text, text + "2", "sky"])
    arguments = {"split": text, "protocol": text, **options}
    return table, model_card(
        "m", text, METRICS, table, {text: text, "loss": "dice"}, "overlays/a b(1).png", **arguments
    )


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_a_card_shows_every_text_as_itself(text):
    table, card = nasty_card(text)
    shown, seen = one_line(text), page(card)
    assert seen["links"] == ["https://arxiv.org/abs/2105.15203"] and seen["images"] == ["overlays/a%20b%281%29.png"]
    assert seen["html"] == ["<!-- use -->", "<!-- /use -->"] and seen["marked"] == [] and seen["other"] == set()
    texts = [f"SegFormer on {shown}", "Use", f"Results on the {shown} split", "Training"]
    assert [" ".join(heading.split()) for heading in seen["headings"]] == [" ".join(t.split()) for t in texts]
    cells = [cell.strip() for cell in seen["cells"]]
    assert cells[:6] == ["mIoU", "43.21", "mAcc", "50.00", "aAcc", "75.00"] and cells[8:] == ["loss", "dice"]
    if r"\|" not in text:  # where a blank is put between the two
        assert cells[6:8] == [shown.strip(), shown.strip()]
    assert seen["blocks"][1:] == [("", table + "\n")] and len(table.splitlines()) == 3 + 1 + 1 + 1 + 2
    assert max(map(len, card.split("\n---\n", 1)[1].splitlines())) < 3000  # bounded, entities included


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_the_header_holds_the_texts_and_nothing_else(text):
    options = {"license": "other", "license_name": text, "license_link": text, "base_model": text, "dataset_id": text}
    _, card = nasty_card(text, **options)
    header = yaml.safe_load(card.split("\n---\n", 1)[0].removeprefix("---\n"))
    shown, (model,) = one_line(text), header.pop("model-index")
    assert {key: header[key] for key in ("license_name", "base_model")} == {"license_name": shown, "base_model": shown}
    assert header["datasets"] == [shown] and header["license"] == "other"
    assert set(header) <= {"library_name", "pipeline_tag", "tags", "datasets", "base_model"} | {
        "license", "license_name", "license_link"
    }  # fmt: skip
    assert model["name"] == f"SegFormer on {shown}" and model["results"][0]["dataset"]["name"] == shown
    assert ModelCard(card).data.eval_results[0].dataset_name == shown


@pytest.mark.parametrize("text", [*NASTY[:33], 'm"); import os; ("', "```", "C:\\x\\{model}"])
def test_the_example_is_the_code_that_was_meant(text, tiny_config):
    for config in (None, tiny_config(architectures=["SegformerModel"])):
        ((language, code),) = page(model_card(text, config=config))["blocks"]
        ((_, plain),) = page(model_card("m", config=config))["blocks"]
        meant = ast.dump(ast.parse(plain)).replace("'m'", repr(public_path(text)))
        assert language == "python" and ast.dump(ast.parse(code)) == meant


def test_texts_that_look_like_marks_do_not_move_the_example(tiny_config):
    _, card = nasty_card("<!-- use -->")
    card = card.replace("sky", "<!-- use -->\nfirst\n<!-- /use -->\nsky")  # a table of another tool
    pushed = replace_example(card, "owner/name", tiny_config(), with_code=False)
    assert page(pushed)["headings"] == page(card)["headings"] and page(pushed)["cells"] == page(card)["cells"]
    assert pushed.count("owner/name") == 1 and "first" in pushed
    assert "owner/name" in replace_example(card.replace("\n", "\r\n"), "owner/name", tiny_config(), with_code=False)


def test_pictures_in_code_are_none_to_push(hub, folder):
    """Names that look like pictures stand in the table, and a picture's name may need quoting."""
    os.rename(folder / "overlays/a.png", folder / "overlays/a b(1).png")
    _, card = nasty_card("![x](absent.png)")
    (folder / "README.md").write_text(card)
    assert push_folder(folder, "user/model", license="mit").oid
    (folder / "README.md").write_text(card + "\n![x](absent.png)\n")
    with pytest.raises(ValueError, match=r"shows absent\.png"):
        push_folder(folder, "user/model", license="mit")


def test_cards_made_on_push_are_inert_too(hub, folder):
    (folder / "README.md").unlink()
    (folder / "per_class_iou.txt").write_text("class\n```\n# Heading\n<script>\u202e\n" + "x" * 5000 + "\n")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    push_folder(folder, "user/model", license="mit", dataset="<img src=x>\n# B")
    card = hub.files("user/model")["README.md"].decode()
    seen = page(card)
    assert seen["html"] == ["<!-- use -->", "<!-- /use -->"]
    assert seen["headings"] == [r"SegFormer on <img src=x>\n# B", "Use", "Results on the validation split"]
    assert len(seen["blocks"]) == 2 and "\\u202e" in seen["blocks"][1][1] and len(seen["blocks"][1][1]) < 600


# ---- the functions


def test_one_line_bounds_and_shows():
    assert one_line("a\nb\x1b\u202e\u2028\udcff\xad") == r"a\nb\x1b\u202e\u2028\udcff\xad"
    assert one_line("dish washer, C++ (old): 50% / é 道路") == "dish washer, C++ (old): 50% / é 道路"
    joined = "\u0646\u0645\u06cc\u200c\u062e\u0648 👩\u200d🚒"
    assert one_line(joined) == joined
    assert one_line("x" * 60, 60) == "x" * 60 and one_line("x" * 61, 60) == "x" * 57 + "..."
    assert one_line("道" * 30, 60) == "道" * 30 and one_line("道" * 31, 60) == "道" * 28 + "..."
    assert one_line("\n" * 10**7, 10) == r"\n\n\n..." and one_line("\u202e" * 3, 10) == r"\u202e..."
    assert one_line(None) == "None" and one_line("") == markdown_text("") == code_span("") == ""


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_table_rows_keep_their_cells(text):
    source = "\n".join(map(table_row, [("a", "b"), ("--", "--"), (markdown_text(text), code_span(text))]))
    html = MARKDOWN.render(source)
    assert html.count("<td>") == 2 and html.count("<tr>") == 2 and "<script" not in html and "<a " not in html


def test_fences_are_longer_than_any_inside():
    for inside in ("```", "x\n`````\n# A", "~~~"):
        assert MARKDOWN.render(fenced(inside)).count("<") == 4  # pre, code and their ends


def test_messages_are_bounded():
    assert len(short_repr("x" * 10**6)) < 100 and len(short_repr([["y" * 1000] * 100] * 100)) <= 200
    assert "\n" not in short_repr({"a\n": "b"}) and short_repr("road") == "'road'"
    assert listed(["a", "b\n", "c"], 2) == r"a, b\n and 1 more"


def test_tables_of_metrics_and_corruptions():
    names = ["road\nway", "道路", "x" * 5000, "\u202eabc"]
    lines = ConfusionMatrix(4).table(names).split("\n")
    assert len(lines) == 4 + 1 + 2 + 2 and len({columns(line) for line in lines[2:6]}) == 1
    assert columns(lines[0]) == 60 + 30 and lines[2].startswith(r"road\nway ") and "\u202e" not in "".join(lines)
    table = robustness_table(0.5, {"<img src=x>|\n": {1: 0.4}, "motion_blur": {1: 0.3}})
    html = MARKDOWN.render(table)
    assert "<img" not in html and html.count("<tr>") == 5 and "<td>motion_blur</td>" in html
    with pytest.raises(ValueError, match="class_names must be a list of names, received 'road'"):
        ConfusionMatrix(4).table("road")


def test_conversion_reports_stay_on_their_lines():
    report = ConversionReport("hf4", "hf4", wrapper="w\n" * 999, renamed={"a\nb" * 999: "c\x1b"}, notes=["n\nm"])
    report.dropped = {f"\u202e{i}\n": "unknown" for i in range(9)}
    lines = str(report).split("\n")
    assert len(lines) == 7 and max(map(len, lines)) < 500 and not set("\x1b\u202e") & set("".join(lines))


def test_classes_at_odds_are_named_briefly(tiny_config):
    class Data:
        num_classes, class_names, name = 3, ["a" * 5000, "b\n", "c"], "data"

    model = torch.nn.Module()
    model.config = tiny_config()
    with pytest.raises(ValueError, match="num_labels=5") as error:
        check_classes(model, Data)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


# ---- paths


def test_public_paths(tmp_path, monkeypatch):
    work = tmp_path / "work"
    (work / "runs").mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    expected = {
        str(work / "runs/b0"): "runs/b0",
        str(work): ".",
        str(tmp_path / "models/b0"): "b0",
        f"{tmp_path}/models/b0/": "b0",
        "../models/b0": "b0",
        "runs/../../models/b0": "b0",
        "runs/../b0": "b0",
        "~/weights/mit_b0.pth": "mit_b0.pth",
        "~": "~",
        str(tmp_path / "alice"): "~",
        "/home/alice": "~",
        "/Users/alice/": "~",
        "C:\\Users\\alice": "~",
        "/": ".",
        "C:\\Users\\alice\\model": "model",
        "C:/Users/alice/model": "model",
        "\\\\server\\alice\\data\\model": "model",
        "file:///home/alice/data": "data",
        f"file://{work}/data": "data",
        "runs/b0": "runs/b0",
        "nvidia/mit-b0": "nvidia/mit-b0",
        "https://example.org/a/../b": "https://example.org/a/../b",
        "hf://datasets/owner/name": "hf://datasets/owner/name",
        "ade20k": "ade20k",
        "whole image: 512": "whole image: 512",
        "": "",
    }
    assert {text: public_path(text) for text in expected} == expected
    assert public_path(Path("/data/x")) == "x"
    nested = {"model": str(tmp_path / "m"), "list": (3, None, "/a/b"), "step": 5}
    assert without_paths(nested) == {"model": "m", "list": [3, None, "b"], "step": 5}


def test_cards_hold_no_path_of_the_machine(tmp_path):
    settings = {name: str(tmp_path / name) for name in ("model", "encoder", "class_names", "class_weights", "dataset")}
    place = str(tmp_path / "out")
    card = model_card(place, place, METRICS, None, settings | {"files": [place]}, protocol=place, base_model=place)
    assert str(tmp_path) not in card and tmp_path.name not in card and '"out"' in card


def test_saved_folders_hold_no_path_of_the_machine(tmp_path, folder):
    """`_name_or_path` stays out of config.json."""
    from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor

    model = SegformerForSemanticSegmentation.from_pretrained(folder)
    assert model.name_or_path == str(folder)
    model.save_pretrained(tmp_path / "again")
    SegformerImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").glob("*.json"):
        assert str(tmp_path) not in path.read_text() and str(folder) not in path.read_text()


# ---- JSON files

BAD_JSON = {
    "deep list": (b"[" * 100_000, "nested too deeply"),
    "deep object": (b'{"a":' * 100_000, "nested too deeply"),
    "repeated key": (b'{"a": 1, "a": 2}', "the key 'a' must stand once"),
    "repeated inside": (b'{"x": [{"a": 1, "b": 2, "a": 1}]}', "the key 'a' must stand once"),
    "huge float": (b'{"a": 1e999}', "must be within floating point, got '1e999'"),
    "negative huge": (b'{"a": [-1e400]}', "must be within floating point, got '-1e400'"),
    "huge integer": (b'{"a": ' + b"9" * 5000 + b"}", "at most 300 digits, got 5000"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "must be text in UTF-8, byte 0xe9 at 7"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "must be text in UTF-8"),
    "empty": (b"", "is no JSON file"),
    "cut": (b'{"a": [1', "is no JSON file"),
    "two": (b"{} {}", "is no JSON file"),
    "list": (b"[1]", r"must hold an object of JSON, got \[1\]"),
    "null": (b"null", "must hold an object of JSON, got None"),
    "large": (b" " * (16 * 2**20 + 1), "at most 16777216"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_is_named(case, tmp_path):
    content, message = BAD_JSON[case]
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("case", ["deep list", "repeated key", "huge float", "latin-1", "list"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_every_json_of_a_model_folder_is_read_so(case, name, folder, tmp_path):
    if "index" in name:
        os.rename(folder / "model.safetensors", folder / "other.safetensors")
    (folder / name).write_bytes(BAD_JSON[case][0])
    for read in (check_folder, read_checkpoint):
        with pytest.raises(ValueError, match=BAD_JSON[case][1]) as error:
            read(folder)
        assert name in str(error.value)


def test_adapters_and_metrics_are_read_so(hub, folder, tmp_path):
    from safetensors.torch import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_bytes(BAD_JSON["deep object"][0])
    save_file({"x": torch.ones(1)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter_config\.json .*nested too deeply"):
        convert_adapter(adapter, tmp_path / "out")
    (folder / "README.md").unlink()
    for name in ("metrics.json", "per_class_iou.txt"):
        (folder / name).write_bytes(BAD_JSON["latin-1"][0])
        with pytest.raises(ValueError, match=rf"{name} must be text in UTF-8"):
            push_folder(folder, "user/model", license="mit", dataset="d")
        (folder / name).unlink()


def test_good_json_is_taken(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": NaN, "b": -Infinity, "c": 1e308, "\xc3\xa9": "\xe9\x81\x93"}\r\n')
    assert str(read_json(path)) == "{'a': nan, 'b': -inf, 'c': 1e+308, 'é': '道'}"
    path.write_bytes(b"[" * 200 + b"]" * 200)
    assert len(read_json(path, (dict, list))) == 1
    path.write_bytes(b"a\r\nb\rc\n")
    assert read_text(path) == "a\nb\nc\n"


def test_what_is_no_file_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in {"absent": "is missing", "": "is no regular file", "pipe": "is no regular file"}.items():
        with pytest.raises(ValueError, match=message):
            read_json(tmp_path / name)
    with pytest.raises(ValueError, match=r"cannot be read|is missing"):
        read_json(tmp_path / ("x" * 300))

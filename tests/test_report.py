# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The report in one file: well formed, without anything from outside, right in its numbers, and with inert texts."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from example_scripts import kept_process
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation
from hf_segformer.cli import COMMANDS
from hf_segformer.evaluation.metrics import ConfusionMatrix
from hf_segformer.reporting import Report, worst_pictures, write_report
from hf_segformer.visualization import palette_for
from scene_folder import write_scene_folder

VOID = {"meta", "img"}
HTML = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "section",
    "h1",
    "h2",
    "p",
    "div",
    "b",
    "i",
    "span",
    "figure",
}
HTML |= {"figcaption", "img", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "pre"}
SVG = {"svg", "g", "rect", "path", "polyline", "text", "title"}
INJECTIONS = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style><b>",
    "</title><!--",
    "a & b &lt;",
]
INJECTIONS += [
    "]]><iframe src=//x>",
    "javascript:alert(1)",
    "' onload='x",
    "\u202etxt\u2066",
    "line\nbreak\x00",
    "\udcff",
]


class Strict(HTMLParser):
    """Reads a page, and takes no element that is left open, unknown, or reaches outside."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.texts, self.elements = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert tag in HTML | SVG, tag
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)) and not [
            name for name in names if name.startswith("on") or name == "href"
        ]
        self.elements.append((tag, dict(attributes)))
        for name, value in attributes:
            assert name not in ("src", "srcset") or value.startswith("data:image/jpeg;base64,")
            if name == "style":
                assert re.fullmatch(r"[a-z-]+:[\w%.(),-]+", value), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.append((self.open[-1], data))

    def handle_comment(self, data):
        raise AssertionError(f"comment {data}")

    def unknown_decl(self, data):
        raise AssertionError(f"declaration {data}")

    def of(self, tag):
        """Texts within an element."""
        return [text for name, text in self.texts if name == tag]


def matrix_of(counts):
    matrix = ConfusionMatrix(len(counts))
    matrix.matrix = torch.as_tensor(np.asarray(counts, np.int64))
    return matrix


def report_of(counts, **fields):
    matrix, count = matrix_of(counts), len(counts)
    names = [f"class {index}" for index in range(count)]
    fields = {"metrics": matrix.compute(), "class_names": names, "palette": palette_for(count), **fields}
    return Report(title=fields.pop("title", "a run"), matrix=matrix, **fields)


def written(folder, counts=((3, 1), (2, 4)), **fields):
    path = folder / "report.html"
    write_report(report_of(counts, **fields), path)
    assert [entry.name for entry in folder.iterdir() if entry.is_file()] == ["report.html"]
    page = path.read_text(encoding="utf-8")
    assert "http:" not in page and "https:" not in page and "@import" not in page and "url(" not in page
    return page


def history_of(entries):
    rng = np.random.default_rng(0)
    history = []
    for step in range(20, 20 * entries + 1, 20):
        history.append({"step": step, "loss": float(2 + rng.random()), "learning_rate": 6e-5 / step})
        if step % 1000 == 0:
            history.append({"step": step, "mean_iou": 0.4 - 1 / step, "mean_iou_ema": 0.45})
    return history


@pytest.fixture(scope="module")
def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8))


# ---- texts


def test_texts_from_files_stay_texts(tmp_path):
    picture = Image.new("RGB", (30, 20))
    counts = np.ones((len(INJECTIONS),) * 2)
    page = written(
        tmp_path,
        counts,
        title=INJECTIONS[0],
        class_names=INJECTIONS,
        history=[{"step": 1, "loss": 1.0}],
        metrics=matrix_of(counts).compute()
        | {"base_lines": {INJECTIONS[1]: {"mean_iou": 0.5}}, "per_category_<b>": [0] * 11},
        worst=[(text, picture) for text in INJECTIONS],
        pictures=[(text, picture) for text in INJECTIONS],
        bad_samples=[{"reason": text} for text in INJECTIONS],
        settings={text: text for text in INJECTIONS} | {"nested": {"a": INJECTIONS}},
        command_line=["segformer", *INJECTIONS],
    )
    parsed = Strict(page)
    for text in INJECTIONS[:8]:
        for tag in ("figcaption", "li", "td", "th"):
            assert text in parsed.of(tag), tag
        assert any(text in title for title in parsed.of("title"))
    assert parsed.of("h1") == [INJECTIONS[0]]
    assert parsed.of("li")[8:] == ["\\u202etxt\\u2066", "line\\nbreak\\x00", "\\udcff"]
    assert {tag for tag, _ in parsed.elements} <= HTML | SVG and page.count("<style>") == page.count("</style>") == 1


def test_the_page_may_load_and_run_nothing(tmp_path):
    (policy,) = (a["content"] for tag, a in Strict(written(tmp_path)).elements if a.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_long_names_are_cut_but_kept_whole_for_the_pointer(tmp_path):
    names = ["road", "x" * 500]
    parsed = Strict(written(tmp_path, class_names=names))
    assert {"title": "x" * 500} in [attributes for tag, attributes in parsed.elements if tag == "span"]
    assert max(len(text) for tag in ("td", "span") for text in parsed.of(tag)) <= 60


# ---- numbers


def test_the_worst_pictures_are_those_that_are_drawn(tmp_path):
    (tmp_path / "worst").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "worst" / "1.png")
    worst = [{"file_name": "a/b.png", "mean_iou": 0.125, "panel": f"worst/{place}.png"} for place in (1, 2)]
    expected = [("a/b.png: mIoU 12.50 %", tmp_path / "worst" / "1.png")]
    assert worst_pictures({"worst": [*worst, {"file_name": "c.png", "mean_iou": 0.5}]}, tmp_path) == expected
    assert worst_pictures({}, tmp_path) == []


def section(page, heading):
    """What is below a heading."""
    return next(part for part in page.split("<section>") if part.startswith(f"<h2>{heading}<"))


def rows_of(page, heading):
    """Cells of the table below a heading, as texts."""
    rows = re.findall(r"<tr>(.*?)</tr>", section(page, heading), re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row)] for row in rows]


def test_the_table_equals_a_plain_computation(tmp_path):
    counts = np.array([[50, 10, 0, 0], [5, 1200, 15, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    counts[0, 2] = 7
    _, *rows, mean = rows_of(written(tmp_path, counts), "Classes")
    ious = []
    for index, (label, iou, accuracy, dice, pixels, share) in enumerate(rows):
        truth, predicted, hit = counts[index].sum(), counts[:, index].sum(), counts[index, index]
        assert label == f"class {index}" and pixels == f"{truth:,}"
        assert share == f"{100 * truth / counts.sum():.2f}"
        assert accuracy == (f"{100 * hit / truth:.2f}" if truth else "-")
        assert iou == (f"{100 * hit / (truth + predicted - hit):.2f}" if truth + predicted else "-")
        assert dice == (f"{200 * hit / (truth + predicted):.2f}" if truth + predicted else "-")
        ious += [hit / (truth + predicted - hit)] if truth + predicted else []
    assert mean[:2] == ["mean", f"{100 * np.mean(ious):.2f}"]


def test_confusion_and_what_is_confused_most(tmp_path):
    page = written(tmp_path, [[90, 10, 0], [300, 700, 0], [0, 0, 0]])
    titles = Strict(page).of("title")
    assert "class 0: 90.0 % found" in titles and "class 1 taken for class 0: 30.0 %" in titles
    assert not [title for title in titles if title.startswith("class 2")]
    assert rows_of(page, "Most confused")[1:] == [
        ["class 1", "class 0", "300", "30.00 %"],
        ["class 0", "class 1", "10", "10.00 %"],
    ]
    assert "Most confused" not in written(tmp_path, [[90, 0], [0, 700]])


def test_base_lines_and_further_scores(tmp_path):
    lines = {"commonest_class": {"mean_iou": 0.125, "class": "<sky>"}, "mean_label_map": {"mean_iou": 0.25}}
    more = {"base_lines": lines | {"none": {"mean_iou": None}, "pictures": 400}}
    more |= {"per_category_boundary_iou": [0.5, float("nan")], "mean_boundary_iou": 0.5, "seconds": 12.5, "step": 4000}
    counts = [[3, 1], [2, 4]]
    page = written(tmp_path, counts, metrics=matrix_of(counts).compute() | more, history=history_of(50))
    assert rows_of(page, "Base lines")[1:3] == [["always &lt;sky&gt;", "12.50 %"], ["mean label map", "25.00 %"]]
    heads, first, second, mean = rows_of(page, "Classes")
    column = heads.index("boundary IoU %")
    assert [row[column] for row in (first, second, mean)] == ["50.00", "-", "50.00"]
    assert "mean label map: 25.00 %" in page and "4,000" in page


@pytest.mark.parametrize("counts", [np.zeros((2, 2)), [[5, 0], [0, 0]], np.zeros((3, 3))])
def test_nothing_to_see(counts, tmp_path):
    """No pixel is labelled, no step was logged: a report all the same."""
    parsed = Strict(
        written(tmp_path, counts, history=[{"step": 1, "mean_iou": None}, {"step": 2, "loss": float("inf")}])
    )
    assert "Curves" not in parsed.of("h2") and "Versions" in parsed.of("h2")


def test_other_names_than_classes_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="class_names"):
        written(tmp_path, class_names=["one"])


# ---- size


def test_150_classes_and_1000_entries(tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 30, (150, 150)) + np.diag(rng.integers(0, 9000, 150))
    page = written(tmp_path, counts, history=history_of(1000))
    Strict(page)
    assert len(page) < 2_500_000  # every cell is drawn
    assert len(rows_of(page, "Classes")) == 152
    assert page.count('<text class="row"') == 300


def test_more_classes_than_fit(tmp_path):
    page = written(tmp_path, np.diag(np.arange(1200)))
    assert page.count('<text class="row"') == 400 and "The 200 of 1,200 classes with the most pixels" in page
    assert len(rows_of(page, "Classes")) == 1002 and "200 more are in metrics.json" in page


def points_of(page):
    """Of each line, in the units of its drawing, from the upper left corner."""
    lines = re.findall(r'<polyline class="([^"]*)" points="([^"]*)"', page)
    return {style: np.array([pair.split(",") for pair in points.split()], float) for style, points in lines}


def test_long_runs_keep_their_peaks(tmp_path):
    history = [{"step": step, "loss": 8.0 if step == 7777 else 2.0} for step in range(1, 20001)]
    points = points_of(written(tmp_path, history=history))["a faint"]
    assert len(points) <= 1200 and (np.diff(points[:, 0]) >= 0).all()
    peak = points[points[:, 1].argmin()]
    assert peak[0] == pytest.approx(1000 * 7777 / 20000, abs=0.2) and (points[:, 1] < 500).sum() == 1


@pytest.mark.parametrize("steps", [[1], [3], [1, 2], [999_999, 1_000_000]])
@pytest.mark.parametrize("loss", [0.0, 1e-9, 0.25, -3.0, 1e6])
def test_curves_stay_within_their_drawing(steps, loss, tmp_path):
    history = [{"step": step, "loss": loss, "learning_rate": 0.0, "mean_iou": 1.0} for step in steps]
    for points in points_of(written(tmp_path, history=history)).values():
        assert len(points) == len(steps) and points.min() >= 0 and points.max() <= 1000


def test_pictures_are_bounded(tmp_path, noise):
    Image.new("RGBA", (7, 5)).save(tmp_path / "small.png")
    (tmp_path / "page").mkdir()
    pictures = [("noise", noise), ("file", tmp_path / "small.png"), ("wide", Image.new("RGB", (9000, 3)))]
    parsed = Strict(written(tmp_path / "page", pictures=pictures))
    images = [attributes for tag, attributes in parsed.elements if tag == "img"]
    data = [base64.b64decode(attributes["src"].partition(",")[2]) for attributes in images]
    assert len(data) == 3 and max(map(len, data)) <= 250_000
    sizes = [Image.open(io.BytesIO(content)).size for content in data]
    assert sizes == [(int(a["width"]), int(a["height"])) for a in images]
    assert max(max(size) for size in sizes) <= 1400 and sizes[1] == (7, 5) and min(sizes[0]) > 300


# ---- written by the commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("reported")
    write_scene_folder(root / "pictures", 4, 7)
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=11)).save_pretrained(root / "start")
    train_in(root, root / "out")
    return root


def train_in(root, output_dir, *more):
    flags = ["--dataset", "folder", "--data_root", root / "pictures", "--model", root / "start", "--max_steps", 4]
    flags += ["--crop_size", 32, "--batch_size", 2, "--num_workers", 0, "--num_threads", 1, "--log_every", 1]
    with kept_process(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        words = [str(word) for word in [*flags, "--eval_every", 2, "--output_dir", output_dir, *more]]
        COMMANDS["train"].main(words, "segformer train")


def test_training_writes_a_report(trained):
    page = (trained / "out" / "report.html").read_text()
    parsed = Strict(page)
    metrics = json.loads((trained / "out" / "metrics.json").read_text())
    assert parsed.of("h1") == ["out: SegFormer-B0 on folder"]
    assert {"Curves", "Classes", "Confusion", "Pictures", "Settings", "Versions"} <= set(parsed.of("h2"))
    assert f"{100 * metrics['mean_iou']:.2f} %" in parsed.of("b")
    assert [row[0] for row in rows_of(page, "Classes")[1:-1]] == metrics["class_names"]
    lines = {style: len(points) for style, points in points_of(page).items() if "dashed" not in style}
    assert lines == {"a": 4, "b": 2, "c": 4}  # loss, mIoU, learning rate
    assert section(page, "Pictures").count("<img ") == 6
    settings, versions = (dict(rows_of(page, heading)) for heading in ("Settings", "Versions"))
    assert settings["max_steps"] == "4" and settings["crop_size"] == "32" and settings["seed"] == "0"
    assert versions["torch"] == torch.__version__ and "cores" in versions["CPU"]
    (command,) = parsed.of("pre")
    assert command.startswith("segformer train --dataset folder --data_root ")
    assert str(trained) not in page, "paths of the machine"


def tiles_of(page):
    return {label: value for value, label in re.findall("<div><b>([^<]*)</b><span>([^<]*)</span></div>", page)}


def test_a_finished_run_in_the_working_directory(trained, tmp_path, monkeypatch):
    """Its report is called as its folder is, and tells the steps of the run from those of the weights."""
    shutil.copytree(trained / "out", tmp_path / "here")
    progress = next((tmp_path / "here").glob("states/step-00000004/progress.json"))
    monkeypatch.chdir(tmp_path / "here")
    for export in ("best", "last"):
        train_in(trained, ".", "--resume", "--export", export)
        page = (tmp_path / "here" / "report.html").read_text()
        assert Strict(page).of("h1") == ["here: SegFormer-B0 on folder"]
        best, tiles = json.loads(progress.read_text())["best"], tiles_of(page)
        expected = str(best["step"] if export == "best" else 4)
        assert (tiles["steps to these weights"], tiles["steps taken"]) == (expected, "4")


def test_evaluation_writes_a_report(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    words = [
        "--model",
        trained / "out",
        "--dataset",
        "folder",
        "--data_root",
        trained / "pictures",
        "--num_workers",
        0,
    ]
    words += ["--num_threads", 1]
    with kept_process():
        COMMANDS["evaluate"].main([*map(str, words), "--output_dir", str(tmp_path)], "segformer evaluate")
    page = (tmp_path / "report.html").read_text()
    parsed = Strict(page)
    assert parsed.of("h1") == ["out on folder, validation"] and "Curves" not in parsed.of("h2")
    assert section(page, "Pictures").count("<img ") == 6 and str(trained) not in page
    assert rows_of(page, "Classes") == rows_of((trained / "out" / "report.html").read_text(), "Classes")
    monkeypatch.chdir(trained / "pictures")
    with kept_process():
        COMMANDS["evaluate"].main(list(map(str, words)))
    assert (trained / "pictures" / "metrics.json").exists()
    assert not (trained / "pictures" / "report.html").exists(), "a folder nobody asked for"

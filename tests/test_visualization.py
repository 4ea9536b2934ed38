# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""visualization.py: pixels against plain numpy expressions, files read back with Pillow."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segformer import visualization
from hf_segformer.evaluation.robustness import robustness_plot
from hf_segformer.visualization import (
    colorize,
    confusion_matrix_plot,
    learning_curve,
    overlay,
    palette_for,
    panel,
    per_class_bars,
    save_label_png,
)

PALETTE = [[128, 64, 128], [244, 35, 232], [70, 70, 70], [250, 170, 30], [0, 0, 142]]


def random_scene(height=37, width=53, num_labels=5, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    labels = rng.integers(0, num_labels, (height, width))
    labels[rng.random((height, width)) < 0.2] = 255
    return image, labels


def has_color(picture, color):
    return bool((np.asarray(picture) == color).all(-1).any())


# ---- palettes


@pytest.mark.parametrize("num_labels", [1, 2, 19, 150, 256, 257, 1000, 65536])
def test_palette_is_distinct_and_deterministic(num_labels):
    palette = palette_for(num_labels)
    assert palette.shape == (num_labels, 3) and palette.dtype == np.uint8
    assert len(np.unique(palette, axis=0)) == num_labels
    visualization._greedy_palette.cache_clear()
    np.testing.assert_array_equal(palette_for(num_labels), palette)
    np.testing.assert_array_equal(palette_for(num_labels + 7)[:num_labels], palette)
    palette[:] = 0  # the caller's own copy
    assert palette_for(num_labels).any()


@pytest.mark.parametrize(("num_labels", "apart"), [(8, 25), (21, 20), (150, 9)])
def test_palette_colors_can_be_told_apart(num_labels, apart):
    from cv2 import COLOR_RGB2Lab, cvtColor  # an independent conversion

    colors = np.concatenate((palette_for(num_labels), [[0, 0, 0], [255, 255, 255]])).astype(np.float32) / 255
    lab = cvtColor(colors[None], COLOR_RGB2Lab)[0]
    distance = np.linalg.norm(lab[:, None] - lab, axis=2)[~np.eye(len(lab), dtype=bool)]
    assert distance.min() > apart  # 2.3 is a just noticeable difference


# ---- colorize, overlay, label files


@pytest.mark.parametrize(
    ("wrap", "dtype"),
    [
        *((wrap, dtype) for wrap in (np.array, torch.tensor) for dtype in (np.uint8, np.int16, np.uint16, np.int64)),
        *((Image.fromarray, dtype) for dtype in (np.uint8, np.uint16)),
    ],
)
def test_colorize_equals_a_loop(wrap, dtype):
    labels = random_scene()[1].astype(dtype)
    expected = np.zeros((37, 53, 3), np.uint8)
    for y, x in np.ndindex(37, 53):
        expected[y, x] = PALETTE[labels[y, x]] if labels[y, x] < 5 else (1, 2, 3)
    colors = colorize(wrap(labels), PALETTE, ignore_color=(1, 2, 3))
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors, expected)


def test_colorize_paints_negative_ids_and_ids_from_k_on_as_ignored():
    colors = colorize(np.array([[-1, -100, 5, 4]]), PALETTE)
    np.testing.assert_array_equal(colors[0], [[0, 0, 0]] * 3 + [PALETTE[4]])


@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("kind", ["array", "pillow", "grey array", "grey pillow"])
def test_overlay_equals_numpy(alpha, kind):
    image, labels = random_scene()
    given = image[..., 0] if "grey" in kind else image
    image = np.stack([given] * 3, -1) if "grey" in kind else image
    blended = np.rint((1 - alpha) * image + alpha * np.array(PALETTE)[np.where(labels == 255, 0, labels)])
    expected = np.where((labels == 255)[..., None], image, blended)
    result = overlay(Image.fromarray(given) if "pillow" in kind else given, labels, PALETTE, alpha)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("num_labels", "mode"), [(2, "P"), (5, "P"), (17, "P"), (256, "P"), (257, "I;16"), (3000, "I;16")]
)
def test_label_png_keeps_the_ids(num_labels, mode, tmp_path):
    labels = random_scene(num_labels=num_labels)[1]
    labels[0, :2] = 255, num_labels - 1
    labels[1, 0] = 255 if num_labels <= 256 else 65535
    path, palette = tmp_path / "new folder" / "labels.png", palette_for(num_labels)
    save_label_png(path, labels, palette, ignore_color=(9, 8, 7))
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), labels)
        if mode == "P":
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colorize(labels, palette, (9, 8, 7)))
    assert [file.name for file in path.parent.iterdir()] == ["labels.png"]


@pytest.mark.parametrize(
    ("label", "num_labels", "limit"), [(256, 5, 255), (-1, 5, 255), (65536, 300, 65535), (-1, 300, 65535)]
)
def test_ids_that_do_not_fit_are_refused_and_leave_the_old_file(label, num_labels, limit, tmp_path):
    path = tmp_path / "labels.png"
    path.write_bytes(b"old")
    with pytest.raises(
        ValueError, match=rf"labels\.png must hold ids in \[0, {limit}\] with {num_labels} classes.*{label}"
    ):
        save_label_png(path, np.array([[0, label]]), palette_for(num_labels))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(self, file, **kwargs):
        file.write(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    image, labels = random_scene()
    with pytest.raises(OSError, match="disk full"):
        save_label_png(tmp_path / "labels.png", labels, PALETTE)
    with pytest.raises(OSError, match="disk full"):
        panel(image, labels, labels, list("abcde"), PALETTE, tmp_path / "panel.png")
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        learning_curve([{"step": 1, "loss": 1.0}], tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda image, labels: colorize(labels[None], PALETTE),
            r"label_map must be an integer map \(H, W\).*\(1, 37, 53\)",
        ),
        (lambda image, labels: colorize(labels / 2, PALETTE), "label_map must be an integer map.*float64"),
        (lambda image, labels: colorize(labels, [[1, 2]]), r"palette must be of shape \(K, 3\).*\(1, 2\)"),
        (lambda image, labels: colorize(labels, [[0, 0, 256]]), r"values in \[0, 255\]"),
        (
            lambda image, labels: overlay(image, labels[1:], PALETTE),
            "label_map must have the image's size 53x37, received 53x36",
        ),
        (lambda image, labels: overlay(image, labels, PALETTE, 1.5), r"alpha must lie in \[0, 1\], received 1.5"),
        (lambda image, labels: overlay(image / 255, labels, PALETTE), "image must be uint8.*float64"),
        (lambda image, labels: overlay(image[..., :2], labels, PALETTE), r"image must be uint8.*\(37, 53, 2\)"),
        (
            lambda image, labels: panel(image, None, labels, ["a"], PALETTE),
            "class_names must name all 5 classes, received 1",
        ),
        (
            lambda image, labels: panel(image, labels[:, 1:], labels, list("abcde"), PALETTE),
            "truth must have the image's size",
        ),
        (lambda image, labels: per_class_bars([0.5], ["a", "b"], "x.png"), "class_names must name all 1 classes"),
        (
            lambda image, labels: confusion_matrix_plot(np.ones((2, 3)), ["a", "b"], "x.png"),
            r"matrix must be.*\(2, 3\)",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*random_scene())


# ---- panels


@pytest.mark.parametrize(
    ("size", "tile", "grid"),  # (height, width) of the picture; (width, height) of a tile; (columns, rows)
    [
        ((128, 128), (384, 384), (2, 2)),
        ((360, 480), (480, 360), (2, 2)),
        ((1024, 2048), (800, 400), (2, 2)),
        ((100, 900), (800, 89), (1, 4)),
        ((900, 150), (133, 800), (4, 1)),
    ],
)
def test_panel_size(size, tile, grid, tmp_path):
    image, labels = random_scene(*size)
    result = panel(image, labels, labels, list("abcde"), PALETTE, tmp_path / "panel.png")
    margin, gap, caption = visualization._MARGIN, visualization._GAP, visualization._TITLE_SIZE + 10
    assert result.width == grid[0] * (tile[0] + gap) - gap + 2 * margin
    legend = result.height - 2 * margin - grid[1] * (tile[1] + caption + gap)
    assert legend > 0 and legend % visualization._ROW == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "panel.png")), np.asarray(result))


def test_panel_tiles_are_the_pictures_enlarged_without_smoothing():
    image, truth = random_scene(128, 128)
    prediction = np.roll(truth, 3, axis=1) % 5
    result = np.asarray(panel(image, truth, prediction, list("abcde"), PALETTE, alpha=0.4))
    margin, gap, caption = visualization._MARGIN, visualization._GAP, visualization._TITLE_SIZE + 10
    tiles = {}
    for index, name in enumerate(("image", "truth", "prediction", "errors")):
        top = margin + caption + index // 2 * (384 + caption + gap)
        left = margin + index % 2 * (384 + gap)
        tile = result[top : top + 384, left : left + 384]
        tiles[name] = tile[::3, ::3]
        np.testing.assert_array_equal(tiles[name].repeat(3, 0).repeat(3, 1), tile)
    np.testing.assert_array_equal(tiles["image"], image)
    np.testing.assert_array_equal(tiles["truth"], overlay(image, truth, PALETTE, 0.4))
    np.testing.assert_array_equal(tiles["prediction"], overlay(image, prediction, PALETTE, 0.4))
    red = (tiles["errors"] == visualization._WRONG).all(-1)
    np.testing.assert_array_equal(red, (truth != 255) & (truth != prediction))
    brightness = tiles["errors"].astype(int).sum(-1)
    assert brightness[(truth != 255) & ~red].min() > brightness[truth == 255].max()  # unlabelled pixels are dark


def legend_of(truth, prediction, num_labels, monkeypatch, names=None):
    """The entries that the panel of these maps draws into its legend, and the part of the picture that shows them."""
    drawn, draw = [], visualization._legend

    def spy(entries, width):
        drawn.append((entries, draw(entries, width)))
        return drawn[0][1]

    monkeypatch.setattr(visualization, "_legend", spy)
    names = names or [f"class {i}" for i in range(num_labels)]
    image = np.full((*prediction.shape, 3), 200, np.uint8)
    result = panel(image, truth, prediction, names, palette_for(num_labels))
    (entries, legend), margin = drawn[0], visualization._MARGIN
    shown = np.asarray(result)[-margin - legend.height : -margin, margin:-margin]
    np.testing.assert_array_equal(shown, legend)
    return entries, shown


def test_legend_lists_only_the_classes_that_occur(monkeypatch):
    truth, prediction = np.full((40, 50), 255), np.full((40, 50), 7)
    truth[:9], truth[9:12], prediction[:5] = 2, 30, 4
    entries, shown = legend_of(truth, prediction, 40, monkeypatch)
    palette = palette_for(40)
    assert entries == [(i, f"class {i}", tuple(palette[i].tolist())) for i in (2, 4, 7, 30)]
    assert [i for i in range(40) if has_color(shown, palette[i])] == [2, 4, 7, 30]


def test_legend_without_truth(monkeypatch):
    entries, _ = legend_of(None, np.array([[3, 1], [255, 1]]), 5, monkeypatch)
    assert [name for _, name, _ in entries] == ["class 1", "class 3"]


def test_legend_of_150_classes_with_long_names_shows_every_swatch_once(monkeypatch):
    names = [f"class {i}" if i % 9 else f"a class with a long name; and synonyms, number {i}" for i in range(150)]
    names[5] = "x" * 400  # wider than the panel
    prediction = np.arange(150).reshape(10, 15).repeat(20, 0).repeat(30, 1)
    entries, shown = legend_of(None, prediction, 150, monkeypatch, names)
    assert len(entries) == 150
    codes, counts = np.unique(shown.astype(int) @ (65536, 256, 1), return_counts=True)
    swatches = counts[np.isin(codes, palette_for(150).astype(int) @ (65536, 256, 1))]
    assert len(swatches) == 150 and swatches.min() >= (visualization._SWATCH - 2) ** 2
    assert (shown[:, -2:] == 255).all()  # nothing runs off the right


def test_panel_title_changes_only_the_top():
    image, labels = random_scene()
    plain = np.asarray(panel(image, labels, labels, list("abcde"), PALETTE))
    titled = np.asarray(panel(image, labels, labels, list("abcde"), PALETTE, title="a" * 300))
    added = titled.shape[0] - plain.shape[0]
    assert added > 0
    np.testing.assert_array_equal(titled[-plain.shape[0] + visualization._MARGIN :], plain[visualization._MARGIN :])
    assert (titled[:added] < 128).any() and (titled[:, -visualization._MARGIN :] == 255).all()


def test_panel_of_a_real_picture(shared_data, tmp_path):
    folder = shared_data / "camvid"
    classes = json.loads((folder / "classes.json").read_text())
    picture = sorted((folder / "val" / "images").glob("*.jpg"))[0]
    truth = np.asarray(Image.open(folder / "val" / "annotations" / f"{picture.stem}.png"))
    prediction = np.where(truth == 255, 0, np.roll(truth, 5, axis=1)) % 11
    path = tmp_path / "panel.png"
    panel(Image.open(picture), truth, prediction, classes["names"], classes["palette"], path, title=picture.name)
    shown = np.asarray(Image.open(path))
    for i, color in enumerate(classes["palette"]):
        assert has_color(shown[-90:], color) == (i in truth or i in prediction)


# ---- plots


def drawn_share(path):
    """Share of the pixels that are neither white nor grey: what the data drew, not the axes."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (np.ptp(pixels, axis=2) > 40).mean()


def full_history(steps=200):
    history = [{"step": i, "loss": 2 / i**0.5, "learning_rate": 6e-5 * (1 - i / steps)} for i in range(1, steps + 1)]
    for row in history[19::20]:
        row["mean_iou"] = 0.8 * (1 - 1 / row["step"])
    return history


@pytest.mark.parametrize(
    ("history", "at_least"),
    [
        (full_history(), 5e-3),
        (full_history()[:3], 1e-3),
        ([{"step": 7, "loss": 0.5, "learning_rate": 1e-4, "mean_iou": 0.3}], 1e-4),
        (
            [{"step": 1, "loss": float("nan"), "learning_rate": 0.0}, {"step": 2, "loss": 0.4, "learning_rate": 0.1}],
            1e-4,
        ),
        ([{"step": 1, "loss": 0.5}, {"step": 2, "mean_iou": float("nan")}, {"step": 3, "mean_iou": None}], 1e-4),
        ([], 0),
    ],
    ids=["full", "short", "one point", "nan", "gaps", "empty"],
)
def test_learning_curve_draws_what_there_is(history, at_least, tmp_path):
    path = tmp_path / "new folder" / "curve.png"
    learning_curve(history, path)
    assert drawn_share(path) >= at_least
    assert [file.name for file in path.parent.iterdir()] == ["curve.png"]


def axes_of(monkeypatch, plot, *arguments):
    """The axes of the figure that a plotting function saves."""
    figures, save = [], visualization.save_figure

    def spy(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(visualization, "save_figure", spy)
    plot(*arguments)
    return figures[0].axes


def test_learning_curve_shows_the_data_with_units(monkeypatch, tmp_path):
    history = full_history()
    history[50]["loss"] = float("inf")
    loss, rate, score = axes_of(monkeypatch, learning_curve, history, tmp_path / "curve.png")
    steps = np.array([row["step"] for row in history])
    finite = np.delete(np.arange(200), 50)
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), steps[finite])
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [history[i]["loss"] for i in finite])
    values, smoothed = loss.lines[0].get_ydata(), loss.lines[1].get_ydata()
    for i, reach in ((0, 0), (3, 3), (60, 4), (197, 1), (198, 0)):
        assert smoothed[i] == pytest.approx(np.mean(values[i - reach : i + reach + 1]))
    np.testing.assert_array_equal(loss.lines[2].get_xdata(), [51])  # where the loss was not finite
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [row["learning_rate"] for row in history])
    np.testing.assert_array_equal(score.lines[0].get_xdata(), steps[19::20])
    np.testing.assert_allclose(score.lines[0].get_ydata(), [100 * row["mean_iou"] for row in history[19::20]])
    labels = (loss.get_ylabel(), rate.get_ylabel(), rate.get_xlabel(), score.get_ylabel())
    assert labels == ("training loss", "learning rate", "step (optimizer updates)", "validation mIoU (%)")


def test_learning_curve_shows_averaged_weights(monkeypatch, tmp_path):
    history = [{"step": 1, "loss": 1.0}, {"step": 1, "mean_iou": 0.25, "mean_iou_ema": 0.5}]
    history.append({"step": 2, "mean_iou": 0.375, "mean_iou_ema": float("nan")})
    loss, _, score = axes_of(monkeypatch, learning_curve, history, tmp_path / "curve.png")
    assert [line.get_ydata().tolist() for line in score.lines] == [[25, 37.5], [50]]
    texts = [text.get_text() for text in loss.get_legend().get_texts()]
    assert texts == ["loss", "validation mIoU (best 37.50 %)", "of averaged weights (best 50.00 %)"]
    everything = [row | {"mean_iou_ema": row["mean_iou"]} if "mean_iou" in row else row for row in full_history()]
    everything[50]["loss"] = float("inf")
    for rows in (history, everything):
        legend = axes_of(monkeypatch, learning_curve, rows, tmp_path / "curve.png")[0].get_legend()
        left, right = legend.get_window_extent().intervalx
        assert left >= 0 and right <= legend.figure.bbox.width


def test_per_class_bars_are_sorted_with_absent_classes_last(monkeypatch, tmp_path):
    values, names = (
        [0.25, float("nan"), 0.75, 0.5],
        ["a", "b", "$c_{$", "d"],
    )  # no formula: names are shown as they are
    (axes,) = axes_of(monkeypatch, per_class_bars, values, names, tmp_path / "bars.png")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$c_{$", "d", "a", "b"]
    assert [bar.get_width() for bar in axes.patches] == [75, 50, 25, 0]
    assert [text.get_text() for text in axes.texts] == ["75.0", "50.0", "25.0", "absent"]
    assert axes.get_title() == "mean IoU 50.00 %" and axes.get_xlabel() == "IoU (%)"
    assert drawn_share(tmp_path / "bars.png") > 0.1


@pytest.mark.parametrize("wrap", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_confusion_matrix_plot_is_normalized_by_row(wrap, monkeypatch, tmp_path):
    matrix = [[3, 1, 0], [0, 0, 0], [1, 0, 1]]
    arguments = (wrap(matrix), ["road", "absent", "car"], tmp_path / "matrix.png")
    axes, colorbar = axes_of(monkeypatch, confusion_matrix_plot, *arguments)
    np.testing.assert_array_equal(axes.images[0].get_array(), [[75, 25, 0], [np.nan] * 3, [50, 0, 50]])
    assert [text.get_text() for text in axes.texts] == ["75", "25", "50", "50"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "truth") and "%" in colorbar.get_ylabel()
    assert drawn_share(tmp_path / "matrix.png") > 0.05


def test_plots_of_150_classes_and_other_formats(tmp_path):
    names = [f"a class with quite a long name {i}" for i in range(150)]
    per_class_bars([float("nan")] * 150, names, tmp_path / "bars.png", label="accuracy")
    confusion_matrix_plot(np.eye(150), names, tmp_path / "matrix.png")
    assert max(max(Image.open(tmp_path / name).size) for name in ("bars.png", "matrix.png")) < 6000
    learning_curve(full_history(), tmp_path / "curve.svg")
    assert b"<svg" in (tmp_path / "curve.svg").read_bytes()


def test_plots_leave_pyplot_alone(tmp_path):
    program = (
        "import sys\n"
        "import hf_segformer.visualization as v\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"v.learning_curve([{{'step': 1, 'loss': 1.0}}], {str(tmp_path / 'curve.png')!r})\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).resolve().parent.parent, check=True)


# ---- names of others

NAMES_OF_OTHERS = [
    "x" * 5000,
    "road\nway\ttab",
    r"$\frac{1}{0$",
    "道路" * 3000,
    "\u202e\x00\x1b[31m",
    "дорога",
    "\udcff",
    "",
]


@pytest.mark.filterwarnings("error")
def test_names_of_others_in_pictures(tmp_path):
    count = len(NAMES_OF_OTHERS)
    label_map, palette = np.arange(count)[None].repeat(9, 0), palette_for(count)
    plain = panel(np.zeros((9, count, 3), np.uint8), None, label_map, ["y" * 48] * count, palette)
    picture = panel(np.zeros((9, count, 3), np.uint8), None, label_map, NAMES_OF_OTHERS, palette, title="t\n" * 5000)
    assert picture.width == plain.width and picture.height < plain.height + 60
    per_class_bars(np.linspace(0, 1, count), NAMES_OF_OTHERS, tmp_path / "bars.png", label="$x$\n" * 999)
    confusion_matrix_plot(np.eye(count), NAMES_OF_OTHERS, tmp_path / "matrix.png")
    robustness_plot(0.5, {"$\\frac{" + "a" * 5000: {1: 0.3}, "fog\n": {2: 0.2}}, tmp_path / "robustness.png")
    for name in ("bars", "matrix", "robustness"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert max(image.size) < 1500


def test_legends_show_letters_that_there_are(monkeypatch):
    """Cyrillic is in matplotlib's font; for Chinese the id stands in front."""
    from hf_segformer.lettering import legend_text, plot_names

    assert legend_text("road", 3, 15)[0] == "road" and legend_text("дорога é", 3, 15)[0] == "дорога é"
    assert legend_text("road", 3, 15)[1].getname() != legend_text("дорога", 3, 15)[1].getname()
    assert legend_text("道路 1", 3, 15)[0] == "3: ?? 1" and plot_names(["road", "道路"]) == ["road", "1: ??"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert legend_text("дорога", 3, 17)[0] == "3: ??????"


def test_titles_hold_no_path_of_the_machine(tmp_path):
    maps = np.zeros((9, 9, 3), np.uint8), None, np.zeros((9, 9), int), ["a"], [[1, 2, 3]]
    titled = panel(*maps, title=str(tmp_path / "street.png"))
    np.testing.assert_array_equal(np.asarray(titled), np.asarray(panel(*maps, title="street.png")))


def test_pictures_of_thousands_of_classes_are_bounded(tmp_path):
    count = 2500
    names = [f"class {i}" for i in range(count)]
    per_class_bars(np.linspace(0, 1, count), names, tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as image:
        assert image.height < 16_000
    label_map = np.arange(count).reshape(50, 50)
    assert panel(np.zeros((50, 50, 3), np.uint8), None, label_map, names, palette_for(count)).height < 4000

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of results: coloured label maps, overlays, panels with a legend, learning curves, per-class plots.

Label maps are (H, W) integers as arrays, tensors or Pillow images; ids outside [0, K), such as 255, mean "ignored".
Palettes are (K, 3) RGB in 0..255. Files are written whole or not at all.
"""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from .evaluation.metric_values import check_class_names
from .files import atomic_file
from .lettering import legend_text, plot_names, room_for, shorten, title_text
from .texts import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _MUTED, _PAPER = (33, 37, 41), (108, 117, 125), (255, 255, 255)
_WRONG = (220, 38, 38)
_MARGIN, _GAP = 24, 16  # pixels around a panel, and between its parts
_TILE_SIDES = (384, 800)  # the longer side of a tile lies in this range of pixels
_TITLE_SIZE, _LEGEND_SIZE, _SWATCH, _ROW = 19, 15, 16, 26  # pixels; _ROW is the pitch of the legend's lines
_LEGEND_ENTRIES, _BAR_ROWS, _AXIS_NAMES = 300, 500, 250  # as many names at most in a legend, beside bars, on an axis

# Well apart in hue and lightness for most colour-blind readers too (Okabe and Ito, Color Universal Design, 2008).
_FIRST_COLORS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)
_GREEDY_COLORS = 256


def palette_for(num_labels: int) -> np.ndarray:
    """Distinct colours for a data set that brings none, the same at every call.

    A longer palette begins with the shorter one. The first 256 colours are far apart in CIELAB.

    Args:
        num_labels: number of classes K, up to 65536.

    Returns:
        uint8 (K, 3) RGB.
    """
    palette = _greedy_palette()
    if num_labels > len(palette):
        # An odd multiplier permutes the 24-bit colours, so these are distinct from one another too.
        codes = np.arange(1, num_labels + 1, dtype=np.int64) * 0x9E3779B1 % (1 << 24)
        codes = codes[~np.isin(codes, palette.astype(np.int64) @ (65536, 256, 1))]
        palette = np.concatenate((palette, np.stack((codes >> 16, codes >> 8 & 255, codes & 255), axis=1)))
    return palette[:num_labels].astype(np.uint8)


@lru_cache(maxsize=1)
def _greedy_palette() -> np.ndarray:
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _cielab(candidates)
    readable = (lab[:, 0] > 28) & (lab[:, 0] < 90)
    candidates, lab = candidates[readable], lab[readable]
    chosen = [np.array(color, np.uint8) for color in _FIRST_COLORS]
    # Black and white are taken too: they are the ignored pixels and the paper.
    taken = _cielab(np.array([*_FIRST_COLORS, (0, 0, 0), (255, 255, 255)], np.uint8))
    distance = np.linalg.norm(lab[:, None] - taken, axis=2).min(1)
    while len(chosen) < _GREEDY_COLORS:
        farthest = int(distance.argmax())
        chosen.append(candidates[farthest])
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=1))
    return np.stack(chosen)


def _cielab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of sRGB colours, D65 white."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = linear @ to_xyz.T / to_xyz.sum(1)
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=1)


def colorize(label_map: Any, palette: Any, ignore_color: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """Paint each class in its colour.

    Args:
        label_map: (H, W) class ids.
        palette: (K, 3) RGB in 0..255.
        ignore_color: RGB of every id outside [0, K).

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        ValueError: `label_map` is not a 2-D map of integers, or `palette` not of shape (K, 3) in 0..255.
    """
    label_map, palette = _label_array(label_map), _palette_array(palette)
    colors = np.concatenate((palette, np.array([ignore_color], np.uint8)))
    return colors[np.where(_is_class(label_map, len(palette)), label_map, len(palette))]


def save_label_png(
    path: str | os.PathLike, label_map: Any, palette: Any, ignore_color: Sequence[int] = (0, 0, 0)
) -> None:
    """Save a label map as a PNG from which the ids are read back unchanged.

    Up to 256 classes it is an 8-bit palette PNG, which viewers show in colour and `np.asarray(Image.open(path))` reads
    as ids; above, a 16-bit grey one without colours.

    Args:
        path: the file; its folder is created.
        label_map: (H, W) ids in 0..255 up to 256 classes, in 0..65535 above.
        palette: (K, 3) RGB in 0..255.
        ignore_color: RGB of ids from K on.

    Raises:
        ValueError: an id does not fit into the file.
    """
    label_map, palette = _label_array(label_map), _palette_array(palette)
    dtype = np.uint8 if len(palette) <= 256 else np.uint16
    lowest, highest = (int(label_map.min()), int(label_map.max())) if label_map.size else (0, 0)
    if lowest < 0 or highest > np.iinfo(dtype).max:
        raise ValueError(
            f"label_map for {path} must hold ids in [0, {np.iinfo(dtype).max}] with {len(palette)} classes, "
            f"received ids in [{lowest}, {highest}]"
        )
    image = Image.fromarray(np.ascontiguousarray(label_map, dtype=dtype))
    if dtype == np.uint8:
        # All 256 entries, or Pillow packs the pixels into fewer bits and loses the ids from K on.
        ignored = np.tile(np.array(ignore_color, np.uint8), (256 - len(palette), 1))
        image.putpalette(np.concatenate((palette, ignored)).tobytes())
    _save_png(image, path)


def overlay(image: Any, label_map: Any, palette: Any, alpha: float = 0.5) -> np.ndarray:
    """Blend the colours of the classes over the picture; ignored pixels show the picture alone.

    Args:
        image: Pillow image, or uint8 array (H, W, 3) or (H, W).
        label_map: (H, W) class ids.
        palette: (K, 3) RGB in 0..255.
        alpha: weight of the colours, in [0, 1].

    Returns:
        uint8 (H, W, 3) RGB, rounded to nearest.

    Raises:
        ValueError: the sizes differ, or `alpha` lies outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], received {alpha}")
    image, label_map = _rgb_array(image), _label_array(label_map)
    _check_size("label_map", label_map, image)
    blended = np.rint((1 - alpha) * image + alpha * colorize(label_map, palette)).astype(np.uint8)
    return np.where(_is_class(label_map, len(palette))[..., None], blended, image)


def panel(
    image: Any,
    truth: Any | None,
    prediction: Any | None,
    class_names: Sequence[str],
    palette: Any,
    path: str | os.PathLike | None = None,
    *,
    title: str | None = None,
    alpha: float = 0.65,
) -> Image.Image:
    """One picture with image, truth, prediction, a map of the errors, and a legend of the classes that occur.

    Small pictures are enlarged by whole factors without smoothing, large ones reduced.

    Args:
        image: Pillow image, or uint8 array (H, W, 3) or (H, W).
        truth: (H, W) labels, or None where there are none: then there is no map of the errors either.
        prediction: (H, W) class ids, or None where there are none.
        class_names: K names.
        palette: (K, 3) RGB in 0..255.
        path: PNG file to write, if any; its folder is created.
        title: a line above the pictures, the file's name for example.
        alpha: weight of the colours over the picture, in [0, 1].

    Returns:
        The panel, RGB.

    Raises:
        ValueError: sizes differ, or there are not as many names as colours.
    """
    image, palette = _rgb_array(image), _palette_array(palette)
    check_class_names(class_names, len(palette))
    tiles = [("image", image)]
    if truth is not None:
        truth = _label_array(truth)
        _check_size("truth", truth, image)
        tiles.append(("truth", overlay(image, truth, palette, alpha)))
    if prediction is not None:
        prediction = _label_array(prediction)
        tiles.append(("prediction", overlay(image, prediction, palette, alpha)))
    if truth is not None and prediction is not None:
        tiles.append(_error_tile(image, truth, prediction, len(palette)))
    grid = _grid(tiles)
    ids = _occurring(truth, prediction, len(palette))
    legend = _legend([(i, class_names[i], tuple(palette[i].tolist())) for i in ids], grid.width)
    header = [] if title is None else [_text_line(title, grid.width, _TITLE_SIZE + 3)]
    result = _stack([*header, grid, legend])
    if path is not None:
        _save_png(result, path)
    return result


def _occurring(truth: np.ndarray | None, prediction: np.ndarray | None, num_labels: int) -> list[int]:
    ids = np.unique(
        np.concatenate([np.unique(label_map) for label_map in (truth, prediction) if label_map is not None])
    )
    return ids[_is_class(ids, num_labels)].tolist()


def _error_tile(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, num_labels: int
) -> tuple[str, np.ndarray]:
    """Wrong pixels in red over a pale grey picture, in which pixels without truth are dark."""
    labelled = _is_class(truth, num_labels)
    wrong = labelled & (truth != prediction)
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)[..., None]
    tile = np.where(labelled[..., None], 150 + 0.4 * grey, 0.3 * grey).repeat(3, axis=2).astype(np.uint8)
    tile[wrong] = _WRONG
    return f"wrong: {100 * wrong.sum() / max(labelled.sum(), 1):.1f} % of labelled pixels", tile


def _grid(tiles: list[tuple[str, np.ndarray]]) -> Image.Image:
    """The titled tiles in as many columns as make the whole closest to 3:2."""
    images = [_to_tile_size(array) for _, array in tiles]
    width, height = images[0].size
    caption = _TITLE_SIZE + 10
    shapes = [(columns, len(tiles) // columns) for columns in (1, 2, 4) if len(tiles) % columns == 0]
    columns, rows = min(
        shapes, key=lambda shape: abs(np.log(shape[0] * width / (shape[1] * (height + caption)) / 1.5))
    )
    pitch = (width + _GAP, height + caption + _GAP)
    canvas = Image.new("RGB", (columns * pitch[0] - _GAP, rows * pitch[1] - _GAP), _PAPER)
    for index, ((title, _), tile) in enumerate(zip(tiles, images, strict=True)):
        left, top = index % columns * pitch[0], index // columns * pitch[1]
        canvas.paste(_text_line(title, width, _TITLE_SIZE), (left, top))
        canvas.paste(tile, (left, top + caption))
    return canvas


def _to_tile_size(array: np.ndarray) -> Image.Image:
    image, side = Image.fromarray(array), max(array.shape[:2])
    smallest, largest = _TILE_SIDES
    if side < smallest:
        factor = -(-smallest // side)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if side > largest:
        size = (max(round(image.width * largest / side), 1), max(round(image.height * largest / side), 1))
        return image.resize(size, Image.Resampling.BOX)  # an average: thin classes fade but do not vanish
    return image


def _legend(entries: list[tuple[int, str, tuple[int, ...]]], width: int) -> Image.Image:
    """Swatches with names, read downwards, in as many columns as fit."""
    indent, left_out = _SWATCH + 9, len(entries) - _LEGEND_ENTRIES
    lines = [(*legend_text(name, label, _LEGEND_SIZE), color) for label, name, color in entries[:_LEGEND_ENTRIES]]
    if left_out > 0:
        lines.append((*legend_text(f"and {left_out} more", 0, _LEGEND_SIZE), _PAPER))
    widest = max((font.getlength(text) for text, font, _ in lines), default=0)
    pitch = min(int(widest) + indent + 2 * _GAP, width)
    rows = max(-(-len(lines) // max(width // pitch, 1)), 1)
    canvas = Image.new("RGB", (width, rows * _ROW), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (text, font, color) in enumerate(lines):
        left, top = index // rows * pitch, index % rows * _ROW + (_ROW - _SWATCH) // 2
        box = (left, top, left + _SWATCH - 1, top + _SWATCH - 1)
        draw.rectangle(box, fill=color, outline=_MUTED)
        text = shorten(text, font, pitch - indent)
        draw.text((left + indent, top + _SWATCH / 2), text, fill=_INK, font=font, anchor="lm")
    return canvas


def _text_line(title: str, width: int, size: int) -> Image.Image:
    canvas, (text, font) = Image.new("RGB", (width, size + 6), _PAPER), title_text(title, size)
    ImageDraw.Draw(canvas).text((0, size / 2 + 2), shorten(text, font, width), fill=_INK, font=font, anchor="lm")
    return canvas


def _stack(parts: list[Image.Image]) -> Image.Image:
    height = sum(part.height for part in parts) + _GAP * (len(parts) - 1)
    canvas = Image.new("RGB", (parts[0].width + 2 * _MARGIN, height + 2 * _MARGIN), _PAPER)
    top = _MARGIN
    for part in parts:
        canvas.paste(part, (_MARGIN, top))
        top += part.height + _GAP
    return canvas


def _label_array(label_map: Any) -> np.ndarray:
    array = np.asarray(label_map.cpu() if hasattr(label_map, "cpu") else label_map)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise ValueError(f"label_map must be an integer map (H, W), received {array.dtype} of shape {array.shape}")
    return array


def _palette_array(palette: Any) -> np.ndarray:
    array = np.asarray(palette)
    if array.ndim != 2 or array.shape[1] != 3 or array.min() < 0 or array.max() > 255:
        raise ValueError(f"palette must be of shape (K, 3) with values in [0, 255], received shape {array.shape}")
    return array.astype(np.uint8)


def _rgb_array(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.stack((array,) * 3, axis=-1)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(f"image must be uint8 (H, W, 3) or (H, W), received {array.dtype} of shape {array.shape}")
    return array


def _check_size(name: str, label_map: np.ndarray, image: np.ndarray) -> None:
    if label_map.shape != image.shape[:2]:
        raise ValueError(
            f"{name} must have the image's size {image.shape[1]}x{image.shape[0]}, received "
            f"{label_map.shape[1]}x{label_map.shape[0]}"
        )


def _is_class(ids: np.ndarray, num_labels: int) -> np.ndarray:
    return (ids >= 0) & (ids < num_labels)


def _save_png(image: Image.Image, path: str | os.PathLike) -> None:
    with atomic_file(path) as file:
        image.save(file, format="PNG")


def learning_curve(history: Sequence[Mapping[str, float]], path: str | os.PathLike) -> None:
    """Plot loss and learning rate over the steps, and validation mIoU, also of averaged weights, where there is one.

    Args:
        history: one mapping per logged step: `step`, and any of `loss`, `learning_rate`, `mean_iou` and
            `mean_iou_ema` (fractions).
        path: file to write, PNG unless its suffix names another format; its folder is created.
    """
    figure = new_figure(8, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps, losses = _series(history, "loss")
    few = "o" if len(steps) <= 30 else None
    upper.plot(steps, losses, color="tab:blue", alpha=1 if few else 0.35, linewidth=1.2, marker=few, label="loss")
    if not few:
        upper.plot(steps, smoothed(losses), color="tab:blue", linewidth=2, label="loss, smoothed")
    broken = [row["step"] for row in history if not np.isfinite(row.get("loss", 0))]
    if broken:
        upper.plot(broken, np.zeros(len(broken)), "x", color="tab:red", clip_on=False, label="loss not finite")
    upper.set_ylim(bottom=0)
    upper.set_ylabel("training loss")
    handles, labels = upper.get_legend_handles_labels()
    evaluations = [
        (*_series(history, key), color, label)
        for key, color, label in (
            ("mean_iou", "tab:orange", "validation mIoU"),
            ("mean_iou_ema", "tab:purple", "of averaged weights"),
        )
    ]
    if any(len(steps) for steps, *_ in evaluations):
        right = upper.twinx()
        for steps, scores, color, label in evaluations:
            if len(steps):
                handles += right.plot(steps, 100 * scores, color=color, marker="o", markersize=4)
                labels.append(f"{label} (best {100 * scores.max():.2f} %)")
        right.set_ylim(0, 100)
        right.set_ylabel("validation mIoU (%)")
        right.spines[["top", "left"]].set_visible(False)
    fitting = 3 if len(labels) <= 3 else 2
    upper.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=fitting, frameon=False)
    steps, rates = _series(history, "learning_rate")
    lower.plot(steps, rates, color="tab:green", marker="o" if len(steps) <= 30 else None)
    lower.set_ylim(bottom=0)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lower.set_ylabel("learning rate")
    lower.set_xlabel("step (optimizer updates)")
    lower.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _series(history: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"], row[key]) for row in history if row.get(key) is not None and np.isfinite(row[key])]
    steps, values = np.array(points, float).reshape(-1, 2).T
    return steps, values


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over each value and as many neighbours on either side: up to a fortieth of all, fewer at the ends.

    A window that reached further to one side than to the other would bend the curve where it is steep.
    """
    sums = np.concatenate(([0.0], values.cumsum()))
    centers = np.arange(len(values))
    reach = np.minimum(max(len(values) // 40, 2), np.minimum(centers, centers[::-1]))
    return (sums[centers + reach + 1] - sums[centers - reach]) / (2 * reach + 1)


def per_class_bars(
    values: Sequence[float], class_names: Sequence[str], path: str | os.PathLike, label: str = "IoU"
) -> None:
    """Bars of a score per class, best first, with the mean; classes without a score (nan) come last.

    Args:
        values: K fractions in [0, 1].
        class_names: K names.
        path: file to write, PNG unless its suffix names another format; its folder is created.
        label: name of the score.

    Raises:
        ValueError: there are not as many names as values.
    """
    scores = np.asarray(values, float)
    check_class_names(class_names, len(scores))
    names, label = plot_names(class_names), one_line(label, 60)
    order = np.argsort(-scores, kind="stable")  # nan goes last
    figure = new_figure(7 + room_for(names), 1.2 + 0.24 * min(len(scores), _BAR_ROWS))
    axes = figure.subplots()
    rows = np.arange(len(scores))
    axes.barh(rows, 100 * np.nan_to_num(scores[order]), color="tab:blue", height=0.7)
    named = rows[:: max(-(-len(rows) // _BAR_ROWS), 1)]
    for row, value in zip(named, scores[order[named]], strict=True):
        text = "absent" if np.isnan(value) else f"{100 * value:.1f}"
        place: dict[str, Any] = {"va": "center", "bbox": {"color": "w", "pad": 1}}
        axes.text(100 * np.nan_to_num(value) + 1, row, text, fontsize=8, **place)
    if not np.isnan(scores).all():
        mean = float(100 * np.nanmean(scores))
        axes.axvline(mean, color="tab:orange", linestyle="--", zorder=0.5)
        axes.set_title(f"mean {label} {mean:.2f} %", fontsize=11, parse_math=False)
    axes.set_yticks(named, [names[i] for i in order[named]], fontsize=9, parse_math=False)
    axes.set_xlim(0, 108)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set_xlabel(f"{label} (%)", parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def confusion_matrix_plot(matrix: Any, class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Plot a confusion matrix, each row in percent of the true class's pixels.

    Args:
        matrix: (K, K) counts, rows the truth, columns the prediction; array or tensor.
        class_names: K names.
        path: file to write, PNG unless its suffix names another format; its folder is created.

    Raises:
        ValueError: `matrix` is not square, or there are not as many names as rows.
    """
    counts = np.asarray(matrix.cpu() if hasattr(matrix, "cpu") else matrix).astype(float)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"matrix must be of shape (K, K), received {counts.shape}")
    check_class_names(class_names, len(counts))
    totals = counts.sum(1, keepdims=True)
    share = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    names = plot_names(class_names)
    side = min(3.5 + 0.42 * len(counts), 24) + room_for(names)  # inches
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    axes.set_facecolor("0.85")  # shows in the rows of classes that do not occur
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class's pixels (%)")
    font_size = 9 if len(counts) <= 40 else 6
    step = max(-(-len(counts) // _AXIS_NAMES), 1)
    ticks = np.arange(0, len(counts), step)
    axes.set_xticks(ticks, names[::step], rotation=90, fontsize=font_size, parse_math=False)
    axes.set_yticks(ticks, names[::step], fontsize=font_size, parse_math=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    for row, column in np.argwhere(share >= 0.5) if len(counts) <= 40 else ():
        value = share[row, column]
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color="w" if value > 60 else "k")
    save_figure(figure, path)


def new_figure(width: float, height: float) -> "Figure":
    """A figure (inches) outside pyplot, whose global state and choice of backend belong to the caller."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save_figure(figure: "Figure", path: str | os.PathLike) -> None:
    """Write a figure whole or not at all, as PNG unless the suffix names another format."""
    with atomic_file(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:] or "png")

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A confusion matrix as SVG, and the pairs of classes that are confused most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..texts import columns, one_line
from .markup import name, percent, plain, table

_MOST_CLASSES = 200
_FAINTEST = 0.005  # share of the true class's pixels; fainter cells are not drawn
_NAME_COLUMNS = 24
_PAIRS = 12


def confusion_drawing(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Rows of the truth, columns of the prediction, in percent of the row, for the classes with most pixels.

    Args:
        matrix: (K, K) counts.
        class_names: K names.
    """
    totals = matrix.sum(1)
    kept = np.sort(np.argsort(-(totals + matrix.sum(0)), kind="stable")[:_MOST_CLASSES])
    shares = np.divide(
        matrix[kept][:, kept], totals[kept, None], where=totals[kept, None] > 0, out=np.zeros((len(kept),) * 2)
    )
    pitch = next((size for most, size in ((12, 40), (30, 28), (60, 16)) if len(kept) <= most), 12)
    short = [one_line(class_names[index], _NAME_COLUMNS) for index in kept]
    font = min(13, pitch - 1)
    margin = round(max(map(columns, short)) * font * 0.62) + 10
    cells = [_cell(shares, row, column, kept, class_names, pitch) for row, column in np.argwhere(shares >= _FAINTEST)]
    middle = [index * pitch + pitch / 2 for index in range(len(kept))]
    rows = (f'<text class="row" x="-6" y="{y:g}">{plain(text)}</text>' for y, text in zip(middle, short, strict=True))
    heads = (
        f'<text class="row" transform="translate({x:g} {len(kept) * pitch + 6})rotate(-90)">{plain(text)}</text>'
        for x, text in zip(middle, short, strict=True)
    )
    side = len(kept) * pitch
    box = f"{-margin} 0 {side + margin + 1} {side + margin}"
    size = f'width="{side + margin + 1}" height="{side + margin}" style="font-size:{font}px"'
    frame = f'<rect class="frame" width="{side}" height="{side}"/>'
    left_out = (
        f"<p>The {len(kept)} of {len(matrix):,} classes with the most pixels.</p>" if len(kept) < len(matrix) else ""
    )
    return (
        f'{left_out}<div class="scroll"><svg class="confusion" viewBox="{box}" {size} role="img" '
        f'aria-label="confusion matrix">{frame}{"".join(cells)}{"".join(rows)}{"".join(heads)}</svg></div>'
    )


def _cell(shares: np.ndarray, row: int, column: int, kept: np.ndarray, names: Sequence[str], pitch: int) -> str:
    share = float(shares[row, column])
    label = f"{plain(names[kept[row]], 60)} taken for {plain(names[kept[column]], 60)}: {100 * share:.1f} %"
    if row == column:
        label = f"{plain(names[kept[row]], 60)}: {100 * share:.1f} % found"
    place = f'x="{column * pitch}" y="{row * pitch}"'
    rect = f'<rect {place} width="{pitch}" height="{pitch}" fill-opacity="{max(share, 0.06):.2f}"/>'
    if pitch < 28:
        return f"<g><title>{label}</title>{rect}</g>"
    middle = f'x="{column * pitch + pitch / 2:g}" y="{row * pitch + pitch / 2:g}"'
    kind = "on" if share > 0.55 else "off"
    return f'<g><title>{label}</title>{rect}<text class="{kind}" {middle}>{100 * share:.0f}</text></g>'


def most_confused(matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Table of the pairs with the most wrong pixels; nothing where no pixel is wrong.

    Args:
        matrix: (K, K) counts.
        class_names: K names.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    found = [
        (row, column) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[row, column]
    ]
    rows = [
        [
            name(class_names[row]),
            name(class_names[column]),
            f"{wrong[row, column]:,}",
            f"{percent(wrong[row, column] / matrix[row].sum())} %",
        ]
        for row, column in found
    ]
    return table(("truth", "taken for", "pixels", "of the truth"), rows, "figures two") if rows else ""

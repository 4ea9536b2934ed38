# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Three small drawn scenes, from which the scripts beside this file make exports in the formats of annotation tools.

What they hold: shapes that overlap, reach beyond the picture, have holes or are one pixel small, a picture whose EXIF
data turn it, class names with a space and beyond ASCII, and a class that no scene uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("grass", "gravel path", "Büsche", "pond", "lamp")  # "lamp" is in no scene
COLORS = {
    "grass": (60, 150, 60),
    "gravel path": (180, 160, 120),
    "Büsche": (20, 90, 30),
    "pond": (40, 90, 200),
    "lamp": (250, 240, 20),
}
Ring = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Area:
    """One annotated object: later ones lie on top.

    Attributes:
        name: Class.
        ring: Outline, (x, y) with pixel (0, 0) covering 0..1.
        hole: Outline of a hole, or ().
    """

    name: str
    ring: Ring
    hole: Ring = ()


@dataclass(frozen=True)
class Scene:
    """A picture and what was drawn on it.

    Attributes:
        file_name: Name of the picture.
        width: Of the picture as people see it.
        height: Of the picture as people see it.
        areas: Objects, the lowest first.
        split: `"train"` or `"val"`.
        orientation: EXIF orientation of the file; 6 stores the picture on its side.
    """

    file_name: str
    width: int
    height: int
    areas: tuple[Area, ...] = field(default=())
    split: str = "train"
    orientation: int = 1

    @property
    def stem(self) -> str:
        return Path(self.file_name).stem

    def picture(self) -> Image.Image:
        """Return the picture as people see it."""
        y, x = np.mgrid[: self.height, : self.width]
        pixels = np.stack([120 + x // 3, 130 + y // 2, 110 + (x + y) // 4], axis=-1).astype(np.uint8)
        picture = Image.fromarray(pixels)
        for area in self.areas:
            cover = Image.new("1", picture.size)
            draw = ImageDraw.Draw(cover)
            draw.polygon(area.ring, fill=1)
            if area.hole:
                draw.polygon(area.hole, fill=0)
            picture.paste(COLORS[area.name], mask=cover)
        return picture

    def save(self, folder: Path) -> Path:
        """Write the picture into a folder that may not exist yet."""
        folder.mkdir(parents=True, exist_ok=True)
        picture, options = self.picture(), {}
        if self.file_name.endswith(".jpg"):
            options["quality"] = 60
        if self.orientation == 6:  # upright again after a quarter turn clockwise
            picture = picture.transpose(Image.Transpose.ROTATE_90)
            exif = Image.Exif()
            exif[0x0112] = 6
            options["exif"] = exif
        picture.save(folder / self.file_name, **options)
        return folder / self.file_name


SCENES = (
    Scene(
        "yard.jpg",
        96,
        64,
        (
            Area("grass", ((-7.5, 20.25), (50, 12.5), (104.75, 24), (101, 71), (-4, 69))),
            Area("gravel path", ((10.5, 63.5), (38.25, 18.75), (46, 18.75), (30.5, 63.5))),
            Area(
                "pond",
                ((52.5, 30.5), (70, 24.25), (88.5, 33), (84.25, 52), (62, 55.5)),
                ((64.5, 36.5), (76, 34.5), (74.5, 44.25), (66.25, 45)),
            ),
            Area("Büsche", ((4.25, 40), (12, 33.5), (19.75, 41), (12.5, 48.75))),
            Area("Büsche", ((48.0, 58.0), (50.0, 58.0), (50.0, 59.0), (48.0, 59.0))),
        ),
    ),
    Scene(
        "shelf 2.png",
        70,
        90,
        (
            Area("gravel path", ((5, 10), (65, 10), (65, 84), (5, 84))),
            Area("Büsche", ((20.5, 5.5), (44.5, 5.5), (44.5, 60.25), (20.5, 60.25))),
            Area("pond", ((2.0, 86.5), (66.5, 40.25), (68.0, 44.0), (4.5, 89.0))),
        ),
    ),
    Scene(
        "turned.jpg",
        60,
        80,
        (
            Area("grass", ((8.5, 50.0), (52.0, 44.5), (57.5, 76.25), (6.0, 72.0))),
            Area("Büsche", ((12.0, 8.0), (30.5, 6.5), (28.0, 30.25), (14.5, 26.0))),
        ),
        split="val",
        orientation=6,
    ),
)
EMPTY = Scene("bare.jpg", 48, 40, split="val")  # nothing is annotated on it


def save_expected(folder: Path, maps: dict[str, np.ndarray], values: dict[int, str | None], written_by: str) -> None:
    """Write a tool's own label maps.

    Args:
        folder: Gets one 8-bit PNG per picture and `values.json`.
        maps: (H, W) per picture stem, as people see the picture.
        values: What each value means: a class name, None outside every shape, `"ignored"` where not to train.
        written_by: Programs and versions that wrote the export and the maps.
    """
    import json

    folder.mkdir(parents=True, exist_ok=True)
    for stem, label_map in maps.items():
        assert set(np.unique(label_map).tolist()) <= set(values), stem
        Image.fromarray(label_map.astype(np.uint8)).save(folder / f"{stem}.png", optimize=True)
    text = json.dumps({"written_by": written_by, "values": values}, ensure_ascii=False, indent=1)
    (folder / "values.json").write_text(text + "\n", encoding="utf-8")

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures and shapes as every annotation format is read into them.

How a format is added: write one module in this folder with two functions, and name it in `formats.FORMATS`.

    def recognise(source: Source) -> str | None:
        "Say in a few words what was found, as in '200 files *.json of labelme'; None when this is another format."

    def read(source: Source, classes: ClassTable | None) -> Annotated:
        "Read it; `classes` are names the user gave, which take the place of those that the format brings along."

`Source` is the folder, zip file or single file that was given. Everything is listed and read through it: it keeps
pipes, names that lead out of the folder and odd names away, and remembers what was read, so that the next start can
tell whether anything has changed. `recognise` looks at names first and opens few files. `read` lists pictures in a
fixed order, and for each of them either

-   `mask`: a picture of label ids; how its values are to be understood is said once, in `Annotated`; or
-   `shapes`: a list of `Shape`, or a function that makes it when it is needed, which keeps large files cheap. A shape
    has the position of its class in `Annotated.class_names`, or `IGNORED`, and parts that are united: `make_polygon`,
    `Runs`, `Bitmap`. Everything else (boxes, circles) is made a polygon. Which of them lie on top is said by `order`
    and by `Picture.small_on_top`.

Whatever is wrong is a `ValueError` that says the rule and what came instead. Formats collect them by file,

    faults = Faults("labelme")
    for name in names:
        with faults.of(source.shown(name)):
            ...
    left_out = faults.stop(pictures)

so that up to ten are reported at once, and runs that pass over bad samples leave out the pictures that have some: a
picture with a fault must not be among `pictures`, and what concerns more than single pictures is stopped at before,
by `faults.stop()`. Splits are named as the tool names them (`Picture.split`); roles, held-out
pictures, folds, pixels outside all shapes and maps of ids are the business of `formats`, the same for all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..texts import short_repr
from .classes import Color
from .files import StorageError, printable
from .tolerance import Fault, is_tolerant, listed_faults

IGNORED = -1  # label of shapes that the annotator has left out
MAX_COORDINATE = 1e9


@dataclass(frozen=True)
class Polygon:
    """An area within a ring and outside the rings of its holes; see `rasteriser` for the rule of edge pixels.

    Attributes:
        exterior: float64 (n, 2), x and y; pixel (i, j) covers i..i+1 and j..j+1.
        holes: Rings of the same form.
    """

    exterior: np.ndarray
    holes: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Runs:
    """An area as lengths of runs, in turn outside and inside, the first outside; see `rle` for other codes.

    Attributes:
        counts: Integers; their sum is height * width.
        height: Rows of the box that the runs fill.
        width: Columns of the box.
        x: Left column of the box in the picture.
        y: Top row of the box in the picture.
        column_major: Whether runs go down the columns, as in COCO, instead of along the rows.
    """

    counts: np.ndarray
    height: int
    width: int
    x: int = 0
    y: int = 0
    column_major: bool = True


@dataclass(frozen=True)
class Bitmap:
    """An area as a small picture.

    Attributes:
        pixels: bool (height, width).
        x: Left column in the picture.
        y: Top row in the picture.
    """

    pixels: np.ndarray
    x: int = 0
    y: int = 0


@dataclass(frozen=True)
class Shape:
    """One annotated object.

    Attributes:
        label: Position of its class in `Annotated.class_names`, or `IGNORED`.
        parts: Areas that together are the object.
        order: Shapes with larger ones lie on top; of equal ones the later.
        place: What to call it in messages, as in `"shape 3 ('car')"`.
    """

    label: int
    parts: tuple[Polygon | Runs | Bitmap, ...]
    order: float = 0.0
    place: str = ""


@dataclass
class Picture:
    """A picture and what is annotated in it.

    Attributes:
        image: Path, as `Source.path` or `Source.find_picture` return it, or the contents of a file that is embedded.
        name: Its name within the data set, with `/` between folders.
        annotation: File that the annotation comes from, for messages.
        split: The tool's name of its split, or "".
        shapes: The shapes, or a function that returns them; None when there is a mask.
        mask: Path of a picture of label ids.
        size: (width, height) that the shapes refer to; None for that of the picture.
        relative: Whether coordinates are shares of width and height, from 0 to 1.
        small_on_top: Whether shapes with fewer pixels lie on top of larger ones, whatever their order.
        counts: Filled in when it is drawn: stored value and number of pixels, in turn.
    """

    image: Any  # str or bytes
    name: str
    annotation: str = ""
    split: str = ""
    shapes: Sequence[Shape] | Callable[[], Sequence[Shape]] | None = None
    mask: Any = None  # str or None
    size: tuple[int, int] | None = None
    relative: bool = False
    small_on_top: bool = False
    counts: Sequence[int] | None = None


@dataclass
class Annotated:
    """A data set as an annotation format describes it.

    Attributes:
        pictures: All of them, in a fixed order.
        class_names: Names of the classes; labels of shapes, and label ids in masks, are positions among them.
        what: Name of the format for people, as in `"COCO instances"`.
        palette: One colour per class, where the format brings its own.
        ignore_index: Label of pixels without a class; with masks, also the value that marks them.
        ignore_color: Colour of such pixels in masks of colours.
        mask_format: With masks: `"ids"`, `"binary"`, `"rgb"`, or `"auto"` to look; see `load_folder`.
        id_map: With masks of ids whose values are no positions: (value, position or `IGNORED`) for all that occur.
        background: Class of pixels outside every shape, where the format has one; `IGNORED` where it says that they
            have none; None where it says nothing.
        notes: What the user should know about the reading, one short clause each.
        left_out: Faults of pictures that are left out for them.
    """

    pictures: list[Picture]
    class_names: tuple[str, ...]
    what: str
    palette: tuple[Color, ...] | None = None
    ignore_index: int = 255
    ignore_color: Color | None = None
    mask_format: str = "auto"
    id_map: tuple[tuple[int, int], ...] = ()
    background: int | None = None
    notes: list[str] = field(default_factory=list)
    left_out: list[Fault] = field(default_factory=list)


class Faults:
    """Collects what is wrong with the files of a data set.

    Args:
        what: Name of the format.
    """

    def __init__(self, what: str):
        self.what = what
        self._found: list[Fault] = []

    def add(self, place: str, rule: str, split: str = "") -> None:
        """Note a fault of a file."""
        self._found.append(Fault(place, rule, split))

    @contextlib.contextmanager
    def of(self, place: str, split: str = "") -> Iterator[None]:
        """Note the `ValueError` that the block raises as a fault of a file, or of a picture in a split."""
        try:
            yield
        except StorageError:
            raise
        except ValueError as error:
            self.add(place, str(error), split)

    def __bool__(self) -> bool:
        return bool(self._found)

    def stop(self, good: Sized = ()) -> list[Fault]:
        """Raise `ValueError` with the first ten faults, if there are any.

        Args:
            good: The pictures without a fault, where each fault is that of a picture which can be left out.

        Returns:
            The faults that are put up with, see `tolerant_probes`.
        """
        if self._found and not (is_tolerant() and len(good)):
            verb = "s are" if len(self._found) > 1 else " is"
            raise ValueError(listed_faults(f"{self.what}: {len(self._found)} annotation{verb} wrong", self._found))
        return self._found


def shape_place(index: int, label: Any, word: str = "shape") -> str:
    """Return what to call a shape in messages: its position in the file, counted from 0, and its label."""
    return f"{word} {index} ({printable(str(label)[:60])!r})"


def make_ring(points: Any, place: str) -> np.ndarray:
    """Check the corners of a ring.

    Args:
        points: Pairs of numbers x, y.
        place: What to call the shape in messages.

    Raises:
        ValueError: They are no pairs of finite numbers, or fewer than three.
    """
    try:
        ring = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        ring = np.zeros(0)
    if ring.size and (ring.ndim != 2 or ring.shape[1] != 2):
        ring = np.zeros(0)
    elif ring.ndim == 2 and len(ring) < 3:
        raise ValueError(f"{place}: a polygon needs at least 3 points, got {len(ring)}")
    if not ring.size:
        raise ValueError(f"{place}: a polygon must be a list of points [x, y], got {short_repr(points)}")
    if not (np.abs(ring) <= MAX_COORDINATE).all():
        wrong = ring[~(np.abs(ring) <= MAX_COORDINATE).all(axis=1)][0].tolist()
        raise ValueError(f"{place}: coordinates must be finite numbers of at most 1e9, got {wrong}")
    return ring


def make_polygon(points: Any, place: str, holes: Sequence[Any] = ()) -> Polygon:
    """Return a polygon.

    Args:
        points: Pairs of numbers x, y; the last need not repeat the first.
        place: What to call the shape in messages.
        holes: The same for each hole.

    Raises:
        ValueError: See `make_ring`.
    """
    return Polygon(make_ring(points, place), tuple(make_ring(hole, f"{place}, hole") for hole in holes))


def make_box(corner: Sequence[float], other: Sequence[float], place: str) -> Polygon:
    """Return the rectangle between two opposite corners (x, y)."""
    try:
        (left, top), (right, bottom) = corner, other
    except (TypeError, ValueError):
        raise ValueError(f"{place}: a box needs two corners [x, y], got {short_repr([corner, other])}") from None
    return make_polygon([(left, top), (right, top), (right, bottom), (left, bottom)], place)


def require_size(width: Any, height: Any, place: str) -> tuple[int, int]:
    """Return width and height of a picture as an annotation states them.

    Raises:
        ValueError: They are no positive integers.
    """
    for value in (width, height):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            break
        if not 0 < value < 1 << 20 or int(value) != value:
            break
    else:
        return int(width), int(height)
    got = f"{short_repr(width)} x {short_repr(height)}"
    raise ValueError(f"{place}: width and height must be integers from 1 to 1048575, got {got}")

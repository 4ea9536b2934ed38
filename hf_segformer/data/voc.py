# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC and `labelme2voc.py`: `JPEGImages`, masks in `SegmentationClass`, lists in `ImageSets/Segmentation`.

Masks are palette PNGs of class ids, or hold the colours of that palette; 255, a light grey, belongs to no class.
Names are in `class_names.txt`; without it they are those of the challenge. labelme2voc before 5.3 keeps its pictures
in `SegmentationClassPNG`.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from PIL import Image

from ..texts import listed
from .annotated import Annotated, Faults, Picture
from .classes import ClassTable, Color, default_palette
from .file_names import split_of
from .file_tree import probe_evenly
from .labelme import find_labels
from .segmentation_data import open_picture, place_of
from .source import IMAGE_SUFFIXES, Source, loose_name
from .splits import TEST_NAMES
from .tolerance import Fault

VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOID_COLOR = (224, 224, 192)  # of value 255
MASK_FOLDERS = ("SegmentationClassPNG", "SegmentationClass")  # the first that holds pictures
LABEL_MAP = "labelmap.txt"


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    roots = [root for root in mask_roots(source) if not source.has(posixpath.join(root, LABEL_MAP))]
    return f"folder {source.shown(mask_roots(source)[roots[0]])} of Pascal VOC" if roots else None


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    pictures, notes, left_out = read_pictures(source, "Pascal VOC")
    table = classes or find_labels(source)
    names = table.names if table else VOC_NAMES
    if table is None:
        notes.append("names are those of the challenge, there is no class_names.txt")
    colored, palette = mask_colors([picture.mask for picture in pictures], len(names))
    return Annotated(
        pictures,
        names,
        "Pascal VOC",
        palette=palette,
        ignore_color=VOID_COLOR,
        mask_format="rgb" if colored else "ids",
        notes=notes,
        left_out=left_out,
    )


def mask_colors(masks: Sequence[str], count: int) -> tuple[bool, tuple[Color, ...] | None]:
    """Return whether masks hold colours instead of ids, and the colours of the ids.

    Args:
        masks: Paths; what the first that can be read looks like counts.
        count: Number of classes.
    """
    pictures: list[Image.Image] = []
    probe_evenly(masks, lambda mask: pictures.append(open_picture(mask, f"annotation {place_of(mask)}")))
    if not pictures:
        return False, None
    if pictures[0].mode == "P":
        stored = pictures[0].getpalette("RGB") or []
        colors = tuple(zip(stored[::3], stored[1::3], stored[2::3], strict=False))[:count]
        return False, colors if len(colors) == count else None
    colored = pictures[0].mode in ("RGB", "RGBA")
    return colored, ((0, 0, 0), *default_palette(count - 1)) if count > 1 else None


# ---- the layout, which CVAT shares


def mask_roots(source: Source) -> dict[str, str]:
    """Return the folders that hold such a data set, and their folders of masks."""
    roots: dict[str, str] = {}
    if source.given and posixpath.basename(source.given) not in (LABEL_MAP, "class_names.txt"):
        return roots
    for wanted in MASK_FOLDERS:
        for name in source.image_names:
            head, found, _ = f"/{name}".partition(f"/{wanted}/")
            if found:
                roots.setdefault(head[1:], posixpath.join(head[1:], wanted))
    return roots


def read_pictures(source: Source, what: str) -> tuple[list[Picture], list[str], list[Fault]]:
    """Return the pictures with their masks, split as the lists say, notes, and faults of pictures that are left out.

    Raises:
        ValueError: A picture is missing, there are two for one mask, or there are several data sets.
    """
    roots = mask_roots(source)
    source.require(roots, f"pictures in a folder {MASK_FOLDERS[-1]}")
    if len(roots) > 1:
        raise ValueError(
            f"{source.shown('')}: several data sets: {listed(map(source.shown, roots))}; give one of them"
        )
    ((root, folder),) = roots.items()
    masks = {_stem(name, folder): name for name in source.image_names if name.startswith(f"{folder}/")}
    faults = Faults(what)
    notes: list[str] = []
    splits = _splits(source, root, masks, notes)
    find = _finder(source, root)
    pictures = []
    for stem, split in splits:
        with faults.of(source.shown(masks[stem]), split):
            image = find(stem)
            shown, mask = source.shown(masks[stem]), source.path(masks[stem])
            pictures.append(Picture(image, posixpath.basename(image), shown, split, mask=mask))
            pictures[-1].name = stem + posixpath.splitext(image)[1]
    return pictures, notes, faults.stop(pictures)


def _stem(name: str, folder: str) -> str:
    return posixpath.splitext(name[len(folder) + 1 :] if folder else name)[0]


def _splits(source: Source, root: str, masks: dict[str, str], notes: list[str]) -> list[tuple[str, str]]:
    """Return (stem, split) of all pictures to use."""
    folder = posixpath.join(root, "ImageSets", "Segmentation")
    lists = {
        posixpath.splitext(name)[0]: posixpath.join(folder, name)
        for name in source.folders.get(folder, ())
        if name.endswith(".txt")
    }
    if len(lists) > 1:
        lists.pop("trainval", None)  # the others together
    if not lists:
        return [(stem, split_of(f"{stem}.png")) for stem in masks]
    listed_stems = []
    for split, name in lists.items():
        stems = [_listed_stem(line.strip(), masks) for line in source.named_text(name).split("\n") if line.strip()]
        if stems and masks.keys().isdisjoint(stems) and split.lower() not in TEST_NAMES:
            place = source.shown(name)
            raise ValueError(f"{place}: it must name masks in {source.shown(root)} by their stems, got {stems[0]!r}")
        listed_stems += [(stem, "" if split == "default" else split) for stem in stems]
    without = [stem for stem, _ in listed_stems if stem not in masks]
    if without:
        notes.append(f"{len(without)} listed pictures without a mask left out, such as {without[0]}")
    if unlisted := masks.keys() - {stem for stem, _ in listed_stems}:
        notes.append(f"{len(unlisted)} masks in no list left out, such as {min(unlisted)}")
    if repeated := [stem for stem, count in Counter(stem for stem, _ in listed_stems).items() if count > 1]:
        notes.append(f"{len(repeated)} pictures are listed more than once, such as {repeated[0]}")
    return [(stem, split) for stem, split in listed_stems if stem in masks]


def _listed_stem(line: str, masks: dict[str, str]) -> str:
    """The stem that a line means, which some tools write with folders and the picture's suffix."""
    plain = line.replace("\\", "/")
    whole = [line, posixpath.splitext(plain)[0]]
    last = [posixpath.basename(plain), posixpath.splitext(posixpath.basename(plain))[0]]
    return next((stem for stem in (*whole, *last) if stem in masks), line)


def _finder(source: Source, root: str) -> Callable[[str], str]:
    """Return a function from a mask's stem to the path of its picture."""
    folder = posixpath.join(root, "JPEGImages")
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    place = source
    names = [name for name in source.image_names if name.startswith(f"{folder}/")]
    if source.pictures is not None:
        place, folder, names = source.pictures, "", source.pictures.image_names
    elif not names:
        names = [name for name in source.image_names if not _of_masks(name, root)]
        folder = root
    for name in names:
        by_stem[_stem(name, folder)].append(name)
        if folder != posixpath.join(root, "JPEGImages") and "/" in _stem(name, folder):
            by_stem[posixpath.basename(_stem(name, folder))].append(name)

    by_loose: defaultdict[str, list[str]] = defaultdict(list)
    for stem, found in by_stem.items():
        by_loose[loose_name(stem)] += found

    def find(stem: str) -> str:
        found = by_stem.get(stem) or by_loose.get(loose_name(stem), [])
        if not found:
            where = place.shown(folder) if folder else place.shown("")
            raise ValueError(
                f"its picture {stem}.* ({', '.join(IMAGE_SUFFIXES)}) is missing in {where}; pictures names a folder "
                f"where they lie"
            )
        if len(found) > 1:
            raise ValueError(f"several pictures fit: {listed(map(place.shown, found))}")
        return place.path(found[0])

    return find


def _of_masks(name: str, root: str) -> bool:
    inner = name[len(root) + 1 :] if root else name
    return inner.startswith("Segmentation")

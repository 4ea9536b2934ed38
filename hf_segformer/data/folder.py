# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A user's own pictures: a folder with `images/`, `annotations/` and class names.

Accepted layouts, told apart by what is there (T is `train` or `training`, V is `val` or `validation`):

    ROOT/T/images       ROOT/T/annotations       ROOT/V/images       ROOT/V/annotations
    ROOT/images/T       ROOT/annotations/T       ROOT/images/V       ROOT/annotations/V
    ROOT/images         ROOT/annotations         (split here, see `validation_fraction`)

An image and its annotation have the same name up to the suffix. `ROOT/classes.json` or `ROOT/classes.txt` names the
classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .classes import ClassTable, find_class_table
from .file_tree import match_stems, probe_evenly
from .files import LeftOut, require_text, shown, sort_out
from .labels import AnnotationFormat, stored_values
from .segmentation_data import SegmentationData, build_dataset, open_picture, place_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
SPLIT_FOLDERS = {"train": ("train", "training"), "validation": ("val", "validation")}

Pairs = dict[str, tuple[Path, Path]]  # stem -> (image, annotation)


def load_folder(
    data_root: str | Path,
    mask_format: str = "auto",
    validation_fraction: float = 0.2,
    name: str = "folder",
    thin_classes: Iterable[str] = (),
    reduce_zero_label: bool = False,
) -> SegmentationData:
    """Load a folder of images and annotations.

    Files and folders may be links, also to other disks. Files that are no pictures, hidden ones and pictures in
    sub-folders of `images` and `annotations` are left out and counted in a warning.

    Args:
        data_root: Folder in one of the layouts above.
        mask_format: `"ids"`, `"binary"`, `"rgb"` (see `AnnotationFormat`) or `"auto"`: what `classes.json` says, else
            what 16 evenly spaced training annotations look like. Any colour in them means `"rgb"`; so do palette PNGs
            whose colours are all in the data set's own palette but at other positions. With two classes, 0 and 255 and
            nothing else means `"binary"`. Everything else is `"ids"`.
        validation_fraction: Share of the images, in (0, 1), held out when the folder has no splits. Chosen by a hash
            of the file stem, so that adding images moves few others.
        name: Short name of the data set.
        thin_classes: Names of classes to report apart.
        reduce_zero_label: Whether 0 means "no class" and k class k-1, as in SceneParse150; see `AnnotationFormat`.

    Raises:
        ValueError: A folder, partner or class file is missing, a folder is empty, or two files have the same stem. The
            message names the path.
    """
    root = Path(data_root)
    if not os.path.isdir(root):
        raise ValueError(f"data_root {shown(root)}: no such folder")
    classes = find_class_table(root)
    train, validation = _splits(root, validation_fraction)
    if mask_format == "auto":
        mask_format = detect_mask_format([label for _, label in train.values()], classes)
    elif mask_format == "rgb" and not classes.has_own_palette:
        raise ValueError(f"{root}: mask_format 'rgb' needs a \"palette\" with one colour per class in classes.json")
    return SegmentationData(
        train=_dataset(train),
        validation=_dataset(validation),
        class_names=classes.names,
        palette=classes.palette,
        ignore_index=classes.ignore_index,
        name=name,
        thin_classes=tuple(thin_classes),
        annotation_format=AnnotationFormat(
            len(classes.names),
            mask_format,
            classes.ignore_index,
            classes.palette,
            classes.ignore_color,
            reduce_zero_label,
        ),
    )


def _dataset(pairs: Pairs) -> Any:
    images, labels = zip(*pairs.values(), strict=True)
    return build_dataset([str(p) for p in images], [str(p) for p in labels], [p.name for p in images])


def _splits(root: Path, validation_fraction: float) -> tuple[Pairs, Pairs]:
    for arrange in (lambda split, kind: root / split / kind, lambda split, kind: root / kind / split):
        found = {
            role: [split for split in names if os.path.isdir(arrange(split, "images"))]
            for role, names in SPLIT_FOLDERS.items()
        }
        if any(found.values()):
            for role, names in SPLIT_FOLDERS.items():
                if not found[role]:
                    tried = " and ".join(str(arrange(split, "images")) for split in names)
                    raise ValueError(f"{shown(root)}: there is no {role} split, looked for {tried}")
            train, validation = (
                pair_files(arrange(found[role][0], "images"), arrange(found[role][0], "annotations"))
                for role in ("train", "validation")
            )
            return train, validation
    return split_by_name(pair_files(root / "images", root / "annotations"), validation_fraction, root)


def pair_files(images: Path, annotations: Path) -> Pairs:
    """Match the pictures of two folders by file stem, sorted by stem.

    Raises:
        ValueError: A folder is missing or holds no pictures, a partner is missing, or two files have the same stem.
    """
    return match_stems(_by_stem(images), _by_stem(annotations), shown(images), shown(annotations))


def _by_stem(folder: Path) -> dict[str, Path]:
    left_out = LeftOut()
    files: dict[str, Path] = {}
    for name in sort_out(folder, IMAGE_SUFFIXES, left_out):
        path = folder / name
        require_text(str(path))
        if path.stem in files:
            raise ValueError(
                f"{shown(path)} and {shown(files[path.stem])}: two files with the same stem, partners are matched by "
                f"stem"
            )
        files[path.stem] = path
    if not files:
        beside = f"; what is here: {left_out}" if left_out else ""
        raise ValueError(f"{shown(folder)}: no pictures here ({', '.join(IMAGE_SUFFIXES)}){beside}")
    left_out.warn(shown(folder))
    return files


def split_by_name(pairs: Pairs, validation_fraction: float, root: Path) -> tuple[Pairs, Pairs]:
    """Hold out the share of the pairs whose stems have the smallest SHA-256, at least one and not all.

    Raises:
        ValueError: The fraction is not in (0, 1), or there are fewer than two pairs.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}")
    if len(pairs) < 2:
        raise ValueError(
            f"{root}: at least two images are needed to split into training and validation, got {len(pairs)}"
        )
    by_hash = sorted(pairs, key=lambda stem: hashlib.sha256(stem.encode()).digest())
    held_out = set(by_hash[: min(max(round(len(pairs) * validation_fraction), 1), len(pairs) - 1)])
    train = {stem: pair for stem, pair in pairs.items() if stem not in held_out}
    return train, {stem: pairs[stem] for stem in sorted(held_out)}


def detect_mask_format(annotations: Sequence[Any], classes: ClassTable) -> str:
    """Find out how annotations encode ids; the rules stand at `load_folder`.

    Args:
        annotations: Those of the training split, paths or `{"bytes", "path"}` dictionaries; 16 evenly spaced ones are
            read.
        classes: Class names and palette of the data set.

    Returns:
        `"ids"`, `"binary"` or `"rgb"`.

    Raises:
        ValueError: Annotations are in colour, but the data set has no palette of its own, or one cannot be read;
            see `tolerant_probes`.
    """
    if classes.mask_format is not None:
        return classes.mask_format
    values: set[int] = set()
    colored = []

    def probe(source: Any) -> None:
        name = f"train annotation {place_of(source)}"
        picture = open_picture(source, name)
        if _is_colored(picture, classes):
            colored.append(name)
        else:
            values.update(np.unique(stored_values(picture, name)).tolist())

    probe_evenly(annotations, probe)
    if colored and not classes.has_own_palette:
        photo = colored[0].lower().endswith((".jpg", ".jpeg"))
        raise ValueError(
            f'{colored[0]}: the annotation is a colour picture, and no "palette" says which colour is which class; '
            + ("are images and annotations swapped?" if photo else "add one to classes.json")
        )
    if colored:
        return "rgb"
    return "binary" if len(classes.names) == 2 and values <= {0, 255} and 255 in values else "ids"


def _is_colored(picture: Image.Image, classes: ClassTable) -> bool:
    if picture.mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
        channels = np.asarray(picture.convert("RGB"))
        return bool((channels != channels[..., :1]).any())
    if picture.mode != "P" or not classes.has_own_palette:
        return False
    used = np.unique(np.asarray(picture)).tolist()
    stored = np.array(picture.getpalette("RGB")).reshape(-1, 3).tolist()
    if used[-1] >= len(stored):  # an index without a colour is certainly an id
        return False
    colors = [tuple(stored[index]) for index in used]
    known = {color: index for index, color in enumerate(classes.palette)}
    if classes.ignore_color is not None:
        known[classes.ignore_color] = classes.ignore_index
    return all(color in known for color in colors) and [known[color] for color in colors] != used

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds out what a user has given as a data set, and makes it one that can be trained on; see `annotated`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from . import (
    coco_instances,
    coco_panoptic,
    cvat_images,
    cvat_masks,
    kaggle_rle,
    label_studio,
    labelme,
    paired_masks,
    roboflow_masks,
    voc,
    yolo,
)
from .annotated import IGNORED, Annotated, Faults, Picture
from .classes import ClassTable, Color, default_palette, make_class_table
from .drawn_masks import DrawnMasks
from .files import shown
from .folder import detect_mask_format
from .hub import named_classes
from .label_map import read_label_map, with_label_map
from .labels import ORIENTATIONS, AnnotationFormat
from .mask_classes import MaskClasses
from .other_kinds import explain_masks_of_tasks, explain_other_kind
from .rasteriser import stored_value
from .segmentation_data import SegmentationData, build_dataset, place_of
from .source import Source
from .splits import SplitOptions, split_pictures
from .tolerance import Fault, listed_faults

FORMATS: dict[str, ModuleType] = {
    "labelme": labelme,
    "coco": coco_instances,
    "masks": paired_masks,
    "yolo": yolo,
    "voc": voc,
    "cvat-masks": cvat_masks,
    "cvat": cvat_images,
    "roboflow": roboflow_masks,
    "coco-panoptic": coco_panoptic,
    "label-studio": label_studio,
    "kaggle": kaggle_rle,
}
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
GENERAL = "masks"  # what has a list of classes of its own kind is more than pictures beside masks

BACKGROUND = "background"


def load_annotated(
    data: str | Path | Source,
    format: str | None = None,
    class_names: Sequence[str] | str | Path | None = None,
    unlabeled: str | None = None,
    pictures: str | Path | None = None,
    mask_format: str | None = None,
    reduce_zero_label: bool = False,
    label_map: str | Path | Mapping[int, int | None] | None = None,
    mask_orientation: str = "upright",
    ignore_index: int | None = None,
    name: str | None = None,
    thin_classes: Sequence[str] = (),
    splits: SplitOptions | None = None,
    allow_outside_files: bool = False,
) -> SegmentationData:
    """Load a data set as an annotation tool has written it.

    Args:
        data: Folder, zip file, or a single file of annotations.
        format: One of `FORMATS`; None finds out.
        class_names: Names in the order of their ids, in place of those that the format brings along; also as a text
            with commas between them, or a file as in `read_class_table`.
        unlabeled: What pixels outside every shape are: `"background"`, a class of its own that comes first where the
            format has none; `"ignore"`; or the name of a class. None takes what the format says, else background.
        pictures: Folder with the pictures, where they lie apart from the annotations.
        mask_format: With masks: as in `load_folder`.
        reduce_zero_label: With masks: whether 0 means "no class" and k class k-1.
        label_map: Label ids to be replaced by others; see `read_label_map`. With shapes, its keys are the positions of
            the classes; with masks, the stored values, and the class names are those of the new ids.
        mask_orientation: `"upright"`: masks and shapes lie as pictures do once their EXIF rotation is applied.
            `"stored"`: as the pixels are stored.
        ignore_index: Label of pixels that belong to no class; None takes that of the format, 255 as a rule.
        name: Short name of the data set; None takes that of the folder.
        thin_classes: Names of classes to report apart.
        splits: What to train on and what to hold out.
        allow_outside_files: Whether annotations may name pictures outside the folder.

    Raises:
        ValueError: The format is unknown or not clear, or annotations are wrong; up to ten are named.
        StorageError: A file could not be read for a reason that may pass.
    """
    if mask_orientation not in ORIENTATIONS:
        raise ValueError(f"mask_orientation must be one of {', '.join(ORIENTATIONS)}, got {mask_orientation!r}")
    source = data if isinstance(data, Source) else Source(data, pictures, allow_outside_files)
    mapped = None if label_map is None else read_label_map(label_map)
    named = label_map if class_names is None and label_map == "cityscapes" else class_names
    classes = None if named is None else named_classes(named)
    _, annotated = read_annotated(source, format, classes, mask_orientation == "stored")
    reading = _Reading(unlabeled, ignore_index, mask_format, mask_orientation, reduce_zero_label)
    found, clauses = _data_set(annotated, source, splits or SplitOptions(), reading, tuple(thin_classes))
    if mapped is not None:
        found = with_label_map(found, mapped, named_by_new=annotated.pictures[0].counts is None)
    parts = [f"{len(annotated.pictures)} pictures, {found.num_classes} classes", *clauses, *annotated.notes]
    return replace(found, name=name or source.name, description=f"{annotated.what}: {'; '.join(filter(None, parts))}")


@dataclass(frozen=True)
class _Reading:
    """What the user says about pixels; see `load_annotated`."""

    unlabeled: str | None
    ignore_index: int | None
    mask_format: str | None
    mask_orientation: str
    reduce_zero_label: bool


def _data_set(
    annotated: Annotated, source: Source, splits: SplitOptions, reading: _Reading, thin_classes: tuple[str, ...]
) -> tuple[SegmentationData, list[str]]:
    """Return the data set before any map of ids, and clauses about it for people."""
    train, validation, others, clause = _split(annotated, source, splits)
    table, annotation_format, outside = _meaning(annotated, reading, train)
    if reading.reduce_zero_label:
        annotation_format = replace(annotation_format, reduce_zero_label=True)
    found = SegmentationData(
        train=_rows(train),
        validation=_rows(validation),
        class_names=table.names,
        palette=table.palette,
        ignore_index=table.ignore_index,
        name=source.name,
        thin_classes=thin_classes,
        annotation_format=annotation_format,
        other_splits={split: _rows(rows) for split, rows in others.items()},
        left_out=tuple(annotated.left_out),
    )
    return found, [outside, clause]


def _split(
    annotated: Annotated, source: Source, splits: SplitOptions
) -> tuple[list[Picture], list[Picture], Any, str]:
    """Return what `split_pictures` does; pictures whose masks it could not read are left out before."""
    classes = _Classes(annotated, source)
    try:
        found = split_pictures(annotated.pictures, splits, classes)
        if faults := classes.faults:
            annotated.pictures = [picture for picture in annotated.pictures if picture.mask not in faults]
            annotated.left_out += faults.values()
            found = split_pictures(annotated.pictures, splits, classes)
    except ValueError as error:
        raise ValueError(f"{source.shown(source.given)}: {error}") from None
    held_out = {picture.split for picture in found[1]} - {picture.split for picture in found[0]}
    if missing := [fault for fault in annotated.left_out if fault.split in held_out]:
        rule = "validation pictures cannot be left out, because a metric over fewer cannot be compared"
        head = f"{source.shown(source.given)}: {len(missing)} {rule}; repair these or take them away"
        raise ValueError(listed_faults(head, missing))
    return found


def read_annotated(
    source: Source, format: str | None = None, classes: ClassTable | None = None, stored_orientation: bool = False
) -> tuple[str, Annotated]:
    """Return the format, and the data set with masks of ids in place of shapes.

    Args:
        source: The files.
        format: Name of the format; None finds out.
        classes: Names the user gave.
        stored_orientation: Whether shapes refer to pictures as their files store them, not upright.

    Raises:
        ValueError: See `load_annotated`.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(unknown_format(format, FORMATS))
    masks = DrawnMasks(source, format or "", classes, stored_orientation)
    known = masks.load()
    if known is not None:
        return known
    format = format or recognise(source)
    annotated = FORMATS[format].read(source, classes)
    source.forget()
    if not annotated.pictures:
        raise ValueError(f"{source.shown(source.given)}: {annotated.what} without a single picture")
    _refuse_lossy_masks(annotated)
    drawn = any(picture.shapes is not None for picture in annotated.pictures)
    masks.draw(annotated)
    if drawn:
        _require_a_shape(annotated, source)
        masks.save(format, annotated)
    return format, annotated


def _refuse_lossy_masks(annotated: Annotated) -> None:
    faults, good = Faults(annotated.what), []
    for picture in annotated.pictures:
        if picture.mask is not None and place_of(picture.mask).lower().endswith((".jpg", ".jpeg")):
            rule = "masks must not be JPEG, which changes values at every edge; save as PNG"
            faults.add(shown(picture.mask), rule, picture.split)
        else:
            good.append(picture)
    annotated.left_out += faults.stop(good)
    annotated.pictures = good


def _require_a_shape(annotated: Annotated, source: Source) -> None:
    top = stored_value(IGNORED, len(annotated.class_names))
    if not any(0 < value < top for picture in annotated.pictures for value in (picture.counts or ())[::2]):
        place, count = source.shown(source.given), len(annotated.pictures)
        raise ValueError(f"{place}: {annotated.what}: a class must have a pixel, none of {count} pictures shows any")


def unknown_format(format: str, known: Iterable[str]) -> str:
    """Return what to say about a name that no format has."""
    close = difflib.get_close_matches(format, known := tuple(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"format must be one of {', '.join(known)}, got {format!r}{hint}"


def recognise(source: Source) -> str:
    """Return the name of the only format that fits.

    Raises:
        ValueError: None or several fit.
    """
    reasons = {name: reason for name, format in FORMATS.items() if (reason := format.recognise(source)) is not None}
    if len(reasons) > 1:
        reasons.pop(GENERAL, None)
    explain = {(): explain_other_kind, (GENERAL,): explain_masks_of_tasks}.get(tuple(reasons))
    if explain and (other_kind := explain(source)):
        raise ValueError(other_kind)
    if len(reasons) == 1:
        return next(iter(reasons))
    place = source.shown(source.given)
    if not reasons:
        endings = sorted({Path(name).suffix for name in source.files})[:10]
        packed = next((n for n in source.files if n.lower().endswith(ARCHIVES)), None)
        hint = f"; unpack {source.shown(packed)}" if packed else ""
        raise ValueError(
            f"{place}: no annotations of a known kind found ({', '.join(FORMATS)}) in {len(source.files)} files"
            f"{f' ({chr(44).join(endings)})' if endings else ''}; format names the kind{hint}{source.broken_json()}"
        )
    readings = " and ".join(f"{name!r} ({reason})" for name, reason in reasons.items())
    raise ValueError(f"{place}: this can be read as {readings}; format must say which")


def _rows(pictures: Sequence[Picture]) -> Any:
    return build_dataset(
        [picture.image for picture in pictures],
        [picture.mask for picture in pictures],
        [picture.name for picture in pictures],
    )


class _Classes:
    """Classes in a picture, from what was counted while drawing, or from its mask."""

    def __init__(self, annotated: Annotated, source: Source):
        self._top = stored_value(IGNORED, len(annotated.class_names))
        self._masks = list(dict.fromkeys(picture.mask for picture in annotated.pictures))
        self._positions = {mask: position for position, mask in enumerate(self._masks)}
        self._values = MaskClasses(self._masks, source.root)

    def __call__(self, picture: Picture) -> frozenset[int]:
        if picture.counts is not None:
            return frozenset(value - 1 for value in picture.counts[::2] if 0 < value < self._top)
        return self._values[self._positions[picture.mask]]

    @property
    def faults(self) -> dict[str, Fault]:
        """What is wrong with masks."""
        return {self._masks[position]: fault for position, fault in self._values.faults.items()}


# ---- what values in masks mean


def _meaning(
    annotated: Annotated, reading: _Reading, train: Sequence[Picture]
) -> tuple[ClassTable, AnnotationFormat, str]:
    """Return the classes, how masks encode them, and a clause about unlabelled pixels."""
    count = len(annotated.class_names)
    stored: dict[int, int | None]
    drawn = annotated.pictures[0].counts is not None
    if drawn:
        mask_format = "ids"
        stored = {0: None} | {label + 1: label for label in range(count)} | {stored_value(IGNORED, count): IGNORED}
        names, positions, clause = _with_unlabeled(annotated, reading.unlabeled, _outside_share(annotated))
    else:
        mask_format = _mask_format(annotated, reading, train)
        stored = {**dict(annotated.id_map)}
        names, positions, clause = _masks_without_background(annotated, reading.unlabeled)
        if positions != list(range(count)) and mask_format != "ids":
            raise ValueError(f"unlabeled {reading.unlabeled!r} goes with masks of ids, these are {mask_format!r}")
        if positions != list(range(count)) and not stored:
            stored = {**{label: label for label in range(count)}, annotated.ignore_index: IGNORED}
    ignored = reading.ignore_index if reading.ignore_index is not None else annotated.ignore_index
    if reading.ignore_index is None and 0 <= ignored < len(names):
        ignored = 65535
    table = _table(annotated, names, positions, ignored)
    ids = {value: _position(label, positions, ignored) for value, label in stored.items()}
    if not drawn and ids:
        ids.setdefault(annotated.ignore_index, ignored)
    annotation_format = AnnotationFormat(
        len(names),
        mask_format,
        ignored,
        table.palette,
        annotated.ignore_color,
        id_map=tuple(ids.items()),
        orientation=reading.mask_orientation,
    )
    return table, annotation_format, clause


def _mask_format(annotated: Annotated, reading: _Reading, train: Sequence[Picture]) -> str:
    """How masks hold ids: as the user or the format says, else found out."""
    if reading.reduce_zero_label:
        return "ids"
    asked = reading.mask_format if reading.mask_format not in (None, "auto") else annotated.mask_format
    if asked != "auto":
        return asked
    return detect_mask_format([picture.mask for picture in train], _table(annotated, annotated.class_names))


def _position(label: int | None, positions: Sequence[int | None], ignored: int) -> int:
    """The id of a label; None, of pixels outside every shape, comes last in `positions`."""
    position = positions[-1 if label is None else label] if label != IGNORED else None
    return ignored if position is None else position


def _table(
    annotated: Annotated, names: Sequence[str], positions: Sequence[int | None] = (), ignore_index: int = 255
) -> ClassTable:
    palette: Sequence[Color] | None = annotated.palette
    if palette is not None and tuple(names) != tuple(annotated.class_names):
        palette = _moved_palette(palette, len(names), positions)
    table = make_class_table(names, palette, ignore_index, annotated.ignore_color, source=annotated.what)
    return table


def _moved_palette(palette: Sequence[Color], count: int, positions: Sequence[int | None]) -> list[Color]:
    colors = [(0, 0, 0)] * count
    spare = [color for color in default_palette(count + len(palette)) if color not in palette]
    for label, color in enumerate(palette):
        position = positions[label]
        if position is not None:
            colors[position] = color
    taken = {position for position in positions[: len(palette)] if position is not None}
    for index in set(range(count)) - taken:
        colors[index] = (0, 0, 0) if (0, 0, 0) not in palette else spare.pop(0)
    return colors


def _outside_share(annotated: Annotated) -> float:
    found = [p.counts or () for p in annotated.pictures]
    counts = [dict(zip(pairs[::2], pairs[1::2], strict=True)) for pairs in found]
    return sum(c.get(0, 0) for c in counts) / max(sum(sum(c.values()) for c in counts), 1)


def is_background(name: str) -> bool:
    """Whether a class name says that it is the background."""
    return name.strip().strip("_").casefold() == BACKGROUND


def _find_background(annotated: Annotated) -> int | None:
    if annotated.background is not None:
        return annotated.background
    return next((index for index, name in enumerate(annotated.class_names) if is_background(name)), None)


def _with_unlabeled(
    annotated: Annotated, unlabeled: str | None, outside: float
) -> tuple[list[str], list[int | None], str]:
    """Return class names, for each label and at last for pixels outside all shapes the id or None, and a clause."""
    names = list(annotated.class_names)
    own = _find_background(annotated)
    keep: list[int | None] = list(range(len(names)))
    share = f"{100 * outside:.3g} % of the pixels outside every shape -> "
    if unlabeled == "ignore" or (unlabeled is None and own == IGNORED):
        if (
            own is not None
            and own != IGNORED
            and not any(own + 1 in (p.counts or ())[::2] for p in annotated.pictures)
        ):
            names.pop(own)
            keep = [None if k == own else k - (k > own) for k in range(len(keep))]
        return names, [*keep, None], f"{share}ignored" if outside else ""
    if unlabeled in (None, BACKGROUND) and own is not None and own != IGNORED:
        label = own
    elif unlabeled in names:
        label = names.index(unlabeled)
    elif unlabeled not in (None, BACKGROUND):
        raise ValueError(
            f"unlabeled must be background, ignore or the name of a class ({', '.join(names[:20])}), got {unlabeled!r}"
        )
    elif not outside and unlabeled is None:
        return names, [*keep, None], ""
    else:
        names, keep, label = [BACKGROUND, *names], [k + 1 for k in range(len(keep))], 0
        return names, [*keep, 0], f"{share}class 0 {BACKGROUND}; --unlabeled ignore leaves them out"
    hint = "; --unlabeled ignore leaves them out" if unlabeled is None and outside else ""
    return names, [*keep, label], f"{share}class {label} {names[label]}{hint}" if outside else ""


def _masks_without_background(annotated: Annotated, unlabeled: str | None) -> tuple[list[str], list[int | None], str]:
    """The same for masks, in which every pixel has a value."""
    names = list(annotated.class_names)
    keep: list[int | None] = list(range(len(names)))
    own = _find_background(annotated)
    if unlabeled is None or (unlabeled == BACKGROUND and own not in (None, IGNORED)):
        return names, keep, ""
    if unlabeled != "ignore" or own is None or own == IGNORED:
        raise ValueError(
            f"unlabeled goes with shapes, or as 'ignore' with masks that have a background class, got {unlabeled!r} "
            f"for masks of {', '.join(names[:20])}"
        )
    names.pop(own)
    return (
        names,
        [None if k == own else k - (k > own) for k in range(len(keep))],
        f"{annotated.class_names[own]} -> ignored",
    )

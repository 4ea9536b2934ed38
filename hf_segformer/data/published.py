# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds out whether a user has given a published data set, unpacked or as it is distributed, or parquet files."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from . import ade20k, camvid, cityscapes, coco_stuff
from .classes import CLASS_FILES
from .source import Source

_PICTURE = re.compile(r"[0-9]{12}\.jpg")
_PIXEL_MAP = re.compile(rf"[0-9]{{12}}(\.png|{re.escape(coco_stuff.TRAIN_IDS)})")  # COCO numbers its pictures


class Published(NamedTuple):
    """A published data set.

    Attributes:
        name: Its name among the loaders.
        folder: Its folder within what was given, or "".
        reason: What was found, in a few words.
    """

    name: str
    folder: str
    reason: str


def recognise_published(source: Source) -> Published | None:
    """Return the published data set that lies there; parquet files count as one; None without any.

    Raises:
        ValueError: There are several, or the files can be read in another way too.
    """
    if source.given:
        return Published("parquet", source.given, "a parquet file") if source.given.endswith(".parquet") else None
    found = list(dict.fromkeys(_found(source)))
    if not found and any(name.endswith(".parquet") for name in source.files):
        found = [Published("parquet", "", "parquet files")]
    if len({place.folder for place in found}) > 1:
        places = " and ".join(f"{place.name!r} ({source.shown(place.folder)})" for place in found)
        raise ValueError(f"{source.shown('')}: several data sets: {places}; give the folder of one of them")
    if len(found) > 1:
        readings = " and ".join(f"{place.name!r} ({place.reason})" for place in found)
        raise ValueError(f"{source.shown('')}: this can be read as {readings}; format must say which")
    if not found or (found[0].folder and source.archive):  # loaders begin at the top of a zip file
        return None
    return found[0]


def _found(source: Source) -> Iterator[Published]:
    """Data sets whose folders, files or archives have names of their own."""
    inner = _inner_folders(source)
    for folder, names in inner.items():
        if {"leftImg8bit", "gtFine"} <= names:
            yield Published("cityscapes", folder, "leftImg8bit and gtFine")
        if ade20k.FOLDER in names or (not folder and source.name == ade20k.FOLDER):
            yield Published("ade20k", folder, ade20k.FOLDER)
        elif posixpath.basename(folder) != ade20k.FOLDER and "annotations" in names:
            place = f"{folder}/annotations".lstrip("/")
            if any(_holds(source, f"{place}/{split}", "ADE_") for split in ade20k.SPLITS.values()):
                yield Published("ade20k", folder, "annotations/ of SceneParse150")
        if {"train", "trainannot"} <= names and _holds(source, f"{folder}/trainannot".lstrip("/"), *camvid.SEQUENCES):
            yield Published("camvid", folder, "trainannot/ as SegNet has it")
        elif "train" in names and camvid.is_class_file(source, f"{folder}/classes.json".lstrip("/")):
            yield Published("camvid", folder, "its classes.json")
        if reason := _coco_stuff(source, folder, names):
            yield Published("coco-stuff", folder, reason)
            instances = (name for name in source.named(".json") if "/instances_" in f"/{name}")
            if (first := next(instances, None)) is not None:  # other annotations of the same pictures
                yield Published("coco", folder, source.shown(first))


def _coco_stuff(source: Source, folder: str, names: set[str]) -> str:
    """Say what of COCO-Stuff lies in a folder, "" for nothing."""
    pictures = [place.format(split) for place in coco_stuff.IMAGE_FOLDERS for split in coco_stuff.SPLITS.values()]
    numbered = (name for place in pictures for name in source.folders.get(f"{folder}/{place}".lstrip("/"), ()))
    if coco_stuff.ARCHIVES[1] not in names and not any(_PICTURE.fullmatch(name) for name in numbered):
        return ""
    found = [name for name in names if name.startswith("stuffthingmaps") and not name.endswith(".zip")]
    if found or coco_stuff.ARCHIVES[2] in names:
        return found[0] if found else coco_stuff.ARCHIVES[2]
    for pattern in coco_stuff.ANNOTATION_FOLDERS:
        for split in coco_stuff.SPLITS.values():
            place = f"{folder}/{pattern.format(split)}".lstrip("/")
            if any(_PIXEL_MAP.fullmatch(name) for name in source.folders.get(place, ())):
                own = any(source.has(f"{folder}/{name}".lstrip("/")) for name in CLASS_FILES)
                return "" if own else f"pixel maps in {place}"
    return ""


def _inner_folders(source: Source) -> dict[str, set[str]]:
    """Folder -> names of the folders and zip files in it."""
    inner: defaultdict[str, set[str]] = defaultdict(set)
    for name in (*source.folders, *source.named(".zip")):
        while name and name.rpartition("/")[2] not in inner[name.rpartition("/")[0]]:
            parent, _, last = name.rpartition("/")
            inner[parent].add(last)
            name = parent
    archives = ((cityscapes.ARCHIVES[1], "gtFine leftImg8bit"), (f"{ade20k.FOLDER}.zip", ade20k.FOLDER))
    for names in inner.values():
        for archive, packed in archives:
            if archive in names:
                names.update(packed.split())
    inner.setdefault("", set())
    return dict(inner)


def _holds(source: Source, folder: str, *starts: str) -> bool:
    return any(name.startswith(starts) for name in source.folders.get(folder, ()))

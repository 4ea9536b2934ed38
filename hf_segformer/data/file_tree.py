# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Published data sets on disk: folders, unpacked or inside the zip files they are distributed as, and their pairs."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from .archives import is_member_path, member_names, member_path
from .files import LeftOut, scan, shown
from .labels import AnnotationFormat, label_ids, stored_values
from .segmentation_data import MissingSplit, build_dataset, open_picture
from .tolerance import is_tolerant

if TYPE_CHECKING:
    import datasets

Source = TypeVar("Source", str, Path)
Pairs = dict[str, tuple[str, str]]  # stem -> paths of image and annotation
PROBES = 16  # annotations looked at when a data set is loaded


class FileTree:
    """The folders of a data set, each read from the disk or, where it is not unpacked, from zip files.

    Folders are named relative to the root with `/` between them; `""` is the root.

    Args:
        root: Folder, or one zip file.
        archives: Names of zip files that may lie in the folder.

    Raises:
        ValueError: There is no such folder or zip file.
    """

    def __init__(self, root: str | Path, archives: Sequence[str] = ()):
        self.root = Path(root)
        self._listed: dict[str, list[tuple[str, str]]] = {}
        if self.root.is_dir():
            self._archives = [path for path in (self.root / name for name in archives) if path.is_file()]
        elif self.root.is_file() and self.root.suffix.lower() == ".zip":
            self._archives = [self.root]
        else:
            raise ValueError(f"data_root {shown(root)}: no such folder or zip file")

    @functools.cached_property
    def _members(self) -> Mapping[str, dict[str, Path]]:
        """Folder -> name -> zip file that holds it."""
        folders: defaultdict[str, dict[str, Path]] = defaultdict(dict)
        for archive in self._archives:
            for member in member_names(archive):
                folder, _, name = member.rpartition("/")
                folders[folder][name] = archive
        return dict(folders)

    def place(self, folder: str) -> str:
        """Return what to call a folder in messages."""
        place = shown(self.root / folder)
        archives = [path.name for path in self._archives if path != self.root]
        if not archives or os.path.isdir(self.root / folder):
            return place
        return f"{place} (nor in {', '.join(archives)})"

    def exists(self, folder: str) -> bool:
        """Whether a folder is there, unpacked or packed."""
        return os.path.isdir(self.root / folder) or any(
            packed == folder or packed.startswith(f"{folder}/") for packed in self._members
        )

    def subfolders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder, sorted; [] when it is not there."""
        path = self.root / folder
        if os.path.isdir(path):
            links = {name for name, kind in self._entries(folder) if not kind and os.path.isdir(path / name)}
            return sorted(links | {name for name, kind in self._entries(folder) if kind == "folder"})
        start = f"{folder}/" if folder else ""
        return sorted({p[len(start) :].split("/")[0] for p in self._members if p.startswith(start)} - {""})

    def files(self, folder: str, suffix: str, nested: bool = False) -> dict[str, str]:
        """Return the files of a folder whose names end in `suffix`; capitals make no difference to it.

        Args:
            folder: Folder; one that is not there holds no files.
            suffix: End of the names.
            nested: Look into the folders directly in this one instead.

        Returns:
            Name without the suffix (with `nested` also the inner folder, `INNER/NAME`) -> path, sorted.

        Raises:
            ValueError: Two names differ in the capitals of their suffix only.
        """
        if nested:
            inner = self.subfolders(folder)
            return {f"{i}/{stem}": path for i in inner for stem, path in self.files(f"{folder}/{i}", suffix).items()}
        found: dict[str, str] = {}
        for name, path in self._unpacked(folder, suffix) or self._packed(folder, suffix):
            stem = name[: -len(suffix)]
            if stem in found:
                raise ValueError(f"{shown(found[stem])} and {shown(path)}: two files with the same stem")
            found[stem] = path
        return found

    def _unpacked(self, folder: str, suffix: str) -> list[tuple[str, str]]:
        place = str(self.root / folder)
        names = [name for name, kind in self._entries(folder) if not kind and _matches(name, suffix)]
        return [(name, os.path.join(place, name)) for name in names]

    def _packed(self, folder: str, suffix: str) -> list[tuple[str, str]]:
        start, held = f"{folder}/" if folder else "", self._members.get(folder, {})
        names = sorted(name for name in held if _matches(name, suffix))
        return [(name, member_path(held[name], start + name)) for name in names]

    def count_left_out(self, place: Place, suffixes: Sequence[str], nested: bool, left_out: LeftOut) -> None:
        """Count what lies in a place beside files with one of the suffixes.

        Args:
            place: The place.
            suffixes: Ends of the names of the data set's files.
            nested: Whether they lie in the folders directly in it.
            left_out: Counts the rest.
        """
        inner = self.subfolders(place.folder) if nested else []
        for folder in (place.folder, *(f"{place.folder}/{name}" for name in inner)):
            entries = self._entries(folder) or [(name, "") for name in self._members.get(folder, ())]
            for name, kind in entries:
                taken = not kind and any(_matches(name, suffix) for suffix in suffixes)
                if not taken and not (folder == place.folder and name in inner):
                    hidden = "hidden file" if name.startswith(".") else "file with another name"
                    left_out.add(kind or hidden, self.root / folder / name)

    def _entries(self, folder: str) -> list[tuple[str, str]]:
        if folder not in self._listed:
            path = self.root / folder
            self._listed[folder] = scan(path) if os.path.isdir(path) else []
        return self._listed[folder]


def _matches(name: str, suffix: str) -> bool:
    return name.lower().endswith(suffix.lower()) and not name.startswith(".")


def match_stems(
    images: Mapping[str, Source], annotations: Mapping[str, Source], image_place: object, annotation_place: object
) -> dict[str, tuple[Source, Source]]:
    """Match images and annotations of the same stem, sorted by stem.

    Args:
        images: Stem -> path.
        annotations: Stem -> path.
        image_place: Folder of the images, for messages.
        annotation_place: Folder of the annotations.

    Raises:
        ValueError: A partner is missing.
    """
    for mine, theirs, what, place in (
        (images, annotations, "annotation", annotation_place),
        (annotations, images, "image", image_place),
    ):
        alone = sorted(mine.keys() - theirs.keys())
        if alone:
            more = f" (and {len(alone) - 1} more without partner)" if len(alone) > 1 else ""
            raise ValueError(f"{shown(mine[alone[0]])}: no {what} with the stem {alone[0]!r} in {place}{more}")
    return {stem: (images[stem], annotations[stem]) for stem in sorted(images)}


class Place(NamedTuple):
    """Where the images or annotations of a split lie.

    Attributes:
        folder: Folder in the `FileTree`.
        suffix: End of the file names; what comes before it is the stem.
        without: Files whose names end so are left out, "" for none.
    """

    folder: str
    suffix: str
    without: str = ""


Splits = Mapping[str, Place]  # by role, "train" and "validation"


def published_splits(
    tree: FileTree, images: Splits, candidates: Sequence[Splits], nested: bool = False, hint: str = ""
) -> tuple[int, dict[str, Pairs | MissingSplit]]:
    """Match the images of both splits with the annotations that are there.

    Args:
        tree: The data set's files.
        images: Where the images lie.
        candidates: Kinds of annotations, best first. Taken is the first one that most splits have for every image.
        nested: Whether the files lie in folders inside the given ones.
        hint: What to say when a folder holds no annotations.

    Returns:
        Position of the kind taken, and by role stem -> (image, annotation). One of the two splits may be missing.

    Raises:
        ValueError: Both splits are missing, a folder is empty, or files lack partners; the message names the path.
    """
    found = [_files(tree, places, nested) for places in (images, *candidates)]
    complete = [sum(bool(f[r]) and f[r].keys() >= found[0][r].keys() > set() for r in images) for f in found[1:]]
    present = [any(files.values()) for files in found[1:]]
    chosen = max(range(len(candidates)), key=lambda index: (complete[index], present[index]))
    pairs = {
        role: _split_pairs(
            tree, (images[role], candidates[chosen][role]), (found[0][role], found[chosen + 1][role]), hint
        )
        for role in images
    }
    missing = [split.reason for split in pairs.values() if isinstance(split, MissingSplit)]
    if len(missing) == len(pairs):
        raise ValueError("; ".join(missing))
    left_out = LeftOut()
    suffixes = {place.suffix for places in (images, *candidates) for place in places.values()}
    for role in (role for role in images if not isinstance(pairs[role], MissingSplit)):
        tree.count_left_out(images[role], sorted(suffixes), nested, left_out)
        if candidates[chosen][role].folder != images[role].folder:
            tree.count_left_out(candidates[chosen][role], ("",), nested, left_out)  # data sets put more files there
    left_out.warn(shown(tree.root))
    return chosen, pairs


def _files(tree: FileTree, places: Splits, nested: bool) -> dict[str, dict[str, str]]:
    listed = {role: tree.files(place.folder, place.suffix, nested) for role, place in places.items()}
    for role, place in places.items():
        if place.without:
            end = place.without.removesuffix(place.suffix)
            listed[role] = {s: path for s, path in listed[role].items() if not s.lower().endswith(end.lower())}
    return listed


def _split_pairs(
    tree: FileTree, places: tuple[Place, Place], files: tuple[dict[str, str], dict[str, str]], hint: str
) -> Pairs | MissingSplit:
    absent = [tree.place(place.folder) for place in places if not tree.exists(place.folder)]
    if absent:
        return MissingSplit(f"no such folder: {' and '.join(dict.fromkeys(absent))}")
    for mine, other, listed, advice in zip(places, places[::-1], files, ("", hint), strict=True):
        if not listed:
            swapped = any(tree.files(mine.folder, other.suffix, nested) for nested in (False, True))
            swapped = swapped and mine.folder != other.folder
            raise ValueError(
                f"{tree.place(mine.folder)}: no files *{mine.suffix} here"
                + (f", but *{other.suffix}: are the folders of images and annotations swapped?" if swapped else "")
                + (f"; {advice}" if advice else "")
            )
    return match_stems(*files, *(tree.place(place.folder) for place in places))


def split_dataset(pairs: Pairs | MissingSplit) -> datasets.Dataset | MissingSplit:
    """Return the pictures of a split as a data set."""
    if isinstance(pairs, MissingSplit):
        return pairs
    images, annotations = zip(*pairs.values(), strict=True)
    return build_dataset(images, annotations, [_file_name(image) for image in images])


def _file_name(path: str) -> str:
    return os.path.basename(path.partition("::")[0] if is_member_path(path) else path)


def probe_values(splits: Mapping[str, Pairs | MissingSplit], annotation_format: AnnotationFormat) -> set[int]:
    """Read 16 evenly spaced annotations of the first split that is there, to find a wrong data set before it is used.

    Returns:
        Every value that is stored in them.

    Raises:
        ValueError: One of them is unreadable or holds values that are not allowed; see `tolerant_probes`.
    """
    role, pairs = next((role, pairs) for role, pairs in splits.items() if not isinstance(pairs, MissingSplit))
    values: set[int] = set()

    def probe(path: str) -> None:
        name = f"{role} annotation {shown(path)}"
        picture = open_picture(path, name)
        label_ids(picture, annotation_format, name)
        values.update(np.unique(stored_values(picture, name)).tolist())

    probe_evenly([annotation for _, annotation in pairs.values()], probe)
    return values


def probe_evenly(items: Sequence[Any], probe: Callable[[Any], None]) -> None:
    """Call a function with 16 evenly spaced items.

    Raises:
        ValueError: What the function raises; see `tolerant_probes`.
    """
    chosen = np.unique(np.linspace(0, len(items) - 1, min(len(items), PROBES)).astype(int)).tolist()
    errors = []
    for index in chosen:
        try:
            probe(items[index])
        except ValueError as error:
            errors.append(error)
            if not is_tolerant() or 2 * len(errors) >= len(chosen):
                raise errors[0] from None

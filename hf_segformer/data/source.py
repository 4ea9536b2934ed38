# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a user has given as a data set: a folder, a zip file, or one file in a folder, listed and read in one way."""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import os
import posixpath
import re
import time
import unicodedata
import urllib.parse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..texts import short_repr
from .archives import member_names, member_path, read_member
from .check_cache import SETTLED
from .files import LeftOut, read_file, require_text, scan, shown

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
_LOOKED_INTO = 20  # JSON files, where nothing was found
_KINDS: dict[type, str] = {dict: "an object", list: "a list"}
_UPLOADED = re.compile("^[0-9a-f]{8}-")
_BESIDE = ("annotations", "labels", "annotation")  # folders of a single file whose pictures lie beside them


class Source:
    """The files of a data set. They are named relative to the root, with `/` between folders, sorted.

    Hidden files and folders, pipes and the like are left out; links are followed, but no folder is entered twice.

    Args:
        path: Folder, zip file, or a file with annotations, such as one JSON, whose pictures lie in the same folder
            (or beside it, when it is called `annotations` or `labels`).
        pictures: Folder where pictures lie apart from the annotations.
        allow_outside_files: Whether annotations may name pictures outside these folders.

    Attributes:
        root: The folder or zip file.
        given: The single file that was given, relative to `root`, or "".
        files: All files.

    Raises:
        ValueError: There is no such file or folder.
    """

    def __init__(self, path: str | Path, pictures: str | Path | None = None, allow_outside_files: bool = False):
        path = Path(os.path.abspath(path))  # rows keep paths, the working directory may change
        self.given, self.archive = "", None
        if not os.path.exists(path):
            raise ValueError(f"data {shown(path)}: no such file or folder")
        if os.path.isdir(path):
            self.root = path
        elif path.suffix.lower() == ".zip":
            self.root = self.archive = path
        else:
            read_file(path, size=0)  # a pipe would be waited for
            self.root = path.parent.parent if path.parent.name.lower() in _BESIDE else path.parent
            self.given = path.relative_to(self.root).as_posix()
        self.allow_outside_files = allow_outside_files
        self.read_names: set[str] = set()
        self._peeked: dict[str, Any] = {}
        self.left_out = LeftOut()
        self.files = self._list()
        self.pictures = None if pictures is None else Source(pictures)

    def _list(self) -> list[str]:
        if self.archive is not None:
            names = [name for name in member_names(self.archive) if not _hidden(name)]
            return sorted(name for name in names if ".." not in name.split("/") and not name.startswith("/"))
        found: list[str] = []
        seen: set[str] = set()

        def walk(folder: str) -> None:
            real = os.path.realpath(self.root / folder)
            if real in seen:
                return
            seen.add(real)
            for name, kind in scan(self.root / folder):
                inner = f"{folder}/{name}" if folder else name
                if _hidden(name):
                    continue
                if kind == "folder" or (not kind and _may_be_folder(name) and os.path.isdir(self.root / inner)):
                    walk(inner)
                elif kind:
                    self.left_out.add(kind, self.root / inner)
                else:
                    found.append(inner)

        walk("")
        return sorted(found)

    @property
    def name(self) -> str:
        """A short name of the data set."""
        return Path(os.path.abspath(self.root)).stem if self.archive else Path(os.path.abspath(self.root)).name

    # ---- names

    def named(self, *suffixes: str) -> list[str]:
        """Return the files whose names end so, in any capitals; only the given file where one was given."""
        names = [self.given] if self.given else self.files
        return [name for name in names if name.lower().endswith(suffixes)]

    @functools.cached_property
    def folders(self) -> dict[str, list[str]]:
        """Folder -> names of the files directly in it; `""` is the root."""
        folders: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.files:
            folder, _, last = name.rpartition("/")
            folders[folder].append(last)
        return dict(folders)

    @functools.cached_property
    def image_names(self) -> list[str]:
        """All pictures, masks among them."""
        return [name for name in self.files if name.lower().endswith(IMAGE_SUFFIXES)]

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._file_set

    @functools.cached_property
    def _file_set(self) -> frozenset[str]:
        return frozenset(self.files)

    def path(self, name: str) -> str:
        """Return the path of a file, for rows of a data set and for messages through `files.shown`."""
        path = member_path(self.archive, name) if self.archive else str(self.root / name)
        require_text(path)
        return path

    def name_of(self, path: str) -> str:
        """Return the name of a file within the data set, by its path."""
        for place in (self, self.pictures):
            if place is not None and place.archive is not None:
                member, _, archive = path.removeprefix("zip://").partition("::")
                if archive == str(place.archive):
                    return member
            elif place is not None and path.startswith(os.path.join(place.root, "")):
                return Path(path).relative_to(place.root).as_posix()
        return Path(path).name

    def shown(self, name: str) -> str:
        """Return what to call a file in messages."""
        return shown(member_path(self.archive, name) if self.archive and name else self.root / name)

    # ---- contents

    def read(self, name: str) -> bytes:
        """Return the contents of a file.

        Raises:
            ValueError: It cannot be read; the message is the reason alone.
            StorageError: It could not be read for a reason that may pass.
        """
        self.read_names.add(name)
        if self.archive:
            return read_member(member_path(self.archive, name))
        return read_file(self.root / name)

    def text(self, name: str) -> str:
        """Return the contents of a text file, in UTF-8 or in UTF-16 with its mark, with line breaks of any system.

        Raises:
            ValueError: See `read`; or it is no such text.
        """
        contents = self.read(name)
        encoding = "utf-16" if contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        try:
            return re.sub("\r\n?", "\n", contents.decode(encoding))
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at {error.start}"
            raise ValueError(
                f"it must be text in {encoding.upper().removesuffix('-SIG')}, {byte} is none: {error.reason}"
            ) from None

    def named_text(self, name: str) -> str:
        """Return the contents of a text file as `text` does; what it raises begins with the name of the file."""
        try:
            return self.text(name)
        except ValueError as error:
            raise ValueError(f"{self.shown(name)}: {error}") from None

    def json(self, name: str, kinds: tuple[type, ...] = (dict,)) -> Any:
        """Return what a JSON file holds.

        Args:
            name: The file.
            kinds: What it may hold: `dict`, `list` or both.

        Raises:
            ValueError: See `read`; or it is no JSON, or holds something else. The message is the reason alone.
        """
        content = self._peeked.pop(name) if name in self._peeked else self._parse(name)
        if not isinstance(content, kinds):
            wanted = " or ".join(_KINDS[kind] for kind in kinds)
            raise ValueError(f"it must hold {wanted} of JSON, got {short_repr(content)}")
        return content

    def peek_json(self, name: str) -> Any:
        """Return what a JSON file holds, to find out what it is; None when it cannot be read.

        It is kept until `json` asks for it.
        """
        if name not in self._peeked:
            try:
                self._peeked[name] = self._parse(name)
            except ValueError:
                return None
        return self._peeked[name]

    def broken_json(self) -> str:
        """Say what is wrong with the first JSON file that cannot be read, "" if all can."""
        for name in self.named(".json")[:_LOOKED_INTO]:
            try:
                self._parse(name)
            except ValueError as error:
                return f"; {self.shown(name)}: {error}"
        return ""

    def require(self, found: Any, wanted: str) -> None:
        """Raise `ValueError` unless something was found that a format cannot do without."""
        if not found:
            raise ValueError(f"{self.shown(self.given)}: no {wanted} found{self.broken_json()}")

    def forget(self) -> None:
        """Let go of what `peek_json` keeps."""
        self._peeked.clear()

    def _parse(self, name: str) -> Any:
        text = self.text(name)
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("it is no JSON file that can be read: it is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"it is no JSON file: {error}") from None

    # ---- pictures

    def find_picture(self, wanted: str, near: str = "", split: str = "") -> str:
        """Return the path of a picture that an annotation names.

        Tried are the name relative to the annotation's folder and to the root, then all pictures of that file name:
        the one whose folders agree best, so that paths of another machine are no obstacle. Where there is none of this
        name, those count that differ only in capitals, in how accents are composed, or in what is percent-encoded, and
        at last those without the eight digits that Label Studio puts before the names of what is uploaded.

        Args:
            wanted: The name, possibly with folders, `..`, or backslashes between them.
            near: Folder of the annotation file, relative to the root.
            split: Where several fit, those in folders with this word in their names are taken.

        Raises:
            ValueError: There is no such picture, it lies outside the folders, or several fit equally well.
        """
        if not isinstance(wanted, str) or not wanted or "\0" in wanted:
            raise ValueError(f"the name of its picture must be a text, got {short_repr(wanted)}")
        plain = _path_in(wanted)
        for base in (near, ""):
            name = posixpath.normpath(posixpath.join(base, plain))
            if self.has(name) and not plain.startswith("/"):
                return self.path(name)
        places = [self] if self.pictures is None else [self.pictures, self]
        for place in places:
            best = place._best_fit(plain)
            if len(best) > 1 and split:
                best = [name for name in best if split.lower() in name.rpartition("/")[0].lower()] or best
            if len(best) > 1:
                raise ValueError(f"picture {wanted!r}: several files fit: {', '.join(map(place.shown, best[:3]))}")
            if best:
                return place.path(best[0])
        outside = os.path.join(self.root, near, plain)
        if self.archive is None and os.path.isfile(outside):
            if self.allow_outside_files:
                return os.path.normpath(outside)
            raise ValueError(
                f"picture {wanted!r} lies outside {shown(self.root)}: such files are not read unless "
                f"allow_outside_files is set, or pictures names their folder"
            )
        folders = " or ".join(shown(place.root) for place in places)
        raise ValueError(
            f"picture {wanted!r} is missing, no file of this name lies in {folders}{self._similar(plain)}"
        )

    def _similar(self, plain: str) -> str:
        """Say which picture differs in its suffix alone."""
        stem = posixpath.splitext(posixpath.basename(plain))[0].casefold()
        for place in filter(None, (self.pictures, self)):
            for name in place.image_names:
                if posixpath.splitext(posixpath.basename(name))[0].casefold() == stem:
                    return f", but {place.shown(name)} does"
        return ""

    def _best_fit(self, plain: str) -> list[str]:
        parts = plain.split("/")
        fits: defaultdict[int, list[str]] = defaultdict(list)
        last = parts[-1]
        loose = (loose_name(last), loose_name(_UPLOADED.sub("", last)))
        for name in next(filter(None, [self._by_last_name.get(last), *map(self._by_loose_name.get, loose)]), []):
            pairs = zip(reversed(parts), reversed(name.split("/")), strict=False)
            fits[next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(parts), name.count("/") + 1))].append(
                name
            )
        return fits[max(fits)] if fits else []

    @functools.cached_property
    def _by_last_name(self) -> dict[str, list[str]]:
        by_name: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.image_names:
            by_name[name.rpartition("/")[2]].append(name)
        return dict(by_name)

    @functools.cached_property
    def _by_loose_name(self) -> dict[str, list[str]]:
        by_name: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.image_names:
            by_name[loose_name(name.rpartition("/")[2])].append(name)
        return dict(by_name)

    # ---- has anything changed?

    def listing(self) -> str:
        """Return a digest of the names of all files."""
        digest = hashlib.blake2b("\0".join(self.files).encode(errors="surrogateescape"), digest_size=12)
        return digest.hexdigest() + (self.pictures.listing() if self.pictures else "")

    def identities(self, names: Sequence[str]) -> list | None:
        """Return sizes and times of files; None when one is missing or was changed a moment ago."""
        found = []
        for path in [self.archive] if self.archive else [self.root / name for name in names]:
            try:
                status = os.stat(path)
            except (OSError, ValueError):
                return None
            if status.st_mtime > time.time() - SETTLED:
                return None
            found.append([status.st_size, status.st_mtime_ns])
        return found


def loose_name(name: str) -> str:
    """Return what names have in common that differ as systems and programs for them do."""
    return unicodedata.normalize("NFC", urllib.parse.unquote(name)).casefold()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _path_in(wanted: str) -> str:
    """Return the path in a name that may come from Windows or be an address."""
    if not re.match(r"[a-z][a-z0-9+.-]+://", wanted, re.IGNORECASE):
        return wanted.replace("\\", "/")
    return urllib.parse.unquote(urllib.parse.urlsplit(wanted).path).lstrip("/")


def _may_be_folder(name: str) -> bool:
    """Links are told from files by asking the drive; for names of files one does without."""
    return not name.lower().endswith((*IMAGE_SUFFIXES, ".json", ".txt", ".xml"))

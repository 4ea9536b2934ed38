# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Shapes drawn once into masks of label ids, and kept in the user's cache, so that training reads PNGs in any case.

A mask is named after the shapes in it, so that one changed annotation has one mask drawn anew. Beside the masks lies
an index of the whole data set with names, sizes and times of the files that were read for it: as long as none has
changed, the next start reads neither annotations nor masks. Old data sets are removed, see `mask_cache`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import atomic_file, replace_path
from .annotated import Annotated, Bitmap, Faults, Picture, Polygon, Shape
from .archives import is_member_path
from .check_cache import cache_folder
from .classes import ClassTable
from .files import shown
from .mask_cache import INDEX, hold, limit_bytes, trim
from .rasteriser import VERSION as RULE
from .rasteriser import draw_shapes, stored_dtype
from .segmentation_data import picture_size
from .source import Source
from .tolerance import Fault, is_tolerant
from .workers import cores_of_this_process

VERSION = 3  # of the index
FOLDER_VARIABLE = "HF_SEGFORMER_MASKS"


def masks_folder() -> Path:
    """Return where masks are kept: `HF_SEGFORMER_MASKS`, else `masks` beside the results of checks."""
    return Path(os.environ.get(FOLDER_VARIABLE) or cache_folder().parent / "masks")


class DrawnMasks:
    """The masks of one data set, read in one way.

    Args:
        source: The files of the data set.
        format: Its format, "" to find out.
        classes: Names the user gave.
        stored_orientation: Whether shapes refer to pictures as their files store them, not upright.
    """

    def __init__(self, source: Source, format: str, classes: ClassTable | None, stored_orientation: bool):
        self.source, self.stored_orientation = source, stored_orientation
        self._limit = limit_bytes()
        pictures = str(source.pictures.root) if source.pictures else ""
        names = list(classes.names) if classes else None
        self._key = [VERSION, RULE, format, names, stored_orientation, source.allow_outside_files]
        place = _digest([str(source.root), source.given, pictures, self._key])
        self.folder = masks_folder() / place

    # ---- the index

    def load(self) -> tuple[str, Annotated] | None:
        """Return the format and the data set with masks in place of shapes; None when anything has changed."""
        try:
            digest, _, text = (self.folder / INDEX).read_bytes().partition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() != digest:
                return None
            index = json.loads(text)
        except (OSError, ValueError, RecursionError):
            return None
        read = index["read"]
        if index["listing"] != self.source.listing() or index["identities"] != self.source.identities(read):
            return None
        annotated = index["annotated"] | {"class_names": tuple(index["annotated"]["class_names"])}
        annotated["left_out"] = [Fault(*values) for values in annotated["left_out"]]
        if annotated["left_out"] and not is_tolerant():
            return None
        pictures = [Picture(**dict(zip(index["columns"], row, strict=True))) for row in index["pictures"]]
        if index["stamp"] != _stamp(pictures):
            return None
        hold(self.folder)
        if not all(_is_there(path) for picture in pictures for path in self._own(picture)):
            return None
        return index["format"], Annotated(pictures, **annotated)

    def _own(self, picture: Picture) -> list[str]:
        return [path for path in (picture.image, picture.mask) if path.startswith(str(self.folder))]

    def save(self, format: str, annotated: Annotated) -> None:
        """Keep the data set for the next start, unless its files were changed a moment ago."""
        read = sorted(self.source.read_names)
        trim(self.folder.parent, self._limit)
        identities = self.source.identities(read)
        if identities is None:
            return
        columns = [field.name for field in fields(Picture) if field.name != "shapes"]
        index = {
            "format": format,
            "read": read,
            "listing": self.source.listing(),
            "identities": identities,
            "stamp": _stamp(annotated.pictures),
            "annotated": {f.name: getattr(annotated, f.name) for f in fields(Annotated) if f.name != "pictures"},
            "columns": columns,
            "pictures": [[getattr(picture, name) for name in columns] for picture in annotated.pictures],
        }
        text = json.dumps(index, separators=(",", ":")).encode()
        with atomic_file(self.folder / INDEX) as file:
            file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)

    # ---- the masks

    def draw(self, annotated: Annotated) -> None:
        """Draw the shapes of all pictures; afterwards they have masks with the values of `draw_shapes`.

        Pictures that cannot be drawn are left out where that is put up with, see `tolerant_probes`.

        Raises:
            ValueError: Shapes or pictures are wrong; up to ten are named.
            StorageError: A file could not be read for a reason that may pass.
        """
        from tqdm.auto import tqdm

        faults, count = Faults(annotated.what), len(annotated.class_names)
        wanted = [picture for picture in annotated.pictures if picture.shapes is not None]
        if wanted:
            hold(self.folder, to_draw=True)

        def draw(picture: Picture) -> None:
            with faults.of(picture.annotation, picture.split):
                self._draw(picture, count)

        pool = ThreadPoolExecutor(min(cores_of_this_process(1), 16))
        try:
            shown = {"desc": "drawing masks", "leave": False, "delay": 1, "disable": None}  # on terminals
            for _ in tqdm(pool.map(draw, wanted), total=len(wanted), **shown):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
        good = [picture for picture in annotated.pictures if picture.mask is not None]
        annotated.left_out += faults.stop(good)
        annotated.pictures = good
        for picture in annotated.pictures:
            if isinstance(picture.image, bytes):
                picture.image = self._keep(hashlib.blake2b(picture.image, digest_size=12).hexdigest(), picture.image)

    def _draw(self, picture: Picture, num_classes: int) -> None:
        shapes = (picture.shapes() if callable(picture.shapes) else picture.shapes) or ()
        size = self._checked_size(picture)
        name = shapes_digest(shapes, size, num_classes, picture)
        path = self.folder / name[:2] / f"{name}.png"
        if _is_there(path):
            counts = np.bincount(np.asarray(Image.open(path)).ravel())
        else:
            values = draw_shapes(shapes, size, num_classes, picture.relative, picture.small_on_top)
            counts = np.bincount(values.ravel())
            self._keep(name, encoded_ids(values))
        present = np.flatnonzero(counts)
        picture.counts = np.stack([present, counts[present]], axis=1).ravel().tolist()
        picture.mask, picture.shapes, picture.size = str(path), None, size

    def _checked_size(self, picture: Picture) -> tuple[int, int]:
        try:
            size = picture_size(picture.image, self.stored_orientation)
        except ValueError as error:
            if picture.size is not None and not isinstance(picture.image, bytes):
                return picture.size  # the picture may be one of those that a run passes over
            where = "the picture in it" if isinstance(picture.image, bytes) else f"picture {shown(picture.image)}"
            raise ValueError(f"{where}: {error}") from None
        if picture.size in (None, size):
            return size
        (width, height), (stated_width, stated_height) = size, picture.size
        other = "upright" if self.stored_orientation else "stored"
        turned = (
            f"; if EXIF rotates the picture, mask_orientation {other!r} fits" if picture.size == size[::-1] else ""
        )
        raise ValueError(
            f"it is annotated as {stated_width}x{stated_height} (width x height), but its picture {picture.name} is "
            f"{width}x{height}{turned}"
        )

    def _keep(self, name: str, contents: bytes) -> str:
        """Write a file under the name of its contents; that takes no flush, the index comes last."""
        path = self.folder / name[:2] / f"{name}.png"
        if not _is_there(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # equal shapes may be drawn twice at once
            temporary.write_bytes(contents)
            os.utime(temporary, (0, 0))  # so that checks need not wait and see whether it changes once more
            replace_path(temporary, path)
        return str(path)


def encoded_ids(values: np.ndarray) -> bytes:
    """Return label ids (uint8 or uint16) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", compress_level=1)
    return file.getvalue()


def shapes_digest(shapes: Sequence[Shape], size: tuple[int, int], num_classes: int, picture: Picture) -> str:
    """Return a name for what shapes look like."""
    how = [RULE, *size, stored_dtype(num_classes).__name__, picture.relative, picture.small_on_top]
    digest = hashlib.blake2b(json.dumps(how).encode(), digest_size=12)
    for shape in shapes:
        digest.update(f"shape {shape.label} {shape.order} {len(shape.parts)}".encode())
        for part in shape.parts:
            if isinstance(part, Polygon):
                for ring in (part.exterior, *part.holes):
                    digest.update(f"ring {len(ring)} {len(part.holes)}".encode())
                    digest.update(np.ascontiguousarray(ring).data)
            else:
                field = "pixels" if isinstance(part, Bitmap) else "counts"
                array = getattr(part, field)
                digest.update(repr(replace(part, **{field: array.shape})).encode())
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _stamp(pictures: Sequence[Picture]) -> str:
    """Return a digest of sizes and times of the pictures, which may be replaced by others of another size."""
    digest = hashlib.blake2b(digest_size=12)
    for picture in pictures:
        if not is_member_path(picture.image):
            with contextlib.suppress(OSError, ValueError):
                status = os.stat(picture.image)
                digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _is_there(path: str | Path) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()

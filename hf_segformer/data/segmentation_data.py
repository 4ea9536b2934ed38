# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a segmentation data set is, and the one place where its files become arrays."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .archives import is_member_path, read_member
from .classes import Color
from .files import StorageError, printable, read_file, require_text, retried, shown
from .labels import AnnotationFormat, label_ids
from .tolerance import Fault

if TYPE_CHECKING:
    import datasets

ORIENTATION = 0x0112  # EXIF tag
_TURNS = {  # by orientation, what `ImageOps.exif_transpose` does
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
HEAD_BYTES = 1 << 16  # that hold size and orientation of nearly all pictures

# What Pillow's decoders raise for damaged files. The warning counts where users have made warnings errors.
_DAMAGES = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error),
    *(NotImplementedError, ZeroDivisionError, Image.DecompressionBombError, Image.DecompressionBombWarning),
)


class MissingSplit:
    """Stands for a split whose files are not there: whatever is asked of it raises `ValueError`.

    Args:
        reason: The message.
    """

    def __init__(self, reason: str):
        self.reason = reason

    def _refuse(self, *_: Any) -> Any:
        raise ValueError(self.reason)

    __len__ = __iter__ = __getitem__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying and pickling look for
            raise AttributeError(name)
        self._refuse()


@dataclass(frozen=True)
class SegmentationData:
    """A data set ready for training and evaluation.

    Attributes:
        train: `datasets.Dataset` with columns `image`, `annotation` (both `datasets.Image`, decoded when accessed) and
            `file_name` (str); `datasets.IterableDataset` where it is streamed. One of the two splits may be a
            `MissingSplit`.
        validation: The same columns.
        class_names: K names; the position is the label id.
        palette: K (R, G, B) colours in 0..255.
        ignore_index: Label of pixels that belong to no class.
        name: Short name of the data set.
        thin_classes: Names of classes whose objects are a few pixels thick, worth reporting apart.
        annotation_format: How annotation files are read; None means plain label ids.
        submission_ids: Pixel value that the data set's benchmark server expects for each of the K classes; None where
            these are the label ids themselves.
        other_splits: Splits that are neither, such as a test split, by name; kept when the data set is written.
        description: What was found out about the files, in one line, or "".
        left_out: What is wrong with the annotations of pictures that are in no split for it; see `tolerant_probes`.
    """

    train: datasets.Dataset | datasets.IterableDataset | MissingSplit
    validation: datasets.Dataset | datasets.IterableDataset | MissingSplit
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int = 255
    name: str = ""
    thin_classes: tuple[str, ...] = ()
    annotation_format: AnnotationFormat = None  # type: ignore[assignment]  # set below
    submission_ids: tuple[int, ...] | None = None
    other_splits: Mapping[str, datasets.Dataset] = field(default_factory=dict)
    description: str = ""
    left_out: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if self.annotation_format is None:
            plain = AnnotationFormat(len(self.class_names), "ids", self.ignore_index, self.palette)
            object.__setattr__(self, "annotation_format", plain)
        if 0 <= self.ignore_index < len(self.class_names):
            warnings.warn(
                f"ignore_index {self.ignore_index} is also the id of class {self.class_names[self.ignore_index]!r}: "
                f"its pixels take no part in loss and metric, and pixels wrongly predicted as it go unpunished",
                stacklevel=3,
            )

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)

    def read_sample(
        self, example: Mapping[str, Any], split: str = "", row: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode one row of `train` or `validation`; see `read_sample`."""
        return read_sample(example, self.annotation_format, split, row)


def read_sample(
    example: Mapping[str, Any], annotation_format: AnnotationFormat, split: str = "", row: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Decode a row into picture and label ids.

    Args:
        example: Row with `image`, `annotation` and, for error messages, `file_name`. The first two are PIL images,
            paths, or the `{"bytes", "path"}` dictionaries of an undecoded `datasets.Image` column.
        annotation_format: How the annotation encodes ids.
        split: The split it belongs to, for error messages.
        row: Its position there, for error messages about pictures without a file of their own.

    Returns:
        image: uint8 (H, W, 3), RGB, upright (EXIF orientation applied), 16-bit pictures scaled to 8 bits.
        label: Integer (H, W), uint8 for 8-bit annotations and int32 for larger ones, every value in 0..K-1 or
            `ignore_index`.

    Raises:
        ValueError: A file is unreadable or truncated, the sizes differ, or a label or colour is not allowed. The
            message names the file so that it can be opened, and tells picture from annotation.
        StorageError: A file could not be read for a reason that may pass.
    """
    name = picture_name(example, "image", split, row)
    if annotation_format.orientation == "stored" and isinstance(example["image"], Image.Image):
        raise ValueError(f"{name}: with mask_orientation 'stored', rows must be undecoded, see `undecoded`")
    picture, orientation = _decoded(example["image"], name, _upright_and_orientation)
    label = _read_annotation(example, annotation_format, picture.size, orientation, split, row)
    return _image_array(picture, name), label


def check_sample(
    example: Mapping[str, Any], annotation_format: AnnotationFormat, split: str = "", row: int | None = None
) -> np.ndarray:
    """Return the label ids of a row and check its picture to the end of its file, faster than `read_sample`.

    Raises:
        ValueError: What `read_sample` raises.
        StorageError: The same.
    """
    name = picture_name(example, "image", split, row)
    size, mode, orientation = _decoded(example["image"], name, _read_through)
    _refuse_floats(mode, name)
    return _read_annotation(example, annotation_format, size, orientation, split, row)


def _read_annotation(
    example: Mapping[str, Any],
    annotation_format: AnnotationFormat,
    size: tuple[int, int],
    orientation: int,
    split: str,
    row: int | None,
) -> np.ndarray:
    name = picture_name(example, "annotation", split, row)
    annotation = open_picture(example["annotation"], name)
    if annotation_format.orientation == "stored" and orientation in _TURNS:
        annotation = annotation.transpose(_TURNS[orientation])
    _check_size(size, annotation.size, name, example, split, row)
    return label_ids(annotation, annotation_format, name)


def undecoded(
    dataset: datasets.Dataset | datasets.IterableDataset,
) -> datasets.Dataset | datasets.IterableDataset:
    """Return the data set or stream with pictures as `{"bytes", "path"}`, so that `read_sample` can name bad files."""
    import datasets

    for column in ("image", "annotation"):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def build_dataset(images: Sequence[Any], annotations: Sequence[Any], file_names: Sequence[str]) -> datasets.Dataset:
    """Return a `datasets.Dataset` in memory over paths or encoded pictures; writes nothing to disk.

    Args:
        images: Paths, also of members of zip files (`archives.member_path`), or `{"bytes", "path"}` dictionaries.
        annotations: The same, one for each image.
        file_names: One name per image.

    Raises:
        ValueError: A path is no UTF-8.
    """
    import datasets

    for path in (*images, *annotations, *file_names):
        if isinstance(path, str):
            require_text(path)

    def picture(sources: Sequence[Any]) -> datasets.Image:
        if not any(is_member_path(source) for source in sources):
            return datasets.Image()
        from .zipped_image import ZippedImage

        return ZippedImage()

    features = datasets.Features(
        image=picture(images), annotation=picture(annotations), file_name=datasets.Value("string")
    )
    columns = {"image": list(images), "annotation": list(annotations), "file_name": list(file_names)}
    return datasets.Dataset.from_dict(columns, features=features)


def open_picture(source: Any, name: str) -> Image.Image:
    """Open and fully load a picture, turned upright.

    Pictures may have as many pixels as Pillow takes without an error: twice `PIL.Image.MAX_IMAGE_PIXELS`, which is
    178,956,970 unless a program sets it.

    Args:
        source: PIL image, path, or `{"bytes", "path"}` dictionary.
        name: What to call the picture in error messages.

    Raises:
        ValueError: The picture cannot be read to its end, or has too many pixels.
        StorageError: It could not be read for a reason that may pass.
    """
    return _decoded(source, name, _upright)


def picture_size(source: str | bytes, stored: bool = False) -> tuple[int, int]:
    """Return width and height of a picture, from the head of its file where that will do.

    Args:
        source: Path or contents.
        stored: As the file stores them; otherwise upright.

    Raises:
        ValueError: It is no picture that can be read; the message is the reason alone.
        StorageError: It could not be read for a reason that may pass.
    """
    plain_file = isinstance(source, str) and not is_member_path(source)
    for head in (HEAD_BYTES, None) if plain_file else (None,):
        try:
            if isinstance(source, bytes):
                picture = _open_bytes(source)
            else:
                picture = _open_bytes(read_file(source, size=head) if plain_file else read_member(source))
            turned = not stored and picture.getexif().get(ORIENTATION, 1) in range(5, 9)
            return picture.size[::-1] if turned else picture.size
        except StorageError:
            raise
        except _DAMAGES as error:
            if head is None:
                raise ValueError(f"cannot read the picture: {printable(str(error))}") from error
    raise AssertionError("unreachable")


def _decoded(source: Any, name: str, decode: Callable[[Image.Image], Any]) -> Any:
    try:
        return decode(source if isinstance(source, Image.Image) else _open_file(source))
    except StorageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(
            f"{name}: cannot read the picture: it has too many pixels, {limit:,} are the most: cut it into tiles "
            f"({error})"
        ) from error
    except _DAMAGES as error:
        raise ValueError(f"{name}: cannot read the picture: {printable(str(error))}") from error


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()
    return ImageOps.exif_transpose(picture)


def _upright_and_orientation(picture: Image.Image) -> tuple[Image.Image, int]:
    picture.load()
    orientation = picture.getexif().get(ORIENTATION, 1)  # turning may take it away
    return ImageOps.exif_transpose(picture), orientation


def _read_through(picture: Image.Image) -> tuple[tuple[int, int], str, int]:
    """Read a picture to the end of its file; return its upright size, its mode and its EXIF orientation."""
    size, mode = picture.size, picture.mode
    orientation = picture.getexif().get(ORIENTATION, 1)
    if orientation != 1:
        return _upright(picture).size, mode, orientation
    picture.draft("L", (1, 1))  # JPEG only: all of the file is read, an eighth of width and height worked out
    picture.load()
    return size, mode, orientation


def _open_file(source: Any) -> Image.Image:
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return _open_bytes(source["bytes"])
        source = source["path"]
    if source is None:
        raise ValueError("there is neither a file nor its contents")
    if is_member_path(source):
        return _open_bytes(read_member(source))
    if isinstance(source, str) and "://" in source:  # remote files
        return retried(lambda: _fetch(source), source)
    return _open_bytes(read_file(source))


def _fetch(url: str) -> Image.Image:
    import datasets

    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]  # by version of the Hub's
    try:
        return datasets.Image().decode_example({"path": url, "bytes": None})
    except tuple(client.TransportError for client in clients) as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


def _open_bytes(contents: bytes) -> Image.Image:
    if not contents:
        raise ValueError("it is empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(contents))
    except UnidentifiedImageError:
        raise ValueError("it is damaged, or no picture of a known format") from None


def picture_name(example: Mapping[str, Any], column: str, split: str = "", row: int | None = None) -> str:
    """Return what to call a picture or annotation in messages: its split, what it is, and where to find it.

    Args:
        example: Row with `image`, `annotation` and `file_name`.
        column: `"image"` or `"annotation"`.
        split: The split of the row, `""` where it is not known.
        row: Position in the split, named for pictures that are no files of their own.
    """
    kind = "picture" if column == "image" else "annotation"
    return f"{split} {kind} {place_of(example[column], example.get('file_name'), row)}".strip()


def place_of(source: Any, file_name: str | None = None, row: int | None = None) -> str:
    """Return where to find a picture: its path as `shown`, or its name and row where it has no file of its own."""
    embedded = isinstance(source, Mapping) and source.get("bytes") is not None
    path = source.get("path") if isinstance(source, Mapping) else source
    path = path or getattr(source, "filename", "")
    if isinstance(path, (str, os.PathLike)) and path and (not embedded or os.path.isabs(path) or not file_name):
        place = shown(path) if not embedded or os.path.isabs(path) else printable(os.fspath(path))
    else:
        place = printable(file_name or "") or "without a name"
    return f"{place} (row {row})" if row is not None and (embedded or not path) else place


def _image_array(picture: Image.Image, name: str) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip to white
        values = np.clip(np.asarray(picture, np.int64), 0, 65535)
        return np.repeat(((values + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    _refuse_floats(picture.mode, name)
    return np.asarray(picture.convert("RGB"))


def _refuse_floats(mode: str, name: str) -> None:
    if mode == "F":
        raise ValueError(f"{name}: pictures of floating point numbers are not supported; save it with 8 or 16 bits")


def _check_size(
    size: tuple[int, int],
    label_size: tuple[int, int],
    label_name: str,
    example: Mapping[str, Any],
    split: str,
    row: int | None,
) -> None:
    (width, height), (label_width, label_height) = size, label_size
    if size == label_size:
        return
    turned = (
        "; the picture may carry an EXIF rotation that its annotation ignores: mask_orientation 'stored' turns both"
    )
    hint = turned if size == label_size[::-1] else ""
    raise ValueError(
        f"{label_name}: annotation is {label_width}x{label_height} (width x height) but the "
        f"{picture_name(example, 'image', split, row)} is {width}x{height}{hint}"
    )

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a segmentation data set is, and the one place where its files become arrays."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from .archives import is_member_path, read_member
from .classes import Color
from .labels import AnnotationFormat, label_ids

if TYPE_CHECKING:
    import datasets


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
    """

    train: datasets.Dataset | datasets.IterableDataset | MissingSplit
    validation: datasets.Dataset | datasets.IterableDataset | MissingSplit
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int = 255
    name: str = ""
    thin_classes: tuple[str, ...] = ()
    annotation_format: AnnotationFormat | None = None
    submission_ids: tuple[int, ...] | None = None

    def __post_init__(self):
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

    def read_sample(self, example: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Decode one row of `train` or `validation`; see `read_sample`."""
        return read_sample(example, self.annotation_format)


def read_sample(example: Mapping[str, Any], annotation_format: AnnotationFormat) -> tuple[np.ndarray, np.ndarray]:
    """Decode a row into picture and label ids.

    Args:
        example: Row with `image`, `annotation` and, for error messages, `file_name`. The first two are PIL images,
            paths, or the `{"bytes", "path"}` dictionaries of an undecoded `datasets.Image` column.
        annotation_format: How the annotation encodes ids.

    Returns:
        image: uint8 (H, W, 3), RGB, upright (EXIF orientation applied), 16-bit pictures scaled to 8 bits.
        label: Integer (H, W), uint8 for 8-bit annotations and int32 for larger ones, every value in 0..K-1 or
            `ignore_index`.

    Raises:
        ValueError: A file is unreadable or truncated, the sizes differ, or a label or colour is not allowed. The
            message names the file.
    """
    name = example.get("file_name")
    image_name, label_name = _source_name(example["image"], name), _source_name(example["annotation"], name)
    image = _image_array(open_picture(example["image"], image_name), image_name)
    annotation = open_picture(example["annotation"], label_name)
    _check_size(image, annotation.size, image_name, label_name)
    return image, label_ids(annotation, annotation_format, label_name)


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
    """
    import datasets

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

    Args:
        source: PIL image, path, or `{"bytes", "path"}` dictionary.
        name: What to call the picture in error messages.

    Raises:
        ValueError: The picture cannot be read to its end.
    """
    try:
        if not isinstance(source, Image.Image):
            source = _open_file(source)
        source.load()
        return ImageOps.exif_transpose(source)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: cannot read the picture (missing, damaged or no picture): {error}") from error


def _open_file(source: Any) -> Image.Image:
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return Image.open(io.BytesIO(source["bytes"]))
        source = source["path"]
    if is_member_path(source):
        return Image.open(io.BytesIO(read_member(source)))
    if isinstance(source, str) and "://" in source:  # remote files
        import datasets

        return datasets.Image().decode_example({"path": source, "bytes": None})
    return Image.open(source)


def _source_name(source: Any, fallback: str | None) -> str:
    path = source.get("path") if isinstance(source, Mapping) else source
    if isinstance(path, (str, Path)) and (Path(path).is_absolute() or is_member_path(path) or fallback is None):
        return str(path)
    return fallback or getattr(source, "filename", "") or "unnamed picture"


def _image_array(picture: Image.Image, name: str) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip to white
        values = np.clip(np.asarray(picture, np.int64), 0, 65535)
        return np.repeat(((values + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError(f"{name}: pictures of floating point numbers are not supported; save it with 8 or 16 bits")
    return np.asarray(picture.convert("RGB"))


def _check_size(image: np.ndarray, label_size: tuple[int, int], image_name: str, label_name: str) -> None:
    (height, width), (label_width, label_height) = image.shape[:2], label_size
    if (height, width) == (label_height, label_width):
        return
    turned = (label_height, label_width) == (width, height)
    hint = "; the picture may carry an EXIF rotation that its annotation ignores" if turned else ""
    raise ValueError(
        f"{label_name}: annotation is {label_width}x{label_height} (width x height) but its image {image_name} is "
        f"{width}x{height}{hint}"
    )

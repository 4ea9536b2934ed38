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

from .classes import Color

if TYPE_CHECKING:
    import datasets

MASK_FORMATS = ("ids", "binary", "rgb")


@dataclass(frozen=True)
class AnnotationFormat:
    """How the pixels of annotation files encode label ids.

    Attributes:
        mask_format: `"ids"`: the pixel value is the label id (8 or 16 bit grey, palette PNGs by their index, or RGB
            with three equal channels). `"binary"`: 0 is class 0, and 1 or the largest 8-bit value 255 is class 1.
            `"rgb"`: the colour is looked up in `palette`.
        num_classes: K; valid ids are 0..K-1.
        ignore_index: Label of pixels that belong to no class.
        palette: (R, G, B) per class, needed for `"rgb"`.
        ignore_color: (R, G, B) that becomes `ignore_index` in `"rgb"`.
    """

    num_classes: int
    mask_format: str = "ids"
    ignore_index: int = 255
    palette: tuple[Color, ...] = ()
    ignore_color: Color | None = None

    def __post_init__(self):
        if self.mask_format not in MASK_FORMATS:
            raise ValueError(f"mask_format must be one of {', '.join(MASK_FORMATS)}, got {self.mask_format!r}")
        if self.mask_format == "binary" and self.num_classes != 2:
            raise ValueError(f"mask_format 'binary' needs exactly 2 classes, got {self.num_classes}")
        if self.mask_format == "rgb" and len(self.palette) != self.num_classes:
            raise ValueError(
                f"mask_format 'rgb' needs a palette with one colour per class: got {len(self.palette)} colours for "
                f'{self.num_classes} classes; add "palette" to classes.json'
            )
        repeated = sorted({color for color in self.palette if self.palette.count(color) > 1})
        if self.mask_format == "rgb" and repeated:
            raise ValueError(f"mask_format 'rgb' needs a palette of different colours, repeated: {repeated}")


@dataclass(frozen=True)
class SegmentationData:
    """A data set ready for training and evaluation.

    Attributes:
        train: `datasets.Dataset` with columns `image`, `annotation` (both `datasets.Image`, decoded when accessed) and
            `file_name` (str).
        validation: The same columns.
        class_names: K names; the position is the label id.
        palette: K (R, G, B) colours in 0..255.
        ignore_index: Label of pixels that belong to no class.
        name: Short name of the data set.
        thin_classes: Names of classes whose objects are a few pixels thick, worth reporting apart.
        annotation_format: How annotation files are read; None means plain label ids.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int = 255
    name: str = ""
    thin_classes: tuple[str, ...] = ()
    annotation_format: AnnotationFormat | None = None

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
    label = _label_array(open_picture(example["annotation"], label_name), annotation_format, label_name)
    _check_size(image, label, image_name, label_name)
    check_label_range(label, annotation_format, label_name)
    return image, label


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return the data set with pictures as `{"bytes", "path"}`, so that `read_sample` can name bad files."""
    import datasets

    for column in ("image", "annotation"):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def build_dataset(images: Sequence[Any], annotations: Sequence[Any], file_names: Sequence[str]) -> datasets.Dataset:
    """Return a `datasets.Dataset` in memory over paths or encoded pictures; writes nothing to disk.

    Args:
        images: Paths, or `{"bytes", "path"}` dictionaries.
        annotations: The same, one for each image.
        file_names: One name per image.
    """
    import datasets

    picture = datasets.Image()
    features = datasets.Features(image=picture, annotation=picture, file_name=datasets.Value("string"))
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
    if isinstance(source, str) and "://" in source:  # members of archives and remote files
        import datasets

        return datasets.Image().decode_example({"path": source, "bytes": None})
    return Image.open(source)


def _source_name(source: Any, fallback: str | None) -> str:
    path = source.get("path") if isinstance(source, Mapping) else source
    if isinstance(path, (str, Path)) and (Path(path).is_absolute() or fallback is None):
        return str(path)
    return fallback or getattr(source, "filename", "") or "unnamed picture"


def _image_array(picture: Image.Image, name: str) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip to white
        values = np.clip(np.asarray(picture, np.int64), 0, 65535)
        return np.repeat(((values + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError(f"{name}: pictures of floating point numbers are not supported; save it with 8 or 16 bits")
    return np.asarray(picture.convert("RGB"))


def _label_array(picture: Image.Image, annotation_format: AnnotationFormat, name: str) -> np.ndarray:
    if annotation_format.mask_format == "rgb":
        return _ids_from_colors(np.asarray(picture.convert("RGB")), annotation_format, name)
    values = stored_values(picture, name)
    if annotation_format.mask_format == "binary":
        other = np.setdiff1d(values, (0, 1, 255))
        if other.size or ((values == 1).any() and (values == 255).any()):
            raise ValueError(
                f"{name}: a binary mask holds 0 and one of 1 or 255, got the values {np.unique(values)[:10].tolist()}"
                f"; JPEG compression and smooth resizing cause such values: save masks as PNG and resize with nearest"
            )
        return (values > 0).astype(np.uint8)
    return values


def stored_values(picture: Image.Image, name: str) -> np.ndarray:
    """Return the numbers in a one-channel picture, of a palette PNG its indices.

    Args:
        picture: Loaded picture; colour files whose three channels are equal count as one channel.
        name: What to call it in error messages.

    Returns:
        Integer (H, W), uint8 or int32.

    Raises:
        ValueError: The picture is in colour, or holds other things than integers.
    """
    if picture.mode in ("RGB", "RGBA", "LA"):  # colour files that hold grey numbers
        channels = np.asarray(picture.convert("RGB"))
        if (channels != channels[..., :1]).any():
            raise ValueError(
                f"{name}: label ids expected, but this is a colour picture; use mask_format 'rgb' with a "
                f"palette in classes.json"
            )
        return channels[..., 0]
    if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise ValueError(f"{name}: annotations of mode {picture.mode!r} are not supported; use 8- or 16-bit PNG")
    values = np.asarray(picture)
    return values.astype(np.uint8 if picture.mode in ("1", "L", "P") else np.int32)


def _packed(colors: np.ndarray) -> np.ndarray:
    colors = colors.astype(np.int32)
    return colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]


def _ids_from_colors(colors: np.ndarray, annotation_format: AnnotationFormat, name: str) -> np.ndarray:
    codes = _packed(np.array(annotation_format.palette))
    ids = np.arange(len(codes))
    if annotation_format.ignore_color is not None:
        codes = np.append(codes, _packed(np.array(annotation_format.ignore_color)))
        ids = np.append(ids, annotation_format.ignore_index)
    order = np.argsort(codes)
    codes, ids = codes[order], ids[order]
    pixels = _packed(colors)
    place = np.searchsorted(codes, pixels).clip(max=len(codes) - 1)
    unknown = codes[place] != pixels
    if unknown.any():
        y, x = np.argwhere(unknown)[0].tolist()
        raise ValueError(
            f"{name}: colour {tuple(colors[y, x].tolist())} at (x={x}, y={y}) is not in the palette "
            f'({int(unknown.sum())} such pixels); add it as a class or as "ignore_color" in classes.json; masks saved '
            f"as JPEG or resized smoothly have such colours at every edge"
        )
    small = annotation_format.num_classes <= 256 and 0 <= annotation_format.ignore_index <= 255
    return ids.astype(np.uint8 if small else np.int32)[place]


def _check_size(image: np.ndarray, label: np.ndarray, image_name: str, label_name: str) -> None:
    if image.shape[:2] == label.shape:
        return
    (height, width), (label_height, label_width) = image.shape[:2], label.shape
    turned = (label_height, label_width) == (width, height)
    hint = "; the picture may carry an EXIF rotation that its annotation ignores" if turned else ""
    raise ValueError(
        f"{label_name}: annotation is {label_width}x{label_height} (width x height) but its image {image_name} is "
        f"{width}x{height}{hint}"
    )


def check_label_range(label: np.ndarray, annotation_format: AnnotationFormat, name: str) -> None:
    """Raise when a label is neither in 0..K-1 nor the ignored one.

    Args:
        label: Integer (H, W).
        annotation_format: Holds K and the ignored label.
        name: File to blame.

    Raises:
        ValueError: Names the file, the values, how many pixels have them, K, and the likely cause.
    """
    count, ignored = annotation_format.num_classes, annotation_format.ignore_index
    wrong = ((label < 0) | (label >= count)) & (label != ignored)
    if not wrong.any():
        return
    values = np.unique(label[wrong])
    shown = ", ".join(map(str, values[:10].tolist())) + (", ..." if values.size > 10 else "")
    raise ValueError(
        f"{name}: {int(wrong.sum())} pixels have labels outside 0..{count - 1} (K={count} classes, ignore_index="
        f"{ignored}): {shown}{_likely_cause(label, values, count, ignored)}"
    )


def _likely_cause(label: np.ndarray, wrong: np.ndarray, count: int, ignored: int) -> str:
    present = np.unique(label)
    if present.tolist() in ([0, 255], [255]) and count == 2:
        return "; this looks like a 0/255 mask: use mask_format 'binary'"
    if wrong.tolist() == [255]:
        return f"; 255 usually marks ignored pixels: set ignore_index=255 (now {ignored})"
    if wrong.tolist() == [count]:
        return (
            "; ids seem to start at 1 (as in SceneParse150, where 0 means 'other'): subtract 1 and map 0 to "
            "ignore_index (reduce_labels), or add the class that id 0 stands for"
        )
    if wrong.max() >= 1000:
        return "; such numbers are instance ids (class * 1000 + instance) or an encoded colour, not class ids"
    if wrong.size > 20:
        return (
            "; so many different values come from JPEG compression or smooth resizing (save masks as PNG, resize with "
            "nearest), or from the full label set of the data set instead of the one with fewer classes"
        )
    return "; the class names file may lack classes, or these ids need a mapping to 0..K-1"

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""How annotation files encode label ids, and what is wrong with those that do not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .classes import MASK_FORMATS, Color

ORIENTATIONS = ("upright", "stored")


@dataclass(frozen=True)
class AnnotationFormat:
    """How the pixels of annotation files encode label ids.

    Attributes:
        num_classes: K; valid ids are 0..K-1.
        mask_format: `"ids"`: the pixel value is the label id (8 or 16 bit grey, palette PNGs by their index, or RGB
            with three equal channels). `"binary"`: 0 is class 0, and 1 or the largest 8-bit value 255 is class 1.
            `"rgb"`: the colour is looked up in `palette`.
        ignore_index: Label of pixels that belong to no class.
        palette: (R, G, B) per class, needed for `"rgb"`.
        ignore_color: (R, G, B) that becomes `ignore_index` in `"rgb"`.
        reduce_zero_label: With `"ids"`: the stored 0 is no class and k is class k-1, as in SceneParse150. 0 becomes
            `ignore_index`, 1..K become 0..K-1, and `ignore_index` stays what it is.
        id_map: With `"ids"`: (stored value, label id) for every value that may occur, where values are no label ids.
        orientation: `"upright"`: annotations lie as pictures do once their EXIF rotation is applied. `"stored"`: as
            the pixels of the picture are stored, so that they are turned with it.
        explain: Function that knows the data set's classic mistakes. Given the distinct values that are not allowed
            (sorted integers; None for an annotation in colour), returns the likely cause, or "".
    """

    num_classes: int
    mask_format: str = "ids"
    ignore_index: int = 255
    palette: tuple[Color, ...] = ()
    ignore_color: Color | None = None
    reduce_zero_label: bool = False
    id_map: tuple[tuple[int, int], ...] = ()
    orientation: str = "upright"
    explain: Callable[[np.ndarray | None], str] | None = None

    def __post_init__(self) -> None:
        if self.mask_format not in MASK_FORMATS:
            raise ValueError(f"mask_format must be one of {', '.join(MASK_FORMATS)}, got {self.mask_format!r}")
        if self.orientation not in ORIENTATIONS:
            raise ValueError(f"orientation must be one of {', '.join(ORIENTATIONS)}, got {self.orientation!r}")
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
        if self.reduce_zero_label and self.mask_format != "ids":
            raise ValueError(f"reduce_zero_label goes with mask_format 'ids', got {self.mask_format!r}")
        if self.id_map and (self.mask_format != "ids" or self.reduce_zero_label):
            raise ValueError("id_map goes with mask_format 'ids' and without reduce_zero_label")

    def stored_ids(self) -> tuple[tuple[int, int], ...]:
        """Return (stored value, label id) pairs of an annotation whose values are no label ids, else ()."""
        if not self.reduce_zero_label:
            return self.id_map
        pairs = {self.ignore_index: self.ignore_index, 0: self.ignore_index}
        return tuple((pairs | {k: k - 1 for k in range(1, self.num_classes + 1)}).items())


def label_ids(picture: Image.Image, annotation_format: AnnotationFormat, name: str) -> np.ndarray:
    """Return the label ids in a loaded annotation.

    Args:
        picture: Annotation, upright.
        annotation_format: How it encodes ids.
        name: What to call it in error messages.

    Returns:
        Integer (H, W), uint8 for 8-bit annotations and int32 for larger ones, every value in 0..K-1 or
        `ignore_index`. The array is the caller's own.

    Raises:
        ValueError: A value or colour is not allowed; the message says what the file may be instead.
    """
    if annotation_format.mask_format == "rgb":
        return _ids_from_colors(np.asarray(picture.convert("RGB")), annotation_format, name)
    explain = annotation_format.explain
    values = stored_values(picture, name, **({"hint": explain(None)} if explain else {}))
    if annotation_format.mask_format == "binary":
        return _binary_ids(values, name)
    if annotation_format.stored_ids():
        return _mapped_ids(values, annotation_format, name)
    check_label_range(values, annotation_format, name)
    return values


def stored_values(
    picture: Image.Image, name: str, hint: str = "use mask_format 'rgb' with a palette in classes.json"
) -> np.ndarray:
    """Return the numbers in a one-channel picture, of a palette PNG its indices.

    Args:
        picture: Loaded picture; colour files whose three channels are equal count as one channel.
        name: What to call it in error messages.
        hint: What to say when the picture is in colour.

    Returns:
        Integer (H, W), uint8 or int32.

    Raises:
        ValueError: The picture is in colour, or holds other things than integers.
    """
    if picture.mode in ("RGB", "RGBA", "LA"):  # colour files that hold grey numbers
        channels = np.asarray(picture.convert("RGB"))
        if (
            picture.mode != "RGB"
            and (channels == channels[0, 0]).all()
            and np.ptp(np.asarray(picture.getchannel("A")))
        ):
            raise ValueError(
                f"{name}: label ids expected, but they seem to be in the alpha channel; save them as grey"
            )
        if (channels != channels[..., :1]).any():
            raise ValueError(f"{name}: label ids expected, but this is a colour picture; {hint}")
        return channels[..., 0].copy()
    if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise ValueError(f"{name}: annotations of mode {picture.mode!r} are not supported; use 8- or 16-bit PNG")
    values = np.asarray(picture)
    return values.astype(np.uint8 if picture.mode in ("1", "L", "P") else np.int32)


def _binary_ids(values: np.ndarray, name: str) -> np.ndarray:
    other = np.setdiff1d(values, (0, 1, 255))
    if other.size or ((values == 1).any() and (values == 255).any()):
        raise ValueError(
            f"{name}: a binary mask holds 0 and one of 1 or 255, got the values {np.unique(values)[:10].tolist()}"
            f"; JPEG compression and smooth resizing cause such values: save masks as PNG and resize with nearest"
        )
    return (values > 0).astype(np.uint8)


def _look_up(values: np.ndarray, keys: np.ndarray, results: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `keys` (in any order) are mapped to, and where a value is no key."""
    order = np.argsort(keys)
    keys, results = keys[order], results[order]
    place = np.searchsorted(keys, values).clip(max=len(keys) - 1)
    return results[place], keys[place] != values


def _id_dtype(annotation_format: AnnotationFormat) -> type:
    small = annotation_format.num_classes <= 256 and 0 <= annotation_format.ignore_index <= 255
    return np.uint8 if small else np.int32


@functools.lru_cache
def _byte_tables(annotation_format: AnnotationFormat) -> tuple[np.ndarray, np.ndarray]:
    keys, ids = np.array(annotation_format.stored_ids()).T
    return _look_up(np.arange(256), keys, ids.astype(_id_dtype(annotation_format)))


def _mapped_ids(values: np.ndarray, annotation_format: AnnotationFormat, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        table, unknown_bytes = _byte_tables(annotation_format)
        picture = Image.fromarray(values)  # Pillow counts and looks up bytes several times faster than NumPy
        present = np.flatnonzero(picture.histogram())
        unknown = unknown_bytes[values] if unknown_bytes[present].any() else None
        ids = np.array(picture.point(table.tolist())) if table.dtype == np.uint8 else table[values]
    else:
        keys, ids = np.array(annotation_format.stored_ids()).T
        ids, unknown = _look_up(values, keys, ids.astype(_id_dtype(annotation_format)))
    if unknown is not None and unknown.any():
        allowed = [value for value, _ in annotation_format.stored_ids()]
        _raise_out_of_range(values, unknown, f"values other than {_ranges(allowed)}", annotation_format, name)
    return ids


def _ranges(values: Iterable[int]) -> str:
    """`0..10, 12, 255` for a set of integers."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{low}..{high}" if low < high else str(low) for low, high in runs)


def _packed(colors: np.ndarray) -> np.ndarray:
    colors = colors.astype(np.int32)
    return colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]


def _ids_from_colors(colors: np.ndarray, annotation_format: AnnotationFormat, name: str) -> np.ndarray:
    codes = _packed(np.array(annotation_format.palette))
    ids = np.arange(len(codes))
    if annotation_format.ignore_color is not None:
        codes = np.append(codes, _packed(np.array(annotation_format.ignore_color)))
        ids = np.append(ids, annotation_format.ignore_index)
    ids, unknown = _look_up(_packed(colors), codes, ids.astype(_id_dtype(annotation_format)))
    if unknown.any():
        y, x = np.argwhere(unknown)[0].tolist()
        raise ValueError(
            f"{name}: colour {tuple(colors[y, x].tolist())} at (x={x}, y={y}) is not in the palette "
            f"({int(unknown.sum())} such pixels); it must be the colour of a class, or the one that is ignored; masks "
            f"saved as JPEG or resized smoothly have such colours at every edge"
        )
    return ids


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
    if wrong.any():
        allowed = f"labels outside 0..{count - 1} (K={count} classes, ignore_index={ignored})"
        _raise_out_of_range(label, wrong, allowed, annotation_format, name)


def _raise_out_of_range(
    values: np.ndarray, wrong: np.ndarray, what: str, annotation_format: AnnotationFormat, name: str
) -> None:
    found = np.unique(values[wrong])
    shown = ", ".join(map(str, found[:10].tolist())) + (", ..." if found.size > 10 else "")
    cause = annotation_format.explain(found) if annotation_format.explain else ""
    cause = cause or _likely_cause(values, found, annotation_format)
    raise ValueError(f"{name}: {int(wrong.sum())} pixels have {what}: {shown}; {cause}")


def _likely_cause(label: np.ndarray, wrong: np.ndarray, annotation_format: AnnotationFormat) -> str:
    count, ignored = annotation_format.num_classes, annotation_format.ignore_index
    if np.unique(label).tolist() in ([0, 255], [255]) and count == 2:
        return "this looks like a 0/255 mask: use mask_format 'binary'"
    if wrong.tolist() == [255]:
        return f"255 usually marks ignored pixels: set ignore_index=255 (now {ignored})"
    if wrong.tolist() == [count] and not annotation_format.stored_ids():
        return (
            "ids seem to start at 1 (as in SceneParse150, where 0 means 'other'): set reduce_zero_label, or add the "
            "class that id 0 stands for"
        )
    if count == 19 and wrong.min() >= 0 and wrong.max() < 34:
        return "these may be label ids of Cityscapes (0..33) where its train ids (0..18) are expected"
    if wrong.max() >= 1000:
        return "such numbers are instance ids (class * 1000 + instance) or an encoded colour, not class ids"
    if wrong.size > 20:
        return (
            "so many different values come from JPEG compression or smooth resizing (save masks as PNG, resize with "
            "nearest), or from the full label set of the data set instead of the one with fewer classes"
        )
    return "the class names file may lack classes, or these ids need a mapping to 0..K-1"

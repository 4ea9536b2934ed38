# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""COCO instances: one JSON file per split, with `images`, `annotations` and `categories`.

CVAT, Roboflow, Label Studio and others export it. The format says nothing about overlaps, so that small shapes lie on
top of large ones, crowds among them.
"""

from __future__ import annotations

import functools
import posixpath
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..texts import listed, short_repr
from .annotated import Annotated, Faults, Picture, Polygon, Runs, Shape, make_polygon, require_size, shape_place
from .classes import ClassTable, make_class_table
from .file_names import split_in, split_of
from .rle import make_runs
from .source import Source

WHAT = "COCO instances"
PEEKED = 20  # files looked at to find out what they are
OTHER_KINDS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
USUAL_WORDS = ("coco", "instances", "annotations", "result", "train", "val", "test")


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    files = _files(source)
    return f"COCO instances in {source.shown(files[0])}" if files else None


def _files(source: Source, broken: bool = False) -> list[str]:
    """Files of COCO instances; with `broken` also what is no JSON, which may be one that was cut off."""
    names = [n for n in source.named(".json") if not n.rpartition("/")[2].startswith(OTHER_KINDS)]
    if any(_stem(name).startswith("instances_") for name in names):
        names = [name for name in names if _stem(name).startswith("instances_")]
    if len(names) > PEEKED:
        names = [name for name in names if any(word in _stem(name).lower() for word in USUAL_WORDS)][:PEEKED]
    found = {name: source.peek_json(name) for name in names}
    return [name for name, content in found.items() if is_coco(content) or (broken and content is None)]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]


def is_coco(content: Any) -> bool:
    """Whether this is a file of COCO instances, not of keypoints or panoptic segments."""
    if not isinstance(content, Mapping) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    ):
        return False
    first = content["annotations"][0] if content["annotations"] else {}
    return not (isinstance(first, Mapping) and ("segments_info" in first or "keypoints" in first))


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    faults = Faults(WHAT)
    names = _files(source, broken=True) or source.named(".json")
    files = []
    for name in names:
        with faults.of(source.shown(name)):
            content = source.json(name)
            if not is_coco(content):
                lists = 'lists "images", "annotations" and "categories"'
                raise ValueError(
                    f"it must be a COCO file of instances, with {lists} and without keypoints or segments"
                )
            files.append((name, content))
    faults.stop()
    categories = _Categories(source, files, classes)
    counts: Counter[str] = Counter()
    pictures: dict[str, Picture] = {}
    for name, content in files:
        _File(source, name, content, categories, faults, counts).read(pictures)
    left_out = faults.stop(pictures)
    if not any(map(len, (content["annotations"] for _, content in files))):
        raise ValueError(f"{WHAT}: no annotation in {listed(source.shown(name) for name, _ in files)}")
    if counts["boxes"] == sum(len(content["annotations"]) for _, content in files):
        raise ValueError(f"{WHAT}: the annotations are boxes alone, without segmentation")
    notes = [f"{counts['boxes']} boxes without segmentation left out"] if counts["boxes"] else []
    notes += [f"category {name!r} left out, it only stands above others" for name in categories.left_out]
    if categories.repeated:
        notes.append(f"categories of one name are one class ({listed(categories.repeated)})")
    return Annotated(list(pictures.values()), categories.names, WHAT, notes=notes, left_out=left_out)


class _Categories:
    """Class names, and which category ids stand for them in each file."""

    def __init__(self, source: Source, files: Sequence[tuple[str, Mapping]], classes: ClassTable | None):
        named: dict[Any, str] = {}
        self.left_out: list[str] = []
        for name, content in files:
            for index, category in enumerate(content["categories"]):
                place = f"{source.shown(name)}: category {index}"
                if not isinstance(category, Mapping) or not isinstance(category.get("name"), str):
                    raise ValueError(f"{place}: it must have an id and a name, got {short_repr(category)}")
                key = _number(category.get("id"))
                if isinstance(key, bool) or not isinstance(key, int):
                    raise ValueError(f"{place}: its id must be an integer, got {short_repr(key)}")
                if named.setdefault(key, category["name"]) != category["name"]:
                    was, now = named[key], category["name"]
                    raise ValueError(f"{place}: id {key} must stand for one name, got {was!r} and {now!r}")
        self._drop_super_category(named, files)
        place = listed((source.shown(name) for name, _ in files), 2)
        if classes is None:
            if not named:
                raise ValueError(f"{place}: at least one category is needed, got none")
            names = dict.fromkeys(named[key] for key in sorted(named))
            classes = make_class_table(list(names), source=f"{place}: categories")
        self.names = classes.names
        positions = {name: index for index, name in enumerate(self.names)}
        self.labels = {key: positions.get(name) for key, name in named.items()}
        self.by_id = named
        self.repeated = [name for name, count in Counter(named.values()).items() if count > 1]

    def _drop_super_category(self, named: dict[Any, str], files: Sequence[tuple[str, Mapping]]) -> None:
        """Roboflow's category 0 is what all the others are a kind of, and no annotation has it."""
        above = {
            c.get("supercategory") for _, content in files for c in content["categories"] if _number(c.get("id")) != 0
        }
        if 0 in named and len(named) > 1 and named[0] in above:
            used = (
                _number(a.get("category_id")) for _, content in files for a in content["annotations"] if _is_object(a)
            )
            if 0 not in used:
                self.left_out.append(named.pop(0))


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _number(value: Any) -> Any:
    """An id, which some programs write as 3.0 or as a text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and str(int(value[:20])) == value:
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Annotation(NamedTuple):
    number: int
    label: int
    segmentation: Any
    place: str


class _File:
    """Makes the pictures of one file."""

    def __init__(
        self,
        source: Source,
        name: str,
        content: Mapping[str, Any],
        categories: _Categories,
        faults: Faults,
        counts: Counter[str],
    ):
        self.source, self.content, self.categories, self.faults = source, content, categories, faults
        self.folder, self.shown = posixpath.dirname(name), source.shown(name)
        self.split = split_of(name) or split_in(_stem(name))
        self.counts = counts
        self._faulty: set[str] = set()  # ids of images with an annotation that is wrong

    def read(self, pictures: dict[str, Picture]) -> None:
        """Add the pictures, by path."""
        images: dict[Any, tuple[int, Mapping]] = {}
        for index, image in enumerate(self.content["images"]):
            with self.faults.of(self.shown, self.split):
                key = _number(image.get("id")) if _is_object(image) else None
                if not isinstance(key, (int, str)):
                    raise ValueError(f"image {index}: it must have an id and a file_name, got {short_repr(image)}")
                if key in images:
                    raise ValueError(f"image {index}: its id {key} is that of image {images[key][0]}")
                images[key] = index, image
        annotations = self._annotations(images)
        for key, (index, image) in images.items():
            if str(key) in self._faulty:
                continue
            with self.faults.of(self.shown, self.split):
                picture = self._picture(index, image, annotations.get(key, []))
                if picture.image in pictures:
                    other = pictures[picture.image].annotation
                    raise ValueError(f"image {index}: its picture {picture.name} is annotated twice, also in {other}")
                pictures[picture.image] = picture

    def _annotations(self, images: Mapping[Any, Any]) -> dict[Any, list[_Annotation]]:
        by_image: defaultdict[Any, list[_Annotation]] = defaultdict(list)
        for index, entry in enumerate(self.content["annotations"]):
            with self.faults.of(self.shown, self.split):
                try:
                    annotation = self._annotation(index, entry, images)
                except ValueError:
                    self._faulty.add(str(_number(entry.get("image_id"))) if _is_object(entry) else "")
                    raise
                if annotation is None:
                    self.counts["boxes"] += 1
                else:
                    by_image[_number(entry["image_id"])].append(annotation)
        return by_image

    def _annotation(self, index: int, entry: Any, images: Mapping[Any, Any]) -> _Annotation | None:
        if not _is_object(entry):
            raise ValueError(f"annotation {index}: it must be an object, got {short_repr(entry)}")
        key, category = _number(entry.get("image_id")), _number(entry.get("category_id"))
        if not isinstance(key, (int, str)) or key not in images:
            raise ValueError(f"annotation {index}: image_id {short_repr(key)} is not among the images")
        place = shape_place(index, self._name(index, category), "annotation")
        label = self.categories.labels[category]
        if label is None:
            known = listed(self.categories.names)
            raise ValueError(f"{place}: the category is not in the list of classes: {known}")
        segmentation = entry.get("segmentation")
        if isinstance(segmentation, list):
            segmentation = [part for part in segmentation if part != []]
        return _Annotation(index, label, segmentation, place) if segmentation else None

    def _name(self, index: int, category: Any) -> str:
        is_id = isinstance(category, int) and not isinstance(category, bool)
        if not is_id or category not in self.categories.labels:
            known = listed(sorted(self.categories.labels))
            raise ValueError(f"annotation {index}: category_id {short_repr(category)} is not among {known}")
        return self.categories.by_id[category]

    def _picture(self, index: int, image: Mapping[str, Any], annotations: list[_Annotation]) -> Picture:
        place = f"image {index}"
        try:
            wanted: Any = image.get("file_name")
            path = self.source.find_picture(wanted, self.folder, self.split)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if image.get("width") is None and image.get("height") is None:
            size = _size_of_runs(annotations)
        else:
            size = require_size(image.get("width"), image.get("height"), place)
        name = self.source.name_of(path)
        shapes = functools.partial(_shapes, annotations, size)
        return Picture(path, name, self.shown, self.split or split_of(name), shapes, size=size, small_on_top=True)


def _size_of_runs(annotations: Sequence[_Annotation]) -> tuple[int, int] | None:
    """The size that RLE states, where the image states none; polygons fit pictures of any size."""
    for annotation in annotations:
        stated = annotation.segmentation.get("size") if _is_object(annotation.segmentation) else None
        if isinstance(stated, list) and len(stated) == 2:
            return require_size(stated[1], stated[0], annotation.place)
    return None


def _shapes(annotations: Sequence[_Annotation], size: tuple[int, int] | None) -> list[Shape]:
    return [Shape(a.label, _parts(a.segmentation, size, a.place), place=a.place) for a in annotations]


def _parts(segmentation: Any, size: tuple[int, int] | None, place: str) -> tuple[Polygon | Runs, ...]:
    if isinstance(segmentation, list):
        if segmentation and (not isinstance(segmentation[0], list) or all(map(_is_point, segmentation))):
            segmentation = [segmentation]  # one polygon that is not put into a list
        return tuple(_polygon(numbers, place) for numbers in segmentation)
    if not _is_object(segmentation):
        rule = "segmentation must be a list of polygons, or RLE with counts and size"
        raise ValueError(f"{place}: {rule}, got {short_repr(segmentation)}")
    stated = segmentation.get("size")
    if not isinstance(stated, list) or len(stated) != 2 or (stated[1], stated[0]) != size:
        of_picture = f", [{size[1]}, {size[0]}]" if size else ""
        raise ValueError(
            f"{place}: the size of RLE must be [height, width] of its picture{of_picture}, got {short_repr(stated)}"
        )
    return (make_runs(segmentation.get("counts"), size[1], size[0], place),)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list)


def _polygon(numbers: Any, place: str) -> Polygon:
    if isinstance(numbers, list) and numbers and all(map(_is_point, numbers)):
        return make_polygon(numbers, place)
    if not isinstance(numbers, list) or len(numbers) % 2:
        raise ValueError(f"{place}: a polygon must be a list x, y, x, y, ... of numbers, got {short_repr(numbers)}")
    return make_polygon(list(zip(numbers[::2], numbers[1::2], strict=True)), place)

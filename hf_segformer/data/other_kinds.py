# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports that cannot be trained on, or are not read: what they are, and what to export instead."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any

from .source import Source

PEEKED = 20  # JSON files looked into
_YOLO_LINE = re.compile(rb"\s*\d+(\.0)?([ \t]+(0|1|[01]?\.\d+(e-\d+)?)){4,}[ \t]*(\r?\n|$)")
_MASK_OF_TASK = re.compile(r"task-\d+-annotation-\d+-by-[^/]*\.(png|npy)", re.IGNORECASE)


def explain_other_kind(source: Source) -> str:
    """Say what was given, and what to export instead; "" when it is nothing known."""
    if text := explain_masks_of_tasks(source):
        return text
    for name in source.named(".json")[:PEEKED]:
        content = source.peek_json(name)
        for is_kind, text in _JSON_KINDS:
            if is_kind(content):
                return f"{source.shown(name)}: {text}"
    if arrays := source.named(".npy", ".npz", ".mat"):
        return (
            f"{source.shown(arrays[0])}: masks in files of arrays ({len(arrays)} *{posixpath.splitext(arrays[0])[1]}) "
            f"are not read; save each as a PNG of label ids, 8 or 16 bits deep, with the stem of its picture: "
            f"PIL.Image.fromarray(mask.astype('uint8')).save('masks/NAME.png')"
        )
    for name in source.named(".xml")[:PEEKED]:
        if re.search(b"<bndbox>", _contents(source, name)):
            return f"{source.shown(name)}: these are boxes of Pascal VOC, not areas; export masks or polygons"
    for name in source.named(".txt")[:PEEKED]:
        if _YOLO_LINE.match(_contents(source, name)):
            return (
                f"{source.shown(name)}: this looks like YOLO's labels, without data.yaml or a classes.txt (one name a "
                f"line), which name the classes"
            )
    return ""


def explain_masks_of_tasks(source: Source) -> str:
    """Say so where masks are those that Label Studio exports, one for each task, annotation and class; else ""."""
    for name in source.named(".png", ".npy"):
        if _MASK_OF_TASK.fullmatch(posixpath.basename(name)):
            return (
                f"{source.shown(name)}: this is Label Studio's export of brush strokes as pictures, which does not "
                f"say to which picture a task belongs; export JSON, and give it together with the pictures"
            )
    return ""


def _contents(source: Source, name: str) -> bytes:
    try:
        return source.read(name)
    except ValueError:
        return b""


def _first(content: Any, field: str) -> Mapping:
    entries = content.get(field) if isinstance(content, Mapping) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    return first if isinstance(first, Mapping) else {}


def _is_keypoints(content: Any) -> bool:
    return "keypoints" in _first(content, "annotations")


def _is_captions(content: Any) -> bool:
    return "caption" in _first(content, "annotations")


def _is_supervisely(content: Any) -> bool:
    return isinstance(content, Mapping) and {"size", "objects"} <= content.keys()


def _is_via(content: Any) -> bool:
    if not isinstance(content, Mapping):
        return False
    entries = content.get("_via_img_metadata", content)
    first = next(iter(entries.values()), None) if isinstance(entries, Mapping) else None
    return isinstance(first, Mapping) and {"filename", "regions"} <= first.keys()


def _is_coco_results(content: Any) -> bool:
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, Mapping) and {"image_id", "category_id"} <= first.keys()


_JSON_KINDS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (_is_keypoints, "these are COCO keypoints, points without an area; export COCO instances (polygons or masks)"),
    (_is_captions, "these are COCO captions, texts about pictures; instances (polygons or masks) are needed"),
    (_is_coco_results, "this is a list of COCO results, without images and categories; the whole COCO file is needed"),
    (_is_supervisely, "this is Supervisely's own format, which is not read; export COCO, or masks as PNGs"),
    (_is_via, "this is a project of VGG Image Annotator; export its annotations as COCO (JSON)"),
)

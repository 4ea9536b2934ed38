# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures that the ranges of int8 activations are taken from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data import SegmentationData, undecoded
from ..data.files import LeftOut, find_pictures, shown
from ..data.formats import FORMATS
from ..data.loading import load_any, load_dataset
from ..data.published import recognise_published
from ..data.segmentation_data import MissingSplit, open_picture
from ..data.source import IMAGE_SUFFIXES, Source
from ..evaluation.loop import check_classes
from ..image_processing_segformer import SegformerImageProcessor
from ..pretrained.input_checks import smallest_side
from ..texts import listed
from .data import prepared
from .settings import Settings

MIN_PICTURES, MOST_PICTURES = 8, 32


def check_int8(settings: Settings) -> None:
    """Refuse what int8 does not go with.

    Args:
        settings: What is exported.

    Raises:
        ValueError: The format is not ONNX, or weights are to be float16.
    """
    if settings.format != "onnx":
        raise ValueError(f"int8 needs format onnx, got {settings.format}")
    if settings.half:
        raise ValueError("half must be left out with int8: weights are stored either in float16 or in int8, got both")


def calibration_inputs(
    data: str | os.PathLike | SegmentationData,
    model: Any,
    image_processor: SegformerImageProcessor,
    settings: Settings,
) -> list[np.ndarray]:
    """Inputs (C, H, W) of up to 32 pictures, spread evenly over those there are.

    Args:
        data: Data set, of which the training split is taken (the validation split where there is none); what
            `load_any` takes; "scenes"; or a folder of pictures without annotations.
        model: The network.
        image_processor: Processor of the model.
        settings: What is exported.

    Raises:
        ValueError: There are fewer than 8 pictures, one is unreadable or smaller than the model takes, or the data
            set's classes are not the model's.
        StorageError: A file could not be read for a reason that may pass.
    """
    inputs = []
    for name, picture in _pictures(data, model):
        values = prepared(picture, image_processor, settings)
        least = smallest_side(model.config)
        if min(values.shape[1:]) < least:
            height, width = values.shape[1:]
            raise ValueError(f"{name}: the model needs {least} pixels a side, as prepared it has {height}x{width}")
        inputs.append(values)
    return inputs


def _pictures(data: str | os.PathLike | SegmentationData, model: Any) -> Iterator[tuple[str, Any]]:
    """Names and pictures."""
    if not isinstance(data, SegmentationData):
        if os.path.isdir(data) and not _is_annotated(Path(data)):
            paths = list(find_pictures(Path(data), IMAGE_SUFFIXES, LeftOut()))
            for index in _spread(len(paths), shown(data)):
                yield shown(paths[index]), open_picture(paths[index], shown(paths[index]))
            return
        known = data == "scenes" and not os.path.exists(data)
        few: dict[str, Any] = {"num_train": MOST_PICTURES, "num_validation": 1}
        data = load_dataset("scenes", **few) if known else load_any(os.fspath(data))
    _check_classes(data, model)
    split = "validation" if isinstance(data.train, MissingSplit) else "train"
    rows = undecoded(getattr(data, split))
    if not hasattr(rows, "__len__"):
        raise ValueError(f"{split} of {data.name!r} is streamed; int8 needs a data set of known length")
    for index in _spread(len(rows), f"{split} of {data.name!r}"):
        name = rows[index].get("file_name") or f"{split} {index} of {data.name!r}"
        yield name, data.read_sample(rows[index], split, index)[0]


def _is_annotated(folder: Path) -> bool:
    source = Source(folder)
    return recognise_published(source) is not None or any(
        format.recognise(source) is not None for format in FORMATS.values()
    )


def _spread(count: int, place: str) -> list[int]:
    if count < MIN_PICTURES:
        raise ValueError(f"int8 needs at least {MIN_PICTURES} pictures to take ranges from, {place} has {count}")
    return [int(index) for index in np.linspace(0, count - 1, min(count, MOST_PICTURES))]


def _check_classes(data: SegmentationData, model: Any) -> None:
    """Refuse another number of classes, and other names where the model has names of its own."""
    check_classes(model, data)
    config = model.config
    names, found = list(config.class_names), list(data.class_names)
    unnamed = all(name.startswith("LABEL_") for name in config.id2label.values())
    if config.num_labels > 1 and not unnamed and names != found:
        raise ValueError(
            f"int8: the classes of data set {data.name!r} must be the model's, {listed(names, 10)}, they are "
            f"{listed(found, 10)}"
        )

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Class weights of the training losses, from a file or from the training annotations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..json_files import read_json
from ..texts import listed, short_repr

if TYPE_CHECKING:
    from ..data import SegmentationData

CLASS_WEIGHT_RULES = ("median_frequency", "inverse_frequency")
_LARGEST = 1e12  # a class of one pixel among all those of a large data set has less


def class_weights_from_counts(
    pixel_counts: Sequence[int], image_pixels: Sequence[int] | None = None, rule: str = "median_frequency"
) -> list[float]:
    """Weights that balance rare classes against frequent ones.

    Args:
        pixel_counts: Pixels of each of the K classes in the training annotations.
        image_pixels: Valid pixels of the images in which each class occurs; needed for "median_frequency".
        rule: "median_frequency": the median of all classes' frequencies divided by the class's own, a frequency being
            its pixels divided by `image_pixels` (arXiv 1411.4734). "inverse_frequency": all valid pixels divided by
            the class's pixels and by the number of classes, so that a pixel's mean weight is 1.

    Returns:
        K weights; classes without a pixel have 1.

    Raises:
        ValueError: `rule` is unknown, or no class has a pixel.
    """
    if rule not in CLASS_WEIGHT_RULES:
        raise ValueError(f"rule must be one of {', '.join(CLASS_WEIGHT_RULES)}, got {rule!r}")
    counts = torch.tensor(pixel_counts, dtype=torch.float64)
    seen = counts > 0
    if not bool(seen.any()):
        raise ValueError("pixel_counts must hold a class with pixels, all are 0")
    weights = torch.ones_like(counts)
    if rule == "inverse_frequency":
        weights[seen] = counts.sum() / (counts[seen] * seen.sum())
    else:
        frequencies = counts[seen] / torch.tensor(image_pixels, dtype=torch.float64)[seen]
        weights[seen] = frequencies.quantile(0.5) / frequencies
    return weights.tolist()


def count_class_pixels(data: SegmentationData, on_bad_sample: str = "stop") -> tuple[list[int], list[int]]:
    """Count the pixels of each class in all training annotations.

    Args:
        data: Data set with K classes.
        on_bad_sample: `"stop"`, or `"skip"` to leave bad samples out.

    Returns:
        K numbers of pixels, and for each class the valid pixels of the images in which it occurs.

    Raises:
        ValueError: A sample is unreadable.
    """
    from ..data import undecoded

    rows = undecoded(data.train)

    def count(index: int) -> np.ndarray:
        try:
            _, label = data.read_sample(rows[index], "train", index)
        except ValueError:
            if on_bad_sample == "stop":
                raise
            return np.zeros(data.num_classes, np.int64)
        return np.bincount(label[label != data.ignore_index], minlength=data.num_classes)

    pixels, in_images = np.zeros((2, data.num_classes), np.int64)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for counts in pool.map(count, range(len(rows))):
            pixels += counts
            in_images += (counts > 0) * counts.sum()
    return pixels.tolist(), in_images.tolist()


def read_class_weights(choice: str, data: SegmentationData, on_bad_sample: str = "stop") -> list[float]:
    """Class weights as the command line names them.

    Args:
        choice: "auto" or "median_frequency", "inverse_frequency", or a JSON file with a list of one weight per class
            or an object from class names to weights.
        data: Data set; for the first three all its training annotations are read.
        on_bad_sample: See `count_class_pixels`.

    Returns:
        One weight per class.

    Raises:
        ValueError: There is no such rule or file, or the file's weights do not fit the classes; names the file.
    """
    if choice in ("auto", *CLASS_WEIGHT_RULES):
        rule = CLASS_WEIGHT_RULES[0] if choice == "auto" else choice
        return class_weights_from_counts(*count_class_pixels(data, on_bad_sample), rule)
    if not os.path.isfile(choice):
        names = ", ".join(CLASS_WEIGHT_RULES)
        raise ValueError(f"class_weights must be auto, {names} or a JSON file, got {short_repr(choice)}")
    weights = read_json(choice, (dict, list))
    if isinstance(weights, dict):
        if different := sorted(set(weights) ^ set(data.class_names)):
            raise ValueError(
                f"class_weights {choice} must name the data set's classes, differing: {listed(different, 10)}"
            )
        weights = [weights[name] for name in data.class_names]
    if len(weights) != data.num_classes:
        raise ValueError(f"class_weights {choice} must be a list of {data.num_classes} numbers, got {len(weights)}")
    return check_class_weights(weights, f"class_weights {choice}")


def check_class_weights(weights: Sequence[Any], source: str = "class_weights") -> list[float]:
    """Check that a loss can be weighted so.

    Args:
        weights: One weight per class.
        source: Where they come from, for error messages.

    Returns:
        The weights as floats.

    Raises:
        ValueError: A weight is no number, negative, not finite or above 1e12, or all are 0 in single precision.
    """
    weights = weights.tolist() if hasattr(weights, "tolist") else list(weights)
    for index, weight in enumerate(weights):
        number = isinstance(weight, Real) and not isinstance(weight, bool)
        if not (number and 0 <= weight <= _LARGEST):  # which nan is not
            rule = f"must be numbers >= 0 and at most {_LARGEST:g}"
            raise ValueError(f"{source} {rule}, got {short_repr(weight)} for class {index}")
    if not np.any(np.asarray(weights, np.float32)):
        raise ValueError(f"{source} must not all be 0: nothing would be learned, got {short_repr(weights)}")
    return [float(weight) for weight in weights]

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What an exported file says of itself, as JSON under one key."""

from __future__ import annotations

import json
from typing import Any

from .. import __version__
from ..runtimes.metadata import FORMAT_VERSION, METADATA_KEY, NETWORK_FIELDS
from ..visualization import palette_for
from .settings import MOST_CLASSES, Settings, is_multi_label

KEY = METADATA_KEY


def describe(config: Any, image_processor: Any, settings: Settings) -> dict[str, Any]:
    """What those need to know who have the file alone.

    Args:
        config: Configuration of the model.
        image_processor: Its image processor.
        settings: What was exported.
    """
    names = config.class_names
    palette = config.class_palette or (palette_for(len(names)) if len(names) <= MOST_CLASSES else [])
    preprocessor = json.loads(image_processor.to_json_string())
    return {
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "output": settings.output,
        "normalize": settings.normalize,
        "num_labels": config.num_labels,
        "multi_label": is_multi_label(config),
        "id2label": {str(label): name for label, name in enumerate(names)},
        "palette": [[int(channel) for channel in color] for color in palette],
        "image_mean": preprocessor.get("image_mean"),
        "image_std": preprocessor.get("image_std"),
        "preprocessor": preprocessor,
        "size": list(settings.size) if settings.size else None,
        "network": {name: getattr(config, name) for name in NETWORK_FIELDS},
        "input": {
            "name": "pixel_values",
            "dtype": "uint8" if settings.normalize == "inside" else "float32",
            "layout": "NCHW",
        },
    }

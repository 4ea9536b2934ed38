# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A user's own data set for tests, cut out of drawn scenes, and the example scripts as modules of this process."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hf_segformer.data import draw_scene
from hf_segformer.data.scenes import CLASS_NAMES

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def write_scene_folder(root: Path, train: int = 10, validation: int = 5) -> Path:
    """Pictures of 72x96, by default in numbers that no batch size divides."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"names": list(CLASS_NAMES)}))
    for split, count in (("train", train), ("val", validation)):
        for kind in ("images", "annotations"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            image, label = draw_scene(index + (1000 if split == "val" else 0))
            Image.fromarray(image[:72, :96]).save(root / split / "images" / f"{index}.png")
            Image.fromarray(label[:72, :96].astype(np.uint8)).save(root / split / "annotations" / f"{index}.png")
    return root


def example_module(name: str):
    """A fresh module of an example script, whose functions a test may replace."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # worker processes look classes up by the module's name
    spec.loader.exec_module(module)
    return module

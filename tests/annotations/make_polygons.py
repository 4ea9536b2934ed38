# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Make `polygons.json`: random polygons as pycocotools draws them, and its strings of runs.

pip install pycocotools==2.0.11 && python make_polygons.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 75, 100
generator = np.random.default_rng(0)
polygons = []
for index in range(60):
    corners = int(generator.integers(3, 14))
    angles = np.sort(generator.uniform(0, 2 * np.pi, corners))
    if index % 10 == 0:  # some cross themselves
        generator.shuffle(angles)
    radius = generator.uniform(2, 45) * generator.uniform(0.4, 1, corners)
    centre = generator.uniform((0, 0), (WIDTH, HEIGHT))
    ring = np.round(np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None] + centre, 2)
    ring = ring.clip(0, (WIDTH, HEIGHT))
    runs = coco_mask.frPyObjects([ring.ravel().tolist()], HEIGHT, WIDTH)[0]
    polygons.append(
        {"points": ring.ravel().tolist(), "counts": runs["counts"].decode(), "area": int(coco_mask.area(runs))}
    )
content = {"height": HEIGHT, "width": WIDTH, "polygons": polygons}
(Path(__file__).parent / "polygons.json").write_text(json.dumps(content, separators=(",", ":")))

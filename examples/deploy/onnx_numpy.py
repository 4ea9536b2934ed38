# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label map of a picture, with what `segformer export` wrote: python onnx_numpy.py MODEL.onnx PICTURE LABELS.png"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resized(scores, pixels):
    """Scores (K, points, ...) resized bilinearly along the second axis, as `F.interpolate` does."""
    places = ((np.arange(pixels) + 0.5) * scores.shape[1] / pixels - 0.5).clip(0)
    first = places.astype(int)
    weight = (places - first).astype(np.float32).reshape(-1, *[1] * (scores.ndim - 2))
    return scores[:, first] * (1 - weight) + scores[:, np.minimum(first + 1, scores.shape[1] - 1)] * weight


def resized_size(rows, columns, wanted):
    """Height and width of the network's input, as `transformers` computes them."""
    if "height" in wanted:
        return wanted["height"], wanted["width"]
    short, long = min(rows, columns), max(rows, columns)
    side = float(wanted["shortest_edge"])
    if long / short * side > wanted.get("longest_edge", float("inf")):
        side = wanted["longest_edge"] * short / long
    if short == (edge := round(side)):
        return rows, columns
    return (int(side * rows / columns), edge) if columns < rows else (edge, int(side * columns / rows))


session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["hf_segformer"])
steps, picture = about["preprocessor"], ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
wanted = {"do_resize": 1, "do_rescale": 1, "do_normalize": 1, "do_pad": 0, "size_divisor": 0, "keep_ratio": 0}
others = [name for name, value in wanted.items() if bool(steps.get(name)) != bool(value)]
if others or "max_height" in steps["size"] or not steps.get("antialias", True):
    sys.exit(f"programmed here are resizing, rescaling and normalising, not {steps}")
height, width = about["size"] or resized_size(picture.height, picture.width, steps["size"])
pixels = np.asarray(picture.resize((width, height), steps["resample"])).transpose(2, 0, 1)[None]
if about["normalize"] == "outside":
    pixels = (pixels.astype(np.float64) * steps["rescale_factor"]).astype(np.float32)
    mean, std = (np.array(steps[name], np.float32).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
    pixels = (pixels - mean) / std
result, (columns, rows) = session.run(None, {"pixel_values": pixels})[0][0], picture.size
if about["output"] == "logits":  # (K, h, w); a single score tells two classes apart by its sign
    lines = (resized(line, columns) for line in resized(result, rows).swapaxes(0, 1))
    labels = np.stack([line[0] > 0 if len(line) == 1 else line.argmax(0) for line in lines])
else:  # a label map of the size of the input, of which the nearest pixels are taken
    labels = np.asarray(Image.fromarray(result.astype(np.int32)).resize(picture.size, Image.Resampling.NEAREST))
Image.fromarray(labels.astype(np.uint8 if about["num_labels"] <= 256 else np.uint16)).save(sys.argv[3])

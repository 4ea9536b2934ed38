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


session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["hf_segformer"])
steps, picture = about["preprocessor"], ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
wanted = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": None, "size_divisor": None}
if "height" not in steps["size"] or any(bool(steps.get(name)) != bool(value) for name, value in wanted.items()):
    sys.exit(f"programmed here are resizing to a height and a width, rescaling and normalising, not {steps}")
height, width = about["size"] or (steps["size"]["height"], steps["size"]["width"])
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

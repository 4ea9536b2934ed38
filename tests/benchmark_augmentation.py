# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Speed of the training augmentation on one core, beside mmsegmentation's, in turns within one process.

    python tests/benchmark_augmentation.py [pairs]

Both get the same pictures and the same random numbers, with the same NumPy and OpenCV. Ours includes normalisation and
padding; mmsegmentation's is timed without them (its data loader leaves them to the training process) and with them.
"""

import sys
from pathlib import Path

from oracles import run_oracle

SCRIPT = """
import importlib.util, statistics, sys, time
import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmseg.models import SegDataPreProcessor
from mmseg.utils import register_all_modules
register_all_modules()
cv2.setNumThreads(1)
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("transforms", sys.argv[1])
transforms = sys.modules["transforms"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(transforms)
MEAN, STD = list(transforms.IMAGENET_MEAN), list(transforms.IMAGENET_STD)

def replay(generator):
    np.random.randint = lambda low, high=None: generator.integers(low, high)
    np.random.uniform = lambda low, high: generator.uniform(low, high)
    np.random.random_sample = lambda: generator.random()
    np.random.choice = lambda options, p: options[0] if generator.random() < p[0] else options[1]

def picture(rng, height, width, classes):
    small = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    label = rng.integers(0, classes, (height // 64, width // 64), dtype=np.uint8)
    return image, cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)

for name, size, scale, crop, classes in (
    ("ADE20K 512x683, crop 512", (512, 683), (2048, 512), 512, 150),
    ("Cityscapes 1024x2048, crop 1024", (1024, 2048), (2048, 1024), 1024, 19),
):
    theirs = Compose([
        dict(type="RandomResize", scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type="RandomCrop", crop_size=(crop, crop), cat_max_ratio=0.75),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
        dict(type="PackSegInputs"),
    ])
    finish = SegDataPreProcessor(mean=MEAN, std=STD, bgr_to_rgb=True, size=(crop, crop), pad_val=0, seg_pad_val=255)
    ours = transforms.TrainingTransform(scale=scale, crop_size=(crop, crop))
    rng, seconds = np.random.default_rng(0), {"ours": [], "worker": [], "all": []}
    for draw in range(int(sys.argv[2]) + 3):
        image, label = picture(rng, *size, classes)
        sample = dict(
            img=image[..., ::-1].copy(), img_shape=size, gt_seg_map=label, seg_fields=["gt_seg_map"], img_path="",
            seg_map_path="", ori_shape=size, reduce_zero_label=False,
        )
        def run_theirs():
            replay(np.random.default_rng(draw))
            started = time.perf_counter()
            packed = theirs(sample)
            seconds["worker"].append(time.perf_counter() - started)
            data = finish({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}, training=True)
            seconds["all"].append(time.perf_counter() - started)
            return data["inputs"][0].numpy()
        def run_ours():
            generator = np.random.default_rng(draw)
            started = time.perf_counter()
            result = ours(image, label, generator)[0]
            seconds["ours"].append(time.perf_counter() - started)
            return result
        results = [run() for run in ((run_ours, run_theirs) if draw % 2 else (run_theirs, run_ours))]
        assert np.abs(results[0] - results[1]).max() < 1e-5
    kept = {kind: np.array(values[3:]) for kind, values in seconds.items()}
    milliseconds = {kind: 1000 * statistics.median(values) for kind, values in kept.items()}
    ratios = [statistics.median(kept[kind] / kept["ours"]) for kind in ("worker", "all")]
    print(f"{name}: ours {milliseconds['ours']:.1f} ms; mmsegmentation without normalisation "
          f"{milliseconds['worker']:.1f} ms ({ratios[0]:.2f} times ours), with {milliseconds['all']:.1f} ms "
          f"({ratios[1]:.2f} times ours)")
"""


if __name__ == "__main__":
    pairs = sys.argv[1] if len(sys.argv) > 1 else "60"
    transforms = Path(__file__).resolve().parent.parent / "hf_segformer" / "data" / "transforms.py"
    print(run_oracle("mmseg", SCRIPT, transforms, pairs), end="")

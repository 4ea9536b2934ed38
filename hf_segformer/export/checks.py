# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether an exported file computes what the model does, and how fast.

Shapes: B batch, K classes, h w points of the logits, H W pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..pretrained.input_checks import smallest_side
from .sessions import Run
from .settings import Settings

# Largest difference of logits, relative to the largest logit, in full precision and with weights in float16. Labels
# whose two best scores are closer than this are near-ties.
TOLERANCE, HALF_TOLERANCE = 1e-4, 3e-2
ROUNDS = 5
SPEED_SIZE = (512, 512)


@dataclass
class Agreement:
    """How labels of pictures agree with the model's.

    Args:
        pictures: Number of pictures.
        pixels: Their pixels.
        equal: Share of equal labels.
        near_ties: Pixels with another label whose two best scores nearly tie.
        others: Pixels with another label otherwise.
    """

    pictures: int = 0
    pixels: int = 0
    equal: float = 1.0
    near_ties: int = 0
    others: int = 0


@dataclass
class SizeCheck:
    """Difference at one size.

    Args:
        shape: Batch, height, width.
        difference: Largest difference of logits or confidence, relative to the largest logit or 1; None for labels.
        agreement: Of the labels.
    """

    shape: tuple[int, int, int]
    difference: float | None
    agreement: Agreement = field(default_factory=Agreement)


class Comparison:
    """The model and the exported file side by side.

    Args:
        model: The network.
        run: What runs the file.
        settings: What was exported.
        preprocessor: Configuration of the image processor, for uint8 inputs.
    """

    def __init__(self, model: Any, run: Run, settings: Settings, preprocessor: dict[str, Any]):
        self.model, self.run, self.settings, self.preprocessor = model, run, settings, preprocessor
        self.tolerance = HALF_TOLERANCE if settings.half else TOLERANCE

    def sizes(self) -> list[tuple[int, int, int]]:
        """Batch, height and width to compare at: odd, not divisible by 32, as small as the network takes."""
        if self.settings.size is not None:
            return [(1, *self.settings.size), (2, *self.settings.size)]
        least = smallest_side(self.model.config)
        if self.settings.format == "torch-export":
            least = max(least, 64)
        sides = [(0, 0), (0, 35), (4, 18), (35, 35), (32, 98), (99, 67), (71, 46), (66, 131), (131, 131), (1, 2)]
        return [(1 + (index in (1, 5)), least + a, least + b) for index, (a, b) in enumerate(sides)]

    def inputs(self, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
        """Random input (B, num_channels, H, W) of a shape."""
        generator = np.random.default_rng(seed)
        full = (shape[0], self.model.config.num_channels, *shape[1:])
        if self.settings.normalize == "inside":
            return generator.integers(0, 256, full, np.uint8)
        return generator.standard_normal(full, np.float32)

    @torch.no_grad()
    def logits(self, pixel_values: np.ndarray) -> torch.Tensor:
        """The model's own logits."""
        values = torch.from_numpy(pixel_values)
        if self.settings.normalize == "inside":
            values = values.float()
            if self.preprocessor["do_rescale"]:
                values = values * self.preprocessor["rescale_factor"]
            if self.preprocessor["do_normalize"]:
                mean, std = (
                    torch.tensor(self.preprocessor[f"image_{part}"]).reshape(-1, 1, 1) for part in ("mean", "std")
                )
                values = (values - mean) / std
        return self.model(values).logits

    def check(self, pixel_values: np.ndarray) -> SizeCheck:
        """Compare on one input."""
        logits, outputs = self.logits(pixel_values), self.run(pixel_values)
        shape = (len(pixel_values), *pixel_values.shape[2:])
        if self.settings.output == "logits":
            found = torch.from_numpy(outputs[0])
            if found.shape != logits.shape:
                raise ValueError(f"logits have the shape {tuple(found.shape)} instead of {tuple(logits.shape)}")
            difference = ((found - logits).abs().max() / logits.abs().max().clamp(min=1e-30)).item()
            labels = _best(_scores(found, shape[1:]))[0]
        else:
            labels, difference = torch.from_numpy(outputs[0].astype(np.int64)), None
        scores = _scores(logits, shape[1:])
        best, margin = _best(scores)
        near = margin <= 2 * self.tolerance * logits.abs().max()
        differs = labels != best
        agreement = Agreement(
            shape[0],
            differs.numel(),
            1 - differs.float().mean().item(),
            int((differs & near).sum()),
            int((differs & ~near).sum()),
        )
        if self.settings.output == "labels+confidence":
            difference = (torch.from_numpy(outputs[1]) - _confidence(scores)).abs().max().item()
        return SizeCheck(shape, difference, agreement)

    def agreement(self, pictures: Sequence[np.ndarray]) -> Agreement:
        """Compare on pictures (num_channels, H, W), as the image processor returns them."""
        found = [self.check(picture[None]).agreement for picture in pictures]
        pixels = sum(part.pixels for part in found)
        near, others = (sum(getattr(part, kind) for part in found) for kind in ("near_ties", "others"))
        return Agreement(len(found), pixels, 1 - (near + others) / max(pixels, 1), near, others)

    @property
    def speed_size(self) -> tuple[int, int]:
        """Height and width of the picture that is timed."""
        return self.settings.size or SPEED_SIZE

    def latency(self) -> tuple[float, float]:
        """Median milliseconds of the file and of the model, taken in turns."""
        pixel_values = self.inputs((1, *self.speed_size))
        seconds: dict[str, list[float]] = {"file": [], "model": []}
        for name, run in [("file", self.run), ("model", self._with_labels)] * (ROUNDS + 1):
            started = time.perf_counter()
            run(pixel_values)
            seconds[name].append(time.perf_counter() - started)
        file, model = (1000 * statistics.median(own[1:]) for own in seconds.values())
        return file, model

    def _with_labels(self, pixel_values: np.ndarray) -> None:
        from ..scores.label_map import upsample_argmax

        logits = self.logits(pixel_values)
        if self.settings.output != "logits":
            upsample_argmax(logits, pixel_values.shape[2:], self.settings.output == "labels+confidence")


def _scores(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _best(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (B, H, W), and how far the score is from that of another label."""
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0).long(), scores[:, 0].abs()
    values, labels = scores.topk(2, dim=1)
    return labels[:, 0], values[:, 0] - values[:, 1]


def _confidence(scores: torch.Tensor) -> torch.Tensor:
    return scores[:, 0].abs().sigmoid() if scores.shape[1] == 1 else scores.softmax(dim=1).amax(dim=1)

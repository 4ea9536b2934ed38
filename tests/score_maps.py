# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Logits and labels of many shapes, for the tests of label maps and losses of upsampled logits."""

import pytest
import torch
import torch.nn.functional as F

from hf_segformer import engine
from hf_segformer.engine import cross_entropy, label_map, losses_in_bands
from hf_segformer.scores import bilinear
from hf_segformer.scores import cross_entropy as scores_cross_entropy

# (classes, height, width, label height, label width): non-multiple, odd, integer ratio, identity, smaller, one axis
# larger and one smaller, several slabs, a single point.
SIZES = [
    (7, 13, 9, 50, 37),
    (5, 16, 12, 64, 48),
    (7, 13, 9, 13, 9),
    (5, 20, 30, 11, 13),
    (4, 20, 10, 7, 41),
    (6, 9, 20, 61, 20),
    (4, 70, 8, 141, 31),
    (40, 6, 5, 33, 29),
    (3, 11, 7, 29, 30),
    (2, 5, 7, 10, 7),
    (1, 9, 8, 33, 31),
    (5, 1, 1, 5, 4),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def smooth_logits(classes: int, height: int, width: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Blobs a few points wide: uniform cells, mixed cells with few candidates, and some with many."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, classes, -(-height // 4), -(-width // 4), generator=generator) * 4
    fine = torch.randn(batch, classes, height, width, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bilinear") + 0.2 * fine


def noise_logits(classes: int, height: int, width: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, classes, height, width, generator=torch.Generator().manual_seed(seed))


def plain_scores(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits.double(), size=size, mode="bilinear", align_corners=False)


def random_labels(batch: int, classes: int, height: int, width: int, ignored: float = 0.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, max(classes, 2), (batch, height, width), generator=generator)
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < ignored, 255)


@pytest.fixture(name="code_path", params=["cpu", "device"])
def device_code(request, monkeypatch):
    """Also run, on the CPU, the code that other devices get."""
    if request.param == "device":
        for module in (bilinear, label_map, cross_entropy, losses_in_bands, scores_cross_entropy):
            monkeypatch.setattr(module, "on_cpu", lambda tensor: False)
    return request.param


def by_engine(name: str, function, *arguments, **options):
    """What a function gives; with the engine on, the implementation of that name must have computed it."""
    with engine.record() as choices:
        result = function(*arguments, **options)
    assert [choice.ran for choice in choices] == [name] * engine.is_enabled(), str(choices)
    return result

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The published training recipes as data: what was trained how, how it was evaluated, and what came out.

A recipe has a name (`ade20k-b0`, ..., `ade20k-b5-640`, `cityscapes-b5`) and a flavor, the implementation it was
published with. The two authors trained the same encoder with different decode heads, epsilons, schedules, decay rules
and initial weights, so that neither's figures belong to the other's network:

| | nvlabs | mmseg |
|--|--|--|
| decode head | all-MLP, 256 wide (B0, B1) or 768 | convolution, BatchNorm and ReLU per stage, 256 wide |
| epsilon of patch embedding and reduction norms | 1e-5 | 1e-6 |
| warm-up | multiplies a decay that runs from step 0 | reaches the peak at step 1499, the decay starts at 1500 |
| LayerNorm at the end of a stage | not decayed | decayed |
| ADE20K evaluation | sides rounded up to multiples of 32 | as resized |
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .configuration_segformer import VARIANTS
from .data.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainingTransform


@dataclass(frozen=True)
class Published:
    """Published results of a recipe; None where its authors give none.

    Attributes:
        mean_iou: In percent, single scale, with the recipe's protocol.
        mean_iou_tta: The same with several scales and flips.
        aligned_mean_iou: In percent, single scale, with both sides of the input rounded up to multiples of 32, where
            the recipe's own protocol does not do that.
        aligned_mean_iou_tta: The same with several scales and flips.
        memory_gb: Memory of training on each GPU.
        images_per_second: Speed of inference, one image at a time.
        device: GPU of the speed.
        source: Where the figures stand.
    """

    mean_iou: float | None = None
    mean_iou_tta: float | None = None
    aligned_mean_iou: float | None = None
    aligned_mean_iou_tta: float | None = None
    memory_gb: float | None = None
    images_per_second: float | None = None
    device: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run and its evaluation, but for the seed and the hardware.

    Attributes:
        name: Key in `RECIPES`; "custom" for a run without recipe.
        flavor: Key in `FLAVORS`, whose numerics it has.
        dataset: Name for `load_dataset`.
        variant: "b0" to "b5".
        image_size: Short side S of the base size (2048, S) that training pictures are scaled from and test pictures
            are resized to, in pixels; the long side is `long_side`.
        long_side: Long side of the base size.
        crop_size: Side of the square training crops.
        ratio_range: The base size is multiplied by a number drawn uniformly from here; None for no scale jitter.
        cat_max_ratio: No class may fill more of a crop; see `draw_crop`.
        flip_probability: Of mirroring left and right.
        photometric: Whether colours are distorted.
        decode_head: "mlp", or "conv" for mmsegmentation's.
        decoder_width: Width of the decode head; None is the variant's.
        block_norm_eps: See `SegformerConfig`.
        embed_norm_eps: See `SegformerConfig`.
        classifier_dropout_mode: See `SegformerConfig`; the probability is 0.1.
        drop_path_rate: Stochastic depth of the last layer.
        initialization: Rules for the initial weights; see `initialize_as_published`.
        learning_rate: Peak learning rate of the encoder.
        head_multiplier: The decode head's learning rate divided by it.
        weight_decay: Decoupled weight decay of AdamW, whose betas are 0.9 and 0.999.
        decay_stage_norms: See `parameter_groups`.
        max_steps: Optimizer steps.
        warmup_steps: Steps of linear warm-up.
        warmup_ratio: Factor on the learning rate at step 0.
        power: Exponent of the decay.
        decay_from_start: See `poly_factor`.
        processes: GPUs of the published run.
        batch_size: Images on each of them in a forward pass; see `global_batch_size`.
        gradient_accumulation_steps: Forward passes per optimizer step; 1 in every published run.
        loss: Weights of the losses; see `SegmentationLoss`.
        loss_average: "all" divides by all pixels, "valid" by those with a class.
        protocol: Evaluation, a key of `PROTOCOLS`.
        tta: Test-time augmentation of `published.mean_iou_tta`.
        aligned_protocol: Evaluation of `published.aligned_mean_iou`; None if there is none.
        eval_every: Steps between evaluations.
        save_every: Steps between saved states.
        published: Results.
    """

    name: str = "custom"
    flavor: str = "transformers"
    dataset: str = ""
    variant: str = "b0"
    image_size: int = 512
    long_side: int = 2048
    crop_size: int = 512
    ratio_range: tuple[float, float] | None = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip_probability: float = 0.5
    photometric: bool = True
    decode_head: str = "mlp"
    decoder_width: int | None = None
    block_norm_eps: float = 1e-5
    embed_norm_eps: float = 1e-5
    classifier_dropout_mode: str = "element"
    drop_path_rate: float = 0.1
    initialization: str = "nvlabs"
    learning_rate: float = 6e-5
    head_multiplier: float = 10.0
    weight_decay: float = 0.01
    decay_stage_norms: bool = False
    max_steps: int = 160_000
    warmup_steps: int = 1500
    warmup_ratio: float = 1e-6
    power: float = 1.0
    decay_from_start: bool = True
    processes: int = 1
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    loss: str = "cross_entropy"
    loss_average: str = "valid"
    protocol: str = "processor"
    tta: str = "none"
    aligned_protocol: str | None = None
    eval_every: int = 16_000
    save_every: int = 4_000
    published: Published = Published()

    @property
    def global_batch_size(self) -> int:
        """Images per optimizer step."""
        return self.processes * self.batch_size * self.gradient_accumulation_steps

    def config_fields(self) -> dict[str, Any]:
        """Fields of `SegformerConfig` that the recipe sets beside the variant's."""
        width = self.decoder_width or VARIANTS[self.variant]["decoder_hidden_size"]
        heads = {"mlp": (width, None), "conv": (None, width)}[self.decode_head]
        return {
            "decoder_hidden_size": heads[0],
            "conv_decoder_hidden_size": heads[1],
            "block_norm_eps": self.block_norm_eps,
            "embed_norm_eps": self.embed_norm_eps,
            "classifier_dropout_mode": self.classifier_dropout_mode,
            "drop_path_rate": self.drop_path_rate,
        }

    def with_config(self, config: Any) -> Recipe:
        """The recipe as a model that was loaded, with a head and epsilons of its own, is really trained by."""
        return replace(
            self,
            decode_head="mlp" if config.decoder_hidden_size else "conv",
            decoder_width=config.decoder_hidden_size or config.conv_decoder_hidden_size,
            block_norm_eps=config.block_norm_eps,
            embed_norm_eps=config.embed_norm_eps,
            classifier_dropout_mode=config.classifier_dropout_mode,
            drop_path_rate=config.drop_path_rate,
        )

    def transform(
        self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD, ignore_index: int = 255
    ) -> TrainingTransform:
        """The augmentation of the training pictures.

        Args:
            mean: Subtracted per channel, in levels of 0..255.
            std: Divides per channel.
            ignore_index: Label of padding.
        """
        return TrainingTransform(
            scale=(self.long_side, self.image_size),
            ratio_range=self.ratio_range,
            crop_size=(self.crop_size, self.crop_size),
            cat_max_ratio=self.cat_max_ratio,
            flip_probability=self.flip_probability,
            photometric=self.photometric,
            mean=tuple(mean),
            std=tuple(std),
            ignore_index=ignore_index,
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, with the global batch."""
        return asdict(self) | {"global_batch_size": self.global_batch_size}


# What belongs to an implementation, whatever it trains. "transformers" is the network and the loss of `transformers`,
# for runs without a published recipe.
FLAVORS: dict[str, dict[str, Any]] = {
    "nvlabs": {
        "decode_head": "mlp",
        "block_norm_eps": 1e-6,
        "embed_norm_eps": 1e-5,
        "classifier_dropout_mode": "channel",
        "initialization": "nvlabs",
        "decay_from_start": True,
        "decay_stage_norms": False,
        "loss_average": "all",
        "tta": "nvlabs",
    },
    "mmseg": {
        "decode_head": "conv",
        "decoder_width": 256,
        "block_norm_eps": 1e-6,
        "embed_norm_eps": 1e-6,
        "classifier_dropout_mode": "channel",
        "initialization": "mmseg",
        "decay_from_start": False,
        "decay_stage_norms": True,
        "loss_average": "all",
        "tta": "mmseg",
    },
    "transformers": {},
}

_ADE20K = {"dataset": "ade20k", "processes": 8, "batch_size": 2}
_CITYSCAPES = {"dataset": "cityscapes", "processes": 8, "batch_size": 1, "image_size": 1024, "crop_size": 1024}
_CITYSCAPES |= {"protocol": "slide-1024"}
_MMSEG_ADE20K = {**_ADE20K, "protocol": "keep-ratio-512", "aligned_protocol": "aligned-512"}
_NVLABS_ADE20K = {**_ADE20K, "protocol": "aligned-512"}
_640 = {"image_size": 640, "crop_size": 640}
_NVLABS_CITYSCAPES = {**_CITYSCAPES, "eval_every": 4_000}

# name: fields, then mIoU, mIoU(ms+flip), aligned mIoU, aligned mIoU(ms+flip), memory (GB), images/s, device.
_MMSEG = {
    "ade20k-b0": (_MMSEG_ADE20K, "b0", (37.41, 38.34, 38.10, 38.57, 2.1, 51.32, "1080 Ti")),
    "ade20k-b1": (_MMSEG_ADE20K, "b1", (40.97, 42.54, 41.64, 42.76, 2.6, 47.66, "TITAN Xp")),
    "ade20k-b2": (_MMSEG_ADE20K, "b2", (45.58, 47.03, 46.53, 47.49, 3.6, 30.88, "TITAN Xp")),
    "ade20k-b3": (_MMSEG_ADE20K, "b3", (47.82, 48.81, 48.46, 49.14, 4.8, 22.11, "V100")),
    "ade20k-b4": (_MMSEG_ADE20K, "b4", (48.46, 49.76, 49.34, 50.29, 6.1, 15.45, "V100")),
    "ade20k-b5": (_MMSEG_ADE20K, "b5", (49.13, 50.22, 50.08, 50.72, 7.2, 11.89, "V100")),
    "ade20k-b5-640": (
        {**_MMSEG_ADE20K, **_640, "protocol": "keep-ratio-640", "aligned_protocol": "aligned-640"},
        "b5",
        (49.62, 50.36, 50.58, 50.80, 11.5, 11.30, "V100"),
    ),
    "cityscapes-b0": (_CITYSCAPES, "b0", (76.54, 78.22, None, None, 3.64, 4.74, "V100")),
    "cityscapes-b1": (_CITYSCAPES, "b1", (78.56, 79.73, None, None, 4.49, 4.30, "V100")),
    "cityscapes-b2": (_CITYSCAPES, "b2", (81.08, 82.18, None, None, 7.42, 3.36, "V100")),
    "cityscapes-b3": (_CITYSCAPES, "b3", (81.94, 83.14, None, None, 10.86, 2.53, "V100")),
    "cityscapes-b4": (_CITYSCAPES, "b4", (81.89, 83.38, None, None, 15.07, 1.88, "V100")),
    "cityscapes-b5": (_CITYSCAPES, "b5", (82.25, 83.48, None, None, 18.00, 1.39, "V100")),
}
# The paper's figures, as far as two sources agree on them. NVlabs published no B5 at 512x512 on ADE20K.
_NVLABS = {
    "ade20k-b0": (_NVLABS_ADE20K, "b0", (37.4, None)),
    "ade20k-b1": (_NVLABS_ADE20K, "b1", (42.2, 43.1)),
    "ade20k-b2": (_NVLABS_ADE20K, "b2", (None, 47.5)),
    "ade20k-b3": (_NVLABS_ADE20K, "b3", (None, 50.0)),
    "ade20k-b4": (_NVLABS_ADE20K, "b4", (50.3, 51.1)),
    "ade20k-b5": (_NVLABS_ADE20K, "b5", ()),
    "ade20k-b5-640": ({**_NVLABS_ADE20K, **_640, "protocol": "aligned-640"}, "b5", (51.0, 51.8)),
    "cityscapes-b0": (_NVLABS_CITYSCAPES, "b0", (76.2, 78.1)),
    "cityscapes-b1": (_NVLABS_CITYSCAPES, "b1", (None, 80.0)),
    "cityscapes-b2": (_NVLABS_CITYSCAPES, "b2", (81.0, None)),
    "cityscapes-b3": (_NVLABS_CITYSCAPES, "b3", ()),
    "cityscapes-b4": (_NVLABS_CITYSCAPES, "b4", ()),
    "cityscapes-b5": (_NVLABS_CITYSCAPES, "b5", (82.4, 84.0)),
}


def _published(figures: tuple, flavor: str) -> Published:
    names = (
        *("mean_iou", "mean_iou_tta", "aligned_mean_iou", "aligned_mean_iou_tta", "memory_gb"),
        *("images_per_second", "device"),
    )
    source = {"mmseg": "mmsegmentation, configs/segformer/README.md", "nvlabs": "arXiv 2105.15203"}[flavor]
    return Published(**dict(zip(names, figures, strict=False)), source=source if figures else None)


RECIPES: dict[tuple[str, str], Recipe] = {
    (name, flavor): Recipe(
        **{"name": name, "flavor": flavor, "variant": variant, **FLAVORS[flavor], **fields},
        published=_published(figures, flavor),
    )
    for flavor, table in (("mmseg", _MMSEG), ("nvlabs", _NVLABS))
    for name, (fields, variant, figures) in table.items()
}
RECIPE_NAMES = tuple(_MMSEG)


def get_recipe(name: str, flavor: str = "mmseg") -> Recipe:
    """Return a published recipe.

    Args:
        name: Data set and variant, such as "cityscapes-b2"; one of `RECIPE_NAMES`.
        flavor: "mmseg" or "nvlabs". The first is the one whose result table is complete; weights trained by the second
            also load in `transformers`, whose decode head it shares.

    Raises:
        ValueError: There is no such recipe.
    """
    if name not in RECIPE_NAMES:
        close = difflib.get_close_matches(name, RECIPE_NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"recipe must be list or one of {', '.join(RECIPE_NAMES)}, got {name!r}{hint}")
    if flavor not in ("mmseg", "nvlabs"):
        raise ValueError(f"recipe_flavor must be mmseg or nvlabs, got {flavor!r}")
    return RECIPES[name, flavor]


def default_recipe(dataset: str, flavor: str = "transformers") -> Recipe:
    """What a run without a published recipe starts from.

    Args:
        dataset: Name for `load_dataset`, or "data" for a user's own. "scenes" has settings of its own, small pictures
            learned from scratch; "data" a learning rate that was chosen on few pictures.
        flavor: Key of `FLAVORS`: whose decode head, epsilons, schedule, decay rules and initial weights to take.

    Raises:
        ValueError: There is no such flavor.
    """
    if flavor not in FLAVORS:
        raise ValueError(f"recipe_flavor must be one of {', '.join(FLAVORS)}, got {flavor!r}")
    recipe = replace(Recipe(dataset=dataset, max_steps=2000), flavor=flavor, **FLAVORS[flavor])
    if dataset == "scenes":
        small: dict[str, Any] = {
            "image_size": 128,
            "long_side": 512,
            "crop_size": 128,
            "ratio_range": None,
            "photometric": False,
        }
        recipe = replace(recipe, **small, max_steps=1000, learning_rate=6e-3, head_multiplier=1.0)
    if dataset == "data":
        recipe = replace(recipe, learning_rate=2e-4)  # measured: docs/results.md, "Few pictures"
    return recipe


def recipe_table() -> str:
    """All recipes with their figures, for people."""
    settings = ("recipe", "flavor", "crop", "GPUs x images", "head", "protocol")
    results = ("mIoU", "ms+flip", "aligned", "ms+flip", "GB", "images/s", "device")
    rows: list[tuple[str, ...]] = [(*settings, *results)]
    for recipe in RECIPES.values():
        figures = list(asdict(recipe.published).values())[:-1]
        width = recipe.decoder_width or VARIANTS[recipe.variant]["decoder_hidden_size"]
        shape = (str(recipe.crop_size), f"{recipe.processes} x {recipe.batch_size}", f"{recipe.decode_head} {width}")
        numbers = [f"{value:.2f}" if isinstance(value, float) else value or "" for value in figures]
        rows.append((recipe.name, recipe.flavor, *shape, recipe.protocol, *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("")
    lines.append("All: AdamW, learning rate 6e-5 (head 6e-4), decay 0.01, 160000 steps, warm-up 1500, poly power 1.")
    return "\n".join(lines)

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The flags of a training run, the recipe that gives their defaults, and what both come to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..data.arguments import DataArguments
from ..data.file_tree import tolerant_probes
from ..data.segmentation_data import SegmentationData
from ..data.training_samples import ON_BAD_SAMPLE
from ..evaluation.protocols import Protocol
from ..recipes import Recipe, default_recipe, get_recipe
from .batches import BatchPlan, plan_batches
from .losses import SegmentationLoss

# Flags that change nothing about the weights a run ends with.
_FREE = {
    "output_dir",
    "data_root",
    "data",
    "pictures",
    "resume",
    "eval_every",
    "save_every",
    "log_every",
    "num_workers",
    "report_to",
}
_FREE |= {"data", "pictures"}
_FREE |= {"push_to_hub", "license", "protocol", "tta", "boundary_iou", "check", "check_seconds", "allow_outside_files"}
# A run that stops at a bad sample never ends, and up to there both values give the same: it goes on with "skip".
_FREE |= {"on_bad_sample", "allow_changes", "take_over"}
# Flags whose default is the recipe's field of the same name.
_FROM_RECIPE = (
    *("variant", "max_steps", "learning_rate", "head_multiplier", "weight_decay", "crop_size", "loss"),
    *("loss_average", "protocol"),
)
_POSITIVE = (
    *("max_steps", "learning_rate", "head_multiplier", "crop_size", "image_size", "eval_every", "save_every"),
    *("log_every", "global_batch_size", "batch_size", "gradient_accumulation_steps"),
)


@dataclass(kw_only=True)
class TrainArguments(DataArguments):
    """Command line of a training run; every flag is a field, and `None` takes the recipe's value.

    Raises:
        ValueError: A flag is out of range, or there is no such recipe; names the flag.
    """

    dataset: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "scenes, camvid, ade20k, cityscapes, coco-stuff, folder, parquet, or a Hub id owner/name; the "
            "recipe's if left out."
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": "Published recipe, such as cityscapes-b2; 'list' shows all. Any other flag overrides it."},
    )
    recipe_flavor: str | None = field(
        default=None,
        metadata={
            "help": "mmseg (default with a recipe) or nvlabs: decode head, epsilons, schedule, decay, initial "
            "weights; transformers (default without a recipe). Weights of nvlabs also load in transformers."
        },
    )
    model: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id to start from; its classifier is replaced if the classes differ."},
    )
    encoder: str | None = field(
        default=None,
        metadata={"help": "Pretrained encoder (ImageNet): file, folder or Hub id of any layout, such as mit_b0.pth."},
    )
    variant: str | None = field(default=None, metadata={"help": "b0 to b5, unless --model is given."})

    output_dir: str | None = field(
        default=None, metadata={"help": "New or empty folder; runs/NAME-VARIANT if left out."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on with the run in output_dir from its last saved state."}
    )
    allow_changes: bool = field(
        default=False,
        metadata={"help": "With resume: other settings than before are taken, and listed in recipe.json."},
    )
    take_over: bool = field(
        default=False,
        metadata={"help": "Take output_dir from a run on another machine that is known to have ended."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order, augmentation and dropout."})
    max_steps: int | None = field(default=None, metadata={"help": "Optimizer steps."})
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Images per optimizer step, over all processes; with a recipe, the recipe's is kept."},
    )
    batch_size: int | None = field(default=None, metadata={"help": "Images per process and forward pass."})
    gradient_accumulation_steps: int | None = field(
        default=None,
        metadata={"help": "Forward passes per optimizer step; Accelerate's if it was told, else by the global batch."},
    )
    learning_rate: float | None = field(default=None, metadata={"help": "Peak learning rate of the encoder."})
    head_multiplier: float | None = field(
        default=None, metadata={"help": "The decode head's learning rate divided by it."}
    )
    weight_decay: float | None = field(default=None, metadata={"help": "Decoupled weight decay of AdamW."})
    warmup_steps: int | None = field(
        default=None, metadata={"help": "Linear warm-up; 1500, but at most 5 percent of max_steps, if left out."}
    )
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the last layer."})
    crop_size: int | None = field(default=None, metadata={"help": "Side of the square training crops, in pixels."})
    image_size: int | None = field(
        default=None, metadata={"help": "Shorter side images are resized to; without a recipe, crop_size."}
    )
    loss: str | None = field(
        default=None,
        metadata={
            "help": "cross_entropy, ohem, focal, dice, tversky, lovasz, smp_dice, smp_focal with weights, as in "
            "'cross_entropy=1,dice=0.5'."
        },
    )
    loss_average: str | None = field(
        default=None, metadata={"help": "all: divide by all pixels (published recipes); valid: by labelled ones."}
    )
    class_weights: str | None = field(
        default=None,
        metadata={"help": "JSON file, or auto (median frequency), inverse_frequency: from the training annotations."},
    )
    ohem_threshold: float = field(default=0.7, metadata={"help": "ohem: probability below which a pixel is hard."})
    ohem_min_kept: int = field(default=100_000, metadata={"help": "ohem: pixels to keep of each image."})
    focal_gamma: float = field(default=2.0, metadata={"help": "focal and smp_focal: exponent."})
    tversky_alpha: float = field(default=0.3, metadata={"help": "tversky: weight of false positives."})
    tversky_beta: float = field(default=0.7, metadata={"help": "tversky: weight of false negatives."})
    sync_batch_norm: bool = field(default=True, metadata={"help": "Several GPUs: BatchNorm over all of them."})
    freeze_batch_norm: bool = field(default=False, metadata={"help": "BatchNorm keeps its stored statistics."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, fp16 or bf16; what `accelerate config` says if left out, else no."}
    )
    deterministic: bool = field(
        default=False, metadata={"help": "Bit-equal resuming with three or more processes and on GPUs; slower."}
    )

    protocol: str | None = field(
        default=None, metadata={"help": "Evaluation protocol, see evaluate.py; the recipe's, otherwise processor."}
    )
    tta: str = field(
        default="none", metadata={"help": "Test-time augmentation of the last evaluation: none, mmseg or nvlabs."}
    )
    eval_every: int | None = field(default=None, metadata={"help": "Steps between evaluations; a quarter of the run."})
    save_every: int | None = field(default=None, metadata={"help": "Steps between saved states; a tenth of the run."})
    log_every: int = field(default=20, metadata={"help": "Steps between logged losses."})
    boundary_iou: bool = field(default=False, metadata={"help": "The last evaluation also gives the boundary IoU."})
    on_bad_sample: str = field(
        default="stop",
        metadata={
            "help": "stop, or skip: train on another picture in place of a damaged one, and list those skipped."
        },
    )
    num_workers: int = field(default=2, metadata={"help": "Worker processes that load images, per process."})
    num_threads: int | None = field(
        default=None,
        metadata={
            "help": "CPU threads per process; 0 shares all cores, as do runs without a number in OMP_NUM_THREADS."
        },
    )
    push_to_hub: str | None = field(default=None, metadata={"help": "Repository owner/name to publish the result in."})
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, needed to publish them."})
    report_to: str | None = field(default=None, metadata={"help": "Tracker known to Accelerate, such as tensorboard."})

    def __post_init__(self) -> None:
        if self.recipe == "list":  # a question, not a run
            return
        self._set_defaults(self.base_recipe)
        self._check()

    @property
    def base_recipe(self) -> Recipe:
        """The recipe before any flag."""
        if self.recipe is not None:
            return get_recipe(self.recipe, self.recipe_flavor or "mmseg")
        dataset = "data" if self.data is not None else self.dataset or "scenes"  # whatever its folder is called
        return default_recipe(dataset, self.recipe_flavor or "transformers")

    def _set_defaults(self, base: Recipe) -> None:
        if self.data is not None and self.dataset is not None:
            raise ValueError(f"dataset must be left out with data, got {self.dataset!r}")
        self.dataset = self.dataset or (base.dataset if self.data is None else self.data_name)
        for name in _FROM_RECIPE:
            if getattr(self, name) is None:
                setattr(self, name, getattr(base, name))
        assert self.max_steps is not None
        if self.image_size is None:
            self.image_size = base.image_size if self.recipe else self.crop_size
        if self.warmup_steps is None:
            self.warmup_steps = max(min(base.warmup_steps, self.max_steps // 20), 0)
        for name, share in (("eval_every", 4), ("save_every", 10)):
            if getattr(self, name) is None:
                setattr(self, name, max(min(getattr(base, name), self.max_steps // share), 1))

    def _check(self) -> None:
        if self.push_to_hub and not self.license:
            raise ValueError("license must be given to publish with push_to_hub, for instance apache-2.0 or other")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be {'> 0' if value <= 0 else 'finite'}, got {value}")
        if self.seed >= 1 << 63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        for name in ("seed", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        assert self.warmup_steps is not None and self.max_steps is not None
        if not 0 <= self.warmup_steps < self.max_steps:
            raise ValueError(f"warmup_steps must be in [0, max_steps={self.max_steps}), got {self.warmup_steps}")
        if self.num_threads is not None and self.num_threads < 0:
            raise ValueError(f"num_threads must be >= 0, got {self.num_threads}")
        if self.allow_changes and not self.resume:
            raise ValueError("allow_changes goes with resume")
        if self.on_bad_sample not in ON_BAD_SAMPLE:
            raise ValueError(f"on_bad_sample must be one of {', '.join(ON_BAD_SAMPLE)}, got {self.on_bad_sample!r}")
        self.require_known_check()
        if self.model and self.encoder:
            raise ValueError(f"encoder must be left out with model, which has one, got {self.encoder!r}")
        self.build_loss()
        assert self.protocol is not None
        Protocol.named(self.protocol, self.tta)

    def load_data(self) -> SegmentationData:
        """Load the data set the flags name; a few bad annotations do not matter when bad samples are skipped."""
        with tolerant_probes(self.on_bad_sample == "skip"):
            return super().load_data()

    def build_loss(self, ignore_index: int = 255, class_weights: list[float] | None = None) -> SegmentationLoss:
        """The loss that the flags name."""
        assert self.loss is not None and self.loss_average is not None
        return SegmentationLoss(
            self.loss,
            ignore_index,
            self.loss_average,
            class_weights,
            self.ohem_threshold,
            self.ohem_min_kept,
            self.focal_gamma,
            self.tversky_alpha,
            self.tversky_beta,
        )

    def plan_batches(self, processes: int, sync_batch_norm: bool) -> BatchPlan:
        """Decide how the global batch is made up, and set the flags accordingly; see `plan_batches`."""
        base = self.base_recipe
        published = (base.processes, base.batch_size) if self.recipe else None
        asked = (self.global_batch_size, self.batch_size, self.gradient_accumulation_steps)
        plan = plan_batches(processes, base.batch_size, *asked, published, sync_batch_norm, self.freeze_batch_norm)
        self.batch_size = plan.batch_size
        self.gradient_accumulation_steps = plan.gradient_accumulation_steps
        self.global_batch_size = plan.global_batch_size
        return plan

    def effective_recipe(self, processes: int = 1) -> Recipe:
        """The recipe with every flag in it, as the run follows it."""
        base = self.base_recipe
        names = (*_FROM_RECIPE, "dataset", "image_size", "warmup_steps", "eval_every", "save_every")
        assert self.image_size is not None
        changes = {name: getattr(self, name) for name in names}
        for name in ("batch_size", "gradient_accumulation_steps", "drop_path_rate"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        changes["long_side"] = round(base.long_side * self.image_size / base.image_size)
        return replace(base, processes=processes, **changes)

    def settings(self, num_processes: int) -> dict[str, Any]:
        """What determines the weights a run ends with; a resumed run must agree on it."""
        kept = {name: value for name, value in asdict(self).items() if name not in _FREE}
        return kept | {"num_processes": num_processes, "num_threads": self.num_threads or 0}

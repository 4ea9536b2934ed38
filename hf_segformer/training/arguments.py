# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The flags of a training run, the recipe that gives their defaults, and what both come to."""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..data.arguments import DataArguments
from ..data.segmentation_data import SegmentationData
from ..data.tolerance import tolerant_probes
from ..data.training_samples import ON_BAD_SAMPLE
from ..evaluation.protocols import PROTOCOLS, Protocol
from ..recipes import Recipe, default_recipe, get_recipe
from .batches import BatchPlan, plan_batches
from .best import EXPORTS
from .ema import check_decay
from .freezing import stages_to_freeze
from .lora import check_lora
from .losses import SegmentationLoss
from .stopping import EVALUATIONS_PER_PATIENCE, EarlyStopping
from .trackers import tracker_names

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
# States keep the best weights beside the last, so either may be exported later.
_FREE |= {"export"}
# Which weights are the best, and when a run stops, depends on when and how it is evaluated.
_OF_EVALUATION = ("eval_every", "protocol")
# Flags whose default is the recipe's field of the same name.
_FROM_RECIPE = (
    *("variant", "max_steps", "learning_rate", "head_multiplier", "weight_decay", "crop_size", "loss"),
    *("loss_average", "protocol"),
)
_POSITIVE = (
    *("max_steps", "learning_rate", "head_multiplier", "crop_size", "image_size", "eval_every", "save_every"),
    *("log_every", "global_batch_size", "batch_size", "gradient_accumulation_steps", "epochs", "max_grad_norm"),
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
    epochs: float | None = field(
        default=None, metadata={"help": "Passes over the training pictures, in place of max_steps."}
    )
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
    max_grad_norm: float | None = field(
        default=None, metadata={"help": "Longer gradients, over all parameters and the whole step, are cut to it."}
    )
    ema: float | None = field(
        default=None,
        metadata={"help": "Decay of a moving average of the weights, such as 0.999; evaluated beside the others."},
    )
    freeze: str | None = field(
        default=None, metadata={"help": "encoder, or stages:N for its first N stages: not trained."}
    )
    lora: int | None = field(
        default=None, metadata={"help": "Rank of adapters (LoRA) that are trained in place of the encoder's weights."}
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "lora: adapters count alpha / rank; as much as the rank if left out."}
    )
    lora_targets: str | None = field(
        default=None,
        metadata={"help": "lora: names of the adapted layers; query,key,value,dense,dense1,dense2 if left out."},
    )
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
        default=None,
        metadata={"help": f"Evaluation: {', '.join(PROTOCOLS)}; the recipe's if left out, otherwise processor."},
    )
    tta: str = field(
        default="none", metadata={"help": "Test-time augmentation of the last evaluation: none, mmseg or nvlabs."}
    )
    eval_every: int | None = field(
        default=None, metadata={"help": "Steps between evaluations; a quarter of the run, more often with patience."}
    )
    export: str | None = field(
        default=None,
        metadata={
            "help": "best by validation mIoU, last, or ema (the last averaged): weights the run ends with; best if "
            "left out, with a recipe last unless there is ema or patience."
        },
    )
    patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations in a row without a higher validation mIoU."}
    )
    min_delta: float = field(default=0.0, metadata={"help": "patience: by how much it must be higher, in [0, 1)."})
    save_every: int | None = field(default=None, metadata={"help": "Steps between saved states; a tenth of the run."})
    log_every: int = field(default=20, metadata={"help": "Steps between logged losses."})
    boundary_iou: bool = field(default=False, metadata={"help": "The last evaluation also gives the boundary IoU."})
    on_bad_sample: str = field(
        default="stop",
        metadata={
            "help": "stop, or skip: leave out pictures with wrong annotations, train on others in place of damaged "
            "ones, and list them."
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
    report_to: str | None = field(
        default=None,
        metadata={"help": "Trackers known to Accelerate, as in tensorboard,wandb; all takes those installed."},
    )

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
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError(
                f"max_steps={self.max_steps} must be left out with epochs={self.epochs}, or epochs with it"
            )
        for name in _FROM_RECIPE:
            if getattr(self, name) is None and (name != "max_steps" or self.epochs is None):
                setattr(self, name, getattr(base, name))
        if self.image_size is None:
            self.image_size = base.image_size if self.recipe else self.crop_size
        if self.export is None:
            chooses = not self.recipe or self.ema is not None or self.patience is not None
            self.export = "best" if chooses else "last"  # published figures are those of the last weights
        if self.lora is not None and self.lora_alpha is None:
            self.lora_alpha = float(self.lora)
        if self.max_steps is not None:
            self._set_intervals(base)

    def _set_intervals(self, base: Recipe) -> None:
        assert self.max_steps is not None
        if self.warmup_steps is None:
            self.warmup_steps = max(min(base.warmup_steps, self.max_steps // 20), 0)
        evaluations = 4 if self.patience is None else EVALUATIONS_PER_PATIENCE * max(self.patience, 1)
        for name, share in (("eval_every", evaluations), ("save_every", 10)):
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
        self._check_weights()
        if self.max_steps is not None:
            self._check_intervals()
        if self.num_threads is not None and self.num_threads < 0:
            raise ValueError(f"num_threads must be >= 0, got {self.num_threads}")
        if self.allow_changes and not self.resume:
            raise ValueError("allow_changes goes with resume")
        if self.on_bad_sample not in ON_BAD_SAMPLE:
            raise ValueError(f"on_bad_sample must be one of {', '.join(ON_BAD_SAMPLE)}, got {self.on_bad_sample!r}")
        self.require_known_check()
        if self.model and self.encoder:
            raise ValueError(f"encoder must be left out with model, which has one, got {self.encoder!r}")
        tracker_names(self.report_to)
        self.build_loss()
        assert self.protocol is not None
        Protocol.named(self.protocol, self.tta)

    def _check_weights(self) -> None:
        """Which weights are trained, kept and exported."""
        check_decay(self.ema)
        EarlyStopping(self.patience, self.min_delta)
        check_lora(self.lora, self.lora_alpha, self.lora_targets, self.freeze, self.model or self.encoder)
        if self.freeze is not None:
            stages_to_freeze(self.freeze)
        if self.export not in EXPORTS:
            raise ValueError(f"export must be one of {', '.join(EXPORTS)}, got {self.export!r}")
        if self.export == "ema" and self.ema is None:
            raise ValueError("export='ema' goes with ema, the decay of the average, which was left out")

    def _check_intervals(self) -> None:
        assert self.warmup_steps is not None and self.max_steps is not None and self.eval_every is not None
        if not 0 <= self.warmup_steps < self.max_steps:
            raise ValueError(f"warmup_steps must be in [0, max_steps={self.max_steps}), got {self.warmup_steps}")
        EarlyStopping(self.patience, self.min_delta).check_intervals(self.eval_every, self.max_steps)

    def plan_steps(self, data: SegmentationData) -> None:
        """Turn `epochs` into `max_steps`, rounded up, and set the intervals that follow from it.

        Args:
            data: The training set. The global batch must be known, see `plan_batches`.

        Raises:
            ValueError: Its length is unknown, or an interval does not fit the number of steps.
        """
        if self.epochs is None:
            return
        if not isinstance(data.train, Sized):
            raise ValueError(
                f"epochs={self.epochs} needs a data set of known length, but {data.name!r} is streamed: give max_steps"
            )
        assert self.global_batch_size is not None
        steps = round(self.epochs * len(data.train) / self.global_batch_size, 6)  # 0.1 * 30 is a little above 3
        self.max_steps = max(math.ceil(steps), 1)
        self._set_intervals(self.base_recipe)
        self._check_intervals()

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

    @property
    def depends_on_evaluation(self) -> bool:
        """Whether the weights that the run ends with depend on its evaluations."""
        return self.export == "best" or self.patience is not None

    def settings(self, num_processes: int) -> dict[str, Any]:
        """What determines the weights a run ends with; a resumed run must agree on it."""
        kept = {name: value for name, value in asdict(self).items() if name not in _FREE}
        if self.depends_on_evaluation:
            kept |= {name: getattr(self, name) for name in _OF_EVALUATION}
        return kept | {"num_processes": num_processes, "num_threads": self.num_threads or 0}

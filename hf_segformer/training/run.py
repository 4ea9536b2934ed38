# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A training run, on one process or many, from its flags to the finished model folder.

A run is a function of (seed, step): what a step computes depends on nothing else. A run that was killed goes on with
`--resume` and ends with the weights it would have had.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data import DrawSampler, SegmentationData, TrainingSamples, collate_samples
from ..data.workers import Collate, ErrorsAsValues, batches_of
from ..evaluation.findings import Findings
from ..evaluation.loop import check_classes, evaluate, share_cpu_threads
from ..evaluation.metrics import ConfusionMatrix
from ..evaluation.protocols import Protocol
from ..hub.push import push_folder
from ..image_processing_segformer import SegformerImageProcessor
from ..modeling_segformer import SegformerForSemanticSegmentation
from .arguments import TrainArguments
from .batches import freeze_batch_norm, synchronizes_batch_norm
from .best import BestWeights, Exported
from .class_weights import read_class_weights
from .ema import averaged_model
from .export import collect_metrics, print_summary, write_model_folder
from .finite import DivergenceGuard
from .freezing import freeze_parts, keep_frozen
from .launch import describe_launch, launched_accumulation, make_accelerator, refuse_sharding
from .lora import add_adapter, merge_adapter
from .losses import SegmentationLoss
from .model import build_model
from .parameter_groups import parameter_groups
from .progress import Progress, data_settings, samples_of, step_seed
from .progress_line import ProgressLine, bars_on_terminals
from .schedules import poly_factor, set_learning_rate
from .state import find_state, load_best, load_state, run_folder, save_state
from .stopping import EarlyStopping
from .trackers import tracker_names
from .watching import log_start, progress_line, start_trackers, track

# Flags that say what of a recipe is trained, how long, and what becomes of it.
_STOPPING, _WEIGHTS = ("epochs", "patience", "min_delta"), ("ema", "freeze", "lora", "lora_alpha", "lora_targets")
_BESIDE_THE_RECIPE = (*_STOPPING, "max_grad_norm", *_WEIGHTS)


class Run:
    """One training run: its parts, made in the order in which they need each other, and what it does with them.

    Every process makes one.

    Args:
        args: The flags; `output_dir` is the run's own folder, see `run_folder`.
        accelerator: What `build_accelerator` returned for them.

    Raises:
        ValueError: A flag, a sample of the data set or the saved state is not as it must be.
    """

    command_line: Sequence[str] = ()

    def __init__(self, args: TrainArguments, accelerator: Accelerator):
        self.started = time.monotonic()
        self.args, self.accelerator = args, accelerator
        accelerator.project_configuration.set_directories(args.output_dir)
        self.folder = Path(args.output_dir or ".")
        self.states = self.folder / "states"
        self.state = self.find_state() if args.resume else None
        self.data = self.load_data()
        torch.manual_seed(args.seed)
        self.recipe = args.effective_recipe(accelerator.num_processes)
        self.model, self.image_processor = self.build_model()
        check_classes(self.model, self.data)
        self.recipe = self.recipe.with_config(self.model.config)
        self.choose_parameters()
        self.optimizer = self.build_optimizer()
        # A copy of the model, which Accelerate changes afterwards.
        self.average = None if args.ema is None else averaged_model(self.model, args.ema)
        self.loss_function = self.build_loss()
        self.best, self.stopping = BestWeights(), EarlyStopping(args.patience, args.min_delta)
        # The evaluation after the last step, by kind of weights.
        self.evaluated: dict[str, tuple[ConfusionMatrix, Findings | None]] = {}
        self.progress = self.restore()
        self.wrapped_model, self.wrapped_optimizer = accelerator.prepare(self.model, self.optimizer)
        self.trackers = start_trackers(self)
        self.loader = self.build_loader()
        self.guard = DivergenceGuard(
            accelerator, self.model, self.optimizer, self.files_of_step, self.progress.step, self.state
        )
        self.line = progress_line(self)
        self.losses: list[Tensor] = []
        self.last_log = (self.progress.step, time.monotonic())

    @classmethod
    def start(cls, args: TrainArguments, command_line: Sequence[str] = ()) -> None:
        """Set up Accelerate, claim the output folder, and go through a run.

        Args:
            args: The flags.
            command_line: What they were read from, for the log and the report.
        """
        accelerator = build_accelerator(args)
        default = f"runs/{args.recipe or f'{args.data_name}-{args.variant}'}"
        folder = run_folder(args.output_dir, default, args.resume, accelerator, args.take_over)
        with bars_on_terminals(), folder as args.output_dir:
            run = cls(args, accelerator)
            run.command_line = command_line
            with run.trackers, run.line.logging_errors():
                run.complete()

    def complete(self) -> None:
        """Train, evaluate, export and publish."""
        self.train()
        matrix, self.findings = self.evaluate_exported()
        if self.accelerator.is_main_process:
            metrics = collect_metrics(self, matrix)
            write_model_folder(self, matrix, metrics)
            print_summary(self, matrix, metrics)
            step = self.progress.step
            score = f"mIoU {100 * metrics['mean_iou']:.2f} of the exported weights, {self.exported.describe(step)}"
            self.line.log(f"finished after step {step}: {score}")
            self.publish()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    # ---- the parts

    def find_state(self) -> Path:
        """The state to resume from, the same for all processes; damaged ones are named and passed over."""
        found = [find_state(self.states)] if self.accelerator.is_main_process else [None]
        (found,) = broadcast_object_list(found)
        for reason in found.passed_over:
            self.accelerator.print(f"warning: saved state passed over: {reason}")
        if found.path is None:
            reasons = "; ".join(found.passed_over)
            raise ValueError(f"no saved state in {self.states} can be resumed: {reasons}")
        if self.accelerator.is_main_process:
            found.set_aside()
        return found.path

    def load_data(self) -> SegmentationData:
        """The data set, checked, which tells the number of steps as well."""
        with self.accelerator.main_process_first():
            data = self.args.load_data()
        self.args.check_data(data, ("train", "validation"), self.accelerator, self.args.on_bad_sample)
        self.args.plan_steps(data)
        if self.args.epochs is not None:
            steps = f"{self.args.max_steps} steps of {self.args.global_batch_size}"
            self.accelerator.print(f"{self.args.epochs:g} epochs of {len(data.train)} pictures: {steps}")
        return data

    def build_model(self) -> tuple[SegformerForSemanticSegmentation, SegformerImageProcessor]:
        """Model and image processor before the first step."""
        return build_model(self.args, self.recipe, self.data, self.accelerator)

    def choose_parameters(self) -> None:
        """Freeze what shall not be trained, or put an adapter in; says how much is trained."""
        args, base = self.args, self.args.model or self.args.encoder
        self.frozen = [] if args.freeze is None else freeze_parts(self.model, args.freeze)
        self.adapter = None
        if args.lora is not None and args.lora_alpha is not None:
            self.adapter = add_adapter(self.model, args.lora, args.lora_alpha, args.lora_targets, base)
        if self.frozen or self.adapter is not None:
            count = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
            self.accelerator.print(f"training {count:,} parameters")
        if self.frozen and base is None:
            self.accelerator.print("note: what is frozen keeps its random weights; --model and --encoder take others")

    def build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW by the recipe's parameter groups; puts the model on its device."""
        recipe = self.recipe
        if synchronizes(self.args, self.accelerator):
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        groups = parameter_groups(
            self.model, recipe.learning_rate, recipe.weight_decay, recipe.head_multiplier, recipe.decay_stage_norms
        )
        self.model.to(self.accelerator.device)
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)

    def build_loss(self) -> SegmentationLoss:
        """The loss, with class weights that the main process reads or computes."""
        weights: list[Any] = [None]
        if self.args.class_weights is not None:
            if self.accelerator.is_main_process:
                weights = [read_class_weights(self.args.class_weights, self.data, self.args.on_bad_sample)]
            weights = broadcast_object_list(weights)
            self.accelerator.print("class weights:", ", ".join(f"{weight:.3g}" for weight in weights[0]))
        return self.args.build_loss(self.data.ignore_index, weights[0])

    def restore(self) -> Progress:
        """Progress of a new run, or of the one to resume, whose weights and optimizer are loaded."""
        settings = self.args.settings(self.accelerator.num_processes) | data_settings(self.data)
        if self.args.depends_on_evaluation:
            settings["validation_samples"] = samples_of(self.data, "validation")
        if self.loss_function.class_weights is not None:
            settings["class_weight_values"] = torch.as_tensor(self.loss_function.class_weights).tolist()
        if self.state is None:
            return Progress(settings=settings)
        scaler = self.accelerator.scaler
        allow_changes = self.args.allow_changes
        progress = load_state(self.state, self.model, self.optimizer, settings, scaler, allow_changes, self.average)
        self.best.weights = load_best(self.state)
        self.accelerator.print(f"resuming at step {progress.step}")
        if progress.step > self.recipe.max_steps:
            least = f"at least the {progress.step} steps of {self.state}"
            raise ValueError(f"max_steps must be {least}, got {self.recipe.max_steps}")
        return progress

    def build_loader(self) -> DataLoader:
        """Micro-batches of this process from the next step on."""
        args, accelerator, processor = self.args, self.accelerator, self.image_processor
        mean, std = ([255 * value for value in values] for values in (processor.image_mean, processor.image_std))
        sampler = DrawSampler(
            self.recipe.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            self.recipe.gradient_accumulation_steps,
            start_step=self.progress.step,
            stop_step=self.recipe.max_steps,
        )
        transform = self.recipe.transform(mean, std, self.data.ignore_index)
        samples = TrainingSamples(self.data, transform, args.seed, args.on_bad_sample)
        pin_memory = accelerator.device.type == "cuda"
        options = {"num_workers": args.num_workers, "pin_memory": pin_memory, "collate_fn": Collate(collate_samples)}
        return DataLoader(ErrorsAsValues(samples), batch_sampler=sampler, **options)

    def files_of_step(self, step: int) -> list[str]:
        """Names of the pictures that this process reads for an optimizer step, counted from 0."""
        loader: Any = self.loader
        return [loader.dataset.samples.file_of(draw) for draw in loader.batch_sampler.draws_of(step)]

    # ---- the steps

    def train(self) -> None:
        """Take the steps that are left, and log, evaluate and save on the way."""
        batches = batches_of(self.loader)
        with self.line as line:  # closed before an error is reported
            log_start(self)
            while not self.is_over():
                self.set_up_step()
                self.record(self.take_step(batches))
                line.update()
                self.follow_up(line)
            if not self.progress.is_evaluated:  # what was trained is safe by now
                self.log_evaluation(line)
                self.save()
        self.accelerator.wait_for_everyone()

    def is_over(self) -> bool:
        """Whether no step is left to take."""
        return self.progress.step >= self.recipe.max_steps or self.stopping.is_due(self.progress.history)

    def follow_up(self, line: ProgressLine) -> None:
        """After a step: look, log, evaluate and save, where it is time to."""
        args, recipe, step = self.args, self.recipe, self.progress.step
        finished = step == recipe.max_steps
        logs, evaluates, saves = (
            finished or step % every == 0 for every in (args.log_every, recipe.eval_every, recipe.save_every)
        )
        logs |= evaluates and args.patience is not None  # the evaluation may end the run
        if logs or evaluates or saves:
            self.guard.look()
            self.gather_bad_samples()
            line.log_passed_over(self.progress.bad_samples)
        if logs and self.losses:
            self.log_losses(line)
        if evaluates and not finished:
            self.log_evaluation(line)
        if saves or self.is_over():
            self.save()

    def set_up_step(self) -> None:
        """Training mode, and the learning rate of the next step."""
        self.model.train()
        if self.args.freeze_batch_norm:
            freeze_batch_norm(self.model)
        keep_frozen(self.frozen)
        set_learning_rate(self.optimizer, self.learning_rate_factor(self.progress.step))

    def learning_rate_factor(self, step: int) -> float:
        """Learning rate of a step, counted from 0, divided by the peak."""
        recipe = self.recipe
        warmup = (recipe.warmup_steps, recipe.warmup_ratio)
        return poly_factor(step, recipe.max_steps, *warmup, recipe.power, recipe.decay_from_start)

    def take_step(self, batches: Iterator[dict]) -> Tensor:
        """One optimizer step over all micro-batches and processes; returns this process's part of the mean loss."""
        accelerator = self.accelerator
        micro_batches = self.next_batches(batches)
        # Dividing by the pixels of the whole step gives the same gradient however the step is cut into pieces.
        counts = sum(self.loss_function.counts(batch["labels"]) for batch in micro_batches)
        counts = accelerator.reduce(counts, "sum")
        total = torch.zeros((), device=accelerator.device)
        for micro_step, batch in enumerate(micro_batches):
            torch.manual_seed(step_seed(self.args.seed, self.progress.step, micro_step, accelerator.process_index))
            with self.reducing_gradients(last=micro_step == len(micro_batches) - 1):
                with accelerator.autocast():
                    logits = self.wrapped_model(batch["pixel_values"]).logits
                loss = self.loss_function(logits, batch["labels"], counts)
                # Processes average their gradients; the sum is wanted.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        if self.args.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad()
        self.progress.step += 1
        return total

    def next_batches(self, batches: Iterator[dict]) -> list[dict[str, Tensor]]:
        """Micro-batches of a step, on the device; notes the samples that were passed over."""
        micro_batches = [next(batches) for _ in range(self.recipe.gradient_accumulation_steps)]
        for batch in micro_batches:
            self.progress.bad_samples += batch["bad_samples"]
            for sample in batch["bad_samples"]:
                tqdm.write(f"passed over: {sample['reason']}")
        names, device = ("pixel_values", "labels"), self.accelerator.device
        return [{name: batch[name].to(device) for name in names} for batch in micro_batches]

    def reducing_gradients(self, last: bool) -> contextlib.AbstractContextManager:
        """Processes add up their gradients in the last micro-step only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped_model)

    def record(self, loss: Tensor) -> None:
        """Note the loss of a step, unless the loss scaler has thrown the step away."""
        was_skipped = self.wrapped_optimizer.step_was_skipped
        self.guard.record(loss, was_skipped)
        if not was_skipped:
            self.losses.append(loss)
            if self.average is not None:
                self.average.update_parameters(self.model)

    # ---- what happens between steps

    def gather_bad_samples(self) -> None:
        """Give all processes the list of samples that any of them has passed over so far, by draw."""
        found = {(bad["draw"], bad["attempt"]): bad for bad in gather_object(self.progress.bad_samples)}
        self.progress.bad_samples = [found[key] for key in sorted(found)]

    def log_losses(self, line: ProgressLine) -> None:
        """Log the mean loss and the speed since the last call."""
        step, (last_step, last_time) = self.progress.step, self.last_log
        loss = self.accelerator.reduce(torch.stack(self.losses), "sum").mean().item()
        learning_rate = self.learning_rate_factor(step - 1) * self.recipe.learning_rate
        self.progress.history.append({"step": step, "loss": loss, "learning_rate": learning_rate})
        self.trackers.log({"loss": loss, "learning_rate": learning_rate}, step)
        speed = self.recipe.global_batch_size * (step - last_step) / (time.monotonic() - last_time)
        line.show(loss, learning_rate, speed)
        self.losses, self.last_log = [], (step, time.monotonic())

    def log_evaluation(self, line: ProgressLine) -> None:
        """Evaluate, log the metrics, and keep the weights if they are the best so far."""
        step = self.progress.step
        models: dict[str, nn.Module] = {"raw": self.model}
        if self.average is not None:
            models["ema"] = self.average.module
        finished = step == self.recipe.max_steps  # or stopped early: then what is exported is evaluated once more
        findings = {kind: self.make_findings() if finished else None for kind in models}
        self.evaluated = {
            kind: (self.evaluate(model, findings=findings[kind]), findings[kind]) for kind, model in models.items()
        }
        metrics = {kind: matrix.compute() for kind, (matrix, _) in self.evaluated.items()}
        (scores,) = broadcast_object_list([{kind: found["mean_iou"] for kind, found in metrics.items()}])
        self.best.offer(self.progress, scores, models)
        logged = {"mean_iou" if kind == "raw" else f"mean_iou_{kind}": score for kind, score in scores.items()}
        self.progress.history.append({"step": step, **logged})
        track(self, metrics["raw"] | logged)
        average = f", of the averaged weights {100 * scores['ema']:.2f}" if "ema" in scores else ""
        line.announce(f"step {step}: mIoU {100 * scores['raw']:.2f}{average}")
        self.last_log = (step, time.monotonic())

    def evaluate(
        self, model: nn.Module | None = None, tta: str = "none", findings: Findings | None = None
    ) -> ConfusionMatrix:
        """Evaluate the run's model, or another, by the run's protocol."""
        return evaluate(
            self.model if model is None else model,
            self.image_processor,
            self.data,
            self.accelerator,
            batch_size=self.recipe.batch_size,
            num_workers=self.args.num_workers,
            protocol=Protocol.named(self.recipe.protocol, tta),
            findings=findings,
        )

    def save(self) -> None:
        """Save the state to resume from."""
        self.guard.last_state = self.states / f"step-{self.progress.step:08d}"
        if self.accelerator.is_main_process:
            save_state(
                self.states,
                self.model,
                self.optimizer,
                self.progress,
                self.accelerator.scaler,
                average=self.average,
                best=self.best.weights,
            )

    # ---- the end

    def make_findings(self) -> Findings:
        """What collects the findings of the last evaluation."""
        return Findings(self.data, self.accelerator, boundary_iou=self.args.boundary_iou)

    def evaluate_exported(self) -> tuple[ConfusionMatrix, Findings]:
        """Make the run's model what is exported, an adapter merged into it, and evaluate that."""
        chosen = self.exported = Exported.chosen(str(self.args.export), self.progress)
        if chosen.export == "best":
            assert self.best.weights is not None
            self.model.load_state_dict(self.best.weights)
        elif self.average is not None and chosen.weights == "ema":
            self.model.load_state_dict(self.average.module.state_dict())
        self.adapter_weights = None if self.adapter is None else merge_adapter(self.adapter)
        is_known = chosen.step == self.progress.step and self.args.tta == "none" and self.adapter is None
        matrix, findings = self.evaluated.get(chosen.weights, (None, None)) if is_known else (None, None)
        if matrix is None or findings is None:
            self.accelerator.print("evaluating ...")
            findings = self.make_findings()
            matrix = self.evaluate(tta=self.args.tta, findings=findings)
        return matrix, findings

    def describe(self) -> dict:
        """What really ran, beside the recipe."""
        launch = {"launch": describe_launch(self.accelerator), "exported": vars(self.exported)}
        launch |= {name: value for name in _BESIDE_THE_RECIPE if (value := getattr(self.args, name))}
        return launch | {"changes": self.progress.changes, "bad_samples": self.progress.bad_samples}

    def publish(self) -> None:
        """Push the folder to the Hub, if that was asked for."""
        if self.args.push_to_hub:
            commit = push_folder(self.folder, self.args.push_to_hub, license=self.args.license)
            print(f"published: {commit.commit_url}")


def build_accelerator(args: TrainArguments) -> Accelerator:
    """Accelerator, CPU threads, determinism, and how the global batch is made up, which is written into `args`.

    Raises:
        ValueError: What was asked for cannot be had here.
    """
    # Reusing the order in which gradients become ready needs no unused parameters; giving it up makes restarts exact.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=args.deterministic)]
    accelerator = make_accelerator(
        args.mixed_precision,
        log_with=tracker_names(args.report_to) or None,
        project_dir=args.output_dir or "runs",
        kwargs_handlers=handlers,
    )
    refuse_sharding(accelerator)
    args.mixed_precision = accelerator.mixed_precision
    if args.gradient_accumulation_steps is None:
        args.gradient_accumulation_steps = launched_accumulation()
    share_cpu_threads(accelerator, args.num_threads)
    torch.use_deterministic_algorithms(args.deterministic, warn_only=True)
    plan = args.plan_batches(accelerator.num_processes, synchronizes(args, accelerator))
    ran = describe_launch(accelerator) | {"gradient_accumulation_steps": plan.gradient_accumulation_steps}
    accelerator.print("running with", ", ".join(f"{name} {value}" for name, value in ran.items() if value))
    if plan.note:
        accelerator.print(f"note: {plan.note}")
    return accelerator


def synchronizes(args: TrainArguments, accelerator: Accelerator) -> bool:
    """Whether BatchNorm shall see the images of all processes together."""
    wanted = args.sync_batch_norm and not args.freeze_batch_norm
    return synchronizes_batch_norm(wanted, accelerator.num_processes, accelerator.device.type)

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Train SegFormer for semantic segmentation, on one process or many.

    accelerate launch examples/train.py
    accelerate launch examples/train.py --dataset camvid --data_root CamVid --max_steps 2000
    accelerate launch examples/train.py --dataset folder --data_root my_pictures --model nvidia/mit-b0

Without arguments it draws a data set of street scenes, trains B0 on it from scratch and evaluates. The output folder
gets weights, configuration, processor, model card, metrics, learning curve and overlay pictures, and loads with
`AutoModelForSemanticSegmentation.from_pretrained`.

A run is a function of (seed, step): what a step computes depends on nothing else. A run that was killed goes on with
`--resume` and ends with the weights it would have had.
"""

import math
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, HfArgumentParser

from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.data import (
    DataArguments,
    DrawSampler,
    SegmentationData,
    TrainingSamples,
    TrainingTransform,
    check_dataset,
)
from hf_segformer.evaluation import check_classes, evaluate, share_cpu_threads
from hf_segformer.hub import PushError, model_card, push_folder
from hf_segformer.inference import predict_label_map
from hf_segformer.metrics import ConfusionMatrix, write_metrics
from hf_segformer.training import (
    Progress,
    count_pixels,
    cross_entropy_sum,
    initialize_as_published,
    latest_state,
    load_state,
    parameter_groups,
    poly_factor,
    save_state,
    set_learning_rate,
    step_seed,
)
from hf_segformer.visualization import learning_curve, panel

# What an argument left out means for a data set; `None` below stands for these.
DEFAULTS = {
    "scenes": {"max_steps": 1000, "batch_size": 8, "learning_rate": 6e-3, "head_multiplier": 1.0, "crop_size": 128},
    "other": {"max_steps": 2000, "batch_size": 8, "learning_rate": 6e-5, "head_multiplier": 10.0, "crop_size": 512},
}
PICTURES = 6


@dataclass(kw_only=True)
class TrainArguments(DataArguments):
    """Command line of train.py; every flag is a field."""

    model: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id to start from; its classifier is replaced if the classes differ."},
    )
    variant: str = field(default="b0", metadata={"help": "b0 to b5, when training from scratch."})

    output_dir: str | None = field(
        default=None, metadata={"help": "New or empty folder; runs/NAME-VARIANT if left out."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on with the run in output_dir from its last saved state."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order, augmentation and dropout."})
    max_steps: int | None = field(default=None, metadata={"help": "Optimizer steps."})
    batch_size: int | None = field(default=None, metadata={"help": "Images per process and forward pass."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Forward passes per optimizer step."})
    learning_rate: float | None = field(default=None, metadata={"help": "Peak learning rate of the encoder."})
    head_multiplier: float | None = field(
        default=None, metadata={"help": "The decode head's learning rate divided by it."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Decoupled weight decay of AdamW."})
    warmup_steps: int | None = field(
        default=None, metadata={"help": "Linear warm-up; 5 percent of max_steps if left out."}
    )
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the last layer."})
    crop_size: int | None = field(default=None, metadata={"help": "Side of the square training crops, in pixels."})
    image_size: int | None = field(
        default=None, metadata={"help": "Shorter side images are resized to; crop_size if left out."}
    )
    mixed_precision: str = field(default="no", metadata={"help": "no, fp16 or bf16."})
    deterministic: bool = field(
        default=False, metadata={"help": "Bit-equal resuming with three or more processes and on GPUs; slower."}
    )

    eval_every: int | None = field(default=None, metadata={"help": "Steps between evaluations; a quarter of the run."})
    save_every: int | None = field(default=None, metadata={"help": "Steps between saved states; a tenth of the run."})
    log_every: int = field(default=20, metadata={"help": "Steps between logged losses."})
    num_workers: int = field(default=2, metadata={"help": "Worker processes that load images, per process."})
    num_threads: int = field(default=0, metadata={"help": "CPU threads per process; 0 shares all cores."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Repository owner/name to publish the result in."})
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, needed to publish them."})
    report_to: str | None = field(default=None, metadata={"help": "Tracker known to Accelerate, such as tensorboard."})

    def __post_init__(self):
        for name, value in DEFAULTS.get(self.dataset, DEFAULTS["other"]).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.image_size is None:
            self.image_size = self.crop_size
        if self.warmup_steps is None:
            self.warmup_steps = self.max_steps // 20
        for name, share in (("eval_every", 4), ("save_every", 10)):
            if getattr(self, name) is None:
                setattr(self, name, max(self.max_steps // share, 1))
        if self.push_to_hub and not self.license:
            raise ValueError("license must be given to publish with push_to_hub, for instance apache-2.0 or other")
        positive = ("max_steps", "batch_size", "gradient_accumulation_steps", "learning_rate", "head_multiplier")
        positive += ("crop_size", "image_size", "eval_every", "save_every", "log_every")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.warmup_steps < self.max_steps:
            raise ValueError(f"warmup_steps must be in [0, max_steps={self.max_steps}), got {self.warmup_steps}")

    def settings(self, num_processes: int) -> dict:
        """What determines the weights a run ends with; a resumed run must agree on it."""
        free = {
            "output_dir",
            "data_root",
            "resume",
            "eval_every",
            "save_every",
            "log_every",
            "num_workers",
            "report_to",
        }
        free |= {"push_to_hub", "license"}
        return {name: value for name, value in asdict(self).items() if name not in free} | {
            "num_processes": num_processes
        }


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run."""
    (args,) = HfArgumentParser(TrainArguments).parse_args_into_dataclasses(arguments)
    started = time.monotonic()
    accelerator = build_accelerator(args)
    args.output_dir = choose_output_dir(args, accelerator)
    with accelerator.main_process_first():
        data = args.load_data()
        if accelerator.is_local_main_process:
            check_dataset(data)
    torch.manual_seed(args.seed)
    model, image_processor = build_model(args, data)
    check_classes(model, data)
    progress = train(args, accelerator, model, image_processor, data)
    accelerator.print("evaluating ...")
    matrix = evaluate(
        model, image_processor, data, accelerator, batch_size=args.batch_size, num_workers=args.num_workers
    )
    if accelerator.is_main_process:
        metrics = collect_metrics(matrix, data, progress, seconds=time.monotonic() - started)
        export(args, model, image_processor, data, matrix, metrics, progress)
        print_summary(args, data, matrix, metrics)
        if args.push_to_hub:
            print(f"published: {push_folder(args.output_dir, args.push_to_hub, license=args.license).commit_url}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def build_accelerator(args: TrainArguments) -> Accelerator:
    """Accelerator, CPU threads and determinism."""
    # Reusing the order in which gradients become ready needs no unused parameters; giving it up makes restarts exact.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=args.deterministic)]
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir or "runs",
        kwargs_handlers=handlers,
    )
    share_cpu_threads(accelerator, args.num_threads)
    torch.use_deterministic_algorithms(args.deterministic, warn_only=True)
    return accelerator


def choose_output_dir(args: TrainArguments, accelerator: Accelerator) -> str:
    """A folder that holds nothing yet, or with `--resume` the one that holds the run."""
    chosen = [args.output_dir]
    if accelerator.is_main_process:
        folder = Path(args.output_dir or f"runs/{Path(args.dataset).name}-{args.variant}")
        occupied = folder.is_dir() and any(folder.iterdir())
        number = 2
        while occupied and not args.resume and args.output_dir is None:
            numbered = folder.with_name(f"{folder.name.rsplit('.', 1)[0]}.{number}")
            occupied, folder = numbered.is_dir() and any(numbered.iterdir()), numbered
            number += 1
        chosen = [str(folder) if args.resume or not occupied else None, str(folder)]
    chosen = broadcast_object_list(chosen + [None] * (2 - len(chosen)))
    if chosen[0] is None:
        raise ValueError(
            f"output_dir must be new or empty, got {chosen[1]!r}: add --resume to go on with the run in it, or choose "
            "another"
        )
    if args.resume and latest_state(Path(chosen[0]) / "states") is None:
        raise ValueError(f"output_dir {chosen[0]!r} holds no saved state to resume; start the run without --resume")
    return chosen[0]


def build_model(args: TrainArguments, data: SegmentationData):
    """Model and image processor for the data set's classes."""
    id2label = dict(enumerate(data.class_names))
    fields = {
        "id2label": id2label,
        "label2id": {name: index for index, name in id2label.items()},
        "semantic_loss_ignore_index": data.ignore_index,
        "palette": [list(color) for color in data.palette],
    }
    if args.drop_path_rate is not None:
        fields["drop_path_rate"] = args.drop_path_rate
    size = {"shortest_edge": args.image_size, "longest_edge": 4 * args.image_size}
    if args.model is None:
        model = SegformerForSemanticSegmentation(SegformerConfig.for_variant(args.variant, **fields))
        initialize_as_published(model)
        return model, SegformerImageProcessor(size=size)
    model = AutoModelForSemanticSegmentation.from_pretrained(
        args.model, num_labels=len(id2label), ignore_mismatched_sizes=True, dtype=torch.float32, **fields
    )
    try:
        image_processor = AutoImageProcessor.from_pretrained(args.model)
    except OSError:  # some encoders come without one
        image_processor = SegformerImageProcessor()
    image_processor.size, image_processor.do_reduce_labels = size, False
    return model, image_processor


def build_loader(args: TrainArguments, accelerator: Accelerator, image_processor, data, start_step: int) -> DataLoader:
    """Micro-batches of this process from `start_step` on."""
    transform = TrainingTransform(
        scale=(4 * args.image_size, args.image_size),
        ratio_range=None if args.dataset == "scenes" else (0.5, 2.0),
        crop_size=(args.crop_size, args.crop_size),
        photometric=args.dataset != "scenes",
        mean=tuple(255 * mean for mean in image_processor.image_mean),
        std=tuple(255 * std for std in image_processor.image_std),
        ignore_index=data.ignore_index,
    )
    sampler = DrawSampler(
        args.batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        args.gradient_accumulation_steps,
        start_step=start_step,
        stop_step=args.max_steps,
    )
    samples = TrainingSamples(data, transform, args.seed)
    pin_memory = accelerator.device.type == "cuda"
    return DataLoader(samples, batch_sampler=sampler, num_workers=args.num_workers, pin_memory=pin_memory)


def train(args, accelerator: Accelerator, model, image_processor, data: SegmentationData) -> Progress:
    """Run the remaining steps; leaves the trained weights in `model`."""
    groups = parameter_groups(model, args.learning_rate, args.weight_decay, args.head_multiplier)
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
    states, settings = Path(args.output_dir) / "states", args.settings(accelerator.num_processes)
    model.to(accelerator.device)
    progress = Progress(settings=settings)
    if args.resume:
        progress = load_state(latest_state(states), model, optimizer, settings, accelerator.scaler)
        accelerator.print(f"resuming at step {progress.step}")
    wrapped, prepared = accelerator.prepare(model, optimizer)
    if args.report_to:
        accelerator.init_trackers("segformer", config=settings)
    loader = iter(build_loader(args, accelerator, image_processor, data, progress.step))
    model.train()
    losses, logged = [], time.monotonic()
    global_batch = args.batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    bar = tqdm(total=args.max_steps, initial=progress.step, unit="step", disable=not accelerator.is_main_process)
    while progress.step < args.max_steps:
        factor = poly_factor(progress.step, args.max_steps, args.warmup_steps)
        set_learning_rate(optimizer, factor)
        losses.append(take_step(args, accelerator, wrapped, prepared, loader, progress.step, data.ignore_index))
        progress.step += 1
        bar.update()
        finished = progress.step == args.max_steps
        if progress.step % args.log_every == 0 or finished:
            speed = global_batch * len(losses) / (time.monotonic() - logged)
            entry = log_losses(accelerator, losses, progress, factor * args.learning_rate)
            bar.set_postfix(
                loss=f"{entry['loss']:.3f}", lr=f"{entry['learning_rate']:.1e}", images_per_s=f"{speed:.1f}"
            )
            losses, logged = [], time.monotonic()
        if progress.step % args.eval_every == 0 and not finished:
            matrix = evaluate(model, image_processor, data, accelerator, batch_size=args.batch_size)
            log_evaluation(accelerator, matrix, progress, bar)
            logged = time.monotonic()
        if (progress.step % args.save_every == 0 or finished) and accelerator.is_main_process:
            save_state(states, model, optimizer, progress, accelerator.scaler)
    bar.close()
    accelerator.wait_for_everyone()
    return progress


def take_step(args, accelerator: Accelerator, model, optimizer, loader, step: int, ignore_index: int) -> torch.Tensor:
    """One optimizer step over all micro-batches and processes; returns this process's part of the mean loss."""
    batches = [next(loader) for _ in range(args.gradient_accumulation_steps)]
    batches = [{name: tensor.to(accelerator.device) for name, tensor in batch.items()} for batch in batches]
    # Dividing by the pixels of the whole step gives the same gradient however the step is cut into pieces.
    count = sum(count_pixels(batch["labels"], ignore_index) for batch in batches)
    count = accelerator.reduce(count, "sum").clamp(min=1)
    total = torch.zeros((), device=accelerator.device)
    for micro_step, batch in enumerate(batches):
        torch.manual_seed(step_seed(args.seed, step, micro_step, accelerator.process_index))
        last = micro_step == len(batches) - 1
        with _sync(accelerator, model, last):
            with accelerator.autocast():
                logits = model(batch["pixel_values"]).logits
            loss = cross_entropy_sum(logits, batch["labels"], ignore_index) / count
            # Processes average their gradients; the sum is wanted.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    optimizer.step()
    optimizer.zero_grad()
    return total


def _sync(accelerator: Accelerator, model, last: bool):
    return accelerator.no_sync(model) if not last else torch.enable_grad()


def log_losses(accelerator: Accelerator, losses: list[torch.Tensor], progress: Progress, learning_rate: float) -> dict:
    """Log the mean loss since the last call; stops a run whose loss is no number any more."""
    loss = accelerator.reduce(torch.stack(losses), "sum").mean().item()
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss} before step {progress.step}: lower --learning_rate, or train with "
            "--mixed_precision no; the last saved state is kept"
        )
    entry = {"step": progress.step, "loss": loss, "learning_rate": learning_rate}
    progress.history.append(entry)
    accelerator.log({"loss": loss, "learning_rate": learning_rate}, step=progress.step)
    return entry


def log_evaluation(accelerator: Accelerator, matrix: ConfusionMatrix, progress: Progress, bar) -> None:
    """Log the metrics of an evaluation during training."""
    metrics = matrix.compute()
    progress.history.append({"step": progress.step, "mean_iou": metrics["mean_iou"]})
    accelerator.log({name: metrics[name] for name in ("mean_iou", "overall_accuracy")}, step=progress.step)
    if accelerator.is_main_process:
        bar.write(f"step {progress.step}: mIoU {100 * metrics['mean_iou']:.2f}")


def collect_metrics(matrix: ConfusionMatrix, data: SegmentationData, progress: Progress, seconds: float) -> dict:
    """Everything metrics.json holds."""
    metrics = matrix.compute()
    ious = dict(zip(data.class_names, metrics["per_category_iou"], strict=True))
    if data.thin_classes:
        thin = [ious[name] for name in data.thin_classes]
        metrics["mean_iou_thin_classes"] = sum(thin) / len(thin)
    metrics |= {"class_names": list(data.class_names), "step": progress.step, "seconds": round(seconds, 1)}
    progress.history.append({"step": progress.step, "mean_iou": metrics["mean_iou"]})
    return metrics


def export(args, model, image_processor, data, matrix, metrics, progress) -> None:
    """Put everything into the output folder; each file appears whole."""
    output_dir = Path(args.output_dir)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".export-") as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        write_metrics(metrics, folder / "metrics.json")
        (folder / "per_class_iou.txt").write_text(matrix.table(data.class_names) + "\n")
        learning_curve(progress.history, folder / "learning_curve.png")
        pictures = draw_pictures(model, image_processor, data, folder / "overlays")
        card = model_card(
            args.output_dir,
            data.name,
            metrics,
            matrix.table(data.class_names),
            {name: value for name, value in progress.settings.items() if value is not None},
            pictures[0],
            config=model.config,
            license=args.license,
            protocol=f"shorter side {args.image_size} pixels, ratio kept, single scale, at the annotation's size",
        )
        (folder / "README.md").write_text(card)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target = output_dir / path.relative_to(folder)
                target.parent.mkdir(exist_ok=True)
                os.replace(path, target)


def draw_pictures(model, image_processor, data: SegmentationData, folder: Path) -> list[str]:
    """Panels of image, truth and prediction for evenly spaced validation images."""
    folder.mkdir()
    rows = data.validation
    indices = sorted({round(i * (len(rows) - 1) / max(PICTURES - 1, 1)) for i in range(PICTURES)})
    names = []
    for index in indices:
        image, label = data.read_sample(rows[index])
        prediction = predict_label_map(model, image_processor, image)
        name = f"{folder.name}/{Path(rows[index]['file_name']).stem}.png"
        panel(image, label, prediction, data.class_names, data.palette, path=folder.parent / name)
        names.append(name)
    return names


def print_summary(args, data: SegmentationData, matrix: ConfusionMatrix, metrics: dict) -> None:
    """Results, and how to go on."""
    print(f"\n{matrix.table(data.class_names)}\n")
    if "mean_iou_thin_classes" in metrics:
        print(f"thin classes ({', '.join(data.thin_classes)}): mIoU {100 * metrics['mean_iou_thin_classes']:.2f}")
    print(
        f"mIoU {100 * metrics['mean_iou']:.2f} after {metrics['step']} steps, {metrics['seconds']:.0f} s. "
        f"Everything is in {args.output_dir}/: look at overlays/ and learning_curve.png.\n\n"
        f"Use it:\n"
        f"    import hf_segformer\n"
        f"    from transformers import pipeline\n"
        f'    regions = pipeline("image-segmentation", model="{args.output_dir}")("image.jpg")\n'
        f"or\n"
        f"    python examples/predict.py --model {args.output_dir} IMAGE_OR_FOLDER --output_dir predictions"
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FloatingPointError, PushError) as error:
        sys.exit(f"error: {error}")

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Train SegFormer for semantic segmentation, on one process or many.

    accelerate launch examples/train.py
    accelerate launch examples/train.py --recipe cityscapes-b2 --data_root cityscapes --encoder mit_b2.pth
    accelerate launch examples/train.py --dataset camvid --data_root CamVid --max_steps 2000
    accelerate launch examples/train.py --dataset folder --data_root my_pictures --model nvidia/mit-b0

Without arguments it draws a data set of street scenes, trains B0 on it from scratch and evaluates. `--recipe list`
shows the published recipes; a recipe sets the default of every flag, and its global batch is kept on any number of
processes. The output folder gets weights, configuration, processor, model card, metrics, the recipe as it was
followed, learning curve and overlay pictures, and loads with `AutoModelForSemanticSegmentation.from_pretrained`.

A run is a function of (seed, step): what a step computes depends on nothing else. A run that was killed goes on with
`--resume` and ends with the weights it would have had.
"""

import json
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.data import (
    DrawSampler,
    SegmentationData,
    TrainingSamples,
    collate_samples,
    undecoded,
)
from hf_segformer.data.workers import Collate, ErrorsAsValues, batches_of
from hf_segformer.evaluation import check_classes, evaluate, share_cpu_threads
from hf_segformer.files import replace_path
from hf_segformer.hub import PushError, model_card, push_folder
from hf_segformer.hub_errors import load_config, load_model, load_processor
from hf_segformer.inference import segment
from hf_segformer.launch import (
    describe_launch,
    launched_accumulation,
    make_accelerator,
    refuse_sharding,
)
from hf_segformer.metrics import ConfusionMatrix, write_metrics
from hf_segformer.protocols import Protocol
from hf_segformer.recipes import Recipe, recipe_table
from hf_segformer.submission import plain_stem
from hf_segformer.texts import listed, without_paths
from hf_segformer.training import (
    DivergenceGuard,
    Progress,
    SegmentationLoss,
    TrainArguments,
    data_settings,
    find_state,
    freeze_batch_norm,
    initialize_as_published,
    load_encoder,
    load_state,
    parameter_groups,
    poly_factor,
    read_class_weights,
    run_folder,
    save_state,
    set_learning_rate,
    step_seed,
    synchronizes_batch_norm,
)
from hf_segformer.visualization import learning_curve, panel

PICTURES = 6


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run."""
    (args,) = HfArgumentParser(TrainArguments).parse_args_into_dataclasses(arguments)
    if args.recipe == "list":
        print(recipe_table())
        return
    accelerator = build_accelerator(args)
    default = f"runs/{args.recipe or f'{Path(args.dataset).name}-{args.variant}'}"
    with run_folder(args.output_dir, default, args.resume, accelerator, args.take_over) as args.output_dir:
        run(args, accelerator)


def run(args: TrainArguments, accelerator: Accelerator) -> None:
    """Load, train, evaluate, export, and publish."""
    started = time.monotonic()
    accelerator.project_configuration.set_directories(args.output_dir)
    state = find_last_state(args, accelerator) if args.resume else None
    with accelerator.main_process_first():
        data = args.load_data()
    args.check_data(data, ("train", "validation"), accelerator, args.on_bad_sample)
    torch.manual_seed(args.seed)
    recipe = args.effective_recipe(accelerator.num_processes)
    model, image_processor = build_model(args, recipe, data, accelerator)
    check_classes(model, data)
    recipe = recipe.with_config(model.config)
    progress = train(args, recipe, accelerator, model, image_processor, data, state)
    accelerator.print("evaluating ...")
    matrix = evaluate_now(args, accelerator, model, image_processor, data, args.tta)
    if accelerator.is_main_process:
        metrics = collect_metrics(matrix, data, progress, seconds=time.monotonic() - started)
        ran = {"launch": describe_launch(accelerator), "changes": progress.changes}
        ran["bad_samples"] = progress.bad_samples
        export(args, recipe, model, image_processor, data, matrix, metrics, progress, ran)
        print_summary(args, recipe, data, matrix, metrics)
        if args.push_to_hub:
            print(f"published: {push_folder(args.output_dir, args.push_to_hub, license=args.license).commit_url}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def build_accelerator(args: TrainArguments) -> Accelerator:
    """Accelerator, CPU threads, determinism, and how the global batch is made up."""
    # Reusing the order in which gradients become ready needs no unused parameters; giving it up makes restarts exact.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=args.deterministic)]
    accelerator = make_accelerator(
        args.mixed_precision, log_with=args.report_to, project_dir=args.output_dir or "runs", kwargs_handlers=handlers
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


def find_last_state(args: TrainArguments, accelerator: Accelerator) -> Path:
    """The state to resume from, the same for all processes; damaged ones are named and passed over."""
    states, found = Path(args.output_dir) / "states", [None]
    if accelerator.is_main_process:
        found = [find_state(states)]
    (found,) = broadcast_object_list(found)
    for reason in found.passed_over:
        accelerator.print(f"warning: saved state passed over: {reason}")
    if found.path is None:
        raise ValueError(f"no saved state in {states} can be resumed: {'; '.join(found.passed_over)}")
    if accelerator.is_main_process:
        found.set_aside()
    return found.path


def synchronizes(args: TrainArguments, accelerator: Accelerator) -> bool:
    """Whether BatchNorm shall see the images of all processes together."""
    wanted = args.sync_batch_norm and not args.freeze_batch_norm
    return synchronizes_batch_norm(wanted, accelerator.num_processes, accelerator.device.type)


def build_model(args: TrainArguments, recipe: Recipe, data: SegmentationData, accelerator: Accelerator):
    """Model and image processor for the data set's classes."""
    id2label = dict(enumerate(data.class_names))
    if args.model is not None and data.num_classes == 2 and load_config(args.model).num_labels == 1:
        id2label = {0: data.class_names[1]}  # its one logit tells the second class from the first
    fields = {
        "id2label": id2label,
        "label2id": {name: index for index, name in id2label.items()},
        "semantic_loss_ignore_index": data.ignore_index,
        "palette": [list(color) for color in data.palette],
    }
    image_processor = SegformerImageProcessor()
    if args.model is None:
        fields |= recipe.config_fields()
        model = SegformerForSemanticSegmentation(SegformerConfig.for_variant(args.variant, **fields))
        initialize_as_published(model, recipe.initialization)
        if args.encoder is not None and not args.resume:
            accelerator.print(load_encoder(model, args.encoder))
        elif args.recipe and args.encoder is None:
            accelerator.print("note: the published run started from an ImageNet encoder, which --encoder takes")
    else:
        if args.drop_path_rate is not None:
            fields["drop_path_rate"] = args.drop_path_rate
        model = load_model(
            args.model, num_labels=len(id2label), ignore_mismatched_sizes=True, dtype=torch.float32, **fields
        )
        image_processor = load_processor(args.model, default=image_processor)  # some encoders come without one
    image_processor.size = {"shortest_edge": recipe.image_size, "longest_edge": recipe.long_side}
    image_processor.do_reduce_labels = data.annotation_format.reduce_zero_label
    protocol = Protocol.named(args.protocol)
    if protocol.resize == "keep-ratio":
        image_processor.keep_ratio, image_processor.antialias = True, False
        image_processor.size_divisor = protocol.size_divisor
    return model, image_processor


def build_loader(args: TrainArguments, recipe: Recipe, accelerator, image_processor, data, start_step) -> DataLoader:
    """Micro-batches of this process from `start_step` on."""
    mean, std = (
        [255 * value for value in values] for values in (image_processor.image_mean, image_processor.image_std)
    )
    sampler = DrawSampler(
        args.batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        args.gradient_accumulation_steps,
        start_step=start_step,
        stop_step=args.max_steps,
    )
    samples = TrainingSamples(data, recipe.transform(mean, std, data.ignore_index), args.seed, args.on_bad_sample)
    pin_memory = accelerator.device.type == "cuda"
    options = {"num_workers": args.num_workers, "pin_memory": pin_memory, "collate_fn": Collate(collate_samples)}
    return DataLoader(ErrorsAsValues(samples), batch_sampler=sampler, **options)


def build_loss(args: TrainArguments, accelerator: Accelerator, data: SegmentationData) -> SegmentationLoss:
    """The loss, with class weights that the main process reads or computes."""
    weights = [None]
    if args.class_weights is not None:
        if accelerator.is_main_process:
            weights = [read_class_weights(args.class_weights, data, args.on_bad_sample)]
        weights = broadcast_object_list(weights)
        accelerator.print("class weights:", ", ".join(f"{weight:.3g}" for weight in weights[0]))
    return args.build_loss(data.ignore_index, weights[0])


def train(
    args, recipe: Recipe, accelerator: Accelerator, model, image_processor, data: SegmentationData, state: Path | None
) -> Progress:
    """Run the remaining steps, from a saved state if there is one; leaves the trained weights in `model`."""
    if synchronizes(args, accelerator):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    groups = parameter_groups(
        model, recipe.learning_rate, recipe.weight_decay, recipe.head_multiplier, recipe.decay_stage_norms
    )
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    loss_function = build_loss(args, accelerator, data)
    settings = args.settings(accelerator.num_processes) | data_settings(data)
    if loss_function.class_weights is not None:
        settings["class_weight_values"] = torch.as_tensor(loss_function.class_weights).tolist()
    states = Path(args.output_dir) / "states"
    model.to(accelerator.device)
    progress = Progress(settings=settings)
    if state is not None:
        progress = load_state(state, model, optimizer, settings, accelerator.scaler, args.allow_changes)
        accelerator.print(f"resuming at step {progress.step}")
        if progress.step > args.max_steps:
            raise ValueError(f"max_steps must be at least the {progress.step} steps of {state}, got {args.max_steps}")
    wrapped, prepared = accelerator.prepare(model, optimizer)
    if args.report_to:
        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
            for name, value in settings.items()
        }
        accelerator.init_trackers("segformer", config=plain)
    loader = build_loader(args, recipe, accelerator, image_processor, data, progress.step)
    guard = DivergenceGuard(accelerator, model, optimizer, partial(files_of_step, loader), progress.step, state)
    batches = batches_of(loader)
    losses, timed = [], (progress.step, time.monotonic())
    bar = tqdm(total=args.max_steps, initial=progress.step, unit="step", disable=not accelerator.is_main_process)
    while progress.step < args.max_steps:
        model.train()
        if args.freeze_batch_norm:
            freeze_batch_norm(model)
        factor = poly_factor(
            progress.step,
            recipe.max_steps,
            recipe.warmup_steps,
            recipe.warmup_ratio,
            recipe.power,
            recipe.decay_from_start,
        )
        set_learning_rate(optimizer, factor)
        loss = take_step(args, accelerator, wrapped, prepared, batches, progress, loss_function)
        guard.record(loss, prepared.step_was_skipped)
        losses += [] if prepared.step_was_skipped else [loss]
        bar.update()
        finished = progress.step == args.max_steps
        logs, evaluates, saves = (
            finished or progress.step % every == 0 for every in (args.log_every, args.eval_every, args.save_every)
        )
        if logs or evaluates or saves:
            guard.look()
            gather_bad_samples(accelerator, progress)
        if logs and losses:
            speed = args.global_batch_size * (progress.step - timed[0]) / (time.monotonic() - timed[1])
            entry = log_losses(accelerator, losses, progress, factor * args.learning_rate)
            bar.set_postfix(
                loss=f"{entry['loss']:.3f}", lr=f"{entry['learning_rate']:.1e}", images_per_s=f"{speed:.1f}"
            )
            losses, timed = [], (progress.step, time.monotonic())
        if evaluates and not finished:
            protocol = Protocol.named(args.protocol)
            matrix = evaluate(model, image_processor, data, accelerator, batch_size=args.batch_size, protocol=protocol)
            log_evaluation(accelerator, matrix, progress, bar)
            timed = progress.step, time.monotonic()
        if saves:
            guard.last_state = states / f"step-{progress.step:08d}"
            if accelerator.is_main_process:
                save_state(states, model, optimizer, progress, accelerator.scaler)
    bar.close()
    accelerator.wait_for_everyone()
    return progress


def files_of_step(loader: DataLoader, step: int) -> list[str]:
    """Names of the pictures that this process reads for an optimizer step, counted from 0."""
    return [loader.dataset.samples.file_of(draw) for draw in loader.batch_sampler.draws_of(step)]


def gather_bad_samples(accelerator: Accelerator, progress: Progress) -> None:
    """Give all processes the list of samples that any of them has passed over so far, by draw."""
    found = {(sample["draw"], sample["attempt"]): sample for sample in gather_object(progress.bad_samples)}
    progress.bad_samples = [found[key] for key in sorted(found)]


def take_step(
    args, accelerator: Accelerator, model, optimizer, loader, progress: Progress, loss_function: SegmentationLoss
) -> torch.Tensor:
    """One optimizer step over all micro-batches and processes; returns this process's part of the mean loss."""
    batches = [next(loader) for _ in range(args.gradient_accumulation_steps)]
    for batch in batches:
        progress.bad_samples += batch["bad_samples"]
        for sample in batch["bad_samples"]:
            tqdm.write(f"passed over: {sample['reason']}")
    batches = [{name: batch[name].to(accelerator.device) for name in ("pixel_values", "labels")} for batch in batches]
    # Dividing by the pixels of the whole step gives the same gradient however the step is cut into pieces.
    counts = accelerator.reduce(sum(loss_function.counts(batch["labels"]) for batch in batches), "sum")
    total = torch.zeros((), device=accelerator.device)
    for micro_step, batch in enumerate(batches):
        torch.manual_seed(step_seed(args.seed, progress.step, micro_step, accelerator.process_index))
        last = micro_step == len(batches) - 1
        with _sync(accelerator, model, last):
            with accelerator.autocast():
                logits = model(batch["pixel_values"]).logits
            loss = loss_function(logits, batch["labels"], counts)
            # Processes average their gradients; the sum is wanted.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    optimizer.step()
    optimizer.zero_grad()
    progress.step += 1
    return total


def _sync(accelerator: Accelerator, model, last: bool):
    return accelerator.no_sync(model) if not last else torch.enable_grad()


def evaluate_now(args, accelerator: Accelerator, model, image_processor, data, tta: str = "none") -> ConfusionMatrix:
    """Evaluate by the run's protocol."""
    return evaluate(
        model,
        image_processor,
        data,
        accelerator,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        protocol=Protocol.named(args.protocol, tta),
    )


def log_losses(accelerator: Accelerator, losses: list[torch.Tensor], progress: Progress, learning_rate: float) -> dict:
    """Log the mean loss since the last call."""
    loss = accelerator.reduce(torch.stack(losses), "sum").mean().item()
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
    metrics["bad_samples"] = len(progress.bad_samples)
    progress.history.append({"step": progress.step, "mean_iou": metrics["mean_iou"]})
    return metrics


def export(args, recipe: Recipe, model, image_processor, data, matrix, metrics, progress, ran: dict) -> None:
    """Put everything into the output folder; each file appears whole."""
    output_dir, protocol = Path(args.output_dir), Protocol.named(args.protocol, args.tta)
    for leftover in output_dir.glob(".export-*"):  # of a run that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    size = f"shorter side {args.image_size} pixels, ratio kept; " if protocol.resize == "processor" else ""
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".export-") as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        write_metrics(metrics, folder / "metrics.json")
        public = without_paths(recipe.to_dict() | ran, folders=[args.data_root, args.output_dir])
        (folder / "recipe.json").write_text(json.dumps(public, indent=1) + "\n", encoding="utf-8")
        (folder / "per_class_iou.txt").write_text(matrix.table(data.class_names) + "\n", encoding="utf-8")
        learning_curve(progress.history, folder / "learning_curve.png")
        pictures = draw_pictures(args, model, image_processor, data, folder / "overlays")
        of_results = ("published", "tta", "aligned_protocol")
        followed = {name: value for name, value in recipe.to_dict().items() if name not in of_results}
        settings = {name: value for name, value in progress.settings.items() if value is not None}
        card = model_card(
            args.output_dir,
            data.name,
            metrics,
            matrix.table(data.class_names),
            {"recipe": recipe.name} | settings | followed,
            pictures[0],
            config=model.config,
            license=args.license,
            protocol=size + protocol.describe(),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target = output_dir / path.relative_to(folder)
                target.parent.mkdir(exist_ok=True)
                replace_path(path, target)


def draw_pictures(args, model, image_processor, data: SegmentationData, folder: Path) -> list[str]:
    """Panels of image, truth and prediction for evenly spaced validation images."""
    folder.mkdir()
    rows = undecoded(data.validation)
    indices = sorted({round(i * (len(rows) - 1) / max(PICTURES - 1, 1)) for i in range(PICTURES)})
    names = []
    for index in indices:
        image, label = data.read_sample(rows[index], "validation", index)
        prediction = segment(model, image_processor, image, Protocol.named(args.protocol))
        stem = plain_stem(rows[index]["file_name"])
        name = f"{folder.name}/{stem}.png"
        if name in names:
            name = f"{folder.name}/{stem}_{index}.png"
        panel(image, label, prediction, data.class_names, data.palette, path=folder.parent / name)
        names.append(name)
    return names


def print_summary(args, recipe: Recipe, data: SegmentationData, matrix: ConfusionMatrix, metrics: dict) -> None:
    """Results, and how to go on."""
    print(f"\n{matrix.table(data.class_names)}\n")
    if metrics["bad_samples"]:
        print(f"{metrics['bad_samples']} samples were passed over and replaced by others; recipe.json lists them")
    if "mean_iou_thin_classes" in metrics:
        print(f"thin classes ({listed(data.thin_classes)}): mIoU {100 * metrics['mean_iou_thin_classes']:.2f}")
    if recipe.published.mean_iou is not None:
        figure = f"{recipe.published.mean_iou:.2f} by {args.base_recipe.protocol}"
        print(f"published for recipe {recipe.name}, flavor {recipe.flavor}: mIoU {figure}")
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
    sys.stdout.reconfigure(errors="backslashreplace")  # class names that the terminal cannot show
    try:
        main()
    except (ValueError, FloatingPointError, PushError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last saved state", file=sys.stderr)
        sys.exit(130)

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The folder a training run ends with: weights, configuration, processor, model card, metrics, recipe and pictures."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.metrics import ConfusionMatrix, write_metrics
from ..evaluation.protocols import Protocol
from ..files import replace_path
from ..hub.model_card import model_card
from ..reporting import REPORT_NAME, write_report
from ..texts import listed, without_paths
from ..visualization import learning_curve, panel
from .lora import write_adapter
from .report import left_out, run_report
from .watching import run_pictures

if TYPE_CHECKING:
    from .run import Run


def collect_metrics(run: Run, matrix: ConfusionMatrix) -> dict[str, Any]:
    """Everything metrics.json holds.

    Args:
        run: Run that has taken all its steps.
        matrix: Evaluation of what is exported.
    """
    data, progress, metrics = run.data, run.progress, matrix.compute(dice=True) | run.findings.metrics()
    ious = dict(zip(data.class_names, metrics["per_category_iou"], strict=True))
    if data.thin_classes:
        thin = [ious[name] for name in data.thin_classes]
        metrics["mean_iou_thin_classes"] = sum(thin) / len(thin)
    seconds = time.monotonic() - run.started
    metrics |= {"class_names": list(data.class_names), "seconds": round(seconds, 1)}
    metrics |= vars(run.exported) | {"steps_taken": progress.step, "best": progress.best}
    metrics["bad_samples"] = len(progress.bad_samples)
    return metrics


def write_model_folder(run: Run, matrix: ConfusionMatrix, metrics: dict[str, Any]) -> None:
    """Put everything into the run's output folder; each file appears whole.

    Args:
        run: Run that has taken all its steps.
        matrix: Its last evaluation.
        metrics: What `collect_metrics` made of it.
    """
    output_dir = run.folder
    for leftover in output_dir.glob(".export-*"):  # of a run that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".export-") as temporary:
        folder, table = Path(temporary), matrix.table(run.data.class_names)
        run.model.save_pretrained(folder)
        run.image_processor.save_pretrained(folder)
        if run.adapter is not None and run.adapter_weights is not None:
            write_adapter(run.adapter, run.adapter_weights, folder / "adapter")
        write_metrics(metrics, folder / "metrics.json")
        folders = [run.args.data, run.args.data_root, run.args.output_dir]
        public = without_paths(run.recipe.to_dict() | run.describe() | {"left_out": left_out(run)}, folders)
        (folder / "recipe.json").write_text(json.dumps(public, indent=1) + "\n", encoding="utf-8")
        (folder / "per_class_iou.txt").write_text(table + "\n", encoding="utf-8")
        learning_curve(run.progress.history, folder / "learning_curve.png")
        pictures = draw_pictures(run, folder / "overlays")
        run.findings.write(folder)
        (folder / "README.md").write_text(_card(run, metrics, table, pictures[0]), encoding="utf-8")
        run.findings.remove_panels(output_dir)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target = output_dir / path.relative_to(folder)
                target.parent.mkdir(exist_ok=True)
                replace_path(path, target)
    write_report(run_report(run, matrix, metrics, pictures), output_dir / REPORT_NAME)


def _card(run: Run, metrics: dict[str, Any], table: str, picture: str) -> str:
    args, recipe = run.args, run.recipe
    protocol = Protocol.named(recipe.protocol, args.tta)
    size = f"shorter side {args.image_size} pixels, ratio kept; " if protocol.resize == "processor" else ""
    of_results = ("published", "tta", "aligned_protocol")
    followed = {name: value for name, value in recipe.to_dict().items() if name not in of_results}
    settings = {name: value for name, value in run.progress.settings.items() if value is not None}
    return model_card(
        str(args.output_dir),
        run.data.name,
        metrics,
        table,
        {"recipe": recipe.name, "exported weights": run.exported.describe(run.progress.step)} | settings | followed,
        picture,
        config=run.model.config,
        license=args.license,
        protocol=size + protocol.describe(),
    )


def draw_pictures(run: Run, folder: Path) -> list[str]:
    """Write panels of image, truth and prediction for evenly spaced validation images.

    Args:
        run: Run that has taken all its steps.
        folder: New folder for them.

    Returns:
        Their names, relative to the folder's parent.
    """
    folder.mkdir()
    data, names = run.data, []
    for name, image, truth, prediction in run_pictures(run):
        names.append(f"{folder.name}/{name}.png")
        panel(image, truth, prediction, data.class_names, data.palette, path=folder.parent / names[-1])
    return names


def print_summary(run: Run, matrix: ConfusionMatrix, metrics: dict[str, Any]) -> None:
    """Print the results, and how to go on."""
    recipe, folder = run.recipe, run.args.output_dir
    print(f"\n{matrix.table(run.data.class_names)}\n\n{run.findings.report()}")
    if metrics["bad_samples"]:
        print(f"{metrics['bad_samples']} samples were passed over and replaced by others; recipe.json lists them")
    if "mean_iou_thin_classes" in metrics:
        print(f"thin classes ({listed(run.data.thin_classes)}): mIoU {100 * metrics['mean_iou_thin_classes']:.2f}")
    if recipe.published.mean_iou is not None:
        figure = f"{recipe.published.mean_iou:.2f} by {run.args.base_recipe.protocol}"
        print(f"published for recipe {recipe.name}, flavor {recipe.flavor}: mIoU {figure}")
    if metrics["steps_taken"] < recipe.max_steps:
        print(f"stopped after {metrics['steps_taken']} of {recipe.max_steps} steps: patience={run.args.patience}")
    print(f"exported weights: {run.exported.describe(metrics['steps_taken'])}")
    print(
        f"mIoU {100 * metrics['mean_iou']:.2f}, mDice (F1) {100 * metrics['mean_dice']:.2f} "
        f"after {metrics['step']} steps, {metrics['seconds']:.0f} s. "
        f"Everything is in {folder}/: look at {REPORT_NAME}.\n\n"
        f"Use it:\n"
        f"    import hf_segformer\n"
        f"    from transformers import pipeline\n"
        f'    regions = pipeline("image-segmentation", model="{folder}")("image.jpg")\n'
        f"or\n"
        f"    python -m hf_segformer predict --model {folder} IMAGE_OR_FOLDER --output_dir predictions"
    )

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

from ..data import undecoded
from ..evaluation.inference import segment
from ..evaluation.metrics import ConfusionMatrix, write_metrics
from ..evaluation.protocols import Protocol
from ..evaluation.submission import plain_stem
from ..files import replace_path
from ..hub.model_card import model_card
from ..texts import listed, without_paths
from ..visualization import learning_curve, panel

if TYPE_CHECKING:
    from .run import Run

PICTURES = 6


def collect_metrics(run: Run, matrix: ConfusionMatrix) -> dict[str, Any]:
    """Everything metrics.json holds; the last evaluation is added to the run's history.

    Args:
        run: Run that has taken all its steps.
        matrix: Its last evaluation.
    """
    data, progress, metrics = run.data, run.progress, matrix.compute()
    ious = dict(zip(data.class_names, metrics["per_category_iou"], strict=True))
    if data.thin_classes:
        thin = [ious[name] for name in data.thin_classes]
        metrics["mean_iou_thin_classes"] = sum(thin) / len(thin)
    seconds = time.monotonic() - run.started
    metrics |= {"class_names": list(data.class_names), "step": progress.step, "seconds": round(seconds, 1)}
    metrics["bad_samples"] = len(progress.bad_samples)
    progress.history.append({"step": progress.step, "mean_iou": metrics["mean_iou"]})
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
        write_metrics(metrics, folder / "metrics.json")
        folders = [run.args.data, run.args.data_root, run.args.output_dir]
        left_out = {"left_out": [fault.within(run.args.data or "") for fault in run.data.left_out]}
        public = without_paths(run.recipe.to_dict() | run.describe() | left_out, folders)
        (folder / "recipe.json").write_text(json.dumps(public, indent=1) + "\n", encoding="utf-8")
        (folder / "per_class_iou.txt").write_text(table + "\n", encoding="utf-8")
        learning_curve(run.progress.history, folder / "learning_curve.png")
        pictures = draw_pictures(run, folder / "overlays")
        (folder / "README.md").write_text(_card(run, metrics, table, pictures[0]), encoding="utf-8")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target = output_dir / path.relative_to(folder)
                target.parent.mkdir(exist_ok=True)
                replace_path(path, target)


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
        {"recipe": recipe.name} | settings | followed,
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
    data, rows, names = run.data, undecoded(run.data.validation), []
    indices = sorted({round(i * (len(rows) - 1) / max(PICTURES - 1, 1)) for i in range(PICTURES)})
    for index in indices:
        image, label = data.read_sample(rows[index], "validation", index)
        prediction = segment(run.model, run.image_processor, image, Protocol.named(run.recipe.protocol))
        stem = plain_stem(rows[index]["file_name"])
        name = f"{folder.name}/{stem}.png"
        if name in names:
            name = f"{folder.name}/{stem}_{index}.png"
        panel(image, label, prediction, data.class_names, data.palette, path=folder.parent / name)
        names.append(name)
    return names


def print_summary(run: Run, matrix: ConfusionMatrix, metrics: dict[str, Any]) -> None:
    """Print the results, and how to go on."""
    recipe, folder = run.recipe, run.args.output_dir
    print(f"\n{matrix.table(run.data.class_names)}\n")
    if metrics["bad_samples"]:
        print(f"{metrics['bad_samples']} samples were passed over and replaced by others; recipe.json lists them")
    if "mean_iou_thin_classes" in metrics:
        print(f"thin classes ({listed(run.data.thin_classes)}): mIoU {100 * metrics['mean_iou_thin_classes']:.2f}")
    if recipe.published.mean_iou is not None:
        figure = f"{recipe.published.mean_iou:.2f} by {run.args.base_recipe.protocol}"
        print(f"published for recipe {recipe.name}, flavor {recipe.flavor}: mIoU {figure}")
    print(
        f"mIoU {100 * metrics['mean_iou']:.2f} after {metrics['step']} steps, {metrics['seconds']:.0f} s. "
        f"Everything is in {folder}/: look at overlays/ and learning_curve.png.\n\n"
        f"Use it:\n"
        f"    import hf_segformer\n"
        f"    from transformers import pipeline\n"
        f'    regions = pipeline("image-segmentation", model="{folder}")("image.jpg")\n'
        f"or\n"
        f"    python -m hf_segformer predict --model {folder} IMAGE_OR_FOLDER --output_dir predictions"
    )

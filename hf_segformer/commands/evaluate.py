# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model on a data set, on one process or many.

Every image is counted once, at the size of its annotation, so any number of processes gives the same figures.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataArguments, SegmentationData
from ..evaluation.findings import Findings
from ..evaluation.loop import check_classes, evaluate, share_cpu_threads
from ..evaluation.metrics import ConfusionMatrix, write_metrics
from ..evaluation.pictures import ShownPicture, shown_pictures
from ..evaluation.protocols import ProtocolArguments
from ..evaluation.robustness import average_scores, chosen_corruptions, robustness_plot, robustness_table
from ..evaluation.submission import prediction_names, save_submission_png
from ..files import atomic_file
from ..reporting import REPORT_NAME, Report, worst_pictures, write_report
from ..runtimes import ExportedModel, load_segmenter
from ..texts import without_paths
from ..training.launch import make_accelerator
from ..visualization import confusion_matrix_plot, panel, per_class_bars, save_label_png
from .parser import Parser


@dataclass(kw_only=True)
class EvaluateArguments(ProtocolArguments, DataArguments):
    """Command line of `evaluate`; every flag is a field."""

    model: str = field(metadata={"help": "Folder or Hub id of the model, or an exported file: .onnx, .xml or .pt2."})
    runtime: str | None = field(
        default=None,
        metadata={
            "help": "torch, onnx or openvino; the file's if left out. A folder's onnx/model.onnx is then taken."
        },
    )
    split: str = field(default="validation", metadata={"help": "validation or train."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Where metrics.json, pictures.csv and worst/ go; the current folder if left out."},
    )
    plots: bool = field(default=False, metadata={"help": "Also draw per_class_iou.png and confusion_matrix.png."})
    boundary_iou: bool = field(
        default=False, metadata={"help": "Also the boundary IoU: that of the pixels near the outlines of classes."}
    )
    save_predictions: str | None = field(
        default=None, metadata={"help": "Folder for the label maps, as PNGs of class ids in the data set's colours."}
    )
    submission: str | None = field(
        default=None, metadata={"help": "Folder for the label maps as the data set's benchmark server takes them."}
    )
    corruption: str | None = field(
        default=None, metadata={"help": "Evaluate on corrupted images too: all, or a name such as gaussian_noise."}
    )
    severity: str = field(
        default="all", metadata={"help": "1 to 5; all takes those the paper averages: 1-3 for noise, otherwise 1-5."}
    )
    frost_textures: str | None = field(
        default=None, metadata={"help": "Folder with ImageNet-C's photographs of frost; drawn if left out."}
    )
    batch_size: int = field(default=8, metadata={"help": "Images per process and forward pass."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, fp16 or bf16; what `accelerate config` says if left out, else no."}
    )
    num_workers: int = field(default=2, metadata={"help": "Worker processes that load images, per process."})
    num_threads: int | None = field(
        default=None,
        metadata={
            "help": "CPU threads per process; 0 shares all cores, as is done if OMP_NUM_THREADS gives no number."
        },
    )


class PredictionFiles:
    """Writes label maps as they come: for people, and for a benchmark server."""

    def __init__(self, args: EvaluateArguments, data: SegmentationData):
        self.palette, self.submission_ids, self.folders = data.palette, data.submission_ids, {}
        split = getattr(data, args.split)
        if args.save_predictions is not None:
            names = prediction_names(split["file_name"], keep_folders=True)
            self.folders["labels"] = Path(args.save_predictions), names
        if args.submission is not None:
            self.folders["submission"] = Path(args.submission), prediction_names(split["file_name"])

    def __call__(self, file_name: str, label_map: np.ndarray) -> None:
        """Write one label map."""
        for kind, (folder, names) in self.folders.items():
            if kind == "labels":
                save_label_png(folder / names[file_name], label_map, self.palette)
            else:
                save_submission_png(folder / names[file_name], label_map, self.submission_ids)


def main(arguments: Sequence[str], prog: str | None = None) -> None:
    """Parse the command line and run.

    Args:
        arguments: Words of the command line.
        prog: How the command is called, for its help.
    """
    (args,) = Parser(EvaluateArguments, prog=prog).parse(arguments)
    command_line = [*(prog or "evaluate").split(" "), *arguments]
    if args.split not in ("validation", "train"):
        raise ValueError(f"split must be validation or train, got {args.split!r}")
    protocol = args.load_protocol()
    corruptions = chosen_corruptions(args.corruption, args.severity, args.frost_textures) if args.corruption else []
    accelerator = make_accelerator(args.mixed_precision)
    share_cpu_threads(accelerator, args.num_threads)
    with accelerator.main_process_first():
        data = args.load_data()
    args.check_data(data, accelerator=accelerator)
    model, image_processor = load_segmenter(args.model, args.runtime)
    if isinstance(model, ExportedModel) and accelerator.mixed_precision != "no":
        raise ValueError(
            f"mixed_precision must be no for the exported file {model.path}, which computes as it was exported, got "
            f"{accelerator.mixed_precision}"
        )
    model = model.to(accelerator.device)
    check_classes(model, data)

    def matrix_of(**options: Any) -> ConfusionMatrix:
        how = {"window_batch_size": args.window_batch_size, "overlap": args.overlap, **options}
        what = (model, image_processor, data, accelerator, args.split, args.batch_size, args.num_workers, protocol)
        return evaluate(*what, **how)

    started = time.monotonic()
    files = PredictionFiles(args, data) if args.save_predictions or args.submission else None
    findings = Findings(data, accelerator, args.split, args.boundary_iou)
    matrix = matrix_of(on_prediction=files, findings=findings)
    metrics = matrix.compute(dice=True) | findings.metrics()
    metrics |= {"class_names": list(data.class_names), "images": len(getattr(data, args.split))}
    source = without_paths({"model": args.model, "dataset": data.name})
    metrics |= source | {"split": args.split, "protocol": asdict(protocol)}
    metrics["mixed_precision"] = accelerator.mixed_precision
    if accelerator.is_main_process:
        findings.write(Path(args.output_dir or "."))
        report(args, data, matrix, metrics, time.monotonic() - started, protocol.describe())
        print(findings.report())
        if args.output_dir is not None:
            pictures = shown_pictures(model, image_processor, data, protocol, args.split)
            write_page(args, data, matrix, metrics, pictures, command_line)
    scores: dict[str, dict[int, float]] = {}
    for corruption in corruptions:
        score = matrix_of(change_image=corruption).compute()["mean_iou"]
        scores.setdefault(corruption.name, {})[corruption.severity] = score
        accelerator.print(f"{corruption.name}, severity {corruption.severity}: mIoU {100 * score:.2f}")
    if scores and accelerator.is_main_process:
        report_robustness(args, metrics, scores)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def report(
    args: EvaluateArguments,
    data: SegmentationData,
    matrix: ConfusionMatrix,
    metrics: dict,
    seconds: float,
    protocol: str,
) -> None:
    """Print the results and write metrics.json and the plots."""
    folder = Path(args.output_dir or ".")
    write_metrics(metrics, folder / "metrics.json")
    if args.plots:
        per_class_bars(metrics["per_category_iou"], data.class_names, folder / "per_class_iou.png")
        confusion_matrix_plot(matrix.matrix, data.class_names, folder / "confusion_matrix.png")
    print(f"{matrix.table(data.class_names)}\n\nprotocol {args.protocol}: {protocol}")
    print(
        f"mIoU {100 * metrics['mean_iou']:.2f}  mAcc {100 * metrics['mean_accuracy']:.2f}  "
        f"aAcc {100 * metrics['overall_accuracy']:.2f}  mDice (F1) {100 * metrics['mean_dice']:.2f}  "
        f"({metrics['images']} images, {seconds:.1f} s; written to {folder / 'metrics.json'})"
    )


def write_page(
    args: EvaluateArguments,
    data: SegmentationData,
    matrix: ConfusionMatrix,
    metrics: dict[str, Any],
    pictures: Iterable[ShownPicture],
    command_line: Sequence[str],
) -> None:
    """Write report.html, without the machine's paths."""
    folder = Path(args.output_dir or ".")
    settings = {name: value for name, value in asdict(args).items() if value is not None}
    private: dict[str, Any] = {"folders": [args.data_root, args.data, args.output_dir]}
    page = Report(
        title=f"{metrics['model']} on {data.name}, {args.split}",
        metrics=metrics,
        matrix=matrix,
        class_names=data.class_names,
        palette=data.palette,
        worst=worst_pictures(metrics, folder),
        pictures=(
            (name, panel(image, truth, prediction, data.class_names, data.palette))
            for name, image, truth, prediction in pictures
        ),
        settings=without_paths(settings, **private),
        command_line=without_paths(list(command_line), **private),
    )
    write_report(page, folder / REPORT_NAME)


def report_robustness(args: EvaluateArguments, metrics: dict, scores: dict[str, dict[int, float]]) -> None:
    """Print the table of the corruptions, and write it, the figures and their plot."""
    folder = Path(args.output_dir or ".")
    table = robustness_table(metrics["mean_iou"], scores)
    with atomic_file(folder / "robustness.md") as file:
        file.write(f"{table}\n".encode())
    robustness_plot(metrics["mean_iou"], scores, folder / "robustness.png")
    robustness = {"clean": metrics["mean_iou"], "mean_iou": scores, "average": average_scores(scores)}
    write_metrics(metrics | {"robustness": robustness}, folder / "metrics.json")
    print(f"\nmIoU on corrupted images, in percent\n\n{table}")

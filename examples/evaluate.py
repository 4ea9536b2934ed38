# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluate a SegFormer on a data set's validation split, on one process or many.

    accelerate launch examples/evaluate.py --model runs/scenes-b0 --dataset scenes
    accelerate launch examples/evaluate.py --model DIR_OR_HUB_ID --dataset camvid --data_root CamVid

Prints mIoU, mAcc, aAcc and the per-class table and writes metrics.json. Every image is counted once, at the size of
its annotation, so any number of processes gives the same figures.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, HfArgumentParser

import hf_segformer  # noqa: F401  (the Auto classes build this package's models)
from hf_segformer.data import DataArguments, check_dataset
from hf_segformer.evaluation import check_classes, evaluate, share_cpu_threads
from hf_segformer.metrics import write_metrics


@dataclass(kw_only=True)
class EvaluateArguments(DataArguments):
    """Command line of evaluate.py; every flag is a field."""

    model: str = field(metadata={"help": "Folder or Hub id of the model."})
    split: str = field(default="validation", metadata={"help": "validation or train."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Where metrics.json goes; the current folder if left out."}
    )
    batch_size: int = field(default=8, metadata={"help": "Images per process and forward pass."})
    mixed_precision: str = field(default="no", metadata={"help": "no, fp16 or bf16."})
    num_workers: int = field(default=2, metadata={"help": "Worker processes that load images, per process."})
    num_threads: int = field(default=0, metadata={"help": "CPU threads per process; 0 shares all cores."})


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run."""
    (args,) = HfArgumentParser(EvaluateArguments).parse_args_into_dataclasses(arguments)
    if args.split not in ("validation", "train"):
        raise ValueError(f"split must be validation or train, got {args.split!r}")
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    share_cpu_threads(accelerator, args.num_threads)
    with accelerator.main_process_first():
        data = args.load_data()
        if accelerator.is_local_main_process:
            check_dataset(data)
    model = AutoModelForSemanticSegmentation.from_pretrained(args.model).to(accelerator.device)
    image_processor = AutoImageProcessor.from_pretrained(args.model)
    check_classes(model, data)
    started = time.monotonic()
    matrix = evaluate(
        model, image_processor, data, accelerator, args.split, args.batch_size, num_workers=args.num_workers
    )
    if accelerator.is_main_process:
        metrics = matrix.compute() | {"class_names": list(data.class_names), "images": len(getattr(data, args.split))}
        path = Path(args.output_dir or ".") / "metrics.json"
        write_metrics(metrics | {"model": args.model, "dataset": data.name, "split": args.split}, path)
        print(f"{matrix.table(data.class_names)}\n")
        print(
            f"mIoU {100 * metrics['mean_iou']:.2f}  mAcc {100 * metrics['mean_accuracy']:.2f}  "
            f"aAcc {100 * metrics['overall_accuracy']:.2f}  ({metrics['images']} images, "
            f"{time.monotonic() - started:.1f} s; written to {path})"
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

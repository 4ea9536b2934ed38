# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model on a data set, on one process or many, with the same confusion matrix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .data import SegmentationData, undecoded
from .functional_segformer import upsample_argmax
from .metrics import ConfusionMatrix

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .image_processing_segformer import SegformerImageProcessor


class EvaluationBatches(Dataset):
    """Batches of a split, as network inputs and label maps at their own sizes.

    Batch b always holds the same images, however many processes share the batches: the arithmetic of a batch, and so
    every label, does not depend on them.

    Args:
        data: Data set.
        image_processor: Processor of the model.
        split: "train" or "validation".
        batch_size: Images per batch.
    """

    def __init__(
        self,
        data: SegmentationData,
        image_processor: SegformerImageProcessor,
        split: str = "validation",
        batch_size: int = 8,
    ):
        self.data, self.image_processor, self.batch_size = data, image_processor, batch_size
        self._rows = undecoded(getattr(data, split))

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._rows) // self.batch_size)

    def __getitem__(self, batch: int) -> tuple[list[torch.Tensor], list[np.ndarray]]:
        """Return pixel values (C, h, w) and label maps (H, W) of each image in a batch."""
        first = batch * self.batch_size
        indices = range(first, min(first + self.batch_size, len(self._rows)))
        images, labels = zip(*(self.data.read_sample(self._rows[index]) for index in indices), strict=True)
        # Files may hold padding or rotation, but read_sample has removed both, so the processor sees plain arrays.
        pixel_values = self.image_processor(list(images), do_reduce_labels=False)["pixel_values"]
        return [torch.as_tensor(np.asarray(values)) for values in pixel_values], list(labels)


def evaluate(
    model: nn.Module,
    image_processor: SegformerImageProcessor,
    data: SegmentationData,
    accelerator: Accelerator,
    split: str = "validation",
    batch_size: int = 8,
    num_workers: int = 0,
) -> ConfusionMatrix:
    """Confusion matrix of a model over a split, each image at the size of its annotation.

    Logits are upsampled bilinearly to the annotation's size in one step. Batches are dealt out to the processes in
    turn and each image is counted once, so the result does not depend on the number of processes.

    Args:
        model: Unwrapped segmentation model, on the accelerator's device. Its training mode is restored afterwards; its
            buffers become those of the main process.
        image_processor: Processor of the model.
        data: Data set with the model's classes.
        accelerator: Gives device, precision and processes. Every process must make this call.
        split: "train" or "validation".
        batch_size: Images per forward pass, as far as their network inputs have equal sizes.
        num_workers: Worker processes that read images, per process.

    Returns:
        Confusion matrix over all processes.

    Raises:
        ValueError: Model and data set differ in the number of classes, or a sample is unreadable.
    """
    from tqdm.auto import tqdm

    check_classes(model, data)
    _share_buffers(model, accelerator)
    batches = EvaluationBatches(data, image_processor, split, batch_size)
    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    loader = DataLoader(batches, batch_size=None, sampler=mine, num_workers=num_workers)
    matrix = ConfusionMatrix(max(data.num_classes, 2), data.ignore_index, accelerator.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), accelerator.autocast():
        bar = tqdm(loader, desc="evaluating", unit="batch", leave=False, disable=not accelerator.is_local_main_process)
        for pixel_values, labels in bar:
            for prediction, label in zip(_label_maps(model, pixel_values, labels, accelerator), labels, strict=True):
                matrix.update(prediction, torch.as_tensor(label).to(accelerator.device))
    model.train(was_training)
    return matrix.reduce(accelerator)


def check_classes(model: nn.Module, data: SegmentationData) -> None:
    """Check that a model predicts the classes of a data set.

    Raises:
        ValueError: The numbers of classes differ.
    """
    # Two classes may be told apart by a single logit.
    if max(model.config.num_labels, 2) != max(data.num_classes, 2):
        raise ValueError(
            f"the model has num_labels={model.config.num_labels} but data set {data.name!r} has {data.num_classes} "
            f"classes: {', '.join(data.class_names[:10])}{', ...' if data.num_classes > 10 else ''}"
        )


def share_cpu_threads(accelerator: Accelerator, num_threads: int = 0) -> None:
    """Give each process its part of this machine's cores; nothing on other devices.

    `accelerate launch` starts CPU processes with one thread each, however many cores there are.

    Args:
        accelerator: Tells the device and the number of processes.
        num_threads: Threads for this process; 0 shares all cores evenly.
    """
    if accelerator.device.type == "cpu":
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(num_threads or max(len(os.sched_getaffinity(0)) // local_processes, 1))


def _share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """In training each process gathers batch statistics of its own; the main process has those that will be saved."""
    from accelerate.utils import broadcast

    for buffer in model.buffers() if accelerator.num_processes > 1 else ():
        buffer.copy_(broadcast(buffer.clone()))


def _label_maps(model, pixel_values: Sequence[torch.Tensor], labels: Sequence[np.ndarray], accelerator):
    same_size = len({tuple(values.shape) for values in pixel_values}) == 1
    groups = [torch.stack(list(pixel_values))] if same_size else [values[None] for values in pixel_values]
    logits = [row[None] for group in groups for row in model(group.to(accelerator.device)).logits]
    return [upsample_argmax(row, label.shape)[0] for row, label in zip(logits, labels, strict=True)]

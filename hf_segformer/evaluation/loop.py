# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model on a data set, on one process or many, with the same confusion matrix."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..data import SegmentationData, undecoded
from ..data.workers import ErrorsAsValues, batches_of, cores_of_this_process
from ..texts import listed
from .inference import NetworkInputs, inference_of, prepare_inputs, segment_inputs
from .metrics import ConfusionMatrix
from .picture_scores import EvaluatedPicture
from .protocols import Protocol

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..image_processing_segformer import SegformerImageProcessor
    from .findings import Findings

ImageChange = Callable[[np.ndarray, int], np.ndarray]


class EvaluationSample(NamedTuple):
    """One image of a split."""

    inputs: NetworkInputs
    label: np.ndarray  # integer (H, W)
    file_name: str
    row: int  # in the split


class EvaluationBatches(Dataset):
    """Batches of a split, as network inputs and label maps at their own sizes.

    Batch b always holds the same images, however many processes share the batches: the arithmetic of a batch, and so
    every label, does not depend on them.

    Args:
        data: Data set.
        image_processor: Processor of the model.
        protocol: How pictures become network inputs.
        split: "train" or "validation".
        batch_size: Images per batch.
        change_image: Function of (image uint8 (H, W, 3), index in the split) that gives the image to evaluate on.
    """

    def __init__(
        self,
        data: SegmentationData,
        image_processor: SegformerImageProcessor,
        protocol: Protocol,
        split: str = "validation",
        batch_size: int = 8,
        change_image: ImageChange | None = None,
    ):
        from datasets import IterableDataset

        self.data, self.image_processor, self.protocol, self.batch_size = data, image_processor, protocol, batch_size
        self.change_image, self.split = change_image, split
        self._rows = undecoded(getattr(data, split))
        if isinstance(self._rows, IterableDataset):
            raise ValueError(f"{split} of {data.name!r} is streamed; evaluation needs a data set of known length")

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._rows) // self.batch_size)

    def __getitem__(self, batch: int) -> list[EvaluationSample]:
        """Return the samples of a batch."""
        first = batch * self.batch_size
        return [self._sample(index) for index in range(first, min(first + self.batch_size, len(self._rows)))]

    def _sample(self, index: int) -> EvaluationSample:
        # Files may hold padding or rotation, but read_sample has removed both, so the processor sees plain arrays.
        image, label = self.data.read_sample(self._rows[index], self.split, index)
        if self.change_image is not None:
            image = self.change_image(image, index)
        inputs = prepare_inputs(self.image_processor, image, self.protocol)
        return EvaluationSample(inputs, label, self._rows[index].get("file_name") or f"{index}", index)


def evaluate(
    model: nn.Module,
    image_processor: SegformerImageProcessor,
    data: SegmentationData,
    accelerator: Accelerator,
    split: str = "validation",
    batch_size: int = 8,
    num_workers: int = 0,
    protocol: Protocol | None = None,
    *,
    window_batch_size: int | None = None,
    overlap: str = "mean",
    change_image: ImageChange | None = None,
    on_prediction: Callable[[str, np.ndarray], None] | None = None,
    findings: Findings | None = None,
) -> ConfusionMatrix:
    """Confusion matrix of a model over a split, each image at the size of its annotation.

    Batches are dealt out to the processes in turn and each image is counted once, so the result does not depend on the
    number of processes.

    Args:
        model: Unwrapped segmentation model, on the accelerator's device, or an `ExportedModel`. Its training mode is
            restored afterwards; its buffers become those of the main process.
        image_processor: Processor of the model.
        data: Data set with the model's classes.
        accelerator: Gives device, precision and processes. Every process must make this call.
        split: "train" or "validation".
        batch_size: Images per forward pass, as far as their network inputs have equal sizes.
        num_workers: Worker processes that read images, per process.
        protocol: How images are resized, cut and augmented (`Protocol.named`); None does what the image processor
            does, and resizes the logits in one step.
        window_batch_size: Windows per forward pass, see `hf_segformer.inference.segment`.
        overlap: How overlapping windows are merged, see there.
        change_image: Picklable function of (image uint8 (H, W, 3), index in the split) that is applied first.
        on_prediction: Called with each image's file name and label map (H, W), in the process that made it.
        findings: Takes each image in the process that evaluates it, and is put together over all processes.

    Returns:
        Confusion matrix over all processes.

    Raises:
        ValueError: Model and data set differ in their classes, the split is streamed, or a sample is unreadable.
        FloatingPointError: A score is not finite.
    """
    check_classes(model, data)
    _share_buffers(model, accelerator)
    protocol = protocol or Protocol.named("processor")
    batches = EvaluationBatches(data, image_processor, protocol, split, batch_size, change_image)
    matrix = ConfusionMatrix(data.num_classes, data.ignore_index, accelerator.device)

    def take(sample: EvaluationSample, labels: torch.Tensor) -> None:
        matrix.update(labels, torch.as_tensor(sample.label).to(accelerator.device))
        _hand_on(sample, labels, on_prediction, findings)

    _segment_batches(model, batches, accelerator, num_workers, (window_batch_size, overlap), take)
    if findings is not None:
        findings.gather(accelerator)
    return matrix.reduce(accelerator)


def _hand_on(
    sample: EvaluationSample,
    labels: torch.Tensor,
    on_prediction: Callable[[str, np.ndarray], None] | None,
    findings: Findings | None,
) -> None:
    if on_prediction is not None:
        on_prediction(sample.file_name, labels.cpu().numpy())
    if findings is not None:
        maps = labels.cpu().numpy(), np.asarray(sample.label)  # the loader has made a tensor of it
        findings.update(EvaluatedPicture(sample.row, sample.file_name, *maps))


def _segment_batches(
    model: nn.Module,
    batches: EvaluationBatches,
    accelerator: Accelerator,
    num_workers: int,
    windows: tuple[int | None, str],
    take: Callable[[EvaluationSample, torch.Tensor], None],
) -> None:
    """Segment this process's batches, and hand on each sample with its label map (H, W) on the device."""
    from tqdm.auto import tqdm

    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    loader = DataLoader(ErrorsAsValues(batches), batch_size=None, sampler=mine, num_workers=num_workers)
    scores = _FiniteScores(model)
    shown = {"desc": "evaluating", "unit": "batch", "leave": False, "total": len(mine)}
    with inference_of(model), accelerator.autocast(), scores:
        for samples in tqdm(batches_of(loader), **shown, disable=None if accelerator.is_local_main_process else True):
            inputs = [sample.inputs for sample in samples]
            results = segment_inputs(model, inputs, batches.protocol, False, *windows)
            for sample, result in zip(samples, results, strict=True):
                take(sample, result.labels)
    scores.check(accelerator)


class _FiniteScores:
    """Adds up all scores of a model, which shows whether one of them is not finite, while the block lasts."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._total: torch.Tensor | None = None

    def __enter__(self) -> None:
        self._hook = self._model.register_forward_hook(self._add)

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _add(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        if not hasattr(outputs, "logits"):  # an exported file that gives label maps
            return
        total = outputs.logits.sum(dtype=torch.float32)
        self._total = total if self._total is None else self._total + 0 * total  # 0, or NaN for good

    def check(self, accelerator: Accelerator) -> None:
        """Raise FloatingPointError in all processes if one of them saw such scores."""
        is_bad = self._total is not None and not bool(self._total.isfinite())
        if accelerator.reduce(torch.tensor(float(is_bad), device=accelerator.device), "sum").item():
            raise FloatingPointError(
                "the model's scores are not finite, so they say nothing about classes: its weights are, but too large "
                "to compute with; a training run that ends so has diverged"
            )


def check_classes(model: nn.Module, data: SegmentationData) -> None:
    """Check that a model predicts the classes of a data set.

    Raises:
        ValueError: The numbers of classes differ, or there is only one.
    """
    if data.num_classes < 2:
        raise ValueError(
            f"data set {data.name!r} must have at least two classes, the background included, got only "
            f"{', '.join(data.class_names)}"
        )
    # Two classes may be told apart by a single logit.
    config: Any = model.config
    if max(config.num_labels, 2) != data.num_classes:
        raise ValueError(
            f"the model has num_labels={config.num_labels} but data set {data.name!r} has {data.num_classes} "
            f"classes: {listed(data.class_names, 10)}"
        )


def share_cpu_threads(accelerator: Accelerator, num_threads: int | None = None) -> None:
    """Give each process its part of this machine's cores; nothing on other devices.

    `accelerate launch` starts CPU processes with one thread each where nobody asked for a number.

    Args:
        accelerator: Tells the device and the number of processes.
        num_threads: Threads for this process; 0 shares all cores evenly, and so does None unless OMP_NUM_THREADS
            asks for two or more.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if num_threads is None and asked.isdigit() and int(asked) > 1:
        num_threads = int(asked)
    if accelerator.device.type == "cpu":
        torch.set_num_threads(num_threads or cores_of_this_process(accelerator.num_processes))


def _share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """In training each process gathers batch statistics of its own; the main process has those that will be saved."""
    from accelerate.utils import broadcast

    for buffer in model.buffers() if accelerator.num_processes > 1 else ():
        buffer.copy_(broadcast(buffer.clone()))

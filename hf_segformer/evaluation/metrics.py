# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Mean IoU and its relatives from one K x K confusion matrix: exact for any split into batches and processes.

Three ways in: `ConfusionMatrix` for a loop of one's own, `MeanIoU` where an `evaluate.Metric` is expected, and
`preprocess_logits_for_metrics` with `build_compute_metrics` for `transformers.Trainer`. The state is always K * K
integers, never the predictions.

The definitions are those of mmsegmentation's IoUMetric (`mmseg/evaluation/metrics/iou_metric.py`): counts are summed
over the whole set before anything is divided; pixels labelled `ignore_index` do not exist, whatever was predicted
there; a class in neither map is nan and left out of the means; one that is only predicted has IoU 0 and accuracy nan.
"""

import copy
import json
import math
import numbers
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from ..files import atomic_file
from ..processing.image_inputs import check_flag
from ..texts import NAME_LIMIT, columns, one_line, padded
from .metric_values import ClassScores, check_batch, check_class_names, integer_tensor, zero_counts

if TYPE_CHECKING:
    from accelerate import Accelerator
    from evaluate import Metric
    from transformers import EvalPrediction

_CHUNK = 1 << 20  # pixels counted at a time, so that the int64 temporaries of an update stay at some 50 MB
_TRAINER_PADDING = -100  # what `transformers.Trainer` pads labels with where batches differ in height


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels, and the segmentation metrics that follow from them.

    Attributes:
        matrix: int64 (K, K) on the device; rows are the truth, columns the prediction.

    Args:
        num_labels: number of classes K.
        ignore_index: label of the pixels that are left out, or None when every pixel counts. It is not a class: with
            the id of one (the background, say) false positives on it go uncounted, and IoU turns into recall.
        device: where the counts live and the counting happens.

    Raises:
        ValueError: `num_labels` is not a positive integer, or another argument has the wrong type.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = 255, device: str | torch.device = "cpu") -> None:
        self.matrix = zero_counts(num_labels, ignore_index, device)
        if ignore_index is not None and 0 <= ignore_index < num_labels:
            warnings.warn(
                f"ignore_index={ignore_index} is one of the {num_labels} classes: its pixels are left out, so false "
                "positives there vanish, and the IoU of the other classes becomes their recall. Keep the background a "
                f"class, and use an ignore_index outside [0, {num_labels}).",
                stacklevel=2,
            )
        self.num_labels = int(num_labels)
        self.ignore_index = None if ignore_index is None else int(ignore_index)

    def update(self, predictions: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> None:
        """Count the pixels of one batch, image or part of an image.

        Args:
            predictions: class ids in [0, K), any integer dtype, any shape; not read where the label is `ignore_index`.
            labels: class ids in [0, K) or `ignore_index`, any integer dtype, same shape.

        Raises:
            ValueError: shapes differ, a dtype is not integer, or an id is out of range; nothing has been counted then.
        """
        predictions, labels = integer_tensor("predictions", predictions), integer_tensor("labels", labels)
        if predictions.shape != labels.shape:
            raise ValueError(
                "predictions and labels must have the same shape, received "
                f"{tuple(predictions.shape)} and {tuple(labels.shape)}"
            )
        if labels.numel() == 0:
            return
        total = torch.zeros_like(self.matrix)  # apart, so that an error in a later chunk leaves the matrix as it was
        for chunk in zip(predictions.reshape(-1).split(_CHUNK), labels.reshape(-1).split(_CHUNK), strict=True):
            total += self._count(*chunk)
        self.matrix += total

    def _count(self, predictions: Tensor, labels: Tensor) -> Tensor:
        predictions, labels = (ids.to(self.matrix.device).to(torch.int64) for ids in (predictions, labels))
        # Sending ignored pixels to one bin more is faster than selecting the others, and `where` than `masked_fill`.
        counted = (
            torch.ones_like(labels, dtype=torch.bool) if self.ignore_index is None else labels != self.ignore_index
        )
        predictions, labels = predictions.where(counted, 0), labels.where(counted, 0)
        extremes = torch.stack((*labels.aminmax(), *predictions.aminmax())).tolist()  # one transfer for all four
        exception = "" if self.ignore_index is None else f" or be ignore_index={self.ignore_index}"
        self._check_range("labels", labels, extremes[:2], exception)
        self._check_range("predictions", predictions, extremes[2:])
        cells = (labels * self.num_labels + predictions).where(counted, self.num_labels**2)
        counts = torch.bincount(cells, minlength=self.num_labels**2 + 1)
        return counts[:-1].view(self.num_labels, self.num_labels)

    def _check_range(self, name: str, ids: Tensor, extremes: list[int], exception: str = "") -> None:
        if extremes[0] >= 0 and extremes[1] < self.num_labels:
            return
        wrong = ids[(ids < 0) | (ids >= self.num_labels)].unique().tolist()
        received = ", ".join(map(str, wrong[:10])) + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise ValueError(f"{name} must lie in [0, {self.num_labels}){exception}, received {received}")

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Add the counts of another matrix to this one, and return this one.

        Raises:
            ValueError: the two have not the same number of classes, or ignore different labels.
        """
        if not isinstance(other, ConfusionMatrix):
            raise ValueError(f"other must be a ConfusionMatrix, received {type(other).__name__}")
        for name in ("num_labels", "ignore_index"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"{name} must be equal to merge confusion matrices, received {ours} and {theirs}")
        self.matrix += other.matrix.to(self.matrix.device)
        return self

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return self._with(self.matrix.clone()).merge(other)

    def reduce(self, accelerator: "Accelerator | None" = None) -> "ConfusionMatrix":
        """Sum over all processes: a new matrix, the same on every rank, while this one keeps its own counts.

        Every rank must call it. Images that a sampler repeats to fill the last batch count twice: do not add those.

        Args:
            accelerator: whose processes; None for the default group of `torch.distributed`, if there is one.
        """
        total = self.matrix.clone()
        if accelerator is not None:
            total = accelerator.reduce(total.to(accelerator.device), reduction="sum")
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            if torch.distributed.get_backend() == "nccl":  # which has no collectives on CPU tensors
                total = total.cuda()
            torch.distributed.all_reduce(total)
        return self._with(total.to(self.matrix.device))

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.matrix.zero_()

    def _with(self, matrix: Tensor) -> "ConfusionMatrix":
        twin = copy.copy(self)
        twin.matrix = matrix
        return twin

    def compute(self, dice: bool = False, fscore: bool = False) -> dict[str, Any]:
        """The metrics of everything counted so far, as fractions in [0, 1].

        Args:
            dice: add `mean_dice` and `per_category_dice` (mmsegmentation's mDice).
            fscore: add `fscore`, `precision` and `recall`, each as `mean_*` and `per_category_*` (its mFscore).

        Returns:
            `mean_iou`, `mean_accuracy`, `overall_accuracy` as floats, `per_category_iou`, `per_category_accuracy` as
            lists of K floats, and what was asked for. nan where there is nothing to divide by; means leave it out.
        """
        matrix = self.matrix.cpu().double()
        hits, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        per_category = {"iou": hits / (truth + predicted - hits), "accuracy": hits / truth}
        if dice:
            per_category["dice"] = 2 * hits / (truth + predicted)
        if fscore:
            precision, recall = hits / predicted, hits / truth
            harmonic = 2 * precision * recall / (precision + recall)
            per_category |= {"fscore": harmonic, "precision": precision, "recall": recall}
        means = {f"mean_{name}": values.nanmean().item() for name, values in per_category.items()}
        lists = {f"per_category_{name}": values.tolist() for name, values in per_category.items()}
        return means | {"overall_accuracy": (hits.sum() / truth.sum()).item()} | lists

    def table(self, class_names: Sequence[str]) -> str:
        """The per-class results as text: IoU, accuracy and share of the labelled pixels in percent, then the means.

        Args:
            class_names: K names, in the order of the ids.

        Raises:
            ValueError: there are not K names.
        """
        check_class_names(class_names, self.num_labels)
        scores, pixels = self.compute(), self.matrix.sum(1).cpu().double()
        values = (scores["per_category_iou"], scores["per_category_accuracy"], (pixels / pixels.sum()).tolist())
        names = [one_line(name, NAME_LIMIT) for name in class_names]
        rows = [("class", "IoU %", "Acc %", "pixels %"), *zip(names, *(map(_percent, v) for v in values), strict=True)]
        rows.append(("mean", _percent(scores["mean_iou"]), _percent(scores["mean_accuracy"]), ""))
        rows.append(("overall", "", _percent(scores["overall_accuracy"]), ""))
        width = max(columns(name) for name, *_ in rows)
        lines = [f"{padded(name, width)}  {iou:>8}  {acc:>8}  {share:>8}".rstrip() for name, iou, acc, share in rows]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.2f}"


class _MeanIoU:
    """Mean IoU of semantic segmentation as an `evaluate.Metric`, in O(K^2) memory.

    Takes the calls that `evaluate.load("mean_iou")` takes and returns the same keys, but counts each batch as it comes
    instead of writing predictions to disk, and needs no network. So what shapes the counting is fixed at construction.

    Args:
        num_labels: number of classes K; 1, a single logit, counts as the two classes 0 and 1.
        ignore_index: label of the pixels that are left out (see `ConfusionMatrix`).
        reduce_labels: references hold 0 for "no class" and 1..K for the classes, as the files of ADE20K do: 0 becomes
            `ignore_index`, the others move down by one. Predictions are taken as they are.
        nan_to_num: what stands in place of nan in the result, or None to leave it.
        device: where the counting happens.
        **kwargs: what `evaluate.Metric` takes. With `num_process` above 1, `compute` sums over the processes of
            `torch.distributed` and returns None on all but `process_id` 0.

    Raises:
        ValueError: `num_labels` is not a positive integer, or `reduce_labels` comes without an `ignore_index`.
    """

    # Of `evaluate.Metric`.
    info: Any
    num_process: int
    process_id: int
    _data_dir_root: str

    def __init__(
        self,
        num_labels: int,
        ignore_index: int | None = 255,
        reduce_labels: bool = False,
        nan_to_num: float | None = None,
        device: str | torch.device = "cpu",
        **kwargs: Any,
    ) -> None:
        check_flag("reduce_labels", reduce_labels)
        if reduce_labels and ignore_index is None:
            raise ValueError("reduce_labels=True turns label 0 into ignore_index, which must then be an integer")
        if nan_to_num is not None and not isinstance(nan_to_num, numbers.Real):
            raise ValueError(f"nan_to_num must be a number or None, received {nan_to_num!r:.99}")
        is_one = isinstance(num_labels, numbers.Integral) and not isinstance(num_labels, bool) and num_labels == 1
        self.confusion_matrix = ConfusionMatrix(2 if is_one else num_labels, ignore_index, device)
        self.reduce_labels, self.nan_to_num = reduce_labels, nan_to_num
        self._stored = 0
        super().__init__(**kwargs)
        self.info.module_name = "mean_iou"  # rather than the mean_io_u that the class name gives

    def _info(self) -> Any:
        import datasets
        import evaluate

        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Mean intersection over union, counted on the fly in a confusion matrix.",
            citation="",
            inputs_description="\n    predictions and references: label maps (H, W) of class ids, or batches of them.",
            features=datasets.Features({"predictions": label_map, "references": label_map}),
            reference_urls=["https://huggingface.co/spaces/evaluate-metric/mean_iou"],
        )

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # without creating a folder in it: nothing is ever cached

    def __len__(self) -> int:
        return self._stored

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Count one image.

        Args:
            prediction: class ids (H, W).
            reference: labels (H, W).
            **kwargs: `predictions` and `references`, the names that `evaluate.combine` uses here.
        """
        self._count(kwargs.get("predictions", prediction), kwargs.get("references", reference))
        self._stored += 1

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Count a batch.

        Args:
            predictions: class ids: (B, H, W), one map (H, W), or a sequence of maps that may differ in size.
            references: labels of the same shape, or as many maps of the same sizes.
        """
        if hasattr(predictions, "shape") and hasattr(references, "shape"):
            self._count(predictions, references)
            self._stored += len(references) if len(references.shape) > 2 else 1
            return
        check_batch("predictions", predictions)
        check_batch("references", references)
        if len(predictions) != len(references):
            raise ValueError(
                "predictions and references must be equally many, received "
                f"{len(predictions)} predictions and {len(references)} references"
            )
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def _count(self, predictions: Any, references: Any) -> None:
        references = integer_tensor("references", references)
        if self.reduce_labels:
            ignore_index, references = self.confusion_matrix.ignore_index, references.to(torch.int64)
            references = (references - 1).masked_fill((references == 0) | (references == ignore_index), ignore_index)
        self.confusion_matrix.update(predictions, references)

    def merge(self, other: "_MeanIoU") -> "_MeanIoU":
        """Add what another metric has counted (in another process, say: it can be pickled), and return this one."""
        if not isinstance(other, _MeanIoU):
            raise ValueError(f"other must be a MeanIoU, received {type(other).__name__}")
        self.confusion_matrix.merge(other.confusion_matrix)
        self._stored += len(other)
        return self

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """The metrics of everything added since the last `compute`; the next one starts from nothing.

        Args:
            predictions: one more batch to add first.
            references: its labels.
            **kwargs: the settings that `evaluate.load("mean_iou")` takes here, which must equal the constructor's.

        Returns:
            The scores of `ConfusionMatrix.compute`, as floats; the per-category ones as lists (K,) that are arrays of
            float64 in arithmetic and indexing, so that `json.dumps` takes the whole.

        Raises:
            ValueError: a setting differs from the constructor's; `num_process` above 1 without `torch.distributed`.
        """
        self._check_settings(kwargs)
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.num_process > 1 and not torch.distributed.is_initialized():
            raise ValueError(
                f"num_process={self.num_process} needs an initialized process group of torch.distributed; "
                "without one, merge() the metrics of the processes"
            )
        total = self.confusion_matrix.reduce() if self.num_process > 1 else self.confusion_matrix
        scores = total.compute()
        if self.nan_to_num is not None:
            scores = {name: np.nan_to_num(value, nan=self.nan_to_num).tolist() for name, value in scores.items()}
        kinds = {float: np.float64, list: ClassScores}
        scores = {name: kinds[type(value)](value) for name, value in scores.items()}
        self.confusion_matrix.reset()
        self._stored = 0
        return scores if self.process_id == 0 else None

    def _check_settings(self, received: dict[str, Any]) -> None:
        fixed = {name: getattr(self.confusion_matrix, name) for name in ("num_labels", "ignore_index")}
        fixed |= {"reduce_labels": self.reduce_labels, "nan_to_num": self.nan_to_num}
        for name, value in received.items():
            if name == "label_map" and value is not None:
                raise ValueError("label_map is not supported: MeanIoU counts the ids as they come, so map them before")
            if name not in (*fixed, "label_map"):
                raise ValueError(f"MeanIoU.compute has no setting {name!r}: {', '.join([*fixed, 'label_map'])}")
            if name == "num_labels" and value == 1:
                value = 2  # as at construction
            if name in fixed and not np.array_equal(value, fixed[name]):
                raise ValueError(
                    f"{name} is fixed when MeanIoU is built, because batches are counted as they come: built with "
                    f"{fixed[name]}, compute received {value}"
                )


def __getattr__(name: str) -> Any:
    """Build `MeanIoU` on first access, so that importing this module imports neither `evaluate` nor `datasets`."""
    if name != "MeanIoU":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import evaluate

    if not hasattr(evaluate, "Metric"):
        raise ImportError(f"MeanIoU needs the library evaluate, but its name means {evaluate.__file__} here")
    namespace = {"__module__": __name__, "__doc__": _MeanIoU.__doc__}
    return globals().setdefault(name, type(name, (_MeanIoU, evaluate.Metric), namespace))


if TYPE_CHECKING:

    class MeanIoU(_MeanIoU, Metric): ...


def preprocess_logits_for_metrics(logits: Tensor | tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
    """Label maps instead of logits, before `transformers.Trainer` gathers them: for the argument of this name.

    Without it Trainer keeps the (N, K, h, w) logits of the whole evaluation set in memory.

    Args:
        logits: (B, K, h, w) floats, or the tuple of outputs that starts with them.
        labels: (B, H, W), read for their size; None (prediction without labels) keeps h and w.

    Returns:
        Class ids (B, H, W) of the logits upsampled bilinearly to the labels' size: uint8 up to 256 classes, int32
        above (gloo and NCCL know no int16). A single logit gives 0 or 1.
    """
    from ..scores.label_map import upsample_argmax

    if isinstance(logits, (tuple, list)):
        logits = logits[0]
    label_maps = upsample_argmax(logits, (logits if labels is None else labels).shape[-2:])
    return label_maps.to(torch.uint8 if logits.shape[1] <= 256 else torch.int32)


def build_compute_metrics(
    num_labels: int, ignore_index: int | None = 255, class_names: Sequence[str] | None = None
) -> "Callable[[EvalPrediction, bool], dict[str, float]]":
    """A `compute_metrics=` for `transformers.Trainer`, to go with `preprocess_logits_for_metrics`.

    With `TrainingArguments(batch_eval_metrics=True)` each batch is counted as it comes, and nothing is kept. Images of
    different sizes need that, or `eval_do_concat_batches=False`: Trainer cannot put them into one array.

    Args:
        num_labels: number of classes K; 1, a single logit, counts as the two classes 0 and 1.
        ignore_index: label of the pixels that are left out. Trainer's own padding (-100) always is.
        class_names: K names (one, after which the background comes first, or two for a single logit), for `iou_NAME`
            and `accuracy_NAME` of each class; None reports the means only.

    Returns:
        A callable from an `EvalPrediction` with label maps (N, H, W) to a dict of floats.

    Raises:
        ValueError: there are not K names; and, when called, the predictions are no label maps or ids are out of range.
    """
    matrix = ConfusionMatrix(max(num_labels, 2), ignore_index)
    if class_names is not None:
        class_names = ["background", *class_names] if len(class_names) == num_labels == 1 else class_names
        check_class_names(class_names, matrix.num_labels)

    def compute_metrics(evaluation: "EvalPrediction", compute_result: bool = True) -> dict[str, float]:
        for prediction, label in zip(evaluation.predictions, evaluation.label_ids, strict=True):
            _update_from_trainer(matrix, prediction, label)
        if not compute_result:
            return {}
        scores = matrix.compute()
        matrix.reset()
        per_class = {name: scores.pop(f"per_category_{name}") for name in ("iou", "accuracy")}
        for metric, values in per_class.items() if class_names is not None else ():
            scores |= {f"{metric}_{name}": value for name, value in zip(class_names or (), values, strict=True)}
        return scores

    return compute_metrics


def _update_from_trainer(matrix: ConfusionMatrix, prediction: Any, label: Any) -> None:
    if np.shape(prediction) != np.shape(label):
        raise ValueError(
            f"predictions must be label maps of shape {tuple(np.shape(label))} like the labels, received "
            f"{tuple(np.shape(prediction))}: give Trainer preprocess_logits_for_metrics of hf_segformer.metrics"
        )
    prediction, label = integer_tensor("predictions", prediction), integer_tensor("labels", label).to(torch.int64)
    matrix.matrix = matrix.matrix.to(label.device)  # with batch_eval_metrics: count where the tensors are
    padding = label == _TRAINER_PADDING
    if padding.any():
        prediction, label = prediction[~padding], label[~padding]
    matrix.update(prediction, label)


def write_metrics(metrics: dict[str, Any], path: str | os.PathLike) -> None:
    """Write metrics as JSON, whole or not at all.

    Args:
        metrics: nested dicts and sequences of numbers, strings, numpy or torch values; nan and infinities become null,
            which, unlike NaN, every JSON reader takes.
        path: the file; its folder is created.
    """
    text = json.dumps(_json_value(metrics), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as file:
        file.write(f"{text}\n".encode())


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return _json_value(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

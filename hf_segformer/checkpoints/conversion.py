# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Turn any SegFormer checkpoint into a folder that loads everywhere, and back into a file of its origin."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..configuration_segformer import SegformerConfig
from ..data import ade20k, cityscapes
from ..files import fsync_path, replace_path
from ..image_processing_segformer import SegformerImageProcessor
from .files import Checkpoint, read_checkpoint
from .layouts import HEADS, LAYOUTS, ConversionReport
from .network import convert_state_dict, export_state_dict, model_class_for

DATASETS = {"ade20k": ade20k, "cityscapes": cityscapes}

# Shortest and longest edge of test pictures in the published recipes (NVlabs, mmsegmentation).
_EDGES = {"ade20k": (512, 2048), "cityscapes": (1024, 2048)}
_EDGES_ADE20K_B5 = (640, 2048)


def convert_checkpoint(
    source: str | Path,
    output_dir: str | Path,
    *,
    dataset: str | None = None,
    to: str | None = None,
    ema: bool = False,
    drop: Sequence[str] = (),
    revision: str | None = None,
    num_attention_heads: Sequence[int] | None = None,
) -> ConversionReport:
    """Convert a checkpoint into a new folder, which appears whole or not at all.

    Args:
        source: File, folder or Hub id of a checkpoint of any layout in `LAYOUTS`.
        output_dir: Folder to make. Gets config.json, model.safetensors and preprocessor_config.json, or with `to` the
            weights alone, as model.pth or model.safetensors; and conversion.json, which says what was done.
        dataset: "ade20k" or "cityscapes": class names, palette and evaluation protocol, whatever the file says.
        to: Key of `LAYOUTS` to write instead of our own layout.
        ema: Where the file has averaged weights beside the others, take those.
        drop: Beginnings of names to leave out, such as "auxiliary_head.".
        revision: Branch, tag or commit on the Hub.
        num_attention_heads: Attention heads of each stage, for networks of no published size.

    Returns:
        What the checkpoint is and what was done.

    Raises:
        ValueError: An argument is wrong, the output folder is not empty, the source is unsafe, damaged or no complete
            SegFormer, or `to` cannot represent it.
    """
    if dataset is not None and dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")
    if to is not None and to not in LAYOUTS:
        raise ValueError(f"to must be one of {', '.join(LAYOUTS)}, got {to!r}")
    with new_folder(output_dir) as folder:
        checkpoint = read_checkpoint(source, revision, ema)
        known = dict(checkpoint.config or {})
        if num_attention_heads is not None:
            known["num_attention_heads"] = list(num_attention_heads)
        try:
            state_dict, report = convert_state_dict(checkpoint.state_dict, drop=drop, ema=ema, config=known)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        report.notes += checkpoint.notes
        config = _configuration(checkpoint, report, dataset)
        if to in (None, "hf4"):
            _write_model(folder, state_dict, config, _image_processor(checkpoint, report, dataset))
        else:
            report = _write_foreign(folder, state_dict, config, to, report)
        _write_record(folder, source, checkpoint, report)
    return report


def _configuration(checkpoint: Checkpoint, report: ConversionReport, dataset: str | None) -> SegformerConfig:
    stale = ("auto_map", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "num_labels", "label2id")
    fields = {name: value for name, value in (checkpoint.config or {}).items() if name not in stale}
    names, palette = _classes(checkpoint, report, dataset)
    shown = dict(report.architecture)
    if names is not None:
        fields["id2label"] = dict(enumerate(names))
        fields["palette"] = palette
    if "id2label" in fields and "num_labels" in shown:
        if len(fields["id2label"]) != shown["num_labels"]:
            raise ValueError(
                f"there are {len(fields['id2label'])} class names, the weights have {shown['num_labels']}"
            )
        del shown["num_labels"]
    if fields.get("id2label"):
        fields["id2label"] = {int(label): name for label, name in fields["id2label"].items()}
        fields["label2id"] = {name: label for label, name in fields["id2label"].items()}
    config = SegformerConfig.from_dict({**fields, **shown})
    config.architectures = [model_class_for(report.head).__name__]
    if " and " not in report.dtype:
        config.dtype = getattr(torch, report.dtype)
    return config


def _classes(
    checkpoint: Checkpoint, report: ConversionReport, dataset: str | None
) -> tuple[Sequence[str] | None, list | None]:
    """Class names and palette: of the data set that was named, otherwise of the file's metadata."""
    count = report.architecture.get("num_labels")
    if dataset is not None and report.head in ("mlp", "conv"):
        table = DATASETS[dataset]
        if len(table.CLASS_NAMES) != count:
            raise ValueError(f"dataset {dataset!r} has {len(table.CLASS_NAMES)} classes, the weights have {count}")
        return table.CLASS_NAMES, [list(color) for color in table.PALETTE]
    if report.head not in ("mlp", "conv"):
        return None, None
    if checkpoint.class_names is not None and len(checkpoint.class_names) == count:
        return checkpoint.class_names, checkpoint.palette
    if checkpoint.class_names is not None and (count, len(checkpoint.class_names)) == (1, 2):
        return checkpoint.class_names[1:], checkpoint.palette  # one output tells the second class from the first
    if checkpoint.class_names is not None:
        report.notes.append(f"{len(checkpoint.class_names)} class names in the metadata ignored, the head has {count}")
    elif checkpoint.config is None:
        close = [name for name, table in DATASETS.items() if len(table.CLASS_NAMES) == count]
        report.notes.append(f"no class names known{f'; perhaps --dataset {close[0]}' if close else ''}")
    return None, None


def _image_processor(checkpoint: Checkpoint, report: ConversionReport, dataset: str | None) -> SegformerImageProcessor:
    """The processor of the protocol the checkpoint was made for."""
    if checkpoint.preprocessor_config is not None and dataset is None:
        return SegformerImageProcessor.from_dict(checkpoint.preprocessor_config)
    if report.head == "classification":
        report.notes.append("images are resized to 224x224, the size of ImageNet training")
        return SegformerImageProcessor(size={"height": 224, "width": 224})
    dataset = dataset or _dataset_of(checkpoint.class_names)
    edges = None if dataset is None else _EDGES.get(dataset)
    if dataset == "ade20k" and report.variant == "b5":
        edges = _EDGES_ADE20K_B5
    if checkpoint.image_scale is not None:
        edges = checkpoint.image_scale[::-1]
    if edges is None:
        report.notes.append("no evaluation protocol known: images are resized as in transformers, to 512x512")
        return SegformerImageProcessor()
    # mmsegmentation's own recipe has no AlignedResize; the other layouts carry NVlabs' weights.
    aligned = dataset == "ade20k" and report.source != "mmseg"
    aligned_text = ", both sides then rounded up to multiples of 32" if aligned else ""
    report.notes.append(f"images are resized to shortest edge {edges[0]}, longest at most {edges[1]}{aligned_text}")
    return SegformerImageProcessor(
        size={"shortest_edge": edges[0], "longest_edge": edges[1]},
        keep_ratio=True,
        size_divisor=32 if aligned else None,
        antialias=False,
        do_reduce_labels=dataset == "ade20k",
    )


def _dataset_of(class_names: Sequence[str] | None) -> str | None:
    return next((name for name, table in DATASETS.items() if class_names == table.CLASS_NAMES), None)


def _write_model(
    folder: Path, state_dict: dict[str, torch.Tensor], config: SegformerConfig, processor: SegformerImageProcessor
) -> None:
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    _write_safetensors(folder / "model.safetensors", state_dict)


def _write_safetensors(path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state_dict.items()}, path, metadata={"format": "pt"})


def _write_foreign(
    folder: Path, state_dict: dict[str, torch.Tensor], config: SegformerConfig, to: str, read: ConversionReport
) -> ConversionReport:
    foreign, report = export_state_dict(state_dict, to, config=config.to_dict())
    report.dropped, report.wrapper = read.dropped, read.wrapper
    report.notes += read.notes
    for name, value in LAYOUTS[to].numerics.items():
        if name.endswith("_eps") and getattr(config, name) != value:
            report.notes.append(
                f"{LAYOUTS[to].title} computes with {name}={value:g}, this model with {getattr(config, name):g}"
            )
    if to not in ("nvlabs", "mmseg"):
        _write_safetensors(folder / "model.safetensors", foreign)
        return report
    names, palette = config.class_names, config.class_palette
    palette = palette and [list(color) for color in palette]
    # mmcv reads the capital keys, mmengine dataset_meta; both refuse a file without meta.
    meta = {"CLASSES": names, "PALETTE": palette, "dataset_meta": {"classes": names, "palette": palette}}
    torch.save(
        {"meta": meta if read.head in ("mlp", "conv") else {}, "state_dict": foreign},
        folder / "model.pth",
    )
    return report


def _write_record(folder: Path, source: str | Path, checkpoint: Checkpoint, report: ConversionReport) -> None:
    from .. import __version__

    record: dict[str, Any] = {
        "file": Path(source).name if Path(source).exists() else str(source),
        "sha256": checkpoint.files,
        "container": checkpoint.container,
        "hf_segformer": __version__,
        **asdict(report),
        "head": HEADS[report.head],
    }
    (folder / "conversion.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder that appears at `path`, whole, when the block ends well; nothing appears when it fails.

    Args:
        path: Where the folder goes; must not exist, or be empty.

    Raises:
        ValueError: There is something already.
    """
    target = Path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"output folder {target} exists and is not empty: choose another or remove it")
    home = next(parent for parent in target.parents if parent.is_dir())
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=home))
    try:
        yield temporary
        for file in temporary.iterdir():
            fsync_path(file)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes folders that only their owner may read
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rmdir()
        replace_path(temporary, target)
        fsync_path(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise

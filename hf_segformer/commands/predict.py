# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Segment images and folders of images.

Images whose outputs exist are skipped, so an interrupted run can be repeated; unreadable files are named and passed
over, and the exit code is then 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data import StorageError
from ..data.files import LeftOut, find_pictures, printable, shown
from ..data.segmentation_data import open_picture
from ..evaluation.inference import NetworkInputs, Segmentation, inference_of, prepare_inputs, segment_inputs
from ..evaluation.protocols import Protocol, ProtocolArguments
from ..evaluation.submission import PICTURE_SUFFIXES, prediction_names, save_submission_png, submission_ids
from ..files import atomic_file
from ..runtimes import ExportedModel, load_segmenter
from ..visualization import overlay, palette_for, save_label_png
from .parser import Parser

if TYPE_CHECKING:
    from ..configuration_segformer import SegformerConfig
    from ..image_processing_segformer import SegformerImageProcessor


@dataclass(kw_only=True)
class PredictArguments(ProtocolArguments):
    """Command line of `predict`; every flag is a field."""

    model: str = field(metadata={"help": "Folder or Hub id of the model, or an exported file: .onnx, .xml or .pt2."})
    runtime: str | None = field(
        default=None,
        metadata={
            "help": "torch, onnx or openvino; the file's if left out. A folder's onnx/model.onnx is then taken."
        },
    )
    output_dir: str = field(metadata={"help": "Where labels/ and overlays/ go."})
    confidence: bool = field(
        default=False, metadata={"help": "Also write confidence/NAME.png: grey, 255 where the label is certain."}
    )
    submission: str | None = field(
        default=None, metadata={"help": "Also write submission/NAME.png for the server of ade20k or cityscapes."}
    )
    alpha: float = field(default=0.5, metadata={"help": "Opacity of the overlay, 0 to 1."})
    batch_size: int = field(default=1, metadata={"help": "Whole images of equal size per forward pass."})
    num_workers: int = field(default=2, metadata={"help": "Worker processes that read images."})
    device: str | None = field(
        default=None, metadata={"help": "Torch device, such as cuda:1; exported files run on the CPU."}
    )


def usable_device(name: str) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: There is none of that name, or it cannot be used here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the second where PyTorch was built without CUDA
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def find_images(sources: list[str]) -> dict[str, Path]:
    """Picture files by the name of their output, relative to the source they were found in.

    What a folder holds beside them (hidden files, links to folders, pipes, ...) is counted on standard error.

    Raises:
        ValueError: A source does not exist, a folder has no pictures, or two pictures would get the same output.
    """
    found: dict[str, Path] = {}
    for source in map(Path, sources):
        if not os.path.lexists(source):
            raise ValueError(f"no such file or folder: {shown(source)}")
        paths, is_folder, left_out = [source], os.path.isdir(source), LeftOut()
        if is_folder:
            paths = list(find_pictures(source, sorted(PICTURE_SUFFIXES), left_out))
            if not paths:
                beside = f"; what is there: {left_out}" if left_out else ""
                raise ValueError(
                    f"no pictures in {shown(source)} (looked for {', '.join(sorted(PICTURE_SUFFIXES))}){beside}"
                )
        if left_out:
            print(f"{shown(source)}: left out {left_out}", file=sys.stderr)
        for path in paths:
            name = path.relative_to(source if is_folder else source.parent).with_suffix("").as_posix()
            if name in found and found[name].resolve() != path.resolve():
                raise ValueError(
                    f"{shown(found[name])} and {shown(path)} would both be written to {printable(name)}.png: predict "
                    f"them apart"
                )
            found[name] = path
    return found


class Pictures(Dataset):
    """Pictures, read and prepared for the network; an error message in place of an unreadable one."""

    def __init__(self, images: dict[str, Path], image_processor: SegformerImageProcessor, protocol: Protocol):
        self.images, self.image_processor, self.protocol = list(images.items()), image_processor, protocol

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, Image.Image | str, NetworkInputs | None]:
        """Return a picture's name, the picture and its network inputs."""
        name, path = self.images[index]
        try:
            image = open_picture(path, shown(path))
        except (ValueError, StorageError) as error:
            return name, str(error), None
        return name, image, prepare_inputs(self.image_processor, image, self.protocol)


class OutputFiles:
    """Where the outputs of a picture go, and how they are written: each whole or not at all."""

    def __init__(self, args: PredictArguments, names: list[str], config: SegformerConfig):
        num_labels = len(config.class_names)
        self.args, self.folder = args, Path(args.output_dir)
        self.palette = config.class_palette or palette_for(num_labels)
        self.submission_names: dict[str, str] = {}
        self.submission_ids: Any = None
        if args.submission is not None:
            self.submission_ids = submission_ids(args.submission)
            if len(self.submission_ids) != num_labels:
                raise ValueError(
                    f"submission {args.submission} needs a model of {len(self.submission_ids)} classes, this one has "
                    f"{num_labels}"
                )
            self.submission_names = prediction_names(f"{name}.png" for name in names)

    def paths(self, name: str) -> dict[str, Path]:
        """Output files of a picture by their kind."""
        kinds = ["labels", "overlays"] + ["confidence"] * self.args.confidence
        paths = {kind: self.folder / kind / f"{name}.png" for kind in kinds}
        if self.submission_names:
            paths["submission"] = self.folder / "submission" / self.submission_names[f"{name}.png"]
        return paths

    def write(self, name: str, image: Image.Image, result: Segmentation) -> None:
        """Write the outputs of a picture."""
        paths, label_map = self.paths(name), result.labels.cpu().numpy()
        save_label_png(paths["labels"], label_map, self.palette)
        pictures = {"overlays": overlay(image, label_map, self.palette, self.args.alpha)}
        if result.confidence is not None:
            pictures["confidence"] = (result.confidence * 255).round().to(torch.uint8).cpu().numpy()
        for kind, array in pictures.items():
            with atomic_file(paths[kind]) as file:
                Image.fromarray(np.ascontiguousarray(array)).save(file, format="png")
        if "submission" in paths:
            save_submission_png(paths["submission"], label_map, self.submission_ids)


def segmented(
    model: nn.Module, loader: DataLoader, args: PredictArguments, protocol: Protocol, bar: tqdm
) -> Iterator[tuple[str, Image.Image, Segmentation]]:
    """Name, picture and result of every readable picture; messages about the others go to standard error."""
    for batch in loader:
        readable = [sample for sample in batch if sample[2] is not None]
        for _, message, inputs in batch:
            if inputs is None:
                bar.write(f"unreadable: {message}", file=sys.stderr)
        inputs = [sample[2] for sample in readable]
        with inference_of(model):
            results = segment_inputs(model, inputs, protocol, args.confidence, args.window_batch_size, args.overlap)
        for (name, image, _), result in zip(readable, results, strict=True):
            yield name, image, result
        bar.update(len(batch))


def main(arguments: Sequence[str], prog: str | None = None) -> int:
    """Segment all images; returns the exit code, which is 1 if some are unreadable.

    Args:
        arguments: Words of the command line.
        prog: How the command is called, for its help.
    """
    parser = Parser(
        PredictArguments,
        prog=prog,
        description=__doc__.split("\n")[0],
        epilog="Lists such as --crop_size 512 512 come last.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="Pictures, or folders searched for them.")
    args, positional = parser.parse(arguments)
    protocol, images = args.load_protocol(), find_images(positional.images)
    device = usable_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, image_processor = load_segmenter(args.model, args.runtime)
    if args.device is not None and isinstance(model, ExportedModel) and device != model.device:
        raise ValueError(f"device must be cpu for the exported file {model.path}, got {args.device!r}")
    model.to(device)
    files = OutputFiles(args, list(images), model.config)
    todo = {name: path for name, path in images.items() if not all(out.exists() for out in files.paths(name).values())}
    workers = min(args.num_workers, len(todo) - 1) if len(todo) > 1 else 0
    pictures = Pictures(todo, image_processor, protocol)
    loader = DataLoader(pictures, args.batch_size, collate_fn=list, num_workers=workers)
    done = 0
    with tqdm(total=len(todo), unit="image") as bar:
        for name, image, result in segmented(model, loader, args, protocol, bar):
            files.write(name, image, result)
            done += 1
    unreadable = len(todo) - done
    print(
        f"{done} images segmented, {len(images) - len(todo)} already done, {unreadable} unreadable; "
        f"results in {args.output_dir}"
    )
    return 1 if unreadable else 0

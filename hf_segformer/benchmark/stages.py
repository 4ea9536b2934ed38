# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What `benchmark` measures around the network: picture to label map in stages, label maps alone, an evaluation."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import pipeline
from transformers.utils import is_torchvision_available

from .. import SegformerImageProcessor
from ..data import SegmentationData, draw_scene, load_scenes, undecoded
from ..evaluation.metrics import ConfusionMatrix
from ..scores.label_map import upsample_argmax
from .measure import Contender, Report, alternate, milliseconds, ratio, span, synchronize
from .networks import Networks, load_networks, on

if TYPE_CHECKING:
    from .comparison import BenchmarkArguments

# Classes, points of the logits, pixels of the label map: ADE20K at 512 to a 640x480 photo, Cityscapes.
LABEL_MAPS = [(150, (128, 128), (480, 640)), (19, (256, 512), (1024, 2048))]
MIXED_SHARES = (0.05, 0.2, 0.5, 1.0)


# ------------------------------------------------------------------------------------------------ picture to label map


def photograph(path: str | None) -> Image.Image:
    """The picture to segment, 640x480: the given file, or a drawn scene."""
    image = Image.fromarray(draw_scene(0, 256)[0]) if path is None else Image.open(path).convert("RGB")
    return image.resize((640, 480), Image.Resampling.BICUBIC)


def processors(networks: Networks, image_size: tuple[int, int]) -> tuple[Any, Any]:
    """This package's image processor and the one that `transformers` would take here, with the same options."""
    height, width = image_size
    ours = SegformerImageProcessor(size={"height": height, "width": width})
    ours.save_pretrained(networks.folder)
    if is_torchvision_available():
        from transformers.models.segformer import image_processing_segformer

        return ours, image_processing_segformer.SegformerImageProcessor.from_pretrained(networks.folder)
    from transformers.models.segformer import image_processing_pil_segformer

    return ours, image_processing_pil_segformer.SegformerImageProcessorPil.from_pretrained(networks.folder)


@torch.inference_mode()
def measure_stages(networks: Networks, args: "BenchmarkArguments", report: Report) -> list[list[str]]:
    """Rows of the stages of one network: preprocessing, forward pass, label map, all of it, and the pipeline."""
    image, dtype = photograph(args.image), getattr(torch, args.dtype)
    size = image.size[::-1]
    sides = []
    for network, processor in zip(
        (networks.ours, networks.theirs), processors(networks, args.image_size), strict=True
    ):
        sides.append(_stages(on(network, args), processor, image, dtype, args))
    share = (sides[0]["end to end"]() == sides[1]["end to end"]()).float().mean().item()
    mixed = mixed_share(sides[0]["forward"]().logits)
    report.text(
        f"{networks.name}: {100 * share:.3f} % of the pixels get the same label both ways; "
        f"{100 * mixed:.0f} % of the cells between four points of the logits are mixed."
    )
    rows = []
    for stage in sides[0]:
        seconds = alternate(
            [Contender("ours", sides[0][stage]), Contender("transformers", sides[1][stage])], args.pairs
        )
        report.data("stages", {"network": networks.name, "stage": stage, "image": size, "seconds": seconds})
        rows.append([networks.name, stage, *_compared(seconds)])
    return rows


def _stages(
    network: Any, processor: Any, image: Image.Image, dtype: torch.dtype, args: "BenchmarkArguments"
) -> dict[str, Callable[[], Any]]:
    size = [image.size[::-1]]

    def preprocess() -> torch.Tensor:
        return processor(image, return_tensors="pt")["pixel_values"].to(args.device, dtype)

    pixel_values = preprocess()
    outputs = network(pixel_values)
    whole = pipeline("image-segmentation", model=network, image_processor=processor, device=args.device)
    return {
        "preprocess": preprocess,
        "preprocess a batch of 8": lambda: processor([image] * 8, return_tensors="pt")["pixel_values"],
        "forward": lambda: network(pixel_values),
        "label map": lambda: processor.post_process_semantic_segmentation(outputs, target_sizes=size)[0],
        "end to end": lambda: processor.post_process_semantic_segmentation(network(preprocess()), target_sizes=size)[
            0
        ],
        "pipeline": lambda: whole(image),
    }


def _compared(seconds: dict[str, list[float]]) -> list[str]:
    ours, theirs = seconds["ours"], seconds["transformers"]
    return [milliseconds(ours), span(ours), milliseconds(theirs), span(theirs), *ratio(theirs, ours)]


# ---------------------------------------------------------------------------------------------------------- label maps


def mixed_share(logits: torch.Tensor) -> float:
    """Share of the cells between four neighbouring points whose best classes differ."""
    winners = logits.argmax(1)
    same = winners[:, :-1, :-1] == winners[:, :-1, 1:]
    same &= (winners[:, :-1, :-1] == winners[:, 1:, :-1]) & (winners[:, :-1, :-1] == winners[:, 1:, 1:])
    return 1 - same.float().mean().item()


def synthetic_logits(classes: int, points: tuple[int, int], share: float) -> torch.Tensor:
    """Logits of two regions under noise that mixes the given share of the cells, in the network's memory format."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, classes, *points, generator=generator).contiguous(memory_format=torch.channels_last)
    if share >= 1:
        return noise
    regions = torch.zeros_like(noise)
    regions[:, 0, :, : points[1] // 3], regions[:, 1, :, points[1] // 3 :] = 1, 1
    low, high = 0.0, 16.0  # the stronger the regions, the fewer cells are mixed
    for _ in range(12):
        strength = (low + high) / 2
        low, high = (strength, high) if mixed_share(strength * regions + noise) > share else (low, strength)
    return strength * regions + noise


@torch.inference_mode()
def measure_label_maps(args: "BenchmarkArguments", report: Report) -> None:
    """Label maps from low-resolution logits, against interpolation and argmax of all scores."""
    rows, panels = [], []
    for classes, points, size in LABEL_MAPS:
        curves: dict[str, list[float]] = defaultdict(list)
        for share in MIXED_SHARES:
            logits = synthetic_logits(classes, points, share).to(args.device)
            title = f"{classes} classes, {points[0]}x{points[1]} to {size[0]}x{size[1]}"
            row, seconds = _label_map_row(title, logits, size, args, report)
            rows.append(row)
            for name in seconds:
                curves[name].append(1e3 * float(np.median(seconds[name])))
        shares = [100 * share for share in MIXED_SHARES]
        panels.append((f"mixed cells, % ({title})", "ms", {name: (shares, curve) for name, curve in curves.items()}))
    if args.model is not None:
        rows.append(_trained_row(args, report))
    header = ["logits", "mixed cells", "labels, ours ms", "plain ms", "times faster", "range"]
    header += ["with confidence, ours ms", "plain ms", "times faster", "cost of confidence"]
    report.table(header, rows)
    report.plot("label_maps", panels)


def _trained_row(args: "BenchmarkArguments", report: Report) -> list[str]:
    with ExitStack() as stack:
        networks = load_networks("", args.model, args.num_labels, stack)
        image = photograph(args.image)
        pixel_values = processors(networks, args.image_size)[0](image, return_tensors="pt")["pixel_values"].to(
            args.device
        )
        logits = networks.ours.to(args.device)(pixel_values).logits
    return _label_map_row(f"{networks.name} on a picture, to 480x640", logits, image.size[::-1], args, report)[0]


def _label_map_row(
    title: str, logits: torch.Tensor, size: tuple[int, int], args: "BenchmarkArguments", report: Report
) -> tuple[list[str], dict[str, list[float]]]:
    # The plain way gets the logits in the memory format in which it is faster; ours gets the network's.
    by_class = logits.contiguous()

    def plain() -> torch.Tensor:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)

    def plain_confidence() -> object:
        return F.interpolate(by_class, size=size, mode="bilinear", align_corners=False).softmax(1).max(1)

    seconds = alternate(
        [
            Contender("ours", lambda: upsample_argmax(logits, size)),
            Contender("plain", plain),
            Contender("ours with confidence", lambda: upsample_argmax(logits, size, return_confidence=True)),
            Contender("plain with confidence", plain_confidence),
        ],
        args.pairs,
        warmup=1,
    )
    mixed = mixed_share(logits)
    report.data("label maps", {"logits": title, "mixed": mixed, "seconds": seconds})
    ours, whole, sure, whole_sure = seconds.values()
    row = [title, f"{100 * mixed:.1f} %", milliseconds(ours), milliseconds(whole), *ratio(whole, ours)]
    row += [milliseconds(sure), milliseconds(whole_sure), ratio(whole_sure, sure)[0], ratio(sure, ours)[0]]
    return row, seconds


# ---------------------------------------------------------------------------------------------------------- evaluation


@torch.inference_mode()
def measure_evaluation(args: "BenchmarkArguments", report: Report) -> None:
    """Where the time of an evaluation on the drawn scenes goes, per picture."""
    data = load_scenes(num_train=1, num_validation=max(args.pairs, 2))
    with ExitStack() as stack:
        networks = load_networks(args.variants[0], args.model, data.num_classes, stack)
        our_processor, their_processor = processors(networks, args.image_size)
        split = {
            "ours": _evaluation_split(on(networks.ours, args), our_processor, data, args),
            "transformers": _evaluation_split(on(networks.theirs, args), their_processor, data, args),
        }
    report.data("evaluation", {"network": networks.name, "pictures": len(data.validation), "seconds": split})
    rows = []
    total = {name: sum(map(sum, stages.values())) for name, stages in split.items()}
    for stage in split["ours"]:
        ours, theirs = split["ours"][stage], split["transformers"][stage]
        shares = [f"{100 * sum(stages[stage]) / total[name]:.0f} %" for name, stages in split.items()]
        rows.append([networks.name, stage, milliseconds(ours), shares[0], milliseconds(theirs), shares[1]])
    report.table(["network", "stage", "ours ms", "share", "transformers ms", "share"], rows)


def _evaluation_split(
    network: Any, processor: Any, data: SegmentationData, args: "BenchmarkArguments"
) -> dict[str, list[float]]:
    matrix = ConfusionMatrix(max(network.config.num_labels, 2), device=args.device)
    seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        synchronize()
        seconds[stage].append(time.perf_counter() - started)

    for row in undecoded(data.validation):
        with timed("read"):
            image, label = data.read_sample(row)
        with timed("preprocess"):
            pixel_values = processor(image, return_tensors="pt")["pixel_values"]
            pixel_values = pixel_values.to(args.device, getattr(torch, args.dtype))
        with timed("forward"):
            outputs = network(pixel_values)
        with timed("label map"):
            label_map = processor.post_process_semantic_segmentation(outputs, target_sizes=[label.shape])[0]
        with timed("metric"):
            matrix.update(label_map, torch.as_tensor(label).to(args.device))
    return {stage: values[1:] for stage, values in seconds.items()}  # the first picture warms up

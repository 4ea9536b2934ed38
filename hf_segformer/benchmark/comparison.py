# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Measure this package against the SegFormer of the installed `transformers`, and others where they are installed.

Same weights through a folder, all implementations in turn in one process (mmsegmentation in its own), medians and
ranges. Only the ratios mean anything on another machine. Prints Markdown; `--output_dir` also gets benchmark.md,
benchmark.json with every single measurement, and plots. With `--against` this package is measured against another
state of itself instead, in turn in two processes.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers.utils import logging

from ..commands.parser import Parser
from ..configuration_segformer import VARIANTS
from . import against
from .exports import measure_exports
from .measure import (
    NOT_MEASURED,
    Contender,
    Report,
    alternate,
    describe_machine,
    matrix_product,
    milliseconds,
    peak_memory,
    ratio,
    span,
)
from .networks import Networks, forward_contenders, giga_macs, load_networks, on, reload
from .stages import measure_evaluation, measure_label_maps, measure_stages, photograph

COMPETITORS = ["mmsegmentation", "onnxruntime", "openvino"]
DTYPES = ("float32", "bfloat16", "float16")
# Flags that mean something with --against; how much slower than that nothing is to become.
AGAINST = (
    *("against", "variants", "model", "image", "size", "batch_size", "num_labels", "device", "pairs", "threads"),
    *("train_batch_size", "output_dir"),
)
TIMES_AS_LONG = 1.03


@dataclass(kw_only=True)
class BenchmarkArguments:
    """Command line of `benchmark`; every flag is a field."""

    variants: list[str] = field(default_factory=lambda: ["b0", "b2"], metadata={"help": "b0 to b5, random weights."})
    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id: these weights instead of --variants."}
    )
    image: str | None = field(default=None, metadata={"help": "Picture to segment; a drawn scene if left out."})
    size: str = field(default="512", metadata={"help": "Side of the network's square input, or HEIGHTxWIDTH."})
    batch_size: int = field(default=1, metadata={"help": "Images per forward pass."})
    num_labels: int = field(default=150, metadata={"help": "Classes of random weights."})
    device: str = field(default="cpu", metadata={"help": "Torch device."})
    dtype: str = field(default="float32", metadata={"help": f"Precision of the networks: {', '.join(DTYPES)}."})
    pairs: int = field(default=9, metadata={"help": "Rounds, in each of which every implementation runs once."})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 leaves the number to each implementation."})
    competitors: list[str] = field(
        default_factory=lambda: list(COMPETITORS),
        metadata={"help": "Besides transformers, those that are installed of mmsegmentation, onnxruntime, openvino."},
    )
    mmseg_path: str | None = field(default=None, metadata={"help": "Folder with mmsegmentation and what it needs."})
    compile: bool = field(default=False, metadata={"help": "Also measure torch.compile."})
    train: bool = field(default=False, metadata={"help": "Also measure training steps."})
    train_batch_size: int = field(default=2, metadata={"help": "Images per training step."})
    memory: bool = field(
        default=False, metadata={"help": "Also measure peak memory; with --train of a training step."}
    )
    scaling: bool = field(default=False, metadata={"help": "Also plot cost against batch and image size."})
    variations: bool = field(
        default=False, metadata={"help": "Also at 384x640, at batch 4, for 19 classes and after an optimizer step."}
    )
    scaling_sizes: list[int] = field(
        default_factory=lambda: [256, 384, 512, 768, 1024], metadata={"help": "Sides of the images for --scaling."}
    )
    scaling_batch_sizes: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8], metadata={"help": "Batch sizes for --scaling."}
    )
    exports: bool = field(default=False, metadata={"help": "Also compare exported files, for any size, on a CPU."})
    post_processing: bool = field(default=False, metadata={"help": "Also measure label maps from logits alone."})
    evaluation: bool = field(default=False, metadata={"help": "Also split an evaluation on drawn scenes by stages."})
    against: str | None = field(
        default=None,
        metadata={"help": "Git revision, or folder with the package: measure this package against that one only."},
    )
    output_dir: str | None = field(default=None, metadata={"help": "Where files go; none are written if left out."})

    def __post_init__(self) -> None:
        for name, allowed in (("variants", sorted(VARIANTS)), ("competitors", [*COMPETITORS, "none"])):
            unknown = [value for value in getattr(self, name) if value not in allowed]
            if unknown:
                raise ValueError(f"{name} must be among {', '.join(allowed)}, got {', '.join(unknown)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("batch_size", "num_labels", "pairs", "train_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        sides = self.size.lower().split("x")
        if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
            raise ValueError(f"size must be one side or HEIGHTxWIDTH in pixels, got {self.size!r}")
        if self.against is not None:
            self._check_against()

    def _check_against(self) -> None:
        defaults = BenchmarkArguments()
        for name in sorted(set(vars(defaults)) - set(AGAINST)):
            if getattr(self, name) != getattr(defaults, name):
                raise ValueError(f"{name} must be left out with against, got {getattr(self, name)}")
        if self.pairs < 6:
            raise ValueError(f"pairs must be at least 6 with against, got {self.pairs}")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        sides = [int(side) for side in self.size.lower().split("x")]
        return sides[0], sides[-1]


def main(arguments: Sequence[str], prog: str | None = None) -> None:
    """Measure what the command line asks for.

    Args:
        arguments: Words of the command line.
        prog: How the command is called, for its help.
    """
    (args,) = Parser(BenchmarkArguments, prog=prog).parse(arguments)
    logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.against is not None:
        with ExitStack() as stack:
            measure_against(against.start(args.against, args.threads, stack), args, make_report(args))
        return
    report = make_report(args)
    for variant in args.variants if args.model is None else [""]:
        with ExitStack() as stack:
            networks = load_networks(variant, args.model, args.num_labels, stack)
            measure_network(networks, args, report)
            if args.variations:
                measure_variations(networks, variant, args, report)
    if args.post_processing:
        report.text("## Label maps from logits\n\nPlain: interpolate all scores, then argmax (softmax and max).")
        measure_label_maps(args, report)
    if args.evaluation:
        report.text("## An evaluation on drawn scenes\n\nMedian per picture, and share of the whole.")
        measure_evaluation(args, report)


def make_report(args: BenchmarkArguments) -> Report:
    """Report that begins with the machine."""
    machine = describe_machine()
    report = Report(args.output_dir, {"settings": asdict(args), "machine": machine})
    report.text("; ".join(f"{name} {value}" for name, value in machine.items()))
    return report


def measure_network(networks: Networks, args: BenchmarkArguments, report: Report) -> None:
    """All measurements of one network."""
    height, width = args.image_size
    report.text(
        f"## {networks.name}, {height}x{width}, batch {args.batch_size}, {networks.ours.config.num_labels} classes, "
        f"{args.dtype}, {args.device}, {args.pairs} rounds"
    )
    measure_forward(networks, args, report)
    report.text("### From a 640x480 picture to its label map")
    rows = measure_stages(networks, args, report)
    report.table(["network", "stage", "ours ms", "range", "transformers ms", "range", "times faster", "range"], rows)
    if args.exports:
        measure_exports(networks, args, report)
    if args.train:
        measure_training(networks, args, report)
    if args.memory:
        measure_memory(networks, args, report)
    if args.scaling:
        measure_scaling(networks, args, report)


@torch.inference_mode()
def measure_forward(networks: Networks, args: BenchmarkArguments, report: Report) -> None:
    """Table of the forward passes of all implementations."""
    pixel_values = torch.randn(args.batch_size, 3, *args.image_size)
    double = pixel_values.to(args.device, torch.float64)
    reference = copy.deepcopy(networks.theirs).to(args.device, torch.float64)(double).logits.cpu()
    product, operations = matrix_product(getattr(torch, args.dtype), args.device)
    with ExitStack() as stack:
        contenders = forward_contenders(networks, args, pixel_values, stack)
        errors = {contender.name: relative_error(contender, reference) for contender in contenders}
        seconds = alternate([*contenders, product], args.pairs)
    macs = {
        name: giga_macs(network, args.image_size, args.batch_size)
        for name, network in (("ours", networks.ours), ("transformers", networks.theirs))
    }
    rate = operations / statistics.median(seconds[product.name])
    limit = [2e9 * macs["ours"] / operations * value for value in seconds[product.name]]
    report.data(
        "forward",
        {
            "network": networks.name,
            "seconds": seconds,
            "errors": errors,
            "giga_macs": macs,
            "matrix_product_flops": rate,
        },
    )
    rows = [
        forward_row(contender, seconds, errors[contender.name], limit, args.dtype != "float32")
        for contender in contenders
    ]
    header = ["implementation", "ms", "range", "times faster than transformers", "range", "error", "of the limit"]
    report.table(header + ["times faster than transformers in float32"] * (args.dtype != "float32"), rows)
    report.text(
        f"GMAC with attention: ours {macs['ours']:.2f}, transformers {macs['transformers']:.2f}. A large matrix "
        f"product runs at {rate / 1e9:.0f} GFLOP/s here; at that rate ours would take {milliseconds(limit)} ms, the "
        "limit. Error: largest difference from the logits of transformers in float64, relative to the largest logit."
    )


def relative_error(contender: Contender, reference: torch.Tensor) -> float | None:
    """Largest difference of a contender's logits from the reference, relative to the largest; None where unknown."""
    logits: Any = contender.run() if contender.run is not None else None
    if logits is None:
        return None
    return ((logits.cpu().double() - reference).abs().max() / reference.abs().max()).item()


def forward_row(
    contender: Contender, seconds: dict[str, list[float]], error: float | None, limit: list[float], is_half: bool
) -> list[str]:
    """Row of one implementation."""
    if contender.run is None:
        return [contender.name, contender.absent]
    own = seconds[contender.name]
    row = [contender.name, milliseconds(own), span(own), *ratio(seconds["transformers"], own)]
    row += [NOT_MEASURED if error is None else f"{error:.1e}"]
    row += [f"{100 * statistics.median(a / b for a, b in zip(limit, own, strict=True)):.0f} %"]
    return row + ([ratio(seconds["transformers, float32"], own)[0]] if is_half else [])


def measure_training(networks: Networks, args: BenchmarkArguments, report: Report) -> None:
    """Table of the training steps: forward pass, loss at full size, backward pass, AdamW."""
    sides = {"ours": on(networks.ours, args), "transformers": on(networks.theirs, args)}
    seconds = alternate([Contender(name, training_step(side, args)) for name, side in sides.items()], args.pairs)
    report.data("training", {"network": networks.name, "batch_size": args.train_batch_size, "seconds": seconds})
    ours, theirs = seconds["ours"], seconds["transformers"]
    report.text(f"### Training step, batch {args.train_batch_size}, weights in float32")
    header = ["network", "ours ms", "range", "transformers ms", "range", "times faster", "range"]
    row = [networks.name, milliseconds(ours), span(ours), milliseconds(theirs), span(theirs), *ratio(theirs, ours)]
    report.table(header, [row])


def training_step(network: Any, args: BenchmarkArguments) -> Callable[[], None]:
    """Function that makes one step on random pixels and labels; it trains the network that is given."""
    network.float().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    shape = (args.train_batch_size, *args.image_size)
    pixel_values = torch.randn(shape[0], 3, *shape[1:], generator=generator).to(args.device)
    labels = torch.randint(network.config.num_labels, shape, generator=generator).to(args.device)
    device, dtype = args.device.split(":")[0], getattr(torch, args.dtype)

    def step() -> None:
        with torch.autocast(device, dtype, enabled=args.dtype != "float32"):
            loss = network(pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_memory(networks: Networks, args: BenchmarkArguments, report: Report) -> None:
    """Table of the peak memory of processes that only run one network."""
    rows = []
    script = Path(__file__).parent / "memory.py"
    for train in (False, True) if args.train else (False,):
        batch_size = args.train_batch_size if train else args.batch_size
        settings: dict[str, Any] = {"folder": str(networks.folder), "train": train, "batch_size": batch_size}
        settings |= {"size": args.image_size, "device": args.device, "dtype": args.dtype}
        peaks = {side: peak_memory(script, args.threads, side=side, **settings) for side in ("ours", "transformers")}
        report.data("memory", {"network": networks.name, "train": train, "batch_size": batch_size, "MiB": peaks})
        row = [networks.name, "training step" if train else "forward", batch_size]
        for figures in peaks.values():
            row += [f"{figures['peak']:.0f}", f"{figures['peak'] - figures['imports']:.0f}"]
        own = {side: figures["peak"] - figures["imports"] for side, figures in peaks.items()}
        rows.append([*row, f"{own['transformers'] / own['ours']:.2f}"])
    report.text(
        "### Peak memory of a process while it works, MiB\n\n"
        "Weights included, the loading of them not; also without what was resident after the imports."
    )
    header = ["network", "work", "batch", "ours", "without imports", "transformers", "without imports", "times less"]
    report.table(header, rows)


def measure_scaling(networks: Networks, args: BenchmarkArguments, report: Report) -> None:
    """Table and plot of the forward pass against batch size and image size."""
    height, width = args.image_size
    shapes = {
        "batch size": [(count, height, width) for count in args.scaling_batch_sizes],
        "side of the image": [(1, side, side) for side in args.scaling_sizes],
    }
    rows, panels = [], []
    for label, cases in shapes.items():
        curves: dict[str, list[float]] = {"ours": [], "transformers": []}
        for count, *sides in cases:
            seconds = alternating_forward(networks, (count, 3, *sides), args)
            report.data("scaling", {"network": networks.name, "shape": [count, *sides], "seconds": seconds})
            for name, curve in curves.items():
                curve.append(1e3 * statistics.median(seconds[name]))
            row = [networks.name, count, f"{sides[0]}x{sides[1]}"]
            for name in curves:
                row += [milliseconds(seconds[name]), f"{count / statistics.median(seconds[name]):.1f}"]
            rows.append([*row, *ratio(seconds["transformers"], seconds["ours"])])
        x = [case[0] if label == "batch size" else case[1] for case in cases]
        panels.append((label, "ms", {name: (x, curve) for name, curve in curves.items()}))
    report.text("### Forward pass against batch and image size")
    header = ["network", "batch", "size", "ours ms", "images/s", "transformers ms", "images/s"]
    report.table([*header, "times faster", "range"], rows)
    report.plot(f"scaling_{networks.name}", panels)


def measure_variations(networks: Networks, variant: str, args: BenchmarkArguments, report: Report) -> None:
    """Table of the forward pass in other settings: what is fast only in the benchmark's own would show here."""
    with ExitStack() as stack:
        size = args.image_size
        cases = {"as above": (networks, 1, size), "384x640": (networks, 1, (384, 640)), "batch 4": (networks, 4, size)}
        if args.model is None:
            cases["19 classes"] = (load_networks(variant, None, 19, stack), 1, size)
        cases["after an optimizer step"] = (after_a_step(networks, args, stack), 1, size)
        rows, first = [], None
        for title, (pair, count, sides) in cases.items():
            seconds = alternating_forward(pair, (count, 3, *sides), args)
            report.data("variations", {"network": networks.name, "case": title, "seconds": seconds})
            times = statistics.median(a / b for a, b in zip(seconds["transformers"], seconds["ours"], strict=True))
            first = first or times
            row = [networks.name, title, milliseconds(seconds["ours"]), milliseconds(seconds["transformers"])]
            rows.append(
                [*row, *ratio(seconds["transformers"], seconds["ours"]), f"{100 * (times / first - 1):+.0f} %"]
            )
    report.text("### Forward pass in other settings")
    header = ["network", "setting", "ours ms", "transformers ms", "times faster", "range", "against the first"]
    report.table(header, rows)


def after_a_step(networks: Networks, args: BenchmarkArguments, stack: ExitStack) -> Networks:
    """Both networks with the weights that ours has after a training step."""
    folder = Path(stack.enter_context(TemporaryDirectory()))
    small = dataclasses.replace(args, size="128", dtype="float32", train_batch_size=2)
    network = on(networks.ours, small)
    training_step(network, small)()
    network.eval().save_pretrained(folder)
    return reload(networks.name, folder)


@torch.inference_mode()
def alternating_forward(
    networks: Networks, shape: tuple[int, ...], args: BenchmarkArguments
) -> dict[str, list[float]]:
    """Seconds of the forward passes of both networks."""
    inputs = torch.randn(shape).to(args.device, getattr(torch, args.dtype))
    sides = {"ours": on(networks.ours, args), "transformers": on(networks.theirs, args)}
    contenders = [Contender(name, functools.partial(network, inputs)) for name, network in sides.items()]
    return alternate(contenders, args.pairs, warmup=1)


def measure_against(sides: list[against.Side], args: BenchmarkArguments, report: Report) -> None:
    """Table and verdict of this package and another state of it, which never run at the same time."""
    records: list[dict[str, Any]] = []
    for variant in args.variants if args.model is None else [""]:
        with ExitStack() as stack:
            name, settings = write_inputs(variant, args, stack)
            for job in against.JOBS:
                difference = against.difference(*(side.prepare(job, settings) for side in sides))
                seconds = alternate([Contender(side.name, side.run) for side in sides], args.pairs)
                record = {"what": f"{name} {job}", "seconds": seconds, **against.times_as_long(*seconds.values())}
                records.append(record | {"difference": difference})
                report.data("against", records[-1])
    rows = [
        [
            record["what"],
            *(milliseconds(own) for own in record["seconds"].values()),
            f"{record['median']:.3f}",
            *("{:.3f}-{:.3f}".format(*record[spread]) for spread in ("quartiles", "interval")),
            f"{record['difference']:.1e}" if record["difference"] else "none",
        ]
        for record in records
    ]
    header = ["what", *(f"{side.name} ms" for side in sides), "times as long", "quartiles"]
    report.table([*header, "95 % interval of the median", "difference of outputs"], rows)
    report.text(verdict(records, args))


def verdict(records: list[dict], args: BenchmarkArguments) -> str:
    """What has become slower for sure, what may have, and what gives something else."""
    slower = [record["what"] for record in records if record["interval"][0] > TIMES_AS_LONG]
    unclear = [record["what"] for record in records if record["interval"][0] <= TIMES_AS_LONG < record["interval"][1]]
    others = [record["what"] for record in records if record["difference"] != 0]
    return (
        f"More than {100 * (TIMES_AS_LONG - 1):.0f} % slower than {args.against}: {', '.join(slower) or 'nothing'}. "
        f"Not to be told in {args.pairs} rounds: {', '.join(unclear) or 'nothing'}. "
        f"Other outputs: {', '.join(others) or 'none'}."
    )


def write_inputs(variant: str, args: BenchmarkArguments, stack: ExitStack) -> tuple[str, dict]:
    """Name of a network, and the settings of its jobs with a folder of weights and a picture."""
    networks = load_networks(variant, args.model, args.num_labels, stack)
    weights = networks.ours.state_dict()
    for tensor in weights.values() if args.model is None else []:
        if tensor.ndim == 1:  # biases that are all zero would hide what becomes of them
            tensor += 0.1 * torch.rand_like(tensor)
    torch.save(weights, networks.folder / "state.pt")
    photograph(args.image).save(networks.folder / "picture.png")
    settings = {"folder": str(networks.folder), "size": args.image_size, "device": args.device}
    return networks.name, settings | {"batch_size": args.batch_size, "train_batch_size": args.train_batch_size}

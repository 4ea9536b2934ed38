# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Alternating time measurements, peak memory of a process, and the tables of `benchmark`."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..engine.onednn import matrix_product as multiply

NOT_MEASURED = "not measured"
# Threads of one implementation may spin for a while after it returned; they must not slow down the next one.
_REST = 0.02


@dataclass
class Contender:
    """One implementation of a task.

    Args:
        name: Name in the tables.
        run: Does the task once.
        absent: Why there is no `run`.
    """

    name: str
    run: Callable[[], object] | None = None
    absent: str = NOT_MEASURED


def attempt(name: str, build: Callable[[], Callable[[], object]]) -> Contender:
    """Contender of an optional package: absent, with the reason, where that is missing or cannot do it."""
    try:
        run = build()
        run()
    except ImportError:
        return Contender(name, absent="not installed")
    except Exception as error:  # whatever an optional package raises; one row must not end the benchmark
        return Contender(name, absent=f"failed: {type(error).__name__}: {' '.join(str(error).split())[:80]}")
    return Contender(name, run)


def synchronize() -> None:
    """Wait for the GPU, if there is one in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def alternate(contenders: Sequence[Contender], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds that each contender takes, one after the other in every round, in turn forwards and backwards.

    Args:
        contenders: Those without `run` are left out.
        rounds: Measurements of each, at least 1.
        warmup: Runs of each before.
    """
    present = [(contender.name, contender.run) for contender in contenders if contender.run is not None]
    for _, run in present:
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name, _ in present}
    for turn in range(rounds):
        for name, run in present[:: -1 if turn % 2 else 1]:
            time.sleep(_REST)
            synchronize()
            started = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def milliseconds(seconds: Sequence[float] | None) -> str:
    """Median in milliseconds."""
    return NOT_MEASURED if not seconds else _short(1e3 * statistics.median(seconds))


def span(seconds: Sequence[float] | None) -> str:
    """Smallest and largest in milliseconds."""
    return NOT_MEASURED if not seconds else f"{_short(1e3 * min(seconds))}-{_short(1e3 * max(seconds))}"


def ratio(slower: Sequence[float] | None, faster: Sequence[float] | None) -> tuple[str, str]:
    """Median and range over the rounds of the first divided by the second."""
    if not slower or not faster:
        return NOT_MEASURED, NOT_MEASURED
    ratios = sorted(a / b for a, b in zip(slower, faster, strict=True))
    return f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f}-{ratios[-1]:.2f}"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def matrix_product(dtype: torch.dtype, device: str, side: int = 0) -> tuple[Contender, float]:
    """A large square matrix product, whose rate is what this machine can reach, and its floating-point operations.

    On a CPU through the faster of PyTorch's libraries, which the networks here use too.
    """
    side = side or (8192 if device.startswith("cuda") else 2048)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return Contender("matrix product", lambda: multiply(a, b)), 2.0 * side**3


def peak_memory(script: Path, threads: int, **settings: object) -> dict[str, float]:
    """Peak memory in MiB of a process of its own that runs a script which prints it as JSON."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, "-P", "-W", "ignore", str(script), json.dumps(settings)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"{script.name} failed with {settings}:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def describe_machine() -> dict[str, str]:
    """Processor, threads and versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        processor = names[0] if names else processor
    packages = ("transformers", "numpy", "pillow", "torchvision", "onnxruntime", "openvino")
    versions = {"torch": str(torch.__version__)}  # names the build, too
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    python = platform.python_version()
    return {"processor": processor, "cores": cores, "threads": str(torch.get_num_threads()), "python": python} | (
        gpu | versions
    )


class Report:
    """Markdown on standard output, and with a folder also benchmark.md, benchmark.json and the plots.

    Args:
        folder: Where files go; None writes none.
        settings: Everything that describes the run, for the JSON file.
    """

    def __init__(self, folder: str | None, settings: dict):
        self.folder = None if folder is None else Path(folder)
        self._data = dict(settings)
        self._text: list[str] = []
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def text(self, text: str) -> None:
        """Add a paragraph."""
        print(f"{text}\n", flush=True)
        self._text.append(text)
        if self.folder is not None:
            (self.folder / "benchmark.md").write_text("\n\n".join(self._text) + "\n", encoding="utf-8")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; a row that ends early is filled up with "not measured"."""
        lines: list[Sequence[object]] = [header, ["--"] * len(header)]
        lines += [[*row, *[NOT_MEASURED] * (len(header) - len(row))] for row in rows]
        self.text("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))

    def data(self, section: str, record: dict) -> None:
        """Add a record of raw figures; written at once, so that an interrupted run keeps what it measured."""
        self._data.setdefault(section, []).append(record)
        if self.folder is not None:
            (self.folder / "benchmark.json").write_text(json.dumps(self._data, indent=1) + "\n", encoding="utf-8")

    def plot(self, name: str, panels: Sequence[tuple[str, str, dict[str, tuple[list, list]]]]) -> None:
        """Write a picture of panels (x label, y label, {line: (x, y)}) side by side; nothing without a folder."""
        if self.folder is None:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
        for axes, (x_label, y_label, lines) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for line, (x, y) in lines.items():
                axes.plot(x, y, marker="o", label=line)
            axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(self.folder / f"{name}.png", dpi=120)

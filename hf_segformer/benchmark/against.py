# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""This package against another state of itself, each in a process of its own; run as a script it is such a process.

Both are copies in a temporary folder, so that nothing that is edited meanwhile enters the measurement. A process does
one job at a time, and only when it is told to.
"""

import functools
import io
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import pipeline

import hf_segformer
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "hf_segformer"
Outputs = dict[str, Tensor]


# --------------------------------------------------------------------------------------------- the side that compares


class Side:
    """A process that imports the package from a folder of its own.

    Args:
        name: Name in the tables.
        root: Folder with the package; the process's error messages go there too.
        threads: CPU threads; 0 leaves the number to PyTorch.
    """

    def __init__(self, name: str, root: Path, threads: int):
        self.name, self.root, self._errors = name, root, root / "errors"
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        environment["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        command = [sys.executable, "-P", "-W", "ignore", str(Path(__file__).resolve())]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self._errors.open("wb") as stderr:
            self._process = subprocess.Popen(command, stderr=stderr, text=True, env=environment, **pipes)

    def check_import(self) -> None:
        """Wait until the package is imported.

        Raises:
            ValueError: It cannot be.
        """
        answer = self._answer()
        if answer != str(self.root):
            reason = f"Python imports it from {answer}" if answer else self._last_error()
            raise ValueError(f"the package {PACKAGE} of {self.name} cannot be imported: {reason}")

    def prepare(self, job: str, settings: dict) -> Outputs:
        """Get ready for a job; returns what it gives.

        Args:
            job: One of `JOBS`.
            settings: `folder` with configuration, `state.pt` and `picture.png`; `size`, `batch_size`,
                `train_batch_size` and `device`.
        """
        outputs = self.root / "outputs.pt"
        self._ask({"job": job, "settings": settings, "outputs": str(outputs)})
        return torch.load(outputs)

    def run(self) -> None:
        """Do the job once."""
        self._ask({})

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()  # closes what it reads from

    def _ask(self, message: dict) -> None:
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
            answer = self._answer()
        except BrokenPipeError:
            answer = ""
        if answer != "done":
            raise RuntimeError(f"{self.name} stopped: {self._last_error()}")

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _last_error(self) -> str:
        self._process.wait()
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else f"exit code {self._process.returncode}"


def start(reference: str, threads: int, stack: ExitStack) -> list[Side]:
    """This package and another state of it, both imported.

    Args:
        reference: Folder that holds the package, or a git revision of this checkout.
        threads: CPU threads of each.
        stack: Takes charge of processes and files.

    Raises:
        ValueError: There is no such package, or it cannot be imported.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
    roots = folder / "this", folder / "other"
    _put_package(reference, roots[1])
    _copy_package(ROOT, roots[0])
    sides = []
    for name, root in zip(("this package", reference), roots, strict=True):
        sides.append(Side(name, root, threads))
        stack.callback(sides[-1].stop)
    for side in sides:
        side.check_import()
    return sides


def _put_package(reference: str, target: Path) -> None:
    source = Path(reference)
    if source.is_dir():
        if not (source / PACKAGE / "__init__.py").is_file():
            raise ValueError(f"against must be a folder that holds the package {PACKAGE}, but {source} does not")
        return _copy_package(source, target)
    unknown = f"against must be a folder or a git revision of {ROOT}, got {reference!r}"
    commit = _git(unknown, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}")
    missing = f"against must be a git revision that holds the package {PACKAGE}, got {reference!r}"
    archive = _git(missing, "archive", "--format=tar", commit.decode().strip(), PACKAGE)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(target, filter="data")


def _copy_package(source: Path, target: Path) -> None:
    shutil.copytree(source / PACKAGE, target / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))


def _git(complaint: str, *arguments: str) -> bytes:
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise ValueError(f"{complaint}; for a revision git must be installed") from error
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.decode(errors="replace").split())
        raise ValueError(complaint + (f": {reason}" if reason else "")) from error


def difference(ours: Outputs, theirs: Outputs) -> float:
    """Largest difference of outputs relative to the largest value of each; of integers the share that is not equal."""
    differences = []
    for name, expected in theirs.items():
        actual = ours[name]
        if actual.shape != expected.shape:
            return math.inf
        if not expected.is_floating_point():
            differences.append((actual != expected).double().mean())
        elif not torch.equal(actual, expected):
            actual, expected = actual.double(), expected.double()
            differences.append((actual - expected).abs().max() / expected.abs().max())
    return float(torch.stack(differences).max()) if differences else 0.0


def times_as_long(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | tuple[float, float]]:
    """Median and quartiles of the ratios of paired times, and the interval that holds their true median.

    The interval reaches from one ratio to another and is right with at least 95 % probability, by the binomial
    distribution of how many lie below the true median.

    Args:
        ours: At least 6 times.
        theirs: As many.
    """
    ratios = sorted(own / other for own, other in zip(ours, theirs, strict=True))
    count = len(ratios)
    rank = max(k for k in range(1, count) if sum(math.comb(count, i) for i in range(k)) <= 0.025 * 2**count)
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": median, "quartiles": (low, high), "interval": (ratios[rank - 1], ratios[-rank])}


# ------------------------------------------------------------------------------------------- the side that is measured


def _network(settings: dict, **fields: float) -> Any:
    folder = Path(settings["folder"])
    network = SegformerForSemanticSegmentation(SegformerConfig.from_pretrained(folder, **fields))
    network.load_state_dict(torch.load(folder / "state.pt"))
    return network.eval().to(settings["device"])


def _pixels(settings: dict, batch_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 3, *settings["size"], generator=generator).to(settings["device"])


def _forward(settings: dict, dtype: torch.dtype) -> tuple[Callable, Outputs]:
    network, pixel_values = _network(settings).to(dtype), _pixels(settings, settings["batch_size"]).to(dtype)
    run = torch.inference_mode()(lambda: network(pixel_values).logits)
    return run, {"logits": run().clone().cpu()}


def _training_step(settings: dict) -> tuple[Callable, Outputs]:
    """Forward pass, loss at full size, backward pass, AdamW; the outputs are those of a network without chance."""
    pixel_values = _pixels(settings, settings["train_batch_size"])
    network = _network(settings, drop_path_rate=0.0, classifier_dropout_prob=0.0).train()
    shape, generator = (len(pixel_values), *pixel_values.shape[2:]), torch.Generator().manual_seed(1)
    labels = torch.randint(network.config.num_labels, shape, generator=generator).to(pixel_values.device)
    loss = network(pixel_values, labels=labels).loss
    loss.backward()
    gradients = torch.cat([parameter.grad.flatten().cpu() for parameter in network.parameters()])
    network = _network(settings).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def run() -> None:
        network(pixel_values, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run, {"loss": loss.detach().cpu(), "gradients": gradients}


def _pipeline(settings: dict) -> tuple[Callable, Outputs]:
    height, width = settings["size"]
    processor = SegformerImageProcessor(size={"height": height, "width": width})
    image = Image.open(Path(settings["folder"]) / "picture.png").convert("RGB")
    segment: Any = pipeline(
        "image-segmentation", model=_network(settings), image_processor=processor, device=settings["device"]
    )
    run = functools.partial(segment, image)
    classes = {label: index for index, label in segment.model.config.id2label.items()}
    label_map = torch.full(image.size[::-1], -1)
    for part in run():
        label_map[torch.from_numpy(np.array(part["mask"]) > 0)] = classes[part["label"]]
    return run, {"label map": label_map}


JOBS: dict[str, Callable[[dict], tuple[Callable, Outputs]]] = {
    "forward float32": functools.partial(_forward, dtype=torch.float32),
    "forward bfloat16": functools.partial(_forward, dtype=torch.bfloat16),
    "training step": _training_step,
    "pipeline": _pipeline,
}


def main() -> None:
    """Say where the package came from, then do what each line of the input asks for: get ready for a job, or do it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed must not be taken for an answer
    print(Path(hf_segformer.__file__).resolve().parents[1], file=answers, flush=True)
    run: Callable | None = None
    for line in sys.stdin:
        message = json.loads(line)
        if message:
            run = None  # its network is not to stay in memory
            run, outputs = JOBS[message["job"]](message["settings"])
            torch.save(outputs, message["outputs"])
        elif run is not None:
            run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()

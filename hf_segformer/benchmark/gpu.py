# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What to run first on a machine with a GPU: is everything right there, which kernels are chosen, and how fast is it?

    python hf_segformer/benchmark/gpu.py --output_dir gpu_report
    python hf_segformer/benchmark/gpu.py --output_dir cpu_report --device cpu --dry_run

Needs PyTorch and `transformers` only (the last part OpenCV too), no network and no files, and takes a few minutes.
`gpu.json` and `gpu.md` are written after each row; a part that fails is reported and the next one runs. A further run
with other `--parts` adds to the report. The exit code is 0 if all parts passed.
"""

import argparse
import collections
import contextlib
import copy
import functools
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if not __package__:  # run as a script: of the checkout that it lies in
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation as Builtin

from hf_segformer import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    __version__,
    engine,
)
from hf_segformer.benchmark.report import Report, commit, compare, synchronize
from hf_segformer.engine import kernel_choice
from hf_segformer.engine.triton_scores import triton
from hf_segformer.scores.label_map import upsample_argmax

VARIANTS = ("b0", "b2")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNELS = ("depthwise_gelu", "upsample_add_relu", "upsample_argmax", "upsample_cross_entropy")
# Error relative to float64 that is always allowed, and otherwise as a multiple of the error of `transformers`.
_FLOOR, _TIMES_THEIRS = 1e-5, 2
_SAME_LABELS = 0.999


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    config: dict = field(default_factory=dict)
    classes: int = 150
    side: int = 512
    batches: tuple[int, ...] = (1, 16)
    train_batch: int = 8
    rounds: int = 20
    maps: tuple[tuple[int, ...], ...] = ((1, 150, 128, 128), (16, 150, 128, 128), (1, 19, 256, 512))
    scenes: int = 600
    crop: int = 128
    workers: int = 8


_TINY = {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 20}
DRY = Scale(_TINY | {"depths": [1, 1, 1, 1]}, 5, 64, (1, 2), 2, 2, ((1, 5, 16, 16), (2, 7, 12, 20)), 8, 64, 0)


def make_pair(variant: str, scale: Scale, device: torch.device, **fields: Any) -> tuple[nn.Module, nn.Module]:
    """Our network and that of `transformers`, from one folder, with weights that have no symmetry."""
    config = SegformerConfig.for_variant(variant, num_labels=scale.classes, **scale.config, **fields)
    ours, generator = SegformerForSemanticSegmentation(config), torch.Generator().manual_seed(0)
    for name, tensor in ours.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if "running_var" in name:
            tensor.copy_(0.5 + noise.abs())
        elif tensor.ndim > 1:
            tensor.copy_(noise * 0.8 / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        pair = [kind.from_pretrained(folder) for kind in (SegformerForSemanticSegmentation, Builtin)]
    first, second = (network.eval().to(device) for network in pair)
    return first, second


# --------------------------------------------------------------------------------------------------------------- parts


def parity(args: argparse.Namespace, scale: Scale) -> Iterator[dict]:
    """Both networks against that of `transformers` in float64: logits, and in float32 loss and gradients."""
    with _full_float32():
        for variant in VARIANTS:
            no_chance = {"classifier_dropout_prob": 0.0, "drop_path_rate": 0.0}
            ours, theirs = make_pair(variant, scale, args.device, **no_chance)
            reference = copy.deepcopy(theirs).double()
            pixels = torch.randn(2, 3, scale.side, scale.side - 27, device=args.device)
            labels = _labels(pixels, scale)
            with torch.inference_mode():
                expected = reference(pixels.double()).logits
                for dtype in DTYPES:
                    row = {"network": variant, "dtype": _name(dtype), "what": "logits"}
                    inputs = pixels.to(dtype)
                    results = []
                    for network in (ours, theirs):
                        network = copy.deepcopy(network).to(dtype)
                        network(inputs)  # at the first use kernels are only tried
                        results.append(network(inputs).logits)
                    yield row | _errors(results[0], results[1], expected)
            results = [
                _loss_and_gradients(network, pixels.to(dtype), labels)
                for network, dtype in ((ours, torch.float32), (theirs, torch.float32), (reference, torch.float64))
            ]
            for what in ("loss", "gradients"):
                row = {"network": variant, "dtype": "float32", "what": what}
                yield row | _errors(*(result[what] for result in results))


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Convolutions without TF32, which has the digits of float16."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _errors(ours: Tensor, theirs: Tensor, expected: Tensor) -> dict:
    ours, theirs = ours.double(), theirs.double()
    errors = [float((result - expected).norm() / expected.norm()) for result in (ours, theirs)]
    bound = max(_FLOOR, _TIMES_THEIRS * errors[1])
    return {
        "largest difference": float((ours - theirs).abs().max()),
        "largest value": float(expected.abs().max()),
        **dict(zip(("error of ours", "error of theirs"), errors, strict=True)),
        "bound": bound,
        "passed": errors[0] <= bound,
    }


def _loss_and_gradients(network: Any, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Loss of a training step and the gradients of all parameters, in the order that they have on disk."""
    network = copy.deepcopy(network).train()
    loss = network(pixels, labels=labels).loss
    loss.backward()
    for parameter in network.parameters():
        parameter.data = parameter.grad
    for buffer in network.buffers():
        buffer.zero_()
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        tensors = sorted(load_file(Path(folder) / "model.safetensors").items())
    gradients = torch.cat([tensor.flatten().double() for _, tensor in tensors])
    return {"loss": loss.detach(), "gradients": gradients}


def kernels(args: argparse.Namespace, scale: Scale) -> Iterator[dict]:
    """What runs in place of the textbook's functions, which kernels are used in it, and why."""
    kernel_choice.forget()
    asked = set()
    for variant in VARIANTS:
        ours, _ = make_pair(variant, scale, args.device)
        for dtype, batch in itertools.product(DTYPES, scale.batches):
            network = copy.deepcopy(ours).to(dtype)
            pixels = torch.randn(batch, 3, scale.side, scale.side, device=args.device, dtype=dtype)
            for what, run in _uses(network, pixels, _labels(pixels, scale)):
                with engine.record(network) as choices:
                    run()
                for row in _choices_by_kernel(choices):
                    asked.add((row["kernel"], dtype))
                    row = {"dtype": _name(dtype), "network": variant, "batch": batch, "what": what} | row
                    yield row | {"passed": row["used"] or row["why"].startswith("slower") or not _expected(pixels)}
    for name, dtype in itertools.product(KERNELS, DTYPES):
        if (name, dtype) not in asked:
            expected = _expected(torch.zeros(1, dtype=dtype, device=args.device))
            row = {"kernel": name, "dtype": _name(dtype), "used": False, "why": "not eligible"}
            yield row | {"passed": not expected}


def _expected(values: Tensor) -> bool:
    """Whether kernels should be tried for such values."""
    return engine.is_enabled() and not kernel_choice.no_kernels([values])


def _uses(network: nn.Module, pixels: Tensor, labels: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is done with a network, by name."""
    forward, size = torch.inference_mode()(lambda: network(pixels, labels=labels).logits), pixels.shape[2:]
    yield "inference", forward
    logits = forward()
    for name, with_confidence in (("label map", False), ("label map and confidence", True)):
        yield name, functools.partial(upsample_argmax, logits, size, with_confidence)
    yield "training step", lambda: network.train()(pixels, labels=labels).loss.backward()


def _choices_by_kernel(choices: engine.Choices) -> Iterator[dict]:
    """For each kernel that was asked for, what ran and what it said, alike ones once."""
    seen: dict[tuple, dict[str, Any]] = {}
    for choice in choices:
        for note in choice.notes:
            said, _, why = note.partition(": ")
            if said.rpartition("kernel ")[2] in KERNELS:
                row: dict[str, Any] = {
                    "kernel": said.rpartition(" ")[2],
                    "function": choice.function,
                    "ran": choice.ran,
                }
                row |= {"used": not said.startswith("no "), "why": why}
                seen.setdefault(tuple(row.values()), row | {"calls": 0})["calls"] += 1
    return iter(seen.values())


def _what_ran(run: Callable[[], object]) -> str:
    """Which implementations of the textbook's functions a call takes, and how often; each kernel beside it."""
    with engine.record() as choices:
        run()
    counted: collections.Counter[str] = collections.Counter()
    if all(choice.ran == engine.TEXTBOOK for choice in choices):
        return "the textbook alone"
    for choice in choices:
        used = [note.partition(": ")[0].rpartition(" ")[2] for note in choice.notes if note.startswith("kernel ")]
        counted[f"{choice.function}: {' with '.join([choice.ran, *used])}"] += 1
    return ", ".join(f"{what} ({number}x)" for what, number in counted.items())


def speed(args: argparse.Namespace, scale: Scale) -> Iterator[dict]:
    """Forward passes and training steps against `transformers`; precisions below float32 by autocast in training."""
    for variant in VARIANTS:
        pair = make_pair(variant, scale, args.device)
        for dtype, batch in itertools.product(DTYPES, scale.batches):
            pixels = torch.randn(batch, 3, scale.side, scale.side, device=args.device, dtype=dtype)
            row = {"network": variant, "what": "forward", "dtype": _name(dtype), "batch": batch}
            runs: list[Callable[[], object]] = [_forward(copy.deepcopy(network).to(dtype), pixels) for network in pair]
            yield row | compare(runs[0], runs[1], scale.rounds, args.device) | {"ran": _what_ran(runs[0])}
        for dtype in DTYPES:
            pixels = torch.randn(scale.train_batch, 3, scale.side, scale.side, device=args.device)
            row = {"network": variant, "what": "training step", "dtype": _name(dtype), "batch": len(pixels)}
            labels = _labels(pixels, scale)
            runs = [_training_step(copy.deepcopy(network), pixels, labels, dtype) for network in pair]
            yield row | compare(runs[0], runs[1], scale.rounds, args.device) | {"ran": _what_ran(runs[0])}


def _forward(network: nn.Module, pixels: Tensor) -> Callable[[], Tensor]:
    return torch.inference_mode()(lambda: network(pixels).logits)


def _training_step(network: nn.Module, pixels: Tensor, labels: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=1e-5)

    def run() -> None:
        with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            loss = network(pixels, labels=labels).loss
        loss.backward()  # without a scaler: what fits into float16 or not takes the same time
        optimizer.step()
        optimizer.zero_grad()

    return run


@torch.inference_mode()
def label_map(args: argparse.Namespace, scale: Scale) -> Iterator[dict]:
    """Label maps against those of upsampled scores; agreement with scores upsampled in float32."""
    processor = SegformerImageProcessor()
    for (batch, classes, height, width), dtype in itertools.product(scale.maps, DTYPES):
        coarse = torch.randn(batch, classes, height // 8, width // 8, device=args.device)
        logits = (5 * F.interpolate(coarse, size=(height, width), mode="bicubic")).to(dtype)
        size = (4 * height, 4 * width)
        plain, outputs = functools.partial(_plain, logits, size), SimpleNamespace(logits=logits)
        ways: dict[str, Callable[[], Any]] = {
            "upsample_argmax": functools.partial(upsample_argmax, logits, size),
            "post_process": functools.partial(processor.post_process_semantic_segmentation, outputs, [size] * batch),
        }
        for name, run in ways.items():
            row: dict[str, object] = {"what": name, "logits": "x".join(map(str, logits.shape)), "dtype": _name(dtype)}
            row |= compare(run, plain, scale.rounds, args.device) | {"ran": _what_ran(run)}
            labels = zip(run(), _plain(logits.float(), size), strict=True)
            share = statistics.fmean(float((ours == expected).double().mean()) for ours, expected in labels)
            yield row | {"same labels": share, "bound": _SAME_LABELS, "passed": share >= _SAME_LABELS}


def _plain(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)


def training(args: argparse.Namespace, scale: Scale) -> Iterator[dict]:
    """B0 from scratch on drawn scenes in bfloat16, with the parts that examples/train.py is made of."""
    from hf_segformer.data import DrawSampler, draw_scene
    from hf_segformer.data.scene_painter import CLASS_NAMES
    from hf_segformer.recipes import default_recipe
    from hf_segformer.training import (
        SegmentationLoss,
        initialize_as_published,
        parameter_groups,
        set_learning_rate,
        step_seed,
    )

    recipe = replace(default_recipe("scenes"), image_size=scale.crop, crop_size=scale.crop)
    samples = _Scenes([draw_scene(index) for index in range(scale.scenes)], recipe.transform())
    options = {"num_workers": min(scale.workers, os.cpu_count() or 1), "pin_memory": args.device.type == "cuda"}
    loader = torch.utils.data.DataLoader(samples, batch_sampler=DrawSampler(recipe.batch_size), **options)
    torch.manual_seed(0)
    config = SegformerConfig.for_variant("b0", num_labels=len(CLASS_NAMES), **scale.config)
    model = SegformerForSemanticSegmentation(config)
    initialize_as_published(model, recipe.initialization)
    model.train().to(args.device)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.learning_rate, head_multiplier=1.0))
    loss_function, losses, warm = SegmentationLoss(), [], 5
    started = time.perf_counter()
    for step, batch in enumerate(loader):
        share = (time.perf_counter() - started) / args.seconds
        if share >= 1 and step > 2 * warm:
            break
        if step == warm:
            synchronize()
            warmed = time.perf_counter()
        torch.manual_seed(step_seed(0, step))
        set_learning_rate(optimizer, max(min((step + 1) / 50, 1 - share), 0.0))
        batch = {name: tensor.to(args.device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(args.device.type, torch.bfloat16):
            logits = model(batch["pixel_values"]).logits
        loss = loss_function(logits, batch["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    losses = torch.stack(losses).tolist()
    rate, some = (len(losses) - warm) / (time.perf_counter() - warmed), max(min(len(losses) // 4, 20), 1)
    first, last = (sum(part) / some for part in (losses[:some], losses[-some:]))
    yield {
        "steps": len(losses),
        "batch": recipe.batch_size,
        "steps/s": rate,
        "images/s": rate * recipe.batch_size,
        f"loss, first {some}": first,
        f"loss, last {some}": last,
        "passed": last < first,
    }


class _Scenes(torch.utils.data.Dataset):
    """Augmented scenes by draw number, as `TrainingSamples` has them but without the package `datasets`."""

    def __init__(self, scenes: list, transform: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        self.scenes, self.transform = scenes, transform

    def __getitem__(self, draw: int) -> dict[str, Tensor]:
        image, label = self.transform(*self.scenes[draw % len(self.scenes)], np.random.default_rng([0, draw, 1]))
        return {"pixel_values": torch.from_numpy(image), "labels": torch.from_numpy(label)}


def _labels(pixels: Tensor, scale: Scale) -> Tensor:
    """Random labels of each pixel, a few without a class."""
    labels = torch.randint(scale.classes, (len(pixels), *pixels.shape[2:]), device=pixels.device)
    labels[:, ::7, ::5] = 255
    return labels


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ----------------------------------------------------------------------------------------------------------- the whole

PARTS = {part.__name__: part for part in (parity, kernels, speed, label_map, training)}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder of gpu.json and gpu.md.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu.")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="Parts to run.")
    parser.add_argument("--seconds", type=float, default=60.0, help="How long to train.")
    parser.add_argument("--dry_run", action="store_true", help="Tiny networks and pictures, to try the script itself.")
    args = parser.parse_args(arguments)
    args.device = _device(args.device)
    if not args.seconds > 0:
        raise ValueError(f"seconds must be > 0, got {args.seconds}")
    report, scale = Report(args.output_dir, "gpu", environment(args)), DRY if args.dry_run else Scale()
    switches = {"HF_SEGFORMER_NO_KERNELS": "1", "HF_SEGFORMER_ENGINE": "off"}
    settings = [f"{name}={value}" for name, value in switches.items() if os.environ.get(name) == value]
    remarks = {"remark": " ".join(settings)} if settings else {}
    passed = True
    for index, name in enumerate(args.parts):
        print(f"{name} ...", flush=True)
        torch.manual_seed(0)
        passed &= report.run(name, functools.partial(PARTS[name], args, scale), **remarks)
        part = report.parts[name]
        error = "{type}: {message}".format(**part["error"]) if "error" in part else ""
        print(f"{name}: {part['status']}, {part['seconds']:.1f} s {error}", flush=True)
        if not passed and not _is_usable(args.device):
            return _run_elsewhere(args, args.parts[index + 1 :])
    print(f"see {args.output_dir / 'gpu.md'}")
    return 0 if passed else 1


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cuda, cuda:N or cpu, got {name!r}") from error
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"device must be cuda, cuda:N or cpu, got {name!r}")
    if device.type == "cpu":
        return device
    if (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs here")
    torch.cuda.set_device(device.index or 0)  # Triton launches on the current device
    return torch.device("cuda", device.index or 0)


def environment(args: argparse.Namespace) -> dict[str, object]:
    """Machine, versions and settings."""
    gpu: dict[str, object] = {"device": platform.machine(), "capability": None, "memory, GiB": None}
    if args.device.type == "cuda":
        properties = torch.cuda.get_device_properties(args.device)
        gpu = {"device": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        gpu["memory, GiB"] = round(properties.total_memory / 2**30, 1)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "triton": triton and triton.__version__,
        "transformers": transformers.__version__,
        "hf_segformer": __version__,
        "commit": commit(),
    }
    return gpu | versions | {"dry run": args.dry_run}


def _is_usable(device: torch.device) -> bool:
    """Whether the GPU still answers: after an illegal access every further call of the process fails."""
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError:
        return False
    return True


def _run_elsewhere(args: argparse.Namespace, parts: list[str]) -> int:
    """Run the remaining parts in a new process, without the kernels, which are what may have broken this one."""
    if parts:
        print("the GPU does not answer this process any more; going on in another one, without kernels", flush=True)
        command = [sys.executable, str(Path(__file__)), "--output_dir", str(args.output_dir)]
        command += ["--device", str(args.device), "--seconds", str(args.seconds), *["--dry_run"] * args.dry_run]
        subprocess.run([*command, "--parts", *parts], env=os.environ | {"HF_SEGFORMER_NO_KERNELS": "1"}, check=False)
    return 1


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Time the engine with other values of the constants that were found by timing, and oneDNN's products against MKL's.

    python -m hf_segformer.benchmark.constants --variants b0 b2 --threads 2
    python -m hf_segformer.benchmark.constants --constants mix_ffn._BAND_BYTES --variants b1
    python -m hf_segformer.benchmark.constants --products

Each value takes its turn in every round; the first column is the value in use. Medians in milliseconds.
"""

import argparse
import functools
import importlib
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch.nn import functional as F

from .. import VARIANTS, SegformerConfig, SegformerForSemanticSegmentation, upsample_argmax
from ..engine.onednn import matrix_product

# Module below the package, and what it is that the constant makes slower or faster.
CONSTANTS = {
    "engine.mix_ffn._BAND_BYTES": "forward",
    "engine.mix_ffn._CHUNK_BYTES": "training",
    "engine.fused_map._BAND_BYTES": "forward",
    "engine.attention._WEIGHTS_BYTES": "bfloat16",
    "engine.label_map._FEW_SCORES": "label_map",
    "scores.bilinear._BAND_ELEMENTS": "label_map",
    "scores.bilinear._SLAB_ELEMENTS": "label_map",
}
FACTORS = (1, 1 / 4, 1 / 2, 2, 4)


def main(arguments: list[str] | None = None) -> None:
    """Print one table for each constant, or for oneDNN's products."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constants", nargs="+", default=list(CONSTANTS), help="Some of the names in the tables.")
    parser.add_argument("--variants", nargs="+", default=["b0", "b2"], choices=sorted(VARIANTS))
    parser.add_argument("--products", action="store_true", help="Time the linear layers' products instead.")
    parser.add_argument("--size", type=int, default=512, help="Side of the image.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.products:
        print_products(options.variants, options.size, options.rounds)
        return
    for name in options.constants:
        known = [constant for constant in CONSTANTS if constant.endswith(name)]
        if len(known) != 1:
            parser.error(f"--constants must be among {', '.join(CONSTANTS)}, got {name}")
        for variant in options.variants:
            print_sweep(known[0], variant, options.size, options.rounds)


def print_sweep(name: str, variant: str, size: int, rounds: int) -> None:
    """Time a job with several values of one constant."""
    module_name, _, attribute = name.rpartition(".")
    module = importlib.import_module(f"{__package__.rpartition('.')[0]}.{module_name}")
    used = getattr(module, attribute)
    run = _job(CONSTANTS[name], variant, size)
    values = [max(int(used * factor), 1) for factor in FACTORS]

    def with_value(value: int) -> None:
        setattr(module, attribute, value)
        run()

    try:
        times = _alternate([functools.partial(with_value, value) for value in values], rounds)
    finally:
        setattr(module, attribute, used)
    cells = [f"{value:,}: {milliseconds:.1f}" for value, milliseconds in zip(values, times, strict=True)]
    print(f"{name}, {CONSTANTS[name]}, {variant}: " + " | ".join(cells), flush=True)


def print_products(variants: Iterable[str], size: int, rounds: int) -> None:
    """Time each stage's linear layers by MKL and by oneDNN."""
    for variant in variants:
        config = SegformerConfig.for_variant(variant)
        sides = [size // 4, size // 8, size // 16, size // 32]
        for width, ratio, side in zip(config.hidden_sizes, config.mlp_ratios, sides, strict=True):
            for channels, outputs in ((width, width), (width, ratio * width), (ratio * width, width)):
                values, weight = torch.randn(side**2, channels), torch.randn(outputs, channels)
                ways = [functools.partial(product, values, weight) for product in (F.linear, matrix_product)]
                with torch.no_grad():
                    mkl, onednn = _alternate(ways, rounds * 3)
                print(f"{variant} {side**2} x {channels} x {outputs}: MKL {mkl:.3f} | oneDNN {onednn:.3f}", flush=True)


def _job(kind: str, variant: str, size: int) -> Callable[[], object]:
    if kind == "label_map":
        logits = torch.randn(1, 150, size // 4, size // 4)
        return lambda: upsample_argmax(logits, (size, size))
    model = SegformerForSemanticSegmentation(SegformerConfig.for_variant(variant, num_labels=150))
    if kind == "training":
        pixel_values, labels = torch.randn(2, 3, size, size), torch.randint(0, 150, (2, size, size))
        return lambda: model.train()(pixel_values, labels).loss.backward()
    pixel_values = torch.randn(1, 3, size, size)
    if kind == "bfloat16":
        model, pixel_values = model.bfloat16(), pixel_values.bfloat16()
    return torch.inference_mode()(lambda: model.eval()(pixel_values))


def _alternate(ways: Iterable[Callable[[], object]], rounds: int) -> list[float]:
    """Median milliseconds of each, one after the other in every round, in turn forwards and backwards."""
    ways = list(ways)
    times: list[list[float]] = [[] for _ in ways]
    for number in range(rounds + 1):
        for index in range(len(ways)) if number % 2 else reversed(range(len(ways))):
            start = time.perf_counter()
            ways[index]()
            if number:  # the first round warms up
                times[index].append(1e3 * (time.perf_counter() - start))
    return [statistics.median(one) for one in times]


if __name__ == "__main__":
    main()

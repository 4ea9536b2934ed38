# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Time the forward pass against the SegFormer of the installed `transformers`: same weights, alternating, one process.

    python examples/benchmark.py --variants b0 b2 --size 512 --pairs 9

Prints a Markdown table: the median of each, and the median and range of the ratio over the pairs. Only the ratio means
anything on another machine.
"""

import argparse
import statistics
import tempfile
import time

import torch
from transformers.models.segformer import modeling_segformer as builtin

from hf_segformer import VARIANTS, SegformerConfig, SegformerForSemanticSegmentation


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["b0", "b2"], choices=sorted(VARIANTS))
    parser.add_argument("--size", type=int, default=512, help="Side of the square image.")
    parser.add_argument("--batch_size", type=int, default=1, help="Images per forward pass.")
    parser.add_argument("--num_labels", type=int, default=150, help="Classes.")
    parser.add_argument("--pairs", type=int, default=9, help="Alternating pairs of measurements.")
    parser.add_argument("--device", default="cpu", help="Torch device.")
    return parser.parse_args(arguments)


def seconds(model: torch.nn.Module, pixel_values: torch.Tensor) -> float:
    """Wall time of one forward pass."""
    started = time.perf_counter()
    model(pixel_values)
    if pixel_values.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def compare(variant: str, args: argparse.Namespace) -> tuple[list[float], list[float], float]:
    """Times of ours and theirs, and the largest difference of the logits relative to the largest logit."""
    ours = SegformerForSemanticSegmentation(SegformerConfig.for_variant(variant, num_labels=args.num_labels)).eval()
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = builtin.SegformerForSemanticSegmentation.from_pretrained(folder).eval().to(args.device)
    ours.to(args.device)
    pixel_values = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    expected = theirs(pixel_values).logits
    difference = ((ours(pixel_values).logits - expected).abs().max() / expected.abs().max()).item()
    pairs = [(seconds(ours, pixel_values), seconds(theirs, pixel_values)) for _ in range(args.pairs)]
    return [mine for mine, _ in pairs], [other for _, other in pairs], difference


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    args = parse_arguments(arguments)
    torch.manual_seed(0)
    print(
        f"{args.size}x{args.size}, batch {args.batch_size}, {args.num_labels} classes, float32, {args.device}",
        end=", ",
    )
    print(f"{torch.get_num_threads()} threads, {args.pairs} pairs\n")
    print("| variant | ours ms | transformers ms | ratio | range | largest relative difference |")
    print("|--|--|--|--|--|--|")
    for variant in args.variants:
        ours, theirs, difference = compare(variant, args)
        ratios = sorted(other / mine for mine, other in zip(ours, theirs, strict=True))
        print(
            f"| {variant.upper()} | {1e3 * statistics.median(ours):.0f} | {1e3 * statistics.median(theirs):.0f} | "
            f"{statistics.median(ratios):.2f} | {ratios[0]:.2f}-{ratios[-1]:.2f} | {difference:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Segment images and folders of images.

    python examples/predict.py --model runs/scenes-b0 IMAGE_OR_FOLDER... --output_dir predictions

Writes, for each image, labels/NAME.png (class indices with a palette) and overlays/NAME.png. Images whose outputs
exist are skipped, so an interrupted run can be repeated; unreadable files are named and passed over, and the exit code
is then 1.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import hf_segformer  # noqa: F401  (the Auto classes build this package's models)
from hf_segformer.inference import predict_label_map
from hf_segformer.metrics import atomic_file
from hf_segformer.visualization import overlay, palette_for, save_label_png

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="Pictures, or folders searched for them.")
    parser.add_argument("--model", required=True, help="Folder or Hub id of the model.")
    parser.add_argument("--output_dir", required=True, help="Where labels/ and overlays/ go.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Torch device.")
    parser.add_argument("--alpha", type=float, default=0.5, help="Opacity of the overlay, 0 to 1.")
    return parser.parse_args(arguments)


def find_images(sources: list[str]) -> dict[str, Path]:
    """Picture files by the name of their output, relative to the source they were found in.

    Raises:
        ValueError: A source does not exist, a folder has no pictures, or two pictures would get the same output.
    """
    found: dict[str, Path] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise ValueError(f"no such file or folder: {source}")
        paths = [source]
        if source.is_dir():
            paths = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix.lower() in SUFFIXES)
            if not paths:
                raise ValueError(f"no pictures in {source} (looked for {', '.join(sorted(SUFFIXES))})")
        for path in paths:
            name = path.relative_to(source if source.is_dir() else source.parent).with_suffix("").as_posix()
            if name in found and found[name].resolve() != path.resolve():
                raise ValueError(f"{found[name]} and {path} would both be written to {name}.png: predict them apart")
            found[name] = path
    return found


def main(arguments: list[str] | None = None) -> int:
    """Segment all images; returns the exit code."""
    args = parse_arguments(arguments)
    images, output_dir = find_images(args.images), Path(args.output_dir)
    model = AutoModelForSemanticSegmentation.from_pretrained(args.model).to(args.device).eval()
    image_processor = AutoImageProcessor.from_pretrained(args.model)
    palette = model.config.palette or palette_for(max(model.config.num_labels, 2))
    unreadable, skipped = [], 0
    for name, path in (bar := tqdm(images.items(), unit="image")):
        label_path, overlay_path = (output_dir / kind / f"{name}.png" for kind in ("labels", "overlays"))
        if label_path.exists() and overlay_path.exists():
            skipped += 1
            continue
        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
                image.load()
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            unreadable.append(path)
            bar.write(f"unreadable: {path}: {error}", file=sys.stderr)
            continue
        label_map = predict_label_map(model, image_processor, image)
        save_label_png(label_path, label_map, palette)
        with atomic_file(overlay_path) as file:
            Image.fromarray(overlay(image, label_map, palette, args.alpha)).save(file, format="png")
    done = len(images) - skipped - len(unreadable)
    print(f"{done} images segmented, {skipped} already done, {len(unreadable)} unreadable; results in {output_dir}")
    return 1 if unreadable else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Small generated pictures in the folders, under the names and with the values of published data sets."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ADE_SPLITS = (("training", "train", 5), ("validation", "val", 3))
CITIES = {"train": ("aachen", "zurich"), "val": ("lindau",)}
COCO_STEMS = {"train2017": (9, 25, 30), "val2017": (139, 285)}
COCO_RAW_IDS = [i for i in range(182) if i not in (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)]


def write_picture(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def random_label(seed, values, size):
    """Every one of `values` if there is room, in random places."""
    rng = np.random.default_rng(seed)
    label = rng.choice(values, size).astype(np.uint8)
    flat = label.reshape(-1)
    places = rng.permutation(flat.size)[: min(len(values), flat.size)]
    flat[places] = values[: places.size]
    return label


def random_photo(seed, size):
    return np.random.default_rng(1000 + seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_ade20k(root, values=tuple(range(151)), splits=ADE_SPLITS):
    """Write `ADEChallengeData2016` into `root` and return it; picture sizes differ and are odd."""
    folder, seed = Path(root) / "ADEChallengeData2016", 0
    for split, short, count in splits:
        for number in range(1, count + 1):
            seed += 1
            size, stem = (17 + 2 * seed, 31 - seed), f"ADE_{short}_{number:08d}"
            write_picture(folder / "images" / split / f"{stem}.jpg", random_photo(seed, size), quality=95)
            write_picture(folder / "annotations" / split / f"{stem}.png", random_label(seed, values, size))
    return folder


def write_cityscapes(root, values=tuple(range(34)), kinds=("labelIds",), splits=("train", "val"), size=(16, 32)):
    """Write `leftImg8bit` and `gtFine` into `root`, all annotation kinds with the same values."""
    root, seed = Path(root), 0
    for split, cities in CITIES.items():
        for city in cities if split in splits else ():
            for frame in range(2):
                seed += 1
                stem = f"{city}_{frame:06d}_000019"
                path = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
                write_picture(path, random_photo(seed, size))
                for kind in kinds:
                    path = root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png"
                    write_picture(path, random_label(seed, values, size))
    return root


def write_coco_stuff(
    root, images="images/{}", annotations="annotations/{}", suffix=".png", values=(*COCO_RAW_IDS, 255), size=(15, 21)
):
    """Write pictures and annotations into the given folders, `{}` standing for the split."""
    root = Path(root)
    for split, numbers in COCO_STEMS.items():
        for number in numbers:
            write_picture(root / images.format(split) / f"{number:012d}.jpg", random_photo(number, size))
            path = root / annotations.format(split) / f"{number:012d}{suffix}"
            write_picture(path, random_label(number, values, size))
    return root


def zip_folder(folder, archive, compression=zipfile.ZIP_DEFLATED, inside=""):
    """Pack a folder's files; their names start with `inside` and go on relative to the folder's parent."""
    folder = Path(folder)
    with zipfile.ZipFile(archive, "w", compression) as file:
        file.write(folder, inside + folder.name)  # the published ones list folders too
        for path in sorted(folder.rglob("*")):
            file.write(path, inside + str(path.relative_to(folder.parent)))


def stored(path):
    return np.asarray(Image.open(path)).astype(int)


def labels_of(data, split):
    """File name -> label map of every sample of a split."""
    return {row["file_name"]: data.read_sample(row)[1] for row in getattr(data, split)}

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Masks are read once for the choice of held-out pictures; the next start reads those that are new or have changed."""

import zipfile

import numpy as np
import pytest
from PIL import Image
from tool_exports import age, mask, picture

from hf_segformer.data import load_any, mask_classes

COUNT = 10
GREY = np.arange(1200).reshape(30, 40) % 2


def rare(index):
    """Only two pictures have the third class."""
    values = GREY.copy()
    values[:3] = 2 * (index in (3, 7))
    return values


def in_colour(values):
    return np.array([[0, 0, 0], [200, 0, 0], [0, 0, 200]], np.uint8)[values]


def deep(values):
    return values.astype(np.uint16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_CHECKS", str(tmp_path / "checks"))
    return tmp_path / "in"


@pytest.fixture
def read(monkeypatch):
    """Names of the masks that are read."""
    names = []
    real = mask_classes.open_picture

    def opened(source, name):
        names.append(name.rpartition("/")[2].rpartition(" ")[2])
        return real(source, name)

    monkeypatch.setattr(mask_classes, "open_picture", opened)
    return names


def write(folder, encode=lambda values: values.astype(np.uint8), suffix=".png"):
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for index in range(COUNT):
        picture(folder / "images" / f"p{index}.jpg", seed=index)
        Image.fromarray(encode(rare(index))).save(folder / "masks" / f"p{index}{suffix}")
    text = '{"names": ["x", "y", "z"], "palette": [[0, 0, 0], [200, 0, 0], [0, 0, 200]]}'
    (folder / "classes.json").write_text(text)
    age(folder)
    return folder


def with_rare(data):
    sides = [data.train["file_name"][:], data.validation["file_name"][:]]
    return [any(name.endswith(("p3.jpg", "p7.jpg")) for name in side) for side in sides]


@pytest.mark.parametrize(("encode", "suffix"), [(None, ".png"), (in_colour, ".png"), (deep, ".png"), (None, ".bmp")])
def test_the_second_start_reads_no_mask(folder, read, encode, suffix):
    write(folder, **({"encode": encode} if encode else {}), suffix=suffix)
    first = load_any(folder)
    assert sorted(read) == [f"p{index}{suffix}" for index in range(COUNT)] and with_rare(first) == [True, True]
    read.clear()
    second = load_any(folder)
    assert not read and second.validation["file_name"][:] == first.validation["file_name"][:]
    other = load_any(folder, folds=3, fold=1)
    assert not read and len(other.validation) in (3, 4)


def test_masks_that_changed_are_read_again(folder, read):
    write(folder)
    load_any(folder)
    read.clear()
    mask(folder / "masks" / "p5.png", rare(3))
    load_any(folder)
    assert read == ["p5.png"]
    load_any(folder)
    assert read == ["p5.png"] * 2  # it may change once more within the time that its file tells


def test_masks_in_a_zip_file_too(folder, read, tmp_path):
    write(folder)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, f"x/{path.relative_to(folder)}")
    age(tmp_path)
    load_any(tmp_path / "x.zip")
    assert len(read) == COUNT
    read.clear()
    load_any(tmp_path / "x.zip")
    assert not read


def test_splits_as_given_read_nothing(folder, read):
    for split in ("train", "val"):
        write(folder / split)
    (folder / "val" / "classes.json").unlink()
    load_any(folder)
    assert not read

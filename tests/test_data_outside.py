# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables from elsewhere: no picture outside the data set is read, and nothing is written outside the output folder."""

import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from transformers import HfArgumentParser

from hf_segformer.commands.evaluate import PredictionFiles
from hf_segformer.data import DataArguments, SegmentationData, check_dataset, hub, load_dataset
from hf_segformer.data.archives import member_path
from hf_segformer.data.hub import load_hub
from hf_segformer.data.segmentation_data import build_dataset
from hf_segformer.evaluation.submission import plain_stem, prediction_names
from published_data import zip_folder

NAMES = ["a", "b"]


@pytest.fixture
def places(tmp_path):
    """A folder for the table, and a picture of this machine that is none of its business."""
    (tmp_path / "set" / "pictures").mkdir(parents=True)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 6), (1, 2, 3)).save(secret)
    Image.new("RGB", (8, 6), (4, 5, 6)).save(tmp_path / "set" / "pictures" / "own.png")
    Image.new("L", (8, 6)).save(tmp_path / "set" / "pictures" / "label.png")
    return tmp_path / "set", secret


def cell(path):
    return {"bytes": Path(path).read_bytes(), "path": Path(path).name}


def write_table(folder, images=None, annotations=None, names=None, split="train"):
    """A parquet file whose cells are paths or, where they are dictionaries, pictures."""
    own, label = folder / "pictures" / "own.png", folder / "pictures" / "label.png"
    count = len(images or annotations or names)
    images, annotations = images or [cell(own)] * count, annotations or [cell(label)] * count

    def column(cells):
        return [c if isinstance(c, dict) or c is None else {"bytes": None, "path": str(c)} for c in cells]

    columns = {"image": column(images), "annotation": column(annotations)}
    features = {"image": datasets.Image(), "annotation": datasets.Image()}
    if names is not None:
        columns["file_name"], features["file_name"] = names, datasets.Value("string")
    schema = datasets.Features(features).arrow_schema  # datasets itself would put the pictures in
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), folder / f"{split}.parquet")
    return folder


def load(folder, **options):
    return load_hub(folder, class_names=NAMES, mask_format="ids", cache_dir=folder.parent / "cache", **options)


OUTSIDE = {
    "absolute": lambda folder, secret: secret,
    "dots": lambda folder, secret: folder / ".." / "secret.png",
    "relative": lambda folder, secret: "../secret.png",
    "link": lambda folder, secret: folder / "link.png",
    "linked folder": lambda folder, secret: folder / "up" / "secret.png",
    "neighbour": lambda folder, secret: f"{folder}-too/secret.png",
    "missing": lambda folder, secret: "/nowhere/at/all.png",
    "pipe": lambda folder, secret: "/dev/stdin",
    "zip": lambda folder, secret: member_path(secret.with_name("secret.zip"), "secret.png"),
    "file URL": lambda folder, secret: f"file://{secret}",
    "chained URL": lambda folder, secret: f"simplecache::file://{secret}",
    "zip of a URL": lambda folder, secret: f"zip://secret.png::file://{secret.with_name('secret.zip')}",
    "address": lambda folder, secret: "https://host.invalid/secret.png",
    "other repository": lambda folder, secret: "hf://datasets/someone/private/secret.png",
    "NUL": lambda folder, secret: f"{secret}\0.png",
    "empty": lambda folder, secret: "",
}


@pytest.mark.parametrize("column", ["image", "annotation"])
@pytest.mark.parametrize("kind", OUTSIDE)
def test_paths_that_lead_out_are_refused(places, kind, column, monkeypatch):
    folder, secret = places
    monkeypatch.chdir(folder)
    (folder / "link.png").symlink_to(secret)
    (folder / "up").symlink_to(secret.parent)
    (folder.parent / "set-too").mkdir()
    zip_folder(folder, secret.with_name("secret.zip"))
    path = OUTSIDE[kind](folder, secret)
    good = folder / "pictures" / ("own.png" if column == "image" else "label.png")
    write_table(folder, **{f"{column}s": [cell(good), path, cell(good), cell(good)]})
    match = rf"set: row 1 of split 'train', column '{column}' holds no picture but the path .* outside the data set"
    with pytest.raises(ValueError, match=match):
        load(folder)
    stream = load(folder, streaming=True) if column == "image" else None
    if stream is not None:
        with pytest.raises(ValueError, match=r"split 'train', column 'image' holds no picture but the path"):
            list(stream.train)


@pytest.mark.parametrize("storage", ["pairs", "paths"])
def test_columns_that_are_not_marked_as_pictures(places, storage):
    """What becomes pictures only here: pairs of contents and path without a mark, and plain texts."""
    folder, secret = places
    write_table(folder, images=[secret, secret])
    table = pyarrow.parquet.read_table(folder / "train.parquet").rename_columns(["photo", "mask"])
    if storage == "paths":
        table = table.set_column(0, "photo", [[str(secret)] * 2])
    pyarrow.parquet.write_table(table.replace_schema_metadata(None), folder / "one.parquet")
    with pytest.raises(ValueError, match="row 0 of split 'train', column 'photo' holds no picture but the path"):
        load(folder / "one.parquet", image_column="photo", annotation_column="mask")


def test_a_flag_allows_them(places):
    folder, secret = places
    write_table(folder, images=[secret] * 4)
    flags = ["--dataset", "parquet", "--data_root", str(folder), "--mask_format", "ids"]
    (folder / "classes.txt").write_text("a\nb")

    def parsed(*more):
        return HfArgumentParser(DataArguments).parse_args_into_dataclasses([*flags, *more])[0].load_data()

    with pytest.raises(ValueError, match="not read unless allow_outside_files is set"):
        parsed()
    data = parsed("--allow_outside_files", "true")
    image, _ = data.read_sample(data.train[0])
    assert tuple(image[0, 0]) == (1, 2, 3)


def test_paths_inside_are_read(places):
    folder, _ = places
    real = folder.rename(folder.with_name("real"))
    folder.symlink_to(real)  # the data root may be a link itself
    (folder / "pictures" / "link.png").symlink_to("own.png")
    inside = [folder / "pictures" / "own.png", real / "pictures" / "own.png", folder / "pictures" / "link.png"]
    write_table(folder, images=[*inside, cell(inside[0])], annotations=[folder / "pictures" / "label.png"] * 4)
    data = load(folder)
    for row in data.train:
        assert tuple(data.read_sample(row)[0][0, 0]) == (4, 5, 6)
    assert len(list(load(folder, streaming=True).train)) == 4


def test_pictures_of_a_hub_data_set(tmp_path, monkeypatch):
    """They lie in the repository's own cache, in the downloads, or under its own addresses."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    places = hub._own_places("owner/name", tmp_path / "cache")
    blobs = tmp_path / "hub" / "datasets--owner--name" / "blobs"
    other = tmp_path / "hub" / "datasets--owner--private" / "blobs"
    for folder in (blobs, other, blobs.parent / "snapshots" / "1"):
        folder.mkdir(parents=True)
    (blobs / "abc").write_bytes(b"x")
    (blobs.parent / "snapshots" / "1" / "a.png").symlink_to("../../blobs/abc")
    (blobs.parent / "snapshots" / "1" / "evil.png").symlink_to(other / "abc")
    for good in (
        blobs.parent / "snapshots" / "1" / "a.png",
        tmp_path / "cache" / "downloads" / "extracted" / "1" / "a.png",
        "hf://datasets/owner/name@main/a.png",
        "hf://datasets/owner/name/a.png",
        member_path(blobs / "abc", "a.png"),
    ):
        hub._refuse_outside(str(good), "row", places)
    for bad in (
        blobs.parent / "snapshots" / "1" / "evil.png",
        other / "abc",
        "/etc/passwd",
        "hf://datasets/owner/name-too/a.png",
        "hf://datasets/owner/name/../private/a.png",
        "hf://owner/name/a.png",
        member_path(other / "abc", "a.png"),
    ):
        with pytest.raises(ValueError, match="row holds no picture but the path"):
            hub._refuse_outside(str(bad), "row", places)


# Names in tables


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0.png", "file_name 'a.{1,2}x00.png' holds a NUL, which no file name can"),
        ("x" * 300, "file_name 'x{80}' has a part of 300 bytes; 240 are the most"),
        ("f/" + "ö" * 130 + "/a.png", "has a part of 260 bytes"),
    ],
)
def test_names_of_no_file_are_refused(places, name, message):
    folder, _ = places
    write_table(folder, names=["a.png", name, "b.png"])
    with pytest.raises(ValueError, match=rf"set: row 1 of split 'train': .*{message}"):
        load(folder)
    with pytest.raises(ValueError, match=rf"split 'train': .*{message}"):
        list(load(folder, streaming=True).train)
    with pytest.raises(ValueError, match=message):
        prediction_names([name])


def test_names_stored_with_the_pictures_count_too(places):
    folder, _ = places
    own = cell(folder / "pictures" / "own.png")
    write_table(folder, images=[own, own | {"path": "x\0y"}, own])
    with pytest.raises(ValueError, match=r"row 1 of split 'train': file_name .* holds a NUL"):
        load(folder)


def test_rows_without_a_name_get_one(places):
    folder, _ = places
    write_table(folder, names=["a.png", None, "", "b.png"], split="validation")
    write_table(folder, names=["a.png", "b.png"])
    assert load(folder).validation["file_name"][:] == ["a.png", "validation[1]", "validation[2]", "b.png"]


ODD_NAMES = [
    "../../../up.png",
    "/etc/absolute.png",
    "..",
    ".",
    "a/../../b/../c.png",
    "..\\..\\windows.png",
    "C:\\drive.png",
    "//host/share.png",
    "line\nbreak.png",
    ".hidden.png",
    "~/home.png",
    "-rf.png",
    " .png",
]


@pytest.mark.parametrize("kind", ["save_predictions", "submission"])
def test_nothing_is_written_outside_the_output_folder(tmp_path, kind):
    picture = {"bytes": b"", "path": None}
    rows = build_dataset([picture] * len(ODD_NAMES), [picture] * len(ODD_NAMES), ODD_NAMES)
    data = SegmentationData(rows, rows, ("a", "b"), ((0, 0, 0), (1, 1, 1)))
    out = tmp_path / "deep" / "down" / "out"
    args = SimpleNamespace(split="validation", save_predictions=None, submission=None)
    setattr(args, kind, str(out))
    files = PredictionFiles(args, data)
    for name in ODD_NAMES:
        files(name, np.zeros((3, 4), np.uint8))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == len(ODD_NAMES)
    assert all(os.path.realpath(path).startswith(f"{out}{os.sep}") for path in written)
    assert not any(".." in path.parts for path in written)


@pytest.mark.parametrize("name", [*ODD_NAMES, "", "x" * 900, "](javascript:x) <script>.png", "\udcff.png", "é ü.png"])
def test_names_of_overlays_are_plain(name):
    stem = plain_stem(name)
    assert stem and len(stem) <= 60 and not stem.startswith(".")
    assert not set(stem) & set("/\\\0\n<>()[]: ~")
    stem.encode()


def test_plain_names_stay(places):
    assert plain_stem("berlin/berlin_000001_leftImg8bit.png") == "berlin_000001_leftImg8bit"
    assert plain_stem("train[5]") == "train_5_" and plain_stem("0016E5_00390.png") == "0016E5_00390"
    folder, _ = places
    write_table(folder, names=["a/b.png", "ä ö.png", "c"])
    data = load(folder, validation_fraction=0.3)
    assert check_dataset(data).checked == {"train": 2, "validation": 1}
    assert prediction_names(["a/b.png", "ä ö.png"], keep_folders=True) == {"a/b.png": "a/b.png", "ä ö.png": "ä ö.png"}
    assert load_dataset("parquet", folder, class_names=NAMES, cache_dir=folder.parent / "cache").name == "set"

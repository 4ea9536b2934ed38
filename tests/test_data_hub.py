# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Parquet files written to disk and read back, in the shapes data sets of the Hub have."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets.table import embed_table_storage
from PIL import Image
from transformers import HfArgumentParser

from hf_segformer.data import DataArguments, check_dataset, load_any, load_dataset
from hf_segformer.data.folder import load_folder
from published_data import write_ade20k, write_cityscapes, write_coco_stuff, zip_folder

NAMES = ("road", "verge", "sign")
PALETTE = ((10, 20, 30), (40, 50, 60), (70, 80, 90))
COUNT = 10


def truth(seed, values=3):
    return np.random.default_rng(seed).integers(0, values, (9, 14)).astype(np.uint8)


def photo(seed):
    return np.random.default_rng(seed).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def table(seeds, names=("image", "annotation"), encode=lambda label: label, **more):
    columns = {
        names[0]: [Image.fromarray(photo(seed)) for seed in seeds],
        names[1]: [Image.fromarray(encode(truth(seed))) for seed in seeds],
        "seed": list(seeds),
    }
    features = {names[0]: datasets.Image(), names[1]: datasets.Image(), "seed": datasets.Value("int32")}
    for name, (feature, values) in more.items():
        features[name], columns[name] = feature, values
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture
def root(tmp_path):
    """A folder with two splits and a class file."""
    folder = tmp_path / "set"
    folder.mkdir()
    table(range(COUNT)).to_parquet(folder / "train-00000-of-00001.parquet")
    table(range(50, 53)).to_parquet(folder / "validation-00000-of-00001.parquet")
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    return folder


@pytest.fixture
def options(tmp_path):
    return {"cache_dir": tmp_path / "cache"}


def test_folder_of_parquet_files(root, options):
    data = load_dataset("parquet", root, **options)
    assert data.class_names == NAMES and data.name == "set" and len(data.train) == COUNT
    assert data.train.column_names == ["image", "annotation", "file_name"]
    assert isinstance(data.train.features["image"], datasets.Image)
    for seed, example in enumerate(data.train):
        image, label = data.read_sample(example)
        np.testing.assert_array_equal(image, photo(seed))
        np.testing.assert_array_equal(label, truth(seed))
    np.testing.assert_array_equal(data.read_sample(data.validation[2])[1], truth(52))
    assert check_dataset(data).checked == {"train": COUNT, "validation": 3}


def test_folder_under_its_own_path_as_name(root, options):
    data = load_dataset(str(root), **options)
    assert len(data.validation) == 3


def test_single_file_is_split_evenly(root, options):
    data = load_dataset("parquet", root / "train-00000-of-00001.parquet", validation_fraction=0.2, **options)
    kept, held_out = data.train["file_name"][:], data.validation["file_name"][:]
    assert held_out == ["train[0]", "train[5]"] and len(kept) == 8 and not set(kept) & set(held_out)
    np.testing.assert_array_equal(data.read_sample(data.validation[1])[1], truth(5))


@pytest.mark.parametrize("explicit", [True, False])
def test_other_column_and_split_names(tmp_path, options, explicit):
    rows = table(range(4), ("pixel_values", "label" if not explicit else "truth"))
    rows.to_parquet(tmp_path / "train.parquet")
    rows.select([3, 2]).to_parquet(tmp_path / "test.parquet")
    more = {"annotation_column": "truth", "validation_split": "test"} if explicit else {}
    data = load_dataset("parquet", tmp_path, image_column="pixel_values", class_names=NAMES, **more, **options)
    np.testing.assert_array_equal(data.read_sample(data.train[1])[1], truth(1))
    np.testing.assert_array_equal(data.read_sample(data.validation[0])[1], truth(3))


def test_raw_bytes_become_pictures(tmp_path, options, root):
    rows = table(range(4)).cast_column("image", datasets.Image(decode=False))
    raw = datasets.Dataset.from_dict(
        {"image": [cell["bytes"] for cell in rows["image"]], "annotation": rows["annotation"][:]},
        features=datasets.Features(image=datasets.Value("binary"), annotation=datasets.Image()),
    )
    raw.to_parquet(tmp_path / "raw.parquet")
    data = load_dataset("parquet", tmp_path / "raw.parquet", class_names=NAMES, **options)
    assert isinstance(data.train.features["image"], datasets.Image)
    np.testing.assert_array_equal(data.read_sample(data.validation[0])[0], photo(0))


@pytest.mark.parametrize(
    ("encode", "mask_format"),
    [
        (lambda label: label, "ids"),
        (lambda label: label.astype(np.uint16), "ids"),
        (lambda label: np.array(PALETTE, np.uint8)[label], "rgb"),
    ],
)
def test_mask_formats(tmp_path, options, encode, mask_format):
    table(range(4), encode=encode).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "classes.json").write_text(json.dumps({"names": NAMES, "palette": PALETTE, "ignore_index": 99}))
    data = load_dataset("parquet", tmp_path, **options)
    assert data.annotation_format.mask_format == mask_format and data.ignore_index == 99
    for example in data.train:
        seed = int(example["file_name"].strip("train[]"))
        np.testing.assert_array_equal(data.read_sample(example)[1], truth(seed))


@pytest.mark.parametrize("given", ["list", "mapping", "file", "feature"])
def test_class_names(tmp_path, options, given):
    present = {"present": (datasets.List(datasets.ClassLabel(names=list(NAMES))), [[0, 2]] * 4)}
    kind = {"weather": (datasets.ClassLabel(names=["dry", "wet"]), [0, 1, 0, 1])}
    rows = table(range(4), **kind, **(present if given == "feature" else {}))
    rows.to_parquet(tmp_path / "train.parquet")
    file = tmp_path / "names.txt"
    file.write_text("\n".join(NAMES))
    names = {"list": list(NAMES), "mapping": dict(enumerate(NAMES)), "file": file, "feature": None}[given]
    data = load_dataset("parquet", tmp_path / "train.parquet", class_names=names, ignore_index=250, **options)
    assert data.class_names == NAMES and data.ignore_index == 250


def test_folder_and_parquet_agree(tmp_path, options):
    for seed in range(3):
        for kind, picture in (("images", photo(seed)), ("annotations", truth(seed))):
            (tmp_path / "files" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / "files" / kind / f"s{seed}.png")
    (tmp_path / "files" / "classes.txt").write_text("\n".join(NAMES))
    by_folder = load_folder(tmp_path / "files")
    by_folder.train.to_parquet(tmp_path / "train.parquet")
    by_folder.validation.to_parquet(tmp_path / "validation.parquet")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    data = load_dataset("parquet", tmp_path, **options)
    for split in ("train", "validation"):
        mine, theirs = getattr(data, split), getattr(by_folder, split)
        assert mine["file_name"][:] == theirs["file_name"][:]
        for one, other in zip(mine, theirs, strict=True):
            for got, expected in zip(data.read_sample(one), by_folder.read_sample(other), strict=True):
                np.testing.assert_array_equal(got, expected)


def test_damaged_picture_in_parquet_names_its_row(tmp_path, options):
    rows = table(range(4)).cast_column("image", datasets.Image(decode=False))
    cells = rows["image"][:]
    cells[2] = {"bytes": cells[2]["bytes"][:60], "path": None}
    features = rows.features.copy()
    rows = datasets.Dataset.from_dict(rows[:] | {"image": cells}, features=features)
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    data = load_dataset("parquet", tmp_path, class_names=NAMES, validation_fraction=0.25, **options)
    with pytest.raises(ValueError, match=r"train picture train\[2\] \(row 1\): cannot read the picture"):
        check_dataset(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_column": "photo"}, r"image_column 'photo' is not among the columns image, annotation, seed"),
        ({"annotation_column": "mask"}, r"annotation_column 'mask' is not among the columns"),
        ({"annotation_column": "seed"}, r"column 'seed' holds .*int32.* which are no pictures"),
        ({"train_split": "training"}, r"no split 'training'; there are train, validation"),
        ({"validation_split": "test"}, r"no split 'test'; there are train, validation"),
    ],
)
def test_wrong_names(root, options, changes, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("parquet", root, **options, **changes)


def test_no_class_names(root, options):
    (root / "id2label.json").unlink()
    with pytest.raises(ValueError, match=r"no class names found .*give class_names"):
        load_dataset("parquet", root, **options)


def test_ambiguous_annotation_column(tmp_path, options):
    rows = table(range(3), label=(datasets.Value("int32"), [1, 2, 3]))
    rows.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"set annotation_column .* one of image, annotation, seed, label"):
        load_dataset("parquet", tmp_path, class_names=NAMES, **options)


def test_folder_without_parquet(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"no parquet files here; .* 'folder'"):
        load_dataset("parquet", tmp_path)


def test_missing_data_root(tmp_path):
    with pytest.raises(ValueError, match="data set 'parquet' needs data_root"):
        load_dataset("parquet")
    with pytest.raises(ValueError, match=r"data_root .*absent: no such file or folder"):
        load_dataset("parquet", tmp_path / "absent")
    with pytest.raises(ValueError, match=r"absent: it is no folder here, and no Hub id of a data set"):
        load_dataset(f"{tmp_path}/absent")


# Published data sets in parquet files


@pytest.mark.parametrize("packed", [False, True])
def test_ade20k_through_parquet_files(tmp_path, options, packed):
    """Written with the pictures inside; the reduced zero label and the class names do not come along."""
    folder = write_ade20k(tmp_path / "source")
    if packed:
        zip_folder(folder, tmp_path / "ADEChallengeData2016.zip")
    source = load_dataset("ade20k", tmp_path if packed else folder)
    (tmp_path / "set").mkdir()
    for split in ("train", "validation"):
        rows = getattr(source, split).with_format("arrow").map(embed_table_storage, batched=True)
        rows.to_parquet(tmp_path / "set" / f"{split}.parquet")
    named = {"class_names": "ade20k", "reduce_zero_label": True}
    data = load_dataset("parquet", tmp_path / "set", **named, **options)
    assert (data.class_names, data.palette) == (source.class_names, source.palette)
    expected = [source.read_sample(row) for split in (source.train, source.validation) for row in split]
    names = [*source.train["file_name"], *source.validation["file_name"]]
    (tmp_path / "source").rename(tmp_path / "elsewhere")  # the parquet files need the others no more
    (tmp_path / "ADEChallengeData2016.zip").unlink(missing_ok=True)
    assert [*data.train["file_name"], *data.validation["file_name"]] == names
    for row, sample in zip((*data.train, *data.validation), expected, strict=True):
        for left, right in zip(data.read_sample(row), sample, strict=True):
            np.testing.assert_array_equal(left, right)
    unreduced = load_dataset("parquet", tmp_path / "set", class_names="ade20k", **options)
    with pytest.raises(ValueError, match=r"150; ids seem to start at 1 \(as in SceneParse150.*set reduce_zero_label"):
        check_dataset(unreduced)


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "coco-stuff"])
def test_names_of_published_data_sets(root, options, name):
    from hf_segformer.data.hub import PUBLISHED_CLASSES

    data = load_dataset("parquet", root, class_names=name, **options)
    assert data.class_names == PUBLISHED_CLASSES[name].CLASS_NAMES
    assert data.num_classes == {"ade20k": 150, "cityscapes": 19, "coco-stuff": 171}[name]


# The command line


def parse(*flags):
    return HfArgumentParser(DataArguments).parse_args_into_dataclasses([str(flag) for flag in flags])[0].load_data()


def test_flags_choose_published_data_sets(tmp_path):
    ade, city = write_ade20k(tmp_path), write_cityscapes(tmp_path / "city", splits=("val",))
    data = parse("--dataset", "ade20k", "--data_root", ade)
    assert data.annotation_format.reduce_zero_label and len(data.validation) == 3
    data = parse("--dataset", "cityscapes", "--data_root", city)
    assert len(data.validation) == 2 and data.num_classes == 19
    data = parse("--dataset", "coco-stuff", "--data_root", write_coco_stuff(tmp_path / "coco"))
    assert data.num_classes == 171
    with pytest.raises(ValueError, match="data set 'cityscapes' has no option reduce_zero_label; it has data_root"):
        parse("--dataset", "cityscapes", "--data_root", city, "--reduce_zero_label", "true")
    with pytest.raises(ValueError, match=r"150; these annotations are as published"):
        parse("--dataset", "ade20k", "--data_root", ade, "--reduce_zero_label", "false")


def test_flags_for_a_hub_data_set_with_ade20k_labels(root):
    flags = ("--dataset", "parquet", "--data_root", root, "--class_names", "ade20k", "--reduce_zero_label", "true")
    data = parse(*flags)
    assert data.annotation_format.reduce_zero_label and data.num_classes == 150
    assert set(np.unique(data.read_sample(data.train[0])[1])) == {0, 1, 255}


@pytest.mark.parametrize("damage", ["cut", "empty", "footer", "link"])
def test_a_damaged_parquet_file_is_named(root, options, damage):
    path = root / "validation-00000-of-00001.parquet"
    content = path.read_bytes()
    path.unlink()
    if damage == "link":
        path.symlink_to(root / "nowhere.parquet")
    else:
        footer = content[:-400] + bytes(300) + content[-100:]
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "footer": footer}[damage])
    with pytest.raises(ValueError, match=r"validation-00000-of-00001\.parquet: (no parquet file|it must be)"):
        load_dataset("parquet", root, **options)


def test_names_that_lead_out_of_their_folder_are_refused(root, options):
    rows = table(range(3), file_name=(datasets.Value("string"), ["a.png", "b/../../c.png", "d.png"]))
    rows.to_parquet(root / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"row 1 of split 'train': file_name 'b/\.\./\.\./c\.png' leads out"):
        load_dataset("parquet", root, **options)


def test_a_hub_id_may_be_a_path():
    with pytest.raises(ValueError, match=r"'owner/name' has no option colour"):
        load_any(Path("owner/name"), colour="red")

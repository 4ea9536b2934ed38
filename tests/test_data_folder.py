# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A user's own folders: layouts, mask formats, class files, an error for everything that can be missing. CamVid."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from hf_segformer.data import check_dataset, default_palette, load_dataset, read_class_table
from hf_segformer.data.classes import make_class_table
from hf_segformer.data.folder import split_by_name

NAMES = ("wall", "floor", "lamp")
PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
SIZE = (9, 13)
LAYOUTS = {
    "split first": "{split}/{kind}",
    "kind first": "{kind}/{split}",
}


def truth(seed, num_classes=3):
    label = np.random.default_rng(seed).integers(0, num_classes, SIZE).astype(np.uint8)
    label[0, :num_classes] = range(num_classes)
    return label


def write_pair(images, annotations, seed, annotation=None, stem=None):
    stem = stem or f"p{seed:02d}"
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    photo = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(photo).save(images / f"{stem}.jpg", quality=95)
    annotation = truth(seed) if annotation is None else annotation
    picture = annotation if isinstance(annotation, Image.Image) else Image.fromarray(annotation)
    picture.save(annotations / f"{stem}.png")


def write_classes(root, **more):
    (root / "classes.json").write_text(json.dumps({"names": NAMES} | more))


@pytest.fixture
def unsplit(tmp_path):
    for seed in range(10):
        write_pair(tmp_path / "images", tmp_path / "annotations", seed)
    write_classes(tmp_path)
    return tmp_path


def labels(data, split="train"):
    return [data.read_sample(example)[1] for example in getattr(data, split)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("train", "validation"), [("train", "val"), ("training", "validation")])
def test_split_layouts(tmp_path, layout, train, validation):
    for split, seeds in ((train, (3, 1)), (validation, (2,))):
        folders = (tmp_path / LAYOUTS[layout].format(split=split, kind=kind) for kind in ("images", "annotations"))
        images, annotations = folders
        for seed in seeds:
            write_pair(images, annotations, seed)
    write_classes(tmp_path, palette=PALETTE, ignore_index=200)
    data = load_dataset("folder", tmp_path)
    assert data.train["file_name"][:] == ["p01.jpg", "p03.jpg"] and data.validation["file_name"][:] == ["p02.jpg"]
    assert (data.class_names, data.palette, data.ignore_index, data.name) == (NAMES, PALETTE, 200, "folder")
    for label, seed in zip(labels(data), (1, 3), strict=True):
        np.testing.assert_array_equal(label, truth(seed))
    np.testing.assert_array_equal(labels(data, "validation")[0], truth(2))
    assert data.train[0]["image"].size == SIZE[::-1]


def test_folder_without_splits_is_split_by_name(unsplit):
    data = load_dataset("folder", unsplit, validation_fraction=0.3)
    train, validation = data.train["file_name"][:], data.validation["file_name"][:]
    assert len(validation) == 3 and sorted(train + validation) == [f"p{i:02d}.jpg" for i in range(10)]
    again = load_dataset("folder", unsplit, validation_fraction=0.3)
    assert again.validation["file_name"][:] == validation
    assert data.palette == default_palette(3)


def test_split_by_name_barely_changes_when_files_are_added(tmp_path):
    pairs = {f"img{i}": (tmp_path, tmp_path) for i in range(100)}
    before = set(split_by_name(pairs, 0.2, tmp_path)[1])
    more = pairs | {f"new{i}": (tmp_path, tmp_path) for i in range(5)}
    after = set(split_by_name(more, 0.2, tmp_path)[1])
    assert len(before) == 20 and len(after) == 21 and len(before - after) <= 4


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_each_split_gets_at_least_one(unsplit, fraction):
    data = load_dataset("folder", unsplit, validation_fraction=fraction)
    assert min(len(data.train), len(data.validation)) == 1 and len(data.train) + len(data.validation) == 10


# Mask formats


def colors_of(label):
    return np.array(PALETTE, np.uint8)[label]


def palette_png(label, order):
    """Store `label` as a palette PNG whose colour table is PALETTE in another order."""
    picture = Image.fromarray(np.argsort(order).astype(np.uint8)[label], mode=None).convert("P")
    picture.putpalette([value for index in order for value in PALETTE[index]])
    return picture


FORMATS = {
    "ids": ("ids", 3, lambda label: label),
    "ids 16 bit": ("ids", 3, lambda label: label.astype(np.uint16)),
    "palette by index": ("ids", 3, lambda label: palette_png(label, (0, 1, 2))),
    "palette by colour": ("rgb", 3, lambda label: palette_png(label, (2, 0, 1))),
    "colour": ("rgb", 3, colors_of),
    "0/255": ("binary", 2, lambda label: label * np.uint8(255)),
    "0/1": ("ids", 2, lambda label: label),
}


@pytest.mark.parametrize("given", ["auto", "named"])
@pytest.mark.parametrize("kind", FORMATS)
def test_mask_formats(tmp_path, kind, given):
    mask_format, num_classes, encode = FORMATS[kind]
    for seed in range(4):
        write_pair(tmp_path / "images", tmp_path / "annotations", seed, encode(truth(seed, num_classes)))
    content = {"names": NAMES[:num_classes], "palette": PALETTE[:num_classes]}
    (tmp_path / "classes.json").write_text(json.dumps(content))
    data = load_dataset("folder", tmp_path, mask_format="auto" if given == "auto" else mask_format)
    assert data.annotation_format.mask_format == mask_format
    for example in data.train:
        seed = int(example["file_name"][1:3])
        np.testing.assert_array_equal(data.read_sample(example)[1], truth(seed, num_classes))


def test_two_classes_with_ignored_pixels_are_ids(tmp_path):
    label = truth(0, 2)
    label[3] = 255
    for seed in range(3):
        write_pair(tmp_path / "images", tmp_path / "annotations", seed, label)
    (tmp_path / "classes.txt").write_text("no\nyes\n")
    data = load_dataset("folder", tmp_path)
    assert data.annotation_format.mask_format == "ids"
    np.testing.assert_array_equal(labels(data)[0], label)


def test_swapped_folders_are_suspected(tmp_path):
    for seed in range(3):
        write_pair(tmp_path / "annotations", tmp_path / "images", seed)
    write_classes(tmp_path)
    with pytest.raises(
        ValueError, match=r"annotations/p00\.jpg: .* colour picture.*are images and annotations swapped"
    ):
        load_dataset("folder", tmp_path)


def test_alpha_is_no_label(tmp_path):
    """The opaque 255 of an alpha channel must not make ids look like a 0/255 mask."""
    for seed in range(3):
        label = np.zeros(SIZE, np.uint8)
        picture = Image.merge("LA", [Image.fromarray(label), Image.new("L", SIZE[::-1], 255)])
        write_pair(tmp_path / "images", tmp_path / "annotations", seed, picture)
    (tmp_path / "classes.txt").write_text("no\nyes\n")
    assert load_dataset("folder", tmp_path).annotation_format.mask_format == "ids"


def test_ignore_color(tmp_path):
    label = truth(5)
    colors = colors_of(label)
    colors[2] = 9, 9, 9
    for seed in range(2):
        write_pair(tmp_path / "images", tmp_path / "annotations", seed, colors)
    write_classes(tmp_path, palette=PALETTE, ignore_color=(9, 9, 9))
    label[2] = 255
    np.testing.assert_array_equal(labels(load_dataset("folder", tmp_path))[0], label)


@pytest.mark.parametrize("mask_format", ["auto", "rgb"])
def test_colour_masks_need_a_palette(tmp_path, mask_format):
    for seed in range(2):
        write_pair(tmp_path / "images", tmp_path / "annotations", seed, colors_of(truth(seed)))
    write_classes(tmp_path)
    with pytest.raises(ValueError, match=r'"palette".*classes\.json'):
        load_dataset("folder", tmp_path, mask_format=mask_format)


def test_mask_format_is_checked(unsplit):
    with pytest.raises(ValueError, match=r"mask_format must be one of ids, binary, rgb, got 'png'"):
        load_dataset("folder", unsplit, mask_format="png")


# What can be missing


def test_missing_root(tmp_path):
    with pytest.raises(ValueError, match=r"data_root .*nowhere: no such file or folder"):
        load_dataset("folder", tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_missing_and_empty_folders(unsplit, kind):
    for path in (unsplit / kind).iterdir():
        path.unlink()
    (unsplit / kind / "notes.txt").write_text("not a picture")
    with pytest.raises(ValueError, match=rf"{kind}: no pictures here"):
        load_dataset("folder", unsplit)
    (unsplit / kind / "notes.txt").unlink()
    (unsplit / kind).rmdir()
    with pytest.raises(ValueError, match=rf"{kind}: no such folder"):
        load_dataset("folder", unsplit)


def test_missing_partners(unsplit):
    (unsplit / "annotations" / "p04.png").unlink()
    (unsplit / "annotations" / "p07.png").unlink()
    with pytest.raises(ValueError, match=r"p04\.jpg: no annotation with the stem 'p04' in .*annotations \(and 1 more"):
        load_dataset("folder", unsplit)


def test_annotation_without_image(unsplit):
    (unsplit / "images" / "p04.jpg").unlink()
    with pytest.raises(ValueError, match=r"p04\.png: no image with the stem 'p04' in .*images$"):
        load_dataset("folder", unsplit)


def test_duplicate_stem(unsplit):
    Image.new("RGB", SIZE[::-1]).save(unsplit / "images" / "p03.png")
    with pytest.raises(ValueError, match=r"p03\.png and .*p03\.jpg: two files with the same stem"):
        load_dataset("folder", unsplit)


@pytest.mark.parametrize(("present", "absent"), [("train", "validation"), ("val", "train")])
def test_missing_split(tmp_path, present, absent):
    write_pair(tmp_path / present / "images", tmp_path / present / "annotations", 0)
    write_classes(tmp_path)
    with pytest.raises(ValueError, match=rf"there is no {absent} split, looked for .*images and .*images"):
        load_dataset("folder", tmp_path)


def test_missing_class_names(unsplit):
    (unsplit / "classes.json").unlink()
    with pytest.raises(ValueError, match=r"no class names found; put a classes\.json .* or a classes\.txt"):
        load_dataset("folder", unsplit)


@pytest.mark.parametrize("fraction", [0, 1, -0.5])
def test_validation_fraction_is_checked(unsplit, fraction):
    with pytest.raises(ValueError, match="validation_fraction must lie between 0 and 1"):
        load_dataset("folder", unsplit, validation_fraction=fraction)


def test_one_image_cannot_be_split(tmp_path):
    write_pair(tmp_path / "images", tmp_path / "annotations", 0)
    write_classes(tmp_path)
    with pytest.raises(ValueError, match=r"at least two images are needed .* got 1"):
        load_dataset("folder", tmp_path)


# Class files


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "wall\n\n floor \nlamp\n"),
        ("classes.json", '["wall", "floor", "lamp"]'),
        ("id2label.json", '{"2": "lamp", "0": "wall", "1": "floor"}'),
        ("config.json", '{"id2label": {"0": "wall", "1": "floor", "2": "lamp"}}'),
    ],
)
def test_class_file_formats(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    table = read_class_table(tmp_path / file)
    assert table.names == NAMES and not table.has_own_palette and table.ignore_index == 255


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ('{"names": 3}', "class names must be a list or a mapping from id to name, got 3"),
        ("[]", "at least one class name is needed"),
        ('["a", "b", "a"]', "class names must be unique, repeated: a"),
        ('{"0": "a", "2": "b"}', r"ids must be 0\.\.1 without gaps, got \[0, 2\]"),
        ('{"zero": "a"}', r"ids must be integers, got 'zero'"),
        ('{"names": ["a", "b"], "palette": [[1, 2, 3]]}', "one colour per class, got 1 for 2 classes"),
        (
            '{"names": ["a"], "palette": [[1, 2, 300]]}',
            r"palette\[0\] must be three integers in 0\.\.255, got \[1, 2, 300\]",
        ),
    ],
)
def test_bad_class_files(tmp_path, text, message):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.json.*: .*{message}"):
        read_class_table(tmp_path / "classes.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": "road"}, "class names must be a list or a mapping from id to name, got 'road'"),
        ({"names": None}, "must be a list or a mapping from id to name, got None"),
        ({"names": True}, "must be a list or a mapping from id to name, got True"),
        ({"id2label": "road"}, "must be a list or a mapping from id to name, got 'road'"),
        ({}, "at least one class name is needed"),
        ({"names": {}}, "at least one class name is needed"),
        (["road", ""], "the name of class 1 must not be blank, got ''"),
        (["road", " \t\u3000\u200b"], "the name of class 1 must not be blank"),
        ([None, "road"], "the name of class 0 must be a text, got None"),
        (["road", 3], "the name of class 1 must be a text, got 3"),
        (["road", 1.5], "the name of class 1 must be a text, got 1.5"),
        (["road", False], "the name of class 1 must be a text, got False"),
        (["road", ["sky"]], r"the name of class 1 must be a text, got \['sky'\]"),
        ({"0": "road", "1": {"name": "sky"}}, "the name of class 1 must be a text, got {'name': 'sky'}"),
        (["road", "\ud800"], "the name of class 1 must hold no NUL and no half of a surrogate pair"),
        (["r\0o\0", "sky"], "the name of class 0 must hold no NUL"),
        (["road", " road "], "class names must be unique, repeated: road"),
        (["caf\u00e9", "cafe\u0301"], "class names must be unique, repeated: caf\u00e9"),
        ({"0": "road", "00": "sky"}, "ids must be different, got '0', '00'"),
        ({"0": "road", "1.5": "sky"}, "ids must be integers, got '1.5'"),
        ({"0": "road", "1_0": "sky"}, "ids must be integers, got '1_0'"),
        ({"0": "road", "9" * 5000: "sky"}, "ids must be integers, got '9999"),
        ({"names": ["a"], "palette": "red"}, "palette must be a list of colours, got 'red'"),
        ({"names": ["a"], "palette": 7}, "palette must be a list of colours, got 7"),
        ({"names": ["a"], "palette": {"0": [1, 2, 3]}}, "palette must be a list of colours"),
        ({"names": ["a"], "palette": [7]}, r"palette\[0\] must be three integers in 0..255, got 7"),
        ({"names": ["a"], "palette": ["abc"]}, r"palette\[0\] must be three integers in 0..255, got 'abc'"),
        ({"names": ["a"], "palette": [[True, 1, 2]]}, r"palette\[0\] must be three integers"),
        ({"names": ["a"], "palette": [None]}, r"palette\[0\] must be three integers in 0..255, got None"),
        ({"names": ["a"], "ignore_color": 3}, "ignore_color must be three integers in 0..255, got 3"),
        ({"names": ["a"], "ignore_index": None}, "ignore_index must be an integer of 32 bits, got None"),
        ({"names": ["a"], "ignore_index": 254.5}, "ignore_index must be an integer of 32 bits, got 254.5"),
        ({"names": ["a"], "ignore_index": True}, "ignore_index must be an integer of 32 bits, got True"),
        ({"names": ["a"], "ignore_index": "255"}, "ignore_index must be an integer of 32 bits, got '255'"),
        ({"names": ["a"], "ignore_index": 2**70}, "ignore_index must be an integer of 32 bits, got 118"),
    ],
)
def test_class_files_whose_fields_are_wrong(tmp_path, content, message):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"classes\.json: .*{message}") as error:
        read_class_table(tmp_path / "classes.json")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"0": "a", "0": "b"}', "the key '0' must stand once"),
        (b'{"names": ["a"], "ignore_index": 1e999}', "must be within floating point"),
        (b'["\xe9"]', "must be text in UTF-8"),
        (b"3", "must hold an object or a list of JSON, got 3"),
        (b'"road"', "must hold an object or a list of JSON, got 'road'"),
    ],
)
def test_class_files_that_are_no_json(tmp_path, content, message):
    (tmp_path / "classes.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"classes\.json .*{message}"):
        read_class_table(tmp_path / "classes.json")


def test_class_names_in_every_language_and_number(tmp_path):
    names = [
        "road",
        "Road",
        "0",
        "C++ (old)",
        "道路",
        "طريق",
        "a, b",
        " indented",
        "n/a",
        "x" * 5000,
        "a\nb",
        "👩\u200d🚒",
    ]
    names += [f"class {i}" for i in range(5000)]
    for content in (names, {"names": names}, dict(enumerate(names))):
        (tmp_path / "classes.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
        assert read_class_table(tmp_path / "classes.json").names == tuple(names)
    (tmp_path / "classes.txt").write_bytes("\ufeffroad\r\nnext\u2028line\rdésert\n\n".encode())
    assert read_class_table(tmp_path / "classes.txt").names == ("road", "next\u2028line", "désert")
    colors = {"names": ["a"], "palette": None, "ignore_color": None, "ignore_index": -100}
    (tmp_path / "classes.json").write_text(json.dumps(colors))
    assert read_class_table(tmp_path / "classes.json").ignore_index == -100
    table = make_class_table(np.array(["a", "b"]), np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    assert table.palette == ((1, 2, 3), (4, 5, 6)) and type(table.palette[0][0]) is int
    for wrong in ("road", b"road", {"road", "sky"}, 3, None):
        with pytest.raises(ValueError, match="class names must be a list"):
            make_class_table(wrong)


def test_unreadable_class_file(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.json: cannot read class names"):
        read_class_table(tmp_path / "absent.json")


def test_default_palette_is_distinct_and_known():
    palette = default_palette(1000)
    assert len(set(palette)) == 1000 and (0, 0, 0) not in palette
    assert palette[:4] == ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))  # PASCAL VOC


# Names and options of load_dataset


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("camvd",),
            {},
            r"name must be one of scenes, camvid, .*parquet or a Hub id.*got 'camvd'; did you mean 'camvid'\?",
        ),
        (("coco_stuff",), {}, r"got 'coco_stuff'; did you mean 'coco-stuff'\?"),
        (("cityscape", "x"), {}, r"got 'cityscape'; did you mean 'cityscapes'\?"),
        (("ade20k",), {}, "data set 'ade20k' needs data_root"),
        (("ade20k", "absent"), {}, "data_root absent: no such file or folder"),
        (("folder",), {}, "data set 'folder' needs data_root"),
        (("scenes", "somewhere"), {}, "data set 'scenes' reads no local files"),
        (("scenes",), {"masks": 3}, "data set 'scenes' has no option masks; it has num_train"),
    ],
)
def test_load_dataset_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(*arguments, **options)


# CamVid


def test_camvid(shared_data):
    root = shared_data / "camvid"
    data = load_dataset("camvid", root)
    stated = json.loads((root / "classes.json").read_text())
    assert (len(data.train), len(data.validation)) == (stated["splits"]["train"], stated["splits"]["val"])
    assert list(data.class_names) == stated["names"] and [list(color) for color in data.palette] == stated["palette"]
    assert data.ignore_index == 255 and data.name == "camvid" and set(data.thin_classes) < set(data.class_names)
    example = data.train[5]
    image, label = data.read_sample(example)
    assert image.shape == (*stated["size_hw"], 3) and label.shape == tuple(stated["size_hw"])
    path = root / "train" / "annotations" / example["file_name"].replace(".jpg", ".png")
    np.testing.assert_array_equal(label, np.asarray(Image.open(path)))


def test_camvid_pixel_counts(shared_data):
    root = shared_data / "camvid"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every class occurs
        report = check_dataset(load_dataset("camvid", root))
    assert report.checked == {"train": 367, "validation": 101}
    stated = json.loads((root / "histogram.json").read_text())
    for split, key in (("train", "train"), ("validation", "val")):
        *counts, void = stated[key]["pixels"].values()  # in the order of the classes, void last
        assert report.pixel_counts[split] == tuple(counts) and report.ignored_pixels[split] == void

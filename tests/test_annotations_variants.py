# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What tools and people really write: each is read rightly, or refused with the file and the rule."""

import base64
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from annotation_exports import copied
from PIL import Image
from tool_exports import SIZE, coco, edited, flat_square, labelme, labels_of, mask, picture, shape, square

from hf_segformer.data import check_dataset, load_any

IDS = (np.arange(1200).reshape(30, 40) // 20 % 3).astype(np.uint8)
TWO = {"a.jpg": SIZE, "b.jpg": SIZE}
BOTH = [("a.jpg", 1, [flat_square(2, 3)]), ("b.jpg", 1, [flat_square(5, 5)])]


@pytest.fixture(autouse=True)
def masks_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_MASKS", str(tmp_path_factory.mktemp("masks")))


def counts(data):
    """Pixels of each label in each picture; every sample is checked first."""
    check_dataset(data)
    return {
        stem: dict(zip(*(part.tolist() for part in np.unique(label, return_counts=True)), strict=True))
        for stem, label in labels_of(data).items()
    }


def refused(path, *rules, **options):
    with pytest.raises(ValueError) as caught:
        check_dataset(load_any(path, **options))
    text = " ".join(str(caught.value).split())
    assert all(rule in text for rule in rules), text
    return text


# ---- COCO


def rename(make):
    def change(content):
        for image in content["images"]:
            image["file_name"] = make(image["file_name"])

    return change


def without(key, *fields):
    def change(content):
        for entry in content[key]:
            for field in fields:
                entry.pop(field)

    return change


@pytest.mark.parametrize(
    "change",
    [
        rename(lambda name: f"https://host:8080/media/{name}?token=a%2Fb&x=1"),
        rename(lambda name: f"s3://bucket/deep/er/{name}"),
        rename(lambda name: f"D:\\pictures\\{name}"),
        without("annotations", "area", "iscrowd"),
        without("images", "width", "height"),
        lambda c: c["annotations"].append({"id": 9, "image_id": 1, "category_id": 1, "segmentation": []}),
        lambda c: c["annotations"].append({"id": 9, "image_id": 1, "category_id": 1, "segmentation": [[]]}),
        lambda c: c["annotations"][0]["segmentation"].append([]),
        lambda c: c.update(info={"year": 2026}, licenses=[]),
    ],
)
def test_coco_as_it_is_written(tmp_path, change):
    edited(coco(tmp_path / "instances.json", TWO, BOTH, {1: "x"}), change)
    data = load_any(tmp_path)
    assert counts(data) == {stem: {0: 1100, 1: 100} for stem in "ab"}


def test_names_in_addresses_are_decoded(tmp_path):
    path = coco(tmp_path / "x.json", {"a b.jpg": SIZE, "ü.jpg": SIZE}, [("a b.jpg", 1, [flat_square(0, 0)])], {1: "x"})
    quoted = {"a b.jpg": "a%20b.jpg", "ü.jpg": "%C3%BC.jpg"}
    edited(path, rename(lambda name: f"http://host/{quoted[name]}"))
    assert sorted(counts(load_any(tmp_path))) == ["a b", "ü"]


def test_percent_signs_in_plain_names_stay(tmp_path):
    coco(tmp_path / "x.json", {"50%20.jpg": SIZE, "b.jpg": SIZE}, [("b.jpg", 1, [flat_square(0, 0)])], {1: "x"})
    assert "50%20" in counts(load_any(tmp_path))


def test_runs_say_the_size_where_the_image_does_not(tmp_path):
    runs = {"counts": [600, 600], "size": [30, 40]}
    path = coco(tmp_path / "x.json", TWO, [("a.jpg", 1, runs), ("b.jpg", 1, runs)], {1: "x"})
    edited(path, without("images", "width", "height"))
    assert counts(load_any(tmp_path))["a"] == {0: 600, 1: 600}
    edited(path, lambda c: c["annotations"][0]["segmentation"].update(size=[40, 30]))
    refused(tmp_path, "x.json", "its picture a.jpg is 40x30")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda c: c["images"][0].update(width=float("inf")), "image 0: width and height must be integers"),
        (lambda c: c["images"][0].update(width=None), "image 0: width and height must be integers"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "annotation 0 ('x'): a polygon needs"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, float("nan"), 4, 5, 6]]), "finite numbers"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 1e300, 4, 5, 6]]), "finite numbers"),
        (rename(lambda name: name.replace("jpg", "png")), "no file of this name lies in"),
    ],
)
def test_coco_is_refused_with_its_file(tmp_path, change, rule):
    edited(coco(tmp_path / "instances.json", TWO, BOTH, {1: "x"}), change)
    refused(tmp_path, f"{tmp_path}/instances.json: ", rule)


def test_a_picture_that_differs_in_its_suffix_is_named(tmp_path):
    path = coco(tmp_path / "instances.json", TWO, BOTH, {1: "x"})
    edited(path, rename(lambda name: name.replace("jpg", "png")))
    refused(tmp_path, f"but {tmp_path}/a.jpg does")


def test_polygons_of_one_pixel_and_crossing_themselves(tmp_path):
    shapes = [[1, 1, 2, 1, 2, 2, 1, 2]], [[10, 0, 30, 20, 30, 0, 10, 20]]
    coco(tmp_path / "x.json", TWO, [("a.jpg", 1, shapes[0]), ("b.jpg", 1, shapes[1])], {1: "x"})
    found = counts(load_any(tmp_path))
    assert found["a"] == {0: 1199, 1: 1} and found["b"][1] == 200


# ---- labelme


def embedded(folder, name):
    return base64.b64encode((folder / f"{name}.jpg").read_bytes()).decode()


@pytest.mark.parametrize("named", ["missing", None, ""])
def test_the_picture_in_the_file_where_none_is_named(tmp_path, named):
    for name in "ab":
        path = labelme(tmp_path / f"{name}.json", [square("x", 1, 1)])
        content = {"imageData": embedded(tmp_path, name)} | ({} if named == "missing" else {"imagePath": named})
        edited(path, lambda c, content=content: (c.pop("imagePath"), c.update(content)))
        (tmp_path / f"{name}.jpg").unlink()
    assert counts(load_any(tmp_path)) == {stem: {0: 1100, 1: 100} for stem in "ab"}


def test_the_picture_beside_the_file_where_none_is_named(tmp_path):
    for name in "ab":
        edited(labelme(tmp_path / f"{name}.json", [square("x", 1, 1)]), lambda c: c.pop("imagePath"))
    (tmp_path / "a.jpg").rename(tmp_path / "a.JPG")
    assert counts(load_any(tmp_path)) == {stem: {0: 1100, 1: 100} for stem in "ab"}


def test_what_is_embedded_and_no_picture_is_named_by_its_file(tmp_path):
    text = base64.b64encode(b"hello").decode()
    labelme(tmp_path / "a.json", [square("x", 1, 1)], image_path="gone.jpg", imageData=text)
    labelme(tmp_path / "b.json", [square("x", 1, 1)])
    refused(tmp_path, f"{tmp_path}/a.json: the picture in it: cannot read")


@pytest.mark.parametrize("version", ["2", "3", "5"])
def test_fields_of_all_versions(tmp_path, version):
    old = {"lineColor": [0, 255, 0, 128], "fillColor": [255, 0, 0, 128], "version": "3.16.7"}
    for name in "ab":
        picture(tmp_path / f"{name}.jpg")
        entry = {"label": "x", "points": square("x", 1, 1)["points"]}
        content = {"shapes": [entry], "imagePath": f"{name}.jpg", "imageData": None}
        if version == "3":
            entry |= {"line_color": None, "fill_color": None, "shape_type": "polygon", "flags": {}}
            content |= old
        elif version == "5":
            entry |= {"group_id": None, "description": "", "difficult": False, "shape_type": "polygon", "flags": {}}
            entry |= {"mask": None, "attributes": {}, "score": None}
            content |= {"version": "5.11.3", "imageHeight": 30, "imageWidth": 40, "flags": {}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert counts(load_any(tmp_path)) == {stem: {0: 1100, 1: 100} for stem in "ab"}


def test_a_picture_without_a_labelled_pixel(tmp_path):
    """Beside others: their counts are added up."""
    labelme(tmp_path / "a.json", [shape("__ignore__", [[0, 0], [40, 0], [40, 30], [0, 30]])])
    labelme(tmp_path / "b.json", [square("x", 1, 1)])
    assert counts(load_any(tmp_path)) == {"a": {255: 1200}, "b": {0: 1100, 1: 100}}


@pytest.mark.parametrize("name", ["yolo", "cvat_images"])
def test_shapes_of_no_class_at_all_are_refused(tmp_path, name):
    folder = copied(name, tmp_path)
    for path in folder.rglob("labels/*/*.txt"):
        path.write_text("")
    for path in folder.rglob("*.xml"):
        text = path.read_text(encoding="utf-8")
        head, *images = text.split("<image ")
        path.write_text(
            head + "".join(f"<image {i.partition('>')[0].rstrip('/')}/>" for i in images) + "</annotations>"
        )
    refused(folder, str(folder), "a class must have a pixel, none of 4 pictures shows any")


# ---- CVAT, VOC, YOLO


def test_shapes_that_are_outside_are_left_out(tmp_path):
    folder = copied("cvat_images", tmp_path)
    path = next(folder.rglob("*.xml"))
    before = load_any(folder)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("<polygon ", '<polygon outside="0" group_id="3" '), encoding="utf-8")
    assert counts(load_any(folder)) == counts(before)
    path.write_text(text.replace("<polygon ", '<polygon outside="1" ', 1), encoding="utf-8")
    assert counts(load_any(folder)) != counts(before) and "outside" in load_any(folder).description


@pytest.mark.parametrize("line", ["{}", "{}.jpg", "JPEGImages/{}.jpg", "/data/VOC/JPEGImages/{}.png", "x\\{}.jpg"])
def test_lists_with_folders_and_suffixes(tmp_path, line):
    folder = copied("voc", tmp_path)
    path = folder / "ImageSets" / "Segmentation" / "train.txt"
    stems = path.read_text().split("\n")
    path.write_text("\n".join(line.format(stem) for stem in stems if stem))
    assert (len(load_any(folder).train), len(load_any(folder).validation)) == (2, 1)


def test_a_list_of_other_pictures_is_refused_and_one_for_tests_is_not(tmp_path):
    folder = copied("voc", tmp_path)
    lists = folder / "ImageSets" / "Segmentation"
    (lists / "test.txt").write_text("secret_1\nsecret_2\n")
    assert "2 listed pictures without a mask left out" in load_any(folder).description
    (lists / "train.txt").write_text("other_1\nother_2\n")
    refused(folder, "train.txt: it must name masks in", "got 'other_1'")


@pytest.mark.parametrize("count", ["65001", "99999999999", "9" * 5000])
def test_more_classes_than_masks_can_hold(tmp_path, count):
    picture(tmp_path / "images" / "train" / "a.jpg")
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/train\nnc: {count}\n")
    refused(tmp_path, "data.yaml: nc must be at most 65000")


# ---- masks


def masked(folder, save):
    (folder / "masks").mkdir(parents=True)
    for stem in "abc":
        picture(folder / "images" / f"{stem}.jpg")
        save(folder / "masks" / f"{stem}.png")
    (folder / "classes.json").write_text('["x", "y", "z"]')
    return folder


def with_alpha(grey, alpha):
    return Image.fromarray(np.dstack([grey, grey, grey, alpha]).astype(np.uint8))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image.fromarray(IDS.astype(np.uint16)),
        lambda: Image.fromarray(np.dstack([IDS] * 3)),
        lambda: with_alpha(IDS, np.full_like(IDS, 255)),
        lambda: with_alpha(IDS, 255 * (IDS > 0)),
        lambda: Image.fromarray(np.dstack([IDS, np.full_like(IDS, 255)])),
    ],
)
def test_ids_in_every_depth(tmp_path, make):
    folder = masked(tmp_path, lambda path: make().save(path))
    assert counts(load_any(folder))["a"] == {0: 400, 1: 400, 2: 400}


@pytest.mark.parametrize("grey", [0, 255])
def test_ids_in_the_alpha_channel_are_refused(tmp_path, grey):
    folder = masked(tmp_path, lambda path: with_alpha(np.full_like(IDS, grey), IDS).save(path))
    refused(folder, "masks/a.png", "alpha channel")


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
@pytest.mark.parametrize("values", [IDS, 0 * IDS])
def test_masks_saved_as_jpeg_are_refused(tmp_path, values, suffix):
    folder = masked(tmp_path, lambda path: Image.fromarray(values).save(path.with_suffix(suffix)))
    refused(folder, f"masks/a{suffix}: masks must not be JPEG")


def test_jpeg_masks_of_voc_are_refused(tmp_path):
    for stem in "ab":
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        mask(tmp_path / "SegmentationClass" / f"{stem}.jpg", 0 * IDS)
    refused(tmp_path, "SegmentationClass/a.jpg: masks must not be JPEG")


def test_masks_that_are_ignored_as_a_whole(tmp_path):
    folder = masked(tmp_path, lambda path: Image.fromarray(0 * IDS if "a" in path.stem else 0 * IDS + 255).save(path))
    assert counts(load_any(folder))["b"] == {255: 1200}


def test_one_picture_only(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png", 0 * IDS)
    (tmp_path / "classes.json").write_text('["x"]')
    refused(tmp_path, f"{tmp_path}: at least 2 pictures are needed to hold some out, got 1")


# ---- archives and folders


def test_names_with_backslashes_in_zip_files(tmp_path):
    coco(tmp_path / "in" / "instances.json", TWO, BOTH, {1: "x"})
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as archive:
        for path in (tmp_path / "in").iterdir():
            info = zipfile.ZipInfo("x")
            info.filename = f"export\\{path.name}"
            archive.writestr(info, path.read_bytes())
    assert counts(load_any(tmp_path / "windows.zip")) == {stem: {0: 1100, 1: 100} for stem in "ab"}


def test_archives_inside_are_named(tmp_path):
    coco(tmp_path / "in" / "instances.json", TWO, BOTH, {1: "x"})
    (tmp_path / "out").mkdir()
    shutil.make_archive(str(tmp_path / "out" / "inner"), "zip", tmp_path / "in")
    shutil.make_archive(str(tmp_path / "outer"), "zip", tmp_path / "out")
    refused(tmp_path / "out", f"unpack {tmp_path}/out/inner.zip")
    refused(tmp_path / "outer.zip", f"{tmp_path}/outer.zip: no annotations", "unpack", "inner.zip")
    (tmp_path / "tar").mkdir()
    archive = shutil.make_archive(str(tmp_path / "tar" / "x"), "gztar", tmp_path / "in")
    refused(archive, f"unpack {archive}")


def test_what_lies_beside_an_export(tmp_path):
    """Notes of the tool, files of systems, hidden ones, links."""
    root = tmp_path / "in"
    for split in ("train", "valid"):
        images = {f"{split}_{k}.jpg": SIZE for k in range(2)}
        segments = [(name, 1, [flat_square(1, 1)]) for name in images]
        coco(root / split / "_annotations.coco.json", images, segments, {1: "x"})
    for name in ("README.dataset.txt", "README.roboflow.txt", "Thumbs.db", ".DS_Store", "train/._train_0.jpg"):
        (root / name).write_bytes(b"\0 no picture")
    (tmp_path / "linked").mkdir()
    for path in root.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    shutil.make_archive(str(tmp_path / "zipped"), "zip", root)
    for place in (root, tmp_path / "linked", tmp_path / "zipped.zip"):
        data = load_any(place)
        assert (len(data.train), len(data.validation)) == (2, 2)
        assert set(map(str, counts(data).values())) == {"{0: 1100, 1: 100}"}


def test_many_pictures_are_not_opened_at_the_start(tmp_path, monkeypatch):
    """Where nothing is to be drawn and splits are given, a few masks tell what they hold."""
    picture(tmp_path / "first.png")
    mask(tmp_path / "mask.png", 0 * IDS)
    for split in ("train", "val"):
        for kind, file in (("images", "first.png"), ("masks", "mask.png")):
            (tmp_path / kind / split).mkdir(parents=True)
            for number in range(300):
                os.link(tmp_path / file, tmp_path / kind / split / f"{number}.png")
    (tmp_path / "classes.json").write_text('["x"]')
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(args) or real(*args, **options))
    data = load_any(tmp_path)
    assert (len(data.train), len(data.validation)) == (300, 300)
    assert 0 < len(opened) <= 32


def test_classes_in_masks_decide_on_the_split_in_every_depth(tmp_path):
    """A rare class comes to both sides, also where its id needs 16 bits."""
    for index in range(10):
        picture(tmp_path / "images" / f"{index}.jpg")
        values = np.full((30, 40), 256 + 44 * (index in (3, 7)), np.uint16)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "masks" / f"{index}.png")
    (tmp_path / "classes.json").write_text(json.dumps([f"c{k}" for k in range(301)]))
    data = load_any(tmp_path)
    held = {Path(name).stem for name in data.validation["file_name"][:]}
    assert len(held & {"3", "7"}) == 1 and counts(data)["3"] == {300: 1200}

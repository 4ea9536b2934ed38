# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports as systems, programs and people change them on the way: names, encodings, ids, folders."""

import base64
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image
from tool_exports import SIZE, coco, edited, flat_square, labelme, labels_of, mask, picture, square

from hf_segformer.data import check_dataset, load_any

IDS = np.arange(1200).reshape(30, 40) % 3
TWO = {"a.jpg": SIZE, "b.jpg": SIZE}
BOTH = [(name, 1, [flat_square(2, 3)]) for name in TWO]
NFC, NFD = "ü", unicodedata.normalize("NFD", "ü")


@pytest.fixture(autouse=True)
def masks_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_MASKS", str(tmp_path_factory.mktemp("masks")))


def pixels(data):
    """Pixels of class 1 in each picture."""
    check_dataset(data)
    return {stem: int((label == 1).sum()) for stem, label in labels_of(data).items()}


# ---- names of pictures


@pytest.mark.parametrize(
    ("stated", "stored"),
    [
        ("A.JPG", "a.jpg"),
        ("a.jpg", "a.JPG"),
        ("images/Photo 1.Jpeg", "photo 1.jpeg"),
        ("a%20b.jpg", "a b.jpg"),
        ("a b.jpg", "a%20b.jpg"),
        (f"{NFC}.jpg", f"{NFD}.jpg"),
        (f"{NFD}.jpg", f"{NFC}.jpg"),
        ("%C3%BC.jpg", f"{NFD}.jpg"),
        ("images/0badcafe-a.jpg", "a.jpg"),
        ("images\\0badcafe-A.jpg", "a.jpg"),
    ],
)
def test_names_that_differ_as_systems_do(tmp_path, stated, stored):
    path = coco(tmp_path / "x.json", {stored: SIZE, "other.jpg": SIZE}, [(stored, 1, [flat_square(2, 3)])], {1: "x"})
    edited(path, lambda c: c["images"][0].update(file_name=stated))
    assert pixels(load_any(tmp_path)) == {stored.rpartition(".")[0]: 100, "other": 0}


@pytest.mark.parametrize("others", [["A.jpg", "a.JPG"], ["x/A.jpg", "y/A.jpg"]])
def test_several_that_differ_so_are_named(tmp_path, others):
    path = coco(
        tmp_path / "in" / "x.json", dict.fromkeys(others, SIZE), [(others[0], 1, [flat_square(0, 0)])], {1: "x"}
    )
    edited(path, lambda c: c["images"][0].update(file_name="a.jpg"))
    with pytest.raises(ValueError, match=r"picture 'a\.jpg': several files fit"):
        load_any(tmp_path / "in")


def test_the_very_name_comes_first(tmp_path):
    images = dict.fromkeys(("a.jpg", "A.jpg", "0badcafe-a.jpg"), SIZE)
    coco(tmp_path / "x.json", images, [("A.jpg", 1, [flat_square(0, 0)])], {1: "x"})
    assert pixels(load_any(tmp_path)) == {"a": 0, "A": 100, "0badcafe-a": 0}


@pytest.mark.parametrize(("image", "annotation"), [("IMG_1", "img_1"), (NFC, NFD), ("a b", "a%20b")])
def test_masks_whose_names_differ_so(tmp_path, image, annotation):
    for one, other in ((image, annotation), ("same", "same")):
        picture(tmp_path / "images" / f"{one}.JPG")
        mask(tmp_path / "masks" / f"{other}.png", IDS)
    assert set(labels_of(load_any(tmp_path, class_names="x,y,z"))) == {image, "same"}
    picture(tmp_path / "images" / f"{image.upper()}.jpg" if image != NFC else tmp_path / "images" / "Ü.jpg")
    if image.upper() != image:
        with pytest.raises(ValueError, match="no mask with the stem"):
            load_any(tmp_path, class_names="x,y,z")


def test_pictures_of_voc_whose_names_differ_so(tmp_path):
    for image, annotation in (("IMG_1", "img_1"), (NFC, NFD), ("a b", "a%20b"), ("c", "c")):
        picture(tmp_path / "JPEGImages" / f"{image}.JPG")
        mask(tmp_path / "SegmentationClass" / f"{annotation}.png", IDS)
    (tmp_path / "class_names.txt").write_text("x\ny\nz\n")
    assert len(labels_of(load_any(tmp_path))) == 4
    picture(tmp_path / "JPEGImages" / "Img_1.jpg")
    with pytest.raises(ValueError, match=r"img_1\.png: several pictures fit"):
        load_any(tmp_path)


def test_labelmes_picture_beside_the_file_that_says_another_name(tmp_path):
    for stem, named in (("a", "IMG_0001.jpg"), ("b", "b.png"), ("c", "c.jpg")):
        picture(tmp_path / f"{stem}.jpg")
        labelme(tmp_path / f"{stem}.json", [square("x", 1, 1)], image_path=named)
    data = load_any(tmp_path)
    assert pixels(data) == dict.fromkeys("abc", 100)
    assert "2 pictures are not called as imagePath says, but as their files" in data.description
    labelme(tmp_path / "a.json", [square("x", 1, 1)], image_path="c.jpg")  # a picture that is there is taken
    with pytest.raises(ValueError, match=r"c\.json: its picture c\.jpg is annotated in .*a\.json, too"):
        load_any(tmp_path)


@pytest.mark.parametrize("head", ["", "data:image/jpeg;base64,", "data:image/png;base64,"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes])
def test_pictures_inside_labelmes_files_as_others_write_them(tmp_path, head, encode):
    for stem in "ab":
        path = labelme(tmp_path / f"{stem}.json", [square("x", 1, 1)])
        text = head + encode((tmp_path / f"{stem}.jpg").read_bytes()).decode()
        (tmp_path / f"{stem}.jpg").unlink()
        edited(path, lambda c, text=text: c.update(imageData=text))
    assert pixels(load_any(tmp_path)) == {"a": 100, "b": 100}


def test_labels_with_spaces_around_them_are_the_same(tmp_path):
    labelme(tmp_path / "a.json", [square("car", 1, 1)])
    labelme(tmp_path / "b.json", [square(" car ", 1, 1)])
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncar\n")
    assert load_any(tmp_path).class_names == ("_background_", "car")
    (tmp_path / "labels.txt").unlink()
    assert load_any(tmp_path).class_names == ("background", "car")


# ---- encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_files_of_programs_for_windows(tmp_path, encoding):
    path = coco(tmp_path / "coco" / "x.json", TWO, BOTH, {1: "Straße"})
    text = json.dumps(json.loads(path.read_text()), ensure_ascii=False)
    mark = "" if encoding in ("utf-8-sig", "utf-16") else "\ufeff"
    path.write_bytes((mark + text).replace("\n", "\r\n").encode(encoding))
    assert load_any(tmp_path / "coco").class_names == ("background", "Straße")
    for split in ("train", "val"):
        picture(tmp_path / "yolo" / "images" / split / "a.jpg")
        (tmp_path / "yolo" / "labels" / split).mkdir(parents=True)
        line = f"{mark}0 0.1 0.1 0.5 0.1 0.5 0.5\r\n"
        (tmp_path / "yolo" / "labels" / split / "a.txt").write_bytes(line.encode(encoding))
    text = f"{mark}train: images/train\r\nval: images/val\r\nnames: [Straße]\r\n"
    (tmp_path / "yolo" / "data.yaml").write_bytes(text.encode(encoding))
    assert load_any(tmp_path / "yolo").class_names == ("background", "Straße")


@pytest.mark.parametrize(
    ("contents", "rule"), [('{"x": "车"}'.encode("gbk"), "UTF-8"), (b"\xff\xfe\x00\xd8", "UTF-16")]
)
def test_other_encodings_are_refused_with_the_one_that_is_expected(tmp_path, contents, rule):
    (tmp_path / "x.json").write_bytes(contents)
    with pytest.raises(ValueError, match=rf"x\.json: it must be text in {rule}, byte 0x"):
        load_any(tmp_path)


# ---- COCO's ids, categories and polygons


def converted(kind):
    def change(content):
        for image in content["images"]:
            image["id"] = kind(image["id"])
        for annotation in content["annotations"]:
            annotation["image_id"], annotation["category_id"] = kind(annotation["image_id"]), kind(1)
        content["categories"][0]["id"] = kind(1)

    return change


@pytest.mark.parametrize("kind", [float, str])
def test_ids_as_tables_and_texts(tmp_path, kind):
    path = edited(coco(tmp_path / "x.json", TWO, BOTH, {1: "x"}), converted(kind))
    assert pixels(load_any(tmp_path)) == {"a": 100, "b": 100}
    edited(path, lambda c: c["annotations"][0].update(image_id=1, category_id="1"))
    assert pixels(load_any(tmp_path)) == {"a": 100, "b": 100}
    for wrong in (1.5, "01", "x", True, None):
        edited(path, lambda c, wrong=wrong: c["annotations"][0].update(category_id=wrong))
        with pytest.raises(ValueError, match=r"annotation 0: category_id .* is not among 1"):
            load_any(tmp_path)


def test_categories_of_one_name_are_one_class(tmp_path):
    shapes = [("a.jpg", 2, [flat_square(0, 0)]), ("b.jpg", 7, [flat_square(0, 0)]), ("b.jpg", 9, [flat_square(20, 0)])]
    coco(tmp_path / "x.json", TWO, shapes, {2: "car", 7: "car", 9: "bus"})
    data = load_any(tmp_path)
    assert data.class_names == ("background", "car", "bus") and pixels(data) == {"a": 100, "b": 100}
    assert "categories of one name are one class (car)" in data.description


SQUARE = [[2, 3], [12, 3], [12, 13], [2, 13]]


@pytest.mark.parametrize("segmentation", [SQUARE, [SQUARE], [flat_square(2, 3)], flat_square(2, 3)])
def test_polygons_as_flat_and_nested_lists(tmp_path, segmentation):
    coco(tmp_path / "x.json", TWO, [("a.jpg", 1, segmentation), ("b.jpg", 1, [flat_square(0, 0)])], {1: "x"})
    data = load_any(tmp_path)
    assert pixels(data) == {"a": 100, "b": 100} and labels_of(data)["a"][5, 5] == 1


@pytest.mark.parametrize(
    "segmentation", [[[2, 3], [4, 5]], [[[2, 3], [4, 5]]], [[2, 3, 4, 5]], [[2], [3], [4]], [2, 3]]
)
def test_too_few_points_in_any_of_these_forms(tmp_path, segmentation):
    coco(tmp_path / "x.json", TWO, [("a.jpg", 1, segmentation)], {1: "x"})
    with pytest.raises(ValueError, match=r"annotation 0 \('x'\): a polygon (needs at least 3 points|must be a list)"):
        load_any(tmp_path)


# ---- YOLO


def test_lists_of_pictures_from_another_working_folder(tmp_path):
    for split, start in (("train", "./"), ("val", "data/mine/"), ("test", "D:\\mine\\")):
        picture(tmp_path / "images" / split / "a.jpg")
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
        (tmp_path / f"{split}.txt").write_text(f"{start}images/{split}/a.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\ntest: test.txt\nnames: [x]\n")
    data = load_any(tmp_path)
    assert [len(rows) for rows in (data.train, data.validation, data.other_splits["test"])] == [1, 1, 1]


def test_labels_without_names_are_named_for_what_they_are(tmp_path):
    for split in ("train", "valid"):
        picture(tmp_path / split / "images" / "a.jpg")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    with pytest.raises(
        ValueError, match=r"a\.txt: this looks like YOLO's labels, without data\.yaml or a classes\.txt"
    ):
        load_any(tmp_path)


# ---- masks by hand


@pytest.mark.parametrize(
    ("image", "annotation"),
    [
        ("{}.jpg", "masks/{}.png"),
        ("images/{}.jpg", "masks/mask_{}.png"),
        ("images/image_{}.jpg", "masks/mask_{}.png"),
        ("img/img-{}.jpg", "ann/label-{}.png"),
        ("scene/{}.jpg", "scene/gt/{}.png"),
    ],
)
def test_more_names_of_files_and_folders(tmp_path, image, annotation):
    for stem in "abc":
        picture(tmp_path / image.format(stem))
        mask(tmp_path / annotation.format(stem), IDS)
    picture(tmp_path / "preview" / "a.jpg")
    data = load_any(tmp_path, class_names="x,y,z")
    assert len(labels_of(data)) == 3 and data.num_classes == 3


@pytest.mark.parametrize(
    ("image", "annotation"),
    [
        ("{}/{}.jpg", "{}_masks/{}.png"),
        ("{}_images/{}.jpg", "{}-labels/{}_mask.png"),
        ("x/{}/{}.jpg", "x/{}annot/{}.png"),
    ],
)
def test_splits_in_the_names_of_folders(tmp_path, image, annotation):
    for split, stems in (("train", "abc"), ("val", "de"), ("test", "f")):
        for stem in stems:
            picture(tmp_path / image.format(split, stem))
            mask(tmp_path / annotation.format(split, stem), IDS)
    data = load_any(tmp_path, class_names="x,y,z")
    assert (len(data.train), len(data.validation), len(data.other_splits["test"])) == (3, 2, 1)


@pytest.mark.parametrize(
    "text", ["0 x\n1 y\n2 a z\n", "0: x\n1: y\n2: a z", "0,x\r\n1,y\r\n2,a z", "0\tx\n1\ty\n2\ta z\n"]
)
def test_lists_of_classes_with_their_ids(tmp_path, text):
    for stem in "ab":
        picture(tmp_path / "images" / f"{stem}.jpg")
        mask(tmp_path / "masks" / f"{stem}.png", IDS)
    (tmp_path / "classes.txt").write_text(text)
    assert load_any(tmp_path).class_names == ("x", "y", "a z")
    (tmp_path / "classes.txt").write_text(text.replace("2", "3").replace("1", "2").replace("0", "1"))
    with pytest.raises(ValueError, match=r"classes\.txt: the first line has the id 0, lines must be numbered from 0"):
        load_any(tmp_path)
    with pytest.raises(ValueError, match=r"classes\.txt: the first line has the id 0"):
        load_any(tmp_path, class_names=str(tmp_path / "classes.txt"))


@pytest.mark.parametrize("text", ["3 axles\n2 axles\nother\n", "10 m\n20 m\n30 m\n", "0\n1\n2\n"])
def test_names_that_begin_with_a_number_stay(tmp_path, text):
    for stem in "ab":
        picture(tmp_path / "images" / f"{stem}.jpg")
        mask(tmp_path / "masks" / f"{stem}.png", IDS)
    (tmp_path / "classes.txt").write_text(text)
    assert load_any(tmp_path).class_names == tuple(text.split("\n")[:3])


@pytest.mark.parametrize("name", ["class_dict.csv", "class_dict_seg.csv"])
def test_tables_of_names_and_colours(tmp_path, name):
    colors = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 200]], np.uint8)
    for stem in "ab":
        picture(tmp_path / "images" / f"{stem}.jpg")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(colors[IDS]).save(tmp_path / "masks" / f"{stem}.png")
    (tmp_path / name).write_text("name, r, g, b\nx,0,0,0\ny, 200, 0, 0\nz,0,0,200\n", encoding="utf-8-sig")
    data = load_any(tmp_path)
    np.testing.assert_array_equal(labels_of(data)["a"], IDS)
    assert data.class_names == ("x", "y", "z")
    (tmp_path / name).write_text("name,r,g,b\nx,0,0\n")
    with pytest.raises(ValueError, match=rf"{name}: line 2 must be a name and three integers, got 'x,0,0'"):
        load_any(tmp_path)

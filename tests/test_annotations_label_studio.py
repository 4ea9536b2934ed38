# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label Studio: brush strokes packed and unpacked by its converter, polygons drawn by pycocotools."""

import json

import numpy as np
import pytest
from annotation_exports import EXPORTS, assert_agrees, copied, label_maps

from hf_segformer.data import load_annotated
from hf_segformer.data.label_studio import decode_brush

FILE = "project-1-at-2026-11-28-08-00-0badcafe.json"


@pytest.fixture(autouse=True)
def masks_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_MASKS", str(tmp_path / "masks"))


def test_regions_lie_where_its_converter_draws_them():
    data = load_annotated(EXPORTS / "label_studio" / "export")
    assert data.class_names == ("background", "Büsche", "grass", "gravel path", "pond")  # none names all labels
    assert_agrees(data, "label_studio", reach=1)


def changed(tmp_path, change):
    folder = copied("label_studio", tmp_path)
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    change(content)
    (folder / FILE).write_text(json.dumps(content), encoding="utf-8")
    return folder


def region(kind, label="pond", **value):
    size = {"original_width": 96, "original_height": 64, "image_rotation": 0}
    return size | {"type": f"{kind}labels", "value": value | {f"{kind}labels": [label]}}


def test_rectangles_turn_about_their_corner_and_ellipses_about_their_centre(tmp_path):
    shapes = [
        region("rectangle", x=50, y=50, width=25, height=12.5, rotation=90),
        region("ellipse", "grass", x=25, y=25, radiusX=12.5, radiusY=6.25, rotation=90),
        region("keypoint", x=1, y=1),
    ]
    folder = changed(tmp_path, lambda tasks: tasks[0]["annotations"][0].update(result=shapes))
    data = load_annotated(folder)
    label = label_maps(data)["00000001-yard"]
    names = data.class_names
    expected = np.zeros((64, 96), int)
    expected[32:56, 40:48] = names.index("pond")  # a box of 24 x 8 pixels, turned down to the left of its corner
    y, x = np.mgrid[:64, :96] + 0.5
    distance = ((y - 16) / 12) ** 2 + ((x - 24) / 4) ** 2
    expected[distance < 1] = names.index("grass")
    assert (label == expected)[np.abs(np.sqrt(distance) - 1) > 0.01].all()
    assert "1 regions without an area" in data.description


@pytest.mark.parametrize(
    "link", ["/data/local-files/?d=some%20where/00000001-yard.jpg", "https://x.example/a/00000001-yard.jpg?sig=1"]
)
def test_links_to_pictures(tmp_path, link):
    folder = changed(tmp_path, lambda tasks: tasks[0]["data"].update(image=link))
    assert_agrees(load_annotated(folder), "label_studio", reach=1)


def test_pictures_before_they_were_uploaded(tmp_path):
    folder = copied("label_studio", tmp_path)
    for path in (folder / "images").iterdir():
        path.rename(path.with_name(path.name[9:]))
    assert sorted(label_maps(load_annotated(folder))) == ["bare", "shelf_2", "turned", "yard"]


def test_cancelled_and_several_annotations(tmp_path):
    def change(tasks):
        tasks[0]["annotations"].append({"result": [], "was_cancelled": True})
        tasks[1]["annotations"][0]["ground_truth"] = True
        tasks[1]["annotations"].append({"result": []})
        tasks[3]["annotations"] = []

    data = load_annotated(changed(tmp_path, change))
    assert len(data.train) + len(data.validation) == 3
    folder = changed(tmp_path / "other", lambda tasks: tasks[0]["annotations"].append({"result": []}))
    with pytest.raises(ValueError, match=r"task 11: one annotation must be the ground truth .* got 2"):
        load_annotated(folder)


def test_labels_apart_from_shapes_and_what_is_no_region(tmp_path):
    """With <Labels> beside <Polygon>, <Brush> ... every region stands twice, once without its label."""

    def change(tasks):
        results = tasks[0]["annotations"][0]["result"]
        apart = []
        for result in results:
            kind = result["type"].removesuffix("labels")
            label = result["value"].pop(result["type"])
            apart.append(result | {"type": kind})
            apart.append(result | {"type": "labels", "value": result["value"] | {"labels": label}})
        apart.append({"type": "relation", "from_id": "r0", "to_id": "r1", "direction": "right"})
        apart.append({"type": "choices", "id": "c", "value": {"choices": ["sunny"]}})
        apart.append(results[0] | {"type": "polygon", "id": "without a label"})
        tasks[0]["annotations"][0]["result"] = apart

    data = load_annotated(changed(tmp_path, change))
    assert_agrees(data, "label_studio", reach=1)
    assert "left out (relation, choices, polygon)" in data.description


def brush(tasks):
    return next(r for r in tasks[0]["annotations"][0]["result"] if r["type"] == "brushlabels")


def polygon(tasks):
    return tasks[0]["annotations"][0]["result"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: brush(t)["value"].update(rle=brush(t)["value"]["rle"][:60]), "rle must hold 24576 values, it ends"),
        (lambda t: brush(t)["value"].update(rle=[1, 2, 3]), "rle must begin with a head of 53 bits, got 24"),
        (lambda t: brush(t)["value"].update(rle="abc"), "rle must be a list of bytes"),
        (lambda t: brush(t)["value"].update(rle=[300] * 9), "rle must be a list of bytes"),
        (lambda t: brush(t).update(original_width=97), "rle must hold 4 values for each pixel, 24832, got 24576"),
        (lambda t: polygon(t).update(original_width=97), "must be the same for all regions"),
        (lambda t: polygon(t)["value"].update(points=[[1, 1], [2, 2]]), "at least 3 points, got 2"),
        (lambda t: polygon(t)["value"].update(points=[[1, 1], [2, "x"], [1, 2]]), "list of points"),
        (lambda t: polygon(t)["value"].update(polygonlabels=[]), "must have one label, got []"),
        (lambda t: polygon(t)["value"].update(polygonlabels=["a", "b"]), "must have one label"),
        (lambda t: polygon(t).update(image_rotation=90), "image_rotation must be 0, got 90"),
        (lambda t: t[0]["data"].update(image="/data/upload/1/gone.jpg"), "gone.jpg' is missing"),
        (lambda t: t[0].update(data={"text": "a"}), "data must name a picture"),
        (lambda t: t[1].update(data=t[0]["data"]), "annotated twice"),
        (lambda t: t.append(3), "a task must be an object"),
    ],
)
def test_bad_task_is_named(tmp_path, change, message):
    folder = changed(tmp_path, change)
    with pytest.raises(ValueError) as raised:
        load_annotated(folder)
    assert message in str(raised.value)
    assert f"{folder / FILE}: task " in str(raised.value)


def test_literal_stretches_of_the_packing():
    """The converter packs runs alone; the program itself also writes stretches of different values."""
    bits = f"{12:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "1" + "00" + "011" + f"{9:08b}"  # 4 times 9
    bits += "0" + "01" + "0111" + "".join(f"{value:08b}" for value in range(8))  # 8 values
    packed = [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]
    assert decode_brush(packed, 12, "region").tolist() == [9] * 4 + list(range(8))

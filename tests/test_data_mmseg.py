# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""ADE20K, Cityscapes and COCO-Stuff against mmsegmentation's data set classes: names, colours, files and labels."""

import json
import shutil

import numpy as np
import pytest

from hf_segformer.data import ade20k, cityscapes, coco_stuff, load_dataset, undecoded
from oracles import run_oracle
from published_data import COCO_RAW_IDS, write_ade20k, write_cityscapes, write_coco_stuff

MODULES = {"ade20k": ade20k, "cityscapes": cityscapes, "coco-stuff": coco_stuff}

SCRIPT = """
import json, os, runpy, sys
import numpy as np
from mmseg.datasets import ADE20KDataset, CityscapesDataset, COCOStuffDataset
from mmseg.utils import register_all_modules
import mmseg
register_all_modules()
plan = json.loads(sys.argv[1])
classes = {'ade20k': ADE20KDataset, 'cityscapes': CityscapesDataset, 'coco-stuff': COCOStuffDataset}
folder = os.path.join(os.path.dirname(mmseg.__file__), '.mim', 'tools', 'dataset_converters')
convert = runpy.run_path(os.path.join(folder, 'coco_stuff164k.py'))['convert_to_trainID']
annotations = os.path.join(plan['coco'], 'annotations')
for split in ('train2017', 'val2017'):
    for name in sorted(os.listdir(os.path.join(annotations, split))):
        convert(os.path.join(annotations, split, name), annotations, split == 'train2017')
labels, report = {}, {'meta': {}, 'files': {}}
for key, (kind, root, image, annotation) in plan['sets'].items():
    data = classes[kind](
        data_root=root, data_prefix=dict(img_path=image, seg_map_path=annotation),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')], test_mode=False)
    meta = data.metainfo
    report['meta'][kind] = [list(meta['classes']), [list(map(int, color)) for color in meta['palette']]]
    report['files'][key] = []
    for index in range(len(data)):
        sample = data[index]
        report['files'][key].append(os.path.basename(sample['img_path']))
        labels[f'{key}/{index}'] = sample['gt_seg_map']
        if sample['img_path'].endswith('.png'):
            labels[f'{key}/{index}/image'] = sample['img'][..., ::-1]
np.savez(sys.argv[2], **labels)
print('REPORT ' + json.dumps(report))
"""

ADE = {
    "train": ("images/training", "annotations/training"),
    "validation": ("images/validation", "annotations/validation"),
}
CITY = {"train": ("leftImg8bit/train", "gtFine/train"), "validation": ("leftImg8bit/val", "gtFine/val")}
COCO = {
    "train": ("images/train2017", "annotations/train2017"),
    "validation": ("images/val2017", "annotations/val2017"),
}
PLACES = {"ade20k": ADE, "cityscapes": CITY, "coco-stuff": COCO}


@pytest.fixture(scope="module")
def roots(tmp_path_factory, request):
    """Where each generated and, as far as there are, genuine data set lies."""
    folder = tmp_path_factory.mktemp("published")
    made = {
        "ade20k": write_ade20k(folder, values=(*range(151), 255)),
        "cityscapes": write_cityscapes(folder / "city", values=(*range(19), 255), kinds=("labelTrainIds",)),
        "coco-stuff": write_coco_stuff(folder / "coco", values=(*COCO_RAW_IDS, 255)),
    }
    found = {name: {"generated": root} for name, root in made.items()}
    try:
        shared = request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        return found
    found["ade20k"]["genuine"], found["cityscapes"]["genuine"] = shared / "ade20k", shared / "cityscapes"
    return found


@pytest.fixture(scope="module")
def mmseg(roots, tmp_path_factory):
    """What mmsegmentation says: class tables, file names, labels."""
    sets = {
        f"{name} {origin} {split}": (name, str(root), *places)
        for name, origins in roots.items()
        for origin, root in origins.items()
        for split, places in PLACES[name].items()
        if (root / places[0]).is_dir()
    }
    # Its converter writes beside what it reads; the raw maps alone stay where they were.
    converted = tmp_path_factory.mktemp("converted") / "coco"
    shutil.copytree(roots["coco-stuff"]["generated"], converted)
    plan = {"sets": sets, "coco": str(converted)}
    for key, (name, root, *places) in sets.items():
        if name == "coco-stuff":
            sets[key] = (name, root.replace(str(roots[name]["generated"]), str(converted)), *places)
    target = converted.parent / "labels.npz"
    output = run_oracle("mmseg", SCRIPT, json.dumps(plan), target)
    report = json.loads(output.split("REPORT ")[1])
    with np.load(target) as labels:
        return report | {"labels": dict(labels), "converted": converted}


@pytest.mark.parametrize("name", MODULES)
def test_names_and_palette(mmseg, name):
    names, palette = mmseg["meta"][name]
    assert list(MODULES[name].CLASS_NAMES) == [each.strip() for each in names]  # "bed " has a blank there
    assert tuple(tuple(color) for color in palette) == MODULES[name].PALETTE


def assert_same_samples(data, mmseg, key, split):
    rows = undecoded(getattr(data, split))
    assert rows["file_name"][:] == mmseg["files"][key]
    for index, row in enumerate(rows):
        image, label = data.read_sample(row)
        np.testing.assert_array_equal(label, mmseg["labels"][f"{key}/{index}"])
        if f"{key}/{index}/image" in mmseg["labels"]:
            np.testing.assert_array_equal(image, mmseg["labels"][f"{key}/{index}/image"])


@pytest.mark.filterwarnings("ignore:.*annotations hold 255")
@pytest.mark.parametrize(
    ("name", "origin"), [*((name, "generated") for name in MODULES), ("ade20k", "genuine"), ("cityscapes", "genuine")]
)
def test_labels(roots, mmseg, name, origin):
    if origin not in roots[name]:
        pytest.skip("real test data not found; set HF_SEGFORMER_TEST_DATA to its folder")
    data = load_dataset(name, roots[name][origin])
    keys = [key for key in mmseg["files"] if key.startswith(f"{name} {origin} ")]
    assert len(keys) == (1 if (name, origin) == ("cityscapes", "genuine") else 2)
    for key in keys:
        assert_same_samples(data, mmseg, key, key.split()[-1])


def test_converted_coco_stuff(mmseg):
    """The converter's files, as it has written them, read as they are."""
    data = load_dataset("coco-stuff", mmseg["converted"])
    assert not data.annotation_format.id_map
    for split in ("train", "validation"):
        assert_same_samples(data, mmseg, f"coco-stuff generated {split}", split)

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""ONNX files in a model folder: where others look for them, in `evaluate` and `predict`, pushed, and without us."""

import ast
import hashlib
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from example_scripts import forget_accelerate
from exported_files import PROCESSOR, Network, describe, write_onnx
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation
from hf_segformer.cli import main
from hf_segformer.data import draw_scene
from hf_segformer.data.scenes import CLASS_NAMES
from hf_segformer.export.layout import OnnxFolder
from hf_segformer.hub.onnx_files import onnx_metadata
from hf_segformer.hub.push import push_folder
from hf_segformer.inference import load_segmenter, segment
from scene_folder import write_scene_folder

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest_plugins = ["hub_fixtures"]
SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "deploy" / "onnx_numpy.py"
PICTURE = Image.fromarray(draw_scene(1)[0][:90, :110])


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def model():
    """Random weights with as many classes as the scenes, each of which wins somewhere."""
    torch.manual_seed(3)
    config = SegformerConfig(
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 3, 4],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=20,
        id2label=dict(enumerate(CLASS_NAMES)),
    )
    model = SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        scores = model(PROCESSOR(PICTURE, return_tensors="pt").pixel_values).logits
        model.decode_head.classifier.weight /= scores.std((0, 2, 3))[:, None, None, None]
        model.decode_head.classifier.bias.copy_(
            (model.decode_head.classifier.bias - scores.mean((0, 2, 3))) / scores.std((0, 2, 3))
        )
    return model


@pytest.fixture(scope="module")
def source(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(source):
    """A folder that the model was exported to."""
    folder = source.with_name("mine-onnx")
    assert main(["export", str(source), str(folder)]) == 0
    return folder


def test_export_to_a_folder(exported, model):
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    onnx = {"onnx/model.onnx", "onnx/model.onnx.report.json"}
    assert names == onnx | {"config.json", "preprocessor_config.json"}
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["SegformerForSemanticSegmentation"]
    session = onnxruntime.InferenceSession(exported / "onnx" / "model.onnx")
    assert [value.name for value in session.get_inputs()] == ["pixel_values"]
    assert [value.name for value in session.get_outputs()] == ["logits"]
    pixel_values = PROCESSOR(PICTURE, return_tensors="pt").pixel_values
    (logits,) = session.run(None, {"pixel_values": pixel_values.numpy()})
    np.testing.assert_allclose(logits, model(pixel_values).logits.detach(), atol=1e-4)


@pytest.mark.long
def test_export_into_the_models_own_folder(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "own")
    before = digests(folder)
    assert main(["export", str(folder), f"{folder}/", "--half"]) == 0
    assert digests(folder) == before
    names = {path.name for path in (folder / "onnx").iterdir()}
    assert names == {"model_fp16.onnx", "model_fp16.onnx.report.json"}
    assert load_segmenter(folder / "onnx" / "model_fp16.onnx")[0].config.class_names == tuple(CLASS_NAMES)


def test_names_of_files(source, tmp_path):
    """By the dtypes fp32, fp16 and q8 of Transformers.js."""
    place = OnnxFolder(tmp_path / "new", source)
    files = place.file(), place.file(half=True), place.file(int8=True)
    names = [file.relative_to(tmp_path / "new" / "onnx").as_posix() for file in files]
    assert names == ["model.onnx", "model_fp16.onnx", "model_quantized.onnx"]
    assert not (tmp_path / "new").exists()


def test_folders_that_cannot_be_exported_to(source, exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "copy")
    before = digests(folder)
    for words, said in [
        ([], "model.onnx exists"),
        (["--output", "labels"], "output must be logits for the folder"),
        (["--normalize", "inside"], "normalize must be outside for the folder"),
        (["--size", "64", "64"], "size must be left out for the folder"),
        (["--format", "openvino"], "format must be onnx for the folder"),
        (["--format", "torch-export"], "format must be onnx for the folder"),
    ]:
        assert main(["export", str(source), str(folder), *words]) == 2
        assert said in capsys.readouterr().err
    assert digests(folder) == before
    for name, change in {
        "config.json": {"depths": [2, 1, 1, 1]},
        "preprocessor_config.json": {"do_resize": False},
    }.items():
        changed = shutil.copytree(exported, tmp_path / name)
        (changed / name).write_text(json.dumps(json.loads((changed / name).read_text()) | change))
        assert main(["export", str(source), str(changed), "--overwrite"]) == 2
        assert f"{name} must be as that of" in capsys.readouterr().err


def test_the_folder_by_onnx_runtime(exported, model):
    expected = segment(model, PROCESSOR, PICTURE)
    assert len(np.unique(expected)) > 3
    got = segment(*load_segmenter(exported, "onnx"), PICTURE)
    assert (got == expected).mean() > 0.9995
    assert np.array_equal(segment(exported / "onnx" / "model.onnx", None, PICTURE), got)


def test_the_folder_by_openvino(exported, model):
    pytest.importorskip("openvino", reason="openvino is not installed")
    got = segment(*load_segmenter(exported, "openvino"), PICTURE)
    assert (got == segment(model, PROCESSOR, PICTURE)).mean() > 0.9995


def test_evaluate_by_onnx_runtime(source, exported, tmp_path, capsys):
    data = write_scene_folder(tmp_path / "data", 2, 1)
    results = {}
    for runtime, folder in (("torch", source), ("onnx", exported)):
        words = ["--model", folder, "--runtime", runtime, "--dataset", "folder", "--data_root", data]
        words += ["--output_dir", tmp_path / runtime, "--num_workers", 0]
        assert main(["evaluate", *map(str, words)]) == 0
        results[runtime] = json.loads((tmp_path / runtime / "metrics.json").read_text())
    assert results["onnx"]["mean_iou"] == pytest.approx(results["torch"]["mean_iou"], abs=1e-3)
    words[words.index("onnx")] = "onyx"
    assert main(["evaluate", *map(str, words)]) == 2
    assert "runtime must be one of torch, onnx, openvino, got 'onyx'" in capsys.readouterr().err
    words[words.index("onyx")] = "onnx"
    forget_accelerate()
    assert main(["evaluate", *map(str, words), "--mixed_precision", "bf16"]) == 2
    forget_accelerate()
    assert "mixed_precision must be no for the exported file" in capsys.readouterr().err


# ---- push


def test_push_takes_onnx_files_along(hub, source, exported, tmp_path):
    folder = shutil.copytree(exported, shutil.copytree(source, tmp_path / "pushed"), dirs_exist_ok=True)
    write_onnx(folder / "onnx" / "model_theirs.onnx", Network(), metadata=None)
    (folder / "onnx" / "model_theirs.onnx_data").write_bytes(b"weights")
    push_folder(folder, "user/model", license="mit")
    assert hub.count("lfs-put") == 3  # the weights and these
    files = hub.files("user/model")
    assert {name for name in files if name.startswith("onnx/")} == {
        "onnx/model.onnx",
        "onnx/model_theirs.onnx",
        "onnx/model_theirs.onnx_data",
    }
    assert files["onnx/model.onnx"] == (folder / "onnx" / "model.onnx").read_bytes()
    got = segment(*load_segmenter("user/model", "onnx"), PICTURE)
    assert np.array_equal(got, segment(folder / "onnx" / "model.onnx", None, PICTURE))
    push_folder(source, "user/bare", license="mit")
    with pytest.raises(ValueError, match=r"user/bare has no onnx/model.onnx or model.onnx: `segformer export` writes"):
        load_segmenter("user/bare", "onnx")
    with pytest.raises(ValueError, match=r"user/nothing: it is no folder here, and the Hub shows no such model"):
        load_segmenter("user/nothing", "onnx")


@pytest.fixture(scope="module")
def push_refused(model, tmp_path_factory):
    """A folder whose ONNX files must not be pushed."""
    folder = tmp_path_factory.mktemp("refused") / "model"
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other classes", r"model.onnx has 5 classes \(LABEL_0, .*\), config.json beside it \d+ \("),
        ("other names", r"model.onnx has \d+ classes \(a0, a1, .*export the model anew"),
        ("cut", "model.onnx is no ONNX file, or cut off: it ends .* bytes early"),
        ("empty", "model.onnx is no ONNX file, or cut off: it holds no graph"),
        ("picture", "model.onnx is no ONNX file, or cut off"),
        ("pointer", "model.onnx is no ONNX file, or cut off"),
        ("metadata", "num_labels is missing from the metadata of .*model.onnx"),
    ],
)
def test_onnx_files_that_are_not_pushed(name, said, push_refused, hub):
    path = write_onnx(
        push_refused / "onnx" / "model.onnx",
        Network(),
        metadata=name != "metadata" or describe(Network(), num_labels=...),
    )
    if name == "other names":
        count = len(CLASS_NAMES)
        names = {str(index): f"a{index}" for index in range(count)}
        write_onnx(path, Network(count), metadata=describe(Network(count), id2label=names))
    elif name == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "picture":
        PICTURE.save(path, format="png")
    elif name in ("empty", "pointer"):  # what git leaves of a large file that it has not fetched
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n" if name == "pointer" else "")
    with pytest.raises(ValueError, match=said):
        push_folder(push_refused, "user/model", license="mit", dataset="scenes")
    assert hub.requests == []


def test_files_of_other_weights_are_refused(hub, source, exported, model, tmp_path):
    """As after more training in the folder; who wrote the weights once more is not held up."""
    folder = shutil.copytree(exported, shutil.copytree(source, tmp_path / "trained"), dirs_exist_ok=True)
    model.save_pretrained(folder)
    load_segmenter(folder, "onnx")
    trained = SegformerForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        trained.decode_head.classifier.bias += 1
    trained.save_pretrained(folder)
    said = (
        r"model.onnx was exported from other weights than .*model.safetensors: export the model anew \(--overwrite\)"
    )
    for runtime in ("onnx", "openvino"):
        with pytest.raises(ValueError, match=said):
            load_segmenter(folder, runtime)
    with pytest.raises(ValueError, match=said):
        push_folder(folder, "user/model", license="mit")
    assert hub.requests == []
    load_segmenter(folder)
    load_segmenter(folder / "onnx" / "model.onnx")  # the file itself is sound
    (folder / "model.safetensors").unlink()
    load_segmenter(folder, "onnx")


def test_metadata_of_an_onnx_file_equals_onnx_own(exported):
    import onnx

    path = exported / "onnx" / "model.onnx"
    assert onnx_metadata(path) == {entry.key: entry.value for entry in onnx.load(path).metadata_props}


# ---- without this package


def run_script(path, picture, out):
    arguments = [str(SCRIPT), str(path), str(picture), str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return np.asarray(Image.open(out))


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        (5, {}),
        (1, {}),
        (300, {}),
        (5, {"normalize": "inside"}),
        (5, {"size": (40, 72)}),
        (5, {"output": "labels"}),
        (300, {"output": "labels", "normalize": "inside"}),
        (5, {"output": "labels+confidence", "size": (64, 64)}),
    ],
)
def test_numpy_alone(classes, options, tmp_path):
    path = write_onnx(tmp_path / "model.onnx", Network(classes), **options)
    turned = Image.Exif()
    turned[0x0112] = 6  # a picture that lies on its side
    PICTURE.save(tmp_path / "photo.png", exif=turned)
    labels = run_script(path, tmp_path / "photo.png", tmp_path / "labels.png")
    expected = segment(path, None, Image.open(tmp_path / "photo.png"))
    assert labels.shape == PICTURE.size == expected.shape and len(np.unique(labels)) > 1
    if options.get("output", "logits") == "logits":
        assert (labels == expected).mean() > 0.9995  # ties within rounding
    else:
        assert np.array_equal(labels, expected)


@pytest.mark.parametrize("edges", [(64, 256), (64, 70), (60, 67), (90, 256), (50, None)])
@pytest.mark.parametrize("turned", [False, True])
def test_numpy_alone_resizes_by_edges(edges, turned, tmp_path):
    """As the folders that `segformer train` writes have it."""
    from hf_segformer import SegformerImageProcessor

    size = {name: edge for name, edge in zip(("shortest_edge", "longest_edge"), edges, strict=True) if edge}
    metadata = describe(Network(), processor=SegformerImageProcessor(size=size))
    path = write_onnx(tmp_path / "model.onnx", Network(), metadata=metadata)
    picture = PICTURE.transpose(Image.Transpose.ROTATE_90) if turned else PICTURE
    picture.save(tmp_path / "photo.png")
    labels = run_script(path, tmp_path / "photo.png", tmp_path / "labels.png")
    expected = segment(path, None, picture)
    assert (labels == expected).mean() > 0.9995 and len(np.unique(labels)) > 1


def test_the_script_is_short_and_needs_three_packages(exported, tmp_path):
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 55
    tree = ast.parse(text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}
    path = exported / "onnx" / "model.onnx"
    PICTURE.save(tmp_path / "photo.png")
    subprocess.run([sys.executable, "-I", SCRIPT, path, "photo.png", "labels.png"], cwd=tmp_path, check=True)
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    assert (labels == segment(path, None, PICTURE)).mean() > 0.9995


def test_the_script_refuses_what_it_does_not_do(tmp_path):
    from hf_segformer import SegformerImageProcessor

    edges = {"size": {"shortest_edge": 64, "longest_edge": 256}}
    processors = [{**edges, "keep_ratio": True}, {"do_pad": True, "pad_size": {"height": 600, "width": 600}}]
    processors += [{"antialias": False}, {"size": {"max_height": 64, "max_width": 64}}]
    PICTURE.save(tmp_path / "photo.png")
    for index, options in enumerate([*processors, {"size_divisor": 32}, {"do_resize": False}]):
        metadata = describe(Network(), processor=SegformerImageProcessor(**options))
        path = write_onnx(tmp_path / f"{index}.onnx", Network(), metadata=metadata)
        with pytest.raises(SystemExit, match="programmed here are resizing, rescaling and normalising"):
            run_script(path, tmp_path / "photo.png", tmp_path / "labels.png")

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported files in the place of a model: each runtime against the network itself, and files that must be refused."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from exported_files import PROCESSOR, Network, describe, write_onnx, write_openvino, write_torch
from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor, upsample_argmax
from hf_segformer.data import draw_scene
from hf_segformer.inference import load_exported, load_segmenter, predict_label_map, segment
from hf_segformer.protocols import Protocol

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
PICTURE = Image.fromarray(draw_scene(1)[0][:90, :110])
NETWORK = Network()
PROTOCOLS = {
    "processor": Protocol.named("processor"),
    "aligned": Protocol.named("aligned-512", scale=(128, 64)),
    "slide": Protocol.named("slide", crop_size=48),
    "windows larger than the picture": Protocol.named("slide", crop_size=160),
    "sizes and mirrored": Protocol.named("aligned-512", scale=(128, 64), tta="nvlabs"),
    "windows of sizes and mirrored": Protocol.named("slide-1024", scale=(100, 80), crop_size=64, tta="mmseg"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module", params=["onnx", "torch", pytest.param("openvino", marks=needs_openvino)])
def runtime(request):
    return request.param


@pytest.fixture(scope="module")
def written(folder, runtime):
    """Function that writes a file for the runtime, once."""
    writers = {"onnx": (write_onnx, ".onnx"), "openvino": (write_openvino, ".xml"), "torch": (write_torch, ".pt2")}
    writer, suffix = writers[runtime]

    def write(output="logits", **options):
        path = folder / f"{runtime} {output} {options.get('size')}{suffix}"
        return path if path.exists() else writer(path, NETWORK, output, **options)

    return write


# ---- what comes out


@pytest.mark.parametrize("name", PROTOCOLS)
def test_logits_serve_every_protocol(name, written, runtime):
    protocol, model = PROTOCOLS[name], load_exported(written())
    labels, confidence = segment(NETWORK, PROCESSOR, PICTURE, protocol, return_confidence=True)
    got, certain = segment(model, None, PICTURE, protocol, return_confidence=True)
    assert got.dtype == labels.dtype and len(np.unique(labels)) > 3
    assert (got == labels).mean() > 0.9998  # ties within rounding
    np.testing.assert_allclose(certain, confidence, atol=1e-4)
    assert np.array_equal(predict_label_map(written(), None, PICTURE), segment(model, None, PICTURE))


def test_one_size_is_what_pictures_are_resized_to(written):
    model = load_exported(written(size=(40, 72)))
    assert model.image_processor.size == {"height": 40, "width": 72} != PROCESSOR.size
    expected = segment(NETWORK, SegformerImageProcessor(size={"height": 40, "width": 72}), PICTURE)
    assert (segment(model, None, PICTURE) == expected).mean() > 0.9998
    same = Protocol("stretched", "stretch", (40, 72), one_step=True)
    assert (segment(model, None, PICTURE, same) == expected).mean() > 0.9998
    for protocol in (Protocol.named("slide", crop_size=48), Protocol.named("aligned-512")):
        with pytest.raises(ValueError, match=r"takes pixel_values of the shape \(any, 3, 40, 72\), got \(1, 3, "):
            segment(model, None, PICTURE, protocol)


def test_label_maps_at_the_size_of_the_input_and_nearest_beyond(written):
    model = load_exported(written("labels+confidence"))
    pixel_values = PROCESSOR(PICTURE, return_tensors="pt").pixel_values
    expected, certain = upsample_argmax(NETWORK(pixel_values).logits, (64, 96), return_confidence=True)
    as_it_is = Protocol("stretched", "stretch", (64, 96))
    labels, confidence = segment(model, None, PICTURE.resize((96, 64), 2), as_it_is, return_confidence=True)
    assert labels.dtype == np.uint8 and (labels == expected[0].numpy()).mean() > 0.999
    np.testing.assert_allclose(confidence, certain[0].detach().numpy(), atol=1e-4)
    nearest = np.asarray(Image.fromarray(labels).resize(PICTURE.size, Image.Resampling.NEAREST))
    assert np.array_equal(segment(model, None, PICTURE), nearest)
    for name in ("slide", "sizes and mirrored"):
        with pytest.raises(ValueError, match=r"protocol must take whole pictures .* which gives label maps, got .*"):
            segment(model, None, PICTURE, PROTOCOLS[name])


def test_batches_and_pictures_of_several_sizes_together(written, tmp_path):
    """`predict` on pictures of two sizes, one of them smaller than the network takes."""
    from hf_segformer.cli import main

    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index, size in enumerate([(110, 90), (110, 90), (20, 31)]):
        PICTURE.crop((0, 0, *size)).save(photos / f"{index}.png")
    words = [photos, "--model", written(), "--output_dir", out, "--batch_size", 3, "--num_workers", 0]
    assert main(["predict", *map(str, words), "--protocol", "slide"]) == 0
    for index in range(3):
        labels = Image.open(out / "labels" / f"{index}.png")
        expected = segment(NETWORK, PROCESSOR, Image.open(photos / f"{index}.png"), Protocol.named("slide"))
        assert (np.asarray(labels) == expected).mean() > 0.9998
        assert labels.getpalette()[3:6] == [1, 7, 9]  # the file's colours


def test_pixels_that_the_file_normalises(folder):
    """Also those that are padded, which are then of the mean colour as nearly as 8 bits have it."""
    path = write_onnx(folder / "inside.onnx", NETWORK, normalize="inside")
    model = load_exported(path)
    for name, picture in {"processor": PICTURE, "slide": PICTURE, "sizes and mirrored": PICTURE}.items():
        expected = segment(NETWORK, PROCESSOR, picture, PROTOCOLS[name])
        assert (segment(model, None, picture, PROTOCOLS[name]) == expected).mean() > 0.9998
    small = PICTURE.crop((0, 0, 25, 40))
    expected = segment(NETWORK, PROCESSOR, small, PROTOCOLS["slide"])
    assert (segment(model, None, small, PROTOCOLS["slide"]) == expected).mean() > 0.99


@pytest.mark.parametrize(("num_labels", "dtype"), [(1, np.uint8), (2, np.uint8), (256, np.uint8), (300, np.int32)])
def test_numbers_of_classes(num_labels, dtype, folder):
    network = Network(num_labels)
    model = load_exported(write_onnx(folder / f"{num_labels}.onnx", network))
    assert model.config.class_names == network.config.class_names
    assert model.config.class_palette == network.config.class_palette
    expected = segment(network, PROCESSOR, PICTURE)
    labels = segment(model, None, PICTURE)
    assert labels.dtype == dtype and (labels == expected).mean() > 0.999 and labels.max() == expected.max() > 0
    if num_labels > 2:
        by_file = segment(write_onnx(folder / f"{num_labels} labels.onnx", network, "labels"), None, PICTURE)
        assert by_file.dtype == dtype and (by_file == expected).mean() > 0.5 and by_file.max() > num_labels - 20


def test_files_of_one_picture_take_several(folder):
    path = write_onnx(folder / "one.onnx", NETWORK)
    import onnx

    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path.write_bytes(model.SerializeToString())
    inputs = torch.randn(3, 3, 40, 40)
    np.testing.assert_allclose(load_exported(path)(inputs).logits, NETWORK(inputs).logits.detach(), atol=1e-4)


@needs_openvino
def test_openvino_reads_onnx_and_does_not_round_to_bfloat16(folder):
    path = write_onnx(folder / "both.onnx", NETWORK)
    inputs = torch.randn(1, 3, 64, 64)
    logits = load_exported(path, "openvino")(inputs).logits
    np.testing.assert_allclose(logits, NETWORK(inputs).logits.detach(), atol=1e-4)


# ---- where it comes from


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model folder with an ONNX file of another network of its classes, to tell them apart."""
    folder = tmp_path_factory.mktemp("models") / "model.v1"  # a suffix makes no file of a folder
    tiny = {"hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1] * 4, "depths": [1] * 4, "decoder_hidden_size": 8}
    from hf_segformer import SegformerConfig

    SegformerForSemanticSegmentation(SegformerConfig(**tiny, num_labels=5)).save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    write_onnx(folder / "onnx" / "model.onnx", NETWORK, metadata=None)
    return folder


def test_a_folder_by_each_runtime(model_folder):
    expected = segment(NETWORK, PROCESSOR, PICTURE)
    for runtime in (None, "torch"):
        model, processor = load_segmenter(model_folder, runtime)
        assert isinstance(model, SegformerForSemanticSegmentation) and processor.size == PROCESSOR.size
    assert not np.array_equal(segment(model_folder, None, PICTURE), expected)
    model, processor = load_segmenter(str(model_folder), "onnx")
    assert (segment(model, processor, PICTURE) == expected).mean() > 0.9998


def test_a_file_of_another_program_takes_what_its_folder_says(model_folder, tmp_path):
    model = load_exported(model_folder / "onnx" / "model.onnx")
    assert model.config.num_labels == 5 and model.image_processor.size == PROCESSOR.size
    alone = write_onnx(tmp_path / "onnx" / "alone.onnx", NETWORK, metadata=None)
    with pytest.raises(
        ValueError, match=r"alone.onnx was not written by `segformer export`.*no config.json beside it"
    ):
        load_exported(alone)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"model_type must be 'segformer' in .*config.json, got 'bert'"):
        load_exported(alone)


# ---- what is refused


def test_a_missing_package_says_what_to_install(folder, monkeypatch, capsys):
    from hf_segformer.cli import main

    path = write_onnx(folder / "missing.onnx", NETWORK)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["predict", str(folder), "--model", str(path), "--output_dir", str(folder / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError, match=r'onnxruntime, which is not installed: pip install "hf_segformer\[export\]"'):
        load_exported(path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match="needs openvino, which is not installed"):
        load_exported(path, "openvino")


@pytest.mark.parametrize(
    ("name", "runtime", "said"),
    [
        ("nothing.onnx", None, "there is no file .*nothing.onnx"),
        ("nothing.PT2", None, "there is no file .*nothing.PT2"),
        ("model.safetensors", None, r"model.safetensors is no exported file: their names end in .pt2, .onnx, .xml;"),
        ("model.pth", "onnx", "model.pth is no exported file"),
        ("good.onnx", "torch", "runtime must be onnx or openvino for .*good.onnx, got 'torch'"),
        ("zip.pt2", "onnx", "runtime must be torch for .*zip.pt2, got 'onnx'"),
        ("notes.xml", "onnx", "runtime must be openvino for .*notes.xml, got 'onnx'"),
        ("good.onnx", "tensorrt", "runtime must be one of torch, onnx, openvino, got 'tensorrt'"),
        ("good.onnx", 3, "runtime must be one of torch, onnx, openvino, got 3"),
        ("empty.onnx", None, "empty.onnx cannot be read by ONNX Runtime: "),
        ("cut.onnx", None, "cut.onnx cannot be read by ONNX Runtime: "),
        ("picture.onnx", None, "picture.onnx cannot be read by ONNX Runtime: "),
        ("picture.pt2", None, "picture.pt2 is no file of torch.export, or damaged: "),
        ("zip.pt2", None, "zip.pt2 was not written by `segformer export`"),
        ("damaged.pt2", None, "damaged.pt2 is .*damaged"),
        ("other input.onnx", None, "must have an input 'pixel_values', got images"),
        ("other output.onnx", None, "must have the output 'labels', got logits"),
        ("no classes.onnx", None, "num_labels is missing from the metadata of .*no classes.onnx"),
        ("other classes.onnx", None, "gives logits of 5 classes, but num_labels=3 is said of it"),
        ("pixels.onnx", None, "takes uint8 pixel_values, but normalize=outside is said of it"),
        ("floats.onnx", None, "takes float32 pixel_values, but normalize=inside is said of it"),
        ("too few names.onnx", None, "id2label must name the classes 0 to 4 of num_labels=5, got"),
        ("later.onnx", None, "format_version must be 1 in the metadata of .*later.onnx, got 2"),
        ("no json.onnx", None, "hf_segformer must be JSON in the metadata of .*no json.onnx"),
        ("list.onnx", None, "format_version must be 1 in the metadata of .*list.onnx, got None"),
        ("bad processor.onnx", None, "the metadata of .*bad processor.onnx is not as it must be: .*size"),
        ("bad output.onnx", None, "output must be one of logits, labels, labels.confidence, got 'masks'"),
        ("no/such", "onnx", "no/such: "),
    ],
)
def test_refusals(name, runtime, said, refused, monkeypatch):
    monkeypatch.chdir(refused)
    with pytest.raises(ValueError, match=said) as error:
        load_segmenter(name, runtime)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    good = write_onnx(folder / "good.onnx", NETWORK).read_bytes()
    picture = folder / "picture.onnx"
    PICTURE.save(picture, format="png")
    contents = {"empty.onnx": b"", "cut.onnx": good[: len(good) // 2], "picture.pt2": picture.read_bytes()}
    contents |= {"model.safetensors": b"x", "model.pth": b"x", "notes.xml": b"<notes/>"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    torch.save({"weight": torch.zeros(3)}, folder / "zip.pt2")
    damaged = bytearray(write_torch(folder / "damaged.pt2", NETWORK).read_bytes())
    place = damaged.index(NETWORK.convolution.weight.detach().numpy().tobytes()[:64])
    damaged[place : place + 8] = b"\xff" * 8
    (folder / "damaged.pt2").write_bytes(damaged)
    write_onnx(folder / "other input.onnx", NETWORK, input="images")
    changed = {
        "other output": {"output": "labels"},
        "no classes": {"num_labels": ...},
        "other classes": {"num_labels": 3, "id2label": {"0": "a", "1": "b", "2": "c"}},
        "too few names": {"id2label": {"0": "a", "1": "b"}},
        "later": {"format_version": 2},
        "bad processor": {"preprocessor": {"size": "large"}},
        "bad output": {"output": "masks"},
    }
    for name, changes in changed.items():
        write_onnx(folder / f"{name}.onnx", NETWORK, metadata=describe(NETWORK, **changes))
    write_onnx(folder / "pixels.onnx", NETWORK, normalize="inside", metadata=describe(NETWORK))
    write_onnx(folder / "floats.onnx", NETWORK, metadata=describe(NETWORK, normalize="inside"))
    write_onnx(folder / "no json.onnx", NETWORK, metadata="{")
    write_onnx(folder / "list.onnx", NETWORK, metadata="[1]")
    return folder


@needs_openvino
@pytest.mark.parametrize(
    ("name", "said"),
    [("notes.xml", "notes.bin is missing"), ("rubbish.xml", "rubbish.xml cannot be read by OpenVINO: ")],
)
def test_refusals_of_openvino(name, said, refused):
    for suffix in (".xml", ".bin"):
        (refused / "rubbish").with_suffix(suffix).write_bytes(b"<annotations/>")
    with pytest.raises(ValueError, match=said):
        load_exported(refused / name)


def test_a_failure_of_the_runtime_names_the_file_and_the_input(folder):
    """A graph that takes only some sizes without saying so, as some exporters write them."""
    import onnx
    from onnx import helper, numpy_helper

    path = write_onnx(folder / "squares.onnx", NETWORK)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 5, 16, 16]), "shape"))
    model.graph.node[0].output[0] = "map"
    model.graph.node.append(helper.make_node("Reshape", ["map", "shape"], ["logits"]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        ValueError, match=r"squares.onnx failed in ONNX Runtime on an input of shape \(1, 3, 64, 96\): "
    ):
        segment(path, None, PICTURE)


def test_no_confidence_from_labels_alone_and_no_other_device(folder, capsys):
    from hf_segformer.cli import main

    path = write_onnx(folder / "labels.onnx", NETWORK, "labels")
    with pytest.raises(ValueError, match=r"labels.onnx gives no confidence: export with output labels\+confidence"):
        segment(path, None, PICTURE, return_confidence=True)
    PICTURE.save(folder / "a.png")
    words = [folder / "a.png", "--model", path, "--output_dir", folder / "predicted", "--device", "meta"]
    assert main(["predict", *map(str, words)]) == 2
    assert "device must be cpu for the exported file" in capsys.readouterr().err
    assert not (folder / "predicted").exists()
    assert json.loads(json.dumps(describe(NETWORK)))["num_labels"] == 5

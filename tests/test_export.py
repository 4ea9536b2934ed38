# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported files: what they compute, what they hold, and what is refused before anything is written."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor, cli

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from hf_segformer.export import ExportDisagrees, checks, export_model, folding  # noqa: E402

SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
SIZES = [(2, 3, 29, 61), (1, 3, 64, 96), (1, 3, 101, 90)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Latencies of small pictures; drawn pictures are few."""
    monkeypatch.setattr(checks, "SPEED_SIZE", (64, 64))
    monkeypatch.setattr(checks, "ROUNDS", 1)
    monkeypatch.setattr("hf_segformer.export.data._PICTURES", 2)


@pytest.fixture
def network(tiny_config, randomize):
    def make(**fields):
        return randomize(SegformerForSemanticSegmentation(tiny_config(**fields))).eval()

    return make


def processor(**options):
    return SegformerImageProcessor(size={"height": 64, "width": 96}, **options)


def export(model, path, **options):
    return export_model(model, path, image_processor=processor(), **options)


def run(path, pixel_values):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"pixel_values": pixel_values})
    return {output.name: value for output, value in zip(session.get_outputs(), outputs, strict=True)}


def metadata_of(path):
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return json.loads(properties["hf_segformer"])


def textbook(model, pixel_values, size=None):
    with torch.no_grad():
        logits = model(torch.from_numpy(pixel_values)).logits
    return logits if size is None else F.interpolate(logits, size, mode="bilinear", align_corners=False)


def near_ties(scores):
    if scores.shape[1] == 1:
        return scores[:, 0].abs() < 1e-4
    values = scores.topk(2, dim=1).values
    return values[:, 0] - values[:, 1] < 1e-4


@pytest.mark.parametrize("fields", [{}, {"conv_decoder_hidden_size": 12}, {"num_labels": 1}, {"hidden_act": "silu"}])
def test_logits_at_any_size(fields, network, tmp_path):
    model = network(**fields)
    export(model, tmp_path / "model.onnx")
    for shape in SIZES:
        pixel_values = np.random.default_rng(1).standard_normal(shape, np.float32)
        expected = textbook(model, pixel_values)
        found = run(tmp_path / "model.onnx", pixel_values)["logits"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(("num_labels", "dtype"), [(5, np.uint8), (1, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_label_maps_at_any_size(num_labels, dtype, network, tmp_path):
    model = network(num_labels=num_labels)
    export(model, tmp_path / "model.onnx", output="labels+confidence")
    for shape in SIZES:
        pixel_values = np.random.default_rng(2).standard_normal(shape, np.float32)
        scores = textbook(model, pixel_values, shape[2:])
        outputs = run(tmp_path / "model.onnx", pixel_values)
        labels = (scores[:, 0] > 0).long() if num_labels == 1 else scores.argmax(dim=1)
        share = scores.sigmoid()[:, 0] if num_labels == 1 else scores.softmax(dim=1).amax(dim=1)
        share = torch.maximum(share, 1 - share) if num_labels == 1 else share
        assert outputs["labels"].dtype == dtype
        assert outputs["labels"].shape == (shape[0], *shape[2:])
        assert np.all((outputs["labels"] == labels.numpy()) | near_ties(scores).numpy())
        np.testing.assert_allclose(outputs["confidence"], share, atol=1e-5)


def test_pixels_normalised_inside(network, tmp_path):
    model = network()
    options = {"image_mean": [0.3, 0.4, 0.5], "image_std": [0.2, 0.3, 0.25]}
    export_model(model, tmp_path / "model.onnx", normalize="inside", image_processor=processor(**options))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), np.uint8)
    values = processor(**options)(list(pixels), return_tensors="np", input_data_format="channels_first")
    expected = textbook(model, values["pixel_values"])
    np.testing.assert_allclose(run(tmp_path / "model.onnx", pixels)["logits"], expected, atol=2e-5)


@pytest.mark.parametrize("opset", [17, 18, 19, 23])
def test_versions_of_the_operators(opset, network, tmp_path):
    model = network()
    export(model, tmp_path / "model.onnx", opset=opset, output="labels+confidence")
    (found,) = (entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import if entry.domain == "")
    assert found == opset


def test_a_file_for_one_size(network, tmp_path):
    model = network()
    export(model, tmp_path / "model.onnx", size=(61, 70))
    shape = [entry.dim_value or entry.dim_param for entry in input_shape(tmp_path / "model.onnx")]
    assert shape == ["batch", 3, 61, 70]
    assert metadata_of(tmp_path / "model.onnx")["size"] == [61, 70]


def input_shape(path):
    return onnx.load(path).graph.input[0].type.tensor_type.shape.dim


def test_one_file_that_says_what_it_is(network, tmp_path):
    model = network(num_labels=2, id2label={0: "wall", 1: "door"}, palette=[[1, 2, 3], [4, 5, 6]])
    report = export(model, tmp_path / "out" / "model.onnx")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", "model.onnx.report.json"]
    shutil.move(tmp_path / "out" / "model.onnx", tmp_path / "alone.onnx")
    assert run(tmp_path / "alone.onnx", np.zeros((1, 3, 32, 32), np.float32))["logits"].shape == (1, 2, 8, 8)
    metadata = metadata_of(tmp_path / "alone.onnx")
    assert metadata["id2label"] == {"0": "wall", "1": "door"}
    assert metadata["palette"] == [[1, 2, 3], [4, 5, 6]]
    assert metadata["preprocessor"]["size"] == {"height": 64, "width": 96}
    assert metadata["input"] == {"name": "pixel_values", "dtype": "float32", "layout": "NCHW"}
    assert [dim.dim_param for dim in input_shape(tmp_path / "alone.onnx")] == ["batch", "", "height", "width"]
    written = json.loads((tmp_path / "out" / "model.onnx.report.json").read_text())
    assert written["bytes"] == report.bytes == (tmp_path / "alone.onnx").stat().st_size
    assert len(written["sizes"]) == 10 and [1, 29, 29] in [size["shape"] for size in written["sizes"]]
    assert any(side % 32 and side % 2 for size in written["sizes"] for side in size["shape"][1:])


@pytest.mark.parametrize("conv_width", [None, 12])
def test_head_and_norms_are_folded(conv_width, network, tmp_path):
    model = network(conv_decoder_hidden_size=conv_width)
    export(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in kinds
    assert not [node for node in graph.node if node.op_type == "Concat" and "sizes" not in node.name]
    held = sum(np.prod(tensor.dims) for tensor in graph.initializer)
    assert held < sum(parameter.numel() for parameter in model.parameters())


def test_half_the_size(network, tmp_path):
    model = network()
    full = export(model, tmp_path / "full.onnx")
    half = export(model, tmp_path / "half.onnx", half=True)
    sizes = [
        sum(len(tensor.raw_data) for tensor in onnx.load(tmp_path / f"{name}.onnx").graph.initializer)
        for name in ("full", "half")
    ]
    assert sizes[1] < 0.55 * sizes[0]
    assert half.worst_difference > 10 * full.worst_difference


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"output": "labels", "normalize": "inside"}, {"half": True}])
@pytest.mark.parametrize("fields", [{}, {"conv_decoder_hidden_size": 12, "num_labels": 1}])
def test_torch_export(fields, options, network, tmp_path):
    model = network(**fields)
    report = export(model, tmp_path / "model.pt2", format="torch-export", **options)
    files = {"hf_segformer": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    assert json.loads(files["hf_segformer"])["num_labels"] == model.config.num_labels
    dtype = torch.uint8 if "normalize" in options else torch.float32
    (found,) = program(torch.ones(3, 3, 77, 130, dtype=dtype))
    assert found.shape == ((3, 77, 130) if "output" in options else (3, model.config.num_labels, 20, 33))
    assert report.agreement.others == 0


@pytest.mark.parametrize("options", [{}, {"output": "labels+confidence"}, {"normalize": "inside", "half": True}])
def test_openvino(options, network, tmp_path):
    openvino = pytest.importorskip("openvino")
    model = network()
    export(model, tmp_path / "model.xml", format="openvino", **options)
    names = ["model.bin", "model.xml", "model.xml.report.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    read = openvino.Core().read_model(tmp_path / "model.xml")
    assert json.loads(read.get_rt_info("hf_segformer").astype(str))["num_labels"] == 5


def test_openvino_at_any_order_of_sizes(network, tmp_path):
    """A picture with a single reduced token first: joined attention would be wrong for all that follow."""
    openvino = pytest.importorskip("openvino")
    model = network()
    export(model, tmp_path / "model.xml", format="openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", options)
    for shape in [(1, 3, 29, 29), (1, 3, 160, 160), (2, 3, 33, 47), (1, 3, 96, 160)]:
        pixel_values = np.random.default_rng(3).standard_normal(shape, np.float32)
        expected = textbook(model, pixel_values)
        atol = 1e-5 * expected.abs().max().item()
        np.testing.assert_allclose(compiled([pixel_values])[0], expected, rtol=0, atol=atol)


REFUSED = {
    "format": ({"format": "tflite"}, r"format must be one of onnx, openvino, torch-export.*\[export\].*'tflite'"),
    "output": ({"output": "masks"}, "output must be one of logits, labels"),
    "normalize": ({"normalize": "both"}, "normalize must be one of outside, inside"),
    "opset low": ({"opset": 16}, "opset must be 17 to 23, got 16"),
    "opset high": ({"opset": 99}, "opset must be 17 to 23, got 99"),
    "opset elsewhere": ({"opset": 18, "format": "torch-export"}, "opset must be left out"),
    "too small": ({"size": (28, 64)}, r"size must be .* at least 29 pixels, got \(28, 64\)"),
    "openvino size": ({"size": (64, 64), "format": "openvino"}, "size must be left out with format openvino"),
    "three sides": ({"size": (64, 64, 3)}, "size must be a height and a width"),
    "suffix": ({"path": "model.pb"}, r"path must end in \.onnx"),
    "suffix of another": ({"format": "openvino", "path": "model.onnx"}, r"path must end in \.xml"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(case, network, tmp_path, monkeypatch):
    options, message = REFUSED[case]
    options = dict(options)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    suffix = SUFFIX.get(options.get("format", "onnx"), ".onnx")
    path = tmp_path / "new" / options.pop("path", f"model{suffix}")
    with pytest.raises(ValueError, match=message):
        export(network(), path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"num_labels": 65537}, {"output": "labels"}, "at most 65536 classes.*65537"),
        ({"problem_type": "multi_label_classification"}, {"output": "labels"}, "output must be logits.*overlap"),
        ({"hidden_act": "gelu_new"}, {}, "hidden_act gelu, relu, silu, swish, got 'gelu_new'"),
    ],
)
def test_refused_models(fields, options, message, tiny_config, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(SegformerForSemanticSegmentation(tiny_config(**fields)), tmp_path / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_changed_models_are_refused(network, tmp_path):
    model = network()
    model.decode_head.classifier = torch.nn.Conv2d(20, 5, 1, bias=False)
    with pytest.raises(ValueError, match=r"decode_head\.classifier\.bias is missing"):
        export(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="got a Linear of torch"):
        folding.Weights(torch.nn.Linear(2, 2))


def test_multi_label_models_give_logits(network, tmp_path):
    export(network(problem_type="multi_label_classification"), tmp_path / "model.onnx")
    assert metadata_of(tmp_path / "model.onnx")["multi_label"] is True


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(missing, network, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else True)
    with pytest.raises(ValueError, match=rf'needs {missing}, not installed.*pip install "hf_segformer\[export\]"'):
        export(network(), tmp_path / "model.onnx")


@pytest.mark.parametrize("where", ["model.onnx", "model.onnx.report.json"])
def test_what_is_there_stays(where, network, tmp_path):
    (tmp_path / where).write_text("mine")
    with pytest.raises(ValueError, match=f"path must be free: .*{where} exists; overwrite"):
        export(network(), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == [where]
    export(network(), tmp_path / "model.onnx", overwrite=True)
    assert (tmp_path / where).read_bytes() != b"mine"


def test_a_folder_is_never_replaced(network, tmp_path):
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ValueError, match=r"path must be free: .*model\.onnx exists$"):
        export(network(), tmp_path / "model.onnx", overwrite=True)


@pytest.mark.parametrize("output", ["logits", "labels", "labels+confidence"])
def test_a_file_that_disagrees_is_not_kept(output, network, tmp_path, monkeypatch):
    plain = folding.Weights.head

    def wrong(self):
        head = plain(self)
        head.classifier.bias = head.classifier.bias[::-1] + 1e-2
        return head

    monkeypatch.setattr(folding.Weights, "head", wrong)
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(ExportDisagrees, match="was not kept"):
        export(network(), tmp_path / "model.onnx", output=output, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_values_that_are_not_finite_are_not_kept(network, tmp_path):
    model = network()
    with torch.no_grad():
        model.decode_head.classifier.bias[0] = torch.nan
    with pytest.raises(ExportDisagrees):
        export(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [[], ["--output", "labels", "--normalize", "inside", "--size", "64", "96"]])
def test_the_command(words, network, tmp_path, capsys):
    network().train().save_pretrained(tmp_path / "model")
    processor().save_pretrained(tmp_path / "model")
    command = ["export", str(tmp_path / "model"), str(tmp_path / "model.onnx"), *words]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "100.0000 % equal" in printed and "latency" in printed
    assert cli.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2", ".tflite", ".ONNX"])
def test_the_command_goes_by_the_suffix(suffix, tmp_path, monkeypatch, capsys):
    formats = []
    monkeypatch.setattr(
        "hf_segformer.commands.export.export_model", lambda _, path, format, **__: formats.append(format)
    )
    known = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch-export"}
    command = ["export", "model", str(tmp_path / f"model{suffix}")]
    assert cli.main(command) == (0 if suffix in known else 2)
    assert formats == [name for end, name in known.items() if end == suffix]
    if suffix not in known:
        assert "path must end in .onnx, .xml, .pt2, got" in capsys.readouterr().err
    assert cli.main([*command, "--format", "openvino"]) == 0 and formats[-1] == "openvino"


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_miou_before_and_after(output, network, tmp_path):
    pytest.importorskip("datasets")
    from hf_segformer.data.scenes import load_scenes

    data = load_scenes(num_train=1, num_validation=3, size=64)
    report = export(network(num_labels=data.num_classes), tmp_path / "model.onnx", output=output, data=data)
    assert 0 < report.mean_iou["before"] < 1
    assert report.mean_iou["after"] == pytest.approx(report.mean_iou["before"], abs=1e-6)
    assert (report.pictures, report.agreement.pictures) == ("validation of scenes", 2)
    with pytest.raises(ValueError, match="num_labels=5 but data set 'scenes' has 11"):
        export(network(), tmp_path / "other.onnx", data=data)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.long
@pytest.mark.parametrize("output", ["logits", "labels"])
def test_miou_by_the_command(output, network, tmp_path):
    network(num_labels=11).save_pretrained(tmp_path / "model")
    processor().save_pretrained(tmp_path / "model")
    command = ["export", str(tmp_path / "model"), str(tmp_path / "model.onnx"), "--dataset", "scenes"]
    assert cli.main([*command, "--output", output, "--check", "none"]) == 0
    report = json.loads((tmp_path / "model.onnx.report.json").read_text())
    assert 0 < report["mean_iou"]["before"] < 1
    assert report["mean_iou"]["after"] == pytest.approx(report["mean_iou"]["before"], abs=1e-6)
    assert report["pictures"] == "validation of scenes"


@pytest.mark.long
def test_benchmark_of_exports(network, tmp_path, capsys):
    network().save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--size", "64", "--exports", "--pairs", "1"]
    assert cli.main(["benchmark", *words, "--competitors", "onnxruntime"]) == 0
    table = capsys.readouterr().out.partition("Exported files")[2]
    for file in ("transformers, logits", "ours, logits", "ours, labels", "ours, labels+confidence"):
        assert f"| ONNX Runtime | {file} |" in table
    assert "| OpenVINO | not installed |" in table

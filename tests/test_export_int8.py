# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported files in int8: what is quantised, what is not and why, and what calibration pictures must be."""

import json
import re
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from PIL import Image

from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.cli import main
from hf_segformer.data.scenes import CLASS_NAMES, draw_scene
from hf_segformer.export import ExportDisagrees, export_model
from hf_segformer.export import onnx as onnx_files
from hf_segformer.export.calibration import MOST_PICTURES, calibration_inputs
from hf_segformer.export.folding import Weights
from hf_segformer.export.int8 import layer_errors, quantize_onnx, sensitive_layers
from hf_segformer.export.int8_graph import LAYERS, MixedGraph
from hf_segformer.export.metadata import KEY, describe
from hf_segformer.export.settings import Settings

FIELDS = {
    **{"num_encoder_blocks": 2, "depths": [1, 2], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "strides": [4, 2]},
    **{"patch_sizes": [7, 3], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 24},
}
INT8_OPERATORS = {"QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "QGemm", "MatMulInteger", "ConvInteger"}


def network(**fields):
    torch.manual_seed(0)
    names = dict(enumerate(CLASS_NAMES))
    model = SegformerForSemanticSegmentation(SegformerConfig(**{**FIELDS, "id2label": names, **fields})).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim > 1:  # as if trained: every layer counts
                tensor.normal_(std=0.8 / tensor[0].numel() ** 0.5)
    return model


def float_file(path, model, **settings):
    settings = Settings(**settings)
    metadata = describe(model.config, SegformerImageProcessor(), settings)
    onnx_files.save(onnx_files.build(Weights(model), metadata, settings), path)
    return path


def pictures(count=8, size=64):
    """Network inputs of drawn scenes."""
    processor = SegformerImageProcessor(do_resize=False)
    return [processor(draw_scene(seed, size)[0], return_tensors="np")["pixel_values"][0] for seed in range(count)]


def run(file, values):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: values})


def constants(file):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}


def computed(file, folder):
    """Operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A float file, its int8 file and the report."""
    folder = tmp_path_factory.mktemp("int8")
    model = network()
    float_file(folder / "float.onnx", model)
    return folder, quantize_onnx(folder / "float.onnx", folder / "int8.onnx", pictures())


@pytest.fixture(scope="module")
def graph(quantised):
    folder, _ = quantised
    return MixedGraph(folder / "float.onnx", [values[None] for values in pictures()])


def test_the_runtime_computes_in_int8_what_the_report_says(quantised, tmp_path):
    folder, report = quantised
    found = computed(folder / "int8.onnx", tmp_path)
    plain = [kind for kind in found if kind in {*LAYERS, "FusedConv", "FusedMatMul", "FusedGemm"}]
    assert len(plain) == len(report.float_layers) > 0
    assert sum(kind in INT8_OPERATORS for kind in found) == report.layers - len(report.float_layers)
    assert 0.8 <= report.multiply_adds < 1
    assert report.multiply_adds + sum(layer.multiply_adds for layer in report.float_layers) == pytest.approx(1)
    assert report.bytes == (folder / "int8.onnx").stat().st_size
    text = str(report)
    for layer in report.float_layers:
        assert f"{layer.name}: {100 * layer.error:.0f} % of the error" in text


def test_labels_stay_and_the_report_measures_them(quantised):
    folder, report = quantised
    assert report.calibration_pictures == 6
    assert report.measured_pictures == 2
    equal, errors = [], []
    for values in pictures()[1::4]:
        (plain,), (found,) = (run(folder / f"{kind}.onnx", values[None]) for kind in ("float", "int8"))
        equal.append((plain.argmax(1) == found.argmax(1)).mean())
        errors.append(((found - plain) ** 2).sum() / ((plain - plain.mean((2, 3), keepdims=True)) ** 2).sum())
    assert report.agreement == pytest.approx(np.mean(equal)) and 0.95 < report.agreement < 1
    assert report.error == pytest.approx(np.mean(errors), rel=1e-3)
    assert 0 < report.error < report.error_of_all < 0.01


def test_weights_are_int8_by_output_channel(quantised):
    folder, report = quantised
    plain, stored = constants(folder / "float.onnx"), constants(folder / "int8.onnx")
    kept = {f"{layer.name}.weight" for layer in report.float_layers}
    weights = {name for name, values in plain.items() if name.endswith(".weight") and values.ndim > 1}
    assert kept < weights
    for name in kept:
        assert np.array_equal(stored[name], plain[name])
    for name in weights - kept:
        assert name not in stored
        values, scale = stored[f"{name}_quantized"], stored[f"{name}_scale"]
        assert values.dtype == np.int8 and not stored[f"{name}_zero_point"].any()
        axis = 0 if plain[name].ndim == 4 else 1
        assert scale.shape == (plain[name].shape[axis],)
        scale = scale.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
        assert 2 * 255 * np.abs(values.astype(int)).max() < 1 << 15, "two products exceed 16 bits"
        assert (np.abs(values * scale - plain[name]) <= 0.5001 * scale).all(), name


def test_equals_the_quantisers_own_file(graph, quantised, tmp_path):
    """Of two graphs: all layers in int8 are what `quantize_static` writes, none are the float file."""
    folder, _ = quantised

    class Reader(CalibrationDataReader):
        left = [{"pixel_values": values[None]} for values in pictures()]

        def get_next(self):
            return self.left.pop() if self.left else None

    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    kinds |= {"per_channel": True, "reduce_range": True}
    options = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
    theirs = tmp_path / "theirs.onnx"
    quantize_static(
        folder / "float.onnx", theirs, Reader(), op_types_to_quantize=list(LAYERS), extra_options=options, **kinds
    )
    values = pictures()[3][None]
    for layers, file in ((graph.layers, theirs), ((), folder / "float.onnx")):
        own = tmp_path / "own.onnx"
        own.write_bytes(graph.model(layers).SerializeToString())
        assert np.array_equal(run(own, values)[0], run(file, values)[0])


def test_metadata_names_and_sizes_stay(quantised):
    folder, _ = quantised
    before, after = (onnx.load(folder / f"{kind}.onnx") for kind in ("float", "int8"))
    assert {entry.key: entry.value for entry in after.metadata_props}[KEY] == before.metadata_props[0].value
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    values = np.random.default_rng(0).standard_normal((2, 3, 45, 83), np.float32)
    assert run(folder / "int8.onnx", values)[0].shape == run(folder / "float.onnx", values)[0].shape


def test_a_hostile_layer_is_found(tmp_path):
    """One channel is scaled up before a layer and down in it: nothing changes but what rounding costs."""
    model = network()
    block = model.segformer.encoder.block[1][0]
    with torch.no_grad():
        for tensor in (block.layer_norm_2.weight, block.layer_norm_2.bias):
            tensor[3] *= 100
        block.mlp.dense1.weight[:, 3] /= 100
    file = float_file(tmp_path / "float.onnx", model)
    report = quantize_onnx(file, tmp_path / "int8.onnx", pictures())
    worst = report.float_layers[0]
    assert worst.name == "encoder.block.1.0.mlp.dense1" and worst.error > 0.5
    assert report.error < 0.3 * report.error_of_all


@pytest.mark.parametrize("output", ["labels", "labels+confidence"])
def test_outputs_after_the_logits(quantised, tmp_path, output):
    """Whatever is made of the logits, the same layers stay in float, and the labels are those of the logits."""
    folder, expected = quantised
    inside = output != "labels"
    model = network()
    file = float_file(tmp_path / "float.onnx", model, output=output, normalize="inside" if inside else "outside")
    inputs = pictures()
    if inside:
        inputs = [np.ascontiguousarray(draw_scene(seed, 64)[0].transpose(2, 0, 1)) for seed in range(8)]
    report = quantize_onnx(file, tmp_path / "int8.onnx", inputs)
    assert [layer.name for layer in report.float_layers] == [layer.name for layer in expected.float_layers]
    labels = run(tmp_path / "int8.onnx", inputs[1][None])[0]
    (logits,) = run(folder / "int8.onnx", pictures()[1][None])
    scores = torch.nn.functional.interpolate(torch.from_numpy(logits), size=(64, 64), mode="bilinear")
    assert labels.dtype == np.uint8
    assert (labels == scores.argmax(1).numpy()).mean() > 0.999


def test_one_logit_and_everything_in_int8(tmp_path):
    file = float_file(tmp_path / "float.onnx", network(num_labels=1, id2label={0: "road"}))
    report = quantize_onnx(file, tmp_path / "int8.onnx", pictures(), min_int8=1.0)
    assert report.agreement > 0.9 and report.multiply_adds == 1 and not report.float_layers
    assert report.error == report.error_of_all
    assert not set(computed(tmp_path / "int8.onnx", tmp_path)) & {*LAYERS, "FusedConv", "FusedMatMul", "FusedGemm"}


def test_multiply_adds_of_a_graph_by_hand(tmp_path):
    """Groups, strides, batches of matrices and a transposed Gemm; a file of someone else, without names in dots."""
    generator = np.random.default_rng(0)
    shapes = {"kernel": (6, 2, 3, 3), "matrix": (10, 7), "gemm": (5, 7)}
    constants = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    constants.append(numpy_helper.from_array(np.array([-1, 7], np.int64), "flat"))
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["a"], "conv", group=2, strides=[2, 1], pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["a", "matrix"], ["b"], "matmul"),  # (2, 6, 4, 10) to (2, 6, 4, 7)
        helper.make_node("Transpose", ["b"], ["c"], "turn", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["b", "c"], ["d"], "square"),  # (2, 6, 4, 4)
        helper.make_node("Reshape", ["b", "flat"], ["e"], "reshape"),
        helper.make_node("Gemm", ["e", "gemm"], ["y"], "gemm_node", transB=1),  # (48, 7) to (48, 5)
        helper.make_node("ReduceSum", ["d"], ["z"], "sum"),
    ]
    sides = {"x": [2, 4, 8, 10], "y": [48, 5], "z": [1, 1, 1, 1]}
    infos = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in sides.items()}
    parts = helper.make_graph(nodes, "by_hand", [infos["x"]], [infos["y"], infos["z"]], constants)
    onnx.save(helper.make_model(parts, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "a.onnx")
    values = generator.standard_normal((2, 4, 8, 10)).astype(np.float32)
    graph = MixedGraph(tmp_path / "a.onnx", [values])
    conv, matmul, square, gemm = 2 * 6 * 4 * 10 * (2 * 9), 2 * 6 * 4 * 7 * 10, 2 * 6 * 4 * 4 * 7, 48 * 5 * 7
    assert graph.multiply_adds(values) == {"conv": conv, "matmul": matmul, "square": square, "gemm_node": gemm}


def test_layers_left_in_float():
    counts = {"first": 5, "large": 30, "last": 10, "small": 1, "others": 54}
    errors = {"first": 0.2, "large": 0.4, "last": 0.3, "small": 0.01, "others": 0.09}
    assert sensitive_layers(errors, counts, 0.8) == ["last", "first"]  # the large one would leave 70 %
    assert sensitive_layers(errors, counts, 0.5) == ["large", "last", "first"]
    assert sensitive_layers(errors, counts, 0.9) == ["last"]  # and nothing is left for the first
    assert sensitive_layers(errors, counts, 1.0) == []
    assert sensitive_layers(dict.fromkeys(counts, 0.0), counts, 0.8) == []


def test_layers_of_a_kind_are_measured_together():
    """Forty blocks cost no more than one, unless their kind is among the notable ones."""
    counts = {f"block.2.{index}.{part}": 1 + index for index in range(40) for part in ("key", "query")}
    counts |= {"first": 7, "head.0": 9}
    own = dict.fromkeys(counts, 1e-4) | {"block.2.7.query": 0.5, "first": 0.4}
    asked = []

    def measure(names):
        asked.append(list(names))
        return sum(own[name] for name in names), 1.0

    errors = layer_errors(measure, counts)
    assert len(asked) == 4 + 40  # the kinds, then every query
    assert errors["block.2.7.query"] == 0.5 and errors["first"] == 0.4
    assert sum(errors.values()) == pytest.approx(sum(own.values()))
    assert errors["block.2.3.key"] == pytest.approx(40e-4 * 4 / sum(range(1, 41)))


# ---------------------------------------------------------------------------------------------------- the command


def picture_folder(folder, count=8, size=64):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        Image.fromarray(draw_scene(seed, size)[0]).save(folder / f"{seed}.png")
    return folder


def labelled_folder(folder, names, count=8):
    for split in ("train", "validation"):
        for kind in ("images", "annotations"):
            (folder / split / kind).mkdir(parents=True)
        for seed in range(count):
            image, label = draw_scene(seed, 64)
            Image.fromarray(image).save(folder / split / "images" / f"{seed}.png")
            Image.fromarray(label.astype(np.uint8)).save(folder / split / "annotations" / f"{seed}.png")
    (folder / "classes.json").write_text(json.dumps({"names": list(names)}))
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    network().save_pretrained(folder)
    SegformerImageProcessor(size=64).save_pretrained(folder)
    return folder


def test_command(model_folder, tmp_path, capsys):
    out = tmp_path / "out" / "model.onnx"
    pictures_there = str(picture_folder(tmp_path / "pictures"))
    assert not main(["export", str(model_folder), str(out), "--int8", pictures_there, "--size", "64", "64"])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "model.onnx.report.json").read_text())
    assert sorted(file.name for file in out.parent.iterdir()) == ["model.onnx", "model.onnx.report.json"]
    assert report["bytes"] == report["int8"]["bytes"] == out.stat().st_size
    assert 0.8 <= report["int8"]["multiply_adds"] < 1 and report["int8"]["float_layers"]
    assert "left in float" in printed and report["int8"]["float_layers"][0]["name"] in printed
    assert 0.9 < report["agreement"]["equal"] < 1  # of the int8 file: the float file's labels are all equal
    assert sum(kind in INT8_OPERATORS for kind in computed(out, tmp_path)) > 20


def test_calibration_pictures_go_through_the_image_processor(model_folder, tmp_path):
    """A few of many, spread evenly, in the order of their names; the training split of a labelled data set."""
    model = network()
    processor = SegformerImageProcessor(size={"height": 40, "width": 56}, image_mean=[0.3] * 3, image_std=[0.1] * 3)
    folder = picture_folder(tmp_path / "pictures", count=MOST_PICTURES + 3, size=64)
    (folder / "notes.txt").write_text("no picture")
    found = calibration_inputs(folder, model, processor, Settings())
    assert len(found) == MOST_PICTURES
    paths = sorted(folder.glob("*.png"))
    for values, path in ((found[0], paths[0]), (found[-1], paths[-1])):
        resized = np.asarray(Image.open(path).resize((56, 40), Image.Resampling.BILINEAR), np.float32)
        expected = (resized.transpose(2, 0, 1) / 255 - 0.3) / 0.1
        assert values.shape == (3, 40, 56) and np.abs(values - expected).max() < 0.05
    raw = calibration_inputs(folder, model, processor, Settings(normalize="inside", size=(48, 32)))
    assert raw[0].dtype == np.uint8 and raw[0].shape == (3, 48, 32)
    labelled = labelled_folder(tmp_path / "labelled", CLASS_NAMES, count=9)
    (labelled / "validation" / "images" / "0.png").write_bytes(b"")  # never read
    assert len(calibration_inputs(labelled, model, processor, Settings())) == 9
    assert len(calibration_inputs("scenes", model, processor, Settings())) == MOST_PICTURES


def truncated(folder):
    whole = next(folder.glob("*.png")).read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    return folder


BAD = {
    "too few": (lambda tmp: picture_folder(tmp / "p", 3), [], r"at least 8 pictures.* p has 3"),
    "none": (lambda tmp: picture_folder(tmp / "p", 0), [], r"at least 8 pictures.* p has 0"),
    "unreadable": (lambda tmp: truncated(picture_folder(tmp / "p")), [], r"p.3\.png: "),
    "missing": (lambda tmp: tmp / "nowhere", [], "nowhere"),
    "other number of classes": (
        lambda tmp: labelled_folder(tmp / "p", (*CLASS_NAMES, "extra")),
        [],
        r"num_labels=11 .* 12 classes",
    ),
    "other classes": (
        lambda tmp: labelled_folder(tmp / "p", CLASS_NAMES[::-1]),
        [],
        r"classes of data set 'p' must be the model's, sky, .*, they are ",
    ),
    "half": (lambda tmp: picture_folder(tmp / "p"), ["--half"], "half must be left out with int8"),
    "format": (lambda tmp: picture_folder(tmp / "p"), ["--format", "torch-export"], "int8 needs format onnx"),
    "a file": (lambda tmp: min(picture_folder(tmp / "p").iterdir()), [], "p.0.png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, model_folder, tmp_path, capsys, monkeypatch):
    make, flags, message = BAD[case]
    data = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out" / ("m.pt2" if case == "format" else "m.onnx")
    assert main(["export", str(model_folder), str(out), "--int8", str(data), *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not out.parent.exists()


def test_small_pictures(tmp_path):
    folder = picture_folder(tmp_path / "p")
    Image.new("RGB", (40, 2)).save(folder / "5.png")
    processor = SegformerImageProcessor(do_resize=False)
    with pytest.raises(ValueError, match=r"p.5\.png: the model needs \d+ pixels a side, as prepared it has 2x40"):
        calibration_inputs(folder, network(), processor, Settings())


def test_bad_arguments_and_a_file_that_disagrees(quantised, tmp_path):
    folder, _ = quantised
    with pytest.raises(ValueError, match=r"inputs must be at least 8 pictures .* got 7"):
        quantize_onnx(folder / "float.onnx", tmp_path / "a.onnx", pictures(7))
    with pytest.raises(ValueError, match=r"min_int8 must be 0 to 1.* got 80"):
        quantize_onnx(folder / "float.onnx", tmp_path / "a.onnx", pictures(), min_int8=80)
    # Ranges from black pictures say nothing about those that are measured.
    black = [values if index % 4 == 1 else np.zeros_like(values) for index, values in enumerate(pictures())]
    with pytest.raises(ExportDisagrees, match=r"only \d+\.\d % of the labels .* no file was written"):
        quantize_onnx(folder / "float.onnx", tmp_path / "a.onnx", black)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_an_export_that_disagrees(model_folder, tmp_path, monkeypatch):
    from hf_segformer.export import int8

    monkeypatch.setattr(int8, "_MIN_AGREEMENT", 1.01)
    out = tmp_path / "m.onnx"
    out.write_bytes(b"an older file")
    with pytest.raises(ExportDisagrees):
        export_model(model_folder, out, int8=picture_folder(tmp_path / "p"), size=(64, 64), overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "p"] and out.read_bytes() == b"an older file"


@pytest.mark.long
@pytest.mark.parametrize("conv", [None, 256], ids=["mlp", "conv"])
def test_b0(tmp_path, conv):
    """The published size: bytes, share, and that no warning reaches the user."""
    fields = {"hidden_sizes": [32, 64, 160, 256], "num_labels": 150, "id2label": None}
    fields |= {"num_encoder_blocks": 4, "depths": [2] * 4, "sr_ratios": [8, 4, 2, 1], "strides": [4, 2, 2, 2]}
    fields |= {"patch_sizes": [7, 3, 3, 3], "num_attention_heads": [1, 2, 5, 8], "mlp_ratios": [4] * 4}
    fields |= {"conv_decoder_hidden_size": conv, "decoder_hidden_size": None if conv else 256}
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**fields)).eval()
    file = float_file(tmp_path / "float.onnx", model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = quantize_onnx(file, tmp_path / "int8.onnx", pictures(size=128))
    assert report.multiply_adds >= 0.8
    assert report.bytes <= 0.4 * report.float_bytes

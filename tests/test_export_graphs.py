# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported, traced and compiled graphs: the head without its concatenation, any size, weights that stay parameters.

Within `engine.off()` they hold what the textbook writes.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_segformer import SegformerForSemanticSegmentation, engine
from hf_segformer.engine.eligibility import no_plain
from textbook_head import HEADS, make

SHAPE = (2, 3, 64, 96)
# All stages' projections at a quarter of the resolution: what only the textbook's form has.
CONCATENATION = (2, 4 * 20, 16, 24)


class Logits(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixel_values):
        return self.network(pixel_values).logits


class Concatenations(TorchDispatchMode):
    """Shapes of all concatenations that are computed."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket is torch.ops.aten.cat:
            self.shapes.append(tuple(result.shape))
        return result


def captured_by_compiler(model, pixel_values):
    graphs = []

    def keep(graph, inputs):
        graphs.append((graph, inputs))
        return graph.forward

    torch._dynamo.reset()
    torch.compile(model, fullgraph=True, backend=keep)(pixel_values)
    ((graph, inputs),) = graphs
    return lambda pixel_values: graph(*[pixel_values if value.shape == SHAPE else value for value in inputs])[0]


def exported(model, pixel_values, **options):
    return torch.export.export(model, (pixel_values,), **options).module()


AXES = {"pixel_values": {0: "batch", 2: "height", 3: "width"}, "logits": {0: "batch", 2: "rows", 3: "columns"}}
ONNX = {
    "onnx": {"dynamo": True},
    "onnx legacy 14": {"dynamo": False, "opset_version": 14, "dynamic_axes": AXES},
    "onnx legacy 18": {"dynamo": False, "opset_version": 18, "dynamic_axes": AXES},
}
GRAPHS = {
    "export": exported,
    "export strict": lambda model, pixel_values: exported(model, pixel_values, strict=True),
    "compile": captured_by_compiler,
    "trace": torch.jit.trace,
}


def write_onnx(model, pixel_values, file, **options):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    torch.onnx.export(model, (pixel_values,), file, verbose=False, **names, **options)
    return file


def run_onnx(file, pixel_values, options=None):
    """Outputs by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"pixel_values": pixel_values.numpy()})
    return {output.name: torch.from_numpy(value) for output, value in zip(session.get_outputs(), outputs, strict=True)}


def onnx_concatenations(file, pixel_values):
    """Shapes of all concatenations that ONNX Runtime computes."""
    import onnx

    model = onnx.load(file)
    names = [node.output[0] for node in model.graph.node if node.op_type == "Concat"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    watched = file.with_name("watched.onnx")
    onnx.save(model, watched)
    outputs = run_onnx(watched, pixel_values)
    return [tuple(outputs[name].shape) for name in names]


def work_on_weights_alone(file, pixel_values):
    """Kinds of the operators that ONNX Runtime, having optimised the graph, computes without reading the image."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(file.with_name("optimised.onnx"))
    run_onnx(file, pixel_values, options)
    nodes, known = onnx.load(file.with_name("optimised.onnx")).graph.node, {"pixel_values"}
    for node in nodes:
        known.update(node.output if known.intersection(node.input) else ())
    return [node.op_type for node in nodes if not known.intersection(node.output)]


def make_plain(tiny_config, randomize, conv_width=None):
    return Logits(make(tiny_config, randomize, conv_width, depths=[1, 1, 1, 1])).eval()


def make_hooked(tiny_config, randomize):
    """Hooked where the sum over stages cannot go around the module."""
    model = make_plain(tiny_config, randomize)
    model.network.decode_head.linear_fuse.register_forward_hook(lambda module, args, output: 2 * output)
    return model


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def switched(enabled):
    return nullcontext() if enabled else engine.off()


def concatenations(kind, model, folder, enabled=True):
    """Shapes of the feature maps that the graph of a kind concatenates; its logits must be right."""
    pixel_values = torch.randn(SHAPE)
    with switched(enabled):
        if kind in GRAPHS:
            graph = GRAPHS[kind](model, pixel_values)
        else:
            file = write_onnx(model, pixel_values, folder / "model.onnx", **ONNX[kind])
    # What is written down stays, whatever is switched on when it is run.
    if kind in GRAPHS:
        with Concatenations() as seen, torch.no_grad():
            logits = graph(pixel_values)
        shapes = seen.shapes
    else:
        logits, shapes = run_onnx(file, pixel_values)["logits"], onnx_concatenations(file, pixel_values)
        assert work_on_weights_alone(file, pixel_values) == []
    assert_close(logits, model(pixel_values))
    return [shape for shape in shapes if len(shape) == 4]


@pytest.mark.long
@pytest.mark.engine
@HEADS
@pytest.mark.parametrize("kind", [*GRAPHS, *ONNX])
def test_no_graph_holds_the_concatenation(kind, conv_width, tiny_config, randomize, tmp_path):
    assert concatenations(kind, make_plain(tiny_config, randomize, conv_width), tmp_path) == []


@HEADS
@pytest.mark.parametrize("kind", [*GRAPHS, *ONNX])
def test_every_graph_of_the_textbook_holds_it(kind, conv_width, tiny_config, randomize, tmp_path):
    model = make_plain(tiny_config, randomize, conv_width)
    assert concatenations(kind, model, tmp_path, enabled=False) == [CONCATENATION]


@pytest.mark.parametrize("kind", ["export", "compile", "trace", "onnx legacy 18"])
def test_the_concatenation_is_found_where_it_must_be(kind, tiny_config, randomize, tmp_path):
    assert concatenations(kind, make_hooked(tiny_config, randomize), tmp_path) == [CONCATENATION]


@pytest.mark.engine
@HEADS
def test_a_compiled_model_is_compiled_anew_where_the_engine_is_off(conv_width, tiny_config, randomize):
    model, pixel_values = make_plain(tiny_config, randomize, conv_width), torch.randn(SHAPE)
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("eager")
    compiled, counted, results = torch.compile(model, fullgraph=True, backend=backend), [], []
    for enabled in (True, True, False, False, True):
        with switched(enabled), torch.no_grad():
            results.append(compiled(pixel_values))
        counted.append(backend.frame_count)
    assert counted == [1, 1, 2, 2, 2]
    assert [sum(node.target is torch.cat for node in graph.graph.nodes) for graph in backend.graphs] == [0, 1]
    assert all(torch.equal(results[index], results[0]) for index in (1, 4)) and torch.equal(results[2], results[3])
    with torch.no_grad(), engine.off():
        assert torch.equal(results[2], model(pixel_values))
    assert_close(results[0], results[2])


@pytest.mark.long
@pytest.mark.engine
def test_onnx_files_resize_what_a_convolution_gives(tiny_config, randomize, tmp_path):
    onnx = pytest.importorskip("onnx")
    file = write_onnx(make_plain(tiny_config, randomize), torch.randn(SHAPE), tmp_path / "model.onnx", dynamo=True)
    graph = onnx.load(file).graph
    source = {name: node.op_type for node in graph.node for name in node.output}
    assert [source[node.input[0]] for node in graph.node if node.op_type == "Resize"] == ["Conv"] * 3


class HoldsTwice(Logits):
    """Here `torch.export` makes stand-ins for modules."""

    def __init__(self, network):
        super().__init__(network)
        self.head, self.last = network.decode_head, network.decode_head.linear_c[3].proj


@pytest.mark.engine
def test_modules_held_twice(tiny_config, randomize, tmp_path):
    model = HoldsTwice(make_plain(tiny_config, randomize).network).eval()
    assert concatenations("export", model, tmp_path) == []


@pytest.mark.parametrize("name", ["linear_c.1.proj", "linear_fuse"])
@pytest.mark.parametrize("change", ["hooked", "lora", "parametrised", "twice and hooked"])
def test_changed_layers_are_called(change, name, tiny_config, randomize):
    model = make_plain(tiny_config, randomize).network
    pixel_values = torch.randn(SHAPE)
    before, layer = model(pixel_values).logits, model.decode_head.get_submodule(name)
    if "hooked" in change:
        layer.register_forward_pre_hook(lambda module, args: (3 * args[0],))
    elif change == "lora":
        peft = pytest.importorskip("peft")
        target = f"decode_head.{name}"
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False, lora_dropout=0.0), model
        )
        model.eval()
    else:
        nn.utils.parametrize.register_parametrization(layer, "weight", nn.Softplus())
    graph = exported((HoldsTwice if "twice" in change else Logits)(model), pixel_values)
    assert_close(graph(pixel_values), model(pixel_values).logits)
    assert not torch.allclose(graph(pixel_values), before, atol=1e-3)


class Quantised(torch.Tensor):
    """Weight-only quantisation as a tensor with tensors inside."""

    @staticmethod
    def __new__(cls, values, scale):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype, device=values.device)

    def __init__(self, values, scale):
        self.values, self.scale = values, scale

    def __tensor_flatten__(self):
        return ["values", "scale"], None

    @staticmethod
    def __tensor_unflatten__(tensors, context, size, stride):
        return Quantised(tensors["values"], tensors["scale"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.detach, torch.ops.aten.alias):
            return cls(args[0].values, args[0].scale)
        if function.overloadpacket not in (torch.ops.aten.linear, torch.ops.aten.addmm, torch.ops.aten.t):
            raise NotImplementedError(f"{function} of a quantised weight")
        args = [arg.values.to(arg.scale.dtype) * arg.scale if isinstance(arg, cls) else arg for arg in args]
        return function(*args, **(kwargs or {}))


def test_quantised_weights_stay_refused(tiny_config, randomize):
    model = make(tiny_config, randomize).eval()
    project, pixel_values = model.decode_head.linear_c[1].proj, torch.randn(SHAPE)
    scale = project.weight.detach().abs().amax(dim=1, keepdim=True) / 7
    values = (project.weight.detach() / scale).round().to(torch.int8)
    with torch.no_grad():
        project.weight.copy_(values * scale)
    expected = model(pixel_values).logits
    project.weight = nn.Parameter(Quantised(values, scale), requires_grad=False)
    assert_close(exported(Logits(model), pixel_values)(pixel_values), expected)


def test_what_is_plain_among_fake_tensors():
    layer = nn.Linear(4, 6)
    with FakeTensorMode() as mode:
        layer.weight = nn.Parameter(mode.from_tensor(layer.weight))
        assert type(layer.weight) is FakeTensor and not no_plain(layer, nn.Linear, "it")
        layer.weight = nn.Parameter(mode.from_tensor(torch.ones(6, 2)))  # not the shape the layer was built with
        assert no_plain(layer, nn.Linear, "it") == "the weight of it is sharded or packed"
    quantised = Quantised(torch.ones(6, 4, dtype=torch.int8), torch.ones(6, 1))
    layer.weight = nn.Parameter(FakeTensorMode().from_tensor(quantised), requires_grad=False)
    assert type(layer.weight.values) is FakeTensor
    assert no_plain(layer, nn.Linear, "it") == "the weight of it is a Quantised of torch.float32"


def test_sharded_fake_weights_are_not_plain():
    from torch import distributed
    from torch.distributed.tensor import DTensor, distribute_tensor, init_device_mesh

    layer = nn.Linear(4, 6)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        sharded = distribute_tensor(layer.weight.detach(), init_device_mesh("cpu", (1,)))
        layer.weight = nn.Parameter(FakeTensorMode().from_tensor(sharded))
        assert isinstance(layer.weight, DTensor) and type(layer.weight.to_local()) is FakeTensor
        assert no_plain(layer, nn.Linear, "it") == "the weight of it is a DTensor of torch.float32"
    finally:
        distributed.destroy_process_group()


@HEADS
@pytest.mark.parametrize("enabled", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("kind", ["export", "export strict", "trace", pytest.param("compile", marks=pytest.mark.long)])
def test_weights_loaded_afterwards_take_effect(kind, enabled, conv_width, tiny_config, randomize):
    model, pixel_values = make_plain(tiny_config, randomize, conv_width), torch.randn(SHAPE)
    other = randomize(make_plain(tiny_config, randomize, conv_width), seed=1)
    with torch.no_grad(), switched(enabled):
        if kind == "compile":
            torch._dynamo.reset()
            graph, target = torch.compile(model, fullgraph=True, backend="aot_eager"), model
        else:
            graph = target = GRAPHS[kind](model, pixel_values)
        before, expected = graph(pixel_values), other(pixel_values)
        # Strict export leaves out BatchNorm's counter.
        target.load_state_dict({name: other.state_dict()[name] for name in target.state_dict()})
        assert not torch.allclose(before, expected, atol=1e-3)
        assert_close(graph(pixel_values), expected)


SIZES = [(1, 29, 29), (3, 75, 101), (2, 96, 64), (1, 31, 130)]


def assert_right_at_all_sizes(file, model):
    for batch, height, width in SIZES:
        pixel_values = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            assert_close(run_onnx(file, pixel_values)["logits"], model(pixel_values))


@HEADS
@pytest.mark.parametrize("enabled", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("attention, opset", [("sdpa", 14), ("sdpa", 18), ("eager", 17)])
def test_legacy_onnx_of_any_size(attention, opset, enabled, conv_width, tiny_config, randomize, tmp_path):
    model = make_plain(tiny_config, randomize, conv_width)
    model.network.set_attn_implementation(attention)
    options = {"dynamo": False, "opset_version": opset, "dynamic_axes": AXES}
    with switched(enabled):
        file = write_onnx(model, torch.randn(SHAPE), tmp_path / "model.onnx", **options)
    assert_right_at_all_sizes(file, model)


@pytest.mark.parametrize("shape", [(1, 3, 29, 29), (1, 3, 128, 64)], ids=str)
def test_legacy_onnx_of_any_size_with_flat_last_stage(shape, tiny_config, randomize, tmp_path):
    config = tiny_config(reshape_last_stage=False)
    model = Logits(randomize(SegformerForSemanticSegmentation(config))).eval()
    options = {"dynamo": False, "opset_version": 17, "dynamic_axes": AXES}
    assert_right_at_all_sizes(write_onnx(model, torch.randn(shape), tmp_path / "model.onnx", **options), model)


@pytest.mark.long
def test_export_of_any_size(tiny_config, randomize):
    model = make_plain(tiny_config, randomize)
    sides = {index: torch.export.Dim(name, min=64) for index, name in ((2, "height"), (3, "width"))}
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1), **sides}}
    graph = exported(model, torch.randn(SHAPE), dynamic_shapes=shapes)
    for shape in ((1, 3, 64, 64), (3, 3, 75, 101)):
        pixel_values = torch.randn(shape)
        assert_close(graph(pixel_values), model(pixel_values))

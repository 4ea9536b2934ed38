# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The seam between the textbook and the engine: what can be switched off, what is explained, what can be missing."""

import ast
import copy
import os
import pickle
import shutil
import subprocess
import sys
import threading
import tokenize
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation as Builtin

from hf_segformer import SegformerForSemanticSegmentation, engine, modeling_segformer, upsample_argmax
from hf_segformer.engine import seam

PACKAGE = Path(engine.__file__).parents[1]
ENGINE_FILES = sorted(path.name for path in (PACKAGE / "engine").glob("*.py") if path.stem not in ("__init__", "seam"))
FAST = {
    "SegformerEfficientSelfAttention.forward": "attention_layers",
    "SegformerSelfOutput.forward": "output_layer",
    "SegformerMixFFN.forward": "feed_forward_in_bands",
    "SegformerDecodeHead.decode": "head_in_bands",
}


@pytest.fixture
def model(tiny_config, randomize):
    config = tiny_config(classifier_dropout_prob=0.0, drop_path_rate=0.0)  # nothing at random
    return randomize(SegformerForSemanticSegmentation(config)).eval()


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 70, 54, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def labels():
    return torch.randint(0, 5, (2, 70, 54), generator=torch.Generator().manual_seed(3))


def ran(choices, function):
    return {choice.ran for choice in choices if choice.function == function}


# ------------------------------------------------------------------------------------------------------- the textbook


def test_the_textbook_knows_nothing_of_the_engine_but_the_decorator():
    tree = ast.parse(Path(modeling_segformer.__file__).read_text(encoding="utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    from_engine = [node for node in imported if (node.module or "").startswith("engine")]
    assert [(node.module, [alias.name for alias in node.names]) for node in from_engine] == [
        ("engine", ["accelerated"])
    ]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not (names | attributes) & {"device", "is_cuda", "is_grad_enabled", "must_trace", "engine", "bfloat16"}


def test_the_textbook_has_at_most_300_lines_of_code():
    path = Path(modeling_segformer.__file__)
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    with tokenize.open(path) as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type not in skipped]
    code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    assert len(code) <= 300


def test_the_engine_does_not_import_the_model():
    for path in (PACKAGE / "engine").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level > 1}
        assert modules <= {"scores.bilinear", "scores.targets", "tracing"}, path


# ---------------------------------------------------------------------------------------------------------------- off


@pytest.mark.parametrize("conv_width", [None, 20], ids=["mlp", "conv"])
def test_off_is_the_textbook_and_gives_the_same(conv_width, tiny_config, randomize, pixel_values, labels):
    model = randomize(SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=conv_width))).eval()
    with torch.no_grad():
        expected = model(pixel_values, labels)
        with engine.off():
            assert not engine.is_enabled()
            actual = model(pixel_values, labels)
            choices = engine.explain(model, pixel_values, labels)
    assert {choice.ran for choice in choices} == {"textbook"}
    assert {reason for choice in choices for reason in choice.refused.values()} == {"the engine is off"}
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-6)


def test_off_agrees_with_the_class_of_transformers(model, pixel_values, tmp_path):
    model.save_pretrained(tmp_path)
    builtin = Builtin.from_pretrained(tmp_path).eval()
    with torch.no_grad(), engine.off():
        torch.testing.assert_close(model(pixel_values).logits, builtin(pixel_values).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.engine
def test_blocks_nest_and_end_with_errors():
    assert engine.is_enabled()
    with engine.off():
        with engine.off():
            pass
        assert not engine.is_enabled()
    with pytest.raises(KeyError), engine.off():
        raise KeyError
    assert engine.is_enabled()


@pytest.mark.engine
def test_blocks_of_threads_may_overlap():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with engine.off():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with engine.off():
        thread.start()
        assert entered.wait(10)
    assert not engine.is_enabled()  # process-wide: the other block lasts
    leave.set()
    thread.join()
    assert engine.is_enabled()


def in_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=environment.get("PYTHONPATH", PACKAGE.parent),
        timeout=300,
    )


@pytest.mark.parametrize(("value", "enabled"), [("off", "False"), ("on", "True")])
def test_the_environment_variable(value, enabled):
    code = "from hf_segformer import engine; print(engine.is_enabled())"
    assert in_process(code, HF_SEGFORMER_ENGINE=value).stdout.strip() == enabled


def test_another_value_of_the_variable_is_refused():
    done = in_process("import hf_segformer", HF_SEGFORMER_ENGINE="0")
    assert """ValueError: the environment variable HF_SEGFORMER_ENGINE must be "on" or "off", got '0'""" in done.stderr


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("off_in", ["forward", "backward"])
def test_a_recomputing_backward_pass_may_lie_outside(off_in, use_reentrant, model, pixel_values, labels):
    model.train()
    with engine.off():
        model(pixel_values, labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    if off_in == "forward":
        with engine.off():
            loss = model(pixel_values, labels).loss
        loss.backward()
    else:
        loss = model(pixel_values, labels).loss
        with engine.off():
            loss.backward()
    for name, gradient in expected.items():
        actual = model.get_parameter(name).grad
        torch.testing.assert_close(actual, gradient, rtol=1e-3, atol=1e-5 + 1e-4 * float(gradient.abs().max()))
    restored = os.environ.get("HF_SEGFORMER_ENGINE") != "off"
    assert engine.is_enabled() == restored


def test_models_with_checkpointing_are_copied_and_pickled(model, pixel_values):
    model.gradient_checkpointing_enable()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.engine
def test_a_checkpoint_of_ones_own_lies_in_the_block(model):
    layer = model.segformer.encoder.block[0][0].train()
    tokens = torch.randn(2, 64, 8, requires_grad=True)
    with engine.off():
        checkpoint(layer, tokens, (8, 8), use_reentrant=False)[0].sum().backward()
    assert tokens.grad is not None


# ------------------------------------------------------------------------------------------------------------ explain


@pytest.mark.engine
def test_inference_is_explained(model, pixel_values):
    with torch.no_grad():
        choices = engine.explain(model, pixel_values)
    for function, implementation in FAST.items():
        assert ran(choices, function) == {implementation}
    assert {c.module for c in choices if c.function == "SegformerMixFFN.forward"} == {
        name for name, module in model.named_modules() if type(module).__name__ == "SegformerMixFFN"
    }
    assert "SegformerMixFFN.forward (5x, segformer.encoder.block.0.0.mlp to segformer.encoder.block.3.0.mlp): " in str(
        choices
    )


@pytest.mark.engine
def test_a_training_step_is_explained(model, pixel_values, labels):
    choices = engine.explain(model.train(), pixel_values, labels)
    assert ran(choices, "SegformerMixFFN.forward") == {"feed_forward_in_chunks"}
    assert ran(choices, "SegformerDecodeHead.decode") == {"head_training_in_bands"}
    assert ran(choices, "cross_entropy_sum") == {"cross_entropy_in_bands"}
    [head] = [choice for choice in choices if choice.function == "SegformerDecodeHead.decode"]
    assert head.module == "decode_head" and head.refused["head_in_bands"] == "gradients are wanted"
    assert str(head).startswith("decode_head: head_training_in_bands\n  not in_float32: values are of torch.float32")


@pytest.mark.engine
def test_anything_can_be_recorded(model):
    with engine.record(model) as choices:
        upsample_argmax(torch.randn(1, 5, 4, 4), (16, 16))
        with engine.record() as inner:
            upsample_argmax(torch.randn(1, 5, 4, 4), (16, 16))
    assert [choice.ran for choice in inner] == ["label_map_in_bands"]
    assert [choice.ran for choice in choices] == 2 * ["label_map_in_bands"]
    upsample_argmax(torch.randn(1, 5, 4, 4), (16, 16))
    assert len(choices) == 2  # closed


def test_what_is_explained_is_what_is_computed(model, pixel_values, labels):
    with torch.no_grad():
        plain = model(pixel_values, labels)
        with engine.record(model) as choices:
            recorded = model(pixel_values, labels)
    assert choices and torch.equal(plain.logits, recorded.logits) and torch.equal(plain.loss, recorded.loss)


def test_compiled_models_are_not_explained(model, pixel_values):
    for compiled in (torch.compile(model, backend="eager"), model):
        model.compile(backend="eager")
        with pytest.raises(ValueError, match=r"explain it before torch\.compile"):
            engine.explain(compiled, pixel_values)


def lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["block.1.0.attention.self.query"], r=2, init_lora_weights=False)
    return peft.get_peft_model(model, config)


def hooked(model):
    model.segformer.encoder.block[1][0].attention.self.query.register_forward_hook(lambda *_: None)
    return model


class EightBit(nn.Linear):
    """What a quantised layer is to the engine: a class of its own with int8 weights, which wants (B, N, C)."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.load_state_dict(linear.state_dict())
        self.scale = self.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((self.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, tokens):
        assert tokens.ndim == 3, "a linear layer gets tokens"
        return nn.functional.linear(tokens, self.weight * self.scale, self.bias)


def eight_bit(model):
    attention = model.segformer.encoder.block[1][0].attention.self
    attention.query = EightBit(attention.query)
    return model


def replaced(model):
    query = model.segformer.encoder.block[1][0].attention.self.query
    query.forward = type(query).forward.__get__(query)
    return model


@pytest.mark.engine
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lora, "the layer is a Linear of peft.tuners.lora.layer, not a Linear"),
        (hooked, "the layer has hooks"),
        (eight_bit, "the layer is a EightBit of"),
        (replaced, "the forward of the layer was replaced"),
    ],
)
def test_the_refusal_of_a_changed_layer_is_named(change, reason, model, pixel_values):
    model = change(model)
    with torch.no_grad():
        choices = engine.explain(model, pixel_values)
        with engine.off():
            expected = model(pixel_values).logits
    refused = [choice for choice in choices if choice.ran == "textbook" and choice.function == "linear"]
    [query] = refused
    assert query.module.endswith("block.1.0.attention.self.query") and reason in query.refused["onednn_linear"]
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("path", "function", "implementation", "reason"),
    [
        ("mlp.dense1", "SegformerMixFFN.forward", "feed_forward_in_bands", "dense1 has hooks"),
        ("mlp.dwconv", "SegformerMixFFN.forward", "feed_forward_in_bands", "dwconv has hooks"),
        ("mlp.dwconv.dwconv", "SegformerMixFFN.forward", "feed_forward_in_bands", "dwconv.dwconv has hooks"),
        ("attention.output.dense", "linear", "onednn_linear", "the layer has hooks"),
    ],
)
def test_hooks_are_named_and_called(path, function, implementation, reason, model, pixel_values):
    calls = []
    layer = model.segformer.encoder.block[2][0].get_submodule(path)
    layer.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        choices = engine.explain(model, pixel_values)
    assert calls == [1]
    assert [c.refused[implementation] for c in choices if c.function == function and c.ran == "textbook"] == [reason]


# --------------------------------------------------------------------------- classes that are not the textbook's own


def overriding(name, base):
    """A subclass that changes one part of a textbook class, and inherits the accelerated method."""

    def changed(self, *arguments):
        return 2 * getattr(base, name)(self, *arguments)

    return type(base.__name__, (base,), {name: changed})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("segformer.encoder.block.1.0.attention.self", "reduce"),
        ("segformer.encoder.block.1.0.attention.self", "split_heads"),
        ("segformer.encoder.block.1.0.mlp.dwconv", "forward"),
        ("decode_head.linear_c.1", "forward"),
    ],
)
def test_a_subclass_is_computed_as_it_is_written(path, name, model, pixel_values):
    part = model.get_submodule(path)
    base = type(part)
    with torch.no_grad():
        unchanged = model(pixel_values).logits
        part.__class__ = overriding(name, base)  # of the same name even
        with engine.off():
            expected = model(pixel_values).logits
        actual = model(pixel_values).logits
    assert not torch.allclose(unchanged, expected, rtol=1e-3)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_method_replaced_in_its_class_is_called(model, pixel_values, monkeypatch):
    forward = modeling_segformer.SegformerDWConv.forward
    monkeypatch.setattr(modeling_segformer.SegformerDWConv, "forward", lambda *arguments: 2 * forward(*arguments))
    with torch.no_grad():
        actual = model(pixel_values).logits
        with engine.off():
            torch.testing.assert_close(actual, model(pixel_values).logits, rtol=1e-4, atol=1e-5)


def test_weights_given_for_one_call_are_used(model, pixel_values):
    weights = {name: 1.5 * tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    with torch.no_grad():
        actual = torch.func.functional_call(model, weights, pixel_values).logits
        with engine.off():
            expected = torch.func.functional_call(model, weights, pixel_values).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(actual, model(pixel_values).logits, rtol=1e-3)


# ---------------------------------------------------------------------------- bfloat16 without instructions for it


@pytest.fixture
def without_bfloat16(monkeypatch):
    """As on a processor with AVX2 alone: what PyTorch says of this one."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


@pytest.mark.engine
@pytest.mark.parametrize("conv_width", [None, 20], ids=["mlp", "conv"])
def test_bfloat16_is_computed_in_float32_where_that_is_faster(
    conv_width, tiny_config, randomize, pixel_values, without_bfloat16
):
    model = randomize(SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=conv_width))).eval()
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(pixel_values.double()).logits
        model, half = model.bfloat16(), pixel_values.bfloat16()
        choices = engine.explain(model, half)
        before = copy.deepcopy(model.state_dict())
        actual = model(half).logits
        with engine.off():
            plain = model(half).logits
    for function in (
        "SegformerOverlapPatchEmbeddings.forward",
        "SegformerLayer.forward",
        "SegformerDecodeHead.decode",
    ):
        assert "in_float32" in ran(choices, function)
    assert "feed_forward_in_bands" in ran(choices, "SegformerMixFFN.forward")
    assert actual.dtype == torch.bfloat16 and actual.shape == plain.shape
    assert (actual - exact).square().mean() < (plain - exact).square().mean()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.engine
def test_hooks_see_float32_once(model, pixel_values, without_bfloat16):
    seen = []
    layer = model.segformer.encoder.block[1][0]
    for module in (layer, layer.attention.self.query, model.decode_head):
        module.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    with torch.no_grad():
        model.bfloat16()(pixel_values.bfloat16())
    assert sorted(seen) == ["Linear", "SegformerDecodeHead", "SegformerLayer"]


@pytest.mark.engine
@pytest.mark.parametrize(("change", "is_copied"), [(lora, True), (replaced, False)])
def test_changed_layers_in_float32(change, is_copied, model, pixel_values, without_bfloat16):
    model = change(model).bfloat16()
    with torch.no_grad():
        choices = engine.explain(model, pixel_values.bfloat16())
        actual = model(pixel_values.bfloat16()).logits
        with engine.off():
            expected = model(pixel_values.bfloat16()).logits
    of_layer = [choice for choice in choices if choice.module.endswith("encoder.block.1.0")]
    assert ("in_float32" in ran(of_layer, "SegformerLayer.forward")) == is_copied
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


@pytest.mark.engine
@pytest.mark.parametrize("output_attentions", [False, True])
def test_outputs_are_bfloat16_again(output_attentions, model, pixel_values, without_bfloat16):
    with torch.no_grad():
        output = model.bfloat16()(
            pixel_values.bfloat16(), output_attentions=output_attentions, output_hidden_states=True
        )
    tensors = [output.logits, *output.hidden_states, *(output.attentions or ())]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


# ------------------------------------------------------------------------------------------------------ missing parts

USE = """
import torch
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, upsample_argmax
from hf_segformer.evaluation.inference import segment
state = torch.load("state.pt")
model = SegformerForSemanticSegmentation(SegformerConfig(**state["config"])).eval()
model.load_state_dict(state["weights"])
with torch.no_grad():
    output = model(state["pixel_values"], state["labels"])
torch.testing.assert_close(output.logits, state["logits"], rtol=1e-4, atol=1e-5)
torch.testing.assert_close(output.loss, state["loss"], rtol=1e-4, atol=1e-5)
assert float((upsample_argmax(output.logits, (70, 54)) != state["map"]).float().mean()) < 1e-3
loss = model.train()(state["pixel_values"], state["labels"]).loss
loss.backward()
print(float(sum(parameter.grad.abs().sum() for parameter in model.parameters())))
"""


@pytest.fixture(scope="module")
def package_copy(tmp_path_factory):
    """A folder with a copy of the package, and what its model must compute."""
    folder = tmp_path_factory.mktemp("missing")
    shutil.copytree(PACKAGE, folder / "hf_segformer", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.long
@pytest.mark.parametrize("missing", [*ENGINE_FILES, "all of them"])
def test_any_file_of_the_engine_may_be_missing(missing, package_copy, model, pixel_values, labels):
    with torch.no_grad(), engine.off():
        output = model(pixel_values, labels)
        expected = {"logits": output.logits, "loss": output.loss, "map": upsample_argmax(output.logits, (70, 54))}
    inputs = {"pixel_values": pixel_values, "labels": labels, "weights": model.state_dict()}
    torch.save(expected | inputs | {"config": model.config.to_diff_dict()}, package_copy / "state.pt")
    names = ENGINE_FILES if missing == "all of them" else [missing]
    for name in names:
        (package_copy / "hf_segformer" / "engine" / name).rename(package_copy / name)
    try:
        done = in_process(USE, PYTHONPATH=str(package_copy))
    finally:
        for name in names:
            (package_copy / name).rename(package_copy / "hf_segformer" / "engine" / name)
    assert done.returncode == 0, done.stderr
    with engine.off():
        model.train()(pixel_values, labels).loss.backward()
    total = float(sum(parameter.grad.abs().sum() for parameter in model.parameters()))
    assert float(done.stdout) == pytest.approx(total, rel=1e-3)


def test_an_error_inside_a_file_of_the_engine_is_not_hidden(package_copy):
    path = package_copy / "hf_segformer" / "engine" / "attention.py"
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace("from .onednn import linear", "import no_such_package"), encoding="utf-8")
    try:
        done = in_process("import hf_segformer", PYTHONPATH=str(package_copy))
    finally:
        path.write_text(source, encoding="utf-8")
    assert "No module named 'no_such_package'" in done.stderr


# ------------------------------------------------------------------------------------------------------ side effects

ALLOCATIONS = """
import torch
sizes, empty = [], torch.empty
torch.empty = lambda *size, **options: sizes.append(size) or empty(*size, **options)
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation
from hf_segformer.engine import allocator
assert not sizes and not allocator.keep_freed_memory.cache_info().currsize, "something was allocated at the import"
model = SegformerForSemanticSegmentation(SegformerConfig(depths=[1, 1, 1, 1])).eval()
with torch.no_grad():
    model(torch.zeros(1, 3, 64, 64))
print(allocator.keep_freed_memory.cache_info().currsize)
"""


@pytest.mark.parametrize(("value", "calls"), [("on", "1"), ("off", "0")])
def test_memory_is_kept_from_the_first_use_on(value, calls):
    done = in_process(ALLOCATIONS, HF_SEGFORMER_ENGINE=value)
    assert done.stdout.strip() == calls, done.stderr


# ------------------------------------------------------------------------------------------------------------ the seam


@pytest.mark.engine
def test_the_first_that_accepts_runs(monkeypatch):
    monkeypatch.setattr(seam, "_implementations", {})

    @engine.accelerated
    def double(number):
        return 2 * number

    name = double.accelerated_name

    @engine.implements(name, unless=lambda number: "the number is odd" if number % 2 else "")
    def by_shifting(number):
        return number << 1

    @engine.implements(name, unless=lambda number: "")
    def by_adding(number):
        return number + number

    with engine.record() as choices:
        assert [double(number) for number in (2, 3)] == [4, 6]
    assert [(choice.ran, choice.refused) for choice in choices] == [
        ("by_shifting", {}),
        ("by_adding", {"by_shifting": "the number is odd"}),
    ]

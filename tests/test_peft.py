# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT adapters made on the built-in models of transformers 4.57 and 5.x load here, with the result they had there."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation

from hf_segformer import SegformerForImageClassification, SegformerForSemanticSegmentation, SegformerModel
from hf_segformer.checkpoints.adapters import convert_adapter, load_adapter
from oracles import run_oracle

peft = pytest.importorskip("peft")

# {q} and so on stand for the names of the version that runs.
ADAPTERS = {
    "query and value": {"target_modules": ["{q}", "{v}"], "r": 2},
    "everything": {
        "target_modules": ["{q}", "{k}", "{v}", "{o}", "{1}", "{2}", "{sr}", "proj", "linear_fuse"],
        "rank_pattern": {"{q}": 3, "linear_fuse": 5},
        "alpha_pattern": {r"{block3}.*{v}": 32, "{1}": 2},
        "modules_to_save": ["decode_head.classifier"],
        "r": 2,
    },
    "head saved whole": {
        "target_modules": r".*{block3}.*\.{q}",
        "modules_to_save": ["decode_head"],
        "r": 4,
        "use_dora": True,
    },
    "parts of the head": {"target_modules": ["{v}"], "modules_to_save": ["{c}.0", "batch_norm"], "bias": "lora_only"},
    "some layers": {"target_modules": ["{v}"], "exclude_modules": ["{block3}.0.{attention}.{v}"], "use_rslora": True},
    "loha": {"target_modules": ["{q}", "{1}"], "r": 2},
    "ia3": {"target_modules": ["{k}", "{2}"], "feedforward_modules": ["{2}"]},
    "classification": {"target_modules": ["{q}"], "modules_to_save": ["classifier"]},
    "encoder": {"target_modules": ["{o}"]},
}
KINDS = {"classification": "ForImageClassification", "encoder": "Model"}

SCRIPT = r"""
import json, sys, torch
from pathlib import Path
import peft, transformers
import transformers.models.segformer.modeling_segformer as modeling
from transformers.models.segformer.configuration_segformer import SegformerConfig
assert "hf_segformer" not in sys.modules
folder, adapters, kinds, fields = Path(sys.argv[1]), *map(json.loads, sys.argv[2:5])
names = {
    "4": {"q": "query", "k": "key", "v": "value", "o": "attention.output.dense", "1": "dense1", "2": "dense2",
          "sr": "sr", "block3": r"encoder\.block\.2", "attention": "attention.self", "c": "linear_c"},
    "5": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "1": "fc1", "2": "fc2",
          "sr": "sequence_reduction.sequence_reduction", "block3": r"stages\.2\.blocks", "attention": "attention",
          "c": "linear_projections"},
}[transformers.__version__[0]]

def named(value):
    if isinstance(value, str):
        for key, name in names.items():
            value = value.replace("{" + key + "}", name)
        return value
    if isinstance(value, dict):
        return {named(key): named(inner) for key, inner in value.items()}
    return [named(inner) for inner in value] if isinstance(value, list) else value

@torch.no_grad()
def randomize(tensors, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors:
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if not tensor.is_floating_point():
            continue
        if "running_var" in name or "magnitude" in name or "ia3" in name:
            tensor.copy_(0.5 + noise.abs())
        elif tensor.ndim > 1:
            tensor.copy_(noise * 0.7 / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_((1 if "norm" in name and name.endswith("weight") else 0) + 0.3 * noise)

images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
for title, fields_of_adapter in adapters.items():
    model = getattr(modeling, "Segformer" + kinds.get(title, "ForSemanticSegmentation"))(SegformerConfig(**fields))
    randomize(model.state_dict().items(), 0)
    model.save_pretrained(folder / title / "base")
    options = named(fields_of_adapter)
    if "exclude_modules" in options:
        options["exclude_modules"] = [name.replace("\\", "") for name in options["exclude_modules"]]
    kind = {"loha": peft.LoHaConfig, "ia3": peft.IA3Config}.get(title, peft.LoraConfig)
    adapted = peft.get_peft_model(model, kind(**options))
    marks = ["lora_", "hada_", "ia3_", "modules_to_save"] + ["base_layer.bias"] * ("bias" in options)
    randomize([(n, t) for n, t in adapted.state_dict().items() if any(mark in n for mark in marks)], 1)
    adapted.save_pretrained(folder / title / "adapter")
    adapted = adapted.double().eval()
    with torch.no_grad():
        outputs = [adapted(pixel_values=images)[0]]
        with adapted.disable_adapter():
            outputs.append(adapted(pixel_values=images)[0])
    torch.save({"images": images, "outputs": outputs}, folder / title / "outputs.pth")
"""


@pytest.fixture(scope="module", params=["4", "5"])
def stock(request, tmp_path_factory):
    from conftest import TINY

    folder = tmp_path_factory.mktemp(f"stock{request.param}")
    arguments = [str(folder), *map(json.dumps, (ADAPTERS, KINDS, {**TINY, "num_labels": 5}))]
    if request.param == "4":
        run_oracle("stock4", SCRIPT, *arguments)
    else:
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr[-3000:]
    return folder


def output_of(model, images):
    with torch.no_grad():
        return model.double().eval()(pixel_values=images)[0]


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()


def base_model(folder, title):
    kinds = {"ForImageClassification": SegformerForImageClassification, "Model": SegformerModel}
    loader = kinds.get(KINDS.get(title), SegformerForSemanticSegmentation)
    return loader.from_pretrained(folder / title / "base")


@pytest.mark.parametrize("title", ADAPTERS)
def test_adapters_of_the_builtin_models(title, stock, tmp_path):
    saved = torch.load(stock / title / "outputs.pth")
    images, (expected, without) = saved["images"], saved["outputs"]
    assert not torch.allclose(expected, without, rtol=1e-2)
    adapted = load_adapter(base_model(stock, title), stock / title / "adapter")
    assert isinstance(adapted, peft.PeftModel)
    assert_close(output_of(adapted, images), expected)
    if title != "parts of the head":  # that one trains biases, which PEFT does not put back
        with adapted.disable_adapter():
            assert_close(output_of(adapted, images), without)
    # PEFT alone loads the converted folder.
    convert_adapter(stock / title / "adapter", tmp_path / "converted")
    again = peft.PeftModel.from_pretrained(base_model(stock, title), tmp_path / "converted")
    assert_close(output_of(again, images), expected)
    # And what it saves.
    again.save_pretrained(tmp_path / "saved")
    assert_close(output_of(load_adapter(base_model(stock, title), tmp_path / "saved"), images), expected)


@pytest.mark.parametrize("title", ["query and value", "everything", "head saved whole"])
def test_merged_adapter_is_a_plain_model(title, stock, tmp_path):
    saved = torch.load(stock / title / "outputs.pth")
    images, expected = saved["images"], saved["outputs"][0]
    merged = load_adapter(base_model(stock, title), stock / title / "adapter").double().merge_and_unload()
    assert type(merged) is SegformerForSemanticSegmentation
    assert_close(output_of(merged, images), expected)
    merged.save_pretrained(tmp_path)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_close(output_of(loaded, images), expected)
    # The built-in model of this process loads it too, with the same result.
    from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation as BuiltIn

    assert_close(output_of(BuiltIn.from_pretrained(tmp_path), images), expected)


@pytest.mark.parametrize("conv_width", [None, 20], ids=["mlp", "conv"])
def test_adapter_on_ours_trains_saves_loads_and_merges(conv_width, tiny_config, randomize, tmp_path):
    config = tiny_config(conv_decoder_hidden_size=conv_width)
    model = randomize(SegformerForSemanticSegmentation(config))
    model.save_pretrained(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {
        "target_modules": ["query", "value", "proj", "linear_fuse"],
        "modules_to_save": ["decode_head.classifier"],
    }
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, **options)).train()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 5, (2, 64, 96), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = adapted(pixel_values=images, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.eval().save_pretrained(tmp_path / "adapter")
    expected = output_of(adapted, images.double())
    base = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "base")
    base.load_state_dict({name: tensor for name, tensor in before.items() if "running" not in name}, strict=False)
    statistics = {n.replace("base_model.model.", ""): t for n, t in adapted.state_dict().items() if "running" in n}
    base.load_state_dict(statistics, strict=False)  # BatchNorm keeps counting while an adapter trains
    loaded = load_adapter(base, tmp_path / "adapter", is_trainable=True)
    assert any(parameter.requires_grad for parameter in loaded.parameters())
    assert_close(output_of(loaded, images.double()), expected)
    assert_close(output_of(loaded.merge_and_unload(), images.double()), expected)


def test_adapter_for_another_network_is_refused(stock, tiny_config, tmp_path):
    model = SegformerForImageClassification(tiny_config())
    with pytest.raises(ValueError, match=r"adapts what SegformerForImageClassification does not have: decode_head\."):
        load_adapter(model, stock / "everything" / "adapter")
    with pytest.raises(ValueError, match=r"no adapter: adapter_config.json, adapter_model.safetensors missing"):
        load_adapter(model, tmp_path)
    with pytest.raises(ValueError, match=r"folder or a Hub id owner/name, got 'a/b/c'"):
        load_adapter(model, "a/b/c")
    convert_adapter(stock / "query and value" / "adapter", tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "adapter_model.safetensors")
    strange = {name.replace("encoder.block", "stages").replace("query", "w_proj"): t for name, t in weights.items()}
    save_file(strange, tmp_path / "broken" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="which no SegFormer has"):
        load_adapter(model, tmp_path / "broken")
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="damaged"):
        load_adapter(model, tmp_path / "broken")


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 64, 96, generator=generator), torch.randint(0, 5, (2, 64, 96), generator=generator)


LORA = {"r": 2, "target_modules": ["query", "value"]}


@pytest.fixture
def told(monkeypatch):
    """Warnings of gradient checkpointing, each call of `warning_once` among them."""
    from hf_segformer.pretrained import loading

    messages = []
    monkeypatch.setattr(loading.logger, "warning_once", messages.append, raising=False)
    return messages


@pytest.mark.parametrize(
    ("reentrant", "asks_for_gradients", "whole_head"),
    [(True, False, False), (True, False, True), (True, True, True), (False, False, False)],
)
def test_checkpointing_that_trains_nothing_is_named(
    reentrant, asks_for_gradients, whole_head, tiny_config, randomize, told
):
    model = randomize(SegformerForSemanticSegmentation(tiny_config()))
    modules_to_save = ["decode_head"] if whole_head else None
    adapted = peft.get_peft_model(model, peft.LoraConfig(**LORA, modules_to_save=modules_to_save)).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if asks_for_gradients:
        model.enable_input_require_grads()
    pixel_values, labels = batch()
    loss = adapted(pixel_values=pixel_values, labels=labels).loss
    if loss.requires_grad:
        loss.backward()
    in_encoder = [p.grad for name, p in adapted.named_parameters() if "lora_" in name and "encoder" in name]
    trains = all(gradient is not None for gradient in in_encoder)
    assert trains == (asks_for_gradients or not reentrant)
    assert bool(told) != trains
    assert all("enable_input_require_grads()" in message and "use_reentrant" in message for message in told)


def test_checkpointing_of_a_trainable_encoder_is_quiet(tiny_config, randomize, told):
    model = randomize(SegformerForSemanticSegmentation(tiny_config())).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    pixel_values, labels = batch()
    model(pixel_values, labels=labels).loss.backward()
    with torch.no_grad():
        model(pixel_values)
    # Frozen layers have nothing to train.
    model.segformer.requires_grad_(False)
    model(pixel_values, labels=labels).loss.backward()
    # The last patch embedding alone: everything after it has a gradient.
    model.segformer.encoder.patch_embeddings[-1].requires_grad_(True)
    model.segformer.encoder.block[-1].requires_grad_(True)
    model(pixel_values, labels=labels).loss.backward()
    assert not told
    # Norms of frozen layers, without any adapter.
    model.segformer.encoder.block[0][0].layer_norm_1.requires_grad_(True)
    model(pixel_values, labels=labels).loss.backward()
    assert told


def test_checkpointing_switched_on_before_the_adapter_trains(tiny_config, randomize, told):
    model = randomize(SegformerForSemanticSegmentation(tiny_config()))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    adapted = peft.get_peft_model(model, peft.LoraConfig(**LORA)).train()  # asks for gradients by itself
    pixel_values, labels = batch()
    adapted(pixel_values=pixel_values, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)
    assert not told


@pytest.mark.parametrize(
    ("conv_width", "modules_to_save", "left_behind"),
    [
        (None, None, "decode_head.batch_norm"),
        (None, ["decode_head.classifier"], "decode_head.batch_norm"),
        (None, ["decode_head"], None),
        (None, ["batch_norm"], None),
        (20, ["decode_head.batch_norm"], "decode_head.linear_c.0.batch_norm, decode_head.linear_c.1.batch_norm"),
        (20, ["decode_head"], None),
    ],
    ids=str,
)
def test_lost_batch_norm_statistics_are_named(
    conv_width, modules_to_save, left_behind, tiny_config, randomize, tmp_path, caplog
):
    model = randomize(SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=conv_width)))
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(**LORA, modules_to_save=modules_to_save)).train()
    pixel_values, labels = batch()
    for _ in range(3):
        adapted(pixel_values=pixel_values, labels=labels)
    expected = output_of(adapted, pixel_values.double())

    def named(action):
        caplog.clear()
        result = action()
        messages = [record.getMessage() for record in caplog.records if "running statistics" in record.getMessage()]
        assert len(messages) == (left_behind is not None)
        assert all(left_behind in message and 'modules_to_save=["decode_head"]' in message for message in messages)
        return result

    named(lambda: adapted.save_pretrained(tmp_path / "adapter"))
    for load in (load_adapter, peft.PeftModel.from_pretrained):
        base = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "base")
        loaded = named(lambda load=load, base=base: load(base, tmp_path / "adapter"))
        difference = (output_of(loaded, pixel_values.double()) - expected).abs().max() / expected.abs().max()
        assert (difference > 0.01) == (left_behind is not None)
        # A frozen adapter and a merged one lose nothing by being saved.
        caplog.clear()
        loaded.state_dict()
        loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
        assert "running statistics" not in caplog.text


def test_adapters_of_transformers_itself_are_watched_too(tiny_config, randomize, tmp_path, caplog):
    model = randomize(SegformerForSemanticSegmentation(tiny_config())).train()
    model.add_adapter(peft.LoraConfig(**LORA))
    model.save_pretrained(tmp_path)
    assert "An adapter saved from this SegformerForSemanticSegmentation" in caplog.text
    caplog.clear()
    SegformerForSemanticSegmentation(tiny_config()).load_adapter(tmp_path)
    assert caplog.text.count("The adapter does not hold the running statistics of decode_head.batch_norm") == 1
    caplog.clear()
    classifier = SegformerForImageClassification(tiny_config())
    classifier.add_adapter(peft.LoraConfig(**LORA))
    classifier.save_pretrained(tmp_path / "classifier")
    assert "running statistics" not in caplog.text

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card, and the check of a folder before anything is sent."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from hf_segformer import SegformerForImageClassification, SegformerImageProcessor
from hf_segformer.hub.push import check_folder, folder_license, model_card, push_folder

pytest_plugins = ["hub_fixtures"]
METRICS = {"mean_iou": 0.4321, "mean_accuracy": 0.5, "overall_accuracy": float("nan"), "per_category_iou": [0.1, 0.2]}


# ---- model card


def test_card_states_what_the_hub_shows(tiny_config):
    text = model_card(
        "user/model",
        "ADE20K",
        METRICS,
        "the table",
        {"seed": 3},
        "overlays/a.png",
        config=tiny_config(),
        license="other",
        license_name="nvidia",
        license_link="https://example.org/license",
        dataset_id="owner/ade",
        protocol="whole image, shorter side 512",
        base_model="nvidia/mit-b0",
    )
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.library_name) == ("other", "nvidia", "transformers")
    assert (data.pipeline_tag, data.base_model, data.datasets) == (
        "image-segmentation",
        "nvidia/mit-b0",
        ["owner/ade"],
    )
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "mean_iou": 0.4321,
        "mean_accuracy": 0.5,
    }
    result = results["mean_iou"]
    assert (result.dataset_type, result.dataset_name, result.dataset_split) == ("owner/ade", "ADE20K", "validation")
    assert result.metric_args == {"protocol": "whole image, shorter side 512"}
    assert result.metric_name == "mIoU" and "| mIoU | 43.21 |" in text and "| `seed` | 3 |" in text
    assert "![image and prediction](overlays/a.png)" in text and "the table" in text


def test_card_of_a_head_that_the_built_in_classes_refuse_says_so(tiny_config):
    assert "refuse" in model_card("m", config=tiny_config(conv_decoder_hidden_size=12))
    assert "refuse" not in model_card("m", config=tiny_config())


def test_card_needs_the_data_set_of_metrics():
    with pytest.raises(ValueError, match="dataset must name"):
        model_card("m", metrics=METRICS)


# ---- check of the folder


def edit_json(name, **fields):
    def edit(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **fields}))

    return edit


def edit_weights(edit, metadata=("pt",)):
    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": metadata[0]} if metadata else None)

    return apply


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def set_nan(tensors):
    tensors["decode_head.linear_fuse.weight"][3, 2] = float("nan")


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is no JSON"),
    "model type": (edit_json("config.json", model_type="vit"), r"model_type must be 'segformer' in .*config\.json"),
    "bad field": (edit_json("config.json", depths=[2]), r"depths must have .*\(configuration of .*model\)"),
    "architecture": (edit_json("config.json", architectures=["X"]), r"architectures must be one of .*config\.json"),
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), r"preprocessor_config\.json is missing"),
    "processor": (edit_json("preprocessor_config.json", image_processor_type="ViT"), r"image_processor_type must be"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "truncated": (truncate, r"model\.safetensors is no complete safetensors file"),
    "nan": (edit_weights(set_nan), r"decode_head\.linear_fuse\.weight must be finite in .*model\.safetensors"),
    "missing": (edit_weights(lambda t: t.pop("decode_head.classifier.bias")), r"lacks 1 weights .*classifier\.bias"),
    "unknown": (edit_weights(lambda t: t.update(x=torch.ones(1))), r"holds 1 weights .*: x"),
    "shape": (
        edit_json("config.json", decoder_hidden_size=19),
        r"must have the shape \(19.* by the configuration, got \(20",
    ),
    "metadata": (edit_weights(lambda tensors: None, metadata=()), r'metadata must be \{"format": "pt"\}'),
    "licence": (lambda folder: None, r"license of the weights is unknown: state it in .*README\.md"),
    "card": (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), r"metadata of .*README\.md cannot"),
    "picture": (lambda folder: (folder / "overlays/a.png").unlink(), r"README\.md shows overlays/a\.png"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_nothing_is_sent_when_the_folder_is_not_complete(hub, folder, case):
    spoil, message = BROKEN[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        push_folder(folder, "user/model", license=None if case in ("licence", "card") else "mit")
    assert hub.requests == [] and hub.unknown == []


def test_licence_other_needs_a_name(hub, folder):
    with pytest.raises(ValueError, match="license 'other' needs license_name"):
        push_folder(folder, "user/model", license="other")
    assert hub.requests == []


def test_sharded_weights_and_other_heads_are_complete(tmp_path, tiny_config):
    model = SegformerForImageClassification(tiny_config())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    SegformerImageProcessor().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert check_folder(tmp_path).architectures == ["SegformerForImageClassification"]
    next(tmp_path.glob("model-00002*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-.* is missing"):
        check_folder(tmp_path)


def test_licence_of_a_folder(folder, tmp_path):
    assert folder_license(tmp_path) is None and folder_license(folder) is None
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert folder_license(folder) == "mit"

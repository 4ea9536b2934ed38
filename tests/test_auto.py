# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What importing the package does to the Auto classes, and what it costs."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    pipeline,
)

import hf_segformer
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from versions import needs_auto_processor

AUTO = (AutoModel, AutoModelForSemanticSegmentation, AutoModelForImageClassification, AutoBackbone)


def is_ours(thing):
    return type(thing).__module__.startswith("hf_segformer.")


@pytest.fixture
def folder(tiny_config, randomize, tmp_path):
    randomize(SegformerForSemanticSegmentation(tiny_config())).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    return tmp_path


@needs_auto_processor
def test_every_auto_class_builds_ours(folder):
    config = AutoConfig.from_pretrained(folder)
    assert is_ours(config)
    assert is_ours(AutoImageProcessor.from_pretrained(folder))
    for auto_class in AUTO:
        assert is_ours(auto_class.from_pretrained(folder)), auto_class
        assert is_ours(auto_class.from_config(config)), auto_class


@needs_auto_processor
@pytest.mark.parametrize(
    "kind", ["SegformerFeatureExtractor", "SegformerImageProcessor", "SegformerImageProcessorFast"]
)
def test_every_spelling_of_the_processor_is_ours(kind, folder):
    path = folder / "preprocessor_config.json"
    fields = json.loads(path.read_text())
    for backend in ({}, {"backend": "pil"}, {"backend": "torchvision"}):
        path.write_text(json.dumps(fields | {"image_processor_type": kind}))
        assert is_ours(AutoImageProcessor.from_pretrained(folder, **backend)), backend


@needs_auto_processor
def test_unregister_gives_the_builtin_classes_back(folder):
    try:
        hf_segformer.unregister()
        assert not is_ours(AutoConfig.from_pretrained(folder))
        assert not is_ours(AutoModelForSemanticSegmentation.from_pretrained(folder))
        assert not is_ours(AutoImageProcessor.from_pretrained(folder))
        assert "from_pretrained" not in AutoBackbone.__dict__
    finally:
        hf_segformer.register()
    assert is_ours(AutoModelForSemanticSegmentation.from_pretrained(folder))


def run(script, **environment):
    command = [sys.executable, "-W", "ignore", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    return result.stdout.strip()


BUILTIN = [
    f"transformers.models.segformer.{name}_segformer"
    for name in ("configuration", "modeling", "image_processing_pil", "image_processing")
]


@pytest.mark.parametrize(
    ("first", "statement"), [("ours", ""), ("theirs", ""), ("ours", "; hf_segformer.SegformerConfig.__doc__ = ''")]
)
def test_importing_the_builtin_classes_prints_nothing(first, statement):
    modules = BUILTIN if importlib.util.find_spec("torchvision") else BUILTIN[:-1]
    lines = ["import hf_segformer" + statement, *(f"import {module}" for module in modules)]
    script = "\n".join(lines if first == "ours" else [*lines[1:], lines[0]])
    command = [sys.executable, "-W", "ignore", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    # The check itself: without the link in the docstring there is a message, wherever ours comes first.
    has_message = bool(statement)
    assert ("No checkpoint found" in result.stdout + result.stderr) == has_message
    assert has_message or result.stdout + result.stderr == ""


@pytest.mark.parametrize("subfolder", ["", "part"])
def test_backbone_from_a_folder(subfolder, tiny_config, randomize, tmp_path, monkeypatch):
    model = randomize(SegformerForSemanticSegmentation(tiny_config())).eval()
    model.save_pretrained(tmp_path / subfolder)
    options = {"subfolder": subfolder} if subfolder else {}
    backbone = AutoBackbone.from_pretrained(tmp_path, out_indices=[0, 2], use_timm_backbone=False, **options).eval()
    assert is_ours(backbone) and backbone.out_features == ["stage1", "stage3"]
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        maps, stages = (
            backbone(pixel_values).feature_maps,
            model(pixel_values, output_hidden_states=True).hidden_states,
        )
    assert torch.equal(maps[0], stages[0]) and torch.equal(maps[1], stages[2])
    # A configuration at hand needs no look-up either; a folder of another model stays the business of transformers.
    given = AutoBackbone.from_pretrained(tmp_path, config=tiny_config(out_features=["stage2"]), **options)
    assert is_ours(given) and given.out_indices == [1]
    path = tmp_path / subfolder / "config.json"
    path.write_text(json.dumps({"model_type": "resnet"}))
    monkeypatch.setattr(AutoBackbone.__base__, "from_pretrained", classmethod(lambda *arguments, **_: arguments[1]))
    assert AutoBackbone.from_pretrained(tmp_path, **options) == tmp_path


def test_a_configuration_at_hand_is_not_looked_up(tiny_config, randomize, tmp_path, monkeypatch):
    model = randomize(SegformerForSemanticSegmentation(tiny_config())).eval()
    pixel_values, expected = torch.randn(1, 3, 64, 64), model.state_dict()

    def refuse(*_, **__):
        raise AssertionError("the configuration was looked up by name")

    monkeypatch.setattr(SegformerConfig, "get_config_dict", refuse)
    # Nothing but the tensors.
    for config, channels in ((model.config, 3), (tiny_config(num_channels=4), 4)):
        loaded = SegformerForSemanticSegmentation.from_pretrained(None, config=config, state_dict=expected)
        with torch.inference_mode():
            image = pixel_values[:, :1].expand(-1, channels, -1, -1)
            torch.testing.assert_close(
                loaded(image).logits, model(pixel_values[:, :1].expand(-1, 3, -1, -1)).logits, rtol=1e-4, atol=1e-5
            )
        assert config.num_channels == loaded.config.num_channels == channels
    # A folder of weights alone, whole or in shards.
    for size in ("1GB", "5KB"):
        folder = tmp_path / size
        model.save_pretrained(folder, max_shard_size=size)
        (folder / "config.json").unlink()
        for loader in (SegformerForSemanticSegmentation, AutoModelForSemanticSegmentation):
            loaded = loader.from_pretrained(folder, config=tiny_config())
            assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
            assert loader.from_pretrained(folder, config=tiny_config(num_channels=1)).config.num_channels == 1
    torch.save(expected, tmp_path / "pytorch_model.bin")
    loaded = SegformerForSemanticSegmentation.from_pretrained(tmp_path, config=tiny_config(num_channels=2))
    assert loaded.segformer.encoder.patch_embeddings[0].proj.weight.shape[1] == 2
    with pytest.raises(RuntimeError, match="mismatch"):  # classes are not a matter of filters
        SegformerForSemanticSegmentation.from_pretrained(None, config=tiny_config(num_labels=7), state_dict=expected)


def test_weights_of_other_channels_than_their_file_says_are_refused(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"num_channels": 3', '"num_channels": 4'))
    with pytest.raises(RuntimeError, match="mismatch"):
        SegformerForSemanticSegmentation.from_pretrained(folder)


def test_registration_can_be_turned_off():
    script = (
        "import hf_segformer\n"
        "from transformers import AutoConfig\n"
        "print(AutoConfig.for_model('segformer').__class__.__module__.split('.')[0])"
    )
    assert run(script, HF_SEGFORMER_NO_REGISTER="1") == "transformers"
    assert run(script, HF_SEGFORMER_NO_REGISTER="0") == "hf_segformer"


def test_heavy_packages_are_imported_only_when_used():
    script = (
        "import sys, transformers\n"
        "from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation\n"
        "import transformers.models.segformer.modeling_segformer\n"
        "before = set(sys.modules)\n"
        "import hf_segformer\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "heavy = {'datasets', 'evaluate', 'cv2', 'matplotlib', 'peft', 'accelerate', 'torchvision', 'pandas'}\n"
        "print(sorted(new & heavy))"
    )
    assert run(script) == "[]"


@needs_auto_processor
def test_pipeline_on_a_photo(folder, shared_data):
    segment = pipeline("image-segmentation", model=str(folder))
    assert is_ours(segment.model)
    assert is_ours(segment.image_processor)
    image = Image.open(shared_data / "photos" / "000000039769.png")
    regions = segment(image)
    assert regions
    assert all(region["mask"].size == image.size for region in regions)
    inputs = segment.image_processor(image, return_tensors="pt")
    with torch.inference_mode():
        logits = segment.model(**inputs).logits
    scores = torch.nn.functional.interpolate(logits, size=image.size[::-1], mode="bilinear")
    expected = scores[0].argmax(0)
    assert {region["label"] for region in regions} == {f"LABEL_{label}" for label in expected.unique().tolist()}
    for region in regions:
        mask = torch.tensor(list(region["mask"].getdata())).view(expected.shape) > 0
        agreement = (mask == (expected == int(region["label"].split("_")[1]))).float().mean()
        assert agreement > 0.9999

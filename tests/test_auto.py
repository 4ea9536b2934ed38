# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What importing the package does to the Auto classes, and what it costs."""

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
from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor
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
        # AutoBackbone.from_pretrained takes Hub ids only, no folders.
        if auto_class is not AutoBackbone:
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
    finally:
        hf_segformer.register()
    assert is_ours(AutoModelForSemanticSegmentation.from_pretrained(folder))


def run(script, **environment):
    command = [sys.executable, "-W", "ignore", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    return result.stdout.strip()


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

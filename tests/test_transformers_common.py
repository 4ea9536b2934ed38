# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The common tests of `transformers` on the classes of this package.

They run as `transformers` wrote them, but for `EXCEPTIONS`. Others skip themselves, where a class has none of what
they test (text, experts, several modalities) or the machine lacks it.
"""

import unittest

import pytest
from torch import nn

from hf_segformer import (
    SegformerBackbone,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SegformerModel,
)
from transformers_mixins import load

pytestmark = pytest.mark.oracle

ConfigTester = load("test_configuration_common").ConfigTester
BackboneTesterMixin = load("test_backbone_common").BackboneTesterMixin
modeling = load("test_modeling_common")
processing = load("test_image_processing_common")

NO_LOSS = "skipped: a backbone returns no loss; their list of such classes knows backbones of their own only"
ONE_CLASS = "skipped: one class serves every backend; theirs would compare it with itself"
# What of a test of theirs does not run as written, and why. "with": theirs runs, told the numbers of this network.
EXCEPTIONS = {
    "ModelTests": {
        "test_attention_outputs": "with: the first stage's heads, tokens and reduced tokens",
        "test_hidden_states_output": "with: hidden states are one map (B, C, H, W) per stage, without the embeddings",
        "test_model_get_set_embeddings": "rewritten: images enter a convolution, theirs asks for an nn.Embedding",
        "test_resize_tokens_embeddings": "skipped: there are no tokens and no vocabulary",
    },
    "TestBackboneAsModel": {
        "test_retain_grad_hidden_states_attentions": "rewritten: output 0 is a tuple of maps, theirs wants a tensor",
        "test_training": NO_LOSS,
        "test_training_gradient_checkpointing": NO_LOSS,
        "test_training_gradient_checkpointing_use_reentrant_false": NO_LOSS,
        "test_training_gradient_checkpointing_use_reentrant_true": NO_LOSS,
    },
    "TestBackbone": {
        "test_config": "rewritten: theirs asks for a stage named stem, SegFormer begins with stage1",
    },
    "TestImageProcessor": {
        "test_backends_equivalence": ONE_CLASS,
        "test_backends_equivalence_batched": ONE_CLASS,
        "test_pil_can_run_without_torchvision": "skipped: it loads in a process that does not import this package",
    },
}

SIDE = 64  # of the images: maps of 16, 8, 4 and 2 on a side
NETWORK = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
}
HEADS = {
    "mlp": {"decoder_hidden_size": 16},
    "conv": {"decoder_hidden_size": None, "conv_decoder_hidden_size": 16},
}


def excepted(cls):
    """Skip what the table says, and see to it that the class overrides what the table lists and nothing else."""
    listed = EXCEPTIONS[cls.__name__]
    skipped = {name: reason for name, reason in listed.items() if reason.startswith("skipped: ")}
    tests = {name: member for name, member in vars(cls).items() if name.startswith("test_") and callable(member)}
    own = {name for name, member in tests.items() if member.__qualname__ == f"{cls.__name__}.{name}"}
    assert own == listed.keys() - skipped.keys(), f"{cls.__name__}: {own}"
    for name, reason in skipped.items():
        setattr(cls, name, unittest.skip(reason.removeprefix("skipped: "))(getattr(cls, name)))
    return cls


CHECKS = [name for name in vars(ConfigTester) if name.startswith(("check_", "create_and_test_"))]


@pytest.mark.parametrize("check", CHECKS)
def test_configuration(check):
    # In place of hidden_size, which SegFormer has per stage.
    properties = ["hidden_sizes", "num_attention_heads", "num_hidden_layers", "num_encoder_blocks"]
    tester = ConfigTester(unittest.TestCase(), SegformerConfig, False, properties, **NETWORK, decoder_hidden_size=16)
    getattr(tester, check)()


class ModelTester:
    """What the tests ask of the network they are given; further attributes only as far as they read them."""

    batch_size = 2
    is_training = True

    def __init__(self, **fields):
        self.fields = fields

    def get_config(self):
        return SegformerConfig(num_labels=3, **NETWORK, **self.fields)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": modeling.floats_tensor([self.batch_size, 3, SIDE, SIDE])}


@excepted
class ModelTests(modeling.ModelTesterMixin):
    fields = HEADS["mlp"]

    def setUp(self):
        self.model_tester = ModelTester(**self.fields)

    def test_attention_outputs(self):
        layers, tokens, reduction = sum(NETWORK["depths"]), (SIDE // 4) ** 2, NETWORK["sr_ratios"][0]
        numbers = {"num_hidden_layers": layers, "seq_length": tokens, "key_length": tokens // reduction**2}
        vars(self.model_tester).update(numbers, num_attention_heads=NETWORK["num_attention_heads"][0])
        super().test_attention_outputs()

    def test_hidden_states_output(self):
        stages = len(NETWORK["depths"])
        side = SIDE // 4  # theirs look at two axes of the first hidden state: here height and width
        numbers = {"num_hidden_layers": stages, "expected_num_hidden_layers": stages}
        vars(self.model_tester).update(numbers, seq_length=side, hidden_size=side)
        super().test_hidden_states_output()

    def test_model_get_set_embeddings(self):
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            first = model.get_input_embeddings()
            assert first is model.base_model.encoder.patch_embeddings[0]
            model.set_input_embeddings(nn.Identity())
            assert type(model.get_input_embeddings()) is nn.Identity
            assert model.get_output_embeddings() is None


class TestModel(ModelTests, unittest.TestCase):
    all_model_classes = (SegformerModel,)


class TestSegmentation(ModelTests, unittest.TestCase):
    all_model_classes = (SegformerForSemanticSegmentation,)


class TestSegmentationWithConvolutionalHead(ModelTests, unittest.TestCase):
    all_model_classes = (SegformerForSemanticSegmentation,)
    fields = HEADS["conv"]


class TestImageClassification(ModelTests, unittest.TestCase):
    all_model_classes = (SegformerForImageClassification,)


@excepted
class TestBackboneAsModel(ModelTests, unittest.TestCase):
    all_model_classes = (SegformerBackbone,)

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        model = SegformerBackbone(config)
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        inner = [outputs.hidden_states[0], outputs.attentions[0]]
        for tensor in inner:
            tensor.retain_grad()
        outputs.feature_maps[-1].flatten()[0].backward()
        assert all(tensor.grad is not None for tensor in inner)


@excepted
class TestBackbone(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (SegformerBackbone,)
    config_class = SegformerConfig

    def setUp(self):
        self.model_tester = ModelTester(decoder_hidden_size=16, out_features=["stage2", "stage4"])

    def test_config(self):
        stages = ["stage1", "stage2", "stage3", "stage4"]
        config = SegformerConfig()
        assert config.stage_names == stages
        assert set(config.out_features) <= set(stages)
        for given, names, indices in [
            ({"out_features": None, "out_indices": None}, ["stage4"], [3]),
            ({"out_features": ["stage1", "stage2"], "out_indices": [0, 1]}, ["stage1", "stage2"], [0, 1]),
            ({"out_features": ["stage1", "stage3"]}, ["stage1", "stage3"], [0, 2]),
            ({"out_indices": [0, 2]}, ["stage1", "stage3"], [0, 2]),
        ]:
            config = SegformerConfig(**given)
            assert (config.out_features, config.out_indices) == (names, indices)
        with pytest.raises(ValueError, match="out_features"):
            SegformerConfig(out_features=["stage1", "stage2"], out_indices=[0, 2])


class ProcessorTester(processing.ImageProcessingTester):
    num_labels = 5

    def __init__(self, parent):
        super().__init__(parent, size={"height": 30, "width": 30})

    def _get_image_processing_classes(self):  # theirs are found by the name of the test's folder
        return {"pil": SegformerImageProcessor, "torchvision": SegformerImageProcessor}


@excepted
class TestImageProcessor(
    processing.ImageProcessingTestMixin, processing.PostProcessSemanticSegmentationTestMixin, unittest.TestCase
):
    image_processor_tester_class = ProcessorTester

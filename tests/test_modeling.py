# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The network against the installed `transformers`' own classes, through disk, in both directions."""

import pytest
import torch
from torch import nn
from transformers.models.segformer import modeling_segformer as stock

from hf_segformer import (
    VARIANTS,
    SegformerBackbone,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

# Exact counts of the published models: encoder, ADE20K (150 classes), Cityscapes (19), ADE20K with mmsegmentation's
# head.
PARAMETERS = {
    "b0": (3_319_392, 3_752_694, 3_719_027, 3_753_718),
    "b1": (13_151_424, 13_715_798, 13_682_131, 13_716_822),
    "b2": (24_196_288, 27_461_974, 27_361_235, 24_761_686),
    "b3": (44_072_128, 47_337_814, 47_237_075, 44_637_526),
    "b4": (60_842_688, 64_108_374, 64_007_635, 61_408_086),
    "b5": (81_443_008, 84_708_694, 84_607_955, 82_008_406),
}
EMPTY = ("missing_keys", "unexpected_keys", "mismatched_keys")


def through_disk(model, target_class, folder, **kwargs):
    """Save `model` and load it as `target_class`, which must find every tensor and no other."""
    model.save_pretrained(folder)
    loaded, info = target_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info[name] for name in EMPTY), info
    return loaded


def relative(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_parameter_counts(variant):
    encoder, ade, city, conv = PARAMETERS[variant]
    with torch.device("meta"):
        assert count(SegformerModel(SegformerConfig.for_variant(variant))) == encoder
        for num_labels, width, expected in ((150, None, ade), (19, None, city), (150, 256, conv)):
            config = SegformerConfig.for_variant(variant, num_labels=num_labels, conv_decoder_hidden_size=width)
            assert count(SegformerForSemanticSegmentation(config)) == expected


@pytest.mark.parametrize(
    "variant", ["b0", "b1", "b2", *(pytest.param(variant, marks=pytest.mark.long) for variant in ("b3", "b4", "b5"))]
)
def test_equals_transformers_through_disk(variant, randomize, tmp_path):
    config = SegformerConfig.for_variant(variant, num_labels=17)
    ours = randomize(SegformerForSemanticSegmentation(config)).eval()
    theirs = through_disk(ours, stock.SegformerForSemanticSegmentation, tmp_path, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(2, 3, 97, 131, generator=generator)
    labels = torch.randint(0, 17, (2, 97, 131), generator=generator)
    labels[0, :20] = 255
    with torch.inference_mode():
        mine = ours(pixel_values, labels=labels, output_hidden_states=True, output_attentions=True)
        other = theirs(pixel_values, labels=labels, output_hidden_states=True, output_attentions=True)
        plain = ours(pixel_values)
    assert relative(mine.logits, other.logits) <= 1e-4
    assert relative(plain.logits, other.logits) <= 1e-4
    assert relative(mine.loss, other.loss) <= 1e-4
    for name, length in (("hidden_states", 4), ("attentions", sum(config.depths))):
        assert len(mine[name]) == len(other[name]) == length
        for left, right in zip(mine[name], other[name], strict=True):
            assert relative(left, right) <= 1e-4
    back = through_disk(theirs, SegformerForSemanticSegmentation, tmp_path / "back").eval()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_float64_gradients_equal_those_of_transformers(variant, training, randomize, tmp_path):
    # Dropout masks depend on the memory layout; stochastic depth draws the same numbers in both.
    fields = {"num_labels": 7, "classifier_dropout_prob": 0.0, "drop_path_rate": 0.2}
    if variant != "b0":
        # PyTorch computes depthwise convolutions in float64 channel by channel: a quarter of the width, at full depth.
        fields |= {"hidden_sizes": (16, 32, 80, 128), "decoder_hidden_size": 96}
    config = SegformerConfig.for_variant(variant, **fields)
    ours = randomize(SegformerForSemanticSegmentation(config))
    theirs = through_disk(ours, stock.SegformerForSemanticSegmentation, tmp_path, dtype=torch.float64)
    mine, other = gradients(ours.double(), training), gradients(theirs, training)
    other = {old_name(name): gradient for name, gradient in other.items()}
    assert mine.keys() == other.keys()
    largest = max(gradient.abs().max() for gradient in other.values())
    for name, gradient in other.items():
        tolerance = 1e-8 * max(gradient.abs().max(), 1e-6 * largest)
        assert (mine[name] - gradient).abs().max() <= tolerance, name


@pytest.mark.parametrize("variant", ["b0", "b2"])
def test_float32_gradients_in_eval_mode(variant, randomize, tmp_path):
    ours = randomize(SegformerForSemanticSegmentation(SegformerConfig.for_variant(variant, num_labels=7)))
    theirs = through_disk(ours, stock.SegformerForSemanticSegmentation, tmp_path)
    mine, other = gradients(ours, False), {old_name(n): g for n, g in gradients(theirs, False).items()}
    largest = max(gradient.abs().max() for gradient in other.values())
    for name, gradient in other.items():
        assert (mine[name] - gradient).abs().max() <= 1e-4 * largest, name


def gradients(model, training):
    model.train(training)
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(3)
    pixel_values = torch.randn(2, 3, 33, 65, generator=generator).to(dtype)
    labels = torch.randint(0, 7, (2, 33, 65), generator=generator)
    labels[1, 20:] = 255
    torch.manual_seed(5)
    model(pixel_values, labels=labels).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def old_name(name):
    """A parameter name of transformers 5 in memory, as it is on disk."""
    import re

    for pattern, replacement in (
        (r"stages\.(\d+)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
        (r"stages\.(\d+)\.blocks\.", r"encoder.block.\1."),
        (r"stages\.(\d+)\.layer_norm\.", r"encoder.layer_norm.\1."),
        (r"attention\.(q)_proj", r"attention.self.query"),
        (r"attention\.(k)_proj", r"attention.self.key"),
        (r"attention\.(v)_proj", r"attention.self.value"),
        (r"attention\.o_proj", r"attention.output.dense"),
        (r"attention\.sequence_reduction\.sequence_reduction", r"attention.self.sr"),
        (r"attention\.sequence_reduction\.layer_norm", r"attention.self.layer_norm"),
        (r"layernorm_before", r"layer_norm_1"),
        (r"layernorm_after", r"layer_norm_2"),
        (r"mlp\.fc(\d)", r"mlp.dense\1"),
        (r"linear_projections", r"linear_c"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("reshape_last_stage", [True, False])
def test_image_classification_equals_transformers(reshape_last_stage, tiny_config, randomize, tmp_path):
    config = tiny_config(reshape_last_stage=reshape_last_stage, num_labels=6)
    ours = randomize(SegformerForImageClassification(config)).eval()
    theirs = through_disk(ours, stock.SegformerForImageClassification, tmp_path).eval()
    pixel_values, labels = torch.randn(3, 3, 61, 45), torch.tensor([1, 5, 0])
    with torch.inference_mode():
        mine, other = ours(pixel_values, labels=labels), theirs(pixel_values, labels=labels)
    assert relative(mine.logits, other.logits) <= 1e-5
    assert relative(mine.loss, other.loss) <= 1e-5
    through_disk(theirs, SegformerForImageClassification, tmp_path / "back")


def test_encoder_equals_transformers(tiny_config, randomize, tmp_path):
    ours = randomize(SegformerModel(tiny_config(reshape_last_stage=False))).eval()
    theirs = through_disk(ours, stock.SegformerModel, tmp_path).eval()
    pixel_values = torch.randn(2, 3, 70, 50)
    with torch.inference_mode():
        mine, other = ours(pixel_values), theirs(pixel_values)
        as_tuple = ours(pixel_values, return_dict=False)
    assert relative(mine.last_hidden_state, other.last_hidden_state) <= 1e-5
    assert torch.equal(as_tuple[0], mine.last_hidden_state)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (97, 131)], ids=str)
def test_flat_last_stage_works_at_any_size(size, tiny_config, randomize):
    # The built-in takes the root of the channels for the side of the map here.
    flat = randomize(SegformerForSemanticSegmentation(tiny_config(reshape_last_stage=False))).eval()
    maps = randomize(SegformerForSemanticSegmentation(tiny_config())).eval()
    pixel_values = torch.randn(2, 3, *size)
    with torch.inference_mode():
        assert torch.equal(flat(pixel_values).logits, maps(pixel_values).logits)
        assert flat.segformer(pixel_values).last_hidden_state.ndim == 3


def test_fully_ignored_batch_has_zero_loss_and_gradients(tiny_config, randomize):
    model = randomize(SegformerForSemanticSegmentation(tiny_config())).train()
    loss = model(torch.randn(2, 3, 64, 64), labels=torch.full((2, 64, 64), 255)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_binary_loss_averages_over_valid_pixels(tiny_config, randomize):
    model = randomize(SegformerForSemanticSegmentation(tiny_config(num_labels=1))).eval()
    pixel_values = torch.randn(2, 3, 64, 64)
    labels = torch.randint(0, 2, (2, 64, 64))
    labels[:, 10:] = 255
    with torch.inference_mode():
        outputs = model(pixel_values, labels=labels)
    scores = nn.functional.interpolate(outputs.logits, size=(64, 64), mode="bilinear")[:, 0, :10]
    expected = nn.functional.binary_cross_entropy_with_logits(scores, labels[:, :10].float())
    assert torch.allclose(outputs.loss, expected, rtol=1e-5)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(attn_implementation, tiny_config, randomize, tmp_path):
    model = randomize(SegformerForSemanticSegmentation(tiny_config())).eval()
    model.save_pretrained(tmp_path)
    other = SegformerForSemanticSegmentation.from_pretrained(tmp_path, attn_implementation=attn_implementation).eval()
    assert other.config._attn_implementation == attn_implementation
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        shown = other(pixel_values, output_attentions=True)
        assert relative(other(pixel_values).logits, model(pixel_values).logits) <= 1e-5
    assert len(shown.attentions) == 5
    for weights in shown.attentions:
        assert torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-5)


def test_tuple_outputs_and_config_defaults(tiny_config, randomize):
    model = randomize(SegformerForSemanticSegmentation(tiny_config(output_hidden_states=True))).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        outputs = model(pixel_values)
        as_tuple = model(pixel_values, return_dict=False)
    assert len(outputs.hidden_states) == 4
    assert torch.equal(as_tuple[0], outputs.logits)
    assert len(as_tuple[1]) == 4


def test_gradient_checkpointing_changes_nothing(tiny_config, randomize):
    model = randomize(SegformerForSemanticSegmentation(tiny_config(drop_path_rate=0.3))).double()
    plain = gradients_of_five_classes(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    checkpointed = gradients_of_five_classes(model)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], rtol=1e-9, atol=1e-12), name


def gradients_of_five_classes(model):
    generator = torch.Generator().manual_seed(3)
    pixel_values = torch.randn(2, 3, 48, 64, generator=generator).to(next(model.parameters()).dtype)
    torch.manual_seed(11)
    model.train()(pixel_values, labels=torch.randint(0, 5, (2, 48, 64), generator=generator)).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, tiny_config, randomize):
    model = randomize(SegformerForSemanticSegmentation(tiny_config())).train()
    pixel_values, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(pixel_values, labels=labels)
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    with torch.inference_mode():
        model.eval()
        full = model(pixel_values).logits
        with torch.autocast("cpu", dtype=dtype):
            half = model(pixel_values).logits
    assert half.dtype == dtype
    assert relative(half.float(), full) < 0.05


def test_bfloat16_is_no_less_accurate_than_the_builtin(randomize, tmp_path):
    ours = randomize(SegformerForSemanticSegmentation(SegformerConfig.for_variant("b0", num_labels=7))).eval()
    theirs = through_disk(ours, stock.SegformerForSemanticSegmentation, tmp_path).eval()
    pixel_values = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = theirs.double()(pixel_values.double()).logits
        errors = [
            (model.to(torch.bfloat16)(pixel_values.bfloat16()).logits.double() - exact).pow(2).mean().sqrt()
            for model in (ours, theirs)
        ]
    # Two ways to round: over images and instruction sets the ratio was seen to lie between 0.96 and 1.13.
    assert errors[0] <= 1.25 * errors[1]


@pytest.mark.parametrize("conv_width", [None, 20], ids=["mlp", "conv"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_compiles_to_one_graph(conv_width, training, tiny_config, randomize):
    config = tiny_config(conv_decoder_hidden_size=conv_width, classifier_dropout_prob=0.0, drop_path_rate=0.0)
    model = randomize(SegformerForSemanticSegmentation(config)).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    pixel_values, labels = torch.randn(2, 3, 50, 70), torch.randint(0, 5, (2, 50, 70))
    eager, graph = model(pixel_values, labels=labels), compiled(pixel_values, labels=labels)
    assert relative(graph.logits, eager.logits) <= 1e-5
    assert relative(graph.loss, eager.loss) <= 1e-5
    graph.loss.backward()
    assert model.decode_head.linear_fuse.weight.grad.abs().max() > 0


@pytest.mark.long
@pytest.mark.parametrize("conv_width", [None, 20], ids=["mlp", "conv"])
def test_onnx_export_with_dynamic_size(conv_width, tiny_config, randomize, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = randomize(SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=conv_width))).eval()
    dynamic = {"pixel_values": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    options = {"dynamo": True, "dynamic_shapes": dynamic, "input_names": ["pixel_values"], "output_names": ["logits"]}
    torch.onnx.export(model, (torch.randn(2, 3, 64, 96),), tmp_path / "model.onnx", verbose=False, **options)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 50, 77), (3, 3, 129, 64)):
        pixel_values = torch.randn(shape)
        (logits,) = session.run(None, {"pixel_values": pixel_values.numpy()})
        assert relative(torch.from_numpy(logits), model(pixel_values).logits) <= 1e-4


@pytest.mark.parametrize("num_channels", [1, 2, 4, 6, 7])
@pytest.mark.parametrize("auto", [False, True], ids=["class", "auto"])
def test_pretrained_filters_are_inflated(num_channels, auto, tiny_config, randomize, tmp_path):
    from transformers import AutoModelForSemanticSegmentation

    model = randomize(SegformerForSemanticSegmentation(tiny_config())).eval()
    model.save_pretrained(tmp_path)
    loader = AutoModelForSemanticSegmentation if auto else SegformerForSemanticSegmentation
    wide = loader.from_pretrained(tmp_path, num_channels=num_channels).eval()
    assert wide.config.num_channels == num_channels
    grey = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        expected = model(grey.expand(-1, 3, -1, -1)).logits
        assert relative(wide(grey.expand(-1, num_channels, -1, -1)).logits, expected) <= 1e-5
    through_disk(wide, SegformerForSemanticSegmentation, tmp_path / "wide")
    given = SegformerForSemanticSegmentation.from_pretrained(tmp_path, config=tiny_config(num_channels=num_channels))
    assert torch.equal(
        given.segformer.encoder.patch_embeddings[0].proj.weight, wide.segformer.encoder.patch_embeddings[0].proj.weight
    )


def test_other_label_set(tiny_config, randomize, tmp_path):
    randomize(SegformerForSemanticSegmentation(tiny_config())).save_pretrained(tmp_path)
    model, info = SegformerForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {
        "decode_head.classifier.weight",
        "decode_head.classifier.bias",
    }
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 9, 8, 8)


def test_wrong_input_is_named(tiny_config):
    model = SegformerForSemanticSegmentation(tiny_config())
    with pytest.raises(ValueError, match=r"num_channels=3.*\(1, 4, 32, 32\)"):
        model(torch.randn(1, 4, 32, 32))
    with pytest.raises(ValueError, match=r"num_channels=3.*\(3, 32, 32\)"):
        model(torch.randn(3, 32, 32))
    with pytest.raises(ValueError, match="num_channels must be >= 1, got 0"):
        model.resize_num_channels(0)


def test_both_epsilons_reach_their_norms(tiny_config):
    model = SegformerForSemanticSegmentation(tiny_config(block_norm_eps=1e-6, embed_norm_eps=1e-3))
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            block = "layer_norm_" in name or name.startswith("segformer.encoder.layer_norm")
            assert module.eps == (1e-6 if block else 1e-3), name


def test_backbone(tiny_config, randomize, tmp_path):
    from transformers import AutoBackbone

    model = randomize(SegformerForSemanticSegmentation(tiny_config())).eval()
    model.save_pretrained(tmp_path)
    backbone = SegformerBackbone.from_pretrained(tmp_path, out_features=["stage2", "stage4"]).eval()
    assert backbone.channels == [16, 32]
    pixel_values = torch.randn(2, 3, 70, 90)
    with torch.inference_mode():
        maps = backbone(pixel_values).feature_maps
        expected = model(pixel_values, output_hidden_states=True).hidden_states
    assert len(maps) == 2
    assert torch.equal(maps[0], expected[1])
    assert torch.equal(maps[1], expected[3])
    by_index = SegformerBackbone.from_pretrained(tmp_path, out_indices=[0, 1])
    assert by_index.out_features == ["stage1", "stage2"]
    assert type(AutoBackbone.from_config(by_index.config)) is SegformerBackbone

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Configuration: validation, interchange with `transformers`, published variants."""

import json
import logging

import pytest
from transformers import AutoConfig
from transformers.models.segformer.configuration_segformer import SegformerConfig as StockConfig

from hf_segformer import VARIANTS, SegformerConfig


def test_defaults_equal_those_of_transformers():
    ours, stock = SegformerConfig().to_dict(), StockConfig().to_dict()
    assert {name: ours.get(name) for name in stock} == stock


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_variants_round_trip(variant, tmp_path):
    config = SegformerConfig.for_variant(variant, num_labels=19)
    config.save_pretrained(tmp_path)
    loaded = SegformerConfig.from_pretrained(tmp_path)
    assert list(loaded.depths) == list(VARIANTS[variant]["depths"])
    assert loaded.num_labels == 19
    assert StockConfig.from_pretrained(tmp_path).decoder_hidden_size == VARIANTS[variant]["decoder_hidden_size"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [1, 2]}, r"depths must have num_encoder_blocks=4 entries, got \[1, 2\]"),
        (
            {"num_encoder_blocks": 3, "num_hidden_layers": 4},
            "num_hidden_layers is another name of num_encoder_blocks and must not differ from it: got 4 and 3",
        ),
        ({"depths": "2222"}, r"depths.*'2222'"),
        ({"mlp_ratios": [4, 4, 0, 4]}, r"mlp_ratios must have entries >= 1, got \[4, 4, 0, 4\]"),
        ({"hidden_sizes": [32, 65, 160, 256]}, r"hidden_sizes must be multiples of num_attention_heads"),
        ({"drop_path_rate": 1.5}, r"drop_path_rate must be in \[0, 1\), got 1.5"),
        ({"num_channels": 0}, r"num_channels must be >= 1, got 0"),
        ({"num_channels": "3"}, r"num_channels.*'3'"),
        ({"block_norm_eps": 0.0}, r"block_norm_eps must be > 0, got 0.0"),
        ({"hidden_act": "gleu"}, r"hidden_act must be one of .*, got 'gleu'"),
        ({"classifier_dropout_mode": "row"}, r"classifier_dropout_mode must be 'element' or 'channel', got 'row'"),
        ({"conv_decoder_hidden_size": 256}, r"exactly one of decoder_hidden_size and conv_decoder_hidden_size"),
        ({"decoder_hidden_size": None}, r"exactly one of decoder_hidden_size and conv_decoder_hidden_size"),
        ({"decoder_hidden_size": 0}, r"decode head's width must be >= 1, got 0"),
        ({"out_features": ["stage9"]}, r"stage9"),
    ],
)
def test_bad_fields_are_value_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        SegformerConfig(**fields)


def test_errors_name_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer", "depths": [1, 2]}))
    for load in (SegformerConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=f"depths must have .*{tmp_path.name}"):
            load(tmp_path)


def test_overrides_are_checked_against_the_file(tmp_path):
    SegformerConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="depths must have num_encoder_blocks=4"):
        SegformerConfig.from_pretrained(tmp_path, depths=[1, 2])


def test_assignment_is_checked():
    config = SegformerConfig()
    with pytest.raises(ValueError, match="num_channels"):
        config.num_channels = "four"


def test_misspelt_keywords_are_reported(caplog):
    logger = logging.getLogger("transformers")
    propagate, logger.propagate = logger.propagate, True
    try:
        SegformerConfig(hidden_size=[1, 2], dephts=[2, 2, 2, 2], downsampling_rates=[1, 4, 8, 16])
    finally:
        logger.propagate = propagate
    for wrong, right in (("dephts", "depths"), ("hidden_size", "hidden_sizes")):
        assert f"no field '{wrong}', so it has no effect. Did you mean '{right}'?" in caplog.text
    assert "downsampling_rates" not in caplog.text


def test_published_hub_file(shared_data):
    (path,) = sorted((shared_data / "hub_configs").glob("*/config.json"))
    config = SegformerConfig.from_pretrained(path)
    assert config.num_labels == 150
    assert config.id2label[0] == "wall"
    # The file's layer_norm_eps is what nobody computed with.
    assert config.layer_norm_eps == 1e-6
    assert config.block_norm_eps == config.embed_norm_eps == 1e-5


def test_variant_with_the_convolutional_head():
    config = SegformerConfig.for_variant("b3", conv_decoder_hidden_size=256)
    assert (config.decoder_hidden_size, config.conv_decoder_hidden_size) == (None, 256)
    with pytest.raises(ValueError, match=r"variant must be one of .*'b9'"):
        SegformerConfig.for_variant("b9")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_labels": 1},
        {"depths": (1, 2, 1, 1), "palette": [(0, 0, 0), (9, 8, 7)], "id2label": {"0": "a", "1": "b"}},
        {"out_indices": (-3, -1), "dtype": "bfloat16", "architectures": ["SegformerBackbone"]},
        {"conv_decoder_hidden_size": 64, "decoder_hidden_size": None, "num_channels": 4, "output_hidden_states": True},
        {"a_field_of_someone_else": {"x": (1, 2)}, "problem_type": "regression"},
    ],
    ids=str,
)
def test_what_is_read_equals_what_was_written(fields, tmp_path):
    config = SegformerConfig(**fields)
    config.save_pretrained(tmp_path)
    loaded, auto = SegformerConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert loaded == config and auto == config
    assert loaded.to_dict() == config.to_dict()
    assert loaded.to_diff_dict() == auto.to_diff_dict() == config.to_diff_dict()
    assert loaded.to_json_string() == config.to_json_string()
    # Where a configuration comes from, each way of reading says or does not say as in transformers.
    if fields.get("conv_decoder_hidden_size") is None:
        assert loaded.name_or_path == StockConfig.from_pretrained(tmp_path).name_or_path == ""
    assert auto.name_or_path == str(tmp_path)
    loaded.initializer_range = 0.5
    assert loaded != config and config != StockConfig()

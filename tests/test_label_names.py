# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables of label names, as they occur in files and calls: as many outputs as in `transformers`, each with a name."""

import copy
import json
import pickle

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.models.segformer.configuration_segformer import SegformerConfig as StockConfig

from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation

# Table, names of the outputs, names that no output has. The number of outputs is asked of transformers.
TABLES = {
    "plain": ({0: "a", 1: "b", 2: "c"}, ["a", "b", "c"], {}),
    "strings": ({"0": "a", "1": "b"}, ["a", "b"], {}),
    "key 255 for ignored pixels": ({0: "a", 1: "b", 255: "ignore"}, ["a", "b", "LABEL_2"], {255: "ignore"}),
    "key 255 as a string": ({"255": "ignore", "0": "a"}, ["a", "LABEL_1"], {255: "ignore"}),
    "from one": ({1: "a", 2: "b", 3: "c"}, ["LABEL_0", "a", "b"], {3: "c"}),
    "gaps": ({0: "a", 2: "b", 7: "c"}, ["a", "LABEL_1", "b"], {7: "c"}),
    "negative": ({-1: "void", 0: "a"}, ["a", "LABEL_1"], {-1: "void"}),
    "any order": ({2: "c", 0: "a", 1: "b"}, ["a", "b", "c"], {}),
    "repeated names": ({0: "a", 1: "a", 2: "b"}, ["a", "a", "b"], {}),
    "one": ({0: "a"}, ["a"], {}),
    "one, from one": ({1: "a"}, ["LABEL_0"], {1: "a"}),
    "numbers for names": ({0: 7, 1: 9}, ["7", "9"], {}),
    "no name": ({0: None, 1: "b"}, ["LABEL_0", "b"], {}),
    "empty": ({}, [], {}),
}


def entries(folder, config_class, **fields):
    """Configurations that got the fields in every way there is."""
    yield "constructor", config_class(**fields)
    yield "dictionary", config_class.from_dict({"model_type": "segformer", **fields})
    config_class(num_labels=4).save_pretrained(folder)
    yield "keyword", config_class.from_pretrained(folder, **fields)
    assigned = config_class(num_labels=4)
    for name, value in fields.items():
        setattr(assigned, name, value)
    yield "assignment", assigned
    (folder / "config.json").write_text(json.dumps({"model_type": "segformer", **plain_json(fields)}))
    yield "file", config_class.from_pretrained(folder)


def plain_json(fields):
    return {
        name: {str(key): value for key, value in field.items()} if isinstance(field, dict) else field
        for name, field in fields.items()
    }


@pytest.mark.parametrize("title", TABLES)
def test_outputs_bear_the_names_of_their_keys(title, tmp_path, caplog):
    table, names, dropped = TABLES[title]
    counts = {entry: config.num_labels for entry, config in entries(tmp_path, StockConfig, id2label=table)}
    assert set(counts.values()) == {len(names)}
    before = copy.deepcopy(table)
    for entry, config in entries(tmp_path, SegformerConfig, id2label=table):
        told = [record.getMessage() for record in caplog.records if "id2label" in record.getMessage()]
        caplog.clear()
        assert config.num_labels == counts[entry]
        assert config.id2label == dict(enumerate(names)), entry
        assert config.label2id == {name: label for label, name in enumerate(names)}, entry
        assert len(told) == bool(dropped), (entry, told)
        assert all(repr(dropped) in message for message in told), (entry, told)
        # What is saved needs no repair, here or there.
        config.save_pretrained(tmp_path / "saved")
        for loaded in (
            SegformerConfig.from_pretrained(tmp_path / "saved"),
            AutoConfig.from_pretrained(tmp_path / "saved"),
        ):
            assert loaded == config
        stock = StockConfig.from_pretrained(tmp_path / "saved")
        assert (stock.id2label, stock.label2id) == (config.id2label, config.label2id)
        assert not [record for record in caplog.records if "SegformerConfig" in record.getMessage()]
    assert table == before


@pytest.mark.parametrize(
    ("fields", "names", "disagrees"),
    [
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}, ["a", "b"], None),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": "0", "b": "1"}}, ["a", "b"], None),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"b": 0, "a": 1}}, ["a", "b"], "{'b': 0, 'a': 1}"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "c": 1}}, ["a", "b"], "{'c': 1}"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0}}, ["a", "b"], None),
        ({"id2label": {0: "a", 1: "b"}, "label2id": None}, ["a", "b"], None),
        ({"id2label": {0: "a", 1: "a"}, "label2id": {"a": 0}}, ["a", "a"], None),
        ({"label2id": {"a": 0, "b": 1, "c": 2}}, ["LABEL_0", "LABEL_1"], "{'a': 0, 'b': 1}"),
        ({"id2label": None, "label2id": None}, ["LABEL_0", "LABEL_1"], None),
        ({"num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"], None),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, ["LABEL_0", "LABEL_1", "LABEL_2"], None),
    ],
    ids=str,
)
def test_label2id_follows(fields, names, disagrees, tmp_path, caplog):
    assert StockConfig(**fields).num_labels == len(names)
    caplog.clear()
    config = SegformerConfig(**fields)
    told = [record.getMessage() for record in caplog.records if "label2id" in record.getMessage()]
    assert len(told) == (disagrees is not None) and all(f"said {disagrees}, but" in message for message in told)
    assert config.id2label == dict(enumerate(names))
    assert set(config.label2id) == set(names)
    assert all(config.id2label[label] == name for name, label in config.label2id.items())
    config.save_pretrained(tmp_path)
    assert SegformerConfig.from_pretrained(tmp_path) == config


def test_tables_changed_in_place_are_put_right_when_saved(tmp_path, caplog):
    config = SegformerConfig(num_labels=2)
    config.id2label[255] = "ignore"
    config.save_pretrained(tmp_path)
    assert config.id2label == SegformerConfig.from_pretrained(tmp_path).id2label
    assert list(config.id2label.values()) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert caplog.text.count("ignore") == 1
    config.id2label[1] = "road"
    config.save_pretrained(tmp_path)
    assert SegformerConfig.from_pretrained(tmp_path).label2id == {"LABEL_0": 0, "road": 1, "LABEL_2": 2}


def test_later_assignments():
    for order in (("id2label", "label2id"), ("label2id", "id2label")):
        config, values = SegformerConfig(num_labels=3), {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
        for name in order:
            setattr(config, name, values[name])
        assert (config.id2label, config.label2id) == (values["id2label"], values["label2id"])
    config.id2label = {np.int64(1): "b", np.uint8(0): "a"}  # written as JSON by nobody else
    assert json.loads(config.to_json_string())["id2label"] == {"0": "a", "1": "b"}
    config.num_labels = 1
    assert (config.id2label, config.label2id) == ({0: "LABEL_0"}, {"LABEL_0": 0})


def test_keywords_of_a_model(tiny_config, tmp_path, caplog):
    SegformerForSemanticSegmentation(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    table = {"0": "road", "1": "kerb", "255": "ignore"}
    for loader in (SegformerForSemanticSegmentation, AutoModelForSemanticSegmentation):
        caplog.clear()
        model, info = loader.from_pretrained(tmp_path, id2label=table, num_labels=3, output_loading_info=True)
        assert not any(info.values())
        assert model.config.id2label == {0: "road", 1: "kerb", 2: "LABEL_2"}
        assert caplog.text.count("'ignore'") == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": {"road": 0}}, r"id2label must have integers as keys, got 'road'"),
        ({"id2label": {0.5: "road"}}, r"id2label must have integers as keys, got 0\.5"),
        ({"id2label": ["road", "kerb"]}, r"id2label must map ids to names, got \['road', 'kerb'\]"),
        ({"num_labels": None}, r"num_labels must be an integer >= 0, got None"),
        ({"num_labels": -1}, r"num_labels must be an integer >= 0, got -1"),
        ({"num_labels": "3"}, r"num_labels must be an integer >= 0, got '3'"),
    ],
    ids=str,
)
def test_what_is_no_table(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SegformerConfig(**fields)
    config = SegformerConfig()
    with pytest.raises(ValueError, match=message):
        setattr(config, *next(iter(fields.items())))
    assert config == SegformerConfig()
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{message}.*{tmp_path.name}"):
        SegformerConfig.from_pretrained(tmp_path, **fields)


def test_copies_keep_the_names(tiny_config):
    for labels in (1, 3):
        config = SegformerForSemanticSegmentation(tiny_config(num_labels=labels)).config
        for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), SegformerConfig(**config.to_dict())):
            assert other == config
            assert other.class_names == config.class_names

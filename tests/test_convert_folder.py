# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a converted folder holds besides weights, the command line, and that nothing is left behind on failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.checkpoints.conversion import convert_checkpoint, new_folder
from hf_segformer.cli import COMMANDS
from hf_segformer.data import ade20k, cityscapes
from nvlabs_network import images, nvlabs_weights

CONVERT = Path(__file__).resolve().parent.parent / "conversion" / "convert.py"


def logits_of(folder):
    with torch.no_grad():
        return AutoModelForSemanticSegmentation.from_pretrained(folder).double().eval()(images).logits


@pytest.fixture
def small(tmp_path):
    """Function that saves a small NVlabs file and returns its path."""

    def save(num_labels=150, meta=None, depths=(1, 1, 1, 1), name="model.pth"):
        weights = nvlabs_weights([32, 64, 160, 256], depths, 16, num_labels)
        torch.save({"state_dict": weights, "meta": meta or {}}, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize(
    "name, table, edges", [("ade20k", ade20k, (512, 2048)), ("cityscapes", cityscapes, (1024, 2048))]
)
def test_dataset_names_classes_and_protocol(name, table, edges, small, tmp_path):
    path = small(len(table.CLASS_NAMES))
    convert_checkpoint(path, tmp_path / "out", dataset=name)
    config, processor = (auto.from_pretrained(tmp_path / "out") for auto in (AutoConfig, SegformerImageProcessor))
    assert tuple(config.id2label.values()) == table.CLASS_NAMES and tuple(map(tuple, config.palette)) == table.PALETTE
    assert config.label2id[table.CLASS_NAMES[-1]] == len(table.CLASS_NAMES) - 1
    assert dict(processor.size) == {"shortest_edge": edges[0], "longest_edge": edges[1]}
    assert processor.do_reduce_labels == (name == "ade20k")
    assert processor.size_divisor == (32 if name == "ade20k" else None)
    with pytest.raises(ValueError, match=f"'{name}' has {len(table.CLASS_NAMES)} classes, the weights have 7"):
        convert_checkpoint(small(7, name="other.pth"), tmp_path / "never", dataset=name)
    assert not (tmp_path / "never").exists()


def test_classes_agree_with_published_tables(shared_data):
    import csv

    hub = shared_data / "hub_configs" / "Xenova_segformer-b0-finetuned-ade-512-512" / "config.json"
    labels = json.loads(hub.read_text())["id2label"]
    assert tuple(labels[str(label)].strip() for label in range(150)) == ade20k.CLASS_NAMES
    with open(shared_data / "ade20k" / "object150_info.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, name in zip(rows, ade20k.CLASS_NAMES, strict=True):
        words = row["Name"].split(";")  # the published table separates words and synonyms alike
        assert words[0] == name.split()[0] and set(name.split()) <= set(words)
    assert len(ade20k.PALETTE) == 150 and len(set(ade20k.PALETTE)) == 149
    assert len(set(cityscapes.PALETTE)) == len(set(cityscapes.CLASS_NAMES)) == 19


def test_b5_of_ade20k_was_made_for_640_pixels():
    import hf_segformer.checkpoints.conversion as conversion
    from hf_segformer.checkpoints.files import Checkpoint
    from hf_segformer.checkpoints.layouts import ConversionReport

    for variant, scale, edges in (
        ("b5", None, (640, 2048)),
        ("b5", (2048, 512), (512, 2048)),
        ("b4", None, (512, 2048)),
    ):
        report = ConversionReport("nvlabs", "hf4", variant=variant, head="mlp")
        checkpoint = Checkpoint({}, image_scale=scale)
        processor = conversion._image_processor(checkpoint, report, "ade20k")
        assert dict(processor.size) == {"shortest_edge": edges[0], "longest_edge": edges[1]}


def test_metadata_that_does_not_fit_is_reported(small, tmp_path):
    report = convert_checkpoint(small(7, {"CLASSES": ["a", "b"], "PALETTE": [[0, 0, 0], [1, 1, 1]]}), tmp_path / "out")
    assert "2 class names in the metadata ignored, the head has 7" in str(report)
    assert AutoConfig.from_pretrained(tmp_path / "out").num_labels == 7
    assert "no evaluation protocol known" in str(report)


def test_configuration_beside_the_weights_is_kept(tiny_config, randomize, tmp_path):
    names = {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}
    config = tiny_config(
        id2label=names, hidden_act="relu", drop_path_rate=0.3, block_norm_eps=1e-6, palette=[[9, 9, 9]] * 5
    )
    randomize(SegformerForSemanticSegmentation(config)).save_pretrained(tmp_path / "model")
    settings = {"image_processor_type": "SegformerFeatureExtractor", "size": 384, "reduce_labels": True}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    convert_checkpoint(tmp_path / "model", tmp_path / "out")
    kept = AutoConfig.from_pretrained(tmp_path / "out")
    for name in ("hidden_act", "drop_path_rate", "block_norm_eps", "num_attention_heads", "id2label", "palette"):
        assert getattr(kept, name) == getattr(config, name), name
    processor = SegformerImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == {"height": 384, "width": 384} and processor.do_reduce_labels
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(tmp_path / "model"))


def test_half_precision_stays(small, tmp_path):
    path = small()
    content = torch.load(path)
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in content["state_dict"].items()}
    torch.save(half, path)
    assert convert_checkpoint(path, tmp_path / "out").dtype == "bfloat16"
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_hub_id_from_the_cache(small, tmp_path, monkeypatch):
    """The real client, finding the model in its cache without network."""
    convert_checkpoint(small(), tmp_path / "ours", dataset="ade20k")
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--someone--segformer"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (tmp_path / "ours").rename(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    report = convert_checkpoint("someone/segformer", tmp_path / "out")
    assert (report.source, report.head) == ("hf4", "mlp")
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label[0] == "wall"


def run_command(*arguments):
    command = [sys.executable, "-W", "ignore", str(CONVERT), *map(str, arguments)]
    environment = {"PYTHONPATH": str(CONVERT.parent.parent), "HF_HUB_OFFLINE": "1", "PATH": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_command_line(small, tmp_path, capsys):
    path = small()
    result = run_command(path, tmp_path / "deep" / "out", "--dataset", "ade20k")
    assert result.returncode == 0, result.stderr
    for words in ("NVlabs/SegFormer -> transformers", "150 classes", "renamed", "split", "2 dropped", "linear_pred"):
        assert words in result.stdout
    assert sorted(file.name for file in (tmp_path / "deep" / "out").iterdir()) == [
        "config.json",
        "conversion.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    record = json.loads((tmp_path / "deep" / "out" / "conversion.json").read_text())
    assert record["source"] == "nvlabs" and record["file"] == "model.pth"
    assert len(record["sha256"]["model.pth"]) == 64
    content = torch.load(path)
    content["state_dict"]["backbone.extra.weight"] = torch.zeros(2)
    torch.save(content, path)
    main = COMMANDS["convert"].run
    assert main([str(path), str(tmp_path / "never")]) == 2
    assert "error: " in (message := capsys.readouterr().err) and "no place for backbone.extra.weight" in message
    assert main([str(path), str(tmp_path / "dropped"), "--drop", "backbone.extra."]) == 0
    assert "asked for: backbone.extra.weight" in capsys.readouterr().out


class Attack:
    """Makes a file when it is unpickled without protection."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("to", [None, "mmseg", "nvlabs"])
def test_nothing_is_left_behind(to, small, tmp_path, monkeypatch):
    path = small()
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "precious.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    content = torch.load(path)
    content["state_dict"]["backbone.norm2.weight"][3] = float("nan")
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth: .*not finite: backbone\.norm2\.weight"):
        convert_checkpoint(path, tmp_path / "out", to=to)
    with pytest.raises(ValueError, match="exists and is not empty"):
        convert_checkpoint(path, occupied, to=to)
    with pytest.raises(ValueError, match="dataset must be one of"):
        convert_checkpoint(path, tmp_path / "out", dataset="ade", to=to)
    with pytest.raises(ValueError, match="to must be one of"):
        convert_checkpoint(path, tmp_path / "out", to="b0")
    assert sorted(tmp_path.rglob("*")) == before

    content["state_dict"]["backbone.norm2.weight"][3] = 1.0
    whole = torch.save({**content, "attack": Attack(tmp_path / "ran")}, path) or path.read_bytes()
    for harmful, message in ((whole, "system.*not read"), (whole[:-1000], "is damaged"), (b"", "is damaged")):
        path.write_bytes(harmful)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(path, tmp_path / "out", to=to)
    assert sorted(tmp_path.rglob("*")) == before

    small()

    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file" if to is None else "torch.save", full)
    with pytest.raises(ValueError if to == "mmseg" else OSError):
        convert_checkpoint(path, tmp_path / "a" / "b" / "out", to=to)
    assert sorted(tmp_path.rglob("*")) == before


def test_new_folder_takes_the_place_of_an_empty_one(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        assert not list((tmp_path / "out").iterdir())
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "file"]
    (tmp_path / "ordinary").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode

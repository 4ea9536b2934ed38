# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Key tables, detection and conversion of state dicts, and safe reading of checkpoint files."""

import json
import os
import pickle
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from hf_segformer import VARIANTS, SegformerConfig
from hf_segformer.checkpoints.files import Checkpoint, read_checkpoint
from hf_segformer.checkpoints.layouts import HEADS, LAYOUTS, Split
from hf_segformer.checkpoints.network import convert_state_dict, detect_layout, export_state_dict, model_class_for

PAIRS = [(layout, head) for layout in LAYOUTS for head in LAYOUTS[layout].heads]
HEAD_FIELDS = {"conv": {"conv_decoder_hidden_size": 20, "decoder_hidden_size": None}}
# The tiny network's heads are not the published ones, and weights do not show them.
TINY_HEADS = {"num_attention_heads": [1, 2, 3, 4]}


@pytest.fixture
def make_state(tiny_config, randomize):
    """Function that gives a tiny network's state dict in a layout, made by our modules and exported."""

    def make(layout, head, seed=0):
        config = tiny_config(**HEAD_FIELDS.get(head, {}))
        ours = randomize(model_class_for(head)(config), seed).state_dict()
        return ours, export_state_dict(ours, layout, config=TINY_HEADS)[0]

    return make


def convert(state_dict, **options):
    return convert_state_dict(state_dict, config=TINY_HEADS, **options)


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_are_one_to_one(layout):
    targets = []
    for table in (LAYOUTS[layout].encoder, LAYOUTS[layout].head):
        for ours in table.values():
            targets += list(ours) if isinstance(ours, Split) else [str(ours)]
    assert len(targets) == len(set(targets))
    assert {name for name in targets if name.startswith("encoder.")} == set(LAYOUTS["hf4"].encoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout, head", PAIRS, ids=map("-".join, PAIRS))
def test_round_trip_is_bit_exact(layout, head, dtype, make_state):
    ours, theirs = make_state(layout, head)
    theirs = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in theirs.items()}
    converted, report = convert(theirs)
    assert (report.source, report.head, report.dtype) == (layout, head, str(dtype).removeprefix("torch."))
    assert report.taken == len(theirs) and not report.dropped
    assert_same_bits(export_state_dict(converted, layout, config=TINY_HEADS)[0], theirs)
    assert_same_bits(converted, {k: v.to(dtype) if v.is_floating_point() else v for k, v in ours.items()})


@pytest.mark.parametrize(
    "variant, head",
    [("b0", head) for head in HEADS] + [(v, head) for v in VARIANTS for head in ("mlp", "conv") if v != "b0"],
)
def test_variant_is_recognised_from_shapes(variant, head):
    conv = {"conv_decoder_hidden_size": 256} if head == "conv" else {}
    config = SegformerConfig.for_variant(variant, num_labels=150, num_channels=4, **conv)
    with torch.device("meta"):
        shapes = model_class_for(head)(config).state_dict()
    # Every tensor is one number of its own, so that the largest network takes no memory and a swap would show.
    ours = {name: torch.tensor(float(i)).expand(tensor.shape) for i, (name, tensor) in enumerate(shapes.items())}
    ours = {n: t.long() if shapes[n].dtype == torch.int64 else t for n, t in ours.items()}
    for layout in ("mmseg",) if head == "conv" else ("nvlabs", "smp") if variant + head == "b0mlp" else ("nvlabs",):
        theirs, written = export_state_dict(ours, layout)
        converted, report = convert_state_dict(theirs)
        assert (report.source, report.variant, report.head) == (layout, variant, head)
        assert written.variant == variant and not report.notes
        assert converted.keys() == ours.keys()
        assert all(torch.equal(converted[name], ours[name]) for name in ours)
        rebuilt = SegformerConfig(**report.architecture)
        assert (rebuilt.num_channels, rebuilt.num_labels) == (4, config.num_labels if head != "none" else 2)
        for name in (
            "depths",
            "hidden_sizes",
            "sr_ratios",
            "patch_sizes",
            "strides",
            "mlp_ratios",
            "num_attention_heads",
        ):
            assert list(getattr(rebuilt, name)) == list(getattr(config, name))
        for name in ("decoder_hidden_size", "conv_decoder_hidden_size"):
            assert getattr(rebuilt, name) == getattr(config, name)


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.model."])
@pytest.mark.parametrize("layout, head", PAIRS, ids=map("-".join, PAIRS))
def test_wrappers_are_taken_off(layout, head, wrapper, make_state):
    ours, theirs = make_state(layout, head)
    wrapped = {wrapper + name: tensor for name, tensor in theirs.items()}
    assert detect_layout(wrapped) == (layout, wrapper, ())
    converted, report = convert(wrapped)
    assert report.wrapper == wrapper
    assert_same_bits(converted, ours)


@pytest.mark.parametrize("layout, head", [("nvlabs", "mlp"), ("mmseg", "conv"), ("hf4", "mlp"), ("smp", "mlp")])
def test_averaged_weights_beside_the_others(layout, head, make_state):
    ours, theirs = make_state(layout, head)
    averaged_ours, averaged = make_state(layout, head, seed=1)
    both = {**theirs, **{f"ema_model.module.{name}": tensor for name, tensor in averaged.items()}}
    both["ema_model.n_averaged"] = torch.tensor(7)
    for ema, wanted in ((False, ours), (True, averaged_ours)):
        converted, report = convert(both, ema=ema)
        assert_same_bits(converted, wanted)
        assert len(report.dropped) == len(theirs) + 1
    # mmcv 1.x keeps the raw weights as buffers of the network itself.
    mmcv = {**theirs, **{"ema_" + name.replace(".", "_"): tensor for name, tensor in averaged.items()}}
    converted, report = convert(mmcv)
    assert_same_bits(converted, ours)
    assert len(report.dropped) == len(theirs) and "EMAHook" in str(report)


def test_two_networks_are_ambiguous(make_state):
    _, theirs = make_state("nvlabs", "mlp")
    both = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in theirs.items()}
    with pytest.raises(ValueError, match=r"several networks.*student.*teacher"):
        convert(both)


def test_unused_classifier_of_nvlabs_is_dropped_with_a_reason(make_state):
    ours, theirs = make_state("nvlabs", "mlp")
    theirs |= {"decode_head.conv_seg.weight": torch.randn(5, 128, 1, 1), "decode_head.conv_seg.bias": torch.randn(5)}
    converted, report = convert(theirs)
    assert_same_bits(converted, ours)
    assert set(report.dropped) == {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    assert "linear_pred" in str(report) and "2 dropped" in str(report)


def templates(names):
    """One name for each row of a table: those that differ in numbers only are alike."""
    return list({re.sub(r"\d+", "0", name): name for name in names}.values())


@pytest.mark.parametrize(
    "layout, head", [("nvlabs", "mlp"), ("mmseg", "conv"), ("hf4", "conv"), ("hf5", "mlp"), ("smp", "mlp")]
)
def test_every_missing_or_unknown_name_stops_it(layout, head, make_state):
    _, theirs = make_state(layout, head)
    for name in templates(theirs):
        fewer = {key: tensor for key, tensor in theirs.items() if key != name}
        with pytest.raises(ValueError, match="missing: .*" + re.escape(name.removeprefix("backbone."))):
            convert(fewer)
        start, end = name.rsplit(".", 1)
        for stranger in (f"{start}x.{end}", f"{name}x", f"x{name}"):
            with pytest.raises(ValueError, match=re.escape(stranger)):
                convert(theirs | {stranger: theirs[name]})


@pytest.mark.parametrize("layout, head", PAIRS, ids=map("-".join, PAIRS))
def test_wrong_shapes_types_and_values_are_named(layout, head, make_state):
    _, theirs = make_state(layout, head)
    for name in templates(theirs):
        tensor = theirs[name]
        if tensor.ndim:
            with pytest.raises(ValueError):
                convert(theirs | {name: torch.cat([tensor, tensor[:1]])})
            with pytest.raises(ValueError):
                convert(theirs | {name: tensor.unsqueeze(0)})
        if tensor.is_floating_point():
            for value in (float("nan"), float("inf")):
                broken = tensor.clone()
                broken.view(-1)[-1] = value
                with pytest.raises(ValueError, match=f"not finite.*{re.escape(name)}"):
                    convert(theirs | {name: broken})
            with pytest.raises(ValueError, match=f"wrong types.*{re.escape(name)}"):
                convert(theirs | {name: torch.ones_like(tensor, dtype=torch.int64)})


def test_drop_leaves_out_only_what_was_asked_for(make_state):
    ours, theirs = make_state("mmseg", "conv")
    theirs |= {
        "auxiliary_head.conv_seg.weight": torch.randn(5, 8, 1, 1),
        "auxiliary_head.conv_seg.bias": torch.randn(5),
    }
    with pytest.raises(ValueError, match=r"no place for auxiliary_head\.conv_seg\.weight.*--drop"):
        convert(theirs)
    converted, report = convert(theirs, drop=["auxiliary_head."])
    assert_same_bits(converted, ours)
    assert set(report.dropped.values()) == {"asked for"}


def test_what_cannot_be_is_refused(make_state, tiny_config):
    mlp, nvlabs = make_state("nvlabs", "mlp")
    conv, _ = make_state("mmseg", "conv")
    for state_dict, layout in ((mlp, "mmseg"), (conv, "nvlabs"), (conv, "hf5"), (conv, "smp")):
        with pytest.raises(ValueError, match="has no head such as"):
            export_state_dict(state_dict, layout, config=TINY_HEADS)
    with pytest.raises(ValueError, match=r"layout must be one of .*'b0'"):
        convert_state_dict(nvlabs, "b0")
    with pytest.raises(ValueError, match="'mmseg' was asked for"):
        convert_state_dict(nvlabs, "mmseg")
    with pytest.raises(ValueError, match="num_attention_heads"):
        convert_state_dict(nvlabs)
    with pytest.raises(ValueError, match="no known SegFormer layout"):
        convert_state_dict({"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"depths=\[2, 2, 2, 2\], the weights have \[1, 2, 1, 1\]"):
        convert_state_dict(nvlabs, config={**TINY_HEADS, "depths": [2, 2, 2, 2]})
    with pytest.raises(ValueError, match="merge the adapter"):
        lora = "segformer.encoder.block.0.0.attention.self.query.lora_A.default.weight"
        convert(mlp | {lora: torch.zeros(2, 8)})


# Reading files.


class Attack:
    """Runs a command when it is unpickled without protection."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def rewrite(path, pickled, compression=zipfile.ZIP_STORED):
    """Put `pickled` in the place of a checkpoint's metadata."""
    with zipfile.ZipFile(path) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_malicious_pickle_runs_nothing(kind, make_state, tmp_path):
    _, theirs = make_state("nvlabs", "mlp")
    harmful = {"state_dict": theirs, "meta": {"CLASSES": Attack(tmp_path / "ran")}}
    path = tmp_path / "evil.pth"
    if kind == "plain":
        path.write_bytes(pickle.dumps({"meta": harmful["meta"]}))
    else:
        torch.save(harmful, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=re.escape(str(path)) + (r".*system.*not read" if kind != "plain" else "")):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    if kind != "plain":
        torch.load(path, weights_only=False)
        assert (tmp_path / "ran").exists(), "the attack itself works"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_pickle(share, legacy, make_state, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(make_state("nvlabs", "mlp")[1], path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_safetensors(share, make_state, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(make_state("hf4", "mlp")[1], path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_checkpoint(path)


def test_bombs_are_refused_unopened(tmp_path):
    def saved(name):
        torch.save({"a": torch.zeros(4)}, tmp_path / name)
        return tmp_path / name

    text = b"X" + (2**26).to_bytes(4, "little") + b"x" * 2**26
    rewrite(compressed := saved("compressed.pth"), b"\x80\x02}" + text + b"K\x01s.", zipfile.ZIP_DEFLATED)
    assert compressed.stat().st_size < 2**20
    with pytest.raises(ValueError, match="compressed entries"):
        read_checkpoint(compressed)
    # Hashing this tuple would overflow the stack and end the process.
    rewrite(nested := saved("nested.pth"), b"\x80\x02}N" + b"\x85" * 1_000_000 + b"K\x01s.")
    with pytest.raises(ValueError, match="nested"):
        read_checkpoint(nested)
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "expanded.pth")
    with pytest.raises(ValueError, match=r"a claims the shape \(1000000, 1000000\), but 4 bytes"):
        read_checkpoint(tmp_path / "expanded.pth")
    claims = zipfile.ZipFile(saved("claims.pth")).read("claims/data.pkl")
    rewrite(tmp_path / "claims.pth", claims.replace(b"K\x04t", b"K\xf0t").replace(b"K\x04\x85", b"K\xf0\x85"))
    with pytest.raises(ValueError, match=r"claims\.pth is no checkpoint or is damaged"):
        read_checkpoint(tmp_path / "claims.pth")
    torch.save({"a": torch.zeros(3), "meta": {"CLASSES": ["x" * 10**6]}}, tmp_path / "names.pth")
    with pytest.raises(ValueError, match="class names in the metadata must have at most 200"):
        read_checkpoint(tmp_path / "names.pth")


@pytest.mark.parametrize(
    "content, message",
    [
        (torch.zeros(3), "no weights by name, but Tensor"),
        ({"epoch": 3, "optimizer": {"lr": 1.0}}, "no weights by name, but keys epoch, optimizer"),
        ({"a": torch.zeros(2), "b": [1, 2]}, "b must be a tensor, got list"),
        ({"a": torch.zeros(2), 5: torch.zeros(2)}, "names of weights must be text, got 5"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a must be a dense real tensor"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a must be a dense real tensor"),
        ({"a": torch.empty(2, device="meta")}, "a must be a dense real tensor"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_what_is_no_state_dict(content, message, tmp_path):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "model.pth")


CONTAINERS = {
    "bare": lambda weights, other: weights,
    "state_dict": lambda weights, other: {
        "state_dict": weights,
        "epoch": 3,
        "optimizer": {"state": {0: torch.ones(2)}},
    },
    "model": lambda weights, other: {"model": weights, "model_ema": other, "args": None},
    "timm": lambda weights, other: {"state_dict": weights, "state_dict_ema": other},
    "nested": lambda weights, other: {"model": {"state_dict": weights}},
    "ema alone": lambda weights, other: {"ema": weights},
    "averaged": lambda weights, other: {"ema": {"n_averaged": 4, **weights}},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_containers(container, legacy, make_state, tmp_path):
    (_, weights), (_, other) = make_state("nvlabs", "mlp"), make_state("nvlabs", "mlp", seed=1)
    path = tmp_path / "model.pth"
    torch.save(CONTAINERS[container](weights, other), path, _use_new_zipfile_serialization=not legacy)
    assert_same_bits(read_checkpoint(path).state_dict, weights)
    if container in ("model", "timm"):
        assert "averaged weights" in read_checkpoint(path).notes[0]
        assert_same_bits(read_checkpoint(path, ema=True).state_dict, other)


def test_inert_metadata_is_read_around(make_state, tmp_path):
    import argparse
    import pathlib

    import numpy

    _, weights = make_state("nvlabs", "mlp")
    extra = {
        "args": argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("/tmp/x")),
        "best": numpy.float64(0.4),
        "history": numpy.arange(5.0),
        "getter": getattr,
        "meta": {"CLASSES": ("a ", "b"), "PALETTE": [[1, 2, 3], (4, 5, 255)], "config": "img_scale=(2048, 512)\n"},
    }
    torch.save({"state_dict": weights, **extra}, tmp_path / "model.pth")
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    assert checkpoint.container == "state_dict"
    assert checkpoint.class_names == ("a", "b") and checkpoint.palette == [[1, 2, 3], [4, 5, 255]]
    assert checkpoint.image_scale == (2048, 512)
    with pytest.raises(ValueError, match=r"numpy\.random"):
        torch.save({"state_dict": weights, "generator": numpy.random.default_rng()}, tmp_path / "other.pth")
        read_checkpoint(tmp_path / "other.pth")


def test_metadata_of_wrong_form_is_passed_over(make_state, tmp_path):
    _, weights = make_state("nvlabs", "mlp")
    for meta in ({"CLASSES": 3}, {"CLASSES": [1, 2]}, {"CLASSES": []}, 5, {"dataset_meta": 1, "cfg": 3}):
        torch.save({"state_dict": weights, "meta": meta}, tmp_path / "model.pth")
        checkpoint = read_checkpoint(tmp_path / "model.pth")
        assert checkpoint == Checkpoint(checkpoint.state_dict, checkpoint.files, "state_dict")
    for palette in ([[1, 2, 3]], [[1, 2], [3, 4]], [[1, 2, 300], [0, 0, 0]], [[1, 2, 0.5], [0, 0, 0]], 7):
        torch.save(
            {"state_dict": weights, "meta": {"CLASSES": ["a", "b"], "PALETTE": palette}}, tmp_path / "model.pth"
        )
        checkpoint = read_checkpoint(tmp_path / "model.pth")
        assert checkpoint.class_names == ("a", "b") and checkpoint.palette is None


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_folder(suffix, make_state, tmp_path):
    ours, _ = make_state("hf4", "mlp")
    names = sorted(ours)
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    index = {}
    for number, shard in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        part = {name: ours[name] for name in shard}
        save_file(part, tmp_path / file) if suffix == "safetensors" else torch.save(part, tmp_path / file)
        index |= dict.fromkeys(shard, file)
    path = tmp_path / f"{stem}.{suffix}.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    checkpoint = read_checkpoint(tmp_path)
    assert_same_bits(checkpoint.state_dict, ours)
    assert len(checkpoint.files) == 2

    def broken(change, message):
        path.write_text(json.dumps({"weight_map": change}))
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path)

    broken({**index, "stranger": file}, "disagree about stranger")
    broken({name: place for name, place in index.items() if name != names[0]}, f"disagree about {names[0]}")
    broken({**index, names[0]: "../outside." + suffix}, "same folder")
    broken({**index, names[0]: "/etc/passwd"}, "same folder")
    broken({**index, names[0]: f"absent.{suffix}"}, "missing: absent")
    broken([], "weight_map")
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"index\.json is no JSON file"):
        read_checkpoint(tmp_path)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"file, a folder or a Hub id.*no/such/file\.pth"):
        read_checkpoint("no/such/file.pth")
    with pytest.raises(ValueError, match="nobody/nothing: it is not in the cache, and HF_HUB_OFFLINE is set"):
        read_checkpoint("nobody/nothing")
    with pytest.raises(ValueError, match=r"must hold one checkpoint.*found none"):
        read_checkpoint(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"found a\.pth, b\.pth"):
        read_checkpoint(tmp_path)

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints written by the implementations themselves, converted, with equal logits.

NVlabs' code is not free to run; its network is derived again in nvlabs_network.py.
"""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

from hf_segformer import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SegformerModel,
)
from hf_segformer.checkpoints.conversion import convert_checkpoint
from hf_segformer.checkpoints.files import read_checkpoint
from hf_segformer.checkpoints.network import convert_state_dict
from hf_segformer.data import ade20k
from nvlabs_network import NVLABS, RANDOMIZE, images, nvlabs_logits, nvlabs_weights
from oracles import run_oracle

# Depths are cut and widths kept, so that B2 to B5 (which differ in depth only) take one small network.
SIZES = {
    "b0": ([32, 64, 160, 256], [2, 2, 2, 2]),
    "deep": ([64, 128, 320, 512], [1, 2, 3, 1]),
}


def assert_close(ours, theirs, relative=1e-6):
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference < relative, f"relative difference {difference:.2e}"


def logits_of(folder, loader=AutoModelForSemanticSegmentation):
    model, info = loader.from_pretrained(folder, output_loading_info=True)
    assert type(model).__module__.startswith("hf_segformer")
    assert not any(info.values()), info
    with torch.no_grad():
        return model.double().eval()(images).logits


# mmsegmentation.

MMSEG = (
    RANDOMIZE
    + """
import json, sys
from pathlib import Path
import mmseg
from mmengine import Config
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import save_checkpoint
from mmseg.datasets import ADE20KDataset
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
register_all_modules()
folder, sizes = Path(sys.argv[1]), json.loads(sys.argv[2])
recipes = Path(mmseg.__file__).parent / ".mim" / "configs" / "segformer"
texts = {path.stem: Config.fromfile(path).pretty_text for path in recipes.glob("*.py")}
(folder / "recipes.json").write_text(json.dumps(texts))
names = {
    "b0": "segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
    "deep": "segformer_mit-b5_8xb1-160k_cityscapes-1024x1024.py",
}
for size, (widths, depths) in sizes.items():
    config = Config.fromfile(recipes / names[size])
    config.model.backbone.update(embed_dims=widths[0], num_layers=depths, init_cfg=None)
    config.model.decode_head.norm_cfg = dict(type="BN", requires_grad=True)
    config.model.backbone.pop("pretrained", None)
    model = randomize(MODELS.build(config.model))
    average = ExponentialMovingAverage(randomize(MODELS.build(config.model), seed=1))
    hub = MessageHub.get_instance(size)
    for step in range(20):
        hub.update_scalar("train/loss", 2.0 / (step + 1))
    hub.update_info("best_score", torch.tensor(0.5).numpy())
    meta = {"cfg": config.pretty_text, "mmengine_version": "0.10.7", "iter": 7, "seed": 3}
    if size == "b0":
        meta["dataset_meta"] = ADE20KDataset.METAINFO
    checkpoint = {
        "meta": meta, "state_dict": model.state_dict(), "message_hub": hub.state_dict(),
        "ema_state_dict": average.state_dict(),
    }
    save_checkpoint(checkpoint, str(folder / f"{size}.pth"))
    torch.save(model.backbone.state_dict(), folder / f"{size}-bare.pth")
    torch.save({"backbone." + k: v for k, v in model.backbone.state_dict().items()}, folder / f"{size}-backbone.pth")
    model = model.double()
    with torch.no_grad():
        features = model.backbone(images)
        torch.save({"features": features, "logits": model.decode_head(features)}, folder / f"{size}-outputs.pth")
"""
)


@pytest.fixture(scope="module")
def mmseg_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmseg")
    run_oracle("mmseg", MMSEG, folder, json.dumps(SIZES))
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_mmseg(size, mmseg_files, tmp_path):
    report = convert_checkpoint(mmseg_files / f"{size}.pth", tmp_path / "out")
    assert_close(logits_of(tmp_path / "out"), torch.load(mmseg_files / f"{size}-outputs.pth")["logits"])
    assert (report.source, report.head, report.variant) == ("mmseg", "conv", "b0" if size == "b0" else None)
    assert len(report.split) == 4 * sum(SIZES[size][1]) // 2 and list(report.reordered.values()) == [
        "decode_head.linear_fuse.weight"
    ]
    assert "ema_state_dict" in str(report) and not report.dropped
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.block_norm_eps, config.embed_norm_eps, config.classifier_dropout_mode) == (1e-6, 1e-6, "channel")
    assert (config.decoder_hidden_size, config.conv_decoder_hidden_size) == (None, 256)
    assert config.architectures == ["SegformerForSemanticSegmentation"]
    processor = SegformerImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.keep_ratio, processor.size_divisor, processor.antialias) == (True, None, False)
    if size == "b0":
        assert tuple(config.id2label.values()) == ade20k.CLASS_NAMES
        assert tuple(map(tuple, config.palette)) == ade20k.PALETTE
        assert dict(processor.size) == {"shortest_edge": 512, "longest_edge": 2048} and processor.do_reduce_labels
    else:
        assert config.id2label[0] == "LABEL_0" and config.palette is None
        assert dict(processor.size) == {"shortest_edge": 1024, "longest_edge": 2048} and not processor.do_reduce_labels
        assert "perhaps --dataset cityscapes" in str(report)


@pytest.mark.parametrize("kind", ["bare", "backbone"])
@pytest.mark.parametrize("size", SIZES)
def test_mmseg_backbone(size, kind, mmseg_files, tmp_path):
    report = convert_checkpoint(mmseg_files / f"{size}-{kind}.pth", tmp_path / "out")
    assert (report.source, report.head) == ("mmseg", "none")
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert isinstance(model, SegformerModel) and not any(info.values()), info
    with torch.no_grad():
        features = model.double().eval()(images, output_hidden_states=True).hidden_states
    for ours, theirs in zip(features, torch.load(mmseg_files / f"{size}-outputs.pth")["features"], strict=True):
        assert_close(ours, theirs)
    # The same folder is a pretrained encoder for segmentation.
    _, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert all(name.startswith("decode_head.") for name in info["missing_keys"]) and not info["unexpected_keys"]


def test_the_way_back_to_mmseg_writes_its_own_file(mmseg_files, tmp_path):
    for size in SIZES:
        convert_checkpoint(mmseg_files / f"{size}.pth", tmp_path / "ours" / size)
        report = convert_checkpoint(tmp_path / "ours" / size, tmp_path / "theirs" / size, to="mmseg")
        assert len(report.fused) == 2 * sum(SIZES[size][1])
        written = torch.load(tmp_path / "theirs" / size / "model.pth")
        original = read_checkpoint(mmseg_files / f"{size}.pth").state_dict
        assert written["state_dict"].keys() == original.keys()
        assert all(torch.equal(written["state_dict"][name], tensor) for name, tensor in original.items())
        if size == "b0":
            assert written["meta"]["dataset_meta"]["classes"] == written["meta"]["CLASSES"] == ade20k.CLASS_NAMES
            assert tuple(map(tuple, written["meta"]["dataset_meta"]["palette"])) == ade20k.PALETTE


def test_picture_size_of_every_mmseg_recipe(mmseg_files, tmp_path):
    recipes = json.loads((mmseg_files / "recipes.json").read_text())
    assert len(recipes) == 13
    for name, text in recipes.items():
        torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": {"cfg": text}}, tmp_path / "model.pth")
        edge = 1024 if "cityscapes" in name else 640 if "640x640" in name else 512
        assert read_checkpoint(tmp_path / "model.pth").image_scale == (2048, edge), name


def test_converted_mmseg_model_trains_and_reloads(mmseg_files, tmp_path):
    convert_checkpoint(mmseg_files / "b0.pth", tmp_path / "out")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = torch.randint(0, 150, (2, 64, 96), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(images.float(), labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval().save_pretrained(tmp_path / "trained")
    with torch.no_grad():
        assert torch.equal(model.double()(images).logits, logits_of(tmp_path / "trained"))
    assert not torch.equal(logits_of(tmp_path / "trained"), logits_of(tmp_path / "out"))


# transformers 4.57 and 5.x.

STOCK = (
    RANDOMIZE
    + """
import json, sys
from pathlib import Path
import transformers
import transformers.models.segformer.modeling_segformer as modeling
from transformers.models.segformer.configuration_segformer import SegformerConfig
assert "hf_segformer" not in sys.modules
folder, sizes = Path(sys.argv[1]), json.loads(sys.argv[2])
for size, (widths, depths) in sizes.items():
    width = 256 if size == "b0" else 768
    config = SegformerConfig(hidden_sizes=widths, depths=depths, decoder_hidden_size=width, num_labels=11)
    for kind in ("ForSemanticSegmentation", "ForImageClassification", "Model"):
        model = randomize(getattr(modeling, "Segformer" + kind)(config))
        model.save_pretrained(folder / f"{size}-{kind}", max_shard_size="3MB")
        torch.save(model.state_dict(), folder / f"{size}-{kind}.pth")
        with torch.no_grad():
            output = model.double()(images)
        torch.save(output[0], folder / f"{size}-{kind}-outputs.pth")
model, info = transformers.AutoModelForSemanticSegmentation.from_pretrained(sys.argv[3], output_loading_info=True)
assert type(model) is modeling.SegformerForSemanticSegmentation and not any(info.values()), info
with torch.no_grad():
    torch.save(model.double().eval()(images).logits, folder / "converted-outputs.pth")
"""
)
LOADERS = {
    "ForSemanticSegmentation": SegformerForSemanticSegmentation,
    "ForImageClassification": SegformerForImageClassification,
    "Model": SegformerModel,
}


@pytest.fixture(scope="module", params=["4", "5"])
def stock_files(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"stock{request.param}")
    torch.save(nvlabs_weights(*NVLABS["b0"], num_labels=19), folder / "nvlabs.pth")
    convert_checkpoint(folder / "nvlabs.pth", folder / "converted", dataset="cityscapes")
    arguments = [str(folder), json.dumps(SIZES), str(folder / "converted")]
    if request.param == "4":
        run_oracle("stock4", STOCK, *arguments)
    else:
        subprocess.run([sys.executable, "-W", "ignore", "-c", STOCK, *arguments], check=True, capture_output=True)
    return request.param, folder


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("size", SIZES)
def test_transformers(size, kind, stock_files, tmp_path):
    version, folder = stock_files
    expected = torch.load(folder / f"{size}-{kind}-outputs.pth")
    assert list(folder.glob(f"{size}-{kind}/*.index.json")), "the fixture is sharded"
    for source, layout in ((f"{size}-{kind}", "hf4"), (f"{size}-{kind}.pth", f"hf{version}")):
        report = convert_checkpoint(folder / source, tmp_path / source)
        assert report.source == layout and not report.dropped
        model, info = LOADERS[kind].from_pretrained(tmp_path / source, output_loading_info=True)
        assert not any(info.values()), info
        assert model.config.block_norm_eps == model.config.embed_norm_eps == 1e-5
        with torch.no_grad():
            output = model.double().eval()(images)
        assert_close(output.last_hidden_state if kind == "Model" else output.logits, expected)
    if version == "5":
        convert_checkpoint(tmp_path / source, tmp_path / "back", to="hf5")
        original, back = torch.load(folder / source), read_checkpoint(tmp_path / "back").state_dict
        assert original.keys() == back.keys() and all(torch.equal(original[name], back[name]) for name in back)


# segmentation-models-pytorch.

SMP = (
    RANDOMIZE
    + """
import sys
from pathlib import Path
import segmentation_models_pytorch as smp
folder = Path(sys.argv[1])
model = randomize(smp.Segformer("mit_b0", encoder_weights=None, classes=11))
torch.save(model.state_dict(), folder / "model.pth")
model.save_pretrained(folder / "folder")
torch.save(model.encoder.state_dict(), folder / "encoder.pth")
model = model.double()
with torch.no_grad():
    # The head's convolution; smp then upsamples with aligned corners.
    torch.save(model.segmentation_head[0](model.decoder(model.encoder(images))), folder / "outputs.pth")
"""
)


def test_segmentation_models_pytorch(tmp_path):
    run_oracle("smp", SMP, tmp_path)
    for source in ("model.pth", "folder"):
        report = convert_checkpoint(tmp_path / source, tmp_path / "ours" / source)
        assert (report.source, report.variant, report.head) == ("smp", "b0", "mlp")
        assert_close(logits_of(tmp_path / "ours" / source), torch.load(tmp_path / "outputs.pth"))
    assert convert_checkpoint(tmp_path / "encoder.pth", tmp_path / "encoder").head == "none"
    convert_checkpoint(tmp_path / "ours" / source, tmp_path / "theirs", to="smp")
    original, back = torch.load(tmp_path / "model.pth"), read_checkpoint(tmp_path / "theirs").state_dict
    assert original.keys() == back.keys() and all(torch.equal(original[name], back[name]) for name in back)


# NVlabs.


@pytest.mark.parametrize("size", NVLABS)
def test_nvlabs(size, tmp_path):
    weights = nvlabs_weights(*NVLABS[size], num_labels=150)
    meta = {"CLASSES": tuple(name + " " for name in ade20k.CLASS_NAMES), "PALETTE": [list(c) for c in ade20k.PALETTE]}
    torch.save({"state_dict": weights, "meta": meta}, tmp_path / "model.pth")
    report = convert_checkpoint(tmp_path / "model.pth", tmp_path / "out")
    expected = nvlabs_logits(weights, images)
    assert_close(logits_of(tmp_path / "out"), expected)
    assert (report.source, report.head) == ("nvlabs", "mlp") and report.variant == (size if size != "deep" else None)
    assert sorted(report.dropped) == ["decode_head.conv_seg.bias", "decode_head.conv_seg.weight"]
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.block_norm_eps, config.embed_norm_eps, config.classifier_dropout_mode) == (1e-6, 1e-5, "channel")
    assert (
        tuple(config.id2label.values()) == ade20k.CLASS_NAMES and tuple(map(tuple, config.palette)) == ade20k.PALETTE
    )
    processor = SegformerImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == {"shortest_edge": 512, "longest_edge": 2048}
    assert (processor.size_divisor, processor.antialias, processor.keep_ratio) == (32, False, True)
    assert processor.do_reduce_labels
    convert_checkpoint(tmp_path / "out", tmp_path / "back", to="nvlabs")
    back = torch.load(tmp_path / "back" / "model.pth")
    kept = {name: tensor for name, tensor in weights.items() if "conv_seg" not in name}
    assert back["state_dict"].keys() == kept.keys()
    assert all(torch.equal(back["state_dict"][name], tensor) for name, tensor in kept.items())
    assert back["meta"]["CLASSES"] == ade20k.CLASS_NAMES


def test_epsilons_show_in_these_comparisons():
    """The comparisons above would fail with the built-in epsilons."""
    weights = nvlabs_weights(*NVLABS["b0"], num_labels=150)
    state_dict, report = convert_state_dict(weights)
    expected = nvlabs_logits(weights, images)
    for fields in ({"block_norm_eps": 1e-5}, {"embed_norm_eps": 1e-6}):
        model = SegformerForSemanticSegmentation(SegformerConfig(**{**report.architecture, **fields})).double().eval()
        model.load_state_dict(state_dict)
        with torch.no_grad(), pytest.raises(AssertionError, match="relative difference"):
            assert_close(model(images).logits, expected)


@pytest.mark.parametrize("size", ["b0", "b1"])
def test_nvlabs_imagenet(size, tmp_path):
    weights = nvlabs_weights(*NVLABS[size], num_labels=0, classes=1000)
    torch.save(weights, tmp_path / f"mit_{size}.pth", _use_new_zipfile_serialization=False)
    report = convert_checkpoint(tmp_path / f"mit_{size}.pth", tmp_path / "out")
    assert (report.source, report.head, report.variant) == ("nvlabs", "classification", size)
    assert_close(logits_of(tmp_path / "out", SegformerForImageClassification), nvlabs_logits(weights, images))
    assert dict(SegformerImageProcessor.from_pretrained(tmp_path / "out").size) == {"height": 224, "width": 224}
    convert_checkpoint(tmp_path / "out", tmp_path / "back", to="nvlabs")
    back = torch.load(tmp_path / "back" / "model.pth")["state_dict"]
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in weights)


def test_converted_folder_loads_in_transformers(stock_files):
    _, folder = stock_files
    # It computes with its own epsilons.
    expected = nvlabs_logits(torch.load(folder / "nvlabs.pth"), images)
    assert_close(torch.load(folder / "converted-outputs.pth"), expected, relative=3e-2)

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints written by the implementations themselves, converted, with equal logits.

NVlabs' code may not be run here; its network is derived again below from the published facts.
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

from hf_segformer import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SegformerModel,
)
from hf_segformer.checkpoint_conversion import convert_checkpoint, new_folder
from hf_segformer.checkpoint_files import read_checkpoint
from hf_segformer.checkpoints import convert_state_dict
from hf_segformer.data import ade20k, cityscapes
from oracles import run_oracle

CONVERT = Path(__file__).resolve().parent.parent / "conversion" / "convert.py"

# Weights without symmetry, BatchNorm statistics included; LayerNorm inputs of little variance, so that epsilons show.
RANDOMIZE = """
import torch
@torch.no_grad()
def randomize(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (model if isinstance(model, dict) else model.eval().state_dict()).items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if not tensor.is_floating_point():
            tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.ndim > 1:
            tensor.copy_(noise * 0.7 / tensor[0].numel() ** 0.5)
        elif name.endswith("weight"):
            tensor.copy_(1 + 0.3 * noise)
        else:
            tensor.copy_(0.2 * noise)
    return model
images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 0.1
"""
_names = {}
exec(RANDOMIZE, _names)
randomize, images = _names["randomize"], _names["images"]

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


def nvlabs_weights(widths, depths, decoder_width, num_labels, classes=None):
    """Random weights under NVlabs' names; with `classes`, those of an ImageNet file."""
    shapes, before, start = {}, 3, "" if classes else "backbone."

    def layer(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    for n, (width, depth, kernel, reduction) in enumerate(
        zip(widths, depths, (7, 3, 3, 3), (8, 4, 2, 1), strict=True), 1
    ):
        layer(f"{start}patch_embed{n}.proj", width, before, kernel, kernel)
        layer(f"{start}patch_embed{n}.norm", width)
        for j in range(depth):
            block = f"{start}block{n}.{j}"
            layer(f"{block}.norm1", width)
            layer(f"{block}.attn.q", width, width)
            layer(f"{block}.attn.kv", 2 * width, width)
            layer(f"{block}.attn.proj", width, width)
            if reduction > 1:
                layer(f"{block}.attn.sr", width, width, reduction, reduction)
                layer(f"{block}.attn.norm", width)
            layer(f"{block}.norm2", width)
            layer(f"{block}.mlp.fc1", 4 * width, width)
            layer(f"{block}.mlp.dwconv.dwconv", 4 * width, 1, 3, 3)
            layer(f"{block}.mlp.fc2", width, 4 * width)
        layer(f"{start}norm{n}", width)
        before = width
    if classes:
        layer("head", classes, widths[-1])
    else:
        layer("decode_head.conv_seg", num_labels, 128, 1, 1)
        for n in (4, 3, 2, 1):
            layer(f"decode_head.linear_c{n}.proj", decoder_width, widths[n - 1])
        layer("decode_head.linear_fuse.conv", decoder_width, 4 * decoder_width, 1, 1, bias=False)
        layer("decode_head.linear_fuse.bn", decoder_width)
        for name in ("running_mean", "running_var"):
            shapes[f"decode_head.linear_fuse.bn.{name}"] = (decoder_width,)
        layer("decode_head.linear_pred", num_labels, decoder_width, 1, 1)

    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    randomize(weights)
    if not classes:
        weights["decode_head.linear_fuse.bn.num_batches_tracked"] = torch.tensor(7)
    return weights


def nvlabs_logits(weights, pixels):
    """The network of arXiv 2105.15203 with the released weights' epsilons, by plain functions."""
    weights = {name: tensor.to(pixels.dtype) for name, tensor in weights.items()}
    start = "backbone." if "backbone.norm1.weight" in weights else ""

    def of(name):
        return weights[f"{name}.weight"], weights.get(f"{name}.bias")

    def norm(tokens, name, eps):
        return F.layer_norm(tokens, tokens.shape[-1:], *of(name), eps)

    maps = []
    for n, (heads, reduction) in enumerate(zip((1, 2, 5, 8), (8, 4, 2, 1), strict=True), start=1):
        embed = f"{start}patch_embed{n}"
        kernel = weights[f"{embed}.proj.weight"].shape[-1]
        grid = F.conv2d(pixels if n == 1 else maps[-1], *of(f"{embed}.proj"), 4 if n == 1 else 2, kernel // 2)
        batch, width, height, breadth = grid.shape
        tokens = norm(grid.flatten(2).mT, f"{embed}.norm", 1e-5)

        def as_map(tokens, size=(height, breadth)):
            return tokens.mT.unflatten(2, size)

        j = 0
        while f"{start}block{n}.{j}.norm1.weight" in weights:
            block = f"{start}block{n}.{j}"
            inner = norm(tokens, f"{block}.norm1", 1e-6)
            context = inner
            if reduction > 1:
                context = F.conv2d(as_map(inner), *of(f"{block}.attn.sr"), reduction).flatten(2).mT
                context = norm(context, f"{block}.attn.norm", 1e-5)
            keys_and_values = F.linear(context, *of(f"{block}.attn.kv"))
            parts = (
                F.linear(inner, *of(f"{block}.attn.q")),
                keys_and_values[..., :width],
                keys_and_values[..., width:],
            )
            query, key, value = (part.reshape(batch, -1, heads, width // heads).transpose(1, 2) for part in parts)
            scores = torch.einsum("bhid,bhjd->bhij", query, key) * (width // heads) ** -0.5
            mixed = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), value).transpose(1, 2).flatten(2)
            tokens = tokens + F.linear(mixed, *of(f"{block}.attn.proj"))
            inner = F.linear(norm(tokens, f"{block}.norm2", 1e-6), *of(f"{block}.mlp.fc1"))
            inner = F.conv2d(as_map(inner), *of(f"{block}.mlp.dwconv.dwconv"), padding=1, groups=inner.shape[-1])
            tokens = tokens + F.linear(F.gelu(inner.flatten(2).mT), *of(f"{block}.mlp.fc2"))
            j += 1
        maps.append(as_map(norm(tokens, f"{start}norm{n}", 1e-6)))
    if "head.weight" in weights:
        return F.linear(maps[-1].mean((2, 3)), *of("head"))
    stacked = []
    for n in (4, 3, 2, 1):
        projected = torch.einsum("bchw,ec->behw", maps[n - 1], weights[f"decode_head.linear_c{n}.proj.weight"])
        projected = projected + weights[f"decode_head.linear_c{n}.proj.bias"][:, None, None]
        stacked.append(F.interpolate(projected, maps[0].shape[2:], mode="bilinear", align_corners=False))
    fused = F.conv2d(torch.cat(stacked, 1), weights["decode_head.linear_fuse.conv.weight"])
    bn = "decode_head.linear_fuse.bn"
    fused = F.batch_norm(fused, weights[f"{bn}.running_mean"], weights[f"{bn}.running_var"], *of(bn), eps=1e-5)
    return F.conv2d(fused.relu(), *of("decode_head.linear_pred"))


NVLABS = {
    "b0": ([32, 64, 160, 256], [2, 2, 2, 2], 256),
    "b1": ([64, 128, 320, 512], [2, 2, 2, 2], 256),
    "deep": ([64, 128, 320, 512], [1, 2, 3, 1], 768),
}


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


# Classes, protocols and the command line.


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
    import hf_segformer.checkpoint_conversion as conversion
    from hf_segformer.checkpoint_files import Checkpoint
    from hf_segformer.checkpoint_layouts import ConversionReport

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
    main = runpy.run_path(str(CONVERT))["main"]
    assert main([str(path), str(tmp_path / "never")]) == 1
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

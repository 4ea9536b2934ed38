# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The recipes against mmsegmentation's own configuration files, data pipeline, optimizer constructor and schedulers.

Every recipe is trained for three steps at reduced width, depth and picture size, on pictures in the published folder
layout, beside an independent run: mmsegmentation's network for its own flavor, NVlabs' network derived again in
nvlabs_network.py for the other, both with mmengine's optimizer constructor, whose rules for names are those of the
mmcv the originals used. Dropout and stochastic depth are off, because the two draw other random numbers.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segformer import VARIANTS, SegformerConfig, SegformerForSemanticSegmentation
from hf_segformer.checkpoints.network import convert_state_dict, export_state_dict
from hf_segformer.data import TrainingSamples, load_dataset
from hf_segformer.evaluation.protocols import Protocol
from hf_segformer.recipes import RECIPE_NAMES, RECIPES, get_recipe
from hf_segformer.training import (
    SegmentationLoss,
    initialize_as_published,
    parameter_groups,
    poly_factor,
    set_learning_rate,
)
from oracles import run_oracle

KEYS = list(RECIPES)
FLAVORS = ("mmseg", "nvlabs")
SHRINK = 8  # crops, picture sizes and the decode head
WIDTHS = [8, 16, 40, 64]  # what the published heads (1, 2, 5, 8) divide
SEED = 5
FIRST_STEP = 1499  # the last one of the warm-up; the next begins the decay

ORACLE = """
import copy, importlib.util, json, sys, types
from pathlib import Path
import numpy as np
import torch
from torch import nn
import mmseg
from mmengine import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmseg.registry import DATASETS, MODELS
from mmseg.utils import register_all_modules

torch.set_num_threads(1)
register_all_modules()
folder, tests = map(Path, sys.argv[1:3])
job = json.loads((folder / "job.json").read_text())
recipes = Path(mmseg.__file__).parent / ".mim" / "configs" / "segformer"
configs = {name: Config.fromfile(recipes / file) for name, file in job["files"].items()}
plain = lambda value: json.loads(json.dumps(value, default=lambda v: dict(v) if isinstance(v, dict) else list(v)))
(folder / "configs.json").write_text(json.dumps({name: plain(config.to_dict()) for name, config in configs.items()}))

# Learning rates of a whole run, one group each.
def schedule(config, flavor):
    parts = [dict(part) for part in config.param_scheduler]
    if flavor == "nvlabs":
        # The warm-up multiplies a decay that starts at once. mmcv, which NVlabs used, divides by the number of steps
        # where mmengine divides by one less, so as to reach the end of the warm-up and of the decay a step earlier.
        parts[0]["end"] += 1
        parts[1].update(begin=0, end=parts[1]["end"] + 1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr)
    schedulers = [PARAM_SCHEDULERS.build(part, default_args={"optimizer": optimizer}) for part in parts]
    rates = []
    for _ in range(config.train_cfg.max_iters):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates

rates = {flavor: schedule(configs["ade20k-b0"], flavor) for flavor in ("mmseg", "nvlabs")}
np.savez(folder / "rates.npz", **rates)

# NVlabs' network: parameters under its names, and the forward pass of nvlabs_network.py with BatchNorm in training.
spec = importlib.util.spec_from_file_location("nvlabs_network", tests / "nvlabs_network.py")
nvlabs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nvlabs)
functions = {name: getattr(torch.nn.functional, name) for name in dir(torch.nn.functional)}
def training_norm(x, mean, variance, weight, bias, eps):
    return torch.nn.functional.batch_norm(x, mean, variance, weight, bias, True, 0.1, eps)
nvlabs.F = types.SimpleNamespace(**functions | {"batch_norm": training_norm})

class NVlabs(nn.Module):
    def __init__(self, weights):
        super().__init__()
        for name, tensor in weights.items():
            *path, last = name.split(".")
            home = self
            for part in path:
                if part not in home._modules:
                    home.add_module(part, nn.Module())
                home = home._modules[part]
            if tensor.is_floating_point() and not last.startswith("running"):
                home.register_parameter(last, nn.Parameter(tensor.clone()))
            else:
                home.register_buffer(last, tensor.clone())

    def loss(self, pixels, labels):
        weights = dict(self.named_parameters()) | dict(self.named_buffers())
        logits = nvlabs.nvlabs_logits(weights, pixels)
        scores = nn.functional.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
        losses = nn.functional.cross_entropy(scores, labels, ignore_index=255, reduction="none")
        self.decode_head.linear_fuse.bn.num_batches_tracked += 1
        return losses.mean()

def mmseg_model(config, job):
    config.model.backbone.update(init_cfg=None, drop_path_rate=0.0, embed_dims=job["widths"][0])
    config.model.backbone.update(num_layers=job["depths"])
    head = config.model.decode_head
    head.update(in_channels=job["widths"], channels=job["decoder_width"], dropout_ratio=0.0)
    head.norm_cfg = dict(type="BN", requires_grad=True)
    crop = (job["crop_size"],) * 2
    config.model.data_preprocessor.size = crop
    return MODELS.build(config.model)

# Pictures as mmsegmentation's pipeline augments them, its random numbers replaced by those of a given generator.
def replay(generator):
    np.random.randint = lambda low, high=None: generator.integers(low, high)
    np.random.uniform = lambda low, high: generator.uniform(low, high)
    np.random.random_sample = lambda: generator.random()
    np.random.choice = lambda options, p: options[0] if generator.random() < p[0] else options[1]

def pictures(config, job, model):
    pipeline = plain(config.train_dataloader.dataset.pipeline)
    for step in pipeline:
        if step["type"] == "RandomResize":
            step.update(scale=tuple(side // job["shrink"] for side in step["scale"]))
        if step["type"] == "RandomCrop":
            step.update(crop_size=(job["crop_size"],) * 2)
    dataset = plain(config.train_dataloader.dataset)
    dataset = DATASETS.build(dict(dataset, data_root=job["data_root"], pipeline=pipeline))
    index = {Path(dataset.get_data_info(i)["img_path"]).name: i for i in range(len(dataset))}
    batches = []
    for names, draws in zip(job["pictures"], job["draws"]):
        items = []
        for name, draw in zip(names, draws):
            replay(np.random.default_rng([job["seed"], draw, 1]))
            items.append(dataset[index[name]])
        data = {key: [item[key] for item in items] for key in ("inputs", "data_samples")}
        data = model.data_preprocessor(data, training=True)
        labels = torch.cat([sample.gt_sem_seg.data for sample in data["data_samples"]])
        batches.append((data["inputs"], labels, data["data_samples"]))
    return batches

for key, one in job["recipes"].items():
    name, flavor = key.split("@")
    config = copy.deepcopy(configs[name])
    weights = torch.load(folder / f"{key}.pth")
    reference = mmseg_model(config, one)
    batches = pictures(config, {**one, **job["common"]}, reference)
    if flavor == "mmseg":
        model = reference.double().train()
        model.load_state_dict(weights)
    else:
        model = NVlabs(weights)
    wrapper = build_optim_wrapper(model, plain(config.optim_wrapper))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(g["params"][0])]: (g["lr"], g["weight_decay"]) for g in wrapper.optimizer.param_groups}
    assert len(groups) == len(names)
    result = {"groups": groups, "losses": [], "inputs": [], "labels": []}
    given = torch.load(folder / f"{key}-batches.pth")
    for step, ((inputs, labels, samples), (pixels, targets)) in enumerate(zip(batches, given)):
        result["inputs"].append(inputs)
        result["labels"].append(labels)
        factor = rates[flavor][job["first_step"] + step] / config.optim_wrapper.optimizer.lr
        for group in wrapper.optimizer.param_groups:
            group["lr"] = groups[names[id(group["params"][0])]][0] * factor
        # The same pixels to the last bit; `inputs` above are compared for themselves.
        if flavor == "mmseg":
            losses = model.loss(pixels, samples)
            loss = sum(value for name, value in losses.items() if "loss" in name)
        else:
            loss = model.loss(pixels, targets)
        wrapper.update_params(loss)
        result["losses"].append(loss.detach())
    result["state_dict"] = model.state_dict()
    torch.save(result, folder / f"{key}-result.pth")

# Initial weights of a B0 in full.
config = copy.deepcopy(configs["ade20k-b0"])
config.model.backbone.init_cfg = None
config.model.decode_head.norm_cfg = dict(type="BN", requires_grad=True)
torch.manual_seed(0)
model = MODELS.build(config.model)
model.init_weights()
torch.save(model.state_dict(), folder / "initial.pth")
"""


def config_file(name):
    """mmsegmentation's file for a recipe."""
    recipe = get_recipe(name)
    data = f"{recipe.dataset}-{recipe.crop_size}x{recipe.crop_size}"
    return f"segformer_mit-{recipe.variant}_8xb{recipe.batch_size}-160k_{data}.py"


def reduced(recipe):
    width = (recipe.decoder_width or VARIANTS[recipe.variant]["decoder_hidden_size"]) // SHRINK
    sizes = {name: getattr(recipe, name) // SHRINK for name in ("image_size", "long_side", "crop_size")}
    return replace(recipe, decoder_width=width, drop_path_rate=0.0, **sizes)


def reduced_depths(variant):
    return [min(depth, 2) for depth in VARIANTS[variant]["depths"]]


def blocks(rng, height, width, values):
    label = rng.choice(values, (height // 7 + 1, width // 9 + 1)).repeat(7, 0).repeat(9, 1)
    return label[:height, :width].astype(np.uint8)


def save(picture, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    # PNG data whatever the name: JPEG decoders differ by a level, which is not what is compared here.
    Image.fromarray(picture).save(path, format="PNG")


def draw_data_sets(root):
    """Pictures of odd sizes in the layouts of ADE20K and Cityscapes."""
    rng = np.random.default_rng(0)
    for split, count in (("training", 5), ("validation", 1)):
        for index in range(count):
            size, name = (int(rng.integers(45, 150)), int(rng.integers(60, 170))), f"ADE_{split[:5]}_{index:08d}"
            save(rng.integers(0, 256, (*size, 3), dtype=np.uint8), root / "ade20k/images" / split / f"{name}.jpg")
            save(blocks(rng, *size, range(151)), root / "ade20k/annotations" / split / f"{name}.png")
    for split, count in (("train", 5), ("val", 1)):
        for index in range(count):
            name, city = f"bonn_{index:06d}_000019", f"{split}/bonn"
            picture, label = rng.integers(0, 256, (131, 257, 3), dtype=np.uint8), [*range(19), 255]
            save(picture, root / "cityscapes/leftImg8bit" / city / f"{name}_leftImg8bit.png")
            save(blocks(rng, 131, 257, label), root / f"cityscapes/gtFine/{city}/{name}_gtFine_labelTrainIds.png")


def train(recipe, model, batches):
    """Three steps with the package's own parts; parameter settings and losses."""
    groups = parameter_groups(
        model, recipe.learning_rate, recipe.weight_decay, recipe.head_multiplier, recipe.decay_stage_norms
    )
    optimizer = torch.optim.AdamW(groups)
    loss_function = SegmentationLoss(recipe.loss, average=recipe.loss_average)
    names, losses = {id(parameter): name for name, parameter in model.named_parameters()}, []
    settings = {names[id(p)]: (g["initial_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    for step, (pixels, labels) in enumerate(batches, start=FIRST_STEP):
        set_learning_rate(optimizer, factor_of(recipe, step))
        loss = loss_function(model.train()(pixels).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return settings, torch.stack(losses)


def factor_of(recipe, step):
    schedule = (recipe.max_steps, recipe.warmup_steps, recipe.warmup_ratio, recipe.power, recipe.decay_from_start)
    return poly_factor(step, *schedule)


def prepare(recipe, data):
    """A reduced model, three batches, and what the oracle needs to know about them."""
    recipe = reduced(recipe)
    fields = recipe.config_fields() | {"classifier_dropout_prob": 0.0, "num_labels": data.num_classes}
    config = SegformerConfig(hidden_sizes=WIDTHS, depths=reduced_depths(recipe.variant), **fields)
    model = fill(SegformerForSemanticSegmentation(config)).double()
    samples = TrainingSamples(data, recipe.transform(), SEED)
    draws = np.arange(3 * recipe.batch_size).reshape(3, -1).tolist()
    batches = [[samples[draw] for draw in step] for step in draws]
    batches = [tuple(torch.stack([s[k] for s in step]) for k in ("pixel_values", "labels")) for step in batches]
    names = [[data.train[samples.index_of(draw)]["file_name"] for draw in step] for step in draws]
    job = {
        "widths": WIDTHS,
        "depths": reduced_depths(recipe.variant),
        "decoder_width": recipe.decoder_width,
        "crop_size": recipe.crop_size,
        "draws": draws,
        "pictures": [[Path(name).name for name in step] for step in names],
    }
    return recipe, model, batches, job


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Everything both sides computed: one process of the oracle for all recipes."""
    folder = tmp_path_factory.mktemp("mmseg")
    draw_data_sets(folder)
    ours, jobs = {}, {}
    data = {name: load_dataset(name, folder / name) for name in ("ade20k", "cityscapes")}
    for name, flavor in KEYS:
        recipe, model, batches, job = prepare(get_recipe(name, flavor), data[get_recipe(name).dataset])
        theirs, _ = export_state_dict(model.state_dict(), flavor, config=model.config.to_dict())
        torch.save(theirs, folder / f"{name}@{flavor}.pth")
        batches = [(pixels.double(), labels) for pixels, labels in batches]
        torch.save(batches, folder / f"{name}@{flavor}-batches.pth")
        jobs[f"{name}@{flavor}"] = job | {"data_root": str(folder / recipe.dataset)}
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        settings, losses = train(recipe, model, batches)
        ours[name, flavor] = {"model": model, "settings": settings, "losses": losses, "batches": batches}
        ours[name, flavor]["before"] = before
    common = {"seed": SEED, "shrink": SHRINK}
    files = {name: config_file(name) for name in RECIPE_NAMES}
    job = {"files": files, "recipes": jobs, "common": common, "first_step": FIRST_STEP}
    (folder / "job.json").write_text(json.dumps(job))
    run_oracle("mmseg", ORACLE, folder, Path(__file__).parent)
    return folder, ours


@torch.no_grad()
def fill(model):
    """Weights without symmetry."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.ndim > 1:
            tensor.copy_(noise * (0.8 / tensor[0].numel() ** 0.5))
        elif tensor.is_floating_point():
            tensor.copy_((1 if name.endswith(("weight", "running_var")) else 0) + 0.1 * noise)
    return model


def result_of(runs, key):
    folder, ours = runs
    return ours[key], torch.load(folder / f"{'@'.join(key)}-result.pth")


@pytest.mark.parametrize("key", KEYS, ids="@".join)
def test_pictures_are_augmented_alike(runs, key):
    ours, theirs = result_of(runs, key)
    for (pixels, labels), inputs, targets in zip(ours["batches"], theirs["inputs"], theirs["labels"], strict=True):
        assert torch.equal(labels, targets)
        # One level of 255 is 0.017 apart; normalisation in single precision accounts for 1e-6.
        torch.testing.assert_close(pixels.float(), inputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", KEYS, ids="@".join)
def test_rate_and_decay_of_every_parameter(runs, key):
    ours, theirs = result_of(runs, key)
    for position in (0, 1):
        # Tensors filled with the setting take the same way through the conversion as weights.
        filled = {
            name: torch.full_like(tensor, theirs["groups"][name][position]) if name in theirs["groups"] else tensor
            for name, tensor in theirs["state_dict"].items()
        }
        converted, _ = convert_state_dict(filled)
        for name, setting in ours["settings"].items():
            assert (converted[name] == setting[position]).all(), (name, setting, converted[name].unique())


@pytest.mark.parametrize("key", KEYS, ids="@".join)
def test_three_steps_give_the_same_losses_and_weights(runs, key):
    ours, theirs = result_of(runs, key)
    torch.testing.assert_close(ours["losses"], torch.stack(theirs["losses"]), rtol=1e-9, atol=0)
    assert ours["losses"].unique().numel() == 3
    converted, _ = convert_state_dict(theirs["state_dict"])
    state = ours["model"].state_dict()
    assert state.keys() == converted.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, converted[name], rtol=0, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")
        if tensor.ndim > 1:  # the tolerance is small against what three steps change
            assert (tensor - ours["before"][name]).abs().median() > 1e-5, name


@pytest.mark.parametrize("flavor", FLAVORS)
def test_learning_rate_of_every_step(runs, flavor):
    recipe, rates = get_recipe("ade20k-b0", flavor), np.load(runs[0] / "rates.npz")[flavor]
    ours = np.array([recipe.learning_rate * factor_of(recipe, step) for step in range(recipe.max_steps)])
    # mmengine multiplies its way through the run and gathers rounding errors.
    np.testing.assert_allclose(ours, rates, rtol=1e-8, atol=1e-17)
    peak = 1499 if flavor == "mmseg" else 1500
    assert ours.argmax() == peak
    assert ours[0] == pytest.approx(6e-11) and rates[0] == pytest.approx(6e-11)
    assert ours[1500] / 6e-5 == pytest.approx(1.0 if flavor == "mmseg" else 1 - 1500 / 160_000)
    for step in (1, 1498, 1499, 1500, 1501, 1502, 80_000, 159_998):
        assert ours[step] == pytest.approx(rates[step], rel=1e-6, abs=0), step
    assert ours[-1] == pytest.approx(0.0 if flavor == "mmseg" else 6e-5 / 160_000)


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_recipe_equals_the_published_configuration(runs, name):
    configs = json.loads((runs[0] / "configs.json").read_text())
    recipe, config = get_recipe(name), configs[name]
    backbone, head = config["model"]["backbone"], config["model"]["decode_head"]
    pipeline = {step["type"]: step for step in config["train_dataloader"]["dataset"]["pipeline"]}
    fields = SegformerConfig.for_variant(recipe.variant, **recipe.config_fields())
    assert list(fields.hidden_sizes) == [backbone["embed_dims"] * heads for heads in backbone["num_heads"]]
    assert list(fields.hidden_sizes) == head["in_channels"]
    assert list(fields.depths) == backbone["num_layers"]
    assert list(fields.num_attention_heads) == backbone["num_heads"]
    assert list(fields.sr_ratios) == backbone["sr_ratios"] and list(fields.patch_sizes) == backbone["patch_sizes"]
    assert fields.drop_path_rate == backbone["drop_path_rate"]
    assert fields.conv_decoder_hidden_size == head["channels"] and fields.decoder_hidden_size is None
    assert fields.classifier_dropout_prob == head["dropout_ratio"]
    assert head["loss_decode"] == {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}
    assert {"ade20k": 150, "cityscapes": 19}[recipe.dataset] == head["num_classes"]
    assert config["model"]["data_preprocessor"]["size"] == [recipe.crop_size] * 2
    assert pipeline["RandomResize"]["scale"] == [recipe.long_side, recipe.image_size]
    assert pipeline["RandomResize"]["ratio_range"] == list(recipe.ratio_range)
    assert pipeline["RandomCrop"] == {
        "type": "RandomCrop",
        "crop_size": [recipe.crop_size] * 2,
        "cat_max_ratio": recipe.cat_max_ratio,
    }
    assert pipeline["RandomFlip"]["prob"] == recipe.flip_probability
    assert ("PhotoMetricDistortion" in pipeline) == recipe.photometric
    assert config["train_dataloader"]["batch_size"] == recipe.batch_size
    optimizer = config["optim_wrapper"]["optimizer"]
    assert optimizer == {
        "type": "AdamW",
        "lr": recipe.learning_rate,
        "betas": [0.9, 0.999],
        "weight_decay": recipe.weight_decay,
    }
    assert "clip_grad" not in config["optim_wrapper"]
    rules = config["optim_wrapper"]["paramwise_cfg"]["custom_keys"]
    assert rules["head"]["lr_mult"] == recipe.head_multiplier
    warmup, decay = config["param_scheduler"]
    assert (warmup["end"], warmup["start_factor"]) == (recipe.warmup_steps, recipe.warmup_ratio)
    assert (decay["begin"], decay["end"]) == (recipe.warmup_steps, recipe.max_steps)
    assert (decay["power"], decay["eta_min"]) == (recipe.power, 0)
    assert config["train_cfg"]["max_iters"] == recipe.max_steps
    assert config["train_cfg"]["val_interval"] == recipe.eval_every
    test = {step["type"]: step for step in config["test_dataloader"]["dataset"]["pipeline"]}
    protocol = Protocol.named(recipe.protocol)
    assert test["Resize"]["scale"] == list(protocol.scale) and test["Resize"]["keep_ratio"]
    assert "ResizeToMultiple" not in test and protocol.size_divisor is None
    window = config["model"]["test_cfg"]
    sides = (protocol.crop_size, protocol.stride) if protocol.crop_size else (None, None)
    assert [tuple(window[k]) if k in window else None for k in ("crop_size", "stride")] == list(sides)


def test_initial_weights(runs):
    theirs, _ = convert_state_dict(torch.load(runs[0] / "initial.pth"))
    torch.manual_seed(1)
    fields = get_recipe("ade20k-b0").config_fields()
    model = SegformerForSemanticSegmentation(SegformerConfig.for_variant("b0", num_labels=150, **fields))
    initialize_as_published(model, "mmseg")
    ours = model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other, count = theirs[name], tensor.numel()
        if tensor.ndim < 2:
            assert torch.equal(tensor, other), name
            continue
        # Six standard errors of a standard deviation; the extremes tell a uniform distribution from a normal one.
        assert tensor.std().item() == pytest.approx(other.std().item(), rel=6 * (1 / count) ** 0.5), name
        assert abs(tensor.mean() - other.mean()) < 9 * other.std() / count**0.5, name
        extremes = [(t.abs().max() / t.std()).item() for t in (tensor, other)]
        assert (extremes[0] < 1.85) == (extremes[1] < 1.85), (name, extremes)

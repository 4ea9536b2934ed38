# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Recipes as a table, as defaults of the command line, and as a run of train.py from end to end."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation, HfArgumentParser

from example_scripts import run_script
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.data import load_dataset
from hf_segformer.evaluation.loop import evaluate
from hf_segformer.evaluation.protocols import PROTOCOLS, Protocol
from hf_segformer.recipes import FLAVORS, RECIPE_NAMES, RECIPES, default_recipe, get_recipe, recipe_table
from hf_segformer.training import TrainArguments
from hf_segformer.training.losses import LOSSES
from hf_segformer.training.model import build_model
from nvlabs_network import NVLABS, nvlabs_weights
from oracles import FOLDER, why_missing
from published_data import write_ade20k

TRAIN = Path(__file__).resolve().parent.parent / "examples" / "train.py"

# Parameters in total, from the published networks: NVlabs' with 150 and 19 classes, mmsegmentation's with 150.
PARAMETERS = {
    "b0": (3_752_694, 3_719_027, 3_753_718),
    "b1": (13_715_798, 13_682_131, 13_716_822),
    "b2": (27_461_974, 27_361_235, 24_761_686),
    "b3": (47_337_814, 47_237_075, 44_637_526),
    "b4": (64_108_374, 64_007_635, 61_408_086),
    "b5": (84_708_694, 84_607_955, 82_008_406),
}


def parse(*arguments):
    (args,) = HfArgumentParser(TrainArguments).parse_args_into_dataclasses([str(a) for a in arguments])
    return args


# The table


def test_thirteen_recipes_in_two_flavors():
    assert len(RECIPE_NAMES) == 13 and len(RECIPES) == 26
    variants = [get_recipe(name).variant for name in RECIPE_NAMES]
    assert variants == ["b0", "b1", "b2", "b3", "b4", "b5", "b5", "b0", "b1", "b2", "b3", "b4", "b5"]
    for (name, flavor), recipe in RECIPES.items():
        assert (recipe.name, recipe.flavor) == (name, flavor)
        assert name.startswith(f"{recipe.dataset}-{recipe.variant}")
        assert recipe.global_batch_size == {"ade20k": 16, "cityscapes": 8}[recipe.dataset]
        assert {recipe.protocol, recipe.aligned_protocol or recipe.protocol} <= PROTOCOLS.keys()
        Protocol.named(recipe.protocol, recipe.tta)
        line = next(line for line in recipe_table().splitlines() if line.split()[:2] == [name, flavor])
        assert recipe.protocol in line and str(recipe.crop_size) in line


@pytest.mark.parametrize("key", RECIPES, ids="@".join)
def test_size_of_the_network(key):
    recipe = RECIPES[key]
    labels = {"ade20k": 150, "cityscapes": 19}[recipe.dataset]
    with torch.device("meta"):
        fields = recipe.config_fields()
        config = SegformerConfig.for_variant(recipe.variant, num_labels=labels, **fields)
        model = SegformerForSemanticSegmentation(config)
    nvlabs_ade, nvlabs_city, mmseg_ade = PARAMETERS[recipe.variant]
    expected = {("nvlabs", 150): nvlabs_ade, ("nvlabs", 19): nvlabs_city, ("mmseg", 150): mmseg_ade}
    expected["mmseg", 19] = mmseg_ade - 131 * 257  # the classifier, 256 wide with a bias
    assert sum(parameter.numel() for parameter in model.parameters()) == expected[recipe.flavor, labels]
    assert recipe.with_config(config).config_fields() == fields
    assert type(model.decode_head.dropout) is torch.nn.Dropout2d


def test_published_figures():
    if reason := why_missing("mmseg"):
        pytest.skip(reason)
    file = FOLDER / "mmseg" / "mmseg" / ".mim" / "configs" / "segformer" / "metafile.yaml"
    yaml = pytest.importorskip("yaml")
    models = yaml.safe_load(file.read_text())["Models"]
    assert len(models) == len(RECIPE_NAMES)
    for name, model in zip(RECIPE_NAMES, models, strict=True):
        recipe, metrics, facts = get_recipe(name), model["Results"]["Metrics"], model["Metadata"]
        assert f"mit-{recipe.variant}" in model["Name"] and recipe.dataset in model["Name"]
        assert model["Name"].endswith(f"{recipe.crop_size}x{recipe.crop_size}")
        assert (recipe.published.mean_iou, recipe.published.mean_iou_tta) == tuple(metrics.values())
        assert recipe.published.memory_gb == facts["Memory (GB)"]
        assert recipe.global_batch_size == facts["Batch Size"]
        assert recipe.published.device in facts["Training Resources"]


def test_figures_of_the_other_table():
    """With both sides rounded up to multiples of 32, as mmsegmentation's second table has it."""
    aligned = {name: get_recipe(name).published for name in RECIPE_NAMES if "ade20k" in name}
    single = [figures.aligned_mean_iou for figures in aligned.values()]
    several = [figures.aligned_mean_iou_tta for figures in aligned.values()]
    assert single == [38.1, 41.64, 46.53, 48.46, 49.34, 50.08, 50.58]
    assert several == [38.57, 42.76, 47.49, 49.14, 50.29, 50.72, 50.8]
    for name, figures in aligned.items():
        recipe = get_recipe(name)
        assert recipe.aligned_protocol == f"aligned-{recipe.image_size}" == get_recipe(name, "nvlabs").protocol
        assert figures.mean_iou < figures.aligned_mean_iou < figures.aligned_mean_iou_tta


@pytest.mark.parametrize(
    ("name", "flavor", "message"),
    [
        ("ade20k-b6", "mmseg", "recipe must be list or one of .* got 'ade20k-b6'; did you mean 'ade20k-b"),
        ("ade20k-b0", "paddle", "recipe_flavor must be mmseg or nvlabs, got 'paddle'"),
        ("ade20k-b0", "transformers", "recipe_flavor must be mmseg or nvlabs, got 'transformers'"),
    ],
)
def test_unknown_recipes(name, flavor, message):
    with pytest.raises(ValueError, match=message):
        get_recipe(name, flavor)


# The command line


@pytest.mark.parametrize("key", RECIPES, ids="@".join)
def test_recipe_gives_every_default(key):
    args = parse("--recipe", key[0], "--recipe_flavor", key[1])
    recipe = RECIPES[key]
    plan = args.plan_batches(recipe.processes, sync_batch_norm=True)
    assert plan.note == ""
    assert asdict(args.effective_recipe(recipe.processes)) == asdict(recipe)
    assert (args.dataset, args.variant, args.protocol) == (recipe.dataset, recipe.variant, recipe.protocol)


def test_any_flag_overrides_the_recipe():
    flags = {
        "dataset": "camvid",
        "variant": "b1",
        "max_steps": 40_000,
        "learning_rate": 1e-3,
        "head_multiplier": 2.0,
        "weight_decay": 0.0,
        "warmup_steps": 7,
        "drop_path_rate": 0.3,
        "crop_size": 256,
        "image_size": 256,
        "loss": "dice=0.5",
        "loss_average": "valid",
        "protocol": "slide-1024",
        "eval_every": 5,
        "save_every": 6,
        "batch_size": 3,
        "gradient_accumulation_steps": 4,
    }
    args = parse("--recipe", "ade20k-b0", *(item for name, value in flags.items() for item in (f"--{name}", value)))
    args.plan_batches(2, sync_batch_norm=False)
    changed = args.effective_recipe(2)
    assert {name: getattr(changed, name) for name in flags} == flags
    assert (changed.long_side, changed.global_batch_size) == (1024, 24)
    assert (changed.name, changed.flavor, changed.decode_head) == ("ade20k-b0", "mmseg", "conv")


def test_shorter_runs_warm_up_and_evaluate_sooner():
    args = parse("--recipe", "cityscapes-b0", "--max_steps", 2000)
    assert (args.warmup_steps, args.eval_every, args.save_every) == (100, 500, 200)
    longer = parse("--recipe", "cityscapes-b0", "--max_steps", 80_000)
    assert (longer.warmup_steps, longer.eval_every, longer.save_every) == (1500, 16_000, 4000)


def test_global_batch_of_the_recipe_that_does_not_divide():
    with pytest.raises(ValueError, match="global_batch_size must be a multiple of 1 processes x batch_size 3, got 16"):
        parse("--recipe", "ade20k-b0", "--batch_size", 3).plan_batches(1, sync_batch_norm=False)


def test_without_a_recipe():
    args = parse()
    assert (args.dataset, args.max_steps, args.learning_rate, args.crop_size) == ("scenes", 1000, 6e-3, 128)
    args.plan_batches(2, sync_batch_norm=False)
    recipe = args.effective_recipe(2)
    assert (recipe.name, recipe.flavor, recipe.global_batch_size) == ("custom", "transformers", 16)
    assert (recipe.image_size, recipe.long_side, recipe.ratio_range, recipe.photometric) == (128, 512, None, False)
    own = parse("--dataset", "folder", "--crop_size", 96, "--recipe_flavor", "nvlabs").effective_recipe()
    assert (own.max_steps, own.learning_rate, own.image_size, own.long_side) == (2000, 6e-5, 96, 384)
    assert own.block_norm_eps == 1e-6 and own.loss_average == "all" and own.ratio_range == (0.5, 2.0)


@pytest.mark.parametrize(
    ("arguments", "learning_rate"),
    [
        (["--data", "export.zip"], 2e-4),
        (["--data", "scenes", "--variant", "b5"], 2e-4),  # whatever its folder is called
        (["--data", "export.zip", "--recipe_flavor", "nvlabs"], 2e-4),
        (["--data", "export.zip", "--learning_rate", "6e-5"], 6e-5),
        (["--data", "export.zip", "--recipe", "ade20k-b0"], 6e-5),
        (["--dataset", "camvid"], 6e-5),
        (["--dataset", "owner/name"], 6e-5),
    ],
)
def test_learning_rate_of_ones_own_data(arguments, learning_rate):
    recipe = parse(*arguments).effective_recipe()
    assert (recipe.learning_rate, recipe.head_multiplier) == (learning_rate, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--crop_size", "0"], "crop_size must be > 0, got 0"),
        (["--global_batch_size", "-4"], "global_batch_size must be > 0, got -4"),
        (["--weight_decay", "-1"], "weight_decay must be >= 0, got -1"),
        (["--seed", "-1"], "seed must be >= 0, got -1"),
        (["--warmup_steps", "1000"], r"warmup_steps must be in \[0, max_steps=1000\), got 1000"),
        (["--model", "a", "--encoder", "b"], "encoder must be left out with model"),
        (["--loss", "hinge"], "loss must join different ones of .*dice, tversky, lovasz.* by commas, got 'hinge'"),
        (["--tversky_alpha", "0"], "tversky_alpha must be > 0 and finite, got 0.0"),
        (["--tversky_beta", "nan"], "tversky_beta must be > 0 and finite, got nan"),
        (["--focal_gamma", "inf"], "focal_gamma must be at least 0 and finite, got inf"),
        (["--loss_average", "some"], "average must be 'valid' or 'all', got 'some'"),
        (["--protocol", "slide-1025"], "protocol must be one of .* did you mean 'slide-1024'"),
        (["--tta", "paddle"], "tta must be one of none, mmseg, nvlabs, got 'paddle'"),
        (["--recipe_flavor", "paddle"], "recipe_flavor must be one of nvlabs, mmseg, transformers, got 'paddle'"),
        (["--push_to_hub", "a/b"], "license must be given"),
    ],
)
def test_wrong_flags(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(*arguments)


def test_the_help_names_every_loss():
    assert all(name in TrainArguments.__dataclass_fields__["loss"].metadata["help"] for name in LOSSES)


def test_resuming_looks_at_what_determines_the_weights():
    base = parse("--recipe", "ade20k-b0").settings(2)
    for flag, value in (
        ("--tta", "mmseg"),
        ("--eval_every", 3),
        ("--output_dir", "x"),
        ("--data_root", "y"),
        ("--boundary_iou", "true"),
    ):
        assert parse("--recipe", "ade20k-b0", flag, value).settings(2) == base, flag
    for flag, value in (
        ("--loss", "dice"),
        ("--tversky_beta", 0.5),
        ("--recipe_flavor", "nvlabs"),
        ("--encoder", "x"),
        ("--seed", 1),
    ):
        assert parse("--recipe", "ade20k-b0", flag, value).settings(2) != base, flag
    assert json.loads(json.dumps(base)) == base


def test_flavors_are_as_told():
    assert FLAVORS["transformers"] == {}
    stock = default_recipe("folder").config_fields()
    plain = SegformerConfig.for_variant("b0")
    assert all(getattr(plain, name) == value for name, value in stock.items())


# A run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    data = write_ade20k(folder)
    torch.save(nvlabs_weights(*NVLABS["b0"], 0, classes=1000), folder / "mit_b0.pth")
    arguments = ["--recipe", "ade20k-b0", "--data_root", data, "--encoder", folder / "mit_b0.pth"]
    arguments += ["--crop_size", 64, "--image_size", 64, "--protocol", "processor", "--max_steps", 2]
    arguments += ["--batch_size", 2, "--global_batch_size", 4, "--loss", "cross_entropy=1,dice=0.5"]
    arguments += ["--class_weights", "inverse_frequency", "--freeze_batch_norm", "--num_workers", 1]
    result = run_script(TRAIN, *arguments, "--num_threads", 1, "--output_dir", folder / "out")
    return folder, data, result.stdout


def test_run_follows_the_recipe_and_says_so(trained):
    folder, _, printed = trained
    written = json.loads((folder / "out" / "recipe.json").read_text())
    assert (
        written.pop("launch")["num_processes"] == 1
        and not written.pop("changes")
        and written.pop("bad_samples") == written.pop("left_out") == []
    )
    assert written.pop("exported") == {"export": "last", "step": 2, "weights": "raw"}  # as published
    expected = get_recipe("ade20k-b0").to_dict() | {
        "max_steps": 2,
        "warmup_steps": 0,
        "crop_size": 64,
        "image_size": 64,
        "long_side": 256,
        "loss": "cross_entropy=1,dice=0.5",
        "protocol": "processor",
        "processes": 1,
        "gradient_accumulation_steps": 2,
        "global_batch_size": 4,
        "eval_every": 1,
        "save_every": 1,
    }
    assert written == json.loads(json.dumps(expected))
    assert "note: the global batch is 4 images, the recipe's 16\n" in printed
    assert "layout   NVlabs/SegFormer" in printed and "class weights:" in printed
    card = (folder / "out" / "README.md").read_text()
    for line in ("| `recipe` | ade20k-b0 |", "| `flavor` | mmseg |", "| `loss` | cross_entropy=1,dice=0.5 |"):
        assert line in card
    assert "| `gradient_accumulation_steps` | 2 |" in card and "mit_b0.pth" in card


def test_run_trains_the_network_of_the_recipe(trained):
    folder, _, _ = trained
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "out")
    assert (model.config.conv_decoder_hidden_size, model.config.decoder_hidden_size) == (256, None)
    assert (model.config.block_norm_eps, model.config.embed_norm_eps) == (1e-6, 1e-6)
    assert model.config.num_labels == 150 and model.config.id2label[0] == "wall"
    # The encoder started from the file: two steps move a weight by no more than the sum of their learning rates.
    state = load_file(folder / "out" / "model.safetensors")
    pretrained = torch.load(folder / "mit_b0.pth")["block1.0.mlp.fc1.weight"]
    moved = (state["segformer.encoder.block.0.0.mlp.dense1.weight"] - pretrained).abs().max()
    assert 0 < moved < 2.5e-4
    assert not state["decode_head.batch_norm.running_mean"].any()  # frozen


def test_last_evaluation_is_that_of_the_protocol(trained):
    folder, data, _ = trained
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "out")
    processor = SegformerImageProcessor.from_pretrained(folder / "out")
    assert processor.size == {"shortest_edge": 64, "longest_edge": 256} and processor.do_reduce_labels
    matrix = evaluate(model, processor, load_dataset("ade20k", data), Accelerator(cpu=True))
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    assert metrics["mean_iou"] == pytest.approx(matrix.compute()["mean_iou"])


@pytest.fixture(scope="module")
def script():
    """train.py as a module."""
    spec = importlib.util.spec_from_file_location("train_script", TRAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "flavor", "shortest_edge", "size_divisor"),
    [
        ("ade20k-b0", "mmseg", 512, None),
        ("ade20k-b0", "nvlabs", 512, 32),
        ("cityscapes-b0", "mmseg", 1024, None),
    ],
)
def test_saved_processor_resizes_as_the_protocol_does(name, flavor, shortest_edge, size_divisor, capsys):
    args = parse("--recipe", name, "--recipe_flavor", flavor)
    data = load_dataset("scenes", num_train=1, num_validation=1, size=64)
    model, processor = build_model(args, args.effective_recipe(), data, Accelerator(cpu=True))
    assert processor.size == {"shortest_edge": shortest_edge, "longest_edge": 2048}
    assert (processor.keep_ratio, processor.antialias) == (True, False)
    assert processor.size_divisor == size_divisor
    assert model.config.id2label[1] == data.class_names[1] and model.config.palette is not None
    assert "started from an ImageNet encoder" in capsys.readouterr().out


def test_recipes_can_be_listed(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script.main(["--recipe", "list"])
    assert capsys.readouterr().out.strip() == recipe_table().strip()
    assert not list(tmp_path.iterdir())


def test_data_without_training_pictures(trained, tmp_path):
    _, data, _ = trained
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    for kind in ("images", "annotations"):
        (tmp_path / kind / "validation").symlink_to(data / kind / "validation")
    arguments = ["--recipe", "ade20k-b0", "--data_root", tmp_path, "--output_dir", tmp_path / "out"]
    result = run_script(TRAIN, *arguments, check=False)
    assert result.returncode == 2
    assert f"error: no such folder: {tmp_path / 'images' / 'training'}" in result.stderr
    assert not (tmp_path / "out").exists()

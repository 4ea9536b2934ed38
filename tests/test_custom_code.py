# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A model pushed with its code, loaded in processes where the package is not installed.

`HF_SEGFORMER_TEST_PYTHONS` names further interpreters, separated as in PATH, with other releases of transformers.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation

# The public name asks for torchvision in transformers 5.17.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_segformer import (
    SegformerBackbone,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    engine,
)
from hf_segformer.hub.code import flat_code
from hf_segformer.hub.push import push_folder, write_code
from hub_server import HubServer

pytest_plugins = ["hub_fixtures"]
PYTHONS = [sys.executable, *filter(None, os.environ.get("HF_SEGFORMER_TEST_PYTHONS", "").split(os.pathsep))]

# What runs in inference on any CPU.
RAN = {
    "SegformerEfficientSelfAttention.forward": "attention_layers",
    "SegformerMixFFN.forward": "feed_forward_in_bands",
    "SegformerDecodeHead.decode": "head_in_bands",
}

COMMON = """
import sys
sys.modules["hf_segformer"] = None  # as if it were not installed
import torch
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForSemanticSegmentation as AutoSegmentation
# The public name asks for torchvision in transformers 5.17.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

torch.set_grad_enabled(False)
torch.set_num_threads(1)
reference = torch.load("reference.pt")
pixel_values = reference["pixel_values"]

def load(auto_class, source, **options):
    loaded = auto_class.from_pretrained(source, **options)
    module = type(loaded[0] if isinstance(loaded, tuple) else loaded).__module__
    assert module.startswith(PREFIX), (auto_class, module)
    return loaded

def close(actual, name):
    torch.testing.assert_close(actual, reference[name], rtol=1e-4, atol=1e-5)

def same(actual, name):
    # To the bit, which another PyTorch need not keep.
    close(actual, name)
    assert torch.equal(actual, reference[name]) or torch.__version__ != TORCH, name
"""

TRUSTED = """
PREFIX = "transformers_modules."
for source in ("user/model", "model"):
    assert load(AutoConfig, source, trust_remote_code=True).decoder_hidden_size == 20
    model, info = load(AutoSegmentation, source, trust_remote_code=True, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    same(model.eval()(pixel_values).logits, "logits")
    encoder = load(AutoModel, source, trust_remote_code=True)
    same(encoder.eval()(pixel_values).last_hidden_state, "last_hidden_state")
    image_processor = load(AutoImageProcessor, source, trust_remote_code=True)
    same(image_processor(reference["image"], return_tensors="pt")["pixel_values"], "processed")
assert type(load(AutoModelForImageClassification, "model", trust_remote_code=True)).__name__.endswith("Classification")
classifier = load(AutoModelForImageClassification, "user/classifier", trust_remote_code=True)
same(classifier.eval()(pixel_values).logits, "class_logits")
backbone = load(AutoBackbone, "user/model", trust_remote_code=True, out_features=["stage2", "stage4"])
for stage, feature_map in enumerate(backbone.eval()(pixel_values).feature_maps):
    same(feature_map, f"feature_map_{stage}")
convolutional = load(AutoSegmentation, "conv", trust_remote_code=True)
same(convolutional.eval()(pixel_values).logits, "conv_logits")
model.save_pretrained("again")
same(load(AutoSegmentation, "again", trust_remote_code=True).eval()(pixel_values).logits, "logits")

# The engine came along, one for each copy of the code.
engine = sys.modules[type(model).__module__.rpartition(".")[0] + ".engine_segformer"]
assert "hf_segformer" not in engine.__name__.split(".") and engine.is_enabled() == ENABLED
assert sys.modules[type(encoder).__module__].__package__ != "hf_segformer"
ran = {choice.function: choice.ran for choice in engine.explain(model, pixel_values)}
assert EXPECTED.items() <= ran.items() if ENABLED else set(ran.values()) == {"textbook"}, ran
with engine.off():
    assert {choice.ran for choice in engine.explain(model, pixel_values)} == {"textbook"}
    close(model(pixel_values).logits, "logits")
    same(model(pixel_values).logits, "textbook_logits")
loss = model(pixel_values, labels=reference["labels"]).loss
same(loss, "loss")
"""

BEFORE = """
PREFIX = "transformers_modules."
model = load(AutoSegmentation, "before", trust_remote_code=True)
close(model.eval()(pixel_values).logits, "logits")
close(load(AutoModel, "before", trust_remote_code=True).eval()(pixel_values).last_hidden_state, "last_hidden_state")
image_processor = load(AutoImageProcessor, "before", trust_remote_code=True)
close(image_processor(reference["image"], return_tensors="pt")["pixel_values"], "processed")
assert type(model).__module__.rpartition(".")[0] + ".encoder_segformer" in sys.modules
# Beside the code of today in one process.
now = load(AutoSegmentation, "model", trust_remote_code=True)
same(now.eval()(pixel_values).logits, "logits")
assert type(now).__module__ != type(model).__module__
"""

STOCK = """
PREFIX = "transformers.models.segformer."
try:  # transformers 5.17 without torchvision cannot, whatever is in the folder
    stock_has_a_processor = AutoImageProcessor.from_pretrained("without_code")
except (ImportError, ValueError):
    stock_has_a_processor = None
for source in ("user/model", "model"):
    model = load(AutoSegmentation, source)
    close(model.eval()(pixel_values).logits, "logits")
    if stock_has_a_processor:
        load(AutoImageProcessor, source)
try:
    AutoSegmentation.from_pretrained("conv")
except Exception as error:
    print(f"refused: {error}")
else:
    raise AssertionError("the convolutional head was loaded as another network")
assert not any(name.startswith("transformers_modules") for name in sys.modules)
"""


@contextlib.contextmanager
def one_thread():
    """As many threads as the processes have: more of them add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save(model, folder):
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.fixture
def workspace(tmp_path, tiny_config, randomize, use_hub):
    """A folder with models and what they compute, and a Hub with the same models."""
    image = torch.randint(0, 256, (37, 53, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    pixel_values = torch.randn(1, 3, 70, 54, generator=torch.Generator().manual_seed(1))
    models = {
        "model": randomize(SegformerForSemanticSegmentation(tiny_config())).eval(),
        "conv": randomize(SegformerForSemanticSegmentation(tiny_config(conv_decoder_hidden_size=12))).eval(),
        "classifier": randomize(SegformerForImageClassification(tiny_config())).eval(),
    }
    for name, model in models.items():
        save(model, tmp_path / name)
    # Weights from a file lie elsewhere in memory, by which the last bits may change.
    models = {name: type(model).from_pretrained(tmp_path / name).eval() for name, model in models.items()}
    backbone = SegformerBackbone.from_pretrained(tmp_path / "model", out_features=["stage2", "stage4"]).eval()
    labels = torch.randint(0, 5, (1, 70, 54), generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), one_thread():
        with engine.off():
            textbook_logits = models["model"](pixel_values).logits
        reference = {
            "labels": labels,
            "loss": models["model"](pixel_values, labels=labels).loss,
            "textbook_logits": textbook_logits,
            "image": torch.from_numpy(image),
            "pixel_values": pixel_values,
            "processed": SegformerImageProcessor.from_pretrained(tmp_path / "model")(image, return_tensors="pt")[
                "pixel_values"
            ],
            "logits": models["model"](pixel_values).logits,
            "last_hidden_state": models["model"].segformer(pixel_values).last_hidden_state,
            "conv_logits": models["conv"](pixel_values).logits,
            "class_logits": models["classifier"](pixel_values).logits,
        } | {f"feature_map_{i}": feature_map for i, feature_map in enumerate(backbone(pixel_values).feature_maps)}
    torch.save({name: tensor.contiguous() for name, tensor in reference.items()}, tmp_path / "reference.pt")
    with HubServer() as hub:
        use_hub(hub)
        for name in ("model", "classifier"):
            push_folder(tmp_path / name, f"user/{name}", license="mit", with_code=True)
        SegformerImageProcessor().save_pretrained(tmp_path / "without_code")
        for name in models:
            write_code(tmp_path / name)
        yield tmp_path, hub


def run(python, script, workspace):
    folder, hub = workspace
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment = kept | {
        "HF_HOME": str(folder / "home"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
        "HF_SEGFORMER_ENGINE": os.environ.get("HF_SEGFORMER_ENGINE", "on"),
    }
    script = f"TORCH, ENABLED = {torch.__version__!r}, {engine.is_enabled()}\nEXPECTED = {RAN}\n{script}"
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 200}
    return subprocess.run([python, "-c", script], stdin=subprocess.DEVNULL, **options)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("trust", [True, False], ids=["trusted", "stock"])
def test_models_pushed_with_code_load_without_the_package(workspace, python, trust):
    script = COMMON + (TRUSTED if trust else STOCK)
    done = run(python, script, workspace)
    assert done.returncode == 0, done.stderr[-4000:]
    assert workspace[1].unknown == []
    if not trust:
        assert "refused: " in done.stdout


def test_the_installed_package_wins_over_code_in_the_folder(workspace):
    for auto_class in (AutoModelForSemanticSegmentation, AutoModelForImageClassification, AutoImageProcessor):
        loaded = auto_class.from_pretrained(workspace[0] / "model", trust_remote_code=True)
        assert type(loaded).__module__.startswith("hf_segformer."), type(loaded)


def test_what_is_pushed_lies_flat(workspace):
    files = {name: content for name, content in workspace[1].files("user/model").items() if name.endswith(".py")}
    assert files == flat_code() == {path.name: path.read_bytes() for path in (workspace[0] / "model").glob("*.py")}
    assert {"engine_mix_ffn_segformer.py", "engine_segformer.py", "scores_label_map_segformer.py"} <= set(files)
    assert not [name for name in files if "/" in name]


# The last commit whose code had no folders.
FLAT_COMMIT = "cf89839cbeaabb02a54d601240b4baa6e4fe78c4"
WRITE = "import sys, hf_segformer.hub; hf_segformer.hub.write_code(sys.argv[1])"


@pytest.fixture
def pushed_before(workspace, tmp_path):
    """A model folder with the code of that commit, written by it."""
    repository = Path(__file__).resolve().parent.parent
    archive = subprocess.run(
        ["git", "-C", str(repository), "archive", FLAT_COMMIT, "hf_segformer"], capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"the history is not here: {archive.stderr.decode().strip()[:200]}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tmp_path / "old", filter="data")
    SegformerForSemanticSegmentation.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "before")
    SegformerImageProcessor.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "before")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "old")}
    command = [sys.executable, "-c", WRITE, str(tmp_path / "before")]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=200, stdin=subprocess.DEVNULL)
    return tmp_path / "before"


@pytest.mark.parametrize("python", PYTHONS)
def test_a_push_of_the_code_before_the_folders_still_loads(workspace, pushed_before, python):
    written = {path.name for path in pushed_before.glob("*.py")}
    assert "encoder_segformer.py" in written and "engine_segformer.py" not in written
    assert json.loads((pushed_before / "config.json").read_text())["auto_map"]
    done = run(python, COMMON + BEFORE, workspace)
    assert done.returncode == 0, done.stderr[-4000:]
    reference = torch.load(workspace[0] / "reference.pt")
    model = AutoModelForSemanticSegmentation.from_pretrained(pushed_before, trust_remote_code=True).eval()
    assert type(model) is SegformerForSemanticSegmentation
    with torch.no_grad(), one_thread():
        assert torch.equal(model(reference["pixel_values"]).logits, reference["logits"])

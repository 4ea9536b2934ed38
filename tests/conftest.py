# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: the tiny configuration, the real pictures that tests read in place, and offline mode."""

import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Workers have a core each, with all the processes that their tests start: threads that wait for each other on fewer
# cores than threads are many times slower than one.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(CORES)]})
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

pytest_plugins = ["pytester"]

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_xdist_auto_num_workers(config):
    """As many workers as there are cores; none for named files, where starting workers would take longer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if config.option.file_or_dir else cores


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark every test that asks an oracle, itself or through a fixture; skip what is about an engine that is off."""
    for item in items:
        fixtures = [found.func for definitions in item._fixtureinfo.name2fixturedefs.values() for found in definitions]
        if any(map(_asks, (item.obj, *fixtures))):
            item.add_marker("oracle")
        if os.environ.get("HF_SEGFORMER_ENGINE") == "off" and item.get_closest_marker("engine"):
            item.add_marker(pytest.mark.skip(reason="the engine is off"))


def _asks(function) -> bool:
    name, code = "run_oracle", getattr(function, "__code__", None)  # a partial has none
    return code is not None and name in code.co_names and name in function.__globals__


def pytest_terminal_summary(terminalreporter):
    """Skips by reason; those that the common tests of transformers decide themselves count as one."""
    reasons = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        theirs = "test_transformers_common.py::" in report.nodeid
        reasons["of the common tests of transformers" if theirs else reason.removeprefix("Skipped: ")] += 1
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data sets that do not belong to the project; tests that need it skip when it is absent."""
    folder = Path(os.environ.get("HF_SEGFORMER_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set HF_SEGFORMER_TEST_DATA to its folder")
    return folder


@pytest.fixture(autouse=True)
def same_threads():
    """What a test does with the number of threads ends with it."""
    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    yield
    if before and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def checks_folder(tmp_path_factory):
    """Results of checks are kept apart from the user's own."""
    os.environ["HF_SEGFORMER_CHECKS"] = str(tmp_path_factory.mktemp("checks"))


@pytest.fixture(scope="session")
def pictures_folder(tmp_path_factory):
    """A user's own data: 10 training and 5 validation pictures."""
    from scene_folder import write_scene_folder

    return write_scene_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def trained(pictures_folder, tmp_path_factory):
    """Folder of a short training run with two processes, and what it printed; do not change what is in it."""
    from example_scripts import launch

    output_dir = tmp_path_factory.mktemp("run") / "out"
    arguments = ["--dataset", "folder", "--data_root", pictures_folder, "--max_steps", 4, "--eval_every", 2]
    arguments += ["--crop_size", 64, "--batch_size", 2, "--log_every", 1, "--num_workers", 1, "--num_threads", 1]
    arguments += ["--output_dir", output_dir, "--report_to", "tensorboard"]
    return output_dir, launch("train.py", *arguments, processes=2).stdout


TINY = {
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [1, 2, 1, 1],
    "decoder_hidden_size": 20,
}


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Folder of a network much smaller than B0, with the classes of the drawn scenes, from which runs start."""
    import torch

    from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("start")
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=11)).save_pretrained(path)
    return path


@pytest.fixture
def tiny_config():
    """Function that makes a small configuration with every architectural feature of the real ones."""
    from hf_segformer import SegformerConfig

    def make(**fields):
        if fields.get("conv_decoder_hidden_size"):
            fields.setdefault("decoder_hidden_size", None)
        return SegformerConfig(**{**TINY, "num_labels": 5, **fields})

    return make


@pytest.fixture
def randomize():
    """Function that gives a model weights without any symmetry, so that swapped or transposed tensors cannot pass."""
    import torch

    @torch.no_grad()
    def fill(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if "running_var" in name:
                tensor.copy_(0.5 + noise.abs())
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.3 * noise)
            elif tensor.is_floating_point() and tensor.ndim > 1:
                tensor.copy_(noise * (0.8 / tensor[0].numel() ** 0.5))
            elif tensor.is_floating_point():
                tensor.copy_(0.2 * noise)
        return model

    return fill

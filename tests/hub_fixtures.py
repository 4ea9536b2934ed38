# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that push: a Hub that this process uses, and a model folder."""

import time

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from PIL import Image

from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.evaluation.metrics import write_metrics
from hf_segformer.hub.model_card import model_card
from hub_server import HubServer
from hub_xet import CLIENT_SETTINGS

METRICS = {"mean_iou": 0.4321, "mean_accuracy": 0.5, "overall_accuracy": float("nan"), "per_category_iou": [0.1, 0.2]}


@pytest.fixture
def use_hub(monkeypatch, tmp_path_factory):
    """Function that makes this process use a Hub, with a cache of its own."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def use(server):
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_owner")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        close_session()

    yield use
    close_session()


@pytest.fixture
def hub(use_hub):
    """A Hub that this process uses."""
    with HubServer() as server:
        use_hub(server)
        yield server


@pytest.fixture
def xet_hub(hub, monkeypatch):
    """A Hub that takes large files through Xet, as the client does by default."""
    pytest.importorskip("hf_xet")
    session = pytest.importorskip("huggingface_hub.utils._xet", reason="older client")
    if not hasattr(session, "abort_xet_session"):
        pytest.skip("this client reads its settings only once")
    for name, value in CLIENT_SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    session.abort_xet_session()
    yield hub
    session.abort_xet_session()


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were slept; nothing really sleeps."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def folder(tmp_path, tiny_config, randomize):
    """What train.py leaves behind: a model, and files that must stay at home."""
    folder = tmp_path / "model"
    config = tiny_config()
    randomize(SegformerForSemanticSegmentation(config)).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    write_metrics(METRICS, folder / "metrics.json")
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for name in ("states/step-2/model.safetensors", "runs/events.bin", "overlays/a.png", ".export-x/a.png"):
        (folder / name).parent.mkdir(parents=True)
        Image.fromarray(picture).save(folder / name, format="png")
    for name in (
        ".hidden.json",
        "training_args.bin",
        "trainer_state.json",
        "trackers.json",
        "optimizer.pt",
        "code.py",
    ):
        (folder / name).write_text("{}")
    card = model_card(str(folder), "scenes", METRICS, "table", {"seed": 0}, "overlays/a.png", config=config)
    (folder / "README.md").write_text(card)
    return folder

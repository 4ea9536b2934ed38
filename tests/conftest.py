# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: the tiny configuration, the real pictures that tests read in place, and offline mode."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data sets that do not belong to the project; tests that need it skip when it is absent."""
    folder = Path(os.environ.get("HF_SEGFORMER_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set HF_SEGFORMER_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def checks_folder(tmp_path_factory):
    """Results of checks are kept apart from the user's own."""
    os.environ["HF_SEGFORMER_CHECKS"] = str(tmp_path_factory.mktemp("checks"))


TINY = {
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [1, 2, 1, 1],
    "decoder_hidden_size": 20,
}


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

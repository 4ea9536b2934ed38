# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The common test classes of `transformers`, from its source distribution (see `oracles.py`).

Test files that use them skip where the distribution is absent or of another version than the installed package. It
lacks the folders below `tests`: what the common files import from there has stand-ins here.
"""

import importlib
import os
import sys
from types import ModuleType

import pytest
import transformers

from oracles import FOLDER, SOURCES, why_missing

# The exceptions were found on it; another device can be named in the environment.
os.environ.setdefault("TRANSFORMERS_TEST_DEVICE", "cpu")

NAME = "transformers_tests"
_VERSION = SOURCES[NAME].partition("==")[2]

# A value other than the default for every field of `PreTrainedConfig` that a caller may set.
_COMMON_FIELDS = {
    "architectures": ["SomeModel"],
    "output_attentions": True,
    "output_hidden_states": True,
    "return_dict": False,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "is_encoder_decoder": True,
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


def _no_download(url: str) -> str:
    raise AssertionError(f"the test asks for {url}")


_STAND_INS = {
    f"{NAME}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{NAME}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{NAME}.utils.test_configuration_utils": {"config_common_kwargs": _COMMON_FIELDS},
    "fetch_hub_objects_for_ci": {"url_to_local_path": _no_download},
}


def load(name: str) -> ModuleType:
    """One of the common files as a module of the package `transformers_tests`.

    Args:
        name: Its name without the ending, for instance "test_modeling_common".
    """
    if reason := why_missing(NAME):
        pytest.skip(reason, allow_module_level=True)
    if transformers.__version__ != _VERSION:
        reason = f"the oracle {NAME} is of transformers {_VERSION}, installed is {transformers.__version__}"
        pytest.skip(reason, allow_module_level=True)
    for module, members in _STAND_INS.items():
        sys.modules.setdefault(module.rpartition(".")[0] or module, ModuleType(module))
        sys.modules.setdefault(module, ModuleType(module)).__dict__.update(members)
    before = list(sys.path)
    sys.path.append(str(FOLDER / NAME))
    try:
        return importlib.import_module(f"{NAME}.{name}")
    finally:
        sys.path[:] = before

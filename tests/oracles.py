# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Foreign implementations that tests compare with, each in a folder of its own put before the installed packages.

    python tests/oracles.py            installs them into .oracles/
    HF_SEGFORMER_ORACLES=DIR           makes the tests look elsewhere

Tests that need a missing one skip and say so.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("HF_SEGFORMER_ORACLES", Path(__file__).resolve().parent.parent / ".oracles"))

# Installed without their dependencies: torch and the rest come from the environment that runs the tests.
PACKAGES = {
    "stock4": ["transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.1"],
    "mmseg": [
        "mmengine==0.10.7",
        "mmcv-lite==2.1.0",
        "mmsegmentation==1.2.2",
        "numpy==1.26.4",
        "opencv-python-headless==4.11.0.86",
        "matplotlib==3.10.7",
        "contourpy==1.3.3",
        "setuptools==79.0.1",
        "addict",
        "yapf",
        "termcolor",
        "rich",
        "prettytable",
        "ftfy",
        "wcwidth",
        "platformdirs",
        "scipy==1.15.3",
        "markdown-it-py",
        "mdurl",
        "pygments",
        "tomli",
    ],
    "imagecorruptions": [
        "imagecorruptions-imaug==1.1.5",
        "scikit-image==0.26.0",
        "lazy-loader==0.6",
        "scipy==1.17.1",
    ],
    "smp": ["segmentation-models-pytorch==0.5.0", "timm==1.0.20"],
}

# mmseg imports compiled operators that mmcv-lite lacks, smp and timm import torchvision: SegFormer uses neither.
_PREAMBLE = {
    "mmseg": "import sys, types\n"
    "class _Operators(types.ModuleType):\n"
    "    def __getattr__(self, name):\n"
    "        if name.startswith('__'): raise AttributeError(name)\n"
    "        return type(name, (), {})\n"
    "sys.modules['mmcv.ops'] = _Operators('mmcv.ops')\n",
    "smp": "import importlib.abc, importlib.machinery, sys, types\n"
    "class _Anything(type):\n"
    "    def __getattr__(self, name):\n"
    "        if name.startswith('__'): raise AttributeError(name)\n"
    "        return _Anything(name, (), {})\n"
    "class _Module(types.ModuleType):\n"
    "    __getattr__ = _Anything.__getattr__\n"
    "class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] == 'torchvision':\n"
    "            return importlib.machinery.ModuleSpec(name, self, is_package=True)\n"
    "    def create_module(self, spec): return _Module(spec.name)\n"
    "    def exec_module(self, module): pass\n"
    "sys.meta_path.insert(0, _Torchvision())\n",
}


def install() -> None:
    """Install every oracle that is not there yet."""
    for name, packages in PACKAGES.items():
        target, done = FOLDER / name, FOLDER / name / ".complete"
        if done.is_file() and done.read_text() == "\n".join(packages):
            continue
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(target)]
        subprocess.run([*command, *packages], check=True)
        done.write_text("\n".join(packages))


def run_oracle(name: str, script: str, *arguments: str | os.PathLike, timeout: float = 300) -> str:
    """Run a Python script where the oracle's packages come first, and return what it printed.

    Args:
        name: Key of `PACKAGES`.
        script: Python source; `sys.argv[1:]` holds `arguments`.
        *arguments: Strings and paths.
        timeout: Seconds.
    """
    target = FOLDER / name
    if not (target / ".complete").is_file():
        pytest.skip(f"the oracle {name} is not installed; run python tests/oracles.py")
    environment = os.environ | {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", _PREAMBLE.get(name, "") + script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    if result.returncode:
        raise AssertionError(f"the oracle {name} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return result.stdout


if __name__ == "__main__":
    install()

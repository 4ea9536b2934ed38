# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Foreign implementations that tests compare with, each in a folder of its own put before the installed packages.

    python tests/oracles.py            installs them into .oracles/
    HF_SEGFORMER_ORACLES=DIR           makes the tests look elsewhere

Tests that need a missing one skip and say so; so do those that find one made by another version of Python, whose
compiled modules this one cannot load. Tests that ask one are marked "oracle" (see `conftest.py`).
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

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
    "transformers_tests": ["parameterized==0.9.0"],
}

# Source distributions whose folder `tests` becomes a package with the name of the oracle, beside its other packages.
SOURCES = {"transformers_tests": "transformers==5.23.0"}

PYTHON = f"python {sys.version_info.major}.{sys.version_info.minor}"

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
        wanted = "\n".join([PYTHON, *packages, *filter(None, [SOURCES.get(name)])])
        if done.is_file() and done.read_text() == wanted:
            continue
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(target)]
        subprocess.run([*command, *packages], check=True)
        if name in SOURCES:
            _unpack_tests(SOURCES[name], target / name)
        done.write_text(wanted)


def _unpack_tests(requirement: str, package: Path) -> None:
    project = requirement.partition("==")[0]
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", project, "-d", folder]
        subprocess.run([*command, requirement], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.parts[1:-1] == ("tests",) and path.suffix == ".py":
                    archive.extract(member.replace(name=path.name), package, filter="data")
    (package / "__init__.py").touch()


def why_missing(name: str) -> str | None:
    """The reason for skipping what needs an oracle, or None where it can be run."""
    done = FOLDER / name / ".complete"
    if not done.is_file():
        return f"the oracle {name} is not installed; run python tests/oracles.py"
    maker = done.read_text().partition("\n")[0]
    if maker != PYTHON:
        maker = maker if maker.startswith("python ") else "an unknown version of Python"
        return f"the oracle {name} was installed by {maker}, this is {PYTHON}; run python tests/oracles.py"
    return None


def run_oracle(name: str, script: str, *arguments: str | os.PathLike, timeout: float = 300) -> str:
    """Run a Python script where the oracle's packages come first, and return what it printed.

    Args:
        name: Key of `PACKAGES`.
        script: Python source; `sys.argv[1:]` holds `arguments`.
        *arguments: Strings and paths.
        timeout: Seconds.
    """
    target = FOLDER / name
    if reason := why_missing(name):
        pytest.skip(reason)
    environment = os.environ | {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", _PREAMBLE.get(name, "") + script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    if result.returncode:
        raise AssertionError(f"the oracle {name} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return result.stdout


if __name__ == "__main__":
    install()

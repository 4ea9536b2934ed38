# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What ran: versions of the packages, and the machine's processors."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions and processors, by their names; packages that are not installed are left out."""
    from .. import __version__

    found = {"hf_segformer": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found |= {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["CPU"] = f"{_cpu()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["GPU"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return found


def _cpu() -> str:
    """The processor's name, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()

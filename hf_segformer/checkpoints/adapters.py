# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT adapters in both name layouts: those made on `transformers` 5 name modules that are called otherwise here.

Those made on this package's models or on `transformers` 4 need nothing: `peft.PeftModel.from_pretrained` loads them.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..hub_errors import explained
from ..json_files import read_json
from .conversion import new_folder
from .layouts import HF5_ENCODER, HF5_HEAD, PLACEHOLDERS, listed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_CONFIG, _WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."

# Modules under which everything is called the same, apart from the parts below them.
_SAME_NAMES = ("decode_head", "classifier", "decode_head.classifier", "linear_fuse", "batch_norm")

_PARAMETERS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def load_adapter(
    model: PreTrainedModel,
    adapter: str | Path,
    adapter_name: str = "default",
    is_trainable: bool = False,
    revision: str | None = None,
) -> PeftModel:
    """Put an adapter made on any SegFormer of `transformers` 4, `transformers` 5 or this package on a model.

    Args:
        model: A model of this package.
        adapter: Folder or Hub id of the adapter.
        adapter_name: Name the adapter gets.
        is_trainable: Whether its weights are to be trained on.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The model with the adapter; `merge_and_unload()` gives a plain model.

    Raises:
        ValueError: There is no adapter, or it adapts modules that the model does not have.
    """
    from peft import PeftModel

    folder = _adapter_folder(adapter, revision)
    options: dict[str, Any] = {"adapter_name": adapter_name, "is_trainable": is_trainable}
    names = _read_weights(folder)
    if not _is_transformers_5(names):
        _check_modules(model, names, folder)
        return PeftModel.from_pretrained(model, folder, **options)
    with tempfile.TemporaryDirectory() as temporary:
        converted = Path(temporary) / "adapter"
        convert_adapter(folder, converted)
        _check_modules(model, _read_weights(converted), folder)
        return PeftModel.from_pretrained(model, converted, **options)


def convert_adapter(adapter: str | Path, output_dir: str | Path, revision: str | None = None) -> None:
    """Write an adapter made on `transformers` 5 under the names of `transformers` 4 and this package.

    Any tool loads the result without this package's help. An adapter that has these names already is copied.

    Args:
        adapter: Folder or Hub id of the adapter.
        output_dir: Folder to make; appears whole or not at all.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ValueError: There is no adapter, it adapts modules that SegFormer does not have, or `output_dir` is not empty.
    """
    from safetensors.torch import save_file

    folder = _adapter_folder(adapter, revision)
    config, weights = read_json(folder / _CONFIG), _read_weights(folder)
    if _is_transformers_5(weights):
        config = _convert_config(config, weights, folder)
        weights = {_our_name(name, folder): tensor for name, tensor in weights.items()}
    with new_folder(output_dir) as output:
        (output / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(weights, output / _WEIGHTS, metadata={"format": "pt"})


def _adapter_folder(adapter: str | Path, revision: str | None) -> Path:
    folder = Path(adapter)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(adapter)):
            raise ValueError(f"adapter must be a folder or a Hub id owner/name, got {str(adapter)!r}")
        with explained(adapter, "adapter"):
            folder = Path(snapshot_download(str(adapter), revision=revision, allow_patterns=[_CONFIG, _WEIGHTS]))
    if (folder / _PICKLE).is_file() and not (folder / _WEIGHTS).is_file():
        raise ValueError(
            f"{folder / _PICKLE} is a pickle, which could run code and is not read: where you trust it, save the "
            f"adapter anew with PEFT, which writes {_WEIGHTS}"
        )
    if missing := [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is no adapter: {listed(missing)} missing")
    return folder


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / _WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / _WEIGHTS} is no safetensors file or is damaged: {error}") from error


def _is_transformers_5(names: Iterable[str]) -> bool:
    return any(re.search(r"\bstages\.\d+\.|\bdecode_head\.linear_projections\.", name) for name in names)


def _modules() -> list[tuple[re.Pattern, str]]:
    """Rows of the tables for whole modules: pattern of a name that goes through one, and ours."""
    rows = []
    for theirs, row in {**HF5_ENCODER, **HF5_HEAD}.items():
        ours = str(row)  # in these tables each tensor has one place
        parts = re.split(r"\{(\w)\}", theirs.removesuffix(".{t}"))
        inner = "".join(PLACEHOLDERS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))
        rows.append((re.compile(rf"(?P<before>(?:\w+\.)*?){inner}(?P<after>\..+)?"), ours.removesuffix(".{t}")))
    return rows


_MODULES = _modules()


def _match(name: str, source: Path) -> tuple[re.Match, str]:
    for pattern, ours in _MODULES:
        if match := pattern.fullmatch(name):
            return match, ours
    raise ValueError(f"{source} adapts {name}, which no SegFormer has")


def _our_name(name: str, source: Path) -> str:
    match, ours = _match(name, source)
    found = match.groupdict()
    return found["before"] + ours.format(s=found.get("s"), l=found.get("l")) + (found["after"] or "")


def _convert_config(config: dict[str, Any], weights: Mapping[str, torch.Tensor], source: Path) -> dict[str, Any]:
    """The adapter's configuration with its modules spelt out, each by our full name."""
    adapted: set[str] = set()
    saved: set[str] = set()
    for name in weights:
        match, _ = _match(name, source)
        module = name.removeprefix(_PREFIX).removesuffix(match["after"] or "")
        is_saved = (match["after"] or "").removeprefix(".") in _PARAMETERS
        (saved if is_saved else adapted).add(module)
    ours = {module: _our_name(module, source) for module in adapted | saved}
    changed: dict[str, Any] = {"target_modules": sorted(ours[module] for module in adapted), "exclude_modules": None}
    # They select from names that are spelt out now.
    changed |= {"layers_to_transform": None, "layers_pattern": None}
    if config.get("modules_to_save"):
        kept = [entry for entry in config["modules_to_save"] if entry in _SAME_NAMES]
        loose = [ours[module] for module in saved if not any(entry in _parents(module) for entry in kept)]
        changed["modules_to_save"] = [*kept, *sorted(loose)]
    if chosen := config.get("feedforward_modules"):
        ends = tuple("." + entry for entry in chosen)
        fitting = [
            m for m in adapted if (re.fullmatch(chosen, m) if isinstance(chosen, str) else f".{m}".endswith(ends))
        ]
        changed["feedforward_modules"] = sorted(ours[module] for module in fitting)
    for field in ("rank_pattern", "alpha_pattern"):
        if config.get(field):
            changed[field] = {
                ours[module]: value for module, value in _resolve(config[field], sorted(adapted)).items()
            }
    return {**config, **{name: value for name, value in changed.items() if name in config}}


def _parents(module: str) -> set[str]:
    """Every name by which `module` or a module around it may be meant: "a.b.c" is in a, b, c, a.b, b.c and a.b.c."""
    parts = module.split(".")
    return {".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}


def _resolve(patterns: Mapping[str, Any], modules: Iterable[str]) -> dict[str, Any]:
    """What each module gets from PEFT's patterns, the first that fits its end counting."""
    found = {}
    for module in modules:
        fitting = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
        if (value := next(fitting, None)) is not None:
            found[module] = value
    return found


def _check_modules(model: PreTrainedModel, names: Iterable[str], source: Path) -> None:
    """PEFT passes over weights that have no place with a warning; here that is an error."""
    leaves = {name for name, module in model.named_modules() if not any(True for _ in module.children())}
    strangers = []
    for name in names:
        parts = name.removeprefix(_PREFIX).split(".")
        if not any(".".join(parts[:end]) in leaves for end in range(1, len(parts))):
            strangers.append(".".join(parts))
    if strangers:
        raise ValueError(f"{source} adapts what {type(model).__name__} does not have: {listed(sorted(strangers), 8)}")

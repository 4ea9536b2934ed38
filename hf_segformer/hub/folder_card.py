# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card of a folder that is pushed: the one that lies there, or a new one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from huggingface_hub import ModelCard

from ..configuration_segformer import SegformerConfig
from ..json_files import read_json, read_text
from ..texts import without_code
from .model_card import model_card


def folder_license(folder: str | os.PathLike) -> str | None:
    """Licence that the model card of a folder states.

    Args:
        folder: Model folder.

    Returns:
        Identifier, or None where the card or its licence is missing or "unknown".

    Raises:
        ValueError: The metadata in README.md cannot be read.
    """
    data: Any = _read_card(Path(folder) / "README.md").data
    license = data.license
    return None if license == "unknown" else license


def _read_card(path: Path) -> ModelCard:
    text = read_text(path) if path.exists() else ""
    try:
        return ModelCard(text)
    except Exception as error:  # YAML errors and huggingface_hub's own share no base class
        raise ValueError(f"the metadata of {path} cannot be read: {error}") from error


def checked_card(
    folder: Path,
    contents: dict[str, Path | bytes],
    repo_id: str,
    dataset: str | None,
    config: SegformerConfig,
    licence: dict[str, str | None],
) -> ModelCard:
    """The card of a model folder, with its licence.

    Args:
        folder: Model folder; without README.md the card is a new one.
        contents: Files that are pushed, by name.
        repo_id: Where they go.
        dataset: Name of the data set of metrics.json, for a new card.
        config: Configuration of the model.
        licence: Values of `license`, `license_name` and `license_link` that take the place of the card's.

    Raises:
        ValueError: The card cannot be read, its licence is unknown, or it shows a picture that is not pushed.
    """
    readme = folder / "README.md"
    card = _read_card(readme) if readme.exists() else _new_card(folder, contents, repo_id, dataset, config)
    _state_license(card, readme, licence)
    _check_pictures(card.text, readme, contents)
    return card


def _new_card(
    folder: Path, contents: dict[str, Path | bytes], repo_id: str, dataset: str | None, config: SegformerConfig
) -> ModelCard:
    """Card of a folder without README.md, from the other files that training and evaluation leave there."""
    metrics_file, table_file = folder / "metrics.json", folder / "per_class_iou.txt"
    return ModelCard(
        model_card(
            repo_id,
            dataset,
            metrics=read_json(metrics_file) if metrics_file.exists() else None,
            class_table=read_text(table_file).rstrip() if table_file.exists() else None,
            picture=next((name for name in sorted(contents) if name.startswith("overlays/")), None),
            config=config,
        )
    )


def _state_license(card: ModelCard, path: Path, fields: dict[str, str | None]) -> None:
    data: Any = card.data
    for name, value in fields.items():
        if value is not None:
            data[name] = value
    if data.license in (None, "unknown"):
        raise ValueError(f"license of the weights is unknown: state it in {path}, or pass license (--license)")
    if data.license == "other" and not (data.license_name or data.license_link):
        raise ValueError(f"license 'other' needs license_name or license_link, in {path} or as arguments")


def _check_pictures(card: str, path: Path, contents: dict[str, Path | bytes]) -> None:
    for shown in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", without_code(card)):
        if "://" not in shown and {shown.removeprefix("./"), unquote(shown).removeprefix("./")}.isdisjoint(contents):
            raise ValueError(f"{path} shows {shown}, which is not among the files to push")

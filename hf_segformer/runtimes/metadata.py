# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What an exported file says of itself: classes, preprocessing, input and outputs."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configuration_segformer import SegformerConfig
from ..hub_errors import load_processor
from ..image_processing_segformer import SegformerImageProcessor
from ..json_files import read_json
from ..texts import short_repr

METADATA_KEY = "hf_segformer"
FORMAT_VERSION = 1
OUTPUTS = {"logits": ("logits",), "labels": ("labels",), "labels+confidence": ("labels", "confidence")}
# Fields of the configuration that sizes of inputs and outputs depend on, and those that must agree with them.
NETWORK_FIELDS = (
    *("num_channels", "num_encoder_blocks", "depths", "hidden_sizes", "num_attention_heads", "mlp_ratios"),
    *("patch_sizes", "strides", "sr_ratios"),
)


@dataclass(frozen=True)
class FileMetadata:
    """Contents of the metadata, checked.

    Attributes:
        outputs: Names of the outputs.
        normalizes: Whether the file takes 8-bit pixels and normalises them itself.
        config: Configuration of the network; its stages are those of the published networks where the file is silent.
        image_processor: What prepares pictures for the network.
        size: (height, width) that the file was made for; None for any.
        batch: Number of pictures that it was made for; None for any.
        dtype: Type of the input, as NumPy calls it.
        weights: `weights_digest` of the folder that the file was made of; None where it does not say.
    """

    outputs: tuple[str, ...]
    normalizes: bool
    config: SegformerConfig
    image_processor: SegformerImageProcessor
    size: tuple[int, int] | None
    batch: int | None
    dtype: str
    weights: str | None = None


def parse_metadata(text: str, path: Path) -> FileMetadata:
    """Read the JSON that `segformer export` puts into a file.

    Args:
        text: The JSON.
        path: The file, for messages.

    Raises:
        ValueError: It is no such JSON, or of a later version; names the file.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{METADATA_KEY} must be JSON in the metadata of {path}: {error}") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"format_version must be {FORMAT_VERSION} in the metadata of {path}, got {short_repr(version)}: this "
            "version of hf_segformer reads no other"
        )
    try:
        return _checked(fields)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing from the metadata of {path}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"the metadata of {path} is not as it must be: {error}") from error


def _checked(fields: dict[str, Any]) -> FileMetadata:
    for name, known in {"output": OUTPUTS, "normalize": ("outside", "inside")}.items():
        if fields[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {short_repr(fields[name])}")
    names = {int(index): str(name) for index, name in fields["id2label"].items()}
    num_labels = fields["num_labels"]
    if sorted(names) != list(range(max(num_labels, 2))):  # one output tells two classes apart
        raise ValueError(
            f"id2label must name the classes 0 to {max(num_labels, 2) - 1} of num_labels={num_labels}, got "
            f"{short_repr(sorted(names))}"
        )
    outputs = {0: names[1]} if num_labels == 1 else dict(sorted(names.items()))
    size = None if fields["size"] is None else tuple(fields["size"])
    if size is not None and (len(size) != 2 or not all(type(side) is int and side > 0 for side in size)):
        raise ValueError(f"size must be null or two numbers of pixels, got {short_repr(fields['size'])}")
    stages = {name: value for name, value in fields.get("network", {}).items() if name in NETWORK_FIELDS}
    return FileMetadata(
        outputs=OUTPUTS[fields["output"]],
        normalizes=fields["normalize"] == "inside",
        config=SegformerConfig(id2label=outputs, palette=fields["palette"], **stages),
        image_processor=SegformerImageProcessor.from_dict(fields["preprocessor"]),
        size=size,
        batch=fields.get("batch"),
        dtype=str(fields["input"]["dtype"]),
        weights=fields.get("weights"),
    )


def weights_digest(folder: str | os.PathLike) -> str | None:
    """SHA-256 of a model folder's weights, None where they are not one file here.

    Args:
        folder: Folder or Hub id.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_weights(metadata: FileMetadata, path: Path, folder: str | os.PathLike) -> None:
    """Check that a file in a model folder was made of the weights that the folder holds now.

    Args:
        metadata: What the file says of itself.
        path: The file.
        folder: Folder of the model.

    Raises:
        ValueError: It was made of others.
    """
    if metadata.weights and weights_digest(folder) not in (None, metadata.weights):
        raise ValueError(
            f"{path} was exported from other weights than {Path(folder) / 'model.safetensors'}: export the model anew "
            "(--overwrite), or remove it"
        )


def metadata_of_folder(path: Path) -> FileMetadata:
    """What the model folder around a file of another program says: of optimum, Transformers.js and others.

    Args:
        path: The file; config.json and preprocessor_config.json lie beside it, or it lies in onnx/ of their folder.

    Raises:
        ValueError: There is no such folder, or its files are no SegFormer's.
    """
    places = [path.parent, path.parent.parent] if path.parent.name == "onnx" else [path.parent]
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        raise ValueError(
            f"{path} was not written by `segformer export`, and there is no config.json beside it that says which "
            "classes and preprocessing it has"
        )
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type != SegformerConfig.model_type:
        raise ValueError(f"model_type must be 'segformer' in {folder / 'config.json'}, got {short_repr(model_type)}")
    config, image_processor = SegformerConfig.from_pretrained(folder), load_processor(folder)
    return FileMetadata(("logits",), False, config, image_processor, None, None, "float32")

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (LoRA, by PEFT) of the encoder; the decode head trains whole."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..texts import listed

if TYPE_CHECKING:
    from peft import PeftModel

    from ..modeling_segformer import SegformerForSemanticSegmentation

# Names of the linear layers of attention and Mix-FFN.
TARGETS = ("query", "key", "value", "dense", "dense1", "dense2")


def check_lora(
    rank: int | None, alpha: float | None, targets: str | None, freeze: str | None, base: str | None
) -> None:
    """Check the flags that go with `lora`, as far as no model is needed.

    Args:
        rank: Flag `lora`.
        alpha: Flag `lora_alpha`.
        targets: Flag `lora_targets`.
        freeze: Flag `freeze`.
        base: Flag `model` or `encoder`.

    Raises:
        ValueError: A value is out of range, flags contradict each other, or PEFT is not installed.
    """
    if rank is None:
        for name, value in (("lora_alpha", alpha), ("lora_targets", targets)):
            if value is not None:
                raise ValueError(f"{name} goes with lora, which was left out, got {name}={value!r}")
        return
    if rank < 1:
        raise ValueError(f"lora must be a rank >= 1, got {rank}")
    if alpha is not None and not 0 < alpha < math.inf:
        raise ValueError(f"lora_alpha must be > 0 and finite, got {alpha}")
    if freeze is not None:
        raise ValueError(
            f"freeze={freeze!r} goes without lora={rank}, which leaves the encoder's own weights as they are"
        )
    if base is None:
        raise ValueError(
            f"lora={rank} adapts trained weights: name them with model or encoder, both of which were left out"
        )
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f'lora={rank} needs peft, which is not installed: pip install "hf_segformer[train]"')


def add_adapter(
    model: SegformerForSemanticSegmentation,
    rank: int,
    alpha: float,
    targets: str | None = None,
    base: str | None = None,
) -> PeftModel:
    """Put an adapter into a model, in place: its encoder's own weights get no gradient, its decode head trains whole.

    Args:
        model: Model with the base weights; it stays of its class, with layers replaced.
        rank: Rank of the matrices.
        alpha: They are multiplied by `alpha / rank`.
        targets: Ends of the names of the encoder's layers that get them, with commas between; None is `TARGETS`.
        base: Folder or Hub id of the base weights, noted in the adapter.

    Returns:
        PEFT's wrapper of the model.

    Raises:
        ValueError: A target is no linear layer or convolution of the encoder.
    """
    from peft import LoraConfig, get_peft_model

    names = TARGETS if targets is None else tuple(name.strip() for name in targets.split(","))
    layers = dict(model.segformer.named_modules())
    adaptable = {name for name, layer in layers.items() if _is_adaptable(layer)}
    for name in names:
        found = {layer for layer in layers if name and f".{layer}".endswith(f".{name}")}
        if not found or found - adaptable:
            ends = sorted({layer.rpartition(".")[2] for layer in adaptable})
            raise ValueError(f"lora_targets must be names of the encoder's layers ({listed(ends)}), got {name!r}")
    # A name alone would mean layers of the decode head as well.
    pattern = rf"segformer\.(.*\.)?({'|'.join(map(re.escape, names))})"
    scale: Any = alpha  # PEFT takes any number, and says int
    config = LoraConfig(
        r=rank,
        lora_alpha=scale,
        target_modules=pattern,
        modules_to_save=["decode_head"],  # with its BatchNorm's statistics
        base_model_name_or_path=base,
    )
    return get_peft_model(model, config)


def _is_adaptable(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def merge_adapter(adapter: PeftModel) -> dict[str, Tensor]:
    """Add an adapter's products to the weights of the model that it is in, in place, which is plain afterwards.

    Args:
        adapter: What `add_adapter` returned.

    Returns:
        The adapter's own weights, for `write_adapter`.
    """
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
    adapter.merge_and_unload()
    return weights


def write_adapter(adapter: PeftModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` loads onto the base model.

    Args:
        adapter: What `add_adapter` returned, merged or not.
        weights: What `merge_adapter` returned.
        folder: New folder.
    """
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = adapter.peft_config["default"]
    config.inference_mode = True
    config.save_pretrained(str(folder))

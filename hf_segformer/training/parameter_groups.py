# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Optimizer parameter groups of the published recipes, chosen by module type rather than by name."""

from torch import nn


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.01,
    head_multiplier: float = 10.0,
    decay_stage_norms: bool = False,
) -> list[dict]:
    """Split a model's trainable parameters into groups for AdamW.

    LayerNorm weights and biases of the encoder are not decayed; everything else is, biases and the decode head's
    BatchNorm included. The head learns `head_multiplier` times faster, and so do the matrices of a LoRA, which are as
    new as it is.

    Args:
        model: A `SegformerForSemanticSegmentation`, wrapped or not.
        learning_rate: Peak learning rate of the encoder.
        weight_decay: Decoupled weight decay.
        head_multiplier: Learning rate of `decode_head` divided by `learning_rate`.
        decay_stage_norms: Also decay the LayerNorm at the end of each stage, as mmsegmentation's recipes do (their
            rule matches parameter names, and those norms have no "norm" in theirs).

    Returns:
        Groups "encoder", "encoder_norm", "adapter" and "head" with the keys `name`, `params`, `lr`, `initial_lr` and
        `weight_decay`; empty groups are left out. `initial_lr` is the peak that a schedule multiplies.

    Source: NVlabs/SegFormer `local_configs/segformer`, mmsegmentation `configs/segformer` (optimizer constructor).
    """
    params: dict[str, list] = {"encoder": [], "encoder_norm": [], "adapter": [], "head": []}
    for module_name, module in model.named_modules():
        parts = module_name.split(".")
        in_head, in_adapter = "decode_head" in parts, any(part.startswith("lora_") for part in parts)
        is_stage_norm = ".encoder.layer_norm." in f".{module_name}"
        undecayed = isinstance(module, nn.LayerNorm) and not (decay_stage_norms and is_stage_norm)
        group = "head" if in_head else "adapter" if in_adapter else "encoder_norm" if undecayed else "encoder"
        params[group] += [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
    slow, fast = learning_rate, learning_rate * head_multiplier
    rates = {"encoder": slow, "encoder_norm": slow, "adapter": fast, "head": fast}
    decays = {"encoder_norm": 0.0}
    return [
        {
            "name": name,
            "params": group,
            "lr": rates[name],
            "initial_lr": rates[name],
            "weight_decay": decays.get(name, weight_decay),
        }
        for name, group in params.items()
        if group
    ]

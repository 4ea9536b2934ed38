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
    BatchNorm included. The head learns `head_multiplier` times faster.

    Args:
        model: A `SegformerForSemanticSegmentation`, wrapped or not.
        learning_rate: Peak learning rate of the encoder.
        weight_decay: Decoupled weight decay.
        head_multiplier: Learning rate of `decode_head` divided by `learning_rate`.
        decay_stage_norms: Also decay the LayerNorm at the end of each stage, as mmsegmentation's recipes do (their
            rule matches parameter names, and those norms have no "norm" in theirs).

    Returns:
        Groups "encoder", "encoder_norm" and "head" with the keys `name`, `params`, `lr`, `initial_lr`, `weight_decay`;
        empty groups are left out. `initial_lr` is the peak that a schedule multiplies.

    Source: NVlabs/SegFormer `local_configs/segformer`, mmsegmentation `configs/segformer` (optimizer constructor).
    """
    params: dict[str, list] = {"encoder": [], "encoder_norm": [], "head": []}
    for module_name, module in model.named_modules():
        in_head = "decode_head" in module_name.split(".")
        is_stage_norm = ".encoder.layer_norm." in f".{module_name}"
        undecayed = isinstance(module, nn.LayerNorm) and not (decay_stage_norms and is_stage_norm)
        group = "head" if in_head else "encoder_norm" if undecayed else "encoder"
        params[group] += [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
    rates = {"encoder": learning_rate, "encoder_norm": learning_rate, "head": learning_rate * head_multiplier}
    decays = {"encoder": weight_decay, "encoder_norm": 0.0, "head": weight_decay}
    return [
        {"name": name, "params": group, "lr": rates[name], "initial_lr": rates[name], "weight_decay": decays[name]}
        for name, group in params.items()
        if group
    ]

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Every known SegFormer checkpoint layout as a literal, invertible table of names; detection and conversion both ways.

All functions map dictionaries of tensors to dictionaries of tensors. "Ours" is the layout that `transformers` keeps on disk and
that this package's modules have; "theirs" is a foreign layout. Sources: the key names that each implementation writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .configuration_segformer import VARIANTS, SegformerConfig

# Placeholders: {s} stage from 0, {n} stage from 1, {r} stage counted from the last, {l} layer from 0, {t} weight, bias, ...
_PLACEHOLDERS = {
    "s": r"(?P<s>0|[1-9]\d{0,3})",
    "n": r"(?P<n>[1-9]\d{0,3})",
    "r": r"(?P<r>0|[1-9]\d{0,3})",
    "l": r"(?P<l>0|[1-9]\d{0,3})",
    "t": r"(?P<t>weight|bias|running_mean|running_var|num_batches_tracked)",
}


class Split(tuple):
    """Rows of one tensor of theirs are several tensors of ours, one after another."""


class Squeeze(str):
    """A 1x1 convolution of theirs is a linear layer of ours."""


class Reverse(str):
    """Their input columns begin with stage 1, ours with the last stage."""


Table = Mapping[str, "str | Split"]

HF5_ENCODER: Table = {
    "stages.{s}.patch_embeddings.proj.{t}": "encoder.patch_embeddings.{s}.proj.{t}",
    "stages.{s}.patch_embeddings.layer_norm.{t}": "encoder.patch_embeddings.{s}.layer_norm.{t}",
    "stages.{s}.blocks.{l}.layernorm_before.{t}": "encoder.block.{s}.{l}.layer_norm_1.{t}",
    "stages.{s}.blocks.{l}.attention.q_proj.{t}": "encoder.block.{s}.{l}.attention.self.query.{t}",
    "stages.{s}.blocks.{l}.attention.k_proj.{t}": "encoder.block.{s}.{l}.attention.self.key.{t}",
    "stages.{s}.blocks.{l}.attention.v_proj.{t}": "encoder.block.{s}.{l}.attention.self.value.{t}",
    "stages.{s}.blocks.{l}.attention.sequence_reduction.sequence_reduction.{t}": (
        "encoder.block.{s}.{l}.attention.self.sr.{t}"
    ),
    "stages.{s}.blocks.{l}.attention.sequence_reduction.layer_norm.{t}": (
        "encoder.block.{s}.{l}.attention.self.layer_norm.{t}"
    ),
    "stages.{s}.blocks.{l}.attention.o_proj.{t}": "encoder.block.{s}.{l}.attention.output.dense.{t}",
    "stages.{s}.blocks.{l}.layernorm_after.{t}": "encoder.block.{s}.{l}.layer_norm_2.{t}",
    "stages.{s}.blocks.{l}.mlp.fc1.{t}": "encoder.block.{s}.{l}.mlp.dense1.{t}",
    "stages.{s}.blocks.{l}.mlp.dwconv.dwconv.{t}": "encoder.block.{s}.{l}.mlp.dwconv.dwconv.{t}",
    "stages.{s}.blocks.{l}.mlp.fc2.{t}": "encoder.block.{s}.{l}.mlp.dense2.{t}",
    "stages.{s}.layer_norm.{t}": "encoder.layer_norm.{s}.{t}",
}
HF5_HEAD: Table = {
    "decode_head.linear_projections.{s}.proj.{t}": "decode_head.linear_c.{s}.proj.{t}",
    "decode_head.linear_fuse.{t}": "decode_head.linear_fuse.{t}",
    "decode_head.batch_norm.{t}": "decode_head.batch_norm.{t}",
    "decode_head.classifier.{t}": "decode_head.classifier.{t}",
    "classifier.{t}": "classifier.{t}",
}

# `transformers` on disk, 4.x and 5.x: ours. The second head is this package's convolutional one.
HF4_ENCODER: Table = {ours: ours for ours in HF5_ENCODER.values()}
HF4_HEAD: Table = {
    "decode_head.linear_c.{s}.proj.{t}": "decode_head.linear_c.{s}.proj.{t}",
    "decode_head.linear_c.{s}.batch_norm.{t}": "decode_head.linear_c.{s}.batch_norm.{t}",
    "decode_head.linear_fuse.{t}": "decode_head.linear_fuse.{t}",
    "decode_head.batch_norm.{t}": "decode_head.batch_norm.{t}",
    "decode_head.classifier.{t}": "decode_head.classifier.{t}",
    "classifier.{t}": "classifier.{t}",
}

NVLABS_ENCODER: Table = {
    "patch_embed{n}.proj.{t}": "encoder.patch_embeddings.{s}.proj.{t}",
    "patch_embed{n}.norm.{t}": "encoder.patch_embeddings.{s}.layer_norm.{t}",
    "block{n}.{l}.norm1.{t}": "encoder.block.{s}.{l}.layer_norm_1.{t}",
    "block{n}.{l}.attn.q.{t}": "encoder.block.{s}.{l}.attention.self.query.{t}",
    "block{n}.{l}.attn.kv.{t}": Split(
        ("encoder.block.{s}.{l}.attention.self.key.{t}", "encoder.block.{s}.{l}.attention.self.value.{t}")
    ),
    "block{n}.{l}.attn.sr.{t}": "encoder.block.{s}.{l}.attention.self.sr.{t}",
    "block{n}.{l}.attn.norm.{t}": "encoder.block.{s}.{l}.attention.self.layer_norm.{t}",
    "block{n}.{l}.attn.proj.{t}": "encoder.block.{s}.{l}.attention.output.dense.{t}",
    "block{n}.{l}.norm2.{t}": "encoder.block.{s}.{l}.layer_norm_2.{t}",
    "block{n}.{l}.mlp.fc1.{t}": "encoder.block.{s}.{l}.mlp.dense1.{t}",
    "block{n}.{l}.mlp.dwconv.dwconv.{t}": "encoder.block.{s}.{l}.mlp.dwconv.dwconv.{t}",
    "block{n}.{l}.mlp.fc2.{t}": "encoder.block.{s}.{l}.mlp.dense2.{t}",
    "norm{n}.{t}": "encoder.layer_norm.{s}.{t}",
}
NVLABS_HEAD: Table = {
    "decode_head.linear_c{n}.proj.{t}": "decode_head.linear_c.{s}.proj.{t}",
    "decode_head.linear_fuse.conv.{t}": "decode_head.linear_fuse.{t}",
    "decode_head.linear_fuse.bn.{t}": "decode_head.batch_norm.{t}",
    "decode_head.linear_pred.{t}": "decode_head.classifier.{t}",
    "head.{t}": "classifier.{t}",
}

# segmentation-models-pytorch: NVlabs' encoder, a decoder of its own.
SMP_HEAD: Table = {
    "decoder.mlp_stage.{r}.linear.{t}": "decode_head.linear_c.{s}.proj.{t}",
    "decoder.fuse_stage.0.{t}": "decode_head.linear_fuse.{t}",
    "decoder.fuse_stage.1.{t}": "decode_head.batch_norm.{t}",
    "segmentation_head.0.{t}": "decode_head.classifier.{t}",
}

MMSEG_ENCODER: Table = {
    "layers.{s}.0.projection.{t}": "encoder.patch_embeddings.{s}.proj.{t}",
    "layers.{s}.0.norm.{t}": "encoder.patch_embeddings.{s}.layer_norm.{t}",
    "layers.{s}.1.{l}.norm1.{t}": "encoder.block.{s}.{l}.layer_norm_1.{t}",
    "layers.{s}.1.{l}.attn.attn.in_proj_{t}": Split(
        (
            "encoder.block.{s}.{l}.attention.self.query.{t}",
            "encoder.block.{s}.{l}.attention.self.key.{t}",
            "encoder.block.{s}.{l}.attention.self.value.{t}",
        )
    ),
    "layers.{s}.1.{l}.attn.attn.out_proj.{t}": "encoder.block.{s}.{l}.attention.output.dense.{t}",
    "layers.{s}.1.{l}.attn.sr.{t}": "encoder.block.{s}.{l}.attention.self.sr.{t}",
    "layers.{s}.1.{l}.attn.norm.{t}": "encoder.block.{s}.{l}.attention.self.layer_norm.{t}",
    "layers.{s}.1.{l}.norm2.{t}": "encoder.block.{s}.{l}.layer_norm_2.{t}",
    "layers.{s}.1.{l}.ffn.layers.0.{t}": Squeeze("encoder.block.{s}.{l}.mlp.dense1.{t}"),
    "layers.{s}.1.{l}.ffn.layers.1.{t}": "encoder.block.{s}.{l}.mlp.dwconv.dwconv.{t}",
    "layers.{s}.1.{l}.ffn.layers.4.{t}": Squeeze("encoder.block.{s}.{l}.mlp.dense2.{t}"),
    "layers.{s}.2.{t}": "encoder.layer_norm.{s}.{t}",
}
MMSEG_HEAD: Table = {
    "decode_head.convs.{s}.conv.{t}": Squeeze("decode_head.linear_c.{s}.proj.{t}"),
    "decode_head.convs.{s}.bn.{t}": "decode_head.linear_c.{s}.batch_norm.{t}",
    "decode_head.fusion_conv.conv.{t}": Reverse("decode_head.linear_fuse.{t}"),
    "decode_head.fusion_conv.bn.{t}": "decode_head.batch_norm.{t}",
    "decode_head.conv_seg.{t}": "decode_head.classifier.{t}",
}


HEADS = {
    "none": "none (encoder only)",
    "classification": "classification",
    "mlp": "segmentation, all-MLP",
    "conv": "segmentation, convolutional (mmsegmentation)",
}


@dataclass(frozen=True)
class Layout:
    """One implementation's way to write a SegFormer.

    Attributes:
        title: For people.
        encoder: Table of the encoder's names, without `prefix`.
        head: Table of the heads' names.
        signature: Name, without `prefix`, that every file of this layout holds.
        prefix: What stands before the encoder's names.
        unprefixed: Heads (keys of `HEADS`) with which the encoder's names have no prefix.
        heads: Heads that this implementation has.
        numerics: Configuration fields that this implementation implies.
        unused: Patterns of names without effect in the implementation that wrote them, and why.
    """

    title: str
    encoder: Table
    head: Table
    signature: str
    prefix: str
    unprefixed: tuple[str, ...] = ("none",)
    heads: tuple[str, ...] = ("none", "classification", "mlp")
    numerics: Mapping[str, Any] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)


# Where two layouts share a signature the later one, whose prefix is mandatory, wins.
LAYOUTS: dict[str, Layout] = {
    "nvlabs": Layout(
        title="NVlabs/SegFormer",
        encoder=NVLABS_ENCODER,
        head=NVLABS_HEAD,
        signature="patch_embed1.proj.weight",
        prefix="backbone.",
        unprefixed=("none", "classification"),
        numerics={"block_norm_eps": 1e-6, "embed_norm_eps": 1e-5, "classifier_dropout_mode": "channel"},
        unused={r"decode_head\.conv_seg\.(weight|bias)": "never used by NVlabs' head, whose classifier is linear_pred"},
    ),
    "mmseg": Layout(
        title="mmsegmentation",
        encoder=MMSEG_ENCODER,
        head=MMSEG_HEAD,
        signature="layers.0.0.projection.weight",
        prefix="backbone.",
        heads=("none", "conv"),
        numerics={"block_norm_eps": 1e-6, "embed_norm_eps": 1e-6, "classifier_dropout_mode": "channel"},
    ),
    "smp": Layout(
        title="segmentation-models-pytorch",
        encoder=NVLABS_ENCODER,
        head=SMP_HEAD,
        signature="patch_embed1.proj.weight",
        prefix="encoder.",
        unprefixed=(),
        heads=("none", "mlp"),
        numerics={"block_norm_eps": 1e-6, "embed_norm_eps": 1e-5, "classifier_dropout_prob": 0.0},
    ),
    "hf4": Layout(
        title="transformers on disk",
        encoder=HF4_ENCODER,
        head=HF4_HEAD,
        signature="encoder.patch_embeddings.0.proj.weight",
        prefix="segformer.",
        heads=tuple(HEADS),
    ),
    "hf5": Layout(
        title="transformers 5 in memory",
        encoder=HF5_ENCODER,
        head=HF5_HEAD,
        signature="stages.0.patch_embeddings.proj.weight",
        prefix="segformer.",
    ),
}

# Entries that wrappers put beside a network's own.
_WRAPPER_ENTRIES = {
    r"(.*\.)?(n_averaged|steps)": "counter of weight averaging",
    r"ema_\w+": "raw weights that mmcv's EMAHook keeps beside the averaged ones",
}


class DetectedLayout(NamedTuple):
    """What names say about a state dict.

    Attributes:
        layout: Key of `LAYOUTS`.
        wrapper: Prefix of every name that is no part of the layout, such as "module.".
        others: Prefixes of further networks in the same state dict.
    """

    layout: str
    wrapper: str
    others: tuple[str, ...] = ()


@dataclass
class ConversionReport:
    """What a checkpoint is and what was done to each tensor.

    Attributes:
        source: Layout that was read, a key of `LAYOUTS`.
        target: Layout that was written; ours is "hf4".
        wrapper: Prefix that was taken off every name.
        variant: "b0" to "b5", or None for other sizes.
        head: Key of `HEADS`.
        dtype: Type of the weights.
        architecture: Fields of `SegformerConfig` that follow from shapes and layout.
        unchanged: Names that stayed.
        renamed: From name to name.
        split: From name to the names that its rows went to.
        fused: From names, joined by " + ", to the name of the one tensor they became.
        reshaped: From name to name where a 1x1 convolution became a linear layer or the other way round.
        reordered: From name to name where the columns' stages were reversed.
        dropped: From name to the reason.
        notes: What else a user should know.
    """

    source: str
    target: str
    wrapper: str = ""
    variant: str | None = None
    head: str = "none"
    dtype: str = ""
    architecture: dict[str, Any] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    split: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    reshaped: dict[str, str] = field(default_factory=dict)
    reordered: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def taken(self) -> int:
        """Number of tensors of the source that are in the result."""
        single = (self.unchanged, self.renamed, self.split, self.reshaped, self.reordered)
        return sum(map(len, single)) + sum(joined.count(" + ") + 1 for joined in self.fused)

    def record(self, sources: Sequence[str], targets: Sequence[str], change: type) -> None:
        """Note that tensors `sources` became `targets` by the kind of row `change`."""
        source, target = " + ".join(sources), ", ".join(targets)
        if change is Split:
            if len(targets) > 1:
                self.split[source] = tuple(targets)
            else:
                self.fused[source] = target
        elif change is str and source == target:
            self.unchanged.append(source)
        else:
            {str: self.renamed, Squeeze: self.reshaped, Reverse: self.reordered}[change][source] = target

    def __str__(self) -> str:
        size = f"SegFormer-{self.variant.upper()}" if self.variant else "SegFormer of no published size"
        labels = f", {self.architecture['num_labels']} classes" if "num_labels" in self.architecture else ""
        lines = [
            f"layout   {LAYOUTS[self.source].title} -> {LAYOUTS[self.target].title}",
            f"network  {size}, head: {HEADS[self.head]}{labels}, {self.dtype}",
            f"tensors  {self.taken} taken, {len(self.dropped)} dropped",
        ]
        if self.wrapper:
            lines.append(f"prefix   {self.wrapper!r} taken off")
        if self.unchanged:
            lines.append(f"  {len(self.unchanged):5} unchanged")
        for kind in ("renamed", "split", "fused", "reshaped", "reordered"):
            if entries := getattr(self, kind):
                source, target = next(iter(entries.items()))
                target = ", ".join(target) if kind == "split" else target
                lines.append(f"  {len(entries):5} {kind}, as {source} -> {target}")
        for reason in dict.fromkeys(self.dropped.values()):
            names = [name for name, why in self.dropped.items() if why == reason]
            lines.append(f"  {len(names):5} dropped, {reason}: {_listed(names, 4)}")
        return "\n".join(lines + [f"note     {note}" for note in self.notes])


def _listed(names: Iterable[str], limit: int = 20) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def detect_layout(names: Iterable[str], ema: bool = False) -> DetectedLayout:
    """Recognise a checkpoint's layout from the names of its tensors alone.

    Args:
        names: Names of the tensors (a state dict will do).
        ema: Of two sets of weights in one state dict, take the averaged one.

    Raises:
        ValueError: No layout fits, or it is open which of several networks is meant.
    """
    names, found = list(names), {}
    for key, layout in LAYOUTS.items():
        for name in names:
            if name != layout.signature and not name.endswith("." + layout.signature):
                continue
            before = name[: -len(layout.signature)]
            if before.endswith(layout.prefix) or layout.unprefixed:
                found[before] = DetectedLayout(key, before.removesuffix(layout.prefix))
    if not found:
        raise ValueError(f"no known SegFormer layout fits these names: {_listed(names, 10) or 'there are none'}")
    averaged = [detected for detected in found.values() if "ema" in re.split(r"[._]", detected.wrapper)]
    others = [detected for detected in found.values() if detected not in averaged]
    chosen = (averaged or others) if ema else (others or averaged)
    if len(chosen) > 1:
        raise ValueError(f"there are several networks, their names begin with {_listed(map(repr, sorted(found)))}")
    rest = tuple(detected.wrapper for detected in found.values() if detected is not chosen[0])
    return chosen[0]._replace(others=rest)


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    layout: str | None = None,
    *,
    drop: Sequence[str] = (),
    ema: bool = False,
    config: Mapping[str, Any] | None = None,
) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """Convert a state dict of any known layout to ours; every name, shape and value is checked.

    Args:
        state_dict: Tensors by name.
        layout: Key of `LAYOUTS` that the names must have; None to recognise it.
        drop: Beginnings of names to leave out, such as "auxiliary_head.".
        ema: Of two sets of weights in one state dict, take the averaged one.
        config: Fields of `SegformerConfig`: weights do not show `num_attention_heads` and `strides`, which are the published
            ones unless given here; what the weights show must agree.

    Returns:
        The new state dict and a report. With a segmentation or classification head the names are those of
        `SegformerForSemanticSegmentation` or `SegformerForImageClassification`, otherwise those of `SegformerModel`.

    Raises:
        ValueError: The layout is unknown or another one, names are left over or missing, shapes do not make a SegFormer or
            contradict `config`, or weights are not finite.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    detected = detect_layout(state_dict, ema)
    if layout not in (None, detected.layout):
        raise ValueError(f"layout {layout!r} was asked for, but the names are those of {detected.layout!r}")
    report = ConversionReport(source=detected.layout, target="hf4", wrapper=detected.wrapper)
    mine = _own_entries(state_dict, detected, drop, report)
    converted = _to_ours(mine, LAYOUTS[detected.layout], report)
    describe(converted, report, config or {})
    check_state_dict(converted, report)
    return converted, report


def export_state_dict(
    state_dict: Mapping[str, torch.Tensor], layout: str, *, config: Mapping[str, Any] | None = None
) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """Write one of our state dicts in a foreign layout: the inverse of `convert_state_dict`, bit for bit.

    Args:
        state_dict: State dict of a model of this package.
        layout: Key of `LAYOUTS`.
        config: See `convert_state_dict`.

    Returns:
        The foreign state dict and a report.

    Raises:
        ValueError: The layout is unknown or its implementation has no such head, or what `convert_state_dict` raises.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    state_dict, seen = convert_state_dict(state_dict, "hf4", config=config)
    if seen.head not in LAYOUTS[layout].heads:
        raise ValueError(f"{LAYOUTS[layout].title} has no head such as this model's: {HEADS[seen.head]}")
    report = ConversionReport(
        source="hf4", target=layout, variant=seen.variant, head=seen.head, dtype=seen.dtype, architecture=seen.architecture
    )
    return _to_theirs(state_dict, LAYOUTS[layout], report), report


def _own_entries(
    state_dict: Mapping[str, torch.Tensor], detected: DetectedLayout, drop: Sequence[str], report: ConversionReport
) -> dict[str, torch.Tensor]:
    """The network's own entries without the wrapper's prefix; fills `report.dropped`."""
    reasons = {**_WRAPPER_ENTRIES, **LAYOUTS[detected.layout].unused}
    wrapper, mine, outside = detected.wrapper, {}, []
    deeper = tuple(other for other in detected.others if len(other) > len(wrapper))
    for name, tensor in state_dict.items():
        inner = name.removeprefix(wrapper)
        reason = next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, inner)), None)
        if inner.startswith(tuple(drop)) or name.startswith(tuple(drop)):
            report.dropped[name] = "asked for"
        elif reason:
            report.dropped[name] = reason
        elif (deeper and name.startswith(deeper)) or (detected.others and not name.startswith(wrapper)):
            report.dropped[name] = "another set of weights in the same file"
        elif name.startswith(wrapper):
            mine[inner] = tensor
        else:
            outside.append(name)
    if outside:
        raise ValueError(f"names without the prefix {wrapper!r} of the others: {_listed(outside)}")
    return mine


@lru_cache(maxsize=None)
def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w)\}", template)
    return re.compile("".join(_PLACEHOLDERS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def _fill(template: str, match: re.Match, stages: int) -> str:
    """`template` with the stage, layer and tensor of `match`."""
    found = match.groupdict()
    stage = 0
    if "s" in found:
        stage = int(found["s"])
    elif "n" in found:
        stage = int(found["n"]) - 1
    elif "r" in found:
        stage = stages - 1 - int(found["r"])
    return template.format(s=stage, n=stage + 1, r=stages - 1 - stage, l=found.get("l"), t=found.get("t"))


def _rows(table: Table, prefix: str) -> list[tuple[str, str | Split]]:
    return [(prefix + theirs, ours) for theirs, ours in table.items()]


def _targets(ours: str | Split) -> tuple[str, ...]:
    return tuple(ours) if isinstance(ours, Split) else (str(ours),)


def _to_ours(state_dict: dict[str, torch.Tensor], layout: Layout, report: ConversionReport) -> dict[str, torch.Tensor]:
    prefix = layout.prefix if layout.prefix + layout.signature in state_dict else ""
    rows = [(_pattern(theirs), ours) for theirs, ours in _rows(layout.encoder, prefix) + _rows(layout.head, "")]
    first = _pattern(prefix + next(theirs for theirs in layout.encoder if theirs.endswith("proj.{t}")))
    stages = sum(1 for name in state_dict if name.endswith("weight") and first.fullmatch(name))
    moves, unmapped = [], []
    for name in state_dict:
        match, ours = next(((m, ours) for pattern, ours in rows if (m := pattern.fullmatch(name))), (None, None))
        if match is None:
            unmapped.append(name)
        else:
            moves.append((name, [_fill(target, match, stages) for target in _targets(ours)], type(ours)))
    if unmapped:
        hint = "merge the adapter first" if any("lora_" in name for name in unmapped) else "--drop leaves out by prefix"
        raise ValueError(f"{layout.title}: no place for {_listed(unmapped)} ({hint})")
    has_head = any(not target.startswith("encoder.") for _, targets, _ in moves for target in targets)
    converted: dict[str, torch.Tensor] = {}
    for name, targets, change in moves:
        targets = ["segformer." + target if has_head and target.startswith("encoder.") else target for target in targets]
        report.record([name], targets, change)
        converted.update(zip(targets, _take_apart(name, state_dict[name], change, len(targets), stages), strict=True))
    return converted


def _take_apart(name: str, tensor: torch.Tensor, change: type, parts: int, stages: int) -> list[torch.Tensor]:
    """One tensor of theirs as tensors of ours."""
    if change is Split:
        if tensor.ndim == 0 or tensor.shape[0] % parts:
            raise ValueError(f"{name} must have rows for {parts} matrices, its shape is {tuple(tensor.shape)}")
        return [part.clone() for part in tensor.chunk(parts)]
    if change is Squeeze and tensor.ndim > 1:
        if tensor.shape[2:] != (1, 1):
            raise ValueError(f"{name} must be a 1x1 convolution, its shape is {tuple(tensor.shape)}")
        return [tensor.flatten(1)]
    if change is Reverse and tensor.ndim > 1:
        if tensor.shape[1] % max(stages, 1):
            raise ValueError(f"{name} must have columns for {stages} stages, its shape is {tuple(tensor.shape)}")
        return [_reversed_stages(tensor, stages)]
    return [tensor]


def _reversed_stages(weight: torch.Tensor, stages: int) -> torch.Tensor:
    return torch.cat(weight.chunk(stages, dim=1)[::-1], dim=1)


def _to_theirs(state_dict: dict[str, torch.Tensor], layout: Layout, report: ConversionReport) -> dict[str, torch.Tensor]:
    prefix = "" if report.head in layout.unprefixed else layout.prefix
    stages = report.architecture["num_encoder_blocks"]
    ours_prefix = "" if report.head == "none" else "segformer."
    converted: dict[str, torch.Tensor] = {}
    pending = dict(state_dict)
    rows = [(*row, ours_prefix) for row in _rows(layout.encoder, prefix)] + [(*row, "") for row in _rows(layout.head, "")]
    for theirs, ours, before in rows:
        first, *others = [before + target for target in _targets(ours)]
        for name in list(pending):
            if not (match := _pattern(first).fullmatch(name)):
                continue
            sources = [name, *(_fill(other, match, stages) for other in others)]
            target = _fill(theirs, match, stages)
            tensors = [pending.pop(source) for source in sources]
            converted[target] = _put_together(tensors, type(ours), stages, target)
            report.record(sources, [target], type(ours))
    if pending:
        raise ValueError(f"{layout.title} has no place for {_listed(pending)}")
    return converted


def _put_together(tensors: list[torch.Tensor], change: type, stages: int, target: str) -> torch.Tensor:
    """Tensors of ours as the one tensor of theirs."""
    if change is Split:
        return torch.cat(tensors)
    tensor = tensors[0]
    if change is Squeeze and tensor.ndim > 1:
        return tensor[:, :, None, None]
    if change is Reverse and tensor.ndim > 1:
        return _reversed_stages(tensor, stages)
    return tensor

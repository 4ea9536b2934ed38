# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Recognise SegFormer checkpoints of any known layout and convert them both ways: dictionaries of tensors in and out.

"Ours" is the layout of this package's modules, "theirs" any other; the names are in `checkpoint_layouts.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch

from ..configuration_segformer import VARIANTS, SegformerConfig
from .layouts import (
    HEADS,
    LAYOUTS,
    PLACEHOLDERS,
    ConversionReport,
    Layout,
    Reverse,
    Split,
    Squeeze,
    Table,
    listed,
)

# What weights do not show: the heads of every published variant.
_PUBLISHED_HEADS = (1, 2, 5, 8)

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
        wanted = listed(dict.fromkeys(layout.signature for layout in LAYOUTS.values()))
        names = listed(map(str, names), 10) or "there are no names"
        raise ValueError(f"no known SegFormer layout fits, one of these is missing: {wanted}. Names: {names}")
    averaged = [detected for detected in found.values() if "ema" in re.split(r"[._]", detected.wrapper)]
    others = [detected for detected in found.values() if detected not in averaged]
    chosen = (averaged or others) if ema else (others or averaged)
    if len(chosen) > 1:
        raise ValueError(f"there are several networks, their names begin with {listed(map(repr, sorted(found)))}")
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
        config: Fields of `SegformerConfig`. Weights do not show `num_attention_heads` and `strides`, which are the
            published ones unless given here; what the weights show must agree.

    Returns:
        The new state dict and a report. With a segmentation or classification head the names are those of
        `SegformerForSemanticSegmentation` or `SegformerForImageClassification`, otherwise those of `SegformerModel`.

    Raises:
        ValueError: The layout is unknown or another one, names are left over or missing, shapes make no SegFormer or
            contradict `config`, or weights are not finite.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if strangers := [name for name, tensor in state_dict.items() if not isinstance(tensor, torch.Tensor)]:
        raise ValueError(f"state_dict must hold tensors only, these are none: {listed(map(str, strangers))}")
    detected = detect_layout(state_dict, ema)
    if layout not in (None, detected.layout):
        raise ValueError(f"layout {layout!r} was asked for, but the names are those of {detected.layout!r}")
    report = ConversionReport(source=detected.layout, target="hf4", wrapper=detected.wrapper)
    mine = _own_entries(state_dict, detected, drop, report)
    converted = _to_ours(mine, LAYOUTS[detected.layout], report)
    _describe(converted, report, config or {})
    _check_complete(converted, report)
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
        source="hf4",
        target=layout,
        variant=seen.variant,
        head=seen.head,
        dtype=seen.dtype,
        architecture=seen.architecture,
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
        raise ValueError(f"names without the prefix {wrapper!r} of the others: {listed(outside)}")
    return mine


@cache
def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w)\}", template)
    return re.compile("".join(PLACEHOLDERS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def _stage(match: re.Match, stages: int) -> int:
    found = match.groupdict()
    if "n" in found:
        return int(found["n"]) - 1
    return stages - 1 - int(found["r"]) if "r" in found else int(found.get("s", 0))


def _fill(template: str, match: re.Match, stages: int) -> str:
    """`template` with the stage, layer and tensor of `match`."""
    found, stage = match.groupdict(), _stage(match, stages)
    return template.format(s=stage, n=stage + 1, r=stages - 1 - stage, l=found.get("l"), t=found.get("t"))


def _rows(table: Table, prefix: str) -> list[tuple[str, str | Split]]:
    return [(prefix + theirs, ours) for theirs, ours in table.items()]


def _targets(ours: str | Split) -> tuple[str, ...]:
    return tuple(ours) if isinstance(ours, Split) else (str(ours),)


def _to_ours(state_dict: dict[str, torch.Tensor], layout: Layout, report: ConversionReport) -> dict[str, torch.Tensor]:
    prefix = layout.prefix if layout.prefix + layout.signature in state_dict else ""
    encoder = [(_pattern(theirs), ours) for theirs, ours in _rows(layout.encoder, prefix)]
    rows = encoder + [(_pattern(theirs), ours) for theirs, ours in _rows(layout.head, "")]
    found: dict[str, tuple[re.Match[str], str | Split]] = {}
    for name in state_dict:
        if row := next(((match, ours) for pattern, ours in rows if (match := pattern.fullmatch(name))), None):
            found[name] = row
    if unmapped := [name for name in state_dict if name not in found]:
        hint = (
            "merge the adapter first" if any("lora_" in name for name in unmapped) else "--drop leaves out by prefix"
        )
        raise ValueError(f"{layout.title}: no place for {listed(unmapped)} ({hint})")
    stages = len({_stage(match, 0) for match, _ in found.values() if any(match.re is row[0] for row in encoder)})
    moves = []
    for name, (match, ours) in found.items():
        moves.append((name, [_fill(target, match, stages) for target in _targets(ours)], type(ours)))
    has_head = any(not target.startswith("encoder.") for _, targets, _ in moves for target in targets)
    converted: dict[str, torch.Tensor] = {}
    for name, targets, change in moves:
        targets = [
            "segformer." + target if has_head and target.startswith("encoder.") else target for target in targets
        ]
        change = str if state_dict[name].ndim < 2 and change is not Split else change
        report.record([name], targets, change)
        converted.update(zip(targets, _take_apart(name, state_dict[name], change, len(targets), stages), strict=True))
    return converted


def _take_apart(name: str, tensor: torch.Tensor, change: type, parts: int, stages: int) -> list[torch.Tensor]:
    """One tensor of theirs as tensors of ours."""
    if change is Split:
        if tensor.ndim == 0 or tensor.shape[0] % parts:
            raise ValueError(f"{name} must have rows for {parts} matrices, its shape is {tuple(tensor.shape)}")
        return [part.clone() for part in tensor.chunk(parts)]
    if change is Squeeze:
        if tensor.shape[2:] != (1, 1):
            raise ValueError(f"{name} must be a 1x1 convolution, its shape is {tuple(tensor.shape)}")
        return [tensor.flatten(1)]
    if change is Reverse:
        if tensor.shape[1] % max(stages, 1):
            raise ValueError(f"{name} must have columns for {stages} stages, its shape is {tuple(tensor.shape)}")
        return [_reversed_stages(tensor, stages)]
    return [tensor]


def _reversed_stages(weight: torch.Tensor, stages: int) -> torch.Tensor:
    return torch.cat(weight.chunk(stages, dim=1)[::-1], dim=1)


def _to_theirs(
    state_dict: dict[str, torch.Tensor], layout: Layout, report: ConversionReport
) -> dict[str, torch.Tensor]:
    prefix = "" if report.head in layout.unprefixed else layout.prefix
    stages = report.architecture["num_encoder_blocks"]
    ours_prefix = "" if report.head == "none" else "segformer."
    converted: dict[str, torch.Tensor] = {}
    pending = dict(state_dict)
    rows = [(*row, ours_prefix) for row in _rows(layout.encoder, prefix)] + [
        (*row, "") for row in _rows(layout.head, "")
    ]
    for theirs, ours, before in rows:
        first, *others = [before + target for target in _targets(ours)]
        for name in list(pending):
            if not (match := _pattern(first).fullmatch(name)):
                continue
            sources = [name, *(_fill(other, match, stages) for other in others)]
            target = _fill(theirs, match, stages)
            tensors = [pending.pop(source) for source in sources]
            change = str if tensors[0].ndim < 2 and len(tensors) == 1 else type(ours)
            converted[target] = _put_together(tensors, change, stages)
            report.record(sources, [target], change)
    if pending:
        raise ValueError(f"{layout.title} has no place for {listed(pending)}")
    return converted


def _put_together(tensors: list[torch.Tensor], change: type, stages: int) -> torch.Tensor:
    """Tensors of ours as the one tensor of theirs."""
    if change is Split:
        return torch.cat(tensors)
    tensor = tensors[0]
    if change is Squeeze:
        return tensor[:, :, None, None]
    if change is Reverse:
        return _reversed_stages(tensor, stages)
    return tensor


def _describe(converted: Mapping[str, torch.Tensor], report: ConversionReport, config: Mapping[str, Any]) -> None:
    """Fill in what the network is; raises if the names lack what tells its size."""
    report.head = _head_of(converted)
    source = LAYOUTS[report.source]
    if report.head not in source.heads:
        raise ValueError(f"{source.title} has no head such as this one: {HEADS[report.head]}")
    fields = _shown_by_shapes(converted, report)
    for name, value in fields.items():
        given = config.get(name, value)
        if (list(given) if isinstance(given, (list, tuple)) else given) != value:
            raise ValueError(f"the configuration has {name}={given}, the weights have {value}")
    for variant, sizes in VARIANTS.items():
        if all(list(sizes[name]) == fields[name] for name in ("hidden_sizes", "depths")):
            report.variant = variant
            if report.head in ("none", "classification"):
                fields["decoder_hidden_size"] = config.get("decoder_hidden_size", sizes["decoder_hidden_size"])
    fields["strides"] = list(config.get("strides", [(size + 1) // 2 for size in fields["patch_sizes"]]))
    fields["num_attention_heads"] = _attention_heads(fields["hidden_sizes"], config, report)
    report.architecture = {**source.numerics, **fields}
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in converted.values() if tensor.is_floating_point()}
    report.dtype = " and ".join(sorted(dtypes))


def _head_of(converted: Mapping[str, torch.Tensor]) -> str:
    if any(re.fullmatch(r"decode_head\.linear_c\.\d+\.batch_norm\.\w+", name) for name in converted):
        return "conv"
    if any(name.startswith("decode_head.") for name in converted):
        return "mlp"
    return "classification" if "classifier.weight" in converted else "none"


def _shown_by_shapes(converted: Mapping[str, torch.Tensor], report: ConversionReport) -> dict[str, Any]:
    encoder = "encoder." if report.head == "none" else "segformer.encoder."

    def shape(name: str, ndim: int) -> torch.Size:
        if name not in converted:
            raise ValueError(f"missing: {_their_name(name, report)}")
        if converted[name].ndim != ndim:
            found = tuple(converted[name].shape)
            raise ValueError(f"{_their_name(name, report)} must have {ndim} dimensions, its shape is {found}")
        return converted[name].shape

    # Stages and layers are counted, not taken from the highest number, so that a gap is found.
    stages = len({match["s"] for name in converted if (match := _STAGE.search(name))})
    layers = {(int(match["s"]), match["l"]) for name in converted if (match := _LAYER.search(name))}
    reduced = {int(match["s"]) for name in converted if (match := _REDUCTION.search(name))}
    projections = [shape(f"{encoder}patch_embeddings.{stage}.proj.weight", 4) for stage in range(stages)]
    widths = [shape(f"{encoder}block.{stage}.0.mlp.dense1.weight", 2)[0] for stage in range(stages)]
    reductions = [f"{encoder}block.{stage}.0.attention.self.sr.weight" for stage in range(stages)]
    fields: dict[str, Any] = {
        "num_channels": projections[0][1],
        "num_encoder_blocks": stages,
        "depths": [sum(1 for other, _ in layers if other == stage) for stage in range(stages)],
        "hidden_sizes": [projection[0] for projection in projections],
        "patch_sizes": [projection[2] for projection in projections],
        "sr_ratios": [shape(name, 4)[2] if stage in reduced else 1 for stage, name in enumerate(reductions)],
        "mlp_ratios": [width // max(projection[0], 1) for width, projection in zip(widths, projections, strict=True)],
    }
    if report.head in ("mlp", "conv"):
        width = shape("decode_head.linear_fuse.weight", 4)[0]
        fields["num_labels"] = shape("decode_head.classifier.weight", 4)[0]
        fields["decoder_hidden_size"] = width if report.head == "mlp" else None
        fields["conv_decoder_hidden_size"] = width if report.head == "conv" else None
    elif report.head == "classification":
        fields["num_labels"] = shape("classifier.weight", 2)[0]
    return fields


_STAGE = re.compile(r"\bencoder\.(?:patch_embeddings|block|layer_norm)\.(?P<s>\d+)\.")
_LAYER = re.compile(r"\bencoder\.block\.(?P<s>\d+)\.(?P<l>\d+)\.")
_REDUCTION = re.compile(r"\bencoder\.block\.(?P<s>\d+)\.\d+\.attention\.self\.(?:sr|layer_norm)\.")


def _attention_heads(hidden_sizes: list[int], config: Mapping[str, Any], report: ConversionReport) -> list[int]:
    if "num_attention_heads" in config:
        return list(config["num_attention_heads"])
    fits = len(hidden_sizes) == len(_PUBLISHED_HEADS)
    if not fits or any(width % heads for width, heads in zip(hidden_sizes, _PUBLISHED_HEADS, strict=True)):
        raise ValueError(
            f"weights do not show num_attention_heads, and the published {_PUBLISHED_HEADS} do not fit the widths "
            f"{hidden_sizes}: give it in the configuration"
        )
    if report.variant is None:
        report.notes.append(f"weights do not show num_attention_heads: {_PUBLISHED_HEADS} is assumed")
    return list(_PUBLISHED_HEADS)


def _their_name(name: str, report: ConversionReport) -> str:
    """What the source calls our tensor `name`; for error messages."""
    layout, inner = LAYOUTS[report.source], name.removeprefix("segformer.")
    prefix = "" if report.head in layout.unprefixed else layout.prefix
    for theirs, ours in _rows(layout.encoder, prefix) + _rows(layout.head, ""):
        for target in _targets(ours):
            if match := _pattern(target).fullmatch(inner):
                return report.wrapper + _fill(theirs, match, report.architecture.get("num_encoder_blocks", 4))
    return name


def model_class_for(head: str) -> type[torch.nn.Module]:
    """Class of this package whose state dict has the names of a converted one.

    Args:
        head: Key of `HEADS`.
    """
    from .. import modeling_segformer as modeling

    if head == "none":
        return modeling.SegformerModel
    if head == "classification":
        return modeling.SegformerForImageClassification
    return modeling.SegformerForSemanticSegmentation


@lru_cache(maxsize=8)
def _expected_tensors(head: str, architecture: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return model_class_for(head)(SegformerConfig(**json.loads(architecture))).state_dict()


def _check_complete(converted: Mapping[str, torch.Tensor], report: ConversionReport) -> None:
    expected = _expected_tensors(report.head, json.dumps(report.architecture, sort_keys=True))
    problems = []
    if missing := sorted({_their_name(name, report) for name in expected if name not in converted}):
        problems.append(f"missing: {listed(missing)}")
    if left_over := [_their_name(name, report) for name in converted if name not in expected]:
        problems.append(f"more than the network has: {listed(left_over)}")
    shapes = [
        f"{_their_name(name, report)} {tuple(converted[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in converted and converted[name].shape != tensor.shape
    ]
    if shapes:
        problems.append(f"wrong shapes: {listed(shapes)}")
    common = [name for name in expected if name in converted]
    if kinds := [n for n in common if converted[n].is_floating_point() != expected[n].is_floating_point()]:
        found = [f"{_their_name(name, report)} {converted[name].dtype}" for name in kinds]
        problems.append(f"wrong types: {listed(found)}")
    if not problems and (broken := [name for name in common if not bool(converted[name].isfinite().all())]):
        problems.append(f"values that are not finite: {listed(_their_name(name, report) for name in broken)}")
    if problems:
        raise ValueError(f"this is no complete {LAYOUTS[report.source].title} SegFormer; " + "; ".join(problems))

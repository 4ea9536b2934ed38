# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Every known SegFormer checkpoint layout as a literal, invertible table of names; the report on a conversion.

In the tables keys are the names that an implementation writes ("theirs"), values those of this package's modules
("ours"), which are also what `transformers` keeps on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..texts import TEXT_LIMIT, listed, one_line, short_repr

# {s} stage from 0, {n} stage from 1, {r} stage counted from the last, {l} layer from 0, {t} weight, bias, ...
PLACEHOLDERS = {
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
HF4_ENCODER: Table = {str(ours): ours for ours in HF5_ENCODER.values()}
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
        encoder: Table of the encoder's names, without `prefix`; the first row is the patch embedding's projection.
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
        unused={
            r"decode_head\.conv_seg\.(weight|bias)": "never used by NVlabs' head, whose classifier is linear_pred"
        },
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
            kinds: dict[type, dict[str, str]] = {str: self.renamed, Squeeze: self.reshaped, Reverse: self.reordered}
            kinds[change][source] = target

    def __str__(self) -> str:
        size = f"SegFormer-{self.variant.upper()}" if self.variant else "SegFormer of no published size"
        labels = f", {self.architecture['num_labels']} classes" if "num_labels" in self.architecture else ""
        lines = [
            f"layout   {LAYOUTS[self.source].title} -> {LAYOUTS[self.target].title}",
            f"network  {size}, head: {HEADS[self.head]}{labels}, {self.dtype}",
            f"tensors  {self.taken} taken, {len(self.dropped)} dropped",
        ]
        if self.wrapper:
            lines.append(f"prefix   {short_repr(self.wrapper)} taken off")
        if self.unchanged:
            lines.append(f"  {len(self.unchanged):5} unchanged")
        for kind in ("renamed", "split", "fused", "reshaped", "reordered"):
            if entries := getattr(self, kind):
                source, target = next(iter(entries.items()))
                target = ", ".join(target) if kind == "split" else target
                lines.append(f"  {len(entries):5} {kind}, as {one_line(source)} -> {one_line(target)}")
        for reason in dict.fromkeys(self.dropped.values()):
            names = [name for name, why in self.dropped.items() if why == reason]
            lines.append(f"  {len(names):5} dropped, {reason}: {listed(names, 4)}")
        return "\n".join(lines + [f"note     {one_line(note, 2 * TEXT_LIMIT)}" for note in self.notes])

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""NVlabs' network, whose code is not free to run, derived again from the published facts, and weights for it."""

import torch
from torch.nn import functional as F

# Weights without symmetry, BatchNorm statistics included; LayerNorm inputs of little variance, so that epsilons show.
RANDOMIZE = """
import torch
@torch.no_grad()
def randomize(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (model if isinstance(model, dict) else model.eval().state_dict()).items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if not tensor.is_floating_point():
            tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.ndim > 1:
            tensor.copy_(noise * 0.7 / tensor[0].numel() ** 0.5)
        elif name.endswith("weight"):
            tensor.copy_(1 + 0.3 * noise)
        else:
            tensor.copy_(0.2 * noise)
    return model
images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 0.1
"""
_names = {}
exec(RANDOMIZE, _names)
randomize, images = _names["randomize"], _names["images"]

NVLABS = {
    "b0": ([32, 64, 160, 256], [2, 2, 2, 2], 256),
    "b1": ([64, 128, 320, 512], [2, 2, 2, 2], 256),
    "deep": ([64, 128, 320, 512], [1, 2, 3, 1], 768),
}


def nvlabs_weights(widths, depths, decoder_width, num_labels, classes=None):
    """Random weights under NVlabs' names; with `classes`, those of an ImageNet file."""
    shapes, before, start = {}, 3, "" if classes else "backbone."

    def layer(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    for n, (width, depth, kernel, reduction) in enumerate(
        zip(widths, depths, (7, 3, 3, 3), (8, 4, 2, 1), strict=True), 1
    ):
        layer(f"{start}patch_embed{n}.proj", width, before, kernel, kernel)
        layer(f"{start}patch_embed{n}.norm", width)
        for j in range(depth):
            block = f"{start}block{n}.{j}"
            layer(f"{block}.norm1", width)
            layer(f"{block}.attn.q", width, width)
            layer(f"{block}.attn.kv", 2 * width, width)
            layer(f"{block}.attn.proj", width, width)
            if reduction > 1:
                layer(f"{block}.attn.sr", width, width, reduction, reduction)
                layer(f"{block}.attn.norm", width)
            layer(f"{block}.norm2", width)
            layer(f"{block}.mlp.fc1", 4 * width, width)
            layer(f"{block}.mlp.dwconv.dwconv", 4 * width, 1, 3, 3)
            layer(f"{block}.mlp.fc2", width, 4 * width)
        layer(f"{start}norm{n}", width)
        before = width
    if classes:
        layer("head", classes, widths[-1])
    else:
        layer("decode_head.conv_seg", num_labels, 128, 1, 1)
        for n in (4, 3, 2, 1):
            layer(f"decode_head.linear_c{n}.proj", decoder_width, widths[n - 1])
        layer("decode_head.linear_fuse.conv", decoder_width, 4 * decoder_width, 1, 1, bias=False)
        layer("decode_head.linear_fuse.bn", decoder_width)
        for name in ("running_mean", "running_var"):
            shapes[f"decode_head.linear_fuse.bn.{name}"] = (decoder_width,)
        layer("decode_head.linear_pred", num_labels, decoder_width, 1, 1)

    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    randomize(weights)
    if not classes:
        weights["decode_head.linear_fuse.bn.num_batches_tracked"] = torch.tensor(7)
    return weights


def nvlabs_logits(weights, pixels):
    """The network of arXiv 2105.15203 with the released weights' epsilons, by plain functions."""
    weights = {name: tensor.to(pixels.dtype) for name, tensor in weights.items()}
    start = "backbone." if "backbone.norm1.weight" in weights else ""

    def of(name):
        return weights[f"{name}.weight"], weights.get(f"{name}.bias")

    def norm(tokens, name, eps):
        return F.layer_norm(tokens, tokens.shape[-1:], *of(name), eps)

    maps = []
    for n, (heads, reduction) in enumerate(zip((1, 2, 5, 8), (8, 4, 2, 1), strict=True), start=1):
        embed = f"{start}patch_embed{n}"
        kernel = weights[f"{embed}.proj.weight"].shape[-1]
        grid = F.conv2d(pixels if n == 1 else maps[-1], *of(f"{embed}.proj"), 4 if n == 1 else 2, kernel // 2)
        batch, width, height, breadth = grid.shape
        tokens = norm(grid.flatten(2).mT, f"{embed}.norm", 1e-5)

        def as_map(tokens, size=(height, breadth)):
            return tokens.mT.unflatten(2, size)

        j = 0
        while f"{start}block{n}.{j}.norm1.weight" in weights:
            block = f"{start}block{n}.{j}"
            inner = norm(tokens, f"{block}.norm1", 1e-6)
            context = inner
            if reduction > 1:
                context = F.conv2d(as_map(inner), *of(f"{block}.attn.sr"), reduction).flatten(2).mT
                context = norm(context, f"{block}.attn.norm", 1e-5)
            keys_and_values = F.linear(context, *of(f"{block}.attn.kv"))
            parts = (
                F.linear(inner, *of(f"{block}.attn.q")),
                keys_and_values[..., :width],
                keys_and_values[..., width:],
            )
            query, key, value = (part.reshape(batch, -1, heads, width // heads).transpose(1, 2) for part in parts)
            scores = torch.einsum("bhid,bhjd->bhij", query, key) * (width // heads) ** -0.5
            mixed = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), value).transpose(1, 2).flatten(2)
            tokens = tokens + F.linear(mixed, *of(f"{block}.attn.proj"))
            inner = F.linear(norm(tokens, f"{block}.norm2", 1e-6), *of(f"{block}.mlp.fc1"))
            inner = F.conv2d(as_map(inner), *of(f"{block}.mlp.dwconv.dwconv"), padding=1, groups=inner.shape[-1])
            tokens = tokens + F.linear(F.gelu(inner.flatten(2).mT), *of(f"{block}.mlp.fc2"))
            j += 1
        maps.append(as_map(norm(tokens, f"{start}norm{n}", 1e-6)))
    if "head.weight" in weights:
        return F.linear(maps[-1].mean((2, 3)), *of("head"))
    stacked = []
    for n in (4, 3, 2, 1):
        projected = torch.einsum("bchw,ec->behw", maps[n - 1], weights[f"decode_head.linear_c{n}.proj.weight"])
        projected = projected + weights[f"decode_head.linear_c{n}.proj.bias"][:, None, None]
        stacked.append(F.interpolate(projected, maps[0].shape[2:], mode="bilinear", align_corners=False))
    fused = F.conv2d(torch.cat(stacked, 1), weights["decode_head.linear_fuse.conv.weight"])
    bn = "decode_head.linear_fuse.bn"
    fused = F.batch_norm(fused, weights[f"{bn}.running_mean"], weights[f"{bn}.running_var"], *of(bn), eps=1e-5)
    return F.conv2d(fused.relu(), *of("decode_head.linear_pred"))

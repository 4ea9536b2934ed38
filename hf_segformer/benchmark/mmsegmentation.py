# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""SegFormer of mmsegmentation in a process of its own, because it needs an older NumPy; `benchmark` talks to it.

Prints "ready", then runs one forward pass for every line it reads and answers with a line.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch


class _Operators(types.ModuleType):
    """Stands in for compiled operators that mmcv-lite lacks and SegFormer does not use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def build(variant: str, num_labels: int) -> Any:
    """Network of mmsegmentation's own ADE20K configuration."""
    sys.modules.setdefault("mmcv.ops", _Operators("mmcv.ops"))
    import mmseg
    from mmengine import Config
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    recipes = Path(mmseg.__file__).parent / ".mim" / "configs" / "segformer"
    config = Config.fromfile(next(recipes.glob(f"segformer_mit-{variant}_*ade20k-512x512.py"))).model
    config.backbone.update(init_cfg=None)
    config.decode_head.update(norm_cfg={"type": "BN", "requires_grad": True}, num_classes=num_labels)
    config.backbone.pop("pretrained", None)
    return MODELS.build(config).eval()


def main() -> None:
    """Answer until the input ends."""
    settings = json.loads(sys.argv[1])
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    # Imports print notices; the conversation needs standard output for itself.
    answers, sys.stdout = sys.stdout, sys.stderr
    dtype = getattr(torch, settings["dtype"])
    model = build(settings["variant"], settings["num_labels"]).to(settings["device"], dtype)
    pixel_values = torch.randn(settings["batch_size"], 3, *settings["size"]).to(settings["device"], dtype)
    print("ready", file=answers, flush=True)
    with torch.inference_mode():
        for _ in sys.stdin:
            model.decode_head(model.backbone(pixel_values))
            if settings["device"].startswith("cuda"):
                torch.cuda.synchronize()
            print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()

# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Peak memory of this process in MiB while it runs one network, printed as JSON; `benchmark` starts it.

`imports` is what was resident before the weights were loaded, `loading` the peak until they were, `peak` that of the
work.

python hf_segformer/benchmark/memory.py '{"side": "ours", "folder": "MODEL", "train": true, "batch_size": 2,
    "size": [512, 512], "device": "cpu", "dtype": "float32"}'
"""

import importlib
import json
import sys
from pathlib import Path

import psutil
import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MODULES = {"ours": "hf_segformer", "transformers": "transformers.models.segformer.modeling_segformer"}


def resident_peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    if resource is None:
        return psutil.Process().memory_info().peak_wset / (1 << 20)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.is_file():  # unlike ru_maxrss, this one can be set back
        kilobytes = next(
            int(line.split()[1])
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM")
        )
    return kilobytes / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def forget_peak() -> None:
    """Set the peak back to what is resident now, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


def main() -> None:
    """Load, run a few steps, print the figures."""
    settings = json.loads(sys.argv[1])
    model_class = importlib.import_module(MODULES[settings["side"]]).SegformerForSemanticSegmentation
    device, dtype = settings["device"], getattr(torch, settings["dtype"])
    forget_peak()
    imports = resident_peak()
    model = model_class.from_pretrained(settings["folder"]).to(device)
    torch.manual_seed(0)
    loading = resident_peak()
    forget_peak()
    pixel_values = torch.randn(settings["batch_size"], 3, *settings["size"], device=device)
    if settings["train"]:
        labels = torch.randint(model.config.num_labels, (settings["batch_size"], *settings["size"]), device=device)
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
        for _ in range(3):
            with torch.autocast(device.split(":")[0], dtype, enabled=dtype != torch.float32):
                loss = model(pixel_values, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        model, pixel_values = model.eval().to(dtype), pixel_values.to(dtype)
        with torch.inference_mode():
            for _ in range(3):
                model(pixel_values)
    peak = resident_peak()
    if device.startswith("cuda"):
        imports, peak = 0.0, torch.cuda.max_memory_allocated() / (1 << 20)
    print(json.dumps({"imports": imports, "loading": loading, "peak": peak}))


if __name__ == "__main__":
    main()

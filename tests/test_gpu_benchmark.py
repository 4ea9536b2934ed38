# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The first report from a GPU: every part for real on the CPU, and what happens when one fails."""

import json
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from hf_segformer import engine
from hf_segformer.benchmark import gpu, report
from hf_segformer.engine import cross_entropy, decode_head, kernel_choice, label_map

SMALL = ["--device", "cpu", "--dry_run", "--seconds", "0.5"]
NAMES = ["parity", "kernels", "speed", "label_map", "training"]


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Nothing that a run sets for its process stays."""
    monkeypatch.setattr(kernel_choice, "_decisions", {})
    monkeypatch.setattr(kernel_choice, "_reasons", {})
    monkeypatch.delenv("HF_SEGFORMER_ENGINE", raising=False)  # it was read already; reports would remark on it
    with torch.random.fork_rng():
        yield


def run(folder, *parts):
    return gpu.main([*SMALL, "--output_dir", str(folder), "--parts", *parts])


def read(folder):
    return json.loads((folder / "gpu.json").read_text())


def test_every_part_runs(tmp_path):
    # A loss falls within this time on a busy machine too.
    assert gpu.main([*SMALL, "--seconds", "2", "--output_dir", str(tmp_path)]) == 0
    content, text = read(tmp_path), (tmp_path / "gpu.md").read_text()
    assert content["environment"]["torch"] == torch.__version__ and content["environment"]["dry run"]
    parts = content["parts"]
    assert list(parts) == NAMES == list(gpu.PARTS)
    for name, part in parts.items():
        assert part["status"] == "passed" and part["seconds"] > 0, name
        assert f"| {name} | passed |" in text and f"## {name}: passed" in text
    assert str(tmp_path) not in text and str(Path(gpu.__file__).parent) not in text

    found = {(row["network"], row["dtype"], row["what"]): row for row in parts["parity"]["rows"]}
    assert len(found) == 10
    assert 1e-9 < found["b0", "float32", "gradients"]["error of ours"] < 1e-5
    assert 1e-5 < found["b2", "bfloat16", "logits"]["error of ours"] < 0.05
    assert {(row["kernel"], row["why"]) for row in parts["kernels"]["rows"]} == {
        (name, "not eligible") for name in kernel_choice._kernels() or gpu.KERNELS
    }
    measured = {(row["network"], row["what"], row["dtype"], row["batch"]) for row in parts["speed"]["rows"]}
    assert len(measured) == len(parts["speed"]["rows"]) == 2 * 3 * (2 + 1)
    assert all(
        row["ours ms"] > 0 and row["theirs ms"] > 0 for row in parts["speed"]["rows"] + parts["label_map"]["rows"]
    )
    assert {row["what"] for row in parts["label_map"]["rows"]} == {"upsample_argmax", "post_process"}
    (row,) = parts["training"]["rows"]
    assert row["steps"] > 10 and row["steps/s"] > 0


def test_a_part_that_fails_is_passed_over(tmp_path, monkeypatch, capsys):
    seen = {}

    def breaks(args, scale):
        yield {"measured": 1.5}
        seen["broken"] = read(tmp_path)["parts"]["parity"]
        raise RuntimeError("out of | memory\nat <address>")

    def looks(args, scale):
        seen["looks"] = read(tmp_path)["parts"]
        assert "## parity: failed" in (tmp_path / "gpu.md").read_text()
        yield {"value": float("nan")}

    monkeypatch.setattr(gpu, "PARTS", gpu.PARTS | {"parity": breaks, "kernels": looks, "speed": lambda *_: iter(())})
    assert run(tmp_path, "parity", "kernels", "speed", "label_map") == 1
    assert seen["broken"] | {"seconds": 0} == {"status": "running", "seconds": 0, "rows": [{"measured": 1.5}]}
    assert seen["looks"]["parity"]["status"] == "failed" and seen["looks"]["parity"]["rows"] == [{"measured": 1.5}]
    parts = read(tmp_path)["parts"]
    assert [part["status"] for part in parts.values()] == ["failed", "passed", "failed", "passed"]  # no rows, no pass
    error = parts["parity"]["error"]
    assert error["type"] == "RuntimeError" and "out of | memory" in error["message"]
    assert error["calls"][-1].startswith(f"{Path(__file__).name}:") and "in breaks: raise" in error["calls"][-1]
    assert r"RuntimeError: out of \| memory at &lt;address>" in (tmp_path / "gpu.md").read_text()
    assert "parity: failed, " in capsys.readouterr().out
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]

    # What was there stays, but for the part that is run again.
    monkeypatch.undo()
    assert run(tmp_path, "kernels") == 0
    again = read(tmp_path)["parts"]
    assert again["parity"] == parts["parity"] and again["label_map"] == parts["label_map"]
    assert len(again["kernels"]["rows"]) == 12


def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupted(args, scale):
        yield {"measured": 2}
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "PARTS", gpu.PARTS | {"speed": interrupted})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "label_map", "speed")
    parts = read(tmp_path)["parts"]
    assert parts["label_map"]["status"] == "passed"
    assert parts["speed"]["status"] == "running" and parts["speed"]["rows"] == [{"measured": 2}]


# ------------------------------------------------------------------------------------------------- what must not pass


def parity_rows(monkeypatch, change):
    """Rows of the first part for B0 with our network changed."""
    make_pair = gpu.make_pair

    def changed(*arguments, **fields):
        ours, theirs = make_pair(*arguments, **fields)
        change(ours)
        return ours, theirs

    monkeypatch.setattr(gpu, "make_pair", changed)
    monkeypatch.setattr(gpu, "VARIANTS", ("b0",))
    rows = gpu.parity(SimpleNamespace(device=torch.device("cpu")), gpu.DRY)
    return {(row["dtype"], row["what"]): row["passed"] for row in rows}


def test_another_weight_does_not_pass(monkeypatch):
    passed = parity_rows(monkeypatch, lambda ours: ours.decode_head.classifier.weight.data.mul_(1.05))
    assert set(passed.values()) == {False} and len(passed) == 5


def test_another_gradient_does_not_pass(monkeypatch):
    def change(ours):
        norm = ours.segformer.encoder.layer_norm[2]
        norm.register_forward_hook(lambda module, inputs, output: output * 1.1 - output.detach() * 0.1)

    monkeypatch.setattr(gpu, "DTYPES", (torch.float32,))
    passed = parity_rows(monkeypatch, change)
    assert passed == {("float32", "logits"): True, ("float32", "loss"): True, ("float32", "gradients"): False}


def test_other_labels_do_not_pass(tmp_path, monkeypatch):
    upsample_argmax = gpu.upsample_argmax

    def shifted(logits, size):
        return upsample_argmax(logits, size).roll(1, dims=2)

    monkeypatch.setattr(gpu, "upsample_argmax", shifted)
    assert run(tmp_path, "label_map") == 1
    rows = read(tmp_path)["parts"]["label_map"]["rows"]
    assert {row["what"] for row in rows if not row["passed"]} == {"upsample_argmax"}
    assert all(row["same labels"] == 1 for row in rows if row["what"] == "post_process")


def test_a_loss_that_does_not_fall_does_not_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hf_segformer.training.SegmentationLoss.__call__", lambda *_: torch.ones((), requires_grad=True)
    )
    assert run(tmp_path, "training") == 1


# ------------------------------------------------------------------------------------------------------------- kernels


@pytest.fixture
def fake_gpu(monkeypatch):
    """CPU tensors pass for a GPU's, PyTorch's operations for kernels; returns these, to be replaced."""
    functions = {
        "upsample_argmax": label_map._label,
        "upsample_cross_entropy": cross_entropy._cross_entropy,
        "upsample_add_relu": decode_head._upsample_add_relu,
    }
    turns = iter([1.25, 2.0] * 1000)
    monkeypatch.setattr(kernel_choice, "_is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(kernel_choice, "_is_supported", lambda device: True)
    monkeypatch.setattr(kernel_choice, "_is_capturing", lambda: False)
    monkeypatch.setattr(kernel_choice, "_kernels", lambda: functions)
    monkeypatch.setattr(kernel_choice, "_time", lambda function: next(turns))
    monkeypatch.setattr(gpu, "VARIANTS", ("b0",))
    return functions


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore:the GPU kernel")
def test_why_kernels_are_used_or_not(tmp_path, fake_gpu, monkeypatch):
    def other_labels(logits, size, return_confidence):
        if return_confidence:
            raise RuntimeError("out of shared memory")
        if logits.dtype == torch.float16:
            return label(logits, size, False)[0].roll(1, dims=2), None
        return label(logits, size, False)

    def other_loss(*arguments):
        total, gradient = cross_entropy(*arguments)
        return total * 2, gradient

    label, cross_entropy = fake_gpu["upsample_argmax"], fake_gpu["upsample_cross_entropy"]
    fake_gpu["upsample_argmax"] = other_labels
    run(tmp_path, "kernels")
    rows = read(tmp_path)["parts"]["kernels"]["rows"]

    def why(name, dtype, what=None):
        chosen = [row for row in rows if row["kernel"] == name and row["dtype"] == dtype]
        return {(row["why"], row["used"], row["passed"]) for row in chosen if what in (None, row.get("what"))}

    assert why("upsample_argmax", "float32", "label map") == {("faster (1.25 ms against 2 ms)", True, True)}
    confident = why("upsample_argmax", "float32", "label map and confidence")
    assert confident == {("RuntimeError: out of shared memory", False, False)}
    ((reason, used, passed),) = {why("upsample_argmax", "float16", "label map").pop()}
    assert reason.startswith("its result differs at 0.") and reason.endswith(" of the pixels") and not used | passed
    assert why("upsample_cross_entropy", "bfloat16") == {("agrees", True, True)}
    # A GPU that could run them never asked for these: on this one the modules themselves see a CPU.
    assert why("depthwise_gelu", "float32") == {("not eligible", False, False)}
    ran = {(row["function"], row["ran"]) for row in rows if row["kernel"] == "upsample_argmax"}
    assert ran == {("label_map", "label_map_in_bands")}
    uses = {(row["what"], row["batch"]) for row in rows if row["kernel"] == "upsample_cross_entropy"}
    assert uses == {(what, batch) for what in ("inference", "training step") for batch in (1, 2)}

    # A slower kernel is no fault, another loss is one, and what was decided before is forgotten.
    fake_gpu["upsample_argmax"], fake_gpu["upsample_cross_entropy"] = label, other_loss
    turns = iter([2.0, 1.5] * 1000)
    monkeypatch.setattr(kernel_choice, "_time", lambda function: next(turns))
    run(tmp_path, "kernels")
    rows = read(tmp_path)["parts"]["kernels"]["rows"]
    assert why("upsample_argmax", "float32") == {("slower (2 ms against 1.5 ms)", False, True)}
    for reason, used, passed in why("upsample_cross_entropy", "float32"):
        assert reason.startswith("its result differs by up to ") and not used | passed


def test_switched_off_kernels_are_no_fault(tmp_path, fake_gpu, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_NO_KERNELS", "1")
    assert run(tmp_path, "kernels") == 0
    assert "remark: HF_SEGFORMER_NO_KERNELS=1" in (tmp_path / "gpu.md").read_text()
    reasons = {row["why"] for row in read(tmp_path)["parts"]["kernels"]["rows"]}
    assert reasons == {"not eligible"} | ({"HF_SEGFORMER_NO_KERNELS is 1"} if engine.is_enabled() else set())


def test_a_switched_off_engine_is_no_fault(tmp_path, fake_gpu, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_ENGINE", "off")
    with engine.off():
        assert run(tmp_path, "kernels", "speed") == 0
    assert "remark: HF_SEGFORMER_ENGINE=off" in (tmp_path / "gpu.md").read_text()
    parts = read(tmp_path)["parts"]
    assert {row["why"] for row in parts["kernels"]["rows"]} == {"not eligible"}
    assert {row["ran"] for row in parts["speed"]["rows"]} == {"the textbook alone"}


@pytest.mark.engine
def test_rows_tell_what_ran(tmp_path, fake_gpu):
    run(tmp_path, "speed", "label_map")
    parts = read(tmp_path)["parts"]
    ran = {(row["what"], row["dtype"]): row["ran"] for row in parts["speed"]["rows"]}
    assert "SegformerMixFFN.forward: feed_forward_in_bands (4x)" in ran["forward", "float32"]
    assert "SegformerDecodeHead.decode: head_in_bands (1x)" in ran["forward", "bfloat16"]
    assert "SegformerMixFFN.forward: feed_forward_in_chunks (4x)" in ran["training step", "float32"]
    kernel = "cross_entropy_sum: cross_entropy_in_bands with upsample_cross_entropy (1x)"
    assert kernel in ran["training step", "float32"] and kernel not in ran["forward", "float32"]
    assert {row["ran"] for row in parts["label_map"]["rows"] if row["what"] == "upsample_argmax"} == {
        "label_map: label_map_in_bands with upsample_argmax (1x)"
    }


# ----------------------------------------------------------------------------------------------------- the GPU's own


def test_a_broken_process_is_left(tmp_path, monkeypatch):
    """After an illegal access only another process can go on; this also runs the script as a script."""

    def breaks(args, scale):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield

    monkeypatch.setattr(gpu, "PARTS", gpu.PARTS | {"kernels": breaks, "speed": None})
    monkeypatch.setattr(gpu, "_is_usable", lambda device: False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert run(Path("report"), "kernels", "label_map") == 1
    parts = read(tmp_path / "report")["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {"kernels": "failed", "label_map": "passed"}
    assert parts["label_map"]["remark"] == "HF_SEGFORMER_NO_KERNELS=1" and "remark" not in parts["kernels"]


def test_memory_is_what_a_run_adds(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 << 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 12 << 20)
    ways = [lambda name=name: calls.append(name) for name in ("ours", "theirs")]
    row = report.compare(*ways, 3, torch.device("cuda", 0))
    assert row["ours MiB"] == row["theirs MiB"] == 7
    assert calls[:6] == ["ours", "theirs"] * 3
    assert calls[6:12] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert calls[12:] == ["reset", "ours", "reset", "theirs"]


def test_times_and_ratios(monkeypatch):
    seconds = {"ours": iter([0, 0, 0, 1, 2, 4]), "theirs": iter([0, 0, 0, 3, 4, 20])}
    clock = [0.0]
    monkeypatch.setattr(report.time, "perf_counter", lambda: clock[0])

    def way(name):
        def advance():
            clock[0] += next(seconds[name])

        return advance

    row = report.compare(way("ours"), way("theirs"), 3, torch.device("cpu"))
    assert (row["ours ms"], row["theirs ms"]) == (2000, 4000)
    assert (row["times faster"], row["from"], row["to"]) == (3, 2, 5) and row["ours MiB"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "cuda:99"], r"device cuda:99: PyTorch .* sees \d+ GPUs"),
        (["--device", "gpu"], "device must be cuda, cuda:N or cpu, got 'gpu'"),
        (["--device", "meta"], "device must be cuda, cuda:N or cpu, got 'meta'"),
        (["--seconds", "0"], "seconds must be > 0, got 0"),
        (["--seconds", "nan"], "seconds must be > 0, got nan"),
    ],
)
def test_wrong_arguments(flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        gpu.main([*SMALL, "--output_dir", str(tmp_path / "new"), *flags])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"environment": {}}', '{"environment": {}, "parts": [1]}'])
def test_what_is_no_report_is_not_overwritten(text, tmp_path):
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(ValueError, match=r"output_dir must be empty or hold a report, but .*gpu\.json is none"):
        run(tmp_path, "label_map")
    assert (tmp_path / "gpu.json").read_text() == text


def test_a_report_of_another_machine_is_not_overwritten(tmp_path):
    assert run(tmp_path, "label_map") == 0
    content = read(tmp_path)
    content["environment"] |= {"device": "another GPU", "torch": "2.11.0"}
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"must be another one: .*gpu\.json holds a report with another device, torch"
    ):
        run(tmp_path, "label_map")
    assert read(tmp_path) == content


def test_as_a_module(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", *SMALL, "--output_dir", str(tmp_path), "--seconds", "-1"])
    try:
        with pytest.raises(SystemExit, match=r"error: seconds must be > 0, got -1\.0"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it is imported already
            runpy.run_module("hf_segformer.benchmark.gpu", run_name="__main__")
    finally:
        transformers.utils.logging.enable_progress_bar()

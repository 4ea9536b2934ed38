# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark, run for real on a small network and small pictures."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from transformers.utils import is_torchvision_available

import hf_segformer
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation
from hf_segformer.benchmark import comparison as benchmark
from hf_segformer.benchmark import measure as benchmark_measure
from hf_segformer.benchmark import memory as benchmark_memory
from hf_segformer.benchmark import networks as benchmark_networks
from hf_segformer.benchmark import stages as benchmark_stages
from oracles import FOLDER, why_missing

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

SMALL = ["--size", "64x96", "--pairs", "2", "--threads", "1", "--competitors", "none"]


@pytest.fixture(autouse=True)
def own_threads():
    """The scripts set the number of threads of their process, which here is everybody's."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], depths=[1, 1, 1, 1], decoder_hidden_size=20,
        num_labels=11,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("benchmark") / "tiny"
    torch.manual_seed(1)
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    return str(folder)


def arguments(model, *flags):
    return [*SMALL, "--model", model, *map(str, flags)]


def cells(text: str, name: str) -> list[str]:
    """Cells of the table row that starts with a name."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_everything_without_optional_packages(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_stages, "LABEL_MAPS", [(5, (16, 24), (50, 70))])
    flags = ["--train", "--scaling", "--scaling_sizes", 64, 96, "--scaling_batch_sizes", 1, 3, "--post_processing"]
    flags.append("--variations")
    benchmark.main(arguments(model, *flags, "--evaluation", "--output_dir", tmp_path))
    text = capsys.readouterr().out
    assert (tmp_path / "benchmark.md").read_text().strip() == text.strip()
    ours = cells(text, "ours")
    assert float(ours[1]) > 0 and float(ours[5]) < 1e-5 and ours[6].endswith("%")
    assert cells(text, "transformers")[3] == "1.00"
    for absent in ("ours, torch.compile", "mmsegmentation", "OpenVINO, exported from ours"):
        assert set(cells(text, absent)[1:]) == {"not measured"}
    share = float(re.search(r"([\d.]+) % of the pixels get the same label both ways", text)[1])
    # With torchvision `transformers` resizes pictures with that, which rounds some values differently.
    assert share > 99 if is_torchvision_available() else share == 100
    for stage in ("preprocess", "preprocess a batch of 8", "forward", "label map", "end to end", "pipeline"):
        assert f"| tiny | {stage} |" in text
    assert "tiny on a picture, to 480x640" in text
    for picture in ("scaling_tiny.png", "label_maps.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"

    data = json.loads((tmp_path / "benchmark.json").read_text())
    assert data["settings"]["size"] == "64x96" and data["machine"]["torch"] == torch.__version__
    (forward,) = data["forward"]
    assert {name: len(seconds) for name, seconds in forward["seconds"].items()} == {
        "ours": 2, "transformers": 2, "matrix product": 2,
    }  # fmt: skip
    assert forward["giga_macs"]["ours"] < forward["giga_macs"]["transformers"]
    assert [record["shape"] for record in data["scaling"]] == [[1, 64, 96], [3, 64, 96], [1, 64, 64], [1, 96, 96]]
    assert len(data["stages"]) == 6 and len(data["label maps"]) == 5 and data["training"][0]["batch_size"] == 2
    assert [record["case"] for record in data["variations"]] == [
        "as above", "384x640", "batch 4", "after an optimizer step",
    ]  # fmt: skip
    (evaluation,) = data["evaluation"]
    assert set(evaluation["seconds"]["ours"]) == {"read", "preprocess", "forward", "label map", "metric"}


def test_the_optimizer_step_is_made(model):
    arguments = benchmark.BenchmarkArguments(model=model, size="64x96")
    with ExitStack() as stack:
        before = benchmark_networks.load_networks("", model, 11, stack)
        after = benchmark.after_a_step(before, arguments, stack)
        changed = [
            not torch.equal(old, new)
            for old, new in zip(before.ours.parameters(), after.ours.parameters(), strict=True)
        ]
        assert sum(changed) > 0.9 * len(changed) and not after.ours.training
        pixel_values = torch.randn(1, 3, 64, 96)
        with torch.inference_mode():
            assert torch.allclose(after.ours(pixel_values).logits, after.theirs(pixel_values).logits, atol=1e-4)


def test_half_precision_is_compared_with_both_precisions(model, capsys):
    benchmark.main(arguments(model, "--dtype", "bfloat16"))
    text = capsys.readouterr().out
    ours, stock = cells(text, "ours"), cells(text, "transformers")
    full = cells(text, "transformers, float32")
    assert all(1e-4 < float(row[5]) < 0.1 for row in (ours, stock)) and float(full[5]) < 1e-5
    assert full[-1] == "1.00" and float(ours[-1]) > 0


def test_memory(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "measure_stages", lambda *_: [])
    benchmark.main(arguments(model, "--memory", "--output_dir", tmp_path))
    (record,) = json.loads((tmp_path / "benchmark.json").read_text())["memory"]
    for side in ("ours", "transformers"):
        assert record["MiB"][side]["peak"] > record["MiB"][side]["imports"] > 50
    assert "| tiny | forward | 1 |" in capsys.readouterr().out


def test_memory_of_a_training_step(model, capsys, monkeypatch):
    settings = {"side": "ours", "folder": model, "train": True, "batch_size": 2, "size": [64, 96], "device": "cpu"}
    monkeypatch.setattr(sys, "argv", ["benchmark_memory.py", json.dumps(settings | {"dtype": "float32"})])
    benchmark_memory.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["peak"] >= figures["imports"] > 50


def test_command_line():
    root = str(Path(hf_segformer.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(EXAMPLES / "benchmark.py"), "--dtype", "int8"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and result.stderr.strip().endswith("bfloat16, float16, got 'int8'")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_resident_peak():
    benchmark_memory.forget_peak()
    before = benchmark_memory.resident_peak()
    block = b"x" * (200 << 20)
    after = benchmark_memory.resident_peak()
    assert len(block) == 200 << 20 and 190 < after - before < 230


@pytest.mark.oracle
def test_mmsegmentation(tmp_path):
    path = FOLDER / "mmseg"
    if reason := why_missing("mmseg"):
        pytest.skip(reason)
    args = benchmark.BenchmarkArguments(size="64", num_labels=5, threads=1, mmseg_path=str(path))
    networks = benchmark_networks.Networks("B0", None, None, tmp_path)
    with ExitStack() as stack:
        contender = benchmark_networks._mmsegmentation(networks, args, stack)
        assert contender.run is not None, contender.absent
        assert benchmark_measure.alternate([contender], 2)["mmsegmentation"][0] > 0.001


def test_missing_mmsegmentation_is_said(tmp_path):
    (tmp_path / "mmseg.py").write_text("raise ModuleNotFoundError('mmseg')")
    args = benchmark.BenchmarkArguments(size="64", mmseg_path=str(tmp_path))
    with ExitStack() as stack:
        contender = benchmark_networks._mmsegmentation(
            benchmark_networks.Networks("B0", None, None, tmp_path), args, stack
        )
    assert contender.run is None and contender.absent == "not installed"


def test_exported_network(model):
    for package in ("onnxruntime", "openvino", "onnxscript"):
        pytest.importorskip(package)
    args = benchmark.BenchmarkArguments(size="64", model=model, threads=1)
    pixel_values = torch.randn(1, 3, 64, 64)
    with ExitStack() as stack, torch.inference_mode():
        networks = benchmark_networks.load_networks("", model, 0, stack)
        contenders = benchmark_networks._exported("transformers", networks.theirs, pixel_values, args, stack)
        expected = networks.theirs(pixel_values).logits
        for contender in contenders:
            assert contender.run is not None, contender.absent
            torch.testing.assert_close(contender.run(), expected, atol=1e-5, rtol=1e-4)


def test_a_missing_package_or_a_failure_is_said():
    def missing():
        import no_such_package

        return no_such_package

    def failing():
        raise RuntimeError("no compiler\nhere")

    assert benchmark_measure.attempt("a", missing).absent == "not installed"
    assert benchmark_measure.attempt("b", failing).absent == "failed: RuntimeError: no compiler here"
    assert benchmark_measure.attempt("c", lambda: failing).run is None


def test_alternation_and_ratios():
    order = []

    def runner(name, duration):
        def run():
            order.append(name)
            time.sleep(duration)

        return benchmark_measure.Contender(name, run)

    contenders = [runner("a", 0.01), benchmark_measure.Contender("absent"), runner("b", 0.04)]
    seconds = benchmark_measure.alternate(contenders, 3, warmup=1)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab" and set(seconds) == {"a", "b"}
    assert min(seconds["a"]) >= 0.01 and min(seconds["b"]) >= 0.04
    # The median of the ratios of each round, which is not the ratio of the medians.
    assert benchmark_measure.ratio([4, 6, 20], [2, 1, 5]) == ("4.00", "2.00-6.00")
    assert benchmark_measure.milliseconds([0.1, 0.0004, 0.02]) == "20.0"
    assert benchmark_measure.span([0.1, 0.0004, 0.02]) == "0.40-100"
    assert benchmark_measure.ratio(None, [1]) == ("not measured", "not measured")


def test_work_is_that_of_the_paper(tmp_path):
    with ExitStack() as stack:
        networks = benchmark_networks.load_networks("b0", None, 150, stack)
        assert benchmark_networks.giga_macs(networks.theirs, (512, 512)) == pytest.approx(8.4, abs=0.05)  # Table 1
        assert benchmark_networks.giga_macs(networks.ours, (512, 512)) < 4.2
        double = benchmark_networks.giga_macs(networks.theirs, (128, 64), batch_size=2)
        assert double == pytest.approx(2 * benchmark_networks.giga_macs(networks.theirs, (128, 64)))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_share_of_mixed_cells(share):
    logits = benchmark_stages.synthetic_logits(19, (64, 96), share)
    winners = logits[0].argmax(0).tolist()
    mixed = sum(
        len({winners[y][x], winners[y][x + 1], winners[y + 1][x], winners[y + 1][x + 1]}) > 1
        for y in range(63)
        for x in range(95)
    )
    assert benchmark_stages.mixed_share(logits) == pytest.approx(mixed / (63 * 95), abs=1e-6)
    assert benchmark_stages.mixed_share(logits) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--variants", "b9"], "variants must be among b0, .*, got b9"),
        (["--competitors", "tensorrt"], "competitors must be among .*tensorrt"),
        (["--dtype", "int8"], "dtype must be one of .*int8"),
        (["--pairs", "0"], "pairs must be at least 1, got 0"),
        (["--size", "512x"], "size must be .*512x"),
        (["--size", "64x64x3"], "size must be .*64x64x3"),
    ],
)
def test_wrong_arguments(flags, message):
    with pytest.raises(ValueError, match=message):
        benchmark.main(flags)

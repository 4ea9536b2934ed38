# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A report in parts, written as JSON and Markdown after each row, and the time measurements in it."""

import json
import os
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parents[2]
_LONGEST_CELL = 300


class Report:
    """Parts of a report, each with status, seconds, rows and what went wrong; on disk whenever something is added.

    A report that the folder holds already is continued if it is of the same environment.

    Args:
        folder: Where `NAME.json` and `NAME.md` go.
        name: Names the files.
        environment: What all parts have in common: machine, versions, settings.

    Raises:
        ValueError: The folder holds a report of another environment, or a file of that name that is no report.
    """

    def __init__(self, folder: Path, name: str, environment: Mapping[str, object]):
        self.path, self.environment, self.parts = folder / f"{name}.json", dict(environment), {}
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.parts = self._read()

    def _read(self) -> dict[str, dict]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            environment, parts = found["environment"], {**found["parts"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"output_dir must be empty or hold a report, but {self.path} is none: {error}") from error
        if other := sorted(key for key in self.environment if self.environment[key] != environment.get(key)):
            raise ValueError(
                f"output_dir must be another one: {self.path} holds a report with another {', '.join(other)}"
            )
        return parts

    def run(self, name: str, rows: Callable[[], Iterable[dict]], **remarks: object) -> bool:
        """Run a part to its end or to its first error; returns whether it passed.

        Args:
            name: Title of the part; what stood under it before is replaced.
            rows: Yields rows as dictionaries; one whose `passed` is False lets the part fail.
            remarks: What else to say of the part.
        """
        part = self.parts[name] = {"status": "running", "seconds": 0.0, "rows": [], **remarks}
        started = time.perf_counter()
        self.write()
        try:
            for row in rows():
                part["rows"].append(row)
                part["seconds"] = time.perf_counter() - started
                self.write()
            synchronize()  # what the device has still to say belongs to this part
            passed = bool(part["rows"]) and all(row.get("passed", True) for row in part["rows"])
        except Exception as error:  # whatever a driver or compiler may raise: the other parts can still tell something
            calls = traceback.extract_tb(error.__traceback__)[-4:]
            where = [f"{Path(call.filename).name}:{call.lineno} in {call.name}: {call.line}" for call in calls]
            part["error"], passed = {"type": type(error).__name__, "message": str(error), "calls": where}, False
        part["status"], part["seconds"] = "passed" if passed else "failed", time.perf_counter() - started
        self.write()
        return passed

    def write(self) -> None:
        """Write both files, each in one piece."""
        content = {"environment": self.environment, "parts": self.parts}
        _replace(self.path, json.dumps(content, indent=1) + "\n")
        _replace(self.path.with_suffix(".md"), self.markdown())

    def markdown(self) -> str:
        """The report for people."""
        summary = [
            {"part": name, "status": part["status"], "seconds": part["seconds"]} for name, part in self.parts.items()
        ]
        facts = [{"": key, "value": value} for key, value in self.environment.items()]
        pieces = [f"# {self.path.stem}", *_table(facts), "## parts", *_table(summary)]
        for name, part in self.parts.items():
            pieces += [f"## {name}: {part['status']}", *_table(part["rows"])]
            remarks = {key: part[key] for key in part if key not in ("status", "seconds", "rows", "error")}
            pieces += [f"{key}: {_cell(value)}" for key, value in remarks.items()]
            if error := part.get("error"):
                pieces.append(f"{error['type']}: {_cell(error['message'])}")
                pieces.append("\n".join(f"- {_cell(call)}" for call in error["calls"]))
        return "\n\n".join(pieces) + "\n"


def _table(rows: list[dict]) -> list[str]:
    if not rows:
        return []
    header = list(dict.fromkeys(key for row in rows for key in row))
    lines = [header, ["--"] * len(header), *([_cell(row.get(key)) for key in header] for row in rows)]
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _cell(value: object) -> str:
    """A value in a line of Markdown; texts of compilers are long and hold anything."""
    if isinstance(value, float):
        return f"{value:.4g}"
    names = {None: "", True: "yes", False: "no"}
    text = names[value] if value is None or isinstance(value, bool) else " ".join(str(value).split())
    shown = text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]} ..."
    return shown.replace("|", "\\|").replace("<", "&lt;")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def commit() -> str | None:
    """Commit of the checkout that this file is in; None without one."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(_ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


# -------------------------------------------------------------------------------------------------------- measurements


def synchronize() -> None:
    """Wait for the GPU, if there is one in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def compare(ours: Callable, theirs: Callable, rounds: int, device: torch.device) -> dict[str, object]:
    """Time and memory of two ways to the same thing, as a part of a row.

    Args:
        ours: Takes no arguments.
        theirs: The same.
        rounds: Times that each is timed, one after the other in every round, in turn forwards and backwards.
        device: Where both compute.
    """
    ways = {"ours": ours, "theirs": theirs}
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for run in [*ways.values()] * 3:
        run()
    for turn in range(rounds):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            synchronize()
            started = time.perf_counter()
            ways[name]()
            synchronize()
            seconds[name].append(time.perf_counter() - started)
    ratios = sorted(slow / fast for slow, fast in zip(seconds["theirs"], seconds["ours"], strict=True))
    return {
        **{f"{name} ms": 1e3 * statistics.median(values) for name, values in seconds.items()},
        "times faster": statistics.median(ratios),
        "from": ratios[0],
        "to": ratios[-1],
        **{f"{name} MiB": _peak_memory(run, device) for name, run in ways.items()},
    }


def _peak_memory(run: Callable, device: torch.device) -> float | None:
    """MiB that it takes on the GPU beyond what was there before; None on a CPU."""
    if device.type != "cuda":
        return None
    synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    synchronize()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20

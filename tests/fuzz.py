# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Random valid, odd and wrong arguments and files for the public entry points.

    python tests/fuzz.py --seconds 60 --seed 0 --areas processor config

A call may succeed, or raise ValueError, TypeError or OSError. What is kept of a refused call are the arguments without
which it would not be refused like that: the message must hold the name of one of them (or of the file), as a whole
word. Findings are other errors, RuntimeWarnings, results of a wrong form, arguments written to, and calls of many
seconds; each kind is printed once with the call it needs, and the exit status is 1. `--case N` repeats one call.
"""

import argparse
import contextlib
import logging
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import hf_segformer
from fuzz_areas import AREAS, LOOP

LIMIT = 8  # seconds that a call may take
MEMORY = 12 << 30  # bytes of address space beyond what there is at the start
OURS = str(Path(hf_segformer.__file__).parent)


class Hang(BaseException):
    """A call took longer than `LIMIT`."""


def content(value, depth=0):
    """What a value holds, to see whether it was written to."""
    if isinstance(value, torch.Tensor):
        return (value.shape, value.dtype) if value.is_meta or value.is_sparse else repr(value.tolist())
    if isinstance(value, np.ndarray | Image.Image):
        array = np.empty(0) if isinstance(value, Image.Image) and 0 in value.size else np.asarray(value)
        return array.shape, array.dtype.str, array.tobytes()
    if isinstance(value, list | tuple | dict) and depth < 4:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [(str(key), content(item, depth + 1)) for key, item in items]
    return repr(value)


def shown(value, depth=0):
    """A value in short: arrays by type, shape and range."""
    if isinstance(value, torch.Tensor):
        return f"<{value.dtype} {list(value.shape)} {value.device} {value.layout}>"
    if isinstance(value, np.ndarray) and value.size > 4:
        extent = f" {value.min()}..{value.max()}" if value.dtype.kind in "buif" else ""
        return f"<{type(value).__name__} {value.dtype} {list(value.shape)}{extent}>"
    if isinstance(value, list | tuple | dict) and depth < 4 and value is not LOOP:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return str(
            [shown(i, depth + 1) if not isinstance(value, dict) else (k, shown(i, depth + 1)) for k, i in items]
        )
    return f"{value!r:.160}"


def _interrupt(*_):
    raise Hang(f"more than {LIMIT} s")


def attempt(case, odd):
    """Do the call; what went wrong as (kind, whether that is a documented error, message), else None."""
    arguments = case.plain | odd
    before = content(arguments)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)
            fault = case.fault(case.entry(**arguments), arguments)
    except (Exception, Hang) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if frame.filename.startswith(OURS)] or frames[-1:]
        stem = re.sub(r"\d+|['\"].*?['\"]|/\S*/", "*", str(error))[:50].replace("\n", " ")
        place = f"{type(error).__name__} in {Path(ours[-1].filename).name}:{ours[-1].name}"
        documented = isinstance(error, ValueError | TypeError | OSError) and ours[-1].filename.startswith(OURS)
        return f"{place}: {stem}", documented, str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if content(arguments) != before:
        fault = "an argument was written to"
    return (f"result: {re.sub(r'[0-9]+', '*', fault)[:60]}", False, fault) if fault else None


def _same(*faults):
    """Whether two faults are the same but for the numbers in their messages."""
    kinds, documented, messages = zip(*faults, strict=True)
    return len(set(kinds)) == len(set(documented)) == len({re.sub(r"\d+", "*", text) for text in messages}) == 1


def judge(case):
    """Finding as (kind, arguments that it needs, message), or "refused" or "taken"."""
    odd, wrong = case.odd, attempt(case, case.odd)
    if wrong is None:
        return "taken"
    for name in list(odd):  # what is left are the arguments without which this would not happen
        fewer = {key: value for key, value in odd.items() if key != name}
        if (again := attempt(case, fewer)) and _same(again, wrong):
            odd = fewer
    kind, documented, message = wrong
    allowed = {alias for name in odd for alias in (name, *case.names.get(name, ()))}
    if documented and any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in allowed):
        return "refused"
    return (kind if not documented else f"unnamed {kind}"), odd, message


def make(area, seed, index, folder):
    """Case `index` of an area: the same whatever was tried before it."""
    return AREAS[area](random.Random(f"{area} {seed} {index}"), folder)


def fuzz(areas, seconds, seed=0, case=None, report=print):
    """Try the areas in turn, or one case of theirs.

    Args:
        areas: Names of `AREAS`.
        seconds: How long.
        seed: Number of the sequence of cases.
        case: Index of the only one to try.
        report: Takes a line for each kind of finding.

    Returns:
        How often each (area, outcome) came: "taken", "refused" or the kind of a finding.
    """
    counts, end, index = Counter(), time.monotonic() + seconds, 0 if case is None else case
    previous = signal.signal(signal.SIGALRM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        while time.monotonic() < end and (case is None or index == case):
            for area in areas:
                outcome = judge(make(area, seed, index, Path(folder)))
                kind = outcome if isinstance(outcome, str) else outcome[0]
                counts[area, kind] += 1
                if kind not in ("taken", "refused") and counts[area, kind] == 1:
                    needed = ", ".join(f"{name}={shown(value)}" for name, value in outcome[1].items())
                    report(f"{area} --seed {seed} --case {index}: {kind}\n    {needed}\n    {outcome[2]!r:.300}")
            index += 1
    signal.signal(signal.SIGALRM, previous)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=list(AREAS))
    parser.add_argument("--case", type=int, help="try this one of each area only")
    options = parser.parse_args()
    if "metric" in options.areas:
        with contextlib.suppress(ImportError):
            import evaluate  # noqa: F401  (MeanIoU is tried where it can be)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)  # absurd sizes fail rather than fill the machine
    torch.set_num_threads(1)
    sys.stdout.reconfigure(errors="backslashreplace")
    logging.disable(logging.ERROR)
    counts = fuzz(options.areas, options.seconds, options.seed, options.case)
    findings = sum(number for (_, kind), number in counts.items() if kind not in ("taken", "refused"))
    for area in options.areas:
        own = {kind: number for (place, kind), number in counts.items() if place == area}
        print(f"{area}: {sum(own.values())} inputs, {own.pop('taken', 0)} taken, {own.pop('refused', 0)} refused")
        for kind, number in sorted(own.items(), key=lambda item: -item[1]):
            print(f"    {number} x {kind}")
    print(f"{sum(counts.values())} inputs, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

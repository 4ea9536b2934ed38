# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""That scripts run in the process of the tests leave nothing of theirs in it."""

import logging
import os
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from example_scripts import run_script

DISORDER = """
import os, random, signal, sys, warnings
import numpy as np, torch
from accelerate import Accelerator
assert sys.argv[1:] == ["--flag", "3"] and "SPOILT" not in os.environ
Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3)
os.environ["SPOILT"] = os.environ.pop("HF_HUB_OFFLINE")
os.chdir("/")
sys.path.insert(0, "/spoilt")
torch.set_num_threads(torch.get_num_threads() + 1)
torch.use_deterministic_algorithms(True)
random.seed(1), np.random.seed(1), torch.manual_seed(1)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
warnings.simplefilter("error")
print("words on standard output")
print("and others", file=sys.stderr)
sys.stdout.reconfigure(errors="backslashreplace")
"""


def snapshot():
    """Of all that a script may change for the tests after it."""
    accelerate = [dict(state._shared_state) for state in (AcceleratorState, GradientState, PartialState)]
    numbers = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    switches = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    loggers = [logging.root, *map(logging.getLogger, ("accelerate", "datasets", "hf_segformer", "transformers"))]
    logs = [(logger.level, list(logger.handlers)) for logger in loggers]
    process = dict(os.environ), os.getcwd(), list(sys.argv), list(sys.path), list(warnings.filters)
    return accelerate, numbers, switches, handlers, logs, process


@pytest.mark.parametrize("end", ["", "sys.exit('error: no')", "sys.exit(3)", "raise KeyError(3)"])
def test_a_script_leaves_the_process_as_it_was(end, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DISORDER + end)
    AcceleratorState._reset_state(True)
    before = snapshot()
    if "Key" in end:
        with pytest.raises(KeyError):
            run_script(script, "--flag", 3)
    else:
        result = run_script(script, "--flag", 3, check=False)
        errors = "and others\n" + ("error: no\n" if "error" in end else "")
        assert (result.stdout, result.stderr) == ("words on standard output\n", errors)
        assert result.returncode == {"": 0, "sys.exit(3)": 3}.get(end, 1)
    assert snapshot() == before


def test_a_process_of_its_own_gives_the_same(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(sys.argv, sys.path[0])\nsys.exit('error: no')")
    inside = run_script(script, "--flag", check=False)
    outside = subprocess.run([sys.executable, *inside.args], capture_output=True, text=True)
    assert (inside.returncode, inside.stdout, inside.stderr) == (outside.returncode, outside.stdout, outside.stderr)


def test_a_script_starts_without_the_state_of_the_one_before(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from accelerate import Accelerator\nprint(Accelerator(mixed_precision='no').mixed_precision)")
    Accelerator(mixed_precision="bf16", cpu=True)
    assert run_script(script).stdout == "no\n"

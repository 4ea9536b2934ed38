# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The example scripts, run in this process or as a user runs them.

A second process imports torch and transformers anew, which takes seconds: tests take one where processes are the
point, and once for each script.
"""

import io
import os
import random
import runpy
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

import hf_segformer
from scene_folder import EXAMPLES

REPOSITORY = Path(hf_segformer.__file__).parent.parent


def environment() -> dict[str, str]:
    """Of a process that finds the package."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}


def launch(script, *arguments, processes: int = 1, check: bool = True) -> subprocess.CompletedProcess:
    """`accelerate launch` of an example; its output on standard output."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    # On CPU, launch starts several processes only with the flag that is named after GPUs.
    command += ["--multi_gpu"] if processes > 1 else ["--cpu"]
    command += [str(EXAMPLES / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment() | {"ACCELERATE_USE_CPU": "1"})
    return checked(result) if check else result


def run_script(script, *arguments, check: bool = True, variables: dict | None = None) -> subprocess.CompletedProcess:
    """What `python` does with a script, in this process, which is left as it was.

    Args:
        script: Name of an example, or a path.
        *arguments: Its command line.
        check: Whether it shall succeed.
        variables: Of the environment, for this run.
    """
    printed, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    command, code = [str(EXAMPLES / script), *map(str, arguments)], 0
    with kept_process(), redirect_stdout(printed), redirect_stderr(errors):
        os.environ.update({"ACCELERATE_USE_CPU": "1"} | (variables or {}))
        sys.argv[:] = command
        sys.path.insert(0, str(Path(command[0]).parent))
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
    output = [stream.buffer.getvalue().decode() for stream in (printed, errors)]
    result = subprocess.CompletedProcess(command, code, *output)
    return checked(result) if check else result


def checked(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """The same, which succeeded."""
    if result.returncode:
        raise AssertionError(f"{result.args} failed:\n{result.stdout[-3000:]}\n{result.stderr[-5000:]}")
    return result


@contextmanager
def kept_process():
    """What a script changes of this process is put back: it starts like a process of its own, but for the imports."""
    forget_accelerate()
    variables, folder, lists = dict(os.environ), os.getcwd(), [(kept, list(kept)) for kept in (sys.argv, sys.path)]
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        forget_accelerate()
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(folder)
        for kept, content in lists:
            kept[:] = content
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for number, handler in handlers.items():
            signal.signal(number, handler)


def forget_accelerate() -> None:
    """Accelerate keeps its state in classes, from the first `Accelerator` of a process on."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()

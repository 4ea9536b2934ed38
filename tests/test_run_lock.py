# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""One run per output folder: real processes, and file systems without locks."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator

from hf_segformer.training import FolderInUse, RunLock, run_folder, run_lock

# The module has no relative imports, so a process that needs nothing else starts at once.
HOLD = f"""
import os, runpy, sys, time
RunLock = runpy.run_path({str(Path(run_lock.__file__))!r})["RunLock"]
try:
    lock = RunLock(sys.argv[1])
except ValueError as error:
    sys.exit(str(error))
if "fork" in sys.argv and os.fork() == 0:  # a worker process, which lives on
    time.sleep(30)
    os._exit(0)
print("held", flush=True)
sys.stdin.readline()
lock.release()
"""


def hold(folder, *options):
    """A process that holds a folder until it gets a line, or says why it cannot."""
    command = [sys.executable, "-c", HOLD, str(folder), *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)


def test_a_living_process_keeps_others_out(tmp_path):
    holder = hold(tmp_path / "out")
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(FolderInUse, match=rf"output_dir .*out is in use by process {holder.pid} of \S+ since .*lock"):
        RunLock(tmp_path / "out")
    with pytest.raises(FolderInUse, match="wait for it to end, or stop it"):
        RunLock(tmp_path / "out", take_over=True)  # it is known to live
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(FolderInUse):
        RunLock(tmp_path / "link")
    holder.communicate("\n", timeout=30)
    assert list(tmp_path.iterdir()) == [tmp_path / "link"], "a folder nothing was put into is left"
    (tmp_path / "link").unlink()
    RunLock(tmp_path / "out").release()


def test_of_many_started_together_one_gets_the_folder(tmp_path):
    holders = [hold(tmp_path / "out") for _ in range(6)]
    lines = [holder.stdout.readline() for holder in holders]
    assert sorted(lines) == [""] * 5 + ["held\n"]
    for holder in holders:
        _, error = holder.communicate("\n", timeout=30)
        assert holder.returncode == 0 or "in use by" in error


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_frees_the_folder_though_its_workers_live(tmp_path):
    holder = hold(tmp_path / "out", "fork")
    assert holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    try:
        RunLock(tmp_path / "out").release()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_second_run_of_the_same_process(tmp_path):
    lock = RunLock(tmp_path / "out")
    with pytest.raises(FolderInUse, match="another run of this process"):
        RunLock(tmp_path / "out")
    lock.release()
    lock.release()
    RunLock(tmp_path / "out").release()


def test_what_is_in_the_folder_stays(tmp_path):
    lock = RunLock(tmp_path / "runs" / "out")
    (tmp_path / "runs" / "out" / "model.safetensors").touch()
    lock.release()
    assert [path.name for path in (tmp_path / "runs" / "out").iterdir()] == ["model.safetensors"]


# ---- file systems without locks


def refuse_locks(descriptor):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture
def without_locks(monkeypatch):
    monkeypatch.setattr(run_lock, "_lock", refuse_locks)
    monkeypatch.setattr(run_lock, "_SETTLING_SECONDS", 0.01)


def write_owner(folder, **changes):
    folder.mkdir()
    (folder / ".lock").write_text(json.dumps(run_lock._this_process() | changes))


def test_without_locks_a_living_process_is_found(without_locks, tmp_path):
    write_owner(tmp_path / "out")
    with pytest.raises(FolderInUse, match=rf"process {os.getpid()} of .*: wait for it to end"):
        RunLock(tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [{"pid": 2**22 + 1}, {"started": "1"}, {"boot": "another"}],
    ids=["no such process", "its number was given anew", "the machine was restarted"],
)
def test_without_locks_a_dead_process_is_found(without_locks, tmp_path, changes):
    if "boot" in changes and run_lock._boot_id() is None:
        pytest.skip("this system does not tell when it was started")
    write_owner(tmp_path / "out", **changes)
    RunLock(tmp_path / "out").release()


def test_without_locks_another_host_is_never_judged_dead(without_locks, tmp_path):
    write_owner(tmp_path / "out", host="node7 pid:[1]", pid=2**22 + 1)
    with pytest.raises(FolderInUse, match=r"process \d+ of node7 since .*certain that it has ended, add --take_over"):
        RunLock(tmp_path / "out")
    assert json.loads((tmp_path / "out" / ".lock").read_text())["host"] == "node7 pid:[1]"
    RunLock(tmp_path / "out", take_over=True).release()


def test_without_locks_the_last_of_two_that_start_together_wins(without_locks, tmp_path, monkeypatch):
    other = run_lock._this_process() | {"pid": 12345, "nonce": "theirs"}
    monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / "out" / ".lock").write_text(json.dumps(other)))
    with pytest.raises(FolderInUse, match=r"process 12345 .* started at the same time"):
        RunLock(tmp_path / "out")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1, "host": "x"', "[" * 4096])
def test_an_unreadable_lock_file(tmp_path, content, monkeypatch):
    """With locks the system knows better than the file; without them its owner may be about to write it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").touch()
    path = tmp_path / "out" / ".lock"
    path.write_text(content)
    RunLock(tmp_path / "out").release()
    path.write_text(content)
    monkeypatch.setattr(run_lock, "_lock", refuse_locks)
    monkeypatch.setattr(run_lock, "_SETTLING_SECONDS", 0.01)
    with pytest.raises(FolderInUse, match="certain that it has ended, add --take_over"):
        RunLock(tmp_path / "out")
    RunLock(tmp_path / "out", take_over=True).release()


def test_texts_of_the_lock_file_stay_on_one_line(without_locks, tmp_path):
    write_owner(tmp_path / "out", host="a\nb\x1b[31m" + "x" * 500, since="now\nerror: all is lost")
    with pytest.raises(FolderInUse) as raised:
        RunLock(tmp_path / "out")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_what_is_no_file_is_not_taken_for_the_lock(tmp_path, kind):
    (tmp_path / "out").mkdir()
    path, precious = tmp_path / "out" / ".lock", tmp_path / "precious"
    if "link" in kind:
        path.symlink_to(precious)
        if kind == "link":
            precious.write_text("mine")
    else:
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(FolderInUse, match="must be a file of a run's own: remove what is there"):
        RunLock(tmp_path / "out")
    assert precious.exists() == (kind == "link") and (kind != "link" or precious.read_text() == "mine")


def test_other_errors_are_not_taken_for_missing_locks(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(run_lock, "_lock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        RunLock(tmp_path / "out")
    monkeypatch.undo()
    RunLock(tmp_path / "out").release()


def test_windows_locks_a_byte_behind_the_text(tmp_path, monkeypatch):
    calls = []

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(descriptor, mode, count):
            calls.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, count))
            if len(calls) > 1:
                raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(run_lock, "fcntl", None)
    monkeypatch.setattr(run_lock, "msvcrt", Msvcrt, raising=False)
    lock = RunLock(tmp_path / "out")
    assert calls == [(1 << 30, 2, 1)]
    run_lock._held_here.clear()  # as another process sees it
    with pytest.raises(FolderInUse, match=f"process {os.getpid()} of"):
        RunLock(tmp_path / "out")
    lock.release()
    assert not (tmp_path / "out").exists()


# ---- choosing the folder


def test_a_folder_in_use_is_not_chosen_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    accelerator, default = Accelerator(), "runs/scenes-b0"
    holder = hold(tmp_path / "runs" / "scenes-b0")
    assert holder.stdout.readline() == "held\n"
    with run_folder(None, default, False, accelerator) as folder:
        assert folder == "runs/scenes-b0.2"
        with run_folder(None, default, False, accelerator) as another:
            assert another == "runs/scenes-b0.3"
    for resume in (False, True):
        (tmp_path / default / "states" / "step-00000001").mkdir(parents=True, exist_ok=True)
        with (
            pytest.raises(ValueError, match=f"in use by process {holder.pid}"),
            run_folder(default, default, resume, accelerator),
        ):
            pass
    holder.communicate("\n", timeout=30)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["scenes-b0"]


def test_what_a_killed_start_leaves_is_no_run(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").write_text("{}")
    with run_folder(str(tmp_path / "out"), "unused", False, Accelerator()) as folder:
        assert folder == str(tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="File exists"), run_folder(str(tmp_path / "file"), "", False, Accelerator()):
        pass

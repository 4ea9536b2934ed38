# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Files on other platforms, of which each does here what it does there, and text that depends on no platform."""

import ast
import errno
import importlib
import os
import stat
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from hf_segformer import files
from hf_segformer.checkpoints import conversion as checkpoint_conversion
from hf_segformer.evaluation import loop as evaluation
from hf_segformer.files import atomic_file, fsync_path, replace_path

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for folder in ("hf_segformer", "examples", "conversion") for path in (REPOSITORY / folder).rglob("*.py")
)
IDS = [str(path.relative_to(REPOSITORY)) for path in SOURCES]


@pytest.fixture
def windows(monkeypatch):
    """Windows: folders cannot be opened, only what is open for writing can be flushed; returns what was flushed."""
    flushed, opened, real_open, real_fsync = [], {}, os.open, os.fsync

    def open_there(path, flags, *more, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        descriptor = real_open(path, flags, *more, **options)
        opened[descriptor] = path, flags
        return descriptor

    def fsync_there(descriptor):
        path, flags = opened.pop(descriptor, (None, os.O_RDWR))
        if flags & (os.O_RDWR | os.O_WRONLY) == 0:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(path)
        real_fsync(descriptor)

    monkeypatch.setattr(files, "_WINDOWS", True)
    monkeypatch.setattr(os, "open", open_there)
    monkeypatch.setattr(os, "fsync", fsync_there)
    return flushed


def test_flushing_on_windows(tmp_path, windows):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    fsync_path(path)
    fsync_path(tmp_path)
    assert windows == [path] and path.read_bytes() == b"content"


def test_flushing_elsewhere(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    path.chmod(0o400)
    flushed, real = [], os.fsync

    def fsync(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    fsync_path(path)
    fsync_path(tmp_path)
    assert flushed == [path.stat().st_ino, tmp_path.stat().st_ino]
    with pytest.raises(FileNotFoundError):
        fsync_path(tmp_path / "absent")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_flush_no_folders(tmp_path, monkeypatch, number):
    (tmp_path / "file").write_bytes(b"content")

    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    fsync_path(tmp_path)
    with pytest.raises(OSError, match=os.strerror(number)):  # but every one flushes files
        fsync_path(tmp_path / "file")


def test_full_disk_is_no_matter_of_platform(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        fsync_path(tmp_path)


@pytest.mark.parametrize("times", [1, 3, 1000])
def test_replacing_what_a_virus_scanner_has_open(tmp_path, monkeypatch, times):
    path, waits, real, calls = tmp_path / "file", [], os.replace, []
    path.write_bytes(b"old")

    def replace(source, target):
        calls.append(source)
        if len(calls) <= times:
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        real(source, target)

    monkeypatch.setattr(files, "_WINDOWS", True)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(time, "sleep", waits.append)
    if times < 1000:
        with atomic_file(path) as file:
            file.write(b"new")
        assert path.read_bytes() == b"new" and len(waits) == times
    else:
        with pytest.raises(PermissionError), atomic_file(path) as file:
            file.write(b"new")
        assert path.read_bytes() == b"old" and sum(waits) < 2
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_elsewhere_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(FileNotFoundError):
        replace_path(tmp_path / "absent", tmp_path / "file")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(PermissionError()))
    with pytest.raises(PermissionError):
        replace_path(tmp_path, tmp_path / "file")


def test_new_folder_on_windows(tmp_path, windows):
    with checkpoint_conversion.new_folder(tmp_path / "a" / "new") as folder:
        (folder / "inner").mkdir()
        (folder / "file").write_bytes(b"content")
    assert (tmp_path / "a/new/file").read_bytes() == b"content" and [path.name for path in windows] == ["file"]


def test_new_folder_has_the_mode_of_any_other(tmp_path):
    (tmp_path / "other").mkdir()
    with checkpoint_conversion.new_folder(tmp_path / "new"):
        pass
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_cores_where_the_system_does_not_tell_which_may_be_used(monkeypatch):
    threads = []
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    accelerator = types.SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    evaluation.share_cpu_threads(accelerator)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    evaluation.share_cpu_threads(accelerator)
    assert threads == [3, 1]


def test_peak_memory_on_windows(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # which is what importing it finds there
    monkeypatch.delitem(sys.modules, "hf_segformer.benchmark.memory", raising=False)
    module = importlib.import_module("hf_segformer.benchmark.memory")
    monkeypatch.delitem(sys.modules, "hf_segformer.benchmark.memory")
    peak = types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(peak_wset=3 << 20))
    monkeypatch.setattr(module.psutil, "Process", lambda: peak)
    assert module.resident_peak() == 3


# ---- text

POSIX_ONLY = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_text_is_utf_8_everywhere(path):
    tree, wrong = ast.parse(path.read_text(encoding="utf-8")), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        given = {keyword.arg for keyword in node.keywords}
        texts = [argument.value for argument in node.args if isinstance(getattr(argument, "value", None), str)]
        is_text = (isinstance(node.func, ast.Attribute) and name in ("read_text", "write_text")) or (
            isinstance(node.func, ast.Name) and name == "open" and not any("b" in text for text in texts[-1:])
        )
        if is_text and "encoding" not in given:
            wrong.append(node.lineno)
    assert wrong == []


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_modules_that_windows_lacks_are_optional(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    needed = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in needed if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in needed if isinstance(node, ast.ImportFrom)}
    assert not names & POSIX_ONLY


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_terminals_that_cannot_show_a_name(tmp_path, encoding):
    # What a script prints at its end, after hours of training, must not stop it.
    script = REPOSITORY / "conversion" / "convert.py"
    code = "import runpy, sys; sys.argv = ['convert.py', 'absent', 'out']\n"
    code += "import hf_segformer.checkpoints.conversion as module\n"
    code += "module.convert_checkpoint = lambda **options: 'class 道路'\n"
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rb"class \u9053\u8def" in done.stdout

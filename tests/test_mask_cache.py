# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawn masks of earlier starts: bounded, the longest unused first, and never those that a process uses."""

import os
import subprocess
import sys
import time

import pytest
from tool_exports import age, labelme, labels_of, square

from hf_segformer.data import load_any, mask_cache

# The module alone, without the package, which takes seconds.
HOLD = """
import runpy, sys
from pathlib import Path
runpy.run_path(sys.argv[1])["hold"](Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_MASKS", str(tmp_path / "masks"))
    monkeypatch.setattr(mask_cache, "_held", {})
    yield tmp_path / "masks"
    for descriptor in mask_cache._held.values():
        os.close(descriptor)


def release():
    """What the end of a process does."""
    for descriptor in mask_cache._held.values():
        os.close(descriptor)
    mask_cache._held.clear()


def data_set(folder, label="x"):
    folder.mkdir(exist_ok=True)
    for name in "abc":
        labelme(folder / f"{name}.json", [square(label, 1, 1, 3 + ord(label) % 7)])
    age(folder)
    return folder


def kept(root):
    return {path.parent.name for path in root.glob("*/index.json")}


def start(root, folder, at=None):
    """Load a data set, and set when that was; returns the name of its folder in the cache."""
    before = kept(root)
    load_any(folder)
    (name,) = kept(root) - before or {None}
    if name and at is not None:
        os.utime(root / f"{name}.lock", (at, at))
    return name


def test_the_longest_unused_go_first(root, tmp_path, monkeypatch):
    now = time.time()
    first, second, third = (
        start(root, data_set(tmp_path / name), now - 1000 + 100 * index) for index, name in enumerate("ABC")
    )
    release()
    load_any(tmp_path / "A")  # used again; nothing is drawn
    release()
    whole = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    monkeypatch.setenv("HF_SEGFORMER_MASKS_GB", str((whole + 10) / 1e9))
    last = start(root, data_set(tmp_path / "D"))
    assert kept(root) == {first, third, last} and not (root / second).exists()
    labels = labels_of(load_any(tmp_path / "B"))  # is drawn anew
    assert sorted(labels) == ["a", "b", "c"] and labels["a"].max() == 1


def test_what_this_or_another_process_uses_stays(root, tmp_path, monkeypatch):
    first = start(root, data_set(tmp_path / "A"))
    release()
    command = [sys.executable, "-c", HOLD, mask_cache.__file__, str(root / first)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        monkeypatch.setenv("HF_SEGFORMER_MASKS_GB", "0")
        second = start(root, data_set(tmp_path / "B"))
        assert kept(root) == {first, second}
        release()
        other.communicate("")
    third = start(root, data_set(tmp_path / "C"))
    assert kept(root) == {third}


def test_masks_of_shapes_that_changed_go_when_others_are_drawn(root, tmp_path):
    name = start(root, data_set(tmp_path / "A"))

    def masks():
        return {path.name for path in (root / name).glob("??/*.png")}

    versions = [masks()]
    for label in "yz":
        release()
        load_any(data_set(tmp_path / "A", label))
        versions.append(masks())
    assert versions[0] < versions[1]  # the last start's stay for whoever trains on them
    assert not versions[0] & versions[2] and len(versions[2]) == 2 * len(versions[0])


def test_a_data_set_in_use_is_not_pruned(root, tmp_path):
    data = load_any(data_set(tmp_path / "A"))
    for label in "yz":
        load_any(data_set(tmp_path / "A", label))
    assert sorted(labels_of(data)) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["many", "-1", "nan"])
def test_a_limit_that_is_no_number(tmp_path, monkeypatch, text):
    monkeypatch.setenv("HF_SEGFORMER_MASKS_GB", text)
    with pytest.raises(ValueError, match=f"HF_SEGFORMER_MASKS_GB must be a number of gigabytes >= 0, got '{text}'"):
        load_any(data_set(tmp_path / "A"))


def test_without_locks_nothing_is_removed(root, tmp_path, monkeypatch):
    monkeypatch.setattr(mask_cache, "fcntl", None)
    monkeypatch.setenv("HF_SEGFORMER_MASKS_GB", "0")
    names = {start(root, data_set(tmp_path / name)) for name in "AB"}
    assert kept(root) == names


class Counted(int):
    """A number of bytes that counts additions and subtractions."""

    done = 0

    def _result(self, value):
        type(self).done += 1
        return Counted(value)

    def __add__(self, other):
        return self._result(int(self) + int(other))

    def __sub__(self, other):
        return self._result(int(self) - int(other))

    __radd__ = __add__


def test_the_work_grows_as_the_number_of_data_sets(root, monkeypatch):
    count = 60
    for index in range(count):
        (root / f"{index:03}").mkdir(parents=True)
    monkeypatch.setattr(mask_cache, "_size", lambda folder: Counted(10))
    assert len(mask_cache.trim(root, 0)) == count and Counted.done <= 3 * count

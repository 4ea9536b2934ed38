# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""One run per output folder: a lock of the operating system, which ends with the process that holds it.

Where the file system has no locks, the lock file itself says who holds it: host, process id, when that process
started, and the boot of the machine. A process of another host is never judged dead.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import time
import uuid
from pathlib import Path
from typing import Any, NoReturn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

LOCK_NAME = ".lock"
LOG_NAME = "train.log"
# Beyond the text: Windows lets nobody read the bytes that are locked.
_LOCKED_BYTE = 1 << 30
_HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_SETTLING_SECONDS = 1.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
# A lock of this kind keeps other processes out, not other threads and calls of this one.
_held_here: set[str] = set()


class FolderInUse(ValueError):
    """Another run has the folder."""


class RunLock:
    """Holds a folder for one run until `release`, or until the process ends in whatever way.

    Args:
        folder: Output folder; created if missing.
        take_over: Also take it from a process of which nobody can say whether it still runs.

    Raises:
        FolderInUse: Another run holds it; says which process, since when, and what to do.
        OSError: The folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike, take_over: bool = False):
        self.folder = Path(folder)
        self.path = self.folder / LOCK_NAME
        self._key = os.path.realpath(self.path)
        if self._key in _held_here:
            raise FolderInUse(f"output_dir {self.folder} is in use by another run of this process")
        self._made = _make_folders(self.folder)
        self._descriptor: int | None = None
        try:
            self._take(take_over)
        except BaseException:
            self._close()
            _remove_empty(self._made)
            raise
        _held_here.add(self._key)

    def _take(self, take_over: bool) -> None:
        while True:
            is_new, descriptor = self._open()
            before = _read_owner(descriptor)
            try:
                _lock(descriptor)
            except OSError as error:
                if error.errno in _HELD:
                    _refuse(self.path, before, "wait for it to end, or stop it")
                if error.errno not in _NO_LOCKS:
                    raise
                return self._take_without_locks(descriptor, before, is_new, take_over)
            if _is_same_file(descriptor, self.path):
                break
            self._close()  # its last owner removed it between opening and locking
        _write_owner(descriptor, _this_process())

    def _open(self) -> tuple[bool, int]:
        """Open the lock file, and return whether it is a new one; follows no link and waits for no pipe."""
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._descriptor = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            return True, self._descriptor
        except FileExistsError:
            if not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise FolderInUse(f"{self.path} must be a file of a run's own: remove what is there") from None
            self._descriptor = os.open(self.path, flags | os.O_CREAT, 0o666)
            return False, self._descriptor

    def _take_without_locks(
        self, descriptor: int, owner: dict[str, Any] | None, is_new: bool, take_over: bool
    ) -> None:
        if owner is None and not is_new and not take_over:
            _refuse(self.path, None, "if it is certain that it has ended, add --take_over")
        _check_owner(self.path, owner, take_over)
        mine = _this_process() | {"nonce": uuid.uuid4().hex}
        _write_owner(descriptor, mine)
        time.sleep(_SETTLING_SECONDS)  # of several that write at a time, the last one has it
        last = json.loads(self.path.read_bytes())
        if last != mine:
            _refuse(self.path, last, "it was started at the same time")

    def release(self) -> None:
        """Give the folder back; removes the lock, and the folder if nothing else was put into it."""
        if self._descriptor is None:
            return
        if fcntl is None:  # Windows removes no open file
            self._close()
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._close()
        _remove_empty(self._made)
        _held_here.discard(self._key)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_occupied(folder: str | os.PathLike) -> bool:
    """Whether a folder holds more than a lock, and the log of a run that left nothing else."""
    return any(entry.name not in (LOCK_NAME, LOG_NAME) for entry in os.scandir(os.fspath(folder)))


def _make_folders(folder: Path) -> list[Path]:
    """Create a folder with its parents; returns those that were missing, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # somebody has put something there meanwhile
        for folder in folders:
            folder.rmdir()


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        # Unlike `flock`, this is not handed on to the worker processes that load images, which may outlive a kill.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKED_BYTE)
    else:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


# ---- who holds it


def _this_process() -> dict[str, Any]:
    return {"host": _host(), "pid": os.getpid(), "started": _start_time(os.getpid()), "boot": _boot_id()} | {
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z")
    }


def _host() -> str:
    """Name of what process ids are counted in: the machine, and on Linux the container."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _boot_id() -> str | None:
    """What changes when the machine starts anew; None where that is unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """When a process started, in a form that clock changes do not alter where there is one; None if there is none."""
    if not Path("/proc/self/stat").exists():
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            return f"{psutil.Process(pid).create_time():.0f}"
        return None
    try:
        # The name in parentheses may hold spaces; the 22nd field is the 20th behind it.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return None


def _read_owner(descriptor: int) -> dict[str, Any] | None:
    """What the lock file says; None where it is empty, or says nothing that can be read."""
    try:
        owner = json.loads(_read(descriptor))
    except (ValueError, RecursionError):
        return None
    return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else None


def _read(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 4096)


def _write_owner(descriptor: int, owner: dict[str, Any]) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(owner).encode())
    os.fsync(descriptor)


def _check_owner(path: Path, owner: dict[str, Any] | None, take_over: bool) -> None:
    """Without locks: refuse unless the owner is known to be gone."""
    if owner is None or take_over:
        return
    if owner.get("host") != _host():
        _refuse(path, owner, "if it is certain that it has ended, add --take_over")
    rebooted = None not in (owner.get("boot"), _boot_id()) and owner["boot"] != _boot_id()
    started = _start_time(owner["pid"])
    if not rebooted and started is not None and started == owner.get("started"):
        _refuse(path, owner, "wait for it to end, or stop it")


def _plain(text: Any) -> str:
    """A text out of the lock file, for one line."""
    return "".join(char if char.isprintable() else "?" for char in str(text)[:80])


def _refuse(path: Path, owner: dict[str, Any] | None, advice: str) -> NoReturn:
    who = "another run"
    if owner is not None:
        host, since = (_plain(owner.get(name)) for name in ("host", "since"))
        who = f"process {owner['pid']} of {host.partition(' ')[0]} since {since}"
    raise FolderInUse(f"output_dir {path.parent} is in use by {who} (says {path}): {advice}")

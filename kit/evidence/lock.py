"""One run at a place, held by the operating system: a lock ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import BinaryIO

from kit.errors import UsageError

LOCK = ".kit-report.lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, getattr(errno, "ENOTSUP", errno.ENOSYS))


class Lock:
    """The lock of a folder. The file stays, since deleting it would let two runs hold two files of one name.

    note: what a run that was killed left in it, else None.
    """

    def __init__(self, file: BinaryIO, note: str | None) -> None:
        self._file, self.note = file, note

    def release(self) -> None:
        self._file.truncate(0)
        self._file.close()


def acquire(folder: Path, run_id: str) -> Lock:
    """Raises UsageError at once where another process holds the folder's lock."""
    path = folder / LOCK
    file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    try:
        _lock(file)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return Lock(file, "this file system has no locks; only one run at a time may write here")
        holder = _holder(path)
        file.close()
        raise UsageError(
            f"another run writes to {folder}: {holder or error}",
            expected="one run at a place",
            todo="wait for it to end, or give another folder with --out",
        ) from None
    left = _holder(path)
    file.truncate(0)
    file.write(f"process {os.getpid()}, run {run_id}".encode())
    file.flush()
    return Lock(file, f"taken over from a run that did not end: {left}" if left else None)


def is_held(folder: Path) -> bool:
    """Whether a run is writing below `folder` now."""
    try:
        file = open(folder / LOCK, "r+b")
    except OSError:
        return False
    with file:
        try:
            _lock(file)
        except OSError:
            return True
    return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:200]
    except OSError:
        # Windows does not let another process read a locked range.
        return ""


if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        # A byte far behind the text, so that others can read who holds it.
        file.seek(1 << 20)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

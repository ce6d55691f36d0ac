"""Writes one file so that a crash leaves the old one or the new one, never a part of it.

Notebook kernels use it too: it needs nothing but the standard library.
"""

import contextlib
import errno
import os
from pathlib import Path

from kit.errors import UsageError
from kit.units import memory


class WriteFailed(UsageError):
    """The disk refused; nothing stands under the final name that was not whole before."""


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> Path:
    """Writes `data` (text as UTF-8, newlines as they are) beside `path`, syncs it and renames it into place.

    Raises WriteFailed where the disk is full, read-only or broken.
    """
    path, data = Path(path), data.encode("utf-8") if isinstance(data, str) else data
    # The dot and .tmp keep a leftover of a killed process out of every bundle.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        with open(os.open(temporary, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        # The disk that refused the write may refuse this too; the name marks the file as no result.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise failed(path, len(data), error) from error
    return path


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` last through a power cut, where the system lets a folder be synced."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def failed(path: Path, size: int, error: OSError) -> WriteFailed:
    is_full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
    return WriteFailed(
        f"cannot write {path.name} ({memory(size)}): {error.strerror or error}",
        expected="a folder on a disk with room that this user may write",
        todo="free some space" if is_full else "give another folder with --out",
    )

"""One run at a place: a lock file that tells who holds it, and whether that process still lives."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from kit.errors import UsageError

LOCK = ".kit-report.lock"
_STILL_ACTIVE = 259


@dataclasses.dataclass(frozen=True)
class Lock:
    path: Path
    # why an older lock was taken over, else None
    note: str | None

    def release(self) -> None:
        self.path.unlink(missing_ok=True)


def acquire(folder: Path, run_id: str) -> Lock:
    """The lock of `folder`. Raises UsageError where a living process holds it."""
    path = folder / LOCK
    me = {**this_process(), "run_id": run_id}
    # A second try follows only after a dead lock was moved away.
    for note in (None, "a lock that a dead process left was taken over"):
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            _move_away_if_dead(path)
            continue
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(me, file)
        return Lock(path, note)
    raise _held(path, read(path))


def this_process() -> dict[str, object]:
    """{pid, start_ticks, boot_id}: the same pid with other ticks, or another boot, is another process."""
    return {"pid": os.getpid(), "start_ticks": _start_ticks(os.getpid()), "boot_id": _boot_id()}


def is_alive(holder: Mapping[str, object]) -> bool:
    """Whether the process that a lock or a state file names still runs."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0 or holder.get("boot_id") != _boot_id():
        return False
    if not _pid_exists(pid):
        return False
    return holder.get("start_ticks") == _start_ticks(pid)


def read(path: Path) -> dict[str, object]:
    """What a lock or state file says; empty where it says nothing that can be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _move_away_if_dead(path: Path) -> None:
    holder = read(path)
    for _ in range(20):
        if holder or not path.exists():
            break
        # Its owner has made it and not yet written it, or died just then.
        time.sleep(0.05)
        holder = read(path)
    if is_alive(holder):
        raise _held(path, holder)
    # Two runs may find the same dead lock. Each moves what it finds under its own name and looks again:
    # who moved a living lock puts it back.
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        os.replace(path, aside)
    except FileNotFoundError:
        return
    moved = read(aside)
    if is_alive(moved):
        os.replace(aside, path)
        raise _held(path, moved)
    aside.unlink(missing_ok=True)


def _held(path: Path, holder: Mapping[str, object]) -> UsageError:
    return UsageError(
        f"another run writes here: {path} is held by process {holder.get('pid')} (run {holder.get('run_id')})",
        expected="one run at a place",
        todo="wait for it to end, or give another folder with --out",
    )


def _pid_exists(pid: int) -> bool:
    if os.name == "nt":
        return _pid_exists_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _pid_exists_on_windows(pid: int) -> bool:
    """os.kill(pid, 0) would send Ctrl-C there. 0x1000 is PROCESS_QUERY_LIMITED_INFORMATION."""
    import ctypes

    kernel = ctypes.windll.kernel32
    handle = kernel.OpenProcess(0x1000, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == _STILL_ACTIVE


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat (man proc_pid_stat); -1 for a zombie, None where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return -1 if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None

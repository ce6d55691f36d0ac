"""Starts the ranks with torchrun and watches over them: no launcher of our own, and no rank left behind.

What a rank recorded stays, whatever happens to the others; a failure names the rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kit.extras.scale.ranks import folder_name, hang
from kit.process import child_environment
from kit.records import dumps
from kit.train.config import TrainConfig

# A step that takes longer hangs, where nothing else is said; so does a start.
HANG_S = 180.0
# The stacks of a rank in which nothing has happened for too long, in its folder.
STACK = "stack.txt"
# How long torchrun gets to end its ranks before they are ended for it.
_GRACE_S = 15.0
_POLL_S = 0.2
# torchrun's summary: each rank that failed, and last the one that it takes for the first.
_FAILURE = re.compile(r"rank\s*:\s*(\d+) \(local_rank.*?exitcode\s*:\s*(-?\d+)", re.S)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of each rank. task: 'train' or 'measure' (see `kit.extras.scale.worker`). launcher: the number of
    the process that asks."""

    launcher: int
    task: str
    out: str
    parallel: str
    hang_s: float
    config: TrainConfig
    modes: tuple[str, ...] = ()
    blocks: int = 0
    block_s: float = 0.0


def launch(
    request: Request, world_size: int, *, on_progress: Callable[[dict[int, int]], None] | None = None
) -> str | None:
    """Runs `request` on world_size ranks of this machine. Returns why it failed, None where all ranks ended well.

    What the ranks printed stays in `torchrun.txt` of request.out where they failed. on_progress: called with the finished steps by rank, about five times a second. Ctrl-C ends all ranks
    and is raised again.
    """
    out = Path(request.out)
    out.mkdir(parents=True, exist_ok=True)
    asked = out / "request.json"
    asked.write_text(dumps(request), encoding="utf-8", newline="\n")
    # What torchrun would choose with a warning: each rank of a rehearsal computes with one core, however many run.
    environment = child_environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS") or "1")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(world_size),
        "-m",
        "kit.extras.scale.worker",
        str(asked),
    ]
    log = out / "torchrun.txt"
    with log.open("wb") as file:
        # A session of its own, so that all of it can be ended at once, and Ctrl-C reaches this process alone.
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            hung = _watch(process, out, world_size, on_progress)
        finally:
            _end(process)
            asked.unlink(missing_ok=True)
    if hung:
        return hung
    if process.returncode:
        return _why(process.returncode, log.read_text(encoding="utf-8", errors="replace"))
    log.unlink()
    return None


def _watch(process, out: Path, world_size: int, on_progress) -> str | None:
    """Until torchrun ends, or a rank hangs: then who holds the others up."""
    while process.poll() is None:
        if on_progress:
            on_progress(_steps(out, world_size))
        if any(_stacks(out, world_size).values()):
            # The others notice within the same second or two.
            time.sleep(3.0)
            return hang(_stacks(out, world_size), _steps(out, world_size))
        time.sleep(_POLL_S)
    return None


def _steps(out: Path, world_size: int) -> dict[int, int]:
    """Finished steps by rank."""
    return {rank: _read(out / folder_name(rank) / "steps.jsonl").count("\n") for rank in range(world_size)}


def _stacks(out: Path, world_size: int) -> dict[int, str]:
    return {rank: _read(out / folder_name(rank) / STACK) for rank in range(world_size)}


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _end(process) -> None:
    """torchrun ends its ranks when it is told to end; what does not listen is killed. A rank whose parent is gone
    ends by itself."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _why(exit_code: int, log: str) -> str:
    """The first rank that failed, its own words where it had any, or the signal that ended it."""
    own = [line.removeprefix("kit: ") for line in log.splitlines() if line.startswith("kit: ")]
    failures = [(int(rank), int(code)) for rank, code in _FAILURE.findall(log)]
    if not failures:
        last = (log.strip().splitlines() or ["no message"])[-1]
        return own[0] if own else f"torchrun ended with {exit_code}: {last[:200]}"
    # A rank that a signal ended breaks the others' exchange, and they may seem to fail first; torchrun itself ends
    # with SIGTERM those that are left.
    killed = [failure for failure in failures if failure[1] < 0 and failure[1] != -signal.SIGTERM]
    rank, code = killed[-1] if killed else failures[-1]
    if code < 0:
        names = {member.value: member.name for member in signal.Signals}
        return f"rank {rank} was ended by {names.get(-code, f'signal {-code}')}"
    return f"rank {rank} ended with exit code {code}" + (f": {own[0]}" if own else "")

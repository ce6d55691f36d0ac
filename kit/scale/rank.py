"""What one rank does: it trains with the others, proves its own device, and writes down what it saw.

Started by torchrun, either through `kit train` or as `-m kit.scale.rank REQUEST`, where REQUEST is
the JSON file that `kit.scale.launch` wrote.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path

from kit.errors import KitError
from kit.records import dumps, from_json, loads
from kit.scale.group import Group
from kit.scale.ranks import Rank, RankRecord, folder_name
from kit.train.config import TrainConfig
from kit.train.measure import measure
from kit.train.metrics import StepRecord

# Steps whose losses are compared with those of one device.
REFERENCE_STEPS = 10
STACK = "stack.txt"


def train_rank(
    config: TrainConfig,
    *,
    parallel: str = "ddp",
    out: Path | None = None,
    hang_s: float = 180.0,
    on_step: Callable[[StepRecord], None] | None = None,
    launcher: int | None = None,
) -> tuple[Group, Rank]:
    """Trains as one rank of those in the environment. config: its batch is this rank's part of the global one.

    out: a folder that gets `rank-<n>/` with the same files as a run of one process, and `rank.json`.
    hang_s: a step that takes longer leaves the stack of this rank in `stack.txt` there, or on stderr
    where no folder is named. launcher: see `Group`. Raises what `kit.train.measure.measure` raises, with `rank.json` written.
    """
    group = Group(config.device, parallel, launcher=launcher)
    folder = out / folder_name(group.record.rank) if out else None
    with _Watched(folder, hang_s) as watched:

        def step(record: StepRecord) -> None:
            watched.again()
            if record.step == 1:
                # A rank that is ended from outside has said where it was.
                _keep(folder, group.record)
            if on_step and group.is_first:
                on_step(record)

        try:
            found = measure(config, out=folder, on_step=step, group=group)
            watched.again()
            if group.is_first:
                group.reference(config, min(REFERENCE_STEPS, config.steps))
        except (KitError, RuntimeError) as error:
            told = error.found if isinstance(error, KitError) else (str(error).splitlines() or [""])[0]
            group.record = dataclasses.replace(group.record, error=told)
            raise
        finally:
            _keep(folder, group.record)
    return group, Rank(group.record, found.run, found.steps, found.samples)


def _keep(folder: Path | None, record: RankRecord) -> None:
    if folder:
        (folder / "rank.json").write_text(dumps(record), encoding="utf-8", newline="\n")


class _Watched:
    """Leaves the stacks of this process behind when nothing has been said for a while; from a thread of C, so
    that code which holds Python's lock is shown as well."""

    def __init__(self, folder: Path | None, hang_s: float) -> None:
        self._folder, self._hang_s = folder, hang_s

    def __enter__(self) -> _Watched:
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / STACK).open("w", encoding="utf-8") if self._folder else sys.stderr
        self.again()
        return self

    def again(self) -> None:
        faulthandler.dump_traceback_later(self._hang_s, file=self._file)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._folder:
            self._file.close()
            (self._folder / STACK).unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Request:
    """What `kit.scale.launch` asks of each rank. task: 'train' or 'measure' (see `kit.scale.measure`). launcher: the
    number of the process that asks."""

    launcher: int
    task: str
    out: str
    parallel: str
    hang_s: float
    config: TrainConfig
    modes: tuple[str, ...] = ()
    blocks: int = 0
    block_s: float = 0.0


def main(path: str) -> int:
    """A rank that was launched. Its records are the answer; a message goes to stderr with its number."""
    request = from_json(Request, loads(Path(path).read_bytes()))
    try:
        if request.task == "train":
            group, _ = train_rank(
                request.config,
                parallel=request.parallel,
                out=Path(request.out),
                hang_s=request.hang_s,
                launcher=request.launcher,
            )
        else:
            from kit.scale.measure import measure_rank

            group = measure_rank(request)
        group.leave()
    except KitError as error:
        print(f"kit: {error}", file=sys.stderr)
        return error.exit_code
    return 0


__all__ = ["RankRecord", "Request", "main", "train_rank"]

if __name__ == "__main__":
    code = main(sys.argv[1])
    # All is written. An interpreter that ends beside the threads of torch's Gloo aborts now and then ("terminate called
    # without an active exception", 2 of 14 pairs of ranks, torch 2.13), which would look like a rank that failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

"""What several ranks recorded, and how a hang is told from its stacks. Data and logic; no process is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from kit.train.config import TrainConfig
from kit.train.metrics import StepRecord, TelemetrySample, TrainingRun

COMPLETE, FAILED = "COMPLETE", "FAILED"


@dataclasses.dataclass(frozen=True)
class RanksRun:
    """What was started: `ranks.json`. config: of each rank; its batch is one rank's part of the global batch.

    state: COMPLETE or FAILED; reason: why it failed, naming the rank where that is known.
    """

    world_size: int
    parallel: str
    config: TrainConfig
    state: str
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class RankRecord:
    """What one rank says of itself: `rank.json` in its folder.

    node, local_rank: as torchrun numbers them. device_uuid: of the device it took at the start;
    trained_uuid: of the one that held the weights after the last step; None on a CPU.
    sum_found, sum_expected: an all-reduce in which each rank contributed its number plus one; found is None beside
    an expectation where it was not finite.
    parameters_sha256: over all weights after the last step. reference_losses: of rank 0 alone, the
    same global batches on this one device. error: what ended it early.
    """

    rank: int
    local_rank: int
    node: int
    world_size: int
    device: str
    backend: str | None = None
    device_name: str | None = None
    device_uuid: str | None = None
    trained_uuid: str | None = None
    sum_found: float | None = None
    sum_expected: float | None = None
    parameters_sha256: str | None = None
    reference_losses: tuple[float, ...] = ()
    reference_skipped: str | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Rank:
    """All files of one rank; None or empty for those that it did not get to write."""

    record: RankRecord | None = None
    run: TrainingRun | None = None
    steps: tuple[StepRecord, ...] = ()
    samples: tuple[TelemetrySample, ...] = ()


def folder_name(rank: int) -> str:
    """The folder of one rank, beside `ranks.json`."""
    return f"rank-{rank}"


# A rank whose main thread stands in one of these waits: for the other ranks, or for a device that does.
_WAITING = ("torch/distributed/", "torch/autograd/graph.py", "torch/cuda/__init__.py", "torch/cuda/streams.py")


def hang(stacks: Mapping[int, str], steps: Mapping[int, int]) -> str:
    """Who holds the others up, in words. stacks: of each rank's main thread, innermost frame first, as
    faulthandler writes them. steps: how many each rank has finished."""
    busy = sorted(rank for rank, stack in stacks.items() if not _is_waiting(stack))
    slowest = min(steps.values(), default=0)
    behind = sorted(rank for rank, count in steps.items() if count == slowest)
    if 0 < len(busy) < len(stacks):
        culprits, why = busy, "the others wait for it"
    elif 0 < len(behind) < len(steps):
        culprits, why = behind, f"it has finished {slowest} steps, the others more"
    else:
        return f"all {len(stacks)} ranks wait after {slowest} steps: a kernel or the network hangs"
    names = " and ".join(f"rank {rank}" for rank in culprits)
    place = _innermost(stacks.get(culprits[0], ""))
    return f"{names} does not go on after {steps.get(culprits[0], 0)} steps{place}; {why}"


def _frames(stack: str) -> list[str]:
    """The lines of the main thread, which faulthandler writes last, innermost frame first."""
    return [
        line.strip()
        for line in stack.replace("\\", "/").split("most recent call first")[-1].splitlines()
        if line.strip().startswith("File ")
    ]


def _is_waiting(stack: str) -> bool:
    frames = _frames(stack)
    return not frames or any(place in frames[0] for place in _WAITING)


def _innermost(stack: str) -> str:
    """Where it stands, without the folders, which are private."""
    frames = _frames(stack)
    if not frames:
        return ""
    path, _, rest = frames[0].removeprefix('File "').partition('"')
    return f" ({path.rsplit('/', 1)[-1]}{rest})"


def global_losses(ranks: Sequence[Rank]) -> tuple[float | None, ...]:
    """The loss of each global batch: the mean over the ranks, whose parts are equally large. None where one lacks it."""
    if not ranks:
        return ()
    found = []
    for losses in zip(*([step.loss for step in rank.steps] for rank in ranks)):
        found.append(None if None in losses else sum(losses) / len(losses))
    return tuple(found)

"""Several GPUs: what is asked of them, what each rank recorded, and how the speed grows. Data and logic alone.

Weak scaling keeps the samples of each GPU and grows the batch; strong scaling keeps the whole batch
and divides it. Both compare tokens a second of N GPUs with N times those of one.
"""

import dataclasses
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kit.show import Table
from kit.sweep.table import Row
from kit.train.config import TrainConfig, parameter, refuse_wrong
from kit.train.steps import StepRecord, TelemetrySample, TrainingRun
from kit.units import Spread, memory, number, percent, quantity, seconds, spread

MODES = ("weak", "strong")
PARALLELS = ("ddp", "fsdp")
# The step that is measured where none is named.
DEFAULT_STEPS: dict[str, dict[str, Any]] = {
    "cuda": {"batch_size": 32, "seq_len": 1024, "dtype": "bfloat16"},
    "cpu": {"batch_size": 4, "seq_len": 64, "dtype": "float32"},
}


def scaled_step(device: str, model: str, **shape: int | str) -> TrainConfig:
    """The step of a scaling sweep. shape: batch_size, seq_len, dtype; 0 and "" take what `DEFAULT_STEPS` says."""
    given = DEFAULT_STEPS[device] | {name: value for name, value in shape.items() if value}
    return TrainConfig(model=model, device=device, **given)


@dataclasses.dataclass(frozen=True)
class ScalePlan:
    """Numbers of GPUs, and the step that is measured on each. `config.batch_size`: samples a GPU and step
    in weak scaling, and of the whole batch in strong scaling."""

    gpus: tuple[int, ...]
    config: TrainConfig
    modes: tuple[str, ...] = parameter(MODES, "of scaling", choices=MODES)
    parallel: str = parameter("ddp", "ddp (a copy of the model on each GPU) or fsdp (a part of it)", choices=PARALLELS)
    blocks: int = parameter(5, "timed blocks a point, the n of each median", least=1)
    block_s: float = parameter(0.3, "least seconds of a block", least=1e-9)

    def __post_init__(self) -> None:
        refuse_wrong(self, self._problems())

    def _problems(self) -> Iterator[tuple[str, str]]:
        if not self.gpus or self.gpus[0] != 1 or list(self.gpus) != sorted(set(self.gpus)):
            yield f"gpus={list(self.gpus)}", "gpus growing from 1, since all others are compared with one"
        if not self.modes:
            yield "modes=[]", f"modes of {', '.join(MODES)}"
        if self.config.engine != "eager":
            yield f"engine={self.config.engine}", "engine=eager, the one that exchanges gradients"

    def points(self, world_size: int) -> tuple[tuple[str, TrainConfig], ...]:
        """The modes with each rank's own config. One GPU is measured once: it is the base of both modes. A batch
        that this number does not divide has no point in strong scaling."""
        modes, batch_size = self.modes if world_size > 1 else self.modes[:1], self.config.batch_size
        shares = {"weak": (batch_size, 0), "strong": divmod(batch_size, world_size)}
        each = [(mode, *shares[mode]) for mode in modes]
        return tuple((mode, dataclasses.replace(self.config, batch_size=own)) for mode, own, rest in each if not rest)


# What several ranks recorded, and how a hang is told from its stacks.

COMPLETE, FAILED = "COMPLETE", "FAILED"
# A step that takes longer hangs, where nothing else is said; so does a start.
HANG_S = 180.0
# The stacks of a rank in which nothing has happened for too long, in its folder.
STACK = "stack.txt"


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


def global_losses(ranks: Sequence[Rank]) -> tuple[float | None, ...]:
    """The loss of each global batch: the mean over the ranks, whose parts are equally large. None where one lacks it."""
    by_step = zip(*([step.loss for step in rank.steps] for rank in ranks))
    return tuple(None if None in losses else statistics.fmean(losses) for losses in by_step)


# A rank whose main thread stands in one of these waits: for the other ranks, or for a device that does.
_WAITING = ("torch/distributed/", "torch/autograd/graph.py", "torch/cuda/__init__.py", "torch/cuda/streams.py")


def hang(stacks: Mapping[int, str], steps: Mapping[int, int]) -> str:
    """Who holds the others up, in words. stacks: of each rank's threads as faulthandler writes them, the main one last,
    its innermost frame first. steps: how many each rank has finished."""
    mains = {rank: stack.replace("\\", "/").split("most recent call first")[-1] for rank, stack in stacks.items()}
    places = {rank: re.search(r'File "([^"]*)"(.*)', main) for rank, main in mains.items()}
    busy = [rank for rank, at in sorted(places.items()) if at and not any(part in at[1] for part in _WAITING)]
    slowest = min(steps.values(), default=0)
    behind = sorted(rank for rank, count in steps.items() if count == slowest)
    if 0 < len(busy) < len(stacks):
        culprits, why = busy, "the others wait for it"
    elif 0 < len(behind) < len(steps):
        culprits, why = behind, f"it has finished {slowest} steps, the others more"
    else:
        return f"all {len(stacks)} ranks wait after {slowest} steps: a kernel or the network hangs"
    names, at = " and ".join(f"rank {rank}" for rank in culprits), places.get(culprits[0])
    # Without its folders, which are private.
    place = f" ({at[1].rpartition('/')[2]}{at[2]})" if at else ""
    return f"{names} does not go on after {steps.get(culprits[0], 0)} steps{place}; {why}"


# How fast the GPUs sum a tensor. How they are joined stands in `nvidia_smi.txt`, as `nvidia-smi topo -m` prints it.


@dataclasses.dataclass(frozen=True)
class AllReduce:
    """All-reduces (sums over all ranks) of one tensor, one after the other.

    size_bytes: of one rank's tensor. times_s: each the slowest rank's, by the host's clock, from a
    common start until the device was done.
    """

    size_bytes: int
    world_size: int
    dtype: str
    times_s: tuple[float, ...]

    @property
    def bus_bytes(self) -> float:
        """size × 2(n-1)/n, what each rank has to send in a ring (nccl-tests' PERFORMANCE.md): over the time it compares
        with a link whatever n is. Where the switch sums (NVLink SHARP), less is sent and it may exceed the link's."""
        return self.size_bytes * 2 * (self.world_size - 1) / self.world_size

    @property
    def bus_bytes_per_s(self) -> float | None:
        """Over the median time; 0 for one rank, which sends nothing."""
        return self.bus_bytes / statistics.median(self.times_s) if self.times_s else None


def best(rows: Sequence[AllReduce]) -> AllReduce | None:
    """The row of the highest bus bandwidth; None where no two ranks met."""
    return max((row for row in rows if row.bus_bytes_per_s), key=lambda row: row.bus_bytes_per_s, default=None)


def sentence(rows: Sequence[AllReduce]) -> str:
    """The finding in words: the best bus bandwidth."""
    if (top := best(rows)) is None:
        return "One rank only: there is nothing to all-reduce with."
    rate = quantity(top.bus_bytes_per_s, "B/s")
    return f"All-reduce of {memory(top.size_bytes)} on {top.world_size} ranks: {rate} bus bandwidth."


# How the speed of a step grows with the ranks.


@dataclasses.dataclass(frozen=True)
class ScaleRow(Row):
    """A point of several ranks: a row of a sweep, whose batch is that of one rank and whose times are the slowest's.

    block_compute_s: the same steps without exchanging gradients, so that the difference is communication that nothing
    hides; empty for one rank and under FSDP, which cannot train without. parallel: 'none' for one rank: the plain
    model, not wrapped.
    """

    mode: str = "weak"
    world_size: int = 1
    parallel: str = "none"
    block_compute_s: tuple[float, ...] = ()

    @property
    def tokens(self) -> int:
        """Positions that one step trains on, of all ranks."""
        return self.world_size * self.batch_size * self.seq_len

    @property
    def exposed_s(self) -> float | None:
        """Communication that the computation does not hide: step time with less step time without exchange.
        Below 0 where the blocks' spread is wider than it."""
        return self.step_time_s - statistics.median(self.block_compute_s) if self.block_compute_s else None


@dataclasses.dataclass(frozen=True)
class Scaling:
    """All rows of a plan. Shows itself as a table."""

    device_name: str
    rows: tuple[ScaleRow, ...]

    @property
    def base(self) -> ScaleRow | None:
        """The row of one GPU, with which all others are compared."""
        return next((row for row in self.rows if row.world_size == 1 and row.outcome == "ok"), None)

    def series(self, mode: str) -> list[ScaleRow]:
        """The measured points of one mode from one GPU on; that of one GPU belongs to both."""
        found = [row for row in self.rows if row.outcome == "ok" and (row.mode == mode or row.world_size == 1)]
        return sorted(found, key=lambda row: row.world_size)

    def efficiency(self, row: ScaleRow) -> Spread | None:
        """Tokens/s of a row over world_size times those of one GPU, 1 at best in theory: median of the blocks
        with quartiles. The base enters by its median."""
        if self.base is None or row.outcome != "ok":
            return None
        ideal_s = self.base.step_time_s * row.batch_size / self.base.batch_size
        return spread(tuple(ideal_s / step_s for step_s in row.block_step_s))

    @property
    def table(self) -> Table:
        shape = ("scaling", "ranks", "batch a rank", "tokens a sample", "precision")
        columns = (*shape, "step", "IQR", "n", "tokens/s", "efficiency", "exposed")
        return Table(columns, tuple(map(self._cells, self.rows)))

    def _cells(self, row: ScaleRow) -> tuple[object, ...]:
        mode = "–" if row.world_size == 1 else row.mode
        shape = (mode, row.world_size, row.batch_size, row.seq_len, row.dtype)
        figures, efficiency = spread(row.block_step_s), self.efficiency(row)
        if figures is None:
            return (*shape, "out of memory" if row.outcome == "oom" else row.outcome, *["–"] * 5)
        times = (seconds(figures.median), seconds(figures.iqr, 2), figures.n)
        told = percent(efficiency.median, 3) if efficiency else "–"
        told += f" ± {percent(efficiency.iqr / 2)}" if efficiency and efficiency.n > 1 else ""
        exposed = "–" if row.exposed_s is None else seconds(max(0.0, row.exposed_s), 2)
        return (*shape, *times, number(row.tokens_per_s), told, exposed)

    @property
    def sentence(self) -> str:
        """The finding in words: the efficiency of the most GPUs in each mode."""
        parts = []
        for mode in MODES:
            most = max(self.series(mode), key=lambda row: row.world_size, default=None)
            if most and most.world_size > 1 and (efficiency := self.efficiency(most)):
                parts.append(f"{percent(efficiency.median, 3)} {mode} scaling efficiency on {most.world_size}")
        if not parts:
            return f"Scaling on {self.device_name} could not be measured on more than one device."
        return f"{self.device_name}: {', '.join(parts)}."

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.sentence}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

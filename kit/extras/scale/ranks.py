"""How the speed grows with the number of GPUs: what is measured, its rows, and the efficiency that follows.

Weak scaling keeps the samples of each GPU and grows the batch; strong scaling keeps the whole batch
and divides it. Both compare tokens a second of N GPUs with N times those of one.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kit.show import Table
from kit.sweep.table import csv_text
from kit.train.config import TrainConfig, parameter, refuse_wrong
from kit.train.steps import StepRecord, TelemetrySample, TrainingRun
from kit.units import Spread, memory, number, percent, quantity, seconds, spread

# How fast the GPUs sum a tensor. How they are joined stands in `nvidia_smi.txt`, as `nvidia-smi topo -m` prints it.

# The gradients of GPT-2 124M in float32: what data-parallel training sums in each step.
GPT2_GRADIENT_BYTES = 4 * 124_439_808


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
    def time_s(self) -> float | None:
        """The median."""
        figures = spread(self.times_s)
        return figures.median if figures else None

    @property
    def algorithm_bytes_per_s(self) -> float | None:
        """size / time, as nccl-tests' PERFORMANCE.md defines it."""
        return self.size_bytes / self.time_s if self.time_s else None

    @property
    def bus_bytes_per_s(self) -> float | None:
        """Algorithm bandwidth × 2(n-1)/n, what each rank has to send in a ring (nccl-tests' PERFORMANCE.md).

        It compares with a link whatever n is; 0 for one rank, which sends nothing. Where the switch sums
        (NVLink SHARP), less is sent and it may exceed the link's figure.
        """
        rate = self.algorithm_bytes_per_s
        return rate * 2 * (self.world_size - 1) / self.world_size if rate else None


def all_reduce_table(rows: Sequence[AllReduce]) -> Table:
    """Each size with its bandwidths."""
    columns = ("size", "ranks", "dtype", "time", "IQR", "n", "algorithm bandwidth", "bus bandwidth")
    return Table(columns, tuple(map(_cells, rows)))


def _cells(row: AllReduce) -> tuple[str, ...]:
    figures = spread(row.times_s)
    head = (memory(row.size_bytes), str(row.world_size), row.dtype)
    if figures is None:
        return (*head, *["–"] * 5)
    times = (seconds(figures.median), seconds(figures.iqr, 2), str(figures.n))
    bus = quantity(row.bus_bytes_per_s, "B/s") if row.world_size > 1 else "–"
    return (*head, *times, quantity(row.algorithm_bytes_per_s, "B/s"), bus)


def best(rows: Sequence[AllReduce]) -> AllReduce | None:
    """The row of the highest bus bandwidth; None where no two ranks met."""
    good = [row for row in rows if row.world_size > 1 and row.bus_bytes_per_s]
    return max(good, key=lambda row: row.bus_bytes_per_s, default=None)


def sentence(rows: Sequence[AllReduce]) -> str:
    """The finding in words: the best bus bandwidth."""
    top = best(rows)
    if top is None:
        return "One rank only: there is nothing to all-reduce with."
    rate = quantity(top.bus_bytes_per_s, "B/s")
    return f"All-reduce of {memory(top.size_bytes)} on {top.world_size} ranks: {rate} bus bandwidth."


# What several ranks recorded, and how a hang is told from its stacks. Data and logic; no process is touched.

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
        found.append(None if None in losses else statistics.fmean(losses))
    return tuple(found)


MODES = ("weak", "strong")
PARALLELS = ("ddp", "fsdp")
# The step that is measured where none is named: samples of a GPU, tokens of a sample, precision.
DEFAULT_STEPS = {"cuda": (32, 1024, "bfloat16"), "cpu": (4, 64, "float32")}


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
        that this number does not divide has no point in strong scaling (see `undivided`)."""
        found = []
        for mode in self.modes if world_size > 1 else self.modes[:1]:
            share, rest = (
                divmod(self.config.batch_size, world_size) if mode == "strong" else (self.config.batch_size, 0)
            )
            if not rest:
                found.append((mode, dataclasses.replace(self.config, batch_size=share)))
        return tuple(found)

    def undivided(self, world_size: int) -> str | None:
        """Why strong scaling has no point for this number of GPUs; None where it has, or is not asked for."""
        if "strong" not in self.modes or self.config.batch_size % world_size == 0:
            return None
        return f"{self.config.batch_size} samples cannot be divided among {world_size} GPUs"


def scaled_step(device: str, model: str, *, batch_size: int = 0, seq_len: int = 0, dtype: str = "") -> TrainConfig:
    """The step of a scaling sweep; 0 and "" take what `DEFAULT_STEPS` says for the device."""
    default = DEFAULT_STEPS[device]
    return TrainConfig(
        model=model,
        device=device,
        batch_size=batch_size or default[0],
        seq_len=seq_len or default[1],
        dtype=dtype or default[2],
    )


@dataclasses.dataclass(frozen=True)
class ScaleRow:
    """One measured point. outcome: 'ok', 'oom' or 'error'; figures are empty unless it is 'ok'.

    batch_size: samples of one rank and step. block_step_s: mean step time of each block, of the
    slowest rank. block_compute_s: the same steps without exchanging gradients, so that the
    difference is communication that nothing hides; empty for one rank and under FSDP, which
    cannot train without. parallel: 'none' for one rank: the plain model, not wrapped.
    """

    mode: str
    world_size: int
    batch_size: int
    seq_len: int
    dtype: str
    model: str
    parallel: str
    outcome: str
    block_step_s: tuple[float, ...] = ()
    block_compute_s: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None
    reason: str | None = None

    @property
    def step_time_s(self) -> float | None:
        figures = spread(self.block_step_s)
        return figures.median if figures else None

    @property
    def tokens_per_s(self) -> float | None:
        """Positions a second of all ranks together; the batches have no padding."""
        return self.world_size * self.batch_size * self.seq_len / self.step_time_s if self.step_time_s else None

    @property
    def exposed_s(self) -> float | None:
        """Communication that the computation does not hide: step time with less step time without exchange.
        Below 0 where the blocks' spread is wider than it."""
        compute = spread(self.block_compute_s)
        return self.step_time_s - compute.median if compute and self.step_time_s else None


@dataclasses.dataclass(frozen=True)
class Scaling:
    """All rows of a plan. Shows itself as a table."""

    device_name: str
    rows: tuple[ScaleRow, ...]

    @property
    def base(self) -> ScaleRow | None:
        """The row of one GPU, with which all others are compared."""
        return next((row for row in self.rows if row.world_size == 1 and row.outcome == "ok"), None)

    def efficiency(self, row: ScaleRow) -> Spread | None:
        """Tokens/s of a row over world_size times those of one GPU, 1 at best in theory: median of the blocks
        with quartiles. The base enters by its median."""
        base = self.base
        if base is None or row.outcome != "ok":
            return None
        ideal_s = base.step_time_s * row.batch_size / base.batch_size
        return spread(tuple(ideal_s / step_s for step_s in row.block_step_s))

    @property
    def table(self) -> Table:
        columns = (
            "scaling",
            "ranks",
            "batch a rank",
            "tokens a sample",
            "precision",
            "step",
            "IQR",
            "n",
            "tokens/s",
            "efficiency",
            "exposed",
        )
        return Table(columns, tuple(self._cells(row) for row in self.rows))

    def _cells(self, row: ScaleRow) -> tuple[str, ...]:
        mode = "–" if row.world_size == 1 else row.mode
        shape = (mode, str(row.world_size), str(row.batch_size), str(row.seq_len), row.dtype)
        figures, efficiency = spread(row.block_step_s), self.efficiency(row)
        if figures is None:
            return (*shape, "out of memory" if row.outcome == "oom" else row.outcome, *["–"] * 5)
        told = percent(efficiency.median, 3) if efficiency else "–"
        told += f" ± {percent(efficiency.iqr / 2)}" if efficiency and efficiency.n > 1 else ""
        exposed = "–" if row.exposed_s is None else f"{seconds(max(0.0, row.exposed_s), 2)}"
        return (
            *shape,
            seconds(figures.median),
            seconds(figures.iqr, 2),
            str(figures.n),
            number(row.tokens_per_s),
            told,
            exposed,
        )

    @property
    def sentence(self) -> str:
        """The finding in words: the efficiency of the most GPUs in each mode."""
        parts = []
        for mode in MODES:
            good = [row for row in self.rows if row.mode == mode and row.world_size > 1 and row.outcome == "ok"]
            if good and (efficiency := self.efficiency(most := max(good, key=lambda row: row.world_size))):
                parts.append(f"{percent(efficiency.median, 3)} {mode} scaling efficiency on {most.world_size}")
        if not parts:
            return f"Scaling on {self.device_name} could not be measured on more than one device."
        return f"{self.device_name}: {', '.join(parts)}."

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.sentence}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def to_csv(scaling: Scaling) -> str:
    """All rows with their derived figures, to be read by a person; `scaling.json` holds the raw ones."""
    records = []
    for row in scaling.rows:
        efficiency = scaling.efficiency(row)
        derived = {name: getattr(row, name) for name in ("step_time_s", "tokens_per_s", "exposed_s")}
        records.append({**vars(row), **derived, "efficiency": efficiency.median if efficiency else None})
    return csv_text(records)


def in_order(rows: Iterable[ScaleRow]) -> tuple[ScaleRow, ...]:
    return tuple(sorted(rows, key=lambda row: (MODES.index(row.mode), row.world_size)))


def series(rows: Sequence[ScaleRow], mode: str) -> list[ScaleRow]:
    """The measured points of one mode from one GPU on; that of one GPU belongs to both."""
    found = [row for row in rows if row.outcome == "ok" and (row.mode == mode or row.world_size == 1)]
    return sorted(found, key=lambda row: row.world_size)

"""How the speed grows with the number of GPUs: what is measured, its rows, and the efficiency that follows.

Weak scaling keeps the samples of each GPU and grows the batch; strong scaling keeps the whole batch
and divides it. Both compare tokens a second of N GPUs with N times those of one.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence

from kit.errors import UsageError
from kit.show import Table
from kit.stats import Spread, spread
from kit.train.config import TrainConfig
from kit.units import number, percent, seconds

MODES = ("weak", "strong")
PARALLELS = ("ddp", "fsdp")
# The step that is measured where none is named: samples of a GPU, tokens of a sample, precision.
DEFAULT_STEPS = {"cuda": (32, 1024, "bfloat16"), "cpu": (4, 64, "float32")}


@dataclasses.dataclass(frozen=True)
class ScalePlan:
    """Numbers of GPUs, and the step that is measured on each. `config.batch_size`: samples a GPU and step
    in weak scaling, and of the whole batch in strong scaling.

    parallel: 'ddp' holds a copy of the model on each GPU, 'fsdp' a part of it (torch's FSDP2).
    """

    gpus: tuple[int, ...]
    config: TrainConfig
    modes: tuple[str, ...] = MODES
    parallel: str = "ddp"
    blocks: int = 5
    block_s: float = 0.3

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            found, expected = zip(*problems)
            raise UsageError("; ".join(found), expected="; ".join(expected), todo="correct the parameter")

    def _problems(self):
        if not self.gpus or self.gpus[0] != 1 or list(self.gpus) != sorted(set(self.gpus)):
            yield f"gpus={list(self.gpus)}", "gpus growing from 1, since all others are compared with one"
        if not self.modes or set(self.modes) - set(MODES):
            yield f"modes={list(self.modes)}", f"modes of {', '.join(MODES)}"
        if self.parallel not in PARALLELS:
            yield f"parallel={self.parallel!r}", f"parallel one of {', '.join(PARALLELS)}"
        if self.config.engine != "eager":
            yield f"engine={self.config.engine}", "engine=eager, the one that exchanges gradients"
        if self.blocks < 1 or not self.block_s > 0:
            yield f"blocks={self.blocks}, block_s={self.block_s}", "both positive"

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


COLUMNS = (
    "mode",
    "world_size",
    "batch_size",
    "seq_len",
    "dtype",
    "model",
    "parallel",
    "outcome",
    "step_time_s",
    "tokens_per_s",
    "efficiency",
    "exposed_s",
    "peak_memory_bytes",
    "block_step_s",
    "block_compute_s",
    "reason",
)


def to_csv(scaling: Scaling) -> str:
    """All rows with raw and derived figures; an empty cell is unknown."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in scaling.rows:
        efficiency = scaling.efficiency(row)
        derived = {
            "step_time_s": row.step_time_s,
            "tokens_per_s": row.tokens_per_s,
            "exposed_s": row.exposed_s,
            "efficiency": efficiency.median if efficiency else None,
        }
        raw = {name: getattr(row, name) for name in COLUMNS if hasattr(row, name)}
        blocks = {name: " ".join(map(repr, getattr(row, name))) for name in ("block_step_s", "block_compute_s")}
        writer.writerow({**raw, **derived, **blocks})
    return text.getvalue()


def from_csv(text: str) -> tuple[ScaleRow, ...]:
    """The raw figures of `to_csv`; the derived ones are computed again, never read."""
    try:
        return tuple(_from_record(record) for record in csv.DictReader(io.StringIO(text)))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"scaling.csv: {error}", expected="the columns " + ", ".join(COLUMNS)) from error


def _from_record(record: dict[str, str]) -> ScaleRow:
    texts = {name: record[name] for name in ("mode", "dtype", "model", "parallel", "outcome")}
    counts = {name: int(record[name]) for name in ("world_size", "batch_size", "seq_len")}
    blocks = {name: tuple(map(float, record[name].split())) for name in ("block_step_s", "block_compute_s")}
    peak = record["peak_memory_bytes"]
    return ScaleRow(
        **texts, **counts, **blocks, peak_memory_bytes=int(peak) if peak else None, reason=record["reason"] or None
    )


def in_order(rows: Iterable[ScaleRow]) -> tuple[ScaleRow, ...]:
    return tuple(sorted(rows, key=lambda row: (MODES.index(row.mode), row.world_size)))


def series(rows: Sequence[ScaleRow], mode: str) -> list[ScaleRow]:
    """The measured points of one mode from one GPU on; that of one GPU belongs to both."""
    found = [row for row in rows if row.outcome == "ok" and (row.mode == mode or row.world_size == 1)]
    return sorted(found, key=lambda row: row.world_size)

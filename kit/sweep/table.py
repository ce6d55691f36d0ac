"""The rows of a sweep: one a point, those that failed too, and the figures that follow from them."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence

from kit.errors import UsageError
from kit.show import Table
from kit.stats import spread
from kit.train.config import MODELS, TrainConfig
from kit.train.flops import adamw_step_bytes, least_step_flop, step_flop
from kit.units import UNKNOWN, percent, quantity, seconds


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What this card did when it was asked for nothing else. FLOP/s by dtype, bytes/s of a copy.

    A copy of n bytes counts 2n: read and written. None where it was not measured.
    datasheet_*: dense figures of the maker, where the card is known. attention: causal, bfloat16, forward and
    backward; its shape is batch × heads × tokens × width. launch_s, graph_launch_s: of one small kernel.
    """

    device_name: str
    matmul_flop_per_s: dict[str, float] = dataclasses.field(default_factory=dict)
    matmul_shape: dict[str, str] = dataclasses.field(default_factory=dict)
    copy_bytes_per_s: float | None = None
    launch_s: float | None = None
    datasheet_flop_per_s: dict[str, float] = dataclasses.field(default_factory=dict)
    datasheet_bytes_per_s: float | None = None
    attention_flop_per_s: float | None = None
    attention_shape: str | None = None
    graph_launch_s: float | None = None

    @property
    def table(self) -> Table:
        rows = [
            (
                f"matrix product, {dtype}",
                quantity(rate, "FLOP/s"),
                self.matmul_shape.get(dtype, UNKNOWN),
                quantity(self.datasheet_flop_per_s.get(dtype), "FLOP/s"),
            )
            for dtype, rate in self.matmul_flop_per_s.items()
        ]
        if self.attention_flop_per_s:
            how = f"causal, forward and backward, {self.attention_shape}"
            rows.append(
                (
                    "attention, bfloat16",
                    quantity(self.attention_flop_per_s, "FLOP/s"),
                    how,
                    quantity(self.datasheet_flop_per_s.get("bfloat16"), "FLOP/s"),
                )
            )
        rows.append(
            (
                "copy on the device",
                quantity(self.copy_bytes_per_s, "B/s"),
                "read and written bytes",
                quantity(self.datasheet_bytes_per_s, "B/s"),
            )
        )
        rows.append(("launch of one small kernel", seconds(self.launch_s), "a thousand in a row", "–"))
        if self.graph_launch_s:
            rows.append(("the same inside a CUDA graph", seconds(self.graph_launch_s), "a thousand in one graph", "–"))
        return Table(("ceiling", "measured", "how", "datasheet"), tuple(rows))


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured point. outcome: 'ok', 'oom', 'error', or 'missing' where the engine cannot run here.

    Figures are None unless it is 'ok'. block_step_s: mean step time of each block, the raw
    values. steps: timed steps in all. note: what the engine says that it does.
    """

    batch_size: int
    seq_len: int
    dtype: str
    model: str
    outcome: str
    block_step_s: tuple[float, ...] = ()
    steps: int = 0
    peak_memory_bytes: int | None = None
    reason: str | None = None
    engine: str = "eager"
    note: str | None = None

    @property
    def point(self) -> tuple[int, int, str, str, str]:
        """What tells it from the other rows of a sweep."""
        return self.batch_size, self.seq_len, self.dtype, self.model, self.engine

    @property
    def step_time_s(self) -> float | None:
        figures = spread(self.block_step_s)
        return figures.median if figures else None

    @property
    def samples_per_s(self) -> float | None:
        return self.batch_size / self.step_time_s if self.step_time_s else None

    @property
    def tokens_per_s(self) -> float | None:
        """Positions a second; the sweep has no padding."""
        return self.batch_size * self.seq_len / self.step_time_s if self.step_time_s else None

    @property
    def flop_per_s(self) -> float | None:
        if not self.step_time_s:
            return None
        flop = step_flop(MODELS[self.model], batch_size=self.batch_size, seq_len=self.seq_len)
        return flop / self.step_time_s


def higher(a: Ceilings, b: Ceilings) -> Ceilings:
    """The better reading of each ceiling of `a`, from before and after a sweep: something else may have disturbed one."""
    better = [dtype for dtype, rate in b.matmul_flop_per_s.items() if rate > a.matmul_flop_per_s.get(dtype, rate)]
    return dataclasses.replace(
        a,
        matmul_flop_per_s={**a.matmul_flop_per_s, **{dtype: b.matmul_flop_per_s[dtype] for dtype in better}},
        matmul_shape={**a.matmul_shape, **{dtype: b.matmul_shape[dtype] for dtype in better}},
        copy_bytes_per_s=max(a.copy_bytes_per_s, b.copy_bytes_per_s),
        launch_s=min(a.launch_s, b.launch_s),
    )


def row_of(config: TrainConfig, outcome: str, **figures) -> Row:
    return Row(config.batch_size, config.seq_len, config.dtype, config.model, outcome, engine=config.engine, **figures)


def floor_s(row: Row, ceilings: Ceilings) -> float | None:
    """Least seconds of a step on this card: arithmetic at the measured matmul rate, or the bytes of
    weights, gradients and AdamW at the measured copy rate, whichever takes longer.

    It leaves activations and the masked half of attention out, so no step can be faster; None
    where a ceiling is not known.
    """
    rate = ceilings.matmul_flop_per_s.get(row.dtype)
    if rate is None or ceilings.copy_bytes_per_s is None:
        return None
    shape = MODELS[row.model]
    compute_s = least_step_flop(shape, batch_size=row.batch_size, seq_len=row.seq_len) / rate
    return max(compute_s, adamw_step_bytes(shape, row.dtype) / ceilings.copy_bytes_per_s)


def mfu(row: Row, ceilings: Ceilings, *, of: str = "measured") -> float | None:
    """Model FLOP utilisation against the 'measured' matmul rate or the 'datasheet' peak; None if unknown."""
    peaks = ceilings.matmul_flop_per_s if of == "measured" else ceilings.datasheet_flop_per_s
    peak = peaks.get(row.dtype)
    return row.flop_per_s / peak if peak and row.flop_per_s else None


def words(row: Row, ceilings: Ceilings) -> str:
    """One point in words: '4 × 64 by graphed in bfloat16: 3.36 ms, floor 1.50 ms (45 %), MFU 4.8 % of 989 TFLOP/s …'."""
    point = f"{row.batch_size} × {row.seq_len} by {row.engine} in {row.dtype}"
    if not row.step_time_s:
        what = {"oom": "out of memory", "missing": "not here", "error": "failed"}.get(row.outcome, row.outcome)
        return f"{point}: {what}" + (f", {row.reason}" if row.reason and row.outcome != "oom" else "")
    floor = floor_s(row, ceilings)
    limit = f"floor {seconds(floor)} ({percent(floor / row.step_time_s)} of the step)" if floor else "floor unknown"
    shares = [
        f"{percent(mfu(row, ceilings, of=of))} of {quantity(peaks[row.dtype], 'FLOP/s')} {name}"
        for of, name, peaks in (
            ("datasheet", "published", ceilings.datasheet_flop_per_s),
            ("measured", "measured", ceilings.matmul_flop_per_s),
        )
        if row.dtype in peaks
    ]
    return f"{point}: {seconds(row.step_time_s)}, {limit}, MFU {' and '.join(shares) or 'unknown'}"


def progress_text(done: int, total: int, left_s: float) -> str:
    """'[######......] 3 of 12 points, about 41 s left'."""
    full = 24 * done // total
    left = f"about {seconds(left_s, 2)} left" if done < total else "done"
    return f"[{'#' * full}{'.' * (24 - full)}] {done} of {total} points, {left}"


COLUMNS = (
    "batch_size",
    "seq_len",
    "dtype",
    "model",
    "outcome",
    "steps",
    "step_time_s",
    "step_time_q1_s",
    "step_time_q3_s",
    "samples_per_s",
    "tokens_per_s",
    "peak_memory_bytes",
    "floor_s",
    "mfu_measured",
    "mfu_datasheet",
    "block_step_s",
    "reason",
    "engine",
    "note",
)


def as_record(row: Row, ceilings: Ceilings) -> dict[str, object]:
    """The row as a flat record with its derived figures; None stands for unknown."""
    figures = spread(row.block_step_s)
    return {
        "batch_size": row.batch_size,
        "seq_len": row.seq_len,
        "dtype": row.dtype,
        "model": row.model,
        "outcome": row.outcome,
        "steps": row.steps,
        "step_time_s": row.step_time_s,
        "step_time_q1_s": figures.q1 if figures else None,
        "step_time_q3_s": figures.q3 if figures else None,
        "samples_per_s": row.samples_per_s,
        "tokens_per_s": row.tokens_per_s,
        "peak_memory_bytes": row.peak_memory_bytes,
        "floor_s": floor_s(row, ceilings),
        "mfu_measured": mfu(row, ceilings),
        "mfu_datasheet": mfu(row, ceilings, of="datasheet"),
        "block_step_s": " ".join(repr(value) for value in row.block_step_s),
        "reason": row.reason,
        "engine": row.engine,
        "note": row.note,
    }


def to_csv(rows: Iterable[Row], ceilings: Ceilings) -> str:
    """All rows with raw and derived figures; an empty cell is unknown."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(as_record(row, ceilings))
    return text.getvalue()


def from_csv(text: str) -> tuple[Row, ...]:
    """The raw figures of `to_csv`; the derived ones are computed again, never read."""
    try:
        return tuple(_from_record(record) for record in csv.DictReader(io.StringIO(text)))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"sweep.csv: {error}", expected="the columns " + ", ".join(COLUMNS)) from error


def _from_record(record: dict[str, str]) -> Row:
    peak = record["peak_memory_bytes"]
    return Row(
        batch_size=int(record["batch_size"]),
        seq_len=int(record["seq_len"]),
        dtype=record["dtype"],
        model=record["model"],
        outcome=record["outcome"],
        block_step_s=tuple(float(value) for value in record["block_step_s"].split()),
        steps=int(record["steps"]),
        peak_memory_bytes=int(peak) if peak else None,
        reason=record["reason"] or None,
        # Files from before there were engines have no such columns.
        engine=record.get("engine") or "eager",
        note=record.get("note") or None,
    )


def in_grid_order(rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: (row.engine, row.dtype, row.seq_len, row.batch_size)))

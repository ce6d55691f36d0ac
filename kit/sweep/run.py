"""Measures a grid of shapes with the real training step; a point that does not fit becomes a row."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from kit.errors import UsageError
from kit.records import dumps, loads, to_json
from kit.sweep.plan import SweepPlan
from kit.show import Table, card, escape
from kit.stats import spread
from kit.sweep.table import Ceilings, Row, as_record, floor_s, from_csv, higher, in_grid_order, mfu, row_of, to_csv
from kit.train.config import TrainConfig
from kit.units import memory, number, percent, seconds

Measure = Callable[[TrainConfig], Row]


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """All rows of a plan, in the order of the grid, beside the card's ceilings."""

    plan: SweepPlan
    ceilings: Ceilings
    rows: tuple[Row, ...]

    @property
    def frame(self):
        """All rows with their derived figures as a pandas DataFrame, to explore; SI units in the names."""
        import pandas

        return pandas.DataFrame([as_record(row, self.ceilings) for row in self.rows])

    @property
    def table(self) -> Table:
        columns = ("engine", "batch", "tokens a sample", "precision", "step", "IQR", "n", "tokens/s", "memory",
                   "of the limit", "MFU")
        return Table(columns, tuple(self._cells(row) for row in self.rows))

    def _cells(self, row: Row) -> tuple[str, ...]:
        shape = (row.engine, str(row.batch_size), str(row.seq_len), row.dtype)
        if row.outcome != "ok":
            words = {"oom": "out of memory", "missing": "not here"}
            return (*shape, words.get(row.outcome, row.outcome), *["–"] * 6)
        figures, limit = spread(row.block_step_s), floor_s(row, self.ceilings)
        return (
            *shape, seconds(figures.median), seconds(figures.iqr, 2), str(figures.n), number(row.tokens_per_s),
            memory(row.peak_memory_bytes) if row.peak_memory_bytes else "–",
            percent(limit / figures.median if limit else None), percent(mfu(row, self.ceilings)),
        )

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.sentence}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return card(escape(self.sentence), self.table._repr_html_())

    @property
    def sentence(self) -> str:
        """The finding in words."""
        good = [row for row in self.rows if row.tokens_per_s]
        if not good:
            return f"None of {len(self.rows)} points could be measured on {self.ceilings.device_name}."
        best = max(good, key=lambda row: row.tokens_per_s)
        limit = floor_s(best, self.ceilings)
        share = f"{percent(limit / best.step_time_s)} of what its measured ceilings allow" if limit else "limit unknown"
        return (
            f"{self.ceilings.device_name} trains {best.model} fastest at batch {best.batch_size} × {best.seq_len} in "
            f"{best.dtype} by the {best.engine} engine: {number(best.tokens_per_s)} tokens/s, {share}; "
            f"{len(good)} of {len(self.rows)} points measured."
        )


def sweep(
    plan: SweepPlan,
    *,
    out: str | Path | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> SweepResult:
    """Measures every point. out: a folder that gets `sweep.csv`, rewritten after each point, and `sweep.json`.

    A sweep that was killed goes on where it stopped, if `out` holds one of the same plan and
    card. on_progress: points done, points in all, seconds left as the mean of those measured
    says. Random token ids without padding stand for text: the time of a step does not depend on
    them.
    Raises GpuNotUsable where the device is cuda and cannot be used.
    """
    from kit.sweep.ceilings import measure_ceilings
    from kit.train.run import require_device

    from kit.sweep.measure import Bench

    require_device(plan.device)
    ceilings = measure_ceilings(plan.device, plan.dtypes)
    rows = list(_kept(out, plan, ceilings))
    total, start = len(plan.configs()), time.perf_counter()
    done = {row.point for row in rows}
    for count, row in enumerate(rows_of(plan, Bench(plan), done), start=1):
        rows.append(row)
        _keep(out, plan, ceilings, rows)
        if on_row:
            on_row(row)
        if on_progress:
            on_progress(len(rows), total, (time.perf_counter() - start) / count * (total - len(rows)))
    ceilings = higher(ceilings, measure_ceilings(plan.device, plan.dtypes))
    _keep(out, plan, ceilings, rows)
    return SweepResult(plan, ceilings, in_grid_order(rows))


def rows_of(plan: SweepPlan, measure: Measure, done: Collection[tuple] = ()) -> Iterator[Row]:
    """One row a point that is not `done`. Out of memory and a failed kernel are rows with their reason."""
    import torch

    for config in plan.configs():
        if row_of(config, "ok").point in done:
            continue
        try:
            yield measure(config)
        except torch.cuda.OutOfMemoryError as error:
            yield row_of(config, "oom", reason=str(error).splitlines()[0])
        except RuntimeError as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield row_of(config, "oom" if "DefaultCPUAllocator" in text else "error", reason=text)


def _kept(out: str | Path | None, plan: SweepPlan, ceilings: Ceilings) -> tuple[Row, ...]:
    """Rows that an earlier sweep of the same plan on the same card left in `out`, without those that failed."""
    if not out or not (Path(out) / "sweep.json").is_file() or not (Path(out) / "sweep.csv").is_file():
        return ()
    record = loads((Path(out) / "sweep.json").read_text(encoding="utf-8"))
    is_same = record.get("plan") == to_json(plan)
    if not is_same or record.get("ceilings", {}).get("device_name") != ceilings.device_name:
        return ()
    rows = from_csv((Path(out) / "sweep.csv").read_text(encoding="utf-8"))
    return tuple(row for row in rows if row.outcome != "error")


def _keep(out: str | Path | None, plan: SweepPlan, ceilings: Ceilings, rows: list[Row]) -> None:
    if not out:
        return
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.csv").write_text(to_csv(in_grid_order(rows), ceilings), encoding="utf-8", newline="\n")
        (folder / "sweep.json").write_text(
            dumps({"plan": plan, "ceilings": ceilings}), encoding="utf-8", newline="\n"
        )
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}", expected="a folder you may write to",
                         todo="name another folder with --out") from error

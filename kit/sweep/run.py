"""Measures a grid of shapes with the real training step; a point that does not fit becomes a row."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kit.errors import UsageError
from kit.records import dumps
from kit.sweep.plan import SweepPlan
from kit.show import Table
from kit.stats import spread
from kit.sweep.table import Ceilings, Row, as_record, floor_s, higher, in_grid_order, mfu, row_of, to_csv
from kit.train.config import TrainConfig
from kit.units import memory, number, percent, seconds

WARM_UP_STEPS = 3
WARM_UP_S = 0.5
# A block lasts `block_s` and at least this many steps.
_LEAST_STEPS = 2

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
        columns = ("batch", "tokens a sample", "precision", "step", "IQR", "n", "tokens/s", "memory", "of the limit", "MFU")
        return Table(columns, tuple(self._cells(row) for row in self.rows))

    def _cells(self, row: Row) -> tuple[str, ...]:
        shape = (str(row.batch_size), str(row.seq_len), row.dtype)
        if row.outcome != "ok":
            return (*shape, {"oom": "out of memory"}.get(row.outcome, row.outcome), *["–"] * 6)
        figures, limit = spread(row.block_step_s), floor_s(row, self.ceilings)
        return (
            *shape, seconds(figures.median), seconds(figures.iqr, 2), str(figures.n), number(row.tokens_per_s),
            memory(row.peak_memory_bytes) if row.peak_memory_bytes else "–",
            percent(limit / figures.median if limit else None), percent(mfu(row, self.ceilings)),
        )

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
            f"{best.dtype}: {number(best.tokens_per_s)} tokens/s, {share}; "
            f"{len(good)} of {len(self.rows)} points measured."
        )


def sweep(
    plan: SweepPlan,
    *,
    out: str | Path | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> SweepResult:
    """Measures every point. out: a folder that gets `sweep.csv`, rewritten after each point, and `sweep.json`.

    Random token ids without padding stand for text: the time of a step does not depend on them.
    Raises GpuNotUsable where the device is cuda and cannot be used.
    """
    from kit.sweep.ceilings import measure_ceilings
    from kit.train.run import require_device

    require_device(plan.device)
    ceilings = measure_ceilings(plan.device, plan.dtypes)
    measure = _Bench(plan)
    rows: list[Row] = []
    for row in rows_of(plan, measure):
        rows.append(row)
        _keep(out, plan, ceilings, rows)
        if on_row:
            on_row(row)
    ceilings = higher(ceilings, measure_ceilings(plan.device, plan.dtypes))
    _keep(out, plan, ceilings, rows)
    return SweepResult(plan, ceilings, in_grid_order(rows))


def rows_of(plan: SweepPlan, measure: Measure) -> Iterator[Row]:
    """One row a point. Out of memory and a failed kernel are rows with their reason, not the end."""
    import torch

    for config in plan.configs():
        try:
            yield measure(config)
        except torch.cuda.OutOfMemoryError as error:
            yield row_of(config, "oom", reason=str(error).splitlines()[0])
        except RuntimeError as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield row_of(config, "oom" if "DefaultCPUAllocator" in text else "error", reason=text)


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


class _Bench:
    """The model, built once, and its measured step; everything else is made anew for each point."""

    def __init__(self, plan: SweepPlan) -> None:
        from kit.train.model import build_model

        self._plan = plan
        config = plan.configs()[0]
        self._model = build_model(config)[0].to(plan.device)

    def __call__(self, config: TrainConfig) -> Row:
        import torch

        from kit.train.model import build_optimizer, precision

        is_cuda = config.device == "cuda"
        self._model.zero_grad(set_to_none=True)
        if is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        optimizer = build_optimizer(self._model, config)
        generator = torch.Generator().manual_seed(config.seed)
        shape = (config.batch_size, config.seq_len)
        ids = torch.randint(config.shape.vocab_size, shape, generator=generator).to(config.device)
        with precision(config):
            blocks, steps = self._blocks(optimizer, ids, config)
        peak = torch.cuda.max_memory_allocated() if is_cuda else None
        return row_of(config, "ok", block_step_s=blocks, steps=steps, peak_memory_bytes=peak)

    def _blocks(self, optimizer, ids, config: TrainConfig) -> tuple[tuple[float, ...], int]:
        """Mean step time of each block, and the steps in all. Waits for the device at the ends of blocks only."""
        from kit.train.loop import eager_step, synchronize

        def run(steps: int) -> float:
            start = time.perf_counter()
            for _ in range(steps):
                eager_step(self._model, optimizer, ids, ids, config)
            synchronize(config.device)
            return (time.perf_counter() - start) / steps

        warm_until = time.perf_counter() + WARM_UP_S
        for done in itertools.count(1):
            step_s = run(1)
            if done >= WARM_UP_STEPS and time.perf_counter() >= warm_until:
                break
        steps = max(_LEAST_STEPS, round(self._plan.block_s / step_s))
        return tuple(run(steps) for _ in range(self._plan.blocks)), steps * self._plan.blocks

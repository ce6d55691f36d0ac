"""Measures a grid of shapes with the real training step; a point that does not fit becomes a row."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kit.records import dumps
from kit.show import Table, card, escape
from kit.sweep.table import (
    PEAKS,
    Ceilings,
    Row,
    SweepPlan,
    as_record,
    floor_s,
    higher,
    mfu,
    row_of,
    to_csv,
    words,
)
from kit.train.config import ENGINES, TrainConfig
from kit.units import memory, number, percent, seconds, spread


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
        rows = []
        for row in self.rows:
            shape = (row.engine, row.batch_size, row.seq_len, row.dtype)
            if not (figures := spread(row.block_step_s)):
                short = {"oom": "out of memory", "missing": "not here"}
                rows.append((*shape, short.get(row.outcome, row.outcome), *["–"] * 8))
                continue
            limit, peak = floor_s(row, self.ceilings), row.peak_memory_bytes
            times = (seconds(figures.median), seconds(figures.iqr, 2), figures.n)
            shares = (limit / figures.median if limit else None, *(mfu(row, self.ceilings, of=of) for of in PEAKS))
            memory_ = memory(peak) if peak else "–"
            rows.append((*shape, *times, number(row.tokens_per_s), memory_, seconds(limit), *map(percent, shares)))
        columns = ("engine", "batch", "tokens a sample", "precision", "step", "IQR", "n", "tokens/s", "memory", "floor")
        return Table((*columns, "floor / step", "MFU, measured", "MFU, published"), tuple(rows))

    @property
    def not_here(self) -> str:
        """In words: which engines cannot run on this device and why, and which were not asked for."""
        missing = {row.engine: row.reason for row in self.rows if row.outcome == "missing"}
        others = [engine for engine in ENGINES if engine not in self.plan.engines]
        lines = [f"{engine} cannot run here: {reason}." for engine, reason in missing.items()]
        lines += [f"Not asked for: {', '.join(others)}."] if others else []
        return "\n".join(lines) or f"All {len(ENGINES)} engines ran here."

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
        return (
            f"{self.ceilings.device_name} trains {best.model} at {number(best.tokens_per_s)} tokens/s at best "
            f"({words(best, self.ceilings)}); {len(good)} of {len(self.rows)} points measured."
        )


def sweep(
    plan: SweepPlan,
    *,
    out: str | Path | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> SweepResult:
    """Measures every point. out: a folder that gets `sweep.json` and, to be read by a person, `sweep.csv`, both
    rewritten after each point. on_progress: points done, points in all, seconds left as the mean of those measured
    says. Random token ids without padding stand for text: the time of a step does not depend on them.
    Raises GpuNotUsable where the device is cuda and cannot be used.
    """
    from kit.sweep.ceilings import measure_ceilings
    from kit.sweep.trial import Trial
    from kit.train.train import require_device

    require_device(plan.device)
    configs = plan.configs()
    dtypes = tuple(dict.fromkeys(config.dtype for config in configs))
    ceilings = measure_ceilings(plan.device, dtypes)
    rows: list[Row] = []

    def keep() -> SweepResult:
        """The rows so far, in the order of the grid."""
        ordered = sorted(rows, key=lambda row: (row.engine, row.dtype, row.seq_len, row.batch_size))
        found = SweepResult(plan, ceilings, tuple(ordered))
        write_records(out, {"sweep.csv": to_csv(found.rows, ceilings), "sweep.json": dumps(found)})
        return found

    trial, start = Trial(configs[0]), time.perf_counter()
    for count, row in enumerate(rows_of(plan, lambda config: trial.point(config, plan)), start=1):
        rows.append(row)
        keep()
        if on_row:
            on_row(row)
        if on_progress:
            left_s = (time.perf_counter() - start) / count * (len(configs) - count)
            on_progress(count, len(configs), left_s)
    with contextlib.suppress(RuntimeError):  # a point that broke the device left its row
        ceilings = higher(ceilings, measure_ceilings(plan.device, dtypes, is_whole=False))
    return keep()


def rows_of(plan: SweepPlan, measure: Callable[[TrainConfig], Row]) -> Iterator[Row]:
    """One row a point. Out of memory and whatever else an engine raises are rows with their reason."""
    from kit.train.engines import out_of_memory

    for config in plan.configs():
        try:
            row = measure(config)
        except Exception as error:  # compilers, drivers and libraries raise of their own; Ctrl-C passes
            cause = out_of_memory(error)
            line = (str(cause or error).splitlines() or [""])[0][:300]
            line = line if cause else f"{type(error).__name__}: {line}"
            row = row_of(config, "oom" if cause else "error", reason=line)
            del cause
        # Here the exception is gone, and with it the frames that held the failed point's tensors. A compiler's
        # message names files; whose home they are in is nobody's business.
        yield dataclasses.replace(row, reason=row.reason.replace(str(Path.home()), "~")) if row.reason else row


def write_records(out: str | Path | None, files: Mapping[str, str]) -> None:
    """Texts by name into `out`, made where it is missing; nothing where no folder is named."""
    if out is None:
        return
    Path(out).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (Path(out) / name).write_text(text, encoding="utf-8", newline="\n")

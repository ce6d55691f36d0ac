"""The rows of a sweep: one a point, those that failed too, and the figures that follow from them."""

import csv
import dataclasses
import io
import itertools
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kit.errors import UsageError
from kit.show import Table
from kit.train.config import (
    DEVICES,
    DTYPES,
    ENGINES,
    MODELS,
    TrainConfig,
    adamw_step_bytes,
    least_step_flop,
    parameter,
    refuse_wrong,
    step_flop,
)
from kit.units import UNKNOWN, number, percent, quantity, seconds, shuffled, spread

# Which points a sweep measures, and in which order.


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A grid of shapes with some points beside it, and how long each is measured."""

    batch_sizes: tuple[int, ...] = parameter((1, 4, 16), "samples a step", least=1)
    seq_lens: tuple[int, ...] = parameter((64, 256), "tokens a sample, without padding", least=2)
    dtypes: tuple[str, ...] = parameter(("float32",), "float32 (IEEE), tf32, bfloat16 (autocast)", choices=DTYPES)
    engines: tuple[str, ...] = parameter(
        ("eager",), "what runs the step: trainer, eager, compiled, captured, graphed", choices=ENGINES
    )
    model: str = parameter("gpt2", "gpt2 (124M) or tiny", choices=MODELS)
    device: str = parameter("cuda", "cuda, or cpu (a rehearsal)", choices=DEVICES)
    blocks: int = parameter(5, "timed blocks a point, the n of each median", least=1)
    block_s: float = parameter(0.2, "least seconds of a block", least=1e-9)
    seed: int = parameter(42, "of the order in which points are measured")
    more_points: tuple[tuple[int, int, str], ...] = parameter(
        (), "[samples a step, tokens a sample, precision] each, beside the grid"
    )

    def __post_init__(self) -> None:
        refuse_wrong(self, self._problems())

    def _problems(self) -> Iterator[tuple[str, str]]:
        for name in ("batch_sizes", "seq_lens", "dtypes", "engines"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                yield f"{name}={list(values)}", f"at least one of {name}, each once"
        shapes = self._shapes()
        twice = [list(shape) for shape in dict.fromkeys(shapes) if shapes.count(shape) > 1]
        if twice:
            yield f"more_points: {twice[0]} is measured already", "points that are not in the grid, each once"
        self.configs()

    def _shapes(self) -> list[tuple[int, int, str]]:
        grid = itertools.product(self.batch_sizes, self.seq_lens, self.dtypes)
        return [*grid, *((batch_size, seq_len, dtype) for batch_size, seq_len, dtype in self.more_points)]

    def configs(self) -> tuple[TrainConfig, ...]:
        """One checked TrainConfig a point, in the shuffled order. Raises UsageError for an impossible point."""
        points = itertools.product(self._shapes(), self.engines)
        return tuple(shuffled(itertools.starmap(self._config, points), random.Random(self.seed).random))

    def smallest(self) -> tuple[TrainConfig, ...]:
        """One config for each engine and precision of the plan, all of its smallest shape."""
        shapes = self._shapes()
        batch_size, seq_len, _ = min(shapes, key=lambda shape: (shape[0] * shape[1], shape))
        kinds = dict.fromkeys((dtype, engine) for _, _, dtype in shapes for engine in self.engines)
        return tuple(self._config((batch_size, seq_len, dtype), engine) for dtype, engine in kinds)

    def _config(self, shape: tuple[int, int, str], engine: str) -> TrainConfig:
        return TrainConfig(
            model=self.model, device=self.device, seed=self.seed, batch_size=shape[0], seq_len=shape[1],
            dtype=shape[2], engine=engine,
        )  # fmt: skip


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
        found = [
            (f"matrix product, {dtype}", rate, self.matmul_shape.get(dtype, UNKNOWN), dtype)
            for dtype, rate in self.matmul_flop_per_s.items()
        ]
        if self.attention_flop_per_s:
            how = f"causal, forward and backward, {self.attention_shape}"
            found.append(("attention, bfloat16", self.attention_flop_per_s, how, "bfloat16"))
        rows = [
            (what, quantity(rate, "FLOP/s"), how, quantity(self.datasheet_flop_per_s.get(dtype), "FLOP/s"))
            for what, rate, how, dtype in found
        ]
        copies = [quantity(rate, "B/s") for rate in (self.copy_bytes_per_s, self.datasheet_bytes_per_s)]
        rows.append(("copy on the device", copies[0], "read and written bytes", copies[1]))
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
    def tokens(self) -> int:
        """Positions that one step trains on; the sweep has no padding."""
        return self.batch_size * self.seq_len

    @property
    def step_time_s(self) -> float | None:
        return statistics.median(self.block_step_s) if self.block_step_s else None

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.step_time_s if self.step_time_s else None

    @property
    def flop_per_s(self) -> float | None:
        flop = step_flop(MODELS[self.model], batch_size=self.batch_size, seq_len=self.seq_len)
        return flop / self.step_time_s if self.step_time_s else None


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


def row_of(config: TrainConfig, outcome: str, kind: type[Any] = Row, **figures: Any) -> Any:
    """The row of one point. kind: `Row`, or a record that adds to it."""
    shape = (config.batch_size, config.seq_len, config.dtype, config.model)
    return kind(*shape, outcome, engine=config.engine, **figures)


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


# What a step's arithmetic is set against: the rate that was measured in the same run, and the maker's figure.
PEAKS = {"measured": "matmul_flop_per_s", "datasheet": "datasheet_flop_per_s"}


def mfu(row: Row, ceilings: Ceilings, *, of: str = "measured") -> float | None:
    """Model FLOP utilisation against one of `PEAKS`; None if unknown."""
    peak = getattr(ceilings, PEAKS[of]).get(row.dtype)
    return row.flop_per_s / peak if peak and row.flop_per_s else None


def words(row: Row, ceilings: Ceilings) -> str:
    """One point in words: '4 × 64 by graphed in bfloat16: 3.36 ms, floor 1.50 ms (45 %), MFU 4.8 % of 989 TFLOP/s …'."""
    point = f"{row.batch_size} × {row.seq_len} by {row.engine} in {row.dtype}"
    if not row.step_time_s:
        what = {"oom": "out of memory", "missing": "not here", "error": "failed"}.get(row.outcome, row.outcome)
        return f"{point}: {what}" + (f", {row.reason}" if row.reason and row.outcome != "oom" else "")
    floor = floor_s(row, ceilings)
    limit = f"floor {seconds(floor)} ({percent(floor / row.step_time_s)} of the step)" if floor else "floor unknown"
    shares = []
    for of, name in (("datasheet", "published"), ("measured", "measured")):
        if peak := getattr(ceilings, PEAKS[of]).get(row.dtype):
            shares.append(f"{percent(mfu(row, ceilings, of=of))} of {quantity(peak, 'FLOP/s')} {name}")
    return f"{point}: {seconds(row.step_time_s)}, {limit}, MFU {' and '.join(shares) or 'unknown'}"


def progress_text(done: int, total: int, left_s: float) -> str:
    """'[######......] 3 of 12 points, about 41 s left'."""
    full = 24 * done // total
    left = f"about {seconds(left_s, 2)} left" if done < total else "done"
    return f"[{'#' * full}{'.' * (24 - full)}] {done} of {total} points, {left}"


def as_record(row: Row, ceilings: Ceilings) -> dict[str, object]:
    """The row as a flat record with its derived figures; None stands for unknown."""
    figures = spread(row.block_step_s)
    return {
        **vars(row),
        "step_time_s": row.step_time_s,
        "samples_per_s": row.batch_size / row.step_time_s if row.step_time_s else None,
        "tokens_per_s": row.tokens_per_s,
        "step_time_q1_s": figures.q1 if figures else None,
        "step_time_q3_s": figures.q3 if figures else None,
        "floor_s": floor_s(row, ceilings),
        "mfu_measured": mfu(row, ceilings),
        "mfu_datasheet": mfu(row, ceilings, of="datasheet"),
    }


def to_csv(rows: Iterable[Row], ceilings: Ceilings) -> str:
    """All rows with their derived figures, to be read by a person; `sweep.json` holds the raw ones."""
    return csv_text([as_record(row, ceilings) for row in rows])


def csv_text(records: Sequence[Mapping[str, object]]) -> str:
    """A column for each name of the first; an empty cell is unknown, a tuple stands with spaces between."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(records[0] if records else ())
    for record in records:
        writer.writerow(" ".join(map(repr, value)) if isinstance(value, tuple) else value for value in record.values())
    return text.getvalue()


# Whether the engines compute the same: their first losses beside those of the plain loop in float32.
#
# Only raw losses are kept; what follows from them is computed here, so that a report can be checked without torch.

# Largest difference from the plain loop's loss in float32 over the first ten steps, in nats.
LOSS_LIMITS = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 1e-2}
LOSS_STEPS = 10


@dataclasses.dataclass(frozen=True)
class EngineLosses:
    """The first losses of one engine; None stands for one that was not finite. missing: why it cannot run here."""

    engine: str
    dtype: str
    losses: tuple[float | None, ...] = ()
    missing: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in LOSS_LIMITS:
            raise UsageError(f"losses in {self.dtype!r}", expected=f"one of {', '.join(LOSS_LIMITS)}")


@dataclasses.dataclass(frozen=True)
class SameLosses:
    """All engines at one shape, from the same weights and batches. reference: the plain loop's losses in float32."""

    model: str
    batch_size: int
    seq_len: int
    reference: tuple[float | None, ...]
    engines: tuple[EngineLosses, ...]

    @property
    def compared(self) -> tuple[EngineLosses, ...]:
        return tuple(row for row in self.engines if row.missing is None)

    def difference(self, row: EngineLosses) -> float | None:
        """The largest over the steps that both have, in nats; None where a loss is not finite or there is none."""
        if None in (*row.losses, *self.reference):
            return None
        return max((abs(a - b) for a, b in zip(row.losses, self.reference)), default=None)

    def problem(self, row: EngineLosses) -> str | None:
        """Why its losses are not the same; None where they are."""
        apart, count = self.difference(row), min(len(row.losses), len(self.reference))
        if count < LOSS_STEPS:
            return f"{count} of {LOSS_STEPS} losses"
        if apart is None:
            return "a loss is not finite"
        return f"{number(apart, 2)} nats apart" if not apart <= LOSS_LIMITS[row.dtype] else None

    @property
    def is_same(self) -> bool:
        """Whether every engine that runs here gives the same; False where there is none."""
        return bool(self.compared) and not any(map(self.problem, self.compared))

    @property
    def table(self) -> Table:
        rows = []
        for row in self.engines:
            apart, problem = self.difference(row), self.problem(row)
            same = f"not here: {row.missing}" if row.missing else f"no: {problem}" if problem else "yes"
            limit = "–" if row.missing else f"{LOSS_LIMITS[row.dtype]:.0e}"
            rows.append((row.engine, row.dtype, "–" if apart is None else f"{apart:.1e}", limit, same))
        columns = ("engine", "precision", "largest difference from eager float32", "limit", "the same")
        return Table(columns, tuple(rows))

    @property
    def sentence(self) -> str:
        if not self.is_same:
            return "The engines do not compute the same." if self.compared else "No engine could be compared."
        return (
            f"Over {LOSS_STEPS} steps at {self.batch_size} × {self.seq_len} every engine that runs here gives the "
            f"plain loop's losses in float32; the largest difference is {max(map(self.difference, self.compared)):.1e} "
            "nats."
        )


# The short run that people report, as records: 14 steps with their start, engine by engine.


@dataclasses.dataclass(frozen=True)
class ShortRun:
    """One fresh process. `training_s`: what the Trainer calls its runtime, compiling and capturing included.

    process_s: from the start of the process to its last step. engine_s: until the engine could
    step. bytecode: why Python's compiled modules were kept in the kit's cache, None where it did so itself.
    """

    engine: str
    dtype: str
    is_first: bool
    note: str
    process_s: float
    import_s: float
    data_s: float
    model_s: float
    engine_s: float
    steps_s: float
    training_s: float
    samples: int
    losses: tuple[float | None, ...]
    bytecode: str | None = None


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """All short runs, and whether the engines compute the same. missing: engines that cannot run here, and why."""

    device_name: str
    runs: tuple[ShortRun, ...]
    losses: SameLosses
    missing: dict[str, str]

    @property
    def warm(self) -> tuple[ShortRun, ...]:
        """The second runs, which found the caches filled."""
        return tuple(run for run in self.runs if not run.is_first)

    @property
    def table(self) -> Table:
        parts = ("process_s", "import_s", "model_s", "engine_s", "steps_s", "training_s")
        heads = ("from process start", "imports", "model", "engine", "steps", "training as the Trainer counts it")
        rows = []
        for run in self.runs:
            times = [seconds(getattr(run, part)) for part in parts]
            which, rate = "first" if run.is_first else "second", number(run.samples / run.training_s)
            rows.append((run.engine, run.dtype, which, *times, rate))
        return Table(("engine", "precision", "run", *heads, "samples/s"), tuple(rows))

    @property
    def sentence(self) -> str:
        """The finding in words: the fastest engine against the Trainer, once the caches are filled."""
        base = next((run for run in self.warm if run.engine == "trainer"), None)
        best = min(self.warm, key=lambda run: run.training_s, default=None)
        if best is None:
            return f"No engine could run on {self.device_name}."
        peer = f"; the Trainer takes {seconds(base.training_s)}" if base else ""
        return (
            f"{self.device_name}: {len(best.losses)} steps in {seconds(best.training_s)} by the {best.engine} "
            f"engine in {best.dtype}, start included{peer}."
        )

    def __str__(self) -> str:
        missing = [f"not here: {name}, {reason}" for name, reason in self.missing.items()]
        return "\n\n".join([self.sentence, str(self.table), str(self.losses.table), *missing])

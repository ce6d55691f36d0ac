"""Whether the engines compute the same: their first losses beside those of the plain loop in float32.

Only raw losses are kept; what follows from them is computed here, so that a report can be checked without torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from kit.errors import UsageError
from kit.records import Check, Outcome
from kit.show import Table
from kit.units import number

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
        if not row.losses or not all(map(_is_finite, (*row.losses, *self.reference))):
            return None
        return max((abs(a - b) for a, b in zip(row.losses, self.reference)), default=None)

    def problem(self, row: EngineLosses) -> str | None:
        """Why its losses are not the same; None where they are."""
        apart = self.difference(row)
        if len(row.losses) < LOSS_STEPS or len(self.reference) < LOSS_STEPS:
            return f"{min(len(row.losses), len(self.reference))} of {LOSS_STEPS} losses"
        if apart is None:
            return "a loss is not finite"
        return f"{number(apart, 2)} nats apart" if not apart <= LOSS_LIMITS[row.dtype] else None

    @property
    def is_same(self) -> bool:
        """Whether every engine that runs here gives the same; False where there is none."""
        return bool(self.compared) and not any(map(self.problem, self.compared))

    @property
    def table(self) -> Table:
        columns = ("engine", "precision", "largest difference from eager float32", "limit", "the same")
        return Table(columns, tuple(self._cells(row) for row in self.engines))

    def _cells(self, row: EngineLosses) -> tuple[str, ...]:
        if row.missing:
            return row.engine, row.dtype, "–", "–", f"not here: {row.missing}"
        apart, problem = self.difference(row), self.problem(row)
        return (
            row.engine,
            row.dtype,
            "–" if apart is None else f"{apart:.1e}",
            f"{LOSS_LIMITS[row.dtype]:.0e}",
            f"no: {problem}" if problem else "yes",
        )

    @property
    def sentence(self) -> str:
        apart = [found for row in self.compared if (found := self.difference(row)) is not None]
        if not self.is_same:
            return "The engines do not compute the same." if self.compared else "No engine could be compared."
        return (
            f"Over {LOSS_STEPS} steps at {self.batch_size} × {self.seq_len} every engine that runs here gives the "
            f"plain loop's losses in float32; the largest difference is {max(apart):.1e} nats."
        )


def _is_finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


def losses_check(records: Iterable[SameLosses], measured: Iterable[tuple[str, str]], *, is_cuda: bool) -> Check:
    """measured: engines with their precision that the report has a figure of; each must have been compared."""
    records = tuple(records)
    compared = [(record, row) for record in records for row in record.compared]
    red = [f"{row.engine} in {row.dtype}: {problem}" for record, row in compared if (problem := record.problem(row))]
    known = {(row.engine, row.dtype) for _, row in compared}
    left_out = [pair for pair in dict.fromkeys(measured) if pair not in known]
    unknown = [f"{engine} in {dtype} was not compared" for engine, dtype in left_out]
    good = Outcome.PASS if is_cuda else Outcome.REHEARSAL
    outcome = Outcome.FAIL if red else Outcome.INCONCLUSIVE if unknown or not known else good
    found = "; ".join(red or unknown) or f"{len(known)} engines and precisions compared over {LOSS_STEPS} steps"
    limits = ", ".join(f"{dtype} {limit:g}" for dtype, limit in LOSS_LIMITS.items())
    return Check(
        "throughput.same_losses",
        outcome,
        found,
        f"the plain loop's losses in float32, within nats: {limits}",
        "" if outcome is good else "use none of this engine's figures, and report what it is",
    )

"""The short run that people report, as records: 14 steps with their start, engine by engine."""

from __future__ import annotations

import dataclasses

from kit.show import Table
from kit.sweep.losses import SameLosses
from kit.units import number, seconds


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

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.training_s


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
        columns = (
            "engine",
            "precision",
            "run",
            "from process start",
            "imports",
            "model",
            "engine",
            "steps",
            "training as the Trainer counts it",
            "samples/s",
        )
        return Table(
            columns,
            tuple(
                (
                    run.engine,
                    run.dtype,
                    "first" if run.is_first else "second",
                    seconds(run.process_s),
                    seconds(run.import_s),
                    seconds(run.model_s),
                    seconds(run.engine_s),
                    seconds(run.steps_s),
                    seconds(run.training_s),
                    number(run.samples_per_s),
                )
                for run in self.runs
            ),
        )

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

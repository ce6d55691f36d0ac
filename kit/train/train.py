"""One training run and its verdict: what `kit train` and the notebook show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from kit.records import Verdict
from kit.show import Table, card, escape
from kit.train.config import TrainConfig
from kit.train.judge_training import judge_training
from kit.train.measure import measure
from kit.train.steps import StepRecord, TelemetrySample, Throughput, TrainingRun, throughput
from kit.units import memory, number, seconds


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """A run with its steps, its telemetry and what they say."""

    run: TrainingRun
    steps: tuple[StepRecord, ...]
    samples: tuple[TelemetrySample, ...]
    verdict: Verdict

    @property
    def throughput(self) -> Throughput | None:
        return throughput(self.steps)

    @property
    def sentence(self) -> str:
        """The finding in words."""
        figures, config = self.throughput, self.run.config
        rate = f", {number(figures.steady_samples_per_s, 2)} samples/s once warm" if figures.steady else ""
        return (
            f"{self.verdict.outcome}: {config.model} trained {figures.steps} steps of {config.batch_size} × "
            f"{config.seq_len} in {config.dtype} on {self.run.device_name} in {seconds(figures.total_s)}{rate}; "
            f"loss {number(self.steps[0].loss, 4)} → {number(self.steps[-1].loss, 4)} ({self.run.weights_note})."
        )

    @property
    def table(self) -> Table:
        """The run in numbers, each with its definition."""
        figures = self.throughput
        steady = figures.steady
        rows = [
            ("first step", seconds(figures.first_step_s), "cold, synchronised"),
            (
                "steady step",
                seconds(steady.median) if steady else "–",
                f"median of n = {steady.n}, IQR {seconds(steady.iqr, 2)}" if steady else "too few steps",
            ),
            ("samples/s, steady", number(figures.steady_samples_per_s, 2), "counted samples over the same steps"),
            ("tokens/s, steady", number(figures.steady_tokens_per_s, 2), "without padding"),
            (
                "samples/s, all steps",
                number(figures.total_samples_per_s, 2),
                f"{figures.samples} samples, cold start included",
            ),
            ("peak memory", memory(figures.peak_memory_bytes), "allocated by torch"),
        ]
        return Table(("figure", "value", "definition"), tuple(rows))

    def __str__(self) -> str:
        return f"{self.sentence}\n\n{self.table}\n\n{self.verdict}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return card(escape(self.sentence), self.table._repr_html_(), self.verdict.outcome) + self.verdict._repr_html_()


def train(
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> TrainingResult:
    """Trains as `config` says, in this process alone, and judges the run. See `measure`."""
    found = measure(config, out=out, on_step=on_step)
    checks = judge_training(found.run, found.steps, found.samples)
    return TrainingResult(found.run, found.steps, found.samples, Verdict.of(checks))

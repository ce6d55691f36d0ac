"""The two things that several GPUs are asked for: one proof for all ranks, and how the speed grows.

Both start torchrun (see `kit.extras.scale.launch`) and read what the ranks wrote. Where somebody else
started the ranks, `conclude_here` judges in rank 0 what all of them saw.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from kit.errors import TrainingFailed, UsageError
from kit.extras.scale.judge_ranks import judge_ranks
from kit.extras.scale.launch import HANG_S, Request, launch
from kit.extras.scale.ranks import (
    COMPLETE,
    FAILED,
    AllReduce,
    Rank,
    RankRecord,
    RanksRun,
    ScalePlan,
    ScaleRow,
    Scaling,
    all_reduce_table,
    folder_name,
    global_losses,
    in_order,
    to_csv,
)
from kit.records import Verdict, dumps, from_json, loads
from kit.show import Table, card, escape
from kit.sweep.sweep import write_records
from kit.train.config import TrainConfig
from kit.train.steps import STEADY_FROM, StepRecord, TelemetrySample, TrainingRun
from kit.units import memory, number, seconds, spread


@dataclasses.dataclass(frozen=True)
class RanksResult:
    """What several ranks showed: the run, the ranks by number, and the verdict on all of it."""

    run: RanksRun
    ranks: Mapping[int, Rank]
    verdict: Verdict

    @property
    def table(self) -> Table:
        """One row a rank: its device and its figures."""
        return Table(
            ("rank", "node", "device", "UUID", "steps", "steady step", "peak memory", "last loss"),
            tuple(self._cells(number_, rank) for number_, rank in sorted(self.ranks.items())),
        )

    def _cells(self, number_: int, rank: Rank) -> tuple[str, ...]:
        record = rank.record
        steady = spread([step.step_time_s for step in rank.steps if step.step >= STEADY_FROM])
        peaks = [step.memory_peak_bytes for step in rank.steps if step.memory_peak_bytes]
        return (
            str(number_),
            str(record.node) if record else "–",
            (record.device_name or record.device) if record else "no record",
            (record.device_uuid or "–")[:13] if record else "–",
            str(len(rank.steps)),
            seconds(steady.median) if steady else "–",
            memory(max(peaks)) if peaks else "–",
            number(rank.steps[-1].loss, 4) if rank.steps else "–",
        )

    @property
    def sentence(self) -> str:
        """The finding in words."""
        losses = global_losses([self.ranks[rank] for rank in sorted(self.ranks)])
        config, run = self.run.config, self.run
        if run.state != COMPLETE or not losses:
            return f"{self.verdict.outcome}: {run.world_size} ranks did not train to the end: {run.reason}"
        return (
            f"{self.verdict.outcome}: {config.model} trained {len(losses)} steps of {run.world_size} × {config.batch_size} × "
            f"{config.seq_len} in {config.dtype} by {run.parallel.upper()} on {run.world_size} ranks "
            f"({self.ranks[0].run.device_name}); loss {number(losses[0], 4)} → {number(losses[-1], 4)}."
        )

    def __str__(self) -> str:
        return f"{self.sentence}\n\n{self.table}\n\n{self.verdict}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return card(escape(self.sentence), self.table._repr_html_(), self.verdict.outcome) + self.verdict._repr_html_()


def train_ranks(
    config: TrainConfig,
    gpus: int,
    *,
    parallel: str = "ddp",
    out: str | Path | None = None,
    on_progress: Callable[[dict[int, int]], None] | None = None,
    hang_s: float = HANG_S,
) -> RanksResult:
    """Trains on `gpus` ranks of this machine and judges them. config: its batch is that of one rank.

    out: a folder that gets `ranks.json` and one `rank-<n>/` each. on_progress: finished steps by rank.
    A rank that fails or hangs (`hang_s` without a step) is a verdict that names it, not an exception.
    Raises UsageError where `gpus` is below 1 or the data cannot fill such batches.
    """
    if gpus < 1:
        raise UsageError(f"gpus={gpus}", expected="at least one", todo="correct the number")
    with _folder(out) as folder:
        reason = launch(
            Request(os.getpid(), "train", str(folder), parallel, hang_s, config), gpus, on_progress=on_progress
        )
        run = RanksRun(gpus, parallel, config, FAILED if reason else COMPLETE, reason)
        (folder / "ranks.json").write_text(dumps(run), encoding="utf-8", newline="\n")
        return _judged(run, {rank: read_rank(folder / folder_name(rank)) for rank in range(gpus)})


def _judged(run: RanksRun, ranks: Mapping[int, Rank | None]) -> RanksResult:
    left = {rank: found for rank, found in ranks.items() if found is not None}
    return RanksResult(run, left, Verdict.of(judge_ranks(run, left)))


def conclude_here(group, rank: Rank, config: TrainConfig, parallel: str, out: Path | None) -> RanksResult | None:
    """The verdict on all ranks in rank 0, None in the others; for ranks that somebody else started. out: a folder
    that gets `ranks.json`, beside what this node's ranks wrote there."""
    everything = group.all_of(dumps(rank, indent=None))
    if not group.is_first:
        return None
    ranks = {number_: from_json(Rank, loads(text)) for number_, text in enumerate(everything)}
    run = RanksRun(group.record.world_size, parallel, config, COMPLETE)
    if out:
        (out / "ranks.json").write_text(dumps(run), encoding="utf-8", newline="\n")
    return _judged(run, ranks)


def read_rank(folder: Path) -> Rank | None:
    """What one rank left in its folder; None where there is no such folder."""
    if not folder.is_dir():
        return None

    def one(name: str, kind):
        path = folder / name
        return from_json(kind, loads(path.read_bytes())) if path.is_file() else None

    def lines(name: str, kind):
        path = folder / name
        text = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return tuple(from_json(kind, loads(line)) for line in text)

    return Rank(
        one("rank.json", RankRecord),
        one("training.json", TrainingRun),
        lines("steps.jsonl", StepRecord),
        lines("telemetry.jsonl", TelemetrySample),
    )


# --- scaling ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ScalingResult:
    """A scaling sweep: its rows, and the exchange alone over sizes on the most GPUs."""

    scaling: Scaling
    all_reduce: tuple[AllReduce, ...]

    def __str__(self) -> str:
        return f"{self.scaling}\n\n{self.all_reduce_table}" if self.all_reduce else str(self.scaling)

    @property
    def all_reduce_table(self) -> Table:
        return all_reduce_table(self.all_reduce)


def scale(
    plan: ScalePlan,
    *,
    out: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    hang_s: float = HANG_S,
) -> ScalingResult:
    """Measures the plan, each number of GPUs in processes of its own. on_progress: the number of GPUs that is
    measured now, and how many such numbers there are.

    out: a folder that gets `scaling.csv`, rewritten after each number, and `scaling.json`. A number of GPUs that
    fails is a row with its reason. Raises TrainingFailed where one GPU alone fails: then nothing can be compared.
    """
    rows: list[ScaleRow] = []
    name, sums = "", ()
    for index, count in enumerate(plan.gpus, start=1):
        if on_progress:
            on_progress(index, len(plan.gpus))
        with _folder(None) as folder:
            request = Request(
                os.getpid(),
                "measure",
                str(folder),
                plan.parallel,
                hang_s,
                plan.config,
                plan.modes,
                plan.blocks,
                plan.block_s,
            )
            reason = launch(request, count)
            path = folder / "scale.json"
            found = loads(path.read_bytes()) if path.is_file() and not reason else None
        if found is None:
            if count == 1:
                raise TrainingFailed(
                    f"one GPU alone: {reason}",
                    expected="a measured step to compare others with",
                    todo="python -m kit train shows the error in full",
                )
            rows += [_failed(plan, mode, config, count, reason or "no record") for mode, config in plan.points(count)]
        else:
            name, sums = found["device_name"], from_json(tuple[AllReduce, ...], found["all_reduce"])
            rows += [from_json(ScaleRow, row) for row in found["rows"]]
        if why := plan.undivided(count):
            rows.append(_failed(plan, "strong", plan.config, count, why))
        result = ScalingResult(Scaling(name, in_order(rows)), sums)
        _keep(out, plan, result)
    return result


def _failed(plan: ScalePlan, mode: str, config: TrainConfig, count: int, reason: str) -> ScaleRow:
    outcome = "oom" if "does not fit" in reason or "out of memory" in reason.lower() else "error"
    return ScaleRow(
        mode,
        count,
        config.batch_size,
        config.seq_len,
        config.dtype,
        config.model,
        plan.parallel,
        outcome,
        reason=reason,
    )


def _keep(out: str | Path | None, plan: ScalePlan, result: ScalingResult) -> None:
    found = result.scaling
    record = {"plan": plan, "device_name": found.device_name, "rows": found.rows, "all_reduce": result.all_reduce}
    write_records(out, {"scaling.csv": to_csv(found), "scaling.json": dumps(record)})


class _folder:
    """The named folder, made where it is missing, or one that is gone afterwards."""

    def __init__(self, out: str | Path | None) -> None:
        self._out = Path(out) if out else None
        self._own = None if out else tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

    def __enter__(self) -> Path:
        if self._own:
            return Path(self._own.name)
        try:
            self._out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self._out} cannot be written: {error.strerror}",
                expected="a folder you may write to",
                todo="name another folder with --out",
            ) from error
        return self._out

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._own.cleanup()

"""The two things that several GPUs are asked for: one proof for all ranks, and how the speed grows.

Both start torchrun, watch over the ranks and read what they wrote: no launcher of our own, and no rank left behind.
What a rank recorded stays, whatever happens to the others; a failure names the rank. Where somebody else
started the ranks, `conclude_here` judges in rank 0 what all of them saw.
"""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from kit.errors import TrainingFailed, UsageError
from kit.extras.scale.judge_ranks import judge_ranks, rank_of
from kit.extras.scale.ranks import (
    COMPLETE,
    FAILED,
    HANG_S,
    MODES,
    STACK,
    AllReduce,
    Rank,
    RanksRun,
    ScalePlan,
    ScaleRow,
    Scaling,
    folder_name,
    global_losses,
    hang,
)
from kit.process import child_environment
from kit.records import Verdict, dumps, from_json, loads
from kit.show import Table, card, escape
from kit.sweep.sweep import write_records
from kit.sweep.table import csv_text, row_of
from kit.train.config import TrainConfig
from kit.train.steps import throughput
from kit.units import memory, number, quantity, seconds, spread

# How long torchrun gets to end its ranks before they are ended for it.
_GRACE_S = 15.0
_POLL_S = 0.2
# torchrun's summary: each rank that failed, and last the one that it takes for the first.
_FAILURE = re.compile(r"rank\s*:\s*(\d+) \(local_rank.*?exitcode\s*:\s*(-?\d+)", re.S)


def launch(
    plan: ScalePlan,
    world_size: int,
    out: Path,
    *,
    is_training: bool,
    hang_s: float,
    on_progress: Callable[[dict[int, int]], None] | None = None,
) -> str | None:
    """Runs `plan` on world_size ranks of this machine: a training with its config, or all of its points. Returns why it
    failed, None where all ranks ended well.

    What the ranks printed stays in `torchrun.txt` of `out` where they failed. on_progress: called with the
    finished steps by rank, about five times a second. Ctrl-C ends all ranks and is raised again.
    """
    out.mkdir(parents=True, exist_ok=True)
    asked, log, hung = out / "request.json", out / "torchrun.txt", None
    request = {"plan": plan, "is_training": is_training, "hang_s": hang_s}
    asked.write_text(dumps(request), encoding="utf-8", newline="\n")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    command = [sys.executable, "-m", *torchrun, "-m", "kit.extras.scale.worker", str(asked)]
    # What torchrun would choose with a warning: each rank of a rehearsal computes with one core, however many run.
    environment = child_environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS") or "1")

    def left(name: str) -> dict[int, str]:
        """What each rank wrote so far into its file of this name."""
        found = dict.fromkeys(range(world_size), "")
        for rank in found:
            with contextlib.suppress(OSError):
                found[rank] = (out / folder_name(rank) / name).read_text(encoding="utf-8", errors="replace")
        return found

    def steps() -> dict[int, int]:
        return {rank: text.count("\n") for rank, text in left("steps.jsonl").items()}

    with log.open("wb") as file:
        # A session of its own, so that all of it can be ended at once, and Ctrl-C reaches this process alone. Nothing is
        # written to the pipe: it closes when this process ends, however that happens, and then the ranks end as well.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None and hung is None:
                if on_progress:
                    on_progress(steps())
                if any(left(STACK).values()):
                    # The others notice within the same second or two.
                    time.sleep(3.0)
                    hung = hang(left(STACK), steps())
                time.sleep(_POLL_S)
        finally:
            _end(process)
            asked.unlink(missing_ok=True)
    if hung or process.returncode:
        return hung or _why(process.returncode, log.read_text(encoding="utf-8", errors="replace"))
    log.unlink()
    return None


def _end(process) -> None:
    """torchrun ends its ranks when it is told to end; what does not listen is killed. A rank whose parent is gone
    ends by itself."""
    process.stdin.close()
    process.terminate()
    try:
        process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


def _why(exit_code: int, log: str) -> str:
    """The first rank that failed, its own words where it had any, or the signal that ended it."""
    own = [line.removeprefix("kit: ") for line in log.splitlines() if line.startswith("kit: ")]
    failures = [(int(rank), int(code)) for rank, code in _FAILURE.findall(log)]
    if not failures:
        last = (log.strip().splitlines() or ["no message"])[-1]
        return own[0] if own else f"torchrun ended with {exit_code}: {last[:200]}"
    # A rank that a signal ended breaks the others' exchange, and they may seem to fail first; torchrun itself ends
    # with SIGTERM those that are left.
    killed = [failure for failure in failures if failure[1] < 0 and failure[1] != -signal.SIGTERM]
    rank, code = (killed or failures)[-1]
    if code < 0:
        names = {member.value: member.name for member in signal.Signals}
        return f"rank {rank} was ended by {names.get(-code, f'signal {-code}')}"
    return f"rank {rank} ended with exit code {code}" + (f": {own[0]}" if own else "")


# One proof for all ranks.


@dataclasses.dataclass(frozen=True)
class RanksResult:
    """What several ranks showed: the run, the ranks by number, and the verdict on all of it."""

    run: RanksRun
    ranks: Mapping[int, Rank]
    verdict: Verdict

    @property
    def table(self) -> Table:
        """One row a rank: its device and its figures."""
        rows = []
        for rank, left in sorted(self.ranks.items()):
            record, ran = left.record, throughput(left.steps)
            place = (
                (record.node, record.device_name or record.device, (record.device_uuid or "–")[:13])
                if record
                else ("–", "no record", "–")
            )
            steady_s = ran.steady.median if ran and ran.steady else None
            memory_bytes, loss = (ran.peak_memory_bytes, left.steps[-1].loss) if ran else (None, None)
            rows.append((rank, *place, len(left.steps), seconds(steady_s), memory(memory_bytes), number(loss, 4)))
        columns = ("rank", "node", "device", "UUID", "steps", "steady step", "peak memory", "last loss")
        return Table(columns, tuple(rows))

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
    Raises UsageError where `gpus` is below 1 or the engine is not the one that exchanges gradients.
    """
    if gpus < 1:
        raise UsageError(f"gpus={gpus}", expected="at least one", todo="correct the number")
    plan = ScalePlan((1,), config, parallel=parallel)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        folder = Path(out or own)
        reason = launch(plan, gpus, folder, is_training=True, hang_s=hang_s, on_progress=on_progress)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("rank-*/*")}
        ranks = {rank: left for rank in range(gpus) if (left := rank_of(files, rank))}
        return _judged(RanksRun(gpus, parallel, config, FAILED if reason else COMPLETE, reason), ranks, folder)


def _judged(run: RanksRun, ranks: Mapping[int, Rank], out: Path | None) -> RanksResult:
    if out:
        (out / "ranks.json").write_text(dumps(run), encoding="utf-8", newline="\n")
    return RanksResult(run, ranks, Verdict.of(judge_ranks(run, ranks)))


def conclude_here(group, rank: Rank, config: TrainConfig, parallel: str, out: Path | None) -> RanksResult | None:
    """The verdict on all ranks in rank 0, None in the others; for ranks that somebody else started. out: a folder
    that gets `ranks.json`, beside what this node's ranks wrote there."""
    everything = group.all_of(dumps(rank, indent=None))
    if group.record.rank:
        return None
    ranks = {number_: from_json(Rank, loads(text)) for number_, text in enumerate(everything)}
    return _judged(RanksRun(len(ranks), parallel, config, COMPLETE), ranks, out)


# How the speed grows.


@dataclasses.dataclass(frozen=True)
class ScalingResult:
    """A scaling sweep: its rows, and the exchange alone over sizes on the most GPUs."""

    scaling: Scaling
    all_reduce: tuple[AllReduce, ...]

    def __str__(self) -> str:
        return f"{self.scaling}\n\n{self.all_reduce_table}" if self.all_reduce else str(self.scaling)

    @property
    def all_reduce_table(self) -> Table:
        """Each size with its bandwidths: size / time, and that of the bus (see `AllReduce.bus_bytes`)."""
        rows = []
        for row in self.all_reduce:
            times = spread(row.times_s)
            rates = (quantity(size / times.median, "B/s") for size in (row.size_bytes, row.bus_bytes))
            figures = (seconds(times.median), seconds(times.iqr, 2), times.n, *rates)
            rows.append((memory(row.size_bytes), row.world_size, row.dtype, *figures))
        columns = ("size", "ranks", "dtype", "time", "IQR", "n", "algorithm bandwidth", "bus bandwidth")
        return Table(columns, tuple(rows))


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
    rows, name, sums = [], "", ()
    for index, count in enumerate(plan.gpus, start=1):
        if on_progress:
            on_progress(index, len(plan.gpus))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            reason = launch(plan, count, Path(folder), is_training=False, hang_s=hang_s)
            found = None if reason else loads((Path(folder) / "scale.json").read_bytes())
        points, lost = plan.points(count), []
        if count > 1 and len(points) < len(plan.modes):
            lost = [("strong", plan.config, f"{plan.config.batch_size} samples cannot be divided among {count} GPUs")]
        if found:
            name, sums = found["device_name"], from_json(tuple[AllReduce, ...], found["all_reduce"])
            rows += from_json(tuple[ScaleRow, ...], found["rows"])
        elif count == 1:
            raise TrainingFailed(
                f"one GPU alone: {reason}",
                expected="a measured step to compare others with",
                todo="python -m kit train shows the error in full",
            )
        else:
            lost += [(mode, config, reason) for mode, config in points]
        for mode, config, why in lost:
            is_memory = "does not fit" in why or "out of memory" in why.lower()
            figures = {"mode": mode, "world_size": count, "parallel": plan.parallel, "reason": why}
            rows.append(row_of(config, "oom" if is_memory else "error", ScaleRow, **figures))
        rows.sort(key=lambda row: (MODES.index(row.mode), row.world_size))
        result = ScalingResult(Scaling(name, tuple(rows)), sums)
        _keep(out, plan, result)
    return result


def _keep(out: str | Path | None, plan: ScalePlan, result: ScalingResult) -> None:
    """The raw rows, and all of them with their derived figures, to be read by a person."""
    records = []
    for row in result.scaling.rows:
        efficiency = result.scaling.efficiency(row)
        derived = {name: getattr(row, name) for name in ("step_time_s", "tokens_per_s", "exposed_s")}
        records.append({**vars(row), **derived, "efficiency": efficiency.median if efficiency else None})
    record = {"plan": plan, **vars(result.scaling), "all_reduce": result.all_reduce}
    write_records(out, {"scaling.csv": csv_text(records), "scaling.json": dumps(record)})

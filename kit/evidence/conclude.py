"""From the raw files of a bundle to what its report says, by arithmetic and the judges alone.

`kit report` writes the result as evidence.json; `kit verify` computes it again and compares.
Nothing of the report's own words or numbers is read here, only facts/ and raw/.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kit.evidence.contents import COMPLETE, SCHEMA_VERSION, Evidence, Number, Promise, Raw, parsed, read, utc
from kit.evidence.manifest import Entry, root
from kit.gpu.judge_machine import MACHINE, Expectation, judge, still_there
from kit.records import CLAIMS, Check, Outcome, Verdict, loads, worst
from kit.rules import Answer, Rules, say
from kit.sweep.table import LOSS_LIMITS, LOSS_STEPS, Ceilings, Row, floor_s, mfu, to_csv, words
from kit.train.config import MODELS
from kit.train.judge_training import TRAINING, in_window, judge_training
from kit.train.steps import STEADY_FROM, ControlRecord, Throughput, TrainingRun, throughput
from kit.units import memory, number, percent, spread

# What a bundle may hold beyond the core's files: by the file that shows it, who judges it and who counts it.
PARTS = {
    "raw/ranks.json": ("kit.extras.scale.judge_ranks:rank_checks", None),
    "raw/scaling.json": (None, "kit.extras.scale.judge_ranks:scaling_numbers"),
}
PROMISES = (
    "CUDA starts on this machine, and a real kernel ran on the GPU",
    "It is the GPU that was asked for: the driver and PyTorch, asked separately, name the same card",
    "The GPU did the training: every parameter, gradient, optimizer state and batch was on it, and so were the products",
    "The driver saw it: GPU memory was in use while the steps ran",
    "The evidence is complete, and others can check it",
    "A silent fallback to the CPU would have been caught: a run that lied was judged by the same rules and failed",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What is judged here: the files of one run, parsed, and their bytes."""

    raw: Raw
    files: Mapping[str, bytes]

    @functools.cached_property
    def numbers(self) -> tuple[Number, ...]:
        return (*numbers(self.raw), *_parts(self.files, 1))


def conclude(files: Mapping[str, bytes]) -> Evidence:
    """The whole evidence of the files of a bundle, by their paths. Raises BundleInvalid where one cannot be read."""
    case = Run(read(files), files)
    raw, run = case.raw, case.raw.run
    environment = judge(raw.begin, run.expectation) if raw.begin else None
    checks = (
        *((*environment.checks, still_there(raw.begin, raw.end)) if environment and raw.begin else ()),
        *(judge_training(raw.training, raw.steps, raw.telemetry) if raw.training else ()),
        *_parts(files, 0),
        *CONTROL.checks(raw.control),
        *RUN.checks(case),
    )
    verdict = Verdict.of(checks, environment.diagnosis if environment else None)
    return Evidence(
        schema_version=SCHEMA_VERSION,
        run_id=run.run_id,
        nonce=run.nonce,
        reviewer_nonce=run.reviewer_nonce,
        kit_version=run.kit_version,
        code=run.code,
        device=run.device,
        state=run.state,
        started_utc=run.started_utc,
        ended_utc=run.ended_utc,
        system=dict(_system(raw)),
        verdict=verdict,
        claims={claim: str(verdict.claim(claim)) for claim in CLAIMS},
        promises=tuple(_promises(verdict)),
        numbers=case.numbers,
        notebooks=run.notebooks,
        headline=_headline(case, verdict),
        limits=tuple(_limits(raw)),
    )


def _parts(files: Mapping[str, bytes], which: int) -> Iterator:
    """What the wings of the house make of their files. They are imported only where such a file is there."""
    for name, doors in PARTS.items():
        door = doors[which]
        if name in files and door is not None:
            module, _, function = door.partition(":")
            yield from getattr(importlib.import_module(module), function)(files)


# The negative control: a child process with every GPU hidden (see `kit.train.control`) trains a toy model on the CPU,
# and its records say `device=cuda`, as a script with a silent fallback would. The judges that pass the real run have
# to fail this one. Where they do not, the detector is broken and no other PASS of the report means anything.
CONTROL = Rules("control")
# The checks that have to turn red, each by itself, for the control to count.
MUST_FAIL = ("native.placement", "native.kernels")


def judge_environment(record: ControlRecord) -> Verdict:
    return judge(record.facts, Expectation(device="cuda"))


def judge_control(record: ControlRecord) -> Verdict:
    """The same judges as for the real run."""
    environment = judge_environment(record)
    return Verdict.of((*environment.checks, *judge_training(record.run, record.steps, ())), environment.diagnosis)


@CONTROL.rule(
    "integrity.negative_control",
    "a training that claims cuda and runs on the CPU with the GPU hidden comes out FAIL",
    todo="the detector is broken on this machine: do not trust this report",
    settle="python -m kit report, whose smoke notebook runs it",
    promise=6,
)
def negative_control(record: ControlRecord | None) -> Answer:
    if record is None:
        return say(None, "not run")
    verdict, environment = judge_control(record), judge_environment(record)
    by_id = {check.id: check for check in verdict.checks}
    outcomes = {id: by_id[id].outcome if id in by_id else None for id in MUST_FAIL}
    is_red = environment.outcome is Outcome.FAIL and set(outcomes.values()) == {Outcome.FAIL}
    # The mask hid every GPU: torch counted none in the child, after it trained.
    is_red = is_red and record.visible_devices == 0
    # For the right reason: it was asked for the GPU, did work, and the work was seen on the CPU.
    is_red = is_red and record.run.config.device == "cuda" and bool(record.steps)
    is_red = is_red and bool(by_id["native.kernels"].values.get("cpu_products"))
    found = f"{verdict.outcome} ({verdict.diagnosis}); environment {environment.outcome}, "
    found += ", ".join(f"{id} {outcome}" for id, outcome in outcomes.items())
    return say(is_red, found, {"seconds": record.seconds}, **({} if is_red else {"outcome": Outcome.INVALID}))


def control_check(record: ControlRecord | None) -> Check:
    return CONTROL.checks(record)[0]


# The run as a whole: that its parts are there, belong together and obey physics.
RUN = Rules("run", rehearses=lambda case: case.raw.run.device == "cpu")


@RUN.rule("environment.facts", "a look at the machine before anything ran", settle="python -m kit report", promise=1)
def facts(case: Run) -> Answer | None:
    return say(None, "the machine was not looked at") if case.raw.begin is None else None


@RUN.rule("learning.ran", "a training run", settle="see the first red check", promise=3)
def trained(case: Run) -> Answer | None:
    return None if case.raw.training else say(None, case.raw.run.reason or "no training was recorded")


@RUN.rule(
    "native.device", "the device that was asked for, on a card that the check saw",
    todo="the run used another device than the one that was checked", is_gpu_claim=True, promise=2,
)  # fmt: skip
def same_device(case: Run) -> Answer | None:
    """The run was on the device, and with the torch, that the environment was judged for."""
    raw, training = case.raw, case.raw.training
    if training is None:
        return None
    config, name = training.config, training.device_name
    seen = raw.begin.torch if raw.begin else None
    is_known = config.device == "cpu" or name in [gpu.name for gpu in (seen.gpus if seen else ())]
    if config.device != raw.run.device or not is_known:
        return say(False, f"{config.device}: {name}")
    if config.device == "cuda" and not _is_telemetry_of(raw, training):
        return say(False, f"{config.device}: {name}, with telemetry of a card that the check did not see")
    checked, used = seen.version if seen else None, training.versions.get("torch")
    if checked and used and checked != used:
        return say(False, f"{config.device}: {name}, trained with torch {used} where torch {checked} was checked")
    return say(True, f"{config.device}: {name}")


def _is_telemetry_of(raw: Raw, training: TrainingRun) -> bool:
    """Whether the readings are of a card that the check saw. A MIG slice has a UUID of its own, which NVML lists
    nowhere; and where one side told none, nothing contradicts."""
    told = training.telemetry.device_uuid if training.telemetry else None
    sides = (raw.begin.torch, raw.begin.driver) if raw.begin else ()
    known = {gpu.uuid.lower() for side in sides if side for gpu in side.gpus if gpu.uuid}
    return told is None or not known or "MIG" in training.device_name.split() or told.lower() in known


@RUN.rule(
    "throughput.same_losses",
    "the plain loop's losses in float32, within nats: "
    + ", ".join(f"{dtype} {limit:g}" for dtype, limit in LOSS_LIMITS.items()),
    todo="use none of this engine's figures, and report what it is",
    settle="python -m kit report, whose throughput notebook compares them",
    is_gpu_claim=True,
)
def same_losses(case: Run) -> Answer | None:
    """Each engine that has a figure computes what the plain loop computes."""
    bench, raw = case.raw.bench, case.raw
    records = [record for record in (raw.losses, bench.losses if bench else None) if record]
    measured = [(row.engine, row.dtype) for row in raw.rows if row.outcome == "ok"]
    measured += [(run.engine, run.dtype) for run in bench.runs] if bench else []
    if not records and not measured:
        return None
    compared = [(record, row) for record in records for row in record.compared]
    red = [f"{row.engine} in {row.dtype}: {problem}" for record, row in compared if (problem := record.problem(row))]
    known = {(row.engine, row.dtype) for _, row in compared}
    unknown = [
        f"{name} in {dtype} was not compared" for name, dtype in dict.fromkeys(measured) if (name, dtype) not in known
    ]
    is_good = False if red else None if unknown or not known else True
    found = f"{len(known)} engines and precisions compared over {LOSS_STEPS} steps"
    return say(is_good, "; ".join(red or unknown) or found)


@RUN.rule(
    "integrity.notebooks", "every notebook ran to its final record", todo="repair the first failing cell", promise=5
)
def notebooks(case: Run) -> Answer:
    run, problems = case.raw.run, []
    for one in run.notebooks:
        record = case.raw.records.get(one.name)
        if one.state != "ok":
            where = f" in cell {one.failing_cell}" if one.failing_cell is not None else ""
            problems.append(f"{one.name} {one.state}{where}" + (f": {one.error}" if one.error else ""))
        elif record is None:
            problems.append(f"{one.name} wrote no final record")
        elif record.get("nonce") != run.nonce:
            problems.append(f"{one.name}: the record is of another run")
        elif record.get("thread_errors") or record.get("is_optimized"):
            problems.append(f"{one.name}: {record.get('thread_errors') or 'run with python -O'}")
    is_good = not problems and bool(run.notebooks) and run.state == COMPLETE
    return say(is_good, "; ".join(problems) or f"{len(run.notebooks)} notebooks ran from top to bottom")


@RUN.rule(
    "integrity.kernel",
    "each notebook ran in the Python that was checked: the same prefix, the same torch",
    todo="another kernel is called python3: see `jupyter kernelspec list` and JUPYTER_PATH",
)
def kernel(case: Run) -> Answer | None:
    """A kernel specification may name another environment than the one whose torch was checked."""
    records = {run.name: case.raw.records[run.name] for run in case.raw.run.notebooks if run.name in case.raw.records}
    told = {name: (record.get("python"), record.get("torch")) for name, record in records.items()}
    if not any(any(pair) for pair in told.values()):
        return None
    checked = case.raw.begin.torch.version if case.raw.begin and case.raw.begin.torch else None
    odd = [f"{name} ran with torch {torch}" for name, (_, torch) in told.items() if checked and torch != checked]
    pythons = {python for python, _ in told.values()} | {case.raw.run.code.get("python", next(iter(told.values()))[0])}
    odd += ["the notebooks ran in several Pythons"] if len(pythons) > 1 else []
    return say(not odd, "; ".join(odd) or f"{len(told)} notebooks, one Python, torch {checked}")


def _contradiction(id: str, expected: str, todo: str) -> Callable:
    """A rule whose question yields what contradicts; a bundle with one of these is INVALID."""

    def add(ask: Callable[[Run], Iterator[str]]) -> Callable[[Run], Iterator[str]]:
        @RUN.rule(id, expected, todo=todo)
        def rule(case: Run) -> Answer:
            problems = list(ask(case))
            return say(not problems, "; ".join(problems[:5]) or "nothing contradicts", **_invalid(problems))

        return ask

    return add


def _invalid(problems: Sequence[str]) -> dict[str, Any]:
    return {"outcome": Outcome.INVALID} if problems else {}


@_contradiction(
    "integrity.asked",
    "what ran is what raw/run.json asked for, and left its records",
    "parts of several runs: run it again",
)
def asked(case: Run) -> Iterator[str]:
    raw, plan = case.raw, _plan(case.files)
    for name, got in (
        ("02_smoke_training", vars(raw.training.config) if raw.training else {}),
        ("03_throughput", plan),
    ):
        for key, value in raw.run.parameters.get(name, {}).items():
            if key in got and value != "auto" and _listed(value) != _listed(got[key]):
                yield f"{name} was asked for {key}={value!r}, {got[key]!r} ran"
    if plan and raw.losses is None and raw.run.state == COMPLETE:
        yield "figures of a sweep, and raw/losses.json is missing"
    if raw.run.parameters.get("03_throughput", {}).get("short_runs") and plan and not raw.bench:
        yield "short runs were asked for, and raw/bench.json is missing"


def _plan(files: Mapping[str, bytes]) -> Mapping[str, Any]:
    return parsed("raw/sweep.json", lambda: loads(files["raw/sweep.json"])["plan"]) if "raw/sweep.json" in files else {}


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


@_contradiction(
    "integrity.times", "times in order, and a run id of the moment the run began", "a wrong clock: run it again"
)
def times(case: Run) -> Iterator[str]:
    run = case.raw.run
    begin, end = utc(run.started_utc), utc(run.ended_utc)
    if begin is None or end is None:
        yield "a time that is not ISO 8601 in UTC"
        return
    if end < begin:
        yield "it ended before it began"
    stamp = re.match(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z-(\w+)-", run.run_id)
    named = utc("{}-{}-{}T{}:{}:{}+00:00".format(*stamp.groups()[:6])) if stamp else None
    if stamp and named and (abs((begin - named).total_seconds()) > _START_S or stamp[7] != run.device):
        yield f"run {run.run_id} began at {run.started_utc} on {run.device}"
    ran = throughput(case.raw.steps)
    if ran and ran.window_s > (end - begin).total_seconds() + 1:
        yield f"its steps took {ran.window_s:.0f} s, the whole run {(end - begin).total_seconds():.0f} s"


# From the making of the run id to the first record, on the slowest disk.
_START_S = 120


@_contradiction(
    "integrity.plausible", "no number that physics or arithmetic forbids", "a wrong clock or unit, or an edited file"
)
def plausible(case: Run) -> Iterator[str]:
    raw, run = case.raw, case.raw.training
    yield from implausible(case.numbers)
    if (
        raw.ceilings
        and "raw/sweep.csv" in case.files
        and to_csv(raw.rows, raw.ceilings).encode() != case.files["raw/sweep.csv"]
    ):
        yield "raw/sweep.csv: derived columns that its own blocks do not give"
    if run is None or not raw.steps:
        return
    told, peak = run.telemetry, max((step.memory_peak_bytes or 0 for step in raw.steps), default=0)
    gpus = [gpu for side in (raw.begin.torch, raw.begin.driver) if side for gpu in side.gpus] if raw.begin else []
    cards = [gpu.memory_bytes for gpu in gpus if gpu.memory_bytes] + [told.memory_total_bytes or 0 if told else 0]
    used = max([peak, *(sample.memory_used_bytes or 0 for sample in raw.telemetry)])
    if max(cards) and used > max(cards):
        yield f"{memory(used)} in use on a card of {memory(max(cards))}"
    power = max((sample.power_w or 0 for sample in raw.telemetry), default=0)
    if told and told.power_limit_w and power > POWER_TOLERANCE * told.power_limit_w:
        yield f"{power:.0f} W at a limit of {told.power_limit_w:.0f} W"
    first, expected = raw.steps[0].loss, math.log(MODELS[run.config.model].vocab_size)
    if run.config.weights == "random" and first is not None and abs(first - expected) > FIRST_LOSS_NATS:
        yield f"a first loss of {first:.3g} with random weights, where guessing gives {expected:.3g}"
    if run.device_window_s is not None and raw.telemetry:
        spanned = raw.telemetry[-1].at_s - raw.telemetry[0].at_s
        if run.device_window_s > max(1.5 * spanned, spanned + 1.0):
            yield f"the device's window of {run.device_window_s:.3g} s is longer than the readings' {spanned:.3g} s"


# A card overshoots its power limit for milliseconds; readings are means of 20 ms to 1 s.
POWER_TOLERANCE = 1.5
# Random weights guess among all tokens, so the first loss is near the logarithm of their number.
FIRST_LOSS_NATS = 1.5
# A datasheet's peak is at the boost clock; cards that clock higher exceed it (an RTX 5090 reaches 224 of 209.5 TFLOP/s
# in bfloat16, main-horse.github.io/posts/5090-mm-perf).
PEAK_TOLERANCE = 1.15


def implausible(told: Sequence[Number]) -> Iterator[str]:
    """Numbers by name: nothing negative, no share over 1, no rate over the peak."""
    values = {number.name: number.value for number in told if number.value is not None}
    for one in told:
        if one.value is None:
            if not one.reason:
                yield f"{one.name} is unknown without a reason"
            continue
        if not one.name.endswith("_loss") and one.value < 0:
            yield f"{one.name} is negative"
        if re.search(r"(^|_)(mfu|share)(_|$)", one.name) and one.value > 1:
            yield f"{one.name} is {one.value:.3g}, over 1"
        if one.low is not None and one.high is not None and one.low > one.high:
            yield f"{one.name}: its spread is upside down"
        dtype = re.fullmatch(r"matmul_(\w+)_flop_per_s", one.name)
        peak = values.get(f"peak_{dtype[1]}_flop_per_s") if dtype else None
        if peak is not None and one.value > PEAK_TOLERANCE * peak:
            yield f"{one.name} is {one.value:.4g}, the card's peak is {peak:.4g}"


@RUN.rule("integrity.sources", "the files from which everything else here follows")
def sources(case: Run) -> Answer:
    """Binds the verdict to the very bytes it follows from: one hash over all of facts/ and raw/."""
    entries = [Entry.of(name, data) for name, data in case.files.items() if name.startswith(("facts/", "raw/"))]
    return say(True, f"{len(entries)} files under facts/ and raw/", {"root": root(entries)})


@RUN.rule("integrity.privacy", "no private value in a report", todo="look where this value comes from and run again")
def privacy(case: Run) -> Answer | None:
    """What the last look for private values took out."""
    if "raw/privacy.json" not in case.files:
        return None
    hits = parsed("raw/privacy.json", lambda: loads(case.files["raw/privacy.json"])["hits"])
    return say(False, "taken out: " + "; ".join(sorted({f"{hit['kind']} in {hit['file']}" for hit in hits})))


# The numbers of a report, each with its unit, its definition and from how many samples.


def numbers(raw: Raw) -> Iterator[Number]:
    ran = throughput(raw.steps)
    if raw.training is not None and ran is not None:
        yield from _training_numbers(raw, raw.training, ran)
    if raw.ceilings is not None:
        yield from _sweep_numbers(raw.ceilings, raw.rows)
    for losses in (raw.losses,) if raw.losses else ():
        for row in losses.compared:
            yield _number(
                f"loss_difference_{row.engine}_{row.dtype}", losses.difference(row), "nats/token",
                "largest difference of the engine's first losses from the plain loop's in float32",
                n=len(row.losses), why="a loss is not finite",
            )  # fmt: skip
    for run in raw.bench.warm if raw.bench else ():
        how = "steps in a fresh process as the Trainer counts them, start of training included"
        yield Number(
            f"short_run_{run.engine}_training_s",
            run.training_s,
            "s",
            f"{len(run.losses)} {how}, {run.dtype}, second run",
            n=1,
        )
        yield Number(
            f"short_run_{run.engine}_process_s", run.process_s, "s", "the same from the start of the process", n=1
        )


def _number(name: str, value: float | None, unit: str, definition: str, *, why: str, **more: Any) -> Number:
    """A number that may be unknown: then `why` is its reason."""
    return Number(name, value, unit, definition, reason=why if value is None else None, **more)


def _training_numbers(raw: Raw, training: TrainingRun, ran: Throughput) -> Iterator[Number]:
    is_cuda = raw.run.device == "cuda"
    steady, few = ran.steady, f"fewer than {STEADY_FROM} steps"
    n = steady.n if steady else None
    yield Number("first_step_s", ran.first_step_s, "s", "the first optimizer step, cold", n=1)
    yield _number(
        "steady_step_s", steady.median if steady else None, "s",
        f"median step time from step {STEADY_FROM} on, synchronised before and after; spread: quartiles",
        n=n, low=steady.q1 if steady else None, high=steady.q3 if steady else None, why=few,
    )  # fmt: skip
    yield _number(
        "steady_samples_per_s",
        ran.steady_samples_per_s,
        "samples/s",
        f"counted samples over time of the steps from {STEADY_FROM} on",
        n=n,
        why=few,
    )
    yield _number(
        "steady_tokens_per_s",
        ran.steady_tokens_per_s,
        "tokens/s",
        "counted tokens without padding over the same time",
        n=n,
        why=few,
    )
    yield Number(
        "smoke_samples_per_s",
        ran.total_samples_per_s,
        "samples/s",
        "all counted samples over the time of all steps, the cold one included",
        n=ran.steps,
    )
    yield Number("samples", ran.samples, "samples", "counted in the batches")
    yield Number("tokens", ran.tokens, "tokens", "counted in the batches, padding left out")
    losses: Sequence[float | None] = [step.loss for step in raw.steps if step.loss is not None] or [None]
    yield _number("first_loss", losses[0], "nats/token", "loss of the first step", why="no finite loss")
    yield _number("last_loss", losses[-1], "nats/token", "loss of the last step, not a mean", why="no finite loss")
    how = "most memory torch had allocated in a step"
    yield _number("peak_memory_bytes", ran.peak_memory_bytes, "B", how, why="a CPU run has no GPU memory")
    powers = [s.power_w for s in in_window(raw.steps, raw.telemetry) if s.power_w is not None]
    how, why = "highest power reading during the steps", "not available here"
    yield _number("max_power_w", max(powers, default=None), "W", how, n=len(powers) or None, why=why)
    profile = training.profile
    if profile and profile.device_time_s is not None and profile.step_time_s:
        share = profile.device_time_s / profile.step_time_s if is_cuda else None
        yield _number(
            "kernel_share", share, "1", "kernel time over wall time of one profiled step", n=1, why="a CPU run"
        )


def _sweep_numbers(ceilings: Ceilings, rows: Sequence[Row]) -> Iterator[Number]:
    for dtype, rate in ceilings.matmul_flop_per_s.items():
        shape = ceilings.matmul_shape.get(dtype, "")
        what = f"{'square ' if len(set(shape.split(' × '))) == 1 else ''}product {shape}"
        yield Number(f"matmul_{dtype}_flop_per_s", rate, "FLOP/s", f"measured: {what}, random numbers")
    for dtype, peak in ceilings.datasheet_flop_per_s.items():
        yield Number(f"peak_{dtype}_flop_per_s", peak, "FLOP/s", "the maker's datasheet: dense, for this card")
    yield _number(
        "copy_bytes_per_s",
        ceilings.copy_bytes_per_s or None,
        "B/s",
        "measured: a copy on the device, read and write counted",
        why="not measured",
    )
    if ceilings.attention_flop_per_s is not None:
        yield Number(
            "attention_bfloat16_flop_per_s",
            ceilings.attention_flop_per_s,
            "FLOP/s",
            f"measured: causal attention, forward and backward, {ceilings.attention_shape}",
        )
    if ceilings.graph_launch_s is not None:
        yield Number(
            "graph_launch_s", ceilings.graph_launch_s, "s", "measured: one of a thousand small kernels in a CUDA graph"
        )
    good = [row for row in rows if row.tokens_per_s]
    best = max(good, key=lambda row: row.tokens_per_s or 0.0, default=None)
    if best is None:
        yield _number(
            "best_tokens_per_s", None, "tokens/s", "best point of the sweep", why="no point could be measured"
        )
        return
    where = f"best point of the sweep: {best.model}, batch {best.batch_size} × {best.seq_len}, {best.dtype}, "
    where += f"engine {best.engine}"
    yield Number("best_tokens_per_s", best.tokens_per_s, "tokens/s", where, n=len(best.block_step_s))
    limit = floor_s(best, ceilings)
    share = limit / best.step_time_s if limit and best.step_time_s else None
    how = "least time that the measured ceilings allow, over the measured step time, at that point"
    yield _number(
        "best_floor_ratio",
        share if share is not None and share <= 1 else None,
        "1",
        how,
        why="a ceiling is not known, or its reading was disturbed",
    )
    for of in ("measured", "datasheet"):
        share, why = mfu(best, ceilings, of=of), f"no {of} peak for this card and precision"
        if of == "measured" and share is not None and share > 1:
            # Something else used the machine while the ceiling was measured.
            share, why = None, f"the step reached {number(share)} of the measured peak: that reading was disturbed"
        yield _number(f"best_mfu_{of}", share, "1", f"model FLOP/s at that point over the {of} peak", why=why)
    for row in {(row.batch_size, row.seq_len, row.dtype): row for row in rows}.values():
        name = f"limit_{row.batch_size}x{row.seq_len}_{row.dtype}_s"
        yield _number(
            name,
            floor_s(row, ceilings),
            "s",
            "least time of a step of this shape that the measured ceilings allow",
            why="a ceiling is not known",
        )
    for row in rows:
        figures = spread(row.block_step_s)
        low, high, n = (figures.q1, figures.q3, figures.n) if figures else (None, None, None)
        yield _number(
            f"step_{row.batch_size}x{row.seq_len}_{row.dtype}_{row.engine}_s", row.step_time_s, "s",
            f"{words(row, ceilings)}; spread: quartiles",
            n=n, low=low, high=high, why="out of memory" if row.outcome == "oom" else row.reason or row.outcome,
        )  # fmt: skip
    yield Number("sweep_points", len(rows), "points", f"{len(good)} measured, the others failed or did not fit")


# What the report says in words.


def _promises(verdict: Verdict) -> Iterator[Promise]:
    """Each promise with the checks that decide it: those of the rules that name it, and of the ranks' same questions."""
    # The judge of several ranks has no rules of its own yet.
    of = {"native.devices": 2}
    of |= {rule.id: rule.promise for rules in (MACHINE, TRAINING, CONTROL, RUN) for rule in rules if rule.promise}
    for index, text in enumerate(PROMISES, start=1):
        present = [check for check in verdict.checks if of.get(check.id.replace(".ranks_", ".")) == index]
        sentence = "; ".join(check.found for check in present) or "not checked"
        outcome = worst(check.outcome for check in present)
        yield Promise(index, text, outcome, tuple(check.id for check in present), sentence)


def _system(raw: Raw) -> Iterator[tuple[str, str]]:
    """The system under test, one line a part: what a reader of a figure asks first."""
    facts, run = raw.begin, raw.training
    if facts is None:
        return
    told = run.telemetry if run else None
    seen = [side.gpus for side in (facts.torch, facts.driver) if side and side.gpus]
    if raw.run.device == "cuda" and seen:
        gpus = seen[0]
        about = [
            f"sm_{gpus[0].compute_capability[0]}{gpus[0].compute_capability[1]}" if gpus[0].compute_capability else ""
        ]
        about += [memory(gpus[0].memory_bytes) if gpus[0].memory_bytes else ""]
        about += [f"power limit {told.power_limit_w:.0f} W" if told and told.power_limit_w else ""]
        names = " and ".join(
            f"{sum(gpu.name == name for gpu in gpus)} × {name}" for name in dict.fromkeys(g.name for g in gpus)
        )
        yield "GPU", f"{names} ({', '.join(filter(None, about))})"
        if gpus[0].uuid:
            yield "GPU id", ", ".join(gpu.uuid for gpu in gpus if gpu.uuid)
    else:
        yield (
            "GPU",
            "none: a rehearsal on the CPU" if raw.run.device == "cpu" else "none that PyTorch or the driver lists",
        )
    if facts.driver and facts.driver.version:
        yield (
            "Driver",
            facts.driver.version
            + (f", up to CUDA {_dotted(facts.driver.cuda_version)}" if facts.driver.cuda_version else ""),
        )
    if facts.torch:
        cuda = f"built for CUDA {_dotted(facts.torch.cuda)}" if facts.torch.cuda else "a CPU build"
        yield "PyTorch", f"{facts.torch.version}, {cuda}"
    versions = run.versions if run else {}
    others = [f"{name} {versions[name]}" for name in sorted(versions) if name not in ("python", "torch", "cuda")]
    if others:
        yield "Libraries", ", ".join(others)
    if facts.platform:
        where = "container" if facts.platform.is_container else "WSL" if facts.platform.is_wsl else ""
        yield "Python", versions.get("python") or _dotted(facts.platform.python)
        yield "System", ", ".join(filter(None, [facts.platform.os, facts.platform.machine, where]))
    if run:
        c = run.config
        yield (
            "Smoke run",
            f"{c.model}, {c.weights} weights, {c.steps} steps of {c.batch_size} × {c.seq_len} in {c.dtype}, seed {c.seed}",
        )


def _dotted(version: Sequence[int] | None) -> str:
    return ".".join(map(str, version or ()))


def _headline(case: Run, verdict: Verdict) -> str:
    raw = case.raw
    if raw.run.device == "cpu":
        if verdict.outcome is Outcome.REHEARSAL:
            return "A rehearsal on the CPU went through; it says nothing about a GPU."
        return f"A rehearsal on the CPU did not go through: {_first_finding(verdict)}"
    if verdict.diagnosis not in (None, "ok"):
        starts = next((check.found for check in verdict.checks if check.id == "environment.cuda_starts"), "")
        return f"PyTorch cannot train natively on this machine's GPU ({verdict.diagnosis}): {starts}"
    name = raw.training.device_name if raw.training else "GPU of this machine"
    if verdict.outcome is not Outcome.PASS:
        return f"It was not shown that PyTorch trains natively on the {name}: {_first_finding(verdict)}"
    shares = {n.name: n.value for n in case.numbers if re.fullmatch(r"weak_scaling_\d+_ranks_efficiency", n.name)}
    count, share = max(((int(name.split("_")[2]), value) for name, value in shares.items() if value), default=(1, 0))
    if count > 1:
        return f"PyTorch trains natively on {count} × {name}, at {percent(share, 3)} of {count} times one GPU's speed."
    return f"PyTorch trains natively on this {name}."


def _first_finding(verdict: Verdict) -> str:
    required = [check for check in verdict.findings if check.required]
    return required[0].found if required else "no finding"


def _limits(raw: Raw) -> Iterator[str]:
    yield (
        "The smoke run is one run of one process. Step times of identical runs differ by tens of percent on shared "
        "hosts, so its times do not rank cards; the sweep's points, beside the limits measured in the same run, do better."
    )
    yield "Equal losses on repetition show that the run repeats; they do not rule out silent data corruption."
    if raw.training and raw.training.config.weights == "random":
        yield f"Weights: {raw.training.weights_note}; the losses say nothing about a trained model."
    if raw.training and raw.training.telemetry and raw.training.telemetry.missing:
        yield "Readings that this card or platform does not offer: " + ", ".join(raw.training.telemetry.missing)
    if raw.run.device == "cpu":
        yield "A rehearsal makes no claim about a GPU."
    yield from raw.run.notes
    yield "Unsigned, it protects against mistakes and casual edits, not against somebody who makes all of it up."

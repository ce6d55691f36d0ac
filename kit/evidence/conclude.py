"""From the raw files of a bundle to what its report says, by arithmetic and the judges alone.

`kit report` writes the result as evidence.json; `kit verify` computes it again and compares.
Nothing of the report's own words or numbers is read here, only facts/ and raw/.
"""

import functools
import importlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kit.errors import BundleInvalid
from kit.evidence.contents import (
    COMPLETE,
    SCHEMA_VERSION,
    Evidence,
    Number,
    Promise,
    RunRecord,
    SweepRecord,
    efficiencies,
    lines,
    one,
    utc,
)
from kit.evidence.manifest import PRIVACY, Entry, root
from kit.gpu.facts import Gpu, MachineFacts
from kit.gpu.judge_machine import MACHINE, Expectation, judge, still_there
from kit.records import CLAIMS, Check, Outcome, Verdict, worst
from kit.rules import Answer, Rules, say
from kit.sweep.table import (
    LOSS_LIMITS,
    LOSS_STEPS,
    BenchResult,
    Ceilings,
    Row,
    SameLosses,
    floor_s,
    mfu,
    to_csv,
    words,
)
from kit.train.config import MODELS
from kit.train.judge_training import TRAINING, in_window, judge_training
from kit.train.steps import (
    STEADY_FROM,
    ControlRecord,
    StepRecord,
    TelemetrySample,
    TrainingRun,
    throughput,
)
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


class Run:
    """What is judged here: the files of one run and what they hold; None or empty for those that are not there.

    Raises BundleInvalid where one cannot be read, or the record of the run is missing.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        run, sweep = one(files, "raw/run.json", RunRecord), one(files, "raw/sweep.json", SweepRecord)
        if run is None:
            raise BundleInvalid("raw/run.json is missing", expected="the record of the run")
        self.files, self.run, self.sweep = files, run, sweep
        self.begin, self.end = one(files, "facts/begin.json", MachineFacts), one(files, "facts/end.json", MachineFacts)
        self.training = one(files, "raw/training.json", TrainingRun)
        self.steps = lines(files, "raw/steps.jsonl", StepRecord)
        self.telemetry = lines(files, "raw/telemetry.jsonl", TelemetrySample)
        self.control = one(files, "raw/negative_control.json", ControlRecord)
        self.rows = sweep.rows if sweep else ()
        self.losses, self.bench = one(files, "raw/losses.json", SameLosses), one(files, "raw/bench.json", BenchResult)
        found = {name: one(files, name, dict) for name in files if name.startswith("raw/records/")}
        self.records = {name.split("/")[-1].removesuffix(".json"): record or {} for name, record in found.items()}

    @functools.cached_property
    def numbers(self) -> tuple[Number, ...]:
        return (*numbers(self), *_parts(self.files, 1))


def conclude(files: Mapping[str, bytes]) -> Evidence:
    """The whole evidence of the files of a bundle, by their paths. Raises BundleInvalid where one cannot be read."""
    case = Run(files)
    run, environment = case.run, judge(case.begin, case.run.expectation) if case.begin else None
    checks = (
        *((*environment.checks, still_there(case.begin, case.end)) if environment and case.begin else ()),
        *(judge_training(case.training, case.steps, case.telemetry) if case.training else ()),
        *_parts(files, 0),
        *CONTROL.checks(case.control),
        *RUN.checks(case),
    )
    verdict = Verdict.of(checks, environment.diagnosis if environment else None)
    return Evidence(
        **{name: getattr(run, name) for name in vars(run).keys() & Evidence.__dataclass_fields__.keys()},
        schema_version=SCHEMA_VERSION,
        system=_system(case),
        verdict=verdict,
        claims={claim: str(verdict.claim(claim)) for claim in CLAIMS},
        promises=tuple(_promises(verdict)),
        numbers=case.numbers,
        headline=_headline(case, verdict),
        limits=tuple(_limits(case)),
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
    red=Outcome.INVALID,
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
    return say(is_red, found, {"seconds": record.seconds})


def control_check(record: ControlRecord | None) -> Check:
    return CONTROL.checks(record)[0]


# The run as a whole: that its parts are there, belong together and obey physics.
RUN = Rules("run", rehearses=lambda case: case.run.device == "cpu")


@RUN.rule("environment.facts", "a look at the machine before anything ran", settle="python -m kit report", promise=1)
def facts(case: Run) -> Answer | None:
    return say(None, "the machine was not looked at") if case.begin is None else None


@RUN.rule("learning.ran", "a training run", settle="see the first red check", promise=3)
def trained(case: Run) -> Answer | None:
    return None if case.training else say(None, case.run.reason or "no training was recorded")


@RUN.rule(
    "native.device", "the device that was asked for, on a card that the check saw",
    todo="the run used another device than the one that was checked", is_gpu_claim=True, promise=2,
)  # fmt: skip
def same_device(case: Run) -> Answer | None:
    """The run was on the device, and with the torch, that the environment was judged for."""
    if (training := case.training) is None:
        return None
    config, name, seen = training.config, training.device_name, case.begin.torch if case.begin else None
    is_known = config.device == "cpu" or name in [gpu.name for gpu in (seen.gpus if seen else ())]
    checked, used = seen.version if seen else None, training.versions.get("torch")
    wrong = _first(
        (config.device != case.run.device or not is_known, ""),
        (config.device == "cuda" and not _is_telemetry_of(case, training), ", with telemetry of a card that the check did not see"),
        (checked and used and checked != used, f", trained with torch {used} where torch {checked} was checked"),
    )  # fmt: skip
    return say(not wrong, f"{config.device}: {name}{''.join(wrong)}")


def _is_telemetry_of(case: Run, training: TrainingRun) -> bool:
    """Whether the readings are of a card that the check saw. A MIG slice has a UUID of its own, which NVML lists
    nowhere; and where one side told none, nothing contradicts."""
    told = training.telemetry.device_uuid if training.telemetry else None
    known = {gpu.uuid.lower() for gpu in _gpus(case) if gpu.uuid}
    return told is None or not known or "MIG" in training.device_name.split() or told.lower() in known


def _gpus(case: Run) -> list[Gpu]:
    """What PyTorch and the driver list, one after the other."""
    return [gpu for side in ((case.begin.torch, case.begin.driver) if case.begin else ()) if side for gpu in side.gpus]


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
    records = [record for record in (case.losses, case.bench.losses if case.bench else None) if record]
    measured = [(row.engine, row.dtype) for row in case.rows if row.outcome == "ok"]
    measured += [(run.engine, run.dtype) for run in case.bench.runs] if case.bench else []
    if not records and not measured:
        return None
    compared = [(record, row) for record in records for row in record.compared]
    red = [f"{row.engine} in {row.dtype}: {problem}" for record, row in compared if (problem := record.problem(row))]
    known = {(row.engine, row.dtype) for _, row in compared}
    unknown = [
        f"{name} in {dtype} was not compared" for name, dtype in dict.fromkeys(measured) if (name, dtype) not in known
    ]
    found = f"{len(known)} engines and precisions compared over {LOSS_STEPS} steps"
    return say(False if red else None if unknown or not known else True, "; ".join(red or unknown) or found)


@RUN.rule(
    "integrity.notebooks", "every notebook ran to its final record", todo="repair the first failing cell", promise=5
)
def notebooks(case: Run) -> Answer:
    run, problems = case.run, []
    for ran in run.notebooks:
        record = case.records.get(ran.name)
        told = record or {}
        where = f" in cell {ran.failing_cell}" if ran.failing_cell is not None else ""
        problems += _first(
            (ran.state != "ok", f"{ran.name} {ran.state}{where}" + (f": {ran.error}" if ran.error else "")),
            (record is None, f"{ran.name} wrote no final record"),
            (told.get("nonce") != run.nonce, f"{ran.name}: the record is of another run"),
            (told.get("thread_errors") or told.get("is_optimized"), f"{ran.name}: {told.get('thread_errors') or 'run with python -O'}"),
        )  # fmt: skip
    is_good = not problems and bool(run.notebooks) and run.state == COMPLETE
    return say(is_good, "; ".join(problems) or f"{len(run.notebooks)} notebooks ran from top to bottom")


def _first(*wrong: tuple[Any, str]) -> list[str]:
    """The words of the first that is so; none where none is."""
    return [words for is_so, words in wrong if is_so][:1]


@RUN.rule(
    "integrity.kernel",
    "each notebook ran in the Python that was checked: the same prefix, the same torch",
    todo="another kernel is called python3: see `jupyter kernelspec list` and JUPYTER_PATH",
)
def kernel(case: Run) -> Answer | None:
    """A kernel specification may name another environment than the one whose torch was checked."""
    records = {run.name: case.records[run.name] for run in case.run.notebooks if run.name in case.records}
    told = {name: (record.get("python"), record.get("torch")) for name, record in records.items()}
    if not any(any(pair) for pair in told.values()):
        return None
    checked = case.begin.torch.version if case.begin and case.begin.torch else None
    odd = [f"{name} ran with torch {torch}" for name, (_, torch) in told.items() if checked and torch != checked]
    pythons = {python for python, _ in told.values()} | {case.run.code.get("python", next(iter(told.values()))[0])}
    odd += ["the notebooks ran in several Pythons"] if len(pythons) > 1 else []
    return say(not odd, "; ".join(odd) or f"{len(told)} notebooks, one Python, torch {checked}")


def _contradiction(id: str, expected: str, todo: str) -> Callable:
    """A rule whose question yields what contradicts; a bundle with one of these is INVALID."""

    def add(ask: Callable[[Run], Iterator[str]]) -> Callable[[Run], Answer]:
        return RUN.rule(id, expected, todo=todo, red=Outcome.INVALID)(functools.partial(_contradicted, ask))

    return add


def _contradicted(ask: Callable[[Run], Iterator[str]], case: Run) -> Answer:
    problems = list(itertools.islice(ask(case), 5))
    return say(not problems, "; ".join(problems) or "nothing contradicts")


@_contradiction(
    "integrity.asked",
    "what ran is what raw/run.json asked for, and left its records",
    "parts of several runs: run it again",
)
def asked(case: Run) -> Iterator[str]:
    wanted, plan = case.run.parameters, case.sweep.plan if case.sweep else {}
    ran = {"02_smoke_training": vars(case.training.config) if case.training else {}, "03_throughput": plan}
    for name, got in ran.items():
        for key, value in wanted.get(name, {}).items():
            if key in got and value != "auto" and _listed(value) != _listed(got[key]):
                yield f"{name} was asked for {key}={value!r}, {got[key]!r} ran"
    if plan and case.losses is None and case.run.state == COMPLETE:
        yield "figures of a sweep, and raw/losses.json is missing"
    if wanted.get("03_throughput", {}).get("short_runs") and plan and not case.bench:
        yield "short runs were asked for, and raw/bench.json is missing"


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


@_contradiction(
    "integrity.times", "times in order, and a run id of the moment the run began", "a wrong clock: run it again"
)
def times(case: Run) -> Iterator[str]:
    run = case.run
    begin, end = utc(run.started_utc), utc(run.ended_utc)
    if begin is None or end is None:
        yield "a time that is not ISO 8601 in UTC"
        return
    whole_s = (end - begin).total_seconds()
    if whole_s < 0:
        yield "it ended before it began"
    stamp = re.match(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z-(\w+)-", run.run_id)
    *moment, device = stamp.groups() if stamp else ("", "")
    named = utc("{}-{}-{}T{}:{}:{}+00:00".format(*moment)) if stamp else None
    if named and (abs((begin - named).total_seconds()) > _START_S or device != run.device):
        yield f"run {run.run_id} began at {run.started_utc} on {run.device}"
    ran = throughput(case.steps)
    if ran and ran.window_s > whole_s + 1:
        yield f"its steps took {ran.window_s:.0f} s, the whole run {whole_s:.0f} s"


# From the making of the run id to the first record, on the slowest disk.
_START_S = 120


@_contradiction(
    "integrity.plausible", "no number that physics or arithmetic forbids", "a wrong clock or unit, or an edited file"
)
def plausible(case: Run) -> Iterator[str]:
    run, steps, sweep, readings = case.training, case.steps, case.sweep, case.telemetry
    yield from implausible(case.numbers)
    columns = case.files.get("raw/sweep.csv")
    if sweep and columns is not None and to_csv(sweep.rows, sweep.ceilings).encode() != columns:
        yield "raw/sweep.csv: derived columns that its own blocks do not give"
    if run is None or not steps:
        return
    told = run.telemetry
    card = max([gpu.memory_bytes or 0 for gpu in _gpus(case)] + [told.memory_total_bytes or 0 if told else 0])
    used = max([step.memory_peak_bytes or 0 for step in steps] + [one.memory_used_bytes or 0 for one in readings])
    power, limit = max((one.power_w or 0 for one in readings), default=0), told.power_limit_w or 0 if told else 0
    first, guessed = steps[0].loss, math.log(MODELS[run.config.model].vocab_size)
    drawn = guessed if first is None or run.config.weights != "random" else first
    window, spanned = run.device_window_s or 0.0, readings[-1].at_s - readings[0].at_s if readings else math.inf
    for found, most, problem in (
        (used, card or math.inf, f"{memory(used)} in use on a card of {memory(card)}"),
        (power, POWER_TOLERANCE * limit or math.inf, f"{power:.0f} W at a limit of {limit:.0f} W"),
        (abs(drawn - guessed), FIRST_LOSS_NATS, f"a first loss of {drawn:.3g} with random weights, where guessing gives {guessed:.3g}"),
        (window, max(1.5 * spanned, spanned + 1.0), f"the device's window of {window:.3g} s is longer than the readings' {spanned:.3g} s"),
    ):  # fmt: skip
        if found > most:
            yield problem


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
    for n in told:
        name, found = n.name, n.value or 0
        low, high, peak = n.low, n.high, values.get(name.replace("matmul_", "peak_"), math.inf)
        wrong = {
            f"{name} is unknown without a reason": n.value is None and not n.reason,
            f"{name} is negative": found < 0 and not name.endswith("_loss"),
            f"{name} is {found:.3g}, over 1": found > 1 and re.search(r"(^|_)(mfu|share)(_|$)", name),
            f"{name}: its spread is upside down": low is not None and high is not None and low > high,
            f"{name} is {found:.4g}, the card's peak is {peak:.4g}": "matmul_" in name
            and found > PEAK_TOLERANCE * peak,
        }
        yield from (words for words, is_so in wrong.items() if is_so)


@RUN.rule(
    "integrity.sources",
    "the files from which everything else here follows",
    todo="the kit was changed while it ran, so its notebooks ran several: run it again",
    red=Outcome.INVALID,
)
def sources(case: Run) -> Answer:
    """Binds the verdict to the very bytes it follows from, by one hash over all of facts/ and raw/, and these to the
    one kit that wrote them."""
    entries = [Entry.of(name, data) for name, data in case.files.items() if name.startswith(("facts/", "raw/"))]
    begin = case.run.code.get("source_sha256")
    end = case.run.code.get("source_sha256_at_end", begin)
    if end != begin:
        return say(False, f"the kit's sources were {str(begin)[:12]} at the beginning and {str(end)[:12]} at the end")
    return say(True, f"{len(entries)} files under facts/ and raw/", {"root": root(entries)})


@RUN.rule("integrity.privacy", "no private value in a report", todo="look where this value comes from and run again")
def privacy(case: Run) -> Answer | None:
    """What the last look for private values took out."""
    found = one(case.files, PRIVACY, dict[str, tuple[dict[str, str], ...]])
    told = found and "; ".join(sorted({f"{hit['kind']} in {hit['file']}" for hit in found["hits"]}))
    return None if told is None else say(False, f"taken out: {told}")


# The numbers of a report, each with its unit, its definition and from how many samples.


def numbers(case: Run) -> Iterator[Number]:
    yield from _training_numbers(case)
    if case.sweep is not None:
        yield from _ceiling_numbers(case.sweep.ceilings)
        yield from _sweep_numbers(case.sweep.ceilings, case.sweep.rows)
    for row in case.losses.compared if case.losses else ():
        yield _number(
            f"loss_difference_{row.engine}_{row.dtype}", case.losses.difference(row), "nats/token",
            "largest difference of the engine's first losses from the plain loop's in float32",
            n=len(row.losses), why="a loss is not finite",
        )  # fmt: skip
    for run in case.bench.warm if case.bench else ():
        how = "steps in a fresh process as the Trainer counts them, start of training included"
        how = f"{len(run.losses)} {how}, {run.dtype}, second run"
        yield _number(f"short_run_{run.engine}_training_s", run.training_s, "s", how, n=1)
        how = "the same from the start of the process"
        yield _number(f"short_run_{run.engine}_process_s", run.process_s, "s", how, n=1)


def _number(name: str, value: float | None, unit: str, definition: str, *, why: str = "", **more: Any) -> Number:
    """A number that may be unknown: then `why` is its reason."""
    return Number(name, value, unit, definition, reason=why or None if value is None else None, **more)


def _training_numbers(case: Run) -> Iterable[Number]:
    training, ran = case.training, throughput(case.steps)
    if training is None or ran is None:
        return ()
    n, middle, low, high = (s.n, s.median, s.q1, s.q3) if (s := ran.steady) else (None, None, None, None)
    few, start = f"fewer than {STEADY_FROM} steps", f"from step {STEADY_FROM} on, synchronised before and after"
    losses: Sequence[float | None] = [step.loss for step in case.steps if step.loss is not None] or [None]
    powers = [s.power_w for s in in_window(case.steps, case.telemetry) if s.power_w is not None]
    profile, share = training.profile, None
    is_profiled = profile and profile.device_time_s is not None and profile.step_time_s
    if is_profiled and case.run.device == "cuda":
        share = profile.device_time_s / profile.step_time_s
    made = (
        _number("first_step_s", ran.first_step_s, "s", "the first optimizer step, cold", n=1),
        _number("steady_step_s", middle, "s", f"median step time {start}; spread: quartiles", n=n, low=low, high=high, why=few),
        _number("steady_samples_per_s", ran.steady_samples_per_s, "samples/s", f"counted samples over time of the steps from {STEADY_FROM} on", n=n, why=few),
        _number("steady_tokens_per_s", ran.steady_tokens_per_s, "tokens/s", "counted tokens without padding over the same time", n=n, why=few),
        _number("smoke_samples_per_s", ran.total_samples_per_s, "samples/s", "all counted samples over the time of all steps, the cold one included", n=ran.steps),
        _number("samples", ran.samples, "samples", "counted in the batches"),
        _number("tokens", ran.tokens, "tokens", "counted in the batches, padding left out"),
        _number("first_loss", losses[0], "nats/token", "loss of the first step", why="no finite loss"),
        _number("last_loss", losses[-1], "nats/token", "loss of the last step, not a mean", why="no finite loss"),
        _number("peak_memory_bytes", ran.peak_memory_bytes, "B", "most memory torch had allocated in a step", why="a CPU run has no GPU memory"),
        _number("max_power_w", max(powers, default=None), "W", "highest power reading during the steps", n=len(powers) or None, why="not available here"),
        _number("kernel_share", share, "1", "kernel time over wall time of one profiled step", n=1, why="a CPU run"),
    )  # fmt: skip
    return made if is_profiled else made[:-1]


def _ceiling_numbers(ceilings: Ceilings) -> Iterator[Number]:
    for dtype, rate in ceilings.matmul_flop_per_s.items():
        shape = ceilings.matmul_shape.get(dtype, "")
        what = f"{'square ' if len(set(shape.split(' × '))) == 1 else ''}product {shape}"
        yield _number(f"matmul_{dtype}_flop_per_s", rate, "FLOP/s", f"measured: {what}, random numbers")
    for dtype, peak in ceilings.datasheet_flop_per_s.items():
        yield _number(f"peak_{dtype}_flop_per_s", peak, "FLOP/s", "the maker's datasheet: dense, for this card")
    copied, attention, launch = ceilings.copy_bytes_per_s, ceilings.attention_flop_per_s, ceilings.graph_launch_s
    made = (
        _number("copy_bytes_per_s", copied or None, "B/s", "measured: a copy on the device, read and write counted", why="not measured"),
        _number("attention_bfloat16_flop_per_s", attention, "FLOP/s", f"measured: causal attention, forward and backward, {ceilings.attention_shape}"),
        _number("graph_launch_s", launch, "s", "measured: one of a thousand small kernels in a CUDA graph"),
    )  # fmt: skip
    yield from (number for number in made if number.value is not None or number.reason)


def _sweep_numbers(ceilings: Ceilings, rows: Sequence[Row]) -> Iterable[Number]:
    """The best point of a sweep beside the ceilings, then each shape's limit and each point."""
    good = [row for row in rows if row.tokens_per_s]
    best = max(good, key=lambda row: row.tokens_per_s or 0.0, default=None)
    if best is None:
        why = "no point could be measured"
        return (_number("best_tokens_per_s", None, "tokens/s", "best point of the sweep", why=why),)
    where = f"{best.model}, batch {best.batch_size} × {best.seq_len}, {best.dtype}, engine {best.engine}"
    limit, shapes = floor_s(best, ceilings), {(row.batch_size, row.seq_len, row.dtype): row for row in rows}
    share = limit / best.step_time_s if limit and best.step_time_s else None
    used, published = mfu(best, ceilings, of="measured"), mfu(best, ceilings, of="datasheet")
    lost = "no measured peak for this card and precision"
    if used is not None and used > 1:
        # Something else used the machine while the ceiling was measured.
        used, lost = None, f"the step reached {number(used)} of the measured peak: that reading was disturbed"
    return (
        _number("best_tokens_per_s", best.tokens_per_s, "tokens/s", f"best point of the sweep: {where}", n=len(best.block_step_s)),
        _number("best_floor_ratio", share if share and share <= 1 else None, "1", "least time that the measured ceilings allow, over the measured step time, at that point", why="a ceiling is not known, or its reading was disturbed"),
        _number("best_mfu_measured", used, "1", "model FLOP/s at that point over the measured peak", why=lost),
        _number("best_mfu_datasheet", published, "1", "model FLOP/s at that point over the datasheet peak", why="no datasheet peak for this card and precision"),
        *(
            _number("limit_{}x{}_{}_s".format(*shape), floor_s(row, ceilings), "s", "least time of a step of this shape that the measured ceilings allow", why="a ceiling is not known")
            for shape, row in shapes.items()
        ),
        *(_point(row, ceilings) for row in rows),
        _number("sweep_points", len(rows), "points", f"{len(good)} measured, the others failed or did not fit"),
    )  # fmt: skip


def _point(row: Row, ceilings: Ceilings) -> Number:
    name, how = (
        f"step_{row.batch_size}x{row.seq_len}_{row.dtype}_{row.engine}_s",
        f"{words(row, ceilings)}; spread: quartiles",
    )
    low, high, n = (s.q1, s.q3, s.n) if (s := spread(row.block_step_s)) else (None, None, None)
    why = "out of memory" if row.outcome == "oom" else row.reason or row.outcome
    return _number(name, row.step_time_s, "s", how, n=n, low=low, high=high, why=why)


# What the report says in words.


def _promises(verdict: Verdict) -> Iterator[Promise]:
    """Each promise with the checks that decide it: those of the rules that name it, and of the ranks' same questions."""
    # The core does not import the wing whose rules ask this of several ranks.
    of = {"native.devices": 2}
    of |= {rule.id: rule.promise for rules in (MACHINE, TRAINING, CONTROL, RUN) for rule in rules if rule.promise}
    for index, text in enumerate(PROMISES, start=1):
        present = [check for check in verdict.checks if of.get(check.id.replace(".ranks_", ".")) == index]
        told, ids = "; ".join(check.found for check in present) or "not checked", tuple(check.id for check in present)
        yield Promise(index, text, worst(check.outcome for check in present), ids, told)


def _system(case: Run) -> dict[str, str]:
    """The system under test, one line a part: what a reader of a figure asks first."""
    facts, run = case.begin, case.training
    if facts is None:
        return {}
    driver, torch, machine, telemetry = facts.driver, facts.torch, facts.platform, run.telemetry if run else None
    gpus = next((side.gpus for side in (torch, driver) if side and side.gpus), ())
    card = "none: a rehearsal on the CPU" if case.run.device == "cpu" else "none that PyTorch or the driver lists"
    uuids, versions = "", run.versions if run else {}
    if case.run.device == "cuda" and gpus:
        code, room, watts = gpus[0].compute_capability, gpus[0].memory_bytes, telemetry and telemetry.power_limit_w
        about = (code and f"sm_{code[0]}{code[1]}", room and memory(room), watts and f"power limit {watts:.0f} W")
        names = " and ".join(f"{count} × {name}" for name, count in Counter(gpu.name for gpu in gpus).items())
        card = f"{names} ({', '.join(filter(None, about))})"
        uuids = ", ".join(gpu.uuid for gpu in gpus if gpu.uuid) if gpus[0].uuid else ""
    cuda = f", up to CUDA {_dotted(driver.cuda_version)}" if driver and driver.cuda_version else ""
    built = f"built for CUDA {_dotted(torch.cuda)}" if torch and torch.cuda else "a CPU build"
    where = (
        (machine.os, machine.machine, "container" if machine.is_container else "WSL" if machine.is_wsl else "")
        if machine
        else ()
    )
    c = run.config if run else None
    parts = {
        "GPU": card,
        "GPU id": uuids,
        "Driver": f"{driver.version}{cuda}" if driver and driver.version else "",
        "PyTorch": f"{torch.version}, {built}" if torch else "",
        "Libraries": ", ".join(f"{name} {versions[name]}" for name in sorted(versions) if name not in ("python", "torch", "cuda")),
        "Python": versions.get("python") or _dotted(machine.python) if machine else "",
        "System": ", ".join(filter(None, where)),
        "Smoke run": f"{c.model}, {c.weights} weights, {c.steps} steps of {c.batch_size} × {c.seq_len} in {c.dtype}, seed {c.seed}" if c else "",
    }  # fmt: skip
    return {name: told for name, told in parts.items() if told}


def _dotted(version: Sequence[int] | None) -> str:
    return ".".join(map(str, version or ()))


def _headline(case: Run, verdict: Verdict) -> str:
    if case.run.device == "cpu":
        if verdict.outcome is Outcome.REHEARSAL:
            return "A rehearsal on the CPU went through; it says nothing about a GPU."
        return f"A rehearsal on the CPU did not go through: {_first_finding(verdict)}"
    if verdict.diagnosis not in (None, "ok"):
        starts = next((check.found for check in verdict.checks if check.id == "environment.cuda_starts"), "")
        return f"PyTorch cannot train natively on this machine's GPU ({verdict.diagnosis}): {starts}"
    name = case.training.device_name if case.training else "GPU of this machine"
    if verdict.outcome is not Outcome.PASS:
        return f"It was not shown that PyTorch trains natively on the {name}: {_first_finding(verdict)}"
    shares = efficiencies(case.numbers)
    if (count := max(shares, default=1)) > 1:
        share = percent(shares[count].value, 3)
        return f"PyTorch trains natively on {count} × {name}, at {share} of {count} times one GPU's speed."
    return f"PyTorch trains natively on this {name}."


def _first_finding(verdict: Verdict) -> str:
    return next((check.found for check in verdict.findings if check.required), "no finding")


def _limits(case: Run) -> Iterator[str]:
    yield (
        "The smoke run is one run of one process. Step times of identical runs differ by tens of percent on shared "
        "hosts, so its times do not rank cards; the sweep's points, beside the limits measured in the same run, do better."
    )
    yield "Equal losses on repetition show that the run repeats; they do not rule out silent data corruption."
    if (training := case.training) and training.config.weights == "random":
        yield f"Weights: {training.weights_note}; the losses say nothing about a trained model."
    if training and training.telemetry and training.telemetry.missing:
        yield "Readings that this card or platform does not offer: " + ", ".join(training.telemetry.missing)
    if case.run.device == "cpu":
        yield "A rehearsal makes no claim about a GPU."
    yield from case.run.notes
    yield "Unsigned, it protects against mistakes and casual edits, not against somebody who makes all of it up."

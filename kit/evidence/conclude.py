"""From the raw files of a bundle to what its report says, by arithmetic and the judges alone.

`kit report` writes the result as evidence.json; `kit verify` computes it again and compares.
Nothing of the report's own words or numbers is read here, only facts/ and raw/.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kit.errors import BundleInvalid, KitError
from kit.evidence.control import ControlRecord, control_check
from kit.evidence.manifest import Entry, root
from kit.evidence.model import COMPLETE, SCHEMA_VERSION, Evidence, NotebookRun, Number, Promise
from kit.gpu.facts import MachineFacts
from kit.gpu.specs import peak_flop_per_s
from kit.gpu.verdict import Expectation, judge, still_there
from kit.records import CLAIMS, Check, Outcome, Verdict, from_json, loads, worst
from kit.sweep.table import Ceilings, Row, floor_s, from_csv, mfu
from kit.train.config import DATASHEET_DTYPES
from kit.train.metrics import STEADY_FROM, StepRecord, TelemetrySample, TrainingRun, throughput
from kit.train.verdict import in_window, judge_training
from kit.units import number

@dataclasses.dataclass(frozen=True)
class RunRecord:
    """raw/run.json: what was asked for, how each notebook went, and when.

    parameters: per notebook, as given. reason: why the run ended early, None where it did not.
    """

    run_id: str
    nonce: str
    reviewer_nonce: str | None
    kit_version: str
    code: Mapping[str, Any]
    device: str
    expectation: Expectation
    parameters: Mapping[str, Any]
    notebooks: tuple[NotebookRun, ...]
    state: str
    started_utc: str
    ended_utc: str
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Raw:
    """The parsed files; None or empty for those that are not there."""

    run: RunRecord
    begin: MachineFacts | None
    end: MachineFacts | None
    training: TrainingRun | None
    steps: tuple[StepRecord, ...]
    telemetry: tuple[TelemetrySample, ...]
    control: ControlRecord | None
    ceilings: Ceilings | None
    rows: tuple[Row, ...]
    records: Mapping[str, Mapping[str, Any]]


def conclude(files: Mapping[str, bytes]) -> Evidence:
    """The whole evidence of the files of a bundle, by their paths. Raises BundleInvalid where one cannot be read."""
    raw = _read(files)
    checks = (*_checks(raw), _sources(files), *_privacy(files))
    diagnosis = judge(raw.begin, raw.run.expectation).diagnosis if raw.begin else None
    verdict = Verdict.of(checks, diagnosis)
    run = raw.run
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
        verdict=verdict,
        claims={claim: str(verdict.claim(claim)) for claim in CLAIMS},
        promises=tuple(_promises(verdict)),
        numbers=tuple(_numbers(raw)),
        notebooks=run.notebooks,
        headline=_headline(raw, verdict),
        limits=tuple(_limits(raw)),
    )


# --- reading ------------------------------------------------------------------------


def _read(files: Mapping[str, bytes]) -> Raw:
    def one(name: str, kind: Any) -> Any:
        return _parsed(name, lambda: from_json(kind, loads(files[name]))) if name in files else None

    def lines(name: str, kind: Any) -> tuple[Any, ...]:
        text = files.get(name, b"").decode("utf-8", errors="strict").splitlines()
        return tuple(_parsed(f"{name} line {n}", lambda: from_json(kind, loads(line))) for n, line in enumerate(text, 1))

    run = one("raw/run.json", RunRecord)
    if run is None:
        raise BundleInvalid("raw/run.json is missing", expected="the record of the run")
    sweep = _parsed("raw/sweep.json", lambda: loads(files["raw/sweep.json"])) if "raw/sweep.json" in files else None
    records = {
        name.split("/")[-1].removesuffix(".json"): _parsed(name, lambda: dict(loads(data)))
        for name, data in files.items()
        if name.startswith("raw/records/")
    }
    return Raw(
        run=run,
        begin=one("facts/begin.json", MachineFacts),
        end=one("facts/end.json", MachineFacts),
        training=one("raw/training.json", TrainingRun),
        steps=lines("raw/steps.jsonl", StepRecord),
        telemetry=lines("raw/telemetry.jsonl", TelemetrySample),
        control=one("raw/negative_control.json", ControlRecord),
        ceilings=_parsed("raw/sweep.json", lambda: from_json(Ceilings, sweep["ceilings"])) if sweep else None,
        rows=_parsed("raw/sweep.csv", lambda: from_csv(files["raw/sweep.csv"].decode())) if sweep else (),
        records=records,
    )


def _parsed(name: str, read: Any) -> Any:
    try:
        return read()
    except (ValueError, KeyError, TypeError, KitError) as error:
        raise BundleInvalid(f"{name}: {error}", expected="a file as the kit writes it") from error


# --- checks -------------------------------------------------------------------------


def _checks(raw: Raw) -> Iterator[Check]:
    if raw.begin is None:
        yield Check("environment.facts", Outcome.INCONCLUSIVE, "the machine was not looked at", "facts/begin.json")
    else:
        yield from judge(raw.begin, raw.run.expectation).checks
        yield still_there(raw.begin, raw.end)
    if raw.training is None:
        yield Check("learning.ran", Outcome.INCONCLUSIVE, raw.run.reason or "no training was recorded",
                    "a training run", "see the first red check")
    else:
        dtype = DATASHEET_DTYPES[raw.training.config.dtype]
        peak = peak_flop_per_s(raw.training.device_name, dtype)
        yield from judge_training(raw.training, raw.steps, raw.telemetry, peak_flop_per_s=peak)
        yield _same_device(raw)
    yield control_check(raw.control)
    yield _notebooks(raw)


def _sources(files: Mapping[str, bytes]) -> Check:
    """Binds the verdict to the very bytes it follows from: one hash over all of facts/ and raw/."""
    entries = [Entry.of(name, data) for name, data in files.items() if name.startswith(("facts/", "raw/"))]
    return Check("integrity.sources", Outcome.PASS, f"{len(entries)} files under facts/ and raw/",
                 "the files from which everything else here follows", values={"root": root(entries)})


def _privacy(files: Mapping[str, bytes]) -> Iterator[Check]:
    """What the last look for private values took out; nothing where it found none."""
    if "raw/privacy.json" in files:
        hits = _parsed("raw/privacy.json", lambda: loads(files["raw/privacy.json"])["hits"])
        found = "; ".join(sorted({f"{hit['kind']} in {hit['file']}" for hit in hits}))
        yield Check("integrity.privacy", Outcome.FAIL, f"taken out: {found}", "no private value in a report",
                    "look where this value comes from and run again")


def _same_device(raw: Raw) -> Check:
    """The run was on the device that the environment was judged for."""
    config, found = raw.training.config, raw.training.device_name
    names = [gpu.name for gpu in raw.begin.torch.gpus] if raw.begin and raw.begin.torch else []
    expected = "cuda, on a card that the check saw" if raw.run.device == "cuda" else "the CPU, as asked for"
    is_same = config.device == raw.run.device and (config.device == "cpu" or found in names)
    if is_same and config.device == "cuda" and not _is_telemetry_of(raw, found):
        is_same, found = False, f"{found}, with telemetry of a card that the check did not see"
    checked = raw.begin.torch.version if raw.begin and raw.begin.torch else None
    trained = raw.training.versions.get("torch")
    if is_same and checked and trained and checked != trained:
        is_same, found = False, f"{found}, trained with torch {trained} where torch {checked} was checked"
    outcome = Outcome.FAIL if not is_same else Outcome.PASS if config.device == "cuda" else Outcome.REHEARSAL
    return Check("native.device", outcome, f"{config.device}: {found}", expected,
                 "" if is_same else "the run used another device than the one that was checked")


def _is_telemetry_of(raw: Raw, name: str) -> bool:
    """Whether the readings are of a card that the check saw. A MIG slice has a UUID of its own, which NVML lists
    nowhere; and where one side told none, nothing contradicts."""
    told = raw.training.telemetry.device_uuid if raw.training.telemetry else None
    sides = (raw.begin.torch, raw.begin.driver) if raw.begin else ()
    known = {gpu.uuid.lower() for side in sides if side for gpu in side.gpus if gpu.uuid}
    return told is None or not known or "MIG" in name.split() or told.lower() in known


def _notebooks(raw: Raw) -> Check:
    problems = []
    for run in raw.run.notebooks:
        record = raw.records.get(run.name)
        if run.state != "ok":
            where = f" in cell {run.failing_cell}" if run.failing_cell is not None else ""
            problems.append(f"{run.name} {run.state}{where}: {run.error}" if run.error else f"{run.name} {run.state}")
        elif record is None:
            problems.append(f"{run.name} wrote no final record")
        elif record.get("nonce") != raw.run.nonce:
            problems.append(f"{run.name}: the record is of another run")
        elif record.get("thread_errors") or record.get("is_optimized"):
            problems.append(f"{run.name}: {record.get('thread_errors') or 'run with python -O'}")
    found = "; ".join(problems) or f"{len(raw.run.notebooks)} notebooks ran from top to bottom"
    is_good = not problems and bool(raw.run.notebooks) and raw.run.state == COMPLETE
    return Check("integrity.notebooks", Outcome.PASS if is_good else Outcome.FAIL, found,
                 "every notebook ran to its final record", "" if is_good else "repair the first failing cell")


# --- words --------------------------------------------------------------------------

_PROMISES = (
    ("torch.cuda.is_available() is true, and a kernel really ran",
     ("environment.cuda_starts", "native.kernel_ran")),
    ("the expected GPU is detected by two independent witnesses",
     ("environment.two_witnesses", "environment.expected_gpu", "native.device")),
    ("training runs on the device: every parameter, gradient, optimizer state and batch",
     ("native.placement", "native.kernels")),
    ("GPU memory is allocated during training, sampled in the timed window", ("native.driver_view",)),
    ("the evidence is saved, complete, and can be verified by others",
     ("integrity.notebooks", "integrity.steps_complete")),
    ("no silent CPU fallback: a negative control shows that the detector works", ("integrity.negative_control",)),
)


def _promises(verdict: Verdict) -> Iterator[Promise]:
    by_id = {check.id: check for check in verdict.checks}
    for index, (text, ids) in enumerate(_PROMISES, start=1):
        present = [by_id[id] for id in ids if id in by_id]
        outcome = worst(check.outcome for check in present)
        sentence = "; ".join(check.found for check in present) or "not checked"
        yield Promise(index, text, outcome, tuple(check.id for check in present), sentence)


def _headline(raw: Raw, verdict: Verdict) -> str:
    if raw.run.device == "cpu":
        if verdict.outcome is Outcome.REHEARSAL:
            return "Everything but the GPU was exercised, on a CPU; nothing is claimed about a GPU."
        return f"A rehearsal on a CPU did not go through: {_first_finding(verdict)}"
    if verdict.diagnosis not in (None, "ok"):
        starts = next((check.found for check in verdict.checks if check.id == "environment.cuda_starts"), "")
        return f"PyTorch cannot train natively on this machine's GPU ({verdict.diagnosis}): {starts}"
    name = raw.training.device_name if raw.training else "this machine's GPU"
    if verdict.outcome is Outcome.PASS:
        figures = throughput(raw.steps)
        rate = f", {number(figures.steady_samples_per_s, 2)} samples/s" if figures and figures.steady else ""
        return f"PyTorch trains natively on the {name}{rate}; {len(verdict.checks)} checks, none red."
    return f"It is not shown that PyTorch trains natively on {name}: {_first_finding(verdict)}"


def _first_finding(verdict: Verdict) -> str:
    required = [check for check in verdict.findings if check.required]
    return f"{required[0].id}: {required[0].found}" if required else "no finding"


def _limits(raw: Raw) -> Iterator[str]:
    yield "One process, one run: step times of identical runs can differ by a quarter, so the smoke is no benchmark."
    yield "Equal losses on repetition show that the run repeats; they are no proof against silent data corruption."
    if raw.training and raw.training.config.weights == "random":
        yield f"Weights: {raw.training.weights_note}; the losses say nothing about a trained model."
    if raw.training and raw.training.telemetry and raw.training.telemetry.missing:
        yield "Readings that are not available on this card or platform: " + ", ".join(raw.training.telemetry.missing)
    if raw.run.device == "cpu":
        yield "A rehearsal makes no claim about a GPU."
    yield "Unsigned evidence detects mistakes and casual edits; who wants to deceive can forge all of it."


# --- numbers ------------------------------------------------------------------------


def _numbers(raw: Raw) -> Iterator[Number]:
    if raw.training is not None and raw.steps:
        yield from _training_numbers(raw)
    if raw.ceilings is not None:
        yield from _sweep_numbers(raw.ceilings, raw.rows)


def _training_numbers(raw: Raw) -> Iterator[Number]:
    figures = throughput(raw.steps)
    steady = figures.steady
    why = None if steady else f"fewer than {STEADY_FROM} steps"
    spread = {"n": steady.n, "low": steady.q1, "high": steady.q3} if steady else {"reason": why}
    yield Number("first_step_s", figures.first_step_s, "s", "the first optimizer step, cold", n=1)
    yield Number("steady_step_s", steady.median if steady else None, "s",
                 f"median step time from step {STEADY_FROM} on, synchronised before and after; spread: quartiles", **spread)
    yield Number("steady_samples_per_s", figures.steady_samples_per_s, "samples/s",
                 f"counted samples over time of the steps from {STEADY_FROM} on", n=steady.n if steady else None, reason=why)
    yield Number("steady_tokens_per_s", figures.steady_tokens_per_s, "tokens/s",
                 "counted tokens without padding over the same time", n=steady.n if steady else None, reason=why)
    yield Number("smoke_samples_per_s", figures.total_samples_per_s, "samples/s",
                 "all counted samples over the time of all steps, the cold one included", n=figures.steps)
    yield Number("samples", figures.samples, "samples", "counted in the batches")
    yield Number("tokens", figures.tokens, "tokens", "counted in the batches, padding left out")
    losses = [step.loss for step in raw.steps if step.loss is not None]
    yield Number("first_loss", losses[0] if losses else None, "nats/token", "loss of the first step",
                 reason=None if losses else "no finite loss")
    yield Number("last_loss", losses[-1] if losses else None, "nats/token", "loss of the last step, not a mean",
                 reason=None if losses else "no finite loss")
    is_cuda = raw.run.device == "cuda"
    why_not = None if is_cuda else "a CPU run has no GPU memory"
    yield Number("peak_memory_bytes", figures.peak_memory_bytes, "B", "most memory torch had allocated in a step", reason=why_not)
    powers = [s.power_w for s in in_window(raw.steps, raw.telemetry) if s.power_w is not None]
    yield Number("max_power_w", max(powers, default=None), "W", "highest power reading during the steps",
                 n=len(powers) or None, reason=None if powers else "not available here")
    profile = raw.training.profile
    if profile and profile.device_time_s is not None and profile.step_time_s:
        yield Number("kernel_share", profile.device_time_s / profile.step_time_s if is_cuda else None, "1",
                     "kernel time over wall time of one profiled step", n=1, reason=None if is_cuda else "a CPU run")


def _sweep_numbers(ceilings: Ceilings, rows: Iterable[Row]) -> Iterator[Number]:
    for dtype, rate in ceilings.matmul_flop_per_s.items():
        yield Number(f"matmul_{dtype}_flop_per_s", rate, "FLOP/s",
                     f"measured: square product {ceilings.matmul_shape.get(dtype, '')}, random numbers")
    for dtype, peak in ceilings.datasheet_flop_per_s.items():
        yield Number(f"peak_{dtype}_flop_per_s", peak, "FLOP/s", "the maker's datasheet: dense, for this card")
    yield Number("copy_bytes_per_s", ceilings.copy_bytes_per_s, "B/s", "measured: a copy on the device, read and write counted",
                 reason=None if ceilings.copy_bytes_per_s else "not measured")
    good = [row for row in rows if row.tokens_per_s]
    best = max(good, key=lambda row: row.tokens_per_s, default=None)
    if best is None:
        yield Number("best_tokens_per_s", None, "tokens/s", "best point of the sweep", reason="no point could be measured")
        return
    where = f"best point of the sweep: batch {best.batch_size} × {best.seq_len}, {best.dtype}, engine {best.engine}"
    yield Number("best_tokens_per_s", best.tokens_per_s, "tokens/s", where, n=len(best.block_step_s))
    limit = floor_s(best, ceilings)
    share = limit / best.step_time_s if limit else None
    is_possible = share is not None and share <= 1
    yield Number("best_floor_ratio", share if is_possible else None, "1",
                 "least time that the measured ceilings allow, over the measured step time, at that point",
                 reason=None if is_possible else "a ceiling is not known, or its reading was disturbed")
    for of in ("measured", "datasheet"):
        share = mfu(best, ceilings, of=of)
        reason = None if share is not None else f"no {of} peak for this card and precision"
        if of == "measured" and share is not None and share > 1:
            # Something else used the machine while the ceiling was measured.
            share, reason = None, f"the step reached {number(share)} of the measured peak: that reading was disturbed"
        yield Number(f"best_mfu_{of}", share, "1", f"model FLOP/s at that point over the {of} peak", reason=reason)
    yield Number("sweep_points", len(list(rows)), "points", f"{len(good)} measured, the others failed or did not fit")



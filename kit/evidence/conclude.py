"""From the raw files of a bundle to what its report says, by arithmetic and the judges alone.

`kit report` writes the result as evidence.json; `kit verify` computes it again and compares.
Nothing of the report's own words or numbers is read here, only facts/ and raw/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kit.evidence.control import control_check
from kit.evidence.manifest import Entry, root
from kit.evidence.model import COMPLETE, SCHEMA_VERSION, Evidence, Promise
from kit.evidence.numbers import numbers
from kit.evidence.ranks import rank_checks, scaling_numbers
from kit.evidence.raw import Raw, parsed, read
from kit.gpu.specs import peak_flop_per_s
from kit.gpu.verdict import judge, still_there
from kit.records import CLAIMS, Check, Outcome, Verdict, loads, worst
from kit.sweep.losses import losses_check
from kit.train.config import DATASHEET_DTYPES
from kit.train.metrics import throughput
from kit.train.verdict import judge_training
from kit.units import number


def conclude(files: Mapping[str, bytes]) -> Evidence:
    """The whole evidence of the files of a bundle, by their paths. Raises BundleInvalid where one cannot be read."""
    raw = read(files)
    checks = (*_checks(raw), *rank_checks(files), _sources(files), *_privacy(files))
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
        numbers=(*numbers(raw), *scaling_numbers(files)),
        notebooks=run.notebooks,
        headline=_headline(raw, verdict),
        limits=tuple(_limits(raw)),
    )


# --- checks -------------------------------------------------------------------------


def _checks(raw: Raw) -> Iterator[Check]:
    if raw.begin is None:
        yield Check("environment.facts", Outcome.INCONCLUSIVE, "the machine was not looked at", "facts/begin.json")
    else:
        yield from judge(raw.begin, raw.run.expectation).checks
        yield still_there(raw.begin, raw.end)
    if raw.training is None:
        yield Check(
            "learning.ran",
            Outcome.INCONCLUSIVE,
            raw.run.reason or "no training was recorded",
            "a training run",
            "see the first red check",
        )
    else:
        dtype = DATASHEET_DTYPES[raw.training.config.dtype]
        peak = peak_flop_per_s(raw.training.device_name, dtype)
        yield from judge_training(raw.training, raw.steps, raw.telemetry, peak_flop_per_s=peak)
        yield _same_device(raw)
    compared = [record for record in (raw.losses, raw.bench.losses if raw.bench else None) if record]
    if compared:
        measured = [(row.engine, row.dtype) for row in raw.rows if row.outcome == "ok"]
        measured += [(run.engine, run.dtype) for run in raw.bench.runs] if raw.bench else []
        yield losses_check(compared, measured, is_cuda=raw.run.device == "cuda")
    yield control_check(raw.control)
    yield _notebooks(raw)


def _sources(files: Mapping[str, bytes]) -> Check:
    """Binds the verdict to the very bytes it follows from: one hash over all of facts/ and raw/."""
    entries = [Entry.of(name, data) for name, data in files.items() if name.startswith(("facts/", "raw/"))]
    return Check(
        "integrity.sources",
        Outcome.PASS,
        f"{len(entries)} files under facts/ and raw/",
        "the files from which everything else here follows",
        values={"root": root(entries)},
    )


def _privacy(files: Mapping[str, bytes]) -> Iterator[Check]:
    """What the last look for private values took out; nothing where it found none."""
    if "raw/privacy.json" in files:
        hits = parsed("raw/privacy.json", lambda: loads(files["raw/privacy.json"])["hits"])
        found = "; ".join(sorted({f"{hit['kind']} in {hit['file']}" for hit in hits}))
        yield Check(
            "integrity.privacy",
            Outcome.FAIL,
            f"taken out: {found}",
            "no private value in a report",
            "look where this value comes from and run again",
        )


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
    return Check(
        "native.device",
        outcome,
        f"{config.device}: {found}",
        expected,
        "" if is_same else "the run used another device than the one that was checked",
    )


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
    return Check(
        "integrity.notebooks",
        Outcome.PASS if is_good else Outcome.FAIL,
        found,
        "every notebook ran to its final record",
        "" if is_good else "repair the first failing cell",
    )


# --- words --------------------------------------------------------------------------

_PROMISES = (
    ("torch.cuda.is_available() is true, and a kernel really ran", ("environment.cuda_starts", "native.kernel_ran")),
    (
        "the expected GPU is detected by two independent witnesses",
        ("environment.two_witnesses", "environment.expected_gpu", "native.device", "native.ranks_devices"),
    ),
    (
        "training runs on the device: every parameter, gradient, optimizer state and batch",
        ("native.placement", "native.kernels", "native.ranks_placement", "native.ranks_kernels"),
    ),
    (
        "GPU memory is allocated during training, sampled in the timed window",
        ("native.driver_view", "native.ranks_driver_view"),
    ),
    (
        "the evidence is saved, complete, and can be verified by others",
        ("integrity.notebooks", "integrity.steps_complete"),
    ),
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

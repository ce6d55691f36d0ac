"""From the raw files of a bundle to what its report says, by arithmetic and the judges alone.

`kit report` writes the result as evidence.json; `kit verify` computes it again and compares.
Nothing of the report's own words or numbers is read here, only facts/ and raw/.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence

from kit.evidence.contents import COMPLETE, SCHEMA_VERSION, Evidence, Number, Promise, Raw, parsed, read
from kit.evidence.manifest import Entry, root
from kit.gpu.judge_machine import Expectation, judge, still_there
from kit.records import CLAIMS, Check, Outcome, Verdict, loads, worst
from kit.sweep.table import Ceilings, Row, floor_s, losses_check, mfu, words
from kit.train.judge_training import in_window, judge_training
from kit.train.steps import STEADY_FROM, ControlRecord, throughput
from kit.units import number, spread

# The negative control: a training that claims the GPU and silently runs on the CPU.
#
# A child process with every GPU hidden (see `kit.train.control`) trains a toy model on
# the CPU, and its records say `device=cuda`, as a script with a silent fallback would. The
# judges that pass the real run have to fail this one. Where they do not, the detector is
# broken and the report is INVALID.

# What a bundle may hold beyond the core's files: by the file that shows it, who judges it and who counts it.
PARTS = {
    "raw/ranks.json": ("kit.extras.scale.judge_ranks:rank_checks", None),
    "raw/scaling.json": (None, "kit.extras.scale.judge_ranks:scaling_numbers"),
}

# The checks that have to turn red, each by itself, for the control to count.
MUST_FAIL = ("native.placement", "native.kernels")


def judge_environment(record: ControlRecord) -> Verdict:
    return judge(record.facts, Expectation(device="cuda"))


def judge_control(record: ControlRecord) -> Verdict:
    """The same judges as for the real run."""
    environment = judge_environment(record)
    return Verdict.of((*environment.checks, *judge_training(record.run, record.steps, ())), environment.diagnosis)


def control_check(record: ControlRecord | None) -> Check:
    """INVALID where the control did not turn red: then no other PASS of this report means anything."""
    expected = "a training that claims cuda and runs on the CPU with the GPU hidden comes out FAIL"
    if record is None:
        return Check(
            "integrity.negative_control", Outcome.INCONCLUSIVE, "not run", expected,
            "python -m kit report, whose smoke notebook runs it",
        )  # fmt: skip
    verdict, environment = judge_control(record), judge_environment(record)
    by_id = {check.id: check for check in verdict.checks}
    outcomes = {id: check.outcome for id, check in by_id.items()}
    is_red = environment.outcome is Outcome.FAIL and all(outcomes.get(id) is Outcome.FAIL for id in MUST_FAIL)
    # For the right reason: it was asked for the GPU, did work, and the work was seen on the CPU.
    is_red = is_red and record.run.config.device == "cuda" and bool(record.steps)
    is_red = is_red and bool(by_id["native.kernels"].values.get("cpu_products"))
    found = f"{verdict.outcome} ({verdict.diagnosis}); environment {environment.outcome}, "
    found += ", ".join(f"{id} {outcomes.get(id)}" for id in MUST_FAIL)
    return Check(
        "integrity.negative_control", Outcome.PASS if is_red else Outcome.INVALID, found, expected,
        "" if is_red else "the detector is broken on this machine: do not trust this report",
        values={"seconds": record.seconds},
    )  # fmt: skip


# The numbers of a report, each with its unit, its definition and from how many samples.


def numbers(raw: Raw) -> Iterator[Number]:
    if raw.training is not None and raw.steps:
        yield from _training_numbers(raw)
    if raw.ceilings is not None:
        yield from _sweep_numbers(raw.ceilings, raw.rows)
    for record in (raw.losses,) if raw.losses else ():
        for row in record.compared:
            yield Number(
                f"loss_difference_{row.engine}_{row.dtype}",
                record.difference(row),
                "nats/token",
                "largest difference of the engine's first losses from the plain loop's in float32",
                n=len(row.losses),
                reason="a loss is not finite" if record.difference(row) is None else None,
            )
    for run in raw.bench.warm if raw.bench else ():
        yield Number(
            f"short_run_{run.engine}_training_s",
            run.training_s,
            "s",
            f"{len(run.losses)} steps in a fresh process as the Trainer counts them, start of training included, "
            f"{run.dtype}, second run",
            n=1,
        )
        yield Number(
            f"short_run_{run.engine}_process_s", run.process_s, "s", "the same from the start of the process", n=1
        )


def _training_numbers(raw: Raw) -> Iterator[Number]:
    figures = throughput(raw.steps)
    steady = figures.steady
    why = None if steady else f"fewer than {STEADY_FROM} steps"
    spread = {"n": steady.n, "low": steady.q1, "high": steady.q3} if steady else {"reason": why}
    yield Number("first_step_s", figures.first_step_s, "s", "the first optimizer step, cold", n=1)
    yield Number(
        "steady_step_s",
        steady.median if steady else None,
        "s",
        f"median step time from step {STEADY_FROM} on, synchronised before and after; spread: quartiles",
        **spread,
    )
    yield Number(
        "steady_samples_per_s",
        figures.steady_samples_per_s,
        "samples/s",
        f"counted samples over time of the steps from {STEADY_FROM} on",
        n=steady.n if steady else None,
        reason=why,
    )
    yield Number(
        "steady_tokens_per_s",
        figures.steady_tokens_per_s,
        "tokens/s",
        "counted tokens without padding over the same time",
        n=steady.n if steady else None,
        reason=why,
    )
    yield Number(
        "smoke_samples_per_s",
        figures.total_samples_per_s,
        "samples/s",
        "all counted samples over the time of all steps, the cold one included",
        n=figures.steps,
    )
    yield Number("samples", figures.samples, "samples", "counted in the batches")
    yield Number("tokens", figures.tokens, "tokens", "counted in the batches, padding left out")
    losses = [step.loss for step in raw.steps if step.loss is not None]
    yield Number(
        "first_loss",
        losses[0] if losses else None,
        "nats/token",
        "loss of the first step",
        reason=None if losses else "no finite loss",
    )
    yield Number(
        "last_loss",
        losses[-1] if losses else None,
        "nats/token",
        "loss of the last step, not a mean",
        reason=None if losses else "no finite loss",
    )
    is_cuda = raw.run.device == "cuda"
    why_not = None if is_cuda else "a CPU run has no GPU memory"
    yield Number(
        "peak_memory_bytes", figures.peak_memory_bytes, "B", "most memory torch had allocated in a step", reason=why_not
    )
    powers = [s.power_w for s in in_window(raw.steps, raw.telemetry) if s.power_w is not None]
    yield Number(
        "max_power_w",
        max(powers, default=None),
        "W",
        "highest power reading during the steps",
        n=len(powers) or None,
        reason=None if powers else "not available here",
    )
    profile = raw.training.profile
    if profile and profile.device_time_s is not None and profile.step_time_s:
        yield Number(
            "kernel_share",
            profile.device_time_s / profile.step_time_s if is_cuda else None,
            "1",
            "kernel time over wall time of one profiled step",
            n=1,
            reason=None if is_cuda else "a CPU run",
        )


def _sweep_numbers(ceilings: Ceilings, rows: Sequence[Row]) -> Iterator[Number]:
    for dtype, rate in ceilings.matmul_flop_per_s.items():
        yield Number(
            f"matmul_{dtype}_flop_per_s",
            rate,
            "FLOP/s",
            f"measured: {_product(ceilings.matmul_shape.get(dtype, ''))}, random numbers",
        )
    for dtype, peak in ceilings.datasheet_flop_per_s.items():
        yield Number(f"peak_{dtype}_flop_per_s", peak, "FLOP/s", "the maker's datasheet: dense, for this card")
    yield Number(
        "copy_bytes_per_s",
        ceilings.copy_bytes_per_s,
        "B/s",
        "measured: a copy on the device, read and write counted",
        reason=None if ceilings.copy_bytes_per_s else "not measured",
    )
    for name, value, unit, how in (
        (
            "attention_bfloat16_flop_per_s",
            ceilings.attention_flop_per_s,
            "FLOP/s",
            f"measured: causal attention, forward and backward, {ceilings.attention_shape}",
        ),
        ("graph_launch_s", ceilings.graph_launch_s, "s", "measured: one of a thousand small kernels in a CUDA graph"),
    ):
        if value is not None:
            yield Number(name, value, unit, how)
    good = [row for row in rows if row.tokens_per_s]
    best = max(good, key=lambda row: row.tokens_per_s, default=None)
    if best is None:
        yield Number(
            "best_tokens_per_s", None, "tokens/s", "best point of the sweep", reason="no point could be measured"
        )
        return
    where = f"best point of the sweep: batch {best.batch_size} × {best.seq_len}, {best.dtype}, engine {best.engine}"
    yield Number("best_tokens_per_s", best.tokens_per_s, "tokens/s", where, n=len(best.block_step_s))
    limit = floor_s(best, ceilings)
    share = limit / best.step_time_s if limit else None
    is_possible = share is not None and share <= 1
    yield Number(
        "best_floor_ratio",
        share if is_possible else None,
        "1",
        "least time that the measured ceilings allow, over the measured step time, at that point",
        reason=None if is_possible else "a ceiling is not known, or its reading was disturbed",
    )
    for of in ("measured", "datasheet"):
        share = mfu(best, ceilings, of=of)
        reason = None if share is not None else f"no {of} peak for this card and precision"
        if of == "measured" and share is not None and share > 1:
            # Something else used the machine while the ceiling was measured.
            share, reason = None, f"the step reached {number(share)} of the measured peak: that reading was disturbed"
        yield Number(f"best_mfu_{of}", share, "1", f"model FLOP/s at that point over the {of} peak", reason=reason)
    for row in rows:
        figures = spread(row.block_step_s)
        low, high, n = (figures.q1, figures.q3, figures.n) if figures else (None, None, None)
        yield Number(
            f"step_{row.batch_size}x{row.seq_len}_{row.dtype}_{row.engine}_s",
            row.step_time_s,
            "s",
            f"{words(row, ceilings)}; spread: quartiles",
            n=n,
            low=low,
            high=high,
            reason=None if figures else row.reason or row.outcome,
        )
    yield Number("sweep_points", len(rows), "points", f"{len(good)} measured, the others failed or did not fit")


def _product(shape: str) -> str:
    return f"{'square ' if len(set(shape.split(' × '))) == 1 else ''}product {shape}"


def conclude(files: Mapping[str, bytes]) -> Evidence:
    """The whole evidence of the files of a bundle, by their paths. Raises BundleInvalid where one cannot be read."""
    raw = read(files)
    checks = (*_checks(raw), *_parts(files, 0), _sources(files), *_privacy(files))
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
        numbers=(*numbers(raw), *_parts(files, 1)),
        notebooks=run.notebooks,
        headline=_headline(raw, verdict),
        limits=tuple(_limits(raw)),
    )


def _parts(files: Mapping[str, bytes], which: int) -> Iterator:
    """What the wings of the house make of their files. They are imported only where such a file is there."""
    for name, doors in PARTS.items():
        if name in files and doors[which] is not None:
            module, _, function = doors[which].partition(":")
            yield from getattr(importlib.import_module(module), function)(files)


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
        yield from judge_training(raw.training, raw.steps, raw.telemetry)
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

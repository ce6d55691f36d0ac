"""Did this run train, natively on the device it names? Decided from records alone.

Every check compares a measured value with a stated limit; the configuration is never
evidence. The same function judges the run, a rehearsal on the CPU, and the negative
control, which must come out FAIL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kit.records import Check, Outcome
from kit.train.config import TrainConfig
from kit.train.flops import step_flop
from kit.train.metrics import StepRecord, TelemetrySample, TrainingRun, throughput
from kit.units import memory, number, percent, quantity, seconds

# Kernel time as a share of the profiled step. A small batch leaves a fast card idle most of
# the time (35 % busy at 4 × 64 on an H100, eager), the profiler slows the host further, and a
# run on the CPU has none at all.
MIN_KERNEL_SHARE = 0.05
# Bytes copied between host and device in one step: the batch and a few scalars.
COPY_BUDGET_BYTES = 1_000_000
# Largest relative difference of a loss from the CPU's float32 loss at the same step.
LOSS_LIMITS = {"float32": 1e-4, "tf32": 1e-3, "bfloat16": 2e-3}
MIN_WINDOW_SAMPLES = 5
# The canary has to fall once a run is long enough to expect it.
CANARY_MIN_STEPS = 5
# Host clock and device clock over the same steps.
CLOCK_TOLERANCE = 0.05
# NVML clocksEventReasons, nvml.h: HW slowdown 0x8, SW thermal 0x20, HW thermal 0x40, HW power brake 0x80.
# Idle 0x1, application clocks 0x2 and SW power cap 0x4 are normal under load.
SLOWDOWN_BITS = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def judge_training(
    run: TrainingRun,
    steps: Sequence[StepRecord],
    samples: Sequence[TelemetrySample],
    *,
    peak_flop_per_s: float | None = None,
) -> tuple[Check, ...]:
    """All checks of a run. `peak_flop_per_s`: the card's dense peak for the run's dtype, None if unknown."""
    return (
        *_integrity(run, steps),
        *_native(run, steps, samples),
        *_learning(run, steps),
        *_throughput(run, steps, samples, peak_flop_per_s),
    )


def _check(id: str, is_good: bool | None, found: str, expected: str, todo: str = "", **more) -> Check:
    """None means that the evidence is missing."""
    outcome = {True: Outcome.PASS, False: Outcome.FAIL, None: Outcome.INCONCLUSIVE}[is_good]
    return Check(id, outcome, found, expected, "" if is_good else todo, **more)


def _gpu_check(config: TrainConfig, *args, **more) -> Check:
    """A check that makes a claim about a GPU: a rehearsal passes it as REHEARSAL, or lacks it."""
    check = _check(*args, **more)
    if config.device == "cuda" or check.outcome is Outcome.FAIL:
        return check
    return Check(check.id, Outcome.REHEARSAL, check.found, check.expected, "", check.values, check.required)


# --- integrity ----------------------------------------------------------------------


def _integrity(run: TrainingRun, steps: Sequence[StepRecord]) -> Iterator[Check]:
    config = run.config
    numbers = [step.step for step in steps]
    is_complete = numbers == list(range(1, config.steps + 1)) and run.error is None
    yield _check(
        "integrity.steps_complete",
        is_complete,
        f"{len(steps)} of {config.steps} steps recorded" + (f"; {run.error}" if run.error else ""),
        f"steps 1 to {config.steps}, each once, and no error",
        "read the error and run again",
    )
    ends = [step.started_s + step.step_time_s for step in steps]
    is_ordered = all(step.step_time_s > 0 for step in steps) and all(
        end <= step.started_s + 1e-6 for end, step in zip(ends, steps[1:])
    )
    yield _check(
        "integrity.times_ordered",
        is_ordered and bool(steps),
        "each step starts after the one before it ended" if is_ordered else "step times overlap or are not positive",
        "positive step times in order",
        "the records are broken: run again",
    )


# --- native -------------------------------------------------------------------------


def _native(run: TrainingRun, steps, samples) -> Iterator[Check]:
    yield _placement(run, steps)
    yield _kernels(run)
    yield _driver_view(run, steps, samples)
    yield _precision(run)
    yield _cpu_agreement(run, steps)
    yield _replay(run, steps)
    yield _hardware(run)


def _placement(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    expected = f"every parameter, buffer, gradient, optimizer state and batch on {run.config.device}"
    audits = run.audits
    strays = sorted({name for audit in audits for name in audit.strays})
    on_device = [audit.counted.get(run.config.device, 0) for audit in audits]
    wanted = {1, (len(steps) + 1) // 2, len(steps)} if steps else set()
    if any(audit.expected_device != run.config.device for audit in audits):
        strays.append(f"audited against {audits[0].expected_device}")
    is_good: bool | None = not strays and all(on_device)
    if is_good and not wanted <= {audit.step for audit in audits} or not audits:
        is_good = None
    found = f"{len(strays)} tensors elsewhere, first: {strays[0]}" if strays else (
        f"{min(on_device, default=0)} tensors on {run.config.device} at steps "
        + ", ".join(str(audit.step) for audit in audits)
    )
    return _gpu_check(
        run.config, "native.placement", is_good, found, expected,
        f"move it with .to({run.config.device!r}) before training",
        values={"strays": len(strays), "steps": [audit.step for audit in audits]},
    )


def _kernels(run: TrainingRun) -> Check:
    config, profile = run.config, run.profile
    layers = config.shape.n_layer
    expected = (
        f"kernels for at least {percent(MIN_KERNEL_SHARE)} of a step, at least {layers} matrix products on the "
        f"device, none on the CPU, at most {memory(COPY_BUDGET_BYTES)} copied"
    )
    todo = "run on an idle machine with torch's profiler working: python -m kit train"
    if profile is None or profile.error or not profile.step_time_s or profile.device_time_s is None:
        reason = profile.error if profile and profile.error else "no profiled step"
        return _gpu_check(config, "native.kernels", None, reason, expected, todo)
    share = profile.device_time_s / profile.step_time_s
    on_cpu = sum(profile.cpu_operators.values())
    problems = [
        f"kernel time {percent(share)} of the step" if share < MIN_KERNEL_SHARE else "",
        f"{profile.matmul_kernels} matrix kernels" if (profile.matmul_kernels or 0) < layers else "",
        f"{on_cpu} matrix products on the CPU ({', '.join(profile.cpu_operators)})" if on_cpu else "",
        f"{memory(profile.copied_bytes)} copied" if (profile.copied_bytes or 0) > COPY_BUDGET_BYTES else "",
    ]
    problems = [text for text in problems if text]
    found = "; ".join(problems) or (
        f"kernel time {percent(share)} of the profiled step, {profile.matmul_kernels} matrix kernels, "
        f"{profile.copies} copies"
    )
    if config.device == "cpu":
        return _gpu_check(config, "native.kernels", True, "the CPU did the work, as asked for", expected)
    return _check(
        "native.kernels", not problems, found, expected, "look at raw/profile.json for what ran where",
        values={"kernel_share": share, "matmul_kernels": profile.matmul_kernels, "cpu_matmuls": on_cpu},
    )


def _driver_view(run: TrainingRun, steps, samples) -> Check:
    """Memory on the card, seen by the driver while the steps ran; utilisation is never a witness."""
    telemetry, config = run.telemetry, run.config
    expected = (
        f"at least {MIN_WINDOW_SAMPLES} readings during the steps, bound to the device by UUID, that show the "
        "memory torch allocated and power or clock above idle"
    )
    todo = "install nvidia-ml-py and run again with a longer run: python -m kit train --steps 100"
    if telemetry is None or telemetry.error or not steps:
        reason = (telemetry.error if telemetry else None) or "no telemetry"
        return _gpu_check(config, "native.driver_view", None, reason, expected, todo)
    window = in_window(steps, samples)
    peak = max((step.memory_peak_bytes or 0 for step in steps), default=0)
    seen = _memory_seen(telemetry, window)
    busier = _busier_than_idle(telemetry.idle, window)
    found = (
        f"{len(window)} readings during the steps; memory {memory(seen)} for {memory(peak)} allocated by torch; "
        + {True: "power or clock above idle", False: "power and clock as when idle", None: "power and clock not available here"}[busier]
        + ("" if telemetry.is_bound_by_uuid else "; device not identified")
    )
    is_good: bool | None = True
    if seen is None or len(window) < MIN_WINDOW_SAMPLES or not telemetry.is_bound_by_uuid:
        is_good = None
    elif seen < 0.5 * peak or busier is False:
        is_good = None if seen >= 0.5 * peak else False
    return _gpu_check(
        config, "native.driver_view", is_good, found, expected, todo,
        values={"readings": len(window), "memory_seen_bytes": seen, "memory_allocated_bytes": peak},
    )


def in_window(steps: Sequence[StepRecord], samples: Sequence[TelemetrySample]) -> list[TelemetrySample]:
    """The samples taken between the start of the first and the end of the last step."""
    if not steps:
        return []
    end = steps[-1].started_s + steps[-1].step_time_s
    return [sample for sample in samples if steps[0].started_s <= sample.at_s <= end]


def _memory_seen(telemetry, window) -> int | None:
    own = [sample.own_memory_bytes for sample in window if sample.own_memory_bytes is not None]
    if own:
        return max(own)
    used = [sample.memory_used_bytes for sample in window if sample.memory_used_bytes is not None]
    if not used or telemetry.idle is None or telemetry.idle.memory_used_bytes is None:
        return None
    return max(used) - telemetry.idle.memory_used_bytes


def _busier_than_idle(idle: TelemetrySample | None, window) -> bool | None:
    verdicts = []
    for name, factor in (("power_w", 1.05), ("clock_mhz", 1.05)):
        values = [getattr(sample, name) for sample in window if getattr(sample, name) is not None]
        before = getattr(idle, name) if idle else None
        if values and before:
            verdicts.append(max(values) > factor * before)
    return any(verdicts) if verdicts else None


def _precision(run: TrainingRun) -> Check:
    found = run.precision
    expected = f"matrix products of class {run.config.dtype}"
    if found is None:
        return _gpu_check(run.config, "native.precision", None, "not measured", expected, "run again")
    return _gpu_check(
        run.config, "native.precision", found.observed == run.config.dtype,
        f"{found.observed}: relative error {found.relative_error:.1e} against float64 at {found.size} × {found.size}, "
        f"result in {found.output_dtype}",
        expected, "look for code or a variable that changes torch's matmul precision",
        values={"relative_error": found.relative_error},
    )


def _cpu_agreement(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    limit = LOSS_LIMITS[run.config.dtype]
    reference = run.cpu_reference
    expected = f"losses within {limit:g} (relative) of the same steps on the CPU in float32"
    if reference is None or reference.skipped or not reference.losses:
        reason = reference.skipped if reference and reference.skipped else "no CPU reference"
        return _gpu_check(run.config, "native.cpu_agreement", None, reason, expected, "run with the CPU reference")
    pairs = [(step.loss, loss) for step, loss in zip(steps, reference.losses)]
    gaps = [math.inf if ours is None else abs(ours - theirs) / abs(theirs) for ours, theirs in pairs if theirs]
    worst = max(gaps, default=math.inf)
    return _gpu_check(
        run.config, "native.cpu_agreement", worst <= limit,
        f"largest relative difference {worst:.1e} over {len(gaps)} steps", expected,
        "the device computes other numbers than the CPU: compare step by step in raw/steps.jsonl",
        values={"steps": len(gaps), "limit": limit} | ({"largest": worst} if math.isfinite(worst) else {}),
    )


def _replay(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    replay = run.replay
    expected = "the same seed gives the same losses and the same matrix product, bit for bit"
    if replay is None or replay.skipped:
        reason = replay.skipped if replay else "not replayed"
        return _gpu_check(run.config, "native.replay", None, reason, expected, "run again")
    unequal = [step.step for step, loss in zip(steps, replay.losses) if step.loss != loss]
    is_good = not unequal and len(replay.losses) == len(steps) and replay.matmul_is_equal is True
    found = f"{len(replay.losses)} of {len(steps)} losses repeated, " + (
        f"first difference at step {unequal[0]}" if unequal else "all equal"
    ) + ("" if replay.matmul_is_equal else "; a repeated matrix product differed")
    return _gpu_check(
        run.config, "native.replay", is_good, found, expected,
        "a result that does not repeat points to hardware, overclocking or non-deterministic kernels",
        values={"unequal_steps": len(unequal)},
    )


def _hardware(run: TrainingRun) -> Check:
    telemetry = run.telemetry
    expected = "no uncorrected memory error and no pending row remap during the run"
    before, after = (telemetry.counters_before, telemetry.counters_after) if telemetry else ({}, {})
    grown = {name: after[name] - before[name] for name in after if name in before and after[name] > before[name]}
    bad = {name: by for name, by in grown.items() if "uncorrected" in name}
    bad |= {name: value for name, value in after.items() if "pending" in name and value}
    if not after:
        return _gpu_check(run.config, "native.hardware", None, "error counters are not available here", expected,
                          "nothing: cards without ECC have none", required=False)
    found = ", ".join(f"{name} +{by}" for name, by in {**grown, **bad}.items()) or f"{len(after)} counters unchanged"
    return _gpu_check(
        run.config, "native.hardware", not bad, found, expected,
        "stop using this card until nvidia-smi -q -d ECC,ROW_REMAPPER is clean after a reset", values=bad,
    )


# --- learning -----------------------------------------------------------------------


def _learning(run: TrainingRun, steps: Sequence[StepRecord]) -> Iterator[Check]:
    config = run.config
    broken = [step.step for step in steps if step.loss is None or step.grad_norm is None]
    yield _check(
        "learning.finite", not broken and bool(steps),
        f"loss or gradient not finite at steps {broken[:5]}" if broken else f"{len(steps)} finite losses and gradient norms",
        "a finite loss and gradient norm at every step", "lower the learning rate, or check the data",
    )
    skipped = [step.step for step in steps if not step.is_applied]
    yield _check(
        "learning.applied", not skipped and bool(steps),
        f"{len(steps) - len(skipped)} of {config.steps} optimizer steps applied", f"{config.steps} applied",
        "a loss scaler or a swallowed error skips steps",
    )
    empty = [step.step for step in steps if step.supervised_tokens < 1]
    yield _check(
        "learning.supervised_tokens", not empty and bool(steps),
        f"no supervised token at steps {empty[:5]}" if empty
        else f"{sum(step.supervised_tokens for step in steps)} supervised tokens counted",
        "at least one supervised token in every step", "check labels and padding",
    )
    yield _distinct_batches(run, steps)
    yield from _movement(run, steps)


def _distinct_batches(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    seen = 0
    first_epoch = []
    for step in steps:
        seen += step.samples
        if seen <= run.dataset_rows:
            first_epoch.append(step.batch_sha256)
    repeated = len(first_epoch) - len(set(first_epoch))
    return _check(
        "learning.batches", repeated == 0 and bool(steps),
        f"{repeated} batches repeated within one pass over the data" if repeated
        else f"{len(first_epoch)} batches of the first pass, all different",
        "no batch twice in one pass", "look for a loader that swallows errors",
    )


def _movement(run: TrainingRun, steps: Sequence[StepRecord]) -> Iterator[Check]:
    learning = run.learning
    if learning is None:
        for name in ("moved", "trainable", "canary"):
            yield _check(f"learning.{name}", None, "not measured", "measured before and after", "run again")
        return
    is_moved = learning.moved_tensors == learning.trainable_tensors and learning.max_change > 0
    yield _check(
        "learning.moved", is_moved,
        f"{learning.moved_tensors} of {learning.trainable_tensors} tensors changed, largest change "
        f"{learning.max_change:.1e}" + (f"; unchanged: {learning.unmoved[0]}" if learning.unmoved else ""),
        "every trainable tensor changed", "check the learning rate, frozen layers and the optimizer's parameters",
        values={"max_change": learning.max_change},
    )
    yield _check(
        "learning.trainable", learning.trainable_parameters == learning.total_parameters > 0,
        f"{learning.trainable_parameters:,} of {learning.total_parameters:,} parameters trainable",
        "all of them: this run declares full training", "set requires_grad on all parameters",
    )
    before, after = learning.canary_before, learning.canary_after
    has_fallen = None if before is None or after is None else after < before
    if has_fallen is False and len(steps) < CANARY_MIN_STEPS:
        has_fallen = None
    yield _check(
        "learning.canary", has_fallen,
        f"loss of one fixed batch {number(before, 5)} before and {number(after, 5)} after {len(steps)} steps",
        "lower after than before (the losses of different batches may rise)",
        "train longer or with a larger learning rate",
        values={"before": before, "after": after},
    )


# --- throughput: its own claim, not required for the verdict ------------------------


def _throughput(run, steps, samples, peak_flop_per_s) -> Iterator[Check]:
    if run.config.device == "cpu":
        yield Check("throughput.rehearsal", Outcome.REHEARSAL, "a CPU run", "no claim about a GPU", required=False)
        return
    yield _undisturbed(run, steps, samples)
    yield _clocks_agree(run, steps)
    yield _plausible(run, steps, peak_flop_per_s)


def _undisturbed(run, steps, samples) -> Check:
    expected = "readings over the whole window, no other process on the card, no thermal or hardware slowdown"
    window = in_window(steps, samples)
    needed = max(MIN_WINDOW_SAMPLES, math.ceil(throughput(steps).window_s)) if steps else MIN_WINDOW_SAMPLES
    bits = 0
    for sample in window:
        bits |= sample.throttle_bits or 0
    slow = [name for bit, name in SLOWDOWN_BITS.items() if bits & bit]
    foreign = max((sample.foreign_processes or 0 for sample in window), default=0)
    problems = [
        f"{len(window)} readings, {needed} needed" if len(window) < needed else "",
        f"{foreign} other processes on the card" if foreign else "",
        ", ".join(slow),
    ]
    problems = [text for text in problems if text]
    telemetry = run.telemetry
    note = ""
    if telemetry and telemetry.power_limit_w and telemetry.power_limit_default_w:
        note = f"; power limit {telemetry.power_limit_w:.0f} W of {telemetry.power_limit_default_w:.0f} W"
    return _check(
        "throughput.undisturbed", None if problems else True,
        ("; ".join(problems) or f"{len(window)} readings, alone on the card, no slowdown") + note, expected,
        "stop other work on the card, let it cool, and run again", required=False, values={"throttle_bits": bits},
    )


def _clocks_agree(run, steps) -> Check:
    expected = f"host and device clocks agree within {percent(CLOCK_TOLERANCE)} over the timed steps"
    if run.device_window_s is None or not steps:
        return _check("throughput.clocks", None, "no device clock", expected, "run again", required=False)
    host = throughput(steps).window_s
    gap = abs(host - run.device_window_s) / host
    return _check(
        "throughput.clocks", gap <= CLOCK_TOLERANCE,
        f"host {seconds(host)}, device {seconds(run.device_window_s)}", expected,
        "the timing did not wait for the device", required=False, values={"gap": gap},
    )


def _plausible(run, steps, peak_flop_per_s) -> Check:
    expected = "no faster than the card's peak"
    figures = throughput(steps)
    if figures is None or figures.steady is None or peak_flop_per_s is None:
        reason = "the card's peak is not known" if figures and figures.steady else "no steady steps"
        return _check("throughput.plausible", None, reason, expected, "add the card's datasheet row", required=False)
    flop = step_flop(run.config.shape, batch_size=run.config.batch_size, seq_len=run.config.seq_len)
    rate = flop / figures.steady.minimum
    return _check(
        "throughput.plausible", rate <= peak_flop_per_s,
        f"{quantity(rate, 'FLOP/s')} in the fastest steady step", f"at most {quantity(peak_flop_per_s, 'FLOP/s')}",
        "the clock or the count is wrong", required=False, values={"flop_per_s": rate},
    )

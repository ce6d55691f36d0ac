"""May the figures of a run be called its speed? A claim of its own, not required for the verdict.

Heat, other users of the card and clocks that disagree spoil a figure, not the proof that the
device did the work. Nothing here demands a speed, except that it be possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kit.records import Check, Outcome
from kit.train.checks import LONGER, MIN_WINDOW_SAMPLES, check, in_window, uncovered
from kit.train.flops import step_flop
from kit.train.metrics import STEADY_FROM, StepRecord, TelemetrySample, TrainingRun, throughput
from kit.units import GiB, memory, percent, quantity, seconds

# Host clock and device clock over the same steps.
CLOCK_TOLERANCE = 0.05
# A wall clock that moved this much against the monotonic one was set, or the machine slept.
MAX_CLOCK_JUMP_S = 1.0
# A step can come near the peak of its dtype, but not this near.
PLAUSIBLE_SHARE = 0.95
# Waiting for batches longer than this share of the run makes its speed the loader's.
MAX_WAIT_SHARE = 0.2
# Memory that others hold on the card at the start: 10 % of it, or 2 GiB if less. A desktop stays below.
FOREIGN_SHARE, FOREIGN_BYTES = 0.1, 2 * GiB
# From Ampere on, matrix units compute in bfloat16 and TF32 (CUDA C++ Programming Guide, capabilities).
FIRST_WITH_BFLOAT16 = (8, 0)
# NVML clocksEventReasons, nvml.h: HW slowdown 0x8, SW thermal 0x20, HW thermal 0x40, HW power brake 0x80.
# Idle 0x1, application clocks 0x2 and SW power cap 0x4 are normal under load.
SLOWDOWN_BITS = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def speed_checks(
    run: TrainingRun,
    steps: Sequence[StepRecord],
    samples: Sequence[TelemetrySample],
    peak_flop_per_s: float | None,
) -> Iterator[Check]:
    if run.config.device == "cpu":
        yield Check("throughput.rehearsal", Outcome.REHEARSAL, "a CPU run", "no claim about a GPU", required=False)
        return
    yield _undisturbed(run, steps, samples)
    yield _clocks_agree(run, steps)
    yield _plausible(run, steps, peak_flop_per_s)
    yield _input(steps)
    yield _dtype(run)


def _undisturbed(run: TrainingRun, steps: Sequence[StepRecord], samples: Sequence[TelemetrySample]) -> Check:
    window = in_window(steps, samples)
    problems = [text for text in _disturbances(run, steps, window) if text]
    bits = _bits(window)
    found = "; ".join(problems) or f"{len(window)} readings, no slowdown"
    if not problems:
        found += ", alone on the card" if _foreign(window) == 0 else "; other processes: not available here"
    telemetry = run.telemetry
    if telemetry and telemetry.power_limit_w and telemetry.power_limit_default_w:
        found += f"; power limit {telemetry.power_limit_w:.0f} W of {telemetry.power_limit_default_w:.0f} W"
    return check(
        "throughput.undisturbed",
        None if problems else True,
        found,
        "readings over all of the steps, no other process on the card, no thermal or hardware slowdown, no profiler",
        settle=f"stop other work on the card, let it cool, then {LONGER}",
        required=False,
        values={"throttle_bits": bits, "readings": len(window)},
    )


def _disturbances(run: TrainingRun, steps: Sequence[StepRecord], window: Sequence[TelemetrySample]) -> Iterator[str]:
    figures = throughput(steps)
    needed = max(MIN_WINDOW_SAMPLES, math.ceil(figures.window_s)) if figures else MIN_WINDOW_SAMPLES
    yield f"{len(window)} readings, {needed} needed" if len(window) < needed else uncovered(steps, window)
    foreign = _foreign(window)
    yield f"{foreign} other processes on the card" if foreign else ""
    yield _foreign_memory(run)
    bits = _bits(window)
    yield ", ".join(name for bit, name in SLOWDOWN_BITS.items() if bits & bit)
    yield "a profiler ran during timed steps" if any(audit.is_profiled for audit in run.audits) else ""


def _bits(window: Sequence[TelemetrySample]) -> int:
    bits = 0
    for sample in window:
        bits |= sample.throttle_bits or 0
    return bits


def _foreign(window: Sequence[TelemetrySample]) -> int | None:
    counts = [sample.foreign_processes for sample in window if sample.foreign_processes is not None]
    return max(counts, default=None)


def _foreign_memory(run: TrainingRun) -> str:
    """Memory on the card before we came, and not ours: another user, or what a dead process left."""
    telemetry = run.telemetry
    idle = telemetry.idle if telemetry else None
    if idle is None or idle.memory_used_bytes is None or not telemetry.memory_total_bytes:
        return ""
    # A context of our own takes some hundreds of MiB that torch does not count.
    ours = idle.own_memory_bytes or (telemetry.reserved_before_bytes or 0)
    others = idle.memory_used_bytes - ours
    allowed = min(FOREIGN_BYTES, FOREIGN_SHARE * telemetry.memory_total_bytes)
    return f"{memory(others)} of the card in use by others before the run" if others > allowed else ""


def _clocks_agree(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    """A host that does not wait measures less time than the device needed. Where there are times of each
    step they decide; a window over all steps can hide it, because reading the loss waits as well."""
    expected = f"host and device clocks agree within {percent(CLOCK_TOLERANCE)}; no jump of the wall clock"
    figures = throughput(steps)
    timed = [step for step in steps if step.device_time_s is not None]
    if timed:
        host, device = sum(step.step_time_s for step in timed), sum(step.device_time_s or 0 for step in timed)
    elif figures and run.device_window_s is not None:
        host, device = figures.window_s, run.device_window_s
    else:
        return check("throughput.clocks", None, "no device clock", expected, required=False)
    gap = (device - host) / host if host > 0 else math.inf
    found = f"host {seconds(host)}, device {seconds(device)}"
    is_good: bool | None = abs(gap) <= CLOCK_TOLERANCE
    if not is_good and gap < 0:
        # A driver that queues work (Windows) starts late; the host's time is then too long, not too short.
        is_good, found = None, found + ": the device was done long before the host"
    jump = run.wall_window_s - figures.window_s if figures and run.wall_window_s is not None else 0.0
    if is_good and abs(jump) > MAX_CLOCK_JUMP_S:
        is_good, found = None, f"the wall clock jumped by {seconds(jump)} during the run"
    return check(
        "throughput.clocks",
        is_good,
        found,
        expected,
        todo="the timing did not wait for the device: synchronise before reading the clock",
        required=False,
        values={"gap": gap} if math.isfinite(gap) else {},
    )


def _plausible(run: TrainingRun, steps: Sequence[StepRecord], peak_flop_per_s: float | None) -> Check:
    figures = throughput(steps)
    if figures is None or figures.steady is None or peak_flop_per_s is None:
        reason = "the card's peak is not known" if figures and figures.steady else "no steady steps"
        return check(
            "throughput.plausible", None, reason, "no faster than the card's peak",
            settle="add the card's datasheet row" if figures and figures.steady else LONGER, required=False,
        )  # fmt: skip
    steady = [step for step in steps if step.step >= STEADY_FROM]
    if min(step.step_time_s for step in steady) <= 0:
        return check(
            "throughput.plausible",
            False,
            "a step that took no time",
            "positive step times",
            todo="the records are broken: run again",
            required=False,
        )
    # The last batch of a pass may be smaller; each step counts for the samples it had.
    rate = max(
        step_flop(run.config.shape, batch_size=step.samples, seq_len=run.config.seq_len) / step.step_time_s
        for step in steady
    )
    share = rate / peak_flop_per_s
    return check(
        "throughput.plausible",
        False if share > 1 else None if share > PLAUSIBLE_SHARE else True,
        f"{quantity(rate, 'FLOP/s')} in the fastest steady step, {percent(share)} of the card's peak",
        f"at most {percent(PLAUSIBLE_SHARE)} of {quantity(peak_flop_per_s, 'FLOP/s')}, the dense peak for this dtype",
        todo="impossible: the clock, the count or the name of the card is wrong",
        settle=LONGER,
        required=False,
        values={"flop_per_s": rate, "share_of_peak": share},
    )


def _input(steps: Sequence[StepRecord]) -> Check:
    expected = f"less than {percent(MAX_WAIT_SHARE)} of the run spent waiting for batches"
    waits = [step.wait_s for step in steps if step.wait_s is not None]
    if not waits:
        return check("throughput.input", None, "not recorded", expected, required=False)
    share = sum(waits) / (sum(waits) + sum(step.step_time_s for step in steps))
    return check(
        "throughput.input",
        True if share <= MAX_WAIT_SHARE else None,
        f"{percent(share)} of the time spent waiting for batches" + (": input bound" if share > MAX_WAIT_SHARE else ""),
        expected,
        settle="make loading faster: the figures are the loader's, not the device's",
        required=False,
        values={"wait_share": share},
    )


def _dtype(run: TrainingRun) -> Check:
    """bfloat16 runs on older cards too, by emulation: a true result at a speed that is not its own."""
    capability, dtype = run.compute_capability, run.config.dtype
    expected = f"matrix units for {dtype}"
    if dtype == "float32":
        return check("throughput.dtype", True, "float32 needs no special units", expected, required=False)
    if capability is None:
        return check("throughput.dtype", None, "compute capability not recorded", expected, required=False)
    shown = ".".join(map(str, capability))
    has_units = capability >= FIRST_WITH_BFLOAT16
    return check(
        "throughput.dtype",
        True if has_units else None,
        f"compute capability {shown} " + (f"has units for {dtype}" if has_units else f"emulates {dtype}"),
        expected,
        settle="python -m kit train --dtype float32",
        required=False,
    )

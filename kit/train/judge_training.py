"""Did this run train, natively on the device it names? Decided from records alone.

Every check compares a measured value with a stated limit; the configuration is never
evidence. The same function judges the run, a rehearsal on the CPU, and the negative
control, which must come out FAIL. `kit.train.judge_training` asks about the device, `kit.train.judge_training`
about the figures; here stand the run's wholeness and whether the model learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kit.records import Check, Outcome
from kit.train.config import TrainConfig, step_flop, weight_flop, weight_products
from kit.train.steps import (
    STEADY_FROM,
    KernelProfile,
    Learning,
    StepRecord,
    Telemetry,
    TelemetrySample,
    TrainingRun,
    throughput,
)
from kit.units import GiB, memory, number, percent, quantity, seconds

# How the judges of a training run say what they found; and which readings of the driver count.
#
# A check compares a measured value with a stated limit. Missing evidence is INCONCLUSIVE and
# names the command that would settle it; evidence that contradicts the claim is FAIL and names
# what to do about it.

# Fewer readings than this during the steps say nothing about them.
MIN_WINDOW_SAMPLES = 5
# The longest stretch of the steps without a reading: this share of it, or half a second if that is
# more. A sampling thread that died leaves a longer one.
MAX_GAP_SHARE, MAX_GAP_S = 0.3, 0.5
AGAIN = "python -m kit train"
LONGER = "python -m kit train --steps 100"


def check(
    id: str,
    is_good: bool | None,
    found: str,
    expected: str,
    *,
    todo: str = "",
    settle: str = AGAIN,
    values: Mapping[str, Any] | None = None,
    required: bool = True,
) -> Check:
    """is_good: None where the evidence is missing or too weak; then `settle`, a command, is what to do."""
    outcome = {True: Outcome.PASS, False: Outcome.FAIL, None: Outcome.INCONCLUSIVE}[is_good]
    then = {True: "", False: todo, None: settle}[is_good]
    return Check(id, outcome, found, expected, then, values or {}, required)


def gpu_check(config: TrainConfig, *args: Any, **more: Any) -> Check:
    """A check that makes a claim about a GPU. A rehearsal makes none, so nothing is missing there; what
    contradicts the run is FAIL on any device."""
    made = check(*args, **more)
    if config.device == "cuda" or made.outcome is Outcome.FAIL:
        return made
    return Check(made.id, Outcome.REHEARSAL, made.found, made.expected, "", made.values, made.required)


def in_window(steps: Sequence[StepRecord], samples: Sequence[TelemetrySample]) -> list[TelemetrySample]:
    """The samples taken between the start of the first and the end of the last step."""
    if not steps:
        return []
    end = steps[-1].started_s + steps[-1].step_time_s
    return [sample for sample in samples if steps[0].started_s <= sample.at_s <= end]


def uncovered(steps: Sequence[StepRecord], window: Sequence[TelemetrySample]) -> str:
    """Why these readings do not cover the steps; empty where they do."""
    if not steps:
        return "no steps"
    begin, end = steps[0].started_s, steps[-1].started_s + steps[-1].step_time_s
    if len(window) < MIN_WINDOW_SAMPLES:
        return f"{len(window)} readings during the steps, {MIN_WINDOW_SAMPLES} needed"
    times = [begin, *(sample.at_s for sample in window), end]
    gap = max(later - earlier for earlier, later in zip(times, times[1:]))
    if gap > max(MAX_GAP_SHARE * (end - begin), MAX_GAP_S):
        return f"no reading for {gap:.1f} s of {end - begin:.1f} s"
    return ""


# Did the device that the run names do the work? Witnesses that cannot be configured.
#
# Here: where the tensors are and which kernels ran. What the driver saw is in
# `kit.train.judge_training`, whether the numbers are right in `kit.train.judge_training`.

# Kernel time as a share of the profiled step. A small batch leaves a fast card idle most of the time
# (10 to 16 % busy at 4 × 64 on an H100, eager, under the profiler), and a slow host more so: less than
# this with all products on the device is too weak to conclude from, and no contradiction.
MIN_KERNEL_SHARE = 0.05
# Bytes between host and device in one step beside the batch itself (two int64 tensors): some scalars.
COPY_BUDGET_BYTES = 1_000_000
# The products' FLOP may miss this share of what the model needs.
FLOP_TOLERANCE = 0.01


def native_checks(run: TrainingRun, steps: Sequence[StepRecord], samples: Sequence[TelemetrySample]) -> Iterator[Check]:
    yield _placement(run, steps)
    yield _kernels(run)
    yield driver_view(run, steps, samples)
    yield precision(run)
    yield cpu_agreement(run, steps)
    yield replay(run, steps)
    yield hardware(run)


# --- placement ----------------------------------------------------------------------


def _placement(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    device, audits = run.config.device, run.audits
    # In the order they were found: parameters come first.
    strays = list(dict.fromkeys(name for audit in audits for name in audit.strays))
    strays += [f"audited against {audit.expected_device}" for audit in audits if audit.expected_device != device]
    on_device = [audit.counted.get(device, 0) for audit in audits]
    unseen = sorted({kind for audit in audits for kind in _unseen(audit.kinds)})
    wanted = {1, (len(steps) + 1) // 2, len(steps)} if steps else {1}
    is_good: bool | None = not strays and all(on_device)
    if is_good and (unseen or not wanted <= {audit.step for audit in audits}):
        is_good = None
    if strays:
        found = f"{len(strays)} tensors elsewhere, first: {strays[0]}"
    else:
        audited = ", ".join(str(audit.step) for audit in audits) or "none"
        found = f"{min(on_device, default=0)} tensors on {device} at steps {audited}"
        found += f"; no {' and no '.join(unseen)} seen" if unseen else ""
    return gpu_check(
        run.config,
        "native.placement",
        is_good,
        found,
        f"every parameter, buffer, gradient, optimizer state and batch on {device}, at the first, a middle "
        "and the last step",
        todo=f"move it with .to({device!r}) before training",
        values={"strays": len(strays), "steps": [audit.step for audit in audits]},
    )


def _unseen(kinds: dict[str, int]) -> list[str]:
    """What an audit looked for and found none of; a model may well have no buffers."""
    return [kind for kind in ("parameter", "gradient", "optimizer", "batch") if kinds and not kinds.get(kind)]


# --- kernels ------------------------------------------------------------------------


def _kernels(run: TrainingRun) -> Check:
    config, profile = run.config, run.profile
    needed = weight_products(config.shape)
    budget = _copy_budget(run)
    expected = (
        f"kernels for at least {percent(MIN_KERNEL_SHARE)} of a step, {needed} matrix products or more on "
        f"the device and none on the CPU, at most {memory(budget)} copied"
    )
    if config.device == "cpu":
        return gpu_check(config, "native.kernels", True, "the CPU did the work, as asked for", expected)
    if profile is None or profile.error or not profile.step_time_s or profile.device_time_s is None:
        reason = profile.error if profile and profile.error else "no profiled step"
        return check("native.kernels", None, reason, expected)
    share = profile.device_time_s / profile.step_time_s
    problems = list(_contradictions(run, profile, needed, budget))
    is_good: bool | None = not problems
    if is_good and share < MIN_KERNEL_SHARE:
        is_good = None
    found = "; ".join(problems[:2]) or (
        f"kernel time {percent(share)} of the profiled step, {profile.matmul_kernels} matrix kernels, "
        f"{profile.copies} copies"
    )
    return check(
        "native.kernels",
        is_good,
        found,
        expected,
        todo="look at profile in raw/training.json for what ran where, and move the rest to the device",
        settle="python -m kit train --batch-size 32",
        values={
            "kernel_share": share,
            "matmul_kernels": profile.matmul_kernels,
            "cpu_products": _cpu_products(profile),
            "copied_bytes": profile.copied_bytes,
        },
    )


def _contradictions(run: TrainingRun, profile: KernelProfile, needed: int, budget: int) -> Iterator[str]:
    """What says that the device did not do all of this step. Two counts, of torch's dispatcher and of the
    profiler, each have to find the products that the model needs."""
    if not profile.device_time_s or not profile.kernels:
        yield "no kernel ran on the device"
    on_cpu = _cpu_products(profile)
    if on_cpu:
        names = ", ".join(profile.cpu_operators)
        yield f"{on_cpu} matrix products on the CPU" + (f" ({names})" if names else "")
    counted = profile.products.get(run.config.device, 0)
    if profile.products and counted < needed:
        yield f"{counted} matrix products on the device where the model needs {needed}"
    if profile.positions:
        flop = profile.product_flop.get(run.config.device, 0.0)
        least = weight_flop(run.config.shape, profile.positions)
        if flop < (1 - FLOP_TOLERANCE) * least:
            needs = quantity(least, "FLOP")
            yield f"{quantity(flop, 'FLOP')} of products on the device where the model needs {needs}"
    # Names of kernels change with libraries. Where torch's own count is whole, as many kernels of any
    # name will do, as long as every block shows one that is known.
    by_name = profile.matmul_kernels or 0
    is_whole = counted >= needed and (profile.kernels or 0) >= needed and by_name >= run.config.shape.n_layer
    if by_name < needed and not is_whole:
        yield f"{by_name} matrix kernels where the model needs {needed}"
    if (profile.copied_bytes or 0) > budget:
        yield f"{memory(profile.copied_bytes)} copied between host and device"


def _cpu_products(profile: KernelProfile) -> int:
    """The larger of both counts: torch's dispatcher, and operators without a kernel in the trace."""
    return max(profile.products.get("cpu", 0), sum(profile.cpu_operators.values()))


def _copy_budget(run: TrainingRun) -> int:
    positions = run.profile.positions if run.profile and run.profile.positions else None
    positions = positions or run.config.batch_size * run.config.seq_len
    return COPY_BUDGET_BYTES + 2 * 8 * positions + run.scheme_copy_bytes


# What the driver saw of the device while the steps ran: its memory, its work, its errors.
#
# Utilisation is never a witness: a spinning kernel shows 100 %. A reading that a card or a
# platform does not give is 'not available here' and never red by itself.

# Least bytes of training state: float32 weights, gradients and AdamW's two moments.
STATE_BYTES_PER_PARAMETER = 16
# The driver has to see this share of what must be there: torch and the driver count differently.
MEMORY_SHARE = 0.5
# Power or clock above the idle reading by this factor is work.
ABOVE_IDLE = 1.05


def driver_view(run: TrainingRun, steps: Sequence[StepRecord], samples: Sequence[TelemetrySample]) -> Check:
    """Memory on the card and work above idle, seen by the driver while the steps ran."""
    telemetry, config = run.telemetry, run.config
    expected = (
        f"at least {MIN_WINDOW_SAMPLES} readings that cover the steps, bound to the device by UUID, that "
        f"show at least {percent(MEMORY_SHARE)} of the memory that torch or the training state needs, and "
        "power or clock above idle"
    )
    if telemetry is None or telemetry.error or not steps:
        reason = (telemetry.error if telemetry else None) or "no telemetry"
        return gpu_check(config, "native.driver_view", None, reason, expected, settle=AGAIN)
    window = in_window(steps, samples)
    weak = [uncovered(steps, window), "" if telemetry.is_bound_by_uuid else "device not identified by UUID"]
    weak = [text for text in weak if text]
    peak = max(step.memory_peak_bytes or 0 for step in steps)
    wanted = max(peak, STATE_BYTES_PER_PARAMETER * run.parameters)
    seen, is_busy = memory_seen(telemetry, window), busier_than_idle(telemetry, window)
    other_name = _other_name(run.device_name, telemetry.device_name)
    has_memory = None if seen is None else seen >= MEMORY_SHARE * wanted
    is_good = _driver_agrees(has_memory, is_busy)
    if weak:
        is_good = None
    if other_name:
        is_good = False
    found = f"{len(window)} readings during the steps; memory in use {_seen_text(seen)}, "
    found += f"torch holds {memory(peak)}; "
    found += {
        True: "power or clock above idle",
        False: "power and clock as when idle",
        None: "power and clock against idle not available here",
    }[is_busy]
    return gpu_check(
        config,
        "native.driver_view",
        is_good,
        "; ".join([*([other_name] if other_name else []), *weak, found]),
        expected,
        todo="the driver does not see this training on its device: look for a fallback to the CPU",
        settle=LONGER,
        values={"readings": len(window), "memory_seen_bytes": seen, "memory_wanted_bytes": wanted},
    )


def _driver_agrees(has_memory: bool | None, is_busy: bool | None) -> bool | None:
    """One of the two witnesses is enough where the other is not available; a lack of memory contradicts."""
    if has_memory is False:
        return False
    if is_busy is False:
        return None
    return True if has_memory or is_busy else None


def _seen_text(seen: int | None) -> str:
    return "not available here" if seen is None else memory(seen)


def _other_name(torch_name: str, driver_name: str | None) -> str:
    """A contradiction between what torch and what the driver call the device; empty where there is none."""
    if driver_name is None:
        return ""
    ours, theirs = (name.lower().removeprefix("nvidia ").strip() for name in (torch_name, driver_name))
    is_same = ours.startswith(theirs) or theirs.startswith(ours)
    return "" if is_same and ours and theirs else f"torch names {torch_name}, the driver {driver_name}"


def memory_seen(telemetry: Telemetry, window: Sequence[TelemetrySample]) -> int | None:
    """Bytes that the driver saw our process use, or the card's use grow by; None where it tells neither."""
    own = [sample.own_memory_bytes for sample in window if sample.own_memory_bytes is not None]
    if own:
        return max(own)
    used = [sample.memory_used_bytes for sample in window if sample.memory_used_bytes is not None]
    if not used or telemetry.idle is None or telemetry.idle.memory_used_bytes is None:
        return None
    return max(used) - telemetry.idle.memory_used_bytes + (telemetry.reserved_before_bytes or 0)


def busier_than_idle(telemetry: Telemetry, window: Sequence[TelemetrySample]) -> bool | None:
    """None where there is nothing to compare: no reading, or a baseline that was not idle itself."""
    idle, answers = telemetry.idle, []
    for name in ("power_w", "clock_mhz"):
        values = [getattr(sample, name) for sample in window if getattr(sample, name) is not None]
        before = getattr(idle, name) if idle else None
        if values and before:
            answers.append(max(values) > ABOVE_IDLE * before)
    if any(answers):
        return True
    was_idle = idle is not None and not idle.utilization and not telemetry.reserved_before_bytes
    return False if answers and was_idle else None


def hardware(run: TrainingRun) -> Check:
    """Counters as differences over the run: a large total from the past says nothing about it."""
    telemetry = run.telemetry
    before, after = (telemetry.counters_before, telemetry.counters_after) if telemetry else ({}, {})
    expected = "no uncorrected memory error during the run, no row remap pending or failed"
    if not after:
        return gpu_check(
            run.config, "native.hardware", None, "error counters are not available here", expected,
            settle="nvidia-smi -q -d ECC,ROW_REMAPPER", required=bool(before),
        )  # fmt: skip
    grown = {name: after[name] - before[name] for name in after if after[name] > before.get(name, after[name])}
    bad = {name: by for name, by in grown.items() if "uncorrected" in name}
    bad |= {name: after[name] for name in ("remap_pending", "remap_failure") if after.get(name)}
    found = ", ".join(f"{name} +{by}" for name, by in {**grown, **bad}.items()) or f"{len(after)} counters unchanged"
    return gpu_check(
        run.config,
        "native.hardware",
        not bad,
        found,
        expected,
        todo="stop using this card until nvidia-smi -q -d ECC,ROW_REMAPPER is clean after a reset",
        values={**grown, **bad},
    )


# Are the numbers of the run right? Its precision, the CPU's losses beside its own, a repetition.

# Largest relative difference of a loss from the CPU's float32 loss at the same step. Seen over three
# steps: float32 1e-7, TF32 1e-5, bfloat16 8e-5; weights that were never updated are off by 8e-2.
LOSS_LIMITS = {"float32": 1e-4, "tf32": 1e-3, "bfloat16": 2e-3}
LEAST_REFERENCE_STEPS = 2


def precision(run: TrainingRun) -> Check:
    config, found = run.config, run.precision
    wanted = "bfloat16" if config.dtype == "bfloat16" else "float32"
    expected = f"matrix products of class {config.dtype}; matrix layers that put out {wanted}"
    if found is None:
        return gpu_check(config, "native.precision", None, "not measured", expected)
    others = {dtype for audit in run.audits for dtype in audit.product_dtypes} - {wanted}
    text = (
        f"{found.observed}: relative error {found.relative_error:.1e} against float64 at "
        f"{found.size} × {found.size}, result in {found.output_dtype}"
    )
    if others:
        text += f"; matrix layers put out {', '.join(sorted(others))}"
    return gpu_check(
        config,
        "native.precision",
        found.observed == config.dtype and found.output_dtype == wanted and not others,
        text,
        expected,
        todo="look for code or a variable that changes torch's precision, or an autocast that is not active",
        values={"relative_error": found.relative_error},
    )


def cpu_agreement(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    limit, reference = LOSS_LIMITS[run.config.dtype], run.cpu_reference
    expected = f"losses within {limit:g} (relative) of the same steps on the CPU in float32"
    if reference is None or reference.skipped or not reference.losses:
        reason = reference.skipped if reference and reference.skipped else "no CPU reference"
        return gpu_check(run.config, "native.cpu_agreement", None, reason, expected)
    if len(reference.losses) < min(LEAST_REFERENCE_STEPS, len(steps)):
        # The first loss is from before the first update: it says nothing about training.
        found = f"only {len(reference.losses)} finite losses on the CPU"
        return gpu_check(run.config, "native.cpu_agreement", None, found, expected)
    pairs = [(step.loss, loss) for step, loss in zip(steps, reference.losses)]
    gaps = [math.inf if ours is None or not theirs else abs(ours - theirs) / abs(theirs) for ours, theirs in pairs]
    largest = max(gaps, default=math.inf)
    return gpu_check(
        run.config,
        "native.cpu_agreement",
        largest <= limit,
        f"largest relative difference {largest:.1e} over {len(gaps)} steps",
        expected,
        todo="the device computes other numbers than the CPU: compare step by step in raw/steps.jsonl",
        values={"steps": len(gaps), "limit": limit} | ({"largest": largest} if math.isfinite(largest) else {}),
    )


def replay(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    """Kernels that add in changing order differ without a fault; then deterministic ones decide."""
    again = run.replay
    expected = "the same seed gives the same losses and the same matrix product, bit for bit"
    if again is None or again.skipped:
        reason = again.skipped if again else "not replayed"
        return gpu_check(run.config, "native.replay", None, reason, expected)
    unequal = [step.step for step, loss in zip(steps, again.losses) if step.loss != loss]
    is_whole = len(again.losses) == len(steps) > 0
    repeats = (not unequal or again.deterministic_is_equal is True) and is_whole
    found = f"{len(again.losses)} of {len(steps)} losses repeated, "
    found += f"first difference at step {unequal[0]}" if unequal else "all equal"
    if unequal and again.deterministic_is_equal is not None:
        found += {True: "; equal", False: "; different also"}[again.deterministic_is_equal]
        found += " with deterministic algorithms"
    found += "" if again.matmul_is_equal else "; a repeated matrix product differed"
    return gpu_check(
        run.config,
        "native.replay",
        repeats and again.matmul_is_equal is True,
        found,
        expected + " (where the run's kernels add in changing order: with deterministic algorithms)",
        todo="a result that does not repeat points to hardware, overclocking or memory: test the card",
        values={"unequal_steps": len(unequal)},
    )


# May the figures of a run be called its speed? A claim of its own, not required for the verdict.
#
# Heat, other users of the card and clocks that disagree spoil a figure, not the proof that the
# device did the work. Nothing here demands a speed, except that it be possible.

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


__all__ = ["in_window", "judge_training"]

# The canary has to fall once a run is long enough to expect it, and by more than rounding.
CANARY_MIN_STEPS = 5
CANARY_MIN_FALL = 1e-6


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
        *native_checks(run, steps, samples),
        *_learning(run, steps),
        *speed_checks(run, steps, samples, peak_flop_per_s),
    )


# --- integrity ----------------------------------------------------------------------


def _integrity(run: TrainingRun, steps: Sequence[StepRecord]) -> Iterator[Check]:
    wanted = run.config.steps
    is_complete = [step.step for step in steps] == list(range(1, wanted + 1)) and run.error is None
    yield check(
        "integrity.steps_complete",
        is_complete,
        f"{len(steps)} of {wanted} steps recorded" + (f"; {run.error}" if run.error else ""),
        f"steps 1 to {wanted}, each once and in order, and no error",
        todo="read the error and run again",
    )
    wrong = [step.step for step in steps if not _is_countable(step, run)]
    yield check(
        "integrity.counts",
        not wrong and bool(steps),
        f"impossible counts at steps {wrong[:5]}"
        if wrong
        else f"{sum(step.samples for step in steps)} samples, {sum(step.tokens for step in steps)} tokens",
        f"1 to {run.config.batch_size} samples a step, at most {run.config.seq_len} tokens each, "
        "no more supervised ones",
        todo="the records are broken, or batches are counted twice: run again",
    )
    ends = [step.started_s + step.step_time_s for step in steps]
    is_ordered = all(step.step_time_s > 0 for step in steps) and all(
        end <= step.started_s + 1e-6 for end, step in zip(ends, steps[1:])
    )
    yield check(
        "integrity.times_ordered",
        is_ordered and bool(steps),
        "each step starts after the one before it ended" if is_ordered else "step times overlap or are not positive",
        "positive step times in order",
        todo="the records are broken: run again",
    )


def _is_countable(step: StepRecord, run: TrainingRun) -> bool:
    config = run.config
    is_batch = 1 <= step.samples <= config.batch_size
    return is_batch and 0 <= step.supervised_tokens <= step.tokens <= step.samples * config.seq_len


# --- learning -----------------------------------------------------------------------


def _learning(run: TrainingRun, steps: Sequence[StepRecord]) -> Iterator[Check]:
    yield _finite(steps)
    yield _applied(run, steps)
    yield _supervised(steps)
    yield _distinct_batches(run, steps)
    yield _mode(run)
    if run.learning is None:
        for name in ("moved", "trainable", "canary"):
            yield check(f"learning.{name}", None, "not measured", "measured before and after the steps")
        return
    yield _moved(run.learning, steps)
    yield _trainable(run.learning)
    yield _canary(run.learning, steps)


def _finite(steps: Sequence[StepRecord]) -> Check:
    broken = [step.step for step in steps if step.loss is None or step.grad_norm is None]
    empty = [step.step for step in steps if step.loss == 0]
    if broken:
        found = f"loss or gradient not finite at {len(broken)} of {len(steps)} steps, first at step {broken[0]}"
    elif empty:
        found = f"loss exactly 0 at {len(empty)} of {len(steps)} steps, first at step {empty[0]}"
    else:
        found = f"{len(steps)} finite losses and gradient norms"
    return check(
        "learning.finite",
        not broken and not empty and bool(steps),
        found,
        "a finite loss above 0 and a finite gradient norm at every step",
        todo="lower the learning rate, or check the data and its labels",
        values={"steps": (broken + empty)[:10]},
    )


def _applied(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    applied = sum(step.is_applied for step in steps)
    return check(
        "learning.applied",
        applied == len(steps) > 0,
        f"{applied} of {run.config.steps} optimizer steps applied",
        f"{run.config.steps} applied, by the optimizer's own count for every parameter it holds",
        todo="a loss scaler or a swallowed error skips steps, or the optimizer holds parameters that get no gradient",
        values={"applied": applied},
    )


def _supervised(steps: Sequence[StepRecord]) -> Check:
    empty = [step.step for step in steps if step.supervised_tokens < 1]
    total = sum(step.supervised_tokens for step in steps)
    return check(
        "learning.supervised_tokens",
        not empty and bool(steps),
        f"no supervised token at steps {empty[:5]}" if empty else f"{total} supervised tokens counted",
        "at least one supervised token in every step",
        todo="check labels and padding",
        values={"supervised_tokens": total},
    )


def _distinct_batches(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    seen, first_pass = 0, []
    for step in steps:
        seen += step.samples
        if seen <= run.dataset_rows:
            first_pass.append(step.batch_sha256)
    repeated = len(first_pass) - len(set(first_pass))
    return check(
        "learning.batches",
        repeated == 0 and bool(steps),
        f"{repeated} batches repeated within one pass over the data"
        if repeated
        else f"{len(first_pass)} batches of the first pass, all different",
        "no batch twice in one pass",
        todo="look for a loader that swallows errors, or a dataset that repeats one row",
    )


def _mode(run: TrainingRun) -> Check:
    """A warning: without dropout, which the kit's models do not have, the mode changes nothing."""
    modes = [(audit.step, audit.is_training) for audit in run.audits if audit.is_training is not None]
    off = [step for step, is_training in modes if not is_training]
    return check(
        "learning.mode",
        None if not modes else not off,
        f"the model was in evaluation mode at step {off[0]}"
        if off
        else f"training mode at steps {', '.join(str(step) for step, _ in modes)}"
        if modes
        else "not recorded",
        "training mode: dropout and batch statistics are on",
        todo="call model.train() before the loop",
        required=False,
    )


def _moved(learning: Learning, steps: Sequence[StepRecord]) -> Check:
    is_moved = learning.moved_tensors == learning.trainable_tensors > 0 and learning.max_change > 0
    found = f"{learning.moved_tensors} of {learning.trainable_tensors} tensors changed, "
    found += f"largest change {learning.max_change:.1e}"
    if learning.unmoved:
        found += f"; unchanged: {learning.unmoved[0]}"
    if steps and all(step.lr == 0 for step in steps):
        found += "; the learning rate was 0"
    return check(
        "learning.moved",
        is_moved,
        found,
        "every trainable tensor changed",
        todo="check the learning rate, frozen layers and the optimizer's parameters",
        values={"max_change": learning.max_change},
    )


def _trainable(learning: Learning) -> Check:
    return check(
        "learning.trainable",
        learning.trainable_parameters == learning.total_parameters > 0,
        f"{learning.trainable_parameters:,} of {learning.total_parameters:,} parameters trainable",
        "all of them: this run declares full training",
        todo="set requires_grad on all parameters",
        values={"trainable": learning.trainable_parameters, "total": learning.total_parameters},
    )


def _canary(learning: Learning, steps: Sequence[StepRecord]) -> Check:
    """The one loss that has to fall: the same batch before and after. Those of different batches may rise."""
    before, after = learning.canary_before, learning.canary_after
    has_fallen = None if before is None or after is None else after < before * (1 - CANARY_MIN_FALL)
    if has_fallen is False and len(steps) < CANARY_MIN_STEPS:
        has_fallen = None
    return check(
        "learning.canary",
        has_fallen,
        f"loss of one fixed batch {number(before, 5)} before and {number(after, 5)} after {len(steps)} steps",
        "lower after than before (the losses of different batches may rise)",
        todo="train longer or with a larger learning rate",
        settle=f"python -m kit train --steps {max(14, CANARY_MIN_STEPS)}",
        values={"before": before, "after": after},
    )

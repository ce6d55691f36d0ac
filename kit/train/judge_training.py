"""Did this run train, natively on the device it names, and did the model learn? Decided from records alone.

Every rule compares a measured value with a stated limit; the configuration is never evidence. The same
rules judge the run, a rehearsal on the CPU, and the negative control, which must come out FAIL.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kit.records import Check
from kit.rules import Answer, Rules, say
from kit.train.config import TrainConfig, step_flop, weight_flop, weight_products
from kit.train.steps import (
    STEADY_FROM,
    KernelProfile,
    PlacementAudit,
    StepRecord,
    Telemetry,
    TelemetrySample,
    Throughput,
    TrainingRun,
    throughput,
)
from kit.units import GiB, memory, number, percent, quantity, seconds

AGAIN = "python -m kit train"
LONGER = "python -m kit train --steps 100"

# Fewer readings than this during the steps say nothing about them.
MIN_WINDOW_SAMPLES = 5
# The longest stretch of the steps without a reading: this share of it, or half a second if that is
# more. A sampling thread that died leaves a longer one.
MAX_GAP_SHARE, MAX_GAP_S = 0.3, 0.5
# Kernel time as a share of the profiled step. A small batch leaves a fast card idle most of the time
# (10 to 16 % busy at 4 × 64 on an H100, eager, under the profiler), and a slow host more so: less than
# this with all products on the device is too weak to conclude from, and no contradiction.
MIN_KERNEL_SHARE = 0.05
# Bytes between host and device in one step beside the batch itself (two int64 tensors): some scalars.
COPY_BUDGET_BYTES = 1_000_000
# The products' FLOP may miss this share of what the model needs.
FLOP_TOLERANCE = 0.01
# Least bytes of training state: float32 weights, gradients and AdamW's two moments.
STATE_BYTES_PER_PARAMETER = 16
# The driver has to see this share of what must be there: torch and the driver count differently.
MEMORY_SHARE = 0.5
# Power or clock above the idle reading by this factor is work.
ABOVE_IDLE = 1.05
# Largest relative difference of a loss from the CPU's float32 loss at the same step. Seen over three
# steps: float32 1e-7, TF32 1e-5, bfloat16 8e-5; weights that were never updated are off by 8e-2.
LOSS_LIMITS = {"float32": 1e-4, "tf32": 1e-3, "bfloat16": 2e-3}
LEAST_REFERENCE_STEPS = 2
# The canary has to fall once a run is long enough to expect it, and by more than rounding.
CANARY_MIN_STEPS = 5
CANARY_MIN_FALL = 1e-6
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


@dataclasses.dataclass(frozen=True)
class Run:
    """What one training run recorded, and what follows from it for more than one rule."""

    run: TrainingRun
    steps: Sequence[StepRecord]
    samples: Sequence[TelemetrySample]
    peak_flop_per_s: float | None = None

    @property
    def config(self) -> TrainConfig:
        return self.run.config

    @functools.cached_property
    def figures(self) -> Throughput | None:
        return throughput(self.steps)

    @functools.cached_property
    def window(self) -> list[TelemetrySample]:
        return in_window(self.steps, self.samples)

    @functools.cached_property
    def uncovered(self) -> str:
        """Why these readings do not cover the steps; empty where they do."""
        if not self.steps:
            return "no steps"
        begin, end = self.steps[0].started_s, self.steps[-1].started_s + self.steps[-1].step_time_s
        if len(self.window) < MIN_WINDOW_SAMPLES:
            return f"{len(self.window)} readings during the steps, {MIN_WINDOW_SAMPLES} needed"
        times = [begin, *(sample.at_s for sample in self.window), end]
        gap = max(later - earlier for earlier, later in zip(times, times[1:]))
        if gap > max(MAX_GAP_SHARE * (end - begin), MAX_GAP_S):
            return f"no reading for {gap:.1f} s of {end - begin:.1f} s"
        return ""

    @functools.cached_property
    def needed_products(self) -> int:
        return weight_products(self.config.shape)

    @functools.cached_property
    def copy_budget(self) -> int:
        positions = self.run.profile.positions if self.run.profile and self.run.profile.positions else None
        positions = positions or self.config.batch_size * self.config.seq_len
        return COPY_BUDGET_BYTES + 2 * 8 * positions + self.run.scheme_copy_bytes

    @property
    def copy_budget_text(self) -> str:
        return memory(self.copy_budget)

    @property
    def product_dtype(self) -> str:
        """What matrix layers put out in this precision."""
        return "bfloat16" if self.config.dtype == "bfloat16" else "float32"

    @property
    def loss_limit(self) -> float:
        return LOSS_LIMITS[self.config.dtype]


def in_window(steps: Sequence[StepRecord], samples: Sequence[TelemetrySample]) -> list[TelemetrySample]:
    """The samples taken between the start of the first and the end of the last step."""
    if not steps:
        return []
    end = steps[-1].started_s + steps[-1].step_time_s
    return [sample for sample in samples if steps[0].started_s <= sample.at_s <= end]


TRAINING = Rules("training", rehearses=lambda case: case.config.device == "cpu", settle=AGAIN)


def judge_training(
    run: TrainingRun,
    steps: Sequence[StepRecord],
    samples: Sequence[TelemetrySample],
    *,
    peak_flop_per_s: float | None = None,
) -> tuple[Check, ...]:
    """All checks of a run. `peak_flop_per_s`: the card's dense peak for the run's dtype, None if unknown."""
    return TRAINING.checks(Run(run, steps, samples, peak_flop_per_s))


# --- integrity ----------------------------------------------------------------------


@TRAINING.rule(
    "integrity.steps_complete",
    "steps 1 to {case.config.steps}, each once and in order, and no error",
    todo="read the error and run again",
    promise=5,
)
def steps_complete(case: Run) -> Answer:
    wanted, error = case.config.steps, case.run.error
    is_complete = [step.step for step in case.steps] == list(range(1, wanted + 1)) and error is None
    return say(is_complete, f"{len(case.steps)} of {wanted} steps recorded" + (f"; {error}" if error else ""))


@TRAINING.rule(
    "integrity.counts",
    "1 to {case.config.batch_size} samples a step, at most {case.config.seq_len} tokens each, no more supervised ones",
    todo="the records are broken, or batches are counted twice: run again",
)
def counts(case: Run) -> Answer:
    wrong = [step.step for step in case.steps if not _is_countable(step, case.config)]
    if wrong:
        return say(False, f"impossible counts at steps {wrong[:5]}")
    counted = f"{sum(step.samples for step in case.steps)} samples, {sum(step.tokens for step in case.steps)} tokens"
    return say(bool(case.steps), counted)


def _is_countable(step: StepRecord, config: TrainConfig) -> bool:
    is_batch = 1 <= step.samples <= config.batch_size
    return is_batch and 0 <= step.supervised_tokens <= step.tokens <= step.samples * config.seq_len


@TRAINING.rule("integrity.times_ordered", "positive step times in order", todo="the records are broken: run again")
def times_ordered(case: Run) -> Answer:
    ends = [step.started_s + step.step_time_s for step in case.steps]
    is_ordered = all(step.step_time_s > 0 for step in case.steps)
    is_ordered = is_ordered and all(end <= step.started_s + 1e-6 for end, step in zip(ends, case.steps[1:]))
    found = "each step starts after the one before it ended" if is_ordered else "step times overlap or are not positive"
    return say(is_ordered and bool(case.steps), found)


# --- placement and kernels: witnesses that cannot be configured ---------------------


@TRAINING.rule(
    "native.placement",
    "every parameter, buffer, gradient, optimizer state and batch on {case.config.device}, at the first, a middle "
    "and the last step",
    todo="move it with .to({case.config.device!r}) before training",
    is_gpu_claim=True,
    promise=3,
)
def placement(case: Run) -> Answer:
    device, audits, count = case.config.device, case.run.audits, len(case.steps)
    # In the order they were found: parameters come first.
    strays = list(dict.fromkeys(name for audit in audits for name in audit.strays))
    strays += [f"audited against {audit.expected_device}" for audit in audits if audit.expected_device != device]
    on_device = [audit.counted.get(device, 0) for audit in audits]
    audited = [audit.step for audit in audits]
    values = {"strays": len(strays), "steps": audited}
    if strays:
        return say(False, f"{len(strays)} tensors elsewhere, first: {strays[0]}", values)
    unseen = sorted({kind for audit in audits for kind in _unseen(audit)})
    found = f"{min(on_device, default=0)} tensors on {device} at steps {', '.join(map(str, audited)) or 'none'}"
    found += f"; no {' and no '.join(unseen)} seen" if unseen else ""
    wanted = {1, (count + 1) // 2, count} if count else {1}
    is_whole = wanted <= set(audited) and not unseen
    return say(False if not all(on_device) else True if is_whole else None, found, values)


def _unseen(audit: PlacementAudit) -> list[str]:
    """What an audit looked for and found none of; a model may well have no buffers."""
    kinds = ("parameter", "gradient", "optimizer", "batch") if audit.kinds else ()
    return [kind for kind in kinds if not audit.kinds.get(kind)]


@TRAINING.rule(
    "native.kernels",
    f"kernels for at least {percent(MIN_KERNEL_SHARE)} of a step, {{case.needed_products}} matrix products or more on "
    "the device and none on the CPU, at most {case.copy_budget_text} copied",
    todo="look at profile in raw/training.json for what ran where, and move the rest to the device",
    settle="python -m kit train --batch-size 32",
    is_gpu_claim=True,
    promise=3,
)
def kernels(case: Run) -> Answer:
    profile = case.run.profile
    if case.config.device == "cpu":
        return say(True, "the CPU did the work, as asked for")
    if profile is None or profile.error or not profile.step_time_s or profile.device_time_s is None:
        return say(None, profile.error if profile and profile.error else "no profiled step", settle=AGAIN)
    share, problems = profile.device_time_s / profile.step_time_s, list(_contradictions(case, profile))
    found = f"kernel time {percent(share)} of the profiled step, {profile.matmul_kernels} matrix kernels, "
    found += f"{profile.copies} copies"
    values = {
        "kernel_share": share,
        "matmul_kernels": profile.matmul_kernels,
        "cpu_products": _cpu_products(profile),
        "copied_bytes": profile.copied_bytes,
    }
    is_good = False if problems else None if share < MIN_KERNEL_SHARE else True
    return say(is_good, "; ".join(problems[:2]) or found, values)


def _contradictions(case: Run, profile: KernelProfile) -> Iterator[str]:
    """What says that the device did not do all of this step. Two counts, of torch's dispatcher and of the
    profiler, each have to find the products that the model needs."""
    device, needed = case.config.device, case.needed_products
    if not profile.device_time_s or not profile.kernels:
        yield "no kernel ran on the device"
    on_cpu = _cpu_products(profile)
    if on_cpu:
        names = ", ".join(profile.cpu_operators)
        yield f"{on_cpu} matrix products on the CPU" + (f" ({names})" if names else "")
    counted = profile.products.get(device, 0)
    if profile.products and counted < needed:
        yield f"{counted} matrix products on the device where the model needs {needed}"
    if profile.positions:
        flop, least = profile.product_flop.get(device, 0.0), weight_flop(case.config.shape, profile.positions)
        if flop < (1 - FLOP_TOLERANCE) * least:
            needs = quantity(least, "FLOP")
            yield f"{quantity(flop, 'FLOP')} of products on the device where the model needs {needs}"
    # Names of kernels change with libraries. Where torch's own count is whole, as many kernels of any
    # name will do, as long as every block shows one that is known.
    by_name = profile.matmul_kernels or 0
    is_whole = counted >= needed and (profile.kernels or 0) >= needed and by_name >= case.config.shape.n_layer
    if by_name < needed and not is_whole:
        yield f"{by_name} matrix kernels where the model needs {needed}"
    if (profile.copied_bytes or 0) > case.copy_budget:
        yield f"{memory(profile.copied_bytes)} copied between host and device"


def _cpu_products(profile: KernelProfile) -> int:
    """The larger of both counts: torch's dispatcher, and operators without a kernel in the trace."""
    return max(profile.products.get("cpu", 0), sum(profile.cpu_operators.values()))


# --- driver telemetry ---------------------------------------------------------------
#
# Utilisation is never a witness: a spinning kernel shows 100 %. A reading that a card or a
# platform does not give is 'not available here' and never red by itself.


@TRAINING.rule(
    "native.driver_view",
    f"at least {MIN_WINDOW_SAMPLES} readings that cover the steps, bound to the device by UUID, that "
    f"show at least {percent(MEMORY_SHARE)} of the memory that torch or the training state needs, and "
    "power or clock above idle",
    todo="the driver does not see this training on its device: look for a fallback to the CPU",
    settle=LONGER,
    is_gpu_claim=True,
    promise=4,
)
def driver_view(case: Run) -> Answer:
    telemetry = case.run.telemetry
    if telemetry is None or telemetry.error or not case.steps:
        return say(None, (telemetry.error if telemetry else None) or "no telemetry", settle=AGAIN)
    peak = max(step.memory_peak_bytes or 0 for step in case.steps)
    wanted = max(peak, STATE_BYTES_PER_PARAMETER * case.run.parameters)
    seen, is_busy = memory_seen(telemetry, case.window), busier_than_idle(telemetry, case.window)
    has_memory = None if seen is None else seen >= MEMORY_SHARE * wanted
    # One of the two witnesses is enough where the other is not available; a lack of memory contradicts.
    is_good = False if has_memory is False else True if is_busy or (has_memory and is_busy is None) else None
    work = {
        True: "power or clock above idle",
        False: "power and clock as when idle",
        None: "power and clock against idle not available here",
    }[is_busy]
    found = f"{len(case.window)} readings during the steps; memory in use "
    found += f"{'not available here' if seen is None else memory(seen)}, torch holds {memory(peak)}; {work}"
    weak = [case.uncovered, "" if telemetry.is_bound_by_uuid else "device not identified by UUID"]
    if any(weak):
        is_good = None
    other_name = _other_name(case.run.device_name, telemetry.device_name)
    if other_name:
        is_good = False
    values = {"readings": len(case.window), "memory_seen_bytes": seen, "memory_wanted_bytes": wanted}
    return say(is_good, "; ".join(text for text in (other_name, *weak, found) if text), values)


def _other_name(torch_name: str, driver_name: str | None) -> str:
    """A contradiction between what torch and what the driver call the device; empty where there is none."""
    if driver_name is None:
        return ""
    ours, theirs = (name.lower().removeprefix("nvidia ").strip() for name in (torch_name, driver_name))
    is_same = ours.startswith(theirs) or theirs.startswith(ours)
    return "" if is_same and ours and theirs else f"torch names {torch_name}, the driver {driver_name}"


def memory_seen(telemetry: Telemetry, window: Sequence[TelemetrySample]) -> int | None:
    """Bytes that the driver saw our process use, or the card's use grow by; None where it tells neither."""
    own, used = _told(window, "own_memory_bytes"), _told(window, "memory_used_bytes")
    if own:
        return max(own)
    if not used or telemetry.idle is None or telemetry.idle.memory_used_bytes is None:
        return None
    return max(used) - telemetry.idle.memory_used_bytes + (telemetry.reserved_before_bytes or 0)


def busier_than_idle(telemetry: Telemetry, window: Sequence[TelemetrySample]) -> bool | None:
    """None where there is nothing to compare: no reading, or a baseline that was not idle itself."""
    idle, answers = telemetry.idle, []
    for name in ("power_w", "clock_mhz"):
        values, before = _told(window, name), getattr(idle, name) if idle else None
        if values and before:
            answers.append(max(values) > ABOVE_IDLE * before)
    if any(answers):
        return True
    was_idle = idle is not None and not idle.utilization and not telemetry.reserved_before_bytes
    return False if answers and was_idle else None


def _told(window: Iterable[TelemetrySample], name: str) -> list:
    """The readings of this name, where the driver gave them."""
    return [getattr(sample, name) for sample in window if getattr(sample, name) is not None]


# --- numerics -----------------------------------------------------------------------


@TRAINING.rule(
    "native.precision",
    "matrix products of class {case.config.dtype}; matrix layers that put out {case.product_dtype}",
    todo="look for code or a variable that changes torch's precision, or an autocast that is not active",
    is_gpu_claim=True,
)
def precision(case: Run) -> Answer:
    found, wanted = case.run.precision, case.product_dtype
    if found is None:
        return say(None, "not measured")
    others = {dtype for audit in case.run.audits for dtype in audit.product_dtypes} - {wanted}
    text = f"{found.observed}: relative error {found.relative_error:.1e} against float64 at "
    text += f"{found.size} × {found.size}, result in {found.output_dtype}"
    text += f"; matrix layers put out {', '.join(sorted(others))}" if others else ""
    is_good = found.observed == case.config.dtype and found.output_dtype == wanted and not others
    return say(is_good, text, {"relative_error": found.relative_error})


@TRAINING.rule(
    "native.cpu_agreement",
    "losses within {case.loss_limit:g} (relative) of the same steps on the CPU in float32",
    todo="the device computes other numbers than the CPU: compare step by step in raw/steps.jsonl",
    is_gpu_claim=True,
)
def cpu_agreement(case: Run) -> Answer:
    reference = case.run.cpu_reference
    if reference is None or reference.skipped or not reference.losses:
        return say(None, reference.skipped if reference and reference.skipped else "no CPU reference")
    if len(reference.losses) < min(LEAST_REFERENCE_STEPS, len(case.steps)):
        # The first loss is from before the first update: it says nothing about training.
        return say(None, f"only {len(reference.losses)} finite losses on the CPU")
    pairs = [(step.loss, loss) for step, loss in zip(case.steps, reference.losses)]
    gaps = [math.inf if ours is None or not theirs else abs(ours - theirs) / abs(theirs) for ours, theirs in pairs]
    largest = max(gaps, default=math.inf)
    values = {"steps": len(gaps), "limit": case.loss_limit} | _finite("largest", largest)
    found = f"largest relative difference {largest:.1e} over {len(gaps)} steps"
    return say(largest <= case.loss_limit, found, values)


def _finite(name: str, value: float) -> Mapping[str, float]:
    return {name: value} if math.isfinite(value) else {}


@TRAINING.rule(
    "native.replay",
    "the same seed gives the same losses and the same matrix product, bit for bit (where the run's kernels add in "
    "changing order: with deterministic algorithms)",
    todo="a result that does not repeat points to hardware, overclocking or memory: test the card",
    is_gpu_claim=True,
)
def replay(case: Run) -> Answer:
    """Kernels that add in changing order differ without a fault; then deterministic ones decide."""
    again = case.run.replay
    if again is None or again.skipped:
        return say(
            None,
            again.skipped if again else "not replayed",
            expected="the same seed gives the same losses and the same matrix product, bit for bit",
        )
    unequal = [step.step for step, loss in zip(case.steps, again.losses) if step.loss != loss]
    is_whole = len(again.losses) == len(case.steps) > 0
    found = f"{len(again.losses)} of {len(case.steps)} losses repeated, "
    found += f"first difference at step {unequal[0]}" if unequal else "all equal"
    if unequal and again.deterministic_is_equal is not None:
        found += "; equal" if again.deterministic_is_equal else "; different also"
        found += " with deterministic algorithms"
    found += "" if again.matmul_is_equal else "; a repeated matrix product differed"
    repeats = is_whole and (not unequal or again.deterministic_is_equal is True)
    return say(repeats and again.matmul_is_equal is True, found, {"unequal_steps": len(unequal)})


@TRAINING.rule(
    "native.hardware",
    "no uncorrected memory error during the run, no row remap pending or failed",
    todo="stop using this card until nvidia-smi -q -d ECC,ROW_REMAPPER is clean after a reset",
    settle="nvidia-smi -q -d ECC,ROW_REMAPPER",
    is_gpu_claim=True,
)
def hardware(case: Run) -> Answer:
    """Counters as differences over the run: a large total from the past says nothing about it."""
    telemetry = case.run.telemetry
    before, after = (telemetry.counters_before, telemetry.counters_after) if telemetry else ({}, {})
    if not after:
        return say(None, "error counters are not available here", required=bool(before))
    grown = {name: after[name] - before[name] for name in after if after[name] > before.get(name, after[name])}
    bad = {name: by for name, by in grown.items() if "uncorrected" in name}
    bad |= {name: after[name] for name in ("remap_pending", "remap_failure") if after.get(name)}
    told = grown | bad
    found = ", ".join(f"{name} +{by}" for name, by in told.items()) or f"{len(after)} counters unchanged"
    return say(not bad, found, told)


# --- learning -----------------------------------------------------------------------

_UNMEASURED = say(None, "not measured", expected="measured before and after the steps", settle=AGAIN)


@TRAINING.rule(
    "learning.finite",
    "a finite loss above 0 and a finite gradient norm at every step",
    todo="lower the learning rate, or check the data and its labels",
)
def finite(case: Run) -> Answer:
    count = len(case.steps)
    broken = [step.step for step in case.steps if step.loss is None or step.grad_norm is None]
    empty = [step.step for step in case.steps if step.loss == 0]
    found = f"{count} finite losses and gradient norms"
    if broken:
        found = f"loss or gradient not finite at {len(broken)} of {count} steps, first at step {broken[0]}"
    elif empty:
        found = f"loss exactly 0 at {len(empty)} of {count} steps, first at step {empty[0]}"
    return say(not broken and not empty and count > 0, found, {"steps": (broken + empty)[:10]})


@TRAINING.rule(
    "learning.applied",
    "{case.config.steps} applied, by the optimizer's own count for every parameter it holds",
    todo="a loss scaler or a swallowed error skips steps, or the optimizer holds parameters that get no gradient",
)
def applied(case: Run) -> Answer:
    count = sum(step.is_applied for step in case.steps)
    found = f"{count} of {case.config.steps} optimizer steps applied"
    return say(count == len(case.steps) > 0, found, {"applied": count})


@TRAINING.rule(
    "learning.supervised_tokens", "at least one supervised token in every step", todo="check labels and padding"
)
def supervised_tokens(case: Run) -> Answer:
    empty = [step.step for step in case.steps if step.supervised_tokens < 1]
    total = sum(step.supervised_tokens for step in case.steps)
    found = f"no supervised token at steps {empty[:5]}" if empty else f"{total} supervised tokens counted"
    return say(not empty and bool(case.steps), found, {"supervised_tokens": total})


@TRAINING.rule(
    "learning.batches",
    "no batch twice in one pass",
    todo="look for a loader that swallows errors, or a dataset that repeats one row",
)
def distinct_batches(case: Run) -> Answer:
    seen, first_pass = 0, []
    for step in case.steps:
        seen += step.samples
        if seen <= case.run.dataset_rows:
            first_pass.append(step.batch_sha256)
    repeated = len(first_pass) - len(set(first_pass))
    if repeated:
        return say(False, f"{repeated} batches repeated within one pass over the data")
    return say(bool(case.steps), f"{len(first_pass)} batches of the first pass, all different")


@TRAINING.rule(
    "learning.mode",
    "training mode: dropout and batch statistics are on",
    todo="call model.train() before the loop",
    required=False,
)
def mode(case: Run) -> Answer:
    """A warning: without dropout, which the kit's models do not have, the mode changes nothing."""
    modes = {audit.step: audit.is_training for audit in case.run.audits if audit.is_training is not None}
    if not modes:
        return say(None, "not recorded")
    off = [step for step, is_training in modes.items() if not is_training]
    if off:
        return say(False, f"the model was in evaluation mode at step {off[0]}")
    return say(True, f"training mode at steps {', '.join(map(str, modes))}")


@TRAINING.rule(
    "learning.moved",
    "every trainable tensor changed",
    todo="check the learning rate, frozen layers and the optimizer's parameters",
)
def moved(case: Run) -> Answer:
    learning = case.run.learning
    if learning is None:
        return _UNMEASURED
    found = f"{learning.moved_tensors} of {learning.trainable_tensors} tensors changed, "
    found += f"largest change {learning.max_change:.1e}"
    found += f"; unchanged: {learning.unmoved[0]}" if learning.unmoved else ""
    if case.steps and all(step.lr == 0 for step in case.steps):
        found += "; the learning rate was 0"
    is_moved = learning.moved_tensors == learning.trainable_tensors > 0 and learning.max_change > 0
    return say(is_moved, found, {"max_change": learning.max_change})


@TRAINING.rule(
    "learning.trainable",
    "all of them: this run declares full training",
    todo="set requires_grad on all parameters",
)
def trainable(case: Run) -> Answer:
    learning = case.run.learning
    if learning is None:
        return _UNMEASURED
    ours, total = learning.trainable_parameters, learning.total_parameters
    return say(ours == total > 0, f"{ours:,} of {total:,} parameters trainable", {"trainable": ours, "total": total})


@TRAINING.rule(
    "learning.canary",
    "lower after than before (the losses of different batches may rise)",
    todo="train longer or with a larger learning rate",
    settle=f"python -m kit train --steps {max(14, CANARY_MIN_STEPS)}",
)
def canary(case: Run) -> Answer:
    """The one loss that has to fall: the same batch before and after. Those of different batches may rise."""
    if case.run.learning is None:
        return _UNMEASURED
    before, after, count = case.run.learning.canary_before, case.run.learning.canary_after, len(case.steps)
    has_fallen = None if before is None or after is None else after < before * (1 - CANARY_MIN_FALL)
    if has_fallen is False and count < CANARY_MIN_STEPS:
        has_fallen = None
    found = f"loss of one fixed batch {number(before, 5)} before and {number(after, 5)} after {count} steps"
    return say(has_fallen, found, {"before": before, "after": after})


# --- throughput: may the figures be called its speed? A claim of its own, not required for the verdict.
#
# Heat, other users of the card and clocks that disagree spoil a figure, not the proof that the
# device did the work. Nothing here demands a speed, except that it be possible.


@TRAINING.rule("throughput.rehearsal", "no claim about a GPU", required=False, is_gpu_claim=True)
def rehearsal(case: Run) -> Answer | None:
    return say(True, "a CPU run") if case.config.device == "cpu" else None


@TRAINING.rule(
    "throughput.undisturbed",
    "readings over all of the steps, no other process on the card, no thermal or hardware slowdown, no profiler",
    settle=f"stop other work on the card, let it cool, then {LONGER}",
    required=False,
)
def undisturbed(case: Run) -> Answer | None:
    if case.config.device == "cpu":
        return None
    window, telemetry = case.window, case.run.telemetry
    bits = functools.reduce(int.__or__, _told(window, "throttle_bits"), 0)
    foreign = max(_told(window, "foreign_processes"), default=None)
    needed = max(MIN_WINDOW_SAMPLES, math.ceil(case.figures.window_s) if case.figures else 0)
    problems = [
        f"{len(window)} readings, {needed} needed" if len(window) < needed else case.uncovered,
        f"{foreign} other processes on the card" if foreign else "",
        _foreign_memory(telemetry) if telemetry else "",
        ", ".join(name for bit, name in SLOWDOWN_BITS.items() if bits & bit),
        "a profiler ran during timed steps" if any(audit.is_profiled for audit in case.run.audits) else "",
    ]
    calm = f"{len(window)} readings, no slowdown, "
    calm = calm + "alone on the card" if foreign == 0 else calm[:-2] + "; other processes: not available here"
    found = "; ".join(text for text in problems if text) or calm
    if telemetry and telemetry.power_limit_w and telemetry.power_limit_default_w:
        found += f"; power limit {telemetry.power_limit_w:.0f} W of {telemetry.power_limit_default_w:.0f} W"
    return say(None if any(problems) else True, found, {"throttle_bits": bits, "readings": len(window)})


def _foreign_memory(telemetry: Telemetry) -> str:
    """Memory on the card before we came, and not ours: another user, or what a dead process left."""
    idle = telemetry.idle
    if idle is None or idle.memory_used_bytes is None or not telemetry.memory_total_bytes:
        return ""
    # A context of our own takes some hundreds of MiB that torch does not count.
    others = idle.memory_used_bytes - (idle.own_memory_bytes or telemetry.reserved_before_bytes or 0)
    allowed = min(FOREIGN_BYTES, FOREIGN_SHARE * telemetry.memory_total_bytes)
    return f"{memory(others)} of the card in use by others before the run" if others > allowed else ""


@TRAINING.rule(
    "throughput.clocks",
    f"host and device clocks agree within {percent(CLOCK_TOLERANCE)}; no jump of the wall clock",
    todo="the timing did not wait for the device: synchronise before reading the clock",
    required=False,
)
def clocks(case: Run) -> Answer | None:
    """A host that does not wait measures less time than the device needed. Where there are times of each
    step they decide; a window over all steps can hide it, because reading the loss waits as well."""
    if case.config.device == "cpu":
        return None
    figures, run = case.figures, case.run
    timed = [step for step in case.steps if step.device_time_s is not None]
    if timed:
        host, device = sum(step.step_time_s for step in timed), sum(step.device_time_s or 0 for step in timed)
    elif figures and run.device_window_s is not None:
        host, device = figures.window_s, run.device_window_s
    else:
        return say(None, "no device clock")
    gap = (device - host) / host if host > 0 else math.inf
    jump = run.wall_window_s - figures.window_s if figures and run.wall_window_s is not None else 0.0
    found, values = f"host {seconds(host)}, device {seconds(device)}", _finite("gap", gap)
    if gap < -CLOCK_TOLERANCE:
        # A driver that queues work (Windows) starts late; the host's time is then too long, not too short.
        return say(None, found + ": the device was done long before the host", values)
    if gap > CLOCK_TOLERANCE:
        return say(False, found, values)
    if abs(jump) > MAX_CLOCK_JUMP_S:
        return say(None, f"the wall clock jumped by {seconds(jump)} during the run", values)
    return say(True, found, values)


@TRAINING.rule(
    "throughput.plausible",
    "no faster than the card's peak",
    todo="impossible: the clock, the count or the name of the card is wrong",
    settle=LONGER,
    required=False,
)
def plausible(case: Run) -> Answer | None:
    peak, steady = case.peak_flop_per_s, [step for step in case.steps if step.step >= STEADY_FROM]
    if case.config.device == "cpu":
        return None
    if not steady:
        return say(None, "no steady steps")
    if peak is None:
        return say(None, "the card's peak is not known", settle="add the card's datasheet row")
    if min(step.step_time_s for step in steady) <= 0:
        broken = "the records are broken: run again"
        return say(False, "a step that took no time", expected="positive step times", todo=broken)
    # The last batch of a pass may be smaller; each step counts for the samples it had.
    rate = max(
        step_flop(case.config.shape, batch_size=step.samples, seq_len=case.config.seq_len) / step.step_time_s
        for step in steady
    )
    share = rate / peak
    return say(
        False if share > 1 else None if share > PLAUSIBLE_SHARE else True,
        f"{quantity(rate, 'FLOP/s')} in the fastest steady step, {percent(share)} of the card's peak",
        {"flop_per_s": rate, "share_of_peak": share},
        expected=f"at most {percent(PLAUSIBLE_SHARE)} of {quantity(peak, 'FLOP/s')}, the dense peak for this dtype",
    )


@TRAINING.rule(
    "throughput.input",
    f"less than {percent(MAX_WAIT_SHARE)} of the run spent waiting for batches",
    settle="make loading faster: the figures are the loader's, not the device's",
    required=False,
)
def input_wait(case: Run) -> Answer | None:
    if case.config.device == "cpu":
        return None
    waits = [step.wait_s for step in case.steps if step.wait_s is not None]
    if not waits:
        return say(None, "not recorded", settle=AGAIN)
    share = sum(waits) / (sum(waits) + sum(step.step_time_s for step in case.steps))
    is_bound = share > MAX_WAIT_SHARE
    found = f"{percent(share)} of the time spent waiting for batches" + (": input bound" if is_bound else "")
    return say(None if is_bound else True, found, {"wait_share": share})


@TRAINING.rule(
    "throughput.dtype",
    "matrix units for {case.config.dtype}",
    settle="python -m kit train --dtype float32",
    required=False,
)
def dtype_units(case: Run) -> Answer | None:
    """bfloat16 runs on older cards too, by emulation: a true result at a speed that is not its own."""
    capability, dtype = case.run.compute_capability, case.config.dtype
    if case.config.device == "cpu":
        return None
    if dtype == "float32":
        return say(True, "float32 needs no special units")
    if capability is None:
        return say(None, "compute capability not recorded", settle=AGAIN)
    has_units = capability >= FIRST_WITH_BFLOAT16
    found = f"compute capability {'.'.join(map(str, capability))} "
    return say(True if has_units else None, found + (f"has units for {dtype}" if has_units else f"emulates {dtype}"))

"""Did this run train, natively on the device it names, and did the model learn? Decided from records alone.

Every rule compares a measured value with a stated limit. The configuration is never evidence, and the
record that is judged never a limit: limits follow from the configuration and the shape of its model. The
same rules judge the run, a rehearsal on the CPU, and the negative control, which must come out FAIL.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence

from kit.gpu.specs import peak_flop_per_s
from kit.records import Check
from kit.rules import Answer, Rules, say
from kit.train.config import (
    DATASHEET_DTYPES,
    TrainConfig,
    matrix_layers,
    parameters,
    step_flop,
    weight_flop,
    weight_products,
)
from kit.train.steps import (
    REPLAY_STEPS,
    KernelProfile,
    StepRecord,
    Telemetry,
    TelemetrySample,
    Throughput,
    TrainingRun,
    audited_steps,
    steady_steps,
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
# What a weight's size may add to AdamW's update: decay draws it in by lr · weight_decay · |w|, and a sum is
# rounded to 2**-24 of it. GPT-2's weights are near 1 in its normalisations and smaller elsewhere.
LARGEST_WEIGHT, ROUNDING = 32.0, 2.0**-24
# Of Adam, as torch has them: the decay of both moving averages, and what keeps its quotient finite.
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
# Later updates are smaller where gradients change their sign; noise alone gives 0.15 lr in the median.
LEAST_FIRST_UPDATE, LEAST_UPDATE = 0.5, 0.01
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
    scheme_copy_bytes: int = 0

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
    scheme_copy_bytes: int = 0,
) -> tuple[Check, ...]:
    """All checks of a run. scheme_copy_bytes: what sharing the model among ranks may copy in a step besides."""
    return TRAINING.checks(Run(run, steps, samples, scheme_copy_bytes))


def adam_quotient(step: int) -> float:
    """The most that |m̂| / √v̂, Adam's update in units of lr, can be: 1 at the first step, 1.08 at the 14th, 7.3 at last.

    m and v are moving averages of the gradients and of their squares (Kingma & Ba 2015, 1412.6980, algorithm 1);
    by Cauchy and Schwarz m² is at most v (1 - β₁)² / (1 - β₂) · Σ (β₁² / β₂)^i.
    """
    first, second = ADAM_BETAS
    ratio = first**2 / second
    bound = (1 - first) ** 2 / (1 - second) * (1 - ratio**step) / (1 - ratio)
    return math.sqrt(bound * (1 - second**step)) / (1 - first**step)


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
    size, seq_len = case.config.batch_size, case.config.seq_len
    fine = (0 <= s.supervised_tokens <= s.tokens <= s.samples * seq_len and 1 <= s.samples <= size for s in case.steps)
    wrong = [step.step for step, is_fine in zip(case.steps, fine) if not is_fine]
    samples, tokens = (sum(getattr(step, name) for step in case.steps) for name in ("samples", "tokens"))
    found = f"impossible counts at steps {wrong[:5]}" if wrong else f"{samples} samples, {tokens} tokens"
    return say(not wrong and bool(case.steps), found)


@TRAINING.rule("integrity.times_ordered", "positive step times in order", todo="the records are broken: run again")
def times_ordered(case: Run) -> Answer:
    ends = [0.0, *(step.started_s + step.step_time_s for step in case.steps)]
    wrong = [s.step for s, end in zip(case.steps, ends) if s.step_time_s <= 0 or s.started_s < end - 1e-6]
    found = (
        f"step {wrong[0]} overlaps the one before it, or takes no time" if wrong else "each step after the one before"
    )
    return say(not wrong and bool(case.steps), found)


# --- placement and kernels: witnesses that cannot be configured ---------------------


@TRAINING.rule(
    "native.placement",
    "every parameter, buffer, gradient, optimizer state and batch on {case.config.device}, at the first, a middle "
    "and the last step and at those drawn from the run's nonce",
    todo="move it with .to({case.config.device!r}) before training",
    is_gpu_claim=True,
    promise=3,
)
def placement(case: Run) -> Answer:
    device, audits = case.config.device, case.run.audits
    # In the order they were found: parameters come first.
    strays = list(dict.fromkeys(name for audit in audits for name in audit.strays))
    strays += [f"audited against {audit.expected_device}" for audit in audits if audit.expected_device != device]
    audited = [audit.step for audit in audits]
    values = {"strays": len(strays), "steps": audited}
    if strays:
        return say(False, f"{len(strays)} tensors elsewhere, first: {strays[0]}", values)
    fewest = min((audit.counted.get(device, 0) for audit in audits), default=None)
    # A model may well have no buffers.
    kinds = ("parameter", "gradient", "optimizer", "batch")
    unseen = [kind for kind in kinds if not all(audit.kinds.get(kind) for audit in audits)]
    found = f"{fewest or 0} tensors on {device} at steps {', '.join(map(str, audited)) or 'none'}"
    found += f"; no {' and no '.join(unseen)} seen" if unseen else ""
    is_whole = audited_steps(case.run.nonce, case.config.steps) <= set(audited) and not unseen
    return say(False if fewest == 0 else True if is_whole else None, found, values)


@TRAINING.rule(
    "native.products",
    "every product with weights on {case.config.device} in every forward pass, no operator elsewhere",
    todo="look at elsewhere in raw/steps.jsonl for what ran where, and move it to the device",
    is_gpu_claim=True,
    promise=3,
)
def products(case: Run) -> Answer:
    """Of every step, from the autograd graph of its loss: what runs elsewhere between two audits shows."""
    device, needed = case.config.device, matrix_layers(case.config.shape)
    away = [step for step in case.steps if step.elsewhere]
    fewest = min((step.products for step in case.steps), default=0)
    found = f"at least {fewest} of {needed} products on {device} in each of {len(case.steps)} steps"
    if away:
        found = f"{', '.join(away[0].elsewhere[:3])} elsewhere at {len(away)} steps, first at step {away[0].step}"
    return say(not away and fewest >= needed, found, {"fewest": fewest, "elsewhere": len(away)})


@TRAINING.rule(
    "native.kernels",
    f"kernels for at least {percent(MIN_KERNEL_SHARE)} of a step, all matrix products that the model needs on the "
    "device and none on the CPU, nothing but the batch copied",
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
    device, shape = case.config.device, case.config.shape
    # B × T of a full batch.
    positions = case.config.batch_size * case.config.seq_len
    needed, needed_flop = weight_products(shape), weight_flop(shape, positions)
    counted, flop = profile.products.get(device, 0), profile.product_flop.get(device, 0.0)
    if not profile.device_time_s or not profile.kernels:
        yield "no kernel ran on the device"
    if _cpu_products(profile):
        names = ", ".join(profile.cpu_operators)
        yield f"{_cpu_products(profile)} matrix products on the CPU" + (f" ({names})" if names else "")
    if counted < needed:
        yield f"{counted} matrix products on the device where the model needs {needed}"
    if flop < (1 - FLOP_TOLERANCE) * needed_flop:
        needs = quantity(needed_flop, "FLOP")
        yield f"{quantity(flop, 'FLOP')} of products on the device where the model needs {needs}"
    # Names of kernels change with libraries: as many kernels of any name will do, as long as every block shows
    # one that is known.
    by_name = profile.matmul_kernels or 0
    if by_name < needed and ((profile.kernels or 0) < needed or by_name < shape.n_layer):
        yield f"{by_name} matrix kernels where the model needs {needed}"
    budget = COPY_BUDGET_BYTES + 2 * 8 * positions + case.scheme_copy_bytes
    if (profile.copied_bytes or 0) > budget:
        yield f"{memory(profile.copied_bytes)} copied between host and device where the batch needs {memory(budget)}"


def _cpu_products(profile: KernelProfile) -> int:
    """The larger of both counts: torch's dispatcher, and operators without a kernel in the trace."""
    return max(profile.products.get("cpu", 0), sum(profile.cpu_operators.values()))


@TRAINING.rule(
    "native.jit_off",
    "the driver refuses a module of PTX (223) in the process that trained: what ran was native code",
    is_gpu_claim=True,
    promise=1,
)
def jit_off(case: Run) -> Answer:
    control = case.run.jit_control
    if control is None or not control.is_refused:
        return say(None, (control and control.reason) or "not asked")
    return say(True, "refused with 223", {"code": control.code})


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
    wanted = max(peak, STATE_BYTES_PER_PARAMETER * parameters(case.config.shape))
    seen, is_busy = memory_seen(telemetry, case.window), busier_than_idle(telemetry, case.window)
    held = "not available here" if seen is None else memory(seen)
    work = {True: "above idle", False: "as when idle", None: "against idle not available here"}[is_busy]
    found = f"{len(case.window)} readings during the steps; memory in use {held}, torch holds {memory(peak)}; "
    found += f"power or clock {work}"
    weak = [case.uncovered, "" if telemetry.is_bound_by_uuid else "device not identified by UUID"]
    is_other = not _is_same_card(case.run.device_name, telemetry.device_name)
    if is_other:
        weak = [f"torch names {case.run.device_name}, the driver {telemetry.device_name}", *weak]
    # One of the two witnesses is enough where the other is not available; a lack of memory contradicts.
    has_too_little = seen is not None and seen < MEMORY_SHARE * wanted
    is_shown = is_busy or (is_busy is None and seen is not None)
    is_good = None if any(weak) else False if has_too_little else True if is_shown else None
    values = {"readings": len(case.window), "memory_seen_bytes": seen, "memory_wanted_bytes": wanted}
    return say(False if is_other else is_good, "; ".join(text for text in (*weak, found) if text), values)


def _is_same_card(torch_name: str, driver_name: str | None) -> bool:
    """Whether torch and the driver can mean the same device; a driver that does not name it contradicts nothing."""
    if driver_name is None:
        return True
    ours, theirs = (name.lower().removeprefix("nvidia ").strip() for name in (torch_name, driver_name))
    return bool(ours and theirs) and (ours.startswith(theirs) or theirs.startswith(ours))


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
    "matrix products of class {case.config.dtype}, and matrix layers that put out as much",
    todo="look for code or a variable that changes torch's precision, or an autocast that is not active",
    is_gpu_claim=True,
)
def precision(case: Run) -> Answer:
    found, wanted = case.run.precision, "bfloat16" if case.config.dtype == "bfloat16" else "float32"
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
    "the losses of the same steps on the CPU in float32, but for rounding",
    todo="the device computes other numbers than the CPU: compare step by step in raw/steps.jsonl",
    is_gpu_claim=True,
)
def cpu_agreement(case: Run) -> Answer:
    reference, limit = case.run.cpu_reference, LOSS_LIMITS[case.config.dtype]
    losses = reference.losses if reference else ()
    # The first loss is from before the first update: it says nothing about training.
    if reference is None or reference.skipped or len(losses) < min(LEAST_REFERENCE_STEPS, len(case.steps)):
        return say(None, reference and reference.skipped or f"{len(losses)} finite losses on the CPU")
    pairs = [(step.loss, loss) for step, loss in zip(case.steps, losses)]
    gaps = [math.inf if ours is None or not theirs else abs(ours - theirs) / abs(theirs) for ours, theirs in pairs]
    largest = max(gaps, default=math.inf)
    found = f"largest relative difference {largest:.1e} over {len(gaps)} steps, {limit:g} allowed"
    told = {"largest": largest} if math.isfinite(largest) else {}
    return say(largest <= limit, found, {"steps": len(gaps), "limit": limit, **told})


@TRAINING.rule(
    "native.replay",
    "the same seed gives the same losses and the same matrix product, bit for bit (where the run's kernels add in "
    "changing order: with deterministic algorithms)",
    todo="a result that does not repeat points to hardware, overclocking or memory: test the card",
    is_gpu_claim=True,
)
def replay(case: Run) -> Answer:
    """Kernels that add in changing order differ without a fault; then deterministic ones decide."""
    again, count = case.run.replay, len(case.steps)
    if again is None or again.skipped:
        return say(None, again.skipped if again else "not replayed")
    unequal = [step.step for step, loss in zip(case.steps, again.losses) if step.loss != loss]
    found = f"{len(again.losses)} of {count} losses repeated, "
    found += f"first difference at step {unequal[0]}" if unequal else "all equal"
    if unequal and again.deterministic_is_equal is not None:
        found += f"; {'equal' if again.deterministic_is_equal else 'different also'} with deterministic algorithms"
    found += "" if again.matmul_is_equal else "; a repeated matrix product differed"
    is_whole = min(count, REPLAY_STEPS) <= len(again.losses) <= count and count > 0
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
    told = {name: by for name in after if (by := after[name] - before.get(name, after[name])) > 0}
    told |= {name: after[name] for name in ("remap_pending", "remap_failure") if after.get(name)}
    bad = [name for name in told if "uncorrected" in name or name.startswith("remap_")]
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
    broken = [step.step for step in case.steps if step.loss is None or step.grad_norm is None]
    empty = [step.step for step in case.steps if step.loss == 0]
    wrong, what = broken or empty, "loss or gradient not finite" if broken else "loss exactly 0"
    found = f"{what} at {len(wrong)} of {len(case.steps)} steps, first at step {wrong[0]}" if wrong else ""
    return say(
        not wrong and bool(case.steps), found or f"{len(case.steps)} finite losses", {"steps": (broken + empty)[:10]}
    )


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
    "each step was given the batch that the order of the data prescribes; more than one text",
    todo="look for a loader that swallows errors, or a dataset that repeats one row",
)
def prescribed_batches(case: Run) -> Answer:
    """What was asked for: batches may well be alike where the texts are, cut to seq_len."""
    if case.run.distinct_texts == 1:
        return say(False, f"one text, repeated in all {case.run.dataset_rows} rows of the data")
    if len(case.run.order) < len(case.steps) or not case.steps:
        return say(None, f"the order of {len(case.run.order)} batches is recorded")
    wrong = [step.step for step, wanted in zip(case.steps, case.run.order) if step.batch_sha256 != wanted]
    found = f"{len(wrong)} batches other than prescribed, first at step {wrong[0]}" if wrong else ""
    return say(not wrong, found or f"{len(case.steps)} batches as prescribed")


@TRAINING.rule(
    "learning.mode",
    "training mode: dropout and batch statistics are on",
    todo="call model.train() before the loop",
    required=False,
)
def mode(case: Run) -> Answer:
    """A warning: without dropout, which the kit's models do not have, the mode changes nothing."""
    off = [audit.step for audit in case.run.audits if not audit.is_training]
    found = f"in evaluation mode at step {off[0]}" if off else f"{len(case.run.audits)} audits, always in training mode"
    return say(not off if case.run.audits else None, found)


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
    "learning.strength",
    "weights that move as AdamW moves them at lr={case.config.lr:g}: by lr at first, by lr · √steps at least in all",
    todo="look for what changes the learning rate, the gradients or the weights inside the step",
)
def strength(case: Run) -> Answer:
    """The largest change is at most the sum of what each step can do, and at least lr · √steps: what noise without
    any direction moves a single weight by. A gradient clipped to nearly nothing moves it less: by g / (g + ε)."""
    learning, config = case.run.learning, case.config
    if learning is None:
        return _UNMEASURED
    gradient = config.max_grad_norm / math.sqrt(parameters(config.shape))
    least = config.lr * gradient / (gradient + ADAM_EPSILON)
    drift = LARGEST_WEIGHT * (config.lr * config.weight_decay + ROUNDING)
    most = [config.lr * adam_quotient(step) + drift for step in range(1, config.steps + 1)]
    low, high, largest = least * math.sqrt(config.steps), math.fsum(most), learning.max_change
    shares = [LEAST_FIRST_UPDATE, *(LEAST_UPDATE for _ in most)]
    limits = [(share * least - ROUNDING, limit) for share, limit in zip(shares, most)]
    updates = [(step.step, step.update) for step in case.steps if step.update is not None]
    odd = [f"{by:.1e} at step {step}" for step, by in updates if not limits[step - 1][0] <= by <= limits[step - 1][1]]
    found = f"largest change {largest:.1e} in {config.steps} steps, {low:.1e} to {high:.1e} is due"
    found += f"; median update {odd[0]}" if odd else ""
    return say(low <= largest <= high and not odd, found, {"max_change": largest, "low": low, "high": high})


@TRAINING.rule(
    "learning.trainable",
    "all of the model's parameters: this run declares full training",
    todo="set requires_grad on all parameters",
)
def trainable(case: Run) -> Answer:
    if case.run.learning is None:
        return _UNMEASURED
    ours, total = case.run.learning.trainable_parameters, parameters(case.config.shape)
    return say(ours == total, f"{ours:,} of {total:,} parameters trainable", {"trainable": ours, "total": total})


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


@TRAINING.rule(
    "throughput.undisturbed",
    "readings over all of the steps, no other process on the card, no thermal or hardware slowdown, no profiler",
    settle=f"stop other work on the card, let it cool, then {LONGER}",
    required=False,
    is_gpu_claim=True,
)
def undisturbed(case: Run) -> Answer:
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
    is_gpu_claim=True,
)
def clocks(case: Run) -> Answer:
    """A host that does not wait measures less time than the device needed. Times of each step decide: a window over
    all steps can hide it, because reading the loss waits as well."""
    timed = [step for step in case.steps if step.device_time_s is not None]
    host, device = (math.fsum(getattr(step, name) for step in timed) for name in ("step_time_s", "device_time_s"))
    if host <= 0:
        return say(None, "no device clock")
    gap, found = (device - host) / host, f"host {seconds(host)}, device {seconds(device)}"
    jump = (
        case.run.wall_window_s - case.figures.window_s if case.figures and case.run.wall_window_s is not None else 0.0
    )
    is_good = gap <= CLOCK_TOLERANCE
    # A driver that queues work (Windows) starts late; the host's time is then too long, not too short.
    if gap < -CLOCK_TOLERANCE:
        is_good, found = None, found + ": the device was done long before the host"
    elif is_good and abs(jump) > MAX_CLOCK_JUMP_S:
        is_good, found = None, f"the wall clock jumped by {seconds(jump)} during the run"
    return say(is_good, found, {"gap": gap})


@TRAINING.rule(
    "throughput.plausible",
    f"at most {percent(PLAUSIBLE_SHARE)} of the dense peak of this card and dtype",
    todo="impossible: the clock, the count or the name of the card is wrong",
    settle=LONGER,
    required=False,
    is_gpu_claim=True,
)
def plausible(case: Run) -> Answer:
    config, steady = case.config, [step for step in steady_steps(case.steps) if step.step_time_s > 0]
    peak = peak_flop_per_s(case.run.device_name, DATASHEET_DTYPES[config.dtype])
    if not steady:
        return say(None, "no steady steps")
    if peak is None:
        return say(None, "the card's peak is not known", settle="add the card's datasheet row")
    # The last batch of a pass may be smaller; each step counts for the samples it had.
    flop = {n: step_flop(config.shape, batch_size=n, seq_len=config.seq_len) for n in {s.samples for s in steady}}
    rate = max(flop[step.samples] / step.step_time_s for step in steady)
    found = (
        f"{quantity(rate, 'FLOP/s')} in the fastest steady step, {percent(rate / peak)} of {quantity(peak, 'FLOP/s')}"
    )
    is_good = False if rate > peak else None if rate > PLAUSIBLE_SHARE * peak else True
    return say(is_good, found, {"flop_per_s": rate, "share_of_peak": rate / peak})


@TRAINING.rule(
    "throughput.input",
    f"less than {percent(MAX_WAIT_SHARE)} of the run spent waiting for batches",
    settle="make loading faster: the figures are the loader's, not the device's",
    required=False,
    is_gpu_claim=True,
)
def input_wait(case: Run) -> Answer:
    waited = math.fsum(step.wait_s or 0.0 for step in case.steps)
    share = waited / ((waited + math.fsum(step.step_time_s for step in case.steps)) or 1.0)
    is_bound = share > MAX_WAIT_SHARE
    found = f"{percent(share)} of the time spent waiting for batches" + (": input bound" if is_bound else "")
    return say(None if is_bound or not case.steps else True, found, {"wait_share": share})


@TRAINING.rule(
    "throughput.dtype",
    "matrix units for {case.config.dtype}",
    settle="python -m kit train --dtype float32",
    required=False,
    is_gpu_claim=True,
)
def dtype_units(case: Run) -> Answer:
    """bfloat16 runs on older cards too, by emulation: a true result at a speed that is not its own."""
    capability, dtype = case.run.compute_capability, case.config.dtype
    if dtype == "float32" or capability is None:
        return say(
            dtype == "float32" or None,
            "float32 needs no matrix units" if dtype == "float32" else "compute capability not recorded",
        )
    has_units = capability >= FIRST_WITH_BFLOAT16
    found = (
        f"compute capability {'.'.join(map(str, capability))} {'has units for' if has_units else 'emulates'} {dtype}"
    )
    return say(has_units or None, found)

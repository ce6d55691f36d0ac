"""What one training run recorded, and the figures that follow from it.

Everything here is data or arithmetic: `kit verify` computes the same figures again from
the files of a bundle, without torch.
"""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence

from kit.gpu.facts import JitControl, MachineFacts
from kit.train.config import TrainConfig
from kit.units import Spread, spread

# Steps before this one (counted from 1) are warm-up and stay out of the steady figures.
STEADY_FROM = 5
# One step in so many runs under the dispatcher's eyes, at least 2 and at most 16 of a run.
WATCHED_SHARE, LEAST_WATCHED, MOST_WATCHED = 10, 2, 16
# A repetition of more steps shows no more.
REPLAY_STEPS = 20


def watched_steps(nonce: str, steps: int) -> frozenset[int]:
    """The steps whose every operator is looked at, drawn from the run's nonce: no program knows them beforehand,
    and whoever has the nonce can draw them again."""
    count = min(steps, MOST_WATCHED, max(LEAST_WATCHED, steps // WATCHED_SHARE))
    drawn: set[int] = set()
    numbers = itertools.count()
    while len(drawn) < count:
        digest = hashlib.sha256(f"{nonce}:{next(numbers)}".encode()).digest()
        drawn.add(int.from_bytes(digest[:8], "big") % steps + 1)
    return frozenset(drawn)


def audited_steps(nonce: str, steps: int) -> frozenset[int]:
    """Where every tensor is looked at: at the first, a middle and the last step, and at the drawn ones."""
    return watched_steps(nonce, steps) | {1, (steps + 1) // 2, steps}


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """One optimizer step, synchronised before and after it was timed.

    samples, tokens (not padding) and supervised_tokens (labels that enter the loss) are
    counted in the batch. loss and grad_norm are None where they were not finite; then
    `problem` says what they were. started_s: seconds since training began, monotonic.
    batch_sha256: first 16 hex digits, so that a repeated batch shows. device_time_s: the same step
    by the device's own clock (CUDA events). wait_s: how long the loop waited for the batch, before
    the step's own time began.

    products: weight products of this step's forward pass that ran on the device; elsewhere: operators of it that
    ran somewhere else, by name. Both are read from the autograd graph of the loss, which no program can leave out
    without losing its gradients. update: median absolute change of the weights of one small tensor. is_watched:
    the step was drawn (see `watched_steps`) and ran slower, so that it is none of the steady ones.
    """

    step: int
    loss: float | None
    grad_norm: float | None
    lr: float
    samples: int
    tokens: int
    supervised_tokens: int
    started_s: float
    step_time_s: float
    is_applied: bool
    batch_sha256: str
    memory_allocated_bytes: int | None = None
    memory_peak_bytes: int | None = None
    problem: str | None = None
    device_time_s: float | None = None
    wait_s: float | None = None
    products: int = 0
    elsewhere: tuple[str, ...] = ()
    update: float | None = None
    is_watched: bool = False


def steady_steps(steps: Sequence[StepRecord]) -> list[StepRecord]:
    """Those whose times are the run's speed: warm, and not looked into."""
    warm = [step for step in steps if step.step >= STEADY_FROM]
    return [step for step in warm if not step.is_watched] or warm


@dataclasses.dataclass(frozen=True)
class PlacementAudit:
    """Where every tensor of the run was at one step: how many on each device, and the strays by name.

    kinds: how many parameters, gradients, optimizer states, buffers and batch tensors were seen.
    product_dtypes: what the products with weights put out in this step, by dtype. is_training,
    is_profiled: whether the model was in training mode, and whether a profiler ran beside it.
    At a step that was drawn, large operators that ran elsewhere are among the strays.
    """

    step: int
    expected_device: str
    counted: dict[str, int]
    strays: tuple[str, ...]
    kinds: dict[str, int] = dataclasses.field(default_factory=dict)
    product_dtypes: dict[str, int] = dataclasses.field(default_factory=dict)
    is_training: bool | None = None
    is_profiled: bool | None = None


@dataclasses.dataclass(frozen=True)
class KernelProfile:
    """One profiled step, run after the timed ones.

    device_time_s: sum of kernel times. matmul_kernels: matrix-product kernels, told by name.
    copies, copied_bytes: between host and device. cpu_operators: matrix products without a kernel,
    by name with their count. groups: kernel seconds by kind. error: why there is no profile.
    products, product_flop: matrix products and their FLOP by the device that their result was on,
    counted where torch dispatches them, without the profiler's help. positions: B × T of the batch.
    """

    step_time_s: float | None = None
    device_time_s: float | None = None
    kernels: int | None = None
    matmul_kernels: int | None = None
    copies: int | None = None
    copied_bytes: int | None = None
    cpu_operators: dict[str, int] = dataclasses.field(default_factory=dict)
    groups: dict[str, float] = dataclasses.field(default_factory=dict)
    top_kernels: dict[str, float] = dataclasses.field(default_factory=dict)
    error: str | None = None
    products: dict[str, int] = dataclasses.field(default_factory=dict)
    product_flop: dict[str, float] = dataclasses.field(default_factory=dict)
    positions: int | None = None


@dataclasses.dataclass(frozen=True)
class Learning:
    """canary: the loss of one fixed batch before the first and after the last step, without dropout.

    moved_tensors of trainable_tensors changed; max_change is the largest change of one weight.
    """

    canary_before: float | None
    canary_after: float | None
    trainable_tensors: int
    moved_tensors: int
    unmoved: tuple[str, ...]
    max_change: float
    trainable_parameters: int
    total_parameters: int


@dataclasses.dataclass(frozen=True)
class Precision:
    """The precision class of a matrix product as measured: relative error against float64.

    observed: 'float32', 'tf32', 'bfloat16' or 'other', decided from the error.
    """

    observed: str
    relative_error: float
    size: int
    output_dtype: str


@dataclasses.dataclass(frozen=True)
class CpuReference:
    """The same first steps on the CPU in float32: their losses, beside those of the run."""

    steps: int
    losses: tuple[float, ...]
    seconds: float
    skipped: str | None = None


@dataclasses.dataclass(frozen=True)
class Replay:
    """The same first steps once more from the same start, `REPLAY_STEPS` at most; equal bits show that the run repeats.

    It is no proof against silent data corruption: an error that repeats looks the same.
    deterministic_is_equal: where the losses differed, whether they repeat once torch is asked for
    deterministic algorithms; then the kernels vary, not the hardware. None where not tried.
    """

    losses: tuple[float, ...]
    matmul_is_equal: bool | None
    skipped: str | None = None
    deterministic_is_equal: bool | None = None


@dataclasses.dataclass(frozen=True)
class TelemetrySample:
    """One reading of the driver, `at_s` seconds after training began; None is 'not available here'.

    throttle_bits: NVML's clocksEventReasons mask. foreign_processes: compute processes on this
    card that are not ours. own_memory_bytes: of our process, where the driver tells it.
    """

    at_s: float
    memory_used_bytes: int | None = None
    own_memory_bytes: int | None = None
    power_w: float | None = None
    clock_mhz: int | None = None
    utilization: float | None = None
    temperature_c: int | None = None
    throttle_bits: int | None = None
    foreign_processes: int | None = None


@dataclasses.dataclass(frozen=True)
class Telemetry:
    """What the driver said over the run. idle: a reading before training. counters: before and after.

    device_name: as the driver calls the device. reserved_before_bytes: what torch already held on it
    at the idle reading, in a process that had used it before. readings: how many were taken; a long run keeps fewer,
    among them those that hold an extreme of any reading.
    """

    device_uuid: str | None = None
    is_bound_by_uuid: bool = False
    idle: TelemetrySample | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    counters_before: dict[str, int] = dataclasses.field(default_factory=dict)
    counters_after: dict[str, int] = dataclasses.field(default_factory=dict)
    missing: tuple[str, ...] = ()
    error: str | None = None
    device_name: str | None = None
    memory_total_bytes: int | None = None
    reserved_before_bytes: int | None = None
    readings: int | None = None


@dataclasses.dataclass(frozen=True)
class Timings:
    """Where the seconds went, from the start of the process that trained."""

    import_s: float | None = None
    data_s: float | None = None
    build_s: float | None = None
    train_s: float | None = None
    witnesses_s: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """Everything a run recorded except its steps and samples of telemetry, which are lines of their own.

    weights_note: where the parameters came from.
    device_window_s: first step's start to last step's end by the device's own clock (CUDA events).
    wall_window_s: the same by the wall clock, which can jump. compute_capability: of the device.
    nonce: what the watched steps were drawn from. order: the first 16 hex digits of each batch's hash, as the
    order of the data prescribes it, drawn anew after the training. distinct_texts: how many rows are no repetition.
    jit_control: what the driver said to a module of PTX in the process that trained.
    """

    config: TrainConfig
    device_name: str
    weights_note: str
    dataset_sha256: str
    dataset_rows: int
    parameters: int
    timings: Timings
    audits: tuple[PlacementAudit, ...] = ()
    profile: KernelProfile | None = None
    learning: Learning | None = None
    precision: Precision | None = None
    cpu_reference: CpuReference | None = None
    replay: Replay | None = None
    telemetry: Telemetry | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    device_window_s: float | None = None
    error: str | None = None
    wall_window_s: float | None = None
    compute_capability: tuple[int, int] | None = None
    nonce: str = ""
    order: tuple[str, ...] = ()
    distinct_texts: int | None = None
    jit_control: JitControl | None = None


@dataclasses.dataclass(frozen=True)
class Throughput:
    """The figures of a run. steady_*: of the `steady_steps`; None where there were none.

    window_s: first step's start to last step's end, with what stood between the steps. total_s: the
    sum of the step times, the first included. Rates divide what was counted by measured time.
    """

    steps: int
    samples: int
    tokens: int
    supervised_tokens: int
    total_s: float
    window_s: float
    first_step_s: float
    steady: Spread | None
    steady_samples_per_s: float | None
    steady_tokens_per_s: float | None
    total_samples_per_s: float
    peak_memory_bytes: int | None


def throughput(steps: Sequence[StepRecord]) -> Throughput | None:
    """None where no step was recorded."""
    if not steps:
        return None
    total_s = math.fsum(step.step_time_s for step in steps)
    window = steady_steps(steps)
    window_s = math.fsum(step.step_time_s for step in window)
    peaks = [step.memory_peak_bytes for step in steps if step.memory_peak_bytes is not None]
    samples = sum(step.samples for step in steps)
    return Throughput(
        steps=len(steps),
        samples=samples,
        tokens=sum(step.tokens for step in steps),
        supervised_tokens=sum(step.supervised_tokens for step in steps),
        total_s=total_s,
        window_s=steps[-1].started_s + steps[-1].step_time_s - steps[0].started_s,
        first_step_s=steps[0].step_time_s,
        steady=spread([step.step_time_s for step in window]),
        steady_samples_per_s=sum(step.samples for step in window) / window_s if window_s else None,
        steady_tokens_per_s=sum(step.tokens for step in window) / window_s if window_s else None,
        total_samples_per_s=samples / total_s if total_s > 0 else 0.0,
        peak_memory_bytes=max(peaks, default=None),
    )


@dataclasses.dataclass(frozen=True)
class ControlRecord:
    """What the child saw of its machine and recorded of its training.

    visible_devices: how many GPUs torch counted in the child, after it trained; the mask has to leave none.
    """

    facts: MachineFacts
    run: TrainingRun
    steps: tuple[StepRecord, ...]
    seconds: float
    visible_devices: int | None = None

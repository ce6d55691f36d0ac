"""One training run with its witnesses: load, build, train, then measure what the verdict rests on.

The timed steps come first, on a cold device, and nothing else runs beside them but the
sampling of the driver. Everything after them repeats or inspects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from kit.errors import GpuNotUsable, TrainingFailed, UsageError
from kit.process import keep_bytecode
from kit.records import dumps
from kit.train import witness
from kit.train.config import TrainConfig
from kit.train.loop import training_steps
from kit.train.model import build_optimizer, precision
from kit.train.steps import CpuReference, Replay, StepRecord, TelemetrySample, Timings, TrainingRun

# What makes a short run short: most of it is imports, and most of those are Python compiling source again.
#
# Nothing is left out and nothing is replaced: work is only moved, and a device that cannot be used is refused.


def require_device(device: str):
    """Imports torch and refuses at once where `device` cannot be used. Returns the torch module."""
    # cuBLAS workspaces that give the same bits each time; read when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The profiler prints a line for each start and stop below this level; read when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise GpuNotUsable(
            f"device=cuda was asked for, and torch {torch.__version__} has no usable CUDA device",
            expected="a CUDA build of torch, a driver and a visible NVIDIA GPU",
            todo="python -m kit check says why and what to install; --device cpu rehearses without a GPU",
        )
    return torch


def start_device(device: str, dtype: str, *, has_kernels: bool = False) -> threading.Thread | None:
    """Starts CUDA and loads cuBLAS in a thread, beside the imports that follow; None on the CPU.

    has_kernels: the run will launch kernels of Triton, which hashes its own source once for the keys of its
    cache (0.43 s on an H100's machine, 2026-11); that is done here too. Join it before the device is measured. What fails there fails again, and is reported, at the first real use.
    """
    if device != "cuda":
        return None
    import torch

    # A thread begins on the first device, whichever this one has taken. Asking would start CUDA here.
    taken = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def start() -> None:
        if taken is not None:
            torch.cuda.set_device(taken)
        kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        try:
            left = torch.ones(64, 64, device=device, dtype=kind)
            (left @ left).sum()
            torch.cuda.synchronize()
        except RuntimeError:
            return
        if has_kernels:
            with contextlib.suppress(ImportError, AttributeError):
                from triton.runtime.cache import triton_key

                triton_key()

    thread = threading.Thread(target=start, name="kit-start-device", daemon=True)
    thread.start()
    return thread


# The same steps once more: on the device, bit for bit, and the first of them on the CPU.
#
# `state` is what was trained: `model`, `optimizer`, and `initial`, the parameters on the CPU as
# they were before the first step. Each function leaves it changed.

CPU_REFERENCE_STEPS = 3


def replay(
    state, batches: Sequence, config: TrainConfig, timed: tuple[float | None, ...]
) -> tuple[Replay, float | None]:
    """timed: the losses of the run. Returns the repetition, and the canary's loss before the first step."""
    restart(state, config)
    before = witness.canary_loss(state.model, batches[0], config)
    losses = _losses(state, batches, config)
    found = Replay(tuple(loss for loss in losses if loss is not None), witness.matmul_repeats(config))
    if losses != timed:
        found = dataclasses.replace(found, deterministic_is_equal=_repeats_deterministically(state, batches, config))
    return found, before


def cpu_reference(state, batches: Sequence, config: TrainConfig) -> CpuReference:
    if config.device == "cpu" and config.dtype == "float32":
        return CpuReference(0, (), 0.0, skipped="the run itself is float32 on the CPU")
    on_cpu = dataclasses.replace(config, device="cpu", dtype="float32")
    state.model.to("cpu")
    restart(state, on_cpu)
    start = time.perf_counter()
    losses = _losses(state, batches[: min(CPU_REFERENCE_STEPS, config.steps)], on_cpu)
    finite = tuple(loss for loss in losses if loss is not None)
    return CpuReference(len(finite), finite, time.perf_counter() - start)


def restart(state, config: TrainConfig) -> None:
    """Puts the model back to where it was before the first step, with a fresh optimizer."""
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            parameter.copy_(state.initial[name])
    state.model.zero_grad(set_to_none=True)
    state.optimizer = build_optimizer(state.model, config)


def _losses(state, batches: Sequence, config: TrainConfig) -> tuple[float | None, ...]:
    with precision(config):
        steps = training_steps(state.model, state.optimizer, batches, config, began_s=time.perf_counter())
        return tuple(step.loss for step in steps)


def _repeats_deterministically(state, batches: Sequence, config: TrainConfig) -> bool:
    """Whether two runs of the steps agree bit for bit where torch is asked for deterministic algorithms.

    Attention's backward pass adds in changing order at longer sequences; that is no fault of the card.
    """
    found = []
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(2):
                restart(state, config)
                found.append(_losses(state, batches, config))
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    return found[0] == found[1]


class Group(Protocol):
    """The process as one rank of several, where it is one; made by `kit.extras.scale.group`."""

    def start(self) -> None:
        """Joins the others and takes its device. Called once torch is known to have one."""

    def share(self, config: TrainConfig, count: int) -> tuple[list, Any]:
        """This rank's part of `count` global batches, and the texts they came from."""

    def wrap(self, model: Any) -> Any:
        """`model`, on its device already, so that a step exchanges gradients with the other ranks."""

    def trained(self, model: Any) -> None:
        """Called after the last step, before anything else changes the weights."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a run recorded, before anybody judges it."""

    run: TrainingRun
    steps: tuple[StepRecord, ...]
    samples: tuple[TelemetrySample, ...]


def measure(
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    group: Group | None = None,
) -> Measured:
    """Trains as `config` says and measures what a verdict needs.

    out: a folder for `training.json`, `steps.jsonl` and `telemetry.jsonl`; a step is written as
    soon as it is done, so nothing measured is lost. group: the other ranks, where there are any; what
    a repetition or the CPU would show of one process alone is then not measured. Raises
    GpuNotUsable before any work where the device is cuda and cannot be used, UsageError for bad
    data, TrainingFailed where training broke (what was measured is then already in `out`).
    """
    if config.engine != "eager":
        raise UsageError(
            f"engine={config.engine}",
            expected="engine=eager, whose steps every witness can look into",
            todo="kit bench and kit sweep measure the other engines, and that their losses are the same",
        )
    began = time.perf_counter()
    recorder = _recorder(config)
    torch = _start(config, group)
    imported = time.perf_counter()
    batches, text_set = group.share(config, config.steps + 2) if group else _batches(config)
    loaded = time.perf_counter()
    keeper = _Keeper(out)
    state = _build(torch, config, group, batches)
    built = time.perf_counter()
    try:
        timed = _timed(torch, state, batches, config, recorder, keeper, on_step)
    finally:
        # Whatever happened, no thread may still be inside the driver when the process ends.
        telemetry = recorder.stop() if recorder else None
    trained = time.perf_counter()
    samples = tuple(recorder.samples) if recorder else ()
    keeper.write("telemetry.jsonl", "".join(dumps(sample, indent=None) + "\n" for sample in samples))
    run = dataclasses.replace(
        _recorded(torch, config, state, timed),
        dataset_sha256=text_set.sha256,
        dataset_rows=text_set.rows,
        distinct_texts=len(set(text_set.texts)),
        order=tuple(b.sha256[:16] for b in batches[: config.steps]) if group else _prescribed(config, text_set),
        telemetry=telemetry,
    )
    if timed.error is None:
        if group:
            group.trained(state.model)
        run = _witnesses(run, state, timed.steps, batches, is_alone=group is None)
    timings = Timings(
        import_s=imported - began,
        data_s=loaded - imported,
        build_s=built - loaded,
        train_s=trained - built,
        witnesses_s=time.perf_counter() - trained,
    )
    run = dataclasses.replace(run, timings=timings)
    keeper.write("training.json", dumps(run))
    if timed.error is not None:
        raise timed.error
    return Measured(run, tuple(timed.steps), samples)


def _start(config: TrainConfig, group: Group | None):
    """Imports what the run needs while the device starts beside it. Returns the torch module."""
    keep_bytecode()
    torch = require_device(config.device)
    if group:
        group.start()
    starting = start_device(config.device, config.dtype)
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401  the slow import, counted as import time

    if starting:
        starting.join()
    return torch


def _recorded(torch, config: TrainConfig, state: _State, timed: _Timed) -> TrainingRun:
    """The record of the timed steps; data, telemetry and times are still to be put in."""
    is_cuda = config.device == "cuda"
    return TrainingRun(
        config=config,
        device_name=torch.cuda.get_device_name() if is_cuda else "CPU",
        weights_note=state.weights_note,
        dataset_sha256="",
        dataset_rows=0,
        parameters=sum(p.numel() for p in state.model.parameters()),
        timings=Timings(),
        audits=tuple(timed.audits),
        versions=_versions(torch),
        device_window_s=timed.device_window_s,
        wall_window_s=timed.wall_window_s,
        compute_capability=torch.cuda.get_device_capability() if is_cuda else None,
        error=str(timed.error) if timed.error else None,
    )


@dataclasses.dataclass
class _State:
    """What is being trained; `initial` holds the parameters on the CPU as they were before the first step.

    network: what computes a step; the model itself, or what exchanges its gradients with other ranks.
    canary_before: loss of the first batch before the first step, where it had to be measured then.
    """

    model: Any
    network: Any
    optimizer: Any
    initial: dict
    weights_note: str
    canary_before: float | None


@dataclasses.dataclass(frozen=True)
class _Timed:
    """The steps that count, the error that ended them early, and their window by the device's and the wall's clock."""

    steps: list
    audits: list
    error: TrainingFailed | None
    device_window_s: float | None
    wall_window_s: float | None


class _Keeper:
    """Writes what was measured as soon as it exists; keeps nothing where no folder was named."""

    def __init__(self, out: str | Path | None) -> None:
        self.folder = Path(out) if out else None
        if self.folder:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "steps.jsonl").write_text("", encoding="utf-8")
            except OSError as error:
                raise _unwritable(self.folder, error) from error

    def write(self, name: str, text: str) -> None:
        if self.folder:
            try:
                (self.folder / name).write_text(text, encoding="utf-8", newline="\n")
            except OSError as error:
                raise _unwritable(self.folder / name, error) from error

    def add_step(self, record: StepRecord) -> None:
        if self.folder:
            with (self.folder / "steps.jsonl").open("a", encoding="utf-8", newline="\n") as file:
                file.write(dumps(record, indent=None) + "\n")


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{path} cannot be written: {error.strerror}",
        expected="a folder you may write to, with space",
        todo="name another folder with --out",
    )


def _recorder(config: TrainConfig):
    if config.device != "cuda":
        return None
    from kit.train.telemetry import Recorder

    return Recorder()


def _batches(config: TrainConfig):
    """As many batches as there are steps, and two more for the profiler."""
    from kit.train import data

    text_set = data.load_texts(config.dataset)
    endless = data.batches(
        text_set, data.load_tokenizer("gpt2"), batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed
    )
    return list(itertools.islice(endless, config.steps + 2)), text_set


def _prescribed(config: TrainConfig, text_set) -> tuple[str, ...]:
    from kit.train import data

    hashes = data.prescribed(
        text_set, data.load_tokenizer("gpt2"), batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed
    )
    return tuple(digest[:16] for digest in itertools.islice(hashes, config.steps))


def _build(torch, config: TrainConfig, group: Group | None, batches: Sequence) -> _State:
    from kit.train.model import build_model, build_optimizer
    from kit.train.witness import canary_loss

    model, note = build_model(config)
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    try:
        model = model.to(config.device)
        # Several ranks cannot put their parts of the model back afterwards.
        before = canary_loss(model, batches[0], config) if group else None
        network = group.wrap(model) if group else model
    except RuntimeError as error:
        raise _failed(error, config) from error
    return _State(model, network, build_optimizer(model, config), initial, note, before)


def _timed(torch, state, batches, config, recorder, keeper, on_step) -> _Timed:
    from kit.train.loop import training_steps
    from kit.train.model import precision
    from kit.train.witness import Auditor

    audited = {1, (config.steps + 1) // 2, config.steps}
    auditor = Auditor(state.model, state.optimizer, config.device, audited)
    steps: list[StepRecord] = []
    error = None
    events = _events(torch, config)
    if recorder:
        recorder.bind(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
    began, began_wall = time.perf_counter(), time.time()
    if recorder:
        recorder.start(began)
    if events:
        events[0].record()
    try:
        with precision(config):
            for record in training_steps(
                state.network, state.optimizer, batches[: config.steps], config, began_s=began, audit=auditor
            ):
                if events:
                    events[1].record()
                ended_wall = time.time()
                steps.append(record)
                keeper.add_step(record)
                if on_step:
                    on_step(record)
    except RuntimeError as caught:
        error = _failed(caught, config)
    window_s = None
    if events and steps and error is None:
        events[1].synchronize()
        window_s = events[0].elapsed_time(events[1]) / 1000
    return _Timed(steps, auditor.audits, error, window_s, ended_wall - began_wall if steps else None)


def _events(torch, config):
    if config.device != "cuda":
        return None
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def _failed(error: RuntimeError, config: TrainConfig) -> TrainingFailed:
    """A runtime error of torch in three parts; out of memory gets the numbers that matter."""
    import torch

    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, torch.cuda.OutOfMemoryError):
        free, total = torch.cuda.mem_get_info()
        return TrainingFailed(
            f"batch_size={config.batch_size} × seq_len={config.seq_len} does not fit: {first_line}",
            expected=f"at most {total / 1024**3:.1f} GiB on this GPU, {free / 1024**3:.1f} GiB of it free now",
            todo=f"use batch_size <= {max(1, config.batch_size // 2)} or a shorter seq_len",
        )
    return TrainingFailed(
        f"training stopped: {first_line}",
        expected=f"{config.steps} steps on {config.device}",
        todo="python -m kit check tells whether this GPU and this torch fit together",
    )


def _witnesses(run: TrainingRun, state: _State, steps, batches: Sequence, *, is_alone: bool) -> TrainingRun:
    """Everything that is measured after the timed steps, each part on the state the one before it left."""
    from kit.train import witness

    config = run.config
    after = witness.canary_loss(state.model, batches[0], config)
    learning = witness.measure_learning(state.model, state.initial, None, after)
    with witness.precision(config):
        # The last batch of a pass over the data may be smaller; the first is whole.
        profile = witness.profile_step(state.network, state.optimizer, 2 * batches[:1], config)
    run, before = (
        dataclasses.replace(run, profile=profile, precision=witness.measure_precision(config)),
        state.canary_before,
    )
    if is_alone:
        again, before = replay(state, batches[: config.steps], config, tuple(step.loss for step in steps))
        run = dataclasses.replace(run, replay=again, cpu_reference=cpu_reference(state, batches, config))
    return dataclasses.replace(run, learning=dataclasses.replace(learning, canary_before=before))


def _versions(torch) -> dict[str, str]:
    import transformers

    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "transformers": transformers.__version__,
    }

"""One training run and its verdict: what `kit train` and the notebook show."""

import contextlib
import dataclasses
import functools
import itertools
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kit.errors import GpuNotUsable, TrainingFailed, UsageError
from kit.process import begin_proof, keep_bytecode
from kit.records import Verdict, dumps
from kit.show import Table, card, escape
from kit.train.config import TrainConfig
from kit.train.judge_training import judge_training
from kit.train.steps import StepRecord, TelemetrySample, Throughput, Timings, TrainingRun, throughput
from kit.train.telemetry import Recorder
from kit.units import memory, number, seconds

# One training run with its witnesses: load, build, train, then measure what the verdict rests on.
#
# The timed steps come first, on a cold device, and nothing else runs beside them but the
# sampling of the driver. Everything after them repeats or inspects. Importing this imports no
# torch: what makes a short run short is that imports and the device's start run side by side.


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

    has_kernels: the run will launch kernels of Triton, which hashes its own source once for the keys of its cache
    (0.43 s on an H100's machine, 2026-11); that is done here too. Join it before the device is measured. What fails
    there fails again, and is reported, at the first real use.
    """
    if device != "cuda":
        return None
    import torch

    # A thread begins on the first device, whichever this one has taken. Asking would start CUDA here.
    taken = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def start() -> None:
        with contextlib.suppress(RuntimeError, ImportError, AttributeError):
            if taken is not None:
                torch.cuda.set_device(taken)
            left = torch.ones(64, 64, device=device, dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)
            (left @ left).sum()
            torch.cuda.synchronize()
            if has_kernels:
                from triton.runtime.cache import triton_key

                triton_key()

    thread = threading.Thread(target=start, name="kit-start-device", daemon=True)
    thread.start()
    return thread


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """A run with its steps, its telemetry and what they say."""

    run: TrainingRun
    steps: tuple[StepRecord, ...]
    samples: tuple[TelemetrySample, ...]

    @functools.cached_property
    def verdict(self) -> Verdict:
        return Verdict.of(judge_training(self.run, self.steps, self.samples))

    @property
    def throughput(self) -> Throughput | None:
        return throughput(self.steps)

    @property
    def sentence(self) -> str:
        """The finding in words."""
        figures, config = self.throughput, self.run.config
        rate = f", {number(figures.steady_samples_per_s, 2)} samples/s once warm" if figures.steady else ""
        return (
            f"{self.verdict.outcome}: {config.model} trained {figures.steps} steps of {config.batch_size} × "
            f"{config.seq_len} in {config.dtype} on {self.run.device_name} in {seconds(figures.total_s)}{rate}; "
            f"loss {number(self.steps[0].loss, 4)} → {number(self.steps[-1].loss, 4)} ({self.run.weights_note})."
        )

    @property
    def table(self) -> Table:
        """The run in numbers, each with its definition."""
        figures = self.throughput
        steady = figures.steady
        rows = [
            ("first step", seconds(figures.first_step_s), "cold, synchronised"),
            (
                "steady step",
                seconds(steady.median) if steady else "–",
                f"median of n = {steady.n}, IQR {seconds(steady.iqr, 2)}" if steady else "too few steps",
            ),
            ("samples/s, steady", number(figures.steady_samples_per_s, 2), "counted samples over the same steps"),
            ("tokens/s, steady", number(figures.steady_tokens_per_s, 2), "without padding"),
            (
                "samples/s, all steps",
                number(figures.total_samples_per_s, 2),
                f"{figures.samples} samples, cold start included",
            ),
            ("peak memory", memory(figures.peak_memory_bytes), "allocated by torch"),
        ]
        return Table(("figure", "value", "definition"), tuple(rows))

    def __str__(self) -> str:
        return f"{self.sentence}\n\n{self.table}\n\n{self.verdict}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return card(escape(self.sentence), self.table._repr_html_(), self.verdict.outcome) + self.verdict._repr_html_()


def train(
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    group: Any = None,
) -> TrainingResult:
    """Trains as `config` says and measures what a verdict needs.

    out: a folder for `training.json`, `steps.jsonl` and `telemetry.jsonl`; a step is written as
    soon as it is done, so nothing measured is lost. group: the other ranks, where there are any (a `Group` of
    `kit.extras.scale`); what a repetition or the CPU would show of one process alone is then not measured. Raises
    GpuNotUsable before any work where the device is cuda and cannot be used, UsageError for bad
    data, TrainingFailed where training broke (what was measured is then already in `out`).
    """
    if config.engine != "eager":
        raise UsageError(
            f"engine={config.engine}",
            expected="engine=eager, whose steps every witness can look into",
            todo="kit bench and kit sweep measure the other engines, and that their losses are the same",
        )
    times = [time.perf_counter()]
    recorder = Recorder() if config.device == "cuda" else None
    torch = _start(config, group)
    from kit.gpu.proof import jit_control
    from kit.train.witness import Watch

    times.append(time.perf_counter())
    batches, text_set = group.share(config, config.steps) if group else _batches(config)
    times.append(time.perf_counter())
    state = _build(config, group, batches)
    times.append(time.perf_counter())
    nonce = os.environ.get("KIT_NONCE") or secrets.token_hex(8)
    # A step that one rank looks into holds up the others, so all look into the same.
    watch = Watch(state.model, state.optimizer, config, group.all_of(nonce)[0] if group else nonce)
    steps: list[StepRecord] = []
    windows: tuple[float | None, float | None] = (None, None)
    error, folder = None, Path(out) if out else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "steps.jsonl" if folder else os.devnull, "w", 1, encoding="utf-8", newline="\n") as log:

        def each(record: StepRecord) -> None:
            steps.append(record)
            log.write(dumps(record, indent=None) + "\n")
            if on_step:
                on_step(record)

        try:
            windows = _timed(state, batches, config, watch, recorder, each)
        except RuntimeError as caught:
            error = _failed(caught, config)
        finally:
            # Whatever happened, no thread may still be inside the driver when the process ends.
            telemetry = recorder.stop() if recorder else None
    times.append(time.perf_counter())
    samples = tuple(recorder.samples) if recorder else ()
    if folder:
        lines = "".join(dumps(sample, indent=None) + "\n" for sample in samples)
        (folder / "telemetry.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    run = TrainingRun(
        config=config,
        device_name=torch.cuda.get_device_name() if recorder else "CPU",
        weights_note=state.weights_note,
        dataset_sha256=text_set.sha256,
        dataset_rows=len(text_set.texts),
        distinct_texts=len(set(text_set.texts)),
        order=tuple(batch.sha256[:16] for batch in batches) if group else _prescribed(config, text_set),
        parameters=sum(p.numel() for p in state.model.parameters()),
        timings=Timings(),
        audits=tuple(watch.audits),
        telemetry=telemetry,
        versions=_versions(torch),
        device_window_s=windows[0],
        wall_window_s=windows[1],
        compute_capability=torch.cuda.get_device_capability() if recorder else None,
        error=str(error) if error else None,
        nonce=watch.nonce,
        jit_control=jit_control(torch.cuda.current_device()) if recorder else None,
    )
    if error is None:
        run = _witnesses(run, state, steps, batches, group)
    times.append(time.perf_counter())
    run = dataclasses.replace(run, timings=Timings(*(end - start for start, end in itertools.pairwise(times))))
    if folder:
        (folder / "training.json").write_text(dumps(run), encoding="utf-8", newline="\n")
    if error is not None:
        raise error
    return TrainingResult(run, tuple(steps), samples)


def _start(config: TrainConfig, group: Any):
    """Imports what the run needs while the device starts beside it. Returns the torch module."""
    begin_proof()
    keep_bytecode()
    torch = require_device(config.device)
    if group:
        group.start()
    starting = start_device(config.device, config.dtype)
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401  the slow import, counted as import time

    if starting:
        starting.join()
    return torch


def _batches(config: TrainConfig):
    """A batch for each step, and the texts that they came from."""
    from kit.train import data

    text_set = data.load_texts(config.dataset)
    endless = data.batches(
        text_set, data.load_tokenizer(), batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed
    )
    return list(itertools.islice(endless, config.steps)), text_set


def _prescribed(config: TrainConfig, text_set) -> tuple[str, ...]:
    from kit.train import data

    hashes = data.prescribed(
        text_set, data.load_tokenizer(), batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed
    )
    return tuple(digest[:16] for digest in itertools.islice(hashes, config.steps))


def _build(config: TrainConfig, group: Any, batches: Sequence) -> SimpleNamespace:
    """What is being trained; `initial` holds the parameters on the CPU as they were before the first step.

    network: what computes a step; the model itself, or what exchanges its gradients with other ranks.
    canary_before: loss of the first batch before the first step, where it had to be measured then.
    """
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
    return SimpleNamespace(
        model=model,
        network=network,
        optimizer=build_optimizer(model, config),
        initial=initial,
        weights_note=note,
        canary_before=before,
    )


def _timed(state, batches, config, watch, recorder, each) -> tuple[float | None, float]:
    """Trains, and gives each step's record to `each`. Returns the window of the steps by the device's own clock, None
    on the CPU, and by the wall clock."""
    import torch

    from kit.train.loop import training_steps
    from kit.train.model import precision

    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if recorder else []
    if recorder:
        recorder.bind(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
    began, began_wall = time.perf_counter(), time.time()
    if recorder:
        recorder.start(began)
        events[0].record()
    with precision(config):
        for record in training_steps(state.network, state.optimizer, batches, config, began_s=began, watch=watch):
            if events:
                events[1].record()
            ended_wall = time.time()
            each(record)
    if events:
        events[1].synchronize()
    return events[0].elapsed_time(events[1]) / 1000 if events else None, ended_wall - began_wall


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


def _witnesses(run: TrainingRun, state, steps, batches: Sequence, group: Any) -> TrainingRun:
    """Everything that is measured after the timed steps, each part on the state the one before it left."""
    from kit.train import witness

    if group:
        group.trained(state.model)
    config, before = run.config, state.canary_before
    after = witness.canary_loss(state.model, batches[0], config)
    learning = witness.measure_learning(state.model, state.initial, None, after)
    with witness.precision(config):
        # The first batch is full, as the last of a pass over the data may not be.
        profile = witness.profile_step(state.network, state.optimizer, batches[0], config)
    run = dataclasses.replace(run, profile=profile, precision=witness.measure_precision(config))
    if not group:
        again, before = witness.replay(state, batches, config, [step.loss for step in steps])
        run = dataclasses.replace(run, replay=again, cpu_reference=witness.cpu_reference(state, batches, config))
    return dataclasses.replace(run, learning=dataclasses.replace(learning, canary_before=before))


def _versions(torch) -> dict[str, str]:
    import transformers

    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "transformers": transformers.__version__,
    }

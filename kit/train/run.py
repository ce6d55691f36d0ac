"""One training run with its witnesses: load, build, train, then measure what the verdict rests on.

The timed steps come first, on a cold device, and nothing else runs beside them but the
sampling of the driver. Everything after them repeats or inspects.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kit.errors import GpuNotUsable, TrainingFailed, UsageError
from kit.records import Verdict, dumps
from kit.show import Table, card, escape
from kit.train.config import TrainConfig
from kit.train.metrics import (
    StepRecord,
    TelemetrySample,
    Throughput,
    Timings,
    TrainingRun,
    throughput,
)
from kit.train.startup import keep_bytecode, start_device
from kit.train.verdict import judge_training
from kit.units import memory, number, seconds


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """A run with its steps, its telemetry and what they say."""

    run: TrainingRun
    steps: tuple[StepRecord, ...]
    samples: tuple[TelemetrySample, ...]
    verdict: Verdict

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
            ("steady step", seconds(steady.median) if steady else "–",
             f"median of n = {steady.n}, IQR {seconds(steady.iqr, 2)}" if steady else "too few steps"),
            ("samples/s, steady", number(figures.steady_samples_per_s, 2), "counted samples over the same steps"),
            ("tokens/s, steady", number(figures.steady_tokens_per_s, 2), "without padding"),
            ("samples/s, all steps", number(figures.total_samples_per_s, 2), f"{figures.samples} samples, cold start included"),
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
    peak_flop_per_s: float | None = None,
) -> TrainingResult:
    """Trains as `config` says and judges the run.

    out: a folder for `training.json`, `steps.jsonl` and `telemetry.jsonl`; a step is written as
    soon as it is done, so nothing measured is lost. Raises GpuNotUsable before any work where
    the device is cuda and cannot be used, UsageError for bad data, TrainingFailed where training
    broke (what was measured is then already in `out`).
    """
    if config.engine != "eager":
        raise UsageError(f"engine={config.engine}", expected="engine=eager, whose steps every witness can look into",
                         todo="kit bench and kit sweep measure the other engines, and that their losses are the same")
    began = time.perf_counter()
    keep_bytecode()
    recorder = _recorder(config)
    torch = require_device(config.device)
    starting = start_device(config.device, config.dtype)
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401  the slow import, counted as import time

    if starting:
        starting.join()
    imported = time.perf_counter()
    batches, text_set = _batches(config)
    loaded = time.perf_counter()
    keeper = _Keeper(out)
    state = _build(torch, config)
    built = time.perf_counter()

    try:
        steps, audits, error, windows = _timed(torch, state, batches, config, recorder, keeper, on_step)
    finally:
        # Whatever happened, no thread may still be inside the driver when the process ends.
        telemetry = recorder.stop() if recorder else None
    trained = time.perf_counter()
    run = TrainingRun(
        config=config,
        device_name=torch.cuda.get_device_name() if config.device == "cuda" else "CPU",
        weights_note=state.weights_note,
        dataset_sha256=text_set.sha256,
        dataset_rows=text_set.rows,
        parameters=sum(p.numel() for p in state.model.parameters()),
        gradient_dtype="float32",
        timings=Timings(
            import_s=imported - began, data_s=loaded - imported, build_s=built - loaded, train_s=trained - built
        ),
        audits=tuple(audits),
        telemetry=telemetry,
        versions=_versions(torch),
        device_window_s=windows[0],
        wall_window_s=windows[1],
        compute_capability=torch.cuda.get_device_capability() if config.device == "cuda" else None,
        error=str(error) if error else None,
    )
    samples = tuple(recorder.samples) if recorder else ()
    keeper.write("telemetry.jsonl", "".join(dumps(sample, indent=None) + "\n" for sample in samples))
    if error is None:
        run = _witnesses(run, state, steps, batches)
    run = dataclasses.replace(
        run, timings=dataclasses.replace(run.timings, witnesses_s=time.perf_counter() - trained)
    )
    keeper.write("training.json", dumps(run))
    if error is not None:
        raise error
    checks = judge_training(run, steps, samples, peak_flop_per_s=peak_flop_per_s)
    return TrainingResult(run, tuple(steps), samples, Verdict.of(checks))


@dataclasses.dataclass
class _State:
    """What is being trained; `initial` holds the parameters on the CPU as they were before the first step."""

    model: object
    optimizer: object
    initial: dict
    weights_note: str


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
    return UsageError(f"{path} cannot be written: {error.strerror}", expected="a folder you may write to, with space",
                      todo="name another folder with --out")


def _recorder(config: TrainConfig):
    if config.device != "cuda":
        return None
    from kit.train.telemetry import Recorder

    return Recorder()


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


def _batches(config: TrainConfig):
    """As many batches as there are steps, and two more for the profiler."""
    from kit.train import data

    text_set = data.load_texts(config.dataset)
    endless = data.batches(
        text_set, data.load_tokenizer("gpt2"), batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed
    )
    return list(itertools.islice(endless, config.steps + 2)), text_set


def _build(torch, config: TrainConfig) -> _State:
    from kit.train.model import build_model, build_optimizer

    model, note = build_model(config)
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    try:
        model = model.to(config.device)
    except RuntimeError as error:
        raise _failed(error, config) from error
    return _State(model, build_optimizer(model, config), initial, note)


def _timed(torch, state, batches, config, recorder, keeper, on_step):
    """The steps that count. Returns records, audits, the error that ended them early, and their window by the
    device's own clock and by the wall clock."""
    from kit.train.loop import training_steps
    from kit.train.model import precision
    from kit.train.witness import Auditor

    audited = {1, (config.steps + 1) // 2, config.steps}
    auditor = Auditor(state.model, state.optimizer, config.device, audited)
    steps: list[StepRecord] = []
    error = None
    events = _events(torch, config)
    if recorder:
        recorder.bind(str(torch.cuda.get_device_properties(0).uuid))
    began, began_wall = time.perf_counter(), time.time()
    if recorder:
        recorder.start(began)
    if events:
        events[0].record()
    try:
        with precision(config):
            for record in training_steps(
                state.model, state.optimizer, batches[: config.steps], config, began_s=began, audit=auditor
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
    return steps, auditor.audits, error, (window_s, ended_wall - began_wall if steps else None)


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
        f"training stopped: {first_line}", expected=f"{config.steps} steps on {config.device}",
        todo="python -m kit check tells whether this GPU and this torch fit together",
    )


def _witnesses(run: TrainingRun, state: _State, steps, batches: Sequence) -> TrainingRun:
    """Everything that is measured after the timed steps, each part on the state the one before it left."""
    from kit.train import witness
    from kit.train.repeat import cpu_reference, replay

    config = run.config
    after = witness.canary_loss(state.model, batches[0], config)
    learning = witness.measure_learning(state.model, state.initial, None, after)
    with witness.precision(config):
        profile = witness.profile_step(state.model, state.optimizer, batches[-2:], config)
    again, before = replay(state, batches[: config.steps], config, tuple(step.loss for step in steps))
    return dataclasses.replace(
        run,
        profile=profile,
        learning=dataclasses.replace(learning, canary_before=before),
        precision=witness.measure_precision(config),
        replay=again,
        cpu_reference=cpu_reference(state, batches, config),
    )


def _versions(torch) -> dict[str, str]:
    import transformers

    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "transformers": transformers.__version__,
    }


"""One model, stepped by one engine after another from the same weights: the points of a sweep, and first steps.

Built once, since building takes longer than a point; its weights are put back for each use, because a model that has
learnt its batch by heart rounds differently.
"""

import contextlib
import dataclasses
import gc
import itertools
import math
import statistics
import time
import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from kit.sweep.table import LOSS_STEPS, EngineLosses, Row, SameLosses, SweepPlan, row_of
from kit.train import data
from kit.train.config import TrainConfig
from kit.train.engines import NOTE, build_engine, missing_trainer, random_batch, run_trainer
from kit.train.loop import synchronize
from kit.train.model import build_model, precision
from kit.train.profile import between, profiled, profiler_problem
from kit.train.steps import STEADY_FROM, KernelProfile

# Warm when a round of steps takes within 3 % of the one before it; what never settles is measured all the same.
_STEADY = 0.03
_ROUND_S = 0.1
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 15
# A block lasts `block_s` and at least this many steps; one of the Trainer's has this many.
_LEAST_STEPS, _TRAINER_STEPS = 2, 5
# Larger than the smoke's, so that ten steps move the loss far beyond the limits: an engine that does not update is red.
_LR = 1e-4
_TIMED_STEPS = 5


def engine_of(model, config: TrainConfig) -> Any:
    """The engine of `config` (see `build_engine`). Hugging Face's Trainer has no step: of it this is only whether it can
    run here, and its note."""
    if config.engine != "trainer":
        return build_engine(config.engine, model, config)
    reason = missing_trainer()
    return types.SimpleNamespace(is_fallback=reason is not None, reason=reason, note=NOTE)


class Trial:
    """The model of `config` on its device; the other configurations may differ in all but model and device."""

    def __init__(self, config: TrainConfig) -> None:
        model = build_model(config)[0]
        # On the CPU, so that the copy does not count as memory of the step.
        self._initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.model = model.to(config.device)

    def fresh(self, config: TrainConfig) -> None:
        """The first weights again, no gradient, and no memory of what came before."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self._initial[name])
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        if config.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def point(self, config: TrainConfig, plan: SweepPlan) -> Row:
        """Mean step time of each block, after a warm-up. A graph's memory counts while it is built: later, torch does
        not see what the graph holds."""
        self.fresh(config)
        batch, losses = random_batch(self.model, config), []
        with precision(config):
            engine = engine_of(self.model, config)
            if engine.is_fallback:
                return row_of(config, "missing", reason=engine.reason)
            if config.engine == "trainer":
                size, warm_up = _TRAINER_STEPS, STEADY_FROM - 1
                run = run_trainer(self.model, config, [batch] * (warm_up + plan.blocks * size))
                firsts, losses = range(warm_up, len(run.step_s), size), list(run.losses)
                times = [sum(run.step_s[first : first + size]) / size for first in firsts]
            else:

                def step() -> None:
                    losses[:] = [engine.step(*batch)[0]]

                size, times = timed_blocks(step, config.device, blocks=plan.blocks, block_s=plan.block_s)
        if wrong := [loss for loss in map(float, losses) if not math.isfinite(loss)]:
            return row_of(config, "error", reason=f"the loss is {wrong[0]}")
        peak = torch.cuda.max_memory_allocated() if config.device == "cuda" else None
        figures = {"steps": size * len(times), "note": engine.note, "peak_memory_bytes": peak}
        return row_of(config, "ok", block_step_s=tuple(times), **figures)

    def first_steps(
        self, config: TrainConfig, batches: Sequence, *, is_profiled: bool = False
    ) -> tuple[EngineLosses, KernelProfile | None]:
        """The first losses, and the kernels of a warm step where `is_profiled`, its step_time_s the median of a few that
        no profiler slowed. A step of the Trainer lasts from one forward pass to the next, where a hook starts and stops
        the profiler."""
        self.fresh(config)
        first, warm, profile = batches[:LOSS_STEPS], batches[LOSS_STEPS : LOSS_STEPS + _TIMED_STEPS], None
        with precision(config):
            engine = engine_of(self.model, config)
            if engine.is_fallback:
                return EngineLosses(config.engine, config.dtype, missing=engine.reason), None
            if config.engine == "trainer":
                whole = LOSS_STEPS + _TIMED_STEPS + 1
                with between(self.model, whole) if is_profiled else contextlib.nullcontext() as read:
                    run = run_trainer(self.model, config, batches if is_profiled else first)
                losses = run.losses
                if is_profiled:
                    profile = read(statistics.median(run.step_s[LOSS_STEPS : whole - 1]))
            else:
                losses = tuple(float(engine.step(*batch)[0]) for batch in first)
                if is_profiled:
                    times = [timed(partial(engine.step, *batch), 1, config.device) for batch in warm]
                    with profiled(config.device, statistics.median(times)) as found:
                        engine.step(*batches[-1])
                    profile = found()
        kept = tuple(loss if math.isfinite(loss) else None for loss in losses[:LOSS_STEPS])
        return EngineLosses(config.engine, config.dtype, kept), profile


def timed(step: Callable[[], object], steps: int, device: str) -> float:
    """Seconds of a step, over several in a row; the device is waited for at the end."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / steps


def timed_blocks(step: Callable[[], object], device: str, *, blocks: int, block_s: float) -> tuple[int, list[float]]:
    """Steps of a block, and seconds a step in each of them, once the step is warm."""
    timed(step, 1, device)
    before = timed(step, 1, device)
    for done in range(1, _MOST_ROUNDS + 1):
        step_s = timed(step, max(1, round(_ROUND_S / before)), device)
        if done >= _LEAST_ROUNDS and abs(step_s - before) <= _STEADY * before:
            break
        before = step_s
    steps = max(_LEAST_STEPS, round(block_s / step_s))
    return steps, [timed(step, steps, device) for _ in range(blocks)]


def first_steps(
    configs: Sequence[TrainConfig], *, is_profiled: bool = True
) -> tuple[SameLosses, dict[str, KernelProfile]]:
    """configs: an engine and precision each, all of one shape and model. The profiles stand by both, 'eager float32'; on
    the CPU there are no kernels to profile.

    Text is packed, so every batch is whole: a graph takes one shape. An engine that fails is listed with its error.
    """
    configs = [dataclasses.replace(config, lr=_LR) for config in configs]
    first = configs[0]
    batches = text_batches(first, LOSS_STEPS + _TIMED_STEPS + 2, is_packed=True)
    trial = Trial(first)
    reference, _ = trial.first_steps(dataclasses.replace(first, engine="eager", dtype="float32"), batches)
    is_profiled = is_profiled and first.device == "cuda" and profiler_problem() is None
    rows, profiles = [], {}
    for config in configs:
        try:
            losses, profile = trial.first_steps(config, batches, is_profiled=is_profiled)
        except Exception as error:  # whatever a compiler or a driver raises is this engine's reason
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            losses, profile = EngineLosses(config.engine, config.dtype, missing=reason), None
        rows.append(losses)
        profiles |= {f"{config.engine} {config.dtype}": profile} if profile else {}
    return SameLosses(first.model, first.batch_size, first.seq_len, reference.losses, tuple(rows)), profiles


def text_batches(config: TrainConfig, count: int, *, is_packed: bool = False) -> list:
    """Of the run's texts, on its device, as (input_ids, labels)."""
    shape = {"batch_size": config.batch_size, "seq_len": config.seq_len, "seed": config.seed}
    texts, tokenizer = data.load_texts(config.dataset), data.load_tokenizer()
    found = itertools.islice(data.batches(texts, tokenizer, is_packed=is_packed, **shape), count)
    return [(batch.input_ids.to(config.device), batch.labels.to(config.device)) for batch in found]

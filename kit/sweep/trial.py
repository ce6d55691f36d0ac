"""The first steps of each engine, from the same weights on the same text: their losses, and a warm step's kernels."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Sequence

from kit.sweep.table import LOSS_STEPS, EngineLosses, Row, SameLosses, SweepPlan, row_of
from kit.train.config import TrainConfig
from kit.train.steps import KernelProfile

# Measures one point of a sweep: builds its engine, warms it up until it is steady, times blocks of steps.

# Warm when a round of steps takes within 3 % of the one before it; what never settles is measured all the same.
_STEADY = 0.03
_ROUND_S = 0.1
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 15
# A block lasts `block_s` and at least this many steps.
_LEAST_STEPS = 2
_TRAINER_STEPS_A_BLOCK = 5


class Bench:
    """The model, built once, and its measured step; everything else is made anew for each point."""

    def __init__(self, plan: SweepPlan) -> None:
        from kit.train.model import build_model

        self._plan = plan
        model = build_model(plan.configs()[0])[0]
        # On the CPU, so that the copy does not count as memory of the step.
        self._initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self._model = model.to(plan.device)

    def __call__(self, config: TrainConfig) -> Row:
        import torch

        from kit.train.engines import random_batch
        from kit.train.model import precision

        is_cuda = config.device == "cuda"
        self._restart()
        gc.collect()
        if is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        batch = random_batch(self._model, config)
        with precision(config):
            figures = (self._trainer if config.engine == "trainer" else self._engine)(batch, config)
        peak = torch.cuda.max_memory_allocated() if is_cuda and figures["outcome"] == "ok" else None
        return row_of(config, figures.pop("outcome"), peak_memory_bytes=peak, **figures)

    def _restart(self) -> None:
        """The same weights for every point: a model that has learnt the batch by heart rounds differently."""
        import torch

        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(self._initial[name])
        self._model.zero_grad(set_to_none=True)

    def _engine(self, batch, config: TrainConfig) -> dict:
        """A graph's memory counts while it is built: later, torch does not see what the graph holds."""
        from kit.train.engines import build_engine

        engine = build_engine(config.engine, self._model, config)
        if engine.is_fallback:
            return {"outcome": "missing", "reason": engine.reason}
        blocks, steps, loss = self._blocks(engine, batch, config)
        if loss != loss or abs(loss) == float("inf"):
            return {"outcome": "error", "reason": f"the loss is {loss} after {steps} steps"}
        return {"outcome": "ok", "block_step_s": blocks, "steps": steps, "note": engine.note}

    def _blocks(self, engine, batch, config: TrainConfig) -> tuple[tuple[float, ...], int, float]:
        """Mean step time of each block, the steps in all, the last loss. Waits at the ends of blocks only."""
        from kit.train.loop import synchronize

        loss = None

        def run(steps: int) -> float:
            nonlocal loss
            start = time.perf_counter()
            for _ in range(steps):
                loss, _ = engine.step(*batch)
            synchronize(config.device)
            return (time.perf_counter() - start) / steps

        run(1)
        before = run(1)
        for done in range(1, _MOST_ROUNDS + 1):
            step_s = run(max(1, round(_ROUND_S / before)))
            if done >= _LEAST_ROUNDS and abs(step_s - before) <= _STEADY * before:
                break
            before = step_s
        steps = max(_LEAST_STEPS, round(self._plan.block_s / step_s))
        blocks = tuple(run(steps) for _ in range(self._plan.blocks))
        return blocks, steps * self._plan.blocks, float(loss)

    def _trainer(self, batch, config: TrainConfig) -> dict:
        from kit.train.engines import NOTE, missing_trainer, run_trainer
        from kit.train.steps import STEADY_FROM

        if reason := missing_trainer():
            return {"outcome": "missing", "reason": reason}
        warm_up, size = STEADY_FROM - 1, _TRAINER_STEPS_A_BLOCK
        run = run_trainer(self._model, config, [batch] * (warm_up + self._plan.blocks * size))
        steady = run.step_s[warm_up:]
        blocks = tuple(sum(steady[i : i + size]) / size for i in range(0, len(steady), size))
        if not all(loss == loss and abs(loss) != float("inf") for loss in run.losses):
            return {"outcome": "error", "reason": "a loss of the Trainer is not finite"}
        return {"outcome": "ok", "block_step_s": blocks, "steps": len(steady), "note": NOTE}


# Larger than the smoke's, so that ten steps move the loss far beyond the limits: an engine that does not update is red.
_LR = 1e-4
_TIMED_STEPS = 5


@dataclasses.dataclass(frozen=True)
class EngineProfile:
    """Kernels of one warm step. Its step_time_s is the median of a few steps that no profiler slowed."""

    engine: str
    dtype: str
    profile: KernelProfile


def first_steps(
    configs: Sequence[TrainConfig], *, is_profiled: bool = True
) -> tuple[SameLosses, tuple[EngineProfile, ...]]:
    """configs: an engine and precision each, all of one shape and model. On the CPU there are no kernels to profile.

    Text is packed, so every batch is whole: a graph takes one shape. An engine that fails is listed with its error.
    """
    from kit.train.model import build_model
    from kit.train.profile import profiler_problem

    configs = [dataclasses.replace(config, lr=_LR) for config in configs]
    batches = _batches(configs[0])
    model = build_model(configs[0])[0]
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model = model.to(configs[0].device)
    plain = dataclasses.replace(configs[0], engine="eager", dtype="float32")
    reference, _ = _run(model, initial, plain, batches, is_profiled=False)
    rows, profiles = [], []
    is_profiled = is_profiled and configs[0].device == "cuda" and profiler_problem() is None
    for config in configs:
        losses, profile = _tried(model, initial, config, batches, is_profiled=is_profiled)
        rows.append(losses)
        profiles += [EngineProfile(config.engine, config.dtype, profile)] if profile else []
    first = configs[0]
    return SameLosses(first.model, first.batch_size, first.seq_len, reference.losses, tuple(rows)), tuple(profiles)


def _batches(config: TrainConfig) -> list:
    """As many as the losses and the profile take, on the device, as (input_ids, labels)."""
    from kit.train import data

    endless = data.batches(
        data.load_texts(config.dataset),
        data.load_tokenizer("gpt2"),
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        seed=config.seed,
        is_packed=True,
    )
    found = itertools.islice(endless, LOSS_STEPS + _TIMED_STEPS + 2)
    return [(batch.input_ids.to(config.device), batch.labels.to(config.device)) for batch in found]


Steps = tuple[EngineLosses, KernelProfile | None]


def _tried(model, initial, config: TrainConfig, batches, *, is_profiled: bool) -> Steps:
    try:
        return _run(model, initial, config, batches, is_profiled=is_profiled)
    except Exception as error:  # whatever a compiler or a driver raises is this engine's reason
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return EngineLosses(config.engine, config.dtype, missing=reason), None


def _run(model, initial, config: TrainConfig, batches, *, is_profiled: bool) -> Steps:
    import torch

    from kit.train.model import precision

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial[name])
    model.zero_grad(set_to_none=True)
    gc.collect()
    with precision(config):
        found, profile = (_trainer if config.engine == "trainer" else _engine)(model, config, batches, is_profiled)
    if isinstance(found, str):
        return EngineLosses(config.engine, config.dtype, missing=found), None
    kept = tuple(loss if loss == loss and abs(loss) != float("inf") else None for loss in found[:LOSS_STEPS])
    return EngineLosses(config.engine, config.dtype, kept), profile


def _engine(model, config: TrainConfig, batches, is_profiled: bool):
    from kit.train.engines import build_engine
    from kit.train.loop import synchronize
    from kit.train.profile import profiled

    engine = build_engine(config.engine, model, config)
    if engine.is_fallback:
        return engine.reason, None
    losses = [float(engine.step(*batch)[0]) for batch in batches[:LOSS_STEPS]]
    if not is_profiled:
        return losses, None
    times = []
    for batch in batches[LOSS_STEPS : LOSS_STEPS + _TIMED_STEPS]:
        start = time.perf_counter()
        engine.step(*batch)
        synchronize(config.device)
        times.append(time.perf_counter() - start)
    with profiled(config.device, statistics.median(times)) as found:
        engine.step(*batches[-1])
    return losses, found()


def _trainer(model, config: TrainConfig, batches, is_profiled: bool):
    """A step of the Trainer lasts from one forward pass to the next, where a hook starts and stops the profiler."""
    from kit.train.engines import missing_trainer, run_trainer
    from kit.train.profile import Between

    if reason := missing_trainer():
        return reason, None
    if not is_profiled:
        return run_trainer(model, config, batches[:LOSS_STEPS]).losses, None
    with Between(model, LOSS_STEPS + _TIMED_STEPS + 1) as between:
        run = run_trainer(model, config, batches)
    return run.losses, between.profile(statistics.median(run.step_s[LOSS_STEPS : LOSS_STEPS + _TIMED_STEPS]))

"""The first steps of each engine, from the same weights on the same text: their losses, and a warm step's kernels."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Sequence

from kit.sweep.losses import LOSS_STEPS, EngineLosses, SameLosses
from kit.train.config import TrainConfig
from kit.train.metrics import KernelProfile

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
    from kit.train.profiles import profiler_problem

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
    from kit.train.profiles import profiled

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
    with profiled(statistics.median(times)) as found:
        engine.step(*batches[-1])
    return losses, found()


def _trainer(model, config: TrainConfig, batches, is_profiled: bool):
    """A step of the Trainer lasts from one forward pass to the next, where a hook starts and stops the profiler."""
    from kit.train.profiles import Between
    from kit.train.trainer import missing_trainer, run_trainer

    if reason := missing_trainer():
        return reason, None
    if not is_profiled:
        return run_trainer(model, config, batches[:LOSS_STEPS]).losses, None
    with Between(model, LOSS_STEPS + _TIMED_STEPS + 1) as between:
        run = run_trainer(model, config, batches)
    return run.losses, between.profile(statistics.median(run.step_s[LOSS_STEPS : LOSS_STEPS + _TIMED_STEPS]))

"""The same steps once more: on the device, bit for bit, and the first of them on the CPU.

`state` is what was trained: `model`, `optimizer`, and `initial`, the parameters on the CPU as
they were before the first step. Each function leaves it changed.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence

import torch

from kit.train import witness
from kit.train.config import TrainConfig
from kit.train.loop import training_steps
from kit.train.metrics import CpuReference, Replay
from kit.train.model import build_optimizer, precision

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

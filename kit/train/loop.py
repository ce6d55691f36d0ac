"""The training loop: plain PyTorch, one record a step, nothing printed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch

from kit.train.config import TrainConfig
from kit.train.model import autocast, whole
from kit.train.steps import StepRecord


class Audit(Protocol):
    """Looks at a step from both sides, outside its time."""

    def begin(self, step: int) -> None: ...

    def end(self, step: int, input_ids: torch.Tensor, labels: torch.Tensor) -> None: ...


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def eager_step(model, optimizer, input_ids, labels, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step. Returns loss and gradient norm as tensors on the device, without waiting.

    input_ids, labels: (B, T) int64 on the device. Padding stands on the right, so the causal
    mask alone keeps it out of every supervised position and no attention mask is needed.
    """
    optimizer.zero_grad(set_to_none=True)
    with autocast(config):
        loss = model(input_ids=input_ids, labels=labels).loss
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    return loss.detach(), whole(grad_norm)


class _DeviceClock:
    """The device's own time between two points of its queue; None on the CPU, which has no other clock."""

    def __init__(self, device: str) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device == "cuda" else None

    def start(self) -> None:
        if self._events:
            self._events[0].record()

    def stop(self) -> None:
        if self._events:
            self._events[1].record()

    def seconds(self) -> float | None:
        """Waits for the second event itself, so that it is right even where nobody else waited."""
        if not self._events:
            return None
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / 1000


def training_steps(
    model,
    optimizer,
    batches: Iterable,
    config: TrainConfig,
    *,
    began_s: float,
    audit: Audit | None = None,
) -> Iterator[StepRecord]:
    """Yields one record for each of `batches`, synchronised before and after it is timed.

    began_s: `time.perf_counter()` at the start of training, the zero of `started_s`. The copy
    of the batch to the device is inside the time, waiting for the batch is recorded beside it.
    """
    source, clock = iter(batches), _DeviceClock(config.device)
    for number in itertools.count(1):
        asked = time.perf_counter()
        batch = next(source, None)
        if batch is None:
            return
        wait_s = time.perf_counter() - asked
        if audit is not None:
            audit.begin(number)
        if config.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        synchronize(config.device)
        start = time.perf_counter()
        clock.start()
        input_ids = batch.input_ids.to(config.device, non_blocking=True)
        labels = batch.labels.to(config.device, non_blocking=True)
        loss, grad_norm = eager_step(model, optimizer, input_ids, labels, config)
        clock.stop()
        synchronize(config.device)
        step_time_s = time.perf_counter() - start
        times = {
            "started_s": start - began_s,
            "step_time_s": step_time_s,
            "device_time_s": clock.seconds(),
            "wait_s": wait_s,
        }
        yield _record(number, batch, loss.item(), grad_norm.item(), optimizer, config, times)
        if audit is not None:
            audit.end(number, input_ids, labels)


def _record(number, batch, loss, grad_norm, optimizer, config, times: dict[str, float | None]) -> StepRecord:
    is_cuda = config.device == "cuda"
    broken = [f"{name} is {value}" for name, value in (("loss", loss), ("grad_norm", grad_norm)) if not _finite(value)]
    return StepRecord(
        step=number,
        loss=loss if _finite(loss) else None,
        grad_norm=grad_norm if _finite(grad_norm) else None,
        lr=optimizer.param_groups[0]["lr"],
        samples=batch.samples,
        tokens=batch.tokens,
        supervised_tokens=batch.supervised_tokens,
        is_applied=applied_steps(optimizer) == number,
        batch_sha256=batch.sha256[:16],
        memory_allocated_bytes=torch.cuda.memory_allocated() if is_cuda else None,
        memory_peak_bytes=torch.cuda.max_memory_allocated() if is_cuda else None,
        problem="; ".join(broken) or None,
        **times,
    )


def applied_steps(optimizer: torch.optim.Optimizer) -> int:
    """The optimizer's own count: the fewest updates that any of its parameters received."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return min((int(optimizer.state[p]["step"]) if p in optimizer.state else 0 for p in parameters), default=0)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")

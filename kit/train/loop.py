"""The training loop: plain PyTorch, one record a step, nothing printed."""

import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from kit.train.config import TrainConfig
from kit.train.model import autocast, whole
from kit.train.steps import StepRecord


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def eager_step(model, optimizer, input_ids, labels, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step. Returns loss, with its spent graph, and gradient norm on the device, without waiting.

    input_ids, labels: (B, T) int64 on the device. Padding stands on the right, so the causal
    mask alone keeps it out of every supervised position and no attention mask is needed.
    """
    optimizer.zero_grad(set_to_none=True)
    with autocast(config):
        loss = model(input_ids=input_ids, labels=labels).loss
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    return loss, whole(grad_norm)


def training_steps(
    model,
    optimizer,
    batches: Iterable,
    config: TrainConfig,
    *,
    began_s: float,
    watch: Any = None,
) -> Iterator[StepRecord]:
    """Yields one record for each of `batches`, synchronised before and after it is timed.

    began_s: `time.perf_counter()` at the start of training, the zero of `started_s`. watch: looks at a step from both
    sides, outside its time (`kit.train.witness.Watch`). The copy of the batch to the device is inside the time, waiting
    for the batch is recorded beside it.
    """
    source, is_cuda = iter(batches), config.device == "cuda"
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if is_cuda else (None, None)
    for number in itertools.count(1):
        asked = time.perf_counter()
        batch = next(source, None)
        if batch is None:
            return
        wait_s = time.perf_counter() - asked
        around = watch.begin(number) if watch else contextlib.nullcontext()
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        if is_cuda:
            first.record()
        input_ids = batch.input_ids.to(config.device, non_blocking=True)
        labels = batch.labels.to(config.device, non_blocking=True)
        with around:
            loss, grad_norm = eager_step(model, optimizer, input_ids, labels, config)
        if is_cuda:
            last.record()
            torch.cuda.synchronize()
        step_time_s = time.perf_counter() - start
        if is_cuda:
            # Waits for the event itself, so that it is right even where nobody else waited.
            last.synchronize()
        peak = torch.cuda.max_memory_allocated() if is_cuda else None
        seen = watch.end(number, loss, input_ids, labels) if watch else {}
        values = {"loss": loss.item(), "grad_norm": grad_norm.item()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        yield StepRecord(
            step=number,
            loss=finite["loss"],
            grad_norm=finite["grad_norm"],
            problem="; ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
            or None,
            lr=optimizer.param_groups[0]["lr"],
            samples=batch.samples,
            tokens=batch.tokens,
            supervised_tokens=batch.supervised_tokens,
            is_applied=applied_steps(optimizer) == number,
            batch_sha256=batch.sha256[:16],
            started_s=start - began_s,
            step_time_s=step_time_s,
            device_time_s=first.elapsed_time(last) / 1000 if is_cuda else None,
            wait_s=wait_s,
            memory_allocated_bytes=torch.cuda.memory_allocated() if is_cuda else None,
            memory_peak_bytes=peak,
            **seen,
        )


def applied_steps(optimizer: torch.optim.Optimizer) -> int:
    """The optimizer's own count: the fewest updates that any of its parameters received."""
    held = (optimizer.state.get(p) or {"step": 0} for group in optimizer.param_groups for p in group["params"])
    counts = [torch.as_tensor(state["step"]) for state in held]
    # A fused optimizer counts on the device: one copy for all.
    there = [count for count in counts if count.device.type != "cpu"]
    here = [int(count) for count in counts if count.device.type == "cpu"]
    return min(here + ([int(torch.stack(there).min())] if there else []), default=0)

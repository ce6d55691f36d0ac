"""Measures what the verdict rests on: where tensors are, which kernels ran, what a product's precision is."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from kit.train.config import TrainConfig
from kit.train.loop import eager_step, synchronize
from kit.train.metrics import KernelProfile, Learning, PlacementAudit, Precision
from kit.train.model import autocast, precision
from kit.train.trace import read_trace

# Relative error (largest difference over largest value) of a 1024-long dot product of normal
# numbers against float64, by class: float32 rounds to 24 bits, TF32 to 11, bfloat16 to 8. The
# limits stand between the classes; measured values are about 1e-6, 3e-4 and 3e-3.
PRECISION_LIMITS = (("float32", 2e-5), ("tf32", 1.5e-3), ("bfloat16", 2e-2))
_PRODUCT_SIZE = 1024


def tensors_of_run(model, optimizer, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that training touches, by name. Scalars that optimizers keep on the CPU are left out."""
    for name, parameter in model.named_parameters():
        yield f"parameter {name}", parameter
        if parameter.grad is not None:
            yield f"gradient {name}", parameter.grad
        for key, value in optimizer.state.get(parameter, {}).items():
            if torch.is_tensor(value) and value.dim() > 0:
                yield f"optimizer {key} of {name}", value
    for name, buffer in model.named_buffers():
        yield f"buffer {name}", buffer
    yield "batch input_ids", batch


def audit_placement(step: int, model, optimizer, batch: torch.Tensor, device: str) -> PlacementAudit:
    counted: Counter[str] = Counter()
    strays = []
    for name, tensor in tensors_of_run(model, optimizer, batch):
        counted[tensor.device.type] += 1
        if tensor.device.type != device:
            strays.append(f"{name} on {tensor.device}")
    return PlacementAudit(step, device, dict(counted), tuple(strays))


def measure_precision(config: TrainConfig) -> Precision:
    """The class of a float32 matrix product under the run's settings, found from its error."""
    generator = torch.Generator().manual_seed(config.seed)
    left = torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE, generator=generator)
    right = torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE, generator=generator)
    exact = left.double() @ right.double()
    with precision(config), autocast(config):
        product = left.to(config.device) @ right.to(config.device)
    error = float((product.double().cpu() - exact).abs().max() / exact.abs().max())
    observed = next((name for name, limit in PRECISION_LIMITS if error <= limit), "other")
    return Precision(config.dtype, observed, error, _PRODUCT_SIZE, str(product.dtype).removeprefix("torch."))


def matmul_repeats(config: TrainConfig) -> bool:
    """Whether the same product gives the same bits twice."""
    torch.manual_seed(config.seed)
    left = torch.randn(2048, 2048, device=config.device)
    with precision(config), autocast(config):
        return bool(torch.equal(left @ left, left @ left))


def profile_step(model, optimizer, batches, config: TrainConfig) -> KernelProfile:
    """Runs two more steps, the second under the profiler. `batches`: at least two."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if config.device == "cuda" else [])
    try:
        # acc_events: there is one cycle here, and torch warns where it is not said.
        with profile(activities=activities, acc_events=True):
            eager_step(model, optimizer, *_on_device(batches[0], config), config)
            synchronize(config.device)
        with profile(activities=activities, record_shapes=True, acc_events=True) as recorded:
            start = time.perf_counter()
            eager_step(model, optimizer, *_on_device(batches[1], config), config)
            synchronize(config.device)
            step_time_s = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            recorded.export_chrome_trace(str(path))
            trace = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except RuntimeError as error:
        return KernelProfile(error=f"the profiler did not run: {str(error).splitlines()[0]}")
    return read_trace(trace, step_time_s=step_time_s)


def _on_device(batch, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.input_ids.to(config.device), batch.labels.to(config.device)


def canary_loss(model, batch, config: TrainConfig) -> float | None:
    """Loss of one batch without training on it; None where it is not finite."""
    input_ids, labels = _on_device(batch, config)
    with torch.no_grad(), precision(config), autocast(config):
        loss = model(input_ids=input_ids, labels=labels).loss.item()
    return loss if loss == loss and abs(loss) != float("inf") else None


def measure_learning(model, initial: dict[str, torch.Tensor], before: float | None, after: float | None) -> Learning:
    """Compares every parameter with `initial`, its value on the CPU before the first step."""
    moved, unmoved, max_change = 0, [], 0.0
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trainable.items():
        change = float((parameter.detach().cpu() - initial[name]).abs().max())
        if change > 0:
            moved += 1
        else:
            unmoved.append(name)
        max_change = max(max_change, change) if change == change else max_change
    return Learning(
        canary_before=before,
        canary_after=after,
        trainable_tensors=len(trainable),
        moved_tensors=moved,
        unmoved=tuple(unmoved[:10]),
        max_change=max_change,
        trainable_parameters=sum(p.numel() for p in trainable.values()),
        total_parameters=sum(p.numel() for p in model.parameters()),
    )

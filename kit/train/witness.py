"""Measures what the verdict rests on: where tensors are, which kernels ran, what a product's precision is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kit.train.config import TrainConfig
from kit.train.loop import eager_step, synchronize
from kit.train.model import autocast, precision, whole
from kit.train.profile import LARGE_FLOP, MATMULS, matmul_flop, read_trace
from kit.train.steps import KernelProfile, Learning, PlacementAudit, Precision

# Relative error (largest difference over largest value) of a 1024-long dot product of normal
# numbers against float64, by class: float32 rounds to 24 bits, TF32 to 11, bfloat16 to 8. The
# limits stand between the classes; measured values are about 1e-6, 3e-4 and 3e-3.
PRECISION_LIMITS = (("float32", 2e-5), ("tf32", 1.5e-3), ("bfloat16", 2e-2))
_PRODUCT_SIZE = 1024


# --- placement ----------------------------------------------------------------------


def tensors_of_run(model, optimizer, batch: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Every tensor that training touches: kind, name, tensor. Not the scalars that optimizers keep."""
    named = dict(model.named_parameters())
    known = {id(parameter) for parameter in named.values()}
    held = (parameter for group in optimizer.param_groups for parameter in group["params"])
    strangers = {f"number {n} of the optimizer": p for n, p in enumerate(held) if id(p) not in known}
    for name, parameter in {**named, **strangers}.items():
        yield "parameter", name, parameter
        if parameter.grad is not None:
            yield "gradient", name, parameter.grad
        for key, value in optimizer.state.get(parameter, {}).items():
            if torch.is_tensor(value) and value.dim() > 0:
                yield "optimizer", f"{key} of {name}", value
    for name, buffer in model.named_buffers():
        yield "buffer", name, buffer
    for name, tensor in batch.items():
        yield "batch", name, tensor


def audit_placement(
    step: int,
    model,
    optimizer,
    batch: Mapping[str, torch.Tensor],
    device: str,
    dtypes: Mapping[str, int] | None = None,
) -> PlacementAudit:
    """device: 'cuda' means the current CUDA device. dtypes: what the matrix layers put out in this step."""
    index = torch.cuda.current_device() if device == "cuda" and torch.cuda.is_available() else None
    counted: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    strays = list(_offloaded(model, device))
    for kind, name, tensor in tensors_of_run(model, optimizer, batch):
        where = tensor.device
        is_home = where.type == device and (index is None or where.index == index)
        counted[where.type if is_home else str(where)] += 1
        kinds[kind] += 1
        if not is_home:
            strays.append(f"{kind} {name} on {where}")
    return PlacementAudit(
        step, device, dict(counted), tuple(strays), dict(kinds), dict(dtypes or {}),
        is_training=model.training, is_profiled=_is_profiled(),
    )  # fmt: skip


def _is_profiled() -> bool | None:
    ask = getattr(torch.autograd, "_profiler_enabled", None)
    return bool(ask()) if ask else None


def _offloaded(model, device: str) -> Iterator[str]:
    """Modules that `device_map` put elsewhere: their weights come for each forward pass and go again."""
    for module, target in (getattr(model, "hf_device_map", None) or {}).items():
        place = f"cuda:{target}" if isinstance(target, int) else str(target)
        if place.split(":")[0] != device:
            yield f"module {module or 'model'} on {place} (hf_device_map)"


class Auditor:
    """Audits the placement at some steps of a run, and what the model's matrix layers put out in them."""

    def __init__(self, model, optimizer, device: str, steps: Iterable[int]) -> None:
        self.audits: list[PlacementAudit] = []
        self._model, self._optimizer, self._device = model, optimizer, device
        self._steps = frozenset(steps)
        self._hooks: list[Any] = []
        self._dtypes: Counter[str] = Counter()

    def begin(self, step: int) -> None:
        if step in self._steps:
            self._dtypes.clear()
            self._hooks = [layer.register_forward_hook(self._note) for layer in matrix_layers(self._model)]

    def end(self, step: int, input_ids: torch.Tensor, labels: torch.Tensor) -> None:
        if step in self._steps:
            for hook in self._hooks:
                hook.remove()
            batch = {"input_ids": input_ids, "labels": labels}
            self.audits.append(audit_placement(step, self._model, self._optimizer, batch, self._device, self._dtypes))

    def _note(self, layer, args, output) -> None:
        if torch.is_tensor(output):
            self._dtypes[_word(output.dtype)] += 1


def matrix_layers(model) -> list[torch.nn.Module]:
    """Layers that multiply by a weight matrix: Linear, and the Conv1D of transformers' GPT-2."""
    return [
        module
        for module in model.modules()
        if not isinstance(module, torch.nn.Embedding)
        and getattr(module, "weight", None) is not None
        and module.weight.dim() == 2
    ]


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- numbers ------------------------------------------------------------------------


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
    return Precision(observed, error, _PRODUCT_SIZE, _word(product.dtype))


def matmul_repeats(config: TrainConfig) -> bool:
    """Whether the same product gives the same bits twice."""
    torch.manual_seed(config.seed)
    left = torch.randn(2048, 2048, device=config.device)
    with precision(config), autocast(config):
        return bool(torch.equal(left @ left, left @ left))


# --- kernels ------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Counts matrix products where torch dispatches them, by the device that their result is on.

    It sees the backward pass as well, and needs no profiler: what the trace ties together only
    by times and numbers, it is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()
        self.flop: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's own flag. Left on, the first product imports torch's compiler, unused here: seconds."""
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.name().partition(".")[0] in MATMULS:
            flop = matmul_flop([list(value.shape) for value in args if torch.is_tensor(value)])
            # On the device each counts, whatever the batch; on the CPU a little work is no finding.
            if flop >= LARGE_FLOP or result.device.type != "cpu":
                self.counted[result.device.type] += 1
                self.flop[result.device.type] += flop
        return result


def profile_step(model, optimizer, batches, config: TrainConfig) -> KernelProfile:
    """Runs two more steps: one to count products, one whose profile counts. `batches`: at least two."""
    # The profiler below torch.profiler, which imports torch's compiler when it starts: seconds.
    from torch.autograd.profiler import profile

    # A torch that cannot trace CUDA would time every operator by hand; without it the trace has no kernel.
    can_trace = torch.profiler.ProfilerActivity.CUDA in torch.profiler.supported_activities()
    options = {"use_kineto": True, "use_device": "cuda" if config.device == "cuda" and can_trace else None}
    try:
        # The first profile of a process starts CUPTI, which takes its time; the CPU has nothing to start.
        warm_up = profile(**options) if config.device == "cuda" else contextlib.nullcontext()
        with warm_up, Products() as products:
            eager_step(model, optimizer, *_on_device(batches[0], config), config)
            synchronize(config.device)
        with profile(**options, record_shapes=True) as recorded:
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
    return _with_products(read_trace(trace, step_time_s=step_time_s), products, batches[0])


def _with_products(found: KernelProfile, products: Products, batch) -> KernelProfile:
    flop = {device: float(total) for device, total in products.flop.items()}
    return dataclasses.replace(
        found, products=dict(products.counted), product_flop=flop, positions=batch.input_ids.numel()
    )


def _on_device(batch, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.input_ids.to(config.device), batch.labels.to(config.device)


# --- learning -----------------------------------------------------------------------


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
        change = float((whole(parameter.detach()).cpu() - initial[name]).abs().max())
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

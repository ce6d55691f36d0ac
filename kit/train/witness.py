"""Measures what the verdict rests on: where each step ran, at which precision, and whether the weights moved."""

import contextlib
import dataclasses
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kit.train.config import TrainConfig
from kit.train.loop import eager_step, synchronize, training_steps
from kit.train.model import autocast, build_optimizer, precision, whole
from kit.train.profile import LARGE_FLOP, MATMULS, matmul_flop, profiled, start_profiler
from kit.train.steps import (
    REPLAY_STEPS,
    CpuReference,
    KernelProfile,
    Learning,
    PlacementAudit,
    Precision,
    Replay,
    audited_steps,
    watched_steps,
)

# Relative error (largest difference over largest value) of a 1024-long dot product of normal
# numbers against float64, by class: float32 rounds to 24 bits, TF32 to 11, bfloat16 to 8. The
# limits stand between the classes; measured values are about 1e-6, 3e-4 and 3e-3.
PRECISION_LIMITS = (("float32", 2e-5), ("tf32", 1.5e-3), ("bfloat16", 2e-2))
_PRODUCT_SIZE = 1024
_CPU_REFERENCE_STEPS = 3
# Autograd's names for a product with a weight.
_PRODUCT_NODES = frozenset({"AddmmBackward0", "MmBackward0", "LinearBackward0", "ConvolutionBackward0"})
_LEAF = "torch::autograd::AccumulateGrad"
# An operator that touches a tensor of so many elements works on it; on fewer it keeps count.
LARGE_ELEMENTS = 4096
_NAMED = 8


# --- every step ---------------------------------------------------------------------


class Watch:
    """Looks at each step of a run, outside its time.

    At every step the autograd graph of the loss says on which device each operator of the forward pass had its
    result: the backward pass follows this graph, so what is not in it has no gradient, and a product that ran
    elsewhere is in it whether a module, a patched function or a hook called for it. At steps drawn from the
    nonce a dispatch mode sees every operator of the whole step, backward pass and optimizer too, and every
    tensor is audited.
    """

    def __init__(self, model, optimizer, config: TrainConfig, nonce: str) -> None:
        self.audits: list[PlacementAudit] = []
        self.nonce = nonce
        self._model, self._optimizer, self._device = model, optimizer, config.device
        self._drawn, self._audited = watched_steps(nonce, config.steps), audited_steps(nonce, config.steps)
        trainable = [p for p in model.parameters() if p.requires_grad] or [*model.parameters()]
        self._canary = min(reversed(trainable), key=torch.Tensor.numel)

    def begin(self, step: int) -> AbstractContextManager[Any]:
        """What the step has to run in."""
        self._before = _local(self._canary).clone()
        self._operators = Operators(self._device) if step in self._drawn else None
        return self._operators or contextlib.nullcontext()

    def end(self, step: int, loss: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        """What the step's record says of where it ran. loss: with its graph."""
        elsewhere, dtypes = look_back(loss, self._model, self._device)
        if step in self._audited:
            batch = {"input_ids": input_ids, "labels": labels}
            also = [*elsewhere, *(self._operators.elsewhere if self._operators else ())]
            self.audits.append(
                audit_placement(step, self._model, self._optimizer, batch, self._device, dtypes=dtypes, also=also)
            )
        change = float((_local(self._canary) - self._before).abs().median())
        return {
            "products": sum(dtypes.values()),
            "elsewhere": tuple(elsewhere[:_NAMED]),
            "update": change if math.isfinite(change) else None,
            "is_watched": self._operators is not None,
        }


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """The tensor, or the part of it that this rank holds."""
    local = getattr(parameter, "to_local", None)
    return (local() if local else parameter).detach()


def look_back(loss: torch.Tensor, model, device: str) -> tuple[list[str], dict[str, int]]:
    """Operators of the forward pass that had their result elsewhere, by name, and the products with weights that had
    it on `device`, counted by dtype. What backward freed is not needed: the graph and its metadata stay."""
    home = _home(device)
    strays, dtypes = [], Counter()
    seen, waiting = set(), [loss.grad_fn] if loss.grad_fn else []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        waiting.extend(before for before, _ in node.next_functions if before is not None)
        told = node._input_metadata
        if told and told[0].device != home:
            strays.append(node)
        elif node.name() in _PRODUCT_NODES:
            dtypes[_word(told[0].dtype)] += 1
    names = {id(parameter): name for name, parameter in model.named_parameters()} if strays else {}
    return [_named(node, names) for node in reversed(strays) if node.name() != _LEAF], dict(dtypes)


def _named(node, names: dict[int, str]) -> str:
    """An operator with the nearest weight that went into it, if there is one within three steps."""
    layer, found = [node], None
    for _ in range(3):
        layer = [before for one in layer for before, _ in one.next_functions if before is not None]
        found = found or next((names.get(id(n.variable)) for n in layer if n.name() == _LEAF), None)
    operator = node.name().removesuffix("Backward0")
    return f"{operator}{f' of {found}' if found else ''} on {node._input_metadata[0].device}"


def _home(device: str) -> torch.device:
    """'cuda' means the current CUDA device."""
    is_cuda = device == "cuda" and torch.cuda.is_available()
    return torch.device(device, torch.cuda.current_device()) if is_cuda else torch.device(device)


class Operators(TorchDispatchMode):
    """Sees every operator where torch dispatches it: products by the device of their result, and large ones elsewhere.

    It sees the backward pass as well, and needs no profiler: what the trace ties together only
    by times and numbers, it is told.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.counted: Counter[str] = Counter()
        self.flop: Counter[str] = Counter()
        self.elsewhere: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's own flag. Left on, the first product imports torch's compiler, unused here: seconds."""
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name().partition(".")[0]
        for tensor in tree_leaves((args, kwargs, result)):
            if torch.is_tensor(tensor) and tensor.device.type != self._device and tensor.numel() >= LARGE_ELEMENTS:
                self.elsewhere[f"operator {name} on {tensor.device.type}"] += 1
        if name in MATMULS:
            flop = matmul_flop([list(value.shape) for value in args if torch.is_tensor(value)])
            # On the device each counts, whatever the batch; on the CPU a little work is no finding.
            if flop >= LARGE_FLOP or result.device.type != "cpu":
                self.counted[result.device.type] += 1
                self.flop[result.device.type] += flop
        return result


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
    step: int, model, optimizer, batch: Mapping[str, torch.Tensor], device: str, *, dtypes=None, also=()
) -> PlacementAudit:
    """dtypes: what the products put out in this step. also: strays that were found otherwise."""
    home = _home(device)
    counted: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    strays = list(_offloaded(model, device))
    for kind, name, tensor in tensors_of_run(model, optimizer, batch):
        is_home = tensor.device == home
        counted[home.type if is_home else str(tensor.device)] += 1
        kinds[kind] += 1
        if not is_home:
            strays.append(f"{kind} {name} on {tensor.device}")
    is_profiled = getattr(torch.autograd, "_profiler_enabled", None)
    return PlacementAudit(
        step, device, dict(counted), (*strays, *also), dict(kinds), dict(dtypes or {}),
        is_training=model.training, is_profiled=bool(is_profiled()) if is_profiled else None,
    )  # fmt: skip


def _offloaded(model, device: str) -> Iterator[str]:
    """Modules that `device_map` put elsewhere: their weights come for each forward pass and go again."""
    for module, target in (getattr(model, "hf_device_map", None) or {}).items():
        place = f"cuda:{target}" if isinstance(target, int) else str(target)
        if place.split(":")[0] != device:
            yield f"module {module or 'model'} on {place} (hf_device_map)"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- kernels and numbers ------------------------------------------------------------


def profile_step(model, optimizer, batch, config: TrainConfig) -> KernelProfile:
    """Runs two more steps: one to count products, one whose profile counts. batch: a full one."""
    tensors = batch.input_ids.to(config.device), batch.labels.to(config.device)
    try:
        # The first profile of a process starts CUPTI, which takes its time; the CPU has nothing to start.
        with start_profiler("cuda") if config.device == "cuda" else contextlib.nullcontext():
            with Operators(config.device) as seen:
                eager_step(model, optimizer, *tensors, config)
                synchronize(config.device)
        with profiled(config.device) as found:
            eager_step(model, optimizer, *tensors, config)
    except RuntimeError as error:
        return KernelProfile(error=f"the profiler did not run: {str(error).splitlines()[0]}")
    flop = {device: float(total) for device, total in seen.flop.items()}
    return found(products=dict(seen.counted), product_flop=flop, positions=tensors[0].numel())


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
    # A CPU without units for bfloat16 takes half a minute for the large one.
    size = 2048 if config.device == "cuda" else 256
    left = torch.randn(size, size, device=config.device)
    with precision(config), autocast(config):
        return bool(torch.equal(left @ left, left @ left))


# --- the same steps once more -------------------------------------------------------
#
# `state` is what was trained: `model`, `optimizer`, and `initial`, the parameters on the CPU as
# they were before the first step. Each function leaves it changed.


def replay(
    state, batches: Sequence, config: TrainConfig, losses: Sequence[float | None]
) -> tuple[Replay, float | None]:
    """losses: of the run. Returns the repetition, and the canary's loss before the first step."""
    count = min(REPLAY_STEPS, len(losses))
    restart(state, config)
    before = canary_loss(state.model, batches[0], config)
    again = _losses(state, batches[:count], config)
    is_equal = again == list(losses[:count])
    return Replay(
        tuple(loss for loss in again if loss is not None),
        matmul_repeats(config),
        deterministic_is_equal=None if is_equal else _repeats_deterministically(state, batches[:count], config),
    ), before


def cpu_reference(state, batches: Sequence, config: TrainConfig) -> CpuReference:
    if config.device == "cpu" and config.dtype == "float32":
        return CpuReference(0, (), 0.0, skipped="the run itself is float32 on the CPU")
    on_cpu = dataclasses.replace(config, device="cpu", dtype="float32")
    state.model.to("cpu")
    restart(state, on_cpu)
    start = time.perf_counter()
    losses = _losses(state, batches[: min(_CPU_REFERENCE_STEPS, config.steps)], on_cpu)
    finite = tuple(loss for loss in losses if loss is not None)
    return CpuReference(len(finite), finite, time.perf_counter() - start)


def restart(state, config: TrainConfig) -> None:
    """Puts the model back to where it was before the first step, with a fresh optimizer."""
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            parameter.copy_(state.initial[name])
    state.model.zero_grad(set_to_none=True)
    state.optimizer = build_optimizer(state.model, config)


def _losses(state, batches: Sequence, config: TrainConfig) -> list[float | None]:
    with precision(config):
        steps = training_steps(state.model, state.optimizer, batches, config, began_s=time.perf_counter())
        return [step.loss for step in steps]


def _repeats_deterministically(state, batches: Sequence, config: TrainConfig) -> bool:
    """Whether two runs of the steps agree bit for bit where torch is asked for deterministic algorithms.

    Attention's backward pass adds in changing order at longer sequences; that is no fault of the card.
    """
    found = []
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
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


# --- learning -----------------------------------------------------------------------


def canary_loss(model, batch, config: TrainConfig) -> float | None:
    """Loss of one batch without training on it; None where it is not finite."""
    with torch.no_grad(), precision(config), autocast(config):
        output = model(input_ids=batch.input_ids.to(config.device), labels=batch.labels.to(config.device))
    loss = output.loss.item()
    return loss if math.isfinite(loss) else None


def measure_learning(model, initial: dict[str, torch.Tensor], before: float | None, after: float | None) -> Learning:
    """Compares every parameter with `initial`, its value on the CPU before the first step."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    changes = {
        name: float((whole(p.detach()).cpu() - initial[name]).abs().max()) for name, p in trainable.items()
    }  # fmt: skip
    unmoved = [name for name, change in changes.items() if not change > 0]
    return Learning(
        canary_before=before,
        canary_after=after,
        trainable_tensors=len(trainable),
        moved_tensors=len(trainable) - len(unmoved),
        unmoved=tuple(unmoved[:10]),
        max_change=max((change for change in changes.values() if change == change), default=0.0),
        trainable_parameters=sum(p.numel() for p in trainable.values()),
        total_parameters=sum(p.numel() for p in model.parameters()),
    )

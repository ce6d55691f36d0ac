"""What computes a training step: the plain loop, torch.compile, or one CUDA graph for everything.

Each engine takes the same model and gives the same losses. An engine that cannot do its work
here says why and lets the plain loop do it; it never does so in silence (`is_fallback`, `note`).
Hugging Face's Trainer drives its own loop and stands in `trainer`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from typing import Protocol

import torch

from kit.errors import UsageError
from kit.train.attention import fast_kernels
from kit.train.config import TrainConfig
from kit.train.loop import eager_step
from kit.train.model import autocast, build_optimizer
from kit.train.step import FlatStep, Unsuitable, compiled, compute_dtype, twin_of

# Difference of the first loss from that of the model's own forward pass, relative to it (to 1 where it is less).
FIRST_LOSS_LIMITS = {"float32": 1e-5, "tf32": 1e-3, "bfloat16": 5e-3}
_WARM_UP_STEPS = 2
# Tokens at a time in the check of the first loss; the model's own forward holds all of their logits in float32.
_CHECKED_TOKENS = 4096


class Engine(Protocol):
    """note: what it does, or why it fell back. optimizer: with the state of every parameter."""

    name: str
    note: str
    is_fallback: bool
    optimizer: torch.optim.Optimizer

    def step(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step. Returns loss and gradient norm as tensors on the device, without waiting.

        input_ids, labels: (B, T) int64 on the device, padding on the right. The same values as `eager_step`.
        """

    def restart(self) -> None:
        """Fresh optimizer state, and the model's weights as somebody has set them since."""


def build_engine(name: str, model, config: TrainConfig) -> Engine:
    """The engine, ready to step: what must be compiled or captured for config's shape is, the weights unchanged.

    model: on config.device, in float32. Call it inside `model.precision(config)`. Raises torch's
    out-of-memory error where the shape does not fit, and UsageError for the Trainer, which has no step.
    """
    if name == "eager":
        return EagerEngine(model, config)
    kinds = {"compiled": CompiledEngine, "captured": CapturedEngine, "graphed": GraphedEngine}
    if name not in kinds:
        raise UsageError(
            f"engine={name}",
            expected=f"one of eager, {', '.join(kinds)}",
            todo="kit bench and kit sweep run the Trainer; kit train needs an engine with steps",
        )
    try:
        reason = kinds[name].missing(model, config)
        if reason is None:
            with _without_known_warnings():
                return kinds[name](model, config)
    except Unsuitable as error:
        reason = str(error)
    except Exception as error:  # compilers raise of their own; each is a reason to fall back, except too little memory
        if out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return EagerEngine(model, config, asked_for=name, reason=reason)


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error that says so, in what led to `error`: a broken capture or a compiler raises another one on top."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error).lower()
        if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in text or "defaultcpuallocator" in text:
            return error
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _without_known_warnings():
    """Hides what torch says while it compiles and what nobody here can act on: IEEE products, its own code."""
    with warnings.catch_warnings():
        for message in (
            "TensorFloat32 tensor cores",
            "`torch.jit.script_method` is deprecated",
            r"\s*Online softmax is disabled",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


class EagerEngine:
    """The plain loop; also what runs in place of an engine that cannot. reason: why that one cannot, else None."""

    name = "eager"

    def __init__(self, model, config: TrainConfig, *, asked_for: str = "eager", reason: str | None = None) -> None:
        self._model, self._config = model, config
        self.is_fallback, self.reason = reason is not None, reason
        self.note = f"the plain loop instead of {asked_for}: {reason}" if reason else "the plain loop"
        self.restart()

    def step(self, input_ids, labels):
        return eager_step(self._model, self.optimizer, input_ids, labels, self._config)

    def restart(self) -> None:
        self._model.zero_grad(set_to_none=True)
        self.optimizer = build_optimizer(self._model, self._config)


class CompiledEngine:
    """torch.compile around the model's forward and backward pass; clipping and fused AdamW as torch has them."""

    name, is_fallback = "compiled", False
    note = "torch.compile, causal attention without a mask, fused AdamW"

    @staticmethod
    def missing(model, config: TrainConfig) -> str | None:
        """Why it cannot run here; None where it can."""
        if config.device == "cuda" and importlib.util.find_spec("triton") is None:
            return "torch.compile needs Triton for the GPU, and it is not installed"
        return None

    def __init__(self, model, config: TrainConfig) -> None:
        self._model, self._config = model, config
        twin = twin_of(model, dict(model.named_parameters()))
        self._compiled = compiled(lambda ids, labels: twin(input_ids=ids, labels=labels, use_cache=False).loss)
        self._loss_and_backward(*random_batch(model, config))
        self.restart()

    def _loss_and_backward(self, input_ids, labels) -> torch.Tensor:
        with fast_kernels(compute_dtype(self._config), self._config.seq_len), autocast(self._config):
            loss = self._compiled(input_ids, labels)
        loss.backward()
        return loss.detach()

    def step(self, input_ids, labels):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss_and_backward(input_ids, labels)
        grad_norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.max_grad_norm)
        self.optimizer.step()
        return loss, grad_norm

    def restart(self) -> None:
        self._model.zero_grad(set_to_none=True)
        is_cuda = self._config.device == "cuda"
        self.optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=self._config.lr, weight_decay=self._config.weight_decay, fused=is_cuda
        )


class CapturedEngine:
    """The whole step as one CUDA graph: forward, backward, our loss, and clipping with AdamW in two kernels.

    In bfloat16 the forward pass computes with bfloat16 copies of the float32 weights, which the
    update writes; autocast would make them anew at every step.
    """

    name, is_fallback, _is_compiled = "captured", False, False

    @staticmethod
    def missing(model, config: TrainConfig) -> str | None:
        """Why it cannot run here; None where it can."""
        if config.device != "cuda":
            return "a CUDA graph needs a CUDA device"
        if importlib.util.find_spec("triton") is None:
            return "its kernels need Triton, and it is not installed"
        return None

    def __init__(self, model, config: TrainConfig) -> None:
        from kit.train.flat import FlatAdamW

        self._model, self._config = model, config
        self._step = FlatStep(model, config, is_compiled=self._is_compiled)
        self._input_ids, self._labels = random_batch(model, config)
        self._check_first_loss()
        self._capture()
        self.optimizer = FlatAdamW(self._step.flat, config)
        over = " over torch.compile" if self._is_compiled else ""
        copies = ", bfloat16 copies of the weights" if self._step.flat.shadow is not None else ""
        self.note = f"one CUDA graph a step{over}{copies}, fused loss, clipping and AdamW"

    def _check_first_loss(self) -> None:
        """Refuses a model whose own loss is another one, as of a scaled or capped head."""
        own = own_loss(self._model, self._input_ids, self._labels, self._config)
        ours = float(self._step.backward(self._input_ids, self._labels)[0])
        # Written so that NaN is refused as well; a loss near 0, of a batch known by heart, is compared absolutely.
        if not abs(ours - own) <= FIRST_LOSS_LIMITS[self._config.dtype] * max(1.0, abs(own)):
            raise Unsuitable(f"its first loss would be {ours:.6f} where the model's own is {own:.6f}")

    def _capture(self) -> None:
        """Warms up on a stream of its own, as capturing needs, and captures. The weights end as they were."""
        flat = self._step.flat
        before = flat.master.clone()
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_STEPS):
                    loss, gradients = self._step.backward(self._input_ids, self._labels)
                    flat.point_to(gradients)
                    flat.update(gradients, self._config)
            torch.cuda.current_stream().wait_stream(side)
            del loss, gradients
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                loss, gradients = self._step.backward(self._input_ids, self._labels)
                flat.update(gradients, self._config)
                self._result = torch.stack((loss, flat.norm))
            flat.point_to(gradients)
        finally:
            flat.master.copy_(before)
            flat.restart()

    def step(self, input_ids, labels):
        if input_ids.shape != self._input_ids.shape:
            raise UsageError(
                f"a batch of {tuple(input_ids.shape)}",
                expected=f"{tuple(self._input_ids.shape)}, as captured",
                todo="build another engine for another shape",
            )
        self._input_ids.copy_(input_ids)
        self._labels.copy_(labels)
        self._graph.replay()
        loss, grad_norm = self._result.clone()
        return loss, grad_norm

    def restart(self) -> None:
        self._step.flat.restart()


class GraphedEngine(CapturedEngine):
    """The same graph over the compiled model: fewer and longer kernels, after half a minute of compiling once."""

    name, _is_compiled = "graphed", True


def random_batch(model, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and labels (B, T) of config's shape on its device, every label supervised."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.batch_size, config.seq_len)
    ids = torch.randint(model.get_input_embeddings().weight.shape[0], shape, generator=generator).to(config.device)
    return ids, ids.clone()


@torch.no_grad()
def own_loss(model, input_ids, labels, config: TrainConfig) -> float:
    """The mean loss by the model's own forward pass, a few rows at a time."""
    rows = max(1, _CHECKED_TOKENS // input_ids.shape[1])
    total, count = 0.0, 0
    for ids, targets in zip(input_ids.split(rows), labels.split(rows)):
        supervised = int((targets[:, 1:] >= 0).sum())
        if supervised:
            with autocast(config):
                total += float(model(input_ids=ids, labels=targets).loss) * supervised
            count += supervised
    return total / count if count else float("nan")

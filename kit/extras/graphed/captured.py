"""The training step as one CUDA graph: what a plain loop would do without the host between its kernels."""

from __future__ import annotations

import importlib.util

import torch

from kit.errors import UsageError
from kit.train.config import TrainConfig
from kit.train.engines import random_batch
from kit.train.model import Unsuitable, autocast

# Difference of the first loss from that of the model's own forward pass, relative to it (to 1 where it is less).
FIRST_LOSS_LIMITS = {"float32": 1e-5, "tf32": 1e-3, "bfloat16": 5e-3}

_WARM_UP_STEPS = 2

# Tokens at a time in the check of the first loss; the model's own forward holds all of their logits in float32.
_CHECKED_TOKENS = 4096


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
        # Late: its kernels need Triton at import, and `missing` is asked first.
        from kit.extras.graphed.step import FlatAdamW, FlatStep

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

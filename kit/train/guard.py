"""Refuses a silent CPU fallback in any training script: one line, no dependency beyond torch.

    with gpu_guard(model, optimizer):       # around a loop
        for batch in loader: ...

    gpu_guard(model, optimizer, batch)      # or one check, wherever it is wanted

    Trainer(..., callbacks=[GpuGuardCallback()])

It looks at tensors, never at a configuration. The first step is looked at in full; after
it every parameter and buffer still is, and the rest at intervals. It measures no speed and
proves no native code: `kit report` does.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from kit.errors import GpuNotUsable, UsageError

# A full walk again after this many steps: layers can be added, and states appear late.
FULL_EVERY = 100
# The attribute of a tensor that says where it is, quicker than comparing devices.
_IS_ON = {"cuda": "is_cuda", "cpu": "is_cpu"}


class gpu_guard:
    """Checks `model`, `optimizer` and `batch` at once; as a context manager also each step inside it.

    device: 'cuda', or 'cpu' to rehearse a script. batch: tensors in any nesting of lists and mappings.
    steps counts the optimizer's steps inside the context (without one, forward passes in training
    mode). Raises GpuNotUsable naming the first tensor that is elsewhere.
    """

    def __init__(self, model: Any, optimizer: Any = None, batch: Any = None, *, device: str = "cuda") -> None:
        if device not in _IS_ON:
            raise UsageError(f"device={device!r}", expected="cuda, or cpu for a rehearsal", todo="correct the device")
        self.steps = 0
        self._model, self._optimizer, self._device = model, _unwrapped(optimizer), device
        # An optimizer of another make has no hooks; then forward passes are counted in place of its steps.
        self._counts_forwards = not hasattr(self._optimizer, "register_step_post_hook")
        self._hooks: list[Any] = []
        self._parameters: list[Any] = []
        self._buffers: list[tuple[dict[str, Any], str]] = []
        self.check(batch)

    # --- as a check -----------------------------------------------------------------

    def check(self, batch: Any = None) -> None:
        """Looks at everything: parameters, gradients, buffers, optimizer state, and the batch if given."""
        count = 0
        for name, tensor in self._tensors(batch):
            count += 1
            if tensor.device.type != self._device:
                raise self._refusal(f"{name} is on {tensor.device}")
        if not count:
            raise self._refusal("the model has no parameter, buffer or batch to look at")
        self._remember()

    def _tensors(self, batch: Any) -> Iterator[tuple[str, Any]]:
        import torch

        names = {parameter: name for name, parameter in self._model.named_parameters()}
        for parameter, name in names.items():
            yield f"parameter {name}", parameter
            if parameter.grad is not None:
                yield f"gradient of {name}", parameter.grad
        for name, buffer in self._model.named_buffers():
            yield f"buffer {name}", buffer
        state = getattr(self._optimizer, "state", None) or {}
        for parameter, values in list(state.items()):
            for key, value in values.items() if isinstance(values, Mapping) else ():
                # Optimizers keep their step counts on the CPU on purpose.
                if torch.is_tensor(value) and value.dim() > 0:
                    yield (
                        f"optimizer state {key} of {names.get(parameter, 'a parameter outside the model')}",
                        value,
                    )
        yield from _nested(batch, "batch")

    def _refusal(self, found: str) -> GpuNotUsable:
        import torch

        todo = f"move it with .to({self._device!r}) before training"
        if self._device == "cuda" and not torch.cuda.is_available():
            todo = f"torch {torch.__version__} has no usable CUDA device here: python -m kit check says why"
        at = f" at step {self.steps + 1}" if self._hooks else ""
        return GpuNotUsable(f"{found}{at}", expected=f"all of the training on {self._device}", todo=todo)

    # --- around a loop --------------------------------------------------------------

    def __enter__(self) -> gpu_guard:
        self._hooks = [self._model.register_forward_hook(self._after_forward)]
        if not self._counts_forwards:
            self._hooks.append(self._optimizer.register_step_post_hook(lambda *_: self.after_step()))
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if kind is None and not self.steps:
            warnings.warn(
                "gpu_guard saw no training step of this model: nothing was guarded",
                RuntimeWarning,
                stacklevel=2,
            )

    def after_step(self) -> None:
        """One step is done: a full look at the first and at intervals, else at all parameters and buffers."""
        if self.steps % FULL_EVERY == 0:
            self.check()
        else:
            self._glance()
        self.steps += 1

    def _after_forward(self, model: Any, args: Any, output: Any) -> None:
        """What is trained on has to come out on the device. Inputs may be moved inside the model."""
        if self._counts_forwards and model.training:
            self.after_step()
        wanted = [(name, value) for name, value in _nested(output, "output") if value.requires_grad]
        if wanted and all(value.device.type != self._device for _, value in wanted):
            raise self._refusal(f"the model's {wanted[0][0]} is on {wanted[0][1].device}")

    def _remember(self) -> None:
        """What a glance looks at: the parameters themselves, and where the buffers are kept, since moving a
        model replaces them."""
        self._parameters = list(self._model.parameters())
        self._buffers = [
            (module._buffers, name)
            for module in self._model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def _glance(self) -> None:
        is_home = attrgetter(_IS_ON[self._device])
        tensors = [kept[name] for kept, name in self._buffers if kept.get(name) is not None]
        if not all(map(is_home, self._parameters)) or not all(map(is_home, tensors)):
            # The full look finds the name.
            self.check()


def _unwrapped(optimizer: Any) -> Any:
    """What accelerate and the like wrap: their own class has neither hooks nor state of its own."""
    while hasattr(getattr(optimizer, "optimizer", None), "param_groups"):
        optimizer = optimizer.optimizer
    return optimizer


def _nested(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Tensors in lists, tuples, mappings and what behaves like one (a tokenizer's batch, an output)."""
    import torch

    if torch.is_tensor(value):
        yield name, value
    elif isinstance(value, Mapping) or hasattr(value, "keys"):
        for key in value:
            yield from _nested(value[key], f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _nested(item, f"{name}[{index}]")
    elif hasattr(value, "__dict__"):
        for key, item in vars(value).items():
            if torch.is_tensor(item):
                yield f"{name}.{key}", item


def __getattr__(name: str) -> Any:
    """GpuGuardCallback is made when it is first asked for, so that the guard itself needs no transformers."""
    if name != "GpuGuardCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _callback_class()
    return globals()[name]


def _callback_class() -> type:
    from transformers import TrainerCallback

    class GpuGuardCallback(TrainerCallback):
        """The guard inside transformers' Trainer, and a true count of what it trained on.

        samples: rows that went through a training forward pass in this process; the Trainer's own
        figure is what its arguments imply. seconds: from the first step's begin to the last one's end.
        """

        def __init__(self, device: str = "cuda") -> None:
            self.samples, self.seconds = 0, 0.0
            self._device = device
            self._guard: Any = None
            self._hook: Any = None
            self._began_s: float | None = None

        @property
        def samples_per_s(self) -> float | None:
            return self.samples / self.seconds if self.seconds else None

        def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
            self.samples, self.seconds, self._began_s = 0, 0.0, None
            self._guard = gpu_guard(model, device=self._device)
            self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

        def on_step_begin(self, args, state, control, **kwargs) -> None:
            self._began_s = self._began_s or time.perf_counter()

        def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
            # Gradients are still there, the optimizer's state has just been made.
            self._guard._optimizer = _unwrapped(optimizer)
            self._guard.after_step()

        def on_step_end(self, args, state, control, **kwargs) -> None:
            self.seconds = time.perf_counter() - self._began_s

        def on_train_end(self, args, state, control, **kwargs) -> None:
            self._hook.remove()

        def _count(self, model, args, kwargs) -> None:
            import torch

            if model.training and torch.is_grad_enabled():
                rows = next((tensor for _, tensor in _nested([args, kwargs], "input") if tensor.dim()), None)
                self.samples += 0 if rows is None else len(rows)

    return GpuGuardCallback

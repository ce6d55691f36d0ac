"""Refuses a silent CPU fallback in any training script: one line, no dependency beyond torch.

    with gpu_guard(model, optimizer):       # around a loop
        for batch in loader: ...

    gpu_guard(model, optimizer, batch)      # or one check, wherever it is wanted

    Trainer(..., callbacks=[GpuGuardCallback()])

It looks at tensors and at what is computed, never at a configuration. Every step: each parameter and
buffer, and what the model returns. The first step, and then ever more rarely: each operator that runs, so
that work is seen wherever its tensors are kept, and everything that the optimizer holds. It measures no
speed and proves no native code: `kit report` does.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
import re
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from kit.errors import GpuNotUsable, UsageError

# Off the device in one step: what is arithmetic on the side, and what is training. The share is of all products of
# the step, for models so small that nothing of them reaches the limit.
FLOP_LIMIT, SHARE_LIMIT = 1e6, 0.01
# Copied to the host in one step by the model, of that with its gradient's graph; touched on the host by an optimizer.
COPY_LIMIT_BYTES, GRAPH_LIMIT_BYTES, UPDATE_LIMIT = 2**20, 2**10, 16
# Every so many watched steps one is watched to its end, the others until the model returns.
WHOLE_EVERY, LONGEST_INTERVAL = 8, 1000

# The attribute of a tensor that says where it is, quicker than comparing devices.
_IS_ON = {"cuda": "is_cuda", "cpu": "is_cpu"}
_PRODUCT = re.compile(r"(?:^|_)(?:add|b|badd|addb)?m[mv](?:_|$)|conv|attention|rnn|lstm|gru|linear|matmul|^v?dot")
_NOT_LOOKED_INTO = (str, bytes, int, float, type(None), type, torch.nn.Module, torch.optim.Optimizer)


class gpu_guard:
    """Checks `model`, `optimizer` and `batch` at once; as a context manager also each step inside it.

    optimizer: one, or a list or dict of them; the last one's steps are counted, forward passes in training mode
    where none has hooks. batch: tensors in any nesting. device: 'cuda', or 'cpu' to rehearse a script. allow: what
    is on the host on purpose, each a part of its dotted name ('embed_tokens', 'exp_avg') or of the step: 'forward',
    'backward', 'optimizer'. Raises GpuNotUsable naming the first thing that is elsewhere.
    """

    def __init__(
        self, model: Any, optimizer: Any = None, batch: Any = None, *, device: str = "cuda", allow: Any = ()
    ) -> None:
        if device not in _IS_ON:
            raise UsageError(f"device={device!r}", expected="cuda, or cpu for a rehearsal", todo="correct the device")
        self.model, self.is_home, self.steps = model, attrgetter(_IS_ON[device]), 0
        self.allow = (allow,) if isinstance(allow, str) else tuple(allow)
        self._device, self._optimizers = device, _optimizers(optimizer)
        self._hooks: list[Any] = []
        self._watch: _Watch | None = None
        self._contexts = contextlib.ExitStack()
        self._watched = self._due = self._depth = 0
        self._saw_forward, self._may_watch_whole = False, True
        self.check(batch)

    def check(self, batch: Any = None) -> None:
        """Looks at everything: parameters, gradients, buffers, all that the optimizers hold, and the batch if given."""
        name = None
        for name, tensor in self._tensors(batch):
            if self.is_home(tensor):
                continue
            # Optimizers keep their counts on the host, and a paged state is where it has to be.
            is_count = tensor.numel() <= 1 and not name.startswith(("parameter", "gradient", "batch"))
            is_fine = is_count or tensor.dim() == 0 and name.startswith("batch")
            if not is_fine and not getattr(tensor, "is_paged", False) and not self.is_allowed(name):
                is_empty = tensor.is_meta and "it has no values: model.to_empty(device=…), then load its weights"
                raise self.refusal(f"{name} is on {tensor.device}", is_empty or "move it with .to(…) before training")
        if name is None:
            raise self.refusal(
                "the model has no parameter, buffer or batch to look at", "give the model that is trained"
            )
        mine = set(map(id, self.model.parameters()))
        for optimizer in self._optimizers:
            held = {id(parameter) for group in getattr(optimizer, "param_groups", ()) for parameter in group["params"]}
            if mine and not held & mine and not self.is_allowed("optimizer"):
                found = f"{type(optimizer).__name__} holds none of the model's parameters"
                raise self.refusal(found, "make the optimizer from model.parameters()")
        # Setting a parameter or buffer changes these dicts in place, so a glance at them sees it.
        self._kept = [kept for m in self.model.modules() for kept in (m._parameters, m._buffers) if kept]

    def _tensors(self, batch: Any) -> Iterator[tuple[str, Any]]:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for parameter, name in names.items():
            yield f"parameter {name}", parameter
            if parameter.grad is not None:
                yield f"gradient of {name}", parameter.grad
            if vars(parameter):
                yield from _nested(vars(parameter), f"state of {name}")
        for name, buffer in self.model.named_buffers():
            yield f"buffer {name}", buffer
        for optimizer in self._optimizers:
            groups = getattr(optimizer, "param_groups", ())
            kept = {
                **vars(optimizer),
                "state": _named(getattr(optimizer, "state", None) or {}, names),
                "param_groups": [
                    {**group, "params": _named({p: p for p in group["params"]}, names)} for group in groups
                ],
            }
            yield from _nested(SimpleNamespace(**kept), type(optimizer).__name__)
        yield from _nested(batch, "batch")

    def is_allowed(self, name: str) -> bool:
        dotted = re.sub(r"\W+", ".", f".{name}.")
        return any(f".{part}." in dotted for part in self.allow)

    def refusal(self, found: str, todo: str) -> GpuNotUsable:
        todo = todo.replace("…", repr(self._device))
        todo += "; what is on the host on purpose: gpu_guard(..., allow=('a part of its name',))"
        if self._device == "cuda" and not torch.cuda.is_available():
            todo = f"torch {torch.__version__} has no usable CUDA device here: python -m kit check says why"
        at = f" at step {self.steps + 1}" if self._hooks else ""
        but = f" but what allow names: {', '.join(self.allow)}" if self.allow else ""
        return GpuNotUsable(f"{found}{at}", expected=f"all of the training on {self._device}{but}", todo=todo)

    # --- around a loop --------------------------------------------------------------

    def __enter__(self) -> gpu_guard:
        hooked = [one for one in self._optimizers if hasattr(one, "register_step_post_hook")]
        self._counted = hooked[-1] if hooked else None
        self._hooks = [
            self.model.register_forward_pre_hook(self._before_forward),
            self.model.register_forward_hook(self._after_forward, always_call=True),
            *(one.register_step_pre_hook(self._before_update) for one in hooked),
            *(one.register_step_post_hook(self._after_update) for one in hooked),
        ]
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._end_watch(raises=kind is None)
        self._hooks = []
        if kind is None and not self.steps:
            said = "gpu_guard saw no training step of this model: nothing was guarded"
            warnings.warn(said, RuntimeWarning, stacklevel=2)

    def after_step(self) -> None:
        """One step is done: a look at everything after a watched one, else at all parameters and buffers."""
        if self._counted is not None:
            self._end_watch()
        is_due, number = self.steps >= self._due, self.steps + 1
        if is_due:
            self._watched += 1
            # About twice as late each time, later four times; by chance, and not the program's own random numbers.
            low, high = (number // 2, number * 3 // 2) if number < 4 else (2 * number, 4 * number)
            low, high = max(1, min(low, LONGEST_INTERVAL // 2)), min(high, LONGEST_INTERVAL)
            self._due = self.steps + random.SystemRandom().randint(low, high)
        tensors = (tensor for kept in self._kept for tensor in kept.values() if tensor is not None)
        if is_due or not all(map(self.is_home, tensors)):
            self.check()
        self.steps = number
        if not self._saw_forward and self._may_watch_whole:
            # The program calls parts of the model, or its graph, never the whole: the next step is watched to its end.
            self._begin_watch(is_whole=True)
        self._saw_forward = False

    def _before_forward(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            # No part of a compiled graph: then steps are watched from end to end, as the program wrote them.
            return
        self._saw_forward, self._depth = True, 0
        if self._counted is None:
            self._end_watch()
        if torch.is_grad_enabled():
            # Inside somebody's own mode this one has to end where it began.
            is_whole = self._may_watch_whole and self._watched % WHOLE_EVERY == 0
            self._begin_watch(is_whole=is_whole and _get_current_dispatch_mode() is None)

    def _after_forward(self, model: Any, args: Any, output: Any) -> None:
        """What is trained on has to come out on the device. Inputs may be moved inside the model."""
        if torch.compiler.is_compiling():
            return
        depth = 2 if self._watch is None else 8
        if self._watch is not None and not (self._watch.is_whole and output is not None):
            # A forward pass that raised has no output, and its error is the one to see.
            self._end_watch(raises=output is not None)
        for name, value in _nested(output, "output", depth):
            if value.requires_grad and not self.is_home(value) and not self.is_allowed(name):
                raise self.refusal(f"the model's {name} is on {value.device}", "compute it on the device")
        if self._counted is None and model.training and output is not None:
            self.after_step()

    def _before_update(self, *_: Any) -> None:
        self._depth += 1

    def _after_update(self, optimizer: Any, *_: Any) -> None:
        # A step that calls its base class's step is one step.
        self._depth -= 1
        if not self._depth and optimizer is self._counted:
            self.after_step()

    def _begin_watch(self, is_whole: bool) -> None:
        if self._watch is not None or self.steps < self._due:
            return
        self._watch = _Watch(self, is_whole)
        if "torch._dynamo" in sys.modules:
            # Compiled under a dispatch mode, a function would never be compiled again: this step runs as written.
            self._contexts.enter_context(torch.compiler.set_stance("force_eager"))
        self._contexts.enter_context(self._watch)

    def _end_watch(self, raises: bool = True) -> None:
        watch, self._watch = self._watch, None
        self._contexts.close()
        found = watch and watch.answer()
        if found and raises:
            raise self.refusal(found, "compute it on the device")


class _Watch(TorchDispatchMode):
    """Sees each operator of a step, in its backward pass and its optimizer too. It keeps the first thing that is to
    be refused and never raises: an error inside an operator would leave the mode behind."""

    def __init__(self, guard: gpu_guard, is_whole: bool) -> None:
        super().__init__()
        self.is_whole, self._guard, self._is_home = is_whole, guard, guard.is_home
        self._found = self._last = ""
        self._flop = self._flop_away = 0.0
        self._copied_bytes = self._graph_bytes = 0
        self._copied_in: set[str] = set()

    def __exit__(self, *error: Any) -> None:
        # Else somebody's own mode, entered in between, has already taken this one off the stack.
        if _get_current_dispatch_mode() is self:
            super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._found:
            inputs, outputs = _flat((*args, *kwargs.values()) if kwargs else args), _flat((out,))
            is_all_home = all(map(self._is_home, inputs)) and all(map(self._is_home, outputs))
            if not is_all_home or _is_product(func):
                self._look(func, inputs, outputs)
        return out

    def answer(self) -> str:
        """What is to be refused, empty where all was well."""
        share = self._flop_away / self._flop if self._flop else 0.0
        if not self._found and share > SHARE_LIMIT:
            return f"{share:.0%} of the step's products are computed elsewhere, the last {self._last}"
        return self._found

    def _look(self, func: Any, inputs: list[Any], outputs: list[Any]) -> None:
        away = [tensor for tensor in inputs + outputs if self._is_away(tensor)]
        flop = _flop(inputs, outputs) if _is_product(func) else 0.0
        if not away:
            self._flop += flop
            return
        place, where = self._place()
        is_copy = bool(inputs and outputs) and self._is_home(inputs[-1]) != self._is_home(outputs[0])
        has_graph = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        # Without a graph and after the model: the next rows, metrics, a checkpoint are no part of the step.
        is_aside = place == "outside" and not has_graph and not (is_copy and self._weight(outputs[0]))
        if is_aside or self._guard.is_allowed(place) or self._guard.allow and place in ("backward", "optimizer"):
            return
        self._flop, self._flop_away = self._flop + flop, self._flop_away + flop
        self._last = f"on {away[0].device} ({func}) {where}"
        found = self._copied(inputs[-1], outputs[0], place, has_graph) if is_copy else ""
        if self._flop_away > FLOP_LIMIT:
            found = f"{self._flop_away / 1e6:.3g} MFLOP of products are computed"
        elif place == "optimizer" and sum(tensor.numel() for tensor in away) > UPDATE_LIMIT:
            found = found or "weights or states are updated"
        self._found = found and f"{found} {self._last}"

    def _copied(self, source: Any, target: Any, place: str, has_graph: bool) -> str:
        """What is wrong with a copy down to the host, or up from it."""
        size, is_float = source.numel() * source.element_size(), source.is_floating_point() or source.is_complex()
        if self._is_home(source):
            self._copied_bytes += size if place != "outside" else 0
            self._graph_bytes += size if has_graph and not source.is_leaf else 0
            self._copied_in |= {place} if is_float else set()
            if place != "outside" and self._weight(source):
                return f"weight {self._weight(source)} is copied to be"
            if self._graph_bytes > GRAPH_LIMIT_BYTES or self._copied_bytes > COPY_LIMIT_BYTES:
                return (
                    f"{max(self._graph_bytes, self._copied_bytes)} bytes of what the loss is made of are copied to be"
                )
        elif is_float and has_graph:
            return "" if self._guard.allow else "what the loss is made of was computed"
        elif is_float and source.numel() > 1:
            if place == "backward" or place in self._copied_in:
                return "values that come back to the device were computed"
            if self._weight(target):
                return f"the new weight {self._weight(target)} was computed"
        return ""

    def _is_away(self, tensor: Any) -> bool:
        """Single numbers may be on the host, and paged states are where they have to be."""
        is_number = tensor.numel() <= 1 and not tensor.requires_grad
        return not (self._is_home(tensor) or is_number or getattr(tensor, "is_paged", False))

    def _weight(self, tensor: Any) -> str:
        """The parameter whose memory this is."""
        start = tensor.untyped_storage().data_ptr()
        weights = self._guard.model.named_parameters() if start else ()
        here = (name for name, p in weights if p.device == tensor.device and p.untyped_storage().data_ptr() == start)
        return next(here, "")

    def _place(self) -> tuple[str, str]:
        """Part of the step and dotted name of the module, also in words; from the frames of the program."""
        if self._guard._depth:
            return "optimizer", "in the optimizer's step"
        names = {id(module): name for name, module in self._guard.model.named_modules()}
        # A thread of the backward pass has no frames but ours, which are no module's.
        frame: Any = sys._getframe()
        inside = ""
        while frame is not None:
            module = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames[:1] else None
            if id(module) in names:
                name = names[id(module)]
                return f"forward.{name}", f"in {name or 'the model itself'}{inside}"
            if isinstance(module, torch.nn.Module):
                inside = inside or f" ({type(module).__name__}, which is not registered in it)"
            frame = frame.f_back
        if torch._C._current_graph_task_id() != -1:
            return "backward", "in the backward pass"
        return "outside", f"outside the model{inside}"


@functools.cache
def _is_product(func: Any) -> bool:
    return bool(_PRODUCT.search(func.overloadpacket.__name__))


def _flop(inputs: list[Any], outputs: list[Any]) -> float:
    """About 2mnk: exact for a product of two matrices, within a small factor for what else multiplies."""
    sizes = sorted(tensor.numel() for tensor in inputs)[-2:] + [outputs[0].numel() if outputs else 0]
    return 2.0 * math.sqrt(math.prod(sizes)) if len(sizes) == 3 else 0.0


def _named(by_parameter: Mapping[Any, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    """The same by name."""
    numbered = enumerate(by_parameter.items())
    return {names.get(key, f"{number}, outside the model"): value for number, (key, value) in numbered}


def _flat(values: Any) -> list[Any]:
    """The tensors in it, and in the lists in it."""
    lists = (value if isinstance(value, (list, tuple)) else (value,) for value in values)
    return [item for some in lists for item in some if isinstance(item, torch.Tensor)]


def _optimizers(given: Any) -> list[Any]:
    """One or several, without what accelerate and the like wrap around: that has neither hooks nor a state."""
    if isinstance(given, (list, tuple, Mapping)):
        return [one for item in (given.values() if isinstance(given, Mapping) else given) for one in _optimizers(item)]
    while getattr(given, "optimizer", None) is not None:
        given = given.optimizer
    return [] if given is None else [given]


def _nested(value: Any, name: str, depth: int = 8, seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Tensors in lists, mappings, and the fields of any object, however they are called."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    if not depth or id(value) in seen or isinstance(value, _NOT_LOOKED_INTO) or callable(value):
        return
    if isinstance(value, Mapping):
        inside = [(f"{name}[{key!r}]", value[key]) for key in value]
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        fields = getattr(value, "_fields", None)
        inside = [(f"{name}.{fields[i]}" if fields else f"{name}[{i}]", item) for i, item in enumerate(value)]
    else:
        slots = (vars(kind).get("__slots__", ()) for kind in type(value).__mro__)
        keys = [
            *getattr(value, "__dict__", ()),
            *(k for some in slots for k in ([some] if type(some) is str else some)),
        ]
        inside = [(f"{name}.{key}", getattr(value, key, None)) for key in keys]
    seen |= {id(value)}
    for what, item in inside:
        yield from _nested(item, what, depth - 1, seen)


class GpuGuardCallback:
    """The guard inside transformers' Trainer, and a true count of what it trained on.

    samples: rows that went through a whole training forward pass in this process; the Trainer's own figure is what its
    arguments imply. seconds: from the first step's begin to the last one's end on the device, so that reading it waits
    for that. A training that begins anew, a retry too, counts anew.

    The Trainer calls its callbacks by the name of an event. Without its base class the guard needs no transformers.
    """

    def __init__(self, device: str = "cuda", allow: Any = ()) -> None:
        self._device, self._allow = device, allow
        self._guard: Any = None
        self.samples, self._began, self._ended = 0, None, None

    def __getattr__(self, name: str) -> Any:
        """Nothing is done at the other events."""
        if not name.startswith("on_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return lambda *args, **kwargs: None

    @property
    def seconds(self) -> float:
        if self._ended is None:
            return 0.0
        if self._device == "cpu":
            return self._ended - self._began
        self._ended.synchronize()
        return self._began.elapsed_time(self._ended) / 1000

    @property
    def samples_per_s(self) -> float | None:
        return self.samples / self.seconds if self.seconds else None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **_: Any) -> None:
        if self._guard is not None:
            # What came before may have raised: the Trainer tells nobody, and its hooks are still there.
            self._guard.__exit__(Exception)
        self.samples, self._began, self._ended = 0, None, None
        self._guard = gpu_guard(model, optimizer, device=self._device, allow=self._allow)
        # A training that raises tells no callback, and a mode that outlives it would slow all that comes after.
        self._guard._may_watch_whole = False
        self._guard.__enter__()
        self._guard._hooks.append(model.register_forward_hook(self._count, with_kwargs=True))

    def on_step_begin(self, *_: Any, **more: Any) -> None:
        self._began = self._began or self._now()

    def on_step_end(self, *_: Any, **more: Any) -> None:
        self._ended = self._now()

    def on_train_end(self, *_: Any, **more: Any) -> None:
        self._guard.__exit__(None)

    def _now(self) -> Any:
        if self._device == "cpu":
            return time.perf_counter()
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        return now

    def _count(self, model: Any, args: Any, kwargs: Any, output: Any) -> None:
        if model.training and torch.is_grad_enabled():
            rows = next((tensor for _, tensor in _nested([args, kwargs], "input") if tensor.dim()), ())
            self.samples += len(rows)

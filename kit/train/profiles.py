"""Which kernels one warm step runs, whichever engine runs it. What is timed is never the profiled step."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from kit.train.metrics import KernelProfile
from kit.train.trace import read_trace


def _profiler():
    # The profiler below torch.profiler, which imports torch's compiler when it starts: seconds.
    from torch.autograd.profiler import profile

    return profile(use_kineto=True, use_device="cuda")


def _read(recorded, step_time_s: float) -> KernelProfile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    return read_trace(trace, step_time_s=step_time_s)


@contextlib.contextmanager
def profiled(step_time_s: float) -> Iterator[Callable[[], KernelProfile]]:
    """Profiles the CUDA work of the code inside. Gives a function that reads it afterwards. step_time_s: of the same
    step without a profiler, which slows every launch."""
    recorded = _profiler()
    with recorded:
        yield lambda: _read(recorded, step_time_s)
        torch.cuda.synchronize()


@functools.cache
def profiler_problem() -> str | None:
    """Why no kernels can be profiled here; None where they can. It also starts CUPTI, which takes its time once."""
    if not torch.cuda.is_available():
        return "kernels run on a GPU, and this ran on the CPU"
    if torch.profiler.ProfilerActivity.CUDA not in torch.profiler.supported_activities():
        return "this torch cannot trace CUDA"
    try:
        with _profiler():
            torch.ones(1, device="cuda").add_(1)
            torch.cuda.synchronize()
    except RuntimeError as error:
        return f"the profiler did not run: {(str(error).splitlines() or [''])[0]}"
    return None


class Between:
    """Profiles from the forward pass `number` (from 1) of a model to the one after it, whoever drives the loop."""

    def __init__(self, model: torch.nn.Module, number: int) -> None:
        self._model, self._number, self._calls = model, number, 0
        self._recorded = None

    def __enter__(self) -> Between:
        self._hook = self._model.register_forward_pre_hook(self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _forward(self, module, args) -> None:
        self._calls += 1
        if self._calls == self._number:
            torch.cuda.synchronize()
            self._recorded = _profiler()
            self._recorded.__enter__()
        elif self._calls == self._number + 1:
            torch.cuda.synchronize()
            self._recorded.__exit__(None, None, None)

    def profile(self, step_time_s: float) -> KernelProfile:
        return _read(self._recorded, step_time_s)

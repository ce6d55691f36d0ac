"""Which kernels one warm step runs, whichever engine runs it. What is timed is never the profiled step."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from kit.train.loop import synchronize
from kit.train.steps import KernelProfile

# Kinds of kernels by the names that cuBLAS, CUTLASS, cuDNN, Triton and ATen give them.
KINDS = (
    # A collective's kernel spins while it waits for other ranks: it is no work, and its time is not counted as such.
    ("communication", re.compile(r"nccl", re.I)),
    ("attention", re.compile(r"fmha|flash|attention|sdpa|softmax_warp", re.I)),
    ("matmul", re.compile(r"gemm|gemv|cutlass|cublas|xmma|splitk|nvjet|matmul|_mm_", re.I)),
    ("optimizer", re.compile(r"multi_tensor|adam|lpnorm|foreach|square_sum", re.I)),
    ("loss", re.compile(r"softmax|nll_loss|cross_entropy", re.I)),
    ("norm", re.compile(r"layer_?norm|rms_?norm|gammabeta", re.I)),
)
MATMULS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})
_PRODUCTS = MATMULS | {"aten::_scaled_dot_product_flash_attention_for_cpu"}
# A matrix product under this is a scalar's worth of work and not a witness.
LARGE_FLOP = 1e6


def read_trace(trace: dict[str, Any], *, step_time_s: float) -> KernelProfile:
    """Which kernels of a Chrome trace ran on the device, and which matrix products did not. step_time_s: wall time of
    the profiled step, which the shares refer to."""
    events = [event for event in trace.get("traceEvents", ()) if event.get("ph") == "X"]
    kernels = [event for event in events if event.get("cat") == "kernel"]
    moved = [event for event in events if event.get("cat") == "gpu_memcpy"]
    copies = [event for event in moved if "Device -> Device" not in event["name"] and "DtoD" not in event["name"]]
    by_name: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    for kernel in kernels:
        by_name[kernel["name"][:120]] += kernel.get("dur", 0) / 1e6
        groups[kind_of(kernel["name"])] += kernel.get("dur", 0) / 1e6
    return KernelProfile(
        step_time_s=step_time_s,
        device_time_s=sum(spent for kind, spent in groups.items() if kind != "communication"),
        kernels=len(kernels),
        matmul_kernels=sum(kind_of(kernel["name"]) == "matmul" for kernel in kernels),
        copies=len(copies),
        copied_bytes=sum(int(copy.get("args", {}).get("bytes", 0)) for copy in copies),
        cpu_operators=_on_cpu(events, kernels),
        groups=dict(groups.most_common()),
        top_kernels=dict(by_name.most_common(12)),
    )


def kind_of(kernel_name: str) -> str:
    return next((kind for kind, pattern in KINDS if pattern.search(kernel_name)), "other")


def _on_cpu(events: Sequence[dict[str, Any]], kernels: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Large matrix products that no kernel belongs to, by operator.

    A kernel belongs to an operator by the profiler's external id, or where its launch stands
    inside the operator on the same thread: launches through the driver API carry no external id.
    Matrix kernels whose launch is not in the trace at all can belong to any operator; where there
    are enough of them for all that is left, nothing is known to have run on the CPU.
    """
    ids, launched_by = ({_arg(kernel, name) for kernel in kernels} - {None} for name in ("External id", "correlation"))
    launches = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    times: dict[Any, list[float]] = defaultdict(list)
    for launch in launches:
        if _arg(launch, "correlation") in launched_by:
            times[launch.get("tid")].append(launch["ts"])
    found: Counter[str] = Counter()
    for event in events:
        if event.get("name") not in _PRODUCTS or _arg(event, "External id") in ids:
            continue
        has_launch = any(0 <= at - event["ts"] <= event.get("dur", 0) for at in times[event.get("tid")])
        if not has_launch and matmul_flop(_arg(event, "Input Dims") or ()) >= LARGE_FLOP:
            found[event["name"]] += 1
    # The trace ties a kernel to nothing where it has no launch in it, and no operator with its external id.
    known = {_arg(launch, "correlation") for launch in launches}
    operators = {_arg(event, "External id") for event in events if event.get("cat") == "cpu_op"}
    loose = [k for k in kernels if _arg(k, "correlation") not in known and _arg(k, "External id") not in operators]
    is_known = sum(found.values()) > sum(kind_of(kernel["name"]) == "matmul" for kernel in loose)
    return dict(found) if is_known else {}


def _arg(event: dict[str, Any], name: str) -> Any:
    return event.get("args", {}).get(name)


def matmul_flop(dims: Sequence[Any]) -> float:
    """2 · (b ·) m · k · n for the last two operands (…, m, k) and (…, k, n); 0 where shapes are not known."""
    shapes = [shape for shape in dims if isinstance(shape, (list, tuple)) and len(shape) >= 2]
    if len(shapes) < 2:
        return 0.0
    left, right = shapes[-2:]
    return 2.0 * math.prod(left) * right[-1]


def start_profiler(device: str):
    """A profiler, to be entered. It stands below torch.profiler, which imports torch's compiler when it starts: seconds."""
    from torch.autograd.profiler import profile

    # A torch that cannot trace CUDA would time every operator by hand; without it the trace has no kernel.
    can_trace = torch.profiler.ProfilerActivity.CUDA in torch.profiler.supported_activities()
    return profile(use_kineto=True, use_device="cuda" if device == "cuda" and can_trace else None, record_shapes=True)


def _read(recorded, step_time_s: float) -> KernelProfile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    return read_trace(trace, step_time_s=step_time_s)


@contextlib.contextmanager
def profiled(device: str, step_time_s: float | None = None) -> Iterator[Callable[..., KernelProfile]]:
    """Profiles the code inside. Gives a function that reads it afterwards, with what is to be put beside it.
    step_time_s: of the same step without a profiler, which slows every launch; else it is measured under it."""
    with start_profiler(device) as recorded:
        start = time.perf_counter()
        yield lambda **more: dataclasses.replace(_read(recorded, step_time_s or measured), **more)
        synchronize(device)
        measured = time.perf_counter() - start


@functools.cache
def profiler_problem() -> str | None:
    """Why no kernels can be profiled here; None where they can. It also starts CUPTI, which takes its time once."""
    if not torch.cuda.is_available():
        return "kernels run on a GPU, and this ran on the CPU"
    if torch.profiler.ProfilerActivity.CUDA not in torch.profiler.supported_activities():
        return "this torch cannot trace CUDA"
    try:
        with start_profiler("cuda"):
            torch.ones(1, device="cuda").add_(1)
            torch.cuda.synchronize()
    except RuntimeError as error:
        return f"the profiler did not run: {(str(error).splitlines() or [''])[0]}"
    return None


@contextlib.contextmanager
def between(model: torch.nn.Module, number: int) -> Iterator[Callable[[float], KernelProfile]]:
    """Profiles from the forward pass `number` (from 1) of a model to the one after it, whoever drives the loop. Gives a
    function that reads it afterwards, given the time of a step without a profiler."""
    calls, recorded = itertools.count(1), start_profiler("cuda")

    def forward(module, args) -> None:
        call = next(calls)
        if call == number:
            torch.cuda.synchronize()
            recorded.__enter__()
        elif call == number + 1:
            torch.cuda.synchronize()
            recorded.__exit__(None, None, None)

    hook = model.register_forward_pre_hook(forward)
    try:
        yield functools.partial(_read, recorded)
    finally:
        hook.remove()

"""Reads a profiler trace: which kernels ran on the device, and which matrix products did not.

Input is the Chrome trace that torch.profiler exports, so a recorded trace can be judged on
a machine without a GPU.
"""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from kit.train.metrics import KernelProfile

# Kinds of kernels by the names that cuBLAS, CUTLASS, cuDNN, Triton and ATen give them.
KINDS = (
    ("attention", re.compile(r"fmha|flash|attention|sdpa|softmax_warp", re.I)),
    ("matmul", re.compile(r"gemm|gemv|cutlass|cublas|xmma|splitk|nvjet|matmul|_mm_", re.I)),
    ("optimizer", re.compile(r"multi_tensor|adam|lpnorm|foreach", re.I)),
    ("loss", re.compile(r"softmax|nll_loss|cross_entropy", re.I)),
    ("norm", re.compile(r"layer_?norm|rms_?norm|gammabeta", re.I)),
)
_MATMULS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product_flash_attention_for_cpu"}
# A matrix product under this is a scalar's worth of work and not a witness.
LARGE_FLOP = 1e6


def read_trace(trace: dict[str, Any], *, step_time_s: float) -> KernelProfile:
    """`step_time_s`: wall time of the profiled step, which the shares refer to."""
    events = [event for event in trace.get("traceEvents", ()) if event.get("ph") == "X"]
    kernels = [event for event in events if event.get("cat") == "kernel"]
    copies = [event for event in events if event.get("cat") == "gpu_memcpy" and "Device -> Device" not in event["name"]
              and "DtoD" not in event["name"]]
    by_name: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    for kernel in kernels:
        by_name[kernel["name"][:120]] += kernel.get("dur", 0) / 1e6
        groups[kind_of(kernel["name"])] += kernel.get("dur", 0) / 1e6
    return KernelProfile(
        step_time_s=step_time_s,
        device_time_s=sum(kernel.get("dur", 0) for kernel in kernels) / 1e6,
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
    """
    ids = {kernel.get("args", {}).get("External id") for kernel in kernels} - {None}
    correlations = {kernel.get("args", {}).get("correlation") for kernel in kernels} - {None}
    launches: dict[Any, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") in ("cuda_runtime", "cuda_driver"):
            if event.get("args", {}).get("correlation") in correlations:
                launches[event.get("tid")].append(event["ts"])
    for times in launches.values():
        times.sort()
    found: Counter[str] = Counter()
    for event in events:
        if event.get("name") not in _MATMULS or event.get("args", {}).get("External id") in ids:
            continue
        times = launches.get(event.get("tid"), [])
        first = bisect.bisect_left(times, event["ts"])
        has_launch = first < len(times) and times[first] <= event["ts"] + event.get("dur", 0)
        if not has_launch and matmul_flop(event.get("args", {}).get("Input Dims", ())) >= LARGE_FLOP:
            found[event["name"]] += 1
    return dict(found)


def matmul_flop(dims: Sequence[Any]) -> float:
    """2 · (b ·) m · k · n for the last two operands (…, m, k) and (…, k, n); 0 where the shapes are not known."""
    shapes = [shape for shape in dims if isinstance(shape, list) and len(shape) >= 2]
    if len(shapes) < 2:
        return 0.0
    left, right = shapes[-2:]
    return 2.0 * math.prod(left) * right[-1]

"""What this card can do when it does one thing: matrix products, attention, a copy, a launch. A few seconds."""

import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch

from kit.gpu.specs import bandwidth_bytes_per_s, peak_flop_per_s
from kit.sweep.table import Ceilings
from kit.sweep.trial import timed
from kit.train.config import DATASHEET_DTYPES
from kit.train.model import fast_kernels

_PEAKS = {**DATASHEET_DTYPES, "float16": "fp16", "float8": "fp8"}
# What is asked of each device. m, n, k of products: a card's best shape is seldom a square, and the third was the best of
# many on an H100 (Bekman's MAMF finder). Seconds for all of them: a slow card measures fewer shapes, rather than for
# longer. Batch, heads, tokens and width of a head of attention: GPT-2 124M's.
_ASKED: dict[str, dict[str, Any]] = {
    "cuda": {
        "products": (
            (4096, 4096, 4096), (8192, 8192, 8192), (2048, 2048, 13312), (16384, 8192, 1280), (4096, 4096, 16384),
        ),
        "products_s": 2.5,
        "attention": (64, 12, 1024, 64),
        "copy_bytes": 2 * 1024**3,
    },
    "cpu": {
        "products": ((512, 512, 512), (1024, 1024, 1024), (512, 512, 2048)),
        "products_s": 1.5,
        "attention": (1, 12, 256, 64),
        "copy_bytes": 128 * 1024**2,
    },
}  # fmt: skip
_SECONDS = 0.05
# Calls in a row until about this long, so that neither launching nor waiting is part of the figure.
_ROW_S = 0.005
_LAUNCHES = 1000


def measure_ceilings(device: str, dtypes: Collection[str], *, is_whole: bool = True) -> Ceilings:
    """The best of a few shapes for each of `dtypes`, on random numbers (zeros run faster than data).

    is_whole: for every other dtype that the device has units for as well, and attention in bfloat16.
    """
    own, is_cuda = _own_dtypes(device), device == "cuda"
    wanted = dict.fromkeys((*dtypes, *(own if is_whole else ())))
    found = {dtype: _best_product(device, dtype, _ASKED[device]["products_s"] / len(wanted)) for dtype in wanted}
    best = {dtype: product for dtype, product in found.items() if product}
    has_attention = is_whole and "bfloat16" in own
    name = torch.cuda.get_device_name() if is_cuda else "CPU"
    peaks = {dtype: peak_flop_per_s(name, _PEAKS[dtype]) for dtype in best}
    value = torch.ones(1, device=device)
    timed(partial(value.add_, 1), 1, device)
    return Ceilings(
        device_name=name,
        matmul_flop_per_s={dtype: rate for dtype, (rate, _) in best.items()},
        matmul_shape={dtype: shape for dtype, (_, shape) in best.items()},
        copy_bytes_per_s=_copy_rate(device),
        launch_s=timed(partial(value.add_, 1), _LAUNCHES, device),
        datasheet_flop_per_s={dtype: peak for dtype, peak in peaks.items() if peak},
        datasheet_bytes_per_s=bandwidth_bytes_per_s(name),
        attention_flop_per_s=_attention_rate(device) if has_attention else None,
        attention_shape=" × ".join(map(str, _ASKED[device]["attention"])) if has_attention else None,
        graph_launch_s=_graph_launch_time(value) if is_cuda else None,
    )


def _own_dtypes(device: str) -> tuple[str, ...]:
    """Those with units of their own: tf32 and bfloat16 from Ampere on, float8 from Ada on (CUDA C++ Programming
    Guide, table of arithmetic by compute capability)."""
    if device == "cpu":
        return "float32", "bfloat16"
    capability = torch.cuda.get_device_capability()
    ampere = ("tf32", "bfloat16") if capability >= (8, 0) else ()
    return ("float32", *ampere, "float16", *(("float8",) if capability >= (8, 9) else ()))


def _best_product(device: str, dtype: str, share_s: float) -> tuple[float, str] | None:
    """FLOP/s and shape; None where this torch has no such product here."""
    best, end = None, time.perf_counter() + share_s
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        for m, n, k in _ASKED[device]["products"]:
            rate = 2 * m * n * k / _best_of(_product(device, dtype, (m, n, k)), device)
            if best is None or rate > best[0]:
                best = rate, f"{m} × {n} × {k}"
            if time.perf_counter() > end:
                break
    except (RuntimeError, AttributeError):
        if dtype != "float8":
            raise
    finally:
        torch.set_float32_matmul_precision(before)
    return best


def _product(device: str, dtype: str, shape: tuple[int, int, int]) -> Callable[[], object]:
    m, n, k = shape
    kind = getattr(torch, "bfloat16" if dtype == "float8" else dtype, torch.float32)
    left, right = torch.randn(m, k, device=device, dtype=kind), torch.randn(k, n, device=device, dtype=kind)
    if dtype == "float8":
        # The second operand by columns, as the hardware wants it.
        left, right = left.to(torch.float8_e4m3fn), right.t().contiguous().to(torch.float8_e4m3fn).t()
        one = torch.ones((), device=device)
        how = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16, "use_fast_accum": True}
        return partial(torch._scaled_mm, left, right, **how)
    return partial(torch.mm, left, right, out=torch.empty(m, n, device=device, dtype=kind))


def _attention_rate(device: str) -> float:
    """FLOP/s of causal attention in bfloat16, forward and backward.

    2 products forward and 5 backward of 2 · B · H · T² · D each, half of it masked (Dao 2023, 2307.08691, section 4.1).
    """
    batch, heads, tokens, width = _ASKED[device]["attention"]
    query, key, value = (
        torch.randn(batch, heads, tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    gradient = torch.randn_like(query)

    def work() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.autograd.grad(out, (query, key, value), gradient)

    with fast_kernels(torch.bfloat16, tokens):
        return 7 * batch * heads * tokens**2 * width / _best_of(work, device)


def _copy_rate(device: str) -> float:
    count = _ASKED[device]["copy_bytes"]
    if device == "cuda":
        count = min(count, torch.cuda.mem_get_info()[0] // 8)
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / _best_of(partial(target.copy_, source), device)


def _graph_launch_time(value: torch.Tensor) -> float:
    """Seconds of one of a thousand small kernels in a CUDA graph, each waiting for the one before it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            value.add_(1)
    return _best_of(graph.replay, "cuda") / _LAUNCHES


def _best_of(work: Callable[[], object], device: str) -> float:
    """Seconds of a call in the fastest row of calls, after a warm-up: a ceiling is the best that was seen."""
    timed(work, 1, device)
    calls = max(1, min(100, round(_ROW_S / timed(work, 1, device))))
    times, end = [], time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(times) < 3:
        times.append(timed(work, calls, device))
    return min(times)

"""What this card can do when it does one thing: matrix products, a copy, a launch. A few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from kit.gpu.specs import peak_flop_per_s
from kit.sweep.table import Ceilings
from kit.train.config import DATASHEET_DTYPES
from kit.train.loop import synchronize

# Large enough to fill the biggest card of today, small enough to fit the smallest.
_SHAPES = {"cuda": (4096, 8192), "cpu": (512, 1024)}
_COPY_BYTES = {"cuda": 2 * 1024**3, "cpu": 128 * 1024**2}
_SECONDS = 0.25


def measure_ceilings(device: str, dtypes: tuple[str, ...]) -> Ceilings:
    """The best of a few square shapes for each dtype, on random numbers (zeros run faster than data)."""
    rates: dict[str, float] = {}
    shapes: dict[str, str] = {}
    for dtype in dtypes:
        for size in _SHAPES[device]:
            rate = _matmul_rate(device, dtype, size)
            if rate > rates.get(dtype, 0):
                rates[dtype], shapes[dtype] = rate, f"{size} × {size} × {size}"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peaks = {dtype: peak_flop_per_s(name, DATASHEET_DTYPES[dtype]) for dtype in dtypes}
    return Ceilings(
        device_name=name,
        matmul_flop_per_s=rates,
        matmul_shape=shapes,
        copy_bytes_per_s=_copy_rate(device),
        launch_s=_launch_time(device),
        datasheet_flop_per_s={dtype: peak for dtype, peak in peaks.items() if peak},
    )


def _matmul_rate(device: str, dtype: str, size: int) -> float:
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        left = torch.randn(size, size, device=device, dtype=kind)
        right = torch.randn(size, size, device=device, dtype=kind)
        out = torch.empty(size, size, device=device, dtype=kind)
        seconds = _best_of(lambda: torch.mm(left, right, out=out), device)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * size**3 / seconds


def _copy_rate(device: str) -> float:
    count = _COPY_BYTES[device]
    if device == "cuda":
        count = min(count, torch.cuda.mem_get_info()[0] // 8)
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / _best_of(lambda: target.copy_(source), device)


def _launch_time(device: str) -> float:
    """Host seconds to launch one small kernel, a thousand in a row."""
    value = torch.ones(1, device=device)
    value.add_(1)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(1000):
        value.add_(1)
    synchronize(device)
    return (time.perf_counter() - start) / 1000


def _best_of(work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest call of a quarter second, after a warm-up: a ceiling is the best that was seen."""
    for _ in range(3):
        work()
    synchronize(device)
    times = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)

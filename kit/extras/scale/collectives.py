"""How fast the ranks sum a tensor, and whether the sum is right. Runs inside an initialised process group.

Every rank calls the same function and takes the same decisions, because it decides on times and on
free memory that all ranks agreed on: a rank that went its own way would leave the others waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from kit.extras.scale.ranks import GPT2_GRADIENT_BYTES, AllReduce
from kit.units import GiB, MiB

WARM_UP = 2
MIN_ITERATIONS, MAX_ITERATIONS = 3, 25
# All sizes together; one whose least number of iterations would go beyond it is left out.
BUDGET_S = {"cuda": 4.0, "cpu": 2.0}
SIZES_BYTES = {
    "cuda": tuple(sorted((MiB, 4 * MiB, 16 * MiB, 64 * MiB, 256 * MiB, GPT2_GRADIENT_BYTES, GiB))),
    "cpu": (MiB // 16, MiB // 4, MiB, 4 * MiB),
}
_FLOAT_BYTES = 4
_CHECKED_PLACES = 1_000_000


def measure_all_reduce(device: str) -> tuple[AllReduce, ...]:
    """All-reduces of float32 tensors, smallest first; the same rows on every rank.

    A size is left out where a rank has not the memory for it, or where it would go beyond `BUDGET_S`. Each
    iteration begins when all ranks have arrived and ends when this rank's device is done; its time is
    the slowest rank's. It is one call alone, launch and wait included, which weighs on small sizes;
    nccl-tests queue many.
    """
    kind = torch.device(device).type
    sizes = SIZES_BYTES[kind]
    rows, left_s = [], BUDGET_S[kind]
    for place, size in enumerate(sizes):
        expected_s = rows[-1].time_s * size / rows[-1].size_bytes if rows else 0.0
        if expected_s * (WARM_UP + MIN_ITERATIONS) > left_s:
            break
        times = _measure(device, size, left_s / (len(sizes) - place))
        if times:
            rows.append(AllReduce(size, dist.get_world_size(), "float32", times[WARM_UP:]))
            left_s -= sum(times)
    if kind == "cuda":
        # What a training run measures after this is its own memory.
        torch.cuda.empty_cache()
    return tuple(rows)


def check_sum(device: str) -> tuple[float, float]:
    """(found, expected) of an all-reduce of a million float32; rank r contributes r + 1 at every place.

    expected: n(n+1)/2, exact in float32 up to 5792 ranks. found: the place that differs most from it, NaN if
    one is NaN; all places are compared.
    """
    count = dist.get_world_size()
    expected = count * (count + 1) / 2
    tensor = torch.full((_CHECKED_PLACES,), float(dist.get_rank() + 1), device=device)
    dist.all_reduce(tensor)
    # argmax takes a NaN for the greatest.
    worst = torch.argmax((tensor - expected).abs())
    return float(tensor[worst]), expected


def _measure(device: str, size_bytes: int, share_s: float) -> tuple[float, ...]:
    """The times of warm-up and iterations, as the slowest rank saw each; as many as fit into `share_s`. Empty
    where a rank has not the memory."""
    tensor = _allocate(device, size_bytes)
    if not _agree(device, [float(tensor is not None)], dist.ReduceOp.MIN)[0]:
        return ()
    wait = _waiter(device)
    cold = _agree(device, [_time(tensor, wait) for _ in range(WARM_UP)], dist.ReduceOp.MAX)
    fitting = int((share_s - sum(cold)) / cold[-1])
    count = max(MIN_ITERATIONS, min(MAX_ITERATIONS, fitting))
    return (*cold, *_agree(device, [_time(tensor, wait) for _ in range(count)], dist.ReduceOp.MAX))


def _allocate(device: str, size_bytes: int) -> torch.Tensor | None:
    try:
        return torch.empty(size_bytes // _FLOAT_BYTES, device=device)
    except torch.OutOfMemoryError:
        return None


def _time(tensor: torch.Tensor, wait: Callable[[], None]) -> float:
    """One all-reduce of ones, which cannot overflow however often it is repeated."""
    tensor.fill_(1.0)
    wait()
    begin = time.perf_counter()
    dist.all_reduce(tensor)
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter() - begin


def _waiter(device: str) -> Callable[[], None]:
    """A barrier that any backend has: a sum of one number, and the wait for it."""
    token = torch.zeros(1, device=device)

    def wait() -> None:
        dist.all_reduce(token)
        if token.is_cuda:
            torch.cuda.synchronize(token.device)

    return wait


def _agree(device: str, values: Sequence[float], how: dist.ReduceOp) -> tuple[float, ...]:
    """The same values on every rank: the least or greatest of the ranks, place by place."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=how)
    return tuple(tensor.tolist())

"""What one rank does: it trains with the others, proves its own device, and writes down what it saw.

Started by torchrun, either through `kit train` or as `-m kit.extras.scale.worker REQUEST`, where REQUEST is
the JSON file that `kit.extras.scale.launch` wrote.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from kit.errors import KitError
from kit.extras.scale.group import Group
from kit.extras.scale.launch import HANG_S, STACK, Request
from kit.extras.scale.ranks import GPT2_GRADIENT_BYTES, AllReduce, Rank, RankRecord, ScalePlan, ScaleRow, folder_name
from kit.process import keep_bytecode
from kit.records import dumps, from_json, loads
from kit.sweep.trial import Trial, timed
from kit.train.config import TrainConfig
from kit.train.engines import random_batch
from kit.train.loop import eager_step, synchronize
from kit.train.model import build_optimizer, precision
from kit.train.steps import StepRecord
from kit.train.train import require_device, train
from kit.units import GiB, MiB

# How fast the ranks sum a tensor, and whether the sum is right. Runs inside an initialised process group.
#
# Every rank calls the same function and takes the same decisions, because it decides on times and on
# free memory that all ranks agreed on: a rank that went its own way would leave the others waiting.

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


# What one rank measures for a scaling sweep: blocks of the plain step, with and without exchanging gradients.
#
# The clock is the host's, read after the device and all other ranks have finished; a block counts
# as long as the slowest rank needed.

# Steps before anything counts: kernels are chosen, memory is taken, NCCL connects.
_WARM_UP_STEPS = 5
_LEAST_STEPS = 2


def measure_rank(request: Request) -> Group:
    """Measures every point of the plan on this number of ranks; rank 0 writes `scale.json` after each."""
    keep_bytecode()
    group = Group(request.config.device, request.parallel, launcher=request.launcher)
    out = Path(request.out)
    with _Watched(out / folder_name(group.record.rank), request.hang_s) as watched:
        require_device(request.config.device)
        group.start()
        plan = ScalePlan(
            gpus=(1,),
            config=request.config,
            modes=request.modes,
            parallel=request.parallel,
            blocks=request.blocks,
            block_s=request.block_s,
        )
        rows: list[ScaleRow] = []
        for mode, config in plan.points(group.record.world_size):
            watched.again()
            rows.append(_point(group, plan, mode, config))
        watched.again()
        sums = measure_all_reduce(request.config.device) if group.record.world_size > 1 else ()
        if group.is_first:
            name = torch.cuda.get_device_name() if request.config.device == "cuda" else "CPU"
            found = {"device_name": name, "rows": rows, "all_reduce": sums}
            (out / "scale.json").write_text(dumps(found), encoding="utf-8", newline="\n")
    return group


def _point(group: Group, plan: ScalePlan, mode: str, config: TrainConfig) -> ScaleRow:
    world_size, is_cuda = group.record.world_size, config.device == "cuda"
    trial = Trial(config)
    trial.fresh(config)
    # Each rank its own batch, as in training.
    batch = random_batch(trial.model, dataclasses.replace(config, seed=config.seed + group.record.rank))
    network = group.wrap(trial.model) if world_size > 1 else trial.model
    optimizer = build_optimizer(trial.model, config)
    # FSDP cannot step without gathering the weights, so there is nothing to compare with.
    alone = getattr(network, "no_sync", None) if world_size > 1 else None

    def block(steps: int, context=contextlib.nullcontext) -> float:
        # Every rank and every device has come here. Over Gloo, which leaves the devices alone.
        synchronize(config.device)
        dist.all_reduce(torch.zeros(1))
        with context():
            return timed(lambda: eager_step(network, optimizer, *batch, config), steps, config.device)

    with precision(config):
        block(_WARM_UP_STEPS)
        steps = int(_most([max(_LEAST_STEPS, round(plan.block_s / block(_LEAST_STEPS)))])[0])
        block_step_s, block_compute_s = [], []
        for _ in range(plan.blocks):
            block_step_s.append(block(steps))
            if alone:
                block_compute_s.append(block(steps, alone))
    return ScaleRow(
        mode, world_size, config.batch_size, config.seq_len, config.dtype, config.model,
        plan.parallel if world_size > 1 else "none", "ok", _most(block_step_s), _most(block_compute_s),
        torch.cuda.max_memory_allocated() if is_cuda else None,
    )  # fmt: skip


def _most(values: Sequence[float]) -> tuple[float, ...]:
    """Place by place the largest of all ranks: the slowest time, or the number of steps that all have to do."""
    found = torch.tensor(values, dtype=torch.float64)
    if values:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(found.tolist())


# Steps whose losses are compared with those of one device.
REFERENCE_STEPS = 10


def train_rank(
    config: TrainConfig,
    *,
    parallel: str = "ddp",
    out: Path | None = None,
    hang_s: float = HANG_S,
    on_step: Callable[[StepRecord], None] | None = None,
    launcher: int | None = None,
) -> tuple[Group, Rank]:
    """Trains as one rank of those in the environment. config: its batch is this rank's part of the global one.

    out: a folder that gets `rank-<n>/` with the same files as a run of one process, and `rank.json`.
    hang_s: a step that takes longer leaves the stack of this rank in `stack.txt` there, or on stderr
    where no folder is named. launcher: see `Group`. Raises what `kit.train.train.train` raises, with `rank.json` written.
    """
    group = Group(config.device, parallel, launcher=launcher)
    folder = out / folder_name(group.record.rank) if out else None
    with _Watched(folder, hang_s) as watched:

        def step(record: StepRecord) -> None:
            watched.again()
            if record.step == 1:
                # A rank that is ended from outside has said where it was.
                _keep(folder, group.record)
            if on_step and group.is_first:
                on_step(record)

        try:
            found = train(config, out=folder, on_step=step, group=group)
            watched.again()
            if group.is_first:
                group.reference(config, min(REFERENCE_STEPS, config.steps))
        except (KitError, RuntimeError) as error:
            told = error.found if isinstance(error, KitError) else (str(error).splitlines() or [""])[0]
            group.record = dataclasses.replace(group.record, error=told)
            raise
        finally:
            _keep(folder, group.record)
    return group, Rank(group.record, found.run, found.steps, found.samples)


def _keep(folder: Path | None, record: RankRecord) -> None:
    if folder:
        (folder / "rank.json").write_text(dumps(record), encoding="utf-8", newline="\n")


class _Watched:
    """Leaves the stacks of this process behind when nothing has been said for a while; from a thread of C, so
    that code which holds Python's lock is shown as well."""

    def __init__(self, folder: Path | None, hang_s: float) -> None:
        self._folder, self._hang_s = folder, hang_s

    def __enter__(self) -> _Watched:
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / STACK).open("w", encoding="utf-8") if self._folder else sys.stderr
        # Imports, finding the others and the first weights take their time, on a busy machine above all.
        faulthandler.dump_traceback_later(max(self._hang_s, HANG_S), file=self._file)
        return self

    def again(self) -> None:
        faulthandler.dump_traceback_later(self._hang_s, file=self._file)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._folder:
            self._file.close()
            (self._folder / STACK).unlink(missing_ok=True)


def main(path: str) -> int:
    """A rank that was launched. Its records are the answer; a message goes to stderr with its number."""
    request = from_json(Request, loads(Path(path).read_bytes()))
    try:
        if request.task == "train":
            group, _ = train_rank(
                request.config,
                parallel=request.parallel,
                out=Path(request.out),
                hang_s=request.hang_s,
                launcher=request.launcher,
            )
        else:
            group = measure_rank(request)
        group.leave()
    except KitError as error:
        print(f"kit: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    # All is written. An interpreter that ends beside the threads of torch's Gloo aborts now and then ("terminate called
    # without an active exception", 2 of 14 pairs of ranks, torch 2.13), which would look like a rank that failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

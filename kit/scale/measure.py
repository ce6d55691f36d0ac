"""What one rank measures for a scaling sweep: blocks of the plain step, with and without exchanging gradients.

The clock is the host's, read after the device and all other ranks have finished; a block counts
as long as the slowest rank needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from pathlib import Path

from kit.records import dumps
from kit.scale.collectives import measure_all_reduce
from kit.scale.group import Group
from kit.scale.rank import Request, _Watched
from kit.scale.ranks import folder_name
from kit.scale.table import ScalePlan, ScaleRow
from kit.scale.topology import read_topology
from kit.train.config import TrainConfig

# Steps before anything counts: kernels are chosen, memory is taken, NCCL connects.
_WARM_UP_STEPS = 5
_LEAST_STEPS = 2


def measure_rank(request: Request) -> Group:
    """Measures every point of the plan on this number of ranks; rank 0 writes `scale.json` after each."""
    from kit.train.startup import keep_bytecode, require_device

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
        uuids = group.all_of(group.record.device_uuid)
        if group.is_first:
            topology = read_topology(uuids) if request.config.device == "cuda" else None
            found = {
                "device_name": _device_name(request.config),
                "rows": rows,
                "all_reduce": sums,
                "topology": topology,
            }
            (out / "scale.json").write_text(dumps(found), encoding="utf-8", newline="\n")
    return group


def _device_name(config: TrainConfig) -> str:
    import torch

    return torch.cuda.get_device_name() if config.device == "cuda" else "CPU"


def _point(group: Group, plan: ScalePlan, mode: str, config: TrainConfig) -> ScaleRow:
    import torch

    from kit.train.engines import random_batch
    from kit.train.loop import eager_step
    from kit.train.model import build_model, build_optimizer, precision

    world_size, is_cuda = group.record.world_size, config.device == "cuda"
    gc.collect()
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = build_model(config)[0].to(config.device)
    # Each rank its own batch, as in training.
    batch = random_batch(model, dataclasses.replace(config, seed=config.seed + group.record.rank))
    network = group.wrap(model) if world_size > 1 else model
    optimizer = build_optimizer(model, config)
    # FSDP cannot step without gathering the weights, so there is nothing to compare with.
    alone = getattr(network, "no_sync", None) if world_size > 1 else None

    def block(steps: int, context=contextlib.nullcontext) -> float:
        _all_ready(config.device)
        start = time.perf_counter()
        with context():
            for _ in range(steps):
                eager_step(network, optimizer, *batch, config)
            _synchronize(config.device)
        return (time.perf_counter() - start) / steps

    with precision(config):
        block(_WARM_UP_STEPS)
        steps = _agreed(max(_LEAST_STEPS, round(plan.block_s / block(_LEAST_STEPS))))
        block_step_s, block_compute_s = [], []
        for _ in range(plan.blocks):
            block_step_s.append(block(steps))
            if alone:
                block_compute_s.append(block(steps, alone))
    peak = torch.cuda.max_memory_allocated() if is_cuda else None
    return ScaleRow(
        mode,
        world_size,
        config.batch_size,
        config.seq_len,
        config.dtype,
        config.model,
        plan.parallel if world_size > 1 else "none",
        "ok",
        _slowest(block_step_s),
        _slowest(block_compute_s),
        peak,
    )


def _synchronize(device: str) -> None:
    from kit.train.loop import synchronize

    synchronize(device)


def _all_ready(device: str) -> None:
    """Waits until every rank and every device has come here. Over Gloo, which leaves the devices alone."""
    import torch
    import torch.distributed as dist

    _synchronize(device)
    dist.all_reduce(torch.zeros(1))


def _agreed(steps: int) -> int:
    """The largest of what the ranks would choose: all have to do the same number."""
    import torch
    import torch.distributed as dist

    chosen = torch.tensor([steps])
    dist.all_reduce(chosen, dist.ReduceOp.MAX)
    return int(chosen)


def _slowest(seconds: list[float]) -> tuple[float, ...]:
    """Of each block, the time of the rank that needed longest."""
    import torch
    import torch.distributed as dist

    times = torch.tensor(seconds, dtype=torch.float64)
    if seconds:
        dist.all_reduce(times, dist.ReduceOp.MAX)
    return tuple(times.tolist())

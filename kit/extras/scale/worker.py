"""What one rank does: it trains with the others, proves its own device, and writes down what it saw.

Started by torchrun, either through `kit train` or as `-m kit.extras.scale.worker REQUEST`, where REQUEST is the JSON
file that `kit.extras.scale.scale` wrote. It reads what torchrun (or any launcher that sets RANK, LOCAL_RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT) put into the environment, and starts nothing itself.
"""

import contextlib
import dataclasses
import datetime
import faulthandler
import hashlib
import itertools
import math
import os
import stat
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kit.errors import GpuNotUsable, KitError, TrainingFailed, UsageError
from kit.extras.scale.ranks import (
    HANG_S,
    STACK,
    AllReduce,
    Rank,
    RankRecord,
    ScalePlan,
    ScaleRow,
    folder_name,
)
from kit.process import keep_bytecode
from kit.records import dumps, from_json, loads
from kit.sweep.table import row_of
from kit.sweep.trial import Trial, timed
from kit.train import data
from kit.train.config import TrainConfig
from kit.train.engines import random_batch
from kit.train.loop import eager_step, synchronize
from kit.train.model import autocast, build_model, build_optimizer, precision, whole
from kit.train.steps import StepRecord
from kit.train.train import require_device, train
from kit.units import GiB, MiB

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Exchanges no longer than this; what takes longer hangs. The launcher's own watch comes first.
TIMEOUT_S = 600.0


class Group:
    """One rank, through torch.distributed: its place, its device, and what it does together with the others; NCCL
    between GPUs, Gloo between CPUs."""

    def __init__(self, device: str, parallel: str, environment: Mapping[str, str] = os.environ) -> None:
        """Raises UsageError where the environment does not say which rank this is."""
        told = {name: environment.get(name, "") for name in _VARIABLES}
        told["LOCAL_RANK"] = environment.get("LOCAL_RANK", told["RANK"])
        try:
            rank, world_size, local_rank = (int(told[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        except ValueError:
            rank = world_size = local_rank = -1
        if not (0 <= rank < world_size and local_rank >= 0 and told["MASTER_ADDR"] and told["MASTER_PORT"]):
            raise UsageError(
                f"the environment says {', '.join(f'{name}={value}' for name, value in told.items())}",
                expected="RANK below WORLD_SIZE, and where rank 0 listens",
                todo="start the ranks with torchrun",
            )
        self.record = RankRecord(rank, local_rank, int(environment.get("GROUP_RANK", 0)), world_size, device)
        self._parallel, self._address = parallel, (told["MASTER_ADDR"], told["MASTER_PORT"])
        parent = os.getppid()

        def end_with_torchrun() -> None:
            """When the parent is gone, so that no rank is left behind on a GPU."""
            while os.getppid() == parent:
                time.sleep(1.0)
            os._exit(1)

        threading.Thread(target=end_with_torchrun, name="kit-end-with-parent", daemon=True).start()

    def note(self, **changes: Any) -> None:
        """Adds to this rank's record."""
        self.record = dataclasses.replace(self.record, **changes)

    def start(self) -> None:
        """Takes the device of this local rank and joins the others. Raises GpuNotUsable where there is none for
        it, TrainingFailed where the ranks do not come together or two of them share a GPU."""
        record, is_cuda = self.record, self.record.device == "cuda"
        if is_cuda:
            visible = torch.cuda.device_count()
            # A scheduler may show each rank its own GPU only; then that one is number 0.
            index = 0 if visible == 1 and "SLURM_LOCALID" in os.environ else record.local_rank
            if index >= visible:
                raise GpuNotUsable(
                    f"rank {record.rank} is number {record.local_rank} on its node, which shows {visible} GPUs",
                    expected="a GPU for each rank",
                    todo=f"start at most {visible} ranks a node (--nproc-per-node {visible})",
                )
            torch.cuda.set_device(index)
            uuid = str(torch.cuda.get_device_properties(index).uuid)
            self.note(device_name=torch.cuda.get_device_name(index), device_uuid=uuid)
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
                timeout=datetime.timedelta(seconds=TIMEOUT_S),
                rank=record.rank,
                world_size=record.world_size,
            )
        except (RuntimeError, ValueError) as error:
            host, port = self._address
            if "eaddrinuse" in str(error).lower() or "address already in use" in str(error).lower():
                raise TrainingFailed(
                    f"port {port} on {host} is in use by another program",
                    expected="a free port, where rank 0 listens",
                    todo="name another with torchrun's --rdzv-endpoint or MASTER_PORT, or use --standalone",
                ) from error
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise TrainingFailed(
                f"rank {record.rank} did not find the others at {host}:{port}: {told}",
                expected=f"{record.world_size} ranks",
                todo="see whether all were started, and whether the port is open between the machines",
            ) from error
        self.note(backend="nccl" if is_cuda else "gloo")
        # Every rank learns every rank's device before NCCL, whose own message would name none.
        uuids = self.all_of(self.record.device_uuid) if is_cuda else []
        shared = [[rank for rank, other in enumerate(uuids) if other == uuid] for uuid in uuids]
        if sharing := [ranks for ranks in shared if len(ranks) > 1]:
            raise TrainingFailed(
                f"ranks {' and '.join(map(str, sharing[0]))} took the same GPU",
                expected="a GPU of its own for each rank",
                todo="see CUDA_VISIBLE_DEVICES and LOCAL_RANK of these ranks",
            )

    def all_of(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank. Objects go over Gloo; NCCL starts with the first tensor on a GPU, and
        cannot where two ranks share one."""
        found: list[Any] = [None] * self.record.world_size
        dist.all_gather_object(found, value)
        return found

    def share(self, config: TrainConfig, count: int) -> tuple[list, Any]:
        """This rank's rows of `count` global batches. Texts are packed into full rows, so that each rank's mean
        loss counts as many tokens as any other's, and the mean of them is that of the global batch."""
        size, ranks = config.batch_size, range(self.record.world_size)
        texts = data.load_texts(config.dataset)
        endless = data.batches(
            texts, data.load_tokenizer(), batch_size=size * len(ranks), seq_len=config.seq_len, seed=config.seed,
            is_packed=True,
        )  # fmt: skip
        self._parts = [
            [data.part_of(batch, slice(rank * size, (rank + 1) * size)) for rank in ranks]
            for batch in itertools.islice(endless, count)
        ]
        return [parts[self.record.rank] for parts in self._parts], texts

    def wrap(self, model):
        """The model under DDP, or sharded in place by FSDP2: each block, then the rest."""
        if self._parallel == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for block in model.transformer.h:
                fully_shard(block)
            return fully_shard(model)
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def trained(self, model) -> None:
        """Records what only this moment shows: the weights after the last step, where they are, and one sum."""
        digest, uuid = hashlib.sha256(), None
        for name, parameter in sorted(model.named_parameters()):
            digest.update(name.encode())
            digest.update(whole(parameter.detach()).cpu().numpy().tobytes())
            if parameter.device.type == "cuda":
                uuid = str(torch.cuda.get_device_properties(parameter.device).uuid)
        found, expected = check_sum(self.record.device)
        # A sum that is not finite is none, beside what it should be.
        found = found if math.isfinite(found) else None
        self.note(parameters_sha256=digest.hexdigest(), trained_uuid=uuid, sum_found=found, sum_expected=expected)

    def reference(self, config: TrainConfig, steps: int) -> None:
        """The same global batches on one device, in this rank alone, part by part; the others do not wait for it."""
        losses = []
        try:
            model = build_model(config)[0].to(config.device)
            optimizer = build_optimizer(model, config)
            with precision(config):
                for parts in self._parts[:steps]:
                    optimizer.zero_grad(set_to_none=True)
                    losses.append(0.0)
                    for part in parts:
                        batch = (part.input_ids.to(config.device), part.labels.to(config.device))
                        with autocast(config):
                            loss = model(input_ids=batch[0], labels=batch[1]).loss / len(parts)
                        loss.backward()
                        losses[-1] += float(loss.detach())
                    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                    optimizer.step()
            self.note(reference_losses=tuple(losses))
        except torch.cuda.OutOfMemoryError:
            self.note(reference_skipped="the model does not fit into one GPU")

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


# How fast the ranks sum a tensor, and whether the sum is right. Runs inside an initialised process group.
#
# Every rank calls the same function and takes the same decisions, because it decides on times and on
# free memory that all ranks agreed on: a rank that went its own way would leave the others waiting.

WARM_UP = 2
MIN_ITERATIONS, MAX_ITERATIONS = 3, 25
# All sizes together; one whose least number of iterations would go beyond it is left out.
BUDGET_S = {"cuda": 4.0, "cpu": 0.5}
# The gradients of GPT-2 124M in float32: what data-parallel training sums in each step.
_GRADIENT_BYTES = 4 * 124_439_808
SIZES_BYTES = {
    "cuda": (MiB, 4 * MiB, 16 * MiB, 64 * MiB, 256 * MiB, _GRADIENT_BYTES, GiB),
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
    sizes, left_s, rows = SIZES_BYTES[device], BUDGET_S[device], []
    for place, size in enumerate(sizes):
        expected_s = statistics.median(rows[-1].times_s) * size / rows[-1].size_bytes if rows else 0.0
        if expected_s * (WARM_UP + MIN_ITERATIONS) > left_s:
            break
        times = _sums(device, size, left_s / (len(sizes) - place))
        rows += [AllReduce(size, dist.get_world_size(), "float32", times[WARM_UP:])] if times else []
        left_s -= sum(times)
    if device == "cuda":
        # What a training run measures after this is its own memory.
        torch.cuda.empty_cache()
    return tuple(rows)


def _sums(device: str, size_bytes: int, share_s: float) -> tuple[float, ...]:
    """The times of warm-up and iterations, as the slowest rank saw each; as many as fit into `share_s`. Empty
    where a rank has not the memory."""
    try:
        tensor = torch.empty(size_bytes // _FLOAT_BYTES, device=device)
    except torch.OutOfMemoryError:
        tensor = None
    if _most([float(tensor is None)])[0]:
        return ()
    token = torch.zeros(1, device=device)

    def several(count: int) -> tuple[float, ...]:
        times = []
        for _ in range(count):
            # Ones cannot overflow, however often they are summed.
            tensor.fill_(1.0)
            # A barrier that any backend has: a sum of one number, and the wait for it.
            dist.all_reduce(token)
            synchronize(device)
            times.append(timed(partial(dist.all_reduce, tensor), 1, device))
        return _most(times)

    cold = several(WARM_UP)
    fitting = int((share_s - sum(cold)) / cold[-1])
    return (*cold, *several(max(MIN_ITERATIONS, min(MAX_ITERATIONS, fitting))))


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


def _most(values: Sequence[float]) -> tuple[float, ...]:
    """Place by place the largest of all ranks: the slowest time, or the number of steps that all have to do. Over
    Gloo, which leaves the devices alone."""
    found = torch.tensor(values, dtype=torch.float64)
    if values:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(found.tolist())


# What one rank measures for a scaling sweep: blocks of the plain step, with and without exchanging gradients.
#
# The clock is the host's, read after the device and all other ranks have finished; a block counts
# as long as the slowest rank needed.

# Steps before anything counts: kernels are chosen, memory is taken, NCCL connects.
_WARM_UP_STEPS = 5
_LEAST_STEPS = 2
# A rehearsal shows that it works, not how fast.
_REHEARSED_BLOCK_S = 0.05


def measure_rank(plan: ScalePlan, out: Path, hang_s: float) -> Group:
    """Measures every point of the plan on this number of ranks; rank 0 writes `scale.json` at the end."""
    keep_bytecode()
    device = plan.config.device
    group = Group(device, plan.parallel)
    with _watched(out / folder_name(group.record.rank), hang_s) as again:
        require_device(device)
        group.start()
        rows = []
        for mode, config in plan.points(group.record.world_size):
            again()
            rows.append(_point(group, plan, mode, config))
        again()
        sums = measure_all_reduce(device) if group.record.world_size > 1 else ()
        if group.record.rank == 0:
            found = {"device_name": group.record.device_name or "CPU", "rows": rows, "all_reduce": sums}
            (out / "scale.json").write_text(dumps(found), encoding="utf-8", newline="\n")
    return group


def _point(group: Group, plan: ScalePlan, mode: str, config: TrainConfig) -> ScaleRow:
    world_size, trial = group.record.world_size, Trial(config)
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
            return timed(partial(eager_step, network, optimizer, *batch, config), steps, config.device)

    block_s = plan.block_s if config.device == "cuda" else min(plan.block_s, _REHEARSED_BLOCK_S)
    with precision(config):
        block(_WARM_UP_STEPS)
        steps = int(_most([max(_LEAST_STEPS, round(block_s / block(_LEAST_STEPS)))])[0])
        pairs = [(block(steps), block(steps, alone) if alone else None) for _ in range(plan.blocks)]
    return row_of(
        config, "ok", ScaleRow, mode=mode, world_size=world_size, steps=steps * plan.blocks,
        parallel=plan.parallel if world_size > 1 else "none", block_step_s=_most([step_s for step_s, _ in pairs]),
        block_compute_s=_most([compute_s for _, compute_s in pairs if alone]),
        peak_memory_bytes=torch.cuda.max_memory_allocated() if config.device == "cuda" else None,
    )  # fmt: skip


# Steps whose losses are compared with those of one device.
REFERENCE_STEPS = 10


def train_rank(
    config: TrainConfig,
    *,
    parallel: str = "ddp",
    out: Path | None = None,
    hang_s: float = HANG_S,
    on_step: Callable[[StepRecord], None] | None = None,
) -> tuple[Group, Rank]:
    """Trains as one rank of those in the environment. config: its batch is this rank's part of the global one.

    out: a folder that gets `rank-<n>/` with the same files as a run of one process, and `rank.json`.
    hang_s: a step that takes longer leaves the stack of this rank in `stack.txt` there, or on stderr
    where no folder is named. Raises what `kit.train.train.train` raises, with `rank.json` written.
    """
    group = Group(config.device, parallel)
    folder = out / folder_name(group.record.rank) if out else None

    def keep() -> None:
        if folder:
            (folder / "rank.json").write_text(dumps(group.record), encoding="utf-8", newline="\n")

    with _watched(folder, hang_s) as again:

        def step(record: StepRecord) -> None:
            again()
            if record.step == 1:
                # A rank that is ended from outside has said where it was.
                keep()
            if on_step and group.record.rank == 0:
                on_step(record)

        try:
            found = train(config, out=folder, on_step=step, group=group)
            again()
            if group.record.rank == 0:
                group.reference(config, min(REFERENCE_STEPS, config.steps))
        except (KitError, RuntimeError) as error:
            group.note(error=error.found if isinstance(error, KitError) else (str(error).splitlines() or [""])[0])
            raise
        finally:
            keep()
    return group, Rank(group.record, found.run, found.steps, found.samples)


@contextlib.contextmanager
def _watched(folder: Path | None, hang_s: float) -> Iterator[Callable[[], None]]:
    """Leaves the stacks of this process behind when nothing has been said for a while; from a thread of C, so
    that code which holds Python's lock is shown as well. Gives what says that it goes on."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    file = (folder / STACK).open("w", encoding="utf-8") if folder else sys.stderr
    # Imports, finding the others and the first weights take their time, on a busy machine above all.
    faulthandler.dump_traceback_later(max(hang_s, HANG_S), file=file)
    try:
        yield partial(faulthandler.dump_traceback_later, hang_s, file=file)
    finally:
        faulthandler.cancel_dump_traceback_later()
        if folder:
            file.close()
            (folder / STACK).unlink(missing_ok=True)


def end_with_the_kit() -> None:
    """Waits for the end of the pipe that the kit holds open while it runs, then ends this process. Where torchrun passes
    no pipe on, there is nothing to wait for."""
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        sys.stdin.buffer.read()
        os._exit(1)


def main(path: str) -> int:
    """A rank that was launched. Its records are the answer; a message goes to stderr with its number."""
    threading.Thread(target=end_with_the_kit, name="kit-end-with-the-kit", daemon=True).start()
    asked, out = loads(Path(path).read_bytes()), Path(path).parent
    plan = from_json(ScalePlan, asked["plan"])
    try:
        if asked["is_training"]:
            group, _ = train_rank(plan.config, parallel=plan.parallel, out=out, hang_s=asked["hang_s"])
        else:
            group = measure_rank(plan, out, asked["hang_s"])
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

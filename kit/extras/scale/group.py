"""This process as one rank of several, through torch.distributed: NCCL between GPUs, Gloo between CPUs.

It reads what torchrun (or any launcher that sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT) put into the environment, and starts nothing itself.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from kit.errors import GpuNotUsable, TrainingFailed, UsageError
from kit.extras.scale.ranks import RankRecord
from kit.train.config import TrainConfig
from kit.train.model import whole

# Which of several ranks a process is, as the launcher's environment tells it. Standard library alone.

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one rank of several."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def place(environment: Mapping[str, str]) -> RankRecord:
    """Rank, local rank, node and world size as the environment tells them. Raises UsageError where it is incomplete."""
    missing = [name for name in _VARIABLES if not environment.get(name)]
    try:
        rank, world_size = (int(environment.get(name, "")) for name in ("RANK", "WORLD_SIZE"))
        local_rank = int(environment.get("LOCAL_RANK", rank))
        node = int(environment.get("GROUP_RANK", 0))
        is_sound = 0 <= rank < world_size and local_rank >= 0
    except ValueError:
        is_sound = False
    if missing or not is_sound:
        told = ", ".join(f"{name}={environment.get(name)}" for name in (*_VARIABLES, "LOCAL_RANK"))
        raise UsageError(
            f"the environment says {told}",
            expected="RANK below WORLD_SIZE, and where rank 0 listens",
            todo="start the ranks with torchrun",
        )
    return RankRecord(rank, local_rank, node, world_size, device="")


# Exchanges no longer than this; what takes longer hangs. The launcher's own watch comes first.
TIMEOUT_S = 600.0


class Group:
    """One rank: its place, its device, and what it does together with the others."""

    def __init__(
        self, device: str, parallel: str, environment: Mapping[str, str] = os.environ, *, launcher: int | None = None
    ) -> None:
        """launcher: process number of who started torchrun, where that was the kit; this rank ends with it."""
        self.record = dataclasses.replace(place(environment), device=device)
        self._parallel, self._address = parallel, (environment["MASTER_ADDR"], environment["MASTER_PORT"])
        _end_with(launcher)

    @property
    def is_first(self) -> bool:
        return self.record.rank == 0

    # --- starting -------------------------------------------------------------------

    def start(self) -> None:
        """Takes the device of this local rank and joins the others. Raises GpuNotUsable where there is none for
        it, TrainingFailed where the ranks do not come together or two of them share a GPU."""
        import torch
        import torch.distributed as dist

        is_cuda = self.record.device == "cuda"
        if is_cuda:
            self._take_device(torch)
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
                timeout=datetime.timedelta(seconds=TIMEOUT_S),
                rank=self.record.rank,
                world_size=self.record.world_size,
            )
        except (RuntimeError, ValueError) as error:
            raise self._not_together(error) from error
        self.record = dataclasses.replace(self.record, backend="nccl" if is_cuda else "gloo")
        self._refuse_shared()

    def _take_device(self, torch) -> None:
        visible, local_rank = torch.cuda.device_count(), self.record.local_rank
        # A scheduler may show each rank its own GPU only; then that one is number 0.
        index = 0 if visible == 1 and "SLURM_LOCALID" in os.environ else local_rank
        if index >= visible:
            raise GpuNotUsable(
                f"rank {self.record.rank} is number {local_rank} on its node, which shows {visible} GPUs",
                expected="a GPU for each rank",
                todo=f"start at most {visible} ranks a node (--nproc-per-node {visible})",
            )
        torch.cuda.set_device(index)
        name, uuid = torch.cuda.get_device_name(index), str(torch.cuda.get_device_properties(index).uuid)
        self.record = dataclasses.replace(self.record, device_name=name, device_uuid=uuid)

    def _not_together(self, error: Exception) -> TrainingFailed:
        host, port = self._address
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            return TrainingFailed(
                f"port {port} on {host} is in use by another program",
                expected="a free port, where rank 0 listens",
                todo="name another with torchrun's --rdzv-endpoint or MASTER_PORT, or use --standalone",
            )
        return TrainingFailed(
            f"rank {self.record.rank} did not find the others at {host}:{port}: {first_line}",
            expected=f"{self.record.world_size} ranks",
            todo="see whether all were started, and whether the port is open between the machines",
        )

    def _refuse_shared(self) -> None:
        """Every rank learns every rank's device before NCCL, whose own message would name none."""
        if self.record.device != "cuda":
            return
        by_uuid: dict[str, list[int]] = {}
        for rank, uuid in enumerate(self.all_of(self.record.device_uuid)):
            by_uuid.setdefault(uuid, []).append(rank)
        shared = [ranks for ranks in by_uuid.values() if len(ranks) > 1]
        if shared:
            names = " and ".join(map(str, shared[0]))
            raise TrainingFailed(
                f"ranks {names} took the same GPU",
                expected="a GPU of its own for each rank",
                todo="see CUDA_VISIBLE_DEVICES and LOCAL_RANK of these ranks",
            )

    # --- training -------------------------------------------------------------------

    def share(self, config: TrainConfig, count: int) -> tuple[list, Any]:
        """This rank's rows of `count` global batches. Texts are packed into full rows, so that each rank's mean
        loss counts as many tokens as any other's, and the mean of them is that of the global batch."""
        texts, batches = self._global_batches(config)
        return [self._part(batch, config, self.record.rank) for batch in itertools.islice(batches, count)], texts

    def _global_batches(self, config: TrainConfig) -> tuple[Any, Iterator]:
        from kit.train import data

        texts = data.load_texts(config.dataset)
        whole_size = config.batch_size * self.record.world_size
        tokenizer = data.load_tokenizer()
        return texts, data.batches(
            texts, tokenizer, batch_size=whole_size, seq_len=config.seq_len, seed=config.seed, is_packed=True
        )

    @staticmethod
    def _part(batch, config: TrainConfig, rank: int):
        from kit.train.data import part_of

        return part_of(batch, slice(rank * config.batch_size, (rank + 1) * config.batch_size))

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
        import torch

        from kit.extras.scale.worker import check_sum

        digest, uuid = hashlib.sha256(), None
        for name, parameter in sorted(model.named_parameters()):
            digest.update(name.encode())
            digest.update(whole(parameter.detach()).cpu().numpy().tobytes())
            if parameter.device.type == "cuda":
                uuid = str(torch.cuda.get_device_properties(parameter.device).uuid)
        found, expected = check_sum(self.record.device)
        # A sum that is not finite is none, beside what it should be.
        found = found if math.isfinite(found) else None
        self.record = dataclasses.replace(
            self.record, parameters_sha256=digest.hexdigest(), trained_uuid=uuid, sum_found=found, sum_expected=expected
        )

    def reference(self, config: TrainConfig, steps: int) -> None:
        """The same global batches on one device, in this rank alone, part by part; the others do not wait for it."""
        import torch

        from kit.train.model import autocast, build_model, build_optimizer, precision

        _, batches = self._global_batches(config)
        losses: list[float] = []
        try:
            model = build_model(config)[0].to(config.device)
            optimizer = build_optimizer(model, config)
            with precision(config):
                for batch in itertools.islice(batches, steps):
                    optimizer.zero_grad(set_to_none=True)
                    total = 0.0
                    for rank in range(self.record.world_size):
                        part = self._part(batch, config, rank)
                        with autocast(config):
                            loss = (
                                model(
                                    input_ids=part.input_ids.to(config.device), labels=part.labels.to(config.device)
                                ).loss
                                / self.record.world_size
                            )
                        loss.backward()
                        total += float(loss.detach())
                    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                    optimizer.step()
                    losses.append(total)
        except torch.cuda.OutOfMemoryError:
            skipped = "the model does not fit into one GPU"
            self.record = dataclasses.replace(self.record, reference_skipped=skipped)
            return
        self.record = dataclasses.replace(self.record, reference_losses=tuple(losses))

    # --- together -------------------------------------------------------------------

    def all_of(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank. Objects go over Gloo; NCCL starts with the first tensor on a GPU, and
        cannot where two ranks share one."""
        import torch.distributed as dist

        found: list[Any] = [None] * self.record.world_size
        dist.all_gather_object(found, value)
        return found

    # --- ending ---------------------------------------------------------------------

    def leave(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def _end_with(launcher: int | None) -> None:
    """Ends this process when its parent or the launcher is gone, so that no rank is left behind on a GPU."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and not _is_gone(launcher):
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="kit-end-with-parent", daemon=True).start()


def _is_gone(number: int | None) -> bool:
    """Whether there is no such process any more. Windows cannot be asked without ending it."""
    if number is None or os.name != "posix":
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False

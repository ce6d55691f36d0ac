"""Which of several ranks a process is, as the launcher's environment tells it. Standard library alone."""

from __future__ import annotations

from collections.abc import Mapping

from kit.errors import UsageError
from kit.scale.ranks import RankRecord

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

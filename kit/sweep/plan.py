"""Which points a sweep measures, and in which order."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence

from kit.errors import UsageError
from kit.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A grid of shapes, and how long each is measured.

    blocks: synchronised blocks a point, the unit of the median and its spread. block_s:
    least seconds of a block. seed: of the order, so that a drift does not follow the grid.
    """

    batch_sizes: tuple[int, ...] = (1, 4, 16)
    seq_lens: tuple[int, ...] = (64, 256)
    dtypes: tuple[str, ...] = ("float32",)
    engines: tuple[str, ...] = ("eager",)
    model: str = "gpt2"
    device: str = "cuda"
    blocks: int = 5
    block_s: float = 0.2
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "seq_lens", "dtypes", "engines"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UsageError(f"{name}={list(values)}", expected=f"at least one of {name}, each once",
                                 todo="correct the parameter")
        if self.blocks < 1 or not self.block_s > 0:
            raise UsageError(f"blocks={self.blocks}, block_s={self.block_s}", expected="both positive",
                             todo="correct the parameter")
        for _ in self.configs():
            pass

    def configs(self) -> tuple[TrainConfig, ...]:
        """One checked TrainConfig a point, in the shuffled order. Raises UsageError for an impossible point."""
        grid = itertools.product(self.batch_sizes, self.seq_lens, self.dtypes, self.engines)
        points = [
            TrainConfig(model=self.model, device=self.device, dtype=dtype, batch_size=batch_size, seq_len=seq_len,
                        seed=self.seed, engine=engine)
            for batch_size, seq_len, dtype, engine in grid
        ]
        return tuple(shuffled(points, self.seed))


def shuffled(items: Sequence, seed: int) -> list:
    """Fisher and Yates over `random()`, whose sequence Python keeps from version to version."""
    items, draw = list(items), random.Random(seed).random
    for last in range(len(items) - 1, 0, -1):
        other = int(draw() * (last + 1))
        items[last], items[other] = items[other], items[last]
    return items

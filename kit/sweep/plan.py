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
    """A grid of shapes with some points beside it, and how long each is measured.

    more_points: (batch size, tokens a sample, precision) each, for all engines. blocks:
    synchronised blocks a point, the unit of the median and its spread. block_s: least seconds
    of a block. seed: of the order, so that a drift does not follow the grid.
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
    more_points: tuple[tuple[int, int, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "seq_lens", "dtypes", "engines"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UsageError(
                    f"{name}={list(values)}",
                    expected=f"at least one of {name}, each once",
                    todo="correct the parameter",
                )
        if self.blocks < 1 or not self.block_s > 0:
            raise UsageError(
                f"blocks={self.blocks}, block_s={self.block_s}", expected="both positive", todo="correct the parameter"
            )
        shapes = self._shapes()
        if len(set(shapes)) != len(shapes):
            twice = next(shape for shape in shapes if shapes.count(shape) > 1)
            raise UsageError(
                f"more_points: {list(twice)} is measured already",
                expected="points that are not in the grid, each once",
                todo="leave it out",
            )
        self.configs()

    def _shapes(self) -> list[tuple[int, int, str]]:
        for point in self.more_points:
            if not isinstance(point, (list, tuple)) or [type(value) for value in point] != [int, int, str]:
                raise UsageError(
                    f"more_points: {point!r}",
                    todo="correct the parameter",
                    expected="[batch size, tokens a sample, precision], such as [4, 64, float32]",
                )
        return [*itertools.product(self.batch_sizes, self.seq_lens, self.dtypes), *map(tuple, self.more_points)]

    def configs(self) -> tuple[TrainConfig, ...]:
        """One checked TrainConfig a point, in the shuffled order. Raises UsageError for an impossible point."""
        points = [
            TrainConfig(
                model=self.model,
                device=self.device,
                dtype=dtype,
                batch_size=batch_size,
                seq_len=seq_len,
                seed=self.seed,
                engine=engine,
            )
            for (batch_size, seq_len, dtype), engine in itertools.product(self._shapes(), self.engines)
        ]
        return tuple(shuffled(points, self.seed))

    def smallest(self) -> tuple[TrainConfig, ...]:
        """One config for each engine and precision of the plan, all of its smallest shape."""
        shapes = self._shapes()
        shape = min((pair[:2] for pair in shapes), key=lambda pair: (pair[0] * pair[1], pair))
        kinds = dict.fromkeys((dtype, engine) for _, _, dtype in shapes for engine in self.engines)
        return tuple(
            TrainConfig(
                model=self.model,
                device=self.device,
                dtype=dtype,
                batch_size=shape[0],
                seq_len=shape[1],
                seed=self.seed,
                engine=engine,
            )
            for dtype, engine in kinds
        )


def shuffled(items: Sequence, seed: int) -> list:
    """Fisher and Yates over `random()`, whose sequence Python keeps from version to version."""
    items, draw = list(items), random.Random(seed).random
    for last in range(len(items) - 1, 0, -1):
        other = int(draw() * (last + 1))
        items[last], items[other] = items[other], items[last]
    return items

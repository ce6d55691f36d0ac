"""The dice of the generator: choices for one (seed, stream), drawn with `random()` alone, whose sequence Python keeps."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from kit.units import shuffled


class Dice:
    def __init__(self, seed: int, stream: int = 0) -> None:
        self._random = random.Random(seed * 1_000_003 + stream).random

    def below(self, n: int) -> int:
        return int(self._random() * n)

    def shuffled(self, items: Iterable[Any]) -> list[Any]:
        return shuffled(items, self._random)

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.below(len(items))]

    def some(self, items: Iterable[Any], n: int) -> list[Any]:
        return self.shuffled(items)[:n]

"""The dice of the generator: more ways to choose than training needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kit.train import data


class Dice(data.Dice):
    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.below(len(items))]

    def some(self, items: Iterable[Any], n: int) -> list[Any]:
        return self.shuffled(items)[:n]

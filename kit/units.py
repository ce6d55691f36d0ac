"""Text for quantities. Everything is stored in SI units and bytes; only this module makes words of it."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

GiB = 1024**3
MiB = 1024**2
UNKNOWN = "unknown"
_PREFIXES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def quantity(value: float | None, unit: str) -> str:
    """`value` with three significant digits and an SI prefix: 50.8e12 FLOP/s -> '50.8 TFLOP/s'."""
    if value is None:
        return UNKNOWN
    prefix, scale = next((found for found in _PREFIXES if abs(value) >= found[1]), ("", 1.0))
    return f"{number(value / scale)} {prefix}{unit}"


def number(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits, without an exponent."""
    if value is None:
        return UNKNOWN
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def seconds(value: float | None, digits: int = 3) -> str:
    """'12.4 ms', '1.74 s', '2 min 05 s'."""
    if value is None:
        return UNKNOWN
    if value >= 120:
        return f"{int(value // 60)} min {int(value % 60):02d} s"
    if abs(value) >= 1:
        return f"{number(value, digits)} s"
    if abs(value) >= 1e-3 or value == 0:
        return f"{number(value * 1e3, digits)} ms"
    return f"{number(value * 1e6, digits)} µs"


def memory(value_bytes: int | None) -> str:
    """GiB from 1 GiB on, else MiB (1024-based, and named so)."""
    if value_bytes is None:
        return UNKNOWN
    unit, size = ("GiB", GiB) if value_bytes >= GiB else ("MiB", MiB)
    return f"{number(value_bytes / size)} {unit}"


def percent(share: float | None, digits: int = 2) -> str:
    return UNKNOWN if share is None else f"{number(100 * share, digits)} %"


# Versions and compute capabilities: the first two numbers decide.


def pair(text: str | None) -> tuple[int, int] | None:
    """'12.8', '2.13.0+cu130' -> (12, 8), (2, 13): the first two numbers of a version; None where it has none."""
    match = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(match[1]), int(match[2])) if match else None


def dotted(version: tuple[int, int] | None) -> str:
    """(12, 8) -> '12.8'."""
    return f"{version[0]}.{version[1]}" if version else UNKNOWN


def cuda_pair(number: int) -> tuple[int, int]:
    """CUDA's own spelling of a version, 1000 * major + 10 * minor (cuda.h): 12080 -> (12, 8)."""
    return number // 1000, number % 1000 // 10


# The few statistics the kit reports: medians with their spread, never a mean alone.


@dataclasses.dataclass(frozen=True)
class Spread:
    """n values with their median and quartiles (inclusive method), in the values' unit."""

    n: int
    median: float
    q1: float
    q3: float

    @property
    def iqr(self) -> float:
        return self.q3 - self.q1


def spread(values: Sequence[float]) -> Spread | None:
    """None where there is nothing to describe."""
    # It loads a dozen modules, and most commands describe nothing.
    import statistics

    if not values:
        return None
    ordered = sorted(values)
    q1, _, q3 = statistics.quantiles(ordered if len(ordered) > 1 else 2 * ordered, n=4, method="inclusive")
    return Spread(len(ordered), statistics.median(ordered), q1, q3)


def shuffled(items: Iterable[Any], draw: Callable[[], float]) -> list[Any]:
    """By Fisher and Yates. draw: a `random()`, whose sequence Python keeps from version to version."""
    deck = list(items)
    for last in range(len(deck) - 1, 0, -1):
        other = int(draw() * (last + 1))
        deck[last], deck[other] = deck[other], deck[last]
    return deck

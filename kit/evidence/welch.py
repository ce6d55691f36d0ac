"""Welch's interval and Holm's correction with the standard library, each after its named source."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """(mean of b - mean of a, half of its 95 % interval, two-sided p) for unequal variances.

    Degrees of freedom after Welch and Satterthwaite: Welch, Biometrika 34 (1947) 28.
    """
    shares = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    middle, total = statistics.fmean(b) - statistics.fmean(a), sum(shares)
    if total == 0:
        return middle, 0.0, 1.0 if middle == 0 else 0.0
    freedom = total**2 / (shares[0] ** 2 / (len(a) - 1) + shares[1] ** 2 / (len(b) - 1))
    error = math.sqrt(total)
    p = 2 * (1 - t_cdf(abs(middle) / error, freedom))
    return middle, t_quantile((1 + CONFIDENCE) / 2, freedom) * error, p


def t_cdf(t: float, freedom: float) -> float:
    """Student's distribution function by the incomplete beta function: Abramowitz and Stegun 26.7.1."""
    tail = 0.5 * _beta(freedom / (freedom + t * t), freedom / 2, 0.5)
    return 1 - tail if t >= 0 else tail


def t_quantile(p: float, freedom: float) -> float:
    """The t with t_cdf(t) = p for p >= 0.5, by bisection to 1e-10."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < p:
        high *= 2
    while high - low > 1e-10 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function: continued fraction DLMF 8.17.22, symmetry 8.17.4."""
    if x <= 0 or x >= 1:
        return min(1.0, max(0.0, x))
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    # Evaluated from the far end; below the symmetry point sqrt(max(a, b)) terms are enough (DLMF 8.17(v)).
    fraction = 1.0
    for m in range(60, 0, -1):
        k = m // 2
        if m % 2:
            term = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1))
        else:
            term = k * (b - k) * x / ((a + 2 * k - 1) * (a + 2 * k))
        fraction = 1 + term / fraction
    return front / fraction


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction, in the given order: Scand. J. Statist. 6 (1979) 65."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    made, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        made[index] = largest
    return made

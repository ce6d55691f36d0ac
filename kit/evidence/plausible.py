"""Where told evidence differs from derived evidence, and numbers that cannot be true."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from typing import Any

from kit.evidence.model import Evidence

RELATIVE_TOLERANCE = 1e-9
# A datasheet's peak is at the boost clock; cards that clock higher exceed it (an RTX 5090 reaches 224 of 209.5 TFLOP/s
# in bfloat16, main-horse.github.io/posts/5090-mm-perf).
PEAK_TOLERANCE = 1.15


def differences(told: Any, derived_again: Any, where: str = "") -> Iterator[str]:
    """Places where two JSON values differ; numbers may differ by rounding."""
    if isinstance(told, dict) and isinstance(derived_again, dict):
        for key in sorted({*told, *derived_again}):
            yield from differences(told.get(key), derived_again.get(key), f"{where}.{key}" if where else key)
    elif isinstance(told, list) and isinstance(derived_again, list) and len(told) == len(derived_again):
        for index, (one, other) in enumerate(zip(told, derived_again, strict=True)):
            name = one.get("id") or one.get("name") if isinstance(one, dict) else None
            yield from differences(one, other, f"{where}[{name or index}]")
    elif _is_number(told) and _is_number(derived_again):
        if not math.isclose(told, derived_again, rel_tol=RELATIVE_TOLERANCE):
            yield f"{where}: {told}, raw/ gives {derived_again}"
    elif told != derived_again or type(told) is not type(derived_again):
        yield f"{where}: {str(told)[:60]!r}, raw/ gives {str(derived_again)[:60]!r}"


def implausible(evidence: Evidence) -> Iterator[str]:
    """Numbers by name: nothing negative, no share over 1, no rate over the peak, rates that agree."""
    value = {number.name: number.value for number in evidence.numbers if number.value is not None}
    for number in evidence.numbers:
        if number.value is None:
            if not number.reason:
                yield f"{number.name} is unknown without a reason"
            continue
        if not number.name.endswith("_loss") and number.value < 0:
            yield f"{number.name} is negative"
        if re.search(r"(^|_)(mfu|share)(_|$)", number.name) and number.value > 1:
            yield f"{number.name} is {number.value:.3g}, over 1"
        if number.low is not None and number.high is not None and number.low > number.high:
            yield f"{number.name}: its spread is upside down"
        dtype = re.fullmatch(r"(?:matmul|model)_(\w+)_flop_per_s", number.name)
        peak = value.get(f"peak_{dtype[1]}_flop_per_s") if dtype else None
        if peak is not None and number.value > PEAK_TOLERANCE * peak:
            yield f"{number.name} is {number.value:.4g}, the card's peak is {peak:.4g}"
    samples, first = value.get("samples"), value.get("smoke_samples_per_s")
    begin, end = utc(evidence.started_utc), utc(evidence.ended_utc)
    if samples and first and begin and end and samples / first > (end - begin).total_seconds() + 1:
        yield f"{samples} samples at {first:.3g} samples/s take longer than the run lasted"


def utc(told: str) -> datetime.datetime | None:
    try:
        moment = datetime.datetime.fromisoformat(told)
    except ValueError:
        return None
    return moment if moment.utcoffset() == datetime.timedelta(0) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

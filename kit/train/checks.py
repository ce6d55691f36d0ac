"""How the judges of a training run say what they found; and which readings of the driver count.

A check compares a measured value with a stated limit. Missing evidence is INCONCLUSIVE and
names the command that would settle it; evidence that contradicts the claim is FAIL and names
what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kit.records import Check, Outcome
from kit.train.config import TrainConfig
from kit.train.metrics import StepRecord, TelemetrySample

# Fewer readings than this during the steps say nothing about them.
MIN_WINDOW_SAMPLES = 5
# The longest stretch of the steps without a reading: this share of it, or half a second if that is
# more. A sampling thread that died leaves a longer one.
MAX_GAP_SHARE, MAX_GAP_S = 0.3, 0.5
AGAIN = "python -m kit train"
LONGER = "python -m kit train --steps 100"


def check(
    id: str,
    is_good: bool | None,
    found: str,
    expected: str,
    *,
    todo: str = "",
    settle: str = AGAIN,
    values: Mapping[str, Any] | None = None,
    required: bool = True,
) -> Check:
    """is_good: None where the evidence is missing or too weak; then `settle`, a command, is what to do."""
    outcome = {True: Outcome.PASS, False: Outcome.FAIL, None: Outcome.INCONCLUSIVE}[is_good]
    then = {True: "", False: todo, None: settle}[is_good]
    return Check(id, outcome, found, expected, then, values or {}, required)


def gpu_check(config: TrainConfig, *args: Any, **more: Any) -> Check:
    """A check that makes a claim about a GPU. A rehearsal makes none, so nothing is missing there; what
    contradicts the run is FAIL on any device."""
    made = check(*args, **more)
    if config.device == "cuda" or made.outcome is Outcome.FAIL:
        return made
    return Check(made.id, Outcome.REHEARSAL, made.found, made.expected, "", made.values, made.required)


def in_window(steps: Sequence[StepRecord], samples: Sequence[TelemetrySample]) -> list[TelemetrySample]:
    """The samples taken between the start of the first and the end of the last step."""
    if not steps:
        return []
    end = steps[-1].started_s + steps[-1].step_time_s
    return [sample for sample in samples if steps[0].started_s <= sample.at_s <= end]


def uncovered(steps: Sequence[StepRecord], window: Sequence[TelemetrySample]) -> str:
    """Why these readings do not cover the steps; empty where they do."""
    if not steps:
        return "no steps"
    begin, end = steps[0].started_s, steps[-1].started_s + steps[-1].step_time_s
    if len(window) < MIN_WINDOW_SAMPLES:
        return f"{len(window)} readings during the steps, {MIN_WINDOW_SAMPLES} needed"
    times = [begin, *(sample.at_s for sample in window), end]
    gap = max(later - earlier for earlier, later in zip(times, times[1:]))
    if gap > max(MAX_GAP_SHARE * (end - begin), MAX_GAP_S):
        return f"no reading for {gap:.1f} s of {end - begin:.1f} s"
    return ""

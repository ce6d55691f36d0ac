"""What the driver saw of the device while the steps ran: its memory, its work, its errors.

Utilisation is never a witness: a spinning kernel shows 100 %. A reading that a card or a
platform does not give is 'not available here' and never red by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from kit.records import Check
from kit.train.checks import AGAIN, LONGER, MIN_WINDOW_SAMPLES, gpu_check, in_window, uncovered
from kit.train.metrics import StepRecord, Telemetry, TelemetrySample, TrainingRun
from kit.units import memory, percent

# Least bytes of training state: float32 weights, gradients and AdamW's two moments.
STATE_BYTES_PER_PARAMETER = 16
# The driver has to see this share of what must be there: torch and the driver count differently.
MEMORY_SHARE = 0.5
# Power or clock above the idle reading by this factor is work.
ABOVE_IDLE = 1.05


def driver_view(run: TrainingRun, steps: Sequence[StepRecord], samples: Sequence[TelemetrySample]) -> Check:
    """Memory on the card and work above idle, seen by the driver while the steps ran."""
    telemetry, config = run.telemetry, run.config
    expected = (
        f"at least {MIN_WINDOW_SAMPLES} readings that cover the steps, bound to the device by UUID, that "
        f"show at least {percent(MEMORY_SHARE)} of the memory that torch or the training state needs, and "
        "power or clock above idle"
    )
    if telemetry is None or telemetry.error or not steps:
        reason = (telemetry.error if telemetry else None) or "no telemetry"
        return gpu_check(config, "native.driver_view", None, reason, expected, settle=AGAIN)
    window = in_window(steps, samples)
    weak = [uncovered(steps, window), "" if telemetry.is_bound_by_uuid else "device not identified by UUID"]
    weak = [text for text in weak if text]
    peak = max(step.memory_peak_bytes or 0 for step in steps)
    wanted = max(peak, STATE_BYTES_PER_PARAMETER * run.parameters)
    seen, is_busy = memory_seen(telemetry, window), busier_than_idle(telemetry, window)
    other_name = _other_name(run.device_name, telemetry.device_name)
    has_memory = None if seen is None else seen >= MEMORY_SHARE * wanted
    is_good = _driver_agrees(has_memory, is_busy)
    if weak:
        is_good = None
    if other_name:
        is_good = False
    found = f"{len(window)} readings during the steps; memory in use {_seen_text(seen)}, "
    found += f"torch holds {memory(peak)}; "
    found += {
        True: "power or clock above idle",
        False: "power and clock as when idle",
        None: "power and clock against idle not available here",
    }[is_busy]
    return gpu_check(
        config,
        "native.driver_view",
        is_good,
        "; ".join([*([other_name] if other_name else []), *weak, found]),
        expected,
        todo="the driver does not see this training on its device: look for a fallback to the CPU",
        settle=LONGER,
        values={"readings": len(window), "memory_seen_bytes": seen, "memory_wanted_bytes": wanted},
    )


def _driver_agrees(has_memory: bool | None, is_busy: bool | None) -> bool | None:
    """One of the two witnesses is enough where the other is not available; a lack of memory contradicts."""
    if has_memory is False:
        return False
    if is_busy is False:
        return None
    return True if has_memory or is_busy else None


def _seen_text(seen: int | None) -> str:
    return "not available here" if seen is None else memory(seen)


def _other_name(torch_name: str, driver_name: str | None) -> str:
    """A contradiction between what torch and what the driver call the device; empty where there is none."""
    if driver_name is None:
        return ""
    ours, theirs = (name.lower().removeprefix("nvidia ").strip() for name in (torch_name, driver_name))
    is_same = ours.startswith(theirs) or theirs.startswith(ours)
    return "" if is_same and ours and theirs else f"torch names {torch_name}, the driver {driver_name}"


def memory_seen(telemetry: Telemetry, window: Sequence[TelemetrySample]) -> int | None:
    """Bytes that the driver saw our process use, or the card's use grow by; None where it tells neither."""
    own = [sample.own_memory_bytes for sample in window if sample.own_memory_bytes is not None]
    if own:
        return max(own)
    used = [sample.memory_used_bytes for sample in window if sample.memory_used_bytes is not None]
    if not used or telemetry.idle is None or telemetry.idle.memory_used_bytes is None:
        return None
    return max(used) - telemetry.idle.memory_used_bytes + (telemetry.reserved_before_bytes or 0)


def busier_than_idle(telemetry: Telemetry, window: Sequence[TelemetrySample]) -> bool | None:
    """None where there is nothing to compare: no reading, or a baseline that was not idle itself."""
    idle, answers = telemetry.idle, []
    for name in ("power_w", "clock_mhz"):
        values = [getattr(sample, name) for sample in window if getattr(sample, name) is not None]
        before = getattr(idle, name) if idle else None
        if values and before:
            answers.append(max(values) > ABOVE_IDLE * before)
    if any(answers):
        return True
    was_idle = idle is not None and not idle.utilization and not telemetry.reserved_before_bytes
    return False if answers and was_idle else None


def hardware(run: TrainingRun) -> Check:
    """Counters as differences over the run: a large total from the past says nothing about it."""
    telemetry = run.telemetry
    before, after = (telemetry.counters_before, telemetry.counters_after) if telemetry else ({}, {})
    expected = "no uncorrected memory error during the run, no row remap pending or failed"
    if not after:
        return gpu_check(
            run.config, "native.hardware", None, "error counters are not available here", expected,
            settle="nvidia-smi -q -d ECC,ROW_REMAPPER", required=bool(before),
        )  # fmt: skip
    grown = {name: after[name] - before[name] for name in after if after[name] > before.get(name, after[name])}
    bad = {name: by for name, by in grown.items() if "uncorrected" in name}
    bad |= {name: after[name] for name in ("remap_pending", "remap_failure") if after.get(name)}
    found = ", ".join(f"{name} +{by}" for name, by in {**grown, **bad}.items()) or f"{len(after)} counters unchanged"
    return gpu_check(
        run.config,
        "native.hardware",
        not bad,
        found,
        expected,
        todo="stop using this card until nvidia-smi -q -d ECC,ROW_REMAPPER is clean after a reset",
        values={**grown, **bad},
    )

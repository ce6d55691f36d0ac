"""Are the numbers of the run right? Its precision, the CPU's losses beside its own, a repetition."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kit.records import Check
from kit.train.checks import gpu_check
from kit.train.metrics import StepRecord, TrainingRun

# Largest relative difference of a loss from the CPU's float32 loss at the same step. Seen over three
# steps: float32 1e-7, TF32 1e-5, bfloat16 8e-5; weights that were never updated are off by 8e-2.
LOSS_LIMITS = {"float32": 1e-4, "tf32": 1e-3, "bfloat16": 2e-3}
LEAST_REFERENCE_STEPS = 2


def precision(run: TrainingRun) -> Check:
    config, found = run.config, run.precision
    wanted = "bfloat16" if config.dtype == "bfloat16" else "float32"
    expected = f"matrix products of class {config.dtype}; matrix layers that put out {wanted}"
    if found is None:
        return gpu_check(config, "native.precision", None, "not measured", expected)
    others = {dtype for audit in run.audits for dtype in audit.product_dtypes} - {wanted}
    text = (
        f"{found.observed}: relative error {found.relative_error:.1e} against float64 at "
        f"{found.size} × {found.size}, result in {found.output_dtype}"
    )
    if others:
        text += f"; matrix layers put out {', '.join(sorted(others))}"
    return gpu_check(
        config,
        "native.precision",
        found.observed == config.dtype and found.output_dtype == wanted and not others,
        text,
        expected,
        todo="look for code or a variable that changes torch's precision, or an autocast that is not active",
        values={"relative_error": found.relative_error},
    )


def cpu_agreement(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    limit, reference = LOSS_LIMITS[run.config.dtype], run.cpu_reference
    expected = f"losses within {limit:g} (relative) of the same steps on the CPU in float32"
    if reference is None or reference.skipped or not reference.losses:
        reason = reference.skipped if reference and reference.skipped else "no CPU reference"
        return gpu_check(run.config, "native.cpu_agreement", None, reason, expected)
    if len(reference.losses) < min(LEAST_REFERENCE_STEPS, len(steps)):
        # The first loss is from before the first update: it says nothing about training.
        found = f"only {len(reference.losses)} finite losses on the CPU"
        return gpu_check(run.config, "native.cpu_agreement", None, found, expected)
    pairs = [(step.loss, loss) for step, loss in zip(steps, reference.losses)]
    gaps = [math.inf if ours is None or not theirs else abs(ours - theirs) / abs(theirs) for ours, theirs in pairs]
    largest = max(gaps, default=math.inf)
    return gpu_check(
        run.config,
        "native.cpu_agreement",
        largest <= limit,
        f"largest relative difference {largest:.1e} over {len(gaps)} steps",
        expected,
        todo="the device computes other numbers than the CPU: compare step by step in raw/steps.jsonl",
        values={"steps": len(gaps), "limit": limit} | ({"largest": largest} if math.isfinite(largest) else {}),
    )


def replay(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    """Kernels that add in changing order differ without a fault; then deterministic ones decide."""
    again = run.replay
    expected = "the same seed gives the same losses and the same matrix product, bit for bit"
    if again is None or again.skipped:
        reason = again.skipped if again else "not replayed"
        return gpu_check(run.config, "native.replay", None, reason, expected)
    unequal = [step.step for step, loss in zip(steps, again.losses) if step.loss != loss]
    is_whole = len(again.losses) == len(steps) > 0
    repeats = (not unequal or again.deterministic_is_equal is True) and is_whole
    found = f"{len(again.losses)} of {len(steps)} losses repeated, "
    found += f"first difference at step {unequal[0]}" if unequal else "all equal"
    if unequal and again.deterministic_is_equal is not None:
        found += {True: "; equal", False: "; different also"}[again.deterministic_is_equal]
        found += " with deterministic algorithms"
    found += "" if again.matmul_is_equal else "; a repeated matrix product differed"
    return gpu_check(
        run.config,
        "native.replay",
        repeats and again.matmul_is_equal is True,
        found,
        expected + " (where the run's kernels add in changing order: with deterministic algorithms)",
        todo="a result that does not repeat points to hardware, overclocking or memory: test the card",
        values={"unequal_steps": len(unequal)},
    )

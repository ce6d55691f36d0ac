"""Did this run train, natively on the device it names? Decided from records alone.

Every check compares a measured value with a stated limit; the configuration is never
evidence. The same function judges the run, a rehearsal on the CPU, and the negative
control, which must come out FAIL. `kit.train.native` asks about the device, `kit.train.speed`
about the figures; here stand the run's wholeness and whether the model learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kit.records import Check
from kit.train.checks import check, in_window
from kit.train.metrics import Learning, StepRecord, TelemetrySample, TrainingRun
from kit.train.native import native_checks
from kit.train.speed import speed_checks
from kit.units import number

__all__ = ["in_window", "judge_training"]

# The canary has to fall once a run is long enough to expect it, and by more than rounding.
CANARY_MIN_STEPS = 5
CANARY_MIN_FALL = 1e-6


def judge_training(
    run: TrainingRun,
    steps: Sequence[StepRecord],
    samples: Sequence[TelemetrySample],
    *,
    peak_flop_per_s: float | None = None,
) -> tuple[Check, ...]:
    """All checks of a run. `peak_flop_per_s`: the card's dense peak for the run's dtype, None if unknown."""
    return (
        *_integrity(run, steps),
        *native_checks(run, steps, samples),
        *_learning(run, steps),
        *speed_checks(run, steps, samples, peak_flop_per_s),
    )


# --- integrity ----------------------------------------------------------------------


def _integrity(run: TrainingRun, steps: Sequence[StepRecord]) -> Iterator[Check]:
    wanted = run.config.steps
    is_complete = [step.step for step in steps] == list(range(1, wanted + 1)) and run.error is None
    yield check(
        "integrity.steps_complete",
        is_complete,
        f"{len(steps)} of {wanted} steps recorded" + (f"; {run.error}" if run.error else ""),
        f"steps 1 to {wanted}, each once and in order, and no error",
        todo="read the error and run again",
    )
    wrong = [step.step for step in steps if not _is_countable(step, run)]
    yield check(
        "integrity.counts",
        not wrong and bool(steps),
        f"impossible counts at steps {wrong[:5]}"
        if wrong
        else f"{sum(step.samples for step in steps)} samples, {sum(step.tokens for step in steps)} tokens",
        f"1 to {run.config.batch_size} samples a step, at most {run.config.seq_len} tokens each, "
        "no more supervised ones",
        todo="the records are broken, or batches are counted twice: run again",
    )
    ends = [step.started_s + step.step_time_s for step in steps]
    is_ordered = all(step.step_time_s > 0 for step in steps) and all(
        end <= step.started_s + 1e-6 for end, step in zip(ends, steps[1:])
    )
    yield check(
        "integrity.times_ordered",
        is_ordered and bool(steps),
        "each step starts after the one before it ended" if is_ordered else "step times overlap or are not positive",
        "positive step times in order",
        todo="the records are broken: run again",
    )


def _is_countable(step: StepRecord, run: TrainingRun) -> bool:
    config = run.config
    is_batch = 1 <= step.samples <= config.batch_size
    return is_batch and 0 <= step.supervised_tokens <= step.tokens <= step.samples * config.seq_len


# --- learning -----------------------------------------------------------------------


def _learning(run: TrainingRun, steps: Sequence[StepRecord]) -> Iterator[Check]:
    yield _finite(steps)
    yield _applied(run, steps)
    yield _supervised(steps)
    yield _distinct_batches(run, steps)
    yield _mode(run)
    if run.learning is None:
        for name in ("moved", "trainable", "canary"):
            yield check(f"learning.{name}", None, "not measured", "measured before and after the steps")
        return
    yield _moved(run.learning, steps)
    yield _trainable(run.learning)
    yield _canary(run.learning, steps)


def _finite(steps: Sequence[StepRecord]) -> Check:
    broken = [step.step for step in steps if step.loss is None or step.grad_norm is None]
    empty = [step.step for step in steps if step.loss == 0]
    if broken:
        found = f"loss or gradient not finite at {len(broken)} of {len(steps)} steps, first at step {broken[0]}"
    elif empty:
        found = f"loss exactly 0 at {len(empty)} of {len(steps)} steps, first at step {empty[0]}"
    else:
        found = f"{len(steps)} finite losses and gradient norms"
    return check(
        "learning.finite",
        not broken and not empty and bool(steps),
        found,
        "a finite loss above 0 and a finite gradient norm at every step",
        todo="lower the learning rate, or check the data and its labels",
        values={"steps": (broken + empty)[:10]},
    )


def _applied(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    applied = sum(step.is_applied for step in steps)
    return check(
        "learning.applied",
        applied == len(steps) > 0,
        f"{applied} of {run.config.steps} optimizer steps applied",
        f"{run.config.steps} applied, by the optimizer's own count for every parameter it holds",
        todo="a loss scaler or a swallowed error skips steps, or the optimizer holds parameters that get no gradient",
        values={"applied": applied},
    )


def _supervised(steps: Sequence[StepRecord]) -> Check:
    empty = [step.step for step in steps if step.supervised_tokens < 1]
    total = sum(step.supervised_tokens for step in steps)
    return check(
        "learning.supervised_tokens",
        not empty and bool(steps),
        f"no supervised token at steps {empty[:5]}" if empty else f"{total} supervised tokens counted",
        "at least one supervised token in every step",
        todo="check labels and padding",
        values={"supervised_tokens": total},
    )


def _distinct_batches(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    seen, first_pass = 0, []
    for step in steps:
        seen += step.samples
        if seen <= run.dataset_rows:
            first_pass.append(step.batch_sha256)
    repeated = len(first_pass) - len(set(first_pass))
    return check(
        "learning.batches",
        repeated == 0 and bool(steps),
        f"{repeated} batches repeated within one pass over the data"
        if repeated
        else f"{len(first_pass)} batches of the first pass, all different",
        "no batch twice in one pass",
        todo="look for a loader that swallows errors, or a dataset that repeats one row",
    )


def _mode(run: TrainingRun) -> Check:
    """A warning: without dropout, which the kit's models do not have, the mode changes nothing."""
    modes = [(audit.step, audit.is_training) for audit in run.audits if audit.is_training is not None]
    off = [step for step, is_training in modes if not is_training]
    return check(
        "learning.mode",
        None if not modes else not off,
        f"the model was in evaluation mode at step {off[0]}"
        if off
        else f"training mode at steps {', '.join(str(step) for step, _ in modes)}"
        if modes
        else "not recorded",
        "training mode: dropout and batch statistics are on",
        todo="call model.train() before the loop",
        required=False,
    )


def _moved(learning: Learning, steps: Sequence[StepRecord]) -> Check:
    is_moved = learning.moved_tensors == learning.trainable_tensors > 0 and learning.max_change > 0
    found = f"{learning.moved_tensors} of {learning.trainable_tensors} tensors changed, "
    found += f"largest change {learning.max_change:.1e}"
    if learning.unmoved:
        found += f"; unchanged: {learning.unmoved[0]}"
    if steps and all(step.lr == 0 for step in steps):
        found += "; the learning rate was 0"
    return check(
        "learning.moved",
        is_moved,
        found,
        "every trainable tensor changed",
        todo="check the learning rate, frozen layers and the optimizer's parameters",
        values={"max_change": learning.max_change},
    )


def _trainable(learning: Learning) -> Check:
    return check(
        "learning.trainable",
        learning.trainable_parameters == learning.total_parameters > 0,
        f"{learning.trainable_parameters:,} of {learning.total_parameters:,} parameters trainable",
        "all of them: this run declares full training",
        todo="set requires_grad on all parameters",
        values={"trainable": learning.trainable_parameters, "total": learning.total_parameters},
    )


def _canary(learning: Learning, steps: Sequence[StepRecord]) -> Check:
    """The one loss that has to fall: the same batch before and after. Those of different batches may rise."""
    before, after = learning.canary_before, learning.canary_after
    has_fallen = None if before is None or after is None else after < before * (1 - CANARY_MIN_FALL)
    if has_fallen is False and len(steps) < CANARY_MIN_STEPS:
        has_fallen = None
    return check(
        "learning.canary",
        has_fallen,
        f"loss of one fixed batch {number(before, 5)} before and {number(after, 5)} after {len(steps)} steps",
        "lower after than before (the losses of different batches may rise)",
        todo="train longer or with a larger learning rate",
        settle=f"python -m kit train --steps {max(14, CANARY_MIN_STEPS)}",
        values={"before": before, "after": after},
    )

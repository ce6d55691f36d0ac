"""The negative control: a training that claims the GPU and silently runs on the CPU.

A child process with every GPU hidden (see `kit.evidence.control_run`) trains a toy model on
the CPU, and its records say `device=cuda`, as a script with a silent fallback would. The
judges that pass the real run have to fail this one. Where they do not, the detector is
broken and the report is INVALID.
"""

from __future__ import annotations

import dataclasses

from kit.gpu.facts import MachineFacts
from kit.gpu.verdict import Expectation, judge
from kit.records import Check, Outcome, Verdict
from kit.train.metrics import StepRecord, TrainingRun
from kit.train.verdict import judge_training

# The checks that have to turn red, each by itself, for the control to count.
MUST_FAIL = ("native.placement", "native.kernels")


@dataclasses.dataclass(frozen=True)
class ControlRecord:
    """What the child saw of its machine and recorded of its training."""

    facts: MachineFacts
    run: TrainingRun
    steps: tuple[StepRecord, ...]
    seconds: float


def judge_environment(record: ControlRecord) -> Verdict:
    return judge(record.facts, Expectation(device="cuda"))


def judge_control(record: ControlRecord) -> Verdict:
    """The same judges as for the real run."""
    environment = judge_environment(record)
    return Verdict.of((*environment.checks, *judge_training(record.run, record.steps, ())), environment.diagnosis)


def control_check(record: ControlRecord | None) -> Check:
    """INVALID where the control did not turn red: then no other PASS of this report means anything."""
    expected = "a training that claims cuda and runs on the CPU with the GPU hidden comes out FAIL"
    if record is None:
        return Check(
            "integrity.negative_control", Outcome.INCONCLUSIVE, "not run", expected,
            "python -m kit report, whose smoke notebook runs it",
        )  # fmt: skip
    verdict, environment = judge_control(record), judge_environment(record)
    by_id = {check.id: check for check in verdict.checks}
    outcomes = {id: check.outcome for id, check in by_id.items()}
    is_red = environment.outcome is Outcome.FAIL and all(outcomes.get(id) is Outcome.FAIL for id in MUST_FAIL)
    # For the right reason: it was asked for the GPU, did work, and the work was seen on the CPU.
    is_red = is_red and record.run.config.device == "cuda" and bool(record.steps)
    is_red = is_red and bool(by_id["native.kernels"].values.get("cpu_products"))
    found = f"{verdict.outcome} ({verdict.diagnosis}); environment {environment.outcome}, "
    found += ", ".join(f"{id} {outcomes.get(id)}" for id in MUST_FAIL)
    return Check(
        "integrity.negative_control", Outcome.PASS if is_red else Outcome.INVALID, found, expected,
        "" if is_red else "the detector is broken on this machine: do not trust this report",
        values={"seconds": record.seconds},
    )  # fmt: skip

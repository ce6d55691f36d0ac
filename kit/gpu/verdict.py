"""Judges the facts of a machine: is its NVIDIA GPU usable by torch, natively, and is it the expected one?

A pure function of recorded facts. What a run showed stands above what a table says, and
where the two differ that is itself a check. What was not seen is INCONCLUSIVE, never a
pass; a CPU run asked for by name is a REHEARSAL and claims nothing about a GPU.
"""

from __future__ import annotations

from kit.gpu.build import holding
from kit.gpu.case import DIAGNOSES, Case, capability_of
from kit.gpu.checks import QUESTIONS, Expectation, Question
from kit.gpu.diagnose import diagnose
from kit.gpu.facts import MachineFacts
from kit.records import Check, Outcome, Verdict

__all__ = ["DIAGNOSES", "Expectation", "judge", "still_there"]


def judge(facts: MachineFacts, expectation: Expectation) -> Verdict:
    """The verdict on a machine, with every check that was made and a diagnosis from DIAGNOSES."""
    if _device(facts, expectation) == "cpu":
        return Verdict.of(_rehearsal(facts))
    case = Case(facts)
    gpu = case.gpus[0] if case.gpus else None
    question = Question(
        case, expectation, diagnose(facts), holding(facts, capability_of(gpu) if gpu else None)
    )
    checks = [check for ask in QUESTIONS if (check := ask(question)) is not None]
    diagnosis = question.found.word
    if any(check.id == "environment.two_witnesses" and check.outcome is Outcome.FAIL for check in checks):
        diagnosis = "other"
    return Verdict.of(checks, diagnosis)


def still_there(begin: MachineFacts, end: MachineFacts) -> Check:
    """Whether the device that the run began with is still the one at its end; a lost GPU is a FAIL."""
    first, last = (facts.torch.gpus if facts.torch else () for facts in (begin, end))
    before, after = ([(gpu.name, gpu.uuid, gpu.compute_capability) for gpu in gpus] for gpus in (first, last))
    is_same = before == after and bool(before) and not set(end.xids or ()) - set(begin.xids or ())
    return Check(
        "environment.still_there",
        Outcome.PASS if is_same else Outcome.FAIL,
        f"{len(before)} GPU(s) at the beginning, {len(after)} at the end"
        + ("" if is_same else ", or not the same ones"),
        "the same GPUs at the beginning and at the end",
        "" if is_same else "Restart the machine and run again; look for Xid errors in the kernel log.",
        {"before": before, "after": after, "xids": list(end.xids or ())},
    )


def _device(facts: MachineFacts, expectation: Expectation) -> str:
    if expectation.device != "auto":
        return expectation.device
    return "cpu" if facts.has_nvidia_device is False and not Case(facts).gpus else "cuda"


# --- rehearsal ------------------------------------------------------------------------


def _rehearsal(facts: MachineFacts) -> tuple[Check, ...]:
    """An explicit CPU run: the GPU's questions are not asked; the CPU's numbers are."""
    skipped = "not asked: this is a rehearsal on the CPU"
    checks = [
        Check(name, Outcome.REHEARSAL, skipped, "a GPU run answers it")
        for name in (
            "environment.driver",
            "environment.cuda_starts",
            "native.arch_in_build",
            "native.kernel_ran",
        )
    ]
    proof = facts.proof
    if facts.torch is None and facts.source != "text":
        checks.append(
            Check(
                "environment.torch_build",
                Outcome.FAIL,
                "torch is not installed",
                "a torch build",
                "Install torch.",
            )
        )
    if proof is not None and not proof.ran:
        checks.append(
            Check("native.numbers", Outcome.FAIL, f"the product failed on the CPU: {proof.error}", "it runs")
        )
    elif proof is not None and proof.max_relative_error is not None and proof.limit is not None:
        is_right = proof.max_relative_error <= proof.limit
        checks.append(
            Check(
                "native.numbers",
                Outcome.REHEARSAL if is_right else Outcome.FAIL,
                f"largest relative error {proof.max_relative_error:.2g} on the CPU",
                f"at most {proof.limit:.2g}",
            )
        )
    return tuple(checks)

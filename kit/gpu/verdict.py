"""Judges the facts of a machine: is its NVIDIA GPU usable by torch, natively, and is it the expected one?

A pure function of recorded facts. What a run showed stands above what a table says, and
where the two differ that is itself a check. What was not seen is INCONCLUSIVE, never a
pass; a CPU run asked for by name is a REHEARSAL and claims nothing about a GPU.
"""

from __future__ import annotations

from kit.gpu.build import holding
from kit.gpu.case import DIAGNOSES, Case, capability_of
from kit.gpu.checks import ask
from kit.gpu.diagnose import diagnose
from kit.gpu.facts import MachineFacts
from kit.gpu.question import Expectation, Question
from kit.records import Check, Outcome, Verdict

__all__ = ["DIAGNOSES", "Expectation", "judge", "still_there"]

_GPU_QUESTIONS = (
    "environment.driver",
    "environment.cuda_starts",
    "native.arch_in_build",
    "native.kernel_ran",
    "native.without_ptx_jit",
)


def judge(facts: MachineFacts, expectation: Expectation) -> Verdict:
    """The verdict on a machine, with every check that was made and a diagnosis from DIAGNOSES.

    A rehearsal has no diagnosis, since the GPU was not asked for.
    """
    case = Case(facts)
    if expectation.device == "cpu" or (expectation.device == "auto" and _shows_no_gpu(case)):
        return Verdict.of(_rehearsal(facts))
    held = holding(facts, capability_of(case.gpus[0]) if case.gpus else None)
    found = diagnose(facts)
    checks = ask(Question(case, expectation, found, held))
    lied = any(check.id == "environment.two_witnesses" and check.outcome is Outcome.FAIL for check in checks)
    return Verdict.of(checks, "other" if lied else found.word)


def still_there(begin: MachineFacts, end: MachineFacts | None) -> Check:
    """Whether the driver and its devices at the end of a run are those of its beginning; a lost GPU is a
    FAIL."""
    expected = "the same driver and devices at the end as at the beginning"
    if end is None:
        return Check("environment.still_there", Outcome.INCONCLUSIVE, "the machine was not looked at again", expected)
    before, after = (_devices(facts) for facts in (begin, end))
    new_xids = sorted(set(end.xids or ()) - set(begin.xids or ()))
    is_same = before == after and not new_xids
    found = f"{len(before)} devices at the beginning, {len(after)} at the end"
    if not is_same:
        found += f"; new Xid errors: {new_xids}" if new_xids else "; not the same ones, or another driver"
    return Check(
        "environment.still_there",
        Outcome.PASS if is_same else Outcome.FAIL,
        found,
        expected,
        "" if is_same else "Restart the machine and run again; look for Xid errors in the kernel log.",
        {"new_xids": new_xids},
    )


def _devices(facts: MachineFacts) -> list[tuple[str | None, str | None, str | None]]:
    driver = facts.driver
    return [(driver.version, gpu.name, gpu.uuid) for gpu in driver.gpus] if driver else []


def _shows_no_gpu(case: Case) -> bool:
    return case.facts.has_nvidia_device is False and not case.gpus


def _rehearsal(facts: MachineFacts) -> list[Check]:
    """An explicit CPU run: the GPU's questions are not asked; the CPU's numbers are."""
    found = "not asked: this is a rehearsal on the CPU"
    checks = [Check(name, Outcome.REHEARSAL, found, "a GPU run answers it") for name in _GPU_QUESTIONS]
    if facts.torch is None and facts.source != "text":
        found = "torch is not installed"
        checks.append(Check("environment.torch_build", Outcome.FAIL, found, "a torch build", "Install torch."))
    proof = facts.proof
    if proof is None:
        return checks
    right = proof.ran and (proof.max_relative_error or 0) <= (proof.limit or float("inf"))
    found = f"on the CPU: {proof.error or f'largest relative error {proof.max_relative_error or 0:.1e}'}"
    outcome = Outcome.REHEARSAL if right else Outcome.FAIL
    return [*checks, Check("native.numbers", outcome, found, "the product agrees with float64")]

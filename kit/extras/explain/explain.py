"""A pasted text, read and explained: what is wrong, how sure that is, what to do, and what it could not know."""

from __future__ import annotations

import dataclasses
from typing import Any

from kit.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS
from kit.extras.explain.text import clean, parse
from kit.gpu.causes import Reading
from kit.gpu.diagnose import Case, Diagnosis, diagnose_case
from kit.gpu.facts import MachineFacts
from kit.gpu.judge_machine import disagreements
from kit.gpu.remedy import Remedy, remedy_for
from kit.show import plain


@dataclasses.dataclass(frozen=True)
class Explanation:
    """found: the diagnosis with its confidence, kind and the lines that nothing explains. because: the reasons, in
    words. unknown: what the text does not tell."""

    found: Diagnosis
    because: tuple[str, ...]
    remedy: Remedy
    unknown: tuple[str, ...]
    facts: MachineFacts

    @property
    def diagnosis(self) -> str:
        return self.found.word

    @property
    def confidence(self) -> str:
        return self.found.confidence

    @property
    def ask(self) -> str:
        return self.found.ask


def explain(text: str | bytes) -> Explanation:
    """Any text or bytes; only its first 96 KiB and last 48 KiB are read. Never raises for its content."""
    notes: list[str] = []
    lines = clean(text, notes)
    reading = Reading(lines)
    facts = parse(lines, notes, tuple(failure.text for failure in reading.failures))
    case = Case(facts, reading)
    found = diagnose_case(case)
    contradictions = tuple(f"the text contradicts itself: {found}" for found in disagreements(facts))
    if contradictions and found.confidence == "high":
        found = dataclasses.replace(found, confidence="medium")
    return Explanation(
        found=found,
        because=found.because + facts.notes + contradictions,
        remedy=remedy_for(found, case),
        unknown=_unknown(case) if found.kind == "environment" else (),
        facts=facts,
    )


def _unknown(case: Case) -> tuple[str, ...]:
    facts, missing = case.facts, []
    if case.is_not_nvidia:
        return ()
    if not case.gpus:
        missing.append("which GPU it is")
    elif len(case.holdings) < len(case.gpus):
        names = sorted({gpu.name or "?" for gpu in case.gpus} - {gpu.name or "?" for gpu, _, _ in case.holdings})
        missing.append(f"the compute capability of {', '.join(names)}")
    if not (facts.torch and (facts.torch.version or facts.torch.cuda or facts.torch.arch_list)):
        missing.append("which torch build it is")
    if not (case.driver_version or case.driver_cuda):
        missing.append("the driver's version")
    if facts.platform.system is None:
        missing.append("the operating system")
    return tuple(missing)


def as_json(explanation: Explanation) -> dict[str, Any]:
    """The stable form of `kit explain --json`."""
    found, cure = explanation.found, explanation.remedy
    return {
        "diagnosis": found.word,
        "confidence": found.confidence,
        "because": list(explanation.because),
        "remedy": {
            "summary": cure.summary,
            "commands": list(cure.commands),
            "torch_variants": list(cure.torch_variants),
            "driver": cure.driver,
            "pip": list(cure.pip),
            "uv": list(cure.uv),
            "conda": list(cure.conda),
        },
        "cause": found.cause,
        "kind": found.kind,
        "unexplained": list(found.unexplained),
        "unknown": list(explanation.unknown),
        "ask": found.ask,
    }


def as_text(explanation: Explanation) -> str:
    """What `kit explain` prints."""
    found, cure = explanation.found, explanation.remedy
    lines = [f"Diagnosis: {found.word} (confidence: {found.confidence})", ""]
    lines += [f"  because  {reason}" for reason in explanation.because]
    lines += [f"  not explained  {line}" for line in found.unexplained[:5] if line not in explanation.because[0]]
    lines += [f"  unknown  {what}" for what in explanation.unknown]
    lines += ["", cure.summary, *(f"    {command}" for command in cure.commands)]
    if cure.driver:
        lines.append(f"    driver: {cure.driver}")
    if found.ask:
        lines += ["", f"What to paste next: {found.ask}"]
    return plain("\n".join(lines))


def exit_code(explanation: Explanation) -> int:
    """0 where nothing is wrong, 3 where the text does not tell, 1 for every other diagnosis."""
    if explanation.diagnosis == "ok":
        return EXIT_PASS
    return EXIT_INCONCLUSIVE if explanation.confidence == "low" else EXIT_FAIL

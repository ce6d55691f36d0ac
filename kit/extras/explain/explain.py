"""A pasted text, read and explained: what is wrong, how sure that is, what to do, and what it could not
know."""

from __future__ import annotations

import dataclasses
from typing import Any

from kit.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS
from kit.extras.explain.text import parse
from kit.gpu.diagnose import Case, diagnose
from kit.gpu.facts import MachineFacts
from kit.gpu.judge_machine import disagreements
from kit.gpu.remedy import Remedy, remedy_for
from kit.show import plain


@dataclasses.dataclass(frozen=True)
class Explanation:
    """diagnosis: one of `kit.gpu.judge_machine.DIAGNOSES`. confidence: 'high', 'medium', 'low'. because: the
    reasons, in words. unknown: what the text does not tell. ask: the one command that would settle it, or
    ''."""

    diagnosis: str
    confidence: str
    because: tuple[str, ...]
    remedy: Remedy
    unknown: tuple[str, ...]
    ask: str
    facts: MachineFacts


def explain(text: str | bytes) -> Explanation:
    """Any text or bytes; only its first 96 KiB and last 48 KiB are read. Never raises for its content."""
    facts = parse(text)
    found = diagnose(facts)
    unknown = _unknown(facts)
    ask = found.ask or ("python -m torch.utils.collect_env" if unknown and found.confidence != "high" else "")
    return Explanation(
        diagnosis=found.word,
        confidence=found.confidence,
        because=found.because + facts.notes + _contradictions(facts),
        remedy=remedy_for(found, facts),
        unknown=unknown,
        ask=ask,
        facts=facts,
    )


def _contradictions(facts: MachineFacts) -> tuple[str, ...]:
    return tuple(f"the text contradicts itself: {found}" for found in disagreements(facts))


def _unknown(facts: MachineFacts) -> tuple[str, ...]:
    case, missing = Case(facts), []
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


def as_json(found: Explanation) -> dict[str, Any]:
    """The stable form of `kit explain --json`."""
    cure = found.remedy
    return {
        "diagnosis": found.diagnosis,
        "confidence": found.confidence,
        "because": list(found.because),
        "remedy": {
            "summary": cure.summary,
            "commands": list(cure.commands),
            "torch_variants": list(cure.torch_variants),
            "driver": cure.driver,
            "uv": list(cure.uv),
            "conda": list(cure.conda),
        },
        "unknown": list(found.unknown),
        "ask": found.ask,
    }


def as_text(found: Explanation) -> str:
    """What `kit explain` prints."""
    lines = [f"Diagnosis: {found.diagnosis} (confidence: {found.confidence})", ""]
    lines += [f"  because  {reason}" for reason in found.because]
    lines += [f"  unknown  {what}" for what in found.unknown]
    lines += ["", found.remedy.summary, *(f"    {command}" for command in found.remedy.commands)]
    if found.remedy.driver:
        lines.append(f"    driver: {found.remedy.driver}")
    if found.ask:
        lines += ["", f"What would settle it: {found.ask}"]
    return plain("\n".join(lines))


def exit_code(found: Explanation) -> int:
    """0 where nothing is wrong, 3 where the text does not tell, 1 for every other diagnosis."""
    if found.diagnosis == "ok":
        return EXIT_PASS
    return EXIT_INCONCLUSIVE if found.confidence == "low" else EXIT_FAIL

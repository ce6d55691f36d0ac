"""Checks a bundle that came from a stranger, with the standard library, offline.

Nothing from the bundle is run, imported, unpickled or extracted. Two questions stay apart:
is this bundle whole and does it follow from its own raw files (integrity), and what does
it then say (its verdict)? What a broken step makes pointless is shown as skipped.
"""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from kit.errors import BundleInvalid, KitError, UsageError
from kit.evidence.model import Evidence
from kit.evidence.plausible import utc
from kit.evidence.steps import STEPS, Stop, Subject
from kit.evidence.verification import SignatureCheck, Step, Verification, text
from kit.records import Check, Outcome, worst

__all__ = ["STEPS", "SignatureCheck", "Step", "Verification", "load", "text", "verify"]


def verify(
    path: Path,
    *,
    conclude: Callable[[Mapping[str, bytes]], Evidence] | None = None,
    check_signature: Callable[[bytes, bytes | None], SignatureCheck | None] | None = None,
    is_running: Callable[[Path], bool] | None = None,
    now: datetime.datetime | None = None,
    reviewer_nonce: str | None = None,
) -> Verification:
    """What a bundle is worth. Raises UsageError where `path` does not exist, and nothing else.

    check_signature: (manifest, signature or None) -> SignatureCheck or None, as
    `kit.evidence.sign` makes one. is_running: whether a run still writes a half-written bundle.
    now: today, for the age; without it the age is not told. reviewer_nonce: what the report must carry.
    """
    return _verification(
        Subject(_existing(path), conclude or _conclude, check_signature, is_running, now, reviewer_nonce)
    )


def load(
    path: Path, *, conclude: Callable[[Mapping[str, bytes]], Evidence] | None = None
) -> tuple[Evidence, dict[str, bytes]]:
    """Evidence and raw files of a bundle to compare. Raises BundleInvalid where it does not verify."""
    subject = Subject(_existing(path), conclude or _conclude)
    verification = _verification(subject)
    if verification.integrity is not Outcome.PASS:
        first = next(step.check for step in verification.steps if step.check.outcome is not Outcome.PASS)
        raise BundleInvalid(f"{path}: {first.found}", expected="a bundle that verifies", todo=f"run kit verify {path}")
    return subject.evidence, subject.raw


def _verification(subject: Subject) -> Verification:
    try:
        return _run_steps(subject)
    finally:
        if subject.source is not None:
            subject.source.close()


def _run_steps(subject: Subject) -> Verification:
    steps: list[Step] = []
    must_stop = False
    for name in STEPS:
        step = _skipped(name) if must_stop and name != "signature" else _step(subject, name)
        steps.append(step)
        # Without whole files nothing after them means anything; the later steps stand side by side.
        red = step.check.outcome is not Outcome.PASS and step.check.required
        must_stop = must_stop or (red and name in ("readable", "manifest", "files", "hashes"))
    integrity = worst(step.check.outcome for step in steps if step.check.required)
    reported = subject.evidence.verdict.outcome if subject.evidence else None
    outcome = worst((integrity, reported)) if reported else integrity
    return Verification(
        outcome,
        integrity,
        reported,
        tuple(steps),
        _worth(subject, integrity),
        subject.evidence.run_id if subject.evidence else None,
        subject.evidence.headline if subject.evidence else None,
    )


def _step(subject: Subject, name: str) -> Step:
    try:
        found = getattr(subject, f"step_{name}")()
    except Stop as stop:
        return Step(Check(f"bundle.{name}", stop.outcome, stop.found, STEPS[name], stop.todo), "run")
    except KitError as error:
        return Step(Check(f"bundle.{name}", Outcome.INVALID, error.found, STEPS[name], error.todo), "run")
    except (OSError, ValueError, ArithmeticError, RecursionError) as error:
        return Step(Check(f"bundle.{name}", Outcome.INVALID, f"cannot be read: {error}", STEPS[name]), "run")
    if found is None:
        sentence = subject.signature.sentence if name == "signature" and subject.signature else "nothing to check"
        return _skipped(name, sentence, required=False)
    return Step(Check(f"bundle.{name}", Outcome.PASS, found, STEPS[name]), "run")


def _worth(subject: Subject, integrity: Outcome) -> str:
    if integrity is Outcome.INVALID or not subject.evidence:
        return "It is worth nothing as evidence." if integrity is Outcome.INVALID else "It could not be judged."
    who = (
        subject.signature.sentence
        if subject.signature
        else ("Unsigned: this detects accidents and casual edits; who made it could have made it all up")
    )
    end = utc(subject.evidence.ended_utc)
    age = f" Made {max(0, (subject.now - end).days)} days ago." if subject.now and end else ""
    dirty = " The kit that made it had uncommitted changes." if subject.evidence.code.get("is_dirty") else ""
    challenge = " It answers the reviewer's nonce." if subject.reviewer_nonce else ""
    return f"{who}.{age}{dirty}{challenge}"


def _existing(path: Path) -> Path:
    path = Path(path)
    if not path.exists() and not path.is_symlink():
        raise UsageError(f"{path} does not exist", expected="the folder or zip of a report", todo="check the path")
    return path


def _conclude(files: Mapping[str, bytes]) -> Evidence:
    """Looked up when it is needed, so that a folder that is no bundle costs no import."""
    return importlib.import_module("kit.evidence.conclude").conclude(files)


def _skipped(name: str, found: str = "an earlier step failed", required: bool = True) -> Step:
    """Skipped for want of an earlier step is INCONCLUSIVE; for want of a subject it does not count."""
    return Step(Check(f"bundle.{name}", Outcome.INCONCLUSIVE, found, STEPS[name], required=required), "skipped")

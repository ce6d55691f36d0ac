"""What a verification found, as values and as the table that `kit verify` prints."""

from __future__ import annotations

import dataclasses

from kit.evidence.text import visible
from kit.records import Check, Outcome, Verdict


@dataclasses.dataclass(frozen=True)
class SignatureCheck:
    """What `ssh-keygen` said.

    state: 'valid'; 'unclaimed', it holds and nobody asked who signed; 'signer_unknown',
    asked for and not shown; 'invalid'; 'not_checked'.
    """

    state: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class Step:
    """One check of the verifier. state: 'run' or 'skipped'."""

    check: Check
    state: str


@dataclasses.dataclass(frozen=True)
class Verification:
    """outcome: the worse of `integrity` and the bundle's own verdict; worth: what to think of it."""

    outcome: Outcome
    integrity: Outcome
    reported: Outcome | None
    steps: tuple[Step, ...]
    worth: str
    run_id: str | None = None
    headline: str | None = None

    @property
    def exit_code(self) -> int:
        return self.outcome.exit_code

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.outcome, tuple(step.check for step in self.steps))


def text(verification: Verification) -> str:
    """The table that `kit verify` prints."""
    lines = []
    for step in verification.steps:
        shown = step.check.outcome.value if step.state == "run" else "skipped"
        lines.append(f"{shown:13} {step.check.id.partition('.')[2]:17} {visible(step.check.found, keep='')}")
        if step.check.todo:
            lines.append(f"{'':31} To do: {step.check.todo}")
    ran = sum(step.state == "run" for step in verification.steps)
    lines += ["", f"{ran} checks run, {len(verification.steps) - ran} skipped."]
    if verification.reported:
        lines.append(f"Bundle {verification.run_id}: {visible(verification.headline or '', keep='')}")
        lines.append(f"It says {verification.reported}; its integrity is {verification.integrity}.")
    return visible("\n".join([*lines, verification.worth, f"Verdict: {verification.outcome}"]))

"""One idiom for every check: its words are data on top, the condition stands below.

    MACHINE = Rules("machine", rehearses=lambda case: case.device == "cpu")

    @MACHINE.rule("native.kernel_ran", "a real kernel runs on the GPU", todo="see the remedy", promise=1)
    def kernel_ran(case: Machine) -> Answer | None:
        return say(case.proof.ran, f"{case.proof.size} x {case.proof.size} product")

A rule answers None where its question does not apply. Texts may name the case's attributes:
"{case.config.steps} applied". What is judged is a frozen case; a rule reads it and nothing else.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kit.records import Check, Outcome


@dataclasses.dataclass(frozen=True)
class Answer:
    """is_good: None where the evidence is missing or too weak. changes: words of the rule that are others in this
    case (expected, todo, settle, required), or an `outcome` that is none of PASS, FAIL and INCONCLUSIVE."""

    is_good: bool | None
    found: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def say(is_good: bool | None, found: str, values: Mapping[str, Any] | None = None, **changes: Any) -> Answer:
    return Answer(is_good, found, values or {}, changes)


@dataclasses.dataclass(frozen=True)
class Rule:
    """id: claim and question. expected: what a healthy case shows. todo: what to do about a FAIL. settle: the command
    that would decide where evidence is missing. required: whether it counts towards the verdict. is_gpu_claim: in a
    rehearsal on a CPU nothing is claimed, so what is missing there is REHEARSAL; what contradicts is FAIL anywhere.
    promise: the number of the report's promise that rests on it. stops: where it is red, the rules after it mean
    nothing and are not reached. red: what an answer that is not good makes of it."""

    id: str
    ask: Callable[[Any], Answer | None]
    expected: str
    todo: str = ""
    settle: str = ""
    required: bool = True
    is_gpu_claim: bool = False
    promise: int | None = None
    stops: bool = False
    red: Outcome = Outcome.FAIL

    def check(self, case: Any, *, is_rehearsal: bool = False) -> Check | None:
        """The answer as a check; None where the question does not apply."""
        answer = self.ask(case)
        if answer is None:
            return None
        changes = dict(answer.changes)
        outcome = changes.pop(
            "outcome", {True: Outcome.PASS, False: self.red, None: Outcome.INCONCLUSIVE}[answer.is_good]
        )
        rule = dataclasses.replace(self, **changes)
        if rule.is_gpu_claim and is_rehearsal and outcome in (Outcome.PASS, Outcome.INCONCLUSIVE):
            outcome = Outcome.REHEARSAL
        then = {Outcome.INCONCLUSIVE: rule.settle, Outcome.FAIL: rule.todo, Outcome.INVALID: rule.todo}.get(outcome, "")
        expected, then = rule.expected.format(case=case), then.format(case=case)
        return Check(rule.id, outcome, answer.found, expected, then, answer.values, rule.required)

    def not_reached(self, stopper: str) -> Check:
        return Check(self.id, Outcome.INCONCLUSIVE, f"not reached: {stopper} is red", self.expected)


def named(text: str) -> str:
    """A rule's words without a case: '{case.expectation.gpu_name!r}' is shown as '<gpu name>'."""
    return re.sub(r"\{[\w.]*?(\w+)(?:[!:][^}]*)?\}", lambda found: f"<{found[1].replace('_', ' ')}>", text)


class Rules:
    """The rules of one flow, in the order in which they are asked. rehearses: whether a case is a CPU rehearsal.
    settle: what settles a rule that names no command of its own."""

    def __init__(self, name: str, *, rehearses: Callable[[Any], bool] = lambda case: False, settle: str = "") -> None:
        self.name, self._rehearses, self._settle = name, rehearses, settle
        self._rules: list[Rule] = []

    def rule(self, id: str, expected: str, **words: Any) -> Callable:
        """Adds the decorated question. words: the other fields of `Rule`."""

        def add(ask: Callable[[Any], Answer | None]) -> Callable[[Any], Answer | None]:
            self._rules.append(Rule(id, ask, expected, **{"settle": self._settle, **words}))
            return ask

        return add

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    def checks(self, case: Any) -> tuple[Check, ...]:
        """One check for each rule whose question applies to `case`."""
        is_rehearsal, made, stopper = self._rehearses(case), [], ""
        for rule in self._rules:
            check = rule.check(case, is_rehearsal=is_rehearsal) if not stopper else rule.not_reached(stopper)
            made += [check] if check is not None else []
            if rule.stops and check is not None and check.outcome not in (Outcome.PASS, Outcome.REHEARSAL):
                stopper = stopper or rule.id
        return tuple(made)

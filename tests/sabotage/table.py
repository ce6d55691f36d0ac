"""A row of the table: one sabotage, what must be said about it, and its healthy twin."""

import dataclasses
import time
from collections.abc import Callable

from kit.records import Outcome

from .seams import Said, refused

PASS, FAIL, INCONCLUSIVE, INVALID = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.INVALID


@dataclasses.dataclass(frozen=True)
class Row:
    """id: of the matrix, with a letter where there are several. must: the outcome of the check `at`, whose text
    holds `words`. twin: a run that differs in the sabotage alone; without a name in `twin_at` nothing required may
    be red in it, else that check must be good."""

    id: str
    what: str
    seam: str
    sabotage: Callable[[], Said]
    twin: Callable[[], Said]
    must: Outcome
    at: str
    words: tuple[str, ...] = ()
    twin_at: tuple[str, ...] = ()
    is_gpu: bool = False
    is_slow: bool = False


@dataclasses.dataclass(frozen=True)
class Tried:
    row: Row
    said: str
    twin_said: str
    problems: tuple[str, ...]
    seconds: float


ROWS: list[Row] = []


def row(id, what, *, seam, must, at, words=(), twin=None, twin_at=(), is_gpu=False, is_slow=False):
    """Registers a sabotage; the twin may be given here, or the function returns both."""

    def keep(sabotage):
        words_ = (words,) if isinstance(words, str) else tuple(words)
        twins = (twin_at,) if isinstance(twin_at, str) else tuple(twin_at)
        ROWS.append(Row(id, what, seam, sabotage, twin, must, at, words_, twins, is_gpu, is_slow))
        return sabotage

    return keep


def attempt(row: Row, *, twins: dict | None = None) -> Tried:
    """Runs both. twins: answers of twins that rows share, by function."""
    began = time.perf_counter()
    twins = {} if twins is None else twins
    said = refused(row.sabotage)
    if row.twin not in twins:
        twins[row.twin] = refused(row.twin)
    problems = [*_of_sabotage(row, said), *_of_twin(row, twins[row.twin])]
    return Tried(
        row, _short(said, row.at), _twin_short(row, twins[row.twin]), tuple(problems), time.perf_counter() - began
    )


def _of_sabotage(row, said):
    check = said.checks.get(row.at)
    if check is None:
        yield f"{row.at} is not among the checks: {sorted(said.checks)}"
        return
    if check.outcome is not row.must:
        yield f"{row.at} is {check.outcome}, must be {row.must}: {check.found}"
    text = " ".join((check.found, check.expected, check.todo))
    for word in row.words:
        if word not in text:
            yield f"{word!r} is missing in: {text}"
    if row.must is not PASS and check.required and said.outcome not in (FAIL, INCONCLUSIVE, INVALID):
        yield f"the verdict is {said.outcome}"


def _of_twin(row, said):
    if not said.checks:
        yield "the twin was not checked at all"
    if not row.twin_at and said.red:
        yield "the twin is red: " + "; ".join(f"{check.id} {check.outcome}: {check.found}" for check in said.red)
    for id in row.twin_at:
        check = said.checks.get(id)
        if check is None or check.outcome not in (Outcome.PASS, Outcome.REHEARSAL):
            yield f"the twin's {id} is {check and check.outcome}: {check and check.found}"


def _short(said, at):
    check = said.checks.get(at)
    return f"{check.outcome} {at}" if check else str(said.outcome)


def _twin_short(row, said):
    if row.twin_at and all(id in said.checks for id in row.twin_at):
        return ", ".join(f"{said.checks[id].outcome} {id}" for id in row.twin_at)
    return str(said.outcome)


def markdown(tried):
    """The table of what was tried, in the matrix's order."""
    lines = [
        "| id | sabotage | seam | said of it | said of its healthy twin | right |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in sorted(tried, key=lambda one: one.row.id):
        right = "yes" if not one.problems else "**no**: " + "; ".join(one.problems).replace("|", "/")[:300]
        lines.append(f"| {one.row.id} | {one.row.what} | {one.row.seam} | {one.said} | {one.twin_said} | {right} |")
    return "\n".join(lines)

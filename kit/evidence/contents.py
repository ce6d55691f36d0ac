"""What a report says, as one frozen value, and the raw files of a bundle from which it follows.

evidence.json is `Evidence` and nothing else. `kit.evidence.conclude` derives it from facts/ and raw/ alone, so that
a verifier can derive it again. Shapes and reading, no rule; a number that is not known is None with a reason, never 0.
"""

import dataclasses
import datetime
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from kit import units
from kit.errors import BundleInvalid, KitError
from kit.gpu.judge_machine import Expectation
from kit.records import Outcome, Verdict, from_json, loads
from kit.sweep.table import Ceilings, Row

T = TypeVar("T")
SCHEMA_VERSION = "2.0"

COMPLETE = "COMPLETE"
FAILED = "FAILED"
INTERRUPTED = "INTERRUPTED"


@dataclasses.dataclass(frozen=True)
class Number:
    """One row of the table: value in `unit` (SI or bytes), how it is defined, from how many samples.

    low, high: the ends of the spread that `definition` names. reason: why value is None.
    """

    name: str
    value: int | float | None
    unit: str
    definition: str
    n: int | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Promise:
    """One of the six promises; checks: ids of the checks that decide it; sentence: what was seen."""

    number: int
    text: str
    outcome: Outcome
    checks: tuple[str, ...]
    sentence: str


@dataclasses.dataclass(frozen=True)
class NotebookRun:
    """How one notebook ran. state: 'ok', 'failed', 'interrupted' or 'not_run'.

    failing_cell: index of the cell in the executed notebook. template_sha256: of the
    template's bytes.
    """

    name: str
    state: str
    seconds: float | None
    cells: int
    cells_run: int
    failing_cell: int | None
    error: str | None
    template_sha256: str


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A whole report. state: 'COMPLETE', 'FAILED' or 'INTERRUPTED'.

    code: commit, is_dirty, diff_sha256 of the kit that ran. device: 'cuda' or 'cpu', as
    asked for. system: the system under test, a line a part. headline: one sentence that a
    manager understands. limits: what the report does not show. Times are ISO 8601 in UTC.
    """

    schema_version: str
    run_id: str
    nonce: str
    reviewer_nonce: str | None
    kit_version: str
    code: Mapping[str, Any]
    device: str
    state: str
    started_utc: str
    ended_utc: str
    system: Mapping[str, str]
    verdict: Verdict
    claims: Mapping[str, str]
    promises: tuple[Promise, ...]
    numbers: tuple[Number, ...]
    notebooks: tuple[NotebookRun, ...]
    headline: str
    limits: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """raw/run.json: what was asked for, how each notebook went, and when.

    parameters: per notebook, as given. reason: why the run ended early, None where it did not. notes: what went
    wrong beside the run.
    """

    run_id: str
    nonce: str
    reviewer_nonce: str | None
    kit_version: str
    code: Mapping[str, Any]
    device: str
    expectation: Expectation
    parameters: Mapping[str, Any]
    notebooks: tuple[NotebookRun, ...]
    state: str
    started_utc: str
    ended_utc: str
    reason: str | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """raw/sweep.json: what was asked for, what this machine can do, and each measured point."""

    plan: Mapping[str, Any]
    ceilings: Ceilings
    rows: tuple[Row, ...]


def one(files: Mapping[str, bytes], name: str, kind: type[T]) -> T | None:
    """A JSON file as a value of `kind`; None where it is not there."""
    return parsed(name, functools.partial(_value, kind, files[name])) if name in files else None


def _value(kind: Any, text: str | bytes) -> Any:
    return from_json(kind, loads(text))


def lines(files: Mapping[str, bytes], name: str, kind: type[T]) -> tuple[T, ...]:
    """A JSON-lines file as values of `kind`, one a line; empty where it is not there."""
    text = files.get(name, b"").decode("utf-8", errors="strict").splitlines()
    return tuple(parsed(f"{name} line {n}", functools.partial(_value, kind, line)) for n, line in enumerate(text, 1))


def parsed(name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives. Raises BundleInvalid with the file's name where it cannot be made."""
    try:
        return make()
    except (ValueError, KeyError, TypeError, KitError) as error:
        raise BundleInvalid(f"{name}: {error}", expected="a file as the kit writes it") from error


def run_nonce(chance: str, challenge: str | None) -> str:
    """The nonce of a run: 20 digits of its own, and 20 that follow from them and a reviewer's challenge.

    The watched steps are drawn from it, so a run that is over cannot take up a new challenge.
    """
    return chance + hashlib.sha256(f"{chance}:{challenge or ''}".encode()).hexdigest()[:20]


def utc(told: str) -> datetime.datetime | None:
    """A time of the report; None where it is not ISO 8601 in UTC."""
    try:
        moment = datetime.datetime.fromisoformat(told)
    except ValueError:
        return None
    return moment if moment.utcoffset() == datetime.timedelta(0) else None


def points(numbers: Iterable[Number]) -> dict[tuple[int, int, str], dict[str, Number]]:
    """The time of a step at each point of the sweep: by its batch, length and precision, and there by engine."""
    found: dict[tuple[int, int, str], dict[str, Number]] = {}
    for one in numbers:
        if told := re.fullmatch(r"step_(\d+)x(\d+)_([a-z0-9]+)_(\w+)_s", one.name):
            found.setdefault((int(told[1]), int(told[2]), told[3]), {})[told[4]] = one
    return found


def efficiencies(numbers: Iterable[Number]) -> dict[int, Number]:
    """How much of so many times one GPU's speed a number of ranks reached, where that is known."""
    found = ((re.fullmatch(r"weak_scaling_(\d+)_ranks_efficiency", one.name), one) for one in numbers)
    return {int(told[1]): one for told, one in found if told and one.value}


def value(number: Number) -> str:
    """The number with its unit, or 'unknown' with the reason."""
    if number.value is None:
        return f"unknown: {number.reason or 'no reason given'}"
    return _quantity(number.value, number.unit)


def value_range(number: Number) -> str:
    """'1.7 to 1.9 s', or nothing where no spread is known."""
    ends = [_quantity(end, number.unit) for end in (number.low, number.high) if end is not None]
    return " to ".join(ends) if len(ends) == 2 else ""


def _quantity(amount: float | int, unit: str) -> str:
    if unit in ("B", "bytes"):
        return units.memory(int(amount))
    if unit == "s":
        return units.seconds(amount)
    if unit in ("FLOP/s", "B/s", "FLOP"):
        return units.quantity(amount, unit)
    digits = f"{amount:,}" if isinstance(amount, int) else units.number(amount, 3)
    return digits if unit == "1" else f"{digits} {unit}".strip()

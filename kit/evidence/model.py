"""What a report says, as one frozen value: evidence.json is this and nothing else.

`kit.evidence.conclude` derives it from facts/ and raw/ of a bundle alone, so that a
verifier can derive it again. This module holds shapes and no rule; a number that is
not known is None with a reason, never 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kit.records import Outcome, Verdict

SCHEMA_VERSION = "1.0"

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
    asked for. headline: one sentence that a manager understands. limits: what the report
    does not show. Times are ISO 8601 in UTC.
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
    verdict: Verdict
    claims: Mapping[str, str]
    promises: tuple[Promise, ...]
    numbers: tuple[Number, ...]
    notebooks: tuple[NotebookRun, ...]
    headline: str
    limits: tuple[str, ...]

"""The raw files of a bundle, parsed: what was recorded, before anything is concluded from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kit.errors import BundleInvalid, KitError
from kit.evidence.control import ControlRecord
from kit.evidence.model import NotebookRun
from kit.gpu.facts import MachineFacts
from kit.gpu.verdict import Expectation
from kit.records import from_json, loads
from kit.sweep.losses import SameLosses
from kit.sweep.short import BenchResult
from kit.sweep.table import Ceilings, Row, from_csv
from kit.train.metrics import StepRecord, TelemetrySample, TrainingRun


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """raw/run.json: what was asked for, how each notebook went, and when.

    parameters: per notebook, as given. reason: why the run ended early, None where it did not.
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


@dataclasses.dataclass(frozen=True)
class Raw:
    """The parsed files; None or empty for those that are not there."""

    run: RunRecord
    begin: MachineFacts | None
    end: MachineFacts | None
    training: TrainingRun | None
    steps: tuple[StepRecord, ...]
    telemetry: tuple[TelemetrySample, ...]
    control: ControlRecord | None
    ceilings: Ceilings | None
    rows: tuple[Row, ...]
    losses: SameLosses | None
    bench: BenchResult | None
    records: Mapping[str, Mapping[str, Any]]


def one(files: Mapping[str, bytes], name: str, kind: Any) -> Any:
    """A JSON file as a value of `kind`; None where it is not there."""
    return parsed(name, lambda: from_json(kind, loads(files[name]))) if name in files else None


def lines(files: Mapping[str, bytes], name: str, kind: Any) -> tuple[Any, ...]:
    """A JSON-lines file as values of `kind`, one a line; empty where it is not there."""
    text = files.get(name, b"").decode("utf-8", errors="strict").splitlines()
    return tuple(
        parsed(f"{name} line {n}", lambda line=line: from_json(kind, loads(line))) for n, line in enumerate(text, 1)
    )


def read(files: Mapping[str, bytes]) -> Raw:
    """Raises BundleInvalid where a file cannot be read, or the record of the run is missing."""
    run = one(files, "raw/run.json", RunRecord)
    if run is None:
        raise BundleInvalid("raw/run.json is missing", expected="the record of the run")
    sweep = parsed("raw/sweep.json", lambda: loads(files["raw/sweep.json"])) if "raw/sweep.json" in files else None
    records = {
        name.split("/")[-1].removesuffix(".json"): parsed(name, lambda data=data: dict(loads(data)))
        for name, data in files.items()
        if name.startswith("raw/records/")
    }
    return Raw(
        run=run,
        begin=one(files, "facts/begin.json", MachineFacts),
        end=one(files, "facts/end.json", MachineFacts),
        training=one(files, "raw/training.json", TrainingRun),
        steps=lines(files, "raw/steps.jsonl", StepRecord),
        telemetry=lines(files, "raw/telemetry.jsonl", TelemetrySample),
        control=one(files, "raw/negative_control.json", ControlRecord),
        ceilings=parsed("raw/sweep.json", lambda: from_json(Ceilings, sweep["ceilings"])) if sweep else None,
        rows=parsed("raw/sweep.csv", lambda: from_csv(files["raw/sweep.csv"].decode())) if sweep else (),
        losses=one(files, "raw/losses.json", SameLosses),
        bench=one(files, "raw/bench.json", BenchResult),
        records=records,
    )


def parsed(name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives. Raises BundleInvalid with the file's name where it cannot be made."""
    try:
        return make()
    except (ValueError, KeyError, TypeError, KitError) as error:
        raise BundleInvalid(f"{name}: {error}", expected="a file as the kit writes it") from error

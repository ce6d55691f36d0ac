"""The same evidence for other people's tools: RO-Crate 1.1 (Process Run Crate 0.5) and JUnit XML.

Both are derived and decide nothing. JUnit has no word for INCONCLUSIVE: it becomes an
error, since a skipped test looks green.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kit.evidence.manifest import Entry
from kit.evidence.model import COMPLETE, Evidence
from kit.evidence.text import in_html, visible
from kit.records import Check, Outcome, dumps

_CONTEXT = [
    "https://w3id.org/ro/crate/1.1/context",
    {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"},
]
_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_TYPES = {
    "json": "application/json",
    "jsonl": "application/jsonl",
    "ipynb": "application/x-ipynb+json",
    "csv": "text/csv",
    "txt": "text/plain",
    "md": "text/markdown",
    "html": "text/html",
    "xml": "application/xml",
    "svg": "image/svg+xml",
    "png": "image/png",
}


def ro_crate(evidence: Evidence, entries: Iterable[Entry]) -> bytes:
    """ro-crate-metadata.json: every file that is there by then, and the run as a CreateAction."""
    files = [_file(entry) for entry in sorted(entries, key=lambda entry: entry.path)]
    parts = [{"@id": file["@id"]} for file in files]
    graph = [
        {
            "@id": "ro-crate-metadata.json",
            "@type": "CreativeWork",
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": f"GPU training evidence {evidence.run_id}",
            "description": visible(evidence.headline),
            "datePublished": evidence.ended_utc,
            "license": {"@id": "#license"},
            "conformsTo": {"@id": _PROFILE},
            "hasPart": parts,
            "mentions": {"@id": "#run"},
        },
        {"@id": _PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {
            "@id": "#license",
            "@type": "CreativeWork",
            "name": "No license given",
            "description": "The owner of this report decides who may use it and how.",
        },
        {
            "@id": "#kit",
            "@type": "SoftwareApplication",
            "name": "kit",
            "description": "Proves that PyTorch trains natively on an NVIDIA GPU.",
            "softwareVersion": evidence.kit_version,
        },
        _action(evidence, parts),
        *files,
    ]
    return (dumps({"@context": _CONTEXT, "@graph": graph}) + "\n").encode()


def _action(evidence: Evidence, parts: list[dict[str, str]]) -> dict[str, Any]:
    is_complete = evidence.state == COMPLETE
    action = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": f"kit report --device {evidence.device}",
        "description": f"Verdict {evidence.verdict.outcome}",
        "instrument": {"@id": "#kit"},
        "result": parts,
        "startTime": evidence.started_utc,
        "endTime": evidence.ended_utc,
        "actionStatus": f"http://schema.org/{'Completed' if is_complete else 'Failed'}ActionStatus",
    }
    if not is_complete:
        action["error"] = visible(next((run.error for run in evidence.notebooks if run.error), evidence.headline))
    return action


def _file(entry: Entry) -> dict[str, Any]:
    kind = _TYPES.get(entry.path.rpartition(".")[2], "text/plain")
    return {
        "@id": entry.path,
        "@type": "File",
        "name": entry.path.rpartition("/")[2],
        "encodingFormat": kind,
        "contentSize": str(entry.size),
        "sha256": entry.sha256,
    }


def junit(evidence: Evidence) -> bytes:
    """junit.xml: a test case for each check, and one for the verdict: a report without checks is red."""
    verdict = Check("kit.verdict", evidence.verdict.outcome, evidence.headline, "PASS, or REHEARSAL on a CPU")
    checks = [verdict, *evidence.verdict.checks]
    failures = sum(check.outcome in (Outcome.FAIL, Outcome.INVALID) for check in checks)
    errors = sum(check.outcome is Outcome.INCONCLUSIVE for check in checks)
    counts = f'tests="{len(checks)}" failures="{failures}" errors="{errors}" skipped="0"'
    cases = "".join(_case(check) for check in checks)
    suite = f"<testsuite name='{in_html(evidence.run_id)}' {counts}>\n{cases}</testsuite>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites>\n{suite}\n</testsuites>\n'.encode()


def _case(check: Check) -> str:
    names = f"classname='{in_html(check.claim)}' name='{in_html(check.id)}'"
    if check.outcome in (Outcome.PASS, Outcome.REHEARSAL):
        return f"<testcase {names}/>\n"
    tag = "error" if check.outcome is Outcome.INCONCLUSIVE else "failure"
    text = in_html(f"{check.found}\nExpected: {check.expected}\nTo do: {check.todo or 'nothing'}")
    about = f"type='{check.outcome}' message='{in_html(check.found)}'"
    return f"<testcase {names}><{tag} {about}>{text}</{tag}></testcase>\n"

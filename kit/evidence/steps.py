"""The steps of a verification, each over what the ones before it found.

A step returns what it found, None where it had nothing to do, or raises Stop with what is
wrong. `kit.evidence.verify` runs them and draws the conclusion.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kit import __version__
from kit.errors import BundleInvalid, KitError
from kit.evidence import notebook
from kit.evidence.limits import MAX_RAW_BYTES, check_json_size, check_line_sizes
from kit.evidence.manifest import (
    EVIDENCE,
    MANIFEST,
    SIGNATURE,
    STATE,
    Entry,
    build,
    is_allowed,
    is_text,
    missing,
)
from kit.evidence.model import COMPLETE, FAILED, INTERRUPTED, SCHEMA_VERSION, Evidence
from kit.evidence.plausible import differences, implausible, utc
from kit.evidence.render import derived
from kit.evidence.source import Source, open_source
from kit.evidence.verification import SignatureCheck
from kit.records import Outcome, from_json, to_json
from kit.units import memory

STEPS = {
    "readable": "a folder or zip of plain files within the limits",
    "manifest": "a manifest that this verifier can read",
    "files": "every required file, and none that does not belong",
    "hashes": "every file as it was written",
    "one_run": "one run id and nonce everywhere, times in order",
    "notebooks": "every notebook ran as its template says, cell by cell",
    "recomputed": "verdict, promises and numbers follow from facts/ and raw/",
    "plausible": "no number that physics or arithmetic forbids",
    "negative_control": "the detector turned red where it had to",
    "report": "README.md, index.html and the other reports say what the evidence says",
    "signature": "none, or one that holds",
}


class Stop(Exception):
    """Ends a step; the steps after it are skipped."""

    def __init__(self, found: str, todo: str = "", outcome: Outcome = Outcome.INVALID) -> None:
        super().__init__(found)
        self.found, self.todo, self.outcome = found, todo, outcome


@dataclasses.dataclass
class Subject:
    """A bundle under verification: how to ask, and what the steps found so far."""

    path: Path
    conclude: Callable[[Mapping[str, bytes]], Evidence]
    check_signature: Callable[[bytes, bytes | None], SignatureCheck | None] | None = None
    is_running: Callable[[Path], bool] | None = None
    now: datetime.datetime | None = None
    reviewer_nonce: str | None = None
    source: Source | None = None
    manifest: dict[str, Any] = dataclasses.field(default_factory=dict)
    evidence: Evidence | None = None
    raw: dict[str, bytes] = dataclasses.field(default_factory=dict)
    signature: SignatureCheck | None = None

    def step_readable(self) -> str:
        self.source = open_source(self.path)
        if not self.source:
            raise Stop("it is empty", "give the folder that holds manifest.json")
        return f"{self.source.where} of {len(self.source)} files, {memory(sum(self.source.sizes.values()))}"

    def step_manifest(self) -> str:
        if STATE in self.source:
            raise Stop(f"half-written: {self._running_state()}", "let the run end, or run `kit report` again")
        if MANIFEST not in self.source:
            raise Stop(
                "no manifest.json: this is not a bundle of the kit",
                "give a folder or zip that `kit report` wrote",
            )
        manifest = self._json(MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != "kit-evidence":
            raise Stop("manifest.json is not of the kit", "give a folder or zip that `kit report` wrote")
        if _version(manifest.get("schema_version")) > _version(SCHEMA_VERSION):
            raise Stop(
                f"schema {manifest.get('schema_version')}, newer than this verifier's {SCHEMA_VERSION}",
                "verify it with a newer kit",
                Outcome.INCONCLUSIVE,
            )
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise Stop(f"schema {manifest.get('schema_version')!r}, this verifier knows {SCHEMA_VERSION}")
        self.manifest = manifest
        return f"schema {SCHEMA_VERSION}, state {manifest.get('state')}"

    def step_files(self) -> str:
        names = set(self.source)
        listed = {row.get("path"): row for row in _rows(self.manifest)}
        extra = sorted(name for name in names - set(listed) if name not in (MANIFEST, SIGNATURE))
        foreign = sorted(name for name in names if not is_allowed(name))
        lost = sorted(str(name) for name in set(listed) - names)
        if EVIDENCE in names:
            self.evidence = from_json(Evidence, self._json(EVIDENCE))
            lost = sorted({*lost, *missing(names, self.evidence)})
        else:
            lost.append(EVIDENCE)
        problems = [_listed("missing", lost), _listed("not listed", extra), _listed("foreign", foreign)]
        if any(problems):
            self.evidence = None
            raise Stop("; ".join(problem for problem in problems if problem), "ask its author for the whole bundle")
        return f"{len(names)} files, as the {self.evidence.state} state requires"

    def step_hashes(self) -> str:
        changed, converted = [], []
        for row in _rows(self.manifest):
            name = row["path"]
            entry = self.source.entry(name)
            if (entry.size, entry.sha256) != (row.get("size"), row.get("sha256")):
                (converted if self._differs_by_line_ends(name, row) else changed).append(name)
        entries = [self.source.entry(name) for name in self.source if name not in (MANIFEST, SIGNATURE)]
        if not changed and not converted and build(entries, self.evidence) == self.source[MANIFEST]:
            return f"{len(entries)} files as written, root {self.manifest['root']}"
        self.evidence = None
        if not changed and (converted or b"\r\n" in self.source[MANIFEST]):
            texts = sum(is_text(name) for name in self.source)
            count = len(converted) + (b"\r\n" in self.source[MANIFEST])
            raise Stop(
                f"line ends changed: {count} of {texts} text files",
                "git or an unpacker turned LF into CRLF: copy it as binary (.gitattributes: * -text)",
            )
        raise Stop(_listed("changed", changed) or "manifest.json was changed", "ask its author for the original")

    def step_one_run(self) -> str:
        evidence, problems = self.evidence, []
        for name, data in self._raw_files().items():
            if name.endswith(".json"):
                value = self._json(name)
                must = {"raw/run.json": ("run_id", "nonce")}.get(
                    name, ("nonce",) if name.startswith("raw/records/") else ()
                )
                for key in ("run_id", "nonce"):
                    told = value.get(key) if isinstance(value, dict) else None
                    if (key in must or told is not None) and told != getattr(evidence, key):
                        problems.append(f"{name} has {key} {told!r}")
            elif name.endswith((".jsonl", ".csv")):
                try:
                    check_line_sizes(data)
                    check_json_size(data)
                except ValueError as error:
                    problems.append(f"{name}: {error}")
        if self.reviewer_nonce is not None and evidence.reviewer_nonce != self.reviewer_nonce:
            problems.append(f"the reviewer's nonce is {evidence.reviewer_nonce!r}")
        problems += list(self._time_problems())
        if problems:
            raise Stop(_listed("", problems), "parts of several runs, or a clock that was wrong: run it again")
        return f"run {evidence.run_id}, {evidence.started_utc} to {evidence.ended_utc}"

    def step_notebooks(self) -> str:
        problems = []
        for run in self.evidence.notebooks:
            name = f"notebooks/{run.name}.ipynb"
            if run.state != "ok" or name not in self.source:
                continue
            value = self._json(name)
            try:
                told = list(notebook.problems(value))
                if notebook.source_sha256(value) != run.template_sha256:
                    told.append("its cells are not those of the template that ran")
            except (AttributeError, TypeError, ValueError):
                told = ["it is not a notebook"]
            problems += [f"{name}: {problem}" for problem in told]
        if self.evidence.state == COMPLETE and not self.evidence.notebooks:
            problems.append("it names no notebook")
        if problems:
            raise Stop(_listed("", problems), "outputs do not belong to these cells: run it again")
        good = sum(run.state == "ok" for run in self.evidence.notebooks)
        return f"{good} of {len(self.evidence.notebooks)} notebooks ran to their end"

    def step_recomputed(self) -> str:
        if not self.evidence.verdict.checks or not self.evidence.promises:
            raise Stop("it has no check or no promise: nothing was shown")
        try:
            again = self.conclude(self._raw_files())
        except KitError:
            raise
        # The raw files are a stranger's: whatever arithmetic on them raises is no crash of ours.
        except Exception as error:  # noqa: BLE001
            raise Stop(f"nothing can be derived from raw/: {type(error).__name__}: {error}") from error
        differing = list(differences(to_json(self.evidence), to_json(again)))
        if differing:
            raise self._unless_another_kit(
                _listed("not what raw/ gives", differing), "the evidence was edited after the run"
            )
        state, outcome = self.evidence.state, self.evidence.verdict.outcome
        if state not in (COMPLETE, FAILED, INTERRUPTED) or (
            state != COMPLETE and outcome in (Outcome.PASS, Outcome.REHEARSAL)
        ):
            raise Stop(f"state {state} with verdict {outcome}")
        if state == COMPLETE and "raw/privacy.json" in self.source:
            raise Stop("private values were found in it, and it says COMPLETE")
        return f"{len(again.verdict.checks)} checks and {len(again.numbers)} numbers derived again"

    def step_plausible(self) -> str:
        problems = list(implausible(self.evidence))
        if problems:
            raise Stop(_listed("", problems), "a wrong clock or unit, or an edited file: run it again")
        return f"{len(self.evidence.numbers)} numbers within their limits"

    def step_negative_control(self) -> str | None:
        found = [check for check in self.evidence.verdict.checks if check.id.endswith(".negative_control")]
        must = self.evidence.state == COMPLETE and self.evidence.device != "cpu"
        if must and not (found and all(check.outcome is Outcome.PASS for check in found)):
            told = found[0].found if found else "not there"
            raise Stop(f"negative control: {told}", "do not trust this report")
        return found[0].found if found else None

    def step_report(self) -> str:
        # Hashes cover the bytes; this covers a page that was edited and hashed again.
        entries = {name: self.source.entry(name) for name in self.source}
        made = derived(self.evidence, self.source, entries)
        differing = sorted(name for name, data in made.items() if self.source.get(name) != data)
        if not differing:
            return f"{len(made)} files made again, byte for byte"
        raise self._unless_another_kit(
            _listed("does not follow from the evidence", differing), "read evidence.json only"
        )

    def step_signature(self) -> str | None:
        if not self.source or MANIFEST not in self.source:
            return None
        signature = self.source.get(SIGNATURE)
        if self.check_signature is not None:
            self.signature = self.check_signature(self.source[MANIFEST], signature)
        elif signature is not None:
            self.signature = SignatureCheck("not_checked", "Signed; the signature was not checked here")
        if self.signature is None or self.signature.state == "not_checked":
            return None
        if self.signature.state == "invalid":
            raise Stop(self.signature.sentence, "the manifest is not the one that was signed")
        if self.signature.state == "signer_unknown":
            raise Stop(
                self.signature.sentence,
                "ask the signer for the key, and trust it or not",
                Outcome.INCONCLUSIVE,
            )
        return self.signature.sentence

    # --- parts ---

    def _unless_another_kit(self, found: str, todo: str) -> Stop:
        """INVALID, but INCONCLUSIVE where a kit of another version made the bundle: words may differ."""
        version = self.evidence.kit_version
        if version == __version__:
            return Stop(found, todo)
        return Stop(
            f"made by kit {version}, this is {__version__}; {found}",
            f"verify with kit {version}",
            Outcome.INCONCLUSIVE,
        )

    def _json(self, name: str) -> Any:
        try:
            return self.source.json(name)
        except (ValueError, RecursionError) as error:
            raise Stop(f"{name} is not strict JSON: {error}", "ask its author for the original") from None

    def _raw_files(self) -> dict[str, bytes]:
        if not self.raw:
            names = [name for name in self.source if name.startswith(("facts/", "raw/"))]
            if sum(self.source.sizes[name] for name in names) > MAX_RAW_BYTES:
                raise BundleInvalid(f"facts/ and raw/ have more than {memory(MAX_RAW_BYTES)}")
            self.raw = {name: self.source[name] for name in names}
        return self.raw

    def _running_state(self) -> str:
        is_running = self.is_running is not None and self.is_running(self.path)
        return "RUNNING, a run is writing it" if is_running else "ABANDONED, its run was stopped before the end"

    def _differs_by_line_ends(self, name: str, row: Mapping[str, Any]) -> bool:
        if not is_text(name):
            return False
        data = self.source[name].replace(b"\r\n", b"\n")
        return dataclasses.asdict(Entry.of(name, data)) == dict(row)

    def _time_problems(self) -> Iterator[str]:
        begin, end = utc(self.evidence.started_utc), utc(self.evidence.ended_utc)
        if begin is None or end is None:
            yield "a time that is not ISO 8601 in UTC"
            return
        if end < begin:
            yield "it ended before it began"
        if self.now is not None and end > self.now + datetime.timedelta(days=1):
            yield f"it ends in the future, {self.evidence.ended_utc}"


def _rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = manifest.get("files")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("path"), str) for row in rows
    ):
        raise Stop("manifest.json has no list of files")
    return rows


def _listed(word: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return (f"{word}: " if word else "") + "; ".join(str(item)[:300] for item in items[:5]) + more


def _version(text_: Any) -> tuple[int, int]:
    """(major, minor); a version that cannot be read is older than every other."""
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", text_) if isinstance(text_, str) else None
    return (int(found[1]), int(found[2])) if found else (-1, -1)

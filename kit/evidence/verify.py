"""Checks a bundle that came from a stranger, with the standard library, offline.

Nothing from the bundle is run, imported, unpickled or extracted. Two questions stay apart:
is this bundle whole and does it follow from its own raw files (integrity), and what does
it then say (its verdict)? What a broken step makes pointless is shown as skipped.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kit import __version__
from kit.errors import BundleInvalid, KitError, UsageError
from kit.evidence import notebook
from kit.evidence.contents import COMPLETE, FAILED, INTERRUPTED, SCHEMA_VERSION, Evidence
from kit.evidence.manifest import (
    EVIDENCE,
    MANIFEST,
    MAX_RAW_BYTES,
    SIGNATURE,
    STATE,
    Entry,
    build,
    check_json_size,
    check_line_sizes,
    is_allowed,
    is_text,
    missing,
)
from kit.evidence.render import derived
from kit.evidence.source import Source, open_source
from kit.records import Check, Outcome, Verdict, from_json, to_json, worst
from kit.show import visible
from kit.units import memory

# What a verification found, as values and as the table that `kit verify` prints.


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


# Where told evidence differs from derived evidence, and numbers that cannot be true.

RELATIVE_TOLERANCE = 1e-9
# A datasheet's peak is at the boost clock; cards that clock higher exceed it (an RTX 5090 reaches 224 of 209.5 TFLOP/s
# in bfloat16, main-horse.github.io/posts/5090-mm-perf).
PEAK_TOLERANCE = 1.15


def differences(told: Any, derived_again: Any, where: str = "") -> Iterator[str]:
    """Places where two JSON values differ; numbers may differ by rounding."""
    if isinstance(told, dict) and isinstance(derived_again, dict):
        for key in sorted({*told, *derived_again}):
            yield from differences(told.get(key), derived_again.get(key), f"{where}.{key}" if where else key)
    elif isinstance(told, list) and isinstance(derived_again, list) and len(told) == len(derived_again):
        for index, (one, other) in enumerate(zip(told, derived_again, strict=True)):
            name = one.get("id") or one.get("name") if isinstance(one, dict) else None
            yield from differences(one, other, f"{where}[{name or index}]")
    elif _is_number(told) and _is_number(derived_again):
        if not math.isclose(told, derived_again, rel_tol=RELATIVE_TOLERANCE):
            yield f"{where}: {told}, raw/ gives {derived_again}"
    elif told != derived_again or type(told) is not type(derived_again):
        yield f"{where}: {str(told)[:60]!r}, raw/ gives {str(derived_again)[:60]!r}"


def implausible(evidence: Evidence) -> Iterator[str]:
    """Numbers by name: nothing negative, no share over 1, no rate over the peak, rates that agree."""
    value = {number.name: number.value for number in evidence.numbers if number.value is not None}
    for number in evidence.numbers:
        if number.value is None:
            if not number.reason:
                yield f"{number.name} is unknown without a reason"
            continue
        if not number.name.endswith("_loss") and number.value < 0:
            yield f"{number.name} is negative"
        if re.search(r"(^|_)(mfu|share)(_|$)", number.name) and number.value > 1:
            yield f"{number.name} is {number.value:.3g}, over 1"
        if number.low is not None and number.high is not None and number.low > number.high:
            yield f"{number.name}: its spread is upside down"
        dtype = re.fullmatch(r"(?:matmul|model)_(\w+)_flop_per_s", number.name)
        peak = value.get(f"peak_{dtype[1]}_flop_per_s") if dtype else None
        if peak is not None and number.value > PEAK_TOLERANCE * peak:
            yield f"{number.name} is {number.value:.4g}, the card's peak is {peak:.4g}"
    samples, first = value.get("samples"), value.get("smoke_samples_per_s")
    begin, end = utc(evidence.started_utc), utc(evidence.ended_utc)
    if samples and first and begin and end and samples / first > (end - begin).total_seconds() + 1:
        yield f"{samples} samples at {first:.3g} samples/s take longer than the run lasted"


def utc(told: str) -> datetime.datetime | None:
    try:
        moment = datetime.datetime.fromisoformat(told)
    except ValueError:
        return None
    return moment if moment.utcoffset() == datetime.timedelta(0) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# The steps of a verification, each over what the ones before it found.
#
# A step returns what it found, None where it had nothing to do, or raises Stop with what is
# wrong. `kit.evidence.verify` runs them and draws the conclusion.

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

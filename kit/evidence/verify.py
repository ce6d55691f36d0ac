"""Checks a bundle that came from a stranger, with the standard library, offline.

Nothing from the bundle is run, imported, unpickled or extracted. Two questions stay apart:
is this bundle whole and does it follow from its own raw files (integrity), and what does
it then say (its verdict)? A rule that stops leaves the ones after it not reached.
"""

import dataclasses
import datetime
import functools
import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kit import __version__
from kit.errors import BundleInvalid, KitError, UsageError
from kit.evidence import notebook
from kit.evidence.contents import COMPLETE, FAILED, INTERRUPTED, SCHEMA_VERSION, Evidence, run_nonce, utc
from kit.evidence.manifest import (
    EVIDENCE,
    MANIFEST,
    MAX_LINES_PARTS,
    MAX_RAW_BYTES,
    PRIVACY,
    SIGNATURE,
    Entry,
    build,
    check_json_size,
    check_line_sizes,
    is_allowed,
    is_text,
    missing,
)
from kit.evidence.render import derived
from kit.evidence.source import Source, kit_sha256, open_source
from kit.records import Check, Outcome, from_json, to_json, worst
from kit.rules import Answer, Rules, say
from kit.show import visible
from kit.units import memory, pair

RELATIVE_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Verification:
    """outcome: the worse of `integrity` and of what the bundle itself reports; worth: what to think of it.

    evidence: what it says, and reported: its verdict; None where it is not as it was written.
    """

    outcome: Outcome
    integrity: Outcome
    reported: Outcome | None
    checks: tuple[Check, ...]
    worth: str
    evidence: Evidence | None

    @property
    def exit_code(self) -> int:
        return self.outcome.exit_code


def verify(
    path: Path,
    *,
    check_signature: Callable[[bytes, bytes | None], Answer | None] | None = None,
    now: datetime.datetime | None = None,
    reviewer_nonce: str | None = None,
) -> Verification:
    """What a bundle is worth. Raises UsageError where `path` does not exist, and nothing else.

    check_signature: (manifest, signature or None) -> Answer or None, as `kit.evidence.sign` makes one. now: today, for the age; without it the age is not told.
    reviewer_nonce: what the report must carry.
    """
    return _verified(path, check_signature, now, reviewer_nonce)[0]


def load(path: Path) -> tuple[Evidence, dict[str, bytes]]:
    """Evidence and raw files of a bundle to compare. Raises BundleInvalid where it does not verify."""
    found, subject = _verified(path)
    if found.integrity is not Outcome.PASS:
        first = next(check for check in found.checks if check.required and check.outcome is not Outcome.PASS)
        raise BundleInvalid(f"{path}: {first.found}", expected="a bundle that verifies", todo=f"run kit verify {path}")
    return subject.evidence, dict(subject.raw)


def text(verification: Verification) -> str:
    """The table that `kit verify` prints."""
    lines = []
    for check in verification.checks:
        lines.append(f"{check.outcome:13} {check.id.partition('.')[2]:12} {visible(check.found, keep='')}")
        lines += [f"{'':26} To do: {visible(check.todo, keep='')}"] if check.todo else []
    lines.append("")
    if evidence := verification.evidence:
        lines.append(f"Bundle {evidence.run_id}: {visible(evidence.headline, keep='')}")
        lines.append(f"It says {verification.reported}; its integrity is {verification.integrity}.")
    return visible("\n".join([*lines, verification.worth, f"Verdict: {verification.outcome}"]))


class Subject:
    """A bundle under verification: how it is asked, and its parts, each read once and only when a rule asks."""

    def __init__(
        self,
        path: Path,
        check_signature: Callable[[bytes, bytes | None], Answer | None] | None = None,
        now: datetime.datetime | None = None,
        reviewer_nonce: str | None = None,
    ) -> None:
        self.path, self.check_signature, self.now, self.reviewer_nonce = path, check_signature, now, reviewer_nonce

    @functools.cached_property
    def source(self) -> Source:
        return open_source(self.path)

    @functools.cached_property
    def manifest(self) -> Any:
        return self.json(MANIFEST)

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        rows = self.manifest.get("files")
        if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("path"), str) for r in rows):
            raise BundleInvalid("manifest.json has no list of files")
        return rows

    @functools.cached_property
    def evidence(self) -> Evidence:
        return from_json(Evidence, self.json(EVIDENCE))

    @functools.cached_property
    def raw(self) -> dict[str, bytes]:
        names = [name for name in self.source if name.startswith(("facts/", "raw/"))]
        if sum(self.source.sizes[name] for name in names) > MAX_RAW_BYTES:
            raise BundleInvalid(f"facts/ and raw/ have more than {memory(MAX_RAW_BYTES)}")
        return {name: self.source[name] for name in names}

    @functools.cached_property
    def notebooks(self) -> dict[str, Any]:
        """The executed notebooks of the runs that went well, by the run's name."""
        names = {run.name: f"notebooks/{run.name}.ipynb" for run in self.evidence.notebooks if run.state == "ok"}
        return {run: self.json(name) for run, name in names.items() if name in self.source}

    @functools.cached_property
    def signature(self) -> Answer | None:
        signature = self.source.get(SIGNATURE)
        if self.check_signature is not None:
            return self.check_signature(self.source[MANIFEST], signature)
        return say(None, "Signed; the signature was not checked here", required=False) if signature else None

    @property
    def is_ours(self) -> bool:
        """Whether a kit of this version made it, so that words and pages must be the same too."""
        return self.evidence.kit_version == __version__

    def json(self, name: str) -> Any:
        try:
            return self.source.json(name)
        except (ValueError, RecursionError) as error:
            raise BundleInvalid(f"{name} is not strict JSON: {error}", todo="ask its author for the original") from None


BUNDLE = Rules("bundle")
MIXED = "parts of several runs, or an edited file: run it again"


def _rule(name: str, expected: str, todo: str = "", **words: Any) -> Callable:
    """A rule of `BUNDLE`: what is red here is INVALID."""

    def add(ask: Callable[[Subject], Answer | None]) -> Callable[[Subject], Answer | None]:
        guarded = functools.partial(_guarded, ask)
        return BUNDLE.rule(f"bundle.{name}", expected, todo=todo, red=Outcome.INVALID, **words)(guarded)

    return add


def _guarded(ask: Callable[[Subject], Answer | None], subject: Subject) -> Answer | None:
    """What a stranger's file makes of being read is an answer, and no crash of ours."""
    try:
        return ask(subject)
    except KitError as error:
        todo = error.todo.replace("{", "{{").replace("}", "}}")
        return say(False, error.found, todo=todo) if todo else say(False, error.found)
    except Exception as error:  # noqa: BLE001
        return say(False, f"cannot be read: {type(error).__name__}: {error}")


def _problems(problems: list[str], good: str) -> Answer:
    return say(not problems, _listed(problems) if problems else good)


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return "; ".join(str(item)[:300] for item in items[:5]) + more


@_rule("readable", "a folder, zip or tar.gz of plain files within the limits", stops=True)
def readable(subject: Subject) -> Answer:
    source = subject.source
    if not source:
        return say(False, "it is empty", todo="give the folder that holds manifest.json")
    aside = f"; {source.aside} files of the file manager left aside" if source.aside else ""
    return say(True, f"{source.where} of {len(source)} files, {memory(sum(source.sizes.values()))}{aside}")


@_rule(
    "manifest",
    "a manifest that this verifier can read",
    todo="give a folder or zip that `kit report` wrote",
    stops=True,
)
def manifest_known(subject: Subject) -> Answer:
    if MANIFEST not in subject.source:
        if "raw/run.json" not in subject.source:
            return say(False, "no manifest.json: this is not a bundle of the kit")
        todo = "let the run end; where it was stopped, `kit report --close FOLDER` finishes it"
        return say(False, "half-written: its run has not ended, or was stopped before it could", todo=todo)
    manifest = subject.manifest
    if not isinstance(manifest, dict) or manifest.get("format") != "kit-evidence":
        return say(False, "manifest.json is not of the kit")
    told = str(manifest.get("schema_version"))
    if told == SCHEMA_VERSION:
        return say(True, f"schema {SCHEMA_VERSION}, state {manifest.get('state')}")
    if not re.fullmatch(r"\d{1,4}\.\d{1,4}", told):
        return say(False, f"schema {told[:50]!r}, this verifier knows {SCHEMA_VERSION}")
    is_newer = (pair(told) or (0, 0)) > (pair(SCHEMA_VERSION) or (0, 0))
    age, kit = ("newer", "a newer kit") if is_newer else ("older", "the kit that made it")
    return say(None, f"schema {told}, {age} than this verifier's {SCHEMA_VERSION}", settle=f"verify it with {kit}")


@_rule(
    "files",
    "every required file, and none that does not belong",
    todo="ask its author for the whole bundle",
    stops=True,
)
def files_whole(subject: Subject) -> Answer:
    names, listed = set(subject.source), {row["path"] for row in subject.rows}
    lost = {str(name) for name in listed - names} | {EVIDENCE} - names
    lost |= set(missing(names, subject.evidence)) if EVIDENCE in names else set()
    problems = {
        "missing": lost,
        "not listed": names - listed - {MANIFEST, SIGNATURE},
        "foreign": {name for name in names if not is_allowed(name)},
    }
    told = [f"{word}: {_listed(sorted(found))}" for word, found in problems.items() if found]
    return _problems(told, f"{len(names)} files")


@_rule("hashes", "every file as it was written", todo="ask its author for the original", stops=True)
def hashes(subject: Subject) -> Answer:
    source = subject.source
    odd = [row for row in subject.rows if vars(source.entry(row["path"])) != row]
    changed = [row["path"] for row in odd if not _differs_by_line_ends(source, row)]
    entries = [source.entry(name) for name in source if name not in (MANIFEST, SIGNATURE)]
    if not odd and build(entries, subject.evidence) == source[MANIFEST]:
        return say(True, f"{len(entries)} files as written, root {subject.manifest['root']}")
    count = len(odd) + (b"\r\n" in source[MANIFEST])
    if count and not changed:
        todo = "git or an unpacker turned LF into CRLF: copy it as binary (.gitattributes: * -text)"
        return say(False, f"line ends changed: {count} of {sum(map(is_text, source))} text files", todo=todo)
    return say(False, f"changed: {_listed(changed)}" if changed else "manifest.json was changed")


def _differs_by_line_ends(source: Source, row: Mapping[str, Any]) -> bool:
    name = row["path"]
    return is_text(name) and vars(Entry.of(name, source[name].replace(b"\r\n", b"\n"))) == row


@_rule("one_run", "one run id and nonce everywhere, and the challenge that was asked for", todo=MIXED)
def one_run(subject: Subject) -> Answer:
    evidence, source, problems = subject.evidence, subject.source, []
    for name in subject.raw:
        told = subject.json(name) if name.endswith(".json") else {}
        for key in ("run_id", "nonce") if isinstance(told, dict) else ():
            # Where a file need not name its run, it may say nothing.
            is_due = name == "raw/run.json" or (key == "nonce" and name.startswith("raw/records/"))
            if (is_due or told.get(key) not in (None, "")) and told.get(key) != getattr(evidence, key):
                problems.append(f"{name} has {key} {told.get(key)!r}")
        if not name.endswith(".json"):
            try:
                check_line_sizes(subject.raw[name])
                check_json_size(subject.raw[name], MAX_LINES_PARTS)
            except ValueError as error:
                problems.append(f"{name}: {error}")
    given = {run: notebook.injected(value, "nonce") for run, value in subject.notebooks.items()}
    problems += [f"notebooks/{n}.ipynb was given nonce {told!r}" for n, told in given.items() if told != evidence.nonce]
    for name in source:
        found = re.search(rb"<dc:identifier>([^<]{0,99})<", source[name]) if name.endswith(".svg") else None
        problems += [f"{name} is of another run"] if found and found[1] != evidence.nonce.encode() else []
    if subject.reviewer_nonce is not None and evidence.reviewer_nonce != subject.reviewer_nonce:
        problems.append(f"the reviewer's nonce is {evidence.reviewer_nonce!r}")
    if evidence.nonce != run_nonce(evidence.nonce[:20], evidence.reviewer_nonce):
        problems.append("its nonce does not follow from the reviewer's: the run was over when this one was given")
    end = utc(evidence.ended_utc)
    if end and subject.now and end > subject.now + datetime.timedelta(days=1):
        problems.append(f"it ends in the future, {evidence.ended_utc}")
    return _problems(problems, f"run {evidence.run_id}, {evidence.started_utc} to {evidence.ended_utc}")


@_rule(
    "notebooks", "every notebook ran as its template says, cell by cell", todo="outputs do not belong to these cells"
)
def notebooks_ran(subject: Subject) -> Answer:
    runs, problems = subject.evidence.notebooks, []
    for run in runs:
        value, told = subject.notebooks.get(run.name), []
        try:
            if value is not None:
                told = list(notebook.problems(value))
                is_same = notebook.source_sha256(value) == run.template_sha256
                told += [] if is_same else ["its cells are not those of the template that ran"]
        except (AttributeError, TypeError, ValueError):
            told = ["it is not a notebook"]
        problems += [f"notebooks/{run.name}.ipynb: {problem}" for problem in told]
    if subject.evidence.state == COMPLETE and not runs:
        problems.append("it names no notebook")
    return _problems(problems, f"{sum(run.state == 'ok' for run in runs)} of {len(runs)} notebooks ran to their end")


@_rule("recomputed", "verdict, promises and numbers follow from facts/ and raw/", todo="it was edited after the run")
def recomputed(subject: Subject) -> Answer:
    told = subject.evidence
    if not told.verdict.checks or not told.promises:
        return say(False, "it has no check or no promise: nothing was shown", todo="")
    # Looked up when it is needed, so that a folder that is no bundle costs no import.
    again = importlib.import_module("kit.evidence.conclude").conclude(subject.raw)
    differing = list(differences(*map(to_json if subject.is_ours else _said, (told, again))))
    if differing:
        return say(False, f"not what raw/ gives: {_listed(differing)}")
    outcome = told.verdict.outcome
    is_good = outcome in (Outcome.PASS, Outcome.REHEARSAL)
    if told.state not in (COMPLETE, FAILED, INTERRUPTED) or (told.state != COMPLETE and is_good):
        return say(False, f"state {told.state} with verdict {outcome}")
    if told.state == COMPLETE and PRIVACY in subject.source:
        return say(False, "private values were found in it, and it says COMPLETE")
    words = "" if subject.is_ours else f"; made by kit {told.kit_version}, so words were not compared"
    return say(True, f"{len(again.verdict.checks)} checks and {len(again.numbers)} numbers derived again{words}")


def _said(evidence: Evidence) -> dict[str, Any]:
    """What two versions of the kit have to agree on: the facts, the values and the verdicts."""
    words, verdict = ("system", "promises", "claims", "headline", "limits"), evidence.verdict
    checks = {check.id: check.outcome.value for check in verdict.checks}
    return {name: told for name, told in to_json(evidence).items() if name not in words} | {
        "numbers": {number.name: number.value for number in evidence.numbers},
        "verdict": {"outcome": verdict.outcome.value, "diagnosis": verdict.diagnosis, "checks": checks},
    }


def differences(told: Any, derived_again: Any, where: str = "") -> Iterator[str]:
    """Places where two JSON values differ; numbers may differ by rounding."""
    kind = type(told) if type(told) is type(derived_again) else None
    if kind is dict:
        for key in sorted({*told, *derived_again}):
            yield from differences(told.get(key), derived_again.get(key), f"{where}.{key}" if where else key)
    elif kind is list and len(told) == len(derived_again):
        for index, (one, other) in enumerate(zip(told, derived_again, strict=True)):
            name = one.get("id") or one.get("name") if isinstance(one, dict) else None
            yield from differences(one, other, f"{where}[{name or index}]")
    elif {type(told), type(derived_again)} <= {int, float}:
        if not math.isclose(told, derived_again, rel_tol=RELATIVE_TOLERANCE):
            yield f"{where}: {told}, raw/ gives {derived_again}"
    elif kind is None or told != derived_again:
        yield f"{where}: {str(told)[:60]!r}, raw/ gives {str(derived_again)[:60]!r}"


@_rule("captures", "what other programs printed agrees with the facts", todo=MIXED)
def captures(subject: Subject) -> Answer | None:
    """torch's version and the driver's cards, as pip's torch and nvidia-smi tell them beside the notebooks."""
    if "facts/begin.json" not in subject.raw:
        return None
    facts, problems, seen = subject.json("facts/begin.json"), [], 0
    torch, driver = facts.get("torch") or {}, facts.get("driver") or {}
    names = {gpu["name"] for side in (torch, driver) for gpu in side.get("gpus", ())}
    for name, pattern, expected in (
        ("torch_version.txt", r"^torch (\S+)$", {torch.get("version")}),
        ("env_info.txt", r"^PyTorch version: (\S+)$", {torch.get("version"), "N/A"}),
        ("nvidia_smi.txt", r"^\d+, ([^,\n]+), [\d.]+, ", names),
        ("nvidia_smi.txt", r"^\d+, [^,\n]+, ([\d.]+), ", {driver.get("version")}),
    ):
        told = set(re.findall(pattern, subject.source.get(name, b"").decode("utf-8", "replace"), re.MULTILINE))
        seen += len(told)
        # What the facts do not know cannot contradict.
        if odd := told - expected if expected - {None} else None:
            known = _listed(sorted(map(str, expected)))
            problems += [f"{name} says {one}, facts/begin.json {known}" for one in odd]
    return _problems(problems, f"{seen} names and versions agree")


@_rule("shown", "what the notebooks show is what the evidence says, figure by figure and check by check", todo=MIXED)
def shown(subject: Subject) -> Answer | None:
    if subject.evidence.state != COMPLETE:
        return None
    pictures = set().union(*map(notebook.pictures, subject.notebooks.values()))
    said = [told for value in subject.notebooks.values() for told in notebook.printed(value)]
    names = [name for name in subject.source if name.startswith("figures/") and name.endswith(".png")]
    problems = [f"{name} is in no notebook" for name in names if subject.source[name] not in pictures]
    printed = {found for told in said for found in re.findall(r"\b[A-Z]+ +([a-z]+\.[a-z_]+) ", told)}
    # Lines are wrapped where they are long, at spaces and hyphens.
    said = ["".join(told.split()) for told in said]
    for check in subject.evidence.verdict.checks if subject.is_ours else ():
        line = f"{check.outcome} {check.id} {check.found}"
        if check.id in printed and not any("".join(line.split()) in told for told in said):
            problems.append(f"no notebook printed {line[:120]!r}")
    return _problems(problems, f"{len(pictures)} pictures and {len(printed)} checks")


@_rule(
    "report", "README.md, index.html and the other reports say what the evidence says", todo="read evidence.json only"
)
def report(subject: Subject) -> Answer:
    """Hashes cover the bytes; this covers a page that was edited and hashed again."""
    source, version = subject.source, subject.evidence.kit_version
    if not subject.is_ours:
        found = f"made by kit {version}, this is {__version__}: its pages were not compared"
        return say(True, f"{found}, so believe what stands here")
    made = derived(subject.evidence, source, {name: source.entry(name) for name in source})
    differing = sorted(name for name, data in made.items() if source.get(name) != data)
    good = f"{len(made)} files made again, byte for byte"
    return say(not differing, f"does not follow from the evidence: {_listed(differing)}" if differing else good)


@_rule(
    "signature",
    "a signature that holds, by who has to have signed",
    todo="the manifest is not the one that was signed",
    settle="ask the signer for the key, and trust it or not",
)
def signature(subject: Subject) -> Answer | None:
    return subject.signature


def _verified(path: Path, *how: Any) -> tuple[Verification, Subject]:
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist", expected="the folder or zip of a report", todo="check the path")
    # A link that the reader made and named; what it leads to is looked at as strictly as before.
    subject = Subject(path.resolve(), *how)
    try:
        checks = BUNDLE.checks(subject)
        integrity = worst(check.outcome for check in checks if check.required)
        is_whole = any(check.id == "bundle.hashes" and check.outcome is Outcome.PASS for check in checks)
        evidence = subject.evidence if is_whole else None
        reported = evidence.verdict.outcome if evidence else None
        worth = _worth(subject, evidence, integrity)
        both = integrity if reported is None else worst((integrity, reported))
        return Verification(both, integrity, reported, checks, worth, evidence), subject
    finally:
        if "source" in vars(subject):
            subject.source.close()


def _worth(subject: Subject, evidence: Evidence | None, integrity: Outcome) -> str:
    if integrity is Outcome.INVALID or evidence is None:
        return "It is worth nothing as evidence." if integrity is Outcome.INVALID else "It could not be judged."
    unsigned = "Unsigned: it shows accidents and casual edits; whoever made it could have made all of it up"
    code, end = evidence.code, utc(evidence.ended_utc)
    commit = f", commit {str(code['commit'])[:12]}" if code.get("commit") else ""
    others = f"Other sources than this kit's made it ({str(code.get('source_sha256'))[:12]}{commit})"
    is_same = code.get("source_sha256") == kit_sha256()
    parts = (
        subject.signature.found if subject.signature else unsigned,
        f"Made {max(0, (subject.now - end).days)} days ago" if subject.now and end else "",
        "The very sources of this kit made it" if is_same else others,
        "The kit that made it had uncommitted changes" if code.get("is_dirty") else "",
        "It answers the reviewer's nonce: the steps that were watched were drawn from it" if subject.reviewer_nonce else "",
    )  # fmt: skip
    return visible(". ".join(filter(None, parts)) + ".", keep="")

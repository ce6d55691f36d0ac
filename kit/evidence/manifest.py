"""What a bundle holds: the files that may enter, the ones that must, and their hashes.

The manifest is a pure function of the evidence and the files, so a verifier builds it
again and compares bytes; what must be present comes from here, never from the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator

from kit.evidence.contents import COMPLETE, Evidence
from kit.records import dumps
from kit.units import MiB, memory

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
SUMS = "SHA256SUMS"
EVIDENCE = "evidence.json"

CAPTURES = ("env_info.txt", "torch_version.txt", "cuda_check.txt", "nvidia_smi.txt", "training_log.txt")
TEXT_SUFFIXES = (".txt", ".md", ".json", ".jsonl", ".csv", ".html", ".svg", ".ipynb", SUMS)

_DERIVED = (
    "README.md",
    "index.html",
    "training_log.txt",
    EVIDENCE,
    "ro-crate-metadata.json",
    SUMS,
    MANIFEST,
    SIGNATURE,
)
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_ALLOWED = re.compile(
    rf"README\.md|index\.html|evidence\.json|ro-crate-metadata\.json"
    rf"|{'|'.join(map(re.escape, CAPTURES))}|{SUMS}|manifest\.json(\.sig)?|facts/(begin|end)\.json"
    rf"|raw/({_NAME}/)?{_NAME}\.(json|jsonl|csv)|figures/{_NAME}\.(png|svg)|notebooks/{_NAME}\.(ipynb|html)"
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file: its path with forward slashes, size in bytes, SHA-256 of its bytes as written."""

    path: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, data: bytes) -> Entry:
        return cls(path, len(data), hashlib.sha256(data).hexdigest())


def is_allowed(path: str) -> bool:
    """Whether a file of this name may stand in a bundle."""
    return _ALLOWED.fullmatch(path) is not None and ".." not in path


def is_derived(path: str) -> bool:
    """Whether the file follows from facts/, raw/, figures/, captures and executed notebooks."""
    return path in _DERIVED or (path.startswith("notebooks/") and path.endswith(".html"))


def is_text(path: str) -> bool:
    return path.endswith(TEXT_SUFFIXES)


def missing(names: Iterable[str], evidence: Evidence) -> tuple[str, ...]:
    """The required files that are not among `names`, for the state and device that `evidence` tells."""
    return tuple(sorted(set(_required(evidence)) - set(names)))


def _required(evidence: Evidence) -> Iterator[str]:
    yield from ("README.md", "index.html", EVIDENCE, "ro-crate-metadata.json", "raw/run.json")
    if evidence.state != COMPLETE:
        return
    yield from (*CAPTURES, "facts/begin.json", "facts/end.json", "raw/training.json", "raw/steps.jsonl")
    if evidence.device != "cpu":
        yield from ("raw/telemetry.jsonl", "raw/negative_control.json")
    for run in evidence.notebooks:
        yield from (
            f"notebooks/{run.name}.ipynb",
            f"notebooks/{run.name}.html",
            f"raw/records/{run.name}.json",
        )


def sums(entries: Iterable[Entry]) -> bytes:
    """SHA256SUMS for `sha256sum -c`: every file but itself, the manifest and the signature."""
    left_out = (SUMS, MANIFEST, SIGNATURE)
    rows = sorted((entry.path, entry.sha256) for entry in entries if entry.path not in left_out)
    return "".join(f"{sha256}  {path}\n" for path, sha256 in rows).encode()


def build(entries: Iterable[Entry], evidence: Evidence) -> bytes:
    """The bytes of manifest.json: every file but itself and its signature, and one root hash over them."""
    rows = sorted((e for e in entries if e.path not in (MANIFEST, SIGNATURE)), key=lambda entry: entry.path)
    content = {
        "format": "kit-evidence",
        "schema_version": evidence.schema_version,
        "run_id": evidence.run_id,
        "nonce": evidence.nonce,
        "state": evidence.state,
        "root": root(rows),
        "files": rows,
    }
    return (dumps(content) + "\n").encode()


def root(entries: Iterable[Entry]) -> str:
    """One SHA-256 over the lines 'sha256  size  path', sorted by path: it stands for the bundle."""
    lines = sorted(f"{entry.path}\0{entry.sha256}  {entry.size}  {entry.path}\n" for entry in entries)
    return hashlib.sha256("".join(line.partition("\0")[2] for line in lines).encode()).hexdigest()


# How large a bundle may be that is not ours: reading it must cost little whatever somebody wrote into it.

MAX_FILES = 2_000


MAX_FILE_BYTES = 32 * MiB


MAX_TOTAL_BYTES = 256 * MiB


# What may be parsed: bytes in one line; in one file commas, colons and brackets, which
# bound the number of Python objects (about 100 bytes each) that a parser makes.
MAX_LINE_BYTES = 1 * MiB


MAX_JSON_PARTS = 1_000_000
# A file of lines holds the steps of a long run: at 35 values a step, 85,000 of them.
MAX_LINES_PARTS = 3_000_000


# facts/ and raw/ together, which are held in memory.
MAX_RAW_BYTES = 64 * MiB


def check_json_size(data: bytes, limit: int = MAX_JSON_PARTS) -> None:
    """Raises ValueError where parsing `data` would cost more than the limits allow."""
    if sum(data.count(mark) for mark in (b",", b":", b"[", b"{")) > limit:
        raise ValueError(f"more than {limit:,} JSON values")


def check_line_sizes(data: bytes) -> None:
    """Raises ValueError where a line is over the limit or the last one was cut."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        if end < 0:
            raise ValueError("the last line was cut")
        if end - start > MAX_LINE_BYTES:
            raise ValueError(f"a line of {memory(end - start)}, over {memory(MAX_LINE_BYTES)}")
        start = end + 1

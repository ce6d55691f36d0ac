"""What a bundle holds: the files that may enter, the ones that must, and their hashes.

The manifest is a pure function of the evidence and the files, so a verifier builds it
again and compares bytes; what must be present comes from here, never from the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable

from kit.evidence.contents import COMPLETE, Evidence
from kit.records import dumps
from kit.units import MiB, memory

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
SUMS = "SHA256SUMS"
EVIDENCE = "evidence.json"
PRIVACY = "raw/privacy.json"

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
    required = {"README.md", "index.html", EVIDENCE, "ro-crate-metadata.json", "raw/run.json"}
    if evidence.state == COMPLETE:
        required |= {*CAPTURES, "facts/begin.json", "facts/end.json", "raw/training.json", "raw/steps.jsonl"}
        required |= {"raw/telemetry.jsonl", "raw/negative_control.json"} if evidence.device != "cpu" else set()
        for run in evidence.notebooks:
            required |= {f"notebooks/{run.name}.{kind}" for kind in ("ipynb", "html")} | {
                f"raw/records/{run.name}.json"
            }
    return tuple(sorted(required - set(names)))


def sums(entries: Iterable[Entry], _: Evidence) -> bytes:
    """SHA256SUMS for `sha256sum -c`: every file but itself, the manifest and the signature."""
    rows = sorted((e.path, e.sha256) for e in entries if e.path not in (SUMS, MANIFEST, SIGNATURE))
    return "".join(f"{sha256}  {path}\n" for path, sha256 in rows).encode()


def build(entries: Iterable[Entry], evidence: Evidence) -> bytes:
    """The bytes of manifest.json: every file but itself and its signature, and one root hash over them."""
    rows = sorted((e for e in entries if e.path not in (MANIFEST, SIGNATURE)), key=lambda entry: entry.path)
    told = {name: getattr(evidence, name) for name in ("schema_version", "run_id", "nonce", "state")}
    return (dumps({"format": "kit-evidence", **told, "root": root(rows), "files": rows}) + "\n").encode()


def root(entries: Iterable[Entry]) -> str:
    """One SHA-256 over the lines 'sha256  size  path', sorted by path: it stands for the bundle."""
    rows = sorted((entry.path, entry.sha256, entry.size) for entry in entries)
    return hashlib.sha256("".join(f"{sha256}  {size}  {path}\n" for path, sha256, size in rows).encode()).hexdigest()


# How large a bundle may be that is not ours: reading it must cost little whatever somebody wrote into it.
MAX_FILES = 2_000
MAX_FILE_BYTES = 32 * MiB
MAX_TOTAL_BYTES = 256 * MiB
# facts/ and raw/ together, which are held in memory.
MAX_RAW_BYTES = 64 * MiB
# What may be parsed: bytes in one line; in one file commas, colons and brackets, which
# bound the number of Python objects (about 100 bytes each) that a parser makes.
MAX_LINE_BYTES = 1 * MiB
MAX_JSON_PARTS = 1_000_000
# A file of lines holds the steps of a long run: at 35 values a step, 85,000 of them.
MAX_LINES_PARTS = 3_000_000


def check_json_size(data: bytes, limit: int = MAX_JSON_PARTS) -> None:
    """Raises ValueError where parsing `data` would cost more than the limits allow."""
    if sum(data.count(mark) for mark in (b",", b":", b"[", b"{")) > limit:
        raise ValueError(f"more than {limit:,} JSON values")


def check_line_sizes(data: bytes) -> None:
    """Raises ValueError where a line is over the limit or the last one was cut."""
    if data and not data.endswith(b"\n"):
        raise ValueError("the last line was cut")
    longest = max((found.end() - found.start() for found in re.finditer(rb"[^\n]+", data)), default=0)
    if longest > MAX_LINE_BYTES:
        raise ValueError(f"a line of {memory(longest)}, over {memory(MAX_LINE_BYTES)}")

"""Writes a bundle so that a crash at any moment leaves no report that says more than was measured.

Everything is written into `.<run-id>.partial`, where state.json tells that a run is at
work; each file is replaced as a whole, the manifest comes last, and one rename makes it a
report. This module decides nothing: what the evidence says comes from `conclude`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kit.errors import BundleInvalid, KitError, UsageError
from kit.evidence import lock, notebook, redact
from kit.evidence.contents import COMPLETE, FAILED, Evidence
from kit.evidence.manifest import EVIDENCE, MANIFEST, STATE, is_allowed, is_text, missing
from kit.evidence.redact import SECRET_NAME, Secrets
from kit.evidence.render import derived
from kit.evidence.write import WriteFailed, append, failed, sync_folder, write_atomic
from kit.process import ROOT
from kit.records import dumps, loads, to_json
from kit.units import MiB, memory

__all__ = ["Bundle", "open_bundle", "running_state", "write_atomic"]

# Three times what a full report takes.
NEEDED_BYTES = 60 * MiB
PRIVACY = "raw/privacy.json"


class Bundle:
    """A bundle that is being written; use it in a `with`, which lets the place go in every case."""

    def __init__(self, folder: Path, run_id: str, secrets: Secrets, held: lock.Lock) -> None:
        self.folder, self.run_id, self.secrets = folder, run_id, secrets
        self.path = folder / f".{run_id}.partial"
        self.notes: tuple[str, ...] = (held.note,) if held.note else ()
        self._lock = held
        self._is_settled = False

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets the place go. What was not finished stays readable in the partial folder, as ABANDONED."""
        if (self.path / STATE).exists():
            with contextlib.suppress(WriteFailed):
                # A state of RUNNING without a lock says the same.
                self._write_state("ABANDONED")
        self._lock.release()

    def write(self, name: str, data: bytes | str) -> Path:
        """Writes one file, redacted: text by every rule, a PNG without its metadata."""
        data = data.encode("utf-8") if isinstance(data, str) else data
        return write_atomic(self._place(name), cleaned(name, data, self.secrets))

    def write_json(self, name: str, value: Any) -> Path:
        text = dumps(redact.redact_value(to_json(value), self.secrets)) + "\n"
        return write_atomic(self._place(name), text)

    def append_line(self, name: str, value: Any) -> None:
        """Appends one JSON line; on a full disk the file keeps the whole lines it had."""
        text = dumps(redact.redact_value(to_json(value), self.secrets), indent=None) + "\n"
        append(self._place(name), text.encode())

    def settle(self) -> dict[str, bytes]:
        """Redacts what other processes wrote, moves out what may not enter, and scans everything.

        Returns facts/* and raw/*, from which `conclude` derives the evidence. A file in which
        the scan still finds something is taken out; raw/privacy.json says which and why, and the
        run's record becomes FAILED.
        """
        for name in self._names():
            path = self.path / PurePosixPath(name)
            if path.is_symlink() or not path.is_file() or not is_allowed(name):
                self._move_out(name)
                continue
            data = path.read_bytes()
            clean = cleaned(name, data, self.secrets)
            if clean != data:
                write_atomic(path, clean)
        hits = redact.scan(self._read(), self.secrets)
        if hits:
            for name in sorted({hit.file for hit in hits}):
                (self.path / PurePosixPath(name)).unlink()
            self.write_json(PRIVACY, {"hits": hits})
            self._mark_failed(_hits_text(hits))
        self._is_settled = True
        return {name: data for name, data in self._read().items() if name.startswith(("facts/", "raw/"))}

    def finish(self, evidence: Evidence) -> Path:
        """Writes the reports and the manifest, and renames the folder: its final path.

        The same steps for every state. Raises BundleInvalid where the evidence says COMPLETE
        and something is missing or private; the partial folder then stays.
        """
        if not self._is_settled:
            self.settle()
        if evidence.run_id != self.run_id:
            raise BundleInvalid(f"the evidence is of run {evidence.run_id!r}", expected=f"run {self.run_id!r}")
        self._refuse_private(evidence)
        files = self._read()
        made = {EVIDENCE: (dumps(evidence) + "\n").encode()}
        made |= derived(evidence, {**files, **made})
        lacking = missing({**files, **made}, evidence)
        if lacking:
            raise BundleInvalid(
                f"a {evidence.state} report lacks {', '.join(lacking)}",
                expected="every required file",
                todo="run it again",
            )
        hits = redact.scan({name: data for name, data in made.items() if name != MANIFEST}, self.secrets)
        if hits:
            raise BundleInvalid(_hits_text(hits), expected="no private value in a report")
        manifest = made.pop(MANIFEST)
        for name, data in made.items():
            write_atomic(self._place(name), data)
        write_atomic(self._place(MANIFEST), manifest)
        return self._publish()

    def _publish(self) -> Path:
        final = self.folder / self.run_id
        try:
            (self.path / STATE).unlink(missing_ok=True)
            sync_folder(self.path)
            for attempt in range(10):
                try:
                    os.rename(self.path, final)
                    break
                except PermissionError:
                    # On Windows a virus scanner or an open viewer holds files for a moment.
                    if attempt == 9:
                        self.notes += (f"the folder could not be renamed; the report is whole in {self.path.name}",)
                        return self.path
                    time.sleep(0.2)
            sync_folder(self.folder)
        except OSError as error:
            raise failed(final, 0, error) from error
        return final

    def _mark_failed(self, reason: str) -> None:
        record = self.path / "raw" / "run.json"
        if record.exists():
            self.write_json("raw/run.json", {**loads(record.read_bytes()), "state": FAILED, "reason": reason})

    def _refuse_private(self, evidence: Evidence) -> None:
        path = self.path / PRIVACY
        if path.exists() and evidence.state == COMPLETE:
            hits = [redact.Hit(**hit) for hit in loads(path.read_bytes())["hits"]]
            raise BundleInvalid(_hits_text(hits), expected="no private value in a report")

    def _place(self, name: str) -> Path:
        if not is_allowed(name):
            raise KitError(f"{name!r} may not enter a bundle", expected="a name that kit.evidence.manifest allows")
        return self.path / PurePosixPath(name)

    def _names(self) -> list[str]:
        found = (path for path in sorted(self.path.rglob("*")) if path.is_symlink() or not path.is_dir())
        return [name for name in (path.relative_to(self.path).as_posix() for path in found) if name != STATE]

    def _read(self) -> dict[str, bytes]:
        return {name: (self.path / PurePosixPath(name)).read_bytes() for name in self._names()}

    def _move_out(self, name: str) -> None:
        aside = self.folder / f".{self.run_id}.left-out" / PurePosixPath(name)
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path / PurePosixPath(name), aside)
        self.notes += (f"{name} may not enter a bundle and was moved to {aside.parent.name}",)

    def _write_state(self, state: str) -> None:
        write_atomic(self.path / STATE, dumps({"state": state, "run_id": self.run_id}) + "\n")


def open_bundle(folder: Path, run_id: str, *, secrets: Secrets | None = None) -> Bundle:
    """A new bundle below `folder`, which this process alone may write to until it ends.

    Raises UsageError where another run holds the place or the run id was used; WriteFailed
    where the disk has no room. A partial folder of a dead run is kept under another name.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", run_id):
        raise UsageError(f"run id {run_id!r}", expected="up to 80 letters, digits, '-' and '_'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise failed(folder, 0, error) from error
    if free < NEEDED_BYTES:
        raise KitError(
            f"{memory(free)} free where the report goes",
            expected=memory(NEEDED_BYTES),
            todo="free some space",
        )
    secrets = secrets or gather()
    secrets = dataclasses.replace(secrets, paths=(*secrets.paths, (str(folder.resolve()), "<out>")))
    bundle = Bundle(folder, run_id, secrets, _locked(folder, run_id))
    try:
        if (folder / run_id).exists():
            raise UsageError(f"{folder / run_id} exists", expected="a new run id", todo="delete it or choose another")
        if bundle.path.exists():
            aside = folder / f".{run_id}.abandoned-{time.time_ns()}"
            os.rename(bundle.path, aside)
            bundle.notes += (f"an unfinished run of this name was kept as {aside.name}",)
        bundle.path.mkdir()
        bundle._write_state("RUNNING")
    except BaseException:
        bundle._lock.release()
        raise
    return bundle


def running_state(path: Path) -> str | None:
    """'RUNNING' or 'ABANDONED' for a folder that holds no report yet, None where nothing says so."""
    path = Path(path)
    if not (path / STATE).is_file():
        return None
    return "RUNNING" if lock.is_held(path.parent) else "ABANDONED"


def cleaned(name: str, data: bytes, secrets: Secrets) -> bytes:
    """`data` of a file called `name`, redacted. JSON stays JSON; what is not changed stays byte for byte."""
    if name.endswith(".png"):
        try:
            return redact.strip_png(data)
        except ValueError:
            return data
    if not is_text(name):
        return data
    text = redact.decode(data)
    if name.endswith((".json", ".ipynb")):
        try:
            return _cleaned_json(name, data, secrets)
        except ValueError:
            # Not JSON: it is text like any other, and `conclude` will say what is wrong with it.
            pass
    if name.endswith(".jsonl"):
        return "".join(_cleaned_line(line, secrets) for line in text.splitlines(keepends=True)).encode()
    return redact.redact_text(text, secrets).encode()


def _cleaned_json(name: str, data: bytes, secrets: Secrets) -> bytes:
    value = loads(data)
    before = value
    if name.endswith(".ipynb") and isinstance(value, Mapping):
        value = notebook.stripped(value)
    clean = redact.redact_value(value, secrets)
    return data if clean == before else (json.dumps(clean, indent=1, ensure_ascii=False) + "\n").encode()


def _cleaned_line(line: str, secrets: Secrets) -> str:
    try:
        value = loads(line)
    except ValueError:
        return redact.redact_text(line, secrets)
    clean = redact.redact_value(value, secrets)
    return line if clean == value else dumps(clean, indent=None) + "\n"


def _locked(folder: Path, run_id: str) -> lock.Lock:
    try:
        return lock.acquire(folder, run_id)
    except OSError as error:
        raise failed(folder / lock.LOCK, 0, error) from error


def _hits_text(hits: list[redact.Hit] | tuple[redact.Hit, ...]) -> str:
    return "private values: " + "; ".join(f"{hit.kind} in {hit.file} ({hit.form})" for hit in hits[:10])


# What of this machine must not leave it: names, folders and addresses, read once when a bundle is opened.


def gather(
    *, uuids: Iterable[str] = (), serials: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Secrets:
    """The known secrets of this process; `uuids` and `serials` of GPUs come from the probe."""
    environ = os.environ if environ is None else environ
    home = str(Path.home())
    paths = [(sys.prefix, "<python>"), (str(ROOT), "<kit>"), (home, "~")]
    return Secrets(
        values=(*_secret_values(environ), *(("serial", serial) for serial in serials if len(serial) >= 6)),
        user=_user(),
        host=socket.gethostname() or None,
        paths=tuple((path, name) for path, name in paths if len(Path(path).parts) > 1),
        uuids=tuple(uuids),
        salt=salt(),
    )


def salt(folder: Path | None = None) -> bytes:
    """32 bytes that only this user has: made once, kept in the private folder, never in a bundle.

    Where the folder cannot be written, as in many containers, the salt lasts for this process
    and its children, so pseudonyms of two runs cannot be linked; nothing else changes.
    """
    path = (folder or private_folder()) / "salt"
    for text in (os.environ.get("KIT_SALT", ""), _text(path)):
        if re.fullmatch(r"[0-9a-f]{64}", text):
            return bytes.fromhex(text)
    fresh = secrets.token_bytes(32)
    try:
        write_atomic(path, fresh.hex() + "\n", mode=0o600)
    except WriteFailed:
        os.environ["KIT_SALT"] = fresh.hex()
    return fresh


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def private_folder() -> Path:
    if os.name == "nt" and os.environ.get("APPDATA"):
        return Path(os.environ["APPDATA"]) / "kit"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kit"


def _secret_values(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Values of variables with a secret name; a short word of letters only is an ordinary word."""
    return [
        (f"value of {name}", value)
        for name, value in environ.items()
        if SECRET_NAME.search(name) and len(value) >= 8 and not (value.isalpha() and len(value) < 12)
    ] + [
        ("url userinfo", found)
        for value in environ.values()
        for found in re.findall(r"://(?:[^/\s:@]*:)?([^/\s:@]{6,})@", value)
    ]


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return None

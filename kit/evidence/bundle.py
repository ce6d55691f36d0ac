"""Writes a bundle so that a crash at any moment leaves no report that says more than was measured.

Everything is written into `.<run-id>.partial`: each file is replaced as a whole, the manifest comes last, and one
rename makes it a report. A partial folder says by its name that it is none yet; `kit report --close` finishes it.
This module decides nothing: what the evidence says comes from `conclude`.
"""

import contextlib
import dataclasses
import getpass
import hashlib
import hmac
import os
import platform
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.errors import BundleInvalid, KitError, UsageError
from kit.evidence import notebook, redact
from kit.evidence.contents import COMPLETE, FAILED, Evidence
from kit.evidence.manifest import EVIDENCE, MANIFEST, PRIVACY, is_allowed, is_text, missing
from kit.evidence.redact import Secrets
from kit.evidence.render import derived
from kit.evidence.write import WriteFailed, failed, sync_folder, write_atomic
from kit.process import ROOT
from kit.records import dumps, loads, to_json
from kit.units import MiB, memory

# Three times what a full report takes.
NEEDED_BYTES = 60 * MiB
_RUN_ID = r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}"


class Bundle:
    """A bundle that is being written, in a partial folder. notes: what a person should be told of it.

    lock: what tells other processes that this one still writes. Raises UsageError where another does.
    """

    def __init__(self, path: Path, secrets: Secrets) -> None:
        self.path, self.folder, self.secrets = path, path.parent, secrets
        self.run_id = path.name.removeprefix(".").removesuffix(".partial")
        self.notes: tuple[str, ...] = ()
        self.lock = _locked(path)

    def write(self, name: str, data: bytes | str) -> Path:
        """Writes one file, redacted: text by every rule, a PNG without its metadata."""
        data = data.encode("utf-8") if isinstance(data, str) else data
        return write_atomic(self._place(name), cleaned(name, data, self.secrets))

    def write_json(self, name: str, value: Any) -> Path:
        return write_atomic(self._place(name), dumps(redact.redact_value(to_json(value), self.secrets)) + "\n")

    def settle(self) -> dict[str, bytes]:
        """Redacts what other processes wrote, moves out what may not enter, and scans everything.

        Returns facts/* and raw/*, from which `conclude` derives the evidence. A file in which
        the scan still finds something is taken out; raw/privacy.json says which and why, and the
        run's record becomes FAILED.
        """
        for name in self.names():
            path = self.path / name
            is_theirs = is_allowed(name) and path.is_file() and not path.is_symlink()
            data = path.read_bytes() if is_theirs else b""
            if not is_theirs or (name.endswith(".ipynb") and not _is_object(data)):
                # Of a notebook that is none its kernel or this process ended while it was written.
                self.leave_out(name)
            elif (clean := cleaned(name, data, self.secrets)) != data:
                write_atomic(path, clean)
        files = self._read()
        hits = redact.scan(files, self.secrets)
        if hits:
            for name in {name for name, _ in hits}:
                (self.path / name).unlink()
            self.write_json(PRIVACY, {"hits": [{"file": name, "kind": kind} for name, kind in hits]})
            record = loads(files["raw/run.json"])
            self.write_json("raw/run.json", {**record, "state": FAILED, "reason": _told(hits)})
            files = self._read()
        return {name: data for name, data in files.items() if name.startswith(("facts/", "raw/"))}

    def finish(self, evidence: Evidence) -> Path:
        """Writes the reports and the manifest of a settled bundle, and renames the folder: its final path.

        The same steps for every state. Raises BundleInvalid where a required file is missing or a report is
        private; the partial folder then stays.
        """
        if evidence.run_id != self.run_id:
            raise BundleInvalid(f"the evidence is of run {evidence.run_id!r}", expected=f"run {self.run_id!r}")
        files = self._read()
        if PRIVACY in files and evidence.state == COMPLETE:
            raise BundleInvalid("private values were taken out", expected="a state other than COMPLETE")
        made = {EVIDENCE: (dumps(evidence) + "\n").encode()}
        made |= derived(evidence, {**files, **made})
        if lacking := missing({**files, **made}, evidence):
            found = f"a {evidence.state} report lacks {', '.join(lacking)}"
            raise BundleInvalid(found, expected="every required file", todo="run it again")
        private = redact.scan({name: data for name, data in made.items() if name != MANIFEST}, self.secrets)
        # A host may be called as one of our own words; what came from outside was looked at before.
        hits = tuple(hit for hit in private if hit[1] not in ("user", "host"))
        if hits:
            raise BundleInvalid(_told(hits), expected="no private value in a report")
        # The manifest is the last of them.
        for name, data in made.items():
            write_atomic(self._place(name), data)
        return self._publish()

    def leave_out(self, name: str) -> None:
        """Moves a file out of the bundle, beside it."""
        aside = self.folder / f".{self.run_id}.left-out" / name
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path / name, aside)
        self.notes += (f"{name} may not enter a bundle and was moved to {aside.parent.name}",)

    def _publish(self) -> Path:
        final = self.folder / self.run_id
        try:
            sync_folder(self.path)
            for _ in range(10):
                # On Windows a virus scanner or an open viewer holds files for a moment.
                with contextlib.suppress(PermissionError):
                    os.rename(self.path, final)
                    break
                time.sleep(0.2)
            else:
                self.notes += (f"the folder could not be renamed; the report is whole in {self.path.name}",)
                return self.path
            sync_folder(self.folder)
        except OSError as error:
            raise failed(final, 0, error) from error
        return final

    def _place(self, name: str) -> Path:
        if not is_allowed(name):
            raise KitError(f"{name!r} may not enter a bundle", expected="a name that kit.evidence.manifest allows")
        return self.path / name

    def names(self) -> list[str]:
        """All that stands in the folder, whether it may or not."""
        found = (path for path in sorted(self.path.rglob("*")) if path.is_symlink() or not path.is_dir())
        return [path.relative_to(self.path).as_posix() for path in found]

    def _read(self) -> dict[str, bytes]:
        return {name: (self.path / name).read_bytes() for name in self.names()}


def open_bundle(folder: Path, run_id: str, *, secrets: Secrets | None = None, ours: tuple[str, ...] = ()) -> Bundle:
    """A new bundle below `folder`, where other runs may write theirs at the same time.

    ours: random values that are no secret. Raises UsageError where the run id was used, KitError where the disk has
    no room or the folder cannot be made.
    """
    folder = Path(folder)
    if not re.fullmatch(_RUN_ID, run_id):
        raise UsageError(f"run id {run_id!r}", expected="up to 80 letters, digits, '-' and '_'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < NEEDED_BYTES:
            found = f"{memory(free)} free where the report goes"
            raise KitError(found, expected=memory(NEEDED_BYTES), todo="free some space")
        path = folder / f".{run_id}.partial"
        if (folder / run_id).exists() or path.exists():
            raise UsageError(f"{folder / run_id} exists", expected="a new run id", todo="run it again")
        path.mkdir()
    except OSError as error:
        raise failed(folder, 0, error) from error
    return Bundle(path, secrets or _secrets_at(folder, ours))


def reopen(path: Path) -> Bundle:
    """The bundle of a run that was stopped. Raises UsageError where `path` is no partial folder of one."""
    path = Path(path).absolute()
    if not re.fullmatch(rf"\.{_RUN_ID}\.partial", path.name) or not (path / "raw" / "run.json").is_file():
        raise UsageError(
            f"{path} is not what a stopped run leaves",
            expected="a folder .<run-id>.partial that holds raw/run.json",
            todo="look for one with: ls -a reports",
        )
    return Bundle(path, _secrets_at(path.parent, ()))


def _secrets_at(folder: Path, ours: tuple[str, ...]) -> Secrets:
    found = gather()
    return dataclasses.replace(found, paths=(*found.paths, (str(folder.resolve()), "<out>")), ours=ours)


def _locked(path: Path) -> int | None:
    """A lock on a folder that ends with this process, however that ends. None where folders cannot be locked, as on
    Windows and on some network file systems. Raises UsageError where another process has it."""
    try:
        handle = os.open(path, os.O_RDONLY)
        # Windows, which has no such module, opens no folder.
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except BlockingIOError:
        found = f"the run of {path} is still alive"
        raise UsageError(
            found, expected="the folder of a run that was stopped", todo="let it end, or stop it"
        ) from None
    except OSError:
        return None


def cleaned(name: str, data: bytes, secrets: Secrets) -> bytes:
    """`data` of a file called `name`, redacted. JSON stays JSON; what is not changed stays as it is."""
    if name.endswith(".png"):
        with contextlib.suppress(ValueError):
            return redact.strip_png(data)
    if not is_text(name):
        return data
    text = redact.decode(data)
    parts = text.splitlines(keepends=True) if name.endswith(".jsonl") else [text]
    return "".join(_cleaned(name, part, secrets) for part in parts).encode()


def _cleaned(name: str, text: str, secrets: Secrets) -> str:
    if name.endswith((".json", ".jsonl", ".ipynb")):
        # What is no JSON is text like any other, and `conclude` will say what is wrong with it.
        with contextlib.suppress(ValueError):
            before = loads(text)
            is_notebook = name.endswith(".ipynb") and isinstance(before, Mapping)
            clean = redact.redact_value(notebook.stripped(before) if is_notebook else before, secrets)
            indent = None if name.endswith(".jsonl") else 1
            return text if clean == before else dumps(clean, indent=indent) + "\n"
    return redact.redact_text(text, secrets)


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(loads(data), dict)
    except ValueError:
        return False


def _told(hits: tuple[redact.Hit, ...]) -> str:
    return "private values: " + "; ".join(f"{kind} in {name}" for name, kind in hits[:10])


# What of this machine must not leave it: names, folders and secret variables, read once when a bundle is opened.


def gather() -> Secrets:
    """The known secrets of this process."""
    home = Path.home()
    paths = [(sys.prefix, "<python>"), (str(ROOT), "<kit>"), (str(home), "~"), (str(home.resolve()), "~")]
    values = [
        (f"value of {name}", value)
        for name, value in os.environ.items()
        if redact.hides(name, value) and len(value) >= (12 if value.isalpha() or value.isdigit() else 6)
    ]
    for value in os.environ.values():
        values += [("url userinfo", m) for m in re.findall(r"://(?:[^/\s:@]*:)?([^/\s:@]{6,})@", value)]
    users = [home.name]
    with contextlib.suppress(KeyError, OSError, ImportError):
        users.insert(0, getpass.getuser())
    return Secrets(
        values=tuple(values),
        users=tuple(dict.fromkeys(filter(None, users))),
        host=socket.gethostname() or None,
        paths=tuple(dict.fromkeys((path, name) for path, name in paths if len(Path(path).parts) > 1)),
        salt=salt(),
    )


def this_python() -> str:
    """Which Python runs here: its version, and a keyed pseudonym of its folder, the same for one user's two processes."""
    place = hmac.new(salt(), sys.prefix.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:12]
    return f"{platform.python_version()} py-{place}"


def salt(folder: Path | None = None) -> bytes:
    """32 bytes that only this user has: made once, kept in the private folder, never in a bundle.

    Where the folder cannot be written, as in many containers, the salt lasts for this process
    and its children, so pseudonyms of two runs cannot be linked; nothing else changes.
    """
    home = os.environ.get("APPDATA") if os.name == "nt" else os.environ.get("XDG_CONFIG_HOME")
    path = (folder or Path(home or Path.home() / ".config") / "kit") / "salt"
    texts = [os.environ.get("KIT_SALT", "")]
    with contextlib.suppress(OSError):
        texts.append(path.read_text(encoding="ascii", errors="replace").strip())
    for text in texts:
        if re.fullmatch(r"[0-9a-f]{64}", text):
            return bytes.fromhex(text)
    fresh = secrets.token_bytes(32)
    try:
        write_atomic(path, fresh.hex() + "\n", mode=0o600)
    except WriteFailed:
        os.environ["KIT_SALT"] = fresh.hex()
    return fresh

"""Asks this machine what must not leave it: user, host, home, secret variables, its own addresses, the salt.

The only part of privacy that touches the machine; the rules are in `kit.evidence.redact`.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from kit.evidence.redact import SECRET_NAME, Secrets
from kit.evidence.write import WriteFailed, write_atomic

PROJECT = Path(__file__).resolve().parents[2]


def gather(
    *, uuids: Iterable[str] = (), serials: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Secrets:
    """The known secrets of this process; `uuids` and `serials` of GPUs come from the probe."""
    environ = os.environ if environ is None else environ
    home = str(Path.home())
    paths = [(sys.prefix, "<python>"), (str(PROJECT), "<kit>"), (home, "~")]
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

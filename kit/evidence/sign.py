"""Signs a manifest, and checks a signature, with the SSH key that people already own.

`ssh-keygen -Y` does the cryptography. A signature counts only with an identity from a file
of allowed signers that the reader trusts, and only in our own namespace.
"""

import base64
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from kit.errors import BundleInvalid, UsageError
from kit.evidence.manifest import MANIFEST, SIGNATURE
from kit.evidence.verify import verify
from kit.evidence.write import write_atomic
from kit.records import Outcome
from kit.rules import Answer, say

NAMESPACE = "kit-evidence"
_TIMEOUT_S = 60


def sign(bundle: Path, key: Path) -> Path:
    """Signs the bundle's manifest with an SSH key (private, or public with an agent): the signature's path.

    A pass phrase is asked for on the terminal. Raises UsageError where ssh-keygen refuses.
    """
    manifest = Path(bundle) / MANIFEST
    if not manifest.is_file():
        raise UsageError(f"{bundle} has no {MANIFEST}", expected="the folder of a report", todo="unpack a zip first")
    # Who signs vouches, so nothing is signed that does not verify. An older signature gives way.
    found = verify(Path(bundle))
    red = [c.found for c in found.checks if c.outcome is Outcome.INVALID and c.id != "bundle.signature"]
    if red or found.reported is None:
        told = (*red, "it could not be judged")[0]
        raise BundleInvalid(f"{bundle} does not verify: {told}", expected="a whole bundle", todo=f"kit verify {bundle}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / MANIFEST
        copy.write_bytes(manifest.read_bytes())
        done = _ssh_keygen("sign", "-f", str(key), "-n", NAMESPACE, str(copy), is_terminal=True)
        made = copy.with_name(SIGNATURE)
        if done.returncode != 0 or not made.is_file():
            refused = f"ssh-keygen could not sign with {key}: {_said(done)}"
            todo = "make one with ssh-keygen -t ed25519"
            raise UsageError(refused, expected="an SSH key that this user may use", todo=todo)
        return write_atomic(manifest.with_name(SIGNATURE), made.read_bytes())


def checker(
    allowed_signers: Path | None = None, identity: str | None = None
) -> Callable[[bytes, bytes | None], Answer | None]:
    """The `check_signature` of `kit.evidence.verify`: who, of those that the reader trusts, signed.

    allowed_signers: a file as `man ssh-keygen` describes it; with it an unsigned bundle is not
    enough. identity: who has to have signed; without it, any one of the file. Raises UsageError
    for a demand that could not be met: an identity without the file, an empty one, a file that is not there.
    """
    if identity is not None and (not identity.strip() or allowed_signers is None):
        raise UsageError(
            f"--identity {identity!r}" + ("" if allowed_signers else " without --allowed-signers"),
            expected="a name, and the file that says which key is whose",
            todo="give --allowed-signers FILE --identity NAME",
        )
    if allowed_signers is not None and not allowed_signers.is_file():
        raise UsageError(f"{allowed_signers} is no file", expected="a file as man ssh-keygen describes it")

    def check(manifest: bytes, signature: bytes | None) -> Answer | None:
        if signature is None:
            return say(None, "it is not signed") if allowed_signers else None
        if shutil.which("ssh-keygen") is None:
            return say(None, "Signed; not checked, since ssh-keygen is not installed", required=bool(allowed_signers))
        if not _is_canonical(signature):
            return say(False, "the signature file was changed")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / SIGNATURE
            path.write_bytes(signature)
            return _checked(manifest, path, allowed_signers, identity)

    return check


def _checked(manifest: bytes, signature: Path, allowed: Path | None, identity: str | None) -> Answer:
    done = _ssh_keygen("check-novalidate", "-n", NAMESPACE, "-s", str(signature), data=manifest)
    if done.returncode != 0:
        return say(False, f"the signature does not hold: {_said(done)}")
    key = (re.findall(r"SHA256:[\w+/=]+", _said(done)) or ["unknown"])[0]
    if allowed is None:
        return say(True, f"Signed by key {key}; who owns it was not asked, so nobody vouches")
    names = [identity] if identity else []
    if identity is None:
        done = _ssh_keygen("find-principals", "-s", str(signature), "-f", str(allowed))
        names = done.stdout.decode("utf-8", "replace").split() if done.returncode == 0 else []
    how = ("-n", NAMESPACE, "-s", str(signature))
    for name in names:
        if _ssh_keygen("verify", "-f", str(allowed), "-I", name, *how, data=manifest).returncode == 0:
            # With an identity the reader said who; without one the file may only say a pattern.
            if identity is None and set(name) & set("*?!,"):
                return say(True, f"Signed with key {key}, which the pattern {name!r} admits: no person is named")
            return say(True, f"Signed by {name} with key {key}: this person vouches")
    return say(None, f"the signature holds, but key {key} is not of {identity or 'an allowed signer'}")


def _is_canonical(signature: bytes) -> bool:
    """Whether the armour is as ssh-keygen writes it: 70 columns, no byte to spare (PROTOCOL.sshsig)."""
    head, end = b"-----BEGIN SSH SIGNATURE-----\n", b"\n-----END SSH SIGNATURE-----\n"
    body = signature.removeprefix(head).removesuffix(end)
    try:
        text = base64.b64encode(base64.b64decode(body.replace(b"\n", b""), validate=True))
    except ValueError:
        return False
    return signature == head + b"\n".join(text[at : at + 70] for at in range(0, len(text), 70)) + end


def _ssh_keygen(action: str, *args: str, data: bytes = b"", is_terminal: bool = False) -> subprocess.CompletedProcess:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise UsageError("ssh-keygen is not installed", expected="OpenSSH 8.2 or newer", todo="install openssh-client")
    return subprocess.run(
        [program, "-Y", action, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        input=None if is_terminal else data,
        timeout=_TIMEOUT_S,
        check=False,
    )


def _said(done: subprocess.CompletedProcess) -> str:
    return done.stdout.decode("utf-8", "replace").strip()[-300:]

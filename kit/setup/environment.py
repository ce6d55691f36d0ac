"""One virtual environment of the kit: whether it serves, and how it is built.

A stamp, `kit-setup.json`, says what a folder was made for: the torch build, the pins, the Python, the kit. It is
empty while the folder is being built and is filled in when everything is in place, so that one that was interrupted,
or made for another card, is built anew with the reason. A folder without a stamp was made by somebody else: it is
used if it serves, and never changed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kit import process
from kit.errors import SetupFailed
from kit.setup.plan import Need, TorchPick, missing
from kit.units import dotted, memory, pair

STAMP = "kit-setup.json"
PYPI = "https://pypi.org/simple"
# Debian and Ubuntu split pip off their Python. Checked against the sha256 below, https://pypi.org/project/pip/26.3/.
PIP_URL = (
    "https://files.pythonhosted.org/packages/07/25/"
    "ee8c38ae72d66b844ce8eb9711ba905dba21ca1a8a0c960057c41cd23337/pip-26.3-py3-none-any.whl"
)
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
# Of the settings of pip and uv, those that say where packages come from. Any other, such as PIP_TARGET, PIP_DRY_RUN
# or the PIP_CONSTRAINT of a vendor's container, would send the packages elsewhere or keep them out.
_KEPT = re.compile(
    r"(PIP|UV)_(DEFAULT_INDEX|INDEX.*|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|OFFLINE|CERT|CLIENT_CERT|TRUSTED_HOST"
    r"|INSECURE_HOST|NATIVE_TLS|SYSTEM_CERTS|PROXY|KEYRING_PROVIDER|CACHE_DIR|NO_CACHE.*|.*TIMEOUT|.*RETRIES"
    r"|CONFIG_FILE|CONCURRENT_.*|LINK_MODE|DISABLE_PIP_VERSION_CHECK|ROOT_USER_ACTION|PRE)"
)
# What uv does not read of pip's.
_FOR_UV = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_FIND_LINKS": "UV_FIND_LINKS"}


@dataclasses.dataclass(frozen=True)
class Environment:
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def site_packages(self) -> Path | None:
        if os.name == "nt":
            return self.folder / "Lib" / "site-packages"
        return next((self.folder / "lib").glob("python3.*/site-packages"), None)

    @property
    def is_foreign(self) -> bool:
        """Whether somebody else put something here."""
        return self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / STAMP).exists()

    @property
    def cuda(self) -> tuple[int, int] | None:
        """What its torch was built for, from torch/version.py read as text: `cuda: Optional[str] = '12.8'`."""
        try:
            text = ((self.site_packages or self.folder) / "torch/version.py").read_text(encoding="utf-8")
        except OSError:
            return None
        match = re.search(r"""^cuda\b[^=\n]*=\s*['"](\d+\.\d+)""", text, re.MULTILINE)
        return pair(match[1]) if match else None

    def lacks(self, needs: Sequence[Need]) -> str:
        is_there = self.python.exists() and self.site_packages
        return ", ".join(missing(needs, self.site_packages)) if is_there else "Python itself"

    def unfit(self, stamp: Mapping[str, str], needs: Sequence[Need]) -> str | None:
        """Why it does not serve, in words; None where it does. `stamp` says what is wanted of it."""
        if not self.folder.is_dir():
            return "it is not there"
        if not self.is_foreign:
            try:
                found = json.loads((self.folder / STAMP).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                found = {}
            if not found:
                return "its set-up was interrupted"
            for name, wanted in stamp.items():
                if found.get(name) != wanted:
                    return f"it was made for another {name} ({found.get(name)}, now {wanted})"
        lacking = self.lacks(needs)
        return f"it lacks {lacking}" if lacking else None


def stamp(files: Sequence[Path], torch: str | None) -> dict[str, str]:
    """What an environment must have been made for. torch: the requirement; None where any build serves."""
    digest = hashlib.sha256()
    for file in files:
        # git may have turned the line ends into Windows ones.
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    python, kit = ".".join(map(str, sys.version_info[:2])), str(process.ROOT)
    wanted = {"Python": python, "kit": kit, "pins": digest.hexdigest()[:12], "torch": torch}
    return {name: value for name, value in wanted.items() if value}


def build(environment: Environment, pick: TorchPick, needs: Sequence[Need], files: Sequence[Path],
          wanted: Mapping[str, str]) -> None:  # fmt: skip
    """Makes the environment in three stages, each one line. Raises SetupFailed, which names the log.

    With uv where it is on PATH, else pip, which reads settings that uv does not and tries where uv could not. PyTorch's
    own index is asked where it answers; else the ordinary one must have this very build.
    """
    began, folder, show = time.monotonic(), environment.folder, process.progress()
    log, say, environ = folder.with_name(folder.name + ".log"), lambda text: show(f"kit: {text}"), clean_environment()
    stage = functools.partial(_stage, folder, log, environ, say)
    dropped = sorted(set(os.environ) - set(environ) - {"PYTHONPATH", "PYTHONHOME"})
    if dropped:
        say(f"left out for this: {', '.join(dropped)}\n")
    log.write_bytes(b"")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / STAMP).write_text("{}\n", encoding="utf-8", newline="\n")

    # The environment's own Python cannot make it anew: it stood in the folder that was just removed.
    python, title = getattr(sys, "_base_executable", None) or sys.executable, f"[1/3] Python {sys.version.split()[0]}"
    pip = [str(environment.python), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    if not can_reach(os.environ.get("PIP_INDEX_URL", PYPI)):
        pip += ["--retries", "0", "--timeout", "5"]
    installers, has_pip = [pip], importlib.util.find_spec("ensurepip")
    if uv := shutil.which("uv"):
        installers = [[uv, "pip", "install", "--python", str(environment.python)], pip]
        stage(title, [uv, "venv", "--seed", "--allow-existing", "--python", python, str(folder)])
    else:
        say("pip does it; with uv on PATH it is several times quicker (https://docs.astral.sh/uv/).\n")
        stage(title, [python, "-m", "venv", *([] if has_pip else ["--without-pip"]), str(folder)])
        if not has_pip:
            wheel = folder / PIP_URL.rpartition("/")[2]
            wheel.write_bytes(fetch_pip())
            stage("pip", [str(environment.python), str(wheel / "pip"), "install", "--no-index", str(wheel)])

    index = pick.index_url
    if index and not can_reach(index):
        note = "a mirror or a folder of wheels must hold this very build" if pick.cuda else "it may be a CUDA build"
        say(f"{index} cannot be reached; asking the ordinary index for {pick.requirement} ({note}).\n")
        index = None
    torch = [*(["--index-url", index] if index else []), pick.requirement]
    stage(f"[2/3] {pick.requirement}", *([*install, *torch] for install in installers))
    names, rest = ", ".join(file.name for file in files), [word for file in files for word in ("-r", str(file))]
    stage(f"[3/3] {names}", *([*install, *rest] for install in installers))

    # Exit code 0 is not believed: what is needed must be there, and torch carry the right CUDA.
    lacking, cuda = environment.lacks(needs), environment.cuda
    if lacking:
        raise SetupFailed(f"after the installation {folder} still lacks {lacking}", todo=f"read {log}")
    if pick.cuda is not None and cuda != pick.cuda:
        raise SetupFailed(
            f"a torch build with {f'CUDA {dotted(cuda)}' if cuda else 'no CUDA'} was installed",
            expected=f"{pick.requirement} with CUDA {dotted(pick.cuda)}; nothing takes its place",
            todo=f"see in {log} where it came from, and run the same command again",
        )
    # Notebooks and kernels of this environment find the kit from any folder: a checkout by a .pth file (which Python
    # reads in the locale's encoding), an installed kit as a copy, since its neighbours must not come along.
    site = environment.site_packages or folder
    if process.IS_CHECKOUT:
        (site / "kit-checkout.pth").write_text(f"{process.ROOT}\n", encoding="locale", newline="\n")
    else:
        shutil.copytree(process.ROOT / "kit", site / "kit", dirs_exist_ok=True)
    (folder / STAMP).write_text(json.dumps({**wanted, "torch": pick.requirement}), encoding="utf-8", newline="\n")
    say(f"ready after {time.monotonic() - began:.0f} s: {folder}\n")


def _stage(folder: Path, log: Path, environ: Mapping[str, str], say: Callable[[str], None], title: str,
           *commands: Sequence[str]) -> None:  # fmt: skip
    """Runs the first program, and the next where it failed. Their output goes to the log alone."""
    began, before = time.monotonic(), _size(folder)
    for argv in commands:
        with log.open("ab") as file:
            file.write(f"$ {' '.join(argv)}\n".encode())
            file.flush()
            child = subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            while (code := child.poll()) is None:
                say(f"{title}: {time.monotonic() - began:.0f} s, at work ({log.name})")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=1)
        except BaseException:
            # Interrupted: a pip under way ends with the set-up that started it.
            child.terminate()
            child.wait()
            raise
        if code == 0:
            grown = _size(folder) - before
            more = f", {memory(grown)} on disk" if grown > 0 else ""
            return say(f"{title}: {time.monotonic() - began:.0f} s{more}\n")
        if argv is not commands[-1]:
            say(f"{title}: uv could not (exit code {code}), pip tries\n")
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-4:]
    raise SetupFailed(
        f"{title} failed (exit code {code}):\n  " + "\n  ".join(last),
        expected="an index, a mirror (PIP_INDEX_URL, UV_DEFAULT_INDEX) or a folder of wheels that has it",
        todo=f"read {log}; check network, proxy (HTTPS_PROXY) and disk space, and run it again",
    )


def clean_environment() -> dict[str, str]:
    """Without what would send packages elsewhere, or take those of another place for installed."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME") and (not name.startswith(("PIP_", "UV_")) or _KEPT.fullmatch(name))
    }
    # As pip has it: of several indexes, the one with the best release.
    as_pip = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    return {**as_pip, **{uv: kept[pip] for pip, uv in _FOR_UV.items() if pip in kept}, **kept}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


# The network as set-up sees it: is an index there, and pip itself where a Python comes without it.


def can_reach(index_url: str, limit_s: float = 3.0) -> bool:
    """Whether the index hands out its page for torch, through the proxy that the environment names.

    In a daemon thread, because looking up a name has no time limit of its own.
    """
    from http.client import HTTPException

    answer: list[bool] = []
    url = f"{index_url.rstrip('/')}/torch/"

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError, HTTPException), _open(url, limit_s):
            answer.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit_s)
    return bool(answer)


def fetch_pip() -> bytes:
    """pip's wheel from PyPI, checked against the sha256 that stands here."""
    try:
        with _open(PIP_URL, 30) as answer:
            content = answer.read()
    except OSError as error:
        content = str(error).encode()
    if hashlib.sha256(content).hexdigest() != PIP_SHA256:
        raise SetupFailed(
            f"this Python has no pip, and {PIP_URL} gave another file than pip ({content[:80]!r})",
            expected="Python's `ensurepip`, uv on PATH, or a way to files.pythonhosted.org",
            todo="`apt install python3-venv` (or what your system calls it) and run the command again",
        )
    return content


def _open(url: str, limit_s: float):
    """A GET, as pip would do it (some servers refuse HEAD), with the certificates pip was told to trust."""
    # Both cost 30 ms at import, and most runs never ask the network.
    import ssl
    import urllib.request

    named = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE")
    context = ssl.create_default_context(cafile=named if named and os.path.isfile(named) else None)
    request = urllib.request.Request(url, headers={"User-Agent": "kit"})
    return urllib.request.urlopen(request, timeout=limit_s, context=context)


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds `path` against a second set-up, as jobs of one array start it. The system frees it at the end."""
    with path.open("a") as file:
        while not _try_lock(file.fileno()):
            say(f"kit: another set-up is at work ({path.name}); waiting for it")
            time.sleep(0.5)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks: better no lock than no set-up.
        return not isinstance(error, (BlockingIOError, PermissionError))
    return True

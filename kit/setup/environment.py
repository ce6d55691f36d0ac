"""One virtual environment of the kit: its state on disk, and how it is built or repaired.

A folder carries a marker from its first moment: `kit-setup-started` while it is being
built, renamed to `kit-setup.json` in one step when everything is in place. A folder
that is still 'started' was interrupted and is built anew. A folder without any marker
was made by somebody else and is used if it serves, but never changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kit.errors import SetupFailed, UsageError
from kit.records import dumps, from_json, loads
from kit.setup.plan import Need, TorchPick, missing

# The network as set-up sees it: is an index there, and pip itself where a Python comes without it.

PYPI = "https://pypi.org/simple"
LIMIT_S = 3.0
PIP_URL = (
    "https://files.pythonhosted.org/packages/07/25/"
    "ee8c38ae72d66b844ce8eb9711ba905dba21ca1a8a0c960057c41cd23337/pip-26.3-py3-none-any.whl"
)
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


def can_reach(index_url: str, limit_s: float = LIMIT_S) -> bool:
    """Whether the index hands out its page for torch, through the proxy that the environment names.

    In a daemon thread, because looking up a name has no time limit of its own.
    """
    answer: list[bool] = []
    url = f"{index_url.rstrip('/')}/torch/"
    thread = threading.Thread(target=lambda: answer.append(_answers(url, limit_s)), daemon=True)
    thread.start()
    thread.join(limit_s)
    return bool(answer and answer[0])


def _answers(url: str, limit_s: float) -> bool:
    from http.client import HTTPException

    try:
        with _open(url, limit_s):
            return True
    except (OSError, ValueError, HTTPException):
        return False


def fetch_pip(url: str = PIP_URL) -> bytes:
    """pip's wheel from PyPI, checked against the sha256 that stands here."""
    try:
        with _open(url, 30) as answer:
            content = answer.read()
    except OSError as error:
        raise SetupFailed(
            f"This Python has no pip of its own, and PyPI's could not be fetched ({error}).",
            expected="Python's `ensurepip`, or a way to files.pythonhosted.org.",
            todo="`apt install python3-venv` (or what your system calls it) and run the command again.",
        ) from error
    if hashlib.sha256(content).hexdigest() != PIP_SHA256:
        raise SetupFailed(
            f"{url} is another file than it should be.",
            expected=f"sha256 {PIP_SHA256}.",
            todo="find out who answers in its place (a proxy?), or `apt install python3-venv`.",
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


STARTED, DONE = "kit-setup-started", "kit-setup.json"
Run = Callable[..., int]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides whether a finished folder still serves: saved as its marker.

    kind: 'gpu' or 'cpu'. torch: the requirement it was built with. requirements: file
    name -> sha256. root: where the kit stood, since a virtual environment cannot be moved.
    """

    kind: str
    torch: str
    requirements: Mapping[str, str]
    root: str


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

    def recipe(self) -> Recipe | None:
        """The marker of a finished folder; None where there is none that can be read."""
        try:
            return from_json(Recipe, loads((self.folder / DONE).read_text(encoding="utf-8")))
        except (OSError, ValueError, UsageError):
            return None

    def lacks(self, needs: Sequence[Need]) -> tuple[str, ...]:
        if not self.python.exists() or self.site_packages is None:
            return ("Python itself",)
        return missing(needs, self.site_packages)

    @property
    def is_foreign(self) -> bool:
        """Whether somebody else put something here."""
        inside = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        return bool(inside) and not inside & {STARTED, DONE}

    def disown(self) -> None:
        """Takes the finished mark away, so that the next run builds the folder anew."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / DONE).replace(self.folder / STARTED)

    def serves(self, needs: Sequence[Need], *, kinds: Sequence[str], files: Mapping[str, str], root: Path) -> bool:
        """Whether it is finished, of a kind that is wanted, up to date with the pins, and whole."""
        if self.is_foreign:
            return not self.lacks(needs) and ("gpu" if cuda_of_installed_torch(self) else "cpu") in kinds
        recipe = self.recipe()
        return (
            recipe is not None
            and recipe.kind in kinds
            and recipe.root == str(root)
            and all(recipe.requirements.get(name) == digest for name, digest in files.items())
            and not self.lacks(needs)
        )


def digests(root: Path, names: Sequence[str]) -> dict[str, str]:
    """sha256 of the requirement files, line ends aside. Raises UsageError where the kit is no checkout."""
    found = {}
    for name in names:
        try:
            text = (root / name).read_text(encoding="utf-8")
        except OSError:
            raise UsageError(
                f"{name} is not beside the kit ({root}), so there is nothing to install from.",
                expected="a checkout of the project, or a Python that has the packages.",
                todo="run it in a checkout, or `pip install` what is missing.",
            ) from None
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def build(
    environment: Environment,
    pick: TorchPick,
    needs: Sequence[Need],
    *,
    files: Mapping[str, str],
    root: Path,
    index_url: str | None,
    patience: Sequence[str] = (),
    run: Run,
    say: Say,
) -> None:
    """Makes the folder and fills it: Python, torch, the pinned packages, the way to the kit itself.

    index_url: torch's index if it can be reached. patience: pip options where the
    ordinary index cannot. Raises SetupFailed where a step fails; the folder then stays
    'started', so that the next run builds it anew.
    """
    began = time.monotonic()
    recipe = Recipe(pick.kind, pick.requirement, dict(files), str(root))
    folder = environment.folder
    is_kept = _is_same_but_for_pins(environment, recipe, needs)
    if is_kept:
        environment.disown()
    else:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        (folder / STARTED).write_text("set-up has begun\n", encoding="utf-8", newline="\n")
        say(f"[1/3] Python {sys.version.split()[0]} in {folder}")
        _make_venv(environment, run)
    pip = [
        str(environment.python),
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        *patience,
    ]
    if not is_kept:
        where = ["--index-url", index_url] if index_url else []
        say(f"[2/3] {pick.requirement}" + (f" from {index_url}" if index_url else ""))
        _pip([*pip, *where, pick.requirement], run, pick.requirement)
    say(f"[3/3] packages of {', '.join(files)}")
    _pip([*pip, *(word for name in files for word in ("-r", str(root / name)))], run, ", ".join(files))
    _check_result(environment, pick, needs)
    _point_to_kit(environment, root)
    (folder / STARTED).write_text(dumps(recipe) + "\n", encoding="utf-8", newline="\n")
    (folder / STARTED).replace(folder / DONE)
    say(f"ready after {time.monotonic() - began:.0f} s: {folder}")


def _is_same_but_for_pins(environment: Environment, recipe: Recipe, needs: Sequence[Need]) -> bool:
    """Only the pins changed: pip can bring the folder up to date in place."""
    found = environment.recipe()
    return (
        found is not None
        and dataclasses.replace(found, requirements={}) == dataclasses.replace(recipe, requirements={})
        and found.requirements != recipe.requirements
        and environment.site_packages is not None
        and environment.python.exists()
    )


def _make_venv(environment: Environment, run: Run) -> None:
    """With the Python's own pip, or PyPI's where a distribution has split it off (Debian, Ubuntu)."""
    has_pip = importlib.util.find_spec("ensurepip") is not None
    options = [] if has_pip else ["--without-pip"]
    # The environment's own Python cannot make it anew: it stands in the folder that was just removed.
    python = getattr(sys, "_base_executable", None) or sys.executable
    if run([python, "-m", "venv", *options, str(environment.folder)]) != 0:
        raise SetupFailed(
            f"Python could not make a virtual environment in {environment.folder}.",
            expected="`python3 -m venv` to work.",
            todo="see its message above; on Debian and Ubuntu `apt install python3-venv` helps.",
        )
    if not has_pip:
        wheel = environment.folder / PIP_URL.rpartition("/")[2]
        wheel.write_bytes(fetch_pip())
        _pip(
            [str(environment.python), str(wheel / "pip"), "install", "--no-index", "--quiet", str(wheel)],
            run,
            "pip",
        )


def _pip(argv: list[str], run: Run, what: str) -> None:
    code = run(argv)
    if code != 0:
        raise SetupFailed(
            f"pip could not install {what} (exit code {code}); its own message stands above.",
            expected="an index, a mirror (PIP_INDEX_URL) or a folder of wheels (PIP_FIND_LINKS) that has it.",
            todo="check network, proxy (HTTPS_PROXY) and disk space, then run the same command again.",
        )


def _check_result(environment: Environment, pick: TorchPick, needs: Sequence[Need]) -> None:
    """Exit code 0 is not believed: what is needed must be there, and torch carry the right CUDA."""
    lacking = environment.lacks(needs)
    if lacking:
        raise SetupFailed(f"after the installation {environment.folder} still lacks {', '.join(lacking)}.")
    cuda = cuda_of_installed_torch(environment)
    if pick.cuda is not None and cuda != pick.cuda:
        raise SetupFailed(
            f"pip installed a torch build with {f'CUDA {cuda[0]}.{cuda[1]}' if cuda else 'no CUDA'}.",
            expected=f"{pick.requirement} with CUDA {pick.cuda[0]}.{pick.cuda[1]}; nothing takes its place.",
            todo="see where pip took it from (`pip config list`) and run the same command again.",
        )


def cuda_of_installed_torch(environment: Environment) -> tuple[int, int] | None:
    """From torch/version.py read as text: `cuda: Optional[str] = '12.8'`."""
    try:
        text = ((environment.site_packages or environment.folder) / "torch" / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"""^cuda\b[^=\n]*=\s*['"](\d+)\.(\d+)""", text, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else None


def _point_to_kit(environment: Environment, root: Path) -> None:
    """A .pth file, so that notebooks and kernels of this environment find the kit from any folder.

    Python reads .pth files in the locale's encoding.
    """
    if environment.site_packages:
        (environment.site_packages / "kit-checkout.pth").write_text(f"{root}\n", encoding="locale", newline="\n")


def run_program(argv: Sequence[str], *, keep_open: int | None = None) -> int:
    """Runs it with its output on stderr, so that stdout stays the command's own; returns its exit code.

    PYTHONPATH and a `--user` setting are left out: with them pip would take packages
    of another place for installed. keep_open: the lock's descriptor; a pip that
    outlives a killed set-up thereby holds the lock until it ends.
    """
    environ = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_USER", "PYTHONHOME")
    }
    pass_fds = (keep_open,) if keep_open is not None and os.name == "posix" else ()
    return subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, stdout=sys.stderr, pass_fds=pass_fds).returncode


@contextlib.contextmanager
def locked(path: Path, say: Say) -> Iterator[int]:
    """Holds `path` against a second set-up; yields the descriptor. The system frees it at the end."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _try_lock(descriptor):
            say(f"another set-up is at work ({path.name}); waiting for it.")
            while not _try_lock(descriptor):
                time.sleep(0.5)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        # A file system without locks: better no lock than no set-up.
        return True
    return True

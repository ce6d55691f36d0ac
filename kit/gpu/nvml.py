"""The driver as nvidia-ml-py and libcuda tell it: the first witness, and what explains its silence."""

from __future__ import annotations

import csv
import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.gpu.facts import Driver, Gpu
from kit.units import MiB

# What the NVIDIA driver says about this machine, read with the standard library alone.
#
# Set-up needs this before any package is installed: GPU names, compute capability and
# driver version pick the torch build. nvidia-smi is asked first, then the driver's own
# library (NVML) through ctypes. Every call is bounded by a timeout, and nothing is
# guessed: what no witness said stays None. It judges nothing.

TIMEOUT_S = 10.0
_FIELDS = ("index", "name", "memory.total", "uuid", "driver_version", "compute_cap")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_PCI_NVIDIA, _PCI_DISPLAY = "0x10de", "0x03"


def read_driver(
    *,
    which: Callable[[str], str | None] = shutil.which,
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run,
    load_nvml: Callable[[], ctypes.CDLL] | None = None,
    root: Path = Path("/"),
    timeout_s: float = TIMEOUT_S,
) -> Driver:
    """The driver and its GPUs; `version` is None, and `nvml_error` says why, where no witness answered.

    Older nvidia-smi do not know `compute_cap`; then NVML answers, and only where it
    cannot either is the list taken without it.
    """
    program, kernel = which("nvidia-smi"), kernel_module_version(root)
    problems = [] if program else ["nvidia-smi is not in PATH"]

    def smi(fields: tuple[str, ...]) -> Driver:
        return _from_smi(program, fields, run, timeout_s) if program else Driver()

    def nvml() -> Driver:
        return _bounded(lambda: _from_nvml(load_nvml or _load_nvml), timeout_s)

    for ask in (lambda: smi(_FIELDS), nvml, lambda: smi(_FIELDS[:-1])):
        try:
            found = ask()
        except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
            problems.append(str(error))
            if isinstance(error, (TimeoutError, subprocess.TimeoutExpired)):
                # A driver that hangs once hangs again.
                break
            continue
        if found.version:
            return Driver(found.version, found.cuda_version, found.gpus, kernel_version=kernel)
    return Driver(nvml_error="; ".join(dict.fromkeys(problems)), kernel_version=kernel)


def has_nvidia_hardware(root: Path = Path("/")) -> bool:
    """Whether the operating system shows an NVIDIA GPU, with or without a driver that works.

    Device nodes, the kernel module's folder, a Tegra chip, or a PCI display controller
    of vendor 10de. On Windows only the driver can tell, so the answer there is False.
    """
    nodes = ("dev/nvidia0", "dev/nvidiactl", "proc/driver/nvidia", "dev/nvgpu", "dev/nvhost-gpu")
    if any((root / node).exists() for node in nodes):
        return True
    for device in (root / "sys/bus/pci/devices").glob("*"):
        if first_line(device / "vendor") == _PCI_NVIDIA and first_line(device / "class").startswith(_PCI_DISPLAY):
            return True
    return False


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
    return f"{(system or platform.system()).lower()}_{_MACHINES.get(name, name)}"


def _from_smi(program: str, fields: tuple[str, ...], run: Callable[..., object], timeout_s: float) -> Driver:
    """`nvidia-smi --query-gpu=…`. Raises ValueError where it fails: then its text is no witness."""
    argv = [program, "--query-gpu=" + ",".join(fields), "--format=csv,noheader,nounits"]
    done = run(argv, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=timeout_s)
    text = done.stdout.strip()
    if done.returncode != 0 or not text:
        said = " ".join((text + " " + done.stderr.strip()).split())[:300]
        raise ValueError(f"nvidia-smi ended with exit code {done.returncode}: {said or 'no output'}")
    rows = [
        dict(zip(fields, map(_known, row), strict=False))
        for row in csv.reader(text.splitlines(), skipinitialspace=True)
        if row
    ]
    if any(len(row) != len(fields) for row in rows):
        raise ValueError(f"nvidia-smi printed {text.splitlines()[0][:120]!r}, not {len(fields)} fields")
    return Driver(version=rows[0]["driver_version"], gpus=tuple(map(_gpu_of_row, rows)))


def _gpu_of_row(row: dict[str, str | None]) -> Gpu:
    index, memory = row["index"], row["memory.total"]
    return Gpu(
        index=int(index) if index else None,
        name=row["name"],
        compute_capability=_capability(row.get("compute_cap")),
        memory_bytes=int(memory) * MiB if memory and memory.isdigit() else None,
        uuid=row["uuid"],
    )


def _known(text: str) -> str | None:
    """nvidia-smi writes '[N/A]', 'N/A' or '[Not Supported]' for what it does not know."""
    text = text.strip()
    return None if not text or text.strip("[]").lower() in ("n/a", "not supported", "unknown error") else text


def _capability(text: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)\.(\d+)", text or "")
    return (int(match[1]), int(match[2])) if match else None


class _Memory(ctypes.Structure):
    """nvmlMemory_t of nvml.h."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _load_nvml() -> ctypes.CDLL:
    if os.name != "nt":
        return ctypes.CDLL("libnvidia-ml.so.1")
    folder = Path(os.environ.get("SystemRoot", r"C:\Windows")) / "System32"
    return ctypes.CDLL(str(folder / "nvml.dll"))


def _from_nvml(load: Callable[[], ctypes.CDLL]) -> Driver:
    """The same from nvml.h's functions. Raises OSError (no library) or ValueError (NVML's message)."""
    nvml = load()
    nvml.nvmlErrorString.restype = ctypes.c_char_p

    def call(name: str, *arguments: object) -> None:
        code = getattr(nvml, name)(*arguments)
        if code != 0:
            raise ValueError(f"NVML's {name} said: {(nvml.nvmlErrorString(code) or b'?').decode(errors='replace')}")

    def text(name: str, *before: object, size: int = 96) -> str:
        buffer = ctypes.create_string_buffer(size)
        call(name, *before, buffer, ctypes.c_uint(size))
        return buffer.value.decode("utf-8", "replace")

    call("nvmlInit_v2")
    try:
        count, cuda = ctypes.c_uint(), ctypes.c_int()
        call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        call("nvmlSystemGetCudaDriverVersion", ctypes.byref(cuda))
        gpus = tuple(_gpu_of_nvml(index, call, text) for index in range(count.value))
        number = cuda.value
        return Driver(text("nvmlSystemGetDriverVersion"), (number // 1000, number % 1000 // 10), gpus)
    finally:
        nvml.nvmlShutdown()


def _gpu_of_nvml(index: int, call: Callable[..., None], text: Callable[..., str]) -> Gpu:
    device, memory = ctypes.c_void_p(), _Memory()
    major, minor = ctypes.c_int(), ctypes.c_int()
    call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    call("nvmlDeviceGetCudaComputeCapability", device, ctypes.byref(major), ctypes.byref(minor))
    try:
        call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    except ValueError:
        # GB10 and other GPUs without memory of their own answer "Not Supported".
        memory.total = 0
    return Gpu(
        index=index,
        name=text("nvmlDeviceGetName", device),
        compute_capability=(major.value, minor.value),
        memory_bytes=memory.total or None,
        uuid=text("nvmlDeviceGetUUID", device),
    )


def _bounded(ask: Callable[[], Driver], timeout_s: float) -> Driver:
    """`ask()` in a daemon thread, because a driver that hangs cannot be interrupted from within."""
    answer: list[Driver | BaseException] = []

    def work() -> None:
        try:
            answer.append(ask())
        except Exception as error:  # carried to the caller, who decides
            answer.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answer:
        raise TimeoutError(f"NVML gave no answer within {timeout_s:g} s")
    if isinstance(answer[0], BaseException):
        raise answer[0]
    return answer[0]


def first_line(path: Path) -> str:
    """The first line of a small file of the kernel; empty where it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


__all__ = [
    "first_line", "has_nvidia_hardware", "is_container", "is_wsl", "kernel_module_version", "platform_name",
    "read_driver",
]  # fmt: skip


_LIBRARY_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
)


def read_nvml(notes: list[str]) -> Driver | None:
    """The driver through NVML, or None with a note where nvidia-ml-py is missing."""
    if importlib.util.find_spec("pynvml") is None:
        notes.append("nvidia-ml-py is not installed: the driver was not asked through NVML")
        return None
    import pynvml as nvml

    shared = {
        "library_version": _library_version(),
        "kernel_version": kernel_module_version(),
        "libcuda": libcuda_kind(),
        "uvm_error": _uvm_error(),
    }
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Driver(nvml_error=str(error), cuda_init_error=_cu_init(), **shared)
    try:
        return Driver(
            version=_decode(nvml.nvmlSystemGetDriverVersion()),
            cuda_version=_cuda_version(nvml),
            gpus=tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())),
            cuda_init_error=_cu_init(),
            **shared,
        )
    except nvml.NVMLError as error:
        return Driver(nvml_error=str(error), **shared)
    finally:
        nvml.nvmlShutdown()


def _cuda_version(nvml: Any) -> tuple[int, int] | None:
    try:
        value = nvml.nvmlSystemGetCudaDriverVersion_v2()
    except nvml.NVMLError:
        return None
    return value // 1000, value % 1000 // 10


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(function: str, *args: Any) -> Any:
        try:
            return getattr(nvml, function)(handle, *args)
        except (nvml.NVMLError, AttributeError):
            return None

    memory, mig = ask("nvmlDeviceGetMemoryInfo"), ask("nvmlDeviceGetMigMode")
    processes = ask("nvmlDeviceGetComputeRunningProcesses")
    return Gpu(
        index=index,
        name=_decode(ask("nvmlDeviceGetName")),
        compute_capability=ask("nvmlDeviceGetCudaComputeCapability"),
        memory_bytes=memory.total if memory else None,
        uuid=_decode(ask("nvmlDeviceGetUUID")),
        mig_profile="enabled" if mig and mig[0] == 1 else None,
        used_memory_bytes=memory.used if memory else None,
        compute_processes=None if processes is None else len(processes),
    )


def _decode(value: Any) -> Any:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def _library_version() -> str | None:
    """Of the user-mode library on disk, by its file name; it differs from the kernel module's after an upgrade."""
    for folder in _LIBRARY_FOLDERS:
        for path in Path(folder).glob("libcuda.so.*.*"):
            return path.name.removeprefix("libcuda.so.")
    return None


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
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        return int(ctypes.CDLL(name).cuInit(0)) or None
    except (OSError, AttributeError):
        return None


def _uvm_error() -> str | None:
    """Why /dev/nvidia-uvm cannot be opened, which nvidia-smi does not need and CUDA does; None where it can."""
    path = Path("/dev/nvidia-uvm")
    if not path.exists():
        return None
    try:
        path.open("rb+", buffering=0).close()
    except OSError as error:
        return str(error.strerror)
    return None

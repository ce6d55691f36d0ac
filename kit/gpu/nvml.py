"""The driver as nvidia-ml-py and libcuda tell it: the first witness, and what explains its silence."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from pathlib import Path
from typing import Any

from kit.gpu.driver import kernel_module_version
from kit.gpu.facts import Driver, Gpu

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

"""Looks at this machine and says what it saw, as `MachineFacts`. The only place that touches it.

Two witnesses tell of the GPU: the driver, through NVML, and torch. A third, nvidia-smi, is
kept as a captured text. Nothing is concluded here; `kit.gpu.verdict` does that.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from kit.gpu.facts import Driver, Gpu, KernelProof, MachineFacts, Platform, Torch

# Variables that change what CUDA, torch or the loader do. Others never leave the machine.
ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_FORCE_PTX_JIT", "CUDA_DISABLE_PTX_JIT", "CUDA_CACHE_DISABLE",
    "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCH_CUDA_ARCH_LIST", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS",
)
_SMI_FIELDS = (
    "index,name,driver_version,compute_cap,memory.total,memory.used,power.draw,power.limit,"
    "clocks.sm,temperature.gpu,utilization.gpu,persistence_mode,mig.mode.current"
)
SMI_QUERY = (f"--query-gpu={_SMI_FIELDS}", "--format=csv")


@dataclasses.dataclass(frozen=True)
class Capture:
    """What a program printed, kept as it was. exit_code: None where it could not be run or took too long."""

    argv: tuple[str, ...]
    exit_code: int | None
    text: str

    def __str__(self) -> str:
        code = "not run" if self.exit_code is None else self.exit_code
        return f"$ {' '.join(self.argv)}\nexit code: {code}\n{self.text.rstrip()}\n"


def capture(*argv: str, timeout_s: float = 20) -> Capture:
    """Runs a program found in PATH; bytes that are not UTF-8 are replaced, never an error."""
    program = shutil.which(argv[0])
    if program is None:
        return Capture(argv, None, f"{argv[0]} is not in PATH")
    try:
        done = subprocess.run([program, *argv[1:]], capture_output=True, timeout=timeout_s, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        return Capture(argv, None, f"could not be run: {error}")
    return Capture(argv, done.returncode, (done.stdout + done.stderr).decode("utf-8", errors="replace"))


def probe(*, proof_device: str | None = None, with_torch: bool = True) -> MachineFacts:
    """Everything about this machine that the judge may look at.

    proof_device: 'cuda' or 'cpu' runs a real kernel there (it imports torch, seconds); None
    only reads. torch is imported where it is installed, unless with_torch is False.
    """
    notes: list[str] = []
    smi = capture("nvidia-smi", *SMI_QUERY)
    driver = read_driver(notes)
    messages: list[str] = []
    found, proof = _torch(proof_device, messages, notes) if with_torch else (None, None)
    return MachineFacts(
        source="live",
        platform=read_platform(),
        driver=driver,
        torch=found,
        proof=proof,
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        has_nvidia_device=has_nvidia_device(),
        nvidia_smi_exit_code=smi.exit_code,
        nvidia_smi_gpus=_smi_names(smi),
        messages=tuple(messages),
        notes=tuple(notes),
    )


def _smi_names(smi: Capture) -> tuple[str, ...]:
    """Names that nvidia-smi printed; none where it failed, since a failing program may print old text."""
    if smi.exit_code != 0:
        return ()
    rows = [line.split(", ") for line in smi.text.splitlines()[1:]]
    return tuple(row[1].strip() for row in rows if len(row) > 2)


# --- platform -----------------------------------------------------------------------


def read_platform() -> Platform:
    release = platform.release().lower()
    return Platform(
        system=platform.system() or None,
        machine={"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine()) or None,
        os=_os_name(),
        python=(sys.version_info[0], sys.version_info[1]),
        is_wsl="microsoft" in release,
        is_container=_is_container(),
        is_tegra=Path("/etc/nv_tegra_release").exists() or "tegra" in release,
        jetpack=_first_line(Path("/etc/nv_tegra_release")),
    )


def _os_name() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except (OSError, AttributeError):
        return f"{platform.system()} {platform.release()}".strip() or None


def _is_container() -> bool:
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or "KUBERNETES_SERVICE_HOST" in os.environ:
        return True
    return any(word in (_text(Path("/proc/1/cgroup")) or "") for word in ("docker", "kubepods", "containerd", "lxc"))


def has_nvidia_device() -> bool | None:
    """Whether an NVIDIA device is plugged in, driver or not. None where the system does not tell."""
    if platform.system() == "Linux":
        if Path("/dev/nvidiactl").exists() or Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists():
            return True
        vendors = [_text(path) for path in Path("/sys/bus/pci/devices").glob("*/vendor")]
        return any((vendor or "").strip() == "0x10de" for vendor in vendors)
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _first_line(path: Path) -> str | None:
    text = _text(path)
    return text.splitlines()[0] if text else None


# --- driver -------------------------------------------------------------------------


def read_driver(notes: list[str]) -> Driver | None:
    """The driver through NVML, or None with a note where nvidia-ml-py is missing."""
    if importlib.util.find_spec("pynvml") is None:
        notes.append("nvidia-ml-py is not installed: the driver was not asked through NVML")
        return None
    import pynvml as nvml

    library, kernel = _module_versions()
    shared = {"library_version": library, "kernel_version": kernel, "libcuda": libcuda_kind()}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Driver(nvml_error=str(error), cuda_init_error=_cu_init(), **shared)
    try:
        return Driver(
            version=_decode(nvml.nvmlSystemGetDriverVersion()),
            cuda_version=_cuda_version(nvml),
            gpus=tuple(_nvml_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())),
            cuda_init_error=_cu_init(),
            **shared,
        )
    except nvml.NVMLError as error:
        return Driver(nvml_error=str(error), **shared)


def _cuda_version(nvml: Any) -> tuple[int, int] | None:
    try:
        value = nvml.nvmlSystemGetCudaDriverVersion_v2()
    except nvml.NVMLError:
        return None
    return value // 1000, value % 1000 // 10


def _nvml_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(function: str, *args: Any) -> Any:
        try:
            return getattr(nvml, function)(handle, *args)
        except (nvml.NVMLError, AttributeError):
            return None

    memory = ask("nvmlDeviceGetMemoryInfo")
    mig = ask("nvmlDeviceGetMigMode")
    return Gpu(
        index=index,
        name=_decode(ask("nvmlDeviceGetName")),
        compute_capability=ask("nvmlDeviceGetCudaComputeCapability"),
        memory_bytes=memory.total if memory else None,
        uuid=_decode(ask("nvmlDeviceGetUUID")),
        mig_profile="enabled" if mig and mig[0] == 1 else None,
    )


def _decode(value: Any) -> Any:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def _module_versions() -> tuple[str | None, str | None]:
    """(user-mode library, kernel module): they differ after an upgrade without a reboot."""
    words = (_first_line(Path("/proc/driver/nvidia/version")) or "").split()
    kernel = next((word for word in words if word[:1].isdigit() and "." in word), None)
    library = None
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64"):
        for path in Path(folder).glob("libcuda.so.*.*"):
            library = path.name.removeprefix("libcuda.so.")
    return library, kernel


def libcuda_kind() -> str | None:
    """Which libcuda this process would load: 'driver', 'stub', 'compat' or 'none'. None off Linux."""
    if platform.system() != "Linux":
        return None
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "none"
    mapped = [line.split()[-1] for line in (_text(Path("/proc/self/maps")) or "").splitlines() if "libcuda.so" in line]
    path = mapped[0] if mapped else ""
    return "stub" if "/stubs/" in path else "compat" if "/compat/" in path else "driver"


def _cu_init() -> int | None:
    """cuInit(0) in this process; None where there is no libcuda. It makes no context."""
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        return int(ctypes.CDLL(name).cuInit(0)) or None
    except (OSError, AttributeError):
        return None


# --- torch --------------------------------------------------------------------------


def _torch(proof_device, messages: list[str], notes: list[str]) -> tuple[Torch | None, KernelProof | None]:
    if importlib.util.find_spec("torch") is None:
        notes.append("torch is not installed in this interpreter")
        return None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            import torch
        except (ImportError, OSError) as error:
            return Torch(error=f"import torch failed: {error}"), None
        proof = None
        if proof_device == "cpu" or (proof_device == "cuda" and torch.cuda.is_available()):
            from kit.gpu.proof import prove

            proof = prove(proof_device, size=1024 if proof_device == "cpu" else 4096)
        found = _read_torch(torch)
    messages.extend(str(warning.message) for warning in caught if "CUDA" in str(warning.message))
    return found, proof


def _read_torch(torch: Any) -> Torch:
    cuda = torch.version.cuda
    is_available, count, error, gpus = torch.cuda.is_available(), 0, None, ()
    try:
        count = torch.cuda.device_count()
        if not is_available and cuda:
            torch.cuda.init()
        gpus = tuple(_torch_gpu(torch, index) for index in range(count)) if is_available else ()
    except (RuntimeError, AssertionError) as caught:
        error = str(caught).strip()
    return Torch(
        version=torch.__version__,
        cuda=tuple(int(part) for part in cuda.split(".")[:2]) if cuda else None,
        is_cpu_build=cuda is None and torch.version.hip is None,
        hip=torch.version.hip,
        arch_list=tuple(torch.cuda.get_arch_list()),
        is_available=is_available,
        device_count=count,
        gpus=gpus,
        error=error,
    )


def _torch_gpu(torch: Any, index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    return Gpu(
        index=index,
        name=properties.name,
        compute_capability=(properties.major, properties.minor),
        memory_bytes=properties.total_memory,
        uuid=f"GPU-{properties.uuid}",
        is_integrated=bool(getattr(properties, "is_integrated", 0)),
    )

"""Looks at this machine and says what it saw, as `MachineFacts`. The only place that touches it.

Two witnesses tell of the GPU: the driver, through NVML, and torch. A third, nvidia-smi, is
kept as a captured text. Nothing is concluded here; `kit.gpu.judge_machine` does that.
"""

import concurrent.futures
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from kit.gpu import nvml
from kit.gpu.facts import Driver, Gpu, MachineFacts, Platform, Torch
from kit.gpu.proof import jit_allowed, prove
from kit.units import pair

# Variables that change what CUDA, torch or the loader do. Others never leave the machine.
ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_FORCE_PTX_JIT",
    "CUDA_DISABLE_PTX_JIT",
    "CUDA_CACHE_DISABLE",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_MPS_PIPE_DIRECTORY",
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "TORCH_CUDA_ARCH_LIST",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "OMP_NUM_THREADS",
)
_SMI_FIELDS = (
    "index,name,driver_version,compute_cap,memory.total,memory.used,power.draw,power.limit,"
    "clocks.sm,temperature.gpu,utilization.gpu,persistence_mode,mig.mode.current"
)
# Packages that hold GPU code or are built for one torch: what an installation of another torch has to name too.
NEIGHBOURS = re.compile(
    r"torch|torchvision|torchaudio|torchtext|triton|pytorch-triton|nvidia-.+|xformers|flash-attn|bitsandbytes|vllm"
    r"|transformers|accelerate|deepspeed|apex|cupy-.+|onnxruntime-gpu|tensorrt|causal-conv1d|mamba-ssm"
)
# What a program's own error writes into the log (13 engine exception, 31 page fault, 43 and 45 a stopped program),
# and what the hardware put right by itself (63 a row remapped, 94 a contained error). NVIDIA, Xid Errors, 2026-11.
_HARMLESS = frozenset({13, 31, 43, 45, 63, 94})
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:]+)[^)]*\): (\d+)")
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


def probe(*, proof_device: str | None = None, with_torch: bool = True, library: Path | None = None) -> MachineFacts:
    """Everything about this machine that the judge may look at.

    proof_device: 'cuda' or 'cpu' runs a real kernel there (it imports torch, seconds); None
    only reads. torch is imported where it is installed, unless with_torch is False. library: see `prove`.
    """
    notes: list[str] = []
    messages: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as beside:
        # Each takes about as long as CUDA's start, so they run while torch is imported.
        asked = beside.submit(capture, "nvidia-smi", *SMI_QUERY)
        driver = nvml.read_nvml(notes)
        allowed = beside.submit(jit_allowed) if proof_device == "cuda" and driver and driver.gpus else None
        found = _torch(messages, notes) if with_torch else None
        control = allowed.result() if allowed else None
        proof = None
        if proof_device and found and (found.is_available or (proof_device == "cpu" and found.version)):
            proof = prove(proof_device, size=1024 if proof_device == "cpu" else 4096, library=library)
            proof = dataclasses.replace(proof, jit_allowed=control)
        smi = asked.result()
    # A program that fails may print an old text.
    rows = [line.split(", ") for line in smi.text.splitlines()[1:]] if smi.exit_code == 0 else []
    return MachineFacts(
        source="live",
        platform=read_platform(),
        driver=driver,
        torch=found,
        proof=proof,
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        has_nvidia_device=nvml.has_nvidia_hardware() or bool(driver and driver.gpus),
        nvidia_smi_exit_code=smi.exit_code,
        nvidia_smi_gpus=tuple(row[1].strip() for row in rows if len(row) > 2),
        packages=_packages(),
        messages=tuple(messages),
        xids=_xids(driver, notes),
        notes=tuple(notes),
    )


def _packages() -> dict[str, str]:
    """Torch's neighbours in this interpreter, by their normalised names."""
    told = [each.metadata for each in importlib.metadata.distributions()]
    named = [(re.sub(r"[-_.]+", "-", each["Name"] or "").lower(), each["Version"]) for each in told]
    # The first in the path is the one that an import finds.
    return dict(sorted({name: version for name, version in reversed(named) if NEIGHBOURS.fullmatch(name)}.items()))


def _xids(driver: Driver | None, notes: list[str]) -> tuple[int, ...] | None:
    """Xid numbers of the hardware and the driver that the kernel log holds since it began, of this machine's GPUs;
    None with a note where nobody may read it."""
    if not (driver and driver.gpus):
        return None
    ours = {gpu.pci_bus for gpu in driver.gpus}
    for argv in (("dmesg",), ("journalctl", "-k", "-b", "-o", "cat", "--no-pager")):
        log = capture(*argv)
        if log.exit_code == 0 and log.text.strip():
            found = [int(number) for bus, number in _XID.findall(log.text) if None in ours or bus.lower() in ours]
            return tuple(xid for xid in dict.fromkeys(found) if xid not in _HARMLESS)
    notes.append("the kernel log may not be read here: whether it holds Xid errors is not known")
    return None


# --- platform -----------------------------------------------------------------------


def read_platform() -> Platform:
    tegra = nvml.first_line(Path("/etc/nv_tegra_release")) or None
    name = f"{platform.system()} {platform.release()}".strip() or None
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        pass
    return Platform(
        system=platform.system() or None,
        machine=nvml.platform_name().partition("_")[2] or None,
        os=name,
        python=(sys.version_info[0], sys.version_info[1]),
        is_wsl=nvml.is_wsl(),
        is_container=nvml.is_container(),
        is_tegra=tegra is not None or "tegra" in platform.release().lower(),
        jetpack=tegra,
    )


# --- torch --------------------------------------------------------------------------


def _torch(messages: list[str], notes: list[str]) -> Torch | None:
    if importlib.util.find_spec("torch") is None:
        notes.append("torch is not installed in this interpreter")
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            import torch
        except (Exception, SystemExit) as error:  # a broken package raises anything; the judge hears of it
            return Torch(error=f"import torch failed: {type(error).__name__}: {error}", **_installed_from())
        found = _read_torch(torch)
    messages.extend(str(warning.message) for warning in caught if "CUDA" in str(warning.message))
    return found


def _read_torch(torch: Any) -> Torch:
    """What the build is, and what it says of CUDA: `is_available` is True only where CUDA then starts too."""
    cuda = torch.version.cuda
    found = Torch(
        version=torch.__version__,
        cuda=pair(cuda),
        is_cpu_build=cuda is None and torch.version.hip is None,
        hip=torch.version.hip,
        is_available=False,
        device_count=0,
        **_installed_from(),
    )
    try:
        is_available, count = torch.cuda.is_available(), torch.cuda.device_count()
        found = dataclasses.replace(found, device_count=count)
        if cuda:
            torch.cuda.init()
        return dataclasses.replace(
            found,
            is_available=is_available,
            arch_list=tuple(torch.cuda.get_arch_list()),
            gpus=tuple(_torch_gpu(torch, index) for index in range(count)) if is_available else (),
            cudnn=str(torch.backends.cudnn.version() or "") or None if is_available else None,
        )
    except Exception as caught:  # CUDA's start fails in many ways; each is what the judge has to hear
        # The architectures that were compiled in; torch's own question answers nothing where CUDA does not start.
        flags = getattr(torch._C, "_cuda_getArchFlags", str)() or ""
        return dataclasses.replace(found, arch_list=tuple(flags.split()), error=str(caught).strip())


def _installed_from() -> dict[str, Any]:
    """Version and origin as the installer recorded them, which tell a wheel that was swapped under the code."""
    for found in importlib.metadata.Distribution.discover(name="torch"):
        origin = found.read_text("direct_url.json")
        return {"metadata_version": found.version, "direct_url": json.loads(origin).get("url") if origin else None}
    return {}


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

"""Errors that tell their cause by themselves: what each one means and what would confirm it.

Sources: CUDA Runtime API cudaError values, NVIDIA Fabric Manager guide (802),
pytorch#88639 and #115340 (999 with /dev/nvidia-uvm), NVIDIA forum threads on WSL.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cause:
    """is_certain: whether it decides even where the torch build lacks code for the GPU."""

    symptom: str
    name: str
    because: str
    ask: str = ""
    confidence: str = "high"
    is_certain: bool = True


CAUSES: tuple[Cause, ...] = (
    Cause(
        "system_not_ready",
        "fabric_manager",
        "error 802: on machines with NVSwitch the fabric manager must run, in exactly the driver's version",
        "systemctl status nvidia-fabricmanager; nvidia-smi",
    ),
    Cause(
        "uvm_unreadable",
        "uvm",
        "/dev/nvidia-uvm cannot be opened: CUDA needs it, nvidia-smi does not, so nvidia-smi looks healthy",
        "ls -l /dev/nvidia-uvm",
    ),
    Cause(
        "stub",
        "stub",
        "the toolkit's stub libcuda (error 34) was loaded in place of the driver's: a stubs folder is in "
        "the loader path",
        "ldconfig -p | grep libcuda.so; echo $LD_LIBRARY_PATH",
    ),
    Cause(
        "gpu_lost",
        "gpu_lost",
        "the driver reports a GPU as lost or an Xid error: hardware or driver state",
        "nvidia-smi; dmesg | grep -i xid",
    ),
    Cause(
        "unknown_error",
        "uvm",
        "CUDA's start gave error 999 (unknown): most often /dev/nvidia-uvm cannot be used, after suspend "
        "or in a faulty host",
        """python -c "import os,ctypes; os.open('/dev/nvidia-uvm',2);
        print(ctypes.CDLL('libcuda.so.1').cuInit(0))\"""",
    ),
    Cause(
        "start_out_of_memory",
        "start_out_of_memory",
        "CUDA ran out of memory while it counted devices: host or WSL memory limits, not the build",
        "free -g; nvidia-smi",
    ),
    Cause(
        "busy",
        "busy",
        "the GPU is in exclusive mode and another process holds it (error 46)",
        "nvidia-smi -q -d COMPUTE",
    ),
    Cause(
        "smi_err",
        "driver_library",
        "nvidia-smi cannot ask the driver for its CUDA version (ERR!): the user-mode library does not fit",
        "nvidia-smi",
    ),
    Cause(
        "triton_too_old",
        "triton_too_old",
        "Triton, the compiler behind torch.compile, needs compute capability 7.0; eager torch is another matter",
        is_certain=False,
    ),
    Cause(
        "compiler_lacks_arch",
        "compiler_lacks_arch",
        "a compiler beside torch (ptxas, nvcc, NVRTC or LLVM) is older than this GPU and does not know its code",
        "ptxas --version",
        is_certain=False,
    ),
    Cause(
        "extension_gpu",
        "extension",
        "an extension package asks for a newer GPU generation than this one; torch itself is not the cause",
        is_certain=False,
    ),
    Cause(
        "broken_libraries",
        "broken_libraries",
        "torch's or an extension's CUDA libraries do not load: a later install replaced one of the "
        "packages, or files are missing",
        "pip list",
        is_certain=False,
    ),
    Cause(
        "toolkit_mismatch",
        "toolkit",
        "an extension is being compiled with another CUDA toolkit than torch's, or with none; torch "
        "itself is not the cause",
        "nvcc --version",
        is_certain=False,
    ),
    Cause(
        "library_error",
        "library_error",
        "cuBLAS or cuDNN could not start: mostly memory that is already full, else libraries of two "
        "versions in one process",
        "nvidia-smi",
        confidence="medium",
        is_certain=False,
    ),
    Cause(
        "bad_image",
        "bad_image",
        "the driver refuses the kernel image itself (error 200): driver and build disagree on its form",
        "nvidia-smi",
        confidence="medium",
        is_certain=False,
    ),
    Cause(
        "nvml_error",
        "driver_state",
        "NVML cannot start; CUDA may still work, or the driver is in a bad state",
        "nvidia-smi",
        confidence="medium",
        is_certain=False,
    ),
)

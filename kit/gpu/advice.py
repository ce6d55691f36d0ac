"""What to do where neither another torch build nor another driver is the answer: one entry for each cause."""

from __future__ import annotations

from kit.gpu.case import Diagnosis
from kit.gpu.facts import MachineFacts

_ADVICE: dict[str, tuple[str, tuple[str, ...]]] = {
    "reboot": (
        "Restart the machine, or reload the NVIDIA kernel modules, so that library and module have one version.",
        ("sudo reboot",),
    ),
    "libcuda_mismatch": (
        "Make the driver's own libcuda come first in the loader path (no compat or conda copy before "
        "it), or restart"
        " after a driver upgrade.",
        ("ldconfig -p | grep libcuda.so", "cat /proc/driver/nvidia/version"),
    ),
    "fabric_manager": (
        "Start the NVIDIA fabric manager in exactly the driver's version (on a rented node, ask the provider).",
        ("sudo systemctl enable --now nvidia-fabricmanager", "nvidia-smi"),
    ),
    "uvm": (
        "Reload the nvidia_uvm module (on your own machine) or restart; in a rented container move to another host.",
        ("sudo rmmod nvidia_uvm", "sudo modprobe nvidia_uvm"),
    ),
    "stub": (
        "Take the toolkit's stubs folder out of LD_LIBRARY_PATH: it is for linking only.",
        ("unset LD_LIBRARY_PATH",),
    ),
    "gpu_lost": (
        "Restart the machine and read the kernel log; if the GPU is lost again, it is the hardware.",
        ("sudo reboot",),
    ),
    "busy": (
        "End the process that holds the GPU, or set the default compute mode.",
        ("nvidia-smi", "sudo nvidia-smi -c 0"),
    ),
    "start_out_of_memory": (
        "Give the host or WSL more memory, or show CUDA fewer GPUs.",
        ("CUDA_VISIBLE_DEVICES=0 python -m kit check",),
    ),
    "driver_library": (
        "Update the NVIDIA driver (under WSL the one of Windows, then `wsl --shutdown`).",
        ("wsl --update", "wsl --shutdown"),
    ),
    "driver_state": (
        "Restart the machine; if nvidia-smi still fails, install the driver again.",
        ("nvidia-smi",),
    ),
    "triton_too_old": (
        "Run without torch.compile: Triton has no code for this GPU, eager torch has if its build does.",
        ("export TORCHDYNAMO_DISABLE=1",),
    ),
    "compiler_lacks_arch": (
        "Give the program a ptxas of a toolkit that knows this GPU (CUDA 12.8 for 12.0, 12.9 for 10.3 "
        "and 12.1), or update"
        " the package that brings its own.",
        ("export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas",),
    ),
    "extension": (
        "torch fits; update or rebuild the package that lacks code for this GPU, and look what it holds.",
        ("python -m kit check --installed PACKAGE",),
    ),
    "toolkit": (
        "Install the CUDA toolkit of the version that torch was built with and name it in CUDA_HOME.",
        ("nvcc --version",),
    ),
    "broken_libraries": (
        "Install torch again from one index, in a fresh environment, with the other packages in the same "
        "command so that"
        " none of them replaces it.",
        ("python -m venv .venv-gpu", "python -m pip list"),
    ),
    "library_error": (
        "See that the GPU has free memory and that only one copy of cuBLAS and cuDNN is installed.",
        ("nvidia-smi", "python -m pip list"),
    ),
    "bad_image": ("Update the driver and use a newer torch build of the same CUDA.", ("nvidia-smi",)),
    "pip_found_nothing": (
        "Ask an index that has the build for this Python and platform: https://download.pytorch.org/whl/ "
        "lists them, and"
        " each torch release has builds for some Python versions only.",
        ("python -V", "python -m pip index versions torch"),
    ),
    "wrong_numbers": (
        "Do not trust this GPU: run the check again, then test its memory.",
        ("nvidia-smi -q -d ECC",),
    ),
    "force_ptx_jit": ("Take CUDA_FORCE_PTX_JIT out of the environment.", ("unset CUDA_FORCE_PTX_JIT",)),
    "no_torch": (
        "Install torch in this interpreter, or let `python -m kit report` make an environment.",
        ("python -m kit report",),
    ),
    "witnesses": ("Find out which program or patch reports another GPU than the driver.", ("nvidia-smi -L",)),
    "unknown_start": (
        "See the error that CUDA's start gives.",
        ('python -c "import torch; torch.cuda.init()"',),
    ),
    "container": (
        "Start the container with the GPU: docker needs the NVIDIA container toolkit and --gpus all.",
        ("docker run --gpus all IMAGE nvidia-smi",),
    ),
    "wsl": (
        "Install the NVIDIA driver on Windows (none inside WSL), then restart WSL.",
        ("wsl --shutdown", "nvidia-smi"),
    ),
    "no_driver": (
        "Install the NVIDIA driver and restart; in a container, start it with --gpus all.",
        ("nvidia-smi",),
    ),
    "no_device": (
        "See what the driver lists; a device that is not listed is not passed in, switched off or broken.",
        ("nvidia-smi -L",),
    ),
    "no_gpu": (
        "This machine has no NVIDIA GPU. A rehearsal on the CPU is `--device cpu`.",
        ("python -m kit report --device cpu",),
    ),
    "mask": (
        "Set CUDA_VISIBLE_DEVICES to numbers that `nvidia-smi -L` lists (from 0), or take it away.",
        ("unset CUDA_VISIBLE_DEVICES", "nvidia-smi -L"),
    ),
}
_ON_WINDOWS = {
    "unset CUDA_VISIBLE_DEVICES": "Remove-Item Env:CUDA_VISIBLE_DEVICES",
    "unset CUDA_FORCE_PTX_JIT": "Remove-Item Env:CUDA_FORCE_PTX_JIT",
    "sudo reboot": "Restart-Computer",
    "export TORCHDYNAMO_DISABLE=1": '$Env:TORCHDYNAMO_DISABLE = "1"',
}


def advise(found: Diagnosis, facts: MachineFacts) -> tuple[str, tuple[str, ...]]:
    """(summary, commands) for a diagnosis by its cause."""
    if found.cause not in _ADVICE:
        return "It cannot be told from this. The next command's output would.", (found.ask,) if found.ask else ()
    summary, commands = _ADVICE[found.cause]
    if facts.platform.system == "Windows":
        commands = tuple(_ON_WINDOWS.get(command, command) for command in commands)
    return summary, commands

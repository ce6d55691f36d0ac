"""What makes a short run short: most of it is imports, and most of those are Python compiling source again.

Nothing is left out and nothing is replaced: work is only moved, and a device that cannot be used is refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
from pathlib import Path

from kit.errors import GpuNotUsable


def cache_folder(name: str) -> Path:
    """A folder of the kit's in the user's cache, which outlives a reboot. It is not made here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kit" / name


def keep_bytecode() -> str | None:
    """Has Python keep compiled modules in the user's cache where it cannot keep them beside torch's source.

    Returns why that was needed, None where it was not. Call it before the large imports.
    """
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin or sys.pycache_prefix:
        return None
    if Path(importlib.util.cache_from_source(found.origin)).is_file():
        return None
    reason = "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else "torch's folder holds no compiled modules"
    if not sys.dont_write_bytecode and os.access(Path(found.origin).parent, os.W_OK):
        return None
    sys.pycache_prefix = str(cache_folder("bytecode"))
    sys.dont_write_bytecode = False
    return reason


def require_device(device: str):
    """Imports torch and refuses at once where `device` cannot be used. Returns the torch module."""
    # cuBLAS workspaces that give the same bits each time; read when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The profiler prints a line for each start and stop below this level; read when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise GpuNotUsable(
            f"device=cuda was asked for, and torch {torch.__version__} has no usable CUDA device",
            expected="a CUDA build of torch, a driver and a visible NVIDIA GPU",
            todo="python -m kit check says why and what to install; --device cpu rehearses without a GPU",
        )
    return torch


def start_device(device: str, dtype: str, *, has_kernels: bool = False) -> threading.Thread | None:
    """Starts CUDA and loads cuBLAS in a thread, beside the imports that follow; None on the CPU.

    has_kernels: the run will launch kernels of Triton, which hashes its own source once for the keys of its
    cache (0.43 s on an H100's machine, 2026-11); that is done here too. Join it before the device is measured. What fails there fails again, and is reported, at the first real use.
    """
    if device != "cuda":
        return None
    import torch

    # A thread begins on the first device, whichever this one has taken. Asking would start CUDA here.
    taken = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def start() -> None:
        if taken is not None:
            torch.cuda.set_device(taken)
        kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        try:
            left = torch.ones(64, 64, device=device, dtype=kind)
            (left @ left).sum()
            torch.cuda.synchronize()
        except RuntimeError:
            return
        if has_kernels:
            with contextlib.suppress(ImportError, AttributeError):
                from triton.runtime.cache import triton_key

                triton_key()

    thread = threading.Thread(target=start, name="kit-start-device", daemon=True)
    thread.start()
    return thread

"""What makes a short run short: most of it is imports, and most of those are Python compiling source again.

Both functions only move work: nothing is left out, and nothing is replaced.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from pathlib import Path


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


def start_device(device: str, dtype: str) -> threading.Thread | None:
    """Starts CUDA and loads cuBLAS in a thread, beside the imports that follow; None on the CPU.

    Join it before the device is measured. What fails there fails again, and is reported, at the first real use.
    """
    if device != "cuda":
        return None

    def start() -> None:
        import torch

        kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        try:
            left = torch.ones(64, 64, device=device, dtype=kind)
            (left @ left).sum()
            torch.cuda.synchronize()
        except RuntimeError:
            return

    thread = threading.Thread(target=start, name="kit-start-device", daemon=True)
    thread.start()
    return thread

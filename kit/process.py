"""Where the kit lives, what every process of it finds in its environment, and how it begins.

Two switches stand in the environment of each process that proves something. CUDA reads both once, in
`cuInit`, so they count only where they are set before anything touches CUDA; that they did what they
should is shown by `kit.gpu.proof.jit_control`, never by their being set.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The driver compiles no PTX, and takes none that it compiled before from its cache (~/.nv/ComputeCache):
# what runs is native code. NVIDIA, CUDA C++ Programming Guide, environment variables.
NATIVE_ONLY = {"CUDA_DISABLE_PTX_JIT": "1", "CUDA_CACHE_DISABLE": "1"}


def begin_proof() -> None:
    """Has this process, and all that it starts, run native code alone. Call it before anything touches CUDA."""
    os.environ.update(NATIVE_ONLY)


def child_environment(**changes: str | None) -> dict[str, str]:
    """The environment of every Python that the kit starts: it imports this kit, speaks UTF-8, runs native code
    alone. changes: further variables; None takes one out."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "PYTHONUTF8": "1", "JUPYTER_PREFER_ENV_PATH": "1", **NATIVE_ONLY}
    return {name: value for name, value in {**os.environ, **own, **changes}.items() if value is not None}


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

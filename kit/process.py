"""How a process of the kit begins: what has to be settled before the large imports."""

from __future__ import annotations

import importlib.util
import os
import sys
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

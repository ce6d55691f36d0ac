"""Where the kit lives, what every process of it finds in its environment, and how it begins.

Two switches stand in the environment of each process that proves something. CUDA reads both once, in
`cuInit`, so they count only where they are set before anything touches CUDA; that they did what they
should is shown by `kit.gpu.proof.jit_control`, never by their being set.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
IS_WINDOWS = os.name == "nt"
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
    if IS_WINDOWS:
        # torchrun's store asks for libuv, which torch's builds for Windows lack.
        own["USE_LIBUV"] = "0"
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
    is_allowed = not sys.dont_write_bytecode
    if Path(importlib.util.cache_from_source(found.origin)).is_file() or (
        is_allowed and os.access(Path(found.origin).parent, os.W_OK)
    ):
        return None
    reason = "torch's folder holds no compiled modules" if is_allowed else "PYTHONDONTWRITEBYTECODE is set"
    sys.pycache_prefix = str(cache_folder("bytecode"))
    sys.dont_write_bytecode = False
    return reason


# Notebooks, parameter sets, recorded machines and pins: in the package where it is installed, else the checkout.
IS_CHECKOUT = not (ROOT / "kit" / "share").is_dir()
SHARE = ROOT if IS_CHECKOUT else ROOT / "kit" / "share"
# How a person starts the kit here: by its name where it is installed; on Windows `python3` may be the store's stub.
COMMAND = "kit" if Path(sys.argv[0]).stem == "kit" else "py -m kit" if IS_WINDOWS else "python3 -m kit"
_LOG_EVERY_S = 30.0


def as_typed(text: str) -> str:
    """`text` with the kit called as it was called now."""
    return text if COMMAND == "python3 -m kit" else re.sub(r"\bpython3? -m kit\b(?!\.)", COMMAND, text)


def progress(stream: TextIO | None = None) -> Callable[[str], None]:
    """What shows long work on stderr: a text that ends in a newline stays, another gives way to the next one.

    In a log the others are lines, at most one in half a minute. A stream that was closed ends the display, never
    the work.
    """
    stream = stream or sys.stderr
    is_terminal = stream.isatty()
    width = shutil.get_terminal_size().columns - 1
    last = [time.monotonic()]

    def show(text: str) -> None:
        stays, now = text.endswith("\n"), time.monotonic()
        if is_terminal:
            text = f"\r{text.strip():<{width}}\n" if stays else f"\r{text[:width]:<{width}}"
        elif not stays and now - last[0] < _LOG_EVERY_S:
            return
        else:
            text, last[0] = text.strip() + "\n", now
        with contextlib.suppress(OSError, ValueError):
            stream.write(text)
            stream.flush()

    return show

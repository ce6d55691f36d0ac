"""Runs a real kernel and checks its numbers: the only witness that no table can replace.

The product is checked against float64 on the CPU in two ways: some whole rows element by
element, and every element at once by multiplying with a random vector (Freivalds 1977).

Whether that was native code is shown in the very process in which it ran: `kit.process.NATIVE_ONLY` has the driver
compile nothing, and a module that holds PTX alone has to be refused there. The same module in a process that may
compile has to load; that also leaves it in the driver's cache, so that a cache that answers would be seen.
"""

import ctypes
import dataclasses
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kit.errors import UsageError
from kit.gpu.facts import JitControl, KernelProof
from kit.gpu.nvml import LIBCUDA
from kit.process import NATIVE_ONLY, child_environment
from kit.records import from_json, to_json

SIZE = 4096
_CHECKED_ROWS = 64
# Largest difference over largest value. A float32 product of this length has about 1e-6, one
# that TF32 rounded about 3e-4; a wrong or stale kernel is off by the values themselves.
LIMIT = 2e-5
_CHILD_TIMEOUT_S = 120
# The PTX of CUDA 11.0 for Maxwell: every driver that torch 2 runs on compiles it for every GPU from there on.
_PTX = b".version 7.0\n.target sm_50\n.address_size 64\n.visible .entry control() { ret; }\n\0"
# What CUDA and its libraries say where there is no code that may run; then a process that may compile tries again.
_NO_CODE = re.compile(r"JIT compilation|no kernel image|kernel image is invalid|ARCH_MISMATCH|symbol not found"
                      r"|STATUS_NOT_INITIALIZED|STATUS_NOT_SUPPORTED", re.IGNORECASE)  # fmt: skip


def prove(device: str = "cuda", *, size: int = SIZE, library: Path | None = None) -> KernelProof:
    """A float32 size × size product on `device`, run twice and checked, by native code alone.

    Where this process lets the driver compile, a child process that does not does it all. Where the product finds
    no code, a child that may compile tries again, which tells PTX from no code at all. library: a shared library
    whose `int kernel(void)` has to run too and answer 0, else CUDA's error number.
    """
    if device == "cpu":
        return _product(device, size)
    here = jit_control().is_refused
    proof = None if here else _child(KernelProof, size, library, child_environment())
    proof = proof or _on_gpu(size, library)
    if not proof.ran and _NO_CODE.search(proof.error or ""):
        compiled = _child(KernelProof, size, library, child_environment(**dict.fromkeys(NATIVE_ONLY)))
        if compiled is not None and compiled.ran:
            return dataclasses.replace(compiled, jit=proof.jit, jit_error=proof.error)
    return proof


def jit_control(device: int = 0) -> JitControl:
    """Asks the driver to load a module of PTX alone into this process's context on GPU `device`."""
    try:
        cuda = ctypes.CDLL(LIBCUDA)
        gpu, context, module, popped = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        for name, *arguments in (
            ("cuInit", 0),
            ("cuDeviceGet", ctypes.byref(gpu), device),
            ("cuDevicePrimaryCtxRetain", ctypes.byref(context), gpu),
            ("cuCtxPushCurrent_v2", context),
        ):
            if code := getattr(cuda, name)(*arguments):
                return JitControl(None, f"{name} answered {code}")
        code = cuda.cuModuleLoadData(ctypes.byref(module), _PTX)
        if code == 0:
            cuda.cuModuleUnload(module)
        cuda.cuCtxPopCurrent_v2(ctypes.byref(popped))
        cuda.cuDevicePrimaryCtxRelease_v2(gpu)
    except (OSError, AttributeError) as error:
        return JitControl(None, f"the driver's library could not be asked: {error}")
    if code == 0:
        return JitControl(0, "the driver compiled PTX here: CUDA was up before it was told not to")
    return JitControl(code, None if code == 223 else f"cuModuleLoadData answered {code}")


def jit_allowed() -> JitControl | None:
    """The control in a process that may compile and keep what it compiled."""
    return _child(JitControl, 0, None, child_environment(**dict.fromkeys(NATIVE_ONLY)))


def _on_gpu(size: int, library: Path | None) -> KernelProof:
    """The product, then the library's kernel, then the control of the process in which both ran."""
    proof, error = _product("cuda", size), None
    if library and proof.ran:
        try:
            code, text = ctypes.CDLL(str(library)).kernel(), ctypes.c_char_p()
            if code:
                ctypes.CDLL(LIBCUDA).cuGetErrorString(code, ctypes.byref(text))
                error = f"kernel() of {library.name}: CUDA error {code}: {(text.value or b'?').decode()}"
        except (OSError, AttributeError) as caught:
            error = f"{library.name} could not be run: {caught}"
        proof = dataclasses.replace(proof, library=library.name, ran=error is None, error=error)
    return dataclasses.replace(proof, jit=jit_control())


def _product(device: str, size: int) -> KernelProof:
    import torch

    def wait() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    proof, before = KernelProof(device, True, size, "float32", limit=LIMIT), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        # Drawn on the device, where it is quick; the check uses the copy, whatever it holds.
        generator = torch.Generator(device).manual_seed(0)
        left, right = (torch.randn(size, size, generator=generator, device=device) for _ in range(2))
        _ = left @ right
        start = wait()
        product = left @ right
        seconds = wait() - start
        error = _relative_error(product.cpu(), left.cpu(), right.cpu())
        return dataclasses.replace(proof, max_relative_error=error, seconds=seconds)
    except (RuntimeError, AssertionError) as caught:
        # torch raises AssertionError for "Torch not compiled with CUDA enabled"
        text = str(caught).strip() or type(caught).__name__
        return dataclasses.replace(proof, ran=False, limit=None, error=text[:2000])
    finally:
        torch.set_float32_matmul_precision(before)


def _relative_error(product, left, right) -> float:
    """The larger of both checks, relative to the largest checked value; 1e30 for NaN or factors that are not random."""
    import torch

    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(len(left), generator=generator)[:_CHECKED_ROWS]
    signs = torch.randint(0, 2, (len(left),), generator=generator).double() * 2 - 1
    pairs = (
        (product[rows].double(), left[rows].double() @ right.double()),
        (product.double() @ signs, left.double() @ (right.double() @ signs)),
    )
    errors = [float((found - exact).abs().max() / exact.abs().max()) for found, exact in pairs]
    # A device that draws zeros would make every product right.
    is_drawn = bool(left.std() > 0.9) and bool(right.std() > 0.9)
    return max(errors) if is_drawn and not any(map(math.isnan, errors)) else 1e30


def _child(kind: Any, size: int, library: Path | None, environment: dict[str, str]) -> Any:
    """A proof of a fresh process, or its control where size is 0; None where the process gave no answer."""
    command = [sys.executable, "-m", "kit.gpu.proof", str(size), *([str(library)] if library else [])]
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_CHILD_TIMEOUT_S
        )
        lines = [line for line in done.stdout.decode("utf-8").splitlines() if line.startswith("{")]
        return from_json(kind, json.loads(lines[-1]))
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError, UsageError):
        return None


def _main(size: str, library: str = "") -> None:
    found = _on_gpu(int(size), Path(library) if library else None) if int(size) else jit_control()
    print(json.dumps(to_json(found)))


if __name__ == "__main__":
    _main(*sys.argv[1:])

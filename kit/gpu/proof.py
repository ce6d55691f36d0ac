"""Runs a real kernel and checks its numbers: the only witness that no table can replace.

The product is checked against float64 on the CPU in two ways: some whole rows element by
element, and every element at once by multiplying with a random vector (Freivalds 1977).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from kit.gpu.facts import KernelProof
from kit.records import from_json, to_json

SIZE = 4096
_CHECKED_ROWS = 64
# Largest difference over largest value. A float32 product of this length has about 1e-6, one
# that TF32 rounded about 3e-4; a wrong or stale kernel is off by the values themselves.
LIMIT = 2e-5
_CHILD_TIMEOUT_S = 120


def prove(device: str = "cuda", *, size: int = SIZE) -> KernelProof:
    """A float32 size × size product on `device`, run twice and checked.

    Where CUDA has not started in this process, PTX JIT is switched off before it does, so that
    success is native code at work; if that fails, a child process tries again with JIT allowed.
    Where CUDA runs already, a child process does the part without JIT.
    """
    import torch

    if device == "cpu":
        return _product(device, size)
    if torch.cuda.is_initialized():
        proof = _product(device, size)
        child = _child(size, is_jit_allowed=False) if proof.ran else None
        return _with_child(proof, child)
    with _environment({"CUDA_DISABLE_PTX_JIT": "1"}):
        proof = _product(device, size)
    if proof.ran:
        return _replace(proof, ran_without_ptx_jit=True)
    with_jit = _child(size, is_jit_allowed=True)
    if with_jit is not None and with_jit.ran:
        return _replace(with_jit, ran_without_ptx_jit=False, jit_error=proof.error)
    return proof


def _with_child(proof: KernelProof, child: KernelProof | None) -> KernelProof:
    if child is None:
        return proof
    return _replace(proof, ran_without_ptx_jit=child.ran, jit_error=child.error)


def _replace(proof: KernelProof, **changes) -> KernelProof:
    import dataclasses

    return dataclasses.replace(proof, **changes)


def _product(device: str, size: int) -> KernelProof:
    import torch

    try:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            # Drawn on the device, where it is quick; the check uses the copy, whatever it holds.
            generator = torch.Generator(device).manual_seed(0)
            left = torch.randn(size, size, generator=generator, device=device)
            right = torch.randn(size, size, generator=generator, device=device)
            _ = left @ right
            _wait(device)
            start = time.perf_counter()
            product = left @ right
            _wait(device)
            seconds = time.perf_counter() - start
            error = _relative_error(product.cpu(), left.cpu(), right.cpu())
        finally:
            torch.set_float32_matmul_precision(before)
    except (RuntimeError, AssertionError) as caught:
        # torch raises AssertionError for "Torch not compiled with CUDA enabled"
        text = str(caught).strip() or type(caught).__name__
        return KernelProof(device=device, ran=False, size=size, dtype="float32", error=text[:2000])
    return KernelProof(
        device=device, ran=True, size=size, dtype="float32", max_relative_error=error, limit=LIMIT, seconds=seconds
    )


def _relative_error(product, left, right) -> float:
    """The larger of both checks, relative to the largest checked value; 1e30 for NaN or factors that are not random."""
    import torch

    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(len(left), generator=generator)[:_CHECKED_ROWS]
    exact = left[rows].double() @ right.double()
    by_rows = (product[rows].double() - exact).abs().max() / exact.abs().max()
    signs = torch.randint(0, 2, (len(left),), generator=generator).double() * 2 - 1
    expected = left.double() @ (right.double() @ signs)
    by_vector = (product.double() @ signs - expected).abs().max() / expected.abs().max()
    error = float(torch.maximum(by_rows, by_vector))
    # A device that draws zeros would make every product right.
    is_drawn = bool(left.std() > 0.9) and bool(right.std() > 0.9)
    return error if error == error and is_drawn else 1e30


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


class _environment:
    """Sets variables for a block; CUDA reads them once, when it starts."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._values}
        os.environ.update(self._values)

    def __exit__(self, *_) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _child(size: int, *, is_jit_allowed: bool) -> KernelProof | None:
    """The same product in a fresh process; None where the process gave no answer."""
    environment = {**os.environ, "CUDA_CACHE_DISABLE": "1"}
    if is_jit_allowed:
        environment.pop("CUDA_DISABLE_PTX_JIT", None)
    else:
        environment["CUDA_DISABLE_PTX_JIT"] = "1"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kit.gpu.proof", str(size)],
            env=environment,
            capture_output=True,
            timeout=_CHILD_TIMEOUT_S,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        return from_json(KernelProof, json.loads(done.stdout.strip().splitlines()[-1]))
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError):
        return None


if __name__ == "__main__":
    print(json.dumps(to_json(_product("cuda", int(sys.argv[1])))))

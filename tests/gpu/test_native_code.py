"""Native code is what ran where the driver compiles nothing, and that is shown, not set."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machine_sample import GOOD, NO_KERNEL, card, check, machine, verdict

from kit.gpu.facts import JitControl
from kit.process import child_environment

OFF, ON, BOTH_REFUSED = (
    JitControl(223),
    JitControl(0, "CUDA was up"),
    {"jit": JitControl(223), "jit_allowed": JitControl(222)},
)
SWITCHED_OFF = "CUDA error: PTX JIT compilation was disabled"


@pytest.mark.parametrize(
    ("proof", "outcome", "diagnosis", "words"),
    [
        ({"jit": OFF, "jit_allowed": JitControl(0)}, "PASS", "ok", "native code"),
        ({"jit": ON}, "INCONCLUSIVE", "ok", "CUDA was up"),
        ({"jit": JitControl(None, "no libcuda")}, "INCONCLUSIVE", "ok", "no libcuda"),
        ({"jit": None}, "INCONCLUSIVE", "ok", "not tried"),
        (BOTH_REFUSED, "INCONCLUSIVE", "ok", "222"),
        ({"jit": OFF, "jit_error": SWITCHED_OFF}, "FAIL", "ptx_jit_only", "disabled"),
    ],
)
def test_native_is_what_ran_where_ptx_was_refused(proof, outcome, diagnosis, words):
    found = verdict(machine([card("NVIDIA H100 PCIe", (9, 0))], proof=dataclasses.replace(GOOD, **proof)))
    native = check(found, "native.without_ptx_jit")
    assert (native.outcome, found.outcome, found.diagnosis) == (outcome, outcome, diagnosis)
    assert words in native.found


def test_a_build_without_code_is_said_to_lack_it():
    """Its product fails with and without the driver's compiler, so nothing speaks of PTX."""
    proof = dataclasses.replace(GOOD, ran=False, error=NO_KERNEL, max_relative_error=None)
    found = verdict(machine([card("NVIDIA GeForce RTX 5090", (12, 0))], arch="sm_80 sm_90", proof=proof))
    assert (found.outcome, found.diagnosis) == ("FAIL", "arch_missing_from_build")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("code", "outcome", "diagnosis"),
    [(["-gencode", "arch=compute_80,code=compute_80"], "FAIL", "ptx_jit_only"), (["-arch=native"], "PASS", "ok")],
    ids=["ptx", "sass"],
)
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_kernel_of_ptx_alone_is_red_and_one_of_the_card_green(tmp_path, code, outcome, diagnosis, is_cached):
    """Through `kit check --kernel`; also after the driver has compiled the PTX once and keeps it in its cache."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("nvcc is not installed")
    library = tmp_path / "libkernel.so"
    source = Path(__file__).with_name("kernel.cu")
    subprocess.run([nvcc, "-shared", "-Xcompiler", "-fPIC", *code, str(source), "-o", str(library)], check=True)
    if is_cached:
        call = f"import ctypes; raise SystemExit(ctypes.CDLL({str(library)!r}).kernel())"
        allowed = child_environment(CUDA_DISABLE_PTX_JIT=None, CUDA_CACHE_DISABLE=None)
        assert subprocess.run([sys.executable, "-c", call], env=allowed).returncode == 0
    command = [sys.executable, "-m", "kit", "check", "--kernel", str(library), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    said = json.loads(done.stdout)
    proof = said["facts"]["proof"]
    print(" ".join(code), "cached" if is_cached else "fresh", "->", done.returncode, said["verdict"], said["diagnosis"])
    print("   jit", proof["jit"], "allowed", proof["jit_allowed"], "without", proof["jit_error"] or "no error")
    assert (said["verdict"], said["diagnosis"]) == (outcome, diagnosis)

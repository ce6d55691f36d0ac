"""Native code is what ran where the driver compiles nothing, and that is shown, not set."""

import dataclasses
import json
import subprocess
import sys

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
def test_where_cuda_was_up_before_a_child_process_does_it_all():
    """A script that trains already and then asks: its own process compiles, and says so."""
    script = (
        "import json, torch; torch.zeros(1, device='cuda')\n"
        "import kit; from kit.gpu.proof import jit_control; from kit.records import to_json\n"
        "found = kit.check()\n"
        "print(json.dumps([to_json(jit_control()), to_json(found.facts.proof), found.verdict.outcome]))"
    )
    environment = child_environment(CUDA_DISABLE_PTX_JIT=None, CUDA_CACHE_DISABLE=None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    own, proof, outcome = json.loads(done.stdout.splitlines()[-1])
    assert own["code"] == 0 and "CUDA was up" in own["reason"]
    assert (proof["jit"]["code"], proof["jit_allowed"]["code"], outcome) == (223, 0, "PASS")

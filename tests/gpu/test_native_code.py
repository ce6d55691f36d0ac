"""Native code is what ran where the driver compiles nothing, and that is shown, not set.

What the judge says of each answer of the driver stands in golden/questions.txt.
"""

import json
import subprocess
import sys

import pytest

from kit.process import child_environment


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

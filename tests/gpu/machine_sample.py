"""Facts of machines to change in one thing, and what the judge says of them. Needs no torch."""

import dataclasses
import functools
import json
from pathlib import Path

from kit.gpu import judge_machine
from kit.gpu.diagnose import Case
from kit.gpu.facts import Driver, Gpu, JitControl, KernelProof, MachineFacts, Platform, Torch
from kit.gpu.judge_machine import Expectation, judge
from kit.records import from_json

MACHINES = Path(__file__).parents[1] / "machines"
GPU_A, GPU_B = "GPU-00000000-0000-4000-8000-00000000000a", "GPU-00000000-0000-4000-8000-00000000000b"
GOOD = KernelProof("cuda", True, 4096, "float32", max_relative_error=1e-6, limit=2e-5, jit=JitControl(223))
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


@functools.cache
def _recorded():
    data = json.loads((MACHINES / "h100.json").read_text(encoding="utf-8"))
    return from_json(MachineFacts, data["facts"])


def h100(**changes):
    """The facts of a real H100."""
    return dataclasses.replace(_recorded(), **changes)


def torch(**changes):
    return dataclasses.replace(h100().torch, **changes)


def driver(**changes):
    return dataclasses.replace(h100().driver, **changes)


def card(name, capability, uuid=GPU_A, index=0, memory=80 * 10**9):
    return Gpu(index, name, capability, memory, uuid)


def machine(gpus, build="2.13.0+cu130", arch="sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", version="580.95.05", **changes):
    cuda = (int(build[-3:-1]), int(build[-1]))
    facts = MachineFacts(
        source="recorded",
        platform=Platform("Linux", "x86_64", python=(3, 12)),
        driver=Driver(version, gpus=tuple(gpus)),
        torch=Torch(build, cuda, False, None, tuple(arch.split()), True, len(gpus), tuple(gpus)),
        proof=GOOD,
        has_nvidia_device=True,
    )
    return dataclasses.replace(facts, **changes)


def diagnose(facts):
    return Case(facts).found


def disagreements(facts):
    return judge_machine.disagreements(Case(facts))


def verdict(facts, gpu_name=None, min_cuda=None, device="cuda"):
    return judge(facts, Expectation(gpu_name, min_cuda, device))

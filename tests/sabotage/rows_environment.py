"""Section A: the environment. Facts of a real H100, changed in one thing, and a few whole processes."""

import functools
import tempfile
from pathlib import Path

from kit.gpu.facts import Driver, Expectation
from kit.gpu.judge_machine import judge, still_there
from kit.records import Verdict

from .seams import Said, card, child, facts, fake_smi, gpu, nvml_file, smi_text
from .table import FAIL, INCONCLUSIVE, PASS, row

NO_CUDA = {"is_available": False, "device_count": 0, "gpus": ()}
NO_DRIVER = {**NO_CUDA, "arch_list": (), "error": "Found no NVIDIA driver on your system."}
UNHEARD = {"proof": None, "has_nvidia_device": False, "nvidia_smi_exit_code": None, "nvidia_smi_gpus": ()}
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"
H100, ADA, BLACKWELL = "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 5090"


def judged(changes, **expected):
    return Said.of(judge(facts(**changes), Expectation(device="cuda", **expected)))


healthy = functools.partial(judged, {})
H100_asked_for = functools.partial(judged, {}, gpu_name="H100")


def on_facts(id, what, at, *, words=(), must=FAIL, twin=healthy, gpu_name=None, gpus=None, **changes):
    """A row whose sabotage is a change of the facts."""
    sabotage = functools.partial(judged, changes, gpu_name=gpu_name, gpus=gpus)
    row(id, what, seam="facts", must=must, at=at, words=words, twin=twin)(sabotage)


def visible(value):
    return functools.partial(judged, {"environment": {"CUDA_VISIBLE_DEVICES": value}})


def on_card(name, capability, arch_list, **proof):
    """The facts where another card is in the machine."""
    there = {"name": name, "compute_capability": capability}
    torch = {"gpus": (gpu("torch", **there),), "arch_list": arch_list}
    return {"torch": torch, "driver": {"gpus": (gpu(**there),)}, "nvidia_smi_gpus": (name,), "proof": proof}


served = functools.partial(judged, on_card(BLACKWELL, (12, 0), ("sm_90", "sm_100", "sm_120")))
cpu_build = {**NO_CUDA, "cuda": None, "is_cpu_build": True, "version": "2.13.0+cpu", "arch_list": ()}
on_facts("A01", "CPU-only wheel beside a healthy driver", "environment.torch_build", words="driver sees NVIDIA H100",
         torch=cpu_build, proof=None)  # fmt: skip
on_facts("A02", "CUDA wheel, no driver", "environment.cuda_starts", torch=NO_DRIVER,
         driver=Driver(nvml_error="Driver Not Loaded", libcuda="none"), **UNHEARD)  # fmt: skip
masked = {"torch": {**NO_CUDA, "error": "No CUDA GPUs are available"}, "proof": None}
for _letter, _value in zip("abcde", ("", "-1", "99", "NoDevFiles", "GPU-00000000-0000-0000-0000-000000000000")):
    on_facts(f"A03{_letter}", f"CUDA_VISIBLE_DEVICES={_value!r}", "environment.cuda_starts", words=repr(_value),
             twin=visible("0"), environment={"CUDA_VISIBLE_DEVICES": _value}, **masked)  # fmt: skip
on_facts("A04", "duplicate ids in CUDA_VISIBLE_DEVICES", "environment.cuda_starts", words="'0,0'", twin=visible(" 0"),
         environment={"CUDA_VISIBLE_DEVICES": "0,0"}, **masked)  # fmt: skip
on_facts("A07", "a stub libcuda shadows the driver's", "environment.cuda_starts", words="stub", proof=None,
         driver={"libcuda": "stub", "cuda_init_error": 34},
         torch={**NO_CUDA, "device_count": 1, "error": "CUDA driver is a stub library"})  # fmt: skip
on_facts("A09", "driver older than the wheel needs", "environment.driver_for_build", words=("576.88", "cu130"),
         driver={"version": "576.88", "cuda_version": (12, 9)}, proof=None,
         torch={**NO_CUDA, "error": "The NVIDIA driver on your system is too old (found version 12090)"})  # fmt: skip
on_facts("A10", "sm_120 card, wheel up to sm_90", "native.kernel_ran", twin=served,
         **on_card(BLACKWELL, (12, 0), ("sm_80", "sm_86", "sm_90"), ran=False, jit_error=None, error=NO_KERNEL,
                   max_relative_error=None))  # fmt: skip
on_facts("A11", "code of the same generation, not of this chip: right, and said", "native.arch_in_build", must=PASS,
         words=("sm_86", "not built for exactly this chip"), twin=served,
         **on_card(ADA, (8, 9), ("sm_80", "sm_86", "sm_90")))  # fmt: skip
on_facts("A12", "runs by PTX JIT only", "native.without_ptx_jit", twin=served, words="PTX",
         **on_card(BLACKWELL, (12, 0), ("sm_90", "compute_90"), jit_error=NO_KERNEL))  # fmt: skip
on_facts("A13", "CUDA_FORCE_PTX_JIT=1 left in the environment", "native.kernel_ran", words="CUDA_FORCE_PTX_JIT",
         environment={"CUDA_FORCE_PTX_JIT": "1"},
         proof={"ran": False, "max_relative_error": None,
                "error": "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"})  # fmt: skip
on_facts("A14", "another card than the one that was asked for", "environment.expected_gpu", words="H100",
         twin=H100_asked_for, gpu_name="RTX 5090")  # fmt: skip
part = gpu("torch", name=f"{H100} MIG 1g.10gb", memory_bytes=10_200_547_328, uuid="MIG-1")
on_facts("A16", "a MIG slice reported as the full card", "environment.expected_gpu", words="MIG", twin=H100_asked_for,
         gpu_name="H100", torch={"gpus": (part,)}, driver={"gpus": (gpu(mig_profile="enabled"),)})  # fmt: skip
on_facts("A17", "MPS, a shared device", "environment.exclusive_gpu", must=INCONCLUSIVE, words="MPS",
         environment={"CUDA_MPS_PIPE_DIRECTORY": "/tmp/nvidia-mps"})  # fmt: skip
on_facts("A19", "container without the driver's libraries", "environment.cuda_starts", torch=NO_DRIVER,
         driver=Driver(nvml_error="NVML Shared Library Not Found", libcuda="none"),
         platform={"is_container": True}, environment={}, **UNHEARD)  # fmt: skip
on_facts("A21", "nvidia-smi of another machine", "environment.two_witnesses", words="RTX 4090", nvidia_smi_gpus=(ADA,))
on_facts("A23", "memory in use before the run, by another process", "environment.exclusive_gpu", must=INCONCLUSIVE,
         driver={"gpus": (gpu(compute_processes=1),)})  # fmt: skip
on_facts("A24", "Xid in the kernel log; the twin's log cannot be read (A25)", "environment.driver_state", words="79",
         twin=functools.partial(judged, {"xids": None}), xids=(79,))  # fmt: skip
on_facts("A27", "ROCm answers torch.cuda", "environment.torch_build", words="ROCm",
         torch={"hip": "7.1", "cuda": None, "version": "2.13.0+rocm7.1"})  # fmt: skip
on_facts("A28", "torch's name is patched", "environment.two_witnesses", words=("RTX 5090", "H100"),
         torch={"gpus": (gpu("torch", name=BLACKWELL),)})  # fmt: skip
on_facts("A33", "CUDA_VISIBLE_DEVICES='0,9' leaves one GPU of two, and says nothing", "environment.visible_devices",
         must=INCONCLUSIVE, words="'9'", twin=visible("0"), environment={"CUDA_VISIBLE_DEVICES": "0,9"})  # fmt: skip
on_facts("A34", "two GPUs are demanded and one is there", "environment.gpu_count", words="sees 1", gpus=2)


def ends_as(**changes):
    return Said.of(Verdict.of([still_there(facts(), facts(**changes))]))


lost = functools.partial(ends_as, driver={"gpus": ()}, torch={"gpus": (), "is_available": False})
row("A29", "the GPU is lost between check and end", seam="facts", must=FAIL, at="environment.still_there",
    twin=ends_as)(lost)  # fmt: skip


# --- whole processes ----------------------------------------------------------------


def checked(*argv, recipe=None, name=BLACKWELL, smi_code=0, log="", env=None):
    """`kit check` in a process of its own, with the world around it faked."""
    with tempfile.TemporaryDirectory() as folder:
        smi = fake_smi(Path(folder) / "bin", text=smi_text(name), exit_code=smi_code, log=log)
        nvml = nvml_file(Path(folder) / "nvml.json", card(name=name))
        return child("check", *(argv or ("--device", "cuda")), recipe=recipe, nvml=nvml, smi=smi, env=env)[1]


def on_process(id, what, at, *argv, words=(), twin=healthy, **seams):
    """A row whose sabotage is a process."""
    sabotage = functools.partial(checked, *argv, **seams)
    row(id, what, seam="smi + nvml + site", must=FAIL, at=at, words=words, twin=twin, is_slow=True)(sabotage)


on_process("A01p", "the same as a process: this torch has no CUDA", "environment.torch_build", words="RTX 5090",
           recipe="cpu_build")  # fmt: skip
on_process("A20", "nvidia-smi prints an old table and ends with 9", "environment.cuda_starts",
           twin=functools.partial(judged, {"nvidia_smi_exit_code": 0}), smi_code=9)  # fmt: skip
on_process("A21p", "nvidia-smi and NVML of another machine than torch", "environment.two_witnesses", words="RTX 4090",
           recipe="lie_available", name=ADA)  # fmt: skip
on_process("A27p", "the same as a process: torch.version.hip is set", "environment.torch_build", words="ROCm",
           recipe="rocm")  # fmt: skip
on_process("A07p", "PYTORCH_NVML_BASED_CUDA_CHECK=1 and a stub libcuda: CUDA is there until it starts",
           "environment.cuda_starts", words="stub", recipe="stub")  # fmt: skip


def rehearsed():
    return checked("--device", "cpu")


for _letter, _error in zip("en", ("SystemExit", "NameError")):
    for _device, _twin in (("cuda", healthy), ("cpu", rehearsed)):
        on_process(f"A30{_letter}{_device[1]}", f"the import of torch ends in {_error}, --device {_device}",
                   "environment.torch_build", "--device", _device, words=_error, twin=_twin, recipe="broken_import",
                   env={"SABOTAGE_RAISES": _error})  # fmt: skip


def logged(number):
    return {"log": f"[ 1.0] NVRM: Xid (PCI:0000:c1:00): {number}, pid=1, name=python"}


def no_xid():
    """Another program's page fault; what else a machine without a GPU is told does not matter here."""
    said = checked("--device", "cuda", **logged(31)).checks
    return Said.of(Verdict.of([said.get("environment.driver_state") or still_there(facts(), facts())]))


on_process("A31", "the kernel log says that the GPU fell off the bus; the twin's that a program read a wrong address",
           "environment.driver_state", "--device", "cuda", words="Xid 79", twin=no_xid, **logged(79))  # fmt: skip
for _letter, _argv in {
    "a": ("--expect-gpu", ""),
    "b": ("--min-cuda", ""),
    "c": ("--device", "cpu", "--expect-gpu", "RTX 5090"),
    "d": ("--device", "cpu", "--min-cuda", "12.8"),
    "e": ("--device", "cpu", "--gpus", "2"),
}.items():
    on_process(f"A32{_letter}", f"kit check {' '.join(map(repr, _argv))}", "error", *_argv, twin=rehearsed)

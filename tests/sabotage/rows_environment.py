"""Section A: the environment. Facts of a real H100, changed in one thing, and a few whole processes."""

import dataclasses
import functools
import tempfile
from pathlib import Path

from kit.gpu.facts import Driver
from kit.gpu.judge_machine import Expectation, judge, still_there
from kit.records import Verdict

from .seams import Said, card, child, facts, fake_smi, gpu, nvml_file, smi_text
from .table import FAIL, INCONCLUSIVE, PASS, row

NO_CUDA = {"is_available": False, "device_count": 0, "gpus": ()}
BLIND = "CUDA unknown error - this may be due to an incorrectly set up environment"
NO_GPUS = "No CUDA GPUs are available"


def judged(found, *, name=None):
    return Said.of(judge(found, Expectation(device="cuda", gpu_name=name)))


def healthy():
    return judged(facts())


def masked(value, **more):
    torch = {**NO_CUDA, "error": NO_GPUS}
    return judged(facts(torch=torch, proof=None, environment={"CUDA_VISIBLE_DEVICES": value}, **more))


def visible(value):
    return judged(facts(environment={"CUDA_VISIBLE_DEVICES": value}))


on_facts = functools.partial(row, seam="facts", must=FAIL, twin=healthy)


@on_facts(
    "A01", "CPU-only wheel beside a healthy driver", at="environment.torch_build", words="driver sees NVIDIA H100"
)
def a01():
    torch = {**NO_CUDA, "cuda": None, "is_cpu_build": True, "version": "2.13.0+cpu", "arch_list": ()}
    return judged(facts(torch=torch, proof=None))


@on_facts("A02", "CUDA wheel, no driver", at="environment.cuda_starts")
def a02():
    driver = Driver(nvml_error="Driver Not Loaded", libcuda="none")
    found = facts(torch={**NO_CUDA, "arch_list": (), "error": "Found no NVIDIA driver on your system."}, proof=None)
    return judged(dataclasses.replace(found, driver=driver, has_nvidia_device=False, nvidia_smi_exit_code=None,
                                      nvidia_smi_gpus=()))  # fmt: skip


for _letter, _value in zip("abcde", ("", "-1", "99", "NoDevFiles", "GPU-00000000-0000-0000-0000-000000000000")):
    on_facts(f"A03{_letter}", f"CUDA_VISIBLE_DEVICES={_value!r}", at="environment.cuda_starts", words=repr(_value),
             twin=functools.partial(visible, "0"))(functools.partial(masked, _value))  # fmt: skip


@on_facts(
    "A04",
    "duplicate ids in CUDA_VISIBLE_DEVICES",
    at="environment.cuda_starts",
    words="'0,0'",
    twin=functools.partial(visible, " 0"),
)
def a04():
    return masked("0,0")


@on_facts("A07", "a stub libcuda shadows the driver's", at="environment.cuda_starts", words="stub")
def a07():
    torch = {**NO_CUDA, "device_count": 1, "error": "CUDA driver is a stub library"}
    return judged(facts(driver={"libcuda": "stub", "cuda_init_error": 34}, torch=torch, proof=None))


@on_facts("A09", "driver older than the wheel needs", at="environment.driver_for_build", words=("576.88", "cu130"))
def a09():
    torch = {**NO_CUDA, "error": "The NVIDIA driver on your system is too old (found version 12090)"}
    return judged(facts(driver={"version": "576.88", "cuda_version": (12, 9)}, torch=torch, proof=None))


BLACKWELL = {"name": "NVIDIA GeForce RTX 5090", "compute_capability": (12, 0)}


def on_blackwell(arch_list, **proof):
    found = facts(torch={"gpus": (gpu("torch", **BLACKWELL),), "arch_list": arch_list},
                  driver={"gpus": (gpu(**BLACKWELL),)}, proof=proof)  # fmt: skip
    return judged(dataclasses.replace(found, nvidia_smi_gpus=(BLACKWELL["name"],)))


def blackwell_served():
    return on_blackwell(("sm_90", "sm_100", "sm_120"))


@on_facts("A10", "sm_120 card, wheel up to sm_90", at="native.kernel_ran", twin=blackwell_served)
def a10():
    return on_blackwell(("sm_80", "sm_86", "sm_90"), ran=False, jit_error=None, max_relative_error=None,
                        error="CUDA error: no kernel image is available for execution on the device")  # fmt: skip


@on_facts(
    "A11",
    "code of the same generation, not of this chip: right, and said",
    must=PASS,
    at="native.arch_in_build",
    words=("sm_86", "not built for exactly this chip"),
    twin=blackwell_served,
)
def a11():
    ada = {"name": "NVIDIA GeForce RTX 4090", "compute_capability": (8, 9)}
    found = facts(torch={"gpus": (gpu("torch", **ada),), "arch_list": ("sm_80", "sm_86", "sm_90")},
                  driver={"gpus": (gpu(**ada),)}, nvidia_smi_gpus=(ada["name"],))  # fmt: skip
    return judged(found)


@on_facts("A12", "runs by PTX JIT only", at="native.without_ptx_jit", twin=blackwell_served, words="PTX")
def a12():
    return on_blackwell(("sm_90", "compute_90"),
                        jit_error="CUDA error: no kernel image is available for execution on the device")  # fmt: skip


@on_facts("A13", "CUDA_FORCE_PTX_JIT=1 left in the environment", at="native.kernel_ran", words="CUDA_FORCE_PTX_JIT")
def a13():
    proof = {"ran": False, "error": "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
             "max_relative_error": None}  # fmt: skip
    return judged(facts(proof=proof, environment={"CUDA_FORCE_PTX_JIT": "1"}))


@on_facts(
    "A14",
    "another card than the one that was asked for",
    at="environment.expected_gpu",
    words="H100",
    twin=lambda: judged(facts(), name="H100"),
)
def a14():
    return judged(facts(), name="RTX 5090")


@on_facts(
    "A16",
    "a MIG slice reported as the full card",
    at="environment.expected_gpu",
    words="MIG",
    twin=lambda: judged(facts(), name="H100"),
)
def a16():
    slice_ = gpu("torch", name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", memory_bytes=10_200_547_328, uuid="MIG-1")
    found = facts(torch={"gpus": (slice_,)}, driver={"gpus": (gpu(mig_profile="enabled"),)})
    return judged(found, name="H100")


@on_facts("A17", "MPS, a shared device", at="environment.exclusive_gpu", must=INCONCLUSIVE, words="MPS")
def a17():
    return judged(facts(environment={"CUDA_MPS_PIPE_DIRECTORY": "/tmp/nvidia-mps"}))


@on_facts("A19", "container without the driver's libraries", at="environment.cuda_starts")
def a19():
    found = facts(torch={**NO_CUDA, "arch_list": (), "error": "Found no NVIDIA driver on your system."}, proof=None,
                  platform={"is_container": True}, environment={})  # fmt: skip
    driver = Driver(nvml_error="NVML Shared Library Not Found", libcuda="none")
    return judged(dataclasses.replace(found, driver=driver, has_nvidia_device=False, nvidia_smi_exit_code=None,
                                      nvidia_smi_gpus=()))  # fmt: skip


@on_facts("A21", "nvidia-smi of another machine", at="environment.two_witnesses", words="RTX 4090")
def a21():
    return judged(facts(nvidia_smi_gpus=("NVIDIA GeForce RTX 4090",)))


@on_facts("A23", "memory in use before the run, by another process", at="environment.exclusive_gpu", must=INCONCLUSIVE)
def a23():
    return judged(facts(driver={"gpus": (gpu(compute_processes=1),)}))


@on_facts(
    "A24",
    "Xid in the kernel log; the twin's log cannot be read (A25)",
    at="environment.driver_state",
    words="79",
    twin=lambda: judged(facts(xids=None)),
)
def a24():
    return judged(facts(xids=(79,)))


@on_facts("A27", "ROCm answers torch.cuda", at="environment.torch_build", words="ROCm")
def a27():
    return judged(facts(torch={"hip": "7.1", "cuda": None, "version": "2.13.0+rocm7.1"}))


@on_facts("A28", "torch's name is patched", at="environment.two_witnesses", words=("RTX 5090", "H100"))
def a28():
    return judged(facts(torch={"gpus": (gpu("torch", name="NVIDIA GeForce RTX 5090"),)}))


@on_facts(
    "A29",
    "the GPU is lost between check and end",
    at="environment.still_there",
    twin=lambda: Said.of(Verdict.of([still_there(facts(), facts())])),
)
def a29():
    lost = facts(driver={"gpus": ()}, torch={"gpus": (), "is_available": False})
    return Said.of(Verdict.of([still_there(facts(), lost)]))


# --- whole processes ----------------------------------------------------------------


def checked(*argv, recipe=None, name="NVIDIA GeForce RTX 5090", smi_code=0, log="", env=None):
    """`kit check` in a process of its own, with the world around it faked."""
    with tempfile.TemporaryDirectory() as folder:
        smi = fake_smi(Path(folder) / "bin", text=smi_text(name), exit_code=smi_code, log=log)
        nvml = nvml_file(Path(folder) / "nvml.json", card(name=name))
        return child("check", *(argv or ("--device", "cuda")), recipe=recipe, nvml=nvml, smi=smi, env=env)[1]


on_process = functools.partial(row, seam="smi + nvml + site", must=FAIL, twin=healthy, is_slow=True)


@on_process("A01p", "the same as a process: this torch has no CUDA", at="environment.torch_build", words="RTX 5090")
def a01p():
    return checked(recipe="cpu_build")


@on_process(
    "A20",
    "nvidia-smi prints an old table and ends with 9",
    at="environment.cuda_starts",
    twin=lambda: judged(facts(nvidia_smi_exit_code=0)),
)
def a20():
    return checked(smi_code=9)


@on_process(
    "A21p", "nvidia-smi and NVML of another machine than torch", at="environment.two_witnesses", words="RTX 4090"
)
def a21p():
    return checked(recipe="lie_available", name="NVIDIA GeForce RTX 4090")


@on_process("A27p", "the same as a process: torch.version.hip is set", at="environment.torch_build", words="ROCm")
def a27p():
    return checked(recipe="rocm")


@on_process(
    "A07p",
    "PYTORCH_NVML_BASED_CUDA_CHECK=1 and a stub libcuda: CUDA is there until it starts",
    at="environment.cuda_starts",
    words="stub",
)
def a07p():
    return checked(recipe="stub")


def rehearsed():
    return checked("--device", "cpu")


for _letter, _error in zip("en", ("SystemExit", "NameError")):
    for _device, _twin in (("cuda", healthy), ("cpu", rehearsed)):
        on_process(
            f"A30{_letter}{_device[1]}",
            f"the import of torch ends in {_error}, --device {_device}",
            at="environment.torch_build",
            words=_error,
            twin=_twin,
        )(functools.partial(checked, "--device", _device, recipe="broken_import", env={"SABOTAGE_RAISES": _error}))


def xid(number):
    return checked("--device", "cuda", log=f"[ 1.0] NVRM: Xid (PCI:0000:c1:00): {number}, pid=1, name=python")


def no_xid():
    """Another program's page fault; what else a machine without a GPU is told does not matter here."""
    said = xid(31)
    return Said.of(Verdict.of([said.checks["environment.driver_state"]] if "environment.driver_state" in said.checks
                              else [still_there(facts(), facts())]))  # fmt: skip


on_process(
    "A31",
    "the kernel log says that the GPU fell off the bus; the twin's that a program read a wrong address",
    at="environment.driver_state",
    words="Xid 79",
    twin=no_xid,
)(functools.partial(xid, 79))

for _letter, _argv in {
    "a": ("--expect-gpu", ""),
    "b": ("--min-cuda", ""),
    "c": ("--device", "cpu", "--expect-gpu", "RTX 5090"),
    "d": ("--device", "cpu", "--min-cuda", "12.8"),
    "e": ("--device", "cpu", "--gpus", "2"),
}.items():
    on_process(f"A32{_letter}", f"kit check {' '.join(map(repr, _argv))}", at="error", twin=rehearsed)(
        functools.partial(checked, *_argv)
    )


@on_facts(
    "A33",
    "CUDA_VISIBLE_DEVICES='0,9' leaves one GPU of two, and says nothing",
    must=INCONCLUSIVE,
    at="environment.visible_devices",
    words="'9'",
    twin=functools.partial(visible, "0"),
)
def a33():
    return visible("0,9")


@on_facts("A34", "two GPUs are demanded and one is there", at="environment.gpu_count", words="sees 1")
def a34():
    return Said.of(judge(facts(), Expectation(device="cuda", gpus=2)))

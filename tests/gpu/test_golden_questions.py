"""What the judge of a machine says, word for word, of facts that differ in one thing. After a wanted change of words:

python tests/gpu/test_golden_questions.py
"""

import dataclasses
from pathlib import Path

import pytest
from machine_sample import GOOD, GPU_A, GPU_B, NO_KERNEL, card, diagnose, driver, h100, machine, torch, verdict

from kit.gpu.diagnose import mask_problem
from kit.gpu.facts import Driver, Gpu, JitControl, KernelProof, MachineFacts, Platform, Torch
from kit.gpu.judge_machine import still_there

GOLDEN = Path(__file__).resolve().parent / "golden" / "questions.txt"
H100, ADA, BLACKWELL = "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 5090"
PASCAL, KEPLER = "NVIDIA GeForce GTX 1060 6GB", "Tesla K40m"
BROKEN = KernelProof("cuda", False, 4096, "float32", error=NO_KERNEL)
ON_CPU = KernelProof("cpu", True, 64, "float32", max_relative_error=1e-7, limit=1e-5, seconds=0.5)
JETSON, WINDOWS = Platform("Linux", "aarch64", is_tegra=True), Platform("Windows")
DARK = {"is_available": False, "device_count": 0, "gpus": ()}
CPU_BUILD = Torch("2.13.0+cpu", is_cpu_build=True, is_available=False)
BY_PTX = "sm_90 compute_90"
PAIR = [card(PASCAL, (6, 1), GPU_A, 0), card(ADA, (8, 9), GPU_B, 1)]
ONE_H100 = card(H100, (9, 0))
CASES = {}

change = dataclasses.replace


def case(name, facts, **expected):
    assert CASES.setdefault(name, (facts, expected)) == (facts, expected), name


def text(**changes):
    """What a pasted text may tell: no probe, no run."""
    return MachineFacts(source="text", **changes)


def recorded(**changes):
    return MachineFacts(source="recorded", **changes)


def broken(name, capability, **changes):
    """A kernel that did not run, on a build whose list is not known."""
    return machine([card(name, capability)], arch="", proof=BROKEN, **changes)


def blackwell(arch, **changes):
    return machine([card(BLACKWELL, (12, 0))], "2.6.0+cu126", arch, **changes)


def orin(jetpack=None, version=None, proof=None, arch="sm_80 sm_90", **changes):
    here = change(JETSON, jetpack=jetpack)
    return machine([Gpu(0, "Orin", (8, 7))], arch=arch, version=version, proof=proof, platform=here, **changes)


def dark(facts=None, **changes):
    return h100(torch=torch(**DARK, **changes), proof=None, **(facts or {}))


# --- what ran

PROOFS = {
    "no proof": None,
    "cpu proof": ON_CPU,
    "no comparison": change(GOOD, max_relative_error=None),
    "no limit": change(GOOD, limit=None),
    "at the limit": change(GOOD, max_relative_error=2e-5),
    "wrong": change(GOOD, max_relative_error=3e-5),
    "jit not tried": change(GOOD, jit=None, seconds=0.25),
    "jit only": change(GOOD, jit_error=NO_KERNEL),
    "no text": change(BROKEN, error=None),
    "jit only, and why": change(GOOD, jit_error="x" * 400),
    "a long error": change(BROKEN, error="y" * 400),
    "no kernel": BROKEN,
}
for name, proof in PROOFS.items():
    case(f"proof: {name}", h100(proof=proof))
    case(f"rehearsal: {name}", h100(proof=proof), device="cpu")
JITS = {
    "allowed elsewhere": {"jit_allowed": JitControl(0)},
    "CUDA was up": {"jit": JitControl(0, "CUDA was up")},
    "not to be asked": {"jit": JitControl(None, "no libcuda")},
    "refused everywhere": {"jit_allowed": JitControl(222)},
    "switched off": {"jit_error": "CUDA error: PTX JIT compilation was disabled"},
}
for name, jit in JITS.items():
    case(f"jit: {name}", machine([card("NVIDIA H100 PCIe", (9, 0))], proof=change(GOOD, **jit)))
case("rehearsal without torch", recorded(), device="cpu")
case("rehearsal of a text", text(), device="cpu")
case("rehearsal that failed", h100(proof=change(ON_CPU, ran=False, error="killed")), device="cpu")
case("rehearsal without a limit", h100(proof=change(ON_CPU, max_relative_error=9.0, limit=None)), device="cpu")
case("rehearsal at the limit", h100(proof=change(ON_CPU, max_relative_error=1e-5)), device="cpu")
case("rehearsal above the limit", h100(proof=change(ON_CPU, max_relative_error=2e-5)), device="cpu")
nothing = recorded(torch=Torch("2.13.0+cpu", is_cpu_build=True), has_nvidia_device=False)
case("auto, nothing there", nothing, device="auto")
case("auto, a device without a driver", change(nothing, has_nvidia_device=True), device="auto")
case("auto, a card by torch alone", h100(has_nvidia_device=False, driver=None, nvidia_smi_gpus=()), device="auto")
case("auto, a card by the driver alone", dark({"has_nvidia_device": False}), device="auto")
case("auto, not known", h100(has_nvidia_device=None, driver=None, torch=None, proof=None), device="auto")
case("all that was asked for", h100(), gpu_name="H100", min_cuda=(13, 0))

# --- driver

silent = {"driver": Driver(nvml_error="NVML Shared Library Not Found"), "has_nvidia_device": False}
case("no driver and no word", text(torch=torch()))
case("driver is empty", h100(driver=Driver()))
case("driver is empty and no run", h100(driver=Driver(), proof=None))
case("no driver, told so", dark(error="Found no NVIDIA driver on your system."))
case("no driver, and a run on the CPU", change(dark(silent, error="Found no NVIDIA driver"), proof=ON_CPU))
case("no driver in a container", dark({**silent, "nvidia_smi_gpus": ()}, error="Found no NVIDIA driver"))
case("nothing answers", recorded(torch=torch(**DARK, error="Found no NVIDIA driver"), has_nvidia_device=True))
inside = Platform("Linux", is_container=True)
case("in a container", recorded(torch=torch(**DARK), has_nvidia_device=False, platform=inside))
void = {"environment": {"NVIDIA_VISIBLE_DEVICES": "void"}, "platform": inside}
case("in a container without the GPU", recorded(torch=torch(**DARK), driver=Driver(), **void))
case("in a container that says so and has it", h100(**void))
case("NVML is broken", h100(driver=Driver(nvml_error="Unknown Error"), proof=None))
case("NVML is broken and it ran", h100(driver=Driver(nvml_error="Unknown Error")))
case("no list", h100(driver=driver(gpus=()), proof=None))
case("no list and it ran", h100(driver=driver(gpus=())))
case("no list in a text", text(driver=Driver("580.1"), torch=torch()))
case("no list on a machine", recorded(driver=Driver("580.1"), torch=torch()))
case("only a list", h100(driver=Driver(gpus=(card(H100, (9, 0)), Gpu(1)))))
case("Xid", h100(xids=(79, 31)))
case("no Xid", h100(xids=()))
for code, said in {804: "forward compatibility was attempted", 803: "system has unsupported display driver",
                   802: "system not yet initialized", 999: "CUDA unknown error", 46: "devices are busy"}.items():  # fmt: skip
    case(f"start error {code}", dark({"driver": driver(cuda_init_error=code)}, error=f"Error {code}: {said}"))
upgraded = driver(cuda_init_error=804, kernel_version="570.133.20")
case("start error 804 after an upgrade", dark({"driver": upgraded}, error="Error 804"))
stub = driver(libcuda="stub", cuda_init_error=34)
case("a stub libcuda", dark({"driver": stub}, error="CUDA driver is a stub library"))

# --- torch

case("no torch", h100(torch=None, proof=None))
case("no torch in a text", text(driver=driver()))
case("ROCm", h100(torch=torch(hip="6.2", cuda=None, version="2.6.0+rocm6.2"), proof=None))
case("CPU build", h100(torch=CPU_BUILD, proof=None))
case("CPU build without a version", text(torch=Torch(is_cpu_build=True)))
case("CPU build on Windows", text(torch=Torch("2.13.0", is_available=False), platform=WINDOWS))
case("a tag on Windows", text(torch=Torch("2.13.0+x", is_available=False), platform=WINDOWS))
case("no tag on Linux", text(torch=Torch("2.13.0", is_available=False), platform=Platform("Linux")))
case("Windows without a version", text(torch=Torch(is_available=False), platform=WINDOWS))
case("Windows, not said whether it starts", text(torch=Torch("2.13.0"), platform=WINDOWS))
case("Windows with CUDA", text(torch=Torch("2.13.0", (12, 8), is_available=False), platform=WINDOWS))
for version, packaged in (("2.11.0+cu130", "2.13.0"), ("2.13.0+cu130", "2.13.0+x"), ("2.13.0", "2.13.0+cu130"),
                          (None, "2.13.0"), ("2.13.0", None)):  # fmt: skip
    case(f"installed {packaged}, says {version}", h100(torch=torch(version=version, metadata_version=packaged)))
case("CUDA not known", h100(torch=torch(cuda=None)))
case("CUDA and version not known", h100(torch=torch(cuda=None, version=None, arch_list=())), min_cuda=(12, 8))
case("CUDA is asked for", h100(), min_cuda=(13, 0))
case("less CUDA is asked for", h100(), min_cuda=(12, 9))
case("more CUDA is asked for", h100(), min_cuda=(13, 2))
case("CUDA is asked of a CPU build", h100(torch=CPU_BUILD, proof=None), min_cuda=(12, 8))
case("CUDA is asked of nothing", text(), min_cuda=(12, 8))

# --- the driver for the build

old = driver(version="470.82.01", cuda_version=(11, 4))
case("old driver", h100(driver=old, torch=torch(**DARK), proof=None))
case("old driver and it ran", h100(driver=old))
case("old driver and it ran, CUDA not said to be there", h100(driver=old, torch=torch(is_available=None)))
case("old driver, CUDA said to be there", h100(driver=old, proof=None))
case("old driver, and nothing else is said", h100(driver=old, torch=torch(is_available=None), proof=None))
case("old driver on Windows", dark({"driver": driver(version="457.0"), "platform": WINDOWS}))
old_text = Torch("2.13.0+cu130", (13, 0), is_available=False)
case("old by its CUDA", text(driver=Driver(cuda_version=(11, 4)), torch=old_text))
compatible = driver(version="570.133.20", cuda_version=(12, 8), libcuda="compat")
case("forward compatibility that works", h100(driver=compatible))
case("an old driver of the same major", machine([card("NVIDIA A100", (8, 0))], "2.8.0+cu128", version="535.129.03"))
case("driver not known", text(torch=torch(gpus=(), is_available=None)))
case("driver not known and it ran", h100(driver=None))
case("driver not known and no run", h100(driver=None, proof=None))
case("said too old", dark(error="The NVIDIA driver on your system is too old (found version 12080)."))
case("CUDA 9 build", text(torch=Torch("1.0", (9, 2), is_available=False), driver=Driver("390.1")))
tomorrow = Torch("9.9", (99, 0), is_available=False)
case("unknown CUDA above the driver's", text(torch=tomorrow, driver=Driver("580.1", (13, 0))))
case("unknown CUDA", text(torch=tomorrow, driver=Driver("580.1")))

# --- whether it starts

for value in ("", "-1", "99", "NoDevFiles", "0,0", "GPU-ffffffff"):
    masked = {"environment": {"CUDA_VISIBLE_DEVICES": value}}
    case(f"masked by {value!r}", dark(masked, error="No CUDA GPUs are available"))
passing = {"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "all", "OTHER": "1"}
case("a mask that lets it through", h100(environment=passing))
case("a mask with a space", h100(environment={"CUDA_VISIBLE_DEVICES": " 0"}))
case("a mask that loses one", h100(environment={"CUDA_VISIBLE_DEVICES": "0,9"}))
case("a mask that loses two", h100(environment={"CUDA_VISIBLE_DEVICES": "0,9,8"}))
case("dark, and why is not told", dark())
case("dark, CUDA not known", dark(cuda=None, version=None))
case("dark, no nvidia-smi", text(torch=torch(**DARK), nvidia_smi_exit_code=127))
case("dark, nothing shows", text(torch=torch(**DARK)))
case("dark, nothing is there", text(torch=torch(**DARK), has_nvidia_device=False))
case("dark, a driver shows", text(torch=torch(**DARK), driver=Driver("595.1")))
case("not tried", text(torch=torch(is_available=None), driver=driver()))
vague = f"torch.AcceleratorError: {NO_KERNEL}"
case("not tried, low confidence", text(messages=(vague,), torch=Torch("2.9.0", (12, 8))))
case("pip found nothing", h100(messages=("ERROR: No matching distribution found for torch==9.9.9",),
                               proof=None, torch=torch(is_cpu_build=True)))  # fmt: skip
refused = {"messages": ("CUDA error: operation not supported",), "torch": Torch("2.8.0+cu128", (12, 8))}
case("a newer feature on an older driver of the major", text(driver=Driver("535.1", (12, 2)), **refused))
case("a newer feature on a driver that has it", text(driver=Driver("575.1", (12, 9)), **refused))
case("a text without a run", h100(source="text", proof=None))

# --- witnesses and the expected card

case("only torch speaks", h100(driver=None, nvidia_smi_gpus=()))
case("only torch speaks in a text", text(torch=torch(), proof=None))
case("only torch speaks of a missing device", h100(driver=None, nvidia_smi_gpus=(), has_nvidia_device=False))
case("nvidia-smi and torch", h100(driver=None, nvidia_smi_gpus=(H100,)))
case("nvidia-smi of another machine", h100(nvidia_smi_gpus=(ADA,)))
case("nvidia-smi that failed", h100(nvidia_smi_exit_code=9, nvidia_smi_gpus=(ADA,)))
for name, lie in {"name": BLACKWELL, "compute_capability": (12, 0), "uuid": GPU_B, "memory_bytes": 34 * 10**9}.items():
    case(f"patched {name}", h100(torch=torch(gpus=(change(h100().torch.gpus[0], **{name: lie}),))))
unnamed = {"driver": driver(gpus=(Gpu(0),)), "nvidia_smi_gpus": ()}
case("a nameless device", h100(torch=torch(gpus=(Gpu(0, None, (9, 0)),)), **unnamed), gpu_name="H100")
case("another card", h100(), gpu_name="H200")
case("no card", text(torch=Torch("2.13.0+cu130", (13, 0))), gpu_name="H100")
case("the other of two", machine(PAIR), gpu_name="RTX 4090")
case("the first of two", machine(PAIR[::-1]), gpu_name="RTX 4090")
case("neither of two", machine(PAIR), gpu_name="H100")
case("two, and one is not served", machine(PAIR[::-1]))
case("two, and one by PTX", machine(PAIR[::-1], arch="sm_89 compute_60"))
for profile, name in (("1g.10gb", H100), ("enabled", H100), (None, f"{H100} MIG 2g.20gb")):
    there = Driver("580.95.05", gpus=(change(ONE_H100, mig_profile=profile),))
    facts = machine([change(ONE_H100, name=name, mig_profile=profile)], driver=there)
    case(f"slice {profile}", facts, gpu_name="H100")
    case(f"slice {profile}, asked for", facts, gpu_name="H100 MIG")
    case(f"slice {profile}, told by the driver alone", machine([ONE_H100], driver=there), gpu_name="H100")
part = {"driver": None, "nvidia_smi_gpus": (H100,)}
case("slice told by torch alone", machine([change(ONE_H100, mig_profile="2g.20gb")], **part), gpu_name="H100")
case("MPS", h100(environment={"CUDA_MPS_PIPE_DIRECTORY": "/x", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"}))
case("MPS by its share", h100(environment={"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"}))
busy = driver(gpus=(change(h100().driver.gpus[0], compute_processes=2),))
case("busy", h100(driver=busy))
case("MPS and busy", h100(driver=busy, environment={"CUDA_MPS_PIPE_DIRECTORY": "/x"}))

# --- native code

case("exact", machine([ONE_H100]))
case("lower minor", machine([card(ADA, (8, 9))]))
warning = ("with CUDA capability sm_89 is not compatible",)
case("lower minor, warned", machine([card(ADA, (8, 9))], messages=warning, proof=None))
for arch in ("sm_120", "sm_90", BY_PTX):
    for name in ("no proof", "cpu proof", "jit only", "jit not tried", "no kernel"):
        case(f"{arch}: {name}", blackwell(arch, proof=PROOFS[name]))
    case(f"{arch}: it ran", blackwell(arch))
beside = [card(ADA, (8, 9)), card(BLACKWELL, (12, 0), GPU_B, 1)]
for name, cards in {"PTX beside nothing": beside, "nothing beside PTX": beside[::-1]}.items():
    case(name, machine(cards, "2.6.0+cu126", BY_PTX, proof=None))
    case(f"{name}, and code of another chip", machine(cards, arch="sm_80a compute_90", proof=None))
case("too old", machine([card(PASCAL, (6, 1))], proof=None))
case("no GPU is named", text(torch=torch(gpus=()), driver=Driver("580.1")))
case("a nameless GPU", machine([Gpu(0, None, (6, 1))], proof=None))
case("jit not tried, PTX in the build", machine([ONE_H100], arch=BY_PTX, proof=PROOFS["jit not tried"]))
case("jit not tried, no list", h100(torch=torch(arch_list=()), proof=PROOFS["jit not tried"]))
case("PTX is forced", h100(environment={"CUDA_FORCE_PTX_JIT": "1"}, proof=BROKEN))
unknown = {"driver": Driver("580.1"), "torch": Torch("9.0+cu130", (13, 0), is_available=True)}
case("a list that nobody knows", h100(**unknown, proof=None))
case("a list that nobody knows, and it ran", h100(**unknown))
looked_up = Torch("2.6.0+cu126", (12, 6), gpus=(Gpu(0, BLACKWELL, (12, 0)),))
for name, more in {"looked up": {}, "printed": {"arch_list": ("sm_90",)}, "tried": {"is_available": True},
                   "warned of": {"min_capability": (5, 0), "max_capability": (9, 0)}}.items():  # fmt: skip
    case(f"a list that was {name}", text(torch=change(looked_up, **more)))

# --- an error that names no kernel

case("no kernel, torch has the code", machine([ONE_H100], proof=BROKEN))
maybe = Torch("9.0.0+cu130", (13, 0), gpus=(card(ADA, (8, 9)),), is_available=True)
case("no kernel, torch may have it", broken(ADA, (8, 9), torch=maybe))
for name, capability in ((KEPLER, (3, 5)), ("a card", (3, 7)), (PASCAL, (6, 1)), ("a card", (7, 0)),
                         ("a card", (7, 5)), (ADA, (8, 9))):  # fmt: skip
    own = Torch(None, None, gpus=(card(name, capability),))
    case(f"no kernel, {name} {capability}", text(messages=(NO_KERNEL,), torch=own))
case("library without the code", text(messages=("CUBLAS_STATUS_ARCH_MISMATCH",), torch=own))
case("no kernel, no GPU", text(messages=(NO_KERNEL,)))
case("no kernel, a package", text(messages=(f"bitsandbytes: {NO_KERNEL}",)))
case("no kernel, the new class", text(messages=(vague,)))
warned = f"{BLACKWELL} with CUDA capability sm_120 is not compatible with the current PyTorch installation"
for name, capability in ((BLACKWELL, (12, 0)), ("Tesla T4", (7, 5)), (PASCAL, (6, 1))):
    own = Torch(None, None, gpus=(card(name, capability),))
    case(f"warned without a list, {name}", text(messages=(warned,), torch=own))
case("warned, the toolkit could", text(messages=(warned,), torch=Torch("9.0.0+cu130", (13, 0), gpus=own.gpus)))
case("warned without a GPU", text(messages=(warned,)))

# --- a Jetson

case("Orin", orin())
case("Orin ran", orin(proof=GOOD))
case("Orin with code of its own", orin("7.2", arch="sm_87"))
for jetpack in ("6.2", "7.1", "7.2", "8", "R36.4", "r39", "R39.0", "29.9", "30.0", "30.1", "x"):
    case(f"Orin with JetPack {jetpack}", orin(jetpack))
for version in ("594.9", "595", "596.1"):
    case(f"Orin with driver {version}", orin(version=version))
desk = Platform("Linux", "x86_64", jetpack="7.2")
case("a JetPack on a desktop", machine([card(PASCAL, (6, 1))], version="595.1", proof=None, platform=desk))
alone = change(orin(proof=GOOD, has_nvidia_device=True), driver=None)
case("Orin, torch alone", alone)
case("Orin, torch alone, in a text", change(alone, source="text"))
case("Orin, torch alone, not known as a Jetson", change(alone, platform=Platform("Linux", "aarch64")))
case("Orin, torch alone, and no device", change(alone, platform=Platform("Linux"), has_nvidia_device=False))
for name, more in {"beside a desktop card": (*alone.torch.gpus, card(ADA, (8, 9))),
                   "without a capability": (Gpu(0, None),)}.items():  # fmt: skip
    case(f"Orin {name}", change(alone, torch=change(alone.torch, gpus=more)))

# --- nothing fits

case("nothing", MachineFacts())
case("nothing, recorded", recorded())
failed = ("CUDA error: unexpected error from cudaGetDeviceCount()",)
case("something failed", text(messages=failed, torch=torch(is_available=True)))
case("something failed, no GPU", text(messages=failed, torch=torch(gpus=())))
case("fine, not started", text(torch=torch(is_available=None, gpus=(card(ADA, (8, 9)), ONE_H100))))
case("fine, available, no GPU", text(torch=Torch("2.13.0", is_available=True)))
case("fine, nameless", text(torch=torch(is_available=True, gpus=(Gpu(0, None, (9, 0)),))))
case("fine, forward compatible", text(torch=torch(is_available=True), driver=Driver("535.1")))

# What still_there says of a machine's end.
ENDS = {
    "never looked at": None,
    "the same": h100(),
    "a card less": h100(driver=driver(gpus=())),
    "a card more": h100(driver=driver(gpus=(h100().driver.gpus[0], card(ADA, (8, 9), GPU_B, 1)))),
    "no driver": h100(driver=None),
    "another driver": h100(driver=driver(version="590.1")),
    "another card": h100(driver=driver(gpus=(card(H100, (9, 0), GPU_B),))),
    "Xid errors": h100(xids=(79, 31)),
}


def lines():
    """Of a check that was already told, word for word, only its outcome."""
    told = set()
    for name, (facts, expected) in CASES.items():
        said, found = diagnose(facts), verdict(facts, **expected)
        yield f"# {name}"
        yield f"{said.word} ({said.confidence}, {said.cause}) | {'; '.join(said.because)} | {said.ask}"
        yield f"{found.outcome} {found.diagnosis}"
        for check in found.checks:
            yield f"{check.outcome} {check.id}" if line(check) in told else line(check)
            told.add(line(check))
            assert type(check.required) is bool, name
    for name, end in ENDS.items():
        yield f"# at the end: {name}"
        yield line(still_there(h100(), end))
    yield line(still_there(h100(xids=(31,)), h100(xids=(31, 79))))


def line(check):
    optional = "" if check.required else " (optional)"
    words = f"{check.found} | {check.expected} | {check.todo} | {dict(check.values)}"
    return f"{check.outcome} {check.id}{optional} | {words}"


def test_the_judge_says_what_it_said():
    assert list(lines()) == GOLDEN.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("value", "count", "uuids", "hides"),
    [("0,7", 2, (), False), ("7,0", 2, (), True), ("2", 2, (), True), ("1", 2, (), False), ("3", None, (), False),
     ("GPU-00", 2, [GPU_A], False), ("GPU-ff", 2, [GPU_A], True), ("GPU-ff", 2, (), False), ("MIG-1", 2, [GPU_A], False),
     ("+1", 2, (), False), (None, 2, (), False), (" ", 2, (), True), ("1, 1", 4, (), True)],
)  # fmt: skip
def test_a_mask_names_devices_up_to_the_first_that_is_not_there(value, count, uuids, hides):
    assert (mask_problem(value, count, uuids) is not None) is hides


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(lines()) + "\n", encoding="utf-8", newline="\n")

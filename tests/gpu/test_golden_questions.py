"""What the judge of a machine says, word for word, of facts that differ in one thing. After a wanted change of words:

python tests/gpu/test_golden_questions.py
"""

import dataclasses
from pathlib import Path

from machine_sample import GOOD, GPU_A, GPU_B, NO_KERNEL, card, diagnose, driver, h100, machine, torch, verdict

from kit.gpu.facts import Driver, Gpu, KernelProof, MachineFacts, Platform, Torch
from kit.gpu.judge_machine import still_there

GOLDEN = Path(__file__).resolve().parent / "golden" / "questions.txt"
H100, ADA, BLACKWELL = "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 5090"
PASCAL, KEPLER = "NVIDIA GeForce GTX 1060 6GB", "Tesla K40m"
BROKEN = KernelProof("cuda", False, 4096, "float32", error=NO_KERNEL)
JETSON = Platform("Linux", "aarch64", is_tegra=True)
DARK = {"is_available": False, "device_count": 0, "gpus": ()}


def text(**changes):
    """What a pasted text may tell: no probe, no run."""
    return MachineFacts(source="text", **changes)


def broken(name, capability, **changes):
    """A kernel that did not run, on a build whose list is not known."""
    return machine([card(name, capability)], arch="", proof=BROKEN, **changes)


def orin(jetpack=None, version=None, proof=None, **changes):
    gpu = Gpu(0, "Orin", (8, 7))
    return machine([gpu], arch="sm_80 sm_90", version=version, proof=proof,
                   platform=dataclasses.replace(JETSON, jetpack=jetpack), **changes)  # fmt: skip


def dark(**changes):
    return h100(torch=torch(**DARK, **changes), proof=None)


def cases():
    """Name, facts, and what was expected of them."""
    proofs = {
        "no proof": None, "cpu proof": KernelProof("cpu", True, 64, "float32", max_relative_error=1e-7, limit=1e-5, seconds=0.5),
        "no comparison": dataclasses.replace(GOOD, max_relative_error=None), "no limit": dataclasses.replace(GOOD, limit=None),
        "at the limit": dataclasses.replace(GOOD, max_relative_error=2e-5), "wrong": dataclasses.replace(GOOD, max_relative_error=3e-5),
        "jit not tried": dataclasses.replace(GOOD, jit=None, seconds=0.25),
        "jit only": dataclasses.replace(GOOD, jit_error=NO_KERNEL), "no text": dataclasses.replace(BROKEN, error=None),
        "jit only, and why": dataclasses.replace(GOOD, jit_error="x" * 400),
        "a long error": dataclasses.replace(BROKEN, error="y" * 400), "no kernel": BROKEN,
    }  # fmt: skip
    for name, proof in proofs.items():
        yield f"proof: {name}", h100(proof=proof), {}
        yield f"rehearsal: {name}", h100(proof=proof), {"device": "cpu"}
    yield "rehearsal without torch", MachineFacts(source="recorded"), {"device": "cpu"}
    yield "rehearsal of a text", text(), {"device": "cpu"}
    yield (
        "rehearsal that failed",
        h100(proof=KernelProof("cpu", False, 64, "float32", error="killed")),
        {"device": "cpu"},
    )
    yield (
        "rehearsal without a limit",
        h100(proof=KernelProof("cpu", True, 64, "float32", max_relative_error=9.0)),
        {"device": "cpu"},
    )
    yield (
        "auto, nothing there",
        MachineFacts(source="recorded", torch=Torch("2.13.0+cpu", is_cpu_build=True), has_nvidia_device=False),
        {"device": "auto"},
    )
    yield (
        "auto, a card by torch alone",
        h100(has_nvidia_device=False, driver=None, nvidia_smi_gpus=()),
        {"device": "auto"},
    )
    yield "auto, not known", h100(has_nvidia_device=None, driver=None, torch=None, proof=None), {"device": "auto"}

    # --- driver
    yield "no driver and no word", text(torch=torch()), {}
    yield "driver is empty", h100(driver=Driver()), {}
    yield "driver is empty and no run", h100(driver=Driver(), proof=None), {}
    yield "no driver, told so", dark(error="Found no NVIDIA driver on your system."), {}
    yield (
        "nothing answers",
        MachineFacts(source="recorded", torch=torch(**DARK, error="Found no NVIDIA driver"), has_nvidia_device=True),
        {},
    )
    yield (
        "in a container",
        MachineFacts(
            source="recorded",
            torch=torch(**DARK),
            has_nvidia_device=False,
            platform=Platform("Linux", is_container=True),
        ),
        {},
    )
    yield "NVML is broken", h100(driver=Driver(nvml_error="Unknown Error"), proof=None), {}
    yield "NVML is broken and it ran", h100(driver=Driver(nvml_error="Unknown Error")), {}
    yield "no list", h100(driver=driver(gpus=()), proof=None), {}
    yield "no list and it ran", h100(driver=driver(gpus=())), {}
    yield "no list in a text", text(driver=Driver("580.1"), torch=torch()), {}
    yield "only a list", h100(driver=Driver(gpus=(card(H100, (9, 0)), Gpu(1)))), {}
    yield "Xid", h100(xids=(79, 31)), {}
    yield "no Xid", h100(xids=()), {}

    # --- torch
    yield "no torch", h100(torch=None, proof=None), {}
    yield "no torch in a text", text(driver=driver()), {}
    yield "ROCm", h100(torch=torch(hip="6.2", cuda=None, version="2.6.0+rocm6.2"), proof=None), {}
    yield "CPU build", h100(torch=Torch("2.13.0+cpu", is_cpu_build=True, is_available=False), proof=None), {}
    yield "CPU build without a version", text(torch=Torch(is_cpu_build=True)), {}
    yield "CPU build on Windows", text(torch=Torch("2.13.0", is_available=False), platform=Platform("Windows")), {}
    yield "a tag on Windows", text(torch=Torch("2.13.0+x", is_available=False), platform=Platform("Windows")), {}
    yield "no tag on Linux", text(torch=Torch("2.13.0", is_available=False), platform=Platform("Linux")), {}
    yield "Windows without a version", text(torch=Torch(is_available=False), platform=Platform("Windows")), {}
    yield "Windows, not said whether it starts", text(torch=Torch("2.13.0"), platform=Platform("Windows")), {}
    yield (
        "Windows with CUDA",
        text(torch=Torch("2.13.0", (12, 8), is_available=False), platform=Platform("Windows")),
        {},
    )
    yield "two installations", h100(torch=torch(version="2.11.0+cu130", metadata_version="2.13.0")), {}
    yield "one installation", h100(torch=torch(version="2.13.0+cu130", metadata_version="2.13.0+x")), {}
    yield "CUDA not known", h100(torch=torch(cuda=None)), {}
    yield "CUDA and version not known", h100(torch=torch(cuda=None, version=None, arch_list=())), {"min_cuda": (12, 8)}
    yield "CUDA is asked for", h100(), {"min_cuda": (13, 0)}
    yield "more CUDA is asked for", h100(), {"min_cuda": (13, 2)}
    yield (
        "CUDA is asked of a CPU build",
        h100(torch=Torch("2.13.0+cpu", is_cpu_build=True, is_available=False), proof=None),
        {"min_cuda": (12, 8)},
    )
    yield "CUDA is asked of nothing", text(), {"min_cuda": (12, 8)}

    # --- the driver for the build
    old = driver(version="470.82.01", cuda_version=(11, 4))
    yield "old driver", h100(driver=old, torch=torch(**DARK), proof=None), {}
    yield "old driver and it ran", h100(driver=old), {}
    yield "old driver, CUDA said to be there", h100(driver=old, proof=None), {}
    yield (
        "old driver on Windows",
        h100(driver=driver(version="457.0"), torch=torch(**DARK), proof=None, platform=Platform("Windows")),
        {},
    )
    yield (
        "old by its CUDA",
        text(driver=Driver(cuda_version=(11, 4)), torch=Torch("2.13.0+cu130", (13, 0), is_available=False)),
        {},
    )
    yield "driver not known", text(torch=torch(gpus=(), is_available=None)), {}
    yield "driver not known and it ran", h100(driver=None), {}
    yield "said too old", dark(error="The NVIDIA driver on your system is too old (found version 12080)."), {}
    yield "CUDA 9 build", text(torch=Torch("1.0", (9, 2), is_available=False), driver=Driver("390.1")), {}
    yield (
        "unknown CUDA above the driver's",
        text(torch=Torch("9.9", (99, 0), is_available=False), driver=Driver("580.1", (13, 0))),
        {},
    )
    yield "unknown CUDA", text(torch=Torch("9.9", (99, 0), is_available=False), driver=Driver("580.1")), {}

    # --- whether it starts
    yield (
        "masked",
        h100(
            torch=torch(**DARK, error="No CUDA GPUs are available"),
            proof=None,
            environment={"CUDA_VISIBLE_DEVICES": ""},
        ),
        {},
    )
    yield (
        "a mask that lets it through",
        h100(environment={"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "all", "OTHER": "1"}),
        {},
    )
    yield "dark, and why is not told", dark(), {}
    yield "dark, CUDA not known", dark(cuda=None, version=None), {}
    yield "dark, no nvidia-smi", text(torch=torch(**DARK), nvidia_smi_exit_code=127), {}
    yield "dark, nothing shows", MachineFacts(source="text", torch=torch(**DARK)), {}
    yield "dark, nothing is there", text(torch=torch(**DARK), has_nvidia_device=False), {}
    yield "dark, a driver shows", text(torch=torch(**DARK), driver=Driver("595.1")), {}
    yield "not tried", text(torch=torch(is_available=None), driver=driver()), {}
    yield (
        "not tried, low confidence",
        text(messages=("torch.AcceleratorError: no kernel image is available",), torch=Torch("2.9.0", (12, 8))),
        {},
    )

    # --- witnesses and the expected card
    yield "only torch speaks", h100(driver=None, nvidia_smi_gpus=()), {}
    yield "only torch speaks in a text", text(torch=torch(), proof=None), {}
    yield "only torch speaks of a missing device", h100(driver=None, nvidia_smi_gpus=(), has_nvidia_device=False), {}
    yield "nvidia-smi and torch", h100(driver=None, nvidia_smi_gpus=(H100,)), {}
    yield (
        "a nameless device",
        h100(torch=torch(gpus=(Gpu(0, None, (9, 0)),)), driver=driver(gpus=(Gpu(0),)), nvidia_smi_gpus=()),
        {"gpu_name": "H100"},
    )
    yield "another card", h100(), {"gpu_name": "H200"}
    yield "no card", text(torch=Torch("2.13.0+cu130", (13, 0))), {"gpu_name": "H100"}
    pair = [card(PASCAL, (6, 1), GPU_A, 0), card(ADA, (8, 9), GPU_B, 1)]
    yield "the other of two", machine(pair), {"gpu_name": "RTX 4090"}
    yield "neither of two", machine(pair), {"gpu_name": "H100"}
    yield "two, and one is not served", machine(pair[::-1]), {}
    yield "two, and one by PTX", machine(pair[::-1], arch="sm_89 compute_60"), {}
    slice_ = dataclasses.replace(card(f"{H100} MIG 1g.10gb", (9, 0)), mig_profile="1g.10gb")
    for profile, name in (("1g.10gb", H100), ("enabled", H100), (None, f"{H100} MIG 2g.20gb")):
        part = dataclasses.replace(slice_, mig_profile=profile, name=name)
        facts = machine(
            [part], driver=Driver("580.95.05", gpus=(dataclasses.replace(slice_, name=H100, mig_profile=profile),))
        )
        yield f"slice {profile}", facts, {"gpu_name": "H100"}
        yield f"slice {profile}, asked for", facts, {"gpu_name": "H100 MIG"}
    yield "MPS", h100(environment={"CUDA_MPS_PIPE_DIRECTORY": "/x", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"}), {}
    busy = dataclasses.replace(h100().driver.gpus[0], compute_processes=2)
    yield "busy", h100(driver=driver(gpus=(busy,))), {}
    yield "MPS and busy", h100(driver=driver(gpus=(busy,)), environment={"CUDA_MPS_PIPE_DIRECTORY": "/x"}), {}

    # --- native code
    yield "exact", machine([card(H100, (9, 0))]), {}
    yield "lower minor", machine([card(ADA, (8, 9))]), {}
    yield (
        "lower minor, warned",
        machine([card(ADA, (8, 9))], messages=("with CUDA capability sm_89 is not compatible",), proof=None),
        {},
    )
    yield "no code", machine([card(BLACKWELL, (12, 0))], "2.6.0+cu126", "sm_50 sm_90", proof=BROKEN), {}
    yield "no code and it ran", machine([card(BLACKWELL, (12, 0))], "2.6.0+cu126", "sm_50 sm_90"), {}
    yield (
        "no code, ran by JIT",
        machine([card(BLACKWELL, (12, 0))], "2.6.0+cu126", "sm_90 compute_90", proof=proofs["jit only"]),
        {},
    )
    yield "PTX", machine([card(BLACKWELL, (12, 0))], "2.6.0+cu126", "sm_90 compute_90", proof=None), {}
    yield (
        "PTX beside nothing",
        machine([card(ADA, (8, 9)), card(BLACKWELL, (12, 0), GPU_B, 1)], "2.6.0+cu126", "sm_90 compute_90", proof=None),
        {},
    )
    yield "too old", machine([card(PASCAL, (6, 1))], proof=None), {}
    yield "no GPU is named", text(torch=torch(gpus=()), driver=Driver("580.1")), {}
    yield "a nameless GPU", machine([Gpu(0, None, (6, 1))], proof=None), {}
    yield (
        "jit not tried, PTX in the build",
        machine([card(H100, (9, 0))], arch="sm_90 compute_90", proof=proofs["jit not tried"]),
        {},
    )
    yield "jit not tried, no list", h100(torch=torch(arch_list=()), proof=proofs["jit not tried"]), {}
    yield "jit not tried, no code", machine([card(BLACKWELL, (12, 0))], arch="sm_90", proof=proofs["jit not tried"]), {}
    yield "PTX is forced", h100(environment={"CUDA_FORCE_PTX_JIT": "1"}, proof=BROKEN), {}

    # --- an error that names no kernel
    yield "no kernel, torch has the code", machine([card(H100, (9, 0))], proof=BROKEN), {}
    yield (
        "no kernel, torch may have it",
        broken(ADA, (8, 9), torch=Torch("9.0.0+cu130", (13, 0), gpus=(card(ADA, (8, 9)),), is_available=True)),
        {},
    )
    kepler, pascal, ada = (text(messages=(NO_KERNEL,), torch=Torch(None, None, gpus=(card(n, c),)))
                           for n, c in ((KEPLER, (3, 5)), (PASCAL, (6, 1)), (ADA, (8, 9))))  # fmt: skip
    yield "no kernel, Kepler", kepler, {}
    yield "no kernel, Pascal", pascal, {}
    yield "no kernel, Ada", ada, {}
    yield "no kernel, no GPU", text(messages=(NO_KERNEL,)), {}
    yield "no kernel, a package", text(messages=(f"bitsandbytes: {NO_KERNEL}",)), {}
    yield "no kernel, the new class", text(messages=(f"torch.AcceleratorError: {NO_KERNEL}",)), {}
    yield "library without the code", text(messages=("CUBLAS_STATUS_ARCH_MISMATCH",), torch=ada.torch), {}
    warned = (
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation"
    )
    for name, gpu in (
        ("Blackwell", card(BLACKWELL, (12, 0))),
        ("Turing", card("Tesla T4", (7, 5))),
        ("Pascal", card(PASCAL, (6, 1))),
    ):
        yield f"warned without a list, {name}", text(messages=(warned,), torch=Torch(None, None, gpus=(gpu,))), {}
    yield "warned without a GPU", text(messages=(warned,)), {}

    # --- a Jetson
    yield "Orin", orin(), {}
    yield "Orin ran", orin(proof=GOOD), {}
    for jetpack in ("6.2", "7.1", "7.2", "8", "R36.4", "r39", "R39.0", "30.1", "x"):
        yield f"Orin with JetPack {jetpack}", orin(jetpack), {}
    for version in ("594.9", "595", "596.1"):
        yield f"Orin with driver {version}", orin(version=version), {}
    jetson = orin(proof=GOOD, has_nvidia_device=True)
    yield "Orin, torch alone", dataclasses.replace(jetson, driver=None), {}
    yield (
        "Orin beside a desktop card",
        dataclasses.replace(
            jetson, driver=None, torch=dataclasses.replace(jetson.torch, gpus=(*jetson.torch.gpus, card(ADA, (8, 9))))
        ),
        {},
    )
    yield (
        "Orin without a capability",
        dataclasses.replace(jetson, driver=None, torch=dataclasses.replace(jetson.torch, gpus=(Gpu(0, None),))),
        {},
    )

    # --- nothing fits
    yield "nothing", MachineFacts(), {}
    yield "nothing, live", MachineFacts(source="live"), {}
    yield (
        "something failed",
        text(messages=("CUDA error: unexpected error from cudaGetDeviceCount()",), torch=torch(is_available=True)),
        {},
    )
    yield "fine, not started", text(torch=torch(is_available=None, gpus=(card(ADA, (8, 9)), card(H100, (9, 0))))), {}
    yield "fine, available, no GPU", text(torch=Torch("2.13.0", is_available=True)), {}
    yield "fine, nameless", text(torch=torch(is_available=True, gpus=(Gpu(0, None, (9, 0)),))), {}
    yield "fine, forward compatible", text(torch=torch(is_available=True), driver=Driver("535.1")), {}


def ends():
    """What still_there says of a machine's end."""
    pair = driver(gpus=(h100().driver.gpus[0], card(ADA, (8, 9), GPU_B, 1)))
    yield "never looked at", None
    yield "the same", h100()
    yield "a card less", h100(driver=driver(gpus=()))
    yield "a card more", h100(driver=pair)
    yield "no driver", h100(driver=None)
    yield "another card", h100(driver=driver(gpus=(card(H100, (9, 0), GPU_B),)))
    yield "Xid errors", h100(xids=(79, 31))


def lines():
    """Of a check that was already told, word for word, only its outcome."""
    told = set()
    for name, facts, expected in cases():
        said = diagnose(facts)
        yield f"# {name}"
        yield f"{said.word} ({said.confidence}, {said.cause}) | {'; '.join(said.because)} | {said.ask}"
        found = verdict(facts, **expected)
        yield f"{found.outcome} {found.diagnosis}"
        for check in found.checks:
            yield f"{check.outcome} {check.id}" if line(check) in told else line(check)
            told.add(line(check))
    for name, end in ends():
        yield f"# at the end: {name}"
        yield line(still_there(h100(), end))


def line(check):
    optional = "" if check.required else " (optional)"
    return (
        f"{check.outcome} {check.id}{optional} | {check.found} | {check.expected} | {check.todo} | {dict(check.values)}"
    )


def test_the_judge_says_what_it_said():
    said = list(lines())
    assert said == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_required_is_a_claim_and_nothing_else():
    for name, facts, expected in cases():
        assert {type(check.required) for check in verdict(facts, **expected).checks} == {bool}, name


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(lines()) + "\n", encoding="utf-8", newline="\n")

"""What to do about a verdict: a command that fits this GPU, this driver and this platform, or why there is
none.

The smallest change comes first: another torch build before another driver. No build is
named that lacks the GPU's code or that the driver cannot start; where the driver is not
known, the build is one that every driver of recent years starts.
"""

from __future__ import annotations

import dataclasses

from kit.gpu import wheels
from kit.gpu.compat import (
    Capability,
    cuda_of_driver,
    driver_floor,
    driver_runs,
    is_tegra_capability,
    parse_driver,
    text_of,
    toolkit_driver,
)
from kit.gpu.diagnose import Case, Diagnosis, capability_of, diagnose
from kit.gpu.facts import MachineFacts
from kit.gpu.specs import families, first_driver, last_driver_branch, still_driven
from kit.gpu.wheels import platform_of, variant_of
from kit.records import Outcome, Verdict
from kit.show import card, escape, plain
from kit.units import dotted

# What to do where neither another torch build nor another driver is the answer: one entry for each cause.

_ADVICE: dict[str, tuple[str, tuple[str, ...]]] = {
    "reboot": (
        "Restart the machine, or reload the NVIDIA kernel modules, so that library and module have one version.",
        ("sudo reboot",),
    ),
    "libcuda_mismatch": (
        "Make the driver's own libcuda come first in the loader path (no compat or conda copy before "
        "it), or restart"
        " after a driver upgrade.",
        ("ldconfig -p | grep libcuda.so", "cat /proc/driver/nvidia/version"),
    ),
    "fabric_manager": (
        "Start the NVIDIA fabric manager in exactly the driver's version (on a rented node, ask the provider).",
        ("sudo systemctl enable --now nvidia-fabricmanager", "nvidia-smi"),
    ),
    "uvm": (
        "Reload the nvidia_uvm module (on your own machine) or restart; in a rented container move to another host.",
        ("sudo rmmod nvidia_uvm", "sudo modprobe nvidia_uvm"),
    ),
    "stub": (
        "Take the toolkit's stubs folder out of LD_LIBRARY_PATH: it is for linking only.",
        ("unset LD_LIBRARY_PATH",),
    ),
    "gpu_lost": (
        "Restart the machine and read the kernel log; if the GPU is lost again, it is the hardware.",
        ("sudo reboot",),
    ),
    "busy": (
        "End the process that holds the GPU, or set the default compute mode.",
        ("nvidia-smi", "sudo nvidia-smi -c 0"),
    ),
    "start_out_of_memory": (
        "Give the host or WSL more memory, or show CUDA fewer GPUs.",
        ("CUDA_VISIBLE_DEVICES=0 python -m kit check",),
    ),
    "driver_library": (
        "Update the NVIDIA driver (under WSL the one of Windows, then `wsl --shutdown`).",
        ("wsl --update", "wsl --shutdown"),
    ),
    "driver_state": (
        "Restart the machine; if nvidia-smi still fails, install the driver again.",
        ("nvidia-smi",),
    ),
    "triton_too_old": (
        "Run without torch.compile: Triton has no code for this GPU, eager torch has if its build does.",
        ("export TORCHDYNAMO_DISABLE=1",),
    ),
    "compiler_lacks_arch": (
        "Give the program a ptxas of a toolkit that knows this GPU (CUDA 12.8 for 12.0, 12.9 for 10.3 "
        "and 12.1), or update"
        " the package that brings its own.",
        ("export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas",),
    ),
    "extension": (
        "torch fits; update or rebuild the package that lacks code for this GPU, and look what it holds.",
        ("python -m kit wheel PACKAGE",),
    ),
    "toolkit": (
        "Install the CUDA toolkit of the version that torch was built with and name it in CUDA_HOME.",
        ("nvcc --version",),
    ),
    "broken_libraries": (
        "Install torch again from one index, in a fresh environment, with the other packages in the same "
        "command so that"
        " none of them replaces it.",
        ("python -m venv .venv-gpu", "python -m pip list"),
    ),
    "library_error": (
        "See that the GPU has free memory and that only one copy of cuBLAS and cuDNN is installed.",
        ("nvidia-smi", "python -m pip list"),
    ),
    "bad_image": ("Update the driver and use a newer torch build of the same CUDA.", ("nvidia-smi",)),
    "pip_found_nothing": (
        "Ask an index that has the build for this Python and platform: https://download.pytorch.org/whl/ "
        "lists them, and"
        " each torch release has builds for some Python versions only.",
        ("python -V", "python -m pip index versions torch"),
    ),
    "wrong_numbers": (
        "Do not trust this GPU: run the check again, then test its memory.",
        ("nvidia-smi -q -d ECC",),
    ),
    "force_ptx_jit": ("Take CUDA_FORCE_PTX_JIT out of the environment.", ("unset CUDA_FORCE_PTX_JIT",)),
    "no_torch": (
        "Install torch in this interpreter, or let `python -m kit report` make an environment.",
        ("python -m kit report",),
    ),
    "witnesses": ("Find out which program or patch reports another GPU than the driver.", ("nvidia-smi -L",)),
    "unknown_start": (
        "See the error that CUDA's start gives.",
        ('python -c "import torch; torch.cuda.init()"',),
    ),
    "container": (
        "Start the container with the GPU: docker needs the NVIDIA container toolkit and --gpus all.",
        ("docker run --gpus all IMAGE nvidia-smi",),
    ),
    "wsl": (
        "Install the NVIDIA driver on Windows (none inside WSL), then restart WSL.",
        ("wsl --shutdown", "nvidia-smi"),
    ),
    "no_driver": (
        "Install the NVIDIA driver and restart; in a container, start it with --gpus all.",
        ("nvidia-smi",),
    ),
    "no_device": (
        "See what the driver lists; a device that is not listed is not passed in, switched off or broken.",
        ("nvidia-smi -L",),
    ),
    "no_gpu": (
        "This machine has no NVIDIA GPU. A rehearsal on the CPU is `--device cpu`.",
        ("python -m kit report --device cpu",),
    ),
    "mask": (
        "Set CUDA_VISIBLE_DEVICES to numbers that `nvidia-smi -L` lists (from 0), or take it away.",
        ("unset CUDA_VISIBLE_DEVICES", "nvidia-smi -L"),
    ),
}
_ON_WINDOWS = {
    "unset CUDA_VISIBLE_DEVICES": "Remove-Item Env:CUDA_VISIBLE_DEVICES",
    "unset CUDA_FORCE_PTX_JIT": "Remove-Item Env:CUDA_FORCE_PTX_JIT",
    "sudo reboot": "Restart-Computer",
    "export TORCHDYNAMO_DISABLE=1": '$Env:TORCHDYNAMO_DISABLE = "1"',
}


def advise(found: Diagnosis, facts: MachineFacts) -> tuple[str, tuple[str, ...]]:
    """(summary, commands) for a diagnosis by its cause."""
    if found.cause not in _ADVICE:
        return "It cannot be told from this. The next command's output would.", (found.ask,) if found.ask else ()
    summary, commands = _ADVICE[found.cause]
    if facts.platform.system == "Windows":
        commands = tuple(_ON_WINDOWS.get(command, command) for command in commands)
    return summary, commands


# The torch build that would serve a machine, as a command, or the plain statement that there is none.
#
# No build is named that lacks the GPU's code or that the driver cannot start. Where the
# driver is not known, the build is one that every driver for this GPU starts; where the
# GPU is not known, one that covers most of what the driver can drive, and that is said.

_OLDEST, _NEWEST = "2.0", "2.15"
_TRUSTED = ("measured", "read")


@dataclasses.dataclass(frozen=True)
class Remedy:
    """commands: to type, in order, the first with pip where a package is to be changed. torch_variants: the
    CUDA variants of which a build serves this machine, the one in `commands` first. driver: what the driver
    would have to be, where that is part of it. uv, conda: the same change with those tools."""

    summary: str
    commands: tuple[str, ...] = ()
    torch_variants: tuple[str, ...] = ()
    driver: str | None = None
    uv: tuple[str, ...] = ()
    conda: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([plain(self.summary), *(f"    {plain(command)}" for command in self.commands)])

    def _repr_html_(self) -> str:
        commands = "".join(f"<pre>{escape(command)}</pre>" for command in self.commands)
        return card("What to do", f"<p>{escape(self.summary)}</p>{commands}")


def _capabilities(case: Case) -> tuple[Capability, ...]:
    return tuple(dict.fromkeys(found for gpu in case.gpus if (found := capability_of(gpu))))


def other_build(case: Case) -> Remedy:
    gpus = _capabilities(case)
    if not gpus:
        return _build_for_unknown_gpu(case)
    if any(is_tegra_capability(gpu) for gpu in gpus):
        return _jetson(case, gpus)
    gone = [gpu for gpu in gpus if still_driven(gpu, case.driver_version) is False]
    if gone:
        branch = last_driver_branch(gone[0])
        text = f"Driver {case.driver_version} no longer serves compute capability {dotted(gone[0])}"
        return Remedy(
            f"{text}: the last branch that does is R{branch}. Install that driver first.", driver=f"R{branch}"
        )
    choice, python_note = _choose(case, gpus)
    if choice.wheel is None:
        return _no_build(case, gpus, choice)
    return _install(case, gpus, choice.wheel, python_note, choice.driver_advice)


def _choose(case: Case, gpus: tuple[Capability, ...]) -> tuple[wheels.Choice, str]:
    """Recent builds first, then all of torch 2, then for any Python; the note says where Python is the
    reason."""
    python = case.facts.platform.python
    platform = platform_of(case.facts, gpus[0]) or "linux_x86_64"
    choice = wheels.Choice(None, None, "")
    for torch_min, for_python in (("2.9", python), (_OLDEST, python), ("2.9", None), (_OLDEST, None)):
        choice = wheels.choose(
            capabilities=gpus,
            driver_version=case.driver_version,
            driver_cuda=case.driver_cuda,
            platform=platform,
            python=for_python,
            torch_min=torch_min,
            torch_max=_NEWEST,
            is_wsl=bool(case.facts.platform.is_wsl),
        )
        if choice.wheel is not None:
            fits = python is None or choice.wheel.python_min <= python <= choice.wheel.python_max
            low, high = dotted(choice.wheel.python_min), dotted(choice.wheel.python_max)
            return (
                choice,
                "" if fits else f" It needs Python {low} to {high}: make a new environment with one of them.",
            )
    return choice, ""


def _install(case: Case, gpus: tuple[Capability, ...], wheel: wheels.Wheel, note: str, driver: str | None) -> Remedy:
    served = "; ".join(f"{dotted(gpu)}: {wheels.serves(wheel, gpu).reason}" for gpu in gpus)
    on = f" and runs on driver {case.driver_version}" if case.driver_version else ""
    summary = f"Install torch {wheel.release}+{wheel.variant}: it has code for this GPU{on} ({served}).{note}"
    others = [variant for variant in variants_for(case, gpus, wheel.torch) if variant != wheel.variant]
    return _with_commands(case, summary, wheel, (wheel.variant, *others), driver)


def _with_commands(
    case: Case, summary: str, wheel: wheels.Wheel, variants: tuple[str, ...], driver: str | None
) -> Remedy:
    target = install_arguments(wheel, case.facts)
    return Remedy(
        summary=summary,
        commands=(f"python -m pip install {target}",),
        torch_variants=variants,
        driver=driver.removeprefix("driver ") if driver else None,
        uv=(f"uv pip install {target}",),
        # PyTorch publishes no conda packages of its own since 2.6 (pytorch#138506).
        conda=("conda activate YOUR_ENVIRONMENT", f"python -m pip install {target}"),
    )


def install_arguments(wheel: wheels.Wheel, facts: MachineFacts) -> str:
    """Arguments for pip or uv. The local version ('+cu128') makes them replace a '+cpu' build of the same
    release."""
    beside = [name for name in ("torchvision", "torchaudio") if name in facts.packages]
    return " ".join(
        [f'"torch=={wheel.release}+{wheel.variant}"', *beside, f"--index-url {wheels.INDEX}/{wheel.variant}"]
    )


def variants_for(case: Case, gpus: tuple[Capability, ...], torch: str) -> tuple[str, ...]:
    """Every CUDA variant of one torch release that is well known, serves all these GPUs and starts on this
    driver, newest first."""
    platform = platform_of(case.facts, gpus[0]) or "linux_x86_64"
    rows = [
        wheel
        for wheel in wheels.wheels()
        if (wheel.torch, wheel.platform) == (torch, platform) and wheel.variant != "cpu" and wheel.status in _TRUSTED
    ]
    fitting = [
        wheel
        for wheel in rows
        if _starts(case, wheel, gpus) and all(wheels.serves(wheel, gpu).how == "native" for gpu in gpus)
    ]
    return tuple(wheel.variant for wheel in sorted(fitting, key=lambda wheel: wheel.cuda or (0, 0), reverse=True))


def _starts(case: Case, wheel: wheels.Wheel, gpus: tuple[Capability, ...] = ()) -> bool:
    """Where the driver is not known, whether every driver that serves these GPUs would start this build."""
    runs = driver_runs(wheel.variant, case.driver_version, case.system, driver_cuda=case.driver_cuda)
    if runs is not None:
        return runs
    least = wheels.needed_driver("cu120", gpus, case.system)
    return (driver_floor(wheel.variant, case.system) or (0,)) <= least


def _no_build(case: Case, gpus: tuple[Capability, ...], choice: wheels.Choice) -> Remedy:
    if choice.driver_advice and (case.driver_version or case.driver_cuda):
        return _newer_driver(case, gpus, choice.driver_advice)
    which = " and ".join(dotted(gpu) for gpu in gpus)
    unknown = [dotted(gpu) for gpu in gpus if gpu not in families() and gpu > (3, 0)]
    if unknown:
        text = f"Compute capability {', '.join(unknown)} is not in this kit's table of {wheels.checked()}"
        return Remedy(f"{text}: see https://pytorch.org/get-started/locally/ for a newer build.")
    if len(gpus) > 1 and all(_alone(case, gpu) for gpu in gpus):
        text = f"No one build serves compute capability {which} together. Use one environment for each and hide the"
        return Remedy(f"{text} other GPU with CUDA_VISIBLE_DEVICES.", ("CUDA_VISIBLE_DEVICES=0 python -m kit check",))
    last = ""
    if max(gpus) <= (3, 5):
        last = " The last builds that listed sm_35 in part are torch 1.12 and older with CUDA 10.2."
    if (7, 5) in gpus and platform_of(case.facts, gpus[0]) == "linux_aarch64":
        last = " NVIDIA's own container images or a build from source (TORCH_CUDA_ARCH_LIST=7.5) remain."
    return Remedy(f"No official torch 2 release has code for compute capability {which} on this platform.{last}")


def _alone(case: Case, gpu: Capability) -> bool:
    return _choose(case, (gpu,))[0].wheel is not None


def _newer_driver(case: Case, gpus: tuple[Capability, ...], needed: str) -> Remedy:
    branches = [branch for gpu in gpus if (branch := last_driver_branch(gpu))]
    limit = f", but not above R{min(branches)}, the last branch for this GPU" if branches else ""
    summary = f"No torch 2 build with code for this GPU runs on this driver. Install {needed}{limit}, then ask again."
    return Remedy(summary, ("nvidia-smi",), driver=needed.removeprefix("driver ").split(" for ")[0] + limit)


def _build_for_unknown_gpu(case: Case) -> Remedy:
    """The build whose code covers most of the GPUs that this driver can drive."""
    platform = platform_of(case.facts) or "linux_x86_64"
    python = case.facts.platform.python
    rows = [
        wheel
        for wheel in wheels.wheels()
        if wheel.platform == platform and wheel.variant != "cpu" and wheel.status in _TRUSTED and _starts(case, wheel)
    ]
    fitting = [wheel for wheel in rows if python is None or wheel.python_min <= python <= wheel.python_max] or rows
    if not fitting:
        floor = driver_floor("cu126", case.system)
        needed = f"{text_of(floor)} or newer ({case.system})" if floor else "a newer one"
        return Remedy(
            f"No torch 2 build runs on this driver. Install driver {needed}, then ask again.",
            ("nvidia-smi -L",),
            driver=needed,
        )
    possible = [family.capability for family in families().values() if _can_drive(case, family.capability)]
    best = max(fitting, key=lambda wheel: _reach(wheel, possible))
    served = [found for found in possible if wheels.serves(best, found).how == "native"]
    summary = (
        f"Install torch {best.release}+{best.variant}. The GPU is not named; this build has code for "
        f"compute capability"
        f" {dotted(min(served))} to {dotted(max(served))}, so check that it is one of them (nvidia-smi -L)."
    )
    if case.facts.nvidia_smi_exit_code == 127:
        summary = "Make sure that there is an NVIDIA GPU at all: no driver shows. " + summary
    return _with_commands(case, summary, best, (best.variant,), None)


def _reach(wheel: wheels.Wheel, possible: list[Capability]) -> tuple[Capability, int, tuple[int, int]]:
    """The newest GPU first, since whoever asks today has one more often, then how many kinds, then the
    release."""
    served = [capability for capability in possible if wheels.serves(wheel, capability).how == "native"]
    return max(served, default=(0, 0)), len(served), wheels.version_of(wheel.torch)


def _can_drive(case: Case, capability: Capability) -> bool:
    """Which GPUs may sit behind this driver: not newer than it, not dropped by it, and no Jetson."""
    driver = parse_driver(case.driver_version)
    if driver is None and case.driver_cuda:
        driver = toolkit_driver(case.driver_cuda, case.system)
    first = first_driver(capability, case.system)
    if is_tegra_capability(capability) or capability < (5, 0):
        return False
    if driver is None:
        return True
    branch = last_driver_branch(capability)
    return (first is None or first[0] <= driver[0]) and (branch is None or driver[0] < branch + 10)


def _jetson(case: Case, gpus: tuple[Capability, ...]) -> Remedy:
    jetpack = case.facts.platform.jetpack
    if gpus[0] == (8, 7):
        text = (
            "Orin needs NVIDIA's Jetson wheels: on JetPack 6 those of the Jetson AI Lab index. On "
            "JetPack 7.2 and later"
            " the ordinary aarch64 build with CUDA 13 runs too; a kernel run decides."
        )
        found = f" This machine says {jetpack}." if jetpack else ""
        return Remedy(
            text + found,
            ("python3 -m pip install torch --index-url https://pypi.jetson-ai-lab.io/jp6/cu126",),
        )
    choice, note = _choose(case, gpus)
    if choice.wheel is not None:
        return _install(case, gpus, choice.wheel, note, choice.driver_advice)
    which = dotted(gpus[0])
    return Remedy(
        f"A Jetson of compute capability {which} needs the wheel that NVIDIA publishes for its JetPack "
        f"release; "
        "no wheel of the PyTorch index has code for it.",
        ("cat /etc/nv_tegra_release",),
    )


__all__ = ["Remedy", "remedy", "remedy_for"]

_OTHER_BUILD = ("arch_missing_from_build", "gpu_too_old_dropped", "ptx_jit_only", "cpu_only_build")


def remedy(verdict: Verdict, facts: MachineFacts) -> Remedy:
    """The remedy for a verdict of `judge`. A verdict that is fine has nothing to do."""
    if verdict.outcome in (Outcome.PASS, Outcome.REHEARSAL):
        return Remedy("Nothing to do.")
    found = diagnose(facts)
    if found.word == "ok":
        # The machine is fine; something that was asked of it is not: the checks say what to do.
        todo = " ".join(check.todo for check in verdict.findings if check.required and check.todo)
        return Remedy(
            todo or "The environment fits together; run the check on the machine itself to prove it.",
            () if facts.source != "text" else ("python -m kit check",),
        )
    return remedy_for(found, facts)


def remedy_for(found: Diagnosis, facts: MachineFacts) -> Remedy:
    """The remedy for a diagnosis of these facts."""
    case = Case(facts)
    if found.word == "ok":
        return Remedy("Nothing to do.")
    if found.confidence == "low" and found.ask and not case.gpus:
        return Remedy("Too little is known to name a change. The output of this command would settle it.", (found.ask,))
    if found.word in _OTHER_BUILD or found.cause == "rocm_build":
        return other_build(case)
    if found.word == "driver_too_old_for_runtime":
        return _older_build_or_driver(case, found)
    if found.word == "forward_compat_mismatch":
        return _without_compat(case)
    return Remedy(*advise(found, facts))


# --- another driver -------------------------------------------------------------------


def _older_build_or_driver(case: Case, found: Diagnosis) -> Remedy:
    variant = variant_of(case.facts.torch)
    needed = None
    if variant and variant != "cpu":
        cuda = case.facts.torch.cuda if case.facts.torch and found.cause == "ptx_too_new" else None
        floor = (toolkit_driver(cuda, case.system) if cuda else None) or driver_floor(variant, case.system)
        needed = f"{text_of(floor)} or newer ({case.system})" if floor else None
    if found.cause == "ptx_too_new":
        text = (
            "Use a driver at least as new as the toolkit that made the PTX, or a build that holds native "
            "code for this GPU."
        )
        return Remedy(text, ("nvidia-smi",), driver=needed)
    if case.driver_version is None and case.driver_cuda is None:
        text = (
            "Install the newest driver that serves this GPU, or a torch build for an older CUDA; "
            "nvidia-smi tells the driver."
        )
        return Remedy(text, ("nvidia-smi",), driver=needed)
    build = other_build(case)
    if not build.commands or not build.torch_variants:
        return build
    change = f" Or keep the build and install driver {needed}." if needed else ""
    return dataclasses.replace(build, summary=build.summary + change, driver=needed or _any_newer(case))


def _any_newer(case: Case) -> str | None:
    """The driver that the next CUDA major needs."""
    own = case.driver_cuda or cuda_of_driver(case.driver_version, case.system)
    major = 12 if own and own[0] < 12 else 13
    floor = driver_floor(f"cu{major}0", case.system)
    return f"{text_of(floor)} or newer ({case.system}) for CUDA {major} builds" if floor else None


def _without_compat(case: Case) -> Remedy:
    summary = (
        "Put the driver's own libcuda before the compatibility library: take the compat folder out of "
        "LD_LIBRARY_PATH and"
        " of ldconfig, or use an image whose CUDA the host's driver carries, or a newer driver on the host."
    )
    commands = (
        "ldconfig -p | grep libcuda.so",
        "export LD_LIBRARY_PATH=$(echo $LD_LIBRARY_PATH | tr ':' '\\n' | grep -v compat | paste -sd:)",
    )
    return Remedy(summary, commands)

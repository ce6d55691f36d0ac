"""The torch build that would serve a machine, as a command, or the plain statement that there is none.

No build is named that lacks the GPU's code or that the driver cannot start. Where the
driver is not known, the build is one that every driver for this GPU starts; where the
GPU is not known, one that covers most of what the driver can drive, and that is said.
"""

from __future__ import annotations

import dataclasses

from kit.gpu import wheels
from kit.gpu.arch import Capability, dotted, is_tegra_capability
from kit.gpu.build import platform_of
from kit.gpu.case import Case, capability_of
from kit.gpu.compat import driver_floor, driver_runs, parse_driver, text_of, toolkit_driver
from kit.gpu.facts import MachineFacts
from kit.gpu.specs import families, first_driver, last_driver_branch, still_driven
from kit.show import card, escape, plain

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

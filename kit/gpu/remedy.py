"""What to do about a verdict: a command that fits this GPU, this driver, this platform and the tool that is used, or
why there is none.

The smallest change comes first: another build of the same torch release, then another release, then another driver.
No build is named that lacks the GPU's code or that the driver cannot start; where the driver is not known, the build is
one that every driver of recent years starts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from kit.gpu import compat, wheels
from kit.gpu.causes import cause_of, table
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
from kit.gpu.diagnose import Case, Diagnosis, capability_of, diagnose_case
from kit.gpu.facts import MachineFacts
from kit.gpu.specs import families, first_driver, last_driver_branch, still_driven
from kit.gpu.wheels import Wheel, platform_of, variant_of, version_of
from kit.records import Outcome, Verdict
from kit.show import card, escape, plain
from kit.units import dotted

__all__ = ["Remedy", "remedy", "remedy_for"]

_OLDEST, _NEWEST = "2.0", "2.15"
_TRUSTED = ("measured", "read")


@dataclasses.dataclass(frozen=True)
class Remedy:
    """commands: to type, in order, with the person's own tool. torch_variants: the CUDA variants of which a build
    serves this machine, the one in `commands` first. driver: what the driver would have to be, where that is part of
    it. pip, uv, conda: the same change with those tools."""

    summary: str
    commands: tuple[str, ...] = ()
    torch_variants: tuple[str, ...] = ()
    driver: str | None = None
    pip: tuple[str, ...] = ()
    uv: tuple[str, ...] = ()
    conda: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([plain(self.summary), *(f"    {plain(command)}" for command in self.commands)])

    def _repr_html_(self) -> str:
        commands = "".join(f"<pre>{escape(command)}</pre>" for command in self.commands)
        return card("What to do", f"<p>{escape(self.summary)}</p>{commands}")


def remedy(verdict: Verdict, facts: MachineFacts) -> Remedy:
    """The remedy for a verdict of `judge`. A verdict that is fine has nothing to do."""
    if verdict.outcome in (Outcome.PASS, Outcome.REHEARSAL):
        return Remedy("Nothing to do.")
    case = Case(facts)
    found = diagnose_case(case)
    if found.word == "ok":
        # The machine is fine; something that was asked of it is not: the checks say what to do.
        todo = " ".join(check.todo for check in verdict.findings if check.required and check.todo)
        return Remedy(
            todo or "The environment fits together; run the check on the machine itself to prove it.",
            () if facts.source != "text" else ("python -m kit check",),
        )
    return remedy_for(found, case)


def remedy_for(found: Diagnosis, case: Case) -> Remedy:
    """The remedy for a diagnosis of this case."""
    row = found.row
    if found.word == "ok":
        return Remedy("Nothing to do.")
    if row is None or (found.confidence == "low" and found.ask and not case.gpus and not row.commands):
        first = "Nothing is to be installed again because of that line. " if found.unexplained else ""
        too_little = "Too little is known to name a change. The output of this command would settle it."
        return Remedy(first + too_little, (found.ask,) if found.ask else ())
    if row.remedy and case.is_not_nvidia:
        return Remedy(
            "This machine's GPU is not one of NVIDIA's: no CUDA build serves it, and none is to be installed."
        )
    if row.remedy in _COMPUTED:
        return _COMPUTED[row.remedy](case, found)
    advice = cause_of({"id": row.id, **table()["advice"][row.remedy]}) if row.remedy else row
    summary, commands = advice.do, by_tool(advice.commands, case)
    if not summary:
        summary, commands = "It cannot be told from this. The next command's output would.", (found.ask,)
    first = "This is not an installation problem. " if row.kind in ("program", "hardware") else ""
    return Remedy(first + summary, commands)


def by_tool(commands: Mapping[str, tuple[str, ...]], case: Case) -> tuple[str, ...]:
    """The commands for the person's tool, else for the platform, else for all."""
    places = [case.tool, *(name for name in ("jetson", "wsl", "windows", "mac", "linux") if name in case.known), ""]
    return next((commands[place] for place in places if place in commands), ())


# --- another build --------------------------------------------------------------------


def other_build(case: Case, found: Diagnosis | None = None) -> Remedy:
    gpus = tuple(dict.fromkeys(own for gpu in case.gpus if (own := capability_of(gpu))))
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
    """The release that is installed first, then recent builds, then all of torch 2, then for any Python; the note says
    where Python is the reason."""
    python, torch = case.facts.platform.python, case.facts.torch
    platform = platform_of(case.facts, gpus[0]) or "linux_x86_64"
    own = dotted(case.release) if case.release and torch and "dev" not in (torch.version or "") else _OLDEST
    ranges = [(own, own, python)] if version_of(own) > version_of(_OLDEST) else []
    ranges += [(low, _NEWEST, any_python) for any_python in (python, None) for low in ("2.9", _OLDEST)]
    choice = wheels.Choice(None, None, "")
    for torch_min, torch_max, for_python in ranges:
        choice = wheels.choose(
            capabilities=gpus,
            driver_version=case.driver_version,
            driver_cuda=case.driver_cuda,
            platform=platform,
            python=for_python,
            torch_min=torch_min,
            torch_max=torch_max,
            is_wsl=bool(case.facts.platform.is_wsl),
        )
        if choice.wheel is not None and (choice.wheel.status in _TRUSTED or torch_min == _OLDEST):
            fits = python is None or choice.wheel.python_min <= python <= choice.wheel.python_max
            low, high = dotted(choice.wheel.python_min), dotted(choice.wheel.python_max)
            note = "" if fits else f" It needs Python {low} to {high}: make a new environment with one of them."
            return choice, note
    return choice, ""


def _install(case: Case, gpus: tuple[Capability, ...], wheel: Wheel, note: str, driver: str | None) -> Remedy:
    served = "; ".join(f"{dotted(gpu)}: {wheels.serves(wheel, gpu).reason}" for gpu in gpus)
    on = f" and runs on driver {case.driver_version}" if case.driver_version else ""
    summary = f"Install torch {wheel.release}+{wheel.variant}: it has code for this GPU{on} ({served}).{note}"
    others = [variant for variant in variants_for(case, gpus, wheel.torch) if variant != wheel.variant]
    return _with_commands(case, summary, wheel, (wheel.variant, *others), driver)


def _with_commands(case: Case, summary: str, wheel: Wheel, variants: tuple[str, ...], driver: str | None) -> Remedy:
    tools = install_commands(wheel, case)
    return Remedy(
        summary=summary + _neighbours(case, wheel),
        commands=tools[case.tool],
        torch_variants=variants,
        driver=driver.removeprefix("driver ") if driver else None,
        pip=tools["pip"],
        uv=tools["uv"],
        conda=tools["conda"],
    )


def _neighbours(case: Case, wheel: Wheel) -> str:
    """What packages beside torch say to another release of it."""
    if case.release == version_of(wheel.torch):
        return ""
    rows = table()["neighbours"]
    return "".join(f" {rows[name]}" for name in rows if name in case.facts.packages)


def install_commands(wheel: Wheel, case: Case) -> dict[str, tuple[str, ...]]:
    """The same change with each tool. The local version ('+cu128') replaces a '+cpu' build of the same release, of
    torchvision too; conda-forge's packages have the CUDA in cuda-version."""
    facts, tag, url = case.facts, wheel.variant, f"{wheels.INDEX}/{wheel.variant}"
    beside = [name for name in ("torchvision", "torchaudio") if name in facts.packages]
    if facts.source == "text" and "torchvision" not in beside:
        beside.insert(0, "torchvision")
    vision = compat.load("wheels")["torchvision"].get(wheel.release) if wheel.platform != "linux_aarch64" else None
    pinned = [f'"torchvision=={vision}+{tag}"' if name == "torchvision" and vision else name for name in beside]
    what = " ".join([f'"torch=={wheel.release}+{tag}"', *pinned])
    pip, uv = f"python -m pip install {what} --index-url {url}", f"uv pip install {what} --index-url {url}"
    cuda = wheel.cuda or (12, 0)
    forge = f'pytorch-gpu {" ".join(beside)} "cuda-version>={dotted(cuda)},<{cuda[0] + 1}"'.replace("  ", " ")
    return {
        "pip": (pip,),
        "uv": (uv,),
        "uv project": (f'uv add "torch=={wheel.release}" {" ".join(beside)} --index pytorch-{tag}={url}', "uv sync"),
        "poetry": (
            f"poetry source add --priority=explicit pytorch-{tag} {url}",
            f"poetry add --source pytorch-{tag} {what}",
        ),
        "pixi": (f"pixi project system-requirements add cuda {cuda[0]}", f"pixi add {forge}"),
        # PyTorch publishes no conda packages of its own since 2.6 (pytorch#138506); conda-forge does.
        "conda": (f"conda install -c conda-forge {forge}", f"{pip}   # or pip, inside the conda environment"),
        "docker": (
            f"RUN {pip}   # in the Dockerfile, after everything that may replace torch",
            "docker build . && docker run --gpus all IMAGE",
        ),
    }


def variants_for(case: Case, gpus: tuple[Capability, ...], torch: str) -> tuple[str, ...]:
    """Every CUDA variant of one torch release that is well known, serves all these GPUs and starts on this driver,
    newest first."""
    platform = platform_of(case.facts, gpus[0]) or "linux_x86_64"
    fitting = [
        wheel
        for wheel in wheels.wheels()
        if (wheel.torch, wheel.platform) == (torch, platform) and wheel.variant != "cpu" and wheel.status in _TRUSTED
        if _starts(case, wheel, gpus) and all(wheels.serves(wheel, gpu).how == "native" for gpu in gpus)
    ]
    return tuple(wheel.variant for wheel in sorted(fitting, key=lambda wheel: wheel.cuda or (0, 0), reverse=True))


def _starts(case: Case, wheel: Wheel, gpus: tuple[Capability, ...] = ()) -> bool:
    """Where the driver is not known, whether every driver that serves these GPUs would start this build."""
    runs = driver_runs(wheel.variant, case.driver_version, case.system, driver_cuda=case.driver_cuda)
    if runs is not None:
        return runs
    least = wheels.needed_driver("cu120", gpus, case.system)
    return (driver_floor(wheel.variant, case.system) or (0,)) <= least


def _no_build(case: Case, gpus: tuple[Capability, ...], choice: wheels.Choice) -> Remedy:
    if choice.driver_advice and (case.driver_version or case.driver_cuda):
        return _newer_driver(gpus, choice.driver_advice)
    which = " and ".join(dotted(gpu) for gpu in gpus)
    unknown = [dotted(gpu) for gpu in gpus if gpu not in families() and gpu > (3, 0)]
    if unknown:
        text = f"Compute capability {', '.join(unknown)} is not in this kit's table of {wheels.checked()}"
        return Remedy(f"{text}: see https://pytorch.org/get-started/locally/ for a newer build.")
    if len(gpus) > 1 and all(_choose(case, (gpu,))[0].wheel for gpu in gpus):
        text = f"No one build serves compute capability {which} together. Use one environment for each and hide the"
        return Remedy(f"{text} other GPU with CUDA_VISIBLE_DEVICES.", ("CUDA_VISIBLE_DEVICES=0 python -m kit check",))
    last = ""
    if max(gpus) <= (3, 5):
        last = " The last builds that listed sm_35 in part are torch 1.12 and older with CUDA 10.2."
    if (7, 5) in gpus and platform_of(case.facts, gpus[0]) == "linux_aarch64":
        last = " NVIDIA's own container images or a build from source (TORCH_CUDA_ARCH_LIST=7.5) remain."
    return Remedy(f"No official torch 2 release has code for compute capability {which} on this platform.{last}")


def _newer_driver(gpus: tuple[Capability, ...], needed: str) -> Remedy:
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
        f"Install torch {best.release}+{best.variant}. The GPU is not named; this build has code for compute capability"
        f" {dotted(min(served))} to {dotted(max(served))}, so check that it is one of them (nvidia-smi -L)."
    )
    if case.facts.nvidia_smi_exit_code == 127:
        summary = "Make sure that there is an NVIDIA GPU at all: no driver shows. " + summary
    return _with_commands(case, summary, best, (best.variant,), None)


def _reach(wheel: Wheel, possible: list[Capability]) -> tuple[Capability, int, tuple[int, int]]:
    """The newest GPU first, since whoever asks today has one more often, then how many kinds, then the release."""
    served = [capability for capability in possible if wheels.serves(wheel, capability).how == "native"]
    return max(served, default=(0, 0)), len(served), version_of(wheel.torch)


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
            "Orin needs NVIDIA's Jetson wheels: on JetPack 6 those of the Jetson AI Lab index. On JetPack 7.2 and later"
            " the ordinary aarch64 build with CUDA 13 runs too; a kernel run decides."
        )
        found = f" This machine says {jetpack}." if jetpack else ""
        index = "https://pypi.jetson-ai-lab.io/jp6/cu126"
        return Remedy(text + found, (f"python3 -m pip install torch torchvision --index-url {index}",))
    choice, note = _choose(case, gpus)
    if choice.wheel is not None:
        made = _install(case, gpus, choice.wheel, note, choice.driver_advice)
        images = (
            " In docker use an NGC image of 25.08 or newer: older ones have no sm_110." if gpus[0] >= (10, 0) else ""
        )
        return dataclasses.replace(made, summary=made.summary + images)
    which = dotted(gpus[0])
    text = f"A Jetson of compute capability {which} needs the wheel that NVIDIA publishes for its JetPack release; "
    return Remedy(text + "no wheel of the PyTorch index has code for it.", ("cat /etc/nv_tegra_release",))


# --- another driver -------------------------------------------------------------------


def _driver(case: Case, found: Diagnosis) -> Remedy:
    """An older build that this driver starts, or a newer driver."""
    variant, is_ptx = variant_of(case.facts.torch), found.cause == "ptx_too_new"
    needed = None
    if variant and variant != "cpu":
        cuda = case.facts.torch.cuda if case.facts.torch and (is_ptx or found.cause == "large_parameters") else None
        floor = (toolkit_driver(cuda, case.system) if cuda else None) or driver_floor(variant, case.system)
        needed = f"{text_of(floor)} or newer ({case.system})" if floor else None
    host = " In a container it is the host's driver that counts." if "container" in case.known else ""
    if is_ptx or found.cause == "large_parameters":
        text = "Use a driver at least as new as the toolkit of the build, or a build (or image) of an older CUDA that"
        return Remedy(f"{text} holds native code for this GPU.{host}", ("nvidia-smi",), driver=needed)
    if case.driver_version is None and case.driver_cuda is None:
        text = (
            "Install the newest driver that serves this GPU, or a torch build for an older CUDA; nvidia-smi tells the"
        )
        return Remedy(f"{text} driver.{host}", ("nvidia-smi",), driver=needed)
    build = other_build(case)
    if not build.commands or not build.torch_variants:
        return build
    change = f" Or keep the build and install driver {needed}." if needed else ""
    return dataclasses.replace(build, summary=build.summary + change + host, driver=needed or _any_newer(case))


def _any_newer(case: Case) -> str | None:
    """The driver that the next CUDA major needs."""
    own = case.driver_cuda or cuda_of_driver(case.driver_version, case.system)
    major = 12 if own and own[0] < 12 else 13
    floor = driver_floor(f"cu{major}0", case.system)
    return f"{text_of(floor)} or newer ({case.system}) for CUDA {major} builds" if floor else None


# --- the packages of one release ------------------------------------------------------


def _pair(case: Case, found: Diagnosis) -> Remedy:
    """torchvision and torchaudio of the torch that is there, from its own index; torch itself stays."""
    torch, variant = case.facts.torch, variant_of(case.facts.torch)
    own = dotted(case.release) if case.release and torch and "dev" not in (torch.version or "") else None
    wheel = next((row for row in wheels.wheels() if row.torch == own and row.variant == variant), None)
    text = "Install torch, torchvision and torchaudio from one index in one command, all of one release"
    if wheel is None:
        made = other_build(case) if case.gpus else None
        if made and made.torch_variants:
            return dataclasses.replace(made, summary=f"{text} (a stable one). {made.summary}")
        first = 'python -c "import torch; print(torch.__version__)"'
        then = f"python -m pip install --upgrade torch torchvision --index-url {wheels.INDEX}/cuXXX   # its +cuXXX"
        return Remedy(f"{text}: the index that this torch came from.", (first, then))
    tools = install_commands(wheel, case)
    return Remedy(f"{text}: torch {own} stays, its companions are replaced.", tools[case.tool], (wheel.variant,))


def _python(case: Case, found: Diagnosis) -> Remedy:
    """Which Python or which torch the index has."""
    python, wanted = (
        case.facts.platform.python,
        re.search(r"\btorch(?:==|~=|\s?\(|-)\s?v?(\d\.\d{1,2})", case.reading.text),
    )
    text = "Ask an index that has the build for this Python and platform: each torch release has builds for some Python versions only"
    rows = [wheel for wheel in wheels.wheels() if wanted and wheel.torch == wanted[1]]
    if rows:
        low, high = dotted(rows[0].python_min), dotted(rows[0].python_max)
        variants = sorted(
            {wheel.variant for wheel in rows if wheel.variant != "cpu"}, key=lambda name: (len(name), name)
        )
        text += f": torch {rows[0].torch} for Python {low} to {high}, with {', '.join(variants)}"
    fitting = [w for w in wheels.wheels() if python and w.python_min <= python <= w.python_max]
    if fitting:
        low, high = (dotted(f([version_of(w.torch) for w in fitting])) for f in (min, max))
        text += f". Python {dotted(python or (0, 0))} has torch {low} to {high}"
    text += ". Builds with +cuXXX stand on PyTorch's index only (https://download.pytorch.org/whl/ lists them); Python must be 64-bit."
    return Remedy(text, by_tool(cause_of({"id": "python", **table()["advice"]["python"]}).commands, case))


_COMPUTED: Mapping[str, Callable[[Case, Diagnosis], Remedy]] = {
    "torch": other_build,
    "driver": _driver,
    "pair": _pair,
    "python": _python,
}

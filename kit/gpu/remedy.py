"""What to do about a verdict: a command that fits this GPU, this driver, this platform and the tool that is used, or
why there is none.

The smallest change comes first: another build of the same torch release, then another release, then another driver.
No build is named that lacks the GPU's code or that the driver cannot start; where the driver is not known, the build is
one that every driver of recent years starts.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from kit.gpu import compat, wheels
from kit.gpu.compat import (
    TEGRA,
    Capability,
    cuda_of_driver,
    driver_floor,
    parse_driver,
    text_of,
    toolkit_driver,
)
from kit.gpu.diagnose import PLACES, Case, table
from kit.gpu.facts import MachineFacts
from kit.gpu.specs import families, first_driver, last_driver_branch, still_driven
from kit.gpu.wheels import Wheel, platform_of, version_of
from kit.records import Outcome, Verdict
from kit.show import card, escape, plain
from kit.units import dotted

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

    def _repr_html_(self, outcome: Outcome | None = None) -> str:
        commands = "".join(f"<pre>{escape(command)}</pre>" for command in self.commands)
        return card("What to do", f"<p>{escape(self.summary)}</p>{commands}", outcome)


def remedy(verdict: Verdict, facts: MachineFacts) -> Remedy:
    """The remedy for a verdict of `judge`. A verdict that is fine has nothing to do."""
    if verdict.outcome in (Outcome.PASS, Outcome.REHEARSAL):
        return Remedy("Nothing to do.")
    case = Case(facts)
    if case.found.word != "ok":
        return remedy_for(case)
    # The machine is fine; something that was asked of it is not: the checks say what to do.
    todo = " ".join(check.todo for check in verdict.findings if check.required and check.todo)
    todo = todo or "The environment fits together; run the check on the machine itself to prove it."
    return Remedy(todo, ("python -m kit check",) if case.is_text else ())


def remedy_for(case: Case) -> Remedy:
    """The remedy for what is found in this case."""
    found, row = case.found, case.found.row
    if found.word == "ok":
        return Remedy("Nothing to do.")
    if row is None or (found.confidence == "low" and found.ask and not case.gpus and not row["commands"]):
        first = "Nothing is to be installed again because of that line. " if found.unexplained else ""
        too_little = "Too little is known to name a change. The output of this command would settle it."
        return Remedy(first + too_little, (found.ask,) if found.ask else ())
    if row["remedy"] and case.is_not_nvidia:
        return _advise("not_nvidia", case)
    if row["remedy"]:
        return _COMPUTED[row["remedy"]](case) if row["remedy"] in _COMPUTED else _advise(row["remedy"], case)
    if not row["do"]:
        return Remedy("It cannot be told from this. The next command's output would.", (found.ask,))
    first = "This is not an installation problem. " if row["kind"] in ("program", "hardware") else ""
    return Remedy(first + row["do"], by_tool(row["commands"], case))


def _advise(name: str, case: Case, *, driver: str | None = None, **words: str) -> Remedy:
    """A remedy whose words stand in the table of causes, under `advice`."""
    row = table()["advice"][name]
    return Remedy(row["do"].format(**words), by_tool(row.get("commands", ()), case), driver=driver)


def by_tool(commands: Mapping[str, Sequence[str]] | Sequence[str], case: Case) -> tuple[str, ...]:
    """The commands for the person's tool, else for the platform, else for all."""
    if not isinstance(commands, Mapping):
        return tuple(commands)
    places = [case.tool, *(name for name in PLACES[1:] if name in case.known), ""]
    return tuple(next((commands[place] for place in places if place in commands), ()))


# --- another build --------------------------------------------------------------------


def other_build(case: Case) -> Remedy:
    gpus, version = tuple(dict.fromkeys(own for _, own, _ in case.holdings)), case.driver.version
    if not gpus:
        return _build_for_unknown_gpu(case)
    if any(gpu in TEGRA for gpu in gpus):
        return _jetson(case, gpus)
    if gone := [gpu for gpu in gpus if still_driven(gpu, version) is False]:
        branch, own = f"R{last_driver_branch(gone[0])}", dotted(gone[0])
        return _advise("dropped", case, driver=branch, version=version or "", capability=own, branch=branch)
    wheel, driver, note = _choose(case, gpus)
    return _install(case, gpus, wheel, driver, note) if wheel else _no_build(case, gpus, driver)


def _choose(case: Case, gpus: tuple[Capability, ...]) -> tuple[Wheel | None, str | None, str]:
    """The release that is installed first, then recent builds, then all of torch 2, then for any Python: the build, what
    a driver would bring, and a note where Python is the reason."""
    python, own, needed = case.facts.platform.python, _stable(case) or _OLDEST, None
    ranges = [(own, own, python)] if version_of(own) > version_of(_OLDEST) else []
    ranges += [(low, _NEWEST, any_python) for any_python in (python, None) for low in ("2.9", _OLDEST)]
    for torch_min, torch_max, for_python in ranges:
        wheel, _, needed = wheels.choose(
            capabilities=gpus,
            driver_version=case.driver.version,
            driver_cuda=case.driver.cuda_version,
            platform=platform_of(case.facts, gpus[0]) or "linux_x86_64",
            python=for_python,
            torch_min=torch_min,
            torch_max=torch_max,
            is_wsl=bool(case.facts.platform.is_wsl),
        )
        if wheel and (wheel.status in _TRUSTED or torch_min == _OLDEST):
            low, high = wheel.python_min, wheel.python_max
            note = f" It needs Python {dotted(low)} to {dotted(high)}: make a new environment with one of them."
            return wheel, needed, "" if python is None or low <= python <= high else note
    return None, needed, ""


def _stable(case: Case) -> str | None:
    """The release of torch that is there, '2.9'; None for a nightly build."""
    return dotted(case.release) if case.release and "dev" not in (case.torch.version or "") else None


def _install(case: Case, gpus: tuple[Capability, ...], wheel: Wheel, driver: str | None, note: str) -> Remedy:
    version = case.driver.version
    served = "; ".join(f"{dotted(gpu)}: {wheels.serves(wheel, gpu).reason}" for gpu in gpus)
    on = f" and runs on driver {version}" if version else ""
    summary = f"Install torch {wheel.release}+{wheel.variant}: it has code for this GPU{on} ({served}).{note}"
    # Every CUDA variant of that release that is well known, serves all these GPUs and starts on this driver.
    others = [
        row
        for row in _known_wheels(case, wheel.platform, gpus)
        if row.torch == wheel.torch and row.variant != wheel.variant and wheels.serves_all(row, gpus)
    ]
    others.sort(key=lambda row: row.cuda or (0, 0), reverse=True)
    return _with_commands(case, summary, [wheel, *others], driver)


def _with_commands(case: Case, summary: str, rows: Sequence[Wheel], driver: str | None = None) -> Remedy:
    """rows: the build to install, then others that would do."""
    tools, beside = install_commands(rows[0], case), table()["neighbours"]
    if case.release != version_of(rows[0].torch):
        # What packages beside torch say to another release of it.
        summary += "".join(f" {beside[name]}" for name in beside if name in case.facts.packages)
    return Remedy(
        summary=summary,
        commands=tools[case.tool],
        torch_variants=tuple(row.variant for row in rows),
        driver=driver.removeprefix("driver ") if driver else None,
        **{name: tools[name] for name in ("pip", "uv", "conda")},
    )


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


def _known_wheels(case: Case, platform: str, gpus: Iterable[Capability] = ()) -> list[Wheel]:
    """The well-known CUDA builds for a platform that this driver starts; where it is not known, that every driver which
    serves these GPUs would start."""
    least = wheels.needed_driver("cu120", gpus, case.system)
    return [
        wheel
        for wheel in wheels.wheels()
        if wheel.platform == platform and wheel.variant != "cpu" and wheel.status in _TRUSTED
        if (
            (driver_floor(wheel.variant, case.system) or (0,)) <= least
            if (starts := case.runs(wheel.variant)) is None
            else starts
        )
    ]


def _no_build(case: Case, gpus: tuple[Capability, ...], driver: str | None) -> Remedy:
    if driver and (case.driver.version or case.driver.cuda_version):
        branches = [branch for gpu in gpus if (branch := last_driver_branch(gpu))]
        limit = f", but not above R{min(branches)}, the last branch for this GPU" if branches else ""
        least = driver.removeprefix("driver ").split(" for ")[0] + limit
        return _advise("no_build_for_driver", case, driver=least, needed=driver + limit)
    which, unknown = " and ".join(map(dotted, gpus)), [gpu for gpu in gpus if gpu not in families() and gpu > (3, 0)]
    if unknown:
        checked = compat.load("wheels")["checked"]
        return _advise("unknown_capability", case, which=", ".join(map(dotted, unknown)), checked=checked)
    if len(gpus) > 1 and all(_choose(case, (gpu,))[0] for gpu in gpus):
        return _advise("apart", case, which=which)
    is_arm = (7, 5) in gpus and platform_of(case.facts, gpus[0]) == "linux_aarch64"
    last = " NVIDIA's own container images or a build from source (TORCH_CUDA_ARCH_LIST=7.5) remain." if is_arm else ""
    if max(gpus) <= (3, 5):
        last = " The last builds that listed sm_35 in part are torch 1.12 and older with CUDA 10.2."
    return _advise("no_release", case, which=which, last=last)


def _build_for_unknown_gpu(case: Case) -> Remedy:
    """The build whose code covers most of the GPUs that this driver can drive: the newest GPU first, since whoever asks
    today has one more often, then how many kinds, then the release."""
    python, rows = case.facts.platform.python, _known_wheels(case, platform_of(case.facts) or "linux_x86_64")
    fitting = [wheel for wheel in rows if python is None or wheel.python_min <= python <= wheel.python_max] or rows
    if not fitting:
        needed = f"{text_of(driver_floor('cu126', case.system) or ())} or newer ({case.system})"
        return _advise("no_build", case, driver=needed, needed=needed)
    possible = [capability for capability in families() if _can_drive(case, capability)]
    reach = {wheel: [gpu for gpu in possible if wheels.serves_all(wheel, [gpu])] for wheel in fitting}
    best = max(fitting, key=lambda wheel: (max(reach[wheel]), len(reach[wheel]), version_of(wheel.torch)))
    summary = (
        f"Install torch {best.release}+{best.variant}. The GPU is not named; this build has code for compute capability"
        f" {dotted(min(reach[best]))} to {dotted(max(reach[best]))}, so check that it is one of them (nvidia-smi -L)."
    )
    if case.facts.nvidia_smi_exit_code == 127:
        summary = "Make sure that there is an NVIDIA GPU at all: no driver shows. " + summary
    return _with_commands(case, summary, [best])


def _can_drive(case: Case, capability: Capability) -> bool:
    """Which GPUs may sit behind this driver: not newer than it, not dropped by it, and no Jetson."""
    own, is_card = case.driver.cuda_version, capability not in TEGRA and capability >= (5, 0)
    driver = parse_driver(case.driver.version) or (toolkit_driver(own, case.system) if own else None)
    first, branch = first_driver(capability, case.system) or (0,), last_driver_branch(capability) or 990
    return is_card and (driver is None or first[0] <= driver[0] < branch + 10)


def _jetson(case: Case, gpus: tuple[Capability, ...]) -> Remedy:
    jetpack = case.facts.platform.jetpack
    if gpus[0] == (8, 7):
        return _advise("orin", case, found=f" This machine says {jetpack}." if jetpack else "")
    wheel, driver, note = _choose(case, gpus)
    image = " In docker use an NGC image of 25.08 or newer: older ones have no sm_110." if gpus[0] >= (10, 0) else ""
    made = _install(case, gpus, wheel, driver, note) if wheel else _advise("jetson", case, which=dotted(gpus[0]))
    return dataclasses.replace(made, summary=made.summary + image) if wheel else made


# --- another driver -------------------------------------------------------------------


def _driver(case: Case) -> Remedy:
    """An older build that this driver starts, or a newer driver."""
    version, own, is_own = case.driver.version, case.driver.cuda_version, case.found.cause in _NEEDS_OWN
    floor = toolkit_driver(case.torch.cuda, case.system) if is_own and case.torch.cuda else None
    least = f"{text_of(floor)} or newer" if floor else case.floor
    needed = f"{least} ({case.system})" if least else None
    host = " In a container it is the host's driver that counts." if "container" in case.known else ""
    if is_own or not (version or own):
        return _advise("own_driver" if is_own else "newest_driver", case, driver=needed, host=host)
    build = other_build(case)
    if not build.commands or not build.torch_variants:
        return build
    change = f" Or keep the build and install driver {needed}." if needed else ""
    own = own or cuda_of_driver(version, case.system)
    major = 12 if own and own[0] < 12 else 13
    # The driver that the next CUDA major needs.
    any_newer = (
        f"{text_of(driver_floor(f'cu{major}0', case.system) or ())} or newer ({case.system}) for CUDA {major} builds"
    )
    return dataclasses.replace(build, summary=build.summary + change + host, driver=needed or any_newer)


# --- the packages of one release ------------------------------------------------------


def _pair(case: Case) -> Remedy:
    """torchvision and torchaudio of the torch that is there, from its own index; torch itself stays."""
    own = _stable(case)
    wheel = next((row for row in wheels.wheels() if row.torch == own and row.variant == case.variant), None)
    text = "Install torch, torchvision and torchaudio from one index in one command, all of one release"
    if wheel:
        text = f"{text}: torch {own} stays, its companions are replaced."
        return Remedy(text, install_commands(wheel, case)[case.tool], (wheel.variant,))
    made = other_build(case) if case.gpus else None
    if made and made.torch_variants:
        return dataclasses.replace(made, summary=f"{text} (a stable one). {made.summary}")
    return _advise("one_index", case, text=text)


def _python(case: Case) -> Remedy:
    """Which Python or which torch the index has."""
    python, which = case.facts.platform.python, ""
    wanted = re.search(r"\btorch(?:==|~=|\s?\(|-)\s?v?(\d\.\d{1,2})", case.reading.text)
    rows = [wheel for wheel in wheels.wheels() if wanted and wheel.torch == wanted[1]]
    if rows:
        low, high = dotted(rows[0].python_min), dotted(rows[0].python_max)
        variants = sorted({wheel.variant for wheel in rows} - {"cpu"}, key=lambda name: (len(name), name))
        which = f": torch {rows[0].torch} for Python {low} to {high}, with {', '.join(variants)}"
    fitting = [version_of(w.torch) for w in wheels.wheels() if python and w.python_min <= python <= w.python_max]
    if fitting:
        which += f". Python {dotted(python)} has torch {dotted(min(fitting))} to {dotted(max(fitting))}"
    return _advise("python", case, which=which)


_COMPUTED: Mapping[str, Callable[[Case], Remedy]] = {
    "torch": other_build,
    "driver": _driver,
    "pair": _pair,
    "python": _python,
}
# Causes for which minor-version compatibility is not enough: the driver has to be that of the build's own CUDA.
_NEEDS_OWN = ("ptx_too_new", "large_parameters")

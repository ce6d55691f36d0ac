"""Which published PyTorch build serves these GPUs on this driver.

Rows with their sources stand in `data/wheels.json`. `choose` only names a build whose
code is known to run on every GPU asked for and which the driver can start; where there
is none it says why, and never guesses for a GPU it does not know.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from kit.gpu import compat
from kit.gpu.compat import (
    Capability,
    Coverage,
    Version,
    cover,
    cuda_of,
    cuda_of_driver,
    driver_floor,
    driver_runs,
    parse_driver,
    text_of,
    version_of,
)
from kit.gpu.facts import MachineFacts, Torch
from kit.gpu.specs import families, first_driver
from kit.units import dotted

INDEX = "https://download.pytorch.org/whl"
_TRUST = {"measured": 2, "read": 2, "reported": 1, "inferred": 1, "unverified": 0}


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One published build. torch: '2.13'; release: the exact version to install, '2.13.0'.

    arch_list: as torch.cuda.get_arch_list() prints it. status: how the row is known
    (measured, read, reported, inferred, unverified).
    """

    torch: str
    release: str
    variant: str
    platform: str
    arch_list: tuple[str, ...]
    python_min: tuple[int, int]
    python_max: tuple[int, int]
    is_pypi_default: bool
    status: str

    @property
    def cuda(self) -> tuple[int, int] | None:
        return cuda_of(self.variant)

    @property
    def index_url(self) -> str | None:
        """None where PyPI itself carries this build for the platform."""
        return None if self.is_pypi_default else f"{INDEX}/{self.variant}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The build to install, or None with the reason. driver_advice: what a driver change would need or bring."""

    wheel: Wheel | None
    index_url: str | None
    reason: str
    driver_advice: str | None = None


@functools.cache
def wheels() -> tuple[Wheel, ...]:
    """All rows, oldest first."""
    table = compat.load("wheels")
    releases = {row["torch"]: row for row in table["releases"]}
    return tuple(
        Wheel(
            torch=row["torch"],
            release=releases[row["torch"]]["release"],
            variant=row["variant"],
            platform=row["platform"],
            arch_list=tuple(row["native"]) + tuple(row["ptx"] or ()),
            python_min=version_of(releases[row["torch"]]["python_min"]),
            python_max=version_of(releases[row["torch"]]["python_max"]),
            is_pypi_default=row["pypi"],
            status=row["known"],
        )
        for row in table["wheels"]
    )


def checked() -> str:
    """The date on which the rows were last compared with their sources."""
    return compat.load("wheels")["checked"]


def serves(wheel: Wheel, capability: Capability) -> Coverage:
    """How a wheel serves a GPU: native, ptx or none, with the reason in words."""
    return cover(wheel.arch_list, capability, cuda=wheel.cuda)


def choose(
    *,
    capabilities: Iterable[Capability],
    driver_version: str | None,
    platform: str,
    python: tuple[int, int] | None = None,
    torch_min: str = "2.9",
    torch_max: str = "2.15",
    driver_cuda: tuple[int, int] | None = None,
    is_wsl: bool = False,
) -> Choice:
    """The newest well-known build that serves every GPU natively and that this driver starts.

    Another wheel is a smaller change than another driver, so the driver is taken as it
    is. Unknown driver: the build that the oldest driver still starts, and `driver_advice`
    names that driver. driver_cuda: what the driver reports, where its version is unknown.
    """
    gpus = tuple(dict.fromkeys(capabilities))
    if not gpus:
        return Choice(None, None, "The compute capability of the GPU is not known, so no build can be chosen.")
    system = "Windows" if platform.startswith("windows") or is_wsl else "Linux"
    pool = [
        wheel
        for wheel in wheels()
        if wheel.variant != "cpu"
        and wheel.platform == platform
        and version_of(torch_min) <= version_of(wheel.torch) <= version_of(torch_max)
    ]
    coded = [w for w in pool if all(serves(w, gpu).how == "native" for gpu in gpus)]
    fitting = [w for w in coded if python is None or w.python_min <= python <= w.python_max]
    running = [
        w for w in fitting if driver_runs(w.variant, driver_version, system, driver_cuda=driver_cuda) is not False
    ]
    if not running:
        reason = _why_none(gpus, platform, python, coded, fitting, f"{torch_min} to {torch_max}")
        return Choice(None, None, reason, _driver_needed(fitting, system))
    own = driver_cuda or cuda_of_driver(driver_version, system)
    is_known = parse_driver(driver_version) is not None or driver_cuda is not None
    if not is_known:
        lowest = min(needed_driver(wheel.variant, gpus, system) for wheel in running)
        running = [wheel for wheel in running if needed_driver(wheel.variant, gpus, system) == lowest]
    best = max(running, key=lambda wheel: _rank(wheel, own))
    advice = None if is_known else f"driver {text_of(needed_driver(best.variant, gpus, system))} or newer ({system})"
    return Choice(best, best.index_url, _why(best, gpus), advice)


def needed_driver(variant: str, gpus: Iterable[Capability], system: str) -> Version:
    """The driver that a build and the GPUs need together, for a machine whose driver is not known: at least
    the one of CUDA 12.0, since nobody asks about an older one today without saying so."""
    floors = [
        driver_floor(variant, system),
        driver_floor("cu120", system),
        *(first_driver(gpu, system) for gpu in gpus),
    ]
    return max(floor for floor in floors if floor)


def _rank(wheel: Wheel, own: tuple[int, int] | None) -> tuple[object, ...]:
    """Trust first, then the newest release; within it PyPI's own build, then a CUDA the driver carries
    itself."""
    carried = own is None or (wheel.cuda or (0, 0)) <= own
    return (_TRUST[wheel.status], version_of(wheel.torch), wheel.is_pypi_default, carried, wheel.cuda)


def _why(wheel: Wheel, gpus: tuple[Capability, ...]) -> str:
    covered = "; ".join(f"GPU {dotted(gpu)}: {serves(wheel, gpu).reason}" for gpu in gpus)
    return f"torch {wheel.release}+{wheel.variant} ({wheel.status}). {covered}."


def _names(group: Iterable[Wheel]) -> str:
    by_variant: dict[str, list[tuple[int, int]]] = {}
    for wheel in group:
        by_variant.setdefault(wheel.variant, []).append(version_of(wheel.torch))
    parts = []
    for variant, found in sorted(by_variant.items()):
        low, high = dotted(min(found)), dotted(max(found))
        parts.append(f"{variant} (torch {low}{'' if low == high else ' to ' + high})")
    return ", ".join(parts)


def _why_none(
    gpus: tuple[Capability, ...],
    platform: str,
    python: tuple[int, int] | None,
    coded: list[Wheel],
    fitting: list[Wheel],
    span: str,
) -> str:
    which = " and ".join(map(dotted, gpus))
    if not coded:
        together = " together" if len(gpus) > 1 else ""
        return f"No official torch build from {span} for {platform} has native code for {which}{together}."
    if not fitting:
        return f"{_names(coded)} would serve {which}, but not on Python {dotted(python)}."
    return f"{_names(fitting)} would serve {which}, but the driver is too old for every one of them."


def _driver_needed(fitting: list[Wheel], system: str) -> str | None:
    floors = [(floor, w.variant) for w in fitting if (floor := driver_floor(w.variant, system))]
    if not floors:
        return None
    floor, _ = min(floors)
    variants = sorted({variant for found, variant in floors if found == floor})
    return f"driver {text_of(floor)} or newer ({system}) for {', '.join(variants)}"


# What a torch build holds for a GPU, from the best source there is for it.
#
# In this order: the arch list that the build itself printed; the range that its warning
# named; the rows of the wheel table for its version and variant; what its CUDA toolkit
# can compile at all. Each answer says which source it rests on. Unknown stays unknown.

_AARCH64_CHIPS = frozenset({(12, 1), (8, 7), (7, 2), (11, 0), (10, 1), (6, 2), (5, 3)})


def holding(facts: MachineFacts, capability: Capability | None) -> Coverage:
    """What the torch build of `facts` holds for a GPU of `capability`."""
    torch = facts.torch
    if capability is None:
        return Coverage("unknown", "the compute capability of the GPU is not known")
    if torch is None:
        return Coverage("unknown", "the torch build is not known")
    if torch.arch_list:
        return cover(torch.arch_list, capability, cuda=torch.cuda)
    if torch.min_capability:
        return _from_range(torch, capability)
    return _from_table(facts, capability) or _from_toolkit(torch, capability)


def variant_of(torch: Torch | None) -> str | None:
    """'cu128', 'cpu', or None where the text does not tell."""
    if torch is None:
        return None
    if torch.cuda:
        return f"cu{torch.cuda[0]}{torch.cuda[1]}"
    return "cpu" if torch.is_cpu_build else None


def platform_of(facts: MachineFacts, capability: Capability | None = None) -> str | None:
    """'linux_x86_64' and so on, also from a chip that only exists on one machine; None where unknown."""
    machine = facts.platform.machine
    if facts.platform.system == "Windows":
        return "windows_x86_64"
    if machine == "aarch64" or capability in _AARCH64_CHIPS or facts.platform.is_tegra or _is_grace(facts):
        return "linux_aarch64"
    return "linux_x86_64" if facts.platform.system == "Linux" else None


def _is_grace(facts: MachineFacts) -> bool:
    gpus = (facts.driver.gpus if facts.driver else ()) + (facts.torch.gpus if facts.torch else ())
    return any(mark in (gpu.name or "") for gpu in gpus for mark in ("GH200", "GB200", "GB300", "GB10", "T4G"))


def _from_range(torch: Torch, capability: Capability) -> Coverage:
    """The warnings of torch 2.7 to 2.10 name the lowest and the highest code; a higher minor of the same
    major generation than the highest still runs it."""
    low, high = torch.min_capability or (0, 0), torch.max_capability
    if capability < low:
        why = f"the build starts at {dotted(low)}, the GPU has {dotted(capability)}"
        return Coverage("none", why, "range", is_too_old=True)
    if high is None:
        return Coverage("unknown", f"the build starts at {dotted(low)}; its list is not known", "range")
    if capability <= high or capability[0] == high[0]:
        reason = f"the build's code ends at {dotted(high)}, and {dotted(capability)} runs code of its own generation"
        return Coverage("native", reason, "range", f"sm_{high[0]}{high[1]}", capability == high)
    return Coverage("none", f"the build ends at {dotted(high)}, the GPU has {dotted(capability)}", "range")


def _from_table(facts: MachineFacts, capability: Capability) -> Coverage | None:
    """Only where every row that this build could be agrees."""
    torch, variant = facts.torch, variant_of(facts.torch)
    if torch is None or not (torch.version or variant):
        return None
    version = ".".join((torch.version or "").split(".")[:2])
    platform = platform_of(facts, capability)
    rows = [
        row
        for row in wheels()
        if (not version or row.torch == version)
        and row.variant != "cpu"
        and (row.variant == variant if variant else row.is_pypi_default)
        and (row.platform == platform if platform else row.platform != "linux_aarch64")
    ]
    rows = [row for row in rows if row.status != "unverified"] or rows
    found = [cover(row.arch_list, capability, cuda=row.cuda, source="table") for row in rows if row.arch_list]
    return found[0] if found and len({holding.how for holding in found}) == 1 else None


def _from_toolkit(torch: Torch, capability: Capability) -> Coverage:
    """A toolkit cannot hold code for chips that it does not know yet, nor for those that it dropped."""
    if torch.cuda is None:
        return Coverage("unknown", "neither the build's list nor its CUDA version is known")
    usable = [
        family
        for family in families().values()
        if family.capability[0] == capability[0] and family.capability[1] <= capability[1]
    ]
    if not usable:
        return Coverage("unknown", f"compute capability {dotted(capability)} is not in the table")
    cuda = dotted(torch.cuda)
    if all(family.first_toolkit and family.first_toolkit > torch.cuda for family in usable):
        why = f"CUDA {cuda} is older than the GPU generation {capability[0]}.x and has no code for it"
        return Coverage("none", why, "toolkit")
    if all(family.dropped_in and family.dropped_in <= torch.cuda for family in usable):
        return Coverage("none", f"CUDA {cuda} no longer compiles for {dotted(capability)}", "toolkit", is_too_old=True)
    why = f"CUDA {cuda} can compile for {dotted(capability)}; this build's list is not known"
    return Coverage("possible", why, "toolkit")

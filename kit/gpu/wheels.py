"""Which published PyTorch build serves these GPUs on this driver.

Rows with their sources stand in `data/wheels.json`. `choose` only names a build whose
code is known to run on every GPU asked for and which the driver can start; where there
is none it says why, and never guesses for a GPU it does not know.
"""

import dataclasses
import functools
from collections.abc import Iterable

from kit.gpu import compat
from kit.gpu.compat import (
    TEGRA,
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
# Machines of these chips are aarch64.
_GRACE = ("GH200", "GB200", "GB300", "GB10", "T4G")


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


def serves(wheel: Wheel, capability: Capability) -> Coverage:
    """How a wheel serves a GPU: native, ptx or none, with the reason in words."""
    return cover(wheel.arch_list, capability, cuda=wheel.cuda)


def serves_all(wheel: Wheel, gpus: Iterable[Capability]) -> bool:
    return all(serves(wheel, gpu).how == "native" for gpu in gpus)


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
) -> tuple[Wheel | None, str, str | None]:
    """The newest well-known build that serves every GPU natively and that this driver starts, or None; the reason; what
    a driver change would need or bring.

    Another wheel is a smaller change than another driver, so the driver is taken as it
    is. Unknown driver: the build that the oldest driver still starts, and that driver. driver_cuda: what the driver reports, where its version is unknown.
    """
    gpus, span = tuple(dict.fromkeys(capabilities)), (version_of(torch_min), version_of(torch_max))
    system, which = "Windows" if platform.startswith("windows") or is_wsl else "Linux", " and ".join(map(dotted, gpus))
    if not gpus:
        return None, "The compute capability of the GPU is not known, so no build can be chosen.", None
    pool = [row for row in wheels() if row.platform == platform and span[0] <= version_of(row.torch) <= span[1]]
    coded = [row for row in pool if row.variant != "cpu" and serves_all(row, gpus)]
    if not coded:
        together = " together" if len(gpus) > 1 else ""
        text = f"No official torch build from {torch_min} to {torch_max} for {platform} has native code for"
        return None, f"{text} {which}{together}.", None
    fitting = [row for row in coded if python is None or row.python_min <= python <= row.python_max]
    if not fitting:
        return None, f"{_names(coded)} would serve {which}, but not on Python {dotted(python)}.", None
    starts = [driver_runs(row.variant, driver_version, system, driver_cuda=driver_cuda) for row in fitting]
    needs = {row: needed_driver(row.variant, gpus, system) for row, runs in zip(fitting, starts) if runs is not False}
    if not needs:
        floors = {row.variant: driver_floor(row.variant, system) or (0,) for row in fitting}
        least = min(floors.values())
        variants = ", ".join(sorted(variant for variant, floor in floors.items() if floor == least))
        text = f"{_names(fitting)} would serve {which}, but the driver is too old for every one of them."
        return None, text, f"driver {text_of(least)} or newer ({system}) for {variants}"
    own = driver_cuda or cuda_of_driver(driver_version, system)
    is_known = parse_driver(driver_version) is not None or driver_cuda is not None
    running = [row for row in needs if is_known or needs[row] == min(needs.values())]
    # Trust first, then the newest release; within it PyPI's own build, then a CUDA the driver carries itself.
    best = max(
        running,
        key=lambda row: (
            _TRUST[row.status],
            version_of(row.torch),
            row.is_pypi_default,
            own is None or (row.cuda or (0, 0)) <= own,
            row.cuda,
        ),
    )
    covered = "; ".join(f"GPU {dotted(gpu)}: {serves(best, gpu).reason}" for gpu in gpus)
    advice = None if is_known else f"driver {text_of(needs[best])} or newer ({system})"
    return best, f"torch {best.release}+{best.variant} ({best.status}). {covered}.", advice


def needed_driver(variant: str, gpus: Iterable[Capability], system: str) -> Version:
    """The driver that a build and the GPUs need together, for a machine whose driver is not known: at least
    the one of CUDA 12.0, since nobody asks about an older one today without saying so."""
    floors = [
        driver_floor(variant, system),
        driver_floor("cu120", system),
        *(first_driver(gpu, system) for gpu in gpus),
    ]
    return max(floor for floor in floors if floor)


def _names(group: list[Wheel]) -> str:
    parts = []
    for variant in sorted({row.variant for row in group}):
        releases = [version_of(row.torch) for row in group if row.variant == variant]
        ends = dict.fromkeys((dotted(min(releases)), dotted(max(releases))))
        parts.append(f"{variant} (torch {' to '.join(ends)})")
    return ", ".join(parts)


# What a torch build holds for a GPU, from the best source there is for it.
#
# In this order: the arch list that the build itself printed; the range that its warning
# named; the rows of the wheel table for its version and variant; what its CUDA toolkit
# can compile at all. Each answer says which source it rests on. Unknown stays unknown.


def holding(facts: MachineFacts, capability: Capability | None) -> Coverage:
    """What the torch build of `facts` holds for a GPU of `capability`."""
    torch = facts.torch
    if capability is None or torch is None:
        what = "compute capability of the GPU" if capability is None else "torch build"
        return Coverage("unknown", f"the {what} is not known")
    if torch.arch_list:
        return cover(torch.arch_list, capability, cuda=torch.cuda)
    if torch.min_capability:
        return _from_range(torch, capability)
    return _from_table(facts, capability) or _from_toolkit(torch, capability)


def variant_of(torch: Torch | None) -> str | None:
    """'cu128', 'cpu', or None where the text does not tell."""
    if torch and torch.cuda:
        return f"cu{torch.cuda[0]}{torch.cuda[1]}"
    return "cpu" if torch and torch.is_cpu_build else None


def platform_of(facts: MachineFacts, capability: Capability | None = None) -> str | None:
    """'linux_x86_64' and so on, also from a chip that only exists on one machine; None where unknown."""
    here, seen = facts.platform, [one.gpus for one in (facts.driver, facts.torch) if one]
    is_grace = any(mark in (gpu.name or "") for gpus in seen for gpu in gpus for mark in _GRACE)
    if here.system == "Windows":
        return "windows_x86_64"
    if here.machine == "aarch64" or capability in TEGRA | {(12, 1)} or here.is_tegra or is_grace:
        return "linux_aarch64"
    return "linux_x86_64" if here.system == "Linux" else None


def _from_range(torch: Torch, capability: Capability) -> Coverage:
    """The warnings of torch 2.7 to 2.10 name the lowest and the highest code; a higher minor of the same
    major generation than the highest still runs it."""
    low, high, own = torch.min_capability or (0, 0), torch.max_capability, dotted(capability)
    if capability < low:
        why = f"the build starts at {dotted(low)}, the GPU has {own}"
        return Coverage("none", why, "range", is_too_old=True)
    if high is None:
        return Coverage("unknown", f"the build starts at {dotted(low)}; its list is not known", "range")
    if capability > high and capability[0] != high[0]:
        return Coverage("none", f"the build ends at {dotted(high)}, the GPU has {own}", "range")
    reason = f"the build's code ends at {dotted(high)}, and {own} runs code of its own generation"
    return Coverage("native", reason, "range", f"sm_{high[0]}{high[1]}", capability == high)


def _from_table(facts: MachineFacts, capability: Capability) -> Coverage | None:
    """Only where every row that this build could be agrees."""
    torch, variant, platform = facts.torch or Torch(), variant_of(facts.torch), platform_of(facts, capability)
    version = ".".join((torch.version or "").split(".")[:2])
    rows = [
        row
        for row in wheels()
        if (not version or row.torch == version)
        and row.variant != "cpu"
        and (row.variant == variant if variant else row.is_pypi_default)
        and (row.platform == platform if platform else row.platform != "linux_aarch64")
        and (version or variant)
    ]
    rows = [row for row in rows if row.status != "unverified"] or rows
    found = [cover(row.arch_list, capability, cuda=row.cuda, source="table") for row in rows if row.arch_list]
    return found[0] if len({holding.how for holding in found}) == 1 else None


def _from_toolkit(torch: Torch, capability: Capability) -> Coverage:
    """A toolkit cannot hold code for chips that it does not know yet, nor for those that it dropped."""
    if torch.cuda is None:
        return Coverage("unknown", "neither the build's list nor its CUDA version is known")
    usable = [row for own, row in families().items() if own[0] == capability[0] and own[1] <= capability[1]]
    own, cuda = dotted(capability), dotted(torch.cuda)
    if not usable:
        return Coverage("unknown", f"compute capability {own} is not in the table")
    if all(row["first_toolkit"] and row["first_toolkit"] > torch.cuda for row in usable):
        why = f"CUDA {cuda} is older than the GPU generation {capability[0]}.x and has no code for it"
        return Coverage("none", why, "toolkit")
    if all(row["dropped_in"] and row["dropped_in"] <= torch.cuda for row in usable):
        return Coverage("none", f"CUDA {cuda} no longer compiles for {own}", "toolkit", is_too_old=True)
    return Coverage("possible", f"CUDA {cuda} can compile for {own}; this build's list is not known", "toolkit")

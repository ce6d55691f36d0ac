"""Which published PyTorch build serves these GPUs on this driver.

Rows with their sources stand in `data/wheels.json`. `choose` only names a build whose
code is known to run on every GPU asked for and which the driver can start; where there
is none it says why, and never guesses for a GPU it does not know.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from kit.gpu import data
from kit.gpu.arch import Capability, Coverage, cover, dotted, parse_code
from kit.gpu.compat import Version, cuda_of, cuda_of_driver, driver_floor, driver_runs, parse_driver, text_of
from kit.gpu.specs import first_driver

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
    sources: tuple[str, ...]
    note: str = ""

    @property
    def native(self) -> tuple[Capability, ...]:
        return tuple(c.capability for c in map(parse_code, self.arch_list) if c and not c.is_ptx and not c.kind)

    @property
    def ptx(self) -> tuple[Capability, ...]:
        return tuple(c.capability for c in map(parse_code, self.arch_list) if c and c.is_ptx)

    @property
    def cuda(self) -> tuple[int, int] | None:
        return cuda_of(self.variant)

    @property
    def index_url(self) -> str | None:
        """None where PyPI itself carries this build for the platform."""
        return None if self.is_pypi_default else f"{INDEX}/{self.variant}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The build to install, or None with the reason. rejected: one sentence for each group left out.

    driver_advice: what a driver change would need or bring; None where nothing is to be said.
    """

    wheel: Wheel | None
    index_url: str | None
    reason: str
    rejected: tuple[str, ...] = ()
    driver_advice: str | None = None


@functools.cache
def wheels() -> tuple[Wheel, ...]:
    """All rows, oldest first."""
    table = data.load("wheels")
    releases = {row["torch"]: row for row in table["releases"]}
    found = []
    for row in table["wheels"]:
        release = releases[row["torch"]]
        found.append(
            Wheel(
                torch=row["torch"],
                release=release["release"],
                variant=row["variant"],
                platform=row["platform"],
                arch_list=tuple(row["native"]) + tuple(row["ptx"] or ()),
                python_min=version_of(release["python_min"]),
                python_max=version_of(release["python_max"]),
                is_pypi_default=row["pypi"],
                status=row["known"],
                sources=tuple(row["sources"]),
                note=row.get("note", ""),
            )
        )
    return tuple(found)


def find(torch: str | None, variant: str | None, platform: str | None) -> Wheel | None:
    """The row for an installed build such as ('2.13.0', 'cu130', 'linux_x86_64'); None where unknown."""
    minor = ".".join((torch or "").split(".")[:2])
    for wheel in wheels():
        if (wheel.torch, wheel.variant, wheel.platform) == (minor, variant, platform):
            return wheel
    return None


def checked() -> str:
    """The date on which the rows were last compared with their sources."""
    return data.load("wheels")["checked"]


def newest_known() -> tuple[int, int]:
    return max(version_of(wheel.torch) for wheel in wheels())


def serves(wheel: Wheel, capability: Capability) -> Coverage:
    """How a wheel serves a GPU: native, ptx or none, with the reason in words."""
    return cover(wheel.arch_list, capability, cuda=wheel.cuda)


def version_of(text: str) -> tuple[int, int]:
    """'2.13' or '2.13.0' -> (2, 13)."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


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
    rejected = _rejected(gpus, pool, coded, fitting, running)
    if not running:
        reason = _why_none(gpus, platform, python, coded, fitting, torch_min, torch_max)
        return Choice(None, None, reason, rejected, _driver_needed(fitting, system))
    own = driver_cuda or cuda_of_driver(driver_version, system)
    is_known = parse_driver(driver_version) is not None or driver_cuda is not None
    if not is_known:
        lowest = min(needed_driver(wheel.variant, gpus, system) for wheel in running)
        running = [wheel for wheel in running if needed_driver(wheel.variant, gpus, system) == lowest]
    best = max(running, key=lambda wheel: _rank(wheel, own))
    advice = None if is_known else f"driver {text_of(needed_driver(best.variant, gpus, system))} or newer ({system})"
    return Choice(best, best.index_url, _why(best, gpus), rejected, advice)


def choose_cpu(
    *, platform: str, python: tuple[int, int] | None = None, torch_min: str = "2.9", torch_max: str = "2.15"
) -> Choice:
    """The newest release for a rehearsal without a GPU, from PyTorch's own CPU index."""
    for row in reversed(data.load("wheels")["releases"]):
        low, high = version_of(row["python_min"]), version_of(row["python_max"])
        in_range = version_of(torch_min) <= version_of(row["torch"]) <= version_of(torch_max)
        if in_range and (python is None or low <= python <= high):
            wheel = Wheel(
                torch=row["torch"],
                release=row["release"],
                variant="cpu",
                platform=platform,
                arch_list=(),
                python_min=low,
                python_max=high,
                is_pypi_default=platform == "windows_x86_64",
                status=row["known"],
                sources=("RELEASE_MD",),
            )
            return Choice(wheel, wheel.index_url, f"torch {wheel.release} for the CPU; no GPU claim is made with it")
    return Choice(None, None, f"No torch from {torch_min} to {torch_max} is known for Python {python}.")


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


def _rejected(
    gpus: tuple[Capability, ...],
    pool: list[Wheel],
    coded: list[Wheel],
    fitting: list[Wheel],
    running: list[Wheel],
) -> tuple[str, ...]:
    lost = (
        ("have no native code for " + " and ".join(map(dotted, gpus)), set(pool) - set(coded)),
        ("are not built for this Python", set(coded) - set(fitting)),
        ("need a newer driver", set(fitting) - set(running)),
    )
    return tuple(f"{_names(group)} {why}" for why, group in lost if group)


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
    torch_min: str,
    torch_max: str,
) -> str:
    which = " and ".join(dotted(gpu) for gpu in gpus)
    if not coded:
        together = " together" if len(gpus) > 1 else ""
        return (
            f"No official torch build from {torch_min} to {torch_max} for {platform} has native code for "
            f"{which}{together}."
        )
    if not fitting:
        return f"{_names(coded)} would serve {which}, but not on Python {python and dotted(python)}."
    return f"{_names(fitting)} would serve {which}, but the driver is too old for every one of them."


def _driver_needed(fitting: list[Wheel], system: str) -> str | None:
    floors = [(floor, w.variant) for w in fitting if (floor := driver_floor(w.variant, system))]
    if not floors:
        return None
    floor, _ = min(floors)
    variants = sorted({variant for found, variant in floors if found == floor})
    return f"driver {text_of(floor)} or newer ({system}) for {', '.join(variants)}"


__all__ = [
    "Choice",
    "Wheel",
    "choose",
    "choose_cpu",
    "driver_floor",
    "driver_runs",
    "find",
    "newest_known",
    "parse_driver",
    "serves",
    "version_of",
    "wheels",
]

"""Which CUDA a driver runs, and which driver a GPU can have.

The rules: a driver runs everything built with its own CUDA major or an older one;
within one major (from 11) the family minimum is enough, so CUDA 12.8 code runs on
R525; a PTX program needs a driver as new as its toolkit. Numbers with sources stand
in `data/drivers.json`. The version of nvidia-smi's "CUDA Version" is no upper bound.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kit.units import dotted, pair

# Dated facts with sources, as JSON: wheels, drivers, GPUs. Read once, at first use.


@functools.cache
def load(name: str) -> Any:
    """The contents of `name`.json beside this file. Treat it as read-only: it is shared."""
    return json.loads((Path(__file__).parent / "data" / f"{name}.json").read_text(encoding="utf-8"))


def version_of(text: str) -> tuple[int, int]:
    """'2.13', '12.8' -> (2, 13), (12, 8): a version of the tables, which all have two numbers."""
    return pair(text) or (0, 0)


# Which code of a build runs on which GPU, in words.
#
# The rules, and nothing else: a compiled cubin runs on the same major capability and
# the same or a higher minor one; a Tegra chip only runs its own code; 'a' code runs on
# exactly one capability and 'f' code within one family; PTX is compiled by the driver
# for any newer GPU. Sources: CUDA C++ Programming Guide "Binary Compatibility", NVIDIA
# Blackwell Compatibility Guide, the NVIDIA blog on family-specific features (CUDA 12.9),
# and the code-to-device table that torch 2.14.1 and 2.15.0 carry (checked 2026-11-22).
#
# This module refuses to decide what only a run can decide: hardware has run code that
# these rules forbid (Orin on JetPack 7.2), so `kit.gpu.judge_machine` sets a run above them.

Capability = tuple[int, int]

TEGRA: frozenset[Capability] = frozenset({(3, 2), (5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)})
# Code that CUDA 13.2 and later also runs on the Jetson of its generation, by torch 2.14's own table.
_RUNS_ON_JETSON_FROM_13_2 = {(7, 0): (7, 2), (8, 0): (8, 7), (8, 6): (8, 7)}
_FAMILY = {(10, 0): ((10, 0), (10, 3)), (10, 3): ((10, 3),), (12, 0): ((12, 0), (12, 1)), (12, 1): ((12, 1),)}
_ENTRY = re.compile(r"(sm|compute)_(\d{1,2})(\d)([af]?)$")


@dataclasses.dataclass(frozen=True)
class Code:
    """One entry of an arch list: 'sm_90a' is native code for 9.0, kind 'a'; 'compute_90' is PTX."""

    capability: Capability
    is_ptx: bool = False
    kind: str = ""

    def __str__(self) -> str:
        return f"{'compute' if self.is_ptx else 'sm'}_{self.capability[0]}{self.capability[1]}{self.kind}"


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How a build serves a GPU: 'native', 'ptx', 'none', 'possible' (its toolkit could, no list is known) or 'unknown'.

    source: 'list', 'range', 'table', 'toolkit' or ''. code: the entry that runs, 'sm_86'. is_too_old: the GPU is older
    than everything in the build.
    """

    how: str
    reason: str
    source: str = ""
    code: str | None = None
    is_exact: bool = False
    is_too_old: bool = False


def codes(arch_list: Iterable[str]) -> tuple[Code, ...]:
    """('sm_90a', 'compute_120') as Codes; what is no architecture is left out."""
    found = (_ENTRY.match(entry.strip().lower()) for entry in arch_list)
    return tuple(Code((int(m[2]), int(m[3])), m[1] == "compute", m[4]) for m in found if m)


def cover(
    arch_list: Iterable[str], capability: Capability, *, cuda: Capability | None = None, source: str = "list"
) -> Coverage:
    """Whether code for `arch_list` runs on a GPU of `capability`.

    cuda: the toolkit that the build was made with; from 13.2 on desktop code runs on Jetson too.
    """
    entries, own = codes(arch_list), dotted(capability)
    native = [code for code in entries if not code.is_ptx and _runs(code, capability, cuda)]
    if native:
        best = max(native, key=lambda code: (code.capability == capability, code.capability, not code.kind))
        why = f"{best} code runs on {own}: same major, lower minor version"
        if capability in TEGRA:
            why = f"{best} code runs on {own} with the JetPack 7.2 driver (CUDA 13.2 and later)"
        is_exact = best.capability == capability
        return Coverage("native", f"{best} code is in the build" if is_exact else why, source, str(best), is_exact)
    ptx = [code for code in entries if code.is_ptx and code.capability <= capability]
    ptx = [code for code in ptx if not code.kind or code.capability == capability]
    if ptx:
        best = max(ptx, key=lambda code: code.capability)
        why = f"no native code for {own}; the driver compiles {best} at the first use of each kernel"
        return Coverage("ptx", why, source, str(best))
    held = " ".join(str(code) for code in entries)
    same = [code for code in entries if code.capability[0] == capability[0] and code.capability <= capability]
    why = f"no {Code(capability)} code in the build, nor code or PTX that could run instead ({held})"
    if capability in TEGRA and same:
        why = f"{own} is a Jetson: desktop code of the same generation does not run on it ({held})"
    why = why if entries else f"the build has no GPU code, so none for {own}"
    return Coverage("none", why, source, is_too_old=all(capability < code.capability for code in entries))


def _runs(code: Code, capability: Capability, cuda: Capability | None) -> bool:
    own = code.capability
    # 10.1 is the old name of 11.0 (Thor), renamed in CUDA 13.0.
    if own == capability or {own, capability} == {(10, 1), (11, 0)}:
        return True
    if code.kind:
        return code.kind == "f" and capability in _FAMILY.get(own, ())
    if capability in TEGRA:
        return bool(cuda and cuda >= (13, 2)) and _RUNS_ON_JETSON_FROM_13_2.get(own) == capability
    return own not in TEGRA and own[0] == capability[0] and own[1] <= capability[1]


Version = tuple[int, ...]


def parse_driver(text: str | None) -> Version | None:
    """'580.159.04' -> (580, 159, 4); 'R570' -> (570,); None where it is no version."""
    match = re.match(r"\s*[Rr]?(\d{3})((?:\.\d+)*)", text or "")
    return tuple(int(part) for part in (match[1] + match[2]).split(".")) if match else None


def cuda_of(variant: str) -> tuple[int, int] | None:
    """'cu128' -> (12, 8); None for 'cpu' and other builds."""
    match = re.fullmatch(r"cu(\d{2})(\d)", variant)
    return (int(match[1]), int(match[2])) if match else None


def text_of(version: Version) -> str:
    """(580, 65, 6) -> '580.65.06', as NVIDIA writes it."""
    return ".".join([str(version[0])] + [f"{part:02d}" for part in version[1:]])


def driver_floor(variant: str, system: str) -> Version | None:
    """The lowest driver for a build such as 'cu128': the minimum of its CUDA major, or the toolkit's own
    driver before CUDA 11. None for 'cpu' and for a CUDA that the table does not have. WSL counts as
    Windows."""
    cuda = cuda_of(variant)
    if cuda is None:
        return None
    majors = [row for row in load("drivers")["minor_version_minimum"] if row["cuda_major"] == cuda[0]]
    if majors:
        return parse_driver(majors[0][system.lower()])
    return min((floor for toolkit, floor in toolkits(system) if toolkit == cuda), default=None)


def driver_runs(
    variant: str, version: str | None, system: str, *, driver_cuda: tuple[int, int] | None = None
) -> bool | None:
    """Whether this driver starts that build; None where neither its version nor its CUDA is known."""
    cuda, floor, driver = cuda_of(variant), driver_floor(variant, system), parse_driver(version)
    if cuda is None:
        return True
    if driver is not None and floor is not None:
        return driver >= floor
    if driver_cuda is not None:
        return driver_cuda[0] >= cuda[0] if cuda[0] >= 11 else driver_cuda >= cuda
    return None


def cuda_of_driver(version: str | None, system: str) -> tuple[int, int] | None:
    """The newest CUDA that this driver carries, by the toolkits' own drivers; None below the table."""
    driver = parse_driver(version) or (0,)
    return max((toolkit for toolkit, floor in toolkits(system) if floor <= driver), default=None)


def toolkit_driver(cuda: tuple[int, int], system: str) -> Version | None:
    """The driver that came with a toolkit's first release: what its PTX needs. For a toolkit that is not
    listed,
    the one before it; None below the table."""
    known = max((toolkit for toolkit, _ in toolkits(system) if toolkit <= cuda), default=None)
    return min((floor for toolkit, floor in toolkits(system) if toolkit == known), default=None)


@functools.cache
def toolkits(system: str) -> tuple[tuple[tuple[int, int], Version], ...]:
    """(CUDA, driver) pairs. NVIDIA prints no Windows number from 13.0 on: there the Linux branch stands."""
    found = []
    for row in load("drivers")["toolkits"]:
        linux = parse_driver(row["linux"]) or ()
        found.append((version_of(row["cuda"]), parse_driver(row[system.lower()]) or linux[:1]))
    return tuple((cuda, floor) for cuda, floor in found if floor)

"""Which CUDA a driver runs, and which driver a GPU can have.

The rules: a driver runs everything built with its own CUDA major or an older one;
within one major (from 11) the family minimum is enough, so CUDA 12.8 code runs on
R525; a PTX program needs a driver as new as its toolkit. Numbers with sources stand
in `data/drivers.json`. The version of nvidia-smi's "CUDA Version" is no upper bound.
"""

from __future__ import annotations

import functools
import re

from kit.gpu import data

Version = tuple[int, ...]


def parse_driver(text: str | None) -> Version | None:
    """'580.159.04' -> (580, 159, 4); 'R570' -> (570,); None where it is no version."""
    match = re.match(r"\s*[Rr]?(\d{3})((?:\.\d+)*)", text or "")
    return tuple(int(part) for part in (match[1] + match[2]).split(".")) if match else None


def parse_cuda(text: str) -> tuple[int, int] | None:
    """'12.8' or '12080' (cuDriverGetVersion: 1000 * major + 10 * minor) -> (12, 8)."""
    match = re.match(r"\s*(\d{1,2})\.(\d{1,2})", text)
    if match:
        return int(match[1]), int(match[2])
    match = re.match(r"\s*(\d{4,5})\b", text)
    return (int(match[1]) // 1000, int(match[1]) % 1000 // 10) if match else None


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
    for row in data.load("drivers")["minor_version_minimum"]:
        if row["cuda_major"] == cuda[0]:
            return parse_driver(row[_column(system)])
    floors = [floor for toolkit, floor in _toolkits(system) if toolkit == cuda]
    return min(floors) if floors else None


def driver_runs(
    variant: str, version: str | None, system: str, *, driver_cuda: tuple[int, int] | None = None
) -> bool | None:
    """Whether this driver starts that build; None where neither its version nor its CUDA is known."""
    cuda = cuda_of(variant)
    if cuda is None:
        return True
    floor, driver = driver_floor(variant, system), parse_driver(version)
    if driver is not None and floor is not None:
        return driver >= floor
    if driver_cuda is not None:
        return driver_cuda[0] >= cuda[0] if cuda[0] >= 11 else driver_cuda >= cuda
    return None


def cuda_of_driver(version: str | None, system: str) -> tuple[int, int] | None:
    """The newest CUDA that this driver carries, by the toolkits' own drivers; None below the table."""
    driver = parse_driver(version)
    if driver is None:
        return None
    return max((toolkit for toolkit, floor in _toolkits(system) if floor <= driver), default=None)


def toolkit_driver(cuda: tuple[int, int], system: str) -> Version | None:
    """The driver that came with a toolkit's first release: what its PTX needs. For a toolkit that is not
    listed,
    the one before it; None below the table."""
    known = max((toolkit for toolkit, _ in _toolkits(system) if toolkit <= cuda), default=None)
    return min(floor for toolkit, floor in _toolkits(system) if toolkit == known) if known else None


def _column(system: str) -> str:
    return "windows" if system.lower().startswith("win") else "linux"


@functools.cache
def _toolkits(system: str) -> tuple[tuple[tuple[int, int], Version], ...]:
    """(CUDA, driver) pairs. NVIDIA prints no Windows number from 13.0 on: there the Linux branch stands."""
    found = []
    for row in data.load("drivers")["toolkits"]:
        floor = parse_driver(row[_column(system)])
        if floor is None and row["linux"]:
            floor = (parse_driver(row["linux"]) or (0,))[:1]
        cuda = parse_cuda(row["cuda"])
        if floor and cuda:
            found.append((cuda, floor))
    return tuple(found)

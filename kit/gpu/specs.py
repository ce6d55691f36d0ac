"""What is known about a GPU from its name or its compute capability: family, code number, physical peaks.

A name that is not in the table is None, never a neighbour's value. Peaks are dense
figures of the full card, so a laptop chip and a MIG slice have none. Numbers with
their documents stand in `data/gpus.json`.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from kit.gpu import compat
from kit.gpu.compat import Capability, Version, parse_driver, toolkit_driver, version_of
from kit.units import pair

_NOISE = re.compile(r"\b(nvidia|geforce|tesla|grid|graphics|device|corporation|gpu)\b|\(r\)|\(tm\)|[®™]")
_NOT_FULL_CARD = re.compile(r"\b(laptop|notebook|mobile|max q|mig|vgpu)\b|\b\d+[qcba]\b|\bd$|\bd v2$")


def normalise(name: str) -> str:
    """'NVIDIA GeForce RTX 5090 Laptop GPU' -> 'rtx 5090 laptop'."""
    text = _NOISE.sub(" ", re.sub(r"[-_/(),]", " ", name.lower().replace("(r)", " ").replace("(tm)", " ")))
    return " ".join(re.sub(r"\b(\d{3,4})(ti|super)\b", r"\1 \2", text).split())


@functools.lru_cache(maxsize=256)
def possible_capabilities(name: str | None) -> tuple[Capability, ...]:
    """The compute capabilities that a card of this name can have: one, several for a name that was sold with
    several chips, none where the name is not known."""
    if not name:
        return ()
    text = re.sub(r"\bmig\b.*", "", normalise(name)) or normalise(name)
    cut = re.fullmatch(r"(.*\D)(\d{2,3})\.\.\.?", text)
    if cut:
        # nvidia-smi shortens: 'GTX 105...' can only end in 0, 'RTX 40...' in 50 to 90
        ends = ("0",) if len(cut[2]) == 3 else ("50", "60", "70", "80", "90")
        found = {_search(f"{cut[1]}{cut[2]}{end}") for end in ends} - {()}
        return found.pop() if len(found) == 1 else ()
    return _search(text)


def _search(text: str) -> tuple[Capability, ...]:
    rows = compat.load("gpus")["names"]
    found = next((row["capability"] for row in rows if re.search(row["pattern"], text)), [])
    return tuple(map(version_of, [found] if isinstance(found, str) else found))


@functools.cache
def families() -> Mapping[Capability, Mapping[str, Any]]:
    """All chips of one compute capability. first_toolkit, dropped_in: the first CUDA that compiles for it and
    the first that no longer does. last_driver_branch: 580 where newer drivers leave it out, else None.
    first_driver_branch: where the product came later than its first toolkit, the branch that it came with."""
    rows = compat.load("gpus")["families"]
    versions = [{name: pair(row[name]) for name in ("first_toolkit", "dropped_in")} for row in rows]
    return {version_of(row["capability"]): {**row, **parsed} for row, parsed in zip(rows, versions)}


def first_driver(capability: Capability, system: str) -> Version | None:
    """The first driver for this GPU: that of the first toolkit that compiles for it, unless the table names a
    later branch. Inferred from the toolkit, not read in a support list; None where the table has neither."""
    family = families().get(capability, {})
    branch, toolkit = family.get("first_driver_branch"), family.get("first_toolkit")
    return (branch,) if branch else toolkit and toolkit_driver(toolkit, system)


def last_driver_branch(capability: Capability) -> int | None:
    """580 for Maxwell to Volta, 470 for Kepler, 390 for Fermi; None where newer drivers still serve it."""
    return 390 if capability < (3, 0) else families().get(capability, {}).get("last_driver_branch")


def still_driven(capability: Capability, driver_version: str | None) -> bool | None:
    """Whether this driver still serves the GPU; None where either is unknown."""
    driver, branch = parse_driver(driver_version), last_driver_branch(capability)
    return (branch is None or driver[0] < branch + 10) if driver else None


def peak_flop_per_s(name: str | None, dtype: str) -> float | None:
    """Dense peak of a card for 'bf16', 'fp16', 'tf32', 'fp32' or 'fp8', float32 accumulation; None where unknown."""
    peak = card_of(name).get(dtype)
    return peak * 1e12 if peak else None


def bandwidth_bytes_per_s(name: str | None) -> float | None:
    bandwidth = card_of(name).get("bandwidth_gb_per_s")
    return bandwidth * 1e9 if bandwidth else None


def card_of(name: str | None) -> Mapping[str, Any]:
    """The datasheet row of exactly this card; empty for an unknown one, a laptop chip, a vGPU or a MIG slice."""
    text, rows = normalise(name or ""), compat.load("gpus")["cards"]
    return {} if _NOT_FULL_CARD.search(text) else next((row for row in rows if text in row["names"]), {})

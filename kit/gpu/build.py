"""What a torch build holds for a GPU, from the best source there is for it.

In this order: the arch list that the build itself printed; the range that its warning
named; the rows of the wheel table for its version and variant; what its CUDA toolkit
can compile at all. Each answer says which source it rests on. Unknown stays unknown.
"""

from __future__ import annotations

import dataclasses

from kit.gpu import wheels
from kit.gpu.arch import Capability, cover, dotted
from kit.gpu.facts import MachineFacts, Torch
from kit.gpu.specs import families

_AARCH64_CHIPS = frozenset({(12, 1), (8, 7), (7, 2), (11, 0), (10, 1), (6, 2), (5, 3)})


@dataclasses.dataclass(frozen=True)
class Holding:
    """how: 'native', 'ptx', 'none', 'possible' (the toolkit could, no list is known) or 'unknown'.

    is_too_old: the GPU is older than everything in the build. code: the entry that runs.
    source: 'list', 'range', 'table', 'toolkit' or ''.
    """

    how: str
    reason: str
    source: str = ""
    code: str | None = None
    is_exact: bool = False
    is_too_old: bool = False


def holding(facts: MachineFacts, capability: Capability | None) -> Holding:
    """What the torch build of `facts` holds for a GPU of `capability`."""
    torch = facts.torch
    if capability is None:
        return Holding("unknown", "the compute capability of the GPU is not known")
    if torch is None:
        return Holding("unknown", "the torch build is not known")
    if torch.arch_list:
        return _from_list(torch.arch_list, capability, torch.cuda, "list")
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


def _from_list(
    arch_list: tuple[str, ...], capability: Capability, cuda: tuple[int, int] | None, source: str
) -> Holding:
    found = cover(arch_list, capability, cuda=cuda)
    return Holding(
        found.how,
        found.reason,
        source,
        found.code,
        found.is_exact,
        is_too_old=_below_all(arch_list, capability),
    )


def _below_all(arch_list: tuple[str, ...], capability: Capability) -> bool:
    from kit.gpu.arch import codes

    return all(capability < code.capability for code in codes(arch_list))


def _from_range(torch: Torch, capability: Capability) -> Holding:
    """The warnings of torch 2.7 to 2.10 name the lowest and the highest code; a higher minor of the same
    major generation than the highest still runs it."""
    low, high = torch.min_capability or (0, 0), torch.max_capability
    if capability < low:
        return Holding(
            "none",
            f"the build starts at {dotted(low)}, the GPU has {dotted(capability)}",
            "range",
            is_too_old=True,
        )
    if high is None:
        return Holding("unknown", f"the build starts at {dotted(low)}; its list is not known", "range")
    if capability <= high or capability[0] == high[0]:
        reason = f"the build's code ends at {dotted(high)}, and {dotted(capability)} runs code of its own generation"
        return Holding("native", reason, "range", f"sm_{high[0]}{high[1]}", capability == high)
    return Holding("none", f"the build ends at {dotted(high)}, the GPU has {dotted(capability)}", "range")


def _from_table(facts: MachineFacts, capability: Capability) -> Holding | None:
    """Only where every row that this build could be agrees."""
    torch, variant = facts.torch, variant_of(facts.torch)
    if torch is None or not (torch.version or variant):
        return None
    version = ".".join((torch.version or "").split(".")[:2])
    platform = platform_of(facts, capability)
    rows = [
        row
        for row in wheels.wheels()
        if (not version or row.torch == version)
        and row.variant != "cpu"
        and (row.variant == variant if variant else row.is_pypi_default)
        and (row.platform == platform if platform else row.platform != "linux_aarch64")
    ]
    rows = [row for row in rows if row.status != "unverified"] or rows
    found = [_from_list(row.arch_list, capability, row.cuda, "table") for row in rows if row.arch_list]
    return found[0] if found and len({holding.how for holding in found}) == 1 else None


def _from_toolkit(torch: Torch, capability: Capability) -> Holding:
    """A toolkit cannot hold code for chips that it does not know yet, nor for those that it dropped."""
    if torch.cuda is None:
        return Holding("unknown", "neither the build's list nor its CUDA version is known")
    usable = [
        family
        for family in families().values()
        if family.capability[0] == capability[0] and family.capability[1] <= capability[1]
    ]
    if not usable:
        return Holding("unknown", f"compute capability {dotted(capability)} is not in the table")
    cuda = dotted(torch.cuda)
    if all(family.first_toolkit and family.first_toolkit > torch.cuda for family in usable):
        return Holding(
            "none",
            f"CUDA {cuda} is older than the GPU generation {capability[0]}.x and has no code for it",
            "toolkit",
        )
    if all(family.dropped_in and family.dropped_in <= torch.cuda for family in usable):
        return Holding("none", f"CUDA {cuda} no longer compiles for {dotted(capability)}", "toolkit", is_too_old=True)
    return Holding(
        "possible",
        f"CUDA {cuda} can compile for {dotted(capability)}; this build's list is not known",
        "toolkit",
    )

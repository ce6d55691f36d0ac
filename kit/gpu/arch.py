"""Which code of a build runs on which GPU, in words.

The rules, and nothing else: a compiled cubin runs on the same major capability and
the same or a higher minor one; a Tegra chip only runs its own code; 'a' code runs on
exactly one capability and 'f' code within one family; PTX is compiled by the driver
for any newer GPU. Sources: CUDA C++ Programming Guide "Binary Compatibility", NVIDIA
Blackwell Compatibility Guide, the NVIDIA blog on family-specific features (CUDA 12.9),
and the code-to-device table that torch 2.14.1 and 2.15.0 carry (checked 2026-11-22).

This module refuses to decide what only a run can decide: hardware has run code that
these rules forbid (Orin on JetPack 7.2), so `kit.gpu.verdict` sets a run above them.
"""

from __future__ import annotations

import dataclasses
import re

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
    """How a build serves a GPU: 'native', 'ptx' or 'none'. code: the entry that runs, 'sm_86'."""

    how: str
    code: str | None
    is_exact: bool
    reason: str


def parse_code(entry: str) -> Code | None:
    """'sm_90a', 'compute_120', '12.0', '9.0+PTX' -> Code; None where it is no architecture."""
    text = entry.strip().lower()
    match = _ENTRY.match(text)
    if match:
        return Code((int(match[2]), int(match[3])), match[1] == "compute", match[4])
    match = re.match(r"(\d{1,2})\.(\d)([af]?)(\+ptx)?$", text)
    return Code((int(match[1]), int(match[2])), False, match[3]) if match else None


def codes(arch_list: tuple[str, ...]) -> tuple[Code, ...]:
    return tuple(code for code in map(parse_code, arch_list) if code is not None)


def is_tegra_capability(capability: Capability) -> bool:
    return capability in TEGRA


def cover(arch_list: tuple[str, ...], capability: Capability, *, cuda: Capability | None = None) -> Coverage:
    """Whether code for `arch_list` runs on a GPU of `capability`.

    cuda: the toolkit that the build was made with; from 13.2 on desktop code runs on Jetson too.
    """
    entries = codes(arch_list)
    native = [code for code in entries if not code.is_ptx and _runs(code, capability, cuda)]
    if native:
        best = max(native, key=lambda code: (code.capability == capability, code.capability, not code.kind))
        return Coverage("native", str(best), best.capability == capability, _why_native(best, capability))
    ptx = [code for code in entries if code.is_ptx and _jits(code, capability)]
    if ptx:
        best = max(ptx, key=lambda code: code.capability)
        return Coverage(
            "ptx",
            str(best),
            False,
            f"no native code for {dotted(capability)}; the driver compiles {best} at the first use of each kernel",
        )
    return Coverage("none", None, False, _why_none(entries, capability))


def dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def sm(capability: Capability) -> str:
    return f"sm_{capability[0]}{capability[1]}"


def _same(a: Capability, b: Capability) -> bool:
    """10.1 is the old name of 11.0 (Thor), renamed in CUDA 13.0."""
    return a == b or {a, b} == {(10, 1), (11, 0)}


def _runs(code: Code, capability: Capability, cuda: Capability | None) -> bool:
    if _same(code.capability, capability):
        return True
    if code.kind == "a":
        return False
    if code.kind == "f":
        return capability in _FAMILY.get(code.capability, ())
    if code.capability in TEGRA:
        return False
    if capability in TEGRA:
        return bool(cuda and cuda >= (13, 2)) and _RUNS_ON_JETSON_FROM_13_2.get(code.capability) == capability
    return code.capability[0] == capability[0] and code.capability[1] <= capability[1]


def _jits(code: Code, capability: Capability) -> bool:
    if code.kind:
        return capability == code.capability
    return code.capability <= capability


def _why_native(code: Code, capability: Capability) -> str:
    if code.capability == capability:
        return f"{code} code is in the build"
    if capability in TEGRA:
        return f"{code} code runs on {dotted(capability)} with the JetPack 7.2 driver (CUDA 13.2 and later)"
    return f"{code} code runs on {dotted(capability)}: same major, lower minor version"


def _why_none(entries: tuple[Code, ...], capability: Capability) -> str:
    if not entries:
        return f"the build has no GPU code, so none for {dotted(capability)}"
    held = " ".join(str(code) for code in entries)
    if capability in TEGRA and any(
        code.capability[0] == capability[0] and code.capability <= capability for code in entries
    ):
        return f"{dotted(capability)} is a Jetson: desktop code of the same generation does not run on it ({held})"
    return f"no {sm(capability)} code in the build, nor code or PTX that could run instead ({held})"

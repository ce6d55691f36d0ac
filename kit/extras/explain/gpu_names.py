"""GPU names out of a text: where programs print them first, and only then out of prose.

A name is taken as it stands; what its chip is, `kit.gpu.specs` says. Where prose names
several different chips, none is taken, since nothing tells which one is meant.
"""

from __future__ import annotations

import re

from kit.gpu.facts import Gpu
from kit.gpu.specs import possible_capabilities
from kit.units import MiB

_CAPABILITY = r"(?:cuda|compute) capability (?:\(cc\) )?(\d{1,2})\.(\d)"
_FOUND = re.compile(r"found gpu(\d{1,2}) (.{2,80}?) which is of " + _CAPABILITY, re.I)
_WARNED = re.compile(r"(\S(?:.{0,100}?\S)?) with CUDA capability sm_(\d{1,2})(\d)\b")
_TRITON = re.compile(r"found (.{2,80}?) which is too old to be supported.{0,200}?cuda capability (\d{1,2})\.(\d)", re.I)

_MAKER = r"(?:(?:NVIDIA|GeForce|Tesla|Quadro|GRID)\s+){0,3}"
_SERIES = r"(?:RTX|GTX|GT|MX|Quadro|TITAN|Titan)(?:[ -]?(?:PRO )?[A-Z]?\d{1,4}(?:[MX]|[Tt][iI]|SUPER)?)?\b"
_DATA_CENTER = (
    r"(?:GH|GB|[ABHKLMPTV])\d{1,4}(?:[A-Z]{0,2}|[a-z])\b|NVS \d{3,4}\b|(?<=GeForce )\d{3}MX?\b|(?<=NVIDIA )\d{3}MX?\b"
)
_JETSON = r"Orin\b|Xavier\b|Thor\b|Tegra X\d|Jetson [A-Z]\w{1,12}(?: \w{1,12})?"
_SUFFIX = (
    r"[ -](?:Ti|TI|SUPER|Super|XP|Xp|RTX|[VXZ]|D|Black|Ada|Generation|Blackwell|Workstation|Server|Edition"
    r"|Laptop "
    r"GPU|Laptop|Max-Q|SFF|PCIE|PCIe|SXM\d?|NVL|HBM\d\w?|MIG|\d+g\.\d+gb|\d{1,3}GB|\d{3,4}|AC|DGXS|LS)\b"
    # a vGPU's profile: GRID T4-16Q, NVIDIA A40-48Q
    r"|-\d{1,2}[QCBA]\b|\s?\((?:Pascal|MIG)\)"
)
_CHIP = rf"{_MAKER}(?:{_SERIES}|{_DATA_CENTER}|{_JETSON})(?:{_SUFFIX}){{0,7}}(?:\.\.\.)?"
_CONTEXTS = (
    # nvidia-smi -L and collect_env: "GPU 0: NVIDIA …"
    re.compile(r"\bGPU[ #](\d{1,2})\s{0,2}[:=]\s{0,3}(?P<name>" + _CHIP + ")"),
    # nvidia-smi's table: "|   0  NVIDIA L40S   On  |"
    re.compile(r"\|\s{1,4}(\d{1,2})\s{1,6}(?P<name>" + _CHIP + ")"),
    # ultralytics: "CUDA:0 (NVIDIA …, 12288MiB)"; ComfyUI: "Device: cuda:0 NVIDIA … :"
    re.compile(r"\bcuda:(\d{1,2})\W{1,3}(?P<name>" + _CHIP + ")", re.I),
    # nvidia-smi --query-gpu=name,memory.total,compute_cap: one row
    re.compile(r"()(?P<name>" + _CHIP + r")\s?,\s?(?P<mib>\d{3,6})\s?MiB(?:\s?,\s?(?P<cap>\d{1,2}\.\d)\b)?"),
    # "GPU models and configuration: NVIDIA …" without numbers
    re.compile(r"GPU models and configuration\s?:?\s{0,3}()(?P<name>" + _CHIP + ")"),
    # "GPU: Tesla T4 (compute capability 7.5)", "Device name = …", "GPU NVIDIA A100", "GPU type: …"
    re.compile(
        r"\b(?:GPU|gpu|Device|device)(?:[ "
        r"_](?:name|type|model|NAME))?s?['\"]?(?:\s?[:=|]\s{0,3}|\s{1,2})['\"]?()(?P<name>"
        + _CHIP
        + r")(?:\s?\((?:compute capability|CC|sm_)?\s?(?P<cap>\d{1,2}\.\d)\))?"
    ),
    re.compile(r"Device:?\s(\d{1,2})\W{1,4}(?P<name>" + _CHIP + ")"),
)
_PROSE = re.compile(r"(?<![\w/.\-])" + _CHIP)
# "a 5090", "my 4070 Ti": the number alone, where a person speaks of a card and not of a count
_NUMBER = re.compile(
    r"\b(?:an?|my|the|new|this|our|with|single|dual|one|two|[248]x)\s+((?:50[5-9]0|40[5-9]0|30[5-9]0|20[678]0|16[56]0|10[5-8]0)"
    r"(?: ?(?:Ti|TI|ti|SUPER|Super|super)\b){0,2})(?! ?(?:steps?|samples?|epochs?|iterations?|tokens?|images?|[kKMG]i?B|ms|s|W|of|%)\b)"
)
_WORD = re.compile(r"\b(?:NVIDIA|GeForce|Tesla|Quadro|GRID|RTX|GTX|TITAN|Titan|Orin|Xavier|Thor|Tegra|Jetson)\b")


_ANCHOR = re.compile(
    r"RTX|GTX|GeForce|Tesla|Quadro|TITAN|Titan|Orin|Xavier|Thor|Tegra|Jetson|NVIDIA"
    r"|\bG[HB]\d|\b[ABHKLMPTV]\d{1,4}[a-z]?\b|\b[GM][TX] ?\d|GRID|NVS|\b[1-5]0[5-9]0\b|\b16[56]0\b|\b20[678]0\b"
)
_REACH = 120


def find_gpus(lines: list[str], flat: str) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...]]:
    """(GPUs that programs listed, GPUs that torch named in a warning with their capability)."""
    flat = _near_names(flat)
    warned = _warned(lines, flat)
    listed = _listed(flat)
    if not listed and not warned:
        listed = _from_prose(flat)
    return listed, warned


def _near_names(flat: str) -> str:
    """The parts of the text that can hold a GPU name, so that a long log costs no more than a short one."""
    parts, end = [], 0
    for match in _ANCHOR.finditer(flat):
        start = max(end, match.start() - _REACH)
        stop = min(len(flat), match.end() + _REACH)
        if stop > end:
            parts.append(flat[start:stop])
            end = stop
    return "".join(parts)


def _warned(lines: list[str], flat: str) -> tuple[Gpu, ...]:
    found: dict[tuple[int | None, str], Gpu] = {}
    if "which is" in flat:
        for match in _FOUND.finditer(flat):
            _add(found, int(match[1]), match[2], (int(match[3]), int(match[4])))
        for match in _TRITON.finditer(flat):
            _add(found, None, match[1], (int(match[2]), int(match[3])))
    if "with CUDA capability sm_" not in flat:
        return tuple(found.values())
    named = {gpu.name for gpu in found.values()}
    places = [match for line in lines if "with CUDA capability sm_" in line for match in _WARNED.finditer(line)]
    for match in places or _WARNED.finditer(flat):
        name = _last_name(match[1])
        if name and name not in named:
            _add(found, None, name, (int(match[2]), int(match[3])))
    return tuple(found.values())


def _add(found: dict, index: int | None, name: str, capability: tuple[int, int]) -> None:
    name = " ".join(name.split())
    found.setdefault((index, name), Gpu(index=index, name=name, compute_capability=capability))


def _last_name(text: str) -> str | None:
    """The name at the end of 'UserWarning: NVIDIA GeForce RTX 5090', whatever stands before it."""
    for mark in ("Warning: ", "Warning:", ": ", ". ", "] ", ") "):
        tail = text.rpartition(mark)[2].strip()
        if mark in text and tail and (_WORD.search(tail) or possible_capabilities(tail)):
            text = tail
    text = text[-80:].strip()
    match = _WORD.search(text)
    return (text[match.start() :] if match else text[-60:]) or None


def _listed(flat: str) -> tuple[Gpu, ...]:
    for context in _CONTEXTS:
        found: dict[tuple[str, str], Gpu] = {}
        rows = 0
        for match in context.finditer(flat):
            name = " ".join(match["name"].split())
            if not possible_capabilities(name) and not _WORD.search(name):
                continue
            groups = match.groupdict()
            index = match[1]
            key = (index if index else str(rows) if groups.get("mib") else "", name)
            rows += 1
            capability = groups.get("cap")
            found.setdefault(
                key,
                Gpu(
                    index=int(index) if index else None,
                    name=name,
                    compute_capability=_pair(capability) if capability else None,
                    memory_bytes=int(groups["mib"]) * MiB if groups.get("mib") else None,
                ),
            )
        if found:
            return tuple(found.values())[:64]
    return ()


def _from_prose(flat: str) -> tuple[Gpu, ...]:
    names: dict[str, None] = {}
    for match in _PROSE.finditer(flat[:200_000]):
        name = " ".join(match[0].split())
        if possible_capabilities(name):
            names.setdefault(name)
    for match in _NUMBER.finditer(flat[:200_000] if not names else ""):
        names.setdefault(f"{'GTX' if match[1][0] == '1' else 'RTX'} {match[1]}")
    chips = {possible_capabilities(name) for name in names}
    return (Gpu(name=max(names, key=len)),) if len(chips) == 1 else ()


def _pair(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)

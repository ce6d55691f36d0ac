"""Whether the driver and torch speak of the same card, and whether that is the card that was expected.

A name that only one witness gives is no proof: a patched torch, an old nvidia-smi text
or a wrapper in PATH can say anything. So name, compute capability, UUID and memory are
compared, each where both sides have it.
"""

from __future__ import annotations

import re

from kit.gpu.arch import dotted
from kit.gpu.facts import Gpu, MachineFacts
from kit.gpu.specs import normalise, possible_capabilities

# Words that make another card of a name; the expectation has to say them.
_OTHER_CARD = frozenset({"ti", "super", "d", "laptop", "mobile", "notebook", "ada", "mig", "max", "xp", "black"})
# NVML counts what the driver keeps for itself, torch does not.
_MEMORY_SHARE = 0.85


def disagreements(facts: MachineFacts) -> tuple[str, ...]:
    """What the witnesses say differently, as sentences; empty where they agree or only one speaks."""
    torch_gpus = facts.torch.gpus if facts.torch else ()
    driver_gpus = facts.driver.gpus if facts.driver else ()
    found: list[str] = []
    for gpu in torch_gpus:
        known = possible_capabilities(gpu.name)
        if known and gpu.compute_capability and gpu.compute_capability not in known:
            found.append(
                f"torch names {gpu.name} with compute capability {dotted(gpu.compute_capability)}, "
                f"but that card has {dotted(known[0])}"
            )
        if driver_gpus:
            found += _against_driver(gpu, driver_gpus, is_text=facts.source == "text")
    if facts.nvidia_smi_gpus and facts.nvidia_smi_exit_code in (0, None):
        listed = {_plain(name) for name in facts.nvidia_smi_gpus}
        for gpu in torch_gpus:
            if gpu.name and not any(_is_same_name(_plain(gpu.name), name) for name in listed):
                found.append(f"torch sees {gpu.name}, nvidia-smi lists {', '.join(facts.nvidia_smi_gpus)}")
    return tuple(dict.fromkeys(found))


def partner(gpu: Gpu, driver_gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The driver's view of a device that torch sees: by UUID, else the only one, else by name."""
    if gpu.uuid:
        same = [other for other in driver_gpus if other.uuid and _uuid(other.uuid) == _uuid(gpu.uuid)]
        if same:
            return same[0]
        if all(other.uuid for other in driver_gpus) and not is_slice(gpu) and gpu.uuid.startswith("GPU-"):
            return None
    if len(driver_gpus) == 1:
        return driver_gpus[0]
    named = [
        other
        for other in driver_gpus
        if other.name and gpu.name and _is_same_name(_plain(gpu.name), _plain(other.name))
    ]
    return named[0] if named else None


def _against_driver(gpu: Gpu, driver_gpus: tuple[Gpu, ...], *, is_text: bool) -> list[str]:
    other = partner(gpu, driver_gpus)
    names = ", ".join(sorted({other.name or "?" for other in driver_gpus}))
    if other is None:
        return [f"torch sees {gpu.name or 'a GPU'}, which the driver does not list (it lists {names})"]
    found = []
    if gpu.name and other.name and not _is_same_name(_plain(gpu.name), _plain(other.name)):
        found.append(f"torch says {gpu.name}, the driver says {other.name}")
    if gpu.compute_capability and other.compute_capability and gpu.compute_capability != other.compute_capability:
        found.append(
            f"torch says compute capability {dotted(gpu.compute_capability)}, "
            f"the driver {dotted(other.compute_capability)}"
        )
    if gpu.memory_bytes and other.memory_bytes and not is_text and not is_slice(gpu, other) and not gpu.is_integrated:
        ratio = gpu.memory_bytes / other.memory_bytes
        if not _MEMORY_SHARE <= ratio <= 1.05:
            found.append(f"torch says {gpu.memory_bytes:,} bytes of memory, the driver {other.memory_bytes:,}")
    return found


def is_slice(gpu: Gpu, other: Gpu | None = None) -> bool:
    """Whether this device is a MIG slice of a card."""
    profiles = [gpu.mig_profile, other.mig_profile if other else None]
    return "MIG" in (gpu.name or "").split() or any(profiles) or (gpu.uuid or "").startswith("MIG-")


def _uuid(text: str) -> str:
    return text.removeprefix("GPU-").lower()


def _plain(name: str) -> str:
    return re.sub(r"\s+mig\b.*", "", normalise(name))


def _is_same_name(left: str, right: str) -> bool:
    """Equal, or one is the other shortened with '...' as nvidia-smi does."""
    for short, long in ((left, right), (right, left)):
        if short.endswith("...") and long.startswith(short.removesuffix("...").rstrip()):
            return True
    return left == right


def matches(expected: str, name: str) -> bool:
    """Whether a card's name is the expected one: every word of the expectation, and no word that makes it
    another card. 'RTX 5090' is neither 'RTX 5090 D' nor 'RTX 5090 Laptop GPU'; 'H100' is any full H100."""
    wanted, given = _words(expected), _words(name)
    return bool(wanted) and wanted <= given and not (given & _OTHER_CARD) - wanted


def _words(name: str) -> frozenset[str]:
    text = re.sub(r"\b(rtx|gtx|gt|mx)(\d)", r"\1 \2", normalise(name))
    return frozenset(re.findall(r"[a-z0-9.]+", text))

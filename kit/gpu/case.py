"""The facts of a machine with what every rule asks of them: symptoms, GPUs, what the build holds for each.

Derived once and only from the facts; nothing is decided here.
"""

from __future__ import annotations

import dataclasses
import functools

from kit.gpu.arch import Capability
from kit.gpu.build import Holding, holding
from kit.gpu.facts import Gpu, MachineFacts
from kit.gpu.messages import symptoms
from kit.gpu.specs import possible_capabilities

DIAGNOSES = (
    "ok",
    "arch_missing_from_build",
    "driver_too_old_for_runtime",
    "cpu_only_build",
    "no_driver_or_no_gpu",
    "gpu_too_old_dropped",
    "ptx_jit_only",
    "forward_compat_mismatch",
    "visible_devices_masked",
    "other",
)
ASK_ALL = "python -m torch.utils.collect_env"
_INIT_ERRORS = {
    34: "stub",
    46: "busy",
    100: "no_device",
    101: "bad_ordinal",
    802: "system_not_ready",
    803: "driver_mismatch",
    804: "compat_refused",
    999: "unknown_error",
}


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """word: one of DIAGNOSES. confidence: 'high', 'medium' or 'low'. cause: finer than the word, for the
    remedy. ask: the one command whose output would settle what is open; empty where nothing is."""

    word: str
    confidence: str
    cause: str
    because: tuple[str, ...]
    ask: str = ""


def say(word: str, cause: str, *because: str, confidence: str = "high", ask: str = "") -> Diagnosis:
    return Diagnosis(word, confidence, cause, because, ask)


@dataclasses.dataclass(frozen=True)
class Case:
    """Facts with what the rules ask of them again and again."""

    facts: MachineFacts

    @functools.cached_property
    def symptoms(self) -> frozenset[str]:
        facts, texts = self.facts, list(self.facts.messages)
        for text in (
            facts.torch and facts.torch.error,
            facts.proof and facts.proof.error,
            facts.driver and facts.driver.nvml_error,
        ):
            if text:
                texts.append(text)
        found = set(symptoms(texts))
        if facts.driver and facts.driver.cuda_init_error in _INIT_ERRORS:
            found.add(_INIT_ERRORS[facts.driver.cuda_init_error])
        if facts.driver and facts.driver.libcuda == "stub":
            found.add("stub")
        if facts.driver and facts.driver.uvm_error:
            found.add("uvm_unreadable")
        if facts.xids:
            found.add("gpu_lost")
        return frozenset(found)

    @functools.cached_property
    def gpus(self) -> tuple[Gpu, ...]:
        """As torch sees them where it does, else as the driver lists them."""
        facts = self.facts
        return (facts.torch.gpus if facts.torch else ()) or (facts.driver.gpus if facts.driver else ())

    @functools.cached_property
    def holdings(self) -> tuple[tuple[Gpu, Capability, Holding], ...]:
        """What the build holds for each GPU whose capability is known or follows from its name."""
        found = []
        for gpu in self.gpus:
            capability = capability_of(gpu)
            if capability:
                found.append((gpu, capability, holding(self.facts, capability)))
        return tuple(found)

    @property
    def is_available(self) -> bool | None:
        return self.facts.torch.is_available if self.facts.torch else None

    @property
    def system(self) -> str:
        platform = self.facts.platform
        return "Windows" if platform.system == "Windows" or platform.is_wsl else "Linux"

    @property
    def driver_version(self) -> str | None:
        return self.facts.driver.version if self.facts.driver else None

    @property
    def driver_cuda(self) -> tuple[int, int] | None:
        return self.facts.driver.cuda_version if self.facts.driver else None


def capability_of(gpu: Gpu) -> Capability | None:
    """Stated, or by name. A name sold with several chips counts as its newest: what that one lacks, all
    lack."""
    return gpu.compute_capability or max(possible_capabilities(gpu.name), default=None)

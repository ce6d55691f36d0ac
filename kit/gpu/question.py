"""What the judge's questions look at, and the form of an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kit.gpu.build import Holding
from kit.gpu.case import Case, Diagnosis
from kit.gpu.facts import Gpu, MachineFacts
from kit.records import Outcome

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
SEE_REMEDY = "See the remedy."


@dataclasses.dataclass(frozen=True)
class Expectation:
    """gpu_name: words that the GPU's name must have. min_cuda: of the torch build. device: 'cuda', 'cpu' or
    'auto', which is 'cuda' wherever the machine shows an NVIDIA device of any kind."""

    gpu_name: str | None = None
    min_cuda: tuple[int, int] | None = None
    device: str = "cuda"


@dataclasses.dataclass(frozen=True)
class Question:
    """What every question looks at. held: what the build holds for the GPU that torch would use."""

    case: Case
    expectation: Expectation
    found: Diagnosis
    held: Holding

    @property
    def facts(self) -> MachineFacts:
        return self.case.facts

    @property
    def ran(self) -> bool:
        proof = self.facts.proof
        return bool(proof and proof.ran and proof.device != "cpu")

    @property
    def gpu(self) -> Gpu | None:
        """The device that torch would use: its number 0."""
        return self.case.gpus[0] if self.case.gpus else None

    @property
    def driver_gpus(self) -> tuple[Gpu, ...]:
        return self.facts.driver.gpus if self.facts.driver else ()


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer; the question's id and what was expected stand in QUESTIONS."""

    outcome: Outcome
    found: str
    todo: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    required: bool = True

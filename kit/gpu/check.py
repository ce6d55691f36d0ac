"""`kit.check()`: look at this machine, run a kernel, and say in one value whether its GPU is natively usable."""

import dataclasses
from pathlib import Path

from kit.errors import UsageError
from kit.gpu.facts import Expectation, MachineFacts
from kit.gpu.judge_machine import judge
from kit.gpu.remedy import Remedy, remedy
from kit.records import Outcome, Verdict
from kit.show import Table, verdict_html, verdict_text
from kit.units import dotted, memory, pair, seconds


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What was seen, what was expected, what follows, and what to do about it."""

    facts: MachineFacts
    expectation: Expectation
    verdict: Verdict
    remedy: Remedy

    @property
    def witnesses(self) -> Table:
        """What the driver and what torch say of each device, side by side."""
        rows = [
            (witness, gpu.index, gpu.name, dotted(gpu.compute_capability), memory(gpu.memory_bytes))
            for witness, source in (("driver (NVML)", self.facts.driver), ("torch", self.facts.torch))
            for gpu in (source.gpus if source else ())
        ]
        nobody = ("none", "–", "no NVIDIA device was seen", "–", "–")
        return Table(("witness", "device", "name", "compute capability", "memory"), tuple(rows or [nobody]))

    @property
    def kernel(self) -> Table:
        """The product that really ran, or why none did."""
        proof = self.facts.proof
        if proof is None:
            return Table(("kernel", "result"), (("none", "no kernel was run: there is no usable device"),))
        name = f"{proof.size} × {proof.size} {proof.dtype} product on {proof.device}"
        result = proof.error or f"largest relative error {proof.max_relative_error:.1e} against float64"
        limit = f"{proof.limit:.0e}" if proof.limit else "–"
        return Table(("kernel", "result", "allowed", "time"), ((name, result, limit, seconds(proof.seconds)),))

    @property
    def sentence(self) -> str:
        """The finding in words."""
        found = self.verdict.findings[:1]
        said = [f"{check.id}: {check.found}" for check in found] or [
            f"none of {len(self.verdict.checks)} checks failed"
        ]
        return f"{self.verdict.outcome}: {said[0]}"

    def __str__(self) -> str:
        return verdict_text(self.verdict, title="GPU check") + ("" if self.is_fine else f"\n\n{self.remedy}")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        advice = "" if self.is_fine else self.remedy._repr_html_(self.verdict.outcome)
        return verdict_html(self.verdict, title="GPU check") + advice

    @property
    def is_fine(self) -> bool:
        return self.verdict.outcome in (Outcome.PASS, Outcome.REHEARSAL)


def check(
    *,
    device: str = "auto",
    expect_gpu: str | None = None,
    min_cuda: str | None = None,
    gpus: int | None = None,
    facts: MachineFacts | None = None,
    kernel: Path | None = None,
) -> CheckResult:
    """Judges this machine, or `facts` that were recorded on another.

    device: 'cuda' is strict, 'cpu' a rehearsal, 'auto' the GPU wherever the machine has an NVIDIA
    device, or where one is expected. expect_gpu: words of the name it must have. min_cuda: '12.8'. gpus: how
    many torch must see. Raises UsageError for an expectation that is empty or contradicts the device. kernel: a shared library whose `int kernel(void)` has to run
    natively too.
    """
    if device == "auto" and (facts or any(demand is not None for demand in (expect_gpu, min_cuda, gpus))):
        device = "cuda"
    expectation = expect(device=resolve_device(device), expect_gpu=expect_gpu, min_cuda=min_cuda, gpus=gpus)
    if facts is None:
        from kit.gpu.probe import probe

        facts = probe(proof_device=expectation.device, library=kernel)
    verdict = judge(facts, expectation)
    return CheckResult(facts, expectation, verdict, remedy(verdict, facts))


def expect(
    *, device: str, expect_gpu: str | None = None, min_cuda: str | None = None, gpus: int | None = None
) -> Expectation:
    """An expectation from the words a person gives. An empty word is an unset variable more often than a wish, and
    a rehearsal on the CPU fulfils no demand of a GPU: both are wrong arguments."""
    given = {"expect_gpu": expect_gpu, "min_cuda": min_cuda, "gpus": gpus}
    named, version = [f"{name}={value!r}" for name, value in given.items() if value is not None], pair(min_cuda)
    expected = "a demand of a GPU on device cuda"
    problems = (
        (device == "cpu" and named, f"device=cpu with {', '.join(named)}", expected, "leave one out"),
        (
            not (expect_gpu or "").strip(),
            "expect_gpu is empty",
            'words of a name such as "RTX 5090"',
            "set it or leave it out",
        ),
        (dotted(version) != min_cuda, f"min_cuda={min_cuda!r}", "a CUDA version such as 12.8", "correct --min-cuda"),
        ((gpus or 0) < 1, f"gpus={gpus}", "at least 1", "correct --gpus"),
    )
    for (is_wrong, found, expected, todo), value in zip(problems, (device, expect_gpu, min_cuda, gpus)):
        if is_wrong and value is not None:
            raise UsageError(found, expected=expected, todo=todo)
    return Expectation(gpu_name=expect_gpu, min_cuda=version, device=device, gpus=gpus)


def resolve_device(device: str) -> str:
    """'cuda' or 'cpu'. 'auto' is 'cuda' wherever an NVIDIA device exists, usable or not: a device that
    torch cannot use is a finding, never a reason to use the CPU."""
    if device not in ("auto", "cuda", "cpu"):
        raise UsageError(f"device={device!r}", expected="cuda, cpu or auto", todo="correct the device")
    if device != "auto":
        return device
    from kit.gpu import nvml

    return "cuda" if nvml.has_nvidia_hardware() or nvml.read_driver().version else "cpu"

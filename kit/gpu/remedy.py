"""What to do about a verdict: a command that fits this GPU, this driver and this platform, or why there is
none.

The smallest change comes first: another torch build before another driver. No build is
named that lacks the GPU's code or that the driver cannot start; where the driver is not
known, the build is one that every driver of recent years starts.
"""

from __future__ import annotations

import dataclasses

from kit.gpu import advice
from kit.gpu.build import variant_of
from kit.gpu.builds import Remedy, other_build
from kit.gpu.case import Case, Diagnosis
from kit.gpu.compat import cuda_of_driver, driver_floor, text_of, toolkit_driver
from kit.gpu.diagnose import diagnose
from kit.gpu.facts import MachineFacts
from kit.records import Outcome, Verdict

__all__ = ["Remedy", "remedy", "remedy_for"]

_OTHER_BUILD = ("arch_missing_from_build", "gpu_too_old_dropped", "ptx_jit_only", "cpu_only_build")


def remedy(verdict: Verdict, facts: MachineFacts) -> Remedy:
    """The remedy for a verdict of `judge`. A verdict that is fine has nothing to do."""
    if verdict.outcome in (Outcome.PASS, Outcome.REHEARSAL):
        return Remedy("Nothing to do.")
    found = diagnose(facts)
    if found.word == "ok":
        # The machine is fine; something that was asked of it is not: the checks say what to do.
        todo = " ".join(check.todo for check in verdict.findings if check.required and check.todo)
        return Remedy(
            todo or "The environment fits together; run the check on the machine itself to prove it.",
            () if facts.source != "text" else ("python -m kit check",),
        )
    return remedy_for(found, facts)


def remedy_for(found: Diagnosis, facts: MachineFacts) -> Remedy:
    """The remedy for a diagnosis of these facts."""
    case = Case(facts)
    if found.word == "ok":
        return Remedy("Nothing to do.")
    if found.confidence == "low" and found.ask and not case.gpus:
        return Remedy("Too little is known to name a change. The output of this command would settle it.", (found.ask,))
    if found.word in _OTHER_BUILD or found.cause == "rocm_build":
        return other_build(case)
    if found.word == "driver_too_old_for_runtime":
        return _older_build_or_driver(case, found)
    if found.word == "forward_compat_mismatch":
        return _without_compat(case)
    return Remedy(*advice.advise(found, facts))


# --- another driver -------------------------------------------------------------------


def _older_build_or_driver(case: Case, found: Diagnosis) -> Remedy:
    variant = variant_of(case.facts.torch)
    needed = None
    if variant and variant != "cpu":
        cuda = case.facts.torch.cuda if case.facts.torch and found.cause == "ptx_too_new" else None
        floor = (toolkit_driver(cuda, case.system) if cuda else None) or driver_floor(variant, case.system)
        needed = f"{text_of(floor)} or newer ({case.system})" if floor else None
    if found.cause == "ptx_too_new":
        text = (
            "Use a driver at least as new as the toolkit that made the PTX, or a build that holds native "
            "code for this GPU."
        )
        return Remedy(text, ("nvidia-smi",), driver=needed)
    if case.driver_version is None and case.driver_cuda is None:
        text = (
            "Install the newest driver that serves this GPU, or a torch build for an older CUDA; "
            "nvidia-smi tells the driver."
        )
        return Remedy(text, ("nvidia-smi",), driver=needed)
    build = other_build(case)
    if not build.commands or not build.torch_variants:
        return build
    change = f" Or keep the build and install driver {needed}." if needed else ""
    return dataclasses.replace(build, summary=build.summary + change, driver=needed or _any_newer(case))


def _any_newer(case: Case) -> str | None:
    """The driver that the next CUDA major needs."""
    own = case.driver_cuda or cuda_of_driver(case.driver_version, case.system)
    major = 12 if own and own[0] < 12 else 13
    floor = driver_floor(f"cu{major}0", case.system)
    return f"{text_of(floor)} or newer ({case.system}) for CUDA {major} builds" if floor else None


def _without_compat(case: Case) -> Remedy:
    summary = (
        "Put the driver's own libcuda before the compatibility library: take the compat folder out of "
        "LD_LIBRARY_PATH and"
        " of ldconfig, or use an image whose CUDA the host's driver carries, or a newer driver on the host."
    )
    commands = (
        "ldconfig -p | grep libcuda.so",
        "export LD_LIBRARY_PATH=$(echo $LD_LIBRARY_PATH | tr ':' '\\n' | grep -v compat | paste -sd:)",
    )
    return Remedy(summary, commands)

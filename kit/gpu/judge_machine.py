"""Judges the facts of a machine: is its NVIDIA GPU usable by torch, natively, and is it the expected one?

A pure function of recorded facts. What a run showed stands above what a table says, and
where the two differ that is itself a check. What was not seen is INCONCLUSIVE, never a
pass; a CPU run asked for by name is a REHEARSAL and claims nothing about a GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

from kit.gpu.causes import Reading
from kit.gpu.compat import Coverage, driver_floor, driver_runs, is_tegra_capability, text_of
from kit.gpu.diagnose import Case, Diagnosis, capability_of, diagnose
from kit.gpu.facts import Gpu, JitControl, MachineFacts
from kit.gpu.specs import normalise, possible_capabilities
from kit.gpu.wheels import holding, variant_of
from kit.records import Check, Outcome, Verdict
from kit.rules import Answer, Rules, say
from kit.units import dotted

SEE_REMEDY = "See the remedy."
CHECK = "python -m kit check"

# Whether the driver and torch speak of the same card, and whether that is the card that was expected.
#
# A name that only one witness gives is no proof: a patched torch, an old nvidia-smi text
# or a wrapper in PATH can say anything. So name, compute capability, UUID and memory are
# compared, each where both sides have it.

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


# What is judged, and the rules in the order of the report.


@dataclasses.dataclass(frozen=True)
class Expectation:
    """gpu_name: words that the GPU's name must have. min_cuda: of the torch build. gpus: how many GPUs torch must
    see. device: 'cuda', 'cpu' or 'auto', which is 'cuda' wherever the machine shows an NVIDIA device of any kind."""

    gpu_name: str | None = None
    min_cuda: tuple[int, int] | None = None
    device: str = "cuda"
    gpus: int | None = None


@dataclasses.dataclass(frozen=True)
class Machine:
    """Facts and what is expected of them, with what several rules ask."""

    facts: MachineFacts
    expectation: Expectation

    @functools.cached_property
    def case(self) -> Case:
        return Case(self.facts)

    @functools.cached_property
    def found(self) -> Diagnosis:
        return diagnose(self.facts)

    @functools.cached_property
    def held(self) -> Coverage:
        """What the build holds for the GPU that torch would use."""
        return holding(self.facts, capability_of(self.gpu) if self.gpu else None)

    @property
    def is_rehearsal(self) -> bool:
        shows_no_gpu = self.facts.has_nvidia_device is False and not self.case.gpus
        return self.expectation.device == "cpu" or (self.expectation.device == "auto" and shows_no_gpu)

    @property
    def is_text(self) -> bool:
        return self.facts.source == "text"

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

    @property
    def variant(self) -> str | None:
        return variant_of(self.facts.torch)

    @property
    def driver_needed(self) -> str:
        floor = driver_floor(self.variant or "", self.case.system)
        return f"driver {text_of(floor)} or newer for {self.variant}" if floor else f"a driver that runs {self.variant}"

    @property
    def min_cuda(self) -> str:
        return dotted(self.expectation.min_cuda)


MACHINE = Rules("machine", rehearses=lambda case: case.is_rehearsal)
_NOT_ASKED = say(None, "not asked: this is a rehearsal on the CPU", expected="a GPU run answers it")


def gpu_rule(id: str, expected: str, *, is_gpu_claim: bool = False, **words: Any) -> Callable:
    """A rule that a rehearsal is not asked; where it is a claim of a GPU run, the rehearsal says so."""

    def add(ask: Callable[[Machine], Answer | None]) -> Callable[[Machine], Answer | None]:
        @MACHINE.rule(id, expected, is_gpu_claim=is_gpu_claim, **words)
        def asked(case: Machine) -> Answer | None:
            if case.is_rehearsal:
                return _NOT_ASKED if is_gpu_claim else None
            return ask(case)

        return asked

    return add


@gpu_rule(
    "environment.driver",
    "an NVIDIA driver that answers and lists the GPU",
    is_gpu_claim=True,
    todo="Restart after a driver change; see what nvidia-smi -L says.",
    settle="Run nvidia-smi.",
)
def driver(case: Machine) -> Answer:
    driver, must = case.facts.driver, not case.ran
    if driver is None or not (driver.version or driver.gpus or driver.nvml_error):
        if case.found.word == "no_driver_or_no_gpu":
            return say(False, case.found.because[0], required=must)
        return say(None, "nothing is known about the driver", required=must)
    names = [gpu.name for gpu in driver.gpus]
    values = {"version": driver.version, "gpus": names, "libcuda": driver.libcuda}
    if driver.nvml_error:
        found = f"NVML cannot start: {driver.nvml_error}" + ("; CUDA runs all the same" if case.ran else "")
        return say(None if case.ran else False, found, values, required=must)
    found = f"driver {driver.version or 'of unknown version'} lists {', '.join(map(str, names)) or 'no GPU'}"
    if not names and case.ran:
        return say(True, f"{found}, as on a Jetson; CUDA runs", values)
    return say(bool(names) or case.is_text, found, values)


@gpu_rule(
    "environment.driver_state",
    "no error of the GPU in the kernel log",
)
def driver_state(case: Machine) -> Answer | None:
    """A log that cannot be read is no finding; what an Xid means stands in the table of causes."""
    xids = case.facts.xids
    if not xids:
        return None if xids is None else say(True, "no Xid error in the kernel log")
    meaning = diagnose(MachineFacts(source="text"), Reading(f"NVRM: Xid (PCI): {number}" for number in xids))
    found = f"the kernel log has Xid {', '.join(map(str, xids))}: {meaning.because[0]}"
    is_program = meaning.kind == "program"
    return say(is_program, found, {"xids": list(xids)}, todo=meaning.row.do if meaning.row else SEE_REMEDY)


@MACHINE.rule(
    "environment.torch_build",
    "a torch build with CUDA",
    todo="Install a CUDA build of torch (see the remedy).",
)
def torch_build(case: Machine) -> Answer | None:
    torch = case.facts.torch
    if torch is None:
        if case.is_text:
            return None if case.is_rehearsal else say(None, "the torch build is not known")
        return say(False, "torch is not installed")
    values = {"version": torch.version, "cuda": torch.cuda, "hip": torch.hip, "direct_url": torch.direct_url}
    if (torch.error or "").startswith("import torch failed"):
        return say(False, torch.error or "", values, todo=SEE_REMEDY)
    if case.is_rehearsal:
        return None
    if torch.hip:
        return say(False, f"{torch.version} is built for AMD ROCm {torch.hip}, not for NVIDIA", values)
    if case.found.word == "cpu_only_build" or torch.is_cpu_build:
        seen = f"; driver sees {case.driver_gpus[0].name}" if case.driver_gpus else ""
        return say(False, f"torch build has no CUDA: {torch.version or 'CPU only'}{seen}", values)
    base, packaged = ((text or "").split("+")[0] for text in (torch.version, torch.metadata_version))
    if base and packaged and base != packaged:
        found = f"torch says {torch.version}, its metadata {torch.metadata_version}: two installations are mixed"
        return say(False, found, values, todo="Install torch again in a fresh environment.")
    if torch.cuda is None:
        return say(None, f"torch {torch.version or 'of unknown version'}; its CUDA is not known", values)
    return say(True, f"torch {torch.version} for CUDA {dotted(torch.cuda)}", values)


@gpu_rule(
    "environment.driver_for_build",
    "{case.driver_needed}",
    todo="Install a build for an older CUDA, or a newer driver (see the remedy).",
)
def driver_for_build(case: Machine) -> Answer | None:
    variant, version, cuda = case.variant, case.case.driver_version, case.case.driver_cuda
    if not variant or variant == "cpu":
        return None
    runs = driver_runs(variant, version, case.case.system, driver_cuda=cuda)
    shown = version or (f"with CUDA {dotted(cuda)}" if cuda else "of unknown version")
    values = {"driver": version, "driver_cuda": cuda, "variant": variant}
    if runs is False and (case.ran or case.case.is_available):
        found = f"driver {shown} is below the table's minimum for {variant}, yet CUDA runs: forward compatibility"
        return say(True, found, values)
    if runs is False or case.found.word == "driver_too_old_for_runtime":
        return say(False, f"driver {shown} is too old for {variant}", values)
    if runs is None:
        return say(None, f"driver {shown}", values, required=not case.ran)
    return say(True, f"driver {shown} runs {variant}", values)


@gpu_rule(
    "environment.cuda_starts",
    "torch.cuda.is_available() is true",
    is_gpu_claim=True,
    promise=1,
    todo=SEE_REMEDY,
    settle=CHECK,
)
def cuda_starts(case: Machine) -> Answer:
    available, found = case.case.is_available, case.found
    mask = {name: value for name, value in case.facts.environment.items() if "VISIBLE" in name}
    values = {"environment": mask}
    if available or case.ran:
        return say(True, "CUDA starts" + "".join(f", {name}={value!r}" for name, value in mask.items()), values)
    if available is None and found.word == "ok":
        return say(None, "whether CUDA starts was not tried")
    is_unsure, ask = available is None and found.confidence == "low", found.ask or SEE_REMEDY
    return say(None if is_unsure else False, "; ".join(found.because), values, todo=ask, settle=ask)


@gpu_rule(
    "environment.visible_devices",
    "a GPU for each entry of CUDA_VISIBLE_DEVICES",
    required=False,
    settle="Correct CUDA_VISIBLE_DEVICES, or find out where that GPU went: nvidia-smi -L.",
)
def visible_devices(case: Machine) -> Answer | None:
    """CUDA takes the entries up to the first that it does not know, and says nothing of the rest."""
    mask, torch = case.facts.environment.get("CUDA_VISIBLE_DEVICES"), case.facts.torch
    count = torch.device_count if torch else None
    entries = [entry.strip() for entry in (mask or "").split(",")]
    if not count or mask is None or count >= len(entries):
        return None
    lost = f"nothing answers to {entries[count]!r}" + (
        "" if count + 1 == len(entries) else ", and what follows is left"
    )
    return say(None, f"CUDA_VISIBLE_DEVICES={mask!r}: {lost}; torch sees {count} of {len(entries)}")


@gpu_rule(
    "environment.two_witnesses",
    "the driver and torch name the same card",
    promise=2,
    todo="Find out which program is patched, old or from another machine: nvidia-smi -L.",
    settle="See what nvidia-smi -L says.",
)
def two_witnesses(case: Machine) -> Answer | None:
    facts = case.facts
    gpus = facts.torch.gpus if facts.torch else ()
    if not gpus:
        return None
    names = [gpu.name or "?" for gpu in gpus]
    values = {
        "torch": names,
        "driver": [gpu.name for gpu in case.driver_gpus],
        "nvidia_smi": list(facts.nvidia_smi_gpus),
        "nvidia_smi_exit_code": facts.nvidia_smi_exit_code,
    }
    if differ := disagreements(facts):
        return say(False, "; ".join(differ), values)
    if case.driver_gpus or facts.nvidia_smi_gpus:
        return say(True, f"driver and torch agree: {', '.join(names)}", values)
    if facts.platform.is_tegra and all(is_tegra_capability(gpu.compute_capability or (0, 0)) for gpu in gpus):
        return say(True, f"the system is a Jetson, and torch names {names[0]}", values)
    if facts.has_nvidia_device is False:
        found = f"torch names {names[0]}, and this machine has no NVIDIA device"
        return say(False, found, values, todo="Find out what answers in CUDA's place.")
    return say(None, "only torch names the GPU; the driver was not heard", values, required=not case.is_text)


@gpu_rule(
    "environment.expected_gpu",
    "the GPU in use is {case.expectation.gpu_name!r}",
    promise=2,
    todo="Run on the other machine or card, or expect this one.",
    settle=CHECK,
)
def expected_gpu(case: Machine) -> Answer | None:
    wanted, gpu = case.expectation.gpu_name, case.gpu
    if not wanted:
        return None
    if gpu is None or not gpu.name:
        return say(None, "the name of the GPU is not known")
    other = partner(gpu, case.driver_gpus)
    values = {"expected": wanted, "name": gpu.name, "uuid": gpu.uuid, "mig": is_slice(gpu, other)}
    if is_slice(gpu, other) and "mig" not in wanted.lower():
        profiles = (gpu.mig_profile, other.mig_profile if other else None)
        profile = next((f" {profile}" for profile in profiles if profile and profile != "enabled"), "")
        found = f"the device is a MIG slice{profile} of {gpu.name}, not the full card"
        return say(False, found, values, todo="Use the full card, or expect the MIG slice by name.")
    if matches(wanted, gpu.name):
        return say(True, f"the GPU in use is {gpu.name}", values)
    position = next((gpu.index for gpu in case.case.gpus[1:] if matches(wanted, gpu.name or "")), None)
    if position is None:
        return say(False, f"the GPU in use is {gpu.name}", values)
    todo = f"Show torch that card alone: CUDA_VISIBLE_DEVICES={position}"
    return say(False, f"the GPU in use is {gpu.name}", values, todo=todo)


@gpu_rule(
    "environment.gpu_count",
    "torch sees {case.expectation.gpus} GPUs",
    settle=CHECK,
    todo="See which GPUs the driver lists (nvidia-smi -L) and what CUDA_VISIBLE_DEVICES leaves of them.",
)
def gpu_count(case: Machine) -> Answer | None:
    wanted, torch = case.expectation.gpus, case.facts.torch
    if wanted is None:
        return None
    if torch is None or torch.device_count is None:
        return say(None, "how many GPUs torch sees is not known")
    found = f"torch sees {torch.device_count}, the driver lists {len(case.driver_gpus)}"
    return say(torch.device_count == wanted, found, {"expected": wanted, "found": torch.device_count})


@gpu_rule(
    "environment.min_cuda",
    "torch built with CUDA {case.min_cuda} or newer",
    todo="Install a build for CUDA {case.min_cuda} or newer that this driver runs.",
    settle=CHECK,
)
def min_cuda(case: Machine) -> Answer | None:
    wanted, torch = case.expectation.min_cuda, case.facts.torch
    if wanted is None:
        return None
    if torch is None or torch.cuda is None:
        is_known = case.found.word == "cpu_only_build"
        return say(False if is_known else None, "the build has no CUDA, or its version is not known")
    return say(torch.cuda >= wanted, f"torch is built with CUDA {dotted(torch.cuda)}", {"cuda": torch.cuda})


@gpu_rule(
    "environment.exclusive_gpu", "a GPU for this run alone", required=False, settle="Measure again on an idle GPU."
)
def exclusive(case: Machine) -> Answer | None:
    """A shared GPU: what is computed is right, but times mean nothing. Not required here."""
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
    mps = [name for name in names if case.facts.environment.get(name)]
    busy = next((gpu for gpu in case.driver_gpus if gpu.compute_processes), None)
    if mps:
        return say(None, f"shared device: MPS is on ({', '.join(mps)})")
    if busy is None:
        return None
    return say(None, f"shared device: {busy.compute_processes} other process(es) compute on {busy.name}")


@gpu_rule(
    "environment.other_gpus",
    "a build that serves every GPU of the machine",
    required=False,
    settle="Hide those GPUs with CUDA_VISIBLE_DEVICES, or use a build that serves all.",
)
def other_gpus(case: Machine) -> Answer | None:
    """GPUs beside the one in use that this build cannot serve."""
    bad = [f"{gpu.name}: {held.reason}" for gpu, _, held in case.case.holdings[1:] if held.how in ("none", "ptx")]
    return say(None, "; ".join(bad)) if bad else None


# Native code: what the table says of the build, what a run showed, and whether they agree. Where a run showed what
# the table denies, the run counts, and the table's answer is no longer required.


@gpu_rule(
    "native.arch_in_build",
    "native code for the GPU in the torch build",
    is_gpu_claim=True,
    todo="Install a build with code for this GPU (see the remedy).",
)
def arch(case: Machine) -> Answer:
    held, proof = case.held, case.facts.proof
    values = {"how": held.how, "code": held.code, "is_exact": held.is_exact, "source": held.source}
    if held.how == "native":
        note = "" if held.is_exact else f" (note: not built for exactly this chip, runs {held.code} code)"
        return say(True, held.reason + note, values)
    if held.how in ("none", "ptx"):
        if case.ran and proof is not None and proof.jit_error is None:
            return say(None, f"by the table: {held.reason}; a run decides, and the kernel ran", values, required=False)
        return say(False, held.reason, values)
    return say(None, held.reason, values, required=not case.ran)


@gpu_rule(
    "native.kernel_ran",
    "a real kernel runs on the GPU",
    is_gpu_claim=True,
    promise=1,
    todo=SEE_REMEDY,
    settle="python -m kit check, on the machine itself",
)
def kernel_ran(case: Machine) -> Answer:
    proof, word = case.facts.proof, case.found.word
    if proof is None:
        is_plain = word == "ok" or case.is_text
        return say(None, "no kernel was run" if is_plain else f"no kernel could be run: {word}")
    values = {"device": proof.device, "size": proof.size, "dtype": proof.dtype, "seconds": proof.seconds}
    if proof.device == "cpu":
        return say(False, "the kernel ran on the CPU", values, todo="Ask for device cuda.")
    if proof.ran:
        more = f", and the kernel of {proof.library}" if proof.library else ""
        return say(True, f"a {proof.size} x {proof.size} {proof.dtype} product ran{more}", values)
    if case.found.cause == "force_ptx_jit":
        return say(False, case.found.because[0], values)
    return say(False, f"the kernel failed: {(proof.error or 'no text')[:300]}", values)


@MACHINE.rule(
    "native.numbers",
    "the product agrees with float64",
    is_gpu_claim=True,
    todo="Do not trust this device or build; run again.",
    settle=CHECK,
)
def numbers(case: Machine) -> Answer | None:
    proof, where = case.facts.proof, "on the CPU: " if case.is_rehearsal else ""
    if proof is None or (not proof.ran and not case.is_rehearsal):
        return None
    if not proof.ran:
        return say(False, f"{where}{proof.error}")
    error, limit = proof.max_relative_error, proof.limit
    if error is None or limit is None:
        return say(None, f"{where}the result was not compared with float64")
    found = f"{where}largest relative error {error:.2g}, limit {limit:.2g}"
    return say(error <= limit, found, {"error": error, "limit": limit})


@gpu_rule(
    "native.without_ptx_jit",
    "the kernel runs where the driver refuses to compile PTX",
    is_gpu_claim=True,
    todo="Install a build with native code (see the remedy).",
    settle=CHECK,
)
def without_jit(case: Machine) -> Answer | None:
    """Native where the process that ran it was refused a module of PTX, which a process that may compile loads."""
    proof = case.facts.proof
    if not case.ran or proof is None:
        return None
    jit, allowed = proof.jit or JitControl(None, "not tried"), proof.jit_allowed
    values = {"jit": jit.code, "jit_allowed": allowed and allowed.code}
    if proof.jit_error is not None:
        return say(False, f"runs by PTX JIT, not native: {proof.jit_error[:300]}", values)
    if proof.ran_without_ptx_jit:
        return say(True, "native code: PTX is refused here", values)
    why = jit.reason or f"it answered {jit.code} to a module of PTX"
    if jit.is_refused and allowed:
        why = f"PTX is refused where the driver may compile it too: {allowed.reason or allowed.code}"
    return say(None, f"nothing shows that the driver compiled no PTX: {why}", values)


@gpu_rule(
    "native.rule_agrees_with_run",
    "table and run say the same",
    required=False,
    settle="Trust the run; tell the maintainers of the table which GPU, driver and build this is.",
)
def agreement(case: Machine) -> Answer | None:
    """The table against the run. A disagreement is worth knowing, but the run decides."""
    proof, held = case.facts.proof, case.held
    if proof is None or proof.device == "cpu" or held.how in ("unknown", "possible"):
        return None
    if case.found.cause == "force_ptx_jit":
        # The variable, not the build, decided.
        return None
    says, shows = held.how == "native", proof.ran and proof.jit_error is None
    if says == shows:
        return say(True, "table and run agree")
    return say(
        None, f"the table says {'yes' if says else 'no'} ({held.reason}), the run says {'yes' if shows else 'no'}"
    )


# What a person expects of a machine that may be in order.
_ASKED_FOR = {"environment.expected_gpu", "environment.gpu_count", "environment.min_cuda"}


def judge(facts: MachineFacts, expectation: Expectation) -> Verdict:
    """The verdict on a machine, with every check that was made and a diagnosis from DIAGNOSES.

    A rehearsal has no diagnosis, since the GPU was not asked for.
    """
    case = Machine(facts, expectation)
    checks = MACHINE.checks(case)
    if case.is_rehearsal:
        return Verdict.of(checks)
    red = {check.id for check in checks if check.outcome is Outcome.FAIL} - _ASKED_FOR
    lied = "environment.two_witnesses" in red or (case.found.word == "ok" and red)
    return Verdict.of(checks, "other" if lied else case.found.word)


def still_there(begin: MachineFacts, end: MachineFacts | None) -> Check:
    """Whether the driver and its devices at the end of a run are those of its beginning; a lost GPU is a
    FAIL."""
    expected = "the same driver and devices at the end as at the beginning"
    if end is None:
        return Check("environment.still_there", Outcome.INCONCLUSIVE, "the machine was not looked at again", expected)
    before, after = (_devices(facts) for facts in (begin, end))
    new_xids = sorted(set(end.xids or ()) - set(begin.xids or ()))
    is_same = before == after and not new_xids
    found = f"{len(before)} devices at the beginning, {len(after)} at the end"
    if not is_same:
        found += f"; new Xid errors: {new_xids}" if new_xids else "; not the same ones, or another driver"
    return Check(
        "environment.still_there",
        Outcome.PASS if is_same else Outcome.FAIL,
        found,
        expected,
        "" if is_same else "Restart the machine and run again; look for Xid errors in the kernel log.",
        {"new_xids": new_xids},
    )


def _devices(facts: MachineFacts) -> list[tuple[str | None, str | None, str | None]]:
    driver = facts.driver
    return [(driver.version, gpu.name, gpu.uuid) for gpu in driver.gpus] if driver else []

"""Judges the facts of a machine: is its NVIDIA GPU usable by torch, natively, and is it the expected one?

A pure function of recorded facts. What a run showed stands above what a table says, and
where the two differ that is itself a check. What was not seen is INCONCLUSIVE, never a
pass; a CPU run asked for by name is a REHEARSAL and claims nothing about a GPU.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from kit.gpu.compat import dotted, driver_floor, driver_runs, is_tegra_capability, text_of
from kit.gpu.diagnose import DIAGNOSES, Case, Diagnosis, capability_of, diagnose
from kit.gpu.facts import Gpu, MachineFacts
from kit.gpu.specs import normalise, possible_capabilities
from kit.gpu.wheels import Holding, holding, variant_of
from kit.records import Check, Outcome, Verdict

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


# What the judge's questions look at, and the form of an answer.

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


# Questions about the environment: driver, torch build, masks, witnesses, and what was expected of them.
#
# A question that does not apply answers None.


def driver(question: Question) -> Answer:
    driver, must = question.facts.driver, not question.ran
    if driver is None or not (driver.version or driver.gpus or driver.nvml_error):
        if question.found.word == "no_driver_or_no_gpu":
            return Answer(FAIL, question.found.because[0], "Run nvidia-smi and see what it says.", required=must)
        return Answer(INCONCLUSIVE, "nothing is known about the driver", "Run nvidia-smi.", required=must)
    names = [gpu.name for gpu in driver.gpus]
    values = {"version": driver.version, "gpus": names, "libcuda": driver.libcuda}
    if driver.nvml_error:
        found = f"NVML cannot start: {driver.nvml_error}" + ("; CUDA runs all the same" if question.ran else "")
        todo = "Restart after a driver change; see nvidia-smi."
        return Answer(INCONCLUSIVE if question.ran else FAIL, found, todo, values, required=must)
    found = f"driver {driver.version or 'of unknown version'} lists {', '.join(map(str, names)) or 'no GPU'}"
    if not names and question.ran:
        return Answer(PASS, f"{found}, as on a Jetson; CUDA runs", values=values)
    if not names and question.facts.source != "text":
        return Answer(FAIL, found, "See why the driver lists no device: nvidia-smi -L.", values)
    return Answer(PASS, found, values=values)


def driver_state(question: Question) -> Answer | None:
    """Xid errors in the kernel log; a log that cannot be read is no finding."""
    xids = question.facts.xids
    if xids is None:
        return None
    if not xids:
        return Answer(PASS, "no Xid error in the kernel log")
    todo = "Look the number up in NVIDIA's Xid table, restart, and test the hardware."
    return Answer(FAIL, f"the kernel log has Xid {', '.join(map(str, xids))}", todo, {"xids": list(xids)})


def torch_build(question: Question) -> Answer:
    torch, install = question.facts.torch, "Install a CUDA build of torch (see the remedy)."
    if torch is None:
        if question.facts.source == "text":
            return Answer(INCONCLUSIVE, "the torch build is not known")
        return Answer(FAIL, "torch is not installed", install)
    values = {"version": torch.version, "cuda": torch.cuda, "hip": torch.hip, "direct_url": torch.direct_url}
    if torch.hip:
        return Answer(FAIL, f"{torch.version} is built for AMD ROCm {torch.hip}, not for NVIDIA", install, values)
    if question.found.word == "cpu_only_build" or torch.is_cpu_build:
        seen = f"; driver sees {question.driver_gpus[0].name}" if question.driver_gpus else ""
        return Answer(FAIL, f"torch build has no CUDA: {torch.version or 'CPU only'}{seen}", install, values)
    base, packaged = ((text or "").split("+")[0] for text in (torch.version, torch.metadata_version))
    if base and packaged and base != packaged:
        found = (
            f"torch says {torch.version}, its package metadata {torch.metadata_version}: two installations are mixed"
        )
        return Answer(FAIL, found, "Install torch again in a fresh environment.", values)
    if torch.cuda is None:
        return Answer(
            INCONCLUSIVE,
            f"torch {torch.version or 'of unknown version'}; its CUDA is not known",
            values=values,
        )
    return Answer(PASS, f"torch {torch.version} for CUDA {dotted(torch.cuda)}", values=values)


def driver_for_build(question: Question) -> Answer | None:
    variant, case = variant_of(question.facts.torch), question.case
    if not variant or variant == "cpu":
        return None
    runs = driver_runs(variant, case.driver_version, case.system, driver_cuda=case.driver_cuda)
    shown = case.driver_version or (
        f"with CUDA {dotted(case.driver_cuda)}" if case.driver_cuda else "of unknown version"
    )
    values = {"driver": case.driver_version, "driver_cuda": case.driver_cuda, "variant": variant}
    if runs is False and (question.ran or case.is_available):
        found = f"driver {shown} is below the table's minimum for {variant}, yet CUDA runs: forward compatibility"
        return Answer(PASS, found, values=values)
    if runs is False or question.found.word == "driver_too_old_for_runtime":
        todo = "Install a build for an older CUDA, or a newer driver (see the remedy)."
        return Answer(FAIL, f"driver {shown} is too old for {variant}", todo, values)
    if runs is None:
        return Answer(INCONCLUSIVE, f"driver {shown}", values=values, required=not question.ran)
    return Answer(PASS, f"driver {shown} runs {variant}", values=values)


def expected_driver(question: Question) -> str:
    variant = variant_of(question.facts.torch) or ""
    floor = driver_floor(variant, question.case.system)
    return f"driver {text_of(floor)} or newer for {variant}" if floor else f"a driver that runs {variant}"


def cuda_starts(question: Question) -> Answer:
    available, found = question.case.is_available, question.found
    mask = {name: value for name, value in question.facts.environment.items() if "VISIBLE" in name}
    if available or question.ran:
        shown = "".join(f", {name}={value!r}" for name, value in mask.items())
        return Answer(PASS, f"CUDA starts{shown}", values={"environment": mask})
    if available is None and found.word == "ok":
        return Answer(INCONCLUSIVE, "whether CUDA starts was not tried", "python -m kit check")
    unsure = available is None and found.confidence == "low"
    return Answer(
        INCONCLUSIVE if unsure else FAIL,
        "; ".join(found.because),
        found.ask or SEE_REMEDY,
        {"environment": mask},
    )


def two_witnesses(question: Question) -> Answer | None:
    facts = question.facts
    gpus = facts.torch.gpus if facts.torch else ()
    if not gpus:
        return None
    names = [gpu.name or "?" for gpu in gpus]
    values = {
        "torch": names,
        "driver": [gpu.name for gpu in question.driver_gpus],
        "nvidia_smi": list(facts.nvidia_smi_gpus),
        "nvidia_smi_exit_code": facts.nvidia_smi_exit_code,
    }
    differ = disagreements(facts)
    if differ:
        todo = "Find out which program is patched, old or from another machine: nvidia-smi -L."
        return Answer(FAIL, "; ".join(differ), todo, values)
    if question.driver_gpus or facts.nvidia_smi_gpus:
        return Answer(PASS, f"driver and torch agree: {', '.join(names)}", values=values)
    if facts.platform.is_tegra and all(is_tegra_capability(gpu.compute_capability or (0, 0)) for gpu in gpus):
        return Answer(PASS, f"the system is a Jetson, and torch names {names[0]}", values=values)
    if facts.has_nvidia_device is False:
        found = f"torch names {names[0]}, and this machine has no NVIDIA device"
        return Answer(FAIL, found, "Find out what answers in CUDA's place.", values)
    found = "only torch names the GPU; the driver was not heard"
    return Answer(INCONCLUSIVE, found, "See what nvidia-smi -L says.", values, facts.source != "text")


def expected_gpu(question: Question) -> Answer | None:
    wanted, gpu = question.expectation.gpu_name, question.gpu
    if not wanted:
        return None
    if gpu is None or not gpu.name:
        return Answer(INCONCLUSIVE, "the name of the GPU is not known")
    other = partner(gpu, question.driver_gpus)
    values = {"expected": wanted, "name": gpu.name, "uuid": gpu.uuid, "mig": is_slice(gpu, other)}
    if is_slice(gpu, other) and "mig" not in wanted.lower():
        profiles = (gpu.mig_profile, other.mig_profile if other else None)
        profile = next((f" {profile}" for profile in profiles if profile and profile != "enabled"), "")
        found = f"the device is a MIG slice{profile} of {gpu.name}, not the full card"
        return Answer(FAIL, found, "Use the full card, or expect the MIG slice by name.", values)
    if matches(wanted, gpu.name):
        return Answer(PASS, f"the GPU in use is {gpu.name}", values=values)
    todo = "Run on the other machine or card, or expect this one."
    position = next((gpu.index for gpu in question.case.gpus[1:] if matches(wanted, gpu.name or "")), None)
    if position is not None:
        todo = f"Show torch that card alone: CUDA_VISIBLE_DEVICES={position}"
    return Answer(FAIL, f"the GPU in use is {gpu.name}", todo, values)


def min_cuda(question: Question) -> Answer | None:
    wanted = question.expectation.min_cuda
    if wanted is None:
        return None
    cuda = question.facts.torch.cuda if question.facts.torch else None
    if cuda is None:
        outcome = FAIL if question.found.word == "cpu_only_build" else INCONCLUSIVE
        return Answer(outcome, "the build has no CUDA, or its version is not known")
    if cuda >= wanted:
        return Answer(PASS, f"torch is built with CUDA {dotted(cuda)}", values={"cuda": cuda})
    todo = f"Install a build for CUDA {dotted(wanted)} or newer that this driver runs."
    return Answer(FAIL, f"torch is built with CUDA {dotted(cuda)}", todo, {"cuda": cuda})


def exclusive(question: Question) -> Answer | None:
    """A shared GPU: what is computed is right, but times mean nothing. Not required here."""
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
    mps = [name for name in names if question.facts.environment.get(name)]
    busy = next((gpu for gpu in question.driver_gpus if gpu.compute_processes), None)
    if not mps and busy is None:
        return None
    why = f"MPS is on ({', '.join(mps)})" if mps else ""
    if busy is not None and not mps:
        why = f"{busy.compute_processes} other process(es) compute on {busy.name}"
    return Answer(INCONCLUSIVE, f"shared device: {why}", "Measure again on an idle GPU.", required=False)


def other_gpus(question: Question) -> Answer | None:
    """GPUs beside the one in use that this build cannot serve."""
    bad = [(gpu, held) for gpu, _, held in question.case.holdings[1:] if held.how in ("none", "ptx")]
    if not bad:
        return None
    found = "; ".join(f"{gpu.name}: {held.reason}" for gpu, held in bad)
    todo = "Hide those GPUs with CUDA_VISIBLE_DEVICES, or use a build that serves all."
    return Answer(INCONCLUSIVE, found, todo, required=False)


# Questions about native code: what the table says of the build, what a run showed, and whether they agree.
#
# Where a run showed what the table denies, the run counts, and the table's answer is no
# longer required.


def arch(question: Question) -> Answer:
    held, proof = question.held, question.facts.proof
    values = {"how": held.how, "code": held.code, "is_exact": held.is_exact, "source": held.source}
    if held.how == "native":
        note = "" if held.is_exact else f" (note: not built for exactly this chip, runs {held.code} code)"
        return Answer(PASS, held.reason + note, values=values)
    if held.how in ("none", "ptx"):
        if question.ran and proof is not None and proof.ran_without_ptx_jit is not False:
            found = f"by the table: {held.reason}; a run decides, and the kernel ran"
            return Answer(INCONCLUSIVE, found, values=values, required=False)
        return Answer(FAIL, held.reason, "Install a build with code for this GPU (see the remedy).", values)
    return Answer(INCONCLUSIVE, held.reason, values=values, required=not question.ran)


def kernel(question: Question) -> Answer:
    proof, word = question.facts.proof, question.found.word
    if proof is None:
        is_plain = word == "ok" or question.facts.source == "text"
        found = "no kernel was run" if is_plain else f"no kernel could be run: {word}"
        return Answer(INCONCLUSIVE, found, "python -m kit check, on the machine itself")
    values = {"device": proof.device, "size": proof.size, "dtype": proof.dtype, "seconds": proof.seconds}
    if proof.device == "cpu":
        return Answer(FAIL, "the kernel ran on the CPU", "Ask for device cuda.", values)
    if proof.ran:
        return Answer(PASS, f"a {proof.size} x {proof.size} {proof.dtype} product ran", values=values)
    found = f"the kernel failed: {(proof.error or 'no text')[:300]}"
    if question.found.cause == "force_ptx_jit":
        found = question.found.because[0]
    return Answer(FAIL, found, SEE_REMEDY, values)


def numbers(question: Question) -> Answer | None:
    proof = question.facts.proof
    if proof is None or not proof.ran:
        return None
    error, limit = proof.max_relative_error, proof.limit
    if error is None or limit is None:
        return Answer(INCONCLUSIVE, "the result was not compared with float64")
    found, values = f"largest relative error {error:.2g}, limit {limit:.2g}", {"error": error, "limit": limit}
    if error <= limit:
        return Answer(PASS, found, values=values)
    return Answer(FAIL, found, "Do not trust this GPU or build; run again.", values)


def without_jit(question: Question) -> Answer | None:
    """Native where the process that ran it was refused a module of PTX, which a process that may compile loads."""
    proof = question.facts.proof
    if not question.ran or proof is None:
        return None
    values = {"jit": proof.jit and proof.jit.code, "jit_allowed": proof.jit_allowed and proof.jit_allowed.code}
    if proof.ran_without_ptx_jit:
        return Answer(PASS, "native code: PTX is refused here", values=values)
    if proof.ran_without_ptx_jit is False:
        why = f"runs by PTX JIT, not native: {(proof.jit_error or '')[:300]}"
        return Answer(FAIL, why, "Install a build with native code (see the remedy).", values)
    if proof.jit is None:
        why = "not tried"
    elif proof.jit.is_refused:
        why = f"PTX is refused with the driver's compiler allowed too ({proof.jit_allowed and proof.jit_allowed.code})"
    else:
        why = proof.jit.reason or f"the driver answered {proof.jit.code} to a module of PTX"
    return Answer(INCONCLUSIVE, f"nothing shows that no PTX was compiled: {why}", "python -m kit check", values)


def agreement(question: Question) -> Answer | None:
    """The table against the run. A disagreement is worth knowing, but the run decides."""
    proof, held = question.facts.proof, question.held
    if proof is None or proof.device == "cpu" or held.how in ("unknown", "possible"):
        return None
    if question.found.cause == "force_ptx_jit":
        # the variable, not the build, decided
        return None
    says, shows = held.how == "native", proof.ran and proof.ran_without_ptx_jit is not False
    if says == shows:
        return Answer(PASS, "table and run agree", required=False)
    found = f"the table says {'yes' if says else 'no'} ({held.reason}), the run says {'yes' if shows else 'no'}"
    todo = "Trust the run; tell the maintainers of the table which GPU, driver and build this is."
    return Answer(INCONCLUSIVE, found, todo, required=False)


# The questions that the judge asks of a machine, in the order of the report.


def ask(question: Question) -> tuple[Check, ...]:
    """Every question that applies, with its answer."""
    checks = []
    for name, expected, answer_to in QUESTIONS:
        answer = answer_to(question)
        if answer is not None:
            text = expected(question) if callable(expected) else expected
            checks.append(Check(name, answer.outcome, answer.found, text, answer.todo, answer.values, answer.required))
    return tuple(checks)


QUESTIONS: tuple[tuple[str, str | Callable[[Question], str], Callable[[Question], Answer | None]], ...] = (
    ("environment.driver", "an NVIDIA driver that answers and lists the GPU", driver),
    ("environment.driver_state", "no error of the GPU in the kernel log", driver_state),
    ("environment.torch_build", "a torch build with CUDA", torch_build),
    ("environment.driver_for_build", expected_driver, driver_for_build),
    ("environment.cuda_starts", "torch.cuda.is_available() is true", cuda_starts),
    ("environment.two_witnesses", "the driver and torch name the same card", two_witnesses),
    (
        "environment.expected_gpu",
        lambda q: f"the GPU in use is {q.expectation.gpu_name!r}",
        expected_gpu,
    ),
    (
        "environment.min_cuda",
        lambda q: f"torch built with CUDA {dotted(q.expectation.min_cuda)} or newer",
        min_cuda,
    ),
    ("environment.exclusive_gpu", "a GPU for this run alone", exclusive),
    ("environment.other_gpus", "a build that serves every GPU of the machine", other_gpus),
    ("native.arch_in_build", "native code for the GPU in the torch build", arch),
    ("native.kernel_ran", "a real kernel runs on the GPU", kernel),
    ("native.numbers", "the product agrees with float64", numbers),
    ("native.without_ptx_jit", "the kernel runs with PTX JIT switched off", without_jit),
    ("native.rule_agrees_with_run", "table and run say the same", agreement),
)


__all__ = ["DIAGNOSES", "Expectation", "judge", "still_there"]

_GPU_QUESTIONS = (
    "environment.driver",
    "environment.cuda_starts",
    "native.arch_in_build",
    "native.kernel_ran",
    "native.without_ptx_jit",
)


def judge(facts: MachineFacts, expectation: Expectation) -> Verdict:
    """The verdict on a machine, with every check that was made and a diagnosis from DIAGNOSES.

    A rehearsal has no diagnosis, since the GPU was not asked for.
    """
    case = Case(facts)
    if expectation.device == "cpu" or (expectation.device == "auto" and _shows_no_gpu(case)):
        return Verdict.of(_rehearsal(facts))
    held = holding(facts, capability_of(case.gpus[0]) if case.gpus else None)
    found = diagnose(facts)
    checks = ask(Question(case, expectation, found, held))
    lied = any(check.id == "environment.two_witnesses" and check.outcome is Outcome.FAIL for check in checks)
    return Verdict.of(checks, "other" if lied else found.word)


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


def _shows_no_gpu(case: Case) -> bool:
    return case.facts.has_nvidia_device is False and not case.gpus


def _rehearsal(facts: MachineFacts) -> list[Check]:
    """An explicit CPU run: the GPU's questions are not asked; the CPU's numbers are."""
    found = "not asked: this is a rehearsal on the CPU"
    checks = [Check(name, Outcome.REHEARSAL, found, "a GPU run answers it") for name in _GPU_QUESTIONS]
    if facts.torch is None and facts.source != "text":
        found = "torch is not installed"
        checks.append(Check("environment.torch_build", Outcome.FAIL, found, "a torch build", "Install torch."))
    proof = facts.proof
    if proof is None:
        return checks
    right = proof.ran and (proof.max_relative_error or 0) <= (proof.limit or float("inf"))
    found = f"on the CPU: {proof.error or f'largest relative error {proof.max_relative_error or 0:.1e}'}"
    outcome = Outcome.REHEARSAL if right else Outcome.FAIL
    return [*checks, Check("native.numbers", outcome, found, "the product agrees with float64")]

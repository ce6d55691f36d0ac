"""Judges the facts of a machine: is its NVIDIA GPU usable by torch, natively, and is it the expected one?

A pure function of recorded facts. What a run showed stands above what a table says, and
where the two differ that is itself a check. What was not seen is INCONCLUSIVE, never a
pass; a CPU run asked for by name is a REHEARSAL and claims nothing about a GPU.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from kit.gpu.compat import TEGRA
from kit.gpu.diagnose import Case, Reading
from kit.gpu.facts import Driver, Expectation, Gpu, JitControl, MachineFacts
from kit.gpu.specs import normalise, possible_capabilities
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


def disagreements(case: Case) -> tuple[str, ...]:
    """What the witnesses say differently, as sentences; empty where they agree or only one speaks."""
    found = []
    for gpu in case.torch.gpus:
        known, other = possible_capabilities(gpu.name), partner(gpu, case.driver.gpus)
        name, own = gpu.name or "a GPU", dotted(gpu.compute_capability)
        if known and gpu.compute_capability and gpu.compute_capability not in known:
            found.append(f"torch names {name} with compute capability {own}, but that card has {dotted(known[0])}")
        if other is None:
            names = ", ".join(sorted({other.name or "?" for other in case.driver.gpus}))
            found += [f"torch sees {name}, which the driver does not list (it lists {names})"] if names else []
            continue
        if gpu.name and other.name and not _is_same_name(gpu.name, other.name):
            found.append(f"torch says {name}, the driver says {other.name}")
        if other.compute_capability and gpu.compute_capability not in (None, other.compute_capability):
            found.append(f"torch says compute capability {own}, the driver {dotted(other.compute_capability)}")
        ours, theirs = gpu.memory_bytes or 0, other.memory_bytes or 0
        may_differ = case.is_text or is_slice(gpu, other) or gpu.is_integrated or not (ours and theirs)
        if not may_differ and not _MEMORY_SHARE <= ours / theirs <= 1.05:
            found.append(f"torch says {ours:,} bytes of memory, the driver {theirs:,}")
    listed = case.facts.nvidia_smi_gpus if case.facts.nvidia_smi_exit_code in (0, None) else ()
    for gpu in case.torch.gpus if listed else ():
        if gpu.name and not any(_is_same_name(gpu.name, name) for name in listed):
            found.append(f"torch sees {gpu.name}, nvidia-smi lists {', '.join(listed)}")
    return tuple(dict.fromkeys(found))


def partner(gpu: Gpu, driver_gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The driver's view of a device that torch sees: by UUID, else the only one, else by name."""
    uuids = [(other.uuid or "").removeprefix("GPU-").lower() for other in driver_gpus]
    own = (gpu.uuid or "").removeprefix("GPU-").lower()
    if own and own in uuids:
        return driver_gpus[uuids.index(own)]
    if all(uuids) and not is_slice(gpu) and (gpu.uuid or "").startswith("GPU-"):
        return None
    named = [other for other in driver_gpus if other.name and gpu.name and _is_same_name(gpu.name, other.name)]
    return next(iter(driver_gpus if len(driver_gpus) == 1 else named), None)


def is_slice(gpu: Gpu, other: Gpu | None = None) -> bool:
    """Whether this device is a MIG slice of a card."""
    profiles = [gpu.mig_profile, other.mig_profile if other else None]
    return "MIG" in (gpu.name or "").split() or any(profiles) or (gpu.uuid or "").startswith("MIG-")


def _is_same_name(left: str, right: str) -> bool:
    """Equal, or one is the other shortened with '...' as nvidia-smi does."""
    left, right = (re.sub(r"\s+mig\b.*", "", normalise(name)) for name in (left, right))
    return left == right or any(
        short.endswith("...") and long.startswith(short.removesuffix("...").rstrip())
        for short, long in ((left, right), (right, left))
    )


def matches(expected: str, name: str) -> bool:
    """Whether a card's name is the expected one: every word of the expectation, and no word that makes it
    another card. 'RTX 5090' is neither 'RTX 5090 D' nor 'RTX 5090 Laptop GPU'; 'H100' is any full H100."""
    apart = [re.sub(r"\b(rtx|gtx|gt|mx)(\d)", r"\1 \2", normalise(text)) for text in (expected, name)]
    wanted, given = (frozenset(re.findall(r"[a-z0-9.]+", text)) for text in apart)
    return bool(wanted) and wanted <= given and not (given & _OTHER_CARD) - wanted


# The rules in the order of the report.

MACHINE = Rules("machine", rehearses=lambda case: case.is_rehearsal)
_NOT_ASKED = say(None, "not asked: this is a rehearsal on the CPU", expected="a GPU run answers it")


def gpu_rule(id: str, expected: str, *, is_gpu_claim: bool = False, **words: Any) -> Callable:
    """A rule that a rehearsal is not asked; where it is a claim of a GPU run, the rehearsal says so."""

    def add(ask: Callable[[Case], Answer | None]) -> Callable[[Case], Answer | None]:
        @MACHINE.rule(id, expected, is_gpu_claim=is_gpu_claim, **words)
        def asked(case: Case) -> Answer | None:
            return ask(case) if not case.is_rehearsal else _NOT_ASKED if is_gpu_claim else None

        return asked

    return add


def first(values: Mapping[str, Any], *rows: tuple[Any, ...]) -> Answer:
    """The answer of the first row that applies. A row says whether it does, whether that is good, what was found, and
    which words of the rule are others then."""
    return next(say(is_good, found, values, **dict(*words)) for applies, is_good, found, *words in rows if applies)


@gpu_rule(
    "environment.driver",
    "an NVIDIA driver that answers and lists the GPU",
    is_gpu_claim=True,
    todo="Restart after a driver change; see what nvidia-smi -L says.",
    settle="Run nvidia-smi.",
)
def driver(case: Case) -> Answer:
    driver, names = case.driver, [gpu.name for gpu in case.driver.gpus]
    if not (driver.version or names or driver.nvml_error):
        is_absent = case.found.word == "no_driver_or_no_gpu"
        found = case.found.because[0] if is_absent else "nothing is known about the driver"
        return say(False if is_absent else None, found, required=not case.ran)
    lists = f"driver {driver.version or 'of unknown version'} lists {', '.join(map(str, names)) or 'no GPU'}"
    broken = f"NVML cannot start: {driver.nvml_error}"
    return first(
        {"version": driver.version, "gpus": names, "libcuda": driver.libcuda},
        (driver.nvml_error and case.ran, None, f"{broken}; CUDA runs all the same", {"required": False}),
        (driver.nvml_error, False, broken),
        (case.ran and not names, True, f"{lists}, as on a Jetson; CUDA runs"),
        (True, bool(names) or case.is_text, lists),
    )


@gpu_rule("environment.driver_state", "no error of the GPU in the kernel log")
def driver_state(case: Case) -> Answer | None:
    """A log that cannot be read is no finding; what an Xid means stands in the table of causes."""
    xids = case.facts.xids
    if not xids:
        return None if xids is None else say(True, "no Xid error in the kernel log")
    meaning = Case(MachineFacts(source="text"), Reading(f"NVRM: Xid (PCI): {number}" for number in xids)).found
    found = f"the kernel log has Xid {', '.join(map(str, xids))}: {meaning.because[0]}"
    todo = meaning.row["do"] if meaning.row else SEE_REMEDY
    return say(meaning.kind == "program", found, {"xids": list(xids)}, todo=todo)


@MACHINE.rule(
    "environment.torch_build", "a torch build with CUDA", todo="Install a CUDA build of torch (see the remedy)."
)
def torch_build(case: Case) -> Answer | None:
    torch, unknown = case.torch, None if case.is_rehearsal else say(None, "the torch build is not known")
    if case.facts.torch is None:
        return unknown if case.is_text else say(False, "torch is not installed")
    is_broken = (torch.error or "").startswith("import torch failed")
    if case.is_rehearsal and not is_broken:
        return None
    seen = f"; driver sees {case.driver.gpus[0].name}" if case.driver.gpus else ""
    base, packaged = ((text or "").split("+")[0] for text in (torch.version, torch.metadata_version))
    mixed = f"torch says {torch.version}, its metadata {torch.metadata_version}: two installations are mixed"
    return first(
        {"version": torch.version, "cuda": torch.cuda, "hip": torch.hip, "direct_url": torch.direct_url},
        (is_broken, False, torch.error, {"todo": SEE_REMEDY}),
        (torch.hip, False, f"{torch.version} is built for AMD ROCm {torch.hip}, not for NVIDIA"),
        (
            torch.is_cpu_build or case.found.word == "cpu_only_build",
            False,
            f"torch build has no CUDA: {torch.version or 'CPU only'}{seen}",
        ),
        (base and packaged and base != packaged, False, mixed, {"todo": "Install torch again in a fresh environment."}),
        (torch.cuda is None, None, f"torch {torch.version or 'of unknown version'}; its CUDA is not known"),
        (True, True, f"torch {torch.version} for CUDA {dotted(torch.cuda)}"),
    )


@gpu_rule(
    "environment.driver_for_build",
    "{case.driver_needed}",
    todo="Install a build for an older CUDA, or a newer driver (see the remedy).",
)
def driver_for_build(case: Case) -> Answer | None:
    variant, version, cuda, starts = case.variant, case.driver.version, case.driver.cuda_version, case.starts
    if variant in (None, "cpu"):
        return None
    shown = f"driver {version or (f'with CUDA {dotted(cuda)}' if cuda else 'of unknown version')}"
    is_below, runs = starts is False, case.ran or case.torch.is_available
    compatible = f"{shown} is below the table's minimum for {variant}, yet CUDA runs: forward compatibility"
    is_too_old = is_below or case.found.word == "driver_too_old_for_runtime"
    return first(
        {"driver": version, "driver_cuda": cuda, "variant": variant},
        (is_below and runs, True, compatible),
        (is_too_old, False, f"{shown} is too old for {variant}"),
        (starts is None, None, shown, {"required": not case.ran}),
        (True, True, f"{shown} runs {variant}"),
    )


@gpu_rule(
    "environment.cuda_starts",
    "torch.cuda.is_available() is true",
    is_gpu_claim=True,
    promise=1,
    todo=SEE_REMEDY,
    settle=CHECK,
)
def cuda_starts(case: Case) -> Answer:
    available, found = case.torch.is_available, case.found
    mask = {name: value for name, value in case.facts.environment.items() if "VISIBLE" in name}
    if available is None and found.word == "ok" and not case.ran:
        return say(None, "whether CUDA starts was not tried")
    is_open, ask = available is None and found.confidence == "low", found.ask or SEE_REMEDY
    return first(
        {"environment": mask},
        (available or case.ran, True, "CUDA starts" + "".join(f", {name}={value!r}" for name, value in mask.items())),
        (True, None if is_open else False, "; ".join(found.because), {"todo": ask, "settle": ask}),
    )


@gpu_rule(
    "environment.visible_devices",
    "a GPU for each entry of CUDA_VISIBLE_DEVICES",
    required=False,
    settle="Correct CUDA_VISIBLE_DEVICES, or find out where that GPU went: nvidia-smi -L.",
)
def visible_devices(case: Case) -> Answer | None:
    """CUDA takes the entries up to the first that it does not know, and says nothing of the rest."""
    mask, count = case.facts.environment.get("CUDA_VISIBLE_DEVICES", ""), case.torch.device_count
    entries = [entry.strip() for entry in mask.split(",")]
    if not count or count >= len(entries):
        return None
    lost = f"nothing answers to {entries[count]!r}" + (", and what follows is left" if entries[count + 1 :] else "")
    return say(None, f"CUDA_VISIBLE_DEVICES={mask!r}: {lost}; torch sees {count} of {len(entries)}")


@gpu_rule(
    "environment.two_witnesses",
    "the driver and torch name the same card",
    promise=2,
    todo="Find out which program is patched, old or from another machine: nvidia-smi -L.",
    settle="See what nvidia-smi -L says.",
)
def two_witnesses(case: Case) -> Answer | None:
    facts, names, differ = case.facts, [gpu.name or "?" for gpu in case.torch.gpus], disagreements(case)
    is_jetson = facts.platform.is_tegra and all(gpu.compute_capability in TEGRA for gpu in case.gpus)
    values = {
        "torch": names,
        "driver": [gpu.name for gpu in case.driver.gpus],
        "nvidia_smi": list(facts.nvidia_smi_gpus),
        "nvidia_smi_exit_code": facts.nvidia_smi_exit_code,
    }
    one, other = names[0] if names else "", {"todo": "Find out what answers in CUDA's place."}
    alone = {"required": not case.is_text}
    answer = first(
        values,
        (differ, False, "; ".join(differ)),
        (case.driver.gpus or facts.nvidia_smi_gpus, True, f"driver and torch agree: {', '.join(names)}"),
        (is_jetson, True, f"the system is a Jetson, and torch names {one}"),
        (facts.has_nvidia_device is False, False, f"torch names {one}, and this machine has no NVIDIA device", other),
        (True, None, "only torch names the GPU; the driver was not heard", alone),
    )
    return answer if names else None


@gpu_rule(
    "environment.expected_gpu",
    "the GPU in use is {case.expectation.gpu_name!r}",
    promise=2,
    todo="Run on the other machine or card, or expect this one.",
    settle=CHECK,
)
def expected_gpu(case: Case) -> Answer | None:
    wanted, gpu = case.expectation.gpu_name, case.gpu
    if not wanted or gpu is None or not gpu.name:
        return say(None, "the name of the GPU is not known") if wanted else None
    other = partner(gpu, case.driver.gpus)
    is_part, others = is_slice(gpu, other), [gpu.index for gpu in case.gpus[1:] if matches(wanted, gpu.name or "")]
    profiles = [each.mig_profile for each in (gpu, other) if each and each.mig_profile not in (None, "enabled")]
    part = " ".join(["a MIG slice", *map(str, profiles[:1])])
    choose = {"todo": f"Show torch that card alone: CUDA_VISIBLE_DEVICES={others[0]}"} if others else {}
    return first(
        {"expected": wanted, "name": gpu.name, "uuid": gpu.uuid, "mig": is_part},
        (
            is_part and "mig" not in wanted.lower(),
            False,
            f"the device is {part} of {gpu.name}, not the full card",
            {"todo": "Use the full card, or expect the MIG slice by name."},
        ),
        (True, matches(wanted, gpu.name), f"the GPU in use is {gpu.name}", choose),
    )


@gpu_rule(
    "environment.gpu_count",
    "torch sees {case.expectation.gpus} GPUs",
    settle=CHECK,
    todo="See which GPUs the driver lists (nvidia-smi -L) and what CUDA_VISIBLE_DEVICES leaves of them.",
)
def gpu_count(case: Case) -> Answer | None:
    wanted, count = case.expectation.gpus, case.torch.device_count
    if wanted is None or count is None:
        return None if wanted is None else say(None, "how many GPUs torch sees is not known")
    found = f"torch sees {count}, the driver lists {len(case.driver.gpus)}"
    return say(count == wanted, found, {"expected": wanted, "found": count})


@gpu_rule(
    "environment.min_cuda",
    "torch built with CUDA {case.min_cuda} or newer",
    todo="Install a build for CUDA {case.min_cuda} or newer that this driver runs.",
    settle=CHECK,
)
def min_cuda(case: Case) -> Answer | None:
    wanted, cuda = case.expectation.min_cuda, case.torch.cuda
    if wanted is None:
        return None
    if cuda is None:
        is_known = case.found.word == "cpu_only_build"
        return say(False if is_known else None, "the build has no CUDA, or its version is not known")
    return say(cuda >= wanted, f"torch is built with CUDA {dotted(cuda)}", {"cuda": cuda})


@gpu_rule(
    "environment.exclusive_gpu", "a GPU for this run alone", required=False, settle="Measure again on an idle GPU."
)
def exclusive(case: Case) -> Answer | None:
    """A shared GPU: what is computed is right, but times mean nothing. Not required here."""
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
    mps = [name for name in names if case.facts.environment.get(name)]
    shared = [f"MPS is on ({', '.join(mps)})"] if mps else []
    shared += [
        f"{gpu.compute_processes} other process(es) compute on {gpu.name}"
        for gpu in case.driver.gpus
        if gpu.compute_processes
    ]
    return say(None, f"shared device: {shared[0]}") if shared else None


@gpu_rule(
    "environment.other_gpus",
    "a build that serves every GPU of the machine",
    required=False,
    settle="Hide those GPUs with CUDA_VISIBLE_DEVICES, or use a build that serves all.",
)
def other_gpus(case: Case) -> Answer | None:
    """GPUs beside the one in use that this build cannot serve."""
    bad = [f"{gpu.name}: {held.reason}" for gpu, _, held in case.holdings[1:] if held.how in ("none", "ptx")]
    return say(None, "; ".join(bad)) if bad else None


# Native code: what the table says of the build, what a run showed, and whether they agree. Where a run showed what
# the table denies, the run counts, and the table's answer is no longer required.


@gpu_rule(
    "native.arch_in_build",
    "native code for the GPU in the torch build",
    is_gpu_claim=True,
    todo="Install a build with code for this GPU (see the remedy).",
)
def arch(case: Case) -> Answer:
    held, optional = case.held, {"required": False}
    note = "" if held.is_exact else f" (note: not built for exactly this chip, runs {held.code} code)"
    ran_native = case.ran and case.proof and case.proof.jit_error is None
    return first(
        {"how": held.how, "code": held.code, "is_exact": held.is_exact, "source": held.source},
        (held.how == "native", True, held.reason + note),
        (held.how not in ("none", "ptx"), None, held.reason, {"required": not case.ran}),
        (ran_native, None, f"by the table: {held.reason}; a run decides, and the kernel ran", optional),
        (True, False, held.reason),
    )


@gpu_rule(
    "native.kernel_ran",
    "a real kernel runs on the GPU",
    is_gpu_claim=True,
    promise=1,
    todo=SEE_REMEDY,
    settle="python -m kit check, on the machine itself",
)
def kernel_ran(case: Case) -> Answer:
    proof, word = case.proof, case.found.word
    if proof is None:
        is_plain = word == "ok" or case.is_text
        return say(None, "no kernel was run" if is_plain else f"no kernel could be run: {word}")
    more = f", and the kernel of {proof.library}" if proof.library else ""
    return first(
        {"device": proof.device, "size": proof.size, "dtype": proof.dtype, "seconds": proof.seconds},
        (proof.device == "cpu", False, "the kernel ran on the CPU", {"todo": "Ask for device cuda."}),
        (proof.ran, True, f"a {proof.size} x {proof.size} {proof.dtype} product ran{more}"),
        ("forced_jit" in case.known, False, case.known.get("forced_jit", "")),
        (True, False, f"the kernel failed: {(proof.error or 'no text')[:300]}"),
    )


@MACHINE.rule(
    "native.numbers",
    "the product agrees with float64",
    is_gpu_claim=True,
    todo="Do not trust this device or build; run again.",
    settle=CHECK,
)
def numbers(case: Case) -> Answer | None:
    proof, where = case.proof, "on the CPU: " if case.is_rehearsal else ""
    if proof is None or not proof.ran:
        return say(False, f"{where}{proof.error}") if proof and case.is_rehearsal else None
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
def without_jit(case: Case) -> Answer | None:
    """Native where the process that ran it was refused a module of PTX, which a process that may compile loads."""
    proof = case.proof
    if not case.ran or proof is None:
        return None
    jit, allowed = proof.jit or JitControl(None, "not tried"), proof.jit_allowed
    why = jit.reason or f"it answered {jit.code} to a module of PTX"
    if jit.is_refused and allowed:
        why = f"PTX is refused where the driver may compile it too: {allowed.reason or allowed.code}"
    return first(
        {"jit": jit.code, "jit_allowed": allowed and allowed.code},
        (proof.jit_error is not None, False, f"runs by PTX JIT, not native: {(proof.jit_error or '')[:300]}"),
        (proof.ran_without_ptx_jit, True, "native code: PTX is refused here"),
        (True, None, f"nothing shows that the driver compiled no PTX: {why}"),
    )


@gpu_rule(
    "native.rule_agrees_with_run",
    "table and run say the same",
    required=False,
    settle="Trust the run; tell the maintainers of the table which GPU, driver and build this is.",
)
def agreement(case: Case) -> Answer | None:
    """The table against the run. A disagreement is worth knowing, but the run decides; a variable that forbids native
    code decides before both."""
    proof, held = case.proof, case.held
    is_silent = held.how in ("unknown", "possible") or "forced_jit" in case.known
    if proof is None or proof.device == "cpu" or is_silent:
        return None
    says, shows = ("yes" if it else "no" for it in (held.how == "native", proof.ran and proof.jit_error is None))
    differ = f"the table says {says} ({held.reason}), the run says {shows}"
    return say(True, "table and run agree") if says == shows else say(None, differ)


# What a person expects of a machine that may be in order.
_ASKED_FOR = {"environment.expected_gpu", "environment.gpu_count", "environment.min_cuda"}


def judge(facts: MachineFacts, expectation: Expectation) -> Verdict:
    """The verdict on a machine, with every check that was made and a diagnosis from DIAGNOSES.

    A rehearsal has no diagnosis, since the GPU was not asked for.
    """
    case = Case(facts, None, expectation)
    checks = MACHINE.checks(case)
    if case.is_rehearsal:
        return Verdict.of(checks)
    red = {check.id for check in checks if check.outcome is Outcome.FAIL} - _ASKED_FOR
    lied = "environment.two_witnesses" in red or (case.found.word == "ok" and red)
    return Verdict.of(checks, "other" if lied else case.found.word)


def still_there(begin: MachineFacts, end: MachineFacts | None) -> Check:
    """Whether the driver and its devices at the end of a run are those of its beginning; a lost GPU is a
    FAIL."""
    name, expected = "environment.still_there", "the same driver and devices at the end as at the beginning"
    if end is None:
        return Check(name, Outcome.INCONCLUSIVE, "the machine was not looked at again", expected)
    drivers = [facts.driver or Driver() for facts in (begin, end)]
    new = sorted(set(end.xids or ()) - set(begin.xids or ()))
    before, after = ([(driver.version, gpu.name, gpu.uuid) for gpu in driver.gpus] for driver in drivers)
    counts = f"{len(before)} devices at the beginning, {len(after)} at the end"
    if before == after and not new:
        return Check(name, Outcome.PASS, counts, expected, "", {"new_xids": new})
    differ = f"new Xid errors: {new}" if new else "not the same ones, or another driver"
    todo = "Restart the machine and run again; look for Xid errors in the kernel log."
    return Check(name, Outcome.FAIL, f"{counts}; {differ}", expected, todo, {"new_xids": new})

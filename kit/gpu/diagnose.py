"""One word for the state of a machine, with the reason, from its facts alone.

The rules stand in the order in which they are asked. What a run showed comes first,
then what an error says, then what follows from versions. A rule that cannot know says
nothing; where none speaks, the answer is that it cannot be told, and what would tell.
"""

from __future__ import annotations

from collections.abc import Callable

from kit.gpu import said
from kit.gpu.arch import Capability, dotted, is_tegra_capability
from kit.gpu.build import platform_of, variant_of
from kit.gpu.case import ASK_ALL, Case, Diagnosis, say
from kit.gpu.compat import driver_floor, driver_runs, parse_driver, text_of
from kit.gpu.facts import MachineFacts
from kit.gpu.messages import CONTEXT

_LIST = 'python -c "import torch; print(torch.__version__, torch.cuda.get_arch_list())"'
_START = 'python -c "import torch; torch.cuda.init()"'


def diagnose(facts: MachineFacts) -> Diagnosis:
    """The diagnosis of the first rule that speaks; the last one always does."""
    case = Case(facts)
    return next(found for rule in RULES if (found := rule(case)) is not None)


def _run(case: Case) -> Diagnosis | None:
    proof = case.facts.proof
    if proof is None or proof.device == "cpu" or not proof.ran:
        return None
    error, limit = proof.max_relative_error, proof.limit
    if error is not None and limit is not None and error > limit:
        because = f"the kernel ran, but its numbers are off by {error:.2g} (limit {limit:.2g})"
        return say("other", "wrong_numbers", because)
    if proof.ran_without_ptx_jit is False:
        because = "the kernel ran, but not with PTX JIT switched off: the driver compiled it on this machine"
        return say("ptx_jit_only", "ptx", because)
    return say("ok", "ran", "a real kernel ran on the GPU and its numbers are right")


def _build_lacks(case: Case) -> Diagnosis | None:
    """The build against each GPU; one that it does not serve decides, whatever the others say."""
    bad = [
        (gpu, capability, held)
        for gpu, capability, held in case.holdings
        if held.how in ("none", "ptx") and not _jetpack_runs(case, capability)
    ]
    if not bad:
        return None
    gpu, capability, held = min(bad, key=lambda row: row[2].how != "none")
    sure = held.source in ("list", "range") or case.is_available is not None
    word, cause = "arch_missing_from_build", "arch_missing"
    if held.how == "ptx":
        word, cause = "ptx_jit_only", "ptx"
    elif held.is_too_old:
        word, cause = "gpu_too_old_dropped", "too_old"
    because = f"{gpu.name or 'the GPU'} (compute capability {dotted(capability)}): {held.reason}"
    return say(word, cause, because, confidence="high" if sure else "medium")


def _jetpack_runs(case: Case, capability: Capability) -> bool:
    """From the JetPack 7.2 driver on, Orin has been seen to run desktop code that the rule forbids."""
    if not is_tegra_capability(capability):
        return False
    jetpack = (case.facts.platform.jetpack or "").lower()
    number = tuple(int(part) for part in jetpack.lstrip("r").split(".") if part.isdigit())
    is_new = number >= (39,) if number and number[0] >= 30 else number >= (7, 2)
    return is_new or (parse_driver(case.driver_version) or (0,)) >= (595,)


def _warned_without_list(case: Case) -> Diagnosis | None:
    if "arch_warning" not in case.symptoms or not case.holdings:
        return None
    gpu, capability, held = case.holdings[0]
    if held.how not in ("unknown", "possible"):
        return None
    because = f"torch says that it has no code for {gpu.name} ({dotted(capability)}); its list is not there"
    if capability < (7, 5):
        return say("gpu_too_old_dropped", "too_old", because, confidence="medium", ask=_LIST)
    return say("arch_missing_from_build", "arch_missing", because, ask=_LIST)


def _driver_too_old(case: Case) -> Diagnosis | None:
    variant, cuda = variant_of(case.facts.torch), case.driver_cuda
    if not variant or case.is_available:
        return None
    if driver_runs(variant, case.driver_version, case.system, driver_cuda=cuda) is not False:
        return None
    floor = driver_floor(variant, case.system)
    needed = f"{text_of(floor)} or newer" if floor else "a newer one"
    shown = case.driver_version or (f"of CUDA {dotted(cuda)}" if cuda else "unknown")
    because = f"{variant} needs driver {needed} ({case.system}); the driver here is {shown}"
    return say("driver_too_old_for_runtime", "driver_too_old", because)


def _no_kernel(case: Case) -> Diagnosis | None:
    """'no kernel image': torch's own build where it is known to lack the code, an extension's where torch has
    it."""
    if not case.symptoms & {"no_kernel", "library_arch"}:
        return None
    if case.holdings and all(held.how in ("native", "possible") for _, _, held in case.holdings):
        gpu, _, held = case.holdings[0]
        because = f"torch itself has code for {gpu.name} ({held.reason}), so another package or kernel lacks it"
        sure = "high" if held.how == "native" else "medium"
        return say("other", "extension", because, confidence=sure, ask="pip list")
    known = max((capability for _, capability, _ in case.holdings), default=None)
    if known and known < (3, 7):
        because = f"no torch 2 build has code for compute capability {dotted(known)}"
        return say("gpu_too_old_dropped", "too_old", because)
    if known and known < (7, 5):
        because = f"the kernels do not hold code for {dotted(known)}, which newer builds left out"
        return say("gpu_too_old_dropped", "too_old", because, confidence="medium", ask=_LIST)
    if "extension_named" in case.symptoms:
        because = "the error comes from a package beside torch, and that package is not built for this GPU"
        return say("other", "extension", because, confidence="medium", ask=_LIST)
    if "new_error_class" in case.symptoms:
        because = "torch 2.8 and later raise this error, and their builds have code for every GPU from 7.5 on"
        either = "either the GPU is older, or another package lacks its code"
        return say("other", "extension", because, either, confidence="low", ask=ASK_ALL)
    because = "the code that was called is not built for this GPU; mostly that is torch itself, else an extension"
    sure = "medium" if known else "low"
    return say("arch_missing_from_build", "arch_missing", because, confidence=sure, ask=_LIST)


def _windows_default(case: Case) -> Diagnosis | None:
    torch = case.facts.torch
    if torch is None or not torch.version or torch.is_available is not False or torch.cuda is not None:
        return None
    if "+" in torch.version or platform_of(case.facts) != "windows_x86_64":
        return None
    because = f"torch {torch.version} without a CUDA tag on Windows is PyPI's build, which has no CUDA"
    return say("cpu_only_build", "cpu_build", because, confidence="medium", ask=_LIST)


def _dark(case: Case) -> Diagnosis | None:
    """CUDA is not available and no error tells why."""
    facts = case.facts
    if case.is_available is not False:
        return None
    is_gone = facts.nvidia_smi_exit_code == 127
    if variant_of(facts.torch) is None and not is_gone:
        because = "CUDA is not available, and whether this torch is a CUDA build is not known"
        return say("other", "unknown", because, confidence="low", ask=_LIST)
    if is_gone or not (case.gpus or case.driver_version):
        sure = "high" if is_gone or facts.has_nvidia_device is False else "medium"
        because = "the build has CUDA, CUDA is not available, and no NVIDIA driver or GPU shows"
        return say("no_driver_or_no_gpu", "no_driver", because, confidence=sure, ask="nvidia-smi")
    because = "build, driver and GPU fit together, yet CUDA is not available; the error itself is not told"
    return say("other", "unknown_start", because, confidence="low", ask=_START)


def _fine(case: Case) -> Diagnosis | None:
    """Nothing failed, and what is known fits together."""
    facts = case.facts
    is_failed = facts.proof is not None and facts.proof.device != "cpu" and not facts.proof.ran
    if is_failed or case.symptoms - CONTEXT:
        return None
    if any(held.how == "none" and _jetpack_runs(case, capability) for _, capability, held in case.holdings):
        because = "the rule says no, but this JetPack has been seen to run such code; only a run decides"
        return say("ok", "fits", because, confidence="medium", ask="python -m kit check")
    because = [f"{gpu.name or 'GPU'}: {held.reason}" for gpu, _, held in case.holdings[:1]]
    if "arch_warning" in case.symptoms and because:
        because.append("torch's own warning is a false alarm: code of the same generation runs on this GPU")
    if case.is_available:
        variant = variant_of(facts.torch)
        if variant and driver_runs(variant, case.driver_version, case.system) is False:
            because.append("the driver is older than the build asks for, and CUDA runs: forward compatibility")
        return say("ok", "fits", *(because or ["CUDA is available, and nothing contradicts it"]))
    if {held.how for _, _, held in case.holdings} == {"native"}:
        return say("ok", "fits", *because, confidence="medium", ask="python -m kit check")
    return None


def _unknown(case: Case) -> Diagnosis:
    if case.facts.source != "text" and case.facts.torch is None:
        return say("other", "no_torch", "torch is not installed in this interpreter")
    because = "nothing here tells whether the GPU is usable"
    if case.symptoms:
        because = "something failed, and the facts do not tell why"
    return say("other", "unknown", because, confidence="low", ask=ASK_ALL)


RULES: tuple[Callable[[Case], Diagnosis | None], ...] = (
    said.wrong_vendor,
    _run,
    said.forced_jit,
    said.installer,
    said.cpu_build,
    said.changed_driver,
    said.compat,
    said.driver_said_too_old,
    said.absent,
    said.by_table,
    said.masked,
    _build_lacks,
    _warned_without_list,
    _driver_too_old,
    _no_kernel,
    _windows_default,
    _dark,
    _fine,
    _unknown,
)

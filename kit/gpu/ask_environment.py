"""Questions about the environment: driver, torch build, masks, witnesses, and what was expected of them.

A question that does not apply answers None.
"""

from __future__ import annotations

from kit.gpu.arch import dotted, is_tegra_capability
from kit.gpu.build import variant_of
from kit.gpu.compat import driver_floor, driver_runs, text_of
from kit.gpu.question import FAIL, INCONCLUSIVE, PASS, SEE_REMEDY, Answer, Question
from kit.gpu.witnesses import disagreements, is_slice, matches, partner


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

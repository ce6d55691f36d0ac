"""Rules that read an error text or a setting: each names a diagnosis where the text decides, else says
nothing.

One message can have several causes. They are told apart by what else is known: 804 with
two driver versions is an upgrade without a restart, 804 alone a compatibility library.
"""

from __future__ import annotations

from kit.gpu import causes
from kit.gpu.arch import dotted
from kit.gpu.case import Case, Diagnosis, say
from kit.gpu.compat import parse_driver
from kit.gpu.masks import mask_problem

_LIBCUDA = "ldconfig -p | grep libcuda.so"


def wrong_vendor(case: Case) -> Diagnosis | None:
    torch = case.facts.torch
    if torch and torch.hip:
        what = f"this torch is built for AMD ROCm ({torch.hip})"
        return say("other", "rocm_build", f"{what}; it answers torch.cuda calls, but on no NVIDIA GPU")
    return None


def forced_jit(case: Case) -> Diagnosis | None:
    proof, value = case.facts.proof, case.facts.environment.get("CUDA_FORCE_PTX_JIT", "0")
    if proof is not None and not proof.ran and value not in ("", "0"):
        why = "it hides all native code, and the libraries have no PTX"
        return say("other", "force_ptx_jit", f"CUDA_FORCE_PTX_JIT={value} is set: {why}")
    return None


def installer(case: Case) -> Diagnosis | None:
    if "pip_found_nothing" not in case.symptoms:
        return None
    because = "pip found no torch of that version for this Python and platform on the index that it asked"
    return say("other", "pip_found_nothing", because, ask="python -V")


def cpu_build(case: Case) -> Diagnosis | None:
    torch, facts = case.facts.torch, case.facts
    if "cpu_build" not in case.symptoms and not (torch and torch.is_cpu_build):
        return None
    if facts.source != "text" and facts.has_nvidia_device is False and not case.gpus:
        because = "this machine shows no NVIDIA device, and the torch build has no CUDA either"
        return say("no_driver_or_no_gpu", "no_gpu", because)
    version = torch.version if torch and torch.version else "this torch"
    because = [f"{version} is built without CUDA" + (f"; the driver sees {case.gpus[0].name}" if case.gpus else "")]
    if any(name.startswith("nvidia-cuda-runtime") for name in facts.packages):
        because.append("CUDA runtime packages are left behind: a later install replaced a CUDA build")
    return say("cpu_only_build", "cpu_build", *because)


def changed_driver(case: Case) -> Diagnosis | None:
    driver = case.facts.driver
    if driver and driver.libcuda == "compat":
        return None
    library, kernel = (driver.library_version, driver.kernel_version) if driver else (None, None)
    differ = bool(library and kernel and parse_driver(library) != parse_driver(kernel))
    if "nvml_mismatch" not in case.symptoms and not (differ and case.is_available is not True):
        return None
    shown = f" (library {library}, kernel module {kernel})" if differ else ""
    what = f"the driver's library and its loaded kernel module have different versions{shown}"
    return say("other", "reboot", f"{what}: it was upgraded and the machine not restarted")


def compat(case: Case) -> Diagnosis | None:
    if "compat_refused" in case.symptoms:
        because = "error 804: a CUDA compatibility library stands before the driver's own, and this GPU forbids that"
        return say("forward_compat_mismatch", "compat", because, ask=_LIBCUDA)
    if "driver_mismatch" not in case.symptoms:
        return None
    because = "error 803: the libcuda that was loaded does not fit the kernel module of the driver"
    is_loaded = bool(case.facts.driver and case.facts.driver.libcuda == "compat")
    is_named = any("compat" in text.lower().replace("forward compatib", "") for text in case.facts.messages)
    if is_loaded or is_named:
        because += "; a compatibility library (cuda-compat) stands before the driver's own"
        return say("forward_compat_mismatch", "compat", because, confidence="medium", ask=_LIBCUDA)
    command = f"{_LIBCUDA}; cat /proc/driver/nvidia/version"
    return say("other", "libcuda_mismatch", because, confidence="medium", ask=command)


def driver_said_too_old(case: Case) -> Diagnosis | None:
    if "driver_too_old" in case.symptoms:
        says = f" (it supports CUDA up to {dotted(case.driver_cuda)})" if case.driver_cuda else ""
        because = f"CUDA says that the driver{says} is too old for the CUDA that this build uses"
        return say("driver_too_old_for_runtime", "driver_too_old", because)
    if "ptx_unsupported" in case.symptoms:
        because = "a driver cannot compile PTX of a toolkit newer than its own; ready-made code would run"
        return say("driver_too_old_for_runtime", "ptx_too_new", because, ask="nvidia-smi")
    return None


def absent(case: Case) -> Diagnosis | None:
    facts, word = case.facts, "no_driver_or_no_gpu"
    is_said = "no_driver" in case.symptoms or facts.nvidia_smi_exit_code == 9
    is_seen = facts.source != "text" and facts.has_nvidia_device is False and not case.gpus
    if not (is_said or is_seen) or case.is_available or case.symptoms & {"gpu_lost", "uvm_unreadable"}:
        return None
    if facts.driver and facts.driver.gpus and "no_driver" not in case.symptoms:
        return None
    if facts.platform.is_container and facts.source != "text":
        because = "the container has no NVIDIA driver libraries or devices: it was started without the GPU"
        return say(word, "container", because, ask="nvidia-smi")
    because = "no NVIDIA driver answers on this machine"
    if facts.has_nvidia_device:
        because = "an NVIDIA device is there, but no driver answers for it"
    if facts.platform.is_wsl:
        return say(word, "wsl", f"{because} (WSL uses the Windows driver)", ask="nvidia-smi")
    return say(word, "no_driver", because, ask="nvidia-smi")


def by_table(case: Case) -> Diagnosis | None:
    """The errors that speak for themselves; the first of the table that is there decides."""
    lacks = any(held.how == "none" for _, _, held in case.holdings)
    for cause in causes.CAUSES:
        if cause.symptom in case.symptoms and (cause.is_certain or not lacks):
            return say("other", cause.name, cause.because, confidence=cause.confidence, ask=cause.ask)
    return None


def masked(case: Case) -> Diagnosis | None:
    facts = case.facts
    hidden = case.symptoms & {"no_cuda_gpus", "bad_ordinal", "no_device"}
    is_dark = hidden or case.is_available is False or (facts.torch and facts.torch.device_count == 0)
    if not is_dark:
        return None
    gpus, value = facts.driver.gpus if facts.driver else (), facts.environment.get("CUDA_VISIBLE_DEVICES")
    problem = mask_problem(value, len(gpus) or None, [gpu.uuid for gpu in gpus])
    if value is not None and (problem or hidden):
        why = problem or "none of the devices it names is there"
        return say("visible_devices_masked", "mask", f"CUDA_VISIBLE_DEVICES={value!r}: {why}")
    if facts.environment.get("NVIDIA_VISIBLE_DEVICES") in ("void", "none") and not case.gpus:
        return say("no_driver_or_no_gpu", "container", "NVIDIA_VISIBLE_DEVICES lets no GPU into this container")
    if hidden and facts.nvidia_smi_exit_code == 127:
        because = "CUDA found no device, and no NVIDIA driver shows on this machine"
        return say("no_driver_or_no_gpu", "no_driver", because, ask="nvidia-smi")
    if "no_cuda_gpus" in hidden:
        because = "CUDA started and found no device: usually CUDA_VISIBLE_DEVICES names none that exists"
        command = "echo $CUDA_VISIBLE_DEVICES; nvidia-smi -L"
        return say("visible_devices_masked", "mask", because, confidence="medium", ask=command)
    if "no_device" in hidden:
        because = "the driver answers, but it shows CUDA no device"
        return say("no_driver_or_no_gpu", "no_device", because, confidence="medium", ask="nvidia-smi -L")
    if "bad_ordinal" in hidden:
        because = "the program asks for a device number that does not exist here"
        return say("visible_devices_masked", "mask", because, confidence="low", ask="nvidia-smi -L")
    return None

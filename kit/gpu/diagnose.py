"""One word for the state of a machine, with the reason, from its facts alone.

The rules stand in the order in which they are asked. What a run showed comes first,
then what an error says, then what follows from versions. A rule that cannot know says
nothing; where none speaks, the answer is that it cannot be told, and what would tell.
"""

from __future__ import annotations

from collections.abc import Callable

from kit.gpu import causes
from kit.gpu.arch import Capability, dotted, is_tegra_capability
from kit.gpu.build import platform_of, variant_of
from kit.gpu.case import ASK_ALL, Case, Diagnosis
from kit.gpu.compat import driver_floor, driver_runs, parse_driver, text_of
from kit.gpu.facts import MachineFacts
from kit.gpu.masks import mask_problem
from kit.gpu.messages import CONTEXT


def diagnose(facts: MachineFacts) -> Diagnosis:
    case = Case(facts)
    for rule in RULES:
        found = rule(case)
        if found is not None:
            return found
    raise AssertionError("the last rule always answers")


# --- what a run showed ---------------------------------------------------------------


def _wrong_vendor(case: Case) -> Diagnosis | None:
    torch = case.facts.torch
    if torch and torch.hip:
        because = f"this torch is built for AMD ROCm ({torch.hip}); it answers torch.cuda calls, but on no NVIDIA GPU"
        return Diagnosis("other", "high", "rocm_build", (because,))
    return None


def _run(case: Case) -> Diagnosis | None:
    proof = case.facts.proof
    if proof is None or proof.device == "cpu" or not proof.ran:
        return None
    if (
        proof.max_relative_error is not None
        and proof.limit is not None
        and proof.max_relative_error > proof.limit
    ):
        because = f"the kernel ran, but its numbers are off by {proof.max_relative_error:.2g} (limit {proof.limit:.2g})"
        return Diagnosis("other", "high", "wrong_numbers", (because,))
    if proof.ran_without_ptx_jit is False:
        because = "the kernel ran, but not with PTX JIT switched off: the driver compiled it on this machine"
        return Diagnosis("ptx_jit_only", "high", "ptx", (because,))
    return Diagnosis("ok", "high", "ran", ("a real kernel ran on the GPU and its numbers are right",))


def _forced_jit(case: Case) -> Diagnosis | None:
    proof = case.facts.proof
    value = case.facts.environment.get("CUDA_FORCE_PTX_JIT", "0")
    if proof is not None and not proof.ran and value not in ("", "0"):
        because = (
            f"CUDA_FORCE_PTX_JIT={value} is set: it hides all native code, and the libraries have no PTX"
        )
        return Diagnosis("other", "high", "force_ptx_jit", (because,))
    return None


# --- what an error says --------------------------------------------------------------


def _installer(case: Case) -> Diagnosis | None:
    if "pip_found_nothing" in case.symptoms:
        because = "pip found no torch of that version for this Python and platform on the index that it asked"
        return Diagnosis("other", "high", "pip_found_nothing", (because,), "python -V")
    return None


def _cpu_build(case: Case) -> Diagnosis | None:
    torch = case.facts.torch
    if "cpu_build" not in case.symptoms and not (torch and torch.is_cpu_build):
        return None
    if case.facts.source != "text" and case.facts.has_nvidia_device is False and not case.gpus:
        because = "this machine shows no NVIDIA device, and the torch build has no CUDA either"
        return Diagnosis("no_driver_or_no_gpu", "high", "no_gpu", (because,))
    version = torch.version if torch and torch.version else "this torch"
    seen = f"; the driver sees {case.gpus[0].name}" if case.gpus else ""
    because = [f"{version} is built without CUDA{seen}"]
    if any(name.startswith("nvidia-cuda-runtime") for name in case.facts.packages):
        because.append(
            "CUDA runtime packages are left in the environment: a later install replaced a CUDA build"
        )
    return Diagnosis("cpu_only_build", "high", "cpu_build", tuple(because))


def _by_table(case: Case) -> Diagnosis | None:
    """The errors that speak for themselves; the first of the table that is there decides."""
    for cause in causes.CAUSES:
        if cause.symptom in case.symptoms:
            if not cause.is_certain and any(held.how == "none" for _, _, held in case.holdings):
                continue
            because = cause.because
            return Diagnosis(cause.word, cause.confidence, cause.name, (because,), cause.ask)
    return None


def _changed_driver(case: Case) -> Diagnosis | None:
    driver = case.facts.driver
    library, kernel = (driver.library_version, driver.kernel_version) if driver else (None, None)
    differ = bool(library and kernel and parse_driver(library) != parse_driver(kernel))
    if driver and driver.libcuda == "compat":
        return None
    if "nvml_mismatch" in case.symptoms or (differ and case.is_available is not True):
        shown = f" (library {library}, kernel module {kernel})" if differ else ""
        because = f"the driver's library and its loaded kernel module have different versions{shown}: "
        return Diagnosis(
            "other", "high", "reboot", (because + "it was upgraded and the machine not restarted",)
        )
    return None


def _compat(case: Case) -> Diagnosis | None:
    seen = case.symptoms & {"compat_refused", "driver_mismatch"}
    if not seen:
        return None
    is_compat = bool(case.facts.driver and case.facts.driver.libcuda == "compat")
    is_named = any("compat" in text.lower().replace("forward compatib", "") for text in case.facts.messages)
    if "compat_refused" in seen:
        because = "error 804: a CUDA compatibility library stands before the driver's own, and this GPU does not allow it"
        return Diagnosis(
            "forward_compat_mismatch", "high", "compat", (because,), "ldconfig -p | grep libcuda.so"
        )
    because = "error 803: the libcuda that was loaded does not fit the kernel module of the driver"
    if is_compat or is_named:
        because += "; a compatibility library (cuda-compat) stands before the driver's own"
        return Diagnosis(
            "forward_compat_mismatch", "medium", "compat", (because,), "ldconfig -p | grep libcuda.so"
        )
    return Diagnosis(
        "other",
        "medium",
        "libcuda_mismatch",
        (because,),
        "ldconfig -p | grep libcuda.so; cat /proc/driver/nvidia/version",
    )


def _driver_too_old_said(case: Case) -> Diagnosis | None:
    if not case.symptoms & {"driver_too_old", "ptx_unsupported"}:
        return None
    if "driver_too_old" in case.symptoms:
        cuda = case.driver_cuda
        says = f" (it supports CUDA up to {dotted(cuda)})" if cuda else ""
        because = f"CUDA says that the driver{says} is too old for the CUDA that this build uses"
        return Diagnosis("driver_too_old_for_runtime", "high", "driver_too_old", (because,))
    because = "PTX made by a newer toolkit than the driver's own cannot be compiled by it; ready-made code would run"
    return Diagnosis("driver_too_old_for_runtime", "high", "ptx_too_new", (because,), "nvidia-smi")


def _absent(case: Case) -> Diagnosis | None:
    facts = case.facts
    is_said = bool(case.symptoms & {"no_driver"}) or facts.nvidia_smi_exit_code == 9
    is_live_none = facts.source != "text" and facts.has_nvidia_device is False and not case.gpus
    if not (is_said or is_live_none) or case.is_available:
        return None
    if facts.driver and facts.driver.gpus and "no_driver" not in case.symptoms:
        return None
    if facts.platform.is_container and facts.source != "text":
        because = "the container has no NVIDIA driver libraries or devices: it was started without the GPU"
        return Diagnosis("no_driver_or_no_gpu", "high", "container", (because,), "nvidia-smi")
    because = "no NVIDIA driver answers on this machine"
    if facts.has_nvidia_device:
        because = "an NVIDIA device is there, but no driver answers for it"
    if facts.platform.is_wsl:
        return Diagnosis(
            "no_driver_or_no_gpu", "high", "wsl", (because + " (WSL uses the Windows driver)",), "nvidia-smi"
        )
    return Diagnosis("no_driver_or_no_gpu", "high", "no_driver", (because,), "nvidia-smi")


def _masked(case: Case) -> Diagnosis | None:
    facts = case.facts
    hidden = case.symptoms & {"no_cuda_gpus", "bad_ordinal", "no_device"}
    is_dark = hidden or case.is_available is False or (facts.torch and facts.torch.device_count == 0)
    value = facts.environment.get("CUDA_VISIBLE_DEVICES")
    count = len(facts.driver.gpus) if facts.driver and facts.driver.gpus else None
    problem = mask_problem(value, count, [gpu.uuid for gpu in facts.driver.gpus] if facts.driver else [])
    if value is not None and is_dark and (problem or hidden):
        why = problem or "none of the devices it names is there"
        return Diagnosis(
            "visible_devices_masked", "high", "mask", (f"CUDA_VISIBLE_DEVICES={value!r}: {why}",)
        )
    if facts.environment.get("NVIDIA_VISIBLE_DEVICES") in ("void", "none") and is_dark and not case.gpus:
        because = "NVIDIA_VISIBLE_DEVICES lets no GPU into this container"
        return Diagnosis("no_driver_or_no_gpu", "high", "container", (because,))
    if "no_cuda_gpus" in hidden:
        because = "CUDA started and found no device: usually CUDA_VISIBLE_DEVICES names none that exists"
        return Diagnosis(
            "visible_devices_masked",
            "medium",
            "mask",
            (because,),
            "echo $CUDA_VISIBLE_DEVICES; nvidia-smi -L",
        )
    if "no_device" in hidden:
        because = "the driver answers, but it shows CUDA no device"
        return Diagnosis("no_driver_or_no_gpu", "medium", "no_device", (because,), "nvidia-smi -L")
    if "bad_ordinal" in hidden:
        because = "the program asks for a device number that does not exist here"
        return Diagnosis("visible_devices_masked", "low", "mask", (because,), "nvidia-smi -L")
    return None


# --- what follows from versions ------------------------------------------------------


def _build_lacks(case: Case) -> Diagnosis | None:
    """The build against each GPU; one that it does not serve decides, whatever the others say."""
    bad = [(gpu, capability, held) for gpu, capability, held in case.holdings if held.how in ("none", "ptx")]
    bad = [row for row in bad if not _jetpack_runs(case, row[1])]
    if not bad:
        return None
    gpu, capability, held = min(bad, key=lambda row: row[2].how != "none")
    confidence = (
        "high" if held.source in ("list", "range") else "medium" if case.is_available is None else "high"
    )
    because = (f"{gpu.name or 'the GPU'} (compute capability {dotted(capability)}): {held.reason}",)
    if held.how == "ptx":
        return Diagnosis("ptx_jit_only", confidence, "ptx", because)
    if held.is_too_old:
        return Diagnosis("gpu_too_old_dropped", confidence, "too_old", because)
    return Diagnosis("arch_missing_from_build", confidence, "arch_missing", because)


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
    is_old = capability < (7, 5)
    because = f"torch says that it has no code for {gpu.name} (compute capability {dotted(capability)}); its list is not there"
    word = "gpu_too_old_dropped" if is_old else "arch_missing_from_build"
    return Diagnosis(
        word, "high" if not is_old else "medium", "too_old" if is_old else "arch_missing", (because,), _LIST
    )


_LIST = 'python -c "import torch; print(torch.__version__, torch.cuda.get_arch_list())"'


def _driver_too_old(case: Case) -> Diagnosis | None:
    variant, version = variant_of(case.facts.torch), case.driver_version
    if not variant or case.is_available:
        return None
    runs = driver_runs(variant, version, case.system, driver_cuda=case.driver_cuda)
    if runs is not False:
        return None
    floor = driver_floor(variant, case.system)
    shown = version or (f"with CUDA {dotted(case.driver_cuda)}" if case.driver_cuda else "")
    needed = f"{text_of(floor)} or newer" if floor else "a newer one"
    because = f"{variant} needs driver {needed} ({case.system}); the driver here is {shown}"
    return Diagnosis("driver_too_old_for_runtime", "high", "driver_too_old", (because,))


def _no_kernel(case: Case) -> Diagnosis | None:
    """'no kernel image': torch's own build where it is known to lack the code, an extension's where torch has it."""
    if not case.symptoms & {"no_kernel", "library_arch"}:
        return None
    if case.holdings and all(held.how in ("native", "possible") for _, _, held in case.holdings):
        gpu, _, held = case.holdings[0]
        because = (
            f"torch itself has code for {gpu.name} ({held.reason}), so another package or kernel lacks it"
        )
        return Diagnosis(
            "other", "high" if held.how == "native" else "medium", "extension", (because,), "pip list"
        )
    known = [capability for _, capability, _ in case.holdings]
    if known and max(known) < (3, 7):
        because = f"no torch 2.x build has code for compute capability {dotted(max(known))}"
        return Diagnosis("gpu_too_old_dropped", "high", "too_old", (because,))
    if known and max(known) < (7, 5):
        because = f"the kernels do not hold code for {dotted(max(known))}, which newer builds left out"
        return Diagnosis("gpu_too_old_dropped", "medium", "too_old", (because,), _LIST)
    if "extension_named" in case.symptoms:
        because = "the error comes from a package beside torch, and that package is not built for this GPU"
        return Diagnosis("other", "medium", "extension", (because,), _LIST)
    if "new_error_class" in case.symptoms:
        because = (
            "torch 2.8 and later raise this error, and their builds have code for every GPU from 7.5 on: "
        )
        because += "either the GPU is older, or another package lacks its code"
        return Diagnosis("other", "low", "extension", (because,), ASK_ALL)
    because = "the code that was called is not built for this GPU; most often that is torch itself, else an extension"
    return Diagnosis(
        "arch_missing_from_build", "medium" if known else "low", "arch_missing", (because,), _LIST
    )


def _windows_default(case: Case) -> Diagnosis | None:
    torch = case.facts.torch
    if not (
        torch
        and torch.version
        and torch.is_available is False
        and torch.cuda is None
        and "+" not in torch.version
    ):
        return None
    if platform_of(case.facts) == "windows_x86_64":
        because = f"torch {torch.version} without a CUDA tag on Windows is PyPI's build, which has no CUDA"
        return Diagnosis("cpu_only_build", "medium", "cpu_build", (because,), _LIST)
    return None


def _dark(case: Case) -> Diagnosis | None:
    """CUDA is not available and no error tells why."""
    facts = case.facts
    if case.is_available is not False:
        return None
    is_gone = facts.nvidia_smi_exit_code == 127
    if variant_of(facts.torch) is None and not is_gone:
        because = "CUDA is not available, and whether this torch is a CUDA build is not known"
        return Diagnosis("other", "low", "unknown", (because,), _LIST)
    if is_gone or not (case.gpus or case.driver_version):
        sure = "high" if is_gone or facts.has_nvidia_device is False else "medium"
        because = "the build has CUDA, CUDA is not available, and no NVIDIA driver or GPU shows"
        return Diagnosis("no_driver_or_no_gpu", sure, "no_driver", (because,), "nvidia-smi")
    because = (
        "build, driver and GPU fit together, yet CUDA is not available; the error itself is not in the facts"
    )
    return Diagnosis(
        "other", "low", "unknown_start", (because,), 'python -c "import torch; torch.cuda.init()"'
    )


def _fine(case: Case) -> Diagnosis | None:
    """Nothing failed, and what is known fits together."""
    failed = case.symptoms - CONTEXT
    hows = {held.how for _, _, held in case.holdings}
    if failed or (case.facts.proof and case.facts.proof.device != "cpu" and not case.facts.proof.ran):
        return None
    because = tuple(f"{gpu.name or 'GPU'}: {held.reason}" for gpu, _, held in case.holdings[:1])
    if "arch_warning" in case.symptoms:
        because += (
            "torch's own warning is a false alarm here: code of the same generation runs on this GPU",
        )
    if any(_jetpack_runs(case, capability) and held.how == "none" for _, capability, held in case.holdings):
        because = ("the rule says no, but this JetPack has been seen to run such code; only a run decides",)
        return Diagnosis("ok", "medium", "fits", because, "python -m kit check")
    if case.is_available:
        variant = variant_of(case.facts.torch)
        if variant and driver_runs(variant, case.driver_version, case.system) is False:
            because += (
                "the driver is older than the build asks for, and CUDA is available: forward compatibility",
            )
        return Diagnosis("ok", "high", "fits", because or ("CUDA is available, and nothing contradicts it",))
    if hows == {"native"}:
        return Diagnosis("ok", "medium", "fits", because, "python -m kit check")
    return None


def _unknown(case: Case) -> Diagnosis:
    if case.facts.source != "text" and case.facts.torch is None:
        return Diagnosis("other", "high", "no_torch", ("torch is not installed in this interpreter",))
    if case.symptoms:
        because = "CUDA does not work, and the facts do not tell why"
        return Diagnosis("other", "low", "unknown", (because,), ASK_ALL)
    return Diagnosis("other", "low", "unknown", ("nothing here tells whether the GPU is usable",), ASK_ALL)


RULES: tuple[Callable[[Case], Diagnosis | None], ...] = (
    _wrong_vendor,
    _run,
    _forced_jit,
    _installer,
    _cpu_build,
    _changed_driver,
    _compat,
    _driver_too_old_said,
    _by_table,
    _absent,
    _masked,
    _build_lacks,
    _warned_without_list,
    _driver_too_old,
    _no_kernel,
    _windows_default,
    _dark,
    _fine,
    _unknown,
)

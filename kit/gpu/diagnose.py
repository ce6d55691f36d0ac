"""One word for the state of a machine, with the reason, from its facts alone.

The rules stand in the order in which they are asked. What a run showed comes first,
then what an error says, then what follows from versions. A rule that cannot know says
nothing; where none speaks, the answer is that it cannot be told, and what would tell.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence

from kit.gpu.compat import Capability, driver_floor, driver_runs, is_tegra_capability, parse_driver, text_of
from kit.gpu.facts import Gpu, MachineFacts
from kit.gpu.specs import possible_capabilities
from kit.gpu.wheels import Holding, holding, platform_of, variant_of
from kit.units import cuda_pair, dotted

# What an error text of CUDA, the driver, torch or pip says, as one word.
#
# The signatures are the fixed texts of those programs (driver_types.h, nvml.h,
# torch/cuda/__init__.py, pip), with the number and the name of the error where they have
# one. A word here is a symptom; what caused it is for `kit.gpu.diagnose` to say.

# Lower case, matched against lower-case text with single spaces. The order is that of the report.
_SIGNATURES: tuple[tuple[str, str], ...] = (
    ("cpu_build", r"not compiled with cuda (?:enabled|support)|not (?:compiled|built) with cuda"),
    (
        "driver_too_old",
        r"nvidia driver on your system is too old|driver version is insufficient for cuda runtime"
        r"|cudaerrorinsufficientdriver|\b(?:cuda )?error 35\b|api call is not supported in the installed "
        r"cuda driver"
        r"|cudaerrorcallrequiresnewerdriver|requires? a newer nvidia driver",
    ),
    (
        "ptx_unsupported",
        r"ptx was compiled with an unsupported "
        r"toolchain|cudaerrorunsupportedptxversion|unsupported_ptx_version"
        r"|unsupported ptx version",
    ),
    (
        "compat_refused",
        r"forward compatibility was attempted on non supported|\berror 804\b|compatnotsupportedondevice"
        r"|compat_not_supported_on_device",
    ),
    (
        "driver_mismatch",
        r"unsupported display driver ?/ ?cuda driver combination|\berror 803\b|systemdrivermismatch"
        r"|system_driver_mismatch",
    ),
    ("system_not_ready", r"system not yet initialized|\berror 802\b|systemnotready|system_not_ready"),
    ("nvml_mismatch", r"driver/library version mismatch"),
    ("nvml_error", r"failed to initialize nvml|can't initialize nvml|nvml: unknown error"),
    (
        "unknown_error",
        r"cuda unknown error|\bcuda_error_unknown\b|\bcudaerrorunknown\b|cuda error:? unknown "
        r"error|\berror 999\b"
        r"|cuinit\W{0,3}(?:0\)?\W{0,3})?(?:rc|returned|failed|result|code|->|=)?\W{0,3}999\b",
    ),
    (
        "uvm_unreadable",
        r"nvidia-uvm\b[^.;]{0,40}\b(?:fail(?:ed|s)?|eio|errno|input/output error|cannot be opened)",
    ),
    (
        "stub",
        r"driver is a stub library|cudaerrorstublibrary|cuda_error_stub_library|\bcuda error 34\b|\berror "
        r"34:",
    ),
    ("busy", r"cuda-capable devices are busy or unavailable|cudaerrordevicesunavailable|\berror 46\b"),
    (
        "gpu_lost",
        r"\bgpu is lost\b|fallen off the bus|gpu requires reset|nvrm: xid|unable to determine the device "
        r"handle",
    ),
    ("start_out_of_memory", r"cudagetdevicecount\(\).{0,160}error 2: out of memory"),
    ("triton_too_old", r"too old to be supported by the triton"),
    (
        "compiler_lacks_arch",
        r"is not defined for option 'gpu-name'|unsupported gpu architecture 'compute_|is not a recognized "
        r"processor"
        r"|invalid value for --gpu-architecture|ptxas fatal|nvcc fatal",
    ),
    ("library_arch", r"(?:cublas|cudnn|cusparse|cusolver)_status_arch_mismatch"),
    (
        "extension_gpu",
        r"flashattention only supports|only supports (?:ampere|hopper|turing|ada)\w{0,10} gpus|flash "
        r"attention "
        r"only supports"
        r"|bfloat16 is only supported on gpus with compute capability",
    ),
    (
        "broken_libraries",
        r"error loading [^.]{0,200}\.dll|\bc10_cuda\.dll|winerror 12[67]\b"
        r"|lib(?:cudart|cublas\w{0,9}|cudnn\w{0,30}|nvrtc|nccl|cusparse\w{0,9}|nvjitlink|cufft|curand|cupti)"
        r"[\w.\-]{0,20}: cannot open shared"
        r"|undefined symbol:? \w{0,80}?(?:nvjitlink|nccl|cublas|cudnn|cuda)",
    ),
    (
        "pip_found_nothing",
        r"no matching distribution found for (?:torch|pytorch)\b|satisfies the requirement torch\b"
        r"|torch\S{0,120}\.whl is not a supported wheel on this platform|because torch\S{0,40} has no "
        r"wheels with a "
        r"matching",
    ),
    (
        "library_error",
        r"(?:cudnn|cublas)_status_(?:not_initialized|alloc_failed|execution_failed|mapping_error|internal_error)"
        r"|unable to find an engine to execute",
    ),
    ("bad_image", r"device kernel image is invalid|invalidkernelimage"),
    (
        "no_kernel",
        r"no kernel image is available|nokernelimagefordevice|no_binary_for_gpu|\bno kernel image for "
        r"execution\b",
    ),
    (
        "toolkit_mismatch",
        r"detected cuda version .{0,24}mismatches the version that was used to compile|cuda_home "
        r"environment variable is not set",
    ),
    (
        "arch_warning",
        r"with cuda capability sm_\d+ is not compatible|no longer supports this gpu because it is too old"
        r"|minimum and maximum cuda capability supported by this|shows the ccs this version of pytorch "
        r"was built for"
        r"|does not include kernels for this gpu|cuda builds for release \S{1,30} support this gpu",
    ),
    (
        "no_driver",
        r"found no nvidia driver|couldn't communicate with the nvidia driver"
        r"|nvidia-smi: (?:command )?not found|nvidia-smi: no such file|'?nvidia-smi'? is not recognized"
        r"|libcuda\.so(?:\.1)?['\"]?: cannot open shared|could not load dynamic library 'libcuda"
        r"|nvml shared library not found|libnvidia-ml\.so(?:\.1)?: cannot open shared"
        r"|no nvidia (?:gpu|driver|device)s? (?:was |were )?(?:found|detected)"
        r"|could not select device driver .{0,20}with capabilities: \[\[gpu"
        r"|cuda driver (?:library )?(?:was )?not found"
        r"|cuda driver initialization failed, you might not have a cuda gpu",
    ),
    (
        "no_device",
        r"no cuda-capable device is detected|cudaerrornodevice|cuda_error_no_device|\berror 100\b|\bno "
        r"devices were found",
    ),
    ("no_cuda_gpus", r"no cuda gpus are available"),
    ("bad_ordinal", r"invalid device ordinal|\berror 101\b|cudaerrorinvaliddevice\b"),
    (
        "start_failed",
        r"unexpected error from cudagetdevicecount|cuda initialization error|cudaerrorinitializationerror",
    ),
    (
        "extension_named",
        r"(?:bitsandbytes|flash[_-]attn|xformers|mmcv|detectron2|pytorch3d|nvdiffrast|tinycudann|tiny-cuda-nn|spconv|gsplat"
        r"|minkowski|sageattention|deepspeed|\bapex\b|causal_conv1d|mamba_ssm|onnxruntime|tensorrt|llama[._-]cpp|\bggml\b"
        r"|\bcupy\b|diff_gaussian|torchvision|torchaudio|vllm[/_]\w{0,20}\.so|exllama|fbgemm|ctranslate2)"
        r"[^|]{0,120}no kernel image",
    ),
    ("smi_err", r"cuda (?:umd )?version: err!"),
    # torch 2.8 and later raise this class (pytorch#152023); before, it was RuntimeError
    ("new_error_class", r"\btorch\.acceleratorerror\b"),
    (
        "fell_back_to_cpu",
        r"(?:switching|falling back|fallback|defaulting) to (?:the )?'?cpu\b|running on (?:the )?cpu instead",
    ),
)
# Not failures by themselves: they date or qualify another message.
CONTEXT = frozenset({"arch_warning", "new_error_class", "fell_back_to_cpu", "extension_named"})


@functools.cache
def _compiled() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((kind, re.compile(pattern)) for kind, pattern in _SIGNATURES)


def symptoms(texts: Iterable[str]) -> tuple[str, ...]:
    """The symptoms that `texts` name, in the order of this table."""
    joined = " \n ".join(" ".join(text.split()) for text in texts).lower().replace("’", "'")
    return tuple(kind for kind, pattern in _compiled() if pattern.search(joined))


def excerpts(flat: str, *, width: int = 200) -> tuple[str, ...]:
    """The sentence around each symptom's first place in `flat` (one line, single spaces), in order of
    place."""
    lowered, found = flat.lower().replace("’", "'"), {}
    if not any(word in lowered for word in ("cuda", "nvidia", "torch", "gpu", "nvml", "xid", ".dll", "nvcc")):
        return ()
    for _, pattern in _compiled():
        match = pattern.search(lowered)
        if match:
            start = _start(lowered, match.start(), width // 2)
            end = min(len(flat), max(match.end(), start + width))
            found.setdefault(start, flat[start:end].strip())
    return tuple(found[start] for start in sorted(found))


def _start(text: str, place: int, reach: int) -> int:
    """The beginning of the sentence that holds `place`, or of a word, not more than `reach` before it."""
    low = max(0, place - reach)
    ends = [
        found + len(mark) for mark in (". ", "error: ", "warning: ") if (found := text.rfind(mark, low, place)) >= 0
    ]
    if ends:
        return max(ends)
    return 0 if low == 0 else min(place, text.find(" ", low, place) + 1 or place)


def found_cuda_version(texts: Iterable[str]) -> tuple[int, int] | None:
    """The driver's CUDA from torch's 'found version 12080': (12, 8)."""
    for text in texts:
        match = re.search(r"found version\s{0,3}(\d{4,5})\b", text)
        if match:
            return cuda_pair(int(match[1]))
    return None


# What CUDA makes of CUDA_VISIBLE_DEVICES: indices or UUID prefixes up to the first that does not exist.


def mask_problem(value: str | None, count: int | None, uuids: Sequence[str | None] = ()) -> str | None:
    """Why this value leaves no device, in words; None where it leaves some, or where that cannot be told.

    count: how many GPUs the driver lists, None where unknown. ' 0' with a space is valid.
    Source: CUDA C++ Programming Guide, environment variables.
    """
    if value is None:
        return None
    tokens = [token.strip() for token in value.split(",")]
    if not value.strip():
        return "the empty value hides every GPU"
    if len(set(tokens)) < len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        return f"{twice!r} stands twice, and CUDA then shows no GPU"
    first = tokens[0]
    if first.lstrip("+").isdigit():
        if count is not None and int(first) >= count:
            return f"GPU {first} does not exist, the driver lists {count} (numbers start at 0)"
        return None
    if first.startswith(("GPU-", "MIG-")):
        known = [uuid for uuid in uuids if uuid]
        is_wrong = first.startswith("GPU-") and known and not any(uuid.startswith(first) for uuid in known)
        return f"no GPU has the UUID {first[:12]}…" if is_wrong else None
    return f"{first!r} is no GPU number or UUID, so every GPU is hidden"


# The facts of a machine with what every rule asks of them: symptoms, GPUs, what the build holds for each.
#
# Derived once and only from the facts; nothing is decided here.

DIAGNOSES = (
    "ok",
    "arch_missing_from_build",
    "driver_too_old_for_runtime",
    "cpu_only_build",
    "no_driver_or_no_gpu",
    "gpu_too_old_dropped",
    "ptx_jit_only",
    "forward_compat_mismatch",
    "visible_devices_masked",
    "other",
)
ASK_ALL = "python -m torch.utils.collect_env"
_INIT_ERRORS = {
    34: "stub",
    46: "busy",
    100: "no_device",
    101: "bad_ordinal",
    802: "system_not_ready",
    803: "driver_mismatch",
    804: "compat_refused",
    999: "unknown_error",
}


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """word: one of DIAGNOSES. confidence: 'high', 'medium' or 'low'. cause: finer than the word, for the
    remedy. ask: the one command whose output would settle what is open; empty where nothing is."""

    word: str
    confidence: str
    cause: str
    because: tuple[str, ...]
    ask: str = ""


def say(word: str, cause: str, *because: str, confidence: str = "high", ask: str = "") -> Diagnosis:
    return Diagnosis(word, confidence, cause, because, ask)


@dataclasses.dataclass(frozen=True)
class Case:
    """Facts with what the rules ask of them again and again."""

    facts: MachineFacts

    @functools.cached_property
    def symptoms(self) -> frozenset[str]:
        facts, texts = self.facts, list(self.facts.messages)
        for text in (
            facts.torch and facts.torch.error,
            facts.proof and facts.proof.error,
            facts.driver and facts.driver.nvml_error,
        ):
            if text:
                texts.append(text)
        found = set(symptoms(texts))
        if facts.driver and facts.driver.cuda_init_error in _INIT_ERRORS:
            found.add(_INIT_ERRORS[facts.driver.cuda_init_error])
        if facts.driver and facts.driver.libcuda == "stub":
            found.add("stub")
        if facts.driver and facts.driver.uvm_error:
            found.add("uvm_unreadable")
        if facts.xids:
            found.add("gpu_lost")
        return frozenset(found)

    @functools.cached_property
    def gpus(self) -> tuple[Gpu, ...]:
        """As torch sees them where it does, else as the driver lists them."""
        facts = self.facts
        return (facts.torch.gpus if facts.torch else ()) or (facts.driver.gpus if facts.driver else ())

    @functools.cached_property
    def holdings(self) -> tuple[tuple[Gpu, Capability, Holding], ...]:
        """What the build holds for each GPU whose capability is known or follows from its name."""
        found = []
        for gpu in self.gpus:
            capability = capability_of(gpu)
            if capability:
                found.append((gpu, capability, holding(self.facts, capability)))
        return tuple(found)

    @property
    def is_available(self) -> bool | None:
        return self.facts.torch.is_available if self.facts.torch else None

    @property
    def system(self) -> str:
        platform = self.facts.platform
        return "Windows" if platform.system == "Windows" or platform.is_wsl else "Linux"

    @property
    def driver_version(self) -> str | None:
        return self.facts.driver.version if self.facts.driver else None

    @property
    def driver_cuda(self) -> tuple[int, int] | None:
        return self.facts.driver.cuda_version if self.facts.driver else None


def capability_of(gpu: Gpu) -> Capability | None:
    """Stated, or by name. A name sold with several chips counts as its newest: what that one lacks, all
    lack."""
    return gpu.compute_capability or max(possible_capabilities(gpu.name), default=None)


# Errors that tell their cause by themselves: what each one means and what would confirm it.
#
# Sources: CUDA Runtime API cudaError values, NVIDIA Fabric Manager guide (802),
# pytorch#88639 and #115340 (999 with /dev/nvidia-uvm), NVIDIA forum threads on WSL.


@dataclasses.dataclass(frozen=True)
class Cause:
    """is_certain: whether it decides even where the torch build lacks code for the GPU."""

    symptom: str
    name: str
    because: str
    ask: str = ""
    confidence: str = "high"
    is_certain: bool = True


CAUSES: tuple[Cause, ...] = (
    Cause(
        "system_not_ready",
        "fabric_manager",
        "error 802: on machines with NVSwitch the fabric manager must run, in exactly the driver's version",
        "systemctl status nvidia-fabricmanager; nvidia-smi",
    ),
    Cause(
        "uvm_unreadable",
        "uvm",
        "/dev/nvidia-uvm cannot be opened: CUDA needs it, nvidia-smi does not, so nvidia-smi looks healthy",
        "ls -l /dev/nvidia-uvm",
    ),
    Cause(
        "stub",
        "stub",
        "the toolkit's stub libcuda (error 34) was loaded in place of the driver's: a stubs folder is in "
        "the loader path",
        "ldconfig -p | grep libcuda.so; echo $LD_LIBRARY_PATH",
    ),
    Cause(
        "gpu_lost",
        "gpu_lost",
        "the driver reports a GPU as lost or an Xid error: hardware or driver state",
        "nvidia-smi; dmesg | grep -i xid",
    ),
    Cause(
        "unknown_error",
        "uvm",
        "CUDA's start gave error 999 (unknown): most often /dev/nvidia-uvm cannot be used, after suspend "
        "or in a faulty host",
        """python -c "import os,ctypes; os.open('/dev/nvidia-uvm',2);
        print(ctypes.CDLL('libcuda.so.1').cuInit(0))\"""",
    ),
    Cause(
        "start_out_of_memory",
        "start_out_of_memory",
        "CUDA ran out of memory while it counted devices: host or WSL memory limits, not the build",
        "free -g; nvidia-smi",
    ),
    Cause(
        "busy",
        "busy",
        "the GPU is in exclusive mode and another process holds it (error 46)",
        "nvidia-smi -q -d COMPUTE",
    ),
    Cause(
        "smi_err",
        "driver_library",
        "nvidia-smi cannot ask the driver for its CUDA version (ERR!): the user-mode library does not fit",
        "nvidia-smi",
    ),
    Cause(
        "triton_too_old",
        "triton_too_old",
        "Triton, the compiler behind torch.compile, needs compute capability 7.0; eager torch is another matter",
        is_certain=False,
    ),
    Cause(
        "compiler_lacks_arch",
        "compiler_lacks_arch",
        "a compiler beside torch (ptxas, nvcc, NVRTC or LLVM) is older than this GPU and does not know its code",
        "ptxas --version",
        is_certain=False,
    ),
    Cause(
        "extension_gpu",
        "extension",
        "an extension package asks for a newer GPU generation than this one; torch itself is not the cause",
        is_certain=False,
    ),
    Cause(
        "broken_libraries",
        "broken_libraries",
        "torch's or an extension's CUDA libraries do not load: a later install replaced one of the "
        "packages, or files are missing",
        "pip list",
        is_certain=False,
    ),
    Cause(
        "toolkit_mismatch",
        "toolkit",
        "an extension is being compiled with another CUDA toolkit than torch's, or with none; torch "
        "itself is not the cause",
        "nvcc --version",
        is_certain=False,
    ),
    Cause(
        "library_error",
        "library_error",
        "cuBLAS or cuDNN could not start: mostly memory that is already full, else libraries of two "
        "versions in one process",
        "nvidia-smi",
        confidence="medium",
        is_certain=False,
    ),
    Cause(
        "bad_image",
        "bad_image",
        "the driver refuses the kernel image itself (error 200): driver and build disagree on its form",
        "nvidia-smi",
        confidence="medium",
        is_certain=False,
    ),
    Cause(
        "nvml_error",
        "driver_state",
        "NVML cannot start; CUDA may still work, or the driver is in a bad state",
        "nvidia-smi",
        confidence="medium",
        is_certain=False,
    ),
)


# Rules that read an error text or a setting: each names a diagnosis where the text decides, else says
# nothing.
#
# One message can have several causes. They are told apart by what else is known: 804 with
# two driver versions is an upgrade without a restart, 804 alone a compatibility library.

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
    for cause in CAUSES:
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
    wrong_vendor,
    _run,
    forced_jit,
    installer,
    cpu_build,
    changed_driver,
    compat,
    driver_said_too_old,
    absent,
    by_table,
    masked,
    _build_lacks,
    _warned_without_list,
    _driver_too_old,
    _no_kernel,
    _windows_default,
    _dark,
    _fine,
    _unknown,
)

"""What an error text of CUDA, the driver, torch or pip says, as one word.

The signatures are the fixed texts of those programs (driver_types.h, nvml.h,
torch/cuda/__init__.py, pip), with the number and the name of the error where they have
one. A word here is a symptom; what caused it is for `kit.gpu.diagnose` to say.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

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
            return int(match[1]) // 1000, int(match[1]) % 1000 // 10
    return None

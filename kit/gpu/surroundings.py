"""What a pasted text tells of the machine around torch: platform, environment variables, packages,
toolkit."""

from __future__ import annotations

import re

from kit.gpu.compat import parse_cuda
from kit.gpu.facts import Platform

# '=1', ': 1', "'] = '1'", '", "1"'
_SET_TO = (
    r"(?:['\"]?\s?\])?(?:\s?[=:]\s?|['\"],\s?)"
    r"(?:\"([^\"]{0,80})\"|'([^']{0,80})'|([^\s'\";,)]{0,80}))"
)
_ENV_NAMES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_FORCE_PTX_JIT",
    "CUDA_DISABLE_PTX_JIT",
    "CUDA_MPS_PIPE_DIRECTORY",
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
)


def first(text: str, *patterns: str) -> str | None:
    for pattern in patterns:
        match = re.search(pattern, text)
        if match:
            return match[1].strip()
    return None


def read_platform(flat: str, low: str) -> Platform:
    is_wsl = "microsoft-standard" in low or bool(re.search(r"\bwsl\s?2?\b", low))
    is_windows = bool(
        re.search(
            r"\b[a-z]:\\\\?(?!n\b)[\w>]|site-packages\\|microsoft windows|python "
            r"platform\W{1,3}windows|\bwin32\b|win_amd64",
            low,
        )
        or re.search(r"\bos\W{1,3}windows|windows (?:10|11)\b|\.venv\\|\bwddm\b|msc v\.\d{4}", low)
    )
    is_linux = bool(
        re.search(
            r"python "
            r"platform\W{1,3}linux|/(?:home|usr|opt|root|workspace|mnt)/|\blinux\b|ubuntu|debian|fedora|centos",
            low,
        )
    )
    is_tegra = bool(re.search(r"\btegra\b|\bjetson\b|\bjetpack\b|\bl4t\b|\bnvgpu\b", low)) or None
    system = "Linux" if is_wsl or (is_linux and not is_windows) else "Windows" if is_windows else None
    if is_tegra and system is None:
        system = "Linux"
    python = (
        re.search(r"python version\W{1,3}(\d)\.(\d{1,2})", low)
        or re.search(r"\bpython[\s:\-/]{0,3}v?(3)\.(\d{1,2})(?!\d)", low)
        or re.search(r"\bpython(3)(\d{1,2})\b|\bcp(3)(\d{1,2})-cp", low)
    )
    groups = [group for group in python.groups() if group] if python else []
    return Platform(
        system=system,
        machine="aarch64"
        if re.search(r"aarch64|\barm64\b|\bsbsa\b", low)
        else "x86_64"
        if re.search(r"x86_64|amd64", low)
        else None,
        os=first(flat, r"\bOS\s{0,3}:\s{0,3}([^\n|]{3,40}?)(?= GCC| Clang| Python| GPU | Is CUDA|\s{2}|$)"),
        python=(int(groups[0]), int(groups[1])) if len(groups) == 2 else None,
        is_wsl=is_wsl or None,
        is_container=bool(re.search(r"\bdocker\b|\bcontainer\b|/\.dockerenv|\bkubernetes\b|\bpodman\b", low)) or None,
        is_tegra=is_tegra,
        jetpack=first(
            low,
            r"jetpack\W{0,3}(\d(?:\.\d){0,2})",
            r"\bl4t\W{0,3}(r?\d{2}(?:\.\d){0,2})",
            r"# (r\d{2}) \(release\)",
        ),
    )


def read_environment(flat: str) -> dict[str, str]:
    """Values that the text sets: 'CUDA_VISIBLE_DEVICES=1', os.environ['…'] = '3'. Not a mere mention."""
    found = {}
    for name in _ENV_NAMES:
        match = re.search(name + _SET_TO, flat)
        if match:
            value = next((group for group in match.groups() if group is not None), "")
            if value.strip("<>()[]").lower() not in ("none", "null", "not set", "unset", "not", "n/a"):
                found[name] = value
    return found


def read_packages(low: str) -> dict[str, str]:
    """Packages whose build matters beside torch: 'name==1.2' or the two columns of pip list."""
    names = r"torchvision|torchaudio|triton|flash[_-]attn|xformers|bitsandbytes|vllm"
    names += r"|nvidia-cuda-runtime(?:-cu1\d)?"
    found = {}
    for name, version in re.findall(rf"\b({names})(?:==|\s{{1,40}})(\d[\w.+]{{1,30}})", low):
        found.setdefault(name.replace("_", "-"), version)
    return found


def read_nvcc(low: str) -> tuple[int, int] | None:
    text = first(low, r"compilation tools, release (\d{1,2}\.\d)", r"cuda runtime version\W{1,3}(\d{1,2}\.\d{1,2})")
    return parse_cuda(text) if text else None

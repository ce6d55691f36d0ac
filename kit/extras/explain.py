"""A pasted text, read and explained: what is wrong, how sure that is, what to do, and what it could not know."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from kit.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS
from kit.gpu.causes import Reading
from kit.gpu.compat import parse_driver
from kit.gpu.diagnose import Case, Diagnosis
from kit.gpu.facts import Driver, Gpu, MachineFacts, Platform, Torch
from kit.gpu.judge_machine import disagreements
from kit.gpu.remedy import Remedy, remedy_for
from kit.gpu.specs import possible_capabilities
from kit.show import plain
from kit.units import MiB, cuda_pair, pair

# GPU names out of a text: where programs print them first, and only then out of prose.
#
# A name is taken as it stands; what its chip is, `kit.gpu.specs` says. Where prose names
# several different chips, none is taken, since nothing tells which one is meant.

_CAPABILITY = r"(?:cuda|compute) capability (?:\(cc\) )?(\d{1,2})\.(\d)"
_FOUND = re.compile(r"found gpu(\d{1,2}) (.{2,80}?) which is of " + _CAPABILITY, re.I)
_WARNED = re.compile(r"(\S(?:.{0,100}?\S)?) with CUDA capability sm_(\d{1,2})(\d)\b")
_TRITON = re.compile(r"found (.{2,80}?) which is too old to be supported.{0,200}?cuda capability (\d{1,2})\.(\d)", re.I)

_MAKER = r"(?:(?:NVIDIA|GeForce|Tesla|Quadro|GRID)\s+){0,3}"
_SERIES = r"(?:RTX|GTX|GT|MX|Quadro|TITAN|Titan)(?:[ -]?(?:PRO )?[A-Z]?\d{1,4}(?:[MX]|[Tt][iI]|SUPER)?)?\b"
_DATA_CENTER = (
    r"(?:GH|GB|[ABHKLMPTV])\d{1,4}(?:[A-Z]{0,2}|[a-z])\b|NVS \d{3,4}\b|(?<=GeForce )\d{3}MX?\b|(?<=NVIDIA )\d{3}MX?\b"
)
_JETSON = r"Orin\b|Xavier\b|Thor\b|Tegra X\d|Jetson [A-Z]\w{1,12}(?: \w{1,12})?"
_SUFFIX = (
    r"[ -](?:Ti|TI|SUPER|Super|XP|Xp|RTX|[VXZ]|D|Black|Ada|Generation|Blackwell|Workstation|Server|Edition"
    r"|Laptop "
    r"GPU|Laptop|Max-Q|SFF|PCIE|PCIe|SXM\d?|NVL|HBM\d\w?|MIG|\d+g\.\d+gb|\d{1,3}GB|\d{3,4}|AC|DGXS|LS)\b"
    # a vGPU's profile: GRID T4-16Q, NVIDIA A40-48Q
    r"|-\d{1,2}[QCBA]\b|\s?\((?:Pascal|MIG)\)"
)
_CHIP = rf"{_MAKER}(?:{_SERIES}|{_DATA_CENTER}|{_JETSON})(?:{_SUFFIX}){{0,7}}(?:\.\.\.)?"
_CONTEXTS = (
    # nvidia-smi -L and collect_env: "GPU 0: NVIDIA …"
    re.compile(r"\bGPU[ #](\d{1,2})\s{0,2}[:=]\s{0,3}(?P<name>" + _CHIP + ")"),
    # nvidia-smi's table: "|   0  NVIDIA L40S   On  |"
    re.compile(r"\|\s{1,4}(\d{1,2})\s{1,6}(?P<name>" + _CHIP + ")"),
    # ultralytics: "CUDA:0 (NVIDIA …, 12288MiB)"; ComfyUI: "Device: cuda:0 NVIDIA … :"
    re.compile(r"\bcuda:(\d{1,2})\W{1,3}(?P<name>" + _CHIP + ")", re.I),
    # nvidia-smi --query-gpu=name,memory.total,compute_cap: one row
    re.compile(r"()(?P<name>" + _CHIP + r")\s?,\s?(?P<mib>\d{3,6})\s?MiB(?:\s?,\s?(?P<cap>\d{1,2}\.\d)\b)?"),
    # "GPU models and configuration: NVIDIA …" without numbers
    re.compile(r"GPU models and configuration\s?:?\s{0,3}()(?P<name>" + _CHIP + ")"),
    # "GPU: Tesla T4 (compute capability 7.5)", "Device name = …", "GPU NVIDIA A100", "GPU type: …"
    re.compile(
        r"\b(?:GPU|gpu|Device|device)(?:[ "
        r"_](?:name|type|model|NAME))?s?['\"]?(?:\s?[:=|]\s{0,3}|\s{1,2})['\"]?()(?P<name>"
        + _CHIP
        + r")(?:\s?\((?:compute capability|CC|sm_)?\s?(?P<cap>\d{1,2}\.\d)\))?"
    ),
    re.compile(r"Device:?\s(\d{1,2})\W{1,4}(?P<name>" + _CHIP + ")"),
)
_PROSE = re.compile(r"(?<![\w/.\-])" + _CHIP)
# "a 5090", "my 4070 Ti": the number alone, where a person speaks of a card and not of a count
_NUMBER = re.compile(
    r"\b(?:an?|my|the|new|this|our|with|single|dual|one|two|[248]x)\s+((?:50[5-9]0|40[5-9]0|30[5-9]0|20[678]0|16[56]0|10[5-8]0)"
    r"(?: ?(?:Ti|TI|ti|SUPER|Super|super)\b){0,2})(?! ?(?:steps?|samples?|epochs?|iterations?|tokens?|images?|[kKMG]i?B|ms|s|W|of|%)\b)"
)
_WORD = re.compile(r"\b(?:NVIDIA|GeForce|Tesla|Quadro|GRID|RTX|GTX|TITAN|Titan|Orin|Xavier|Thor|Tegra|Jetson)\b")


_ANCHOR = re.compile(
    r"RTX|GTX|GeForce|Tesla|Quadro|TITAN|Titan|Orin|Xavier|Thor|Tegra|Jetson|NVIDIA"
    r"|\bG[HB]\d|\b[ABHKLMPTV]\d{1,4}[a-z]?\b|\b[GM][TX] ?\d|GRID|NVS|\b[1-5]0[5-9]0\b|\b16[56]0\b|\b20[678]0\b"
)
_REACH = 120


def find_gpus(lines: list[str], flat: str) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...]]:
    """(GPUs that programs listed, GPUs that torch named in a warning with their capability)."""
    flat = _near_names(flat)
    warned = _warned(lines, flat)
    listed = _listed(flat)
    if not listed and not warned:
        listed = _from_prose(flat)
    return listed, warned


def _near_names(flat: str) -> str:
    """The parts of the text that can hold a GPU name, so that a long log costs no more than a short one."""
    parts, end = [], 0
    for match in _ANCHOR.finditer(flat):
        start = max(end, match.start() - _REACH)
        stop = min(len(flat), match.end() + _REACH)
        if stop > end:
            parts.append(flat[start:stop])
            end = stop
    return "".join(parts)


def _warned(lines: list[str], flat: str) -> tuple[Gpu, ...]:
    found: dict[tuple[int | None, str], Gpu] = {}
    if "which is" in flat:
        for match in _FOUND.finditer(flat):
            _add(found, int(match[1]), match[2], (int(match[3]), int(match[4])))
        for match in _TRITON.finditer(flat):
            _add(found, None, match[1], (int(match[2]), int(match[3])))
    if "with CUDA capability sm_" not in flat:
        return tuple(found.values())
    named = {gpu.name for gpu in found.values()}
    places = [match for line in lines if "with CUDA capability sm_" in line for match in _WARNED.finditer(line)]
    for match in places or _WARNED.finditer(flat):
        name = _last_name(match[1])
        if name and name not in named:
            _add(found, None, name, (int(match[2]), int(match[3])))
    return tuple(found.values())


def _add(found: dict, index: int | None, name: str, capability: tuple[int, int]) -> None:
    name = " ".join(name.split())
    found.setdefault((index, name), Gpu(index=index, name=name, compute_capability=capability))


def _last_name(text: str) -> str | None:
    """The name at the end of 'UserWarning: NVIDIA GeForce RTX 5090', whatever stands before it."""
    for mark in ("Warning: ", "Warning:", ": ", ". ", "] ", ") "):
        tail = text.rpartition(mark)[2].strip()
        if mark in text and tail and (_WORD.search(tail) or possible_capabilities(tail)):
            text = tail
    text = text[-80:].strip()
    match = _WORD.search(text)
    return (text[match.start() :] if match else text[-60:]) or None


def _listed(flat: str) -> tuple[Gpu, ...]:
    for context in _CONTEXTS:
        found: dict[tuple[str, str], Gpu] = {}
        rows = 0
        for match in context.finditer(flat):
            name = " ".join(match["name"].split())
            if not possible_capabilities(name) and not _WORD.search(name):
                continue
            groups = match.groupdict()
            index = match[1]
            key = (index if index else str(rows) if groups.get("mib") else "", name)
            rows += 1
            capability = groups.get("cap")
            found.setdefault(
                key,
                Gpu(
                    index=int(index) if index else None,
                    name=name,
                    compute_capability=_pair(capability) if capability else None,
                    memory_bytes=int(groups["mib"]) * MiB if groups.get("mib") else None,
                ),
            )
        if found:
            return tuple(found.values())[:64]
    return ()


def _from_prose(flat: str) -> tuple[Gpu, ...]:
    names: dict[str, None] = {}
    for match in _PROSE.finditer(flat[:200_000]):
        name = " ".join(match[0].split())
        if possible_capabilities(name):
            names.setdefault(name)
    for match in _NUMBER.finditer(flat[:200_000] if not names else ""):
        names.setdefault(f"{'GTX' if match[1][0] == '1' else 'RTX'} {match[1]}")
    chips = {possible_capabilities(name) for name in names}
    return (Gpu(name=max(names, key=len)),) if len(chips) == 1 else ()


def _pair(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


# Facts out of a pasted text: collect_env in any layout, warnings, nvidia-smi, pip, logs, prose.
#
# Only what stands in the text becomes a fact; what two places say differently becomes a
# note and no fact. Every search is bounded, so a log of any size takes the same time.

# A pasted text made readable: decoded, without terminal escapes, quote marks, code fences and log prefixes.
#
# A long text is read from both ends only, so that any size takes the same time.

HEAD_BYTES, TAIL_BYTES = 96 * 1024, 48 * 1024

_ESCAPES = re.compile(r"\x1b\[[0-?]{0,16}[ -/]{0,4}[@-~]|\x1b\][^\x07\x1b]{0,500}(?:\x07|\x1b\\)|\x1b[@-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PREFIX = re.compile(
    r"^\s*(?:>\s?){1,4}"
    r"|^\((?=[^)]{0,60}[A-Za-z])[^)]{1,60}\)\s"
    r"|^\[(?=[^\]]{0,60}[:=\s])[^\]]{1,60}\]\s?"
    r"|^\d{4}-\d\d-\d\d[T ]\d\d:\d\d\S{0,16}\s"
    r"|^(?:INFO|WARNING|WARN|ERROR|DEBUG)[: ]\s{0,8}"
    r"|^[\w.\-]{1,40}\s+\|\s"
)


def clean(text: str | bytes, notes: list[str]) -> list[str]:
    """Lines without terminal escapes, quote marks, code fences and log prefixes; a long text only from both
    ends."""
    if len(text) > HEAD_BYTES + TAIL_BYTES:
        notes.append(f"the text has {len(text):,} characters; only the first and the last part were read")
        middle = b"\n" if isinstance(text, bytes) else "\n"
        text = text[:HEAD_BYTES] + middle + text[-TAIL_BYTES:]  # type: ignore[operator]
    if isinstance(text, bytes):
        text = _decode(text)
    text = _CONTROL.sub(" ", _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))
    if text.count("\n") <= 1 and text.count("\\n") > 2:
        # one JSON string: the line ends are written out
        text = text.replace("\\n", "\n")
    # a kernel message of several lines has one stamp, and the driver's name before each line
    text = re.sub(
        r"(?<=\S)[ \t]*\n[ \t]*NVRM: (?!Xid|GPU |The NVIDIA |_|nv[A-Z]|k[a-z]+[A-Z_]|No |API|Rm|loading)[ \t]*",
        " ",
        text,
    )
    return [_line(line) for line in text.split("\n") if not line.strip().startswith("```")]


def _decode(data: bytes) -> str:
    """UTF-8, or UTF-16 as PowerShell's '>' writes it; other bytes are replaced."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    if data[:400].count(0) > len(data[:400]) // 3:
        return data.decode("utf-16-le", errors="replace")
    return data.decode("utf-8-sig", errors="replace")


def _line(line: str) -> str:
    for _ in range(3):
        shorter = _PREFIX.sub("", line, count=1)
        if shorter == line:
            break
        line = shorter
    return line


# What a pasted text tells of the machine around torch: platform, environment variables, packages,
# toolkit.

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
    names = r"torchvision|torchaudio|triton|flash[_-]attn|xformers|bitsandbytes|vllm|sglang|fastai"
    names += r"|nvidia-cuda-runtime(?:-cu1\d)?"
    found = {}
    for name, version in re.findall(rf"\b({names})(?:==|\s{{1,40}})(\d[\w.+]{{1,30}})", low):
        found.setdefault(name.replace("_", "-"), version)
    return found


_VER = r"(\d{1,2}\.\d{1,2}(?:\.\d{1,3})?(?:(?:a|b|rc|\.?dev|\.?post)\d{0,10})*(?:\+[a-z0-9._]{1,30})?)"
_TORCH = (
    re.compile(r"pytorch version(?: \(gpu\?\))?['\"]?\s*[:=|]?\s*['\"`]?v?" + _VER),
    re.compile(r"torch\.__version__\W{1,12}" + _VER),
    re.compile(r"(?<![\w.\-/])(?:py)?torch(?:\s+version)?(?:\s+is)?['\"`]?[\s:=|.\-]{1,40}['\"`]?v?" + _VER),
)
_WANTED = re.compile(
    r"(?:requirement|for|install|installing|requires?|needs?|collecting|downloading|upgrade "
    r"to|try)\s+\W{0,3}$"
)

# conda's build strings: 'py3.11_cpu_0', 'cpu_mkl', the package 'cpuonly'
_CONDA_CPU = r"\bpy\d[\w.]{0,20}_cpu_\d|pytorch-cpu\b|pytorch\W{1,3}[\w. ]{1,30}cpu_mkl|\bcpuonly\b"


def parse(lines: list[str], notes: list[str], messages: tuple[str, ...]) -> MachineFacts:
    """The facts that cleaned lines tell; `source` is 'text'. messages: those that report a failure."""
    flat = " ".join(" ".join(lines).split())
    low = flat.lower()
    torch = _torch(flat, low, lines, notes)
    platform = read_platform(flat, low)
    gpus, torch_gpus = find_gpus(lines, flat)
    if torch_gpus:
        torch = dataclasses.replace(torch or Torch(), gpus=torch_gpus)
    driver = _driver(flat, low, gpus, notes)
    return MachineFacts(
        source="text",
        platform=platform,
        driver=driver,
        torch=torch,
        environment=read_environment(flat),
        nvidia_smi_exit_code=_smi_exit_code(low),
        packages=read_packages(low),
        messages=messages,
        xids=tuple(int(x) for x in re.findall(r"xid\W{1,4}[^:]{0,24}:\s{0,3}(\d{1,3})\b", low)[:8]) or None,
        notes=tuple(notes),
    )


# --- torch ---------------------------------------------------------------------------


def _torch(flat: str, low: str, lines: list[str], notes: list[str]) -> Torch | None:
    version = _torch_version(low, notes)
    cuda_text = first(
        low,
        r"cuda used to build pytorch\s{0,3}[:=|]?\s{0,3}(\d[\d.]{1,9}|none|could not collect|n/a)",
        r"torch\.version\.cuda\W{1,12}(\d[\d.]{1,9}|none)",
        r"torch[_ ]cuda(?: version)?\W{1,6}(\d{1,2}\.\d{1,2}|none)",
        r"pytorch cuda(?: version)?\W{1,6}(\d{1,2}\.\d{1,2}|none)",
        # prose: "PyTorch 2.5.1 with CUDA 12.1"
        r"torch\W{1,3}v?\d\.\d{1,2}(?:\.\d)?\W{1,3}(?:with |built (?:for|with|against) |for |on )?\(?cuda ?(\d{1,2}\.\d)\b",
    )
    tag = re.search(r"\+cu(\d{2})(\d)\b", version or "")
    tag = tag or re.search(
        r"torch[\s\-=:]{1,3}v?\d\.\d{1,2}(?:\.\d)?[\s,:(]{1,3}(?:with |for )?\(?cu(\d{2})(\d)\b", low
    )
    cuda = pair(cuda_text) or ((int(tag[1]), int(tag[2])) if tag else None)
    hip = first(low, r"(?:hip|rocm) used to build pytorch\s{0,3}[:=]\s{0,3}(\d[\w.\-]{1,20})")
    hip = hip or first(version or "", r"\+rocm([\d.]+)")
    is_cpu = "+cpu" in (version or "") or (cuda is None and cuda_text is not None and not hip)
    if "cpu" in low and re.search(_CONDA_CPU, low):
        is_cpu = True
    found = Torch(
        version=version,
        cuda=cuda,
        is_cpu_build=(is_cpu or None) if cuda is None else ("+cpu" in (version or "")),
        hip=hip,
        arch_list=_arch_list(low),
        is_available=_is_available(low),
        device_count=_int(first(low, r"device[_ ]count(?:\(\))?\W{1,10}(\d{1,3})\b")),
        min_capability=_capability(low, r"minimum cuda capability supported by this library is\s{0,3}(\d{1,2})\.(\d)")
        or _capability(low, r"minimum and maximum cuda capability supported[^(]{0,60}\((\d{1,2})\.(\d)\)"),
        max_capability=_capability(
            low, r"minimum and maximum cuda capability[^(]{0,90}\(\d{1,2}\.\d\)\s?-\s?\((\d{1,2})\.(\d)\)"
        ),
    )
    return None if found == Torch() else found


def _torch_version(low: str, notes: list[str]) -> str | None:
    """From the most telling place: pip's last installation, collect_env, torch.__version__, then lists and
    logs."""
    installed = re.findall(r"successfully installed [^:]{0,4000}?\btorch-" + _VER, low[:HEAD_BYTES])
    if installed:
        return installed[-1]
    for pattern in _TORCH:
        found = []
        for match in pattern.finditer(low[:HEAD_BYTES]):
            if not _WANTED.search(low[max(0, match.start() - 24) : match.start()]):
                found.append(match[1].rstrip("."))
            if len(found) > 20:
                break
        exact = list(dict.fromkeys(v for v in found if "+" in v)) or list(dict.fromkeys(found))
        if len(_distinct(version.split("+")[0] for version in exact)) == 1:
            return max(exact, key=len)
        if exact:
            notes.append(f"the text names several torch versions ({', '.join(exact[:4])}); the first one is taken")
            return exact[0]
    return None


def _arch_list(low: str) -> tuple[str, ...]:
    listed = re.findall(r"(?<![\d.])(\d{1,2}\.\d[af]?) which supports hardware cc", low)
    if listed:
        return tuple(dict.fromkeys(f"sm_{entry.replace('.', '')}" for entry in listed))
    best: list[str] = []
    for match in re.finditer(r"(?:\b(?:sm|compute)_\d{2,3}[af]?\b['\"]?[\s,;/]{0,6}['\"]?){1,40}", low):
        found = re.findall(r"(?:sm|compute)_\d{2,3}[af]?", match[0])
        is_stated = "supports cuda capabilities" in low[max(0, match.start() - 40) : match.start()]
        if is_stated:
            return tuple(dict.fromkeys(found))
        # two in a row may be prose; three, or two in quotes as Python prints them, are a list
        if len(found) >= (2 if "'" in match[0] else 3) and len(found) > len(best):
            best = found
    if not best and "pytorch built with" in low:
        best = re.findall(r"code=\[?((?:sm|compute)_\d{2,3}[af]?)", low)
    return tuple(dict.fromkeys(best))


def _is_available(low: str) -> bool | None:
    text = first(
        low,
        r"is cuda available\W{0,6}(true|false|yes|no)\b",
        r"(?<!mps\.)(?<!xpu\.)\bis_available(?:\(\))?\W{1,12}(?:(?:is|returns?|returned|gives|shows)\W{1,3})?(true|false)\b",
        r"cuda[_ ]available\W{1,12}(true|false|yes|no)\b",
        r"cuda is available\W{0,4}(true|false|yes|no)\b",
        r"cuda(?: availability)?['\"]?\s?[:=]\s?['\"]?(true|false|available|not available)\b",
        r"pytorch version \(gpu\?\)\W{1,6}\S{3,40} \((true|false)\)",
        r"gpu available\W{1,6}(true|false|yes|no)\b",
        r"- available:\s{1,12}(true|false)\b",
    )
    if text is None and re.search(
        r"\b(?:cuda|gpu) is not available\b|\bcuda not available\b|torch is not able to use gpu", low
    ):
        return False
    return None if text is None else text in ("true", "yes", "available")


# --- driver --------------------------------------------------------------------------


def _driver(flat: str, low: str, gpus: tuple[Gpu, ...], notes: list[str]) -> Driver | None:
    versions = _driver_versions(low)
    if len(versions) > 1:
        notes.append(f"the text names several driver versions ({', '.join(versions[:4])}); none is taken")
    library = first(low, r"nvml library version:?\s{0,3}(\d{3}(?:\.\d{1,3}){0,2})")
    kernel = first(low, r"kernel module\s{1,4}(?:for \S{1,12}\s{1,4})?(\d{3}\.\d{1,3}(?:\.\d{1,3})?)")
    found = Driver(
        version=versions[0] if len(versions) == 1 else None,
        cuda_version=_driver_cuda(low),
        gpus=gpus,
        cuda_init_error=_int(first(low, r"cuinit\W{0,4}(?:0\W{0,3})?(?:rc|returned|result|code)?\W{0,4}(\d{1,3})\b"))
        or None,
        library_version=library,
        kernel_version=kernel,
        uvm_error=first(flat, r"/dev/nvidia-uvm[^-\w][^.;]{0,40}?((?:FAILED|failed|cannot|\[Errno)[^/]{0,80})"),
    )
    return None if found == Driver() else found


def _driver_versions(low: str) -> list[str]:
    """Distinct driver versions, the most telling places first; prose only where nothing else is there."""
    version = r"(\d{3}(?:\.\d{1,3}){1,2})\b"
    places = (
        r"(?:nvidia )?driver version['\"]?\s{0,3}[:=|]?\s{0,6}['\"]?" + version,
        r"kmd version\s{0,3}:\s{0,6}" + version,
        r"mib, \d{1,2}\.\d, " + version,
        r"(?:nvidia|gpu|cuda|host|gpu host|windows)?\s?drivers?\s{0,3}[:=v(]?\s{0,3}v?" + version,
        r"nvidia-smi\s{1,4}" + version,
    )
    for place in places:
        found = [text for text in re.findall(place, low) if 300 <= (parse_driver(text) or (0,))[0] < 1000]
        if found:
            return _distinct(found)
    return []


def _distinct(versions: Iterable[str]) -> list[str]:
    """A shorter spelling of the same version (570.124 for 570.124.06) does not count as another."""
    found: list[str] = []
    for version in sorted(dict.fromkeys(versions), key=len, reverse=True):
        if not any(longer.startswith(version + ".") for longer in found):
            found.append(version)
    return found


def _driver_cuda(low: str) -> tuple[int, int] | None:
    """nvidia-smi's 'CUDA Version', in the banner or in -q; also 'CUDA UMD Version' from R610 on."""
    text = first(
        low,
        r"driver version\s{0,3}:\s{0,3}[\d.]{3,12}\s{1,40}cuda version\s{0,3}:\s{0,3}(\d{1,2}\.\d{1,2})",
        r"cuda umd version\s{0,3}:\s{0,3}(\d{1,2}\.\d{1,2})",
        r"driver supports? (?:up to )?cuda (?:version )?(\d{1,2}\.\d{1,2})",
        r"\bdriver (?:cuda )?(1\d\.\d)\b",
    )
    number = first(low, r"found version\s{0,3}(\d{4,5})\b")
    return pair(text) or (cuda_pair(int(number)) if number else None)


def _smi_exit_code(low: str) -> int | None:
    """127: not found, as the shell says it; 9: it ran and could not reach the driver."""
    if re.search(
        r"gpu models and configuration\W{0,3}no cuda\b|nvidia driver version\W{0,3}no cuda\b|cuda runtime "
        r"version\W{0,3}no cuda\b",
        low,
    ):
        return 127
    if re.search(r"nvidia-smi: (?:command )?not found|nvidia-smi' is not recognized", low):
        return 127
    return 9 if "couldn't communicate with the nvidia driver" in low else None


def _capability(text: str, pattern: str) -> tuple[int, int] | None:
    match = re.search(pattern, text)
    return (int(match[1]), int(match[2])) if match else None


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """found: the diagnosis with its confidence, kind and the lines that nothing explains. because: the reasons, in
    words. unknown: what the text does not tell."""

    found: Diagnosis
    because: tuple[str, ...]
    remedy: Remedy
    unknown: tuple[str, ...]
    facts: MachineFacts

    @property
    def diagnosis(self) -> str:
        return self.found.word

    @property
    def confidence(self) -> str:
        return self.found.confidence

    @property
    def ask(self) -> str:
        return self.found.ask


def explain(text: str | bytes) -> Explanation:
    """Any text or bytes; only its first 96 KiB and last 48 KiB are read. Never raises for its content."""
    notes: list[str] = []
    lines = clean(text, notes)
    reading = Reading(lines)
    facts = parse(lines, notes, tuple(line for line, _, _ in reading.failures))
    case = Case(facts, reading)
    found = case.found
    contradictions = tuple(f"the text contradicts itself: {found}" for found in disagreements(case))
    if contradictions and found.confidence == "high":
        found = dataclasses.replace(found, confidence="medium")
    return Explanation(
        found=found,
        because=found.because + facts.notes + contradictions,
        remedy=remedy_for(case),
        unknown=_unknown(case) if found.kind == "environment" else (),
        facts=facts,
    )


def _unknown(case: Case) -> tuple[str, ...]:
    facts, missing = case.facts, []
    if case.is_not_nvidia:
        return ()
    if not case.gpus:
        missing.append("which GPU it is")
    elif len(case.holdings) < len(case.gpus):
        names = sorted({gpu.name or "?" for gpu in case.gpus} - {gpu.name or "?" for gpu, _, _ in case.holdings})
        missing.append(f"the compute capability of {', '.join(names)}")
    if not (facts.torch and (facts.torch.version or facts.torch.cuda or facts.torch.arch_list)):
        missing.append("which torch build it is")
    if not (case.driver.version or case.driver.cuda_version):
        missing.append("the driver's version")
    if facts.platform.system is None:
        missing.append("the operating system")
    return tuple(missing)


def as_json(explanation: Explanation) -> dict[str, Any]:
    """The stable form of `kit explain --json`."""
    found, cure = explanation.found, explanation.remedy
    return {
        "diagnosis": found.word,
        "confidence": found.confidence,
        "because": list(explanation.because),
        "remedy": {
            "summary": cure.summary,
            "commands": list(cure.commands),
            "torch_variants": list(cure.torch_variants),
            "driver": cure.driver,
            "pip": list(cure.pip),
            "uv": list(cure.uv),
            "conda": list(cure.conda),
        },
        "cause": found.cause,
        "kind": found.kind,
        "unexplained": list(found.unexplained),
        "unknown": list(explanation.unknown),
        "ask": found.ask,
    }


def as_text(explanation: Explanation) -> str:
    """What `kit explain` prints."""
    found, cure = explanation.found, explanation.remedy
    lines = [f"Diagnosis: {found.word} (confidence: {found.confidence})", ""]
    lines += [f"  because  {reason}" for reason in explanation.because]
    lines += [f"  not explained  {line}" for line in found.unexplained[:5] if line not in explanation.because[0]]
    lines += [f"  unknown  {what}" for what in explanation.unknown]
    lines += ["", cure.summary, *(f"    {command}" for command in cure.commands)]
    if cure.driver:
        lines.append(f"    driver: {cure.driver}")
    if found.ask:
        lines += ["", f"What to paste next: {found.ask}"]
    return plain("\n".join(lines))


def exit_code(explanation: Explanation) -> int:
    """0 where nothing is wrong, 3 where the text does not tell, 1 for every other diagnosis."""
    if explanation.diagnosis == "ok":
        return EXIT_PASS
    return EXIT_INCONCLUSIVE if explanation.confidence == "low" else EXIT_FAIL

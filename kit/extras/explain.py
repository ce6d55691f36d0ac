"""A pasted text, read and explained: what is wrong, how sure that is, what to do, and what it could not know."""

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterable
from typing import Any

from kit.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS
from kit.gpu.compat import parse_driver
from kit.gpu.diagnose import Case, Diagnosis, Reading, facts_in
from kit.gpu.facts import Driver, Gpu, MachineFacts, Platform, Torch
from kit.gpu.judge_machine import disagreements
from kit.gpu.remedy import Remedy, remedy_for
from kit.gpu.specs import possible_capabilities
from kit.records import to_json
from kit.show import plain
from kit.units import MiB, cuda_pair, pair

# GPU names out of a text: where programs print them first, and only then out of prose.
#
# A name is taken as it stands; what its chip is, `kit.gpu.specs` says. Where prose names
# several different chips, none is taken, since nothing tells which one is meant.

_CAPABILITY = r"(?:cuda|compute) capability (?:\(cc\) )?(\d{1,2})\.(\d)"
_FOUND = r"(?i)found gpu(\d{1,2}) (.{2,80}?) which is of " + _CAPABILITY
_WARNED = r"(\S(?:.{0,100}?\S)?) with CUDA capability sm_(\d{1,2})(\d)\b"
_TRITON = r"(?i)()found (.{2,80}?) which is too old to be supported.{0,200}?cuda capability (\d{1,2})\.(\d)"

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
    r"\bGPU[ #](\d{1,2})\s{0,2}[:=]\s{0,3}(?P<name>" + _CHIP + ")",
    # nvidia-smi's table: "|   0  NVIDIA L40S   On  |"
    r"\|\s{1,4}(\d{1,2})\s{1,6}(?P<name>" + _CHIP + ")",
    # ultralytics: "CUDA:0 (NVIDIA …, 12288MiB)"; ComfyUI: "Device: cuda:0 NVIDIA … :"
    r"(?i)\bcuda:(\d{1,2})\W{1,3}(?P<name>" + _CHIP + ")",
    # nvidia-smi --query-gpu=name,memory.total,compute_cap: one row
    r"()(?P<name>" + _CHIP + r")\s?,\s?(?P<mib>\d{3,6})\s?MiB(?:\s?,\s?(?P<cap>\d{1,2}\.\d)\b)?",
    # "GPU models and configuration: NVIDIA …" without numbers
    r"GPU models and configuration\s?:?\s{0,3}()(?P<name>" + _CHIP + ")",
    # "GPU: Tesla T4 (compute capability 7.5)", "Device name = …", "GPU NVIDIA A100", "GPU type: …"
    (
        r"\b(?:GPU|gpu|Device|device)(?:[ "
        r"_](?:name|type|model|NAME))?s?['\"]?(?:\s?[:=|]\s{0,3}|\s{1,2})['\"]?()(?P<name>"
        + _CHIP
        + r")(?:\s?\((?:compute capability|CC|sm_)?\s?(?P<cap>\d{1,2}\.\d)\))?"
    ),
    r"Device:?\s(\d{1,2})\W{1,4}(?P<name>" + _CHIP + ")",
)
_PROSE = r"(?<![\w/.\-])" + _CHIP
# "a 5090", "my 4070 Ti": the number alone, where a person speaks of a card and not of a count
_NUMBER = (
    r"\b(?:an?|my|the|new|this|our|with|single|dual|one|two|[248]x)\s+((?:50[5-9]0|40[5-9]0|30[5-9]0|20[678]0|16[56]0|10[5-8]0)"
    r"(?: ?(?:Ti|TI|ti|SUPER|Super|super)\b){0,2})(?! ?(?:steps?|samples?|epochs?|iterations?|tokens?|images?|[kKMG]i?B|ms|s|W|of|%)\b)"
)
_WORD = r"\b(?:NVIDIA|GeForce|Tesla|Quadro|GRID|RTX|GTX|TITAN|Titan|Orin|Xavier|Thor|Tegra|Jetson)\b"


_ANCHOR = (
    r"RTX|GTX|GeForce|Tesla|Quadro|TITAN|Titan|Orin|Xavier|Thor|Tegra|Jetson|NVIDIA"
    r"|\bG[HB]\d|\b[ABHKLMPTV]\d{1,4}[a-z]?\b|\b[GM][TX] ?\d|GRID|NVS|\b[1-5]0[5-9]0\b|\b16[56]0\b|\b20[678]0\b"
)
_REACH = 120


def find_gpus(lines: list[str], flat: str) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...]]:
    """(GPUs that programs listed, GPUs that torch named in a warning with their capability)."""
    parts, end = [], 0
    # The parts of the text that can hold a GPU name, so that a long log costs no more than a short one.
    for match in re.finditer(_ANCHOR, flat):
        start, stop = max(end, match.start() - _REACH), min(len(flat), match.end() + _REACH)
        parts.append(flat[start:stop])
        end = max(end, stop)
    near = "".join(parts)
    warned = _warned(lines, near)
    listed = _listed(near)
    return listed or (() if warned else _from_prose(near)), warned


def _warned(lines: list[str], flat: str) -> tuple[Gpu, ...]:
    mark = "with CUDA capability sm_"
    named = [m.groups() for pattern in (_FOUND, _TRITON) if "which is" in flat for m in re.finditer(pattern, flat)]
    places = [match for line in lines if mark in line for match in re.finditer(_WARNED, line)] if mark in flat else []
    for match in places or (re.finditer(_WARNED, flat) if mark in flat else ()):
        name = _last_name(match[1])
        if name and name not in {found[1] for found in named if found[0] is not None}:
            named.append((None, name, match[2], match[3]))
    found: dict[tuple[str | None, str], Gpu] = {}
    for index, name, major, minor in named:
        name = " ".join(name.split())
        gpu = Gpu(index=int(index) if index else None, name=name, compute_capability=(int(major), int(minor)))
        found.setdefault((index or None, name), gpu)
    return tuple(found.values())


def _last_name(text: str) -> str:
    """The name at the end of 'UserWarning: NVIDIA GeForce RTX 5090', whatever stands before it."""
    for mark in ("Warning: ", "Warning:", ": ", ". ", "] ", ") "):
        tail = text.rpartition(mark)[2].strip()
        if mark in text and tail and (re.search(_WORD, tail) or possible_capabilities(tail)):
            text = tail
    text = text[-80:].strip()
    match = re.search(_WORD, text)
    return text[match.start() :] if match else text[-60:]


def _listed(flat: str) -> tuple[Gpu, ...]:
    for context in _CONTEXTS:
        found: dict[tuple[str, str], Gpu] = {}
        for match in re.finditer(context, flat):
            name, index, groups = " ".join(match["name"].split()), match[1], match.groupdict()
            capability, mib = pair(groups.get("cap")), groups.get("mib")
            if possible_capabilities(name) or re.search(_WORD, name):
                gpu = Gpu(int(index) if index else None, name, capability, int(mib) * MiB if mib else None)
                found.setdefault((index or (str(len(found)) if mib else ""), name), gpu)
        if found:
            return tuple(found.values())[:64]
    return ()


def _from_prose(flat: str) -> tuple[Gpu, ...]:
    names = [" ".join(match[0].split()) for match in re.finditer(_PROSE, flat[:200_000])]
    names = [name for name in names if possible_capabilities(name)] or [
        f"{'GTX' if match[1][0] == '1' else 'RTX'} {match[1]}" for match in re.finditer(_NUMBER, flat[:200_000])
    ]
    chips = {possible_capabilities(name) for name in names}
    return (Gpu(name=max(names, key=len)),) if len(chips) == 1 else ()


# Facts out of a pasted text: collect_env in any layout, warnings, nvidia-smi, pip, logs, prose.
#
# Only what stands in the text becomes a fact; what two places say differently becomes a
# note and no fact. Every search is bounded, so a log of any size takes the same time.

# A pasted text made readable: decoded, without terminal escapes, quote marks, code fences and log prefixes.
#
# A long text is read from both ends only, so that any size takes the same time.

HEAD_BYTES, TAIL_BYTES = 96 * 1024, 48 * 1024

_ESCAPES = r"\x1b\[[0-?]{0,16}[ -/]{0,4}[@-~]|\x1b\][^\x07\x1b]{0,500}(?:\x07|\x1b\\)|\x1b[@-_]"
_PREFIX = (
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
        # UTF-8, or UTF-16 as PowerShell's '>' writes it; other bytes are replaced.
        is_16 = text[:2] in (b"\xff\xfe", b"\xfe\xff")
        is_bare_16 = text[:400].count(0) > len(text[:400]) // 3
        text = text.decode("utf-16" if is_16 else "utf-16-le" if is_bare_16 else "utf-8-sig", errors="replace")
    text = re.sub(_ESCAPES, "", text).replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", " ", text)
    if text.count("\n") <= 1 and text.count("\\n") > 2:
        # one JSON string: the line ends are written out
        text = text.replace("\\n", "\n")
    # a kernel message of several lines has one stamp, and the driver's name before each line
    text = re.sub(
        r"(?<=\S)[ \t]*\n[ \t]*NVRM: (?!Xid|GPU |The NVIDIA |_|nv[A-Z]|k[a-z]+[A-Z_]|No |API|Rm|loading)[ \t]*",
        " ",
        text,
    )
    lines = [line for line in text.split("\n") if not line.strip().startswith("```")]
    for _ in range(3):
        lines = [re.sub(_PREFIX, "", line, count=1) for line in lines]
    return lines


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


def read_platform(flat: str, low: str, says: Collection[str]) -> Platform:
    """What the table's facts say of the machine, and the rest by its own marks."""
    marks = r"python platform\W{1,3}linux|/(?:home|usr|opt|root|workspace|mnt)/|\blinux\b|ubuntu|debian|fedora|centos"
    is_windows = "windows" in says and "wsl" not in says
    is_linux = "wsl" in says or (re.search(marks, low) is not None and not is_windows)
    python = (
        re.search(r"python version\W{1,3}(\d)\.(\d{1,2})", low)
        or re.search(r"\bpython[\s:\-/]{0,3}v?(3)\.(\d{1,2})(?!\d)", low)
        or re.search(r"\bpython(3)(\d{1,2})\b|\bcp(3)(\d{1,2})-cp", low)
    )
    major, minor = [int(group) for group in python.groups() if group] if python else (0, 0)
    machines = {"aarch64": r"aarch64|\barm64\b|\bsbsa\b", "x86_64": r"x86_64|amd64"}
    return Platform(
        system="Windows" if is_windows else "Linux" if is_linux or "jetson" in says else None,
        machine=next((name for name, mark in machines.items() if re.search(mark, low)), None),
        os=first(flat, r"\bOS\s{0,3}:\s{0,3}([^\n|]{3,40}?)(?= GCC| Clang| Python| GPU | Is CUDA|\s{2}|$)"),
        python=(major, minor) if python else None,
        is_wsl="wsl" in says or None,
        is_container="container" in says or None,
        is_tegra="jetson" in says or None,
        jetpack=first(
            low,
            r"jetpack\W{0,3}(\d(?:\.\d){0,2})",
            r"\bl4t\W{0,3}(r?\d{2}(?:\.\d){0,2})",
            r"# (r\d{2}) \(release\)",
        ),
    )


def read_environment(flat: str) -> dict[str, str]:
    """Values that the text sets: 'CUDA_VISIBLE_DEVICES=1', os.environ['…'] = '3'. Not a mere mention."""
    found = {name: re.search(name + _SET_TO, flat) for name in _ENV_NAMES}
    values = {name: next(filter(None, match.groups()), "") for name, match in found.items() if match}
    unset = ("none", "null", "not set", "unset", "not", "n/a")
    return {name: value for name, value in values.items() if value.strip("<>()[]").lower() not in unset}


def read_packages(low: str) -> dict[str, str]:
    """Packages whose build matters beside torch: 'name==1.2' or the two columns of pip list."""
    names = r"torchvision|torchaudio|triton|flash[_-]attn|xformers|bitsandbytes|vllm|sglang|fastai"
    names += r"|nvidia-cuda-runtime(?:-cu1\d)?"
    found = re.findall(rf"\b({names})(?:==|\s{{1,40}})(\d[\w.+]{{1,30}})", low)
    # The first mention counts.
    return {name.replace("_", "-"): version for name, version in reversed(found)}


_VER = r"(\d{1,2}\.\d{1,2}(?:\.\d{1,3})?(?:(?:a|b|rc|\.?dev|\.?post)\d{0,10})*(?:\+[a-z0-9._]{1,30})?)"
_TORCH = (
    (r"pytorch version(?: \(gpu\?\))?['\"]?\s*[:=|]?\s*['\"`]?v?" + _VER),
    (r"torch\.__version__\W{1,12}" + _VER),
    (r"(?<![\w.\-/])(?:py)?torch(?:\s+version)?(?:\s+is)?['\"`]?[\s:=|.\-]{1,40}['\"`]?v?" + _VER),
)
_WANTED = (
    r"(?:requirement|for|install|installing|requires?|needs?|collecting|downloading|upgrade "
    r"to|try)\s+\W{0,3}$"
)

# conda's build strings: 'py3.11_cpu_0', 'cpu_mkl', the package 'cpuonly'
_CONDA_CPU = r"\bpy\d[\w.]{0,20}_cpu_\d|pytorch-cpu\b|pytorch\W{1,3}[\w. ]{1,30}cpu_mkl|\bcpuonly\b"


def parse(lines: list[str], notes: list[str], reading: Reading) -> MachineFacts:
    """The facts that cleaned lines tell; `source` is 'text'."""
    flat = " ".join(" ".join(lines).split())
    low = flat.lower()
    gpus, torch_gpus = find_gpus(lines, flat)
    torch, driver = _torch(low, torch_gpus, notes), _driver(flat, low, gpus, notes)
    # 127: not found, as the shell says it; 9: it ran and could not reach the driver.
    no_smi = r"(?:gpu models and configuration|nvidia driver version|cuda runtime version)\W{0,3}no cuda\b"
    no_smi += r"|nvidia-smi: (?:command )?not found|nvidia-smi' is not recognized"
    code = 127 if re.search(no_smi, low) else 9 if "couldn't communicate with the nvidia driver" in low else None
    return MachineFacts(
        source="text",
        platform=read_platform(flat, low, facts_in(reading.text)),
        driver=None if driver == Driver() else driver,
        torch=None if torch == Torch() else torch,
        environment=read_environment(flat),
        nvidia_smi_exit_code=code,
        packages=read_packages(low),
        messages=tuple(line for line, _, _ in reading.failures),
        xids=tuple(int(x) for x in re.findall(r"xid\W{1,4}[^:]{0,24}:\s{0,3}(\d{1,3})\b", low)[:8]) or None,
        notes=tuple(notes),
    )


# --- torch ---------------------------------------------------------------------------


def _torch(low: str, gpus: tuple[Gpu, ...], notes: list[str]) -> Torch:
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
    is_tagged = "+cpu" in (version or "")
    is_cpu = is_tagged or (cuda is None and cuda_text is not None and not hip)
    is_cpu = is_cpu or ("cpu" in low and re.search(_CONDA_CPU, low) is not None)
    count, least = first(low, r"device[_ ]count(?:\(\))?\W{1,10}(\d{1,3})\b"), "minimum and maximum cuda capability"
    return Torch(
        version=version,
        cuda=cuda,
        is_cpu_build=(is_cpu or None) if cuda is None else is_tagged,
        hip=hip,
        arch_list=_arch_list(low),
        is_available=_is_available(low),
        device_count=int(count) if count else None,
        gpus=gpus,
        min_capability=pair(
            first(
                low,
                r"minimum cuda capability supported by this library is\s{0,3}(\d{1,2}\.\d)",
                least + r" supported[^(]{0,60}\((\d{1,2}\.\d)\)",
            )
        ),
        max_capability=pair(first(low, least + r"[^(]{0,90}\(\d{1,2}\.\d\)\s?-\s?\((\d{1,2}\.\d)\)")),
    )


def _torch_version(low: str, notes: list[str]) -> str | None:
    """From the most telling place: pip's last installation, collect_env, torch.__version__, then lists and
    logs."""
    low = low[:HEAD_BYTES]
    installed = re.findall(r"successfully installed [^:]{0,4000}?\btorch-" + _VER, low)
    if installed:
        return installed[-1]
    for pattern in _TORCH:
        places = re.finditer(pattern, low)
        stated = (m[1].rstrip(".") for m in places if not re.search(_WANTED, low[max(0, m.start() - 24) : m.start()]))
        found = list(dict.fromkeys(itertools.islice(stated, 21)))
        exact = [version for version in found if "+" in version] or found
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
    denied = r"\b(?:cuda|gpu) is not available\b|\bcuda not available\b|torch is not able to use gpu"
    text = text or ("no" if re.search(denied, low) else None)
    return None if text is None else text in ("true", "yes", "available")


# --- driver --------------------------------------------------------------------------


def _driver(flat: str, low: str, gpus: tuple[Gpu, ...], notes: list[str]) -> Driver:
    versions = _driver_versions(low)
    if len(versions) > 1:
        notes.append(f"the text names several driver versions ({', '.join(versions[:4])}); none is taken")
    # nvidia-smi's 'CUDA Version', in the banner or in -q; also 'CUDA UMD Version' from R610 on.
    cuda = first(
        low,
        r"driver version\s{0,3}:\s{0,3}[\d.]{3,12}\s{1,40}cuda version\s{0,3}:\s{0,3}(\d{1,2}\.\d{1,2})",
        r"cuda umd version\s{0,3}:\s{0,3}(\d{1,2}\.\d{1,2})",
        r"driver supports? (?:up to )?cuda (?:version )?(\d{1,2}\.\d{1,2})",
        r"\bdriver (?:cuda )?(1\d\.\d)\b",
    )
    number, error = (
        int(first(low, pattern) or 0)
        for pattern in (
            r"found version\s{0,3}(\d{4,5})\b",
            r"cuinit\W{0,4}(?:0\W{0,3})?(?:rc|returned|result|code)?\W{0,4}(\d{1,3})\b",
        )
    )
    return Driver(
        version=versions[0] if len(versions) == 1 else None,
        cuda_version=pair(cuda) or (cuda_pair(number) if number else None),
        gpus=gpus,
        cuda_init_error=error or None,
        library_version=first(low, r"nvml library version:?\s{0,3}(\d{3}(?:\.\d{1,3}){0,2})"),
        kernel_version=first(low, r"kernel module\s{1,4}(?:for \S{1,12}\s{1,4})?(\d{3}\.\d{1,3}(?:\.\d{1,3})?)"),
        uvm_error=first(flat, r"/dev/nvidia-uvm[^-\w][^.;]{0,40}?((?:FAILED|failed|cannot|\[Errno)[^/]{0,80})"),
    )


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


@dataclasses.dataclass(frozen=True)
class Explanation:
    """found: the diagnosis with its confidence, kind and the lines that nothing explains. because: the reasons, in
    words. unknown: what the text does not tell."""

    found: Diagnosis
    because: tuple[str, ...]
    remedy: Remedy
    unknown: tuple[str, ...]
    facts: MachineFacts


def explain(text: str | bytes) -> Explanation:
    """Any text or bytes; only its first 96 KiB and last 48 KiB are read. Never raises for its content."""
    notes: list[str] = []
    lines = clean(text, notes)
    reading = Reading(lines)
    facts = parse(lines, notes, reading)
    case = Case(facts, reading)
    found, torch = case.found, case.torch
    contradictions = tuple(f"the text contradicts itself: {said}" for said in disagreements(case))
    if contradictions and found.confidence == "high":
        found = dataclasses.replace(found, confidence="medium")
    named = {gpu.name or "?" for gpu, _, _ in case.holdings}
    unnamed = ", ".join(sorted({gpu.name or "?" for gpu in case.gpus} - named))
    unknown = {
        "which GPU it is": not case.gpus,
        f"the compute capability of {unnamed}": len(case.holdings) < len(case.gpus),
        "which torch build it is": not (torch.version or torch.cuda or torch.arch_list),
        "the driver's version": not (case.driver.version or case.driver.cuda_version),
        "the operating system": facts.platform.system is None,
    }
    is_asked = found.kind == "environment" and not case.is_not_nvidia
    return Explanation(
        found=found,
        because=found.because + facts.notes + contradictions,
        remedy=remedy_for(case),
        unknown=tuple(what for what, is_missing in unknown.items() if is_asked and is_missing),
        facts=facts,
    )


def as_json(explanation: Explanation) -> dict[str, Any]:
    """The stable form of `kit explain --json`."""
    found = explanation.found
    return {
        "diagnosis": found.word,
        "confidence": found.confidence,
        "because": list(explanation.because),
        "remedy": to_json(explanation.remedy),
        "cause": found.cause,
        "kind": found.kind,
        "unexplained": list(found.unexplained),
        "unknown": list(explanation.unknown),
        "ask": found.ask,
    }


def as_text(explanation: Explanation) -> str:
    """What `kit explain` prints."""
    found, cure = explanation.found, explanation.remedy
    return plain(
        "\n".join(
            [
                f"Diagnosis: {found.word} (confidence: {found.confidence})",
                "",
                *(f"  because  {reason}" for reason in explanation.because),
                *(f"  not explained  {line}" for line in found.unexplained[:5] if line not in explanation.because[0]),
                *(f"  unknown  {what}" for what in explanation.unknown),
                *("", cure.summary, *(f"    {command}" for command in cure.commands)),
                *([f"    driver: {cure.driver}"] if cure.driver else []),
                *(["", f"What to paste next: {found.ask}"] if found.ask else []),
            ]
        )
    )


def exit_code(explanation: Explanation) -> int:
    """0 where nothing is wrong, 3 where the text does not tell, 1 for every other diagnosis."""
    unsure = EXIT_INCONCLUSIVE if explanation.found.confidence == "low" else EXIT_FAIL
    return EXIT_PASS if explanation.found.word == "ok" else unsure

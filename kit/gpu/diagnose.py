"""One word for the state of a machine, with the reason, from its facts and from what it (or a pasted text) reported.

`Case.known` derives every fact that a row of `data/causes.toml` may name; the first row that fits decides. A row that
cannot know says nothing; where none speaks, the answer is what could not be told, and what would tell.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

from kit.gpu.causes import Cause, Reading, causes, facts_in, table
from kit.gpu.compat import (
    Capability,
    Coverage,
    cuda_of,
    cuda_of_driver,
    driver_floor,
    driver_runs,
    is_tegra_capability,
    parse_driver,
    text_of,
)
from kit.gpu.facts import Driver, Gpu, MachineFacts
from kit.gpu.specs import last_driver_branch, possible_capabilities, still_driven
from kit.gpu.wheels import holding, platform_of, variant_of
from kit.units import dotted, pair

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


def mask_problem(value: str | None, count: int | None, uuids: Sequence[str | None] = ()) -> str | None:
    """Why this CUDA_VISIBLE_DEVICES leaves no device, in words; None where it leaves some, or cannot be told.

    CUDA takes indices or UUID prefixes up to the first that does not exist. count: how many GPUs the driver lists, None
    where unknown. ' 0' with a space is valid. Source: CUDA C++ Programming Guide, environment variables.
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


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """word: one of DIAGNOSES. confidence: 'high', 'medium' or 'low'. cause: the row's id. kind: 'environment',
    'program' or 'hardware'. ask: the one command whose output would settle what is open; empty where nothing is.
    unexplained: lines that report a failure and that no row explains. row: None where no row decided."""

    word: str
    confidence: str
    cause: str
    because: tuple[str, ...]
    ask: str = ""
    kind: str = "environment"
    unexplained: tuple[str, ...] = ()
    row: Cause | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """Facts with what the rules ask of them again and again. text: what was pasted, where something was."""

    facts: MachineFacts
    text: Reading | None = None

    @functools.cached_property
    def reading(self) -> Reading:
        """The pasted text, or what this machine reported itself."""
        if self.text is not None:
            return self.text
        facts, driver = self.facts, self.facts.driver or Driver()
        lines: list[Any] = [*facts.messages, facts.torch and facts.torch.error, facts.proof and facts.proof.error]
        lines += [driver.nvml_error and f"failed to initialize nvml: {driver.nvml_error}"]
        lines += [driver.cuda_init_error and f"cuinit_{driver.cuda_init_error}"]
        lines += [
            driver.libcuda == "stub" and "libcuda_stub",
            driver.uvm_error and f"uvm_unreadable {driver.uvm_error}",
        ]
        lines += [f"NVRM: Xid (PCI): {number}" for number in facts.xids or ()]
        return Reading(str(line) for line in lines if line)

    @functools.cached_property
    def gpus(self) -> tuple[Gpu, ...]:
        """As torch sees them where it does, else as the driver lists them."""
        facts = self.facts
        return (facts.torch.gpus if facts.torch else ()) or (facts.driver.gpus if facts.driver else ())

    @functools.cached_property
    def holdings(self) -> tuple[tuple[Gpu, Capability, Coverage], ...]:
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
    def release(self) -> tuple[int, int] | None:
        """torch's release, (2, 9) for '2.9.1+cu128'; None where it is not known."""
        return pair(self.facts.torch.version) if self.facts.torch else None

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

    @functools.cached_property
    def tool(self) -> str:
        """What the person installs with: 'pip', 'uv', 'uv project', 'conda', 'poetry', 'pixi' or 'docker'."""
        tools = table()["tools"].items()
        return next((name for name, pattern in tools if re.search(pattern, self.reading.text)), "pip")

    @functools.cached_property
    def known(self) -> dict[str, str]:
        """Every fact that holds here, by the name that the table gives it, with the words that say it."""
        found = dict.fromkeys(facts_in(self.reading.text), "") if self.facts.source == "text" else {}
        for facts in (_platform, _run, _build, _devices, _driver):
            found.update(facts(self))
        if "mac" in found or "wsl" in found:
            found.pop("windows", None)
        is_question = not self.reading.failures and "cuda" in self.reading.text
        if found.keys() & {"cuda_dark", "torch_cpu", "prose_cpu"} or is_question:
            found["no_cuda"] = ""
        return found

    @property
    def is_not_nvidia(self) -> bool:
        """Whether the text names another maker's GPU, and none of NVIDIA's."""
        return "nvidia" not in self.known and bool(self.known.keys() & {"mac", "amd", "intel", "windows_arm"})


def capability_of(gpu: Gpu) -> Capability | None:
    """Stated, or by name. A name sold with several chips counts as its newest: what that one lacks, all lack."""
    return gpu.compute_capability or max(possible_capabilities(gpu.name), default=None)


def _platform(case: Case) -> dict[str, str]:
    here, environment = case.facts.platform, case.facts.environment
    flags = {
        "windows": here.system == "Windows",
        "linux": here.system == "Linux",
        "wsl": here.is_wsl,
        "container": here.is_container,
        "jetson": here.is_tegra,
        "no_smi": case.facts.nvidia_smi_exit_code == 127,
        "nvidia_void": environment.get("NVIDIA_VISIBLE_DEVICES") in ("void", "none") and not case.gpus,
        "no_torch": case.facts.source != "text" and case.facts.torch is None,
    }
    return {name: "" for name, holds in flags.items() if holds}


def _run(case: Case) -> dict[str, str]:
    """What a kernel that ran here showed."""
    proof, forced = case.facts.proof, case.facts.environment.get("CUDA_FORCE_PTX_JIT", "0")
    if proof is None or proof.device == "cpu":
        return {}
    if not proof.ran:
        why = "it hides all native code, and the libraries have no PTX"
        return (
            {"forced_jit": f"CUDA_FORCE_PTX_JIT={forced} is set: {why}"} if forced not in ("", "0") else {"failed": ""}
        )
    error, limit = proof.max_relative_error, proof.limit
    if error is not None and limit is not None and error > limit:
        return {"wrong_numbers": f"the kernel ran, but its numbers are off by {error:.2g} (limit {limit:.2g})"}
    if proof.ran_without_ptx_jit is False:
        why = "the kernel ran, but not with PTX JIT switched off: the driver compiled it on this machine"
        return {"ran_by_jit": why}
    return {"ran": ""}


def _build(case: Case) -> dict[str, str]:
    """What torch is, and what it holds for the GPUs; one that it does not serve decides, whatever the others say."""
    torch, found, variant, release = case.facts.torch, {}, variant_of(case.facts.torch), case.release
    if torch and torch.hip:
        what = f"this torch is built for AMD ROCm ({torch.hip})"
        found["torch_rocm"] = f"{what}; it answers torch.cuda calls, but on no NVIDIA GPU"
    else:
        found[{None: "torch_unknown", "cpu": "torch_cpu"}.get(variant, "torch_cuda")] = ""
    if case.is_available is not None:
        found["cuda_available" if case.is_available else "cuda_dark"] = ""
    if torch and torch.device_count == 0:
        found["cuda_dark"] = ""
    if release and release >= (2, 8):
        found["torch_28_error"] = ""
    if torch and torch.version and torch.cuda is None and torch.is_available is False and "+" not in torch.version:
        platform = platform_of(case.facts)
        what = f"torch {torch.version} without a CUDA tag is PyPI's build, which has no CUDA on"
        if platform == "windows_x86_64":
            found["pypi_cpu"] = f"{what} Windows"
        elif platform == "linux_aarch64" and release and release <= (2, 10):
            found["pypi_cpu"] = f"{what} aarch64 before torch 2.11"
    bad = [row for row in case.holdings if row[2].how in ("none", "ptx") and not _jetpack_runs(case, row[1])]
    if bad:
        gpu, capability, held = min(bad, key=lambda row: row[2].how != "none")
        why = f"{gpu.name or 'the GPU'} (compute capability {dotted(capability)}): {held.reason}"
        found["build_lacks" if held.how == "none" else "build_ptx"] = why
        if held.is_too_old:
            found["gpu_older"] = ""
        if held.source not in ("list", "range") and case.is_available is None:
            found["build_guessed"] = ""
    hows = {held.how for _, _, held in case.holdings}
    if hows and hows <= {"native", "possible"}:
        found["build_serves"] = case.holdings[0][2].reason
    if hows == {"native"}:
        found["build_native"] = case.holdings[0][2].reason
    return found


def _jetpack_runs(case: Case, capability: Capability) -> bool:
    """From the JetPack 7.2 driver on, Orin has been seen to run desktop code that the rule forbids."""
    if not is_tegra_capability(capability):
        return False
    jetpack = (case.facts.platform.jetpack or "").lower()
    number = tuple(int(part) for part in jetpack.lstrip("r").split(".") if part.isdigit())
    is_new = number >= (39,) if number and number[0] >= 30 else number >= (7, 2)
    return is_new or (parse_driver(case.driver_version) or (0,)) >= (595,)


def _devices(case: Case) -> dict[str, str]:
    """Which GPUs there are, and whether something hides them."""
    facts, found = case.facts, {}
    known = max((own for gpu in case.gpus if (own := capability_of(gpu))), default=None)
    if case.gpus or case.driver_version:
        found["nvidia"] = ""
    if known:
        found["gpu_named"] = ""
        found.update({name: "" for name, low, high in _AGES if low <= known < high})
    gone = [own for gpu in case.gpus if (own := capability_of(gpu)) and still_driven(own, case.driver_version) is False]
    if gone:
        branch = f"R{last_driver_branch(gone[0])}"
        why = f"driver {case.driver_version} no longer drives compute capability {dotted(gone[0])}: {branch} is the last that does"
        found["driver_dropped_gpu"] = why
    gpus = facts.driver.gpus if facts.driver else ()
    value = facts.environment.get("CUDA_VISIBLE_DEVICES")
    if value is not None:
        problem = mask_problem(value, len(gpus) or None, [gpu.uuid for gpu in gpus])
        says = f"CUDA_VISIBLE_DEVICES={value!r}: {problem or 'none of the devices it names is there'}"
        found.update(dict.fromkeys(("mask_set", "masked") if problem else ("mask_set",), says))
    if not (case.gpus or case.driver_version) or facts.nvidia_smi_exit_code == 127:
        found["no_gpu_shown"] = ""
    return found


_AGES = (
    ("gpu_before_37", (0, 0), (3, 7)),
    ("gpu_old", (0, 0), (7, 5)),
    ("gpu_new", (10, 0), (99, 0)),
)


def _driver(case: Case) -> dict[str, str]:
    """Whether the driver answers, and whether it starts the build."""
    facts, driver, found = case.facts, case.facts.driver or Driver(), {}
    is_live, variant = facts.source != "text", variant_of(facts.torch)
    is_absent = is_live and facts.has_nvidia_device is False and not case.gpus
    if is_absent:
        found["no_device_seen"] = ""
    if (is_absent or (facts.nvidia_smi_exit_code == 9 and not driver.gpus)) and not case.is_available:
        is_there = bool(facts.has_nvidia_device)
        found["no_driver_seen"] = (
            "an NVIDIA device is there, but no driver answers for it"
            if is_there
            else "no NVIDIA driver answers on this machine"
        )
    if driver.gpus if is_live else re.search(r"nvidia-smi \d{3}\.\d|kmd version", case.reading.text):
        found["driver_answers"] = "; the host's driver works"
    library, kernel = driver.library_version, driver.kernel_version
    if library and kernel and parse_driver(library) != parse_driver(kernel):
        found["libs_differ"] = f" (library {library}, kernel module {kernel})"
    if driver.libcuda == "compat":
        found["compat_loaded"] = ""
    if variant and driver_runs(variant, driver.version, case.system, driver_cuda=driver.cuda_version) is False:
        floor = driver_floor(variant, case.system)
        needed = f"{text_of(floor)} or newer" if floor else "a newer one"
        cuda = driver.cuda_version
        shown = driver.version or (f"of CUDA {dotted(cuda)}" if cuda else "unknown")
        found["driver_below_floor"] = f"{variant} needs driver {needed} ({case.system}); the driver here is {shown}"
    own, wanted = driver.cuda_version or cuda_of_driver(driver.version, case.system), cuda_of(variant or "")
    if own and wanted and own[0] == wanted[0] and own < wanted:
        found["minor_compat"] = ""
    return found


def diagnose(facts: MachineFacts, text: Reading | None = None) -> Diagnosis:
    """The diagnosis of the first row of the table that fits; where none does, what is known and what is open."""
    return diagnose_case(Case(facts, text))


def diagnose_case(case: Case) -> Diagnosis:
    met, unexplained = case.reading.met(case.known), case.reading.unexplained(case.known)
    row = next((row for row in causes() if row.word and _decides(row, case, met)), None)
    if row is None:
        found = _fine(case) if not unexplained and "failed" not in case.known else None
        return found or _open(case, met, unexplained)
    because = [_words(row.because, row, case)]
    if case.text and row.id in met and met[row.id].lower() not in because[0].lower():
        because.append(f"it says: {met[row.id]}")
    is_guess = "build_guessed" in case.known and row.id not in met and {"build_lacks", "build_ptx"} & set(row.needs)
    is_sure = row.confidence != "high" or not (
        unexplained or is_guess or any("several" in note for note in case.facts.notes)
    )
    return Diagnosis(
        word=row.word,
        confidence=row.confidence if is_sure else "medium",
        cause=row.id,
        because=tuple(because),
        ask=ask(case, row, is_sure=is_sure and row.confidence == "high"),
        kind=row.kind,
        unexplained=unexplained,
        row=row,
    )


def _decides(row: Cause, case: Case, met: dict[str, str]) -> bool:
    return row.id in met if row.lines and not row.alone else row.fits(case.known, case.reading.text)


def _words(text: str, row: Cause, case: Case) -> str:
    """A sentence of the table with what is known here in its places."""
    torch, known, facts = case.facts.torch, case.known, case.facts
    gpu = case.gpus[0].name if case.gpus else None
    capability = case.holdings[0][1] if case.holdings else None
    left = any(name.startswith("nvidia-cuda-runtime") for name in facts.packages) or "pip_replaced" in known
    python = facts.platform.python
    return text.format(
        why=next((known[fact] for fact in row.needs if known.get(fact)), ""),
        gpu=f"{gpu or 'the GPU'}" + (f" ({dotted(capability)})" if capability else ""),
        build=torch.version if torch and torch.version else "this torch",
        sees=f"; the driver sees {gpu}" if gpu else "",
        replaced="; a later install replaced a CUDA build" if left else "",
        healthy=known.get("driver_answers", ""),
        device="" if not facts.has_nvidia_device else "; an NVIDIA device is there",
        versions=known.get("libs_differ", ""),
        supports=f" (it supports CUDA up to {dotted(case.driver_cuda)})" if case.driver_cuda else "",
        python=f" (Python {dotted(python)})" if python else "",
    )


def ask(case: Case, row: Cause | None = None, *, is_sure: bool = False) -> str:
    """The first thing to paste next that is not there yet and can run on that machine; '' where nothing is open."""
    keys = row.ask if row else ("traceback",) if case.reading.failures else ()
    is_told = (
        row is not None and row.remedy and case.holdings and case.driver_version and "torch_unknown" not in case.known
    )
    if is_sure and (not keys or is_told):
        return ""
    places = [name for name in ("container", "jetson", "wsl", "windows", "mac", "linux") if name in case.known] or [
        "linux"
    ]
    for key in keys if is_sure else (*keys, "env", "smi", "build", "traceback"):
        entry = table()["ask"][key]
        command = next((entry[place] for place in (*places, "all") if place in entry), "")
        is_dead = key in ("smi", "log", "host", "mask") and case.is_not_nvidia
        if command and not is_dead and not re.search(entry["there"], case.reading.text):
            return str(command)
    return ""


def _fine(case: Case) -> Diagnosis | None:
    """Nothing failed, and what is known fits together."""
    if any(held.how == "none" and _jetpack_runs(case, capability) for _, capability, held in case.holdings):
        because = "the rule says no, but this JetPack has been seen to run such code; only a run decides"
        return Diagnosis("ok", "medium", "fits", (because,), "python -m kit check")
    reasons = [f"{gpu.name or 'GPU'}: {held.reason}" for gpu, _, held in case.holdings[:1]]
    if "false_alarm" in case.reading.met(case.known) and reasons:
        reasons.append("torch's own warning is a false alarm: code of the same generation runs on this GPU")
    if case.is_available:
        if "driver_below_floor" in case.known:
            reasons.append("the driver is older than the build asks for, and CUDA runs: forward compatibility")
        return Diagnosis("ok", "high", "fits", tuple(reasons) or ("CUDA is available, and nothing contradicts it",))
    if "build_native" in case.known:
        return Diagnosis("ok", "medium", "fits", tuple(reasons), "python -m kit check")
    return None


def _open(case: Case, met: dict[str, str], unexplained: tuple[str, ...]) -> Diagnosis:
    """No row decides: what fits is said, and what is open is asked for."""
    if not unexplained:
        because = (
            "something failed, and the facts do not tell why" if met else "nothing here tells whether the GPU is usable"
        )
        return Diagnosis("other", "low", "unknown", (because,), ask(case))
    fits = "build, driver and GPU fit; " if "build_native" in case.known or case.is_available else ""
    because = f"{fits}this line is another matter, and no row of the table explains it: {unexplained[0]}"
    confidence = "medium" if fits else "low"
    return Diagnosis("other", confidence, "unexplained", (because,), ask(case), "", unexplained)

"""One word for the state of a machine, with the reason, from its facts and from what it (or a pasted text) reported.

`data/causes.toml` is the one table of causes; docs/adding-a-cause.md says what a row holds. A text is read the other way
round than usual: first every line that reports a failure is found by its form, whoever wrote it; then each of them must
be explained by a row. What no row explains is never called healthy.

`Case.known` derives every fact that a row may name; the first row that fits decides. A row that cannot know says nothing;
where none speaks, the answer is what could not be told, and what would tell.
"""

import dataclasses
import functools
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.gpu.compat import (
    TEGRA,
    Capability,
    Coverage,
    cuda_of,
    cuda_of_driver,
    driver_floor,
    driver_runs,
    parse_driver,
    text_of,
)
from kit.gpu.facts import Driver, Expectation, Gpu, MachineFacts, Torch
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
# Where something runs, the most telling first.
PLACES = ("container", "jetson", "wsl", "windows", "mac", "linux")

# A text as the table of causes sees it.

# What is matched line by line is bounded, so that a log of any size takes the same time: so many characters from the
# first and as many from the last lines that can mean something.
_REACH = 24_000
_LONG_LINE = 600


Row = Mapping[str, Any]
# What a row says where the file says nothing; docs/adding-a-cause.md explains the fields.
EMPTY: Row = {
    **dict.fromkeys(("lines", "needs", "unless", "commands", "ask"), ()),
    **dict.fromkeys(("also", "never", "word", "because", "do", "remedy", "source"), ""),
    "alone": False,
    "kind": "environment",
    "confidence": "high",
}


def fits(row: Row, facts: Collection[str], text: str) -> bool:
    """Whether no fact contradicts the row."""
    return (
        all(fact in facts for fact in row["needs"])
        and not any(fact in facts for fact in row["unless"])
        and (not row["also"] or _regex(row["also"]).search(text) is not None)
        and (not row["never"] or _regex(row["never"]).search(text) is None)
    )


@functools.cache
def table() -> Mapping[str, Any]:
    return tomllib.loads((Path(__file__).parent / "data" / "causes.toml").read_text(encoding="utf-8"))


@functools.cache
def causes() -> tuple[Row, ...]:
    """All rows; of those that fit, the first decides."""
    return tuple({**EMPTY, **row} for row in table()["cause"])


@functools.lru_cache(maxsize=1)
def facts_in(text: str) -> frozenset[str]:
    """The facts that a lower-case text states about its machine: 'mac', 'amd', 'wsl' …"""
    return frozenset(name for name, patterns in table()["facts"].items() if _any(patterns, text))


class Reading:
    """A text as the table sees it. text: all of it, lower case, single spaces. failures: (line, start, end) of each line
    (or sentence of a long one) that reports one, by form alone. places: (row, start, end) of everything in the text
    that a row of the table speaks of."""

    def __init__(self, lines: Iterable[str], rows: Sequence[Row] | None = None) -> None:
        plain = [" ".join(line.split()) for line in lines]
        self.text = _low(" ".join(filter(None, plain)))
        kept = _bounded(list(dict.fromkeys(filter(None, plain))))
        self._flat = " ".join(kept)
        self.low = _low(self._flat)
        self.failures = tuple(_failures(kept))
        self.places = tuple(
            (row, match.start(), match.end())
            for row in (causes() if rows is None else rows)
            for pattern in row["lines"]
            if plain_part(pattern) in self.low
            for match in _regex(pattern).finditer(self.low)
        )

    def met(self, facts: Collection[str]) -> dict[str, str]:
        """What each fitting row has met: id -> the words in the text, in the order of the table."""
        found: dict[str, str] = {}
        for row, start, end in self.places:
            if row["id"] not in found and fits(row, facts, self.text):
                lines = (line for line, first, last in self.failures if first < end and start < last)
                found[row["id"]] = next(lines, self._flat[start:end])[:200]
        return found

    def unexplained(self, facts: Collection[str]) -> tuple[str, ...]:
        """The failures that no fitting row touches. What only passes another failure on counts as explained where a row
        explains that one; a match that only runs on into a failure's first word touches it not."""
        fitting = [place for place in self.places if fits(place[0], facts, self.text)]
        is_told = any(row["word"] for row, _, _ in fitting)
        spans = [(start, end) for row, start, end in fitting if is_told or row["kind"] != "wrapper"]
        left = [
            line[:300]
            for line, first, last in self.failures
            if not any(
                first <= start < last or (start < first and end >= min(first + 16, last)) for start, end in spans
            )
        ]
        return tuple(dict.fromkeys(left))


def _low(text: str) -> str:
    lowered = text.lower().replace("’", "'").replace("‘", "'")
    # a few letters have a longer lower case ('İ'); places must stay the same
    return lowered if len(lowered) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _bounded(lines: list[str]) -> list[str]:
    telling = "\n".join(lines)
    if len(telling) > 2 * _REACH:
        telling = "\n".join(line for line in lines if any(word in line.lower() for word in table()["failure"]["words"]))
    if len(telling) > 2 * _REACH:
        telling = telling[:_REACH] + "\n" + telling[-_REACH:]
    return telling.split("\n")


def _failures(lines: list[str]) -> Iterable[tuple[str, int, int]]:
    form, offset, in_traceback = table()["failure"], 0, False
    for number, line in enumerate(lines):
        if re.search(r"(?:Error|Exception): ?$", line):
            # the message stands on the next line
            line = " ".join(lines[number : number + 2])
        low = _low(line)
        in_traceback = in_traceback or low.startswith("traceback (most recent")
        ends_traceback = in_traceback and re.match(r"(?!file |traceback )[a-z_]\w*(?:\.\w+)+(?::|$)", low) is not None
        in_traceback = in_traceback and not ends_traceback
        is_class = ends_traceback or re.match(r"\w+(?:\.\w+)*\.[A-Z]\w+: ", line) is not None
        for start, end in _sentences(line):
            said = low[start:end]
            if (is_class and start == 0) or (_any(form["reports"], said) and not _any(form["harmless"], said)):
                yield line[start:end].strip(), offset + start, offset + end
        offset += len(lines[number]) + 1


def _sentences(line: str) -> Iterable[tuple[int, int]]:
    """A line, or the sentences of one that is a whole text."""
    if len(line) <= _LONG_LINE:
        return [(0, len(line))]
    ends = [match.end() for match in re.finditer(r"(?<=[.!?;|]) (?=\S)|(?= (?:\w+\.)*\w+(?:Error|Warning): )", line)]
    cuts = [0, *ends, len(line)]
    return [
        (at, min(at + _LONG_LINE, end)) for start, end in zip(cuts, cuts[1:]) for at in range(start, end, _LONG_LINE)
    ]


def _any(patterns: Iterable[str], text: str) -> bool:
    return any(plain_part(each) in text and _regex(each).search(text) for each in patterns)


_regex = functools.cache(re.compile)


@functools.cache
def plain_part(pattern: str) -> str:
    """The longest run of characters that every match of `pattern` contains; '' where none is sure. Most texts lack it,
    and then need no regular expression at all."""
    text, before = pattern, ""
    while text != before:
        before, text = text, re.sub(r"(?<!\\)\((?:[^()\\]|\\.)*\)(?:[?*+]|\{[\d,]*\})?", "\0", text)
    if "|" in re.sub(r"\\.|\[[^]]*\]", "", text):
        return ""
    text = re.sub(r"(?:\[(?:[^\]\\]|\\.)*\]|\\?.)(?:[?*]|\{0?,?\d*,?\d*\})|\[(?:[^\]\\]|\\.)*\]|\\[a-zA-Z]", "\0", text)
    text = re.sub(r"[.^$+]", "\0", re.sub(r"\\(\W)", lambda match: "\0" if match[1] in ".^$+" else match[1], text))
    return max(text.split("\0"), key=len)


# A machine as the table sees it.


def mask_problem(value: str | None, count: int | None, uuids: Sequence[str | None] = ()) -> str | None:
    """Why this CUDA_VISIBLE_DEVICES leaves no device, in words; None where it leaves some, or cannot be told.

    CUDA takes indices or UUID prefixes up to the first that does not exist. count: how many GPUs the driver lists, None
    where unknown. ' 0' with a space is valid. Source: CUDA C++ Programming Guide, environment variables.
    """
    if value is None:
        return None
    tokens = [token.strip() for token in value.split(",")]
    first, twice = tokens[0], next((token for token in tokens if tokens.count(token) > 1), "")
    is_number, known = first.lstrip("+").isdigit(), [uuid for uuid in uuids if uuid]
    is_uuid, is_known = first.startswith(("GPU-", "MIG-")), any(uuid.startswith(first) for uuid in known)
    problems = (
        (not value.strip(), "the empty value hides every GPU"),
        (twice, f"{twice!r} stands twice, and CUDA then shows no GPU"),
        (
            is_number and count is not None and int(first) >= count,
            f"GPU {first} does not exist, the driver lists {count} (numbers start at 0)",
        ),
        (first.startswith("GPU-") and known and not is_known, f"no GPU has the UUID {first[:12]}…"),
        (not (is_number or is_uuid), f"{first!r} is no GPU number or UUID, so every GPU is hidden"),
    )
    return next((words for holds, words in problems if holds), None)


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
    row: Row | None = None


class Case:
    """A machine with what the rules ask of it again and again. text: what was pasted, where something was.

    gpus: as torch sees them where it does, else as the driver lists them; `gpu` is the one that torch would use, `held`
    what the build holds for it, `holdings` for each whose capability is known or follows from its name. release: (2, 9)
    for '2.9.1+cu128'. ran: whether a kernel ran on a GPU. starts: whether the driver starts the build. floor: the lowest
    driver that does, '580.65.06 or newer'; '' where the table has none."""

    def __init__(
        self, facts: MachineFacts, text: Reading | None = None, expectation: Expectation | None = None
    ) -> None:
        self.facts, self.text, self.expectation = facts, text, expectation or Expectation()
        self.driver, self.torch, self.proof = facts.driver or Driver(), facts.torch or Torch(), facts.proof
        self.is_text, is_windows = facts.source == "text", facts.platform.system == "Windows" or facts.platform.is_wsl
        self.system = "Windows" if is_windows else "Linux"
        self.variant, self.release = variant_of(self.torch), pair(self.torch.version)
        self.gpus = self.torch.gpus or self.driver.gpus
        self.gpu = self.gpus[0] if self.gpus else None
        known = [(gpu, own) for gpu in self.gpus if (own := capability_of(gpu))]
        self.holdings = [(gpu, own, holding(facts, own)) for gpu, own in known]
        self.held = holding(facts, capability_of(self.gpu) if self.gpu else None)
        self.ran = bool(self.proof and self.proof.ran and self.proof.device != "cpu")
        self.starts, floor = self.runs(self.variant or "cpu"), driver_floor(self.variant or "", self.system)
        self.floor = f"{text_of(floor)} or newer" if floor else ""
        self.driver_needed = (
            f"driver {self.floor} for {self.variant}" if floor else f"a driver that runs {self.variant}"
        )
        self.min_cuda, wanted = dotted(self.expectation.min_cuda), self.expectation.device
        shows_no_gpu = facts.has_nvidia_device is False and not self.gpus
        self.is_rehearsal = wanted == "cpu" or (wanted == "auto" and shows_no_gpu)

    def runs(self, variant: str) -> bool | None:
        """Whether this driver starts such a build; None where that cannot be told."""
        return driver_runs(variant, self.driver.version, self.system, driver_cuda=self.driver.cuda_version)

    @functools.cached_property
    def reading(self) -> Reading:
        """The pasted text, or what this machine reported itself."""
        if self.text is not None:
            return self.text
        facts, driver = self.facts, self.driver
        lines = [
            *facts.messages,
            self.torch.error,
            self.proof and self.proof.error,
            driver.nvml_error and f"failed to initialize nvml: {driver.nvml_error}",
            driver.cuda_init_error and f"cuinit_{driver.cuda_init_error}",
            driver.libcuda == "stub" and "libcuda_stub",
            driver.uvm_error and f"uvm_unreadable {driver.uvm_error}",
            *(f"NVRM: Xid (PCI): {number}" for number in facts.xids or ()),
        ]
        return Reading(str(line) for line in lines if line)

    @functools.cached_property
    def tool(self) -> str:
        """What the person installs with: 'pip', 'uv', 'uv project', 'conda', 'poetry', 'pixi' or 'docker'."""
        tools = table()["tools"].items()
        return next((name for name, pattern in tools if re.search(pattern, self.reading.text)), "pip")

    @functools.cached_property
    def known(self) -> dict[str, str]:
        """Every fact that holds here, by the name that the table gives it, with the words that say it."""
        found = dict.fromkeys(facts_in(self.reading.text), "") if self.is_text else {}
        for facts in (_platform, _run, _build, _devices, _driver):
            found |= {name: said if isinstance(said, str) else "" for name, said in facts(self).items() if said}
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

    @functools.cached_property
    def found(self) -> Diagnosis:
        """The diagnosis of the first row of the table that fits; where none does, what is known and what is open."""
        met, unexplained = self.reading.met(self.known), self.reading.unexplained(self.known)
        for row in causes():
            if row["word"] and (
                row["id"] in met if row["lines"] and not row["alone"] else fits(row, self.known, self.reading.text)
            ):
                return _decided(self, row, met.get(row["id"], ""), unexplained)
        fine = None if unexplained or "failed" in self.known else _fine(self)
        if fine or not unexplained:
            nothing = "nothing here tells whether the GPU is usable"
            why = "something failed, and the facts do not tell why" if met else nothing
            return fine or Diagnosis("other", "low", "unknown", (why,), ask(self))
        healthy = "build, driver and GPU fit; " if "build_native" in self.known or self.torch.is_available else ""
        why = f"{healthy}this line is another matter, and no row of the table explains it: {unexplained[0]}"
        confidence = "medium" if healthy else "low"
        return Diagnosis("other", confidence, "unexplained", (why,), ask(self), "", unexplained)


def capability_of(gpu: Gpu) -> Capability | None:
    """Stated, or by name. A name sold with several chips counts as its newest: what that one lacks, all lack."""
    return gpu.compute_capability or max(possible_capabilities(gpu.name), default=None)


# What holds of a case, by the names of the table of causes: true, or the words that say it.


def _platform(case: Case) -> Mapping[str, object]:
    here, environment = case.facts.platform, case.facts.environment
    return {
        "windows": here.system == "Windows",
        "linux": here.system == "Linux",
        "wsl": here.is_wsl,
        "container": here.is_container,
        "jetson": here.is_tegra,
        "no_smi": case.facts.nvidia_smi_exit_code == 127,
        "nvidia_void": environment.get("NVIDIA_VISIBLE_DEVICES") in ("void", "none") and not case.gpus,
        "no_torch": not case.is_text and case.facts.torch is None,
    }


def _run(case: Case) -> Mapping[str, object]:
    """What a kernel that ran here showed."""
    proof, forced = case.proof, case.facts.environment.get("CUDA_FORCE_PTX_JIT", "0")
    if proof is None or proof.device == "cpu":
        return {}
    error, limit = proof.max_relative_error, proof.limit
    is_off = proof.ran and error is not None and limit is not None and error > limit
    hidden = f"CUDA_FORCE_PTX_JIT={forced} is set: it hides all native code, and the libraries have no PTX"
    return {
        "forced_jit": not proof.ran and forced not in ("", "0") and hidden,
        "failed": not proof.ran,
        "wrong_numbers": is_off and f"the kernel ran, but its numbers are off by {error:.2g} (limit {limit:.2g})",
        "ran_by_jit": proof.ran_without_ptx_jit is False
        and "the kernel ran, but not with PTX JIT switched off: the driver compiled it on this machine",
        "ran": proof.ran,
    }


def _build(case: Case) -> Mapping[str, object]:
    """What torch is, and what it holds for the GPUs; one that it does not serve decides, whatever the others say."""
    torch, variant, platform = case.torch, case.variant, platform_of(case.facts)
    kind = {None: "torch_unknown", "cpu": "torch_cpu"}.get(variant, "torch_cuda")
    rocm = f"this torch is built for AMD ROCm ({torch.hip}); it answers torch.cuda calls, but on no NVIDIA GPU"
    is_plain = torch.version and torch.cuda is None and torch.is_available is False and "+" not in torch.version
    is_old_arm = platform == "linux_aarch64" and case.release and case.release <= (2, 10)
    lacking = "Windows" if platform == "windows_x86_64" else "aarch64 before torch 2.11" if is_old_arm else ""
    bad = [row for row in case.holdings if row[2].how in ("none", "ptx") and not _jetpack_runs(case, row[1])]
    bad.sort(key=lambda row: row[2].how != "none")
    why = [f"{gpu.name or 'the GPU'} (compute capability {dotted(own)}): {held.reason}" for gpu, own, held in bad]
    worst = bad[0][2] if bad else Coverage("unknown", "")
    hows, reason = {held.how for _, _, held in case.holdings}, case.holdings[0][2].reason if case.holdings else ""
    return {
        "torch_rocm" if torch.hip else kind: rocm if torch.hip else True,
        "cuda_available": torch.is_available,
        "cuda_dark": torch.is_available is False or torch.device_count == 0,
        "torch_28_error": case.release and case.release >= (2, 8),
        "pypi_cpu": is_plain
        and lacking
        and f"torch {torch.version} without a CUDA tag is PyPI's build, which has no CUDA on {lacking}",
        "build_lacks": worst.how == "none" and why[0],
        "build_ptx": worst.how == "ptx" and why[0],
        "gpu_older": worst.is_too_old,
        "build_guessed": bad and worst.source not in ("list", "range") and torch.is_available is None,
        "build_serves": hows <= {"native", "possible"} and reason,
        "build_native": hows == {"native"} and reason,
    }


def _jetpack_runs(case: Case, capability: Capability) -> bool:
    """From the JetPack 7.2 driver on, Orin has been seen to run desktop code that the rule forbids."""
    jetpack = (case.facts.platform.jetpack or "").lower().lstrip("r")
    number = tuple(int(part) for part in jetpack.split(".") if part.isdigit())
    is_new = number >= ((39,) if number and number[0] >= 30 else (7, 2))
    return capability in TEGRA and (is_new or (parse_driver(case.driver.version) or (0,)) >= (595,))


def _devices(case: Case) -> Mapping[str, object]:
    """Which GPUs there are, and whether something hides them."""
    version, capabilities = case.driver.version, [own for _, own, _ in case.holdings]
    gone = next((own for own in capabilities if still_driven(own, version) is False), None)
    known, branch = max(capabilities, default=None), gone and last_driver_branch(gone)
    value, gpus = case.facts.environment.get("CUDA_VISIBLE_DEVICES"), case.driver.gpus
    problem = mask_problem(value, len(gpus) or None, [gpu.uuid for gpu in gpus])
    mask = f"CUDA_VISIBLE_DEVICES={value!r}: {problem or 'none of the devices it names is there'}"
    return {
        "nvidia": case.gpus or version,
        "no_gpu_shown": not (case.gpus or version) or case.facts.nvidia_smi_exit_code == 127,
        "gpu_named": known,
        "gpu_before_37": known and known < (3, 7),
        "gpu_old": known and known < (7, 5),
        "gpu_new": known and known >= (10, 0),
        "driver_dropped_gpu": gone
        and f"driver {version} no longer drives compute capability {dotted(gone)}: R{branch} is the last that does",
        "mask_set": value is not None and mask,
        "masked": problem and mask,
    }


def _driver(case: Case) -> Mapping[str, object]:
    """Whether the driver answers, and whether it starts the build."""
    facts, driver, variant = case.facts, case.driver, case.variant or ""
    is_absent = not case.is_text and facts.has_nvidia_device is False and not case.gpus
    is_silent = is_absent or (facts.nvidia_smi_exit_code == 9 and not driver.gpus)
    alone = "an NVIDIA device is there, but no driver answers for it"
    nobody = alone if facts.has_nvidia_device else "no NVIDIA driver answers on this machine"
    is_shown = re.search(r"nvidia-smi \d{3}\.\d|kmd version", case.reading.text) if case.is_text else driver.gpus
    library, kernel, cuda = driver.library_version, driver.kernel_version, driver.cuda_version
    differ = library and kernel and parse_driver(library) != parse_driver(kernel)
    shown = driver.version or (f"of CUDA {dotted(cuda)}" if cuda else "unknown")
    own, wanted = cuda or cuda_of_driver(driver.version, case.system), cuda_of(variant)
    return {
        "no_device_seen": is_absent,
        "no_driver_seen": is_silent and not case.torch.is_available and nobody,
        "driver_answers": is_shown and "; the host's driver works",
        "libs_differ": differ and f" (library {library}, kernel module {kernel})",
        "compat_loaded": driver.libcuda == "compat",
        "driver_below_floor": case.starts is False
        and f"{variant} needs driver {case.floor or 'a newer one'} ({case.system}); the driver here is {shown}",
        "minor_compat": own and wanted and own[0] == wanted[0] and own < wanted,
    }


def _decided(case: Case, row: Row, said: str, unexplained: tuple[str, ...]) -> Diagnosis:
    """What a row of the table says of this case. said: the words in the text that it explains."""
    torch, known, gpu, python = case.torch, case.known, case.gpu and case.gpu.name, case.facts.platform.python
    capability = case.holdings[0][1] if case.holdings else None
    left = any(name.startswith("nvidia-cuda-runtime") for name in case.facts.packages) or "pip_replaced" in known
    because = row["because"].format(
        why=next((known[fact] for fact in row["needs"] if known.get(fact)), ""),
        gpu=f"{gpu or 'the GPU'}" + (f" ({dotted(capability)})" if capability else ""),
        build=torch.version or "this torch",
        sees=f"; the driver sees {gpu}" if gpu else "",
        replaced="; a later install replaced a CUDA build" if left else "",
        healthy=known.get("driver_answers", ""),
        device="" if not case.facts.has_nvidia_device else "; an NVIDIA device is there",
        versions=known.get("libs_differ", ""),
        supports=f" (it supports CUDA up to {dotted(case.driver.cuda_version)})" if case.driver.cuda_version else "",
        python=f" (Python {dotted(python)})" if python else "",
    )
    quoted = (f"it says: {said}",) if case.text and said and said.lower() not in because.lower() else ()
    is_guess = "build_guessed" in known and not said and {"build_lacks", "build_ptx"} & set(row["needs"])
    is_doubted = unexplained or is_guess or any("several" in note for note in case.facts.notes)
    confidence = "medium" if row["confidence"] == "high" and is_doubted else row["confidence"]
    asked = ask(case, row, is_sure=confidence == "high")
    return Diagnosis(row["word"], confidence, row["id"], (because, *quoted), asked, row["kind"], unexplained, row)


def ask(case: Case, row: Row | None = None, *, is_sure: bool = False) -> str:
    """The first thing to paste next that is not there yet and can run on that machine; '' where nothing is open."""
    keys = row["ask"] if row else ("traceback",) if case.reading.failures else ()
    is_told = row and row["remedy"] and case.holdings and case.driver.version and "torch_unknown" not in case.known
    if is_sure and (not keys or is_told):
        return ""
    places = [name for name in PLACES if name in case.known] or ["linux"]
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
    if case.torch.is_available:
        if "driver_below_floor" in case.known:
            reasons.append("the driver is older than the build asks for, and CUDA runs: forward compatibility")
        return Diagnosis("ok", "high", "fits", tuple(reasons) or ("CUDA is available, and nothing contradicts it",))
    is_native = "build_native" in case.known
    return Diagnosis("ok", "medium", "fits", tuple(reasons), "python -m kit check") if is_native else None

"""Pasted texts: the right word and the right thing to do, no false alarm, no harm, and any input survived.

The texts stand in tests/data/explain: *.toml were written for these tests, triage/ holds real public cases with their
sources. More of those may lie beside the project; without them one test is skipped.
"""

import json
import os
import re
import resource
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from machine_sample import h100

from kit.extras.explain import as_json, as_text, exit_code, explain
from kit.gpu import compat, wheels
from kit.gpu import diagnose as di
from kit.gpu.diagnose import DIAGNOSES, EMPTY, Case, Reading, causes, plain_part, table
from kit.records import dumps

DATA = Path(__file__).parents[1] / "data" / "explain"
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "triage" / "cases"
DOCS = Path(__file__).parents[2] / "docs"
TEXTS = [
    pytest.param(case, id=f"{path.stem}: {case['id']}")
    for path in sorted(DATA.glob("*.toml"))
    for case in tomllib.loads(path.read_text(encoding="utf-8"))["case"]
]
LAYOUTS = [param for param in TEXTS if param.id.startswith("layouts")]
STRANGE = "RuntimeError: frobnicator: lattice checksum disagrees with the manifest"
# A command that changes torch, with any tool.
CHANGES_TORCH = re.compile(r"^.*(?:install|add)\b[^\n]*\b(?:torch==|pytorch-gpu)", re.M)


def is_right(case, found):
    return found.found.word in (case["word"], *case.get("also", ()))


@pytest.mark.parametrize("case", TEXTS)
def test_a_pasted_text_is_understood(case):
    found = explain(case["text"])
    answer, named = as_text(found), set(found.remedy.torch_variants)
    assert is_right(case, found), answer
    for words in case.get("says", ()):
        assert re.search(words, answer, re.I), (words, answer)
    for words in case.get("never", ()):
        harm = CHANGES_TORCH if words == "no torch" else re.compile(words, re.I)
        assert not harm.search(answer), (words, answer)
    assert not named & set(case.get("bad_variants", ())), found.remedy
    assert "variants" not in case or named & set(case["variants"]), found.remedy
    assert case.get("explained", True) == (not found.found.unexplained), answer


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: " ".join(text.split()),
        lambda text: "\n".join(f"> {line}" for line in text.splitlines()),
        lambda text: text.replace("\n", "\r\n").encode("utf-16"),
        lambda text: f"```\n{text}\n```",
        lambda text: f"\x1b[31m{text}\x1b[0m",
        lambda text: "2026-01-02 03:04:05,678 " + text.replace("\n", "\n2026-01-02 03:04:05,678 "),
    ],
    ids=["flattened", "quoted", "utf16-crlf", "fenced", "coloured", "logged"],
)
def test_the_layout_does_not_change_the_diagnosis(case, change):
    assert is_right(case, found := explain(change(case["text"]))), found.because


# --- laws ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TEXTS)
def test_a_line_that_nothing_explains_is_quoted_and_never_healthy_sure_or_a_reason_to_install(case):
    found = explain(case["text"] + "\n" + STRANGE)
    assert STRANGE in found.found.unexplained and "lattice checksum" in as_text(found)
    assert found.found.confidence != "high" and found.found.word != "ok"
    if case["word"] == "ok":
        assert not CHANGES_TORCH.search(as_text(found))


@pytest.mark.parametrize(
    "machine", ["MacBook Air M2, macOS 15", "AMD Radeon RX 7800 XT", "Intel Arc B580", "Windows 11 on Arm"]
)
@pytest.mark.parametrize(
    "text",
    [
        "AssertionError: Torch not compiled with CUDA enabled",
        "torch.cuda.is_available() False",
        "RuntimeError: Found no NVIDIA driver on your system.",
        "ERROR: No matching distribution found for torch==2.9.1+cu128",
        "it runs on my CPU instead of the GPU\ntorch 2.9.1+cpu",
        "No CUDA GPUs are available",
        STRANGE,
    ],
)
def test_no_cuda_build_is_named_where_the_machine_is_not_nvidias(machine, text):
    found = explain(f"{machine}\n{text}\n")
    assert found.found.word != "ok" and not found.remedy.torch_variants
    assert not re.search(r"whl/cu\d|\+cu\d{3}\b.*install|install.*\+cu\d{3}", as_text(found)), as_text(found)


def test_a_row_that_a_fact_contradicts_stays_silent():
    lost = "Failed to initialize NVML: Unknown Error\n"
    assert explain("docker container\n" + lost).found.cause == "container_lost_devices"
    assert explain(lost).found.cause == "nvml_unknown"
    missing = "RuntimeError: Found no NVIDIA driver on your system\n"
    assert explain("nvcc fatal : Unsupported gpu architecture 'compute_60'").found.cause == "compiler_too_new"
    assert explain("nvcc fatal : Unsupported gpu architecture 'compute_120'").found.cause == "compiler_too_old"
    assert explain(missing + "WSL2").found.cause == "no_driver_wsl"


def test_what_is_asked_for_was_not_pasted_and_can_run_there():
    text = "RuntimeError: CUDA error: no kernel image is available for execution on the device\n"
    assert "get_arch_list" in explain(text).found.ask
    listed = ">>> torch.cuda.get_arch_list()\n['sm_80']\n"
    assert explain(text + listed).found.ask == "nvidia-smi"
    for machine in ("MacBook Pro M3", "Radeon RX 7900 XTX"):
        assert "nvidia-smi" not in explain(f"{machine}\nTorch not compiled with CUDA enabled").found.ask
    assert "dmesg" not in explain("Windows 11\n(Code 43)").found.ask


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ("$ pip install torch", "python -m pip install"),
        ("$ uv pip install torch", "uv pip install"),
        ("$ uv sync", "uv add"),
        ("$ poetry run python train.py", "poetry add --source"),
        ("$ pixi run train", "pixi add"),
        ("$ conda install pytorch", "conda install -c conda-forge pytorch-gpu"),
        ("docker build -t trainer .", "RUN python -m pip install"),
    ],
)
def test_the_command_is_one_of_the_persons_own_tool(typed, command):
    found = explain(f"{typed}\ntorch 2.9.1+cpu\nGPU 0: NVIDIA L4\nDriver Version: 580.95.05\n")
    assert any(line.startswith(command) for line in found.remedy.commands), found.remedy.commands
    assert "torchvision" in " ".join(found.remedy.commands) and re.search(
        r"cu128|12\.8", " ".join(found.remedy.commands)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # the smallest change comes first
        ("torch 2.9.1+cu130, torchvision 0.24.1+cu130\nGPU 0: NVIDIA RTX A5000\nDriver Version: 550.144.03\n",
         '"torch==2.9.1+cu128" "torchvision==0.24.1+cu128"'),
        # a package that pins torch is named where the release changes
        ("vllm==0.6.3\ntorch==2.4.0+cu121\nGPU 0: NVIDIA GeForce RTX 5090\nDriver Version: 580.95.05\n", "vLLM pins"),
    ],
)  # fmt: skip
def test_a_change_is_the_smallest_and_names_what_goes_with_it(text, words):
    assert words in as_text(explain(text))


# --- the table ----------------------------------------------------------------------------------------


def test_every_row_is_complete_and_names_only_what_there_is():
    facts = set(table()["facts"]) | FACTS
    assert len({row["id"] for row in causes()}) == len(causes())
    for row in causes():
        assert set(row) == {"id", *EMPTY}, row["id"]
        assert row["word"] in ("", *DIAGNOSES) and row["confidence"] in ("high", "medium", "low"), row["id"]
        assert row["kind"] in ("environment", "program", "hardware", "harmless", "wrapper"), row["id"]
        assert row["lines"] or row["needs"], f"{row['id']} would always fit"
        assert bool(row["word"]) == (row["kind"] not in ("harmless", "wrapper")), row["id"]
        assert not row["word"] or row["because"], row["id"]
        assert not (row["do"] and row["remedy"]), row["id"]
        assert {*row["needs"], *row["unless"]} <= facts, (row["id"], {*row["needs"], *row["unless"]} - facts)
        assert set(row["ask"]) <= set(table()["ask"]), row["id"]
        by_tool = row["commands"] if isinstance(row["commands"], dict) else {}
        assert set(by_tool) <= {*table()["tools"], "", "jetson", "wsl", "windows", "mac", "linux"}, row["id"]
        for pattern in (*row["lines"], row["also"], row["never"]):
            assert pattern == pattern.lower() or re.search(r"\\[A-Z]", pattern), (row["id"], pattern)
            assert not re.compile(pattern).groups, (row["id"], pattern)


# What code derives; the others stand in the table.
FACTS = {"no_cuda", "torch_unknown", "torch_cpu", "torch_cuda", "torch_rocm"}.union(
    *(derive(Case(h100())) for derive in (di._platform, di._run, di._build, di._devices, di._driver))
)


def test_no_row_is_missed_because_of_the_quick_look_before_it():
    lows = [Reading(param.values[0]["text"].splitlines(), []).low for param in TEXTS]
    for pattern in {pattern for row in causes() for pattern in row["lines"]}:
        met = re.compile(pattern)
        assert all(plain_part(pattern) in low for low in lows if met.search(low)), pattern


def test_the_row_of_the_page_on_adding_one_works():
    page = (DOCS / "adding-a-cause.md").read_text(encoding="utf-8")
    row, text = (re.search(rf"```{kind}\n(.*?)```", page, re.S)[1] for kind in ("toml", "text"))
    new = {**EMPTY, **tomllib.loads(row)["cause"][0]}
    read = Reading(text.splitlines(), [new])
    assert read.failures and not read.unexplained(()) and new["id"] in read.met(())
    assert Reading(text.splitlines()).unexplained(())


# --- real public cases --------------------------------------------------------------------------------


def read_cases(folder):
    cases = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [(case, explain(case["raw_text"])) for case in cases]


def results(answers):
    """The table of docs/explain.md: by kind, how many are right and sure."""
    total, right, sure = Counter(), Counter(), Counter()
    for case, found in answers:
        word = case["expected"]["diagnosis"]
        total[word] += 1
        right[word] += found.found.word in (word, *case["expected"]["accepted_alternatives"])
        sure[word] += found.found.confidence == "high"
    rows = [f"| {word} | {right[word]} of {total[word]} | {sure[word]} |" for word in sorted(total)]
    rows.append(f"| all | {right.total()} of {total.total()} | {sure.total()} |")
    return "\n".join(["| right diagnosis | right | of these sure |", "| --- | --- | --- |", *rows])


def harm(case, found):
    """What the answer names that would not work on that machine, or must not be advised."""
    expected, env, answer = case["expected"], case["env"], as_text(found)
    hints = expected["remedy"] or {}
    builds = re.findall(r"torch==([\d.]+)\+(cu\d+)", " ".join(found.remedy.commands))
    named = {*found.remedy.torch_variants, *(variant for _, variant in builds)}
    bad = named & {*hints.get("variants_bad", ()), *hints.get("variants_bad_on_this_driver", ())}
    if hints.get("variants_ok") == [] or "wheel" in hints.get("forbid", ""):
        bad |= named
    if "reinstall" in expected.get("harmful_if_advised", "") and CHANGES_TORCH.search(answer):
        bad.add("torch installed again")
    if found.found.word == "ok" and expected["diagnosis"] != "ok":
        bad.add("called fine")
    system = "Windows" if "windows" in str(env.get("os", "")).lower() else "Linux"
    for release, variant in builds:
        rows = [row for row in wheels.wheels() if row.release == release and row.variant == variant]
        driver = env["driver"].split()[0] if env.get("driver") else None
        if not rows or compat.driver_runs(variant, driver, system) is False:
            bad.add(f"{release}+{variant} on driver {driver}")
        if env.get("compute_capability"):
            capability = tuple(map(int, env["compute_capability"].split(".")))
            if not any(wheels.serves(row, capability).how == "native" for row in rows):
                bad.add(f"{release}+{variant} lacks {capability}")
    return bad


def assert_good(answers):
    sure = [(case, found) for case, found in answers if case["expected"]["confidence"] == "high"]
    wrong = [
        f"{case['id']}: {found.found.word} ({found.found.cause})"
        for case, found in sure
        if found.found.word not in (case["expected"]["diagnosis"], *case["expected"]["accepted_alternatives"])
    ]
    assert len(wrong) <= 0.03 * len(sure), wrong
    assert {case["id"]: bad for case, found in answers if (bad := harm(case, found))} == {}
    assert [case["id"] for case, found in answers if found.found.word == "ok" and found.found.unexplained] == []
    fine = [(case, found) for case, found in answers if case["expected"]["diagnosis"] == "ok"]
    assert fine and all(found.found.word in ("ok", *case["expected"]["accepted_alternatives"]) for case, found in fine)


def test_forty_public_cases_are_right_and_harmless_and_the_page_says_so(capsys):
    answers = read_cases(DATA / "triage")
    shown = results(answers)
    with capsys.disabled():
        print(f"\n{shown}")
    assert len(answers) == 40 and all(case["source"] for case, _ in answers)
    assert_good(answers)
    assert shown in (DOCS / "explain.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not BESIDE.is_dir(), reason="the other triage cases are not beside the project")
def test_all_public_cases_beside_the_project_are_right_and_harmless(capsys):
    answers = read_cases(BESIDE)
    with capsys.disabled():
        print(f"\n{results(answers)}")
    assert_good(answers)


# --- any input, any size ------------------------------------------------------------------------------


def test_every_prefix_of_a_text_gives_an_answer():
    text = "\n".join(param.values[0]["text"] for param in LAYOUTS[:2])
    for end in range(0, len(text), 83):
        assert explain(text[:end]).found.word in DIAGNOSES


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        bytes(1000),
        os.urandom(100_000),
        b"(" * 50_000,
        b"\x1b[" * 50_000,
        b"'" * 50_000,
        "🚀" * 1000,
        "İ" * 1000,
        "CUDA_VISIBLE_DEVICES=",
        "driver version: 999999999",
        "sm_9999999",
        "found version 99999999999999999",
        "\x00torch 2",
    ],
    ids=range(14),
)
def test_junk_is_answered_and_never_understood(content):
    found = explain(content)
    assert (found.found.word, found.found.confidence) == ("other", "low")
    assert found.found.ask and not found.remedy.torch_variants
    assert exit_code(found) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"a" * 10_000_000,
        b"\n" * 2_000_000,
        b"torch-" * 200_000,
        b"GPU 0: NVIDIA GeForce RTX 5090 " * 30_000,
        b"driver version: 580.95.05 " * 30_000,
        b"[" * 500_000,
        b"sm_90 " * 100_000,
        b"0.0.0.0" * 200_000,
        b"".join(b"error: cannot open %d failed\n" % number for number in range(20_000)),
        b"".join(b"nvrm: cuda torch docker %d\n" % number for number in range(20_000)),
    ],
    ids=["letters", "lines", "torch", "gpus", "drivers", "brackets", "codes", "numbers", "errors", "words"],
)
def test_a_text_of_any_size_is_answered_at_once(content):
    """Only 144 KiB of it are read."""
    start = time.process_time()
    explain(content)
    assert time.process_time() - start < 3


def test_the_whole_command_is_quick_and_needs_only_the_standard_library():
    text = TEXTS[0].values[0]["text"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # -S: no site-packages at all
    done = subprocess.run(
        [sys.executable, "-S", "-m", "kit", "explain", "--json"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1 and json.loads(done.stdout)["diagnosis"]
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_a_long_log_is_read_from_both_ends_and_says_so():
    end = "RuntimeError: The NVIDIA driver on your system is too old (found version 12040)."
    found = explain("line of a log\n" * 200_000 + end)
    assert found.found.word == "driver_too_old_for_runtime"
    assert any("only the first and the last part" in reason for reason in found.because)


# --- what is read -------------------------------------------------------------------------------------


def gpu_names(found):
    return [gpu.name for gpu in found.facts.driver.gpus] if found.facts.driver else []


def driver_version(found):
    return found.facts.driver and found.facts.driver.version


def torch_cuda(found):
    return found.facts.torch.cuda if found.facts.torch else "no torch"


@pytest.mark.parametrize(
    ("text", "read", "value", "says"),
    [
        # two versions are a contradiction; a shorter spelling of one is not
        ("Driver Version: 535.129.03\nDriver Version: 580.95.05\n", driver_version, None, "several driver versions"),
        ("Driver Version: 570.124.06\nNvidia driver version: 570.124\n", driver_version, "570.124.06", ""),
        ("torch==2.6.0+cu124\ntorch==2.9.1+cpu\nGPU 0: NVIDIA L4\n", torch_cuda, (12, 4), "several torch versions"),
        # what is wanted is not installed
        ("Could not find a version that satisfies the requirement torch==1.12.1+cu113", torch_cuda, "no torch", ""),
        ("PyTorch 2.5.1 with CUDA 12.1", torch_cuda, (12, 1), ""),
        ("torch 2.9.1 (cu128)", torch_cuda, (12, 8), ""),
        ("pytorch 2.7 built for cuda 12.8", torch_cuda, (12, 8), ""),
        ("torch-2.8.0 cu129", torch_cuda, (12, 9), ""),
        # prose that names two chips names none, and a number that is no card is none
        ("It works on my RTX 3090 but not on the V100 of a friend.", gpu_names, [], ""),
        ("step 5090 of 10000, loss 3.2, port 3080, 4090 MB free", gpu_names, [], ""),
        ("I bought a 5090 last week", gpu_names, ["RTX 5090"], ""),
        ("GPU: NVIDIA T1000 8GB", gpu_names, ["NVIDIA T1000 8GB"], ""),
        ("GPU 0: NVIDIA GeForce 940MX", gpu_names, ["NVIDIA GeForce 940MX"], ""),
        ("GPU 0: GRID T4-16Q", gpu_names, ["GRID T4-16Q"], ""),
        ("GPU 0: NVIDIA A40-48Q", gpu_names, ["NVIDIA A40-48Q"], ""),
        ("Tesla K40m", gpu_names, ["Tesla K40m"], ""),
        ("GPU: Quadro NVS 310", gpu_names, ["Quadro NVS 310"], ""),
        ("with a 4070 Ti SUPER in it", gpu_names, ["RTX 4070 Ti SUPER"], ""),
        # an unknown GPU is said to be unknown, and a torch newer than the table is no alarm
        ("GPU 0: NVIDIA GeForce RTX 9990\nno kernel image is available", gpu_names, ["NVIDIA GeForce RTX 9990"],
         "compute capability of NVIDIA GeForce RTX 9990"),
        ("torch 2.31.0+cu150\ntorch.cuda.is_available() True\nGPU 0: NVIDIA H100 80GB HBM3\n", torch_cuda, (15, 0),
         "Diagnosis: ok"),
    ],
)  # fmt: skip
def test_what_stands_in_a_text_is_read_and_nothing_else(text, read, value, says):
    found = explain(text)
    assert read(found) == value and says in as_text(found)


# --- what is shown ------------------------------------------------------------------------------------


def test_the_json_form_is_stable():
    found = as_json(explain(TEXTS[0].values[0]["text"]))
    assert list(found)[:4] == ["diagnosis", "confidence", "because", "remedy"]
    assert set(found) == {*list(found)[:4], "cause", "kind", "unexplained", "unknown", "ask"}
    assert list(found["remedy"])[:4] == ["summary", "commands", "torch_variants", "driver"]
    assert dumps(found)


def test_a_terminal_escape_in_a_gpu_name_does_not_reach_the_screen():
    text = as_text(explain("GPU 0: NVIDIA GeForce RTX 4090\x1b]0;owned\x07\x1b[2J\ntorch 2.6.0+cpu"))
    assert "\x1b" not in text and "\x07" not in text


def test_exit_codes_tell_fine_wrong_and_unknown_apart():
    assert exit_code(explain("torch 2.9.1+cu128\nCUDA available: True\nGPU: Tesla T4\n")) == 0
    assert exit_code(explain("Torch not compiled with CUDA enabled")) == 1
    assert exit_code(explain("hello")) == 3


def test_the_first_screen_of_the_readme_shows_what_the_command_answers():
    page = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    pasted, answer = (re.search(rf"```{kind}\n(.*?)```", page, re.S)[1] for kind in ("console", "text"))
    assert as_text(explain(pasted)).strip() == answer.strip()
    assert page[: page.index(answer)].count("\n") < 40

"""Pasted texts: the right word, no false alarm, no remedy that cannot work, and any input survived."""

import os
import time

import pytest
from explain_texts import TEXTS, VLLM_INFO, smi

from kit.extras.explain.explain import as_json, as_text, exit_code, explain
from kit.gpu.diagnose import DIAGNOSES
from kit.records import dumps


@pytest.mark.parametrize("pasted", TEXTS, ids=[pasted.name for pasted in TEXTS])
def test_a_pasted_text_is_understood(pasted):
    found = explain(pasted.text)
    assert found.diagnosis in (pasted.diagnosis, *pasted.also), found.because
    named = set(found.remedy.torch_variants)
    assert not named & set(pasted.bad_variants), found.remedy
    assert not pasted.variants or named & set(pasted.variants), found.remedy


@pytest.mark.parametrize("pasted", TEXTS, ids=[pasted.name for pasted in TEXTS])
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
def test_the_layout_does_not_change_the_diagnosis(pasted, change):
    found = explain(change(pasted.text))
    assert found.diagnosis in (pasted.diagnosis, *pasted.also), found.because


def test_every_prefix_of_a_text_gives_an_answer():
    text = smi("NVIDIA GeForce RTX 5090", "576.88", "12.9") + VLLM_INFO.format(available="True", driver="570.172.08")
    for end in range(0, len(text), 41):
        assert explain(text[:end]).diagnosis in DIAGNOSES


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
        "CUDA_VISIBLE_DEVICES=",
        "driver version: 999999999",
        "sm_9999999",
        "found version 99999999999999999",
        "\x00torch 2",
    ],
    ids=range(13),
)
def test_junk_is_answered_and_never_understood(content):
    found = explain(content)
    assert (found.diagnosis, found.confidence) == ("other", "low")
    assert found.ask and not found.remedy.torch_variants
    assert exit_code(found) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"a" * 100_000_000,
        b"\n" * 20_000_000,
        b"torch-" * 2_000_000,
        b"GPU 0: NVIDIA GeForce RTX 5090 " * 300_000,
        b"driver version: 580.95.05 " * 300_000,
        b"[" * 5_000_000,
        b"sm_90 " * 1_000_000,
        b"0.0.0.0" * 2_000_000,
    ],
    ids=["letters", "lines", "torch", "gpus", "drivers", "brackets", "codes", "numbers"],
)
def test_a_text_of_any_size_is_answered_at_once(content):
    start = time.perf_counter()
    explain(content)
    assert time.perf_counter() - start < 3


def test_a_long_log_is_read_from_both_ends_and_says_so():
    end = "RuntimeError: The NVIDIA driver on your system is too old (found version 12040)."
    found = explain("line of a log\n" * 200_000 + end)
    assert found.diagnosis == "driver_too_old_for_runtime"
    assert any("only the first and the last part" in reason for reason in found.because)


def test_two_driver_versions_are_a_contradiction_and_none_is_taken():
    found = explain("Driver Version: 535.129.03\nDriver Version: 580.95.05\ntorch 2.13.0+cu130\nGPU 0: NVIDIA L4\n")
    assert any("several driver versions" in reason for reason in found.because)
    assert found.facts.driver.version is None


def test_a_shorter_spelling_of_a_version_is_no_contradiction():
    found = explain("Driver Version: 570.124.06\nNvidia driver version: 570.124\n")
    assert found.facts.driver.version == "570.124.06"


def test_two_torch_versions_are_told():
    found = explain("torch==2.6.0+cu124\ntorch==2.9.1+cpu\nGPU 0: NVIDIA L4\n")
    assert any("several torch versions" in reason for reason in found.because)


def test_what_is_wanted_is_not_taken_for_what_is_installed():
    assert explain("Could not find a version that satisfies the requirement torch==1.12.1+cu113").facts.torch is None


def test_prose_that_names_two_chips_names_none():
    assert explain("It works on my RTX 3090 but not on the V100 of a friend.").facts.driver is None


def test_an_unknown_gpu_is_said_to_be_unknown():
    found = explain("GPU 0: NVIDIA GeForce RTX 9990\ntorch 2.13.0+cu130\nno kernel image is available")
    assert any("compute capability of NVIDIA GeForce RTX 9990" in what for what in found.unknown)


def test_a_torch_newer_than_the_table_is_no_alarm():
    found = explain("torch 2.31.0+cu150\ntorch.cuda.is_available() True\nGPU 0: NVIDIA H100 80GB HBM3\n")
    assert found.diagnosis == "ok"


def test_the_json_form_is_stable():
    found = as_json(explain(TEXTS[0].text))
    assert list(found) == ["diagnosis", "confidence", "because", "remedy", "unknown", "ask"]
    assert list(found["remedy"])[:4] == ["summary", "commands", "torch_variants", "driver"]
    assert dumps(found)


def test_the_text_form_leads_with_the_diagnosis_and_holds_the_command():
    text = as_text(explain(TEXTS[0].text))
    assert text.startswith("Diagnosis: arch_missing_from_build") and "whl/cu128" in text


def test_a_terminal_escape_in_a_gpu_name_does_not_reach_the_screen():
    text = as_text(explain("GPU 0: NVIDIA GeForce RTX 4090\x1b]0;owned\x07\x1b[2J\ntorch 2.6.0+cpu"))
    assert "\x1b" not in text and "\x07" not in text


def test_exit_codes_tell_fine_wrong_and_unknown_apart():
    assert exit_code(explain("torch 2.9.1+cu128\nCUDA available: True\nGPU: Tesla T4\n")) == 0
    assert exit_code(explain("Torch not compiled with CUDA enabled")) == 1
    assert exit_code(explain("hello")) == 3

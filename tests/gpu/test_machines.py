"""Recorded machines: each fact set with its verdict, its remedy and its screen.

KIT_UPDATE_GOLDEN=1 writes the screens anew; look at the difference before you keep it.
"""

import json
import os
from pathlib import Path

import pytest

from kit.gpu.check import check
from kit.gpu.facts import MachineFacts
from kit.records import from_json, to_json

FOLDER = Path(__file__).parents[1] / "machines"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name):
    record = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    expect = record["expect"]
    found = check(
        device=expect["device"],
        expect_gpu=expect["gpu_name"],
        min_cuda=expect["min_cuda"],
        facts=from_json(MachineFacts, record["facts"]),
    )
    return record, found


def test_there_are_at_least_25_machines_and_each_says_what_it_is():
    kinds = [json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["about"]["kind"] for name in NAMES]
    assert len(NAMES) >= 25 and set(kinds) == {"real", "reconstructed", "synthetic"}


@pytest.mark.parametrize("name", NAMES)
def test_the_verdict_is_the_expected_one(name):
    record, found = load(name)
    expect, verdict = record["expect"], found.verdict
    assert (verdict.outcome, verdict.diagnosis) == (expect["outcome"], expect["diagnosis"])
    assert {check.id for check in verdict.checks if check.outcome == "FAIL"} == set(expect["failing"])


@pytest.mark.parametrize("name", NAMES)
def test_the_remedy_is_one_that_works(name):
    record, found = load(name)
    named = set(found.remedy.torch_variants)
    assert set(record["expect"]["variants"]) <= named
    assert not set(record["expect"]["never"]) & named


@pytest.mark.parametrize("name", NAMES)
def test_facts_survive_saving_and_reading(name):
    record, found = load(name)
    assert from_json(MachineFacts, to_json(found.facts)) == found.facts


@pytest.mark.parametrize("name", NAMES)
def test_the_screen_is_the_golden_one(name):
    _, found = load(name)
    path, screen = FOLDER / f"{name}.txt", f"{found}\n"
    if os.environ.get("KIT_UPDATE_GOLDEN"):
        path.write_text(screen, encoding="utf-8", newline="\n")
    assert screen == path.read_text(encoding="utf-8")


def test_the_milestones_day_replays():
    """Before: wheels up to sm_90 on an RTX 5090, FAIL with the command. After it: PASS."""
    _, before = load("rtx5090_windows_before")
    _, after = load("rtx5090_windows_after")
    assert (before.verdict.outcome, before.verdict.diagnosis) == ("FAIL", "arch_missing_from_build")
    assert before.remedy.commands == (
        'python -m pip install "torch==2.11.0+cu128" --index-url https://download.pytorch.org/whl/cu128',
    )
    assert (after.verdict.outcome, after.verdict.diagnosis) == ("PASS", "ok")

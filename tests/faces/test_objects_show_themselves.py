"""Every value that a cell may end in shows itself: as escaped HTML in the page's colours, and as plain text."""

import json
import re

import pytest

from kit.gpu.check import check
from kit.gpu.facts import Gpu, MachineFacts, Torch
from kit.gpu.remedy import Remedy
from kit.process import ROOT
from kit.records import Check, Outcome, Verdict, from_json
from kit.show import COLOURS, Table, badge
from kit.sweep.sweep import SweepResult
from kit.train.train import TrainingResult

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"
HOSTILE_FACTS = MachineFacts(torch=Torch(version=HOSTILE, gpus=(Gpu(0, HOSTILE, (9, 0)),)), notes=(HOSTILE,))


def recorded(name):
    data = json.loads((ROOT / "tests" / "machines" / f"{name}.json").read_text(encoding="utf-8"))
    return from_json(MachineFacts, data["facts"])


VALUES = {
    "verdict": Verdict.of([Check("native.x", Outcome.FAIL, HOSTILE, HOSTILE, HOSTILE)], diagnosis=HOSTILE),
    "check": check(device="cuda", facts=HOSTILE_FACTS),
    "facts": HOSTILE_FACTS,
    "remedy": Remedy(HOSTILE, (HOSTILE,)),
    "table": Table((HOSTILE,), ((HOSTILE,),)),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_hostile_text_stays_text_in_the_colour_of_the_page_but_for_badges(value):
    assert "<script" not in value._repr_html_()
    assert not re.search("[\x1b\u202e]", value._repr_html_() + str(value))
    without_badges = re.sub(r'<span style="background:[^"]*">', "", value._repr_html_())
    assert not re.search(r"(?<![-\w])color:", without_badges)


@pytest.mark.parametrize("kind", [TrainingResult, SweepResult])
def test_results_show_themselves_too(kind):
    assert "_repr_html_" in vars(kind) and "__str__" in vars(kind)


def luminance(colour):
    """Relative luminance as in WCAG 2.1, of '#rrggbb' or '#rgb'."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("outcome", Outcome)
def test_a_badge_has_the_contrast_that_wcag_asks_for(outcome):
    ink = re.search(r";color:(#\w+)", badge(outcome))[1]
    light, dark = sorted((luminance(ink), luminance(COLOURS[outcome])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_facts_tell_what_a_person_asks_first():
    text = str(recorded("rtx5090_windows_before"))
    for word in ("Windows 11", "576.88", "12.9", "2.6.0+cu126", "NVIDIA GeForce RTX 5090", "12.0"):
        assert word in text


def test_facts_without_anything_are_unknown_and_not_zero():
    text = str(MachineFacts())
    assert "none seen" in text and "0" not in text


def test_a_remedy_keeps_its_command_on_one_line():
    result = check(device="cuda", facts=recorded("rtx5090_windows_before"))
    assert f"    {result.remedy.commands[0]}" in str(result.remedy).splitlines()

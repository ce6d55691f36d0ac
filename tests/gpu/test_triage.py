"""Real public cases with the right answers: how often the diagnosis is right, and that no remedy is harmful.

The cases live beside the project, not in it; without them this file is skipped.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from kit.extras.explain.explain import explain
from kit.gpu import wheels

CASES = Path(__file__).resolve().parents[3] / "shared" / "triage" / "cases"
KINDS = {"verbatim_excerpt": "verbatim", "rendered_from_extracted_facts": "rendered"}

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the triage cases are not beside the project")


@pytest.fixture(scope="module")
def answers():
    """(case, explanation) for each case, in the order of their names."""
    cases = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CASES.glob("*.json"))]
    return [(case, explain(case["raw_text"])) for case in cases]


def is_right(case, found):
    expected = case["expected"]
    return found.diagnosis in (expected["diagnosis"], *expected["accepted_alternatives"])


def builds(found):
    """(release, variant) of each torch that the remedy names in a command."""
    return re.findall(r"torch==([\d.]+)\+(cu\d+)", " ".join(found.remedy.commands))


def test_at_least_97_percent_of_the_sure_cases_are_right(answers, capsys):
    total, right, wrong = Counter(), Counter(), []
    for case, found in answers:
        key = (KINDS[case["raw_text_kind"]], case["expected"]["confidence"])
        total[key] += 1
        right[key] += is_right(case, found)
        if not is_right(case, found):
            wrong.append(f"{case['id']}: {found.diagnosis}, not {case['expected']['diagnosis']}")
    with capsys.disabled():
        print("\ntriage      confidence  right")
        for kind, confidence in sorted(total):
            print(f"{kind:<11} {confidence:<11} {right[kind, confidence]} of {total[kind, confidence]}")
    sure = [key for key in total if key[1] == "high"]
    assert sum(right[key] for key in sure) >= 0.97 * sum(total[key] for key in sure), wrong


def test_no_fine_case_is_called_broken(answers):
    fine = [(case, found) for case, found in answers if case["expected"]["diagnosis"] == "ok"]
    assert fine
    assert [case["id"] for case, found in fine if not is_right(case, found)] == []


def test_no_remedy_names_a_variant_that_is_bad(answers):
    for case, found in answers:
        hints = case["expected"]["remedy"] or {}
        bad = {*hints.get("variants_bad", ()), *hints.get("variants_bad_on_this_driver", ())}
        named = {*found.remedy.torch_variants, *(variant for _, variant in builds(found))}
        assert not named & bad, (case["id"], named & bad)
        if hints.get("variants_ok") == []:
            assert not named, (case["id"], named)


def test_no_remedy_lacks_the_gpus_code_or_is_above_its_driver(answers):
    """Against everything that is known of the case, also what its text does not tell."""
    for case, found in answers:
        env = case["env"]
        system = "Windows" if "windows" in str(env.get("os", "")).lower() else "Linux"
        for release, variant in builds(found):
            rows = [row for row in wheels.wheels() if row.release == release and row.variant == variant]
            assert rows, (case["id"], release, variant)
            driver = env.get("driver", "").split()[0] if env.get("driver") else None
            assert wheels.driver_runs(variant, driver, system) is not False, (case["id"], variant, driver)
            if env.get("compute_capability"):
                capability = tuple(map(int, env["compute_capability"].split(".")))
                assert any(wheels.serves(row, capability).how == "native" for row in rows), (
                    case["id"],
                    variant,
                )

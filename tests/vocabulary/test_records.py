"""The words of the kit: outcomes, verdicts, strict JSON."""

import pytest

from kit.errors import UsageError
from kit.gpu.facts import Driver, Gpu, MachineFacts, Torch
from kit.records import Check, Outcome, Verdict, dumps, from_json, loads, to_json


def check(outcome, id="native.x", required=True):
    return Check(id, outcome, "found", "expected", required=required)


@pytest.mark.parametrize("checks", [[], [check(Outcome.PASS, required=False)]], ids=["none", "optional ones alone"])
def test_no_required_check_is_never_a_pass(checks):
    assert Verdict.of(checks).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("worse", [Outcome.INVALID, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.REHEARSAL])
def test_a_verdict_is_its_worst_required_check(worse):
    assert Verdict.of([check(Outcome.PASS), check(worse), check(Outcome.PASS)]).outcome is worse


def test_an_optional_check_leaves_the_verdict_alone_and_shows_in_its_claim():
    verdict = Verdict.of([check(Outcome.PASS), check(Outcome.FAIL, "throughput.x", required=False)])
    assert verdict.outcome is Outcome.PASS
    assert verdict.claim("throughput") is Outcome.FAIL


def test_findings_are_the_red_checks_worst_first():
    verdict = Verdict.of([check(Outcome.INCONCLUSIVE, "a.a"), check(Outcome.PASS), check(Outcome.INVALID, "b.b")])
    assert [found.id for found in verdict.findings] == ["b.b", "a.a"]


def test_exit_codes_are_the_documented_ones():
    codes = {outcome.value: outcome.exit_code for outcome in Outcome}
    assert codes == {"PASS": 0, "REHEARSAL": 0, "INCONCLUSIVE": 3, "FAIL": 1, "INVALID": 4}


def test_facts_survive_a_round_trip():
    facts = MachineFacts(
        driver=Driver(version="580.1", gpus=(Gpu(index=0, compute_capability=(9, 0)),)),
        torch=Torch(version="2.13.0+cu130", cuda=(13, 0), arch_list=("sm_90",)),
        environment={"CUDA_VISIBLE_DEVICES": " 0"},
    )
    assert from_json(MachineFacts, loads(dumps(facts))) == facts


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "[-Infinity]", "[1e999]", '{"a": 1, "a": 2}', "[" * 100_000], ids=lambda t: t[:12]
)
def test_json_that_other_parsers_let_through_is_refused(text):
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_never_written(value):
    with pytest.raises(ValueError, match="None"):
        to_json({"x": value})


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"index": "0"}, "index"),
        ({"index": True}, "index"),
        ({"index": 0, "colour": "red"}, "colour"),
        ({"compute_capability": [9]}, "compute_capability"),
        ({"memory_bytes": 1.5}, "memory_bytes"),
        ([], "Gpu"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_place(data, place):
    with pytest.raises(UsageError, match=place):
        from_json(Gpu, data)


def test_a_missing_field_without_a_default_is_named():
    with pytest.raises(UsageError, match="outcome"):
        from_json(Check, {"id": "a.b", "found": "", "expected": ""})

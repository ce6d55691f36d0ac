"""The rule of comparison: its arithmetic, its error rates, and what it refuses to compare."""

import dataclasses
import math
import random

import evidence_sample as sample
import pytest

from kit.errors import BundleInvalid
from kit.extras.compare import Side, _gpus, compare, decide, read_side, runs_needed, t_quantile, text, welch
from kit.records import Outcome, Verdict, dumps


def side(*values, keys=None, name="a", **more):
    given = {
        "values": tuple(map(float, values)),
        "run_ids": tuple(f"{name}{i}" for i in range(len(values))),
        "started": tuple(f"2026-11-01T{i:02}:00:00+00:00" for i in range(len(values))),
        "keys": keys or {"GPU": "H100"},
        "notes": {},
        "unit": "samples/s",
    }
    return Side(**{**given, **more})


# Table 26.10 of Abramowitz and Stegun, and between its rows scipy.stats.t.ppf(0.975, freedom).
@pytest.mark.parametrize(
    "freedom,expected",
    [(2, 4.302653), (4, 2.776445), (8, 2.306004), (30, 2.042272), (120, 1.979930), (2.5, 3.558), (17.776, 2.10283),
     (45, 2.01410), (500, 1.96472)],
)  # fmt: skip
def test_t_quantile_agrees_with_tables(freedom, expected):
    assert t_quantile(freedom) == pytest.approx(expected, rel=0.021)


def test_welch_agrees_with_a_worked_example():
    # Welch's test of the first example in the documentation of R's t.test data `sleep`: df = 17.776.
    a = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    b = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    middle, half = welch(a, b)
    assert (middle - half, middle + half) == (pytest.approx(-0.20548, abs=1e-3), pytest.approx(3.36548, abs=1e-3))


@pytest.mark.parametrize(
    "ratio,low,high,expected",
    [
        (0.90, 0.85, 0.95, "regression"),
        (0.97, 0.96, 0.98, "same"),
        (0.94, 0.88, 1.01, "inconclusive"),
        (0.96, 0.93, 0.99, "inconclusive"),
        (1.10, 1.05, 1.15, "improved"),
        (1.0, 0.95, 1.05, "same"),
        (1.0, 0.9, 1.1, "inconclusive"),
        (0.95, 0.94, 0.96, "regression"),
    ],
)
def test_rule(ratio, low, high, expected):
    assert decide(ratio, low, high) == expected


def simulate(cv, n, change, trials, seed=1):
    draw = random.Random(seed)
    outcomes = {}
    for _ in range(trials):
        a, b = ([draw.gauss(0, cv) for _ in range(n)] for _ in range(2))
        middle, half = welch(a, [x + math.log1p(change) for x in b])
        outcome = decide(math.exp(middle), math.exp(middle - half), math.exp(middle + half))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return {outcome: count / trials for outcome, count in outcomes.items()}


def test_error_rates_of_the_rule(trials, tally):
    count = trials(4000)
    for cv, n in ((0.01, 5), (0.03, 5), (0.03, 10), (0.075, 5), (0.075, 10)):
        equal, slower, much = (simulate(cv, n, change, count) for change in (0.0, -0.10, -0.20))
        tally(
            f"comparison, noise {100 * cv:g} %, n = {n}",
            3 * count,
            f"equal: {100 * equal.get('regression', 0):.1f} % called regression, {100 * equal.get('same', 0):.0f} % same; "
            f"found: {100 * slower.get('regression', 0):.0f} % of -10 %, {100 * much.get('regression', 0):.0f} % of -20 %",
        )
        if (cv, n) == (0.03, 5):
            assert equal.get("regression", 0) <= 0.015 and slower["regression"] >= 0.95


def test_fewer_than_three_processes_never_decide():
    found = compare(side(100, 101), side(50, 50, 50, 50, 50, name="b"))
    assert (found.outcome, found.runs_needed, found.exit_code) == ("inconclusive", 5, 3)


def test_regression_improvement_and_sameness_are_told_with_their_interval():
    a = side(100, 101, 99, 100, 102)
    worse = compare(a, side(88, 90, 89, 91, 90, name="b"))
    assert (worse.outcome, worse.exit_code) == ("regression", 1) and worse.low < worse.ratio < worse.high < 1
    assert compare(a, side(120, 121, 119, 118, 122, name="b")).outcome == "improved"
    assert compare(a, side(100, 99.5, 101, 100.5, 101, name="b")).outcome == "same"


def test_real_slowdown_in_few_noisy_samples_asks_for_more_runs():
    found = compare(side(100, 112, 92), side(90, 99, 84, name="b"))
    assert found.outcome == "inconclusive" and found.runs_needed > 3
    assert f"{found.runs_needed} processes a side" in found.because[1]


def test_change_on_the_limit_is_decided_by_no_number_of_runs():
    on_the_limit = [95.1, 95.2, 95.0, 95.1, 95.1]
    assert runs_needed([100, 104, 96, 100, 100], on_the_limit) is None
    assert "no number of runs" in compare(side(100, 104, 96, 100, 100), side(*on_the_limit, name="b")).because[1]


def test_equal_values_are_the_same_and_not_a_division_by_zero():
    assert compare(side(100, 100, 100), side(100, 100, 100, name="b")).outcome == "same"


@pytest.mark.parametrize("keys", [{"GPU": "H200"}, {"GPU": "H100", "config.batch_size": 8}, {}])
def test_other_gpu_workload_or_definition_is_not_comparable(keys):
    found = compare(side(100, 100, 100), side(100, 100, 100, name="b", keys=keys or {"definition": "x"}))
    assert (found.outcome, found.exit_code) == ("not_comparable", 3) and "against" in found.because[0]
    assert compare(side(1, 1, 1), side(1, 1, 1, name="b", unit="tokens/s")).outcome == "not_comparable"


def test_harmless_difference_is_noted():
    found = compare(side(100, 100, 101, notes={"kit": "0.1.0"}), side(100, 101, 100, name="b", notes={"kit": "0.1.1"}))
    assert found.outcome == "same" and any("kit differs" in line for line in found.because)


def test_same_run_on_both_sides_is_invalid():
    with pytest.raises(BundleInvalid, match="same run twice: a0"):
        compare(side(100, 100, 100), side(100, 100, 100))


def test_order_and_outliers_are_noted_and_nothing_is_dropped():
    late = side(100, 100, 100, 100, 60, name="b", started=tuple(f"2026-11-02T{i:02}:00:00+00:00" for i in range(5)))
    found = compare(side(100, 100, 100, 101, 100), late)
    assert any("wholly before the other" in line for line in found.because)
    assert any(line.startswith("b4 lies -40 %") for line in found.because) and "n = 5 and 5" in found.because[0]
    drifting = side(100, 101, 90, 89, name="b", started=tuple(f"2026-11-01T{i:02}:30:00+00:00" for i in range(4)))
    assert any("side B drifts by -10.9" in line for line in compare(side(100, 101, 99, 100), drifting).because)


def bundles(tmp_path, count, speed, **more):
    made = []
    for index in range(count):
        path = sample.make(
            tmp_path,
            run_id=f"{more.get('tag', 'r')}{index}",
            speed=10 * speed * (1 + 0.002 * index),
            started_utc=f"2026-11-0{index + 1}T12:00:00+00:00",
            ended_utc=f"2026-11-0{index + 1}T12:10:00+00:00",
        )
        files = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
        made.append((sample.conclude(files), files))
    return made


def test_bundles_of_one_setup_make_a_side(tmp_path):
    a, b = read_side(bundles(tmp_path, 3, 0.1, tag="a")), read_side(bundles(tmp_path, 3, 0.2, tag="b"))
    assert len(a.values) == 3 and a.keys["config.model"] == "gpt2"
    found = compare(a, b)
    assert found.outcome == "regression" and found.ratio == pytest.approx(0.5, rel=0.02)


def test_side_that_mixes_setups_or_is_not_green_is_refused(tmp_path):
    made = bundles(tmp_path, 3, 0.1)
    other = (made[0][0], {**made[0][1], "raw/training.json": b'{"config": {"model": "other"}}'})
    assert compare(read_side([other, *made[1:]]), read_side(made)).outcome == "not_comparable"
    weak = dataclasses.replace(made[0][0], verdict=Verdict(Outcome.INCONCLUSIVE, ()))
    found = read_side([(weak, made[0][1]), *made[1:]])
    assert found.outcome == "not_comparable" and "is INCONCLUSIVE itself" in found.because[0]
    with pytest.raises(BundleInvalid, match="same run twice"):
        read_side([made[0], made[0], made[1]])


@pytest.mark.parametrize("value", [0.0, -3.0, None])
def test_rate_that_is_not_positive_is_invalid(tmp_path, value):
    evidence, files = bundles(tmp_path, 1, 0.1)[0]
    numbers = tuple(
        dataclasses.replace(n, value=value) if n.name == "steady_samples_per_s" else n for n in evidence.numbers
    )
    with pytest.raises(BundleInvalid, match="no positive steady_samples_per_s"):
        read_side([(dataclasses.replace(evidence, numbers=numbers), files)])


def test_comparison_is_one_json_object():
    assert '"outcome": "same"' in dumps(compare(side(100, 100, 101), side(100, 101, 100, name="b")))


def test_what_is_said_is_english_and_no_python():
    gpu = {"name": "NVIDIA H100", "compute_capability": [9, 0], "memory_bytes": 85_000_000_000, "mig_profile": None}
    other = {**gpu, "compute_capability": [8, 0]}
    sides = [
        side(1, 1, 1, name=name, keys={"GPU": _gpus({"gpus": [one]}), "power limit": limit})
        for name, one, limit in (("a", gpu, None), ("b", other, 300.0))
    ]
    said = text(compare(*sides))
    assert (
        "GPU: NVIDIA H100, 9.0, 85000000000 against NVIDIA H100, 8.0" in said
        and "power limit: none against 300.0" in said
    )
    assert not set("()[]'") & set(said) and "None" not in said


def test_two_folders_of_bundles_are_compared_by_the_command(tmp_path, capsys):
    from kit.cli import main

    for name, speed in (("a", 0.1), ("b", 0.2)):
        (tmp_path / name).mkdir()
        bundles(tmp_path / name, 3, speed, tag=name)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert capsys.readouterr().out.startswith("REGRESSION by steady_samples_per_s\n  B is 0.5")
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "empty")]) == 2


def test_text_names_what_to_do():
    found = compare(side(100, 112, 92), side(90, 99, 84, name="b"))
    assert text(found).startswith("INCONCLUSIVE by steady_samples_per_s\n  B is 0.8")
    assert "processes a side, run in turns" in text(found)

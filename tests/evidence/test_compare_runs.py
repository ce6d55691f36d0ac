"""The rule of comparison: its arithmetic, its error rates, and what it refuses to compare."""

import dataclasses
import math
import random

import evidence_sample as sample
import pytest

from kit.cli import main
from kit.errors import BundleInvalid
from kit.extras.compare import Side, compare, decide, gpu_words, read_side, runs_needed, t_quantile, text, welch
from kit.gpu.facts import Gpu
from kit.records import Outcome, Verdict, dumps, from_json, loads
from kit.train.steps import TrainingRun


def side(*values, keys=None, name="a", day=1, notes=None):
    started = tuple(f"2026-11-0{day}T{i:02}:{30 * (name == 'b'):02}:00+00:00" for i in range(len(values)))
    rates = {f"{name}{i}": float(value) for i, value in enumerate(values)}
    return Side(rates, started, {"GPU": "H100", **(keys or {})}, notes or {})


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


RULE = [
    (0.90, 0.85, 0.95, "regression"), (0.97, 0.96, 0.98, "same"), (0.94, 0.88, 1.01, "inconclusive"),
    (0.96, 0.93, 0.99, "inconclusive"), (1.10, 1.05, 1.15, "improved"), (1.0, 0.95, 1.05, "same"),
    (1.0, 0.9, 1.1, "inconclusive"), (0.95, 0.94, 0.96, "regression"),
]  # fmt: skip


@pytest.mark.parametrize("ratio,low,high,expected", RULE)
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


FIVE = side(100, 101, 99, 100, 102)
THREE = side(100, 100, 101)
NOISY = side(100, 104, 96, 100, 100)
# A and B, what is found and its exit code, and a part of what is said.
FOUND = [
    (side(100, 101), side(50, 50, 50, 50, 50, name="b"), "inconclusive", 3, "2 against 5 processes"),
    (FIVE, side(88, 90, 89, 91, 90, name="b"), "regression", 1, "n = 5 and 5"),
    (FIVE, side(120, 121, 119, 118, 122, name="b"), "improved", 0, "B is 1.195 of A"),
    (FIVE, side(100, 99.5, 101, 100.5, 101, name="b"), "same", 0, "B is "),
    (side(100, 112, 92), side(90, 99, 84, name="b"), "inconclusive", 3, "processes a side would decide"),
    (NOISY, side(95.1, 95.2, 95.0, 95.1, 95.1, name="b"), "inconclusive", 3, "no number of runs would decide"),
    (side(100, 100, 100), side(100, 100, 100, name="b"), "same", 0, "fewer than 5 processes"),
    (THREE, side(100, 100, 100, name="b", keys={"GPU": "H200"}), "not_comparable", 3, "GPU: H100 against H200"),
    (THREE, side(1, 1, 1, name="b", keys={"config.batch_size": 8}), "not_comparable", 3, "none against 8"),
    (THREE, side(100, 100, 100, name="b", keys={"unit": "tokens/s"}), "not_comparable", 3, "unit: none against"),
    (THREE, side(100, 101, 100, name="b", notes={"kit": "0.1.1"}), "same", 0, "kit differs: none against 0.1.1"),
    (side(100, 100, 100, 101, 100), side(100, 100, 100, 100, 60, name="b", day=2), "inconclusive", 3,
     "wholly before the other"),
    (side(100, 100, 100, 101, 100), side(100, 100, 100, 100, 60, name="b"), "inconclusive", 3, "b4 lies -40 %"),
    (side(100, 101, 99, 100), side(100, 101, 90, 89, name="b"), "inconclusive", 3, "side B drifts by -10.9"),
]  # fmt: skip


@pytest.mark.parametrize("a, b, outcome, code, words", FOUND)
def test_two_sides_are_compared_with_their_reasons(a, b, outcome, code, words):
    found = compare(a, b)
    assert (found.outcome, found.exit_code) == (outcome, code)
    assert any(words in line for line in found.because)
    said = text(found)
    assert said.startswith(f"{outcome.replace('_', ' ').upper()} by steady_samples_per_s\n  ") and words in said
    assert not set("[]{}") & set(said) and "None" not in said
    assert from_json(type(found), loads(dumps(found))) == found


def test_how_many_runs_would_decide_is_told():
    found = compare(side(100, 112, 92), side(90, 99, 84, name="b"))
    assert found.runs_needed > 3 and f"To do: {found.runs_needed} processes a side, run in turns" in text(found)
    assert runs_needed([100, 104, 96, 100, 100], [95.1, 95.2, 95.0, 95.1, 95.1]) is None
    assert compare(side(100, 101), side(1, 1, name="b")).runs_needed == 5


def test_same_run_on_both_sides_is_invalid():
    with pytest.raises(BundleInvalid, match="same run twice: a0"):
        compare(THREE, THREE)


def test_a_card_is_told_in_english_and_no_python():
    gpu = Gpu(name="NVIDIA H100", compute_capability=(9, 0), memory_bytes=85_000_000_000)
    assert gpu_words(gpu) == "NVIDIA H100, 9.0, 85000000000" and gpu_words(Gpu()) == ""


def bundles(tmp_path, count, speed, tag="r"):
    made = []
    for index in range(count):
        path = sample.make(
            tmp_path,
            run_id=f"{tag}{index}",
            speed=10 * speed * (1 + 0.002 * index),
            started_utc=f"2026-11-0{index + 1}T12:00:00+00:00",
            ended_utc=f"2026-11-0{index + 1}T12:10:00+00:00",
        )
        files = sample.files_of(path)
        made.append((sample.conclude(files), files))
    return made


def test_bundles_of_one_setup_make_a_side_and_others_are_refused(tmp_path):
    made = bundles(tmp_path, 3, 0.1)
    a = read_side(made)
    assert len(a.rates) == 3 and a.keys["config.model"] == "gpt2" and a.keys["unit"] == "samples/s"
    run = from_json(TrainingRun, loads(made[0][1]["raw/training.json"]))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, lr=0.5))
    mixed = read_side([(made[0][0], {**made[0][1], "raw/training.json": dumps(run).encode()}), *made[1:]])
    assert mixed.because == ("one side mixes setups: config.lr",) and compare(mixed, a) == mixed == compare(a, mixed)
    weak = dataclasses.replace(made[0][0], verdict=Verdict(Outcome.INCONCLUSIVE, ()))
    found = read_side([(weak, made[0][1]), *made[1:]])
    assert found.outcome == "not_comparable" and "is INCONCLUSIVE itself" in found.because[0]
    with pytest.raises(BundleInvalid, match="same run twice"):
        read_side([made[0], made[0], made[1]])
    for value in (0.0, -3.0, None):
        numbers = [dataclasses.replace(n, value=value) for n in made[0][0].numbers if n.name == "steady_samples_per_s"]
        with pytest.raises(BundleInvalid, match="no positive steady_samples_per_s"):
            read_side([(dataclasses.replace(made[0][0], numbers=tuple(numbers)), made[0][1])])


def test_two_folders_of_bundles_are_compared_by_the_command(tmp_path, capsys):
    for name, speed in (("a", 0.1), ("b", 0.2)):
        (tmp_path / name).mkdir()
        bundles(tmp_path / name, 3, speed, tag=name)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert capsys.readouterr().out.startswith("REGRESSION by steady_samples_per_s\n  B is 0.5")
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "empty")]) == 2

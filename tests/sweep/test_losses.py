"""The same losses: what counts as the same, what turns the check red, and what a report makes of the raw losses."""

import dataclasses

import pytest

from kit.errors import BundleInvalid, UsageError
from kit.evidence.conclude import conclude
from kit.evidence.contents import RunRecord
from kit.gpu.judge_machine import Expectation
from kit.records import Outcome, dumps, from_json, loads
from kit.sweep.table import LOSS_STEPS, BenchResult, Ceilings, EngineLosses, Row, SameLosses, ShortRun, SweepPlan
from kit.sweep.trial import first_steps

REFERENCE = tuple(4.0 - step / 10 for step in range(LOSS_STEPS))
CUDA = RunRecord("r", "n", None, "0", {}, "cuda", Expectation("cuda"), {}, (), "COMPLETE", "", "")
CPU = dataclasses.replace(CUDA, device="cpu", expectation=Expectation("cpu"))
SHORT = ShortRun("captured", "float32", False, "", 9.5, 6.1, 0.2, 1.9, 1.0, 0.14, 1.18, 56, (4.0,) * 14)
MISSING = EngineLosses("captured", "float32", missing="a CUDA graph needs a CUDA device")


def moved(by, at=3):
    return tuple(loss + by * (step == at) for step, loss in enumerate(REFERENCE))


def record(*engines):
    return SameLosses("gpt2", 4, 64, REFERENCE, engines)


def engine(losses=REFERENCE, dtype="float32", **more):
    return EngineLosses("graphed", dtype, losses, **more)


def swept(*engines, dtype="float32"):
    """A sweep's file with a figure of each engine."""
    rows = [Row(4, 64, dtype, "gpt2", "ok", block_step_s=(0.003,), engine=name) for name in engines]
    return {"plan": {}, "ceilings": Ceilings("NVIDIA H100"), "rows": rows}


def bench(losses, *runs):
    return BenchResult("NVIDIA H100", (*runs, SHORT), losses, {})


def evidence(run=CUDA, **values):
    return conclude({f"raw/{name}.json": dumps(value).encode() for name, value in {"run": run, **values}.items()})


def numbers_of(found):
    return {number.name: number.value for number in found.numbers}


BROKEN = dataclasses.replace(record(engine()), reference=(*REFERENCE[:9], None))
FOUND = [
    ({"losses": record(engine(moved(5e-5)))}, Outcome.PASS, ""),
    ({"losses": record(engine(moved(0.005), "bfloat16"))}, Outcome.PASS, ""),
    ({"losses": record(engine(moved(2e-4)))}, Outcome.FAIL, "graphed in float32: "),
    ({"losses": record(engine(), engine(moved(2e-4, at=LOSS_STEPS - 1)))}, Outcome.FAIL, "graphed in float32: "),
    ({"losses": record(engine(moved(0.02), "bfloat16"))}, Outcome.FAIL, "graphed in bfloat16: "),
    ({"losses": record(engine((*REFERENCE[:5], None, *REFERENCE[6:])))}, Outcome.FAIL, "not finite"),
    ({"losses": record(engine(REFERENCE[:9]))}, Outcome.FAIL, "9 of 10 losses"),
    ({"losses": record(engine(()))}, Outcome.FAIL, "0 of 10 losses"),
    ({"losses": BROKEN}, Outcome.FAIL, ""),
    ({"losses": dataclasses.replace(BROKEN, reference=REFERENCE[:9])}, Outcome.FAIL, ""),
    ({"losses": dataclasses.replace(BROKEN, reference=())}, Outcome.FAIL, ""),
    ({"losses": record(engine(), MISSING), "run": CPU}, Outcome.REHEARSAL, ""),
    ({"losses": record(engine(), MISSING), "sweep": swept("graphed", "captured")}, Outcome.INCONCLUSIVE, "captured in"),
    ({"losses": record(engine()), "sweep": swept("graphed", dtype="bfloat16")}, Outcome.INCONCLUSIVE, "in bfloat16"),
    ({"losses": record()}, Outcome.INCONCLUSIVE, ""),
    ({"bench": bench(record(EngineLosses("captured", "float32", REFERENCE)))}, Outcome.PASS, ""),
    ({"bench": bench(record(engine(moved(2e-4))))}, Outcome.FAIL, "graphed in float32: "),
]


@pytest.mark.parametrize("values, outcome, words", FOUND)
def test_a_report_judges_the_raw_losses_again(values, outcome, words):
    found = evidence(**values)
    check = next(check for check in found.verdict.checks if check.id == "throughput.same_losses")
    assert check.outcome is outcome and words in check.found
    told = values.get("losses") or values["bench"].losses
    assert told.is_same is (outcome in (Outcome.PASS, Outcome.REHEARSAL) or "sweep" in values)
    assert ("no: " in str(told.table) and "do not" in told.sentence) is (outcome is Outcome.FAIL)


def test_a_report_without_losses_has_no_such_check():
    assert "throughput.same_losses" not in {check.id for check in evidence().verdict.checks}


def test_an_engine_that_cannot_run_here_is_listed():
    assert "not here: a CUDA graph" in str(record(engine(), MISSING).table)


def test_only_raw_losses_are_kept():
    found = record(engine(), engine(moved(0.5)))
    assert from_json(SameLosses, loads(dumps(found))) == found
    assert not {"is_same", "difference"} & set(dumps(found).split('"'))
    with pytest.raises(UsageError, match="fp7"):
        from_json(EngineLosses, {"engine": "eager", "dtype": "fp7"})


def test_differences_and_the_short_run_are_in_the_numbers():
    numbers = numbers_of(evidence(losses=record(engine(moved(5e-5)))))
    assert numbers["loss_difference_graphed_float32"] == pytest.approx(5e-5)
    assert numbers_of(evidence(losses=record(engine((None,) * 10))))["loss_difference_graphed_float32"] is None
    first = dataclasses.replace(SHORT, is_first=True, training_s=9.0)
    numbers = numbers_of(evidence(bench=bench(record(), first)))
    assert (numbers["short_run_captured_training_s"], numbers["short_run_captured_process_s"]) == (1.18, 9.5)


@pytest.mark.parametrize("text", [b"[]", b'{"reference": [NaN]}', b'{"model": "gpt2"}'])
def test_a_broken_file_of_losses_is_invalid(text):
    with pytest.raises(BundleInvalid, match=r"losses\.json"):
        conclude({"raw/run.json": dumps(CUDA).encode(), "raw/losses.json": text})


# --- measured -----------------------------------------------------------------------


def plan(**changes):
    return SweepPlan(**{"batch_sizes": (2, 4), "seq_lens": (16,), "model": "tiny", "device": "cpu", **changes})


def test_real_engines_are_compared_in_every_precision_of_the_plan():
    grid = plan(engines=("eager", "captured"), more_points=((2, 8, "bfloat16"),))
    losses, profiles = first_steps(grid.smallest())
    assert (losses.batch_size, losses.seq_len, profiles) == (2, 8, {})
    rows = {(row.engine, row.dtype): row for row in losses.engines}
    assert losses.is_same and rows["eager", "float32"].losses == losses.reference
    assert 0 < losses.difference(rows["eager", "bfloat16"]) < 1e-2
    assert "CUDA" in rows["captured", "bfloat16"].missing
    # Ten steps move the loss much further than the limits are wide: an engine that never updates is red.
    assert losses.reference[0] - losses.reference[-1] > 0.05


def test_a_loss_that_is_not_finite_is_none_and_an_engine_that_breaks_is_listed_with_its_error(monkeypatch):
    from kit.sweep import trial
    from kit.train import engines

    own, build, seen = engines.EagerEngine.step, trial.build_engine, []

    def step(self, ids, labels):
        seen.append(1)
        loss, norm = own(self, ids, labels)
        return (loss * float("inf") if len(seen) == LOSS_STEPS + 2 else loss), norm

    def broken(name, *args):
        if name == "captured":
            raise KeyError("broken")
        return build(name, *args)

    monkeypatch.setattr(engines.EagerEngine, "step", step)
    monkeypatch.setattr(trial, "build_engine", broken)
    losses, _ = first_steps(plan(engines=("eager", "captured")).smallest())
    assert losses.engines[0].losses[1] is None and not losses.is_same
    assert losses.engines[1].missing == "KeyError: 'broken'" and losses.engines[0].missing is None

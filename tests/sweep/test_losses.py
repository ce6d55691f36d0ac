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


def moved(by, at=3):
    return tuple(loss + by * (step == at) for step, loss in enumerate(REFERENCE))


def record(*engines):
    return SameLosses("gpt2", 4, 64, REFERENCE, engines)


def engine(losses=REFERENCE, dtype="float32", **more):
    return EngineLosses("graphed", dtype, losses, **more)


def test_equal_losses_are_the_same():
    row = engine(moved(5e-5))
    assert record(row).is_same and record(row).difference(row) == pytest.approx(5e-5)


RED = {
    "apart": engine(moved(2e-4)),
    "apart at the last step": engine(moved(2e-4, at=LOSS_STEPS - 1)),
    "apart in bfloat16": engine(moved(0.02), "bfloat16"),
    "NaN, stored as null": engine((*REFERENCE[:5], None, *REFERENCE[6:])),
    "too few": engine(REFERENCE[:9]),
    "none": engine(()),
}


@pytest.mark.parametrize("row", RED.values(), ids=RED)
def test_losses_apart_nan_and_too_few_are_red_and_name_the_engine(row):
    check = same_losses_of(evidence(losses=record(engine(), row)))
    assert check.outcome is Outcome.FAIL and f"graphed in {row.dtype}: " in check.found
    assert not record(row).is_same and "no: " in str(record(row).table) and "do not" in record(row).sentence


def test_bfloat16_may_be_further_off():
    assert record(engine(moved(0.005), "bfloat16")).is_same


@pytest.mark.parametrize("reference", [(*REFERENCE[:9], None), REFERENCE[:9], ()])
def test_a_broken_reference_makes_nothing_the_same(reference):
    broken = dataclasses.replace(record(engine(reference)), reference=reference)
    assert same_losses_of(evidence(losses=broken)).outcome is Outcome.FAIL


def test_an_engine_that_cannot_run_here_is_listed_and_no_failure():
    found = record(engine(), EngineLosses("captured", "float32", missing="a CUDA graph needs a CUDA device"))
    assert found.is_same and "not here: a CUDA graph" in str(found.table)
    rehearsed = dataclasses.replace(RUN, device="cpu", expectation=Expectation("cpu"))
    assert same_losses_of(evidence(losses=found, run=rehearsed)).outcome is Outcome.REHEARSAL


def test_a_figure_of_an_engine_that_was_not_compared_is_inconclusive():
    left_out = record(engine(), EngineLosses("captured", "float32", missing="so it says"))
    check = same_losses_of(evidence(losses=left_out, sweep=swept("graphed", "captured")))
    assert check.outcome is Outcome.INCONCLUSIVE and "captured in float32 was not compared" in check.found
    assert same_losses_of(evidence(losses=record())).outcome is Outcome.INCONCLUSIVE


def swept(*engines, dtype="float32"):
    """A sweep's file with a figure of each engine."""
    rows = [Row(4, 64, dtype, "gpt2", "ok", block_step_s=(0.003,), engine=name) for name in engines]
    return {"plan": {}, "ceilings": Ceilings("NVIDIA H100"), "rows": rows}


def test_only_raw_losses_are_kept():
    found = record(engine(), engine(moved(0.5)))
    assert from_json(SameLosses, loads(dumps(found))) == found
    assert not {"is_same", "difference"} & set(dumps(found).split('"'))
    with pytest.raises(UsageError, match="fp7"):
        from_json(EngineLosses, {"engine": "eager", "dtype": "fp7"})


# --- in a report --------------------------------------------------------------------

RUN = RunRecord(
    run_id="r",
    nonce="n",
    reviewer_nonce=None,
    kit_version="0",
    code={},
    device="cuda",
    expectation=Expectation("cuda"),
    parameters={},
    notebooks=(),
    state="COMPLETE",
    started_utc="",
    ended_utc="",
)
SHORT = ShortRun("captured", "float32", False, "", 9.5, 6.1, 0.2, 1.9, 1.0, 0.14, 1.18, 56, (4.0,) * 14)


def evidence(**values):
    files = {f"raw/{name}.json": dumps(value).encode() for name, value in {"run": RUN, **values}.items()}
    return conclude(files)


def same_losses_of(found):
    return next((check for check in found.verdict.checks if check.id == "throughput.same_losses"), None)


def numbers_of(found):
    return {number.name: number.value for number in found.numbers}


def test_a_report_without_losses_has_no_such_check():
    assert same_losses_of(evidence()) is None


def test_a_report_judges_the_raw_losses_again():
    good = evidence(losses=record(engine(moved(5e-5))))
    assert same_losses_of(good).outcome is Outcome.PASS
    assert numbers_of(good)["loss_difference_graphed_float32"] == pytest.approx(5e-5)
    bad = evidence(losses=record(engine(moved(0.5))))
    assert same_losses_of(bad).outcome is Outcome.FAIL and bad.verdict.claim("throughput") is Outcome.FAIL
    nan = evidence(losses=record(engine((None,) * LOSS_STEPS)))
    assert numbers_of(nan)["loss_difference_graphed_float32"] is None


def test_every_measured_engine_of_a_report_must_have_been_compared():
    check = same_losses_of(evidence(losses=record(engine()), sweep=swept("graphed", dtype="bfloat16")))
    assert check.outcome is Outcome.INCONCLUSIVE and "graphed in bfloat16" in check.found


def test_the_short_run_is_in_the_numbers_and_its_losses_in_the_check():
    first = dataclasses.replace(SHORT, is_first=True, training_s=9.0)
    losses = record(EngineLosses("captured", "float32", REFERENCE))
    found = evidence(bench=BenchResult("NVIDIA H100", (first, SHORT), losses, {}))
    assert numbers_of(found)["short_run_captured_training_s"] == 1.18
    assert numbers_of(found)["short_run_captured_process_s"] == 9.5
    assert same_losses_of(found).outcome is Outcome.PASS
    red = evidence(bench=BenchResult("NVIDIA H100", (SHORT,), record(RED["apart"]), {}))
    assert same_losses_of(red).outcome is Outcome.FAIL


@pytest.mark.parametrize("text", [b"[]", b'{"reference": [NaN]}', b'{"model": "gpt2"}'])
def test_a_broken_file_of_losses_is_invalid(text):
    with pytest.raises(BundleInvalid, match=r"losses\.json"):
        conclude({"raw/run.json": dumps(RUN).encode(), "raw/losses.json": text})


# --- measured -----------------------------------------------------------------------


def plan(**changes):
    return SweepPlan(**{"batch_sizes": (2, 4), "seq_lens": (16,), "model": "tiny", "device": "cpu", **changes})


def test_real_engines_are_compared_in_every_precision_of_the_plan():
    grid = plan(engines=("eager", "captured"), more_points=((2, 8, "bfloat16"),))
    losses, profiles = first_steps(grid.smallest())
    assert (losses.batch_size, losses.seq_len, profiles) == (2, 8, ())
    rows = {(row.engine, row.dtype): row for row in losses.engines}
    assert losses.is_same and rows["eager", "float32"].losses == losses.reference
    assert 0 < losses.difference(rows["eager", "bfloat16"]) < 1e-2
    assert "CUDA" in rows["captured", "bfloat16"].missing
    # Ten steps move the loss much further than the limits are wide: an engine that never updates is red.
    assert losses.reference[0] - losses.reference[-1] > 0.05


def test_a_loss_that_is_not_finite_is_kept_as_none(monkeypatch):
    import torch

    from kit.train import engines

    own, seen = engines.EagerEngine.step, []

    def step(self, ids, labels):
        seen.append(1)
        loss, norm = own(self, ids, labels)
        return (loss * float("inf") if len(seen) == LOSS_STEPS + 2 else loss), norm

    monkeypatch.setattr(engines.EagerEngine, "step", step)
    losses, _ = first_steps(plan().smallest())
    assert losses.engines[0].losses[1] is None and not losses.is_same
    assert torch.is_grad_enabled()


def test_an_engine_that_breaks_is_listed_with_its_error(monkeypatch):
    from kit.sweep import trial

    own = trial.build_engine

    def build(name, *args):
        if name == "captured":
            raise KeyError("broken")
        return own(name, *args)

    monkeypatch.setattr(trial, "build_engine", build)
    losses, _ = first_steps(plan(engines=("eager", "captured")).smallest())
    assert losses.engines[1].missing == "KeyError: 'broken'" and losses.engines[0].missing is None

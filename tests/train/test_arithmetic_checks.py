"""Are the numbers right: precision class, agreement with the CPU, repetition."""

import dataclasses

import pytest
from verdict_sample import healthy, recorded

from kit.records import Outcome

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


def precise(sample):
    return sample.checks()["native.precision"]


def agreed(sample):
    return sample.checks()["native.cpu_agreement"]


def repeated(sample):
    return sample.checks()["native.replay"]


# --- precision ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "observed", "put_out"),
    [("float32", "float32", "float32"), ("tf32", "tf32", "float32"), ("bfloat16", "bfloat16", "bfloat16")],
)
def test_the_observed_precision_has_to_be_the_declared_one(dtype, observed, put_out):
    sample = healthy().with_config(dtype=dtype).with_audits(product_dtypes={put_out: 49})
    sample = sample.with_part("precision", observed=observed, output_dtype=put_out)
    assert precise(sample).outcome is PASS
    for other in {"float32", "tf32", "bfloat16", "other"} - {observed}:
        check = precise(sample.with_part("precision", observed=other))
        assert check.outcome is FAIL and check.found.startswith(other) and check.todo
    assert precise(sample.with_part("precision", output_dtype="float16")).outcome is FAIL


def test_autocast_that_is_declared_and_not_active_fails():
    """B19: the run's own layers put out float32, whatever a test product does under the kit's autocast."""
    sample = (
        healthy().with_config(dtype="bfloat16").with_part("precision", observed="bfloat16", output_dtype="bfloat16")
    )
    check = precise(sample)
    assert check.outcome is FAIL and "matrix layers put out float32" in check.found
    mixed = sample.with_audits(product_dtypes={"bfloat16": 49}).with_audits(
        14, product_dtypes={"bfloat16": 48, "float32": 1}
    )
    assert precise(mixed).outcome is FAIL
    assert precise(sample.with_audits(product_dtypes={"bfloat16": 49})).outcome is PASS


def test_precision_that_was_not_measured_is_inconclusive():
    assert precise(healthy().with_run(precision=None)).outcome is INCONCLUSIVE
    assert precise(recorded()).outcome is PASS
    assert precise(recorded()).values["relative_error"] == pytest.approx(1.21e-6, rel=0.01)


# --- the CPU's losses ---------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("tf32", 1e-3), ("bfloat16", 2e-3)])
def test_losses_have_to_agree_with_the_cpu(dtype, limit):
    sample = healthy().with_config(dtype=dtype)
    theirs = sample.run.cpu_reference.losses
    for factor, outcome in ((0.99, PASS), (1.01, FAIL), (-0.99, PASS), (-1.01, FAIL)):
        losses = (theirs[0], theirs[1], sample.steps[2].loss / (1 + factor * limit))
        check = agreed(sample.with_part("cpu_reference", losses=losses))
        assert check.outcome is outcome, factor
        assert check.values["limit"] == limit and check.values["steps"] == 3
        assert check.values["largest"] == pytest.approx(abs(factor) * limit, rel=0.01)
    assert f"{limit:g}" in agreed(sample).expected


def test_weights_that_autocast_kept_are_caught():
    """A real run of the kit: losses of the initial weights at every step, 12 % off by the third."""
    check = agreed(recorded("h100_stale_autocast"))
    assert check.outcome is FAIL and "1.2e-01" in check.found and check.todo
    assert recorded("h100_stale_autocast").outcome("learning.canary") is PASS


def test_a_loss_that_is_not_finite_or_has_no_reference_fails():
    check = agreed(healthy().with_steps(2, loss=None))
    assert check.outcome is FAIL and "inf" in check.found and "largest" not in check.values
    theirs = healthy().run.cpu_reference.losses
    assert agreed(healthy().with_part("cpu_reference", losses=(theirs[0], 0.0, theirs[2]))).outcome is FAIL


def test_a_missing_reference_is_inconclusive_and_says_why():
    assert agreed(healthy().with_run(cpu_reference=None)).found == "no CPU reference"
    skipped = agreed(healthy().with_part("cpu_reference", skipped="not asked for"))
    assert skipped.outcome is INCONCLUSIVE and skipped.found == "not asked for"
    assert agreed(healthy().with_part("cpu_reference", losses=())).outcome is INCONCLUSIVE


def test_the_first_loss_alone_says_nothing_about_training():
    theirs = healthy().run.cpu_reference.losses
    one = healthy().with_part("cpu_reference", losses=theirs[:1])
    assert agreed(one).outcome is INCONCLUSIVE and "1 finite" in agreed(one).found
    assert agreed(healthy().with_part("cpu_reference", losses=theirs[:2])).outcome is PASS
    assert agreed(dataclasses.replace(one, steps=one.steps[:1])).outcome is PASS


# --- repetition ---------------------------------------------------------------------


def test_one_loss_that_does_not_repeat_fails():
    """B32: one product in a thousand off by one percent."""
    losses = list(healthy().run.replay.losses)
    losses[4] *= 1 + 1e-7
    check = repeated(healthy().with_part("replay", losses=tuple(losses)))
    assert check.outcome is FAIL and "first difference at step 5" in check.found and check.values["unequal_steps"] == 1
    assert "algorithms" not in check.found


def test_kernels_that_add_in_changing_order_are_no_fault_of_the_card():
    losses = tuple(loss * (1 + 1e-7) for loss in healthy().run.replay.losses)
    varied = healthy().with_part("replay", losses=losses, deterministic_is_equal=True)
    assert repeated(varied).outcome is PASS and "equal with deterministic algorithms" in repeated(varied).found
    faulty = healthy().with_part("replay", losses=losses, deterministic_is_equal=False)
    assert repeated(faulty).outcome is FAIL and "different also with" in repeated(faulty).found
    assert repeated(healthy().with_part("replay", deterministic_is_equal=False)).outcome is PASS


def test_a_repetition_with_steps_missing_fails():
    losses = healthy().run.replay.losses
    for kept in (losses[:-1], (*losses, 1.0), ()):
        for equal in (None, True):
            check = repeated(healthy().with_part("replay", losses=kept, deterministic_is_equal=equal))
            assert check.outcome is FAIL
    assert "13 of 14 losses repeated" in repeated(healthy().with_part("replay", losses=losses[:-1])).found
    empty = dataclasses.replace(healthy().with_part("replay", losses=()), steps=())
    assert repeated(empty).outcome is FAIL


def test_a_product_that_does_not_repeat_fails():
    for value in (False, None):
        check = repeated(healthy().with_part("replay", matmul_is_equal=value))
        assert check.outcome is FAIL and "a repeated matrix product differed" in check.found
    assert repeated(healthy()).found == "14 of 14 losses repeated, all equal"


def test_a_missing_repetition_is_inconclusive_and_says_why():
    assert repeated(healthy().with_run(replay=None)).found == "not replayed"
    check = repeated(healthy().with_part("replay", skipped="too long"))
    assert check.outcome is INCONCLUSIVE and check.found == "too long"

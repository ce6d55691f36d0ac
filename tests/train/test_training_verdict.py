"""Is the run whole, and did the model learn? Each check with the case that makes it red and a healthy twin."""

import dataclasses

import pytest
from verdict_sample import healthy, recorded, rehearsed

from kit.records import Check, Outcome, Verdict
from kit.train.judge_training import judge_training

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
REHEARSAL = Outcome.REHEARSAL
CHECKS = (
    "integrity.steps_complete", "integrity.counts", "integrity.times_ordered",
    "native.placement", "native.kernels", "native.driver_view", "native.precision", "native.cpu_agreement",
    "native.replay", "native.hardware",
    "learning.finite", "learning.applied", "learning.supervised_tokens", "learning.batches", "learning.mode",
    "learning.moved", "learning.trainable", "learning.canary",
    "throughput.undisturbed", "throughput.clocks", "throughput.plausible", "throughput.input", "throughput.dtype",
)  # fmt: skip


def test_every_check_is_listed_whatever_is_missing():
    assert tuple(healthy().checks()) == CHECKS
    bare = healthy().with_run(
        audits=(),
        profile=None,
        learning=None,
        precision=None,
        cpu_reference=None,
        replay=None,
        telemetry=None,
        device_window_s=None,
    )
    assert tuple(dataclasses.replace(bare, steps=(), samples=()).checks()) == CHECKS


def test_the_recorded_h100_run_passes():
    assert recorded().red() == set()
    assert Verdict.of(recorded().checks().values()).outcome is PASS


@pytest.mark.parametrize("sample", [healthy, lambda: recorded("h100_witnessed")])
def test_the_healthy_run_has_no_finding_at_all(sample):
    assert {check.outcome for check in sample().checks().values()} == {PASS}


def test_what_was_added_to_the_older_recording_is_what_a_newer_one_holds():
    added, real = healthy().run, recorded("h100_witnessed").run
    for name in ("products", "product_flop", "positions"):
        assert getattr(added.profile, name) == getattr(real.profile, name)
    for name in ("kinds", "product_dtypes", "is_training", "is_profiled"):
        assert [getattr(audit, name) for audit in added.audits] == [getattr(audit, name) for audit in real.audits]
    assert added.compute_capability == real.compute_capability
    assert added.telemetry.memory_total_bytes == real.telemetry.memory_total_bytes
    for step in recorded("h100_witnessed").steps:
        assert 0 < step.step_time_s - step.device_time_s < 1e-3 and step.wait_s < 1e-3


def test_a_check_that_is_green_asks_for_nothing():
    assert {check.todo for check in healthy().checks().values()} == {""}


def test_a_rehearsal_claims_nothing_about_a_gpu_and_still_judges_learning():
    checks = rehearsed().checks()
    assert {c.outcome for id, c in checks.items() if id.startswith(("native", "throughput"))} == {REHEARSAL}
    assert {c.outcome for id, c in checks.items() if id.startswith(("learning", "integrity"))} == {PASS}
    assert not checks["throughput.rehearsal"].required


def test_a_rehearsal_fails_where_its_records_contradict_it():
    sample = rehearsed().with_audits(strays=("buffer mask on meta",))
    assert sample.outcome("native.placement") is FAIL


def test_every_inconclusive_check_names_a_command():
    bare = healthy().with_run(
        audits=(),
        profile=None,
        learning=None,
        precision=None,
        cpu_reference=None,
        replay=None,
        telemetry=None,
        device_window_s=None,
        compute_capability=None,
    )
    bare = bare.with_config(dtype="bfloat16").with_steps(wait_s=None, device_time_s=None)
    bare = dataclasses.replace(bare, peak=None, samples=())
    missing = [check for check in bare.checks().values() if check.outcome is INCONCLUSIVE]
    assert {check.id for check in missing} >= {
        "native.placement", "native.kernels", "native.driver_view", "native.precision", "native.cpu_agreement",
        "native.replay", "native.hardware", "learning.moved", "learning.mode", "learning.canary",
        "throughput.undisturbed", "throughput.clocks", "throughput.plausible", "throughput.input", "throughput.dtype",
    }  # fmt: skip
    for check in missing:
        assert "python -m kit" in check.todo or "nvidia-smi" in check.todo or "datasheet" in check.todo, check


def test_speed_never_decides_the_verdict_and_everything_else_does():
    optional = {id for id, check in healthy().checks().items() if not check.required}
    assert optional == {id for id in CHECKS if id.startswith("throughput")} | {"learning.mode"}


def test_a_reading_that_is_not_available_leaves_its_claim_green():
    checks = (Check("native.a", PASS, "", ""), Check("native.b", INCONCLUSIVE, "", "", required=False))
    assert Verdict.of(checks).claim("native") is PASS


# --- integrity ----------------------------------------------------------------------


@pytest.mark.parametrize("change", ["missing", "twice", "order", "none", "error"])
def test_a_run_without_each_of_its_steps_fails(change):
    sample = healthy()
    steps = sample.steps
    changed = {
        "missing": steps[:-1], "twice": (*steps[:-1], steps[0]), "order": tuple(reversed(steps)), "none": (),
        "error": steps,
    }  # fmt: skip
    sample = dataclasses.replace(sample, steps=changed[change])
    if change == "error":
        sample = sample.with_run(error="out of memory")
    check = sample.checks()["integrity.steps_complete"]
    assert check.outcome is FAIL
    assert check.found.startswith(f"{len(sample.steps)} of 14 steps")
    assert ("out of memory" in check.found) == (change == "error")
    assert "1 to 14" in check.expected and check.todo


def test_samples_and_tokens_that_cannot_be_are_refused():
    """B23, B24: accumulation counted twice, padding counted as text."""
    for change in (
        {"samples": 8},
        {"samples": 5},
        {"samples": 0, "tokens": 0, "supervised_tokens": 0},
        {"tokens": 257},
        {"supervised_tokens": 257},
        {"supervised_tokens": -1},
    ):
        check = healthy().with_steps(6, **change).checks()["integrity.counts"]
        assert check.outcome is FAIL and check.found == "impossible counts at steps [6]" and check.todo
    assert healthy().with_steps(6, samples=1, tokens=64, supervised_tokens=64).outcome("integrity.counts") is PASS
    assert healthy().with_steps(6, samples=4, tokens=0, supervised_tokens=0).outcome("integrity.counts") is PASS
    assert dataclasses.replace(healthy(), steps=()).outcome("integrity.counts") is FAIL
    assert healthy().checks()["integrity.counts"].found == "56 samples, 3544 tokens"


def test_steps_that_overlap_or_take_no_time_fail():
    for change in ({"step_time_s": 0.0}, {"step_time_s": -0.1}, {"step_time_s": 5.0}, {"started_s": 0.0}):
        check = healthy().with_steps(7, **change).checks()["integrity.times_ordered"]
        assert check.outcome is FAIL and "overlap" in check.found
    assert dataclasses.replace(healthy(), steps=()).outcome("integrity.times_ordered") is FAIL


def test_steps_may_follow_each_other_at_once():
    sample = healthy()
    ends = {s.step + 1: s.started_s + s.step_time_s for s in sample.steps}
    touching = sample.with_steps(8, started_s=ends[8] - 5e-7)
    assert touching.outcome("integrity.times_ordered") is PASS
    assert sample.with_steps(8, started_s=ends[8] - 1e-4).outcome("integrity.times_ordered") is FAIL


# --- learning -----------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"loss": None}, {"grad_norm": None}])
@pytest.mark.parametrize("step", [1, 7, 14])
def test_one_step_that_is_not_finite_fails_whatever_the_last_loss_is(change, step):
    """B11, B12."""
    check = healthy().with_steps(step, **change).checks()["learning.finite"]
    assert check.outcome is FAIL
    assert f"1 of 14 steps, first at step {step}" in check.found
    assert check.values["steps"] == [step]


def test_all_steps_that_are_not_finite_are_counted():
    check = healthy().with_steps(loss=None).checks()["learning.finite"]
    assert "14 of 14 steps, first at step 1" in check.found and len(check.values["steps"]) == 10


def test_a_loss_of_exactly_zero_is_no_loss():
    check = healthy().with_steps(5, loss=0.0).checks()["learning.finite"]
    assert check.outcome is FAIL and "exactly 0 at 1 of 14 steps, first at step 5" in check.found
    assert healthy().with_steps(5, loss=1e-9).outcome("learning.finite") is PASS


def test_losses_of_different_batches_may_rise():
    """B21: 11.028 at the first step and 11.058 at the last, in a healthy run."""
    assert healthy().with_steps(loss=lambda s: 11.028 + 0.002 * s.step).outcome("learning.finite") is PASS
    assert healthy().with_steps(loss=lambda s: 11.028 + 0.002 * s.step).outcome("learning.canary") is PASS


def test_an_optimizer_step_that_was_skipped_fails():
    """B17: a loss scaler that skips every step, or one."""
    for which, found in ((None, "0 of 14"), (3, "13 of 14")):
        check = healthy().with_steps(which, is_applied=False).checks()["learning.applied"]
        assert check.outcome is FAIL and check.found.startswith(found) and check.todo
    assert dataclasses.replace(healthy(), steps=()).outcome("learning.applied") is FAIL


def test_a_step_without_a_supervised_token_fails():
    """B15: all labels masked."""
    check = healthy().with_steps(supervised_tokens=0).checks()["learning.supervised_tokens"]
    assert check.outcome is FAIL and "[1, 2, 3, 4, 5]" in check.found
    assert healthy().with_steps(4, supervised_tokens=0).outcome("learning.supervised_tokens") is FAIL
    assert healthy().with_steps(4, supervised_tokens=1).outcome("learning.supervised_tokens") is PASS
    assert "3488 supervised tokens" in healthy().checks()["learning.supervised_tokens"].found
    assert dataclasses.replace(healthy(), steps=()).outcome("learning.supervised_tokens") is FAIL


def test_a_batch_twice_in_one_pass_fails():
    """B27, B31: one row repeated, or a loader that swallowed an error."""
    check = healthy().with_steps(9, batch_sha256=healthy().steps[2].batch_sha256).checks()["learning.batches"]
    assert check.outcome is FAIL and check.found.startswith("1 batches repeated")
    assert "13 batches" in healthy().with_steps(batch_sha256="same").checks()["learning.batches"].found
    assert dataclasses.replace(healthy(), steps=()).outcome("learning.batches") is FAIL


def test_batches_of_a_second_pass_may_be_those_of_the_first():
    sample = healthy().with_run(dataset_rows=28).with_steps(batch_sha256=lambda s: f"{s.step % 7}")
    assert "7 batches" in sample.checks()["learning.batches"].found
    assert sample.outcome("learning.batches") is PASS
    assert sample.with_run(dataset_rows=32).outcome("learning.batches") is FAIL


def test_evaluation_mode_is_a_warning():
    """B29."""
    check = healthy().with_audits(7, is_training=False).checks()["learning.mode"]
    assert check.outcome is FAIL and not check.required and "step 7" in check.found
    assert "1, 7, 14" in healthy().checks()["learning.mode"].found
    assert recorded().outcome("learning.mode") is INCONCLUSIVE


def test_parameters_that_did_not_move_fail():
    """B13: with a learning rate of 0 the losses still vary from batch to batch."""
    still = healthy().with_part("learning", moved_tensors=0, max_change=0.0, unmoved=("wte", "wpe"))
    check = still.with_steps(lr=0.0).checks()["learning.moved"]
    assert check.outcome is FAIL and "unchanged: wte" in check.found and "learning rate was 0" in check.found
    assert "learning rate" not in still.checks()["learning.moved"].found
    one = healthy().with_part("learning", moved_tensors=147, unmoved=("h.3.ln_1.weight",))
    assert one.outcome("learning.moved") is FAIL and "h.3.ln_1.weight" in one.checks()["learning.moved"].found
    assert healthy().with_part("learning", max_change=0.0).outcome("learning.moved") is FAIL
    assert healthy().with_part("learning", trainable_tensors=0, moved_tensors=0).outcome("learning.moved") is FAIL


def test_frozen_parameters_fail_a_run_that_declares_full_training():
    """B16."""
    check = healthy().with_part("learning", trainable_parameters=100).checks()["learning.trainable"]
    assert check.outcome is FAIL and "100 of 124,439,808" in check.found
    nothing = healthy().with_part("learning", trainable_parameters=0, total_parameters=0)
    assert nothing.outcome("learning.trainable") is FAIL


def test_the_fixed_batch_has_to_fall():
    before = healthy().run.learning.canary_before
    for after in (before, before + 0.01, before * (1 - 1e-7)):
        check = healthy().with_part("learning", canary_after=after).checks()["learning.canary"]
        assert check.outcome is FAIL and check.values["after"] == after
    fallen = healthy().with_part("learning", canary_after=before * (1 - 1e-5))
    assert fallen.outcome("learning.canary") is PASS


def test_a_canary_without_a_value_is_inconclusive():
    for change in ({"canary_before": None}, {"canary_after": None}):
        check = healthy().with_part("learning", **change).checks()["learning.canary"]
        assert check.outcome is INCONCLUSIVE and "unknown" in check.found and "--steps 14" in check.todo


def test_a_run_too_short_to_learn_is_inconclusive_and_not_failed():
    def rising(count):
        sample = healthy().with_part("learning", canary_after=12.0)
        return dataclasses.replace(sample, steps=sample.steps[:count]).outcome("learning.canary")

    assert rising(4) is INCONCLUSIVE
    assert rising(5) is FAIL


def test_unmeasured_learning_is_inconclusive():
    checks = healthy().with_run(learning=None).checks()
    for name in ("moved", "trainable", "canary"):
        check = checks[f"learning.{name}"]
        assert check.outcome is INCONCLUSIVE and check.required and check.todo


def test_the_peak_is_optional():
    sample = healthy()
    found = judge_training(sample.run, sample.steps, sample.samples)
    assert {check.id: check.outcome for check in found}["throughput.plausible"] is INCONCLUSIVE

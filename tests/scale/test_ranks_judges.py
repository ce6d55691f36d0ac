"""Each way in which several ranks can fool one, beside the recorded healthy run: the red check names the rank."""

import dataclasses

import pytest
from ranks_sample import healthy

from kit.extras.scale.ranks import FAILED, Rank, global_losses, hang
from kit.records import Outcome
from kit.train.steps import PlacementAudit

UUID = "5aa95342"


def only(sample, id):
    """The check `id`, after seeing that no other required one is red."""
    assert sample.red() == {id}
    return sample.checks()[id]


def test_two_healthy_ranks_pass_every_check():
    sample = healthy()
    assert sample.red() == set()
    assert {check.outcome for check in sample.checks().values()} == {Outcome.PASS}


def test_an_absent_rank_is_a_fail_that_names_it():
    checks = healthy().without(1).checks()
    assert checks["native.ranks_present"].outcome is Outcome.FAIL
    assert "rank 1" in checks["native.ranks_present"].found
    # What the other rank shows is not enough for all.
    assert checks["native.ranks_placement"].outcome is Outcome.INCONCLUSIVE
    assert checks["native.ranks_devices"].outcome is Outcome.INCONCLUSIVE


def test_a_rank_without_a_record_is_absent():
    sample = healthy()
    empty = dataclasses.replace(sample, ranks={**sample.ranks, 1: Rank()})
    assert "rank 1" in empty.checks()["native.ranks_present"].found


def test_a_record_of_another_rank_or_run_is_a_fail():
    for changes in ({"rank": 3}, {"world_size": 4}):
        checks = healthy().with_record(1, **changes).checks()
        assert checks["native.ranks_present"].outcome is Outcome.FAIL


def test_two_ranks_on_the_same_gpu_are_a_fail_that_names_both():
    same = healthy().ranks[0].record.device_uuid
    check = only(healthy().with_record(1, device_uuid=same, trained_uuid=same), "native.ranks_devices")
    assert check.outcome is Outcome.FAIL and "ranks 0 and 1" in check.found


def test_a_rank_that_trained_on_another_gpu_than_it_took_is_a_fail():
    check = only(healthy().with_record(1, trained_uuid="00000000-another"), "native.ranks_devices")
    assert check.outcome is Outcome.FAIL and "rank 1" in check.found


def test_a_rank_on_the_cpu_is_a_fail_that_names_it():
    sample = healthy()
    config = dataclasses.replace(sample.run.config, device="cpu")
    checks = (
        sample.with_record(1, device="cpu", device_uuid=None, trained_uuid=None)
        .with_training(1, config=config)
        .checks()
    )
    assert checks["native.ranks_devices"].outcome is Outcome.FAIL
    assert "rank 1 is on cpu" in checks["native.ranks_devices"].found


def test_a_rank_whose_tensors_are_on_the_cpu_is_a_fail_that_names_it():
    on_cpu = PlacementAudit(1, "cuda", {"cpu": 594}, ("parameter transformer.wte.weight on cpu",))
    check = only(healthy().with_training(1, audits=(on_cpu,)), "native.ranks_placement")
    assert check.outcome is Outcome.FAIL and check.found.startswith("rank 1: ")


def test_a_rank_without_kernels_is_a_fail_that_names_it():
    sample = healthy()
    profile = dataclasses.replace(sample.ranks[1].run.profile, kernels=0, device_time_s=0.0)
    check = only(sample.with_training(1, profile=profile), "native.ranks_kernels")
    assert check.outcome is Outcome.FAIL and check.found.startswith("rank 1: ")


@pytest.mark.parametrize("wrong", [1.0, 0.0, None, 3.0001])
def test_a_wrong_sum_is_a_fail_that_names_the_rank(wrong):
    check = only(healthy().with_record(1, sum_found=wrong), "native.ranks_all_reduce")
    assert check.outcome is Outcome.FAIL and "rank 1" in check.found


def test_a_sum_that_equals_a_wrong_expectation_is_a_fail():
    check = only(healthy().with_record(0, sum_found=1.0, sum_expected=1.0), "native.ranks_all_reduce")
    assert check.outcome is Outcome.FAIL


def test_a_sum_that_was_not_measured_is_inconclusive():
    check = only(healthy().with_record(1, sum_found=None, sum_expected=None), "native.ranks_all_reduce")
    assert check.outcome is Outcome.INCONCLUSIVE and check.todo == "python -m kit train --gpus 2"


def test_ranks_that_end_with_different_weights_are_a_fail():
    check = only(healthy().with_record(1, parameters_sha256="0" * 64), "learning.ranks_equal")
    assert check.outcome is Outcome.FAIL


def test_losses_that_one_gpu_would_not_have_are_a_fail():
    sample = healthy()
    apart = tuple(loss * 1.01 for loss in sample.ranks[0].record.reference_losses)
    check = only(sample.with_record(0, reference_losses=apart), "learning.ranks_agreement")
    assert check.outcome is Outcome.FAIL and "step 1" in check.found


def test_a_loss_that_is_not_finite_is_apart():
    sample = healthy()
    steps = (dataclasses.replace(sample.ranks[1].steps[0], loss=None), *sample.ranks[1].steps[1:])
    checks = sample.with_rank(1, steps=steps).checks()
    assert checks["learning.ranks_agreement"].outcome is Outcome.FAIL
    assert checks["learning.ranks_finite"].found.startswith("rank 1: ")


def test_a_model_too_large_for_one_gpu_leaves_the_agreement_open_and_says_why():
    why = "the model does not fit into one GPU"
    check = only(healthy().with_record(0, reference_losses=(), reference_skipped=why), "learning.ranks_agreement")
    assert check.outcome is Outcome.INCONCLUSIVE and check.found == why


def test_a_failed_run_is_a_fail_with_its_reason():
    check = only(healthy().with_run(state=FAILED, reason="rank 1 was ended by SIGKILL"), "integrity.ranks_complete")
    assert check.outcome is Outcome.FAIL and "rank 1" in check.found


def test_the_worst_rank_decides_and_is_named():
    sample = healthy()
    steps = tuple(dataclasses.replace(step, is_applied=False) for step in sample.ranks[1].steps)
    check = only(sample.with_rank(1, steps=steps), "learning.ranks_applied")
    assert check.outcome is Outcome.FAIL and check.found.startswith("rank 1: ")


def test_the_loss_of_a_global_batch_is_the_mean_over_the_ranks():
    sample = healthy()
    ranks = [sample.ranks[0], sample.ranks[1]]
    found = global_losses(ranks)
    assert found[0] == (ranks[0].steps[0].loss + ranks[1].steps[0].loss) / 2
    assert len(found) == 14
    assert global_losses([]) == ()


# --- who holds the others up --------------------------------------------------------

WAITS = 'Thread 0x1 (most recent call first):\n  File "/v/torch/autograd/graph.py", line 824 in _engine_run_backward\n'
SLEEPS = (
    'Thread 0x2 (most recent call first):\n  File "/home/me/kit/telemetry.py", line 9 in _run\n\n'
    'Thread 0x1 (most recent call first):\n  File "/home/me/loader.py", line 12 in fetch\n'
    '  File "/v/torch/autograd/graph.py", line 1 in deeper\n'
)


def test_the_rank_that_does_not_wait_is_the_culprit_and_its_place_is_named_without_folders():
    told = hang({0: WAITS, 1: SLEEPS, 2: WAITS}, {0: 4, 1: 4, 2: 4})
    assert told.startswith("rank 1 does not go on after 4 steps (loader.py, line 12 in fetch)")
    assert "/home/me" not in told


def test_where_stacks_do_not_tell_the_rank_with_fewer_steps_is_the_culprit():
    assert hang({0: WAITS, 1: WAITS}, {0: 5, 1: 4}).startswith("rank 1 does not go on after 4 steps")


def test_where_nothing_tells_no_rank_is_blamed():
    told = hang({0: WAITS, 1: WAITS}, {0: 5, 1: 5})
    assert told == "all 2 ranks wait after 5 steps: a kernel or the network hangs"

"""Each way in which several ranks can fool one, beside the recorded healthy run: the red check names the rank."""

import dataclasses

import pytest
from ranks_sample import healthy

from kit.extras.scale.judge_ranks import RANKS
from kit.extras.scale.ranks import FAILED, Rank, global_losses, hang
from kit.records import Outcome
from kit.train.steps import PlacementAudit

HEALTHY = healthy()
FIRST, SECOND = HEALTHY.ranks[0], HEALTHY.ranks[1]
SAME = FIRST.record.device_uuid
ON_CPU = PlacementAudit(1, "cuda", {"cpu": 594}, ("parameter transformer.wte.weight on cpu",))
IDLE = dataclasses.replace(SECOND.run.profile, kernels=0, device_time_s=0.0)
CPU = dataclasses.replace(HEALTHY.run.config, device="cpu")
SKIPPED = tuple(dataclasses.replace(step, is_applied=False) for step in SECOND.steps)
LOST = (dataclasses.replace(SECOND.steps[0], loss=None), *SECOND.steps[1:])
APART = tuple(loss * 1.01 for loss in FIRST.record.reference_losses)
TOO_LARGE = {"reference_losses": (), "reference_skipped": "the model does not fit into one GPU"}
DEVICES, PRESENT, SUM, AGREE = (
    "native.ranks_devices",
    "native.ranks_present",
    "native.ranks_all_reduce",
    "learning.ranks_agreement",
)
ANY = None

# Which rank, what it left, the check that turns red, what is said of it, and the other checks that do.
RED = [
    (1, {"record": {"rank": 3}}, PRESENT, "rank 1 is of another rank or another run", set()),
    (1, {"record": {"world_size": 4}}, PRESENT, "rank 1 is of another rank or another run", set()),
    (1, {"record": {"device_uuid": SAME, "trained_uuid": SAME}}, DEVICES, "ranks 0 and 1 are on the same", set()),
    (1, {"record": {"trained_uuid": "00000000-another"}}, DEVICES, "rank 1 took one GPU and trained on another", set()),
    (1, {"record": {"error": "no usable CUDA device"}}, DEVICES, "rank 1: no usable CUDA device", set()),
    (1, {"record": {"device": "cpu", "device_uuid": None, "trained_uuid": None}}, DEVICES, "rank 1 is on cpu", set()),
    (1, {"run": {"config": CPU}}, DEVICES, "rank 1 trained on cpu", ANY),
    (1, {"run": {"audits": (ON_CPU,)}}, "native.ranks_placement", "rank 1: ", set()),
    (1, {"run": {"profile": IDLE}}, "native.ranks_kernels", "rank 1: ", set()),
    *((1, {"record": {"sum_found": wrong}}, SUM, "wrong on rank 1", set()) for wrong in (1.0, 0.0, None, 3.0001)),
    (0, {"record": {"sum_found": 1.0, "sum_expected": 1.0}}, SUM, "wrong on rank 0", set()),
    (1, {"record": {"parameters_sha256": "0" * 64}}, "learning.ranks_equal", "other weights", set()),
    (0, {"record": {"reference_losses": APART}}, AGREE, "apart at step 1", set()),
    (1, {"steps": LOST}, AGREE, "apart at step 1", {"learning.ranks_finite"}),
    (1, {"steps": SKIPPED}, "learning.ranks_applied", "rank 1: ", set()),
]  # fmt: skip
WEAK = [
    (1, {"record": {"sum_found": None, "sum_expected": None}}, SUM, "right on 1 of 2 ranks", set()),
    (0, {"record": TOO_LARGE}, AGREE, "the model does not fit into one GPU", set()),
]


def test_two_healthy_ranks_pass_every_check():
    assert {check.outcome for check in HEALTHY.checks().values()} == {Outcome.PASS}
    assert {rule.id for rule in RANKS} == {check.id for check in HEALTHY.checks().values()} & {r.id for r in RANKS}


@pytest.mark.parametrize("outcome, row", [(Outcome.FAIL, r) for r in RED] + [(Outcome.INCONCLUSIVE, r) for r in WEAK])
def test_what_one_rank_lacks_or_fakes_turns_one_check_red_that_names_it(outcome, row):
    number, changes, id, words, others = row
    sample = HEALTHY.with_rank(number, **changes)
    check = sample.checks()[id]
    assert check.outcome is outcome and words in check.found
    assert others is ANY or sample.red() == {id, *others}
    assert check.todo == "python -m kit train --gpus 2" or outcome is Outcome.FAIL


@pytest.mark.parametrize("ranks", [{0: FIRST}, {0: FIRST, 1: Rank()}])
def test_an_absent_rank_is_a_fail_that_names_it(ranks):
    checks = dataclasses.replace(HEALTHY, ranks=ranks).checks()
    assert checks[PRESENT].outcome is Outcome.FAIL and "rank 1" in checks[PRESENT].found
    # What the other rank shows is not enough for all.
    assert {checks[id].outcome for id in ("native.ranks_placement", DEVICES)} == {Outcome.INCONCLUSIVE}


def test_a_failed_run_is_a_fail_with_its_reason():
    run = dataclasses.replace(HEALTHY.run, state=FAILED, reason="rank 1 was ended by SIGKILL")
    sample = dataclasses.replace(HEALTHY, run=run)
    assert sample.red() == {"integrity.ranks_complete"}
    assert sample.checks()["integrity.ranks_complete"].found == run.reason


def test_the_loss_of_a_global_batch_is_the_mean_over_the_ranks():
    found = global_losses([FIRST, SECOND])
    assert found[0] == (FIRST.steps[0].loss + SECOND.steps[0].loss) / 2 and len(found) == 14
    assert global_losses([]) == ()


WAITS = 'Thread 0x1 (most recent call first):\n  File "/v/torch/autograd/graph.py", line 824 in _engine_run_backward\n'
SLEEPS = (
    'Thread 0x2 (most recent call first):\n  File "/home/me/kit/telemetry.py", line 9 in _run\n\n'
    'Thread 0x1 (most recent call first):\n  File "/home/me/loader.py", line 12 in fetch\n'
    '  File "/v/torch/autograd/graph.py", line 1 in deeper\n'
)


@pytest.mark.parametrize(
    "stacks, steps, told",
    [
        ((WAITS, SLEEPS, WAITS), (4, 4, 4), "rank 1 does not go on after 4 steps (loader.py, line 12 in fetch); "
         "the others wait for it"),
        ((WAITS, WAITS), (5, 4), "rank 1 does not go on after 4 steps (graph.py, line 824 in _engine_run_backward); "
         "it has finished 4 steps, the others more"),
        ((WAITS, WAITS), (5, 5), "all 2 ranks wait after 5 steps: a kernel or the network hangs"),
    ],
)  # fmt: skip
def test_who_holds_the_others_up_is_named_by_stack_then_by_steps_or_nobody_is(stacks, steps, told):
    """Its place without folders, which are private."""
    assert hang(dict(enumerate(stacks)), dict(enumerate(steps))) == told

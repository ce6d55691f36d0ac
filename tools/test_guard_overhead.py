"""The benchmark runs and says what it has to say; how fast anything is, is no matter of a test."""

import json

import pytest

from kit.errors import GpuNotUsable
from kit.train.config import TrainConfig
from tools import guard_overhead

TINY = TrainConfig(model="tiny", device="cpu", batch_size=1, seq_len=4)


@pytest.fixture(scope="module")
def job():
    return guard_overhead.Job(TINY)


def test_the_last_line_is_json_with_every_arm(capsys):
    guard_overhead.main(["--device", "cpu", "--model", "tiny", "--rounds", "1", "--steps", "5"])
    table, last = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    found = json.loads(last)
    assert (found["benchmark"], found["model"], found["rounds"], found["steps"]) == ("guard_overhead", "tiny", 1, 5)
    assert found["device_name"] in table and found["limit"] == 0.01 and set(found["step_s"]) == set(guard_overhead.ARMS)
    for arm in ("gpu_guard", "callback"):
        (one,) = found["overhead"][arm]
        assert one["watched_steps"] >= 3 and arm in table
    assert "without" not in found["overhead"]


def test_an_arm_counts_on_from_chunk_to_chunk_and_leaves_nothing_between(job):
    for name in ("gpu_guard", "callback"):
        arm = guard_overhead.Arm(job, name)
        arm.chunk(3)
        arm.chunk(2)
        assert arm.guard.steps == 5 == len(arm.times_s) + len(arm.watched_s)
        assert not job.model._forward_hooks and not job.model._forward_pre_hooks


def test_the_overhead_is_that_of_the_usual_steps_and_of_the_watched_ones():
    without, within = (guard_overhead.Arm(None, "without") for _ in range(2))
    without.times_s, within.times_s, within.watched_s = [1.0] * 9 + [50.0], [1.01] * 8, [2.0, 1.5]
    found = within.overhead(without)
    assert found["by_step"] == pytest.approx((8 * 0.01 + 1.0 + 0.5) / 10)
    assert found["total"] == pytest.approx((8 * 1.01 + 3.5) / 59 - 1)


@pytest.mark.parametrize("name", ["gpu_guard", "callback"])
def test_a_job_on_the_wrong_device_is_refused(name, job, monkeypatch):
    """What is measured is the guard that refuses, not one that was told to look away."""
    arm = guard_overhead.Arm(job, name)
    monkeypatch.setattr(arm.guard, "is_home", lambda tensor: False)
    with pytest.raises(GpuNotUsable):
        arm.chunk(1)
    arm.guard.__exit__(GpuNotUsable)

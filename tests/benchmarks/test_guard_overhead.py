"""The benchmark runs and says what it has to say; how fast anything is, is no matter of a test."""

import json

import pytest

from kit import GpuGuardCallback, gpu_guard
from kit.errors import GpuNotUsable
from kit.train.config import TrainConfig

from . import guard_overhead

TINY = TrainConfig(model="tiny", device="cpu", batch_size=1, seq_len=4)


@pytest.fixture(scope="module")
def job():
    return guard_overhead.Job(TINY)


def test_the_last_line_is_json_with_every_arm_and_its_spread(capsys):
    guard_overhead.main(["--device", "cpu", "--model", "tiny", "--rounds", "1", "--steps", "2"])
    table, last = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    found = json.loads(last)
    assert (found["benchmark"], found["model"], found["rounds"], found["steps_a_block"]) == (
        "guard_overhead",
        "tiny",
        1,
        2,
    )
    assert found["device_name"] in table and found["limit"] == 0.01
    assert set(found["step_s"]) == {"without", "gpu_guard", "callback"}
    assert set(found["overhead"]) == {"gpu_guard", "callback"}
    for arm, figures in found["step_s"].items():
        assert figures["n"] == len(found["blocks_s"][arm]) == 2
        assert 0 < figures["q1"] <= figures["median"] <= figures["q3"]
        assert figures["iqr"] == figures["q3"] - figures["q1"] and arm in table
    assert {figures["n"] for figures in found["overhead"].values()} == {1}
    assert found["own"]["first_step_s"] > 0 and found["own"]["other_steps_s"] > 0


def test_a_round_meets_every_arm_in_both_directions(monkeypatch):
    order = []
    monkeypatch.setattr(guard_overhead, "block", lambda job, arm, steps: order.append(arm) or 1.0)
    found = guard_overhead.measure(TINY, rounds=2, steps=1)
    kept = order[guard_overhead.WARM_UP_BLOCKS :]
    assert kept == 2 * ["without", "gpu_guard", "callback", "callback", "gpu_guard", "without"]
    assert found["overhead"]["gpu_guard"]["median"] == 0


def test_the_overhead_is_a_ratio_of_blocks_of_one_round():
    """A card that throttles in the second round slows both arms; the guard's share stays what it is."""
    without, within = [1.0, 3.0, 10.0, 10.0], [2.0, 2.04, 10.1, 10.1]
    assert guard_overhead._overheads(without, within) == pytest.approx([0.01, 0.01])


@pytest.mark.parametrize("arm", ["gpu_guard", "callback"])
def test_each_arm_really_guards(arm, job, monkeypatch):
    looks = []
    real = gpu_guard.after_step
    monkeypatch.setattr(gpu_guard, "after_step", lambda self: looks.append(1) or real(self))
    assert guard_overhead.block(job, arm, 3) > 0 and len(looks) == 3
    guard_overhead.block(job, "without", 3)
    assert len(looks) == 3
    assert not job.model._forward_hooks and not job.model._forward_pre_hooks


def test_a_job_on_the_wrong_device_is_refused_in_both_guarded_arms(job, monkeypatch):
    """What is measured is the guard that refuses, not one that was told to look away."""
    for name, kind in (("gpu_guard", gpu_guard), ("GpuGuardCallback", GpuGuardCallback)):
        monkeypatch.setattr(
            guard_overhead, name, lambda *args, kind=kind, **more: kind(*args, **{**more, "device": "cuda"})
        )
    for arm in ("gpu_guard", "callback"):
        with pytest.raises(GpuNotUsable):
            guard_overhead.block(job, arm, 1)

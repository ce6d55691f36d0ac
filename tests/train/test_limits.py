"""Every limit of the judges at its edge: a value that is just allowed, and the one beside it that is not.

Where a limit is no binary fraction it is set to one, so that the edge can be met exactly.
"""

import dataclasses

from verdict_sample import healthy

from kit.records import Outcome
from kit.train import judge_training
from kit.train.config import step_flop, weight_flop
from kit.train.steps import throughput

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
GIB = 1024**3


def in_even_steps(sample=None):
    """A second from one step to the next, half of it work: times without rounding."""
    sample = (sample or healthy()).with_steps(started_s=lambda s: float(s.step), step_time_s=0.5, device_time_s=0.5)
    return sample.with_run(wall_window_s=throughput(sample.steps).window_s)


def only(sample, count):
    """The first steps of it, as a run that was asked for that many."""
    return dataclasses.replace(sample, steps=sample.steps[:count]).with_config(steps=count)


# --- integrity and learning ---------------------------------------------------------


def test_a_run_of_one_step_is_a_run():
    one = only(healthy(), 1).with_part("replay", losses=healthy().run.replay.losses[:1])
    outcomes = {id: one.outcome(id) for id in ("integrity.steps_complete", "learning.applied", "native.replay")}
    assert set(outcomes.values()) == {PASS}, outcomes


def test_a_step_may_begin_a_microsecond_before_the_last_one_ended_and_no_more():
    first, second = healthy().steps[:2]
    for overlap_s, outcome in ((1e-6, PASS), (2e-6, FAIL)):
        pair = (
            dataclasses.replace(first, started_s=0.0, step_time_s=overlap_s),
            dataclasses.replace(second, started_s=0.0),
        )
        assert dataclasses.replace(healthy(), steps=pair).outcome("integrity.times_ordered") is outcome


def test_a_canary_that_fell_by_rounding_alone_has_not_fallen(monkeypatch):
    for after, outcome in ((1 - 1.5e-6, PASS), (1 - 0.5e-6, FAIL)):
        assert (
            healthy().with_part("learning", canary_before=1.0, canary_after=after).outcome("learning.canary") is outcome
        )
    monkeypatch.setattr(judge_training, "CANARY_MIN_FALL", 0.25)
    assert healthy().with_part("learning", canary_before=8.0, canary_after=6.0).outcome("learning.canary") is FAIL
    assert healthy().with_part("learning", canary_before=8.0, canary_after=5.99).outcome("learning.canary") is PASS


def test_five_wrong_steps_are_named_and_no_more():
    check = healthy().with_steps(samples=99).checks()["integrity.counts"]
    assert check.found == "impossible counts at steps [1, 2, 3, 4, 5]"


# --- the device ---------------------------------------------------------------------


def test_kernels_for_exactly_the_least_share_are_enough(monkeypatch):
    monkeypatch.setattr(judge_training, "MIN_KERNEL_SHARE", 0.25)
    for step_time_s, outcome in ((4.0, PASS), (4.01, INCONCLUSIVE)):
        sample = healthy().with_part("profile", device_time_s=1.0, step_time_s=step_time_s)
        assert sample.outcome("native.kernels") is outcome


def test_products_may_miss_the_tolerance_and_no_more(monkeypatch):
    monkeypatch.setattr(judge_training, "FLOP_TOLERANCE", 0.25)
    least = 0.75 * weight_flop(healthy().run.config.shape, 4 * 64)
    assert healthy().with_part("profile", product_flop={"cuda": least}).outcome("native.kernels") is PASS
    assert healthy().with_part("profile", product_flop={"cuda": least - 1}).outcome("native.kernels") is FAIL


def test_what_was_not_counted_is_told_as_none():
    def found(**profile):
        return healthy().with_part("profile", **profile).checks()["native.kernels"].found

    assert found(product_flop={}).startswith("0 FLOP of products on the device")
    assert found(products={"cuda": 0}).startswith("0 matrix products on the device")
    assert found(products={"meta": 147}).startswith("0 matrix products on the device")
    assert found(products={"cuda": 147, "cpu": 1}) == "1 matrix products on the CPU"
    assert found(matmul_kernels=None) == "0 matrix kernels where the model needs 147"


def test_kernels_of_other_names_need_every_count_to_be_whole():
    """A count of torch's products, a count of kernels, and a known name for each block."""
    renamed = {"matmul_kernels": 12, "kernels": 147, "products": {"cuda": 147}}
    assert healthy().with_part("profile", **renamed).outcome("native.kernels") is PASS
    for change in ({"matmul_kernels": 11}, {"kernels": 146}, {"kernels": None}, {"products": {}}):
        assert healthy().with_part("profile", **{**renamed, **change}).outcome("native.kernels") is FAIL, change


def test_copies_may_reach_their_budget_and_no_more():
    """Some scalars, the batch's two tensors, and what sharing the model among ranks says that it copies."""
    for shared in (0, 5000):
        budget = 1_000_000 + 16 * 4 * 64 + shared
        for copied, outcome in ((budget, PASS), (budget + 1, FAIL)):
            sample = healthy().with_part("profile", copied_bytes=copied)
            case = judge_training.Run(sample.run, sample.steps, sample.samples, scheme_copy_bytes=shared)
            assert {c.id: c.outcome for c in judge_training.TRAINING.checks(case)}["native.kernels"] is outcome


def test_half_of_the_memory_that_must_be_there_is_enough():
    half = max(healthy().steps[0].memory_peak_bytes, *(s.memory_peak_bytes for s in healthy().steps)) // 2
    sample = healthy().with_steps(memory_peak_bytes=2 * half)
    assert sample.with_samples(own_memory_bytes=half).outcome("native.driver_view") is PASS
    assert sample.with_samples(own_memory_bytes=half - 1).outcome("native.driver_view") is FAIL


def test_torch_that_tells_no_peak_is_told_as_nothing():
    check = healthy().with_steps(memory_peak_bytes=None).checks()["native.driver_view"]
    assert "torch holds 0 MiB;" in check.found


def test_power_has_to_be_above_the_margin_and_not_at_it(monkeypatch):
    monkeypatch.setattr(judge_training, "ABOVE_IDLE", 1.25)
    idle = dataclasses.replace(healthy().run.telemetry.idle, power_w=100.0, clock_mhz=None, utilization=0.0)
    sample = healthy().with_part("telemetry", idle=idle)
    assert sample.with_samples(power_w=125.0).outcome("native.driver_view") is INCONCLUSIVE
    assert sample.with_samples(power_w=125.1).outcome("native.driver_view") is PASS


def test_a_loss_may_be_off_by_the_limit_and_no_more(monkeypatch):
    monkeypatch.setitem(judge_training.LOSS_LIMITS, "float32", 0.25)
    sample = healthy().with_steps(loss=5.0)
    assert sample.with_part("cpu_reference", losses=(4.0, 4.0, 4.0)).outcome("native.cpu_agreement") is PASS
    assert sample.with_part("cpu_reference", losses=(4.0, 4.0, 3.99)).outcome("native.cpu_agreement") is FAIL


# --- coverage and speed -------------------------------------------------------------


def test_the_longest_hole_in_the_readings_may_be_as_long_as_its_limit():
    sample = in_even_steps()
    samples = tuple(dataclasses.replace(s, at_s=1.0) for s in sample.samples[:5])
    for step_time_s, said in ((0.5, ""), (0.51, "no reading for 0.5 s of 0.5 s")):
        step = dataclasses.replace(sample.steps[0], started_s=1.0, step_time_s=step_time_s)
        assert judge_training.Run(sample.run, (step,), samples).uncovered == said
    assert judge_training.Run(sample.run, (), samples).uncovered == "no steps"


def test_memory_of_others_may_reach_its_limit_and_no_more():
    def with_used(used, **more):
        idle = dataclasses.replace(healthy().run.telemetry.idle, memory_used_bytes=used, own_memory_bytes=None)
        return (
            healthy()
            .with_part("telemetry", idle=idle, memory_total_bytes=80 * GIB, **more)
            .outcome("throughput.undisturbed")
        )

    assert with_used(2 * GIB) is PASS
    assert with_used(2 * GIB + 1, reserved_before_bytes=None) is INCONCLUSIVE
    assert with_used(2 * GIB + 1, reserved_before_bytes=1) is PASS


def test_host_and_device_may_differ_by_the_tolerance_and_no_more(monkeypatch):
    monkeypatch.setattr(judge_training, "CLOCK_TOLERANCE", 0.25)
    for factor, outcome in ((1.25, PASS), (1.26, FAIL), (0.75, PASS), (0.74, INCONCLUSIVE)):
        sample = in_even_steps().with_steps(device_time_s=0.5 * factor)
        assert sample.outcome("throughput.clocks") is outcome, factor


def test_a_wall_clock_may_move_by_a_second_and_no_more():
    sample = in_even_steps()
    for jump_s, outcome in ((1.0, PASS), (-1.0, PASS), (1.125, INCONCLUSIVE), (-1.125, INCONCLUSIVE)):
        assert sample.with_run(wall_window_s=sample.run.wall_window_s + jump_s).outcome("throughput.clocks") is outcome


def test_the_peak_itself_is_suspicious_and_not_yet_impossible(monkeypatch):
    monkeypatch.setattr(judge_training, "PLAUSIBLE_SHARE", 0.5)
    sample = in_even_steps()
    rate = step_flop(sample.run.config.shape, batch_size=4, seq_len=64) / 0.5
    for share, outcome in ((0.5, PASS), (0.51, INCONCLUSIVE), (1.0, INCONCLUSIVE), (1.01, FAIL)):
        monkeypatch.setattr(judge_training, "peak_flop_per_s", lambda name, dtype, share=share: rate / share)
        assert sample.outcome("throughput.plausible") is outcome, share


def test_waiting_for_batches_may_take_the_limit_and_no_more(monkeypatch):
    monkeypatch.setattr(judge_training, "MAX_WAIT_SHARE", 0.5)
    for wait_s, outcome in ((0.5, PASS), (0.51, INCONCLUSIVE)):
        check = in_even_steps().with_steps(wait_s=wait_s).checks()["throughput.input"]
        assert check.outcome is outcome and ("input bound" in check.found) == (outcome is INCONCLUSIVE)

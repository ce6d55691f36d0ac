"""Every limit of the judges at its edge: a value that is just allowed, and the one beside it that is not.

Where a limit is no binary fraction it is set to one, so that the edge can be met exactly.
"""

import dataclasses

import pytest
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


def learning(**changes):
    return healthy().with_part("learning", **changes)


def profile(**changes):
    return healthy().with_part("profile", **changes)


def pair(overlap_s):
    first, second = (dataclasses.replace(step, started_s=0.0) for step in healthy().steps[:2])
    return dataclasses.replace(healthy(), steps=(dataclasses.replace(first, step_time_s=overlap_s), second))


def holding(less):
    half = max(step.memory_peak_bytes for step in healthy().steps) // 2
    return healthy().with_steps(memory_peak_bytes=2 * half).with_samples(own_memory_bytes=half - less)


def drawing(power_w):
    idle = dataclasses.replace(healthy().run.telemetry.idle, power_w=100.0, clock_mhz=None, utilization=0.0)
    return healthy().with_part("telemetry", idle=idle).with_samples(power_w=power_w)


def with_used(used, **more):
    idle = dataclasses.replace(healthy().run.telemetry.idle, memory_used_bytes=used, own_memory_bytes=None)
    return healthy().with_part("telemetry", idle=idle, memory_total_bytes=80 * GIB, **more)


def jumped(by_s):
    sample = in_even_steps()
    return sample.with_run(wall_window_s=sample.run.wall_window_s + by_s)


LEAST_FLOP = 0.75 * weight_flop(healthy().run.config.shape, 4 * 64)
# A count of torch's products, a count of kernels, and a known name for each block have to be whole.
RENAMED = {"matmul_kernels": 12, "kernels": 147, "products": {"cuda": 147}}
# check: its limit and what that is set to, a sample of a value, and what is said at each value.
# fmt: off
EDGES = [
    ("integrity.times_ordered", {}, pair, {1e-6: PASS, 2e-6: FAIL}),
    ("learning.canary", {}, lambda fall: learning(canary_before=1.0, canary_after=1 - fall), {1.5e-6: PASS, 0.5e-6: FAIL}),
    ("learning.canary", {"CANARY_MIN_FALL": 0.25}, lambda after: learning(canary_before=8.0, canary_after=after), {6.0: FAIL, 5.99: PASS}),
    ("native.kernels", {"MIN_KERNEL_SHARE": 0.25}, lambda step_time_s: profile(device_time_s=1.0, step_time_s=step_time_s), {4.0: PASS, 4.01: INCONCLUSIVE}),
    ("native.kernels", {"FLOP_TOLERANCE": 0.25}, lambda flop: profile(product_flop={"cuda": flop}), {LEAST_FLOP: PASS, LEAST_FLOP - 1: FAIL}),
    ("native.kernels", {}, lambda known: profile(**{**RENAMED, "matmul_kernels": known}), {12: PASS, 11: FAIL}),
    ("native.kernels", {}, lambda kernels: profile(**{**RENAMED, "kernels": kernels}), {147: PASS, 146: FAIL, None: FAIL}),
    ("native.kernels", {}, lambda products: profile(**{**RENAMED, "products": {"cuda": products}}), {147: PASS, 0: FAIL}),
    ("native.driver_view", {}, holding, {0: PASS, 1: FAIL}),
    ("native.driver_view", {"ABOVE_IDLE": 1.25}, drawing, {125.1: PASS, 125.0: INCONCLUSIVE}),
    ("native.cpu_agreement", {"LOSS_LIMITS": {"float32": 0.25}}, lambda last: healthy().with_steps(loss=5.0).with_part("cpu_reference", losses=(4.0, 4.0, last)), {4.0: PASS, 3.99: FAIL}),
    ("throughput.undisturbed", {}, with_used, {2 * GIB: PASS, 2 * GIB + 2: INCONCLUSIVE}),
    ("throughput.undisturbed", {}, lambda reserved: with_used(2 * GIB + 1, reserved_before_bytes=reserved), {1: PASS, None: INCONCLUSIVE}),
    ("throughput.clocks", {"CLOCK_TOLERANCE": 0.25}, lambda factor: in_even_steps().with_steps(device_time_s=0.5 * factor), {1.25: PASS, 1.26: FAIL, 0.75: PASS, 0.74: INCONCLUSIVE}),
    ("throughput.clocks", {}, jumped, {1.0: PASS, -1.0: PASS, 1.125: INCONCLUSIVE, -1.125: INCONCLUSIVE}),
    ("throughput.input", {"MAX_WAIT_SHARE": 0.5}, lambda wait_s: in_even_steps().with_steps(wait_s=wait_s), {0.5: PASS, 0.51: INCONCLUSIVE}),
]
# fmt: on


@pytest.mark.parametrize(("check", "limit", "sample", "said"), EDGES)
def test_a_value_may_reach_its_limit_and_no_more(monkeypatch, check, limit, sample, said):
    for name, value in limit.items():
        monkeypatch.setattr(judge_training, name, value)
    assert {value: sample(value).outcome(check) for value in said} == said


@pytest.mark.parametrize("shared", [0, 5000])
def test_copies_may_reach_their_budget_and_no_more(shared):
    """Some scalars, the batch's two tensors, and what sharing the model among ranks says that it copies."""
    budget = 1_000_000 + 16 * 4 * 64 + shared
    for copied, outcome in ((budget, PASS), (budget + 1, FAIL)):
        sample = profile(copied_bytes=copied)
        case = judge_training.Run(sample.run, sample.steps, sample.samples, scheme_copy_bytes=shared)
        assert {c.id: c.outcome for c in judge_training.TRAINING.checks(case)}["native.kernels"] is outcome


def test_the_longest_hole_in_the_readings_may_be_as_long_as_its_limit():
    sample = in_even_steps()
    samples = tuple(dataclasses.replace(s, at_s=1.0) for s in sample.samples[:5])
    for step_time_s, said in ((0.5, ""), (0.51, "no reading for 0.5 s of 0.5 s")):
        step = dataclasses.replace(sample.steps[0], started_s=1.0, step_time_s=step_time_s)
        assert judge_training.Run(sample.run, (step,), samples).uncovered == said
    assert judge_training.Run(sample.run, (), samples).uncovered == "no steps"


def test_the_peak_itself_is_suspicious_and_not_yet_impossible(monkeypatch):
    monkeypatch.setattr(judge_training, "PLAUSIBLE_SHARE", 0.5)
    sample = in_even_steps()
    rate = step_flop(sample.run.config.shape, batch_size=4, seq_len=64) / 0.5
    for share, outcome in ((0.5, PASS), (0.51, INCONCLUSIVE), (1.0, INCONCLUSIVE), (1.01, FAIL)):
        monkeypatch.setattr(judge_training, "peak_flop_per_s", lambda name, dtype, share=share: rate / share)
        assert sample.outcome("throughput.plausible") is outcome, share


def test_a_run_of_one_step_is_a_run():
    one = only(healthy(), 1).with_part("replay", losses=healthy().run.replay.losses[:1])
    outcomes = {id: one.outcome(id) for id in ("integrity.steps_complete", "learning.applied", "native.replay")}
    assert set(outcomes.values()) == {PASS}, outcomes


@pytest.mark.parametrize(
    ("check", "sample", "words"),
    [
        ("integrity.counts", healthy().with_steps(samples=99), "impossible counts at steps [1, 2, 3, 4, 5]"),
        ("native.driver_view", healthy().with_steps(memory_peak_bytes=None), "torch holds 0 MiB;"),
        ("native.kernels", profile(product_flop={}), "0 FLOP of products on the device"),
        ("native.kernels", profile(products={"meta": 147}), "0 matrix products on the device"),
        ("native.kernels", profile(products={"cuda": 147, "cpu": 1}), "1 matrix products on the CPU"),
        ("native.kernels", profile(matmul_kernels=None), "0 matrix kernels where the model needs 147"),
        ("throughput.input", in_even_steps().with_steps(wait_s=9.0), "input bound"),
    ],
)
def test_what_was_not_counted_is_told_as_none(check, sample, words):
    assert words in sample.checks()[check].found

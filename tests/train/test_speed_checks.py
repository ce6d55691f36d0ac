"""May the figures be called the card's speed? None of this touches the verdict."""

import dataclasses

import pytest
from verdict_sample import healthy, recorded

from kit.records import Outcome, Verdict
from kit.train.config import step_flop
from kit.train.steps import throughput

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


def said(sample, name):
    check = sample.checks()[f"throughput.{name}"]
    assert not check.required
    return check


def test_heat_and_others_touch_the_figures_and_not_the_verdict():
    hot = healthy().with_samples(throttle_bits=0x60, foreign_processes=2)
    assert said(hot, "undisturbed").outcome is INCONCLUSIVE
    assert hot.red() == set()
    assert Verdict.of(hot.checks().values()).claim("throughput") is INCONCLUSIVE


# --- undisturbed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bit", "word"),
    [
        (0x8, "hardware slowdown"),
        (0x20, "software thermal slowdown"),
        (0x40, "hardware thermal slowdown"),
        (0x80, "power brake"),
    ],
)
def test_each_slowdown_is_read_by_its_bit(bit, word):
    sample = healthy()
    samples = (
        *sample.samples[:40],
        dataclasses.replace(sample.samples[40], throttle_bits=bit | 0x4),
        *sample.samples[41:],
    )
    check = said(dataclasses.replace(sample, samples=samples), "undisturbed")
    assert check.outcome is INCONCLUSIVE and word in check.found and check.values["throttle_bits"] & bit


@pytest.mark.parametrize("bits", [0, None, 0x1, 0x2, 0x4, 0x7, 0x10, 0x100])
def test_idle_and_power_cap_bits_are_normal(bits):
    """C08."""
    check = said(healthy().with_samples(throttle_bits=bits), "undisturbed")
    assert check.outcome is PASS and check.values["throttle_bits"] == (bits or 0)


def test_another_process_on_the_card_is_told():
    """C05."""
    sample = healthy()
    samples = (*sample.samples[:30], dataclasses.replace(sample.samples[30], foreign_processes=1), *sample.samples[31:])
    check = said(dataclasses.replace(sample, samples=samples), "undisturbed")
    assert check.outcome is INCONCLUSIVE and "1 other processes on the card" in check.found
    assert "alone on the card" in said(sample, "undisturbed").found


def test_a_process_list_that_is_missing_is_not_red():
    check = said(healthy().with_samples(foreign_processes=None), "undisturbed")
    assert check.outcome is PASS and "other processes: not available here" in check.found


def test_memory_that_nobody_owns_is_told():
    """A23: 30 GiB in use before the run, and no process."""

    def with_idle(gib, total_gib=80, own=None, reserved=None):
        idle = dataclasses.replace(
            healthy().run.telemetry.idle, memory_used_bytes=int(gib * 1024**3), own_memory_bytes=own
        )
        return healthy().with_part(
            "telemetry", idle=idle, memory_total_bytes=total_gib * 1024**3, reserved_before_bytes=reserved
        )

    check = said(with_idle(30), "undisturbed")
    assert check.outcome is INCONCLUSIVE and "30.0 GiB of the card in use by others" in check.found
    assert said(with_idle(1.9), "undisturbed").outcome is PASS
    assert said(with_idle(2.1), "undisturbed").outcome is INCONCLUSIVE
    assert said(with_idle(0.7, total_gib=8), "undisturbed").outcome is PASS
    assert said(with_idle(0.9, total_gib=8), "undisturbed").outcome is INCONCLUSIVE
    assert said(with_idle(30, own=29 * 1024**3), "undisturbed").outcome is PASS
    assert said(with_idle(30, reserved=29 * 1024**3), "undisturbed").outcome is PASS
    assert said(with_idle(30, own=5 * 1024**3, reserved=29 * 1024**3), "undisturbed").outcome is INCONCLUSIVE
    unknown = with_idle(30).with_part("telemetry", memory_total_bytes=None)
    assert said(unknown, "undisturbed").outcome is PASS
    assert said(healthy().with_part("telemetry", idle=None), "undisturbed").outcome is PASS


def test_a_profiler_beside_the_timed_steps_is_told():
    """C19."""
    check = said(healthy().with_audits(7, is_profiled=True), "undisturbed")
    assert check.outcome is INCONCLUSIVE and "profiler" in check.found


def test_readings_have_to_cover_the_steps():
    """C12: at least five, at least one a second, and no long hole."""
    few = dataclasses.replace(healthy(), samples=healthy().samples[1:5])
    assert "4 readings, 5 needed" in said(few, "undisturbed").found
    half = dataclasses.replace(healthy(), samples=healthy().samples[:40])
    assert "no reading for" in said(half, "undisturbed").found
    five = dataclasses.replace(healthy(), samples=healthy().samples[8:73:16])
    assert said(five, "undisturbed").outcome is PASS
    long = healthy().with_steps(started_s=lambda s: 100 * s.started_s, step_time_s=lambda s: 100 * s.step_time_s)
    long = long.with_samples(at_s=lambda s: 100 * s.at_s)
    assert "77 readings, 162 needed" in said(long, "undisturbed").found
    check = said(dataclasses.replace(healthy(), samples=(), steps=()), "undisturbed")
    assert check.outcome is INCONCLUSIVE and "0 readings, 5 needed" in check.found


def test_the_power_limit_stands_beside_its_default():
    """C09."""
    lowered = healthy().with_part("telemetry", power_limit_w=300.0)
    assert "power limit 300 W of 700 W" in said(lowered, "undisturbed").found
    assert said(lowered, "undisturbed").outcome is PASS
    for change in ({"power_limit_w": None}, {"power_limit_default_w": None}):
        assert "power limit" not in said(healthy().with_part("telemetry", **change), "undisturbed").found


# --- clocks -------------------------------------------------------------------------


def test_a_host_that_did_not_wait_fails():
    """C01: ten products 'take' 0.9 ms and really 13.7 ms; reading the loss hides it from the whole window."""
    check = said(healthy().with_steps(device_time_s=lambda s: 15 * s.step_time_s), "clocks")
    assert check.outcome is FAIL and "host 1.58 s, device 23.8 s" in check.found and check.todo
    assert check.values["gap"] == pytest.approx(14)
    assert said(healthy().with_steps(device_time_s=lambda s: 1.049 * s.step_time_s), "clocks").outcome is PASS
    assert said(healthy().with_steps(device_time_s=lambda s: 1.051 * s.step_time_s), "clocks").outcome is FAIL


def test_short_runs_are_judged_as_long_ones():
    quick = healthy().with_steps(step_time_s=lambda s: s.step_time_s / 10, device_time_s=lambda s: s.step_time_s / 10)
    assert said(quick, "clocks").outcome is PASS and said(quick, "clocks").found.startswith("host 158 ms")
    zero = healthy().with_steps(device_time_s=0.0)
    assert said(zero, "clocks").values["gap"] == -1


def test_a_device_that_was_done_long_before_is_inconclusive():
    """Under Windows the driver queues work; the host's time is then too long and no lie in the card's favour."""
    check = said(healthy().with_steps(device_time_s=lambda s: 0.94 * s.step_time_s), "clocks")
    assert check.outcome is INCONCLUSIVE and "long before" in check.found
    assert said(healthy().with_steps(device_time_s=lambda s: 0.96 * s.step_time_s), "clocks").outcome is PASS


def test_without_step_times_of_the_device_its_window_decides():
    window = throughput(recorded().steps).window_s
    assert said(recorded(), "clocks").outcome is PASS
    assert said(recorded().with_run(device_window_s=1.04 * window), "clocks").outcome is PASS
    assert said(recorded().with_run(device_window_s=1.06 * window), "clocks").outcome is FAIL
    assert said(recorded().with_run(device_window_s=None), "clocks").found == "no device clock"
    assert said(dataclasses.replace(recorded(), steps=()), "clocks").outcome is INCONCLUSIVE
    broken = recorded().with_steps(started_s=0.0, step_time_s=0.0)
    assert said(broken, "clocks").outcome is FAIL and said(broken, "clocks").values == {}


def test_a_wall_clock_that_jumped_is_inconclusive():
    """C14."""
    window = throughput(healthy().steps).window_s
    for jump, outcome in ((0.9, PASS), (-0.9, PASS), (1.1, INCONCLUSIVE), (-1.1, INCONCLUSIVE)):
        check = said(healthy().with_run(wall_window_s=window + jump), "clocks")
        assert check.outcome is outcome and ("jumped" in check.found) == (outcome is INCONCLUSIVE)
    assert said(healthy().with_run(wall_window_s=None), "clocks").outcome is PASS
    both = healthy().with_run(wall_window_s=99.0).with_steps(device_time_s=lambda s: 15 * s.step_time_s)
    assert said(both, "clocks").outcome is FAIL


# --- plausible ----------------------------------------------------------------------


def fastest(sample):
    shape = sample.run.config.shape
    return step_flop(shape, batch_size=4, seq_len=64) / min(s.step_time_s for s in sample.steps[4:])


def test_faster_than_the_cards_peak_is_impossible():
    """C01, C20."""
    for share, outcome in ((1.01, FAIL), (0.99, INCONCLUSIVE), (0.96, INCONCLUSIVE), (0.94, PASS)):
        check = said(dataclasses.replace(healthy(), peak=fastest(healthy()) / share), "plausible")
        assert check.outcome is outcome and check.values["share_of_peak"] == pytest.approx(share)
    assert "4.32 TFLOP/s in the fastest steady step, 6.5 %" in said(healthy(), "plausible").found


def test_a_smaller_last_batch_is_not_counted_as_a_full_one():
    """Its step is fast because it had less to do."""
    tight = dataclasses.replace(healthy(), peak=fastest(healthy()) / 0.9)
    fast = min(s.step_time_s for s in healthy().steps)
    assert said(tight.with_steps(14, samples=2, step_time_s=fast / 2), "plausible").outcome is PASS
    assert said(tight.with_steps(14, step_time_s=fast / 2), "plausible").outcome is FAIL


def test_an_unknown_peak_is_inconclusive():
    check = said(dataclasses.replace(healthy(), peak=None), "plausible")
    assert check.outcome is INCONCLUSIVE and "peak is not known" in check.found and "datasheet" in check.todo
    short = dataclasses.replace(healthy(), steps=healthy().steps[:4])
    assert said(short, "plausible").found == "no steady steps" and "--steps 100" in said(short, "plausible").todo
    assert said(dataclasses.replace(short, peak=None), "plausible").found == "no steady steps"
    assert said(dataclasses.replace(healthy(), steps=()), "plausible").outcome is INCONCLUSIVE


def test_a_step_that_took_no_time_is_impossible():
    for time_s in (0.0, -1.0):
        assert said(healthy().with_steps(9, step_time_s=time_s), "plausible").outcome is FAIL
    assert said(healthy().with_steps(2, step_time_s=0.0), "plausible").outcome is PASS


# --- input and dtype ----------------------------------------------------------------


def test_a_slow_loader_is_named():
    """C04."""
    for share, outcome in ((0.19, PASS), (0.21, INCONCLUSIVE)):
        check = said(healthy().with_steps(wait_s=lambda s, share=share: s.step_time_s * share / (1 - share)), "input")
        assert check.outcome is outcome and ("input bound" in check.found) == (outcome is INCONCLUSIVE)
        assert check.values["wait_share"] == pytest.approx(share)
    assert said(recorded(), "input").found == "not recorded"


def test_emulated_bfloat16_is_named():
    """B20."""

    def on(capability, dtype="bfloat16"):
        return said(healthy().with_config(dtype=dtype).with_run(compute_capability=capability), "dtype")

    assert on((7, 5)).outcome is INCONCLUSIVE and "7.5 emulates bfloat16" in on((7, 5)).found
    assert on((8, 0)).outcome is PASS and "8.0 has units for bfloat16" in on((8, 0)).found
    assert on((12, 0)).outcome is PASS
    assert on((7, 5), "tf32").outcome is INCONCLUSIVE
    assert on(None).outcome is INCONCLUSIVE
    assert on((6, 1), "float32").outcome is PASS and on(None, "float32").outcome is PASS

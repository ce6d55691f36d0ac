"""What the driver saw: memory, work above idle, coverage, error counters. Missing readings are never red by themselves."""

import dataclasses

import pytest
from verdict_sample import healthy, recorded

from kit.records import Outcome
from kit.train.judge_training import in_window
from kit.train.steps import Telemetry, TelemetrySample

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
GIB = 1024**3


def viewed(sample):
    return sample.checks()["native.driver_view"]


def without_own_memory():
    """As on WSL or under Windows: the driver tells nothing about single processes."""
    return healthy().with_samples(own_memory_bytes=None)


def test_the_recorded_view_passes_with_its_values():
    check = viewed(recorded())
    assert check.outcome is PASS
    assert check.values == {"readings": 77, "memory_seen_bytes": 3684696064, "memory_wanted_bytes": 2567774208}
    assert "3.43 GiB" in check.found and "power or clock above idle" in check.found


def test_a_driver_that_sees_too_little_memory_fails():
    """B01: the model is on the CPU, our process holds little more than a context."""
    for own, outcome in ((500 * 1024**2, FAIL), (int(0.49 * 2567774208), FAIL), (int(0.51 * 2567774208), PASS)):
        check = viewed(healthy().with_samples(own_memory_bytes=own))
        assert check.outcome is outcome and bool(check.todo) == (outcome is FAIL)


def test_the_training_state_is_wanted_even_where_torch_counts_nothing():
    """A run on the CPU allocates nothing on the card; weights, gradients and moments take 16 bytes a parameter."""
    quiet = healthy().with_steps(memory_peak_bytes=0).with_samples(own_memory_bytes=900 * 1024**2)
    assert viewed(quiet).outcome is FAIL
    assert viewed(quiet).values["memory_wanted_bytes"] == 16 * 124439808
    assert viewed(healthy().with_steps(memory_peak_bytes=None)).outcome is PASS


def test_memory_is_told_from_the_whole_card_where_the_process_is_not_visible():
    sample = without_own_memory()
    grown = max(s.memory_used_bytes for s in in_window(sample.steps, sample.samples)) - 503316480
    assert viewed(sample).outcome is PASS and viewed(sample).values["memory_seen_bytes"] == grown
    still = sample.with_samples(memory_used_bytes=503316480 + 100)
    assert viewed(still).outcome is FAIL and viewed(still).values["memory_seen_bytes"] == 100


def test_a_second_run_in_one_process_counts_what_torch_already_held():
    """Without this, running a notebook cell again under Windows would fail: the card's use no longer grows."""
    sample = without_own_memory()
    idle = dataclasses.replace(sample.run.telemetry.idle, memory_used_bytes=4 * GIB, power_w=150.0, clock_mhz=1980)
    again = sample.with_part("telemetry", idle=idle, reserved_before_bytes=3 * GIB).with_samples(
        memory_used_bytes=4 * GIB, power_w=151.0, clock_mhz=1980
    )
    assert viewed(again).outcome is PASS and "not available here" in viewed(again).found
    assert viewed(again.with_part("telemetry", reserved_before_bytes=GIB)).outcome is FAIL


@pytest.mark.parametrize("change", [{"power_w": None}, {"clock_mhz": None}, {"own_memory_bytes": None},
                                    {"own_memory_bytes": None, "memory_used_bytes": None}, {"utilization": None},
                                    {"power_w": None, "clock_mhz": None}, {"throttle_bits": None},
                                    {"foreign_processes": None}])  # fmt: skip
def test_readings_that_a_platform_lacks_are_not_red(change):
    sample = healthy().with_samples(**change)
    assert viewed(sample).outcome is PASS
    assert sample.red() == set()


def test_no_reading_of_memory_or_work_is_inconclusive():
    nothing = healthy().with_samples(own_memory_bytes=None, memory_used_bytes=None, power_w=None, clock_mhz=None)
    check = viewed(nothing)
    assert check.outcome is INCONCLUSIVE and check.found.count("not available here") == 2
    assert check.todo == "python -m kit train --steps 100"
    no_idle = without_own_memory().with_part("telemetry", idle=None)
    assert viewed(no_idle).outcome is INCONCLUSIVE
    blind = dataclasses.replace(healthy().run.telemetry.idle, memory_used_bytes=None)
    assert viewed(without_own_memory().with_part("telemetry", idle=blind)).values["memory_seen_bytes"] is None


def test_memory_without_work_is_inconclusive():
    """B08, C13: a dummy tensor holds memory; utilisation is no witness."""
    idle = healthy().run.telemetry.idle
    asleep = healthy().with_samples(power_w=idle.power_w, clock_mhz=idle.clock_mhz, utilization=1.0)
    check = viewed(asleep)
    assert check.outcome is INCONCLUSIVE and "as when idle" in check.found
    assert viewed(asleep.with_samples(power_w=None)).outcome is INCONCLUSIVE
    assert viewed(asleep.with_samples(own_memory_bytes=None, memory_used_bytes=None)).outcome is INCONCLUSIVE


def test_either_power_or_clock_above_idle_is_work():
    idle = healthy().run.telemetry.idle
    for name, value in (("power_w", idle.power_w), ("clock_mhz", idle.clock_mhz)):
        both = healthy().with_samples(power_w=idle.power_w, clock_mhz=idle.clock_mhz)
        assert viewed(both.with_samples(**{name: value * 1.06})).outcome is PASS
        assert viewed(both.with_samples(**{name: value * 1.04})).outcome is INCONCLUSIVE


def test_a_baseline_that_was_not_idle_compares_nothing():
    idle = dataclasses.replace(healthy().run.telemetry.idle, power_w=500.0, clock_mhz=1980)
    for busy in ({"idle": dataclasses.replace(idle, utilization=0.4)}, {"idle": idle, "reserved_before_bytes": 1},
                 {"idle": None}):  # fmt: skip
        check = viewed(healthy().with_part("telemetry", **busy))
        assert check.outcome is PASS and "against idle not available here" in check.found
    assert viewed(healthy().with_part("telemetry", idle=idle)).outcome is INCONCLUSIVE


def test_a_driver_that_names_another_card_fails():
    """A14, A28: torch's name is patched, or the readings are of another card."""
    check = viewed(healthy().with_run(device_name="NVIDIA GeForce RTX 5090"))
    assert check.outcome is FAIL
    assert check.found.startswith("torch names NVIDIA GeForce RTX 5090, the driver NVIDIA H100 80GB HBM3;")
    for name in ("H100 80GB HBM3", "nvidia h100 80gb hbm3", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert viewed(healthy().with_run(device_name=name)).outcome is PASS
    assert viewed(healthy().with_part("telemetry", device_name=None)).outcome is PASS
    assert viewed(healthy().with_part("telemetry", device_name="")).outcome is FAIL


def test_readings_of_a_device_that_is_not_identified_are_inconclusive():
    """A15."""
    check = viewed(healthy().with_part("telemetry", is_bound_by_uuid=False))
    assert check.outcome is INCONCLUSIVE and "not identified by UUID" in check.found


def test_no_telemetry_is_inconclusive_and_says_why():
    assert viewed(healthy().with_run(telemetry=None)).found == "no telemetry"
    check = viewed(healthy().with_part("telemetry", error="NVML: Driver Not Loaded"))
    assert check.outcome is INCONCLUSIVE and check.found == "NVML: Driver Not Loaded" and "python -m kit" in check.todo
    assert viewed(dataclasses.replace(healthy(), steps=())).outcome is INCONCLUSIVE


# --- coverage -----------------------------------------------------------------------


def kept(sample, *, where):
    return dataclasses.replace(sample, samples=tuple(s for s in sample.samples if where(s.at_s)))


def test_too_few_readings_are_inconclusive_even_where_they_would_fail():
    sample = healthy().with_samples(own_memory_bytes=1)
    few = dataclasses.replace(sample, samples=sample.samples[1:77:19])
    assert viewed(few).outcome is INCONCLUSIVE and "4 readings during the steps, 5 needed" in viewed(few).found
    five = dataclasses.replace(healthy(), samples=healthy().samples[8:73:16])
    assert viewed(five).outcome is PASS and viewed(five).values["readings"] == 5


def test_a_sampling_thread_that_died_is_inconclusive():
    """C12: many readings, none of them from the second half."""
    check = viewed(kept(healthy(), where=lambda at_s: at_s < 0.8))
    assert check.outcome is INCONCLUSIVE and "no reading for 0.8 s of 1.6 s" in check.found
    for begin, end in ((0.0, 0.6), (0.5, 1.1), (1.05, 9)):
        left = kept(healthy(), where=lambda at_s, begin=begin, end=end: not begin <= at_s <= end)
        assert viewed(left).outcome is INCONCLUSIVE
    assert viewed(kept(healthy(), where=lambda at_s: not 0.5 <= at_s <= 0.9)).outcome is PASS


def test_a_long_run_may_have_longer_holes():
    stretched = healthy().with_steps(started_s=lambda s: 10 * s.started_s, step_time_s=lambda s: 10 * s.step_time_s)
    stretched = stretched.with_samples(at_s=lambda s: 10 * s.at_s)
    assert viewed(kept(stretched, where=lambda at_s: not 5 <= at_s <= 9)).outcome is PASS
    assert viewed(kept(stretched, where=lambda at_s: not 4 <= at_s <= 9.5)).outcome is INCONCLUSIVE


def test_when_the_steps_began_changes_nothing():
    late = healthy().with_steps(started_s=lambda s: s.started_s + 100).with_samples(at_s=lambda s: s.at_s + 100)
    assert viewed(late).outcome is PASS
    check = viewed(kept(late, where=lambda at_s: at_s < 100.8))
    assert check.outcome is INCONCLUSIVE and "no reading for 0.8 s of 1.6 s" in check.found


def test_only_readings_during_the_steps_count():
    sample = healthy()
    window = in_window(sample.steps, sample.samples)
    assert len(window) == 77 and window[0].at_s >= sample.steps[0].started_s
    before, after = TelemetrySample(at_s=-1.0), TelemetrySample(at_s=99.0)
    assert in_window(sample.steps, [before, *window, after]) == window
    assert in_window([], window) == []
    edges = [TelemetrySample(at_s=sample.steps[0].started_s)]
    end = sample.steps[-1].started_s + sample.steps[-1].step_time_s
    edges.append(TelemetrySample(at_s=end))
    assert in_window(sample.steps, edges) == edges


# --- hardware -----------------------------------------------------------------------


def hardware(sample):
    return sample.checks()["native.hardware"]


def with_counters(**after):
    before = healthy().run.telemetry.counters_before
    return healthy().with_part("telemetry", counters_after={**before, **after})


@pytest.mark.parametrize("name", ["ecc_uncorrected", "remapped_uncorrected", "remap_pending", "remap_failure"])
def test_an_uncorrected_error_or_a_pending_remap_fails(name):
    """C10."""
    check = hardware(with_counters(**{name: 1}))
    assert check.outcome is FAIL and f"{name} +1" in check.found and check.values[name] == 1 and check.todo


def test_counters_are_told_as_differences():
    before = {"ecc_uncorrected": 4, "ecc_corrected": 90}
    sample = healthy().with_part(
        "telemetry", counters_before=before, counters_after={"ecc_uncorrected": 5, "ecc_corrected": 92}
    )
    assert hardware(sample).found == "ecc_uncorrected +1, ecc_corrected +2"
    assert hardware(sample).values == {"ecc_uncorrected": 1, "ecc_corrected": 2}


def test_corrected_errors_are_told_and_do_not_fail():
    check = hardware(with_counters(ecc_corrected=7))
    assert check.outcome is PASS and "ecc_corrected +7" in check.found and check.required


def test_a_large_total_from_the_past_says_nothing():
    """C11."""
    counters = {"ecc_corrected": 10**6, "ecc_uncorrected": 3, "remapped_uncorrected": 2}
    old = healthy().with_part("telemetry", counters_before=counters, counters_after=counters)
    assert hardware(old).outcome is PASS and "3 counters unchanged" in hardware(old).found
    reset = healthy().with_part("telemetry", counters_before=counters, counters_after={"ecc_uncorrected": 0})
    assert hardware(reset).outcome is PASS
    new = healthy().with_part("telemetry", counters_before={}, counters_after={"ecc_uncorrected": 5})
    assert hardware(new).outcome is PASS


def test_a_remap_that_was_pending_before_fails_too():
    counters = {"remap_pending": 1}
    old = healthy().with_part("telemetry", counters_before=counters, counters_after=counters)
    assert hardware(old).outcome is FAIL


def test_cards_without_error_counters_are_not_red():
    for telemetry in (Telemetry(is_bound_by_uuid=True), None):
        check = hardware(healthy().with_run(telemetry=telemetry))
        assert check.outcome is INCONCLUSIVE and not check.required and "not available here" in check.found
    lost = healthy().with_part("telemetry", counters_after={})
    assert hardware(lost).required and lost.red() == {"native.hardware"}

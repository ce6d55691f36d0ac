"""The recorder over NVML as a file describes it: which card, whose process, what is missing, and that it lets go."""

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sabotage.seams import card, fake_nvml, nvml_file, working

from kit.train import telemetry
from kit.train.telemetry import Recorder

OURS, OTHER = "GPU-aaaa", "GPU-bbbb"


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(telemetry, "_learned", set())
    monkeypatch.setattr(telemetry, "INTERVAL_S", 0.001)
    monkeypatch.setattr(telemetry, "FULL_EVERY", 1)


@pytest.fixture
def watch(tmp_path):
    """Records over the given cards; returns what was recorded, the samples, and the module."""

    def run(*devices, uuid="aaaa", wait_s=0.05, **world):
        with fake_nvml(nvml_file(tmp_path / "nvml.json", *devices, **world)) as nvml:
            recorder = Recorder()
            nvml.play()
            recorder.bind(uuid)
            recorder.start(time.perf_counter())
            time.sleep(wait_s)
            return recorder.stop(), recorder.samples, nvml

    return run


def ours(**more):
    return card(OURS, frames=[working(os.getpid(), **more)])


def test_readings_are_those_of_torchs_device_with_their_units(watch):
    found, samples, _ = watch(card(OTHER, name="other"), ours())
    assert found.is_bound_by_uuid and found.device_uuid == OURS and found.error is None and found.missing == ()
    assert found.device_name == "NVIDIA GeForce RTX 5090" and found.memory_total_bytes == 34_190_458_880
    assert (found.power_limit_w, found.power_limit_default_w) == (700, 700)
    assert (found.idle.memory_used_bytes, found.idle.power_w, found.idle.clock_mhz) == (500_000_000, 30, 210)
    one = samples[-1]
    assert (one.memory_used_bytes, one.own_memory_bytes, one.power_w) == (4_000_000_000, 3_500_000_000, 300)
    assert (one.clock_mhz, one.utilization, one.foreign_processes, one.throttle_bits) == (2500, 0.6, 0, 0)
    assert len(samples) > 3 and [s.at_s for s in samples] == sorted(s.at_s for s in samples)


@pytest.mark.parametrize("uuid", ["aaaa", "GPU-aaaa", "gpu-AAAA"])
def test_a_uuid_is_the_same_in_any_spelling(watch, uuid):
    assert watch(ours(), uuid=uuid)[0].is_bound_by_uuid


def test_a_mig_slice_is_found_by_its_own_uuid(watch):
    found, samples, _ = watch(card(OTHER), slices=[{**ours(), "uuid": "MIG-aaaa"}])
    assert found.device_uuid == "MIG-aaaa" and found.idle is None and samples


def test_a_device_that_nvml_does_not_know_is_an_error_with_its_reason(watch):
    found, samples, _ = watch(card(OTHER))
    assert "does not know torch's device" in found.error and not found.is_bound_by_uuid and samples == []


def test_nvml_that_does_not_start_is_a_reason_and_no_crash(watch):
    found, _, nvml = watch(error="Driver Not Loaded")
    assert found.error == "NVML: Driver Not Loaded" and nvml.starts == 0
    assert watch()[0].error == "not bound to a device"


def test_a_missing_package_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    recorder = Recorder()
    recorder.bind("aaaa")
    recorder.start(0.0)
    assert recorder.stop().error == "nvidia-ml-py is not installed" and recorder.samples == []


def test_nvml_is_left_as_often_as_it_was_entered(watch):
    """A library that is still in use when the process ends is torn down under our feet."""
    assert watch(ours())[2].starts == 0
    assert watch(ours(), raise_after=3)[2].starts == 0
    assert watch(card(OTHER))[2].starts == 0


def test_the_thread_has_ended_when_the_recorder_stops(watch):
    import threading

    watch(ours())
    assert "kit-telemetry" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(("missing", "field", "name"), [
    ("power", "power_w", "power"), ("clock", "clock_mhz", "clock"), ("bits", "throttle_bits", "throttle_reasons"),
    ("memory", "memory_used_bytes", "memory"), ("processes", "foreign_processes", "processes"),
    ("utilization", "utilization", "utilization"), ("temperature", "temperature_c", "temperature"),
])  # fmt: skip
def test_a_reading_that_the_card_lacks_is_none_and_named(watch, missing, field, name):
    found, samples, _ = watch({**ours(), "missing": [missing]})
    assert found.error is None and name in found.missing and samples
    assert all(getattr(sample, field) is None for sample in samples)


def test_missing_counters_are_named_and_empty(watch):
    found, _, _ = watch({**ours(), "missing": ["ecc", "rows"]})
    assert (found.counters_before, found.counters_after) == ({}, {})
    assert {"ecc", "remapped_rows"} <= set(found.missing)


def test_counters_are_read_before_and_after(watch):
    found, _, _ = watch(ours(ecc=[3, 1], rows=[0, 2, 1, 0]))
    assert found.counters_before == {"ecc_corrected": 0, "ecc_uncorrected": 0, "remapped_uncorrected": 0,
                                     "remap_pending": 0, "remap_failure": 0}  # fmt: skip
    assert found.counters_after == {"ecc_corrected": 3, "ecc_uncorrected": 1, "remapped_uncorrected": 2,
                                    "remap_pending": 1, "remap_failure": 0}  # fmt: skip


def test_a_gpu_that_is_lost_ends_the_sampling_with_its_reason(watch):
    found, samples, _ = watch(ours(), raise_after=4)
    assert found.error == "NVML stopped answering: GPU is lost" and 0 < len(samples) < 5 and found.counters_after == {}


def test_another_process_is_foreign(watch):
    _, samples, _ = watch(ours(processes=[[os.getpid(), 10], [4711, 20], [4712, 20]]))
    assert samples[-1].foreign_processes == 2 and samples[-1].own_memory_bytes == 10


def test_in_a_container_the_process_that_appears_is_ours(watch):
    """The driver knows us by another number there, also in later recordings of the same process."""
    hog = [[900, 5_000_000]]
    device = card(OURS, idle={"used": 1, "power": 30, "clock": 210, "processes": hog},
                  frames=[working(1, processes=[*hog, [12345, 7_000_000]])])  # fmt: skip
    _, samples, _ = watch(device)
    assert (samples[-1].own_memory_bytes, samples[-1].foreign_processes) == (7_000_000, 1)
    assert telemetry._learned == {12345}
    again = {**device, "idle": device["frames"][0]}
    assert watch(again)[1][-1].foreign_processes == 1


def test_two_processes_that_appear_at_once_are_not_taken_for_ours(watch):
    _, samples, _ = watch(card(OURS, frames=[working(1, processes=[[11, 5], [12, 5]])]))
    assert telemetry._learned == set() and samples[-1].own_memory_bytes is None and samples[-1].foreign_processes == 2


def test_an_empty_process_list_says_nothing_about_others(watch):
    assert watch(ours(processes=[]))[1][-1].foreign_processes is None


def test_windows_lists_programs_and_not_compute_processes(watch):
    found, samples, _ = watch(ours(processes=[[os.getpid(), None], [77, None]]))
    assert samples[-1].foreign_processes is None and samples[-1].own_memory_bytes is None
    assert "processes" in found.missing


def test_a_recorder_that_was_never_bound_says_so(tmp_path):
    with fake_nvml(nvml_file(tmp_path / "nvml.json", ours())) as nvml:
        recorder = Recorder()
        recorder.start(0.0)
        found = recorder.stop()
    assert found.error == "not bound to a device" and not found.is_bound_by_uuid and nvml.starts == 0


def test_what_torch_held_before_is_recorded(watch, monkeypatch):
    monkeypatch.setattr(telemetry, "_torch_reserved", lambda: 123)
    assert watch(ours())[0].reserved_before_bytes == 123


def test_a_driver_that_hangs_is_a_reason(watch, monkeypatch):
    real = Recorder._read
    monkeypatch.setattr(
        Recorder, "_read", lambda self, at_s, **more: time.sleep(0.3) if self.samples else real(self, at_s)
    )
    join = telemetry.threading.Thread.join
    monkeypatch.setattr(telemetry.threading.Thread, "join", lambda self, timeout=None: join(self, 0.01))
    found, samples, _ = watch(ours())
    assert found.error == "NVML did not answer for 5 s" and len(samples) == 1
    time.sleep(0.35)


def test_a_long_run_keeps_few_samples_and_every_extreme(watch, monkeypatch):
    """What happened once in a day is still there, and it is said how many readings there were."""
    monkeypatch.setattr(telemetry, "MOST_SAMPLES", 20)
    frames = [working(os.getpid(), power=300 + n % 7, clock=2500 - n % 5) for n in range(400)]
    frames[11] = working(os.getpid(), power=699, bits=0x80)
    frames[14] = working(os.getpid(), clock=210, processes=[[os.getpid(), 5], [4711, 2]])
    frames[17] = working(os.getpid(), used=9_000_000_000)
    found, samples, _ = watch(card(OURS, frames=frames), wait_s=0.3)
    assert found.readings > 60 and 10 < len(samples) <= 40
    assert max(s.power_w for s in samples) == 699 and min(s.clock_mhz for s in samples) == 210
    assert any(s.throttle_bits == 0x80 for s in samples) and any(s.foreign_processes for s in samples)
    assert max(s.memory_used_bytes for s in samples) == 9_500_000_000
    assert [s.at_s for s in samples] == sorted(s.at_s for s in samples)


def test_the_slower_questions_are_asked_now_and_then(watch, monkeypatch):
    monkeypatch.setattr(telemetry, "FULL_EVERY", 5)
    monkeypatch.setattr(telemetry, "FULL_AT_FIRST", 3)
    _, samples, _ = watch(ours())
    assert [sample.temperature_c is not None for sample in samples[:8]] == 3 * [True] + [False] * 2 + [True] + [
        False
    ] * 2
    assert all(sample.power_w and sample.memory_used_bytes and sample.clock_mhz for sample in samples)

"""Section C: timing, telemetry, throughput. The recorder over a fake NVML, and the recorded run changed in one thing."""

import dataclasses
import functools
import os
import tempfile
import time
from pathlib import Path

from kit.records import Verdict
from kit.train.steps import throughput

from . import recorded
from .recorded import healthy, judged
from .seams import Said, card, fake_nvml, nvml_file, working
from .table import FAIL, INCONCLUSIVE, row

OURS = "GPU-11111111-2222-3333-4444-555555555555"
OTHER = "GPU-99999999-2222-3333-4444-555555555555"

# --- the recorded run, changed ------------------------------------------------------


@row(
    "C03",
    "warm-up in the steady figures: the first step twice as slow changes none of them",
    seam="recorded run",
    must=FAIL,
    at="steady",
    twin=lambda: steady_same(1),
    twin_at="steady",
)
def c03():
    """A sabotage of the arithmetic itself: a slower fifth step has to change the figure."""
    return steady_same(5)


def steady_same(step):
    from kit.records import Check, Outcome

    slow = healthy().with_steps(step, step_time_s=lambda s: 2 * s.step_time_s)
    before, after = (throughput(sample.steps).steady_samples_per_s for sample in (healthy(), slow))
    outcome = Outcome.PASS if before == after else Outcome.FAIL
    return Said.of(Verdict.of([Check("steady", outcome, f"{before:.1f}, then {after:.1f} samples/s", "unchanged")]))


def same_device(versions=None, **telemetry):
    """The check of a report that joins its two halves: the environment and the run."""
    import types

    from kit.evidence.conclude import RUN

    from .seams import facts

    # The two recordings are of two machines: the telemetry is told of the card that the check saw.
    telemetry = {"device_uuid": facts().driver.gpus[0].uuid, **telemetry}
    training = (
        healthy().with_part("telemetry", **telemetry).with_run(**({"versions": versions} if versions else {})).run
    )
    case = types.SimpleNamespace(run=types.SimpleNamespace(device="cuda"), training=training, begin=facts())
    rule = next(rule for rule in RUN if rule.id == "native.device")
    return Said.of(Verdict.of([rule.check(case)]))


@row(
    "A15d",
    "telemetry of another card than the one that was checked",
    seam="recorded run",
    must=FAIL,
    at="native.device",
    words="a card that the check did not see",
    twin=same_device,
)
def a15d():
    return same_device(device_uuid="gpu-000000000000")


@row(
    "A26",
    "another torch trains than the one that was checked",
    seam="recorded run",
    must=FAIL,
    at="native.device",
    words="torch 2.9.0+cu128",
    twin=same_device,
)
def a26():
    return same_device({"torch": "2.9.0+cu128"})


# --- the recorder over a fake NVML --------------------------------------------------


def watched(*devices, seconds=0.25, **world):
    """The kit's recorder over cards as described, in the place of the recorded telemetry."""
    from kit.train import telemetry

    with tempfile.TemporaryDirectory() as folder:
        with fake_nvml(nvml_file(Path(folder) / "nvml.json", *devices, **world)) as nvml:
            telemetry._learned.clear()
            recorder = telemetry.Recorder()
            nvml.play()
            recorder.bind(OURS.removeprefix("GPU-"))
            recorder.start(time.perf_counter())
            time.sleep(seconds)
            found = recorder.stop()
    end = recorder.samples[-1].at_s if recorder.samples else seconds
    sample = squeezed(end).with_run(telemetry=found, device_name="NVIDIA GeForce RTX 5090")
    return judged(dataclasses.replace(sample, samples=tuple(recorder.samples)))


def squeezed(end):
    """The recorded steps in the time that was watched."""
    factor = end / (healthy().steps[-1].started_s + healthy().steps[-1].step_time_s)
    times = {
        name: lambda s, name=name: factor * getattr(s, name) for name in ("started_s", "step_time_s", "device_time_s")
    }
    return healthy().with_steps(**times).with_run(wall_window_s=end)


def ours(**more):
    return card(OURS, frames=[working(os.getpid(), **more)])


@functools.cache
def calm():
    return watched(ours())


on_nvml = functools.partial(row, seam="nvml", must=INCONCLUSIVE, twin=calm)


@on_nvml(
    "A15",
    "NVML's order is not CUDA's: the idle card is number 0; the twin finds its own by UUID",
    must=FAIL,
    at="native.driver_view",
    twin=lambda: watched(card(OTHER), ours()),
)
def a15():
    """The card that torch names does not work; the one at NVML's first place does."""
    return watched(card(OTHER, frames=[working(1)]), card(OURS))


@on_nvml("A15u", "torch's card is none that NVML lists", at="native.driver_view", words="does not know")
def a15u():
    return watched(card(OTHER, frames=[working(1)]))


@on_nvml(
    "A23z",
    "30 GiB in use by nobody",
    at="throughput.undisturbed",
    words="in use by others",
    twin_at="throughput.undisturbed",
)
def a23z():
    idle = {"used": 30 * 1024**3, "power": 30, "clock": 210}
    return watched(card(OURS, idle=idle, frames=[working(os.getpid(), used=31 * 1024**3)]))


@on_nvml("A29n", "the GPU is lost in the middle", at="native.driver_view", words="GPU is lost")
def a29n():
    return watched(ours(), raise_after=6)


@on_nvml(
    "C05",
    "a hog on the same card",
    at="throughput.undisturbed",
    words="1 other processes",
    twin_at="throughput.undisturbed",
)
def c05():
    return watched(ours(processes=[[os.getpid(), 3_500_000_000], [4711, 2_000_000_000]]))


@on_nvml(
    "C08",
    "idle and power-cap bits at full load are normal; sabotaged, the power brake is on",
    at="throughput.undisturbed",
    words="power brake",
    twin_at="throughput.undisturbed",
    twin=lambda: watched(ours(bits=0x5)),
)
def c08():
    return watched(ours(bits=0x85))


@on_nvml(
    "C09",
    "power cap lowered: shown",
    must=recorded.PASS,
    at="throughput.undisturbed",
    words="power limit 300 W of 700 W",
    twin_at="throughput.undisturbed",
)
def c09():
    return watched(card(OURS, limit=300, frames=[working(os.getpid())]))


@on_nvml(
    "C10n",
    "uncorrected memory error between first and last reading",
    must=FAIL,
    at="native.hardware",
    words="ecc_uncorrected +2",
)
def c10n():
    return watched(ours(ecc=[5, 2]))


WSL = ("processes", "ecc", "rows")


@on_nvml(
    "W01",
    "a driver that sees no memory of ours; the twin lacks ECC and processes, as WSL and GeForce do",
    must=FAIL,
    at="native.driver_view",
    twin=lambda: watched(card(OURS, missing=WSL, frames=[working(1)])),
)
def w01():
    return watched(card(OURS, missing=WSL, frames=[working(1, used=100_000_000)]))


@on_nvml(
    "W02",
    "Windows: a hog is not told apart from a desktop, our memory is missing",
    must=FAIL,
    at="native.driver_view",
    twin=lambda: watched(windows(3_500_000_000)),
)
def w02():
    return watched(windows(100_000_000))


def windows(used):
    """Every program that draws is listed, and what it uses is told of none."""
    return card(OURS, frames=[working(1, used=used, processes=[[os.getpid(), None], [77, None], [78, None]])])

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


on_both = functools.partial(row, seam="recorded run", must=FAIL, at="native.device", twin=same_device)
on_both("A15d", "telemetry of another card than the one that was checked", words="a card that the check did not see")(
    lambda: same_device(device_uuid="gpu-000000000000")
)
on_both("A26", "another torch trains than the one that was checked", words="torch 2.9.0+cu128")(
    lambda: same_device({"torch": "2.9.0+cu128"})
)

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


def windows(used):
    """Every program that draws is listed, and what it uses is told of none."""
    return card(OURS, frames=[working(1, used=used, processes=[[os.getpid(), None], [77, None], [78, None]])])


HOG = [[os.getpid(), 3_500_000_000], [4711, 2_000_000_000]]
FULL = {"used": 30 * 1024**3, "power": 30, "clock": 210}
WSL = ("processes", "ecc", "rows")
VIEW, CALM = "native.driver_view", "throughput.undisturbed"

# id, outcome, check, words, what, the cards, what else is so of NVML, and the twin's cards where they are others. At
# `throughput.undisturbed` the twin is asked the same; elsewhere nothing of it may be red.
# fmt: off
ROWS = [
    ("A15", FAIL, VIEW, "", "NVML's order is not CUDA's: the idle card is number 0; the twin finds its own by UUID", [card(OTHER, frames=[working(1)]), card(OURS)], {}, [card(OTHER), ours()]),
    ("A15u", INCONCLUSIVE, VIEW, "does not know", "torch's card is none that NVML lists", [card(OTHER, frames=[working(1)])], {}),
    ("A23z", INCONCLUSIVE, CALM, "in use by others", "30 GiB in use by nobody", [card(OURS, idle=FULL, frames=[working(os.getpid(), used=31 * 1024**3)])], {}),
    ("A29n", INCONCLUSIVE, VIEW, "GPU is lost", "the GPU is lost in the middle", [ours()], {"raise_after": 6}),
    ("C05", INCONCLUSIVE, CALM, "1 other processes", "a hog on the same card", [ours(processes=HOG)], {}),
    ("C08", INCONCLUSIVE, CALM, "power brake", "idle and power-cap bits at full load are normal; sabotaged, the power brake is on", [ours(bits=0x85)], {}, [ours(bits=0x5)]),
    ("C09", recorded.PASS, CALM, "power limit 300 W of 700 W", "power cap lowered: shown", [card(OURS, limit=300, frames=[working(os.getpid())])], {}),
    ("C10n", FAIL, "native.hardware", "ecc_uncorrected +2", "uncorrected memory error between first and last reading", [ours(ecc=[5, 2])], {}),
    ("W01", FAIL, VIEW, "", "a driver that sees no memory of ours; the twin lacks ECC and processes, as WSL and GeForce do", [card(OURS, missing=WSL, frames=[working(1, used=100_000_000)])], {}, [card(OURS, missing=WSL, frames=[working(1)])]),
    ("W02", FAIL, VIEW, "", "Windows: a hog is not told apart from a desktop, our memory is missing", [windows(100_000_000)], {}, [windows(3_500_000_000)]),
]
# fmt: on

for id, must, at, words, what, cards, world, *twin in ROWS:
    keep = row(
        id,
        what,
        seam="nvml",
        must=must,
        at=at,
        words=words,
        twin=functools.partial(watched, *twin[0]) if twin else calm,
        twin_at=at if at == CALM else (),
    )
    keep(functools.partial(watched, *cards, **world))

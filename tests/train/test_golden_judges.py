"""What the judges say, word for word, about runs that differ in one thing. After a wanted change of words:

python tests/train/test_golden_judges.py
"""

import dataclasses
from pathlib import Path

from verdict_sample import DATA, healthy, rehearsed

from kit.evidence.conclude import ControlRecord, control_check
from kit.records import from_json, loads

GOLDEN = Path(__file__).resolve().parent / "golden" / "judges.txt"


def bare():
    sample = healthy().with_run(audits=(), profile=None, learning=None, precision=None, cpu_reference=None, replay=None,
                                telemetry=None, device_window_s=None, compute_capability=None)  # fmt: skip
    sample = sample.with_config(dtype="bfloat16").with_steps(wait_s=None, device_time_s=None, products=0, update=None)
    return dataclasses.replace(sample.with_run(order=(), nonce="", jit_control=None), samples=())


def on_the_cpu():
    sample = healthy().with_audits(counted={}, strays=("parameter wte.weight on cpu", "batch labels on cpu"))
    sample = sample.with_part("profile", device_time_s=0.0, kernels=0, matmul_kernels=0, products={"cpu": 147},
                              product_flop={"cpu": 1.9e11}, cpu_operators={"aten::mm": 99})  # fmt: skip
    return sample.with_samples(own_memory_bytes=500_000_000, power_w=80.0, clock_mhz=345)


def broken():
    sample = healthy().with_steps(3, loss=None, is_applied=False, supervised_tokens=0, step_time_s=9.0)
    sample = sample.with_steps(5, batch_sha256=healthy().steps[0].batch_sha256).with_steps(lr=0.0, update=0.0)
    sample = sample.with_steps(6, elsewhere=("AddmmBackward0 on cpu", "GeluBackward0 on cpu"))
    sample = sample.with_part("learning", moved_tensors=0, unmoved=("wte", "wpe"), max_change=0.0, canary_after=11.0,
                              trainable_parameters=7)  # fmt: skip
    sample = sample.with_part("replay", losses=(1.0,) * 14, matmul_is_equal=False, deterministic_is_equal=False)
    sample = sample.with_part("precision", observed="tf32", relative_error=3e-4)
    sample = sample.with_part(
        "telemetry", counters_after={"ecc_uncorrected": 2, "ecc_corrected": 5, "remap_pending": 1}
    )
    sample = sample.with_part("cpu_reference", losses=(10.9, 10.2, 9.7)).with_audits(7, is_training=False)
    return sample.with_run(error="training stopped: out of memory", device_name="NVIDIA GeForce RTX 5090")


def disturbed():
    sample = healthy().with_samples(throttle_bits=0xE8, foreign_processes=2).with_audits(is_profiled=True)
    idle = dataclasses.replace(sample.run.telemetry.idle, memory_used_bytes=30 * 1024**3)
    sample = sample.with_part("telemetry", idle=idle, power_limit_w=300.0)
    sample = sample.with_steps(device_time_s=lambda s: 3 * s.step_time_s, wait_s=lambda s: s.step_time_s)
    return sample.with_config(dtype="bfloat16").with_run(compute_capability=(7, 5))


def odd():
    """Missing parts, one at a time, in one run."""
    sample = healthy().with_part("telemetry", error="NVML: Driver Not Loaded", counters_after={})
    sample = sample.with_part("profile", error="the profiler did not run: CUPTI is in use")
    sample = sample.with_part("cpu_reference", skipped="not asked for").with_part("replay", skipped="too long")
    sample = sample.with_part("learning", canary_after=None).with_run(wall_window_s=99.0)
    return dataclasses.replace(sample.with_run(device_name="NVIDIA H100 80GB"), samples=sample.samples[1:5])


def impossible():
    sample = healthy().with_steps(device_time_s=lambda s: s.step_time_s / 2)
    sample = sample.with_part("replay", losses=tuple(x * (1 + 1e-7) for x in sample.run.replay.losses),
                              deterministic_is_equal=True).with_samples(foreign_processes=None)  # fmt: skip
    sample = sample.with_part("profile", step_time_s=1.0).with_steps(9, step_time_s=0.0)
    return sample.with_part("cpu_reference", losses=(10.9,)).with_audits(7, kinds={"parameter": 148})


def second_run():
    """Where the baseline was not idle, and the driver tells of no process."""
    sample = healthy().with_samples(own_memory_bytes=None, memory_used_bytes=None, power_w=None, clock_mhz=None)
    return sample.with_part("telemetry", reserved_before_bytes=10**9).with_audits(
        product_dtypes={"float16": 1, "bfloat16": 1}
    )


def short():
    return dataclasses.replace(healthy(), steps=healthy().steps[:4])


def few_products():
    return healthy().with_part("profile", products={"cuda": 100}, product_flop={"cuda": 1e11}, matmul_kernels=90,
                               copied_bytes=5_000_000).with_part("telemetry", is_bound_by_uuid=False)  # fmt: skip


def miscounted():
    """Every step counts a batch twice, and nothing is left of the audits' device."""
    sample = healthy().with_steps(samples=8).with_audits(expected_device="cpu")
    return sample.with_part("profile", products={"cuda": 147, "cpu": 1}, matmul_kernels=None)


SAMPLES = (healthy, rehearsed, bare, on_the_cpu, broken, disturbed, odd, impossible, second_run, short, few_products,
           miscounted)  # fmt: skip


def controls():
    good = from_json(ControlRecord, loads((DATA / "h100_smoke" / "negative_control.json").read_bytes()))
    good = dataclasses.replace(good, visible_devices=0)
    return {"control": good, "control without work": dataclasses.replace(good, steps=()), "no control": None}


def lines():
    for sample in SAMPLES:
        yield f"# {sample.__name__}"
        yield from map(line, sample().checks().values())
    for name, record in controls().items():
        yield f"# {name}"
        yield line(control_check(record))


def line(check):
    optional = "" if check.required else " (optional)"
    return (
        f"{check.outcome} {check.id}{optional} | {check.found} | {check.expected} | {check.todo} | {dict(check.values)}"
    )


def test_the_judges_say_what_they_said():
    said = list(lines())
    wanted = GOLDEN.read_text(encoding="utf-8").splitlines()
    assert said == wanted


def test_required_is_a_claim_and_nothing_else():
    for sample in SAMPLES:
        assert {type(check.required) for check in sample().checks().values()} == {bool}


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(lines()) + "\n", encoding="utf-8", newline="\n")

"""The recorded H100 run, changed in one thing: id, change, check, outcome, words, and a twin that must be good.

A line a row. The twin is the recorded run itself, or a neighbour of the sabotage that a judge must not call red. `s` is
the healthy sample of `tests/train/verdict_sample.py`. Needs no torch.
"""

import dataclasses

from kit.gpu.facts import JitControl
from kit.train.config import step_flop
from kit.train.judge_training import adam_quotient

from . import recorded
from .recorded import healthy, judged
from .table import FAIL, INCONCLUSIVE, PASS, row

GIB = 1024**3
SEEN = {"parameter": 148, "gradient": 148, "optimizer": 296, "batch": 2}
STATE = 2567774208
SPINNING = {"device_time_s": 0.09, "kernels": 9000, "matmul_kernels": 0, "products": {"cpu": 147}}
LOSSES = healthy().run.cpu_reference.losses
AGAIN = healthy().run.replay.losses
BEFORE = healthy().run.learning.canary_before
IDLE = healthy().run.telemetry.idle


def but(sample, **changes):
    return dataclasses.replace(sample, **changes)


def without(sample, *numbers):
    """The run without some of its steps."""
    return but(sample, steps=tuple(step for step in sample.steps if step.step not in numbers))


def audits(sample, *numbers):
    return sample.with_run(audits=tuple(audit for audit in sample.run.audits if audit.step in numbers))


def profile(sample, **changes):
    return sample.with_part("profile", **changes)


def learning(sample, **changes):
    return sample.with_part("learning", **changes)


def telemetry(sample, **changes):
    return sample.with_part("telemetry", **changes)


def idle(sample, **changes):
    return telemetry(sample, idle=dataclasses.replace(sample.run.telemetry.idle, **changes))


def counted(sample, before, **after):
    return telemetry(sample, counters_before=before, counters_after={**before, **after})


def theirs(sample, *losses):
    return sample.with_part("cpu_reference", losses=losses)


def again(sample, *losses, **changes):
    return sample.with_part("replay", losses=losses or AGAIN, **changes)


def varied(sample, is_equal):
    return again(sample, *(loss * (1 + 1e-7) for loss in AGAIN), deterministic_is_equal=is_equal)


def declared(sample, dtype, observed, put_out):
    """A run of this precision, with what a product showed and what the matrix layers put out."""
    sample = sample.with_config(dtype=dtype).with_audits(product_dtypes={put_out: 49})
    return sample.with_part("precision", observed=observed, output_dtype=put_out)


def one_reading(sample, number=30, **changes):
    reading = dataclasses.replace(sample.samples[number], **changes)
    return but(sample, samples=(*sample.samples[:number], reading, *sample.samples[number + 1 :]))


def kept(sample, where):
    return but(sample, samples=tuple(reading for reading in sample.samples if where(reading.at_s)))


def stretched(sample, factor):
    sample = sample.with_steps(
        started_s=lambda s: factor * s.started_s,
        step_time_s=lambda s: factor * s.step_time_s,
        device_time_s=lambda s: factor * s.device_time_s,
    )
    return sample.with_samples(at_s=lambda s: factor * s.at_s).with_run(wall_window_s=factor * sample.run.wall_window_s)


def own(sample, gib):
    return sample.with_samples(own_memory_bytes=int(gib * GIB))


def whole_card(sample, **changes):
    """As on WSL: the driver tells nothing about single processes."""
    return sample.with_samples(own_memory_bytes=None, **changes)


def asleep(sample, **changes):
    return sample.with_samples(**{"power_w": IDLE.power_w, "clock_mhz": IDLE.clock_mhz, **changes})


def fast(sample, share):
    """Steps so fast that the fastest reaches this share of the card's peak."""
    needed_s = step_flop(sample.run.config.shape, batch_size=4, seq_len=64) / (share * 66.9e12)
    return stretched(sample, needed_s / min(step.step_time_s for step in sample.steps[4:]))


def waiting(sample, share):
    return sample.with_steps(wait_s=lambda s: s.step_time_s * share / (1 - share))


def on(sample, capability, dtype="bfloat16"):
    return sample.with_config(dtype=dtype).with_run(compute_capability=capability)


def device_time(sample, factor):
    return sample.with_steps(device_time_s=lambda s: factor * s.step_time_s)


def ramp(sample):
    """Steps 2 and 3 three times as long, and everything after them later."""
    extra = {2: 2 * healthy().steps[1].step_time_s, 3: 2 * healthy().steps[2].step_time_s}
    sample = sample.with_steps(
        started_s=lambda s: s.started_s + sum(more for step, more in extra.items() if step < s.step),
        step_time_s=lambda s: s.step_time_s + extra.get(s.step, 0),
    )
    return device_time(sample, 1)


def change_of(sample, factor):
    """Every weight moves by this many learning rates in a step, all in one direction."""
    lr = sample.run.config.lr
    return learning(sample, max_change=14 * factor * lr).with_steps(update=factor * lr)


# fmt: off
ROWS = {
    "integrity.steps_complete": [
        ("C02", FAIL, "the cold steps left out", lambda s: but(s, steps=s.steps[4:]), "10 of 14"),
        ("C17", FAIL, "a slow step dropped as an outlier", lambda s: without(s, 6), "13 of 14"),
        ("", FAIL, "a step twice", lambda s: but(s, steps=(*s.steps[:-1], s.steps[0])), "each once"),
        ("", FAIL, "steps in another order", lambda s: but(s, steps=s.steps[::-1]), "in order"),
        ("", FAIL, "no step at all", lambda s: but(s, steps=()), "0 of 14"),
        ("", FAIL, "an error after the last step", lambda s: s.with_run(error="out of memory"), "out of memory"),
    ],
    "integrity.counts": [
        ("B23", FAIL, "samples counted twice", lambda s: s.with_steps(samples=8), "at steps [1, 2, 3, 4, 5]"),
        ("B24", FAIL, "padding counted as tokens, over a batch's size", lambda s: s.with_steps(6, tokens=257), "steps [6]"),
        ("", FAIL, "one sample too many", lambda s: s.with_steps(6, samples=5), "impossible counts"),
        ("", FAIL, "a step without a sample", lambda s: s.with_steps(6, samples=0, tokens=0, supervised_tokens=0), "[6]", lambda s: s.with_steps(6, samples=1, tokens=64, supervised_tokens=64)),
        ("", FAIL, "more labels than tokens", lambda s: s.with_steps(6, supervised_tokens=257), "[6]"),
        ("", FAIL, "fewer labels than none", lambda s: s.with_steps(6, supervised_tokens=-1), "[6]", lambda s: s.with_steps(6, tokens=0, supervised_tokens=0)),
        ("", FAIL, "nothing to count", lambda s: but(s, steps=()), "0 samples"),
    ],
    "integrity.times_ordered": [
        ("C21", FAIL, "times overlap; the twin has slow first seconds", lambda s: s.with_steps(4, step_time_s=0.9), "step 5 overlaps", ramp),
        ("", FAIL, "a step that takes no time", lambda s: s.with_steps(7, step_time_s=0.0), "step 7"),
        ("", FAIL, "a step that ends before it starts", lambda s: s.with_steps(7, step_time_s=-0.1), "step 7"),
        ("", FAIL, "a step that started long ago", lambda s: s.with_steps(7, started_s=0.0), "step 7"),
        ("", FAIL, "no step at all", lambda s: but(s, steps=()), "in order"),
    ],
    "native.placement": [
        ("B02", FAIL, "one block on the CPU: its name", lambda s: s.with_audits(strays=("parameter h.5.mlp.c_fc.weight on cpu",)), "1 tensors elsewhere, first: parameter h.5.mlp"),
        ("B03", FAIL, "a buffer on the CPU", lambda s: s.with_audits(7, strays=("buffer rope on cpu",)), "first: buffer rope"),
        ("B06", FAIL, "optimizer state on the CPU", lambda s: s.with_audits(14, strays=("optimizer exp_avg of wte on cpu",)), ".to('cuda')"),
        ("", FAIL, "two strays, one of them twice", lambda s: s.with_audits(strays=("b on cpu",)).with_audits(7, strays=("a on cpu", "b on cpu")), "2 tensors elsewhere, first: b"),
        ("", FAIL, "an audit that counted nothing", lambda s: s.with_audits(7, counted={}), "0 tensors on cuda"),
        ("", FAIL, "an audit that counted the CPU's tensors", lambda s: s.with_audits(7, counted={"cpu": 593}), "0 tensors on cuda"),
        ("", FAIL, "an audit against another device", lambda s: s.with_audits(14, expected_device="cpu"), "audited against cpu"),
        ("", INCONCLUSIVE, "the first step was not audited", lambda s: audits(s, 7, 14), "at steps 7, 14"),
        ("", INCONCLUSIVE, "no middle step was audited", lambda s: audits(s, 1, 14), "python -m kit"),
        ("", INCONCLUSIVE, "the last step was not audited", lambda s: audits(s, 1, 7), "at steps 1, 7"),
        ("", INCONCLUSIVE, "a step that the nonce draws was not audited", lambda s: s.with_run(nonce="another"), "drawn from the run's nonce"),
        ("", INCONCLUSIVE, "no audit at all", lambda s: audits(s), "at steps none"),
        *(("", INCONCLUSIVE, f"an audit that saw no {kind}", lambda s, kind=kind: s.with_audits(7, kinds={**SEEN, kind: 0}), f"no {kind} seen", lambda s: s.with_audits(kinds=SEEN)) for kind in SEEN),
        ("", INCONCLUSIVE, "an audit of no kind", lambda s: s.with_audits(7, kinds={}), "no parameter and no gradient"),
    ],
    "native.products": [
        ("B02s", FAIL, "a block on the CPU in the steps between two audits", lambda s: s.with_steps(3, elsewhere=("AddmmBackward0 on cpu",)).with_steps(4, elsewhere=("AddmmBackward0 on cpu",)), "AddmmBackward0 on cpu elsewhere at 2 steps, first at step 3"),
        ("", FAIL, "one product fewer on the device in one step", lambda s: s.with_steps(5, products=48), "48 of 49", lambda s: s.with_steps(5, products=50)),
        ("", FAIL, "no step at all", lambda s: but(s, steps=()), "0 of 49"),
    ],
    "native.kernels": [
        ("B08", FAIL, "a dummy tensor makes memory look used: no kernel", lambda s: profile(s, device_time_s=0.0), "no kernel ran"),
        ("", FAIL, "a profile without a kernel", lambda s: profile(s, kernels=0), "no kernel ran"),
        ("", FAIL, "a profile that counts no kernels", lambda s: profile(s, kernels=None), "no kernel ran"),
        ("B02k", FAIL, "one block on the CPU: its products", lambda s: profile(s, products={"cuda": 147, "cpu": 12}), "12 matrix products on the CPU"),
        ("B02t", FAIL, "the same, by the trace", lambda s: profile(s, cpu_operators={"aten::mm": 8, "aten::addmm": 4}), "12 matrix products on the CPU (aten::mm, aten::addmm)"),
        ("B02c", FAIL, "one block on the CPU: its copies", lambda s: profile(s, copied_bytes=3_150_000), "3.00 MiB copied between host and device"),
        ("", FAIL, "a byte more copied than the batch needs", lambda s: profile(s, copied_bytes=1_004_097), "copied", lambda s: profile(s, copied_bytes=1_004_096)),
        ("", FAIL, "copies of a larger batch than was asked for", lambda s: profile(s, positions=65536, copied_bytes=2_000_000), "copied", lambda s: profile(s, copied_bytes=None)),
        ("C13", FAIL, "utilisation 100 % by a spinning kernel, training on the CPU", lambda s: profile(s, **SPINNING).with_samples(utilization=1.0), "on the CPU"),
        ("", FAIL, "dummy products beside training on the CPU", lambda s: profile(s, products={"cpu": 147}, product_flop={"cpu": 1.9e11}, matmul_kernels=400), "147 matrix products on the CPU"),
        ("", FAIL, "one product fewer than the model needs", lambda s: profile(s, products={"cuda": 146}), "146 matrix products on the device where the model needs 147"),
        ("", FAIL, "products on another kind of device", lambda s: profile(s, products={"xpu": 147}), "0 matrix products on the device"),
        ("", FAIL, "a profile that counts no products", lambda s: profile(s, products={}), "0 matrix products on the device"),
        ("", FAIL, "products of a smaller model", lambda s: profile(s, product_flop={"cuda": 0.985 * 189_664_985_088}), "where the model needs 190 GFLOP", lambda s: profile(s, product_flop={"cuda": 0.995 * 189_664_985_088})),
        ("P11", FAIL, "a profile that tells one position and a 200th of the FLOP", lambda s: profile(s, positions=1, product_flop={"cuda": 189_664_985_088 / 200}), "where the model needs 190 GFLOP"),
        ("", FAIL, "the arithmetic was the CPU's", lambda s: profile(s, product_flop={"cpu": 1.9e11}), "0 FLOP of products on the device"),
        ("", FAIL, "known kernels in 11 blocks of 12; the twin has one in each, and names of tomorrow", lambda s: profile(s, matmul_kernels=11), "11 matrix kernels", lambda s: profile(s, matmul_kernels=12, kernels=147)),
        ("", FAIL, "kernels of other names, one too few", lambda s: profile(s, matmul_kernels=12, kernels=146), "12 matrix kernels"),
        ("", FAIL, "no kernel's name is known", lambda s: profile(s, matmul_kernels=None), "0 matrix kernels"),
        ("", INCONCLUSIVE, "a device that mostly waits", lambda s: profile(s, step_time_s=1.0), "--batch-size 32", lambda s: profile(s, step_time_s=s.run.profile.device_time_s / 0.05)),
        ("", FAIL, "a device that waits for the CPU's product", lambda s: profile(s, step_time_s=1.0, products={"cuda": 147, "cpu": 1}), "1 matrix products on the CPU"),
        ("", INCONCLUSIVE, "no profile", lambda s: s.with_run(profile=None), "no profiled step"),
        ("", INCONCLUSIVE, "a profiler that did not run", lambda s: profile(s, error="CUPTI is in use"), "CUPTI is in use"),
        *(("", INCONCLUSIVE, f"a profile without {name}", lambda s, name=name: profile(s, **{name: None}), "python -m kit train") for name in ("step_time_s", "device_time_s")),
    ],
    "native.jit_off": [
        ("P1", INCONCLUSIVE, "the switch was set too late: the driver compiled PTX", lambda s: s.with_run(jit_control=JitControl(0, "the driver compiled PTX here")), "compiled PTX here"),
        ("", INCONCLUSIVE, "the driver could not be asked", lambda s: s.with_run(jit_control=JitControl(None, "libcuda could not be asked")), "could not be asked"),
        ("", INCONCLUSIVE, "no control", lambda s: s.with_run(jit_control=None), "not asked"),
    ],
    "native.driver_view": [
        ("", FAIL, "our process holds little more than a context", lambda s: own(s, 0.49), "look for a fallback to the CPU"),
        ("", FAIL, "a little less than half of what torch holds", lambda s: s.with_samples(own_memory_bytes=int(0.49 * STATE)), "torch holds 2.39 GiB", lambda s: s.with_samples(own_memory_bytes=int(0.51 * STATE))),
        ("", FAIL, "torch counts nothing, and no training state is there", lambda s: own(s, 0.9).with_steps(memory_peak_bytes=0), "memory in use 922 MiB", lambda s: own(s, 0.95).with_steps(memory_peak_bytes=None)),
        ("", FAIL, "the whole card's use did not grow", lambda s: whole_card(s, memory_used_bytes=IDLE.memory_used_bytes + 100), "0.0000954 MiB", whole_card),
        ("", FAIL, "a second run in one process, on a card that does not hold the first", lambda s: telemetry(whole_card(idle(s, memory_used_bytes=4 * GIB), memory_used_bytes=4 * GIB), reserved_before_bytes=GIB), "1.00 GiB", lambda s: telemetry(whole_card(idle(s, memory_used_bytes=4 * GIB), memory_used_bytes=4 * GIB), reserved_before_bytes=3 * GIB)),
        ("B08w", INCONCLUSIVE, "a dummy tensor: power and clock as when idle", lambda s: asleep(s, utilization=1.0), "as when idle"),
        ("", INCONCLUSIVE, "the clock as when idle, power unknown", lambda s: asleep(s, power_w=None), "as when idle", lambda s: s.with_samples(power_w=None, clock_mhz=None)),
        ("", INCONCLUSIVE, "idle, and memory unknown", lambda s: asleep(s, own_memory_bytes=None, memory_used_bytes=None), "not available here", lambda s: s.with_samples(own_memory_bytes=None, memory_used_bytes=None)),
        ("", INCONCLUSIVE, "power barely above idle", lambda s: asleep(s, power_w=1.04 * IDLE.power_w), "as when idle", lambda s: asleep(s, power_w=1.06 * IDLE.power_w)),
        ("", INCONCLUSIVE, "the clock barely above idle", lambda s: asleep(s, clock_mhz=1.04 * IDLE.clock_mhz), "as when idle", lambda s: asleep(s, clock_mhz=1.06 * IDLE.clock_mhz)),
        ("", INCONCLUSIVE, "an idle baseline that was as busy; the twin's was not idle, and compares nothing", lambda s: idle(s, power_w=900.0, clock_mhz=3000), "as when idle", lambda s: idle(s, power_w=900.0, clock_mhz=3000, utilization=0.4)),
        ("", INCONCLUSIVE, "no reading of memory or work", lambda s: s.with_samples(own_memory_bytes=None, memory_used_bytes=None, power_w=None, clock_mhz=None), "--steps 100", lambda s: telemetry(asleep(s), idle=None)),
        ("", INCONCLUSIVE, "no memory before the run to compare with", lambda s: asleep(whole_card(idle(s, memory_used_bytes=None))), "memory in use not available here", lambda s: whole_card(idle(s, memory_used_bytes=None))),
        ("A14n", FAIL, "a driver that names another card", lambda s: s.with_run(device_name="NVIDIA GeForce RTX 5090"), "torch names NVIDIA GeForce RTX 5090, the driver NVIDIA H100 80GB HBM3", lambda s: s.with_run(device_name="H100 80GB HBM3 MIG 1g.10gb")),
        ("", FAIL, "a driver that names no card", lambda s: telemetry(s, device_name=""), "the driver", lambda s: telemetry(s, device_name=None)),
        ("", FAIL, "another card, and too few readings", lambda s: but(s, samples=()).with_run(device_name="RTX 5090"), "0 readings"),
        ("A15i", INCONCLUSIVE, "readings of a device that is not identified", lambda s: telemetry(s, is_bound_by_uuid=False), "not identified by UUID"),
        ("", INCONCLUSIVE, "no telemetry", lambda s: s.with_run(telemetry=None), "no telemetry"),
        ("", INCONCLUSIVE, "telemetry that broke", lambda s: telemetry(s, error="NVML: Driver Not Loaded"), "NVML: Driver Not Loaded"),
        ("", INCONCLUSIVE, "no step to watch", lambda s: but(s, steps=()), "no telemetry"),
        ("", INCONCLUSIVE, "four readings, even where they would fail", lambda s: own(but(s, samples=s.samples[8:60:14]), 0), "4 readings during the steps, 5 needed", lambda s: but(s, samples=s.samples[6:64:12])),
        ("C12", INCONCLUSIVE, "the telemetry thread died in the middle", lambda s: but(s, samples=s.samples[:30]), "no reading for"),
        ("C12n", INCONCLUSIVE, "telemetry never overlapped the timed steps", lambda s: s.with_samples(at_s=lambda r: r.at_s - 10), "0 readings"),
        ("", INCONCLUSIVE, "a hole of more than half a second; the twin's is shorter", lambda s: kept(s, lambda at: not 0.4 <= at <= 0.95), "no reading for 0.6 s", lambda s: kept(s, lambda at: not 0.5 <= at <= 0.9)),
        ("", INCONCLUSIVE, "a hole of half of a long run; the twin's is a quarter", lambda s: kept(stretched(s, 10), lambda at: not 4 <= at <= 10), "no reading for", lambda s: kept(stretched(s, 10), lambda at: not 5 <= at <= 8)),
    ],
    "native.precision": [
        ("", FAIL, "TF32 where float32 is declared", lambda s: s.with_part("precision", observed="tf32"), "tf32: relative error", lambda s: declared(s, "tf32", "tf32", "float32")),
        ("", FAIL, "bfloat16 where TF32 is declared", lambda s: declared(s, "tf32", "bfloat16", "float32"), "class tf32"),
        ("", FAIL, "a precision of no class", lambda s: s.with_part("precision", observed="other"), "other"),
        ("", FAIL, "a product that comes out as float16", lambda s: s.with_part("precision", output_dtype="float16"), "result in float16"),
        ("B19r", FAIL, "autocast declared and not active", lambda s: declared(s, "bfloat16", "bfloat16", "bfloat16").with_audits(product_dtypes={"float32": 49}), "matrix layers put out float32", lambda s: declared(s, "bfloat16", "bfloat16", "bfloat16")),
        ("", FAIL, "one layer without autocast, at the last step", lambda s: declared(s, "bfloat16", "bfloat16", "bfloat16").with_audits(14, product_dtypes={"bfloat16": 48, "float32": 1}), "put out float32"),
        ("", INCONCLUSIVE, "precision was not measured", lambda s: s.with_run(precision=None), "not measured"),
    ],
    "native.cpu_agreement": [
        *(("", FAIL, f"{dtype}: the third loss is off by more than the limit, {sign:+}", lambda s, d=dtype, g=sign * limit: theirs(s.with_config(dtype=d), *LOSSES[:2], s.steps[2].loss / (1 + 1.01 * g)), f"{limit:g} allowed", lambda s, d=dtype, g=sign * limit: theirs(s.with_config(dtype=d), *LOSSES[:2], s.steps[2].loss / (1 + 0.99 * g))) for dtype, limit in (("float32", 1e-4), ("tf32", 1e-3), ("bfloat16", 2e-3)) for sign in (1, -1)),
        ("", FAIL, "a loss that is not finite", lambda s: s.with_steps(2, loss=None), "largest relative difference inf"),
        ("", FAIL, "a loss of 0 on the CPU", lambda s: theirs(s, LOSSES[0], 0.0, LOSSES[2]), "inf"),
        ("", INCONCLUSIVE, "no reference", lambda s: s.with_run(cpu_reference=None), "0 finite losses"),
        ("", INCONCLUSIVE, "a reference that was left out", lambda s: s.with_part("cpu_reference", skipped="not asked for"), "not asked for"),
        ("", INCONCLUSIVE, "the first loss alone, which says nothing about training", lambda s: theirs(s, LOSSES[0]), "1 finite losses", lambda s: theirs(s, *LOSSES[:2])),
    ],
    "native.replay": [
        ("B32r", FAIL, "one product in a thousand off", lambda s: again(s, *AGAIN[:4], AGAIN[4] * (1 + 1e-7), *AGAIN[5:]), "first difference at step 5"),
        ("B33", FAIL, "kernels that differ deterministically too; the twin's add in changing order", lambda s: varied(s, False), "different also with deterministic algorithms", lambda s: varied(s, True)),
        ("", FAIL, "a loss fewer", lambda s: again(s, *AGAIN[:-1]), "13 of 14 losses repeated", lambda s: again(s, deterministic_is_equal=False)),
        ("", FAIL, "a loss fewer, and equal otherwise", lambda s: again(s, *AGAIN[:-1], deterministic_is_equal=True), "13 of 14"),
        ("", FAIL, "a loss more", lambda s: again(s, *AGAIN, 1.0), "15 of 14"),
        ("", FAIL, "nothing to repeat", lambda s: but(s.with_part("replay", losses=()), steps=()), "0 of 0"),
        ("", FAIL, "a product that does not repeat", lambda s: again(s, matmul_is_equal=False), "a repeated matrix product differed"),
        ("", FAIL, "a product that was not repeated", lambda s: again(s, matmul_is_equal=None), "a repeated matrix product differed"),
        ("", INCONCLUSIVE, "no repetition", lambda s: s.with_run(replay=None), "not replayed"),
        ("", INCONCLUSIVE, "a repetition that was left out", lambda s: again(s, skipped="too long"), "too long"),
    ],
    "native.hardware": [
        ("C10", FAIL, "uncorrected memory error during the run; the twin has a large total from the past (C11)", lambda s: counted(s, {"ecc_corrected": 10**6, "ecc_uncorrected": 4}, ecc_uncorrected=5), "ecc_uncorrected +1", lambda s: counted(s, {"ecc_corrected": 10**6, "ecc_uncorrected": 4})),
        ("C10p", FAIL, "row remap pending", lambda s: counted(s, {"ecc_uncorrected": 0, "remap_pending": 0}, remap_pending=1), "remap_pending +1", lambda s: counted(s, {"ecc_corrected": 0}, ecc_corrected=7)),
        ("", FAIL, "a remap that was pending before", lambda s: counted(s, {"remap_pending": 1}), "until nvidia-smi"),
        ("", FAIL, "a remap that failed", lambda s: counted(s, {"remap_failure": 0}, remap_failure=1), "remap_failure +1", lambda s: counted(s, {"ecc_uncorrected": 5}, ecc_uncorrected=0)),
        ("", FAIL, "rows remapped after an uncorrected error", lambda s: counted(s, {"remapped_uncorrected": 2}, remapped_uncorrected=3), "remapped_uncorrected +1", lambda s: counted(s, {}, ecc_uncorrected=5)),
        ("", INCONCLUSIVE, "counters that were lost during the run", lambda s: telemetry(s, counters_after={}), "not available here"),
    ],
    "learning.finite": [
        *(("", FAIL, f"{name} not finite at step {step} alone", lambda s, n=name, k=step: s.with_steps(k, **{n: None}), f"1 of 14 steps, first at step {step}") for step in (1, 14) for name in ("loss", "grad_norm")),
        ("", FAIL, "no loss is finite", lambda s: s.with_steps(loss=None), "14 of 14 steps, first at step 1"),
        ("", FAIL, "a loss of exactly 0", lambda s: s.with_steps(5, loss=0.0), "exactly 0 at 1 of 14 steps, first at step 5", lambda s: s.with_steps(5, loss=1e-9)),
        ("", FAIL, "no step at all; the twin's losses of different batches rise", lambda s: but(s, steps=()), "0 finite losses", lambda s: s.with_steps(loss=lambda step: 11.028 + 0.002 * step.step)),
    ],
    "learning.applied": [
        ("", FAIL, "every step skipped", lambda s: s.with_steps(is_applied=False), "0 of 14 optimizer steps"),
        ("", FAIL, "one step skipped", lambda s: s.with_steps(3, is_applied=False), "13 of 14"),
        ("", FAIL, "no step at all", lambda s: but(s, steps=()), "0 of 14"),
    ],
    "learning.supervised_tokens": [
        ("", FAIL, "all labels masked", lambda s: s.with_steps(supervised_tokens=0), "at steps [1, 2, 3, 4, 5]"),
        ("", FAIL, "all labels of one step masked", lambda s: s.with_steps(4, supervised_tokens=0), "at steps [4]", lambda s: s.with_steps(4, supervised_tokens=1)),
        ("", FAIL, "no step at all", lambda s: but(s, steps=()), "0 supervised tokens"),
    ],
    "learning.batches": [
        ("B31r", FAIL, "a loader that repeats a batch", lambda s: s.with_steps(9, batch_sha256=s.steps[2].batch_sha256), "1 batches other than prescribed, first at step 9"),
        ("", FAIL, "batches in another order", lambda s: s.with_run(order=s.run.order[::-1]), "14 batches other than prescribed"),
        ("B27r", FAIL, "one text in every row; the twin has two, cut alike", lambda s: s.with_run(distinct_texts=1), "repeated in all 550 rows", lambda s: s.with_run(distinct_texts=2, order=("a",) * 14).with_steps(batch_sha256="a")),
        ("", INCONCLUSIVE, "an order that ends early", lambda s: s.with_run(order=s.run.order[:13]), "the order of 13 batches"),
        ("", INCONCLUSIVE, "no step at all", lambda s: but(s, steps=()), "is recorded"),
    ],
    "learning.mode": [
        ("", FAIL, "evaluation mode at one audit", lambda s: s.with_audits(7, is_training=False), "evaluation mode at step 7"),
        ("", INCONCLUSIVE, "no audit", lambda s: audits(s), "0 audits"),
    ],
    "learning.moved": [
        ("", FAIL, "nothing moved, at a learning rate of 0", lambda s: learning(s, moved_tensors=0, max_change=0.0, unmoved=("wte",)).with_steps(lr=0.0), "unchanged: wte; the learning rate was 0"),
        ("", FAIL, "one tensor did not move", lambda s: learning(s, moved_tensors=147, unmoved=("h.3.ln_1.weight",)), "h.3.ln_1.weight"),
        ("", FAIL, "all moved by nothing", lambda s: learning(s, max_change=0.0), "0.0e+00"),
        ("", FAIL, "there is nothing to move", lambda s: learning(s, trainable_tensors=0, moved_tensors=0), "0 of 0"),
        ("", INCONCLUSIVE, "not measured", lambda s: s.with_run(learning=None), "not measured"),
    ],
    "learning.strength": [
        ("P8", FAIL, "the learning rate × 1e-4 inside the step", lambda s: change_of(s, 1e-4), "is due; median update 2.0e-09 at step 1", lambda s: change_of(s, 1.0)),
        ("P8t", FAIL, "a tenth of the learning rate, in the sum of all steps", lambda s: learning(s, max_change=1.4 * s.run.config.lr), "7.5e-05 to 4.0e-04 is due", lambda s: learning(s, max_change=14 * adam_quotient(14) * s.run.config.lr)),
        ("P8u", FAIL, "ten times the learning rate inside the step", lambda s: change_of(s, 10.0), "median update 2.0e-04 at step 1"),
        ("", FAIL, "a third of the learning rate at the first step", lambda s: s.with_steps(1, update=7e-6), "7.0e-06 at step 1", lambda s: s.with_steps(2, update=7e-6)),
        ("", FAIL, "the learning rate × 1e-3 at the last step alone", lambda s: s.with_steps(14, update=2e-8), "at step 14", lambda s: s.with_steps(update=None)),
        ("", FAIL, "a weight that is no number any more", lambda s: learning(s, max_change=0.3), "3.0e-01"),
        ("", INCONCLUSIVE, "not measured", lambda s: s.with_run(learning=None), "not measured"),
    ],
    "learning.trainable": [
        ("", FAIL, "all but one block frozen", lambda s: learning(s, trainable_parameters=100), "100 of 124,439,808"),
        ("", FAIL, "a smaller model, all of it trained", lambda s: learning(s, trainable_parameters=100, total_parameters=100), "100 of 124,439,808"),
        ("", INCONCLUSIVE, "not measured", lambda s: s.with_run(learning=None), "not measured"),
    ],
    "learning.canary": [
        ("B21", FAIL, "the fixed batch rises; the losses of different batches do so in a healthy run", lambda s: learning(s, canary_after=BEFORE + 0.01), "loss of one fixed batch", lambda s: s.with_steps(loss=lambda step: 11 + step.step / 500)),
        ("", FAIL, "the fixed batch stays", lambda s: learning(s, canary_after=BEFORE), "train longer"),
        ("", FAIL, "it falls by rounding alone", lambda s: learning(s, canary_after=BEFORE * (1 - 1e-7)), "after 14 steps", lambda s: learning(s, canary_after=BEFORE * (1 - 1e-5))),
        ("", INCONCLUSIVE, "it was not finite before", lambda s: learning(s, canary_before=None), "--steps 14"),
        ("", INCONCLUSIVE, "it was not finite after", lambda s: learning(s, canary_after=None), "unknown after"),
        ("", FAIL, "five steps that taught nothing", lambda s: learning(but(s, steps=s.steps[:5]), canary_after=12.0), "after 5 steps"),
        ("", INCONCLUSIVE, "four steps that taught nothing: too few", lambda s: learning(but(s, steps=s.steps[:4]), canary_after=12.0), "after 4 steps"),
        ("", INCONCLUSIVE, "not measured", lambda s: s.with_run(learning=None), "not measured"),
    ],
    "throughput.undisturbed": [
        *(("", INCONCLUSIVE, f"{word} for one reading", lambda s, bit=bit: one_reading(s, throttle_bits=bit | 0x4), word) for bit, word in ((0x8, "hardware slowdown"), (0x20, "software thermal"), (0x80, "power brake"))),
        ("C06", INCONCLUSIVE, "hardware thermal slowdown for one reading; the twin's bits are normal at full load", lambda s: one_reading(s, throttle_bits=0x44), "hardware thermal slowdown", lambda s: s.with_samples(throttle_bits=0x107)),
        ("", INCONCLUSIVE, "another process for one reading; the twin's driver tells of none", lambda s: one_reading(s, foreign_processes=1), "1 other processes", lambda s: s.with_samples(foreign_processes=None, throttle_bits=None)),
        ("A23r", INCONCLUSIVE, "30 GiB in use before the run, by nobody", lambda s: idle(s, memory_used_bytes=30 * GIB, own_memory_bytes=None), "30.0 GiB of the card in use by others", lambda s: idle(s, memory_used_bytes=int(1.9 * GIB), own_memory_bytes=None)),
        ("", INCONCLUSIVE, "2.1 GiB of a large card", lambda s: idle(s, memory_used_bytes=int(2.1 * GIB), own_memory_bytes=None), "2.10 GiB", lambda s: idle(s, memory_used_bytes=30 * GIB, own_memory_bytes=29 * GIB)),
        ("", INCONCLUSIVE, "more than a tenth of a small card", lambda s: telemetry(idle(s, memory_used_bytes=int(0.9 * GIB), own_memory_bytes=None), memory_total_bytes=8 * GIB), "922 MiB", lambda s: telemetry(idle(s, memory_used_bytes=int(0.7 * GIB), own_memory_bytes=None), memory_total_bytes=8 * GIB)),
        ("", INCONCLUSIVE, "what torch held is not ours where the driver tells less", lambda s: telemetry(idle(s, memory_used_bytes=30 * GIB, own_memory_bytes=5 * GIB), reserved_before_bytes=29 * GIB), "25.0 GiB", lambda s: telemetry(idle(s, memory_used_bytes=30 * GIB, own_memory_bytes=None), reserved_before_bytes=29 * GIB)),
        ("C19", INCONCLUSIVE, "the profiler left on", lambda s: s.with_audits(7, is_profiled=True), "profiler", lambda s: telemetry(idle(s, memory_used_bytes=30 * GIB), memory_total_bytes=None)),
        ("", INCONCLUSIVE, "four readings", lambda s: but(s, samples=s.samples[8:60:14]), "4 readings, 5 needed", lambda s: but(s, samples=s.samples[6:64:12])),
        ("", INCONCLUSIVE, "readings of half the steps", lambda s: but(s, samples=s.samples[:30]), "no reading for", lambda s: telemetry(s, idle=None)),
        ("", INCONCLUSIVE, "less than a reading a second", lambda s: stretched(s, 100), "65 readings, 136 needed"),
        ("", INCONCLUSIVE, "no step at all", lambda s: but(s, samples=(), steps=()), "0 readings, 5 needed"),
        ("C09r", PASS, "power cap lowered: shown", lambda s: telemetry(s, power_limit_w=300.0), "power limit 300 W of 700 W", lambda s: telemetry(s, power_limit_w=None)),
    ],
    "throughput.clocks": [
        ("C01", FAIL, "no synchronize: the host measures a fifteenth", lambda s: s.with_steps(step_time_s=lambda step: step.step_time_s / 15), "did not wait"),
        ("", FAIL, "the device needed 5.1 % longer", lambda s: device_time(s, 1.051), "synchronise", lambda s: device_time(s, 1.049)),
        ("", INCONCLUSIVE, "a device that was done long before", lambda s: device_time(s, 0.94), "long before the host", lambda s: device_time(s, 0.96)),
        ("C14", INCONCLUSIVE, "wall clock set during the run", lambda s: s.with_run(wall_window_s=3600.0), "jumped", lambda s: s.with_run(wall_window_s=None)),
        ("", INCONCLUSIVE, "wall clock set back", lambda s: s.with_run(wall_window_s=s.run.wall_window_s - 1.1), "jumped", lambda s: s.with_run(wall_window_s=s.run.wall_window_s - 0.9)),
        ("", FAIL, "a clock that was set, and a host that did not wait", lambda s: device_time(s.with_run(wall_window_s=99.0), 15), "device"),
        ("", INCONCLUSIVE, "no clock of the device", lambda s: s.with_steps(device_time_s=None), "no device clock", lambda s: stretched(s, 0.1)),
    ],
    "throughput.plausible": [
        ("C01p", FAIL, "faster than the card's peak", lambda s: fast(s, 1.01), "impossible", lambda s: fast(s, 0.94)),
        ("C20", INCONCLUSIVE, "97 % of the peak", lambda s: fast(s, 0.97), "97 % of 66.9 TFLOP/s"),
        ("", FAIL, "a full batch in half the time; the twin's last batch is half as large", lambda s: fast(s, 0.9).with_steps(14, step_time_s=lambda step: step.step_time_s / 2), "impossible", lambda s: fast(s, 0.9).with_steps(14, samples=2, step_time_s=lambda step: step.step_time_s / 2)),
        ("", INCONCLUSIVE, "a card without a datasheet", lambda s: s.with_run(device_name="NVIDIA H100 80GB HBM3 MIG 1g.10gb"), "peak is not known"),
        ("", INCONCLUSIVE, "four steps", lambda s: but(s, steps=s.steps[:4]), "no steady steps"),
        ("", INCONCLUSIVE, "steps that took no time", lambda s: s.with_steps(step_time_s=0.0), "no steady steps", lambda s: s.with_steps(2, step_time_s=0.0)),
    ],
    "throughput.input": [
        ("C04", INCONCLUSIVE, "data-loader bound", lambda s: waiting(s, 0.21), "21 % of the time spent waiting for batches: input bound", lambda s: waiting(s, 0.19)),
        ("", INCONCLUSIVE, "no step at all", lambda s: but(s, steps=()), "0 % of the time"),
    ],
    "throughput.dtype": [
        ("B20", INCONCLUSIVE, "bfloat16 on a card that emulates it: said beside the figures", lambda s: on(s, (7, 5)), "7.5 emulates bfloat16", lambda s: on(s, (8, 0))),
        ("", INCONCLUSIVE, "TF32 on a card without it", lambda s: on(s, (7, 5), "tf32"), "emulates tf32", lambda s: on(s, (6, 1), "float32")),
        ("", INCONCLUSIVE, "a card of unknown capability", lambda s: on(s, None), "not recorded", lambda s: on(s, None, "float32")),
    ],
}
# fmt: on


def _said_of(change):
    return lambda: judged(change(healthy()))


for check, rows in ROWS.items():
    for number, (id, must, what, change, words, *twin) in enumerate(rows, start=1):
        keep = row(
            id or f"{check} {number}",
            what,
            seam="recorded run",
            must=must,
            at=check,
            words=words,
            twin=_said_of(*twin) if twin else recorded.good,
            twin_at=check,
        )
        keep(_said_of(change))

"""Did the device that the run names do the work? Witnesses that cannot be configured.

Here: where the tensors are and which kernels ran. What the driver saw is in
`kit.train.driver_view`, whether the numbers are right in `kit.train.arithmetic`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kit.records import Check
from kit.train.arithmetic import cpu_agreement, precision, replay
from kit.train.checks import check, gpu_check
from kit.train.driver_view import driver_view, hardware
from kit.train.flops import weight_flop, weight_products
from kit.train.metrics import KernelProfile, StepRecord, TelemetrySample, TrainingRun
from kit.units import memory, percent, quantity

# Kernel time as a share of the profiled step. A small batch leaves a fast card idle most of the time
# (10 to 16 % busy at 4 × 64 on an H100, eager, under the profiler), and a slow host more so: less than
# this with all products on the device is too weak to conclude from, and no contradiction.
MIN_KERNEL_SHARE = 0.05
# Bytes between host and device in one step beside the batch itself (two int64 tensors): some scalars.
COPY_BUDGET_BYTES = 1_000_000
# The products' FLOP may miss this share of what the model needs.
FLOP_TOLERANCE = 0.01


def native_checks(run: TrainingRun, steps: Sequence[StepRecord], samples: Sequence[TelemetrySample]) -> Iterator[Check]:
    yield _placement(run, steps)
    yield _kernels(run)
    yield driver_view(run, steps, samples)
    yield precision(run)
    yield cpu_agreement(run, steps)
    yield replay(run, steps)
    yield hardware(run)


# --- placement ----------------------------------------------------------------------


def _placement(run: TrainingRun, steps: Sequence[StepRecord]) -> Check:
    device, audits = run.config.device, run.audits
    # In the order they were found: parameters come first.
    strays = list(dict.fromkeys(name for audit in audits for name in audit.strays))
    strays += [f"audited against {audit.expected_device}" for audit in audits if audit.expected_device != device]
    on_device = [audit.counted.get(device, 0) for audit in audits]
    unseen = sorted({kind for audit in audits for kind in _unseen(audit.kinds)})
    wanted = {1, (len(steps) + 1) // 2, len(steps)} if steps else {1}
    is_good: bool | None = not strays and all(on_device)
    if is_good and (unseen or not wanted <= {audit.step for audit in audits}):
        is_good = None
    if strays:
        found = f"{len(strays)} tensors elsewhere, first: {strays[0]}"
    else:
        audited = ", ".join(str(audit.step) for audit in audits) or "none"
        found = f"{min(on_device, default=0)} tensors on {device} at steps {audited}"
        found += f"; no {' and no '.join(unseen)} seen" if unseen else ""
    return gpu_check(
        run.config,
        "native.placement",
        is_good,
        found,
        f"every parameter, buffer, gradient, optimizer state and batch on {device}, at the first, a middle "
        "and the last step",
        todo=f"move it with .to({device!r}) before training",
        values={"strays": len(strays), "steps": [audit.step for audit in audits]},
    )


def _unseen(kinds: dict[str, int]) -> list[str]:
    """What an audit looked for and found none of; a model may well have no buffers."""
    return [kind for kind in ("parameter", "gradient", "optimizer", "batch") if kinds and not kinds.get(kind)]


# --- kernels ------------------------------------------------------------------------


def _kernels(run: TrainingRun) -> Check:
    config, profile = run.config, run.profile
    needed = weight_products(config.shape)
    budget = _copy_budget(run)
    expected = (
        f"kernels for at least {percent(MIN_KERNEL_SHARE)} of a step, {needed} matrix products or more on "
        f"the device and none on the CPU, at most {memory(budget)} copied"
    )
    if config.device == "cpu":
        return gpu_check(config, "native.kernels", True, "the CPU did the work, as asked for", expected)
    if profile is None or profile.error or not profile.step_time_s or profile.device_time_s is None:
        reason = profile.error if profile and profile.error else "no profiled step"
        return check("native.kernels", None, reason, expected)
    share = profile.device_time_s / profile.step_time_s
    problems = list(_contradictions(run, profile, needed, budget))
    is_good: bool | None = not problems
    if is_good and share < MIN_KERNEL_SHARE:
        is_good = None
    found = "; ".join(problems[:2]) or (
        f"kernel time {percent(share)} of the profiled step, {profile.matmul_kernels} matrix kernels, "
        f"{profile.copies} copies"
    )
    return check(
        "native.kernels",
        is_good,
        found,
        expected,
        todo="look at profile in raw/training.json for what ran where, and move the rest to the device",
        settle="python -m kit train --batch-size 32",
        values={
            "kernel_share": share,
            "matmul_kernels": profile.matmul_kernels,
            "cpu_products": _cpu_products(profile),
            "copied_bytes": profile.copied_bytes,
        },
    )


def _contradictions(run: TrainingRun, profile: KernelProfile, needed: int, budget: int) -> Iterator[str]:
    """What says that the device did not do all of this step. Two counts, of torch's dispatcher and of the
    profiler, each have to find the products that the model needs."""
    if not profile.device_time_s or not profile.kernels:
        yield "no kernel ran on the device"
    on_cpu = _cpu_products(profile)
    if on_cpu:
        names = ", ".join(profile.cpu_operators)
        yield f"{on_cpu} matrix products on the CPU" + (f" ({names})" if names else "")
    counted = profile.products.get(run.config.device, 0)
    if profile.products and counted < needed:
        yield f"{counted} matrix products on the device where the model needs {needed}"
    if profile.positions:
        flop = profile.product_flop.get(run.config.device, 0.0)
        least = weight_flop(run.config.shape, profile.positions)
        if flop < (1 - FLOP_TOLERANCE) * least:
            needs = quantity(least, "FLOP")
            yield f"{quantity(flop, 'FLOP')} of products on the device where the model needs {needs}"
    # Names of kernels change with libraries. Where torch's own count is whole, as many kernels of any
    # name will do, as long as every block shows one that is known.
    by_name = profile.matmul_kernels or 0
    is_whole = counted >= needed and (profile.kernels or 0) >= needed and by_name >= run.config.shape.n_layer
    if by_name < needed and not is_whole:
        yield f"{by_name} matrix kernels where the model needs {needed}"
    if (profile.copied_bytes or 0) > budget:
        yield f"{memory(profile.copied_bytes)} copied between host and device"


def _cpu_products(profile: KernelProfile) -> int:
    """The larger of both counts: torch's dispatcher, and operators without a kernel in the trace."""
    return max(profile.products.get("cpu", 0), sum(profile.cpu_operators.values()))


def _copy_budget(run: TrainingRun) -> int:
    positions = run.profile.positions if run.profile and run.profile.positions else None
    positions = positions or run.config.batch_size * run.config.seq_len
    return COPY_BUDGET_BYTES + 2 * 8 * positions + run.scheme_copy_bytes

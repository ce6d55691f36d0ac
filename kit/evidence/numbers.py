"""The numbers of a report, each with its unit, its definition and from how many samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kit.evidence.model import Number
from kit.evidence.raw import Raw
from kit.stats import spread
from kit.sweep.table import Ceilings, Row, floor_s, mfu, words
from kit.train.checks import in_window
from kit.train.metrics import STEADY_FROM, throughput
from kit.units import number


def numbers(raw: Raw) -> Iterator[Number]:
    if raw.training is not None and raw.steps:
        yield from _training_numbers(raw)
    if raw.ceilings is not None:
        yield from _sweep_numbers(raw.ceilings, raw.rows)
    for record in (raw.losses,) if raw.losses else ():
        for row in record.compared:
            yield Number(
                f"loss_difference_{row.engine}_{row.dtype}",
                record.difference(row),
                "nats/token",
                "largest difference of the engine's first losses from the plain loop's in float32",
                n=len(row.losses),
                reason="a loss is not finite" if record.difference(row) is None else None,
            )
    for run in raw.bench.warm if raw.bench else ():
        yield Number(
            f"short_run_{run.engine}_training_s",
            run.training_s,
            "s",
            f"{len(run.losses)} steps in a fresh process as the Trainer counts them, start of training included, "
            f"{run.dtype}, second run",
            n=1,
        )
        yield Number(
            f"short_run_{run.engine}_process_s", run.process_s, "s", "the same from the start of the process", n=1
        )


def _training_numbers(raw: Raw) -> Iterator[Number]:
    figures = throughput(raw.steps)
    steady = figures.steady
    why = None if steady else f"fewer than {STEADY_FROM} steps"
    spread = {"n": steady.n, "low": steady.q1, "high": steady.q3} if steady else {"reason": why}
    yield Number("first_step_s", figures.first_step_s, "s", "the first optimizer step, cold", n=1)
    yield Number(
        "steady_step_s",
        steady.median if steady else None,
        "s",
        f"median step time from step {STEADY_FROM} on, synchronised before and after; spread: quartiles",
        **spread,
    )
    yield Number(
        "steady_samples_per_s",
        figures.steady_samples_per_s,
        "samples/s",
        f"counted samples over time of the steps from {STEADY_FROM} on",
        n=steady.n if steady else None,
        reason=why,
    )
    yield Number(
        "steady_tokens_per_s",
        figures.steady_tokens_per_s,
        "tokens/s",
        "counted tokens without padding over the same time",
        n=steady.n if steady else None,
        reason=why,
    )
    yield Number(
        "smoke_samples_per_s",
        figures.total_samples_per_s,
        "samples/s",
        "all counted samples over the time of all steps, the cold one included",
        n=figures.steps,
    )
    yield Number("samples", figures.samples, "samples", "counted in the batches")
    yield Number("tokens", figures.tokens, "tokens", "counted in the batches, padding left out")
    losses = [step.loss for step in raw.steps if step.loss is not None]
    yield Number(
        "first_loss",
        losses[0] if losses else None,
        "nats/token",
        "loss of the first step",
        reason=None if losses else "no finite loss",
    )
    yield Number(
        "last_loss",
        losses[-1] if losses else None,
        "nats/token",
        "loss of the last step, not a mean",
        reason=None if losses else "no finite loss",
    )
    is_cuda = raw.run.device == "cuda"
    why_not = None if is_cuda else "a CPU run has no GPU memory"
    yield Number(
        "peak_memory_bytes", figures.peak_memory_bytes, "B", "most memory torch had allocated in a step", reason=why_not
    )
    powers = [s.power_w for s in in_window(raw.steps, raw.telemetry) if s.power_w is not None]
    yield Number(
        "max_power_w",
        max(powers, default=None),
        "W",
        "highest power reading during the steps",
        n=len(powers) or None,
        reason=None if powers else "not available here",
    )
    profile = raw.training.profile
    if profile and profile.device_time_s is not None and profile.step_time_s:
        yield Number(
            "kernel_share",
            profile.device_time_s / profile.step_time_s if is_cuda else None,
            "1",
            "kernel time over wall time of one profiled step",
            n=1,
            reason=None if is_cuda else "a CPU run",
        )


def _sweep_numbers(ceilings: Ceilings, rows: Sequence[Row]) -> Iterator[Number]:
    for dtype, rate in ceilings.matmul_flop_per_s.items():
        yield Number(
            f"matmul_{dtype}_flop_per_s",
            rate,
            "FLOP/s",
            f"measured: {_product(ceilings.matmul_shape.get(dtype, ''))}, random numbers",
        )
    for dtype, peak in ceilings.datasheet_flop_per_s.items():
        yield Number(f"peak_{dtype}_flop_per_s", peak, "FLOP/s", "the maker's datasheet: dense, for this card")
    yield Number(
        "copy_bytes_per_s",
        ceilings.copy_bytes_per_s,
        "B/s",
        "measured: a copy on the device, read and write counted",
        reason=None if ceilings.copy_bytes_per_s else "not measured",
    )
    for name, value, unit, how in (
        (
            "attention_bfloat16_flop_per_s",
            ceilings.attention_flop_per_s,
            "FLOP/s",
            f"measured: causal attention, forward and backward, {ceilings.attention_shape}",
        ),
        ("graph_launch_s", ceilings.graph_launch_s, "s", "measured: one of a thousand small kernels in a CUDA graph"),
    ):
        if value is not None:
            yield Number(name, value, unit, how)
    good = [row for row in rows if row.tokens_per_s]
    best = max(good, key=lambda row: row.tokens_per_s, default=None)
    if best is None:
        yield Number(
            "best_tokens_per_s", None, "tokens/s", "best point of the sweep", reason="no point could be measured"
        )
        return
    where = f"best point of the sweep: batch {best.batch_size} × {best.seq_len}, {best.dtype}, engine {best.engine}"
    yield Number("best_tokens_per_s", best.tokens_per_s, "tokens/s", where, n=len(best.block_step_s))
    limit = floor_s(best, ceilings)
    share = limit / best.step_time_s if limit else None
    is_possible = share is not None and share <= 1
    yield Number(
        "best_floor_ratio",
        share if is_possible else None,
        "1",
        "least time that the measured ceilings allow, over the measured step time, at that point",
        reason=None if is_possible else "a ceiling is not known, or its reading was disturbed",
    )
    for of in ("measured", "datasheet"):
        share = mfu(best, ceilings, of=of)
        reason = None if share is not None else f"no {of} peak for this card and precision"
        if of == "measured" and share is not None and share > 1:
            # Something else used the machine while the ceiling was measured.
            share, reason = None, f"the step reached {number(share)} of the measured peak: that reading was disturbed"
        yield Number(f"best_mfu_{of}", share, "1", f"model FLOP/s at that point over the {of} peak", reason=reason)
    for row in rows:
        figures = spread(row.block_step_s)
        low, high, n = (figures.q1, figures.q3, figures.n) if figures else (None, None, None)
        yield Number(
            f"step_{row.batch_size}x{row.seq_len}_{row.dtype}_{row.engine}_s",
            row.step_time_s,
            "s",
            f"{words(row, ceilings)}; spread: quartiles",
            n=n,
            low=low,
            high=high,
            reason=None if figures else row.reason or row.outcome,
        )
    yield Number("sweep_points", len(rows), "points", f"{len(good)} measured, the others failed or did not fit")


def _product(shape: str) -> str:
    return f"{'square ' if len(set(shape.split(' × '))) == 1 else ''}product {shape}"

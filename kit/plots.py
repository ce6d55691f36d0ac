"""Figures: tables in, a matplotlib Figure out. Nothing is shown or saved here.

A title states what was found, a caption the GPU, the precision and n. Colours are Okabe and
Ito's, told apart by colour-blind readers; markers differ too, so a grey print still reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from kit.sweep.table import Ceilings, Row, floor_s
from kit.train.config import MODELS, adamw_step_bytes
from kit.train.steps import STEADY_FROM, KernelProfile, StepRecord, TelemetrySample, throughput
from kit.units import GiB, number, percent, seconds, spread

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
_SIZE = (8.0, 4.5)


def _figure(columns: int, title: str, caption: str):
    figure = Figure(figsize=_SIZE, dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(caption, fontsize=8, color="#555555")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def training(steps: Sequence[StepRecord], samples: Sequence[TelemetrySample], *, caption: str) -> Figure:
    """Loss and memory of a run: loss of each step, memory as torch counts it and as the driver sees it."""
    losses = [(step.step, step.loss) for step in steps if step.loss is not None]
    title = (
        f"Loss {number(losses[0][1], 4)} → {number(losses[-1][1], 4)} in {len(steps)} steps" if losses else "No loss"
    )
    torch_memory = [(s.started_s + s.step_time_s, s.memory_peak_bytes / GiB) for s in steps if s.memory_peak_bytes]
    driver_memory = [(s.at_s, s.memory_used_bytes / GiB) for s in samples if s.memory_used_bytes is not None]
    has_memory = bool(torch_memory or driver_memory)
    figure, (left, *others) = _figure(1 + has_memory, title, caption if has_memory else f"{caption}; no GPU memory")
    left.plot(*zip(*losses) if losses else ([], []), color=COLOURS[0], marker=MARKERS[0], markersize=4)
    left.set(xlabel="step", ylabel="loss (cross-entropy, nats per token)")
    for right in others:
        for points, label, colour, style in (
            (torch_memory, "allocated by torch, peak of the step", COLOURS[1], "s-"),
            (driver_memory, "in use, as the driver sees it", COLOURS[2], ".:"),
        ):
            if points:
                right.plot(*zip(*points), style, color=colour, label=label, markersize=4)
        right.legend(fontsize=8)
        right.set(xlabel="time since the first step (s)", ylabel="GPU memory (GiB)", ylim=(0, None))
    return figure


def step_times(steps: Sequence[StepRecord], *, caption: str) -> Figure:
    """The time of every step; the cold ones apart from the steady ones."""
    figures = throughput(steps)
    steady = figures.steady if figures else None
    title = f"First step {seconds(figures.first_step_s)}, then {seconds(steady.median)}" if steady else "Step times"
    figure, (axis,) = _figure(1, title, caption)
    for is_steady, label, colour, marker in (
        (False, "warm-up", COLOURS[1], "s"),
        (True, "steady", COLOURS[0], "o"),
    ):
        points = [(s.step, s.step_time_s * 1e3) for s in steps if (s.step >= STEADY_FROM) == is_steady]
        if points:
            axis.plot(*zip(*points), marker, color=colour, label=label)
    if steady:
        axis.axhline(steady.median * 1e3, color=COLOURS[0], linewidth=1, linestyle="--", label="steady median")
    axis.set(xlabel="step", ylabel="step time (ms)", ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


def sweep_throughput(rows: Sequence[Row], ceilings: Ceilings, *, caption: str) -> Figure:
    """Tokens a second against batch size, a line for each engine, sequence length and precision; the limit dashed."""
    best = max((row for row in rows if row.tokens_per_s), key=lambda row: row.tokens_per_s, default=None)
    title = (
        f"Best: {number(best.tokens_per_s)} tokens/s by {best.engine} at batch {best.batch_size} × {best.seq_len}, {best.dtype}"
        if best
        else "No point could be measured"
    )
    figure, (axis,) = _figure(1, title, caption)
    for label, line, colour, marker in _lines([row for row in rows if row.tokens_per_s]):
        _with_spread(axis, line, colour=colour, marker=marker, label=label)
        limit = [
            (row.batch_size, row.batch_size * row.seq_len / floor_s(row, ceilings))
            for row in line
            if floor_s(row, ceilings)
        ]
        if limit:
            axis.plot(*zip(*limit), "--", color=colour, linewidth=0.8, marker="_")
    for size in sorted({row.batch_size for row in rows if row.outcome == "oom"}):
        engines = sorted({row.engine for row in rows if row.outcome == "oom" and row.batch_size == size})
        axis.annotate(
            f" out of memory: {', '.join(engines)}", (size, 0), fontsize=7, rotation=90, va="bottom", ha="right"
        )
    axis.set(xlabel="batch size", ylabel="tokens/s (dashed: limit of this card)", ylim=(0, None))
    axis.yaxis.set_major_formatter("{x:,.0f}")
    _batch_axis(axis, rows)
    return figure


def _with_spread(axis, rows: Sequence[Row], *, colour: str, marker: str, label: str) -> None:
    """Median with its quartiles, and each block as a small point."""
    if not rows:
        return
    tokens = [row.batch_size * row.seq_len for row in rows]
    spreads = [spread(row.block_step_s) for row in rows]
    middle = [count / s.median for count, s in zip(tokens, spreads)]
    below = [m - count / s.q3 for m, count, s in zip(middle, tokens, spreads)]
    above = [count / s.q1 - m for m, count, s in zip(middle, tokens, spreads)]
    sizes = [row.batch_size for row in rows]
    axis.errorbar(sizes, middle, yerr=[below, above], color=colour, marker=marker, capsize=3, label=label)
    for row, count in zip(rows, tokens):
        axis.plot(
            [row.batch_size] * len(row.block_step_s),
            [count / s for s in row.block_step_s],
            ".",
            color=colour,
            markersize=3,
            alpha=0.5,
        )


def sweep_memory(rows: Sequence[Row], *, caption: str) -> Figure:
    """Peak memory against batch size, a line for each sequence length and precision."""
    known = [row for row in rows if row.peak_memory_bytes]
    top = max((row.peak_memory_bytes for row in known), default=None)
    title = f"Peak memory up to {top / GiB:.1f} GiB" if top else "GPU memory: none, this sweep ran on the CPU"
    figure, (axis,) = _figure(1, title, caption)
    for label, line, colour, marker in _lines(known):
        memory = [row.peak_memory_bytes / GiB for row in line]
        axis.plot([row.batch_size for row in line], memory, color=colour, marker=marker, label=label)
    if known:
        axis.set(xlabel="batch size", ylabel="peak memory allocated (GiB)", ylim=(0, None))
        _batch_axis(axis, known)
    else:
        _nothing(axis, "no GPU memory: this ran on the CPU")
    return figure


def _nothing(axis, text: str) -> None:
    axis.figure.set_size_inches(_SIZE[0], 1.2)
    axis.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    axis.set_axis_off()


def _lines(rows: Sequence[Row]) -> list[tuple[str, list[Row], str, str]]:
    """Label, rows, colour and marker of each line. A colour is an engine's; where there is one engine, each line's."""
    engines = sorted({row.engine for row in rows})
    kinds = sorted({(row.dtype, row.seq_len) for row in rows})
    has_engines, lines = len(engines) > 1, []
    for engine, (dtype, seq_len) in itertools.product(engines, kinds):
        line = [row for row in rows if (row.engine, row.dtype, row.seq_len) == (engine, dtype, seq_len)]
        if line:
            label = f"{engine}, " * has_engines + f"{dtype}, {seq_len} tokens a sample"
            colour = COLOURS[(engines.index(engine) if has_engines else len(lines)) % len(COLOURS)]
            lines.append(
                (label, sorted(line, key=lambda row: row.batch_size), colour, MARKERS[len(lines) % len(MARKERS)])
            )
    return lines


def _legend(axis) -> None:
    """Inside the axes, or beside them where it would cover what it explains."""
    if len(axis.get_legend_handles_labels()[1]) > 6:
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    else:
        axis.legend(fontsize=8)


def _batch_axis(axis, rows: Sequence[Row]) -> None:
    sizes = sorted({row.batch_size for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    _legend(axis)


def roofline(rows: Sequence[Row], ceilings: Ceilings, *, caption: str) -> Figure:
    """FLOP/s against FLOP a byte, every point under the roof of the measured copy and matrix-product rates.

    Bytes are the least a step moves for weights, gradients and optimizer (`adamw_step_bytes`);
    activations are left out, so that points stand too far right rather than too far left.
    """
    good = [row for row in rows if row.flop_per_s]
    best = max(good, key=lambda row: row.flop_per_s, default=None)
    title = (
        f"Best: {best.flop_per_s / 1e12:.3g} TFLOP/s by {best.engine} at {best.batch_size} × {best.seq_len}, "
        f"{best.dtype}"
        if best
        else "No point could be measured"
    )
    figure, (axis,) = _figure(1, title, caption)
    density = {
        row.point: row.flop_per_s * row.step_time_s / adamw_step_bytes(MODELS[row.model], row.dtype) for row in good
    }
    for label, line, colour, marker in _lines(good):
        heights = [row.flop_per_s for row in line]
        axis.plot([density[row.point] for row in line], heights, marker, color=colour, label=label)
    if good and ceilings.copy_bytes_per_s:
        left, right = min(density.values()) / 2, max(density.values()) * 2
        for dtype in sorted({row.dtype for row in good} & set(ceilings.matmul_flop_per_s)):
            rate = ceilings.matmul_flop_per_s[dtype]
            ridge = min(max(rate / ceilings.copy_bytes_per_s, left), right)
            heights = [min(rate, x * ceilings.copy_bytes_per_s) for x in (left, ridge, right)]
            axis.plot((left, ridge, right), heights, color="#555555", linewidth=1)
            axis.annotate(f"{dtype}, measured", (right, heights[-1]), fontsize=7, ha="right", va="bottom")
    axis.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP/byte)", ylabel="achieved FLOP/s")
    if good:
        _legend(axis)
    return figure


def sweep_step_times(rows: Sequence[Row], *, caption: str) -> Figure:
    """Step time of each measured point: its blocks as dots, the median as a bar across, one line a point."""
    good = sorted((row for row in rows if row.step_time_s), key=lambda row: -row.step_time_s)
    widest = max((spread(row.block_step_s) for row in good), key=lambda s: s.iqr / s.median, default=None)
    title = (
        f"Widest spread: IQR {percent(widest.iqr / widest.median)} of the median"
        if widest
        else "No point could be measured"
    )
    figure, (axis,) = _figure(1, title, caption)
    engines = sorted({row.engine for row in good})
    for height, row in enumerate(good):
        colour = COLOURS[engines.index(row.engine) % 6]
        axis.plot(
            [s * 1e3 for s in row.block_step_s],
            [height] * len(row.block_step_s),
            ".",
            color=colour,
            alpha=0.6,
        )
        axis.plot(row.step_time_s * 1e3, height, "|", color=colour, markersize=14)
    labels = [f"{row.engine} {row.batch_size} × {row.seq_len} {row.dtype}" for row in good]
    axis.set_yticks(range(len(good)), labels, fontsize=7)
    axis.set(xscale="log", xlabel="step time (ms)")
    return figure


_PARTS = ("matmul", "attention", "optimizer", "other", "no kernel running")


def where_time_goes(profiles: Mapping[str, KernelProfile], *, caption: str) -> Figure:
    """One warm step of each engine, by its name: kernel time by kind, and the time in which no kernel ran."""
    known = {name: profile for name, profile in profiles.items() if profile.groups and profile.step_time_s}
    bars = sorted(((name, _parts(profile)) for name, profile in known.items()), key=lambda bar: -sum(bar[1]))
    title = "No profile: kernels run on a GPU"
    if bars:
        (slow, most), (fast, least) = bars[0], bars[-1]
        title = f"No kernel runs for {percent(most[-1] / sum(most))} of a step by {slow}"
        title += f", for {percent(least[-1] / sum(least))} by {fast}" if fast != slow else ""
    figure, (axis,) = _figure(1, title, caption)
    for height, (_, parts) in enumerate(bars):
        left = 0.0
        for index, value in enumerate(parts):
            is_gap = index == len(_PARTS) - 1
            axis.barh(
                height,
                value * 1e3,
                left=left * 1e3,
                color="#DDDDDD" if is_gap else COLOURS[index],
                hatch="///" if is_gap else None,
                edgecolor="white",
                label=_PARTS[index] if not height else None,
            )
            left += value
        axis.annotate(f" {seconds(left)}", (left * 1e3, height), fontsize=8, va="center")
    axis.set_yticks(range(len(bars)), [name for name, _ in bars])
    if bars:
        axis.set(xlabel="time of one step (ms)", xlim=(0, 1.15e3 * sum(bars[0][1])))
        axis.legend(fontsize=8)
    else:
        _nothing(axis, "no kernels: this ran on the CPU, or the profiler saw none")
    return figure


def _parts(profile: KernelProfile) -> list[float]:
    """Seconds of each of `_PARTS`. The kernels are the profiled step's, the whole is the step that nothing slowed."""
    named = [profile.groups.get(part, 0.0) for part in _PARTS[:3]]
    total = sum(profile.groups.values())
    return [*named, total - sum(named), max(0.0, profile.step_time_s - total)]

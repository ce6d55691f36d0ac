"""Figures: tables in, a matplotlib Figure out. Nothing is shown or saved here.

A title states what was found, a caption the GPU, the precision and n. Colours are Okabe and
Ito's, told apart by colour-blind readers; markers differ too, so a grey print still reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from kit.sweep.table import Ceilings, Row, floor_s
from kit.train.config import MODELS, adamw_step_bytes
from kit.train.steps import STEADY_FROM, KernelProfile, StepRecord, TelemetrySample, throughput
from kit.units import GiB, number, percent, quantity, seconds, spread

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
GREY = "#555555"
_SIZE = (8.0, 4.5)


def figure_of(columns: int, title: str, caption: str) -> tuple[Figure, Sequence[Any]]:
    """A figure with its axes side by side."""
    figure = Figure(figsize=_SIZE, dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(caption, fontsize=8, color=GREY)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def look(colour: int, marker: int | None = None) -> dict[str, str]:
    """Colour and marker of a line, by its number."""
    marker = colour if marker is None else marker
    return {"color": COLOURS[colour % len(COLOURS)], "marker": MARKERS[marker % len(MARKERS)]}


def rates(axis, places: Sequence[float], amounts: Sequence[float], times: Sequence[Sequence[float]], **style) -> None:
    """A line of rates, amounts over times: the median at each place with its quartiles, each time a small point."""
    spreads = [spread(one) for one in times]
    middle = [amount / s.median for amount, s in zip(amounts, spreads)]
    below = [m - amount / s.q3 for m, amount, s in zip(middle, amounts, spreads)]
    above = [amount / s.q1 - m for m, amount, s in zip(middle, amounts, spreads)]
    axis.errorbar(places, middle, yerr=[below, above], markersize=5, capsize=3, **style)
    for place, amount, one in zip(places, amounts, times):
        dots = [amount / time_s for time_s in one]
        axis.plot([place] * len(dots), dots, ".", color=style["color"], markersize=3, alpha=0.5)


def bars(axis, names: Sequence[str], parts: Sequence[Sequence[float]], labels: Sequence[str], styles) -> list[float]:
    """A bar a name, its parts in seconds one behind the other; styles: colour and hatch of each. Returns its ends."""
    ends = [0.0] * len(names)
    for label, (colour, hatch), widths in zip(labels, styles, zip(*parts)):
        if any(widths):
            # White is the hatch. No edge: it would cover a part as thin as one percent.
            style = {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0, "label": label}
            axis.barh(range(len(names)), [1e3 * width for width in widths], left=[1e3 * end for end in ends], **style)
        ends = [end + width for end, width in zip(ends, widths)]
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="time of one step (ms)", xlim=(0, 1.2e3 * max(ends)))
    return ends


def nothing(axis, text: str) -> None:
    """What stands in place of a picture where there is nothing to draw."""
    if len(axis.figure.axes) == 1:
        axis.figure.set_size_inches(_SIZE[0], 1.2)
    axis.text(0.5, 0.5, text, ha="center", va="center", wrap=True, transform=axis.transAxes)
    axis.set_axis_off()


def training(steps: Sequence[StepRecord], samples: Sequence[TelemetrySample], *, caption: str) -> Figure:
    """Loss and memory of a run: loss of each step, memory as torch counts it and as the driver sees it."""
    losses = [(step.step, step.loss) for step in steps if step.loss is not None]
    title = "No loss"
    if losses:
        title = f"Loss {number(losses[0][1], 4)} → {number(losses[-1][1], 4)} in {len(steps)} steps"
    torch_memory = [(s.started_s + s.step_time_s, s.memory_peak_bytes / GiB) for s in steps if s.memory_peak_bytes]
    driver_memory = [(s.at_s, s.memory_used_bytes / GiB) for s in samples if s.memory_used_bytes is not None]
    has_memory = bool(torch_memory or driver_memory)
    figure, (left, *others) = figure_of(1 + has_memory, title, caption if has_memory else f"{caption}; no GPU memory")
    left.plot(*zip(*losses) if losses else ([], []), markersize=4, **look(0))
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
    figure, (axis,) = figure_of(1, title, caption)
    for is_steady, label in ((False, "warm-up"), (True, "steady")):
        points = [(s.step, s.step_time_s * 1e3) for s in steps if (s.step >= STEADY_FROM) == is_steady]
        if points:
            axis.plot(*zip(*points), linestyle="", label=label, **look(not is_steady))
    if steady:
        axis.axhline(steady.median * 1e3, color=COLOURS[0], linewidth=1, linestyle="--", label="steady median")
    axis.set(xlabel="step", ylabel="step time (ms)", ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


def _best(rows: Sequence[Row], name: str, text: Callable[[float], str]) -> str:
    """The title of a figure of a sweep: its best point by the figure `name`."""
    best = max((row for row in rows if getattr(row, name)), key=lambda row: getattr(row, name), default=None)
    if best is None:
        return "No point could be measured"
    return f"Best: {text(getattr(best, name))} by {best.engine} at {best.batch_size} × {best.seq_len}, {best.dtype}"


def sweep_throughput(rows: Sequence[Row], ceilings: Ceilings, *, caption: str) -> Figure:
    """Tokens a second against batch size, a line for each engine, sequence length and precision; the limit dashed."""
    title = _best(rows, "tokens_per_s", lambda rate: f"{number(rate)} tokens/s")
    figure, (axis,) = figure_of(1, title, caption)
    for line, style in _lines([row for row in rows if row.tokens_per_s]):
        sizes, tokens = [row.batch_size for row in line], [row.tokens for row in line]
        rates(axis, sizes, tokens, [row.block_step_s for row in line], **style)
        limits = [(row.batch_size, row.tokens / floor_s(row, ceilings)) for row in line if floor_s(row, ceilings)]
        if limits:
            axis.plot(*zip(*limits), "--", color=style["color"], linewidth=0.8, marker="_")
    lost = sorted({(row.batch_size, row.engine) for row in rows if row.outcome == "oom"})
    for size, group in itertools.groupby(lost, key=lambda one: one[0]):
        said = f" out of memory: {', '.join(engine for _, engine in group)}"
        axis.annotate(said, (size, 0), fontsize=7, rotation=90, va="bottom", ha="right")
    axis.set(ylabel="tokens/s (dashed: limit of this card)", ylim=(0, None))
    axis.yaxis.set_major_formatter("{x:,.0f}")
    _batch_axis(axis, rows)
    return figure


def sweep_memory(rows: Sequence[Row], *, caption: str) -> Figure:
    """Peak memory against batch size, a line for each sequence length and precision."""
    known = [row for row in rows if row.peak_memory_bytes]
    top = max((row.peak_memory_bytes for row in known), default=None)
    title = f"Peak memory up to {top / GiB:.1f} GiB" if top else "GPU memory: none, this sweep ran on the CPU"
    figure, (axis,) = figure_of(1, title, caption)
    for line, style in _lines(known):
        axis.plot([row.batch_size for row in line], [row.peak_memory_bytes / GiB for row in line], **style)
    if known:
        axis.set(ylabel="peak memory allocated (GiB)", ylim=(0, None))
        _batch_axis(axis, known)
    else:
        nothing(axis, "no GPU memory: this ran on the CPU")
    return figure


def _lines(rows: Sequence[Row]) -> list[tuple[list[Row], dict[str, str]]]:
    """The rows of each line, and how it looks. A colour is an engine's; where there is one engine, each line's."""
    engines, lines = sorted({row.engine for row in rows}), []
    kinds = sorted({(row.dtype, row.seq_len) for row in rows})
    for engine, kind in itertools.product(engines, kinds):
        line = [row for row in rows if (row.engine, row.dtype, row.seq_len) == (engine, *kind)]
        if line:
            label = f"{engine}, " * (len(engines) > 1) + f"{kind[0]}, {kind[1]} tokens a sample"
            style = look(engines.index(engine) if len(engines) > 1 else len(lines), len(lines))
            lines.append((sorted(line, key=lambda row: row.batch_size), {"label": label, **style}))
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
    axis.set_xlabel("batch size")
    _legend(axis)


def roofline(rows: Sequence[Row], ceilings: Ceilings, *, caption: str) -> Figure:
    """FLOP/s against FLOP a byte, every point under the roof of the measured copy and matrix-product rates.

    Bytes are the least a step moves for weights, gradients and optimizer (`adamw_step_bytes`);
    activations are left out, so that points stand too far right rather than too far left.
    """
    good = [row for row in rows if row.flop_per_s]
    figure, (axis,) = figure_of(1, _best(good, "flop_per_s", lambda rate: quantity(rate, "FLOP/s")), caption)
    densities: list[float] = []
    for line, style in _lines(good):
        own = [row.flop_per_s * row.step_time_s / adamw_step_bytes(MODELS[row.model], row.dtype) for row in line]
        axis.plot(own, [row.flop_per_s for row in line], linestyle="", **style)
        densities += own
    if good and ceilings.copy_bytes_per_s:
        left, right = min(densities) / 2, max(densities) * 2
        for dtype in sorted({row.dtype for row in good} & set(ceilings.matmul_flop_per_s)):
            rate = ceilings.matmul_flop_per_s[dtype]
            ridge = min(max(rate / ceilings.copy_bytes_per_s, left), right)
            heights = [min(rate, x * ceilings.copy_bytes_per_s) for x in (left, ridge, right)]
            axis.plot((left, ridge, right), heights, color=GREY, linewidth=1)
            axis.annotate(f"{dtype}, measured", (right, heights[-1]), fontsize=7, ha="right", va="bottom")
    axis.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP/byte)", ylabel="achieved FLOP/s")
    if good:
        _legend(axis)
    return figure


def sweep_step_times(rows: Sequence[Row], *, caption: str) -> Figure:
    """Step time of each measured point: its blocks as dots, the median as a bar across, one line a point."""
    good = sorted((row for row in rows if row.step_time_s), key=lambda row: -row.step_time_s)
    widest = max((one.iqr / one.median for one in (spread(row.block_step_s) for row in good)), default=None)
    title = f"Widest spread: IQR {percent(widest)} of the median" if good else "No point could be measured"
    figure, (axis,) = figure_of(1, title, caption)
    engines = sorted({row.engine for row in good})
    for height, row in enumerate(good):
        colour = look(engines.index(row.engine))["color"]
        dots = [s * 1e3 for s in row.block_step_s]
        axis.plot(dots, [height] * len(dots), ".", color=colour, alpha=0.6)
        axis.plot(row.step_time_s * 1e3, height, "|", color=colour, markersize=14)
    labels = [f"{row.engine} {row.batch_size} × {row.seq_len} {row.dtype}" for row in good]
    axis.set_yticks(range(len(good)), labels, fontsize=7)
    axis.set(xscale="log", xlabel="step time (ms)")
    return figure


_PARTS = ("matmul", "attention", "optimizer", "other", "no kernel running")


def where_time_goes(profiles: Mapping[str, KernelProfile], *, caption: str) -> Figure:
    """One warm step of each engine, by its name: kernel time by kind, and the time in which no kernel ran."""
    known = {name: profile for name, profile in profiles.items() if profile.groups and profile.step_time_s}
    found = sorted(((name, _parts(profile)) for name, profile in known.items()), key=lambda bar: -sum(bar[1]))
    title = "No profile: kernels run on a GPU"
    if found:
        (slow, most), (fast, least) = found[0], found[-1]
        title = f"No kernel runs for {percent(most[-1] / sum(most))} of a step by {slow}"
        title += f", for {percent(least[-1] / sum(least))} by {fast}" if fast != slow else ""
    figure, (axis,) = figure_of(1, title, caption)
    if not found:
        nothing(axis, "no kernels: this ran on the CPU, or the profiler saw none")
        return figure
    styles = [*((colour, "") for colour in COLOURS[: len(_PARTS) - 1]), ("#DDDDDD", "///")]
    ends = bars(axis, [name for name, _ in found], [parts for _, parts in found], _PARTS, styles)
    for height, end in enumerate(ends):
        axis.annotate(f" {seconds(end)}", (end * 1e3, height), fontsize=8, va="center")
    axis.legend(fontsize=8)
    return figure


def _parts(profile: KernelProfile) -> list[float]:
    """Seconds of each of `_PARTS`. The kernels are the profiled step's, the whole is the step that nothing slowed."""
    named = [profile.groups.get(part, 0.0) for part in _PARTS[:3]]
    total = sum(profile.groups.values())
    return [*named, total - sum(named), max(0.0, profile.step_time_s - total)]

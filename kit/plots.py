"""Figures: tables in, a matplotlib Figure out. Nothing is shown or saved here.

A title states what was found, a caption the GPU, the precision and n. Colours are Okabe and
Ito's, told apart by colour-blind readers; markers differ too, so a grey print still reads.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from kit.sweep.table import Ceilings, Row, floor_s, mfu
from kit.train.config import ENGINES, MODELS, adamw_step_bytes
from kit.train.steps import STEADY_FROM, KernelProfile, StepRecord, TelemetrySample, throughput
from kit.units import GiB, number, percent, quantity, seconds, spread

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
GREY = "#555555"
_SIZE = (8.0, 4.5)


def figure_of(panels: int, title: str, caption: str, *, most: int = 2) -> tuple[Figure, Sequence[Any]]:
    """A figure with its axes, at most `most` side by side."""
    columns = min(panels, most)
    lines = math.ceil(panels / columns)
    figure = Figure(figsize=(_SIZE[0], _SIZE[1] * (1 + 0.6 * (lines - 1))), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(caption, fontsize=8, color=GREY)
    return figure, list(figure.subplots(lines, columns, squeeze=False).flat)


def look(number: int) -> dict[str, str]:
    """Colour and marker of a line, by its number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


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
    """A run: the loss and the time of each step, and memory as torch counts it and as the driver sees it."""
    losses = [(step.step, step.loss) for step in steps if step.loss is not None]
    figures = throughput(steps)
    title = f"Loss {number(losses[0][1], 4)} → {number(losses[-1][1], 4)}" if losses else "No loss"
    if figures and figures.steady:
        title += f"; first step {seconds(figures.first_step_s)}, then {seconds(figures.steady.median)}"
    memory = {
        "torch, peak of the step": [
            (s.started_s + s.step_time_s, s.memory_peak_bytes / GiB) for s in steps if s.memory_peak_bytes
        ],
        "the driver": [(s.at_s, s.memory_used_bytes / GiB) for s in samples if s.memory_used_bytes is not None],
    }
    figure, (loss, times, *others) = figure_of(2 + any(memory.values()), title, caption, most=3)
    loss.plot(*zip(*losses) if losses else ([], []), markersize=4, **look(0))
    loss.set(xlabel="step", ylabel="loss (cross-entropy, nats per token)")
    cold = [(s.step, s.step_time_s * 1e3) for s in steps if s.step < STEADY_FROM]
    warm = [(s.step, s.step_time_s * 1e3) for s in steps if s.step >= STEADY_FROM]
    _labelled(times, {"warm-up": cold, "steady": warm}, lines="")
    times.set(xlabel="step", ylabel="step time (ms)", ylim=(0, None))
    for axis in others:
        _labelled(axis, memory, lines="-")
        axis.set(xlabel="time since the first step (s)", ylabel="GPU memory (GiB)", ylim=(0, None))
    return figure


def _labelled(axis, series: Mapping[str, Sequence], *, lines: str) -> None:
    for index, (label, points) in enumerate(series.items(), 1):
        if points:
            axis.plot(*zip(*points), linestyle=lines, label=label, markersize=3, **look(index))
    axis.legend(fontsize=8)


def sweep_throughput(rows: Sequence[Row], ceilings: Ceilings, *, caption: str) -> Figure:
    """Tokens a second, a panel for each precision and length, an engine a line or a bar; dashed: what the card allows."""
    best = max((row for row in rows if row.tokens_per_s), key=lambda row: row.tokens_per_s, default=None)
    title = "No point could be measured"
    if best:
        shape = f"{best.batch_size} × {best.seq_len}, {best.dtype}"
        title = f"{best.engine} is fastest: {number(best.tokens_per_s)} tokens/s at {shape}"

    def limit(row: Row) -> float | None:
        floor = floor_s(row, ceilings)
        return row.batch_size * row.seq_len / floor if floor else None

    return _panels(rows, lambda row: row.tokens_per_s, title, "tokens/s", caption, limit=limit)


def sweep_memory(rows: Sequence[Row], *, caption: str) -> Figure:
    """Peak memory, a panel for each precision and length, an engine a line or a bar."""
    top = max((row.peak_memory_bytes for row in rows if row.peak_memory_bytes), default=None)
    if not top:
        figure, (axis,) = figure_of(1, "GPU memory: none, this sweep ran on the CPU", caption)
        nothing(axis, "no GPU memory: this ran on the CPU")
        return figure
    title = f"The largest step holds {top / GiB:.1f} GiB"
    return _panels(rows, lambda row: (row.peak_memory_bytes or 0) / GiB or None, title, "peak memory (GiB)", caption)


def _panels(rows: Sequence[Row], value, title: str, what: str, caption: str, *, limit=None) -> Figure:
    """Small multiples over one logarithmic axis. value, limit: of a row; None where there is none."""
    kinds = sorted({(row.dtype, row.seq_len) for row in rows if value(row)})
    figure, axes = figure_of(max(1, len(kinds)), title, caption, most=3)
    for axis, (dtype, seq_len) in zip(axes, kinds):
        here = sorted((r for r in rows if (r.dtype, r.seq_len) == (dtype, seq_len)), key=lambda row: row.batch_size)
        sizes = sorted({row.batch_size for row in here})
        axis.set_title(f"{dtype}, {f'{sizes[0]} × ' if len(sizes) == 1 else 'batch size × '}{seq_len}", fontsize=9)
        (_bars if len(sizes) == 1 else _curves)(axis, here, value, limit, what)
    for axis in axes[len(kinds) :] if kinds else axes[:1]:
        nothing(axis, "" if kinds else "no point could be measured")
    return figure


def _bars(axis, rows: Sequence[Row], value, limit, what: str) -> None:
    """One batch size: an engine a bar with its figure beside it, the limit a dashed line."""
    rows = sorted(rows, key=lambda row: value(row) or 0)
    for height, row in enumerate(rows):
        found = value(row)
        axis.barh(height, found or 0, color=_look(row.engine)["color"], height=0.7)
        axis.annotate(f" {number(found) if found else _why_not(row)}", (found or 0, height), fontsize=8, va="center")
    axis.set_yticks(range(len(rows)), [row.engine for row in rows], fontsize=8)
    ceiling = limit(rows[0]) if limit else None
    if ceiling:
        axis.axvline(ceiling, color=GREY, linestyle="--", linewidth=1)
        axis.annotate("limit ", (ceiling, len(rows) - 0.45), fontsize=8, ha="right", color=GREY)
    most = max([ceiling or 0, *(value(row) or 0 for row in rows)])
    axis.set(xlim=(0, 1.3 * most), xlabel=what, ylim=(-0.6, len(rows) - 0.1))
    axis.xaxis.set_major_formatter("{x:,.6g}")
    axis.tick_params(axis="x", labelsize=8, rotation=20)


def _curves(axis, rows: Sequence[Row], value, limit, what: str) -> None:
    """Several batch sizes: an engine a line whose name stands at its end, the limit a dashed line."""
    ends = []
    for engine in sorted({row.engine for row in rows}):
        line = [(row.batch_size, value(row)) for row in rows if row.engine == engine and value(row)]
        missing = [row for row in rows if row.engine == engine and not value(row)]
        name = f"{engine}, {_why_not(missing[0])} at {missing[0].batch_size}" if missing else engine
        if line:
            axis.plot(*zip(*line), markersize=5, **_look(engine))
            ends.append((line[-1][1], name, _look(engine)["color"]))
    ceiling = [(row.batch_size, limit(row)) for row in rows if limit and limit(row)]
    if ceiling:
        axis.plot(*zip(*ceiling), color=GREY, linestyle="--", linewidth=1)
        ends.append((ceiling[-1][1], "limit", GREY))
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel=what)
    sizes = sorted({row.batch_size for row in rows})
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:,.6g}")
    axis.minorticks_off()
    axis.tick_params(labelsize=8)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * 1.2)
    # Names keep a line's height of distance, from the lowest up.
    least = low
    for end, name, colour in sorted(ends):
        at = max(end, least)
        axis.annotate(name, (1.02, at), xycoords=("axes fraction", "data"), fontsize=8, color=colour, va="center")
        least = at * (high / low) ** 0.06


def _why_not(row: Row) -> str:
    return {"oom": "OOM", "missing": "not here"}.get(row.outcome, "no figure")


def _look(engine: str) -> dict[str, str]:
    """An engine's colour and marker, the same in every figure."""
    return look(ENGINES.index(engine))


def roofline(rows: Sequence[Row], ceilings: Ceilings, *, caption: str) -> Figure:
    """FLOP/s against FLOP a byte, the best engine of each shape by name, under the measured roofs.

    Bytes are the least a step moves for weights, gradients and optimizer (`adamw_step_bytes`);
    activations are left out, so that points stand too far right rather than too far left.
    """
    good = sorted((row for row in rows if row.flop_per_s), key=lambda row: -row.flop_per_s)
    title = "No point could be measured"
    if good:
        of_roof = mfu(good[0], ceilings)
        share = f", {percent(of_roof)} of the measured roof" if of_roof else ""
        title = f"{good[0].engine} reaches {quantity(good[0].flop_per_s, 'FLOP/s')}{share}"
    figure, (axis,) = figure_of(1, title, caption)
    intensities, labels = [], []
    names: dict[tuple, list[str]] = collections.defaultdict(list)
    for row in good:
        x = row.flop_per_s * row.step_time_s / adamw_step_bytes(MODELS[row.model], row.dtype)
        intensities.append(x)
        axis.plot(x, row.flop_per_s, linestyle="", markersize=6, **_look(row.engine))
        # Shapes of the same intensity share a label, at the best of them.
        here = names[row.dtype, round(10 * math.log10(x))]
        shape = f"{row.batch_size} × {row.seq_len}"
        if not here:
            labels.append((x, row, here))
        if shape not in here:
            here.append(shape)
    for x, row, shapes in labels:
        name = f"{row.engine}, {row.dtype} {', '.join(shapes)}"
        axis.annotate(name, (x, row.flop_per_s), fontsize=8, xytext=(8, 0), textcoords="offset points", va="center")
    ends = min(intensities, default=1) / 10, max(intensities, default=1) * 10
    for dtype in sorted({row.dtype for row in good} & set(ceilings.matmul_flop_per_s)):
        rate, copy = ceilings.matmul_flop_per_s[dtype], ceilings.copy_bytes_per_s
        if copy:
            xs = sorted((*ends, min(max(rate / copy, ends[0]), ends[1])))
            axis.plot(xs, [min(rate, x * copy) for x in xs], color=GREY, linewidth=1)
            at = (ends[1], min(rate, ends[1] * copy))
            axis.annotate(f"{dtype}: {quantity(rate, 'FLOP/s')} measured", at, fontsize=8, ha="right", va="bottom")
    axis.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP/byte)", ylabel="achieved FLOP/s")
    for engine in sorted({row.engine for row in good}):
        axis.plot([], [], linestyle="", label=engine, **_look(engine))
    if good:
        axis.legend(fontsize=8, loc="lower right")
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
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(_PARTS), frameon=False)
    return figure


def _parts(profile: KernelProfile) -> list[float]:
    """Seconds of each of `_PARTS`. The kernels are the profiled step's, the whole is the step that nothing slowed."""
    named = [profile.groups.get(part, 0.0) for part in _PARTS[:3]]
    total = sum(profile.groups.values())
    return [*named, total - sum(named), max(0.0, profile.step_time_s - total)]

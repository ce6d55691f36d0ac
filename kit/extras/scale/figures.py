"""Figures of several GPUs: rows in, a matplotlib Figure out. Nothing is shown or saved here.

The rules are those of `kit.plots`: a title states what was found, a caption the GPU, the precision and n;
raw points are drawn where they are few; colours are Okabe and Ito's, and markers and hatches differ too.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from kit.extras.scale.ranks import MODES, AllReduce, ScaleRow, Scaling, sentence, series
from kit.plots import COLOURS, MARKERS, _figure
from kit.units import memory, percent, spread

_GREY = "#555555"
_EXPOSED, _NOT_SPLIT = COLOURS[1], "#999999"


def scaling(scaling: Scaling, *, caption: str) -> Figure:
    """Tokens a second against GPUs beside the ideal line, and where the time of each step goes."""
    device = scaling.device_name
    title = scaling.sentence.removeprefix(f"{device}: ").replace(f" on {device}", "", 1)
    figure, (left, right) = _figure(2, title.rstrip("."), caption)
    _against_ideal(left, scaling)
    _where_time_goes(right, [row for row in scaling.rows if row.outcome == "ok"])
    return figure


def _against_ideal(axis, scaling: Scaling) -> None:
    counts = sorted({row.world_size for row in scaling.rows})
    base = scaling.base
    if base and len(counts) > 1:
        ideal = [count * base.tokens_per_s for count in counts]
        axis.plot(counts, ideal, "--", color=_GREY, linewidth=1, label="ideal: N × one")
    for index, mode in enumerate(MODES):
        rows = series(scaling.rows, mode)
        if any(row.mode == mode and row.world_size > 1 for row in rows):
            _with_blocks(axis, rows, colour=COLOURS[index], marker=MARKERS[index], label=mode)
    if counts == [1] and base:
        alone = "one rank, nothing to compare with"
        _with_blocks(axis, [base], colour=COLOURS[0], marker=MARKERS[0], label=alone)
    for row in scaling.rows:
        if row.outcome != "ok":
            said = f"{row.mode}: {'out of memory' if row.outcome == 'oom' else row.outcome}"
            axis.annotate(said, (row.world_size, 0), fontsize=7, rotation=90, ha="center", va="bottom")
    highest = max((row.tokens_per_s for row in scaling.rows if row.tokens_per_s), default=None)
    axis.set(xlabel="ranks", ylabel="tokens/s of all ranks", xlim=(0, max(counts, default=1) + 0.5))
    if highest:
        axis.set_ylim(0, max(axis.get_ylim()[1], highest * 1.1))
    else:
        axis.set_yticks([])
    axis.set_xticks(counts)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8, loc="upper left" if len(counts) > 1 else "lower left")


def _with_blocks(axis, rows: Sequence[ScaleRow], *, colour: str, marker: str, label: str) -> None:
    """Medians joined by a line, quartiles as bars, each block a small point."""
    for row in rows:
        rates = [_tokens(row) / step_s for step_s in row.block_step_s]
        axis.plot([row.world_size] * len(rates), rates, ".", color=colour, markersize=3, alpha=0.5)
    spreads = [spread(row.block_step_s) for row in rows]
    below = [row.tokens_per_s - _tokens(row) / s.q3 for row, s in zip(rows, spreads)]
    above = [_tokens(row) / s.q1 - row.tokens_per_s for row, s in zip(rows, spreads)]
    counts, middle = [row.world_size for row in rows], [row.tokens_per_s for row in rows]
    axis.errorbar(counts, middle, yerr=[below, above], color=colour, marker=marker, markersize=5, capsize=3,
                  label=label)  # fmt: skip


def _tokens(row: ScaleRow) -> int:
    """Positions that one step trains on, of all GPUs."""
    return row.world_size * row.batch_size * row.seq_len


def _where_time_goes(axis, rows: Sequence[ScaleRow]) -> None:
    """One bar a row, the first on top: computing, then the exchange that it does not hide."""
    parts = [_parts(row) for row in rows]
    heights = range(len(rows))
    begins = [0.0] * len(rows)
    for name, colour, hatch in (("compute", COLOURS[0], ""), ("exposed communication", _EXPOSED, "///"),
                                ("not split", _NOT_SPLIT, "...")):  # fmt: skip
        widths = [part.get(name, 0.0) * 1e3 for part in parts]
        if any(widths):
            # White is the hatch. No edge: it would cover a part as thin as one percent.
            style = {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
            axis.barh(heights, widths, left=begins, label=name, **style)
        begins = [begin + width for begin, width in zip(begins, widths)]
    for height, part, end in zip(heights, parts, begins):
        share = part.get("exposed communication")
        if share is not None:
            axis.annotate(f" {percent(share * 1e3 / end)}", (end, height), fontsize=8, va="center")
    axis.set_yticks(heights, [_name(row) for row in rows])
    axis.set_ylim(max(len(rows), 3) - 0.5, -0.5)
    axis.set(xlabel="time of one step (ms)", xlim=(0, max(begins, default=1.0) * 1.2))
    if rows:
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)
    else:
        _say(axis, "nothing measured")


def _say(axis, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)


def _parts(row: ScaleRow) -> dict[str, float]:
    """The median step time by what it is spent on, in seconds."""
    if row.world_size == 1:
        return {"compute": row.step_time_s}
    if row.exposed_s is None:
        return {"not split": row.step_time_s}
    exposed = min(max(0.0, row.exposed_s), row.step_time_s)
    return {"compute": row.step_time_s - exposed, "exposed communication": exposed}


def _name(row: ScaleRow) -> str:
    return "1 rank" if row.world_size == 1 else f"{row.mode}, {row.world_size} ranks"


def all_reduce(rows: Sequence[AllReduce], *, caption: str) -> Figure:
    """Bus bandwidth against size, a line for each number of ranks."""
    figure, (axis,) = _figure(1, sentence(rows).rstrip("."), caption)
    good = [row for row in rows if row.world_size > 1 and row.times_s]
    for index, count in enumerate(sorted({row.world_size for row in good})):
        line = sorted((row for row in good if row.world_size == count), key=lambda row: row.size_bytes)
        colour = COLOURS[index % 6]
        _bandwidths(axis, line, colour=colour, marker=MARKERS[index % 6])
    if not good:
        _say(axis, "one GPU: nothing to all-reduce with")
        axis.set_axis_off()
        return figure
    sizes = sorted({row.size_bytes for row in good})
    axis.set_xscale("log", base=2)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(sizes, [memory(size) for size in sizes], rotation=30, ha="right", fontsize=8)
    axis.set(xlabel="size of the tensor, float32", ylabel="bus bandwidth (GB/s)", ylim=(0, None))
    axis.legend(fontsize=8, loc="lower right")
    return figure


def _bandwidths(axis, line: Sequence[AllReduce], *, colour: str, marker: str) -> None:
    """Medians with quartiles; each all-reduce a small point."""
    middle = [row.bus_bytes_per_s / 1e9 for row in line]
    spreads = [spread(row.times_s) for row in line]
    below = [m - m * s.median / s.q3 for m, s in zip(middle, spreads)]
    above = [m * s.median / s.q1 - m for m, s in zip(middle, spreads)]
    for row, m in zip(line, middle):
        rates = [m * row.time_s / time_s for time_s in row.times_s]
        axis.plot([row.size_bytes] * len(rates), rates, ".", color=colour, markersize=3, alpha=0.5)
    sizes = [row.size_bytes for row in line]
    axis.errorbar(sizes, middle, yerr=[below, above], color=colour, marker=marker, capsize=3,
                  label=f"{line[0].world_size} ranks, measured")  # fmt: skip

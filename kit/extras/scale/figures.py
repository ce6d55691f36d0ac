"""Figures of several GPUs: rows in, a matplotlib Figure out. Nothing is shown or saved here.

The rules are those of `kit.plots`: a title states what was found, a caption the GPU, the precision and n;
raw points are drawn where they are few; colours are Okabe and Ito's, and markers and hatches differ too.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from kit.extras.scale.ranks import MODES, AllReduce, ScaleRow, Scaling, sentence
from kit.plots import COLOURS, GREY, bars, figure_of, look, nothing, rates
from kit.units import memory, percent

_PARTS = ("compute", "exposed communication", "not split")
_STYLES = ((COLOURS[0], ""), (COLOURS[1], "///"), ("#999999", "..."))


def scaling(scaling: Scaling, *, caption: str) -> Figure:
    """Tokens a second against GPUs beside the ideal line, and where the time of each step goes."""
    device = scaling.device_name
    title = scaling.sentence.removeprefix(f"{device}: ").replace(f" on {device}", "", 1)
    figure, (left, right) = figure_of(2, title.rstrip("."), caption)
    _against_ideal(left, scaling)
    good = [row for row in scaling.rows if row.outcome == "ok"]
    if not good:
        nothing(right, "nothing measured")
        return figure
    names = ["1 rank" if row.world_size == 1 else f"{row.mode}, {row.world_size} ranks" for row in good]
    ends = bars(right, names, list(map(_parts, good)), _PARTS, _STYLES)
    for height, (row, end) in enumerate(zip(good, ends)):
        if row.world_size > 1 and row.exposed_s is not None:
            right.annotate(f" {percent(_parts(row)[1] / end)}", (end * 1e3, height), fontsize=8, va="center")
    # The first row on top.
    right.set_ylim(max(len(good), 3) - 0.5, -0.5)
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)
    return figure


def _against_ideal(axis, scaling: Scaling) -> None:
    counts, base = sorted({row.world_size for row in scaling.rows}), scaling.base
    if base and len(counts) > 1:
        ideal = [count * base.tokens_per_s for count in counts]
        axis.plot(counts, ideal, "--", color=GREY, linewidth=1, label="ideal: N × one")
    for index, mode in enumerate(MODES):
        rows = scaling.series(mode)
        if len(rows) > 1 or (counts == [1] and index == 0):
            label = mode if len(counts) > 1 else "one rank, nothing to compare with"
            sizes, tokens = [row.world_size for row in rows], [row.tokens for row in rows]
            rates(axis, sizes, tokens, [row.block_step_s for row in rows], label=label, **look(index))
    for row in scaling.rows:
        if row.outcome != "ok":
            said = f"{row.mode}: {'out of memory' if row.outcome == 'oom' else row.outcome}"
            axis.annotate(said, (row.world_size, 0), fontsize=7, rotation=90, ha="center", va="bottom")
    highest = max((row.tokens_per_s for row in scaling.rows if row.tokens_per_s), default=None)
    axis.set(xlabel="ranks", ylabel="tokens/s of all ranks", xlim=(0, max(counts, default=1) + 0.5))
    axis.set_xticks(counts)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    if highest:
        axis.set_ylim(0, max(axis.get_ylim()[1], highest * 1.1))
        axis.legend(fontsize=8, loc="upper left" if len(counts) > 1 else "lower left")
    else:
        axis.set_yticks([])


def _parts(row: ScaleRow) -> list[float]:
    """Seconds of the median step by what they are spent on, as in `_PARTS`."""
    if row.world_size > 1 and row.exposed_s is None:
        return [0.0, 0.0, row.step_time_s]
    exposed_s = min(max(0.0, row.exposed_s or 0.0), row.step_time_s)
    return [row.step_time_s - exposed_s, exposed_s, 0.0]


def all_reduce(rows: Sequence[AllReduce], *, caption: str) -> Figure:
    """Bus bandwidth against size, a line for each number of ranks."""
    figure, (axis,) = figure_of(1, sentence(rows).rstrip("."), caption)
    good = sorted((row for row in rows if row.bus_bytes_per_s), key=lambda row: row.size_bytes)
    if not good:
        nothing(axis, "one GPU: nothing to all-reduce with")
        return figure
    for index, count in enumerate(sorted({row.world_size for row in good})):
        line = [row for row in good if row.world_size == count]
        sizes, amounts = [row.size_bytes for row in line], [row.bus_bytes / 1e9 for row in line]
        label = f"{count} ranks, measured"
        rates(axis, sizes, amounts, [row.times_s for row in line], label=label, **look(index))
    sizes = sorted({row.size_bytes for row in good})
    axis.set_xscale("log", base=2)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(sizes, [memory(size) for size in sizes], rotation=30, ha="right", fontsize=8)
    axis.set(xlabel="size of the tensor, float32", ylabel="bus bandwidth (GB/s)", ylim=(0, None))
    axis.legend(fontsize=8, loc="lower right")
    return figure

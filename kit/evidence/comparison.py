"""What a comparison found: as values, as text, and as one picture of both sides."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from kit.evidence.text import in_html, visible
from kit.units import number

PRIMARY = "steady_samples_per_s"
EXIT_CODES = {"same": 0, "improved": 0, "regression": 1, "inconclusive": 3, "not_comparable": 3}


@dataclasses.dataclass(frozen=True)
class Side:
    """The processes of one setup. keys: what must agree; notes: what may differ.

    values, run_ids, started: one of each process, in the order they were given.
    """

    values: tuple[float, ...]
    run_ids: tuple[str, ...]
    started: tuple[str, ...]
    keys: Mapping[str, Any]
    notes: Mapping[str, Any]
    unit: str
    others: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """outcome: 'same', 'regression', 'improved', 'inconclusive' or 'not_comparable'.

    ratio: B over A of the geometric means, low and high its 95 % interval. runs_needed: a
    side, to decide at the spread seen; None where decided or where no number would. others:
    (metric, ratio, p after Holm's correction), which decide nothing.
    """

    outcome: str
    because: tuple[str, ...]
    runs_needed: int | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    metric: str = PRIMARY
    others: tuple[tuple[str, float, float], ...] = ()

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


def text(found: Comparison) -> str:
    """What `kit compare` prints."""
    lines = [f"{found.outcome.replace('_', ' ').upper()} by {found.metric}"]
    lines += [f"  {line}" for line in found.because]
    if found.runs_needed:
        lines.append(f"  To do: {found.runs_needed} processes a side, run in turns (A B A B)")
    return visible("\n".join(lines))


def figure(a: Side, b: Side, found: Comparison) -> str:
    """An SVG of every process of both sides on an axis from zero, with the medians; readable in grey."""
    top = max((*a.values, *b.values)) * 1.1
    rows = []
    for row, (name, side) in enumerate((("A", a), ("B", b))):
        y, x = 60 + 60 * row, _x(statistics.median(side.values), top)
        rows.append(f"<text x='10' y='{y + 5}'>{name} (n = {len(side.values)})</text>")
        rows.append(f"<path d='M{x} {y - 16}V{y + 16}' stroke='currentColor' stroke-width='3'/>")
        rows += [
            f"<circle cx='{_x(value, top)}' cy='{y}' r='5' fill='none' stroke='currentColor'/>" for value in side.values
        ]
    ticks = [top * part / 4 for part in range(5)]
    rows += [f"<text x='{_x(tick, top)}' y='175' text-anchor='middle'>{number(tick)}</text>" for tick in ticks]
    ratio = f", B is {found.ratio:.3f} of A" if found.ratio else ""
    title = in_html(f"{found.metric}: {found.outcome.replace('_', ' ')}{ratio}")
    return (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 700 205' font-family='sans-serif' "
        f"font-size='14' role='img'><title>{title}</title>"
        f"<text x='10' y='22' font-weight='bold'>{title}</text>"
        f"{''.join(rows)}<path d='M{_x(0, top)} 155H690' stroke='currentColor'/><text x='400' y='198' "
        f"text-anchor='middle'>{in_html(a.unit)}; circles: processes, bars: medians</text></svg>\n"
    )


def _x(value: float, top: float) -> str:
    return f"{110 + 570 * value / top:.1f}"

"""reports/index.html: every bundle of a folder in one table, and how each machine did over time.

It repeats what the bundles say and judges nothing: `kit verify` does, on the bundles themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kit.evidence.model import Evidence
from kit.evidence.page import cell, document, table
from kit.evidence.text import in_html
from kit.units import number, percent

# What is drawn over time.
_TREND = "best_tokens_per_s"
_COLUMNS = ("samples/s", "best tokens/s", "of the limit")
_WIDTH, _HEIGHT, _EDGE = 560, 120, 16


@dataclasses.dataclass(frozen=True)
class Listed:
    """A bundle in the table. name: its folder beside the page. machine: what tells it from another machine."""

    name: str
    evidence: Evidence
    gpu: str
    torch: str
    machine: str

    @classmethod
    def of(cls, name: str, evidence: Evidence, facts: Mapping[str, Any]) -> Listed:
        """facts: facts/begin.json of the bundle, or nothing where it has none."""
        seen = facts.get("torch") or {}
        gpus = seen.get("gpus") or (facts.get("driver") or {}).get("gpus") or [{}]
        gpu = str(gpus[0].get("name") or "unknown") if evidence.device == "cuda" else "none (CPU)"
        return cls(
            name,
            evidence,
            gpu,
            str(seen.get("version") or "unknown"),
            f"{gpu} {gpus[0].get('uuid') or ''}".strip(),
        )


def overview(bundles: Iterable[Listed]) -> str:
    """The page, newest bundle first."""
    listed = sorted(bundles, key=lambda bundle: (bundle.evidence.ended_utc, bundle.name), reverse=True)
    heads = ("Verdict", "Report", "Ended (UTC)", "GPU", "torch", *_COLUMNS)
    body = "<h1>Reports</h1>\n" + table(heads, [_row(bundle) for bundle in listed]) + "".join(_trends(listed))
    return document("Reports", f"<main>\n{body}</main>\n")


def _row(bundle: Listed) -> tuple[str, ...]:
    outcome, told = bundle.evidence.verdict.outcome, {n.name: n.value for n in bundle.evidence.numbers}
    samples, tokens, ratio = (told.get(name) for name in ("steady_samples_per_s", _TREND, "best_floor_ratio"))
    figures = [_or_dash(samples, number), _or_dash(tokens, number), _or_dash(ratio, percent)]
    return (
        f"<td class='{outcome}'>{outcome}</td>",
        f"<td><a href='{in_html(bundle.name)}/index.html'>{in_html(bundle.name)}</a></td>",
        cell(bundle.evidence.ended_utc[:16].replace("T", " "), "n"), cell(bundle.gpu), cell(bundle.torch),
        *(cell(figure, "n") for figure in figures),
    )  # fmt: skip


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "–" if value is None else text(value)


def _trends(listed: Sequence[Listed]) -> Iterable[str]:
    """A line of best tokens/s for each machine with at least two complete reports."""
    by_machine: dict[str, list[tuple[str, float, str]]] = {}
    for bundle in reversed(listed):
        known = {n.name: n.value for n in bundle.evidence.numbers}.get(_TREND)
        if known is not None:
            by_machine.setdefault(bundle.machine, []).append((bundle.name, float(known), bundle.gpu))
    for machine, points in sorted(by_machine.items()):
        if len(points) > 1:
            rates = [rate for _, rate, _ in points]
            listed_rates = ", ".join(number(rate) for rate in rates)
            told = f"Best tokens/s of {len(points)} reports, oldest first: {listed_rates}."
            figure = f"{_line(rates, told)}<figcaption>{in_html(told)}</figcaption>"
            yield f"<h2>{in_html(machine)}</h2>\n<figure>{figure}</figure>\n"


def _line(rates: Sequence[float], told: str) -> str:
    """Rates in order as an inline SVG from zero up, so that a small change looks small."""
    top = max(rates) or 1.0
    step = (_WIDTH - 2 * _EDGE) / (len(rates) - 1)
    points = [(_EDGE + step * i, _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * rate / top) for i, rate in enumerate(rates)]
    dots = "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='currentColor'/>" for x, y in points)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f"<svg role='img' aria-label='{in_html(told)}' viewBox='0 0 {_WIDTH} {_HEIGHT}' "
        f"width='100%' height='{_HEIGHT}'>"
        f"<path d='M{_EDGE} {_HEIGHT - _EDGE}H{_WIDTH - _EDGE}' stroke='currentColor' opacity='.4'/>"
        f"<polyline points='{path}' fill='none' stroke='currentColor' stroke-width='2'/>{dots}</svg>"
    )

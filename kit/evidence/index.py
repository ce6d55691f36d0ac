"""reports/index.html: every bundle of a folder in one table, and how each machine did over time.

It repeats what the bundles say and judges nothing but whether they hold, by `kit verify` itself. A bundle is looked
at once: what was found stands in a cache beside the page, by the hash of its manifest and its evidence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kit.errors import KitError
from kit.evidence.contents import Evidence
from kit.evidence.manifest import EVIDENCE, MANIFEST
from kit.evidence.verify import load, verify
from kit.evidence.write import write_atomic
from kit.records import Outcome, dumps, from_json, loads
from kit.show import Html, document, escape, table_html
from kit.units import number, percent

CACHE = ".index.json"
# Bundles that are new to the list are verified as long as this; the others say so, and the next run goes on.
BUDGET_S = 20.0
_WIDTH, _HEIGHT, _EDGE = 560, 120, 16


@dataclasses.dataclass(frozen=True)
class Listed:
    """A bundle in the table. holds: what `kit verify` says of its integrity, None where it was not asked yet.

    machine: what tells it from another machine. tokens_per_s: by point of the sweep, '4 × 64, bfloat16, eager'.
    scaling: tokens/s on the most GPUs over those of one, times their number.
    """

    key: str
    holds: Outcome | None
    verdict: Outcome | None
    ended_utc: str
    gpu: str
    machine: str
    torch: str
    tokens_per_s: Mapping[str, float]
    limit_share: float | None
    scaling: str

    @classmethod
    def of(cls, key: str, evidence: Evidence, holds: Outcome | None) -> Listed:
        told = {n.name: n.value for n in evidence.numbers if n.value is not None}
        points = {}
        for name, step_s in told.items():
            if found := re.fullmatch(r"step_(\d+)x(\d+)_([a-z0-9]+)_(\w+)_s", name):
                points[f"{found[1]} × {found[2]}, {found[3]}, {found[4]}"] = int(found[1]) * int(found[2]) / step_s
        ranks = [(int(m[1]), told[n]) for n in told if (m := re.fullmatch(r"weak_scaling_(\d+)_ranks_efficiency", n))]
        system = evidence.system
        gpu = system.get("GPU", "unknown").partition(" (")[0]
        return cls(
            key=key,
            holds=holds,
            verdict=evidence.verdict.outcome,
            ended_utc=evidence.ended_utc,
            gpu=gpu,
            machine=f"{gpu} {system.get('GPU id', '')}".strip(),
            torch=system.get("PyTorch", "unknown").partition(",")[0],
            tokens_per_s=points,
            limit_share=told.get("best_floor_ratio"),
            scaling=f"{percent(max(ranks)[1], 3)} on {max(ranks)[0]} GPUs" if ranks else "–",
        )


def write_index(folder: Path) -> Path:
    """Writes index.html over all bundles in `folder`. One that cannot be read as a bundle is listed as INVALID.

    It begins again where another run added a bundle meanwhile, so that the last one that writes knows all of them.
    """
    names = sorted(folder.glob("[!.]*/manifest.json"))
    before: dict[str, Listed] = {}
    with contextlib.suppress(OSError, ValueError, KitError):
        before = from_json(dict[str, Listed], loads((folder / CACHE).read_bytes()))
    listed: dict[str, Listed] = {}
    until = time.monotonic() + BUDGET_S
    for path in sorted(folder.glob("*/")):
        if path.is_dir() and not path.name.startswith(".") and (key := _key(path)):
            old = before.get(path.name)
            if old is None or old.key != key or old.holds is None:
                old = _listed(path, key, is_due=time.monotonic() < until)
            listed[path.name] = old
    write_atomic(folder / "index.html", overview(listed))
    write_atomic(folder / CACHE, dumps(listed, indent=None))
    return folder / "index.html" if names == sorted(folder.glob("[!.]*/manifest.json")) else write_index(folder)


def _key(path: Path) -> str | None:
    """A hash of the manifest and the evidence; None where the folder is no bundle. A pipe or a link is never opened."""
    digest = hashlib.sha256()
    for name in (MANIFEST, EVIDENCE):
        file = path / name
        if file.is_symlink() or not file.is_file():
            return None
        with file.open("rb") as opened:
            digest.update(opened.read(16 << 20))
    return digest.hexdigest()


def _listed(path: Path, key: str, *, is_due: bool) -> Listed:
    if is_due:
        with contextlib.suppress(OSError, KitError):
            return Listed.of(key, load(path)[0], Outcome.PASS)
        holds = verify(path).integrity
        return Listed(key, holds, None, "", "unknown", path.name, "unknown", {}, None, "–")
    return Listed(key, None, None, "", "not looked at yet", path.name, "unknown", {}, None, "–")


def overview(listed: Mapping[str, Listed]) -> str:
    """The page, newest bundle first. One column compares like with like: the point that most of them measured."""
    rows = sorted(listed.items(), key=lambda pair: (pair[1].ended_utc, pair[0]), reverse=True)
    counted = Counter(point for _, one in rows for point in one.tokens_per_s)
    common = max(counted, key=lambda point: (counted[point], point), default=None)
    heads = ["Verdict", "Holds", "Report", "Ended (UTC)", "GPUs", "PyTorch"]
    heads += [f"tokens/s at {common}"] if common else []
    table = table_html(
        [*heads, "best tokens/s", "of the limit", "scaling"], [_row(name, one, common) for name, one in rows], style=""
    )
    note = "<p class='soft'>Best points are of different shapes and engines and do not rank machines.</p>\n"
    return document("Reports", f"<h1>Reports</h1>\n{table}{note}{''.join(_trends(rows, common))}")


def _row(name: str, one: Listed, common: str | None) -> list[object]:
    best = max(one.tokens_per_s.items(), key=lambda pair: pair[1], default=None)
    share = percent(one.limit_share) if one.limit_share is not None else "–"
    figures = [f"{number(best[1])} at {best[0]}" if best else "–", share, one.scaling]
    if common:
        figures.insert(0, number(one.tokens_per_s[common]) if common in one.tokens_per_s else "–")
    link = Html(f"<a href='{escape(name)}/index.html'>{escape(name)}</a>")
    holds = {Outcome.PASS: "yes", None: "not checked yet"}.get(one.holds, f"no: {one.holds}")
    return [_badge(one.verdict), holds, link, one.ended_utc[:16].replace("T", " "), one.gpu, one.torch, *figures]


def _badge(outcome: Outcome | None) -> Html:
    return Html(f"<span class='badge {outcome}'>{outcome}</span>") if outcome else Html("–")


def _trends(rows: Sequence[tuple[str, Listed]], point: str | None) -> Iterator[str]:
    """A line of tokens/s at the common point for each machine with at least two reports."""
    by_machine: dict[str, list[float]] = {}
    for _, one in reversed(rows):
        if point and point in one.tokens_per_s:
            by_machine.setdefault(one.machine, []).append(one.tokens_per_s[point])
    for machine, rates in sorted(by_machine.items()):
        if len(rates) > 1:
            told = f"Tokens/s at {point} of {len(rates)} reports, oldest first: {', '.join(map(number, rates))}."
            caption = f"<figcaption>{escape(told)}</figcaption>"
            yield f"<h2>{escape(machine)}</h2>\n<figure>{_line(rates, told)}{caption}</figure>\n"


def _line(rates: Iterable[float], told: str) -> str:
    """Rates in order as an inline SVG from zero up, so that a small change looks small."""
    rates = list(rates)
    top, step = max(rates) or 1.0, (_WIDTH - 2 * _EDGE) / (len(rates) - 1)
    points = [(_EDGE + step * i, _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * rate / top) for i, rate in enumerate(rates)]
    dots = "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='currentColor'/>" for x, y in points)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f"<svg role='img' aria-label='{escape(told)}' viewBox='0 0 {_WIDTH} {_HEIGHT}' width='100%' height='{_HEIGHT}'>"
        f"<path d='M{_EDGE} {_HEIGHT - _EDGE}H{_WIDTH - _EDGE}' stroke='currentColor' opacity='.4'/>"
        f"<polyline points='{path}' fill='none' stroke='currentColor' stroke-width='2'/>{dots}</svg>"
    )

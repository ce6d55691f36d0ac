"""reports/index.html: every bundle of a folder in one table, and how each machine did over time.

It repeats what the bundles say and judges nothing but whether they hold, by `kit verify` itself. A bundle is looked
at once: what was found stands in a cache beside the page, by the hash of its manifest and its evidence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kit.errors import KitError
from kit.evidence.contents import Evidence, efficiencies, points
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
        gpu, system = evidence.system.get("GPU", "unknown").partition(" (")[0], evidence.system
        ranks, shares = efficiencies(evidence.numbers), [n for n in evidence.numbers if n.name == "best_floor_ratio"]
        return cls(
            key=key,
            holds=holds,
            verdict=evidence.verdict.outcome,
            ended_utc=evidence.ended_utc,
            gpu=gpu,
            machine=f"{gpu} {system.get('GPU id', '')}".strip(),
            torch=system.get("PyTorch", "unknown").partition(",")[0],
            tokens_per_s={
                f"{batch} × {length}, {dtype}, {engine}": batch * length / step.value
                for (batch, length, dtype), engines in points(evidence.numbers).items()
                for engine, step in engines.items()
                if step.value
            },
            limit_share=shares[0].value if shares else None,
            scaling=f"{percent(ranks[max(ranks)].value, 3)} on {max(ranks)} GPUs" if ranks else "–",
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
    for path in sorted(folder.glob("[!.]*/")):
        if key := _key(path):
            old = before.get(path.name)
            is_known = old is not None and old.key == key and old.holds is not None
            listed[path.name] = old if old and is_known else _listed(path, key, is_due=time.monotonic() < until)
    write_atomic(folder / "index.html", overview(listed))
    write_atomic(folder / CACHE, dumps(listed, indent=None))
    return folder / "index.html" if names == sorted(folder.glob("[!.]*/manifest.json")) else write_index(folder)


def _key(path: Path) -> str | None:
    """A hash of the manifest and the evidence; None where the folder is no bundle. A pipe or a link is never opened."""
    files = [path / MANIFEST, path / EVIDENCE]
    if any(file.is_symlink() or not file.is_file() for file in files):
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(opened.read(16 << 20))
    return digest.hexdigest()


def _listed(path: Path, key: str, *, is_due: bool) -> Listed:
    holds, what = None, "not looked at yet"
    if is_due:
        with contextlib.suppress(OSError, KitError):
            return Listed.of(key, load(path)[0], Outcome.PASS)
        holds, what = verify(path).integrity, "unknown"
    return Listed(key, holds, None, "", what, path.name, "unknown", {}, None, "–")


def overview(listed: Mapping[str, Listed]) -> str:
    """The page, newest bundle first. One column compares like with like: the point that most of them measured."""
    rows = sorted(listed.items(), key=lambda pair: (pair[1].ended_utc, pair[0]), reverse=True)
    counted = Counter(point for _, one in rows for point in one.tokens_per_s)
    common = max(counted, key=lambda point: (counted[point], point), default=None)
    heads = ["Verdict", "Holds", "Report", "Ended (UTC)", "GPUs", "PyTorch"]
    heads += [f"tokens/s at {common}"] if common else []
    heads += ["best tokens/s", "of the limit", "scaling"]
    table = table_html(heads, [_row(name, one, common) for name, one in rows], style="")
    note = "<p class='soft'>Best points are of different shapes and engines and do not rank machines.</p>\n"
    by_machine: dict[str, list[float]] = {}
    for _, one in reversed(rows):
        if common in one.tokens_per_s:
            by_machine.setdefault(one.machine, []).append(one.tokens_per_s[common])
    trends = [_trend(machine, rates, common) for machine, rates in sorted(by_machine.items()) if len(rates) > 1]
    return document("Reports", f"<h1>Reports</h1>\n{table}{note}{''.join(trends)}")


def _row(name: str, one: Listed, common: str | None) -> list[object]:
    best = max(one.tokens_per_s, key=lambda point: one.tokens_per_s[point], default=None)
    figures = [number(one.tokens_per_s[common]) if common in one.tokens_per_s else "–"] if common else []
    figures += [f"{number(one.tokens_per_s[best])} at {best}" if best else "–"]
    figures += [percent(one.limit_share) if one.limit_share is not None else "–", one.scaling]
    link = Html(f"<a href='{escape(name)}/index.html'>{escape(name)}</a>")
    badge = Html(f"<span class='badge {one.verdict}'>{one.verdict}</span>" if one.verdict else "–")
    holds = {Outcome.PASS: "yes", None: "not checked yet"}.get(one.holds, f"no: {one.holds}")
    return [badge, holds, link, one.ended_utc[:16].replace("T", " "), one.gpu, one.torch, *figures]


def _trend(machine: str, rates: Sequence[float], point: str | None) -> str:
    """A machine's tokens/s at the common point as an inline SVG from zero up, so that a small change looks small."""
    told = escape(f"Tokens/s at {point} of {len(rates)} reports, oldest first: {', '.join(map(number, rates))}.")
    top, step = max(rates) or 1.0, (_WIDTH - 2 * _EDGE) / (len(rates) - 1)
    places = [(_EDGE + step * i, _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * rate / top) for i, rate in enumerate(rates)]
    dots = "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='currentColor'/>" for x, y in places)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return (
        f"<h2>{escape(machine)}</h2>\n<figure>"
        f"<svg role='img' aria-label='{told}' viewBox='0 0 {_WIDTH} {_HEIGHT}' width='100%' height='{_HEIGHT}'>"
        f"<path d='M{_EDGE} {_HEIGHT - _EDGE}H{_WIDTH - _EDGE}' stroke='currentColor' opacity='.4'/>"
        f"<polyline points='{path}' fill='none' stroke='currentColor' stroke-width='2'/>{dots}</svg>"
        f"<figcaption>{told}</figcaption></figure>\n"
    )

"""The reports that people read, made from evidence.json and the files beside it, always the same bytes.

A verifier makes them again and compares, so a report cannot say what the evidence does
not. Nothing is measured, judged or rounded into a better light here. README.md and index.html
are one list of sections, written by two writers.
"""

from __future__ import annotations

import base64
import html as html_text
import itertools
import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from kit.evidence import manifest as bundle_manifest
from kit.evidence.contents import COMPLETE, Evidence, NotebookRun, value, value_range
from kit.evidence.manifest import CAPTURES, EVIDENCE, MANIFEST, SUMS, Entry, check_json_size, is_derived
from kit.evidence.notebook import notebook_html
from kit.records import CLAIMS, Outcome, dumps, loads
from kit.show import Html, document, escape, in_markdown, table_html, visible
from kit.train.config import ENGINES
from kit.units import MiB, number, percent, seconds

# Figures beyond this are named, not shown: the page must open on a phone.
MAX_EMBEDDED_BYTES = 12 * MiB
# The answers first; figures of other names follow.
_FIRST_FIGURES = ("scaling", "throughput", "where_time_goes", "roofline", "training")
_CLAIMS = ("Environment", "Native code and placement", "Learning", "Throughput", "Integrity of the records")
_GOOD = (Outcome.PASS, Outcome.REHEARSAL)
WORTH = (
    "Unsigned, a report protects against mistakes and casual edits, not against somebody who makes all of it up. "
    "Where manifest.json.sig stands beside it, the person who signed vouches for it."
)
RED_IS_RIGHT = (
    "Red is right here: a second process, with every GPU hidden, trained on the CPU and claimed the GPU. Had these "
    "rules passed it, nothing above could be believed."
)


def derived(
    evidence: Evidence, files: Mapping[str, bytes], entries: Mapping[str, Entry] | None = None
) -> dict[str, bytes]:
    """Every file that follows from the evidence and the other files; the manifest is the last.

    `files` holds evidence.json; what of it is derived is not read. entries: hashes that are
    already known.
    """
    base = [name for name in files if not is_derived(name) or name == EVIDENCE]
    made: dict[str, bytes] = {}
    for name in base:
        if name.startswith("notebooks/"):
            page_name = str(PurePosixPath(name).with_suffix(".html"))
            made[page_name] = notebook_page(files[name], PurePosixPath(name).stem).encode()
    made["training_log.txt"] = training_log(files.get("raw/steps.jsonl", b""))
    whole: Mapping[str, bytes] = ChainMap(made, files)  # type: ignore[arg-type]
    made["README.md"] = readme(evidence, whole).encode()
    made["index.html"] = page(evidence, whole).encode()
    known = dict(entries or {})
    hashed = [known[name] if name in known else Entry.of(name, files[name]) for name in base]
    hashed += [Entry.of(name, data) for name, data in made.items()]
    for name, make in (
        ("ro-crate-metadata.json", lambda: ro_crate(evidence, hashed)),
        (SUMS, lambda: bundle_manifest.sums(hashed)),
        (MANIFEST, lambda: bundle_manifest.build(hashed, evidence)),
    ):
        made[name] = make()
        hashed.append(Entry.of(name, made[name]))
    return made


_LOGGED = ("loss", "grad_norm", "lr", "samples", "tokens", "step_time_s", "memory_allocated_bytes")


def training_log(steps: bytes) -> bytes:
    """raw/steps.jsonl as lines of text."""
    head = "# from raw/steps.jsonl; loss in nats per token, times synchronised with the device, - where there is none"
    rows = [loads(line) for line in steps.splitlines()]
    lines = (
        "  ".join([f"step {row.get('step')}", *(f"{name} {_logged(row.get(name))}" for name in _LOGGED)])
        for row in rows
    )
    return "\n".join([head, *lines, ""]).encode()


def _logged(told: Any) -> str:
    return f"{told:.7g}" if isinstance(told, (int, float)) else "-"


def notebook_page(data: bytes, title: str) -> str:
    """An executed notebook as a page; a sentence where the file is no notebook, as after a crash."""
    try:
        check_json_size(data)
        return notebook_html(loads(data.decode("utf-8")), title)
    except (ValueError, AttributeError, TypeError):
        return document(title, "<p>This notebook cannot be read.</p>\n")


# The two writers: the same sentences, rows and figures as HTML and as Markdown.


class _HtmlPage:
    """Everything as HTML; pictures are in the page, since it may be sent around alone."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files, self._room = files, MAX_EMBEDDED_BYTES

    def head(self, evidence: Evidence, lead: str, about: str) -> str:
        outcome, claim = evidence.verdict.outcome, escape(evidence.headline)
        badge = f"<p class='badge {outcome}'>{outcome}</p>\n<h1>{claim}</h1>\n"
        return f"{badge}<p>{escape(lead)}</p>\n<p class='soft'>{escape(about)}</p>\n"

    def keys(self, keys: Iterable[tuple[str, str]]) -> str:
        made = (f"<div class='key'><b>{escape(big)}</b><span>{escape(small)}</span></div>\n" for big, small in keys)
        return f"<div class='keys'>\n{''.join(made)}</div>\n"

    def contents(self, titles: Sequence[str]) -> str:
        links = (f"<a href='#{_anchor(title)}'>{escape(title)}</a>" for title in titles)
        return f"<nav>{' '.join(links)}</nav>\n"

    def title(self, title: str) -> str:
        return f"<h2 id='{_anchor(title)}'>{escape(title)}</h2>\n"

    def text(self, text: str, kind: str = "") -> str:
        return f"<p class='{kind}'>{escape(text)}</p>\n" if kind else f"<p>{escape(text)}</p>\n"

    def facts(self, facts: Mapping[str, str]) -> str:
        rows = (f"<div><dt>{escape(name)}</dt><dd>{escape(told)}</dd></div>\n" for name, told in facts.items())
        return f"<dl>\n{''.join(rows)}</dl>\n"

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
        return table_html(
            heads, [[self.badge(v) if isinstance(v, Outcome) else v for v in row] for row in rows], style=""
        )

    def badge(self, outcome: Outcome) -> Html:
        return Html(f"<span class='badge {outcome}'>{outcome}</span>")

    def timed(self, time: str, share: float | None) -> Html:
        """A step's time, over a bar that is full where the card cannot do better."""
        bar = "<svg class='bar' viewBox='0 0 100 6' preserveAspectRatio='none' role='img' aria-label='{}'>{}</svg>"
        told = f"{percent(share)} of the limit" if share else ""
        drawn = f"<rect width='{100 * share:.1f}' height='6'/>" if share else ""
        return Html(f"{escape(time)}{bar.format(told, drawn) if share else ''}")

    def figures(self, names: Sequence[str]) -> str:
        return f"<div class='figures'>\n{''.join(map(self._figure, names))}</div>\n" if names else ""

    def _figure(self, name: str) -> str:
        data, alt = self._files[name], escape(_alt(name, self._files))
        self._room -= len(data)
        if self._room < 0 or not data.startswith(b"\x89PNG\r\n\x1a\n"):
            return f"<p>{escape(name)} is not shown here: {alt}</p>\n"
        image = f"<img src='data:image/png;base64,{base64.b64encode(data).decode()}' alt='{alt}'>"
        return f"<figure><a href='{escape(name)}'>{image}</a><figcaption>{alt}</figcaption></figure>\n"

    def promises(self, promises: Iterable[tuple[Outcome, str, str]]) -> str:
        items = (f"<li>{self.badge(o)} <b>{escape(text)}.</b><br>{escape(seen)}</li>\n" for o, text, seen in promises)
        return f"<ol class='why'>\n{''.join(items)}</ol>\n"

    def items(self, items: Iterable[str]) -> str:
        return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>\n"

    def links(self, names: Iterable[str]) -> str:
        links = (f"<a href='{escape(name)}'>{escape(name)}</a>" for name in names)
        return f"<p>{' · '.join(links)}</p>\n"

    def code(self, text: str) -> str:
        return f"<pre>{escape(text)}</pre>\n"

    def error(self, title: str, text: str) -> str:
        return f"<div class='first'><p><b>{escape(title)}</b></p><pre>{escape(text)}</pre></div>\n"

    def fold(self, title: str, body: str, is_open: bool = False) -> str:
        return f"<details{' open' * is_open}><summary>{escape(title)}</summary>\n{body}</details>\n"


class _Markdown:
    """Everything as what GitHub shows of a folder; pictures are the files beside it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def head(self, evidence: Evidence, lead: str, about: str) -> str:
        told = f"{in_markdown(lead)}\n\n" if lead else ""
        return f"# {evidence.verdict.outcome}: {in_markdown(evidence.headline)}\n\n{told}{in_markdown(about)}\n\n"

    def keys(self, keys: Iterable[tuple[str, str]]) -> str:
        return "".join(f"- **{in_markdown(big)}** {in_markdown(small)}\n" for big, small in keys) + "\n"

    def contents(self, titles: Sequence[str]) -> str:
        return ""

    def title(self, title: str) -> str:
        return f"## {title}\n\n"

    def text(self, text: str, kind: str = "") -> str:
        return f"{in_markdown(text)}\n\n"

    def facts(self, facts: Mapping[str, str]) -> str:
        return self.table(("Part", "What it is"), facts.items())

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
        lines = [heads, ["---"] * len(heads), *([in_markdown(item) for item in row] for row in rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"

    def timed(self, time: str, share: float | None) -> str:
        return f"{time} ({percent(share)})" if share else time

    def figures(self, names: Sequence[str]) -> str:
        return "".join(f"![{in_markdown(_alt(name, self._files))}]({name})\n\n" for name in names)

    def promises(self, promises: Iterable[tuple[Outcome, str, str]]) -> str:
        told = (
            f"{i}. {o}: **{in_markdown(text)}.** {in_markdown(seen)}\n" for i, (o, text, seen) in enumerate(promises, 1)
        )
        return "".join(told) + "\n"

    def items(self, items: Iterable[str]) -> str:
        return "".join(f"- {in_markdown(item)}\n" for item in items) + "\n"

    def links(self, names: Iterable[str]) -> str:
        return ", ".join(f"[{in_markdown(name)}]({name})" for name in names) + "\n\n"

    def code(self, text: str) -> str:
        return f"```\n{visible(text)}\n```\n\n"

    def error(self, title: str, text: str) -> str:
        return f"**{in_markdown(title)}** {in_markdown(text)}\n\n"

    def fold(self, title: str, body: str, is_open: bool = False) -> str:
        return f"<details{' open' * is_open}><summary>{in_markdown(title)}</summary>\n\n{body}</details>\n\n"


def page(evidence: Evidence, files: Mapping[str, bytes]) -> str:
    """index.html: the verdict in a sentence, large numbers, system, speed, why, checks, how to verify, all the rest."""
    out = _HtmlPage(files)
    texts = [(name, files[name].decode("utf-8", "replace")) for name in (*CAPTURES, *_FACTS) if name in files]
    told = "".join(out.fold(name, out.code(text)) for name, text in texts)
    rest = f"{out.title('Machine and tools, in their own words')}{told}" if told else ""
    return document(f"{evidence.verdict.outcome}: {evidence.headline}", _written(evidence, files, out) + rest)


def readme(evidence: Evidence, files: Mapping[str, bytes]) -> str:
    """README.md: the same in the same order, as GitHub shows it."""
    return _written(evidence, files, _Markdown(files)).rstrip() + "\n"


_FACTS = ("facts/begin.json", "facts/end.json")


def _written(evidence: Evidence, files: Mapping[str, bytes], out: _HtmlPage | _Markdown) -> str:
    sections = [(title, body) for title, body in _sections(evidence, files, out) if body]
    head = out.head(evidence, _lead(evidence), _about(evidence)) + _trouble(evidence, out)
    keys = out.keys(itertools.islice(_keys(evidence), 6))
    titles = out.contents([title for title, _ in sections])
    return head + keys + titles + "".join(out.title(title) + body for title, body in sections)


def _sections(evidence: Evidence, files: Mapping[str, bytes], out: Any) -> Iterator[tuple[str, str]]:
    """Title and body of each section, in the order in which a reader asks."""
    yield "System under test", out.facts(evidence.system) if evidence.system else ""
    names = sorted((n for n in files if n.startswith("figures/") and n.endswith(".png")), key=_figure_order)
    more = out.fold(f"{len(names) - 4} more figures", out.figures(names[4:])) if names[4:] else ""
    yield "How fast, beside what the card allows", _sweep(evidence, out) + out.figures(names[:4]) + more
    seen = [
        (p.outcome, p.text, p.sentence + (f". {RED_IS_RIGHT}" if _is_red_right(p) else "")) for p in evidence.promises
    ]
    yield "Why you can believe it", out.promises(seen)
    yield "Checks", "".join(_checks(evidence, out))
    yield "Verify it yourself", _verify_lines(evidence, out)
    yield "What this report does not show", out.items(evidence.limits)
    yield "All numbers", out.fold(f"{len(evidence.numbers)} numbers with their definitions", _numbers(evidence, out))
    pages = [f"notebooks/{run.name}.html" for run in evidence.notebooks if f"notebooks/{run.name}.html" in files]
    ran = out.table(
        ("Notebook", "State", "Cells run"),
        [(r.name, r.state, f"{r.cells_run} of {r.cells}") for r in evidence.notebooks],
    )
    raw = sorted(name for name in files if name.startswith(("raw/", "facts/")))
    yield "Notebooks and raw records", ran + out.links(pages) + out.fold(f"{len(raw)} raw records", out.links(raw))


def _is_red_right(promise: Any) -> bool:
    return promise.outcome in _GOOD and "integrity.negative_control" in promise.checks


def _checks(evidence: Evidence, out: Any) -> Iterator[str]:
    """The checks of each claim, folded where all of them passed."""
    for claim, title in zip(CLAIMS, _CLAIMS, strict=True):
        checks = [check for check in evidence.verdict.checks if check.claim == claim]
        good = sum(check.outcome in _GOOD for check in checks)
        is_open = any(check.required and check.outcome not in _GOOD for check in checks)
        rows = [(c.outcome, c.id if c.required else f"{c.id} (does not count)", c.found, _expected(c)) for c in checks]
        count = f"{good} passed" if good == len(checks) else f"{good} of {len(checks)} passed"
        if checks:
            yield out.fold(f"{title}: {count}", out.table(("Outcome", "Check", "Found", "Expected"), rows), is_open)


def _expected(check: Any) -> str:
    return check.expected + (f" To do: {check.todo}" if check.todo and check.outcome not in _GOOD else "")


def _lead(evidence: Evidence) -> str:
    """What a manager asks next: how fast, and did everything hold."""
    told, checks = _values(evidence), evidence.verdict.checks
    rate, share = told.get("best_tokens_per_s"), told.get("best_floor_ratio")
    words = []
    if rate:
        limit = (
            f", {percent(share)} of what this {'card' if evidence.device == 'cuda' else 'machine'} allows"
            if share
            else ""
        )
        words.append(f"At its best it trains {_rounded(rate)} tokens a second{limit}.")
    if all(check.outcome in _GOOD for check in checks if check.required) and checks:
        caught = any(_is_red_right(promise) for promise in evidence.promises)
        every = (
            f"All {len(checks)} checks passed"
            if all(c.outcome in _GOOD for c in checks)
            else "All required checks passed"
        )
        words.append(f"{every}{', and a run that lied about its GPU was caught' if caught else ''}.")
    return " ".join(words)


def _rounded(rate: float) -> str:
    """No more digits than the spread of a rate allows."""
    return f"{float(f'{rate:.3g}'):,.0f}" if rate >= 1000 else number(rate)


def _about(evidence: Evidence) -> str:
    """One line: when, which run, which code. A dirty tree is never silent."""
    code = evidence.code
    commit = f"commit {str(code['commit'])[:12]}" if code.get("commit") else ""
    commit = commit or f"source {str(code.get('source_sha256') or 'unknown')[:12]}"
    if code.get("is_dirty"):
        commit += f" with uncommitted changes (diff {str(code.get('diff_sha256') or 'unknown')[:12]})"
    nonce = f" · reviewer's nonce {evidence.reviewer_nonce}" if evidence.reviewer_nonce else ""
    when = f"{evidence.started_utc[:16].replace('T', ' ')} to {evidence.ended_utc[11:16]} UTC"
    return f"{when} · report {evidence.run_id} · {evidence.state} · kit {evidence.kit_version}, {commit}{nonce}"


def _trouble(evidence: Evidence, out: Any) -> str:
    """What stopped the run, and what to do: first, where there is something."""
    failing = next((run for run in evidence.notebooks if run.state in ("failed", "interrupted")), None)
    told = ""
    if failing and evidence.state != COMPLETE:
        told = out.error(f"Stopped in {failing.name}, {_where(failing)}.", failing.error or "no error")
    todo = [f"{check.id}: {check.todo}" for check in evidence.verdict.findings if check.todo and check.required]
    return told + (out.text("What to do:") + out.items(todo) if todo else "")


def _where(run: NotebookRun) -> str:
    return f"cell {run.failing_cell}" if run.failing_cell is not None else f"after {run.cells_run} of {run.cells} cells"


def _values(evidence: Evidence) -> dict[str, Any]:
    return {number.name: number.value for number in evidence.numbers}


def _keys(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """At most six large numbers, each with what it needs to be compared fairly."""
    told, unit = _values(evidence), "GPU" if evidence.device == "cuda" else "CPU rank"
    how = {n.name: n.definition for n in evidence.numbers}
    for name, share in told.items():
        if (ranks := re.fullmatch(r"weak_scaling_(\d+)_ranks_efficiency", name)) and share:
            yield (
                percent(share, 3),
                f"of {ranks[1]} times one {unit}'s speed, on {ranks[1]} {unit}s: {how[name].partition('; ')[2]}",
            )
    if told.get("best_tokens_per_s"):
        where = how["best_tokens_per_s"].partition(": ")[2]
        yield f"{_rounded(told['best_tokens_per_s'])} tokens/s", f"best point, one {unit}: {where}"
    if told.get("best_mfu_datasheet"):
        measured = told.get("best_mfu_measured")
        also = f"; {percent(measured)} of the peak measured here" if measured else ""
        yield f"{percent(told['best_mfu_datasheet'])} MFU", f"of the card's published peak{also}"
    if told.get("best_floor_ratio"):
        yield percent(told["best_floor_ratio"]), "of the limit that this card's own ceilings, measured in this run, set"
    yield from _beside_trainer(told)
    smoke = evidence.system.get("Smoke run", "the smoke run")
    if told.get("steady_step_s") and not told.get("best_tokens_per_s"):
        yield seconds(told["steady_step_s"]), f"a step: {smoke}"
    if told.get("peak_memory_bytes"):
        yield value(_named(evidence, "peak_memory_bytes")), f"peak memory: {smoke}"


def _named(evidence: Evidence, name: str) -> Any:
    return next(number for number in evidence.numbers if number.name == name)


_STEP = re.compile(r"step_(\d+)x(\d+)_([a-z0-9]+)_(\w+)_s")


def _beside_trainer(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fastest engine beside Hugging Face's Trainer, at the largest shape that both ran."""
    steps: dict[tuple[int, int, str], dict[str, float]] = {}
    for name, time in told.items():
        if time and (found := _STEP.fullmatch(name)):
            steps.setdefault((int(found[1]), int(found[2]), found[3]), {})[found[4]] = time
    shapes = [shape for shape, engines in steps.items() if "trainer" in engines and len(engines) > 1]
    if shapes:
        shape = max(shapes, key=lambda shape: shape[0] * shape[1])
        engine, time = min(steps[shape].items(), key=lambda pair: pair[1])
        base = steps[shape]["trainer"]
        where = f"{shape[0]} × {shape[1]} in {shape[2]}"
        yield (
            f"{number(base / time, 2)} ×",
            f"{engine} against Hugging Face's Trainer: {seconds(time)} and {seconds(base)} a step of {where}",
        )


def _sweep(evidence: Evidence, out: Any) -> str:
    """Engines against shapes: the time of a step, and how much of the limit it is."""
    told, reasons = _values(evidence), {n.name: n.reason or "" for n in evidence.numbers}
    points = [found for name in told if (found := _STEP.fullmatch(name))]
    if not points:
        return ""
    shapes = sorted({(int(p[1]), int(p[2]), p[3]) for p in points}, key=lambda s: (s[0] * s[1], s))
    limits = {shape: told.get("limit_{}x{}_{}_s".format(*shape)) for shape in shapes}
    rows = []
    for engine in sorted(
        {p[4] for p in points}, key=lambda name: (ENGINES.index(name) if name in ENGINES else 9, name)
    ):
        row = [{"trainer": "Hugging Face's Trainer", "eager": "plain loop"}.get(engine, engine)]
        for shape in shapes:
            name = "step_{}x{}_{}_".format(*shape) + f"{engine}_s"
            time, limit = told.get(name), limits[shape]
            share = limit / time if time and limit and limit <= time else None
            row.append(out.timed(seconds(time), share) if time else reasons.get(name, "")[:40] or "–")
        rows.append(row)
    rows.append(["limit of this card", *(seconds(limits[shape]) for shape in shapes)])
    words = (
        "Each cell: the time of one training step, and the share of the limit that it reaches. The limit follows from "
    )
    words += "the matrix products and copies that this very card did in this run; a full bar cannot be beaten."
    return out.text(words) + out.table(("Engine", *("{} × {}, {}".format(*shape) for shape in shapes)), rows)


def _verify_lines(evidence: Evidence, out: Any) -> str:
    needs = "Needs Python 3.11 and the kit, and nothing else: no GPU, no network. Every number and verdict above is "
    needs += "computed again from the raw records, and one changed byte is found."
    code = evidence.code.get("commit")
    lines = [
        f"git checkout {code}" if code and not evidence.code.get("is_dirty") else "",
        f"python3 -m kit verify {evidence.run_id}",
    ]
    return out.text(needs) + out.code("\n".join(filter(None, lines))) + out.text(WORTH, "soft")


def _numbers(evidence: Evidence, out: Any) -> str:
    rows = [(n.name, value(n), value_range(n), n.n if n.n is not None else "", n.definition) for n in evidence.numbers]
    return out.table(("Name", "Value", "Range", "n", "Definition"), rows)


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _figure_order(name: str) -> tuple[int, str]:
    stem = PurePosixPath(name).stem
    return (_FIRST_FIGURES.index(stem) if stem in _FIRST_FIGURES else len(_FIRST_FIGURES)), name


def _alt(name: str, files: Mapping[str, bytes]) -> str:
    """The description that the SVG beside the PNG carries, else the file's name."""
    svg = files.get(name.removesuffix(".png") + ".svg", b"")[:20_000].decode("utf-8", "replace")
    told = re.search(r"<dc:description>([^<]{1,2000})</dc:description>", svg)
    return html_text.unescape(told[1]).strip() if told else PurePosixPath(name).stem.replace("_", " ")


# The same evidence for other people's tools: RO-Crate 1.1 (Process Run Crate 0.5). Derived, it decides nothing.

_CONTEXT = [
    "https://w3id.org/ro/crate/1.1/context",
    {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"},
]
_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_TYPES = {
    "json": "application/json",
    "jsonl": "application/jsonl",
    "ipynb": "application/x-ipynb+json",
    "csv": "text/csv",
    "txt": "text/plain",
    "md": "text/markdown",
    "html": "text/html",
    "svg": "image/svg+xml",
    "png": "image/png",
}


def ro_crate(evidence: Evidence, entries: Iterable[Entry]) -> bytes:
    """ro-crate-metadata.json: every file that is there by then, and the run as a CreateAction."""
    files = [_file(entry) for entry in sorted(entries, key=lambda entry: entry.path)]
    parts = [{"@id": file["@id"]} for file in files]
    graph = [
        {
            "@id": "ro-crate-metadata.json",
            "@type": "CreativeWork",
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": f"GPU training evidence {evidence.run_id}",
            "description": visible(evidence.headline),
            "datePublished": evidence.ended_utc,
            "license": {"@id": "#license"},
            "conformsTo": {"@id": _PROFILE},
            "hasPart": parts,
            "mentions": {"@id": "#run"},
        },
        {"@id": _PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {
            "@id": "#license",
            "@type": "CreativeWork",
            "name": "No license given",
            "description": "The owner of this report decides who may use it and how.",
        },
        {
            "@id": "#kit",
            "@type": "SoftwareApplication",
            "name": "kit",
            "description": "Proves that PyTorch trains natively on an NVIDIA GPU.",
            "softwareVersion": evidence.kit_version,
        },
        _action(evidence, parts),
        *files,
    ]
    return (dumps({"@context": _CONTEXT, "@graph": graph}) + "\n").encode()


def _action(evidence: Evidence, parts: list[dict[str, str]]) -> dict[str, Any]:
    is_complete = evidence.state == COMPLETE
    action = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": f"kit report --device {evidence.device}",
        "description": f"Verdict {evidence.verdict.outcome}",
        "instrument": {"@id": "#kit"},
        "result": parts,
        "startTime": evidence.started_utc,
        "endTime": evidence.ended_utc,
        "actionStatus": f"http://schema.org/{'Completed' if is_complete else 'Failed'}ActionStatus",
    }
    if not is_complete:
        action["error"] = visible(next((run.error for run in evidence.notebooks if run.error), evidence.headline))
    return action


def _file(entry: Entry) -> dict[str, Any]:
    kind = _TYPES.get(entry.path.rpartition(".")[2], "text/plain")
    return {
        "@id": entry.path,
        "@type": "File",
        "name": entry.path.rpartition("/")[2],
        "encodingFormat": kind,
        "contentSize": str(entry.size),
        "sha256": entry.sha256,
    }

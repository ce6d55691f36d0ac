"""The reports that people read, made from evidence.json and the files beside it, always the same bytes.

A verifier makes them again and compares, so a report cannot say what the evidence does
not. Nothing is measured, judged or rounded into a better light here. README.md and index.html
are one list of sections, written by two writers.
"""

import base64
import html as html_text
import itertools
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from kit.evidence.contents import COMPLETE, Evidence, Promise, efficiencies, points, value, value_range
from kit.evidence.manifest import CAPTURES, EVIDENCE, MANIFEST, SUMS, Entry, build, check_json_size, is_derived, sums
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
    base, made = [name for name in files if not is_derived(name) or name == EVIDENCE], {}
    for name in base:
        if name.startswith("notebooks/"):
            path = PurePosixPath(name)
            made[str(path.with_suffix(".html"))] = notebook_page(files[name], path.stem).encode()
    made["training_log.txt"] = training_log(files.get("raw/steps.jsonl", b""))
    whole: Mapping[str, bytes] = ChainMap(made, files)  # type: ignore[arg-type]
    made |= {"README.md": readme(evidence, whole).encode(), "index.html": page(evidence, whole).encode()}
    hashed = [(entries or {}).get(name) or Entry.of(name, files[name]) for name in base]
    hashed += [Entry.of(name, data) for name, data in made.items()]
    for name, make in ((CRATE, ro_crate), (SUMS, sums), (MANIFEST, build)):
        made[name] = make(hashed, evidence)
        hashed.append(Entry.of(name, made[name]))
    return made


_LOGGED = ("loss", "grad_norm", "lr", "samples", "tokens", "step_time_s", "memory_allocated_bytes")


def training_log(steps: bytes) -> bytes:
    """raw/steps.jsonl as lines of text."""
    lines = [
        "# from raw/steps.jsonl; loss in nats per token, times synchronised with the device, - where there is none"
    ]
    for row in map(loads, steps.splitlines()):
        told = [(name, row.get(name)) for name in _LOGGED]
        said = (f"{name} {f'{one:.7g}' if isinstance(one, (int, float)) else '-'}" for name, one in told)
        lines.append("  ".join([f"step {row.get('step')}", *said]))
    return "\n".join([*lines, ""]).encode()


def notebook_page(data: bytes, title: str) -> str:
    """An executed notebook as a page; a sentence where the file is no notebook, as after a crash."""
    try:
        check_json_size(data)
        return notebook_html(loads(data.decode("utf-8")), title)
    except (ValueError, AttributeError, TypeError):
        return document(title, "<p>This notebook cannot be read.</p>\n")


# The two writers: the same sentences, rows and figures as HTML and as Markdown. What they write is data: of each kind
# what stands before it, each row with its words, what stands between two rows and what after them.

_HTML = {
    "head": ("", "<p class='badge {0}'>{0}</p>\n<h1>{1}</h1>\n", "", ""),
    "lead": ("<p>", "{0}", "", "</p>\n"),
    "keys": ("<div class='keys'>\n", "<div class='key'><b>{0}</b><span>{1}</span></div>\n", "", "</div>\n"),
    "contents": ("<nav>", "<a href='#{1}'>{0}</a>", " ", "</nav>\n"),
    "title": ("", "<h2 id='{1}'>{0}</h2>\n", "", ""),
    "text": ("", "<p>{0}</p>\n", "", ""),
    "soft": ("", "<p class='soft'>{0}</p>\n", "", ""),
    "facts": ("<dl>\n", "<div><dt>{0}</dt><dd>{1}</dd></div>\n", "", "</dl>\n"),
    "figures": ("<div class='figures'>\n", "{0}", "", "</div>\n"),
    "promises": ("<ol class='why'>\n", "<li>{1} <b>{2}.</b><br>{3}</li>\n", "", "</ol>\n"),
    "items": ("<ul>", "<li>{0}</li>", "", "</ul>\n"),
    "links": ("<p>", "<a href='{1}'>{1}</a>", " · ", "</p>\n"),
    "code": ("<pre>", "{0}", "\n", "</pre>\n"),
    "error": ("", "<div class='first'><p><b>{0}</b></p><pre>{1}</pre></div>\n", "", ""),
    "fold": ("", "<details{2}><summary>{0}</summary>\n{1}</details>\n", "", ""),
}
_MARKDOWN = {
    "head": ("", "# {0}: {1}\n\n", "", ""),
    "lead": ("", "{0}\n\n", "", ""),
    "keys": ("", "- **{0}** {1}\n", "", "\n"),
    "contents": ("", "", "", ""),
    "title": ("", "## {0}\n\n", "", ""),
    "text": ("", "{0}\n\n", "", ""),
    "soft": ("", "{0}\n\n", "", ""),
    "facts": ("| Part | What it is |\n| --- | --- |\n", "| {0} | {1} |\n", "", "\n"),
    "figures": ("", "{0}", "", ""),
    "promises": ("", "{0}. {1}: **{2}.** {3}\n", "", "\n"),
    "items": ("", "- {0}\n", "", "\n"),
    "links": ("", "[{1}]({0})", ", ", "\n\n"),
    "code": ("```\n", "{0}", "\n", "\n```\n\n"),
    "error": ("", "**{0}** {1}\n\n", "", ""),
    "fold": ("", "<details{2}><summary>{0}</summary>\n\n{1}</details>\n\n", "", ""),
}


class _Page:
    """A page that is being written. room: bytes of pictures that it can still take, since it may be sent around alone."""

    def __init__(self, files: Mapping[str, bytes], marks: Mapping[str, Sequence[str]], escaped: Callable) -> None:
        self.files, self.marks, self.escaped, self.room = files, marks, escaped, MAX_EMBEDDED_BYTES
        self.is_html = marks is _HTML

    def put(self, kind: str, *rows: Sequence[Any]) -> str:
        before, each, between, after = self.marks[kind]
        return before + between.join(each.format(*map(self.escaped, row)) for row in rows) + after

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
        made = [[self.escaped(word) for word in row] for row in rows]
        if self.is_html:
            return table_html(heads, made, style="")
        return "".join(f"| {' | '.join(line)} |\n" for line in [heads, ["---"] * len(heads), *made]) + "\n"

    def timed(self, time: str, share: float | None) -> str:
        """A step's time, over a bar that is full where the card cannot do better."""
        if not share or not self.is_html:
            return f"{time} ({percent(share)})" if share else time
        bar = "<svg class='bar' viewBox='0 0 100 6' preserveAspectRatio='none' role='img' aria-label='{} of the limit'>"
        return Html(f"{escape(time)}{bar.format(percent(share))}<rect width='{100 * share:.1f}' height='6'/></svg>")

    def figures(self, names: Sequence[str]) -> str:
        return self.put("figures", *((self._figure(name),) for name in names)) if names else ""

    def _figure(self, name: str) -> Html:
        alt, data = self.escaped(_alt(name, self.files)), self.files[name]
        if not self.is_html:
            return Html(f"![{alt}]({name})\n\n")
        self.room -= len(data)
        if self.room < 0 or not data.startswith(b"\x89PNG\r\n\x1a\n"):
            return Html(f"<p>{escape(name)} is not shown here: {alt}</p>\n")
        image = f"<img src='data:image/png;base64,{base64.b64encode(data).decode()}' alt='{alt}'>"
        return Html(f"<figure><a href='{escape(name)}'>{image}</a><figcaption>{alt}</figcaption></figure>\n")

    def title(self, title: str) -> str:
        return self.put("title", _linked(title))

    def code(self, text: str) -> str:
        return self.put("code", *((line,) for line in text.split("\n")))

    def fold(self, title: str, body: str, is_open: bool = False) -> str:
        return self.put("fold", (title, Html(body), Html(" open" * is_open)))


def _in_html(word: object) -> Html:
    return Html(f"<span class='badge {word}'>{word}</span>") if isinstance(word, Outcome) else escape(word)


def _in_markdown(word: object) -> str:
    return word if isinstance(word, Html) else in_markdown(word)


def page(evidence: Evidence, files: Mapping[str, bytes]) -> str:
    """index.html: the verdict in a sentence, large numbers, system, speed, why, checks, how to verify, all the rest."""
    out = _Page(files, _HTML, _in_html)
    names = [name for name in (*CAPTURES, "facts/begin.json", "facts/end.json") if name in files]
    told = "".join(out.fold(name, out.code(files[name].decode("utf-8", "replace"))) for name in names)
    rest = out.title("Machine and tools, in their own words") + told if told else ""
    return document(f"{evidence.verdict.outcome}: {evidence.headline}", _written(evidence, files, out) + rest)


def readme(evidence: Evidence, files: Mapping[str, bytes]) -> str:
    """README.md: the same in the same order, as GitHub shows it."""
    return _written(evidence, files, _Page(files, _MARKDOWN, _in_markdown)).rstrip() + "\n"


def _written(evidence: Evidence, files: Mapping[str, bytes], out: _Page) -> str:
    sections = [(title, body) for title, body in _sections(evidence, files, out) if body]
    lead = _lead(evidence)
    head = out.put("head", (str(evidence.verdict.outcome), evidence.headline))
    head += out.put("lead", *([(lead,)] if lead else [])) + out.put("soft", (_about(evidence),))
    head += _trouble(evidence, out) + out.put("keys", *itertools.islice(_keys(evidence), 6))
    head += out.put("contents", *(_linked(title) for title, _ in sections))
    return head + "".join(out.title(title) + body for title, body in sections)


def _linked(title: str) -> tuple[str, str]:
    """A title and its anchor."""
    return title, re.sub(r"\W+", "-", title.lower()).strip("-")


def _sections(evidence: Evidence, files: Mapping[str, bytes], out: _Page) -> Iterator[tuple[str, str]]:
    """Title and body of each section, in the order in which a reader asks."""
    yield "System under test", out.put("facts", *evidence.system.items()) if evidence.system else ""
    names = sorted((n for n in files if n.startswith("figures/") and n.endswith(".png")), key=_figure_order)
    shown, others = names[:4], names[4:]
    more = out.fold(f"{len(others)} more figures", out.figures(others)) if others else ""
    yield "How fast, beside what the card allows", _sweep(evidence, out) + out.figures(shown) + more
    seen = [p.sentence + (f". {RED_IS_RIGHT}" if _is_red_right(p) else "") for p in evidence.promises]
    rows = [(i, p.outcome, p.text, told) for i, (p, told) in enumerate(zip(evidence.promises, seen, strict=True), 1)]
    yield "Why you can believe it", out.put("promises", *rows)
    yield "Checks", "".join(_checks(evidence, out))
    needs = "Needs Python 3.11 and the kit, and nothing else: no GPU, no network. Every number and verdict above is "
    needs += "computed again from the raw records, and one changed byte is found."
    code = evidence.code.get("commit")
    checkout = f"git checkout {code}\n" if code and not evidence.code.get("is_dirty") else ""
    how = out.code(f"{checkout}python3 -m kit verify {evidence.run_id}")
    yield "Verify it yourself", out.put("text", (needs,)) + how + out.put("soft", (WORTH,))
    yield "What this report does not show", out.put("items", *((limit,) for limit in evidence.limits))
    figures = [(n.name, value(n), value_range(n), "" if n.n is None else n.n, n.definition) for n in evidence.numbers]
    numbers = out.table(("Name", "Value", "Range", "n", "Definition"), figures)
    yield "All numbers", out.fold(f"{len(evidence.numbers)} numbers with their definitions", numbers)
    runs = [(run.name, run.state, f"{run.cells_run} of {run.cells}") for run in evidence.notebooks]
    pages = [name for run in evidence.notebooks if (name := f"notebooks/{run.name}.html") in files]
    raw = sorted(name for name in files if name.startswith(("raw/", "facts/")))
    folded = out.fold(f"{len(raw)} raw records", out.put("links", *((Html(name), name) for name in raw)))
    ran = out.table(("Notebook", "State", "Cells run"), runs)
    yield "Notebooks and raw records", ran + out.put("links", *((Html(name), name) for name in pages)) + folded


def _is_red_right(promise: Promise) -> bool:
    return promise.outcome in _GOOD and "integrity.negative_control" in promise.checks


def _checks(evidence: Evidence, out: _Page) -> Iterator[str]:
    """The checks of each claim, folded where all of them passed."""
    for claim, title in zip(CLAIMS, _CLAIMS, strict=True):
        checks, rows, is_open = [check for check in evidence.verdict.checks if check.claim == claim], [], False
        for check in checks:
            is_red = check.outcome not in _GOOD
            is_open = is_open or (check.required and is_red)
            expected = check.expected + (f" To do: {check.todo}" if check.todo and is_red else "")
            name = check.id if check.required else f"{check.id} (does not count)"
            rows.append((check.outcome, name, check.found, expected))
        good = sum(check.outcome in _GOOD for check in checks)
        count = f"{good} passed" if good == len(checks) else f"{good} of {len(checks)} passed"
        if checks:
            yield out.fold(f"{title}: {count}", out.table(("Outcome", "Check", "Found", "Expected"), rows), is_open)


def _lead(evidence: Evidence) -> str:
    """What a manager asks next: how fast, and did everything hold."""
    told, checks, words = _values(evidence), evidence.verdict.checks, []
    if told.get("best_tokens_per_s"):
        share, what = told.get("best_floor_ratio"), "card" if evidence.device == "cuda" else "machine"
        limit = f", {percent(share)} of what this {what} allows" if share else ""
        words.append(f"At its best it trains {_rounded(told['best_tokens_per_s'])} tokens a second{limit}.")
    if checks and all(check.outcome in _GOOD for check in checks if check.required):
        is_all = all(check.outcome in _GOOD for check in checks)
        every = f"All {len(checks)} checks passed" if is_all else "All required checks passed"
        caught = any(_is_red_right(promise) for promise in evidence.promises)
        words.append(f"{every}{', and a run that lied about its GPU was caught' if caught else ''}.")
    return " ".join(words)


def _rounded(rate: float) -> str:
    """No more digits than the spread of a rate allows."""
    return f"{float(f'{rate:.3g}'):,.0f}" if rate >= 1000 else number(rate)


def _about(evidence: Evidence) -> str:
    """One line: when, which run, which code. A dirty tree is never silent."""
    code = {name: str(told or "unknown")[:12] for name, told in {"source_sha256": "", **evidence.code}.items()}
    commit = f"commit {code['commit']}" if evidence.code.get("commit") else f"source {code['source_sha256']}"
    if evidence.code.get("is_dirty"):
        commit += f" with uncommitted changes (diff {code.get('diff_sha256', 'unknown')})"
    nonce = f" · reviewer's nonce {evidence.reviewer_nonce}" if evidence.reviewer_nonce else ""
    when = f"{evidence.started_utc[:16].replace('T', ' ')} to {evidence.ended_utc[11:16]} UTC"
    return f"{when} · report {evidence.run_id} · {evidence.state} · kit {evidence.kit_version}, {commit}{nonce}"


def _trouble(evidence: Evidence, out: _Page) -> str:
    """What stopped the run, and what to do: first, where there is something."""
    told, failing = "", next((run for run in evidence.notebooks if run.state in ("failed", "interrupted")), None)
    if failing and evidence.state != COMPLETE:
        where = f"after {failing.cells_run} of {failing.cells} cells"
        where = where if failing.failing_cell is None else f"cell {failing.failing_cell}"
        told = out.put("error", (f"Stopped in {failing.name}, {where}.", failing.error or "no error"))
    todo = [f"{check.id}: {check.todo}" for check in evidence.verdict.findings if check.todo and check.required]
    return told + (out.put("text", ("What to do:",)) + out.put("items", *((one,) for one in todo)) if todo else "")


def _values(evidence: Evidence) -> dict[str, Any]:
    return {number.name: number.value for number in evidence.numbers}


def _keys(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The large numbers, each with what it needs to be compared fairly."""
    told, unit = _values(evidence), "GPU" if evidence.device == "cuda" else "CPU rank"
    by_name = {n.name: n for n in evidence.numbers}
    for ranks, share in efficiencies(evidence.numbers).items():
        where = share.definition.partition("; ")[2]
        yield percent(share.value, 3), f"of {ranks} times one {unit}'s speed, on {ranks} {unit}s: {where}"
    if told.get("best_tokens_per_s"):
        where = by_name["best_tokens_per_s"].definition.partition(": ")[2]
        yield f"{_rounded(told['best_tokens_per_s'])} tokens/s", f"best point, one {unit}: {where}"
    if told.get("best_mfu_datasheet"):
        measured = told.get("best_mfu_measured")
        also = f"; {percent(measured)} of the peak measured here" if measured else ""
        yield f"{percent(told['best_mfu_datasheet'])} MFU", f"of the card's published peak{also}"
    if told.get("best_floor_ratio"):
        yield percent(told["best_floor_ratio"]), "of the limit that this card's own ceilings, measured in this run, set"
    yield from _beside_trainer(evidence)
    smoke = evidence.system.get("Smoke run", "the smoke run")
    if told.get("steady_step_s") and not told.get("best_tokens_per_s"):
        yield seconds(told["steady_step_s"]), f"a step: {smoke}"
    if told.get("peak_memory_bytes"):
        yield value(by_name["peak_memory_bytes"]), f"peak memory: {smoke}"


def _beside_trainer(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The fastest engine beside Hugging Face's Trainer, at the largest shape that both ran."""
    timed = {shape: {e: n.value for e, n in at.items() if n.value} for shape, at in points(evidence.numbers).items()}
    shapes = [shape for shape, engines in timed.items() if "trainer" in engines and len(engines) > 1]
    if shapes:
        shape = max(shapes, key=lambda shape: shape[0] * shape[1])
        engine, time = min(timed[shape].items(), key=lambda pair: pair[1])
        base, where = timed[shape]["trainer"], "{} × {} in {}".format(*shape)
        told = f"{engine} against Hugging Face's Trainer: {seconds(time)} and {seconds(base)} a step of {where}"
        yield f"{number(base / time, 2)} ×", told


def _sweep(evidence: Evidence, out: _Page) -> str:
    """Engines against shapes: the time of a step, and how much of the limit it is."""
    told, timed, rows = _values(evidence), points(evidence.numbers), []
    if not timed:
        return ""
    shapes = sorted(timed, key=lambda shape: (shape[0] * shape[1], shape))
    limits = [told.get("limit_{}x{}_{}_s".format(*shape)) for shape in shapes]
    engines = sorted({engine for at in timed.values() for engine in at})
    for engine in sorted(engines, key=lambda name: ENGINES.index(name) if name in ENGINES else 9):
        row = [{"trainer": "Hugging Face's Trainer", "eager": "plain loop"}.get(engine, engine)]
        for shape, limit in zip(shapes, limits, strict=True):
            one = timed[shape].get(engine)
            time = one.value if one else None
            share = limit / time if time and limit and limit <= time else None
            row.append(out.timed(seconds(time), share) if time else (one and one.reason or "")[:40] or "–")
        rows.append(row)
    rows.append(["limit of this card", *map(seconds, limits)])
    words = "Each cell: the time of one training step, and the share of the limit that it reaches. The limit follows "
    words += "from the matrix products and copies that this very card did in this run; a full bar cannot be beaten."
    return out.put("text", (words,)) + out.table(("Engine", *("{} × {}, {}".format(*shape) for shape in shapes)), rows)


def _figure_order(name: str) -> tuple[int, str]:
    stem = PurePosixPath(name).stem
    return (_FIRST_FIGURES.index(stem) if stem in _FIRST_FIGURES else len(_FIRST_FIGURES)), name


def _alt(name: str, files: Mapping[str, bytes]) -> str:
    """The description that the SVG beside the PNG carries, else the file's name."""
    svg = files.get(name.removesuffix(".png") + ".svg", b"")[:20_000].decode("utf-8", "replace")
    told = re.search(r"<dc:description>([^<]{1,2000})</dc:description>", svg)
    return html_text.unescape(told[1]).strip() if told else PurePosixPath(name).stem.replace("_", " ")


# The same evidence for other people's tools: RO-Crate 1.1 (Process Run Crate 0.5). Derived, it decides nothing.

CRATE = "ro-crate-metadata.json"
_CRATE_1_1 = "https://w3id.org/ro/crate/1.1"
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


def ro_crate(entries: Iterable[Entry], evidence: Evidence) -> bytes:
    """ro-crate-metadata.json: every file that is there by then, and the run as a CreateAction."""
    files = [
        {
            "@id": entry.path,
            "@type": "File",
            "name": entry.path.rpartition("/")[2],
            "encodingFormat": _TYPES.get(entry.path.rpartition(".")[2], "text/plain"),
            "contentSize": str(entry.size),
            "sha256": entry.sha256,
        }
        for entry in sorted(entries, key=lambda entry: entry.path)
    ]
    parts = [{"@id": file["@id"]} for file in files]
    stopped = visible(next((run.error for run in evidence.notebooks if run.error), evidence.headline))
    graph = [
        {"@id": CRATE, "@type": "CreativeWork", "conformsTo": {"@id": _CRATE_1_1}, "about": {"@id": "./"}},
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
        {
            "@id": "#run",
            "@type": "CreateAction",
            "name": f"kit report --device {evidence.device}",
            "description": f"Verdict {evidence.verdict.outcome}",
            "instrument": {"@id": "#kit"},
            "result": parts,
            "startTime": evidence.started_utc,
            "endTime": evidence.ended_utc,
            "actionStatus": f"http://schema.org/{'Completed' if evidence.state == COMPLETE else 'Failed'}ActionStatus",
            **({} if evidence.state == COMPLETE else {"error": stopped}),
        },
        *files,
    ]
    context = [f"{_CRATE_1_1}/context", {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}]
    return (dumps({"@context": context, "@graph": graph}) + "\n").encode()

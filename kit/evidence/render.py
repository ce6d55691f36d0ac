"""The reports that people read, made from evidence.json and the files beside it, always the same bytes.

A verifier makes them again and compares, so a report cannot say what the evidence does
not. Nothing is measured, judged or rounded into a better light here.
"""

from __future__ import annotations

import base64
import html as html_text
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from kit.evidence import manifest as bundle_manifest
from kit.evidence.limits import check_json_size
from kit.evidence.manifest import CAPTURES, EVIDENCE, MANIFEST, SUMS, Entry, is_derived
from kit.evidence.model import COMPLETE, Evidence, NotebookRun
from kit.evidence.notebook_html import notebook_html
from kit.evidence.page import cell, document, table
from kit.evidence.standards import junit, ro_crate
from kit.evidence.text import in_html, in_markdown, value, value_range
from kit.records import Outcome, loads
from kit.units import MiB

# Figures beyond this are named, not shown: the page must open on a phone.
MAX_EMBEDDED_BYTES = 12 * MiB
WORTH = (
    "Unsigned, this report shows mistakes and casual edits: `python -m kit verify` derives every number and "
    "verdict from the raw files again. Who is dishonest enough can make all of it up. Where "
    "`manifest.json.sig` stands beside it, the person who signed vouches for it."
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
    made["README.md"] = readme(evidence).encode()
    made["index.html"] = page(evidence, files).encode()
    made["junit.xml"] = junit(evidence)
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


def notebook_page(data: bytes, title: str) -> str:
    """An executed notebook as a page; a sentence where the file is no notebook, as after a crash."""
    try:
        check_json_size(data)
        return notebook_html(loads(data.decode("utf-8")), title)
    except (ValueError, AttributeError, TypeError):
        return document(title, "<p>This notebook cannot be read.</p>\n")


def readme(evidence: Evidence) -> str:
    """README.md: verdict, promises, numbers, limits."""
    md = in_markdown
    lines = [f"# {evidence.verdict.outcome}: {md(evidence.headline)}", ""]
    failing = _failing(evidence)
    if failing:
        lines += [
            f"**Stopped in {md(failing.name)}, {md(_where(failing))}:** {md(failing.error or 'no error')}",
            "",
        ]
    lines += [md(_made(evidence)), "", "## The six promises", ""]
    lines += _md_table(
        ("Outcome", "Promise", "Seen"), [(p.outcome, f"{p.number}. {p.text}", p.sentence) for p in evidence.promises]
    )
    lines += ["## Numbers", ""]
    rows = [(n.name, value(n), value_range(n), n.n if n.n is not None else "", n.definition) for n in evidence.numbers]
    lines += _md_table(("Name", "Value", "Range", "n", "Definition"), rows)
    findings = evidence.verdict.findings
    if findings:
        lines += ["## What is not green", ""]
        lines += _md_table(
            ("Outcome", "Check", "Found", "To do"), [(c.outcome, c.id, c.found, c.todo) for c in findings]
        )
    lines += ["## Notebooks", ""]
    lines += _md_table(("Notebook", "State", "Cells run"), [(r.name, r.state, _cells(r)) for r in evidence.notebooks])
    lines += ["## What this report does not show", ""]
    lines += [f"- {md(limit)}" for limit in evidence.limits] or ["- Nothing was named."]
    lines += ["", "## What it is worth", "", WORTH, ""]
    return "\n".join(lines)


def page(evidence: Evidence, files: Mapping[str, bytes]) -> str:
    """index.html: the verdict in one sentence, what stopped it, promises, numbers, figures, checks, facts."""
    title = f"{evidence.verdict.outcome}: {evidence.headline}"
    parts = [
        _opening(evidence),
        _heading("The six promises", table(("Outcome", "Promise", "Seen"), [_promise(p) for p in evidence.promises])),
        _heading(
            "Numbers",
            table(("Name", "Value", "Range", "n", "Definition"), [_number(n) for n in evidence.numbers]),
        ),
        _figures(files),
        _heading(
            "Checks", table(("Outcome", "Check", "Found", "Expected"), [_check(c) for c in evidence.verdict.checks])
        ),
        _heading(
            "Notebooks",
            table(("Notebook", "State", "Cells run"), [_notebook(r, files) for r in evidence.notebooks]),
        ),
        _heading("What this report does not show", _bullets(evidence.limits)),
        _heading("What it is worth", f"<p>{in_html(WORTH).replace('`', '')}</p>\n"),
        _texts("The machine, before and after", ("facts/begin.json", "facts/end.json"), files),
        _texts("What the tools said", CAPTURES, files),
    ]
    return document(title, "".join(parts))


# --- parts --------------------------------------------------------------------------


def _opening(evidence: Evidence) -> str:
    outcome = evidence.verdict.outcome
    html = f"<p class='badge {outcome}'>{outcome}</p>\n<h1>{in_html(evidence.headline)}</h1>\n"
    failing = _failing(evidence)
    if failing:
        html += (
            f"<div class='first'><p><b>{in_html(f'Stopped in {failing.name}, {_where(failing)}.')}</b></p>"
            f"<pre>{in_html(failing.error or 'no error')}</pre></div>\n"
        )
    todo = [f"{check.id}: {check.todo}" for check in evidence.verdict.findings if check.todo]
    if todo:
        html += f"<p><b>To do</b></p>\n{_bullets(todo)}"
    return html + f"<p class='soft'>{in_html(_made(evidence))}</p>\n"


def _made(evidence: Evidence) -> str:
    """One line: state, device, time, code. A dirty tree is never silent."""
    code = evidence.code
    commit, source = code.get("commit"), str(code.get("source_sha256") or "unknown")[:12]
    commit = f"commit {str(commit)[:12]}" if commit else f"source {source}"
    if code.get("is_dirty"):
        commit += f" with uncommitted changes (diff {str(code.get('diff_sha256') or 'unknown')[:12]})"
    nonce = f"; reviewer's nonce {evidence.reviewer_nonce}" if evidence.reviewer_nonce else ""
    return (
        f"State {evidence.state}; device {evidence.device}; run {evidence.run_id}; {evidence.started_utc} to "
        f"{evidence.ended_utc}; kit {evidence.kit_version}, {commit}{nonce}."
    )


def _failing(evidence: Evidence) -> NotebookRun | None:
    if evidence.state == COMPLETE:
        return None
    return next((run for run in evidence.notebooks if run.state in ("failed", "interrupted")), None)


def _where(run: NotebookRun) -> str:
    return f"cell {run.failing_cell}" if run.failing_cell is not None else f"after {run.cells_run} of {run.cells} cells"


def _cells(run: NotebookRun) -> str:
    return f"{run.cells_run} of {run.cells}"


def _promise(promise: Any) -> tuple[str, ...]:
    return _outcome(promise.outcome), cell(f"{promise.number}. {promise.text}"), cell(promise.sentence)


def _number(number: Any) -> tuple[str, ...]:
    n = number.n if number.n is not None else ""
    kind = "n" if number.value is not None else ""
    return (
        cell(number.name),
        cell(value(number), kind),
        cell(value_range(number), "n"),
        cell(n),
        cell(number.definition),
    )


def _check(check: Any) -> tuple[str, ...]:
    name = check.id if check.required else f"{check.id} (does not count)"
    return _outcome(check.outcome), cell(name), cell(check.found), cell(check.expected)


def _notebook(run: NotebookRun, files: Mapping[str, bytes]) -> tuple[str, ...]:
    shown = in_html(run.name)
    if f"notebooks/{run.name}.ipynb" in files:
        shown = f"<a href='notebooks/{shown}.html'>{shown}</a>"
    return f"<td>{shown}</td>", cell(run.state), cell(_cells(run))


def _outcome(outcome: Outcome) -> str:
    return f"<td class='{outcome}'>{outcome}</td>"


# The answers first; figures of other names follow.
_FIRST_FIGURES = ("training", "throughput", "scaling", "roofline")


def _figure_order(name: str) -> tuple[int, str]:
    stem = PurePosixPath(name).stem
    return (_FIRST_FIGURES.index(stem) if stem in _FIRST_FIGURES else len(_FIRST_FIGURES)), name


def _figures(files: Mapping[str, bytes]) -> str:
    html, room = "", MAX_EMBEDDED_BYTES
    names = (name for name in files if name.startswith("figures/") and name.endswith(".png"))
    for name in sorted(names, key=_figure_order):
        data, alt = files[name], _alt(name, files)
        room -= len(data)
        if room < 0 or not data.startswith(b"\x89PNG\r\n\x1a\n"):
            html += f"<p>{in_html(name)} is not shown here: {in_html(alt)}</p>\n"
            continue
        source = base64.b64encode(data).decode()
        html += (
            f"<figure><img src='data:image/png;base64,{source}' alt='{in_html(alt)}'>"
            f"<figcaption>{in_html(alt)}</figcaption></figure>\n"
        )
    return _heading("Figures", html) if html else ""


def _alt(name: str, files: Mapping[str, bytes]) -> str:
    """The description that the SVG beside the PNG carries, else the file's name."""
    svg = files.get(name.removesuffix(".png") + ".svg", b"")[:20_000].decode("utf-8", "replace")
    told = re.search(r"<dc:description>([^<]{1,2000})</dc:description>", svg)
    return html_text.unescape(told[1]).strip() if told else PurePosixPath(name).stem.replace("_", " ")


def _texts(title: str, names: Iterable[str], files: Mapping[str, bytes]) -> str:
    html = "".join(
        f"<details><summary>{in_html(name)}</summary>"
        f"<pre>{in_html(files[name].decode('utf-8', 'replace'))}</pre></details>\n"
        for name in names
        if name in files
    )
    return _heading(title, html) if html else ""


def _heading(title: str, html: str) -> str:
    return f"<h2>{in_html(title)}</h2>\n{html}"


def _bullets(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{in_html(item)}</li>" for item in items) + "</ul>\n"


def _md_table(heads: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    made = ["| " + " | ".join(in_markdown(item) for item in row) + " |" for row in rows]
    return ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |", *made, ""]

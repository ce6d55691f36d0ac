"""The reports that people read, made from evidence.json and the files beside it, always the same bytes.

A verifier makes them again and compares, so a report cannot say what the evidence does
not. Nothing is measured, judged or rounded into a better light here.
"""

from __future__ import annotations

import base64
import dataclasses
import html as html_text
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from kit.evidence import manifest as bundle_manifest
from kit.evidence.contents import COMPLETE, Evidence, NotebookRun, value, value_range
from kit.evidence.manifest import CAPTURES, EVIDENCE, MANIFEST, SUMS, Entry, check_json_size, is_derived
from kit.evidence.notebook import notebook_html
from kit.records import Outcome, dumps, loads
from kit.show import cell, document, in_html, in_markdown, table, visible
from kit.units import MiB, number, percent

# reports/index.html: every bundle of a folder in one table, and how each machine did over time.
#
# It repeats what the bundles say and judges nothing: `kit verify` does, on the bundles themselves.

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
    made["training_log.txt"] = training_log(files.get("raw/steps.jsonl", b""))
    made["README.md"] = readme(evidence).encode()
    made["index.html"] = page(evidence, ChainMap(made, files)).encode()
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


def training_log(steps: bytes) -> bytes:
    """raw/steps.jsonl as lines of text."""
    lines = ["# from raw/steps.jsonl; loss in nats per token, times synchronised with the device"]
    for line in steps.splitlines() or [b"{}"]:
        step = loads(line)
        told = [f"step {step['step']:>4}"] if "step" in step else ["# no step was run"]
        for name, form in (("loss", ".5f"), ("grad_norm", ".4f"), ("lr", "g"), ("samples", ""), ("tokens", "")):
            if name in step:
                told.append(f"{name} {'not finite' if step[name] is None else format(step[name], form)}")
        if "step_time_s" in step:
            told.append(f"{step['step_time_s'] * 1e3:.2f} ms")
        if step.get("memory_allocated_bytes"):
            told.append(f"memory {step['memory_allocated_bytes']} B")
        lines.append("  ".join(told))
    return "\n".join([*lines, ""]).encode()


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

"""An executed notebook as one HTML file that loads and runs nothing, from its JSON alone.

nbconvert's templates load scripts and leave HTML outputs as they are, and a verifier
without Jupyter must be able to make the same bytes again. Here all text is escaped, pictures
are PNG as data, and an HTML output is shown as the plain text or Markdown that stands beside it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kit.evidence.redact import strip_png
from kit.show import ANSI, document, escape


def notebook_html(notebook: Mapping[str, Any], title: str = "notebook") -> str:
    """The notebook as a page: markdown, code with its count, and outputs as text, tables and pictures."""
    cells = [_cell(cell) for cell in notebook.get("cells", ())]
    return document(title, f"<p><a href='../index.html'>The report</a></p>\n{''.join(cells)}")


def _cell(cell: Mapping[str, Any]) -> str:
    if cell.get("cell_type") == "markdown":
        return markdown(text(cell.get("source")))
    if cell.get("cell_type") != "code":
        return f"<pre>{escape(text(cell.get('source')))}</pre>\n"
    count = cell.get("execution_count")
    outputs = "".join(_output(output) for output in cell.get("outputs", ()))
    label = escape(f"[{count if count is not None else ' '}]")
    source = escape(text(cell.get("source")))
    return f"<div class='cell'><small>{label}</small><pre class='code'>{source}</pre>{outputs}</div>\n"


def _output(output: Mapping[str, Any]) -> str:
    kind = output.get("output_type")
    if kind == "stream":
        return f"<pre>{escape(ANSI.sub('', text(output.get('text'))))}</pre>"
    if kind == "error":
        trace = "\n".join(part for part in output.get("traceback", ()) if isinstance(part, str))
        return f"<pre class='error'>{escape(ANSI.sub('', trace or text(output.get('evalue'))))}</pre>"
    data = output.get("data", {})
    plain = text(data.get("text/plain"))
    if "image/png" in data:
        metadata = output.get("metadata", {}).get("image/png", {})
        return picture(text(data["image/png"]), str(metadata.get("alt") or plain))
    if "text/markdown" in data:
        return markdown(text(data["text/markdown"]))
    return f"<pre>{escape(ANSI.sub('', plain))}</pre>" if plain else ""


def picture(base64_text: str, alt: str) -> str:
    """An image tag with the PNG as data, or a sentence where it is no PNG."""
    data = _png(base64_text)
    if not data:
        return f"<p>A picture that is not a PNG is not shown: {escape(alt)}</p>"
    return f"<img src='data:image/png;base64,{base64.b64encode(data).decode()}' alt='{escape(alt)}'>"


def _png(base64_text: str) -> bytes:
    """The picture; empty where it is none."""
    try:
        data = base64.b64decode("".join(base64_text.split()), validate=True)
    except ValueError:
        return b""
    return data if data.startswith(b"\x89PNG\r\n\x1a\n") else b""


# --- Markdown: headings, paragraphs, lists, tables, code; nothing that loads or runs ---


def markdown(source: str) -> str:
    return "".join(_blocks(source.split("\n")))


def _blocks(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line, start = lines[at].rstrip(), at
        at += 1
        if line.startswith("```"):
            while at < len(lines) and not lines[at].startswith("```"):
                at += 1
            yield f"<pre>{escape(chr(10).join(lines[start + 1 : at]))}</pre>\n"
            at += 1
        elif heading := re.match(r"(#{1,4}) +(.*)", line):
            level = len(heading[1])
            yield f"<h{level}>{_inline(heading[2])}</h{level}>\n"
        elif line.startswith("|"):
            at = _end(lines, start, r"\|")
            yield _table(lines[start:at])
        elif re.match(r" *(?:[-*]|\d+\.) ", line):
            at = _end(lines, start, r" *(?:[-*]|\d+\.) |  +\S")
            yield _list(lines[start:at])
        elif line:
            at = _end(lines, start, r"(?!```|#{1,4} |\||(?:[-*]|\d+\.) ).*\S")
            yield f"<p>{_inline(' '.join(part.strip() for part in lines[start:at]))}</p>\n"


def _end(lines: list[str], start: int, pattern: str) -> int:
    at = start + 1
    while at < len(lines) and re.match(pattern, lines[at]):
        at += 1
    return at


def _table(rows: list[str]) -> str:
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))] for row in rows]
    kept = [row for row in cells if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    made = ["".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in kept]
    return f"<div class='wide'><table>{''.join(f'<tr>{row}</tr>' for row in made)}</table></div>\n"


def _list(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        mark = re.match(r" *(?:[-*]|\d+\.) +(.*)", line)
        if mark or not items:
            items.append(mark[1] if mark else line)
        else:
            items[-1] += " " + line.strip()
    tag = "ol" if re.match(r" *\d", lines[0]) else "ul"
    return f"<{tag}>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</{tag}>\n"


def _inline(source: str) -> str:
    """Code, bold, italic and http links; what is inside a code span stays as it is."""
    parts = re.split(r"(`[^`]+`)", source)
    return "".join(f"<code>{escape(p[1:-1])}</code>" if p[:1] == "`" and len(p) > 2 else _marked(p) for p in parts)


def _marked(source: str) -> str:
    # No class here runs past the next opening mark, so a page of brackets costs no more than any other.
    made: str = escape(source)
    made = re.sub(r"!\[([^\[\]]*)\]\([^)\[\s]*\)", r"\1", made)
    made = re.sub(r"\[([^\[\]]+)\]\((https?://[^)\[\s&]+)\)", r"<a href='\2' rel='noopener noreferrer'>\1</a>", made)
    made = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", made)
    return re.sub(r"(?<![\w*])[*_]([^*_<>]+)[*_](?![\w*])", r"<i>\1</i>", made)


# Whether an executed notebook is what it says, and the notebook without what it need not tell. Works on its JSON,
# so a verifier without Jupyter can ask the same questions.

# Cells that an execution adds to the template, by papermill's tags.
_ADDED_TAGS = {"injected-parameters", "papermill-error-cell-tag"}


def source_sha256(notebook: Mapping[str, Any]) -> str:
    """Hash of kind and source of each cell: the same for a template and its executed copy.

    Outputs, metadata, line ends and the cells that papermill adds do not count.
    """
    cells = [[cell.get("cell_type"), text(cell.get("source"))] for cell in _own_cells(notebook)]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def problems(notebook: Mapping[str, Any]) -> tuple[str, ...]:
    """Why an executed notebook does not count; empty where every code cell ran once, in order, unharmed."""
    return tuple(_problems(notebook))


def _problems(notebook: Mapping[str, Any]) -> Iterator[str]:
    expected = 0
    for index, cell in enumerate(notebook.get("cells", ())):
        if cell.get("cell_type") != "code" or not text(cell.get("source")).strip():
            continue
        expected += 1
        if cell.get("execution_count") != expected or isinstance(cell.get("execution_count"), bool):
            yield f"cell {index} has execution count {cell.get('execution_count')}, expected {expected}"
        for output in cell.get("outputs", ()):
            if output.get("output_type") == "error":
                yield f"cell {index} ended in {output.get('ename')}: {text(output.get('evalue'))[:200]}"
    if not expected:
        yield "it has no code cell"


def stripped(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without metadata that tells of the machine, and with pictures without theirs."""
    metadata = notebook.get("metadata", {})
    kept = {name: metadata[name] for name in ("kernelspec", "language_info") if name in metadata}
    cells = [_stripped_cell(cell) for cell in notebook.get("cells", ())]
    return {**notebook, "metadata": kept, "cells": cells}


def text(source: Any) -> str:
    """A notebook keeps text as one string or as a list of lines."""
    whole = "".join(part for part in source if isinstance(part, str)) if isinstance(source, list) else source
    return whole.replace("\r\n", "\n") if isinstance(whole, str) else ""


def injected(notebook: Mapping[str, Any], name: str) -> str | None:
    """The text that papermill gave the notebook's parameter `name`; None where it gave none."""
    for cell in notebook.get("cells", ()):
        if "injected-parameters" in cell.get("metadata", {}).get("tags", ()):
            found = re.search(rf"""(?m)^{name} = (["'])(.*)\1$""", text(cell.get("source")))
            return found[2] if found else None
    return None


def pictures(notebook: Mapping[str, Any]) -> set[bytes]:
    """The PNG of every output."""
    found = (text(output.get("data", {}).get("image/png")) for output in _outputs(notebook))
    return {data for data in map(_png, found) if data}


def printed(notebook: Mapping[str, Any]) -> list[str]:
    """The plain text of every output."""
    return [text(output.get("text") or output.get("data", {}).get("text/plain")) for output in _outputs(notebook)]


def _outputs(notebook: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for cell in notebook.get("cells", ()):
        yield from cell.get("outputs", ())


def _own_cells(notebook: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for cell in notebook.get("cells", ()):
        if not _ADDED_TAGS & set(cell.get("metadata", {}).get("tags", ())):
            yield cell


def _stripped_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    tags = cell.get("metadata", {}).get("tags", [])
    cell = {**cell, "metadata": {"tags": tags} if tags else {}}
    if "outputs" in cell:
        cell["outputs"] = [_stripped_output(output) for output in cell["outputs"]]
    return cell


def _stripped_output(output: Mapping[str, Any]) -> Mapping[str, Any]:
    output = _plain(output)
    data = output.get("data")
    if not isinstance(data, Mapping) or "image/png" not in data:
        return output
    try:
        picture = strip_png(base64.b64decode(text(data["image/png"])))
    except (ValueError, binascii.Error):
        # Not a picture: nothing to show.
        return {**output, "data": {key: value for key, value in data.items() if key != "image/png"}}
    return {**output, "data": {**data, "image/png": base64.b64encode(picture).decode() + "\n"}}


def _plain(value: Any) -> Any:
    """Without a terminal's colours: they stand inside paths and names, where redaction would not see those."""
    if isinstance(value, str):
        return ANSI.sub("", value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value

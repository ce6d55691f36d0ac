"""An executed notebook as one HTML file that loads and runs nothing, from its JSON alone.

nbconvert's templates load scripts and leave HTML outputs as they are, and a verifier
without Jupyter must be able to make the same bytes again. Here all text is escaped, pictures
are PNG as data, and an HTML output keeps its tables and cards, as tags that lay out text and do nothing else.
"""

import base64
import hashlib
import html
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
    source, count = text(cell.get("source")), cell.get("execution_count")
    if cell.get("cell_type") == "markdown":
        return markdown(source)
    if cell.get("cell_type") != "code":
        return f"<pre>{escape(source)}</pre>\n"
    outputs = "".join(map(_output, cell.get("outputs", ())))
    label = escape(f"[{' ' if count is None else count}]")
    return f"<div class='cell'><small>{label}</small><pre class='code'>{escape(source)}</pre>{outputs}</div>\n"


def _output(output: Mapping[str, Any]) -> str:
    data, kind = output.get("data", {}), output.get("output_type")
    told = text(output.get("text") if kind == "stream" else data.get("text/plain"))
    if kind == "error":
        told = "\n".join(part for part in output.get("traceback", ()) if isinstance(part, str))
        return f"<pre class='error'>{escape(ANSI.sub('', told or text(output.get('evalue'))))}</pre>"
    if kind != "stream" and "image/png" in data:
        alt = escape(str(output.get("metadata", {}).get("image/png", {}).get("alt") or told))
        drawn = base64.b64encode(_png(text(data["image/png"]))).decode()
        missing = f"<p>A picture that is not a PNG is not shown: {alt}</p>"
        return f"<img src='data:image/png;base64,{drawn}' alt='{alt}'>" if drawn else missing
    if kind != "stream" and "text/markdown" in data:
        return markdown(text(data["text/markdown"]))
    laid_out = safe_html(text(data.get("text/html"))) if kind != "stream" else ""
    # Only where it says nothing that the text does not say, which is what is compared with the evidence.
    if laid_out and not _words(re.sub("<[^>]*>", " ", laid_out)) - _words(escape(told)) - _HEADS:
        return laid_out
    return f"<pre>{escape(ANSI.sub('', told))}</pre>" if told or kind == "stream" else ""


def _words(told: str) -> set[str]:
    return set(re.findall(r"\w+", told))


# What a table of checks says above its columns, and the text does not.
_HEADS = {"outcome", "check", "found"}
_LAYOUT = {"b", "br", "code", "div", "li", "p", "span", "table", "tbody", "td", "th", "thead", "tr", "ul"}
_UNSEEN = {"script", "style", "template", "title"}
_VALUE = r"[-#%. \w]+|rgba\([\d.,]+\)"
_SAFE_STYLE = re.compile(rf"(?:(?:background|border|color|font|margin|padding|text)[-a-z]*: ?(?:{_VALUE}); ?)*")


def safe_html(source: str) -> str:
    """`source` with the tags that lay out text, their plain styles, and its text; each tag is closed."""
    made: list[str] = []
    opened: list[str] = []
    is_unseen = False
    for part in re.split(r"(<[^<>]*>)", source):
        if not part or part.startswith(("<!", "<?")):
            continue
        tag = re.fullmatch(r"<(/?)(\w+)([^<>]*)>", part)
        if not tag:
            made.append("" if is_unseen else escape(html.unescape(part)))
            continue
        is_end, name = bool(tag[1]), tag[2].lower()
        if name in _UNSEEN:
            is_unseen = not is_end
        elif is_end and name in opened:
            while opened[-1] != name:
                made.append(f"</{opened.pop()}>")
            made.append(f"</{opened.pop()}>")
        elif not is_end and name in _LAYOUT and len(opened) < 50:
            kept = "".join(re.findall(r""" (?:row|col)span=["']?\d{1,2}["']?| class='wide'""", tag[3]))
            style = re.search(r"""style=["']([^"']*?);?["']""", tag[3])
            if style and _SAFE_STYLE.fullmatch(style[1] + ";"):
                kept += f' style="{style[1]}"'
            made.append(f"<{name}{kept}>".replace("'wide'", "'wide' tabindex='0'"))
            opened += [name] if name != "br" else []
    return "".join([*made, *(f"</{name}>" for name in reversed(opened))])


def _png(base64_text: str) -> bytes:
    """The picture; empty where it is none."""
    try:
        data = base64.b64decode("".join(base64_text.split()), validate=True)
    except ValueError:
        return b""
    return data if data.startswith(b"\x89PNG\r\n\x1a\n") else b""


# --- Markdown: headings, paragraphs, lists, tables, code; nothing that loads or runs ---

_ITEM = r" *(?:[-*]|\d+\.) "
# Of each block how its first line looks, and how those look that go on with it. The last is a paragraph.
_BLOCKS = (
    ("code", r"```", r"(?!```)"),
    ("heading", r"#{1,4} +", r"(?!)"),
    ("table", r"\|", r"\|"),
    ("list", _ITEM, rf"{_ITEM}|  +\S"),
    ("paragraph", r".", r"(?!```|#{1,4} |\||(?:[-*]|\d+\.) ).*\S"),
)


def markdown(source: str) -> str:
    lines, made, at = source.split("\n"), [], 0
    while at < len(lines):
        first, start, at = lines[at].rstrip(), at, at + 1
        for kind, begins, goes_on in _BLOCKS:
            if re.match(begins, first):
                while at < len(lines) and re.match(goes_on, lines[at]):
                    at += 1
                made.append(_block(kind, first, lines[start:at]))
                at += kind == "code"
                break
    return "".join(made)


def _block(kind: str, first: str, lines: list[str]) -> str:
    if kind == "code":
        return f"<pre>{escape(chr(10).join(lines[1:]))}</pre>\n"
    if kind == "heading":
        marks, _, words = first.partition(" ")
        return f"<h{len(marks)}>{_inline(words.lstrip(' '))}</h{len(marks)}>\n"
    if kind == "table":
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))] for row in lines]
        kept = [row for row in cells if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
        made = ["".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in kept]
        return f"<div class='wide'><table>{''.join(f'<tr>{row}</tr>' for row in made)}</table></div>\n"
    if kind == "list":
        items: list[str] = []
        for line in lines:
            mark = re.match(rf"{_ITEM} *(.*)", line)
            items += [mark[1]] if mark else [f"{items.pop()} {line.strip()}"]
        tag = "ol" if re.match(r" *\d", first) else "ul"
        return f"<{tag}>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</{tag}>\n"
    return f"<p>{_inline(' '.join(part.strip() for part in lines))}</p>\n"


# In escaped text. No class here runs past the next opening mark, so a page of brackets costs no more than any other.
_MARKS = (
    (r"!\[([^\[\]]*)\]\([^)\[\s]*\)", r"\1"),
    (r"\[([^\[\]]+)\]\((https?://[^)\[\s&]+)\)", r"<a href='\2' rel='noopener noreferrer'>\1</a>"),
    (r"\*\*([^*]+)\*\*", r"<b>\1</b>"),
    (r"(?<![\w*])[*_]([^*_<>]+)[*_](?![\w*])", r"<i>\1</i>"),
)


def _inline(source: str) -> str:
    """Code, bold, italic and http links; what is inside a code span stays as it is."""
    made = ""
    for part in re.split(r"(`[^`]+`)", source):
        if part.startswith("`") and len(part) > 2:
            made += f"<code>{escape(part[1:-1])}</code>"
            continue
        marked: str = escape(part)
        for pattern, replacement in _MARKS:
            marked = re.sub(pattern, replacement, marked)
        made += marked
    return made


# Whether an executed notebook is what it says, and the notebook without what it need not tell. Works on its JSON,
# so a verifier without Jupyter can ask the same questions.

# Cells that an execution adds to the template, by papermill's tags.
_ADDED_TAGS = {"injected-parameters", "papermill-error-cell-tag"}


def source_sha256(notebook: Mapping[str, Any]) -> str:
    """Hash of kind and source of each cell: the same for a template and its executed copy.

    Outputs, metadata, line ends and the cells that papermill adds do not count.
    """
    own = [cell for cell in notebook.get("cells", ()) if not _ADDED_TAGS & set(_tags(cell))]
    return hashlib.sha256(json.dumps([[c.get("cell_type"), text(c.get("source"))] for c in own]).encode()).hexdigest()


def problems(notebook: Mapping[str, Any]) -> Iterator[str]:
    """Why an executed notebook does not count; nothing where every code cell ran once, in order, unharmed."""
    expected = 0
    for index, cell in enumerate(notebook.get("cells", ())):
        if cell.get("cell_type") != "code" or not text(cell.get("source")).strip():
            continue
        expected += 1
        count = cell.get("execution_count")
        if count != expected or isinstance(count, bool):
            yield f"cell {index} has execution count {count}, expected {expected}"
        for output in cell.get("outputs", ()):
            if output.get("output_type") == "error":
                yield f"cell {index} ended in {output.get('ename')}: {text(output.get('evalue'))[:200]}"
    if not expected:
        yield "it has no code cell"


def text(source: Any) -> str:
    """A notebook keeps text as one string or as a list of lines."""
    whole = "".join(part for part in source if isinstance(part, str)) if isinstance(source, list) else source
    return whole.replace("\r\n", "\n") if isinstance(whole, str) else ""


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def injected(notebook: Mapping[str, Any], name: str) -> str | None:
    """The text that papermill gave the notebook's parameter `name`; None where it gave none."""
    cells = (cell for cell in notebook.get("cells", ()) if "injected-parameters" in _tags(cell))
    told = "".join(text(cell.get("source")) for cell in cells)
    found = re.search(rf"""(?m)^{name} = (["'])(.*)\1$""", told)
    return found[2] if found else None


def pictures(notebook: Mapping[str, Any]) -> set[bytes]:
    """The PNG of every output."""
    return {_png(text(output.get("data", {}).get("image/png"))) for output in _outputs(notebook)} - {b""}


def printed(notebook: Mapping[str, Any]) -> list[str]:
    """The plain text of every output."""
    return [text(output.get("text") or output.get("data", {}).get("text/plain")) for output in _outputs(notebook)]


def _outputs(notebook: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [output for cell in notebook.get("cells", ()) for output in cell.get("outputs", ())]


def stripped(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without metadata that tells of the machine, and with pictures without theirs."""
    metadata, cells = notebook.get("metadata", {}), []
    for cell in notebook.get("cells", ()):
        outputs = {"outputs": [*map(_stripped_output, cell["outputs"])]} if "outputs" in cell else {}
        cells.append({**cell, "metadata": {"tags": _tags(cell)} if _tags(cell) else {}, **outputs})
    kept = {name: metadata[name] for name in ("kernelspec", "language_info") if name in metadata}
    return {**notebook, "metadata": kept, "cells": cells}


def _stripped_output(output: Mapping[str, Any]) -> Mapping[str, Any]:
    output = _plain(output)
    data = output.get("data")
    if not isinstance(data, Mapping) or "image/png" not in data:
        return output
    data = dict(data)
    try:
        data["image/png"] = base64.b64encode(strip_png(base64.b64decode(text(data["image/png"])))).decode() + "\n"
    except ValueError:
        # Not a picture: nothing to show.
        del data["image/png"]
    return {**output, "data": data}


def _plain(value: Any) -> Any:
    """Without a terminal's colours: they stand inside paths and names, where redaction would not see those."""
    if isinstance(value, str):
        return ANSI.sub("", value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value

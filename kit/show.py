"""How the kit's values look: as text for a terminal, as a card in a notebook.

Every text is escaped: a GPU may be called <script>. Colours come from the surrounding
page, so that a card reads in a light and a dark theme.
"""

from __future__ import annotations

import codecs
import dataclasses
import html
import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from kit.records import Check, Outcome, Verdict

# What this terminal can show: its size, colours, and characters. Nothing is printed here.

# What stands for a character of ours that the encoding of a terminal does not have.
_ASCII = {"×": "x", "µ": "u", "–": "-", "→": "->", "…": "~", "·": "-"}
# Narrower than this no table of ours can be read.
_LEAST_WIDTH = 60
_NO_LIMIT = (100_000, 100_000)


def prepare(*, as_json: bool = False) -> None:
    """From here on a character that a stream cannot show becomes one that it can, and never a crash. JSON is UTF-8,
    whatever a Windows console or a pipe speaks."""
    codecs.register_error("kit", in_ascii)
    for stream, encoding in ((sys.stdout, "utf-8" if as_json else None), (sys.stderr, None)):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors="kit")


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: our own characters become ASCII, any other a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(char, "?") for char in error.object[error.start : error.end]), error.end


def is_coloured() -> bool:
    """Whether stdout shows colours: a terminal, no NO_COLOR (no-color.org), no old Windows console."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return False
    return os.name != "nt" or "WT_SESSION" in os.environ


def size() -> tuple[int, int]:
    """Columns and lines of the terminal, or what COLUMNS and LINES say; no limit where stdout is a file or a pipe."""
    columns, lines = shutil.get_terminal_size(fallback=_NO_LIMIT if not sys.stdout.isatty() else (80, 24))
    return max(columns, _LEAST_WIDTH), lines


# Okabe and Ito's palette (2008), which colour-blind readers can tell apart; the word is always there too.
COLOURS = {
    Outcome.PASS: "#009E73",
    Outcome.REHEARSAL: "#0072B2",
    Outcome.INCONCLUSIVE: "#E69F00",
    Outcome.FAIL: "#D55E00",
    Outcome.INVALID: "#CC79A7",
}
# Black or white, whichever has the higher contrast on the colour (WCAG 2.1): at least 4.5 each.
_INK = {outcome: "#fff" if outcome is Outcome.REHEARSAL else "#000" for outcome in Outcome}
MEANING = {
    Outcome.PASS: "the evidence supports every required claim",
    Outcome.REHEARSAL: "a CPU run that was asked for: all but the GPU was exercised, nothing is claimed of a GPU",
    Outcome.INCONCLUSIVE: "required evidence is missing or too weak",
    Outcome.FAIL: "the evidence contradicts a claim",
    Outcome.INVALID: "the evidence is broken, edited or unsafe",
}
# Unicode 15 categories Cc, Cf, Cs, Zl, Zp: control, format (bidirectional, zero-width, tags), lone
# surrogates, separators.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001-\U000e007f]"
)


def visible(text: str, keep: str = "\n\t") -> str:
    """`text` with characters that hide, reorder or command shown as escapes, but for those in `keep`.

    The set is fixed, so that every Python writes the same: a verifier makes the pages again.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def plain(text: object) -> str:
    """`text` for a terminal, which would obey a control character."""
    return visible(str(text), keep="\n")


def in_json(text: str) -> str:
    """JSON in which nothing hides: the same value, its control and format characters as JSON's own escapes."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1], text)


class Html(str):
    """Text that is HTML already: everything else is escaped."""


def escape(text: object) -> Html:
    """`text` as HTML text or attribute value."""
    return text if isinstance(text, Html) else Html(html.escape(visible(str(text)), quote=True))


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


RED = (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.INVALID)


def check_lines(
    checks: Sequence[Check], *, width: int = 100, told: Sequence[Outcome] = RED, is_cut: bool = False
) -> list[str]:
    """One line a check, and for those with an outcome of `told` what was expected and what to do. is_cut: the others
    get one line of the terminal and no more."""
    lines = []
    first = max((len(check.outcome) for check in checks), default=0)
    second = max((len(check.id) for check in checks), default=0)
    for check in checks:
        indent = " " * (first + 1)
        line = f"{check.outcome:<{first}} {check.id:<{second}} "
        if is_cut and check.outcome not in told:
            line += " ".join(plain(check.found).split())
            lines.append(line if len(line) <= width else line[: width - 1] + "…")
            continue
        more = (
            f"{indent}expected: {plain(check.expected)}",
            f"{indent}to do: {plain(check.todo)}" if check.todo else "",
        )
        for text in (line + plain(check.found), *(more if check.outcome in told else ())):
            lines += textwrap.wrap(text, width, subsequent_indent=indent)
    return lines


def _word(verdict: Verdict) -> str | None:
    """The diagnosis; of a machine on which all is well but what was asked of it, the required check that is red."""
    red = next((check.id for check in verdict.findings if check.required), None)
    return red if red and verdict.diagnosis == "ok" and verdict.outcome in RED else verdict.diagnosis


def _head(title: str, verdict: Verdict) -> str:
    return f"{title}: {verdict.outcome}" + (f" ({plain(word)})" if (word := _word(verdict)) else "")


def verdict_text(verdict: Verdict, *, title: str = "Verdict") -> str:
    return "\n".join([f"{_head(title, verdict)}, {MEANING[verdict.outcome]}", "", *check_lines(verdict.checks)])


# Foreground colours of ECMA-48, which a terminal maps to something readable on its own background.
_TERMINAL_COLOURS = {
    Outcome.PASS: 32, Outcome.REHEARSAL: 36, Outcome.INCONCLUSIVE: 33, Outcome.FAIL: 31, Outcome.INVALID: 35,
}  # fmt: skip


def screen(verdict: Verdict, *, title: str, advice: Sequence[str] = (), width: int = 80, height: int = 24) -> str:
    """A verdict that fits a terminal: one line a check, cut to `width`, and everything about the worst ones.

    advice: lines below the checks; one that begins with a space is a command and never broken. Where it would
    not fit `height`, the green checks become one line.
    """
    shown, told, hidden = list(verdict.checks), [verdict.outcome] if verdict.outcome in RED else [], []
    lines = check_lines(shown, width=width, told=told, is_cut=True)
    below = [
        part for line in advice for part in ([plain(line)] if line[:1] == " " else textwrap.wrap(plain(line), width))
    ]
    if 2 + len(lines) + sum(1 + len(line) // width for line in below) + bool(below) >= height:
        shown = [check for check in shown if check.outcome is not Outcome.PASS]
        hidden = [f"{n} more checks are green."] if (n := len(verdict.checks) - len(shown)) else []
        lines = check_lines(shown, width=width, told=told, is_cut=True)
    return "\n".join([_head(title, verdict), "", *lines, *hidden, *([""] if below else []), *below])


def coloured(text: str) -> str:
    """Where stdout shows colours, the outcome at the beginning of a line and in the head line in its colour."""
    if not is_coloured():
        return text
    words = "|".join(Outcome)
    return re.sub(
        rf"^({words})\b|(?<=: )({words})\b(?=[^\n]*\n\n)",
        lambda found: f"\x1b[{_TERMINAL_COLOURS[Outcome(found[0])]}m{found[0]}\x1b[0m",
        text, flags=re.MULTILINE,
    )  # fmt: skip


def verdict_html(verdict: Verdict, *, title: str = "Verdict") -> str:
    detail = f" · {escape(word)}" if (word := _word(verdict)) else ""
    rows = [[badge(check.outcome), Html(f"<code>{escape(check.id)}</code>"), _found(check)] for check in verdict.checks]
    return card(
        f"{escape(title)}: {badge(verdict.outcome)}{detail}",
        f"<p>{escape(MEANING[verdict.outcome])}</p>" + table_html(["outcome", "check", "found"], rows),
        verdict.outcome,
    )


def _found(check: Check) -> Html:
    text: str = escape(check.found)
    if check.outcome in RED:
        text += f"<br>expected: {escape(check.expected)}"
        text += f"<br><b>to do:</b> {escape(check.todo)}" if check.todo else ""
    return Html(text)


def badge(outcome: Outcome) -> Html:
    return Html(
        f'<span style="background:{COLOURS[outcome]};color:{_INK[outcome]};padding:0 .5em;border-radius:.3em;'
        f'font-weight:600">{outcome}</span>'
    )


def card(head: str, body: str, outcome: Outcome | None = None) -> str:
    """head and body are HTML that is escaped already."""
    edge = COLOURS[outcome] if outcome else "#888888"
    return (
        f'<div style="border-left:.4em solid {edge};padding:.4em 1em;margin:.5em 0;'
        f'background:rgba(128,128,128,.08)"><div style="font-size:1.15em">{head}</div>{body}</div>'
    )


_NUMBER = re.compile(r"\d|(–|unknown)?$")


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under named columns, as aligned text or as an HTML table. Cells are text; all are escaped."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    @classmethod
    def of_record(cls, record: Any) -> Table:
        """The fields of a dataclass, one a row."""
        fields = [(field.name, getattr(record, field.name)) for field in dataclasses.fields(record)]
        return cls(("name", "value"), tuple(fields))

    def __str__(self) -> str:
        """Columns aligned for a fixed-width font; numbers to the right."""
        lines = [[plain(value) for value in row] for row in (self.columns, *self.rows)]
        columns = list(zip(*lines))
        widths = [max(map(len, column)) for column in columns]
        is_number = [all(_NUMBER.match(text) for text in column[1:]) for column in columns]
        return "\n".join(
            "  ".join(v.rjust(w) if right else v.ljust(w) for v, w, right in zip(line, widths, is_number)).rstrip()
            for line in lines
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table_html(self.columns, self.rows)


def table_html(columns: Sequence[str], rows: Iterable[Sequence[object]], *, style: str = "text-align:left") -> Html:
    """A table for a notebook, which has a stylesheet of its own; a page gives style="" and scrolls what is too wide."""
    style = f' style="{style}"' if style else ""
    heads = [escape(column) for column in columns]
    head = "".join(f'<th scope="col"{style}>{name}</th>' for name in heads)
    # On a phone a row of a page becomes a block, where each cell says what it is.
    body = "".join(
        "<tr>"
        + "".join(f'<td data-h="{name}"{style}>{escape(v)}</td>' for name, v in zip(heads, row, strict=True))
        + "</tr>\n"
        for row in rows
    )
    focus = "" if style else " tabindex='0'"
    return Html(
        f"<div class='wide'{focus}><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


# Makes a stranger's text safe to show, on a terminal, in HTML and Markdown: made visible, never dropped.

# A terminal's colours; any other escape is made visible later.
ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")


def in_markdown(text: object) -> str:
    """`text` on one line of Markdown that makes no link, image, table cell, mention or markup."""
    line = re.sub(r"\s+", " ", visible(str(text))).strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~#!])", r"\\\1", line)
    # An underscore inside a word is no emphasis, and names of numbers have many.
    line = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
    return re.sub(r"(?i)://", "&#58;//", line.replace("@", "&#64;")).replace("www.", "www&#46;")


# The frame of every page: one file, no script, no request, light and dark, phone and paper.

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#16191d;--soft:#56606b;--line:#d9dee3;--tint:#f5f7f9;--accent:#1f5fbf;
--floor:#c9d3de}
@media(prefers-color-scheme:dark){:root{--back:#14171a;--text:#e8ebee;--soft:#9aa5b1;--line:#2d343c;--tint:#1c2126;
--accent:#7db2ff;--floor:#39424c}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:16px/1.55 system-ui,sans-serif;overflow-wrap:break-word}
main{max-width:66rem;margin:0 auto;padding:1.6rem 1.2rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:.6rem 0 .4rem}h2{font-size:1.3rem;margin:2.6rem 0 .6rem}
p,li{max-width:75ch}p{margin:.4rem 0}.soft,small,figcaption,.key span,dt{color:var(--soft)}.wide{overflow-x:auto;margin-bottom:1.2rem}
.badge{display:inline-block;padding:0 .7rem;border-radius:1rem;font-weight:700;font-size:.85rem}
.keys{display:grid;grid-template-columns:repeat(auto-fit,minmax(11.5rem,1fr));gap:.8rem;margin:1.4rem 0}
.key{border:1px solid var(--line);border-radius:.8rem;padding:.9rem 1rem;background:var(--tint)}
.key b{display:block;font-size:1.7rem;line-height:1.2}.key span{display:block;font-size:.87rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:0 1.8rem;margin:0}
dl div{display:flex;gap:.7rem;border-bottom:1px solid var(--line);padding:.45rem 0}dt{width:6.5rem;flex:none}dd{margin:0}
table{border-collapse:collapse;width:100%;font-size:.94rem}
th,td{text-align:left;vertical-align:top;padding:.5rem .6rem;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600}td{font-variant-numeric:tabular-nums}
.bar{display:block;width:100%;max-width:9rem;height:.4rem;margin-top:.3rem;background:var(--floor);fill:var(--accent)}
ol.why{list-style:none;padding:0;margin:0}ol.why li{padding:.6rem 0;border-bottom:1px solid var(--line)}
details{border-bottom:1px solid var(--line);padding:.5rem 0}summary{cursor:pointer;font-weight:600}
pre,code{background:var(--tint);overflow-wrap:anywhere}
pre{padding:.7rem .9rem;border-radius:.6rem;overflow-x:auto;font-size:.87rem;white-space:pre-wrap}
pre.code{border-left:3px solid var(--line)}pre.error,.first{border-left:3px solid #d55e00}.cell{margin:1rem 0}
.first{padding:.2rem 1rem;margin:1rem 0}nav{font-size:.9rem;margin:1rem 0}nav a{margin-right:1rem}a{color:var(--accent)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1rem}
figure{margin:1rem 0}.figures figure{margin:0}.figures figure:first-child{grid-column:1/-1}figcaption{font-size:.87rem}
img{max-width:100%;height:auto;display:block;background:#fff;border-radius:.4rem}
@media(max-width:40rem){h1{font-size:1.6rem}thead{display:none}table,tbody,tr,td{display:block}
tr{padding:.4rem 0;border-bottom:1px solid var(--line)}td{padding:.05rem 0;border:0}td:empty{display:none}
td[data-h]:not([data-h=""])::before{content:attr(data-h) ": ";color:var(--soft)}}
@media print{main{max-width:none}body{font-size:10.5pt}details>*{display:block}details::details-content{content-visibility:visible}
nav{display:none}h2,figure,tr,.key{break-inside:avoid}h2,summary{break-after:avoid}.wide{overflow:visible}
table{font-size:8.5pt}th,td{padding:.25rem .4rem}td:last-child,td:nth-child(3){overflow-wrap:anywhere}pre{font-size:7.5pt}}
"""
_BADGES = "".join(f".badge.{o}{{background:{COLOURS[o]};color:{_INK[o]}}}" for o in Outcome)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, body: str) -> str:
    """A whole HTML file. `body` is HTML that was escaped by its maker; `title` is text."""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n<link rel='icon' href='data:,'>\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{_BADGES}</style>\n</head>\n<body>\n<main>\n{body}</main>\n"
        "</body>\n</html>\n"
    )

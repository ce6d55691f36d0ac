"""The frame of every page: one file, no script, no request, light and dark, phone and paper."""

from __future__ import annotations

from kit.evidence.text import in_html

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1b1f24;--soft:#57606a;--line:#d0d7de;--tint:#f3f5f7;
--good:#0a6b2d;--warn:#7a5200;--bad:#a40e26}
@media(prefers-color-scheme:dark){:root{--back:#14181d;--text:#e6eaee;--soft:#9aa5b1;--line:#39424c;
--tint:#1d232a;--good:#5fd38a;--warn:#e8b64c;--bad:#ff8a93}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--back);color:var(--text);
font:16px/1.55 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.5rem;line-height:1.25;margin:.6rem 0}
h2{font-size:1.15rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}
.badge{display:inline-block;padding:.1rem .7rem;border:2px solid;border-radius:.4rem;font-weight:700}
.PASS{color:var(--good)}.REHEARSAL,.INCONCLUSIVE{color:var(--warn)}.FAIL,.INVALID{color:var(--bad)}
.soft,small,figcaption{color:var(--soft)}.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600}td.n{white-space:nowrap;font-variant-numeric:tabular-nums}
pre,code{background:var(--tint);overflow-wrap:anywhere}
pre{padding:.6rem;overflow-x:auto;font-size:.82rem;white-space:pre-wrap}
pre.code{border-left:3px solid var(--line)}pre.error{border-left:3px solid var(--bad)}.cell{margin:1rem 0}
.first{border:2px solid var(--bad);padding:.2rem 1rem;margin:1rem 0}
figure{margin:1rem 0}img{max-width:100%;height:auto;background:#fff}
summary{cursor:pointer;padding:.3rem 0}a{color:inherit}
@media(max-width:40rem){thead{display:none}table,tbody,tr,td{display:block}
tr{padding:.4rem 0;border-bottom:1px solid var(--line)}td{padding:.05rem 0;border:0}td:empty{display:none}
td[data-h]:not([data-h=""])::before{content:attr(data-h) ": ";color:var(--soft)}}
@media print{body{max-width:none;font-size:11pt}details>*{display:block}h2,figure,tr{break-inside:avoid}}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, body: str) -> str:
    """A whole HTML file. `body` is HTML that was escaped by its maker; `title` is text."""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<link rel='icon' href='data:,'>\n"
        f"<title>{in_html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table from cells that are already HTML; it scrolls on its own where it is wider than the screen."""
    head = "".join(f"<th scope='col'>{cell}</th>" for cell in heads)
    # On a phone a row becomes a block, where each cell says what it is.
    named = [
        [cell.replace("<td", f"<td data-h='{name}'", 1) for name, cell in zip(heads, row, strict=True)] for row in rows
    ]
    body = "".join("<tr>" + "".join(row) + "</tr>\n" for row in named)
    return f"<div class='wide'><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"


def cell(text: object, kind: str = "") -> str:
    return f"<td class='{kind}'>{in_html(text)}</td>" if kind else f"<td>{in_html(text)}</td>"

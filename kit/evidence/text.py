"""Makes a stranger's text safe to show, on a terminal, in HTML and Markdown: made visible, never dropped."""

from __future__ import annotations

import html
import re

from kit import units
from kit.evidence.model import Number

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
# Unicode 15 categories Cc, Cf, Cs, Zl, Zp: control, format (bidirectional, zero-width, tags), lone
# surrogates, separators.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001-\U000e007f]"
)


def visible(text: str, keep: str = "\n\t") -> str:
    """`text` with characters that hide, reorder or command shown as escapes, but for those in `keep`."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def in_html(text: object) -> str:
    """`text` as HTML text or attribute value."""
    return html.escape(visible(str(text)), quote=True)


def in_markdown(text: object) -> str:
    """`text` on one line of Markdown that makes no link, image, table cell, mention or markup."""
    line = re.sub(r"\s+", " ", visible(str(text))).strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~#!])", r"\\\1", line)
    # An underscore inside a word is no emphasis, and names of numbers have many.
    line = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
    return re.sub(r"(?i)://", "&#58;//", line.replace("@", "&#64;")).replace("www.", "www&#46;")


def without_ansi(text: str) -> str:
    """A terminal's colours taken out; any other escape is made visible later."""
    return _ANSI.sub("", text)


def value(number: Number) -> str:
    """The number with its unit, or 'unknown' with the reason."""
    return (
        _quantity(number.value, number.unit)
        if number.value is not None
        else f"unknown: {number.reason or 'no reason given'}"
    )


def value_range(number: Number) -> str:
    """'1.7 to 1.9 s', or nothing where no spread is known."""
    if number.low is None or number.high is None:
        return ""
    return f"{_quantity(number.low, number.unit)} to {_quantity(number.high, number.unit)}"


def _quantity(amount: float | int, unit: str) -> str:
    if unit in ("B", "bytes"):
        return units.memory(int(amount))
    if unit == "s":
        return units.seconds(amount)
    if unit in ("FLOP/s", "B/s", "FLOP"):
        return units.quantity(amount, unit)
    digits = units.number(amount, 3) if not isinstance(amount, int) else f"{amount:,}"
    return digits if unit == "1" else f"{digits} {unit}".strip()


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

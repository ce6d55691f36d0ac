"""Makes a stranger's text safe to show, on a terminal, in HTML and Markdown: made visible, never dropped."""

from __future__ import annotations

import html
import re

from kit import units
from kit.evidence.model import Number
from kit.show import visible

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")


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

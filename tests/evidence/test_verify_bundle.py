"""What `kit verify` says of whole, edited, mixed, half-written and foreign bundles."""

import datetime
import json
import random
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import evidence_sample as sample
import pytest

from kit.errors import UsageError
from kit.evidence.manifest import MANIFEST
from kit.evidence.verify import STEPS, load, text, verify
from kit.records import Outcome, dumps, loads

ROOT = Path(__file__).resolve().parents[2]


def step(verification, name):
    return next(s for s in verification.steps if s.check.id == f"bundle.{name}")


def check(path, **more):
    return verify(path, conclude=sample.conclude, **more)


def edit(path, name, old, new, rehash=True):
    data = (path / name).read_bytes()
    assert old in data
    (path / name).write_bytes(data.replace(old, new, 1))
    if rehash:
        sample.rehash(path)


def test_whole_bundle_passes_with_every_step_run(bundle):
    found = check(bundle)
    assert found.outcome is Outcome.PASS and found.exit_code == 0
    assert [s.state for s in found.steps] == ["run"] * (len(STEPS) - 1) + ["skipped"]
    assert "Unsigned" in found.worth


def test_rehearsal_verifies_as_rehearsal(tmp_path):
    assert check(sample.make(tmp_path, device="cpu")).outcome is Outcome.REHEARSAL


@pytest.mark.parametrize("state", ["FAILED", "INTERRUPTED"])
def test_unfinished_run_is_whole_as_a_document_and_no_pass(tmp_path, state):
    found = check(sample.make(tmp_path, state=state))
    assert (found.integrity, found.outcome, found.exit_code) == (Outcome.PASS, Outcome.FAIL, 1)


def test_failed_bundle_cannot_say_pass(tmp_path):
    path = sample.make(tmp_path, state="FAILED")
    lying = lambda files: _passing(sample.conclude(files))
    data = dumps(lying({p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*.json*")}))
    (path / "evidence.json").write_text(data + "\n", encoding="utf-8", newline="\n")
    sample.rehash(path)
    found = verify(path, conclude=lying)
    assert "state FAILED with verdict PASS" in step(found, "recomputed").check.found and found.exit_code == 4


def _passing(evidence):
    import dataclasses

    from kit.records import Verdict

    checks = [dataclasses.replace(c, outcome=Outcome.PASS) for c in evidence.verdict.checks]
    return dataclasses.replace(evidence, verdict=Verdict.of(checks))


def test_every_single_byte_counts(bundle, tally):
    """1,000 random one-byte changes, half of them by file and half by size."""
    draw = random.Random(7)
    files = sorted(p for p in bundle.rglob("*") if p.is_file())
    sizes = [p.stat().st_size for p in files]
    missed = []
    for trial in range(1000):
        path = draw.choice(files) if trial % 2 else draw.choices(files, sizes)[0]
        data = path.read_bytes()
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :])
        if check(bundle).outcome is not Outcome.INVALID:
            missed.append((path.name, at))
        path.write_bytes(data)
    tally("one byte changed, anywhere in a bundle", 1000, f"{1000 - len(missed)} INVALID")
    assert not missed and check(bundle).outcome is Outcome.PASS


def test_changed_file_is_named(bundle):
    (bundle / "nvidia_smi.txt").write_bytes(b"NVIDIA H100\n")
    assert step(check(bundle), "hashes").check.found == "changed: nvidia_smi.txt"


def test_all_problems_of_files_are_told_at_once(bundle):
    (bundle / "raw/steps.jsonl").rename(bundle / "raw/other.jsonl")
    (bundle / "payload.sh").write_bytes(b"true\n")
    found = step(check(bundle), "files").check.found
    assert "missing: raw/steps.jsonl" in found and "not listed: payload.sh; raw/other.jsonl" in found
    assert "foreign: payload.sh" in found


@pytest.mark.parametrize(
    "name",
    [
        "raw/steps.jsonl",
        "raw/negative_control.json",
        "notebooks/01_smoke.ipynb",
        "README.md",
        "raw/records/01_smoke.json",
        "cuda_check.txt",
    ],
)
def test_required_set_comes_from_the_schema_not_from_the_manifest(bundle, name):
    (bundle / name).unlink()
    sample.rehash(bundle)
    found = check(bundle)
    assert found.exit_code == 4 and f"missing: {name}" in step(found, "files").check.found


def test_edited_loss_is_found_after_rehashing(bundle):
    edit(bundle, "raw/steps.jsonl", b"3.87}", b"1.87}")
    found = check(bundle)
    assert found.exit_code == 4
    assert "last_loss" in step(found, "recomputed").check.found and "1.87" in step(found, "recomputed").check.found


@pytest.mark.parametrize(
    "name,old,new",
    [
        ("evidence.json", b'"outcome": "PASS"', b'"outcome": "FAIL"'),
        ("evidence.json", b"124439808", b"124439809"),
        ("evidence.json", b"PyTorch trains natively", b"PyTorch trains supernaturally"),
        ("raw/run.json", b"H100", b"H200"),
    ],
)
def test_edited_evidence_is_found_after_rehashing(bundle, name, old, new):
    edit(bundle, name, old, new)
    assert step(check(bundle), "recomputed").check.outcome is Outcome.INVALID


@pytest.mark.parametrize("name", ["README.md", "index.html", "notebooks/01_smoke.html"])
def test_edited_report_is_found_after_rehashing(bundle, name):
    (bundle / name).write_bytes((bundle / name).read_bytes() + b" ")
    sample.rehash(bundle)
    found = step(check(bundle), "report").check
    assert found.outcome is Outcome.INVALID and name in found.found


def test_words_of_another_kit_version_are_inconclusive_and_never_a_pass(tmp_path, monkeypatch):
    import kit.evidence.verify as module

    pages, words = sample.make(tmp_path, run_id="a"), sample.make(tmp_path, run_id="b")
    (pages / "README.md").write_bytes(b"# older words\n")
    sample.rehash(pages)
    edit(words, "evidence.json", b"PyTorch trains natively", b"PyTorch did train natively")
    monkeypatch.setattr(module, "__version__", "9.9.9")
    assert check(pages).exit_code == check(words).exit_code == 3
    assert f"made by kit {sample.VERSION}, this is 9.9.9" in step(check(words), "recomputed").check.found


@pytest.mark.parametrize(
    "name,key",
    [("raw/run.json", "run_id"), ("raw/run.json", "nonce"), ("raw/records/01_smoke.json", "nonce")],
)
def test_parts_of_two_runs_are_found(bundle, name, key):
    value = loads((bundle / name).read_bytes())
    (bundle / name).write_text(json.dumps({**value, key: "another"}), encoding="utf-8")
    sample.rehash(bundle)
    found = step(check(bundle), "one_run").check
    assert found.outcome is Outcome.INVALID and f"{name} has {key} 'another'" in found.found


def test_foreign_record_with_its_own_nonce_is_found(bundle):
    edit(bundle, "raw/training.json", b"{", b'{"nonce": "other", ')
    assert step(check(bundle), "one_run").check.outcome is Outcome.INVALID


@pytest.mark.parametrize(
    "begin,end,words",
    [
        ("2026-11-01T12:01:00+00:00", "2026-11-01T12:00:00+00:00", "ended before it began"),
        ("2026-11-01T12:00:00", "2026-11-01T12:01:00", "not ISO 8601 in UTC"),
        ("2026-11-01T12:00:00+02:00", "2026-11-01T12:01:00+02:00", "not ISO 8601 in UTC"),
        ("2030-11-01T12:00:00+00:00", "2030-11-01T12:01:00+00:00", "in the future"),
    ],
)
def test_impossible_times_are_invalid(tmp_path, begin, end, words):
    path = sample.make(tmp_path, started_utc=begin, ended_utc=end)
    now = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
    assert words in step(check(path, now=now), "one_run").check.found


def test_age_is_told(bundle):
    now = datetime.datetime(2026, 11, 22, 13, tzinfo=datetime.UTC)
    assert "Made 21 days ago" in check(bundle, now=now).worth


def test_reviewers_nonce_must_be_the_one_given(tmp_path):
    path = sample.make(tmp_path, reviewer_nonce="tell me 42")
    assert "answers the reviewer's nonce" in check(path, reviewer_nonce="tell me 42").worth
    assert check(path, reviewer_nonce="tell me 43").exit_code == 4


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda nb: nb["cells"][1].update(execution_count=5), "execution count 5"),
        (lambda nb: nb["cells"][2].update(execution_count=None), "execution count None"),
        (lambda nb: nb["cells"][1].update(source="a = 2"), "not those of the template"),
        (
            lambda nb: nb["cells"][1]["outputs"].append(
                {"output_type": "error", "ename": "E", "evalue": "v", "traceback": []}
            ),
            "ended in E: v",
        ),
        (lambda nb: nb.update(cells=[]), "no code cell"),
        (lambda nb: nb.update(cells=7), "not a notebook"),
    ],
)
def test_notebook_that_did_not_run_as_its_template_is_found(bundle, change, words):
    path = bundle / "notebooks/01_smoke.ipynb"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    sample.rehash(bundle)
    found = step(check(bundle), "notebooks").check
    assert found.outcome is Outcome.INVALID and words in found.found


def test_detector_that_did_not_turn_red_is_invalid(tmp_path, bundle):
    edit(bundle, "raw/negative_control.json", b"FAIL", b"PASS")
    assert check(bundle).exit_code == 4
    silent = lambda files: _without_control(sample.conclude(files))
    path = sample.make(tmp_path / "b", run_id="other")
    (path / "evidence.json").write_text(
        dumps(silent({p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*.json*")})) + "\n",
        encoding="utf-8",
        newline="\n",
    )
    sample.rehash(path)
    assert step(verify(path, conclude=silent), "negative_control").check.found == "negative control: not there"


def _without_control(evidence):
    import dataclasses

    from kit.records import Verdict

    checks = [c for c in evidence.verdict.checks if "control" not in c.id]
    return dataclasses.replace(evidence, verdict=Verdict.of(checks))


def test_bundle_without_checks_is_vacuous(tmp_path, bundle):
    import dataclasses

    from kit.records import Verdict

    empty = lambda files: dataclasses.replace(sample.conclude(files), verdict=Verdict(Outcome.PASS, ()), promises=())
    (bundle / "evidence.json").write_text(
        dumps(empty({p.relative_to(bundle).as_posix(): p.read_bytes() for p in bundle.rglob("*.json*")})) + "\n",
        encoding="utf-8",
        newline="\n",
    )
    sample.rehash(bundle)
    found = verify(bundle, conclude=empty)
    assert found.exit_code == 4 and "no check or no promise" in step(found, "recomputed").check.found


@pytest.mark.parametrize(
    "number,words",
    [
        ({"name": "best_mfu_measured", "value": 1.3, "unit": "1"}, "over 1"),
        ({"name": "steady_step_s", "value": -0.1, "unit": "s"}, "negative"),
        ({"name": "max_power_w", "value": None, "unit": "W"}, "without a reason"),
        ({"name": "steady_step_s", "value": 1.0, "unit": "s", "low": 2.0, "high": 1.0}, "upside down"),
        ({"name": "matmul_bf16_flop_per_s", "value": 2e15, "unit": "FLOP/s"}, "the card's peak is"),
        ({"name": "samples", "value": 10**9, "unit": "samples"}, "longer than the run"),
    ],
)
def test_impossible_numbers_are_told(number, words):
    import dataclasses

    from kit.evidence.contents import Number
    from kit.evidence.verify import implausible

    evidence = sample.conclude({"raw/run.json": dumps(sample.run_record()).encode()})
    base = (
        Number("peak_bf16_flop_per_s", 989e12, "FLOP/s", "datasheet"),
        Number("smoke_samples_per_s", 30.0, "samples/s", "d"),
    )
    assert not list(implausible(dataclasses.replace(evidence, numbers=base)))
    numbers = (*base, Number(**{"definition": "d", **number}))
    assert any(words in problem for problem in implausible(dataclasses.replace(evidence, numbers=numbers)))


def test_line_ends_that_git_changed_are_recognised(bundle):
    texts = [p for p in bundle.rglob("*") if p.suffix in (".md", ".txt")]
    for path in texts:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    found = step(check(bundle), "hashes").check
    assert found.outcome is Outcome.INVALID and found.found.startswith(f"line ends changed: {len(texts)} of ")


def test_newer_schema_is_inconclusive_and_older_is_invalid(bundle):
    edit(bundle, MANIFEST, b'"schema_version": "2.0"', b'"schema_version": "2.7"', rehash=False)
    assert check(bundle).exit_code == 3 and "newer than this verifier" in step(check(bundle), "manifest").check.found
    edit(bundle, MANIFEST, b'"schema_version": "2.7"', b'"schema_version": "x"', rehash=False)
    assert check(bundle).exit_code == 4


def test_zip_of_a_bundle_verifies_with_and_without_its_folder(bundle, tmp_path):
    for name, base in (("with", bundle.parent), ("without", bundle)):
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in bundle.rglob("*"):
                archive.write(file, file.relative_to(base))
        assert check(path).outcome is Outcome.PASS, text(check(path))


def test_moved_and_read_only_copy_verifies(bundle, tmp_path):
    moved = shutil.copytree(bundle, tmp_path / "some where" / "else")
    for file in moved.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    assert check(moved).outcome is Outcome.PASS


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda d: d.mkdir(), "it is empty"),
        (
            lambda d: (d.mkdir(), (d / "notes.txt").write_text("x", encoding="utf-8")),
            "not a bundle of the kit",
        ),
        (lambda d: d.write_bytes(b"not a zip at all"), "not a folder and not a zip"),
        (lambda d: zipfile.ZipFile(d, "w").close(), "it is empty"),
        (lambda d: _zip_of(d, "holiday.jpg"), "not a bundle of the kit"),
        (lambda d: (d.mkdir(), (d / MANIFEST).write_text("[]", encoding="utf-8")), "not of the kit"),
    ],
)
def test_each_foreign_thing_gets_its_word(tmp_path, make, words):
    make(tmp_path / "thing")
    found = check(tmp_path / "thing")
    assert found.exit_code == 4 and words in text(found)


def _zip_of(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")


def test_missing_path_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        check(tmp_path / "nowhere")


def test_half_written_folder_is_running_or_abandoned(tmp_path):
    from kit.evidence.bundle import open_bundle, running_state

    with open_bundle(tmp_path, "r1", secrets=sample.NO_SECRETS) as writer:
        sample.fill(writer)
        found = check(writer.path, is_running=lambda path: running_state(path) == "RUNNING")
        assert found.exit_code == 4 and "RUNNING" in text(found)
    found = check(writer.path, is_running=lambda path: running_state(path) == "RUNNING")
    assert found.exit_code == 4 and "ABANDONED" in text(found)


def test_load_refuses_what_does_not_verify(bundle):
    from kit.errors import BundleInvalid

    assert load(bundle, conclude=sample.conclude)[0].run_id == sample.RUN_ID
    (bundle / "README.md").write_bytes(b"x")
    with pytest.raises(BundleInvalid, match="changed: README.md"):
        load(bundle, conclude=sample.conclude)


def test_fuzzed_bundles_give_a_verdict_and_no_traceback(bundle, trials, tally):
    """Edits of bytes and of JSON, half of them hashed again; what still passes must say the same as before."""
    draw, total = random.Random(11), trials(10_000)
    files = sorted(p for p in bundle.rglob("*") if p.is_file())
    before = {p: p.read_bytes() for p in files}
    codes = {}
    for trial in range(total):
        path = draw.choice(files)
        path.write_bytes(_fuzzed(draw, before[path], before[draw.choice(files)]))
        is_forged = trial % 2 and path.name not in ("evidence.json", MANIFEST)
        if is_forged:
            sample.rehash(bundle)
        is_same = path.read_bytes() == before[path]
        code = check(bundle).exit_code
        if code == 0 and not is_same:
            # A capture or an unused value can be forged with its hashes; nothing that is derived changed.
            assert is_forged and (bundle / "evidence.json").read_bytes() == before[bundle / "evidence.json"]
            code = "0, forged with its hashes"
        if not is_same:
            codes[code] = codes.get(code, 0) + 1
        for file, data in before.items():
            if file == path or is_forged:
                file.write_bytes(data)
    told = ", ".join(f"exit {code}: {count}" for code, count in sorted(codes.items(), key=str))
    tally("fuzzed bundles, half of them hashed again", total, told)
    assert set(codes) <= {1, 3, 4, "0, forged with its hashes"}


_ODD = [
    b"NaN",
    b"1e999",
    b"-1",
    b"true",
    b"null",
    b'""',
    b"[]",
    b"9" * 5000,
    b"[" * 5000,
    b'"\\ud800"',
    b"\xff\xfe",
    b"\0",
    b"1.5",
]


def _fuzzed(draw, data, other):
    at, to = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    kind = draw.randrange(6)
    if kind == 0:
        return data[:at] + draw.randbytes(draw.randrange(1, 9)) + data[min(len(data), at + draw.randrange(9)) :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[to:]
    if kind == 3:
        return data[:to] + data[at:]
    if kind == 4:
        return other
    import re

    tokens = list(re.finditer(rb'(?<=: )(?:"[^"]*"|[-\d.e]+|true|false|null)', data)) or [re.match(b"", data)]
    token = draw.choice(tokens)
    return data[: token.start()] + draw.choice(_ODD) + data[token.end() :]


def test_fifty_megabytes_in_two_seconds(tmp_path, tally):
    noise = random.Random(1).randbytes(1_400_000)
    with sample.open_bundle(tmp_path, sample.RUN_ID, secrets=sample.NO_SECRETS) as writer:
        sample.fill(writer, steps=4_000)
        for index in range(33):
            writer.write(f"figures/f{index:02}.png", sample.png(extra=_chunk(noise)))
        path = writer.finish(sample.conclude(writer.settle()))
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    began = time.perf_counter()
    assert check(path).outcome is Outcome.PASS
    taken = time.perf_counter() - began
    tally(f"verify a bundle of {size / 1e6:.0f} MB", 1, f"{taken:.2f} s")
    assert size > 50e6 and taken < 2 * 2.5


def _chunk(data):
    import struct
    import zlib

    return struct.pack(">I", len(data)) + b"vpAg" + data + struct.pack(">I", zlib.crc32(b"vpAg" + data))


def test_verify_needs_the_standard_library_only(bundle):
    """In an interpreter without site-packages, started inside the bundle, which ships modules of its own."""
    for name in ("torch.py", "sitecustomize.py", "conftest.py", "json.py"):
        (bundle / name).write_text("raise SystemExit('the bundle was run')", encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules)\n"
        "import importlib\nfrom kit.evidence.verify import verify\nimport kit.evidence.conclude\n"
        "found = verify('.')\nprint(found.exit_code)\n"
        "foreign = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names) - {'kit'}\n"
        "assert not foreign, foreign\n"
        "assert not {'subprocess', 'socket', 'pickle'} & set(sys.modules), sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=bundle, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "4"

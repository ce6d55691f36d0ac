"""What `kit verify` says of whole, edited, mixed, half-written, foreign and honestly packed bundles."""

import dataclasses
import datetime
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import evidence_sample as sample
import pytest

from kit.errors import BundleInvalid, UsageError
from kit.evidence import verify as module
from kit.evidence.bundle import open_bundle
from kit.evidence.contents import Number
from kit.evidence.manifest import MANIFEST
from kit.evidence.verify import load, text, verify
from kit.records import Outcome, Verdict, loads

ROOT = Path(__file__).resolve().parents[2]


def step(verification, name):
    return next(check for check in verification.checks if check.id == f"bundle.{name}")


def red(path):
    """The rules of the verifier that are red, and the checks of the evidence that are."""
    found = verify(path)
    named = {check.id.partition(".")[2] for check in found.checks if check.outcome is not Outcome.PASS}
    if (path / "evidence.json").is_file():
        checks = loads((path / "evidence.json").read_bytes())["verdict"]["checks"]
        named |= {
            check["id"] for check in checks if check["outcome"] not in ("PASS", "REHEARSAL") and check["required"]
        }
    return found, named


def edit(path, name, old, new):
    data = (path / name).read_bytes()
    assert old in data, name
    (path / name).write_bytes(data.replace(old, new, 1))


def change(path, name, make):
    """Edits a JSON file, or each line of one, by a function of its value."""
    data = (path / name).read_text(encoding="utf-8")
    rows = data.splitlines() if name.endswith(".jsonl") else [data]
    made = []
    for row in rows:
        value = json.loads(row)
        make(value)
        made.append(json.dumps(value, ensure_ascii=False))
    (path / name).write_text("\n".join(made) + "\n", encoding="utf-8", newline="\n")


def test_whole_bundle_passes_with_every_rule_asked(bundle):
    found = verify(bundle)
    assert found.outcome is Outcome.PASS and found.exit_code == 0
    # There is no signature to check.
    assert [c.id for c in found.checks] == [r.id for r in module.BUNDLE if r.id != "bundle.signature"]
    assert "Unsigned" in found.worth


def test_rehearsal_verifies_as_rehearsal(tmp_path):
    path = sample.make(tmp_path, device="cpu", run_id="20261101T120000Z-cpu-ab12")
    assert verify(path).outcome is Outcome.REHEARSAL


@pytest.mark.parametrize("state", ["FAILED", "INTERRUPTED"])
def test_unfinished_run_is_whole_as_a_document_and_no_pass(tmp_path, state):
    found = verify(sample.make(tmp_path, state=state))
    assert (found.integrity, found.outcome, found.exit_code) == (Outcome.PASS, Outcome.FAIL, 1)


def test_every_single_byte_counts(bundle, tally, trials):
    """Random one-byte changes, half of them by file and half by size."""
    draw, total = random.Random(7), trials(1000)
    files = sorted(p for p in bundle.rglob("*") if p.is_file())
    sizes = [p.stat().st_size for p in files]
    missed = []
    for trial in range(total):
        path = draw.choice(files) if trial % 2 else draw.choices(files, sizes)[0]
        data = path.read_bytes()
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :])
        if verify(bundle).outcome is not Outcome.INVALID:
            missed.append((path.name, at))
        path.write_bytes(data)
    tally("one byte changed, anywhere in a bundle", total, f"{total - len(missed)} INVALID")
    assert not missed and verify(bundle).outcome is Outcome.PASS


def test_changed_file_is_named_and_nothing_after_it_is_reached(bundle):
    (bundle / "nvidia_smi.txt").write_bytes(b"NVIDIA H100\n")
    found = verify(bundle)
    assert step(found, "hashes").found == "changed: nvidia_smi.txt"
    assert step(found, "recomputed").found == "not reached: bundle.hashes is red"
    assert step(found, "recomputed").outcome is Outcome.INCONCLUSIVE and found.reported is None


def test_all_problems_of_files_are_told_at_once(bundle):
    (bundle / "raw/steps.jsonl").rename(bundle / "raw/other.jsonl")
    (bundle / "payload.sh").write_bytes(b"true\n")
    found = step(verify(bundle), "files").found
    assert "missing: raw/steps.jsonl" in found and "not listed: payload.sh; raw/other.jsonl" in found
    assert "foreign: payload.sh" in found


@pytest.mark.parametrize(
    "name", ["raw/steps.jsonl", "raw/negative_control.json", "notebooks/01_smoke.ipynb", "README.md", "cuda_check.txt"]
)
def test_required_set_comes_from_the_schema_not_from_the_manifest(bundle, name):
    (bundle / name).unlink()
    sample.rehash(bundle)
    found = verify(bundle)
    assert found.exit_code == 4 and f"missing: {name}" in step(found, "files").found


# --- edits by somebody who makes the hashes true again -------------------------------

EDITS = [
    # file, old bytes, new bytes, the rule that is red, words
    ("raw/steps.jsonl", b'"loss": 9.', b'"loss": 1.', "recomputed", ""),
    ("evidence.json", b'"outcome": "PASS"', b'"outcome": "FAIL"', "recomputed", "not what raw/ gives"),
    ("evidence.json", b"PyTorch trains natively", b"PyTorch trains supernaturally", "recomputed", "headline"),
    ("evidence.json", b"NVIDIA H100", b"NVIDIA H200", "recomputed", "system.GPU"),
    ("evidence.json", b'"smoke_samples_per_s",\n      "value": ', b'"smoke_samples_per_s",\n      "value": 1', "recomputed", ""),
    ("raw/run.json", sample.NONCE.encode(), b"ab" * 20, "one_run", "raw/run.json has nonce"),
    ("raw/run.json", b"cuda-ab12", b"cuda-ab13", "one_run", "raw/run.json has run_id"),
    ("raw/records/01_smoke.json", sample.NONCE.encode(), b"ab" * 20, "one_run", "raw/records/01_smoke.json has nonce"),
    ("raw/training.json", b"{", b'{"run_id": "other", ', "one_run", "raw/training.json has run_id 'other'"),
    ("notebooks/01_smoke.ipynb", sample.NONCE.encode(), b"ab" * 20, "one_run", "was given nonce"),
    ("README.md", b"#", b"##", "report", "README.md"),
    ("index.html", b"<h1>", b"<h1> ", "report", "index.html"),
    ("notebooks/01_smoke.html", b"<h1>", b"<h1> ", "report", "01_smoke.html"),
    ("training_log.txt", b"loss 10", b"loss 11", "report", "training_log.txt"),
    ("torch_version.txt", b"torch 2.", b"torch 3.", "captures", "torch_version.txt says 3."),
    ("nvidia_smi.txt", b"NVIDIA H100", b"NVIDIA H200", "captures", "nvidia_smi.txt says NVIDIA H200"),
    ("nvidia_smi.txt", b"580.", b"570.", "captures", "nvidia_smi.txt says 570."),
    ("notebooks/01_smoke.ipynb", b'"execution_count": 2', b'"execution_count": 5', "notebooks", "execution count 5"),
    ("notebooks/01_smoke.ipynb", b'"execution_count": 2', b'"execution_count": null', "notebooks", "count None"),
    ("notebooks/01_smoke.ipynb", b'"a = 1"', b'"a = 2"', "notebooks", "not those of the template"),
    ("notebooks/01_smoke.ipynb", b'"cells": [', b'"cells": 7, "x": [', "notebooks", "not a notebook"),
    (
        "notebooks/01_smoke.ipynb", b'"name": "stdout",', b'"name": "stdout", "ename": "E", "output_type": "error",',
        "notebooks", "not strict JSON",
    ),
    ("notebooks/01_smoke.ipynb", b"ran 2", b"PASS native.placement 0 tensors on a-GPU", "shown", "no notebook printed"),
]  # fmt: skip


@pytest.mark.parametrize("name,old,new,rule,words", EDITS, ids=[f"{e[0]}-{e[3]}-{i}" for i, e in enumerate(EDITS)])
def test_edit_that_was_hashed_again_is_found(bundle, name, old, new, rule, words):
    edit(bundle, name, old, new)
    sample.rehash(bundle)
    found = verify(bundle)
    assert found.exit_code == 4 and step(found, rule).outcome is Outcome.INVALID, text(found)
    assert words in step(found, rule).found


def with_plan(path):
    """A sweep's records beside the smoke's: a plan of one point and the plain loop's figures for it."""
    from kit.sweep.table import Ceilings, EngineLosses, Row, SameLosses, to_csv

    ceilings = Ceilings("NVIDIA H100 80GB HBM3", {"bfloat16": 7e14}, {"bfloat16": "1 × 1 × 1"}, 3e12)
    row = Row(4, 64, "bfloat16", "gpt2", "ok", (0.05, 0.051), 10)
    losses = SameLosses("gpt2", 4, 64, (10.0,) * 10, (EngineLosses("eager", "bfloat16", (10.0,) * 10),))
    plan = {"batch_sizes": [4], "seq_lens": [64]}
    for name, value in (("sweep", {"plan": plan, "ceilings": ceilings, "rows": [row]}), ("losses", losses)):
        (path / f"raw/{name}.json").write_text(
            module.importlib.import_module("kit.records").dumps(value), encoding="utf-8"
        )
    (path / "raw/sweep.csv").write_text(to_csv([row], ceilings), encoding="utf-8", newline="\n")


def asked(**parameters):
    return lambda run: run["parameters"].update(parameters)


def scaled(key, factor):
    return lambda row: row.update({key: row[key] and row[key] * factor})


FORGERIES = {
    "asked for other steps": ("raw/run.json", asked(**{"02_smoke_training": {"steps": 15}}), "integrity.asked"),
    "asked for another batch": ("raw/run.json", asked(**{"03_throughput": {"batch_sizes": [8]}}), "integrity.asked"),
    "short runs left out": ("raw/run.json", asked(**{"03_throughput": {"short_runs": ["trainer"]}}), "integrity.asked"),
    "another moment": ("raw/run.json", lambda run: run.update(started_utc="2026-11-01T11:00:00+00:00"), "integrity.times"),
    "ended before": ("raw/run.json", lambda run: run.update(ended_utc="2026-11-01T11:59:00+00:00"), "integrity.times"),
    "no time zone": ("raw/run.json", lambda run: run.update(ended_utc="2026-11-01T12:09:00"), "integrity.times"),
    "steps longer than the run": ("raw/steps.jsonl", scaled("started_s", 400.0), "integrity.times"),
    "power": ("raw/telemetry.jsonl", scaled("power_w", 20), "integrity.plausible"),
    "memory": ("raw/telemetry.jsonl", scaled("memory_used_bytes", 100), "integrity.plausible"),
    "first loss": ("raw/steps.jsonl", scaled("loss", 1e-4), "integrity.plausible"),
    "device window": ("raw/training.json", scaled("device_window_s", 100), "integrity.plausible"),
    "losses": ("raw/losses.json", lambda one: one["engines"][0].update(losses=[11.0] * 10), "throughput.same_losses"),
    "a kit that was changed meanwhile": (
        "raw/run.json", lambda run: run["code"].update(source_sha256_at_end="b"), "integrity.sources",
    ),
    "another torch": ("raw/training.json", lambda run: run["versions"].update(torch="2.9.0"), "native.device"),
    "another kernel": (
        "raw/records/01_smoke.json", lambda record: record.update(torch="2.9.0+cu128", python="a"), "integrity.kernel",
    ),
    "a detector that stayed green": (
        "raw/negative_control.json", lambda one: one["run"].update(audits=[]), "integrity.negative_control",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGERIES)
def test_contradiction_inside_a_run_is_found_though_everything_was_made_again(bundle, kind):
    with_plan(bundle)
    sample.forge(bundle)
    found, before = red(bundle)
    assert not before, text(found)
    name, make, check = FORGERIES[kind]
    change(bundle, name, make)
    sample.forge(bundle)
    found, after = red(bundle)
    assert check in after and found.exit_code in (1, 4), text(found)


def test_sweep_without_its_losses_or_with_edited_columns_is_found(bundle):
    with_plan(bundle)
    edit(bundle, "raw/sweep.csv", b",0.0505,", b",0.0105,")
    sample.forge(bundle)
    assert "integrity.plausible" in red(bundle)[1]
    (bundle / "raw/losses.json").unlink()
    sample.forge(bundle)
    assert {"integrity.asked", "throughput.same_losses"} <= red(bundle)[1]


def test_figure_of_another_run_is_found(bundle):
    (bundle / "figures/steps.png").write_bytes(sample.png(5))
    sample.forge(bundle)
    assert step(verify(bundle), "shown").found == "figures/steps.png is in no notebook"
    (bundle / "figures/steps.png").write_bytes(sample.png())
    (bundle / "figures/steps.svg").write_text(f"<dc:identifier>{sample.NONCE}</dc:identifier>", encoding="utf-8")
    sample.forge(bundle)
    assert verify(bundle).exit_code == 0
    (bundle / "figures/steps.svg").write_text("<dc:identifier>of another</dc:identifier>", encoding="utf-8")
    sample.forge(bundle)
    assert step(verify(bundle), "one_run").found == "figures/steps.svg is of another run"


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda e: {"verdict": Verdict.of([dataclasses.replace(c, outcome=Outcome.PASS) for c in e.verdict.checks])}, "not what"),
        (lambda e: {"verdict": Verdict(Outcome.PASS, ()), "promises": ()}, "no check or no promise"),
    ],
)  # fmt: skip
def test_failed_bundle_cannot_say_pass(tmp_path, make, words):
    path = sample.make(tmp_path, state="FAILED")
    sample.forge(path, **make(load(path)[0]))
    found = verify(path)
    assert words in step(found, "recomputed").found and found.exit_code == 4


# --- other versions, challenges, times ------------------------------------------------


def test_pages_of_another_kit_version_are_not_compared_and_its_facts_are(tmp_path):
    words = sample.make(tmp_path, run_id="a", kit_version="0.0.9")
    (words / "README.md").write_bytes(b"# older words\n")
    edit(words, "evidence.json", b"PyTorch trains natively", b"PyTorch did train natively")
    sample.rehash(words)
    found = verify(words)
    assert found.exit_code == 0 and "made by kit 0.0.9" in step(found, "report").found
    edit(
        words, "evidence.json", b'"smoke_samples_per_s",\n      "value": ', b'"smoke_samples_per_s",\n      "value": 9'
    )
    sample.rehash(words)
    assert verify(words).exit_code == 4


def test_newer_or_older_schema_is_inconclusive_and_none_is_invalid(bundle):
    for schema, code, words in (("2.7", 3, "newer than"), ("1.0", 3, "older than"), ("x", 4, "knows 2.0")):
        data = (bundle / MANIFEST).read_text(encoding="utf-8")
        made = re.sub('"schema_version": "[^"]*"', f'"schema_version": "{schema}"', data)
        (bundle / MANIFEST).write_text(made, encoding="utf-8")
        found = verify(bundle)
        assert found.exit_code == code and words in step(found, "manifest").found


def test_sources_that_made_it_are_compared_with_this_kits(tmp_path):
    from kit.evidence.source import kit_sha256
    from kit.report import code_identity

    assert code_identity()["source_sha256"] == kit_sha256()
    ours = sample.make(tmp_path, run_id="a", code={"source_sha256": kit_sha256(), "is_dirty": True})
    assert "The very sources of this kit" in verify(ours).worth and "uncommitted changes" in verify(ours).worth
    assert "Other sources than this kit's" in verify(sample.make(tmp_path, run_id="b")).worth


def test_time_in_the_future_is_invalid_and_age_is_told(bundle):
    now = datetime.datetime(2026, 11, 22, 13, tzinfo=datetime.UTC)
    assert "Made 21 days ago" in verify(bundle, now=now).worth
    early = verify(bundle, now=now - datetime.timedelta(days=30))
    assert "in the future" in step(early, "one_run").found


def test_reviewers_nonce_must_be_the_one_given(tmp_path):
    path = sample.make(tmp_path, reviewer_nonce="tell me 42")
    assert "It answers the reviewer's nonce" in verify(path, reviewer_nonce="tell me 42").worth
    assert verify(path, reviewer_nonce="tell me 43").exit_code == 4
    # Written into a run that was over, with everything else made again.
    change(path, "raw/run.json", lambda run: run.update(reviewer_nonce="tell me 43"))
    sample.forge(path)
    found = verify(path, reviewer_nonce="tell me 43")
    assert found.exit_code == 4 and "does not follow from the reviewer's" in step(found, "one_run").found


@pytest.mark.parametrize(
    "number,words",
    [
        ({"name": "best_mfu_measured", "value": 1.3, "unit": "1"}, "over 1"),
        ({"name": "steady_step_s", "value": -0.1, "unit": "s"}, "negative"),
        ({"name": "max_power_w", "value": None, "unit": "W"}, "without a reason"),
        ({"name": "steady_step_s", "value": 1.0, "unit": "s", "low": 2.0, "high": 1.0}, "upside down"),
        ({"name": "matmul_bf16_flop_per_s", "value": 2e15, "unit": "FLOP/s"}, "the card's peak is"),
    ],
)
def test_impossible_numbers_are_told(number, words):
    from kit.evidence.conclude import implausible

    base = (Number("peak_bf16_flop_per_s", 989e12, "FLOP/s", "datasheet"),)
    assert not list(implausible(base))
    assert any(words in problem for problem in implausible((*base, Number(**{"definition": "d", **number}))))


# --- packaging ------------------------------------------------------------------------


def test_line_ends_that_git_changed_are_recognised(bundle):
    texts = [p for p in bundle.rglob("*") if p.suffix in (".md", ".txt")]
    for path in texts:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    found = step(verify(bundle), "hashes")
    assert found.outcome is Outcome.INVALID and found.found.startswith(f"line ends changed: {len(texts)} of ")


PACKINGS = [
    # the folder itself or what is in it, what stands before each name, what a file manager adds
    *((base, prefix, ()) for base in (0, 1) for prefix in ("", "./")),
    (1, "", ("__MACOSX/{0}/._README.md", "{0}/.DS_Store", "{0}/raw/.DS_Store")),
    (0, "", ("Thumbs.db", "desktop.ini")),
]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("base,prefix,litter", PACKINGS)
def test_honest_packaging_verifies(bundle, tmp_path, kind, base, prefix, litter):
    """As zip, Finder, Explorer and tar write it: with and without the folder, with ./, with what a Mac adds."""
    base, path = (bundle, bundle.parent)[base], tmp_path / f"a.{kind}"
    files = {prefix + p.relative_to(base).as_posix(): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    files |= {name.format(bundle.name): b"\0\5\x16\7" for name in litter}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) if kind == "zip" else tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            if kind == "zip":
                archive.writestr(name, data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found = verify(path)
    assert found.outcome is Outcome.PASS, text(found)
    assert ("left aside" in step(found, "readable").found) == bool(litter)


def test_what_a_file_manager_leaves_and_a_link_of_the_reader_do_no_harm(bundle, tmp_path):
    for name in (".DS_Store", "raw/.DS_Store", "figures/Thumbs.db", "._README.md"):
        (bundle / name).write_bytes(b"x")
    (tmp_path / "latest").symlink_to(bundle)
    found = verify(tmp_path / "latest")
    assert found.exit_code == 0 and "4 files of the file manager left aside" in step(found, "readable").found


def test_moved_and_read_only_copy_verifies(bundle, tmp_path):
    moved = shutil.copytree(bundle, tmp_path / "some where" / "else")
    for file in moved.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    assert verify(moved).outcome is Outcome.PASS


def _zip_of(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


FOREIGN = [
    (lambda d: d.mkdir(), "it is empty"),
    (lambda d: (d.mkdir(), (d / "notes.txt").write_text("x", encoding="utf-8")), "not a bundle of the kit"),
    (lambda d: d.write_bytes(b"not a zip at all"), "not a folder and not a zip"),
    (lambda d: d.write_bytes(b"\x1f\x8bno tar"), "not a zip or tar.gz"),
    (_zip_of, "it is empty"),
    (lambda d: _zip_of(d, "holiday.jpg"), "not a bundle of the kit"),
    (lambda d: (d.mkdir(), (d / MANIFEST).write_text("[]", encoding="utf-8")), "not of the kit"),
]


@pytest.mark.parametrize("make,words", FOREIGN)
def test_each_foreign_thing_gets_its_word(tmp_path, make, words):
    with pytest.raises(UsageError, match="does not exist"):
        verify(tmp_path / "thing")
    make(tmp_path / "thing")
    found = verify(tmp_path / "thing")
    assert found.exit_code == 4 and words in text(found)


def test_half_written_folder_is_told_as_such(tmp_path):
    writer = open_bundle(tmp_path, "r1", secrets=sample.NO_SECRETS)
    sample.fill(writer)
    found = verify(writer.path)
    assert found.exit_code == 4 and "half-written" in text(found) and "--close" in text(found)


def test_load_refuses_what_does_not_verify(bundle):
    assert load(bundle)[0].run_id == sample.RUN_ID
    (bundle / "README.md").write_bytes(b"x")
    with pytest.raises(BundleInvalid, match="changed: README.md"):
        load(bundle)


# --- fuzzing, cost, isolation ---------------------------------------------------------


_ODD = b'NaN 1e999 1e300 -1 0 1.5 true null "" [] {} "x" "\\ud800" \xff\xfe \0'.split() + [b"9" * 5000, b"[" * 5000]
_TOKEN = re.compile(rb'(?<=: )(?:"[^"]*"|[-\d.e]+|true|false|null)|(?<=,)[\d.]+')
REAL = sorted(path.parent for path in (ROOT / "reports").glob("*/evidence.json"))


@pytest.mark.parametrize("real", [None, *REAL], ids=lambda path: path.name if path else "sample")
def test_fuzzed_bundles_never_say_what_was_not_said(bundle, tmp_path, trials, tally, real):
    """Bytes, files and values replaced at random, half of them hashed again: no crash, and no PASS that was forged."""
    draw, total, codes = random.Random(11), trials(400 if real else 2000), {}
    bundle = shutil.copytree(real, tmp_path / real.name) if real else bundle
    before = {path: path.read_bytes() for path in sorted(bundle.rglob("*")) if path.is_file()}
    for trial in range(total):
        path = draw.choice(list(before))
        path.write_bytes(_fuzzed(draw, before[path], before[draw.choice(list(before))]))
        is_forged = trial % 2 and path.name not in ("evidence.json", MANIFEST)
        if is_forged:
            sample.rehash(bundle)
        is_same, code = path.read_bytes() == before[path], verify(bundle).exit_code
        if code in (0, 1) and not is_same:
            # A capture or an unused value can be forged with its hashes; nothing that is derived changed.
            assert is_forged and (bundle / "evidence.json").read_bytes() == before[bundle / "evidence.json"]
            code = "forged with its hashes"
        if not is_same:
            codes[code] = codes.get(code, 0) + 1
        for file, data in before.items():
            if file == path or is_forged:
                file.write_bytes(data)
    told = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items(), key=str))
    tally(f"fuzzed {bundle.name}, half of it hashed again", total, told)
    assert set(codes) <= {3, 4, "forged with its hashes"} and codes[4] > total // 2


def _fuzzed(draw, data, other):
    at, to = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    token = draw.choice(list(_TOKEN.finditer(data[:200_000])) or [re.match(b"", data)])
    odd = data[: token.start()] + draw.choice(_ODD) + data[token.end() :]
    noise = data[:at] + draw.randbytes(draw.randrange(1, 9)) + data[min(len(data), at + draw.randrange(9)) :]
    flipped = data[:at] + bytes(byte ^ 1 for byte in data[at : at + 1]) + data[at + 1 :]
    return draw.choice((odd, odd, noise, flipped, data[:at], data[:at] + data[to:], data[:to] + data[at:], other))


def test_fifty_megabytes_in_three_seconds(bundle, tally):
    draw = random.Random(1)
    figures = [sample.png(extra=sample.chunk(b"vpAg", draw.randbytes(650_000))) for _ in range(30)]
    shown = json.dumps(sample.notebook(*sample.SOURCES, pictures=(sample.png(), *figures[:8])), indent=1)
    (bundle / "notebooks/01_smoke.ipynb").write_text(shown, encoding="utf-8")
    for index, figure in enumerate(figures):
        name, data = ("png", figure) if index < 8 else ("svg", b"<svg>" + b"x" * len(figure) + b"</svg>")
        (bundle / f"figures/f{index:02}.{name}").write_bytes(data)
    line = (bundle / "raw/telemetry.jsonl").read_bytes().splitlines(keepends=True)[-1]
    with (bundle / "raw/telemetry.jsonl").open("ab") as file:
        file.write(line * 15_000)
    sample.forge(bundle)
    size = sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file())
    # Its own time, since the machine may be shared.
    began = time.process_time()
    found = verify(bundle)
    taken = time.process_time() - began
    assert found.outcome is Outcome.PASS, text(found)
    tally(f"verify a bundle of {size / 1e6:.0f} MB", 1, f"{taken:.2f} s")
    assert size > 40e6 and taken < 3


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


def test_nothing_of_the_current_folder_is_run(bundle, tmp_path):
    """`python -m kit verify .` inside a bundle: -m puts the current folder first on the path."""
    for name in ("json", "dataclasses", "argparse", "pathlib", "datetime", "zipfile", "typing", "hashlib", "tarfile"):
        (bundle / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "kit", "verify", "."],
        cwd=bundle, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4 and "foreign: argparse.py" in done.stdout, done.stderr
    assert not (tmp_path / "ran").exists()

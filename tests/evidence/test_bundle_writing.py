"""A bundle under crashes, full disks and other runs beside it: never a report that says more than was measured."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import evidence_sample as sample
import pytest

from kit.errors import BundleInvalid, KitError, UsageError
from kit.evidence import write
from kit.evidence.bundle import open_bundle, reopen
from kit.evidence.verify import verify
from kit.records import Outcome, loads

ROOT = Path(__file__).resolve().parents[2]


def opened(folder, run_id="r1"):
    return open_bundle(folder, run_id, secrets=sample.NO_SECRETS)


def is_whole(path):
    return verify(path).integrity is Outcome.PASS


def test_nothing_stands_under_the_final_name_before_the_end(tmp_path):
    bundle = opened(tmp_path)
    sample.fill(bundle)
    assert not (tmp_path / "r1").exists() and not is_whole(bundle.path)
    final = bundle.finish(sample.conclude(bundle.settle()))
    assert final == tmp_path / "r1" and not bundle.path.exists() and is_whole(final)


@pytest.mark.parametrize(
    "gone",
    [
        "raw/steps.jsonl",
        "facts/end.json",
        "nvidia_smi.txt",
        "notebooks/01_smoke.ipynb",
        "raw/telemetry.jsonl",
    ],
)
def test_complete_is_refused_where_something_is_missing(tmp_path, gone):
    bundle = opened(tmp_path)
    sample.fill(bundle)
    evidence = sample.conclude(bundle.settle())
    (bundle.path / gone).unlink()
    with pytest.raises(BundleInvalid, match="lacks"):
        bundle.finish(evidence)
    assert not (tmp_path / "r1").exists() and not is_whole(bundle.path)


def test_evidence_of_another_run_is_refused(tmp_path):
    bundle = opened(tmp_path)
    sample.fill(bundle, sample.run_record(run_id="other"))
    with pytest.raises(BundleInvalid, match="'other'"):
        bundle.finish(sample.conclude(bundle.settle()))


def test_failed_run_with_little_measured_is_a_whole_document(tmp_path):
    bundle = opened(tmp_path)
    bundle.write_json("raw/run.json", sample.run_record("FAILED", run_id="r1"))
    final = bundle.finish(sample.conclude(bundle.settle()))
    found = verify(final)
    assert found.integrity is Outcome.PASS and found.exit_code == 1
    page = (final / "index.html").read_text(encoding="utf-8")
    assert "ZeroDivisionError" in page and "cell 2" in page


def test_used_run_id_is_refused(tmp_path):
    sample.make(tmp_path, run_id="r1")
    with pytest.raises(UsageError, match="exists"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="run id"):
        opened(tmp_path, "../r1")
    assert opened(tmp_path, "r2").path.name == ".r2.partial"
    with pytest.raises(UsageError, match="exists"):
        opened(tmp_path, "r2")


def test_only_what_a_stopped_run_left_can_be_opened_again(tmp_path):
    writer = opened(tmp_path)
    with pytest.raises(UsageError, match="stopped run"):
        reopen(writer.path)
    writer.write_json("raw/run.json", sample.run_record("INTERRUPTED", run_id="r1"))
    with pytest.raises(UsageError, match="still alive"):
        reopen(writer.path)
    # As the end of its process does.
    os.close(writer.lock)
    assert reopen(writer.path).run_id == "r1"
    with pytest.raises(UsageError, match="stopped run"):
        reopen(sample.make(tmp_path, run_id="r2"))


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork are not on Windows")
def test_killed_at_any_moment_leaves_no_false_report(tmp_path, trials, tally):
    kills = trials(200)
    program = Path(__file__).with_name("kill_writers.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(kills)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    tally(
        "SIGKILL at a random moment",
        kills,
        f"{len(found['short'])} false reports, {len(found['torn'])} torn files, "
        f"{found['finished']} finished and {found['half-written']} half-written bundles seen",
    )
    assert not found["short"] and not found["torn"] and found["half-written"] > kills // 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_disk_that_refuses_any_write_leaves_no_false_report(tmp_path, monkeypatch, tally, trials, code):
    """The n-th system call that writes fails, and every one after it, for each n until a run gets through."""
    calls = {"left": 10**9}

    def failing(function):
        def call(*args, **kwargs):
            calls["left"] -= 1
            if calls["left"] < 0:
                raise OSError(code, os.strerror(code))
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    monkeypatch.setattr(write, "open", failing(open), raising=False)
    count = tried = false = 0
    stride = 1 + 30 // trials(30) // 3
    while True:
        place = tmp_path / str(count)
        calls["left"] = count
        try:
            bundle = opened(place)
            sample.fill(bundle)
            bundle.finish(sample.conclude(bundle.settle()))
            break
        except (KitError, OSError) as error:
            assert isinstance(error, KitError) and error.todo, f"write {count}: {error!r}"
        for path in place.iterdir():
            if path.is_dir() and is_whole(path) and not path.name.startswith("."):
                # Only the sync after the last rename may fail behind a whole report.
                false += not (path / "manifest.json").exists()
        for path in place.rglob("*.json"):
            loads(path.read_bytes())
        count, tried = count + stride, tried + 1
    calls["left"] = 10**9
    tally(
        f"{errno.errorcode[code]} at a write of a run, and at all after it",
        tried,
        f"{false} false reports, 0 torn files",
    )
    assert count > 50 and not false


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write.write_atomic(tmp_path / "a.json", "old")
    monkeypatch.setattr(
        os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(KitError, match=r"cannot write a.json \(0.0000029 MiB\)|cannot write a.json"):
        write.write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(KitError, match="free where the report goes"):
        opened(tmp_path)
    assert not list(tmp_path.iterdir())


def test_file_that_may_not_enter_is_moved_out(tmp_path):
    bundle = opened(tmp_path)
    sample.fill(bundle)
    (bundle.path / "notebooks/core.4711").write_bytes(b"x")
    (bundle.path / "raw/link.json").symlink_to("/etc/passwd")
    (bundle.path / ".ipynb_checkpoints").mkdir()
    (bundle.path / ".ipynb_checkpoints/a.ipynb").write_bytes(b"{}")
    final = bundle.finish(sample.conclude(bundle.settle()))
    assert len(bundle.notes) == 3
    assert is_whole(final)
    with pytest.raises(KitError, match="may not enter"):
        opened(tmp_path, "r2").write("model.pt", b"x")


def test_rename_that_windows_refuses_leaves_a_whole_report(tmp_path, monkeypatch):
    import kit.evidence.bundle as module

    monkeypatch.setattr(module.time, "sleep", lambda s: None)
    bundle = opened(tmp_path)
    sample.fill(bundle)
    files = bundle.settle()
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(PermissionError(13, "in use")))
    final = bundle.finish(sample.conclude(files))
    assert "could not be renamed" in bundle.notes[0]
    assert final == bundle.path and is_whole(final)

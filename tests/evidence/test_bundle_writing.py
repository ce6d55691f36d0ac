"""A bundle under crashes, full disks and other runs beside it: never a report that says more than was measured."""

import collections
import errno
import itertools
import multiprocessing
import os
import random
import time

import evidence_sample as sample
import pytest

from kit.errors import BundleInvalid, KitError, UsageError
from kit.evidence import write
from kit.evidence.bundle import open_bundle, reopen
from kit.evidence.verify import verify
from kit.records import Outcome, loads


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
    "gone", ["raw/steps.jsonl", "nvidia_smi.txt", "notebooks/01_smoke.ipynb", "raw/telemetry.jsonl"]
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


def _write_for_ever(folder):
    for number in itertools.count():
        sample.make(folder, run_id=f"run-{number}")


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork are not on Windows")
def test_killed_at_any_moment_leaves_no_false_report(tmp_path, trials, tally):
    draw, states, kills = random.Random(3), collections.Counter(), trials(200)
    for kill in range(kills):
        place = tmp_path / str(kill)
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(place,))
        writer.start()
        time.sleep(draw.uniform(0.002, 0.12))
        writer.kill()
        writer.join()
        for path in place.glob("*/"):
            states["half-written" if path.name.startswith(".") else "finished"] += 1
            # The manifest comes last: only the rename may be missing behind it, and nothing under the final name.
            is_there = (path / "manifest.json").exists()
            assert is_whole(path) == is_there and (is_there or path.name.startswith("."))
            for name in path.rglob("*.json"):
                loads(name.read_bytes())
        assert is_whole(sample.make(place, run_id="after"))
    seen = f"{states['finished']} finished and {states['half-written']} half-written bundles seen"
    tally("SIGKILL at a random moment", kills, f"0 false reports, 0 torn files, {seen}")
    assert states["half-written"] > kills // 2


def test_disk_that_refuses_any_write_leaves_no_false_report(tmp_path, monkeypatch, tally, trials):
    """The n-th system call that writes fails, and every one after it, for each n until a run gets through."""
    left, codes = [10**9], itertools.cycle((errno.ENOSPC, errno.EIO))

    def failing(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                code = next(codes)
                raise OSError(code, os.strerror(code))
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    monkeypatch.setattr(write, "open", failing(open), raising=False)
    stride = 1 + 30 // trials(30) // 3
    for count in itertools.count(step=stride):
        place = tmp_path / str(count)
        left[0] = count
        try:
            sample.make(place, run_id="r1")
            break
        except (KitError, OSError) as error:
            assert isinstance(error, KitError) and error.todo, f"write {count}: {error!r}"
        # Only the sync after the last rename may fail behind a whole report.
        assert all((path / "manifest.json").exists() for path in place.glob("[!.]*/") if is_whole(path))
        for path in place.rglob("*.json"):
            loads(path.read_bytes())
    left[0] = 10**9
    tally("ENOSPC or EIO at a write of a run, and at all after it", count // stride, "0 false reports, 0 torn files")
    assert count > 50


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write.write_atomic(tmp_path / "a.json", "old")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(full))
    with pytest.raises(KitError, match="cannot write a.json"):
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

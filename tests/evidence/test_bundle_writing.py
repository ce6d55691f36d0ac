"""A bundle under crashes, full disks, interrupts and second runs: never a report that says more than was measured."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import evidence_sample as sample
import pytest

from kit.errors import BundleInvalid, KitError, UsageError
from kit.evidence import lock, write
from kit.evidence.bundle import open_bundle
from kit.evidence.verify import verify
from kit.records import Outcome, loads

ROOT = Path(__file__).resolve().parents[2]


def opened(folder, run_id="r1"):
    return open_bundle(folder, run_id, secrets=sample.NO_SECRETS)


def check(path):
    return verify(path)


def test_nothing_stands_under_the_final_name_before_the_end(tmp_path):
    with opened(tmp_path) as bundle:
        sample.fill(bundle)
        assert not (tmp_path / "r1").exists() and check(bundle.path).exit_code == 4
        final = bundle.finish(sample.conclude(bundle.settle()))
    assert final == tmp_path / "r1" and not bundle.path.exists() and check(final).exit_code == 0


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
    with opened(tmp_path) as bundle:
        sample.fill(bundle)
        evidence = sample.conclude(bundle.settle())
        (bundle.path / gone).unlink()
        with pytest.raises(BundleInvalid, match="lacks"):
            bundle.finish(evidence)
    assert not (tmp_path / "r1").exists() and check(bundle.path).exit_code == 4


def test_evidence_of_another_run_is_refused(tmp_path):
    with opened(tmp_path) as bundle:
        sample.fill(bundle, sample.run_record(run_id="other"))
        with pytest.raises(BundleInvalid, match="'other'"):
            bundle.finish(sample.conclude(bundle.settle()))


def test_failed_run_with_little_measured_is_a_whole_document(tmp_path):
    with opened(tmp_path) as bundle:
        bundle.write_json("raw/run.json", sample.run_record("FAILED", run_id="r1"))
        final = bundle.finish(sample.conclude(bundle.settle()))
    found = check(final)
    assert found.integrity is Outcome.PASS and found.exit_code == 1
    page = (final / "index.html").read_text(encoding="utf-8")
    assert page.index("ZeroDivisionError") < page.index("The six promises") and "cell 2" in page


def test_second_run_at_one_place_is_refused_at_once(tmp_path):
    with opened(tmp_path) as first:
        code = (
            f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
            "import evidence_sample as sample\nfrom pathlib import Path\nfrom kit.errors import UsageError\n"
            "try:\n    sample.open_bundle(Path(sys.argv[1]), 'r2', secrets=sample.NO_SECRETS)\n"
            "except UsageError as error:\n    print(error.exit_code, error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"2 another run writes to {tmp_path}: process {os.getpid()}, run r1")
        with pytest.raises(UsageError):
            opened(tmp_path, "r3")
        assert first.path.exists() and not (tmp_path / ".r3.partial").exists()
    with opened(tmp_path, "r4") as again:
        assert not again.notes


def test_lock_of_a_dead_run_is_taken_over_with_a_note(tmp_path):
    (tmp_path / lock.LOCK).write_text("process 4711, run old", encoding="utf-8")
    with opened(tmp_path) as bundle:
        assert "process 4711, run old" in bundle.notes[0]


def test_abandoned_run_of_the_same_name_is_kept_aside(tmp_path):
    with opened(tmp_path) as bundle:
        bundle.append_line("raw/steps.jsonl", {"step": 1})
    with opened(tmp_path) as again:
        assert not (again.path / "raw").exists() and "kept as .r1.abandoned-" in again.notes[0]
    [aside] = tmp_path.glob(".r1.abandoned-*")
    assert loads((aside / "raw/steps.jsonl").read_bytes()) == {"step": 1}


def test_used_run_id_is_refused(tmp_path):
    sample.make(tmp_path, run_id="r1")
    with pytest.raises(UsageError, match="exists"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="run id"):
        opened(tmp_path, "../r1")
    with opened(tmp_path, "r2"):
        pass


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
            with opened(place) as bundle:
                sample.fill(bundle)
                bundle.finish(sample.conclude(bundle.settle()))
            break
        except (KitError, OSError) as error:
            assert isinstance(error, KitError) and error.todo, f"write {count}: {error!r}"
        for path in place.iterdir():
            if path.is_dir() and check(path).exit_code == 0 and not path.name.startswith("."):
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


def test_full_disk_cuts_a_line_off_again(tmp_path, monkeypatch):
    path = tmp_path / "steps.jsonl"
    write.append(path, b'{"step": 1}\n')

    class Full:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, data):
            self._file.write(data[:5])
            self._file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

        def tell(self):
            return self._file.tell()

    monkeypatch.setattr(write, "open", lambda *args: Full(open(*args)), raising=False)
    with pytest.raises(KitError, match="No space left") as caught:
        write.append(path, b'{"step": 2}\n')
    assert path.read_bytes() == b'{"step": 1}\n' and caught.value.todo == "free some space"


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


def test_interrupt_while_finishing_leaves_no_report_and_lets_the_place_go(tmp_path, monkeypatch):
    import kit.evidence.bundle as module

    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as bundle:
        sample.fill(bundle)
        monkeypatch.setattr(module, "derived", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        bundle.finish(sample.conclude(bundle.settle()))
    assert check(bundle.path).exit_code == 4 and not lock.is_held(tmp_path)


def test_file_that_may_not_enter_is_moved_out(tmp_path):
    with opened(tmp_path) as bundle:
        sample.fill(bundle)
        (bundle.path / "notebooks/core.4711").write_bytes(b"x")
        (bundle.path / "raw/link.json").symlink_to("/etc/passwd")
        (bundle.path / ".ipynb_checkpoints").mkdir()
        (bundle.path / ".ipynb_checkpoints/a.ipynb").write_bytes(b"{}")
        final = bundle.finish(sample.conclude(bundle.settle()))
        assert len(bundle.notes) == 3
    assert check(final).exit_code == 0
    with pytest.raises(KitError, match="may not enter"), opened(tmp_path, "r2") as bundle:
        bundle.write("model.pt", b"x")


def test_rename_that_windows_refuses_leaves_a_whole_report(tmp_path, monkeypatch):
    import kit.evidence.bundle as module

    monkeypatch.setattr(module.time, "sleep", lambda s: None)
    with opened(tmp_path) as bundle:
        sample.fill(bundle)
        files = bundle.settle()
        monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(PermissionError(13, "in use")))
        final = bundle.finish(sample.conclude(files))
        assert "could not be renamed" in bundle.notes[0]
    assert final == bundle.path and check(final).exit_code == 0

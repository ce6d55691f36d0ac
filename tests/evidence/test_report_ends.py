"""However a report ends, what is left is a bundle that verifies, or a partial folder that `--close` makes one."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import evidence_sample as sample
import pytest

from kit import report as module
from kit.cli import main
from kit.evidence.bundle import open_bundle, this_python
from kit.evidence.contents import NotebookRun
from kit.evidence.index import write_index
from kit.evidence.notebook import source_sha256
from kit.evidence.verify import verify
from kit.gpu.probe import Capture
from kit.process import SHARE
from kit.records import Outcome, dumps
from tools import torture

NAMES = module.NOTEBOOKS
FACTS = json.loads((SHARE / "tests" / "machines" / "no_gpu_rehearsal.json").read_text(encoding="utf-8"))["facts"]


@pytest.fixture
def quick(monkeypatch):
    """`report()` with notebooks that run in no time: quick[name] is what one does, given the folder of the bundle."""
    does = {}

    def execute(path, executed, *, parameters, environment, progress):
        out, name = Path(environment["KIT_BUNDLE"]), path.stem
        assert "out" not in parameters
        if name == NAMES[0]:
            (out / "facts").mkdir()
            (out / "facts" / "begin.json").write_text(json.dumps(FACTS), encoding="utf-8")
        does.get(name, lambda out: None)(out)
        executed.write_text(
            json.dumps(sample.notebook("a = 1", nonce=parameters["nonce"], pictures=())), encoding="utf-8"
        )
        record = {"nonce": parameters["nonce"], "python": this_python(), "torch": FACTS["torch"]["version"]}
        (out / "raw" / "records").mkdir(parents=True, exist_ok=True)
        (out / "raw" / "records" / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
        return NotebookRun(name, "ok", 0.1, 1, 1, None, None, source_sha256(sample.notebook("a = 1")))

    captured = {"torch_version.txt": 0, "env_info.txt": 0}
    monkeypatch.setattr(module, "execute", execute)
    monkeypatch.setattr(module, "capture", lambda *argv, **_: Capture(argv[:1], captured.get("code", 0), "a text"))
    does["captured"] = captured
    return does


def run(tmp_path, **more):
    done = module.report(device="cpu", out=tmp_path, **more)
    found = verify(done.path)
    assert found.integrity is Outcome.PASS, [check for check in found.checks if check.outcome is not Outcome.PASS]
    assert (tmp_path / "index.html").is_file() and not list(tmp_path.glob(".*.partial"))
    return done


def raising(error):
    def fail(out):
        raise error

    return fail


def test_an_error_of_the_kit_costs_nothing_that_was_measured(tmp_path, quick):
    quick[NAMES[1]] = raising(ZeroDivisionError("our own"))
    done = run(tmp_path)
    assert (done.evidence.state, done.exit_code) == ("FAILED", 1)
    assert "ZeroDivisionError: our own" in (done.path / "raw" / "run.json").read_text(encoding="utf-8")
    assert (done.path / "facts" / "begin.json").is_file() and [run.name for run in done.evidence.notebooks] == [
        NAMES[0]
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_a_signal_ends_in_a_bundle_that_says_so(tmp_path, quick, number):
    quick[NAMES[1]] = lambda out: os.kill(os.getpid(), number)
    done = run(tmp_path)
    assert (done.evidence.state, done.exit_code) == ("INTERRUPTED", 128 + number)
    assert number.name in (done.path / "raw" / "run.json").read_text(encoding="utf-8")
    assert signal.getsignal(number) is not signal.SIG_DFL or number is not signal.SIGINT


def test_a_signal_while_the_report_closes_changes_nothing(tmp_path, quick, monkeypatch):
    conclude = module.conclude
    count = []

    def interrupted(files):
        # The record says FAILED once the notebooks are through.
        if json.loads(files["raw/run.json"])["state"] == "FAILED" and not count:
            count.append(len(files))
            os.kill(os.getpid(), signal.SIGTERM)
        return conclude(files)

    monkeypatch.setattr(module, "conclude", interrupted)
    done = run(tmp_path)
    assert done.evidence.state == "FAILED" and done.exit_code == 1 and len(count) == 1


def test_the_proof_is_told_between_the_training_notebook_and_the_sweep(tmp_path, quick):
    lines = []
    quick[NAMES[1]] = lambda out: (out / "raw" / "steps.jsonl").write_text("no step\n") and lines.append("trained")
    quick[NAMES[2]] = lambda out: lines.append("swept")
    run(tmp_path, progress=lines.append)
    told = next(line for line in lines if line.startswith("the proof"))
    assert lines.index("trained") < lines.index(told) < lines.index("swept")
    assert "raw/steps.jsonl" in told or "INCONCLUSIVE" in told


def test_a_first_notebook_that_leaves_no_facts_ends_in_a_bundle_that_says_so(tmp_path, quick):
    quick[NAMES[0]] = lambda out: (out / "facts" / "begin.json").unlink()
    done = run(tmp_path)
    assert "left no facts/begin.json" in (done.path / "raw" / "run.json").read_text(encoding="utf-8")
    assert [one.state for one in done.evidence.notebooks] == ["ok", "not_run", "not_run", "not_run"]


def test_records_that_cannot_be_read_are_left_out(tmp_path, quick):
    def garbage(out):
        (out / "raw" / "training.json").write_text("[]", encoding="utf-8")
        (out / "raw" / "ranks.json").write_text("{", encoding="utf-8")

    quick[NAMES[1]] = garbage
    done = run(tmp_path)
    assert done.exit_code == 1 and not (done.path / "raw" / "training.json").exists()
    assert any("raw/training.json" in note for note in done.notes)


def test_a_host_that_is_called_as_one_of_our_words_costs_nothing(tmp_path, quick, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "evidence")
    assert [one.state for one in run(tmp_path).evidence.notebooks] == ["ok"] * 4


def test_words_that_are_private_only_together_leave_a_report_that_says_so(tmp_path, quick):
    made = sample.recorded("cpu")[1].run
    made = dataclasses.replace(made, versions={**made.versions, "--token": "abcdefgh"})
    quick[NAMES[1]] = lambda out: (out / "raw" / "training.json").write_text(dumps(made), encoding="utf-8")
    done = run(tmp_path)
    assert (done.evidence.state, done.exit_code) == ("FAILED", 1) and list(tmp_path.glob(".*.left-out"))
    reason = json.loads((done.path / "raw" / "run.json").read_text(encoding="utf-8"))["reason"]
    assert reason.startswith("private values: secret in") and not (done.path / "raw" / "training.json").exists()


def test_a_clock_that_was_set_back_is_told_and_harms_nothing(tmp_path, quick, monkeypatch):
    moved, now = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: now() + moved[0])
    quick[NAMES[1]] = lambda out: moved.__setitem__(0, -7200.0)
    done = run(tmp_path)
    assert any("was moved by -7200 s" in limit for limit in done.evidence.limits)
    assert done.evidence.started_utc <= done.evidence.ended_utc


def test_a_capture_that_takes_too_long_is_told_and_ends_nothing(tmp_path, quick):
    quick["captured"]["code"] = None
    done = run(tmp_path)
    assert "env_info.txt holds no capture" in " ".join(done.evidence.limits)
    assert [one.state for one in done.evidence.notebooks] == ["ok"] * 4


def test_neighbours_of_any_kind_change_nothing(tmp_path, quick):
    for name in ("pipe", "list", "edited"):
        (tmp_path / name / "facts").mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("[]", encoding="utf-8")
        (tmp_path / name / "evidence.json").write_text("[]", encoding="utf-8")
        (tmp_path / name / "facts" / "begin.json").write_text("[]", encoding="utf-8")
    if hasattr(os, "mkfifo"):
        (tmp_path / "pipe" / "evidence.json").unlink()
        os.mkfifo(tmp_path / "pipe" / "evidence.json")
    assert run(tmp_path).exit_code == 1


def test_a_list_that_cannot_be_written_changes_nothing(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(module, "write_index", raising(OSError("no room")))
    done = module.report(device="cpu", out=tmp_path)
    assert done.exit_code == 1 and done.notes[-1].endswith("no room")


def test_what_a_crash_left_is_closed_by_the_command(tmp_path, capsys):
    """As a second signal leaves it: a notebook half written, a temporary file, a record of one notebook."""
    writer = open_bundle(tmp_path, "r1", secrets=sample.NO_SECRETS)
    sample.fill(writer, sample.run_record("INTERRUPTED", run_id="r1", code=module.code_identity()))
    (writer.path / "notebooks" / "02_smoke_training.ipynb").write_text('{"cells": [', encoding="utf-8")
    (writer.path / "raw" / ".steps.jsonl.77.tmp").write_text("{", encoding="utf-8")
    assert main(["report", "--close", str(writer.path)]) == 2 and "still alive" in capsys.readouterr().err
    os.close(writer.lock)
    assert main(["report", "--close", str(writer.path)]) == 130
    assert "INTERRUPTED" in (tmp_path / "r1" / "evidence.json").read_text(encoding="utf-8")
    assert verify(tmp_path / "r1").integrity is Outcome.PASS and "half" not in capsys.readouterr().err
    assert main(["report", "--close", str(tmp_path / "r1")]) == 2


def _runs(folder, name):
    for number in range(4):
        sample.make(folder, run_id=f"{name}-{number}")
        write_index(folder)


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_runs_of_two_processes_into_one_folder_are_all_listed(tmp_path):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_runs, args=(tmp_path, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert all(f"href='{name}-{number}/index.html'" in page for name in "ab" for number in range(4))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
def test_signals_at_random_moments_leave_nothing_that_does_not_close(tally, trials):
    count = trials(20)
    outcomes = torture.torture(count, seed=int(time.time()))
    tally("signals at random moments of a report", count, ", ".join(f"{len(v)} {k}" for k, v in outcomes.items()))
    assert not {outcome: runs for outcome, runs in outcomes.items() if outcome.startswith("fault")}


def test_a_kernel_of_another_python_is_never_used(tmp_path):
    """Somebody's JUPYTER_PATH holds a kernel python3 that is none."""
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "P", "language": "python"}), encoding="utf-8")
    kit = torture.small_kit(tmp_path / "kit", {NAMES[1]: "import sys; print(sys.prefix); 1 / 0"})
    process = torture.report(kit, tmp_path / "out", JUPYTER_PATH=str(tmp_path / "jupyter"), JUPYTER_PREFER_ENV_PATH="0")
    assert torture.finished(process)[0] == 1
    [record] = (tmp_path / "out").glob("[!.]*/raw/run.json")
    told = json.loads(record.read_text(encoding="utf-8"))
    assert [one["state"] for one in told["notebooks"][:2]] == ["ok", "failed"] and "ZeroDivision" in told["reason"]
    [final] = record.parent.glob("records/01*.json")
    assert json.loads(final.read_text(encoding="utf-8"))["python"] == told["code"]["python"]


def test_a_commit_is_named_only_where_the_kit_is_tracked(tmp_path):
    kit = torture.small_kit(tmp_path / "somebodys" / "kit")
    kit.joinpath("reports").mkdir()

    def git(*args, folder):
        who = ("-c", "user.name=n", "-c", "user.email=n@localhost", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(folder), *who, *args], check=True, capture_output=True)

    def told():
        code = "import json; from kit.report import code_identity; print(json.dumps(code_identity()))"
        done = subprocess.run([sys.executable, "-c", code], cwd=kit, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    git("init", "-q", folder=kit.parent)
    git("commit", "-q", "--allow-empty", "-m", "theirs", folder=kit.parent)
    assert (told()["commit"], told()["is_dirty"]) == (None, None)
    (kit / ".gitignore").write_text("__pycache__/\n", encoding="utf-8")
    (kit / "reports" / "old.txt").write_text("a", encoding="utf-8")
    git("add", "-A", folder=kit)
    git("commit", "-q", "-m", "ours", folder=kit)
    (kit / "reports" / "new.txt").write_text("a", encoding="utf-8")
    (kit / "reports" / "old.txt").write_text("b", encoding="utf-8")
    assert told()["commit"] and told()["is_dirty"] is False
    (kit / "kit" / "added.py").write_text("", encoding="utf-8")
    assert told()["is_dirty"] is True

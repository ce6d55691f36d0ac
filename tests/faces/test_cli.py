"""The command line: documented exit codes, one JSON object, no traceback for a person's mistake."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from kit.cli import main, parser
from kit.process import ROOT


def run(capsys, *argv):
    code = main(list(argv))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def needs_no_gpu():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU; the law is about machines without one")


def test_every_command_documents_its_exit_codes_choices_and_defaults():
    for name, command in parser()[1].items():
        text = command.format_help()
        assert "exit codes" in text
        # What has no words must at least say its default.
        assert all(action.help and "see TrainConfig" not in action.help for action in command._actions), name
    assert "default: 14" in parser()[1]["train"].format_help()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("chekc", "did you mean 'check'?"),
        ("nothing-like-it", "no command 'nothing-like-it'"),
        ("check --expect-gup x", "did you mean '--expect-gpu'?"),
        ("train --steps many", "invalid int value: 'many'"),
        ("report --device gpu", "invalid choice: 'gpu'"),
        ("", "required: COMMAND"),
    ],
)
def test_a_mistyped_line_is_told_what_was_meant(capsys, line, words):
    code, out, err = run(capsys, *line.split())
    assert code == 2 and words in err and "--help" in err and not out
    code, out, _ = run(capsys, *line.split(), "--json")
    assert code == 2 and words in json.loads(out)["error"]["found"]


def test_the_version_names_the_commit_of_a_checkout(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0 and re.fullmatch(r"kit \S+ \(commit [0-9a-f]{40}\)\n", out)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_with_its_code_and_without_a_traceback(number):
    program = (
        # What starts the tests may ignore signals, as nohup does, and its children with it.
        "import signal, sys, time; from kit import cli\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def work(args): print('ready', flush=True); time.sleep(60)\n"
        "cli.COMMANDS['explain'] = cli.Command(work, 'works'); sys.exit(cli.main(['explain']))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, cwd=ROOT) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        err = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + number
    assert b"interrupted" in err and b"Traceback" not in err


def test_asking_for_cuda_without_a_gpu_is_a_fail_with_a_diagnosis(capsys):
    needs_no_gpu()
    code, out, _ = run(capsys, "check", "--json")
    found = json.loads(out)
    assert (code, found["verdict"]) == (1, "FAIL")
    assert found["diagnosis"] in ("no_driver_or_no_gpu", "cpu_only_build")
    assert found["remedy"]["summary"]
    assert set(found) == {"verdict", "diagnosis", "findings", "remedy", "facts"}


def test_training_on_cuda_without_a_gpu_runs_no_step(capsys, tmp_path):
    needs_no_gpu()
    code, _, err = run(capsys, "train", "--device", "cuda", "--out", str(tmp_path))
    assert code == 1
    assert "Expected:" in err and "To do:" in err and "Traceback" not in err
    assert not (tmp_path / "steps.jsonl").exists()


def test_a_rehearsal_trains_on_the_cpu_and_says_so(capsys, tmp_path):
    line = "train --device cpu --model tiny --steps 3 --batch-size 2 --seq-len 8 --lr 1e-3 --json --out"
    code, out, _ = run(capsys, *line.split(), str(tmp_path))
    found = json.loads(out)
    assert (code, found["verdict"], found["throughput"]["samples"]) == (0, "REHEARSAL", 6)
    assert len((tmp_path / "steps.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_recorded_facts_are_judged_without_this_machine(capsys, tmp_path):
    saved = tmp_path / "facts.json"
    run(capsys, "check", "--device", "cpu", "--save", str(saved))
    code, out, _ = run(capsys, "check", "--facts", str(saved), "--device", "cpu", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "REHEARSAL")


@pytest.mark.parametrize(
    "line",
    [
        "train --device cpu --batch-size 0",
        "train --device cpu --model gpt5",
        "train --device cpu --model tiny --dataset no-such-file.jsonl",
        "check --device cpu --min-cuda twelve",
        "check --facts no-such-file.json",
        "explain no-such-file.txt",
        "verify no-such-bundle",
        "report --device cpu --params no-such-file.yaml",
        "sweep --device cpu --model tiny --batch-sizes 4 4",
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(capsys, line):
    code, _, err = run(capsys, *line.split())
    assert code == 2
    assert "Expected:" in err and "Traceback" not in err


def test_a_report_with_a_misspelt_parameter_runs_nothing(capsys, tmp_path):
    params = tmp_path / "p.yaml"
    params.write_text("device: cpu\nbatchsize: 4\n", encoding="utf-8")
    code, _, err = run(capsys, "report", "--device", "cpu", "--params", str(params), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "did you mean 'batch_size'" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["report --device cpu --out", "check --device cpu --save", "lab --out"])
def test_an_output_that_cannot_be_written_is_a_usage_error(capsys, tmp_path, line):
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, _, err = run(capsys, *line.split(), str(tmp_path / "file" / "below"))
    assert code == 2
    assert "Traceback" not in err and "cannot" in err


def test_yaml_that_is_nested_too_deeply_is_a_wrong_file(capsys, tmp_path):
    (tmp_path / "deep.yaml").write_text("[" * 100_000, encoding="utf-8")
    code, _, err = run(capsys, "report", "--params", str(tmp_path / "deep.yaml"))
    assert code == 2 and "Traceback" not in err


def test_jupyterlab_works_on_copies_and_as_root(capsys, tmp_path, monkeypatch):
    labapp = pytest.importorskip("jupyterlab.labapp")
    started = []
    monkeypatch.setattr(labapp.LabApp, "launch_instance", lambda argv: started.append(argv))
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / "02_smoke_training.ipynb").write_text("mine")
    code, _, err = run(capsys, "lab", "--out", str(tmp_path), "--no-browser")
    assert code == 0 and "stays as it is" in err and "as root" in err
    assert (tmp_path / "02_smoke_training.ipynb").read_text() == "mine"
    assert (tmp_path / "01_env_check.ipynb").read_bytes() == (ROOT / "notebooks/01_env_check.ipynb").read_bytes()
    assert {"--allow-root", "--no-browser", f"--ServerApp.root_dir={tmp_path}"} <= set(started[0])


def kit_test(project, *arguments):
    """`kit test` over a checkout of its own, in a process of its own."""
    program = f"import pathlib, sys, kit.cli; kit.cli.ROOT = pathlib.Path({str(project)!r}); sys.exit(kit.cli.main())"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, "test", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert "test session starts" in done.stderr
    return done.returncode, json.loads(done.stdout)


def notebook(path, stored):
    """One whose only cell prints a line of a training; `stored` is what it must print."""
    path.parent.mkdir(exist_ok=True)
    cell = {"cell_type": "code", "execution_count": 1, "id": "a", "metadata": {"tags": ["nbval-check-output"]},
            "source": "print('loss 10.80 → 10.34 in 1.23 s, 45.6 samples/s')",
            "outputs": [{"output_type": "stream", "name": "stdout", "text": stored + "\n"}]}  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(book), encoding="utf-8")


@pytest.mark.slow
def test_the_test_command_tells_the_truth(tmp_path):
    """Of the notebooks too: another time is the same output, another digit of a loss is not."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tests" / "test_it.py").write_text(
        "import pytest\ndef test_one():\n    assert True\n"
        "@pytest.mark.skipif(True, reason='why')\ndef test_two():\n    pass\n"
    )
    notebook(tmp_path / "notebooks" / "true.ipynb", "loss 10.80 → 10.34 in 99 s, 0.123 samples/s")
    counts = {"passed": 2, "skipped": 1}
    assert kit_test(tmp_path) == (0, {"verdict": "PASS", **counts})
    notebook(tmp_path / "notebooks" / "planted.ipynb", "loss 10.80 → 10.35 in 1.23 s, 45.6 samples/s")
    assert kit_test(tmp_path, "-n", "0") == (1, {"verdict": "FAIL", **counts, "failed": 1})
    assert kit_test(tmp_path, "-n", "0", "tests", "-k", "nothing_like_it")[1]["verdict"] == "INCONCLUSIVE"

"""The command line: documented exit codes, one JSON object, no traceback for a person's mistake."""

import json
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


def test_every_command_documents_the_exit_codes():
    commands = next(action for action in parser()._actions if action.dest == "command").choices
    assert set(commands) >= {"report", "check", "explain", "train", "sweep", "verify", "compare", "lab", "test"}
    assert all("exit codes" in command.format_help() for command in commands.values())


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
    code, out, _ = run(
        capsys,
        "train",
        "--device",
        "cpu",
        "--model",
        "tiny",
        "--steps",
        "6",
        "--seq-len",
        "16",
        "--lr",
        "1e-3",
        "--out",
        str(tmp_path),
        "--json",
    )
    found = json.loads(out)
    assert (code, found["verdict"]) == (0, "REHEARSAL")
    assert found["throughput"]["samples"] == 24
    assert len((tmp_path / "steps.jsonl").read_text(encoding="utf-8").splitlines()) == 6


def test_recorded_facts_are_judged_without_this_machine(capsys, tmp_path):
    saved = tmp_path / "facts.json"
    run(capsys, "check", "--device", "cpu", "--save", str(saved))
    code, out, _ = run(capsys, "check", "--facts", str(saved), "--device", "cpu", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "REHEARSAL")


@pytest.mark.parametrize(
    "argv",
    [
        ("train", "--device", "cpu", "--batch-size", "0"),
        ("train", "--device", "cpu", "--model", "gpt5"),
        ("train", "--device", "cpu", "--model", "tiny", "--dataset", "no-such-file.jsonl"),
        ("check", "--device", "cpu", "--min-cuda", "twelve"),
        ("check", "--facts", "no-such-file.json"),
        ("explain", "no-such-file.txt"),
        ("verify", "no-such-bundle"),
        ("report", "--device", "cpu", "--params", "no-such-file.yaml"),
        ("sweep", "--device", "cpu", "--model", "tiny", "--batch-sizes", "4", "4"),
    ],
    ids=lambda argv: " ".join(argv[:1] + argv[-2:]),
)
def test_a_mistake_is_one_message_and_exit_code_2(capsys, argv):
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert "Expected:" in err and "Traceback" not in err


def test_a_wrong_argument_is_exit_code_2():
    with pytest.raises(SystemExit) as caught:
        main(["train", "--steps", "many"])
    assert caught.value.code == 2


def test_a_report_with_a_misspelt_parameter_runs_nothing(capsys, tmp_path):
    params = tmp_path / "p.yaml"
    params.write_text("device: cpu\nbatchsize: 4\n", encoding="utf-8")
    code, _, err = run(capsys, "report", "--device", "cpu", "--params", str(params), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "did you mean 'batch_size'" in err
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_made_is_a_usage_error(capsys, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, _, err = run(capsys, "report", "--device", "cpu", "--out", str(tmp_path / "file" / "reports"))
    assert code in (1, 2, 5)
    assert "Traceback" not in err and "Expected:" in err


@pytest.mark.parametrize("module", ["kit", "kit.cli", "kit.records", "kit.gpu.judge_machine", "kit.evidence.verify"])
def test_importing_it_loads_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'pynvml', 'yaml', 'papermill') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_verify_and_explain_run_on_the_standard_library_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    for argv in (["verify", str(tmp_path / "empty")], ["explain", "-"], ["--help"]):
        done = subprocess.run(
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
                f"from kit.__main__ import main; sys.exit(main({argv!r}))",
            ],
            input="CUDA error: no kernel image is available",
            capture_output=True,
            text=True,
        )
        assert "ModuleNotFoundError" not in done.stderr
        assert done.returncode in (0, 1, 3, 4)

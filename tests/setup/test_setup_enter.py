"""The road from a bare Python to an environment: what is decided, said, installed, and gone on with."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kit.errors import GpuNotUsable, SetupFailed, UsageError
from kit.gpu.facts import Driver, Gpu
from kit.setup import enter
from kit.setup import environment as env
from kit.setup.plan import Machine

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = Machine(Driver(nvml_error="nvidia-smi is not in PATH"), False, "linux_x86_64", (3, 12))
H100 = Machine(Driver("580.159.04", gpus=(Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0)),)), True, "linux_x86_64", (3, 12))
RTX_5090 = Machine(
    Driver("576.88", gpus=(Gpu(0, "NVIDIA GeForce RTX 5090", (12, 0)),)), True, "windows_x86_64", (3, 12)
)


class Fake:
    """A world in which nothing happens but notes are taken; every package is missing in this Python."""

    def __init__(self, root, machine=NO_GPU, reach=(), environ=None):
        self.said, self.built, self.gone = [], [], []
        self.world = enter.World(
            root=root,
            environ=environ or {},
            look=lambda: machine,
            can_reach=lambda url: any(url.startswith(known) for known in reach),
            run=lambda argv, keep_open=None: 0,
            go_on=lambda python, argv: self.gone.append((python.parent.parent.name, list(argv))),
            say=self.said.append,
        )

    def ensure(self, line):
        enter.ensure(line.split(), self.world)
        return self.gone[-1][0] if self.gone else None


@pytest.fixture(autouse=True)
def bare_python(monkeypatch):
    """This Python has no packages, and building writes the marker of a whole environment."""
    monkeypatch.setattr(enter, "missing", lambda needs: tuple(need.distribution for need in needs))
    monkeypatch.setattr(enter.signal, "signal", lambda *_: None)
    monkeypatch.setattr(env.Environment, "lacks", lambda self, needs: () if self.recipe() else ("torch",))


@pytest.fixture
def built(monkeypatch):
    """The calls of `environment.build`, each leaving a finished folder."""
    calls = []

    def build(place, pick, needs, *, files, root, index_url, patience, run, say):
        calls.append({"place": place.folder.name, "pick": pick, "index_url": index_url, "patience": patience})
        place.folder.mkdir(exist_ok=True)
        finish(place.folder, pick.kind, pick.requirement, files, root)

    monkeypatch.setattr(env, "build", build)
    return calls


def finish(folder, kind, torch, files, root):
    folder.mkdir(exist_ok=True)
    (folder / env.DONE).write_text(env.dumps(env.Recipe(kind, torch, files, str(root))))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "requirements-gpu.txt").write_text("torch>=2.9\n")
    (tmp_path / "requirements-test.txt").write_text("pytest==9.2.0\n")
    return tmp_path


def test_nothing_is_installed_where_everything_is_importable(root, monkeypatch):
    monkeypatch.setattr(enter, "missing", lambda needs: ())
    fake = Fake(root)
    assert fake.ensure("report") is None and not fake.said and list(root.glob(".venv*")) == []


def test_commands_without_packages_return_at_once(root):
    fake = Fake(root)
    assert fake.ensure("verify reports/x") is None and not fake.said


def test_a_rehearsal_gets_the_cpu_build_from_the_cpu_index(root, built):
    fake = Fake(root, reach=("https://download.pytorch.org/whl/cpu", "https://pypi.org"))
    assert fake.ensure("report --device cpu --json") == ".venv-cpu"
    assert built[0]["index_url"] == "https://download.pytorch.org/whl/cpu" and built[0]["patience"] == ()
    assert fake.gone[0][1] == ["report", "--device", "cpu", "--json"]


def test_an_unreachable_cpu_index_means_the_ordinary_one(root, built):
    fake = Fake(root, reach=("https://pypi.org",))
    fake.ensure("report --device cpu")
    assert built[0]["index_url"] is None and built[0]["pick"].requirement == "torch==2.13.0"
    assert any("cannot be reached" in line for line in fake.said)


def test_an_unreachable_gpu_index_still_asks_for_the_gpu_build(root, built):
    Fake(root, RTX_5090, reach=("https://pypi.org",)).ensure("report")
    assert built[0]["index_url"] is None and built[0]["pick"].requirement.endswith("+cu128")
    assert built[0]["place"] == ".venv-gpu"


def test_a_mirror_named_for_pip_is_the_ordinary_index(root, built):
    fake = Fake(root, reach=("https://mirror.test/simple",), environ={"PIP_INDEX_URL": "https://mirror.test/simple"})
    fake.ensure("report --device cpu")
    assert built[0]["patience"] == ()


def test_no_index_at_all_makes_pip_impatient(root, built):
    Fake(root).ensure("report --device cpu")
    assert "--retries" in built[0]["patience"]


def test_the_plan_is_said_with_its_reason_before_the_work(root, built):
    fake = Fake(root, H100, reach=("https://",))
    fake.ensure("report")
    plan = "\n".join(fake.said)
    assert "torch===" in plan and "NVIDIA H100 80GB HBM3" in plan and "580.159.04" in plan and ".venv-gpu" in plan


def test_a_second_run_builds_nothing(root, built):
    fake = Fake(root)
    fake.ensure("report --device cpu")
    assert fake.ensure("report --device cpu") == ".venv-cpu" and len(built) == 1


def test_the_cuda_device_without_a_gpu_fails_before_any_installation(root, built):
    fake = Fake(root)
    with pytest.raises(GpuNotUsable, match="no_driver_or_no_gpu"):
        fake.ensure("report")
    assert not built and not fake.gone and list(root.glob(".venv*")) == []


def test_check_without_a_gpu_leaves_the_answer_to_the_judge(root, built):
    assert Fake(root).ensure("check") is None and not built


def test_a_finished_gpu_environment_is_entered_without_asking_the_driver(root):
    finish(root / ".venv-gpu", "gpu", "torch", env.digests(root, (enter.PINS,)), root)
    fake = Fake(root)
    fake.world = dataclasses.replace(fake.world, look=lambda: pytest.fail("the driver was asked"))
    assert fake.ensure("report") == ".venv-gpu"


def test_the_test_environment_serves_a_rehearsal_too(root, built):
    fake = Fake(root)
    assert fake.ensure("test") == ".venv-test"
    assert fake.ensure("report --device cpu") == ".venv-test" and len(built) == 1


def test_tests_are_never_run_in_an_environment_for_reports(root, built):
    fake = Fake(root)
    fake.ensure("report --device cpu")
    assert fake.ensure("test") == ".venv-test" and len(built) == 2


def test_a_rehearsal_environment_never_serves_the_gpu(root, built):
    Fake(root).ensure("report --device cpu")
    assert Fake(root, H100).ensure("report") == ".venv-gpu"


def test_jupyterlab_takes_the_gpu_where_there_is_one(root, built):
    assert Fake(root, H100).ensure("lab") == ".venv-gpu"


def test_jupyterlab_without_a_gpu_takes_the_cpu(root, built):
    assert Fake(root).ensure("lab") == ".venv-cpu"


def test_a_hand_made_environment_that_lacks_something_is_not_touched(root, built):
    (root / ".venv-cpu" / "lib").mkdir(parents=True)
    with pytest.raises(UsageError, match="was not made by the kit"):
        Fake(root).ensure("report --device cpu")
    assert not built


def test_no_endless_loop_where_the_environment_is_whole_but_does_not_work(root, built, monkeypatch):
    fake = Fake(root)
    fake.ensure("report --device cpu")
    monkeypatch.setattr(sys, "prefix", str(root / ".venv-cpu"))
    with pytest.raises(SetupFailed, match="run the same command again"):
        fake.ensure("report --device cpu")
    assert not (root / ".venv-cpu" / env.DONE).exists()


def test_a_folder_that_cannot_be_written_is_a_usage_error(root, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(root / ".venv-cpu.lock"))

    monkeypatch.setattr(env, "locked", refuse)
    with pytest.raises(UsageError, match="cannot be written"):
        Fake(root).ensure("report --device cpu")


def test_an_error_in_set_up_is_one_json_object_where_json_was_asked_for(monkeypatch, capsys):
    def refuse(argv):
        raise GpuNotUsable("no_driver_or_no_gpu: none.", expected="one.", todo="rehearse.")

    monkeypatch.setattr(enter, "ensure", refuse)
    assert enter.start(["report", "--json"]) == 1
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (answer["verdict"], answer["diagnosis"]) == ("FAIL", "no_driver_or_no_gpu")
    assert "To do: rehearse." in err and "Traceback" not in err


def test_ctrl_c_during_set_up_ends_with_130(monkeypatch, capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(enter, "ensure", interrupt)
    assert enter.start(["report"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX replaces the process")
def test_going_on_replaces_the_process_and_keeps_arguments_and_exit_code(tmp_path):
    """A stand-in Python prints what it was started with."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" "$PYTHONPATH"\nexit 3\n')
    python.chmod(0o755)
    program = (
        "import sys; from pathlib import Path; from kit.setup.enter import go_on\n"
        "go_on(Path(sys.argv[1]), ['report', 'a b'])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(python)], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (f"-m kit report a b {ROOT}", 3)

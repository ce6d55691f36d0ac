"""How an environment folder is built, recognised, repaired and left alone. Nothing is installed here."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kit.errors import SetupFailed, UsageError
from kit.setup import environment as env
from kit.setup.plan import Need, TorchPick

NEEDS = (Need("torch", "torch"), Need("papermill", "papermill"))
CPU = TorchPick("cpu", "torch==2.13.0", "https://index.test/cpu", "the CPU was asked for.")
GPU = TorchPick("gpu", "torch==2.11.0+cu128", "https://index.test/cu128", "a GPU.", (12, 8))
ROOT = Path(__file__).resolve().parents[2]


class Pip:
    """Stands in for `python -m venv` and pip: makes the folder and the modules, and notes each command.

    fail: part of a command that ends with exit code 1. cuda: what torch/version.py then says.
    """

    def __init__(self, environment, fail=None, cuda=None):
        self.environment, self.fail, self.cuda, self.commands = environment, fail, cuda, []

    def __call__(self, argv):
        line = " ".join(argv)
        self.commands.append(line)
        if self.fail and self.fail in line:
            return 1
        if "venv" in argv:
            self.environment.python.parent.mkdir(parents=True)
            self.environment.python.write_text("")
            name = "Lib/site-packages" if os.name == "nt" else "lib/python3.12/site-packages"
            (self.environment.folder / name).mkdir(parents=True)
        elif "-r" in argv:
            self.module("papermill")
        elif any(word.startswith("torch=") for word in argv):
            version = self.module("torch") / "version.py"
            version.write_text(f"cuda: Optional[str] = {self.cuda!r}\nhip: Optional[str] = None\n")
        return 0

    def module(self, name):
        folder = self.environment.site_packages / name
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text("")
        return folder


@pytest.fixture
def root(tmp_path):
    (tmp_path / "requirements-gpu.txt").write_text("torch>=2.9\npapermill==2.7.0\n")
    return tmp_path


def files(root):
    return env.digests(root, ("requirements-gpu.txt",))


def build(root, pick=CPU, *, pip=None, index_url=None, **more):
    environment = env.Environment(root / f".venv-{pick.kind}")
    pip = pip or Pip(environment)
    env.build(
        environment,
        pick,
        NEEDS,
        files=files(root),
        root=root,
        index_url=index_url,
        run=pip,
        say=lambda _: None,
        **more,
    )
    return environment, pip


def serves(environment, root, kinds=("cpu",)):
    return environment.serves(NEEDS, kinds=kinds, files=files(root), root=root)


def test_a_built_environment_serves(root):
    environment, pip = build(root)
    assert serves(environment, root)
    assert ["venv" in pip.commands[0], "torch==2.13.0" in pip.commands[1], "-r" in pip.commands[2]] == [True] * 3


def test_torch_comes_from_its_index_and_the_rest_from_the_ordinary_one(root):
    _, pip = build(root, index_url="https://index.test/cpu")
    assert "--index-url https://index.test/cpu" in pip.commands[1]
    assert "--index-url" not in pip.commands[2]


def test_pip_is_made_impatient_where_no_index_answers(root):
    _, pip = build(root, patience=("--retries", "0"))
    assert all("--retries 0" in command for command in pip.commands[1:])


@pytest.mark.parametrize("fail", ["-m venv", "torch==", " -r "])
def test_a_failed_step_leaves_no_environment_that_serves(root, fail):
    environment = env.Environment(root / ".venv-cpu")
    with pytest.raises(SetupFailed):
        build(root, pip=Pip(environment, fail=fail))
    assert not serves(environment, root) and not environment.is_foreign


def test_the_next_run_builds_an_interrupted_folder_anew(root):
    environment = env.Environment(root / ".venv-cpu")
    with pytest.raises(SetupFailed):
        build(root, pip=Pip(environment, fail=" -r "))
    half = environment.site_packages / "half_written"
    half.mkdir()
    build(root)
    assert serves(environment, root) and not half.exists()


def test_changed_pins_are_brought_up_to_date_in_place(root):
    environment, _ = build(root)
    (root / "requirements-gpu.txt").write_text("torch>=2.9\npapermill==2.8.0\n")
    assert not serves(environment, root)
    _, pip = build(root)
    assert serves(environment, root) and len(pip.commands) == 1 and "-r" in pip.commands[0]


def test_an_update_in_place_that_fails_is_not_taken_for_whole(root):
    environment, _ = build(root)
    (root / "requirements-gpu.txt").write_text("papermill==2.8.0\n")
    with pytest.raises(SetupFailed):
        build(root, pip=Pip(environment, fail=" -r "))
    assert not serves(environment, root)


def test_line_ends_do_not_count_as_changed_pins(root):
    before = files(root)
    text = (root / "requirements-gpu.txt").read_bytes()
    (root / "requirements-gpu.txt").write_bytes(text.replace(b"\n", b"\r\n"))
    assert files(root) == before


def test_an_environment_that_lost_a_package_is_built_anew(root):
    environment, _ = build(root)
    (environment.site_packages / "papermill" / "__init__.py").unlink()
    assert not serves(environment, root)
    _, pip = build(root)
    assert serves(environment, root) and "venv" in pip.commands[0]


def test_an_environment_without_its_python_does_not_serve(root):
    environment, _ = build(root)
    environment.python.unlink()
    assert not serves(environment, root)


def test_a_moved_checkout_gets_a_new_environment(root, tmp_path):
    environment, _ = build(root)
    assert not environment.serves(NEEDS, kinds=("cpu",), files=files(root), root=tmp_path / "elsewhere")


def test_a_cpu_environment_never_serves_the_gpu(root):
    environment, _ = build(root)
    assert not serves(environment, root, kinds=("gpu",))


def test_a_cpu_build_in_place_of_a_cuda_build_is_an_error(root):
    environment = env.Environment(root / ".venv-gpu")
    with pytest.raises(SetupFailed, match="no CUDA"):
        build(root, GPU, pip=Pip(environment, cuda=None))
    assert not serves(environment, root, kinds=("gpu", "cpu"))


def test_another_cuda_than_the_one_planned_is_an_error(root):
    environment = env.Environment(root / ".venv-gpu")
    with pytest.raises(SetupFailed, match="CUDA 13.0"):
        build(root, GPU, pip=Pip(environment, cuda="13.0"))


def test_the_planned_cuda_build_is_accepted(root):
    environment = env.Environment(root / ".venv-gpu")
    build(root, GPU, pip=Pip(environment, cuda="12.8"))
    assert serves(environment, root, kinds=("gpu",))


def test_a_hand_made_environment_is_used_if_it_serves(root):
    environment, _ = build(root)
    (environment.folder / env.DONE).unlink()
    assert environment.is_foreign and serves(environment, root)
    (environment.site_packages / "papermill" / "__init__.py").unlink()
    assert environment.is_foreign and not serves(environment, root)


def test_an_empty_folder_is_nobodys(root):
    """A set-up that was killed between making the folder and marking it."""
    (root / ".venv-cpu").mkdir()
    environment = env.Environment(root / ".venv-cpu")
    assert not environment.is_foreign
    build(root)
    assert serves(environment, root)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kind": "cpu"}', '{"kind": 1, "torch": 2, "requirements": 3, "root": 4}']
)
def test_a_marker_that_cannot_be_read_is_no_marker(root, text):
    environment, _ = build(root)
    (environment.folder / env.DONE).write_text(text)
    assert environment.recipe() is None and not serves(environment, root)


def test_notebooks_of_the_environment_find_the_kit(root):
    environment, _ = build(root)
    assert (environment.site_packages / "kit-checkout.pth").read_text().strip() == str(root)


def test_without_requirement_files_the_error_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="checkout"):
        env.digests(tmp_path, ("requirements-gpu.txt",))


def test_a_python_without_ensurepip_gets_pip_from_a_checked_wheel(root, monkeypatch):
    monkeypatch.setattr(env.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(env, "fetch_pip", lambda: b"a wheel")
    _, pip = build(root)
    assert "--without-pip" in pip.commands[0]
    assert pip.commands[1].endswith(".whl") and "--no-index" in pip.commands[1]


def test_programs_print_to_stderr_and_do_not_see_pythonpath(monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    show = "import os; print(os.environ.get('PYTHONPATH'), os.environ['PIP_FIND_LINKS'])"
    assert env.run_program([sys.executable, "-c", show]) == 0
    assert capfd.readouterr() == ("", "None /wheels\n")
    assert env.run_program([sys.executable, "-c", "raise SystemExit(7)"]) == 7


def test_a_second_set_up_waits_for_the_first(tmp_path):
    lock, said, order = tmp_path / "x.lock", [], []

    def second():
        with env.locked(lock, said.append):
            order.append("second")

    with env.locked(lock, said.append):
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            time.sleep(0.01)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"] and "another set-up" in said[0]


@pytest.mark.skipif(os.name != "posix", reason="descriptors are not inherited this way on Windows")
def test_a_pip_that_outlives_its_killed_set_up_still_holds_the_lock(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from kit.setup import environment as env\n"
        "with env.locked(Path(sys.argv[1]), print) as lock:\n"
        "    env.run_program([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(1)'], keep_open=lock)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "x.lock")], cwd=ROOT, stderr=subprocess.PIPE
    )
    holder.stderr.readline()
    holder.kill()
    holder.wait()
    holder.stderr.close()
    said = []
    with env.locked(tmp_path / "x.lock", said.append):
        assert said, "the lock was free although the child still ran"

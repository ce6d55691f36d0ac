"""From a bare Python to an environment, through the command line. A stand-in for uv makes folders and modules; the
network, this machine and going on are replaced, all else is what a person gets."""

import dataclasses
import functools
import http.server
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kit import process
from kit.cli import main, parser
from kit.errors import SetupFailed
from kit.gpu.facts import Driver, Gpu
from kit.setup import enter, plan
from kit.setup import environment as env

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = plan.Machine(Driver(nvml_error="nvidia-smi is not in PATH"), False, "linux_x86_64", (3, 12))
H100 = dataclasses.replace(
    NO_GPU, driver=Driver("580.159.04", gpus=(Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0)),)), has_hardware=True
)
RTX_5090 = dataclasses.replace(
    NO_GPU, driver=Driver("576.88", gpus=(Gpu(0, "NVIDIA GeForce RTX 5090", (12, 0)),)), has_hardware=True
)
# What the build for that card and driver must carry.
CUDA = ".".join(map(str, plan.pick_torch("cuda", H100).cuda))
WENT_ON = 77
UV = Path(__file__).with_name("stand_in_for_uv.py").read_text(encoding="utf-8")


class Place:
    """A checkout of the kit with a uv of its own."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.went, self.machine, self.reach = folder, [], NO_GPU, ("https://",)
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.bin / "uv").write_text(f"#!{sys.executable}\n{UV}")
        (self.bin / "uv").chmod(stat.S_IRWXU)
        (folder / "requirements-gpu.txt").write_text("torch>=2.9\n")
        (folder / "requirements-test.txt").write_text("pytest==9.2.0\n")
        self.set()
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setattr(process, "ROOT", folder)
        monkeypatch.setattr(process, "SHARE", folder)
        monkeypatch.setattr(process, "IS_CHECKOUT", True)
        monkeypatch.setattr(enter, "look", lambda: self.machine)
        monkeypatch.setattr(enter, "missing", lambda needs: tuple(need.distribution for need in needs))
        monkeypatch.setattr(enter, "go_on", self.go_on)
        monkeypatch.setattr(env, "can_reach", lambda url: url.startswith(tuple(self.reach)))

    def set(self, fail="", cuda=None, pip=False):
        modules = sorted({need.module for needs, _ in plan.NEEDS.values() for need in needs} | {"pynvml"})
        (self.bin / "settings").write_text(json.dumps({"fail": fail, "cuda": cuda, "pip": pip, "modules": modules}))

    def go_on(self, python, argv):
        self.went.append((python.parents[1].name, list(argv)))
        raise SystemExit(WENT_ON)

    @property
    def calls(self):
        """What uv was asked, and the names in its environment."""
        file = self.bin / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def place(tmp_path, monkeypatch):
    if os.name == "nt":
        pytest.skip("the stand-in for uv is a script with a #! line")
    return Place(tmp_path, monkeypatch)


def test_a_rehearsal_gets_the_cpu_build_in_three_lines_with_their_times(place, capsys):
    assert main(["report", "--device", "cpu", "--json"]) == WENT_ON
    assert place.went == [(".venv-cpu", ["report", "--device", "cpu", "--json"])]
    venv, torch, rest = (" ".join(words) for words, _ in place.calls)
    assert venv.startswith("venv --seed") and "-r" in rest
    assert "--index-url https://download.pytorch.org/whl/cpu torch==2.13.0" in torch
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith(("kit: [", "kit: ready"))]
    assert out == "" and len(lines) == 4 and all(" s" in line for line in lines)
    assert "about 0.5 GB" in err and "the CPU was asked for by name" in err
    assert "uv pip install" not in err, "its words are in the log"
    assert len((place.folder / ".venv-cpu.log").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("machine", "reach", "cuda", "asked"),
    [
        (NO_GPU, ("https://pypi.org",), None, "torch==2.13.0"),
        (RTX_5090, ("https://pypi.org",), "12.8", "torch==2.15.0+cu128"),
        (RTX_5090, ("https://",), "12.8", "--index-url https://download.pytorch.org/whl/cu128 torch=="),
    ],
)
def test_an_index_that_cannot_be_reached_is_said_and_the_same_build_asked_elsewhere(
    place, capsys, machine, reach, cuda, asked
):
    place.machine, place.reach = machine, reach
    place.set(cuda=cuda)
    assert main(["lab"]) == WENT_ON
    call = " ".join(place.calls[1][0])
    assert asked.split("==")[0] in call and (asked.rpartition("+")[2] in call)
    assert ("cannot be reached" in capsys.readouterr().err) == (reach != ("https://",)) == ("--index-url" not in call)


@pytest.mark.parametrize(
    ("line", "machine", "folder"),
    [
        ("report", H100, ".venv-gpu"), ("lab", H100, ".venv-gpu"), ("lab", NO_GPU, ".venv-cpu"),
        ("test", NO_GPU, ".venv-test"), ("bench --device cpu", H100, ".venv-cpu"), ("check", H100, ".venv-gpu"),
    ],
)  # fmt: skip
def test_each_command_goes_on_in_the_environment_of_its_kind(place, line, machine, folder):
    place.machine = machine
    place.set(cuda=CUDA if folder == ".venv-gpu" else None)
    main(line.split())
    assert place.went[0][0] == folder


def test_the_test_environment_serves_a_rehearsal_and_not_the_other_way_round(place):
    main(["report", "--device", "cpu"])
    main(["test"])
    (place.folder / ".venv-cpu" / "bin" / "python").unlink()
    main(["report", "--device", "cpu"])
    assert [name for name, _ in place.went] == [".venv-cpu", ".venv-test", ".venv-test"]


def edit_stamp(folder, **changes):
    stamp = json.loads((folder / env.STAMP).read_text())
    (folder / env.STAMP).write_text(json.dumps({**stamp, **changes}))


DAMAGE = {
    "it was made for another torch": lambda folder: edit_stamp(folder, torch="torch==2.7.0+cu118"),
    "it was made for another Python (3.9": lambda folder: edit_stamp(folder, Python="3.9"),
    "it was made for another kit": lambda folder: edit_stamp(folder, kit="/elsewhere"),
    "it was made for another pins": lambda folder: (folder.parent / "requirements-gpu.txt").write_text("torch>=2.10\n"),
    "its set-up was interrupted": lambda folder: (folder / env.STAMP).write_text("{}"),
    "it lacks papermill": lambda folder: (folder / "lib/python3.12/site-packages/papermill/__init__.py").unlink(),
    "it lacks Python itself": lambda folder: (folder / "bin/python").unlink(),
}


def test_an_environment_that_does_not_fit_is_built_anew_with_the_reason(place, capsys):
    place.machine = H100
    place.set(cuda=CUDA)
    main(["report"])
    for built, why in enumerate(DAMAGE, start=1):
        leftover = place.folder / ".venv-gpu" / "lib" / "leftover"
        leftover.touch()
        # git may have turned the line ends into Windows ones.
        pins = place.folder / "requirements-gpu.txt"
        pins.write_bytes(pins.read_bytes().strip() + b"\r\n")
        assert main(["train"]) == WENT_ON and len(place.calls) == 3 * built, "the healthy twin is entered as it is"
        capsys.readouterr()
        DAMAGE[why](place.folder / ".venv-gpu")
        assert main(["report"]) == WENT_ON
        assert why in capsys.readouterr().err and len(place.calls) == 3 * built + 3 and not leftover.exists()


@pytest.mark.parametrize("fail", ["venv", "torch=", " -r "])
def test_a_stage_that_fails_names_its_log_and_leaves_nothing_that_serves(place, capsys, fail):
    place.set(fail=fail)
    assert main(["report", "--device", "cpu", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "No solution found" in err and ".venv-cpu.log" in err and "Traceback" not in err
    assert json.loads(out)["verdict"] == "FAIL"
    place.set()
    assert main(["report", "--device", "cpu"]) == WENT_ON
    assert "its set-up was interrupted" in capsys.readouterr().err


def test_where_uv_cannot_pip_with_its_own_settings_tries(place, capsys):
    place.set(fail=" -r ", pip=True)
    assert main(["report", "--device", "cpu"]) == WENT_ON
    assert "uv could not (exit code 1), pip tries" in capsys.readouterr().err
    assert place.calls[-1][0][0] == "pip-of"


@pytest.mark.parametrize(("cuda", "words"), [(None, "no CUDA"), ("12.6", "CUDA 12.6")])
def test_another_build_than_the_one_planned_is_an_error(place, capsys, cuda, words):
    place.machine = H100
    place.set(cuda=cuda)
    assert main(["report"]) == 1 and words in capsys.readouterr().err and not place.went


def test_what_would_redirect_an_install_is_dropped_and_named(place, monkeypatch, capsys):
    for name in ("PIP_TARGET", "PIP_DRY_RUN", "PIP_CONSTRAINT", "UV_TARGET", "PIP_USER"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.test/simple")
    main(["report", "--device", "cpu"])
    said = capsys.readouterr().err
    for _, names in place.calls:
        assert not {"PIP_TARGET", "PIP_DRY_RUN", "PIP_CONSTRAINT", "UV_TARGET", "PYTHONPATH"} & set(names)
        assert {"PIP_INDEX_URL", "UV_DEFAULT_INDEX"} <= set(names)
    assert "left out for this: PIP_CONSTRAINT, PIP_DRY_RUN, PIP_TARGET, PIP_USER, UV_TARGET" in said


def test_the_cuda_device_without_a_gpu_fails_before_any_installation(place, capsys):
    assert main(["report", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["diagnosis"]) == ("FAIL", "no_driver_or_no_gpu")
    assert not place.calls and "rehearses" in answer["error"]["todo"]


def test_check_without_a_gpu_leaves_the_answer_to_the_judge(place, monkeypatch):
    monkeypatch.setattr("kit.cli.run_check", lambda args: pytest.fail("the table holds the function"))
    args = parser()[0].parse_args(["check"])
    assert enter.ensure(["check"], args) is None and not place.calls


def test_a_hand_made_environment_is_used_where_it_serves_and_never_touched(place, capsys):
    main(["report", "--device", "cpu"])
    (place.folder / ".venv-cpu" / env.STAMP).unlink()
    assert main(["report", "--device", "cpu"]) == WENT_ON and len(place.calls) == 3
    (place.folder / ".venv-cpu/lib/python3.12/site-packages/papermill/__init__.py").unlink()
    assert main(["report", "--device", "cpu"]) == 2
    assert "was not made by the kit, and it lacks papermill" in capsys.readouterr().err and len(place.calls) == 3


def test_no_endless_loop_where_the_environment_is_whole_but_does_not_work(place, monkeypatch, capsys):
    main(["report", "--device", "cpu"])
    monkeypatch.setattr(sys, "prefix", str(place.folder / ".venv-cpu"))
    assert main(["report", "--device", "cpu"]) == 1
    assert "looks whole" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_the_persons_affair(place, capsys):
    (place.folder / ".venv-cpu.lock").mkdir()
    assert main(["report", "--device", "cpu"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_notebooks_find_a_checkout_by_a_path_and_an_installed_kit_as_a_copy(place, monkeypatch):
    main(["report", "--device", "cpu"])
    site = place.folder / ".venv-cpu/lib/python3.12/site-packages"
    assert (site / "kit-checkout.pth").read_text().strip() == str(place.folder)
    monkeypatch.setattr(process, "IS_CHECKOUT", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.folder / "cache"))
    (place.folder / "kit").mkdir()
    (place.folder / "kit" / "__init__.py").touch()
    main(["report", "--device", "cpu"])
    site = place.folder / "cache/kit/environments/.venv-cpu/lib/python3.12/site-packages"
    assert (site / "kit" / "__init__.py").exists() and not (site / "kit-checkout.pth").exists()


@pytest.mark.slow
def test_without_uv_pip_does_it_quietly_and_its_failure_names_the_log(place, monkeypatch, capsys):
    (place.bin / "uv").unlink()
    place.reach = ()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place.folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert main(["report", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "with uv on PATH" in said and "[1/3]" in said and "[2/3] torch==2.13.0 failed" in said
    assert "No matching distribution" in said and len(said.splitlines()) < 25


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


# Asking whether an index can be reached: right, and never for long.


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server on this machine that has a page for torch below /good and none elsewhere."""
    (tmp_path / "good" / "torch").mkdir(parents=True)
    (tmp_path / "good" / "torch" / "index.html").write_text("wheel")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_only_an_index_with_a_page_for_torch_is_reachable(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{taken.getsockname()[1]}"
        asked = (f"{server}/good", f"{server}/good/", f"{server}/blocked", refused, "nonsense")
        assert [env.can_reach(url) for url in asked] == [True, True, False, False, False]


def test_an_index_that_stays_silent_costs_its_limit_and_no_more(monkeypatch):
    released = threading.Event()

    def silent(url, limit_s):
        released.wait(30)
        raise OSError("timed out")

    monkeypatch.setattr(env, "_open", silent)
    began = time.monotonic()
    try:
        assert not env.can_reach("https://index.test", limit_s=0.1)
    finally:
        released.set()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("path", ["good/torch/", "absent"])
def test_pip_that_is_another_file_or_none_says_what_to_install(server, path, monkeypatch):
    monkeypatch.setattr(env, "PIP_URL", f"{server}/{path}")
    with pytest.raises(SetupFailed, match="python3-venv"):
        env.fetch_pip()

"""The kit where it is installed: a wheel in a clean environment, used in an empty folder."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_package_is_in_the_wheel():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "kit").rglob("__init__.py")}
    assert set(SETUPTOOLS["packages"]) == found | {"kit.share"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `kit` of a clean environment that has the wheel, and sees this one's other packages."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    for name in ("kit", "notebooks", "params", "tests/machines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements-gpu.txt", "requirements-test.txt"):
        shutil.copy(ROOT / name, source)
    program = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    place = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    install = [sys.executable, "-m", "pip", "--python", str(place / "python"), "install", "--no-deps", "--no-index"]
    wheel = next(folder.glob("*.whl"))
    subprocess.run([*install, "--no-warn-script-location", str(wheel)], check=True, capture_output=True)
    (own,) = (folder / "env").rglob("site-packages")
    # As plain paths: the .pth files there, one of which may point to this checkout, do not count.
    (own / "others.pth").write_text("\n".join(site.getsitepackages()), encoding="locale")
    shutil.rmtree(source)
    empty = folder / "empty"
    empty.mkdir()
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    def kit(*argv, text=None):
        command = [str(place / "python"), "-m", "kit", *argv]
        return subprocess.run(
            command,
            cwd=empty,
            env={**environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "-1"},
            input=text,
            capture_output=True,
            text=True,
        )

    kit.empty = empty
    return kit


@pytest.mark.slow
def test_an_installed_kit_checks_explains_and_finds_its_files(installed):
    version = installed("--version")
    assert re.fullmatch(r"kit [\d.]+\n", version.stdout), "no commit is claimed outside a checkout"
    done = installed("check", "--device", "cpu")
    assert done.returncode == 0 and "REHEARSAL" in done.stdout, done.stderr
    done = installed("explain", text="CUDA error: no kernel image is available for execution on the device")
    assert "arch_missing_from_build" in done.stdout, done.stderr
    assert installed("test").returncode == 2
    assert list(installed.empty.iterdir()) == []
    (installed.empty / "short.yaml").write_text("device: cpu\nbatchsize: 4\n", encoding="utf-8")
    done = installed("report", "--params", "short.yaml")
    assert (done.returncode, done.stdout) == (2, "") and "did you mean 'batch_size'" in done.stderr


@pytest.mark.slow
def test_an_installed_kit_trains_and_reports_below_the_folder_it_is_run_in(installed):
    """The report of a machine whose GPU is hidden ends after its first notebook, which also judges recorded machines:
    what is installed elsewhere is found by it, its kernel and its verifier, and the rest is as in a checkout."""
    line = "train --device cpu --model tiny --steps 2 --batch-size 1 --seq-len 8 --json"
    done = installed(*line.split())
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (0, "REHEARSAL"), done.stderr
    done = installed("report", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["verdict"]) == (1, "FAIL"), done.stderr
    bundle = installed.empty / answer["bundle"]
    assert answer["bundle"].startswith("reports") and (bundle / "index.html").is_file()
    assert "rtx5090_windows_before" in (bundle / "notebooks" / "01_env_check.ipynb").read_text(encoding="utf-8")
    done = installed("verify", str(bundle), "--json")
    assert (done.returncode, json.loads(done.stdout)["integrity"]) == (1, "PASS"), done.stdout

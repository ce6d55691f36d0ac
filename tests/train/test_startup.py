"""Start-up: compiled modules are kept where Python can keep them, and only if it must be somewhere else."""

import os
import subprocess
import sys
from pathlib import Path

from kit.train.train import start_device

ROOT = Path(__file__).resolve().parents[2]
ASK = "import sys; from kit.process import keep_bytecode; print(keep_bytecode()); print(sys.pycache_prefix)"


def ask(tmp_path, **environment):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("", encoding="utf-8")
    base = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        cwd=tmp_path,
        env={**base, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(tmp_path / "cache"), **environment},
    )
    return done.stdout.splitlines()


def test_python_keeps_its_modules_itself_where_it_can(tmp_path):
    assert ask(tmp_path) == ["None", "None"]


def test_modules_go_to_the_cache_where_python_was_told_to_keep_none(tmp_path):
    reason, prefix = ask(tmp_path, PYTHONDONTWRITEBYTECODE="1")
    assert "PYTHONDONTWRITEBYTECODE" in reason
    assert Path(prefix) == tmp_path / "cache" / "kit" / "bytecode"


def test_a_prefix_that_somebody_chose_stays(tmp_path):
    reason, prefix = ask(tmp_path, PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX=str(tmp_path / "mine"))
    assert (reason, Path(prefix)) == ("None", tmp_path / "mine")


def test_the_cpu_needs_no_start():
    assert start_device("cpu", "float32") is None

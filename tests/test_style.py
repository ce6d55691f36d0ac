"""One formatter, one linter and one type checker are in force; pyproject.toml says what is excepted, and why."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*argv):
    if importlib.util.find_spec(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed (requirements-test.txt)")
    done = subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("argv", [("ruff", "format", "--check", "--no-cache"), ("ruff", "check", "--no-cache")])
def test_the_code_is_as_the_formatter_and_the_linter_want_it(argv):
    code, text = run(*argv, ".")
    assert code == 0, text


@pytest.mark.slow
def test_the_types_of_the_package_hold(tmp_path):
    code, text = run("mypy", f"--cache-dir={tmp_path}", "kit")
    assert code == 0, text

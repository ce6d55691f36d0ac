"""`kit test` runs pytest and nbval as one run, and its exit code tells the truth."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.cli import counts, run_tests
from kit.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = {
    "cells": [
        {"cell_type": "code", "execution_count": 1, "id": "a", "metadata": {"tags": ["nbval-check-output"]},
         "source": "import kit\n1 + 1",
         "outputs": [{"output_type": "execute_result", "execution_count": 1, "metadata": {},
                      "data": {"text/plain": "2"}}]},
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4, "nbformat_minor": 5,
}  # fmt: skip


@pytest.fixture
def project(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("def test_one():\n    assert True\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def kit_test(project, *arguments):
    """In a process of its own, through the command line, as a person runs it."""
    program = (
        "import sys; from pathlib import Path; import kit.cli, kit.cli\n"
        f"kit.cli.run_tests.__kwdefaults__['root'] = Path({str(project)!r})\n"
        f"sys.exit(kit.cli.main(['test', *{list(arguments)!r}]))"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ)


def test_a_green_run_ends_with_pytests_closing_line(project):
    done = kit_test(project)
    assert done.returncode == 0 and "1 passed" in done.stdout.splitlines()[-1]


def test_a_red_test_is_exit_code_1(project):
    (project / "tests" / "test_two.py").write_text("def test_two():\n    assert False\n")
    assert kit_test(project).returncode == 1


def test_json_is_one_object_and_the_screen_goes_to_stderr(project):
    done = kit_test(project, "--json")
    answer = json.loads(done.stdout)
    assert (answer["verdict"], answer["passed"], answer["failures"]) == ("PASS", 1, 0)
    assert "1 passed" in done.stderr


def test_a_selection_without_any_test_is_no_success(project):
    assert kit_test(project, "tests", "-k", "nothing_like_it").returncode == 3


@pytest.mark.slow
@pytest.mark.parametrize(("output", "code"), [("2", 0), ("3", 1)])
def test_notebooks_are_compared_with_what_they_hold(project, output, code):
    notebook = json.loads(json.dumps(NOTEBOOK))
    notebook["cells"][0]["outputs"][0]["data"]["text/plain"] = output
    (project / "notebooks" / "01_x.ipynb").write_text(json.dumps(notebook))
    done = kit_test(project)
    assert done.returncode == code, done.stdout


def test_without_a_checkout_there_is_nothing_to_run(tmp_path):
    with pytest.raises(UsageError, match="has no tests"):
        run_tests(root=tmp_path)


def test_counts_of_a_run_that_wrote_nothing_are_absent(tmp_path):
    assert counts(tmp_path / "none.xml") == {}

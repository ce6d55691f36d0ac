"""Running a notebook: parameters are checked first, and only what the cells recorded counts."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from kit.errors import UsageError
from kit.evidence import execute as execute_module
from kit.evidence.execute import check_parameters, execute, read_parameters

PARAMETERS = """steps: int = 14  # optimizer steps
lr: float = 2e-5  # learning rate = constant
name: str = "gpt2"
sizes: list = [1, 4]
is_fast: bool = False"""


def write_notebook(folder, *sources, name="sample"):
    cells = [new_markdown_cell("# Sample")]
    for index, source in enumerate(sources):
        cell = new_code_cell(source)
        if index == 0:
            cell.metadata["tags"] = ["parameters"]
        cells.append(cell)
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def run(folder, *sources, **parameters):
    return execute(write_notebook(folder, *sources), folder / "executed.ipynb", parameters=parameters)


def known(folder):
    return read_parameters(write_notebook(folder, PARAMETERS))


def test_parameters_are_read_with_type_and_default(tmp_path):
    found = known(tmp_path)
    assert list(found) == ["steps", "lr", "name", "sizes", "is_fast"]
    assert (found["steps"], found["lr"]) == (("int", 14), ("float", 2e-5))


def test_a_misspelt_parameter_is_refused_with_the_right_name(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        check_parameters({"step": 3}, known(tmp_path), where="test")


@pytest.mark.parametrize(
    "given",
    [{"steps": "14"}, {"steps": 1.5}, {"steps": True}, {"name": 4}, {"sizes": ["1"]}, {"sizes": 4}, {"lr": "x"}],
)
def test_a_wrong_type_is_refused(tmp_path, given):
    with pytest.raises(UsageError, match="Expected"):
        check_parameters(given, known(tmp_path), where="test")


def test_all_problems_are_named_at_once(tmp_path):
    with pytest.raises(UsageError) as caught:
        check_parameters({"step": 3, "name": 4}, known(tmp_path), where="test")
    assert "'step'" in str(caught.value) and "name=4" in str(caught.value)


def test_an_int_serves_where_a_float_is_asked_for(tmp_path):
    assert check_parameters({"lr": 1}, known(tmp_path), where="test") == {"lr": 1.0}


def test_a_parameter_name_cannot_carry_code(tmp_path):
    with pytest.raises(UsageError):
        check_parameters({"steps = 1; import os; x": 1}, known(tmp_path), where="test")


def test_a_notebook_that_ran_to_its_end_is_ok(tmp_path, monkeypatch):
    monkeypatch.setattr(execute_module, "_TELL_S", 0.1)
    seen = []
    path = write_notebook(tmp_path, "a: int = 1", "import time; time.sleep(0.5); b = a + 1", "print(b)")
    done = execute(path, tmp_path / "executed.ipynb", parameters={"a": 4}, progress=lambda *at: seen.append(at))
    assert (done.state, done.error, done.failing_cell) == ("ok", None, None)
    assert done.cells == done.cells_run == 4
    assert "5" in str(nbformat.read(tmp_path / "executed.ipynb", 4).cells[-1].outputs)
    assert {name for name, *_ in seen} == {"sample"} and len(seen) > len({cell for _, cell, *_ in seen})


def test_a_failing_cell_is_named_with_its_error(tmp_path):
    done = run(tmp_path, "a: int = 1", "raise ValueError('no such thing')", "print('never')")
    assert done.state == "failed"
    assert "ValueError: no such thing" in done.error
    assert done.cells_run < done.cells
    assert done.failing_cell is not None


@pytest.mark.parametrize("source", ["import sys; sys.exit(0)", "import os; os._exit(0)"])
def test_a_notebook_that_leaves_early_has_failed(tmp_path, source):
    assert run(tmp_path, "a: int = 1", source, "print('never')").state == "failed"


def test_a_kernel_that_is_killed_is_a_failed_notebook(tmp_path):
    done = run(tmp_path, "a: int = 1", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "print('never')")
    assert done.state == "failed"
    assert done.error

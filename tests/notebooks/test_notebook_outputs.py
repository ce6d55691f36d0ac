"""nbval as a regression test that can fail: what is compared is stored. `tests/faces/test_cli.py` plants a change."""

import configparser
import json
import re

import pytest

from kit.cli import SANITIZE, pytest_options
from kit.process import ROOT
from kit.report import NOTEBOOKS

TAG = "nbval-check-output"
PATHS = {name: ROOT / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS}


def read(name):
    return json.loads(PATHS[name].read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def compared_cells(notebook):
    return [cell for cell in code_cells(notebook) if TAG in cell["metadata"].get("tags", ())]


def stored_text(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"])


def rules():
    config = configparser.RawConfigParser()
    config.read(ROOT / SANITIZE, encoding="utf-8")
    return {name: re.compile(config[name]["regex"]) for name in config.sections()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_has_a_compared_cell_with_a_stored_output(name):
    cells = compared_cells(read(name))
    assert cells
    # nbval skips a cell without an execution count and finds an empty reference equal to nothing.
    assert all(cell["execution_count"] and stored_text(cell).strip() for cell in cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_compared_output_is_plain_printed_text(name):
    for cell in compared_cells(read(name)):
        assert {(output["output_type"], output["name"]) for output in cell["outputs"]} == {("stream", "stdout")}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_other_cell_stores_an_output(name):
    for cell in code_cells(read(name)):
        if TAG not in cell["metadata"].get("tags", ()):
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_each_sanitising_rule_is_used_and_has_its_reason():
    everything = "\n".join(stored_text(cell) for name in NOTEBOOKS for cell in compared_cells(read(name)))
    lines = (ROOT / SANITIZE).read_text(encoding="utf-8").splitlines()
    assert rules()
    for name, pattern in rules().items():
        assert pattern.search(everything), name
        assert lines[lines.index(f"[{name}]") - 1].startswith("# "), name


def test_no_sanitising_rule_touches_a_loss_a_verdict_or_a_shape():
    kept = "\n".join(stored_text(cell) for name in NOTEBOOKS for cell in compared_cells(read(name)))
    for pattern in rules().values():
        kept = pattern.sub("", kept)
    for word in ("REHEARSAL", "loss 10.80 → 10.34", "10.803", "10.343", "arch_missing_from_build", "4 points, "):
        assert word in kept


def test_the_test_command_compares_with_the_rules():
    options = pytest_options([])
    assert {"--nbval-lax", "--nbval-current-env", f"--nbval-sanitize-with={SANITIZE}"} <= set(options)
    assert any(option.startswith("--nbval-cell-timeout=") for option in options)

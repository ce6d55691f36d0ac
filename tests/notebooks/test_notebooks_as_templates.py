"""The notebooks as files: thin, without outputs, with parameters that papermill sees."""

import ast
import json

import papermill
import pytest
import yaml

from kit.evidence.execute import read_parameters
from kit.process import ROOT
from kit.report import NOTEBOOKS, load_params, split_parameters

PATHS = [ROOT / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS]


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_every_notebook_is_in_the_report():
    assert sorted((ROOT / "notebooks").glob("*.ipynb")) == PATHS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_papermill_shows_every_parameter_with_its_help(path):
    ours, theirs = read_parameters(path), papermill.inspect_notebook(str(path))
    assert set(theirs) == set(ours)
    assert all(theirs[name]["help"] and theirs[name]["inferred_type_name"] for name in ours)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_thin_defines_nothing_and_imports_the_public_face_alone(path):
    kinds = [cell["cell_type"][0] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert "ccc" not in "".join(kinds), "never more than two code cells in a row"
    sources = ["".join(cell["source"]) for cell in cells(path, "code")]
    # The first are the parameters.
    assert max(len(source.splitlines()) for source in sources[1:]) <= 12
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        assert not isinstance(node, (ast.FunctionDef, ast.ClassDef))
        assert not isinstance(node, ast.Import) or {name.name for name in node.names} == {"kit"}
        assert not isinstance(node, ast.ImportFrom) or node.module == "kit"


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_parameter_file_fits_the_notebooks(path):
    given = load_params(path)
    device = given.pop("device")
    assert device in ("cuda", "cpu")
    split = split_parameters(given)
    assert set().union(*split.values()) == set(given)


def test_a_relative_dataset_is_found_beside_its_parameter_file(tmp_path):
    """The notebooks run in a folder of their own, where it was looked for once."""
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "p.yaml").write_text("dataset: mine.jsonl\n")
    assert load_params(tmp_path / "p.yaml") == {"dataset": str(tmp_path / "mine.jsonl")}


def test_the_smoke_is_the_milestone_run():
    given = load_params(ROOT / "params" / "gpu_smoke.yaml")
    text = "device: cuda, model: gpt2, dtype: float32, batch_size: 4, seq_len: 64, steps: 14, lr: 2.0e-5, weight_decay: 0.01"
    expected = {**yaml.safe_load(f"{{{text}}}"), "dataset": "dev-reasoning-v2"}
    assert {name: given[name] for name in expected} == expected


def test_the_defaults_of_the_training_notebook_are_those_of_the_config():
    import dataclasses

    from kit.train.config import TrainConfig

    notebook = read_parameters(PATHS[1])
    for field in dataclasses.fields(TrainConfig):
        if field.name not in ("device", "model", "engine"):
            assert notebook[field.name][1] == field.default, field.name


@pytest.mark.parametrize(("name", "is_known"), [("devcie", False), ("batch_size", True)])
def test_papermill_cannot_pass_a_parameter_that_no_notebook_has(tmp_path, name, is_known):
    given = {"device": "cpu", name: 4}
    try:
        papermill.execute_notebook(str(PATHS[0]), str(tmp_path / "x.ipynb"), given, progress_bar=False)
        assert is_known
    except papermill.PapermillExecutionError as error:
        assert not is_known and "unknown parameter 'devcie', did you mean 'device'?" in str(error)


def test_notebooks_are_stored_with_unix_line_ends_and_stable_ids():
    for path in PATHS:
        assert b"\r\n" not in path.read_bytes()
        assert all(cell.get("id") for kind in ("code", "markdown") for cell in cells(path, kind))

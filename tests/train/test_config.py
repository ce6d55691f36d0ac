"""A parameter is written once: what a plan refuses, and that the notebooks say of it what its field says."""

import ast
import dataclasses
import io
import json
import tokenize
from pathlib import Path

import pytest

from kit.errors import UsageError
from kit.sweep.table import SweepPlan
from kit.train.config import TrainConfig, parameters, weight_tensors

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.mark.parametrize(
    ("kind", "given", "found", "expected", "todo"),
    [
        (TrainConfig, {"steps": 14.5}, "steps=14.5", "steps as a whole number", "correct"),
        (TrainConfig, {"batch_size": True}, "batch_size=True", "a whole number", "correct"),
        (TrainConfig, {"steps": "14"}, "steps='14'", "a whole number", "did you mean steps=14?"),
        (TrainConfig, {"lr": "2e-5"}, "lr='2e-5'", "lr as a number", "did you mean lr=2e-05?"),
        (TrainConfig, {"dtype": None}, "dtype=None", "dtype as text", "correct"),
        (TrainConfig, {"model": "gtp2"}, "model='gtp2'", "one of gpt2, tiny", "did you mean 'gpt2'?"),
        (TrainConfig, {"device": "gpu"}, "device='gpu'", "one of cuda, cpu", "correct"),
        (TrainConfig, {"lr": float("nan")}, "lr=nan", "a number", "correct"),
        (TrainConfig, {"lr": 10}, "lr=10", "0 <= lr < 10", "correct"),
        (TrainConfig, {"max_grad_norm": 0.0}, "max_grad_norm=0.0", "<= max_grad_norm", "correct"),
        (TrainConfig, {"steps": 0, "seq_len": 1}, "seq_len=1; steps=0", "2 <= seq_len; 1 <= steps", "correct"),
        (TrainConfig, {"seq_len": 1025}, "seq_len=1025", "seq_len <= 1024", "correct"),
        (TrainConfig, {"model": "tiny", "weights": "pretrained"}, "weights=pretrained", "model=gpt2", "correct"),
        (SweepPlan, {"batch_sizes": (4, "8")}, "batch_sizes=(4, '8')", "tuple[int, ...]", "correct"),
        (SweepPlan, {"dtypes": ("float23",)}, "dtypes=('float23',)", "one of float32", "did you mean 'float32'?"),
        (SweepPlan, {"more_points": ((4, 16),)}, "more_points=((4, 16),)", "more_points as", "correct"),
        (SweepPlan, {"seq_lens": ()}, "seq_lens=[]", "at least one", "correct"),
    ],
)
def test_a_wrong_value_is_refused_in_three_parts(kind, given, found, expected, todo):
    with pytest.raises(UsageError) as caught:
        kind(**given)
    assert caught.value.found.startswith(found) and expected in caught.value.expected
    assert caught.value.todo.startswith(todo)


def test_a_whole_number_is_a_number_too():
    assert TrainConfig(lr=1, max_grad_norm=2).lr == 1


def cell(notebook):
    """name: (type, default, comment) of the parameters cell."""
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ()))
    words = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.removeprefix("# ") for token in words if token.type == tokenize.COMMENT}
    return {
        line.target.id: (ast.unparse(line.annotation), ast.literal_eval(line.value), comments[line.lineno])
        for line in ast.parse(source).body
    }


@pytest.mark.parametrize(("notebook", "kind"), [("02_smoke_training", TrainConfig), ("03_throughput", SweepPlan)])
def test_a_notebook_says_of_a_parameter_what_its_field_says(notebook, kind):
    given = cell(notebook)
    # What a notebook decides by the machine it is on.
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name in given and f.name not in ("device", "model")}
    assert len(fields) >= 8
    for name, field in fields.items():
        typed, default, comment = given[name]
        assert typed == field.type.__name__.replace("tuple", "list"), name
        assert comment == field.metadata["help"], name
        assert kind is SweepPlan or default == field.default, name


def test_every_parameter_has_a_meaning():
    for kind in (TrainConfig, SweepPlan):
        assert all(field.metadata["help"] for field in dataclasses.fields(kind))


def test_the_weights_of_gpt2_are_counted_by_its_shape():
    shape = TrainConfig().shape
    assert (parameters(shape), weight_tensors(shape)) == (124_439_808, 148)

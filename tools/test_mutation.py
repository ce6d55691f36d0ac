"""The tool that changes the judges really changes them."""

import ast

import pytest

from tools import mutation

PROGRAM = """\
LIMITS = {1: 2, 3: 4}
FLAG = True

def f(x: float | None):
    '''x < 1'''
    if x < 1 and not x:
        yield x
    x += 1
    return x * 2 if x else 'a'
"""


@pytest.mark.parametrize("module", mutation.JUDGES)
def test_every_mutant_is_another_program(module):
    text = (mutation.ROOT / module).read_text(encoding="utf-8")
    for place in mutation.places(text)[::40]:
        mutant = mutation.mutant(text, place)
        assert mutant != ast.unparse(ast.parse(text))
        compile(mutant or "", module, "exec")
    assert all((mutation.ROOT / test).exists() for test in mutation.TESTS[module])


@pytest.mark.parametrize(
    "changed",
    ["x <= 1", "x < 1 or", "and x:", "if not (x < 1", "x < 2", "pass\n    x += 1", "x += 2", "return None", "x / 2 if x",
     "'a' if x else x * 2", "FLAG = False", "LIMITS = {1: 2}", "{1: 2, 3: 8}"],
)  # fmt: skip
def test_each_kind_of_place_is_changed(changed):
    made = [made for place in mutation.places(PROGRAM) if (made := mutation.mutant(PROGRAM, place))]
    assert any(changed in mutant for mutant in made)
    assert all('x < 1"""' in mutant for mutant in made)

"""The tool that changes the judges really changes them, and counts what it is told."""

import ast

import pytest

from . import mutation


@pytest.mark.parametrize("module", mutation.JUDGES)
def test_every_mutant_is_another_program_and_no_two_are_alike(module):
    text = (mutation.ROOT / module).read_text(encoding="utf-8")
    mutants = list(mutation.others(text))
    assert len({ast.unparse(ast.parse(text)), *mutants}) == len(mutants) + 1 > 1
    for mutant in mutants:
        compile(mutant, module, "exec")


def test_each_kind_of_statement_is_changed():
    program = "A = {1: 2}\ndef f(x):\n    if x:\n        yield x\n    x += 1\n    return x\n"
    mutants = list(mutation.others(program))
    for changed in (
        "if not x:",
        "if x:\n        pass",
        "A = {2: 2}",
        "A = {1: 4}",
        "A = {}",
        "return None",
        "pass\n    return x",
    ):
        assert sum(changed in mutant for mutant in mutants) == 1, changed
    assert len(mutants) == 7


def test_a_change_of_texts_alone_is_told_from_one_of_logic():
    functions = [ast.parse(f"def f(a):\n    return {body}").body[0] for body in ("'x' + a", "'X' + a", "'x' - a")]
    first, words, logic = (mutation._plain(function, is_wordless=True) for function in functions)
    assert first == words != logic


def test_the_table_counts_what_was_killed_and_nothing_else():
    name = mutation.JUDGES[0]
    found = [(name, "logic", state, "") for state in ("killed", "survived", "killed", "unchecked")]
    assert mutation.table(found).splitlines()[-1] == "| all | 4 | 2 (50.0%) | 0 | – | 0 | – |"


def test_every_file_that_is_copied_is_there():
    for name in (*mutation.JUDGES, *mutation.TESTS, *mutation.DATA):
        assert (mutation.ROOT / name).exists(), name

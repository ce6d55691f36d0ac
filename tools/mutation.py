"""How many changed judges the tests notice, in a copy of the tree.

    python -m tools.mutation FOLDER [--only judge_training] [--sample 150]

A mutant is a judge that differs in one place: a comparison or a boolean operator turned round, a `not` taken out, a
conditional expression with its branches exchanged, arithmetic replaced, a number off by one, a flag flipped, an `if` the
other way round, a statement taken out, a `return` of nothing, a limit of the module doubled, an entry of a table taken
out. Texts are left alone. It is killed if a test that needs no torch fails; what survives is printed.

The tests run in a fork of this process, which has pytest loaded, so there is no Windows here.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import itertools
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JUDGES = (
    "kit/train/judge_training.py",
    "kit/gpu/judge_machine.py",
    "kit/gpu/diagnose.py",
    "kit/evidence/conclude.py",
)
# What tries each of them without torch, the quickest first.
TRAINING = ("tests/sabotage/test_recorded.py", "tests/train/test_golden_judges.py", "tests/train/test_limits.py")
MACHINE = tuple(f"tests/gpu/{name}.py" for name in ("test_golden_questions", "test_card_witnesses", "test_machines"))
CONTROL = ("tests/train/test_negative_control.py",)
TESTS = {
    "kit/train/judge_training.py": TRAINING,
    "kit/gpu/judge_machine.py": MACHINE,
    "kit/gpu/diagnose.py": (*MACHINE, "tests/gpu/test_explain.py"),
    "kit/evidence/conclude.py": (*TRAINING, *CONTROL),
}
# Left out: those that start a child with torch, and one that reads the source of the rules.
LEFT_OUT = "not child and not every_cause"

_TURNED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip

Change = Callable[[ast.Module, ast.AST], bool]


Place = tuple[int, Change]


def places(text: str) -> list[Place]:
    """Where a mutant can differ: the number of a node, and what is done to it."""
    found = []
    for index, node in enumerate(ast.walk(ast.parse(text))):
        is_text = isinstance(node, ast.Constant) and not isinstance(node.value, (int, float))
        found += [(index, change) for kind, change in CHANGES if isinstance(node, kind) and not is_text]
    return found


def mutant(text: str, place: Place) -> str | None:
    """The module changed in one place; None where that changes nothing."""
    index, change = place
    module = ast.parse(text)
    is_changed = change(module, list(ast.walk(module))[index])
    return ast.unparse(ast.fix_missing_locations(module)) if is_changed else None


def _compared(module: ast.Module, node: ast.AST) -> bool:
    node.ops[0] = _TURNED[type(node.ops[0])]()
    return True


def _operated(module: ast.Module, node: ast.AST) -> bool:
    other = _TURNED.get(type(node.op))
    node.op = other() if other else node.op
    return other is not None


def _affirmed(module: ast.Module, node: ast.AST) -> bool:
    return isinstance(node.op, ast.Not) and _replaced(module, node, node.operand)


def _exchanged(module: ast.Module, node: ast.AST) -> bool:
    node.body, node.orelse = node.orelse, node.body
    return True


def _counted(module: ast.Module, node: ast.AST) -> bool:
    """A flag the other way round, a number off by one."""
    if type(node.value) is bool:
        node.value = not node.value
    elif type(node.value) in (int, float):
        node.value += 1
    else:
        return False
    return True


def _doubled(module: ast.Module, node: ast.AST) -> bool:
    is_limit = any(node in ast.walk(value) for value in _constants(module))
    if not is_limit or type(node.value) not in (int, float):
        return False
    node.value = node.value * 2 or 2
    return True


def _turned(module: ast.Module, node: ast.AST) -> bool:
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return True


def _removed(module: ast.Module, node: ast.AST) -> bool:
    """A yield, a call or an addition becomes nothing; a docstring stays."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return not is_text and _replaced(module, node, ast.Pass())


def _returned(module: ast.Module, node: ast.AST) -> bool:
    if node.value is None or getattr(node.value, "value", "") is None:
        return False
    node.value = ast.Constant(None)
    return True


def _shortened(module: ast.Module, node: ast.AST) -> bool:
    """An entry of a table is taken out: the element of a tuple, or a pair of a mapping."""
    if node not in list(_constants(module)):
        return False
    entries = node.keys if isinstance(node, ast.Dict) else node.elts
    if len(entries) > 1:
        del entries[-1]
        if isinstance(node, ast.Dict):
            del node.values[-1]
    return len(entries) > 0


def _constants(module: ast.Module) -> Iterator[ast.expr]:
    for statement in module.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            yield statement.value


def _replaced(module: ast.Module, node: ast.AST, by: ast.AST) -> bool:
    for parent in ast.walk(module):
        for name, value in ast.iter_fields(parent):
            if value is node:
                setattr(parent, name, by)
                return True
            if isinstance(value, list) and any(item is node for item in value):
                value[next(i for i, item in enumerate(value) if item is node)] = by
                return True
    return False


CHANGES: tuple[tuple[type | tuple[type, ...], Change], ...] = (
    (ast.Compare, _compared),
    ((ast.BoolOp, ast.BinOp), _operated),
    (ast.UnaryOp, _affirmed),
    (ast.IfExp, _exchanged),
    (ast.Constant, _counted),
    (ast.Constant, _doubled),
    (ast.If, _turned),
    ((ast.AugAssign, ast.Expr), _removed),
    (ast.Return, _returned),
    ((ast.Tuple, ast.Dict), _shortened),
)


# --- trying -------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    for name in ("kit", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    settings = '[tool.pytest.ini_options]\ntestpaths = ["tests"]\nmarkers = ["gpu: none", "slow: none"]\n'
    (folder / "pyproject.toml").write_text(settings, encoding="utf-8", newline="\n")


def is_killed(folder: Path, tests: tuple[str, ...]) -> bool:
    """Whether a test fails with the tree as it stands, in a fork of this process."""
    import pytest

    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True
        code = 1
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", LEFT_OUT, *tests])
        os._exit(int(code))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def tried(folder: Path, module: str, sample: int | None) -> Iterator[tuple[str, bool]]:
    """Each mutant, and whether it was killed. sample: so many of them, always the same ones."""
    path, text = folder / module, (ROOT / module).read_text(encoding="utf-8")
    if is_killed(folder, TESTS[module]):
        raise SystemExit(f"the tests of {module} fail without any mutant: {' '.join(TESTS[module])}")
    drawn = random.Random(0).sample(places(text), len(places(text)))
    made = (changed for place in drawn if (changed := mutant(text, place)))
    try:
        for changed in itertools.islice(made, sample):
            path.write_text(changed, encoding="utf-8", newline="\n")
            yield changed, is_killed(folder, TESTS[module])
    finally:
        path.write_text(text, encoding="utf-8", newline="\n")


def difference(text: str, mutant: str) -> str:
    pairs = zip(ast.unparse(ast.parse(text)).splitlines(), mutant.splitlines())
    return next((f"{a.strip()}\n    {b.strip()}" for a, b in pairs if a != b), "the last lines")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder for the copy of the tree")
    parser.add_argument("--only", default="", metavar="TEXT", help="judges whose path holds it")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="so many mutants of each judge, drawn with a fixed seed"
    )
    args = parser.parse_args()
    if not args.folder.exists():
        prepare(args.folder)
    print("| judge | mutants | killed |\n| --- | --- | --- |")
    for module in (name for name in JUDGES if args.only in name):
        text, states = (ROOT / module).read_text(encoding="utf-8"), []
        for text_of_mutant, killed in tried(args.folder.resolve(), module, args.sample):
            states.append(killed)
            if not killed:
                print(f"survived: {module}\n    {difference(text, text_of_mutant)}", file=sys.stderr, flush=True)
        print(f"| {module} | {len(states)} | {sum(states)} ({sum(states) / len(states):.1%}) |", flush=True)


if __name__ == "__main__":
    main()

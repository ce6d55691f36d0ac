"""How many changed judges the tests notice, in a copy of the tree: mutmut's mutants, and those that it does not make.

    python -m pip install mutmut==3.8.1 pytest
    python -m tests.benchmarks.mutation FOLDER      # a new folder; it is kept, and gone on with where it was stopped

mutmut changes the inside of functions: comparisons, arithmetic, boolean operators, constants,
arguments, assignments, conditional expressions, texts. A mutant that differs in texts alone is
counted apart: `'THE GPU'` for `'the GPU'` is no wrong verdict. What mutmut leaves alone is done
here: an `if` the other way round, a statement taken out, a `return` of nothing, a limit of the
module doubled, an entry of a table taken out.

Only tests that need no torch run, some seconds for all. It needs fork, so no Windows.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
JUDGES = (
    *(f"kit/train/{name}.py" for name in ("verdict", "native", "driver_view", "arithmetic", "speed", "checks")),
    *(f"kit/gpu/{name}.py" for name in ("verdict", "witnesses", "diagnose", "ask_environment", "ask_native", "checks")),
    "kit/evidence/conclude.py",
)
# In the order in which a mutant of the second kind meets them.
TESTS = (
    *(f"tests/gpu/{name}.py" for name in (
        "machine_sample", "test_golden_questions", "test_questions", "test_card_witnesses", "test_judge", "test_machines",
        "test_remedy",
    )),
    *(f"tests/train/{name}.py" for name in (
        "verdict_sample", "test_golden_judges", "test_limits", "test_training_verdict", "test_native_checks",
        "test_speed_checks", "test_driver_view_checks", "test_arithmetic_checks", "test_negative_control",
    )),
)  # fmt: skip
DATA = ("tests/train/golden", "tests/gpu/golden", "tests/data", "tests/machines")
# Left out: those that start a child with torch, and one that reads the source of the rules.
_SETTINGS = f"""[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = ["-k", "not child and not every_cause", "-x", "-p", "no:cacheprovider"]
[tool.mutmut]
source_paths = ["kit"]
only_mutate = {json.dumps(JUDGES)}
"""
_TIMEOUT_S = 60


def prepare(folder: Path) -> None:
    for name in ("kit", *TESTS, *DATA):
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    (folder / "pyproject.toml").write_text(_SETTINGS, encoding="utf-8", newline="\n")


# --- mutmut -------------------------------------------------------------------------


def by_mutmut(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(module, 'logic' or 'texts', state, changed lines) of every mutant."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1"]
    subprocess.run(command, cwd=folder, stdout=sys.stderr, check=False)
    states = {0: "survived", 33: "untested", None: "unchecked"}
    for meta in sorted(folder.glob("mutants/kit/**/*.py.meta")):
        codes = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        tree = ast.parse(meta.with_suffix("").read_text(encoding="utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for key, code in codes.items():
            name = key.rpartition(".")[2]
            mutant, original = functions[name], functions[name.rpartition("__mutmut_")[0] + "__mutmut_orig"]
            kind = "texts" if _plain(mutant, is_wordless=True) == _plain(original, is_wordless=True) else "logic"
            module = meta.relative_to(folder / "mutants").as_posix().removesuffix(".meta")
            yield module, kind, states.get(code, "killed"), _changed(_plain(original), _plain(mutant))


class _Wordless(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node


def _plain(function: ast.FunctionDef, *, is_wordless: bool = False) -> str:
    plain = ast.parse(ast.unparse(function)).body[0]
    plain.name = "f"
    return ast.unparse(_Wordless().visit(plain) if is_wordless else plain)


def _changed(before: str, after: str) -> str:
    pairs = zip(before.splitlines(), after.splitlines())
    return next((f"{a.strip()}\n    {b.strip()}" for a, b in pairs if a != b), "the last lines")


# --- what mutmut does not change ----------------------------------------------------


def others(text: str) -> Iterator[str]:
    """Copies of a module that differ in one statement or one constant of the module."""
    tree = ast.parse(text)
    constants = {id(node) for value in _constants(tree) for node in ast.walk(value)}
    for index, node in enumerate(ast.walk(tree)):
        changes = [change for kind, change in _CHANGES if isinstance(node, kind)]
        changes += [_doubled, _shortened] if id(node) in constants else []
        for change in changes:
            mutant = ast.parse(text)
            if change(list(ast.walk(mutant))[index], mutant):
                yield ast.unparse(ast.fix_missing_locations(mutant))


def _turned(node: ast.AST, module: ast.Module) -> bool:
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return True


def _removed(node: ast.AST, module: ast.Module) -> bool:
    """A yield, a call or an addition becomes nothing."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return False
    for parent in ast.walk(module):
        for body in (getattr(parent, name, None) for name in ("body", "orelse")):
            if isinstance(body, list) and node in body:
                body[body.index(node)] = ast.Pass()
                return True
    return False


def _returned(node: ast.AST, module: ast.Module) -> bool:
    if node.value is None or getattr(node.value, "value", "") is None:
        return False
    node.value = ast.Constant(None)
    return True


def _constants(module: ast.Module) -> Iterator[ast.expr]:
    """What the module's own assignments give; of `frozenset(…)` its argument."""
    for statement in module.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and "__all__" not in ast.unparse(statement):
            value = statement.value
            yield value.args[0] if isinstance(value, ast.Call) else value


def _doubled(node: ast.AST, module: ast.Module) -> bool:
    if not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
        return False
    node.value = node.value * 2 or 1
    return True


def _shortened(node: ast.AST, module: ast.Module) -> bool:
    """An entry of a table: the element of a tuple or set, or the key of a mapping, is taken out."""
    for value in _constants(module):
        entries = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
        if node in entries:
            index = entries.index(node)
            del entries[index]
            if isinstance(value, ast.Dict):
                del value.values[index]
            return True
    return False


_CHANGES = ((ast.If, _turned), (ast.AugAssign | ast.Expr, _removed), (ast.Return, _returned))


def by_hand(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """The same rows as `by_mutmut` gives, with the kind 'statement'."""
    tests = ["-m", "pytest", "-q", *(name for name in TESTS if "/test_" in name)]
    # Bytecode is kept of the unchanged files only: two mutants of one length in one second would look the same to it.
    command = [sys.executable, "-B", *tests]
    if _state([sys.executable, *tests], folder) == "killed":
        raise SystemExit("the tests fail without any mutant: see python -m pytest in the folder")
    for module in JUDGES:
        path = folder / module
        original = path.read_text(encoding="utf-8")
        plain = ast.unparse(ast.parse(original))
        try:
            for text in others(original):
                path.write_text(text, encoding="utf-8", newline="\n")
                yield module, "statement", _state(command, folder), _changed(plain, text)
        finally:
            path.write_text(original, encoding="utf-8", newline="\n")


def _state(command: list[str], folder: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    try:
        done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return "killed"
    return "killed" if done.returncode else "survived"


# --- the table ----------------------------------------------------------------------

_KINDS = ("logic", "statement", "texts")


def table(found: list[tuple[str, str, str, str]]) -> str:
    lines = ["| module | " + " | ".join(f"{kind} | killed" for kind in _KINDS) + " |", "| --- |" + 6 * " --- |"]
    for module in (*JUDGES, "all"):
        cells = []
        for wanted in _KINDS:
            states = [state for name, kind, state, _ in found if kind == wanted and module in (name, "all")]
            killed = states.count("killed")
            cells += [str(len(states)), f"{killed} ({killed / len(states):.1%})" if states else "–"]
        lines.append(f"| {module} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    if not (folder / "pyproject.toml").exists():
        prepare(folder)
    found = [*by_mutmut(folder), *by_hand(folder)]
    for module, kind, state, change in found:
        if state != "killed":
            print(f"{state} ({kind}) {module}\n    {change}")
    print(table(found))


if __name__ == "__main__":
    main()

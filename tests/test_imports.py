"""Who imports whom, and that importing the kit does nothing."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "numpy", "pandas", "matplotlib", "transformers", "papermill", "subprocess", "ctypes", "logging"}


def contracts():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return {found["id"]: found for found in tomllib.loads(text)["tool"]["importlinter"]["contracts"]}


def modules():
    for path in sorted((ROOT / "kit").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        # An __init__ that only holds a docstring needs no class.
        if path.name != "__init__.py" or len(ast.parse(path.read_text(encoding="utf-8")).body) > 1:
            yield name


def logic():
    return contracts()["logic"]["source_modules"]


def lint(folder):
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, encoding="utf-8")
    return done.returncode, done.stdout + done.stderr


def run_bare(program):
    """In a Python that sees the standard library and the kit, and no installed package."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", program], capture_output=True, text=True, encoding="utf-8"
    )


def test_import_contracts_are_kept():
    code, text = lint(ROOT)
    assert code == 0, text


def test_an_import_of_torch_in_a_logic_module_breaks_the_contract(tmp_path):
    shutil.copytree(ROOT / "kit", tmp_path / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "kit" / "units.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef late():\n    import torch\n")
    code, text = lint(tmp_path)
    assert code == 1 and "BROKEN" in text and "kit.units" in text


def test_every_module_is_either_logic_or_edge():
    """A new module is added to `source_modules` (logic) or `forbidden_modules` (edge) in pyproject.toml."""
    edges = [name for name in contracts()["logic"]["forbidden_modules"] if name.startswith("kit.")]
    listed, found = [*logic(), *edges], set(modules()) - {"kit"}
    assert (sorted(found - set(listed)), sorted(set(listed) - found)) == ([], []), "not listed; listed but gone"
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", ["kit", "kit.__main__"])
def test_importing_the_kit_is_inert(name):
    done = run_bare(f"import {name}; print(sorted({HEAVY!r} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_all_logic_runs_on_a_bare_python():
    imports = "\n".join(f"import {name}" for name in logic())
    done = run_bare(f"{imports}\nprint('ok')")
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.parametrize(
    "line", ["--version", "--help", "verify no-such", "compare no-such a", "check --facts no-such", "explain {}"]
)
def test_commands_without_packages_run_on_a_bare_python(line, tmp_path):
    """Their answer here is a message or a usage error, never a missing module."""
    (tmp_path / "paste.txt").write_text("AssertionError: Torch not compiled with CUDA enabled\n")
    argv = line.format(tmp_path / "paste.txt").split()
    done = run_bare(f"from kit.__main__ import main; sys.exit(main({argv!r}))")
    assert done.returncode in (0, 1, 2, 4), done.stderr
    assert "Traceback" not in done.stderr and "No module named" not in done.stderr


def test_explain_loads_neither_another_flow_nor_what_is_slow_to_load(tmp_path):
    """Half of its half second was once the options of other commands."""
    (tmp_path / "paste.txt").write_text("AssertionError: Torch not compiled with CUDA enabled\n")
    slow = {"kit.train", "kit.sweep", "kit.setup", "importlib.metadata", "statistics", "subprocess", "ctypes"}
    run = f"from kit.__main__ import main; main(['explain', {str(tmp_path / 'paste.txt')!r}])"
    assert run_bare(f"{run}; print('loaded', sorted({slow!r} & set(sys.modules)))").stdout.endswith("loaded []\n")


def test_an_unknown_name_of_the_kit_is_an_attribute_error():
    done = run_bare("import kit\ntry:\n    kit.nothing\nexcept AttributeError as error:\n    print(error)")
    assert "nothing" in done.stdout and not done.stderr


@pytest.mark.parametrize("name", ["__init__", "__main__"])
def test_an_old_python_can_read_the_first_two_files(name):
    """Python 3.4's grammar: no f-string, no annotation of variables, no walrus, no match."""
    source = (ROOT / "kit" / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 4))
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr))]


def test_an_old_python_is_told_so_with_exit_code_2():
    done = run_bare("sys.version_info = (3, 8, 10)\nfrom kit.__main__ import main\nprint(main(['report']))")
    assert done.stdout == "2\n"
    assert "3.8.10" in done.stderr and "Python 3.11 or newer" in done.stderr and "To do:" in done.stderr


def test_the_plan_of_the_house_names_every_room():
    """The tree in CONTRIBUTING.md, folder by folder."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.split("## The house")[1].split("```")[1].split("notebooks/ params/")[0]
    words = set(re.findall(r"[\w]+", tree))
    assert [name for name in modules() if name.split(".")[-1] not in words and "extras" not in name] == []
    rooms = {path.stem for path in (ROOT / "kit").rglob("*.py")}
    listed = {
        word for line in tree.splitlines() if line.startswith("    ") for word in line.strip().split("   ")[0].split()
    }
    assert {word for word in listed if not word.endswith("/")} <= rooms

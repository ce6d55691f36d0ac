"""Laws that hold for all of the kit at once; each would have caught a fault that was really there."""

import ast
import collections
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Optional parameters and fields that nobody in kit/, notebooks/ or tools/ fills, and why they stay.
EXCEPTIONS = {
    "the world, handed in, so that a test needs no other machine": {
        "open_bundle(secrets=)", "salt(folder=)", "Group(environment=)", "has_nvidia_hardware(root=)",
        "is_container(root=)", "is_wsl(root=)", "platform_name(machine=)", "platform_name(system=)", "read_driver(find=)",
        "read_driver(root=)", "read_driver(run=)", "can_reach(limit_s=)",
    },
    "read from a data file": {
        "Reading(rows=)",
    },
    "called by another package": {
        "execute_managed_notebook(cwd=)", "causal_attention(dropout=)", "causal_attention(scaling=)",
    },
    "for those who call it": {
        "scale(hang_s=)", "train_ranks(hang_s=)",
        "Comparison.metric",
    },
}  # fmt: skip
# Filled by other people's scripts.
FOR_USERS = ("gpu_guard", "GpuGuardCallback", "Guard")


def sources():
    """The syntax tree of every file of the product, notebooks included."""
    for folder in ("kit", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.name.startswith("test_"):
                yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        yield path.name, ast.parse(code)


def called(node):
    """The last word of what a call calls: 'train' of `kit.train(…)`."""
    return getattr(node.func, "attr", None) or getattr(node.func, "id", None) or ""


def fillings(trees):
    """What calls pass: by the callee's name the keywords, the most positional arguments, and every keyword at all."""
    keywords, positions, anywhere, spread = collections.defaultdict(set), collections.Counter(), set(), set()
    for _, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = called(node)
                for keyword in node.keywords:
                    keywords[name].add(keyword.arg)
                    anywhere.add(keyword.arg)
                positions[name] = max(positions[name], len(node.args))
                if any(isinstance(one, ast.Starred) for one in node.args) or None in keywords[name]:
                    spread.add(name)
            elif isinstance(node, ast.Dict):
                anywhere |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
    return keywords, positions, anywhere, spread


def optional_parameters(tree):
    """(function, parameter, place) of each parameter with a default; place: None where it is keyword-only."""
    for node in ast.walk(tree):
        for function in getattr(node, "body", ()) if isinstance(node, (ast.Module, ast.ClassDef)) else ():
            if not isinstance(function, ast.FunctionDef):
                continue
            is_method = isinstance(node, ast.ClassDef)
            name = node.name if function.name == "__init__" else function.name
            arguments = [*function.args.posonlyargs, *function.args.args]
            first = len(arguments) - len(function.args.defaults)
            for place, argument in enumerate(arguments[first:], start=first):
                yield name, argument.arg, place - is_method
            for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults):
                if default is not None:
                    yield name, argument.arg, None


def optional_fields(tree):
    for node in ast.walk(tree):
        is_data = isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        fields = [line for line in node.body if isinstance(line, ast.AnnAssign)] if is_data else []
        for place, field in enumerate(fields):
            # What `parameter` describes is filled by options, files and notebooks, all made of the fields.
            if field.value is not None and not ast.unparse(field.value).startswith("parameter("):
                yield node.name, field.target.id, place


def unfilled():
    trees = list(sources())
    keywords, positions, anywhere, spread = fillings(trees)
    for path, tree in trees:
        if not path.startswith("kit/"):
            continue
        for name, argument, place in optional_parameters(tree):
            is_filled = argument in keywords[name] or name in spread or (place is not None and positions[name] > place)
            # An error is raised under the names of its children.
            is_filled = is_filled or (name == "KitError" and argument in anywhere)
            if not is_filled and name not in FOR_USERS:
                yield f"{name}({argument}=)"
        for name, field, place in optional_fields(tree):
            if field not in anywhere and positions[name] <= place and name not in spread:
                yield f"{name}.{field}"


def test_no_optional_parameter_or_field_is_filled_by_tests_alone():
    """A door that only tests use is green in tests and shut in the product: so GPU UUIDs once went into a public report."""
    allowed = set().union(*EXCEPTIONS.values())
    assert {line for line in unfilled() if not line.startswith("_")} - allowed == set()


# --- every rule ---------------------------------------------------------------------


# Where all is well these make no check; the healthy machines of the golden lines have none.
SPEAK_ONLY_RED = {"environment.other_gpus", "integrity.privacy"}


def tried():
    """The rules that a row of the sabotage table or a golden line turned red, and those that one called good."""
    from sabotage import rows_environment, rows_gpu, rows_recorded, rows_timing, rows_training, table  # noqa: F401

    red = {row.at for row in table.ROWS if row.must is not table.PASS}
    good = {row.at for row in table.ROWS if not row.twin_at or row.at in row.twin_at}
    for path in (ROOT / "tests").rglob("golden/*.txt"):
        text = path.read_text(encoding="utf-8")
        red |= set(re.findall(r"^(?:FAIL|INCONCLUSIVE|INVALID) ([a-z]+\.\w+)", text, re.MULTILINE))
        good |= set(re.findall(r"^(?:PASS|REHEARSAL) ([a-z]+\.\w+)", text, re.MULTILINE))
    return red, good


@pytest.mark.parametrize("flow", ["the machine", "a training run", "the negative control"])
def test_every_rule_was_seen_red_beside_a_healthy_twin(flow):
    from kit.cli import every_rule

    red, good = tried()
    ids = {rule.id for rule in every_rule()[flow]}
    assert ids - red == set(), "no row turns it red"
    assert ids - good - SPEAK_ONLY_RED == set(), "no healthy twin"


@pytest.mark.parametrize("flow", ["a report", "a bundle"])
def test_every_rule_over_a_bundle_has_a_row_of_its_own_room(flow):
    """Their rows are edits of a whole bundle (`tests/evidence`), by the id or its last word."""
    from kit.cli import every_rule

    said = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path.parent.name in ("evidence", "sweep", "faces", "sabotage"):
            constants = (
                node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)
            )
            said |= {node.value for node in constants if isinstance(node.value, str)}
    ids = {rule.id for rule in every_rule()[flow]}
    files = {"integrity.privacy": "raw/privacy.json"}
    silent = {id for id in ids if not {id, id.partition(".")[2], files.get(id)} & said}
    assert silent == set()


# --- what is committed --------------------------------------------------------------

UUID = re.compile(rb"(?:GPU-|MIG-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
MAC = re.compile(rb"(?<![0-9a-f:.-])(?:[0-9a-f]{2}:){5}[0-9a-f]{2}(?![0-9a-f:])", re.IGNORECASE)
HOME = re.compile(rb"/(?:home|Users)/(?!\*|<|\[|\.\.\.)[^/\s\"'\\<>*]{2,}|[A-Za-z]:\\{1,4}Users\\{1,4}[^\\\s\"'<>]{2,}")


@pytest.mark.parametrize("kind", [UUID, MAC, HOME], ids=["uuid", "mac", "home"])
def test_no_committed_report_names_a_machine_or_a_person(kind):
    told = []
    for path in sorted((ROOT / "reports").rglob("*")):
        if path.is_file() and path.suffix not in (".png",):
            told += [f"{path.relative_to(ROOT)}: {match.group()[:60]!r}" for match in kind.finditer(path.read_bytes())]
    assert told == []


def test_the_patterns_find_what_they_are_for():
    text = b'"GPU-1b2c3d4e-aaaa-bbbb-cccc-0123456789ab" 02:42:ac:11:00:02 /home/maria/x C:\\Users\\maria\\x'
    assert all(pattern.search(text) for pattern in (UUID, MAC, HOME))


def test_every_test_that_a_document_names_exists():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))}
    assert named and not {name for name in named if f"def {name}(" not in tests}

"""The dataset is the same bytes everywhere, and its answers are true: computed again from the prompts."""

import contextlib
import datetime
import hashlib
import heapq
import io
import itertools
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from kit.errors import UsageError
from tools.dataset import traces

ROOT = Path(__file__).parents[2]
SHA256 = "0b8a33ebab8e0c4caadfb802f8fac092c7cd81a3934e1e739c448bd406110e16"
ROWS = traces.traces()
OTHER_SEED = traces.traces(7)


def rows_of(family):
    return [row for row in (*ROWS, *OTHER_SEED) if row["meta"]["family"] == family]


# --- shape and bytes ----------------------------------------------------------------


def test_dataset_bytes_are_frozen():
    assert hashlib.sha256(traces.to_jsonl(ROWS)).hexdigest() == SHA256


def test_counts_are_550_in_four_categories():
    found = Counter(row["meta"]["category"] for row in ROWS)
    assert found == {"reasoning": 385, "synthetic": 110, "golden": 35, "edge": 20}
    assert len(ROWS) == 550


def test_every_trace_has_exactly_the_schema():
    for number, row in enumerate(ROWS, start=1):
        assert list(row) == ["trace_version", "prompt", "final_answer", "steps", "meta"]
        assert list(row["meta"]) == ["dataset", "generator", "seed", "id", "category", "family"]
        assert row["meta"]["id"] == f"dev-reasoning-v2-{number:04d}"
        assert row["prompt"].strip() and row["final_answer"].strip()
        for i, step in enumerate(row["steps"], start=1):
            assert list(step) == ["i", "type", "content"]
            assert step["i"] == i and step["content"].strip()


def test_no_prompt_stands_twice():
    assert len({row["prompt"] for row in ROWS}) == 550


def test_categories_are_mixed_from_the_first_rows_on():
    assert {row["meta"]["category"] for row in ROWS[:60]} == set(traces.COUNTS)


def test_golden_traces_have_a_plan_first_and_a_check_last():
    for row in ROWS:
        if row["meta"]["category"] == "golden":
            assert (row["steps"][0]["type"], row["steps"][-1]["type"]) == ("plan", "check")


def test_lengths_vary_widely():
    lengths = [len(row["prompt"]) for row in ROWS]
    assert min(lengths) < 10 and max(lengths) > 1000
    assert {len(row["steps"]) for row in ROWS} >= {0, 1, 2, 3, 5, 8, 111}


def test_another_seed_gives_other_problems():
    shared = {row["prompt"] for row in ROWS} & {row["prompt"] for row in OTHER_SEED}
    assert 20 <= len(shared) < 50  # the edge cases, and few chance hits


def test_each_line_of_the_file_is_one_object():
    lines = traces.to_jsonl(ROWS).split(b"\n")
    assert lines.pop() == b"" and len(lines) == 550
    assert [json.loads(line) for line in lines] == list(ROWS)


def test_manifest_describes_the_written_file(tmp_path):
    manifest = traces.write(tmp_path / "new" / "folder")
    data = (tmp_path / "new" / "folder" / manifest["file"]).read_bytes()
    assert json.loads((tmp_path / "new" / "folder" / "manifest.json").read_bytes()) == manifest
    assert (manifest["bytes"], manifest["sha256"]) == (len(data), SHA256)
    assert manifest["rows"] == data.count(b"\n") == sum(manifest["families"].values()) == 550
    assert manifest["categories"] == traces.COUNTS


def test_the_page_about_the_dataset_names_the_same_digest():
    assert SHA256 in (ROOT / "docs" / "dataset.md").read_text(encoding="utf-8")


def test_unwritable_folder_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be written"):
        traces.write(tmp_path / "file")


PRINT_SHA256 = (
    "import hashlib, sys; from tools.dataset import traces; "
    "print(hashlib.sha256(traces.to_jsonl(traces.traces())).hexdigest()); "
    "print(sorted({'torch', 'numpy', 'tokenizers'} & set(sys.modules)))"
)


def run_python(python):
    environment = dict(os.environ, PYTHONHASHSEED="123", PYTHONPATH=str(ROOT), LC_ALL="C")
    done = subprocess.run([python, "-S", "-c", PRINT_SHA256], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout.split("\n")[:2]


def test_a_bare_python_with_another_hash_seed_makes_the_same_bytes():
    assert run_python(sys.executable) == (0, [SHA256, "[]"])


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_other_python_versions_make_the_same_bytes(version):
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-V"], capture_output=True).returncode:
        pytest.skip(f"no python{version} on this machine")
    assert run_python(python) == (0, [SHA256, "[]"])


# --- answers, computed again from the prompt alone ----------------------------------


def cents(text):
    return [int(a) * 100 + int(b) for a, b in re.findall(r"\$(\d+)\.(\d\d)", text)]


def shopping(prompt):
    (n, p), (m, q) = [
        (int(n), int(a) * 100 + int(b)) for n, a, b in re.findall(r"(\d+) [a-z]+ at \$(\d+)\.(\d\d) each", prompt)
    ]
    (paid,) = [c for c in cents(re.sub(r"at \$\S+ each", "", prompt))]
    change = paid - n * p - m * q
    return f"${change // 100}.{change % 100:02d}"


FACTORS = {
    "kilometres": 1000,
    "metres": 100,
    "hours": 60,
    "minutes": 60,
    "weeks": 7,
    "kilograms": 1000,
    "GiB": 1024,
    "miles": 5280,
    "pounds": 16,
    "days": 24,
    "yards": 36,
}


def conversion(prompt):
    mixed = re.search(r"(\d+) (\w+) and (\d+) (\w+)", prompt)
    if mixed:
        n, big, rest, small = mixed.groups()
        return f"{int(n) * FACTORS[big] + int(rest)} {small}"
    total, small = re.search(r"(\d+) (\w+)", prompt).groups()
    big = re.search(r"(?:whole|full) (\w+)", prompt).group(1)
    return f"{int(total) // FACTORS[big]} {big} and {int(total) % FACTORS[big]} {small}"


def date_after(prompt):
    months = [datetime.date(2000, month, 1).strftime("%B") for month in range(1, 13)]
    day, month, year = re.search(r"(\d+) ([A-Z][a-z]+) (\d{4})", prompt).groups()
    end = datetime.date(int(year), months.index(month) + 1, int(day))
    for _ in range(int(re.search(r"(\d+) days", prompt).group(1))):
        end += datetime.timedelta(days=1)
    return f"{end.day} {months[end.month - 1]} {end.year}"


def ordering(prompt):
    pairs = re.findall(r"(\w+) is \w+ than (\w+)", prompt)
    people = sorted({who for pair in pairs for who in pair})
    (order,) = [row for row in itertools.permutations(people) if all(row.index(a) < row.index(b) for a, b in pairs)]
    rank = re.search(r"the (\w+) \w+\?", prompt).group(1)
    return order[["first", "second", "third", "fourth", "fifth"].index(rank)]


def knights(prompt):
    said = re.findall(r"(\w+) says: (\w+) (is a liar|and I are)", prompt)
    people = [who for who, _, _ in said]
    fits = []
    for values in itertools.product((True, False), repeat=3):
        honest = dict(zip(people, values))
        # "b is a liar" is said just where a and b differ, "b is of my sort" just where b is honest
        if all(honest[a] != honest[b] if what == "is a liar" else honest[b] for a, b, what in said):
            fits.append([who for who in people if honest[who]])
    (answer,) = fits
    return ", ".join(answer) or "nobody"


def sets(prompt):
    total, a, b, both = map(int, re.findall(r"\d+", prompt))
    return str(total - len(set(range(a)) | set(range(a - both, a - both + b))))


def draw_two(prompt):
    n, m = map(int, re.findall(r"\d+", prompt))
    pairs = list(itertools.combinations("a" * n + "b" * m, 2))
    return str(Fraction(sum(x == y for x, y in pairs), len(pairs)))


def route(prompt):
    roads = {}
    for a, b, km in re.findall(r"([A-Z]\w+)-([A-Z]\w+) (\d+)", prompt):
        roads.setdefault(a, []).append((b, int(km)))
        roads.setdefault(b, []).append((a, int(km)))
    heap, seen = [(0, ["Abbey"])], set()
    while heap:
        km, path = heapq.heappop(heap)
        if path[-1] == "Fort":
            return f"{'-'.join(path)}, {km} km"
        if path[-1] not in seen:
            seen.add(path[-1])
            for there, more in roads[path[-1]]:
                heapq.heappush(heap, (km + more, [*path, there]))
    return None


def table(prompt):
    unit = re.search(r"\| service \| (\w+)", prompt).group(1)
    values = [int(value) for value in re.findall(r"\| \w+ \| (\d+) \|", prompt)]
    return f"{max(values) - min(values)} {unit}"


def code_in(prompt):
    return re.search(r"```python\n(.*?)\n```", prompt, re.S).group(1)


def tracing(prompt):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code_in(prompt), {})
    return out.getvalue().strip()


def sql(prompt):
    base = sqlite3.connect(":memory:")
    base.execute("CREATE TABLE log (level TEXT, name TEXT, ms INTEGER)")
    values = re.findall(r"^\('.*?\)", prompt, re.M)
    base.execute(f"INSERT INTO log VALUES {', '.join(values)}")
    ((answer,),) = base.execute(re.search(r"^SELECT .*$", prompt, re.M).group(0))
    base.close()
    return str(answer)


def regex(prompt):
    pattern = re.search(r"`(.*)`", prompt).group(1)
    candidates = re.search(r"(?:Which of|Candidates:) (.*?)(?: match|\. Which)", prompt).group(1).split(", ")
    return ", ".join(text for text in candidates if re.compile(pattern).fullmatch(text))


def sequence(prompt):
    a, b, c, d, e = map(int, re.findall(r"\d+", prompt))
    # a second-degree polynomial through five points has vanishing third differences
    assert a - 3 * b + 3 * c - d == b - 3 * c + 3 * d - e == 0
    return str(3 * e - 3 * d + c)


def base(prompt):
    n, radix = (
        map(int, re.findall(r"\d+", prompt))
        if prompt.startswith("Write")
        else [int(found) for found in re.search(r"decimal (\d+) in base (\d+)", prompt).groups()]
    )
    return format(n, {2: "b", 8: "o", 16: "x"}[radix])


def rpn(prompt):
    stack = []
    for token in re.findall(r"(?<!\S)`?(\d+|[-+*])(?=[ `]|$)", prompt):
        if token.isdigit():
            stack.append(int(token))
        else:
            b, a = stack.pop(), stack.pop()
            stack.append(a + b if token == "+" else a - b if token == "-" else a * b)
    (answer,) = stack
    return str(answer)


def gcd(prompt):
    a, b = map(int, re.findall(r"\d+", prompt))
    return str(max(n for n in range(1, min(a, b) + 1) if a % n == b % n == 0))


def caesar(prompt):
    word, shift = re.search(r"'(\w+)'", prompt).group(1), int(re.search(r"\d+", prompt).group(0))
    letters = "abcdefghijklmnopqrstuvwxyz"
    return word.translate(str.maketrans(letters, letters[shift:] + letters[:shift]))


SOLVERS = {
    solve.__name__: solve
    for solve in (
        shopping,
        conversion,
        date_after,
        ordering,
        knights,
        sets,
        draw_two,
        route,
        table,
        tracing,
        sql,
        regex,
        sequence,
        base,
        rpn,
        gcd,
        caesar,
    )
}


@pytest.mark.parametrize("family", SOLVERS)
def test_answers_are_true(family):
    found = [(row["prompt"], row["final_answer"]) for row in rows_of(family)]
    assert len(found) > 40
    assert [(prompt, SOLVERS[family](prompt)) for prompt, _ in found] == found


def test_every_generated_family_is_recomputed():
    families = {row["meta"]["family"] for row in ROWS if row["meta"]["category"] != "edge"}
    assert families == {*SOLVERS, "debugging", "shell"}


def test_programs_to_debug_stop_with_the_error_they_quote():
    for row in rows_of("debugging"):
        quoted = re.search(r"This stops with\n(.*)\n", row["prompt"]).group(1)
        with pytest.raises(Exception) as caught, contextlib.redirect_stdout(io.StringIO()):
            exec(code_in(row["prompt"]), {})
        assert f"{type(caught.value).__name__}: {caught.value}" == quoted


def test_shell_answers_are_what_the_shell_prints(tmp_path):
    if not all(map(shutil.which, ("sh", "awk", "grep", "cut", "sort", "wc", "head"))):
        pytest.skip("no POSIX shell tools on this machine")
    script, answers = [], []
    for number, row in enumerate(rows_of("shell")):
        (tmp_path / str(number)).mkdir()
        lines = re.search(r"^```\n(.*?)\n```", row["prompt"], re.S | re.M).group(1)
        (tmp_path / str(number) / "app.log").write_text(lines + "\n", encoding="utf-8", newline="\n")
        command = re.search(r"does `(.*)` print|```sh\n(.*)\n```", row["prompt"])
        script.append(f"(cd {number} && {command.group(1) or command.group(2)})")
        answers.append(row["final_answer"])
    done = subprocess.run(["sh"], input="\n".join(script), capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == answers


SIDE = r"-?\d+(?: (?:[-+x*]|mod) -?\d+)*"
EQUATION = re.compile(rf"(?<![/\d.$] )(?<![\d.$/(^-])({SIDE}) = ({SIDE})(?![\d/]|\.\d| [-+x*/])", re.ASCII)


def wrong_equations(text):
    """Equations between whole numbers in `text` that do not hold, and how many there are in all."""
    pairs = EQUATION.findall(text)
    values = [[eval(side.replace("x", "*").replace("mod", "%"), {}) for side in pair] for pair in pairs]
    return [pair for pair, (left, right) in zip(pairs, values) if left != right], len(pairs)


def test_each_equation_in_a_step_holds():
    found = [wrong_equations(step["content"]) for row in (*ROWS, *OTHER_SEED) for step in row["steps"]]
    assert [wrong for wrong, _ in found if wrong] == []
    assert sum(count for _, count in found) > 1000


def test_a_wrong_equation_is_noticed():
    assert wrong_equations("So 2 x 3 + 1 = 8. Then 9 = 4 x 2 + 1.") == ([("2 x 3 + 1", "8")], 2)


def test_edge_answers_are_true():
    edge = {row["meta"]["family"]: row for row in ROWS if row["meta"]["category"] == "edge"}
    assert len(edge) == 20

    def prompt(name):
        return edge[name]["prompt"]

    def answer(name):
        return edge[name]["final_answer"]

    assert answer("very_long") == str(sum(map(int, re.findall(r"\d+", prompt("very_long")))))
    assert answer("huge_integer") == str(math.prod([2] * 200))
    assert answer("tiny_number") == str(1e-300 * 1e-300)
    assert answer("emoji") == str(len(prompt("emoji")) - len("How many code points make ?"))
    assert answer("special_token") == str(len(prompt("special_token")) - len("How many characters has ?"))
    assert answer("long_word") == str(len(max(re.findall(r"\w+", prompt("long_word")), key=len)))
    assert answer("tabs") == str(len(prompt("tabs").split("\n")[1].split("\t")))
    assert answer("carriage_returns") == str(len(prompt("carriage_returns").split("\r\n")))
    assert answer("line_separators") == str(prompt("line_separators").count("\n"))
    assert answer("json_inside") == json.dumps(
        json.loads(re.search(r"\{.*\}", prompt("json_inside")).group(0))["a"][1]["b"]
    )
    assert answer("code_block") == tracing(prompt("code_block"))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(prompt("quotes").removeprefix("What does ").removesuffix(" print?"), {})
    assert answer("quotes") + "\n" == out.getvalue()
    chain = [tuple(map(int, step["content"].split(" -> "))) for step in edge["many_steps"]["steps"]]
    assert all(b == (a // 2 if a % 2 == 0 else 3 * a + 1) for a, b in chain)
    assert (chain[0][0], chain[-1][1], answer("many_steps")) == (27, 1, str(len(chain)))

"""dev-reasoning-v2: 550 reasoning traces that the kit makes itself, the same bytes on every machine.

A training run needs text that is worth learning from, free of anybody's licence and there without
a network. Each trace is a problem, the steps that solve it and an answer that was computed:

    {"trace_version", "prompt", "final_answer", "steps": [{"i", "type", "content"}],
     "meta": {"dataset", "generator", "seed", "id", "category", "family"}}

Category `reasoning`: quantities, dates, logic, counting, programs and data. `synthetic`: symbols.
`golden`: the reasoning families in full form, with plan and check. `edge`: texts that break careless
code. It is no benchmark: the families are few, and a model can learn them by heart.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kit.errors import UsageError
from tools.dataset import problems, programs
from tools.dataset.dice import Dice

NAME = "dev-reasoning-v2"
TRACE_VERSION = "2.0"
GENERATOR = "kit.train.traces/1"
COUNTS = {"reasoning": 385, "synthetic": 110, "golden": 35, "edge": 20}

# family -> (function, type of its steps, plan in one sentence)
REASONING = {
    "shopping": (problems.shopping, "compute", "Add up the cost, then subtract it from the money paid."),
    "conversion": (problems.conversion, "compute", "Find the factor between the units, then convert."),
    "date_after": (problems.date_after, "compute", "Walk from month to month until the days are used up."),
    "ordering": (problems.ordering, "deduce", "Find who comes first, then follow the chain of comparisons."),
    "knights": (problems.knights, "deduce", "Try all eight combinations and keep the one that fits."),
    "sets": (problems.sets, "compute", "Count those in at least one set, without counting any twice."),
    "draw_two": (problems.draw_two, "compute", "Divide the favourable ordered pairs by all ordered pairs."),
    "route": (problems.route, "search", "List the ways from start to goal and compare their lengths."),
    "table": (programs.table, "lookup", "Find the largest and the smallest row, then subtract."),
    "tracing": (programs.tracing, "trace", "Follow the variable through each turn of the loop."),
    "debugging": (programs.debugging, "deduce", "Read the error, find the line that causes it, change that."),
    "shell": (programs.shell, "trace", "Go through the pipeline from left to right."),
    "sql": (programs.sql, "trace", "Select the rows first, then aggregate them."),
    "regex": (programs.regex, "trace", "Say what the pattern asks for, then test each candidate."),
}
SYNTHETIC = {
    "sequence": (programs.sequence, "deduce", "Look at the gaps between neighbours."),
    "base": (programs.base, "compute", "Divide by the base and keep the remainders."),
    "rpn": (programs.rpn, "trace", "Push numbers; an operator takes the top two."),
    "gcd": (programs.gcd, "compute", "Use Euclid's algorithm."),
    "caesar": (programs.caesar, "trace", "Shift letter by letter."),
}


def traces(seed: int = 42) -> tuple[dict[str, Any], ...]:
    """The 550 traces in their final, mixed order."""
    made = [*_generated(seed), *_edges()]
    mixed = Dice(seed).shuffled(made)
    return tuple(_trace(*parts, seed=seed, number=number) for number, parts in enumerate(mixed, start=1))


def to_jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    """One JSON object a line, UTF-8, each line ended by a line feed."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return "".join(lines).encode("utf-8")


def write(folder: str | Path, seed: int = 42) -> dict[str, Any]:
    """Writes `dev-reasoning-v2.jsonl` and `manifest.json` into `folder`; returns the manifest."""
    rows = traces(seed)
    data = to_jsonl(rows)
    manifest = {
        "dataset": NAME,
        "trace_version": TRACE_VERSION,
        "generator": GENERATOR,
        "seed": seed,
        "file": f"{NAME}.jsonl",
        "rows": len(rows),
        "categories": dict(sorted(Counter(row["meta"]["category"] for row in rows).items())),
        "families": dict(sorted(Counter(row["meta"]["family"] for row in rows).items())),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / manifest["file"]).write_bytes(data)
        (folder / "manifest.json").write_bytes((json.dumps(manifest, indent=2) + "\n").encode("utf-8"))
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written: {error.strerror}",
            todo="name another folder",
            expected="a folder you may write to, with 1 MB of space",
        ) from error
    return manifest


Parts = tuple[str, str, str, str, list[tuple[str, str]]]  # category, family, prompt, answer, (type, content)*


def _generated(seed: int) -> Iterator[Parts]:
    seen: set[str] = set()
    stream = 0
    for category, families in (("reasoning", REASONING), ("synthetic", SYNTHETIC), ("golden", REASONING)):
        for number in range(COUNTS[category]):
            family = list(families)[number % len(families)]
            make, kind, plan = families[family]
            stream += 1
            dice = Dice(seed, stream)
            problem = make(dice)
            while problem.prompt in seen:
                problem = make(dice)
            seen.add(problem.prompt)
            is_full = category == "golden"
            yield (
                category,
                family,
                problem.prompt,
                problem.answer,
                [
                    *([("plan", plan)] if is_full else []),
                    *((kind, step) for step in problem.steps),
                    *([("check", problem.check)] if is_full or dice.below(2) else []),
                ],
            )


def _trace(
    category: str, family: str, prompt: str, answer: str, steps: list[tuple[str, str]], *, seed: int, number: int
) -> dict[str, Any]:
    return {
        "trace_version": TRACE_VERSION,
        "prompt": prompt,
        "final_answer": answer,
        "steps": [{"i": i, "type": kind, "content": text} for i, (kind, text) in enumerate(steps, start=1)],
        "meta": {
            "dataset": NAME,
            "generator": GENERATOR,
            "seed": seed,
            "id": f"{NAME}-{number:04d}",
            "category": category,
            "family": family,
        },
    }


# --- edge cases ---------------------------------------------------------------------


def _edges() -> Iterator[Parts]:
    """Twenty texts that break careless code: sizes, scripts, separators, markup, extreme numbers."""
    collatz = [27]
    while collatz[-1] != 1:
        collatz.append(collatz[-1] * 3 + 1 if collatz[-1] % 2 else collatz[-1] // 2)
    cases: list[tuple[str, str, str, list[str]]] = [
        ("very_short", "2+2?", "4", ["2+2=4"]),
        ("one_letter", "a, b, c, ?", "d", []),
        ("empty_steps", "Is 97 a prime number?", "Yes", []),
        (
            "very_long",
            f"Add these numbers: {problems.listed(range(1, 401))}.",
            str(sum(range(1, 401))),
            ["First and last, second and last but one, and so on: 200 pairs of 401.", "200 x 401 = 80200."],
        ),
        (
            "many_steps",
            "Halve an even number, turn an odd n into 3n + 1. How many steps lead from 27 to 1?",
            str(len(collatz) - 1),
            [f"{a} -> {b}" for a, b in zip(collatz, collatz[1:])],
        ),
        (
            "combining",
            "Is '\u00e9' the same string as 'e\u0301'?",
            "No",
            [
                "The first is one code point, U+00E9.",
                "The second is two: e and the combining accent U+0301.",
                "They look alike and are not equal.",
            ],
        ),
        (
            "emoji",
            "How many code points make \U0001f469\u200d\U0001f680 \U0001f680\ufe0f?",
            "6",
            ["Woman, joiner and rocket are three.", "The blank is one.", "Rocket and selector are two."],
        ),
        (
            "right_to_left",
            "\u0643\u0645 \u064a\u0633\u0627\u0648\u064a \u0663 + \u0664\u061f",
            "\u0667",
            ["\u0663 + \u0664 = \u0667", "\u05d1\u05e2\u05d1\u05e8\u05d9\u05ea: \u05e9\u05d1\u05e2"],
        ),
        ("chinese", "\u4e09\u52a0\u4e94\u7b49\u4e8e\u51e0\uff1f", "\u516b", ["3 + 5 = 8\uff0c\u5373\u516b\u3002"]),
        (
            "code_block",
            "What does this print?\n````md\n```python\nprint(len('```'))\n```\n````",
            "3",
            ["The outer fence has four backticks, so the inner one is text.", "The string holds three backticks."],
        ),
        (
            "quotes",
            r"""What does print("It's \"so\" and 'thus'", r'C:\new') print?""",
            r"""It's "so" and 'thus' C:\new""",
            ["The raw string keeps its backslash."],
        ),
        ("carriage_returns", "How many lines are these?\r\none\r\ntwo\r\nthree", "4", ["Each \\r\\n ends one line."]),
        (
            "line_separators",
            "How many line feeds are in 'a\u2028b\u2029c\u0085d'?",
            "0",
            ["U+2028, U+2029 and U+0085 separate lines in some programs.", "None of them is U+000A."],
        ),
        ("tabs", "How many tab-separated fields has this?\na\tb\t\td", "4", ["The third field is empty."]),
        (
            "markup",
            "Which tag does <script>alert('hi')</script> &amp; <b>x</b> open first?",
            "<script>",
            ["Read from the left: <script> comes before <b>."],
        ),
        (
            "json_inside",
            'What is a[1].b in {"a": [1, {"b": null}], "c": "{\\"b\\": 2}"}?',
            "null",
            ["a[1] is the object with b.", "Its b is null; the other b stands inside a string."],
        ),
        ("special_token", "How many characters has <|endoftext|>?", "13", ["2 + 9 + 2 = 13."]),
        ("huge_integer", "What is 2 to the power of 200?", str(2**200), [f"2^100 = {2**100}.", "Square it."]),
        (
            "tiny_number",
            "What is 1e-300 * 1e-300 in 64-bit floating point?",
            "0.0",
            ["The exact product is 1e-600, the smallest positive value 4.94e-324.", "It rounds to zero."],
        ),
        ("long_word", f"How many letters has {'abcde' * 120}?", "600", ["abcde, 120 times over."]),
    ]
    for family, prompt, answer, steps in cases:
        yield "edge", family, prompt, answer, [("note", step) for step in steps]

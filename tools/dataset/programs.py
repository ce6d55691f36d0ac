"""Problems about code, data and symbols; the second half of the families of `tools.dataset.traces`.

The programs in the prompts are never executed here: each answer is computed beside the text, and
the tests run the same programs with Python, sh, awk and SQLite to see that the answers are true.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from tools.dataset.dice import Dice
from tools.dataset.problems import GOODS, NAMES, SERVICES, Problem, fenced, listed

# pattern, what it says, two texts that match; '#' stands for a random digit, '@' for a random letter
PATTERNS = (
    (r"[a-z]+\d{2}", "lowercase letters, then exactly two digits", ("@@##", "node##")),
    (r"\d{3}-\d{4}", "three digits, a dash, four digits", ("###-####", "555-0###")),
    (r"v\d+(\.\d+)*", "a v, then numbers joined by dots", ("v#.#.##", "v##")),
    (r"[A-Z]{2,3}_[a-z]+", "two or three capitals, an underscore, lowercase letters", ("GPU_@@@", "IO_@")),
    (r"\d+(\.\d+)?s", "a number, perhaps with decimals, then an s", ("##s", "#.##s")),
    (r"[^aeiou]+", "no lowercase vowel anywhere", ("#-#", "xyz##")),
    (r"(ab)+c?", "ab once or more often, perhaps a c at the end", ("ababc", "ab")),
)


def table(d: Dice) -> Problem:
    unit, rows = d.pick(("ms", "MB", "requests")), [(who, d.between(10, 999)) for who in d.some(SERVICES, 5)]
    (low, least), *_, (high, most) = sorted(rows, key=lambda row: row[1])
    lines = [f"| service | {unit} |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)]
    asked = d.pick(("By how much does the largest row exceed the smallest?", "How wide is the range?"))
    steps = [
        f"The largest value is {most} ({high}).",
        f"The smallest value is {least} ({low}).",
        f"{most} - {least} = {most - least}.",
    ]
    answer = f"{most - least} {unit}"
    return Problem("\n".join((*lines, "", asked)), answer, steps, f"{least} + {most - least} = {most}.")


def tracing(d: Dice) -> Problem:
    numbers, k = [d.between(1, 20) for _ in range(d.between(3, 6))], d.between(2, 9)
    test, holds = d.pick((("n % 2 == 1", lambda n: n % 2 == 1), (f"n > {k}", lambda n: n > k)))
    change, changed = d.pick((("-= n", lambda n: -n), ("+= n * n", lambda n: n * n), ("+= n // 2", lambda n: n // 2)))
    start, name, steps = d.between(0, 9), d.pick(("acc", "total", "score")), []
    total = start
    for n in numbers:
        total += changed(n) if holds(n) else k
        steps.append(f"n = {n}: {test} is {holds(n)}, so {name} becomes {total}.")
    code = [
        f"{name} = {start}",
        f"for n in {numbers}:",
        f"    if {test}:",
        f"        {name} {change}",
        "    else:",
        f"        {name} += {k}",
        f"print({name})",
    ]
    asked = d.pick(("What does this program print?", "Trace this Python code. What is printed?"))
    check = f"The steps change {name} by {total - start} in all, from {start} to {total}."
    return Problem(f"{asked}\n{fenced('python', code)}", str(total), steps, check)


def debugging(d: Dice) -> Problem:
    v, n, (key, other) = d.pick(("items", "rows", "sizes")), d.between(3, 9), d.some(GOODS, 2)
    code, error, why, fix = d.pick(
        (
            (
                [f"{v} = list(range({n}))", f"for i in range(len({v}) + 1):", f"    print({v}[i])"],
                "IndexError: list index out of range",
                f"i reaches {n}, but the last index of {v} is {n - 1}.",
                f"loop over range(len({v}))",
            ),
            (
                [f"stock = {{'{key}': {n}}}", f"print(stock['{other}'])"],
                f"KeyError: '{other}'",
                f"The only key in stock is '{key}'.",
                f"use stock.get('{other}', 0)",
            ),
            (
                [f"{v} = []", f"print({n} + sum({v}) / len({v}))"],
                "ZeroDivisionError: division by zero",
                f"{v} is empty, so len({v}) is 0.",
                f"handle an empty {v} before dividing",
            ),
            (
                [f"count = {n}", f"print('{key}: ' + count)"],
                'TypeError: can only concatenate str (not "int") to str',
                "count is an int, and + joins a string only to a string.",
                f"write print('{key}:', count)",
            ),
            (
                [f"{v} = [{n}, 1, 2].sort()", f"{v}.append({n})"],
                "AttributeError: 'NoneType' object has no attribute 'append'",
                f"sort() sorts in place and returns None, so {v} is None.",
                f"use {v} = sorted([{n}, 1, 2])",
            ),
            (
                [f"text = '{n}.5 kg'", "print(int(text[:3]))"],
                f"ValueError: invalid literal for int() with base 10: '{n}.5'",
                f"int() reads whole numbers only, and '{n}.5' is none.",
                "call float() instead of int()",
            ),
        )
    )
    kind = error.partition(":")[0]
    asked = d.pick(("How is it fixed?", "What is the remedy?", "Why, and what helps?"))
    steps = [f"The program stops with a {kind}.", why, f"So the remedy is to {fix}."]
    prompt = f"{fenced('python', code)}\nThis stops with\n{error}\n{asked}"
    return Problem(prompt, f"{fix[0].upper()}{fix[1:]}.", steps, f"After that no {kind} is raised here.")


def log_lines(d: Dice) -> list[tuple[str, str, int]]:
    """(level, service, milliseconds)"""
    names, n = d.some(SERVICES, 3), d.between(5, 8)
    return [(d.pick(("INFO", "WARN", "ERROR")), d.pick(names), d.between(1, 90)) for _ in range(n)]


def shell(d: Dice) -> Problem:
    rows = log_lines(d)
    level, name, at_most = rows[0][0], rows[-1][1], d.between(1, 9)
    hits, used = [row for row in rows if row[0] == level], sorted({row[1] for row in rows})
    took = [row[2] for row in rows if row[1] == name]
    command, answer, steps = d.pick(
        (
            (f"grep -c {level} app.log", len(hits), [f"grep -c counts the lines that contain {level}."]),
            (
                "cut -d' ' -f2 app.log | sort -u | wc -l",
                len(used),
                ["cut keeps the second words.", f"sort -u leaves {listed(used)}.", "wc -l counts them."],
            ),
            (
                f"awk '$2 == \"{name}\" {{s += $3}} END {{print s}}' app.log",
                sum(took),
                [f"The lines of {name} have the third words {listed(took)}.", "awk prints their sum."],
            ),
            (
                f"grep {level} app.log | head -n {at_most} | wc -l",
                min(len(hits), at_most),
                [f"grep keeps {len(hits)} lines.", f"head lets at most {at_most} of them through."],
            ),
        )
    )
    holds = fenced("", (f"{a} {b} {c}" for a, b, c in rows))
    prompt = d.pick(
        (
            f"app.log holds\n{holds}\nWhat does `{command}` print?",
            f"{holds}\nThese lines are in app.log. Give the output of\n{fenced('sh', [command])}",
        )
    )
    return Problem(prompt, str(answer), steps, f"app.log has {len(rows)} lines, {len(hits)} of them {level}.")


def sql(d: Dice) -> Problem:
    rows = log_lines(d)
    (level, name, _), k, groups = d.pick(rows), d.between(20, 60), Counter(row[0] for row in rows)
    above = [ms for _, _, ms in rows if ms > k]
    of_name, of_level = [r[2] for r in rows if r[1] == name], [r[2] for r in rows if r[0] == level]
    query, answer, step = d.pick(
        (
            (f"SELECT COUNT(*) FROM log WHERE ms > {k}", len(above), f"Above {k} are: {listed(above) or 'none'}."),
            (f"SELECT SUM(ms) FROM log WHERE name = '{name}'", sum(of_name), f"{name} has ms {listed(of_name)}."),
            (
                f"SELECT MAX(ms) - MIN(ms) FROM log WHERE level = '{level}'",
                max(of_level) - min(of_level),
                f"{level} has ms {listed(of_level)}.",
            ),
            (
                "SELECT COUNT(*) FROM (SELECT level FROM log GROUP BY level HAVING COUNT(*) > 1)",
                sum(n > 1 for n in groups.values()),
                f"The groups are {listed(f'{who} x {n}' for who, n in sorted(groups.items()))}.",
            ),
        )
    )
    values = ",\n".join(f"('{a}', '{b}', {c})" for a, b, c in rows)
    prompt = d.pick(
        (
            f"A table log(level, name, ms) holds\n{values}\nWhat does this return?\n{query}",
            f"log(level, name, ms):\n{values}\nEvaluate the query\n{fenced('sql', [query])}",
        )
    )
    return Problem(
        prompt, str(answer), [step, f"So the query returns {answer}."], f"All {len(rows)} rows were looked at."
    )


def regex(d: Dice) -> Problem:
    pattern, words, good = d.pick(PATTERNS)
    shapes = d.shuffled([*good, *(d.pick(other[2]) for other in d.some(PATTERNS, 3) if other[0] != pattern)])
    pools = {"#": "0123456789", "@": "bcdefghijkl"}
    texts = list(dict.fromkeys("".join(d.pick(pools.get(c, c)) for c in shape) for shape in shapes))
    fits = [text for text in texts if re.fullmatch(pattern, text)]
    steps = [f"The pattern asks for {words}."]
    steps += [f"{text}: {'fits' if text in fits else 'does not fit'}." for text in texts]
    prompt = d.pick(
        (
            f"Which of {listed(texts)} match the regular expression `{pattern}` as a whole?",
            f"Pattern: `{pattern}`. Candidates: {listed(texts)}. Which match from start to end?",
        )
    )
    return Problem(prompt, listed(fits), steps, f"{len(fits)} of {len(texts)} candidates match.")


# --- symbols ------------------------------------------------------------------------


def sequence(d: Dice) -> Problem:
    first, step, growth = d.between(1, 30), d.between(2, 12), d.between(1, 5)
    terms = [first + step * i + growth * i * (i - 1) // 2 for i in range(6)]
    gaps = [b - a for a, b in zip(terms, terms[1:])]
    prompt = d.pick((f"Continue: {listed(terms[:5])}, ?", f"Which number follows {listed(terms[:5])}?"))
    steps = [
        f"The gaps are {listed(gaps[:4])}; each is {growth} more than the one before.",
        f"The next gap is {gaps[4]}, so the next number is {terms[4]} + {gaps[4]} = {terms[5]}.",
    ]
    return Problem(prompt, str(terms[5]), steps, f"{terms[5]} - {terms[4]} = {gaps[4]}.")


def base(d: Dice) -> Problem:
    n, radix = d.between(17, 4000), d.pick((2, 8, 16))
    digits, steps, left = "", [], n
    while left:
        left, digit = divmod(left, radix)
        digits = "0123456789abcdef"[digit] + digits
        steps.append(f"{left * radix + digit} = {left} x {radix} + {digit}.")
    parts = [f"{int(c, 16)} x {radix**i}" for i, c in enumerate(reversed(digits))]
    prompt = d.pick((f"Write {n} in base {radix}.", f"What is decimal {n} in base {radix}?"))
    return Problem(
        prompt, digits, [*steps, "The remainders, last one first, are the digits."], f"{' + '.join(parts)} = {n}."
    )


def rpn(d: Dice) -> Problem:
    tokens, stack, steps = [str(d.between(1, 20))], [], []
    for _ in range(d.between(2, 5)):
        tokens += [str(d.between(1, 12)), d.pick("+-*")]
    for token in tokens:
        if token in "+-*":
            b, a = stack.pop(), stack.pop()
            stack.append({"+": a + b, "-": a - b, "*": a * b}[token])
            steps.append(f"{a} {token} {b} = {stack[-1]}")
        else:
            stack.append(int(token))
    prompt = d.pick(
        (
            f"Evaluate in reverse Polish notation: {' '.join(tokens)}",
            f"A stack machine reads `{' '.join(tokens)}`. What is left on the stack?",
        )
    )
    return Problem(prompt, str(stack[0]), steps, "One value is left, as it should be.")


def gcd(d: Dice) -> Problem:
    shared, (a, b) = d.between(2, 40), (d.between(11, 90), d.between(11, 90))
    a, b = a * shared, b * shared
    answer, steps = math.gcd(a, b), []
    prompt = d.pick(
        (
            f"What is the greatest common divisor of {a} and {b}?",
            f"Reduce the fraction {a}/{b}: by which largest number can both be divided?",
        )
    )
    x, y = a, b
    while y:
        steps.append(f"{x} mod {y} = {x % y}.")
        x, y = y, x % y
    check = f"{a} = {answer} x {a // answer} and {b} = {answer} x {b // answer}."
    return Problem(prompt, str(answer), steps, check)


def caesar(d: Dice) -> Problem:
    word, shift = d.pick([*GOODS, *SERVICES, *(name.lower() for name in NAMES)]), d.between(1, 25)
    secret = "".join(chr((ord(c) - 97 + shift) % 26 + 97) for c in word)
    prompt = d.pick(
        (
            f"Shift each letter of '{word}' forward by {shift} (z is followed by a).",
            f"Encode '{word}' with a Caesar shift of {shift}.",
        )
    )
    steps = [f"{a} -> {b}" for a, b in zip(word, secret)]
    return Problem(prompt, secret, steps, f"Shifting '{secret}' back by {shift} gives '{word}'.")

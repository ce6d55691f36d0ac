"""Everyday problems with computed answers: the first half of the families of `tools.dataset.traces`.

A family is a function from `Dice` to a `Problem`: its answer is computed from the drawn values,
never typed in, and `check` is a sentence that supports it. No locale, clock or file is read, and
chance comes only from `random.Random.random()`, whose sequence Python promises to keep.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from tools.dataset.dice import Dice


class Problem(NamedTuple):
    prompt: str
    answer: str
    steps: list[str]
    check: str


NAMES = [
    "Ana",
    "Bo",
    "Chidi",
    "Dana",
    "Emre",
    "Farah",
    "Goran",
    "Hana",
    "Ines",
    "Jonas",
    "Kofi",
    "Lena",
    "Mei",
    "Nils",
    "Olga",
    "Pablo",
    "Rosa",
    "Uma",
]
GOODS = [
    "notebooks",
    "pencils",
    "lamps",
    "mugs",
    "tickets",
    "cables",
    "sandwiches",
    "batteries",
    "posters",
    "plants",
    "candles",
]
PLACES = ["Abbey", "Bridge", "Castle", "Dock", "Elm", "Fort"]
PAIRS = list(itertools.combinations(PLACES, 2))
SERVICES = ["auth", "billing", "cache", "mail", "search", "upload"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
UNITS = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("hours", "minutes", 60),
    ("weeks", "days", 7),
    ("minutes", "seconds", 60),
    ("kilograms", "grams", 1000),
    ("GiB", "MiB", 1024),
    ("miles", "feet", 5280),
    ("pounds", "ounces", 16),
    ("days", "hours", 24),
    ("yards", "inches", 36),
)


def usd(cents: int) -> str:
    return f"${cents // 100}.{cents % 100:02d}"


def listed(items: Iterable[Any]) -> str:
    return ", ".join(str(item) for item in items)


def long_date(day: datetime.date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def fenced(language: str, lines: Iterable[str]) -> str:
    return "\n".join((f"```{language}", *lines, "```"))


# --- quantities and dates -----------------------------------------------------------


def shopping(d: Dice) -> Problem:
    who, (a, b) = d.pick(NAMES), d.some(GOODS, 2)
    n, m, p, q = d.between(2, 9), d.between(2, 9), 5 * d.between(5, 240), 5 * d.between(5, 240)
    total = n * p + m * q
    paid = (total // 1000 + d.between(1, 3)) * 1000
    one, two, change = f"{n} {a} at {usd(p)} each", f"{m} {b} at {usd(q)} each", paid - total
    prompt = d.pick(
        (
            f"{who} buys {one} and {two} and pays {usd(paid)}. How much change is due?",
            f"A receipt lists {one} and {two}. {who} hands over {usd(paid)}. What comes back?",
            f"How much of {usd(paid)} is left once {who} has paid for {one} and {two}?",
        )
    )
    steps = [
        f"The {a} cost {n} x {usd(p)} = {usd(n * p)}.",
        f"The {b} cost {m} x {usd(q)} = {usd(m * q)}.",
        f"Together that is {usd(total)}.",
        f"{usd(paid)} - {usd(total)} = {usd(change)}.",
    ]
    return Problem(prompt, usd(change), steps, f"{usd(total)} + {usd(change)} = {usd(paid)}.")


def conversion(d: Dice) -> Problem:
    (big, small, factor), n, rest = d.pick(UNITS), d.between(2, 40), d.between(2, 6)
    total, fact = n * factor + rest, f"The factor between {big} and {small} is {factor}."
    mixed, plain = f"{n} {big} and {rest} {small}", f"{total} {small}"
    if d.below(2):
        prompt = d.pick((f"Express {mixed} in {small}.", f"How many {small} are {mixed}?"))
        steps = [fact, f"{n} x {factor} = {n * factor}.", f"{n * factor} + {rest} = {total}."]
        return Problem(prompt, plain, steps, f"{total} divided by {factor} is {n}, remainder {rest}.")
    prompt = d.pick(
        (
            f"Write {plain} as whole {big} and {small}.",
            f"How many full {big} are in {plain}, and how many {small} are left over?",
        )
    )
    steps = [fact, f"{total} // {factor} = {n} full {big}.", f"{total} - {n} x {factor} = {rest} are left."]
    return Problem(prompt, mixed, steps, f"{n} x {factor} + {rest} = {total}.")


def date_after(d: Dice) -> Problem:
    start = datetime.date(d.between(1996, 2035), d.between(1, 12), d.between(1, 28))
    days, here, steps = d.between(20, 130), start, []
    end = start + datetime.timedelta(days)
    prompt = d.pick(
        (
            f"Which date is {days} days after {long_date(start)}?",
            f"A loan of {long_date(start)} runs for {days} days. On which date does it end?",
        )
    )
    while (here.year, here.month) != (end.year, end.month):
        jump = (here.replace(day=1) + datetime.timedelta(32)).replace(day=1) - here
        here += jump
        steps.append(f"{jump.days} days lead to {long_date(here)}; {(end - here).days} are left.")
    if here != end:
        steps.append(f"{(end - here).days} more days lead to {long_date(end)}.")
    check = (
        f"{days} days are {days // 7} weeks and {days % 7} days: {DAYS[start.weekday()]} to "
        f"{DAYS[end.weekday()]}, as in the calendar."
    )
    return Problem(prompt, long_date(end), steps, check)


# --- logic and counting -------------------------------------------------------------


def ordering(d: Dice) -> Problem:
    most, more = d.pick((("tallest", "taller"), ("oldest", "older"), ("fastest", "faster")))
    order = d.some(NAMES, d.between(4, 6))
    links = [f"{a} is {more} than {b}" for a, b in zip(order, order[1:])]
    place = d.between(1, len(order) - 2)
    rank = ("second", "third", "fourth", "fifth")[place - 1]
    steps = [f"Nobody is {more} than {order[0]}, so {order[0]} comes first."]
    steps += [f"{links[i]}, so {order[i + 1]} is number {i + 2}." for i in range(place)]
    prompt = f"{'. '.join(d.shuffled(links))}. Who is the {rank} {most}?"
    return Problem(prompt, order[place], steps, f"{' > '.join(order)} agrees with each sentence.")


def knights(d: Dice) -> Problem:
    """Three people who always lie or never do; drawn again until exactly one assignment fits."""
    fits: list[tuple[bool, ...]] = []
    while len(fits) != 1:
        people, steps, fits = d.some(NAMES, 3), [], []
        said = [(a, (a + d.between(1, 2)) % 3, d.below(2)) for a in range(3)]
        for honest in itertools.product((True, False), repeat=3):
            wrong = [a for a, b, is_same in said if honest[a] != (honest[a] == honest[b] if is_same else not honest[b])]
            row = listed(f"{who} {'honest' if is_so else 'lying'}" for who, is_so in zip(people, honest))
            steps.append(f"{row}: {f'what {people[wrong[0]]} says does not fit' if wrong else 'fits'}.")
            fits += [] if wrong else [honest]
    lines = [
        f"{people[a]} says: {people[b]} {'and I are of the same sort' if is_same else 'is a liar'}."
        for a, b, is_same in said
    ]
    prompt = f"Each of three people always tells the truth or always lies. {' '.join(lines)} Who is honest?"
    answer = listed(who for who, is_so in zip(people, fits[0]) if is_so) or "nobody"
    return Problem(prompt, answer, steps, "Exactly one of the eight cases fits all three sentences.")


def sets(d: Dice) -> Problem:
    both, only_a, only_b, none = (d.between(2, 30) for _ in range(4))
    a, b = d.pick((("tea", "coffee"), ("Python", "Rust"), ("chess", "football"), ("a bicycle", "a car")))
    total, in_a, in_b = both + only_a + only_b + none, only_a + both, only_b + both
    prompt = d.pick(
        (
            f"Of {total} people, {in_a} chose {a}, {in_b} chose {b} and {both} both. How many chose neither?",
            f"{total} forms: {in_a} tick {a}, {in_b} tick {b}, {both} tick both. How many tick none of the two?",
        )
    )
    steps = [
        f"At least one: {in_a} + {in_b} - {both} = {total - none}.",
        f"Neither: {total} - {total - none} = {none}.",
    ]
    return Problem(prompt, str(none), steps, f"{only_a} + {only_b} + {both} + {none} = {total}.")


def draw_two(d: Dice) -> Problem:
    n, m, (a, b) = d.between(2, 9), d.between(2, 9), d.some(("red", "blue", "green", "white"), 2)
    pairs, same_a, same_b = (n + m) * (n + m - 1), n * (n - 1), m * (m - 1)
    answer = Fraction(same_a + same_b, pairs)
    prompt = d.pick(
        (
            f"A bag holds {n} {a} and {m} {b} balls. Two are drawn without putting back. What is the probability "
            "that they have the same colour?",
            f"{n} {a} and {m} {b} cards are shuffled. How likely are the top two of one colour, as a fraction?",
        )
    )
    steps = [
        f"Ordered pairs in all: {n + m} x {n + m - 1} = {pairs}.",
        f"Both {a}: {n} x {n - 1} = {same_a}. Both {b}: {m} x {m - 1} = {same_b}.",
        f"({same_a} + {same_b}) / {pairs} = {answer}.",
    ]
    return Problem(prompt, str(answer), steps, f"Two colours: 2 x {n} x {m} / {pairs} = {1 - answer}.")


def route(d: Dice) -> Problem:
    """The shortest path among six places, none direct; drawn again until there is exactly one."""
    ways: list[tuple[int, list[str]]] = []
    while len(ways) < 2 or ways[0][0] == ways[1][0]:
        pairs = d.some((pair for pair in PAIRS if pair != (PLACES[0], PLACES[-1])), d.between(7, 9))
        roads = {pair: d.between(1, 12) for pair in pairs}
        ways = sorted((path_km(roads, path), path) for path in paths(roads, [PLACES[0]]))
    text, (km, best) = listed(f"{a}-{b} {km}" for (a, b), km in roads.items()), ways[0]
    prompt = d.pick(
        (
            f"Roads in km: {text}. What is the shortest way from {PLACES[0]} to {PLACES[-1]}?",
            f"A map has the roads {text} (km). Find the shortest path {PLACES[0]} to {PLACES[-1]}.",
        )
    )
    steps = [f"{'-'.join(path)} is {length} km." for length, path in ways[:5]]
    check = f"None of the {len(ways)} ways without a repeated place is shorter than {km} km."
    return Problem(prompt, f"{'-'.join(best)}, {km} km", steps, check)


def path_km(roads: dict[tuple[str, str], int], path: list[str]) -> int:
    return sum(roads[min(pair), max(pair)] for pair in zip(path, path[1:]))


def paths(roads: dict[tuple[str, str], int], path: list[str]) -> Iterator[list[str]]:
    """All ways that begin with `path`, repeat no place and end at the last of PLACES."""
    if path[-1] == PLACES[-1]:
        yield path
        return
    for a, b in roads:
        there = b if a == path[-1] else a if b == path[-1] else path[-1]
        if there not in path:
            yield from paths(roads, [*path, there])

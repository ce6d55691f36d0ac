"""Words that every flow shares: outcomes, checks, verdicts, and how a value becomes JSON.

A value of the kit is a frozen dataclass. `to_json` and `from_json` carry it to a
file and back; reading is strict, because a bundle may come from a stranger: an
unknown field, a wrong type, NaN, Infinity and a repeated key are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from kit.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_INVALID, EXIT_PASS, UsageError


class Outcome(enum.StrEnum):
    """What a check or a verdict says. The order of the members is from best to worst."""

    PASS = "PASS"
    REHEARSAL = "REHEARSAL"
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"
    INVALID = "INVALID"

    @property
    def exit_code(self) -> int:
        """REHEARSAL is 0: it only exists where the CPU was asked for by name."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    Outcome.PASS: EXIT_PASS,
    Outcome.REHEARSAL: EXIT_PASS,
    Outcome.INCONCLUSIVE: EXIT_INCONCLUSIVE,
    Outcome.FAIL: EXIT_FAIL,
    Outcome.INVALID: EXIT_INVALID,
}
_WORSE = {outcome: rank for rank, outcome in enumerate(Outcome)}

CLAIMS = ("environment", "native", "learning", "throughput", "integrity")


@dataclasses.dataclass(frozen=True)
class Check:
    """One question with its answer.

    id: claim and question, `native.kernel_ran`. found, expected, todo: sentences for
    a person; `todo` is empty where nothing needs doing. values: the raw numbers that
    decided. required: whether the check counts towards the verdict.
    """

    id: str
    outcome: Outcome
    found: str
    expected: str
    todo: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    required: bool = True

    @property
    def claim(self) -> str:
        return self.id.partition(".")[0]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The worst required outcome of a set of checks, and the checks.

    diagnosis: one word from `kit.gpu.diagnose.DIAGNOSES` where an environment was
    judged, else None.
    """

    outcome: Outcome
    checks: tuple[Check, ...]
    diagnosis: str | None = None

    @classmethod
    def of(cls, checks: Iterable[Check], diagnosis: str | None = None) -> Verdict:
        checks = tuple(checks)
        return cls(worst(check.outcome for check in checks if check.required), checks, diagnosis)

    def claim(self, name: str) -> Outcome:
        """The worst required outcome of one sub-claim; of all its checks where it has no required one."""
        checks = [check for check in self.checks if check.claim == name]
        return worst(check.outcome for check in [c for c in checks if c.required] or checks)

    def __str__(self) -> str:
        from kit.show import verdict_text

        return verdict_text(self)

    def _repr_html_(self) -> str:
        from kit.show import verdict_html

        return verdict_html(self)

    @property
    def findings(self) -> tuple[Check, ...]:
        """The checks that are not green, worst first."""
        red = [check for check in self.checks if check.outcome not in (Outcome.PASS, Outcome.REHEARSAL)]
        return tuple(sorted(red, key=lambda check: -_WORSE[check.outcome]))


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of `outcomes`; INCONCLUSIVE where there is none, since nothing was checked."""
    return max(outcomes, key=_WORSE.__getitem__, default=Outcome.INCONCLUSIVE)


def fields_of(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of `given`, such as the options of a command, are fields of `kind`; None leaves a field its default."""
    names = {field.name for field in dataclasses.fields(kind)}
    found = {name: value for name, value in given.items() if name in names and value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


# --- JSON ---------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Plain dicts, lists, strings, numbers, booleans and None; a float that is not finite is an error."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be written as JSON; record None and say why")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def dumps(value: Any, *, indent: int | None = 2) -> str:
    return json.dumps(to_json(value), indent=indent, ensure_ascii=False, allow_nan=False)


def loads(text: str | bytes) -> Any:
    """Strict `json.loads`. Raises ValueError on NaN, Infinity, 1e999, repeated keys, deep nesting."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_no_repeats)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def from_json(kind: Any, data: Any, where: str = "") -> Any:
    """`data` as a value of type `kind`. Raises UsageError naming the place that does not fit."""
    where = where or getattr(kind, "__name__", str(kind))
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        *others, last = [one for one in args if (one is type(None)) == (data is None)] or args
        for one in others:
            with contextlib.suppress(UsageError):
                return from_json(one, data, where)
        return from_json(last, data, where)
    if dataclasses.is_dataclass(kind):
        return _from_dataclass(kind, data, where)
    if origin is tuple:
        _expect(isinstance(data, list), where, "a list", data)
        kinds = [args[0]] * len(data) if args[-1] is Ellipsis else args
        _expect(len(kinds) == len(data), where, f"{len(kinds)} items", data)
        return tuple(from_json(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, data)))
    if kind is Mapping or origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        _expect(isinstance(data, dict), where, "an object", data)
        return {key: from_json(args[1], item, f"{where}.{key}") for key, item in data.items()}
    if kind is Any:
        return data
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        _expect(data in [member.value for member in kind], where, "one of " + ", ".join(kind), data)
        return kind(data)
    if kind is float:
        _expect(isinstance(data, (int, float)) and not isinstance(data, bool), where, "a number", data)
        return float(data)
    _expect(type(data) is kind, where, f"a value of type {getattr(kind, '__name__', kind)}", data)
    return data


def _from_dataclass(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, "an object", data)
    fields, hints = _fields(kind)
    unknown = sorted(set(data) - set(fields))
    _expect(not unknown, where, "only the fields " + ", ".join(fields), unknown)
    missing = [
        name
        for name, field in fields.items()
        if name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    _expect(not missing, where, "the fields " + ", ".join(missing), list(data))
    return kind(**{name: from_json(hints[name], item, f"{where}.{name}") for name, item in data.items()})


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, dataclasses.Field], dict[str, Any]]:
    """Fields and types of a record; a bundle holds thousands of the same kind."""
    return {field.name: field for field in dataclasses.fields(kind)}, typing.get_type_hints(kind)


def _expect(is_so: bool, where: str, expected: str, found: Any) -> None:
    if not is_so:
        raise UsageError(f"{where}: {str(found)[:120]!r}", expected=expected)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found

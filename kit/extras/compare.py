"""Are two sets of runs the same, slower, faster, or not comparable?

The process is the unit: steps of one process share its placement, clocks and memory, so
pooling them finds differences that are not there. The rule's own error rates stand in
docs/evidence-tests.md. Nothing is decided from fewer than three processes a side.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.errors import BundleInvalid, UsageError
from kit.evidence.contents import Evidence
from kit.evidence.verify import load
from kit.records import Outcome, loads
from kit.show import visible

# Two-sided 95 % quantiles of Student's t by degrees of freedom (Abramowitz and Stegun, table 26.10); between two of
# them the quantile goes with the inverse of the freedom. Three processes a side have two at least.
_T95 = {
    2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 9: 2.2622, 10: 2.2281, 12: 2.1788,
    15: 2.1314, 20: 2.0860, 30: 2.0423, 60: 2.0003, 120: 1.9799, math.inf: 1.9600,
}  # fmt: skip


def t_quantile(freedom: float) -> float:
    above = min(known for known in _T95 if known >= freedom)
    if above in (freedom, 2):
        return _T95[above]
    below = max(known for known in _T95 if known < freedom)
    share = (1 / below - 1 / freedom) / (1 / below - 1 / above)
    return _T95[below] + share * (_T95[above] - _T95[below])


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """(mean of b - mean of a, half of its 95 % interval) for unequal variances.

    Degrees of freedom after Welch and Satterthwaite: Welch, Biometrika 34 (1947) 28.
    """
    shares = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    middle, total = statistics.fmean(b) - statistics.fmean(a), sum(shares)
    if total == 0:
        return middle, 0.0
    freedom = total**2 / (shares[0] ** 2 / (len(a) - 1) + shares[1] ** 2 / (len(b) - 1))
    return middle, t_quantile(freedom) * math.sqrt(total)


PRIMARY = "steady_samples_per_s"
EXIT_CODES = {"same": 0, "improved": 0, "regression": 1, "inconclusive": 3, "not_comparable": 3}


@dataclasses.dataclass(frozen=True)
class Side:
    """The processes of one setup. keys: what must agree; notes: what may differ.

    values, run_ids, started: one of each process, in the order they were given.
    """

    values: tuple[float, ...]
    run_ids: tuple[str, ...]
    started: tuple[str, ...]
    keys: Mapping[str, Any]
    notes: Mapping[str, Any]
    unit: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """outcome: 'same', 'regression', 'improved', 'inconclusive' or 'not_comparable'.

    ratio: B over A of the geometric means, low and high its 95 % interval. runs_needed: a
    side, to decide at the spread seen; None where decided or where no number would.
    """

    outcome: str
    because: tuple[str, ...]
    runs_needed: int | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    metric: str = PRIMARY

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


def text(found: Comparison) -> str:
    """What `kit compare` prints."""
    lines = [f"{found.outcome.replace('_', ' ').upper()} by {found.metric}"]
    lines += [f"  {line}" for line in found.because]
    if found.runs_needed:
        lines.append(f"  To do: {found.runs_needed} processes a side, run in turns (A B A B)")
    return visible("\n".join(lines))


# A change of less than this is not called one, however sure it is: a policy, not a fact.
LIMIT = 0.05
MIN_PROCESSES = 3
WANTED_PROCESSES = 5
MAX_RUNS = 100


def read_side(bundles: Sequence[tuple[Evidence, Mapping[str, bytes]]]) -> Side | Comparison:
    """One side from its verified bundles, a process each; a Comparison where they cannot stand for one setup.

    Raises BundleInvalid where a bundle has no positive number to compare, or stands there twice.
    """
    described = [(evidence, *_describe(evidence, files)) for evidence, files in bundles]
    for evidence, _, _ in described:
        if evidence.verdict.outcome not in (Outcome.PASS, Outcome.REHEARSAL):
            return _not_comparable([f"{evidence.run_id} is {evidence.verdict.outcome} itself"])
    keys = described[0][1]
    differing = sorted({name for _, other, _ in described for name in _differing(keys, other)})
    if differing:
        return _not_comparable([f"one side mixes setups: {', '.join(differing)}"])
    numbers = [{number.name: number for number in evidence.numbers} for evidence, _, _ in described]
    _refuse_repeats([evidence.run_id for evidence, _, _ in described])
    for (evidence, _, _), row in zip(described, numbers, strict=True):
        if PRIMARY not in row or not _positive(row[PRIMARY].value):
            raise BundleInvalid(f"{evidence.run_id} has no positive {PRIMARY}", expected="a rate above 0")
    return Side(
        values=tuple(float(row[PRIMARY].value) for row in numbers),
        run_ids=tuple(evidence.run_id for evidence, _, _ in described),
        started=tuple(evidence.started_utc for evidence, _, _ in described),
        keys=keys | {f"definition of {PRIMARY}": numbers[0][PRIMARY].definition},
        notes=described[0][2],
        unit=numbers[0][PRIMARY].unit,
    )


def compare_folders(a: Path, b: Path) -> Comparison:
    """What `kit compare A B` finds: a side is a bundle, or a folder of bundles; each is verified first."""
    return compare(*(read_side([load(path) for path in _bundles(side)]) for side in (a, b)))


def _bundles(path: Path) -> list[Path]:
    if path.is_file() or (path / "manifest.json").is_file():
        return [path]
    found = sorted(child.parent for child in path.glob("*/manifest.json")) + sorted(path.glob("*.zip"))
    if not found:
        expected = "a bundle, or a folder of bundles"
        raise UsageError(f"{path} holds no bundle", expected=expected, todo="correct the path")
    return found


def compare(a: Side | Comparison, b: Side | Comparison) -> Comparison:
    """B against A. Raises BundleInvalid where a run stands on both sides."""
    if isinstance(a, Comparison):
        return a
    if isinstance(b, Comparison):
        return b
    _refuse_repeats([*a.run_ids, *b.run_ids])
    differing = [
        f"{name}: {_words(a.keys.get(name))} against {_words(b.keys.get(name))}" for name in _differing(a.keys, b.keys)
    ]
    if a.unit != b.unit:
        differing.append(f"unit {a.unit} against {b.unit}")
    if differing:
        return _not_comparable(differing)
    notes = [
        f"{name} differs: {a.notes.get(name)} against {b.notes.get(name)}" for name in _differing(a.notes, b.notes)
    ]
    return _judge(a, b, [*notes, *_order_notes(a, b), *_outlier_notes(a), *_outlier_notes(b)])


def _judge(a: Side, b: Side, notes: list[str]) -> Comparison:
    n = min(len(a.values), len(b.values))
    if n < MIN_PROCESSES:
        because = (
            f"{len(a.values)} against {len(b.values)} processes; {MIN_PROCESSES} a side are the least, "
            f"{WANTED_PROCESSES} are wanted"
        )
        ratio = math.exp(_mean_log(b.values) - _mean_log(a.values))
        return Comparison("inconclusive", (because, *notes), WANTED_PROCESSES, ratio)
    middle, half = welch([math.log(v) for v in a.values], [math.log(v) for v in b.values])
    ratio, low, high = math.exp(middle), math.exp(middle - half), math.exp(middle + half)
    outcome = decide(ratio, low, high)
    sizes = f"n = {len(a.values)} and {len(b.values)}"
    found = f"B is {ratio:.3f} of A (95 % interval {low:.3f} to {high:.3f}), {sizes}"
    needed = None
    if outcome == "inconclusive":
        needed = runs_needed(a.values, b.values)
        notes.insert(
            0,
            f"{needed} processes a side would decide at this spread"
            if needed
            else "it lies on the limit: no number of runs would decide",
        )
    if n < WANTED_PROCESSES:
        notes.append(f"fewer than {WANTED_PROCESSES} processes a side")
    return Comparison(outcome, (found, *notes), needed, ratio, low, high)


def decide(ratio: float, low: float, high: float) -> str:
    """The rule: sure that it is lower and at least 5 % lower; mirrored; or the whole interval within 5 %."""
    if high < 1 and ratio <= 1 - LIMIT:
        return "regression"
    if low > 1 and ratio >= 1 + LIMIT:
        return "improved"
    if low >= 1 - LIMIT and high <= 1 + LIMIT:
        return "same"
    return "inconclusive"


def runs_needed(a: Sequence[float], b: Sequence[float]) -> int | None:
    """Processes a side with which the rule would decide, at the ratio and spread seen; None up to 100."""
    logs = [math.log(v) for v in a], [math.log(v) for v in b]
    middle = statistics.fmean(logs[1]) - statistics.fmean(logs[0])
    variance = (statistics.variance(logs[0]) + statistics.variance(logs[1])) / 2
    for n in range(MIN_PROCESSES, MAX_RUNS + 1):
        half = t_quantile(2 * n - 2) * math.sqrt(2 * variance / n)
        if decide(math.exp(middle), math.exp(middle - half), math.exp(middle + half)) != "inconclusive":
            return n
    return None


# --- parts --------------------------------------------------------------------------


def _describe(evidence: Evidence, files: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what must agree, what may differ), from raw/training.json and facts/begin.json."""
    training = _object(files, "raw/training.json")
    facts = _object(files, "facts/begin.json")
    torch, driver = facts.get("torch") or {}, facts.get("driver") or {}
    config = {name: value for name, value in (training.get("config") or {}).items() if name != "seed"}
    keys = {
        "device": evidence.device,
        "GPU": _gpus(torch),
        "power limit": training.get("power_limit_w") or (training.get("telemetry") or {}).get("power_limit_w"),
        "dataset": training.get("dataset_sha256"),
        "parameters": training.get("parameters"),
        **{f"config.{name}": value for name, value in config.items()},
    }
    notes = {"kit": evidence.kit_version, "torch": torch.get("version"), "driver": driver.get("version")}
    return keys, notes


def _gpus(torch: Mapping[str, Any]) -> str | None:
    parts = ("name", "compute_capability", "memory_bytes", "mig_profile")
    gpus = [[_words(gpu[part]) for part in parts if gpu.get(part)] for gpu in torch.get("gpus") or ()]
    return "; ".join(", ".join(gpu) for gpu in gpus) or None


def _words(value: Any) -> str:
    """As a person writes it: 'none', '9.0' for a compute capability."""
    if isinstance(value, (list, tuple)):
        return ".".join(map(str, value))
    return "none" if value is None else str(value)


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    value = loads(files[name]) if name in files else {}
    return value if isinstance(value, dict) else {}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*a, *b} if a.get(name) != b.get(name))


def _refuse_repeats(run_ids: Sequence[str]) -> None:
    repeated = sorted({run_id for run_id in run_ids if run_ids.count(run_id) > 1})
    if repeated:
        raise BundleInvalid(
            f"the same run twice: {', '.join(repeated)}",
            expected="different runs",
            todo="a copy is no second run",
        )


def _not_comparable(because: Sequence[str]) -> Comparison:
    return Comparison("not_comparable", tuple(because))


def _order_notes(a: Side, b: Side) -> Iterator[str]:
    if a.started and b.started and (max(a.started) < min(b.started) or max(b.started) < min(a.started)):
        yield "one side ran wholly before the other: heat and load may differ; run them in turns (ABAB)"
    for name, side in (("A", a), ("B", b)):
        ordered = [value for _, value in sorted(zip(side.started, side.values, strict=True))]
        half = len(ordered) // 2
        if half >= 2:
            drift = math.exp(_mean_log(ordered[-half:]) - _mean_log(ordered[:half])) - 1
            if abs(drift) > 0.03:
                yield f"side {name} drifts by {100 * drift:.1f} % from its earlier to its later half"


def _outlier_notes(side: Side) -> Iterator[str]:
    """A process far from the others is named and stays in."""
    if len(side.values) >= 4:
        middle = statistics.median(side.values)
        spread = statistics.median(abs(value - middle) for value in side.values)
        for run_id, value in zip(side.run_ids, side.values, strict=True):
            if abs(value - middle) > max(6 * spread, LIMIT * middle):
                away = f"{100 * (value / middle - 1):+.0f} %"
                yield f"{run_id} lies {away} from its side's median; it counts like the others"


def _mean_log(values: Sequence[float]) -> float:
    return statistics.fmean(math.log(value) for value in values)


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0

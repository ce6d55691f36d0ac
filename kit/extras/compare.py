"""Are two sets of runs the same, slower, faster, or not comparable?

The process is the unit: steps of one process share its placement, clocks and memory, so
pooling them finds differences that are not there. The rule's own error rates stand in
docs/evidence-tests.md. Nothing is decided from fewer than three processes a side.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.errors import BundleInvalid, UsageError
from kit.evidence.contents import Evidence, one
from kit.evidence.verify import load
from kit.gpu.facts import Driver, Gpu, MachineFacts, Torch
from kit.records import Outcome
from kit.show import visible
from kit.train.steps import TrainingRun
from kit.units import dotted

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
    """The processes of one setup. rates: by the id of the run; started: of each, in the same order. keys: what must
    agree; notes: what may differ."""

    rates: Mapping[str, float]
    started: tuple[str, ...]
    keys: Mapping[str, Any]
    notes: Mapping[str, Any]


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


def compare_folders(a: Path, b: Path) -> Comparison:
    """What `kit compare A B` finds: a side is a bundle, or a folder of bundles; each is verified first."""
    sides = []
    for path in (a, b):
        found = [*sorted(child.parent for child in path.glob("*/manifest.json")), *sorted(path.glob("*.zip"))]
        if path.is_file() or (path / "manifest.json").is_file():
            found = [path]
        if not found:
            expected = "a bundle, or a folder of bundles"
            raise UsageError(f"{path} holds no bundle", expected=expected, todo="correct the path")
        sides.append(read_side([load(bundle) for bundle in found]))
    return compare(*sides)


def read_side(bundles: Sequence[tuple[Evidence, Mapping[str, bytes]]]) -> Side | Comparison:
    """One side from its verified bundles, a process each; a Comparison where they cannot stand for one setup.

    Raises BundleInvalid where a bundle has no positive number to compare, or stands there twice.
    """
    _refuse_repeats([evidence.run_id for evidence, _ in bundles])
    rates, started, described = {}, [], []
    for evidence, files in bundles:
        if evidence.verdict.outcome not in (Outcome.PASS, Outcome.REHEARSAL):
            return Comparison("not_comparable", (f"{evidence.run_id} is {evidence.verdict.outcome} itself",))
        number = next((number for number in evidence.numbers if number.name == PRIMARY), None)
        if number is None or not (number.value or 0) > 0:
            raise BundleInvalid(f"{evidence.run_id} has no positive {PRIMARY}", expected="a rate above 0")
        run, facts = one(files, "raw/training.json", TrainingRun), one(files, "facts/begin.json", MachineFacts)
        torch, driver = (facts and facts.torch) or Torch(), (facts and facts.driver) or Driver()
        own = {
            "device": evidence.device,
            "GPU": "; ".join(map(gpu_words, torch.gpus)) or None,
            "power limit": run.telemetry and run.telemetry.power_limit_w,
            "dataset": run.dataset_sha256,
            "parameters": run.parameters,
            "unit": number.unit,
            f"definition of {PRIMARY}": number.definition,
            **{f"config.{name}": value for name, value in vars(run.config).items() if name != "seed"},
        }
        described.append((own, {"kit": evidence.kit_version, "torch": torch.version, "driver": driver.version}))
        rates[evidence.run_id] = float(number.value)
        started.append(evidence.started_utc)
    keys, notes = described[0]
    if differing := set().union(*(_differing(keys, other) for other, _ in described)):
        return Comparison("not_comparable", (f"one side mixes setups: {', '.join(sorted(differing))}",))
    return Side(rates, tuple(started), keys, notes)


def gpu_words(gpu: Gpu) -> str:
    """A card as a person writes it, '9.0' for a compute capability."""
    parts = (gpu.name, gpu.compute_capability and dotted(gpu.compute_capability), gpu.memory_bytes, gpu.mig_profile)
    return ", ".join(str(part) for part in parts if part)


def compare(a: Side | Comparison, b: Side | Comparison) -> Comparison:
    """B against A. Raises BundleInvalid where a run stands on both sides."""
    if isinstance(a, Comparison):
        return a
    if isinstance(b, Comparison):
        return b
    _refuse_repeats([*a.rates, *b.rates])
    told = {kind: [] for kind in ("keys", "notes")}
    for kind, lines in told.items():
        left, right = getattr(a, kind), getattr(b, kind)
        for name in sorted(_differing(left, right)):
            values = ["none" if side.get(name) is None else str(side[name]) for side in (left, right)]
            lines.append(f"{name}{': ' if kind == 'keys' else ' differs: '}{' against '.join(values)}")
    if told["keys"]:
        return Comparison("not_comparable", tuple(told["keys"]))
    notes = [*told["notes"], *_order_notes(a, b), *_outlier_notes(a), *_outlier_notes(b)]
    sides = (tuple(a.rates.values()), tuple(b.rates.values()))
    counts = tuple(map(len, sides))
    if min(counts) < MIN_PROCESSES:
        why = f"{counts[0]} against {counts[1]} processes; {MIN_PROCESSES} a side are the least, "
        why += f"{WANTED_PROCESSES} are wanted"
        middles = tuple(map(statistics.geometric_mean, sides))
        return Comparison("inconclusive", (why, *notes), WANTED_PROCESSES, middles[1] / middles[0])
    middle, half = welch(*(tuple(map(math.log, side)) for side in sides))
    ratio, low, high = math.exp(middle), math.exp(middle - half), math.exp(middle + half)
    outcome, needed = decide(ratio, low, high), None
    because = [f"B is {ratio:.3f} of A (95 % interval {low:.3f} to {high:.3f}), n = {counts[0]} and {counts[1]}"]
    if outcome == "inconclusive":
        needed = runs_needed(*sides)
        many = f"{needed} processes a side would decide at this spread"
        because.append(many if needed else "it lies on the limit: no number of runs would decide")
    if min(counts) < WANTED_PROCESSES:
        notes.append(f"fewer than {WANTED_PROCESSES} processes a side")
    return Comparison(outcome, (*because, *notes), needed, ratio, low, high)


def decide(ratio: float, low: float, high: float) -> str:
    """The rule: sure that it is lower and at least 5 % lower; mirrored; or the whole interval within 5 %."""
    if high < 1 and ratio <= 1 - LIMIT:
        return "regression"
    if low > 1 and ratio >= 1 + LIMIT:
        return "improved"
    return "same" if low >= 1 - LIMIT and high <= 1 + LIMIT else "inconclusive"


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


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> set[str]:
    return {name for name in {*a, *b} if a.get(name) != b.get(name)}


def _refuse_repeats(run_ids: Sequence[str]) -> None:
    if repeated := sorted({run_id for run_id in run_ids if run_ids.count(run_id) > 1}):
        raise BundleInvalid(
            f"the same run twice: {', '.join(repeated)}",
            expected="different runs",
            todo="a copy is no second run",
        )


def _order_notes(a: Side, b: Side) -> Iterator[str]:
    if max(a.started) < min(b.started) or max(b.started) < min(a.started):
        yield "one side ran wholly before the other: heat and load may differ; run them in turns (ABAB)"
    for name, side in (("A", a), ("B", b)):
        ordered = [rate for _, rate in sorted(zip(side.started, side.rates.values(), strict=True))]
        if (half := len(ordered) // 2) >= 2:
            drift = statistics.geometric_mean(ordered[-half:]) / statistics.geometric_mean(ordered[:half]) - 1
            if abs(drift) > 0.03:
                yield f"side {name} drifts by {100 * drift:.1f} % from its earlier to its later half"


def _outlier_notes(side: Side) -> Iterator[str]:
    """A process far from the others is named and stays in."""
    middle = statistics.median(side.rates.values())
    spread = statistics.median(abs(rate - middle) for rate in side.rates.values())
    for run_id, rate in side.rates.items():
        if len(side.rates) >= 4 and abs(rate - middle) > max(6 * spread, LIMIT * middle):
            away = f"{100 * (rate / middle - 1):+.0f} %"
            yield f"{run_id} lies {away} from its side's median; it counts like the others"

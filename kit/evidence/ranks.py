"""What a bundle says of several GPUs: the checks of its ranks, and the figures of its scaling sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kit.evidence.model import Number
from kit.evidence.raw import lines, one, parsed
from kit.gpu.specs import peak_flop_per_s
from kit.records import Check, from_json, loads
from kit.scale.links import AllReduce, Topology, best, ring_bytes_per_s
from kit.scale.ranks import Rank, RankRecord, RanksRun, folder_name
from kit.scale.table import Scaling, from_csv
from kit.scale.verdict import judge_ranks
from kit.train.config import DATASHEET_DTYPES
from kit.train.metrics import StepRecord, TelemetrySample, TrainingRun


def rank_checks(files: Mapping[str, bytes]) -> Iterator[Check]:
    """Every check of the ranks; none where the bundle holds no ranks."""
    if "raw/ranks.json" not in files:
        return
    run = one(files, "raw/ranks.json", RanksRun)
    ranks = {number: rank for number in range(run.world_size) if (rank := _rank(files, number))}
    names = {rank.run.device_name for rank in ranks.values() if rank.run}
    peak = peak_flop_per_s(min(names), DATASHEET_DTYPES[run.config.dtype]) if len(names) == 1 else None
    yield from judge_ranks(run, ranks, peak_flop_per_s=peak)


def _rank(files: Mapping[str, bytes], number: int) -> Rank | None:
    folder = f"raw/{folder_name(number)}/"
    if not any(name.startswith(folder) for name in files):
        return None
    return Rank(
        one(files, f"{folder}rank.json", RankRecord),
        one(files, f"{folder}training.json", TrainingRun),
        lines(files, f"{folder}steps.jsonl", StepRecord),
        lines(files, f"{folder}telemetry.jsonl", TelemetrySample),
    )


def scaling_numbers(files: Mapping[str, bytes]) -> Iterator[Number]:
    """Efficiency, rate and exposed communication of each row, and the best all-reduce."""
    if "raw/scaling.json" not in files:
        return
    told = parsed("raw/scaling.json", lambda: loads(files["raw/scaling.json"]))
    rows = parsed("raw/scaling.csv", lambda: from_csv(files["raw/scaling.csv"].decode()))
    scaling = Scaling(parsed("raw/scaling.json", lambda: str(told["device_name"])), rows)
    for row in scaling.rows:
        where = f"{row.batch_size} × {row.seq_len} each, {row.dtype}"
        if row.world_size == 1:
            yield Number(
                "scaling_base_tokens_per_s",
                row.tokens_per_s,
                "tokens/s",
                f"one rank alone, {where}",
                n=len(row.block_step_s),
                reason=row.reason,
            )
            continue
        where = f"{row.world_size} ranks, {where}, {row.parallel}"
        name, efficiency = f"{row.mode}_scaling_{row.world_size}_ranks", scaling.efficiency(row)
        low, high = (efficiency.q1, efficiency.q3) if efficiency else (None, None)
        yield Number(
            f"{name}_efficiency",
            efficiency.median if efficiency else None,
            "1",
            f"tokens/s over {row.world_size} times those of one; {where}; spread: quartiles",
            n=len(row.block_step_s) or None,
            low=low,
            high=high,
            reason=None if efficiency else row.reason or "not measured",
        )
        yield Number(
            f"{name}_tokens_per_s",
            row.tokens_per_s,
            "tokens/s",
            where,
            n=len(row.block_step_s) or None,
            reason=row.reason,
        )
    yield from _all_reduce(
        parsed("raw/scaling.json", lambda: from_json(tuple[AllReduce, ...], told["all_reduce"])),
        parsed("raw/scaling.json", lambda: from_json(Topology | None, told["topology"])),
    )


def _all_reduce(rows: tuple[AllReduce, ...], topology: Topology | None) -> Iterator[Number]:
    top = best(rows)
    if top is None:
        return
    yield Number(
        "all_reduce_bus_bytes_per_s",
        top.bus_bytes_per_s,
        "B/s",
        f"best of {len(rows)} sizes, {top.size_bytes} bytes on {top.world_size} ranks: size / time × 2(n-1)/n",
        n=len(top.times_s),
    )
    if topology is None:
        return
    limit = ring_bytes_per_s(topology, top.world_size)
    yield Number(
        "link_bytes_per_s",
        limit,
        "B/s",
        "what one GPU can send to the others, as NVML tells the links",
        reason=None if limit else "NVML does not tell all of it",
    )

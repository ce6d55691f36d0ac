"""What a bundle says of several GPUs: the checks of its ranks, and the figures of its scaling sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kit.evidence.contents import Number, lines, one, parsed
from kit.extras.scale.ranks import (
    COMPLETE,
    AllReduce,
    Rank,
    RankRecord,
    RanksRun,
    Scaling,
    Topology,
    best,
    folder_name,
    from_csv,
    global_losses,
    ring_bytes_per_s,
)
from kit.records import Check, Outcome, from_json, loads, worst
from kit.train.config import TrainConfig, weight_tensors
from kit.train.judge_training import judge_training
from kit.train.steps import StepRecord, TelemetrySample, TrainingRun

# Did every rank train natively, on a GPU of its own, and did they train one model together?
#
# Decided from records alone. What is asked of one process is asked of each rank, by the same judges,
# and said once for all; a rank that falls short is named.

# Largest difference of a global batch's loss from one device's, relative to it (absolute below 1): sums of another
# order in float32, and products rounded to 11 or 8 bits.
LOSS_LIMITS = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 1e-2}
# Measured: 41 copies of 1.69 MB in all for GPT-2's 148 tensors in one step, 11.4 kB each (torch 2.11, H200, 2026-11).
FSDP_TABLE_BYTES = 16_384
# Asked of one process only: a repetition, and the CPU's losses, which here are one device's.
_NOT_ASKED = ("native.replay", "native.cpu_agreement")
AGAIN = "python -m kit train --gpus {count}"


def check(
    id: str,
    is_good: bool | None,
    found: str,
    expected: str,
    *,
    todo: str = "",
    values: Mapping[str, Any] | None = None,
) -> Check:
    """is_good: None where the evidence is missing or too weak."""
    outcome = {True: Outcome.PASS, False: Outcome.FAIL, None: Outcome.INCONCLUSIVE}[is_good]
    return Check(id, outcome, found, expected, todo if is_good is False else "", values or {})


def gpu_check(config: TrainConfig, *args: Any, **more: Any) -> Check:
    """A rehearsal claims nothing about a GPU, so nothing is missing there; what contradicts the run is FAIL."""
    made = check(*args, **more)
    if config.device == "cuda" or made.outcome is Outcome.FAIL:
        return made
    return dataclasses.replace(made, outcome=Outcome.REHEARSAL, todo="")


def judge_ranks(run: RanksRun, ranks: Mapping[int, Rank]) -> tuple[Check, ...]:
    """All checks of a run of several ranks. ranks: what each left, by its number; those that left nothing are absent."""
    made = (
        _complete(run),
        _present(run, ranks),
        _own_device(run, ranks),
        _sum(run, ranks),
        _same_weights(run, ranks),
        _agreement(run, ranks),
        *_each(run, ranks),
    )
    settle = AGAIN.format(count=run.world_size)
    return tuple(dataclasses.replace(c, todo=settle) if c.outcome is Outcome.INCONCLUSIVE else c for c in made)


def _complete(run: RanksRun) -> Check:
    return check(
        "integrity.ranks_complete",
        run.state == COMPLETE,
        run.reason or f"{run.world_size} ranks ended well",
        "every rank to its end, with no error",
        todo="see to the rank that is named, and run again",
    )


def _present(run: RanksRun, ranks: Mapping[int, Rank]) -> Check:
    absent = [rank for rank in range(run.world_size) if rank not in ranks or ranks[rank].record is None]
    strange = [
        rank
        for rank, left in sorted(ranks.items())
        if left.record and (left.record.rank != rank or left.record.world_size != run.world_size)
    ]
    found = f"rank {_list(absent)} left no record" if absent else f"{run.world_size} of {run.world_size} ranks"
    if strange:
        found = f"the record of rank {_list(strange)} is of another rank or another run"
    return check(
        "native.ranks_present",
        not absent and not strange,
        found,
        f"a record of each of the {run.world_size} ranks",
        todo="see why this rank did not start, or was ended",
    )


def _own_device(run: RanksRun, ranks: Mapping[int, Rank]) -> Check:
    """Each rank's device by UUID: its own alone, and at the end the one that it took at the start."""
    config, problems, seen = run.config, [], {}
    for rank, left in sorted(ranks.items()):
        record = left.record
        if record is None:
            continue
        if record.error:
            problems.append(f"rank {rank}: {record.error}")
        if record.device != config.device:
            problems.append(f"rank {rank} is on {record.device}")
        if left.run and left.run.config.device != config.device:
            problems.append(f"rank {rank} trained on {left.run.config.device}")
        if record.device_uuid and record.trained_uuid and record.device_uuid != record.trained_uuid:
            problems.append(f"rank {rank} took one GPU and trained on another")
        uuid = record.trained_uuid or record.device_uuid
        if uuid in seen:
            problems.append(f"ranks {seen[uuid]} and {rank} are on the same GPU")
        if uuid:
            seen[uuid] = rank
    is_good: bool | None = not problems
    if is_good and config.device == "cuda" and len(seen) < run.world_size:
        is_good = None
    found = "; ".join(problems[:3])
    if not found:
        found = f"{len(seen)} GPUs told apart by UUID" if config.device == "cuda" else f"{len(ranks)} ranks on the CPU"
    return gpu_check(
        config,
        "native.ranks_devices",
        is_good,
        found,
        "each rank on a GPU of its own, from start to end",
        todo="see CUDA_VISIBLE_DEVICES and LOCAL_RANK of the rank that is named",
    )


def _sum(run: RanksRun, ranks: Mapping[int, Rank]) -> Check:
    wrong, told = [], 0
    for rank, left in sorted(ranks.items()):
        if left.record and left.record.sum_expected is not None:
            told += 1
            # None beside an expectation was not finite.
            if not left.record.sum_found == left.record.sum_expected == run.world_size * (run.world_size + 1) / 2:
                wrong.append(rank)
    is_good = False if wrong else True if told == run.world_size else None
    found = f"the sum is wrong on rank {_list(wrong)}" if wrong else f"right on {told} of {run.world_size} ranks"
    return check(
        "native.ranks_all_reduce",
        is_good,
        found,
        "the sum of what each rank contributes, at every place, on every rank",
        todo="a link or the collective library is at fault: try NCCL_P2P_DISABLE=1, and see the links",
    )


def _same_weights(run: RanksRun, ranks: Mapping[int, Rank]) -> Check:
    digests = {
        rank: left.record.parameters_sha256
        for rank, left in sorted(ranks.items())
        if left.record and left.record.parameters_sha256
    }
    most = max(digests.values(), key=list(digests.values()).count, default=None)
    apart = [rank for rank, digest in digests.items() if digest != most]
    is_good = False if apart else True if len(digests) == run.world_size else None
    found = (
        f"rank {_list(apart)} ended with other weights"
        if apart
        else f"the same bits on {len(digests)} of {run.world_size} ranks"
    )
    return check(
        "learning.ranks_equal",
        is_good,
        found,
        "the same weights on every rank after the last step",
        todo="gradients are not exchanged, or the ranks began with different weights",
        values={"sha256": most},
    )


def _agreement(run: RanksRun, ranks: Mapping[int, Rank]) -> Check:
    limit = LOSS_LIMITS[run.config.dtype]
    first = ranks.get(0)
    reference = first.record.reference_losses if first and first.record else ()
    losses = global_losses([ranks[rank] for rank in sorted(ranks)]) if len(ranks) == run.world_size else ()
    pairs = list(zip(losses, reference))
    # Written so that NaN and a missing loss are apart.
    apart = [
        step
        for step, (ours, theirs) in enumerate(pairs, start=1)
        if ours is None or not abs(ours - theirs) <= limit * max(1.0, abs(theirs))
    ]
    expected = f"within {limit:g} of one device's losses on the same global batches"
    if not pairs:
        skipped = first.record.reference_skipped if first and first.record else None
        return check("learning.ranks_agreement", None, skipped or "not measured", expected)
    largest = max((abs(a - b) / max(1.0, abs(b)) for a, b in pairs if a is not None), default=None)
    found = f"apart at step {apart[0]}" if apart else f"at most {largest:.1e} apart over {len(pairs)} steps"
    return check(
        "learning.ranks_agreement",
        not apart,
        found,
        expected,
        todo="gradients are scaled or exchanged wrongly, or the ranks read other data",
        values={"steps": len(pairs), "largest_difference": largest},
    )


def _each(run: RanksRun, ranks: Mapping[int, Rank]) -> Iterator[Check]:
    """Every question to one process, asked of each rank: the worst answer, with the ranks that gave it."""
    answers: dict[str, dict[int, Check]] = {}
    # FSDP2 sends tables of addresses for the tensors that it gathers and scatters; DDP sends nothing.
    tables = FSDP_TABLE_BYTES * weight_tensors(run.config.shape) if run.parallel == "fsdp" else 0
    for rank, left in sorted(ranks.items()):
        if left.run is not None:
            for one in judge_training(left.run, left.steps, left.samples, scheme_copy_bytes=tables):
                if one.id not in _NOT_ASKED:
                    answers.setdefault(one.id, {})[rank] = one
    for id, by_rank in answers.items():
        yield _merged(id, by_rank, run.world_size)


def _merged(id: str, by_rank: Mapping[int, Check], world_size: int) -> Check:
    outcome = worst(one.outcome for one in by_rank.values())
    those = [rank for rank, one in by_rank.items() if one.outcome is outcome]
    told = by_rank[those[0]]
    is_fine = outcome in (Outcome.PASS, Outcome.REHEARSAL)
    count = f"{len(by_rank)} of {world_size} ranks"
    found = f"{count}, rank {those[0]}: {told.found}" if is_fine else f"rank {_list(those)}: {told.found}"
    if is_fine and len(by_rank) < world_size:
        outcome = Outcome.INCONCLUSIVE
    claim, question = id.split(".", 1)
    return dataclasses.replace(told, id=f"{claim}.ranks_{question}", outcome=outcome, found=found)


def _list(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def rank_checks(files: Mapping[str, bytes]) -> Iterator[Check]:
    """Every check of the ranks; none where the bundle holds no ranks."""
    if "raw/ranks.json" not in files:
        return
    run = one(files, "raw/ranks.json", RanksRun)
    ranks = {number: rank for number in range(run.world_size) if (rank := _rank(files, number))}
    yield from judge_ranks(run, ranks)


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

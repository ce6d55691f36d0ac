"""What a bundle says of several GPUs: the checks of its ranks, and the figures of its scaling sweep."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from kit.evidence.contents import Number, lines, one, parsed
from kit.extras.scale.ranks import (
    COMPLETE,
    AllReduce,
    Rank,
    RankRecord,
    RanksRun,
    ScaleRow,
    Scaling,
    best,
    folder_name,
    global_losses,
)
from kit.records import Check, Outcome, from_json, loads, worst
from kit.rules import Answer, Rules, say
from kit.sweep.table import LOSS_LIMITS
from kit.train.config import weight_tensors
from kit.train.judge_training import judge_training
from kit.train.steps import StepRecord, TelemetrySample, TrainingRun

# Did every rank train natively, on a GPU of its own, and did they train one model together?
#
# Decided from records alone. What is asked of one process is asked of each rank, by the same judges,
# and said once for all; a rank that falls short is named.

# Measured: 41 copies of 1.69 MB in all for GPT-2's 148 tensors in one step, 11.4 kB each (torch 2.11, H200, 2026-11).
FSDP_TABLE_BYTES = 16_384
# Asked of one process only: a repetition, and the CPU's losses, which here are one device's.
_NOT_ASKED = ("native.replay", "native.cpu_agreement")
AGAIN = "python -m kit train --gpus {case.run.world_size}"


@dataclasses.dataclass(frozen=True)
class Ranks:
    """What is judged: the run, and what each rank left, by its number; those that left nothing are absent."""

    run: RanksRun
    ranks: Mapping[int, Rank]

    @property
    def records(self) -> dict[int, RankRecord]:
        return {rank: left.record for rank, left in sorted(self.ranks.items()) if left.record}

    @property
    def loss_limit(self) -> float:
        """Of a global batch's loss from one device's, relative to it (absolute below 1): sums of another order in
        float32, and products rounded to 11 or 8 bits."""
        return LOSS_LIMITS[self.run.config.dtype]


RANKS = Rules("ranks", rehearses=lambda case: case.run.config.device == "cpu", settle=AGAIN)


def judge_ranks(run: RanksRun, ranks: Mapping[int, Rank]) -> tuple[Check, ...]:
    """All checks of a run of several ranks."""
    return (*RANKS.checks(case := Ranks(run, ranks)), *_each(case))


@RANKS.rule(
    "integrity.ranks_complete",
    "every rank to its end, with no error",
    todo="see to the rank that is named, and run again",
)
def complete(case: Ranks) -> Answer:
    return say(case.run.state == COMPLETE, case.run.reason or f"{case.run.world_size} ranks ended well")


@RANKS.rule(
    "native.ranks_present",
    "a record of each of the {case.run.world_size} ranks",
    todo="see why this rank did not start, or was ended",
)
def present(case: Ranks) -> Answer:
    count, records = case.run.world_size, case.records
    absent = [rank for rank in range(count) if rank not in records]
    strange = [rank for rank, record in records.items() if (record.rank, record.world_size) != (rank, count)]
    found = f"rank {_list(absent)} left no record" if absent else f"{count} of {count} ranks"
    if strange:
        found = f"the record of rank {_list(strange)} is of another rank or another run"
    return say(not absent and not strange, found)


@RANKS.rule(
    "native.ranks_devices",
    "each rank on a GPU of its own, from start to end",
    todo="see CUDA_VISIBLE_DEVICES and LOCAL_RANK of the rank that is named",
    is_gpu_claim=True,
)
def devices(case: Ranks) -> Answer:
    """Each rank's device by UUID: its own alone, and at the end the one that it took at the start."""
    device, problems, seen = case.run.config.device, [], {}
    for rank, record in case.records.items():
        trained, uuid = case.ranks[rank].run, record.trained_uuid or record.device_uuid
        wrong = {
            f"rank {rank}: {record.error}": record.error,
            f"rank {rank} is on {record.device}": record.device != device,
            f"rank {rank} trained on {trained and trained.config.device}": trained and trained.config.device != device,
            f"rank {rank} took one GPU and trained on another": (record.device_uuid or uuid) != uuid,
            f"ranks {seen.get(uuid)} and {rank} are on the same GPU": uuid in seen,
        }
        problems += [words for words, is_so in wrong.items() if is_so]
        seen |= {uuid: rank} if uuid else {}
    told = f"{len(seen)} GPUs told apart by UUID" if device == "cuda" else f"{len(case.ranks)} ranks on the CPU"
    is_unknown = device == "cuda" and len(seen) < case.run.world_size
    return say(False if problems else None if is_unknown else True, "; ".join(problems[:3]) or told)


@RANKS.rule(
    "native.ranks_all_reduce",
    "the sum of what each rank contributes, at every place, on every rank",
    todo="a link or the collective library is at fault: try NCCL_P2P_DISABLE=1, and see the links",
)
def all_reduce(case: Ranks) -> Answer:
    count = case.run.world_size
    # A sum of None beside an expectation was not finite.
    told = {rank: r for rank, r in case.records.items() if r.sum_expected is not None}
    wrong = [rank for rank, r in told.items() if not r.sum_found == r.sum_expected == count * (count + 1) / 2]
    found = f"the sum is wrong on rank {_list(wrong)}" if wrong else f"right on {len(told)} of {count} ranks"
    return say(False if wrong else True if len(told) == count else None, found)


@RANKS.rule(
    "learning.ranks_equal",
    "the same weights on every rank after the last step",
    todo="gradients are not exchanged, or the ranks began with different weights",
)
def equal(case: Ranks) -> Answer:
    digests = {rank: r.parameters_sha256 for rank, r in case.records.items() if r.parameters_sha256}
    most = max(digests.values(), key=list(digests.values()).count, default=None)
    apart = [rank for rank, digest in digests.items() if digest != most]
    found = f"the same bits on {len(digests)} of {case.run.world_size} ranks"
    is_good = False if apart else True if len(digests) == case.run.world_size else None
    return say(is_good, f"rank {_list(apart)} ended with other weights" if apart else found, {"sha256": most})


@RANKS.rule(
    "learning.ranks_agreement",
    "within {case.loss_limit:g} of one device's losses on the same global batches",
    todo="gradients are scaled or exchanged wrongly, or the ranks read other data",
)
def agreement(case: Ranks) -> Answer:
    ranks, first = case.ranks, case.records.get(0)
    losses = global_losses([ranks[rank] for rank in sorted(ranks)]) if len(ranks) == case.run.world_size else ()
    pairs = list(zip(losses, first.reference_losses if first else ()))
    if not pairs:
        return say(None, (first.reference_skipped if first else None) or "not measured")
    far = [None if a is None else abs(a - b) / max(1.0, abs(b)) for a, b in pairs]
    # Written so that NaN and a missing loss are apart.
    apart = [step for step, one in enumerate(far, start=1) if one is None or not one <= case.loss_limit]
    largest = max((one for one in far if one is not None), default=None)
    found = f"apart at step {apart[0]}" if apart else f"at most {largest:.1e} apart over {len(pairs)} steps"
    return say(not apart, found, {"steps": len(pairs), "largest_difference": largest})


def _each(case: Ranks) -> Iterator[Check]:
    """Every question to one process, asked of each rank: the worst answer, with the ranks that gave it."""
    run, answers = case.run, {}
    # FSDP2 sends tables of addresses for the tensors that it gathers and scatters; DDP sends nothing.
    tables = FSDP_TABLE_BYTES * weight_tensors(run.config.shape) if run.parallel == "fsdp" else 0
    for rank, left in sorted(case.ranks.items()):
        if left.run is not None:
            for one in judge_training(left.run, left.steps, left.samples, scheme_copy_bytes=tables):
                if one.id not in _NOT_ASKED:
                    answers.setdefault(one.id, {})[rank] = one
    for id, by_rank in answers.items():
        outcome = worst(one.outcome for one in by_rank.values())
        those = [rank for rank, one in by_rank.items() if one.outcome is outcome]
        told, who = by_rank[those[0]], f"rank {_list(those)}"
        if outcome in (Outcome.PASS, Outcome.REHEARSAL):
            who = f"{len(by_rank)} of {run.world_size} ranks, rank {those[0]}"
            outcome = outcome if len(by_rank) == run.world_size else Outcome.INCONCLUSIVE
        todo = AGAIN.format(case=case) if outcome is Outcome.INCONCLUSIVE else told.todo
        words = {"id": id.replace(".", ".ranks_", 1), "found": f"{who}: {told.found}", "todo": todo}
        yield dataclasses.replace(told, outcome=outcome, **words)


def _list(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def rank_checks(files: Mapping[str, bytes]) -> Iterator[Check]:
    """Every check of the ranks, from the files of a bundle."""
    run = one(files, "raw/ranks.json", RanksRun)
    numbers = range(run.world_size)
    yield from judge_ranks(run, {number: rank for number in numbers if (rank := rank_of(files, number, "raw/"))})


def rank_of(files: Mapping[str, bytes], number: int, root: str = "") -> Rank | None:
    """What one rank left, among files by their paths; None where it left nothing. root: of the path of its folder."""
    folder = f"{root}{folder_name(number)}/"
    if not any(name.startswith(folder) for name in files):
        return None
    return Rank(
        one(files, f"{folder}rank.json", RankRecord),
        one(files, f"{folder}training.json", TrainingRun),
        lines(files, f"{folder}steps.jsonl", StepRecord),
        lines(files, f"{folder}telemetry.jsonl", TelemetrySample),
    )


def scaling_numbers(files: Mapping[str, bytes]) -> Iterator[Number]:
    """Efficiency and rate of each row, and the best all-reduce."""

    def read() -> tuple[Scaling, tuple[AllReduce, ...]]:
        told = loads(files["raw/scaling.json"])
        scaling = Scaling(str(told["device_name"]), from_json(tuple[ScaleRow, ...], told["rows"]))
        return scaling, from_json(tuple[AllReduce, ...], told["all_reduce"])

    scaling, sums = parsed("raw/scaling.json", read)
    for row in scaling.rows:
        rate, n = row.tokens_per_s, len(row.block_step_s) or None
        where = f"{row.batch_size} × {row.seq_len} each, {row.dtype}"
        if row.world_size == 1:
            where = f"one rank alone, {where}"
            yield Number("scaling_base_tokens_per_s", rate, "tokens/s", where, n, reason=row.reason)
            continue
        where = f"{row.world_size} ranks, {where}, {row.parallel}"
        name, efficiency = f"{row.mode}_scaling_{row.world_size}_ranks", scaling.efficiency(row)
        how = f"tokens/s over {row.world_size} times those of one; {where}; spread: quartiles"
        share, low, high = (efficiency.median, efficiency.q1, efficiency.q3) if efficiency else (None, None, None)
        why = None if efficiency else row.reason or "not measured"
        yield Number(f"{name}_efficiency", share, "1", how, n, low, high, why)
        yield Number(f"{name}_tokens_per_s", rate, "tokens/s", where, n, reason=row.reason)
    if top := best(sums):
        yield Number(
            "all_reduce_bus_bytes_per_s",
            top.bus_bytes_per_s,
            "B/s",
            f"best of {len(sums)} sizes, {top.size_bytes} bytes on {top.world_size} ranks: size / time × 2(n-1)/n",
            n=len(top.times_s),
        )

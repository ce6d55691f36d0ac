"""Two recorded ranks on H200s, and what becomes of their verdict when one thing about them changes. Needs no torch."""

import dataclasses
from pathlib import Path

from kit.extras.scale.judge_ranks import judge_ranks
from kit.extras.scale.ranks import RanksRun
from kit.extras.scale.scale import read_rank
from kit.gpu.facts import JitControl
from kit.records import Outcome, from_json, loads

DATA = Path(__file__).resolve().parents[1] / "data" / "h200_ranks"


@dataclasses.dataclass(frozen=True)
class Sample:
    run: RanksRun
    ranks: dict

    def checks(self):
        return {check.id: check for check in judge_ranks(self.run, self.ranks)}

    def red(self):
        return {id for id, check in self.checks().items() if check.outcome is not Outcome.PASS and check.required}

    def with_run(self, **changes):
        return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))

    def with_record(self, number, **changes):
        """Changes what one rank says of itself."""
        return self.with_rank(number, record=dataclasses.replace(self.ranks[number].record, **changes))

    def with_training(self, rank, **changes):
        return self.with_rank(rank, run=dataclasses.replace(self.ranks[rank].run, **changes))

    def with_rank(self, number, **changes):
        return dataclasses.replace(
            self, ranks={**self.ranks, number: dataclasses.replace(self.ranks[number], **changes)}
        )

    def without(self, rank):
        return dataclasses.replace(self, ranks={number: left for number, left in self.ranks.items() if number != rank})


def healthy():
    run = from_json(RanksRun, loads((DATA / "ranks.json").read_bytes()))
    return Sample(run, {number: _filled(read_rank(DATA / f"rank-{number}")) for number in range(run.world_size)})


def _filled(rank):
    """The fields that did not exist on that day, as today's code fills them."""
    steps = tuple(dataclasses.replace(step, products=49, update=step.lr) for step in rank.steps)
    order = tuple(step.batch_sha256 for step in steps)
    run = dataclasses.replace(rank.run, nonce="n5", order=order, distinct_texts=550, jit_control=JitControl(223))
    return dataclasses.replace(rank, run=run, steps=steps)

"""Two recorded ranks on H200s, and what becomes of their verdict when one thing about them changes. Needs no torch."""

import dataclasses
from pathlib import Path

from kit.extras.scale.judge_ranks import judge_ranks, rank_of
from kit.extras.scale.ranks import RanksRun
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

    def with_rank(self, number, **changes):
        """Changes what one rank left: of `record`, `run` and `steps` the fields, or all of it."""
        left = self.ranks[number]
        changes = {
            name: dataclasses.replace(getattr(left, name), **change) if isinstance(change, dict) else change
            for name, change in changes.items()
        }
        return dataclasses.replace(self, ranks={**self.ranks, number: dataclasses.replace(left, **changes)})


def healthy():
    files = {path.relative_to(DATA).as_posix(): path.read_bytes() for path in DATA.rglob("*") if path.is_file()}
    run = from_json(RanksRun, loads(files["ranks.json"]))
    return Sample(run, {number: _filled(rank_of(files, number)) for number in range(run.world_size)})


def _filled(rank):
    """The fields that did not exist on that day, as today's code fills them."""
    steps = tuple(dataclasses.replace(step, products=49, update=step.lr) for step in rank.steps)
    order = tuple(step.batch_sha256 for step in steps)
    run = dataclasses.replace(rank.run, nonce="n5", order=order, distinct_texts=550, jit_control=JitControl(223))
    return dataclasses.replace(rank, run=run, steps=steps)

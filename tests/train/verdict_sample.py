"""A recorded run and what becomes of its verdict when one thing about it changes. Needs no torch.

Each sample is frozen and made once: a test changes a copy.
"""

import dataclasses
import functools
import json
from pathlib import Path

from kit.gpu.facts import JitControl
from kit.records import Outcome, from_json, loads
from kit.train.judge_training import judge_training
from kit.train.steps import StepRecord, TelemetrySample, TrainingRun

DATA = Path(__file__).resolve().parents[1] / "data"


@dataclasses.dataclass(frozen=True)
class Sample:
    """A run with its steps and telemetry, as a bundle holds them."""

    run: TrainingRun
    steps: tuple[StepRecord, ...]
    samples: tuple[TelemetrySample, ...]

    def checks(self):
        return {check.id: check for check in judge_training(self.run, self.steps, self.samples)}

    def outcome(self, id):
        return self.checks()[id].outcome

    def red(self):
        """Ids of the checks that are not green, without those that only warn."""
        return {id for id, check in self.checks().items() if check.outcome is not Outcome.PASS and check.required}

    def with_run(self, **changes):
        return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))

    def with_config(self, **changes):
        return self.with_run(config=dataclasses.replace(self.run.config, **changes))

    def with_part(self, part, **changes):
        """with_part('profile', kernels=0): one record inside the run."""
        return self.with_run(**{part: dataclasses.replace(getattr(self.run, part), **changes)})

    def with_steps(self, which=None, **changes):
        """Changes all steps, or the one with number `which`; a callable gets the step."""
        return dataclasses.replace(
            self, steps=tuple(self._changed(s, changes) if which in (None, s.step) else s for s in self.steps)
        )

    def with_samples(self, **changes):
        return dataclasses.replace(self, samples=tuple(self._changed(s, changes) for s in self.samples))

    def with_audits(self, which=None, **changes):
        audits = tuple(
            self._changed(audit, changes) if which in (None, audit.step) else audit for audit in self.run.audits
        )
        return self.with_run(audits=audits)

    @staticmethod
    def _changed(record, changes):
        values = {name: value(record) if callable(value) else value for name, value in changes.items()}
        return dataclasses.replace(record, **values)


@functools.cache
def recorded(folder="h100_witnessed"):
    """As it was written on the H100."""
    lines = {
        kind: [from_json(kind, loads(line)) for line in (DATA / folder / name).read_bytes().splitlines()]
        for kind, name in ((StepRecord, "steps.jsonl"), (TelemetrySample, "telemetry.jsonl"))
    }
    run = from_json(TrainingRun, json.loads((DATA / folder / "training.json").read_text(encoding="utf-8")))
    return Sample(run, tuple(lines[StepRecord]), tuple(lines[TelemetrySample]))


@functools.cache
def healthy():
    """The recorded run with the fields that did not exist on that day, filled as today's code fills them."""
    sample = recorded().with_steps(products=49, update=lambda s: s.lr)
    # A nonce that draws no step but the three that were audited on that day.
    order = tuple(step.batch_sha256 for step in sample.steps)
    return sample.with_run(nonce="n5", order=order, distinct_texts=550, jit_control=JitControl(223))


@functools.cache
def rehearsed():
    """The same records as a run that was asked to use the CPU would have them."""
    sample = healthy().with_config(device="cpu").with_run(telemetry=None, device_name="CPU", device_window_s=None)
    sample = sample.with_audits(expected_device="cpu", counted=lambda audit: {"cpu": audit.counted["cuda"]})
    return dataclasses.replace(sample, samples=())

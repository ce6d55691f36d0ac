"""The bench: fresh processes, and a table that sets them beside the Trainer."""

import dataclasses
import json

import pytest

from kit.errors import TrainingFailed, UsageError
from kit.records import from_json
from kit.sweep.bench import bench
from kit.sweep.table import BenchResult, SameLosses, ShortRun
from kit.train.config import TrainConfig

TINY = TrainConfig(model="tiny", device="cpu", batch_size=2, seq_len=16, steps=3)
RUN = ShortRun("eager", "float32", False, "the plain loop", 9.0, 6.0, 0.2, 2.0, 0.1, 0.4, 0.5, 55, (4.0, 3.9))
NO_LOSSES = SameLosses("tiny", 2, 16, (), ())


def test_samples_are_counted_over_the_time_with_the_start():
    assert RUN.samples_per_s == 110


def test_the_sentence_sets_the_fastest_beside_the_trainer():
    peer = dataclasses.replace(RUN, engine="trainer", training_s=1.35)
    first = dataclasses.replace(RUN, is_first=True, training_s=0.1)
    result = BenchResult("NVIDIA H100", (first, RUN, peer), NO_LOSSES, {})
    assert "500 ms by the eager engine" in result.sentence and "the Trainer takes 1.35 s" in result.sentence
    assert "No engine" in BenchResult("CPU", (), NO_LOSSES, {}).sentence


@pytest.mark.slow
def test_a_real_bench_on_the_cpu_runs_fresh_processes_and_says_what_is_missing(tmp_path):
    seen = []
    result = bench(TINY, engines=("eager", "captured"), out=tmp_path, on_run=seen.append)
    assert [(run.engine, run.is_first) for run in result.runs] == [("eager", True), ("eager", False)]
    first = result.runs[0]
    assert first.samples == 6 and len(first.losses) == 3
    assert first.process_s > first.import_s + first.model_s + first.training_s > first.training_s >= first.steps_s
    assert "CUDA" in result.missing["captured"] and result.losses.is_same
    kept = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert from_json(BenchResult, kept) == result
    assert "not here: captured" in str(result) and seen == list(result.runs)


def test_a_run_that_breaks_is_an_error_with_its_last_line():
    with pytest.raises(TrainingFailed, match="no-such-file"):
        bench(dataclasses.replace(TINY, dataset="no-such-file"), engines=("eager",))


def test_an_unknown_engine_is_refused_before_any_process_starts():
    with pytest.raises(UsageError, match="fastest"):
        bench(TINY, engines=("eager", "fastest"))

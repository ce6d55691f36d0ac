"""The bench: fresh processes, and a table that sets them beside the Trainer."""

import dataclasses
import json
import types

import pytest

from kit.errors import TrainingFailed, UsageError
from kit.records import from_json
from kit.sweep import bench as module
from kit.sweep.bench import bench
from kit.sweep.table import BenchResult, SameLosses, ShortRun
from kit.train.config import TrainConfig

TINY = TrainConfig(model="tiny", device="cpu", batch_size=2, seq_len=16, steps=3)
RUN = ShortRun("eager", "float32", False, "the plain loop", 9.0, 6.0, 0.2, 2.0, 0.1, 0.4, 0.5, 55, (4.0, 3.9))
NO_LOSSES = SameLosses("tiny", 2, 16, (), ())


def test_the_sentence_sets_the_fastest_beside_the_trainer_and_samples_are_counted_over_the_time_with_the_start():
    peer = dataclasses.replace(RUN, engine="trainer", training_s=1.35)
    first = dataclasses.replace(RUN, is_first=True, training_s=0.1)
    result = BenchResult("NVIDIA H100", (first, RUN, peer), NO_LOSSES, {})
    assert "500 ms by the eager engine" in result.sentence and "the Trainer takes 1.35 s" in result.sentence
    assert str(result.table).splitlines()[2].split()[-1] == "110"
    assert "No engine" in BenchResult("CPU", (), NO_LOSSES, {}).sentence


@pytest.mark.slow
def test_a_real_bench_on_the_cpu_runs_fresh_processes(tmp_path):
    seen = []
    result = bench(TINY, engines=("eager",), out=tmp_path, on_run=seen.append)
    assert [(run.engine, run.is_first) for run in result.runs] == [("eager", True), ("eager", False)]
    first = result.runs[0]
    assert first.samples == 6 and len(first.losses) == 3 and result.losses.is_same
    assert first.process_s > first.import_s + first.model_s + first.training_s > first.training_s >= first.steps_s
    assert from_json(BenchResult, json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))) == result
    assert seen == list(result.runs)


@pytest.fixture
def in_this_process(monkeypatch, capsys):
    """The child's work without its start."""

    def run(command, **_):
        capsys.readouterr()
        code = module.main(command[-1])
        return types.SimpleNamespace(returncode=code, stdout=capsys.readouterr().out, stderr="")

    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module, "keep_bytecode", lambda: None)


def test_every_engine_runs_and_one_that_cannot_says_why(in_this_process):
    result = bench(TINY, engines=("trainer", "captured"))
    assert [run.engine for run in result.runs] == ["trainer", "trainer"] and len(result.runs[0].losses) == 3
    assert "CUDA" in result.missing["captured"] and "not here: captured" in str(result)


def test_a_run_that_breaks_is_an_error_in_the_childs_words(in_this_process, monkeypatch):
    broken = dataclasses.replace(TINY, dataset="no-such-file")
    with pytest.raises(TrainingFailed, match="the eager engine's process: dataset 'no-such-file' does not exist"):
        bench(broken, engines=("eager",))
    died = types.SimpleNamespace(returncode=-9, stdout="", stderr="one\nKilled\n")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: died)
    with pytest.raises(TrainingFailed, match="the eager engine's process: it ended with -9: Killed"):
        bench(TINY, engines=("eager",))


def test_an_unknown_engine_is_refused_before_any_process_starts():
    with pytest.raises(UsageError, match="fastest"):
        bench(TINY, engines=("eager", "fastest"))

"""The bench: fresh processes, the same losses, and no figure from an engine that did something else."""

import json

import pytest

from kit.bench import BenchResult, ShortRun, _compared, bench
from kit.errors import TrainingFailed
from kit.train.config import TrainConfig

TINY = TrainConfig(model="tiny", device="cpu", batch_size=2, seq_len=16, steps=3)
RUN = ShortRun("eager", "float32", False, "the plain loop", 9.0, 6.0, 0.2, 2.0, 0.1, 0.4, 0.5, 55, (4.0, 3.9))
REFERENCE = (4.0, 3.9, 3.8)


def test_samples_are_counted_over_the_time_with_the_start():
    assert RUN.samples_per_s == 110


def test_equal_losses_are_the_same():
    row = _compared("graphed", "float32", {"losses": (4.00005, 3.9, 3.8)}, REFERENCE)
    assert row.is_same and row.largest_difference == pytest.approx(5e-5)


@pytest.mark.parametrize("losses", [(4.0, 3.9, 3.9), (4.0, float("nan"), 3.8), (4.0, 3.9), (4.0, 3.9, float("inf"))])
def test_other_losses_missing_ones_and_nan_are_not_the_same(losses):
    row = _compared("graphed", "float32", {"losses": losses}, REFERENCE)
    assert not row.is_same and row.note
    json.dumps(row.losses, allow_nan=False)


def test_bfloat16_may_be_further_off_but_not_far():
    assert _compared("graphed", "bfloat16", {"losses": (4.005, 3.9, 3.8)}, REFERENCE).is_same
    assert not _compared("graphed", "bfloat16", {"losses": (4.02, 3.9, 3.8)}, REFERENCE).is_same


def test_the_sentence_sets_the_fastest_beside_the_trainer():
    import dataclasses

    peer = dataclasses.replace(RUN, engine="trainer", training_s=1.35)
    result = BenchResult("NVIDIA H100", (RUN, peer), (), {})
    assert "500 ms by the eager engine" in result.sentence and "the Trainer takes 1.35 s" in result.sentence
    assert "No engine" in BenchResult("CPU", (), (), {}).sentence


@pytest.mark.slow
def test_a_real_bench_on_the_cpu_runs_fresh_processes_and_says_what_is_missing(tmp_path):
    seen = []
    result = bench(TINY, engines=("eager", "captured"), out=tmp_path, on_run=seen.append)
    assert [(run.engine, run.is_first) for run in result.runs] == [("eager", True), ("eager", False)]
    first = result.runs[0]
    assert first.samples == 6 and len(first.losses) == 3
    assert first.process_s > first.import_s + first.model_s + first.training_s > first.training_s >= first.steps_s
    assert "CUDA" in result.missing["captured"] and list(result.losses)[0].is_same
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["device_name"] == "CPU"
    assert "not here: captured" in str(result) and seen == list(result.runs)


def test_a_run_that_breaks_is_an_error_with_its_last_line():
    import dataclasses

    with pytest.raises(TrainingFailed, match="no-such-file"):
        bench(dataclasses.replace(TINY, dataset="no-such-file"), engines=("eager",))

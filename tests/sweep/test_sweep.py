"""A sweep: its plan, its rows, and the figures that follow."""

import dataclasses
import random

import pytest
import torch

from kit.errors import UsageError
from kit.records import dumps, from_json, loads
from kit.sweep.ceilings import measure_ceilings
from kit.sweep.sweep import SweepResult, rows_of, sweep
from kit.sweep.table import Ceilings, Row, SweepPlan, floor_s, higher, mfu, progress_text, row_of, to_csv, words
from kit.sweep.trial import Trial
from kit.train.config import MODELS, adamw_step_bytes, least_step_flop, step_flop
from kit.units import shuffled

GOOD = Row(4, 64, "float32", "gpt2", "ok", block_step_s=(0.05, 0.04, 0.06), steps=30, peak_memory_bytes=2 * 1024**3)
OOM = Row(4096, 1024, "float32", "gpt2", "oom", reason="tried to allocate, 1,000 GiB")
H100 = Ceilings("NVIDIA H100", {"float32": 50.9e12}, {"float32": "8192"}, 2.96e12, 1.3e-5, {"float32": 66.9e12})


def plan(**changes):
    defaults = {
        "batch_sizes": (1, 2),
        "seq_lens": (16, 32),
        "model": "tiny",
        "device": "cpu",
        "blocks": 2,
        "block_s": 0.01,
    }
    return SweepPlan(**{**defaults, **changes})


def test_every_point_of_the_grid_is_measured_once_in_an_order_of_the_seed():
    shapes = [(c.batch_size, c.seq_len) for c in plan().configs()]
    assert sorted(shapes) == [(1, 16), (1, 32), (2, 16), (2, 32)]
    assert shapes == [(c.batch_size, c.seq_len) for c in plan().configs()]


def test_the_shuffle_is_frozen():
    order = [shuffled(range(8), random.Random(seed).random) for seed in (42, 43)]
    assert order[0] == [6, 4, 3, 2, 7, 1, 0, 5] != order[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_sizes": ()},
        {"batch_sizes": (4, 4)},
        {"seq_lens": (512,)},
        {"dtypes": ("fp7",)},
        {"blocks": 0},
        {"more_points": ((1, 16, "float32"),)},
        {"more_points": ((4, 16, "float32"), [4, 16, "float32"])},
        {"more_points": ((4, 16),)},
        {"more_points": ("4x16",)},
        {"more_points": (4,)},
        {"more_points": ((4, 16, "fp7"),)},
        {"more_points": ((4, 512, "float32"),)},
        {"more_points": (("4", 16, "float32"),)},
    ],
)
def test_an_impossible_plan_is_refused_before_anything_runs(changes):
    with pytest.raises(UsageError):
        plan(**changes)


def test_points_beside_the_grid_are_measured_by_every_engine():
    grid = plan(engines=("eager", "captured"), more_points=[[4, 8, "bfloat16"]])
    points = [(c.batch_size, c.seq_len, c.dtype, c.engine) for c in grid.configs()]
    assert len(points) == len(set(points)) == 10
    assert {(4, 8, "bfloat16", "eager"), (4, 8, "bfloat16", "captured")} < set(points)
    smallest = [(c.batch_size, c.seq_len, c.dtype, c.engine) for c in grid.smallest()]
    assert set(smallest) == {(1, 16, dtype, engine) for dtype in ("float32", "bfloat16") for engine in grid.engines}


@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel image"), KeyError("graph"), AssertionError(), ImportError("triton")]
)
def test_whatever_an_engine_raises_is_a_row_and_the_sweep_goes_on(error):
    def measure(config):
        raise error

    rows = list(rows_of(plan(), measure))
    assert [row.outcome for row in rows] == ["error"] * 4
    assert {row.reason.partition(":")[0] for row in rows} == {type(error).__name__}


def test_what_torchs_compiler_raises_is_a_row():
    """Its errors are of its own kinds; those of a backend carry the reason of what they wrap."""
    from torch._dynamo.exc import BackendCompilerFailed, Unsupported

    def measure(config):
        if config.batch_size == 2:
            raise BackendCompilerFailed("inductor", torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), None)
        raise Unsupported("graph break")

    rows = {row.batch_size: row for row in rows_of(plan(seq_lens=(16,)), measure)}
    assert rows[2].outcome == "oom" and rows[1].outcome == "error" and "graph break" in rows[1].reason


def test_out_of_memory_behind_another_error_is_out_of_memory():
    def measure(config):
        try:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        except torch.cuda.OutOfMemoryError:
            raise RuntimeError("operation failed due to a previous error during capture") from None

    assert {(row.outcome, row.reason) for row in rows_of(plan(), measure)} == {("oom", "CUDA out of memory")}


def test_ctrl_c_stops_a_sweep():
    def measure(config):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(rows_of(plan(), measure))


def test_a_failed_point_keeps_none_of_its_tensors():
    import weakref

    held = []

    def measure(config):
        tensor = torch.ones(8)
        held.append(weakref.ref(tensor))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    for _ in rows_of(plan(), measure):
        assert held[-1]() is None


def test_a_home_folder_in_a_compilers_message_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))

    def measure(config):
        raise RuntimeError(f"{tmp_path}/cache/x.cpp: error")

    assert {row.reason for row in rows_of(plan(), measure)} == {"RuntimeError: ~/cache/x.cpp: error"}


def test_a_row_in_words_says_measured_floor_ratio_and_both_peaks():
    card = dataclasses.replace(H100, datasheet_flop_per_s={"float32": 66.9e12})
    text = words(GOOD, card)
    for part in (
        "4 × 64 by eager in float32: 50.0 ms",
        "floor 3.7",
        "7.5 %",
        "66.9 TFLOP/s published",
        "50.9 TFLOP/s measured",
    ):
        assert part in text
    assert words(OOM, card).endswith("out of memory")
    assert "MFU unknown" in words(GOOD, Ceilings("Some GPU")) and "floor unknown" in words(GOOD, Ceilings("Some GPU"))


def test_progress_says_how_much_is_left():
    assert progress_text(3, 12, 41.0) == "[######..................] 3 of 12 points, about 41 s left"
    assert progress_text(12, 12, 0.0).endswith("12 of 12 points, done")


# --- ceilings -----------------------------------------------------------------------


def test_ceilings_of_older_files_still_read():
    old = {
        "device_name": "NVIDIA H100",
        "matmul_flop_per_s": {"bfloat16": 750e12},
        "matmul_shape": {"bfloat16": "8192"},
        "copy_bytes_per_s": 3e12,
        "launch_s": 9e-6,
        "datasheet_flop_per_s": {"bfloat16": 989e12},
    }
    assert from_json(Ceilings, old).attention_flop_per_s is None


def test_the_better_of_two_readings_is_kept_where_both_have_one():
    first = dataclasses.replace(
        H100, matmul_flop_per_s={"float32": 1.0, "float16": 2.0}, matmul_shape={"float32": "a", "float16": "b"}
    )
    second = dataclasses.replace(H100, matmul_flop_per_s={"float32": 3.0}, matmul_shape={"float32": "c"}, launch_s=1.0)
    found = higher(first, second)
    assert found.matmul_flop_per_s == {"float32": 3.0, "float16": 2.0} and found.matmul_shape == {
        "float32": "c",
        "float16": "b",
    }
    assert found.launch_s == H100.launch_s


def test_ceilings_on_a_cpu_are_quick_and_guess_nothing():
    import time

    start = time.perf_counter()
    found = measure_ceilings("cpu", ("float32",))
    assert time.perf_counter() - start < 30
    assert set(found.matmul_flop_per_s) == {"float32", "bfloat16"} and found.attention_flop_per_s > 0
    assert (found.graph_launch_s, found.datasheet_flop_per_s, found.datasheet_bytes_per_s) == (None, {}, None)
    assert "unknown" in str(found.table)


@pytest.mark.gpu
def test_ceilings_on_a_gpu_include_what_the_plan_did_not_ask_for():
    found = measure_ceilings("cuda", ("float32",))
    assert {"float32", "float16"} <= set(found.matmul_flop_per_s)
    figures = [*found.matmul_flop_per_s.values(), found.copy_bytes_per_s, found.attention_flop_per_s, found.launch_s]
    assert min(figures) > 0 and 0 < found.graph_launch_s < found.launch_s


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["trainer", "eager", "captured"])
def test_a_point_that_does_not_fit_leaves_the_memory_to_the_next(engine):
    trial = Trial(plan(device="cuda").configs()[0])
    free, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 3e9 / total))
    try:
        for batch_size, outcome in ((512, "oom"), (1, "ok"), (512, "oom"), (1, "ok")):
            point = plan(batch_sizes=(batch_size,), seq_lens=(256,), engines=(engine,), device="cuda")
            (row,) = rows_of(point, lambda config: trial.point(config, plan()))
            assert row.outcome == outcome, row.reason
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# --- rows, tables, files ------------------------------------------------------------


def test_out_of_memory_is_a_row_and_the_sweep_goes_on():
    def measure(config):
        if config.batch_size == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")
        return row_of(config, "ok", block_step_s=(0.1,), steps=1)

    rows = list(rows_of(plan(), measure))
    assert sorted(row.outcome for row in rows) == ["ok", "ok", "oom", "oom"]
    assert {row.reason for row in rows if row.outcome == "oom"} == {"CUDA out of memory. Tried to allocate 20.00 GiB"}


def test_a_failed_kernel_is_a_row_with_its_reason():
    def measure(config):
        raise RuntimeError("CUDA error: no kernel image is available")

    assert {row.outcome for row in rows_of(plan(), measure)} == {"error"}


def test_rows_survive_json_with_their_raw_values():
    assert from_json(tuple[Row, ...], loads(dumps((GOOD, OOM)))) == (GOOD, OOM)


def test_the_csv_is_for_people_and_says_raw_and_derived_figures():
    head, good, oom = to_csv([GOOD, OOM], H100).splitlines()
    columns = head.split(",")
    assert dict(zip(columns, good.split(",")))["block_step_s"] == "0.05 0.04 0.06"
    assert dict(zip(columns, good.split(",")))["tokens_per_s"] == "5120.0"
    assert '"tried to allocate, 1,000 GiB"' in oom and len(columns) == 19


def test_an_unknown_card_has_no_mfu_and_no_floor():
    unknown = Ceilings("Some GPU")
    assert mfu(GOOD, unknown) is None
    assert mfu(GOOD, unknown, of="datasheet") is None
    assert floor_s(GOOD, unknown) is None


def test_the_floor_is_arithmetic_or_bytes_whichever_takes_longer():
    shape = MODELS["gpt2"]
    compute_s = least_step_flop(shape, batch_size=4, seq_len=64) / 50.9e12
    bytes_s = adamw_step_bytes(shape) / 2.96e12
    assert floor_s(GOOD, H100) == max(compute_s, bytes_s) == compute_s
    small = dataclasses.replace(GOOD, batch_size=1)
    assert floor_s(small, H100) == bytes_s


def test_no_row_is_faster_than_its_floor():
    assert GOOD.step_time_s > floor_s(GOOD, H100)


def test_a_row_that_was_not_measured_has_no_figures():
    assert (OOM.step_time_s, OOM.samples_per_s, OOM.tokens_per_s, OOM.flop_per_s) == (None, None, None, None)


def test_the_table_keeps_points_that_did_not_fit():
    result = SweepResult(plan(), H100, (GOOD, OOM))
    text = str(result.table)
    assert "out of memory" in text
    assert "1 of 2 points" in result.sentence


def test_a_sweep_without_a_good_point_says_so():
    assert "None of 1" in SweepResult(plan(), H100, (OOM,)).sentence


def test_the_result_says_which_engines_are_not_here_and_why():
    missing = Row(4, 64, "float32", "gpt2", "missing", reason="a CUDA graph needs a CUDA device", engine="captured")
    text = SweepResult(plan(engines=("eager", "captured")), H100, (GOOD, missing)).not_here
    assert "captured cannot run here: a CUDA graph needs a CUDA device." in text
    assert "Not asked for: trainer, compiled, graphed." in text


def test_a_real_sweep_on_the_cpu_measures_each_point_and_keeps_it(tmp_path):
    seen = []
    result = sweep(plan(seq_lens=(16,)), out=tmp_path, on_row=seen.append)
    assert [row.outcome for row in result.rows] == ["ok", "ok"] == [row.outcome for row in seen]
    assert all(len(row.block_step_s) == 2 and row.steps >= 4 for row in result.rows)
    assert from_json(tuple[Row, ...], loads((tmp_path / "sweep.json").read_bytes())["rows"]) == result.rows
    assert (tmp_path / "sweep.csv").read_text(encoding="utf-8") == to_csv(result.rows, result.ceilings)
    assert result.ceilings.matmul_flop_per_s["float32"] > 1e9
    assert list(result.frame["tokens_per_s"]) == [row.tokens_per_s for row in result.rows]


def test_the_floor_counts_only_what_no_step_can_do_without():
    shape = MODELS["gpt2"]
    assert least_step_flop(shape, batch_size=64, seq_len=1024) == 52_289_247_117_312
    assert least_step_flop(shape, batch_size=4, seq_len=64) < step_flop(shape, batch_size=4, seq_len=64)
    assert adamw_step_bytes(shape, "bfloat16") / adamw_step_bytes(shape) == 36 / 44


def test_each_engine_is_a_point_and_one_that_cannot_run_here_says_why():
    result = sweep(plan(batch_sizes=(1,), seq_lens=(16,), engines=("eager", "captured")))
    rows = {row.engine: row for row in result.rows}
    assert rows["eager"].outcome == "ok" and rows["captured"].outcome == "missing"
    assert "CUDA" in rows["captured"].reason and rows["captured"].step_time_s is None
    assert "not here" in str(result.table)


def test_the_command_measures_again_what_a_folder_holds_already(tmp_path, capsys):
    from kit.cli import main

    line = f"sweep --device cpu --model tiny --batch-sizes 1 --seq-lens 16 --blocks 1 --out {tmp_path / 'new'}"
    read = []
    for _ in range(2):
        assert main(line.split()) == 0
        read.append(loads((tmp_path / "new" / "sweep.json").read_bytes())["rows"])
    assert len(read[0]) == len(read[1]) == 1 and read[0] != read[1]
    assert capsys.readouterr().err.count("eager 1 × 16") == 2


def test_a_loss_that_is_not_finite_is_no_measurement(monkeypatch):
    from kit.train import engines

    nan = torch.tensor(float("nan"))
    monkeypatch.setattr(engines.EagerEngine, "step", lambda self, ids, labels: (nan, nan))
    (row,) = sweep(plan(batch_sizes=(1,), seq_lens=(16,))).rows
    assert row.outcome == "error" and "nan" in row.reason


# --- progress -----------------------------------------------------------------------


def test_the_command_says_how_far_it_is_on_stderr(capsys):
    from kit.cli import main

    line = "sweep --device cpu --model tiny --batch-sizes 1 --seq-lens 16 --engines eager captured --blocks 1"
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    # A line a point; how far it is comes between them, in a log once in half a minute.
    assert "eager 1 × 16 float32: " in err and "captured 1 × 16 float32: missing" in err and "\r" not in err
    assert "captured cannot run here" in out and "points, " not in out.partition("trains")[0]

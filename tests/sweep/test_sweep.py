"""A sweep: its plan, its rows, and the figures that follow."""

import dataclasses
import random
import weakref

import pytest
import torch

from kit.cli import main
from kit.errors import UsageError
from kit.records import from_json, loads
from kit.sweep import ceilings
from kit.sweep.sweep import SweepResult, rows_of, sweep
from kit.sweep.table import Ceilings, Row, SweepPlan, floor_s, higher, mfu, progress_text, to_csv, words
from kit.sweep.trial import Trial
from kit.train.config import MODELS, adamw_step_bytes, least_step_flop, step_flop
from kit.units import shuffled

GOOD = Row(4, 64, "float32", "gpt2", "ok", block_step_s=(0.05, 0.04, 0.06), steps=30, peak_memory_bytes=2 * 1024**3)
OOM = Row(4096, 1024, "float32", "gpt2", "oom", reason="tried to allocate, 1,000 GiB")
H100 = Ceilings("NVIDIA H100", {"float32": 50.9e12}, {"float32": "8192"}, 2.96e12, 1.3e-5, {"float32": 66.9e12})
UNKNOWN = Ceilings("Some GPU")
TINY = {"model": "tiny", "device": "cpu", "blocks": 2, "block_s": 0.01}


def plan(**changes):
    return SweepPlan(**{"batch_sizes": (1, 2), "seq_lens": (16, 32), **TINY, **changes})


# --- the plan -----------------------------------------------------------------------


def test_every_point_of_the_grid_is_measured_once_in_an_order_of_the_seed():
    shapes = [(c.batch_size, c.seq_len) for c in plan().configs()]
    assert sorted(shapes) == [(1, 16), (1, 32), (2, 16), (2, 32)]
    assert shapes == [(c.batch_size, c.seq_len) for c in plan().configs()]
    order = [shuffled(range(8), random.Random(seed).random) for seed in (42, 43)]
    assert order[0] == [6, 4, 3, 2, 7, 1, 0, 5] != order[1], "the shuffle is frozen"


GRID = [{"batch_sizes": ()}, {"batch_sizes": (4, 4)}, {"seq_lens": (512,)}, {"dtypes": ("fp7",)}, {"blocks": 0}]
POINTS = [
    ((1, 16, "float32"),), ((4, 16),), ("4x16",), (4,), ((4, 16, "fp7"),), ((4, 512, "float32"),),
    (("4", 16, "float32"),), ((4, 16, "float32"), [4, 16, "float32"]),
]  # fmt: skip


@pytest.mark.parametrize("changes", [*GRID, *({"more_points": points} for points in POINTS)])
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


# --- what fails is a row ------------------------------------------------------------


def raising(error):
    def measure(config):
        raise error

    return measure


def compiler_error(wrapped):
    """Of a kind of its own; it carries the reason of what it wraps."""
    from torch._dynamo.exc import BackendCompilerFailed

    return BackendCompilerFailed("inductor", wrapped, None)


MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")
CAPTURE = RuntimeError("operation failed due to a previous error during capture")
CAPTURE.__context__ = MEMORY


@pytest.mark.parametrize(
    "error, outcome, reason",
    [
        (
            RuntimeError("CUDA error: no kernel image is available"),
            "error",
            "RuntimeError: CUDA error: no kernel image",
        ),
        (KeyError("graph"), "error", "KeyError: 'graph'"),
        (AssertionError(), "error", "AssertionError: "),
        (ImportError("triton"), "error", "ImportError: triton"),
        (compiler_error(ValueError("graph break")), "error", "BackendCompilerFailed: "),
        (compiler_error(MEMORY), "oom", ""),
        (MEMORY, "oom", "CUDA out of memory. Tried to allocate 20.00 GiB"),
        (CAPTURE, "oom", "CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_whatever_an_engine_raises_is_a_row_and_the_sweep_goes_on(error, outcome, reason):
    rows = list(rows_of(plan(), raising(error)))
    assert [row.outcome for row in rows] == [outcome] * 4
    assert all(row.reason.startswith(reason) and "\n" not in row.reason for row in rows)


def test_ctrl_c_stops_a_sweep():
    with pytest.raises(KeyboardInterrupt):
        list(rows_of(plan(), raising(KeyboardInterrupt())))


def test_a_failed_point_keeps_none_of_its_tensors():
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
    rows = rows_of(plan(), raising(RuntimeError(f"{tmp_path}/cache/x.cpp: error")))
    assert {row.reason for row in rows} == {"RuntimeError: ~/cache/x.cpp: error"}


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


# --- ceilings -----------------------------------------------------------------------


def test_ceilings_of_older_files_still_read():
    old = {"device_name": "NVIDIA H100", "matmul_flop_per_s": {"bfloat16": 750e12}, "copy_bytes_per_s": 3e12}
    assert from_json(Ceilings, old).attention_flop_per_s is None


def test_the_better_of_two_readings_is_kept_where_both_have_one():
    rates, shapes = {"float32": 1.0, "float16": 2.0}, {"float32": "a", "float16": "b"}
    first = dataclasses.replace(H100, matmul_flop_per_s=rates, matmul_shape=shapes)
    second = dataclasses.replace(
        H100, matmul_flop_per_s={"float32": 3.0}, matmul_shape={"float32": "c"}, launch_s=1.0
    )  # fmt: skip
    found = higher(first, second)
    assert found.matmul_flop_per_s == {"float32": 3.0, "float16": 2.0}
    assert found.matmul_shape == {"float32": "c", "float16": "b"} and found.launch_s == H100.launch_s


@pytest.mark.gpu
def test_ceilings_on_a_gpu_include_what_the_plan_did_not_ask_for():
    found = ceilings.measure_ceilings("cuda", ("float32",))
    assert {"float32", "float16"} <= set(found.matmul_flop_per_s)
    figures = [*found.matmul_flop_per_s.values(), found.copy_bytes_per_s, found.attention_flop_per_s, found.launch_s]
    assert min(figures) > 0 and 0 < found.graph_launch_s < found.launch_s


# --- the figures of a row -----------------------------------------------------------


def test_a_row_in_words_says_measured_floor_ratio_and_both_peaks():
    text = words(GOOD, H100)
    for part in ("4 × 64 by eager in float32: 50.0 ms", "floor 3.7", "7.5 %", "66.9 TFLOP/s published", "50.9 TFLOP/s"):
        assert part in text
    assert words(OOM, H100).endswith("out of memory")
    assert "MFU unknown" in words(GOOD, UNKNOWN) and "floor unknown" in words(GOOD, UNKNOWN)


def test_progress_says_how_much_is_left():
    assert progress_text(3, 12, 41.0) == "[######..................] 3 of 12 points, about 41 s left"
    assert progress_text(12, 12, 0.0).endswith("12 of 12 points, done")


def test_the_csv_is_for_people_and_says_raw_and_derived_figures():
    head, good, oom = to_csv([GOOD, OOM], H100).splitlines()
    cells = dict(zip(head.split(","), good.split(",")))
    assert (cells["block_step_s"], cells["tokens_per_s"], len(cells)) == ("0.05 0.04 0.06", "5120.0", 19)
    assert '"tried to allocate, 1,000 GiB"' in oom


def test_what_is_not_known_has_no_figure():
    assert (mfu(GOOD, UNKNOWN), mfu(GOOD, UNKNOWN, of="datasheet"), floor_s(GOOD, UNKNOWN)) == (None, None, None)
    assert (OOM.step_time_s, OOM.tokens_per_s, OOM.flop_per_s) == (None, None, None)


def test_the_floor_is_arithmetic_or_bytes_whichever_takes_longer():
    shape = MODELS["gpt2"]
    compute_s = least_step_flop(shape, batch_size=4, seq_len=64) / 50.9e12
    bytes_s = adamw_step_bytes(shape) / 2.96e12
    assert GOOD.step_time_s > floor_s(GOOD, H100) == max(compute_s, bytes_s) == compute_s
    assert floor_s(dataclasses.replace(GOOD, batch_size=1), H100) == bytes_s


def test_the_floor_counts_only_what_no_step_can_do_without():
    shape = MODELS["gpt2"]
    assert least_step_flop(shape, batch_size=64, seq_len=1024) == 52_289_247_117_312
    assert least_step_flop(shape, batch_size=4, seq_len=64) < step_flop(shape, batch_size=4, seq_len=64)
    assert adamw_step_bytes(shape, "bfloat16") / adamw_step_bytes(shape) == 36 / 44


def test_the_table_keeps_points_that_did_not_fit():
    result = SweepResult(plan(), H100, (GOOD, OOM))
    assert "out of memory" in str(result.table) and "1 of 2 points" in result.sentence
    assert "None of 1" in SweepResult(plan(), H100, (OOM,)).sentence


# --- measured -----------------------------------------------------------------------


def test_a_real_sweep_on_the_cpu_measures_each_point_and_keeps_it(tmp_path):
    seen = []
    result = sweep(plan(seq_lens=(16,), engines=("eager", "captured")), out=tmp_path / "new", on_row=seen.append)
    rows = {(row.engine, row.batch_size): row for row in result.rows}
    good = [rows["eager", 1], rows["eager", 2]]
    assert len(seen) == len(rows) == 4
    assert all(row.outcome == "ok" and len(row.block_step_s) == 2 and row.steps >= 4 for row in good)
    lost = rows["captured", 1]
    assert lost.outcome == "missing" and "CUDA" in lost.reason and lost.step_time_s is None
    assert from_json(tuple[Row, ...], loads((tmp_path / "new" / "sweep.json").read_bytes())["rows"]) == result.rows
    text = (tmp_path / "new" / "sweep.csv").read_text(encoding="utf-8")
    assert text == to_csv(result.rows, result.ceilings)
    assert set(result.frame["tokens_per_s"].dropna()) == {row.tokens_per_s for row in good}
    assert "not here" in str(result.table) and "captured cannot run here: a CUDA graph" in result.not_here
    assert "Not asked for: trainer, compiled, graphed." in result.not_here
    card = result.ceilings
    assert set(card.matmul_flop_per_s) == {"float32", "bfloat16"} and card.attention_flop_per_s > 0
    assert card.matmul_flop_per_s["float32"] > 1e9 and "unknown" in str(card.table)
    guessed = (card.graph_launch_s, card.datasheet_flop_per_s, card.datasheet_bytes_per_s)
    assert guessed == (None, {}, None)


def test_the_command_measures_again_what_a_folder_holds_and_says_how_far_it_is_on_stderr(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda *_, **__: H100)
    line = "sweep --device cpu --model tiny --batch-sizes 1 --seq-lens 16 --engines eager captured --blocks 1"
    read = []
    for _ in range(2):
        assert main([*line.split(), "--out", str(tmp_path / "new")]) == 0
        read.append(loads((tmp_path / "new" / "sweep.json").read_bytes())["rows"])
    assert len(read[0]) == len(read[1]) == 2 and read[0] != read[1]
    out, err = capsys.readouterr()
    # A line a point; how far it is comes between them, in a log once in half a minute.
    assert err.count("eager 1 × 16 float32: ") == 2 == err.count("captured 1 × 16 float32: missing") and "\r" not in err
    assert "captured cannot run here" in out and "points, " not in out.partition("trains")[0]


def test_a_loss_that_is_not_finite_is_no_measurement(monkeypatch):
    from kit.train import engines

    nan = torch.tensor(float("nan"))
    monkeypatch.setattr(engines.EagerEngine, "step", lambda self, ids, labels: (nan, nan))
    row = Trial(plan().configs()[0]).point(plan().configs()[0], plan())
    assert row.outcome == "error" and "nan" in row.reason

"""Figures of a sweep: every point in them, and nothing where there is nothing."""

import dataclasses

import pytest

from kit import plots
from kit.sweep.table import Ceilings, Row
from kit.train.steps import KernelProfile

ROW = Row(4, 64, "bfloat16", "gpt2", "ok", block_step_s=(0.0034, 0.0033, 0.0035), steps=30, engine="graphed")
PEER = dataclasses.replace(ROW, engine="trainer", block_step_s=(0.045, 0.046))
CARD = Ceilings("NVIDIA H100", {"bfloat16": 760e12}, {"bfloat16": "8192"}, 2.98e12, 1e-5)


def said(axis):
    return [text.get_text().strip() for text in axis.texts]


def test_one_batch_size_is_a_bar_for_each_engine_beside_the_limit():
    (axis,) = plots.sweep_throughput([ROW, PEER], CARD, caption="H100").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["trainer", "graphed"]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([256 / 0.0455, 256 / 0.0034])
    (limit,) = axis.lines
    assert limit.get_xdata()[0] > 256 / 0.0034 and said(axis) == ["5,626", "75,294", "limit"]


def test_several_batch_sizes_are_a_line_for_each_engine_with_its_name_at_the_end():
    rows = [dataclasses.replace(row, batch_size=size) for row in (ROW, PEER) for size in (4, 16)]
    (axis,) = plots.sweep_throughput(rows, CARD, caption="H100").axes
    assert said(axis) == ["trainer", "graphed", "limit"]
    looks = {(line.get_color(), line.get_marker()) for line in axis.lines}
    assert len(looks) == 3 and not axis.get_legend()


def test_each_precision_and_length_has_a_panel():
    kinds = [("bfloat16", 64), ("bfloat16", 1024), ("float32", 64)]
    rows = [dataclasses.replace(ROW, dtype=dtype, seq_len=tokens, peak_memory_bytes=2**30) for dtype, tokens in kinds]
    for figure in (plots.sweep_throughput(rows, CARD, caption=""), plots.sweep_memory(rows, caption="")):
        assert [axis.get_title() for axis in figure.axes] == [
            "bfloat16, 4 × 64",
            "bfloat16, 4 × 1024",
            "float32, 4 × 64",
        ]


def test_points_that_did_not_fit_are_named_in_the_figure():
    oom = dataclasses.replace(PEER, outcome="oom", block_step_s=())
    (bars,) = plots.sweep_throughput([ROW, oom], CARD, caption="H100").axes
    assert "OOM" in said(bars)
    (lines,) = plots.sweep_throughput([ROW, PEER, dataclasses.replace(oom, batch_size=64)], CARD, caption="H100").axes
    assert "trainer, OOM at 64" in said(lines)


def test_points_stand_under_the_roof():
    figure = plots.roofline([ROW, PEER], CARD, caption="H100")
    (axis,) = figure.axes
    *points, roof = [line for line in axis.get_lines() if len(line.get_xdata())]
    for line in points:
        for x, y in zip(line.get_xdata(), line.get_ydata()):
            assert y < min(760e12, x * 2.98e12)
    assert max(roof.get_ydata()) <= 760e12
    assert "graphed" in figure.get_suptitle()


def test_only_roofs_of_measured_precisions_are_drawn():
    card = dataclasses.replace(CARD, matmul_flop_per_s={"bfloat16": 760e12, "float8": 1400e12})
    (axis,) = plots.roofline([ROW], card, caption="H100").axes
    assert said(axis) == ["graphed, bfloat16 4 × 64", "bfloat16: 760 TFLOP/s measured"]


def test_idle_time_is_what_no_kernel_used():
    slow = KernelProfile(step_time_s=0.04, groups={"matmul": 0.008, "norm": 0.001, "other": 0.001})
    fast = KernelProfile(step_time_s=0.01, groups={"matmul": 0.007, "optimizer": 0.0005})
    figure = plots.where_time_goes({"fast": fast, "slow": slow}, caption="H100")
    (axis,) = figure.axes
    widths = [bar.get_width() for bar in axis.patches]
    # Kind by kind, the slow one first; neither has attention.
    assert widths == pytest.approx([8, 7, 0, 0.5, 2, 0, 30, 2.5])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["slow", "fast"]
    assert figure.get_suptitle() == "No kernel runs for 75 % of a step by slow, for 25 % by fast"


def test_kernels_that_overlap_leave_no_negative_gap():
    busy = KernelProfile(step_time_s=0.01, groups={"matmul": 0.012})
    (axis,) = plots.where_time_goes({"graphed": busy}, caption="H100").axes
    assert [bar.get_width() for bar in axis.patches] == [12]


def test_nothing_measured_is_a_figure_that_says_so():
    empty = dataclasses.replace(ROW, outcome="oom", block_step_s=())
    assert "No point" in plots.roofline([empty], CARD, caption="").get_suptitle()
    assert "no point" in said(plots.sweep_throughput([empty], CARD, caption="").axes[0])[0]
    for profiles in ({}, {"eager": KernelProfile(error="none")}):
        figure = plots.where_time_goes(profiles, caption="")
        assert "No profile" in figure.get_suptitle() and "CPU" in figure.axes[0].texts[0].get_text()

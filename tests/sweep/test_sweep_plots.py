"""Figures of a sweep: every point in them, and nothing where there is nothing."""

import dataclasses

import pytest

from kit import plots
from kit.sweep.table import Ceilings, Row
from kit.train.steps import KernelProfile

ROW = Row(4, 64, "bfloat16", "gpt2", "ok", block_step_s=(0.0034, 0.0033, 0.0035), steps=30, engine="graphed")
PEER = dataclasses.replace(ROW, engine="trainer", block_step_s=(0.045, 0.046))
CARD = Ceilings("NVIDIA H100", {"bfloat16": 760e12}, {"bfloat16": "8192"}, 2.98e12, 1e-5)


def texts(figure):
    (axis,) = figure.axes
    return texts_of(axis)


def texts_of(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_each_engine_has_a_line_of_its_own():
    figure = plots.sweep_throughput([ROW, PEER], CARD, caption="H100")
    assert [line.split(",")[0] for line in texts(figure)] == ["graphed", "trainer"]


def test_no_two_lines_look_alike():
    rows = [
        dataclasses.replace(ROW, engine=engine, dtype=dtype, seq_len=tokens)
        for engine in ("trainer", "eager", "compiled", "graphed")
        for dtype, tokens in (("bfloat16", 64), ("bfloat16", 1024), ("float32", 64))
    ]
    lost = dataclasses.replace(ROW, engine="captured", outcome="missing", block_step_s=())
    (axis,) = plots.sweep_throughput([*rows, lost], CARD, caption="H100").axes
    looks = [(bar.lines[0].get_color(), bar.lines[0].get_marker()) for bar in axis.containers]
    assert len(looks) == len(set(looks)) == 12
    assert not [text for text in texts_of(axis) if "captured" in text]


def test_points_that_did_not_fit_are_named_in_the_figure():
    oom = dataclasses.replace(PEER, batch_size=64, outcome="oom", block_step_s=())
    (axis,) = plots.sweep_throughput([ROW, oom], CARD, caption="H100").axes
    assert [text.get_text().strip() for text in axis.texts] == ["out of memory: trainer"]


def test_points_stand_under_the_roof():
    figure = plots.roofline([ROW, PEER], CARD, caption="H100")
    (axis,) = figure.axes
    *points, roof = axis.get_lines()
    for line in points:
        for x, y in zip(line.get_xdata(), line.get_ydata()):
            assert y < min(760e12, x * 2.98e12)
    assert max(roof.get_ydata()) <= 760e12
    assert "graphed" in figure.get_suptitle()


def test_only_roofs_of_measured_precisions_are_drawn():
    card = dataclasses.replace(CARD, matmul_flop_per_s={"bfloat16": 760e12, "float8": 1400e12})
    (axis,) = plots.roofline([ROW], card, caption="H100").axes
    assert [text.get_text() for text in axis.texts] == ["bfloat16, measured"]


def test_the_distribution_shows_every_block():
    (axis,) = plots.sweep_step_times([ROW, PEER], caption="H100").axes
    dots = [len(line.get_xdata()) for line in axis.get_lines() if line.get_marker() == "."]
    assert sorted(dots) == [2, 3]


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
    assert "No point" in plots.sweep_step_times([empty], caption="").get_suptitle()
    for profiles in ({}, {"eager": KernelProfile(error="none")}):
        figure = plots.where_time_goes(profiles, caption="")
        assert "No profile" in figure.get_suptitle() and "CPU" in figure.axes[0].texts[0].get_text()

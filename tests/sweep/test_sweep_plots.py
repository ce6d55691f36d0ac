"""Figures of a sweep: every point in them, and nothing where there is nothing."""

import dataclasses

import pytest

from kit import plots
from kit.sweep.table import Ceilings, Row
from kit.train.metrics import KernelProfile

ROW = Row(4, 64, "bfloat16", "gpt2", "ok", block_step_s=(0.0034, 0.0033, 0.0035), steps=30, engine="graphed")
PEER = dataclasses.replace(ROW, engine="trainer", block_step_s=(0.045, 0.046))
CARD = Ceilings("NVIDIA H100", {"bfloat16": 760e12}, {"bfloat16": "8192"}, 2.98e12, 1e-5)


def texts(figure):
    (axis,) = figure.axes
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_each_engine_has_a_line_of_its_own():
    figure = plots.sweep_throughput([ROW, PEER], CARD, caption="H100")
    assert [line.split(",")[0] for line in texts(figure)] == ["graphed", "trainer"]


def test_points_stand_under_the_roof():
    figure = plots.roofline([ROW, PEER], CARD, caption="H100")
    (axis,) = figure.axes
    *points, roof = axis.get_lines()
    for line in points:
        for x, y in zip(line.get_xdata(), line.get_ydata()):
            assert y < min(760e12, x * 2.98e12)
    assert max(roof.get_ydata()) <= 760e12
    assert "graphed" in figure.get_suptitle()


def test_the_distribution_shows_every_block():
    (axis,) = plots.sweep_step_times([ROW, PEER], caption="H100").axes
    dots = [len(line.get_xdata()) for line in axis.get_lines() if line.get_marker() == "."]
    assert sorted(dots) == [2, 3]


def test_idle_time_is_what_no_kernel_used():
    profile = KernelProfile(step_time_s=0.04, device_time_s=0.01, groups={"matmul": 0.008, "other": 0.002})
    figure = plots.where_time_goes(profile, caption="H100")
    (axis,) = figure.axes
    assert sorted(bar.get_width() for bar in axis.patches) == pytest.approx([2, 8, 30])
    assert "25 %" in figure.get_suptitle()


def test_nothing_measured_is_a_figure_that_says_so():
    empty = dataclasses.replace(ROW, outcome="oom", block_step_s=())
    assert "No point" in plots.roofline([empty], CARD, caption="").get_suptitle()
    assert "No point" in plots.sweep_step_times([empty], caption="").get_suptitle()
    assert "No profile" in plots.where_time_goes(KernelProfile(error="none"), caption="").get_suptitle()

"""Figures of several GPUs: every point in them, the limit beside it, a plain word where there is nothing."""

import dataclasses
import io

import pytest

from kit.extras.scale import figures
from kit.extras.scale.ranks import AllReduce, ScaleRow, Scaling

ONE = ScaleRow(32, 1024, "bfloat16", "gpt2", "ok", (0.060, 0.061, 0.059))
TWO = {"world_size": 2, "parallel": "ddp"}
WEAK = dataclasses.replace(ONE, block_step_s=(0.062, 0.061, 0.063), block_compute_s=(0.060, 0.061, 0.059), **TWO)
STRONG = dataclasses.replace(WEAK, mode="strong", batch_size=16, block_step_s=(0.033,), block_compute_s=(0.031,))
OOM = dataclasses.replace(WEAK, outcome="oom", block_step_s=(), block_compute_s=())


def scaling(*rows):
    """The drawn figure (a layout that fails does so only then) and its axes."""
    figure = figures.scaling(Scaling("NVIDIA H200", rows), caption="H200")
    figure.savefig(io.BytesIO())
    return figure.get_suptitle(), *figure.axes


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_weak_and_strong_stand_beside_the_ideal_line_block_by_block():
    title, left, _ = scaling(ONE, WEAK, STRONG)
    assert f"NVIDIA H200: {title}." == Scaling("NVIDIA H200", (ONE, WEAK, STRONG)).sentence
    assert "weak scaling efficiency on 2" in title and legend(left) == ["ideal: N × one", "weak", "strong"]
    (ideal,) = [line for line in left.get_lines() if line.get_linestyle() == "--"]
    assert list(ideal.get_ydata()) == pytest.approx([32 * 1024 / 0.060, 2 * 32 * 1024 / 0.060])
    assert (left.get_ylim()[0], left.get_xlabel(), left.get_ylabel()) == (0, "ranks", "tokens/s of all ranks")
    # One GPU belongs to both lines.
    assert sum(len(line.get_xdata()) for line in left.get_lines() if line.get_marker() == ".") == (3 + 3) + (3 + 1)
    series = [container.lines[0] for container in left.containers]
    assert len({line.get_marker() for line in series}) == len({line.get_color() for line in series}) == 2


def test_bars_add_up_to_the_step():
    _, _, right = scaling(ONE, WEAK, STRONG)
    compute, exposed = ([bar.get_width() for bar in container] for container in right.containers)
    assert [a + b for a, b in zip(compute, exposed)] == pytest.approx([60, 62, 33])
    assert exposed == pytest.approx([0, 2, 2])
    assert [bar.get_x() for bar in right.containers[1]] == pytest.approx(compute), "one behind the other"
    assert [text.get_text() for text in right.get_yticklabels()] == ["1 rank", "weak, 2 ranks", "strong, 2 ranks"]


def test_compute_that_is_slower_than_the_step_is_no_negative_bar():
    _, _, right = scaling(ONE, dataclasses.replace(WEAK, block_compute_s=(0.07,)))
    assert min(bar.get_width() for bar in right.patches) >= 0
    assert max(bar.get_x() + bar.get_width() for bar in right.patches) == pytest.approx(62)


def test_a_step_that_cannot_be_split_is_not_called_compute():
    _, _, right = scaling(ONE, dataclasses.replace(WEAK, parallel="fsdp", block_compute_s=()))
    assert legend(right) == ["compute", "not split"]


def test_out_of_memory_stays_in_the_figure():
    assert [text.get_text() for text in scaling(ONE, OOM)[1].texts] == ["weak: out of memory"]


@pytest.mark.parametrize("rows", [(ONE,), (), (dataclasses.replace(ONE, outcome="error", block_step_s=()),)])
def test_one_gpu_or_nothing_is_a_figure_that_says_so(rows):
    title, left, _ = scaling(*rows)
    assert title == "Scaling could not be measured on more than one device"
    if rows == (ONE,):
        assert legend(left) == ["one rank, nothing to compare with"] and left.get_ylim()[1] > 32 * 1024 / 0.060


def all_reduces(world_size):
    times = {size: (size / 200e9, size / 210e9) for size in (2**20, 2**30)}
    return tuple(AllReduce(size, world_size, "float32", times_s) for size, times_s in times.items())


def test_bandwidth_stands_over_size_with_a_line_for_each_number_of_ranks():
    (axis,) = figures.all_reduce(all_reduces(2) + all_reduces(4), caption="2 × H200").axes
    assert legend(axis) == ["2 ranks, measured", "4 ranks, measured"]
    assert (axis.get_ylim()[0], axis.get_xscale()) == (0, "log")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1.00 MiB", "1.00 GiB"]


@pytest.mark.parametrize("rows", [(), all_reduces(1)])
def test_one_rank_is_a_figure_that_says_so(rows):
    figure = figures.all_reduce(rows, caption="one")
    figure.savefig(io.BytesIO())
    assert figure.get_suptitle().startswith("One rank only")
    assert [text.get_text() for text in figure.axes[0].texts] == ["one GPU: nothing to all-reduce with"]

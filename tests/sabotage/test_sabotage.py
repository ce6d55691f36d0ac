"""Every row of the table as a test: the sabotage is called what it is, and its healthy twin is not."""

import collections
import os
from pathlib import Path

import pytest

from . import rows_environment, rows_gpu, rows_recorded, rows_timing, rows_training, table  # noqa: F401

TWINS = {}
TRIED = []


def cases():
    for row in (row for row in table.ROWS if row.seam != "recorded run"):
        yield pytest.param(row, id=row.id, marks=[pytest.mark.gpu] if row.is_gpu else [])


def starts_cuda_by_itself():
    import torch

    return torch.version.cuda is not None


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("row", list(cases()))
def test_a_sabotage_is_called_what_it_is_and_its_healthy_twin_is_not(row):
    if row.seam == "site + nvml" and starts_cuda_by_itself():
        pytest.skip("a CUDA build of torch looks for the driver below what the seam patches; a CPU build does not")
    if os.name == "nt" and row.seam.startswith("smi"):
        pytest.skip("the fake nvidia-smi is a shell script")
    tried = table.attempt(row, twins=TWINS)
    TRIED.append(tried)
    assert not tried.problems, "\n".join(tried.problems)


def test_no_row_is_there_twice():
    counted = collections.Counter(row.id for row in table.ROWS)
    assert [id for id, count in counted.items() if count > 1] == []


def test_every_committed_report_says_that_the_smoke_is_no_benchmark():
    """C22."""
    reports = sorted((Path(__file__).resolve().parents[2] / "reports").glob("*/README.md"))
    assert reports
    for report in reports:
        assert "its times do not rank cards" in report.read_text(encoding="utf-8"), report.parent.name


def test_a_wrong_verdict_makes_a_row_red():
    """The table itself is no stamp: a sabotage that is called PASS, or a twin that is called FAIL, is a problem."""
    import dataclasses

    good = next(row for row in table.ROWS if row.id == "B02")
    assert table.attempt(good).problems == ()
    blind = dataclasses.replace(good, sabotage=good.twin)
    assert "must be FAIL" in table.attempt(blind).problems[0]
    harsh = dataclasses.replace(good, twin=good.sabotage)
    assert "twin" in (said := table.attempt(harsh).problems[0]) and "FAIL" in said
    vague = dataclasses.replace(good, words=("nowhere",))
    assert "is missing in" in table.attempt(vague).problems[0]


@pytest.fixture(scope="module", autouse=True)
def show_the_table(request):
    """With -s the table is printed at the end."""
    yield
    if request.config.getoption("capture") == "no" and TRIED:
        print("\n" + table.markdown(TRIED))

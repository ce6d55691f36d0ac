"""Every row over the recorded run as a test. It needs no torch, so that changed judges can be tried by the thousand."""

import pytest

from . import recorded, rows_recorded, rows_timing, rows_training, table  # noqa: F401

ROWS = [row for row in table.ROWS if row.seam == "recorded run"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_changed_record_is_called_what_it_is_and_its_healthy_twin_is_not(row):
    assert not table.attempt(row).problems


def test_the_healthy_run_has_no_finding_at_all():
    assert {check.outcome for check in recorded.good().checks.values()} == {recorded.PASS}
    assert tuple(recorded.good().checks) == tuple(rows_recorded.ROWS)

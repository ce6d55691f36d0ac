"""A notebook's session: the live figure never gets in the way, and nothing is kept where no folder is named."""

import types

import pytest

from kit import session
from kit.errors import UsageError
from kit.evidence.bundle import this_python
from kit.records import Outcome, loads
from kit.session import Picture, Session, recorded_machines


def Step(number):  # noqa: N802
    """What the figure reads of a step's record."""
    counts = {"samples": 4, "tokens": 256, "supervised_tokens": 252, "memory_peak_bytes": None, "is_watched": False}
    return types.SimpleNamespace(step=number, loss=4.0, started_s=0.0, step_time_s=0.01, **counts)


@pytest.fixture
def place(monkeypatch):
    """What stands in the one place of a notebook, and a clock on which a picture takes a second."""
    shown, now = [], [0.0]

    def tick():
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(Session, "_one_place", lambda self, first: shown.append)
    monkeypatch.setattr(session.time, "monotonic", tick)
    return shown


def test_the_live_figure_takes_a_fifth_of_the_time(place):
    draw = Session("x", device="cpu").live(40)
    for number in range(1, 41):
        draw(Step(number))
    assert 4 <= len(place) <= 9 and isinstance(place[0], Picture) and "step 1 of 40" in repr(place[0])


def test_nothing_is_drawn_outside_a_kernel_or_where_records_are_kept(tmp_path):
    assert Session("x", device="cpu").live(3) is None and Session("x", device="cpu").progress() is None
    assert Session("x", device="cpu", out=str(tmp_path)).live(3) is None


def test_the_folder_of_the_bundle_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(session.BUNDLE_VARIABLE, str(tmp_path))
    Session("x", device="cpu", nonce="n").finish(Outcome.REHEARSAL)
    record = loads((tmp_path / "raw" / "records" / "x.json").read_bytes())
    assert record["nonce"] == "n" and record["python"] == this_python()


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nothing kept" in Session("x", device="cpu").finish(Outcome.REHEARSAL)
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_says_so_in_text_and_in_html():
    session = Session("x", device="cpu")
    assert "REHEARSAL" in repr(session) and "REHEARSAL" in session._repr_html_()


def test_a_picture_carries_its_alternative_text():
    data, metadata = Picture(b"png", 'loss "4"')._repr_mimebundle_()
    assert data["text/plain"] == 'Figure: loss "4"' and metadata["image/png"]["alt"] == 'loss "4"'


def test_a_recorded_machine_that_is_not_there_is_a_usage_error():
    with pytest.raises(UsageError, match="no_such_machine"):
        recorded_machines("no_such_machine")

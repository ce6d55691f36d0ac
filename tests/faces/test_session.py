"""A notebook's session: the live plot never gets in the way, and nothing is kept where no folder is named."""

import dataclasses

import pytest

from kit.errors import UsageError
from kit.records import Outcome
from kit.session import Line, LivePlot, Picture, Session, recorded_machines


@dataclasses.dataclass
class Step:
    """What the plot reads of a step's record."""

    step: int
    loss: float | None = 4.0
    started_s: float = 0.0
    step_time_s: float = 0.01
    memory_peak_bytes: int | None = 2**30


class Clock:
    """Time passes between steps, and while a picture is drawn: each picture reads the clock three times."""

    def __init__(self, reading_s=0.0):
        self.now, self.reading_s = 0.0, reading_s

    def __call__(self):
        self.now += self.reading_s
        return self.now


def run(steps, *, step_s, reading_s=0.0):
    clock, shown = Clock(reading_s), []
    live = LivePlot(steps, show=lambda value: shown.append((clock.now, value)), clock=clock)
    for number in range(1, steps + 1):
        clock.now += step_s
        live(Step(number))
    return clock, shown


def test_fast_steps_are_drawn_at_most_four_times_a_second():
    clock, shown = run(200, step_s=0.01)
    times = [at for at, value in shown if isinstance(value, Picture)]
    assert 4 <= len(times) <= 4 * clock.now + 1
    assert all(later - earlier >= 0.25 for earlier, later in zip(times, times[1:]))


def test_slow_drawing_takes_a_fifth_of_the_time_at_most():
    clock, shown = run(100, step_s=0.1, reading_s=0.2)
    pictures = sum(isinstance(value, Picture) for _, value in shown)
    assert pictures * 0.2 <= 0.25 * clock.now


def test_slow_steps_are_drawn_each():
    _, shown = run(5, step_s=1.0)
    assert [type(value) for _, value in shown] == [Picture] * 4 + [Line]


def test_the_last_step_leaves_one_line_in_place_of_the_picture():
    _, shown = run(3, step_s=1.0)
    assert repr(shown[-1][1]) == "3 steps, drawn 2 times while they ran."


def test_a_step_without_a_finite_loss_is_drawn_too():
    shown = []
    LivePlot(2, show=shown.append)(Step(1, loss=None, memory_peak_bytes=None))
    assert isinstance(shown[0], Picture)


def test_outside_a_kernel_the_plot_is_silent(capsys):
    live = LivePlot(2)
    live(Step(1))
    live(Step(2))
    assert capsys.readouterr().out == ""


def test_a_headless_run_draws_nothing_while_it_trains(tmp_path):
    assert Session("x", device="cpu", out=str(tmp_path)).live(3) is None
    assert isinstance(Session("x", device="cpu").live(3), LivePlot)


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

"""Windows, by recorded behaviour: what its consoles, its torch and its signals do, without a Windows here."""

import os
import signal

import pytest

from kit import process
from kit.cli import _signals


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(process, "IS_WINDOWS", True)


def test_torchrun_is_told_that_there_is_no_libuv(windows):
    """torch's Windows builds end with "use_libuv was requested but PyTorch was built without libuv support"."""
    assert process.child_environment()["USE_LIBUV"] == "0"


@pytest.mark.parametrize("typed", ["py -m kit", "kit"])
def test_messages_name_the_kit_as_it_was_called(monkeypatch, typed):
    monkeypatch.setattr(process, "COMMAND", typed)
    text = "`python3 -m kit check` says why, python -m kit.train.control is no command"
    assert process.as_typed(text) == f"`{typed} check` says why, python -m kit.train.control is no command"


def test_elsewhere_libuv_is_left_alone():
    assert process.child_environment().get("USE_LIBUV") == os.environ.get("USE_LIBUV")


def test_ctrl_break_ends_a_command_like_ctrl_c(monkeypatch):
    """A console that is closed and a parent that ends its group both send SIGBREAK there; here SIGUSR1 stands in."""
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    caught = []
    with pytest.raises(KeyboardInterrupt), _signals(caught):
        signal.raise_signal(signal.SIGUSR1)
    assert caught == [signal.SIGINT] and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL

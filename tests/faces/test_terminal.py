"""The terminal: golden screens of recorded machines that fit 80 × 24; colour only where it shows.

After a change that is meant: `PYTHONPATH=. python tests/faces/test_terminal.py` writes them anew.
"""

import io
import json
import re
import shutil
import subprocess
import sys

import pytest

from kit import show
from kit.cli import main, parser
from kit.completion import script
from kit.process import ROOT

GOLDEN = ROOT / "tests" / "golden"
MACHINES = ROOT / "tests" / "machines"
SCREENS = ("h100", "rtx5090_windows_before", "rtx5090_windows_after", "old_driver_new_build", "pascal_r580_cu130",
           "cpu_build_with_gpu", "no_gpu_cpu_build", "container_without_driver", "driver_upgraded_not_restarted",
           "wrong_numbers", "h100_mask_99")  # fmt: skip


def check(name, folder):
    """Arguments of a check of a recorded machine."""
    facts = folder / f"{name}.json"
    recorded = json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8"))["facts"]
    facts.write_text(json.dumps(recorded), encoding="utf-8")
    return ["check", "--facts", str(facts)]


@pytest.fixture
def eighty(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


@pytest.mark.parametrize("name", SCREENS)
def test_a_recorded_machine_gives_its_golden_screen(name, eighty, capsys, tmp_path):
    main(check(name, tmp_path))
    assert capsys.readouterr().out == (GOLDEN / f"check_{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(MACHINES.glob("*.json")), ids=lambda path: path.stem)
def test_every_recorded_machine_fits_the_screen(path, eighty, capsys, tmp_path):
    main(check(path.stem, tmp_path))
    lines = capsys.readouterr().out.splitlines()
    # A command is never broken, since somebody will copy it; the terminal folds it.
    assert all(len(line) <= 80 for line in lines if not line.startswith("    "))
    assert sum(max(1, -(-len(line) // 80)) for line in lines) <= 24


def test_a_screen_holds_no_colour_where_stdout_is_no_terminal(capsys, tmp_path):
    main(check("rtx5090_windows_before", tmp_path))
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "is_terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(monkeypatch, variables, is_terminal, expected):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WT_SESSION", "1")
    monkeypatch.setattr(sys, "stdout", type("Stream", (io.StringIO,), {"isatty": lambda self: is_terminal})())
    assert show.is_coloured() is expected


def test_only_outcomes_are_coloured(monkeypatch, capsys, tmp_path, eighty):
    monkeypatch.setattr(show, "is_coloured", lambda: True)
    main(check("rtx5090_windows_before", tmp_path))
    shown = capsys.readouterr().out
    assert set(re.findall(r"\x1b\[3\dm(.*?)\x1b\[0m", shown)) == {"PASS", "FAIL"}
    golden = (GOLDEN / "check_rtx5090_windows_before.txt").read_text(encoding="utf-8")
    assert re.sub(r"\x1b\[\d+m", "", shown) == golden


def test_a_terminal_without_utf8_gets_our_characters_in_ascii(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show.prepare()
    print("4 × 64, 12 µs – 10.8 → 10.3 … 漢")
    sys.stdout.flush()
    assert raw.getvalue().decode().strip() == "4 x 64, 12 us - 10.8 -> 10.3 ~ ?"


def test_no_screen_needs_more_than_ascii_but_for_characters_that_have_a_fallback():
    for path in GOLDEN.glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert {char for char in text if ord(char) > 127} <= set(show._ASCII), path.name


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["kit", "che"], ["check"]),
        (["kit", "check", "--expect"], ["--expect-gpu"]),
        (["kit", "report", "--device", ""], ["cuda", "cpu"]),
        (["kit", "verify", "rep"], []),
    ],
)
def test_bash_completes_commands_options_and_choices(words, expected):
    quoted = " ".join(f"'{word}'" for word in words)
    program = f"{script(parser())}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _kit; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (expected, "")


def store():
    """Writes the golden screens."""
    import os
    import tempfile
    from contextlib import redirect_stdout
    from pathlib import Path

    os.environ.update(COLUMNS="80", LINES="24")
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in SCREENS:
            shown = io.StringIO()
            with redirect_stdout(shown):
                main(check(name, Path(folder)))
            (GOLDEN / f"check_{name}.txt").write_text(shown.getvalue(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    store()

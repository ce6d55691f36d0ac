"""The terminal: golden screens of recorded machines that fit 80 × 24; colour only where it shows.

After a change that is meant, KIT_UPDATE_GOLDEN=1 writes them anew.
"""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit import show
from kit.cli import main
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
    shown, golden = capsys.readouterr().out, GOLDEN / f"check_{name}.txt"
    if os.environ.get("KIT_UPDATE_GOLDEN"):
        golden.write_text(shown, encoding="utf-8", newline="\n")
    assert shown == golden.read_text(encoding="utf-8")


def test_a_demand_that_is_not_met_is_the_word_of_the_verdict(eighty, capsys, tmp_path):
    """It once said `FAIL (ok)`."""
    assert main([*check("h100", tmp_path), "--expect-gpu", "RTX 5090"]) == 1
    assert re.match(r"GPU check: FAIL \(environment\.\w+\)\n", capsys.readouterr().out)


def test_every_recorded_machine_fits_the_screen_and_needs_no_more_than_ascii(eighty, capsys, tmp_path):
    """But for characters that have a fallback."""
    for path in sorted(MACHINES.glob("*.json")):
        main(check(path.stem, tmp_path))
        text = capsys.readouterr().out
        # A command is never broken, since somebody will copy it; the terminal folds it.
        assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("    ")), path.name
        assert sum(max(1, -(-len(line) // 80)) for line in text.splitlines()) <= 24, path.name
        assert {char for char in text if ord(char) > 127} <= set(show._ASCII), path.name


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


@pytest.mark.parametrize("line", ["check --facts {}", "verify {}", "--help", "train --help"])
def test_a_reader_that_goes_away_leaves_no_noise_and_the_right_code(tmp_path, line):
    """`kit verify GOOD | head -1` once said FAIL of a good bundle."""
    target = tmp_path / "facts.json"
    check("rtx5090_windows_before", tmp_path)
    (tmp_path / "rtx5090_windows_before.json").rename(target)
    expected = 0 if "--help" in line else 1 if "check" in line else 4
    command = [sys.executable, "-m", "kit", *line.format(target).split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", expected)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_is_not_the_kits_mistake(tmp_path):
    argv = check("rtx5090_windows_before", tmp_path)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kit", *argv], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_nothing_is_cut_where_stdout_is_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)
    main(check("rtx5090_windows_before", tmp_path))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) > 100 and "…" not in shown


HOSTILE = "no\x1b]0;title\x07\u202efile\x9b"


@pytest.mark.parametrize("line", ["check --facts", "explain", "verify", "compare", "report --params", "sign --key k"])
def test_a_path_commands_no_terminal_and_reorders_no_json(line, capsys, tmp_path):
    argv = [*line.split(), str(tmp_path / HOSTILE), *(["x"] if line == "compare" else [])]
    for words in (argv, [*argv, "--json", "--device", "cpu"][: len(argv) + 1]):
        assert main(words) in (2, 4)
        out, err = capsys.readouterr()
        assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(out + err)
        if "--json" in words:
            assert HOSTILE in json.dumps(json.loads(out), ensure_ascii=False) or "\\u202e" in out


@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
def test_json_is_utf8_whatever_a_windows_console_speaks(encoding, tmp_path):
    recorded = json.loads((MACHINES / "rtx5090_windows_before.json").read_text(encoding="utf-8"))["facts"]
    recorded["driver"]["gpus"][0]["name"] = "NVIDIA 漢字 × µ"
    (tmp_path / "f.json").write_text(json.dumps(recorded), encoding="utf-8")
    command = [sys.executable, "-m", "kit", "check", "--facts", str(tmp_path / "f.json")]
    environ = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], capture_output=True, cwd=ROOT, env=environ)
        assert done.returncode == 1 and done.stderr == b""
    assert json.loads(done.stdout.decode("utf-8"))["facts"]["driver"]["gpus"][0]["name"] == "NVIDIA 漢字 × µ"

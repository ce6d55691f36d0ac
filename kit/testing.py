"""`kit test`: pytest over the tests and nbval over the notebooks, as one run with one closing line.

It adds nothing to what pytest says, except that a run without any test is no success.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kit
from kit.errors import (
    EXIT_FAIL,
    EXIT_INCONCLUSIVE,
    EXIT_INTERNAL,
    EXIT_PASS,
    EXIT_SIGINT,
    EXIT_USAGE,
    UsageError,
)
from kit.records import Outcome

ROOT = Path(kit.__file__).resolve().parents[1]
CELL_TIMEOUT_S = 600
# What may differ between two runs in a compared output, each rule with its reason.
SANITIZE = ROOT / "tests" / "notebooks" / "sanitize.cfg"
# pytest's own exit codes, https://docs.pytest.org/en/stable/reference/exit-codes.html
_EXIT_CODES = {
    0: EXIT_PASS,
    1: EXIT_FAIL,
    2: EXIT_SIGINT,
    3: EXIT_INTERNAL,
    4: EXIT_USAGE,
    5: EXIT_INCONCLUSIVE,
}


@dataclasses.dataclass(frozen=True)
class TestRun:
    """What `kit test` answers. record: the verdict and, for --json, the counts; they are absent where pytest
    ended too early."""

    __test__ = False  # a name with Test in front, but not a test

    exit_code: int
    record: dict[str, Any]


def run_tests(arguments: Sequence[str] = (), *, as_json: bool = False, root: Path = ROOT) -> TestRun:
    """Runs everything, or what `arguments` (pytest's own) select.

    The notebooks run in this very environment, with the parameters that stand in them:
    on a machine without a GPU that is the rehearsal. as_json: pytest's screen goes to
    stderr, because stdout belongs to the record.
    """
    if not (root / "tests").is_dir():
        raise UsageError(f"{root} has no tests.", expected="a checkout of the project.", todo="run it in a checkout.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", *_options(arguments), *arguments]
        if as_json:
            command.append(f"--junitxml={file}")
        out = sys.stderr if as_json else None
        code = subprocess.run(command, cwd=root, env=_environment(root), stdout=out).returncode
        # A negative code is a signal that ended pytest; the shell's convention is 128 + its number.
        code = _EXIT_CODES.get(code, EXIT_INTERNAL) if code >= 0 else 128 - code
        return TestRun(code, {"verdict": _verdict(code), **counts(file)})


def _options(arguments: Sequence[str]) -> list[str]:
    """nbval's, and the folders unless the caller names some.

    Lax: an error in any cell fails, and the cells tagged nbval-check-output must print what is stored.
    """
    options = [
        "--nbval-lax",
        "--nbval-current-env",
        f"--nbval-sanitize-with={SANITIZE}",
        f"--nbval-cell-timeout={CELL_TIMEOUT_S}",
        "-rs",
    ]
    return (
        options
        if any(word.startswith(("tests", "notebooks")) for word in arguments)
        else [*options, "tests", "notebooks"]
    )


def _environment(root: Path) -> dict[str, str]:
    """The kit can be imported from any folder, the kernel is this Python's, and nothing asks a model hub."""
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    fixed = {"PYTHONPATH": path, "JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **fixed}


def _verdict(code: int) -> str:
    known = {EXIT_PASS: Outcome.PASS, EXIT_INCONCLUSIVE: Outcome.INCONCLUSIVE}
    return str(known.get(code, Outcome.FAIL))


def counts(record: Path) -> dict[str, float]:
    """Totals of a junit file of pytest; empty where pytest ended before writing it."""
    try:
        suites = list(xml.etree.ElementTree.parse(record).getroot().iter("testsuite"))
    except (OSError, xml.etree.ElementTree.ParseError):
        return {}
    total = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }
    bad = total["failures"] + total["errors"] + total["skipped"]
    seconds = sum(float(suite.get("time", 0)) for suite in suites)
    return {"passed": total["tests"] - bad, **total, "seconds": seconds}


__all__ = ["TestRun", "counts", "run_tests"]

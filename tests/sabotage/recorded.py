"""The recorded H100 run, changed in one thing, as a seam: what `tests/train/verdict_sample.py` gives, judged."""

import importlib.util
import sys
from pathlib import Path

from kit.records import Outcome, Verdict

from .seams import Said

_PATH = Path(__file__).resolve().parents[1] / "train" / "verdict_sample.py"


def _load():
    if "verdict_sample" not in sys.modules:
        spec = importlib.util.spec_from_file_location("verdict_sample", _PATH)
        sys.modules["verdict_sample"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["verdict_sample"])
    return sys.modules["verdict_sample"]


PASS = Outcome.PASS
healthy, recorded, rehearsed = (getattr(_load(), name) for name in ("healthy", "recorded", "rehearsed"))


def judged(sample):
    return Said.of(Verdict.of(sample.checks().values()))


def good():
    return judged(healthy())

"""The bundles in reports/, made on real machines: each verifies with a bare Python, and no copy that was changed does."""

import subprocess
import sys
from pathlib import Path

import pytest

from kit.evidence.contents import SCHEMA_VERSION
from kit.evidence.verify import load, verify
from kit.records import Outcome, loads

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(
    path.parent
    for path in (ROOT / "reports").glob("*/manifest.json")
    if loads(path.read_bytes())["schema_version"] == SCHEMA_VERSION
)
if not BUNDLES:
    pytest.skip(f"reports/ holds no bundle of schema {SCHEMA_VERSION} yet", allow_module_level=True)
named = pytest.mark.parametrize("real", BUNDLES, ids=lambda path: path.name)


@named
def test_real_bundle_verifies_in_a_bare_python(real):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from kit.evidence.verify import verify, text; found = verify(sys.argv[1]); "
        "print(text(found)); sys.exit(0 if found.integrity.value == 'PASS' else 1)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(real)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@named
def test_real_bundle_is_red_where_it_failed_and_only_there(real):
    evidence = loads((real / "evidence.json").read_bytes())
    assert str(verify(real).outcome) == evidence["verdict"]["outcome"]


@named
def test_real_bundle_can_be_compared(real):
    evidence, files = load(real)
    if evidence.verdict.outcome in (Outcome.PASS, Outcome.REHEARSAL):
        from kit.extras.compare import read_side

        side = read_side([(evidence, files)])
        assert min(side.rates.values()) > 0 and side.keys["config.model"] and side.keys["dataset"]

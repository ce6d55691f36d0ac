"""A whole small bundle for each test, and how many trials there are."""

import os
import shutil

import evidence_sample
import pytest

# KIT_FULL=1 runs the counts that docs/evidence-tests.md publishes; without it, a tenth of the slow ones.
IS_FULL = os.environ.get("KIT_FULL") == "1"


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    return evidence_sample.make(tmp_path_factory.mktemp("original"))


@pytest.fixture
def bundle(original, tmp_path):
    """A copy of a whole bundle that a test may break."""
    return shutil.copytree(original, tmp_path / original.name)


@pytest.fixture(scope="session")
def trials():
    """trials(full): how many to run now."""
    return lambda full: full if IS_FULL else max(1, full // 10)

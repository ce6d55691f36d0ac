"""Rules for all tests: no network, no model hub, and a GPU test without a GPU is skipped with its reason. Here too:
the table of what the tests of evidence tried, which is printed at the end."""

from __future__ import annotations

import functools
import os
import socket

import pytest

from kit.process import begin_proof

# Before anything touches CUDA: the GPU rows judge trainings of this very process.
begin_proof()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two test processes, and what they start, share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@functools.cache
def no_gpu() -> str | None:
    """Why the `gpu` tests cannot run here; None where they can."""
    import torch

    if torch.cuda.is_available():
        return None
    return f"no NVIDIA GPU that torch {torch.__version__} can use"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and (reason := no_gpu()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def tally(request):
    """tally(what, trials, result): one row of the table, which a report carries here from another process."""
    return lambda *row: request.node.user_properties.append(("tally", row))


def pytest_terminal_summary(terminalreporter):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [pair for report in reports if getattr(report, "when", "") == "call" for pair in report.user_properties]
    rows = [row for name, row in told if name == "tally"]
    if rows:
        terminalreporter.section("evidence: what was tried")
        terminalreporter.write_line("| What was tried | Trials | Result |\n| --- | --- | --- |")
        for what, count, result in rows:
            terminalreporter.write_line(f"| {what} | {count:,} | {result} |")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only this machine answers: a test that reaches for another one fails instead of passing by luck."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if not host.startswith(("127.", "::1", "localhost")):
                raise AssertionError(f"a test tried to reach {host}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)

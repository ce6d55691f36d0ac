"""Rules for all tests: no network, no model hub, and a GPU test without a GPU is skipped with its reason."""

from __future__ import annotations

import functools
import os
import socket

import pytest

from kit.process import begin_proof

# Before anything touches CUDA: the GPU rows judge trainings of this very process.
begin_proof()
os.environ.setdefault("HF_HUB_OFFLINE", "1")


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

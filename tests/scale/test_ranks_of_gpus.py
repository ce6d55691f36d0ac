"""The same ranks over NCCL: run on a machine with several GPUs by `python -m pytest tests/scale -m gpu`."""

import os
from pathlib import Path

import pytest

from kit.extras.scale.scale import train_ranks
from kit.records import Outcome
from kit.train.config import TrainConfig

SEAMS = Path(__file__).resolve().parents[1] / "sabotage" / "seams"
SMOKE = TrainConfig()


@pytest.fixture(autouse=True)
def several_gpus():
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} GPU here, two are needed")


def fault(monkeypatch, what):
    path = os.pathsep.join([str(SEAMS / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("SABOTAGE_RECIPE", str(SEAMS / "recipes" / "rank_fault.py"))
    monkeypatch.setenv("RANK_FAULT", what)


@pytest.mark.gpu
def test_sharded_ranks_pass_every_check():
    import dataclasses

    result = train_ranks(dataclasses.replace(SMOKE, dtype="bfloat16"), 2, parallel="fsdp")
    assert result.verdict.outcome is Outcome.PASS, str(result)


@pytest.mark.gpu
def test_a_killed_rank_is_named_on_gpus(tmp_path, monkeypatch):
    fault(monkeypatch, "kill:1:5")
    result = train_ranks(SMOKE, 2, out=tmp_path)
    assert result.run.reason == "rank 1 was ended by SIGKILL"
    assert len(result.ranks[0].steps) >= 3 and result.verdict.outcome is Outcome.FAIL


@pytest.mark.gpu
def test_a_hanging_rank_is_named_on_gpus(tmp_path, monkeypatch):
    fault(monkeypatch, "hang:1:5")
    result = train_ranks(SMOKE, 2, out=tmp_path, hang_s=40)
    assert result.run.reason.startswith("rank 1 does not go on after 4 steps (rank_fault.py")
    assert result.verdict.outcome is Outcome.FAIL


@pytest.mark.gpu
def test_one_rank_too_many_is_named(tmp_path):
    import torch

    count = torch.cuda.device_count()
    result = train_ranks(SMOKE, count + 1, out=tmp_path)
    assert f"rank {count} is number {count} on its node, which shows {count} GPUs" in result.run.reason
    assert result.verdict.outcome is Outcome.FAIL

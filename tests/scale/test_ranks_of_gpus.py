"""The same ranks over NCCL: run on a machine with several GPUs by `python -m pytest tests/scale -m gpu`."""

import dataclasses

import pytest
from test_ranks_of_a_cpu import fault  # noqa: F401

from kit.extras.scale.scale import train_ranks
from kit.records import Outcome
from kit.train.config import TrainConfig

pytestmark = pytest.mark.gpu
SMOKE = TrainConfig()


@pytest.fixture(autouse=True)
def several_gpus():
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} GPU here, two are needed")


def test_sharded_ranks_pass_every_check():
    result = train_ranks(dataclasses.replace(SMOKE, dtype="bfloat16"), 2, parallel="fsdp")
    assert result.verdict.outcome is Outcome.PASS, str(result)


def test_a_killed_rank_is_named_on_gpus(tmp_path, fault):  # noqa: F811
    fault("kill:1:5")
    result = train_ranks(SMOKE, 2, out=tmp_path)
    assert result.run.reason == "rank 1 was ended by SIGKILL"
    assert len(result.ranks[0].steps) >= 3 and result.verdict.outcome is Outcome.FAIL


def test_a_hanging_rank_is_named_on_gpus(tmp_path, fault):  # noqa: F811
    fault("hang:1:5")
    result = train_ranks(SMOKE, 2, out=tmp_path, hang_s=40)
    assert result.run.reason.startswith("rank 1 does not go on after 4 steps (rank_fault.py")
    assert result.verdict.outcome is Outcome.FAIL


def test_one_rank_too_many_is_named(tmp_path):
    import torch

    count = torch.cuda.device_count()
    result = train_ranks(SMOKE, count + 1, out=tmp_path)
    assert f"rank {count} is number {count} on its node, which shows {count} GPUs" in result.run.reason
    assert result.verdict.outcome is Outcome.FAIL

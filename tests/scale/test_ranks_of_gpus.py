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
def count():
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} GPU here, two are needed")
    return torch.cuda.device_count()


def test_sharded_ranks_pass_every_check():
    result = train_ranks(dataclasses.replace(SMOKE, dtype="bfloat16"), 2, parallel="fsdp")
    assert result.verdict.outcome is Outcome.PASS, str(result)


@pytest.mark.parametrize(
    "what, said",
    [("kill", "rank 1 was ended by SIGKILL"), ("hang", "rank 1 does not go on after 4 steps (rank_fault.py")],
)
def test_a_rank_that_is_killed_or_hangs_is_named_on_gpus(tmp_path, fault, what, said):  # noqa: F811
    fault(f"{what}:1:5")
    result = train_ranks(SMOKE, 2, out=tmp_path, hang_s=40)
    assert result.run.reason.startswith(said) and result.verdict.outcome is Outcome.FAIL
    assert len(result.ranks[0].steps) >= 3


def test_one_rank_too_many_is_named(tmp_path, count):
    result = train_ranks(SMOKE, count + 1, out=tmp_path)
    assert f"rank {count} is number {count} on its node, which shows {count} GPUs" in result.run.reason
    assert result.verdict.outcome is Outcome.FAIL

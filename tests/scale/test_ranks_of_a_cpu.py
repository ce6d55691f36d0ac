"""Real ranks over Gloo: torchrun starts them, and what happens to one of them is named."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.errors import TrainingFailed, UsageError
from kit.extras.scale.group import Group, place
from kit.extras.scale.ranks import ScalePlan, ScaleRow
from kit.extras.scale.scale import scale, train_ranks
from kit.records import Outcome, from_json, loads
from kit.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
SEAMS = ROOT / "tests" / "sabotage" / "seams"
TINY = TrainConfig(model="tiny", device="cpu", batch_size=2, seq_len=16, steps=5, lr=1e-3)


@pytest.fixture
def fault(monkeypatch):
    """Plants a fault in one rank, see the recipe."""

    def plant(what):
        path = os.pathsep.join([str(SEAMS / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
        monkeypatch.setenv("PYTHONPATH", path)
        monkeypatch.setenv("SABOTAGE_RECIPE", str(SEAMS / "recipes" / "rank_fault.py"))
        monkeypatch.setenv("RANK_FAULT", what)

    return plant


def leftovers(folder):
    """Processes of ranks of this run, and of its torchrun, that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder / "request.json").encode() in words:
            found.append(words)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_train_one_model_and_each_is_judged(tmp_path, parallel):
    result = train_ranks(TINY, 2, parallel=parallel, out=tmp_path)
    assert result.verdict.outcome is Outcome.REHEARSAL, str(result)
    checks = {check.id: check for check in result.verdict.checks}
    assert checks["learning.ranks_equal"].outcome is Outcome.PASS
    assert checks["learning.ranks_agreement"].values["largest_difference"] < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0", "rank-1", "ranks.json"]


@pytest.mark.slow
def test_under_torchrun_rank_0_answers_for_all():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [
        "--device",
        "cpu",
        "--model",
        "tiny",
        "--steps",
        "5",
        "--seq-len",
        "16",
        "--batch-size",
        "2",
        "--lr",
        "1e-3",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "kit",
            "train",
            "--json",
            *words,
        ],
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["verdict"] == "REHEARSAL"
    assert [rank["rank"] for rank in answer["ranks"]] == [0, 1]


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_others_evidence_is_kept(tmp_path, fault):
    fault("kill:1:3")
    result = train_ranks(TINY, 2, out=tmp_path)
    assert result.verdict.outcome is Outcome.FAIL
    assert result.run.state == "FAILED" and result.run.reason == "rank 1 was ended by SIGKILL"
    # It was ended in its third step, after the exchange: rank 0 may have finished that one.
    assert len(result.ranks[1].steps) == 2 and len(result.ranks[0].steps) in (2, 3)
    checks = {check.id: check for check in result.verdict.checks}
    assert (
        checks["integrity.ranks_complete"].outcome is Outcome.FAIL
        and "rank 1" in checks["integrity.ranks_complete"].found
    )
    # Both came as far as to say which device they had.
    assert checks["native.ranks_present"].outcome is Outcome.PASS
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_its_place_and_nothing_is_left_behind(tmp_path, fault):
    fault("hang:1:3")
    result = train_ranks(TINY, 2, out=tmp_path, hang_s=15)
    assert result.verdict.outcome is Outcome.FAIL
    assert result.run.reason.startswith("rank 1 does not go on after 2 steps (rank_fault.py")
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_ranks_end_with_the_one_who_started_them(tmp_path):
    """A scheduler may end the kit with a signal that nobody can catch."""
    words = [
        "train",
        "--gpus",
        "2",
        "--device",
        "cpu",
        "--model",
        "tiny",
        "--steps",
        "5000",
        "--seq-len",
        "16",
        "--out",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "kit", *words, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    steps = tmp_path / "rank-1" / "steps.jsonl"
    wait_for(lambda: steps.is_file() and steps.stat().st_size > 0, 120)
    assert leftovers(tmp_path) != []
    process.kill()
    process.wait()
    wait_for(lambda: leftovers(tmp_path) == [], 60)


def wait_for(is_so, limit_s):
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end, f"not within {limit_s} s"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_rank_whose_gradients_drift_ends_with_other_weights(fault):
    fault("drift:1:3")
    result = train_ranks(TINY, 2)
    red = {check.id for check in result.verdict.findings if check.required}
    assert result.verdict.outcome is Outcome.FAIL and "learning.ranks_equal" in red


@pytest.mark.slow
def test_the_speed_is_measured_on_one_and_two_ranks(tmp_path):
    plan = ScalePlan((1, 2), TINY, blocks=2, block_s=0.05)
    result = scale(plan, out=tmp_path / "new")
    rows = result.scaling.rows
    assert [(row.mode, row.world_size, row.batch_size, row.parallel) for row in rows] == [
        ("weak", 1, 2, "none"),
        ("weak", 2, 2, "ddp"),
        ("strong", 2, 1, "ddp"),
    ]
    assert all(row.outcome == "ok" and len(row.block_step_s) == 2 for row in rows)
    assert [len(row.block_compute_s) for row in rows] == [0, 2, 2]
    kept = loads((tmp_path / "new" / "scaling.json").read_bytes())
    assert from_json(tuple[ScaleRow, ...], kept["rows"]) == rows and (tmp_path / "new" / "scaling.csv").is_file()
    assert {row.world_size for row in result.all_reduce} == {2}


def test_a_port_in_use_is_a_clear_message(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        group = Group("cpu", "ddp")
        with pytest.raises(TrainingFailed, match=f"port {port} on 127.0.0.1 is in use"):
            group.start()


def test_more_ranks_than_gpus_name_the_rank_and_the_number_of_gpus(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    group = Group(
        "cuda", "ddp", {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    )
    with pytest.raises(Exception, match="rank 2 is number 2 on its node, which shows 2 GPUs") as error:
        group.start()
    assert error.value.exit_code == 1 and "at most 2 ranks" in error.value.todo


def test_ranks_that_share_a_gpu_are_named_before_nccl_starts(monkeypatch):
    group = Group("cuda", "ddp", {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "h", "MASTER_PORT": "1"})
    monkeypatch.setattr(group, "all_of", lambda own: ["GPU-a", "GPU-b", "GPU-a"])
    with pytest.raises(TrainingFailed, match="ranks 0 and 2 took the same GPU"):
        group._refuse_shared()


@pytest.mark.slow
def test_ranks_without_gpus_fail_by_name(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = train_ranks(dataclasses.replace(TINY, device="cuda"), 2, out=tmp_path)
    assert result.verdict.outcome is Outcome.FAIL
    # Whichever was first, in its own words.
    assert "ended with exit code 1: " in result.run.reason and "no usable CUDA device" in result.run.reason
    assert re.match("rank [01]: ", {check.id: check for check in result.verdict.checks}["native.ranks_devices"].found)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
        {"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
    ],
)
def test_an_environment_that_makes_no_sense_is_a_usage_error(environment):
    with pytest.raises(UsageError, match="the environment says"):
        place(environment)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"gpus": (2, 4)}, "gpus="),
        ({"gpus": (1, 4, 2)}, "gpus="),
        ({"gpus": ()}, "gpus="),
        ({"modes": ("both",)}, "modes="),
        ({"parallel": "tp"}, "parallel="),
        ({"blocks": 0}, "blocks="),
        ({"config": dataclasses.replace(TINY, engine="graphed")}, "engine="),
    ],
)
def test_a_plan_that_cannot_be_measured_is_refused(changes, found):
    with pytest.raises(UsageError, match=found):
        ScalePlan(**{"gpus": (1, 2), "config": TINY, **changes})


def test_a_batch_that_cannot_be_divided_has_no_point_in_strong_scaling():
    plan = ScalePlan((1, 3), dataclasses.replace(TINY, batch_size=4))
    assert [mode for mode, _ in plan.points(3)] == ["weak"]
    assert plan.undivided(3) == "4 samples cannot be divided among 3 GPUs" and plan.undivided(2) is None

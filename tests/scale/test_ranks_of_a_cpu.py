"""Real ranks over Gloo: torchrun starts them, and what happens to one of them is named. A launch is a torchrun and two
ranks that import torch, some ten seconds of two cores, so each of them shows all that it can."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.errors import TrainingFailed, UsageError
from kit.extras.scale import scale as module
from kit.extras.scale.ranks import ScalePlan, ScaleRow
from kit.extras.scale.scale import scale, train_ranks
from kit.extras.scale.worker import Group
from kit.records import Outcome, from_json, loads
from kit.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
SEAMS = ROOT / "tests" / "sabotage" / "seams"
TINY = TrainConfig(model="tiny", device="cpu", batch_size=2, seq_len=16, steps=5, lr=1e-3)
WORDS = ["train", "--device", "cpu", "--model", "tiny", "--seq-len", "16", "--batch-size", "2", "--lr", "1e-3"]
PLACE = {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


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
def test_under_torchrun_rank_0_answers_for_all_sharded_ranks(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "kit"]
    command = [*torchrun, *WORDS, "--steps", "5", "--json", "--parallel", "fsdp", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["verdict"] == "REHEARSAL"
    assert [rank["rank"] for rank in answer["ranks"]] == [0, 1]
    checks = {check["id"]: check for check in answer["checks"]}
    assert checks["learning.ranks_equal"]["outcome"] == "PASS"
    assert checks["learning.ranks_agreement"]["values"]["largest_difference"] < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0", "rank-1", "ranks.json"]


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_others_evidence_is_kept(tmp_path, fault):
    fault("kill:1:3")
    result = train_ranks(TINY, 2, out=tmp_path)
    checks = {check.id: check for check in result.verdict.checks}
    assert result.verdict.outcome is checks["integrity.ranks_complete"].outcome is Outcome.FAIL
    assert (result.run.state, result.run.reason) == ("FAILED", "rank 1 was ended by SIGKILL")
    # It was ended in its third step, after the exchange: rank 0 may have finished that one.
    assert len(result.ranks[1].steps) == 2 and len(result.ranks[0].steps) in (2, 3)
    # Both came as far as to say which device they had.
    assert checks["native.ranks_present"].outcome is Outcome.PASS
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_its_place_and_nothing_is_left_behind(tmp_path, fault):
    fault("hang:1:3")
    result = train_ranks(TINY, 2, out=tmp_path, hang_s=5)
    assert result.verdict.outcome is Outcome.FAIL
    assert result.run.reason.startswith("rank 1 does not go on after 2 steps (rank_fault.py")
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_ranks_end_with_the_one_who_started_them(tmp_path):
    """A scheduler may end the kit with a signal that nobody can catch."""
    command = [sys.executable, "-m", "kit", *WORDS, "--steps", "5000", "--gpus", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
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
def test_ranks_train_one_model_and_one_whose_gradients_drift_ends_with_other_weights(tmp_path, fault):
    """All else is well, so that the whole run is judged beside what is wrong with it."""
    fault("drift:1:2")
    result = train_ranks(dataclasses.replace(TINY, steps=2), 2, out=tmp_path / "new")
    assert {check.id for check in result.verdict.findings if check.required} == {"learning.ranks_equal"}
    assert result.verdict.outcome is Outcome.FAIL and "2 ranks (CPU)" in result.sentence
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["rank-0", "rank-1", "ranks.json"]


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
    assert {row.world_size for row in result.all_reduce} == {2} and "bus bandwidth" in str(result)


@pytest.mark.parametrize(("reason", "outcome"), [("rank 1 was ended by SIGKILL", "error"), ("out of memory", "oom")])
def test_a_number_of_ranks_that_fails_is_a_row_and_one_alone_an_error(monkeypatch, reason, outcome):
    base = ScaleRow(3, 16, "float32", "tiny", "ok", (0.01,))

    def launch(plan, count, out, **_):
        text = json.dumps({"device_name": "CPU", "rows": [dataclasses.asdict(base)], "all_reduce": []})
        (out / "scale.json").write_text(text)
        return reason if count > 1 or alone else None

    monkeypatch.setattr(module, "launch", launch)
    plan, alone = ScalePlan((1, 2), dataclasses.replace(TINY, batch_size=3)), False
    undivided = "3 samples cannot be divided among 2 GPUs"
    rows = scale(plan).scaling.rows
    assert [(row.mode, row.outcome, row.reason) for row in rows] == [
        ("weak", "ok", None), ("weak", outcome, reason), ("strong", "error", undivided),
    ]  # fmt: skip
    alone = True
    with pytest.raises(TrainingFailed, match=f"one GPU alone: {reason}"):
        scale(plan)


def test_the_first_rank_that_failed_is_named_in_its_own_words():
    failure = "  rank      : {} (local_rank: {})\n  exitcode  : {} (pid: 7)\n"
    log = "kit: no usable CUDA device\n" + failure.format(1, 1, -15) + "Root Cause\n" + failure.format(0, 0, 1)
    assert module._why(1, log) == "rank 0 ended with exit code 1: no usable CUDA device"
    assert module._why(1, failure.format(1, 1, -9) + failure.format(0, 0, 1)) == "rank 1 was ended by SIGKILL"
    assert module._why(1, "kit: no\nmore") == "no" and module._why(7, "") == "torchrun ended with 7: no message"


def test_a_port_in_use_is_a_clear_message(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {**PLACE, "RANK": "0", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        group = Group("cpu", "ddp")
        with pytest.raises(TrainingFailed, match=f"port {port} on 127.0.0.1 is in use"):
            group.start()


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs whose ranks have met."""
    import torch

    for name in ("set_device", "get_device_name", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, lambda index: type("Properties", (), {"uuid": "a"}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)


def test_more_ranks_than_gpus_name_the_rank_and_the_number_of_gpus(two_gpus):
    with pytest.raises(Exception, match="rank 2 is number 2 on its node, which shows 2 GPUs") as error:
        Group("cuda", "ddp", PLACE).start()
    assert error.value.exit_code == 1 and "at most 2 ranks" in error.value.todo


def test_ranks_that_share_a_gpu_are_named_before_nccl_starts(two_gpus, monkeypatch):
    group = Group("cuda", "ddp", {**PLACE, "LOCAL_RANK": "0"})
    monkeypatch.setattr(group, "all_of", lambda own: [own, "GPU-b", own])
    with pytest.raises(TrainingFailed, match="ranks 0 and 2 took the same GPU"):
        group.start()


@pytest.mark.parametrize("changes", [{"MASTER_ADDR": ""}, {"RANK": "3"}, {"RANK": "x"}, {"LOCAL_RANK": "-1"}])
def test_an_environment_that_makes_no_sense_is_a_usage_error(changes):
    with pytest.raises(UsageError, match="the environment says"):
        Group("cpu", "ddp", {**PLACE, **changes})


REFUSED = [
    *({"gpus": gpus} for gpus in ((2, 4), (1, 4, 2), ())),
    *({"modes": ("both",)}, {"parallel": "tp"}, {"blocks": 0}),
    {"config": dataclasses.replace(TINY, engine="graphed")},
]


@pytest.mark.parametrize("changes", REFUSED)
def test_a_plan_that_cannot_be_measured_is_refused(changes):
    (field,) = changes
    with pytest.raises(UsageError, match="engine=" if field == "config" else f"{field}="):
        ScalePlan(**{"gpus": (1, 2), "config": TINY, **changes})

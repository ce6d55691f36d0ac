"""All-reduces between two real processes on the CPU, over Gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START = """
import json, os
import torch
import torch.distributed as dist
torch.set_num_threads(1)
from kit.records import to_json
from kit.extras.scale import worker
def of(*sizes):
    worker.SIZES_BYTES = {"cpu": sizes}
    return worker.measure_all_reduce("cpu")
dist.init_process_group(os.environ["BACKEND"])
rank = dist.get_rank()
def tell(**values):
    print(json.dumps(values), flush=True)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ranks(program, count=2, backend="gloo"):
    """What each rank told in its last line. A rank that waits for ever is killed after a minute."""
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
              "PYTHONPATH": str(ROOT), "WORLD_SIZE": str(count), "BACKEND": backend}  # fmt: skip
    if sys.platform == "linux":
        shared["GLOO_SOCKET_IFNAME"] = "lo"
    code = f"{START}\n{program}\ndist.destroy_process_group()\n"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        ended = [process.communicate(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
    errors = [error for process, (_, error) in zip(started, ended) if process.returncode]
    assert not errors, errors[0]
    return [json.loads(text.splitlines()[-1]) for text, _ in ended]


@pytest.fixture(scope="module")
def measured():
    """All that two ranks do, in one start: healthy, poor in memory, and with links that break a sum."""
    return ranks("""
rows = worker.measure_all_reduce("cpu")
given = of(4096, 8192)
worker.BUDGET_S["cpu"] = 1e-9
short = of(4096, 8192)
worker.BUDGET_S["cpu"] = 2.0
allocate = worker._allocate
worker._allocate = lambda device, size: None if rank == 1 and size > 4096 else allocate(device, size)
poor = of(4096, 8192)
worker._allocate = allocate
worker._time = lambda tensor, wait, take=worker._time: take(tensor, wait) * 0 + 1 + rank
slow = of(4096)
healthy = worker.check_sum("cpu")
all_reduce = dist.all_reduce
def broken(tensor, *more, **options):
    all_reduce(tensor, *more, **options)
    tensor[654_321] = float("nan") if rank == 0 else 2.5
dist.all_reduce = broken
wrong = worker.check_sum("cpu")
def absent(tensor, *more, **options):
    if rank == 1:
        tensor.zero_()
    all_reduce(tensor, *more, **options)
dist.all_reduce = absent
lacking = worker.check_sum("cpu")
dist.all_reduce = all_reduce
tell(rows=to_json(rows), given=to_json(given), short=to_json(short), poor=to_json(poor),
     slow=slow[0].times_s, healthy=healthy, wrong=repr(wrong), lacking=lacking)
""")


def test_every_rank_has_the_same_rows_with_the_slowest_ranks_times(measured):
    first, second = measured
    assert first["rows"] == second["rows"]
    assert [row["size_bytes"] for row in first["rows"]] == [2**16, 2**18, 2**20, 2**22]
    for row in first["rows"]:
        assert (row["world_size"], row["dtype"]) == (2, "float32")
        assert 3 <= len(row["times_s"]) <= 25 and min(row["times_s"]) > 0


def test_a_time_is_that_of_the_slowest_rank(measured):
    assert [told["slow"] for told in measured] == [[2.0, 2.0, 2.0]] * 2


def test_sizes_are_measured_from_the_smallest_on(measured):
    assert [row["size_bytes"] for row in measured[0]["given"]] == [4096, 8192]


def test_a_size_beyond_the_budget_is_left_out_on_all_ranks(measured):
    assert [[row["size_bytes"] for row in told["short"]] for told in measured] == [[4096], [4096]]


def test_a_size_that_one_rank_cannot_hold_is_left_out_on_all_ranks(measured):
    assert [[row["size_bytes"] for row in told["poor"]] for told in measured] == [[4096], [4096]]


def test_the_sum_of_two_ranks_is_three(measured):
    assert [told["healthy"] for told in measured] == [[3.0, 3.0]] * 2


def test_one_wrong_place_of_a_million_is_found(measured):
    """On rank 0 it is not a number."""
    assert [told["wrong"] for told in measured] == ["(nan, 3.0)", "(2.5, 3.0)"]


def test_a_rank_that_adds_nothing_is_found(measured):
    assert [told["lacking"] for told in measured] == [[1.0, 3.0]] * 2


@pytest.mark.gpu
def test_one_gpu_alone_is_measured_over_nccl():
    (told,) = ranks(
        """
rows = [row for row in worker.measure_all_reduce("cuda") if row.size_bytes <= 2**22]
tell(sizes=[row.size_bytes for row in rows], sum=worker.check_sum("cuda"))
""",
        count=1,
        backend="nccl",
    )
    assert told == {"sizes": [2**20, 2**22], "sum": [1.0, 1.0]}

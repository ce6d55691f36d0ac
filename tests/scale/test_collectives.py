"""All-reduces between two real processes on the CPU, over Gloo."""

import json
import socket
import subprocess
import sys

import pytest

from kit.process import child_environment

START = """
import json, os
import torch
import torch.distributed as dist
torch.set_num_threads(1)
from kit.records import to_json
from kit.extras.scale import worker
def sizes(*sizes):
    if sizes:
        worker.SIZES_BYTES = {"cpu": sizes}
    return [row.size_bytes for row in worker.measure_all_reduce("cpu")]
dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
rank, told = dist.get_rank(), {}
"""
TWO = """
told = {"rows": to_json(worker.measure_all_reduce("cpu")), "given": sizes(4096, 8192)}
worker.BUDGET_S["cpu"] = 1e-9
told["short"] = sizes(4096, 8192)
worker.BUDGET_S["cpu"] = 2.0
empty = torch.empty
def poor(count, **more):
    if rank == 1 and count > 1024:
        raise torch.OutOfMemoryError("no")
    return empty(count, **more)
torch.empty = poor
told["poor"] = sizes(4096, 8192)
torch.empty = empty
worker.timed = lambda step, steps, device: 1.0 + rank
worker.SIZES_BYTES = {"cpu": (4096,)}
told["slow"] = worker.measure_all_reduce("cpu")[0].times_s
told["healthy"] = worker.check_sum("cpu")
all_reduce = dist.all_reduce
def broken(tensor, *more, **options):
    all_reduce(tensor, *more, **options)
    tensor[654_321] = float("nan") if rank == 0 else 2.5
dist.all_reduce = broken
told["wrong"] = repr(worker.check_sum("cpu"))
def absent(tensor, *more, **options):
    if rank == 1:
        tensor.zero_()
    all_reduce(tensor, *more, **options)
dist.all_reduce = absent
told["lacking"] = worker.check_sum("cpu")
dist.all_reduce = all_reduce
"""
ONE = """
rows = [row for row in worker.measure_all_reduce("cuda") if row.size_bytes <= 2**22]
told = {"sizes": [row.size_bytes for row in rows], "sum": worker.check_sum("cuda")}
"""
END = "print(json.dumps(told), flush=True)\ndist.destroy_process_group()\n"


def ranks(program, count):
    """What each rank told in its last line. A rank that waits for ever is killed after a minute."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    if sys.platform == "linux":
        shared["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, "-c", START + program + END]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    places = [child_environment(**shared, RANK=str(rank)) for rank in range(count)]
    started = [subprocess.Popen(command, env=environment, **pipes) for environment in places]
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
    return ranks(TWO, 2)


def test_every_rank_has_the_same_rows(measured):
    first, second = measured
    assert first["rows"] == second["rows"]
    assert [row["size_bytes"] for row in first["rows"]] == [2**16, 2**18, 2**20, 2**22]
    for row in first["rows"]:
        assert (row["world_size"], row["dtype"]) == (2, "float32")
        assert 3 <= len(row["times_s"]) <= 25 and min(row["times_s"]) > 0


@pytest.mark.parametrize(
    "what, expected",
    [
        ("slow", [[2.0] * 3] * 2),
        ("given", [[4096, 8192]] * 2),
        ("short", [[4096]] * 2),
        ("poor", [[4096]] * 2),
        ("healthy", [[3.0, 3.0]] * 2),
        ("wrong", ["(nan, 3.0)", "(2.5, 3.0)"]),
        ("lacking", [[1.0, 3.0]] * 2),
    ],
)
def test_ranks_agree_on_what_is_measured_and_find_a_wrong_sum(measured, what, expected):
    """Times are the slowest rank's; a size beyond the budget, or that one rank cannot hold, is left out on all; one
    wrong place of a million is found, and a rank that adds nothing."""
    assert [told[what] for told in measured] == expected


@pytest.mark.gpu
def test_one_gpu_alone_is_measured_over_nccl():
    assert ranks(ONE, 1) == [{"sizes": [2**20, 2**22], "sum": [1.0, 1.0]}]

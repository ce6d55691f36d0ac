"""How the GPUs are joined: NVML's answers on fake machines, and the figures that follow from them."""

import sys
import types

import pytest

from kit.extras.scale.ranks import (
    AllReduce,
    Link,
    Pair,
    Topology,
    all_reduce_table,
    best,
    link_bytes_per_s,
    ring_bytes_per_s,
    sentence,
)
from kit.extras.scale.topology import read_topology
from kit.records import dumps, from_json, loads

SWITCH, GPU = 2, 0


class FakeNvml(types.ModuleType):
    """nvidia-ml-py on a machine that `gpus` describes: each {"links": {number: far end}, "speed": MB/s, …},
    where a far end is 'switch', 'hidden', 'down' or another GPU's number. level: ancestor of every pair.
    gone: functions that this driver has not. nvlink_pairs: those that NVML says may use NVLink."""

    class NVMLError(Exception): ...

    class NVMLError_NotSupported(NVMLError): ...

    class NVMLError_InvalidArgument(NVMLError): ...

    class NVMLError_FunctionNotFound(NVMLError): ...

    class NVMLError_NotFound(NVMLError): ...

    def __init__(self, gpus, *, level=50, gone=(), nvlink_pairs=()):
        super().__init__("pynvml")
        self.gpus, self.level, self.gone = gpus, level, gone
        self.nvlink_pairs, self.open = nvlink_pairs, 0
        for name in dir(type(self)):
            if name.startswith("fake_"):
                setattr(self, name.replace("fake_", "nvml"), self._guard(name))

    def _guard(self, name):
        function, told = getattr(self, name), name.replace("fake_", "nvml")

        def guarded(*arguments):
            if told in self.gone:
                raise self.NVMLError_FunctionNotFound
            return function(*arguments)

        return guarded

    def fake_Init(self):
        self.open += 1

    def fake_Shutdown(self):
        self.open -= 1

    def fake_DeviceGetCount(self):
        return len(self.gpus)

    def fake_DeviceGetHandleByIndex(self, index):
        return index

    def fake_DeviceGetHandleByUUID(self, uuid):
        if not uuid.startswith("GPU-uuid") or int(uuid[-1]) >= len(self.gpus):
            raise self.NVMLError_NotFound
        return int(uuid[-1])

    def fake_DeviceGetName(self, gpu):
        return "NVIDIA H200"

    def fake_DeviceGetUUID(self, gpu):
        return f"GPU-uuid{gpu}".encode()

    def fake_DeviceGetPciInfo(self, gpu):
        return types.SimpleNamespace(domain=0, bus=gpu + 1, device=0)

    def fake_DeviceGetCurrPcieLinkGeneration(self, gpu):
        return 1

    def fake_DeviceGetCurrPcieLinkWidth(self, gpu):
        return self.gpus[gpu].get("width", 16)

    def fake_DeviceGetMaxPcieLinkGeneration(self, gpu):
        return self.gpus[gpu].get("generation", 5)

    def fake_DeviceGetMaxPcieLinkWidth(self, gpu):
        return 16

    def _far(self, gpu, link):
        links = self.gpus[gpu].get("links")
        if links is None:
            raise self.NVMLError_NotSupported
        if link not in links:
            raise self.NVMLError_InvalidArgument
        return links[link]

    def fake_DeviceGetNvLinkState(self, gpu, link):
        return int(self._far(gpu, link) != "down")

    def fake_DeviceGetNvLinkVersion(self, gpu, link):
        return 6

    def fake_DeviceGetNvLinkRemoteDeviceType(self, gpu, link):
        far = self._far(gpu, link)
        if far == "hidden":
            return 0xFF
        return SWITCH if far == "switch" else GPU

    def fake_DeviceGetNvLinkRemotePciInfo(self, gpu, link):
        far = self._far(gpu, link)
        if far == "hidden":
            raise self.NVMLError_NotSupported
        return types.SimpleNamespace(domain=0, bus=200 if far == "switch" else far + 1, device=0)

    def fake_DeviceGetFieldValues(self, gpu, ids):
        values = []
        for field in ids:
            is_told = isinstance(field, tuple) and field[0] == 164 and "speed" in self.gpus[gpu]
            is_told = is_told or (field == 90 and "common" in self.gpus[gpu])
            # What NVML did not fill is whatever was there.
            speed = self.gpus[gpu].get("speed") or self.gpus[gpu].get("common", 0) if is_told else 999
            if isinstance(speed, dict):
                speed = speed[field[1]]
            values.append(
                types.SimpleNamespace(
                    nvmlReturn=0 if is_told else 3, valueType=1, value=types.SimpleNamespace(uiVal=speed)
                )
            )
        return values

    def fake_DeviceGetTopologyCommonAncestor(self, first, second):
        return self.level

    def fake_DeviceGetP2PStatus(self, first, second, index):
        # nvidia-ml-py gives a tuple as the index of reading, which its own function cannot take.
        assert index in (0, 2)
        return 0 if index == 0 or (first, second) in self.nvlink_pairs else 5


def machine(monkeypatch, gpus, **more):
    fake = FakeNvml(gpus, **more)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def on_a_switch(count):
    return [{"links": dict.fromkeys(range(18), "switch"), "speed": 26562} for _ in range(count)]


def test_four_gpus_on_a_switch_are_all_joined_by_all_links(monkeypatch):
    fake = machine(monkeypatch, on_a_switch(4), level=40)
    topology = read_topology()
    assert [str(pair) for pair in topology.pairs] == ["NV18"] * 6
    assert topology.pairs[0] == Pair(0, 1, "NODE", 18, True)
    assert topology.links[3] == Link(3, "NVIDIA H200", "GPU-uuid3", 18, 26562e6, "4.0", 1, 16, 5, 16)
    assert topology.missing == () and fake.open == 0
    assert link_bytes_per_s(topology, 0) == ring_bytes_per_s(topology, 4) == pytest.approx(478.1e9, rel=1e-3)


def test_a_topology_survives_a_file(monkeypatch):
    machine(monkeypatch, on_a_switch(2))
    topology = read_topology()
    assert from_json(Topology, loads(dumps(topology))) == topology
    row = AllReduce(1024, 2, "float32", (0.1, 0.2))
    assert from_json(AllReduce, loads(dumps(row))) == row


def test_gpus_on_pcie_only_have_no_nvlink_and_lack_nothing(monkeypatch):
    machine(monkeypatch, [{"generation": 4}, {"generation": 4, "width": 8}], level=30)
    topology = read_topology()
    assert (topology.links[0].nvlinks, topology.links[0].nvlink_version) == (0, None)
    assert (str(topology.pairs[0]), topology.pairs[0].nvlinks, topology.missing) == ("PHB", 0, ())
    assert link_bytes_per_s(topology, 0) == pytest.approx(31.5e9, rel=1e-3)
    assert ring_bytes_per_s(topology, 2) == pytest.approx(15.75e9, rel=1e-3), "the slower card"


ANCESTORS = [(0, "PIX"), (10, "PIX"), (20, "PXB"), (30, "PHB"), (40, "NODE"), (50, "SYS")]


@pytest.mark.parametrize(("level", "word"), ANCESTORS)
def test_ancestors_have_the_words_of_nvidia_smi(monkeypatch, level, word):
    machine(monkeypatch, [{}, {}], level=level)
    assert str(read_topology().pairs[0]) == word


def test_an_old_driver_gives_none_and_the_names_of_what_it_lacks(monkeypatch):
    gone = ("nvmlDeviceGetNvLinkState", "nvmlDeviceGetP2PStatus", "nvmlDeviceGetTopologyCommonAncestor",
            "nvmlDeviceGetMaxPcieLinkGeneration")  # fmt: skip
    machine(monkeypatch, [{}, {}], gone=gone)
    topology = read_topology()
    assert topology.missing == ("nvlinks", "pcie_max_generation", "can_peer", "ancestor")
    assert topology.pairs == (Pair(0, 1, None, None, None),) and str(topology.pairs[0]) == "unknown"
    assert link_bytes_per_s(topology, 0) is None and ring_bytes_per_s(topology, 2) is None


def test_functions_that_the_package_lacks_are_missing_readings(monkeypatch):
    fake = machine(monkeypatch, on_a_switch(2))
    del fake.nvmlDeviceGetFieldValues, fake.nvmlDeviceGetNvLinkVersion
    topology = read_topology()
    assert topology.missing == ("nvlink_bytes_per_s", "nvlink_version")
    assert topology.links[0].nvlinks == 18 and link_bytes_per_s(topology, 0) is None


def test_the_common_speed_serves_where_a_link_has_none(monkeypatch):
    machine(monkeypatch, [{"links": {0: 1}, "common": 25000}, {"links": {0: 0}, "common": 25000}])
    assert read_topology().links[0].nvlink_bytes_per_s == 25e9


def test_one_gpu_has_no_pair_and_no_ring(monkeypatch):
    machine(monkeypatch, on_a_switch(1))
    topology = read_topology()
    assert (len(topology.links), topology.pairs, ring_bytes_per_s(topology, 1)) == (1, (), None)
    assert "X" in str(topology)


def test_links_that_are_down_do_not_count(monkeypatch):
    machine(monkeypatch, [{"links": {0: 1, 1: "down"}, "speed": 25000}, {"links": {0: 0}, "speed": 25000}])
    assert read_topology().links[0].nvlinks == 1


def test_the_slowest_link_is_the_figure_and_the_fewest_links_the_pair(monkeypatch):
    slow = {"links": dict.fromkeys(range(2), "switch"), "speed": {0: 25000, 1: 20000}}
    machine(monkeypatch, [*on_a_switch(1), slow])
    topology = read_topology()
    assert topology.links[1].nvlink_bytes_per_s == 20e9
    assert str(topology.pairs[0]) == "NV2"


def test_a_speed_that_nvml_did_not_fill_is_none(monkeypatch):
    machine(monkeypatch, [{"links": {0: 1}}, {"links": {0: 0}}])
    topology = read_topology()
    assert (topology.links[0].nvlink_bytes_per_s, topology.missing) == (None, ("nvlink_bytes_per_s",))


def test_two_bridges_leave_pcie_between_them(monkeypatch):
    bridged = [{"links": {0: far, 1: far}, "speed": 25000} for far in (1, 0, 3, 2)]
    machine(monkeypatch, bridged)
    topology = read_topology()
    assert [str(pair) for pair in topology.pairs] == ["NV2", "SYS", "SYS", "SYS", "SYS", "NV2"]
    assert link_bytes_per_s(topology, 0) == 50e9
    assert ring_bytes_per_s(topology, 4) == pytest.approx(63.0e9, rel=1e-3)


def test_links_to_gpus_that_take_no_part_carry_nothing(monkeypatch):
    linked = [{"links": far, "speed": 25000} for far in ({0: 1, 1: 2, 2: 2}, {0: 0, 1: 3})]
    machine(monkeypatch, [*linked, {}, {}])
    topology = read_topology(["uuid0", "uuid1"])
    assert str(topology.pairs[0]) == "NV1"
    assert (link_bytes_per_s(topology, 0), ring_bytes_per_s(topology, 2)) == (75e9, 25e9)


@pytest.mark.parametrize(("allowed", "cell"), [(((0, 1),), "NV4"), ((), "SYS")])
def test_a_hidden_far_end_is_decided_by_whether_nvml_allows_nvlink(monkeypatch, allowed, cell):
    hidden = [{"links": dict.fromkeys(range(4), "hidden"), "speed": 25000}] * 2
    machine(monkeypatch, hidden, nvlink_pairs=allowed)
    assert str(read_topology().pairs[0]) == cell


def test_a_hidden_far_end_without_that_answer_is_unknown(monkeypatch):
    hidden = [{"links": dict.fromkeys(range(4), "hidden"), "speed": 25000}] * 2
    machine(monkeypatch, hidden, gone=("nvmlDeviceGetP2PStatus",))
    topology = read_topology()
    assert (topology.pairs[0].nvlinks, topology.missing) == (None, ("can_peer", "nvlinks"))
    assert ring_bytes_per_s(topology, 2) is None


def test_gpus_come_in_the_order_that_was_asked_for(monkeypatch):
    machine(monkeypatch, on_a_switch(3))
    topology = read_topology(["GPU-uuid2", "uuid0"])
    assert [(link.index, link.uuid) for link in topology.links] == [(0, "GPU-uuid2"), (1, "GPU-uuid0")]
    assert read_topology(["GPU-uuid7", "GPU-uuid0"]).missing == ("uuid",)
    assert read_topology(["GPU-uuid7"]) is None


def test_without_nvml_there_is_no_topology(monkeypatch):
    machine(monkeypatch, on_a_switch(1), gone=("nvmlInit",))
    assert read_topology() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_topology() is None


def test_the_real_package_knows_each_function_and_number():
    """That the fake has the names of nvidia-ml-py; its functions are not called."""
    import pynvml

    from kit.extras.scale import topology

    for name in dir(FakeNvml):
        if name.startswith("fake_"):
            assert callable(getattr(pynvml, name.replace("fake_", "nvml"))), name
    assert pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH == topology._SWITCH
    assert pynvml.NVML_P2P_CAPS_INDEX_NVLINK == topology._P2P_NVLINK
    assert pynvml.NVML_NVLINK_MAX_LINKS <= topology._MAX_LINKS
    assert pynvml.NVML_FI_DEV_NVLINK_GET_SPEED == topology._SPEED_OF_LINK
    assert pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON == topology._SPEED_OF_ALL
    assert [name for name, _ in pynvml.c_nvmlValue_t._fields_] == list(topology._MEMBERS)


SIXTEEN_LANES = [(1, 4.0), (2, 8.0), (3, 15.754), (4, 31.508), (5, 63.015), (6, 121.0)]


@pytest.mark.parametrize(("generation", "gb_per_s"), SIXTEEN_LANES)
def test_pcie_rates_are_those_of_sixteen_lanes(generation, gb_per_s):
    link = Link(0, nvlinks=0, pcie_max_generation=generation, pcie_max_width=16)
    assert link_bytes_per_s(Topology((link,)), 0) == pytest.approx(gb_per_s * 1e9, rel=1e-3)


def test_an_unknown_pcie_generation_has_no_rate():
    link = Link(0, nvlinks=0, pcie_max_generation=7, pcie_max_width=16)
    assert link_bytes_per_s(Topology((link,)), 0) is None
    assert link_bytes_per_s(Topology((link,)), 1) is None


TWO = Topology(tuple(Link(i, "NVIDIA H200", nvlinks=18, nvlink_bytes_per_s=26.5625e9) for i in range(2)),
               (Pair(0, 1, "SYS", 18, True),))  # fmt: skip


def test_bus_bandwidth_is_that_of_nccl_tests():
    row = AllReduce(size_bytes=1_000_000_000, world_size=4, dtype="float32", times_s=(0.01, 0.004, 0.005))
    assert row.time_s == 0.005
    assert row.algorithm_bytes_per_s == pytest.approx(200e9)
    assert row.bus_bytes_per_s == pytest.approx(300e9)


def test_nothing_measured_has_no_bandwidth():
    row = AllReduce(1024, 2, "float32", ())
    assert (row.time_s, row.algorithm_bytes_per_s, row.bus_bytes_per_s) == (None, None, None)
    assert str(all_reduce_table([row], TWO)).count("–") == 6


def test_the_table_says_what_share_of_the_link_is_used():
    rows = (AllReduce(2**20, 2, "float32", (1e-4,)), AllReduce(2**30, 2, "float32", (4.5e-3, 4.4e-3, 4.6e-3)))
    text = str(all_reduce_table(rows, TWO))
    assert "1.00 GiB" in text and "239 GB/s" in text and "50 %" in text
    assert best(rows) is rows[1]
    assert sentence(rows, TWO) == (
        "All-reduce of 1.00 GiB on 2 ranks: 239 GB/s bus bandwidth, 50 % of the 478 GB/s of NVLink."
    )


def test_no_share_is_claimed_of_a_link_that_is_not_known():
    rows = (AllReduce(2**20, 2, "float32", (1e-4,)),)
    assert sentence(rows, None).endswith("what the link can carry is not known.")
    assert str(all_reduce_table(rows, None)).rstrip().endswith("–")


def test_ranks_on_other_hosts_are_not_held_against_this_hosts_links():
    assert ring_bytes_per_s(TWO, 2) is not None and ring_bytes_per_s(TWO, 4) is None
    assert "not known" in sentence((AllReduce(2**20, 4, "float32", (1e-4,)),), TWO)


def test_one_rank_all_reduces_with_nobody():
    alone = AllReduce(2**20, 1, "float32", (1e-4,))
    assert alone.bus_bytes_per_s == 0 and best([alone]) is None
    assert sentence([alone], None).startswith("One rank only")

"""What joins the GPUs, and how fast they sum a tensor over it: NVML's facts beside measured bandwidth.

The figure of a link is what its wires carry in one direction, with nothing taken off for packets
and protocol. NCCL's rings reach about 80 % of it over NVLink (NVIDIA's answer in
NVIDIA/nccl-tests#212). Nothing is measured or asked here; what NVML did not tell stays None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kit.show import Table
from kit.stats import spread
from kit.units import UNKNOWN, memory, percent, quantity, seconds

# The gradients of GPT-2 124M in float32: what data-parallel training sums in each step.
GPT2_GRADIENT_BYTES = 4 * 124_439_808
# Transfers a second and lane, and the share of the bits that is not line code, by PCIe generation (PCI-SIG's
# base specifications 1.1 to 6.0): 8b/10b, then 128b/130b, then flits with 14 of 256 bytes CRC and FEC.
_PCIE = {
    1: (2.5e9, 8 / 10), 2: (5e9, 8 / 10), 3: (8e9, 128 / 130), 4: (16e9, 128 / 130), 5: (32e9, 128 / 130),
    6: (64e9, 242 / 256),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Link:
    """What joins one GPU to the others, as NVML tells it; None is what it did not tell.

    index: the GPU's place in the list that was asked for, NVML's own number where all were.
    nvlinks: active NVLink links, 0 where the card has none. nvlink_bytes_per_s: of one link and
    direction, the slowest of them; the raw rate, of which a datasheet may count less (26.56 and
    25 GB/s on an H100). nvlink_version: '4.0'. pcie_max_*: the most that card and slot allow.
    An idle card drops pcie_generation to save power.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    nvlinks: int | None = None
    nvlink_bytes_per_s: float | None = None
    nvlink_version: str | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_max_generation: int | None = None
    pcie_max_width: int | None = None

    @property
    def pcie_bytes_per_s(self) -> float | None:
        """Transfers a second × lanes × line code / 8, in one direction: 63.0 GB/s for generation 5 × 16.

        The highest generation, because a card trains its link up under load, and the lanes that are
        connected now, because those stay.
        """
        generation = self.pcie_max_generation or self.pcie_generation
        width = self.pcie_width or self.pcie_max_width
        if generation not in _PCIE or not width:
            return None
        transfers_per_s, share = _PCIE[generation]
        return transfers_per_s * width * share / 8


@dataclasses.dataclass(frozen=True)
class Pair:
    """What lies between two GPUs. first, second: the indices of their `Link`.

    ancestor: the nearest part of the PCIe tree that both hang on, as `nvidia-smi topo -m` abbreviates it: PIX
    (one PCIe switch at most), PXB (several), PHB (a host bridge), NODE (a NUMA node), SYS (the link between
    NUMA nodes). nvlinks: links that join the two, directly or through NVSwitch; 0 where none do.
    can_peer: whether one may read the other's memory without a detour through the host.
    """

    first: int
    second: int
    ancestor: str | None = None
    nvlinks: int | None = None
    can_peer: bool | None = None

    def __str__(self) -> str:
        """'NV18', else the common ancestor: one cell of `nvidia-smi topo -m`."""
        return f"NV{self.nvlinks}" if self.nvlinks else self.ancestor or UNKNOWN


@dataclasses.dataclass(frozen=True)
class Topology:
    """The GPUs of one host and what lies between them. missing: the names of the fields that this
    machine does not give, for one GPU or pair at least."""

    links: tuple[Link, ...]
    pairs: tuple[Pair, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """One GPU a row: its links, then what lies between it and each other GPU."""
        between = {frozenset((pair.first, pair.second)): str(pair) for pair in self.pairs}
        columns = ("GPU", "name", "NVLink", "PCIe", *(f"GPU {link.index}" for link in self.links))
        rows = []
        for link in self.links:
            between[frozenset((link.index,))] = "X"
            cells = (between.get(frozenset((link.index, other.index)), UNKNOWN) for other in self.links)
            rows.append((str(link.index), link.name or UNKNOWN, _nvlink(link), _pcie(link), *cells))
        return Table(columns, tuple(rows))

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def _nvlink(link: Link) -> str:
    if not link.nvlinks:
        return "none" if link.nvlinks == 0 else UNKNOWN
    return f"{link.nvlinks} × {quantity(link.nvlink_bytes_per_s, 'B/s')}"


def _pcie(link: Link) -> str:
    if not any((link.pcie_generation, link.pcie_width, link.pcie_max_generation, link.pcie_max_width)):
        return UNKNOWN
    now, most = (
        f"{generation or '?'} × {width or '?'}"
        for generation, width in (
            (link.pcie_generation, link.pcie_width),
            (link.pcie_max_generation, link.pcie_max_width),
        )
    )
    return now if now == most else f"{now}, at most {most}"


def link_bytes_per_s(topology: Topology, index: int) -> float | None:
    """What one GPU can send in one direction: all its NVLink links together, else its PCIe link.

    None where NVML did not tell, or has no such GPU. A GPU whose NVLink is unknown has no figure: its
    PCIe link might not be what it uses.
    """
    link = next((link for link in topology.links if link.index == index), None)
    return _sends(link, link.nvlinks) if link else None


def _sends(link: Link, nvlinks: int | None) -> float | None:
    if nvlinks is None:
        return None
    if not nvlinks:
        return link.pcie_bytes_per_s
    return nvlinks * link.nvlink_bytes_per_s if link.nvlink_bytes_per_s else None


def ring_bytes_per_s(topology: Topology | None, world_size: int) -> float | None:
    """The link's figure that an all-reduce of these GPUs is held against: what the slowest can send to the
    others. None for one GPU, where a part of it is unknown, and for ranks on more hosts than this one,
    whose network NVML does not know.

    NVLink that leads to none of the others does not count; where NVLink does not reach every GPU, a
    ring crosses PCIe somewhere and PCIe is the figure.
    """
    if topology is None or not 2 <= world_size <= len(topology.links):
        return None
    if any(part.nvlinks is None for part in (*topology.links, *topology.pairs)):
        return None
    is_joined = _is_joined(topology)
    sends = []
    for link in topology.links:
        to_others = sum(pair.nvlinks for pair in topology.pairs if link.index in (pair.first, pair.second))
        sends.append(_sends(link, min(link.nvlinks, to_others) if is_joined else 0))
    return None if None in sends else min(sends)


def _is_joined(topology: Topology) -> bool:
    """Whether NVLink leads from the first GPU to every other, over others where need be."""
    reached, todo = set(), [topology.links[0].index]
    while todo:
        here = todo.pop()
        reached.add(here)
        for pair in topology.pairs:
            if pair.nvlinks and here in (pair.first, pair.second):
                todo += {pair.first, pair.second} - reached
    return len(reached) == len(topology.links)


@dataclasses.dataclass(frozen=True)
class AllReduce:
    """All-reduces (sums over all ranks) of one tensor, one after the other.

    size_bytes: of one rank's tensor. times_s: each the slowest rank's, by the host's clock, from a
    common start until the device was done.
    """

    size_bytes: int
    world_size: int
    dtype: str
    times_s: tuple[float, ...]

    @property
    def time_s(self) -> float | None:
        """The median."""
        figures = spread(self.times_s)
        return figures.median if figures else None

    @property
    def algorithm_bytes_per_s(self) -> float | None:
        """size / time, as nccl-tests' PERFORMANCE.md defines it."""
        return self.size_bytes / self.time_s if self.time_s else None

    @property
    def bus_bytes_per_s(self) -> float | None:
        """Algorithm bandwidth × 2(n-1)/n, what each rank has to send in a ring (nccl-tests' PERFORMANCE.md).

        It compares with a link whatever n is; 0 for one rank, which sends nothing. Where the switch sums
        (NVLink SHARP), less is sent and it may exceed the link's figure.
        """
        rate = self.algorithm_bytes_per_s
        return rate * 2 * (self.world_size - 1) / self.world_size if rate else None


def all_reduce_table(rows: Sequence[AllReduce], topology: Topology | None) -> Table:
    """Each size with its bandwidths and the share of the link's figure that the bus bandwidth is."""
    columns = ("size", "ranks", "dtype", "time", "IQR", "n", "algorithm bandwidth", "bus bandwidth", "of the link")
    return Table(columns, tuple(_cells(row, ring_bytes_per_s(topology, row.world_size)) for row in rows))


def _cells(row: AllReduce, limit: float | None) -> tuple[str, ...]:
    figures = spread(row.times_s)
    head = (memory(row.size_bytes), str(row.world_size), row.dtype)
    if figures is None:
        return (*head, *["–"] * 6)
    share = percent(row.bus_bytes_per_s / limit) if limit and row.world_size > 1 else "–"
    bus = quantity(row.bus_bytes_per_s, "B/s") if row.world_size > 1 else "–"
    return (
        *head,
        seconds(figures.median),
        seconds(figures.iqr, 2),
        str(figures.n),
        quantity(row.algorithm_bytes_per_s, "B/s"),
        bus,
        share,
    )


def best(rows: Sequence[AllReduce]) -> AllReduce | None:
    """The row of the highest bus bandwidth; None where no two ranks met."""
    good = [row for row in rows if row.world_size > 1 and row.bus_bytes_per_s]
    return max(good, key=lambda row: row.bus_bytes_per_s, default=None)


def sentence(rows: Sequence[AllReduce], topology: Topology | None) -> str:
    """The finding in words: the best bus bandwidth beside the link's figure."""
    top = best(rows)
    if top is None:
        return "One rank only: there is nothing to all-reduce with."
    found = (
        f"All-reduce of {memory(top.size_bytes)} on {top.world_size} ranks: "
        f"{quantity(top.bus_bytes_per_s, 'B/s')} bus bandwidth"
    )
    limit = ring_bytes_per_s(topology, top.world_size)
    if limit is None:
        return f"{found}; what the link can carry is not known."
    share, kind = percent(top.bus_bytes_per_s / limit), "NVLink" if _is_joined(topology) else "PCIe"
    return f"{found}, {share} of the {quantity(limit, 'B/s')} of {kind}."

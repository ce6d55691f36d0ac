"""How the GPUs of this host are joined, asked of the driver through NVML. It judges and measures nothing.

NVML answers differently by card, driver and virtual machine: each reading that one of them does not
give becomes None and its name is kept. Two ways in which NVML is silent are an answer, though: it has
no NVLink state for a card without NVLink, nor for a link number that the card does not have.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from kit.extras.scale.ranks import Link, Pair, Topology

# nvmlGpuTopologyLevel_t in the words of `nvidia-smi topo -m`; 0 is two GPUs on one board.
_ANCESTORS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
# nvmlNvlinkVersion_t: numbers in a row, not versions (open-mpi/hwloc#658).
_NVLINK_VERSIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0", 8: "6.0"}
# nvml.h: link numbers that are tried at most, the type of a switch at a link's far end, the indices of what
# nvmlDeviceGetP2PStatus is asked for (nvidia-ml-py spells that of reading as a tuple), nvmlNvlinkState_t and
# the fields with a link's speed in MB/s, of one link and of all that are active.
_MAX_LINKS, _SWITCH, _P2P_READ, _P2P_NVLINK, _P2P_OK = 36, 0x02, 0, 2, 0
_SPEED_OF_LINK, _SPEED_OF_ALL = 164, 90
# nvmlValueType_t: which member of the union holds a field's value.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


@dataclasses.dataclass
class _Gpu:
    """A device while it is being asked. place: on the PCI bus. links: numbers of the active NVLink links.
    far: what ends each: a place on the PCI bus, 'switch', or None where NVML does not tell."""

    handle: Any
    place: tuple[int, int, int] | None
    links: list[int] | None
    far: list[object]


def read_topology(uuids: Sequence[str] | None = None) -> Topology | None:
    """The GPUs with these UUIDs in this order ('GPU-' may be left out), or all. None where NVML cannot be
    asked or shows none of them."""
    try:
        import pynvml as nvml
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        return _Reader(nvml).read(uuids)
    finally:
        nvml.nvmlShutdown()


class _Reader:
    """Asks NVML and remembers which readings it did not give."""

    def __init__(self, nvml: Any) -> None:
        self._nvml, self._missing = nvml, []

    def read(self, uuids: Sequence[str] | None) -> Topology | None:
        handles = self._all() if uuids is None else [h for u in uuids if (h := self._by_uuid(u)) is not None]
        if not handles:
            return None
        gpus = [_Gpu(handle, self._place(handle), self._active(handle), []) for handle in handles]
        for gpu in gpus:
            gpu.far = [self._far_end(gpu, link) for link in gpu.links or ()]
        links = tuple(self._link(index, gpu) for index, gpu in enumerate(gpus))
        pairs = tuple(self._pair((i, a), (j, b)) for (i, a), (j, b) in itertools.combinations(enumerate(gpus), 2))
        return Topology(links, pairs, tuple(dict.fromkeys(self._missing)))

    def _ask(self, function: str, *arguments: Any, told: str | None = None) -> Any:
        """One reading, None where there is none; then the name `told` is kept. TypeError: an older
        nvidia-ml-py that takes other arguments."""
        try:
            value = getattr(self._nvml, function)(*arguments)
        except (self._nvml.NVMLError, AttributeError, TypeError):
            value = None
        return self._told(told, value)

    def _told(self, name: str | None, value: Any) -> Any:
        if value is None and name:
            self._missing.append(name)
        return value

    def _all(self) -> list[Any]:
        count = self._ask("nvmlDeviceGetCount") or 0
        handles = (self._ask("nvmlDeviceGetHandleByIndex", index, told="index") for index in range(count))
        return [handle for handle in handles if handle is not None]

    def _by_uuid(self, uuid: str) -> Any:
        full = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        return self._ask("nvmlDeviceGetHandleByUUID", full, told="uuid")

    def _link(self, index: int, gpu: _Gpu) -> Link:
        def ask(name: str, function: str) -> Any:
            return self._ask(function, gpu.handle, told=name)

        return Link(
            index=index,
            name=_text(ask("name", "nvmlDeviceGetName")),
            uuid=_text(ask("uuid", "nvmlDeviceGetUUID")),
            nvlinks=self._told("nvlinks", None if gpu.links is None else len(gpu.links)),
            nvlink_bytes_per_s=self._told("nvlink_bytes_per_s", self._speed(gpu)) if gpu.links else None,
            nvlink_version=self._told("nvlink_version", self._version(gpu)) if gpu.links else None,
            pcie_generation=ask("pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_width=ask("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth"),
            pcie_max_generation=ask("pcie_max_generation", "nvmlDeviceGetMaxPcieLinkGeneration"),
            pcie_max_width=ask("pcie_max_width", "nvmlDeviceGetMaxPcieLinkWidth"),
        )

    def _active(self, handle: Any) -> list[int] | None:
        """The NVLink links that are up (a sleeping one wakes under load); empty for a card without NVLink,
        None where the driver does not tell."""
        found = []
        for link in range(_MAX_LINKS):
            try:
                if self._nvml.nvmlDeviceGetNvLinkState(handle, link):
                    found.append(link)
            except AttributeError:
                return None
            except self._nvml.NVMLError as error:
                if not self._is_no_such_link(error):
                    return None
        return found

    def _is_no_such_link(self, error: Exception) -> bool:
        names = ("NVMLError_NotSupported", "NVMLError_InvalidArgument")
        return isinstance(error, tuple(getattr(self._nvml, name) for name in names))

    def _speed(self, gpu: _Gpu) -> float | None:
        speeds = self._fields(gpu.handle, [(_SPEED_OF_LINK, link) for link in gpu.links])
        speeds = speeds or self._fields(gpu.handle, [_SPEED_OF_ALL])
        return min(speeds) * 1e6 if speeds else None

    def _fields(self, handle: Any, ids: list) -> list[float]:
        """The values of those fields that NVML fills; it says so for each of them."""
        found = []
        for field in self._ask("nvmlDeviceGetFieldValues", handle, ids) or ():
            value = getattr(field.value, _MEMBERS[field.valueType]) if field.nvmlReturn == 0 else 0
            if value > 0:
                found.append(value)
        return found

    def _version(self, gpu: _Gpu) -> str | None:
        return _NVLINK_VERSIONS.get(self._ask("nvmlDeviceGetNvLinkVersion", gpu.handle, gpu.links[0]))

    def _place(self, handle: Any) -> tuple[int, int, int] | None:
        return _place(self._ask("nvmlDeviceGetPciInfo", handle))

    def _far_end(self, gpu: _Gpu, link: int) -> object:
        kind = self._ask("nvmlDeviceGetNvLinkRemoteDeviceType", gpu.handle, link)
        if kind == _SWITCH:
            return "switch"
        return _place(self._ask("nvmlDeviceGetNvLinkRemotePciInfo", gpu.handle, link))

    def _pair(self, first: tuple[int, _Gpu], second: tuple[int, _Gpu]) -> Pair:
        (i, a), (j, b) = first, second
        level = self._ask("nvmlDeviceGetTopologyCommonAncestor", a.handle, b.handle)
        reading = self._ask("nvmlDeviceGetP2PStatus", a.handle, b.handle, _P2P_READ, told="can_peer")
        return Pair(
            first=i,
            second=j,
            ancestor=self._told("ancestor", _ANCESTORS.get(level)),
            nvlinks=self._told("nvlinks", self._between(a, b)),
            can_peer=None if reading is None else reading == _P2P_OK,
        )

    def _between(self, a: _Gpu, b: _Gpu) -> int | None:
        """Links that end at the other GPU, else those that both have to a switch. Where NVML tells neither,
        it may hide the switch, as from a virtual machine; then it is all links or none, as NVML says
        whether the two may use NVLink."""
        if a.links is None or b.links is None:
            return None
        direct = sum(end == b.place for end in a.far if end is not None)
        if direct or not a.links or not b.links:
            return direct
        if switched := min(a.far.count("switch"), b.far.count("switch")):
            return switched
        status = self._ask("nvmlDeviceGetP2PStatus", a.handle, b.handle, _P2P_NVLINK)
        if status is None:
            return None
        return min(len(a.links), len(b.links)) if status == _P2P_OK else 0


def _place(pci: Any) -> tuple[int, int, int] | None:
    return None if pci is None else (pci.domain, pci.bus, pci.device)


def _text(value: Any) -> str | None:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value

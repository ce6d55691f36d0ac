"""How the speed grows with the number of GPUs: what is measured, its rows, and the efficiency that follows.

Weak scaling keeps the samples of each GPU and grows the batch; strong scaling keeps the whole batch
and divides it. Both compare tokens a second of N GPUs with N times those of one.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kit.errors import UsageError
from kit.show import Table
from kit.train.config import TrainConfig, parameter, refuse_wrong
from kit.train.steps import StepRecord, TelemetrySample, TrainingRun
from kit.units import UNKNOWN, Spread, memory, number, percent, quantity, seconds, spread

# What joins the GPUs, and how fast they sum a tensor over it: NVML's facts beside measured bandwidth.
#
# The figure of a link is what its wires carry in one direction, with nothing taken off for packets
# and protocol. NCCL's rings reach about 80 % of it over NVLink (NVIDIA's answer in
# NVIDIA/nccl-tests#212). Nothing is measured or asked here; what NVML did not tell stays None.

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


# What several ranks recorded, and how a hang is told from its stacks. Data and logic; no process is touched.

COMPLETE, FAILED = "COMPLETE", "FAILED"


@dataclasses.dataclass(frozen=True)
class RanksRun:
    """What was started: `ranks.json`. config: of each rank; its batch is one rank's part of the global batch.

    state: COMPLETE or FAILED; reason: why it failed, naming the rank where that is known.
    """

    world_size: int
    parallel: str
    config: TrainConfig
    state: str
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class RankRecord:
    """What one rank says of itself: `rank.json` in its folder.

    node, local_rank: as torchrun numbers them. device_uuid: of the device it took at the start;
    trained_uuid: of the one that held the weights after the last step; None on a CPU.
    sum_found, sum_expected: an all-reduce in which each rank contributed its number plus one; found is None beside
    an expectation where it was not finite.
    parameters_sha256: over all weights after the last step. reference_losses: of rank 0 alone, the
    same global batches on this one device. error: what ended it early.
    """

    rank: int
    local_rank: int
    node: int
    world_size: int
    device: str
    backend: str | None = None
    device_name: str | None = None
    device_uuid: str | None = None
    trained_uuid: str | None = None
    sum_found: float | None = None
    sum_expected: float | None = None
    parameters_sha256: str | None = None
    reference_losses: tuple[float, ...] = ()
    reference_skipped: str | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Rank:
    """All files of one rank; None or empty for those that it did not get to write."""

    record: RankRecord | None = None
    run: TrainingRun | None = None
    steps: tuple[StepRecord, ...] = ()
    samples: tuple[TelemetrySample, ...] = ()


def folder_name(rank: int) -> str:
    """The folder of one rank, beside `ranks.json`."""
    return f"rank-{rank}"


# A rank whose main thread stands in one of these waits: for the other ranks, or for a device that does.
_WAITING = ("torch/distributed/", "torch/autograd/graph.py", "torch/cuda/__init__.py", "torch/cuda/streams.py")


def hang(stacks: Mapping[int, str], steps: Mapping[int, int]) -> str:
    """Who holds the others up, in words. stacks: of each rank's main thread, innermost frame first, as
    faulthandler writes them. steps: how many each rank has finished."""
    busy = sorted(rank for rank, stack in stacks.items() if not _is_waiting(stack))
    slowest = min(steps.values(), default=0)
    behind = sorted(rank for rank, count in steps.items() if count == slowest)
    if 0 < len(busy) < len(stacks):
        culprits, why = busy, "the others wait for it"
    elif 0 < len(behind) < len(steps):
        culprits, why = behind, f"it has finished {slowest} steps, the others more"
    else:
        return f"all {len(stacks)} ranks wait after {slowest} steps: a kernel or the network hangs"
    names = " and ".join(f"rank {rank}" for rank in culprits)
    place = _innermost(stacks.get(culprits[0], ""))
    return f"{names} does not go on after {steps.get(culprits[0], 0)} steps{place}; {why}"


def _frames(stack: str) -> list[str]:
    """The lines of the main thread, which faulthandler writes last, innermost frame first."""
    return [
        line.strip()
        for line in stack.replace("\\", "/").split("most recent call first")[-1].splitlines()
        if line.strip().startswith("File ")
    ]


def _is_waiting(stack: str) -> bool:
    frames = _frames(stack)
    return not frames or any(place in frames[0] for place in _WAITING)


def _innermost(stack: str) -> str:
    """Where it stands, without the folders, which are private."""
    frames = _frames(stack)
    if not frames:
        return ""
    path, _, rest = frames[0].removeprefix('File "').partition('"')
    return f" ({path.rsplit('/', 1)[-1]}{rest})"


def global_losses(ranks: Sequence[Rank]) -> tuple[float | None, ...]:
    """The loss of each global batch: the mean over the ranks, whose parts are equally large. None where one lacks it."""
    if not ranks:
        return ()
    found = []
    for losses in zip(*([step.loss for step in rank.steps] for rank in ranks)):
        found.append(None if None in losses else statistics.fmean(losses))
    return tuple(found)


MODES = ("weak", "strong")
PARALLELS = ("ddp", "fsdp")
# The step that is measured where none is named: samples of a GPU, tokens of a sample, precision.
DEFAULT_STEPS = {"cuda": (32, 1024, "bfloat16"), "cpu": (4, 64, "float32")}


@dataclasses.dataclass(frozen=True)
class ScalePlan:
    """Numbers of GPUs, and the step that is measured on each. `config.batch_size`: samples a GPU and step
    in weak scaling, and of the whole batch in strong scaling."""

    gpus: tuple[int, ...]
    config: TrainConfig
    modes: tuple[str, ...] = parameter(MODES, "of scaling", choices=MODES)
    parallel: str = parameter("ddp", "ddp (a copy of the model on each GPU) or fsdp (a part of it)", choices=PARALLELS)
    blocks: int = parameter(5, "timed blocks a point, the n of each median", least=1)
    block_s: float = parameter(0.3, "least seconds of a block", least=1e-9)

    def __post_init__(self) -> None:
        refuse_wrong(self, self._problems())

    def _problems(self) -> Iterator[tuple[str, str]]:
        if not self.gpus or self.gpus[0] != 1 or list(self.gpus) != sorted(set(self.gpus)):
            yield f"gpus={list(self.gpus)}", "gpus growing from 1, since all others are compared with one"
        if not self.modes:
            yield "modes=[]", f"modes of {', '.join(MODES)}"
        if self.config.engine != "eager":
            yield f"engine={self.config.engine}", "engine=eager, the one that exchanges gradients"

    def points(self, world_size: int) -> tuple[tuple[str, TrainConfig], ...]:
        """The modes with each rank's own config. One GPU is measured once: it is the base of both modes. A batch
        that this number does not divide has no point in strong scaling (see `undivided`)."""
        found = []
        for mode in self.modes if world_size > 1 else self.modes[:1]:
            share, rest = (
                divmod(self.config.batch_size, world_size) if mode == "strong" else (self.config.batch_size, 0)
            )
            if not rest:
                found.append((mode, dataclasses.replace(self.config, batch_size=share)))
        return tuple(found)

    def undivided(self, world_size: int) -> str | None:
        """Why strong scaling has no point for this number of GPUs; None where it has, or is not asked for."""
        if "strong" not in self.modes or self.config.batch_size % world_size == 0:
            return None
        return f"{self.config.batch_size} samples cannot be divided among {world_size} GPUs"


def scaled_step(device: str, model: str, *, batch_size: int = 0, seq_len: int = 0, dtype: str = "") -> TrainConfig:
    """The step of a scaling sweep; 0 and "" take what `DEFAULT_STEPS` says for the device."""
    default = DEFAULT_STEPS[device]
    return TrainConfig(
        model=model,
        device=device,
        batch_size=batch_size or default[0],
        seq_len=seq_len or default[1],
        dtype=dtype or default[2],
    )


@dataclasses.dataclass(frozen=True)
class ScaleRow:
    """One measured point. outcome: 'ok', 'oom' or 'error'; figures are empty unless it is 'ok'.

    batch_size: samples of one rank and step. block_step_s: mean step time of each block, of the
    slowest rank. block_compute_s: the same steps without exchanging gradients, so that the
    difference is communication that nothing hides; empty for one rank and under FSDP, which
    cannot train without. parallel: 'none' for one rank: the plain model, not wrapped.
    """

    mode: str
    world_size: int
    batch_size: int
    seq_len: int
    dtype: str
    model: str
    parallel: str
    outcome: str
    block_step_s: tuple[float, ...] = ()
    block_compute_s: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None
    reason: str | None = None

    @property
    def step_time_s(self) -> float | None:
        figures = spread(self.block_step_s)
        return figures.median if figures else None

    @property
    def tokens_per_s(self) -> float | None:
        """Positions a second of all ranks together; the batches have no padding."""
        return self.world_size * self.batch_size * self.seq_len / self.step_time_s if self.step_time_s else None

    @property
    def exposed_s(self) -> float | None:
        """Communication that the computation does not hide: step time with less step time without exchange.
        Below 0 where the blocks' spread is wider than it."""
        compute = spread(self.block_compute_s)
        return self.step_time_s - compute.median if compute and self.step_time_s else None


@dataclasses.dataclass(frozen=True)
class Scaling:
    """All rows of a plan. Shows itself as a table."""

    device_name: str
    rows: tuple[ScaleRow, ...]

    @property
    def base(self) -> ScaleRow | None:
        """The row of one GPU, with which all others are compared."""
        return next((row for row in self.rows if row.world_size == 1 and row.outcome == "ok"), None)

    def efficiency(self, row: ScaleRow) -> Spread | None:
        """Tokens/s of a row over world_size times those of one GPU, 1 at best in theory: median of the blocks
        with quartiles. The base enters by its median."""
        base = self.base
        if base is None or row.outcome != "ok":
            return None
        ideal_s = base.step_time_s * row.batch_size / base.batch_size
        return spread(tuple(ideal_s / step_s for step_s in row.block_step_s))

    @property
    def table(self) -> Table:
        columns = (
            "scaling",
            "ranks",
            "batch a rank",
            "tokens a sample",
            "precision",
            "step",
            "IQR",
            "n",
            "tokens/s",
            "efficiency",
            "exposed",
        )
        return Table(columns, tuple(self._cells(row) for row in self.rows))

    def _cells(self, row: ScaleRow) -> tuple[str, ...]:
        mode = "–" if row.world_size == 1 else row.mode
        shape = (mode, str(row.world_size), str(row.batch_size), str(row.seq_len), row.dtype)
        figures, efficiency = spread(row.block_step_s), self.efficiency(row)
        if figures is None:
            return (*shape, "out of memory" if row.outcome == "oom" else row.outcome, *["–"] * 5)
        told = percent(efficiency.median, 3) if efficiency else "–"
        told += f" ± {percent(efficiency.iqr / 2)}" if efficiency and efficiency.n > 1 else ""
        exposed = "–" if row.exposed_s is None else f"{seconds(max(0.0, row.exposed_s), 2)}"
        return (
            *shape,
            seconds(figures.median),
            seconds(figures.iqr, 2),
            str(figures.n),
            number(row.tokens_per_s),
            told,
            exposed,
        )

    @property
    def sentence(self) -> str:
        """The finding in words: the efficiency of the most GPUs in each mode."""
        parts = []
        for mode in MODES:
            good = [row for row in self.rows if row.mode == mode and row.world_size > 1 and row.outcome == "ok"]
            if good and (efficiency := self.efficiency(most := max(good, key=lambda row: row.world_size))):
                parts.append(f"{percent(efficiency.median, 3)} {mode} scaling efficiency on {most.world_size}")
        if not parts:
            return f"Scaling on {self.device_name} could not be measured on more than one device."
        return f"{self.device_name}: {', '.join(parts)}."

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.sentence}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


COLUMNS = (
    "mode",
    "world_size",
    "batch_size",
    "seq_len",
    "dtype",
    "model",
    "parallel",
    "outcome",
    "step_time_s",
    "tokens_per_s",
    "efficiency",
    "exposed_s",
    "peak_memory_bytes",
    "block_step_s",
    "block_compute_s",
    "reason",
)


def to_csv(scaling: Scaling) -> str:
    """All rows with raw and derived figures; an empty cell is unknown."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in scaling.rows:
        efficiency = scaling.efficiency(row)
        derived = {
            "step_time_s": row.step_time_s,
            "tokens_per_s": row.tokens_per_s,
            "exposed_s": row.exposed_s,
            "efficiency": efficiency.median if efficiency else None,
        }
        raw = {name: getattr(row, name) for name in COLUMNS if hasattr(row, name)}
        blocks = {name: " ".join(map(repr, getattr(row, name))) for name in ("block_step_s", "block_compute_s")}
        writer.writerow({**raw, **derived, **blocks})
    return text.getvalue()


def from_csv(text: str) -> tuple[ScaleRow, ...]:
    """The raw figures of `to_csv`; the derived ones are computed again, never read."""
    try:
        return tuple(_from_record(record) for record in csv.DictReader(io.StringIO(text)))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"scaling.csv: {error}", expected="the columns " + ", ".join(COLUMNS)) from error


def _from_record(record: dict[str, str]) -> ScaleRow:
    texts = {name: record[name] for name in ("mode", "dtype", "model", "parallel", "outcome")}
    counts = {name: int(record[name]) for name in ("world_size", "batch_size", "seq_len")}
    blocks = {name: tuple(map(float, record[name].split())) for name in ("block_step_s", "block_compute_s")}
    peak = record["peak_memory_bytes"]
    return ScaleRow(
        **texts, **counts, **blocks, peak_memory_bytes=int(peak) if peak else None, reason=record["reason"] or None
    )


def in_order(rows: Iterable[ScaleRow]) -> tuple[ScaleRow, ...]:
    return tuple(sorted(rows, key=lambda row: (MODES.index(row.mode), row.world_size)))


def series(rows: Sequence[ScaleRow], mode: str) -> list[ScaleRow]:
    """The measured points of one mode from one GPU on; that of one GPU belongs to both."""
    found = [row for row in rows if row.outcome == "ok" and (row.mode == mode or row.world_size == 1)]
    return sorted(found, key=lambda row: row.world_size)

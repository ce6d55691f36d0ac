"""What is known about a machine, as one frozen value that can be saved and replayed.

`kit.gpu.probe` fills it on a live machine, `kit.extras.explain` fills what a pasted text
tells. Unknown is None (or an empty tuple), never a guess; `notes` says why. The same
judge reads both.
"""

import dataclasses
from collections.abc import Mapping

from kit.show import Table
from kit.units import dotted


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One device as one witness sees it (the driver through NVML, or torch).

    index: its number for that witness. compute_capability: (major, minor).
    uuid: as the driver tells it; a bundle holds a pseudonym in its place.
    mig_profile: '1g.10gb' where the device is a MIG slice, 'enabled' where the card is
    in MIG mode and the slice is not known. compute_processes: how many programs compute on
    the device, where the driver tells. pci_bus: '0000:c1:00', as the kernel log names it.
    """

    index: int | None = None
    name: str | None = None
    compute_capability: tuple[int, int] | None = None
    memory_bytes: int | None = None
    uuid: str | None = None
    mig_profile: str | None = None
    is_integrated: bool | None = None
    compute_processes: int | None = None
    pci_bus: str | None = None


@dataclasses.dataclass(frozen=True)
class Driver:
    """The NVIDIA driver as NVML and libcuda tell it.

    version: '580.159.04'. cuda_version: newest CUDA it supports, (13, 0).
    nvml_error: NVML's message where it could not start. cuda_init_error: the result
    of cuInit(0) where it was called and is not 0. libcuda: which kind of libcuda is
    loaded: 'driver', 'stub', 'compat', 'none'. library_version, kernel_version: of
    the user-mode library and of the kernel module, where both could be read.
    """

    version: str | None = None
    cuda_version: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    nvml_error: str | None = None
    cuda_init_error: int | None = None
    libcuda: str | None = None
    library_version: str | None = None
    kernel_version: str | None = None
    uvm_error: str | None = None


@dataclasses.dataclass(frozen=True)
class Torch:
    """The PyTorch build and what it sees.

    version: '2.13.0+cu130'. cuda: the CUDA it was built with, (13, 0); None for a
    CPU build. hip: set for a ROCm build. arch_list: as torch.cuda.get_arch_list(),
    'sm_90' for native code, 'compute_90' for PTX. error: the text of the exception
    or warning that CUDA's start gave. min_capability, max_capability: the range that a
    warning named in place of a list. direct_url: where pip got it (direct_url.json).
    metadata_version: what the installed package's METADATA says.
    """

    version: str | None = None
    cuda: tuple[int, int] | None = None
    is_cpu_build: bool | None = None
    hip: str | None = None
    arch_list: tuple[str, ...] = ()
    is_available: bool | None = None
    device_count: int | None = None
    gpus: tuple[Gpu, ...] = ()
    error: str | None = None
    cudnn: str | None = None
    min_capability: tuple[int, int] | None = None
    max_capability: tuple[int, int] | None = None
    direct_url: str | None = None
    metadata_version: str | None = None


@dataclasses.dataclass(frozen=True)
class JitControl:
    """What the driver answered when this process gave it a module that holds PTX alone.

    code: 223 (CUDA_ERROR_JIT_COMPILATION_DISABLED) where it refused to compile, so all that this process ran was
    native code; 0 where it compiled; None where it could not be asked. reason: why it is not 223, in words.
    """

    code: int | None = None
    reason: str | None = None

    @property
    def is_refused(self) -> bool:
        return self.code == 223


@dataclasses.dataclass(frozen=True)
class KernelProof:
    """What happened when a real kernel ran on the device: a matrix product checked against float64.

    ran: whether it finished. error: the exception's text where it did not.
    max_relative_error: largest |gpu - float64| over the largest |float64|.
    limit: what was allowed. size: n of the n × n product. seconds: wall time of the
    second product, synchronised. jit: the control of the process in which it ran. jit_allowed: the same module in
    a child process that may compile, which shows that nothing but the switch refuses it. jit_error: what the
    product said without the driver's compiler, where it ran only with it. library: a compiled kernel of somebody's
    that ran too.
    """

    device: str
    ran: bool
    size: int
    dtype: str
    error: str | None = None
    max_relative_error: float | None = None
    limit: float | None = None
    seconds: float | None = None
    jit: JitControl | None = None
    jit_allowed: JitControl | None = None
    jit_error: str | None = None
    library: str | None = None

    @property
    def ran_without_ptx_jit(self) -> bool | None:
        """None where nothing shows whether the driver compiled what ran."""
        is_refused = self.jit is not None and self.jit.is_refused
        is_loadable = self.jit_allowed is None or self.jit_allowed.code == 0
        is_native = True if is_refused and is_loadable else None
        is_shown = self.ran and self.device != "cpu"
        return (is_native if self.jit_error is None else False) if is_shown else None


@dataclasses.dataclass(frozen=True)
class Platform:
    """system: 'Linux' or 'Windows'. machine: 'x86_64' or 'aarch64'. jetpack: L4T release on Jetson."""

    system: str | None = None
    machine: str | None = None
    os: str | None = None
    python: tuple[int, int] | None = None
    is_wsl: bool | None = None
    is_container: bool | None = None
    is_tegra: bool | None = None
    jetpack: str | None = None


@dataclasses.dataclass(frozen=True)
class Expectation:
    """gpu_name: words that the GPU's name must have. min_cuda: of the torch build. gpus: how many GPUs torch must
    see. device: 'cuda', 'cpu' or 'auto', which is 'cuda' wherever the machine shows an NVIDIA device of any kind."""

    gpu_name: str | None = None
    min_cuda: tuple[int, int] | None = None
    device: str = "cuda"
    gpus: int | None = None


@dataclasses.dataclass(frozen=True)
class MachineFacts:
    """Everything the judge may look at.

    environment: variables that change what CUDA does, by name (an allow-list).
    nvidia_smi_exit_code: None where the program was not found or not run.
    messages: warnings and errors seen, verbatim, in the order they came.
    packages: those that hold GPU code or go with one torch, by name, with their versions.
    xids: error numbers of the NVIDIA driver in the kernel log that speak of the driver or the hardware; None where
    the log could not be read. notes: why something is unknown. source: 'live', 'recorded' or 'text'.
    """

    source: str = "live"
    platform: Platform = Platform()
    driver: Driver | None = None
    torch: Torch | None = None
    proof: KernelProof | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    has_nvidia_device: bool | None = None
    nvidia_smi_exit_code: int | None = None
    nvidia_smi_gpus: tuple[str, ...] = ()
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    messages: tuple[str, ...] = ()
    xids: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """The facts that a person asks for first; everything is in the fields."""
        driver, torch, here = self.driver or Driver(), self.torch or Torch(), self.platform
        gpus = [
            (f"GPU {g.index}", f"{g.name}, compute capability {dotted(g.compute_capability)}")
            for g in driver.gpus or torch.gpus
        ]
        supports, code = f"for CUDA up to {dotted(driver.cuda_version)}", " ".join(torch.arch_list) or "no GPU"
        rows = [
            ("system", " ".join(filter(None, (here.os or here.system, here.machine, "in WSL" if here.is_wsl else "")))),
            ("Python", dotted(here.python)),
            ("driver", f"{driver.version} {supports}" if driver.version else "none seen"),
            ("torch", f"{torch.version}, code for {code}" if torch.version else "none"),
            *(gpus or [("GPU", "none seen")]),
            *(("unknown", note) for note in self.notes),
        ]
        return Table(("fact", "value"), tuple(rows))

    def __str__(self) -> str:
        return str(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

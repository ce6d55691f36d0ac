"""Asks the driver, while the steps run, what the card is doing: NVML, bound to the device by UUID.

A reading that this card or platform does not give is None, and named in `missing`; it is
never red by itself. Utilisation is context, not a witness: a spinning kernel shows 100 %.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from typing import Any

from kit.train.steps import Telemetry, TelemetrySample

INTERVAL_S = 0.02
# Errors of NVML that concern one reading; any other means that the driver or the card is gone.
_MISSING = (
    "NotSupported",
    "NoPermission",
    "FunctionNotFound",
    "NoData",
    "NotFound",
    "InvalidArgument",
    "Unknown",
)
# Numbers by which the driver knew this process in earlier recordings: in a container they are not ours.
_learned: set[int] = set()


@dataclasses.dataclass(frozen=True)
class _Device:
    """One card as it was before our work."""

    handle: Any
    uuid: str
    idle: TelemetrySample | None = None
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    processes: frozenset[int] = frozenset()


class Recorder:
    """Samples one device in a thread between `start` and `stop`.

    Made before CUDA starts, so that `idle` is a card without our work and the process that
    appears when CUDA starts is known to be ours (inside a container the driver's process
    numbers are not ours). Which card is torch's is known only by then, so all are read.
    """

    def __init__(self) -> None:
        self.samples: list[TelemetrySample] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._nvml: Any = None
        self._handle: Any = None
        self._devices: dict[str, _Device] = {}
        self._device: _Device | None = None
        self._missing: set[str] = set()
        self._error: str | None = "not bound to a device"
        self._reserved_before = _torch_reserved()
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
            self._devices = {_plain(device.uuid): device for device in map(self._baseline, handles)}
        except ImportError:
            self._error = "nvidia-ml-py is not installed"
        except Exception as error:  # NVML raises its own hierarchy; the reason is recorded, training goes on
            self._error = f"NVML: {error}"

    def _baseline(self, handle: Any) -> _Device:
        self._handle = handle
        uuid = _text(self._nvml.nvmlDeviceGetUUID(handle))
        return _Device(handle, uuid, self._read(0.0), self._counters(), frozenset(self._processes() or ()))

    def bind(self, torch_uuid: str) -> None:
        """Called once CUDA runs: finds torch's device by its UUID, and learns which process is ours."""
        if not self._devices:
            return
        try:
            device = self._devices.get(_plain(torch_uuid)) or self._slice(_plain(torch_uuid))
            self._handle = device.handle
            appeared = set(self._processes() or ()) - device.processes
        except Exception as error:
            self._error = f"NVML does not know torch's device: {error}"
            return
        self._device, self._error = device, None
        self._missing.clear()
        if len(appeared) == 1:
            _learned.update(appeared)

    def _slice(self, plain: str) -> _Device:
        """A MIG slice, which NVML does not list; our own work is on it already, so nothing is idle."""
        handle = self._nvml.nvmlDeviceGetHandleByUUID(f"MIG-{plain}")
        return _Device(handle, f"MIG-{plain}")

    def start(self, began_s: float) -> None:
        if self._error is None:
            self._thread = threading.Thread(target=self._run, args=(began_s,), daemon=True, name="kit-telemetry")
            self._thread.start()

    def stop(self) -> Telemetry:
        """Ends the sampling, takes the last readings and lets NVML go."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            if self._thread.is_alive():
                self._error = "NVML did not answer for 5 s"
        found = self._telemetry()
        self._close()
        return found

    def _telemetry(self) -> Telemetry:
        device = self._device
        after: dict[str, int] = {}
        readings: dict[str, Any] = {}
        if self._error is None:
            try:
                after = self._counters()
                readings = {
                    "power_limit_w": self._try("power_limit", lambda n, h: n.nvmlDeviceGetEnforcedPowerLimit(h) / 1000),
                    "power_limit_default_w": self._try(
                        "power_limit", lambda n, h: n.nvmlDeviceGetPowerManagementDefaultLimit(h) / 1000
                    ),
                    "device_name": self._try("name", lambda n, h: _text(n.nvmlDeviceGetName(h))),
                    "memory_total_bytes": self._try("memory", lambda n, h: n.nvmlDeviceGetMemoryInfo(h).total),
                }
            except Exception as error:
                self._error = f"NVML stopped answering: {error}"
        return Telemetry(
            device_uuid=device.uuid if device else None,
            is_bound_by_uuid=device is not None,
            idle=device.idle if device else None,
            counters_before=device.counters if device else {},
            counters_after=after,
            missing=tuple(sorted(self._missing)),
            error=self._error,
            reserved_before_bytes=self._reserved_before,
            **readings,
        )

    def _close(self) -> None:
        """NVML counts its starts; one that is never ended is torn down by the process's exit."""
        if self._nvml is None or (self._thread is not None and self._thread.is_alive()):
            return
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            pass
        self._nvml = self._handle = None

    def _run(self, began_s: float) -> None:
        while not self._stop.is_set():
            try:
                self.samples.append(self._read(time.perf_counter() - began_s))
            except Exception as error:
                self._error = f"NVML stopped answering: {error}"
                return
            self._stop.wait(INTERVAL_S)

    # --- readings -------------------------------------------------------------------

    def _read(self, at_s: float) -> TelemetrySample:
        processes = self._processes()
        return TelemetrySample(
            at_s=at_s,
            memory_used_bytes=self._try("memory", lambda n, h: n.nvmlDeviceGetMemoryInfo(h).used),
            own_memory_bytes=_own_memory(processes),
            power_w=self._try("power", lambda n, h: n.nvmlDeviceGetPowerUsage(h) / 1000),
            clock_mhz=self._try("clock", lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM)),
            utilization=self._try("utilization", lambda n, h: n.nvmlDeviceGetUtilizationRates(h).gpu / 100),
            temperature_c=self._try("temperature", lambda n, h: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU)),
            throttle_bits=self._try("throttle_reasons", _throttle_bits),
            foreign_processes=_foreign(processes),
        )

    def _processes(self) -> dict[int, int | None] | None:
        """Memory of each compute process on the card, by the driver's number for it."""
        found = self._try("processes", lambda n, h: n.nvmlDeviceGetComputeRunningProcesses(h))
        if found is None:
            return None
        used = {process.pid: process.usedGpuMemory for process in found}
        if used and not any(used.values()):
            # Windows lists every program that draws and tells of none what it uses: not what is asked.
            self._missing.add("processes")
            return None
        return used

    def _counters(self) -> dict[str, int]:
        found = {}
        for name, corrected in (("ecc_corrected", "CORRECTED"), ("ecc_uncorrected", "UNCORRECTED")):
            kind = getattr(self._nvml, f"NVML_MEMORY_ERROR_TYPE_{corrected}")
            value = self._try(
                "ecc", lambda n, h, kind=kind: n.nvmlDeviceGetTotalEccErrors(h, kind, n.NVML_VOLATILE_ECC)
            )
            if value is not None:
                found[name] = value
        rows = self._try("remapped_rows", lambda n, h: n.nvmlDeviceGetRemappedRows(h))
        if rows is not None:
            found |= {
                "remapped_uncorrected": rows[1],
                "remap_pending": int(rows[2]),
                "remap_failure": int(rows[3]),
            }
        return found

    def _try(self, what: str, ask) -> Any:
        """One reading, or None with its name noted where this card does not give it."""
        if self._handle is None:
            return None
        try:
            return ask(self._nvml, self._handle)
        except AttributeError:
            self._missing.add(what)
        except self._nvml.NVMLError as error:
            if type(error).__name__.removeprefix("NVMLError_") not in _MISSING:
                raise
            self._missing.add(what)
        return None


def _throttle_bits(nvml: Any, handle: Any) -> int:
    """Older packages know the question by its older name."""
    ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    return (ask or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle)


def _ours() -> set[int]:
    return _learned | {os.getpid()}


def _own_memory(processes: dict[int, int | None] | None) -> int | None:
    own = [used for pid, used in (processes or {}).items() if pid in _ours() and used]
    return sum(own) if own else None


def _foreign(processes: dict[int, int | None] | None) -> int | None:
    """Others on the card. An empty list says nothing: where we are not listed ourselves, who is?"""
    if not processes:
        return None
    return len(set(processes) - _ours())


def _torch_reserved() -> int | None:
    """What torch holds on the device already, where this process used it before."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_reserved())


def _plain(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value

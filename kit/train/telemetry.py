"""Asks the driver, while the steps run, what the card is doing: NVML, bound to the device by UUID.

A reading that this card or platform does not give is None, and named in `missing`; it is
never red by itself. Utilisation is context, not a witness: a spinning kernel shows 100 %.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from kit.train.metrics import Telemetry, TelemetrySample

INTERVAL_S = 0.02


class Recorder:
    """Samples one device in a thread between `start` and `stop`.

    Made before CUDA starts, so that `idle` is a card without our work and the process that
    appears when CUDA starts is known to be ours (inside a container the driver's process
    numbers are not ours).
    """

    def __init__(self, device_index: int = 0) -> None:
        self.samples: list[TelemetrySample] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._nvml: Any = None
        self._handle: Any = None
        self._own: set[int] = {os.getpid()}
        self._missing: set[str] = set()
        self._error: str | None = None
        self._uuid: str | None = None
        self._bound = False
        self._idle: TelemetrySample | None = None
        self._before: dict[str, int] = {}
        self._foreign_before: set[int] = set()
        self._open(device_index)

    def _open(self, device_index: int) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handle = _handle_for(pynvml, device_index)
            self._uuid = _text(pynvml.nvmlDeviceGetUUID(self._handle))
            self._foreign_before = self._processes() or set()
            self._idle = self._read(0.0)
            self._before = self._counters()
        except ImportError:
            self._error = "nvidia-ml-py is not installed"
        except Exception as error:  # NVML raises its own hierarchy; the reason is recorded, training goes on
            self._error = f"NVML: {error}"

    def bind(self, torch_uuid: str | None) -> None:
        """Called once CUDA runs: checks that NVML's device is torch's, and learns which process is ours."""
        if self._error or torch_uuid is None:
            return
        wanted = torch_uuid.removeprefix("GPU-").lower()
        if (self._uuid or "").removeprefix("GPU-").lower() != wanted:
            try:
                self._handle = self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{wanted}")
                self._uuid, self._idle = f"GPU-{wanted}", None
                self._before = self._counters()
            except Exception as error:
                self._error = f"NVML does not know torch's device: {error}"
                return
        self._bound = True
        appeared = (self._processes() or set()) - self._foreign_before
        if len(appeared) == 1:
            self._own |= appeared

    def start(self, began_s: float) -> None:
        if self._error is None:
            self._thread = threading.Thread(target=self._run, args=(began_s,), daemon=True, name="kit-telemetry")
            self._thread.start()

    def stop(self) -> Telemetry:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        after = self._counters() if self._error is None else {}
        limit = self._try("power_limit", lambda n, h: n.nvmlDeviceGetEnforcedPowerLimit(h) / 1000)
        default = self._try("power_limit", lambda n, h: n.nvmlDeviceGetPowerManagementDefaultLimit(h) / 1000)
        return Telemetry(
            device_uuid=self._uuid,
            is_bound_by_uuid=self._bound,
            idle=self._idle,
            power_limit_w=limit,
            power_limit_default_w=default,
            counters_before=self._before,
            counters_after=after,
            missing=tuple(sorted(self._missing)),
            error=self._error,
        )

    def _run(self, began_s: float) -> None:
        while not self._stop.is_set():
            try:
                self.samples.append(self._read(time.perf_counter() - began_s))
            except Exception as error:
                self._error = f"NVML stopped answering: {error}"
                return
            self._stop.wait(INTERVAL_S)

    def _read(self, at_s: float) -> TelemetrySample:
        processes = self._processes()
        memory = self._try("memory", lambda n, h: n.nvmlDeviceGetMemoryInfo(h).used)
        return TelemetrySample(
            at_s=at_s,
            memory_used_bytes=memory,
            own_memory_bytes=self._own_memory(),
            power_w=self._try("power", lambda n, h: n.nvmlDeviceGetPowerUsage(h) / 1000),
            clock_mhz=self._try("clock", lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM)),
            utilization=self._try("utilization", lambda n, h: n.nvmlDeviceGetUtilizationRates(h).gpu / 100),
            temperature_c=self._try("temperature", lambda n, h: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU)),
            throttle_bits=self._try("throttle_reasons", lambda n, h: n.nvmlDeviceGetCurrentClocksEventReasons(h)),
            foreign_processes=None if processes is None else len(processes - self._own),
        )

    def _processes(self) -> set[int] | None:
        found = self._try("processes", lambda n, h: n.nvmlDeviceGetComputeRunningProcesses(h))
        return None if found is None else {process.pid for process in found}

    def _own_memory(self) -> int | None:
        found = self._try("process_memory", lambda n, h: n.nvmlDeviceGetComputeRunningProcesses(h)) or ()
        own = [process.usedGpuMemory for process in found if process.pid in self._own]
        own = [used for used in own if used]
        return sum(own) if own else None

    def _counters(self) -> dict[str, int]:
        nvml = self._nvml
        found = {}
        for name, corrected in (("ecc_corrected", "CORRECTED"), ("ecc_uncorrected", "UNCORRECTED")):
            kind = getattr(nvml, f"NVML_MEMORY_ERROR_TYPE_{corrected}")
            value = self._try(
                "ecc", lambda n, h, kind=kind: n.nvmlDeviceGetTotalEccErrors(h, kind, n.NVML_VOLATILE_ECC)
            )
            if value is not None:
                found[name] = value
        rows = self._try("remapped_rows", lambda n, h: n.nvmlDeviceGetRemappedRows(h))
        if rows is not None:
            found |= {"remapped_uncorrected": rows[1], "remap_pending": rows[2], "remap_failure": rows[3]}
        return found

    def _try(self, what: str, ask) -> Any:
        """One reading, or None with its name noted where this card does not give it."""
        if self._handle is None:
            return None
        try:
            return ask(self._nvml, self._handle)
        except self._nvml.NVMLError_NotSupported:
            self._missing.add(what)
        except self._nvml.NVMLError_NoPermission:
            self._missing.add(what)
        except (self._nvml.NVMLError_FunctionNotFound, AttributeError):
            self._missing.add(what)
        return None


def _handle_for(nvml: Any, device_index: int) -> Any:
    """NVML's handle of torch's device; a first guess by CUDA_VISIBLE_DEVICES that `bind` checks."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if visible.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(visible)
    return nvml.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdigit() else device_index)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value

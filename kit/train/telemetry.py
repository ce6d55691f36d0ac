"""Asks the driver, while the steps run, what the card is doing: NVML, bound to the device by UUID.

A reading that this card or platform does not give is None, and named in `missing`; it is
never red by itself. Utilisation is context, not a witness: a spinning kernel shows 100 %.
"""

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from kit.gpu.nvml import Nvml, NvmlError
from kit.train.steps import Telemetry, TelemetrySample

# Between two readings: a hundredth of the time that has passed, within these. The thread takes Python's lock from the
# steps each time.
INTERVAL_S, LONGEST_INTERVAL_S = 0.02, 0.5
# Memory, power and clock are read each time; the slower questions at first too, then only now and then.
FULL_AT_FIRST, FULL_EVERY = 25, 5
# A sample is about 250 bytes in a bundle.
MOST_SAMPLES = 4096
# Numbers by which the driver knew this process in earlier recordings: in a container they are not ours.
_learned: set[int] = set()


class Recorder:
    """Samples one device in a thread between `start` and `stop`.

    Made before CUDA starts, so that `idle` is a card without our work and the process that
    appears when CUDA starts is known to be ours (inside a container the driver's process
    numbers are not ours). Which card is torch's is known only by then, so all are read.
    """

    def __init__(self) -> None:
        self.samples: list[TelemetrySample] = []
        self._taken = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._open = contextlib.ExitStack()
        self._nvml = Nvml()
        self._handle: Any = None
        # Each card as it was before our work, by its UUID.
        self._devices: dict[str, SimpleNamespace] = {}
        self._device: SimpleNamespace | None = None
        self._error: str | None = "not bound to a device"
        self._reserved_before = _torch_reserved()
        try:
            self._open.enter_context(self._nvml)
            self._devices = {_plain(device.uuid): device for device in map(self._baseline, self._nvml.handles())}
        except NvmlError as error:
            self._error = error.found if error.found.startswith("nvidia-ml-py") else f"NVML: {error.found}"

    def _baseline(self, handle: Any) -> SimpleNamespace:
        self._handle = handle
        return SimpleNamespace(
            handle=handle,
            uuid=self._ask("nvmlDeviceGetUUID") or "",
            idle=self._read(0.0),
            counters=self._counters(),
            processes=set(self._processes() or ()),
        )

    def bind(self, torch_uuid: str) -> None:
        """Called once CUDA runs: finds torch's device by its UUID, and learns which process is ours."""
        if not self._devices:
            return
        plain = _plain(torch_uuid)
        # NVML does not list a MIG slice; our own work is on it already, so nothing is idle.
        slice_of = self._nvml.ask("nvmlDeviceGetHandleByUUID", f"MIG-{plain}") if plain not in self._devices else None
        unseen = SimpleNamespace(handle=slice_of, uuid=f"MIG-{plain}", idle=None, counters={}, processes=set())
        device = self._devices.get(plain) or (slice_of and unseen)
        if not device:
            self._error = "NVML does not know torch's device"
            return
        self._nvml.missing.clear()
        self._device, self._handle, self._error = device, device.handle, None
        appeared = set(self._processes() or ()) - device.processes
        if len(appeared) == 1:
            _learned.update(appeared)

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
        device, last = self._device, {}
        if self._error is None:
            try:
                memory = self._ask("nvmlDeviceGetMemoryInfo", told="memory")
                enforced, default = "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementDefaultLimit"
                last = {
                    "counters_after": self._counters(),
                    "power_limit_w": self._ask(enforced, told="power_limit", per=1000),
                    "power_limit_default_w": self._ask(default, told="power_limit", per=1000),
                    "device_name": self._ask("nvmlDeviceGetName", told="name"),
                    "memory_total_bytes": memory and memory.total,
                }
            except NvmlError as error:
                self._error = f"NVML stopped answering: {error.found}"
        if not (self._thread and self._thread.is_alive()):
            self._open.close()
        return Telemetry(
            device_uuid=device.uuid if device else None,
            is_bound_by_uuid=device is not None,
            idle=device.idle if device else None,
            counters_before=device.counters if device else {},
            missing=tuple(sorted(self._nvml.missing)),
            error=self._error,
            reserved_before_bytes=self._reserved_before,
            readings=self._taken,
            **last,
        )

    def _run(self, began_s: float) -> None:
        while not self._stop.is_set():
            at_s = time.perf_counter() - began_s
            try:
                self.samples.append(
                    self._read(at_s, is_full=self._taken < FULL_AT_FIRST or self._taken % FULL_EVERY == 0)
                )
            except NvmlError as error:
                self._error = f"NVML stopped answering: {error.found}"
                return
            self._taken += 1
            if len(self.samples) > MOST_SAMPLES:
                self.samples = thinned(self.samples)
            self._stop.wait(min(max(INTERVAL_S, at_s / 100), LONGEST_INTERVAL_S))

    # --- readings; numbers of constants are nvml.h's ----------------------------------

    def _ask(self, function: str, *arguments: Any, told: str = "", per: float | None = None) -> Any:
        """Of the device. per: what makes NVML's unit ours."""
        value = self._nvml.ask(function, self._handle, *arguments, told=told)
        return value / per if per and value is not None else value

    def _read(self, at_s: float, *, is_full: bool = True) -> TelemetrySample:
        memory = self._ask("nvmlDeviceGetMemoryInfo", told="memory")
        found = TelemetrySample(
            at_s=at_s,
            memory_used_bytes=memory and memory.used,
            power_w=self._ask("nvmlDeviceGetPowerUsage", told="power", per=1000),
            # NVML_CLOCK_SM
            clock_mhz=self._ask("nvmlDeviceGetClockInfo", 1, told="clock"),
        )
        if not is_full:
            return found
        processes, rates = self._processes(), self._ask("nvmlDeviceGetUtilizationRates", told="utilization")
        reasons = "nvmlDeviceGetCurrentClocksEventReasons"
        if not hasattr(self._nvml.library, reasons):
            # Older packages know the question by its older name.
            reasons = "nvmlDeviceGetCurrentClocksThrottleReasons"
        return dataclasses.replace(
            found,
            own_memory_bytes=sum(used or 0 for pid, used in (processes or {}).items() if pid in _ours()) or None,
            utilization=rates and rates.gpu / 100,
            # NVML_TEMPERATURE_GPU
            temperature_c=self._ask("nvmlDeviceGetTemperature", 0, told="temperature"),
            throttle_bits=self._ask(reasons, told="throttle_reasons"),
            # An empty list says nothing about others: where we are not listed ourselves, who is?
            foreign_processes=len(set(processes) - _ours()) if processes else None,
        )

    def _processes(self) -> dict[int, int | None] | None:
        """Memory of each compute process on the card, by the driver's number for it."""
        found = self._ask("nvmlDeviceGetComputeRunningProcesses", told="processes")
        used = {process.pid: process.usedGpuMemory for process in found or ()}
        if used and not any(used.values()):
            # Windows lists every program that draws and tells of none what it uses: not what is asked.
            self._nvml.missing.add("processes")
            return None
        return used if found is not None else None

    def _counters(self) -> dict[str, int]:
        # NVML_MEMORY_ERROR_TYPE_*, and NVML_VOLATILE_ECC
        kinds = {"ecc_corrected": 0, "ecc_uncorrected": 1}
        found = {name: self._ask("nvmlDeviceGetTotalEccErrors", kind, 0, told="ecc") for name, kind in kinds.items()}
        rows = self._ask("nvmlDeviceGetRemappedRows", told="remapped_rows") or ()
        names = ("remapped_uncorrected", "remap_pending", "remap_failure")
        found |= {name: int(value) for name, value in zip(names, rows[1:])}
        return {name: value for name, value in found.items() if value is not None}


def thinned(samples: Sequence[TelemetrySample]) -> list[TelemetrySample]:
    """Every second sample, and all that hold an extreme of any reading, or a set of throttle bits that no other has."""
    kept = {*range(0, len(samples), 2), *({sample.throttle_bits: n for n, sample in enumerate(samples)}.values())}
    for field in dataclasses.fields(TelemetrySample):
        told = [(getattr(sample, field.name), n) for n, sample in enumerate(samples)]
        told = [(value, n) for value, n in told if value is not None]
        kept |= {min(told)[1], max(told)[1]} if told else set()
    return [samples[n] for n in sorted(kept)]


def _ours() -> set[int]:
    return _learned | {os.getpid()}


def _torch_reserved() -> int | None:
    """What torch holds on the device already, where this process used it before."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_reserved())


def _plain(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")

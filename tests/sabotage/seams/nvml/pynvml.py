"""Stands in for nvidia-ml-py: NVML as a file describes it, with a timeline of readings.

FAKE_NVML names a JSON file: {"devices": [{"uuid", "name", "capability", "memory", "idle", "frames", "ecc",
"rows", "missing"}], "raise_after"}. `idle` and each of `frames` is {"used", "power", "clock", "utilization",
"temperature", "bits", "processes": [[pid, bytes], ...]}; a device shows `idle` until `play()` is called and
then one frame after the other, the last one for ever. "raise_after": readings until the GPU is lost.
`missing` lists function names that answer Not Supported. "error": what nvmlInit says.
"""

import json
import os

NVML_CLOCK_SM = 1
NVML_TEMPERATURE_GPU = 0
NVML_VOLATILE_ECC = 0
NVML_MEMORY_ERROR_TYPE_CORRECTED = 0
NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1


class NVMLError(Exception):
    def __str__(self):
        return self.args[0] if self.args else type(self).__name__.removeprefix("NVMLError_")


class NVMLError_NotSupported(NVMLError): ...


class NVMLError_NotFound(NVMLError): ...


class NVMLError_GpuIsLost(NVMLError): ...


class NVMLError_LibraryNotFound(NVMLError): ...


class _Memory:
    def __init__(self, total, used):
        self.total, self.used, self.free = total, used, total - used


class _Process:
    def __init__(self, pid, used):
        self.pid, self.usedGpuMemory = pid, used


_world = {}
starts = 0
_is_playing = False
_reads = 0


def play():
    """From now on the timeline runs: one frame for each reading of the memory."""
    global _is_playing, _reads
    _is_playing, _reads = True, 0


def nvmlInit():
    global _world, starts
    with open(os.environ["FAKE_NVML"], encoding="utf-8") as file:
        _world = json.load(file)
    if _world.get("error"):
        raise NVMLError_LibraryNotFound(_world["error"])
    starts += 1


def nvmlShutdown():
    global starts
    starts -= 1


def nvmlSystemGetDriverVersion():
    return _world.get("driver", "580.159.04")


def nvmlSystemGetCudaDriverVersion_v2():
    return 13000


def nvmlDeviceGetCount():
    return len(_world["devices"])


def nvmlDeviceGetHandleByIndex(index):
    return _world["devices"][index]


def nvmlDeviceGetHandleByUUID(uuid):
    for device in [*_world["devices"], *_world.get("slices", [])]:
        if device["uuid"] == uuid:
            return device
    raise NVMLError_NotFound("Not Found")


def _frame(device):
    if not _is_playing or not device.get("frames"):
        return device["idle"]
    return device["frames"][min(_reads, len(device["frames"])) - 1 if _reads else 0]


def _ask(device, function):
    if function in device.get("missing", ()):
        raise NVMLError_NotSupported("Not Supported")
    if _world.get("raise_after") is not None and _reads > _world["raise_after"]:
        raise NVMLError_GpuIsLost("GPU is lost")
    return _frame(device)


def nvmlDeviceGetUUID(device):
    return device["uuid"]


def nvmlDeviceGetName(device):
    return device["name"]


def nvmlDeviceGetCudaComputeCapability(device):
    return tuple(device["capability"])


def nvmlDeviceGetMigMode(device):
    raise NVMLError_NotSupported("Not Supported")


def nvmlDeviceGetMemoryInfo(device):
    global _reads
    _reads += 1
    return _Memory(device["memory"], _ask(device, "memory")["used"])


def nvmlDeviceGetPowerUsage(device):
    return _ask(device, "power")["power"] * 1000


def nvmlDeviceGetClockInfo(device, kind):
    return _ask(device, "clock")["clock"]


def nvmlDeviceGetUtilizationRates(device):
    found = _ask(device, "utilization")
    return type("Rates", (), {"gpu": found.get("utilization", 0)})


def nvmlDeviceGetTemperature(device, kind):
    return _ask(device, "temperature").get("temperature", 40)


def nvmlDeviceGetCurrentClocksEventReasons(device):
    return _ask(device, "bits").get("bits", 0)


def nvmlDeviceGetComputeRunningProcesses(device):
    return [_Process(pid, used) for pid, used in _ask(device, "processes").get("processes", ())]


def nvmlDeviceGetTotalEccErrors(device, kind, counter):
    frame = _ask(device, "ecc")
    return frame.get("ecc", [0, 0])[kind]


def nvmlDeviceGetRemappedRows(device):
    return tuple(_ask(device, "rows").get("rows", (0, 0, 0, 0)))


def nvmlDeviceGetEnforcedPowerLimit(device):
    _ask(device, "limit")
    return device.get("limit", 700) * 1000


def nvmlDeviceGetPowerManagementDefaultLimit(device):
    _ask(device, "limit")
    return 700 * 1000
